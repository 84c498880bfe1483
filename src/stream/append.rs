//! The decision on an append, in the order of `protocol.md` §4.

use crate::protocol::retention::Retention;
use crate::stream::command::{AppendRequest, Appended, Body};
use crate::stream::event::{Append, Payload};
use crate::stream::producer::{ProducerTag, ProducerVerdict};
use crate::stream::refusal::AppendRefusal;
use crate::stream::state::{Closure, StreamState};

/// Limits that an append is measured against.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Most own bytes of a stream that are stored; `None` = unlimited.
    pub stream_bytes_max: Option<u64>,
    /// Most producers of a stream.
    pub producers_max: usize,
    /// What is kept of streams whose creation does not say.
    pub retention: Retention,
}

/// What to do with an append.
#[derive(Clone, Debug, PartialEq)]
pub enum AppendDecision {
    /// Store this event, then answer [`accepted`].
    Accept(Append),
    /// Nothing to store: a duplicate or a repeated close.
    Answer(Appended),
    /// No.
    Refuse(AppendRefusal),
}

impl StreamState {
    /// Decides on an append to this stream. Changes nothing.
    pub fn decide_append(
        &self,
        request: &AppendRequest,
        now_ms: i64,
        limits: &StreamLimits,
    ) -> AppendDecision {
        match self.judge_append(request, now_ms, limits) {
            Ok(decision) => decision,
            Err(refusal) => AppendDecision::Refuse(refusal),
        }
    }

    fn judge_append(
        &self,
        request: &AppendRequest,
        now_ms: i64,
        limits: &StreamLimits,
    ) -> Result<AppendDecision, AppendRefusal> {
        if self.soft_deleted {
            return Err(AppendRefusal::Gone);
        }
        if let Closure::Closed(closed_by) = &self.closure {
            return self.judge_on_closed(request, closed_by.as_deref()).map(AppendDecision::Answer);
        }
        let has_body = !request.body.raw.is_empty();
        if has_body && !request.content_type.as_ref().is_some_and(|t| t.same_media_type(&self.content_type)) {
            return Err(AppendRefusal::ContentTypeMismatch { stored: self.content_type.as_str().to_owned() });
        }
        if let Some(tag) = &request.producer {
            match self.producers.judge(tag) {
                ProducerVerdict::Next => {}
                ProducerVerdict::Duplicate { epoch, seq } => {
                    let answer = Appended {
                        tail: self.tail,
                        closed: false,
                        duplicate: true,
                        producer: Some((epoch, seq)),
                    };
                    return Ok(AppendDecision::Answer(answer));
                }
                ProducerVerdict::Refused(refusal) => return Err(refusal),
            }
        }
        let payload = if has_body { self.payload(&request.body)? } else { Payload::default() };
        if let (Some(new), Some(last)) = (&request.stream_seq, &self.stream_seq)
            && new[..] <= last[..]
        {
            return Err(AppendRefusal::StreamSeqConflict);
        }
        self.judge_limits(payload.len() as u64, request.producer.as_ref(), limits)?;
        Ok(AppendDecision::Accept(Append {
            payload,
            producer: request.producer.clone(),
            stream_seq: request.stream_seq.clone(),
            close: request.close,
            at_ms: now_ms,
        }))
    }

    /// A closed stream recognises the request that closed it, and closing again; nothing else.
    fn judge_on_closed(
        &self,
        request: &AppendRequest,
        closed_by: Option<&ProducerTag>,
    ) -> Result<Appended, AppendRefusal> {
        let repeated = match &request.producer {
            Some(tag) => closed_by == Some(tag),
            None => request.close && request.body.raw.is_empty(),
        };
        if !repeated {
            return Err(AppendRefusal::Closed { tail: self.tail });
        }
        Ok(Appended {
            tail: self.tail,
            closed: true,
            duplicate: true,
            producer: request.producer.as_ref().map(|tag| (tag.epoch, tag.seq)),
        })
    }

    fn payload(&self, body: &Body) -> Result<Payload, AppendRefusal> {
        if !self.content_type.is_json() {
            return Ok(body.raw.clone().into());
        }
        match body.json.as_ref().expect("the body of a JSON request is parsed before it gets here") {
            Ok(json) if json.messages == 0 => Err(AppendRefusal::EmptyArray),
            Ok(json) => Ok(json.into()),
            Err(error) => Err(AppendRefusal::InvalidJson(*error)),
        }
    }

