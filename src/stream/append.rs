//! The decision on an append, in the order of `protocol.md` §4.

use crate::stream::command::{AppendRequest, Appended, Body};
use crate::stream::event::{Append, Payload};
use crate::stream::producer::{ProducerTag, ProducerVerdict};
use crate::stream::refusal::AppendRefusal;
use crate::stream::state::{Closure, StreamState};

/// Limits that an append is measured against.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Most own bytes of a stream; `None` = unlimited.
    pub stream_bytes_max: Option<u64>,
    /// Most producers of a stream.
    pub producers_max: usize,
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
            && new.as_ref() <= last.as_ref()
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
            Err(error) => Err(AppendRefusal::InvalidJson(error.clone())),
        }
    }

    fn judge_limits(
        &self,
        added: u64,
        producer: Option<&ProducerTag>,
        limits: &StreamLimits,
    ) -> Result<(), AppendRefusal> {
        if let Some(limit) = limits.stream_bytes_max
            && self.tail - self.base() + added > limit
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
