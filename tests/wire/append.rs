//! POST with a body, and the order in which it is judged: `protocol.md` §4 and §8.

use std::thread;

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, JSON, Producer, TEXT, in_each_mode, offset, start};
use crate::support::ServerProcess;

in_each_mode!(
    appends_follow_one_another,
    appended_bytes_are_seen_by_every_reader_at_once,
    closure_goes_before_content_type_before_sequence,
    stream_goes_before_producer_before_json_before_sequence,
    content_types_are_compared_without_case_and_parameters,
    sequence_is_compared_as_bytes,
    refused_append_leaves_the_sequence_alone,
    sequence_is_checked_on_closing_too,
    concurrent_appends_are_all_stored_and_stay_whole,
    sequence_lets_one_of_many_concurrent_appends_through,
);

/// `Stream-Seq` on a stream of text.
fn seq(value: &str) -> [(&str, &str); 2] {
    [TEXT, ("Stream-Seq", value)]
}

fn appends_follow_one_another(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let mut before = caller.create("a", TEXT, "").next_offset();
    let mut length = 0;
    let mut whole = String::new();
    for piece in ["a", "bc", "def", "\n", "\0\0"] {
        let appended = caller.append("a", TEXT, piece);
        whole += piece;
        length += piece.len();
        appended.expect_header("Stream-Next-Offset", &offset(length)).expect_no_header("Stream-Closed");
        let after = appended.next_offset();
        assert!(after > before, "{after} is not behind {before}");
        before = after;
    }
    assert_eq!(caller.content("a"), whole);
}

fn appended_bytes_are_seen_by_every_reader_at_once(server: &ServerProcess) {
    let mut writer = Caller::to(server);
    let mut readers: Vec<_> = (0..4).map(|_| Caller::to(server)).collect();
    writer.create("a", TEXT, "");
    let mut whole = String::new();
    for round in 0..30 {
        let piece = format!("{round},");
        let tail = writer.append("a", TEXT, &piece).next_offset();
        whole += &piece;
        let reader = &mut readers[round % 4];
        assert_eq!(reader.content("a"), whole);
        assert_eq!(reader.tail("a"), tail);
    }
}

fn closure_goes_before_content_type_before_sequence(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    caller.post("a", &seq("5"), "abc").expect_status(204);
    let all_wrong = [JSON, ("Stream-Seq", "1")];
    caller.post("a", &all_wrong, "{").expect_refusal("CONTENT_TYPE_MISMATCH");
    caller.post("a", &seq("1"), "x").expect_refusal("SEQUENCE_CONFLICT");
    caller.post("a", &[CLOSED], "").expect_status(204);
    let refused = caller.post("a", &all_wrong, "{").expect_refusal("STREAM_CLOSED");
    refused.expect_header("Stream-Next-Offset", &offset(3));
    assert_eq!(caller.content("a"), "abc");
}

fn stream_goes_before_producer_before_json_before_sequence(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", JSON, "");
    let json = |seq| [JSON, ("Stream-Seq", seq)];
    caller.post("a", &Producer::new("p", 1, 0).with(&json("5")), "1").expect_status(200);
    let bad = "[1,";
    // A duplicate is answered whatever its body and sequence are, but not if its type is another one.
    let duplicate = caller.post("a", &Producer::new("p", 1, 0).with(&json("1")), bad).expect_status(204);
    duplicate.expect_header("Stream-Next-Offset", &offset(2));
    let of_text = Producer::new("p", 1, 0);
    caller.post("a", &of_text.with(&[TEXT]), bad).expect_refusal("CONTENT_TYPE_MISMATCH");
    caller.post("a", &Producer::new("p", 0, 0).with(&json("1")), bad).expect_refusal("PRODUCER_EPOCH_FENCED");
    caller.post("a", &Producer::new("p", 2, 1).with(&json("1")), bad).expect_refusal("BAD_REQUEST");
    caller.post("a", &Producer::new("p", 1, 2).with(&json("1")), bad).expect_refusal("SEQUENCE_CONFLICT");
    caller.post("a", &Producer::new("p", 1, 1).with(&json("1")), bad).expect_refusal("INVALID_JSON");
    caller.post("a", &Producer::new("p", 1, 1).with(&json("1")), "[]").expect_refusal("EMPTY_ARRAY");
    let conflict = caller.post("a", &Producer::new("p", 1, 1).with(&json("1")), "2");
    let conflict = conflict.expect_refusal("SEQUENCE_CONFLICT");
    conflict.expect_no_header("Producer-Expected-Seq").expect_no_header("Producer-Received-Seq");
    caller.post("a", &Producer::new("p", 1, 1).with(&json("6")), "2").expect_status(200);
    assert_eq!(caller.content("a"), "[1,2]");
}

