//! Where text may be cut, so that each piece is text by itself. `protocol.md` §14.3 and §14.4.

/// Length of `text` without a code point at its end that is incomplete but so far valid: what SSE can send before the
/// rest has come (§14.4).
pub fn complete_text_len(text: &[u8]) -> usize {
    match lead_before(text, text.len()) {
        Some(lead) if sequence_len(&text[lead..]).is_none() => lead,
        _ => text.len(),
    }
}

/// Greatest cut of `text` that is at most `at_most`, between code points and not inside CRLF (§14.3). Never 0 if
/// `text` is not empty and `at_most` is at least 4.
pub fn text_cut(text: &[u8], at_most: usize) -> usize {
    if at_most >= text.len() {
        return text.len();
    }
    if at_most > 0 && text[at_most - 1] == b'\r' && text[at_most] == b'\n' {
        return at_most - 1;
    }
    if !is_continuation(text[at_most]) {
        return at_most;
    }
    match lead_before(text, at_most) {
        Some(lead) if lead + sequence_len(&text[lead..]).unwrap_or(usize::MAX - lead) > at_most => lead,
        _ => at_most,
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// Start of the sequence that the up to 3 bytes before `end` belong to, if they can be the beginning of a longer one.
fn lead_before(text: &[u8], end: usize) -> Option<usize> {
    let start = end.saturating_sub(3);
    let lead = start + text[start..end].iter().rposition(|&byte| !is_continuation(byte))?;
    (!text[lead].is_ascii()).then_some(lead)
}

/// Length of the code point that `text` begins with, or of the invalid bytes that count as one; `None` if it is valid
/// but incomplete.
fn sequence_len(text: &[u8]) -> Option<usize> {
    let first = &text[..text.len().min(4)];
    let valid = match std::str::from_utf8(first) {
        Ok(valid) => valid,
        Err(error) if error.valid_up_to() > 0 => {
            std::str::from_utf8(&first[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(error) => return error.error_len(),
    };
    valid.chars().next().map(char::len_utf8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_an_incomplete_code_point_at_the_end_is_held_back() {
        for (text, len) in [
            (&b""[..], 0),
            (b"abc", 3),
            ("a\u{20ac}".as_bytes(), 4),
            (b"a\xe2\x82", 1),
            (b"a\xe2", 1),
            (b"\xf0\x9f\x98", 0),
            // These can never become valid.
            (b"a\xff", 2),
            (b"a\x80\x80\x80", 4),
            (b"a\xed\xa0", 3),
            (b"a\xc0", 2),
            (b"a\xf4\x90\x80", 4),
        ] {
            assert_eq!(complete_text_len(text), len, "{text:?}");
        }
    }

    #[test]
    fn a_cut_lies_between_code_points_and_outside_crlf() {
        assert_eq!(text_cut(b"abcdef", 4), 4);
        assert_eq!(text_cut(b"abcdef", 6), 6);
        assert_eq!(text_cut(b"abcdef", 60), 6);
        assert_eq!(text_cut("abc\u{20ac}d".as_bytes(), 4), 3);
        assert_eq!(text_cut("abc\u{20ac}d".as_bytes(), 5), 3);
        assert_eq!(text_cut("abc\u{20ac}d".as_bytes(), 6), 6);
        assert_eq!(text_cut("a\u{1f600}b".as_bytes(), 4), 1);
        assert_eq!(text_cut(b"abc\r\nd", 4), 3);
        assert_eq!(text_cut(b"abc\r\nd", 5), 5);
        assert_eq!(text_cut(b"\x80\x80\x80\x80\x80\x80", 4), 4);
    }

    proptest! {
        #[test]
        fn a_cut_changes_neither_text_nor_line_ends(content in broken_text(), at_most in 0..40_usize) {
            let at = text_cut(&content, at_most);
            prop_assert!(at <= at_most && at + 4 > at_most.min(content.len()));
            prop_assert!(content.is_empty() || at_most < 4 || at > 0);
            let (head, tail) = content.split_at(at);
            prop_assert!(tail.is_empty() || !(head.ends_with(b"\r") && tail.starts_with(b"\n")));
            let halves = String::from_utf8_lossy(head).into_owned() + &String::from_utf8_lossy(tail);
            prop_assert_eq!(halves, String::from_utf8_lossy(&content));
        }

        #[test]
        fn what_is_held_back_changes_with_the_next_bytes_and_the_rest_does_not(
            content in broken_text(), next in broken_text(),
        ) {
            let (sent, held) = content.split_at(complete_text_len(&content));
            let later = [held, &next].concat();
            let in_two = String::from_utf8_lossy(sent).into_owned() + &String::from_utf8_lossy(&later);
            let whole = [&content[..], &next].concat();
            prop_assert_eq!(in_two, String::from_utf8_lossy(&whole));
            // Never more than the beginning of one code point that can still become valid.
            prop_assert!(held.len() <= 3);
            if let Err(error) = std::str::from_utf8(held) {
                prop_assert_eq!((error.valid_up_to(), error.error_len()), (0, None));
            } else {
                prop_assert!(held.is_empty());
            }
        }
    }

    /// Code points whole and cut, and bytes that are never valid.
    fn broken_text() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            prop::sample::select(vec!["a", "\r", "\n", "\r\n", "é", "€", "😀"])
                .prop_map(|text| text.as_bytes().to_vec()),
            prop::sample::select(vec![
                0x80, 0xbf, 0xc3, 0xe2, 0xed, 0xa0, 0xf0, 0x9f, 0xf4, 0x90, 0xff, 0xc0
            ])
            .prop_map(|byte| vec![byte]),
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }
}
