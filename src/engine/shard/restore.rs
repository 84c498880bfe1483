//! From what storage holds to a shard at work. Used at start and after a failed commit.

use std::num::NonZeroU64;
use std::sync::Arc;

use crate::engine::live::{Ended, TopicNews};
use crate::engine::request::Parcel;
use crate::engine::shard::entry::Entry;
use crate::engine::shard::names::Names;
use crate::engine::shard::{Phase, RamMap, Shard};
use crate::storage::committer::Committer;
use crate::storage::record::Record;
use crate::storage::replay::{self, ReplayTarget};
use crate::storage::{ColdReader, Recovered, StorageError};
use crate::stream::event::{Creation, Event};
use crate::stream::expiry::renewal_lag_ms;

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
        self.settling.journal_files = recovered.journal_files.into();
        replay::replay(recovered.streams, recovered.groups, self)?;
        self.next_stream_id = self.next_stream_id.max(recovered.next_stream_id);
        self.group.seq = self.group.seq.max(recovered.next_group);
        self.durable_group = self.group.seq - 1;
        self.begin_work();
        Ok(())
    }

    fn forget_everything(&mut self) {
        self.shared.quotas.release_streams(self.streams.len() as u64);
        self.names = Names::default();
        self.streams = RamMap::default();
        self.wheel.clear();
        self.held_open.clear();
        self.aging.clear();
        self.held_whole.clear();
        self.settling = super::Settling::default();
    }

    fn replayed(&mut self, id: u64, group: u64) {
        let entry = self.streams.get_mut(&id).expect("it was just replayed");
        entry.last_group = group;
        if entry.dirty_since.is_none() {
            entry.dirty_since = NonZeroU64::new(group);
            self.settling.dirty.push_back((id, group));
        }
    }

    fn begin_work(&mut self) {
        let unsettled = self.streams.values().map(|entry| entry.unsettled_bytes()).sum();
        self.settling.note_alive(unsettled, self.shared.clock.now_ms());
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

impl ReplayTarget for Shard {
    fn has_group(&mut self, group: u64, bytes: u64) {
        self.settling.add_group(group, bytes);
    }

    fn checkpointed(&mut self, id: u64, record: Record) {
        let Record { name, state, settled, group } = record;
        self.names.insert(&name, id, &self.streams);
        self.next_stream_id = self.next_stream_id.max(id + 1);
        let entry = Entry::restored(name, state, &mut self.content_types, settled, group);
        self.streams.insert(id, Box::new(entry));
    }

    fn created(&mut self, id: u64, mut creation: Creation, group: u64) {
        // Copied, as all content that stays: it would keep the whole group's buffer in RAM.
        creation.payload = creation.payload.detached();
        self.next_stream_id = self.next_stream_id.max(id + 1);
        let entry = Entry::new(&creation, &mut self.content_types, self.shared.reads.lent());
        self.settling.recent_bytes += entry.recent.len();
        self.names.insert(&creation.name, id, &self.streams);
        self.streams.insert(id, Box::new(entry));
        self.replayed(id, group);
    }

    fn settled_group(&self, id: u64) -> Option<u64> {
        self.streams.get(&id).map(|entry| entry.settled_group)
    }

    fn changed(&mut self, id: u64, mut event: Event, group: u64) {
        let entry = self.streams.get_mut(&id).expect("only events of streams that are there come here");
        if let Event::Appended(append) = &mut event {
            append.payload = append.payload.detached();
            let before = entry.recent.len();
            entry.push(&append.payload, self.shared.reads.lent());
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
            self.settling.recent_bytes -=
                entry.recent.release_before(entry.state.released(), self.shared.reads.lent());
            self.settling.note_release(id, self.shared.clock.now_ms());
        }
        self.replayed(id, group);
    }

    fn removed(&mut self, id: u64, group: u64) {
        if let Some(entry) = self.streams.remove(&id) {
            self.settling.recent_bytes -= entry.recent.len();
            self.names.remove(&entry.name, id);
        }
        self.settling.removed.push_back((id, group));
    }
}
