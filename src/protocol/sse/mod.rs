//! Server-sent events, byte for byte. `protocol.md` §14.
//!
//! A batch of content is one data event and the control event behind it. What a payload holds can never end its
//! event or start another: every line of it is prefixed.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::protocol::content_type::MediaKind;
use crate::protocol::offset;

mod text;

pub use text::{complete_text_len, text_cut};

/// The comment that is sent when a connection has been idle.
pub const HEARTBEAT: &[u8] = b":\n\n";

const DATA_START: &[u8] = b"event: data\ndata:";
const CONTROL_START: &[u8] = b"event: control\ndata:{\"streamNextOffset\":\"";
const EVENT_END: &[u8] = b"\n\n";
/// Room for the control event that follows data.
const CONTROL_LEN_MAX: usize = 192;
/// Bytes that are encoded at one time: a multiple of 3, so that no padding comes before the end.
const BASE64_PIECE: usize = 3 * 1024;

/// How content is put into the text of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SseEncoding {
    /// One JSON array of whole messages.
    Json,
    /// Text; invalid UTF-8 becomes U+FFFD.
    Text,
    /// Padded base64 on one line, announced by `Stream-SSE-Data-Encoding`.
    Base64,
}

impl SseEncoding {
    /// The encoding for a kind of stream.
    pub fn of(kind: MediaKind) -> Self {
        match kind {
            MediaKind::Json => Self::Json,
            MediaKind::Text => Self::Text,
            MediaKind::Binary => Self::Base64,
        }
    }
}

/// What a control event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Where the next read continues, in stored bytes.
    pub next_offset: u64,
    /// Present unless `closed`.
    pub cursor: Option<u64>,
    /// The client has everything up to the tail.
    pub up_to_date: bool,
    /// The stream is closed and everything was sent.
    pub closed: bool,
}

/// Writes one data event that carries `stored`: stored bytes in order, in pieces of any size, together not empty.
/// JSON has to be whole messages, each with its comma.
pub fn write_data(out: &mut Vec<u8>, encoding: SseEncoding, stored: &[Bytes]) {
    let len: usize = stored.iter().map(Bytes::len).sum();
    // Exact for base64. Text grows with its lines, of which there usually are few; a longer one is copied once or twice.
    let encoded_len = match encoding {
        SseEncoding::Base64 => len.div_ceil(3) * 4,
        SseEncoding::Json | SseEncoding::Text => len + len / 16,
    };
    out.reserve(DATA_START.len() + encoded_len + EVENT_END.len() + CONTROL_LEN_MAX);
    out.extend_from_slice(DATA_START);
    match encoding {
        SseEncoding::Json => write_json(out, stored, len),
        SseEncoding::Text => write_text(out, stored),
        SseEncoding::Base64 => write_base64(out, stored),
    }
    out.extend_from_slice(EVENT_END);
}

/// Writes one control event.
pub fn write_control(out: &mut Vec<u8>, control: &Control) {
    out.extend_from_slice(CONTROL_START);
    out.extend_from_slice(offset::format(control.next_offset).as_bytes());
    out.push(b'"');
    if let Some(cursor) = control.cursor {
        out.extend_from_slice(b",\"streamCursor\":\"");
        out.extend_from_slice(itoa::Buffer::new().format(cursor).as_bytes());
        out.push(b'"');
    }
    if control.up_to_date {
        out.extend_from_slice(b",\"upToDate\":true");
    }
    if control.closed {
        out.extend_from_slice(b",\"streamClosed\":true");
    }
    out.push(b'}');
    out.extend_from_slice(EVENT_END);
}

/// `[m1,m2]` from `m1,m2,`.
fn write_json(out: &mut Vec<u8>, stored: &[Bytes], len: usize) {
    out.push(b'[');
    let mut lines = PayloadLines { line_is_empty: false, after_cr: false };
    // Everything but the comma of the last message.
    let mut left = len.saturating_sub(1);
    for piece in stored {
        let piece = &piece[..piece.len().min(left)];
        lines.write(out, piece);
        left -= piece.len();
    }
    out.push(b']');
}

fn write_text(out: &mut Vec<u8>, stored: &[Bytes]) {
    let mut lines = PayloadLines { line_is_empty: true, after_cr: false };
    // A code point may lie across two pieces; only then do they have to be joined to be judged.
    if let [piece] = stored {
        lines.write(out, String::from_utf8_lossy(piece).as_bytes());
    } else if stored.iter().all(|piece| std::str::from_utf8(piece).is_ok()) {
        stored.iter().for_each(|piece| lines.write(out, piece));
    } else {
        lines.write(out, String::from_utf8_lossy(&stored.concat()).as_bytes());
    }
}

