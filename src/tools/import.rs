//! Streams from text into a data directory.
//!
//! The input is read twice: once to check all of it, and once to write it. In between it is decided which streams the
//! directory is going to have. All of them are then written beside what is there (see `build`), so an import is one step:
//! whoever cuts it off finds nothing of it, or all of it.

mod lines;
mod scan;

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use self::lines::{Item, Lines};
use self::scan::{Found, Scan, check_opening, scan};
use crate::protocol::name::{NameLimits, StreamName};
use crate::storage::StorageError;
use crate::storage::disk::{DiskFile, OpenMode};
use crate::stream::fork::ForkOrigin;
use crate::stream::producer::ProducerState;
use crate::stream::state::StreamState;
use crate::tools::build::{Origins, build};
use crate::tools::image::Image;
use crate::tools::notation::{LINE_BYTES_MAX, Line, StreamHeader};
use crate::tools::population::{Member, Origin, PlannedFork, Population, members};
use crate::tools::{DataDirectory, Progress, ToolError};

/// Where input is kept that can be read only once.
const SPOOL_FILE: &str = "import.spool";
/// Copied at once. Bytes.
const COPY_BYTES: usize = 1 << 20;

/// What becomes of a stream of the input whose name the directory has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// The one in the directory stays.
    Skip,
    /// Nothing is imported at all.
    Fail,
    /// It takes the place of the one in the directory. One that is deleted and there for its forks only does so only if the
    /// other one is that as well.
    Replace,
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Streams that are new.
    pub added: u64,
    /// Streams that took the place of others.
    pub replaced: u64,
    /// Streams of the input that were left out.
    pub skipped: u64,
}

/// What is imported.
#[derive(Debug)]
pub struct Source(Arc<dyn DiskFile>);

impl Source {
    /// A file that can be read from anywhere.
    #[must_use]
    pub fn file(file: Arc<dyn DiskFile>) -> Self {
        Self(file)
    }

    /// Input that can be read only once: it is copied into the data directory first, into a file without a name, which is
    /// gone with the process.
    ///
    /// # Errors
    /// If it cannot be read, or not be written, or does not begin as an export does.
    pub fn spooled(directory: &DataDirectory, input: &mut dyn Read) -> Result<Self, ToolError> {
        let disk = directory.taken.disk();
        let path = Path::new(SPOOL_FILE);
        let failed =
            |source| StorageError::Io { context: format!("keeping the input in {SPOOL_FILE}"), source };
        let file = disk.open(path, OpenMode::Create).map_err(failed)?;
        // Where open files cannot be removed it stays, and is used again.
        let _ = disk.remove(path);
        let mut buffer = vec![0; COPY_BYTES];
        let mut at = 0;
        let mut has_opening = false;
        loop {
            let len = match input.read(&mut buffer) {
                Ok(0) => return Ok(Self(file)),
                Ok(len) => len,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ToolError::Input(error)),
            };
            file.write_at(at, &buffer[..len]).map_err(failed)?;
            at += len as u64;
            // Looked at before the rest is taken in: input that is something else may have no end.
            if !has_opening && (buffer[..len].contains(&b'\n') || at > LINE_BYTES_MAX as u64) {
                check_opening(&file)?;
                has_opening = true;
            }
        }
    }
}

/// Imports all of `source`. Names have to keep within `limits`.
///
/// Offsets, names and all that is known of the streams stay as they were. They become new incarnations, so that ETags
/// differ. A fork is attached to the stream that has its source's name afterwards; where that is not the one that it came
/// with, both have to have the same content up to the fork's point.
///
/// # Errors
/// If the input is not what an export writes, does not go together with what is there, or if anything cannot be read or
/// written. The directory is as it was then.
pub fn import(
    directory: &DataDirectory,
    source: &Source,
    on_conflict: OnConflict,
    limits: &NameLimits,
    progress: &mut dyn Progress,
) -> Result<Imported, ToolError> {
    let image = directory.image_or_none()?;
    let found = scan(&source.0, &image, limits, progress)?;
    let (members, outcome) = merge(&image, &found, on_conflict)?;
    check_families(&found, &members)?;
    directory.create()?;
    if outcome.added + outcome.replaced > 0 {
        let shards = image.layout.shard_count;
        let population = Population::plan(members, shards, image.next_id().max(id_of_now()))?;
        let input = Input { file: Arc::clone(&source.0), scan: found };
        build(
            &directory.taken,
            shards,
            &population,
            &Origins { image: &image, input: Some(&input) },
            progress,
        )?;
    }
    progress.end();
    Ok(outcome)
}

/// A directory that is filled again and again must repeat no incarnation, and with it no ETag: a server's ids begin at the
/// time of its start, too.
fn id_of_now() -> u64 {
    let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    (since_1970.as_millis().max(1) as u64) << 20
}

