//! What browsers need: `protocol.md` §20. That every answer has the headers is checked by [`contract`] for each
//! request of these tests; here are answers of every kind, preflights, and lists of origins.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use durable_streams_server::config::Config;
use durable_streams_server::{InMemoryStorage, build_router_with_ready};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::contract::{self, Expectations};
use crate::service::{CLOSED, Caller, JSON, Producer, TEXT, answer_to, connect, offset, path, start};
use crate::support::ServerProcess;
use crate::support::http::Response;
use crate::support::sse::EventStream;

/// Requests that are answered with as many statuses as can be had, each with its answer's.
fn every_status(mut send: impl FnMut(&str, &str, &[(&str, &str)], &[u8], u16)) {
    let a = path("a");
    send("PUT", &a, &[TEXT], b"abc", 201);
    send("PUT", &a, &[TEXT], b"", 200);
    send("PUT", &a, &[JSON], b"", 409);
    send("POST", &a, &[TEXT], b"abc", 204);
    send("POST", &a, &Producer::new("p", 5, 0).with(&[TEXT]), b"abc", 200);
    send("POST", &a, &Producer::new("p", 1, 0).with(&[TEXT]), b"abc", 403);
    send("POST", &a, &Producer::new("p", 5, 9).with(&[TEXT]), b"abc", 409);
    send("POST", &a, &[TEXT], b"", 400);
    send("POST", &a, &[TEXT, ("Content-Encoding", "gzip")], b"abc", 415);
    send("POST", &a, &[TEXT], &[b'x'; 1001], 413);
    send("POST", &path("missing"), &[TEXT], b"abc", 404);
    send("GET", &a, &[], b"", 200);
    send("GET", &format!("{a}?offset=now"), &[], b"", 200);
    send("GET", &a, &[("If-None-Match", "*")], b"", 304);
    send("GET", &format!("{a}?offset=bad"), &[], b"", 400);
    send("GET", &format!("{a}?offset=-1&live=long-poll"), &[], b"", 200);
    send("GET", &format!("{a}?offset=now&live=long-poll"), &[], b"", 204);
    send("HEAD", &a, &[], b"", 200);
    send("HEAD", &path("missing"), &[], b"", 404);
    send("HEAD", &path("a%00"), &[], b"", 400);
    send("PATCH", &a, &[], b"", 405);
    send("GET", "/elsewhere", &[], b"", 404);
    send("GET", &path("__ds/x"), &[], b"", 404);
    send("GET", "/healthz", &[], b"", 200);
    send("HEAD", "/readyz", &[], b"", 200);
    send("POST", "/healthz", &[], b"", 405);
    send("OPTIONS", "/elsewhere", &[], b"", 204);
    send("PUT", &path("b"), &[TEXT], b"", 201);
    send("PUT", &path("c"), &[TEXT], b"", 507);
    send("DELETE", &path("b"), &[], b"", 204);
    send("PUT", &path("fork"), &[("Stream-Forked-From", &a)], b"", 201);
    send("POST", &a, &[CLOSED], b"", 204);
    send("POST", &a, &[TEXT], b"x", 409);
    send("DELETE", &a, &[], b"", 204);
    send("GET", &a, &[], b"", 410);
    send("PUT", &a, &[TEXT], b"", 409);
    send("DELETE", &path("fork"), &[], b"", 204);
}

