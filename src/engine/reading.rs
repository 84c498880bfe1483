//! Puts a page together: from RAM at once, from disk on a blocking thread, from an ancestor's shard by asking it.
//!
//! The plan is one snapshot. What is fetched afterwards is immutable by position, so the page is of that instant. If
//! bytes turn out to be gone, the stream ended in between, and a new plan says so.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::engine::api::{CreateError, CreateRefusal, LookupRefusal, Page, ReadError, Unavailable};
use crate::engine::handle::Engine;
use crate::engine::live::LiveReader;
use crate::engine::read_budget::{self, Blocks, ReadBudget, Room};
use crate::engine::request::{Place, PlanRequest, Region, Request, SourceRequest, SpanRequest, Target};
use crate::protocol::content_type::ContentType;
use crate::protocol::json;
use crate::protocol::offset::RequestedOffset;
use crate::storage::{ColdReader, ReadTarget, StorageError};
use crate::stream::command::{ForkAnchor, ForkRequest};
use crate::stream::create::{ResolvedFork, decide_content_type};
use crate::stream::fork::StreamRef;

/// Plans made anew because bytes were gone.
const ATTEMPTS: usize = 4;
/// Read at first, at least, to find the end of a message that is larger than a page.
const WINDOW_BYTES: u64 = 64 * 1024;
/// Read at once while a fork point is looked for.
const FORK_PAGE_BYTES: usize = 1 << 20;

/// Why a page could not be put together from its plan.
enum Trouble {
    /// Bytes are no longer where the plan said.
    Stale,
    /// There is no room for it now. There may be for a smaller one.
    Crowded,
    /// It takes room for this many bytes to go on.
    MoreRoom(u64),
    Error(ReadError),
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Refused(LookupRefusal::NotFound | LookupRefusal::Gone) => Self::Stale,
            error => Self::Error(error),
        }
    }
}

impl From<StorageError> for Trouble {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Missing => Self::Stale,
            StorageError::Reopening(_) => Self::Error(Unavailable::Recovering.into()),
            error => {
                tracing::error!(%error, "stored bytes could not be read");
                Self::Error(Unavailable::ReadFailed.into())
            }
        }
    }
}

/// A page while it grows.
struct Draft<'a> {
    budget: &'a ReadBudget,
    /// For all that is going to be read from disk, or copied.
    room: Option<Room>,
    /// Bytes that all regions together seemed to need.
    foreseen: u64,
    /// It waits for room.
    waits: bool,
    /// What is in RAM is shared with it, and not copied.
    shares: bool,
    /// When waiting for room ends, once that has begun.
    patience_ends: Option<Instant>,
    data: Vec<Bytes>,
    end: u64,
    page_end: u64,
    json: bool,
}

