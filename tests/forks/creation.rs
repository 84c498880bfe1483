//! Where a fork begins, what it inherits, and which requests repeat its creation: `protocol.md` §18.1 and §18.2.

use super::*;

#[test]
fn without_an_offset_a_fork_begins_at_the_tail() {
    on_each_layout(|mut server| {
        server.create("source", &[("Content-Type", "text/plain; charset=utf-8")], "inherited ");
        let created = server.create("fork", &[(FORKED_FROM, &path("source"))], "");
        assert_eq!(next_position(&created), 10);
        assert_eq!(created.header("Content-Type"), Some("text/plain; charset=utf-8"));
        assert!(created.header("Location").is_some_and(|location| location.ends_with(&path("fork"))));
        let at_tail = server.get(&format!("fork?offset={}", offset(10))).expect_status(200);
        assert_eq!((at_tail.text(), at_tail.header("Stream-Up-To-Date")), ("", Some("true")));
        let with_body = server.create("with-body", &[(FORKED_FROM, &path("source"))], "own");
        assert_eq!(next_position(&with_body), 13);
        server.append("source", TEXT, "later");
        server.check_over_restarts(|server| {
            assert_eq!(server.content("fork"), "inherited ");
            assert_eq!(server.content("with-body"), "inherited own");
        });
    });
}

#[test]
fn an_anchor_may_be_any_position_of_the_source() {
    on_each_layout(|mut server| {
        server.create("text", &[TEXT], "0123");
        server.append("text", TEXT, "4567");
        server.create("json", &[JSON], "[1,22]");
        server.append("json", JSON, "333");
        for (source, anchor, content) in [
            ("text", "-1", "|"),
            ("text", &*offset(0), "|"),
            ("text", &*offset(3), "012|"),
            ("text", &*offset(4), "0123|"),
            ("text", &*offset(8), "01234567|"),
            ("json", "-1", "[true]"),
            ("json", &*offset(2), "[1,true]"),
            ("json", &*offset(5), "[1,22,true]"),
            ("json", &*offset(9), "[1,22,333,true]"),
        ] {
            let name = format!("{source}-{anchor}");
            let body = if source == "json" { "true" } else { "|" };
            server.create(&name, &[(FORKED_FROM, &path(source)), (FORK_OFFSET, anchor)], body);
            assert_eq!(server.content(&name), content);
        }
        for (source, anchor) in [
            ("text", offset(9)),
            ("text", "9999999999999999_9999999999999999".to_owned()),
            ("text", "0000000000000001_0000000000000000".to_owned()),
            ("text", "now".to_owned()),
            ("text", "0".to_owned()),
            ("text", String::new()),
            ("json", offset(1)),
            ("json", offset(3)),
            ("json", offset(8)),
            ("json", offset(10)),
        ] {
            let headers = [(FORKED_FROM, &*path(source)), (FORK_OFFSET, &*anchor)];
            let refused = server.put("never", &headers, "");
            assert_eq!(refused.status, 400, "{source} at {anchor:?}");
            server.expect_status("never", 404);
        }
    });
}

