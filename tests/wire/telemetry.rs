//! What the log says of requests.

use serde_json::Value;

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, TEXT, path, start};
use crate::support::ServerProcess;
use crate::support::sse::EventStream;

const DEBUG: (&str, &str) = ("DS_LOG__RUST_LOG", "durable_streams_server=debug");
const AS_JSON: (&str, &str) = ("DS_LOG__FORMAT", "json");

/// The lines that a stopped server has logged about requests, as JSON.
#[track_caller]
fn request_events(server: &mut ServerProcess) -> Vec<Value> {
    assert!(server.terminate().success());
    let log = server.stderr();
    let events = log.lines().map(|line| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line:?}"));
        assert!(event["@timestamp"].is_string() && event["log.level"].is_string(), "{line}");
        event
    });
    events.filter(|event| event.get("http.request.method").is_some()).collect()
}

/// Requests of every kind that a healthy server is asked, refusals included.
fn ask_everything(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("watched", TEXT, "abc");
    caller.put("watched", &[TEXT], "").expect_status(200);
    caller.append("watched", TEXT, "abc");
    caller.get("watched", &[]).expect_status(200);
    caller.get("watched?offset=-1&live=long-poll", &[]).expect_status(200);
    caller.get("watched?offset=bad", &[]).expect_refusal("INVALID_OFFSET");
    caller.head("watched").expect_status(200);
    caller.post("watched", &[], "x").expect_refusal("BAD_REQUEST");
    caller.put("watched%00", &[], "").expect_refusal("INVALID_STREAM_NAME");
    caller.send("OPTIONS", &path("watched"), &[], b"").expect_status(204);
    caller.send("PATCH", &path("watched"), &[], b"").expect_refusal("METHOD_NOT_ALLOWED");
    caller.send("GET", "/watched", &[], b"").expect_refusal("NOT_FOUND");
    caller.send("GET", "/healthz", &[], b"").expect_status(200);
    let target = path("watched?offset=-1&live=sse");
    let mut events = EventStream::open(server.origin(), &target, &[])
        .expect("the server answers")
        .expect("the stream can be read");
    events.next_message().expect("the response goes on").expect("there is data");
    caller.post("watched", &[CLOSED], "").expect_status(204);
    while events.next_message().expect("the response ends in order").is_some() {}
    caller.delete("watched").expect_status(204);
}

#[test]
fn ordinary_requests_write_no_line_at_the_default_level() {
    for format in ["text", "json"] {
        let lines_after = |ask: fn(&ServerProcess)| {
            let mut server = start(&[("DS_LOG__FORMAT", format)]);
            ask(&server);
            assert!(server.terminate().success());
            let log = server.stderr();
            assert!(!log.contains("watched"), "{log}");
            assert!(!log.contains("http.request.method"), "{log}");
            log.lines().count()
        };
        assert_eq!(lines_after(ask_everything), lines_after(|_| {}), "{format}");
    }
}

