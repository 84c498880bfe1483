//! Journal and catalog of a shard together, as its commit thread uses them.
//!
//! ```text
//! commit(groups)      journal: one write, in file-durable one sync     → the groups may be reported durable
//! checkpoint(groups)  journal: flush   catalog: one write, one sync    → segments that it removes may be deleted
//!                     journal: whole files that are needed no more go
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::catalog::{Catalog, CatalogContent};
use super::journal::Journal;
use super::scan::Known;
use super::sealed::CatalogEnd;
use super::snapshot::FilesSnapshot;
use super::{Options, failed, refused};
use crate::storage::disk::Disk;
use crate::storage::segment::{SegmentMeta, id_of_file_name};
use crate::storage::{Checkpoint, Group, RecoveredStream, StorageError};

/// How long [`ShardLog::reclaim`] waits for a rewriting of the catalog: an idle commit thread asks again and again, and one
/// that has commits to do must not wait long.
const REWRITE_WAIT: Duration = Duration::from_millis(2);

/// What a shard's journal and catalog hold at an opening.
#[derive(Debug)]
pub(crate) struct Opened {
    /// Checkpointed streams by id.
    pub(crate) streams: Vec<RecoveredStream>,
    /// Journal groups from the last trim on, in order: number, frames.
    pub(crate) groups: Vec<(u64, Bytes)>,
    /// Live segments by id. All other segment files are of no use.
    pub(crate) segments: Vec<SegmentMeta>,
    /// From the last checkpoint; 0 if there is none.
    pub(crate) next_stream_id: u64,
    /// From the last checkpoint; 0 if there is none.
    pub(crate) next_segment_id: u64,
    /// The last group of each journal file that has any, oldest first.
    pub(crate) journal_files: Vec<u64>,
    /// A number above that of every group ever committed.
    pub(crate) next_group: u64,
    /// Bytes of commits and checkpoints that a crash cut off, and that nobody was told of.
    pub(crate) dropped_bytes: u64,
}

/// The write side of a shard's journal and catalog. After an error it takes nothing any more and has to be opened again.
/// Dropping it flushes it, as far as that works.
#[derive(Debug)]
pub(crate) struct ShardLog {
    shard: u32,
    journal: Journal,
    catalog: Catalog,
}

