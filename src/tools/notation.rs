//! What the lines of an export look like: one JSON object each, in this order.
//!
//! ```text
//! {"format":"durable-streams-export","version":1}
//! {"stream":{"name":…}}       a stream, then its producers, then its content
//! {"producer":{…}}
//! {"json":[…]} or {"base64":"…"}
//! …
//! {"end":{"streams":…,"bytes":…,"checksum":"…"}}
//! ```
//!
//! `docs/tools.md` has every field. Sources come before their forks. The checksum is of all bytes before the line that has it.
//!
//! A new property of streams goes into [`StreamHeader`], [`StreamHeader::of`] and [`StreamHeader::state`], and nowhere else.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::protocol::content_type::ContentType;
use crate::protocol::lifetime::{Lifetime, parse_expires_at};
use crate::protocol::name::StreamName;
use crate::protocol::retention::Retention;
use crate::stream::event::{Creation, Payload};
use crate::stream::fork::ForkOrigin;
use crate::stream::producer::ProducerTag;
use crate::stream::retention::{Retained, RetentionSettings, Unit};
use crate::stream::state::{Closure, StreamState};

/// What the first line says.
pub(super) const FORMAT: &str = "durable-streams-export";
/// Version of the lines.
pub(super) const VERSION: u64 = 1;
/// No line is longer. Bytes, the line break included.
pub(super) const LINE_BYTES_MAX: usize = 2 << 20;
/// Content of one line. Bytes; a JSON message that is larger comes in pieces of it.
pub(super) const CONTENT_BYTES_MAX: usize = 192 << 10;
/// What a line with JSON messages begins with, to the byte: the messages follow as they are stored, parted by single
/// commas.
pub(super) const JSON_OPEN: &[u8] = b"{\"json\":[";
/// And what it ends with.
pub(super) const JSON_CLOSE: &[u8] = b"]}";

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Opening {
    pub(super) format: String,
    pub(super) version: u64,
}

/// Any line but the first, and but those with JSON messages.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub(super) enum Line {
    Stream(Box<StreamHeader>),
    Producer(Producer),
    Base64(String),
    End(End),
}

/// The last line.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct End {
    pub(super) streams: u64,
    /// Of content.
    pub(super) bytes: u64,
    /// XXH3-128 of everything before this line, 32 hexadecimal digits.
    pub(super) checksum: String,
}

/// Bytes that a client chose: as text if they are that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, untagged)]
pub(super) enum Opaque {
    Text(String),
    Bytes(OpaqueBytes),
}

/// See [`Opaque`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OpaqueBytes {
    base64: String,
}

impl Opaque {
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Bytes(OpaqueBytes { base64: to_base64(bytes) }),
        }
    }

    fn bytes(&self) -> Result<Bytes, String> {
        match self {
            Self::Text(text) => Ok(Bytes::copy_from_slice(text.as_bytes())),
            Self::Bytes(OpaqueBytes { base64 }) => from_base64(base64).map(Bytes::from),
        }
    }
}

/// One producer and its last request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Producer {
    pub(super) id: Opaque,
    pub(super) epoch: u64,
    pub(super) seq: u64,
}

impl Producer {
    pub(super) fn of(id: &[u8], epoch: u64, seq: u64) -> Self {
        Self { id: Opaque::of(id), epoch, seq }
    }

    /// Checked as the request of one is.
    pub(super) fn tag(&self) -> Result<ProducerTag, String> {
        const NUMBER_MAX: u64 = (1 << 53) - 1;
        const ID_BYTES_MAX: usize = 256;
        let id = self.id.bytes()?;
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err(format!("a producer's id has 1 to {ID_BYTES_MAX} bytes"));
        }
        if self.epoch > NUMBER_MAX || self.seq > NUMBER_MAX {
            return Err("a producer's epoch and sequence number are at most 2^53-1".to_owned());
        }
        Ok(ProducerTag { id, epoch: self.epoch, seq: self.seq })
    }
}

/// Where a fork came from. What it inherits follows from its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fork {
    pub(super) source: String,
    pub(super) anchor: u64,
    /// First position of the source that the fork's readers see.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) earliest: u64,
    pub(super) sub_offset: u64,
    pub(super) point: u64,
    pub(super) lifetime_inherited: bool,
}

/// What is kept of a stream, if that is not everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RetentionHeader {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_age_seconds: Option<Limit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_bytes: Option<Limit>,
    /// First position that the stream's readers see.
    earliest: u64,
    /// Where what goes as a whole begins, and when the newest byte of it came, in milliseconds since 1970.
    units: Vec<(u64, i64)>,
}

/// A limit of a stream's retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    limit: u64,
    /// Asked for at creation, and no default of the server.
    asked: bool,
}

impl RetentionHeader {
    fn of(retained: &Retained) -> Self {
        let &RetentionSettings { limits, age_asked, bytes_asked } = retained.settings();
        let limit = |limit: Option<u64>, asked| limit.map(|limit| Limit { limit, asked });
        Self {
            max_age_seconds: limit(limits.max_age_secs, age_asked),
            max_bytes: limit(limits.max_bytes, bytes_asked),
            earliest: retained.earliest(),
            units: retained.units().iter().map(|unit| (unit.start, unit.newest_ms)).collect(),
        }
    }