#[test]
fn a_sub_offset_counts_bytes_or_messages_across_posts() {
    on_each_layout(|mut server| {
        server.create("text", &[TEXT], "012");
        server.append("text", TEXT, "345");
        server.append("text", TEXT, "6");
        server.create("json", &[JSON], "[1,22]");
        server.append("json", JSON, "[333, [4], 5]");
        server.append("json", JSON, "6");
        // Positions of the messages: 0, 2, 5, 9, 13, 15, and the tail 17.
        for (source, anchor, sub, content) in [
            ("text", 0, "0", ""),
            ("text", 0, "2", "01"),
            ("text", 0, "3", "012"),
            ("text", 0, "5", "01234"),
            ("text", 2, "5", "0123456"),
            ("text", 7, "0", "0123456"),
            ("json", 0, "0", "[]"),
            ("json", 0, "1", "[1]"),
            ("json", 0, "2", "[1,22]"),
            ("json", 0, "4", "[1,22,333,[4]]"),
            ("json", 2, "2", "[1,22,333]"),
            ("json", 9, "3", "[1,22,333,[4],5,6]"),
            ("json", 17, "0", "[1,22,333,[4],5,6]"),
        ] {
            let name = format!("{source}-{anchor}-{sub}");
            let headers = [(FORKED_FROM, &*path(source)), (FORK_OFFSET, &*offset(anchor)), (SUB_OFFSET, sub)];
            server.create(&name, &headers, "");
            assert_eq!(server.content(&name), content, "{name}");
        }
        for (source, anchor, sub) in [
            ("text", 0, "8"),
            ("text", 7, "1"),
            ("text", 0, "9007199254740991"),
            ("json", 0, "7"),
            ("json", 15, "2"),
            ("json", 17, "1"),
            ("json", 0, "9007199254740991"),
        ] {
            let headers = [(FORKED_FROM, &*path(source)), (FORK_OFFSET, &*offset(anchor)), (SUB_OFFSET, sub)];
            server.expect_refusal("never", &headers, "", 400, "INVALID_OFFSET");
        }
        // Without an anchor it counts from the tail, where nothing follows.
        server.create("at-the-tail", &[(FORKED_FROM, &path("text")), (SUB_OFFSET, "0")], "");
        let beyond = [(FORKED_FROM, &*path("text")), (SUB_OFFSET, "1")];
        server.expect_refusal("never", &beyond, "", 400, "INVALID_OFFSET");
    });
}

#[test]
fn a_sub_offset_counts_on_over_inherited_data() {
    on_each_layout(|mut server| {
        server.create("root", &[JSON], "[1,2,3]");
        server.create("middle", &[(FORKED_FROM, &path("root")), (FORK_OFFSET, &offset(4))], "[\"a\",\"b\"]");
        let headers = [(FORKED_FROM, &*path("middle")), (FORK_OFFSET, &*offset(2)), (SUB_OFFSET, "2")];
        server.create("leaf", &headers, "");
        server.check_over_restarts(|server| assert_eq!(server.content("leaf"), "[1,2,\"a\"]"));
    });
}

#[test]
fn a_sub_offset_skips_messages_larger_than_any_page() {
    on_each_layout_with(&[("DS_LIMITS__READ_PAGE_BYTES", "100")], |mut server| {
        let large = |letter: &str| format!("\"{}\"", letter.repeat(1_500_000));
        server.create("source", &[JSON], format!("[0,{},1]", large("x")));
        server.append("source", JSON, format!("[{},2,3]", large("y")));
        for (sub, from_start) in [(2, 2 + 1_500_003), (4, 4 + 2 * 1_500_003), (5, 6 + 2 * 1_500_003)] {
            let headers =
                [(FORKED_FROM, &*path("source")), (FORK_OFFSET, "-1"), (SUB_OFFSET, &*sub.to_string())];
            let created = server.create(&format!("fork-{sub}"), &headers, "");
            assert_eq!(next_position(&created), from_start);
        }
    });
}

#[test]
fn malformed_fork_headers_create_nothing() {
    on_each_layout(|mut server| {
        server.create("source", &[TEXT], "content");
        let source = path("source");
        for headers in [
            &[(FORK_OFFSET, "-1")][..],
            &[(SUB_OFFSET, "0")],
            &[(SUB_OFFSET, "1"), (FORK_OFFSET, "-1")],
            &[(FORKED_FROM, "source")],
            &[(FORKED_FROM, "")],
            &[(FORKED_FROM, "http://127.0.0.1/v1/stream/source")],
            &[(FORKED_FROM, &source), (SUB_OFFSET, "")],
            &[(FORKED_FROM, &source), (SUB_OFFSET, "-1")],
            &[(FORKED_FROM, &source), (SUB_OFFSET, "+1")],
            &[(FORKED_FROM, &source), (SUB_OFFSET, "01")],
            &[(FORKED_FROM, &source), (SUB_OFFSET, "1.0")],
            &[(FORKED_FROM, &source), (SUB_OFFSET, "1e0")],
            &[(FORKED_FROM, &source), (SUB_OFFSET, "9007199254740992")],
            &[(FORKED_FROM, &source), (FORKED_FROM, &source)],
        ] {
            let refused = server.put("never", headers, "");
            assert_eq!(refused.status, 400, "{headers:?}");
            server.expect_status("never", 404);
        }
    });
}

