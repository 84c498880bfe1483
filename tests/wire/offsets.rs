//! Offsets and the parameters of reads: `protocol.md` §3 and §5.

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, JSON, TEXT, in_each_mode, offset, start};
use crate::support::ServerProcess;

in_each_mode!(
    every_position_of_bytes_is_an_offset,
    only_starts_of_messages_are_offsets_of_json,
    now_is_the_tail_without_content,
    start_is_named_in_three_ways,
    offsets_that_no_read_can_start_at_are_refused_in_every_mode,
    offset_of_an_earlier_stream_is_refused,
);

/// What makes a read of each mode out of a name with an offset.
const LIVE: [&str; 3] = ["", "&live=long-poll", "&live=sse"];

fn every_position_of_bytes_is_an_offset(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let whole = "abcdéf\0\r\nxyz";
    caller.create("a", TEXT, &whole[..4]);
    caller.append("a", TEXT, &whole[4..9]);
    caller.append("a", TEXT, &whole[9..]);
    for position in 0..=whole.len() {
        let page = caller.get(&format!("a?offset={}", offset(position)), &[]).expect_status(200);
        assert_eq!(page.body, whole.as_bytes()[position..]);
        page.expect_header("Stream-Next-Offset", &offset(whole.len()))
            .expect_header("Stream-Up-To-Date", "true");
    }
    caller.get(&format!("a?offset={}", offset(whole.len() + 1)), &[]).expect_refusal("INVALID_OFFSET");
}

fn only_starts_of_messages_are_offsets_of_json(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let messages = ["1", "{\"a\":[1,2]}", "\"x,y\"", "[[3],4]", "null"];
    caller.create("a", JSON, format!("[{},{}]", messages[0], messages[1]));
    caller.append("a", JSON, format!("[{},{}]", messages[2], messages[3]));
    caller.append("a", JSON, messages[4]);
    let mut starts = vec![0];
    for message in messages {
        starts.push(starts[starts.len() - 1] + message.len() + 1);
    }
    let tail = starts[messages.len()];
    assert_eq!(caller.tail("a"), offset(tail));
    for position in 0..=tail + 1 {
        let at = offset(position);
        match starts.iter().position(|&start| start == position) {
            Some(index) => {
                let page = caller.get(&format!("a?offset={at}"), &[]).expect_status(200);
                assert_eq!(page.text(), format!("[{}]", messages[index..].join(",")));
            }
            None => {
                for live in LIVE {
                    caller.get(&format!("a?offset={at}{live}"), &[]).expect_refusal("INVALID_OFFSET");
                }
            }
        }
    }
}

fn now_is_the_tail_without_content(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (name, content_type, content, empty) in [("a", TEXT, "abc", ""), ("b", JSON, "[1]", "[]")] {
        caller.create(name, content_type, content);
        let tail = caller.tail(name);
        for closed in [false, true] {
            let now = caller.get(&format!("{name}?offset=now"), &[]).expect_status(200);
            assert_eq!(now.text(), empty);
            now.expect_header("Stream-Next-Offset", &tail)
                .expect_header("Stream-Up-To-Date", "true")
                .expect_header("Cache-Control", "no-store")
                .expect_header("Content-Type", content_type.1)
                .expect_no_header("ETag");
            assert_eq!(now.header("Stream-Closed").is_some(), closed);
            caller.post(name, &[CLOSED], "").expect_status(204);
        }
    }
}

fn start_is_named_in_three_ways(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (name, content) in [("empty", ""), ("full", "abc")] {
        caller.create(name, TEXT, content);
        let zero = offset(0);
        let escaped = "0000000000000000%5f%30000000000000000";
        for query in [
            String::new(),
            "?offset=-1".into(),
            "?offset=%2D1".into(),
            format!("?offset={zero}"),
            format!("?offset={escaped}"),
        ] {
            let page = caller.get(&format!("{name}{query}"), &[]).expect_status(200);
            assert_eq!(page.text(), content, "{query}");
            page.expect_header("Stream-Next-Offset", &offset(content.len()));
        }
    }
}