impl Engine {
    /// One page of a stream: at most `bytes_max` bytes, or one message that is larger.
    pub(super) async fn page(
        &self,
        shard: usize,
        target: Target,
        from: RequestedOffset,
        bytes_max: usize,
    ) -> Result<Page, ReadError> {
        // A page is never empty while there is data.
        let mut bytes_max = self.shared.reads.page_bytes(bytes_max.max(1));
        let mut smaller = self.shared.reads.smaller_page(bytes_max);
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            let request = PlanRequest { target: target.clone(), from, bytes_max, start_checked: false };
            let plan = self.ask(shard, |reply| Request::Plan(request, reply)).await?;
            let page_end = plan.start.saturating_add(bytes_max as u64);
            let json = plan.info.content_type.is_json();
            let regions = self.own_regions(plan.regions, page_end).await;
            let mut draft = Draft::new(&self.shared.reads, plan.start, page_end, json, smaller.is_none());
            let filled = match regions {
                Ok(regions) => draft.fill(regions).await,
                Err(error) => Err(error.into()),
            };
            match filled {
                Ok(()) => {
                    if plan.renewal_waits {
                        // The page is of the first plan; the second one says that it was no mistake to ask for it.
                        let request = PlanRequest { target, from, bytes_max: 1, start_checked: true };
                        let renewed = self.ask(shard, |reply| Request::Plan(request, reply)).await;
                        if let Err(error @ ReadError::Unavailable(_)) = renewed {
                            return Err(error);
                        }
                    }
                    let Draft { data, end, .. } = draft;
                    return Ok(Page { info: plan.info, start: plan.start, end, data });
                }
                Err(Trouble::Stale) => attempts += 1,
                Err(Trouble::Crowded) => {
                    bytes_max = smaller.expect("who may get less asks for less, all others wait");
                    smaller = self.shared.reads.smaller_page(bytes_max);
                }
                Err(Trouble::Error(error)) => return Err(error),
                Err(Trouble::MoreRoom(_)) => unreachable!("a draft that needs more room takes it"),
            }
        }
        tracing::error!("stored bytes of a stream that exists are missing");
        Err(Unavailable::ReadFailed.into())
    }

    /// The same regions, with what an ancestor's shard says of it in place of each that is an ancestor's. All are asked
    /// before anything is read: whoever has taken room for what it reads must not wait for others.
    async fn own_regions(&self, regions: Vec<Region>, page_end: u64) -> Result<Vec<Region>, ReadError> {
        if !regions.iter().any(|region| matches!(region.place, Place::Ancestor(_))) {
            return Ok(regions);
        }
        let mut own = Vec::with_capacity(regions.len() + 1);
        for region in regions {
            let Place::Ancestor(ancestor) = region.place else {
                own.push(region);
                continue;
            };
            let request = SpanRequest {
                stream: ancestor.id,
                from: region.from,
                to: region.to,
                bytes_max: usize::try_from(page_end - region.from).unwrap_or(usize::MAX),
                check_start: region.check_start,
            };
            own.extend(self.ask(ancestor.shard.into(), |reply| Request::Span(request, reply)).await?);
            // It gives less than it was asked for if the page ends there.
            if own.last().is_none_or(|last| last.to < region.to) {
                break;
            }
        }
        Ok(own)
    }

    /// Finds out where a fork begins, which asks for `content_type`. Its source cannot change below that point
    /// afterwards, but it can be cut; so if it has been asked `again`, it is asked to wait with that.
    pub(super) async fn resolve_fork(
        &self,
        request: &ForkRequest,
        content_type: Option<&ContentType>,
        again: bool,
    ) -> Result<ResolvedFork, CreateError> {
        for attempt in 1..ATTEMPTS {
            match self.try_resolve_fork(request, content_type, again || attempt > 1).await {
                // The source was cut after it said where it begins.
                Err(CreateError::Refused(CreateRefusal::AnchorGone { .. }))
                    if request.anchor == ForkAnchor::Start => {}
                outcome => return outcome,
            }
        }
        self.try_resolve_fork(request, content_type, true).await
    }

    async fn try_resolve_fork(
        &self,
        request: &ForkRequest,
        content_type: Option<&ContentType>,
        hold: bool,
    ) -> Result<ResolvedFork, CreateError> {
        let source = self.fork_source(SourceRequest { name: request.source.clone(), hold }).await?;
        let mut fork = source.fork;
        decide_content_type(content_type, Some(&fork.content_type))?;
        fork.anchor = match request.anchor {
            ForkAnchor::Tail => source.tail,
            ForkAnchor::Start => fork.earliest,
            ForkAnchor::At(position) => position,
        };
        if fork.anchor < fork.earliest {
            return Err(CreateRefusal::AnchorGone { earliest: fork.earliest }.into());
        }
        if fork.anchor > source.tail {
            return Err(CreateRefusal::InvalidForkPoint.into());
        }
        fork.point = self.fork_point(&fork, source.tail, request).await.map_err(|error| match error {
            ReadError::InvalidOffset => CreateError::Refused(CreateRefusal::InvalidForkPoint),
            ReadError::OffsetGone { earliest } => {
                CreateError::Refused(CreateRefusal::AnchorGone { earliest })
            }
            ReadError::Refused(_) => CreateError::Refused(CreateRefusal::SourceNotFound),
            ReadError::Unavailable(why) => CreateError::Unavailable(why),
        })?;
        Ok(fork)
    }

    async fn fork_point(
        &self,
        fork: &ResolvedFork,
        tail: u64,
        request: &ForkRequest,
    ) -> Result<u64, ReadError> {
        let (shard, id) = (fork.source.shard.into(), fork.source.id);
        if !fork.content_type.is_json() {
            let point = fork.anchor.checked_add(request.sub_offset).filter(|&point| point <= tail);
            return point.ok_or(ReadError::InvalidOffset);
        }
        let mut at = fork.anchor;
        let mut left = request.sub_offset;
        if left == 0 && at < tail {
            // Nothing to skip, but the anchor has to lie between two messages.
            self.page(shard, Target::Id(id), RequestedOffset::At(at), 1).await?;
        }
        while left > 0 {
            let page = self.page(shard, Target::Id(id), RequestedOffset::At(at), FORK_PAGE_BYTES).await?;
            let (bytes, messages) = json::skip_messages(&page.data.concat(), left);
            if messages == 0 {
                return Err(ReadError::InvalidOffset);
            }
            at += bytes as u64;
            left -= messages;
        }
        if at > tail {
            return Err(ReadError::InvalidOffset);
        }
        Ok(at)
    }
}

