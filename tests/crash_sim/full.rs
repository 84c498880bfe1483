//! A disk that is full: reads and deletions go on, also after a restart, and what they free is taken again.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use durable_streams_server::config::{Config, StorageMode};
use durable_streams_server::engine::api::{
    AppendError, AppendRequest, Body, CreateRequest, Full, LookupError, LookupRefusal, ReadRequest,
    Retention, Storage,
};
use durable_streams_server::engine::{AcidStorage, EngineOptions, FileStorage};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::offset::RequestedOffset;

use crate::request::stream_name;
use crate::sim_disk::SimDisk;
use crate::world::{PATIENCE, within};

const STREAMS: u8 = 40;
const CAPACITY: u64 = 8 << 20;
/// Before something that was refused is tried again.
const PAUSE: Duration = Duration::from_millis(5);
const RECORD_BYTES: usize = 30_000;

fn open(disk: &SimDisk, mode: StorageMode, min_free: u64) -> Arc<dyn Storage> {
    let mut config = Config::default();
    config.storage.mode = mode;
    config.storage.acid_shard_count = Some(1);
    config.storage.min_free_disk_bytes = min_free;
    config.limits.max_stream_bytes = None;
    let options = EngineOptions::default().with_disk(Arc::new(disk.clone()));
    match mode {
        StorageMode::Acid => Arc::new(AcidStorage::open_with(&config, &options).unwrap()),
        _ => Arc::new(FileStorage::open_with(&config, &options).unwrap()),
    }
}

fn creation(name: u8) -> CreateRequest {
    CreateRequest {
        name: stream_name(name),
        content_type: None,
        lifetime: None,
        retention: Retention::default(),
        closed: false,
        body: Body::default(),
        fork: None,
    }
}

fn append(name: u8) -> AppendRequest {
    AppendRequest {
        name: stream_name(name),
        content_type: Some(ContentType::octet_stream()),
        body: Body { raw: Bytes::from(vec![name; RECORD_BYTES]), json: None },
        close: false,
        stream_seq: None,
        producer: None,
    }
}

/// Appends to all streams in turn until each of them was refused.
async fn fill(store: &dyn Storage) {
    let deadline = Instant::now() + PATIENCE;
    let (mut at, mut in_a_row) = (0, 0);
    while in_a_row < STREAMS {
        assert!(Instant::now() < deadline, "appends are never refused");
        match within(store.append(append(at % STREAMS))).await {
            Ok(_) => in_a_row = 0,
            Err(AppendError::Full(Full::FileSystem)) => in_a_row += 1,
            // A write that found no room; the shard is opened again.
            Err(AppendError::Unavailable(_)) => tokio::time::sleep(PAUSE).await,
            Err(error) => panic!("{error:?}"),
        }
        at = at.wrapping_add(1);
    }
}

async fn delete(store: &dyn Storage, names: Range<u8>, mode: StorageMode) {
    let deadline = Instant::now() + PATIENCE;
    for name in names {
        let mut was_refused = false;
        loop {
            match within(store.delete(stream_name(name))).await {
                Ok(()) => break,
                // It was the very write that found no room; the shard is opened again, and has the deletion or not.
                Err(LookupError::Unavailable(_)) if Instant::now() < deadline => was_refused = true,
                Err(LookupError::Refused(LookupRefusal::NotFound)) if was_refused => break,
                Err(error) => panic!("{mode:?}: stream {name} cannot be deleted: {error:?}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn on_a_full_disk(mode: StorageMode, min_free: u64) {
    let disk = SimDisk::new(5);
    disk.set_capacity(Some(CAPACITY));
    let store = open(&disk, mode, min_free);
    for name in 0..STREAMS {
        within(store.create(creation(name))).await.unwrap();
    }
    fill(&*store).await;
    for name in 0..STREAMS {
        let request =
            ReadRequest { name: stream_name(name), from: RequestedOffset::Start, max_bytes: 1 << 20 };
        assert!(within(store.read(request)).await.is_ok(), "{mode:?}: stream {name}");
    }
    delete(&*store, 0..5, mode).await;
    within(store.shutdown()).await;

    let store = open(&disk, mode, min_free);
    delete(&*store, 5..STREAMS, mode).await;
    let deadline = Instant::now() + PATIENCE;
    // What deletions free comes back when segments are given up.
    while let Err(error) = within(store.create(creation(STREAMS))).await {
        assert!(Instant::now() < deadline, "{mode:?}: no creation: {error:?}");
        tokio::time::sleep(PAUSE).await;
    }
    let mut taken = 0;
    while taken < 20 {
        match within(store.append(append(STREAMS))).await {
            Ok(_) => taken += 1,
            Err(error) => {
                assert!(Instant::now() < deadline, "{mode:?}: {error:?} after {taken}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    within(store.shutdown()).await;
}

#[tokio::test]
async fn a_full_disk_takes_deletions_and_then_appends_again() {
    for mode in [StorageMode::FileDurable, StorageMode::FileFast, StorageMode::Acid] {
        for min_free in [0, 64 << 10] {
            on_a_full_disk(mode, min_free).await;
        }
    }
}
