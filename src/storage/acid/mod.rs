//! Journal, records and settled payload in one redb database per shard.
//!
//! ```text
//! <data_dir>/
//!   LOCK                  held exclusively (flock) while any part of the storage is open
//!   layout.json           {"format_version":1,"shard_count":N,"hash":"xxh3-64/seed0"}
//!   shard-00/shard.redb   one database per shard; empty until it is opened for the first time
//!   shard-01/shard.redb
//! ```
//!
//! # Tables
//!
//! Integers in keys are fixed width and compare as numbers, so that every scan below is one contiguous range. Names and
//! types are the format: changing one needs a new `format_version`.
//!
//! | table | key | value |
//! |---|---|---|
//! | `journal` | (group `u64`, part `u32`) | a piece of the group's frames; the parts 0, 1, … joined are the group |
//! | `streams` | stream `u64` | the stream's record, replaced as a whole |
//! | `producers` | (stream `u64`, producer id) | (epoch `u64`, last sequence number `u64`) |
//! | `extents` | (stream `u64`, position of the first byte `u64`) | one flag byte, then settled payload |
//! | `doomed` | stream `u64` | nothing: the stream is gone, some of its `extents` rows are not |
//! | `sys` | name | `format`, `shard`, `next_stream_id`, `next_group`, `settled_bytes`: each a `u64` |
//!
//! * **journal**: a group without frames has no row if it carries a checkpoint (which keeps its number in `next_group`),
//!   otherwise one empty row, so that no number is ever given out twice.
//! * **extents**: bit 0 of the flag byte says that the row starts at a message boundary; the other bits are zero. The rows
//!   of a stream are contiguous: each starts where the one before ends. Bytes never change by position, but a short last
//!   row may be replaced by a longer one that begins with the same bytes.
//! * **sys**: `format` and `shard` are written once, when the database is made, and compared at each opening: a database
//!   file that was moved between shards is noticed. The others are written with each checkpoint, `settled_bytes` with each
//!   reclaim too: it is what the rows of `streams`, `producers` and `extents` take (see `usage`).
//!
//! # Row sizes
//!
//! redb keeps a row inside one page, writes whole pages, and makes pages of 4096·2^k bytes. Rows are therefore cut to fill
//! their page: at most 64 KiB of page each, less the page's own overhead (see `rows`), and a remainder that would leave
//! more than a quarter of its page empty is cut once more.
//!
//! # Durability
//!
//! One [`CommitLog::commit`] is one redb transaction with `Durability::Immediate`: one fsync (two
//! with `two_phase_commit`, one more when the file grows). After a failed commit the database is closed and opened again.
//! Opening it again first drops the kernel's cached pages of the file: after a failed fsync they may hold bytes that the
//! disk does not, and redb's checksums can only judge what the disk holds.

mod backend;
mod layout;
mod log;
mod reader;
mod rows;
mod tables;
#[cfg(test)]
mod tests;
mod usage;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use redb::Database;
use redb::backends::InMemoryBackend;

pub use backend::{BackendFactory, IoCounters};

use self::backend::{CountingBackend, SharedMemory};
use self::layout::DataDirectory;
use super::{CommitLog, FreeSpaceProbe, OpenLog, Recovered, StorageError};

/// Most shards of one data directory.
pub const SHARDS_MAX: usize = 256;

/// What the databases work on.
#[derive(Clone)]
#[non_exhaustive]
pub enum Backend {
    /// A file per shard below [`AcidOptions::data_dir`].
    File,
    /// RAM of this process. Survives a reopening of a shard, not the [`AcidLog`].
    InMemory,
    /// Whatever the factory returns; called with the shard's index each time the shard is opened. Keeping the content
    /// between two calls is the factory's concern. For tests that inject faults.
    Factory(BackendFactory),
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "File",
            Self::InMemory => "InMemory",
            Self::Factory(_) => "Factory",
        })
    }
}

/// How an [`AcidLog`] is opened.
#[derive(Clone, Debug)]
pub struct AcidOptions {
    /// Directory of all files; used by [`Backend::File`] only.
    pub data_dir: PathBuf,
    /// Number of shards that was asked for explicitly, 1 to [`SHARDS_MAX`]. A data directory made for another number is
    /// refused. `None` = what the data directory says, or else `default_shards`.
    pub shards: Option<usize>,
    /// Number of shards of a new data directory if none was asked for.
    pub default_shards: usize,
    /// What the databases work on.
    pub backend: Backend,
    /// redb's page cache in bytes, over all shards.
    pub cache_bytes: u64,
    /// Two fsyncs per commit instead of one: a commit stays atomic even against clients that choose their payload to
    /// collide redb's checksums and control the moment of a crash.
    pub two_phase_commit: bool,
    /// Tells how much room the disk has; `None` = the file system of `data_dir` is asked, and nobody without files. For
    /// tests that fill the disk.
    pub free_space: Option<FreeSpaceProbe>,
}

impl AcidOptions {
    /// Files below `data_dir`, one shard unless the directory says otherwise, 256 MiB of cache, one fsync per commit.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            shards: None,
            default_shards: 1,
            backend: Backend::File,
            cache_bytes: 256 << 20,
            two_phase_commit: false,
            free_space: None,
        }
    }
}

