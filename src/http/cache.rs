//! Who may keep a response, for how long, and how it is recognised again: `protocol.md` §15.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::header::IF_NONE_MATCH;
use axum::http::{HeaderMap, HeaderValue};

use crate::engine::api::StreamInfo;
use crate::http::headers::NO_STORE;
use crate::protocol::etag::{self, EtagMark};
use crate::protocol::lifetime::Lifetime;

/// Seconds that a stored page counts as fresh.
const FRESH_SECS: u64 = 60;
/// Seconds more that it may be served while it is fetched again.
const STALE_SECS: u64 = 300;
/// A page of a stream whose content leaves at an age is kept for this part of it at most.
const AGE_PARTS: u64 = 32;

static PUBLIC: HeaderValue = HeaderValue::from_static("public, max-age=60, stale-while-revalidate=300");
static PRIVATE: HeaderValue = HeaderValue::from_static("private, max-age=60, stale-while-revalidate=300");

/// A page as caches see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageFacts {
    pub(super) start: u64,
    pub(super) end: u64,
    /// The page ends at the tail.
    pub(super) up_to_date: bool,
    /// The stream is closed and the page ends at its tail.
    pub(super) closed: bool,
}

impl PageFacts {
    /// The page's ETag: it changes with data, with closure, with being up to date, and with re-creation.
    pub(super) fn etag(&self, incarnation: u128) -> String {
        let mark = match (self.closed, self.up_to_date) {
            (true, _) => EtagMark::Closed,
            (false, true) => EtagMark::Tail,
            (false, false) => EtagMark::Partial,
        };
        etag::format(incarnation, self.start, self.end, mark)
    }

    /// `Cache-Control` of a 200 or 304. An empty page at an open tail must not be kept: it would hide new data.
    pub(super) fn cache_control(&self, has_credentials: bool, left_ms: Option<u64>) -> HeaderValue {
        if self.start == self.end && !self.closed {
            return NO_STORE.clone();
        }
        let left_secs = left_ms.map_or(u64::MAX, |ms| ms / 1000);
        if left_secs >= FRESH_SECS + STALE_SECS {
            return if has_credentials { PRIVATE.clone() } else { PUBLIC.clone() };
        }
        let fresh = left_secs.min(FRESH_SECS);
        let stale = (left_secs - fresh).min(STALE_SECS);
        let scope = if has_credentials { "private" } else { "public" };
        let value = match (fresh, stale) {
            (0, _) => return NO_STORE.clone(),
            (fresh, 0) => format!("{scope}, max-age={fresh}"),
            (fresh, stale) => format!("{scope}, max-age={fresh}, stale-while-revalidate={stale}"),
        };
        HeaderValue::try_from(value).expect("words and numbers make a header value")
    }
}

/// Milliseconds that a response of this stream stays true at most. A live read may answer long after `info` was taken:
/// for a fixed instant the time left is counted anew.
///
/// Content that leaves at an age may be in a page at the end of that: what caches add is as little as what the server does.
pub(super) fn left_ms(info: &StreamInfo, now_ms: i64) -> Option<u64> {
    let of_life = match &info.lifetime {
        Some(Lifetime::ExpiresAt(instant)) => {
            Some(u64::try_from(instant.at_ms().saturating_sub(now_ms)).unwrap_or(0))
        }
        Some(Lifetime::Ttl { .. }) => info.remaining_ms,
        None => None,
    };
    let of_content = info.retention.max_age_secs.map(|secs| secs.saturating_mul(1000) / AGE_PARTS);
    of_life.into_iter().chain(of_content).min()
}

/// Any `If-None-Match` line matches `etag`.
pub(super) fn none_match_hits(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().any(|value| etag::none_match_hits(value.as_bytes(), etag))
}

/// A page that ended at the tail, as the one ETag of a conditional request tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KnownPage {
    pub(super) incarnation: u128,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) closed: bool,
}

impl KnownPage {
    /// Reads `If-None-Match`. `None` unless it is one tag of ours for a page at a tail.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(IF_NONE_MATCH).iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        let value = value.to_str().ok()?.trim();
        let tag = value.strip_prefix("W/").unwrap_or(value).strip_prefix('"')?.strip_suffix('"')?;
        let mut fields = tag.split(':');
        let incarnation = u128::from_str_radix(fields.next()?, 16).ok()?;
        let start = fields.next()?.parse().ok()?;
        let end = fields.next()?.parse().ok()?;
        let closed = match fields.next()? {
            "t" => false,
            "c" => true,
            _ => return None,
        };
        fields.next().is_none().then_some(Self { incarnation, start, end, closed })
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    }
}

