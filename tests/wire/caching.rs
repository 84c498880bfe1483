//! ETags, `Cache-Control` and cursors: `protocol.md` §15.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, JSON, TEXT, in_each_mode, offset, path, start, start_in};
use crate::support::ServerProcess;
use crate::support::http::Response;
use crate::support::sse::EventStream;

const PUBLIC: &str = "public, max-age=60, stale-while-revalidate=300";
const PRIVATE: &str = "private, max-age=60, stale-while-revalidate=300";
/// 2024-10-09T00:00:00Z, where cursors count from, in seconds since 1970.
const CURSOR_EPOCH_SECS: u64 = 1_728_432_000;

in_each_mode!(
    etag_changes_with_all_that_a_reader_would_learn,
    etag_changes_with_recreation_at_equal_length,
    known_etag_is_answered_304_with_the_stream_headers,
    if_none_match_is_a_list_of_tags_compared_weakly,
    an_offset_inside_a_message_is_refused_whatever_tag_it_comes_with,
    freshness_depends_on_what_was_answered,
);

#[track_caller]
fn etag(response: &Response) -> String {
    let etag = response.header("ETag").unwrap_or_else(|| panic!("no ETag: {response:?}"));
    let inner = etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    assert!(inner.is_some_and(|tag| !tag.is_empty() && !tag.contains('"')), "not a strong tag: {etag}");
    etag.to_owned()
}

#[track_caller]
fn etag_of(caller: &mut Caller, name: &str) -> String {
    etag(&caller.get(name, &[]).expect_status(200))
}

fn etag_changes_with_all_that_a_reader_would_learn(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let mut seen = Vec::new();
    let mut note = |etag: String| {
        assert!(!seen.contains(&etag), "{etag} came before");
        seen.push(etag);
    };
    caller.create("a", TEXT, "");
    note(etag_of(&mut caller, "a"));
    caller.append("a", TEXT, "abc");
    note(etag_of(&mut caller, "a"));
    assert_eq!(etag_of(&mut caller, "a"), etag_of(&mut caller, "a?offset=-1&x=y"));
    note(etag_of(&mut caller, &format!("a?offset={}", offset(1))));
    caller.append("a", TEXT, "d");
    note(etag_of(&mut caller, "a"));
    note(etag_of(&mut caller, &format!("a?offset={}", offset(4))));
    caller.post("a", &[CLOSED], "").expect_status(204);
    note(etag_of(&mut caller, "a"));
    note(etag_of(&mut caller, &format!("a?offset={}", offset(4))));
    caller.create("b", TEXT, "abcd");
    note(etag_of(&mut caller, "b"));
    for query in ["a?offset=now", "b?offset=now"] {
        caller.get(query, &[]).expect_status(200).expect_no_header("ETag");
    }
}

fn etag_changes_with_recreation_at_equal_length(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for name in ["a", "b"] {
        let mut seen: Vec<String> = Vec::new();
        for content in ["abc", "xyz", "abc"] {
            caller.create(name, TEXT, content);
            let present = etag_of(&mut caller, name);
            for earlier in &seen {
                assert_ne!(&present, earlier);
                let page = caller.get(name, &[("If-None-Match", earlier)]).expect_status(200);
                assert_eq!(page.text(), content);
            }
            seen.push(present);
            caller.delete(name).expect_status(204);
        }
    }
}

fn known_etag_is_answered_304_with_the_stream_headers(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("text", TEXT, "abc");
    caller.create("json", JSON, "[1,2]");
    caller.create("empty", JSON, "");
    for closed in [false, true] {
        for name in ["text", "json", "empty"] {
            let tail = caller.tail(name);
            for query in [name.to_owned(), format!("{name}?offset={tail}")] {
                let page = caller.get(&query, &[]).expect_status(200);
                let tag = etag(&page);
                let unchanged = caller.get(&query, &[("If-None-Match", &tag)]).expect_status(304);
                for header in
                    ["ETag", "Cache-Control", "Stream-Next-Offset", "Stream-Up-To-Date", "Stream-Closed"]
                {
                    assert_eq!(unchanged.header(header), page.header(header), "{header} of {query}");
                }
                unchanged
                    .expect_header("Stream-Up-To-Date", "true")
                    .expect_header("Stream-Next-Offset", &tail);
                assert_eq!(unchanged.header("Stream-Closed").is_some(), closed);
            }
            caller.post(name, &[CLOSED], "").expect_status(204);
        }
    }
}

