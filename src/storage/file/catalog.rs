//! What checkpoints say: which streams there are, with their records and producers, and which segments.
//!
//! The catalog is one file, to which each checkpoint appends a record that says what has changed. When more of the file is dead
//! than alive, it is written anew (`rewrite`). A new file is a draft until all that is live is in it and durable; so a file
//! under its own name is complete, and of several the one with the highest number is the catalog.
//!
//! In RAM the catalog keeps 16 bytes for each stream: how much of the file is its own (`account`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, mem};

use self::account::Account;
use self::encoding::Counters;
use self::reading::{Gathered, Order, RecordReader, decode};
use self::rewrite::{Rewritten, Shared};
use self::writing::CatalogFile;
use super::sealed::{self, CatalogEnd, FileKind, HEADER_BYTES};
use super::snapshot::FilesSnapshot;
use super::{Options, failed, refused};
use crate::storage::disk::Disk;
use crate::storage::segment::SegmentMeta;
use crate::storage::{Checkpoint, RecoveredStream, StorageError};

mod account;
mod encoding;
mod reading;
mod rewrite;
mod writing;

/// Where the catalog is written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RewriteOn {
    /// On a thread of its own, beside commits.
    Thread,
    /// Within the checkpoint that makes it due: for tests in which everything has to happen in a fixed order.
    Checkpoint,
}

/// What the catalog holds.
#[derive(Debug, Default)]
pub(super) struct CatalogContent {
    /// Live streams by id.
    pub(super) streams: Vec<RecoveredStream>,
    /// Live segments by id.
    pub(super) segments: Vec<SegmentMeta>,
    pub(super) trim_before: u64,
    pub(super) next_stream_id: u64,
    pub(super) next_segment_id: u64,
    /// Journal groups up to this one were durable.
    pub(super) durable_through: u64,
    /// How much of it there is.
    pub(super) end: CatalogEnd,
    /// Bytes of an unfinished checkpoint that were dropped.
    pub(super) dropped_bytes: u64,
}

type Outcome = Result<Option<Rewritten>, StorageError>;

/// A rewriting under way.
struct Running {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    outcome: Receiver<Outcome>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.is_cancelled.store(true, Ordering::Relaxed);
        // Waited for: whoever opens the catalog next removes drafts, and makes some of the same name. Its panic is told by
        // the outcome that is missing.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The catalog of one shard.
pub(super) struct Catalog {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    shard: u32,
    options: Options,
    /// `None` until the first checkpoint.
    current: Option<CatalogFile>,
    /// How much of it is durable.
    durable: CatalogEnd,
    /// Replaced by the current one, and not removed yet.
    superseded: Option<CatalogFile>,
    running: Option<Running>,
    /// After a rewriting that failed, the next is not tried before the file has this length. Bytes.
    rewrite_from: u64,
    /// Set while something is under way, so that a panic in it counts as a failure too.
    failed: bool,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog")
            .field("current", &self.current)
            .field("is_rewriting", &self.running.is_some())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Catalog {
    /// Reads the catalog in `dir`, which has to exist. There is none before the first checkpoint.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if anything but its last record does not check out.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        shard: u32,
        options: Options,
    ) -> Result<(Self, CatalogContent), StorageError> {
        let mut numbers = sealed::list(&*disk, dir, FileKind::Catalog)?;
        let (mut current, mut content) = (None, CatalogContent::default());
        if let Some(number) = numbers.pop() {
            let (file, found) = load(&*disk, dir, shard, number)?;
            (current, content) = (Some(file), found);
        }
        // The one in use has their content.
        for number in numbers {
            let path = FileKind::Catalog.path(dir, number);
            disk.remove(&path).map_err(failed("removing", &path))?;
        }
        let dir = dir.to_owned();
        let catalog = Self {
            disk,
            dir,
            shard,
            options,
            current,
            durable: content.end,
            superseded: None,
            running: None,
            rewrite_from: 0,
            failed: false,
        };
        Ok((catalog, content))
    }

    /// Bytes of disk that the catalog takes, without a rewriting under way.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.current.as_ref().map_or(0, CatalogFile::end)
    }

    /// How much of it is durable.
    pub(super) fn end(&self) -> CatalogEnd {
        self.durable
    }

