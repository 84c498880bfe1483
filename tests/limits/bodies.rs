//! Request bodies that are announced and do not come.

use crate::resident::{MIB, assert_grew_less_than, path, resident_bytes};
use crate::support::ServerProcess;
use crate::support::http::Connection;

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const BODIES: usize = 50;
/// What the server may take for as many connections.
const BESIDES_BYTES: usize = 16 * MIB;

/// Announces 200 MB over each of many connections, and sends `begin` of them.
fn announce(server: &ServerProcess, begin: &[u8]) -> Vec<Connection> {
    let announce = |_| {
        let mut connection = server.origin().connect().expect("the server accepts connections");
        let headers = [TEXT, ("Content-Length", "200000000")];
        connection.send_request("POST", &path("a"), &headers, begin).expect("a new connection takes bytes");
        connection
    };
    (0..BODIES).map(announce).collect()
}

#[test]
fn large_bodies_that_were_only_announced_take_no_memory() {
    let server = ServerProcess::start(&[]);
    server.client().request("PUT", &path("a"), &[TEXT], b"").expect_status(201);
    let before = resident_bytes(&server);
    for mut connection in announce(&server, b"") {
        connection.read_response("POST").expect("there is an answer").expect_status(413);
    }
    assert_grew_less_than(&server, before, BESIDES_BYTES);
}

#[test]
fn large_bodies_that_may_come_take_memory_as_they_do() {
    let server = ServerProcess::start(&[
        ("DS_LIMITS__MAX_BODY_BYTES", "200MB"),
        ("DS_LIMITS__MAX_BUFFERED_BODY_BYTES", "200MB"),
        ("DS_LIMITS__MAX_STAGED_BYTES", "200MB"),
    ]);
    let mut client = server.client();
    client.request("PUT", &path("a"), &[TEXT], b"").expect_status(201);
    let before = resident_bytes(&server);
    let begin = vec![b'x'; 64 * 1024];
    let under_way = announce(&server, &begin);
    client.request("POST", &path("a"), &[TEXT], b"abc").expect_status(204);
    assert_eq!(client.request("GET", &path("a"), &[], b"").expect_status(200).text(), "abc");
    assert_grew_less_than(&server, before, BODIES * 2 * begin.len() + BESIDES_BYTES);
    drop(under_way);
}