fn start_with_low_limits(environment: &[(&str, &str)]) -> ServerProcess {
    let limits = [
        ("DS_LIMITS__MAX_BODY_BYTES", "1000"),
        ("DS_LIMITS__MAX_STREAMS", "2"),
        ("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "0.05"),
    ];
    start(&[&limits[..], environment].concat())
}

#[test]
fn answers_of_every_status_can_be_read_by_any_page() {
    let server = start_with_low_limits(&[]);
    let mut client = server.client();
    every_status(|method, target, headers, body, status| {
        let headers = [headers, &[("Origin", "https://page.example")]].concat();
        let answer = client.request(method, target, &headers, body);
        assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
        contract::check(&answer, method, target);
    });
}

#[test]
fn refusal_of_a_stalled_body_can_be_read_too() {
    let server = start(&[("DS_LIMITS__REQUEST_BODY_TIMEOUT_SECS", "0.1")]);
    let mut connection = connect(&server);
    let stalled = [TEXT, ("Content-Length", "10")];
    let answer = connection.request("POST", &path("b"), &stalled, b"x").expect("there is an answer");
    contract::check(&answer, "POST", &path("b"));
    answer.expect_status(408);
}

#[test]
fn answers_to_broken_heads_can_be_read_too() {
    for (list, origin, vary) in [("*", Some("*"), None), ("https://page.example", None, Some("Origin"))] {
        let server = start(&[("DS_HTTP__CORS_ORIGINS", list)]);
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(200_000));
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(200_000));
        for (head, statuses) in [("broken\r\n\r\n", &[400][..]), (&large, &[431]), (&long, &[414, 431])] {
            let answer = answer_to(&server, head).expect("there is an answer");
            assert!(statuses.contains(&answer.status), "{answer:?}");
            answer
                .expect_header("X-Content-Type-Options", "nosniff")
                .expect_header("Cross-Origin-Resource-Policy", "cross-origin")
                .expect_header("Access-Control-Expose-Headers", contract::EXPOSED);
            assert_eq!(answer.header("Access-Control-Allow-Origin"), origin);
            assert_eq!(answer.header("Vary"), vary);
        }
    }
}

#[test]
fn refused_connections_can_be_read_too() {
    let server = start(&[("DS_LIMITS__MAX_CONNECTIONS", "1")]);
    let mut kept = Vec::new();
    // The connection that asked whether the server is ready may still count.
    let refused = loop {
        let mut connection = connect(&server);
        let answer = connection.request("GET", "/healthz", &[], b"").expect("there is an answer");
        if answer.status == 503 {
            break answer;
        }
        kept.push(connection);
        assert!(kept.len() <= 1, "a second connection is served");
    };
    refused
        .expect_header("Content-Type", "application/problem+json")
        .expect_header("X-Content-Type-Options", "nosniff")
        .expect_header("Cross-Origin-Resource-Policy", "cross-origin")
        .expect_header("Access-Control-Allow-Origin", "*")
        .expect_header("Access-Control-Expose-Headers", contract::EXPOSED)
        .expect_header("Retry-After", "1");
}

#[tokio::test]
async fn readiness_says_503_until_the_host_is_ready_and_when_it_stops() {
    let config = Config::default();
    let storage = Arc::new(InMemoryStorage::new(&config).expect("memory can be had"));
    let ready = Arc::new(AtomicBool::new(false));
    let shutdown = CancellationToken::new();
    let router = build_router_with_ready(storage, &config, Arc::clone(&ready), shutdown.clone());
    let ask = async |method: &str| {
        let request = Request::builder().method(method).uri("/readyz").body(Body::empty());
        let answer = router.clone().oneshot(request.expect("it is a request")).await.expect("it cannot fail");
        let answer = collected(answer).await;
        contract::check(&answer, method, "/readyz");
        answer
    };
    for method in ["GET", "HEAD"] {
        ask(method).await.expect_refusal("UNAVAILABLE").expect_header("Retry-After", "1");
    }
    ready.store(true, Ordering::Release);
    assert_eq!(ask("GET").await.expect_status(StatusCode::OK.as_u16()).text(), "ready");
    shutdown.cancel();
    for method in ["GET", "HEAD"] {
        ask(method).await.expect_refusal("UNAVAILABLE").expect_header("Retry-After", "1");
    }
}

/// An answer of a router as one from the wire.
async fn collected(answer: axum::response::Response) -> Response {
    let (parts, body) = answer.into_parts();
    let value = |value: &axum::http::HeaderValue| value.to_str().expect("it is text").to_owned();
    let headers = parts.headers.iter().map(|(name, text)| (name.to_string(), value(text))).collect();
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("the body is complete").to_vec();
    Response { status: parts.status.as_u16(), headers, body }
}

