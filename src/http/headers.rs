//! Header names of the protocol, and the fixed values that go with them. Built at compile time: putting one on a
//! response copies a pointer.

use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};

pub(super) static STREAM_CLOSED: HeaderName = HeaderName::from_static("stream-closed");
pub(super) static STREAM_TTL: HeaderName = HeaderName::from_static("stream-ttl");
pub(super) static STREAM_EXPIRES_AT: HeaderName = HeaderName::from_static("stream-expires-at");
pub(super) static STREAM_SEQ: HeaderName = HeaderName::from_static("stream-seq");
pub(super) static STREAM_FORKED_FROM: HeaderName = HeaderName::from_static("stream-forked-from");
pub(super) static STREAM_FORK_OFFSET: HeaderName = HeaderName::from_static("stream-fork-offset");
pub(super) static STREAM_FORK_SUB_OFFSET: HeaderName = HeaderName::from_static("stream-fork-sub-offset");
pub(super) static STREAM_RETENTION_MAX_AGE: HeaderName = HeaderName::from_static("stream-retention-max-age");
pub(super) static STREAM_RETENTION_MAX_BYTES: HeaderName =
    HeaderName::from_static("stream-retention-max-bytes");
pub(super) static STREAM_EARLIEST_OFFSET: HeaderName = HeaderName::from_static("stream-earliest-offset");
pub(super) static STREAM_NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
pub(super) static STREAM_UP_TO_DATE: HeaderName = HeaderName::from_static("stream-up-to-date");
pub(super) static STREAM_CURSOR: HeaderName = HeaderName::from_static("stream-cursor");
pub(super) static STREAM_SSE_DATA_ENCODING: HeaderName = HeaderName::from_static("stream-sse-data-encoding");
pub(super) static PRODUCER_ID: HeaderName = HeaderName::from_static("producer-id");
pub(super) static PRODUCER_EPOCH: HeaderName = HeaderName::from_static("producer-epoch");
pub(super) static PRODUCER_SEQ: HeaderName = HeaderName::from_static("producer-seq");
pub(super) static PRODUCER_EXPECTED_SEQ: HeaderName = HeaderName::from_static("producer-expected-seq");
pub(super) static PRODUCER_RECEIVED_SEQ: HeaderName = HeaderName::from_static("producer-received-seq");
pub(super) static CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");
pub(super) static X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Request headers that may be sent once only (`protocol.md` §3: all but `Stream-Closed` and `If-None-Match`).
pub(super) static SENT_ONCE: [&HeaderName; 14] = [
    &CONTENT_TYPE,
    &CONTENT_ENCODING,
    &STREAM_TTL,
    &STREAM_EXPIRES_AT,
    &STREAM_RETENTION_MAX_AGE,
    &STREAM_RETENTION_MAX_BYTES,
    &STREAM_SEQ,
    &STREAM_FORKED_FROM,
    &STREAM_FORK_OFFSET,
    &STREAM_FORK_SUB_OFFSET,
    &PRODUCER_ID,
    &PRODUCER_EPOCH,
    &PRODUCER_SEQ,
    &axum::http::header::HOST,
];

pub(super) static TRUE: HeaderValue = HeaderValue::from_static("true");
pub(super) static NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
pub(super) static NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");
pub(super) static CLOSE: HeaderValue = HeaderValue::from_static("close");
