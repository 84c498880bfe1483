//! Why the state of a stream refuses an operation. No status codes here: `http::problem` maps each to one.

use crate::protocol::json::JsonError;

/// Why an append (or close) is refused by the stream's state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendRefusal {
    /// No such stream.
    #[error("the stream does not exist")]
    NotFound,
    /// Deleted, but kept for its forks.
    #[error("the stream is deleted")]
    Gone,
    /// Closed for good; carries its final tail.
    #[error("the stream is closed at {tail}")]
    Closed {
        /// Final tail, in stored bytes.
        tail: u64,
    },
    /// The body's media type is not the stream's.
    #[error("the content type differs from the stream's, which is {stored}")]
    ContentTypeMismatch {
        /// Content type of the stream, as stored.
        stored: String,
    },
    /// The producer's epoch is older than the known one.
    #[error("the producer's epoch is stale; the current one is {current}")]
    StaleEpoch {
        /// Known epoch.
        current: u64,
    },
    /// A new epoch has to start at sequence number 0.
    #[error("a new producer epoch starts at sequence number 0")]
    NewEpochNotAtZero,
    /// A sequence number was skipped.
    #[error("the producer's next sequence number is {expected}, not {received}")]
    SequenceGap {
        /// Next acceptable sequence number.
        expected: u64,
        /// The one sent.
        received: u64,
    },
    /// The body is not one JSON value.
    #[error("{0}")]
    InvalidJson(JsonError),
    /// The body is `[]`.
    #[error("an empty JSON array appends nothing")]
    EmptyArray,
    /// `Stream-Seq` is not greater than the last one.
    #[error("Stream-Seq is not greater than the last accepted one")]
    StreamSeqConflict,
    /// The stream would exceed its size limit.
    #[error("the stream would exceed its limit of {limit} bytes")]
    StreamTooLarge {
        /// Limit in stored bytes.
        limit: u64,
    },
    /// The stream has as many producers as it may have.
    #[error("the stream has its limit of {limit} producers")]
    ProducerLimit {
        /// Limit.
        limit: usize,
    },
}

/// Why a creation is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreateRefusal {
    /// The name is taken by a stream with another configuration.
    #[error("the stream exists with another configuration")]
    AlreadyExists,
    /// The name is held by a deleted stream that still has forks.
    #[error("the name is held by a deleted stream that has forks")]
    PathBlocked,
    /// The fork source does not exist.
    #[error("the fork source does not exist")]
    SourceNotFound,
    /// The fork source is deleted, but kept for its forks.
    #[error("the fork source is deleted")]
    SourceDeleted,
    /// The fork's content type is not its source's.
    #[error("the content type differs from the fork source's, which is {stored}")]
    ContentTypeMismatch {
        /// Content type of the source, as stored.
        stored: String,
    },
    /// Fork offset or sub-offset lies beyond the source's tail or inside a JSON message.
    #[error("the fork point is not a position of the source")]
    InvalidForkPoint,
    /// The fork's anchor lies before what is kept of the source.
    #[error("the source does not keep the fork offset any more; its earliest one is {earliest}")]
    AnchorGone {
        /// First position that is kept, in stored bytes.
        earliest: u64,
    },
    /// The body is not one JSON value.
    #[error("{0}")]
    InvalidJson(JsonError),
    /// The stream would exceed its size limit.
    #[error("the stream would exceed its limit of {limit} bytes")]
    StreamTooLarge {
        /// Limit in stored bytes.
        limit: u64,
    },
}

/// Why a stream cannot be looked at or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LookupRefusal {
    /// No such stream.
    #[error("the stream does not exist")]
    NotFound,
    /// Deleted, but kept for its forks.
    #[error("the stream is deleted")]
    Gone,
}