fn offsets_that_no_read_can_start_at_are_refused_in_every_mode(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("bytes", TEXT, "abc");
    caller.create("json", JSON, "[1,2]");
    caller.create("empty", TEXT, "");
    caller.put("closed", &[TEXT, CLOSED], "abc").expect_status(201);
    for name in ["bytes", "json", "empty", "closed"] {
        for bad in [
            "0000000000000000_0000000000000005",
            "0000000000000000_9007199254740992",
            "0000000000000000_9999999999999999",
            "9999999999999999_9999999999999999",
            "0000000000000001_0000000000000000",
        ] {
            for live in LIVE {
                caller.get(&format!("{name}?offset={bad}{live}"), &[]).expect_refusal("INVALID_OFFSET");
            }
        }
    }
}

fn offset_of_an_earlier_stream_is_refused(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    let old = caller.create("a", TEXT, "a longer text").next_offset();
    caller.delete("a").expect_status(204);
    caller.create("a", TEXT, "short");
    for live in LIVE {
        caller.get(&format!("a?offset={old}{live}"), &[]).expect_refusal("INVALID_OFFSET");
    }
}

#[test]
fn malformed_offsets_are_refused_whether_or_not_the_stream_exists() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("exists", TEXT, "abc");
    for bad in [
        "",
        "0",
        "1",
        "-2",
        "--1",
        "-1,-1",
        "+1",
        "NOW",
        "%20now",
        "%2D1%20",
        "-1+",
        "-1%0A",
        "-1%0D%0A",
        "-1%00",
        "%00",
        "..",
        "../a",
        "..%2Fa",
        "0000000000000000",
        "_",
        "0000000000000000_000000000000000",
        "0000000000000000_00000000000000000",
        "000000000000000_0000000000000000",
        "0000000000000000-0000000000000000",
        "0000000000000000_0000000000000000%0A",
        "%200000000000000000_0000000000000000",
        "0000000000000000_000000000000000a",
        "0000000000000000_+000000000000001",
        "0000000000000000__000000000000000",
        "%25%32%44%31",
        "%252D1",
        "%",
        "%4",
        "%zz",
        "%FF",
        "%D9%A0",
        "%EF%BC%90",
        "null",
        "undefined",
    ] {
        for name in ["exists", "absent"] {
            for live in LIVE {
                let refused = caller.get(&format!("{name}?offset={bad}{live}"), &[]);
                assert_eq!(refused.status, 400, "{bad:?}: {refused:?}");
                refused.expect_refusal("INVALID_OFFSET");
            }
        }
    }
}

#[test]
fn repeated_offsets_are_refused() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    for query in ["offset=-1&offset=-1", "offset=-1&offset=now", "offset=&offset=-1", "offset=-1&%6Fffset=-1"]
    {
        for live in LIVE {
            caller.get(&format!("a?{query}{live}"), &[]).expect_refusal("INVALID_OFFSET");
        }
    }
}

#[test]
fn unknown_live_modes_are_refused_whether_or_not_the_stream_exists() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("exists", TEXT, "abc");
    for name in ["exists", "absent"] {
        for query in [
            "offset=-1&live=",
            "offset=-1&live",
            "offset=-1&live=true",
            "offset=-1&live=SSE",
            "offset=-1&live=long_poll",
            "offset=-1&live=longpoll",
            "offset=-1&live=sse%20",
            "offset=-1&live=sse&live=sse",
            "offset=-1&live=sse&live=long-poll",
            "live=sse",
            "live=long-poll",
            "live=long-poll&cursor=1",
            "live=bogus",
        ] {
            let refused = caller.get(&format!("{name}?{query}"), &[]);
            assert_eq!(refused.status, 400, "{query}");
            refused.expect_refusal("BAD_REQUEST");
        }
    }
}

#[test]
fn other_parameters_are_ignored() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    for query in [
        "x=y",
        "Offset=now",
        "OFFSET=bad",
        "cursor=bad",
        "cursor=1&cursor=2",
        "&&=&x",
        "%zz=1",
        "LIVE=sse",
        "offsets=1",
    ] {
        assert_eq!(caller.content(&format!("a?{query}")), "abc", "{query}");
        assert_eq!(caller.content(&format!("a?{query}&offset=-1")), "abc", "{query}");
    }
}
