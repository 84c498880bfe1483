//! Create, append, delete: decided by [`crate::stream`], staged here.

use crate::engine::api::{AppendRequest, CreateError, CreateRequest, Full, LookupRefusal, Unavailable};
use crate::engine::request::{
    AppendAnswer, CreateAnswer, CreateStep, DeleteAnswer, ForkMail, PendingFork, Reply, Request,
};
use crate::engine::shard::Shard;
use crate::protocol::name::StreamName;
use crate::stream::append::{AppendDecision, accepted};
use crate::stream::command::Created;
use crate::stream::create::{ResolvedFork, decide_create};
use crate::stream::event::{Creation, Event};
use crate::stream::refusal::AppendRefusal;

/// What a name stands for, for somebody who wants to change it.
pub(super) enum Standing {
    /// No stream, or one that is expired and leaves nothing behind.
    Absent,
    /// This stream.
    Stream(u64),
    /// A stream whose end is staged: ask again when this group is durable.
    Ending { group: u64 },
    /// A fork whose source is being pinned.
    Pending,
}

impl Shard {
    pub(super) fn standing(&mut self, name: &StreamName) -> Standing {
        if let Some(id) = self.names.get(name, &self.streams) {
            self.end_if_expired(id, self.shared.clock.now_ms());
        }
        let Some(id) = self.names.get(name, &self.streams) else {
            let pending = self.pending_forks.contains_key(name);
            return if pending { Standing::Pending } else { Standing::Absent };
        };
        match self.entry(id) {
            Some(entry) if entry.ending => Standing::Ending { group: entry.last_group },
            _ => Standing::Stream(id),
        }
    }

    pub(super) fn create(
        &mut self,
        request: Box<CreateRequest>,
        resolved: Option<Box<ResolvedFork>>,
        reply: Reply<CreateAnswer>,
    ) {
        match self.standing(&request.name) {
            Standing::Stream(id) => self.confirm(id, &request, reply),
            Standing::Ending { group } => self.retry_after(group, Request::Create(request, resolved, reply)),
            Standing::Pending => {
                let name = request.name.clone();
                self.park(&name, Request::Create(request, resolved, reply));
            }
            Standing::Absent if request.fork.is_some() && resolved.is_none() => {
                self.answer(reply, Ok(CreateStep::NeedsSource));
            }
            Standing::Absent => self.create_anew(&request, resolved.as_deref(), reply),
        }
        self.complete_if_in_memory();
    }

    fn confirm(&mut self, id: u64, request: &CreateRequest, reply: Reply<CreateAnswer>) {
        let entry = self.entry(id).expect("a name stands for a stream that exists");
        let last_group = entry.last_group;
        let answer = entry.state.confirm(request).map(CreateStep::Done).map_err(CreateError::from);
        let renewed = if answer.is_ok() { self.renew(id) } else { Ok(0) };
        match renewed {
            Ok(group) => self.answer_after(group.max(last_group), reply, answer),
            Err(why) => self.answer(reply, Err(why.into())),
        }
    }

    fn create_anew(
        &mut self,
        request: &CreateRequest,
        resolved: Option<&ResolvedFork>,
        reply: Reply<CreateAnswer>,
    ) {
        match self.admit_creation(request, resolved) {
            Ok(creation) => {
                let id = self.next_stream_id;
                self.next_stream_id += 1;
                let creation = Box::new(creation);
                if creation.fork.is_some() {
                    self.pin_source(id, creation, reply);
                } else {
                    self.stage_new_stream(id, creation, reply);
                }
            }
            Err(error) => self.answer(reply, Err(error)),
        }
    }

    /// Everything that can be said against a creation, before anything is reserved for it.
    fn admit_creation(
        &self,
        request: &CreateRequest,
        resolved: Option<&ResolvedFork>,
    ) -> Result<Creation, CreateError> {
        let now_ms = self.shared.clock.now_ms();
        let creation = decide_create(request, resolved, now_ms, &self.limits.stream)?;
        if self.is_overloaded() {
            return Err(Unavailable::Overloaded.into());
        }
        let quotas = &self.shared.quotas;
        let payload = creation.payload.len() as u64;
        // A stream takes room even if it is empty.
        self.check_disk(payload)?;
        quotas.take_stream()?;
        if let Err(full) = quotas.take_bytes(payload) {
            quotas.release_streams(1);
            return Err(full.into());
        }
        Ok(creation)
    }

    /// Takes room for the content of an append. Without content it only closes, which must work on a full disk too.
    fn take_room(&self, payload: u64) -> Result<(), Full> {
        if payload > 0 {
            self.check_disk(payload)?;
        }
        self.shared.quotas.take_bytes(payload)
    }

    fn check_disk(&self, payload: u64) -> Result<(), Full> {
        if self.committer.is_none() {
            return Ok(());
        }
        self.shared.quotas.check_disk(self.index, payload)
    }

