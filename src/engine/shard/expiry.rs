//! Ends streams whose time has come: on access, and by itself.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::hash::BuildHasher;

use crate::engine::api::Unavailable;
use crate::engine::shard::{Phase, Shard, Subscribers};
use crate::stream::event::Event;

/// Streams ended in one round at most, so that a wave of expiries does not hold up requests.
pub(super) const ENDS_PER_ROUND: usize = 256;
/// Entries of the wheel beyond two for each stream that are let be.
const STALE_MAX: usize = 1024;

/// When to look at which stream again: one entry per stream with a lifetime. Renewals do not touch it; a stream whose
/// entry comes up too early is put back. A stream that ends early leaves its entry behind.
#[derive(Debug, Default)]
pub(super) struct Wheel(BinaryHeap<Reverse<(i64, u64)>>);

impl Wheel {
    fn push(&mut self, at_ms: i64, id: u64) {
        self.0.push(Reverse((at_ms, id)));
    }

    fn pop_due(&mut self, now_ms: i64) -> Option<u64> {
        let Reverse((at_ms, _)) = self.0.peek()?;
        if *at_ms > now_ms {
            return None;
        }
        self.0.pop().map(|Reverse((_, id))| id)
    }

    pub(super) fn next_ms(&self) -> Option<i64> {
        self.0.peek().map(|Reverse((at_ms, _))| *at_ms)
    }

