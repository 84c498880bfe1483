//! Commits that fail under writers and readers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use durable_streams_server::engine::api::{
    AppendError, CreateError, LiveEvent, LookupError, ReadError, Storage, Subscription, Unavailable,
};
use durable_streams_server::protocol::offset::RequestedOffset;

use crate::disk::{Calls, Fault, Unsynced};
use crate::{Machine, POLL, append, read, stream, within};

const WRITERS: usize = 6;
const RECORDS: u64 = 8;

fn record(writer: usize, seq: u64) -> String {
    format!("<{writer}:{seq}>")
}

/// Writes its records in order, each until the store says that it has it.
async fn write(machine: Machine, name: String, writer: usize) {
    let producer = format!("producer-{writer}");
    for seq in 0..RECORDS {
        let request = append(&name, record(writer, seq), Some((&producer, seq)));
        loop {
            match within(machine.store.append(request.clone())).await {
                Ok(appended) => {
                    assert_eq!(appended.producer, Some((0, seq)));
                    break;
                }
                Err(AppendError::Unavailable(_)) => tokio::time::sleep(POLL).await,
                Err(other) => panic!("writer {writer}, record {seq}: {other}"),
            }
        }
    }
}

/// Reads live to the end of the stream. A read that the store has to refuse is asked for again.
async fn follow(mut subscription: Subscription) -> Vec<u8> {
    let mut seen = Vec::new();
    loop {
        match within(subscription.next(64)).await {
            Ok(LiveEvent::Data(batch)) => {
                assert_eq!(batch.start, seen.len() as u64, "each byte once");
                seen.extend(batch.data.concat());
                assert_eq!(batch.end, seen.len() as u64);
                if batch.closed {
                    return seen;
                }
            }
            Ok(LiveEvent::Closed { tail }) => {
                assert_eq!(tail, seen.len() as u64);
                return seen;
            }
            Ok(other) => panic!("the stream does not end like that: {other:?}"),
            Err(ReadError::Unavailable(_)) => tokio::time::sleep(POLL).await,
            Err(other) => panic!("{other}"),
        }
    }
}

/// Looks again and again: what was there once stays there.
async fn watch(machine: Machine, name: String, done: Arc<AtomicBool>) {
    let mut seen = Vec::new();
    while !done.load(Ordering::Relaxed) {
        match within(machine.store.read(read(&name))).await {
            Ok(page) => {
                let content = page.data.concat();
                assert!(content.starts_with(&seen), "bytes that were read are gone");
                seen = content;
            }
            Err(ReadError::Unavailable(_)) => tokio::time::sleep(POLL).await,
            Err(other) => panic!("{other}"),
        }
        tokio::task::yield_now().await;
    }
}

/// Every record once, those of each writer in order.
fn assert_complete(content: &[u8]) {
    let text = std::str::from_utf8(content).expect("records are text");
    let mut next: HashMap<usize, u64> = HashMap::new();
    for record in text.split_terminator('>') {
        let (writer, seq) = record.trim_start_matches('<').split_once(':').expect("a whole record");
        let (writer, seq): (usize, u64) = (writer.parse().unwrap(), seq.parse().unwrap());
        let expected = next.entry(writer).or_default();
        assert_eq!(seq, *expected, "writer {writer} in {text}");
        *expected += 1;
    }
    assert_eq!(next.len(), WRITERS / 2, "{text}");
    assert!(next.values().all(|&count| count == RECORDS), "{text}");
}

async fn survives(fault: Fault, seed: u64) {
    let machine = Machine::configured(2, seed, |config| {
        config.storage.journal_bytes = 400;
        config.limits.max_memory_bytes = 200;
    });
    let names: Vec<String> = (0..2).map(|shard| machine.name_on(shard, "stream")).collect();
    let done = Arc::new(AtomicBool::new(false));
    let (mut readers, mut watchers) = (Vec::new(), Vec::new());
    for name in &names {
        machine.create(name).await.unwrap();
        for _ in 0..2 {
            let subscription = within(machine.store.subscribe(stream(name), RequestedOffset::Start)).await;
            readers.push((name.clone(), tokio::spawn(follow(subscription.unwrap()))));
        }
        watchers.push(tokio::spawn(watch(machine.clone(), name.clone(), done.clone())));
    }
    machine.disks.shard(0).arm(fault);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(machine.clone(), names[writer % 2].clone(), writer)))
        .collect();
    if fault.lasting {
        machine.wait_until_not_ready().await;
        let health = machine.store.health();
        assert!(health.waiting_for.iter().all(|line| line.contains("shard 0")), "{health:?}");
        machine.disks.heal();
    }
    for writer in writers {
        within(writer).await.expect("a writer gets through");
    }
    machine.disks.heal();
    for name in &names {
        let closed = async {
            while machine.close(name).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        };
        within(closed).await;
    }
    done.store(true, Ordering::Relaxed);
    for watcher in watchers {
        within(watcher).await.expect("a watcher saw nothing strange");
    }
    machine.wait_until_ready().await;
    for (name, reader) in readers {
        let seen = within(reader).await.expect("a reader comes to the end");
        assert_eq!(seen, machine.content(&name).await.unwrap(), "{name}");
        assert_complete(&seen);
    }
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn writers_and_readers_get_over_any_call_of_the_disk_that_fails_once() {
    for (calls, most) in [(Calls::Writes, 12), (Calls::Syncs, 5)] {
        for after in 0..most {
            survives(Fault { after, ..Fault::next(calls) }, after).await;
        }
    }
}

