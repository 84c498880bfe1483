//! Connections that another core serves than the one that accepted them: the one with the fewest, and later that of the stream
//! that they write. Seen from outside nothing happens, whatever is on its way at that moment.

mod support;

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::ServerProcess;
use support::http::Connection;

/// Most streams belong to another core than the one that accepted the connection.
const SHARDS: &str = "5";
const CONNECTIONS: usize = 12;
/// More than it takes for a connection to move.
const APPENDS: usize = 100;

const TEXT: (&str, &str) = ("Content-Type", "text/plain");

fn start(settings: &[(&str, &str)]) -> ServerProcess {
    let defaults = [("DS_STORAGE__ACID_SHARD_COUNT", SHARDS), ("RUST_LOG", "durable_streams_server=debug")];
    ServerProcess::start(&[&defaults, settings].concat())
}

fn path(name: &str) -> String {
    format!("/v1/stream/{name}")
}

#[track_caller]
fn connect(server: &ServerProcess) -> Connection {
    server.origin().connect().expect("the server accepts connections")
}

#[track_caller]
fn create(server: &ServerProcess, name: &str) {
    server.client().request("PUT", &path(name), &[TEXT], b"").expect_status(201);
}

#[track_caller]
fn append(connection: &mut Connection, name: &str, body: &str) {
    let answer = connection.request("POST", &path(name), &[TEXT], body.as_bytes());
    answer.expect("there is an answer").expect_status(204);
}

#[track_caller]
fn content(server: &ServerProcess, name: &str) -> String {
    server.client().request("GET", &path(name), &[], b"").expect_status(200).text().to_owned()
}

/// What [`APPENDS`] appends of numbers amount to.
fn numbers() -> String {
    (0..APPENDS).map(|number| format!("{number},")).collect()
}

/// Connections that have moved so far.
fn moves(server: &ServerProcess) -> usize {
    static MARKS: AtomicUsize = AtomicUsize::new(0);
    // Behind the line of a request comes nothing that happened before it.
    let mark = format!("mark-{}-", MARKS.fetch_add(1, Ordering::Relaxed));
    server.client().request("HEAD", &path(&mark), &[], b"").expect_status(404);
    server.wait_for_stderr(&mark);
    server.stderr().matches("a connection moves").count()
}

/// Appends to one stream after the other until `connection` has moved.
#[track_caller]
fn move_somewhere(server: &ServerProcess, connection: &mut Connection) {
    for stream in 0..CONNECTIONS {
        let name = format!("away-{stream}");
        // Perhaps not for the first time.
        server.client().request("PUT", &path(&name), &[TEXT], b"");
        let before = moves(server);
        for _ in 0..APPENDS {
            append(connection, &name, "x");
        }
        if moves(server) > before {
            return;
        }
    }
    panic!("of {CONNECTIONS} streams none was on another core");
}

#[test]
fn appends_over_a_connection_that_moves_are_all_answered_and_there_once_in_order() {
    for mode in ["memory", "acid"] {
        let server = start(&[("DS_STORAGE__MODE", mode)]);
        for client in 0..CONNECTIONS {
            let name = format!("own-{client}");
            create(&server, &name);
            let mut connection = connect(&server);
            for number in 0..APPENDS {
                append(&mut connection, &name, &format!("{number},"));
            }
            assert_eq!(content(&server, &name), numbers(), "{mode}");
        }
        assert!(moves(&server) > 0, "no connection has moved: {}", server.stderr());
    }
}

#[test]
fn requests_that_were_sent_ahead_move_along_wherever_they_are_cut() {
    let server = start(&[]);
    for client in 0..CONNECTIONS {
        let name = format!("ahead-{client}");
        create(&server, &name);
        let mut connection = connect(&server);
        let mut sender = connection.socket().try_clone().expect("a socket can be cloned");
        let requests: String = (0..APPENDS)
            .map(|number| {
                let body = format!("{number},");
                let (target, length) = (path(&name), body.len());
                format!(
                    "POST {target} HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}"
                )
            })
            .collect();
        // Pieces that end inside of heads and bodies, each time somewhere else; with the pauses the server comes to wait for
        // the rest of one.
        let piece_bytes = 200 + 97 * client;
        thread::scope(|scope| {
            scope.spawn(move || {
                for piece in requests.as_bytes().chunks(piece_bytes) {
                    sender.write_all(piece).expect("the server takes requests");
                    thread::sleep(Duration::from_millis(1));
                }
            });
            for _ in 0..APPENDS {
                connection.read_response("POST").expect("each request is answered").expect_status(204);
            }
        });
        assert_eq!(content(&server, &name), numbers(), "pieces of {piece_bytes} bytes");
    }
    assert!(moves(&server) > 0, "no connection has moved: {}", server.stderr());
}

#[test]
fn a_connection_that_has_moved_carries_event_streams_and_requests_after_them() {
    let server = start(&[("DS_SERVER__SSE_RECONNECT_INTERVAL_SECS", "1")]);
    let mut connection = connect(&server);
    move_somewhere(&server, &mut connection);
    create(&server, "told");
    append(&mut connection, "told", "content");
    for _ in 0..2 {
        let events = connection.request("GET", &path("told?offset=-1&live=sse"), &[], b"");
        let events = events.expect("it ends after a second").expect_status(200);
        assert!(events.text().starts_with("event: data\ndata:content\n\n"), "{events:?}");
        for _ in 0..APPENDS {
            append(&mut connection, "away-0", "x");
        }
    }
}

#[test]
fn a_head_that_never_ends_is_given_up_where_its_connection_went() {
    let server = start(&[("DS_LIMITS__REQUEST_HEADER_TIMEOUT_SECS", "3")]);
    let mut connection = connect(&server);
    move_somewhere(&server, &mut connection);
    connection.send_raw(b"GET /healthz HTTP/1.1\r\nHo").expect("the server takes bytes");
    assert!(connection.is_closed_by_server());
}

#[test]
fn new_connections_that_go_to_a_core_with_fewer_are_served_there() {
    // So many that the kernel cannot have spread them evenly.
    const NEW: usize = 60;
    let mut server = start(&[]);
    create(&server, "new");
    let mut connections: Vec<_> = (0..NEW).map(|_| connect(&server)).collect();
    for connection in &mut connections {
        append(connection, "new", "x");
    }
    assert_eq!(content(&server, "new").len(), NEW);
    moves(&server);
    assert!(server.stderr().contains("a new connection goes to another core"), "{}", server.stderr());
    assert!(server.terminate().success());
    for mut connection in connections {
        assert!(connection.is_closed_by_server());
    }
    assert!(!server.stderr().contains("cutting the connections"), "{}", server.stderr());
}

#[test]
fn clients_that_leave_and_a_server_that_stops_take_connections_along_that_have_moved() {
    let mut server = start(&[]);
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut connection = connect(&server);
        move_somewhere(&server, &mut connection);
        kept.push(connection);
    }
    let leaving = kept.pop().expect("there are four");
    leaving.socket().shutdown(Shutdown::Both).expect("a socket can be closed");
    assert!(server.terminate().success());
    for mut connection in kept {
        assert!(connection.is_closed_by_server());
    }
    assert!(!server.stderr().contains("cutting the connections"), "{}", server.stderr());
}