/// The acid storage of one data directory: opens its shards and holds its lock.
///
/// The lock is released when this, and everything that was opened from it, is dropped.
#[derive(Debug)]
pub struct AcidLog {
    options: AcidOptions,
    directory: Option<Arc<DataDirectory>>,
    shards: Vec<Arc<Shard>>,
    counters: Arc<IoCounters>,
}

impl AcidLog {
    /// Takes the data directory, making it if need be. Opens no database yet.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process has the directory; [`StorageError::Layout`] if it was made with another
    /// shard count, format or hash, or if a shard's file is gone; [`StorageError::Io`] if the file system refuses.
    pub fn new(options: AcidOptions) -> Result<Self, StorageError> {
        for count in options.shards.iter().chain([&options.default_shards]) {
            if !(1..=SHARDS_MAX).contains(count) {
                return Err(StorageError::Layout(format!(
                    "storage.acid_shard_count must be between 1 and {SHARDS_MAX}, not {count}"
                )));
            }
        }
        let directory = match options.backend {
            Backend::File => Some(Arc::new(DataDirectory::open(
                &options.data_dir,
                options.shards,
                options.default_shards,
            )?)),
            Backend::InMemory | Backend::Factory(_) => None,
        };
        let count =
            directory.as_ref().map_or(options.shards.unwrap_or(options.default_shards), |d| d.shard_count());
        let shard = |index| Arc::new(Shard::new(index, options.free_space.clone()));
        let shards = (0..count).map(shard).collect();
        Ok(Self { options, directory, shards, counters: Arc::default() })
    }

    /// Number of shards.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// What all databases did to their backends since this was made, reopenings included.
    #[must_use]
    pub fn counters(&self) -> Arc<IoCounters> {
        Arc::clone(&self.counters)
    }

    fn cache_bytes_per_shard(&self) -> u64 {
        self.options.cache_bytes / self.shards.len() as u64
    }

    fn counted(&self, inner: Box<dyn redb::StorageBackend>, shard: &Shard) -> CountingBackend {
        CountingBackend::new(inner, Arc::clone(&self.counters), Arc::clone(&shard.ran_out))
    }

    /// Makes the shard's database if its file is still empty.
    fn make_file(&self, directory: &DataDirectory, shard: &Shard) -> Result<(), StorageError> {
        if let Some(draft) = directory.draft_shard(shard.index)? {
            let backend = self.counted(Box::new(draft), shard);
            let database = log::open_database(shard.index, backend, self.cache_bytes_per_shard())?;
            database.close().map_err(tables::failed("closing the new database"))?;
            directory.publish_shard(shard.index)?;
        }
        Ok(())
    }

    fn backend(&self, shard: &Shard) -> Result<CountingBackend, StorageError> {
        let inner: Box<dyn redb::StorageBackend> = match (&self.options.backend, &self.directory) {
            (Backend::Factory(make), _) => make(shard.index).map_err(|source| StorageError::Io {
                context: format!("making the backend of shard {}", shard.index),
                source,
            })?,
            (Backend::File, Some(directory)) => {
                self.make_file(directory, shard)?;
                // The first opening after a start keeps the cache: a process that was killed between two commits left
                // nothing in it that the kernel failed to write, and repair reads the whole file.
                Box::new(directory.open_shard(shard.index, shard.opened_before.load(Ordering::Acquire))?)
            }
            (Backend::File | Backend::InMemory, _) => Box::new(SharedMemory::new(Arc::clone(&shard.memory))),
        };
        Ok(self.counted(inner, shard))
    }
}

impl OpenLog for AcidLog {
    fn open(&self, shard: usize) -> Result<(Box<dyn CommitLog>, Recovered), StorageError> {
        let shard = self.shards.get(shard).ok_or_else(|| {
            StorageError::Layout(format!("there is no shard {shard} of {}", self.shards.len()))
        })?;
        if shard.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Err(StorageError::Database {
                context: format!("opening shard {}", shard.index),
                message: "its previous log is still open".to_owned(),
            });
        }
        let backend = self.backend(shard)?;
        shard.ran_out.store(false, Ordering::Relaxed);
        shard.opened_before.store(true, Ordering::Release);
        let database = log::open_database(shard.index, backend, self.cache_bytes_per_shard())?;
        let (recovered, usage) = log::recover(&database)?;
        let log = log::ShardLog::new(
            Arc::clone(shard),
            database,
            self.directory.clone(),
            self.options.two_phase_commit,
            recovered.next_group,
            usage,
        )?;
        Ok((Box::new(log), recovered))
    }
}

/// What outlives the reopenings of one shard.
#[derive(Debug)]
struct Shard {
    index: usize,
    /// The open database; `None` while the shard is being reopened. Readers hold the read side for the length of a call
    /// and never clone the `Arc`, so whoever has taken the database out under the write side can really close it.
    database: RwLock<Option<Arc<Database>>>,
    /// Content of [`Backend::InMemory`]; empty otherwise.
    memory: Arc<InMemoryBackend>,
    opened_before: AtomicBool,
    free_space: Option<FreeSpaceProbe>,
    /// A call of the backend found no room since the last opening. Whoever made that call may not be the one whose commit
    /// fails because of it.
    ran_out: Arc<AtomicBool>,
}

impl Shard {
    fn new(index: usize, free_space: Option<FreeSpaceProbe>) -> Self {
        Self {
            index,
            database: RwLock::new(None),
            memory: Arc::new(InMemoryBackend::new()),
            opened_before: AtomicBool::new(false),
            free_space,
            ran_out: Arc::default(),
        }
    }
}
