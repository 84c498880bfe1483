//! Journal and catalog in one redb database per shard; content in segments beside it.
//!
//! ```text
//! <data_dir>/
//!   LOCK, layout.json     see `layout`
//!   shard-00/shard.redb   one database per shard; empty until it is opened for the first time
//!   shard-00/shard.made   empty; says that the database was made, so that an empty one is loss
//!   shard-00/RESERVE      zeros: room for deletions on a full disk, see `storage::reserve`
//!   shard-00/segment-….seg
//!   shard-01/ …
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
//! | `segments` | segment `u64` | (bytes of the file `u64`, CRC32C of its footer `u32`) |
//! | `sys` | name | `format`, `shard`, `next_stream_id`, `next_group`, `next_segment_id`: each a `u64` |
//!
//! * **journal**: a group without frames has no row if it carries a checkpoint (which keeps its number in `next_group`),
//!   otherwise one empty row, so that no number is ever given out twice.
//! * **segments**: the files that hold content. One that is not listed is left over, and removed by the next opening.
//! * **sys**: `format` and `shard` are written once, when the database is made, and compared at each opening: a database
//!   file that was moved between shards is noticed. The others are written with each checkpoint.
//!
//! # Row sizes
//!
//! redb keeps a row inside one page, writes whole pages, and makes pages of 4096·2^k bytes. Rows of the journal are
//! therefore cut to fill their page: at most 64 KiB of page each, less the page's own overhead (see `rows`), and a
//! remainder that would leave more than a quarter of its page empty is cut once more.
//!
//! # Durability
//!
//! One [`CommitLog::commit`] is one redb transaction with `Durability::Immediate`: one fsync (two
//! with `two_phase_commit`, one more when the file grows). It is told of as soon as that fsync has succeeded (see
//! `commit_notice`). After a failed commit the database is closed and opened again.
//! Opening it again first drops the kernel's cached pages of the file: after a failed fsync they may hold bytes that the
//! disk does not, and redb's checksums can only judge what the disk holds.

mod backend;
mod commit_notice;
mod log;
mod page_log;
mod rows;
mod snapshot;
mod tables;
#[cfg(test)]
mod tests;
mod usage;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use backend::{BackendFactory, IoCounters};
pub(crate) use page_log::page_log_bytes;

use self::backend::{CountingBackend, DiskBackend};
use self::commit_notice::CommitNotice;
use self::page_log::{Handle, PageLog};
use super::disk::{Disk, DiskFile, MemoryDisk, OpenMode};
use super::layout::{DataDirectory, Kind, ShardCount};
use super::reserve::{RESERVE_BYTES, RESERVE_FILE, Reserve};
use super::{Catalogs, FreeSpaceProbe, OpenLog, OpenedCatalog, OpenedShard, StorageError};

const SHARD_FILE: &str = "shard.redb";
const SHARD_FILE_NEW: &str = "shard.redb.new";
const MADE_FILE: &str = "shard.made";
/// What the mode keeps in a data directory.
pub(crate) const KIND: Kind = Kind { name: "acid", shard_file: SHARD_FILE };

/// Whether a file has a name that the mode gives, besides that of the database.
pub(crate) fn is_own_name(name: &str) -> bool {
    [MADE_FILE, RESERVE_FILE].contains(&name) || page_log::NUMBERED_FILES.iter().any(|&(_, log)| log == name)
}

/// What the storage works on.
#[derive(Clone)]
pub(crate) enum Backend {
    /// Files below [`AcidOptions::data_dir`].
    File,
    /// RAM of this process. Survives a reopening of a shard, not the [`AcidLog`].
    InMemory,
    /// This disk, which nobody else has.
    Disk(Arc<dyn Disk>),
    /// The disk for all but the databases, and for them whatever the factory returns; it is called with the shard's index
    /// each time the shard is opened. For tests that inject faults.
    Factory(BackendFactory, Arc<dyn Disk>),
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "File",
            Self::InMemory => "InMemory",
            Self::Disk(_) => "Disk",
            Self::Factory(..) => "Factory",
        })
    }
}

/// How an [`AcidLog`] is opened.
#[derive(Clone, Debug)]
pub(crate) struct AcidOptions {
    /// Directory of all files; used by [`Backend::File`] only.
    pub data_dir: PathBuf,
    /// Number of shards that was asked for explicitly, 1 to [`SHARDS_MAX`]. A data directory made for another number is
    /// refused. `None` = what the data directory says, or else `default_shards`.
    pub shards: Option<usize>,
    /// Number of shards of a new data directory if none was asked for.
    pub default_shards: usize,
    /// What the storage works on.
    pub backend: Backend,
    /// redb's page cache in bytes, over all shards.
    pub cache_bytes: u64,
    /// Two fsyncs per commit instead of one: a commit stays atomic even against clients that choose their payload to
    /// collide redb's checksums and control the moment of a crash.
    pub two_phase_commit: bool,
    /// Pages of so many bytes are logged before they are written into the database's file, twice as many at most.
    pub page_log_bytes: u64,
    /// Tells how much room the disk has; `None` = the file system of `data_dir` is asked, and nobody without files. For
    /// tests that fill the disk.
    pub free_space: Option<FreeSpaceProbe>,
}

