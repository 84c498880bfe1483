//! JSON mode: bodies split into messages, and positions in their stored form. `protocol.md` §6.
//!
//! A message is the exact bytes of its element; nothing is ever parsed into values and written back. Messages are
//! stored one after the other, each followed by one comma (`m1,m2,m3,`), so that a page is any range between two
//! boundaries, without its last byte, in brackets.
//!
//! - `split`: a body as sent, checked and split into messages
//! - `value`: the grammar of one value, checked without recursion
//! - `text`: strings, the bulk of most JSON, skipped many bytes at a time
//! - `stored`: boundaries between stored messages, which are trusted
//! - `check`: stored content that is not trusted

mod check;
mod split;
mod stored;
mod text;
mod value;

pub use check::{ContentCheck, InvalidContent};
pub use split::{JsonBody, MARK_STEP, parse_body};
pub use stored::{first_message_len, floor_boundary, is_boundary, skip_messages};

/// A body is not exactly one JSON value (RFC 8259). `at` is the position in the body, in bytes from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The body ends inside the value, or before it.
    #[error("the JSON body ends before its value is complete")]
    UnexpectedEnd,
    /// A byte that cannot stand there.
    #[error("unexpected byte at position {at} of the JSON body")]
    UnexpectedByte {
        /// Position of the byte.
        at: usize,
    },
    /// Something other than whitespace after the value.
    #[error("the JSON value is followed by something else at position {at} of the body")]
    TrailingBytes {
        /// Position of the first byte too many.
        at: usize,
    },
    /// A control character inside a string.
    #[error("unescaped control character in a string at position {at} of the JSON body")]
    ControlCharacter {
        /// Position of the character.
        at: usize,
    },
    /// A backslash that begins no escape.
    #[error("invalid escape in a string at position {at} of the JSON body")]
    InvalidEscape {
        /// Position of the backslash.
        at: usize,
    },
    /// Not UTF-8.
    #[error("the JSON body is not valid UTF-8 at position {at}")]
    InvalidUtf8 {
        /// Position of the first invalid byte.
        at: usize,
    },
    /// More arrays and objects in one another than allowed.
    #[error("the JSON body is nested deeper than {limit} levels at position {at}")]
    TooDeep {
        /// Position of the bracket that is one too many.
        at: usize,
        /// The limit.
        limit: usize,
    },
}
