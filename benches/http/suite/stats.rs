//! What is counted while servers are driven.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Instant;

use hdrhistogram::Histogram;

/// Latencies are kept to three digits, and above this counted as this. Nanoseconds.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// Nanoseconds since the suite first asked. One clock for all threads, so that a reader can subtract what a writer noted.
pub(crate) fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    u64::try_from(start.elapsed().as_nanos()).expect("the suite does not run for centuries")
}

/// Nanoseconds of seconds.
pub(crate) fn ns(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// One kind of thing that happens again and again.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// How long each took. Nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

impl Series {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("these bounds are valid");
        Self { latency }
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.latency.len()
    }

    /// Latency in microseconds at a quantile from 0 to 1; 0 if nothing happened.
    pub(crate) fn micros_at(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }

    fn merge(&mut self, other: &Self) {
        self.latency.add(&other.latency).expect("all histograms have the same bounds");
    }
}

/// Which [`Series`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// What the workload is named for.
    Main,
    /// What goes on besides.
    Side,
}

/// What one thread counted, and later what all did.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    /// What the workload is named for, inside the window.
    pub(crate) main: Series,
    /// What goes on besides, inside the window.
    pub(crate) side: Series,
    /// Bytes of bodies that arrived inside the window, of responses complete or not.
    pub(crate) received_bytes: u64,
    /// What went wrong, and how often, inside the window or not.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Requests that changed something and succeeded, inside the window or not.
    pub(crate) mutations: u64,
    window: (u64, u64),
}

impl Stats {
    /// Nothing yet, and a window that never opens.
    pub(crate) fn new() -> Self {
        Self {
            main: Series::new(),
            side: Series::new(),
            received_bytes: 0,
            errors: BTreeMap::new(),
            mutations: 0,
            window: (u64::MAX, u64::MAX),
        }
    }

    /// From here on, what happens from `from` to before `until` is measured. Nanoseconds.
    pub(crate) fn set_window(&mut self, from: u64, until: u64) {
        self.window = (from, until);
    }

    /// Something ended at `now` that had begun at `began`.
    pub(crate) fn record(&mut self, which: Which, began: u64, now: u64) {
        if !self.is_in_window(now) {
            return;
        }
        let series = match which {
            Which::Main => &mut self.main,
            Which::Side => &mut self.side,
        };
        series.latency.saturating_record(now.saturating_sub(began).max(1));
    }

    /// Bytes of a body arrived at `now`.
    pub(crate) fn received(&mut self, now: u64, bytes: u64) {
        if self.is_in_window(now) {
            self.received_bytes += bytes;
        }
    }

    fn is_in_window(&self, now: u64) -> bool {
        (self.window.0..self.window.1).contains(&now)
    }

    /// Something went wrong `count` times.
    pub(crate) fn error(&mut self, what: impl Into<String>, count: u64) {
        if count > 0 {
            *self.errors.entry(what.into()).or_default() += count;
        }
    }

    /// Adds what another thread counted.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.main.merge(&other.main);
        self.side.merge(&other.side);
        self.received_bytes += other.received_bytes;
        self.mutations += other.mutations;
        for (what, count) in &other.errors {
            self.error(what.as_str(), *count);
        }
    }
}

/// The middle one of the values; of an even number the mean of the two in the middle; `None` of none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_the_sorted_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[9.0, 1.0, 5.0, 2.0]), Some(3.5));
    }

    #[test]
    fn only_what_ends_inside_the_window_is_measured() {
        let mut stats = Stats::new();
        stats.record(Which::Main, 0, 10);
        stats.received(10, 1);
        stats.set_window(100, 200);
        for (began, now) in [(50, 99), (50, 100), (150, 199), (150, 200)] {
            stats.record(Which::Main, began, now);
            stats.received(now, 7);
        }
        stats.record(Which::Side, 110, 120);
        assert_eq!((stats.main.count(), stats.received_bytes, stats.side.count()), (2, 14, 1));
    }

    #[test]
    fn quantiles_are_in_microseconds_and_survive_merging() {
        let (mut one, mut other) = (Stats::new(), Stats::new());
        for stats in [&mut one, &mut other] {
            stats.set_window(0, u64::MAX);
        }
        for step in 1..=1000 {
            let stats = if step % 2 == 0 { &mut one } else { &mut other };
            stats.record(Which::Main, 0, step * 1000);
        }
        other.error("lost", 2);
        one.merge(&other);
        assert_eq!((one.main.count(), one.errors["lost"]), (1000, 2));
        for (quantile, micros) in [(0.5, 500.0), (0.99, 990.0), (0.999, 999.0)] {
            let seen = one.main.micros_at(quantile);
            assert!((seen - micros).abs() <= micros / 500.0, "{quantile}: {seen}");
        }
    }
}