impl AcidOptions {
    /// Files below `data_dir`, one shard unless the directory says otherwise, 256 MiB of cache, one fsync per commit.
    #[must_use]
    pub(crate) fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            shards: None,
            default_shards: 1,
            backend: Backend::File,
            cache_bytes: 256 << 20,
            two_phase_commit: false,
            page_log_bytes: page_log::LOG_BYTES,
            free_space: None,
        }
    }
}

/// The acid storage of one data directory: opens its shards and holds its lock.
///
/// The lock is released when this, and everything that was opened from it, is dropped.
#[derive(Debug)]
pub(crate) struct AcidLog {
    options: AcidOptions,
    directory: Arc<DataDirectory>,
    shards: Vec<Arc<Shard>>,
    counters: Arc<IoCounters>,
}

impl AcidLog {
    /// Takes the data directory, making it if need be. Opens no database yet.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process has the directory; [`StorageError::Layout`] if it was made with another
    /// shard count, format or hash, or if a shard's file is gone; [`StorageError::Io`] if the file system refuses.
    pub(crate) fn new(options: AcidOptions) -> Result<Self, StorageError> {
        let shards = ShardCount { explicit: options.shards, default: options.default_shards };
        let directory = match &options.backend {
            Backend::File => DataDirectory::open(&options.data_dir, KIND, shards)?,
            Backend::InMemory => DataDirectory::open_unlocked(Arc::new(MemoryDisk::new()), KIND, shards)?,
            Backend::Disk(disk) | Backend::Factory(_, disk) => {
                DataDirectory::open_unlocked(Arc::clone(disk), KIND, shards)?
            }
        };
        Ok(Self::on(directory, options))
    }

    /// The storage of a data directory that was taken. Of the options, those are of no meaning that say which.
    pub(crate) fn on(directory: DataDirectory, options: AcidOptions) -> Self {
        let shard = |index| Arc::new(Shard::new(index, options.free_space.clone()));
        let shards = (0..directory.shard_count()).map(shard).collect();
        Self { options, directory: Arc::new(directory), shards, counters: Arc::default() }
    }

    fn shard(&self, shard: usize) -> Result<&Arc<Shard>, StorageError> {
        let count = self.shards.len();
        let none = || StorageError::Layout(format!("there is no shard {shard} of {count}"));
        self.shards.get(shard).ok_or_else(none)
    }

    /// Number of shards.
    pub(crate) fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// What all databases did to their backends since this was made, reopenings included.
    pub(crate) fn counters(&self) -> Arc<IoCounters> {
        Arc::clone(&self.counters)
    }

    fn cache_bytes_per_shard(&self) -> u64 {
        self.options.cache_bytes / self.shards.len() as u64
    }

    fn counted(&self, inner: Box<dyn redb::StorageBackend>, shard: &Shard) -> CountingBackend {
        CountingBackend::new(inner, Arc::clone(&self.counters), Arc::clone(&shard.ran_out))
    }

    fn on_disk(&self, file: Arc<dyn DiskFile>) -> Box<DiskBackend> {
        Box::new(DiskBackend::new(file, Arc::clone(self.directory.disk())))
    }

