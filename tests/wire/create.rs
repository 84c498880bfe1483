//! PUT, HEAD and DELETE: `protocol.md` §7 and §11.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::contract::Expectations;
use crate::service::{
    CLOSED, Caller, Deadline, JSON, MODES, Producer, TEXT, in_each_mode, offset, path, start,
};
use crate::support::ServerProcess;
use crate::support::ending::RaiseOnDrop;

in_each_mode!(
    created_stream_is_described_in_the_answer,
    stream_without_a_content_type_is_one_of_octets,
    body_of_a_creation_is_the_first_append,
    creation_with_closure_is_final,
    repeated_creation_with_the_same_configuration_confirms,
    creation_with_another_configuration_is_refused,
    creation_after_a_later_close_matches_only_with_closure,
    only_the_word_true_creates_a_closed_stream,
    bad_json_leaves_no_stream,
    lifetimes_are_compared_by_what_they_mean,
    append_headers_mean_nothing_to_a_creation,
    deleted_stream_is_absent,
    recreated_stream_starts_anew,
    head_describes_the_stream,
    one_of_many_concurrent_creations_creates,
    creation_with_content_is_never_seen_half,
    late_appends_never_reach_a_stream_created_anew,
);

fn created_stream_is_described_in_the_answer(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let content_type = "Text/Plain; Charset=\"UTF-8\"";
    let created = caller.put("a/b", &[("Content-Type", content_type)], "").expect_status(201);
    created
        .expect_header("Location", &format!("{}/v1/stream/a/b", server.url()))
        .expect_header("Content-Type", content_type)
        .expect_header("Stream-Next-Offset", &offset(0))
        .expect_no_header("Stream-Closed");
    assert_eq!(created.body, b"");
    caller.get("a/b", &[]).expect_status(200).expect_header("Content-Type", content_type);
}

fn stream_without_a_content_type_is_one_of_octets(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (name, headers) in [("a", &[][..]), ("b", &[("Content-Type", "")])] {
        let created = caller.put(name, headers, "").expect_status(201);
        created.expect_header("Content-Type", "application/octet-stream");
        caller.head(name).expect_header("Content-Type", "application/octet-stream");
        caller.put(name, &[("Content-Type", "Application/Octet-Stream; x=y")], "").expect_status(200);
    }
}

fn body_of_a_creation_is_the_first_append(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "first").expect_header("Stream-Next-Offset", &offset(5));
    caller.append("a", TEXT, " second");
    assert_eq!(caller.content("a"), "first second");
    caller.put("b", &[], [0, 255, 10]).expect_status(201).expect_header("Stream-Next-Offset", &offset(3));
    assert_eq!(caller.get("b", &[]).body, [0, 255, 10]);
}

fn creation_with_closure_is_final(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let created = caller.put("a", &[TEXT, CLOSED], "all").expect_status(201);
    created.expect_header("Stream-Closed", "true").expect_header("Stream-Next-Offset", &offset(3));
    caller.post("a", &[TEXT], "more").expect_refusal("STREAM_CLOSED");
    let page = caller.get("a", &[]).expect_status(200);
    page.expect_header("Stream-Closed", "true");
    assert_eq!(page.text(), "all");
    caller.put("empty", &[TEXT, CLOSED], "").expect_status(201).expect_header("Stream-Closed", "true");
    caller.get("empty", &[]).expect_status(200).expect_header("Stream-Closed", "true");
}

fn repeated_creation_with_the_same_configuration_confirms(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", ("Content-Type", "text/plain; charset=utf-8"), "abc");
    caller.append("a", TEXT, "def");
    for content_type in ["text/plain", "TEXT/plain;charset=latin1", "text/plain; charset=utf-8"] {
        let confirmed = caller.put("a", &[("Content-Type", content_type)], "ignored").expect_status(200);
        confirmed
            .expect_header("Content-Type", "text/plain; charset=utf-8")
            .expect_header("Stream-Next-Offset", &offset(6))
            .expect_no_header("Stream-Closed")
            .expect_no_header("Location");
        assert_eq!(confirmed.body, b"");
    }
    assert_eq!(caller.content("a"), "abcdef");
    caller.create("json", JSON, "[1]");
    caller.put("json", &[JSON], "{not json").expect_status(200);
    assert_eq!(caller.content("json"), "[1]");
}

