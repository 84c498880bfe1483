//! Bodies that come in pieces, too large, too slow, coded, or not to their end: `protocol.md` §1 rule 7, §3 and §4.

use std::io::Write;
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread;

use crate::contract::{self, Expectations};
use crate::service::{CLOSED, Caller, JSON, Producer, TEXT, connect, in_each_mode, offset, path, start};
use crate::support::ServerProcess;
use crate::support::http::{Connection, PATIENCE, Response};

in_each_mode!(
    chunked_bodies_are_taken_whole,
    cut_off_bodies_store_nothing,
    malformed_chunks_store_nothing,
    coded_bodies_are_refused,
    empty_chunked_body_is_no_body,
);

const CHUNKED: (&str, &str) = ("Transfer-Encoding", "chunked");

/// A body in the chunked coding, without its end.
fn chunks(pieces: &[&str]) -> String {
    pieces.iter().map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len())).collect()
}

/// Sends a request and reads its answer, which is checked.
#[track_caller]
fn exchange(
    connection: &mut Connection,
    method: &str,
    name: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Response {
    let target = path(name);
    let answer = connection.request(method, &target, headers, body.as_ref()).expect("there is an answer");
    contract::check(&answer, method, &target);
    answer
}

/// As [`exchange`], over a connection of its own, which the server has to end if it says so.
#[track_caller]
fn exchange_alone(
    server: &ServerProcess,
    method: &str,
    name: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> Response {
    let mut connection = connect(server);
    let answer = exchange(&mut connection, method, name, headers, body);
    if answer.header("Connection") == Some("close") {
        assert!(connection.is_closed_by_server());
    }
    answer
}

fn chunked_bodies_are_taken_whole(server: &ServerProcess) {
    let mut connection = connect(server);
    let put = format!("{}0\r\n\r\n", chunks(&["ab", "c"]));
    let created = exchange(&mut connection, "PUT", "a", &[TEXT, CHUNKED], put).expect_status(201);
    created.expect_header("Stream-Next-Offset", &offset(3));
    // Chunk extensions and trailers mean nothing.
    let odd =
        "1;x=y\r\nd\r\n00002;\"q\"\r\nef\r\n0\r\nStream-Closed: true\r\nContent-Type: text/html\r\n\r\n";
    let appended = exchange(&mut connection, "POST", "a", &[TEXT, CHUNKED], odd).expect_status(204);
    appended.expect_header("Stream-Next-Offset", &offset(6)).expect_no_header("Stream-Closed");
    let single: Vec<_> = "ghijklmnop".split("").filter(|piece| !piece.is_empty()).collect();
    let closing = format!("{}0\r\n\r\n", chunks(&single));
    let closed = exchange(&mut connection, "POST", "a", &[TEXT, CHUNKED, CLOSED], closing).expect_status(204);
    closed.expect_header("Stream-Closed", "true");
    assert_eq!(exchange(&mut connection, "GET", "a", &[], "").text(), "abcdefghijklmnop");
    // Pieces of JSON are no messages.
    let json = format!("{}0\r\n\r\n", chunks(&["[1", "2,", "3", "]"]));
    exchange(&mut connection, "PUT", "b", &[JSON, CHUNKED], json).expect_status(201);
    assert_eq!(exchange(&mut connection, "GET", "b", &[], "").text(), "[12,3]");
}

fn cut_off_bodies_store_nothing(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    let sized = [("Content-Length", "10")];
    let producer = Producer::new("p", 0, 0);
    for (framing, body) in [
        (sized[0], "123456789".to_owned()),
        (CHUNKED, chunks(&["12345"])),
        (CHUNKED, format!("{}5\r\n123", chunks(&["12345"]))),
        (CHUNKED, format!("{}0\r\n", chunks(&["12345"]))),
    ] {
        for (method, name) in [("POST", "a"), ("PUT", "new")] {
            let mut connection = connect(server);
            let headers = producer.with(&[TEXT, CLOSED, ("Stream-Seq", "1"), framing]);
            connection.send_request(method, &path(name), &headers, body.as_bytes()).expect("it is taken");
            connection.socket().shutdown(Shutdown::Write).expect("a socket can be closed for writing");
            // An answer is of no use to a client that is gone. If there is one, it is a refusal.
            if let Ok(answer) = connection.read_response(method) {
                contract::check(&answer, method, &path(name));
                answer.expect_refusal("BAD_REQUEST");
            }
            assert!(connection.is_closed_by_server());
        }
        assert_eq!(caller.content("a"), "");
        assert!(!caller.is_closed("a"));
        caller.assert_absent("new");
    }
    // Neither the producer's number nor the sequence was used up.
    caller.post("a", &producer.with(&[TEXT, ("Stream-Seq", "1")]), "x").expect_status(200);
}

fn malformed_chunks_store_nothing(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    for body in [
        "x\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc",
        "3\r\nabc\r\n\r\n0\r\n\r\n",
    ] {
        let answer = exchange_alone(server, "POST", "a", &[TEXT, CHUNKED], body);
        answer.expect_refusal("BAD_REQUEST").expect_header("Connection", "close");
        assert_eq!(caller.content("a"), "", "{body:?}");
    }
}

fn coded_bodies_are_refused(server: &ServerProcess) {
    let mut caller = Caller::to(server);
    caller.create("a", TEXT, "");
    for coding in ["gzip", "br", "deflate", "zstd", "x-unknown", "gzip, identity", "identity, gzip", ""] {
        for name in ["a", "absent"] {
            let headers = [TEXT, ("Content-Encoding", coding)];
            caller.post(name, &headers, "abc").expect_refusal("UNSUPPORTED_ENCODING");
        }
        caller
            .put("new", &[TEXT, ("Content-Encoding", coding)], "abc")
            .expect_refusal("UNSUPPORTED_ENCODING");
        caller.assert_absent("new");
    }
    for identity in ["identity", "Identity", "IDENTITY"] {
        caller.post("a", &[TEXT, ("Content-Encoding", identity)], "x").expect_status(204);
    }
    assert_eq!(caller.content("a"), "xxx");
    caller.get("a", &[("Content-Encoding", "gzip")]).expect_status(200);
}

fn empty_chunked_body_is_no_body(server: &ServerProcess) {
    let mut connection = connect(server);
    let empty = "0\r\n\r\n";
    exchange(&mut connection, "PUT", "a", &[TEXT, CHUNKED], empty).expect_status(201);
    exchange(&mut connection, "POST", "a", &[TEXT, CHUNKED], empty).expect_refusal("EMPTY_BODY");
    exchange(&mut connection, "POST", "a", &[CHUNKED], empty).expect_refusal("EMPTY_BODY");
    let closed = exchange(&mut connection, "POST", "a", &[CHUNKED, CLOSED], empty).expect_status(204);
    closed.expect_header("Stream-Closed", "true").expect_header("Stream-Next-Offset", &offset(0));
}

#[test]
fn bodies_up_to_the_limit_are_taken_and_larger_ones_refused() {
    let server = start(&[("DS_LIMITS__MAX_BODY_BYTES", "1000")]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "");
    for (size, is_taken) in [(999, true), (1000, true), (1001, false), (100_000, false)] {
        let body = "x".repeat(size);
        let halves = format!("{}0\r\n\r\n", chunks(&[&body[..size / 2], &body[size / 2..]]));
        let at_once = format!("{}0\r\n\r\n", chunks(&[&body]));
        for (framing, sent) in [(("X-Sized", ""), &body), (CHUNKED, &halves), (CHUNKED, &at_once)] {
            for (method, name, taken) in [("POST", "a", 204), ("PUT", "new", 201)] {
                let answer = exchange_alone(&server, method, name, &[TEXT, framing], sent);
                if is_taken {
                    answer.expect_status(taken);
                } else {
                    answer.expect_refusal("PAYLOAD_TOO_LARGE").expect_header("Connection", "close");
                }
            }
            if is_taken {
                caller.delete("new").expect_status(204);
            } else {
                caller.assert_absent("new");
            }
        }
    }
    assert_eq!(caller.content("a").len(), 3 * (999 + 1000));
}

#[test]
fn declared_body_above_the_limit_is_refused_without_being_read() {
    let server = start(&[("DS_LIMITS__MAX_BODY_BYTES", "1000")]);
    Caller::to(&server).create("a", TEXT, "");
    for length in ["1001", "200000000", "9223372036854775807"] {
        for name in ["a", "absent"] {
            let headers = [TEXT, ("Content-Length", length)];
            let refused =
                exchange_alone(&server, "POST", name, &headers, "").expect_refusal("PAYLOAD_TOO_LARGE");
            refused.expect_header("Connection", "close");
        }
    }
    // Waiting clients are not told to send what will be refused.
    let headers = [TEXT, ("Content-Length", "1001"), ("Expect", "100-continue")];
    exchange_alone(&server, "POST", "a", &headers, "").expect_refusal("PAYLOAD_TOO_LARGE");
}

#[test]
fn unending_upload_is_refused_at_the_limit() {
    let server = start(&[("DS_LIMITS__MAX_BODY_BYTES", "100000")]);
    Caller::to(&server).create("a", TEXT, "");
    let mut connection = connect(&server);
    connection.send_request("POST", &path("a"), &[TEXT, CHUNKED], b"").expect("a new connection takes bytes");
    let chunk = chunks(&[&"x".repeat(1000)]);
    // More than the limit, and no end of it.
    for _ in 0..101 {
        connection.send_raw(chunk.as_bytes()).expect("the body is taken in, though not stored");
    }
    let refused = connection.read_response("POST").expect("there is an answer");
    contract::check(&refused, "POST", &path("a"));
    refused.expect_refusal("PAYLOAD_TOO_LARGE");
    assert_eq!(Caller::to(&server).content("a"), "");
}

#[test]
fn stalled_body_is_timed_out_and_stores_nothing() {
    let server = start(&[("DS_LIMITS__REQUEST_BODY_TIMEOUT_SECS", "0.1")]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "");
    let some = chunks(&["abc"]);
    for (framing, body) in [
        (("Content-Length", "10"), "abc"),
        (("Content-Length", "10"), ""),
        (CHUNKED, some.as_str()),
        (CHUNKED, ""),
    ] {
        for (method, name) in [("POST", "a"), ("PUT", "new"), ("POST", "absent")] {
            let answer = exchange_alone(&server, method, name, &[TEXT, framing], body);
            answer.expect_refusal("REQUEST_TIMEOUT").expect_header("Connection", "close");
        }
    }
    assert_eq!(caller.content("a"), "");
    caller.assert_absent("new");
}

#[test]
fn bodies_under_way_are_limited_together() {
    let server = start(&[
        ("DS_LIMITS__MAX_BODY_BYTES", "1000"),
        ("DS_LIMITS__MAX_BUFFERED_BODY_BYTES", "1500"),
        ("DS_LIMITS__REQUEST_BODY_TIMEOUT_SECS", "3600"),
    ]);
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, "");
    let headers = [TEXT, ("Content-Length", "1000")];
    let (answers, answered) = mpsc::channel();
    let mut sockets = Vec::new();
    thread::scope(|scope| {
        for _ in 0..2 {
            let mut connection = connect(&server);
            let most = [b'x'; 900];
            connection
                .send_request("POST", &path("a"), &headers, &most)
                .expect("a new connection takes bytes");
            sockets.push(connection.socket().try_clone().expect("a socket can be cloned"));
            let answers = answers.clone();
            scope.spawn(move || answers.send(connection.read_response("POST")));
        }
        let next = || answered.recv_timeout(PATIENCE).expect("there is an answer").expect("it is one");
        // One of the two is too much, and only that one is answered before it is complete.
        let refused = next();
        contract::check(&refused, "POST", &path("a"));
        refused.expect_refusal("UNAVAILABLE").expect_header("Connection", "close");
        for mut socket in &sockets {
            // The refused one may be closed by now.
            let _ = socket.write_all(&[b'y'; 100]);
        }
        next().expect_status(204);
    });
    // What was taken was given back.
    caller.append("a", TEXT, "z".repeat(1000));
    assert_eq!(caller.content("a").len(), 2000);
}
