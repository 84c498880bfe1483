//! Requests that no proper client sends: repeated headers, broken HTTP, odd methods and targets. `protocol.md` §3, §4.

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, TEXT, answer_to, connect, in_each_mode, offset, path, start};
use crate::support::ServerProcess;

in_each_mode!(repeated_headers_are_refused_and_change_nothing);

fn repeated_headers_are_refused_and_change_nothing(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    for (name, value) in [
        ("Content-Type", "text/plain"),
        ("Content-Encoding", "identity"),
        ("Stream-TTL", "3600"),
        ("Stream-Expires-At", "2100-01-01T00:00:00Z"),
        ("Stream-Seq", "1"),
        ("Stream-Forked-From", "/v1/stream/a"),
        ("Stream-Fork-Offset", "-1"),
        ("Stream-Fork-Sub-Offset", "0"),
        ("Producer-Id", "p"),
        ("Producer-Epoch", "0"),
        ("Producer-Seq", "0"),
    ] {
        let mut headers = vec![CLOSED];
        match name {
            "Content-Type" => {}
            "Stream-Fork-Offset" | "Stream-Fork-Sub-Offset" => {
                headers.push(("Stream-Forked-From", "/v1/stream/a"));
            }
            _ => headers.push(TEXT),
        }
        let lower = name.to_ascii_lowercase();
        headers.extend([(name, value), (lower.as_str(), value)]);
        caller.post("a", &headers, "x").expect_refusal("BAD_REQUEST");
        caller.put("new", &headers, "x").expect_refusal("BAD_REQUEST");
    }
    assert_eq!(caller.content("a"), "");
    assert!(!caller.is_closed("a"));
    caller.assert_absent("new");
    // Two spellings of nothing are two all the same.
    caller.post("a", &[TEXT, ("Stream-Seq", ""), ("Stream-Seq", "")], "x").expect_refusal("BAD_REQUEST");
    caller.post("a", &[TEXT, ("Content-Type", "")], "x").expect_refusal("BAD_REQUEST");
}

#[test]
fn headers_that_may_be_repeated_are() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    caller.get("a", &[("If-None-Match", "\"x\""), ("If-None-Match", "\"y\"")]).expect_status(200);
    caller.get("a", &[("Accept", "text/plain"), ("Accept", "*/*")]).expect_status(200);
    caller.post("a", &[("Stream-Closed", "false"), CLOSED, CLOSED], "").expect_status(204);
    assert!(caller.is_closed("a"));
}

#[test]
fn header_names_have_no_case() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.put("a", &[("cOnTeNt-TyPe", "text/plain"), ("sTReam-TTL", "60")], "").expect_status(201);
    caller.head("a").expect_header("Stream-TTL", "60");
    let producer = [("PRODUCER-ID", "p"), ("producer-epoch", "0"), ("pRODUCER-sEQ", "0")];
    let appended = caller.post("a", &[&producer[..], &[("CONTENT-TYPE", "text/plain")]].concat(), "x");
    appended.expect_status(200);
    caller
        .post("a", &[("stream-CLOSED", "true")], "")
        .expect_status(204)
        .expect_header("Stream-Closed", "true");
}

#[test]
fn bodies_of_requests_that_take_none_are_ignored() {
    let server = start(&[]);
    let mut connection = connect(&server);
    let mut send = |method: &str, headers: &[(&str, &str)], body: &[u8]| {
        let answer = connection.request(method, &path("a"), headers, body).expect("there is an answer");
        crate::contract::check(&answer, method, &path("a"));
        answer
    };
    send("PUT", &[TEXT], b"abc").expect_status(201);
    // What follows on the same connection shows that the body was not taken for a request.
    let body = b"GET /v1/stream/b HTTP/1.1\r\nHost: a\r\n\r\n";
    let chunked: &[u8] = b"3\r\nabc\r\n0\r\n\r\n";
    for (headers, body) in [(&[][..], &body[..]), (&[("Transfer-Encoding", "chunked")], chunked)] {
        send("HEAD", headers, body).expect_status(200);
        assert_eq!(send("GET", headers, body).expect_status(200).text(), "abc");
        send("OPTIONS", headers, body).expect_status(204);
        send("PATCH", headers, body).expect_status(405);
    }
    send("DELETE", &[], body).expect_status(204);
    send("GET", &[], b"").expect_status(404);
}

