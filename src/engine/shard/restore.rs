//! From what storage holds to a shard at work. Used at start and after a failed commit.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::live::{Ended, TopicNews};
use crate::engine::request::Parcel;
use crate::engine::shard::entry::Entry;
use crate::engine::shard::{Phase, RamMap, Shard};
use crate::storage::committer::Committer;
use crate::storage::{ColdReader, Recovered, RecoveredStream, StorageError, frame, record};
use crate::stream::event::Event;
use crate::stream::expiry::renewal_lag_ms;
use crate::stream::producer::ProducerState;

impl Shard {
    /// Gives a new shard its storage. To be followed by [`Self::restore`].
    pub(crate) fn attach_committer(&mut self, committer: Committer) {
        self.committer = Some(committer);
    }

    /// Replaces everything in RAM by what storage holds, and takes mutations (again).
    pub(crate) fn restore(
        &mut self,
        recovered: Recovered,
        reader: Arc<dyn ColdReader>,
    ) -> Result<(), StorageError> {
        self.forget_everything();
        self.reader = Some(reader);
        for stream in recovered.streams {
            self.restore_stream(stream)?;
        }
        let mut orphans = HashSet::new();
        for (group, frames) in recovered.groups {
            self.settling.add_group(group, frames.len() as u64);
            for (id, event) in frame::decode_all(frames)? {
                self.replay(id, event, group, &mut orphans);
            }
        }
        if let Some(id) = orphans.iter().next() {
            return Err(StorageError::Corrupt(format!(
                "the journal speaks of stream {id}, which does not exist"
            )));
        }
        self.next_stream_id = self.next_stream_id.max(recovered.next_stream_id);
        self.group.seq = self.group.seq.max(recovered.next_group);
        self.durable_group = self.group.seq - 1;
        self.begin_work();
        Ok(())
    }

    fn forget_everything(&mut self) {
        self.shared.quotas.release_streams(self.streams.len() as u64);
        self.names = RamMap::default();
        self.streams = RamMap::default();
        self.wheel.clear();
        self.held_open.clear();
        self.aging.clear();
        self.settling = super::Settling::default();
    }

    fn restore_stream(&mut self, stream: RecoveredStream) -> Result<(), StorageError> {
        let RecoveredStream { id, record, producers } = stream;
        let record = record::decode(record)?;
        let mut state = record.state;
        for (producer, epoch, seq) in producers {
            let id = Bytes::copy_from_slice(&producer);
            state.producers.set(id, ProducerState { epoch, seq, group: record.group });
        }
        self.names.insert(record.name.clone(), id);
        self.next_stream_id = self.next_stream_id.max(id + 1);
        self.streams.insert(id, Box::new(Entry::restored(record.name, state, record.settled, record.group)));
        Ok(())
    }

    /// Applies one event of the journal, unless a checkpoint contains it already. `orphans` are streams that events
    /// speak of and nothing else: removed ones, whose removal is still to come.
    fn replay(&mut self, id: u64, mut event: Event, group: u64, orphans: &mut HashSet<u64>) {
        if let Event::Created(creation) = &mut event {
            // Copied, as all content that stays: it would keep the whole group's buffer in RAM.
            creation.payload = creation.payload.detached();
            self.next_stream_id = self.next_stream_id.max(id + 1);
            if !self.streams.contains_key(&id) {
                let entry = Entry::new(creation);
                self.settling.recent_bytes += entry.recent.len();
                self.names.insert(creation.name.clone(), id);
                self.streams.insert(id, Box::new(entry));
                self.replayed(id, group);
            }
            return;
        }
        let Some(entry) = self.streams.get_mut(&id) else {
            if matches!(event, Event::Removed) {
                orphans.remove(&id);
                self.settling.removed.push_back((id, group));
            } else {
                orphans.insert(id);
            }
            return;
        };
        if group <= entry.settled_group {
            return;
        }
        if let Event::Appended(append) = &mut event {
            append.payload = append.payload.detached();
            let before = entry.recent.len();
            entry.push(&append.payload);
            self.settling.recent_bytes += entry.recent.len() - before;
            entry.stored_renewal_ms = append.at_ms;
        }
        if let Event::Renewed { at_ms } = event {
            entry.stored_renewal_ms = at_ms;
        }
        let released = entry.state.released();
        entry.state.apply(&event, group);
        if entry.state.released() > released {
            // Everything that is replayed is durable.
            self.settling.recent_bytes -= entry.recent.release_before(entry.state.released());
            self.settling.note_release(id, self.shared.clock.now_ms());
        }
        if matches!(event, Event::Removed) {
            let entry = self.streams.remove(&id).expect("it was just looked at");
            self.settling.recent_bytes -= entry.recent.len();
            if self.names.get(&entry.name) == Some(&id) {
                self.names.remove(&entry.name);
            }
            self.settling.removed.push_back((id, group));
            return;
        }
        self.replayed(id, group);
    }

    fn replayed(&mut self, id: u64, group: u64) {
        let entry = self.streams.get_mut(&id).expect("it was just replayed");
        entry.last_group = group;
        if entry.dirty_since.is_none() {
            entry.dirty_since = Some(group);
            self.settling.dirty.push_back((id, group));
        }
    }

    fn begin_work(&mut self) {
        let ids: Vec<u64> = self.streams.keys().copied().collect();
        for &id in &ids {
            let entry = self.streams.get_mut(&id).expect("nothing is removed here");
            entry.all_durable();
            if let Some(lifetime) = &entry.state.lifetime {
                // The last renewals may not have been written: a window is never shorter than promised.
                let renewed_ms = entry.stored_renewal_ms.saturating_add(renewal_lag_ms(lifetime));
                entry.state.renew(renewed_ms);
            }
            self.track_lifetime(id);
            self.track_age(id);
        }
        self.shared.quotas.add_streams(ids.len() as u64);
        if matches!(self.phase, Phase::Recovering) {
            self.phase = Phase::Working;
        }
        self.catch_up_readers();
        self.settle_doubts();
        self.check_pins();
    }

    /// Live readers hold on over a failure. What they saw was durable; they learn what came out of the rest.
    fn catch_up_readers(&mut self) {
        let ids: Vec<u64> = self.subscribers.keys().copied().collect();
        for id in ids {
            let (end, closed, ended) = match self.entry(id) {
                None => (0, false, Some(Ended::Removed)),
                Some(entry) if entry.durable.soft_deleted => (0, false, Some(Ended::SoftDeleted)),
                Some(entry) => (entry.durable.tail, entry.durable.closed, None),
            };
            let subscribers = self.subscribers.get_mut(&id).expect("its key was just listed");
            let news = TopicNews { start: subscribers.announced, end, data: None, closed, ended };
            subscribers.announced = end;
            subscribers.closed = closed;
            let topics: Vec<_> = subscribers.topics.iter().map(|a| (a.origin, a.topic.clone())).collect();
            if ended.is_some() {
                self.subscribers.remove(&id);
            } else {
                self.hold_open(id);
            }
            for (origin, topic) in topics {
                self.send(origin, Parcel::News(topic, news.clone()));
            }
        }
    }
}
