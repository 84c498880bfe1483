//! Group commit: staging events, handing groups down, and what follows when they are durable or lost.

use std::num::NonZeroU64;
use std::sync::Arc;

use tracing::{error, info};

use crate::engine::api::Unavailable;
use crate::engine::live::{Ended, TopicNews};
use crate::engine::request::{Answer, ForkMail, NotPinned, Origin, Parcel, Reply, Request};
use crate::engine::shard::entry::{Durable, Entry};
use crate::engine::shard::{Phase, Shard};
use crate::storage::backup::Ticket;
use crate::storage::committer::Completion;
use crate::storage::pieces::Pieces;
use crate::storage::{ColdReader, Group, Recovered, StorageError, frame};
use crate::stream::event::{Creation, Event};
use crate::stream::fork::StreamRef;

/// News above this many bytes are not pushed to readers; they read them from storage.
const NEWS_BYTES_MAX: u64 = 256 * 1024;

/// What gathers until it is handed down.
#[derive(Debug)]
pub(super) struct OpenGroup {
    pub(super) seq: u64,
    pub(super) frames: Pieces,
    pub(super) events: usize,
    /// See [`Group::is_relied_on`].
    is_relied_on: bool,
    outcome: Outcome,
}

impl OpenGroup {
    pub(super) fn new(seq: u64) -> Self {
        Self { seq, frames: Pieces::default(), events: 0, is_relied_on: false, outcome: Outcome::default() }
    }
}

/// A group that is with the commit thread.
#[derive(Debug)]
pub(super) struct SubmittedGroup {
    seq: u64,
    bytes: u64,
    outcome: Outcome,
}

/// What follows from a group.
#[derive(Debug, Default)]
struct Outcome {
    effects: Vec<Effect>,
    waiting: Vec<Waiting>,
}

/// What becomes true when the group is durable, in order.
#[derive(Debug)]
enum Effect {
    /// Readers see this of the stream.
    Visible { id: u64, durable: Durable },
    /// The stream is no more.
    Removed { id: u64 },
    /// A child's pin holds. `earliest` is the first position that the source's readers see from then on.
    Pinned { child: StreamRef, earliest: u64 },
}

/// What waits for the group.
#[derive(Debug)]
enum Waiting {
    /// An answer that rests on it.
    Answer(Origin, Parcel),
    /// A request that can be decided only then.
    Retry(Box<Request>),
}

impl Shard {
    /// Adds a creation to the open group.
    pub(super) fn stage_creation(&mut self, id: u64, creation: Box<Creation>) {
        let entry = Box::new(Entry::new(&creation, &mut self.content_types, self.shared.reads.lent()));
        self.settling.recent_bytes += entry.recent.len();
        self.names.insert(&entry.name, id, &self.streams);
        self.streams.insert(id, entry);
        self.record(id, &Event::Created(creation));
        self.track_lifetime(id);
    }

    /// Adds an event of an existing stream to the open group and to the staged state.
    pub(super) fn stage(&mut self, id: u64, event: &Event) {
        let group = self.group.seq;
        let entry = self.streams.get_mut(&id).expect("an event is staged for a stream that exists");
        entry.state.apply(event, group);
        match event {
            Event::Appended(append) => {
                let before = entry.recent.len();
                entry.push(&append.payload, self.shared.reads.lent());
                self.settling.recent_bytes += entry.recent.len() - before;
                entry.stored_renewal_ms = append.at_ms;
            }
            Event::Renewed { at_ms } => entry.stored_renewal_ms = *at_ms,
            Event::Removed => entry.ending = true,
            _ => {}
        }
        self.record(id, event);
    }

