//! One shard: the streams that hash to it, owned by one core and touched by no other.
//!
//! * [`entry`]: one stream: its staged state, what of it is durable, its recent bytes.
//! * [`names`]: which stream has which name.
//! * [`group`]: staging, group commit, what happens when a group is durable or failed.
//! * [`mutate`]: create, append, delete.
//! * [`forks`]: pins, between the shards of a fork and its source.
//! * [`lookup`]: head, read plans, subscriptions; renewal of lifetimes.
//! * [`expiry`]: ends streams whose time has come.
//! * [`retention`]: takes the beginning of streams that keep only so much.
//! * [`settle`]: checkpoints, so that the journal and the recent bytes stay bounded.
//! * [`restore`]: from what storage holds to a shard at work.
//!
//! A mutation is decided against staged state, staged into the open group, and answered when that group is durable.
//! An answer that changes nothing but rests on something staged waits for that, too. Readers see durable state only.

mod entry;
mod expiry;
mod forks;
mod group;
mod lookup;
mod mutate;
mod names;
mod restore;
mod retention;
mod settle;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::engine::api::Unavailable;
use crate::engine::core::Shared;
use crate::engine::live::Topic;
use crate::engine::request::{Answer, ForkMail, Mail, Origin, Parcel, PendingFork, Reply, Request};
use crate::protocol::name::StreamName;
use crate::storage::ColdReader;
use crate::storage::committer::Committer;
use crate::stream::append::StreamLimits;
use crate::stream::fork::StreamRef;

use entry::{ContentTypes, Entry};
use expiry::{Reminders, Wheel};
use group::{OpenGroup, SubmittedGroup};
use names::Names;
use settle::Settling;

type RamMap<K, V> = HashMap<K, V, ahash::RandomState>;

/// What a shard is measured against. Bytes.
#[derive(Clone, Debug)]
pub(crate) struct ShardLimits {
    pub(crate) stream: StreamLimits,
    /// Staged and not yet durable.
    pub(crate) staged_bytes_max: u64,
    /// Journal size at which settling starts.
    pub(crate) journal_bytes: u64,
    /// Recent bytes kept in RAM once they are settled.
    pub(crate) recent_bytes_max: u64,
}

/// Whether the shard takes mutations.
#[derive(Debug)]
enum Phase {
    Working,
    /// A commit failed; the commit thread is reopening the storage. Readers are served from what was durable before.
    Recovering,
    /// What is in RAM cannot be trusted, and nothing better is to be had: nobody is served.
    Failed,
    /// Finishing what was accepted.
    Stopping(Vec<oneshot::Sender<()>>),
    Stopped,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shard {
    index: usize,
    shared: Arc<Shared>,
    limits: ShardLimits,
    phase: Phase,
    names: Names,
    streams: RamMap<u64, Box<Entry>>,
    content_types: ContentTypes,
    next_stream_id: u64,
    /// Names that a fork is about to take, while its source is being pinned.
    pending_forks: RamMap<StreamName, PendingFork>,
    /// Forks of this shard of which nobody knows whether they exist, with their sources: a failed group had their
    /// creation or their end in it. Once the shard is open again, the pins of those that do not exist go.
    doubtful_children: HashSet<(StreamRef, StreamRef), ahash::RandomState>,
    /// `None` in memory mode, where everything is durable at once.
    committer: Option<Committer>,
    /// The commit thread has ended.
    storage_closed: bool,
    reader: Option<Arc<dyn ColdReader>>,
    group: OpenGroup,
    submitted: VecDeque<SubmittedGroup>,
    staged_bytes: u64,
    /// Last group known to be durable.
    durable_group: u64,
    subscribers: RamMap<u64, Subscribers>,
    /// Streams whose readers have something to learn at the end of this round.
    changed: HashSet<u64, ahash::RandomState>,
    wheel: Wheel,
    /// Streams whose sliding windows live readers hold open, and when storage is told of that again.
    held_open: Reminders,
    /// Streams with content that is going to be too old, and when to look.
    aging: Reminders,
    /// Streams that are not cut for now, and until when.
    held_whole: Reminders,
    settling: Settling,
    /// Parcels for other cores, sent once a round.
    outboxes: Vec<Vec<Parcel>>,
}

/// The live readers of one stream.
#[derive(Debug)]
struct Subscribers {
    /// Tail that they were last told of.
    announced: u64,
    closed: bool,
    topics: Vec<Audience>,
    /// How many of them may yet turn out to have asked for a position that the stream does not have.
    in_doubt: usize,
}

impl Subscribers {
    /// Somebody reads who counts for the stream's lifetime.
    fn is_read(&self) -> bool {
        self.topics.iter().map(|audience| audience.readers).sum::<usize>() > self.in_doubt
    }
}

/// Those of them on one core.
#[derive(Debug)]
struct Audience {
    origin: Origin,
    readers: usize,
    topic: Arc<Topic>,
}

impl Shard {
    /// An empty shard without storage below it.
    pub(crate) fn new(index: usize, shared: Arc<Shared>, limits: ShardLimits) -> Self {
        let cores = shared.mailboxes.len();
        // Ids start at the time, so that those of a memory server that is started anew differ from the old ones, and
        // with them its ETags.
        let next_stream_id = (shared.clock.now_ms().max(1) as u64) << 20;
        Self {
            index,
            shared,
            limits,
            phase: Phase::Working,
            names: Names::default(),
            streams: RamMap::default(),
            content_types: ContentTypes::default(),
            next_stream_id,
            pending_forks: RamMap::default(),
            doubtful_children: HashSet::default(),
            committer: None,
            storage_closed: false,
            reader: None,
            group: OpenGroup::new(1),
            submitted: VecDeque::new(),
            staged_bytes: 0,
            durable_group: 0,
            subscribers: RamMap::default(),
            changed: HashSet::default(),
            wheel: Wheel::default(),
            held_open: Reminders::default(),
            aging: Reminders::default(),
            held_whole: Reminders::default(),
            settling: Settling::default(),
            outboxes: (0..cores).map(|_| Vec::new()).collect(),
        }
    }

