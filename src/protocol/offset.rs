//! Offsets: positions in stored bytes, as 33 characters whose order is the order of positions. `protocol.md` §5.

use std::fmt;

/// Digits of each of the two fields.
const FIELD_LEN: usize = 16;
/// Length of an offset in bytes: two fields and the underscore between them.
const LEN: usize = 2 * FIELD_LEN + 1;
/// The read generation, reserved: always 0 for now.
const GENERATION_AND_SEPARATOR: &[u8; FIELD_LEN + 1] = b"0000000000000000_";
/// Greatest position that has an offset.
pub const POSITION_MAX: u64 = 9_999_999_999_999_999;

/// An offset as it is sent. Ordered as its text is, which is the order of positions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OffsetText([u8; LEN]);

impl OffsetText {
    /// 33 ASCII characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("an offset is ASCII digits and an underscore")
    }

    /// 33 ASCII bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for OffsetText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OffsetText").field(&self.as_str()).finish()
    }
}

impl fmt::Display for OffsetText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a request wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestedOffset {
    /// `-1`: the earliest position that is kept.
    Start,
    /// `now`: the tail at the time of the request.
    Now,
    /// A position in stored bytes; whether the stream has it is still to be seen.
    At(u64),
}

/// The value is not an offset that this server could have sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOffset {
    /// Not `-1`, `now` or two fields of 16 digits.
    #[error("the offset is not \"-1\", \"now\" or one returned by this server")]
    Malformed,
    /// Well-formed, but of a read generation that does not exist.
    #[error("the offset belongs to a read generation that this stream does not have")]
    Generation,
    /// Present but empty.
    #[error("the offset is empty")]
    Empty,
    /// Given more than once.
    #[error("the offset is given more than once")]
    Repeated,
}

/// The offset of a position in stored bytes.
///
/// # Panics
/// If `position` is greater than [`POSITION_MAX`] (10 petabytes, which no stream reaches): the text would no longer
/// sort.
pub fn format(position: u64) -> OffsetText {
    assert!(position <= POSITION_MAX, "position {position} has no offset");
    let mut text = [b'0'; LEN];
    text[..=FIELD_LEN].copy_from_slice(GENERATION_AND_SEPARATOR);
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(position).as_bytes();
    text[LEN - digits.len()..].copy_from_slice(digits);
    OffsetText(text)
}

/// Reads an offset of a request, percent-decoded and not trimmed.
pub fn parse(value: &str) -> Result<RequestedOffset, InvalidOffset> {
    match value {
        "" => return Err(InvalidOffset::Empty),
        "-1" => return Ok(RequestedOffset::Start),
        "now" => return Ok(RequestedOffset::Now),
        _ => {}
    }
    let bytes: &[u8; LEN] = value.as_bytes().try_into().map_err(|_| InvalidOffset::Malformed)?;
    if bytes[FIELD_LEN] != b'_' {
        return Err(InvalidOffset::Malformed);
    }
    let generation = field(&bytes[..FIELD_LEN]).ok_or(InvalidOffset::Malformed)?;
    let position = field(&bytes[FIELD_LEN + 1..]).ok_or(InvalidOffset::Malformed)?;
    if generation == 0 { Ok(RequestedOffset::At(position)) } else { Err(InvalidOffset::Generation) }
}

/// 16 digits as a number.
fn field(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number: u64, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn offsets_are_33_characters() {
        assert_eq!(format(0).as_str(), "0000000000000000_0000000000000000");
        assert_eq!(format(42).to_string(), "0000000000000000_0000000000000042");
        assert_eq!(format(POSITION_MAX).as_bytes(), b"0000000000000000_9999999999999999");
    }

    #[test]
    #[should_panic(expected = "has no offset")]
    fn a_position_without_offset_is_never_sent() {
        format(POSITION_MAX + 1);
    }

    #[test]
    fn the_two_words_are_read() {
        assert_eq!(parse("-1"), Ok(RequestedOffset::Start));
        assert_eq!(parse("now"), Ok(RequestedOffset::Now));
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!(parse(""), Err(InvalidOffset::Empty));
        for value in [
            "0",
            "-2",
            "NOW",
            "now ",
            " -1",
            "-1\n",
            "0000000000000000",
            "0000000000000000-0000000000000000",
            "0000000000000000_000000000000000",
            "0000000000000000_00000000000000000",
            "0000000000000000_000000000000000a",
            "0000000000000000_+000000000000001",
            "000000000000000 _0000000000000001",
            "0000000000000000_0000000000000000\n",
            "0000000000000000_00000000000000٣",
            "../../../../../../../../etc/passw",
        ] {
            assert_eq!(parse(value), Err(InvalidOffset::Malformed), "{value:?}");
        }
    }

    #[test]
    fn another_generation_is_told_apart() {
        assert_eq!(parse("0000000000000001_0000000000000000"), Err(InvalidOffset::Generation));
        assert_eq!(parse("9999999999999999_9999999999999999"), Err(InvalidOffset::Generation));
    }

    proptest! {
        #[test]
        fn every_position_survives(position in 0..=POSITION_MAX) {
            prop_assert_eq!(parse(format(position).as_str()), Ok(RequestedOffset::At(position)));
        }

        #[test]
        fn offsets_sort_as_positions_do(a in 0..=POSITION_MAX, b in 0..=POSITION_MAX) {
            prop_assert_eq!(format(a).as_str().cmp(format(b).as_str()), a.cmp(&b));
            prop_assert_eq!(format(a).cmp(&format(b)), a.cmp(&b));
        }

        #[test]
        fn no_text_makes_the_parser_panic(value in "\\PC{0,40}|[0-9_]{33}") {
            let _ = parse(&value);
        }
    }
}
