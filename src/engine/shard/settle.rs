//! Settling: moving state and content from the journal into their lasting place, so that the journal stays within its
//! budget; and letting settled content leave the RAM.
//!
//! A checkpoint is made in three steps, one at a time. This core notes the state of the streams that have waited longest
//! and hands it down with their content; the settle thread writes the content into a segment; what comes back rides on the
//! next group. The state is as of the group that was open at the first step, and what happened to the streams since then
//! is in the journal.

use std::collections::{HashSet, VecDeque};
use std::num::NonZeroU64;

use crate::engine::shard::Shard;
use crate::engine::shard::entry::Entry;
use crate::engine::shard::expiry::Reminders;
use crate::storage::{Checkpoint, StreamCheckpoint, record};

/// Content settled at one time, unless one stream has more; bytes.
const PAYLOAD_BYTES_MAX: u64 = 64 << 20;
/// A journal of more files than this is over its budget, however little they hold: each start begins one, and the next start
/// reads them all.
const JOURNAL_FILES_MAX: usize = 8;
/// Streams settled at one time: their records are written by the commit that carries the checkpoint, and each may cost
/// it a page.
const STREAMS_MAX: usize = 1024;
/// Part of the room on the disk that all journals may take: content of removed streams leaves the disk only with the
/// journal that it is in.
const JOURNAL_PART_OF_ROOM: u64 = 4;
/// Part of what is left that all checkpoints under way may settle content into. Twice as much, as there has to be room for
/// all that a journal holds: if it is one stream's, it is settled as a whole or not at all.
const SETTLED_PART_OF_ROOM: u64 = 2;
/// Journal that a shard keeps, however little room there is; bytes.
const JOURNAL_BYTES_MIN: u64 = 64 * 1024;
/// Journals this many times as large as they should be, and larger than what may be staged at one time, are not made any
/// larger: segments cannot be written, or not as fast as content comes in.
const JOURNAL_EXCESS_MAX: u64 = 4;
/// Removed streams cleaned up per group.
const REMOVALS_MAX: usize = 256;
/// Notes on settled content beyond two for each stream that are let be.
const STALE_MAX: usize = 1024;

/// How long after a cut the stream is settled if nothing else does it: until then its content takes disk. Milliseconds.
const RELEASE_DELAY_MS: i64 = 30_000;
/// Least time between two checkpoints that are made to free disk alone. Milliseconds.
const RELEASE_PAUSE_MS: i64 = 1_000;
/// A journal of which most is dead, and so much, is settled after the same delay: one stream that is older than what is dead keeps
/// all of that in it. Bytes.
const DEAD_BYTES_MIN: u64 = 1 << 20;

/// What waits to be settled.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// Streams with something unsettled, by the first group that carries it. Others are stale: see
    /// [`Shard::forget_stale_dirty`].
    pub(super) dirty: VecDeque<(u64, u64)>,
    /// Streams whose end is staged or durable, by the group that says so.
    pub(super) removed: VecDeque<(u64, u64)>,
    /// Streams of which something was released that the catalog takes as kept.
    releases: Reminders,
    /// No checkpoint is made for those alone before this time. Milliseconds since 1970.
    no_release_before_ms: i64,
    /// The first group that streams need whose content is being written into a segment. `None` = there are none.
    in_flight_since: Option<u64>,
    /// Checkpoints that are to ride on the next groups.
    prepared: VecDeque<Checkpoint>,
    /// What checkpoints on their way settle, by the group that carries them: (stream, end).
    unpublished: VecDeque<(u64, Vec<(u64, u64)>)>,
    /// Settled content that is still in RAM, oldest first: stream, end.
    kept: VecDeque<(u64, u64)>,
    /// Frames in the journal: the sum of `sizes`.
    journal_bytes: u64,
    /// Content in the journal that is in a segment as well, or is needed by nobody. About: frames are more than their content.
    dead_bytes: u64,
    /// When that became most of the journal. Milliseconds since 1970.
    mostly_dead_since_ms: Option<i64>,
    /// The last group of each journal file that the shard was opened with, oldest first.
    pub(super) journal_files: VecDeque<u64>,
    /// Content in RAM.
    pub(super) recent_bytes: u64,
    /// The journal's groups, to know what trimming frees: (group, bytes).
    sizes: VecDeque<(u64, u64)>,
}

