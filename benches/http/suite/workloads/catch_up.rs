//! Reads of a long stream from its beginning to its end, page by page as the server hands them out.

use std::io;
use std::ops::RangeInclusive;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::clients::{content, content_type};
use super::pages::Pages;
use super::{Measured, Run};
use crate::suite::generator::{Answer, Client, Gate, Request, Step};
use crate::suite::stats::{Stats, Which};

/// One append of the content. Bytes.
const PIECE_BYTES: usize = 256 << 10;
/// One JSON message of it. Bytes.
const MESSAGE_BYTES: usize = 1023;

/// What is read, and by how many.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) mebibytes: usize,
    pub(super) json: bool,
    pub(super) connections: usize,
}

impl Load {
    pub(super) fn run(&self, run: &Run<'_>) -> io::Result<Measured> {
        run.create_streams(1, content_type(self.json), &Bytes::new())?;
        let piece = if self.json { messages() } else { content(false, PIECE_BYTES) };
        let times = self.mebibytes * (1 << 20) / PIECE_BYTES;
        run.fill(content_type(self.json), &piece, times)?;
        // What JSON is as it is served differs by commas and brackets.
        let bytes = (piece.len() * times) as u64;
        let expected = if self.json { bytes / 100 * 99..=bytes / 100 * 101 } else { bytes..=bytes };
        let client = |_| -> Box<dyn Client> {
            let pages = Pages::new(run, 0, "", "");
            Box::new(Reader { pages, expected: expected.clone(), began: 0, bytes: 0 })
        };
        let driven = run.drive((0..self.connections).map(client).collect(), &Gate::new(0))?;
        run.delete_streams(1);
        Ok(Measured { mutations: 0, ..Measured::megabytes(&driven) })
    }
}

/// A JSON array of [`PIECE_BYTES`].
fn messages() -> Bytes {
    let message = content(true, MESSAGE_BYTES);
    let mut piece = BytesMut::with_capacity(PIECE_BYTES);
    piece.put_u8(b'[');
    while piece.len() + message.len() < PIECE_BYTES {
        piece.put_slice(&message);
        piece.put_u8(b',');
    }
    let last = piece.len() - 1;
    piece[last] = b']';
    piece.freeze()
}

#[derive(Debug)]
struct Reader {
    pages: Pages,
    /// Bytes that a whole read may have.
    expected: RangeInclusive<u64>,
    /// When the read under way began. Nanoseconds.
    began: u64,
    bytes: u64,
}

impl Client for Reader {
    fn next(&mut self, now: u64, request: &mut Request) -> Step {
        if self.pages.is_at_start() {
            self.began = now;
            self.bytes = 0;
        }
        self.pages.write(&mut request.head);
        Step::Send
    }

    fn head(&mut self, status: u16, head: &[u8], _: u64) {
        self.pages.head(status, head);
    }

    fn answered(&mut self, answer: &Answer, stats: &mut Stats) {
        self.bytes += answer.body_bytes;
        match self.pages.turn(answer.status) {
            Ok(false) => {}
            Ok(true) if self.expected.contains(&self.bytes) => {
                stats.record(Which::Main, self.began, answer.now);
                self.pages.rewind();
            }
            Ok(true) => {
                stats.error(format!("{} bytes instead of {:?}", self.bytes, self.expected), 1);
                self.pages.rewind();
            }
            Err(what) => {
                stats.error(what, 1);
                self.pages.rewind();
            }
        }
    }
}
