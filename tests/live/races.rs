//! Readers against writers, closers and deleters. Each test is a loop; what arrives is counted, never how fast.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::tail::Tail;
use super::*;

/// How a reader's payloads are put together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Text,
    Binary,
}

impl Kind {
    fn content_type(self) -> (&'static str, &'static str) {
        match self {
            Self::Json => JSON,
            Self::Text => TEXT,
            Self::Binary => BINARY,
        }
    }

    /// The stored form of a body, as positions count it.
    fn stored(self, body: &[u8]) -> Vec<u8> {
        match self {
            Self::Json if body == b"[]" => Vec::new(),
            Self::Json => [&body[1..body.len() - 1], b","].concat(),
            Self::Text | Self::Binary => body.to_vec(),
        }
    }

    /// The same of the payload of an event.
    fn stored_event(self, data: &str) -> Vec<u8> {
        match self {
            Self::Json | Self::Text => self.stored(data.as_bytes()),
            Self::Binary => STANDARD.decode(data).expect("each event is whole, padded base64"),
        }
    }
}

/// What a reader has so far. It never goes back to an earlier position.
struct Collected {
    kind: Kind,
    bytes: Vec<u8>,
    closed: bool,
}

impl Collected {
    fn new(kind: Kind) -> Self {
        Self { kind, bytes: Vec::new(), closed: false }
    }

    fn at(&self) -> String {
        // Some begin with the name of the beginning, like any client.
        if self.bytes.is_empty() { "-1".to_owned() } else { offset(self.bytes.len()) }
    }

    /// Adds bytes that end at `next`: more or fewer than fit in between were lost or doubled.
    fn add(&mut self, bytes: &[u8], next: usize, closed: bool) {
        self.bytes.extend_from_slice(bytes);
        assert_eq!(self.bytes.len(), next, "bytes were lost or doubled before {next}");
        self.closed = closed;
    }

    /// Reads up to `batches` batches over a connection of its own, and drops it wherever it is then.
    fn read_events(&mut self, server: &ServerProcess, name: &str, batches: usize) -> io::Result<Ended> {
        let target = format!("{name}?offset={}&live=sse", self.at());
        let mut tail = match Tail::try_open(server.origin(), &target, &[])? {
            Ok(tail) => tail,
            Err(refused) => return Ok(Ended::Refused(refused.status)),
        };
        for _ in 0..batches {
            let Some(batch) = tail.try_batch()? else { return Ok(Ended::ByServer) };
            let bytes = batch.data.map(|data| self.kind.stored_event(&data)).unwrap_or_default();
            self.add(&bytes, batch.control.next, batch.control.closed);
        }
        Ok(Ended::ByReader)
    }