    fn page_log(&self, shard: usize, file: Arc<dyn DiskFile>) -> Result<PageLog, StorageError> {
        let (disk, dir) = (self.directory.disk(), self.directory.shard_dir(shard));
        let bytes = self.options.page_log_bytes;
        PageLog::open(Arc::clone(disk), &dir, file, shard as u32, bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                return StorageError::Corrupt(format!("{}: {error}", dir.display()));
            }
            self.directory.failed("opening the page log in", &dir)(error)
        })
    }

    fn open_file(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>, StorageError> {
        self.directory.disk().open(path, mode).map_err(self.directory.failed("opening", path))
    }

    /// Makes the shard's database if its file is still empty.
    ///
    /// redb cannot open a file that a crash left half made, nor could anyone tell it from one that lost its header. So the
    /// database is made under another name and then put into its place.
    fn make_file(&self, shard: &Shard, path: &Path) -> Result<(), StorageError> {
        let file = self.directory.disk().open(path, OpenMode::Read);
        let len = file.and_then(|file| file.len()).map_err(self.directory.failed("looking at", path))?;
        let is_marked = self.is_marked_as_made(path)?;
        if len > 0 {
            return if is_marked { Ok(()) } else { self.mark_as_made(path) };
        }
        if is_marked {
            return Err(StorageError::Corrupt(format!(
                "{} is empty, but the database was made, as {MADE_FILE} beside it says",
                path.display()
            )));
        }
        let draft = path.with_file_name(SHARD_FILE_NEW);
        let file = self.open_file(&draft, OpenMode::Create)?;
        let backend = self.counted(self.on_disk(file), shard);
        let database = log::open_database(shard.index, backend, self.cache_bytes_per_shard())?;
        database.close().map_err(tables::failed("closing the new database"))?;
        // A database is never without them.
        let dir = self.directory.shard_dir(shard.index);
        page_log::create(&**self.directory.disk(), &dir, shard.index as u32)
            .map_err(self.directory.failed("making the page log in", &dir))?;
        self.directory.publish(&draft, path)?;
        self.mark_as_made(path)
    }

    fn is_marked_as_made(&self, path: &Path) -> Result<bool, StorageError> {
        let mark = path.with_file_name(MADE_FILE);
        match self.directory.disk().open(&mark, OpenMode::Read) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.directory.failed("looking for", &mark)(error)),
        }
    }

    /// Notes, durably, that the database is there, which is durable.
    fn mark_as_made(&self, path: &Path) -> Result<(), StorageError> {
        let mark = path.with_file_name(MADE_FILE);
        let dir = mark.parent().unwrap_or(Path::new(""));
        let disk = self.directory.disk();
        match disk.open(&mark, OpenMode::Create).and_then(|_| disk.sync_dir(dir)) {
            // A full disk can be read; the next opening tries again.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
            made => made.map_err(self.directory.failed("making", &mark)),
        }
    }

    /// What is set aside on a disk that can be full.
    fn reserve(&self, shard: usize) -> Option<Result<Reserve, StorageError>> {
        let (disk, dir) = (self.directory.disk(), self.directory.shard_dir(shard));
        disk.free_bytes()?;
        let reserve = Reserve::open(Arc::clone(disk), &dir, RESERVE_BYTES);
        Some(reserve.map_err(self.directory.failed("looking for the reserve in", &dir)))
    }

    /// What the shard's database works on.
    fn backend(&self, shard: &Shard) -> Result<Below, StorageError> {
        if let Backend::Factory(make, _) = &self.options.backend {
            let made = make(shard.index).map_err(|source| StorageError::Io {
                context: format!("making the backend of shard {}", shard.index),
                source,
            })?;
            return Ok(Below { backend: self.counted(made, shard), file: None, page_log: None });
        }
        let path = self.directory.shard_dir(shard.index).join(SHARD_FILE);
        self.make_file(shard, &path)?;
        let file = self.open_file(&path, OpenMode::Write)?;
        // Also at a start: the process before this one may have ended after a sync that failed, and nothing says so.
        file.drop_cache().map_err(self.directory.failed("flushing", &path))?;
        let mut page_log = None;
        let backend: Box<dyn redb::StorageBackend> = match &self.options.backend {
            // RAM has nothing to sync.
            Backend::InMemory => self.on_disk(Arc::clone(&file)),
            _ => {
                let log = Arc::new(self.page_log(shard.index, Arc::clone(&file))?);
                page_log = Some(Arc::clone(&log));
                Box::new(Handle(log))
            }
        };
        Ok(Below { backend: self.counted(backend, shard), file: Some(file), page_log })
    }
}

impl OpenLog for AcidLog {
    fn open(&self, shard: usize) -> Result<OpenedShard, StorageError> {
        super::open_shard(self, shard)
    }
}

impl Catalogs for AcidLog {
    fn directory(&self) -> &Arc<DataDirectory> {
        &self.directory
    }

    fn open_catalog(&self, shard: usize) -> Result<OpenedCatalog, StorageError> {
        let shard = self.shard(shard)?;
        let Below { backend, file, page_log } = self.backend(shard)?;
        shard.ran_out.store(false, Ordering::Relaxed);
        let notice = CommitNotice::default();
        let backend = notice.over(backend);
        let database = log::open_database(shard.index, backend, self.cache_bytes_per_shard())?;
        let found = log::recover(&database)?;
        if let Some(log) = &page_log {
            log.opened();
        }
        let reserve = file.as_ref().and_then(|_| self.reserve(shard.index)).transpose()?;
        let log = log::ShardLog::new(
            Arc::clone(shard),
            database,
            log::Files { database: file, page_log },
            Arc::clone(&self.directory),
            self.options.two_phase_commit,
            found.recovered.next_group,
            found.usage,
        )
        .with_reserve(reserve)
        .with_notice(notice);
        Ok(OpenedCatalog {
            log: Box::new(log),
            recovered: found.recovered,
            segments: found.segments,
            next_segment_id: found.next_segment_id,
            dropped_bytes: 0,
        })
    }
}

/// What a shard's database is opened on.
struct Below {
    backend: CountingBackend,
    /// Its file, if it has one.
    file: Option<Arc<dyn DiskFile>>,
    /// What stands before that, and is to be told when the database is open.
    page_log: Option<Arc<PageLog>>,
}

/// What outlives the reopenings of one shard.
#[derive(Debug)]
struct Shard {
    index: usize,
    free_space: Option<FreeSpaceProbe>,
    /// A call of the backend found no room since the last opening. Whoever made that call may not be the one whose commit
    /// fails because of it.
    ran_out: Arc<AtomicBool>,
}

impl Shard {
    fn new(index: usize, free_space: Option<FreeSpaceProbe>) -> Self {
        Self { index, free_space, ran_out: Arc::default() }
    }
}
