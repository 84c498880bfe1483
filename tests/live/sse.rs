//! Server-sent events, byte for byte: `protocol.md` §14.1 to §14.3.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::tail::{Batch, Tail};
use super::*;

/// The events of a batch, with the cursor that it came with.
fn events(data_lines: &[&str], next: usize, cursor: u64) -> String {
    let mut text = String::new();
    if !data_lines.is_empty() {
        text += "event: data\n";
        for line in data_lines {
            text += &format!("data:{line}\n");
        }
        text += "\n";
    }
    let next = offset(next);
    text + &format!(
        "event: control\ndata:{{\"streamNextOffset\":\"{next}\",\"streamCursor\":\"{cursor}\",\"upToDate\":true}}\n\n"
    )
}

/// The batch as sent, which has to be these lines of data and a control event at the tail.
#[track_caller]
fn assert_sent(batch: &Batch, data_lines: &[&str], next: usize) {
    let cursor = batch.control.cursor.expect("the stream is open");
    assert!(cursor.abs_diff(current_interval()) <= 1, "{cursor}");
    assert_eq!(batch.raw, events(data_lines, next, cursor));
}

#[test]
fn the_response_begins_with_exactly_these_headers() {
    in_each_mode(&[], |server| {
        for (name, content_type, encoding) in [
            ("text", "text/plain; charset=utf-8", None),
            ("html", "TEXT/html", None),
            ("json", "application/json", None),
            ("binary", "application/octet-stream", Some("base64")),
            ("ndjson", "application/x-ndjson", Some("base64")),
            ("json-like", "application/ld+json", Some("base64")),
        ] {
            create(server, name, &[("Content-Type", content_type)], "");
            let tail = Tail::open(server, name, "-1");
            let response = tail.response();
            let expected = [
                ("Content-Type", Some("text/event-stream")),
                ("Cache-Control", Some("no-cache")),
                ("X-Accel-Buffering", Some("no")),
                ("Transfer-Encoding", Some("chunked")),
                ("Content-Length", None),
                ("Content-Encoding", None),
                ("ETag", None),
                ("Stream-SSE-Data-Encoding", encoding),
                ("Stream-Closed", None),
                ("X-Content-Type-Options", Some("nosniff")),
                ("Cross-Origin-Resource-Policy", Some("cross-origin")),
                ("Access-Control-Allow-Origin", Some("*")),
            ];
            for (header, value) in expected {
                assert_eq!(response.header(header), value, "{header} of a stream of {content_type}");
            }
            let exposed = response.header("Access-Control-Expose-Headers").unwrap_or_default();
            assert!(exposed.contains("Stream-SSE-Data-Encoding"), "{exposed}");
        }
    });
}

#[test]
fn a_batch_is_a_data_event_and_its_control_event() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT], "first payload line\nsecond payload line");
        let mut tail = Tail::open(server, "s", "-1");
        assert_sent(&tail.batch(), &["first payload line", "second payload line"], 38);
        append(server, "s", TEXT, "third");
        assert_sent(&tail.batch(), &["third"], 43);
        tail.assert_silent();
    });
}

#[test]
fn without_data_a_control_event_at_the_real_tail_comes_at_once() {
    in_each_mode(&[], |server| {
        create(server, "empty", &[JSON], "");
        create(server, "s", &[JSON], "[1,2,3]");
        for (name, at, next) in [
            ("empty", "-1", 0),
            ("empty", "now", 0),
            ("empty", &*offset(0), 0),
            ("s", "now", 6),
            ("s", &*offset(6), 6),
        ] {
            let mut tail = Tail::open(server, name, at);
            assert_sent(&tail.batch(), &[], next);
            tail.assert_silent();
        }
    });
}

#[test]
fn now_skips_what_is_there_and_nothing_after_it() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT], "old");
        let mut tail = Tail::open(server, "s", "now");
        assert_eq!(tail.expect_control().next, 3);
        append(server, "s", TEXT, "new");
        assert_sent(&tail.batch(), &["new"], 6);
    });
}