fn creation_with_another_configuration_is_refused(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("text", TEXT, "abc");
    for headers in [
        &[][..],
        &[JSON],
        &[("Content-Type", "text/html")],
        &[TEXT, CLOSED],
        &[TEXT, ("Stream-TTL", "60")],
        &[TEXT, ("Stream-Expires-At", "2100-01-01T00:00:00Z")],
    ] {
        caller.put("text", headers, "xyz").expect_refusal("ALREADY_EXISTS");
    }
    assert_eq!(caller.content("text"), "abc");
    let head = caller.head("text");
    head.expect_no_header("Stream-Closed")
        .expect_no_header("Stream-TTL")
        .expect_no_header("Stream-Expires-At");
}

fn creation_after_a_later_close_matches_only_with_closure(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "abc");
    caller.post("a", &[CLOSED], "").expect_status(204);
    caller.put("a", &[TEXT], "").expect_refusal("ALREADY_EXISTS");
    let confirmed = caller.put("a", &[TEXT, CLOSED], "ignored").expect_status(200);
    confirmed.expect_header("Stream-Closed", "true").expect_header("Stream-Next-Offset", &offset(3));
}

fn only_the_word_true_creates_a_closed_stream(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (index, value) in ["true", "TRUE", "True", "tRuE"].iter().enumerate() {
        let name = format!("closed-{index}");
        let created = caller.put(&name, &[("Stream-Closed", value)], "").expect_status(201);
        created.expect_header("Stream-Closed", "true");
        assert!(caller.is_closed(&name), "{value:?}");
    }
    for (index, value) in ["yes", "1", "false", "", "truely", "true,true"].iter().enumerate() {
        let name = format!("open-{index}");
        let created = caller.put(&name, &[("Stream-Closed", value)], "").expect_status(201);
        created.expect_no_header("Stream-Closed");
        assert!(!caller.is_closed(&name), "{value:?}");
        caller.put(&name, &[], "").expect_status(200);
    }
}

fn bad_json_leaves_no_stream(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for body in ["{", "[1,]", "[1] [2]", " ", "\u{feff}1"] {
        caller.put("a", &[JSON, CLOSED], body).expect_refusal("INVALID_JSON");
        caller.assert_absent("a");
    }
    caller.create("a", TEXT, "free");
}

fn lifetimes_are_compared_by_what_they_mean(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let ttl = |seconds| [TEXT, ("Stream-TTL", seconds)];
    caller.put("ttl", &ttl("3600"), "").expect_status(201);
    caller.put("ttl", &ttl("3600"), "").expect_status(200);
    caller.put("ttl", &ttl("3601"), "").expect_refusal("ALREADY_EXISTS");
    caller.put("ttl", &[TEXT], "").expect_refusal("ALREADY_EXISTS");
    caller.head("ttl").expect_header("Stream-TTL", "3600").expect_no_header("Stream-Expires-At");

    let expires = |instant| [TEXT, ("Stream-Expires-At", instant)];
    caller.put("at", &expires("2100-01-01T00:00:00Z"), "").expect_status(201);
    caller.put("at", &expires("2100-01-01T00:00:00Z"), "").expect_status(200);
    caller.put("at", &expires("2100-01-01T01:00:00+01:00"), "").expect_status(200);
    caller.put("at", &expires("2099-12-31T18:30:00.000-05:30"), "").expect_status(200);
    caller.put("at", &expires("2100-01-01T00:00:01Z"), "").expect_refusal("ALREADY_EXISTS");
    caller.put("at", &ttl("3600"), "").expect_refusal("ALREADY_EXISTS");
    let head = caller.head("at");
    head.expect_header("Stream-Expires-At", "2100-01-01T00:00:00Z").expect_no_header("Stream-TTL");
}

