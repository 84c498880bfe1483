//! What travels between cores: requests to shards, answers to the tasks that wait for them, news for topics.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::engine::api::{
    AppendError, AppendRequest, Appended, CreateError, CreateRequest, Created, LookupError, ReadError,
    StreamInfo, Unavailable,
};
use crate::engine::live::{Topic, TopicNews};
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;
use crate::storage::ColdReader;
use crate::storage::backup::Ticket;
use crate::storage::committer::Completion;
use crate::stream::create::ResolvedFork;
use crate::stream::event::Creation;
use crate::stream::fork::StreamRef;

/// One item of a core's mailbox.
pub(crate) enum Mail {
    /// For the core's shard.
    Request(Request),
    /// From another shard, about forks.
    Fork(ForkMail),
    /// Answers for tasks of this core, and news for its topics, in the order in which they came about.
    Parcels(Vec<Parcel>),
    /// From the shard's commit thread.
    Completion(Completion),
    /// A live reader of this shard's stream is one after all: see [`Attachment::in_doubt`].
    Confirmed { stream: u64 },
    /// A live reader of this shard's stream left, or was none: then it was not there for the stream's lifetime.
    Detach { stream: u64, origin: Origin, in_doubt: bool },
    /// Something to be run on the core's thread.
    Run(Box<dyn FnOnce() + Send>),
    /// Take part in a backup.
    Snapshot(Ticket),
    /// Finish what is accepted, close the files, end the core.
    Stop(Option<oneshot::Sender<()>>),
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request(_) => "Request",
            Self::Fork(_) => "Fork",
            Self::Parcels(_) => "Parcels",
            Self::Completion(_) => "Completion",
            Self::Confirmed { .. } => "Confirmed",
            Self::Detach { .. } => "Detach",
            Self::Run(_) => "Run",
            Self::Snapshot(_) => "Snapshot",
            Self::Stop(_) => "Stop",
        })
    }
}

/// Where a task that waits runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// On one of the engine's own cores.
    Core(usize),
    /// On somebody else's runtime.
    Foreign,
}

/// Where an answer goes.
#[derive(Debug)]
pub(crate) struct Reply<T> {
    pub(crate) sender: oneshot::Sender<T>,
    pub(crate) origin: Origin,
}

/// Something on its way to a core: an answer with its receiver, or news with its topic.
#[derive(Debug)]
pub(crate) enum Parcel {
    Create(oneshot::Sender<CreateAnswer>, CreateAnswer),
    Source(oneshot::Sender<SourceAnswer>, SourceAnswer),
    Append(oneshot::Sender<AppendAnswer>, AppendAnswer),
    Delete(oneshot::Sender<DeleteAnswer>, DeleteAnswer),
    Head(oneshot::Sender<HeadAnswer>, HeadAnswer),
    Plan(oneshot::Sender<PlanAnswer>, PlanAnswer),
    Span(oneshot::Sender<SpanAnswer>, SpanAnswer),
    Subscribe(oneshot::Sender<SubscribeAnswer>, SubscribeAnswer),
    News(Arc<Topic>, TopicNews),
}

impl Parcel {
    /// Hands it over. To be called on the thread of the waiting task where possible: the wake then costs no system
    /// call.
    pub(crate) fn deliver(self) {
        // A receiver that is gone abandoned the answer; there is nobody to tell.
        match self {
            Self::Create(to, answer) => drop(to.send(answer)),
            Self::Source(to, answer) => drop(to.send(answer)),
            Self::Append(to, answer) => drop(to.send(answer)),
            Self::Delete(to, answer) => drop(to.send(answer)),
            Self::Head(to, answer) => drop(to.send(answer)),
            Self::Plan(to, answer) => drop(to.send(answer)),
            Self::Span(to, answer) => drop(to.send(answer)),
            Self::Subscribe(to, answer) => drop(to.send(answer)),
            Self::News(topic, news) => topic.announce(news),
        }
    }

    /// The same answer turned into bad news.
    pub(crate) fn fail(self, why: Unavailable) -> Self {
        match self {
            Self::Create(to, _) => Self::Create(to, Err(why.into())),
            Self::Source(to, _) => Self::Source(to, Err(why.into())),
            Self::Append(to, _) => Self::Append(to, Err(why.into())),
            Self::Delete(to, _) => Self::Delete(to, Err(why.into())),
            Self::Head(to, _) => Self::Head(to, Err(why.into())),
            Self::Plan(to, _) => Self::Plan(to, Err(why.into())),
            Self::Span(to, _) => Self::Span(to, Err(why.into())),
            Self::Subscribe(to, _) => Self::Subscribe(to, Err(why.into())),
            Self::News(..) => self,
        }
    }
}

