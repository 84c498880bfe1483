//! The directory itself, and its lock.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use super::{LOCK_FILE, io_failed};
use crate::storage::StorageError;

/// Locks an existing data directory for somebody who may not want to change it. Nothing is made, except by a server that
/// may be at work in it: a directory without a lock file has none.
///
/// # Errors
/// [`StorageError::Locked`] if another process has it; [`StorageError::Layout`] if there is no such directory.
pub(crate) fn lock_existing(root: &Path) -> Result<Option<File>, StorageError> {
    if !root.is_dir() {
        return Err(StorageError::Layout(format!("there is no data directory {}", root.display())));
    }
    let path = root.join(LOCK_FILE);
    match File::open(&path) {
        Ok(file) => try_lock(root, file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_failed("opening", &path)(error)),
    }
}

/// Locks a data directory that is to be changed, making it if need be.
pub(crate) fn lock_or_create(root: &Path) -> Result<File, StorageError> {
    create_dir_durably(root)?;
    lock(root)
}

fn lock(root: &Path) -> Result<File, StorageError> {
    let path = root.join(LOCK_FILE);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_failed("opening", &path))?;
    try_lock(root, file)
}

fn try_lock(root: &Path, file: File) -> Result<File, StorageError> {
    let path = root.join(LOCK_FILE);
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StorageError::Locked(root.display().to_string())),
        Err(TryLockError::Error(source)) => Err(io_failed("locking", &path)(source)),
    }
}

/// Creates a directory and those above it, each fsynced together with its entry in its parent.
pub(crate) fn create_dir_durably(dir: &Path) -> Result<(), StorageError> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    create_dir_durably(parent)?;
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        Err(error) => return Err(io_failed("creating", dir)(error)),
    }
    for flushed in [dir, parent] {
        // Elsewhere directories cannot be opened, and their entries are durable with the file.
        #[cfg(unix)]
        File::open(flushed).and_then(|dir| dir.sync_all()).map_err(io_failed("flushing", flushed))?;
        #[cfg(not(unix))]
        let _ = flushed;
    }
    Ok(())
}
