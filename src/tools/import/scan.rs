//! The first of two passes over an import: checks all of it, and notes where what is.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::lines::{Item, Lines};
use crate::protocol::content_type::ContentType;
use crate::protocol::json::ContentCheck;
use crate::protocol::name::{NameLimits, StreamName, check_name};
use crate::storage::disk::DiskFile;
use crate::stream::fork::StreamRef;
use crate::stream::producer::ProducerState;
use crate::stream::state::{Closure, StreamState};
use crate::tools::image::Image;
use crate::tools::notation::{Checksum, FORMAT, Fork, Line, Opening, StreamHeader, VERSION};
use crate::tools::{Progress, ToolError};

/// A stream of the input.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: StreamName,
    /// Where its first line begins, and the number of the line before.
    pub(super) at: (u64, u64),
    /// Of its lines: the second pass has to find what the first one did.
    pub(super) hash: u64,
    pub(super) deleted: bool,
    /// Name of its source, and where it forks it.
    pub(super) fork: Option<(StreamName, u64)>,
    /// Positions of its content. What retention has cut is before them.
    pub(super) content: Range<u64>,
    /// First position that its forks may need.
    earliest: u64,
    /// There is a stream of that name.
    pub(super) rival: Option<Rival>,
}

/// A stream of the directory whose name a stream of the input has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rival {
    pub(super) stream: StreamRef,
    /// Both have the same content up to this position.
    pub(super) agree: u64,
    /// They may agree at all: both are of the same type, and both or none are forks, of the same source at the same place.
    is_alike: bool,
}

/// Everything in the input.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) streams: Vec<Found>,
    pub(super) by_name: HashMap<StreamName, usize>,
    bytes: u64,
}

/// The stream at hand.
struct Current {
    index: usize,
    header: StreamHeader,
    state: StreamState,
    hash: Xxh3,
    /// Position of the next byte.
    at: u64,
    check: Option<ContentCheck>,
}

/// Checks a whole input. `image` is what is there already.
pub(super) fn scan(
    file: &Arc<dyn DiskFile>,
    image: &Image,
    limits: &NameLimits,
    progress: &mut dyn Progress,
) -> Result<Scan, ToolError> {
    let mut lines = Lines::new(Arc::clone(file), 0, 0)?;
    progress.begin("checking the input", lines.len());
    opening(&mut lines)?;
    let mut checksum = Checksum::default();
    checksum.add(lines.raw());
    let names: HashMap<&str, StreamRef> = image.by_name().into_iter().collect();
    let mut scanner = Scanner { scan: Scan::default(), current: None, image, names, limits };
    loop {
        let at = (lines.offset(), lines.number);
        if !lines.next()? {
            return Err(lines.malformed("the input is cut off: its last line is missing"));
        }
        progress.advance(lines.raw().len() as u64);
        let item = lines.item()?;
        if let Item::Line(Line::End(end)) = item {
            scanner.end_stream(&lines)?;
            let Scan { streams, bytes, .. } = &scanner.scan;
            if (end.streams, end.bytes) != (streams.len() as u64, *bytes) || end.checksum != checksum.text() {
                return Err(lines.malformed("the input is damaged: its last line does not fit to the others"));
            }
            return match lines.next()? {
                true => Err(lines.malformed("something follows the last line")),
                false => Ok(scanner.scan),
            };
        }
        checksum.add(lines.raw());
        scanner.take(item, at, &lines)?;
    }
}

/// Checks the first line of what is there of an input.
pub(super) fn check_opening(file: &Arc<dyn DiskFile>) -> Result<(), ToolError> {
    opening(&mut Lines::new(Arc::clone(file), 0, 0)?)
}

fn opening(lines: &mut Lines) -> Result<(), ToolError> {
    let is_there = lines.next()?;
    let opening: Option<Opening> = serde_json::from_slice(lines.raw()).ok().filter(|_| is_there);
    match opening {
        Some(Opening { format, version }) if format == FORMAT && version == VERSION => Ok(()),
        Some(Opening { format, version }) if format == FORMAT => Err(lines
            .malformed(format!("the export has version {version}, this program reads version {VERSION}"))),
        _ => Err(lines.malformed("this is not the first line of an export")),
    }
}

