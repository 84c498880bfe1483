//! Where a reader of pages stands: the offset that it asks for next.

use super::Run;
use crate::suite::response::header;

const START: &[u8] = b"-1";

/// One reader of one stream.
#[derive(Debug)]
pub(super) struct Pages {
    /// The request up to the offset's value, and from there on.
    before: Vec<u8>,
    after: Vec<u8>,
    offset: Vec<u8>,
    cursor: Vec<u8>,
    /// As the last head said.
    next_offset: Option<Vec<u8>>,
    up_to_date: bool,
}

impl Pages {
    /// At the beginning of a stream. `query`: further parameters, each with its `&`; `headers`: lines with their ends.
    pub(super) fn new(run: &Run<'_>, stream: usize, query: &str, headers: &str) -> Self {
        let target = run.target;
        Self {
            before: format!("GET {}/{}-{stream}?offset=", target.base, run.prefix).into(),
            after: format!("{query} HTTP/1.1\r\nHost: {}\r\n{headers}\r\n", target.host).into(),
            offset: START.to_vec(),
            cursor: Vec::new(),
            next_offset: None,
            up_to_date: false,
        }
    }

    /// Nothing has been read.
    pub(super) fn is_at_start(&self) -> bool {
        self.offset == START
    }

    /// Goes back to the beginning.
    pub(super) fn rewind(&mut self) {
        self.offset = START.to_vec();
    }

    /// Writes the next request.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.before);
        out.extend_from_slice(&self.offset);
        if !self.cursor.is_empty() {
            out.extend_from_slice(b"&cursor=");
            out.extend_from_slice(&self.cursor);
        }
        out.extend_from_slice(&self.after);
    }

    /// A response begins.
    pub(super) fn head(&mut self, status: u16, head: &[u8]) {
        self.next_offset = header(head, b"stream-next-offset").map(<[u8]>::to_vec);
        self.up_to_date = header(head, b"stream-up-to-date") == Some(b"true") || status == 204;
        if let Some(cursor) = header(head, b"stream-cursor") {
            self.cursor = cursor.to_vec();
        }
    }

    /// A response is complete: whether the reader has all that there was.
    ///
    /// # Errors
    /// If it cannot go on from there.
    pub(super) fn turn(&mut self, status: u16) -> Result<bool, String> {
        if status != 200 && status != 204 {
            return Err(format!("status {status}"));
        }
        let next = self.next_offset.take().ok_or("a page without Stream-Next-Offset")?;
        if next == self.offset && !self.up_to_date {
            return Err("a page that leads nowhere".to_owned());
        }
        self.offset = next;
        Ok(self.up_to_date)
    }
}
