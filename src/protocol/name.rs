//! Stream names: the URL path after the base path, percent-decoded once. `protocol.md` §2.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

/// First segment of the control API's paths; no stream lives below it.
const RESERVED_SEGMENT: &[u8] = b"__ds";

/// The decoded name of a stream: its identity, compared as bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamName(Arc<str>);

impl StreamName {
    /// A name that was checked when it was stored. Checks nothing.
    pub fn from_stored(name: &str) -> Self {
        Self(name.into())
    }

    /// Decoded, segments joined by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// Hashes and compares as `str` does (derived through `Arc<str>`), so maps can be asked without building a name.
impl Borrow<str> for StreamName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StreamName").field(&self.0).finish()
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bounds on names, from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameLimits {
    /// Most bytes of a decoded name.
    pub max_bytes: usize,
    /// Most segments.
    pub max_segments: usize,
}

/// What a path below the base path stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A stream, whether or not it exists.
    Stream(StreamName),
    /// The control API: the first decoded segment is `__ds`.
    Reserved,
}

/// The path is no stream name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing after the base path: names no resource at all.
    #[error("the path has no stream name")]
    Empty,
    /// A percent sign without two hexadecimal digits.
    #[error("the stream name has a percent sign without two hexadecimal digits after it")]
    BadPercentEncoding,
    /// Not UTF-8 after decoding.
    #[error("the stream name is not valid UTF-8")]
    NotUtf8,
    /// U+0000 to U+001F, or U+007F.
    #[error("the stream name has a control character")]
    ControlCharacter,
    /// `a//b`, `a/` or `/a`.
    #[error("the stream name has an empty segment")]
    EmptySegment,
    /// `.` or `..`
    #[error("the stream name has a segment that is \".\" or \"..\"")]
    DotSegment,
    /// The first segment is that of the control API. A path with it is [`Target::Reserved`].
    #[error("the stream name is reserved")]
    Reserved,
    /// Longer than [`NameLimits::max_bytes`].
    #[error("the stream name is longer than {max} bytes")]
    TooLong {
        /// The limit.
        max: usize,
    },
    /// More than [`NameLimits::max_segments`].
    #[error("the stream name has more than {max} segments")]
    TooManySegments {
        /// The limit.
        max: usize,
    },
}

/// A percent sign is not followed by two hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a percent sign is not followed by two hexadecimal digits")]
pub struct InvalidPercentEncoding;

/// Reads the part of a URL path after `{base}/`, still percent-encoded. `%2F` is the same as `/`.
///
/// A reserved path is told apart before anything else, so that the control API answers for all of its paths, malformed
/// ones included.
pub fn parse_path(encoded: &str, limits: &NameLimits) -> Result<Target, InvalidName> {
    if encoded.is_empty() {
        return Err(InvalidName::Empty);
    }
    if is_reserved(encoded) {
        return Ok(Target::Reserved);
    }
    let decoded = percent_decode(encoded).map_err(|_| InvalidName::BadPercentEncoding)?;
    let name = check_bytes(&decoded, limits)?;
    Ok(Target::Stream(StreamName(name.into())))
}

/// Checks a name that is decoded already, reserved ones included.
pub fn check_name(name: &str, limits: &NameLimits) -> Result<(), InvalidName> {
    if name.is_empty() {
        return Err(InvalidName::Empty);
    }
    if name.as_bytes().split(|&byte| byte == b'/').next() == Some(RESERVED_SEGMENT) {
        return Err(InvalidName::Reserved);
    }
    check_bytes(name.as_bytes(), limits).map(drop)
}

fn check_bytes<'a>(decoded: &'a [u8], limits: &NameLimits) -> Result<&'a str, InvalidName> {
    if decoded.len() > limits.max_bytes {
        return Err(InvalidName::TooLong { max: limits.max_bytes });
    }
    let name = std::str::from_utf8(decoded).map_err(|_| InvalidName::NotUtf8)?;
    if name.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(InvalidName::ControlCharacter);
    }
    for (index, segment) in name.split('/').enumerate() {
        match segment {
            "" => return Err(InvalidName::EmptySegment),
            "." | ".." => return Err(InvalidName::DotSegment),
            _ if index >= limits.max_segments => {
                return Err(InvalidName::TooManySegments { max: limits.max_segments });
            }
            _ => {}
        }
    }
    Ok(name)
}

/// Whether the first decoded segment is `__ds`, whatever follows.
fn is_reserved(encoded: &str) -> bool {
    let mut decoded = DecodedBytes(encoded.as_bytes());
    for &expected in RESERVED_SEGMENT {
        if decoded.next() != Some(Ok(expected)) {
            return false;
        }
    }
    matches!(decoded.next(), None | Some(Ok(b'/')))
}

/// Percent-decodes once; borrows if there is nothing to decode. `+` stands for itself.
pub fn percent_decode(encoded: &str) -> Result<Cow<'_, [u8]>, InvalidPercentEncoding> {
    let bytes = encoded.as_bytes();
    let Some(first) = memchr::memchr(b'%', bytes) else { return Ok(Cow::Borrowed(bytes)) };
    let mut decoded = Vec::with_capacity(bytes.len());
    decoded.extend_from_slice(&bytes[..first]);
    for byte in DecodedBytes(&bytes[first..]) {
        decoded.push(byte?);
    }
    Ok(Cow::Owned(decoded))
}

/// The decoded bytes of what is left.
struct DecodedBytes<'a>(&'a [u8]);

