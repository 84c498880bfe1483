//! What readers see: descriptions, read plans, subscriptions. All of durable state, each answer of one instant.

use std::sync::Arc;

use crate::engine::api::{LookupError, LookupRefusal, ReadError, StreamInfo};
use crate::engine::live::Topic;
use crate::engine::request::{
    Attachment, HeadAnswer, Origin, Place, PlanAnswer, PlanRequest, ReadPlan, Region, Reply, SpanAnswer,
    SpanRequest, SubscribeAnswer, Subscribed, Target,
};
use crate::engine::shard::entry::Durable;
use crate::engine::shard::{Audience, Shard, Subscribers};
use crate::protocol::lifetime::Lifetime;
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;

impl Shard {
    pub(super) fn head(&mut self, name: &StreamName, reply: Reply<HeadAnswer>) {
        let answer = self.readable(name).map(|id| self.info(id)).map_err(LookupError::from);
        self.answer(reply, answer);
    }

    pub(super) fn plan(&mut self, request: PlanRequest, reply: Reply<PlanAnswer>) {
        match self.plan_page(&request) {
            Ok((plan, rests_on)) => self.answer_after(rests_on, reply, Ok(plan)),
            Err(error) => self.answer(reply, Err(error)),
        }
    }

    /// The plan, and the group that its answer rests on.
    fn plan_page(&mut self, request: &PlanRequest) -> Result<(ReadPlan, u64), ReadError> {
        let id = match &request.target {
            Target::Name(name) => self.readable(name)?,
            Target::Id(id) => self.readable_id(*id)?,
        };
        let start = self.resolve(id, request.from)?;
        let check_start = !request.start_checked && matches!(request.from, RequestedOffset::At(_));
        let regions = self.regions(id, start, request.bytes_max, check_start)?;
        let mut plan = ReadPlan { info: self.info(id), start, renewal_waits: false, regions };
        let mut rests_on = 0;
        if matches!(request.target, Target::Name(_)) {
            if plan.regions.first().is_some_and(|region| region.check_start) {
                plan.renewal_waits = matches!(plan.info.lifetime, Some(Lifetime::Ttl { .. }));
            } else {
                rests_on = self.renew(id)?;
            }
        }
        Ok((plan, rests_on))
    }

    /// Bytes of this stream for a fork; the pin guarantees that they are there.
    pub(super) fn span(&mut self, request: SpanRequest, reply: Reply<SpanAnswer>) {
        let SpanRequest { stream, from, to, bytes_max, check_start } = request;
        let answer = match self.entry(stream) {
            Some(entry) if entry.durable.released <= from && to <= entry.durable.tail => {
                self.own_regions(stream, from, to, bytes_max, check_start)
            }
            _ => Err(LookupRefusal::NotFound.into()),
        };
        self.answer(reply, answer);
    }

    pub(super) fn subscribe(
        &mut self,
        name: &StreamName,
        from: RequestedOffset,
        reply: Reply<SubscribeAnswer>,
    ) {
        match self.register_reader(name, from, reply.origin) {
            Ok((subscribed, rests_on)) => self.answer_after(rests_on, reply, Ok(subscribed)),
            Err(error) => self.answer(reply, Err(error)),
        }
    }

    /// The reader's place, and the group that the answer rests on.
    fn register_reader(
        &mut self,
        name: &StreamName,
        from: RequestedOffset,
        origin: Origin,
    ) -> Result<(Subscribed, u64), ReadError> {
        let id = self.readable(name)?;
        let position = self.resolve(id, from)?;
        // Only the start is looked at: a page of nothing.
        let probe = self.regions(id, position, 1, matches!(from, RequestedOffset::At(_)))?;
        let check_start = probe.first().is_some_and(|region| region.check_start);
        // A reader renews the window by being there, and when it leaves.
        let rests_on = if check_start { 0 } else { self.renew(id)? };
        let info = self.info(id);
        let stream = self.stream_ref(id);
        let subscribers = self.subscribers.entry(id).or_insert_with(|| Subscribers {
            announced: info.tail,
            closed: info.closed,
            topics: Vec::new(),
            in_doubt: 0,
        });
        subscribers.in_doubt += usize::from(check_start);
        let topic = match subscribers.topics.iter_mut().find(|audience| audience.origin == origin) {
            Some(audience) => {
                audience.readers += 1;
                audience.topic.clone()
            }
            None => {
                let Subscribers { announced, closed, .. } = *subscribers;
                let topic = Topic::new(Arc::clone(&self.shared), stream, announced, closed, origin);
                subscribers.topics.push(Audience { origin, readers: 1, topic: topic.clone() });
                topic
            }
        };
        if !check_start {
            self.hold_open(id);
        }
        let attachment = Attachment::new(topic, check_start);
        Ok((Subscribed { info, position, check_start, attachment }, rests_on))
    }

    /// The position of a live reader was in doubt, and turned out to be one of the stream's.
    pub(crate) fn confirm_reader(&mut self, id: u64) {
        if let Some(subscribers) = self.subscribers.get_mut(&id) {
            subscribers.in_doubt -= 1;
            // Nobody is told anything by this.
            let _ = self.renew(id);
            self.hold_open(id);
        }
    }