fn write_base64(out: &mut Vec<u8>, stored: &[Bytes]) {
    // Groups of 3 bytes may lie across pieces.
    let joined: Cow<'_, [u8]> = match stored {
        [piece] => Cow::Borrowed(piece),
        pieces => Cow::Owned(pieces.concat()),
    };
    let mut encoded = [0; BASE64_PIECE / 3 * 4];
    for piece in joined.chunks(BASE64_PIECE) {
        let len = STANDARD.encode_slice(piece, &mut encoded).expect("the buffer holds a whole encoded piece");
        out.extend_from_slice(&encoded[..len]);
    }
}

/// Writes a payload as the lines of one event, across pieces. The `data:` of the first line is already written.
struct PayloadLines {
    /// Nothing of the current line has been written yet.
    line_is_empty: bool,
    /// The line was ended by a CR, so that an LF right after it belongs to the same line end.
    after_cr: bool,
}

impl PayloadLines {
    fn write(&mut self, out: &mut Vec<u8>, mut piece: &[u8]) {
        if self.after_cr && !piece.is_empty() {
            self.after_cr = false;
            piece = piece.strip_prefix(b"\n").unwrap_or(piece);
        }
        while let Some(end) = memchr::memchr2(b'\r', b'\n', piece) {
            self.write_within_line(out, &piece[..end]);
            out.extend_from_slice(b"\ndata:");
            self.line_is_empty = true;
            let was_cr = piece[end] == b'\r';
            piece = &piece[end + 1..];
            if was_cr {
                self.after_cr = piece.is_empty();
                piece = piece.strip_prefix(b"\n").unwrap_or(piece);
            }
        }
        self.write_within_line(out, piece);
    }

    fn write_within_line(&mut self, out: &mut Vec<u8>, text: &[u8]) {
        if self.line_is_empty && text.first() == Some(&b' ') {
            // Parsers strip one space after the colon.
            out.push(b' ');
        }
        self.line_is_empty &= text.is_empty();
        out.extend_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a browser's event source makes of a stream of events: (event, data).
    fn received(wire: &[u8]) -> Vec<(String, String)> {
        let text = std::str::from_utf8(wire).unwrap();
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let mut events = Vec::new();
        let (mut event, mut data) = (String::new(), String::new());
        for line in text.strip_suffix('\n').unwrap().split('\n') {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => event = value.to_owned(),
                "data" => data = data + value + "\n",
                _ => {}
            }
            if line.is_empty() && !data.is_empty() {
                data.pop();
                events.push((std::mem::take(&mut event), std::mem::take(&mut data)));
            }
        }
        assert!(data.is_empty(), "an event is not ended");
        events
    }

    fn data(encoding: SseEncoding, pieces: &[&[u8]]) -> Vec<u8> {
        let pieces: Vec<_> = pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect();
        let mut out = Vec::new();
        write_data(&mut out, encoding, &pieces);
        out
    }

    fn text(pieces: &[&str]) -> String {
        let pieces: Vec<_> = pieces.iter().map(|piece| piece.as_bytes()).collect();
        String::from_utf8(data(SseEncoding::Text, &pieces)).unwrap()
    }

    /// Cuts `content` at the given places, taken modulo its length.
    fn cut(content: &[u8], cuts: &[usize]) -> Vec<Bytes> {
        let mut ends: Vec<_> =
            cuts.iter().map(|cut| cut % (content.len() + 1)).chain([content.len()]).collect();
        ends.sort_unstable();
        let mut start = 0;
        let mut pieces = Vec::new();
        for end in ends {
            pieces.push(Bytes::copy_from_slice(&content[start..end]));
            start = end;
        }
        pieces
    }

    #[test]
    fn a_batch_is_written_as_the_protocol_prints_it() {
        let mut out = data(SseEncoding::Text, &[b"first payload line\nsecond payload line"]);
        write_control(
            &mut out,
            &Control { next_offset: 42, cursor: Some(2_870_412), up_to_date: true, closed: false },
        );
        let expected = "event: data\ndata:first payload line\ndata:second payload line\n\n\
            event: control\ndata:{\"streamNextOffset\":\"0000000000000000_0000000000000042\",\
            \"streamCursor\":\"2870412\",\"upToDate\":true}\n\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn control_fields_are_left_out_and_never_false() {
        let json = |control: &Control| {
            let mut out = Vec::new();
            write_control(&mut out, control);
            received(&out)[0].1.clone()
        };
        let control = Control { next_offset: 0, cursor: None, up_to_date: true, closed: true };
        let zero = "\"streamNextOffset\":\"0000000000000000_0000000000000000\"";
        assert_eq!(json(&control), format!("{{{zero},\"upToDate\":true,\"streamClosed\":true}}"));
        let control = Control { next_offset: 0, cursor: Some(0), up_to_date: false, closed: false };
        assert_eq!(json(&control), format!("{{{zero},\"streamCursor\":\"0\"}}"));
    }

