//! Retention: `protocol.md` §17 and `docs/extensions.md`. By size here; by age, on a clock that is driven, in
//! `tests/lifetimes`.

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, JSON, Producer, TEXT, in_each_mode, offset, path, start_in};
use crate::support::ServerProcess;
use crate::support::sse::EventStream;

const MAX_AGE: &str = "Stream-Retention-Max-Age";
const MAX_BYTES: &str = "Stream-Retention-Max-Bytes";
const EARLIEST: &str = "Stream-Earliest-Offset";
/// Of so few bytes each append is a unit of its own.
const TEN: (&str, &str) = (MAX_BYTES, "10");

in_each_mode!(
    limits_are_positive_plain_numbers_that_are_sent_once,
    limits_are_part_of_the_configuration_and_shown_by_head,
    what_is_beyond_the_limit_is_gone_in_all_modes_of_reading,
    a_stream_without_limits_is_as_ever,
    at_least_as_much_as_the_limit_stays_however_large_the_appends_are,
    json_is_cut_between_messages,
    everything_but_the_content_stays,
    a_tag_of_what_is_gone_is_not_confirmed,
    the_start_of_a_stream_with_limits_is_not_kept_by_caches,
    a_live_reader_gets_what_comes_after_a_cut,
    a_fork_begins_where_its_source_did,
    a_fork_reads_what_its_source_has_cut_since,
    limits_are_not_inherited_by_forks,
    a_fork_with_limits_of_its_own_gives_up_what_it_inherited,
);

fn earliest(caller: &mut Caller, name: &str) -> Option<String> {
    caller.head(name).expect_status(200).header(EARLIEST).map(str::to_owned)
}

fn etag(caller: &mut Caller, query: &str) -> String {
    caller.get(query, &[]).expect_status(200).header("ETag").expect("a page has a tag").to_owned()
}

fn events(server: &ServerProcess, query: &str) -> EventStream {
    let opened = EventStream::open(server.origin(), &path(query), &[]).expect("the server answers");
    opened.expect("the stream can be read")
}

/// A stream of these appends, of which the last ten bytes are kept.
fn create(caller: &mut Caller, name: &str, appends: &[&str]) {
    caller.put(name, &[TEXT, TEN], "").expect_status(201);
    for append in appends {
        caller.append(name, TEXT, append);
    }
}

fn limits_are_positive_plain_numbers_that_are_sent_once(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for header in [MAX_AGE, MAX_BYTES] {
        for value in ["", "0", "01", "+1", "-1", "1.5", "1e3", "9007199254740992", "1MiB", "a"] {
            let refused = caller.put("a", &[TEXT, (header, value)], "").expect_status(400);
            assert!(refused.text().contains("\"BAD_REQUEST\""), "{header}: {value}");
        }
        caller.put("a", &[TEXT, (header, "1"), (header, "1")], "").expect_status(400);
        caller.assert_absent("a");
        caller.put("a", &[TEXT, (header, "9007199254740991")], "").expect_status(201);
        caller.delete("a").expect_status(204);
    }
}

fn limits_are_part_of_the_configuration_and_shown_by_head(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let age = (MAX_AGE, "3600");
    for (name, own, others) in [
        (
            "both",
            &[age, TEN][..],
            &[&[][..], &[age], &[TEN], &[age, (MAX_BYTES, "11")], &[(MAX_AGE, "1"), TEN]][..],
        ),
        ("age", &[age], &[&[], &[TEN], &[age, TEN]]),
        ("bytes", &[TEN], &[&[], &[age], &[age, TEN]]),
        ("none", &[], &[&[age], &[TEN]]),
    ] {
        caller.put(name, &[&[TEXT], own].concat(), "").expect_status(201);
        let shown = caller.head(name).expect_status(200);
        for header in [MAX_AGE, MAX_BYTES] {
            let value = own.iter().find(|(name, _)| *name == header).map(|(_, value)| *value);
            assert_eq!(shown.header(header), value, "{name}");
        }
        shown.expect_no_header(EARLIEST);
        caller.put(name, &[&[TEXT], own].concat(), "").expect_status(200);
        for other in others {
            let refused = caller.put(name, &[&[TEXT], *other].concat(), "").expect_status(409);
            assert!(refused.text().contains("\"ALREADY_EXISTS\""), "{name}: {other:?}");
        }
    }
}

