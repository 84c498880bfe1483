//! The grammar of one JSON value (RFC 8259), checked byte by byte without recursion.

use super::{JsonError, text};

/// Levels of nesting that one word remembers.
const LEVELS_PER_WORD: usize = 64;

/// The arrays and objects that are open, one bit each (1 = object). The innermost 64 sit in a register; only deeper
/// nesting touches the heap.
#[derive(Debug, Default)]
pub(super) struct OpenLevels {
    innermost: u64,
    outer: Vec<u64>,
    depth: usize,
}

impl OpenLevels {
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn open(&mut self, is_object: bool) {
        if self.depth > 0 && self.depth.is_multiple_of(LEVELS_PER_WORD) {
            self.outer.push(self.innermost);
        }
        self.innermost = self.innermost << 1 | u64::from(is_object);
        self.depth += 1;
    }

    pub(super) fn close(&mut self) {
        self.depth -= 1;
        self.innermost >>= 1;
        if self.depth > 0 && self.depth.is_multiple_of(LEVELS_PER_WORD) {
            self.innermost = self.outer.pop().expect("a word was put away for each full one");
        }
    }

    pub(super) fn innermost_is_object(&self) -> bool {
        self.innermost & 1 == 1
    }
}

/// Position of the first byte from `at` on that is not whitespace. Most of the time that is `at` itself.
#[inline]
pub(super) fn skip_whitespace(body: &[u8], at: usize) -> usize {
    match body.get(at) {
        Some(b'!'..) | None => at,
        Some(_) => skip_some_whitespace(body, at),
    }
}

fn skip_some_whitespace(body: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\t' | b'\r') = body.get(at) {
        at += 1;
    }
    at
}

/// Checks the value that begins at `start` and returns the position behind it. UTF-8 is not looked at.
///
/// `levels_open` is the number of arrays and objects around the value, which count towards `depth_max`.
#[inline]
pub(super) fn end(
    body: &[u8],
    start: usize,
    levels_open: usize,
    depth_max: usize,
) -> Result<usize, JsonError> {
    match body.get(start) {
        Some(b'{' | b'[') => nested_end(body, start, levels_open, depth_max),
        _ => scalar_end(body, start),
    }
}

/// [`end`] of an array or object.
fn nested_end(body: &[u8], start: usize, levels_open: usize, depth_max: usize) -> Result<usize, JsonError> {
    let mut open = OpenLevels::default();
    let mut at = start;
    loop {
        // Here a value begins.
        match body.get(at) {
            Some(&bracket @ (b'{' | b'[')) => {
                if levels_open + open.depth >= depth_max {
                    return Err(JsonError::TooDeep { at, limit: depth_max });
                }
                at = skip_whitespace(body, at + 1);
                // `}` and `]` come two after `{` and `[`.
                if body.get(at) == Some(&(bracket + 2)) {
                    at += 1;
                } else {
                    open.open(bracket == b'{');
                    if bracket == b'{' {
                        at = member_name_end(body, at)?;
                    }
                    continue;
                }
            }
            _ => at = scalar_end(body, at)?,
        }
        // Here a value has ended.
        loop {
            if open.depth == 0 {
                return Ok(at);
            }
            at = skip_whitespace(body, at);
            let is_object = open.innermost_is_object();
            match body.get(at) {
                Some(b',') => {
                    at = skip_whitespace(body, at + 1);
                    if is_object {
                        at = member_name_end(body, at)?;
                    }
                    break;
                }
                Some(b'}') if is_object => open.close(),
                Some(b']') if !is_object => open.close(),
                Some(_) => return Err(JsonError::UnexpectedByte { at }),
                None => return Err(JsonError::UnexpectedEnd),
            }
            at += 1;
        }
    }
}

/// Checks a string, number or literal.
#[inline]
fn scalar_end(body: &[u8], at: usize) -> Result<usize, JsonError> {
    match body.get(at) {
        Some(b'"') => text::checked_end(body, at + 1),
        Some(b'-' | b'0'..=b'9') => number_end(body, at),
        Some(b't') => literal_end(body, at, b"true"),
        Some(b'f') => literal_end(body, at, b"false"),
        Some(b'n') => literal_end(body, at, b"null"),
        Some(_) => Err(JsonError::UnexpectedByte { at }),
        None => Err(JsonError::UnexpectedEnd),
    }
}

/// Checks a member's name and colon; returns the position of its value.
fn member_name_end(body: &[u8], at: usize) -> Result<usize, JsonError> {
    expect(body, at, b'"')?;
    let colon = skip_whitespace(body, text::checked_end(body, at + 1)?);
    expect(body, colon, b':')?;
    Ok(skip_whitespace(body, colon + 1))
}

fn expect(body: &[u8], at: usize, expected: u8) -> Result<(), JsonError> {
    match body.get(at) {
        Some(&byte) if byte == expected => Ok(()),
        Some(_) => Err(JsonError::UnexpectedByte { at }),
        None => Err(JsonError::UnexpectedEnd),
    }
}

fn literal_end(body: &[u8], at: usize, literal: &[u8]) -> Result<usize, JsonError> {
    for (index, &expected) in literal.iter().enumerate() {
        expect(body, at + index, expected)?;
    }
    Ok(at + literal.len())
}