    /// Forgets the streams that are gone, if they are many: their deadlines may be years away.
    fn tidy<V, S: BuildHasher>(&mut self, streams: &HashMap<u64, V, S>) {
        if self.0.len() > 2 * streams.len() + STALE_MAX {
            self.0.retain(|Reverse((_, id))| streams.contains_key(id));
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A wheel that has each stream once at most, however often it is entered: whoever is taken out is entered anew if
/// need be.
#[derive(Debug, Default)]
pub(super) struct Reminders {
    due: Wheel,
    /// Who is in there.
    ids: HashSet<u64, ahash::RandomState>,
}

impl Reminders {
    /// Has the stream come up at that time, unless it is in there already.
    pub(super) fn enter(&mut self, id: u64, due_ms: i64) {
        if self.ids.insert(id) {
            self.due.push(due_ms, id);
        }
    }

    pub(super) fn pop_due(&mut self, now_ms: i64) -> Option<u64> {
        let id = self.due.pop_due(now_ms)?;
        self.ids.remove(&id);
        Some(id)
    }

    pub(super) fn has(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }

    pub(super) fn next_ms(&self) -> Option<i64> {
        self.due.next_ms()
    }

    /// As [`Wheel::tidy`].
    pub(super) fn tidy<V, S: BuildHasher>(&mut self, streams: &HashMap<u64, V, S>) {
        let before = self.due.0.len();
        self.due.tidy(streams);
        if self.due.0.len() < before {
            self.ids.retain(|id| streams.contains_key(id));
        }
    }

    pub(super) fn clear(&mut self) {
        self.due.clear();
        self.ids.clear();
    }
}

impl Shard {
    /// Enters a new stream into the wheel, if it has a lifetime.
    pub(super) fn track_lifetime(&mut self, id: u64) {
        if let Some(deadline_ms) = self.entry(id).and_then(|entry| entry.state.deadline_ms(false)) {
            self.wheel.push(deadline_ms, id);
            self.wheel.tidy(&self.streams);
        }
    }

    /// Stages the end of a stream if its time has come.
    pub(super) fn end_if_expired(&mut self, id: u64, now_ms: i64) {
        let has_readers = self.has_live_readers(id);
        let expired =
            self.entry(id).is_some_and(|entry| !entry.ending && entry.state.is_expired(now_ms, has_readers));
        if expired && matches!(self.phase, Phase::Working) {
            self.end_stream(id);
        }
    }

    /// Ends all streams whose time has come.
    pub(super) fn expire(&mut self) {
        if !matches!(self.phase, Phase::Working) {
            return;
        }
        let now_ms = self.shared.clock.now_ms();
        for _ in 0..ENDS_PER_ROUND {
            let Some(id) = self.wheel.pop_due(now_ms) else { break };
            self.end_if_expired(id, now_ms);
            let has_readers = self.has_live_readers(id);
            let Some(entry) = self.entry(id) else { continue };
            if entry.ending || entry.state.soft_deleted {
                continue;
            }
            match (entry.state.deadline_ms(has_readers), &entry.state.lifetime) {
                (Some(deadline_ms), _) => self.wheel.push(deadline_ms, id),
                (None, Some(lifetime)) => {
                    // A live reader keeps it alive, and its window begins now at the earliest.
                    let deadline_ms = lifetime.deadline_ms(now_ms);
                    self.wheel.push(deadline_ms, id);
                }
                (None, None) => {}
            }
        }
        self.trim_aged(now_ms);
        self.renew_held_open(now_ms);
        self.complete_if_in_memory();
    }

    /// A live reader came to a stream. Storage's idea of its sliding window may lag behind by [`Entry::renewal_lag_ms`] and
    /// no more, or a crash would cut the window short. The reader may leave at any instant, and nobody waits for the renewal
    /// that this is. So storage is told at half of that, which leaves the other half for it to become durable.
    pub(super) fn hold_open(&mut self, id: u64) {
        // Without storage below there is nobody to be told.
        if self.committer.is_some()
            && let Some(due_ms) = self.stored_renewal_due_ms(id)
        {
            self.held_open.enter(id, due_ms);
        }
    }

    fn renew_held_open(&mut self, now_ms: i64) {
        for _ in 0..ENDS_PER_ROUND {
            let Some(id) = self.held_open.pop_due(now_ms) else { break };
            if self.subscribers.get(&id).is_some_and(Subscribers::is_read) {
                // Readers are told nothing by this, so a failure is the next opening's concern.
                let _ = self.renew_beyond(id, early_lag_ms);
                self.hold_open(id);
            }
        }
    }

    /// When storage's idea of a sliding window lags so far behind a renewal at that moment that it is to be told.
    fn stored_renewal_due_ms(&self, id: u64) -> Option<i64> {
        let entry = self.entry(id).filter(|entry| !entry.ending)?;
        Some(entry.stored_renewal_ms.saturating_add(early_lag_ms(entry.renewal_lag_ms()?)))
    }

    /// Starts the window of a sliding lifetime anew. Written down only when storage lags too far behind. Returns the
    /// group that has to be durable before somebody may be told; 0 = none.
    ///
    /// # Errors
    /// While the shard writes nothing, a renewal that would have to be written is not promised either.
    pub(super) fn renew(&mut self, id: u64) -> Result<u64, Unavailable> {
        self.renew_beyond(id, |lag_ms| lag_ms)
    }

    /// As [`Self::renew`], where storage is told from that part of its greatest lag on.
    fn renew_beyond(&mut self, id: u64, part: fn(i64) -> i64) -> Result<u64, Unavailable> {
        let now_ms = self.shared.clock.now_ms();
        let Some(entry) = self.streams.get_mut(&id) else { return Ok(0) };
        let Some(lag_ms) = entry.renewal_lag_ms().map(part) else { return Ok(0) };
        let is_kept = self.committer.is_none() || now_ms < entry.durable.renewal_ms.saturating_add(lag_ms);
        match self.phase {
            _ if is_kept => entry.state.renew(now_ms),
            // Whoever asks learns that it has ended, or asks again if it has not.
            Phase::Working if entry.ending => {}
            Phase::Working => {
                entry.state.renew(now_ms);
                if now_ms >= entry.stored_renewal_ms.saturating_add(lag_ms) {
                    self.stage(id, &Event::Renewed { at_ms: now_ms });
                }
                return Ok(self.entry(id).expect("staging keeps the stream").last_group);
            }
            Phase::Recovering | Phase::Failed => return Err(Unavailable::Recovering),
            Phase::Stopping(_) | Phase::Stopped => return Err(Unavailable::ShuttingDown),
        }
        Ok(0)
    }
}

/// Lag at which storage is told of a window that is held open. Milliseconds.
fn early_lag_ms(lag_ms: i64) -> i64 {
    (lag_ms / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_ended_early_do_not_pile_up_in_the_wheel() {
        let alive = HashMap::from([(7, ())]);
        let mut wheel = Wheel::default();
        for id in 0..10_000 {
            wheel.push(1_000_000, id);
            wheel.tidy(&alive);
            assert!(wheel.0.len() <= 2 * alive.len() + STALE_MAX);
        }
        let due: Vec<u64> = std::iter::from_fn(|| wheel.pop_due(1_000_000)).collect();
        assert!(due.contains(&7), "a stream that is there keeps its entry");
    }
}
