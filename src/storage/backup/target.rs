//! The directory that a backup is written into.
//!
//! It has a file `BACKUP-UNFINISHED` from the beginning, and gets its manifest at the very end, when all else is durable. A server
//! refuses a directory with the one and without the other.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::{BackupError, BackupProgress, BackupSummary, OnProgress};
use crate::storage::StorageError;
use crate::storage::disk::{Disk, DiskFile, OpenMode, RealDisk};
use crate::storage::layout::{self, Kind};

/// Says that a directory is a backup that is not complete, unless it has a manifest.
pub(in crate::storage) const UNFINISHED_FILE: &str = "BACKUP-UNFINISHED";

/// Bytes read and written at a time.
const CHUNK_BYTES: usize = 1 << 20;
/// Copies are synced each time so much was written: one sync of all of it would keep the disk from those of commits. Bytes.
const SYNC_BYTES: u64 = 8 << 20;

/// A directory that a backup is about to be, or is, written into.
pub(crate) struct Target<'a> {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    progress: OnProgress<'a>,
    position: BackupProgress,
    summary: BackupSummary,
    /// What this backup has made, and may remove: files, and then directories, below the root.
    files: Vec<PathBuf>,
    dirs: Vec<PathBuf>,
    made_root: bool,
    buffer: Vec<u8>,
}

impl<'a> Target<'a> {
    /// Takes `root`, which has to be empty or not to exist, and not to be a part of `data_dir`.
    ///
    /// # Errors
    /// [`BackupError::Target`] if it will not do.
    pub(crate) fn new(
        root: &Path,
        data_dir: Option<&Path>,
        progress: OnProgress<'a>,
    ) -> Result<Self, BackupError> {
        let refuse = |why: &str| BackupError::Target(format!("{}: {why}", root.display()));
        let is_misplaced = || -> Result<bool, BackupError> {
            let Some(data_dir) = data_dir else { return Ok(false) };
            is_within(root, data_dir).map_err(|error| refuse(&error.to_string()))
        };
        let made_root = match fs::read_dir(root) {
            Ok(mut entries) => match entries.next() {
                None => false,
                Some(_) if root.join(UNFINISHED_FILE).exists() && !layout::is_complete(root) => {
                    return Err(refuse("there is a backup that was not finished; remove it first"));
                }
                Some(_) => return Err(refuse("the directory is not empty")),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(refuse(&error.to_string())),
        };
        const MISPLACED: &str = "the target is within the data directory";
        if is_misplaced()? {
            return Err(refuse(MISPLACED));
        }
        if made_root {
            layout::create_dir_durably(root).map_err(|error| refuse(&error.to_string()))?;
            // Only now `..` behind names that did not exist leads somewhere.
            if is_misplaced()? {
                let _ = fs::remove_dir(root);
                return Err(refuse(MISPLACED));
            }
        }
        Ok(Self {
            disk: Arc::new(RealDisk::new(root)),
            root: root.to_owned(),
            progress,
            position: BackupProgress::default(),
            summary: BackupSummary::default(),
            files: Vec::new(),
            dirs: Vec::new(),
            made_root,
            buffer: Vec::new(),
        })
    }

    /// Notes for how long commits stood still.
    pub(crate) fn set_paused(&mut self, paused: Duration) {
        self.summary.paused = paused;
    }

    pub(super) fn begin(&mut self, shards: usize, total_bytes: u64) -> Result<(), BackupError> {
        self.summary.shards = shards;
        self.position.total_bytes = total_bytes;
        self.create(Path::new(UNFINISHED_FILE))?
            .sync_data()
            .map_err(self.failed(Path::new(UNFINISHED_FILE)))?;
        self.sync_dir(Path::new(""))?;
        self.tell()
    }

    pub(super) fn create_dir(&mut self, dir: &Path) -> Result<(), BackupError> {
        self.disk.create_dir(dir).map_err(self.failed(dir))?;
        self.dirs.push(dir.to_owned());
        Ok(())
    }

    pub(super) fn sync_dir(&self, dir: &Path) -> Result<(), BackupError> {
        self.disk.sync_dir(dir).map_err(self.failed(dir))?;
        Ok(())
    }

    /// What it is written to.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Makes an empty file.
    pub(crate) fn create(&mut self, path: &Path) -> Result<Arc<dyn DiskFile>, BackupError> {
        // Before it is made: what an attempt leaves is to be removed, too.
        self.files.push(path.to_owned());
        Ok(self.disk.open(path, OpenMode::Create).map_err(self.failed(path))?)
    }

    /// Makes a file of the first `len` bytes of `from` and of `ending`, and syncs it.
    pub(crate) fn copy_file(
        &mut self,
        path: &Path,
        from: &dyn DiskFile,
        len: u64,
        ending: &[u8],
    ) -> Result<(), BackupError> {
        let file = self.create(path)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(CHUNK_BYTES, 0);
        let (mut at, mut synced) = (0, 0);
        while at < len {
            let piece = &mut buffer[..(len - at).min(CHUNK_BYTES as u64) as usize];
            // What cannot be read is the source's trouble, not the target's.
            from.read_at(at, piece).map_err(|source| StorageError::Io {
                context: format!("reading what is to become {}", self.root.join(path).display()),
                source,
            })?;
            file.write_at(at, piece).map_err(self.failed(path))?;
            at += piece.len() as u64;
            if at - synced >= SYNC_BYTES {
                file.sync_data().map_err(self.failed(path))?;
                synced = at;
            }
            self.wrote(piece.len() as u64)?;
        }
        if !ending.is_empty() {
            file.write_at(at, ending).map_err(self.failed(path))?;
        }
        file.sync_data().map_err(self.failed(path))?;
        self.buffer = buffer;
        Ok(())
    }

    /// The immutable file `path` of `source` under the same name: a link if that is possible, otherwise a copy.
    pub(crate) fn link_or_copy(
        &mut self,
        source: &dyn Disk,
        path: &Path,
        len: u64,
    ) -> Result<(), BackupError> {
        self.summary.segments += 1;
        if source.link(path, &self.root.join(path)).is_ok() {
            self.files.push(path.to_owned());
            self.summary.linked_bytes += len;
            return self.passed(len);
        }
        let from = source.open(path, OpenMode::Read).map_err(|source| StorageError::Io {
            context: format!("opening what is to become {}", self.root.join(path).display()),
            source,
        })?;
        self.copy_file(path, &*from, len, &[])
    }

    /// So many bytes more were written.
    pub(crate) fn wrote(&mut self, bytes: u64) -> Result<(), BackupError> {
        self.summary.copied_bytes += bytes;
        self.passed(bytes)
    }

    fn passed(&mut self, bytes: u64) -> Result<(), BackupError> {
        self.position.done_bytes += bytes;
        self.tell()
    }

    fn tell(&mut self) -> Result<(), BackupError> {
        match (self.progress)(self.position) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(BackupError::Cancelled),
        }
    }

