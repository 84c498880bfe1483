//! Entity tags of pages, and the `If-None-Match` header that asks about them. `protocol.md` §15.1.

/// What a page's end was when it was made. Part of the tag, so that closing a stream, or data after a page that was
/// up to date, changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EtagMark {
    /// More data follows: no mark.
    Partial,
    /// At the tail of an open stream: `:t`.
    Tail,
    /// At the tail of a closed stream: `:c`.
    Closed,
}

impl EtagMark {
    fn suffix(self) -> &'static str {
        match self {
            Self::Partial => "",
            Self::Tail => ":t",
            Self::Closed => ":c",
        }
    }
}

/// The strong, quoted tag of the page `start..end` (positions in stored bytes) of one incarnation of a stream.
pub fn format(incarnation: u128, start: u64, end: u64, mark: EtagMark) -> String {
    let mark = mark.suffix();
    format!("\"{incarnation:x}:{start}:{end}{mark}\"")
}

/// Whether `header`, one whole `If-None-Match` value, names `etag` by weak comparison (RFC 9110, 8.8.3.2 and 13.1.2).
/// A malformed value hits nothing: it is ignored.
pub fn none_match_hits(header: &[u8], etag: &str) -> bool {
    if header.trim_ascii() == b"*" {
        return true;
    }
    let wanted = opaque(etag.as_bytes());
    let mut hit = false;
    let mut rest = header;
    loop {
        rest = trim_list_start(rest);
        if rest.is_empty() {
            return hit;
        }
        let Some((tag, after)) = split_tag(rest) else { return false };
        hit |= tag == wanted;
        rest = after.trim_ascii_start();
        if !rest.is_empty() && rest[0] != b',' {
            return false;
        }
    }
}

/// Without the mark of weakness.
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Lists may have empty elements (RFC 9110, 5.6.1.2).
fn trim_list_start(mut rest: &[u8]) -> &[u8] {
    while let [b' ' | b'\t' | b',', after @ ..] = rest {
        rest = after;
    }
    rest
}

/// The opaque tag, with its quotes, that `list` begins with, and what follows it.
fn split_tag(list: &[u8]) -> Option<(&[u8], &[u8])> {
    let quoted = opaque(list);
    let content = quoted.strip_prefix(b"\"")?;
    let len = content.iter().position(|&byte| byte == b'"')?;
    let is_tag_byte = |&byte: &u8| byte > b' ' && byte != 0x7f;
    content[..len].iter().all(is_tag_byte).then(|| quoted.split_at(len + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_quoted_and_carry_the_mark() {
        assert_eq!(format(0xAB, 0, 42, EtagMark::Partial), "\"ab:0:42\"");
        assert_eq!(format(0, 42, 42, EtagMark::Tail), "\"0:42:42:t\"");
        assert_eq!(format(u128::MAX, 1, 2, EtagMark::Closed), format!("\"{}:1:2:c\"", "f".repeat(32)));
    }

    #[test]
    fn lists_stars_and_weak_tags_hit() {
        let etag = format(10, 0, 5, EtagMark::Tail);
        for header in [
            "*",
            " * ",
            "\"a:0:5:t\"",
            "W/\"a:0:5:t\"",
            "\"x\", \"a:0:5:t\"",
            "\"x\",W/\"a:0:5:t\" ,\"y,z\"",
            ",, \"a:0:5:t\",",
            "\"\", \"ü\", \"a:0:5:t\"",
        ] {
            assert!(none_match_hits(header.as_bytes(), &etag), "{header}");
        }
    }

    #[test]
    fn other_tags_and_malformed_lists_do_not_hit() {
        let etag = format(10, 0, 5, EtagMark::Tail);
        for header in [
            "",
            " ",
            ",",
            "\"a:0:5\"",
            "\"a:0:5:c\"",
            "\"x,\"",
            // Malformed lists are ignored as a whole, even if they name the tag.
            "a:0:5:t",
            "\"a:0:5:t",
            "\"a:0:5:t\" \"x\"",
            "\"a:0:5:t\", x",
            "\"a:0:5:t\", \"x y\"",
            "\"a:0:5:t\", *",
            "*, \"x\"",
            "w/\"a:0:5:t\"",
            "W/ \"a:0:5:t\"",
            "\"a:0:5:t\", \"\u{7f}\"",
        ] {
            assert!(!none_match_hits(header.as_bytes(), &etag), "{header}");
        }
    }
}
