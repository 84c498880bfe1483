//! Content moves out of the journal in time where there is little room, and in portions that there is room for.

use std::path::Path;
use std::sync::Arc;

use durable_streams_server::config::Config;
use durable_streams_server::engine::api::Storage;
use durable_streams_server::engine::{EngineOptions, FileStorage};
use durable_streams_server::storage::disk::{Disk, MemoryDisk};

use crate::room::{MIB, Room};
use crate::{POLL, append, creation, read, within};

const PIECE_BYTES: usize = 256 << 10;
const PIECES: usize = 12;
/// Room in which no journal of the tests is too large: it may have a quarter of it, and of what it has itself.
const ENOUGH: u64 = 16 * MIB;
/// Room that is too small for it.
const LITTLE: u64 = 2 * MIB;
/// What a checkpoint may settle then: half of it, and of what the journal has taken ahead.
const SETTLED_BYTES_MAX: u64 = LITTLE / 2 + (128 << 10);
/// Of a segment: all but content.
const FRAMING_BYTES: u64 = 16 << 10;

struct Shard {
    disk: MemoryDisk,
    store: FileStorage,
}

impl Shard {
    /// One that is told of `room`, with a journal of [`PIECES`] pieces, which are those of `streams` streams in turn.
    async fn start(room: &Room, streams: usize) -> Self {
        let mut config = Config::default();
        config.storage.acid_shard_count = Some(1);
        // Otherwise nobody asks how full the disk is.
        config.storage.min_free_disk_bytes = 1;
        config.limits.max_stream_bytes = None;
        let disk = MemoryDisk::new();
        let options =
            EngineOptions::default().with_disk(Arc::new(disk.clone())).with_free_space(room.probe());
        let store = FileStorage::open_with(&config, &options).unwrap();
        for stream in 0..streams {
            within(store.create(creation(&name(stream)))).await.unwrap();
        }
        for piece in 0..PIECES {
            within(store.append(append(&name(piece % streams), content(piece), None))).await.unwrap();
        }
        Self { disk, store }
    }

    /// Sizes of the segments. Bytes.
    fn segments(&self) -> Vec<u64> {
        let files = self.disk.list(Path::new("shard-00")).unwrap().into_iter();
        let names = files.map(|file| file.name).filter(|name| name.starts_with("segment-"));
        let open = |name: String| {
            let path = Path::new("shard-00").join(name);
            self.disk.open(&path, durable_streams_server::storage::disk::OpenMode::Read).unwrap()
        };
        names.map(|name| open(name).len().unwrap()).collect()
    }

    /// Something to commit: that is when room is looked at, and checkpoints begin.
    async fn commit(&self) {
        within(self.store.append(append("traffic", "x", None))).await.unwrap();
    }

    async fn commit_until_there_are_segments(&self, count: usize) {
        within(async {
            while self.segments().len() < count {
                self.commit().await;
                tokio::time::sleep(POLL).await;
            }
        })
        .await;
    }

    async fn check(&self, streams: usize) {
        for stream in 0..streams {
            let page = within(self.store.read(read(&name(stream)))).await.unwrap();
            let pieces = (stream..PIECES).step_by(streams);
            assert!(page.up_to_date() && page.data.concat() == pieces.flat_map(content).collect::<Vec<_>>());
        }
    }
}

fn name(stream: usize) -> String {
    format!("s-{stream}")
}

fn content(piece: usize) -> Vec<u8> {
    vec![u8::try_from(piece).unwrap(); PIECE_BYTES]
}

#[tokio::test]
async fn where_there_is_little_room_the_journal_is_settled_early_and_in_small_portions() {
    let room = Room::of(ENOUGH);
    let shard = Shard::start(&room, PIECES).await;
    within(shard.store.create(creation("traffic"))).await.unwrap();
    assert_eq!(shard.segments(), [0; 0], "the journal is small for that much room");
    room.set(LITTLE);
    shard.commit_until_there_are_segments(2).await;
    for bytes in shard.segments() {
        assert!(bytes <= SETTLED_BYTES_MAX + FRAMING_BYTES, "{bytes} bytes were settled at once");
    }
    shard.check(PIECES).await;
    within(shard.store.shutdown()).await;
}

#[tokio::test]
async fn a_stream_that_there_is_no_room_to_settle_waits_until_there_is() {
    let room = Room::of(ENOUGH);
    let shard = Shard::start(&room, 1).await;
    within(shard.store.create(creation("traffic"))).await.unwrap();
    room.set(LITTLE);
    for _ in 0..50 {
        shard.commit().await;
    }
    assert_eq!(shard.segments(), [0; 0], "a segment would take more than there is");
    shard.check(1).await;
    // A journal of three may not have a quarter of eleven.
    room.set(8 * MIB);
    shard.commit_until_there_are_segments(1).await;
    shard.check(1).await;
    within(shard.store.shutdown()).await;
}