    #[test]
    fn every_line_end_becomes_a_data_line() {
        for (pieces, payload) in [
            (&["a"][..], "a"),
            (&["a\n"], "a\ndata:"),
            (&["\n"], "\ndata:"),
            (&["a\r\nb\rc\nd"], "a\ndata:b\ndata:c\ndata:d"),
            (&["a\r\r\n\nb"], "a\ndata:\ndata:\ndata:b"),
            (&["a\r", "\nb"], "a\ndata:b"),
            (&["a\r", "", "\nb"], "a\ndata:b"),
            (&["a\r", "b"], "a\ndata:b"),
            (&["a\n", "\nb"], "a\ndata:\ndata:b"),
            (
                &["x\n\nevent: control\ndata:{}\n\n"],
                "x\ndata:\ndata:event: control\ndata:data:{}\ndata:\ndata:",
            ),
        ] {
            assert_eq!(text(pieces), format!("event: data\ndata:{payload}\n\n"), "{pieces:?}");
        }
    }

    #[test]
    fn a_leading_space_is_doubled() {
        assert_eq!(text(&[" x\n  y\n\tz"]), "event: data\ndata:  x\ndata:   y\ndata:\tz\n\n");
        assert_eq!(text(&["a\n", " b", " c"]), "event: data\ndata:a\ndata:  b c\n\n");
        assert_eq!(text(&["", " a"]), "event: data\ndata:  a\n\n");
    }

    #[test]
    fn invalid_text_is_replaced_and_split_code_points_are_joined() {
        assert_eq!(received(&data(SseEncoding::Text, &[b"a\xffb"]))[0].1, "a\u{fffd}b");
        assert_eq!(received(&data(SseEncoding::Text, &[b"\xe2\x82", b"\xac"]))[0].1, "\u{20ac}");
        assert_eq!(received(&data(SseEncoding::Text, &[b"x\xe2\x82", b"y"]))[0].1, "x\u{fffd}y");
    }

    #[test]
    fn json_is_an_array_without_the_last_comma() {
        let json = |pieces: &[&[u8]]| received(&data(SseEncoding::Json, pieces))[0].1.clone();
        assert_eq!(json(&[b"1,"]), "[1]");
        assert_eq!(json(&[b"1,{\"a\":", b"2},", b""]), "[1,{\"a\":2}]");
        assert_eq!(json(&[b"\"x\"", b","]), "[\"x\"]");
        assert_eq!(json(&[b"{\r\n \"a\":\r1},"]), "[{\n \"a\":\n1}]");
        assert_eq!(json(&[]), "[]");
    }

    proptest! {
        #[test]
        fn text_arrives_with_its_line_ends_as_lf(
            content in "([ a:é€😀]|\r|\n|\r\n|data:|event: x){1,40}", cuts: Vec<usize>,
        ) {
            let mut out = Vec::new();
            write_data(&mut out, SseEncoding::Text, &cut(content.as_bytes(), &cuts));
            let expected = content.replace("\r\n", "\n").replace('\r', "\n");
            prop_assert_eq!(received(&out), [("data".to_owned(), expected)]);
        }

        #[test]
        fn binary_arrives_as_one_line_of_padded_base64(content: Vec<u8>, repeat in 1..60_usize, cuts: Vec<usize>) {
            let content = content.repeat(repeat);
            let mut out = Vec::new();
            write_data(&mut out, SseEncoding::Base64, &cut(&content, &cuts));
            if !content.is_empty() {
                let events = received(&out);
                prop_assert_eq!(events.len(), 1);
                prop_assert!(!events[0].1.contains('\n'));
                prop_assert_eq!(STANDARD.decode(&events[0].1).unwrap(), content);
            }
        }

        #[test]
        fn json_arrives_byte_for_byte(
            messages in prop::collection::vec("\\{\n? {0,2}\"[a-z ]{0,5}\":[0-9]\\}", 1..6), cuts: Vec<usize>,
        ) {
            let stored = messages.join(",") + ",";
            let mut out = Vec::new();
            write_data(&mut out, SseEncoding::Json, &cut(stored.as_bytes(), &cuts));
            prop_assert_eq!(received(&out), [("data".to_owned(), format!("[{}]", messages.join(",")))]);
        }
    }
}
