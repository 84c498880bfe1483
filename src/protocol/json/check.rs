//! Checks stored content that nobody vouches for, in pieces of any size and without keeping any of it: is it a sequence of
//! valid messages, each followed by one comma?

use super::text::skip_plain_text;
use super::value::OpenLevels;

/// Nesting that is looked into; what clients may send is limited to far less.
const DEPTH_MAX: usize = 1 << 20;

/// Content is not a sequence of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidContent {
    /// A byte that cannot stand there.
    #[error("byte {at} is not what a sequence of JSON messages has there")]
    UnexpectedByte {
        /// Its position, from where the check began.
        at: u64,
    },
    /// Nested deeper than anybody could have sent it.
    #[error("the JSON message at byte {at} is nested too deeply")]
    TooDeep {
        /// Position of the bracket that is one too many.
        at: u64,
    },
    /// The end is inside of a message, or its comma is missing.
    #[error("the last JSON message is not complete")]
    Unfinished,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The first byte of a message.
    Message,
    /// A value, after whitespace.
    Value,
    /// A value or the end of an array that is empty so far.
    FirstElement,
    /// The name of a member or the end of an object that is empty so far.
    FirstName,
    /// The name of a member.
    Name,
    Colon,
    /// A comma or the end of the array or object; behind a message, its comma.
    AfterValue,
    /// More of a string.
    Text,
    /// What a backslash escapes.
    Escaped,
    /// So many hexadecimal digits.
    Hex(u8),
    /// So many more bytes of a character, the next of which is in a range.
    Utf8(u8, u8, u8),
    /// More of `true`, `false` or `null`: from this byte of it on.
    Literal(&'static [u8]),
    Number(Part),
}

/// Where in a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Sign,
    /// A first zero.
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    PowerSign,
    Power,
}

/// See the module.
#[derive(Debug)]
pub struct ContentCheck {
    next: Next,
    /// The string at hand is the name of a member.
    in_name: bool,
    open: OpenLevels,
    /// Bytes so far.
    at: u64,
    messages: u64,
}

impl Default for ContentCheck {
    fn default() -> Self {
        Self { next: Next::Message, in_name: false, open: OpenLevels::default(), at: 0, messages: 0 }
    }
}

impl ContentCheck {
    /// Takes the next bytes. `boundary` is told where in them messages end.
    ///
    /// # Errors
    /// The first byte that is wrong. The check is of no use afterwards.
    pub fn push(&mut self, bytes: &[u8], boundary: &mut dyn FnMut(usize)) -> Result<(), InvalidContent> {
        let start = self.at;
        let mut index = 0;
        while let Some(&byte) = bytes.get(index) {
            if self.next == Next::Text {
                let plain = skip_plain_text(bytes, index);
                if plain > index {
                    index = plain;
                    continue;
                }
            }
            self.at = start + index as u64;
            if self.take(byte)? {
                index += 1;
                if self.next == Next::Message {
                    boundary(index);
                }
            }
        }
        self.at = start + bytes.len() as u64;
        Ok(())
    }

    /// Says that the content ends here. Returns the number of messages.
    ///
    /// # Errors
    /// [`InvalidContent::Unfinished`] if it ends inside of one.
    pub fn finish(&self) -> Result<u64, InvalidContent> {
        if self.next == Next::Message { Ok(self.messages) } else { Err(InvalidContent::Unfinished) }
    }

    /// Whether a message ends at the last byte taken.
    pub fn is_at_boundary(&self) -> bool {
        self.next == Next::Message
    }

