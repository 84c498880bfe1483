//! The chunks of an SSE response.
//!
//! A chunk is a data event with its control event, or a heartbeat. It is what is written to a connection at one time; so a
//! response can end between any two of them, and a client that saw data knows how to go on from there.

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::engine::api::{LiveBatch, LiveEvent, LiveReader, ReadError, Subscription};
use crate::http::cache::{jitter, now_ms};
use crate::protocol::cursor;
use crate::protocol::sse::{Control, SseEncoding, complete_text_len, write_control, write_data};

/// Stored bytes in one data event, unless a JSON message is longer.
const BATCH_BYTES_MAX: usize = 128 * 1024;
/// Key under which a batch's encoding without a cursor is shared; no cursor has as many digits.
const NO_CURSOR_KEY: u64 = u64::MAX;
/// Room for the size of a chunk, and the line end behind it.
const CHUNK_START_BYTES: usize = 8 + 2;

/// Whole events, as one chunk of the transfer coding of HTTP/1.1: so encoded once, and shared by all readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk(Bytes);

impl Chunk {
    /// The comment that is sent when a connection has been idle.
    pub(crate) const HEARTBEAT: Self = Self(Bytes::from_static(b"3\r\n:\n\n\r\n"));
    /// Ends a response.
    pub(crate) const LAST: Self = Self(Bytes::from_static(b"0\r\n\r\n"));

    /// The chunk of what `write` writes.
    fn write(capacity: usize, write: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut out = Vec::with_capacity(CHUNK_START_BYTES + capacity);
        out.resize(CHUNK_START_BYTES, b' ');
        write(&mut out);
        let size = format!("{:X}\r\n", out.len() - CHUNK_START_BYTES);
        let start = CHUNK_START_BYTES - size.len();
        out[start..CHUNK_START_BYTES].copy_from_slice(size.as_bytes());
        out.extend_from_slice(b"\r\n");
        Self(Bytes::from(out).slice(start..))
    }

    /// With its framing.
    pub(crate) fn framed(self) -> Bytes {
        self.0
    }

    /// Without.
    pub(super) fn events(&self) -> Bytes {
        let start = self.0.iter().position(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.0.slice(start..self.0.len() - 2)
    }
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was sent yet; the first chunk has to be a control event, with data or without.
    Opening,
    /// The same, and there was nothing to send when the response began.
    OpeningAtTail { closed: bool },
    /// A control event was the last thing sent, or a heartbeat behind one.
    Open,
    /// The last control event was sent.
    Over,
}

/// The chunks of one response: a position in a stream that gives one at a time, whenever the connection has room for it.
#[derive(Debug)]
pub(crate) struct Frames {
    reader: LiveReader,
    encoding: SseEncoding,
    stage: Stage,
    /// Last cursor sent, or the first to send. Never goes back.
    cursor: u64,
}

impl Frames {
    pub(super) fn new(subscription: Subscription, encoding: SseEncoding, client_cursor: Option<u64>) -> Self {
        let info = subscription.info();
        let stage = if subscription.position() == info.tail {
            Stage::OpeningAtTail { closed: info.closed }
        } else {
            Stage::Opening
        };
        let cursor = cursor::answer(client_cursor, now_ms(), jitter());
        Self { reader: subscription.into_reader(), encoding, stage, cursor }
    }

    /// Whether the response may end here, or carry a heartbeat: the client knows its position.
    pub(crate) fn may_end(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Whether the last event was given out.
    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// The next chunk; `None` at the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Chunk>> {
        if let Stage::OpeningAtTail { closed } = self.stage {
            return Poll::Ready(Some(self.control_alone(closed)));
        }
        while self.stage != Stage::Over {
            let chunk = match ready!(self.reader.poll_next(cx, BATCH_BYTES_MAX)) {
                Ok(LiveEvent::Data(batch)) => self.batch(&batch),
                Ok(LiveEvent::Closed { .. }) => Some(self.control_alone(true)),
                // No event says so: the client learns it by coming back. As does one that was too slow for the stream's
                // retention.
                Ok(LiveEvent::Removed | LiveEvent::SoftDeleted) | Err(ReadError::OffsetGone { .. }) => break,
                Err(error) => {
                    tracing::warn!(error = %error, "an SSE response ends because its stream cannot be read");
                    break;
                }
            };
            if chunk.is_some() {
                return Poll::Ready(chunk);
            }
        }
        Poll::Ready(None)
    }

    /// Data with its control event; `None` if all of the batch has to wait for more.
    fn batch(&mut self, batch: &LiveBatch) -> Option<Chunk> {
        let len: usize = batch.data.iter().map(Bytes::len).sum();
        let held = match self.encoding {
            SseEncoding::Text if !batch.closed => incomplete_len(&batch.data, batch.up_to_date),
            _ => 0,
        };
        if held > 0 {
            self.reader.hold_back(held);
        }
        if held == len {
            return (self.stage == Stage::Opening && batch.up_to_date).then(|| self.control_alone(false));
        }
        self.stage = if batch.closed { Stage::Over } else { Stage::Open };
        let current = self.refresh_cursor();
        let cursor = (!batch.closed).then_some(self.cursor);
        let encoding = self.encoding;
        let encode = |batch: &LiveBatch| encode(encoding, batch, held, cursor);
        // Who came back early has a cursor of its own, and must not push out what the others share.
        match cursor {
            Some(cursor) if cursor > current => Some(encode(batch)),
            cursor => {
                let encode = |batch: &LiveBatch| encode(batch).0;
                Some(Chunk(batch.encode_once(cursor.unwrap_or(NO_CURSOR_KEY), encode)))
            }
        }
    }

