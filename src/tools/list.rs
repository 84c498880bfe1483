//! What streams there are.

use std::io::Write;

use serde::Serialize;

use crate::protocol::lifetime::Lifetime;
use crate::tools::image::{Image, StreamImage};
use crate::tools::{DataDirectory, ToolError};

/// How the list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListStyle {
    /// Columns for people, under a line that names them.
    Table,
    /// One JSON object a line.
    Json,
}

/// One stream, as a line of JSON has it.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    name: &'a str,
    shard: u16,
    content_type: &'a str,
    /// Offset of the end, in stored bytes.
    tail: u64,
    /// Bytes of content that are kept for it; a fork's inherited ones are its source's.
    bytes: u64,
    closed: bool,
    /// Deleted or expired, and kept for its forks.
    deleted: bool,
    producers: usize,
    /// Forks that need it.
    forks: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<&'a str>,
    /// When a sliding window ends unless it is renewed; milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fork_source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fork_offset: Option<u64>,
}

impl<'a> Listed<'a> {
    fn new(shard: u16, stream: &'a StreamImage) -> Self {
        let state = &stream.state;
        let kept = stream.kept();
        let (ttl_seconds, expires_at) = match &state.lifetime {
            None => (None, None),
            Some(Lifetime::Ttl { seconds }) => (Some(*seconds), None),
            Some(Lifetime::ExpiresAt(at)) => (None, Some(at.raw())),
        };
        Self {
            name: stream.name.as_str(),
            shard,
            content_type: state.content_type.as_str(),
            tail: state.tail,
            bytes: kept.end.saturating_sub(kept.start),
            closed: state.closure.is_closed(),
            deleted: state.soft_deleted,
            producers: state.producers.len(),
            forks: state.pins().count(),
            ttl_seconds,
            expires_at,
            deadline_ms: state.lifetime.as_ref().map(|lifetime| lifetime.deadline_ms(state.renewed_at_ms)),
            fork_source: state.fork.as_ref().map(|fork| fork.source.as_str()),
            fork_offset: state.fork.as_ref().map(|fork| fork.point),
        }
    }

    fn state(&self) -> &'static str {
        match (self.deleted, self.closed) {
            (true, _) => "deleted",
            (false, true) => "closed",
            (false, false) => "open",
        }
    }

    fn lifetime(&self) -> String {
        match (self.ttl_seconds, self.expires_at) {
            (Some(seconds), _) => format!("ttl {seconds} s"),
            (None, Some(at)) => format!("until {at}"),
            (None, None) => "-".to_owned(),
        }
    }
}

/// Writes the streams whose name begins with `prefix`, sorted by name.
///
/// # Errors
/// If the directory cannot be read, or `out` not written.
pub fn list(
    directory: &DataDirectory,
    prefix: &str,
    style: ListStyle,
    out: &mut dyn Write,
) -> Result<(), ToolError> {
    let image = Image::open(&directory.taken)?;
    if style == ListStyle::Table {
        let head = ("SHARD", "STATE", "TAIL", "BYTES", "LIFETIME", "CONTENT TYPE", "NAME");
        let (shard, state, tail, bytes, lifetime, content_type, name) = head;
        writeln!(
            out,
            "{shard:>5} {state:<7} {tail:>12} {bytes:>12} {lifetime:<16} {content_type:<24} {name}"
        )
        .map_err(ToolError::Output)?;
    }
    for (name, stream) in image.by_name().range(prefix..) {
        if !name.starts_with(prefix) {
            break;
        }
        let listed = Listed::new(stream.shard, image.stream(*stream).expect("it was just listed"));
        match style {
            ListStyle::Table => line(&listed, out),
            ListStyle::Json => serde_json::to_writer(&mut *out, &listed)
                .map_err(Into::into)
                .and_then(|()| out.write_all(b"\n")),
        }
        .map_err(ToolError::Output)?;
    }
    out.flush().map_err(ToolError::Output)
}

fn line(listed: &Listed<'_>, out: &mut dyn Write) -> std::io::Result<()> {
    let Listed { name, shard, content_type, tail, bytes, .. } = listed;
    let (state, lifetime) = (listed.state(), listed.lifetime());
    write!(out, "{shard:>5} {state:<7} {tail:>12} {bytes:>12} {lifetime:<16} {content_type:<24} {name}")?;
    if let (Some(source), Some(offset)) = (listed.fork_source, listed.fork_offset) {
        write!(out, " (fork of {source} at {offset})")?;
    }
    writeln!(out)
}