    /// Of a stream whose content from `released` to `tail` is there.
    fn retained(&self, released: u64, tail: u64) -> Option<Retained> {
        let limit = |limit: Option<Limit>| limit.map(|limit| limit.limit);
        let was_asked = |limit: Option<Limit>| limit.is_some_and(|limit| limit.asked);
        let limits =
            Retention { max_age_secs: limit(self.max_age_seconds), max_bytes: limit(self.max_bytes) };
        let settings = RetentionSettings {
            limits,
            age_asked: was_asked(self.max_age_seconds),
            bytes_asked: was_asked(self.max_bytes),
        };
        let units = self.units.iter().map(|&(start, newest_ms)| Unit { start, newest_ms }).collect();
        let is_limited = [limits.max_age_secs, limits.max_bytes].iter().flatten().all(|&limit| limit > 0);
        let positions = (self.earliest, released, tail);
        Retained::from_parts(settings, positions, units).filter(|_| is_limited && !limits.is_none())
    }
}

/// Everything about a stream but its producers and its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamHeader {
    pub(super) name: String,
    pub(super) content_type: String,
    /// Position of the first byte of content that follows.
    pub(super) start: u64,
    /// Position after the last.
    pub(super) tail: u64,
    #[serde(default, skip_serializing_if = "is_false")]
    closed: bool,
    /// The request of a producer that closed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    closed_by: Option<Producer>,
    /// Deleted or expired, and here for its forks.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) deleted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stream_seq: Option<Opaque>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// When the window of a TTL began. Milliseconds since 1970.
    renewed_at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retention: Option<RetentionHeader>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fork: Option<Fork>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

impl StreamHeader {
    /// `start` is where the content begins that is kept for the stream.
    pub(super) fn of(name: &StreamName, state: &StreamState, start: u64) -> Self {
        let (ttl_seconds, expires_at) = match &state.lifetime {
            None => (None, None),
            Some(Lifetime::Ttl { seconds }) => (Some(*seconds), None),
            Some(Lifetime::ExpiresAt(at)) => (None, Some(at.raw().to_owned())),
        };
        let closed_by = match &state.closure {
            Closure::Closed(Some(tag)) => Some(Producer::of(&tag.id, tag.epoch, tag.seq)),
            Closure::Open | Closure::Closed(None) => None,
        };
        Self {
            name: name.as_str().to_owned(),
            content_type: state.content_type.as_str().to_owned(),
            start,
            tail: state.tail,
            closed: state.closure.is_closed(),
            closed_by,
            deleted: state.soft_deleted,
            stream_seq: state.stream_seq.as_deref().map(|seq| Opaque::of(seq)),
            ttl_seconds,
            expires_at,
            renewed_at_ms: state.renewed_at_ms,
            retention: state.retained.as_deref().map(RetentionHeader::of),
            fork: state.fork.as_ref().map(|fork| Fork {
                source: fork.source.as_str().to_owned(),
                anchor: fork.anchor,
                earliest: fork.earliest,
                sub_offset: fork.sub_offset,
                point: fork.point,
                lifetime_inherited: fork.lifetime_inherited,
            }),
        }
    }

    /// The state that it says, without producers; `fork` is what its fork comes to where it is going to live.
    ///
    /// # Errors
    /// What contradicts itself, in words.
    pub(super) fn state(&self, fork: Option<Box<ForkOrigin>>) -> Result<StreamState, String> {
        let base = self.fork.as_ref().map_or(0, |fork| fork.point);
        let begins = if self.retention.is_some() { self.start >= base } else { self.start == base };
        if !begins || self.tail < self.start {
            let Self { start, tail, .. } = self;
            return Err(format!(
                "content from {start} to {tail} is not that of a stream that begins at {base}"
            ));
        }
        if self.fork.as_ref().is_some_and(|fork| fork.anchor > fork.point || fork.earliest > fork.anchor) {
            return Err("a fork begins before its anchor, or its anchor before what there is".to_owned());
        }
        let content_type =
            ContentType::parse(self.content_type.as_bytes()).map_err(|error| error.to_string())?;
        let mut state = StreamState::created(&Creation {
            name: StreamName::from_stored(&self.name),
            content_type,
            lifetime: self.lifetime()?,
            retention: None,
            fork,
            closed: false,
            payload: Payload::default(),
            at_ms: self.renewed_at_ms,
        });
        if let Some(retention) = &self.retention {
            let retained = retention.retained(self.start, self.tail);
            let retained = retained.ok_or("what is said of its retention contradicts itself")?;
            state.retained = Some(Box::new(retained));
        }
        state.tail = self.tail;
        state.soft_deleted = self.deleted;
        let seq = self.stream_seq.as_ref().map(Opaque::bytes).transpose()?;
        state.stream_seq = seq.map(|seq| Box::new(seq.as_ref().into()));
        let closed_by = self.closed_by.as_ref().map(Producer::tag).transpose()?;
        if closed_by.is_some() && !self.closed {
            return Err("a stream that is open was closed by nobody".to_owned());
        }
        if self.closed {
            state.closure = Closure::Closed(closed_by.map(Box::new));
        }
        Ok(state)
    }

    fn lifetime(&self) -> Result<Option<Lifetime>, String> {
        match (self.ttl_seconds, &self.expires_at) {
            (None, None) => Ok(None),
            (Some(seconds), None) if seconds < 1 << 53 => Ok(Some(Lifetime::Ttl { seconds })),
            (Some(_), None) => Err("a TTL is at most 2^53-1 seconds".to_owned()),
            (None, Some(at)) => parse_expires_at(at.as_bytes())
                .map(Lifetime::ExpiresAt)
                .map(Some)
                .map_err(|error| error.to_string()),
            (Some(_), Some(_)) => Err("a stream has one lifetime, not two".to_owned()),
        }
    }
}

/// Standard alphabet, padded.
pub(super) fn to_base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Reads what [`to_base64`] writes, and nothing else.
pub(super) fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| format!("not base64: {error}"))
}

/// The checksum of what has gone by.
#[derive(Default)]
pub(super) struct Checksum(Xxh3);

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checksum")
    }
}

impl Checksum {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn text(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}