    /// Gives back what [`Self::admit_creation`] took.
    pub(super) fn release_creation(&self, creation: &Creation) {
        self.shared.quotas.release_streams(1);
        self.shared.quotas.release_bytes(creation.payload.len() as u64);
    }

    pub(super) fn stage_new_stream(&mut self, id: u64, creation: Box<Creation>, reply: Reply<CreateAnswer>) {
        let created = Created {
            existed: false,
            content_type: creation.content_type.clone(),
            tail: creation.fork.as_ref().map_or(0, |fork| fork.point) + creation.payload.len() as u64,
            closed: creation.closed,
        };
        self.stage_creation(id, creation);
        // With its own first bytes a fork may have more than it is to keep.
        self.trim_if_due(id, self.shared.clock.now_ms());
        self.answer_after(self.group.seq, reply, Ok(CreateStep::Done(created)));
    }

    fn pin_source(&mut self, id: u64, creation: Box<Creation>, reply: Reply<CreateAnswer>) {
        let fork = creation.fork.as_ref().expect("only forks have a source to pin");
        let (anchor, point) = (fork.anchor, fork.point);
        let pin = ForkMail::Pin { source: fork.source_ref, child: self.stream_ref(id), anchor, point };
        self.mail_shard(fork.source_ref.shard.into(), pin);
        let name = creation.name.clone();
        self.pending_forks.insert(name, PendingFork { id, creation, reply, parked: Vec::new() });
    }

    fn park(&mut self, name: &StreamName, request: Request) {
        let pending = self.pending_forks.get_mut(name).expect("only requests for a pending name are parked");
        pending.parked.push(request);
    }

    pub(super) fn append(&mut self, request: Box<AppendRequest>, reply: Reply<AppendAnswer>) {
        match self.standing(&request.name) {
            Standing::Stream(id) => self.append_to(id, &request, reply),
            Standing::Ending { group } => self.retry_after(group, Request::Append(request, reply)),
            Standing::Pending => {
                let name = request.name.clone();
                self.park(&name, Request::Append(request, reply));
            }
            Standing::Absent => self.answer(reply, Err(AppendRefusal::NotFound.into())),
        }
        self.complete_if_in_memory();
    }

    fn append_to(&mut self, id: u64, request: &AppendRequest, reply: Reply<AppendAnswer>) {
        let now_ms = self.shared.clock.now_ms();
        let entry = self.entry(id).expect("a name stands for a stream that exists");
        let last_group = entry.last_group;
        match entry.state.decide_append(request, now_ms, &self.limits.stream) {
            AppendDecision::Refuse(refusal) => self.answer_after(last_group, reply, Err(refusal.into())),
            AppendDecision::Answer(appended) => match self.renew(id) {
                Ok(group) => self.answer_after(group.max(last_group), reply, Ok(appended)),
                Err(why) => self.answer(reply, Err(why.into())),
            },
            AppendDecision::Accept(_) if self.is_overloaded() => {
                self.answer(reply, Err(Unavailable::Overloaded.into()));
            }
            AppendDecision::Accept(append) => {
                if let Err(full) = self.take_room(append.payload.len() as u64) {
                    return self.answer(reply, Err(full.into()));
                }
                let event = Event::Appended(append);
                self.stage(id, &event);
                let Event::Appended(append) = event else { unreachable!("it was made just above") };
                let entry = self.entry(id).expect("staging keeps the stream");
                let answer = accepted(&entry.state, &append);
                if entry.state.retained.is_some() {
                    self.trim_if_due(id, now_ms);
                }
                self.answer_after(self.group.seq, reply, Ok(answer));
            }
        }
    }

    pub(super) fn delete(&mut self, name: StreamName, reply: Reply<DeleteAnswer>) {
        match self.standing(&name) {
            Standing::Stream(id) => {
                let entry = self.entry(id).expect("a name stands for a stream that exists");
                if entry.state.soft_deleted {
                    let group = entry.last_group;
                    self.answer_after(group, reply, Err(LookupRefusal::Gone.into()));
                } else {
                    self.end_stream(id);
                    self.answer_after(self.group.seq, reply, Ok(()));
                }
            }
            Standing::Ending { group } => self.retry_after(group, Request::Delete(name, reply)),
            Standing::Pending => self.park(&name.clone(), Request::Delete(name, reply)),
            Standing::Absent => self.answer(reply, Err(LookupRefusal::NotFound.into())),
        }
        self.complete_if_in_memory();
    }

    /// Stages the end of a stream: for good, or, while forks need its bytes, for everybody else.
    pub(super) fn end_stream(&mut self, id: u64) {
        let pinned = self.entry(id).is_some_and(|entry| entry.state.is_pinned());
        self.stage(id, if pinned { &Event::SoftDeleted } else { &Event::Removed });
    }
}