    /// The part of staging that is about the group.
    fn record(&mut self, id: u64, event: &Event) {
        let group = &mut self.group;
        let entry = self.streams.get_mut(&id).expect("an event is recorded for a stream that exists");
        entry.last_group = group.seq;
        let effect = match event {
            Event::Removed => Effect::Removed { id },
            Event::Pinned { child } => Effect::Pinned { child: *child, earliest: entry.state.earliest() },
            _ => Effect::Visible { id, durable: entry.staged() },
        };
        group.outcome.effects.push(effect);
        group.events += 1;
        // A fork must not outlive its source, nor what it inherits: the pin, and all before it, is there before the fork is, and
        // the fork's end before that of the pin.
        group.is_relied_on |= match event {
            Event::Pinned { .. } => true,
            Event::Removed => entry.state.fork.is_some(),
            _ => false,
        };
        if self.committer.is_some() {
            if matches!(event, Event::Removed) {
                self.settling.removed.push_back((id, group.seq));
                // Not only once that is durable: the journal may be trimmed by then.
                self.settling.note_dead(entry.unsettled_bytes(), self.shared.clock.now_ms());
            } else if entry.dirty_since.is_none() {
                entry.dirty_since = NonZeroU64::new(group.seq);
                self.settling.dirty.push_back((id, group.seq));
            }
            frame::encode(&mut group.frames, id, event);
            self.note_staged_bytes();
        }
    }

    /// Answers once `group` and everything before it is durable.
    pub(super) fn answer_after<T: Answer>(&mut self, group: u64, reply: Reply<T>, answer: T) {
        if group <= self.durable_group {
            return self.answer(reply, answer);
        }
        let parcel = T::pack(reply.sender, answer);
        self.wait_for(group, Waiting::Answer(reply.origin, parcel));
    }

    /// Handles `request` again once `group` is durable.
    pub(super) fn retry_after(&mut self, group: u64, request: Request) {
        if group <= self.durable_group {
            return self.handle(request);
        }
        self.wait_for(group, Waiting::Retry(Box::new(request)));
    }

    fn wait_for(&mut self, group: u64, waiting: Waiting) {
        // In order, and many if the disk is slow.
        let outcome = match self.submitted.binary_search_by_key(&group, |submitted| submitted.seq) {
            Ok(found) => &mut self.submitted[found].outcome,
            Err(_) => &mut self.group.outcome,
        };
        outcome.waiting.push(waiting);
    }

    /// What is staged leaves no room for more, or what is in the journal.
    pub(super) fn is_overloaded(&self) -> bool {
        self.all_staged_bytes() > self.limits.staged_bytes_max || self.is_journal_full()
    }

    fn all_staged_bytes(&self) -> u64 {
        self.staged_bytes + self.group.frames.len() as u64
    }

    fn note_staged_bytes(&self) {
        self.shared.quotas.set_staged_bytes(self.index, self.all_staged_bytes());
    }

    /// Has a backup take what this shard has, behind everything that is staged. One that takes no mutations drops the ticket.
    pub(crate) fn snapshot(&mut self, ticket: Ticket) {
        if matches!(self.phase, Phase::Working) {
            self.submit_group();
            if let Some(committer) = &self.committer {
                committer.snapshot(ticket);
            }
        }
    }

    /// Hands the open group down, if there is anything in it or anything that rides on it.
    pub(super) fn submit_group(&mut self) {
        if self.committer.is_none() {
            return self.complete_in_memory();
        }
        if matches!(self.phase, Phase::Recovering | Phase::Failed) {
            return;
        }
        self.submit_one_group();
        while self.settling.has_prepared() {
            self.submit_one_group();
        }
    }

    fn submit_one_group(&mut self) {
        self.settling.add_group(self.group.seq, self.group.frames.len() as u64);
        let checkpoint = self.checkpoint();
        if self.group.events == 0 && checkpoint.is_none() {
            return;
        }
        let mut group = std::mem::replace(&mut self.group, OpenGroup::new(0));
        self.group.seq = group.seq + 1;
        let bytes = group.frames.len() as u64;
        self.staged_bytes += bytes;
        let outcome = std::mem::take(&mut group.outcome);
        self.submitted.push_back(SubmittedGroup { seq: group.seq, bytes, outcome });
        if let Some(committer) = &self.committer {
            let OpenGroup { seq, frames, is_relied_on, .. } = group;
            committer.submit(Group { seq, frames, checkpoint, is_relied_on });
        }
    }

    /// Without storage, staged is durable.
    fn complete_in_memory(&mut self) {
        while self.group.events > 0 {
            let group = std::mem::replace(&mut self.group, OpenGroup::new(0));
            self.group.seq = group.seq + 1;
            self.durable_group = group.seq;
            self.follow_through(group.outcome);
        }
    }

