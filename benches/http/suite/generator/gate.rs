//! When a run begins to count and when it ends, for all threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// See the module. Times are nanoseconds of [`now_ns`](crate::suite::stats::now_ns).
#[derive(Debug)]
pub(crate) struct Gate {
    expected: usize,
    arrived: AtomicUsize,
    refused: AtomicUsize,
    /// Beginning and end of the window; 0 = shut.
    from: AtomicU64,
    until: AtomicU64,
    /// After this nothing is waited for.
    give_up: AtomicU64,
}

impl Gate {
    /// A shut gate that `expected` readers have to arrive at.
    pub(crate) fn new(expected: usize) -> Arc<Self> {
        Arc::new(Self {
            expected,
            arrived: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            from: AtomicU64::new(0),
            until: AtomicU64::new(u64::MAX),
            give_up: AtomicU64::new(u64::MAX),
        })
    }

    /// A reader is ready for what is to come.
    pub(crate) fn arrive(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }

    /// A reader will never be.
    pub(crate) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How many have arrived, and how many are to.
    pub(crate) fn arrivals(&self) -> (usize, usize) {
        (self.arrived.load(Ordering::Relaxed), self.expected)
    }

    /// Nobody is to arrive any more.
    pub(crate) fn is_decided(&self) -> bool {
        let (arrived, expected) = self.arrivals();
        arrived + self.refused.load(Ordering::Relaxed) >= expected
    }

    /// Lets everybody begin; counting begins at `from` and ends at `until`.
    pub(crate) fn open(&self, from: u64, until: u64) {
        self.until.store(until, Ordering::Relaxed);
        self.from.store(from.max(1), Ordering::Release);
    }

    /// From `at` on nothing is waited for.
    pub(crate) fn give_up_at(&self, at: u64) {
        self.give_up.store(at, Ordering::Relaxed);
    }

    /// Beginning and end of the window, once it is open.
    pub(super) fn window(&self) -> Option<(u64, u64)> {
        let from = self.from.load(Ordering::Acquire);
        (from > 0).then(|| (from, self.until.load(Ordering::Relaxed)))
    }

    /// The window is over: nothing new is begun.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        now >= self.until.load(Ordering::Relaxed)
    }

    pub(super) fn is_given_up(&self, now: u64) -> bool {
        now >= self.give_up.load(Ordering::Relaxed)
    }
}