impl<'a> Draft<'a> {
    fn new(budget: &'a ReadBudget, start: u64, page_end: u64, json: bool, waits: bool) -> Self {
        Self {
            waits,
            shares: budget.shares(),
            budget,
            room: None,
            foreseen: 0,
            patience_ends: None,
            data: Vec::new(),
            end: start,
            page_end,
            json,
        }
    }

    /// Puts the page together. No region is an ancestor's: lineages are flat, and ancestors were asked.
    async fn fill(&mut self, regions: Vec<Region>) -> Result<(), Trouble> {
        let copied = regions.iter().map(|region| self.bytes_to_copy(region)).sum();
        let from_disk: u64 = regions.iter().map(|region| self.bytes_from_disk(region)).sum();
        self.foreseen = from_disk + ReadBudget::copy_bytes(copied);
        if self.foreseen > 0 {
            // Others may have taken room since the size of the page was chosen.
            let is_fair = self.waits || self.foreseen <= self.budget.page_bytes(self.page_bytes()) as u64;
            self.room = if is_fair { self.budget.try_take(self.foreseen) } else { None };
            match self.room {
                Some(_) => {}
                None if self.waits => self.take_room(self.foreseen).await?,
                None => return Err(Trouble::Crowded),
            }
        }
        for region in regions {
            let region_end = region.to;
            self.add(region).await?;
            if self.end < region_end {
                break;
            }
        }
        // What was taken and not needed.
        self.room = None;
        Ok(())
    }

    fn page_bytes(&self) -> usize {
        usize::try_from(self.page_end - self.end).unwrap_or(usize::MAX)
    }

    /// What reading a region takes, unless a message turns out to be larger than a page.
    fn bytes_from_disk(&self, region: &Region) -> u64 {
        if !matches!(region.place, Place::Disk(..)) {
            return 0;
        }
        let bytes = region.to.min(self.page_end).saturating_sub(region.from);
        let is_first = self.data.is_empty() && region.from == self.end;
        if self.json && is_first { bytes.max(WINDOW_BYTES) } else { bytes }
    }

    fn bytes_to_copy(&self, region: &Region) -> u64 {
        if self.shares || !matches!(region.place, Place::Memory(_)) {
            return 0;
        }
        region.to - region.from
    }

    async fn take_room(&mut self, bytes: u64) -> Result<(), Trouble> {
        // Given back first: holding some while waiting for more is how everybody would wait for everybody.
        self.room = None;
        let deadline = *self.patience_ends.get_or_insert_with(|| Instant::now() + read_budget::WAIT);
        let room = self.budget.take(bytes, deadline).await;
        self.room = Some(room.map_err(|full| Trouble::Error(full.into()))?);
        Ok(())
    }

    /// Adds what fits of a region. The end stays before the region's if not all of it fits.
    async fn add(&mut self, region: Region) -> Result<(), Trouble> {
        match region.place {
            // A message that is larger than what is left of the page.
            Place::Memory(_) if region.to > self.page_end && !self.data.is_empty() => {}
            Place::Memory(data) if self.shares => {
                self.data.extend(data);
                self.end = region.to;
            }
            Place::Memory(data) => {
                match &mut self.room {
                    Some(room) => {
                        let mut blocks = Blocks::with_capacity(region.to - region.from);
                        data.iter().for_each(|piece| blocks.push(piece));
                        self.data.extend(room.hold(blocks));
                    }
                    None => self.data.push(data.concat().into()),
                }
                self.end = region.to;
            }
            Place::Disk(ref reader, stream) => {
                let mut room_bytes = self.bytes_from_disk(&region);
                let wanted = Arc::new(DiskRead {
                    reader: reader.clone(),
                    stream,
                    from: region.from,
                    to: region.to,
                    page_end: self.page_end,
                    first: self.data.is_empty(),
                    json: self.json,
                    check_start: region.check_start,
                });
                loop {
                    match self.read(&wanted, room_bytes).await {
                        Err(Trouble::MoreRoom(bytes)) => {
                            assert!(
                                self.data.is_empty(),
                                "only a page's first message may take more than foreseen"
                            );
                            self.take_room(bytes.max(self.foreseen)).await?;
                            room_bytes = bytes;
                        }
                        outcome => return outcome,
                    }
                }
            }
            Place::Ancestor(_) => unreachable!("ancestors were asked before"),
        }
        Ok(())
    }

