//! What happened to a stream. Storage keeps events as frames; recovery replays them through [`super::state`].

use bytes::Bytes;

use crate::protocol::content_type::ContentType;
use crate::protocol::lifetime::Lifetime;
use crate::protocol::name::StreamName;
use crate::stream::fork::{ForkOrigin, StreamRef};
use crate::stream::producer::ProducerTag;

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
    /// Where inherited bytes come from.
    pub fork: Option<Box<ForkOrigin>>,
    /// Created closed.
    pub closed: bool,
    /// First content, in stored form.
    pub payload: Bytes,
    /// Wall clock, milliseconds since 1970.
    pub at_ms: i64,
}

/// See [`Event::Appended`].
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// Content in stored form; may be empty.
    pub payload: Bytes,
    /// Idempotent producer.
    pub producer: Option<ProducerTag>,
    /// `Stream-Seq`.
    pub stream_seq: Option<Bytes>,
    /// Closes the stream.
    pub close: bool,
    /// Wall clock, milliseconds since 1970.
    pub at_ms: i64,
}
