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

    /// Takes a directory to change it. Of one that does not exist, nothing but a lock file is made, and only if
    /// `may_be_new`.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process has it; whatever the operating system says.
    pub(crate) fn take_to_change(root: &Path, may_be_new: bool) -> Result<Self, StorageError> {
        if !may_be_new && !root.is_dir() {
            return Err(StorageError::Layout(format!("there is no data directory {}", root.display())));
        }
        let lock = layout::lock_or_create(root)?;
        Ok(Self { disk: Arc::new(RealDisk::new(root)), root: root.to_owned(), _lock: Some(lock) })
    }

    /// Takes a disk that nobody else has.
    pub(crate) fn on(disk: Arc<dyn Disk>) -> Self {
        Self { disk, root: PathBuf::new(), _lock: None }
    }

    /// Whether it has shards, with streams or without.
    pub(crate) fn has_layout(&self) -> Result<bool, StorageError> {
        Ok(DataDirectory::view(Arc::clone(&self.disk), &self.root)?.is_some())
    }

    /// Makes its files, without streams, unless it has some.
    pub(crate) fn create(&self, kind: Kind, shards: ShardCount) -> Result<(), StorageError> {
        if !self.has_layout()? {
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
        self.open_on(Arc::new(OverlayDisk::new(Arc::clone(&self.disk))))
    }

    /// Opens what is in use, of a directory that was taken to change it.
    pub(crate) fn open(&self) -> Result<(Layout, Box<dyn Catalogs>), StorageError> {
        self.open_on(Arc::clone(&self.disk))
    }

    fn open_on(&self, disk: Arc<dyn Disk>) -> Result<(Layout, Box<dyn Catalogs>), StorageError> {
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