struct Scanner<'a> {
    scan: Scan,
    current: Option<Current>,
    image: &'a Image,
    names: HashMap<&'a str, StreamRef>,
    limits: &'a NameLimits,
}

impl Scanner<'_> {
    fn take(&mut self, item: Item, at: (u64, u64), lines: &Lines) -> Result<(), ToolError> {
        if let Item::Line(Line::Stream(header)) = item {
            self.end_stream(lines)?;
            self.begin_stream(*header, at, lines)?;
        } else {
            let Some(current) = &mut self.current else {
                return Err(lines.malformed("it comes before any stream"));
            };
            match item {
                Item::Line(Line::Producer(producer)) => {
                    let tag = producer.tag().map_err(|why| lines.malformed(why))?;
                    if current.at > current.header.start {
                        return Err(lines.malformed("a producer comes after content"));
                    }
                    if current.state.producers.get(&tag.id).is_some() {
                        return Err(lines.malformed("the producer is there twice"));
                    }
                    let state = ProducerState { epoch: tag.epoch, seq: tag.seq, group: 0 };
                    current.state.producers.set(tag.id, state);
                }
                Item::Content(bytes) => self.content(&bytes, false, lines)?,
                Item::Messages(bytes) => self.content(&bytes, true, lines)?,
                Item::Line(_) => unreachable!("the other lines were taken"),
            }
        }
        if let Some(current) = &mut self.current {
            current.hash.update(lines.raw());
        }
        Ok(())
    }

    fn begin_stream(&mut self, header: StreamHeader, at: (u64, u64), lines: &Lines) -> Result<(), ToolError> {
        check_name(&header.name, self.limits).map_err(|error| lines.malformed(error.to_string()))?;
        let name = StreamName::from_stored(&header.name);
        let state = header.state(None).map_err(|why| lines.malformed(why))?;
        let mut fork = None;
        if let Some(found) = &header.fork {
            let Some((source, _)) = self.scan.by_name.get_key_value(found.source.as_str()) else {
                return Err(lines.malformed(format!("its source {:?} does not come before it", found.source)));
            };
            fork = Some((source.clone(), found.point));
        }
        let index = self.scan.streams.len();
        if self.scan.by_name.insert(name.clone(), index).is_some() {
            return Err(lines.malformed(format!("stream {:?} is there twice", header.name)));
        }
        let rival = self.rival(&header, &state.content_type);
        let check = state.content_type.is_json().then(ContentCheck::default);
        self.check_fork(&header, lines)?;
        self.scan.streams.push(Found {
            name,
            at,
            hash: 0,
            deleted: header.deleted,
            fork,
            content: header.start..header.tail,
            earliest: header.fork.as_ref().map_or(header.start, |fork| fork.earliest),
            rival,
        });
        let at = header.start;
        self.current = Some(Current { index, header, state, hash: Xxh3::new(), at, check });
        Ok(())
    }

    fn check_fork(&self, header: &StreamHeader, lines: &Lines) -> Result<(), ToolError> {
        let Some(fork) = &header.fork else { return Ok(()) };
        let source = &self.scan.streams[self.scan.by_name[fork.source.as_str()]];
        let Range { start, end } = source.content;
        if fork.point > end {
            let what = format!("it forks {:?} at {}, which ends at {end}", fork.source, fork.point);
            return Err(lines.malformed(what));
        }
        // Of the source's own content, that is; the rest is its own source's.
        let base = source.fork.as_ref().map_or(0, |(_, point)| *point);
        let needs = fork.earliest.max(base);
        if fork.earliest < source.earliest || needs < start.min(fork.point) {
            let Fork { source: name, earliest, .. } = fork;
            let what = format!("it needs {name:?} from {earliest} on, of which less is kept");
            return Err(lines.malformed(what));
        }
        Ok(())
    }

    /// The stream of that name which is there, and how far inherited content is the same.
    fn rival(&self, header: &StreamHeader, content_type: &ContentType) -> Option<Rival> {
        let stream = *self.names.get(header.name.as_str())?;
        let there = self.image.stream(stream)?;
        let own = header.fork.as_ref().map(|fork| (fork.source.as_str(), fork.point));
        let its = there.state.fork.as_ref().map(|fork| (fork.source.as_str(), fork.point));
        if there.state.content_type != *content_type || own != its || there.kept().start != header.start {
            return Some(Rival { stream, agree: 0, is_alike: false });
        }
        // What retention has cut of both nobody needs.
        let agree = match own {
            None => header.start,
            // What both inherit is as alike as those are that they inherit it from.
            Some((source, point)) => {
                let source = self.scan.by_name.get(source).and_then(|index| self.scan.streams[*index].rival);
                let agree = source.map_or(0, |source| source.agree);
                if agree < point { agree } else { header.start }
            }
        };
        Some(Rival { stream, agree, is_alike: true })
    }

    fn content(&mut self, bytes: &[u8], are_messages: bool, lines: &Lines) -> Result<(), ToolError> {
        let current = self.current.as_mut().expect("only a stream has content");
        let start = current.at;
        current.at += bytes.len() as u64;
        if bytes.is_empty() || current.at > current.header.tail {
            return Err(lines.malformed("it has no content, or more than its stream"));
        }
        match &mut current.check {
            None if are_messages => return Err(lines.malformed("messages of a stream that is not JSON")),
            None => {}
            Some(check) => {
                let begins_whole = check.is_at_boundary();
                check.push(bytes, &mut |_| ()).map_err(|error| lines.malformed(error.to_string()))?;
                if are_messages && !(begins_whole && check.is_at_boundary()) {
                    return Err(lines.malformed("these are not whole messages"));
                }
            }
        }
        if let Some(rival) = &mut self.scan.streams[current.index].rival
            && rival.is_alike
            && rival.agree == start
        {
            rival.agree += common(self.image, rival.stream, start, bytes)?;
        }
        Ok(())
    }

    fn end_stream(&mut self, lines: &Lines) -> Result<(), ToolError> {
        let Some(current) = self.current.take() else { return Ok(()) };
        let Current { index, header, state, hash, at, check } = current;
        let name = &header.name;
        if at != header.tail {
            let what = format!("the content of {name:?} before it ends at {at}, not at {}", header.tail);
            return Err(lines.malformed(what));
        }
        if let Some(Err(error)) = check.map(|check| check.finish()) {
            return Err(lines.malformed(format!("the content of {name:?} before it: {error}")));
        }
        if let Closure::Closed(Some(tag)) = &state.closure {
            let known = state.producers.get(&tag.id).map(|known| (known.epoch, known.seq));
            if known != Some((tag.epoch, tag.seq)) {
                let what =
                    format!("the producer that closed {name:?} is not among its producers as it did so");
                return Err(lines.malformed(what));
            }
        }
        let found = &mut self.scan.streams[index];
        found.hash = hash.digest();
        self.scan.bytes += found.content.end - found.content.start;
        Ok(())
    }
}

/// How many of the bytes at this position of a stream are these.
fn common(image: &Image, stream: StreamRef, start: u64, bytes: &[u8]) -> Result<u64, ToolError> {
    let shard = &image.shards[usize::from(stream.shard)];
    let tail = shard.streams.by_id[&stream.id].state.tail;
    let mut rest = bytes;
    let mut same = 0;
    shard.read_range::<ToolError>(stream.id, start..tail.min(start + bytes.len() as u64), &mut |piece| {
        if same == bytes.len() - rest.len() {
            let (now, later) = rest.split_at(piece.len());
            same += now.iter().zip(piece).take_while(|(a, b)| a == b).count();
            rest = later;
        }
        Ok(())
    })?;
    Ok(same as u64)
}
