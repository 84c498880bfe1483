//! What an opening reads and checks: headers, trailers and footers, and that they have what the catalog says is kept.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ahash::{AHashMap, AHashSet};

use super::file::{io_failed, open_segment};
use super::format::{FooterRuns, RunEntry, file_path, id_of_file_name};
use super::index::{Index, IndexRun};
use super::{SegmentMeta, SegmentStore};
use crate::storage::StorageError;
use crate::storage::disk::Disk;

/// A run of some segment, dead or alive.
#[derive(Clone, Copy, Debug)]
struct FoundRun {
    run: RunEntry,
    slot: u32,
}

impl SegmentStore {
    /// Opens the segments of a shard in `dir`: those that the catalog lists as `live`. Other segment files are removed.
    ///
    /// `keep` says, in any order, which positions of which streams the catalog takes as settled. All of them have to
    /// be there once. Runs of other streams, and what lies below, are dead. `next_segment_id` is above every id that
    /// the catalog knows to have been used.
    ///
    /// Content is not read. A crash at any point loses nothing.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`], with the file or the stream, if a listed file is missing, is another one than the
    /// catalog means, or has a footer that does not hold together; and if a range is not kept exactly once.
    /// [`StorageError::Io`] if the disk says no.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        shard: usize,
        dir: PathBuf,
        live: &[SegmentMeta],
        next_segment_id: u64,
        keep: impl IntoIterator<Item = (u64, Range<u64>)>,
    ) -> Result<Self, StorageError> {
        let shard = u32::try_from(shard)
            .map_err(|_| StorageError::Layout(format!("there is no shard number {shard}")))?;
        let mut index = Index::default();
        let mut found = Vec::new();
        for meta in live {
            if index.segment(meta.id).is_some() {
                return Err(StorageError::Corrupt(format!("segment {:016x} is listed twice", meta.id)));
            }
            let (segment, footer) = open_segment(&*disk, &dir, shard, meta)?;
            let segment = Arc::new(segment);
            let slot = index.add_segment(Arc::clone(&segment), false);
            // The trailer's number of runs is bounded by the footer's length.
            found.reserve(segment.trailer.runs as usize);
            for run in FooterRuns::new(&segment.trailer, footer) {
                let run = run.map_err(|why| segment.corrupt(why))?;
                found.push(FoundRun { run, slot });
            }
        }
        // A merge of what the footers have in order already.
        found.sort_by_key(|found| (found.run.stream, found.run.start));
        let mut keep: Vec<_> = keep.into_iter().collect();
        keep.sort_unstable_by_key(|(stream, range)| (*stream, range.start));
        let (runs, kept_from) = live_runs(&index, &found, &keep)?;
        index.fill(runs, kept_from);
        let listed: AHashSet<u64> = live.iter().map(|meta| meta.id).collect();
        let last_seen = remove_unlisted(&*disk, &dir, &listed)?;
        let last_listed = live.iter().map(|meta| meta.id).max();
        let last = last_seen.max(last_listed);
        let next_id = last.map_or(0, |last| last.saturating_add(1)).max(next_segment_id);
        Ok(Self::new(disk, shard, dir, index, next_id))
    }
}

type LiveRuns = (Vec<((u64, u64), IndexRun)>, AHashMap<u64, u64>);

/// Picks the runs that hold what is to be kept. Both lists are sorted.
fn live_runs(
    index: &Index,
    found: &[FoundRun],
    keep: &[(u64, Range<u64>)],
) -> Result<LiveRuns, StorageError> {
    let mut live = Vec::with_capacity(found.len());
    let mut kept_from = AHashMap::new();
    let mut found = found.iter().peekable();
    for (at, (stream, range)) in keep.iter().enumerate() {
        if range.start > range.end || at.checked_sub(1).is_some_and(|before| keep[before].0 == *stream) {
            return Err(StorageError::Corrupt(format!(
                "stream {stream}: what is kept of it is not one range"
            )));
        }
        while found.next_if(|found| found.run.stream < *stream).is_some() {}
        let mut end = range.start;
        while let Some(FoundRun { run, slot }) = found.next_if(|found| found.run.stream == *stream) {
            if run.end() <= range.start || range.is_empty() {
                continue;
            }
            let is_first = end == range.start;
            if run.start > end || (run.start < end && !is_first) || run.end() > range.end {
                let why = format!("the run from here to {} does not continue what ends at {end}", run.end());
                return Err(index.segment_at(*slot).corrupt_block(*stream, run.start, &why));
            }
            if run.start < range.start {
                kept_from.insert(*stream, range.start);
            }
            live.push(((*stream, run.start), IndexRun { offset: run.offset, len: run.len, slot: *slot }));
            end = run.end();
        }
        if end != range.end {
            let why = format!("stream {stream}: bytes {end} to {} are in no segment", range.end);
            return Err(StorageError::Corrupt(why));
        }
    }
    Ok((live, kept_from))
}

/// Removes the segment files that the catalog does not list: what was not committed, and what was not needed any more.
/// Returns the highest id of all files, so that none of them is met again.
fn remove_unlisted(disk: &dyn Disk, dir: &Path, listed: &AHashSet<u64>) -> Result<Option<u64>, StorageError> {
    let entries = disk.list(dir).map_err(|error| io_failed("listing", dir, error))?;
    let ids = entries.iter().filter(|entry| !entry.is_dir).filter_map(|entry| id_of_file_name(&entry.name));
    let mut last = None;
    let mut removed = 0;
    for id in ids {
        last = last.max(Some(id));
        if listed.contains(&id) {
            continue;
        }
        let path = file_path(dir, id);
        disk.remove(&path).map_err(|error| io_failed("removing", &path, error))?;
        removed += 1;
    }
    if removed > 0 {
        tracing::debug!(dir = %dir.display(), files = removed, "removed segment files that are in no checkpoint");
        disk.sync_dir(dir).map_err(|error| io_failed("syncing", dir, error))?;
    }
    Ok(last)
}