fn content_types_are_compared_without_case_and_parameters(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", ("Content-Type", "text/Plain; charset=utf-8"), "");
    for same in ["text/plain", "TEXT/PLAIN", "text/plain;charset=latin1;x=\"y;z\"", "text/plain ; q=1"] {
        caller.append("a", ("Content-Type", same), "x");
    }
    for other in ["text/html", "text/plainer", "application/json", "application/octet-stream"] {
        caller.post("a", &[("Content-Type", other)], "y").expect_refusal("CONTENT_TYPE_MISMATCH");
    }
    assert_eq!(caller.content("a"), "xxxx");
    caller.head("a").expect_header("Content-Type", "text/Plain; charset=utf-8");
}

fn sequence_is_compared_as_bytes(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let longest = "z".repeat(256);
    for (stream, accepted, refused) in [
        ("a", &["2"][..], &["10", "2", "1", "02"][..]),
        ("b", &["09", "10"], &["1", "09", "10"]),
        ("c", &["B", "a"], &["B", "Z", "a"]),
        ("d", &["a", "aa", "ab", "b"], &["ab", "azzz", "b"]),
        ("e", &["z", "é"], &["z~", "é"]),
        ("f", &["-", "0", longest.as_str()], &["9", longest.as_str()]),
    ] {
        caller.create(stream, TEXT, "");
        for value in accepted {
            caller.post(stream, &seq(value), "x").expect_status(204);
        }
        for value in refused {
            caller.post(stream, &seq(value), "y").expect_refusal("SEQUENCE_CONFLICT");
        }
        // Without a sequence nothing is compared, and nothing is forgotten.
        caller.append(stream, TEXT, "z");
        caller.post(stream, &seq(accepted[accepted.len() - 1]), "y").expect_refusal("SEQUENCE_CONFLICT");
        assert_eq!(caller.content(stream), format!("{}z", "x".repeat(accepted.len())));
    }
}

fn refused_append_leaves_the_sequence_alone(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", JSON, "");
    let json = |seq| [JSON, ("Stream-Seq", seq)];
    caller.post("a", &seq("5"), "1").expect_refusal("CONTENT_TYPE_MISMATCH");
    caller.post("a", &json("5"), "{").expect_refusal("INVALID_JSON");
    caller.post("a", &json("5"), "[]").expect_refusal("EMPTY_ARRAY");
    caller.post("a", &Producer::new("p", 0, 3).with(&json("5")), "1").expect_refusal("SEQUENCE_CONFLICT");
    caller.post("a", &json("1"), "1").expect_status(204);
    caller.post("a", &json("5"), "5").expect_status(204);
    assert_eq!(caller.content("a"), "[1,5]");
}

fn sequence_is_checked_on_closing_too(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    caller.post("a", &seq("5"), "x").expect_status(204);
    caller.post("a", &[CLOSED, ("Stream-Seq", "5")], "").expect_refusal("SEQUENCE_CONFLICT");
    assert!(!caller.is_closed("a"));
    caller.post("a", &[CLOSED, ("Stream-Seq", "6")], "").expect_status(204);
    assert!(caller.is_closed("a"));
    // Closing again is no mutation, so there is nothing to compare.
    caller.post("a", &[CLOSED, ("Stream-Seq", "1")], "").expect_status(204);
}

