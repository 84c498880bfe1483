//! Readers that stop reading, of content that is on disk.

use axum::http::Request;
use tokio::net::TcpStream;

use crate::resident::{
    BUDGET_BYTES, BYTES, MIB, PAGE_BYTES, append, assert_grew_less_than, assert_page, connect_narrow,
    content, fill, from, keep_trying, path, resident_bytes, start,
};
use crate::support::ServerProcess;
use crate::support::http::{Connection, Head, PATIENCE};

const READERS: usize = 100;
const COLD_BYTES: usize = 16 * MIB;
/// What the server may take for [`READERS`] connections and the threads that read for them, besides their pages.
const BESIDES_BYTES: usize = 24 * MIB;

/// A server with the stream `cold`, whose first [`COLD_BYTES`] are on disk alone, and the stream `hot`, which is in RAM.
fn start_filled(environment: &[(&str, &str)]) -> ServerProcess {
    let server = start(environment);
    fill(&server, "cold", COLD_BYTES);
    server.client().request("PUT", &path("hot"), &[BYTES], b"").expect_status(201);
    append(&server, "hot", 0, 1000);
    server
}

/// Where the cold page begins that the reader with this number asks for.
fn cold_start(reader: usize) -> usize {
    reader * 37 % 15 * PAGE_BYTES
}

fn cold_page(reader: usize) -> String {
    from("cold", cold_start(reader))
}

/// Whatever others ask for goes on as ever, and pages from disk do, if smaller.
#[track_caller]
fn assert_others_are_served(server: &ServerProcess) {
    let mut client = server.client();
    client.request("HEAD", &path("cold"), &[], b"").expect_status(200);
    client.request("PUT", &path("new"), &[BYTES], b"x").expect_status(201);
    client.request("POST", &path("hot"), &[BYTES], b"x").expect_status(204);
    client.request("GET", &from("hot", 900), &[], b"").expect_status(200);
    assert_page(&client.request("GET", &cold_page(0), &[], b""), cold_start(0));
    client.request("DELETE", &path("new"), &[], b"").expect_status(204);
}

#[track_caller]
fn assert_cold_pages_come_again(server: &ServerProcess) {
    keep_trying("there is no room for pages", || {
        let page = server.client().request("GET", &from("cold", 3 * MIB), &[], b"");
        (page.status == 200).then(|| assert_page(&page, 3 * MIB))
    });
}

/// A reader that has read the head of its page and nothing else.
struct Stalled {
    connection: Connection,
    head: Head,
    reader: usize,
}

/// Has many ask for a page and stop reading.
#[track_caller]
fn stall(server: &ServerProcess) -> Vec<Stalled> {
    let asking: Vec<Connection> = (0..READERS)
        .map(|reader| {
            let mut connection = connect_narrow(server);
            connection
                .send_request("GET", &cold_page(reader), &[], b"")
                .expect("a new connection takes bytes");
            connection
        })
        .collect();
    let stalled = asking.into_iter().enumerate().map(|(reader, mut connection)| {
        let head = connection.read_head("GET").expect("there is an answer");
        assert_eq!(head.response.status, 200, "reader {reader}: {:?}", head.response.headers);
        Stalled { connection, head, reader }
    });
    stalled.collect()
}

#[test]
fn pages_that_nobody_takes_stay_within_their_budget_and_others_are_served() {
    let server = start_filled(&[]);
    let before = resident_bytes(&server);
    let stalled = stall(&server);
    assert_grew_less_than(&server, before, BUDGET_BYTES + BESIDES_BYTES);
    assert_others_are_served(&server);
    assert_grew_less_than(&server, before, BUDGET_BYTES + BESIDES_BYTES);
    drop(stalled);
    assert_cold_pages_come_again(&server);
    assert_others_are_served(&server);
}

#[test]
fn readers_that_go_on_get_their_pages_whole_and_make_room() {
    let server = start_filled(&[]);
    for Stalled { mut connection, mut head, reader } in stall(&server) {
        let mut page = head.response.clone();
        while let Some(piece) = connection.read_piece(&mut head).expect("the page is complete") {
            page.body.extend_from_slice(&piece);
        }
        assert_page(&page, cold_start(reader));
    }
    assert_cold_pages_come_again(&server);
}

#[test]
fn live_readers_that_stop_reading_take_little_and_no_room_from_pages() {
    // An event, as base64, with the bytes that it was made of, twice over.
    const LIVE_READER_BYTES: usize = 2 * (128 + 172) * 1024;
    let server = start_filled(&[]);
    let before = resident_bytes(&server);
    let live: Vec<Connection> = (0..READERS)
        .map(|reader| {
            let mut connection = connect_narrow(&server);
            let target = format!("{}&live=sse", cold_page(reader));
            connection.send_request("GET", &target, &[], b"").expect("a new connection takes bytes");
            connection
        })
        .collect();
    let mut live: Vec<_> = live
        .into_iter()
        .map(|mut connection| {
            let head = connection.read_head("GET").expect("there is an answer");
            assert_eq!(head.response.status, 200);
            connection
        })
        .collect();
    assert_grew_less_than(&server, before, READERS * LIVE_READER_BYTES);
    assert_cold_pages_come_again(&server);
    assert_others_are_served(&server);
    assert_grew_less_than(&server, before, READERS * LIVE_READER_BYTES);
    live.clear();
    assert_cold_pages_come_again(&server);
}

