//! The table of a run, and notes below it.

use std::fmt::Write as _;

use super::{Report, RowReport, ServerReport, duration, short};

/// A generator that works more than this part of the time may be what limits the result.
const GENERATOR_BUSY_MAX: f64 = 0.85;

impl Report {
    /// The table that is printed.
    pub(crate) fn table(&self) -> String {
        let mut header: Vec<String> = [
            "workload",
            "server",
            "result",
            "p50",
            "p99",
            "p99.9",
            "CPU s",
            "µs each",
            "peak",
            "syncs/append",
        ]
        .map(str::to_owned)
        .into();
        header.extend(self.peers.iter().map(|peer| format!("of {peer}")));
        let mut lines = vec![header];
        let mut notes = String::new();
        for row in &self.rows {
            for server in &row.servers {
                lines.push(self.line(row, server));
                note(&mut notes, row, server);
            }
        }
        let machine = &self.machine;
        let mut text = format!(
            "{}, {} cores, {} GB, Linux {}, {}; {} · {}\n\n",
            machine.cpu,
            machine.cores,
            machine.memory_bytes >> 30,
            machine.kernel,
            machine.file_system,
            self.version,
            self.date
        );
        aligned(&mut text, &lines);
        if !notes.is_empty() {
            let _ = write!(text, "\n{notes}");
        }
        text
    }

    fn line(&self, row: &RowReport, server: &ServerReport) -> Vec<String> {
        let mut cells = vec![row.name.clone(), server.server.clone()];
        let Some(median) = &server.median else {
            cells.push("failed".to_owned());
            return cells;
        };
        let bytes =
            |bytes: Option<f64>| bytes.map_or(String::new(), |bytes| format!("{:.0} MB", bytes / 1e6));
        let plain =
            |value: Option<f64>, digits: usize| value.map_or(String::new(), |v| format!("{v:.digits$}"));
        cells.push(format!("{} {}", short(median.value), row.unit));
        cells.extend(
            [median.p50_us, median.p99_us, median.p999_us].map(|us| us.map_or(String::new(), duration)),
        );
        cells.extend([
            plain(median.cpu_seconds, 2),
            plain(median.cpu_us_each, 1),
            bytes(median.peak_bytes),
            plain(median.syncs_per_append, 3),
        ]);
        for peer in &self.peers {
            let ratio = server.ratios.iter().find(|ratio| ratio.peer == *peer);
            cells.push(ratio.map_or(String::new(), |ratio| format!("{:.2}", ratio.value)));
        }
        cells
    }
}

/// What does not fit into the table: further figures, spread, errors.
fn note(notes: &mut String, row: &RowReport, server: &ServerReport) {
    let mut said = Vec::new();
    if let Some(median) = &server.median {
        said.extend(median.more.iter().map(|(name, value)| format!("{name} {}", short(*value))));
        said.extend(median.errors.iter().map(|(what, count)| format!("ERROR: {what}: {count}")));
    }
    let busy = server.median.as_ref().and_then(|median| median.generator_busy).unwrap_or(0.0);
    if busy > GENERATOR_BUSY_MAX {
        said.push(format!("the generator was busy for {:.0} % of the time", busy * 100.0));
    }
    if server.rounds.len() > 1 {
        let values = server.rounds.iter().map(|round| short(round.value)).collect::<Vec<_>>();
        said.push(format!("rounds {}", values.join(" ")));
    }
    said.extend(server.failures.iter().map(|why| format!("FAILED: {why}")));
    if !said.is_empty() {
        let _ = writeln!(notes, "{}, {}: {}", row.name, server.server, said.join("; "));
    }
}

/// Left-aligned names, right-aligned figures.
fn aligned(text: &mut String, lines: &[Vec<String>]) {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for line in lines {
        let cells = line.iter().enumerate().map(|(column, cell)| match (column, widths[column]) {
            (0 | 1, width) => format!("{cell:<width$}"),
            (_, width) => format!("{cell:>width$}"),
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
