//! Live reads: topics, batches and subscriptions.
//!
//! A *topic* is one stream as seen by the live readers of one core. The owning shard sends it *news* after each commit:
//! the new tail, and the new bytes. Everything in it is a position, so news and snapshots may arrive in any order
//! without losing or doubling a byte. A reader holds a position and nothing else; one that falls behind what the topic
//! still has reads from storage, like any catch-up reader.

mod topic;

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

pub use self::topic::LiveBatch;
use self::topic::Next;
pub(crate) use self::topic::{Ended, Topic, TopicNews};
use crate::engine::api::{LookupRefusal, Page, ReadError, StreamInfo};
use crate::engine::fan_out::Place;
use crate::engine::handle::{Engine, StopOnDrop};
use crate::engine::request::{Attachment, Subscribed, Target};
use crate::protocol::offset::RequestedOffset;
use crate::stream::fork::StreamRef;

/// What happens next on a stream that is read live.
#[derive(Clone, Debug)]
pub enum LiveEvent {
    /// Bytes.
    Data(Arc<LiveBatch>),
    /// The stream is closed and everything up to its tail has been delivered.
    Closed {
        /// Final tail in stored bytes.
        tail: u64,
    },
    /// Deleted or expired, and gone.
    Removed,
    /// Deleted or expired, but kept for its forks.
    SoftDeleted,
}

/// A live read of one stream: a position, and a share of the topic that wakes it. Dropping it ends the read.
#[derive(Debug)]
pub struct Subscription {
    info: StreamInfo,
    reader: LiveReader,
}

impl Subscription {
    pub(crate) fn new(engine: Engine, subscribed: Subscribed, from: RequestedOffset) -> Self {
        let Subscribed { info, position, check_start: _, attachment } = subscribed;
        let reader = LiveReader {
            running: engine.into_running(),
            attachment,
            waits_for: WaitsFor::News(None),
            tail_at_start: info.tail,
            position,
            held: 0,
            closed_at_start: info.closed,
            at_start: from == RequestedOffset::Start,
        };
        Self { info, reader }
    }

    /// The reader, for the engine.
    pub(super) fn reader_mut(&mut self) -> &mut LiveReader {
        &mut self.reader
    }

    /// The stream when the subscription began.
    pub fn info(&self) -> &StreamInfo {
        &self.info
    }

    /// Parts with what was said about the stream: a reader that waits for long does without it.
    pub fn into_reader(self) -> LiveReader {
        self.reader
    }

    /// See [`LiveReader::position`].
    pub fn position(&self) -> u64 {
        self.reader.position()
    }

    /// See [`LiveReader::hold_back`].
    pub fn hold_back(&mut self, bytes: usize) {
        self.reader.hold_back(bytes);
    }

    /// See [`LiveReader::next`].
    pub async fn next(&mut self, max_bytes: usize) -> Result<LiveEvent, ReadError> {
        self.reader.next(max_bytes).await
    }

    /// See [`LiveReader::next_page`].
    pub async fn next_page(
        &mut self,
        max_bytes: usize,
        give_up: impl Future<Output = ()>,
    ) -> Result<Option<LiveEvent>, ReadError> {
        self.reader.next_page(max_bytes, give_up).await
    }
}

/// A [`Subscription`] without the description of its stream. There may be very many, so it is kept small.
pub struct LiveReader {
    /// As much of an [`Engine`] as the topic does not have.
    running: Arc<StopOnDrop>,
    attachment: Attachment,
    waits_for: WaitsFor,
    tail_at_start: u64,
    position: u64,
    held: u32,
    closed_at_start: bool,
    /// Asked for from the start, and nothing was delivered yet: if retention takes the start meanwhile, it is the next
    /// position that is kept.
    at_start: bool,
}

/// What a reader waits for.
enum WaitsFor {
    /// For its topic, with its place among those who do.
    News(Option<Place>),
    /// For a page from storage.
    Page(Fetch),
}

/// In a box of its own, since most readers never need one.
type Fetch = Pin<Box<dyn Future<Output = Result<Page, ReadError>> + Send>>;

