//! Lifetimes: `Stream-TTL`, a sliding window, and `Stream-Expires-At`, a fixed instant. `protocol.md` §3, §7, §16.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::protocol::producer;

const NANOS_PER_MS: u32 = 1_000_000;

/// When a stream ends by itself. `==` is the comparison of idempotent creation (§7).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Lifetime {
    /// A window that starts anew with each renewal.
    Ttl {
        /// Length of the window in seconds, at most 2^53 − 1; 0 = over at once.
        seconds: u64,
    },
    /// An instant that nothing moves.
    ExpiresAt(ExpiresAt),
}

impl Lifetime {
    /// When the stream ends, in milliseconds since the Unix epoch, if it was last renewed at `renewed_at_ms`.
    /// Saturates instead of overflowing.
    pub fn deadline_ms(&self, renewed_at_ms: i64) -> i64 {
        match self {
            Self::Ttl { seconds } => {
                let window_ms = i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX);
                renewed_at_ms.saturating_add(window_ms)
            }
            Self::ExpiresAt(instant) => instant.at_ms(),
        }
    }
}

/// An instant, to the nanosecond, and how the client spelled it. Two spellings of one instant are equal.
#[derive(Clone)]
pub struct ExpiresAt(Arc<Spelled>);

/// In one allocation, so that a stream has one pointer to it.
struct Spelled {
    raw: Box<str>,
    seconds: i64,
    nanos: u32,
}

impl ExpiresAt {
    /// Puts together what [`ExpiresAt::raw`], [`ExpiresAt::seconds`] and [`ExpiresAt::nanos`] gave; checks nothing.
    pub fn from_parts(raw: impl Into<Box<str>>, seconds: i64, nanos: u32) -> Self {
        Self(Arc::new(Spelled { raw: raw.into(), seconds, nanos }))
    }

    /// As sent.
    pub fn raw(&self) -> &str {
        &self.0.raw
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub fn seconds(&self) -> i64 {
        self.0.seconds
    }

    /// Nanoseconds after [`ExpiresAt::seconds`].
    pub fn nanos(&self) -> u32 {
        self.0.nanos
    }

    /// Milliseconds since the Unix epoch, rounded down, saturating.
    pub fn at_ms(&self) -> i64 {
        self.seconds().saturating_mul(1000).saturating_add(i64::from(self.nanos() / NANOS_PER_MS))
    }
}

impl PartialEq for ExpiresAt {
    fn eq(&self, other: &Self) -> bool {
        (self.seconds(), self.nanos()) == (other.seconds(), other.nanos())
    }
}

impl Eq for ExpiresAt {}

impl Hash for ExpiresAt {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.seconds(), self.nanos()).hash(state);
    }
}

impl fmt::Debug for ExpiresAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ExpiresAt").field(&self.raw()).finish()
    }
}

/// The value of a lifetime header is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLifetime {
    /// `Stream-TTL`
    #[error("Stream-TTL is not a whole number of seconds without sign or leading zeros, at most 2^53-1")]
    Ttl,
    /// `Stream-Expires-At`
    #[error("Stream-Expires-At is not an RFC 3339 date and time with Z or a numeric offset")]
    ExpiresAt,
}

/// Reads a `Stream-TTL` value: seconds, `0` or `[1-9][0-9]*`, at most 2^53 − 1.
pub fn parse_ttl(value: &[u8]) -> Result<u64, InvalidLifetime> {
    producer::parse_plain_number(value).ok_or(InvalidLifetime::Ttl)
}

