//! Streams as text: one JSON object a line, as `notation` and `docs/tools.md` say.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;

use super::notation::{
    CONTENT_BYTES_MAX, Checksum, End, FORMAT, JSON_CLOSE, JSON_OPEN, Line, Opening, Producer, StreamHeader,
    VERSION, to_base64,
};
use crate::protocol::json::{ContentCheck, first_message_len};
use crate::protocol::name::StreamName;
use crate::storage::StorageError;
use crate::stream::fork::StreamRef;
use crate::tools::image::{Image, StreamImage};
use crate::tools::{DataDirectory, Progress, ToolError};

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Streams, sources that forks need included.
    pub streams: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Writes streams with everything that a server knows of them. `names` says which: a name, or the beginning of names and
/// `*`; none at all = all streams. Sources of forks come with them, before them, also those that are deleted and kept for
/// their forks only.
///
/// # Errors
/// If a stream that is named does not exist, the directory cannot be read, or `out` not written. What was written by then
/// lacks its last line, so that nobody takes it for whole.
pub fn export(
    directory: &DataDirectory,
    names: &[String],
    out: &mut dyn Write,
    progress: &mut dyn Progress,
) -> Result<Exported, ToolError> {
    let image = Image::open(&directory.taken)?;
    let order = in_order(&image, &chosen(&image, names)?)?;
    let kept = |stream: &StreamRef| {
        image.stream(*stream).map_or(0, |stream| stream.kept().end - stream.kept().start)
    };
    progress.begin("exporting", order.iter().map(kept).sum());
    let mut writer =
        Writer { out, checksum: Checksum::default(), line: Vec::new(), done: Exported::default() };
    writer.json(&Opening { format: FORMAT.to_owned(), version: VERSION })?;
    for stream in order {
        writer.stream(&image, stream, progress)?;
    }
    let Exported { streams, bytes } = writer.done;
    writer.json(&Line::End(End { streams, bytes, checksum: writer.checksum.text() }))?;
    writer.out.flush().map_err(ToolError::Output)?;
    progress.end();
    Ok(writer.done)
}

/// The streams that are asked for, by name.
fn chosen(image: &Image, names: &[String]) -> Result<Vec<StreamRef>, ToolError> {
    let all = image.by_name();
    let exists = |stream: &StreamRef| image.stream(*stream).is_some_and(|stream| !stream.state.soft_deleted);
    if names.is_empty() {
        return Ok(all.into_values().filter(exists).collect());
    }
    let mut chosen = BTreeMap::new();
    for name in names {
        match name.strip_suffix('*') {
            Some(prefix) => {
                let matching = all.range(prefix..).take_while(|(name, _)| name.starts_with(prefix));
                chosen.extend(matching.filter(|(_, stream)| exists(stream)));
            }
            None => match all.get_key_value(name.as_str()).filter(|(_, stream)| exists(stream)) {
                Some((name, stream)) => drop(chosen.insert(name, stream)),
                None => return Err(ToolError::Conflict(format!("there is no stream {name:?}"))),
            },
        }
    }
    Ok(chosen.into_values().copied().collect())
}

/// The same with all sources, each before its forks.
fn in_order(image: &Image, chosen: &[StreamRef]) -> Result<Vec<StreamRef>, ToolError> {
    let (mut order, mut seen) = (Vec::with_capacity(chosen.len()), HashSet::new());
    for &stream in chosen {
        let mut chain = Vec::new();
        let mut next = Some(stream);
        while let Some(stream) = next.take_if(|stream| seen.insert(*stream)) {
            chain.push(stream);
            let image = image.stream(stream).ok_or_else(|| {
                StorageError::Corrupt(
                    "the source of a fork is missing: `durable-streams-server verify` says more".to_owned(),
                )
            })?;
            next = image.state.fork.as_ref().map(|fork| fork.source_ref);
        }
        order.extend(chain.into_iter().rev());
    }
    Ok(order)
}

fn not_json(name: &StreamName) -> ToolError {
    ToolError::Conflict(format!(
        "the content of {:?} is not JSON: `durable-streams-server verify` says more",
        name.as_str()
    ))
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    checksum: Checksum,
    line: Vec<u8>,
    done: Exported,
}

