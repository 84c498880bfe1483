//! Limits on what is stored, each at, below and above: `protocol.md` §21, and the keys of `limits`.

use std::thread;
use std::time::{Duration, Instant};

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, JSON, MODES, Producer, TEXT, offset, start, start_in};
use crate::support::http::PATIENCE;

/// Pause between two attempts at what works only after a while.
const POLL: Duration = Duration::from_millis(10);

#[test]
fn streams_above_the_limit_are_refused_until_one_is_deleted() {
    for mode in MODES {
        let server = start_in(mode, &[("DS_LIMITS__MAX_STREAMS", "3")]);
        let mut caller = Caller::to(&server);
        for name in ["a", "b", "c"] {
            caller.create(name, TEXT, "");
        }
        for _ in 0..3 {
            caller.put("d", &[TEXT], "abc").expect_refusal("INSUFFICIENT_STORAGE");
        }
        caller.assert_absent("d");
        // What exists goes on.
        caller.put("a", &[TEXT], "").expect_status(200);
        caller.put("a", &[JSON], "").expect_refusal("ALREADY_EXISTS");
        caller.append("a", TEXT, "x");
        // A creation that is refused for another reason takes no place.
        caller.delete("b").expect_status(204);
        caller.put("d", &[JSON], "{").expect_refusal("INVALID_JSON");
        caller.create("d", TEXT, "");
        caller.put("e", &[TEXT], "").expect_refusal("INSUFFICIENT_STORAGE");
        // Created and deleted often, a stream takes one place.
        for _ in 0..5 {
            caller.delete("d").expect_status(204);
            caller.create("d", TEXT, "");
        }
    }
}

#[test]
fn streams_above_the_limit_are_refused_after_a_restart_too() {
    let mut server = start_in("acid", &[("DS_LIMITS__MAX_STREAMS", "2")]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "");
    caller.create("b", TEXT, "");
    server.terminate();
    server.restart();
    let mut caller = Caller::to(&server);
    caller.put("c", &[TEXT], "").expect_refusal("INSUFFICIENT_STORAGE");
    caller.delete("a").expect_status(204);
    caller.create("c", TEXT, "");
    caller.put("d", &[TEXT], "").expect_refusal("INSUFFICIENT_STORAGE");
}

#[test]
fn memory_is_limited_over_all_streams_and_freed_by_deletion() {
    let server = start(&[("DS_LIMITS__MAX_MEMORY_BYTES", "1000")]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "x".repeat(500));
    caller.create("b", TEXT, "");
    caller.post("b", &[TEXT], "y".repeat(501)).expect_refusal("INSUFFICIENT_STORAGE");
    assert_eq!(caller.tail("b"), offset(0));
    let producer = Producer::new("p", 0, 0);
    let over = producer.with(&[TEXT, CLOSED, ("Stream-Seq", "9")]);
    caller.post("b", &over, "y".repeat(501)).expect_refusal("INSUFFICIENT_STORAGE");
    assert!(!caller.is_closed("b"));
    caller.put("c", &[TEXT], "z".repeat(501)).expect_refusal("INSUFFICIENT_STORAGE");
    caller.assert_absent("c");
    // Neither the number nor the sequence of the refused append was used up.
    let fitting = producer.with(&[TEXT, ("Stream-Seq", "1")]);
    caller.post("b", &fitting, "y".repeat(500)).expect_status(200);
    caller.post("a", &[TEXT], "x").expect_refusal("INSUFFICIENT_STORAGE");
    caller.put("c", &[TEXT], "z").expect_refusal("INSUFFICIENT_STORAGE");
    // What stores no bytes still works.
    caller.create("empty", TEXT, "");
    caller.post("a", &[CLOSED], "").expect_status(204);
    caller.post("b", &fitting, "ignored").expect_status(204);
    assert_eq!(caller.content("b"), "y".repeat(500));
    caller.delete("a").expect_status(204);
    caller.post("b", &[TEXT], "y".repeat(501)).expect_refusal("INSUFFICIENT_STORAGE");
    caller.append("b", TEXT, "y".repeat(500));
    caller.delete("b").expect_status(204);
    for _ in 0..5 {
        caller.create("c", TEXT, "z".repeat(1000));
        caller.put("d", &[TEXT], "z").expect_refusal("INSUFFICIENT_STORAGE");
        caller.delete("c").expect_status(204);
    }
}