#[test]
fn requests_in_one_write_are_answered_in_order() {
    let server = start(&[]);
    let mut connection = connect(&server);
    let requests: String = [
        "PUT /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc",
        "POST /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\ndef\r\n0\r\n\r\n",
        "GET /v1/stream/missing HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nno",
        "GET /v1/stream/a HTTP/1.1\r\nHost: a\r\n\r\n",
    ]
    .concat();
    connection.send_raw(requests.as_bytes()).expect("a new connection takes bytes");
    for (method, status) in [("PUT", 201), ("POST", 204), ("GET", 404), ("POST", 400)] {
        connection.read_response(method).expect("there is an answer").expect_status(status);
    }
    let page = connection.read_response("GET").expect("there is an answer").expect_status(200);
    assert_eq!(page.text(), "abcdef");
}

#[test]
fn request_with_two_framings_hides_no_second_request() {
    let server = start(&[]);
    for framings in
        ["Transfer-Encoding: chunked\r\nContent-Length: 4", "Content-Length: 4\r\nTransfer-Encoding: chunked"]
    {
        let mut connection = connect(&server);
        let hidden = "DELETE /v1/stream/a HTTP/1.1\r\nHost: a\r\n\r\n";
        let request = format!("PUT /v1/stream/a HTTP/1.1\r\nHost: a\r\n{framings}\r\n\r\n0\r\n\r\n{hidden}");
        connection.send_raw(request.as_bytes()).expect("a new connection takes bytes");
        let answer = connection.read_response("PUT").expect("there is an answer");
        assert!(matches!(answer.status, 200 | 201 | 400), "{answer:?}");
        // Whoever took the other length for the true one must not be answered by what followed.
        assert!(connection.is_closed_by_server(), "{framings}");
        if answer.status != 400 {
            Caller::to(&server).head("a").expect_status(200);
        }
    }
}

#[test]
fn broken_http_is_answered_with_a_problem_and_others_are_served() {
    let server = start(&[]);
    for broken in [
        "nonsense\r\n\r\n",
        "GET\r\n\r\n",
        "GET /v1/stream/a\r\n\r\n",
        "GET /v1/stream/a HTTP/9.9\r\nHost: a\r\n\r\n",
        "GET /v1/stream/a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /v1/stream/a HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n",
        "GET /v1/stream/a HTTP/1.1\r\nHost: a\r\nBad name: x\r\n\r\n",
        "GET /v1/stream/a HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        "POST /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        "POST /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "POST /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "POST /v1/stream/a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    ] {
        let answer = answer_to(&server, broken).unwrap_or_else(|| panic!("no answer to {broken:?}"));
        assert_eq!(answer.status, 400, "{broken:?}");
        answer
            .expect_header("Content-Type", "application/problem+json")
            .expect_header("Connection", "close")
            .expect_header("Cache-Control", "no-store")
            .expect_header("X-Content-Type-Options", "nosniff")
            .expect_header("Cross-Origin-Resource-Policy", "cross-origin")
            .expect_header("Access-Control-Allow-Origin", "*")
            .expect_header("Access-Control-Expose-Headers", crate::contract::EXPOSED);
        let document: serde_json::Value = serde_json::from_slice(&answer.body).expect("a problem is JSON");
        assert_eq!(document["code"], "BAD_REQUEST", "{broken:?}");
    }
    Caller::to(&server).create("a", TEXT, "");
}