#[tokio::test]
async fn writers_and_readers_get_over_a_disk_that_fails_for_a_while() {
    for calls in [Calls::Writes, Calls::Syncs, Calls::All] {
        for after in [0, 2, 5] {
            survives(Fault { after, lasting: true, ..Fault::next(calls) }, after).await;
        }
    }
}

#[tokio::test]
async fn nothing_shows_before_it_is_durable_and_a_failed_commit_is_retried_without_loss_or_doubling() {
    for unsynced in [Unsynced::None, Unsynced::All, Unsynced::Some] {
        let machine = Machine::start(1, 7);
        machine.create("s").await.unwrap();
        machine.create("doomed").await.unwrap();
        machine.append("s", "old").await.unwrap();
        let disk = machine.disks.shard(0);
        disk.stall_syncs();
        let in_flight = {
            let machine = machine.clone();
            tokio::spawn(async move {
                let new = append("s", "new", Some(("p", 0)));
                // The second one is a duplicate of the first, which is not durable yet.
                let close = append("s", "end", Some(("p", 1)));
                let close = durable_streams_server::engine::api::AppendRequest { close: true, ..close };
                tokio::join!(
                    machine.store.append(new.clone()),
                    machine.store.append(new),
                    machine.store.append(close),
                    machine.create("late"),
                    machine.delete("doomed"),
                )
            })
        };
        within(tokio::task::spawn_blocking({
            let disks = machine.disks.clone();
            move || disks.shard(0).wait_for_held_sync()
        }))
        .await
        .unwrap();
        let page = machine.read("s").await.unwrap();
        assert_eq!(page.data.concat(), b"old");
        assert!(page.up_to_date() && !page.info.closed);
        assert_eq!(machine.tail("doomed").await, Ok(0));
        assert!(machine.tail("late").await.is_err());
        assert!(!in_flight.is_finished());

        disk.arm(Fault { unsynced, lasting: true, ..Fault::next(Calls::Syncs) });
        disk.resume_syncs();
        let (new, again, close, late, deleted) = within(in_flight).await.unwrap();
        for answer in [new, again, close] {
            assert!(matches!(answer, Err(AppendError::Unavailable(_))), "{answer:?}");
        }
        assert!(matches!(late, Err(CreateError::Unavailable(_))), "{late:?}");
        assert!(matches!(deleted, Err(LookupError::Unavailable(_))), "{deleted:?}");
        assert_eq!(machine.store.health().waiting_for.len(), 1);
        assert!(
            matches!(machine.append("s", "x").await, Err(AppendError::Unavailable(Unavailable::Recovering))),
            "a shard that recovers takes nothing"
        );

        machine.disks.heal();
        machine.wait_until_ready().await;
        let there = machine.content("s").await.unwrap();
        let committed = there != b"old";
        match unsynced {
            Unsynced::None => assert!(!committed),
            Unsynced::All => assert!(committed),
            Unsynced::Some => {}
        }
        // The first of them may have made a group of its own, and that is all or nothing.
        let stored = |tail: &[u8]| there == [&b"old"[..], tail].concat();
        assert!(!committed || stored(b"new") || stored(b"newend"), "{there:?}");
        let again = within(machine.store.append(append("s", "new", Some(("p", 0))))).await;
        if stored(b"newend") {
            assert!(matches!(again, Err(AppendError::Refused(_))), "closed: {again:?}");
        } else {
            assert_eq!(again.unwrap().duplicate, committed);
        }
        let close = append("s", "end", Some(("p", 1)));
        let close = durable_streams_server::engine::api::AppendRequest { close: true, ..close };
        let closed = within(machine.store.append(close)).await.unwrap();
        assert_eq!(closed.duplicate, stored(b"newend"));
        assert_eq!(machine.content("s").await.unwrap(), b"oldnewend");
        within(machine.store.shutdown()).await;
    }
}
