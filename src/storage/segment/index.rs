//! Where the live bytes are: stream and position → run of a segment, in RAM.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;
use slab::Slab;

use super::file::Segment;
use super::format::RunEntry;
use crate::storage::StorageError;

/// A run in the index. 16 bytes, and as many of its key: there may be millions.
#[derive(Clone, Copy, Debug)]
pub(super) struct IndexRun {
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) slot: u32,
}

/// A live segment.
#[derive(Debug)]
pub(super) struct LiveSegment {
    pub(super) segment: Arc<Segment>,
    /// Payload bytes that are in the index and kept.
    pub(super) live_bytes: u64,
    /// Its runs are not all in the index yet, so it is not dead even if it looks so.
    pub(super) incomplete: bool,
    /// A block of it could not be verified: it is left as it is.
    pub(super) damaged: bool,
}

/// A run, or the part of one that is asked for, and its file.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) segment: Arc<Segment>,
    pub(super) run: RunEntry,
}

/// The runs of all streams that exist.
///
/// The runs of a stream never overlap, and from what is kept of it to the last run's end there is no gap.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By stream and first position.
    runs: BTreeMap<(u64, u64), IndexRun>,
    /// First kept position of the streams whose first run begins below it, and of those that were cut to nothing: a
    /// run of theirs may be on its way that begins below.
    kept_from: AHashMap<u64, u64>,
    segments: Slab<LiveSegment>,
    slots: BTreeMap<u64, u32>,
    file_bytes: u64,
    live_bytes: u64,
}

impl Index {
    /// An index of sorted runs, whose slots are those given by [`Self::add_segment`] before.
    pub(super) fn fill(&mut self, runs: Vec<((u64, u64), IndexRun)>, kept_from: AHashMap<u64, u64>) {
        for ((stream, start), run) in &runs {
            let kept = kept_from.get(stream).map_or(*start, |kept| (*start).max(*kept));
            self.enliven(run.slot, start + u64::from(run.len) - kept);
        }
        // From a sorted list it is built bottom-up, with full nodes.
        self.runs = runs.into_iter().collect();
        self.kept_from = kept_from;
    }

    pub(super) fn add_segment(&mut self, segment: Arc<Segment>, incomplete: bool) -> u32 {
        let id = segment.key.id;
        self.file_bytes += segment.file_bytes;
        let slot = self.segments.insert(LiveSegment { segment, live_bytes: 0, incomplete, damaged: false });
        let slot = u32::try_from(slot).expect("there are fewer segments than a u32 counts");
        self.slots.insert(id, slot);
        slot
    }

    pub(super) fn segment(&self, id: u64) -> Option<&LiveSegment> {
        self.segments.get(*self.slots.get(&id)? as usize)
    }

    pub(super) fn segment_mut(&mut self, id: u64) -> Option<&mut LiveSegment> {
        self.segments.get_mut(*self.slots.get(&id)? as usize)
    }

    pub(super) fn slot_of(&self, id: u64) -> Option<u32> {
        self.slots.get(&id).copied()
    }

    pub(super) fn segment_at(&self, slot: u32) -> &Segment {
        &self.segments[slot as usize].segment
    }

    /// All runs of a segment are in the index.
    pub(super) fn complete(&mut self, slot: u32) {
        self.segments[slot as usize].incomplete = false;
    }

    /// All live segments, by id.
    pub(super) fn segments(&self) -> impl Iterator<Item = &LiveSegment> {
        self.slots.values().map(|&slot| &self.segments[slot as usize])
    }

