//! The segments of one shard.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::RunSource;
use super::choose::{self, RewritePlan, RewritePolicy};
use super::file::{Descriptors, Segment};
use super::format::{RunEntry, SegmentKey};
use super::hold::Held;
use super::index::Index;
use super::writer::{PreparedSegment, RunLimits, SegmentWriter};
use crate::storage::StorageError;
use crate::storage::disk::Disk;

/// Runs or streams that are changed under one hold of the index's lock: about a millisecond for which readers wait.
const CHANGES_PER_LOCK: usize = 1024;
/// Descriptors that a store keeps open.
const DESCRIPTORS_MAX: usize = 64;
/// Buffers that are kept between reads.
const BUFFERS_MAX: usize = 16;

/// Sizes of a store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreLimits {
    /// Descriptors that are kept open.
    pub(crate) descriptors_max: usize,
    /// Payload bytes of a run.
    pub(crate) run_bytes_max: u32,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { descriptors_max: DESCRIPTORS_MAX, run_bytes_max: 1 << 30 }
    }
}

impl StoreLimits {
    /// For one of `shards` stores of this process: together they keep a 16th of its descriptors open, at most.
    pub(crate) fn of_one_in(shards: usize) -> Self {
        #[cfg(unix)]
        let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        #[cfg(not(unix))]
        let allowed: Option<u64> = None;
        let share = allowed.map_or(u64::MAX, |allowed| allowed / 16 / shards as u64);
        let share = usize::try_from(share).unwrap_or(usize::MAX);
        Self { descriptors_max: share.clamp(1, DESCRIPTORS_MAX), ..Self::default() }
    }
}

/// The segments of one shard: which there are, and what is where in them. All calls may block on disk, but for the
/// counts.
///
/// Readers may be on any thread. Changes come in the order in which checkpoints become durable: for each checkpoint
/// [`cut`](Self::cut), then [`publish`](Self::publish), then [`forget`](Self::forget).
pub(crate) struct SegmentStore {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) shard: u32,
    pub(super) dir: PathBuf,
    pub(super) limits: StoreLimits,
    pub(super) policy: RewritePolicy,
    pub(super) descriptors: Descriptors,
    /// What reads read into, used again and again: many threads read now and then, and an allocator keeps for each what
    /// that thread let go of.
    buffers: Mutex<Vec<Vec<u8>>>,
    /// Never held while anything is read or written.
    index: RwLock<Index>,
    next_id: AtomicU64,
    /// The shard is being opened anew: another store has the files.
    is_retired: AtomicBool,
    pub(super) held: Mutex<Held>,
}

