//! Which error is which problem.

use super::{Code, Extra, Problem};
use crate::engine::api::{
    AppendError, AppendRefusal, CreateError, CreateRefusal, Full, LookupError, LookupRefusal, ReadError,
    Unavailable,
};
use crate::protocol::content_type::InvalidContentType;
use crate::protocol::lifetime::InvalidLifetime;
use crate::protocol::name::InvalidName;
use crate::protocol::offset::InvalidOffset;
use crate::protocol::query::QueryError;
use crate::protocol::retention::InvalidRetention;

impl From<InvalidName> for Problem {
    fn from(error: InvalidName) -> Self {
        Self::new(Code::InvalidStreamName, error.to_string())
    }
}

impl From<InvalidOffset> for Problem {
    fn from(error: InvalidOffset) -> Self {
        Self::new(Code::InvalidOffset, error.to_string())
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Offset(error) => error.into(),
            QueryError::Live(_) | QueryError::MissingOffset => Self::bad_request(error.to_string()),
        }
    }
}

impl From<InvalidContentType> for Problem {
    fn from(error: InvalidContentType) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<InvalidLifetime> for Problem {
    fn from(error: InvalidLifetime) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<InvalidRetention> for Problem {
    fn from(error: InvalidRetention) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<CreateError> for Problem {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Refused(refusal) => refusal.into(),
            CreateError::Full(full) => full.into(),
            CreateError::Unavailable(cause) => cause.into(),
        }
    }
}

impl From<CreateRefusal> for Problem {
    fn from(refusal: CreateRefusal) -> Self {
        let extra = match &refusal {
            CreateRefusal::AnchorGone { earliest } => Extra::EarliestAt(*earliest),
            _ => Extra::None,
        };
        let code = match &refusal {
            CreateRefusal::AlreadyExists => Code::AlreadyExists,
            CreateRefusal::PathBlocked => Code::PathBlocked,
            CreateRefusal::SourceNotFound => Code::NotFound,
            CreateRefusal::SourceDeleted => Code::ForkFromTombstone,
            CreateRefusal::ContentTypeMismatch { .. } => Code::ContentTypeMismatch,
            CreateRefusal::InvalidForkPoint => Code::InvalidOffset,
            CreateRefusal::AnchorGone { .. } => Code::OffsetGone,
            CreateRefusal::InvalidJson(_) => Code::InvalidJson,
            CreateRefusal::StreamTooLarge { .. } => Code::PayloadTooLarge,
        };
        Self { extra, ..Self::new(code, refusal.to_string()) }
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Refused(refusal) => refusal.into(),
            AppendError::Full(full) => full.into(),
            AppendError::Unavailable(cause) => cause.into(),
        }
    }
}

impl From<AppendRefusal> for Problem {
    fn from(refusal: AppendRefusal) -> Self {
        let (code, extra) = match &refusal {
            AppendRefusal::NotFound => (Code::NotFound, Extra::None),
            AppendRefusal::Gone => (Code::Gone, Extra::None),
            AppendRefusal::Closed { tail } => (Code::StreamClosed, Extra::ClosedAt(*tail)),
            AppendRefusal::ContentTypeMismatch { .. } => (Code::ContentTypeMismatch, Extra::None),
            AppendRefusal::StaleEpoch { current } => (Code::ProducerEpochFenced, Extra::KnownEpoch(*current)),
            AppendRefusal::NewEpochNotAtZero => (Code::BadRequest, Extra::None),
            AppendRefusal::SequenceGap { expected, received } => {
                (Code::SequenceConflict, Extra::Gap { expected: *expected, received: *received })
            }
            AppendRefusal::InvalidJson(_) => (Code::InvalidJson, Extra::None),
            AppendRefusal::EmptyArray => (Code::EmptyArray, Extra::None),
            AppendRefusal::StreamSeqConflict => (Code::SequenceConflict, Extra::None),
            AppendRefusal::StreamTooLarge { .. } => (Code::PayloadTooLarge, Extra::None),
            AppendRefusal::ProducerLimit { .. } => (Code::ProducerLimit, Extra::None),
        };
        Self { extra, ..Self::new(code, refusal.to_string()) }
    }
}

impl From<LookupError> for Problem {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Refused(refusal) => refusal.into(),
            LookupError::Unavailable(cause) => cause.into(),
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Refused(refusal) => refusal.into(),
            ReadError::InvalidOffset => Self::new(Code::InvalidOffset, error.to_string()),
            ReadError::OffsetGone { earliest } => {
                let extra = Extra::EarliestAt(earliest);
                Self { extra, ..Self::new(Code::OffsetGone, error.to_string()) }
            }
            ReadError::Unavailable(cause) => cause.into(),
        }
    }
}

impl From<LookupRefusal> for Problem {
    fn from(refusal: LookupRefusal) -> Self {
        let code = match refusal {
            LookupRefusal::NotFound => Code::NotFound,
            LookupRefusal::Gone => Code::Gone,
        };
        Self::new(code, refusal.to_string())
    }
}

impl From<Full> for Problem {
    fn from(full: Full) -> Self {
        Self::new(Code::InsufficientStorage, full.to_string())
    }
}

impl From<Unavailable> for Problem {
    fn from(cause: Unavailable) -> Self {
        match cause {
            Unavailable::Overloaded | Unavailable::ReadBufferFull | Unavailable::ShuttingDown => {
                Self::new(Code::Unavailable, cause.to_string())
            }
            Unavailable::CommitFailed | Unavailable::Recovering => {
                Self::fault(Code::Unavailable, cause.to_string())
            }
            Unavailable::ReadFailed => Self::fault(Code::Internal, cause.to_string()),
        }
    }
}
