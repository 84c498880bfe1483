//! JSON mode: `protocol.md` §6.

use std::thread;

use crate::contract::Expectations;
use crate::service::{
    CLOSED, Caller, JSON, MODES, Producer, TEXT, in_each_mode, offset, path, start, start_in,
};
use crate::support::ServerProcess;
use crate::support::sse::EventStream;

/// Values that do not survive being parsed and written again.
const FAITHFUL: &[&str] = &[
    "12345678901234567890",
    "-12345678901234567890123456789012345678901234567890",
    "1.10",
    "-0",
    "0.1e-7",
    "1e400",
    "1E+2",
    "0.30000000000000000000000000000000004",
    r#"{"b":1,"a":2,"b":3}"#,
    r#""\u0041\u00e9\/\ud83d\ude00""#,
    r#""\ud800 alone""#,
    r#""é😀 raw""#,
    r#"{ "spaced" :	[ 1 ,2 ,  3 ] }"#,
    "{\"line\":\n\r\n[\n]}",
    "[]",
    "{}",
    r#""""#,
    "null",
    "true",
    "false",
];

in_each_mode!(
    messages_keep_their_exact_bytes_in_every_read_mode,
    one_level_of_array_is_opened,
    only_application_json_is_json,
    empty_array_creates_but_does_not_append,
    invalid_json_is_refused_whole,
    offsets_count_messages_with_their_separators,
    concurrent_batches_stay_together,
    large_bodies_are_as_exact_as_small_ones,
);

fn messages_keep_their_exact_bytes_in_every_read_mode(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let as_batch = format!("[ {} ]", FAITHFUL.join(" ,\n"));
    let whole = format!("[{}]", FAITHFUL.join(","));
    caller.create("put", JSON, &as_batch);
    caller.create("post", JSON, "");
    caller.append("post", JSON, &as_batch);
    caller.create("single", JSON, "");
    for message in FAITHFUL {
        // Arrays would be opened.
        let body = if message.starts_with('[') { format!("[{message}]") } else { format!(" {message}\r\n") };
        caller.append("single", JSON, body);
    }
    for name in ["put", "post", "single"] {
        assert_eq!(caller.content(name), whole, "{name}");
        let polled = caller.get(&format!("{name}?offset=-1&live=long-poll"), &[]).expect_status(200);
        assert_eq!(polled.text(), whole, "{name}");
        let mut events =
            EventStream::open(server.origin(), &path(&format!("{name}?offset=-1&live=sse")), &[])
                .expect("the server answers")
                .expect("the stream can be read");
        let (kind, data) = events.next_message().expect("the response goes on").expect("there is data");
        assert_eq!(kind, "data");
        // Line ends are a matter of the event format.
        assert_eq!(data, whole.replace("\r\n", "\n"), "{name}");
    }
}