/// Which streams there are going to be.
fn merge(image: &Image, found: &Scan, on_conflict: OnConflict) -> Result<(Vec<Member>, Imported), ToolError> {
    let mut outcome = Imported::default();
    let mut taken = vec![false; found.streams.len()];
    let mut first = None;
    for (index, stream) in found.streams.iter().enumerate() {
        let Some(rival) = stream.rival else {
            taken[index] = true;
            outcome.added += 1;
            continue;
        };
        let there = image.stream(rival.stream).expect("it was found there");
        if on_conflict == OnConflict::Replace && (!stream.deleted || there.state.soft_deleted) {
            taken[index] = true;
            outcome.replaced += 1;
        } else {
            first.get_or_insert(stream.name.as_str());
            outcome.skipped += 1;
        }
    }
    if let (OnConflict::Fail, Some(name)) = (on_conflict, first) {
        return Err(ToolError::Conflict(format!(
            "{} streams of the input are there already, {name:?} among them; nothing was imported; see \
             --on-conflict",
            outcome.skipped
        )));
    }
    let stays = |member: &Member| found.by_name.get(member.name.as_str()).is_none_or(|index| !taken[*index]);
    let there = members(image).filter(stays);
    let new = found.streams.iter().enumerate().filter(|(index, _)| taken[*index]);
    let new = new.map(|(index, stream)| Member {
        name: stream.name.clone(),
        origin: Origin::Input(index),
        deleted: stream.deleted,
        fork: stream.fork.clone(),
    });
    Ok((there.chain(new).collect(), outcome))
}

/// A fork may come to have another source than the one it had, if that makes no difference.
fn check_families(found: &Scan, members: &[Member]) -> Result<(), ToolError> {
    let is_from_input: HashMap<&str, bool> = members
        .iter()
        .map(|member| (member.name.as_str(), matches!(member.origin, Origin::Input(_))))
        .collect();
    for member in members {
        let Some((source, point)) = &member.fork else { continue };
        let source = source.as_str();
        let own_side = matches!(member.origin, Origin::Input(_));
        if is_from_input.get(source) == Some(&own_side) {
            continue;
        }
        let rival = found.by_name.get(source).and_then(|index| found.streams[*index].rival);
        let agree = rival.map_or(0, |rival| rival.agree);
        if rival.is_none() || agree < *point {
            return Err(ToolError::Conflict(format!(
                "{:?} is a fork of {source:?} at {point}, but {source:?} in the input and {source:?} in the data \
                 directory differ from {agree} on; import it into another directory, or choose another \
                 --on-conflict",
                member.name.as_str()
            )));
        }
    }
    Ok(())
}

/// The input, once it was checked.
pub(super) struct Input {
    file: Arc<dyn DiskFile>,
    scan: Scan,
}

impl Input {
    /// Bytes of content of a stream.
    pub(super) fn bytes_of(&self, index: usize) -> u64 {
        let content = &self.scan.streams[index].content;
        content.end - content.start
    }

    /// Begins to read a stream again.
    pub(super) fn open(&self, index: usize) -> Result<InputStream, ToolError> {
        let &Found { at: (offset, number), hash, .. } = &self.scan.streams[index];
        let mut lines = Lines::new(Arc::clone(&self.file), offset, number)?;
        let mut seen = Xxh3::new();
        lines.next()?;
        let Item::Line(Line::Stream(header)) = lines.item()? else { return Err(changed(&lines)) };
        seen.update(lines.raw());
        let mut state = header.state(None).map_err(|_| changed(&lines))?;
        let first = loop {
            lines.next()?;
            let item = lines.item()?;
            let Item::Line(Line::Producer(producer)) = &item else { break item };
            seen.update(lines.raw());
            let tag = producer.tag().map_err(|_| changed(&lines))?;
            state.producers.set(tag.id, ProducerState { epoch: tag.epoch, seq: tag.seq, group: 0 });
        };
        let start = header.start;
        Ok(InputStream { lines, header: *header, state, start, first, seen, hash })
    }
}

fn changed(lines: &Lines) -> ToolError {
    lines.malformed("the input has changed since it was checked")
}

/// A stream of the input that is being read for the second time.
pub(super) struct InputStream {
    lines: Lines,
    header: StreamHeader,
    /// Without what it has as a fork.
    state: StreamState,
    /// Position of the first byte of content.
    pub(super) start: u64,
    /// The line after its producers.
    first: Item,
    seen: Xxh3,
    hash: u64,
}

impl InputStream {
    /// Hands its content to `take`.
    pub(super) fn read(
        &mut self,
        take: &mut dyn FnMut(&[u8]) -> Result<(), ToolError>,
    ) -> Result<(), ToolError> {
        let end = Item::Content(Vec::new());
        let mut item = std::mem::replace(&mut self.first, end);
        while let Item::Content(bytes) | Item::Messages(bytes) = &item {
            self.seen.update(self.lines.raw());
            take(bytes)?;
            self.lines.next()?;
            item = self.lines.item()?;
        }
        if self.seen.digest() == self.hash { Ok(()) } else { Err(changed(&self.lines)) }
    }

    /// Its state, as a fork if it is one. To be asked once.
    pub(super) fn with_fork(&mut self, planned: Option<&PlannedFork>) -> Result<StreamState, ToolError> {
        let origin = self.header.fork.as_ref().zip(planned).map(|(fork, planned)| {
            Box::new(ForkOrigin {
                source: StreamName::from_stored(&fork.source),
                source_ref: planned.source,
                anchor: fork.anchor,
                earliest: fork.earliest,
                sub_offset: fork.sub_offset,
                point: fork.point,
                lifetime_inherited: fork.lifetime_inherited,
                lineage: planned.lineage.clone(),
            })
        });
        let mut state = self.header.state(origin).map_err(|_| changed(&self.lines))?;
        state.producers = std::mem::take(&mut self.state.producers);
        Ok(state)
    }
}