    /// One long-poll.
    fn poll(&mut self, client: &mut support::http::Client, name: &str) -> Ended {
        let target = path(&format!("{name}?offset={}&live=long-poll", self.at()));
        let response = client.request("GET", &target, &[], b"");
        let closed = response.header("Stream-Closed").is_some();
        match response.status {
            200 => self.add(&self.kind.stored(&response.body), next_position(&response), closed),
            204 => self.add(b"", next_position(&response), closed),
            status => return Ended::Refused(status),
        }
        Ended::ByServer
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Ended {
    ByReader,
    ByServer,
    Refused(u16),
}

/// Reads a stream to its closure over many connections, each dropped at some moment.
fn read_events_to_the_end(server: &ServerProcess, name: &str, kind: Kind, dice: &mut Dice) -> Vec<u8> {
    let mut collected = Collected::new(kind);
    while !collected.closed {
        let batches = 1 + dice.roll(30);
        collected.read_events(server, name, batches).expect("the server goes on answering");
    }
    collected.bytes
}

/// The same with long-polls, some of which are given up.
fn poll_to_the_end(server: &ServerProcess, name: &str, kind: Kind, dice: &mut Dice) -> Vec<u8> {
    let mut collected = Collected::new(kind);
    let mut client = server.client();
    while !collected.closed {
        if dice.roll(4) == 0 {
            let mut given_up = server.origin().connect().expect("the server accepts connections");
            let target = path(&format!("{name}?offset={}&live=long-poll", collected.at()));
            given_up.send_request("GET", &target, &[], b"").expect("the request can be sent");
        }
        if dice.roll(8) == 0 {
            client = server.client();
        }
        assert_eq!(collected.poll(&mut client, name), Ended::ByServer);
    }
    collected.bytes
}

/// The whole stream by catch-up, page by page.
fn read_pages(server: &ServerProcess, name: &str, kind: Kind) -> Vec<u8> {
    let mut collected = Collected::new(kind);
    let mut client = server.client();
    loop {
        let target = path(&format!("{name}?offset={}", collected.at()));
        let page = client.request("GET", &target, &[], b"").expect_status(200);
        collected.add(&kind.stored(&page.body), next_position(&page), false);
        if page.header("Stream-Up-To-Date").is_some() {
            return collected.bytes;
        }
    }
}

/// Runs readers of all sorts while `write` writes and closes, and compares what they have with what there is.
fn race_readers(server: &ServerProcess, name: &str, kind: Kind, write: impl FnOnce() + Send) -> Vec<u8> {
    create(server, name, &[kind.content_type()], "");
    let seen: Vec<Vec<u8>> = thread::scope(|threads| {
        let readers: Vec<_> = (0..8)
            .map(|reader| {
                threads.spawn(move || {
                    let mut dice = Dice::new(reader);
                    // Some come late.
                    for _ in 0..dice.roll(4) * 10 {
                        get(server, &format!("{name}?offset=now")).expect_status(200);
                    }
                    if reader % 2 == 0 {
                        read_events_to_the_end(server, name, kind, &mut dice)
                    } else {
                        poll_to_the_end(server, name, kind, &mut dice)
                    }
                })
            })
            .collect();
        threads.spawn(|| {
            let _guard = server.killed_by_panics();
            write();
        });
        readers.into_iter().map(|reader| reader.join().expect("the reader succeeds")).collect()
    });
    let whole = read_pages(server, name, kind);
    for (reader, seen) in seen.iter().enumerate() {
        assert!(*seen == whole, "reader {reader} has {} bytes of {}", seen.len(), whole.len());
    }
    whole
}

/// Storage that lets go of its RAM at once, so that readers meet in RAM and on disk.
const COLD: [(&str, &str); 3] = [
    ("DS_STORAGE__JOURNAL_BYTES", "64KiB"),
    ("DS_LIMITS__MAX_MEMORY_BYTES", "64KiB"),
    ("DS_LIMITS__READ_PAGE_BYTES", "20000"),
];

/// Nothing ends a wait but what is waited for.
fn untimed() -> Vec<(&'static str, &'static str)> {
    [&[LONG], &ENDLESS[..]].concat()
}

fn in_each_mode_and_cold(test: impl Fn(&ServerProcess)) {
    in_each_mode(&untimed(), &test);
    test(&start("acid", &[&COLD[..], &untimed()].concat()));
}

#[test]
fn every_reader_sees_every_message_once_and_in_order() {
    const WRITERS: usize = 4;
    const APPENDS: usize = 150;
    in_each_mode_and_cold(|server| {
        let whole = race_readers(server, "s", Kind::Json, || {
            thread::scope(|threads| {
                for writer in 0..WRITERS {
                    threads.spawn(move || {
                        let mut client = server.client();
                        let padding = "x".repeat(200);
                        for number in 0..APPENDS {
                            // Single messages and batches.
                            let body = format!(
                                "[[{writer},{},\"{padding}\"],[{writer},{}]]",
                                2 * number,
                                2 * number + 1
                            );
                            client.request("POST", &path("s"), &[JSON], body.as_bytes()).expect_status(204);
                        }
                    });
                }
            });
            close(server, "s");
        });
        let text = String::from_utf8(whole).expect("JSON is UTF-8");
        let array: Vec<Vec<serde_json::Value>> =
            serde_json::from_str(&format!("[{}]", text.trim_end_matches(','))).expect("messages are JSON");
        let mut next = [0; WRITERS];
        for message in &array {
            let [writer, number] = [&message[0], &message[1]].map(|value| value.as_u64().expect("a number"));
            let next = &mut next[usize::try_from(writer).expect("it is small")];
            assert_eq!(number, *next, "writer {writer}");
            *next += 1;
        }
        assert_eq!(next, [2 * APPENDS as u64; WRITERS]);
    });
}

#[test]
fn text_cut_anywhere_arrives_whole() {
    in_each_mode_and_cold(|server| {
        let unit = "plain \u{e9}\u{20ac}\u{1f600} text\n  and spaces\n\n";
        let content = unit.repeat(2000);
        let whole = race_readers(server, "s", Kind::Text, || {
            let (mut client, mut dice) = (server.client(), Dice::new(77));
            let mut rest = content.as_bytes();
            while !rest.is_empty() {
                let (piece, behind) = rest.split_at((1 + dice.roll(600)).min(rest.len()));
                client.request("POST", &path("s"), &[TEXT], piece).expect_status(204);
                rest = behind;
            }
            close(server, "s");
        });
        assert!(whole == content.as_bytes());
    });
}

#[test]
fn large_appends_reach_readers_that_cannot_keep_up() {
    in_each_mode_and_cold(|server| {
        race_readers(server, "s", Kind::Binary, || {
            let (mut client, mut dice) = (server.client(), Dice::new(78));
            for number in 0..40_u8 {
                // Beyond what is pushed to readers, now and then.
                let size = [1, 1000, 40_000, 300_000][dice.roll(4)];
                client.request("POST", &path("s"), &[BINARY], &vec![number; size]).expect_status(204);
            }
            let last = client.request("POST", &path("s"), &[BINARY, CLOSED], b"the end");
            last.expect_status(204);
        });
    });
}

#[test]
fn a_closure_reaches_every_waiting_reader_with_everything_before_it() {
    const ROUNDS: usize = 21;
    in_each_mode(&untimed(), |server| {
        for round in 0..ROUNDS {
            let name = &*format!("round-{round}");
            let whole = race_readers(server, name, Kind::Text, || {
                let mut dice = Dice::new(round as u64);
                let mut client = server.client();
                for number in 0..dice.roll(5) {
                    let body = format!("{number} ");
                    client.request("POST", &path(name), &[TEXT], body.as_bytes()).expect_status(204);
                }
                match round % 3 {
                    0 => close(server, name),
                    1 => {
                        client.request("POST", &path(name), &[TEXT, CLOSED], b"last").expect_status(204);
                    }
                    _ => close_under_appends(server, name),
                }
            });
            if round % 3 == 1 {
                assert!(whole.ends_with(b"last"));
            }
        }
    });
}

/// Closes while somebody appends until it fails.
fn close_under_appends(server: &ServerProcess, name: &str) {
    thread::scope(|threads| {
        let appended = threads.spawn(|| {
            let (mut client, mut accepted) = (server.client(), 0);
            loop {
                let answer = client.request("POST", &path(name), &[TEXT], b"+");
                match answer.status {
                    204 => accepted += 1,
                    409 => return (accepted, next_position(&answer)),
                    _ => panic!("{answer:?}"),
                }
            }
        });
        let _guard = server.killed_by_panics();
        let closed_at = server.client().request("POST", &path(name), &[CLOSED], b"").expect_status(204);
        let (accepted, tail) = appended.join().expect("the writer succeeds");
        assert_eq!(tail, next_position(&closed_at), "the final tail is the one of the closure");
        let whole = get(server, name).expect_status(200);
        let pluses = whole.body.iter().filter(|byte| **byte == b'+').count();
        assert_eq!(pluses, accepted, "what was accepted is there, and nothing else");
    });
}

#[test]
fn a_deletion_ends_every_reader_behind_a_gapless_beginning() {
    const ROUNDS: usize = 24;
    in_each_mode(&untimed(), |server| {
        for round in 0..ROUNDS {
            let name = &*format!("round-{round}");
            let is_forked = round % 2 == 1;
            let gone = if is_forked { 410 } else { 404 };
            create(server, name, &[JSON], "");
            if is_forked {
                fork(server, &format!("{name}-fork"), name);
            }
            let accepted = AtomicUsize::new(0);
            thread::scope(|threads| {
                let readers: Vec<_> = (0..6)
                    .map(|reader| threads.spawn(move || read_until_gone(server, name, reader, gone)))
                    .collect();
                threads.spawn(|| {
                    let mut client = server.client();
                    loop {
                        let number = accepted.load(Ordering::Relaxed);
                        let body = format!("{number}");
                        let answer = client.request("POST", &path(name), &[JSON], body.as_bytes());
                        if answer.status != 204 {
                            assert_eq!(answer.status, gone, "{answer:?}");
                            break;
                        }
                        accepted.store(number + 1, Ordering::Relaxed);
                    }
                });
                let _guard = server.killed_by_panics();
                for _ in 0..round % 7 {
                    get(server, &format!("{name}?offset=now")).expect_status(200);
                }
                delete(server, name);
                let seen: Vec<Vec<usize>> =
                    readers.into_iter().map(|reader| reader.join().expect("the reader succeeds")).collect();
                let accepted = accepted.load(Ordering::Relaxed);
                for seen in seen {
                    // The last one may have been accepted just before the deletion and answered after it.
                    assert!(seen.len() <= accepted + 1, "{seen:?} of {accepted}");
                    assert!(seen.iter().copied().eq(0..seen.len()), "{seen:?}");
                }
            });
        }
    });
}

fn read_until_gone(server: &ServerProcess, name: &str, reader: u64, gone: u16) -> Vec<usize> {
    let mut collected = Collected::new(Kind::Json);
    let mut client = server.client();
    loop {
        let ended = if reader.is_multiple_of(2) {
            collected.read_events(server, name, usize::MAX).expect("the response ends as it should")
        } else {
            collected.poll(&mut client, name)
        };
        match ended {
            Ended::Refused(status) => {
                assert_eq!(status, gone);
                break;
            }
            Ended::ByServer | Ended::ByReader => {}
        }
    }
    let text = String::from_utf8(collected.bytes).expect("JSON is UTF-8");
    serde_json::from_str(&format!("[{}]", text.trim_end_matches(','))).expect("messages are numbers")
}
