//! The decisions on a creation: what a new stream is, and whether an existing one is what was asked for.
//! `protocol.md` §7 and §18.2.

use crate::protocol::content_type::ContentType;
use crate::protocol::lifetime::Lifetime;
use crate::stream::append::StreamLimits;
use crate::stream::command::{Body, CreateRequest, Created, ForkAnchor};
use crate::stream::event::{Creation, Payload};
use crate::stream::fork::{ForkOrigin, StreamRef, lineage};
use crate::stream::refusal::CreateRefusal;
use crate::stream::retention::{self, Retained, RetentionSettings};
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
    /// First position that its readers see.
    pub earliest: u64,
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
                || !anchor_matches(asked.anchor, origin)
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
        let settings = self.retained.as_deref().map(Retained::settings);
        type_matches && lifetime_matches && retention::matches(settings, request.retention)
    }
}

/// The tail and the start match what they were when the fork was made, whatever its source has become since.
fn anchor_matches(asked: ForkAnchor, origin: &ForkOrigin) -> bool {
    match asked {
        ForkAnchor::Tail => true,
        ForkAnchor::Start => origin.anchor == origin.earliest,
        ForkAnchor::At(position) => origin.anchor == position,
    }
}

/// Content type of a new stream: as asked for, or its fork source's. Comes before the fork point is looked at (§4).
pub fn decide_content_type(
    asked: Option<&ContentType>,
    source: Option<&ContentType>,
) -> Result<ContentType, CreateRefusal> {
    match (asked, source) {
        (Some(asked), Some(source)) if !asked.same_media_type(source) => {
            Err(CreateRefusal::ContentTypeMismatch { stored: source.as_str().to_owned() })
        }
        (Some(given), _) | (None, Some(given)) => Ok(given.clone()),
        (None, None) => Ok(ContentType::octet_stream()),
    }
}

/// The creation of a stream whose name is free. For a fork, `resolved` says what its source offers.
pub fn decide_create(
    request: &CreateRequest,
    resolved: Option<&ResolvedFork>,
    now_ms: i64,
    limits: &StreamLimits,
) -> Result<Creation, CreateRefusal> {
    let source_type = resolved.map(|source| &source.content_type);
    let content_type = decide_content_type(request.content_type.as_ref(), source_type)?;
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
            earliest: source.earliest,
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
        retention: RetentionSettings::decide(request.retention, limits.retention),
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
        Err(error) => Err(CreateRefusal::InvalidJson(*error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::lifetime::parse_expires_at;
    use crate::protocol::name::StreamName;
    use crate::protocol::retention::Retention;
    use crate::stream::command::ForkRequest;

    const LIMITS: StreamLimits = StreamLimits {
        stream_bytes_max: None,
        producers_max: 1,
        retention: Retention { max_age_secs: None, max_bytes: None },
    };

    fn request() -> CreateRequest {
        CreateRequest {
            name: StreamName::from_stored("a"),
            content_type: None,
            lifetime: None,
            retention: Retention::default(),
            closed: false,
            body: Body::default(),
            fork: None,
        }
    }

    fn typed(content_type: &str) -> Option<ContentType> {
        Some(ContentType::parse(content_type.as_bytes()).unwrap())
    }

    fn until(instant: &str) -> Option<Lifetime> {
        Some(Lifetime::ExpiresAt(parse_expires_at(instant.as_bytes()).unwrap()))
    }

    fn created(request: &CreateRequest, source: Option<&ResolvedFork>) -> StreamState {
        StreamState::created(&decide_create(request, source, 0, &LIMITS).unwrap())
    }

    fn source() -> ResolvedFork {
        ResolvedFork {
            source: StreamRef { shard: 0, id: 1 },
            content_type: typed("text/plain").unwrap(),
            lifetime: Some(Lifetime::Ttl { seconds: 60 }),
            lineage: Vec::new(),
            earliest: 0,
            anchor: 4,
            point: 6,
        }
    }

    fn fork() -> CreateRequest {
        let source = StreamName::from_stored("s");
        CreateRequest {
            fork: Some(ForkRequest { source, anchor: ForkAnchor::Tail, sub_offset: 2 }),
            ..request()
        }
    }

    #[test]
    fn what_is_absent_equals_its_default_and_instants_are_compared_as_instants() {
        let mut made = request();
        made.lifetime = until("2030-01-01T00:00:00Z");
        let state = created(&made, None);
        assert!(state.confirm(&made).is_ok());
        made.content_type = typed("Application/Octet-Stream; x=y");
        made.lifetime = until("2030-01-01T01:00:00+01:00");
        assert!(state.confirm(&made).is_ok());
        for other in [
            CreateRequest { lifetime: until("2030-01-01T00:00:01Z"), ..made.clone() },
            CreateRequest { lifetime: None, ..made.clone() },
            CreateRequest { lifetime: Some(Lifetime::Ttl { seconds: 1 }), ..made.clone() },
            CreateRequest { content_type: typed("text/plain"), ..made.clone() },
            CreateRequest { closed: true, ..made.clone() },
            CreateRequest { fork: fork().fork, ..made.clone() },
        ] {
            assert_eq!(state.confirm(&other).unwrap_err(), CreateRefusal::AlreadyExists, "{other:?}");
        }
    }

    #[test]
    fn a_repeated_fork_matches_by_what_was_asked_and_by_what_came_of_it() {
        let state = created(&fork(), Some(&source()));
        assert_eq!((state.base(), state.tail), (6, 6));
        let asked = |anchor, sub_offset| ForkRequest { anchor, sub_offset, ..fork().fork.unwrap() };
        for same in [
            fork(),
            CreateRequest { fork: Some(asked(ForkAnchor::At(4), 2)), ..fork() },
            CreateRequest { content_type: typed("text/plain"), ..fork() },
            CreateRequest { lifetime: Some(Lifetime::Ttl { seconds: 60 }), ..fork() },
        ] {
            assert!(state.confirm(&same).is_ok(), "{same:?}");
        }
        for other in [
            request(),
            CreateRequest { fork: Some(asked(ForkAnchor::At(6), 0)), ..fork() },
            CreateRequest { fork: Some(asked(ForkAnchor::Tail, 0)), ..fork() },
            CreateRequest { fork: Some(asked(ForkAnchor::Start, 2)), ..fork() },
            CreateRequest { retention: Retention { max_bytes: Some(1), ..Retention::default() }, ..fork() },
            CreateRequest { lifetime: Some(Lifetime::Ttl { seconds: 61 }), ..fork() },
            CreateRequest { content_type: typed("application/json"), ..fork() },
        ] {
            assert_eq!(state.confirm(&other).unwrap_err(), CreateRefusal::AlreadyExists, "{other:?}");
        }
    }

    #[test]
    fn an_own_lifetime_wins_and_must_be_repeated() {
        let mut own = fork();
        own.lifetime = Some(Lifetime::Ttl { seconds: 5 });
        let state = created(&own, Some(&source()));
        assert!(state.confirm(&own).is_ok());
        assert_eq!(state.confirm(&fork()).unwrap_err(), CreateRefusal::AlreadyExists);
    }

    #[test]
    fn a_fork_of_another_type_is_refused() {
        let other = CreateRequest { content_type: typed("application/json"), ..fork() };
        let refusal = decide_create(&other, Some(&source()), 0, &LIMITS).unwrap_err();
        assert!(matches!(refusal, CreateRefusal::ContentTypeMismatch { .. }));
    }
}