    /// A control event without data: the client has everything that can be sent.
    fn control_alone(&mut self, closed: bool) -> Chunk {
        self.refresh_cursor();
        self.stage = if closed { Stage::Over } else { Stage::Open };
        let control = Control {
            next_offset: self.reader.position(),
            cursor: (!closed).then_some(self.cursor),
            up_to_date: true,
            closed,
        };
        Chunk::write(160, |out| write_control(out, &control))
    }

    /// Moves the cursor on with the time, and returns the current interval.
    fn refresh_cursor(&mut self) -> u64 {
        let current = cursor::current(now_ms());
        self.cursor = self.cursor.max(current);
        current
    }
}

/// Data and control event of a batch without its last `held` bytes, as one piece: who sees the data sees the control.
fn encode(encoding: SseEncoding, batch: &LiveBatch, held: usize, cursor: Option<u64>) -> Chunk {
    let control = Control {
        next_offset: batch.end - held as u64,
        cursor,
        up_to_date: batch.up_to_date,
        closed: batch.closed,
    };
    Chunk::write(256, |out| {
        if held == 0 {
            write_data(out, encoding, &batch.data);
        } else {
            write_data(out, encoding, &without_last(&batch.data, held));
        }
        write_control(out, &control);
    })
}

fn without_last(data: &[Bytes], bytes: usize) -> Vec<Bytes> {
    let mut left = data.iter().map(Bytes::len).sum::<usize>() - bytes;
    let mut kept = Vec::with_capacity(data.len());
    for piece in data {
        let len = piece.len().min(left);
        kept.push(piece.slice(..len));
        left -= len;
    }
    kept
}

/// Bytes at the end of text that cannot be sent before what follows them: a code point that is not complete, or a CR
/// whose LF may be the next byte (only if there is one).
fn incomplete_len(data: &[Bytes], up_to_date: bool) -> usize {
    let mut last = [0; 4];
    let mut len = 0;
    for &byte in data.iter().rev().flat_map(|piece| piece.iter().rev()).take(last.len()) {
        len += 1;
        last[4 - len] = byte;
    }
    let last = &last[4 - len..];
    match len - complete_text_len(last) {
        0 => usize::from(!up_to_date && len > 1 && last.ends_with(b"\r")),
        incomplete => incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::sse::HEARTBEAT;

    #[test]
    fn a_chunk_has_its_size_before_it_and_a_line_end_behind_it() {
        for len in [1, 15, 16, 255, 256, 70_000] {
            let text = vec![b'x'; len];
            let chunk = Chunk::write(0, |out| out.extend_from_slice(&text));
            assert_eq!(chunk.events(), text);
            let framed = chunk.framed();
            let (size, rest) = framed.split_at(framed.iter().position(|&byte| byte == b'\r').unwrap());
            assert_eq!(std::str::from_utf8(size).unwrap(), format!("{len:X}"));
            assert_eq!(rest, [&b"\r\n"[..], &text, b"\r\n"].concat());
        }
        assert_eq!(Chunk::HEARTBEAT, Chunk::write(0, |out| out.extend_from_slice(HEARTBEAT)));
        assert_eq!(Chunk::HEARTBEAT.events(), HEARTBEAT);
    }

    fn pieces(texts: &[&[u8]]) -> Vec<Bytes> {
        texts.iter().map(|text| Bytes::copy_from_slice(text)).collect()
    }

    #[test]
    fn an_incomplete_code_point_is_found_across_pieces() {
        let euro = "€".as_bytes();
        for (data, expected) in [
            (pieces(&[b"abc"]), 0),
            (pieces(&[b"ab", euro]), 0),
            (pieces(&[b"abcdef", &euro[..1]]), 1),
            (pieces(&[b"ab", &euro[..1], &euro[1..2]]), 2),
            (pieces(&[&euro[..2]]), 2),
            (pieces(&["😀".as_bytes().split_at(3).0]), 3),
            // Invalid, so there is nothing to wait for.
            (pieces(&[b"ab\x80"]), 0),
            (pieces(&[b"ab\xff"]), 0),
            (pieces(&[]), 0),
        ] {
            assert_eq!(incomplete_len(&data, true), expected, "{data:?}");
            assert_eq!(incomplete_len(&data, false), expected, "{data:?}");
        }
    }

    #[test]
    fn a_cr_waits_for_its_lf_only_if_there_is_more() {
        assert_eq!(incomplete_len(&pieces(&[b"a\r"]), false), 1);
        assert_eq!(incomplete_len(&pieces(&[b"a\r"]), true), 0);
        assert_eq!(incomplete_len(&pieces(&[b"a\r\n"]), false), 0);
    }

    #[test]
    fn the_last_bytes_are_cut_off_across_pieces() {
        let data = pieces(&[b"abc", b"d", b"e"]);
        assert_eq!(without_last(&data, 2).concat(), b"abc");
        assert_eq!(without_last(&data, 3).concat(), b"ab");
    }
}
