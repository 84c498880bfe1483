//! Reading an export line by line, from anywhere in it.

use std::io;
use std::sync::Arc;

use crate::storage::disk::DiskFile;
use crate::tools::ToolError;
use crate::tools::notation::{JSON_CLOSE, JSON_OPEN, LINE_BYTES_MAX, Line, from_base64};

/// Read at once. Bytes.
const WINDOW_BYTES: usize = 1 << 20;

/// Goes through the lines of a file.
#[derive(Debug)]
pub(super) struct Lines {
    file: Arc<dyn DiskFile>,
    len: u64,
    /// Where the window is in the file, and how much of it was taken.
    window_at: u64,
    window: Vec<u8>,
    taken: usize,
    /// Number of the line that was read last.
    pub(super) number: u64,
    line: Vec<u8>,
}

/// What a line is.
#[derive(Debug)]
pub(super) enum Item {
    Line(Line),
    /// Bytes of content.
    Content(Vec<u8>),
    /// Messages of content, whole ones.
    Messages(Vec<u8>),
}

impl Lines {
    /// From `offset` on, where line `number` + 1 begins.
    pub(super) fn new(file: Arc<dyn DiskFile>, offset: u64, number: u64) -> Result<Self, ToolError> {
        let len = file.len().map_err(ToolError::Input)?;
        Ok(Self { file, len, window_at: offset, window: Vec::new(), taken: 0, number, line: Vec::new() })
    }

    /// Where the next line begins.
    pub(super) fn offset(&self) -> u64 {
        self.window_at + self.taken as u64
    }

    /// Length of the file. Bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn malformed(&self, what: impl Into<String>) -> ToolError {
        ToolError::Malformed { line: self.number, what: what.into() }
    }

    /// The line that was read last, with its line break.
    pub(super) fn raw(&self) -> &[u8] {
        &self.line
    }

    /// Reads a line. `false` = there is none.
    pub(super) fn next(&mut self) -> Result<bool, ToolError> {
        self.line.clear();
        self.number += 1;
        loop {
            if self.taken == self.window.len() && !self.refill().map_err(ToolError::Input)? {
                return match self.line.is_empty() {
                    true => Ok(false),
                    false => Err(self.malformed("it is cut off")),
                };
            }
            let rest = &self.window[self.taken..];
            let end = memchr::memchr(b'\n', rest).map(|at| at + 1);
            let now = end.unwrap_or(rest.len());
            if self.line.len() + now > LINE_BYTES_MAX {
                return Err(self.malformed(format!("it has more than {LINE_BYTES_MAX} bytes")));
            }
            self.line.extend_from_slice(&rest[..now]);
            self.taken += now;
            if end.is_some() {
                return Ok(true);
            }
        }
    }

    fn refill(&mut self) -> io::Result<bool> {
        self.window_at = self.offset();
        self.taken = 0;
        let len = self.len.saturating_sub(self.window_at).min(WINDOW_BYTES as u64) as usize;
        self.window.resize(len, 0);
        self.file.read_at(self.window_at, &mut self.window)?;
        Ok(len > 0)
    }

    /// What the line that was read last says.
    pub(super) fn item(&self) -> Result<Item, ToolError> {
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        if let Some(messages) = line.strip_prefix(JSON_OPEN) {
            let Some(messages) = messages.strip_suffix(JSON_CLOSE) else {
                return Err(self.malformed("it has messages, and does not end with them"));
            };
            return Ok(Item::Messages([messages, b","].concat()));
        }
        match serde_json::from_slice(line) {
            Ok(Line::Base64(text)) => {
                from_base64(&text).map(Item::Content).map_err(|why| self.malformed(why))
            }
            Ok(line) => Ok(Item::Line(line)),
            Err(error) => Err(self.malformed(error.to_string())),
        }
    }
}