#[test]
fn a_position_in_the_middle_is_where_the_events_begin() {
    in_each_mode(&[], |server| {
        create(server, "text", &[TEXT], "0123456789");
        assert_sent(&Tail::open(server, "text", &offset(4)).batch(), &["456789"], 10);
        create(server, "json", &[JSON], "[\"a\",\"b\",\"c\"]");
        assert_sent(&Tail::open(server, "json", &offset(4)).batch(), &["[\"b\",\"c\"]"], 12);
        create(server, "binary", &[BINARY], "0123456789");
        assert_sent(&Tail::open(server, "binary", &offset(9)).batch(), &["OQ=="], 10);
    });
}

#[test]
fn each_data_event_of_json_is_a_whole_array() {
    in_each_mode(&[], |server| {
        create(server, "s", &[JSON], "[{\"a\": 1}, 12345678901234567890]");
        let mut tail = Tail::open(server, "s", "-1");
        assert_sent(&tail.batch(), &["[{\"a\": 1},12345678901234567890]"], 30);
        append(server, "s", JSON, " 1.10 ");
        assert_sent(&tail.batch(), &["[1.10]"], 35);
        append(server, "s", JSON, "[[], \"\\u0041\"]");
        assert_sent(&tail.batch(), &["[[],\"\\u0041\"]"], 47);
        // Line ends between tokens are JSON's whitespace: they become lines of the event.
        append(server, "s", JSON, "{\n\"a\":\r\n 1}");
        assert_sent(&tail.batch(), &["[{", "\"a\":", "  1}]"], 59);
    });
}

#[test]
fn binary_is_padded_base64_on_one_line() {
    in_each_mode(&[], |server| {
        let all: Vec<u8> = (0..=255).collect();
        create(server, "s", &[BINARY], &all);
        let mut tail = Tail::open(server, "s", "-1");
        assert_sent(&tail.batch(), &[&STANDARD.encode(&all)], 256);
        let mut end = 256;
        for content in [&b"a"[..], b"ab", b"abc", b"\n\r\n", b"\x00", b"data: x\n\n"] {
            append(server, "s", BINARY, content);
            end += content.len();
            let encoded = STANDARD.encode(content);
            assert_eq!(encoded.len() % 4, 0);
            assert_sent(&tail.batch(), &[&encoded], end);
        }
    });
}

#[test]
fn a_reader_at_the_tail_of_a_closed_stream_learns_it_from_headers_and_event() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT, CLOSED], "all");
        create(server, "empty", &[TEXT, CLOSED], "");
        for (name, at, next) in [("s", "now", 3), ("s", &*offset(3), 3), ("empty", "-1", 0)] {
            let mut tail = Tail::open(server, name, at);
            assert_eq!(next_position(tail.response()), next);
            assert_eq!(tail.response().header("Stream-Closed"), Some("true"));
            assert_eq!(tail.response().header("Stream-Up-To-Date"), Some("true"));
            let expected = format!(
                "event: control\ndata:{{\"streamNextOffset\":\"{}\",\"upToDate\":true,\"streamClosed\":true}}\n\n",
                offset(next)
            );
            assert_eq!(tail.batch().raw, expected);
            tail.expect_end();
        }
    });
}

#[test]
fn a_closed_stream_is_sent_whole_and_then_ends() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT, CLOSED], "all");
        let mut tail = Tail::open(server, "s", "-1");
        assert_eq!(tail.response().header("Stream-Closed"), None);
        let batch = tail.batch();
        let control = format!(
            "event: control\ndata:{{\"streamNextOffset\":\"{}\",\"upToDate\":true,\"streamClosed\":true}}\n\n",
            offset(3)
        );
        assert_eq!(batch.raw, format!("event: data\ndata:all\n\n{control}"));
        tail.expect_end();
    });
}