    async fn read(&mut self, wanted: &Arc<DiskRead>, room_bytes: u64) -> Result<(), Trouble> {
        let mut room = self.room.take().expect("room is taken for every region that is on disk");
        let blocks = Blocks::with_capacity(room_bytes);
        let turn = self.budget.turn().await;
        let wanted = wanted.clone();
        // Room and turn go along: reading goes on even if nobody waits for it any more.
        let reading = tokio::task::spawn_blocking(move || {
            let outcome = wanted.run(blocks, room_bytes);
            (turn, outcome.map(|(blocks, end)| (room.hold(blocks), end, room)))
        });
        let (turn, outcome) = reading.await.map_err(|_| Trouble::Error(Unavailable::ReadFailed.into()))?;
        // Only now, so that the next read finds a thread that is free again.
        drop(turn);
        let (data, end, room) = outcome?;
        self.data.extend(data);
        self.end = end;
        self.room = Some(room);
        Ok(())
    }
}

/// What is to be read from disk, on a blocking thread.
struct DiskRead {
    reader: Arc<dyn ColdReader>,
    stream: u64,
    from: u64,
    to: u64,
    page_end: u64,
    /// Nothing stands before it on the page, so it has to give at least one message.
    first: bool,
    json: bool,
    check_start: bool,
}

impl DiskRead {
    /// Fills `blocks` and says where they end. Has no more than `room_bytes` in hand at any time.
    fn run(&self, mut blocks: Blocks, room_bytes: u64) -> Result<(Blocks, u64), Trouble> {
        if self.json && self.check_start {
            self.check_start(room_bytes)?;
        }
        let end = self.end(room_bytes)?;
        if end > self.from {
            self.reader.read_into(self.stream, self.from, end, &mut blocks)?;
        }
        Ok((blocks, end))
    }

    fn check_start(&self, room_bytes: u64) -> Result<(), Trouble> {
        let known = self.reader.boundary_at_or_before(self.stream, self.from)?;
        if known < self.from {
            let bytes = self.piece(known, self.from, room_bytes)?;
            if !json::is_boundary(&bytes, bytes.len()) {
                return Err(Trouble::Error(ReadError::InvalidOffset));
            }
        }
        Ok(())
    }

    /// Where the page ends within this region.
    fn end(&self, room_bytes: u64) -> Result<u64, Trouble> {
        if self.to <= self.page_end {
            return Ok(self.to);
        }
        if !self.json {
            return Ok(self.page_end);
        }
        let known = self.reader.boundary_at_or_before(self.stream, self.page_end)?;
        if known > self.from || !self.first {
            return Ok(known.max(self.from));
        }
        // The page is smaller than the distance of known boundaries: look for one.
        let mut window = WINDOW_BYTES.max(self.page_end - self.from);
        loop {
            let to = self.to.min(self.from + window);
            let bytes = self.piece(self.from, to, room_bytes)?;
            let floor = json::floor_boundary(&bytes, (self.page_end - self.from) as usize);
            if floor > 0 {
                return Ok(self.from + floor as u64);
            }
            if let Some(message) = json::first_message_len(&bytes) {
                return Ok(self.from + message as u64);
            }
            if to == self.to {
                return Err(StorageError::Corrupt(
                    "a JSON stream's content does not end with a message".into(),
                )
                .into());
            }
            window *= 2;
        }
    }

    /// Bytes to look at, in one piece.
    fn piece(&self, from: u64, to: u64, room_bytes: u64) -> Result<Vec<u8>, Trouble> {
        if to - from > room_bytes {
            return Err(Trouble::MoreRoom(to - from));
        }
        let mut bytes = Vec::with_capacity((to - from) as usize);
        self.reader.read(self.stream, from, to, &mut |piece| bytes.extend_from_slice(piece))?;
        Ok(bytes)
    }
}

impl LiveReader {
    /// Makes sure that a client's offset lies between two messages where the shard could not see that at once.
    pub(super) async fn check_start(&mut self, from: RequestedOffset) -> Result<(), ReadError> {
        let StreamRef { shard, id } = self.stream();
        self.engine().page(shard.into(), Target::Id(id), from, 1).await?;
        self.confirm();
        Ok(())
    }
}