impl Settling {
    fn trim_before(&self, open_group: u64) -> u64 {
        let first = |queue: &VecDeque<(u64, u64)>| queue.front().map(|&(_, group)| group);
        let needed = [first(&self.dirty), first(&self.removed), self.in_flight_since];
        needed.into_iter().flatten().min().unwrap_or(open_group + 1)
    }

    /// A group that the journal holds, or is about to.
    pub(super) fn add_group(&mut self, group: u64, bytes: u64) {
        if bytes > 0 {
            self.journal_bytes += bytes;
            self.sizes.push_back((group, bytes));
        }
    }

    fn trim(&mut self, before: u64) {
        while let Some(&(group, bytes)) = self.sizes.front()
            && group < before
        {
            self.sizes.pop_front();
            self.journal_bytes -= bytes;
            self.dead_bytes = self.dead_bytes.saturating_sub(bytes);
        }
        self.dead_bytes = self.dead_bytes.min(self.journal_bytes);
        if !self.is_mostly_dead() {
            self.mostly_dead_since_ms = None;
        }
        while self.journal_files.front().is_some_and(|last| *last < before) {
            self.journal_files.pop_front();
        }
    }

    /// Something of a stream was released: its segments are to learn of it, also if the journal does not fill up.
    pub(super) fn note_release(&mut self, id: u64, now_ms: i64) {
        self.releases.enter(id, now_ms.saturating_add(RELEASE_DELAY_MS));
    }

    /// So much of the journal's content is not needed there any more.
    pub(super) fn note_dead(&mut self, bytes: u64, now_ms: i64) {
        // What dies before its group is in the journal is not counted. More than all of it would count for ever.
        self.dead_bytes = (self.dead_bytes + bytes).min(self.journal_bytes);
        if self.mostly_dead_since_ms.is_none() && self.is_mostly_dead() {
            self.mostly_dead_since_ms = Some(now_ms);
        }
    }

    /// All of the journal was added again, and so much of its content is needed there.
    pub(super) fn note_alive(&mut self, bytes: u64, now_ms: i64) {
        self.note_dead(self.journal_bytes.saturating_sub(bytes), now_ms);
    }

    fn is_mostly_dead(&self) -> bool {
        self.dead_bytes >= DEAD_BYTES_MIN && self.dead_bytes > self.journal_bytes / 2
    }

    /// When the journal is to be settled because most of it is dead. `None` = it is not, or nothing keeps it.
    fn dead_due_ms(&self) -> Option<i64> {
        let since_ms = self.mostly_dead_since_ms.filter(|_| self.is_mostly_dead() && !self.dirty.is_empty());
        Some(since_ms?.saturating_add(RELEASE_DELAY_MS))
    }

    /// When a checkpoint is to be begun to free disk. `None` = there is nothing to free, or it has to wait for another one.
    pub(super) fn next_ms(&self) -> Option<i64> {
        if self.in_flight_since.is_some() {
            return None;
        }
        let due_ms = [self.releases.next_ms(), self.dead_due_ms()].into_iter().flatten().min()?;
        Some(due_ms.max(self.no_release_before_ms))
    }

    /// Whether a checkpoint waits for a group.
    pub(super) fn has_prepared(&self) -> bool {
        !self.prepared.is_empty()
    }
}

impl Shard {
    /// The checkpoint that the open group is to carry, if any. Begins the next one.
    pub(super) fn checkpoint(&mut self) -> Option<Checkpoint> {
        let group = self.group.seq;
        let prepared = self.settling.prepared.pop_front();
        if prepared.as_ref().is_some_and(|checkpoint| !checkpoint.streams.is_empty()) {
            self.settling.in_flight_since = None;
        }
        self.begin_checkpoint(group);
        let durable = self.durable_group;
        let ended = self.settling.removed.iter().take(REMOVALS_MAX);
        let removals = ended.take_while(|(_, group)| *group <= durable).count();
        if prepared.is_none() && removals == 0 {
            return None;
        }
        let mut checkpoint = prepared.unwrap_or_default();
        checkpoint.removed.extend(self.settling.removed.drain(..removals).map(|(id, _)| id));
        // A stream that ended meanwhile must not get a record again, nor keep its content.
        let (settled, gone) = std::mem::take(&mut checkpoint.streams)
            .into_iter()
            .partition(|stream: &StreamCheckpoint| self.streams.contains_key(&stream.id));
        checkpoint.streams = settled;
        checkpoint.removed.extend(gone.iter().map(|stream| stream.id));
        self.forget_stale_dirty();
        checkpoint.trim_before = self.settling.trim_before(group);
        checkpoint.next_stream_id = self.next_stream_id;
        self.settling.trim(checkpoint.trim_before);
        let settled = checkpoint.streams.iter().map(|stream| (stream.id, stream.end)).collect();
        self.settling.unpublished.push_back((group, settled));
        Some(checkpoint)
    }