fn append_headers_mean_nothing_to_a_creation(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let headers = [TEXT, ("Stream-Seq", "5"), ("Producer-Id", "p"), ("Producer-Epoch", "x")];
    let created = caller.put("a", &headers, "abc").expect_status(201);
    created.expect_no_header("Producer-Epoch").expect_no_header("Producer-Seq");
    caller.post("a", &[TEXT, ("Stream-Seq", "1")], "d").expect_status(204);
    caller.post("a", &Producer::new("p", 0, 0).with(&[TEXT]), "e").expect_status(200);
}

fn deleted_stream_is_absent(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.delete("a").expect_refusal("NOT_FOUND");
    caller.create("a", TEXT, "abc");
    caller.delete("a").expect_status(204);
    caller.delete("a").expect_refusal("NOT_FOUND");
    caller.head("a").expect_refusal("NOT_FOUND");
    caller.post("a", &[TEXT], "x").expect_refusal("NOT_FOUND");
    caller.post("a", &[CLOSED], "").expect_refusal("NOT_FOUND");
    for query in ["", "?offset=-1", "?offset=now", "?offset=-1&live=long-poll", "?offset=now&live=sse"] {
        caller.get(&format!("a{query}"), &[]).expect_refusal("NOT_FOUND");
    }
}

fn recreated_stream_starts_anew(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (content_type, body, twice) in
        [(TEXT, "abc", "abcabc"), (JSON, "[1,2]", "[1,2,1,2]"), (TEXT, "xyz", "xyzxyz")]
    {
        let created = caller.create("a", content_type, "");
        created.expect_header("Stream-Next-Offset", &offset(0)).expect_no_header("Stream-Closed");
        let headers = [content_type, ("Stream-Seq", "9")];
        caller.post("a", &Producer::new("p", 7, 0).with(&headers), body).expect_status(200);
        let closing = [content_type, CLOSED, ("Stream-Seq", "91")];
        caller.post("a", &Producer::new("p", 7, 1).with(&closing), body).expect_status(200);
        assert_eq!(caller.content("a"), twice);
        caller.delete("a").expect_status(204);
    }
}

fn head_describes_the_stream(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.put("a", &[TEXT, ("Stream-TTL", "3600")], "abc").expect_status(201);
    for closed in [false, true] {
        let head = caller.head("a").expect_status(200);
        head.expect_header("Content-Type", "text/plain")
            .expect_header("Stream-Next-Offset", &offset(3))
            .expect_header("Stream-TTL", "3600")
            .expect_header("Cache-Control", "no-store")
            .expect_no_header("ETag")
            .expect_no_header("Stream-Cursor");
        assert_eq!(head.header("Stream-Closed").is_some(), closed);
        caller.post("a", &[CLOSED], "").expect_status(204);
    }
    // The query of anything but GET means nothing.
    caller.head("a?offset=bad&offset=&live=what").expect_status(200);
}

fn one_of_many_concurrent_creations_creates(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for round in 0..5 {
        let name = format!("a-{round}");
        let statuses: Vec<u16> = thread::scope(|scope| {
            let creating: Vec<_> = (0..8)
                .map(|writer| {
                    let name = &name;
                    scope
                        .spawn(move || Caller::to(server).put(name, &[TEXT], format!("body {writer}")).status)
                })
                .collect();
            creating.into_iter().map(|thread| thread.join().expect("a request does not panic")).collect()
        });
        assert_eq!(statuses.iter().filter(|&&status| status == 201).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 7, "{statuses:?}");
        let content = caller.content(&name);
        assert!(content.starts_with("body ") && content.len() == 6, "{content}");
    }
}

fn creation_with_content_is_never_seen_half(server: &ServerProcess) {
    let mut writer = Caller::to(server);
    for round in 0..10 {
        let name = format!("a-{round}");
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reader = Caller::to(server);
                let deadline = Deadline::start();
                loop {
                    deadline.check();
                    let page = reader.get(&name, &[]);
                    if page.status == 404 {
                        continue;
                    }
                    assert_eq!(page.text(), "all of it");
                    page.expect_header("Stream-Closed", "true");
                    return;
                }
            });
            writer.put(&name, &[TEXT, CLOSED], "all of it").expect_status(201);
            reader.join().expect("the reader sees all or nothing");
        });
    }
}

