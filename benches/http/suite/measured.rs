//! What a measurement gave, as it is kept and shown.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::process::Usage;
use super::stats::{Series, Stats, median};

/// Quantiles of the latency curve.
const CURVE: [f64; 10] = [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0];

/// The error of a window in which nothing ended.
const NOTHING: &str = "nothing came to an end";

/// A run that is over.
#[derive(Debug)]
pub(crate) struct Driven {
    pub(crate) stats: Stats,
    /// Length of the window.
    pub(crate) seconds: f64,
    /// What the server had taken when it opened.
    pub(crate) before: Option<Usage>,
    /// And when it closed.
    pub(crate) after: Option<Usage>,
    /// Part of the window that the generator's threads were at work, from 0 to 1.
    pub(crate) generator_busy: f64,
}

/// The figures of one measurement, or the medians of several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// The result, in the row's unit.
    pub(crate) value: f64,
    /// Latencies in microseconds; `None` where there is nothing to wait for.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    /// Quantile, and the latency in microseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) curve: Vec<(f64, f64)>,
    /// CPU time that the server took in the window.
    pub(crate) cpu_seconds: Option<f64>,
    /// The same for each of what is counted, in microseconds.
    pub(crate) cpu_us_each: Option<f64>,
    /// Most memory of the server in the run.
    pub(crate) peak_bytes: Option<f64>,
    /// Part of the time that the generator's threads were at work, from 0 to 1.
    #[serde(default)]
    pub(crate) generator_busy: Option<f64>,
    /// Syncs of files over the server's life, for each of its mutations.
    pub(crate) syncs_per_append: Option<f64>,
    /// Requests that changed something, in the server's life.
    #[serde(default)]
    pub(crate) mutations: u64,
    /// What went wrong, and how often.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) errors: BTreeMap<String, u64>,
    /// Further figures, by name and unit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) more: BTreeMap<String, f64>,
}

impl Measured {
    /// Of a run whose result is the number of the main thing per second.
    pub(crate) fn rate(driven: &Driven) -> Self {
        let value = driven.stats.main.count() as f64 / driven.seconds;
        Self { value, ..Self::common(driven) }
    }

    /// Of a run whose result is the megabytes (10^6) that arrived per second, also those of reads that took longer than the
    /// window. CPU time is for each megabyte, too.
    pub(crate) fn megabytes(driven: &Driven) -> Self {
        let megabytes = driven.stats.received_bytes as f64 / 1e6;
        let mut measured = Self { value: megabytes / driven.seconds, ..Self::common(driven) };
        measured.cpu_us_each =
            measured.cpu_seconds.filter(|_| megabytes > 0.0).map(|cpu| cpu * 1e6 / megabytes);
        if megabytes > 0.0 {
            measured.errors.remove(NOTHING);
        }
        measured
    }

    /// Of a run whose result is the median latency of the main thing in microseconds.
    pub(crate) fn latency(driven: &Driven) -> Self {
        let common = Self::common(driven);
        Self { value: common.p50_us.unwrap_or(0.0), ..common }
    }

    fn common(driven: &Driven) -> Self {
        let main = &driven.stats.main;
        let cpu_seconds = match (driven.before, driven.after) {
            (Some(before), Some(after)) => Some(after.cpu_seconds - before.cpu_seconds),
            _ => None,
        };
        let happened = main.count() > 0;
        let mut errors = driven.stats.errors.clone();
        if !happened {
            errors.insert(NOTHING.to_owned(), 1);
        }
        let at = |quantile| happened.then(|| main.micros_at(quantile));
        Self {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            curve: curve(main),
            cpu_seconds,
            cpu_us_each: cpu_seconds.filter(|_| happened).map(|cpu| cpu * 1e6 / main.count() as f64),
            peak_bytes: driven.after.map(|usage| usage.peak_bytes as f64),
            generator_busy: Some(driven.generator_busy),
            mutations: driven.stats.mutations,
            errors,
            ..Self::default()
        }
    }

    /// With the rate and the latencies of what went on besides, under its name.
    pub(crate) fn with_side(mut self, name: &str, driven: &Driven) -> Self {
        let side = &driven.stats.side;
        self.more.insert(format!("{name}/s"), side.count() as f64 / driven.seconds);
        if side.count() > 0 {
            self.more.insert(format!("{name} p50 µs"), side.micros_at(0.5));
            self.more.insert(format!("{name} p99 µs"), side.micros_at(0.99));
        }
        self
    }

    /// With mutations that were made before the run.
    pub(crate) fn after_mutations(mut self, count: u64) -> Self {
        self.mutations += count;
        self
    }

    /// The medians of rounds, each figure by itself; errors are added up.
    pub(crate) fn median_of(rounds: &[Self]) -> Self {
        let mut errors = BTreeMap::new();
        for (what, count) in rounds.iter().flat_map(|round| &round.errors) {
            *errors.entry(what.clone()).or_default() += count;
        }
        let of = |figure: &dyn Fn(&Self) -> Option<f64>| {
            median(&rounds.iter().filter_map(figure).collect::<Vec<_>>())
        };
        let names = rounds.iter().flat_map(|round| round.more.keys());
        let more = names.filter_map(|name| Some((name.clone(), of(&|round| round.more.get(name).copied())?)));
        let at = |quantile: f64| {
            move |round: &Self| round.curve.iter().find(|(known, _)| *known == quantile).map(|(_, us)| *us)
        };
        let curve = CURVE.iter().filter_map(|quantile| Some((*quantile, of(&at(*quantile))?)));
        Self {
            value: of(&|round| Some(round.value)).unwrap_or(0.0),
            p50_us: of(&|round| round.p50_us),
            p99_us: of(&|round| round.p99_us),
            p999_us: of(&|round| round.p999_us),
            cpu_seconds: of(&|round| round.cpu_seconds),
            cpu_us_each: of(&|round| round.cpu_us_each),
            peak_bytes: of(&|round| round.peak_bytes),
            generator_busy: of(&|round| round.generator_busy),
            syncs_per_append: of(&|round| round.syncs_per_append),
            mutations: rounds.iter().map(|round| round.mutations).sum(),
            curve: curve.collect(),
            more: more.collect(),
            errors,
        }
    }
}

fn curve(series: &Series) -> Vec<(f64, f64)> {
    if series.count() == 0 {
        return Vec::new();
    }
    CURVE.iter().map(|quantile| (*quantile, series.micros_at(*quantile))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_become_medians_figure_by_figure() {
        let round = |value: f64, p99: f64, cpu: Option<f64>| Measured {
            value,
            p99_us: Some(p99),
            cpu_seconds: cpu,
            curve: vec![(0.5, p99 / 2.0), (1.0, p99 * 2.0)],
            more: [("x/s".to_owned(), value)].into(),
            errors: [("lost".to_owned(), 1)].into(),
            ..Measured::default()
        };
        let median = Measured::median_of(&[
            round(3.0, 10.0, None),
            round(1.0, 30.0, Some(2.0)),
            round(2.0, 20.0, None),
        ]);
        assert_eq!((median.value, median.p99_us, median.p50_us), (2.0, Some(20.0), None));
        assert_eq!((median.cpu_seconds, median.more["x/s"], median.errors["lost"]), (Some(2.0), 2.0, 3));
        assert_eq!(median.curve, [(0.5, 10.0), (1.0, 40.0)]);
    }
}