    /// A checkpoint came back from the settle thread.
    pub(super) fn prepared(&mut self, checkpoint: Checkpoint) {
        self.settling.prepared.push_back(checkpoint);
    }

    /// A checkpoint finds no room. Its streams are the first of the next one, which takes what is left of them then, and what fits.
    pub(super) fn settle_later(&mut self, checkpoint: Checkpoint) {
        let Some(first) = self.settling.in_flight_since.take() else { return };
        let now_ms = self.shared.clock.now_ms();
        let bytes = content_of(&checkpoint.streams);
        self.settling.dead_bytes = self.settling.dead_bytes.saturating_sub(bytes);
        for stream in checkpoint.streams.into_iter().rev() {
            let Some(entry) = self.streams.get_mut(&stream.id).filter(|entry| !entry.ending) else {
                continue;
            };
            entry.settled = stream.start;
            // All of its producers go along again.
            entry.settled_group = 0;
            entry.dirty_since = NonZeroU64::new(first);
            self.settling.dirty.push_front((stream.id, first));
            if stream.cut.is_some() {
                self.settling.note_release(stream.id, now_ms);
            }
        }
    }

    /// The checkpoint that group number `group` carried is in force.
    pub(super) fn published(&mut self, group: u64) {
        while self.settling.unpublished.front().is_some_and(|(carrier, _)| *carrier <= group) {
            let (_, settled) = self.settling.unpublished.pop_front().expect("it was just looked at");
            for (id, end) in settled {
                self.settled(id, end);
            }
        }
    }

    /// Whether the journal has grown far beyond its budget.
    pub(super) fn is_journal_full(&self) -> bool {
        // However small it is to be: what may be on its way to the disk is refused by nobody, and ends up in it.
        let excess = self.limits.journal_bytes.saturating_mul(JOURNAL_EXCESS_MAX);
        self.settling.journal_bytes > excess.max(self.limits.staged_bytes_max)
    }

    /// Streams that ended need no settling, and those that were settled since they were noted are noted again. Neither
    /// must keep the journal from being trimmed.
    fn forget_stale_dirty(&mut self) {
        while let Some((id, group)) = self.settling.dirty.front()
            && self
                .streams
                .get(id)
                .is_none_or(|entry| entry.ending || entry.dirty_since != NonZeroU64::new(*group))
        {
            self.settling.dirty.pop_front();
        }
    }

    /// Journal size at which settling starts: what is configured, or less if the disk is small.
    fn journal_budget(&self) -> u64 {
        let room = self.shared.quotas.disk_room(self.index).saturating_add(self.settling.journal_bytes);
        let share = room / JOURNAL_PART_OF_ROOM / self.shared.mailboxes.len() as u64;
        self.limits.journal_bytes.min(share.max(JOURNAL_BYTES_MIN))
    }

    /// Content that one checkpoint may settle, in bytes.
    fn fitting(&self) -> u64 {
        let room = self.shared.quotas.disk_room(self.index);
        room / SETTLED_PART_OF_ROOM / self.shared.mailboxes.len() as u64
    }

    /// Hands streams to the settle thread if none are there: those that have waited longest, if the journal asks for it, by its
    /// size or because most of it is dead; or those whose content was released a while ago.
    fn begin_checkpoint(&mut self, group: u64) {
        if self.settling.in_flight_since.is_some() {
            return;
        }
        let now_ms = self.shared.clock.now_ms();
        let is_due = |due_ms: Option<i64>| due_ms.is_some_and(|due_ms| due_ms <= now_ms);
        let is_release_due = is_due(self.settling.next_ms());
        let is_journal_over = self.settling.journal_bytes > self.journal_budget()
            || self.settling.journal_files.len() > JOURNAL_FILES_MAX
            || is_release_due && is_due(self.settling.dead_due_ms());
        if !is_journal_over && !is_release_due {
            return;
        }
        // Also if nothing comes of it now, for want of room: the core must not come back at once, and again.
        self.settling.no_release_before_ms = now_ms.saturating_add(RELEASE_PAUSE_MS);
        // Without events the open group is not handed down now, and its number is for events to come.
        let as_of = if self.group.events > 0 { group } else { group - 1 };
        let (mut streams, mut first) = (Vec::new(), as_of);
        if is_journal_over {
            (streams, first) = self.settle_oldest(as_of);
        }
        if streams.is_empty() && is_release_due {
            (streams, first) = self.settle_released(as_of, now_ms);
        }
        if streams.is_empty() {
            return;
        }
        self.settling.in_flight_since = Some(first);
        self.settling.note_dead(content_of(&streams), now_ms);
        if let Some(committer) = &self.committer {
            committer.settle(Checkpoint { streams, ..Checkpoint::default() });
        }
    }

