//! A body as sent, checked and split into messages.

use bytes::Bytes;

use super::JsonError;
use super::value::{self, skip_whitespace};

/// The messages of one body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JsonBody {
    /// The messages in their stored form: each the exact bytes of its element, followed by one comma.
    pub stored: Bytes,
    /// How many there are; 0 for `[]`.
    pub messages: u64,
    /// Where some messages begin in `stored`, in order, about [`MARK_STEP`] bytes apart: whoever looks for a message
    /// later need not walk all of them. Empty for small bodies.
    pub marks: Vec<u32>,
}

/// Least distance of two [`JsonBody::marks`], in bytes.
pub const MARK_STEP: usize = 16 * 1024;

/// Checks that `body` is exactly one JSON value in UTF-8 and splits it into messages: the elements, if it is an array,
/// else the value itself.
///
/// `depth_max` bounds the arrays and objects around any value, the outermost one included.
pub fn parse_body(body: &[u8], depth_max: usize) -> Result<JsonBody, JsonError> {
    // Once over the whole body, which is at its fastest where everything is ASCII, so that no string has to care.
    if let Err(error) = std::str::from_utf8(body) {
        return Err(JsonError::InvalidUtf8 { at: error.valid_up_to() });
    }
    let start = skip_whitespace(body, 0);
    if body.get(start) == Some(&b'[') {
        return split_array(body, start, depth_max);
    }
    let end = value::end(body, start, 0, depth_max)?;
    expect_end(body, end)?;
    Ok(Messages { body, run: start..end, written: Vec::new(), count: 1, marks: Vec::new() }.finish())
}

fn split_array(body: &[u8], open: usize, depth_max: usize) -> Result<JsonBody, JsonError> {
    if depth_max == 0 {
        return Err(JsonError::TooDeep { at: open, limit: depth_max });
    }
    let mut at = skip_whitespace(body, open + 1);
    if body.get(at) == Some(&b']') {
        expect_end(body, at + 1)?;
        return Ok(JsonBody::default());
    }
    let mut messages = Messages { body, run: at..at, written: Vec::new(), count: 0, marks: Vec::new() };
    loop {
        let end = value::end(body, at, 1, depth_max)?;
        messages.push(at, end);
        at = skip_whitespace(body, end);
        match body.get(at) {
            Some(b',') => at = skip_whitespace(body, at + 1),
            Some(b']') => break,
            Some(_) => return Err(JsonError::UnexpectedByte { at }),
            None => return Err(JsonError::UnexpectedEnd),
        }
    }
    expect_end(body, at + 1)?;
    Ok(messages.finish())
}

/// Nothing but whitespace may follow the value.
fn expect_end(body: &[u8], at: usize) -> Result<(), JsonError> {
    let at = skip_whitespace(body, at);
    if at == body.len() { Ok(()) } else { Err(JsonError::TrailingBytes { at }) }
}

/// The messages found so far. Where a body has no whitespace between its elements it already looks like the stored
/// form; such a run is copied in one piece.
struct Messages<'a> {
    body: &'a [u8],
    /// Messages that are not written yet: in the body they are parted by single commas.
    run: std::ops::Range<usize>,
    written: Vec<u8>,
    count: u64,
    marks: Vec<u32>,
}

