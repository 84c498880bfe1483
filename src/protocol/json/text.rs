//! Strings, skipped many bytes at a time.

use super::JsonError;

/// Bytes looked at in one step once a string has proved long; the compiler makes vector instructions of it.
const BLOCK: usize = 32;
const WORD: usize = size_of::<u64>();

/// Checks the rest of a string, from behind its opening quote at `at`; returns the position behind its closing quote.
/// UTF-8 is not looked at.
#[inline]
pub(super) fn checked_end(bytes: &[u8], at: usize) -> Result<usize, JsonError> {
    match short_end::<true>(bytes, at) {
        Some(end) => Ok(end),
        None => checked_long_end(bytes, at),
    }
}

fn checked_long_end(bytes: &[u8], mut at: usize) -> Result<usize, JsonError> {
    loop {
        at = skip_plain::<true>(bytes, at);
        match bytes.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => at = checked_escape_end(bytes, at)?,
            Some(_) => return Err(JsonError::ControlCharacter { at }),
            None => return Err(JsonError::UnexpectedEnd),
        }
    }
}

/// As [`checked_end`], for a string that is known to be valid. `None` if it is cut off.
#[inline]
pub(super) fn trusted_end(bytes: &[u8], at: usize) -> Option<usize> {
    match short_end::<false>(bytes, at) {
        Some(end) => Some(end),
        None => trusted_long_end(bytes, at),
    }
}

fn trusted_long_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at = skip_plain::<false>(bytes, at);
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            _ => at += 2,
        }
    }
}

/// The end of a string that is done within one word, as most names of members are; `None` says nothing.
#[inline]
fn short_end<const CONTROL: bool>(bytes: &[u8], at: usize) -> Option<usize> {
    let word = word_at(bytes, at)?;
    let index = first_special::<CONTROL>(word)?;
    (word.to_le_bytes()[index] == b'"').then_some(at + index + 1)
}

/// Position behind the escape whose backslash is at `at`. A `\u` escape of a lone surrogate is valid grammar.
fn checked_escape_end(bytes: &[u8], at: usize) -> Result<usize, JsonError> {
    match bytes.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u') => match bytes.get(at + 2..at + 6) {
            Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => Ok(at + 6),
            Some(_) => Err(JsonError::InvalidEscape { at }),
            None => Err(JsonError::UnexpectedEnd),
        },
        Some(_) => Err(JsonError::InvalidEscape { at }),
        None => Err(JsonError::UnexpectedEnd),
    }
}

/// Position of the first byte from `at` on that is not plain ASCII text: a quote, a backslash, a control character or a part
/// of a longer character.
pub(super) fn skip_plain_text(bytes: &[u8], at: usize) -> usize {
    let is_plain = |&byte: &u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    bytes[at..].iter().position(|byte| !is_plain(byte)).map_or(bytes.len(), |index| at + index)
}

/// Position of the first byte from `at` on that is a quote, a backslash or, with `CONTROL`, a control character; the
/// end if there is none.
fn skip_plain<const CONTROL: bool>(bytes: &[u8], mut at: usize) -> usize {
    // Only beyond two words does it pay to look at more bytes at one time.
    for _ in 0..2 {
        let Some(word) = word_at(bytes, at) else { return skip_plain_bytewise::<CONTROL>(bytes, at) };
        match first_special::<CONTROL>(word) {
            Some(index) => return at + index,
            None => at += WORD,
        }
    }
    while let Some(block) = bytes.get(at..at + BLOCK) {
        let (words, _) = block.as_chunks::<WORD>();
        if words.iter().fold(0, |found, word| found | specials::<CONTROL>(u64::from_le_bytes(*word))) != 0 {
            break;
        }
        at += BLOCK;
    }
    while let Some(word) = word_at(bytes, at) {
        match first_special::<CONTROL>(word) {
            Some(index) => return at + index,
            None => at += WORD,
        }
    }
    skip_plain_bytewise::<CONTROL>(bytes, at)
}

fn skip_plain_bytewise<const CONTROL: bool>(bytes: &[u8], at: usize) -> usize {
    let is_special = |&byte: &u8| byte == b'"' || byte == b'\\' || (CONTROL && byte < b' ');
    // Behind the end, if a trusted string was cut off inside an escape.
    let rest = bytes.get(at..).unwrap_or_default();
    rest.iter().position(is_special).map_or(bytes.len(), |index| at + index)
}

fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at + WORD)?;
    Some(u64::from_le_bytes(word.try_into().expect("a slice of one word's length")))
}

/// Index of the first special byte of a little-endian word.
fn first_special<const CONTROL: bool>(word: u64) -> Option<usize> {
    let found = specials::<CONTROL>(word);
    (found != 0).then(|| found.trailing_zeros() as usize / 8)
}

/// Marks special bytes of a word by their top bits.
///
/// `(x - 0x01…) & !x & 0x80…` has the top bit of a byte set where the byte of `x` is 0. Borrows make it err only above
/// such a byte, and only the lowest mark ever counts. With 0x20… in place of 0x01… it finds bytes below 0x20.
fn specials<const CONTROL: bool>(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let mut found = (quote.wrapping_sub(ONES) & !quote) | (backslash.wrapping_sub(ONES) & !backslash);
    if CONTROL {
        found |= word.wrapping_sub(ONES * 0x20) & !word;
    }
    found & TOPS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One byte at a time, for comparison.
    fn plain_end(bytes: &[u8], from: usize, control: bool) -> usize {
        let is_special = |byte: u8| byte == b'"' || byte == b'\\' || (control && byte < 0x20);
        (from..bytes.len()).find(|&at| is_special(bytes[at])).unwrap_or(bytes.len())
    }

    #[test]
    fn every_byte_is_told_apart_at_every_place() {
        for byte in 0..=u8::MAX {
            for at in 0..100 {
                let mut bytes = vec![b'x'; 100];
                bytes[at] = byte;
                // A byte whose top bit or neighbour could confuse the arithmetic on words.
                bytes[(at + 1) % 100] = byte ^ 0x80;
                for from in [0, 1, 7] {
                    assert_eq!(
                        skip_plain::<true>(&bytes, from),
                        plain_end(&bytes, from, true),
                        "{byte} at {at}"
                    );
                    assert_eq!(
                        skip_plain::<false>(&bytes, from),
                        plain_end(&bytes, from, false),
                        "{byte} at {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn escapes_are_checked() {
        for (string, end) in [
            (&b"\""[..], Ok(1)),
            (b"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", Ok(17)),
            (b"\\u00aF\"", Ok(7)),
            (b"\\ud800\"", Ok(7)),
            (b"\\u00g0\"", Err(JsonError::InvalidEscape { at: 0 })),
            (b"a\\x\"", Err(JsonError::InvalidEscape { at: 1 })),
            (b"\\u12\"", Err(JsonError::UnexpectedEnd)),
            (b"\\", Err(JsonError::UnexpectedEnd)),
            (b"\\\"", Err(JsonError::UnexpectedEnd)),
            (b"", Err(JsonError::UnexpectedEnd)),
            (b"ab\n\"", Err(JsonError::ControlCharacter { at: 2 })),
            (b"a\x00\"", Err(JsonError::ControlCharacter { at: 1 })),
            (b"\x7f\"", Ok(2)),
        ] {
            assert_eq!(checked_end(string, 0), end, "{string:?}");
        }
    }

    proptest! {
        #[test]
        fn skipping_agrees_with_looking_at_each_byte(
            bytes in prop::collection::vec(prop_oneof![20 => Just(b'x'), 1 => any::<u8>()], 0..200),
            from in 0..200_usize,
        ) {
            let from = from.min(bytes.len());
            prop_assert_eq!(skip_plain::<true>(&bytes, from), plain_end(&bytes, from, true));
            prop_assert_eq!(skip_plain::<false>(&bytes, from), plain_end(&bytes, from, false));
        }

        #[test]
        fn a_cut_off_trusted_string_has_no_end(content in "([a-z]|\\\\\"|\\\\\\\\){0,60}", cut in 0..120_usize) {
            let string = content + "\"";
            prop_assert_eq!(trusted_end(string.as_bytes(), 0), Some(string.len()));
            let cut = cut.min(string.len() - 1);
            prop_assert_eq!(trusted_end(&string.as_bytes()[..cut], 0), None);
        }
    }
}