#[test]
fn a_source_that_is_not_there_is_not_found() {
    on_each_layout(|mut server| {
        for absent in
            ["/v1/stream/absent", "/absent", "/v1/stream/__ds/subscriptions", "/v1/streamsource", "/"]
        {
            server.expect_refusal("never", &[(FORKED_FROM, absent)], "", 404, "NOT_FOUND");
        }
        // Not even itself.
        server.expect_refusal("self", &[(FORKED_FROM, &path("self"))], "", 404, "NOT_FOUND");
        server.expect_status("never", 404);
    });
}

#[test]
fn a_refused_fork_leaves_no_pin_on_its_source() {
    on_each_layout(|mut server| {
        server.create("source", &[JSON], "[1,2]");
        let from = (FORKED_FROM, &*path("source"));
        server.expect_refusal("fork", &[from, TEXT], "", 409, "CONTENT_TYPE_MISMATCH");
        server.expect_refusal("fork", &[from], "{\"cut\":", 400, "INVALID_JSON");
        server.expect_refusal("fork", &[from, (FORK_OFFSET, &offset(1))], "", 400, "INVALID_OFFSET");
        server.expect_refusal("fork", &[from, (SUB_OFFSET, "1")], "", 400, "INVALID_OFFSET");
        server.put("fork", &[from, ("Stream-TTL", "x")], "").expect_status(400);
        server.expect_status("fork", 404);
        server.delete("source");
        server.expect_status("source", 404);
        server.create("source", &[TEXT], "");
    });
}

#[test]
fn closure_and_sequences_are_not_inherited_but_the_lifetime_is() {
    on_each_layout(|mut server| {
        let producer =
            |seq: &'static str| [("Producer-Id", "p"), ("Producer-Epoch", "3"), ("Producer-Seq", seq)];
        server.create("source", &[TEXT, ("Stream-TTL", "1000")], "a");
        let last = [&producer("0")[..], &[TEXT, ("Stream-Seq", "m"), CLOSED]].concat();
        server.request("POST", "source", &last, b"b").expect_status(200);

        let from = (FORKED_FROM, &*path("source"));
        let open = server.create("open", &[from], "");
        assert_eq!(open.header("Stream-Closed"), None);
        let closed = server.create("closed", &[from, CLOSED], "c");
        assert_eq!(closed.header("Stream-Closed"), Some("true"));
        server.create("own", &[from, ("Stream-TTL", "5000")], "");
        let instant = "2040-01-01T00:00:00+02:00";
        server.create("fixed", &[from, ("Stream-Expires-At", instant)], "");

        // A producer begins anew, and so does the order of `Stream-Seq`.
        server.request("POST", "open", &[&producer("1")[..], &[TEXT]].concat(), b"x").expect_status(409);
        let first = [&producer("0")[..], &[TEXT, ("Stream-Seq", "a")]].concat();
        server.request("POST", "open", &first, b"c").expect_status(200);
        server.request("POST", "closed", &[TEXT], b"x").expect_status(409);
        server.check_over_restarts(|server| {
            assert_eq!(server.content("open"), "abc");
            assert_eq!(server.content("closed"), "abc");
            for (name, ttl, expires_at, closed) in [
                ("source", Some("1000"), None, Some("true")),
                ("open", Some("1000"), None, None),
                ("closed", Some("1000"), None, Some("true")),
                ("own", Some("5000"), None, None),
                ("fixed", None, Some(instant), None),
            ] {
                let head = server.request("HEAD", name, &[], b"").expect_status(200);
                assert_eq!(head.header("Stream-TTL"), ttl, "{name}");
                assert_eq!(head.header("Stream-Expires-At"), expires_at, "{name}");
                assert_eq!(head.header("Stream-Closed"), closed, "{name}");
            }
        });
    });
}

/// A repeat of a creation: headers beside the source, and what it is answered with.
type Repeat<'a> = (&'a [(&'a str, &'a str)], u16);