fn concurrent_appends_are_all_stored_and_stay_whole(server: &ServerProcess) {
    const WRITERS: usize = 8;
    const APPENDS: usize = 20;
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    let record =
        |writer: usize, index: usize| format!("<{writer}:{index}:{}>", "x".repeat(writer * 37 + index));
    let mut answered: Vec<(String, String)> = thread::scope(|scope| {
        let writing: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn(move || {
                    let mut caller = Caller::to(server);
                    let append = |index| {
                        let record = record(writer, index);
                        (caller.append("a", TEXT, &record).next_offset(), record)
                    };
                    (0..APPENDS).map(append).collect::<Vec<_>>()
                })
            })
            .collect();
        writing.into_iter().flat_map(|thread| thread.join().expect("appends succeed")).collect()
    });
    // Each was told the offset behind itself, so their order is that of the stream.
    answered.sort();
    assert!(answered.windows(2).all(|pair| pair[0].0 < pair[1].0), "an offset was given twice");
    let expected: String = answered.into_iter().map(|(_, record)| record).collect();
    assert_eq!(caller.content("a"), expected);
}

fn sequence_lets_one_of_many_concurrent_appends_through(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    for round in 0..10 {
        let value = format!("{round:04}");
        let accepted: usize = thread::scope(|scope| {
            let writing: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| Caller::to(server).post("a", &seq(&value), &value).status))
                .collect();
            let statuses = writing.into_iter().map(|thread| thread.join().expect("there is an answer"));
            statuses.map(|status| usize::from(status == 204)).sum()
        });
        assert_eq!(accepted, 1, "round {round}");
    }
    let expected: String = (0..10).map(|round| format!("{round:04}")).collect();
    assert_eq!(caller.content("a"), expected);
}

#[test]
fn what_the_request_alone_shows_is_refused_whether_or_not_the_stream_exists() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("open", TEXT, "");
    caller.put("closed", &[TEXT, CLOSED], "").expect_status(201);
    let long = "x".repeat(257);
    for stream in ["open", "closed", "absent"] {
        caller.post(stream, &[TEXT], "").expect_refusal("EMPTY_BODY");
        caller.post(stream, &[], "").expect_refusal("EMPTY_BODY");
        caller.post(stream, &[], "x").expect_refusal("BAD_REQUEST");
        caller.post(stream, &[("Content-Type", "")], "x").expect_refusal("BAD_REQUEST");
        caller.post(stream, &[("Content-Type", "text")], "x").expect_refusal("BAD_REQUEST");
        caller.post(stream, &seq(""), "x").expect_refusal("BAD_REQUEST");
        caller.post(stream, &seq(&long), "x").expect_refusal("BAD_REQUEST");
    }
    assert_eq!(caller.content("open"), "");
    caller.post("absent", &[TEXT], "x").expect_refusal("NOT_FOUND");
    caller.assert_absent("absent");
}

#[test]
fn query_of_an_append_means_nothing() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "");
    caller.post("a?offset=bad&offset=&live=what", &[TEXT], "x").expect_status(204);
    assert_eq!(caller.content("a"), "x");
}

#[test]
fn every_response_describes_one_instant() {
    let server = start(&[]);
    Caller::to(&server).create("a", TEXT, "");
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut caller = Caller::to(&server);
            for _ in 0..300 {
                caller.append("a", TEXT, "0123456789");
            }
            caller.post("a", &[TEXT, CLOSED], "the end").expect_status(204);
        });
        let mut reader = Caller::to(&server);
        loop {
            // A request does not wait for ever, so the writer comes to an end in any case.
            let is_last = writer.is_finished();
            let page = reader.get("a", &[]).expect_status(200);
            page.expect_header("Stream-Next-Offset", &offset(page.body.len()));
            page.expect_header("Stream-Up-To-Date", "true");
            let is_closed = page.header("Stream-Closed").is_some();
            assert_eq!(page.text().ends_with("the end"), is_closed, "append and closure came apart");
            let mark = if is_closed { ":c\"" } else { ":t\"" };
            assert!(page.header("ETag").is_some_and(|etag| etag.ends_with(mark)), "{:?}", page.headers);
            if is_last {
                break;
            }
        }
        writer.join().expect("appends succeed");
    });
}