impl Writer<'_> {
    fn json(&mut self, value: &impl serde::Serialize) -> Result<(), ToolError> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, value).map_err(|error| ToolError::Output(error.into()))?;
        self.end_line()
    }

    fn end_line(&mut self) -> Result<(), ToolError> {
        self.line.push(b'\n');
        self.checksum.add(&self.line);
        self.out.write_all(&self.line).map_err(ToolError::Output)
    }

    fn stream(
        &mut self,
        image: &Image,
        stream: StreamRef,
        progress: &mut dyn Progress,
    ) -> Result<(), ToolError> {
        let shard = &image.shards[usize::from(stream.shard)];
        let StreamImage { name, state, .. } = &shard.streams.by_id[&stream.id];
        let kept = shard.streams.by_id[&stream.id].kept();
        self.json(&Line::Stream(Box::new(StreamHeader::of(name, state, kept.start))))?;
        let mut producers: Vec<_> = state.producers.iter().collect();
        producers.sort_unstable_by_key(|(id, _)| *id);
        for (id, producer) in producers {
            self.json(&Line::Producer(Producer::of(id, producer.epoch, producer.seq)))?;
        }
        let mut content =
            Content { check: state.content_type.is_json().then(ContentCheck::default), ..Content::default() };
        shard.read::<ToolError>(stream.id, &mut |piece| {
            content.push(piece, self).map_err(|why| why.unwrap_or_else(|| not_json(name)))?;
            progress.advance(piece.len() as u64);
            Ok(())
        })?;
        if content.check.as_ref().is_some_and(|check| !check.is_at_boundary()) {
            return Err(not_json(name));
        }
        content.finish(self)?;
        self.done.streams += 1;
        self.done.bytes += kept.end - kept.start;
        Ok(())
    }

    fn base64(&mut self, content: &[u8]) -> Result<(), ToolError> {
        self.json(&Line::Base64(to_base64(content)))
    }

    /// Whole messages, each with its comma. One with a line break would end the line, and goes as base64.
    fn messages(&mut self, content: &[u8]) -> Result<(), ToolError> {
        let has_break = |message: &[u8]| memchr::memchr2(b'\n', b'\r', message).is_some();
        let (mut from, mut at) = (0, 0);
        while let Some(len) = first_message_len(&content[at..]) {
            if has_break(&content[at..at + len]) {
                self.message_line(&content[from..at])?;
                self.base64(&content[at..at + len])?;
                from = at + len;
            }
            at += len;
        }
        self.message_line(&content[from..])
    }

    fn message_line(&mut self, content: &[u8]) -> Result<(), ToolError> {
        let Some(without_comma) = content.strip_suffix(b",") else { return Ok(()) };
        self.line.clear();
        self.line.extend_from_slice(JSON_OPEN);
        self.line.extend_from_slice(without_comma);
        self.line.extend_from_slice(JSON_CLOSE);
        self.end_line()
    }
}

/// Content of one stream on its way into lines. Where it is cut does not depend on the pieces that it comes in, so that the
/// same content makes the same lines.
#[derive(Debug, Default)]
struct Content {
    /// Only JSON is looked into.
    check: Option<ContentCheck>,
    pending: Vec<u8>,
    /// Where in it the first message ends that begins before it, or 0.
    first: usize,
    /// Where in it the last message ends, or 0.
    last: usize,
    /// It begins within a message.
    is_within: bool,
}

impl Content {
    /// `None` in an error: the content is not JSON.
    fn push(&mut self, mut bytes: &[u8], writer: &mut Writer<'_>) -> Result<(), Option<ToolError>> {
        while !bytes.is_empty() {
            let before = self.pending.len();
            let (now, later) = bytes.split_at(bytes.len().min(CONTENT_BYTES_MAX - before));
            if let Some(check) = &mut self.check {
                let (first, last) = (&mut self.first, &mut self.last);
                let boundary = &mut |at| {
                    *last = before + at;
                    if *first == 0 {
                        *first = *last;
                    }
                };
                check.push(now, boundary).map_err(|_| None)?;
            }
            self.pending.extend_from_slice(now);
            if self.pending.len() == CONTENT_BYTES_MAX {
                self.write(writer)?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Writes some of what is pending: all of it, if it is not JSON or within one message, else the messages that are whole.
    fn write(&mut self, writer: &mut Writer<'_>) -> Result<(), ToolError> {
        let written = if self.last > 0 { self.last } else { self.pending.len() };
        if self.check.is_none() || self.last == 0 {
            writer.base64(&self.pending)?;
        } else {
            let begun = if self.is_within { self.first } else { 0 };
            if begun > 0 {
                writer.base64(&self.pending[..begun])?;
            }
            writer.messages(&self.pending[begun..self.last])?;
        }
        self.is_within = self.check.is_some() && self.last == 0;
        self.pending.drain(..written);
        (self.first, self.last) = (0, 0);
        Ok(())
    }

    fn finish(mut self, writer: &mut Writer<'_>) -> Result<(), ToolError> {
        if self.pending.is_empty() { Ok(()) } else { self.write(writer) }
    }
}