    /// Takes one byte. `false` = it ends what was before it, and has to be looked at again.
    fn take(&mut self, byte: u8) -> Result<bool, InvalidContent> {
        let is_blank = matches!(byte, b' ' | b'\n' | b'\t' | b'\r');
        match self.next {
            Next::Message => self.begin_value(byte)?,
            Next::Value | Next::FirstElement | Next::FirstName | Next::Name | Next::Colon if is_blank => {}
            Next::Value => self.begin_value(byte)?,
            Next::FirstElement if byte == b']' => self.close(),
            Next::FirstElement => self.begin_value(byte)?,
            Next::FirstName if byte == b'}' => self.close(),
            Next::FirstName | Next::Name if byte == b'"' => (self.next, self.in_name) = (Next::Text, true),
            Next::Colon if byte == b':' => self.next = Next::Value,
            Next::AfterValue => self.after_value(byte, is_blank)?,
            Next::Text => self.text(byte)?,
            Next::Escaped if byte == b'u' => self.next = Next::Hex(4),
            Next::Escaped if b"\"\\/bfnrt".contains(&byte) => self.next = Next::Text,
            Next::Hex(left) if byte.is_ascii_hexdigit() => {
                self.next = if left > 1 { Next::Hex(left - 1) } else { Next::Text };
            }
            Next::Utf8(left, low, high) if (low..=high).contains(&byte) => {
                self.next = if left > 1 { Next::Utf8(left - 1, 0x80, 0xbf) } else { Next::Text };
            }
            Next::Literal(rest) if byte == rest[0] => {
                self.next = if rest.len() > 1 { Next::Literal(&rest[1..]) } else { Next::AfterValue };
            }
            Next::Number(part) => return self.number(part, byte),
            _ => return Err(self.unexpected()),
        }
        Ok(true)
    }

    fn unexpected(&self) -> InvalidContent {
        InvalidContent::UnexpectedByte { at: self.at }
    }

    fn begin_value(&mut self, byte: u8) -> Result<(), InvalidContent> {
        self.next = match byte {
            b'{' | b'[' => {
                if self.open.depth() >= DEPTH_MAX {
                    return Err(InvalidContent::TooDeep { at: self.at });
                }
                self.open.open(byte == b'{');
                if byte == b'{' { Next::FirstName } else { Next::FirstElement }
            }
            b'"' => {
                self.in_name = false;
                Next::Text
            }
            b't' => Next::Literal(b"rue"),
            b'f' => Next::Literal(b"alse"),
            b'n' => Next::Literal(b"ull"),
            b'-' => Next::Number(Part::Sign),
            b'0' => Next::Number(Part::Zero),
            b'1'..=b'9' => Next::Number(Part::Whole),
            _ => return Err(self.unexpected()),
        };
        Ok(())
    }

    fn close(&mut self) {
        self.open.close();
        self.next = Next::AfterValue;
    }

    fn after_value(&mut self, byte: u8, is_blank: bool) -> Result<(), InvalidContent> {
        if self.open.depth() == 0 {
            // Stored messages have no blanks around them.
            if byte != b',' {
                return Err(self.unexpected());
            }
            self.messages += 1;
            self.next = Next::Message;
            return Ok(());
        }
        let is_object = self.open.innermost_is_object();
        match byte {
            _ if is_blank => {}
            b',' => self.next = if is_object { Next::Name } else { Next::Value },
            b'}' if is_object => self.close(),
            b']' if !is_object => self.close(),
            _ => return Err(self.unexpected()),
        }
        Ok(())
    }

    fn text(&mut self, byte: u8) -> Result<(), InvalidContent> {
        self.next = match byte {
            b'"' => {
                if self.in_name {
                    Next::Colon
                } else {
                    Next::AfterValue
                }
            }
            b'\\' => Next::Escaped,
            0x20..=0x7f => Next::Text,
            // Well-formed UTF-8: neither overlong, nor surrogates, nor beyond U+10FFFF.
            0xc2..=0xdf => Next::Utf8(1, 0x80, 0xbf),
            0xe0 => Next::Utf8(2, 0xa0, 0xbf),
            0xed => Next::Utf8(2, 0x80, 0x9f),
            0xe1..=0xef => Next::Utf8(2, 0x80, 0xbf),
            0xf0 => Next::Utf8(3, 0x90, 0xbf),
            0xf1..=0xf3 => Next::Utf8(3, 0x80, 0xbf),
            0xf4 => Next::Utf8(3, 0x80, 0x8f),
            _ => return Err(self.unexpected()),
        };
        Ok(())
    }