    /// Its number.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Handles a request. The caller sees to it that [`Self::finish_round`] runs soon.
    pub(crate) fn handle(&mut self, request: Request) {
        if let Some(why) = self.refuses(&request) {
            let (origin, parcel) = request.refuse(why);
            self.send(origin, parcel);
            return;
        }
        match request {
            Request::Create(request, resolved, reply) => self.create(request, resolved, reply),
            Request::Source(request, reply) => self.offer_source(request, reply),
            Request::Append(request, reply) => self.append(request, reply),
            Request::Delete(name, reply) => self.delete(name, reply),
            Request::Head(name, reply) => self.head(&name, reply),
            Request::Plan(request, reply) => self.plan(request, reply),
            Request::Span(request, reply) => self.span(request, reply),
            Request::Subscribe(name, from, reply) => self.subscribe(&name, from, reply),
        }
    }

    /// Reads go on while a shard stops or recovers: they rest on what was durable, and that is still true.
    fn refuses(&self, request: &Request) -> Option<Unavailable> {
        let mutates = matches!(
            request,
            Request::Create(..) | Request::Append(..) | Request::Delete(..) | Request::Source(..)
        );
        match self.phase {
            Phase::Working => None,
            Phase::Recovering => mutates.then_some(Unavailable::Recovering),
            Phase::Failed => Some(Unavailable::Recovering),
            Phase::Stopping(_) => mutates.then_some(Unavailable::ShuttingDown),
            // The files are closed, and the core is about to end.
            Phase::Stopped => Some(Unavailable::ShuttingDown),
        }
    }

    /// Nothing is left to do: the core may end.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::Stopped)
    }

    /// Stops taking mutations, and tells `done` when everything accepted is durable and the files are closed.
    pub(crate) fn stop(&mut self, done: Option<oneshot::Sender<()>>) {
        match &mut self.phase {
            Phase::Stopping(waiting) => waiting.extend(done),
            Phase::Stopped => drop(done.map(|done| done.send(()))),
            Phase::Working | Phase::Recovering | Phase::Failed => {
                let is_sound = matches!(self.phase, Phase::Working);
                self.phase = Phase::Stopping(done.into_iter().collect());
                self.refuse_pending_forks(Unavailable::ShuttingDown);
                if is_sound {
                    self.submit_group();
                }
                match &self.committer {
                    Some(committer) if !self.storage_closed => committer.close(),
                    _ => self.stopped(),
                }
            }
        }
    }

    /// The shard's own code failed. Its state cannot be trusted: nothing staged is acknowledged, and nothing more is
    /// taken until the process is started anew.
    pub(crate) fn give_up(&mut self) {
        let why = format!("shard {}: its code panicked; restart the server", self.index);
        tracing::error!(shard = self.index, "{why}");
        self.shared.set_health(self.index, Some(why));
        if let Some(committer) = &self.committer {
            committer.close();
        }
        if matches!(self.phase, Phase::Working | Phase::Recovering) {
            self.phase = Phase::Failed;
        }
        self.fail_all(Unavailable::CommitFailed);
    }

    /// The storage is closed.
    fn stopped(&mut self) {
        self.reader = None;
        if let Phase::Stopping(waiting) = std::mem::replace(&mut self.phase, Phase::Stopped) {
            for done in waiting {
                // Whoever asked may have given up waiting.
                let _ = done.send(());
            }
        }
    }

    /// The end of a round: what was staged goes down, what is for others goes out.
    pub(crate) fn finish_round(&mut self) {
        self.expire();
        self.submit_group();
        self.announce_changes();
        for core in 0..self.outboxes.len() {
            if !self.outboxes[core].is_empty() {
                let parcels = std::mem::take(&mut self.outboxes[core]);
                self.shared.mailboxes[core].post(Mail::Parcels(parcels));
            }
        }
    }

    /// When [`Self::finish_round`] has to run again without being asked; `None` = never.
    pub(crate) fn next_deadline_ms(&self) -> Option<i64> {
        match self.phase {
            Phase::Working => {
                let reminders = [&self.held_open, &self.aging, &self.held_whole].map(Reminders::next_ms);
                reminders.into_iter().chain([self.wheel.next_ms(), self.settling.next_ms()]).flatten().min()
            }
            _ => None,
        }
    }

    fn stream_ref(&self, id: u64) -> StreamRef {
        StreamRef { shard: u16::try_from(self.index).expect("there are at most 256 shards"), id }
    }

    fn entry(&self, id: u64) -> Option<&Entry> {
        self.streams.get(&id).map(|entry| &**entry)
    }

    fn answer<T: Answer>(&mut self, reply: Reply<T>, answer: T) {
        self.send(reply.origin, T::pack(reply.sender, answer));
    }

    /// Own tasks get it at once, foreign runtimes too; other cores at the end of the round, all in one.
    fn send(&mut self, to: Origin, parcel: Parcel) {
        match to {
            Origin::Core(core) if core != self.index => self.outboxes[core].push(parcel),
            _ => parcel.deliver(),
        }
    }

    fn mail_shard(&mut self, shard: usize, mail: ForkMail) {
        // Also to the own shard by mail: the caller is in the middle of something.
        self.shared.mailboxes[shard].post(Mail::Fork(mail));
    }

    fn has_live_readers(&self, id: u64) -> bool {
        self.subscribers.contains_key(&id)
    }
}