impl Iterator for DecodedBytes<'_> {
    type Item = Result<u8, InvalidPercentEncoding>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&byte, rest) = self.0.split_first()?;
        if byte != b'%' {
            self.0 = rest;
            return Some(Ok(byte));
        }
        let hex = |at: usize| rest.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (hex(0), hex(1)) else { return Some(Err(InvalidPercentEncoding)) };
        self.0 = &rest[2..];
        Some(Ok(u8::try_from(high * 16 + low).expect("two hexadecimal digits make one byte")))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: NameLimits = NameLimits { max_bytes: 1024, max_segments: 8 };

    fn name(encoded: &str) -> Result<String, InvalidName> {
        match parse_path(encoded, &LIMITS)? {
            Target::Stream(name) => Ok(name.as_str().to_owned()),
            Target::Reserved => panic!("{encoded} is reserved"),
        }
    }

    #[test]
    fn names_are_decoded_once() {
        for (encoded, decoded) in [
            ("a", "a"),
            ("a/b.c/d", "a/b.c/d"),
            ("a%2Fb", "a/b"),
            ("a%2fb", "a/b"),
            ("%61%62", "ab"),
            ("a%2541", "a%41"),
            ("a+b%20c", "a+b c"),
            ("%C3%BC", "ü"),
            ("...", "..."),
            ("A", "A"),
            ("__dsx", "__dsx"),
            ("a/__ds", "a/__ds"),
            ("__DS/x", "__DS/x"),
        ] {
            assert_eq!(name(encoded).as_deref(), Ok(decoded), "{encoded}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for (encoded, error) in [
            ("", InvalidName::Empty),
            ("%", InvalidName::BadPercentEncoding),
            ("a%4", InvalidName::BadPercentEncoding),
            ("a%4g", InvalidName::BadPercentEncoding),
            ("a%+1", InvalidName::BadPercentEncoding),
            ("a%%41", InvalidName::BadPercentEncoding),
            ("%ff", InvalidName::NotUtf8),
            ("%C3", InvalidName::NotUtf8),
            ("a%00", InvalidName::ControlCharacter),
            ("a%0Ab", InvalidName::ControlCharacter),
            ("a%7F", InvalidName::ControlCharacter),
            ("a//b", InvalidName::EmptySegment),
            ("a/", InvalidName::EmptySegment),
            ("/a", InvalidName::EmptySegment),
            ("a%2F", InvalidName::EmptySegment),
            (".", InvalidName::DotSegment),
            ("a/../b", InvalidName::DotSegment),
            ("a/%2E%2e", InvalidName::DotSegment),
            ("a%2F.", InvalidName::DotSegment),
        ] {
            assert_eq!(name(encoded), Err(error), "{encoded}");
        }
    }

    #[test]
    fn limits_count_decoded_bytes_and_segments() {
        assert!(name(&"%61".repeat(1024)).is_ok());
        assert_eq!(name(&"a".repeat(1025)), Err(InvalidName::TooLong { max: 1024 }));
        assert!(name("1/2/3/4/5/6/7/8").is_ok());
        assert_eq!(name("1/2/3/4/5/6/7%2F8/9"), Err(InvalidName::TooManySegments { max: 8 }));
    }

    #[test]
    fn everything_below_the_reserved_segment_is_reserved() {
        for encoded in
            ["__ds", "__ds/", "__ds/subscriptions/x", "%5F_d%73%2Fx", "__ds//", "__ds/%zz", "__ds/%00"]
        {
            assert_eq!(parse_path(encoded, &LIMITS), Ok(Target::Reserved), "{encoded}");
        }
    }

    #[test]
    fn a_map_of_names_can_be_asked_with_a_str() {
        let mut map = std::collections::HashMap::new();
        map.insert(StreamName::from_stored("a/b"), 1);
        assert_eq!(map.get("a/b"), Some(&1));
    }

    #[test]
    fn decoding_borrows_if_there_is_nothing_to_decode() {
        assert!(matches!(percent_decode("abc+"), Ok(Cow::Borrowed(b"abc+"))));
        assert_eq!(percent_decode("a%00%fF").as_deref(), Ok(&b"a\x00\xff"[..]));
        assert_eq!(percent_decode("a%f"), Err(InvalidPercentEncoding));
    }

    proptest! {
        #[test]
        fn any_bytes_survive_percent_encoding(bytes: Vec<u8>, escape_all: bool) {
            let mut encoded = String::new();
            for &byte in &bytes {
                if escape_all || !byte.is_ascii_alphanumeric() {
                    write!(encoded, "%{byte:02X}").unwrap();
                } else {
                    encoded.push(char::from(byte));
                }
            }
            prop_assert_eq!(&*percent_decode(&encoded).unwrap(), &bytes[..]);
        }

        #[test]
        fn a_parsed_name_keeps_every_rule(encoded in "(%2e|%2F|%5f|%0[0-9]|[./_a-d%]|__ds){0,24}") {
            if let Ok(Target::Stream(name)) = parse_path(&encoded, &LIMITS) {
                let segments: Vec<_> = name.as_str().split('/').collect();
                prop_assert!(segments.len() <= LIMITS.max_segments);
                prop_assert!(segments.iter().all(|segment| !matches!(*segment, "" | "." | "..")));
                prop_assert!(segments[0] != "__ds");
                prop_assert!(!name.as_str().contains(|c: char| c.is_ascii_control()));
            }
        }
    }
}