impl fmt::Debug for LiveReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stream = self.stream();
        f.debug_struct("LiveReader")
            .field("stream", &stream)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl LiveReader {
    /// The position that was asked for is one of the stream's.
    pub(super) fn confirm(&mut self) {
        self.attachment.confirm();
    }

    /// The incarnation that is read.
    pub(super) fn stream(&self) -> StreamRef {
        self.topic().stream()
    }

    pub(super) fn engine(&self) -> Engine {
        Engine::of(Arc::clone(&self.running))
    }

    /// Next byte to deliver.
    pub fn position(&self) -> u64 {
        self.position - self.held()
    }

    fn held(&self) -> u64 {
        u64::from(self.held)
    }

    /// Takes the last `bytes` delivered bytes back: the next batch begins with them, but comes only when there is more
    /// (or when the stream is closed). At most 4 GiB less one byte.
    pub fn hold_back(&mut self, bytes: usize) {
        let held = u64::try_from(bytes).unwrap_or(u64::MAX).min(self.position);
        self.held = u32::try_from(held).unwrap_or(u32::MAX);
    }

    /// Waits for what comes next; at once if there is data after the position, or if the stream is closed or gone.
    /// `max_bytes` bounds a batch (a larger JSON message comes alone, as does what one commit brought). Cancel-safe.
    /// What comes from disk counts against `limits.max_read_buffer_bytes` until the batch is dropped, so drop it first.
    /// The first batch may be empty, at the tail: retention took everything that was there when the subscription began.
    /// [`ReadError::OffsetGone`] if it took what was to come next.
    pub async fn next(&mut self, max_bytes: usize) -> Result<LiveEvent, ReadError> {
        poll_fn(|cx| self.poll_next(cx, max_bytes)).await
    }

    /// As [`Self::next`], with two differences, for an answer that is one page (`protocol.md` §12 and §13): what one
    /// commit brought is cut as well; and `give_up` ends the wait with `None`. Nothing else than waiting: data that are
    /// there are fetched, however long that takes.
    pub async fn next_page(
        &mut self,
        max_bytes: usize,
        give_up: impl Future<Output = ()>,
    ) -> Result<Option<LiveEvent>, ReadError> {
        let mut give_up = std::pin::pin!(give_up);
        loop {
            let event = poll_fn(|cx| match self.poll_next(cx, max_bytes) {
                Poll::Ready(event) => Poll::Ready(event.map(Some)),
                Poll::Pending if self.is_fetching() => Poll::Pending,
                Poll::Pending => give_up.as_mut().poll(cx).map(|()| Ok(None)),
            });
            match event.await? {
                Some(LiveEvent::Data(batch)) if batch.end - batch.start > max_bytes as u64 => {
                    self.position = batch.start;
                    // It may have come from disk itself, and then holds room that the page asks for.
                    drop(batch);
                    let mut fetch = self.fetch(max_bytes);
                    let page = poll_fn(|cx| fetch.as_mut().poll(cx)).await;
                    return self.take_page(page).map(Some);
                }
                Some(LiveEvent::Data(batch)) if batch.start == batch.end => {}
                event => return Ok(event),
            }
        }
    }

    /// As [`Self::next`]. Bounds may differ from call to call; one that is smaller may not hold for the next batch yet.
    pub fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        max_bytes: usize,
    ) -> Poll<Result<LiveEvent, ReadError>> {
        if !self.is_fetching() {
            match self.look(cx, max_bytes) {
                Next::Batch(batch) => return Poll::Ready(Ok(self.take(batch))),
                Next::Closed { tail } => return Poll::Ready(Ok(LiveEvent::Closed { tail })),
                Next::Ended(Ended::Removed) => return Poll::Ready(Ok(LiveEvent::Removed)),
                Next::Ended(Ended::SoftDeleted) => return Poll::Ready(Ok(LiveEvent::SoftDeleted)),
                Next::Nothing => return Poll::Pending,
                Next::Behind => {
                    let fetch = self.fetch(max_bytes);
                    self.wait_for(WaitsFor::Page(fetch));
                }
            }
        }
        let WaitsFor::Page(fetch) = &mut self.waits_for else {
            unreachable!("it was begun just now, if it had not been");
        };
        let page = ready!(fetch.as_mut().poll(cx));
        self.wait_for(WaitsFor::News(None));
        Poll::Ready(self.take_page(page))
    }

    fn is_fetching(&self) -> bool {
        matches!(self.waits_for, WaitsFor::Page(_))
    }

    /// Has it wait for something else than before, where nobody has to look for it any more.
    fn wait_for(&mut self, what: WaitsFor) {
        if let WaitsFor::News(Some(place)) = std::mem::replace(&mut self.waits_for, what) {
            self.topic().locked().waiting.leave(place);
        }
    }

    fn topic(&self) -> &Topic {
        self.attachment.topic()
    }

    /// What there is next; whoever finds nothing is woken when that changes.
    fn look(&mut self, cx: &Context<'_>, max_bytes: usize) -> Next {
        if self.position < self.tail_at_start {
            // What was there at the start is not news, and the topic may never hear of it.
            return Next::Behind;
        }
        let topic = self.attachment.topic();
        let mut state = topic.locked();
        let next = state.next(self.position, u64::from(self.held), max_bytes);
        if !matches!(next, Next::Nothing) {
            return next;
        }
        if self.closed_at_start && self.position == self.tail_at_start && self.held == 0 {
            return Next::Closed { tail: self.tail_at_start };
        }
        // Under the lock under which it looked, so that no news come in between.
        if let WaitsFor::News(place) = &mut self.waits_for {
            *place = Some(state.waiting.enter(*place, cx));
        }
        Next::Nothing
    }

    fn take(&mut self, batch: Arc<LiveBatch>) -> LiveEvent {
        self.position = batch.end;
        self.held = 0;
        self.at_start = false;
        LiveEvent::Data(batch)
    }

    /// Reads the next page from storage.
    fn fetch(&self, bytes_max: usize) -> Fetch {
        let from = match self.at_start {
            true => RequestedOffset::Start,
            false => RequestedOffset::At(self.position()),
        };
        let StreamRef { shard, id } = self.stream();
        let engine = self.engine();
        Box::pin(async move { engine.page(shard.into(), Target::Id(id), from, bytes_max).await })
    }

    fn take_page(&mut self, page: Result<Page, ReadError>) -> Result<LiveEvent, ReadError> {
        let page = match page {
            Ok(page) => page,
            Err(ReadError::Refused(LookupRefusal::NotFound)) => return Ok(LiveEvent::Removed),
            Err(ReadError::Refused(LookupRefusal::Gone)) => return Ok(LiveEvent::SoftDeleted),
            Err(error) => return Err(error),
        };
        let up_to_date = page.up_to_date();
        let closed = up_to_date && page.info.closed;
        if closed && page.start == page.end {
            // Retention took everything that was to be read.
            (self.position, self.held, self.at_start) = (page.end, 0, false);
            return Ok(LiveEvent::Closed { tail: page.end });
        }
        Ok(self.take(LiveBatch::new(page.start, page.end, page.data, up_to_date, closed)))
    }
}

impl Drop for LiveReader {
    fn drop(&mut self) {
        self.wait_for(WaitsFor::News(None));
    }
}
