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
            add_segment(&*disk, &dir, shard, meta, &mut index, &mut found)?;
        }
        // A merge of what the footers have in order already.
        found.sort_by_key(|found| (found.run.stream, found.run.start));
        let mut keep: Vec<_> = keep.into_iter().collect();
        keep.sort_unstable_by_key(|(stream, range)| (*stream, range.start));
        let LiveRuns { runs, kept_from } = live_runs(&index, &found, &keep)?;
        index.fill(runs, kept_from);
        let listed: AHashSet<u64> = live.iter().map(|meta| meta.id).collect();
        let last_seen = remove_unlisted(&*disk, &dir, &listed, next_segment_id)?;
        let last_listed = live.iter().map(|meta| meta.id).max();
        let last = last_seen.max(last_listed);
        let next_id = last.map_or(0, |last| last.saturating_add(1)).max(next_segment_id);
        Ok(Self::new(disk, shard, dir, index, next_id))
    }
}

/// Opens a segment and notes its runs.
fn add_segment(
    disk: &dyn Disk,
    dir: &Path,
    shard: u32,
    meta: &SegmentMeta,
    index: &mut Index,
    found: &mut Vec<FoundRun>,
) -> Result<(), StorageError> {
    if index.segment(meta.id).is_some() {
        return Err(StorageError::Corrupt(format!("segment {:016x} is listed twice", meta.id)));
    }
    let (segment, footer) = open_segment(disk, dir, shard, meta)?;
    // The trailer's number of runs is bounded by the footer's length.
    let runs = FooterRuns::new(&segment.trailer, footer).collect::<Result<Vec<_>, _>>();
    let runs = runs.map_err(|why| segment.corrupt(why))?;
    let slot = index.add_segment(Arc::new(segment), false);
    found.extend(runs.into_iter().map(|run| FoundRun { run, slot }));
    Ok(())
}

/// What is right with the segments of a shard that may not be openable, and what is missing in them.
#[derive(Debug, Default)]
pub(crate) struct Examined {
    /// Segments that can be opened.
    pub(crate) segments: Vec<SegmentMeta>,
    /// Streams of which all is there that is to be kept, and what that is.
    pub(crate) streams: Vec<(u64, Range<u64>)>,
    /// Streams of which something is missing, or there more than once.
    pub(crate) broken_streams: Vec<(u64, StorageError)>,
}

/// Looks at what [`SegmentStore::open`] checks, does not stop at the first error, and removes nothing. With the segments and
/// the streams that it finds right, the store can be opened.
pub(crate) fn examine(
    disk: &dyn Disk,
    shard: usize,
    dir: &Path,
    live: &[SegmentMeta],
    keep: impl IntoIterator<Item = (u64, Range<u64>)>,
) -> Examined {
    let mut examined = Examined::default();
    let (mut index, mut found) = (Index::default(), Vec::new());
    for meta in live {
        let shard = u32::try_from(shard).unwrap_or(u32::MAX);
        // Who wants to know what is wrong with the others verifies each of them.
        if add_segment(disk, dir, shard, meta, &mut index, &mut found).is_ok() {
            examined.segments.push(*meta);
        }
    }
    found.sort_by_key(|found| (found.run.stream, found.run.start));
    let mut keep: Vec<_> = keep.into_iter().collect();
    keep.sort_unstable_by_key(|(stream, range)| (*stream, range.start));
    let mut rest = found.as_slice();
    for (stream, range) in keep {
        match LiveRuns::default().add(&index, runs_of(&mut rest, stream), stream, &range) {
            Ok(()) => examined.streams.push((stream, range)),
            Err(error) => examined.broken_streams.push((stream, error)),
        }
    }
    examined
}

/// Picks the runs that hold what is to be kept. Both lists are sorted.
fn live_runs(
    index: &Index,
    found: &[FoundRun],
    keep: &[(u64, Range<u64>)],
) -> Result<LiveRuns, StorageError> {
    let mut live = LiveRuns { runs: Vec::with_capacity(found.len()), kept_from: AHashMap::new() };
    let mut rest = found;
    for (at, (stream, range)) in keep.iter().enumerate() {
        if at.checked_sub(1).is_some_and(|before| keep[before].0 == *stream) {
            return Err(StorageError::Corrupt(format!(
                "stream {stream}: what is kept of it is not one range"
            )));
        }
        live.add(index, runs_of(&mut rest, *stream), *stream, range)?;
    }
    Ok(live)
}

/// Takes the runs of one stream from the front of a sorted list, and what comes before them.
fn runs_of<'a>(rest: &mut &'a [FoundRun], stream: u64) -> &'a [FoundRun] {
    let start = rest.partition_point(|found| found.run.stream < stream);
    let end = start + rest[start..].partition_point(|found| found.run.stream == stream);
    let runs = &rest[start..end];
    *rest = &rest[end..];
    runs
}

#[derive(Debug, Default)]
struct LiveRuns {
    runs: Vec<((u64, u64), IndexRun)>,
    kept_from: AHashMap<u64, u64>,
}

impl LiveRuns {
    /// Picks those of a stream's runs that hold what is to be kept of it.
    fn add(
        &mut self,
        index: &Index,
        found: &[FoundRun],
        stream: u64,
        range: &Range<u64>,
    ) -> Result<(), StorageError> {
        if range.start > range.end {
            return Err(StorageError::Corrupt(format!(
                "stream {stream}: what is kept of it is not one range"
            )));
        }
        let mut end = range.start;
        for FoundRun { run, slot } in found {
            if run.end() <= range.start || range.is_empty() {
                continue;
            }
            let is_first = end == range.start;
            if run.start > end || (run.start < end && !is_first) || run.end() > range.end {
                let why = format!("the run from here to {} does not continue what ends at {end}", run.end());
                return Err(index.segment_at(*slot).corrupt_block(stream, run.start, &why));
            }
            if run.start < range.start {
                self.kept_from.insert(stream, range.start);
            }
            let live = IndexRun { offset: run.offset, len: run.len, slot: *slot };
            self.runs.push(((stream, run.start), live));
            end = run.end();
        }
        if end != range.end {
            let why = format!("stream {stream}: bytes {end} to {} are in no segment", range.end);
            return Err(StorageError::Corrupt(why));
        }
        Ok(())
    }
}

/// Removes the segment files that the catalog does not list: what was not committed, and what was not needed any more.
/// Of the latter, whose ids are below `next_segment_id`, only a crash leaves any: they are told of by name.
/// Returns the highest id of all files, so that none of them is met again.
fn remove_unlisted(
    disk: &dyn Disk,
    dir: &Path,
    listed: &AHashSet<u64>,
    next_segment_id: u64,
) -> Result<Option<u64>, StorageError> {
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
        if id < next_segment_id {
            tracing::warn!(
                path = %path.display(),
                "removing a segment file that the catalog does not list any more: a crash kept it from being removed before"
            );
        }
        disk.remove(&path).map_err(|error| io_failed("removing", &path, error))?;
        removed += 1;
    }
    if removed > 0 {
        tracing::debug!(dir = %dir.display(), files = removed, "removed segment files that are in no checkpoint");
        disk.sync_dir(dir).map_err(|error| io_failed("syncing", dir, error))?;
    }
    Ok(last)
}
