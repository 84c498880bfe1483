//! What a stream is asked to do, and what it answers when it does.

use bytes::Bytes;

use crate::protocol::content_type::ContentType;
use crate::protocol::json::{JsonBody, JsonError};
use crate::protocol::lifetime::Lifetime;
use crate::protocol::name::StreamName;
use crate::protocol::retention::Retention;
use crate::stream::producer::ProducerTag;

/// A request body in the forms that the stream's content type may ask for.
#[derive(Clone, Debug, Default)]
pub struct Body {
    /// The bytes as sent. Empty = no body. From
    /// [`LARGE_PAYLOAD_BYTES`](crate::stream::event::LARGE_PAYLOAD_BYTES) on in memory of their own.
    pub raw: Bytes,
    /// The body as JSON messages. Filled in whenever the request's content type is JSON, and for a fork with a body
    /// and no content type, whose mode only the source knows. An invalid body is carried on because the stream's
    /// state may refuse the request for a better reason.
    pub json: Option<Result<JsonBody, JsonError>>,
}

/// See [`create`](crate::engine::api::Storage::create).
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// Stream to create.
    pub name: StreamName,
    /// `None` = `application/octet-stream`, or the fork source's.
    pub content_type: Option<ContentType>,
    /// `None` = lives until deleted, or as the fork source.
    pub lifetime: Option<Lifetime>,
    /// What to keep of it. A limit that is `None` is the configured default. Never inherited by forks.
    pub retention: Retention,
    /// Create it closed.
    pub closed: bool,
    /// First append; may be empty.
    pub body: Body,
    /// Inherit the beginning of another stream.
    pub fork: Option<ForkRequest>,
}

/// The fork headers of a creation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkRequest {
    /// Stream to inherit from.
    pub source: StreamName,
    /// Where the fork begins, before the sub-offset is added.
    pub anchor: ForkAnchor,
    /// Bytes (JSON: messages) after the anchor. Absent counts as 0.
    pub sub_offset: u64,
}

/// See [`ForkRequest::anchor`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForkAnchor {
    /// The source's tail as readers see it.
    #[default]
    Tail,
    /// The source's first position: 0, or the earliest one that is kept.
    Start,
    /// A position in the source, in stored bytes.
    At(u64),
}

/// A stream exists as asked for.
#[derive(Clone, Debug)]
pub struct Created {
    /// It existed already and nothing changed (200 instead of 201).
    pub existed: bool,
    /// As stored.
    pub content_type: ContentType,
    /// Tail in stored bytes, after the body.
    pub tail: u64,
    /// Closed now.
    pub closed: bool,
}

/// See [`append`](crate::engine::api::Storage::append). An empty body is only valid together with `close`.
#[derive(Clone, Debug)]
pub struct AppendRequest {
    /// Stream to append to.
    pub name: StreamName,
    /// Required with a body, ignored without.
    pub content_type: Option<ContentType>,
    /// What to append.
    pub body: Body,
    /// Close the stream in the same step.
    pub close: bool,
    /// `Stream-Seq`.
    pub stream_seq: Option<Bytes>,
    /// The three producer headers.
    pub producer: Option<ProducerTag>,
}

/// An append was accepted, or was a duplicate of one that had been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Tail in stored bytes.
    pub tail: u64,
    /// Closed now.
    pub closed: bool,
    /// Nothing was stored: a duplicate, or a repeated close.
    pub duplicate: bool,
    /// Epoch and last accepted sequence number of the request's producer.
    pub producer: Option<(u64, u64)>,
}