    fn judge_limits(
        &self,
        added: u64,
        producer: Option<&ProducerTag>,
        limits: &StreamLimits,
    ) -> Result<(), AppendRefusal> {
        if let Some(limit) = limits.stream_bytes_max
            && self.stored_bytes_after(added) > limit
        {
            return Err(AppendRefusal::StreamTooLarge { limit });
        }
        if let Some(tag) = producer
            && self.producers.len() >= limits.producers_max
            && self.producers.get(&tag.id).is_none()
        {
            return Err(AppendRefusal::ProducerLimit { limit: limits.producers_max });
        }
        Ok(())
    }
}

/// The answer to an accepted append, given the state after it.
pub fn accepted(state: &StreamState, append: &Append) -> Appended {
    Appended {
        tail: state.tail,
        closed: state.closure.is_closed(),
        duplicate: false,
        producer: append.producer.as_ref().map(|tag| (tag.epoch, tag.seq)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::content_type::ContentType;
    use crate::protocol::json::parse_body;
    use crate::protocol::name::StreamName;
    use crate::stream::event::{Creation, Event};

    const LIMITS: StreamLimits = StreamLimits {
        stream_bytes_max: Some(100),
        producers_max: 2,
        retention: Retention { max_age_secs: None, max_bytes: None },
    };

    fn stream(content_type: &str) -> StreamState {
        StreamState::created(&Creation {
            name: StreamName::from_stored("a"),
            content_type: ContentType::parse(content_type.as_bytes()).unwrap(),
            lifetime: None,
            retention: None,
            fork: None,
            closed: false,
            payload: Payload::default(),
            at_ms: 0,
        })
    }

    fn request(content_type: &str, body: &'static str) -> AppendRequest {
        let content_type = ContentType::parse(content_type.as_bytes()).unwrap();
        let json = content_type.is_json().then(|| parse_body(body.as_bytes(), 8));
        AppendRequest {
            name: StreamName::from_stored("a"),
            content_type: Some(content_type),
            body: Body { raw: body.into(), json },
            close: false,
            stream_seq: None,
            producer: None,
        }
    }

    fn tag(id: &'static str, epoch: u64, seq: u64) -> Option<ProducerTag> {
        Some(ProducerTag { id: id.into(), epoch, seq })
    }

    /// Decides, and applies what is accepted.
    fn run(state: &mut StreamState, request: &AppendRequest) -> AppendDecision {
        let decision = state.decide_append(request, 1, &LIMITS);
        if let AppendDecision::Accept(append) = &decision {
            state.apply(&Event::Appended(append.clone()), 1);
        }
        decision
    }

    fn refusal(state: &mut StreamState, request: &AppendRequest) -> AppendRefusal {
        match run(state, request) {
            AppendDecision::Refuse(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn of_several_reasons_to_refuse_the_first_in_the_protocols_order_is_given() {
        let mut state = stream("application/json");
        let mut good = request("application/json", "1");
        good.stream_seq = Some("b".into());
        good.producer = tag("p", 5, 0);
        assert!(matches!(run(&mut state, &good), AppendDecision::Accept(_)));

        // Everything is wrong with it; one thing after the other is put right.
        let mut bad = request("text/plain", "[");
        bad.stream_seq = Some("a".into());
        bad.producer = tag("p", 4, 7);
        assert!(matches!(refusal(&mut state, &bad), AppendRefusal::ContentTypeMismatch { .. }));
        let mut bad = AppendRequest { stream_seq: bad.stream_seq, ..request("application/json", "[") };
        bad.producer = tag("p", 4, 7);
        assert_eq!(refusal(&mut state, &bad), AppendRefusal::StaleEpoch { current: 5 });
        bad.producer = tag("p", 6, 7);
        assert_eq!(refusal(&mut state, &bad), AppendRefusal::NewEpochNotAtZero);
        bad.producer = tag("p", 5, 7);
        assert_eq!(refusal(&mut state, &bad), AppendRefusal::SequenceGap { expected: 1, received: 7 });
        bad.producer = tag("p", 5, 1);
        assert!(matches!(refusal(&mut state, &bad), AppendRefusal::InvalidJson(_)));
        bad.body = request("application/json", "[]").body;
        assert_eq!(refusal(&mut state, &bad), AppendRefusal::EmptyArray);
        bad.body = request("application/json", "\"long\"").body;
        assert_eq!(refusal(&mut state, &bad), AppendRefusal::StreamSeqConflict);
        bad.stream_seq = Some("c".into());
        let tight = StreamLimits { stream_bytes_max: Some(8), producers_max: 1, ..LIMITS };
        let decision = state.decide_append(&bad, 1, &tight);
        assert_eq!(decision, AppendDecision::Refuse(AppendRefusal::StreamTooLarge { limit: 8 }));
        assert!(matches!(run(&mut state, &bad), AppendDecision::Accept(_)));
    }

    #[test]
    fn a_refused_append_changes_nothing_so_its_sequence_number_stays_free() {
        let mut state = stream("application/json");
        let mut bad = request("application/json", "nope");
        bad.producer = tag("p", 0, 0);
        assert!(matches!(refusal(&mut state, &bad), AppendRefusal::InvalidJson(_)));
        bad.body = request("application/json", "1").body;
        assert!(matches!(run(&mut state, &bad), AppendDecision::Accept(_)));
    }

    #[test]
    fn a_duplicate_is_answered_before_body_and_stream_seq_are_looked_at() {
        let mut state = stream("application/json");
        let mut first = request("application/json", "1");
        first.producer = tag("p", 0, 0);
        first.stream_seq = Some("5".into());
        run(&mut state, &first);
        first.body = request("application/json", "nope").body;
        let duplicate = Appended { tail: 2, closed: false, duplicate: true, producer: Some((0, 0)) };
        assert_eq!(run(&mut state, &first), AppendDecision::Answer(duplicate));
    }

    #[test]
    fn a_closed_stream_knows_the_request_that_closed_it_and_no_other() {
        let mut state = stream("text/plain");
        let mut closing = request("text/plain", "end");
        closing.producer = tag("p", 0, 0);
        closing.close = true;
        assert!(matches!(run(&mut state, &closing), AppendDecision::Accept(_)));
        closing.body = Body { raw: "other".into(), json: None };
        let repeated = Appended { tail: 3, closed: true, duplicate: true, producer: Some((0, 0)) };
        assert_eq!(run(&mut state, &closing), AppendDecision::Answer(repeated));
        closing.producer = tag("p", 0, 1);
        assert_eq!(refusal(&mut state, &closing), AppendRefusal::Closed { tail: 3 });
        closing.body = Body::default();
        assert_eq!(refusal(&mut state, &closing), AppendRefusal::Closed { tail: 3 });
        closing.producer = None;
        let again = Appended { tail: 3, closed: true, duplicate: true, producer: None };
        assert_eq!(run(&mut state, &closing), AppendDecision::Answer(again));
        // Closed comes before the content type.
        assert_eq!(refusal(&mut state, &request("image/png", "x")), AppendRefusal::Closed { tail: 3 });
    }

    #[test]
    fn limits_hold_at_their_value_and_not_one_past_it() {
        let mut state = stream("text/plain");
        let full: &'static str = Box::leak("x".repeat(100).into_boxed_str());
        assert!(matches!(run(&mut state, &request("text/plain", full)), AppendDecision::Accept(_)));
        let more = request("text/plain", "x");
        assert_eq!(refusal(&mut state, &more), AppendRefusal::StreamTooLarge { limit: 100 });

        let mut state = stream("text/plain");
        let mut from = request("text/plain", "x");
        for id in ["a", "b"] {
            from.producer = tag(id, 0, 0);
            assert!(matches!(run(&mut state, &from), AppendDecision::Accept(_)));
        }
        from.producer = tag("c", 0, 0);
        assert_eq!(refusal(&mut state, &from), AppendRefusal::ProducerLimit { limit: 2 });
        from.producer = tag("a", 0, 1);
        assert!(matches!(run(&mut state, &from), AppendDecision::Accept(_)));
    }
}
