//! A disk that counts calls and open files, fails when it is told to, and opens only so many files.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::storage::disk::{Disk, DiskEntry, DiskFile, MemoryDisk, OpenMode};

#[derive(Debug)]
pub(super) struct WatchedDisk {
    disk: MemoryDisk,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    open: AtomicUsize,
    /// No more files than that may be open.
    open_max: AtomicUsize,
    calls: AtomicU64,
    /// The number of the call that fails; 0 = none.
    failing: AtomicU64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            open: AtomicUsize::new(0),
            open_max: AtomicUsize::new(usize::MAX),
            calls: AtomicU64::new(0),
            failing: AtomicU64::new(0),
        }
    }
}

impl Counts {
    fn call(&self) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if call == self.failing.load(Ordering::SeqCst) {
            return Err(io::Error::other("as told"));
        }
        Ok(())
    }
}

impl WatchedDisk {
    pub(super) fn new(disk: MemoryDisk) -> Self {
        Self { disk, counts: Arc::default() }
    }

    pub(super) fn open_files(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// From now on opening fails while that many files are open, as it does for a process that has no descriptors left.
    pub(super) fn allow_open_files(&self, max: usize) {
        self.counts.open_max.store(max, Ordering::SeqCst);
    }

    pub(super) fn calls(&self) -> u64 {
        self.counts.calls.load(Ordering::SeqCst)
    }

    /// Has the call after `calls` more fail.
    pub(super) fn fail_after(&self, calls: u64) {
        self.counts.failing.store(self.calls() + calls + 1, Ordering::SeqCst);
    }

    pub(super) fn fail_none(&self) {
        self.counts.failing.store(0, Ordering::SeqCst);
    }
}

impl Disk for WatchedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.counts.call()?;
        if self.open_files() >= self.counts.open_max.load(Ordering::SeqCst) {
            return Err(rustix::io::Errno::MFILE.into());
        }
        let file = self.disk.open(path, mode)?;
        self.counts.open.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(WatchedFile { file, counts: Arc::clone(&self.counts) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.counts.call()?;
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.counts.call()?;
        self.disk.remove(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.counts.call()?;
        self.disk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        self.counts.call()?;
        self.disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.counts.call()?;
        self.disk.sync_dir(dir)
    }

    fn free_bytes(&self) -> Option<u64> {
        self.disk.free_bytes()
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn DiskFile>,
    counts: Arc<Counts>,
}

impl Drop for WatchedFile {
    fn drop(&mut self) {
        self.counts.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl DiskFile for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.counts.call()?;
        self.file.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.counts.call()?;
        self.file.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.counts.call()?;
        self.file.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.counts.call()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.counts.call()?;
        self.file.sync_data()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.file.allocated_bytes()
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.file.drop_cache()
    }
}