fn late_appends_never_reach_a_stream_created_anew(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..3 {
            let is_done = &is_done;
            scope.spawn(move || append_through_recreations(server, writer, is_done));
        }
        let _end = RaiseOnDrop(&is_done);
        for _ in 0..20 {
            caller.create("a", TEXT, "");
            let deadline = Deadline::start();
            let content = loop {
                deadline.check();
                let content = caller.content("a");
                if content.lines().count() >= 6 {
                    break content;
                }
            };
            caller.delete("a").expect_status(204);
            for writer in 0..3 {
                let of_writer = format!("{writer} ");
                let records: Vec<_> =
                    content.lines().filter_map(|line| line.strip_prefix(&of_writer)).collect();
                let Some(start) = records.first().and_then(|first| first.strip_suffix(" 0")) else {
                    assert!(records.is_empty(), "begins in the middle: {records:?}");
                    continue;
                };
                let expected: Vec<_> = (0..records.len()).map(|seq| format!("{start} {seq}")).collect();
                assert_eq!(records, expected);
            }
        }
    });
}

/// Appends with a producer's numbers, and begins anew whenever it learns that the stream is not the one it knew.
fn append_through_recreations(server: &ServerProcess, writer: usize, is_done: &AtomicBool) {
    let mut caller = Caller::to(server);
    let (mut start, mut seq) = (0, 0);
    while !is_done.load(Ordering::Relaxed) {
        let producer = Producer::new(&writer.to_string(), 0, seq);
        let answer = caller.post("a", &producer.with(&[TEXT]), format!("{writer} {start} {seq}\n"));
        match answer.status {
            200 => seq += 1,
            // 204 would be a duplicate: state that outlived its stream.
            404 | 409 => (start, seq) = (start + 1, 0),
            _ => panic!("{answer:?}"),
        }
    }
}

#[test]
fn malformed_headers_are_refused_whether_or_not_the_stream_exists() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("exists", TEXT, "");
    let long = format!("text/{}", "x".repeat(252));
    for (name, value) in [
        ("Content-Type", "text"),
        ("Content-Type", "text/"),
        ("Content-Type", "/plain"),
        ("Content-Type", "te xt/plain"),
        ("Content-Type", "text/plain; charset"),
        ("Content-Type", "text/plain, text/html"),
        ("Content-Type", &long),
        ("Stream-TTL", ""),
        ("Stream-TTL", "01"),
        ("Stream-TTL", "+1"),
        ("Stream-TTL", "-1"),
        ("Stream-TTL", "1.0"),
        ("Stream-TTL", "1e3"),
        ("Stream-TTL", "9007199254740992"),
        ("Stream-TTL", "99999999999999999999999999"),
        ("Stream-Expires-At", ""),
        ("Stream-Expires-At", "tomorrow"),
        ("Stream-Expires-At", "2100-01-01"),
        ("Stream-Expires-At", "2100-01-01T00:00:00"),
        ("Stream-Expires-At", "2100-13-01T00:00:00Z"),
        ("Stream-Expires-At", "4102444800"),
    ] {
        for stream in ["exists", "absent"] {
            let refused = caller.put(stream, &[(name, value)], "abc");
            assert_eq!(refused.status, 400, "{name}: {value}");
            refused.expect_refusal("BAD_REQUEST");
        }
    }
    let both = [("Stream-TTL", "60"), ("Stream-Expires-At", "2100-01-01T00:00:00Z")];
    caller.put("absent", &both, "").expect_refusal("BAD_REQUEST");
    caller.assert_absent("absent");
    caller.create("longest", ("Content-Type", &long[..256]), "");
}

#[test]
fn location_repeats_the_path_as_sent_and_leaves_the_query_out() {
    for mode in MODES {
        let server = crate::service::start_in(mode, &[]);
        let mut caller = Caller::to(&server);
        for name in ["a%2Fb%20c", "%C3%BC", "ü", "a:b@c;d,e!$&'()*+=~", "%41"] {
            let created = caller.put(&format!("{name}?offset=x&y"), &[], "").expect_status(201);
            created.expect_header("Location", &format!("{}{}", server.url(), path(name)));
            caller.delete(name).expect_status(204);
        }
    }
}