    /// Takes a segment out that no run refers to any more.
    pub(super) fn remove_segment(&mut self, id: u64) -> Result<Option<Arc<Segment>>, StorageError> {
        let Some(live) = self.segment(id) else { return Ok(None) };
        if live.live_bytes > 0 {
            let why = format!("{} bytes of it are live, and it was to be removed", live.live_bytes);
            return Err(live.segment.corrupt(why));
        }
        let slot = self.slots.remove(&id).expect("it was found there");
        let segment = self.segments.remove(slot as usize).segment;
        self.file_bytes -= segment.file_bytes;
        Ok(Some(segment))
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    #[cfg(test)]
    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    #[cfg(test)]
    pub(super) fn segment_count(&self) -> usize {
        self.segments.len()
    }

    fn enliven(&mut self, slot: u32, bytes: u64) {
        self.segments[slot as usize].live_bytes += bytes;
        self.live_bytes += bytes;
    }

    fn deaden(&mut self, slot: u32, bytes: u64) {
        self.segments[slot as usize].live_bytes -= bytes;
        self.live_bytes -= bytes;
    }

    fn first_run(&self, stream: u64) -> Option<(u64, IndexRun)> {
        let (&(_, start), &run) = self.runs.range((stream, 0)..=(stream, u64::MAX)).next()?;
        Some((start, run))
    }

    /// The last run of a stream that begins at or below `position`.
    fn run_at_or_before(&self, stream: u64, position: u64) -> Option<(u64, IndexRun)> {
        let (&(_, start), &run) = self.runs.range((stream, 0)..=(stream, position)).next_back()?;
        Some((start, run))
    }

    /// First kept position and end of a stream. `None` if nothing of it is here.
    pub(super) fn kept(&self, stream: u64) -> Option<(u64, u64)> {
        let (first, _) = self.first_run(stream)?;
        let (last, run) = self.run_at_or_before(stream, u64::MAX)?;
        let from = self.kept_from.get(&stream).copied().unwrap_or(first);
        Some((from, last + u64::from(run.len)))
    }

    fn place(&self, stream: u64, start: u64, run: IndexRun) -> Place {
        let segment = Arc::clone(&self.segments[run.slot as usize].segment);
        Place { segment, run: RunEntry { stream, start, len: run.len, offset: run.offset } }
    }

    /// The run that holds a kept position.
    pub(super) fn place_of(&self, stream: u64, position: u64) -> Option<Place> {
        let (start, run) = self.run_at_or_before(stream, position)?;
        (position < start + u64::from(run.len)).then(|| self.place(stream, start, run))
    }

    /// The runs that hold `from..to`, in order. `None` if not all of that is kept here.
    pub(super) fn places(&self, stream: u64, from: u64, to: u64) -> Option<Vec<Place>> {
        if from < self.kept_from.get(&stream).copied().unwrap_or(0) {
            return None;
        }
        let (first, _) = self.run_at_or_before(stream, from)?;
        let mut places = Vec::new();
        let mut at = from;
        for (&(_, start), &run) in self.runs.range((stream, first)..(stream, to)) {
            let end = start + u64::from(run.len);
            if start > at || end <= at {
                return None;
            }
            places.push(self.place(stream, start, run));
            at = end;
        }
        (at >= to).then_some(places)
    }

    /// The first live position of a run of segment `id`, if the run is live.
    pub(super) fn live_from(&self, id: u64, run: &RunEntry) -> Option<u64> {
        let found = self.runs.get(&(run.stream, run.start))?;
        if self.segments[found.slot as usize].segment.key.id != id {
            return None;
        }
        Some(self.live_start(run.stream, run.start))
    }

    /// The first kept position of a live run that begins at `start`.
    fn live_start(&self, stream: u64, start: u64) -> u64 {
        self.kept_from.get(&stream).map_or(start, |&kept| start.max(kept))
    }

    fn remove_run(&mut self, stream: u64, start: u64) {
        let live_start = self.live_start(stream, start);
        if let Some(run) = self.runs.remove(&(stream, start)) {
            self.deaden(run.slot, start + u64::from(run.len) - live_start);
        }
    }

    /// All of a stream is dead.
    pub(super) fn forget(&mut self, stream: u64) {
        while let Some((start, _)) = self.first_run(stream) {
            self.remove_run(stream, start);
        }
        self.kept_from.remove(&stream);
    }

    /// What a stream has, or gets, below `from` is dead.
    pub(super) fn cut(&mut self, stream: u64, from: u64) {
        if self.kept_from.get(&stream).is_some_and(|&kept| kept >= from) {
            return;
        }
        while let Some((start, run)) = self.first_run(stream) {
            if start >= from {
                self.kept_from.remove(&stream);
                return;
            }
            if start + u64::from(run.len) > from {
                self.deaden(run.slot, from - self.live_start(stream, start));
                break;
            }
            self.remove_run(stream, start);
        }
        self.kept_from.insert(stream, from);
    }

    /// Adds a settled run, which continues its stream. The stream is alive: its record came with the run.
    pub(super) fn append(&mut self, slot: u32, run: &RunEntry) -> Result<(), StorageError> {
        let last = self.run_at_or_before(run.stream, u64::MAX);
        match last.map(|(start, last)| start + u64::from(last.len)) {
            Some(end) if end != run.start => {
                let why = format!("its run does not begin at {end}, where what is settled ends");
                return Err(self.segment_at(slot).corrupt_block(run.stream, run.start, &why));
            }
            Some(_) => {}
            None => match self.kept_from.get(&run.stream) {
                Some(&kept) if kept >= run.end() => return Ok(()),
                Some(&kept) if kept > run.start => {}
                _ => drop(self.kept_from.remove(&run.stream)),
            },
        }
        self.insert(slot, run);
        Ok(())
    }

    fn insert(&mut self, slot: u32, run: &RunEntry) {
        self.runs.insert((run.stream, run.start), IndexRun { offset: run.offset, len: run.len, slot });
        self.enliven(slot, run.end() - self.live_start(run.stream, run.start));
    }

    /// Puts a rewritten run into the place of what it was copied from: live runs in the segments `sources` (slots).
    /// If they died since, nothing happens. What is cut since stays cut.
    pub(super) fn replace(&mut self, slot: u32, run: &RunEntry, sources: &[u32]) -> Result<(), StorageError> {
        // Most runs are of streams that have no other: found once, changed in place.
        if let Some(old) = self.runs.get_mut(&(run.stream, run.start))
            && old.len == run.len
            && sources.contains(&old.slot)
        {
            let replaced = std::mem::replace(old, IndexRun { offset: run.offset, len: run.len, slot });
            let live_bytes = run.end() - self.live_start(run.stream, run.start);
            self.deaden(replaced.slot, live_bytes);
            self.enliven(slot, live_bytes);
            return Ok(());
        }
        let Some((kept_from, _)) = self.kept(run.stream) else { return Ok(()) };
        let from = run.start.max(kept_from);
        if from >= run.end() {
            return Ok(());
        }
        let mut at = from;
        let mut replaced = Vec::new();
        if let Some((first, _)) = self.run_at_or_before(run.stream, from) {
            for (&(_, start), old) in self.runs.range((run.stream, first)..(run.stream, run.end())) {
                if start > at || !sources.contains(&old.slot) {
                    break;
                }
                replaced.push(start);
                at = start + u64::from(old.len);
            }
        }
        if at != run.end() {
            let why = "its run is not what it was copied from";
            return Err(self.segment_at(slot).corrupt_block(run.stream, run.start, why));
        }
        for start in replaced {
            self.remove_run(run.stream, start);
        }
        match kept_from.cmp(&run.start) {
            // Not the stream's first run.
            Ordering::Less => {}
            Ordering::Equal => drop(self.kept_from.remove(&run.stream)),
            // What was cut since is part of it, perhaps as what were whole runs.
            Ordering::Greater => drop(self.kept_from.insert(run.stream, kept_from)),
        }
        self.insert(slot, run);
        Ok(())
    }
}
