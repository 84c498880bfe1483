//! What a shard's database works on, and what it does to it.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::storage::disk::{self, Disk, DiskFile};

/// Step of filling the file ahead. Bytes.
const FILL_STEP: usize = 256 << 10;
static ZEROS: [u8; FILL_STEP] = [0; FILL_STEP];
/// A write that leaves more than this unwritten before it is not followed: what it skips stays a hole. Bytes.
const GAP_MAX: u64 = 1 << 20;

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
///
/// redb makes its file longer by doubling it, and then writes pages of the new half for the first time, a few with each
/// commit. Each sync after that has to make new blocks of the file durable, too, which takes twice as long. So the new half
/// is filled with zeros ahead of such writes, in steps that one commit can bear.
#[derive(Debug)]
pub(super) struct DiskBackend {
    file: Arc<dyn DiskFile>,
    disk: Arc<dyn Disk>,
    /// The end of the file, as far as it was added since the opening and nothing was written there.
    fresh: Mutex<Range<u64>>,
}

impl DiskBackend {
    /// `file` is on `disk`.
    pub(super) fn new(file: Arc<dyn DiskFile>, disk: Arc<dyn Disk>) -> Self {
        Self { file, disk, fresh: Mutex::default() }
    }

    fn fresh(&self) -> MutexGuard<'_, Range<u64>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before the bytes up to `end` are written, the first of which is at `start`. After an error they may be
    /// written all the same.
    pub(super) fn fill_ahead(&self, start: u64, end: u64) -> io::Result<()> {
        let mut fresh = self.fresh();
        if end <= fresh.start || fresh.is_empty() {
            return Ok(());
        }
        let mut outcome = Ok(());
        let gap = start.saturating_sub(fresh.start);
        if gap <= GAP_MAX && disk::has_room_to_fill(&*self.disk) {
            while fresh.start < end.min(fresh.end) {
                let step = (FILL_STEP as u64).min(fresh.end - fresh.start);
                outcome = self.file.write_at(fresh.start, &ZEROS[..step as usize]);
                if outcome.is_err() {
                    break;
                }
                fresh.start += step;
            }
        }
        fresh.start = fresh.start.max(end);
        outcome
    }
}

impl StorageBackend for DiskBackend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let before = self.file.len()?;
        self.file.set_len(len)?;
        let mut fresh = self.fresh();
        let start = if fresh.is_empty() { before } else { fresh.start };
        *fresh = start.min(len)..len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // Nothing depends on it: if there is something wrong with the disk, the write itself finds out.
        let _ = self.fill_ahead(offset, offset + data.len() as u64);
        self.file.write_at(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::storage::disk::{MemoryDisk, OpenMode};

    #[derive(Clone, Debug)]
    enum Call {
        SetLen(usize),
        /// Where, from 0 to 1 of the length, and how much.
        Write(f64, usize),
    }

    fn calls() -> impl Strategy<Value = Vec<Call>> {
        let size = || prop_oneof![1..5000_usize, 1..(3_usize << 20)];
        let call = prop_oneof![
            1 => (1_usize << 10..6 << 20).prop_map(Call::SetLen),
            5 => (0.0..1.0, size()).prop_map(|(at, bytes)| Call::Write(at, bytes)),
        ];
        prop::collection::vec(call, 1..12)
    }

    fn backend() -> DiskBackend {
        let disk = Arc::new(MemoryDisk::new());
        DiskBackend::new(disk.open(Path::new("database"), OpenMode::Create).unwrap(), disk)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn filling_ahead_changes_nothing_that_is_read(calls in calls()) {
            let (backend, mut plain) = (backend(), Vec::new());
            for (index, call) in calls.into_iter().enumerate() {
                match call {
                    Call::SetLen(len) => {
                        backend.set_len(len as u64).unwrap();
                        plain.resize(len, 0);
                    }
                    Call::Write(at, bytes) => {
                        let at = (plain.len() as f64 * at) as usize;
                        let data = vec![index as u8 + 1; bytes.min(plain.len() - at)];
                        backend.write(at as u64, &data).unwrap();
                        plain[at..at + data.len()].copy_from_slice(&data);
                    }
                }
            }
            let mut read = vec![0; backend.len().unwrap() as usize];
            backend.read(0, &mut read).unwrap();
            prop_assert!(read == plain);
        }
    }

    #[test]
    fn what_is_new_is_filled_once_and_ahead() {
        let backend = backend();
        let left = || backend.fresh().clone();
        backend.set_len(1 << 20).unwrap();
        backend.set_len(4 << 20).unwrap();
        assert_eq!(left(), 0..4 << 20);
        backend.write(0, &[1; 4096]).unwrap();
        let filled = FILL_STEP as u64;
        assert_eq!(left(), filled..4 << 20);
        backend.write(filled - 4096, &[1; 4096]).unwrap();
        assert_eq!(left(), filled..4 << 20, "within what is filled nothing is to be done");
        backend.write(filled + 8192, &[1; 4096]).unwrap();
        assert_eq!(left(), 2 * filled..4 << 20);
        backend.write(3 << 20, &[1; 4096]).unwrap();
        assert_eq!(left(), (3 << 20) + 4096..4 << 20, "a leap leaves a hole");
        backend.set_len(2 << 20).unwrap();
        assert!(left().is_empty());
    }
}