/// An answer that can be put into a [`Parcel`], and whose operation can fail for the engine's reasons.
pub(crate) trait Answer: Sized {
    fn pack(to: oneshot::Sender<Self>, answer: Self) -> Parcel;
    fn unavailable(why: Unavailable) -> Self;
}

macro_rules! answers {
    ($($answer:ident => $variant:ident),* $(,)?) => {$(
        impl Answer for $answer {
            fn pack(to: oneshot::Sender<Self>, answer: Self) -> Parcel {
                Parcel::$variant(to, answer)
            }
            fn unavailable(why: Unavailable) -> Self {
                Err(why.into())
            }
        }
    )*};
}

answers! {
    CreateAnswer => Create,
    SourceAnswer => Source,
    AppendAnswer => Append,
    DeleteAnswer => Delete,
    HeadAnswer => Head,
    PlanAnswer => Plan,
    SpanAnswer => Span,
    SubscribeAnswer => Subscribe,
}

pub(crate) type CreateAnswer = Result<CreateStep, CreateError>;
pub(crate) type SourceAnswer = Result<ForkSource, CreateError>;
pub(crate) type AppendAnswer = Result<Appended, AppendError>;
pub(crate) type DeleteAnswer = Result<(), LookupError>;
pub(crate) type HeadAnswer = Result<StreamInfo, LookupError>;
pub(crate) type PlanAnswer = Result<ReadPlan, ReadError>;
pub(crate) type SpanAnswer = Result<Vec<Region>, ReadError>;
pub(crate) type SubscribeAnswer = Result<Subscribed, ReadError>;

/// A request to the shard that owns the stream.
#[derive(Debug)]
pub(crate) enum Request {
    Create(Box<CreateRequest>, Option<Box<ResolvedFork>>, Reply<CreateAnswer>),
    /// What a stream offers as a fork source.
    Source(SourceRequest, Reply<SourceAnswer>),
    Append(Box<AppendRequest>, Reply<AppendAnswer>),
    Delete(StreamName, Reply<DeleteAnswer>),
    Head(StreamName, Reply<HeadAnswer>),
    Plan(PlanRequest, Reply<PlanAnswer>),
    Span(SpanRequest, Reply<SpanAnswer>),
    Subscribe(StreamName, RequestedOffset, Reply<SubscribeAnswer>),
}

impl Request {
    /// Answers any kind of request with the same bad news.
    pub(crate) fn refuse(self, why: Unavailable) -> (Origin, Parcel) {
        fn pack<T: Answer>(reply: Reply<T>, why: Unavailable) -> (Origin, Parcel) {
            (reply.origin, T::pack(reply.sender, T::unavailable(why)))
        }
        match self {
            Self::Create(_, _, reply) => pack(reply, why),
            Self::Source(_, reply) => pack(reply, why),
            Self::Append(_, reply) => pack(reply, why),
            Self::Delete(_, reply) => pack(reply, why),
            Self::Head(_, reply) => pack(reply, why),
            Self::Plan(_, reply) => pack(reply, why),
            Self::Span(_, reply) => pack(reply, why),
            Self::Subscribe(_, _, reply) => pack(reply, why),
        }
    }
}

/// How far a creation got.
#[derive(Debug)]
pub(crate) enum CreateStep {
    /// It exists.
    Done(Created),
    /// The name is free and the request names a fork source: say what it offers, and ask again.
    NeedsSource,
    /// The source is no longer what was said of it.
    SourceChanged,
}

/// Asks what a stream offers as a fork source.
#[derive(Debug)]
pub(crate) struct SourceRequest {
    pub(crate) name: StreamName,
    /// The stream was cut too early when it was asked before: it is to wait with that for a while.
    pub(crate) hold: bool,
}

/// What a stream offers as a fork source.
#[derive(Debug)]
pub(crate) struct ForkSource {
    /// Everything but the fork point, which is set to the tail.
    pub(crate) fork: ResolvedFork,
    /// Tail as readers see it.
    pub(crate) tail: u64,
}

