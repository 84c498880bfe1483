//! Content types: kept as sent, compared by media type alone, and sorted into the three kinds of stream.
//! `protocol.md` §6.

use std::fmt;
use std::sync::{Arc, LazyLock};

/// Longest content type that is accepted, in bytes.
pub const BYTES_MAX: usize = 256;

static OCTET_STREAM: LazyLock<ContentType> = LazyLock::new(|| {
    ContentType::parse(b"application/octet-stream").expect("the default content type is well-formed")
});

/// A well-formed content type, exactly as the client spelled it. Cheap to clone.
///
/// `==` compares spellings; [`ContentType::same_media_type`] is the protocol's comparison.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ContentType(Arc<Spelled>);

/// In one allocation, so that a stream has one pointer to it.
#[derive(PartialEq, Eq, Hash)]
struct Spelled {
    text: Box<str>,
    /// Length of `type/subtype`, before any parameter.
    media_type_len: usize,
    kind: MediaKind,
}

/// How the content of a stream is framed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// `application/json` and nothing else: a sequence of messages.
    Json,
    /// `text/*`: bytes that SSE can carry as they are.
    Text,
    /// Everything else: opaque bytes.
    Binary,
}

/// The value is not a content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidContentType {
    /// Not `token/token` with optional parameters.
    #[error("the content type is not of the form type/subtype with optional parameters")]
    Malformed,
    /// More than [`BYTES_MAX`] bytes.
    #[error("the content type is longer than {BYTES_MAX} bytes")]
    TooLong,
}

impl ContentType {
    /// Reads one whole header value, without surrounding blanks. An empty value is malformed here; that it counts as
    /// absent is the caller's rule.
    pub fn parse(value: &[u8]) -> Result<Self, InvalidContentType> {
        if value.len() > BYTES_MAX {
            return Err(InvalidContentType::TooLong);
        }
        let media_type_len = media_type_len(value).ok_or(InvalidContentType::Malformed)?;
        if !parameters_are_valid(&value[media_type_len..]) {
            return Err(InvalidContentType::Malformed);
        }
        let text = std::str::from_utf8(value).map_err(|_| InvalidContentType::Malformed)?;
        let media_type = &text[..media_type_len];
        let kind = if media_type.eq_ignore_ascii_case("application/json") {
            MediaKind::Json
        } else if media_type.len() >= 5 && media_type[..5].eq_ignore_ascii_case("text/") {
            MediaKind::Text
        } else {
            MediaKind::Binary
        };
        Ok(Self(Arc::new(Spelled { text: text.into(), media_type_len, kind })))
    }

    /// `application/octet-stream`, the type of a stream that was created without one.
    pub fn octet_stream() -> Self {
        OCTET_STREAM.clone()
    }

    /// As sent.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The kind of stream it makes.
    pub fn kind(&self) -> MediaKind {
        self.0.kind
    }

    /// JSON mode: `application/json`, whatever its parameters and letter case.
    pub fn is_json(&self) -> bool {
        self.0.kind == MediaKind::Json
    }

    /// The protocol's comparison (§6): type and subtype ignoring case, parameters never.
    pub fn same_media_type(&self, other: &Self) -> bool {
        self.media_type().eq_ignore_ascii_case(other.media_type())
    }

    fn media_type(&self) -> &str {
        &self.0.text[..self.0.media_type_len]
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ContentType").field(&self.as_str()).finish()
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// RFC 9110, 5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn token_len(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|&&byte| is_token_byte(byte)).count()
}

fn blanks_len(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|&&byte| byte == b' ' || byte == b'\t').count()
}

/// Length of `token "/" token`.
fn media_type_len(value: &[u8]) -> Option<usize> {
    let type_len = token_len(value);
    if type_len == 0 || value.get(type_len) != Some(&b'/') {
        return None;
    }
    let subtype_len = token_len(&value[type_len + 1..]);
    (subtype_len > 0).then_some(type_len + 1 + subtype_len)
}