fn what_is_beyond_the_limit_is_gone_in_all_modes_of_reading(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    create(&mut caller, "a", &["abcde", "fghij", "klmno", "pq"]);
    assert_eq!(earliest(&mut caller, "a").as_deref(), Some(&*offset(5)));
    for query in ["a", "a?offset=-1", &format!("a?offset={}", offset(5)), "a?offset=-1&live=long-poll"] {
        let page = caller.get(query, &[]).expect_status(200);
        assert_eq!(page.text(), "fghijklmnopq", "{query}");
        page.expect_header("Stream-Next-Offset", &offset(17)).expect_header("Stream-Up-To-Date", "true");
    }
    assert_eq!(caller.get(&format!("a?offset={}", offset(7)), &[]).expect_status(200).text(), "hijklmnopq");
    for position in [0, 1, 4] {
        for live in ["", "&live=long-poll", "&live=sse"] {
            let query = format!("a?offset={}{live}", offset(position));
            let gone = caller.get(&query, &[]).expect_status(410);
            gone.expect_header(EARLIEST, &offset(5))
                .expect_header("Content-Type", "application/problem+json")
                .expect_header("Cache-Control", "no-store")
                .expect_no_header("Stream-Next-Offset");
            assert!(gone.text().contains("\"code\":\"OFFSET_GONE\""), "{query}: {}", gone.text());
            assert!(gone.text().contains("\"type\":\"/errors/offset-gone\""), "{query}: {}", gone.text());
        }
    }
    caller.get(&format!("a?offset={}", offset(18)), &[]).expect_status(400);
    let mut events = events(server, "a?offset=-1&live=sse");
    assert_eq!(events.next_message().expect("it goes on"), Some(("data".into(), "fghijklmnopq".into())));
}

fn a_stream_without_limits_is_as_ever(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "abc");
    for append in ["defghij", "klmnopqrst", "u"] {
        caller.append("a", TEXT, append);
    }
    let shown = caller.head("a").expect_status(200);
    shown.expect_no_header(EARLIEST).expect_no_header(MAX_AGE).expect_no_header(MAX_BYTES);
    assert_eq!(caller.content("a"), "abcdefghijklmnopqrstu");
}

fn at_least_as_much_as_the_limit_stays_however_large_the_appends_are(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.put("a", &[TEXT, (MAX_BYTES, "3200")], "").expect_status(201);
    let mut content = String::new();
    for round in 0..400_usize {
        let append = format!("{round:03}").repeat(1 + round * 37 % 80);
        caller.append("a", TEXT, &append);
        content.push_str(&append);
        if round % 20 == 19 {
            let page = caller.content("a");
            assert!(content.ends_with(&page));
            assert!(page.len() >= content.len().min(3200), "{} of {}", page.len(), content.len());
            // A 32nd part and one append more, at most.
            assert!(page.len() < 3200 + 100 + 240, "{}", page.len());
        }
    }
    // An append that is larger than the limit is there as a whole.
    let large = "x".repeat(100_000);
    caller.append("a", TEXT, &large);
    assert_eq!(caller.content("a"), large);
    caller.append("a", TEXT, "y");
    assert_eq!(caller.content("a"), large + "y");
}