    /// Makes it a data directory: everything else is durable.
    pub(super) fn complete(&mut self, kind: Kind, shards: usize) -> Result<(), BackupError> {
        // Names are durable in any order: the manifest's must not be before those of the shards.
        self.sync_dir(Path::new(""))?;
        layout::write_manifest_to(&self.disk, &self.root, kind, shards)?;
        // With a manifest it says nothing any more.
        let _ = self.disk.remove(Path::new(UNFINISHED_FILE));
        Ok(())
    }

    pub(super) fn into_summary(self) -> BackupSummary {
        self.summary
    }

    /// Removes what was made, the manifest first and what says that the directory is not complete last: a server refuses
    /// whatever stays.
    pub(crate) fn abandon(self) {
        layout::remove_manifest(&*self.disk);
        for file in self.files.iter().rev().filter(|file| *file != Path::new(UNFINISHED_FILE)) {
            let _ = self.disk.remove(file);
        }
        for dir in self.dirs.iter().rev() {
            let _ = fs::remove_dir(self.root.join(dir));
        }
        let _ = self.disk.remove(Path::new(UNFINISHED_FILE));
        if self.made_root {
            let _ = fs::remove_dir(&self.root);
        }
    }

    /// Words an error of the target's disk.
    pub(crate) fn failed(&self, path: &Path) -> impl FnOnce(io::Error) -> StorageError + use<> {
        let context = format!("writing {}", self.root.join(path).display());
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StorageError::DiskFull(format!("{context}: {source}"))
            }
            _ => StorageError::Io { context, source },
        }
    }
}

/// Whether `path`, which need not exist, is `directory` or below it, symbolic links followed.
fn is_within(path: &Path, directory: &Path) -> io::Result<bool> {
    let directory = fs::canonicalize(directory)?;
    let path = std::path::absolute(path)?;
    let mut existing = path.as_path();
    loop {
        match fs::canonicalize(existing) {
            Ok(real) => return Ok(real.starts_with(&directory)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match existing.parent() {
                Some(parent) => existing = parent,
                None => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
}