impl Messages<'_> {
    /// Takes the message `start..end` of the body.
    fn push(&mut self, start: usize, end: usize) {
        self.count += 1;
        if start != self.run.end + 1 && self.count > 1 {
            if self.written.is_empty() {
                // Brackets and at least one blank make room for the last comma.
                self.written.reserve_exact(self.body.len());
            }
            self.write_run();
            self.run.start = start;
        }
        self.run.end = end;
        let at = self.written.len() + (start - self.run.start);
        if at >= self.marks.last().map_or(0, |&mark| mark as usize) + MARK_STEP {
            self.marks.push(u32::try_from(at).expect("a request body is far below 4 GiB"));
        }
    }

    fn write_run(&mut self) {
        self.written.extend_from_slice(&self.body[self.run.clone()]);
        self.written.push(b',');
    }

    fn finish(mut self) -> JsonBody {
        if self.written.is_empty() {
            self.written.reserve_exact(self.run.len() + 1);
        }
        self.write_run();
        // Boxed, so that what a body wasted on whitespace is not kept for as long as its messages.
        JsonBody {
            stored: Bytes::from(self.written.into_boxed_slice()),
            messages: self.count,
            marks: self.marks,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;
    use serde_json::Value;

    use super::super::first_message_len;
    use super::*;

    const DEPTH: usize = 128;

    fn split(body: &str) -> (String, u64) {
        let split = parse_body(body.as_bytes(), DEPTH).unwrap();
        (String::from_utf8(split.stored.to_vec()).unwrap(), split.messages)
    }

    #[test]
    fn exactly_one_level_is_opened() {
        for (body, stored, messages) in [
            ("[[1,2],[3]]", "[1,2],[3],", 2),
            ("[[[1]]]", "[[1]],", 1),
            ("[[]]", "[],", 1),
            ("{\"a\":[1,2]}", "{\"a\":[1,2]},", 1),
            ("null", "null,", 1),
            (" \"x\" ", "\"x\",", 1),
            ("[]", "", 0),
            ("\r\n[ \t]\n", "", 0),
        ] {
            assert_eq!(split(body), (stored.to_owned(), messages), "{body}");
        }
    }

    #[test]
    fn elements_keep_their_exact_bytes() {
        for element in [
            "12345678901234567890",
            "1.10",
            "1e400",
            "-0",
            "{\"a\":1,\"a\" : 2}",
            "\"\\u0041\\ud800\"",
            "[ 1,\n2 ]",
            "\"é\\/\u{2028}\"",
        ] {
            for body in [element.to_owned(), format!("[ {element}\n]")] {
                if body.starts_with('[') && body == element {
                    continue;
                }
                assert_eq!(split(&body), (format!("{element},"), 1), "{body}");
            }
            let (stored, messages) = split(&format!("[0,{element}, {element} ,{element},1]"));
            assert_eq!((stored, messages), (format!("0,{element},{element},{element},1,"), 5));
        }
    }

    #[test]
    fn invalid_bodies_are_refused() {
        for (body, error) in [
            (&b""[..], JsonError::UnexpectedEnd),
            (b" \n", JsonError::UnexpectedEnd),
            (b"[", JsonError::UnexpectedEnd),
            (b"[1", JsonError::UnexpectedEnd),
            (b"[1,", JsonError::UnexpectedEnd),
            (b"[1,]", JsonError::UnexpectedByte { at: 3 }),
            (b"[,]", JsonError::UnexpectedByte { at: 1 }),
            (b"[1}", JsonError::UnexpectedByte { at: 2 }),
            (b"[1]]", JsonError::TrailingBytes { at: 3 }),
            (b"[] 1", JsonError::TrailingBytes { at: 3 }),
            (b"1 2", JsonError::TrailingBytes { at: 2 }),
            (b"01", JsonError::TrailingBytes { at: 1 }),
            (b"{}\n{}", JsonError::TrailingBytes { at: 3 }),
            (b"1\x0b", JsonError::TrailingBytes { at: 1 }),
            (b"\xef\xbb\xbf1", JsonError::UnexpectedByte { at: 0 }),
            (b"\"a\xff\"", JsonError::InvalidUtf8 { at: 2 }),
            (b"\"\xed\xa0\x80\"", JsonError::InvalidUtf8 { at: 1 }),
            (b"\"\xc3", JsonError::InvalidUtf8 { at: 1 }),
        ] {
            assert_eq!(parse_body(body, DEPTH), Err(error), "{body:?}");
        }
    }

    #[test]
    fn the_outer_array_counts_as_a_level() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse_body(nested(DEPTH).as_bytes(), DEPTH).is_ok());
        let error = JsonError::TooDeep { at: DEPTH, limit: DEPTH };
        assert_eq!(parse_body(nested(DEPTH + 1).as_bytes(), DEPTH), Err(error));
        assert!(parse_body(b"1", 0).is_ok());
        assert_eq!(parse_body(b"[]", 0), Err(JsonError::TooDeep { at: 0, limit: 0 }));
    }

    #[test]
    fn a_million_brackets_are_refused_without_recursion() {
        let body = vec![b'['; 1_000_000];
        assert_eq!(parse_body(&body, DEPTH), Err(JsonError::TooDeep { at: DEPTH, limit: DEPTH }));
        assert_eq!(parse_body(&body, usize::MAX), Err(JsonError::UnexpectedEnd));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,20}|[\"\\\\\n\t\u{0}a]{0,10}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map("\\PC{0,6}", inner, 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn printed(value: &Value, pretty: bool) -> String {
        if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }.unwrap()
    }

    proptest! {
        #[test]
        fn messages_are_the_elements_that_serde_json_prints(
            elements in prop::collection::vec(value(), 0..8), pretty: bool, blank in "[ \n\r\t]{0,2}",
        ) {
            let elements: Vec<_> = elements.iter().map(|element| printed(element, pretty)).collect();
            let body = format!("{blank}[{blank}{}]{blank}", elements.join(&format!(",{blank}")));
            let split = parse_body(body.as_bytes(), DEPTH).unwrap();
            prop_assert_eq!(split.messages, elements.len() as u64);
            let mut rest = &split.stored[..];
            for element in &elements {
                let len = first_message_len(rest).unwrap();
                let expected = format!("{element},");
                prop_assert_eq!(&rest[..len], expected.as_bytes());
                rest = &rest[len..];
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn a_body_is_accepted_iff_serde_json_accepts_it(
            body in "[\\[\\]{},:\" 019eE+.\\-]{0,12}|(\\[|\\]|\\{|\\}|,|:|\"a\"|true|null|-?[0-9]|\\\\u00e|\\\\|[ \n\u{1}é]){0,12}",
        ) {
            let accepted = serde_json::from_str::<IgnoredAny>(&body).is_ok();
            prop_assert_eq!(parse_body(body.as_bytes(), DEPTH).is_ok(), accepted);
        }

        #[test]
        fn a_damaged_body_is_accepted_iff_serde_json_accepts_it(
            value in value(), at: prop::sample::Index, byte: u8, remove: bool,
        ) {
            let mut body = printed(&value, false).into_bytes();
            let at = at.index(body.len());
            if remove {
                body.remove(at);
            } else {
                body[at] = byte;
            }
            let accepted = std::str::from_utf8(&body)
                .is_ok_and(|body| serde_json::from_str::<IgnoredAny>(body).is_ok());
            prop_assert_eq!(parse_body(&body, DEPTH).is_ok(), accepted, "{}", String::from_utf8_lossy(&body));
        }
    }
}
