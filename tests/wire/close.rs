//! Closing: `protocol.md` §10.

use std::thread;

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, Deadline, JSON, Producer, TEXT, in_each_mode, offset};
use crate::support::ServerProcess;

in_each_mode!(
    close_only_is_final_and_may_be_repeated,
    append_and_close_are_one_step,
    only_the_word_true_closes,
    closing_without_a_body_needs_no_content_type,
    closing_tuple_is_recognised_whatever_its_body,
    other_tuples_are_refused_after_closure,
    close_only_by_a_producer_consumes_its_number,
    closure_without_a_producer_recognises_no_tuple,
    closing_with_a_duplicate_closes_nothing,
    closed_stream_can_be_read_and_deleted,
    one_of_many_concurrent_closing_appends_is_last,
    nothing_gets_behind_a_closure,
    append_with_closure_is_never_seen_half,
);

fn close_only_is_final_and_may_be_repeated(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "abc");
    for _ in 0..3 {
        let closed = caller.post("a", &[CLOSED], "").expect_status(204);
        closed.expect_header("Stream-Closed", "true").expect_header("Stream-Next-Offset", &offset(3));
        closed.expect_no_header("Producer-Epoch").expect_no_header("Producer-Seq");
    }
    for headers in [&[TEXT][..], &[TEXT, CLOSED]] {
        let refused = caller.post("a", headers, "x").expect_refusal("STREAM_CLOSED");
        refused.expect_header("Stream-Next-Offset", &offset(3));
    }
    assert_eq!(caller.content("a"), "abc");
}

fn append_and_close_are_one_step(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "abc");
    let closed = caller.post("a", &[TEXT, CLOSED], "def").expect_status(204);
    closed.expect_header("Stream-Closed", "true").expect_header("Stream-Next-Offset", &offset(6));
    caller.post("a", &[TEXT, CLOSED], "def").expect_refusal("STREAM_CLOSED");
    assert_eq!(caller.content("a"), "abcdef");
    // Refused as an append, it does not close either.
    caller.create("b", TEXT, "");
    caller.post("b", &[JSON, CLOSED], "1").expect_refusal("CONTENT_TYPE_MISMATCH");
    caller
        .post("b", &Producer::new("p", 0, 4).with(&[TEXT, CLOSED]), "x")
        .expect_refusal("SEQUENCE_CONFLICT");
    assert!(!caller.is_closed("b"));
}

fn only_the_word_true_closes(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (index, value) in ["true", "TRUE", "True", "tRuE"].iter().enumerate() {
        let name = format!("a-{index}");
        caller.create(&name, TEXT, "");
        let closed = caller.post(&name, &[("Stream-Closed", value)], "").expect_status(204);
        closed.expect_header("Stream-Closed", "true");
        assert!(caller.is_closed(&name), "{value:?}");
    }
    caller.create("b", TEXT, "");
    for value in ["yes", "1", "false", "", "t", "true,true"] {
        let headers = [TEXT, ("Stream-Closed", value)];
        caller.post("b", &headers, "").expect_refusal("EMPTY_BODY");
        caller.post("b", &headers, "x").expect_status(204).expect_no_header("Stream-Closed");
        assert!(!caller.is_closed("b"), "{value:?}");
    }
    assert_eq!(caller.content("b"), "xxxxxx");
    // One line with `true` is enough.
    caller.post("b", &[("Stream-Closed", "no"), CLOSED], "").expect_status(204);
    assert!(caller.is_closed("b"));
}

fn closing_without_a_body_needs_no_content_type(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (index, content_type) in ["", "text/html", "application/json", "not a type"].iter().enumerate() {
        let name = format!("a-{index}");
        caller.create(&name, TEXT, "");
        let headers = [CLOSED, ("Content-Type", content_type)];
        caller.post(&name, &headers, "").expect_status(204).expect_header("Stream-Closed", "true");
        caller.post(&name, &headers, "").expect_status(204);
    }
}