impl fmt::Debug for SegmentStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentStore").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl SegmentStore {
    /// See [`Self::open`], which is in a file of its own.
    pub(super) fn new(disk: Arc<dyn Disk>, shard: u32, dir: PathBuf, index: Index, next_id: u64) -> Self {
        let limits = StoreLimits::default();
        Self {
            descriptors: Descriptors::new(Arc::clone(&disk), limits.descriptors_max),
            disk,
            shard,
            dir,
            limits,
            policy: RewritePolicy::default(),
            buffers: Mutex::default(),
            index: RwLock::new(index),
            next_id: AtomicU64::new(next_id),
            is_retired: AtomicBool::new(false),
            held: Mutex::default(),
        }
    }

    /// The same store with other sizes.
    #[must_use]
    pub(crate) fn with_limits(mut self, limits: StoreLimits) -> Self {
        self.descriptors = Descriptors::new(Arc::clone(&self.disk), limits.descriptors_max);
        self.limits = limits;
        self
    }

    /// The same store with another policy for rewrites.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn with_policy(mut self, policy: RewritePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Lends a buffer of any content and length to `work`.
    pub(super) fn with_buffer<T>(&self, work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let buffers = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = buffers().pop().unwrap_or_default();
        let outcome = work(&mut buffer);
        let mut buffers = buffers();
        if buffers.len() < BUFFERS_MAX {
            buffers.push(buffer);
        }
        outcome
    }

    pub(super) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files may go from now on, as another store is opened on them. Reads go on as long as theirs are there.
    pub(crate) fn retire(&self) {
        // Under the lock: from here on, nothing that was held is removed by this store.
        let _held = self.held();
        self.is_retired.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.is_retired.load(Ordering::Relaxed)
    }

    /// Takes a segment id, which is given to nobody else.
    pub(super) fn take_key(&self) -> SegmentKey {
        SegmentKey { shard: self.shard, id: self.next_id.fetch_add(1, Ordering::Relaxed) }
    }

    /// No segment id at or above this one has been given out.
    pub(crate) fn next_segment_id(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }

    /// Bytes that the files of live segments take.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.index().file_bytes()
    }

    /// Payload bytes in them that are alive.
    #[cfg(test)]
    pub(crate) fn live_bytes(&self) -> u64 {
        self.index().live_bytes()
    }

    /// Number of live segments.
    #[cfg(test)]
    pub(crate) fn segment_count(&self) -> usize {
        self.index().segment_count()
    }

    /// What the catalog keeps of the live segments, by id.
    #[cfg(test)]
    pub(crate) fn segments(&self) -> Vec<super::SegmentMeta> {
        self.index().segments().map(|live| live.segment.meta()).collect()
    }

    /// First kept position and end of what is settled of a stream. `None` if nothing of it is.
    #[cfg(test)]
    pub(crate) fn settled(&self, stream: u64) -> Option<std::ops::Range<u64>> {
        self.index().kept(stream).map(|(from, end)| from..end)
    }

    /// Writes a segment, durably. Nobody sees it before [`Self::publish`]. `runs` come in any order; two that follow
    /// each other are joined.
    ///
    /// # Errors
    /// What the disk says; and [`StorageError::Corrupt`] if runs overlap. The file is removed as far as that is
    /// possible.
    pub(crate) fn write_segment(&self, mut runs: Vec<RunSource>) -> Result<PreparedSegment, StorageError> {
        runs.sort_unstable_by_key(|run| (run.stream, run.start));
        let max = self.limits.run_bytes_max;
        let limits = RunLimits { joined_bytes_max: max, bytes_max: max };
        let mut writer = SegmentWriter::create(&self.disk, &self.dir, self.take_key(), limits)?;
        match write_runs(&mut writer, &runs) {
            Ok(()) => writer.finish(None),
            Err(error) => {
                writer.abandon();
                Err(error)
            }
        }
    }

    /// Removes the file of a segment that was never handed to a commit. For one that was, it is not known whether the
    /// catalog lists it; it is dropped, and the next opening sees to it.
    #[cfg(test)]
    pub(crate) fn discard(&self, prepared: PreparedSegment) {
        self.remove_file(&prepared.segment);
    }

    /// Makes readers find the runs of `added`, and removes segments, after the checkpoint that says so is durable.
    ///
    /// A settled run begins where its stream's last one ends. A rewritten run takes the place of what it was copied
    /// from, if that is still alive; the segments it was copied from have to be among `removed`. Ids that are unknown
    /// are skipped. At any time a reader finds each position either where it was or where it is.
    ///
    /// Files that cannot be removed are left to the next opening.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] if the runs do not fit to what is there. The index is of no use then: what the
    /// catalog says by now contradicts itself as well, most likely.
    pub(crate) fn publish(&self, added: Vec<PreparedSegment>, removed: &[u64]) -> Result<(), StorageError> {
        for prepared in added {
            self.publish_one(&prepared, removed)?;
        }
        let mut gone = Vec::new();
        let mut index = self.index_mut();
        for &id in removed {
            gone.extend(index.remove_segment(id)?);
        }
        drop(index);
        for segment in gone {
            self.remove_file(&segment);
        }
        Ok(())
    }

    fn publish_one(&self, prepared: &PreparedSegment, removed: &[u64]) -> Result<(), StorageError> {
        let segment = &prepared.segment;
        if prepared.sources.iter().flatten().any(|id| !removed.contains(id)) {
            return Err(segment.corrupt("it was rewritten from segments that are to be kept"));
        }
        let mut index = self.index_mut();
        let slot = index.add_segment(Arc::clone(segment), true);
        let sources: Option<Vec<u32>> = prepared
            .sources
            .as_ref()
            .map(|sources| sources.iter().filter_map(|&id| index.slot_of(id)).collect());
        drop(index);
        let mut runs = prepared.runs().map(|run| run.map_err(|why| segment.corrupt(why)));
        loop {
            let batch: Vec<RunEntry> = runs.by_ref().take(CHANGES_PER_LOCK).collect::<Result<_, _>>()?;
            let mut index = self.index_mut();
            for run in &batch {
                match &sources {
                    None => index.append(slot, run)?,
                    Some(sources) => index.replace(slot, run, sources)?,
                }
            }
            if batch.len() < CHANGES_PER_LOCK {
                index.complete(slot);
                return Ok(());
            }
        }
    }

    /// Removes the file of a segment that is part of the catalog no more, or leaves that to the last one who holds it.
    fn remove_file(&self, segment: &Arc<Segment>) {
        self.descriptors.close(segment);
        if !self.keep_if_held(segment) {
            self.unlink(segment);
        }
    }

    pub(super) fn unlink(&self, segment: &Segment) {
        if let Err(error) = self.disk.remove(&segment.path) {
            tracing::warn!(
                ds.shard = self.shard,
                path = %segment.path.display(),
                %error,
                "a segment file that is not needed any more could not be removed; the next start does it"
            );
        }
    }

    /// Forgets streams whose removal is durable. Each of them, also those of which nothing is settled.
    pub(crate) fn forget(&self, streams: &[u64]) {
        for streams in streams.chunks(CHANGES_PER_LOCK) {
            let mut index = self.index_mut();
            for &stream in streams {
                index.forget(stream);
            }
        }
    }

    /// Gives up what a stream has below `from`, a message boundary. A position below what was cut before changes
    /// nothing.
    pub(crate) fn cut(&self, stream: u64, from: u64) {
        self.index_mut().cut(stream, from);
    }

    /// The segments in which nothing is alive: to be taken from the catalog, then [published](Self::publish) as
    /// removed.
    pub(crate) fn dead_segments(&self) -> Vec<u64> {
        let index = self.index();
        let dead = index.segments().filter(|live| live.live_bytes == 0 && !live.incomplete);
        dead.map(|live| live.segment.key.id).collect()
    }

    /// Bytes that are free on the disk; `None` = nobody knows.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        self.disk.free_bytes()
    }

    /// Which segments, with at most `live_bytes_max` alive in them, are worth to be written anew, if any are. The plan is valid until something else is published as
    /// removed; so there is one at a time, from here to its publication.
    pub(crate) fn choose_rewrite(&self, live_bytes_max: u64) -> Option<RewritePlan> {
        choose::choose(&self.policy, live_bytes_max, self.index().segments())
    }
}

fn write_runs(writer: &mut SegmentWriter, runs: &[RunSource]) -> Result<(), StorageError> {
    let mut before: Option<(u64, u64)> = None;
    for run in runs {
        let len = run.pieces.iter().map(|piece| piece.len() as u64).sum();
        if len == 0 {
            continue;
        }
        let end = run.start.checked_add(len);
        let end = end.filter(|_| before.is_none_or(|before| before <= (run.stream, run.start)));
        let Some(end) = end else {
            let why = format!("stream {}: runs to be written overlap at {}", run.stream, run.start);
            return Err(StorageError::Corrupt(why));
        };
        before = Some((run.stream, end));
        writer.begin(run.stream, run.start, len);
        for piece in &run.pieces {
            writer.mark_boundary();
            writer.push(piece)?;
        }
    }
    Ok(())
}
