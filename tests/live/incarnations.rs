//! One name, deleted and created again under its readers and writers: nobody of the old incarnation sees or touches the
//! new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;

use bytes::Bytes;
use durable_streams_server::config::{Config, StorageMode};
use durable_streams_server::engine::api::{
    AppendError, AppendRefusal, AppendRequest, Body, CreateRequest, LiveEvent, ReadRequest, Retention,
    Storage,
};
use durable_streams_server::engine::{AcidStorage, InMemoryStorage};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::name::StreamName;
use durable_streams_server::protocol::offset::RequestedOffset;

use super::tail::Tail;
use super::*;

/// Incarnations of the contested name.
const GENERATIONS: usize = 40;

/// What is written into the contested stream: when it was created, and the writers' own counts.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Message {
    Born { born: usize },
    Written { producer: String, seq: u64 },
}

/// What one reader saw of one incarnation, from its beginning on.
#[derive(Default)]
struct Life {
    born: Option<usize>,
    next_seq: HashMap<String, u64>,
}

impl Life {
    /// Takes in what comes next: the birth, and only then and once; then each producer's messages without a gap.
    fn add(&mut self, array: &str) {
        let messages: Vec<Message> = serde_json::from_str(array).expect("messages are as written");
        for message in messages {
            match message {
                Message::Born { born } => {
                    let earlier = self.born.replace(born);
                    assert_eq!(earlier, None, "a reader of incarnation {earlier:?} sees the birth of {born}");
                }
                Message::Written { producer, seq } => {
                    assert!(self.born.is_some(), "something stands before the birth");
                    let next = self.next_seq.entry(producer).or_default();
                    assert_eq!(seq, *next, "in incarnation {:?}", self.born);
                    *next += 1;
                }
            }
        }
    }
}

/// What the one who deletes and creates waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Written,
    Seen { born: usize },
}