impl ShardLog {
    /// Opens the shard's files. Its directory, which is relative to the data directory, has to exist; a shard that has nothing gets its first
    /// journal file. Otherwise writes nothing but what the operating system still has to write, and removes nothing but what is of
    /// no use.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if something that was durable cannot be read any more; [`StorageError::Layout`] if files
    /// are of another format or another shard; [`StorageError::Io`] if the disk refuses.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        shard: usize,
        options: Options,
    ) -> Result<(Self, Opened), StorageError> {
        let shard =
            u32::try_from(shard).map_err(|_| StorageError::Layout(format!("there is no shard {shard}")))?;
        Self::open_in(disk, dir, shard, options)
    }

    fn open_in(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        shard: u32,
        options: Options,
    ) -> Result<(Self, Opened), StorageError> {
        // A name that a killed server gave may not be durable yet, and is built upon from here on.
        disk.sync_dir(dir).map_err(failed("flushing", dir))?;
        let (catalog, found) = Catalog::open(Arc::clone(disk), dir, shard, options)?;
        let known =
            Known { trim_before: found.trim_before, durable_through: found.durable_through, end: found.end };
        let (mut journal, in_journal) = Journal::open(Arc::clone(disk), dir, shard, options, known)?;
        if journal.is_empty() {
            refuse_loss_of_journal(&**disk, dir, &catalog)?;
            // From now on there is always one, and with it somebody who knows what has to be there.
            journal.begin()?;
        }
        let CatalogContent { streams, segments, next_stream_id, next_segment_id, durable_through, .. } =
            found;
        let dropped_bytes = in_journal.dropped_bytes + found.dropped_bytes;
        if dropped_bytes > 0 {
            tracing::info!(
                ds.shard = shard,
                bytes = dropped_bytes,
                "dropped what a crash left of unfinished commits"
            );
        }
        let opened = Opened {
            streams,
            groups: in_journal.groups,
            segments,
            next_stream_id,
            next_segment_id,
            journal_files: in_journal.files,
            next_group: durable_through.max(journal.last_group()).saturating_add(1),
            dropped_bytes,
        };
        Ok((Self { shard, journal, catalog }, opened))
    }

    /// Commits all of `groups` in one atomic step: they are durable in the sense of the policy. Their checkpoints are not
    /// looked at: [`ShardLog::checkpoint`] is to follow, and may do so after the groups were reported durable.
    pub(crate) fn commit(&mut self, groups: &[Group]) -> Result<(), StorageError> {
        for group in groups {
            let trim_before = group.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.trim_before);
            if trim_before > group.seq.saturating_add(1) {
                return Err(StorageError::Corrupt(format!(
                    "group {} would trim groups up to {trim_before}, which come after it",
                    group.seq
                )));
            }
        }
        if self.catalog.has_failed() {
            return Err(refused());
        }
        let mut outcome = self.journal.commit(groups);
        // With all before it. In `file-durable` that is so already, and costs nothing.
        if outcome.is_ok() && groups.iter().any(|group| group.is_relied_on) {
            outcome = self.journal.flush();
        }
        self.after(outcome)
    }

    /// Gives the reserve up if that was for want of room: the next opening goes on with it. Else makes it, if it is missing.
    fn after<T>(&mut self, outcome: Result<T, StorageError>) -> Result<T, StorageError> {
        match &outcome {
            Ok(_) => self.journal.reserve().restore(),
            Err(StorageError::DiskFull(_)) => {
                self.journal.reserve().give_up();
            }
            Err(_) => {}
        }
        outcome
    }

    /// Makes the checkpoints durable that `groups`, which were committed, carry, and gives up the part of the journal that they
    /// replace. Segments that they add have to be durable; those that they remove may be deleted afterwards, not before.
    ///
    /// A crash in between leaves the shard as if the checkpoints had not been taken.
    pub(crate) fn checkpoint(&mut self, groups: &[Group]) -> Result<(), StorageError> {
        let checkpoints: Vec<&Checkpoint> =
            groups.iter().filter_map(|group| group.checkpoint.as_ref()).collect();
        let Some(trim_before) = checkpoints.iter().map(|checkpoint| checkpoint.trim_before).max() else {
            return Ok(());
        };
        let outcome = self.put_in_force(&checkpoints, trim_before);
        self.after(outcome)
    }

    fn put_in_force(&mut self, checkpoints: &[&Checkpoint], trim_before: u64) -> Result<(), StorageError> {
        // Records are as of groups that have to be there as long as those of other streams are.
        self.journal.flush()?;
        self.catalog.append(checkpoints, self.journal.last_group())?;
        self.journal.trim(trim_before, self.catalog.end())?;
        self.rewrite_catalog(Duration::ZERO).map(|_| ())
    }

    fn rewrite_catalog(&mut self, wait: Duration) -> Result<bool, StorageError> {
        let is_under_way = self.catalog.rewrite(wait)?;
        if self.catalog.has_superseded() {
            // Some of the new file's records may be all that is left of what the journal had.
            self.journal.prove(self.catalog.end())?;
            self.catalog.remove_superseded()?;
        }
        Ok(is_under_way)
    }

    /// Goes on with what frees room on the disk. `Ok(true)` = there is more to do, and nothing to wait for.
    pub(crate) fn reclaim(&mut self) -> Result<bool, StorageError> {
        let outcome = self.rewrite_catalog(REWRITE_WAIT);
        self.after(outcome)
    }

    /// Makes everything durable that was committed.
    pub(crate) fn flush(&mut self) -> Result<(), StorageError> {
        let outcome = self.journal.flush();
        self.after(outcome)
    }

    /// The time of the first commit since the last flush. `None` if nothing waits for one.
    pub(crate) fn dirty_since(&self) -> Option<Instant> {
        self.journal.dirty_since()
    }

    /// What was committed and checkpointed so far, for a backup.
    pub(super) fn snapshot(&self) -> Result<FilesSnapshot, StorageError> {
        let mut snapshot = FilesSnapshot::default();
        self.journal.snapshot(&mut snapshot, self.catalog.end())?;
        self.catalog.snapshot(&mut snapshot);
        Ok(snapshot)
    }

    /// Bytes of disk that journal and catalog take.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.journal.disk_bytes() + self.catalog.disk_bytes()
    }

    /// Bytes that are free and to be left for deletions.
    pub(crate) fn withheld(&self) -> u64 {
        self.journal.reserve_missing_bytes()
    }

    /// Bytes among them that the journal can still write to.
    pub(crate) fn room_ahead(&self) -> u64 {
        self.journal.room_ahead()
    }
}

impl Drop for ShardLog {
    fn drop(&mut self) {
        // After a failure it refuses, which is right: nothing may be written any more.
        if let Err(error) = self.journal.close(self.catalog.end()) {
            tracing::debug!(ds.shard = self.shard, error = %error, "closing the journal");
        }
    }
}

/// A journal file is the first thing that a shard has, and the last one that goes stays until another one is there.
fn refuse_loss_of_journal(disk: &dyn Disk, dir: &Path, catalog: &Catalog) -> Result<(), StorageError> {
    let listed = disk.list(dir).map_err(failed("listing", dir))?;
    let has_segments = listed.iter().any(|entry| id_of_file_name(&entry.name).is_some());
    if has_segments || catalog.end() != CatalogEnd::default() {
        return Err(StorageError::Corrupt(format!(
            "{} has a catalog or segments, but no journal: files are missing",
            dir.display()
        )));
    }
    Ok(())
}