#[track_caller]
fn check_repeats(server: &mut Server, name: &str, source: &str, repeats: &[Repeat<'_>]) {
    for (headers, status) in repeats {
        let headers = [&[(FORKED_FROM, source)], *headers].concat();
        let answer = server.put(name, &headers, "");
        assert_eq!(answer.status, *status, "{name}: {headers:?}");
    }
}

#[test]
fn a_repeat_with_what_was_asked_for_or_inherited_is_the_same_fork() {
    on_each_layout(|mut server| {
        server.create("source", &[TEXT, ("Stream-TTL", "1000")], "0123456789");
        let from = path("source");
        server.create("at-tail", &[(FORKED_FROM, &from)], "");
        server.create("inside", &[(FORKED_FROM, &from), (FORK_OFFSET, &offset(4)), (SUB_OFFSET, "2")], "");
        server.create("own", &[(FORKED_FROM, &from), ("Stream-TTL", "50")], "");
        // From now on none of this is what a new fork would get.
        server.append("source", TEXT, "later");

        let check = |server: &mut Server| {
            check_repeats(
                server,
                "at-tail",
                &from,
                &[
                    (&[], 200),
                    (&[TEXT], 200),
                    (&[("Content-Type", "TEXT/plain; charset=utf-8")], 200),
                    (&[("Stream-TTL", "1000")], 200),
                    (&[(FORK_OFFSET, &offset(10))], 200),
                    (&[(SUB_OFFSET, "0")], 200),
                    (&[JSON], 409),
                    (&[("Stream-TTL", "999")], 409),
                    (&[("Stream-Expires-At", "2040-01-01T00:00:00Z")], 409),
                    (&[(FORK_OFFSET, &offset(15))], 409),
                    (&[(FORK_OFFSET, "-1")], 409),
                    (&[(SUB_OFFSET, "1")], 409),
                    (&[CLOSED], 409),
                ],
            );
            let anchor = offset(4);
            check_repeats(
                server,
                "inside",
                &from,
                &[
                    (&[(FORK_OFFSET, &anchor), (SUB_OFFSET, "2")], 200),
                    (&[(SUB_OFFSET, "2")], 200),
                    // The same position, but not the same request.
                    (&[(FORK_OFFSET, &offset(6))], 409),
                    (&[(FORK_OFFSET, &offset(5)), (SUB_OFFSET, "1")], 409),
                    (&[(FORK_OFFSET, &anchor)], 409),
                ],
            );
            check_repeats(server, "own", &from, &[(&[("Stream-TTL", "50")], 200), (&[], 409)]);
            check_repeats(server, "own", &from, &[(&[("Stream-TTL", "1000")], 409)]);
            // Names are compared as they are, not as they are written.
            check_repeats(server, "at-tail", "/v1/stream/%73ource", &[(&[], 200)]);
            check_repeats(server, "at-tail", "/v1/stream/other", &[(&[], 409)]);
            server.put("at-tail", &[TEXT, ("Stream-TTL", "1000")], "").expect_status(409);
        };
        server.check_over_restarts(check);
        // All the same without the source.
        server.delete("source");
        server.expect_status("source", 410);
        server.check_over_restarts(check);
    });
}

#[test]
fn a_repeat_says_whether_the_fork_is_closed_now() {
    on_each_layout(|mut server| {
        server.create("source", &[TEXT], "content");
        server.fork("fork", "source");
        let from = path("source");
        server.create("born-closed", &[(FORKED_FROM, &from), CLOSED], "");
        server.request("POST", "fork", &[CLOSED], b"").expect_status(204);
        server.check_over_restarts(|server| {
            for name in ["fork", "born-closed"] {
                check_repeats(server, name, &from, &[(&[], 409), (&[CLOSED], 200)]);
            }
            let repeated =
                server.put("fork", &[(FORKED_FROM, &from), CLOSED], "not looked at").expect_status(200);
            assert_eq!((repeated.header("Stream-Closed"), next_position(&repeated)), (Some("true"), 7));
        });
    });
}

#[test]
fn a_plain_stream_is_not_turned_into_a_fork_by_a_repeat() {
    on_each_layout(|mut server| {
        server.create("source", &[TEXT], "");
        server.create("plain", &[TEXT], "");
        server.expect_refusal("plain", &[TEXT, (FORKED_FROM, &path("source"))], "", 409, "ALREADY_EXISTS");
        server.delete("source");
        server.expect_status("source", 404);
    });
}