#[test]
fn every_request_is_one_event_at_debug_level() {
    let mut server = start(&[DEBUG, AS_JSON]);
    ask_everything(&server);
    let events = request_events(&mut server);
    let seen: Vec<_> = events
        .iter()
        .filter(|event| event["url.path"].as_str().is_some_and(|path| path.contains("watched")))
        .map(|event| {
            assert_eq!(event["log.level"], "debug", "{event}");
            assert!(event["event.duration"].is_u64(), "{event}");
            let text = |name: &str| event.get(name).and_then(Value::as_str).map(str::to_owned);
            let method = text("http.request.method").expect("every request has a method");
            let status = event["http.response.status_code"].as_u64().expect("every request has a status");
            (method, status, text("ds.operation"), text("error.type"), text("ds.stream"))
        })
        .collect();
    let on_stream = |method: &str, status, operation: &str, error: Option<&str>| {
        let error = error.map(str::to_owned);
        (method.to_owned(), status, Some(operation.to_owned()), error, Some("watched".to_owned()))
    };
    let elsewhere =
        |method: &str, status, error: &str| (method.to_owned(), status, None, Some(error.to_owned()), None);
    let expected = [
        on_stream("PUT", 201, "create", None),
        on_stream("PUT", 200, "create", None),
        on_stream("POST", 204, "append", None),
        on_stream("GET", 200, "read", None),
        on_stream("GET", 200, "long_poll", None),
        on_stream("HEAD", 200, "head", None),
        on_stream("POST", 400, "append", Some("BAD_REQUEST")),
        elsewhere("PUT", 400, "INVALID_STREAM_NAME"),
        elsewhere("GET", 404, "NOT_FOUND"),
        on_stream("GET", 200, "sse", None),
        on_stream("POST", 204, "append", None),
        on_stream("DELETE", 204, "delete", None),
    ];
    for event in &expected {
        let count = |events: &[_]| events.iter().filter(|other| *other == event).count();
        assert_eq!(count(&seen), count(&expected), "{event:?} in {seen:?}");
    }
    // And the three whose operation has no name: a bad query, a preflight, an unknown method.
    assert_eq!(seen.len(), expected.len() + 3, "{seen:?}");
    let of = |method: &str, status: u64| {
        seen.iter().filter(|event| event.0 == method && event.1 == status).count()
    };
    assert_eq!((of("GET", 400), of("OPTIONS", 204), of("PATCH", 405)), (1, 1, 1), "{seen:?}");
}

#[test]
fn text_lines_carry_the_same_names() {
    let mut server = start(&[DEBUG, ("DS_LOG__FORMAT", "text")]);
    let mut caller = Caller::to(&server);
    caller.create("watched", TEXT, "abc");
    caller.post("watched", &[TEXT], "").expect_refusal("EMPTY_BODY");
    assert!(server.terminate().success());
    let log = server.stderr();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("/v1/stream/watched")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    for (line, method, status) in [(lines[0], "PUT", "201"), (lines[1], "POST", "400")] {
        for expected in [
            " DEBUG ".to_owned(),
            format!("http.request.method=\"{method}\""),
            "url.path=\"/v1/stream/watched\"".to_owned(),
            format!("http.response.status_code={status}"),
            "ds.stream=\"watched\"".to_owned(),
            "ds.operation=".to_owned(),
            "event.duration=".to_owned(),
        ] {
            assert!(line.contains(&expected), "no {expected} in {line}");
        }
    }
    assert!(!lines[0].contains("error.type"), "{}", lines[0]);
    assert!(lines[1].contains("error.type=\"EMPTY_BODY\""), "{}", lines[1]);
}

#[test]
fn failures_of_the_server_are_warnings_at_the_default_level() {
    let mut server = start(&[("DS_LIMITS__MAX_STREAMS", "1"), AS_JSON]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "");
    caller.put("watched", &[TEXT], "").expect_refusal("INSUFFICIENT_STORAGE");
    let events = request_events(&mut server);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["log.level"], "warn");
    assert_eq!(events[0]["http.response.status_code"], 507);
    assert_eq!(events[0]["error.type"], "INSUFFICIENT_STORAGE");
    assert_eq!(events[0]["ds.stream"], "watched");
}

#[test]
fn requests_cannot_forge_lines() {
    for format in ["text", "json"] {
        let mut server = start(&[DEBUG, ("DS_LOG__FORMAT", format)]);
        let mut caller = Caller::to(&server);
        caller.put("a%0AERROR%20forged", &[TEXT], "").expect_refusal("INVALID_STREAM_NAME");
        caller.create("%E2%80%A8forged%C2%85", TEXT, "");
        caller.get("b?live=%0Aforged&offset=-1", &[]).expect_refusal("BAD_REQUEST");
        assert!(server.terminate().success());
        let log = server.stderr();
        let forged: Vec<_> =
            log.split(['\n', '\u{2028}', '\u{85}']).filter(|line| line.contains("forged")).collect();
        if format == "text" {
            assert_eq!(forged.len(), 3, "{forged:?}");
            assert!(forged.iter().all(|line| line.contains(" DEBUG ")), "{forged:?}");
        } else {
            // JSON readers take LF alone for the end of a line.
            for line in log.lines() {
                serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not JSON: {line:?}"));
            }
        }
    }
}