fn an_offset_inside_a_message_is_refused_whatever_tag_it_comes_with(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    refuse_forged_tags(&mut caller);
}

#[test]
fn on_disk_too_an_offset_inside_a_message_is_refused_whatever_tag_it_comes_with() {
    let cold = [("DS_LIMITS__MAX_MEMORY_BYTES", "1"), ("DS_STORAGE__JOURNAL_BYTES", "64KiB")];
    let server = start_in("acid", &cold);
    let mut caller = Caller::to(&server);
    // What comes first is settled by what comes after it, on the same shard.
    for index in 0..16 {
        caller.create(&format!("filler-{index}"), TEXT, vec![b'x'; 32 << 10]);
    }
    refuse_forged_tags(&mut caller);
}

fn refuse_forged_tags(caller: &mut Caller) {
    caller.create("a", JSON, r#"[1,"two, and more"]"#);
    for index in 0..16 {
        caller.create(&format!("later-{index}"), TEXT, vec![b'x'; 32 << 10]);
    }
    let content = r#"1,"two, and more","#;
    for closed in [false, true] {
        let tag = etag_of(caller, "a");
        let end = format!(":{}:", content.len());
        for start in 0..=content.len() {
            let target = format!("a?offset={}", offset(start));
            let forged = tag.replace(&format!(":0{end}"), &format!(":{start}{end}"));
            assert_eq!(forged == tag, start == 0, "{tag} names where the page begins");
            let answer = caller.get(&target, &[("If-None-Match", &forged)]);
            if [0, 2, content.len()].contains(&start) {
                answer.expect_status(304).expect_header("ETag", &forged);
            } else {
                answer.expect_refusal("INVALID_OFFSET");
            }
        }
        if !closed {
            caller.post("a", &[CLOSED], "").expect_status(204);
        }
    }
}

fn if_none_match_is_a_list_of_tags_compared_weakly(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "abc");
    let tag = etag_of(&mut caller, "a");
    let bare = tag.trim_matches('"');
    for (value, status) in [
        (tag.clone(), 304),
        (format!("W/{tag}"), 304),
        (format!("\"x\", {tag}"), 304),
        (format!("{tag},\"x\""), 304),
        (format!("\"x,y\" , W/{tag} ,, \"\""), 304),
        ("*".to_owned(), 304),
        ("\"x\"".to_owned(), 200),
        ("W/\"x\", \"y\"".to_owned(), 200),
        // Malformed: ignored.
        (String::new(), 200),
        (bare.to_owned(), 200),
        (format!("\"{bare}"), 200),
        (format!("w/{tag}"), 200),
        (format!("{tag} \"x\""), 200),
        (format!("{tag}, x"), 200),
        (format!("x{tag}"), 200),
    ] {
        let answer = caller.get("a", &[("If-None-Match", &value)]);
        assert_eq!(answer.status, status, "{value}");
    }
    // Several lines are one list.
    caller.get("a", &[("If-None-Match", "\"x\""), ("If-None-Match", &tag)]).expect_status(304);
    caller.get("a", &[("If-None-Match", "\"x\""), ("If-None-Match", "\"y\"")]).expect_status(200);
    // A tag belongs to a page, and stops matching when there is more to say.
    caller.get(&format!("a?offset={}", offset(1)), &[("If-None-Match", &tag)]).expect_status(200);
    caller.append("a", TEXT, "d");
    assert_eq!(caller.get("a", &[("If-None-Match", &tag)]).expect_status(200).text(), "abcd");
    let tag = etag_of(&mut caller, "a");
    caller.post("a", &[CLOSED], "").expect_status(204);
    let closed = caller.get("a", &[("If-None-Match", &tag)]).expect_status(200);
    closed.expect_header("Stream-Closed", "true");
    caller.get("absent", &[("If-None-Match", "*")]).expect_refusal("NOT_FOUND");
    caller.get("a?offset=bad", &[("If-None-Match", "*")]).expect_refusal("INVALID_OFFSET");
}

