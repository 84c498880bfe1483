//! Writing the journal.
//!
//! A commit appends one record, which holds all groups that were committed together. Files are filled with zeros ahead of the
//! records, in the same write: see [`disk::has_room_to_fill`]. The step is small enough for the commit that fills to take a few milliseconds at most: with one of 4 MiB
//! it took up to 40. That is too little to pay for a thread.
//!
//! A file is begun when a commit needs one: the first one after an opening, and when a file is full. The end of an older file
//! may be damaged by a crash, and is never appended to; it is cut off, so that what was filled ahead goes back to the disk.
//! Opening writes nothing, so that a full disk can be read.
//!
//! The journal also keeps the proof of how far the catalog is durable: each header and each record says so. What a checkpoint
//! makes superfluous is removed after that proof is durable; so there is a file at any time.

use std::fmt;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::scan::{self, ClosedFile, Known, Links};
use super::sealed::{self, CatalogEnd, FileKind, HEADER_BYTES, Header};
use super::snapshot::FilesSnapshot;
use super::{Options, Sizes, failed, refused};
use crate::storage::disk::{self, Disk, DiskFile, OpenMode};
use crate::storage::pieces::Pieces;
use crate::storage::reserve::Reserve;
use crate::storage::{Group, StorageError};

/// The buffer is given back after a commit that needed more. Bytes.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// When what was committed is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SyncPolicy {
    /// With each commit: `file-durable`.
    EachCommit,
    /// When the caller says so: `file-fast`. A commit survives the end of the process, not that of the machine.
    OnFlush,
}

/// The file that is written to.
struct Current {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    number: u64,
    mark: u64,
    /// Where the next record goes.
    end: u64,
    /// Length of the file: zeros from `end` on.
    filled: u64,
    /// `None` as long as it has no record.
    last_group: Option<u64>,
}

impl Current {
    fn closed(&self) -> ClosedFile {
        ClosedFile { number: self.number, last_group: self.last_group, end: self.end, bytes: self.filled }
    }
}

/// The journal of one shard.
pub(super) struct Journal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    shard: u32,
    options: Options,
    reserve: Reserve,
    /// Older files, oldest first.
    closed: Vec<ClosedFile>,
    current: Option<Current>,
    next_file: u64,
    last_group: u64,
    synced_through: u64,
    /// So much of the catalog is durable.
    catalog: CatalogEnd,
    /// The last header or record says that so much is …
    written: CatalogEnd,
    /// … and durably, that so much is.
    proven: CatalogEnd,
    dirty_since: Option<Instant>,
    /// Set while something is under way, so that a panic in it counts as a failure too.
    failed: bool,
    /// Empty, with room for the next record.
    buffer: Pieces,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("dir", &self.dir)
            .field("sync", &self.options.sync)
            .field("last_group", &self.last_group)
            .field("synced_through", &self.synced_through)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

/// What an opening finds in the journal.
#[derive(Debug)]
pub(super) struct JournalContent {
    /// Groups that are needed, in order.
    pub(super) groups: Vec<(u64, Bytes)>,
    /// The last group of each file that has any, oldest first.
    pub(super) files: Vec<u64>,
    /// Bytes of unfinished commits that were dropped.
    pub(super) dropped_bytes: u64,
}

