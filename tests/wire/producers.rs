//! Idempotent producers: `protocol.md` §9.

use std::thread;

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, JSON, Producer, TEXT, in_each_mode, offset, start};
use crate::support::ServerProcess;
use crate::support::http::Response;

in_each_mode!(
    accepted_append_is_answered_200_with_what_was_sent,
    duplicate_is_answered_with_the_last_accepted_number_and_the_tail,
    unknown_producer_begins_at_zero_in_any_epoch,
    gap_is_refused_with_both_numbers,
    stale_epoch_is_fenced,
    raised_epoch_begins_at_zero,
    refused_append_does_not_advance_the_producer,
    producers_and_streams_are_independent,
    duplicate_goes_before_the_sequence,
    numbers_go_up_to_2_to_the_53_minus_1,
    state_ends_with_the_stream,
    one_of_many_concurrent_copies_is_stored,
    duplicate_is_answered_after_the_original_is_durable,
    pipelined_producer_appends_are_taken_in_order,
);

fn append(caller: &mut Caller, stream: &str, producer: &Producer, body: &str) -> Response {
    caller.post(stream, &producer.with(&[TEXT]), body)
}

#[track_caller]
fn accept(caller: &mut Caller, stream: &str, (epoch, seq): (u64, u64), body: &str) -> Response {
    append(caller, stream, &Producer::new("p", epoch, seq), body).expect_status(200)
}

fn accepted_append_is_answered_200_with_what_was_sent(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    for seq in 0..3 {
        let accepted = accept(&mut caller, "a", (4, seq), "abc");
        accepted
            .expect_header("Producer-Epoch", "4")
            .expect_header("Producer-Seq", &seq.to_string())
            .expect_header("Stream-Next-Offset", &offset(3 * (seq as usize + 1)))
            .expect_no_header("Stream-Closed");
        assert_eq!(accepted.body, b"");
    }
    assert_eq!(caller.content("a"), "abcabcabc");
}

fn duplicate_is_answered_with_the_last_accepted_number_and_the_tail(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    for seq in 0..3 {
        accept(&mut caller, "a", (1, seq), "x");
    }
    caller.append("a", TEXT, "y");
    for seq in [0, 1, 2] {
        for body in ["x", "another body"] {
            let duplicate = append(&mut caller, "a", &Producer::new("p", 1, seq), body).expect_status(204);
            duplicate
                .expect_header("Producer-Epoch", "1")
                .expect_header("Producer-Seq", "2")
                .expect_header("Stream-Next-Offset", &offset(4))
                .expect_no_header("Stream-Closed");
        }
    }
    assert_eq!(caller.content("a"), "xxxy");
    accept(&mut caller, "a", (1, 3), "z");
}

fn unknown_producer_begins_at_zero_in_any_epoch(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    for seq in [1, 7, 9_007_199_254_740_991] {
        let refused =
            append(&mut caller, "a", &Producer::new("p", 0, seq), "x").expect_refusal("SEQUENCE_CONFLICT");
        refused
            .expect_header("Producer-Expected-Seq", "0")
            .expect_header("Producer-Received-Seq", &seq.to_string());
    }
    for epoch in [0, 5, 9_007_199_254_740_991] {
        let producer = Producer::new(&format!("p{epoch}"), epoch, 0);
        append(&mut caller, "a", &producer, "y").expect_status(200);
    }
    assert_eq!(caller.content("a"), "yyy");
}

fn gap_is_refused_with_both_numbers(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    accept(&mut caller, "a", (1, 0), "x");
    accept(&mut caller, "a", (1, 1), "x");
    for seq in [3, 100] {
        let refused =
            append(&mut caller, "a", &Producer::new("p", 1, seq), "y").expect_refusal("SEQUENCE_CONFLICT");
        refused
            .expect_header("Producer-Expected-Seq", "2")
            .expect_header("Producer-Received-Seq", &seq.to_string());
    }
    accept(&mut caller, "a", (1, 2), "x");
    assert_eq!(caller.content("a"), "xxx");
}

fn stale_epoch_is_fenced(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    accept(&mut caller, "a", (3, 0), "x");
    for (epoch, seq) in [(2, 0), (2, 1), (0, 0), (0, 5)] {
        let refused = append(&mut caller, "a", &Producer::new("p", epoch, seq), "y");
        refused.expect_refusal("PRODUCER_EPOCH_FENCED").expect_header("Producer-Epoch", "3");
    }
    accept(&mut caller, "a", (3, 1), "x");
    assert_eq!(caller.content("a"), "xx");
}

