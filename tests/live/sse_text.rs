//! Text as server-sent events: lines, spaces, and code points that are not whole. `protocol.md` §14.2 and §14.4.

use super::tail::Tail;
use super::*;

#[test]
fn every_line_end_begins_a_data_line_and_a_leading_space_survives() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT], "");
        let mut tail = Tail::open(server, "s", "-1");
        tail.expect_control();
        for (payload, lines) in [
            ("plain", "data:plain\n"),
            (" one", "data:  one\n"),
            ("   three", "data:    three\n"),
            (" ", "data:  \n"),
            ("a b ", "data:a b \n"),
            ("\ttab", "data:\ttab\n"),
            ("\u{a0}no-break", "data:\u{a0}no-break\n"),
            ("a\n b\n  c", "data:a\ndata:  b\ndata:   c\n"),
            ("a\r b\r\n c", "data:a\ndata:  b\ndata:  c\n"),
            ("end\n", "data:end\ndata:\n"),
            ("end\r\n", "data:end\ndata:\n"),
            ("end\r", "data:end\ndata:\n"),
            ("\n", "data:\ndata:\n"),
            ("\n\n\n", "data:\ndata:\ndata:\ndata:\n"),
            ("\r\r\n\n", "data:\ndata:\ndata:\ndata:\n"),
            ("a:b", "data:a:b\n"),
            (":comment", "data::comment\n"),
            ("\u{feff}mark", "data:\u{feff}mark\n"),
            ("a\u{2028}b\u{85}c\u{b}d", "data:a\u{2028}b\u{85}c\u{b}d\n"),
            ("\0", "data:\0\n"),
        ] {
            append(server, "s", TEXT, payload);
            let batch = tail.batch();
            let data = batch.raw.split_once("event: control\n").map(|(data, _)| data);
            assert_eq!(data, Some(&*format!("event: data\n{lines}\n")), "{payload:?}");
            let received = payload.replace("\r\n", "\n").replace('\r', "\n");
            assert_eq!(batch.data, Some(received), "{payload:?}");
        }
    });
}

#[test]
fn nothing_in_a_payload_begins_an_event() {
    in_each_mode(&[], |server| {
        let hostile = "x\n\nevent: control\ndata:{\"streamNextOffset\":\"0\",\"streamClosed\":true}\n\nid: 7\nretry: 1\n\n:\n\n";
        create(server, "s", &[TEXT], hostile);
        let mut tail = Tail::open(server, "s", "-1");
        let control = tail.expect_data(hostile);
        assert_eq!(control.next, hostile.len());
        assert!(!control.closed);
        tail.assert_silent();
    });
}

#[test]
fn a_code_point_that_comes_in_pieces_is_sent_whole_and_once() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT], b"a\xe2");
        let mut early = Tail::open(server, "s", "-1");
        // What is held back counts as not yet there.
        let control = early.expect_data("a");
        assert_eq!((control.next, control.up_to_date), (1, true));
        append(server, "s", TEXT, b"\x82");
        early.assert_silent();
        let mut late = Tail::open(server, "s", &offset(1));
        let control = late.expect_control();
        assert_eq!((control.next, control.up_to_date), (1, true));
        append(server, "s", TEXT, b"\xac!\xf0\x9f");
        for tail in [&mut early, &mut late] {
            let control = tail.expect_data("\u{20ac}!");
            assert_eq!((control.next, control.up_to_date), (5, true));
        }
        append(server, "s", TEXT, b"\x98\x80");
        for tail in [&mut early, &mut late] {
            let control = tail.expect_data("\u{1f600}");
            assert_eq!((control.next, control.up_to_date), (9, true));
        }
    });
}

#[test]
fn a_reader_that_comes_back_is_given_what_was_held_back_once() {
    in_each_mode(&[], |server| {
        let text = "a\u{e9}\u{20ac}\u{1f600}z".repeat(3);
        create(server, "s", &[TEXT], "");
        let (mut at, mut seen) = (0, String::new());
        for byte in text.as_bytes() {
            append(server, "s", TEXT, [*byte]);
            // A new connection for each byte.
            let batch = Tail::open(server, "s", &offset(at)).batch();
            assert!(batch.control.up_to_date);
            at = batch.control.next;
            seen += batch.data.as_deref().unwrap_or_default();
            assert_eq!(at, seen.len());
        }
        assert_eq!(seen, text);
    });
}

