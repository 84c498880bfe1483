//! Lifetimes: when a stream ends by itself. `protocol.md` §16.

use crate::protocol::lifetime::Lifetime;
use crate::stream::state::StreamState;

/// Longest time by which a persisted renewal may lag the real one.
const RENEWAL_LAG_MS_MAX: i64 = 60_000;

impl StreamState {
    /// Deadline at this moment, in milliseconds since 1970; `None` = lives until deleted. A sliding window cannot run
    /// out while a live reader is attached.
    pub fn deadline_ms(&self, has_live_readers: bool) -> Option<i64> {
        match self.lifetime.as_ref()? {
            Lifetime::Ttl { .. } if has_live_readers => None,
            lifetime => Some(lifetime.deadline_ms(self.renewed_at_ms)),
        }
    }

    /// The deadline has come, whether or not anything followed from it yet.
    pub fn is_past_deadline(&self, now_ms: i64, has_live_readers: bool) -> bool {
        self.deadline_ms(has_live_readers).is_some_and(|deadline| deadline <= now_ms)
    }

    /// The deadline has come, and the stream has to be ended. One that is already soft-deleted has not.
    pub fn is_expired(&self, now_ms: i64, has_live_readers: bool) -> bool {
        !self.soft_deleted && self.is_past_deadline(now_ms, has_live_readers)
    }
}

/// How far the persisted start of a sliding window may lag the real one, in milliseconds: a quarter of the window, and
/// never more than a minute. Renewals within it cost no write; after a restart the window is longer by this much, so
/// that it is never shorter than promised.
pub fn renewal_lag_ms(lifetime: &Lifetime) -> i64 {
    match lifetime {
        Lifetime::Ttl { seconds } => {
            i64::try_from(seconds.saturating_mul(1000) / 4).unwrap_or(i64::MAX).min(RENEWAL_LAG_MS_MAX)
        }
        Lifetime::ExpiresAt(_) => 0,
    }
}