fn raised_epoch_begins_at_zero(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    accept(&mut caller, "a", (0, 0), "x");
    accept(&mut caller, "a", (0, 1), "x");
    append(&mut caller, "a", &Producer::new("p", 1, 2), "y").expect_refusal("BAD_REQUEST");
    // The refusal did not raise anything.
    accept(&mut caller, "a", (0, 2), "x");
    accept(&mut caller, "a", (9, 0), "x");
    append(&mut caller, "a", &Producer::new("p", 0, 3), "y").expect_refusal("PRODUCER_EPOCH_FENCED");
    let duplicate = append(&mut caller, "a", &Producer::new("p", 9, 0), "y").expect_status(204);
    duplicate.expect_header("Producer-Epoch", "9").expect_header("Producer-Seq", "0");
    accept(&mut caller, "a", (9, 1), "x");
    assert_eq!(caller.content("a"), "xxxxx");
}

fn refused_append_does_not_advance_the_producer(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", JSON, "");
    let first = Producer::new("p", 0, 0);
    caller.post("a", &first.with(&[JSON]), "{").expect_refusal("INVALID_JSON");
    caller.post("a", &first.with(&[JSON]), "[]").expect_refusal("EMPTY_ARRAY");
    caller.post("a", &first.with(&[TEXT]), "1").expect_refusal("CONTENT_TYPE_MISMATCH");
    caller.post("a", &first.with(&[JSON, ("Stream-Seq", "5")]), "1").expect_status(200);
    let next = Producer::new("p", 1, 0);
    caller.post("a", &next.with(&[JSON, ("Stream-Seq", "5")]), "2").expect_refusal("SEQUENCE_CONFLICT");
    caller.post("a", &next.with(&[JSON]), "{").expect_refusal("INVALID_JSON");
    // Epoch 0 is still the current one.
    caller.post("a", &Producer::new("p", 0, 1).with(&[JSON]), "2").expect_status(200);
    assert_eq!(caller.content("a"), "[1,2]");
}

fn producers_and_streams_are_independent(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for stream in ["a", "b"] {
        caller.create(stream, TEXT, "");
        for seq in 0..3 {
            for id in ["p", "P", "p ü", "q"] {
                append(&mut caller, stream, &Producer::new(id, 0, seq), "x").expect_status(200);
            }
            caller.append(stream, TEXT, "y");
        }
        append(&mut caller, stream, &Producer::new("q", 1, 0), "x").expect_status(200);
        append(&mut caller, stream, &Producer::new("p", 0, 3), "x").expect_status(200);
        assert_eq!(caller.content(stream), "xxxxyxxxxyxxxxyxx");
    }
}

fn duplicate_goes_before_the_sequence(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    let with_seq = [TEXT, ("Stream-Seq", "5")];
    let producer = Producer::new("p", 0, 0);
    caller.post("a", &producer.with(&with_seq), "x").expect_status(200);
    caller.post("a", &producer.with(&with_seq), "x").expect_status(204);
    caller.post("a", &producer.with(&[TEXT, ("Stream-Seq", "1")]), "x").expect_status(204);
    caller.post("a", &producer.with(&[TEXT, ("Stream-Seq", "9")]), "x").expect_status(204);
    // The duplicate's sequence was not recorded.
    caller.post("a", &[TEXT, ("Stream-Seq", "6")], "y").expect_status(204);
    assert_eq!(caller.content("a"), "xy");
}

fn numbers_go_up_to_2_to_the_53_minus_1(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    let accepted = append(&mut caller, "a", &Producer::spelled("p", "0009007199254740991", "000"), "x");
    let accepted = accepted.expect_status(200);
    accepted.expect_header("Producer-Epoch", "9007199254740991").expect_header("Producer-Seq", "0");
    let gap = append(&mut caller, "a", &Producer::spelled("p", "9007199254740991", "9007199254740991"), "x");
    gap.expect_refusal("SEQUENCE_CONFLICT").expect_header("Producer-Received-Seq", "9007199254740991");
    let fenced = append(&mut caller, "a", &Producer::new("p", 9_007_199_254_740_990, 0), "x");
    fenced.expect_refusal("PRODUCER_EPOCH_FENCED").expect_header("Producer-Epoch", "9007199254740991");
    accept(&mut caller, "a", (9_007_199_254_740_991, 1), "x");
}

fn state_ends_with_the_stream(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for _ in 0..3 {
        caller.create("a", TEXT, "");
        accept(&mut caller, "a", (7, 0), "x");
        accept(&mut caller, "a", (7, 1), "x");
        caller.delete("a").expect_status(204);
    }
    caller.create("a", TEXT, "");
    append(&mut caller, "a", &Producer::new("p", 7, 2), "x").expect_refusal("SEQUENCE_CONFLICT");
    accept(&mut caller, "a", (0, 0), "x");
}

