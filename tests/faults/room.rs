//! Disks that other things fill up too: what needs room is refused before it runs out, what frees some goes on.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use durable_streams_server::config::Config;
use durable_streams_server::engine::api::{
    AppendError, AppendRequest, CreateError, Full, LookupError, ReadError, Storage, Unavailable,
};
use durable_streams_server::engine::{AcidStorage, EngineOptions};
use durable_streams_server::storage::FreeSpaceProbe;
use futures_util::future::join_all;

use crate::disk::{Calls, Fault};
use crate::{Machine, POLL, append, within};

pub(crate) const MIB: u64 = 1 << 20;
const MIN_FREE: u64 = 4 * MIB;
const PLENTY: u64 = 1 << 40;
const FULL: AppendError = AppendError::Full(Full::FileSystem);
const NOT_CREATED: CreateError = CreateError::Full(Full::FileSystem);

/// What is free on the file system, as the test says.
#[derive(Clone)]
pub(crate) struct Room(Arc<AtomicU64>);

impl Room {
    pub(crate) fn of(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    pub(crate) fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn probe(&self) -> FreeSpaceProbe {
        let free = self.0.clone();
        FreeSpaceProbe::new(move || Ok(free.load(Ordering::SeqCst)))
    }
}

fn machine(shards: usize, seed: u64, room: &Room, configure: impl FnOnce(&mut Config)) -> Machine {
    let options = EngineOptions::default().with_free_space(room.probe());
    Machine::with_options(shards, seed, options, |config| {
        config.storage.min_free_disk_bytes = MIN_FREE;
        configure(config);
    })
}

/// Appends until the store says that the disk is full.
async fn append_until_full(machine: &Machine, name: &str) -> u64 {
    let mut taken = 0;
    loop {
        match machine.append(name, "x").await {
            Ok(_) => taken += 1,
            Err(error) => {
                assert_eq!(error, FULL);
                return taken;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Appends until the store takes it.
async fn append_until_taken(machine: &Machine, name: &str) {
    within(async {
        while let Err(error) = machine.append(name, "x").await {
            assert_eq!(error, FULL);
            tokio::time::sleep(POLL).await;
        }
    })
    .await;
}

#[tokio::test]
async fn on_an_almost_full_disk_only_what_needs_room_is_refused() {
    let room = Room::of(PLENTY);
    let machine = machine(1, 31, &room, |_| {});
    for name in ["s", "source", "doomed", "closing", "twice"] {
        machine.create(name).await.unwrap();
    }
    machine.create_with("fork", Some("source"), None).await.unwrap();
    machine.create_with("sliding", None, Some(100)).await.unwrap();
    within(machine.store.append(append("twice", "once", Some(("p", 0))))).await.unwrap();
    room.set(MIN_FREE - 1);
    let taken = within(append_until_full(&machine, "s")).await;

    assert_eq!(machine.create("new").await.err(), Some(NOT_CREATED));
    assert_eq!(machine.create_with("new", Some("source"), None).await.err(), Some(NOT_CREATED));
    let closing = AppendRequest { close: true, ..append("closing", "with data", None) };
    assert_eq!(within(machine.store.append(closing)).await, Err(FULL));
    assert_eq!(machine.tail("closing").await, Ok(0), "nothing of it was done");

    assert!(machine.create("s").await.unwrap().existed);
    assert!(within(machine.store.append(append("twice", "once", Some(("p", 0))))).await.unwrap().duplicate);
    machine.close("closing").await.unwrap();
    // Its renewal has to be written by then.
    machine.clock.advance(std::time::Duration::from_secs(60));
    assert_eq!(machine.content("sliding").await, Ok(Vec::new()));
    machine.delete("doomed").await.unwrap();
    machine.delete("source").await.unwrap();
    machine.delete("fork").await.unwrap();
    machine.wait_until_absent("source").await;
    assert_eq!(machine.tail("s").await, Ok(taken));
    assert!(machine.store.health().is_ready(), "nothing is wrong with the shard");

    // Nothing is written meanwhile: the store sees by itself that there is room again.
    room.set(PLENTY);
    append_until_taken(&machine, "s").await;
    machine.create("new").await.unwrap();
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn a_store_that_starts_on_an_almost_full_disk_takes_nothing_before_there_is_room() {
    let room = Room::of(MIN_FREE - 1);
    let machine = machine(2, 32, &room, |_| {});
    let name = machine.name_on(1, "s");
    assert_eq!(machine.create(&name).await.err(), Some(NOT_CREATED));
    room.set(MIN_FREE);
    within(async {
        while machine.create(&name).await.is_err() {
            tokio::time::sleep(POLL).await;
        }
    })
    .await;
    assert_eq!(machine.append(&name, vec![0; 100]).await, Err(FULL), "it would not leave what has to stay");
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn without_a_reserve_nobody_asks_how_full_the_disk_is() {
    let room = Room::of(0);
    let machine = machine(1, 33, &room, |config| config.storage.min_free_disk_bytes = 0);
    machine.create("s").await.unwrap();
    machine.append("s", "x").await.unwrap();
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn a_disk_that_is_full_at_once_fails_the_shard_once() {
    let room = Room::of(PLENTY);
    let machine = machine(1, 34, &room, |_| {});
    machine.create("s").await.unwrap();
    machine.create("large").await.unwrap();
    machine.append("large", vec![7; 400_000]).await.unwrap();
    // Somebody else took all that was left.
    room.set(0);
    let full = Fault { error: ErrorKind::StorageFull, lasting: true, ..Fault::next(Calls::Growths) };
    machine.disks.shard(0).arm(full);
    let failed = machine.append("s", vec![8; 2_000_000]).await;
    assert_eq!(failed, Err(AppendError::Unavailable(Unavailable::CommitFailed)));
    machine.wait_until_ready().await;
    let failures = machine.disks.failures();
    for _ in 0..50 {
        assert_eq!(machine.append("s", vec![8; 2_000_000]).await, Err(FULL));
        assert_eq!(machine.append("s", "x").await, Err(FULL));
        assert_eq!(machine.create("new").await.err(), Some(NOT_CREATED));
        assert_eq!(machine.content("large").await.unwrap(), [7; 400_000]);
    }
    machine.close("s").await.unwrap();
    machine.delete("large").await.unwrap();
    assert_eq!(machine.disks.failures(), failures, "the shard works with what it has");
    assert!(machine.store.health().is_ready());
    machine.disks.heal();
    room.set(PLENTY);
    within(async {
        while machine.create("new").await.is_err() {
            tokio::time::sleep(POLL).await;
        }
    })
    .await;
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn readers_and_deletions_get_by_where_the_file_system_does_not_tell_that_it_is_full() {
    // As with a quota.
    let room = Room::of(PLENTY);
    let machine = machine(1, 35, &room, |_| {});
    for name in ["s", "doomed"] {
        machine.create(name).await.unwrap();
        machine.append(name, vec![7; 400_000]).await.unwrap();
    }
    let full = Fault { error: ErrorKind::QuotaExceeded, lasting: true, ..Fault::next(Calls::Growths) };
    machine.disks.shard(0).arm(full);
    assert!(matches!(machine.append("s", vec![8; 2_000_000]).await, Err(AppendError::Unavailable(_))));
    machine.wait_until_ready().await;
    let failures = machine.disks.failures();
    assert_eq!(machine.append("s", "x").await, Err(FULL));
    assert_eq!(machine.content("s").await.unwrap(), [7; 400_000]);
    machine.delete("doomed").await.unwrap();
    assert_eq!(machine.disks.failures(), failures);
    // What is freed since is room.
    room.set(PLENTY + 2 * MIN_FREE);
    machine.disks.heal();
    append_until_taken(&machine, "s").await;
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn bytes_on_their_way_to_the_disk_count() {
    const RECORD_BYTES: u64 = 50_000;
    let limit = 2 * MIB;
    let room = Room::of(MIN_FREE + limit);
    for (by_room, full) in [(false, Full::Disk), (true, Full::FileSystem)] {
        let machine = machine(2, 36, &room, |config| {
            if !by_room {
                config.storage.min_free_disk_bytes = 0;
                config.limits.max_disk_bytes = Some(limit);
            }
        });
        let names = [machine.name_on(0, "s"), machine.name_on(1, "s")];
        for name in &names {
            machine.create(name).await.unwrap();
        }
        machine.disks.stall_syncs();
        let burst =
            join_all((0..100).map(|at| machine.append(&names[at % 2], vec![b'x'; RECORD_BYTES as usize])));
        let slow = async {
            for name in &names {
                // Shards answer in order: by then it has looked at its part of the burst.
                assert_eq!(machine.tail(name).await, Ok(0));
            }
            machine.disks.resume_syncs();
        };
        let (answers, ()) = tokio::join!(burst, slow);
        let taken = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
        assert!(answers.iter().filter_map(|answer| answer.as_ref().err()).all(|error| *error == full.into()));
        // Two shards that decide at the same instant do not see each other's last record.
        let fitting = limit / RECORD_BYTES;
        assert!((fitting / 2..=fitting + 1).contains(&taken), "{taken} of {fitting}");
        within(machine.store.shutdown()).await;
    }
}

/// What the files below take of their disk.
fn taken(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).unwrap();
    // A file may go while it is looked at.
    let metas =
        entries.filter_map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))).ok());
    metas.map(|(path, meta)| if meta.is_dir() { taken(&path) } else { meta.blocks() * 512 }).sum()
}

#[tokio::test]
async fn the_room_of_deleted_content_is_room() {
    const PIECE_BYTES: usize = 60_000;
    const DELETED: usize = 9 * 20;
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.storage.data_dir = directory.path().to_owned();
    config.storage.acid_shard_count = Some(1);
    config.storage.journal_bytes = 64 << 10;
    config.storage.min_free_disk_bytes = MIN_FREE;
    config.limits.max_stream_bytes = None;
    let size = Room::of(PLENTY);
    let probe = {
        let (size, path) = (size.clone(), directory.path().to_owned());
        FreeSpaceProbe::new(move || Ok(size.0.load(Ordering::SeqCst).saturating_sub(taken(&path))))
    };
    let options = EngineOptions::default().with_free_space(probe);
    let store = AcidStorage::open_with(&config, &options).unwrap();
    let machine = Machine { store: Arc::new(store), ..Machine::start(1, 37) };
    let names: Vec<String> = (0..10).map(|index| format!("s-{index}")).collect();
    for name in &names {
        machine.create(name).await.unwrap();
        for _ in 0..20 {
            machine.append(name, vec![b'x'; PIECE_BYTES]).await.unwrap();
        }
    }
    size.set(taken(directory.path()) + MIN_FREE);
    let add = |pieces: usize| {
        let machine = &machine;
        async move {
            let mut added = 0;
            while added < pieces {
                match machine.append("s-9", vec![b'y'; PIECE_BYTES]).await {
                    Ok(_) => added += 1,
                    Err(FULL) if pieces == usize::MAX => break,
                    Err(error) => assert_eq!(error, FULL),
                }
                tokio::time::sleep(POLL).await;
            }
            added
        }
    };
    within(add(usize::MAX)).await;
    for name in &names[..9] {
        machine.delete(name).await.unwrap();
    }
    within(add(DELETED / 2)).await;
    let more = within(add(usize::MAX)).await;
    assert!(more < DELETED, "{more} and {} pieces were taken into the room of {DELETED}", DELETED / 2);
    assert_eq!(within(machine.store.delete(crate::stream("s-0"))).await, Err(not_found()));
    assert!(matches!(machine.content("s-0").await, Err(ReadError::Refused(_))));
    within(machine.store.shutdown()).await;
}

fn not_found() -> LookupError {
    durable_streams_server::engine::api::LookupRefusal::NotFound.into()
}