    fn number(&mut self, part: Part, byte: u8) -> Result<bool, InvalidContent> {
        let next = match (part, byte) {
            (Part::Sign, b'0') => Part::Zero,
            (Part::Sign | Part::Whole, b'0'..=b'9') => Part::Whole,
            (Part::Zero | Part::Whole, b'.') => Part::Point,
            (Part::Point | Part::Fraction, b'0'..=b'9') => Part::Fraction,
            (Part::Zero | Part::Whole | Part::Fraction, b'e' | b'E') => Part::Exponent,
            (Part::Exponent, b'+' | b'-') => Part::PowerSign,
            (Part::Exponent | Part::PowerSign | Part::Power, b'0'..=b'9') => Part::Power,
            (Part::Zero | Part::Whole | Part::Fraction | Part::Power, _) => {
                self.next = Next::AfterValue;
                return Ok(false);
            }
            _ => return Err(self.unexpected()),
        };
        self.next = Next::Number(next);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{first_message_len, parse_body};
    use super::*;

    /// The boundaries, or the error, if the content comes in pieces of `step` bytes.
    fn check(content: &[u8], step: usize) -> Result<Vec<usize>, InvalidContent> {
        let (mut check, mut boundaries) = (ContentCheck::default(), Vec::new());
        for (piece, bytes) in content.chunks(step).enumerate() {
            check.push(bytes, &mut |at| boundaries.push(piece * step + at))?;
        }
        assert_eq!(check.finish()? as usize, boundaries.len());
        Ok(boundaries)
    }

    fn is_a_message(text: &[u8]) -> bool {
        let trimmed = text.trim_ascii();
        // In an array, so that an array is one message too.
        let body = [b"[", text, b"]"].concat();
        trimmed.len() == text.len()
            && !text.is_empty()
            && parse_body(&body, 300).is_ok_and(|body| body.messages == 1)
    }

    proptest! {
        #[test]
        fn it_takes_one_value_exactly_when_the_parser_of_bodies_does(
            text in "[\\[\\]{},:\" 019eE+.\\-]{0,12}|(\\[|\\]|\\{|\\}|,|:|\"a\"|true|null|-?[0-9]|\\\\u00e|\\\\|[ \n\u{1}é]){0,12}",
            step in 1..5_usize,
        ) {
            let content = format!("{text},");
            let is_one = check(content.as_bytes(), step) == Ok(vec![content.len()]);
            prop_assert_eq!(is_one, is_a_message(text.as_bytes()), "{}", text);
        }

        #[test]
        fn damaged_text_is_refused_exactly_when_the_parser_of_bodies_does(
            at in any::<prop::sample::Index>(), byte: u8, step in 1..9_usize,
        ) {
            let mut text = "{\"ключ\\n\":[1.5e-3,null,\"a𝄞\\u00e9\u{7f}\"],\"b\":{}}".as_bytes().to_vec();
            let at = at.index(text.len());
            text[at] = byte;
            let content = [&text[..], b","].concat();
            let is_one = check(&content, step) == Ok(vec![content.len()]);
            prop_assert_eq!(is_one, is_a_message(&text), "{}", String::from_utf8_lossy(&text));
        }

        #[test]
        fn boundaries_are_where_messages_end(
            messages in prop::collection::vec("[0-9]{1,3}|\"[a-z,\\]é]{0,30}\"|\\[1, \\{\"a,\": \\[\\]\\}\\]", 1..10),
            step in 1..40_usize,
        ) {
            let body = format!("[{}]", messages.join(", "));
            let Ok(split) = parse_body(body.as_bytes(), 8) else { return Ok(()) };
            let boundaries = check(&split.stored, step).unwrap();
            let mut expected = Vec::new();
            let mut at = 0;
            while let Some(len) = first_message_len(&split.stored[at..]) {
                at += len;
                expected.push(at);
            }
            prop_assert_eq!(boundaries, expected);
        }
    }

    #[test]
    fn content_that_ends_too_early_or_lacks_a_comma_is_refused() {
        for (content, error) in [
            ("1", InvalidContent::Unfinished),
            ("[1,", InvalidContent::Unfinished),
            ("1,2", InvalidContent::Unfinished),
            ("1,,", InvalidContent::UnexpectedByte { at: 2 }),
            ("1 ,", InvalidContent::UnexpectedByte { at: 1 }),
            ("1, 2,", InvalidContent::UnexpectedByte { at: 2 }),
            ("{\"a\"}", InvalidContent::UnexpectedByte { at: 4 }),
        ] {
            assert_eq!(check(content.as_bytes(), 2), Err(error), "{content}");
        }
        assert_eq!(check(b"", 1), Ok(vec![]));
        let deep = vec![b'['; DEPTH_MAX + 1];
        assert_eq!(check(&deep, 4096), Err(InvalidContent::TooDeep { at: DEPTH_MAX as u64 }));
    }
}
