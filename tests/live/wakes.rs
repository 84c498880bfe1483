//! News that arrive while a reader is between looking and waiting. In the server both happen on one thread; on a host's
//! runtime the shard announces from its own.

use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use durable_streams_server::config::{Config, StorageMode};
use durable_streams_server::engine::InMemoryStorage;
use durable_streams_server::engine::api::{
    AppendRequest, Body, CreateRequest, LiveEvent, Retention, Storage, Subscription,
};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::name::StreamName;
use durable_streams_server::protocol::offset::RequestedOffset;
use futures_util::FutureExt as _;
use futures_util::future::join_all;

use super::*;

/// The moment that matters is short, and is hit by chance.
const ROUNDS: u64 = 1000;
/// Longest pause before something happens, which is about what readers take to begin to wait.
const SPREAD_MICROS: usize = 60;

/// Waits without giving up the thread: sleeping would take longer than all that is raced with.
fn linger(dice: &mut Dice) {
    let pause = Duration::from_micros(dice.roll(SPREAD_MICROS) as u64);
    let begin = Instant::now();
    while begin.elapsed() < pause {
        std::hint::spin_loop();
    }
}

fn stream(round: u64) -> StreamName {
    StreamName::from_stored(&format!("s-{round}"))
}

fn creation(round: u64) -> CreateRequest {
    CreateRequest {
        name: stream(round),
        content_type: None,
        lifetime: None,
        retention: Retention::default(),
        closed: false,
        body: Body::default(),
        fork: None,
    }
}

fn appending(round: u64, data: &'static str, close: bool) -> AppendRequest {
    AppendRequest {
        name: stream(round),
        content_type: Some(ContentType::octet_stream()),
        body: Body { raw: Bytes::from_static(data.as_bytes()), json: None },
        close,
        stream_seq: None,
        producer: None,
    }
}

async fn next(reader: &mut Subscription) -> LiveEvent {
    let event = tokio::time::timeout(PATIENCE, reader.next(1000)).await;
    event.expect("nobody told the reader").expect("what comes can be told")
}

/// Readers go to wait one right after the other, and while they do, something happens. Some of them are between looking
/// and waiting then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_just_before_a_reader_waits_is_told() {
    const READERS: usize = 100;
    let mut config = Config::with_mode(StorageMode::Memory);
    config.storage.acid_shard_count = Some(1);
    let storage = InMemoryStorage::new(&config).expect("there are threads");
    let mut dice = Dice::new(71);
    storage.create(creation(0)).await.expect("the name is free");
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(storage.subscribe(stream(0), RequestedOffset::Start).await.expect("it exists"));
    }
    for round in 1..=ROUNDS {
        let is_last = round == ROUNDS;
        let writer = tokio::spawn({
            let (storage, mut dice) = (storage.clone(), dice.clone());
            async move {
                linger(&mut dice);
                let data = if is_last { "" } else { "x" };
                storage.append(appending(0, data, is_last)).await.expect("it is open");
            }
        });
        dice.roll(2);
        let mut waiting: Vec<_> = readers.iter_mut().map(|reader| next(reader).boxed()).collect();
        let mut told = Vec::new();
        // None is polled again before it is woken.
        waiting.retain_mut(|reader| match reader.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => {
                told.push(event);
                false
            }
            Poll::Pending => true,
        });
        told.extend(join_all(waiting).await);
        writer.await.expect("the writer is done");
        for event in told {
            match event {
                LiveEvent::Data(batch) => assert_eq!((batch.end, is_last), (round, false)),
                LiveEvent::Closed { tail } => assert_eq!((tail, is_last), (round - 1, true)),
                other => panic!("{other:?}"),
            }
        }
    }
    storage.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_reaches_who_has_read_everything_while_others_catch_up() {
    const APPENDS: usize = 30;
    const PIECE: &str = "0123456789abcdef0123456789abcdef";
    let mut config = Config::with_mode(StorageMode::Memory);
    config.storage.acid_shard_count = Some(1);
    let storage = InMemoryStorage::new(&config).expect("there are threads");
    let mut dice = Dice::new(72);
    for round in 0..ROUNDS / 10 {
        storage.create(creation(round)).await.expect("the name is free");
        let subscribe = || storage.subscribe(stream(round), RequestedOffset::Start);
        let mut swift = subscribe().await.expect("it exists");
        for _ in 0..APPENDS {
            // Some are more than a topic keeps together, so that its readers find nothing there.
            let mut request = appending(round, PIECE, false);
            request.body.raw = PIECE.repeat(if round % 2 == 0 { 1 } else { 512 }).into();
            storage.append(request).await.expect("it is open");
        }
        let all = storage.head(stream(round)).await.expect("it exists").tail;
        while swift.position() < all {
            assert!(matches!(next(&mut swift).await, LiveEvent::Data(_)));
        }
        let late = tokio::spawn({
            let mut late = subscribe().await.expect("it exists");
            async move {
                // In pieces, each of which is asked for.
                loop {
                    match tokio::time::timeout(PATIENCE, late.next(100))
                        .await
                        .expect("nobody told the reader")
                    {
                        Ok(LiveEvent::Data(_)) => {}
                        Ok(event) => break event,
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        });
        linger(&mut dice);
        storage.delete(stream(round)).await.expect("it is there");
        let event = next(&mut swift).await;
        assert!(matches!(event, LiveEvent::Removed), "{event:?}");
        let event = late.await.expect("the reader comes to the end");
        assert!(matches!(event, LiveEvent::Removed), "{event:?}");
    }
    storage.shutdown().await;
}