    /// Whether it takes nothing any more.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Makes checkpoints durable, in one atomic step. Journal groups up to `durable_through` have to be durable.
    pub(super) fn append(
        &mut self,
        checkpoints: &[&Checkpoint],
        durable_through: u64,
    ) -> Result<(), StorageError> {
        self.guarded(|catalog| {
            let file = match &mut catalog.current {
                Some(file) => file,
                none => none.insert(begin(&*catalog.disk, &catalog.dir, catalog.shard)?),
            };
            file.push_checkpoints(checkpoints, durable_through)?;
            file.write()?;
            file.sync()?;
            catalog.durable = file.catalog_end();
            if let Some(running) = &catalog.running {
                running.shared.durable_end.store(file.end(), Ordering::Release);
            }
            Ok(())
        })
    }

    /// Begins to write the catalog anew if that is due, and puts a new one into its place when it is complete, for which it
    /// waits so long at most. The old file stays until [`Self::remove_superseded`]. Returns whether a rewriting is under way.
    pub(super) fn rewrite(&mut self, wait: Duration) -> Result<bool, StorageError> {
        self.guarded(|catalog| {
            if let Some(running) = &catalog.running {
                let outcome = match running.outcome.recv_timeout(wait) {
                    Ok(outcome) => outcome,
                    Err(RecvTimeoutError::Timeout) => return Ok(true),
                    Err(RecvTimeoutError::Disconnected) => Err(StorageError::Database {
                        context: "rewriting the catalog".to_owned(),
                        message: "the thread panicked".to_owned(),
                    }),
                };
                catalog.running = None;
                catalog.end_rewriting(outcome)?;
            } else if catalog.is_rewriting_due() {
                catalog.begin_rewriting()?;
            }
            Ok(catalog.running.is_some())
        })
    }

    /// Whether there is a file to be removed: once it is noted elsewhere how much of the new one is durable.
    pub(super) fn has_superseded(&self) -> bool {
        self.superseded.is_some()
    }

    /// Removes the file that a rewriting has replaced.
    pub(super) fn remove_superseded(&mut self) -> Result<(), StorageError> {
        self.guarded(|catalog| {
            let Some(old) = catalog.superseded.take() else { return Ok(()) };
            catalog.disk.remove(old.path()).map_err(failed("removing", old.path()))?;
            catalog.dispose(old);
            Ok(())
        })
    }

    /// Adds the checkpoints so far to what a backup copies.
    pub(super) fn snapshot(&self, snapshot: &mut FilesSnapshot) {
        if let Some(current) = &self.current {
            snapshot.add(current.path(), Arc::clone(current.file()), current.end(), Vec::new());
        }
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

    fn is_rewriting_due(&self) -> bool {
        self.current.as_ref().is_some_and(|file| {
            file.end() >= self.rewrite_from && file.is_mostly_dead(self.options.sizes.dead_min)
        })
    }

    fn begin_rewriting(&mut self) -> Result<(), StorageError> {
        let Some(current) = &self.current else { return Ok(()) };
        let (disk, dir) = (Arc::clone(&self.disk), self.dir.clone());
        let (shard, number, old) = (self.shard, current.number() + 1, current.reader());
        let shared = Arc::new(Shared::default());
        shared.durable_end.store(current.end(), Ordering::Release);
        let of_thread = Arc::clone(&shared);
        let work = move || {
            let draft = CatalogFile::draft(&*disk, &dir, shard, number)?;
            rewrite::rewrite(old, draft, &of_thread)
        };
        if self.options.rewrite_on == RewriteOn::Checkpoint {
            return self.end_rewriting(work());
        }
        let (sender, outcome) = sync_channel(1);
        let name = format!("ds-catalog-{shard}");
        let thread = thread::Builder::new().name(name).spawn(move || {
            // Nobody listens any more if it was cancelled.
            let _ = sender.send(work());
        });
        match thread {
            Ok(thread) => self.running = Some(Running { shared, thread: Some(thread), outcome }),
            Err(source) => {
                let context = "starting a thread to rewrite the catalog".to_owned();
                self.give_up(&StorageError::Io { context, source });
            }
        }
        Ok(())
    }

    fn end_rewriting(&mut self, outcome: Outcome) -> Result<(), StorageError> {
        let mut draft = match outcome.and_then(|rewritten| self.copy_rest(rewritten)) {
            Ok(Some(draft)) => draft,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.give_up(&error);
                return Ok(());
            }
        };
        // From here on nobody can tell which of the two files is the catalog, unless it succeeds.
        draft.publish(&*self.disk, &self.dir)?;
        self.durable = draft.catalog_end();
        self.superseded = self.current.replace(draft);
        self.rewrite_from = 0;
        Ok(())
    }