fn closing_tuple_is_recognised_whatever_its_body(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    caller.post("a", &Producer::new("p", 2, 0).with(&[TEXT]), "abc").expect_status(200);
    let closing = Producer::new("p", 2, 1);
    let closed = caller.post("a", &closing.with(&[TEXT, CLOSED]), "def").expect_status(200);
    closed
        .expect_header("Stream-Closed", "true")
        .expect_header("Stream-Next-Offset", &offset(6))
        .expect_header("Producer-Epoch", "2")
        .expect_header("Producer-Seq", "1");
    for (headers, body) in [
        (&[TEXT, CLOSED][..], "def"),
        (&[TEXT, CLOSED], "another body"),
        (&[TEXT], "def"),
        (&[JSON, CLOSED], "{"),
        (&[CLOSED], ""),
        (&[TEXT, CLOSED, ("Stream-Seq", "x")], "def"),
    ] {
        let repeated = caller.post("a", &closing.with(headers), body).expect_status(204);
        repeated
            .expect_header("Stream-Closed", "true")
            .expect_header("Stream-Next-Offset", &offset(6))
            .expect_header("Producer-Epoch", "2")
            .expect_header("Producer-Seq", "1");
    }
    // Nobody in particular may close again, too.
    caller.post("a", &[CLOSED], "").expect_status(204);
    assert_eq!(caller.content("a"), "abcdef");
}

fn other_tuples_are_refused_after_closure(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    caller.post("a", &Producer::new("p", 2, 0).with(&[TEXT]), "x").expect_status(200);
    caller.post("a", &Producer::new("q", 2, 0).with(&[TEXT]), "y").expect_status(200);
    caller.post("a", &Producer::new("p", 2, 1).with(&[TEXT, CLOSED]), "z").expect_status(200);
    for (id, epoch, seq) in [
        ("p", 2, 0),
        ("p", 2, 2),
        ("p", 1, 0),
        ("p", 3, 0),
        ("q", 2, 0),
        ("q", 2, 1),
        ("r", 0, 0),
        ("P", 2, 1),
    ] {
        let other = Producer::new(id, epoch, seq);
        for (headers, body) in [(&[TEXT][..], "x"), (&[TEXT, CLOSED], "x"), (&[CLOSED], "")] {
            let refused = caller.post("a", &other.with(headers), body).expect_refusal("STREAM_CLOSED");
            refused.expect_header("Stream-Next-Offset", &offset(3));
        }
    }
    assert_eq!(caller.content("a"), "xyz");
}

fn close_only_by_a_producer_consumes_its_number(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    caller.post("a", &Producer::new("p", 0, 0).with(&[TEXT]), "x").expect_status(200);
    caller.post("a", &Producer::new("p", 0, 2).with(&[CLOSED]), "").expect_refusal("SEQUENCE_CONFLICT");
    caller.post("a", &Producer::new("p", 1, 1).with(&[CLOSED]), "").expect_refusal("BAD_REQUEST");
    assert!(!caller.is_closed("a"));
    let closing = Producer::new("p", 0, 1);
    for _ in 0..2 {
        let closed = caller.post("a", &closing.with(&[CLOSED]), "").expect_status(204);
        closed
            .expect_header("Stream-Closed", "true")
            .expect_header("Stream-Next-Offset", &offset(1))
            .expect_header("Producer-Epoch", "0")
            .expect_header("Producer-Seq", "1");
    }
    caller.post("a", &Producer::new("p", 0, 2).with(&[CLOSED]), "").expect_refusal("STREAM_CLOSED");
    caller.post("a", &Producer::new("p", 0, 0).with(&[CLOSED]), "").expect_refusal("STREAM_CLOSED");
    caller.post("a", &closing.with(&[TEXT]), "x").expect_status(204);
    assert_eq!(caller.content("a"), "x");
}

fn closure_without_a_producer_recognises_no_tuple(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    let producer = Producer::new("p", 0, 0);
    caller.post("a", &producer.with(&[TEXT]), "x").expect_status(200);
    caller.post("a", &[CLOSED], "").expect_status(204);
    for headers in [&[TEXT][..], &[TEXT, CLOSED]] {
        caller.post("a", &producer.with(headers), "x").expect_refusal("STREAM_CLOSED");
    }
    caller.put("b", &[TEXT, CLOSED], "x").expect_status(201);
    caller.post("b", &producer.with(&[CLOSED]), "").expect_refusal("STREAM_CLOSED");
}

fn closing_with_a_duplicate_closes_nothing(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    caller.post("a", &Producer::new("p", 0, 0).with(&[TEXT]), "x").expect_status(200);
    caller.post("a", &Producer::new("p", 0, 1).with(&[TEXT]), "y").expect_status(200);
    for (headers, body) in [(&[CLOSED][..], ""), (&[TEXT, CLOSED], "y")] {
        for seq in [0, 1] {
            let duplicate = caller.post("a", &Producer::new("p", 0, seq).with(headers), body);
            let duplicate = duplicate.expect_status(204);
            duplicate
                .expect_no_header("Stream-Closed")
                .expect_header("Stream-Next-Offset", &offset(2))
                .expect_header("Producer-Seq", "1");
            assert!(!caller.is_closed("a"));
        }
    }
    caller.post("a", &Producer::new("p", 0, 2).with(&[TEXT]), "z").expect_status(200);
    assert_eq!(caller.content("a"), "xyz");
}

