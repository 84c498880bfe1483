//! Pages from disk that are not as large as usual, or not from one place, under a budget of one page.

use std::thread;

use crate::resident::{
    BYTES, MIB, PAGE_BYTES, append, assert_page, connect_narrow, fill, from, keep_trying, path, start,
};
use crate::support::sse::EventStream;

const ONE_PAGE: (&str, &str) = ("DS_LIMITS__MAX_READ_BUFFER_BYTES", "1MiB");
const JSON: (&str, &str) = ("Content-Type", "application/json");

#[test]
fn message_that_is_larger_than_the_budget_can_be_read() {
    let server = start(&[ONE_PAGE, ("DS_LIMITS__READ_PAGE_BYTES", "64KiB")]);
    let mut client = server.client();
    client.request("PUT", &path("a"), &[JSON], b"").expect_status(201);
    let message = |length: usize| format!("\"{}\"", "x".repeat(length));
    let (small, large) = (message(100), message(5 * MIB));
    client
        .request("POST", &path("a"), &[JSON], format!("[{small},{large},{small}]").as_bytes())
        .expect_status(204);
    for _ in 0..4 {
        client.request("POST", &path("a"), &[JSON], message(MIB).as_bytes()).expect_status(204);
    }
    let first = small.len() + 1;
    for mode in ["", "&live=long-poll"] {
        let page = client.request("GET", &format!("{}{mode}", from("a", first)), &[], b"").expect_status(200);
        assert!(page.text() == format!("[{large}]"), "{} bytes", page.body.len());
        let behind = first + large.len() + 1;
        let page =
            client.request("GET", &format!("{}{mode}", from("a", behind)), &[], b"").expect_status(200);
        assert!(page.text().starts_with(&format!("[{small}")), "{} bytes", page.body.len());
        // No position of the stream, which only reading the message shows.
        let within = format!("{}{mode}", from("a", first + 4 * MIB));
        client.request("GET", &within, &[], b"").expect_status(400);
    }
}

#[test]
fn live_reader_for_which_there_is_no_room_is_sent_away_in_order() {
    let server = start(&[ONE_PAGE]);
    let mut client = server.client();
    fill(&server, "cold", MIB);
    client.request("PUT", &path("large"), &[JSON], b"").expect_status(201);
    let large = format!("\"{}\"", "x".repeat(5 * MIB));
    for body in [&large, "1", &large] {
        client.request("POST", &path("large"), &[JSON], body.as_bytes()).expect_status(204);
    }
    // Of a message that is larger than the budget, all of the budget stays taken until nearly its end. But as long as content has
    // not left the RAM, it takes none, and needs none.
    let stalled = keep_trying("content is always in RAM", || {
        let mut stalled = connect_narrow(&server);
        stalled.send_request("GET", &path("large"), &[], b"").expect("a new connection takes bytes");
        assert_eq!(stalled.read_head("GET").expect("there is an answer").response.status, 200);
        (client.request("GET", &path("cold"), &[], b"").status == 503).then_some(stalled)
    });
    client.request("GET", &format!("{}&live=long-poll", from("cold", 0)), &[], b"").expect_status(503);
    let live = || {
        let opened = EventStream::open(server.origin(), &format!("{}&live=sse", from("cold", 0)), &[]);
        opened.expect("the server answers").expect("the stream can be read")
    };
    assert_eq!(live().next_event().expect("the response ends in order"), None);
    drop(stalled);
    keep_trying("there is no room for an event", || {
        live().next_message().expect("a response ends in order").map(|(kind, _)| assert_eq!(kind, "data"))
    });
}

#[test]
fn page_of_a_fork_and_its_source_takes_its_room_at_once() {
    const READERS: usize = 8;
    let server = start(&[ONE_PAGE]);
    fill(&server, "source", 2 * MIB);
    // Some of these pages are half the source's, half the fork's own; both are on disk.
    let point = format!("0000000000000000_{:016}", PAGE_BYTES / 2);
    let fork = [BYTES, ("Stream-Forked-From", &path("source")), ("Stream-Fork-Offset", &point)];
    server.client().request("PUT", &path("fork"), &fork, b"").expect_status(201);
    append(&server, "fork", PAGE_BYTES / 2, 6 * MIB);
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut client = server.client();
                for start in [0, 1000, PAGE_BYTES / 2 - 1, PAGE_BYTES / 2] {
                    // A budget of one page may keep somebody waiting for too long on a busy machine, but not for ever.
                    keep_trying("there is no room for a page", || {
                        let page = client.request("GET", &from("fork", start), &[], b"");
                        (page.status == 200).then(|| assert_page(&page, start))
                    });
                }
            });
        }
    });
    let target = format!("{}&live=long-poll", from("fork", 10));
    assert_page(&server.client().request("GET", &target, &[], b""), 10);
}
