//! Wall-clock time, in milliseconds since 1970. Tests drive it by hand.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// Where an engine takes the time from. Cheap to clone; clones of a manual clock share its time.
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Manual(Arc<watch::Sender<i64>>),
}

impl Clock {
    /// The system's wall clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still at `now_ms` until [`Clock::advance`] is called.
    pub fn manual(now_ms: i64) -> Self {
        Self(Source::Manual(Arc::new(watch::Sender::new(now_ms))))
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        match &self.0 {
            Source::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
            Source::Manual(now) => *now.borrow(),
        }
    }

    /// Moves a manual clock forward and wakes whoever waits for the new time. No effect on the system clock.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &self.0 {
            now.send_modify(|ms| *ms += i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
        }
    }

    /// Returns once the time is `deadline_ms` or later; never, if there is no deadline.
    pub async fn sleep_until(&self, deadline_ms: Option<i64>) {
        let Some(deadline_ms) = deadline_ms else {
            return std::future::pending().await;
        };
        match &self.0 {
            Source::System => {
                let left = deadline_ms.saturating_sub(self.now_ms());
                // Bounded, because a timer far in the future is no use: the wall clock may be set meanwhile.
                let left = Duration::from_millis(u64::try_from(left).unwrap_or(0).min(60_000));
                tokio::time::sleep(left).await;
            }
            Source::Manual(now) => {
                let mut changes = now.subscribe();
                // The sender lives as long as `self`, so waiting cannot fail.
                let _ = changes.wait_for(|&ms| ms >= deadline_ms).await;
            }
        }
    }
}