impl Journal {
    /// Reads the journal in `dir`, which has to exist.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if something that was durable cannot be read any more.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        shard: u32,
        options: Options,
        known: Known,
    ) -> Result<(Self, JournalContent), StorageError> {
        let scan = scan::scan(&*disk, dir, shard, known)?;
        let reserve = Reserve::open(Arc::clone(&disk), dir, options.sizes.reserve)
            .map_err(failed("looking for the reserve in", dir))?;
        let content = JournalContent {
            groups: scan.groups,
            files: scan.files.iter().filter_map(|file| file.last_group).collect(),
            dropped_bytes: scan.dropped_bytes,
        };
        let journal = Self {
            disk,
            dir: dir.to_owned(),
            shard,
            options,
            reserve,
            next_file: scan.files.last().map_or(1, |file| file.number + 1),
            closed: scan.files,
            current: None,
            last_group: scan.last_group,
            synced_through: scan.last_group,
            catalog: known.end,
            written: scan.catalog,
            proven: scan.catalog,
            dirty_since: None,
            failed: false,
            buffer: Pieces::default(),
        };
        Ok((journal, content))
    }

    /// Whether there is no file at all.
    pub(super) fn is_empty(&self) -> bool {
        self.closed.is_empty() && self.current.is_none()
    }

    /// Makes the first file.
    pub(super) fn begin(&mut self) -> Result<(), StorageError> {
        self.guarded(|journal| journal.begin_file(0))
    }

    /// What is set aside for deletions on a full disk.
    pub(super) fn reserve(&mut self) -> &mut Reserve {
        &mut self.reserve
    }

    /// See [`Reserve::missing_bytes`].
    pub(super) fn reserve_missing_bytes(&self) -> u64 {
        self.reserve.missing_bytes()
    }

    /// Number of the last group committed, ever.
    pub(super) fn last_group(&self) -> u64 {
        self.last_group
    }

    /// Since when there is something to flush.
    pub(super) fn dirty_since(&self) -> Option<Instant> {
        self.dirty_since
    }

    /// Bytes of disk that the files take.
    pub(super) fn disk_bytes(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(|file| file.bytes).sum();
        closed + self.current.as_ref().map_or(0, |current| current.filled)
    }

    /// Bytes of disk that the next commits need no more of.
    pub(super) fn room_ahead(&self) -> u64 {
        self.current.as_ref().map_or(0, |current| current.filled - current.end)
    }

    /// Writes one record with `groups`, whose numbers have to increase, and syncs it if the policy says so.
    pub(super) fn commit(&mut self, groups: &[Group]) -> Result<(), StorageError> {
        let Some(last) = groups.last().map(|group| group.seq) else { return Ok(()) };
        self.guarded(|journal| {
            journal.check_order(groups)?;
            journal.write(groups)?;
            journal.last_group = last;
            match journal.options.sync {
                SyncPolicy::EachCommit => journal.sync(),
                SyncPolicy::OnFlush => {
                    journal.dirty_since.get_or_insert_with(Instant::now);
                    Ok(())
                }
            }
        })
    }

    /// Makes durable what was committed.
    pub(super) fn flush(&mut self) -> Result<(), StorageError> {
        self.guarded(Self::sync)
    }

    /// Makes it durable that so much of the catalog is.
    pub(super) fn prove(&mut self, catalog: CatalogEnd) -> Result<(), StorageError> {
        self.guarded(|journal| {
            journal.catalog = catalog;
            journal.write_proof()
        })
    }

    /// Removes what only has groups below `before`, after noting that so much of the catalog is durable: that includes the
    /// checkpoint that makes them superfluous.
    ///
    /// That the files are gone becomes durable with the next one that is made. One that is there again after a power cut
    /// has nothing that a reader would take.
    pub(super) fn trim(&mut self, before: u64, catalog: CatalogEnd) -> Result<(), StorageError> {
        let is_superfluous = |file: &ClosedFile| file.last_group.is_none_or(|last| last < before);
        let give_up = self.options.sizes.give_up;
        self.guarded(|journal| {
            journal.catalog = catalog;
            let given_up =
                |current: &mut Current| current.end >= give_up && is_superfluous(&current.closed());
            if journal.synced_through == journal.last_group {
                journal.closed.extend(journal.current.take_if(given_up).map(|current| current.closed()));
            }
            if journal.closed.iter().any(is_superfluous) {
                journal.write_proof()?;
            }
            while let Some(index) = journal.closed.iter().position(is_superfluous) {
                let path = FileKind::Journal.path(&journal.dir, journal.closed[index].number);
                journal.disk.remove(&path).map_err(failed("removing", &path))?;
                journal.closed.remove(index);
            }
            Ok(())
        })
    }

    /// Flushes, and notes that everything is durable: so that damage done to the last commit while the server is down is
    /// not taken for an unfinished one. Nor that done to the catalog, of which so much is durable.
    pub(super) fn close(&mut self, catalog: CatalogEnd) -> Result<(), StorageError> {
        self.guarded(|journal| {
            journal.catalog = catalog;
            journal.sync()?;
            if journal.current.as_ref().is_some_and(|current| current.last_group.is_some()) {
                journal.write(&[])?;
                journal.cut_current()?;
                journal.sync_file()?;
            } else if journal.proven < catalog {
                journal.write_proof()?;
            }
            journal.closed.extend(journal.current.take().map(|current| current.closed()));
            Ok(())
        })
    }

    /// Adds what was committed so far to what a backup copies. The copy ends like a journal after a clean stop.
    pub(super) fn snapshot(
        &self,
        snapshot: &mut FilesSnapshot,
        catalog: CatalogEnd,
    ) -> Result<(), StorageError> {
        if self.failed {
            return Err(refused());
        }
        for closed in &self.closed {
            let path = FileKind::Journal.path(&self.dir, closed.number);
            let file = self.disk.open(&path, OpenMode::Read).map_err(failed("opening", &path))?;
            let len = file.len().map_err(failed("looking at", &path))?;
            snapshot.add(&path, file, len, Vec::new());
        }
        if let Some(current) = &self.current {
            let mut ending = Pieces::default();
            sealed::begin(ending.small_mut());
            let links = Links { previous: self.last_group, durable_through: self.last_group, catalog };
            scan::encode(&mut ending, links, &[]);
            sealed::seal_pieces(&mut ending, current.mark)?;
            let ending = mem::take(ending.small_mut());
            snapshot.add(&current.path, Arc::clone(&current.file), current.end, ending);
        }
        Ok(())
    }

    fn guarded<T>(
        &mut self,
        f: impl FnOnce(&mut Self) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        if mem::replace(&mut self.failed, true) {
            return Err(refused());
        }
        let answer = f(self)?;
        self.failed = false;
        Ok(answer)
    }

    fn check_order(&self, groups: &[Group]) -> Result<(), StorageError> {
        let mut last = self.last_group;
        for group in groups {
            if group.seq <= last {
                return Err(StorageError::Corrupt(format!(
                    "group {} was submitted after group {last}",
                    group.seq
                )));
            }
            last = group.seq;
        }
        Ok(())
    }

    fn write(&mut self, groups: &[Group]) -> Result<(), StorageError> {
        let mut record = mem::take(&mut self.buffer);
        let sizes = self.options.sizes;
        sealed::begin(record.small_mut());
        let links =
            Links { previous: self.last_group, durable_through: self.synced_through, catalog: self.catalog };
        scan::encode(&mut record, links, groups);
        let bytes = sealed::padded(record.len()) as u64;

        self.make_room(bytes)?;
        let current = self.current.as_mut().expect("make_room begins a file if there is none");
        sealed::seal_pieces(&mut record, current.mark)?;
        let end = current.end + bytes;
        if end > current.filled {
            let fill = end < sizes.journal_file && disk::has_room_to_fill(&*self.disk);
            current.filled = if fill { end.next_multiple_of(sizes.fill) } else { end };
            let ahead = (current.filled - end) as usize;
            let small = record.small_mut();
            small.resize(small.len() + ahead, 0);
        }
        let mut at = current.end;
        for piece in record.iter() {
            current.file.write_at(at, piece).map_err(failed("writing", &current.path))?;
            at += piece.len() as u64;
        }
        current.end = end;
        self.written = self.catalog;
        if let Some(last) = groups.last() {
            current.last_group = Some(last.seq);
        }
        if record.capacity() <= BUFFER_BYTES_MAX {
            record.clear();
            self.buffer = record;
        }
        Ok(())
    }

    /// Sees to it that there is a file, and that `bytes` fit into it, or else that it is empty.
    fn make_room(&mut self, bytes: u64) -> Result<(), StorageError> {
        let Sizes { journal_file, fill, .. } = self.options.sizes;
        let fits = |current: &Current| current.last_group.is_none() || current.end + bytes <= journal_file;
        if self.current.as_ref().is_some_and(fits) {
            return Ok(());
        }
        // Only the last file that has records may have some that are not durable: see `scan`.
        self.sync()?;
        self.closed.extend(self.current.take().map(|current| current.closed()));
        let filled = if disk::has_room_to_fill(&*self.disk) { fill } else { HEADER_BYTES as u64 };
        self.begin_file(filled as usize - HEADER_BYTES)
    }

    /// Begins a file, with `ahead` zeros behind its header, when there is no current one and everything is durable.
    fn begin_file(&mut self, ahead: usize) -> Result<(), StorageError> {
        self.cut_found()?;
        let header =
            Header::new(FileKind::Journal, self.shard, self.next_file, self.synced_through, self.catalog);
        let create = |ahead| sealed::create(&*self.disk, &self.dir, &header, ahead);
        let (file, ahead) = match create(ahead) {
            // The first thing that a start on a full disk has to write. The draft has nothing yet, and is begun again.
            Err(StorageError::DiskFull(_)) if self.reserve.give_up() => (create(0)?, 0),
            created => (created?, ahead),
        };
        self.next_file += 1;
        self.written = self.catalog;
        self.proven = self.catalog;
        self.current = Some(Current {
            path: FileKind::Journal.path(&self.dir, header.number),
            file,
            number: header.number,
            mark: header.mark,
            end: HEADER_BYTES as u64,
            filled: (HEADER_BYTES + ahead) as u64,
            last_group: None,
        });
        Ok(())
    }

    /// Writes how much of the catalog is durable, durably, into the current file. If there is none it is begun, as whatever is
    /// in another one may go with it.
    fn write_proof(&mut self) -> Result<(), StorageError> {
        if self.current.is_none() {
            self.begin_file(0)
        } else if self.proven < self.catalog {
            self.write(&[])?;
            self.sync_file()
        } else {
            Ok(())
        }
    }

    /// Cuts off what older files have behind their records: zeros, and what a crash or a full disk left of a commit. It reads
    /// the same with it; synced all the same, so that nothing is left that nobody would ever sync.
    fn cut_found(&mut self) -> Result<(), StorageError> {
        for closed in self.closed.iter_mut().filter(|closed| closed.bytes > closed.end) {
            let path = FileKind::Journal.path(&self.dir, closed.number);
            let file = self.disk.open(&path, OpenMode::Write).map_err(failed("opening", &path))?;
            file.set_len(closed.end).and_then(|()| file.sync_data()).map_err(failed("cutting", &path))?;
            closed.bytes = closed.end;
        }
        Ok(())
    }

    fn cut_current(&mut self) -> Result<(), StorageError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        if current.filled > current.end {
            current.file.set_len(current.end).map_err(failed("cutting", &current.path))?;
            current.filled = current.end;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        if self.synced_through < self.last_group {
            self.sync_file()?;
            self.synced_through = self.last_group;
        }
        self.dirty_since = None;
        Ok(())
    }

    fn sync_file(&mut self) -> Result<(), StorageError> {
        let Some(current) = &self.current else { return Ok(()) };
        current.file.sync_data().map_err(failed("flushing", &current.path))?;
        self.proven = self.written;
        Ok(())
    }
}