#[test]
fn memory_does_not_limit_what_is_kept_on_disk() {
    let mut server = start_in("acid", &[("DS_LIMITS__MAX_MEMORY_BYTES", "10000")]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "");
    let piece = |index: usize| format!("{index:07},").repeat(1000);
    for index in 0..20 {
        caller.append("a", TEXT, piece(index));
    }
    let whole: String = (0..20).map(piece).collect();
    assert_eq!(caller.content("a"), whole);
    caller.create("json", JSON, "");
    for index in 0..50 {
        caller.append("json", JSON, format!("[{}{index}]", "1,".repeat(500)));
    }
    let json: Vec<_> = (0..50).map(|index| format!("{}{index}", "1,".repeat(500))).collect();
    assert_eq!(caller.content("json"), format!("[{}]", json.join(",")));
    server.terminate();
    server.restart();
    let mut caller = Caller::to(&server);
    assert_eq!(caller.content("a"), whole);
    assert_eq!(caller.content("json"), format!("[{}]", json.join(",")));
}

#[test]
fn disk_is_limited_and_reads_go_on() {
    let server = start_in("acid", &[("DS_LIMITS__MAX_DISK_BYTES", "8MiB")]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "");
    let piece = "x".repeat(256 * 1024);
    let (mut appended, mut created) = (0, 0);
    // Room comes back when the journal is trimmed of what is in segments by now. So an append that is refused says nothing
    // about the creation after it; in the end both are.
    let name = loop {
        let answer = caller.post("a", &[TEXT], &piece);
        if answer.status == 204 {
            appended += 1;
        } else {
            answer.expect_refusal("INSUFFICIENT_STORAGE");
            let name = format!("b{created}");
            let answer = caller.put(&name, &[TEXT], &piece);
            if answer.status != 201 {
                answer.expect_refusal("INSUFFICIENT_STORAGE");
                break name;
            }
            created += 1;
        }
        assert!(appended + created < 64, "16 MiB were taken although the limit is 8 MiB");
    };
    assert_eq!(caller.tail("a"), offset(appended * piece.len()));
    caller.get("a", &[]).expect_status(200);
    caller.assert_absent(&name);
}

#[test]
fn a_full_disk_takes_streams_again_after_deletions() {
    let mut server = start_in("acid", &[("DS_LIMITS__MAX_DISK_BYTES", "8MiB")]);
    let piece = "x".repeat(200 * 1024);
    for round in 0..3 {
        let mut caller = Caller::to(&server);
        let names: Vec<_> = (0..64).map(|index| format!("{round}-{index}")).collect();
        let created = names.iter().take_while(|name| {
            let answer = caller.put(name, &[TEXT], &piece);
            if answer.status != 201 {
                answer.expect_refusal("INSUFFICIENT_STORAGE");
                return false;
            }
            true
        });
        let stored = created.count();
        assert!((10..42).contains(&stored), "round {round} took {stored} pieces");
        for name in &names[..stored] {
            assert_eq!(caller.content(name), piece);
        }
        if round == 1 {
            server.terminate();
            server.restart();
            caller = Caller::to(&server);
            assert_eq!(caller.content(&names[0]), piece);
        }
        for name in &names[..stored] {
            caller.delete(name).expect_status(204);
        }
        // The content of removed streams is cleaned up behind the answers.
        let deadline = Instant::now() + PATIENCE;
        while caller.put(&format!("{round}-again"), &[TEXT], piece.repeat(8)).status != 201 {
            assert!(Instant::now() < deadline, "no room after all streams were deleted in round {round}");
            thread::sleep(POLL);
        }
        caller.delete(&format!("{round}-again")).expect_status(204);
    }
}