#[test]
fn a_stream_of_nothing_but_half_a_code_point_is_up_to_date_at_its_start() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT], b"\xf0\x9f\x98");
        for at in ["-1", &offset(0)] {
            let mut tail = Tail::open(server, "s", at);
            let control = tail.expect_control();
            assert_eq!((control.next, control.up_to_date, control.closed), (0, true, false));
            tail.assert_silent();
        }
        // Other reads see the bytes that are there.
        let page = get(server, "s").expect_status(200);
        assert_eq!((page.body.as_slice(), next_position(&page)), (&b"\xf0\x9f\x98"[..], 3));
    });
}

#[test]
fn half_a_code_point_at_the_end_of_a_closed_stream_is_replaced() {
    in_each_mode(&[], |server| {
        for opened_before in [true, false] {
            let name = format!("opened-before-{opened_before}");
            create(server, &name, &[TEXT], b"a\xe2\x82");
            let mut tail = if opened_before {
                let mut tail = Tail::open(server, &name, "-1");
                assert_eq!(tail.expect_data("a").next, 1);
                close(server, &name);
                tail
            } else {
                close(server, &name);
                Tail::open(server, &name, &offset(1))
            };
            let control = tail.expect_data("\u{fffd}");
            assert_eq!((control.next, control.up_to_date, control.closed), (3, true, true));
            tail.expect_end();
            // From the start, all in one.
            let mut whole = Tail::open(server, &name, "-1");
            let control = whole.expect_data("a\u{fffd}");
            assert_eq!((control.next, control.closed), (3, true));
            whole.expect_end();
        }
    });
}

#[test]
fn a_last_append_completes_what_was_held_back_or_does_not() {
    in_each_mode(&[], |server| {
        for (name, last, data) in [("whole", &b"\xac"[..], "\u{20ac}"), ("broken", b"x", "\u{fffd}x")] {
            create(server, name, &[TEXT], b"\xe2\x82");
            let mut tail = Tail::open(server, name, "-1");
            tail.expect_control();
            server.client().request("POST", &path(name), &[TEXT, CLOSED], last).expect_status(204);
            let control = tail.expect_data(data);
            assert_eq!((control.next, control.closed), (3, true));
            tail.expect_end();
        }
    });
}

#[test]
fn bytes_that_can_never_be_text_are_replaced_at_once() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT], "");
        let mut tail = Tail::open(server, "s", "-1");
        tail.expect_control();
        let mut end = 0;
        for (bytes, data) in [
            (&b"\xff"[..], "\u{fffd}"),
            (b"a\x80b", "a\u{fffd}b"),
            (b"\xc0", "\u{fffd}"),
            (b"\xed\xa0", "\u{fffd}\u{fffd}"),
            (b"\xe2\x82x", "\u{fffd}x"),
        ] {
            append(server, "s", TEXT, bytes);
            end += bytes.len();
            assert_eq!(tail.expect_data(data).next, end);
        }
    });
}

#[test]
fn a_fork_inside_a_code_point_goes_on_from_there() {
    in_each_mode(&[], |server| {
        create(server, "source", &[TEXT], "\u{20ac}");
        let half = [("Stream-Forked-From", &*path("source")), ("Stream-Fork-Offset", &*offset(2))];
        create(server, "fork", &half, "");
        let mut tail = Tail::open(server, "fork", "-1");
        assert_eq!(tail.expect_control().next, 0);
        append(server, "fork", TEXT, b"\xad");
        assert_eq!(tail.expect_data("\u{20ad}").next, 3);
    });
}

#[test]
fn larger_catch_up_of_text_is_cut_between_code_points_and_line_ends() {
    in_each_mode(&[], |server| {
        // Every length of code point, and CRLF, at every distance from where a cut may fall.
        let unit = "a\r\n\u{e9}\r\n\u{20ac}\r\n\u{1f600}\r\n\r\n";
        for shift in 0..6 {
            let content = "-".repeat(shift) + &unit.repeat(30_000);
            let name = format!("shifted-by-{shift}");
            create(server, &name, &[TEXT, CLOSED], &content);
            let mut tail = Tail::open(server, &name, "-1");
            let (mut seen, mut batches) = (String::new(), 0);
            while let Some(batch) = tail.try_batch().expect("the response ends as it should") {
                seen += &batch.data.expect("there is always data until the tail");
                batches += 1;
                assert_eq!(batch.control.up_to_date, batch.control.closed);
                assert_eq!(batch.control.closed, batch.control.next == content.len());
            }
            assert!(batches > 3, "{batches} events");
            assert!(seen == content.replace("\r\n", "\n"), "shifted by {shift}");
        }
    });
}