/// `*( OWS ";" OWS [ token "=" ( token / quoted-string ) ] )`, RFC 9110, 5.6.6: an empty parameter is allowed.
fn parameters_are_valid(mut rest: &[u8]) -> bool {
    while !rest.is_empty() {
        rest = &rest[blanks_len(rest)..];
        let Some(after) = rest.strip_prefix(b";") else { return false };
        rest = &after[blanks_len(after)..];
        let name_len = token_len(rest);
        if name_len == 0 {
            continue;
        }
        let Some(value) = rest[name_len..].strip_prefix(b"=") else { return false };
        let value_len = if value.first() == Some(&b'"') { quoted_len(value) } else { token_len(value) };
        if value_len == 0 {
            return false;
        }
        rest = &value[value_len..];
    }
    true
}

/// Length of the quoted string that `value` begins with, quotes included; 0 if it is malformed. Only ASCII: a value
/// that is given back in a header has to survive every HTTP stack.
fn quoted_len(value: &[u8]) -> usize {
    let is_text = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
    let mut at = 1;
    while let Some(&byte) = value.get(at) {
        at += 1;
        match byte {
            b'"' => return at,
            b'\\' => match value.get(at) {
                Some(&escaped) if is_text(escaped) => at += 1,
                _ => return 0,
            },
            byte if is_text(byte) => {}
            _ => return 0,
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> ContentType {
        ContentType::parse(value.as_bytes()).unwrap()
    }

    #[test]
    fn the_spelling_is_kept() {
        for value in [
            "text/plain",
            "Text/Plain; Charset=UTF-8",
            "application/vnd.api+json;v=1 ;\tq=\"a\\\"b; c\"",
            "text/plain;",
            "text/plain; ; a=b",
        ] {
            assert_eq!(parse(value).as_str(), value);
            assert_eq!(parse(value).to_string(), value);
        }
    }

    #[test]
    fn malformed_values_are_refused() {
        for value in [
            "",
            "text",
            "text/",
            "/plain",
            "text/plain/x",
            "text /plain",
            " text/plain",
            "text/plain ",
            "text/plain; charset",
            "text/plain; charset=",
            "text/plain; charset = utf-8",
            "text/plain; a=\"b",
            "text/plain; a=\"b\\",
            "text/plain; a=\"\u{7f}\"",
            "text/plain; a=\"ü\"",
            "text/plain; a=\"b\"c",
            "text/plain, text/html",
            "text/plain\n",
        ] {
            assert_eq!(ContentType::parse(value.as_bytes()), Err(InvalidContentType::Malformed), "{value:?}");
        }
    }

    #[test]
    fn the_length_limit_is_exact() {
        let longest = format!("text/{}", "x".repeat(BYTES_MAX - 5));
        assert_eq!(parse(&longest).as_str(), longest);
        let longer = format!("{longest}x");
        assert_eq!(ContentType::parse(longer.as_bytes()), Err(InvalidContentType::TooLong));
    }

    #[test]
    fn only_application_json_is_json() {
        for (value, kind) in [
            ("application/json", MediaKind::Json),
            ("Application/JSON; charset=utf-8", MediaKind::Json),
            ("application/ndjson", MediaKind::Binary),
            ("application/vnd.api+json", MediaKind::Binary),
            ("application/jsonl", MediaKind::Binary),
            ("text/json", MediaKind::Text),
            ("TEXT/html;a=b", MediaKind::Text),
            ("textual/plain", MediaKind::Binary),
            ("a/b", MediaKind::Binary),
        ] {
            assert_eq!(parse(value).kind(), kind, "{value}");
            assert_eq!(parse(value).is_json(), kind == MediaKind::Json, "{value}");
        }
    }

    #[test]
    fn media_types_compare_without_case_and_parameters() {
        let plain = parse("text/plain");
        assert!(plain.same_media_type(&parse("TEXT/Plain; charset=utf-8")));
        assert!(!plain.same_media_type(&parse("text/plain2")));
        assert_ne!(plain, parse("text/plain; charset=utf-8"));
        assert!(ContentType::octet_stream().same_media_type(&parse("application/octet-stream")));
    }
}