    /// Notes the state of the streams that have waited longest as of the end of group number `group`. Says which is the
    /// first group that they need.
    fn settle_oldest(&mut self, group: u64) -> (Vec<StreamCheckpoint>, u64) {
        let fitting = self.fitting();
        let (mut settled, mut first) = (Vec::new(), group);
        let mut bytes = 0;
        while settled.len() < STREAMS_MAX && bytes < PAYLOAD_BYTES_MAX {
            self.forget_stale_dirty();
            let Some(&(id, since)) = self.settling.dirty.front() else { break };
            let entry = self.streams.get_mut(&id).expect("one that is gone is stale");
            bytes += entry.unsettled_bytes();
            if bytes > fitting {
                break;
            }
            self.settling.dirty.pop_front();
            first = first.min(since);
            settled.push(settle(id, entry, group));
        }
        (settled, first)
    }

    /// The same for streams of which something was released long enough ago. Their places among those that wait become
    /// stale.
    fn settle_released(&mut self, group: u64, now_ms: i64) -> (Vec<StreamCheckpoint>, u64) {
        let fitting = self.fitting();
        let (mut settled, mut first) = (Vec::new(), group);
        let mut bytes = 0;
        while settled.len() < STREAMS_MAX && bytes < PAYLOAD_BYTES_MAX {
            let Some(id) = self.settling.releases.pop_due(now_ms) else { break };
            let Some(entry) = self.streams.get_mut(&id).filter(|entry| !entry.ending) else { continue };
            // Another checkpoint had it.
            let Some(since) = entry.dirty_since.map(NonZeroU64::get) else { continue };
            bytes += entry.unsettled_bytes();
            if bytes > fitting {
                self.settling.note_release(id, now_ms);
                break;
            }
            first = first.min(since);
            settled.push(settle(id, entry, group));
        }
        (settled, first)
    }
}

/// Bytes of content that these settle.
fn content_of(streams: &[StreamCheckpoint]) -> u64 {
    streams.iter().map(|stream| stream.end - stream.start).sum()
}

/// The stream's part of a checkpoint as of the end of group number `group`.
fn settle(id: u64, entry: &mut Entry, group: u64) -> StreamCheckpoint {
    entry.dirty_since = None;
    let start = entry.first_unsettled();
    let producers = entry
        .state
        .producers
        .iter()
        .filter(|(_, producer)| producer.group > entry.settled_group)
        .map(|(id, producer)| (id.clone(), producer.epoch, producer.seq))
        .collect();
    let record = record::encode(&entry.name, &entry.state, group);
    let payload = entry.recent.pieces(start);
    let released = entry.state.released();
    let cut = (released > entry.state.base()).then_some(released);
    entry.settled = entry.state.tail;
    entry.settled_group = group;
    StreamCheckpoint { id, record, producers, cut, start, end: entry.settled, payload }
}

impl Shard {
    /// Content up to `end` is settled, durably: it may leave the RAM when room is needed.
    fn settled(&mut self, id: u64, end: u64) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn no_more_of_a_journal_is_dead_than_there_is_of_it() {
        let mut settling = Settling::default();
        // A stream that began to wait before all others keeps the journal.
        settling.dirty.push_back((7, 1));
        settling.add_group(1, 3 * MIB);
        settling.note_dead(2 * MIB, 100);
        assert_eq!(settling.next_ms(), Some(100 + RELEASE_DELAY_MS));
        settling.trim(2);
        assert_eq!(settling.next_ms(), None);
        // Noted after its group was trimmed.
        settling.note_dead(8 * MIB, 200);
        settling.add_group(2, 4 * MIB);
        assert_eq!(settling.next_ms(), None);
        settling.note_dead(4 * MIB, 300);
        settling.add_group(3, 6 * MIB);
        settling.trim(3);
        assert_eq!((settling.dead_bytes, settling.next_ms()), (0, None));
    }
}
