//! Refusals: `protocol.md` §21. That each is a complete problem document is checked by [`contract`](crate::contract)
//! for every request of these tests; here each code is called up once, with the headers that belong to it.

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, JSON, Producer, TEXT, in_each_mode, offset, path, start};
use crate::support::ServerProcess;

in_each_mode!(
    what_a_stream_refuses_is_told_by_code,
    refusals_of_head_have_no_body,
    deleted_stream_with_forks_is_gone_for_every_method,
);

fn what_a_stream_refuses_is_told_by_code(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", JSON, "[1]");
    caller.put("a", &[TEXT], "").expect_refusal("ALREADY_EXISTS");
    caller.post("a", &[JSON], "").expect_refusal("EMPTY_BODY");
    caller.post("a", &[JSON], "[]").expect_refusal("EMPTY_ARRAY");
    caller.post("a", &[JSON], "]").expect_refusal("INVALID_JSON");
    caller.post("a", &[TEXT], "x").expect_refusal("CONTENT_TYPE_MISMATCH");
    caller.post("a", &[JSON, ("Stream-Seq", "b")], "2").expect_status(204);
    let conflict = caller.post("a", &[JSON, ("Stream-Seq", "a")], "3").expect_refusal("SEQUENCE_CONFLICT");
    conflict.expect_no_header("Producer-Expected-Seq").expect_no_header("Stream-Closed");
    let gap =
        caller.post("a", &Producer::new("p", 0, 3).with(&[JSON]), "3").expect_refusal("SEQUENCE_CONFLICT");
    gap.expect_header("Producer-Expected-Seq", "0").expect_header("Producer-Received-Seq", "3");
    caller.post("a", &Producer::new("p", 1, 0).with(&[JSON]), "3").expect_status(200);
    let fenced = caller.post("a", &Producer::new("p", 0, 0).with(&[JSON]), "4");
    fenced.expect_refusal("PRODUCER_EPOCH_FENCED").expect_header("Producer-Epoch", "1");
    caller.get(&format!("a?offset={}", offset(3)), &[]).expect_refusal("INVALID_OFFSET");
    caller.post("a", &[CLOSED], "").expect_status(204);
    let closed = caller.post("a", &[JSON], "5").expect_refusal("STREAM_CLOSED");
    closed.expect_header("Stream-Next-Offset", &offset(6));
    caller.delete("a").expect_status(204);
    caller.delete("a").expect_refusal("NOT_FOUND");
}

fn refusals_of_head_have_no_body(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    for (target, status) in [
        (path("absent"), 404),
        (path("a%00"), 400),
        (path("__ds/x"), 404),
        ("/elsewhere".to_owned(), 404),
        (path(""), 404),
    ] {
        let refused = caller.send("HEAD", &target, &[], b"").expect_status(status);
        assert_eq!(refused.body, b"");
        // As GET would answer, without the document itself.
        let with_body = caller.send("GET", &target, &[], b"").expect_status(status);
        for header in ["Content-Type", "Content-Length", "Cache-Control"] {
            assert_eq!(refused.header(header), with_body.header(header), "{header} of {target}");
        }
    }
}

fn deleted_stream_with_forks_is_gone_for_every_method(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("source", TEXT, "abc");
    let from_source = [("Stream-Forked-From", "/v1/stream/source")];
    caller.put("fork", &from_source, "").expect_status(201);
    caller.delete("source").expect_status(204);
    caller.head("source").expect_refusal("GONE");
    caller.delete("source").expect_refusal("GONE");
    caller.post("source", &[TEXT], "x").expect_refusal("GONE");
    caller.post("source", &[CLOSED], "").expect_refusal("GONE");
    for query in ["", "?offset=now", "?offset=now&live=long-poll", "?offset=-1&live=sse"] {
        caller.get(&format!("source{query}"), &[]).expect_refusal("GONE");
    }
    caller.put("source", &[TEXT], "").expect_refusal("PATH_BLOCKED");
    caller.put("another", &from_source, "").expect_refusal("FORK_FROM_TOMBSTONE");
    assert_eq!(caller.content("fork"), "abc");
}

#[test]
fn router_refuses_in_the_same_format() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "");
    for (method, target, allow) in [
        ("PATCH", "/v1/stream/a", "GET, HEAD, PUT, POST, DELETE, OPTIONS"),
        ("TRACE", "/v1/stream/absent", "GET, HEAD, PUT, POST, DELETE, OPTIONS"),
        ("LINK", "/v1/stream/a", "GET, HEAD, PUT, POST, DELETE, OPTIONS"),
        ("PUT", "/healthz", "GET, HEAD, OPTIONS"),
        ("DELETE", "/readyz", "GET, HEAD, OPTIONS"),
        ("POST", "/readyz?x", "GET, HEAD, OPTIONS"),
    ] {
        let refused = caller.send(method, target, &[], b"").expect_refusal("METHOD_NOT_ALLOWED");
        refused.expect_header("Allow", allow);
    }
    for method in ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "LINK"] {
        for target in
            ["/", "/elsewhere", "/v1/stream", "/v1/stream/", "/v1/streams/a", "/healthz/", "/metrics"]
        {
            caller.send(method, target, &[], b"").expect_refusal("NOT_FOUND");
        }
    }
}

#[test]
fn instance_is_the_path_as_sent_without_the_query() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    // The check of every answer compares `instance`; here are targets where it could go wrong.
    for target in [
        "/v1/stream/a%2Fb%20c?offset=-1&x=%22",
        "/v1/stream/%C3%BC",
        "/v1/stream/ü",
        "/v1/stream/a\"b\\c",
        "/x?y?z",
    ] {
        caller.send("GET", target, &[], b"").expect_refusal("NOT_FOUND");
    }
    caller.send("GET", "/v1/stream/a%0A%22b", &[], b"").expect_refusal("INVALID_STREAM_NAME");
}

#[test]
fn what_only_the_request_can_be_blamed_for_is_told_by_code() {
    let server = start(&[("DS_LIMITS__MAX_BODY_BYTES", "10")]);
    let mut caller = Caller::to(&server);
    caller.post("a", &[TEXT, ("Producer-Id", "p")], "x").expect_refusal("BAD_REQUEST");
    caller.put("a%00", &[], "").expect_refusal("INVALID_STREAM_NAME");
    caller.get("a?offset=x", &[]).expect_refusal("INVALID_OFFSET");
    caller.get("a?live=sse", &[]).expect_refusal("BAD_REQUEST");
    caller.post("a", &[TEXT, ("Content-Encoding", "br")], "x").expect_refusal("UNSUPPORTED_ENCODING");
    let mut alone = Caller::to(&server);
    alone.post("a", &[TEXT], "12345678901").expect_refusal("PAYLOAD_TOO_LARGE");
}

#[test]
fn health_is_plain_text() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    for (target, text) in [("/healthz", "ok"), ("/readyz", "ready"), ("/readyz?verbose", "ready")] {
        let answer = caller.send("GET", target, &[], b"").expect_status(200);
        assert_eq!(answer.text(), text);
        answer.expect_header("Cache-Control", "no-store");
        caller.send("HEAD", target, &[], b"").expect_status(200);
        caller.send("OPTIONS", target, &[], b"").expect_status(204);
    }
}