#[test]
fn stream_above_its_limit_is_refused_whole() {
    for mode in MODES {
        let server = start_in(mode, &[("DS_LIMITS__MAX_STREAM_BYTES", "100")]);
        let mut caller = Caller::to(&server);
        for (size, status) in [(99, 201), (100, 201), (101, 413)] {
            let created = caller.put(&format!("put-{size}"), &[TEXT], "x".repeat(size)).expect_status(status);
            if status == 413 {
                created.expect_refusal("PAYLOAD_TOO_LARGE");
                caller.assert_absent("put-101");
            }
        }
        caller.create("a", TEXT, "x".repeat(90));
        let producer = Producer::new("p", 0, 0);
        let over = producer.with(&[TEXT, CLOSED, ("Stream-Seq", "9")]);
        caller.post("a", &over, "y".repeat(11)).expect_refusal("PAYLOAD_TOO_LARGE");
        assert_eq!(caller.content("a"), "x".repeat(90));
        assert!(!caller.is_closed("a"));
        caller.post("a", &producer.with(&[TEXT, ("Stream-Seq", "1")]), "y".repeat(9)).expect_status(200);
        caller.append("a", TEXT, "z");
        caller.post("a", &[TEXT], "z").expect_refusal("PAYLOAD_TOO_LARGE");
        // Full, it can still be closed, and others are as free as before.
        caller.post("a", &[CLOSED], "").expect_status(204);
        caller.create("b", TEXT, "x".repeat(100));
        // The connection of a refused request stays in use: its body was read.
        let refused = caller.post("b", &[TEXT], "y").expect_refusal("PAYLOAD_TOO_LARGE");
        refused.expect_no_header("Connection");
    }
}

#[test]
fn stream_of_json_is_measured_by_its_offsets() {
    let server = start(&[("DS_LIMITS__MAX_STREAM_BYTES", "10")]);
    let mut caller = Caller::to(&server);
    caller.create("a", JSON, "[1, 2, 3]").expect_header("Stream-Next-Offset", &offset(6));
    caller.post("a", &[JSON], "1234").expect_refusal("PAYLOAD_TOO_LARGE");
    caller.append("a", JSON, "   123   ").expect_header("Stream-Next-Offset", &offset(10));
    assert_eq!(caller.content("a"), "[1,2,3,123]");
}

#[test]
fn memory_mode_limits_streams_to_10_mebibytes_by_default() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    let limit = 10 * 1024 * 1024;
    caller.put("a", &[TEXT], vec![b'x'; limit + 1]).expect_refusal("PAYLOAD_TOO_LARGE");
    caller.create("a", TEXT, vec![b'x'; limit]);
    caller.post("a", &[TEXT], "x").expect_refusal("PAYLOAD_TOO_LARGE");
}

#[test]
fn streams_on_disk_are_not_limited_by_default() {
    let server = start_in("acid", &[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "");
    let piece = vec![b'x'; 4 * 1024 * 1024];
    for _ in 0..3 {
        caller.append("a", TEXT, &piece);
    }
    assert_eq!(caller.tail("a"), offset(3 * piece.len()));
}

#[test]
fn producers_above_the_limit_are_refused() {
    for mode in MODES {
        let server = start_in(mode, &[("DS_LIMITS__MAX_PRODUCERS_PER_STREAM", "2")]);
        let mut caller = Caller::to(&server);
        for stream in ["a", "b"] {
            caller.create(stream, TEXT, "");
            let mut post = |id, epoch, seq, body: &str| {
                caller.post(stream, &Producer::new(id, epoch, seq).with(&[TEXT]), body)
            };
            post("p", 0, 0, "x").expect_status(200);
            post("q", 0, 0, "x").expect_status(200);
            for _ in 0..2 {
                post("r", 0, 0, "y").expect_refusal("PRODUCER_LIMIT");
            }
            // Those that are known go on, in new epochs too.
            post("p", 0, 1, "x").expect_status(200);
            post("q", 1, 0, "x").expect_status(200);
            post("p", 0, 1, "x").expect_status(204);
            let closing = Producer::new("r", 0, 0);
            caller.post(stream, &closing.with(&[CLOSED]), "").expect_refusal("PRODUCER_LIMIT");
            caller.append(stream, TEXT, "z");
            assert_eq!(caller.content(stream), "xxxxz");
            assert!(!caller.is_closed(stream));
        }
    }
}
