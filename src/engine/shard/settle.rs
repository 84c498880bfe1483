//! Settling: moving state and content from the journal into their lasting place, a little with each group, so that the
//! journal stays within its budget; and letting settled content leave the RAM.
//!
//! Settling rides on groups that are committed anyway, in proportion to what they carry. A stream is settled whole, so
//! one that took nearly all appends makes a large commit. A stream's checkpoint holds its state as of the end of the group that carries it.

use std::collections::{HashSet, VecDeque};

use crate::engine::shard::Shard;
use crate::storage::{Checkpoint, StreamCheckpoint, record};

/// Settled content per group, at least; bytes.
const PAYLOAD_BYTES_MIN: u64 = 256 * 1024;
/// Streams settled per group, at least.
const STREAMS_MIN: usize = 16;
/// Part of the room on the disk that one group may settle content into, and that all journals may take: content of removed
/// streams leaves the disk only with the journal that it is in, and settling needs room before it frees any.
const PART_OF_ROOM: u64 = 4;
/// Journal that a shard keeps, however little room there is; bytes.
const JOURNAL_BYTES_MIN: u64 = 64 * 1024;
/// Removed streams cleaned up per group.
const REMOVALS_MAX: usize = 256;
/// Notes on settled content beyond two for each stream that are let be.
const STALE_MAX: usize = 1024;

/// What waits to be settled.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// Streams with something unsettled, by the first group that carries it.
    pub(super) dirty: VecDeque<(u64, u64)>,
    /// Streams whose end is staged or durable, by the group that says so.
    pub(super) removed: VecDeque<(u64, u64)>,
    /// Settled content that is still in RAM, oldest first: stream, end.
    kept: VecDeque<(u64, u64)>,
    /// Frames in the journal: the sum of `sizes`.
    journal_bytes: u64,
    /// Content in RAM.
    pub(super) recent_bytes: u64,
    /// The journal's groups, to know what trimming frees: (group, bytes).
    sizes: VecDeque<(u64, u64)>,
    /// Groups below are trimmed, or will be with a checkpoint that is on its way.
    trimmed_before: u64,
}

impl Settling {
    fn trim_before(&self, open_group: u64) -> u64 {
        let dirty = self.dirty.front().map_or(open_group + 1, |&(_, group)| group);
        let removed = self.removed.front().map_or(open_group + 1, |&(_, group)| group);
        dirty.min(removed)
    }

    /// A group that the journal holds, or is about to.
    pub(super) fn add_group(&mut self, group: u64, bytes: u64) {
        if bytes > 0 {
            self.journal_bytes += bytes;
            self.sizes.push_back((group, bytes));
        }
    }

    fn trim(&mut self, before: u64) {
        self.trimmed_before = before;
        while let Some(&(group, bytes)) = self.sizes.front()
            && group < before
        {
            self.sizes.pop_front();
            self.journal_bytes -= bytes;
        }
    }
}

impl Shard {
    /// What the open group should settle, if anything.
    pub(super) fn checkpoint(&mut self) -> Option<Checkpoint> {
        let group = self.group.seq;
        let over_budget = self.settling.journal_bytes > self.journal_budget();
        let durable = self.durable_group;
        let ended = self.settling.removed.iter().take(REMOVALS_MAX);
        let removals = ended.take_while(|(_, group)| *group <= durable).count();
        if !over_budget && removals == 0 {
            return None;
        }
        let streams = if over_budget { self.settle_streams(group) } else { Vec::new() };
        let removed: Vec<u64> = self.settling.removed.drain(..removals).map(|(id, _)| id).collect();
        // Streams that ended need no settling, and must not keep the journal from being trimmed.
        while let Some((id, _)) = self.settling.dirty.front()
            && self.streams.get(id).is_none_or(|entry| entry.ending)
        {
            self.settling.dirty.pop_front();
        }
        let trim_before = self.settling.trim_before(group);
        if streams.is_empty() && removed.is_empty() && trim_before <= self.settling.trimmed_before {
            // Over the budget because of something that is not durable yet. Committing nothing would not help, and
            // would come up again as soon as it is committed.
            return None;
        }
        self.settling.trim(trim_before);
        Some(Checkpoint { streams, removed, trim_before, next_stream_id: self.next_stream_id })
    }

    /// Journal size at which settling starts: what is configured, or less if the disk is small.
    fn journal_budget(&self) -> u64 {
        let room = self.shared.quotas.disk_room(self.index).saturating_add(self.settling.journal_bytes);
        let share = room / PART_OF_ROOM / self.shared.mailboxes.len() as u64;
        self.limits.journal_bytes.min(share.max(JOURNAL_BYTES_MIN))
    }

    fn settle_streams(&mut self, group: u64) -> Vec<StreamCheckpoint> {
        let bytes_max = PAYLOAD_BYTES_MIN.max(2 * self.group.frames.len() as u64);
        let streams_max = STREAMS_MIN.max(2 * self.group.events);
        let fitting = self.shared.quotas.disk_room(self.index) / PART_OF_ROOM;
        let mut settled = Vec::new();
        let mut bytes = 0;
        while settled.len() < streams_max && bytes < bytes_max {
            let Some(&(id, _)) = self.settling.dirty.front() else { break };
            // Streams whose end is staged or durable are among the removed ones.
            let entry = self.streams.get_mut(&id).filter(|entry| !entry.ending);
            if entry.as_ref().is_some_and(|entry| bytes + (entry.state.tail - entry.settled) > fitting) {
                break;
            }
            self.settling.dirty.pop_front();
            let Some(entry) = entry else { continue };
            entry.dirty = false;
            let start = entry.settled;
            let payload = entry.recent.pieces(start);
            bytes += entry.state.tail - start;
            let producers = entry
                .state
                .producers
                .iter()
                .filter(|(_, producer)| producer.group > entry.settled_group)
                .map(|(id, producer)| (id.clone(), producer.epoch, producer.seq))
                .collect();
            let record = record::encode(&entry.name, &entry.state, group);
            entry.settled = entry.state.tail;
            entry.settled_group = group;
            settled.push(StreamCheckpoint { id, record, producers, start, payload });
        }
        settled
    }

    /// Content up to `end` is settled, durably: it may leave the RAM when room is needed.
    pub(super) fn settled(&mut self, id: u64, end: u64) {
        self.settling.kept.push_back((id, end));
        if self.settling.kept.len() > 2 * self.streams.len() + STALE_MAX {
            self.forget_stale_kept();
        }
        while self.settling.recent_bytes > self.limits.recent_bytes_max {
            let Some((id, end)) = self.settling.kept.pop_front() else { break };
            if let Some(entry) = self.streams.get_mut(&id) {
                self.settling.recent_bytes -= entry.recent.forget_before(end);
            }
        }
    }

    /// Leaves one note for each stream, the latest. While there is room in RAM nobody looks at them, and a stream adds
    /// one with each of its checkpoints.
    fn forget_stale_kept(&mut self) {
        let mut seen = HashSet::with_capacity(self.streams.len());
        let mut kept: VecDeque<(u64, u64)> = VecDeque::with_capacity(self.streams.len());
        for &(id, end) in self.settling.kept.iter().rev() {
            if self.streams.contains_key(&id) && seen.insert(id) {
                kept.push_front((id, end));
            }
        }
        self.settling.kept = kept;
    }
}
