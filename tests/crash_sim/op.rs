//! One mutation: as the model does it, as the store does it, and how the two compare.

use std::fmt;

use durable_streams_server::engine::api::{Storage, Unavailable};

use crate::model::{Answer, Appended, Created, Model};
use crate::outcome::Trouble;
use crate::request::{Append, Create, stream_name};

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create(Create),
    Append(Append),
    Delete(u8),
}

/// What came of one that was not refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Created(Created),
    Appended(Appended),
    Deleted,
}

/// What the store says of one.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Done or refused.
    Certain(Answer<Outcome>),
    /// Not done, for want of room.
    #[allow(dead_code, reason = "it is printed")]
    Full(String),
    /// Done, or not.
    #[allow(dead_code, reason = "it is printed")]
    Unknown(Unavailable),
}

impl Verdict {
    fn of<T, E: Into<Trouble>>(answer: Result<T, E>, outcome: impl FnOnce(T) -> Outcome) -> Self {
        match answer.map(outcome).map_err(Into::into) {
            Ok(outcome) => Self::Certain(Ok(outcome)),
            Err(Trouble::Refused(full)) if full.starts_with("FULL") => Self::Full(full),
            Err(Trouble::Refused(refusal)) => Self::Certain(Err(refusal)),
            Err(Trouble::Unavailable(why)) => Self::Unknown(why),
        }
    }

    pub(crate) fn is_certain(&self) -> bool {
        matches!(self, Self::Certain(_))
    }
}

impl Op {
    /// The stream that it is about.
    pub(crate) fn name(&self) -> u8 {
        match self {
            Self::Create(create) => create.name,
            Self::Append(append) => append.name,
            Self::Delete(name) => *name,
        }
    }

    pub(crate) fn apply(&self, model: &mut Model) -> Answer<Outcome> {
        match self {
            Self::Create(create) => model.create(create).map(Outcome::Created),
            Self::Append(append) => model.append(append).map(Outcome::Appended),
            Self::Delete(name) => model.delete(*name).map(|()| Outcome::Deleted),
        }
    }

    pub(crate) async fn send(&self, store: &dyn Storage) -> Verdict {
        match self {
            Self::Create(create) => Verdict::of(store.create(create.for_store()).await, |created| {
                Outcome::Created(Created {
                    existed: created.existed,
                    content_type: created.content_type.as_str().to_owned(),
                    tail: created.tail,
                    closed: created.closed,
                })
            }),
            Self::Append(append) => Verdict::of(store.append(append.for_store()).await, |appended| {
                Outcome::Appended(Appended {
                    tail: appended.tail,
                    closed: appended.closed,
                    duplicate: appended.duplicate,
                    producer: appended.producer,
                })
            }),
            Self::Delete(name) => Verdict::of(store.delete(stream_name(*name)).await, |()| Outcome::Deleted),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(create) => {
                let Create { name, content_type, life, closed, body, fork, .. } = create;
                write!(f, "create {name} {} {body:?}", content_type.as_deref().unwrap_or("-"))?;
                if let Some(life) = life {
                    write!(f, " {life:?}")?;
                }
                if let Some(fork) = fork {
                    write!(f, " from {} at {:?}+{}", fork.source, fork.anchor, fork.skip)?;
                }
                f.write_str(if *closed { " closed" } else { "" })
            }
            Self::Append(append) => {
                let Append { name, body, close, seq, producer, .. } = append;
                write!(f, "append {name} {body:?}")?;
                if let Some(seq) = seq {
                    write!(f, " seq {}", String::from_utf8_lossy(seq))?;
                }
                if let Some((id, epoch, seq)) = producer {
                    write!(f, " producer {id}/{epoch}/{seq}")?;
                }
                f.write_str(if *close { " and close" } else { "" })
            }
            Self::Delete(name) => write!(f, "delete {name}"),
        }
    }
}
