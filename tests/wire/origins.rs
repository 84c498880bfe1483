//! Absolute URLs, and the `Host` they are made of: `protocol.md` §2.

use std::io::Read;

use crate::contract::{self, Expectations};
use crate::service::{Caller, MODES, TEXT, answer_to, connect, path, start, start_in};

#[test]
fn location_begins_with_what_the_client_called_the_server() {
    for mode in MODES {
        let server = start_in(mode, &[]);
        let mut caller = Caller::to(&server);
        for host in ["example.test", "example.test:81", "127.0.0.1", "[::1]:4437", "LOCALHOST:1", "a_b.test"]
        {
            let created = caller.put("a", &[("Host", host)], "").expect_status(201);
            created.expect_header("Location", &format!("http://{host}/v1/stream/a"));
            caller.delete("a").expect_status(204);
        }
    }
}

#[test]
fn location_begins_with_the_public_origin_if_there_is_one() {
    let server = start(&[("DS_HTTP__PUBLIC_ORIGIN", "https://streams.example.test:8443")]);
    let mut caller = Caller::to(&server);
    let created = caller.put("a%20b", &[("Host", "other.test")], "").expect_status(201);
    created.expect_header("Location", "https://streams.example.test:8443/v1/stream/a%20b");
}

#[test]
fn forwarded_headers_of_anybody_are_ignored() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    let forwarded = [
        ("Host", "real.test"),
        ("X-Forwarded-Host", "evil.test"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", "/evil"),
        ("Forwarded", "host=evil.test;proto=https"),
    ];
    let created = caller.put("a", &forwarded, "").expect_status(201);
    created.expect_header("Location", "http://real.test/v1/stream/a");
}

#[test]
fn authority_of_the_target_goes_before_host() {
    let server = start(&[]);
    let target = "http://target.test:82/v1/stream/a";
    let request = format!("PUT {target} HTTP/1.1\r\nHost: other.test\r\nContent-Length: 0\r\n\r\n");
    let created = answer_to(&server, request).expect("there is an answer").expect_status(201);
    created.expect_header("Location", target);
}

#[test]
fn malformed_host_is_refused_and_changes_nothing() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    for host in [
        "",
        ":80",
        "a b",
        "a/b",
        "a?b",
        "a#b",
        "a\\b",
        "user@a",
        "user:pass@a",
        "a:b",
        "a:80:90",
        "a:123456",
        "[::1",
        "::1",
        "http://a",
        "a\"b",
        "<a>",
        "é",
    ] {
        for (method, name) in [("PUT", "new"), ("POST", "a"), ("GET", "a"), ("HEAD", "a"), ("DELETE", "a")] {
            let body: &[u8] = if matches!(method, "PUT" | "POST") { b"x" } else { b"" };
            let answer = caller.send(method, &path(name), &[TEXT, ("Host", host)], body);
            assert_eq!(answer.status, 400, "{method} for {host:?}");
            answer.expect_refusal("BAD_REQUEST");
        }
    }
    caller.put("new", &[("Host", "a"), ("Host", "a")], "").expect_refusal("BAD_REQUEST");
    caller.put("new", &[("Host", "a"), ("host", "b")], "").expect_refusal("BAD_REQUEST");
    caller.assert_absent("new");
    assert_eq!(caller.content("a"), "abc");
}

#[test]
fn a_request_has_one_host_whatever_it_asks_for() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    let absolute = format!("{}/v1/stream/a", server.url());
    for (method, target) in [
        ("GET", "/v1/stream/a"),
        ("GET", &*absolute),
        ("GET", "/v1/stream/a?offset=x"),
        ("GET", "/v1/stream/__ds/x"),
        ("PUT", "/v1/stream/new"),
        ("POST", "/v1/stream/a"),
        ("DELETE", "/v1/stream/a"),
        ("PATCH", "/v1/stream/a"),
        ("OPTIONS", "/v1/stream/a"),
        ("OPTIONS", "*"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/elsewhere"),
    ] {
        for hosts in ["", "Host: a\r\nHost: a\r\n", "Host: a\r\nHOST: b\r\n", "Host:\r\nHost:\r\n"] {
            let request = format!("{method} {target} HTTP/1.1\r\n{hosts}Content-Length: 1\r\n\r\nx");
            let answer = answer_to(&server, request).expect("there is an answer");
            let instance = if target == absolute { "/v1/stream/a" } else { target };
            contract::check(&answer, method, instance);
            answer.expect_refusal("BAD_REQUEST");
        }
    }
    // HTTP/1.0 may do without; twice is wrong there too.
    for (hosts, status) in [("", "200"), ("Host: a\r\n", "200"), ("Host: a\r\nHost: a\r\n", "400")] {
        let mut connection = connect(&server);
        connection.send_raw(format!("GET /healthz HTTP/1.0\r\n{hosts}\r\n").as_bytes()).expect("it is open");
        let mut answer = String::new();
        connection.socket().read_to_string(&mut answer).expect("the answer is text");
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    caller.assert_absent("new");
    assert_eq!(caller.content("a"), "abc");
}
