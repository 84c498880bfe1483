//! A data directory that no server has, for those who look at it or rewrite it as a whole.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::acid::{self, AcidLog, AcidOptions};
use super::disk::{Disk, OverlayDisk, RealDisk};
use super::file::{self, FileLog, FileOptions, RewriteOn, SyncPolicy};
use super::layout::{self, DataDirectory, Kind, Layout, ShardCount};
use super::{Catalogs, StorageError};

/// redb's page cache, over all shards. Bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// A data directory, held for as long as this exists.
#[derive(Debug)]
pub(crate) struct OfflineDirectory {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    _lock: Option<File>,
}

impl OfflineDirectory {
    /// Takes an existing directory. Makes nothing, and changes nothing.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process has it.
    pub(crate) fn take(root: &Path) -> Result<Self, StorageError> {
        let lock = layout::lock_existing(root)?;
        Ok(Self { disk: Arc::new(RealDisk::new(root)), root: root.to_owned(), _lock: lock })
    }

    /// Takes a directory to change it. One that does not exist is made, without streams, if `new` says for which storage.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process has it; whatever the operating system says.
    pub(crate) fn take_to_change(root: &Path, new: Option<(Kind, ShardCount)>) -> Result<Self, StorageError> {
        if new.is_none() && !root.is_dir() {
            return Err(StorageError::Layout(format!("there is no data directory {}", root.display())));
        }
        let lock = layout::lock_or_create(root)?;
        let taken = Self { disk: Arc::new(RealDisk::new(root)), root: root.to_owned(), _lock: Some(lock) };
        taken.create(new)?;
        Ok(taken)
    }

    /// Takes a disk that nobody else has.
    pub(crate) fn on(disk: Arc<dyn Disk>) -> Self {
        Self { disk, root: PathBuf::new(), _lock: None }
    }

    /// Makes the files of a directory without streams, if there are none.
    pub(crate) fn create(&self, new: Option<(Kind, ShardCount)>) -> Result<(), StorageError> {
        if let Some((kind, shards)) = new
            && DataDirectory::view(Arc::clone(&self.disk), &self.root)?.is_none()
        {
            DataDirectory::open_held(Arc::clone(&self.disk), &self.root, kind, shards)?;
        }
        Ok(())
    }

    /// Its files.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Which of them hold the streams.
    pub(crate) fn layout(&self) -> Result<Layout, StorageError> {
        match DataDirectory::view(Arc::clone(&self.disk), &self.root)? {
            Some((_, layout)) => Ok(layout),
            None => Err(StorageError::Layout(format!("{} is not a data directory", self.root.display()))),
        }
    }

    /// Opens what is in use for a look at it: whatever an opening changes, it changes in RAM only.
    pub(crate) fn look(&self) -> Result<(Layout, Box<dyn Catalogs>), StorageError> {
        let disk: Arc<dyn Disk> = Arc::new(OverlayDisk::new(Arc::clone(&self.disk)));
        match DataDirectory::view(disk, &self.root)? {
            Some((directory, layout)) => {
                let catalogs = catalogs(directory, kind(&layout.storage)?);
                Ok((layout, catalogs))
            }
            None => Err(StorageError::Layout(format!("{} is not a data directory", self.root.display()))),
        }
    }

    /// Makes the shards of a generation that is not in use.
    pub(crate) fn begin_generation(&self, layout: &Layout) -> Result<Box<dyn Catalogs>, StorageError> {
        let kind = kind(&layout.storage)?;
        let disk = Arc::clone(&self.disk);
        Ok(catalogs(DataDirectory::begin_generation(disk, &self.root, kind, layout)?, kind))
    }

    /// Path of something in it, for messages.
    pub(crate) fn path(&self, below: &Path) -> PathBuf {
        self.root.join(below)
    }
}

/// The storage that a manifest names.
pub(crate) fn kind(storage: &str) -> Result<Kind, StorageError> {
    let known = [acid::KIND, file::KIND].into_iter().find(|kind| kind.name == storage);
    known.ok_or_else(|| StorageError::Layout(format!("the data directory holds unknown storage {storage:?}")))
}

fn catalogs(directory: DataDirectory, kind: Kind) -> Box<dyn Catalogs> {
    if kind.name == acid::KIND.name {
        let options = AcidOptions { cache_bytes: CACHE_BYTES, ..AcidOptions::new("") };
        return Box::new(AcidLog::on(directory, options));
    }
    Box::new(FileLog::on(
        directory,
        FileOptions {
            data_dir: PathBuf::new(),
            disk: None,
            shards: ShardCount { explicit: None, default: 1 },
            sync: SyncPolicy::EachCommit,
            flush_interval: Duration::ZERO,
            free_space: None,
            // Nothing here goes on beside anything else.
            rewrite_on: RewriteOn::Checkpoint,
        },
    ))
}