    /// In memory mode a mutation is complete at once; elsewhere it waits for the end of the round.
    pub(super) fn complete_if_in_memory(&mut self) {
        if self.committer.is_none() {
            self.complete_in_memory();
        }
    }

    /// News from the commit thread.
    pub(crate) fn completed(&mut self, completion: Completion) {
        match completion {
            Completion::Durable { through } => self.durable_through(through),
            // The quotas have it already.
            Completion::Disk(_) => {}
            // Those of a state that is gone are not to be used; a shard that stops needs them no more.
            Completion::Prepared(checkpoint) => {
                if matches!(self.phase, Phase::Working) {
                    self.prepared(checkpoint);
                }
            }
            Completion::NoRoom(checkpoint) => {
                if matches!(self.phase, Phase::Working) {
                    self.settle_later(checkpoint);
                }
            }
            Completion::Published { group } => self.published(group),
            Completion::Failed { error } => self.failed(&error),
            Completion::ReopenFailed { error } => {
                error!(shard = self.index, error, "the shard could not be reopened; trying again");
                self.shared.set_health(self.index, Some(format!("shard {}: {error}", self.index)));
            }
            Completion::Reopened { recovered, reader, .. } => match self.reopened(recovered, reader) {
                Ok(()) => {
                    info!(shard = self.index, "the shard was reopened and takes writes again");
                    self.shared.set_health(self.index, None);
                }
                Err(error) => {
                    error!(shard = self.index, %error, "what the shard holds cannot be read; it stays closed");
                    if matches!(self.phase, Phase::Recovering) {
                        self.phase = Phase::Failed;
                    }
                    self.shared.set_health(self.index, Some(format!("shard {}: {error}", self.index)));
                }
            },
            Completion::Closed => {
                self.storage_closed = true;
                self.fail_all(Unavailable::ShuttingDown);
                if matches!(self.phase, Phase::Stopping(_)) {
                    self.stopped();
                }
            }
        }
    }

    fn durable_through(&mut self, through: u64) {
        while self.submitted.front().is_some_and(|group| group.seq <= through) {
            let group = self.submitted.pop_front().expect("it was just looked at");
            self.staged_bytes -= group.bytes;
            self.durable_group = group.seq;
            self.note_staged_bytes();
            self.follow_through(group.outcome);
        }
    }

    fn follow_through(&mut self, outcome: Outcome) {
        for effect in outcome.effects {
            match effect {
                Effect::Visible { id, durable } => self.make_visible(id, durable),
                Effect::Removed { id } => self.removed(id),
                Effect::Pinned { child, earliest } => {
                    self.mail_shard(child.shard.into(), ForkMail::Pinned { child: child.id, earliest });
                }
            }
        }
        for waiting in outcome.waiting {
            match waiting {
                Waiting::Answer(origin, parcel) => self.send(origin, parcel),
                Waiting::Retry(request) => self.handle(*request),
            }
        }
    }

    fn make_visible(&mut self, id: u64, durable: Durable) {
        let Some(entry) = self.streams.get_mut(&id) else { return };
        let before = std::mem::replace(&mut entry.durable, durable);
        if before.exists && before.released < durable.released {
            let unsettled = |released: u64| released.max(entry.settled);
            let dead = unsettled(durable.released) - unsettled(before.released);
            self.settling.note_dead(dead, self.shared.clock.now_ms());
            self.shared.quotas.release_bytes(durable.released - before.released);
            self.release(id);
        }
        if self.subscribers.contains_key(&id) {
            self.changed.insert(id);
        }
        if durable.soft_deleted {
            self.end_readers(id, Ended::SoftDeleted);
        }
    }

    /// A removal is durable: the stream leaves the RAM, and its fork source learns that it is not needed any more.
    fn removed(&mut self, id: u64) {
        let Some(entry) = self.streams.remove(&id) else { return };
        self.names.remove(&entry.name, id);
        self.end_readers(id, Ended::Removed);
        self.shared.quotas.release_streams(1);
        self.shared.quotas.release_bytes(entry.state.tail - entry.state.released());
        self.settling.recent_bytes -= entry.recent.len();
        if let Some(fork) = &entry.state.fork {
            let unpin = ForkMail::Unpin { source: fork.source_ref, child: self.stream_ref(id) };
            self.mail_shard(fork.source_ref.shard.into(), unpin);
        }
    }

