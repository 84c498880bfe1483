//! The store's answers in the model's terms.

use durable_streams_server::engine::api::{
    AppendError, AppendRefusal, CreateError, CreateRefusal, Full, LookupError, LookupRefusal, ReadError,
    Unavailable,
};

use crate::model::Answer;

/// Why the store did not do it: for good, or, it cannot tell.
#[derive(Debug)]
pub(crate) enum Trouble {
    Refused(String),
    Unavailable(Unavailable),
}

fn full(full: Full) -> Trouble {
    Trouble::Refused(format!("FULL: {full}"))
}

impl From<CreateError> for Trouble {
    fn from(error: CreateError) -> Self {
        let refusal = match error {
            CreateError::Refused(refusal) => refusal,
            CreateError::Full(why) => return full(why),
            CreateError::Unavailable(why) => return Self::Unavailable(why),
        };
        Self::Refused(match refusal {
            CreateRefusal::AlreadyExists => "ALREADY_EXISTS".into(),
            CreateRefusal::PathBlocked => "PATH_BLOCKED".into(),
            CreateRefusal::SourceNotFound => "NOT_FOUND".into(),
            CreateRefusal::SourceDeleted => "FORK_FROM_TOMBSTONE".into(),
            CreateRefusal::ContentTypeMismatch { .. } => "CONTENT_TYPE_MISMATCH".into(),
            CreateRefusal::InvalidForkPoint => "INVALID_OFFSET".into(),
            CreateRefusal::AnchorGone { .. } => "OFFSET_GONE".into(),
            CreateRefusal::InvalidJson(_) => "INVALID_JSON".into(),
            CreateRefusal::StreamTooLarge { .. } => "PAYLOAD_TOO_LARGE".into(),
            other => format!("unknown: {other}"),
        })
    }
}

impl From<AppendError> for Trouble {
    fn from(error: AppendError) -> Self {
        let refusal = match error {
            AppendError::Refused(refusal) => refusal,
            AppendError::Full(why) => return full(why),
            AppendError::Unavailable(why) => return Self::Unavailable(why),
        };
        Self::Refused(match refusal {
            AppendRefusal::NotFound => "NOT_FOUND".into(),
            AppendRefusal::Gone => "GONE".into(),
            AppendRefusal::Closed { tail } => format!("STREAM_CLOSED at {tail}"),
            AppendRefusal::ContentTypeMismatch { .. } => "CONTENT_TYPE_MISMATCH".into(),
            AppendRefusal::StaleEpoch { current } => format!("PRODUCER_EPOCH_FENCED by {current}"),
            AppendRefusal::NewEpochNotAtZero => "BAD_REQUEST".into(),
            AppendRefusal::SequenceGap { expected, received } => {
                format!("SEQUENCE_CONFLICT, {expected} expected, {received} sent")
            }
            AppendRefusal::InvalidJson(_) => "INVALID_JSON".into(),
            AppendRefusal::EmptyArray => "EMPTY_ARRAY".into(),
            AppendRefusal::StreamSeqConflict => "SEQUENCE_CONFLICT".into(),
            AppendRefusal::StreamTooLarge { .. } => "PAYLOAD_TOO_LARGE".into(),
            AppendRefusal::ProducerLimit { .. } => "PRODUCER_LIMIT".into(),
            other => format!("unknown: {other}"),
        })
    }
}

fn lookup(refusal: LookupRefusal) -> Trouble {
    Trouble::Refused(match refusal {
        LookupRefusal::NotFound => "NOT_FOUND".into(),
        LookupRefusal::Gone => "GONE".into(),
        other => format!("unknown: {other}"),
    })
}

impl From<LookupError> for Trouble {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Refused(refusal) => lookup(refusal),
            LookupError::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Refused(refusal) => lookup(refusal),
            ReadError::InvalidOffset => Self::Refused("INVALID_OFFSET".into()),
            ReadError::OffsetGone { .. } => Self::Refused("OFFSET_GONE".into()),
            ReadError::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

/// An answer that has to be one, good or bad.
#[track_caller]
pub(crate) fn certain<T, E: Into<Trouble>>(answer: Result<T, E>) -> Answer<T> {
    answer.map_err(|error| match error.into() {
        Trouble::Refused(refusal) => refusal,
        Trouble::Unavailable(why) => panic!("nothing is wrong with the disk, yet: {why}"),
    })
}