    /// A live reader left, and a sliding lifetime starts anew.
    pub(crate) fn detach(&mut self, id: u64, origin: Origin, in_doubt: bool) {
        if !self.subscribers.contains_key(&id) {
            return;
        }
        if !in_doubt {
            // With each one and not only with the last: those who are left may all turn out to be refused.
            // Nobody is told anything by this.
            let _ = self.renew(id);
        }
        let Some(subscribers) = self.subscribers.get_mut(&id) else { return };
        subscribers.in_doubt -= usize::from(in_doubt);
        if let Some(at) = subscribers.topics.iter().position(|audience| audience.origin == origin) {
            subscribers.topics[at].readers -= 1;
            if subscribers.topics[at].readers == 0 {
                subscribers.topics.swap_remove(at);
            }
        }
        if subscribers.topics.is_empty() {
            self.subscribers.remove(&id);
            self.changed.remove(&id);
        }
    }

    fn info(&self, id: u64) -> StreamInfo {
        let entry = self.entry(id).expect("only streams that exist are described");
        entry.info(self.stream_ref(id), self.shared.clock.now_ms())
    }

    /// The stream that readers see under this name.
    fn readable(&mut self, name: &StreamName) -> Result<u64, LookupRefusal> {
        let id = self.names.get(name, &self.streams).ok_or(LookupRefusal::NotFound)?;
        self.readable_id(id)?;
        Ok(id)
    }

    fn readable_id(&mut self, id: u64) -> Result<u64, LookupRefusal> {
        let now_ms = self.shared.clock.now_ms();
        let has_readers = self.has_live_readers(id);
        let entry = self.entry(id).filter(|entry| entry.durable.exists).ok_or(LookupRefusal::NotFound)?;
        if entry.durable.soft_deleted {
            return Err(LookupRefusal::Gone);
        }
        if entry.state.is_past_deadline(now_ms, has_readers) {
            // Time has passed for everybody, whether or not the end is staged or durable yet.
            let refusal = if entry.state.is_pinned() { LookupRefusal::Gone } else { LookupRefusal::NotFound };
            self.end_if_expired(id, now_ms);
            self.complete_if_in_memory();
            return Err(refusal);
        }
        Ok(id)
    }

    fn resolve(&self, id: u64, from: RequestedOffset) -> Result<u64, ReadError> {
        let Durable { earliest, tail, .. } =
            self.entry(id).expect("only streams that exist are read").durable;
        match from {
            RequestedOffset::Start => Ok(earliest),
            RequestedOffset::Now => Ok(tail),
            RequestedOffset::At(position) if position < earliest => Err(ReadError::OffsetGone { earliest }),
            RequestedOffset::At(position) if position <= tail => Ok(position),
            RequestedOffset::At(_) => Err(ReadError::InvalidOffset),
        }
    }

    /// Where the bytes from `start` on are: enough for a page, or up to the tail.
    fn regions(
        &self,
        id: u64,
        start: u64,
        bytes_max: usize,
        check_start: bool,
    ) -> Result<Vec<Region>, ReadError> {
        let entry = self.entry(id).expect("only streams that exist are read");
        let check_start = check_start && entry.state.content_type.is_json();
        let page_end = start.saturating_add(bytes_max as u64);
        let mut regions = Vec::new();
        let mut at = start;
        let lineage = entry.state.fork.iter().flat_map(|fork| &fork.lineage);
        for ancestor in lineage.filter(|ancestor| start < ancestor.end) {
            if at < page_end {
                let check_start = check_start && at == start;
                let place = Place::Ancestor(ancestor.stream);
                regions.push(Region { from: at, to: ancestor.end, check_start, place });
            }
            at = ancestor.end;
        }
        if at < entry.durable.tail && (at < page_end || regions.is_empty()) {
            let left = usize::try_from(page_end - at).unwrap_or(usize::MAX);
            let check_start = check_start && at == start;
            regions.extend(self.own_regions(id, at, entry.durable.tail, left, check_start)?);
        }
        Ok(regions)
    }

    /// The same for what this stream stores itself.
    fn own_regions(
        &self,
        id: u64,
        from: u64,
        to: u64,
        bytes_max: usize,
        check_start: bool,
    ) -> Result<Vec<Region>, ReadError> {
        let entry = self.entry(id).expect("only streams that exist are read");
        let page_end = from.saturating_add(bytes_max as u64);
        let recent_start = entry.recent.start();
        let mut regions = Vec::new();
        if from < recent_start {
            let reader = self.reader.clone().expect("what is not in RAM is on disk");
            let check_start = check_start && from > entry.state.base();
            let place = Place::Disk(reader, id);
            regions.push(Region { from, to: to.min(recent_start), check_start, place });
            if page_end <= recent_start || to <= recent_start {
                return Ok(regions);
            }
        }
        let recent_from = from.max(recent_start);
        if check_start && recent_from == from && !entry.recent.is_boundary(from) {
            return Err(ReadError::InvalidOffset);
        }
        let recent_to = entry.recent.page_end(recent_from, to.min(page_end));
        if recent_from == from || recent_to <= page_end {
            let place = Place::Memory(entry.recent.slice(recent_from, recent_to));
            regions.push(Region { from: recent_from, to: recent_to, check_start: false, place });
        }
        Ok(regions)
    }
}