fn one_level_of_array_is_opened(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (index, (body, expected)) in [
        ("1", "[1]"),
        ("[1]", "[1]"),
        ("[1,2]", "[1,2]"),
        ("[[1,2],[3]]", "[[1,2],[3]]"),
        ("[[[1]]]", "[[[1]]]"),
        ("[[]]", "[[]]"),
        ("[ [ ] , { } ]", "[[ ],{ }]"),
        (" \t\r\n\"x\" \n", "[\"x\"]"),
        ("null", "[null]"),
        ("[null,null]", "[null,null]"),
        (r#"["a,b","]","[","\"]\\"]"#, r#"["a,b","]","[","\"]\\"]"#),
        (r#"{"a":[1,[2,3]],"b":"],["}"#, r#"[{"a":[1,[2,3]],"b":"],["}]"#),
    ]
    .into_iter()
    .enumerate()
    {
        let (put, post) = (format!("put-{index}"), format!("post-{index}"));
        caller.create(&put, JSON, body);
        assert_eq!(caller.content(&put), expected, "{body}");
        caller.create(&post, JSON, "");
        assert_eq!(caller.content(&post), "[]");
        caller.append(&post, JSON, body);
        caller.append(&post, JSON, "\"last\"");
        let messages = expected.strip_suffix(']').expect("it is an array");
        assert_eq!(caller.content(&post), format!("{messages},\"last\"]"), "{body}");
    }
}

fn only_application_json_is_json(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (index, json) in
        ["application/json", "Application/JSON", "application/json; charset=utf-8"].iter().enumerate()
    {
        let name = format!("json-{index}");
        caller.create(&name, ("Content-Type", json), "[1, 2]");
        let page = caller.get(&name, &[]);
        page.expect_header("Content-Type", json);
        assert_eq!(page.text(), "[1,2]");
        caller.post(&name, &[JSON], "{").expect_refusal("INVALID_JSON");
    }
    for (index, other) in
        ["application/ld+json", "application/ndjson", "application/jsonl", "text/json"].iter().enumerate()
    {
        let name = format!("other-{index}");
        caller.create(&name, ("Content-Type", other), "[1, 2]");
        caller.append(&name, ("Content-Type", other), "{");
        assert_eq!(caller.content(&name), "[1, 2]{");
        caller.post(&name, &[JSON], "1").expect_refusal("CONTENT_TYPE_MISMATCH");
    }
}

fn empty_array_creates_but_does_not_append(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (name, body) in [("a", "[]"), ("b", " [ \n] ")] {
        caller.create(name, JSON, body).expect_header("Stream-Next-Offset", &offset(0));
        assert_eq!(caller.content(name), "[]");
        caller.post(name, &[JSON], body).expect_refusal("EMPTY_ARRAY");
        caller.post(name, &[JSON, CLOSED], body).expect_refusal("EMPTY_ARRAY");
        let producer = Producer::new("p", 0, 0);
        caller.post(name, &producer.with(&[JSON, CLOSED]), body).expect_refusal("EMPTY_ARRAY");
        assert!(!caller.is_closed(name));
        caller.post(name, &producer.with(&[JSON]), "1").expect_status(200);
        assert_eq!(caller.content(name), "[1]");
    }
    caller.put("c", &[JSON, CLOSED], "[]").expect_status(201).expect_header("Stream-Closed", "true");
}

fn invalid_json_is_refused_whole(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", JSON, "0");
    let invalid: &[&[u8]] = &[
        b" ",
        b"\n",
        b"[",
        b"]",
        b"{",
        b"[1,2",
        b"[1,]",
        b"[,1]",
        b"[1,,2]",
        b"[1 2]",
        b"1 2",
        b"1\n2",
        b"1,2",
        b"[1][2]",
        b"{\"a\":1,}",
        b"{\"a\" 1}",
        b"{a:1}",
        b"{\"a\":1 \"b\":2}",
        b"'a'",
        b"\"a",
        b"\"\\x\"",
        b"\"\\u12g4\"",
        b"\"tab\tinside\"",
        b"\"line\ninside\"",
        b"\"\0\"",
        b"01",
        b"+1",
        b".5",
        b"1.",
        b"1e",
        b"-",
        b"0x10",
        b"NaN",
        b"Infinity",
        b"nul",
        b"True",
        b"undefined",
        b"// comment\n1",
        b"1 /* comment */",
        b"\xef\xbb\xbf1",
        b"\"\xff\"",
        b"\"\xc3\"",
        b"\"\xc0\xaf\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xf5\x80\x80\x80\"",
        b"\xff",
        b"[1,2,\"\xff\"]",
        b"\xc2\xa01",
        b"\x0b1",
        b"1\0",
    ];
    for body in invalid {
        for headers in [&[JSON][..], &[JSON, CLOSED]] {
            let refused = caller.post("a", headers, body);
            assert_eq!(refused.status, 400, "{:?}", String::from_utf8_lossy(body));
            refused.expect_refusal("INVALID_JSON");
        }
        caller.put("b", &[JSON], body).expect_refusal("INVALID_JSON");
    }
    assert_eq!(caller.content("a"), "[0]");
    assert!(!caller.is_closed("a"));
    caller.assert_absent("b");
}

fn offsets_count_messages_with_their_separators(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", JSON, "[1, 22]").expect_header("Stream-Next-Offset", &offset(5));
    caller.append("a", JSON, " {\"a\": 1} ").expect_header("Stream-Next-Offset", &offset(14));
    let page = caller.get(&format!("a?offset={}", offset(2)), &[]);
    assert_eq!(page.text(), "[22,{\"a\": 1}]");
    page.expect_header("Stream-Next-Offset", &offset(14));
    let page = caller.get(&format!("a?offset={}", offset(5)), &[]);
    assert_eq!(page.text(), "[{\"a\": 1}]");
    let page = caller.get(&format!("a?offset={}", offset(14)), &[]);
    assert_eq!(page.text(), "[]");
    page.expect_header("Stream-Up-To-Date", "true").expect_header("Stream-Next-Offset", &offset(14));
}

fn concurrent_batches_stay_together(server: &ServerProcess) {
    const BATCHES: usize = 15;
    let mut caller = Caller::to(server);
    caller.create("a", JSON, "");
    thread::scope(|scope| {
        for writer in 0..6 {
            scope.spawn(move || {
                let mut caller = Caller::to(server);
                for batch in 0..BATCHES {
                    let messages: Vec<_> =
                        (0..5).map(|index| format!(r#"{{"w":{writer},"b":{batch},"i":{index}}}"#)).collect();
                    caller.append("a", JSON, format!("[{}]", messages.join(", ")));
                }
            });
        }
    });
    let messages: Vec<serde_json::Value> =
        serde_json::from_str(&caller.content("a")).expect("the whole is one array");
    assert_eq!(messages.len(), 6 * BATCHES * 5);
    let mut next_batch = [0; 6];
    for batch in messages.chunks(5) {
        let writer = batch[0]["w"].as_u64().expect("it is a number") as usize;
        for (index, message) in batch.iter().enumerate() {
            let expected = serde_json::json!({ "w": writer, "b": next_batch[writer], "i": index });
            assert_eq!(*message, expected);
        }
        next_batch[writer] += 1;
    }
}

fn large_bodies_are_as_exact_as_small_ones(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let messages: Vec<_> =
        (0..20_000).map(|index| format!(r#"{{"n": 1.{index:0>6}0, "s":"],["}}"#)).collect();
    let (first, second) = messages.split_at(7);
    caller.create("a", JSON, format!("[{}]", first.join(" , ")));
    caller.append("a", JSON, format!(" [\n{}\n] ", second.join(" ,\n ")));
    assert_eq!(caller.content("a"), format!("[{}]", messages.join(",")));
    let cut = format!("[{}", second.join(","));
    caller.post("a", &[JSON], cut).expect_refusal("INVALID_JSON");
}

/// An array or an object with `depth` levels of nesting.
fn nested(open: &str, close: &str, depth: usize) -> String {
    format!("{}{}", open.repeat(depth), close.repeat(depth))
}

#[test]
fn nesting_is_limited() {
    let server = start(&[("DS_LIMITS__MAX_JSON_DEPTH", "130")]);
    let mut caller = Caller::to(&server);
    caller.create("a", JSON, "");
    for (depth, is_accepted) in [(1, true), (129, true), (130, true), (131, false), (100_000, false)] {
        for body in [nested("[", "]", depth), format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth))] {
            if body == "[]" {
                continue;
            }
            for (name, method) in [("a", "POST"), ("b", "PUT")] {
                let answer = caller.send(method, &path(name), &[JSON], body.as_bytes());
                if is_accepted {
                    assert!(matches!(answer.status, 201 | 204), "{depth}: {answer:?}");
                } else {
                    answer.expect_refusal("INVALID_JSON");
                }
            }
            if is_accepted {
                caller.delete("b").expect_status(204);
            } else {
                caller.assert_absent("b");
            }
        }
    }
}

#[test]
fn nesting_of_128_is_accepted_by_default() {
    for mode in MODES {
        let server = start_in(mode, &[]);
        let mut caller = Caller::to(&server);
        let message = nested("[", "]", 127);
        caller.create("a", JSON, format!("[{message}]"));
        assert_eq!(caller.content("a"), format!("[{message}]"));
    }
}

#[test]
fn streams_of_other_types_take_any_bytes() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "[]");
    caller.append("a", TEXT, "[");
    caller.append("a", TEXT, b"\xff");
    assert_eq!(caller.get("a", &[]).body, b"[][\xff");
}
