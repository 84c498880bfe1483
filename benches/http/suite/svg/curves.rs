//! Latency over quantile, both on logarithmic scales: how bad the worst are.

use std::fmt::Write as _;

use super::{Canvas, LINE, MARGIN, WIDTH, colour};
use crate::suite::report::{Report, RowReport};

/// Families whose curves are drawn.
const FAMILIES: [&str; 4] = ["append", "long-poll", "sse", "fan-out"];
const COLUMNS: usize = 2;
const PLOT_HEIGHT: f64 = 170.0;
/// Left of a plot, for the figures of its axis.
const AXIS_WIDTH: f64 = 58.0;
/// Quantiles with a line, and the last one that is drawn.
const TICKS: [(f64, &str); 5] =
    [(0.5, "50"), (0.9, "90"), (0.99, "99"), (0.999, "99.9"), (0.9999, "99.99 %")];

pub(super) fn draw(canvas: &mut Canvas, report: &Report, servers: &[String]) {
    let drawn = |row: &&RowReport| FAMILIES.contains(&row.family.as_str()) && !points(row).is_empty();
    let rows: Vec<&RowReport> = report.rows.iter().filter(drawn).collect();
    if rows.is_empty() {
        return;
    }
    canvas.heading("latency by percentile");
    let width = (WIDTH - 2.0 * MARGIN) / COLUMNS as f64;
    for pair in rows.chunks(COLUMNS) {
        let top = canvas.y;
        for (column, row) in pair.iter().enumerate() {
            let left = MARGIN + width * column as f64 + AXIS_WIDTH;
            let plot = Plot::new(row, (left, top + LINE * 1.4), width - AXIS_WIDTH - 20.0);
            plot.draw(canvas, row, servers);
        }
        canvas.y = top + PLOT_HEIGHT + LINE * 3.6;
    }
}

/// Latencies in microseconds that are drawn, by server.
fn points(row: &RowReport) -> Vec<(&str, Vec<(f64, f64)>)> {
    let last = TICKS[TICKS.len() - 1].0;
    let curves = row.servers.iter().filter_map(|server| {
        let curve = server.median.as_ref()?.curve.iter();
        let points: Vec<_> = curve.copied().filter(|(quantile, us)| *quantile <= last && *us > 0.0).collect();
        (!points.is_empty()).then_some((server.server.as_str(), points))
    });
    curves.collect()
}

/// So many microseconds.
fn power_of_ten(exponent: f64) -> String {
    let (unit, per_unit) = match exponent {
        small if small < 3.0 => ("µs", 0.0),
        middle if middle < 6.0 => ("ms", 3.0),
        _ => ("s", 6.0),
    };
    format!("{} {unit}", 10_f64.powf(exponent - per_unit))
}

struct Plot {
    left: f64,
    top: f64,
    width: f64,
    /// Powers of ten of microseconds at the lower and the upper edge.
    decades: (f64, f64),
}

impl Plot {
    fn new(row: &RowReport, (left, top): (f64, f64), width: f64) -> Self {
        let all = points(row);
        let all = || all.iter().flat_map(|(_, points)| points).map(|(_, us)| us.log10());
        let low = all().fold(f64::INFINITY, f64::min).floor();
        let high = all().fold(f64::NEG_INFINITY, f64::max).ceil();
        Self { left, top, width, decades: (low, high.max(low + 1.0)) }
    }

    /// Nines: 0.9 is 1, 0.99 is 2.
    fn x(&self, quantile: f64) -> f64 {
        let nines = |quantile: f64| -(1.0 - quantile).log10();
        let last = nines(TICKS[TICKS.len() - 1].0);
        self.left + self.width * (nines(quantile) / last).clamp(0.0, 1.0)
    }

    fn y(&self, us: f64) -> f64 {
        let (low, high) = self.decades;
        self.top + PLOT_HEIGHT * (1.0 - (us.log10() - low) / (high - low))
    }

    fn draw(&self, canvas: &mut Canvas, row: &RowReport, servers: &[String]) {
        let (bottom, right) = (self.top + PLOT_HEIGHT, self.left + self.width);
        canvas.text(self.left, self.top - 8.0, "", &row.name);
        let mut decade = self.decades.0;
        while decade <= self.decades.1 {
            let us = 10_f64.powf(decade);
            let y = self.y(us);
            canvas.line("grid", (self.left, y), (right, y));
            canvas.text(self.left - 6.0, y + 4.0, "quiet end", &power_of_ten(decade));
            decade += 1.0;
        }
        for (quantile, label) in TICKS {
            let x = self.x(quantile);
            canvas.line("grid", (x, self.top), (x, bottom));
            canvas.text(x, bottom + LINE * 0.9, "quiet middle", label);
        }
        canvas.line("axis", (self.left, bottom), (right, bottom));
        for (server, points) in points(row) {
            let class = colour(servers, server);
            let path: Vec<String> = points
                .iter()
                .map(|(quantile, us)| format!("{:.1},{:.1}", self.x(*quantile), self.y(*us)))
                .collect();
            let _ = writeln!(canvas.body, "<polyline class=\"s{class}\" points=\"{}\"/>", path.join(" "));
        }
    }
}
