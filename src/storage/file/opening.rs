//! The storage of the modes `file-durable` and `file-fast`: one data directory, all shards.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Options, RewriteOn, ShardLog, SyncPolicy};
use crate::storage::backup::LogSnapshot;
use crate::storage::disk::Disk;
use crate::storage::layout::{DataDirectory, Kind, ShardCount};
use crate::storage::{
    Catalogs, CommitLog, DiskRoom, FreeSpaceProbe, Group, OpenLog, OpenedCatalog, OpenedShard, Recovered,
    StorageError,
};

/// Both modes write the same files, so that a data directory may be opened in either.
pub(crate) const KIND: Kind = Kind { name: "file", shard_file: "SHARD" };

/// How a [`FileLog`] is opened.
#[derive(Clone, Debug)]
pub(crate) struct FileOptions {
    /// Directory of all files.
    pub(crate) data_dir: PathBuf,
    /// Holds all files instead of `data_dir`; nobody else may have it.
    pub(crate) disk: Option<Arc<dyn Disk>>,
    /// How many shards there are to be.
    pub(crate) shards: ShardCount,
    /// When commits are synced.
    pub(crate) sync: SyncPolicy,
    /// With [`SyncPolicy::OnFlush`], how long a commit waits for its sync at most.
    pub(crate) flush_interval: Duration,
    /// Tells how much room the disk has; `None` = the disk itself is asked.
    pub(crate) free_space: Option<FreeSpaceProbe>,
    /// Where the catalog is written anew.
    pub(crate) rewrite_on: RewriteOn,
}

/// The file storage of one data directory: opens its shards and holds its lock.
///
/// The lock is released when this, and everything that was opened from it, is dropped.
#[derive(Debug)]
pub(crate) struct FileLog {
    options: FileOptions,
    directory: Arc<DataDirectory>,
}

impl FileLog {
    /// Takes the data directory, making it if need be.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process has the directory; [`StorageError::Layout`] if it was made for something
    /// else; [`StorageError::Io`] if the file system refuses.
    pub(crate) fn new(options: FileOptions) -> Result<Self, StorageError> {
        let directory = match &options.disk {
            None => DataDirectory::open(&options.data_dir, KIND, options.shards)?,
            Some(disk) => DataDirectory::open_unlocked(Arc::clone(disk), KIND, options.shards)?,
        };
        Ok(Self::on(directory, options))
    }

    /// The storage of a data directory that was taken. Of the options, those are of no meaning that say which.
    pub(crate) fn on(directory: DataDirectory, options: FileOptions) -> Self {
        Self { options, directory: Arc::new(directory) }
    }

    /// Number of shards.
    pub(crate) fn shard_count(&self) -> usize {
        self.directory.shard_count()
    }
}

impl OpenLog for FileLog {
    fn open(&self, shard: usize) -> Result<OpenedShard, StorageError> {
        crate::storage::open_shard(self, shard)
    }
}

impl Catalogs for FileLog {
    fn directory(&self) -> &Arc<DataDirectory> {
        &self.directory
    }

    fn open_catalog(&self, shard: usize) -> Result<OpenedCatalog, StorageError> {
        let disk = self.directory.disk();
        let options = Options { rewrite_on: self.options.rewrite_on, ..Options::new(self.options.sync) };
        let (log, opened) = ShardLog::open(disk, &self.directory.shard_dir(shard), shard, options)?;
        let log = FileCommits {
            log,
            directory: Arc::clone(&self.directory),
            sync: self.options.sync,
            flush_interval: self.options.flush_interval,
            free_space: self.options.free_space.clone(),
        };
        Ok(OpenedCatalog {
            log: Box::new(log),
            recovered: Recovered {
                streams: opened.streams,
                groups: opened.groups,
                next_stream_id: opened.next_stream_id,
                next_group: opened.next_group,
                journal_files: opened.journal_files,
            },
            segments: opened.segments,
            next_segment_id: opened.next_segment_id,
            dropped_bytes: opened.dropped_bytes,
        })
    }
}

/// A shard's journal and catalog, as the commit thread uses them.
struct FileCommits {
    log: ShardLog,
    /// Keeps the data directory locked for as long as one of its shards is open.
    directory: Arc<DataDirectory>,
    sync: SyncPolicy,
    flush_interval: Duration,
    free_space: Option<FreeSpaceProbe>,
}

impl fmt::Debug for FileCommits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileCommits").field("log", &self.log).finish_non_exhaustive()
    }
}

impl CommitLog for FileCommits {
    fn commit(&mut self, groups: &mut [Group]) -> Result<(), StorageError> {
        self.log.commit(groups)
    }

    fn checkpoint(&mut self, groups: &mut [Group]) -> Result<(), StorageError> {
        self.log.checkpoint(groups)
    }

    fn flush_due(&self) -> Option<Instant> {
        match self.sync {
            SyncPolicy::EachCommit => None,
            SyncPolicy::OnFlush => Some(self.log.dirty_since()? + self.flush_interval),
        }
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.log.flush()
    }

    fn reclaim(&mut self) -> Result<bool, StorageError> {
        self.log.reclaim()
    }

    fn snapshot(&mut self) -> Result<Box<dyn LogSnapshot>, StorageError> {
        Ok(Box::new(self.log.snapshot()?))
    }

    fn disk_bytes(&self) -> u64 {
        self.log.disk_bytes()
    }

    fn disk_room(&self) -> Option<DiskRoom> {
        // Who cannot be asked knows of no limit either.
        let free = match &self.free_space {
            Some(probe) => probe.free_bytes().ok()?,
            None => self.directory.disk().free_bytes()?,
        };
        Some(DiskRoom { free, withheld: self.log.withheld(), reusable: self.log.room_ahead() })
    }
}