/// Which stream to read.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Whatever has this name. Counts as a read for its lifetime.
    Name(StreamName),
    /// This incarnation only, on behalf of a live reader, which keeps the stream alive by itself.
    Id(u64),
}

#[derive(Clone, Debug)]
pub(crate) struct PlanRequest {
    pub(crate) target: Target,
    pub(crate) from: RequestedOffset,
    pub(crate) bytes_max: usize,
    /// `from` is known to lie between two messages.
    pub(crate) start_checked: bool,
}

/// A page, except for the bytes that this shard does not have in RAM.
#[derive(Debug)]
pub(crate) struct ReadPlan {
    pub(crate) info: StreamInfo,
    pub(crate) start: u64,
    /// The read counts for a lifetime, but only if its start turns out to lie between two messages.
    pub(crate) renewal_waits: bool,
    /// Contiguous from `start` on; together at least the page, if there is that much.
    pub(crate) regions: Vec<Region>,
}

/// Bytes of one stream, for a fork that inherits them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpanRequest {
    pub(crate) stream: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) bytes_max: usize,
    /// `from` came from a client.
    pub(crate) check_start: bool,
}

/// Contiguous stored bytes that come from one place.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// `from` came from a client and nobody has yet seen that it lies between two messages.
    pub(crate) check_start: bool,
    pub(crate) place: Place,
}

#[derive(Debug)]
pub(crate) enum Place {
    /// In RAM: here they are.
    Memory(Vec<Bytes>),
    /// On this shard's disk.
    Disk(Arc<dyn ColdReader>, u64),
    /// With an ancestor.
    Ancestor(StreamRef),
}

/// A live reader is registered.
#[derive(Debug)]
pub(crate) struct Subscribed {
    pub(crate) info: StreamInfo,
    pub(crate) position: u64,
    /// See [`Region::check_start`].
    pub(crate) check_start: bool,
    pub(crate) attachment: Attachment,
}

/// A live reader's place with its stream. Dropping it gives the place up, wherever that happens: an answer that nobody
/// waits for any more is dropped on its way, and a reader counted for ever would keep its stream alive for ever.
#[derive(Debug)]
pub(crate) struct Attachment {
    topic: Arc<Topic>,
    /// Whether the stream has the position that the reader asked for is still to be seen. As long as it is, nothing is
    /// lost for the reader, but it does not renew a lifetime.
    in_doubt: bool,
}

impl Attachment {
    pub(crate) fn new(topic: Arc<Topic>, in_doubt: bool) -> Self {
        Self { topic, in_doubt }
    }

    /// What it reads.
    pub(crate) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The reader's position is one of the stream's.
    pub(crate) fn confirm(&mut self) {
        if std::mem::take(&mut self.in_doubt) {
            self.topic.post(Mail::Confirmed { stream: self.topic.stream().id });
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let Self { topic, in_doubt } = self;
        let (stream, origin) = (topic.stream().id, topic.origin());
        topic.post(Mail::Detach { stream, origin, in_doubt: *in_doubt });
    }
}

/// Between the shard of a fork and the shard of its source. The pin is durable before the fork is.
#[derive(Debug)]
pub(crate) enum ForkMail {
    /// To the source: keep for `child` what is there of the bytes below `point`, which is at or behind `anchor`.
    Pin { source: StreamRef, child: StreamRef, anchor: u64, point: u64 },
    /// To the child: the pin is durable, and keeps what comes from `earliest` on.
    Pinned { child: u64, earliest: u64 },
    /// To the child: the source is not what was said of it, or its shard failed.
    NotPinned { child: u64, why: NotPinned },
    /// To the source: the child is no more.
    Unpin { source: StreamRef, child: StreamRef },
    /// To the child, after a restart: is this pin still needed? Answered by `Unpin` if not.
    Check { source: StreamRef, child: StreamRef },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum NotPinned {
    SourceChanged,
    Unavailable(Unavailable),
}

/// A fork that waits for its pin.
#[derive(Debug)]
pub(crate) struct PendingFork {
    pub(crate) id: u64,
    pub(crate) creation: Box<Creation>,
    pub(crate) reply: Reply<CreateAnswer>,
    /// Mutations of the same name that came meanwhile.
    pub(crate) parked: Vec<Request>,
}