/// `[ "-" ] ( "0" / digit1-9 *digit ) [ "." 1*digit ] [ ( "e" / "E" ) [ "+" / "-" ] 1*digit ]`
#[inline]
fn number_end(body: &[u8], mut at: usize) -> Result<usize, JsonError> {
    if body[at] == b'-' {
        at += 1;
    }
    at = match body.get(at) {
        Some(b'0') => at + 1,
        _ => digits_end(body, at)?,
    };
    match body.get(at) {
        Some(b'.' | b'e' | b'E') => number_tail_end(body, at),
        _ => Ok(at),
    }
}

/// [`number_end`] from the point or exponent on.
fn number_tail_end(body: &[u8], mut at: usize) -> Result<usize, JsonError> {
    if body[at] == b'.' {
        at = digits_end(body, at + 1)?;
    }
    if let Some(b'e' | b'E') = body.get(at) {
        let signed = matches!(body.get(at + 1), Some(b'+' | b'-'));
        at = digits_end(body, at + 1 + usize::from(signed))?;
    }
    Ok(at)
}

/// Position behind the digits, of which there has to be one at least.
#[inline]
fn digits_end(body: &[u8], start: usize) -> Result<usize, JsonError> {
    let rest = body.get(start..).unwrap_or_default();
    let len = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    match rest.get(len) {
        _ if len > 0 => Ok(start + len),
        Some(_) => Err(JsonError::UnexpectedByte { at: start }),
        None => Err(JsonError::UnexpectedEnd),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str) -> Result<usize, JsonError> {
        end(body.as_bytes(), 0, 0, 4)
    }

    #[test]
    fn a_value_ends_with_its_last_byte() {
        for value in [
            "0",
            "-0",
            "12345678901234567890",
            "1.10",
            "-1.5e+30",
            "1E400",
            "0e-0",
            "true",
            "false",
            "null",
            "\"\"",
            "\"a\\u0041\"",
            "[]",
            "{}",
            "[ ]",
            "{\t}",
            "[1,[2 , {\"a\" : [ ]}] ]",
            "{\"a\":1,\"a\":2, \"b\" :\n{\"\":null}\r}",
        ] {
            assert_eq!(check(value), Ok(value.len()), "{value}");
            assert_eq!(check(&format!("{value} x")), Ok(value.len()), "{value}");
        }
    }

    #[test]
    fn errors_say_where_they_are() {
        for (value, at) in [
            ("x", 0),
            ("+1", 0),
            (".5", 0),
            ("-x", 1),
            ("-.5", 1),
            ("1.x", 2),
            ("1.e1", 2),
            ("1ex", 2),
            ("1e+x", 3),
            ("tRue", 1),
            ("nul1", 3),
            ("[1 2]", 3),
            ("[1,]", 3),
            ("[,1]", 1),
            ("[1}", 2),
            ("{\"a\":1]", 6),
            ("{a:1}", 1),
            ("{\"a\" 1}", 5),
            ("{\"a\":}", 5),
            ("{\"a\":1,}", 7),
            ("{1:1}", 1),
            ("{\"a\":1,2}", 7),
            ("\u{feff}1", 0),
            ("'a'", 0),
            ("/**/1", 0),
            ("NaN", 0),
            ("]", 0),
        ] {
            assert_eq!(check(value), Err(JsonError::UnexpectedByte { at }), "{value}");
        }
    }

    #[test]
    fn a_cut_off_value_is_never_complete() {
        let value = "{\"a\":[1,true,{\"b\\n\":null}],\"c\":\"\\u00e9\",\"d\":false}";
        for len in 0..value.len() {
            assert_eq!(check(&value[..len]), Err(JsonError::UnexpectedEnd), "{}", &value[..len]);
        }
        for number in ["-", "1.", "1e", "1e-"] {
            assert_eq!(check(number), Err(JsonError::UnexpectedEnd), "{number}");
        }
    }

    #[test]
    fn the_depth_limit_is_exact() {
        assert_eq!(check("[[{\"a\":[]}]]"), Ok(12));
        assert_eq!(check("[[{\"a\":[[]]}]]"), Err(JsonError::TooDeep { at: 8, limit: 4 }));
        assert_eq!(end(b"[[]]", 0, 3, 4), Err(JsonError::TooDeep { at: 1, limit: 4 }));
        assert_eq!(end(b"1", 0, 4, 4), Ok(1));
    }

    #[test]
    fn brackets_match_at_every_depth() {
        for depth in [1, 63, 64, 65, 127, 128, 129, 1_000] {
            // Which levels are objects differs from word to word.
            let is_object = |level: usize| level.is_multiple_of(3) || level / 64 % 2 == 1;
            let mut value = String::new();
            (0..depth).for_each(|level| value.push_str(if is_object(level) { "{\"\":" } else { "[" }));
            value.push('1');
            (0..depth).rev().for_each(|level| value.push(if is_object(level) { '}' } else { ']' }));
            assert_eq!(end(value.as_bytes(), 0, 0, depth), Ok(value.len()));
            let mut wrong = value.into_bytes();
            let at = wrong.len() - 1;
            wrong[at] ^= 0x20;
            assert_eq!(end(&wrong, 0, 0, depth), Err(JsonError::UnexpectedByte { at }), "depth {depth}");
        }
    }
}
