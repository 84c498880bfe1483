//! Writing segments anew: what is alive in some of them goes into one, with a stream's parts joined.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::file::{Segment, io_failed, read_at, read_footer, verified};
use super::format::{BLOCK_HEADER_BYTES, BLOCK_STRIDE, Block, FooterRuns, RunEntry};
use super::writer::{PreparedSegment, RunLimits, SegmentWriter};
use super::{RewritePlan, SegmentStore};
use crate::storage::StorageError;
use crate::storage::disk::DiskFile;

/// Bytes of a segment that are read at once.
const WINDOW_BYTES: usize = 8 * BLOCK_STRIDE;
/// Bytes that are read and written between two calls of the throttle, about.
const THROTTLE_BYTES: u64 = 256 << 10;

/// A segment that is being copied from, front to back.
#[derive(Debug)]
struct Source {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    runs: FooterRuns,
    run: Option<RunEntry>,
    /// Bytes of the file from `window_start` on.
    window: Vec<u8>,
    window_start: u64,
    read_bytes: u64,
}

impl Source {
    fn open(store: &SegmentStore, segment: Arc<Segment>) -> Result<Self, StorageError> {
        let file = store.descriptors.get(&segment).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => segment.corrupt("the file is not there"),
            _ => io_failed("opening", &segment.path, error),
        })?;
        let (trailer, footer) = read_footer(&*file, &segment.path, segment.key, &segment.meta())?;
        let runs = FooterRuns::new(&trailer, footer);
        let mut source =
            Self { segment, file, runs, run: None, window: Vec::new(), window_start: 0, read_bytes: 0 };
        source.next_run()?;
        Ok(source)
    }

    fn next_run(&mut self) -> Result<(), StorageError> {
        self.run = self.runs.next().transpose().map_err(|why| self.segment.corrupt(why))?;
        Ok(())
    }

    /// The block of `run` whose first byte is at `start`. Blocks are asked for in the order of the file.
    fn block(&mut self, run: &RunEntry, start: u64) -> Result<Block<'_>, StorageError> {
        let offset = run.block_offset(start);
        let len = BLOCK_HEADER_BYTES + run.block_payload_bytes(start);
        let window_end = self.window_start + self.window.len() as u64;
        if offset < self.window_start || offset + len as u64 > window_end {
            let left = self.segment.trailer.footer_offset - offset;
            let wanted = left.min(WINDOW_BYTES as u64) as usize;
            self.window.resize(wanted, 0);
            self.window_start = offset;
            read_at(&self.segment, &*self.file, offset, &mut self.window)?;
            self.read_bytes += wanted as u64;
        }
        let at = (offset - self.window_start) as usize;
        verified(&self.segment, run.stream, start, &self.window[at..at + len])
    }
}

/// A rewrite under way.
struct Rewrite<'a> {
    store: &'a SegmentStore,
    sources: Vec<Source>,
    writer: SegmentWriter,
    throttle: &'a mut dyn FnMut(u64) -> ControlFlow<()>,
    /// Of the bytes read and written, those that the throttle was told of.
    told_bytes: u64,
    has_runs: bool,
}

