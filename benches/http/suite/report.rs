//! The report of a run: what is written as JSON and printed as a table.

mod table;

use serde::{Deserialize, Serialize};

use super::measured::Measured;
use super::process::Machine;

/// Of the JSON's shape.
pub(crate) const VERSION: u32 = 1;

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// [`VERSION`].
    pub(crate) format: u32,
    /// When it began, in UTC.
    pub(crate) date: String,
    /// Of this package, and of its working copy if that is known.
    pub(crate) version: String,
    pub(crate) machine: Machine,
    /// Arguments of the run.
    pub(crate) command: Vec<String>,
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
    /// The names of the other servers.
    pub(crate) peers: Vec<String>,
    pub(crate) rows: Vec<RowReport>,
}

/// One workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RowReport {
    pub(crate) family: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) less_is_better: bool,
    pub(crate) servers: Vec<ServerReport>,
}

/// One server's part in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ServerReport {
    pub(crate) server: String,
    /// `None` if no round came to an end.
    pub(crate) median: Option<Measured>,
    pub(crate) rounds: Vec<Measured>,
    /// Why rounds did not come to an end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<String>,
    /// For ours: its result divided by that of each peer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ratios: Vec<Ratio>,
}

/// Ours divided by a peer's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ratio {
    pub(crate) peer: String,
    pub(crate) value: f64,
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) cpu_us_each: Option<f64>,
}

impl RowReport {
    /// Takes medians and ratios of what the rounds gave.
    pub(crate) fn conclude(&mut self, peers: &[String]) {
        for server in &mut self.servers {
            server.median = (!server.rounds.is_empty()).then(|| Measured::median_of(&server.rounds));
        }
        let is_peer = |server: &ServerReport| peers.contains(&server.server);
        let theirs: Vec<(String, Measured)> = self
            .servers
            .iter()
            .filter(|server| is_peer(server))
            .filter_map(|server| Some((server.server.clone(), server.median.clone()?)))
            .collect();
        for server in self.servers.iter_mut().filter(|server| !is_peer(server)) {
            let Some(ours) = &server.median else { continue };
            server.ratios =
                theirs.iter().filter_map(|(peer, theirs)| Ratio::of(ours, peer, theirs)).collect();
        }
    }
}

impl Ratio {
    /// `None` if the peer's result is nothing to be compared with.
    fn of(ours: &Measured, peer: &str, theirs: &Measured) -> Option<Self> {
        let ratio = |ours: Option<f64>, theirs: Option<f64>| {
            ours.zip(theirs).filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours / theirs)
        };
        Some(Self {
            peer: peer.to_owned(),
            value: ratio(Some(ours.value), Some(theirs.value))?,
            p50: ratio(ours.p50_us, theirs.p50_us),
            p99: ratio(ours.p99_us, theirs.p99_us),
            cpu_us_each: ratio(ours.cpu_us_each, theirs.cpu_us_each),
        })
    }
}

/// A figure of about three digits.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 1e7 => format!("{:.1}M", value / 1e6),
        large if large >= 1e6 => format!("{:.2}M", value / 1e6),
        large if large >= 1e4 => format!("{:.1}k", value / 1e3),
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A time given in microseconds.
pub(crate) fn duration(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e4 => format!("{:.1} ms", us / 1e3),
        us if us >= 1e3 => format!("{:.2} ms", us / 1e3),
        us => format!("{us:.0} µs"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report of two workloads, ours and a peer.
    pub(crate) fn sample() -> Report {
        let measured = |value: f64| Measured {
            value,
            p50_us: Some(1e6 / value),
            p99_us: Some(3e6 / value),
            curve: vec![(0.5, 1e6 / value), (0.99, 3e6 / value), (1.0, 9e6 / value)],
            ..Measured::default()
        };
        let server = |name: &str, values: &[f64]| ServerReport {
            server: name.to_owned(),
            median: None,
            rounds: values.iter().map(|value| measured(*value)).collect(),
            failures: Vec::new(),
            ratios: Vec::new(),
        };
        let mut row = RowReport {
            family: "append".to_owned(),
            name: "append-c1".to_owned(),
            unit: "/s".to_owned(),
            less_is_better: false,
            servers: vec![
                server("acid × 2", &[30_000.0, 10_000.0, 20_000.0]),
                server("a<b>", &[10_000.0; 3]),
            ],
        };
        row.conclude(&["a<b>".to_owned()]);
        let mut failed = row.clone();
        failed.name = "append-c2".to_owned();
        failed.servers[1].rounds.clear();
        failed.servers[1].failures.push("refused".to_owned());
        failed.conclude(&["a<b>".to_owned()]);
        Report {
            format: VERSION,
            date: "2026-01-01".to_owned(),
            version: "0.1.0".to_owned(),
            machine: Machine::here(".".as_ref()),
            command: Vec::new(),
            seconds: 1.0,
            rounds: 3,
            peers: vec!["a<b>".to_owned()],
            rows: vec![row, failed],
        }
    }

    #[test]
    fn ratios_are_those_of_the_medians() {
        let report = sample();
        let ours = &report.rows[0].servers[0];
        assert_eq!(ours.median.as_ref().unwrap().value, 20_000.0);
        assert_eq!((ours.ratios[0].value, ours.ratios[0].p50), (2.0, Some(0.5)));
        assert!(report.rows[0].servers[1].ratios.is_empty());
        assert!(report.rows[1].servers[0].ratios.is_empty(), "the peer failed");
        let table = report.table();
        assert!(table.contains("20.0k /s") && table.contains("2.00") && table.contains("failed"), "{table}");
        assert!(table.contains("FAILED: refused"), "{table}");
    }

    #[test]
    fn a_report_survives_being_written_and_read() {
        let text = serde_json::to_string(&sample()).unwrap();
        let again: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(again.table(), sample().table());
    }
}
