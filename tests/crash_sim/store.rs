//! The store under test, on a simulated disk.

use std::path::Path;
use std::sync::Arc;

use durable_streams_server::config::{Config, StorageMode};
use durable_streams_server::engine::api::Storage;
use durable_streams_server::engine::clock::Clock;
use durable_streams_server::engine::{AcidStorage, EngineOptions, FileStorage};
use durable_streams_server::storage::StorageError;
use durable_streams_server::storage::disk::Disk as _;
use durable_streams_server::tools::verify::Severity;
use durable_streams_server::tools::{self, DataDirectory};

use crate::sim_disk::SimDisk;

/// How a store is built.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) shards: usize,
    /// Above this, the journal is settled.
    pub(crate) journal_bytes: u64,
    /// Above this, settled content leaves the RAM; over all shards.
    pub(crate) recent_bytes: u64,
    /// Pages of the database that stay in RAM, over all shards.
    pub(crate) cache_bytes: u64,
    /// A mode that promises to lose nothing; for the other one, see `fast`.
    pub(crate) mode: StorageMode,
}

/// Opens the store with what the disk holds.
pub(crate) fn open(
    disk: &SimDisk,
    setting: &Setting,
    clock: &Clock,
) -> Result<Arc<dyn Storage>, StorageError> {
    let mut config = Config::default();
    config.storage.acid_shard_count = Some(setting.shards);
    config.storage.journal_bytes = setting.journal_bytes;
    config.storage.cache_bytes = setting.cache_bytes;
    config.limits.max_memory_bytes = setting.recent_bytes;
    let options = EngineOptions::default().with_clock(clock.clone()).with_disk(Arc::new(disk.clone()));
    config.storage.mode = setting.mode;
    Ok(match setting.mode {
        StorageMode::FileDurable => Arc::new(FileStorage::open_with(&config, &options)?),
        _ => Arc::new(AcidStorage::open_with(&config, &options)?),
    })
}

/// The same, unless the directory was not made yet.
pub(crate) fn verify_if_made(disk: &SimDisk) {
    let listed = disk.list(Path::new("")).unwrap();
    if listed.iter().any(|entry| entry.name == "layout.json") {
        verify(disk);
    }
}

/// Everything on the disk fits together. Nobody may have it open.
pub(crate) fn verify(disk: &SimDisk) {
    let mut errors = Vec::new();
    let directory = DataDirectory::on_disk(Arc::new(disk.clone()));
    tools::verify::verify(&directory, &mut (), &mut |finding| {
        if finding.severity == Severity::Error {
            errors.push(finding.to_string());
        }
    });
    assert!(errors.is_empty(), "{errors:#?}");
}