    /// Closes a file that was removed. That is when the operating system gives its blocks back, which takes a third of a second
    /// for some hundred megabytes: nothing for a commit to wait for.
    fn dispose(&self, old: CatalogFile) {
        if self.options.rewrite_on == RewriteOn::Thread {
            let name = format!("ds-catalog-{}", self.shard);
            // Without a thread it is closed right here.
            let _ = thread::Builder::new().name(name).spawn(move || drop(old));
        }
    }

    /// Appends to the draft what the thread left of the old file.
    fn copy_rest(&self, rewritten: Option<Rewritten>) -> Result<Option<CatalogFile>, StorageError> {
        let (Some(Rewritten { mut draft, mut rest }), Some(current)) = (rewritten, &self.current) else {
            return Ok(None);
        };
        rest.extend(current.end());
        while draft.push_moved(&mut rest)? {}
        draft.write()?;
        Ok(Some(draft))
    }

    /// The old file goes on being the catalog, and nothing is lost but room.
    fn give_up(&mut self, error: &StorageError) {
        let Some(current) = &self.current else { return };
        tracing::warn!(
            ds.shard = self.shard,
            error = %error,
            "the catalog could not be rewritten; it will be tried again when it has grown"
        );
        self.rewrite_from = current.end() + (current.end() / 4).max(self.options.sizes.dead_min);
        // If it cannot be removed now, the next opening does.
        let _ = self.disk.remove(&FileKind::Catalog.draft_path(&self.dir, current.number() + 1));
    }
}

/// Makes the first file.
fn begin(disk: &dyn Disk, dir: &Path, shard: u32) -> Result<CatalogFile, StorageError> {
    let mut file = CatalogFile::draft(disk, dir, shard, 1)?;
    file.push_complete([].iter(), Counters::default())?;
    file.write()?;
    file.publish(disk, dir)?;
    Ok(file)
}

fn load(
    disk: &dyn Disk,
    dir: &Path,
    shard: u32,
    number: u64,
) -> Result<(CatalogFile, CatalogContent), StorageError> {
    let found = sealed::find(disk, dir, FileKind::Catalog, shard, number)?;
    let mut reader = RecordReader::new(&found.path, &found.file, found.header.mark, found.len);
    let (mut order, mut account, mut gathered) = (Order::default(), Account::default(), Gathered::default());
    while let Some(content) = reader.next()? {
        let update = decode(&reader, content)?;
        order.check(&update).map_err(|why| reader.corrupt(why))?;
        account.add_update(&update).map_err(|error| reader.corrupt(error))?;
        let totals = (account.stream_count(), account.roots.segments().len() as u64);
        if update.totals.is_some_and(|expected| expected != totals) {
            return Err(reader.corrupt("not all is there that the file began with"));
        }
        gathered.add(update);
    }
    let end = reader.position();
    if reader.is_followed()? {
        return Err(reader.corrupt("a record that was durable does not check out, as a later one says"));
    }
    if !order.is_complete {
        return Err(reader.corrupt("the file is not complete"));
    }
    debug_assert!(end >= HEADER_BYTES as u64, "records follow the header");
    let Counters { trim_before, next_stream_id, next_segment_id, durable_through } = account.roots.counters;
    let content = CatalogContent {
        streams: gathered.finish(),
        segments: account.roots.segments().copied().collect(),
        trim_before,
        next_stream_id,
        next_segment_id,
        durable_through,
        end: CatalogEnd { file: number, records: order.count() },
        dropped_bytes: found.len - end,
    };
    Ok((CatalogFile::found(found, end, order.count(), account), content))
}
