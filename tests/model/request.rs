//! Requests in the model's own terms, and their translation into the store's.

use std::fmt;

use bytes::Bytes;
use durable_streams_server::engine::api::{
    AppendRequest, Body as StoreBody, CreateRequest, ForkAnchor, ForkRequest, ProducerTag, Retention,
};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::json;
use durable_streams_server::protocol::lifetime::{ExpiresAt, Lifetime};
use durable_streams_server::protocol::name::StreamName;

use crate::model::{Tag, is_json};

const DEPTH_MAX: usize = 16;

#[derive(Clone, Debug)]
pub(crate) struct Create {
    pub(crate) name: u8,
    pub(crate) content_type: Option<String>,
    pub(crate) life: Option<Life>,
    pub(crate) retention: Retention,
    pub(crate) closed: bool,
    pub(crate) body: Body,
    pub(crate) fork: Option<Fork>,
}

#[derive(Clone, Debug)]
pub(crate) struct Fork {
    pub(crate) source: u8,
    pub(crate) anchor: ForkAnchor,
    pub(crate) skip: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Append {
    pub(crate) name: u8,
    pub(crate) content_type: String,
    pub(crate) body: Body,
    pub(crate) close: bool,
    pub(crate) seq: Option<Vec<u8>>,
    pub(crate) producer: Option<Tag>,
}

#[derive(Clone, Debug)]
pub(crate) enum Life {
    /// Seconds.
    Ttl(u64),
    At {
        ms: i64,
        spelling: &'static str,
    },
}

impl PartialEq for Life {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ttl(a), Self::Ttl(b)) => a == b,
            (Self::At { ms: a, .. }, Self::At { ms: b, .. }) => a == b,
            _ => false,
        }
    }
}

/// What a request carries: opaque bytes, or a JSON text.
#[derive(Clone)]
pub(crate) enum Body {
    Bytes(Vec<u8>),
    /// The text, and the messages in it.
    Json(Vec<u8>, Vec<Vec<u8>>),
    BadJson(Vec<u8>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Json(text, messages) => write!(f, "{} messages in {} bytes", messages.len(), text.len()),
            Self::BadJson(_) => f.write_str("bad JSON"),
        }
    }
}

impl Body {
    fn raw(&self) -> &[u8] {
        match self {
            Self::Bytes(raw) | Self::Json(raw, _) | Self::BadJson(raw) => raw,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.raw().is_empty()
    }

    /// What a stream of this type stores of it, message by message.
    pub(crate) fn stored(&self, content_type: &str) -> Result<Vec<Vec<u8>>, String> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        if !is_json(content_type) {
            return Ok(vec![self.raw().to_vec()]);
        }
        match self {
            Self::Json(_, messages) if messages.is_empty() => Err("EMPTY_ARRAY".into()),
            Self::Json(_, messages) => {
                Ok(messages.iter().map(|message| [message, &b","[..]].concat()).collect())
            }
            Self::Bytes(_) | Self::BadJson(_) => Err("INVALID_JSON".into()),
        }
    }

    fn for_store(&self, parse: bool) -> StoreBody {
        let raw = Bytes::copy_from_slice(self.raw());
        let json = (parse && !raw.is_empty()).then(|| json::parse_body(&raw, DEPTH_MAX));
        StoreBody { raw, json }
    }
}

pub(crate) fn stream_name(name: u8) -> StreamName {
    StreamName::from_stored(&format!("stream/{name}"))
}

fn content_type(text: &str) -> ContentType {
    ContentType::parse(text.as_bytes()).expect("the test's content types are well-formed")
}

impl Life {
    fn for_store(&self) -> Lifetime {
        match self {
            Self::Ttl(seconds) => Lifetime::Ttl { seconds: *seconds },
            Self::At { ms, spelling } => {
                let nanos = u32::try_from(ms.rem_euclid(1000)).expect("a remainder is small") * 1_000_000;
                Lifetime::ExpiresAt(ExpiresAt::from_parts(*spelling, ms.div_euclid(1000), nanos))
            }
        }
    }
}

impl Create {
    pub(crate) fn for_store(&self) -> CreateRequest {
        // As the layer above does: a body is parsed where it may be needed as JSON.
        let parse = match &self.content_type {
            Some(own) => is_json(own),
            None => self.fork.is_some(),
        };
        CreateRequest {
            name: stream_name(self.name),
            content_type: self.content_type.as_deref().map(content_type),
            lifetime: self.life.as_ref().map(Life::for_store),
            retention: self.retention,
            closed: self.closed,
            body: self.body.for_store(parse),
            fork: self.fork.as_ref().map(|fork| ForkRequest {
                source: stream_name(fork.source),
                anchor: fork.anchor,
                sub_offset: fork.skip,
            }),
        }
    }
}

impl Append {
    pub(crate) fn for_store(&self) -> AppendRequest {
        AppendRequest {
            name: stream_name(self.name),
            content_type: Some(content_type(&self.content_type)),
            body: self.body.for_store(is_json(&self.content_type)),
            close: self.close,
            stream_seq: self.seq.clone().map(Bytes::from),
            producer: self.producer.map(|(id, epoch, seq)| ProducerTag {
                id: Bytes::from(format!("producer-{id}")),
                epoch,
                seq,
            }),
        }
    }
}
