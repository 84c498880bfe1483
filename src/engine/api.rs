//! What the engine offers to the layer above it: requests, answers, errors, and the [`Storage`] trait that joins them.
//!
//! Errors come from three places and keep them apart. A *refusal* is the stream's own state saying no; it is final and
//! nothing was stored. *Full* is a quota. *Unavailable* is the engine: for a mutation its outcome is unknown, and the
//! client may try again. Which status code each one becomes is decided in `http::problem` alone.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

pub use crate::engine::live::{LiveBatch, LiveEvent, LiveReader, Subscription};
use crate::protocol::content_type::ContentType;
use crate::protocol::lifetime::Lifetime;
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;
pub use crate::protocol::retention::Retention;
pub use crate::stream::command::{
    AppendRequest, Appended, Body, CreateRequest, Created, ForkAnchor, ForkRequest,
};
pub use crate::stream::event::LARGE_PAYLOAD_BYTES;
pub use crate::stream::producer::ProducerTag;
pub use crate::stream::refusal::{AppendRefusal, CreateRefusal, LookupRefusal};

/// Future returned by [`Storage`]'s methods: boxed, so that the trait can be used behind `Arc<dyn Storage>`.
pub type StorageFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A store of streams: the operations of the protocol, without HTTP.
///
/// Every method may be called from any task on any tokio runtime. Mutations resolve when their effect is durable in
/// the store's mode; reads see durable state only. Dropping a future abandons the answer, not the operation.
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// Creates a stream, or confirms that one with the same configuration exists.
    fn create(&self, request: CreateRequest) -> StorageFuture<'_, Result<Created, CreateError>>;
    /// Appends, closes, or both in one step.
    fn append(&self, request: AppendRequest) -> StorageFuture<'_, Result<Appended, AppendError>>;
    /// Deletes a stream. With live forks it is kept for them, but answers as gone.
    fn delete(&self, name: StreamName) -> StorageFuture<'_, Result<(), LookupError>>;
    /// Describes a stream; never renews a lifetime.
    fn head(&self, name: StreamName) -> StorageFuture<'_, Result<StreamInfo, LookupError>>;
    /// Reads one page.
    fn read(&self, request: ReadRequest) -> StorageFuture<'_, Result<Page, ReadError>>;
    /// Starts a live read: everything from `from` on, each byte once, then whatever comes.
    fn subscribe(
        &self,
        name: StreamName,
        from: RequestedOffset,
    ) -> StorageFuture<'_, Result<Subscription, ReadError>>;
    /// Whether every shard takes writes.
    fn health(&self) -> Health;
    /// Stops taking writes and returns when everything accepted is durable and all files are closed.
    fn shutdown(&self) -> StorageFuture<'_, ()>;
}

/// A stream at one instant.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    /// Differs between two streams that had the same name at different times; never reused.
    pub incarnation: u128,
    /// As stored.
    pub content_type: ContentType,
    /// Effective lifetime, inherited or own.
    pub lifetime: Option<Lifetime>,
    /// Milliseconds left of the lifetime at this instant, or of a TTL's whole window; `None` = no lifetime.
    pub remaining_ms: Option<u64>,
    /// What is kept of it: as asked for, or by default.
    pub retention: Retention,
    /// First position that is kept, durably: 0, or what retention has left. Stored bytes.
    pub earliest: u64,
    /// Durable tail in stored bytes.
    pub tail: u64,
    /// Closed, durably.
    pub closed: bool,
}

/// See [`Storage::read`].
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// Stream to read.
    pub name: StreamName,
    /// Where to start.
    pub from: RequestedOffset,
    /// Page limit in stored bytes; a JSON message larger than it comes alone.
    pub max_bytes: usize,
}

/// One page of a stream, all of one snapshot.
#[derive(Clone, Debug)]
pub struct Page {
    /// The stream at this instant.
    pub info: StreamInfo,
    /// Resolved start in stored bytes.
    pub start: u64,
    /// End in stored bytes.
    pub end: u64,
    /// Stored bytes `start..end`, in order. JSON messages each end with a comma.
    pub data: Vec<Bytes>,
}