fn freshness_depends_on_what_was_answered(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "abc");
    for closed in [false, true] {
        for (query, cached) in [
            ("a".to_owned(), true),
            (format!("a?offset={}", offset(1)), true),
            (format!("a?offset={}", offset(3)), closed),
        ] {
            let fresh = if cached { PUBLIC } else { "no-store" };
            let page = caller.get(&query, &[]).expect_status(200);
            page.expect_header("Cache-Control", fresh);
            let tag = etag(&page);
            let unchanged = caller.get(&query, &[("If-None-Match", &tag)]).expect_status(304);
            unchanged.expect_header("Cache-Control", fresh);
        }
        caller.get("a?offset=now", &[]).expect_header("Cache-Control", "no-store");
        let polled = caller.get("a?offset=-1&live=long-poll", &[]).expect_status(200);
        polled.expect_header("Cache-Control", PUBLIC);
        caller.head("a").expect_header("Cache-Control", "no-store");
        caller.post("a", &[CLOSED], "").expect_status(204);
    }
    let ended = caller.get(&format!("a?offset={}&live=long-poll", offset(3)), &[]).expect_status(204);
    ended.expect_header("Cache-Control", "no-store").expect_no_header("ETag");
}

#[test]
fn answers_to_people_are_private() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    let tag = etag_of(&mut caller, "a");
    for identity in [("Authorization", "Bearer x"), ("Cookie", "a=b")] {
        for query in ["a", "a?offset=-1&live=long-poll"] {
            caller.get(query, &[identity]).expect_status(200).expect_header("Cache-Control", PRIVATE);
        }
        let unchanged = caller.get("a", &[identity, ("If-None-Match", &tag)]).expect_status(304);
        unchanged.expect_header("Cache-Control", PRIVATE);
        caller.get("a?offset=now", &[identity]).expect_header("Cache-Control", "no-store");
    }
}

#[test]
fn nothing_is_kept_longer_than_its_stream_lives() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    let in_seconds = |seconds: u64| {
        let at = SystemTime::now() + std::time::Duration::from_secs(seconds);
        let at = time::OffsetDateTime::from(at).replace_nanosecond(0).expect("0 is in range");
        at.format(&time::format_description::well_known::Rfc3339).expect("a date can be written")
    };
    for (name, seconds) in [("a", 1000), ("b", 200), ("c", 61), ("d", 30)] {
        let instant = in_seconds(seconds);
        for (kind, value) in [("Stream-TTL", seconds.to_string()), ("Stream-Expires-At", instant)] {
            let name = format!("{name}-{kind}");
            caller.put(&name, &[TEXT, (kind, &value)], "abc").expect_status(201);
            let page = caller.get(&name, &[]).expect_status(200);
            let tag = etag(&page);
            let unchanged = caller.get(&name, &[("If-None-Match", &tag)]).expect_status(304);
            let polled = caller.get(&format!("{name}?offset=-1&live=long-poll"), &[]).expect_status(200);
            for answer in [page, unchanged, polled] {
                let kept = seconds_kept(answer.header("Cache-Control").expect("it is always said"));
                assert!(kept <= seconds, "{name} is kept {kept} of {seconds} seconds");
                assert!(kept > 0 && (kept == 360 || kept + 30 >= seconds), "{name}: {kept} of {seconds}");
            }
        }
    }
}

/// Seconds that a cache may serve an answer, stale or not.
#[track_caller]
fn seconds_kept(cache_control: &str) -> u64 {
    let directives = cache_control.strip_prefix("public, ").unwrap_or_else(|| panic!("{cache_control}"));
    directives
        .split(", ")
        .map(|directive| match directive.split_once('=') {
            Some(("max-age" | "stale-while-revalidate", seconds)) => {
                seconds.parse::<u64>().expect("a number")
            }
            _ => panic!("{cache_control}"),
        })
        .sum()
}

