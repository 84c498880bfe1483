//! Puts a page together: from RAM at once, from disk on a blocking thread, from an ancestor's shard by asking it.
//!
//! The plan is one snapshot. What is fetched afterwards is immutable by position, so the page is of that instant. If
//! bytes turn out to be gone, the stream ended in between, and a new plan says so.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::api::{CreateError, CreateRefusal, LookupRefusal, Page, ReadError, Unavailable};
use crate::engine::handle::Engine;
use crate::engine::live::Subscription;
use crate::engine::request::{Place, PlanRequest, Region, Request, SpanRequest, Target};
use crate::protocol::content_type::ContentType;
use crate::protocol::json;
use crate::protocol::offset::RequestedOffset;
use crate::storage::{ColdReader, StorageError};
use crate::stream::command::ForkRequest;
use crate::stream::create::{ResolvedFork, decide_content_type};
use crate::stream::fork::StreamRef;

/// Plans made anew because bytes were gone.
const ATTEMPTS: usize = 4;
/// Read at once while looking for the end of a message that is larger than a page, at first.
const WINDOW_BYTES: u64 = 1 << 20;

/// Why a page could not be put together from its plan.
enum Trouble {
    /// Bytes are no longer where the plan said.
    Stale,
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
struct Draft {
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
        let bytes_max = bytes_max.max(1);
        for _ in 0..ATTEMPTS {
            let request = PlanRequest { target: target.clone(), from, bytes_max, start_checked: false };
            let plan = self.ask(shard, |reply| Request::Plan(request, reply)).await?;
            let page_end = plan.start.saturating_add(bytes_max as u64);
            let json = plan.info.content_type.is_json();
            let mut draft = Draft { data: Vec::new(), end: plan.start, page_end, json };
            match self.fill(&mut draft, plan.regions).await {
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
                Err(Trouble::Stale) => {}
                Err(Trouble::Error(error)) => return Err(error),
            }
        }
        tracing::error!("stored bytes of a stream that exists are missing");
        Err(Unavailable::ReadFailed.into())
    }

    async fn fill(&self, draft: &mut Draft, regions: Vec<Region>) -> Result<(), Trouble> {
        for region in regions {
            let end = region.to;
            match region.place {
                Place::Ancestor(ancestor) => {
                    let request = SpanRequest {
                        stream: ancestor.id,
                        from: region.from,
                        to: region.to,
                        bytes_max: usize::try_from(draft.page_end - region.from).unwrap_or(usize::MAX),
                        check_start: region.check_start,
                    };
                    let own = self.ask(ancestor.shard.into(), |reply| Request::Span(request, reply)).await?;
                    for region in own {
                        let end = region.to;
                        draft.add(region).await?;
                        if draft.end < end {
                            break;
                        }
                    }
                }
                Place::Memory(_) | Place::Disk(..) => draft.add(region).await?,
            }
            if draft.end < end {
                break;
            }
        }
        Ok(())
    }

    /// Finds out where a fork begins, which asks for `content_type`. Its source cannot change below that point
    /// afterwards.
    pub(super) async fn resolve_fork(
        &self,
        request: &ForkRequest,
        content_type: Option<&ContentType>,
    ) -> Result<ResolvedFork, CreateError> {
        let source = self.fork_source(&request.source).await?;
        let mut fork = source.fork;
        decide_content_type(content_type, Some(&fork.content_type))?;
        fork.anchor = request.anchor.unwrap_or(source.tail);
        if fork.anchor > source.tail {
            return Err(CreateRefusal::InvalidForkPoint.into());
        }
        fork.point = self.fork_point(&fork, source.tail, request).await.map_err(|error| match error {
            ReadError::InvalidOffset => CreateError::Refused(CreateRefusal::InvalidForkPoint),
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
            let page =
                self.page(shard, Target::Id(id), RequestedOffset::At(at), WINDOW_BYTES as usize).await?;
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

impl Draft {
    /// Adds what fits of a region. The end stays before the region's if not all of it fits.
    async fn add(&mut self, region: Region) -> Result<(), Trouble> {
        match region.place {
            // A message that is larger than what is left of the page.
            Place::Memory(_) if region.to > self.page_end && !self.data.is_empty() => {}
            Place::Memory(data) => {
                self.data.extend(data);
                self.end = region.to;
            }
            Place::Disk(reader, stream) => {
                let wanted = DiskRead {
                    reader,
                    stream,
                    from: region.from,
                    to: region.to,
                    page_end: self.page_end,
                    first: self.data.is_empty(),
                    json: self.json,
                    check_start: region.check_start,
                };
                let read = tokio::task::spawn_blocking(move || wanted.run()).await;
                let (data, end) = read.map_err(|_| Trouble::Error(Unavailable::ReadFailed.into()))??;
                self.data.extend(data);
                self.end = end;
            }
            Place::Ancestor(_) => {
                unreachable!("an ancestor's own bytes are in RAM or on disk: lineages are flat")
            }
        }
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
    fn run(self) -> Result<(Vec<Bytes>, u64), Trouble> {
        if self.json && self.check_start {
            self.check_start()?;
        }
        let end = self.end()?;
        let data = if end > self.from { self.reader.read(self.stream, self.from, end)? } else { Vec::new() };
        Ok((data, end))
    }

    fn check_start(&self) -> Result<(), Trouble> {
        let known = self.reader.boundary_at_or_before(self.stream, self.from)?;
        if known < self.from {
            let bytes = self.reader.read(self.stream, known, self.from)?.concat();
            if !json::is_boundary(&bytes, bytes.len()) {
                return Err(Trouble::Error(ReadError::InvalidOffset));
            }
        }
        Ok(())
    }

    /// Where the page ends within this region.
    fn end(&self) -> Result<u64, Trouble> {
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
            let bytes = self.reader.read(self.stream, self.from, to)?.concat();
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
}

impl Subscription {
    /// Makes sure that a client's offset lies between two messages where the shard could not see that at once.
    pub(super) async fn check_start(&mut self, from: RequestedOffset) -> Result<(), ReadError> {
        let StreamRef { shard, id } = self.stream();
        self.engine.page(shard.into(), Target::Id(id), from, 1).await?;
        self.confirm();
        Ok(())
    }
}
