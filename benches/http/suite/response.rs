//! Reads HTTP/1.1 responses as far as a load generator has to: status, framing, and where the body's bytes are.

use std::fmt;

use memchr::{memchr, memmem};

/// A head longer than this is taken for a mistake. Bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Longest line that announces a chunk. Bytes.
const CHUNK_LINE_BYTES_MAX: usize = 64;

/// What was found in the bytes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// A response begins: its status, and its status line and headers.
    Head(u16, &'a [u8]),
    /// Bytes of its body, without the framing of chunks.
    Body(&'a [u8]),
    /// It is complete.
    End,
}

/// The bytes are no HTTP/1.1 response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Sized(u64),
    UntilClose,
    ChunkLine,
    Chunk(u64),
    /// The line end after a chunk's bytes.
    ChunkEnd,
    Trailer,
}

/// One connection's responses, fed in pieces of any size.
#[derive(Debug)]
pub(crate) struct Parser {
    state: State,
    /// A head or a line that has not arrived as a whole.
    carry: Vec<u8>,
}

impl Parser {
    /// Before the first response.
    pub(crate) fn new() -> Self {
        Self { state: State::Head, carry: Vec::new() }
    }

    /// Nothing of the next response has arrived.
    pub(crate) fn is_between_responses(&self) -> bool {
        self.state == State::Head && self.carry.is_empty()
    }

    /// Body bytes that are to come for certain, less one: they may be thrown away unread, see [`Self::skip`]. The last one is
    /// kept, so that the end of a response is always found by [`Self::feed`].
    pub(crate) fn skippable(&self) -> u64 {
        match self.state {
            State::Sized(left) | State::Chunk(left) => left.saturating_sub(1),
            _ => 0,
        }
    }

    /// `count` bytes, at most [`Self::skippable`], were thrown away.
    pub(crate) fn skip(&mut self, count: u64) {
        match &mut self.state {
            State::Sized(left) | State::Chunk(left) => *left -= count,
            _ => debug_assert_eq!(count, 0),
        }
    }

    /// The peer has closed its side. Whether that ends a response.
    pub(crate) fn closed(&mut self) -> bool {
        let ends = self.state == State::UntilClose;
        *self = Self::new();
        ends
    }

    /// Takes all of `input`. `no_body`: responses are to a HEAD request.
    pub(crate) fn feed(
        &mut self,
        mut input: &[u8],
        no_body: bool,
        mut found: impl FnMut(Piece<'_>),
    ) -> Result<(), Malformed> {
        while !input.is_empty() {
            input = match self.state {
                State::Head => self.head(input, no_body, &mut found)?,
                State::Sized(left) => {
                    let (body, rest) = split(input, left);
                    found(Piece::Body(body));
                    self.state = State::Sized(left - body.len() as u64);
                    if self.state == State::Sized(0) {
                        self.end(&mut found);
                    }
                    rest
                }
                State::UntilClose => {
                    found(Piece::Body(input));
                    &[]
                }
                State::Chunk(left) => {
                    let (body, rest) = split(input, left);
                    found(Piece::Body(body));
                    let left = left - body.len() as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    rest
                }
                State::ChunkLine | State::ChunkEnd | State::Trailer => self.line(input, &mut found)?,
            };
        }
        Ok(())
    }

    fn end(&mut self, found: &mut impl FnMut(Piece<'_>)) {
        self.state = State::Head;
        found(Piece::End);
    }

    fn head<'a>(
        &mut self,
        input: &'a [u8],
        no_body: bool,
        found: &mut impl FnMut(Piece<'_>),
    ) -> Result<&'a [u8], Malformed> {
        // The usual case: the head is here as a whole, and is not copied.
        if self.carry.is_empty()
            && let Some(at) = memmem::find(input, b"\r\n\r\n")
        {
            self.begin(&input[..at + 4], no_body, found)?;
            return Ok(&input[at + 4..]);
        }
        let carried = self.carry.len();
        self.carry.extend_from_slice(input);
        let Some(at) = memmem::find(&self.carry, b"\r\n\r\n") else {
            let fits = self.carry.len() <= HEAD_BYTES_MAX;
            return if fits { Ok(&[]) } else { Err(Malformed("a head without an end")) };
        };
        let mut head = std::mem::take(&mut self.carry);
        head.truncate(at + 4);
        self.begin(&head, no_body, found)?;
        Ok(&input[head.len() - carried..])
    }

    fn begin(
        &mut self,
        head: &[u8],
        no_body: bool,
        found: &mut impl FnMut(Piece<'_>),
    ) -> Result<(), Malformed> {
        let status = status(head).ok_or(Malformed("not a status line of HTTP/1.1"))?;
        if (100..200).contains(&status) {
            return Ok(());
        }
        found(Piece::Head(status, head));
        if no_body || status == 204 || status == 304 {
            self.end(found);
            return Ok(());
        }
        let chunked = header(head, b"transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case(b"chunked"));
        self.state = match header(head, b"content-length") {
            _ if chunked => State::ChunkLine,
            Some(length) => State::Sized(decimal(length).ok_or(Malformed("a malformed Content-Length"))?),
            None => State::UntilClose,
        };
        if self.state == State::Sized(0) {
            self.end(found);
        }
        Ok(())
    }

    fn line<'a>(
        &mut self,
        input: &'a [u8],
        found: &mut impl FnMut(Piece<'_>),
    ) -> Result<&'a [u8], Malformed> {
        let Some(at) = memchr(b'\n', input) else {
            self.carry.extend_from_slice(input);
            let fits = self.carry.len() <= CHUNK_LINE_BYTES_MAX;
            return if fits { Ok(&[]) } else { Err(Malformed("a chunk's line without an end")) };
        };
        self.carry.extend_from_slice(&input[..at]);
        let line = self.carry.strip_suffix(b"\r").unwrap_or(&self.carry);
        let next = match self.state {
            State::ChunkEnd if line.is_empty() => Some(State::ChunkLine),
            State::ChunkEnd => return Err(Malformed("a chunk longer than announced")),
            State::Trailer if line.is_empty() => None,
            State::Trailer => Some(State::Trailer),
            _ => match chunk_len(line).ok_or(Malformed("a malformed chunk length"))? {
                0 => Some(State::Trailer),
                length => Some(State::Chunk(length)),
            },
        };
        self.carry.clear();
        match next {
            Some(state) => self.state = state,
            None => self.end(found),
        }
        Ok(&input[at + 1..])
    }
}

fn split(input: &[u8], left: u64) -> (&[u8], &[u8]) {
    input.split_at(usize::try_from(left).unwrap_or(usize::MAX).min(input.len()))
}

fn status(head: &[u8]) -> Option<u16> {
    let digits = head.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    decimal(digits).and_then(|status| u16::try_from(status).ok())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The length at the start of a chunk's line; what follows it is an extension.
fn chunk_len(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| matches!(byte, b';' | b' ')).next()?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Value of the first header of a head with this name (lower case), without the white space around it.
pub(crate) fn header<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut rest = head;
    while let Some(at) = memchr(b'\n', rest) {
        let line = &rest[..at];
        rest = &rest[at + 1..];
        if line.len() > name.len()
            && line[name.len()] == b':'
            && line[..name.len()].eq_ignore_ascii_case(name)
        {
            return Some(line[name.len() + 1..].trim_ascii());
        }
    }
    None
}

#[cfg(test)]
mod tests;
