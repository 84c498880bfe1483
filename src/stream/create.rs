//! The decisions on a creation: what a new stream is, and whether an existing one is what was asked for.
//! `protocol.md` §7 and §18.2.

use crate::protocol::content_type::ContentType;
use crate::protocol::lifetime::Lifetime;
use crate::stream::append::StreamLimits;
use crate::stream::command::{Body, CreateRequest, Created};
use crate::stream::event::{Creation, Payload};
use crate::stream::fork::{ForkOrigin, StreamRef, lineage};
use crate::stream::refusal::CreateRefusal;
use crate::stream::state::StreamState;

/// A fork's source and fork point, as found out from the source's shard.
#[derive(Clone, Debug)]
pub struct ResolvedFork {
    /// The source's incarnation.
    pub source: StreamRef,
    /// Its content type.
    pub content_type: ContentType,
    /// Its lifetime.
    pub lifetime: Option<Lifetime>,
    /// Its own lineage.
    pub lineage: Vec<crate::stream::fork::Ancestor>,
    /// Anchor as resolved.
    pub anchor: u64,
    /// Fork point.
    pub point: u64,
}

impl StreamState {
    /// The answer to a creation of a name that exists: confirmed, or refused.
    pub fn confirm(&self, request: &CreateRequest) -> Result<Created, CreateRefusal> {
        if self.soft_deleted {
            return Err(CreateRefusal::PathBlocked);
        }
        if !self.matches(request) {
            return Err(CreateRefusal::AlreadyExists);
        }
        Ok(Created {
            existed: true,
            content_type: self.content_type.clone(),
            tail: self.tail,
            closed: self.closure.is_closed(),
        })
    }

    fn matches(&self, request: &CreateRequest) -> bool {
        if request.closed != self.closure.is_closed() {
            return false;
        }
        let fork = match (&self.fork, &request.fork) {
            (None, None) => None,
            (Some(origin), Some(asked)) => Some((origin, asked)),
            _ => return false,
        };
        if let Some((origin, asked)) = fork
            && (asked.source != origin.source
                || asked.anchor.is_some_and(|anchor| anchor != origin.anchor)
                || asked.sub_offset != origin.sub_offset)
        {
            return false;
        }
        let type_matches = match &request.content_type {
            Some(asked) => asked.same_media_type(&self.content_type),
            None => fork.is_some() || ContentType::octet_stream().same_media_type(&self.content_type),
        };
        let lifetime_matches = match (&request.lifetime, fork) {
            (None, Some((origin, _))) => origin.lifetime_inherited || self.lifetime.is_none(),
            (asked, _) => *asked == self.lifetime,
        };
        type_matches && lifetime_matches
    }
}

/// The creation of a stream whose name is free. For a fork, `resolved` says what its source offers.
pub fn decide_create(
    request: &CreateRequest,
    resolved: Option<&ResolvedFork>,
    now_ms: i64,
    limits: &StreamLimits,
) -> Result<Creation, CreateRefusal> {
    let content_type = match (&request.content_type, resolved) {
        (Some(asked), Some(source)) if !asked.same_media_type(&source.content_type) => {
            let stored = source.content_type.as_str().to_owned();
            return Err(CreateRefusal::ContentTypeMismatch { stored });
        }
        (Some(asked), _) => asked.clone(),
        (None, Some(source)) => source.content_type.clone(),
        (None, None) => ContentType::octet_stream(),
    };
    let payload = payload(&request.body, &content_type)?;
    if let Some(limit) = limits.stream_bytes_max
        && payload.len() as u64 > limit
    {
        return Err(CreateRefusal::StreamTooLarge { limit });
    }
    let lifetime = request.lifetime.clone().or_else(|| resolved.and_then(|source| source.lifetime.clone()));
    let fork = request.fork.as_ref().zip(resolved).map(|(asked, source)| {
        Box::new(ForkOrigin {
            source: asked.source.clone(),
            source_ref: source.source,
            anchor: source.anchor,
            sub_offset: asked.sub_offset,
            point: source.point,
            lifetime_inherited: request.lifetime.is_none(),
            lineage: lineage(source.source, &source.lineage, source.point),
        })
    });
    assert_eq!(fork.is_some(), request.fork.is_some(), "a fork's source is resolved before it is created");
    Ok(Creation {
        name: request.name.clone(),
        content_type,
        lifetime,
        fork,
        closed: request.closed,
        payload,
        at_ms: now_ms,
    })
}

/// Stored form of a creation's body. Unlike an append, an empty JSON array is fine: it makes an empty stream.
fn payload(body: &Body, content_type: &ContentType) -> Result<Payload, CreateRefusal> {
    if body.raw.is_empty() || !content_type.is_json() {
        return Ok(body.raw.clone().into());
    }
    match body.json.as_ref().expect("the body of a JSON request is parsed before it gets here") {
        Ok(json) => Ok(json.into()),
        Err(error) => Err(CreateRefusal::InvalidJson(error.clone())),
    }
}