#[test]
fn events_can_be_read_by_any_page_and_their_encoding_too() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("text", TEXT, "abc");
    caller.create("json", JSON, "[1]");
    caller.create("binary", ("Content-Type", "image/png"), "abc");
    for (name, encoding) in [("text", None), ("json", None), ("binary", Some("base64"))] {
        let target = path(&format!("{name}?offset=-1&live=sse"));
        let events = EventStream::open(server.origin(), &target, &[("Origin", "https://page.example")])
            .expect("the server answers")
            .expect("the stream can be read");
        let head = events.response();
        contract::check(head, "GET", &target);
        head.expect_header("Content-Type", "text/event-stream").expect_header("X-Accel-Buffering", "no");
        assert_eq!(head.header("Stream-SSE-Data-Encoding"), encoding);
        let exposed = head.header("Access-Control-Expose-Headers").expect("it was checked above");
        assert!(exposed.split(", ").any(|name| name == "Stream-SSE-Data-Encoding"));
    }
}

#[test]
fn preflight_is_answered_for_every_path() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("exists", TEXT, "");
    let asked = [
        ("Origin", "https://page.example"),
        ("Access-Control-Request-Method", "PUT"),
        ("Access-Control-Request-Headers", "authorization, content-type, producer-id, x-other"),
    ];
    for target in
        [&*path("exists"), &path("absent"), &path("a%00"), &path("__ds/x"), "/v1/stream", "/", "/healthz"]
    {
        for headers in [&asked[..], &[]] {
            let answer = caller.send("OPTIONS", target, headers, b"").expect_status(204);
            answer
                .expect_header("Access-Control-Allow-Methods", "GET, HEAD, PUT, POST, DELETE, OPTIONS")
                .expect_header("Access-Control-Max-Age", "86400")
                .expect_header(
                    "Access-Control-Allow-Headers",
                    "Authorization, Content-Type, If-None-Match, Stream-Seq, Stream-TTL, Stream-Expires-At, \
                     Stream-Closed, Stream-Forked-From, Stream-Fork-Offset, Stream-Fork-Sub-Offset, \
                     Stream-Retention-Max-Age, Stream-Retention-Max-Bytes, Producer-Id, Producer-Epoch, \
                     Producer-Seq, traceparent, tracestate, *",
                );
        }
    }
    caller.assert_absent("absent");
    let answer = caller.get("exists", &[]).expect_status(200);
    answer.expect_no_header("Access-Control-Allow-Methods").expect_no_header("Access-Control-Allow-Headers");
}

#[test]
fn every_offset_that_an_answer_has_can_be_read() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "abc");
    let polled = caller.get("a?offset=-1&live=long-poll", &[]).expect_status(200);
    let exposed = contract::EXPOSED.split(", ").map(str::to_ascii_lowercase).collect::<Vec<_>>();
    let own = |name: &str| name.starts_with("stream-") || name.starts_with("producer-") || name == "etag";
    for (name, _) in &polled.headers {
        let name = name.to_ascii_lowercase();
        assert!(!own(&name) || exposed.contains(&name), "{name} is not exposed");
    }
    polled.expect_header("Stream-Next-Offset", &offset(3));
}

#[test]
fn listed_origins_may_read_and_every_answer_varies() {
    let listed = ["https://one.example", "http://two.example:8080"];
    for origin in [
        None,
        Some(listed[0]),
        Some(listed[1]),
        Some("https://three.example"),
        Some("null"),
        Some("https://one.example.evil"),
    ] {
        let server = start_with_low_limits(&[("DS_HTTP__CORS_ORIGINS", &listed.join(","))]);
        let mut client = server.client();
        let allowed = origin.filter(|origin| listed.contains(origin));
        every_status(|method, target, headers, body, status| {
            let mut headers = headers.to_vec();
            headers.extend(origin.map(|origin| ("Origin", origin)));
            let answer = client.request(method, target, &headers, body);
            assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
            contract::check_whatever_the_origin(&answer, method, target);
            answer.expect_header("Vary", "Origin");
            assert_eq!(answer.header("Access-Control-Allow-Origin"), allowed, "{method} {target}");
        });
    }
}