#[test]
fn readers_and_writers_of_an_old_incarnation_never_meet_the_new_one() {
    let brief_polls = ("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "0.2");
    in_each_mode(&[&[brief_polls], &ENDLESS[..]].concat(), |server| {
        let (generation, is_over) = (&AtomicUsize::new(0), &AtomicBool::new(false));
        let (reports, progress) = mpsc::channel();
        thread::scope(|threads| {
            for writer in 0..3 {
                let reports = reports.clone();
                threads.spawn(move || write(server, writer, generation, is_over, &reports));
            }
            for _ in 0..4 {
                let reports = reports.clone();
                threads.spawn(move || tail_lives(server, is_over, &reports));
            }
            for _ in 0..2 {
                threads.spawn(|| poll_lives(server, is_over));
            }
            let _end = RaiseOnDrop(is_over);
            let mut client = server.client();
            for number in 0..GENERATIONS {
                generation.store(number, Ordering::Relaxed);
                let body = format!("{{\"born\":{number}}}");
                client.request("PUT", &path("contested"), &[JSON], body.as_bytes()).expect_status(201);
                // Not before it has been written and read.
                let (mut writes, mut is_seen) = (0, false);
                while writes < 6 || !is_seen {
                    match progress.recv_timeout(PATIENCE).expect("somebody writes and somebody reads") {
                        Progress::Written => writes += 1,
                        Progress::Seen { born } => is_seen |= born == number,
                    }
                }
                client.request("DELETE", &path("contested"), &[], b"").expect_status(204);
            }
        });
    });
}

/// Appends as a producer that is new with each incarnation it knows of. One that comes too late with anything but its
/// first message finds nobody who knows it.
fn write(
    server: &ServerProcess,
    writer: usize,
    generation: &AtomicUsize,
    is_over: &AtomicBool,
    reports: &Sender<Progress>,
) {
    let mut client = server.client();
    let (mut known, mut seq) = (0, 0);
    while !is_over.load(Ordering::Relaxed) {
        let current = generation.load(Ordering::Relaxed);
        if current != known {
            (known, seq) = (current, 0);
        }
        let producer = format!("{writer} of {known}");
        let body = format!("{{\"producer\":\"{producer}\",\"seq\":{seq}}}");
        let number = seq.to_string();
        let headers = [JSON, ("Producer-Id", &producer), ("Producer-Epoch", "0"), ("Producer-Seq", &number)];
        let answer = client.request("POST", &path("contested"), &headers, body.as_bytes());
        match answer.status {
            200 => {
                seq += 1;
                // Nobody listens any more when it is over.
                let _ = reports.send(Progress::Written);
            }
            404 => seq = 0,
            409 => {
                assert_eq!(answer.header("Producer-Expected-Seq"), Some("0"), "{answer:?}");
                seq = 0;
            }
            _ => panic!("{answer:?}"),
        }
    }
}

/// Reads one life after the other, each over one connection, which ends with it.
fn tail_lives(server: &ServerProcess, is_over: &AtomicBool, reports: &Sender<Progress>) {
    while !is_over.load(Ordering::Relaxed) {
        let mut tail = match Tail::try_open(server.origin(), "contested?offset=-1&live=sse", &[]) {
            Ok(Ok(tail)) => tail,
            Ok(Err(refused)) => {
                assert_eq!(refused.status, 404);
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let mut life = Life::default();
        while let Some(batch) = tail.try_batch().expect("the response ends as it should") {
            let was_born = life.born.is_some();
            life.add(batch.data.as_deref().unwrap_or("[]"));
            if let (false, Some(born)) = (was_born, life.born) {
                // Nobody listens any more when it is over.
                let _ = reports.send(Progress::Seen { born });
            }
        }
    }
}

/// Reads by long-poll; the ETag tells which incarnation an answer is from.
fn poll_lives(server: &ServerProcess, is_over: &AtomicBool) {
    let mut client = server.client();
    let mut known: Option<(String, Life, String)> = None;
    while !is_over.load(Ordering::Relaxed) {
        let at = known.as_ref().map_or("-1", |(_, _, at)| at);
        let target = path(&format!("contested?offset={at}&live=long-poll"));
        let answer = client.request("GET", &target, &[], b"");
        match answer.status {
            200 => {
                let etag = answer.header("ETag").expect("a page has an ETag");
                let incarnation = etag.split(':').next().expect("a split has a first part").to_owned();
                let next = offset(next_position(&answer));
                match known.take() {
                    Some((same, mut life, _)) if same == incarnation => {
                        life.add(answer.text());
                        known = Some((incarnation, life, next));
                    }
                    // The position belonged to another incarnation: begin with this one.
                    Some(_) => {}
                    None => {
                        let mut life = Life::default();
                        life.add(answer.text());
                        known = Some((incarnation, life, next));
                    }
                }
            }
            204 => {}
            // Gone, or another incarnation, in which the position means nothing.
            404 | 400 => known = None,
            _ => panic!("{answer:?}"),
        }
    }
}

/// Storage of each mode, used as a library: a test can put requests into a shard's mailbox in an order of its choice.
async fn with_each_storage(test: impl AsyncFn(Arc<dyn Storage>)) {
    let memory = InMemoryStorage::new(&Config::with_mode(StorageMode::Memory)).expect("there are threads");
    test(Arc::new(memory)).await;
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut config = Config::with_mode(StorageMode::Acid);
    config.storage.data_dir = directory.path().join("data");
    test(Arc::new(AcidStorage::open(&config).expect("the directory can be opened"))).await;
}

fn name() -> StreamName {
    StreamName::from_stored("contested")
}

fn creation(body: &'static str) -> CreateRequest {
    CreateRequest {
        name: name(),
        content_type: None,
        lifetime: None,
        retention: Retention::default(),
        closed: false,
        body: Body { raw: Bytes::from_static(body.as_bytes()), json: None },
        fork: None,
    }
}

fn appending(body: &'static str) -> AppendRequest {
    AppendRequest {
        name: name(),
        content_type: Some(ContentType::octet_stream()),
        body: Body { raw: Bytes::from_static(body.as_bytes()), json: None },
        close: false,
        stream_seq: None,
        producer: None,
    }
}

#[tokio::test]
async fn an_append_between_deletion_and_creation_finds_nothing() {
    with_each_storage(async |storage| {
        for round in 0..50 {
            storage.create(creation("old")).await.expect("the name is free");
            let mut reader =
                storage.subscribe(name(), RequestedOffset::Start).await.expect("the stream exists");
            // All of it waits in the shard's mailbox before any of it is durable.
            let (before, deleted, late, created, after) = tokio::join!(
                storage.append(appending("-before")),
                storage.delete(name()),
                storage.append(appending("-late")),
                storage.create(creation("new")),
                storage.append(appending("-after")),
            );
            assert_eq!(before.expect("the stream was there").tail, 10);
            deleted.expect("the stream was there");
            assert_eq!(late, Err(AppendError::Refused(AppendRefusal::NotFound)), "round {round}");
            let created = created.expect("the name was free again");
            assert!(!created.existed);
            assert_eq!(created.tail, 3);
            assert_eq!(after.expect("the new stream was there").tail, 9);

            let read = ReadRequest { name: name(), from: RequestedOffset::Start, max_bytes: 1000 };
            let page = storage.read(read).await.expect("the stream exists");
            assert_eq!(page.data.concat(), b"new-after");
            assert_ne!(page.info.incarnation, reader.info().incarnation);
            let mut seen = Vec::new();
            let end = loop {
                match reader.next(1000).await.expect("the end can be told") {
                    LiveEvent::Data(batch) => seen.extend(batch.data.concat()),
                    end => break end,
                }
            };
            assert!(matches!(end, LiveEvent::Removed), "{end:?}");
            assert!(b"old-before".starts_with(&seen), "{}", String::from_utf8_lossy(&seen));
            storage.delete(name()).await.expect("the stream exists");
        }
    })
    .await;
}