#[test]
fn what_cannot_be_read_is_answered_with_a_problem() {
    in_each_mode(&[], |server| {
        create(server, "s", &[JSON], "[123]");
        create(server, "source", &[JSON], "[123]");
        fork(server, "fork", "source");
        delete(server, "source");
        let beyond = offset(5);
        let inside = offset(2);
        for (target, status) in [
            ("absent?live=sse&offset=-1", 404),
            ("source?live=sse&offset=-1", 410),
            ("s?live=sse", 400),
            ("s?live=sse&offset=", 400),
            ("s?live=SSE&offset=-1", 400),
            (&*format!("s?live=sse&offset={beyond}"), 400),
            (&*format!("s?live=sse&offset={inside}"), 400),
            (&*format!("fork?live=sse&offset={inside}"), 400),
            ("s?live=sse&offset=0000000000000001_0000000000000000", 400),
        ] {
            let Ok(Err(problem)) = Tail::try_open(server.origin(), target, &[]) else { panic!("{target}") };
            assert_eq!(problem.status, status, "{target}");
            assert_eq!(problem.header("Content-Type"), Some("application/problem+json"), "{target}");
        }
    });
}

#[test]
fn inherited_data_comes_first_and_the_source_is_not_heard_of_again() {
    in_each_mode(&[], |server| {
        create(server, "source", &[JSON], "[1,2]");
        fork(server, "fork", "source");
        let mut tail = Tail::open(server, "fork", "-1");
        assert_sent(&tail.batch(), &["[1,2]"], 4);
        append(server, "source", JSON, "3");
        delete(server, "source");
        tail.assert_silent();
        append(server, "fork", JSON, "4");
        assert_sent(&tail.batch(), &["[4]"], 6);
    });
}

/// Catch-up with more than one batch: payloads, all of which but the last say that there is more.
fn catch_up(server: &ServerProcess, name: &str) -> Vec<String> {
    let mut tail = Tail::open(server, name, "-1");
    let mut payloads = Vec::new();
    loop {
        let batch = tail.batch();
        payloads.push(batch.data.expect("there is always data until the tail"));
        if batch.control.up_to_date {
            break;
        }
    }
    tail.assert_silent();
    payloads
}

#[test]
fn a_payload_of_64_kib_is_one_event() {
    in_each_mode(&[], |server| {
        let payload = "x".repeat(64 << 10);
        create(server, "text", &[TEXT], &payload);
        assert_eq!(catch_up(server, "text"), [&*payload]);
        create(server, "binary", &[BINARY], &payload);
        assert_eq!(catch_up(server, "binary"), [STANDARD.encode(&payload)]);
        create(server, "json", &[JSON], format!("\"{payload}\""));
        assert_eq!(catch_up(server, "json"), [format!("[\"{payload}\"]")]);
        let mut tail = Tail::open(server, "text", "now");
        tail.expect_control();
        append(server, "text", TEXT, &payload);
        tail.expect_data(&payload);
    });
}

#[test]
fn larger_catch_up_of_json_is_cut_between_messages() {
    in_each_mode(&[], |server| {
        let small: Vec<String> = (0..20_000).map(|number| format!("{{\"number\":{number}}}")).collect();
        let large = format!("\"{}\"", "y".repeat(700_000));
        create(server, "s", &[JSON], format!("[{}]", small.join(",")));
        append(server, "s", JSON, format!("[{large},1]"));
        let payloads = catch_up(server, "s");
        assert!(payloads.len() > 3, "{} events", payloads.len());
        let messages: Vec<&str> = payloads
            .iter()
            .map(|payload| {
                let array: serde_json::Value = serde_json::from_str(payload).expect("each event is JSON");
                assert!(array.as_array().is_some_and(|array| !array.is_empty()));
                &payload[1..payload.len() - 1]
            })
            .collect();
        assert_eq!(messages.join(","), format!("{},{large},1", small.join(",")));
    });
}

#[test]
fn larger_catch_up_of_binary_is_cut_into_whole_encodings() {
    in_each_mode(&[], |server| {
        let content: Vec<u8> =
            (0..1_000_003_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        create(server, "s", &[BINARY], &content);
        let payloads = catch_up(server, "s");
        assert!(payloads.len() > 3, "{} events", payloads.len());
        let decoded: Vec<u8> = payloads
            .iter()
            .flat_map(|payload| STANDARD.decode(payload).expect("each event is whole, padded base64"))
            .collect();
        assert!(decoded == content);
    });
}