fn json_is_cut_between_messages(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.put("j", &[JSON, TEN], "[1,2,[3]]").expect_status(201);
    caller.append("j", JSON, r#"{"k":"a,b]"}"#);
    assert_eq!(caller.content("j"), r#"[{"k":"a,b]"}]"#);
    assert_eq!(earliest(&mut caller, "j").as_deref(), Some(&*offset(8)));
    caller.append("j", JSON, "[4,5]");
    assert_eq!(caller.content("j"), r#"[{"k":"a,b]"},4,5]"#);
    caller.get(&format!("j?offset={}", offset(2)), &[]).expect_status(410);
    caller.get(&format!("j?offset={}", offset(9)), &[]).expect_status(400);
    // What is gone is not looked at: nobody knows any more whether it was a position.
    caller.get(&format!("j?offset={}", offset(1)), &[]).expect_status(410);
}

fn everything_but_the_content_stays(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.put("a", &[TEXT, TEN], "").expect_status(201);
    for seq in 0..5 {
        let number = format!("{seq}");
        let producer = Producer::new("p", 3, seq);
        let headers = producer.with(&[TEXT, ("Stream-Seq", &number)]);
        caller.post("a", &headers, "abcdefghij").expect_status(200);
    }
    let again = caller.post("a", &Producer::new("p", 3, 0).with(&[TEXT]), "abcdefghij").expect_status(204);
    again.expect_header("Producer-Seq", "4").expect_header("Stream-Next-Offset", &offset(50));
    caller.post("a", &[TEXT, ("Stream-Seq", "4")], "x").expect_status(409);
    caller.post("a", &Producer::new("p", 2, 0).with(&[TEXT]), "x").expect_status(403);
    caller.post("a", &[CLOSED], "").expect_status(204);
    let page = caller.get("a", &[]).expect_status(200);
    page.expect_header("Stream-Closed", "true").expect_header("Stream-Next-Offset", &offset(50));
    assert_eq!(page.text(), "abcdefghij");
    caller.post("a", &[TEXT], "x").expect_status(409).expect_header("Stream-Next-Offset", &offset(50));
    caller.get(&format!("a?offset={}&live=long-poll", offset(0)), &[]).expect_status(410);
    caller.delete("a").expect_status(204);
    caller.assert_absent("a");
}

fn a_tag_of_what_is_gone_is_not_confirmed(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    create(&mut caller, "a", &["abcde", "fgh"]);
    let from_zero = format!("a?offset={}", offset(0));
    let tag = etag(&mut caller, &from_zero);
    for query in ["a", &from_zero] {
        caller.get(query, &[("If-None-Match", &tag)]).expect_status(304);
    }
    // Without a cut of its own a tail that is as it was is known by its tag, with one it is not.
    caller.append("a", TEXT, "ijklmnopqr");
    let present = etag(&mut caller, "a");
    assert_ne!(present, tag);
    caller.get("a", &[("If-None-Match", &present)]).expect_status(304);
    for tag in [&*tag, &*present, "*"] {
        caller.get(&from_zero, &[("If-None-Match", tag)]).expect_status(410);
    }
    let made_up = present.replacen(":8:", ":0:", 1);
    assert_ne!(made_up, present);
    caller.get("a", &[("If-None-Match", &made_up)]).expect_status(200);
    caller.get(&from_zero, &[("If-None-Match", &made_up)]).expect_status(410);
}

fn the_start_of_a_stream_with_limits_is_not_kept_by_caches(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    create(&mut caller, "bytes", &["abcde"]);
    caller.put("aged", &[TEXT, (MAX_AGE, "64")], "abcde").expect_status(201);
    caller.put("short", &[TEXT, (MAX_AGE, "31")], "abcde").expect_status(201);
    for (name, from_position) in [
        ("bytes", "public, max-age=60, stale-while-revalidate=300"),
        // A 32nd part of its age.
        ("aged", "public, max-age=2"),
        ("short", "no-store"),
    ] {
        for query in
            [name.to_owned(), format!("{name}?offset=-1"), format!("{name}?offset=-1&live=long-poll")]
        {
            let page = caller.get(&query, &[]).expect_status(200);
            page.expect_header("Cache-Control", "no-store");
            let tag = page.header("ETag").expect("it has a tag all the same").to_owned();
            if !query.ends_with("poll") {
                let unchanged = caller.get(&query, &[("If-None-Match", &tag)]).expect_status(304);
                unchanged.expect_header("Cache-Control", "no-store");
            }
        }
        let page = caller.get(&format!("{name}?offset={}", offset(2)), &[]).expect_status(200);
        page.expect_header("Cache-Control", from_position);
    }
}

fn a_live_reader_gets_what_comes_after_a_cut(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    create(&mut caller, "a", &["abcde"]);
    let mut events = events(server, "a?offset=-1&live=sse");
    let mut content = String::new();
    let mut read_to = |events: &mut EventStream, len: usize| {
        while content.len() < len {
            if let Some((kind, data)) = events.next_message().expect("it goes on")
                && kind == "data"
            {
                content.push_str(&data);
            }
        }
    };
    let mut sent = String::from("abcde");
    for round in 0..50 {
        let append = format!("{round:07}");
        caller.append("a", TEXT, &append);
        sent.push_str(&append);
        read_to(&mut events, sent.len());
    }
    assert_eq!(content, sent, "one that keeps up misses nothing");
    // One that comes back with an old offset is told.
    let query = format!("a?offset={}&live=sse", offset(5));
    caller.get(&query, &[]).expect_status(410).expect_header(EARLIEST, &offset(341));
}

fn fork<'a>(source: &'a str, others: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [&[("Stream-Forked-From", source)], others].concat()
}

fn a_fork_begins_where_its_source_did(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let source = path("source");
    create(&mut caller, "source", &["abcde", "fghij", "klmno", "pq"]);
    for (name, anchor, content) in [
        ("tail", None, "fghijklmnopq"),
        ("start", Some("-1".to_owned()), ""),
        ("earliest", Some(offset(5)), ""),
        ("between", Some(offset(8)), "fgh"),
    ] {
        let mut headers = fork(&source, &[]);
        headers.extend(anchor.as_deref().map(|anchor| ("Stream-Fork-Offset", anchor)));
        caller.put(name, &headers, "own").expect_status(201);
        assert_eq!(caller.content(name), format!("{content}own"), "{name}");
        assert_eq!(earliest(&mut caller, name), Some(offset(5)));
        caller
            .get(&format!("{name}?offset={}", offset(4)), &[])
            .expect_status(410)
            .expect_header(EARLIEST, &offset(5));
        caller.put(name, &headers, "").expect_status(200);
    }
    for position in [0, 4] {
        let anchor = offset(position);
        let gone =
            caller.put("late", &fork(&source, &[("Stream-Fork-Offset", &anchor)]), "").expect_status(410);
        gone.expect_header(EARLIEST, &offset(5));
        assert!(gone.text().contains("\"code\":\"OFFSET_GONE\""));
        caller.assert_absent("late");
    }
    // What a sub-offset is added to has to be there, whatever comes of it.
    let anchor = offset(4);
    let headers = fork(&source, &[("Stream-Fork-Offset", &*anchor), ("Stream-Fork-Sub-Offset", "3")]);
    caller.put("late", &headers, "").expect_status(410);
    // The start was another one then.
    caller.append("source", TEXT, "0123456789");
    caller.put("start", &fork(&source, &[("Stream-Fork-Offset", "-1")]), "").expect_status(200);
    caller.put("between", &fork(&source, &[("Stream-Fork-Offset", "-1")]), "").expect_status(409);
}

fn a_fork_reads_what_its_source_has_cut_since(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let (source, child) = (path("source"), path("child"));
    create(&mut caller, "source", &["abcde", "fghij"]);
    caller.put("child", &fork(&source, &[]), "-child").expect_status(201);
    caller.put("grandchild", &fork(&child, &[]), "-grandchild").expect_status(201);
    for _ in 0..20 {
        caller.append("source", TEXT, "0123456789");
    }
    assert_eq!(caller.content("source"), "0123456789");
    assert_eq!(caller.content("child"), "abcdefghij-child");
    assert_eq!(caller.content("grandchild"), "abcdefghij-child-grandchild");
    assert_eq!(
        caller.get(&format!("grandchild?offset={}", offset(3)), &[]).text(),
        "defghij-child-grandchild"
    );
    caller.put("late", &fork(&source, &[("Stream-Fork-Offset", &offset(3))]), "").expect_status(410);
    // One that is made now does not begin before its source, whatever others still pin.
    caller.put("late", &fork(&source, &[]), "").expect_status(201);
    assert_eq!(caller.content("late"), "0123456789");
    caller.delete("source").expect_status(204);
    assert_eq!(caller.content("child"), "abcdefghij-child");
    caller.delete("child").expect_status(204);
    assert_eq!(caller.content("grandchild"), "abcdefghij-child-grandchild");
}

fn limits_are_not_inherited_by_forks(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let source = path("source");
    create(&mut caller, "source", &["abcde", "fghij"]);
    caller.put("fork", &fork(&source, &[]), "").expect_status(201);
    for _ in 0..5 {
        caller.append("fork", TEXT, "0123456789");
    }
    assert_eq!(caller.content("fork").len(), 60);
    caller.head("fork").expect_status(200).expect_no_header(MAX_BYTES).expect_no_header(EARLIEST);
    caller.put("fork", &fork(&source, &[TEN]), "").expect_status(409);
}

fn a_fork_with_limits_of_its_own_gives_up_what_it_inherited(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let (source, child) = (path("source"), path("child"));
    caller.create("source", TEXT, "abcdefghijklmnopqrst");
    caller.put("child", &fork(&source, &[TEN]), "0123").expect_status(201);
    assert_eq!(
        caller.content("child"),
        "abcdefghijklmnopqrst0123",
        "what is inherited stays or goes as a whole"
    );
    caller.append("child", TEXT, "456789");
    assert_eq!(caller.content("child"), "0123456789");
    assert_eq!(earliest(&mut caller, "child"), Some(offset(20)));
    caller.put("grandchild", &fork(&child, &[("Stream-Fork-Offset", &offset(10))]), "").expect_status(410);
    caller.put("grandchild", &fork(&child, &[("Stream-Fork-Offset", &offset(22))]), "").expect_status(201);
    for _ in 0..3 {
        caller.append("child", TEXT, "0123456789");
    }
    assert_eq!(caller.content("grandchild"), "01");
    assert_eq!(caller.content("source"), "abcdefghijklmnopqrst");
    caller.put("child", &fork(&source, &[TEN]), "").expect_status(200);
    caller.put("child", &fork(&source, &[]), "").expect_status(409);
}

#[test]
fn configured_limits_hold_where_none_is_asked_for() {
    for mode in ["memory", "acid"] {
        let mut server =
            start_in(mode, &[("DS_RETENTION__MAX_BYTES", "10"), ("DS_RETENTION__MAX_AGE_SECS", "86400")]);
        let mut caller = Caller::to(&server);
        create(&mut caller, "asked", &[]);
        caller.put("plain", &[TEXT], "abcde").expect_status(201);
        caller.append("plain", TEXT, "fghijklmno");
        assert_eq!(caller.content("plain"), "fghijklmno");
        let shown = caller.head("plain").expect_status(200);
        shown.expect_header(MAX_BYTES, "10").expect_header(MAX_AGE, "86400");
        caller.put("plain", &[TEXT], "").expect_status(200);
        caller.put("plain", &[TEXT, TEN], "").expect_status(200);
        caller.put("plain", &[TEXT, (MAX_BYTES, "11")], "").expect_status(409);
        let fork = [("Stream-Forked-From", &*path("plain"))];
        caller.put("fork", &fork, "").expect_status(201).expect_no_header(MAX_BYTES);
        caller.head("fork").expect_status(200).expect_header(MAX_BYTES, "10");
        caller.put("fork", &fork, "").expect_status(200);
        if mode == "memory" {
            continue;
        }
        // Who ensures that a stream is there may go on doing so under another configuration.
        assert!(server.terminate().success());
        server.set("DS_RETENTION__MAX_BYTES", "unlimited");
        server.restart();
        let mut caller = Caller::to(&server);
        caller.put("plain", &[TEXT], "").expect_status(200);
        caller.put("asked", &[TEXT, TEN], "").expect_status(200);
        caller.put("asked", &[TEXT], "").expect_status(409);
        caller
            .head("plain")
            .expect_status(200)
            .expect_header(MAX_BYTES, "10")
            .expect_header(EARLIEST, &offset(5));
        caller.put("new", &[TEXT], "").expect_status(201);
        caller.head("new").expect_status(200).expect_no_header(MAX_BYTES).expect_header(MAX_AGE, "86400");
    }
}

#[test]
fn a_stream_with_limits_runs_for_ever_within_those_of_the_server() {
    for mode in ["memory", "acid"] {
        let server = start_in(
            mode,
            &[
                ("DS_LIMITS__MAX_STREAM_BYTES", "5000"),
                ("DS_LIMITS__MAX_MEMORY_BYTES", "20000"),
                ("DS_STORAGE__JOURNAL_BYTES", "64KiB"),
            ],
        );
        let mut caller = Caller::to(&server);
        caller.put("a", &[TEXT, (MAX_BYTES, "3000")], "").expect_status(201);
        for _ in 0..300 {
            caller.append("a", TEXT, "x".repeat(1_000));
        }
        assert_eq!(caller.content("a").len(), 3_000);
        caller.post("a", &[TEXT], "x".repeat(5_001)).expect_status(413);
        // It counts what is stored, which is all of it while a fork may read it.
        caller.put("fork", &[("Stream-Forked-From", &*path("a"))], "").expect_status(201);
        caller.append("a", TEXT, "x".repeat(1_000));
        caller.append("a", TEXT, "x".repeat(1_000));
        caller.post("a", &[TEXT], "x").expect_status(413);
        caller.delete("fork").expect_status(204);
        let deadline = crate::service::Deadline::start();
        while caller.post("a", &[TEXT], "x").status != 204 {
            deadline.check();
        }
    }
}
