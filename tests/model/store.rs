//! The stores under test: small ones, so that their limits are in reach.

use std::sync::Arc;

use durable_streams_server::config::{Config, StorageMode};
use durable_streams_server::engine::api::Storage;
use durable_streams_server::engine::clock::Clock;
use durable_streams_server::engine::{AcidStorage, EngineOptions, FileStorage, InMemoryStorage};

use crate::disk::Disks;
use crate::plan::{CROWD, NAMES, Setting};

pub(crate) const PRODUCERS_MAX: usize = 3;
/// Of the memory mode; no sequence comes near it.
pub(crate) const MEMORY_BYTES: u64 = 16 << 20;
/// Room for probes, in streams.
pub(crate) const PROBES_MAX: u8 = 3;

/// Where the store keeps its data.
pub(crate) enum Below {
    Memory,
    Disks(Arc<Disks>),
    Directory(StorageMode, tempfile::TempDir),
}

/// Opens the store, on the data that it had before.
pub(crate) fn open(setting: &Setting, below: &Below, clock: &Clock) -> Arc<dyn Storage> {
    let mut config = Config::default();
    config.storage.acid_shard_count = Some(setting.shards);
    config.storage.journal_bytes = setting.journal_bytes;
    config.storage.cache_bytes = 1 << 20;
    config.limits.max_memory_bytes = setting.recent_bytes;
    config.limits.max_streams = u64::from(NAMES + CROWD + PROBES_MAX);
    config.limits.max_stream_bytes = setting.stream_bytes_max.map(|max| max as u64);
    config.limits.max_producers_per_stream = PRODUCERS_MAX;
    let options = EngineOptions::default().with_clock(clock.clone());
    match below {
        Below::Memory => {
            config.limits.max_memory_bytes = MEMORY_BYTES;
            Arc::new(InMemoryStorage::with_options(&config, &options).unwrap())
        }
        Below::Disks(disks) => {
            let options = disks.put_below(options);
            Arc::new(AcidStorage::open_with(&config, &options).unwrap())
        }
        Below::Directory(mode, directory) => {
            config.storage.mode = *mode;
            config.storage.data_dir = directory.path().to_owned();
            match mode {
                StorageMode::Acid => Arc::new(AcidStorage::open_with(&config, &options).unwrap()),
                _ => Arc::new(FileStorage::open_with(&config, &options).unwrap()),
            }
        }
    }
}