    fn end_readers(&mut self, id: u64, ended: Ended) {
        let Some(subscribers) = self.subscribers.remove(&id) else { return };
        self.changed.remove(&id);
        let end = subscribers.announced;
        for audience in subscribers.topics {
            let news = TopicNews { start: end, end, data: None, closed: false, ended: Some(ended) };
            self.send(audience.origin, Parcel::News(audience.topic, news));
        }
    }

    /// Tells readers what has become durable: once a round, however many commits that were.
    pub(super) fn announce_changes(&mut self) {
        let changed: Vec<u64> = self.changed.drain().collect();
        for id in changed {
            let (Some(entry), Some(subscribers)) = (self.streams.get(&id), self.subscribers.get_mut(&id))
            else {
                continue;
            };
            let Durable { tail, closed, .. } = entry.durable;
            let start = subscribers.announced;
            if tail == start && closed == subscribers.closed {
                continue;
            }
            let at_hand = tail - start <= NEWS_BYTES_MAX && entry.recent.start() <= start;
            let data = at_hand.then(|| joined(entry.recent.slice(start, tail)));
            subscribers.announced = tail;
            subscribers.closed = closed;
            let audiences: Vec<_> =
                subscribers.topics.iter().map(|audience| (audience.origin, audience.topic.clone())).collect();
            for (origin, topic) in audiences {
                let news = TopicNews { start, end: tail, data: data.clone(), closed, ended: None };
                self.send(origin, Parcel::News(topic, news));
            }
        }
    }

    /// A commit failed: nothing staged is acknowledged, and nothing is taken until the storage is open again.
    fn failed(&mut self, error: &str) {
        error!(shard = self.index, error, "a commit failed; the shard stops taking writes and is reopened");
        self.shared.set_health(self.index, Some(format!("shard {}: {error}", self.index)));
        if matches!(self.phase, Phase::Working) {
            self.phase = Phase::Recovering;
        }
        self.fail_all(Unavailable::CommitFailed);
        self.refuse_pending_forks(Unavailable::CommitFailed);
    }

    fn reopened(&mut self, recovered: Recovered, reader: Arc<dyn ColdReader>) -> Result<(), StorageError> {
        if let Some(committer) = &mut self.committer {
            committer.acknowledge_failure();
        }
        self.restore(recovered, reader)
    }

    pub(super) fn fail_all(&mut self, why: Unavailable) {
        let open = std::mem::replace(&mut self.group, OpenGroup::new(0));
        self.group.seq = open.seq + 1;
        let submitted = std::mem::take(&mut self.submitted);
        self.staged_bytes = 0;
        self.note_staged_bytes();
        let outcomes = submitted.into_iter().map(|group| group.outcome).chain([open.outcome]);
        for outcome in outcomes {
            for effect in outcome.effects {
                self.lose(&effect);
            }
            for waiting in outcome.waiting {
                match waiting {
                    Waiting::Answer(origin, parcel) => self.send(origin, parcel.fail(why)),
                    Waiting::Retry(request) => {
                        let (origin, parcel) = request.refuse(why);
                        self.send(origin, parcel);
                    }
                }
            }
        }
    }

    /// Others count on some effects: a child on its pin, a source on hearing of its child's beginning or end. Which of
    /// the two a source has to hear of shows when the storage is open again.
    fn lose(&mut self, effect: &Effect) {
        match effect {
            Effect::Pinned { child, .. } => {
                let why = NotPinned::Unavailable(Unavailable::CommitFailed);
                self.mail_shard(child.shard.into(), ForkMail::NotPinned { child: child.id, why });
            }
            Effect::Visible { id, .. } | Effect::Removed { id } => {
                if let Some(entry) = self.streams.get(id)
                    && (entry.ending || !entry.durable.exists)
                    && let Some(fork) = &entry.state.fork
                {
                    self.doubtful_children.insert((fork.source_ref, self.stream_ref(*id)));
                }
            }
        }
    }
}

fn joined(pieces: Vec<bytes::Bytes>) -> bytes::Bytes {
    match <[bytes::Bytes; 1]>::try_from(pieces) {
        Ok([only]) => only,
        Err(pieces) => pieces.concat().into(),
    }
}
