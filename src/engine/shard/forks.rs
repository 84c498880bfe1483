//! Pins: what the shards of a fork and of its source say to each other. `protocol.md` §18.
//!
//! The child's shard asks for a pin before it creates the fork, and lets go of it after the fork's end is durable. A
//! crash in between leaves a pin without a child; so after a restart a source's shard asks for each of its pins whether
//! the child exists.

use crate::engine::api::{CreateError, CreateRefusal, Unavailable};
use crate::engine::request::{
    CreateStep, ForkMail, ForkSource, NotPinned, PendingFork, Reply, Request, SourceAnswer, SourceRequest,
};
use crate::engine::shard::entry::Entry;
use crate::engine::shard::mutate::Standing;
use crate::engine::shard::{Phase, Shard};
use crate::stream::create::ResolvedFork;
use crate::stream::event::Event;
use crate::stream::fork::StreamRef;

impl Shard {
    /// What a stream offers as a fork source. Its tail is the one that readers see.
    pub(super) fn offer_source(&mut self, request: SourceRequest, reply: Reply<SourceAnswer>) {
        match self.standing(&request.name) {
            Standing::Stream(id) => {
                let entry = self.entry(id).expect("a name stands for a stream that exists");
                let (last_group, state) = (entry.last_group, &entry.state);
                let answer = if state.soft_deleted {
                    Err(CreateError::Refused(CreateRefusal::SourceDeleted))
                } else if !entry.durable.exists {
                    Err(CreateError::Refused(CreateRefusal::SourceNotFound))
                } else if state.earliest() > entry.durable.tail {
                    // All that readers see is going: soon they see what is behind it.
                    return self.retry_after(last_group, Request::Source(request, reply));
                } else {
                    let tail = entry.durable.tail;
                    let fork = ResolvedFork {
                        source: self.stream_ref(id),
                        content_type: state.content_type.clone(),
                        lifetime: state.lifetime.clone(),
                        lineage: state.fork.as_ref().map_or_else(Vec::new, |fork| fork.lineage.clone()),
                        // Staged already, perhaps: what is going is not offered any more.
                        earliest: state.earliest(),
                        anchor: tail,
                        point: tail,
                    };
                    if request.hold {
                        self.hold_cuts(id);
                    }
                    return self.answer(reply, Ok(ForkSource { fork, tail }));
                };
                self.answer_after(last_group, reply, answer);
            }
            Standing::Ending { group } => self.retry_after(group, Request::Source(request, reply)),
            Standing::Pending | Standing::Absent => {
                self.answer(reply, Err(CreateRefusal::SourceNotFound.into()));
            }
        }
        self.complete_if_in_memory();
    }

    /// Mail from another shard, or from this one.
    pub(crate) fn handle_fork_mail(&mut self, mail: ForkMail) {
        match mail {
            ForkMail::Pin { source, child, anchor, point } => self.pin(source, child, anchor, point),
            ForkMail::Pinned { child, earliest } => self.pinned(child, earliest),
            ForkMail::NotPinned { child, why } => self.not_pinned(child, why),
            ForkMail::Unpin { source, child } => self.unpin(source, child),
            ForkMail::Check { source, child } => self.check_pin(source, child),
        }
        self.complete_if_in_memory();
    }

    fn pin(&mut self, source: StreamRef, child: StreamRef, anchor: u64, point: u64) {
        let why = match self.phase {
            Phase::Recovering | Phase::Failed => Some(NotPinned::Unavailable(Unavailable::Recovering)),
            Phase::Stopping(_) | Phase::Stopped => Some(NotPinned::Unavailable(Unavailable::ShuttingDown)),
            Phase::Working => {
                let now_ms = self.shared.clock.now_ms();
                self.end_if_expired(source.id, now_ms);
                let offered = self.entry(source.id).is_some_and(|entry| {
                    let is_kept = entry.state.earliest() <= anchor && point <= entry.durable.tail;
                    !entry.ending && !entry.state.soft_deleted && is_kept
                });
                (!offered).then_some(NotPinned::SourceChanged)
            }
        };
        match why {
            Some(why) => self.mail_shard(child.shard.into(), ForkMail::NotPinned { child: child.id, why }),
            None => self.stage(source.id, &Event::Pinned { child }),
        }
    }