impl Page {
    /// The page ends at the tail of its snapshot.
    pub fn up_to_date(&self) -> bool {
        self.end == self.info.tail
    }
}

/// A quota is used up. Nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Full {
    /// `limits.max_memory_bytes`
    #[error("the server's memory limit is reached")]
    Memory,
    /// `limits.max_disk_bytes`
    #[error("the server's disk limit is reached")]
    Disk,
    /// `storage.min_free_disk_bytes`
    #[error("the server's disk is almost full, and what is left is kept for what frees room")]
    FileSystem,
    /// `limits.max_streams`
    #[error("the server's limit on streams is reached")]
    Streams,
}

/// The engine cannot answer now. The outcome of a mutation is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// Too much is waiting to become durable.
    #[error("the shard's queue is full")]
    Overloaded,
    /// The group that carried the request could not be committed.
    #[error("the commit failed")]
    CommitFailed,
    /// The shard is being reopened after a failed commit.
    #[error("the shard is recovering")]
    Recovering,
    /// The store is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// `limits.max_read_buffer_bytes`: pages that were read from disk wait for clients to take them.
    #[error("too much that was read from disk waits for clients to take it")]
    ReadBufferFull,
    /// Stored bytes could not be read.
    #[error("the data could not be read")]
    ReadFailed,
}

/// See [`Storage::create`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// See [`CreateRefusal`].
    #[error(transparent)]
    Refused(#[from] CreateRefusal),
    /// See [`Full`].
    #[error(transparent)]
    Full(#[from] Full),
    /// See [`Unavailable`].
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// See [`Storage::append`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// See [`AppendRefusal`].
    #[error(transparent)]
    Refused(#[from] AppendRefusal),
    /// See [`Full`].
    #[error(transparent)]
    Full(#[from] Full),
    /// See [`Unavailable`].
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// See [`Storage::delete`] and [`Storage::head`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// See [`LookupRefusal`].
    #[error(transparent)]
    Refused(#[from] LookupRefusal),
    /// See [`Unavailable`].
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// See [`Storage::read`] and [`Storage::subscribe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// See [`LookupRefusal`].
    #[error(transparent)]
    Refused(#[from] LookupRefusal),
    /// Beyond the tail, or inside a JSON message.
    #[error("the offset is not a position of this stream")]
    InvalidOffset,
    /// Before what retention has left.
    #[error("the stream does not keep this offset any more; its earliest one is {earliest}")]
    OffsetGone {
        /// First position that is kept, in stored bytes.
        earliest: u64,
    },
    /// See [`Unavailable`].
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Whether the store takes writes, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// One line for each shard that is not ready. Empty = ready.
    pub waiting_for: Vec<String>,
}

impl Health {
    /// Every shard takes writes.
    pub fn is_ready(&self) -> bool {
        self.waiting_for.is_empty()
    }
}

impl<S: Storage + ?Sized> Storage for Arc<S> {
    fn create(&self, request: CreateRequest) -> StorageFuture<'_, Result<Created, CreateError>> {
        (**self).create(request)
    }
    fn append(&self, request: AppendRequest) -> StorageFuture<'_, Result<Appended, AppendError>> {
        (**self).append(request)
    }
    fn delete(&self, name: StreamName) -> StorageFuture<'_, Result<(), LookupError>> {
        (**self).delete(name)
    }
    fn head(&self, name: StreamName) -> StorageFuture<'_, Result<StreamInfo, LookupError>> {
        (**self).head(name)
    }
    fn read(&self, request: ReadRequest) -> StorageFuture<'_, Result<Page, ReadError>> {
        (**self).read(request)
    }
    fn subscribe(
        &self,
        name: StreamName,
        from: RequestedOffset,
    ) -> StorageFuture<'_, Result<Subscription, ReadError>> {
        (**self).subscribe(name, from)
    }
    fn health(&self) -> Health {
        (**self).health()
    }
    fn shutdown(&self) -> StorageFuture<'_, ()> {
        (**self).shutdown()
    }
}