/// Reads a `Stream-Expires-At` value: an RFC 3339 date-time. Fraction digits past the ninth are dropped; a leap
/// second counts as the last nanosecond of the second before it.
pub fn parse_expires_at(value: &[u8]) -> Result<ExpiresAt, InvalidLifetime> {
    // RFC 3339 suggests other separators for people to read, but its grammar has only `T`; the library takes more.
    if !matches!(value.get(10), Some(b'T' | b't')) {
        return Err(InvalidLifetime::ExpiresAt);
    }
    let raw = std::str::from_utf8(value).map_err(|_| InvalidLifetime::ExpiresAt)?;
    let instant = OffsetDateTime::parse(raw, &Rfc3339).map_err(|_| InvalidLifetime::ExpiresAt)?;
    Ok(ExpiresAt::from_parts(raw, instant.unix_timestamp(), instant.nanosecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instant(value: &str) -> ExpiresAt {
        parse_expires_at(value.as_bytes()).unwrap()
    }

    #[test]
    fn a_ttl_is_a_plain_number() {
        assert_eq!(parse_ttl(b"0"), Ok(0));
        assert_eq!(parse_ttl(b"9007199254740991"), Ok(producer::NUMBER_MAX));
        for value in ["", "01", "00", "+1", "-1", "1.0", "1e3", " 1", "9007199254740992", "abc"] {
            assert_eq!(parse_ttl(value.as_bytes()), Err(InvalidLifetime::Ttl), "{value:?}");
        }
    }

    #[test]
    fn all_spellings_of_rfc_3339_are_read() {
        for (value, seconds, nanos) in [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2030-01-01T00:00:00z", 1_893_456_000, 0),
            ("2030-01-01t01:00:00+01:00", 1_893_456_000, 0),
            ("2029-12-31T14:15:00-09:45", 1_893_456_000, 0),
            ("2030-01-01T00:00:00-00:00", 1_893_456_000, 0),
            ("2030-01-01T00:00:00.5Z", 1_893_456_000, 500_000_000),
            ("2030-01-01T00:00:00.123456789999999999999Z", 1_893_456_000, 123_456_789),
            ("1969-12-31T23:59:59.25Z", -1, 250_000_000),
            ("0000-01-01T00:00:00Z", -62_167_219_200, 0),
            ("0000-01-01T00:00:00+23:59", -62_167_305_540, 0),
            ("9999-12-31T23:59:59.999Z", 253_402_300_799, 999_000_000),
            ("9999-12-31T23:59:59-23:59", 253_402_387_139, 0),
            ("2028-02-29T00:00:00Z", 1_835_395_200, 0),
            // The leap second at the end of 2016, in two zones.
            ("2016-12-31T23:59:60Z", 1_483_228_799, 999_999_999),
            ("2017-01-01T00:59:60.5+01:00", 1_483_228_799, 999_999_999),
        ] {
            let read = instant(value);
            assert_eq!((read.seconds(), read.nanos()), (seconds, nanos), "{value}");
            assert_eq!(read.raw(), value);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for value in [
            "",
            "2030-01-01",
            "2030-01-01T00:00:00",
            "2030-01-01 00:00:00Z",
            "2030-01-01_00:00:00Z",
            "2030-01-01T00:00Z",
            "2030-1-01T00:00:00Z",
            "2030-13-01T00:00:00Z",
            "2030-00-01T00:00:00Z",
            "2030-02-29T00:00:00Z",
            "2030-01-01T24:00:00Z",
            "2030-01-01T00:60:00Z",
            "2030-01-01T00:00:61Z",
            "2030-01-01T12:00:60Z",
            "2030-01-01T00:00:00.Z",
            "2030-01-01T00:00:00,5Z",
            "2030-01-01T00:00:00+1:00",
            "2030-01-01T00:00:00+0100",
            "2030-01-01T00:00:00+24:00",
            "2030-01-01T00:00:00+01:60",
            "2030-01-01T00:00:00\u{2212}01:00",
            "2030-01-01T00:00:00UTC",
            "2030-01-01T00:00:00Z ",
            " 2030-01-01T00:00:00Z",
            "+2030-01-01T00:00:00Z",
            "12030-01-01T00:00:00Z",
            "Tue, 01 Jan 2030 00:00:00 GMT",
            "1893456000",
        ] {
            assert!(parse_expires_at(value.as_bytes()).is_err(), "{value:?}");
        }
        assert!(parse_expires_at(b"2030-01-01T00:00:00\xffZ").is_err());
    }

    #[test]
    fn lifetimes_compare_by_value_and_not_by_spelling() {
        let utc = Lifetime::ExpiresAt(instant("2030-01-01T00:00:00Z"));
        assert_eq!(utc, Lifetime::ExpiresAt(instant("2030-01-01T01:00:00.000+01:00")));
        assert_ne!(utc, Lifetime::ExpiresAt(instant("2030-01-01T00:00:00.000000001Z")));
        assert_ne!(utc, Lifetime::Ttl { seconds: 1_893_456_000 });
        assert_ne!(Lifetime::Ttl { seconds: 1 }, Lifetime::Ttl { seconds: 2 });
    }

    #[test]
    fn an_instant_survives_being_taken_apart() {
        let before = instant("2017-01-01T00:59:60.5+01:00");
        let after = ExpiresAt::from_parts(before.raw(), before.seconds(), before.nanos());
        assert_eq!(before, after);
        assert_eq!(before.raw(), after.raw());
    }

    #[test]
    fn deadlines_saturate() {
        let ttl = |seconds| Lifetime::Ttl { seconds };
        assert_eq!(ttl(5).deadline_ms(1_000), 6_000);
        assert_eq!(ttl(0).deadline_ms(1_000), 1_000);
        assert_eq!(ttl(producer::NUMBER_MAX).deadline_ms(i64::MAX / 2), i64::MAX);
        assert_eq!(ttl(u64::MAX).deadline_ms(0), i64::MAX);

        let fixed = Lifetime::ExpiresAt(instant("1970-01-01T00:00:02.9999Z"));
        assert_eq!(fixed.deadline_ms(0), 2_999);
        assert_eq!(fixed.deadline_ms(i64::MAX), 2_999);
        let far = ExpiresAt::from_parts("", i64::MAX, 0);
        assert_eq!(far.at_ms(), i64::MAX);
        let past = instant("1969-12-31T23:59:59.25Z");
        assert_eq!(past.at_ms(), -750);
    }
}