fn one_of_many_concurrent_copies_is_stored(server: &ServerProcess) {
    const ROUNDS: u64 = 15;
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    for seq in 0..ROUNDS {
        let mut statuses: Vec<u16> = thread::scope(|scope| {
            let sending: Vec<_> = (0..4)
                .map(|copy| {
                    scope.spawn(move || {
                        let body = format!("[{seq:04}{copy}]");
                        let answer = append(&mut Caller::to(server), "a", &Producer::new("p", 0, seq), &body);
                        answer.expect_header("Producer-Seq", &seq.to_string());
                        assert_eq!(answer.next_offset(), offset(7 * (seq as usize + 1)));
                        answer.status
                    })
                })
                .collect();
            sending.into_iter().map(|thread| thread.join().expect("copies are answered")).collect()
        });
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 204, 204, 204]);
    }
    let content = caller.content("a");
    assert_eq!(content.len(), 7 * ROUNDS as usize, "{content}");
    for (seq, record) in content.as_bytes().chunks(7).enumerate() {
        assert!(record.starts_with(format!("[{seq:04}").as_bytes()), "{content}");
    }
}

fn duplicate_is_answered_after_the_original_is_durable(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    for seq in 0..20 {
        thread::scope(|scope| {
            scope.spawn(|| append(&mut Caller::to(server), "a", &Producer::new("p", 0, seq), "x"));
            let answer = append(&mut Caller::to(server), "a", &Producer::new("p", 0, seq), "x");
            // Whichever of the two was first: what it was told is there to be read now.
            let tail = answer.next_offset();
            assert_eq!(tail, offset(seq as usize + 1));
            assert_eq!(Caller::to(server).tail("a"), tail);
        });
    }
}

fn pipelined_producer_appends_are_taken_in_order(server: &ServerProcess) {
    Caller::to(server).create("a", TEXT, "");
    let mut connection = server.origin().connect().expect("the server accepts connections");
    for seq in 0..10 {
        let producer = Producer::new("p", 0, seq);
        let body = format!("{seq},");
        connection
            .send_request("POST", "/v1/stream/a", &producer.with(&[TEXT]), body.as_bytes())
            .expect("the connection stays open");
    }
    for seq in 0..10 {
        let answer = connection.read_response("POST").expect("there is an answer").expect_status(200);
        answer.expect_header("Producer-Seq", &seq.to_string());
    }
    assert_eq!(Caller::to(server).content("a"), "0,1,2,3,4,5,6,7,8,9,");
}

#[test]
fn malformed_producer_headers_are_refused_whether_or_not_the_stream_exists() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("exists", TEXT, "");
    let long = "p".repeat(257);
    for stream in ["exists", "absent"] {
        for number in [
            "",
            "+1",
            "-1",
            "1 1",
            "1.0",
            "1e3",
            "0x1",
            "a",
            "9007199254740992",
            "99999999999999999999999",
            "١",
        ] {
            for producer in [Producer::spelled("p", number, "0"), Producer::spelled("p", "0", number)] {
                let refused = append(&mut caller, stream, &producer, "x");
                assert_eq!(refused.status, 400, "{number:?}");
                refused.expect_refusal("BAD_REQUEST");
            }
        }
        for id in ["", &long] {
            append(&mut caller, stream, &Producer::spelled(id, "0", "0"), "x").expect_refusal("BAD_REQUEST");
        }
        let all = [("Producer-Id", "p"), ("Producer-Epoch", "0"), ("Producer-Seq", "0")];
        for present in 1..7_usize {
            let some = all.iter().enumerate().filter(|(bit, _)| present >> bit & 1 == 1);
            let mut headers: Vec<_> = some.map(|(_, header)| *header).collect();
            caller.post(stream, &[&headers[..], &[TEXT]].concat(), "x").expect_refusal("BAD_REQUEST");
            headers.push(CLOSED);
            caller.post(stream, &headers, "").expect_refusal("BAD_REQUEST");
        }
        // A producer's request, too, has to append or to close.
        let nothing = append(&mut caller, stream, &Producer::new("p", 0, 0), "");
        nothing.expect_refusal("EMPTY_BODY");
    }
    assert_eq!(caller.content("exists"), "");
    assert!(!caller.is_closed("exists"));
    append(&mut caller, "exists", &Producer::new(&long[..256], 0, 0), "x").expect_status(200);
}
