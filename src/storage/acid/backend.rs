//! What a shard's database works on, and what it does to it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use redb::StorageBackend;

use crate::storage::disk::DiskFile;

/// Makes the backend of a shard, by its index. For tests that inject faults below redb.
pub type BackendFactory = Arc<dyn Fn(usize) -> io::Result<Box<dyn StorageBackend>> + Send + Sync>;

/// What the databases of an [`AcidLog`](super::AcidLog) did to their backends, since it was made.
///
/// Calls are counted when they begin, failed ones included.
#[derive(Debug, Default)]
pub struct IoCounters {
    syncs: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    reads: AtomicU64,
    bytes_read: AtomicU64,
    resizes: AtomicU64,
}

impl IoCounters {
    /// Syncs to stable storage (`fdatasync` on files).
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Write calls.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Bytes handed to write calls.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    /// Read calls: misses of redb's page cache.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Bytes asked for by read calls.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Changes of a backend's length. redb follows each growth by a sync.
    #[must_use]
    pub fn resizes(&self) -> u64 {
        self.resizes.load(Ordering::Relaxed)
    }
}

/// Counts what passes through to `inner`, and notes when that is out of room.
#[derive(Debug)]
pub(super) struct CountingBackend {
    inner: Box<dyn StorageBackend>,
    counters: Arc<IoCounters>,
    ran_out: Arc<AtomicBool>,
}

impl CountingBackend {
    pub(super) fn new(
        inner: Box<dyn StorageBackend>,
        counters: Arc<IoCounters>,
        ran_out: Arc<AtomicBool>,
    ) -> Self {
        Self { inner, counters, ran_out }
    }

    fn noted(&self, outcome: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &outcome
            && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            self.ran_out.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

impl StorageBackend for CountingBackend {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_read.fetch_add(out.len() as u64, Ordering::Relaxed);
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.counters.resizes.fetch_add(1, Ordering::Relaxed);
        self.noted(self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.noted(self.inner.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_written.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.noted(self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

/// A file of the data directory. Nobody else has it: that is what the directory's lock is for.
#[derive(Debug)]
pub(super) struct DiskBackend(Arc<dyn DiskFile>);

impl DiskBackend {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> Self {
        Self(file)
    }
}

impl StorageBackend for DiskBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}