#[test]
fn bodies_that_are_coded_below_their_framing_are_refused_and_nothing_of_them_is_a_request() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    // The content looks like a request, to whoever ends the body too early.
    let hidden = "DELETE /v1/stream/a HTTP/1.1\r\nHost: a\r\n\r\n";
    let body = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
    for codings in [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: GZIP,chunked",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ] {
        for (method, name) in [("POST", "a"), ("PUT", "b")] {
            let target = path(name);
            let mut connection = connect(&server);
            let head =
                format!("{method} {target} HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\n{codings}");
            let request = format!("{head}\r\n\r\n{body}");
            connection.send_raw(request.as_bytes()).expect("a new connection takes bytes");
            let answer = connection.read_response(method).expect("there is an answer");
            crate::contract::check(&answer, method, &target);
            let is_last = answer.header("Connection") == Some("close");
            answer.expect_refusal("UNSUPPORTED_ENCODING");
            if is_last {
                assert!(connection.is_closed_by_server(), "{codings}");
            } else {
                let next = connection.request("HEAD", &path("a"), &[], b"").expect("there is an answer");
                next.expect_status(200).expect_header("Stream-Next-Offset", &offset(3));
            }
        }
    }
    // Without its framing last nobody can tell where a body ends.
    for codings in ["gzip", "chunked, gzip"] {
        let request = format!(
            "POST /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nTransfer-Encoding: {codings}\r\n\r\n{hidden}"
        );
        let mut connection = connect(&server);
        connection.send_raw(request.as_bytes()).expect("a new connection takes bytes");
        let answer = connection.read_response("POST").expect("there is an answer");
        answer.expect_refusal("BAD_REQUEST").expect_header("Connection", "close");
        assert!(connection.is_closed_by_server(), "{codings}");
    }
    assert_eq!(caller.content("a"), "abc");
    caller.assert_absent("b");
}

#[test]
fn heads_that_are_too_large_are_told_apart() {
    let server = start(&[("DS_LIMITS__MAX_HEADER_BYTES", "8KiB")]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    // Well below the limit all is fine, the longest name included.
    caller.send("GET", &path("a"), &[("X", &"x".repeat(6000))], b"").expect_status(200);
    caller.send("GET", &format!("{}?x={}", path("a"), "x".repeat(6000)), &[], b"").expect_status(200);
    let long = "x".repeat(100_000);
    let many: String = (0..3000).map(|index| format!("X-{index}: y\r\n")).collect();
    for (head, statuses) in [
        (format!("GET /v1/stream/a HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), &[431][..]),
        (format!("GET /v1/stream/a HTTP/1.1\r\nHost: a\r\n{many}\r\n"), &[431]),
        (format!("GET /v1/stream/{long} HTTP/1.1\r\nHost: a\r\n\r\n"), &[414, 431]),
    ] {
        let answer = answer_to(&server, head).expect("there is an answer");
        assert!(statuses.contains(&answer.status), "{answer:?}");
        answer.expect_header("Content-Type", "application/problem+json").expect_header("Connection", "close");
    }
    assert_eq!(caller.content("a"), "abc");
}

#[test]
fn odd_targets_and_methods_are_answered() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    let url = server.url();
    let absolute = format!("GET {url}/v1/stream/a HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(answer_to(&server, absolute).expect("there is an answer").expect_status(200).text(), "abc");
    for (target, status) in [
        ("OPTIONS *", 204),
        ("OPTIONS /v1/stream/a", 204),
        ("CONNECT example.org:80", 404),
        ("TRACE /v1/stream/a", 405),
        ("MKCOL /v1/stream/a", 405),
        ("get /v1/stream/a", 405),
        ("GET *", 404),
        ("GET ?x", 404),
    ] {
        let request = format!("{target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = answer_to(&server, request).unwrap_or_else(|| panic!("no answer to {target}"));
        // A target that is no target at all may also be refused as such.
        let is_malformed = target.starts_with("GET ?") && answer.status == 400;
        assert!(answer.status == status || is_malformed, "{target}: {answer:?}");
        answer.expect_header("X-Content-Type-Options", "nosniff");
    }
}

#[test]
fn http_1_0_is_spoken() {
    let server = start(&[]);
    let put = "PUT /v1/stream/a HTTP/1.0\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc";
    let mut connection = connect(&server);
    connection.send_raw(put.as_bytes()).expect("a new connection takes bytes");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut connection.socket(), &mut answer).expect("the answer is text");
    let (head, _) = answer.split_once("\r\n\r\n").expect("a head ends with an empty line");
    assert!(head.starts_with("HTTP/1.0 201 ") || head.starts_with("HTTP/1.1 201 "), "{head}");
    // Without Host there is no origin: the path alone is a valid reference.
    assert!(head.to_ascii_lowercase().contains("location: /v1/stream/a\r\n"), "{head}");
    Caller::to(&server).head("a").expect_header("Stream-Next-Offset", &offset(3));
}