impl SegmentStore {
    /// Copies what is alive in the plan's segments into a new one, durably. Nobody sees it before [`Self::publish`].
    ///
    /// `throttle` is called every few hundred KiB with the bytes that were read and written since; it may pause, use
    /// the store, or end the rewrite. No lock is held meanwhile. In RAM there are at most 256 KiB of each source, 1
    /// MiB of what is written, and all their footers.
    ///
    /// `None` if `throttle` ended it, and if nothing is alive any more.
    ///
    /// # Errors
    /// What the disk says; and [`StorageError::Corrupt`] for a block that cannot be verified. Its segment is not
    /// chosen for a rewrite again until the shard is opened anew. The new file is removed as far as that is possible.
    pub(crate) fn rewrite(
        &self,
        plan: RewritePlan,
        throttle: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Option<PreparedSegment>, StorageError> {
        let mut sources = Vec::new();
        for &id in plan.segments() {
            let segment = self.index().segment(id).map(|live| Arc::clone(&live.segment));
            if let Some(segment) = segment {
                let source = Source::open(self, segment);
                sources.push(self.unless_damaged(id, source)?);
            }
        }
        // A source's run is never split: what replaces it in the index has to hold all of it.
        let limits = RunLimits { joined_bytes_max: self.limits.run_bytes_max, bytes_max: u32::MAX };
        let writer = SegmentWriter::create(&self.disk, &self.dir, self.take_key(), limits)?;
        let mut rewrite = Rewrite { store: self, sources, writer, throttle, told_bytes: 0, has_runs: false };
        match rewrite.copy() {
            Ok(ControlFlow::Continue(())) if rewrite.has_runs => {
                rewrite.writer.finish(Some(plan.segments)).map(Some)
            }
            Ok(_) => {
                rewrite.writer.abandon();
                Ok(None)
            }
            Err(error) => {
                rewrite.writer.abandon();
                Err(error)
            }
        }
    }

    fn unless_damaged<T>(&self, id: u64, outcome: Result<T, StorageError>) -> Result<T, StorageError> {
        if let Err(StorageError::Corrupt(_)) = &outcome
            && let Some(live) = self.index_mut().segment_mut(id)
        {
            live.damaged = true;
        }
        outcome
    }
}

impl Rewrite<'_> {
    fn copy(&mut self) -> Result<ControlFlow<()>, StorageError> {
        let next = |source: &Source| source.run.map(|run| (run.stream, run.start));
        let mut order: BinaryHeap<_> = self
            .sources
            .iter()
            .enumerate()
            .filter_map(|(at, source)| Some(Reverse((next(source)?, at))))
            .collect();
        while let Some(Reverse((_, at))) = order.pop() {
            let source = &self.sources[at];
            let (id, run) = (source.segment.key.id, source.run.expect("it is in the order by its next run"));
            // Not held for longer than this: what dies meanwhile is sorted out when the result is published.
            let live_from = self.store.index().live_from(id, &run);
            if let Some(from) = live_from {
                let copied = self.copy_run(at, &run, from);
                if self.store.unless_damaged(id, copied)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            let advanced = self.sources[at].next_run();
            self.store.unless_damaged(id, advanced)?;
            order.extend(next(&self.sources[at]).map(|run| Reverse((run, at))));
        }
        Ok(self.tell_throttle(1))
    }

    /// Copies the run from the position `from`, which is a message boundary if it is not the run's start.
    fn copy_run(&mut self, at: usize, run: &RunEntry, from: u64) -> Result<ControlFlow<()>, StorageError> {
        self.writer.begin(run.stream, from, run.end() - from);
        if from > run.start {
            self.writer.mark_boundary();
        }
        self.has_runs = true;
        let mut start = run.block_start(from);
        while start < run.end() {
            let block = self.sources[at].block(run, start)?;
            let skipped = from.saturating_sub(start) as usize;
            let boundary = block.boundary.map(|boundary| (boundary - start) as usize);
            let boundary = boundary.filter(|&boundary| boundary >= skipped);
            let cut = boundary.unwrap_or(skipped);
            self.writer.push(&block.payload[skipped..cut])?;
            if boundary.is_some() {
                self.writer.mark_boundary();
            }
            self.writer.push(&block.payload[cut..])?;
            start = block.end();
            if self.tell_throttle(THROTTLE_BYTES).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Tells the throttle of what was done since it was told, if that is `bytes_min` or more.
    fn tell_throttle(&mut self, bytes_min: u64) -> ControlFlow<()> {
        let read_bytes: u64 = self.sources.iter().map(|source| source.read_bytes).sum();
        let bytes = read_bytes + self.writer.written() - self.told_bytes;
        if bytes < bytes_min {
            return ControlFlow::Continue(());
        }
        self.told_bytes += bytes;
        (self.throttle)(bytes)
    }
}