#[test]
fn live_reads_and_reads_from_now_are_not_conditional() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    let tag = etag_of(&mut caller, "a");
    for value in [&*tag, "*"] {
        let polled = caller.get("a?offset=-1&live=long-poll", &[("If-None-Match", value)]).expect_status(200);
        assert_eq!(polled.text(), "abc");
        assert_eq!(etag(&polled), tag);
        caller.get("a?offset=now", &[("If-None-Match", value)]).expect_status(200);
        let events =
            EventStream::open(server.origin(), &path("a?offset=-1&live=sse"), &[("If-None-Match", value)]);
        let events = events.expect("the server answers").expect("the stream can be read");
        events.response().expect_header("Cache-Control", "no-cache").expect_no_header("ETag");
        // What is not a read of content ignores it as well.
        caller.send("HEAD", &path("a"), &[("If-None-Match", value)], b"").expect_status(200);
        caller.put("a", &[TEXT, ("If-None-Match", value)], "").expect_status(200);
    }
}

/// The interval that cursors are in at this moment.
fn present_interval() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
    (now - CURSOR_EPOCH_SECS) / 20
}

/// The cursor of the answer to a long-poll with this cursor, between the intervals before and after it.
#[track_caller]
fn cursor_after(caller: &mut Caller, target: &str, cursor: &str) -> (u64, u64, u64) {
    let before = present_interval();
    let answer = caller.get(&format!("{target}{cursor}"), &[]);
    let after = present_interval();
    let cursor = answer.header("Stream-Cursor").expect("a long-poll has a cursor");
    assert!(cursor.bytes().all(|byte| byte.is_ascii_digit()), "{cursor}");
    (before, cursor.parse().expect("it is a number"), after)
}

#[test]
fn cursor_is_the_present_interval_unless_the_client_is_ahead() {
    let server = start(&[("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "0.01")]);
    let mut caller = Caller::to(&server);
    caller.create("open", TEXT, "abc");
    caller.put("closed", &[TEXT, CLOSED], "abc").expect_status(201);
    caller.get("open", &[]).expect_no_header("Stream-Cursor");
    for target in [
        "open?offset=-1&live=long-poll",
        "open?offset=now&live=long-poll",
        "closed?offset=-1&live=long-poll",
        "closed?offset=now&live=long-poll",
    ] {
        let old = present_interval() - 1;
        let old = format!("&cursor={old}");
        // None, old ones, and what is none: too long, no number, empty.
        for cursor in [
            "",
            "&cursor=0",
            &old,
            "&cursor=",
            "&cursor",
            "&cursor=abc",
            "&cursor=-5",
            "&cursor=99.5",
            "&cursor=%209999999",
            "&cursor=1000000000000000",
            "&cursor=18446744073709551615",
            "&cursor=99999999999999999999999999999999",
            "&cursor=%FF",
        ] {
            let (before, answered, after) = cursor_after(&mut caller, target, cursor);
            assert!((before..=after).contains(&answered), "{cursor}: {answered}");
        }
        for ahead in [present_interval() + 1, present_interval() + 1000, 999_999_999_999_999] {
            for _ in 0..5 {
                let (_, answered, _) = cursor_after(&mut caller, target, &format!("&cursor={ahead}"));
                assert!((ahead + 1..=ahead + 180).contains(&answered), "{ahead}: {answered}");
            }
        }
        // The present one: the answer is greater, whichever interval it is by then.
        let present = present_interval();
        let (.., answered, _) = cursor_after(&mut caller, target, &format!("&cursor={present}"));
        assert!(answered > present && answered <= present + 180, "{present}: {answered}");
    }
}

#[test]
fn cursors_of_events_follow_the_same_rule() {
    let server = start(&[]);
    Caller::to(&server).create("a", TEXT, "");
    for (cursor, greater_than) in
        [("", 0), ("&cursor=999999999999999", 999_999_999_999_999), ("&cursor=1000000000000000", 0)]
    {
        let before = present_interval();
        let target = path(&format!("a?offset=-1&live=sse{cursor}"));
        let mut events = EventStream::open(server.origin(), &target, &[])
            .expect("the server answers")
            .expect("the stream can be read");
        let (kind, data) = events.next_message().expect("the response goes on").expect("an event comes");
        assert_eq!(kind, "control");
        let control: serde_json::Value = serde_json::from_str(&data).expect("a control event is JSON");
        let answered: u64 =
            control["streamCursor"].as_str().and_then(|text| text.parse().ok()).expect("a decimal string");
        let floor = if greater_than == 0 { before } else { greater_than + 1 };
        assert!((floor..=floor + 180).contains(&answered), "{cursor}: {answered}");
    }
}
