//! Retention: `Stream-Retention-Max-Age` and `Stream-Retention-Max-Bytes`, which bound what a stream keeps of its past.
//! `protocol.md` §17.

use crate::protocol::producer;

/// Limits on what a stream keeps. Beyond them its beginning goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Age in seconds that content may reach, 1 to 2^53 − 1; `None` = any.
    pub max_age_secs: Option<u64>,
    /// Stored bytes from the tail back that are kept, 1 to 2^53 − 1; `None` = all.
    pub max_bytes: Option<u64>,
}

impl Retention {
    /// Everything is kept.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// These limits, and those of `defaults` where there is none.
    #[must_use]
    pub fn or(self, defaults: Self) -> Self {
        Self {
            max_age_secs: self.max_age_secs.or(defaults.max_age_secs),
            max_bytes: self.max_bytes.or(defaults.max_bytes),
        }
    }
}

/// The value of a retention header is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRetention {
    /// `Stream-Retention-Max-Age`
    #[error(
        "Stream-Retention-Max-Age is not a whole number of seconds without sign or leading zeros, 1 to 2^53-1"
    )]
    MaxAge,
    /// `Stream-Retention-Max-Bytes`
    #[error("Stream-Retention-Max-Bytes is not a whole number without sign or leading zeros, 1 to 2^53-1")]
    MaxBytes,
}

/// Reads a `Stream-Retention-Max-Age` value: seconds, `[1-9][0-9]*`, at most 2^53 − 1.
pub fn parse_max_age(value: &[u8]) -> Result<u64, InvalidRetention> {
    parse_positive(value).ok_or(InvalidRetention::MaxAge)
}

/// Reads a `Stream-Retention-Max-Bytes` value: `[1-9][0-9]*`, at most 2^53 − 1.
pub fn parse_max_bytes(value: &[u8]) -> Result<u64, InvalidRetention> {
    parse_positive(value).ok_or(InvalidRetention::MaxBytes)
}

/// A limit of 0 would be a stream that keeps nothing, which nobody can mean.
fn parse_positive(value: &[u8]) -> Option<u64> {
    producer::parse_plain_number(value).filter(|&number| number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_plain_number_from_one_on() {
        assert_eq!(parse_max_age(b"1"), Ok(1));
        assert_eq!(parse_max_bytes(b"9007199254740991"), Ok(producer::NUMBER_MAX));
        for value in ["", "0", "01", "+1", "-1", "1.0", "1e3", " 1", "1 ", "9007199254740992", "1MiB"] {
            assert_eq!(parse_max_age(value.as_bytes()), Err(InvalidRetention::MaxAge), "{value:?}");
            assert_eq!(parse_max_bytes(value.as_bytes()), Err(InvalidRetention::MaxBytes), "{value:?}");
        }
    }

    #[test]
    fn a_limit_that_is_absent_is_the_default() {
        let age = Retention { max_age_secs: Some(1), max_bytes: None };
        let both = Retention { max_age_secs: Some(2), max_bytes: Some(3) };
        assert_eq!(age.or(both), Retention { max_age_secs: Some(1), max_bytes: Some(3) });
        assert!(Retention::default().or(Retention::default()).is_none());
    }
}
