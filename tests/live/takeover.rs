//! Event streams over plain HTTP/1.1, which the server writes without its HTTP library: where one begins and ends on a
//! connection that has other requests, and what becomes of it when its client goes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::support::http::Head;
use super::*;

/// Shorter than the time after which a connection is looked at without need.
const PROMPTLY: Duration = Duration::from_secs(20);

const CLOSE: (&str, &str) = ("Connection", "close");

fn sse(name: &str, offset: &str) -> String {
    path(&format!("{name}?offset={offset}&live=sse"))
}

/// Opens an event stream on a connection, and reads its head.
#[track_caller]
fn open(connection: &mut Connection, name: &str, offset: &str, headers: &[(&str, &str)]) -> Head {
    connection.send_request("GET", &sse(name, offset), headers, b"").expect("the connection takes bytes");
    let head = connection.read_head("GET").expect("there is an answer");
    assert_eq!(head.response.status, 200, "{:?}", head.response);
    head
}

#[track_caller]
fn piece(connection: &mut Connection, head: &mut Head) -> String {
    let piece = connection.read_piece(head).expect("the response goes on").expect("it is not over");
    String::from_utf8(piece).expect("events are UTF-8")
}

#[track_caller]
fn read_to_end(connection: &mut Connection, head: &mut Head) {
    while connection.read_piece(head).expect("the response ends as it should").is_some() {}
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PROMPTLY;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Everything up to the end of the head, without the date.
fn raw_head(server: &ServerProcess, target: &str) -> Vec<String> {
    let mut socket = TcpStream::connect(&server.origin().authority).expect("the server accepts connections");
    socket.set_read_timeout(Some(PATIENCE)).expect("the timeout is not zero");
    write!(socket, "GET {target} HTTP/1.1\r\nHost: a\r\nOrigin: https://a.example\r\n\r\n")
        .expect("it takes a head");
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("there is a head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("a head is text");
    head.split("\r\n").filter(|line| !line.starts_with("date: ")).map(str::to_owned).collect()
}

#[test]
fn a_head_is_the_same_to_the_byte_whoever_writes_it() {
    for settings in [&[][..], &[("DS_HTTP__CORS_ORIGINS", "https://a.example")]] {
        let server = start("memory", settings);
        create(&server, "text", &[TEXT], "content");
        create(&server, "bytes", &[BINARY], "content");
        create(&server, "closed", &[TEXT, CLOSED], "content");
        for target in ["text?offset=-1", "bytes?offset=-1", "closed?offset=now"] {
            let ours = raw_head(&server, &path(&format!("{target}&live=sse")));
            // Not seen as an event stream before its handler reads it, so it is a body as any other.
            let the_librarys = raw_head(&server, &path(&format!("{target}&live=ss%65")));
            assert_eq!(ours, the_librarys, "{target}");
            assert!(ours.iter().any(|line| line == "transfer-encoding: chunked"), "{ours:?}");
        }
    }
}

#[test]
fn a_client_that_leaves_is_noticed_without_any_traffic() {
    in_each_mode(&ENDLESS, |server| {
        for is_reset in [false, true] {
            let name = format!("s-{is_reset}");
            // Looking at it does not keep it alive, the reader does.
            create(server, &name, &[TEXT, ("Stream-TTL", "2")], "");
            let mut connection = server.origin().connect().expect("the server accepts connections");
            let mut head = open(&mut connection, &name, "now", &[]);
            piece(&mut connection, &mut head);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(3) {
                server.client().request("HEAD", &path(&name), &[], b"").expect_status(200);
                thread::sleep(Duration::from_millis(100));
            }
            if is_reset {
                let socket = socket2::SockRef::from(connection.socket());
                socket.set_linger(Some(Duration::ZERO)).expect("it can be set");
            }
            drop(connection);
            wait_until("a reader that has left keeps its stream alive", || {
                server.client().request("HEAD", &path(&name), &[], b"").status == 404
            });
        }
    });
}

#[test]
fn a_client_that_leaves_makes_room_for_another() {
    let server = start("memory", &[&ENDLESS[..], &[("DS_LIMITS__MAX_CONNECTIONS", "3")]].concat());
    create(&server, "s", &[TEXT], "");
    for _ in 0..3 {
        let mut kept = Vec::new();
        for _ in 0..3 {
            wait_until("there is no room", || {
                let mut connection = server.origin().connect().expect("the server accepts connections");
                connection.send_request("GET", &sse("s", "now"), &[], b"").expect("it takes a request");
                let is_open = connection.read_head("GET").is_ok_and(|head| head.response.status == 200);
                if is_open {
                    kept.push(connection);
                }
                is_open
            });
        }
    }
}

#[test]
fn a_client_that_closes_its_sending_side_goes_on_receiving() {
    in_each_mode(&ENDLESS, |server| {
        create(server, "s", &[TEXT], "");
        let mut connection = server.origin().connect().expect("the server accepts connections");
        let mut head = open(&mut connection, "s", "-1", &[]);
        assert!(piece(&mut connection, &mut head).starts_with("event: control\n"));
        connection.socket().shutdown(Shutdown::Write).expect("it is open");
        // That it is asked whether it is still there has no meaning for it.
        assert_eq!(piece(&mut connection, &mut head), ":\n\n");
        for number in 0..3 {
            append(server, "s", TEXT, number.to_string());
            assert!(
                piece(&mut connection, &mut head).starts_with(&format!("event: data\ndata:{number}\n\n"))
            );
        }
        close(server, "s");
        read_to_end(&mut connection, &mut head);
    });
}

#[test]
fn requests_around_an_event_stream_are_answered_in_order() {
    in_each_mode(&[("DS_SERVER__SSE_RECONNECT_INTERVAL_SECS", "0.3")], |server| {
        create(server, "s", &[TEXT], "content");
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut connection = server.origin().connect().expect("the server accepts connections");
        let all =
            [get("/healthz"), get(&sse("s", "-1")), get("/healthz"), get(&sse("s", "now")), get("/readyz")];
        connection.send_raw(all.concat().as_bytes()).expect("it takes requests");
        for offset_of_data in [Some("content"), None] {
            assert_eq!(connection.read_response("GET").expect("there is an answer").text(), "ok");
            let mut head = connection.read_head("GET").expect("there is an answer");
            let first = piece(&mut connection, &mut head);
            match offset_of_data {
                Some(data) => {
                    assert!(first.starts_with(&format!("event: data\ndata:{data}\n\n")), "{first:?}");
                }
                None => assert!(first.starts_with("event: control\n"), "{first:?}"),
            }
            read_to_end(&mut connection, &mut head);
        }
        assert_eq!(connection.read_response("GET").expect("there is an answer").text(), "ready");
        assert!(connection.open);
    });
}

#[test]
fn what_a_client_sends_meanwhile_is_answered_behind_the_end() {
    in_each_mode(&ENDLESS, |server| {
        create(server, "s", &[TEXT], "");
        let mut connection = server.origin().connect().expect("the server accepts connections");
        let mut head = open(&mut connection, "s", "-1", &[]);
        piece(&mut connection, &mut head);
        connection.send_request("GET", "/healthz", &[], b"").expect("it takes a request");
        assert_silent(&connection);
        for number in 0..3 {
            append(server, "s", TEXT, number.to_string());
            assert!(piece(&mut connection, &mut head).starts_with("event: data\n"));
        }
        close(server, "s");
        assert!(piece(&mut connection, &mut head).contains("\"streamClosed\":true"));
        read_to_end(&mut connection, &mut head);
        assert_eq!(connection.read_response("GET").expect("there is an answer").text(), "ok");
    });
}

#[test]
fn a_client_that_wants_to_close_is_closed_behind_the_end() {
    let server = start("memory", &ENDLESS);
    create(&server, "s", &[TEXT], "content");
    let mut connection = server.origin().connect().expect("the server accepts connections");
    let mut head = open(&mut connection, "s", "-1", &[CLOSE]);
    assert_eq!(head.response.header("Connection"), Some("close"));
    assert!(piece(&mut connection, &mut head).starts_with("event: data\n"));
    // Nobody reads this, and it takes nothing from the answer.
    connection.send_request("GET", "/healthz", &[], b"").expect("it takes bytes");
    close(&server, "s");
    read_to_end(&mut connection, &mut head);
    assert!(connection.is_closed_by_server());
}

#[test]
fn http_1_0_gets_events_until_the_connection_closes() {
    let server = start("memory", &ENDLESS);
    create(&server, "s", &[TEXT], "content");
    let mut socket = TcpStream::connect(&server.origin().authority).expect("the server accepts connections");
    socket.set_read_timeout(Some(PATIENCE)).expect("the timeout is not zero");
    write!(socket, "GET {} HTTP/1.0\r\n\r\n", sse("s", "-1")).expect("it takes a request");
    let mut seen = vec![0; 14];
    socket.read_exact(&mut seen).expect("there is an answer");
    close(&server, "s");
    socket.read_to_end(&mut seen).expect("the response ends with the connection");
    let text = String::from_utf8(seen).expect("events are UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head ends with an empty line");
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    assert!(!head.contains("chunked"), "{head}");
    assert!(body.starts_with("event: data\ndata:content\n\n"), "{body}");
    assert!(body.ends_with("\"streamClosed\":true}\n\n"), "{body}");
}

#[test]
fn a_head_request_for_events_has_no_body() {
    let server = start("memory", &ENDLESS);
    create(&server, "s", &[TEXT], "content");
    let mut connection = server.origin().connect().expect("the server accepts connections");
    for _ in 0..2 {
        let answer = connection.request("HEAD", &sse("s", "-1"), &[], b"").expect("there is an answer");
        assert_eq!(answer.expect_status(200).header("Transfer-Encoding"), None);
    }
}

/// Numbers that a reader has got, over as many responses as it takes, all on one connection if the server lets it.
fn read_all(server: &ServerProcess, lives: &AtomicUsize) -> io::Result<Vec<usize>> {
    let (mut seen, mut at) = (Vec::new(), 0);
    let mut connection = server.origin().connect()?;
    loop {
        if !connection.open {
            connection = server.origin().connect()?;
        }
        let mut head = open(&mut connection, "s", &offset(at), &[]);
        lives.fetch_add(1, Ordering::Relaxed);
        while let Some(chunk) = connection.read_piece(&mut head)? {
            let chunk = String::from_utf8(chunk).expect("events are UTF-8");
            for event in chunk.split_terminator("\n\n") {
                if let Some(data) = event.strip_prefix("event: data\ndata:") {
                    let numbers: Vec<usize> = serde_json::from_str(data).expect("each event is an array");
                    seen.extend(numbers);
                }
                if let Some(control) = event.strip_prefix("event: control\ndata:") {
                    let control: serde_json::Value = serde_json::from_str(control).expect("it is JSON");
                    at = position(control["streamNextOffset"].as_str().expect("every control has an offset"));
                    if control["streamClosed"] == true {
                        return Ok(seen);
                    }
                }
            }
        }
    }
}

#[test]
fn many_readers_get_everything_once_under_many_writers_over_many_responses() {
    const READERS: usize = 50;
    const WRITERS: usize = 8;
    const APPENDS: usize = 60;
    let server = start("memory", &[("DS_SERVER__SSE_RECONNECT_INTERVAL_SECS", "0.2")]);
    create(&server, "s", &[JSON], "");
    let lives = AtomicUsize::new(0);
    thread::scope(|threads| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| threads.spawn(|| read_all(&server, &lives).expect("it is served")))
            .collect();
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let server = &server;
                threads.spawn(move || {
                    let mut client = server.client();
                    for number in 0..APPENDS {
                        let body = (writer * APPENDS + number).to_string();
                        client.request("POST", &path("s"), &[JSON], body.as_bytes()).expect_status(204);
                    }
                })
            })
            .collect();
        // Also by a panic: readers wait for it.
        let outcomes: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        // So that some come back at least once, however fast the writers were.
        wait_until("nobody comes back", || lives.load(Ordering::Relaxed) > 2 * READERS);
        close(&server, "s");
        assert!(outcomes.iter().all(Result::is_ok));
        let mut first: Option<Vec<usize>> = None;
        for reader in readers {
            let seen = reader.join().expect("the reader succeeds");
            match &first {
                Some(first) => assert!(seen == *first, "two readers were given different streams"),
                None => first = Some(seen),
            }
        }
        let mut all = first.unwrap_or_default();
        for writer in 0..WRITERS {
            let own = all.iter().filter(|number| *number / APPENDS == writer);
            assert!(own.is_sorted(), "the appends of one writer are out of order");
        }
        all.sort_unstable();
        assert!(all.into_iter().eq(0..WRITERS * APPENDS), "something is missing, or comes twice");
    });
}
