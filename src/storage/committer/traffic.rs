//! How much is committed, as far as it decides when a commit thread that never pauses reclaims.

use std::time::{Duration, Instant};

/// Traffic is judged over spans of at least this length.
pub(super) const SPAN: Duration = Duration::from_secs(10);
/// With less in a span, what is free in the files will not be used again soon. Bytes.
pub(super) const LIGHT_BYTES: usize = 1 << 20;

/// Where the time comes from.
pub(super) type Now = Box<dyn Fn() -> Instant + Send>;

/// What was committed in the present span.
pub(super) struct Traffic {
    now: Now,
    since: Instant,
    bytes: usize,
}

impl Traffic {
    /// The first span begins `now`.
    pub(super) fn new(now: Now) -> Self {
        Self { since: now(), now, bytes: 0 }
    }

    /// So many bytes were committed.
    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// Whether a span is over in which there was little. The next one begins with its end.
    pub(super) fn was_light(&mut self) -> bool {
        let now = (self.now)();
        if now.saturating_duration_since(self.since) < SPAN {
            return false;
        }
        let bytes = std::mem::take(&mut self.bytes);
        self.since = now;
        bytes < LIGHT_BYTES
    }
}