fn closed_stream_can_be_read_and_deleted(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", JSON, "[1,2]");
    caller.post("a", &[JSON, CLOSED], "3").expect_status(204);
    let whole = caller.get("a", &[]).expect_status(200);
    assert_eq!(whole.text(), "[1,2,3]");
    whole.expect_header("Stream-Closed", "true").expect_header("Stream-Up-To-Date", "true");
    let end = whole.next_offset();
    for query in [format!("a?offset={end}"), "a?offset=now".to_owned()] {
        let at_end = caller.get(&query, &[]).expect_status(200);
        assert_eq!(at_end.text(), "[]");
        at_end
            .expect_header("Stream-Closed", "true")
            .expect_header("Stream-Up-To-Date", "true")
            .expect_header("Stream-Next-Offset", &end);
    }
    caller.delete("a").expect_status(204);
    caller.create("a", JSON, "");
    assert!(!caller.is_closed("a"));
}

fn one_of_many_concurrent_closing_appends_is_last(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for round in 0..8 {
        let name = format!("a-{round}");
        caller.create(&name, TEXT, "");
        let answered: Vec<u16> = thread::scope(|scope| {
            let closing: Vec<_> = (0..6)
                .map(|writer| {
                    let name = &name;
                    let body = format!("<{writer}>");
                    scope.spawn(move || Caller::to(server).post(name, &[TEXT, CLOSED], body).status)
                })
                .collect();
            closing.into_iter().map(|thread| thread.join().expect("there is an answer")).collect()
        });
        let winners: Vec<_> = (0..6).filter(|&writer| answered[writer] == 204).collect();
        assert_eq!(winners.len(), 1, "{answered:?}");
        assert!(answered.iter().all(|status| matches!(status, 204 | 409)), "{answered:?}");
        assert_eq!(caller.content(&name), format!("<{}>", winners[0]));
    }
}

fn nothing_gets_behind_a_closure(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for round in 0..8 {
        let name = format!("a-{round}");
        caller.create(&name, TEXT, "");
        let (mut stored, end) = thread::scope(|scope| {
            let writing: Vec<_> = (0..4)
                .map(|writer| {
                    let name = &name;
                    scope.spawn(move || append_until_closed(server, name, writer))
                })
                .collect();
            let closed = Caller::to(server).post(&name, &[CLOSED], "").expect_status(204);
            let stored: Vec<_> =
                writing.into_iter().flat_map(|thread| thread.join().expect("appends are answered")).collect();
            (stored, closed.next_offset())
        });
        // Every append that was acknowledged is there, and no other; the answers tell their order.
        stored.sort();
        let expected: String = stored.iter().map(|(_, record)| record.as_str()).collect();
        assert_eq!(caller.content(&name), expected);
        assert_eq!(caller.tail(&name), end);
        assert!(stored.iter().all(|(offset, _)| *offset <= end));
    }
}

/// Appends until the stream is closed; returns what was acknowledged with the offset behind it.
fn append_until_closed(server: &ServerProcess, name: &str, writer: usize) -> Vec<(String, String)> {
    let mut caller = Caller::to(server);
    let mut stored = Vec::new();
    let deadline = Deadline::start();
    loop {
        deadline.check();
        let record = format!("<{writer}:{}>", stored.len());
        let answer = caller.post(name, &[TEXT], &record);
        if answer.status != 204 {
            answer.expect_refusal("STREAM_CLOSED");
            return stored;
        }
        stored.push((answer.next_offset(), record));
    }
}

fn append_with_closure_is_never_seen_half(server: &ServerProcess) {
    let mut writer = Caller::to(server);
    for round in 0..10 {
        let name = format!("a-{round}");
        writer.create(&name, TEXT, "");
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reader = Caller::to(server);
                let deadline = Deadline::start();
                loop {
                    deadline.check();
                    let page = reader.get(&name, &[]).expect_status(200);
                    match (page.text(), page.header("Stream-Closed")) {
                        ("", None) => {}
                        ("last", Some("true")) => return,
                        other => panic!("half of a step was seen: {other:?}"),
                    }
                }
            });
            writer.post(&name, &[TEXT, CLOSED], "last").expect_status(204);
            reader.join().expect("the reader sees all or nothing");
        });
    }
}