    fn pinned(&mut self, child: u64, earliest: u64) {
        let Some(pending) = self.take_pending(child) else {
            // Refused meanwhile, by a failure or a stop here: it is one of the doubtful ones.
            return self.settle_doubts();
        };
        let PendingFork { id, mut creation, reply, parked } = pending;
        if let Some(fork) = &mut creation.fork {
            // The source may have been cut since it was asked, up to the anchor at most.
            fork.earliest = earliest;
        }
        self.stage_new_stream(id, creation, reply);
        for request in parked {
            self.handle(request);
        }
    }

    fn not_pinned(&mut self, child: u64, why: NotPinned) {
        let Some(pending) = self.take_pending(child) else { return };
        self.release_creation(&pending.creation);
        let answer = match why {
            NotPinned::SourceChanged => Ok(CreateStep::SourceChanged),
            NotPinned::Unavailable(why) => Err(why.into()),
        };
        self.answer(pending.reply, answer);
        for request in pending.parked {
            self.handle(request);
        }
    }

    fn take_pending(&mut self, child: u64) -> Option<PendingFork> {
        let name = self.pending_forks.iter().find(|(_, pending)| pending.id == child)?.0.clone();
        self.pending_forks.remove(&name)
    }

    /// Forks that wait for their pins are given up. Their pins may hold already.
    pub(super) fn refuse_pending_forks(&mut self, why: Unavailable) {
        let pending: Vec<PendingFork> = self.pending_forks.drain().map(|(_, pending)| pending).collect();
        for PendingFork { id, creation, reply, parked } in pending {
            self.release_creation(&creation);
            let fork = creation.fork.as_ref().expect("only forks wait for pins");
            self.doubtful_children.insert((fork.source_ref, self.stream_ref(id)));
            self.answer(reply, Err(why.into()));
            for request in parked {
                let (origin, parcel) = request.refuse(why);
                self.send(origin, parcel);
            }
        }
        self.settle_doubts();
    }

    /// Lets go of the pins of children that do not exist.
    pub(super) fn settle_doubts(&mut self) {
        if !matches!(self.phase, Phase::Working) {
            // Some may turn out to exist after all. If this shard stops instead, the next start settles it.
            return;
        }
        for (source, child) in std::mem::take(&mut self.doubtful_children) {
            if !self.streams.contains_key(&child.id) {
                self.mail_shard(source.shard.into(), ForkMail::Unpin { source, child });
            }
        }
    }

    fn unpin(&mut self, source: StreamRef, child: StreamRef) {
        if !matches!(self.phase, Phase::Working) {
            // The check after the next opening finds it.
            return;
        }
        let Some(entry) = self.entry(source.id) else { return };
        if entry.ending || !entry.state.pins().any(|pin| pin == child) {
            return;
        }
        self.stage(source.id, &Event::Unpinned { child });
        let entry = self.entry(source.id).expect("staging keeps the stream");
        if entry.state.soft_deleted && !entry.state.is_pinned() {
            self.stage(source.id, &Event::Removed);
        }
    }

    fn check_pin(&mut self, source: StreamRef, child: StreamRef) {
        if !matches!(self.phase, Phase::Working) {
            // What is in RAM may not be what storage holds. A pin too many costs space, one too few costs data.
            self.doubtful_children.insert((source, child));
            return;
        }
        let is_its_fork =
            |entry: &Entry| entry.state.fork.as_ref().is_some_and(|fork| fork.source_ref == source);
        let exists = self.entry(child.id).is_some_and(is_its_fork)
            || self.pending_forks.values().any(|pending| pending.id == child.id);
        if !exists {
            self.mail_shard(source.shard.into(), ForkMail::Unpin { source, child });
        }
    }

    /// After opening: asks for every pin whether it is still needed.
    pub(super) fn check_pins(&mut self) {
        let pins: Vec<(StreamRef, StreamRef)> = self
            .streams
            .iter()
            .flat_map(|(&id, entry)| entry.state.pins().map(move |child| (id, child)))
            .map(|(id, child)| (self.stream_ref(id), child))
            .collect();
        for (source, child) in pins {
            self.mail_shard(child.shard.into(), ForkMail::Check { source, child });
        }
    }
}
