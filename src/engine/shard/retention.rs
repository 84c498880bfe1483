//! Takes the beginning of streams whose retention asks for it: by size with the append that makes it due, by age without
//! traffic. A cut is an event like any other, staged and committed; readers see it, and bytes go, once it is durable.

use crate::engine::shard::expiry::ENDS_PER_ROUND;
use crate::engine::shard::{Phase, Shard};
use crate::stream::event::Event;
use crate::stream::retention::Retained;

/// How long a stream is not cut once a fork of it failed for a cut. Milliseconds.
const HOLD_MS: i64 = 1_000;

impl Shard {
    /// Stages the cut that the stream's limits ask for by now, if they do, and sees to it that its age is looked at again.
    pub(super) fn trim_if_due(&mut self, id: u64, now_ms: i64) {
        let Some(entry) = self.entry(id).filter(|entry| !entry.ending) else { return };
        if entry.state.retained.is_none() || self.held_whole.has(id) {
            return;
        }
        if let Some(earliest) = entry.state.due_cut(now_ms)
            && matches!(self.phase, Phase::Working)
        {
            self.stage(id, &Event::Trimmed { earliest });
        }
        self.track_age(id);
    }

    /// Enters a stream among those whose age is looked at, if it has content that is going to be too old.
    pub(super) fn track_age(&mut self, id: u64) {
        let retained = self.entry(id).and_then(|entry| entry.state.retained.as_deref());
        if let Some(due_ms) = retained.and_then(Retained::next_due_ms) {
            self.aging.enter(id, due_ms);
            self.aging.tidy(&self.streams);
        }
    }

    /// Puts the stream's cuts off for a while. A fork of it was in the making when it was cut; a stream that is cut all the
    /// time would else be faster than any fork of its beginning.
    pub(super) fn hold_cuts(&mut self, id: u64) {
        if self.entry(id).is_some_and(|entry| entry.state.retained.is_some()) {
            self.held_whole.enter(id, self.shared.clock.now_ms().saturating_add(HOLD_MS));
        }
    }

    /// Cuts the streams whose content has become too old, and those whose cuts were put off.
    pub(super) fn trim_aged(&mut self, now_ms: i64) {
        while let Some(id) = self.held_whole.pop_due(now_ms) {
            self.trim_if_due(id, now_ms);
        }
        for _ in 0..ENDS_PER_ROUND {
            let Some(id) = self.aging.pop_due(now_ms) else { break };
            if self.entry(id).is_some_and(|entry| !entry.state.soft_deleted) {
                self.trim_if_due(id, now_ms);
            }
        }
    }

    /// Bytes of a stream are needed by nobody any more, durably: they leave the RAM, and soon the disk.
    pub(super) fn release(&mut self, id: u64) {
        let now_ms = self.shared.clock.now_ms();
        let Some(entry) = self.streams.get_mut(&id) else { return };
        self.settling.recent_bytes -=
            entry.recent.release_before(entry.durable.released, self.shared.reads.lent());
        if self.committer.is_some() {
            self.settling.note_release(id, now_ms);
        }
    }
}