#[test]
fn live_readers_that_stop_reading_hold_one_event_each_of_what_is_appended() {
    const APPENDED_BYTES: usize = 4 * MIB;
    let server = start_filled(&[("DS_SERVER__SSE_HEARTBEAT_SECS", "0")]);
    let tail = format!("{}?offset=now&live=sse", path("hot"));
    let mut live: Vec<Connection> = (0..READERS).map(|_| connect_narrow(&server)).collect();
    for connection in &mut live {
        connection.send_request("GET", &tail, &[], b"").expect("a new connection takes bytes");
        assert_eq!(connection.read_head("GET").expect("there is an answer").response.status, 200);
    }
    let before = resident_bytes(&server);
    let mut at = 1000;
    while at < APPENDED_BYTES {
        append(&server, "hot", at, at + 64 * 1024);
        at += 64 * 1024;
    }
    // What was appended, and of each reader's event what no other reader shares, at most.
    assert_grew_less_than(&server, before, 4 * APPENDED_BYTES + READERS * 200 * 1024);
    assert_others_are_served(&server);
}

#[tokio::test]
async fn requests_of_one_http2_connection_share_the_budget() {
    let server = start_filled(&[("DS_TRANSPORT__HTTP__VERSIONS", "http1,h2c")]);
    let before = resident_bytes(&server);
    let socket =
        TcpStream::connect(&server.origin().authority).await.expect("the server accepts connections");
    let (sender, connection) = h2::client::handshake(socket).await.expect("both speak HTTP/2");
    let connection = tokio::spawn(connection);
    let mut asked = Vec::new();
    for reader in 0..READERS {
        let uri = format!("{}{}", server.url(), cold_page(reader));
        let request = Request::get(uri).body(()).expect("it is a request");
        let mut sender = sender.clone().ready().await.expect("the connection is open");
        asked.push(sender.send_request(request, true).expect("the head is sent").0);
    }
    // Bodies are kept, and nothing of them is taken.
    let mut stalled = Vec::new();
    for answer in asked {
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("there is an answer in time");
        let (head, body) = answer.expect("there is an answer").into_parts();
        assert_eq!(head.status, 200);
        stalled.push(body);
    }
    assert_grew_less_than(&server, before, BUDGET_BYTES + BESIDES_BYTES);
    assert_others_are_served(&server);
    drop((stalled, sender));
    connection.abort();
    // Over as soon as its socket is closed.
    let _ = connection.await;
    assert_cold_pages_come_again(&server);
}

/// Of pages this large the kernel does not take all.
const LENDING_BUDGET: (&str, &str) = ("DS_LIMITS__MAX_READ_BUFFER_BYTES", "64MiB");
/// Readers of as many MiB that leave the RAM.
const BORROWERS: usize = 200;
/// The budget, the quarter of it that is lent before there are copies, and what is in RAM when that begins. It is less than
/// what the readers ask for by far.
const LENDING_BYTES: usize = (64 + 16) * MIB + 3 * BESIDES_BYTES;

#[test]
fn content_that_leaves_the_ram_while_it_is_not_taken_stays_within_a_bound() {
    // Of what is not settled yet there is only so much: that is not what is looked at.
    let server = start(&[
        LENDING_BUDGET,
        ("DS_LIMITS__MAX_BODY_BYTES", "1MiB"),
        ("DS_LIMITS__MAX_STAGED_BYTES", "1MiB"),
    ]);
    server.client().request("PUT", &path("recent"), &[BYTES], b"").expect_status(201);
    let append = |start| {
        keep_trying("nothing is settled", || {
            let appended = server.client().request("POST", &path("recent"), &[BYTES], content(start, MIB));
            (appended.status == 204).then_some(())
        });
    };
    // What appends alone take is not looked at either.
    (0..COLD_BYTES).step_by(MIB).for_each(append);
    let before = resident_bytes(&server);
    let stalled: Vec<_> = (0..BORROWERS)
        .map(|reader| {
            let start = COLD_BYTES + reader * MIB;
            append(start);
            let mut connection = connect_narrow(&server);
            connection
                .send_request("GET", &from("recent", start), &[], b"")
                .expect("a new connection takes bytes");
            let head = connection.read_head("GET").expect("there is an answer");
            assert_eq!(head.response.status, 200, "reader {reader}: {:?}", head.response.headers);
            (connection, head, start)
        })
        .collect();
    assert_grew_less_than(&server, before, LENDING_BYTES);
    let last = server.client().request("GET", &from("recent", COLD_BYTES), &[], b"");
    assert_page(&last, COLD_BYTES);
    for (mut connection, mut head, start) in stalled {
        let mut page = head.response.clone();
        while let Some(piece) = connection.read_piece(&mut head).expect("the page is complete") {
            page.body.extend_from_slice(&piece);
        }
        assert_page(&page, start);
    }
}

#[test]
fn deleted_content_that_is_not_taken_stays_within_a_bound_in_memory_mode() {
    let server =
        start(&[LENDING_BUDGET, ("DS_STORAGE__MODE", "memory"), ("DS_LIMITS__MAX_MEMORY_BYTES", "4MiB")]);
    let before = resident_bytes(&server);
    let mut stalled = Vec::new();
    for reader in 0..BORROWERS {
        let name = format!("deleted-{reader}");
        let mut client = server.client();
        client.request("PUT", &path(&name), &[BYTES], content(0, MIB)).expect_status(201);
        let mut connection = connect_narrow(&server);
        connection.send_request("GET", &from(&name, 0), &[], b"").expect("a new connection takes bytes");
        let head = connection.read_head("GET").expect("there is an answer");
        assert_eq!(head.response.status, 200, "reader {reader}: {:?}", head.response.headers);
        client.request("DELETE", &path(&name), &[], b"").expect_status(204);
        stalled.push((connection, head));
    }
    assert_grew_less_than(&server, before, LENDING_BYTES);
    for (mut connection, mut head) in stalled {
        let mut page = head.response.clone();
        while let Some(piece) = connection.read_piece(&mut head).expect("the page is complete") {
            page.body.extend_from_slice(&piece);
        }
        assert_page(&page, 0);
    }
}
