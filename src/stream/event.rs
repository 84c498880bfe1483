//! What happened to a stream. Storage keeps events as frames; recovery replays them through [`super::state`].

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;

use crate::protocol::content_type::ContentType;
use crate::protocol::json::JsonBody;
use crate::protocol::lifetime::Lifetime;
use crate::protocol::name::StreamName;
use crate::stream::fork::{ForkOrigin, StreamRef};
use crate::stream::producer::ProducerTag;
use crate::stream::retention::RetentionSettings;

/// Payloads of at least this size are kept as they are, so they have to be in memory of their own: a slice of something larger
/// would keep all of that in RAM. Smaller ones are copied.
pub const LARGE_PAYLOAD_BYTES: usize = 16 * 1024;

/// Content in stored form, and where some of its JSON messages begin, if that is known. Only the bytes are stored.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    bytes: Bytes,
    marks: Option<Arc<[u32]>>,
}

impl Payload {
    /// Starts of some messages within the bytes, as in [`JsonBody::marks`]; `None` = nobody has looked.
    pub fn marks(&self) -> Option<&[u32]> {
        self.marks.as_deref()
    }

    /// The same in memory of its own, so that a larger buffer is not kept for it.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), marks: self.marks.clone() }
    }
}

impl Deref for Payload {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.bytes
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, marks: None }
    }
}

impl From<&JsonBody> for Payload {
    fn from(json: &JsonBody) -> Self {
        Self { bytes: json.stored.clone(), marks: Some(json.marks.as_slice().into()) }
    }
}

/// One mutation of one stream: the unit that is stored, whole or not at all.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The stream began, with its first bytes if any.
    Created(Box<Creation>),
    /// Bytes, producer state, `Stream-Seq` and closure of one request.
    Appended(Append),
    /// The window of a sliding lifetime began anew.
    Renewed {
        /// Wall clock, milliseconds since 1970.
        at_ms: i64,
    },
    /// Deleted or expired while forks live: kept for them, gone for everybody else.
    SoftDeleted,
    /// The stream is no more.
    Removed,
    /// A fork of this stream exists, or is about to.
    Pinned {
        /// The fork.
        child: StreamRef,
    },
    /// That fork is no more.
    Unpinned {
        /// The fork.
        child: StreamRef,
    },
    /// The limits of its retention took the beginning of the stream.
    Trimmed {
        /// First position that is kept: a message boundary.
        earliest: u64,
    },
}

/// See [`Event::Created`].
#[derive(Clone, Debug, PartialEq)]
pub struct Creation {
    /// Decoded name.
    pub name: StreamName,
    /// As sent, or inherited.
    pub content_type: ContentType,
    /// Own or inherited.
    pub lifetime: Option<Lifetime>,
    /// What is kept of the stream; `None` = everything.
    pub retention: Option<RetentionSettings>,
    /// Where inherited bytes come from.
    pub fork: Option<Box<ForkOrigin>>,
    /// Created closed.
    pub closed: bool,
    /// First content.
    pub payload: Payload,
    /// Wall clock, milliseconds since 1970.
    pub at_ms: i64,
}

/// See [`Event::Appended`].
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// Content; may be empty.
    pub payload: Payload,
    /// Idempotent producer.
    pub producer: Option<ProducerTag>,
    /// `Stream-Seq`.
    pub stream_seq: Option<Bytes>,
    /// Closes the stream.
    pub close: bool,
    /// Wall clock, milliseconds since 1970.
    pub at_ms: i64,
}