/// A number that nobody can foretell well enough to line up with others. Not for secrets.
pub(super) fn jitter() -> u64 {
    ahash::RandomState::new().hash_one(0_u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::content_type::ContentType;
    use crate::protocol::lifetime::parse_expires_at;
    use crate::protocol::retention::Retention;

    const DATA: PageFacts = PageFacts { start: 3, end: 7, up_to_date: true, closed: false };

    #[test]
    fn pages_are_kept_no_longer_than_the_stream_lives() {
        for (left_ms, expected) in [
            (None, "public, max-age=60, stale-while-revalidate=300"),
            (Some(360_000), "public, max-age=60, stale-while-revalidate=300"),
            (Some(359_999), "public, max-age=60, stale-while-revalidate=299"),
            (Some(61_000), "public, max-age=60, stale-while-revalidate=1"),
            (Some(60_999), "public, max-age=60"),
            (Some(1_500), "public, max-age=1"),
            (Some(999), "no-store"),
            (Some(0), "no-store"),
        ] {
            assert_eq!(DATA.cache_control(false, left_ms), expected, "{left_ms:?}");
            let private = expected.replace("public", "private");
            assert_eq!(DATA.cache_control(true, left_ms), private, "{left_ms:?}");
        }
    }

    #[test]
    fn an_empty_page_is_kept_only_at_the_end_of_a_closed_stream() {
        let empty = PageFacts { start: 7, end: 7, up_to_date: true, closed: false };
        assert_eq!(empty.cache_control(false, None), "no-store");
        let eof = PageFacts { closed: true, ..empty };
        assert_eq!(eof.cache_control(false, None), "public, max-age=60, stale-while-revalidate=300");
    }

    #[test]
    fn etags_differ_by_what_readers_learn_from_the_page() {
        let partial = PageFacts { up_to_date: false, ..DATA };
        let closed = PageFacts { closed: true, ..DATA };
        let etags = [DATA.etag(1), partial.etag(1), closed.etag(1), DATA.etag(2)];
        for (i, a) in etags.iter().enumerate() {
            assert!(etags[i + 1..].iter().all(|b| a != b), "{etags:?}");
        }
    }

    #[test]
    fn a_known_page_is_read_back_from_its_own_etag_alone() {
        let known = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(IF_NONE_MATCH, HeaderValue::from_str(value).unwrap());
            }
            KnownPage::of(&headers)
        };
        let page = KnownPage { incarnation: 0xabc, start: 3, end: 7, closed: false };
        assert_eq!(known(&[&DATA.etag(0xabc)]), Some(page));
        assert_eq!(known(&[&format!("W/{}", DATA.etag(0xabc))]), Some(page));
        let closed = PageFacts { closed: true, ..DATA }.etag(0xabc);
        assert_eq!(known(&[&closed]), Some(KnownPage { closed: true, ..page }));
        let partial = PageFacts { up_to_date: false, ..DATA }.etag(0xabc);
        let both = format!("{closed}, {partial}");
        for other in [&[][..], &["*"], &["\"x\""], &["\"\""], &["\""], &[&*partial], &[&*both]] {
            assert_eq!(known(other), None, "{other:?}");
        }
        assert_eq!(known(&[&closed, &closed]), None);
    }

    #[test]
    fn the_time_left_until_an_instant_is_counted_anew() {
        let instant = parse_expires_at(b"1970-01-01T00:01:00Z").unwrap();
        let info = StreamInfo {
            incarnation: 1,
            content_type: ContentType::octet_stream(),
            lifetime: Some(Lifetime::ExpiresAt(instant)),
            remaining_ms: Some(60_000),
            retention: Retention::default(),
            earliest: 0,
            tail: 0,
            closed: false,
        };
        assert_eq!(left_ms(&info, 20_000), Some(40_000));
        assert_eq!(left_ms(&info, 70_000), Some(0));
        let ttl = StreamInfo { lifetime: Some(Lifetime::Ttl { seconds: 60 }), ..info };
        assert_eq!(left_ms(&ttl, 70_000), Some(60_000));
        let aging = |max_age_secs| Retention { max_age_secs: Some(max_age_secs), max_bytes: Some(1) };
        let short = StreamInfo { retention: aging(64), ..ttl.clone() };
        assert_eq!(left_ms(&short, 70_000), Some(2_000));
        let long = StreamInfo { retention: aging(u64::MAX), ..ttl };
        assert_eq!(left_ms(&long, 70_000), Some(60_000));
    }
}
