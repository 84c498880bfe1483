//! A family's results as horizontal bars, each row on its own scale.

use std::fmt::Write as _;

use super::{Canvas, LINE, MARGIN, WIDTH, colour};
use crate::suite::report::{RowReport, ServerReport, duration, short};

const BAR: f64 = 15.0;
const LABEL_WIDTH: f64 = 230.0;
/// Room right of the longest bar, for its figures.
const FIGURES_WIDTH: f64 = 400.0;

pub(super) fn draw(canvas: &mut Canvas, family: &str, rows: &[&RowReport], servers: &[String]) {
    let less = if rows.iter().any(|row| row.less_is_better) { " (less is better)" } else { "" };
    canvas.heading(&format!("{family}{less}"));
    for row in rows {
        draw_row(canvas, row, servers);
    }
}

fn draw_row(canvas: &mut Canvas, row: &RowReport, servers: &[String]) {
    let results: Vec<_> =
        row.servers.iter().filter_map(|server| Some((server, server.median.as_ref()?))).collect();
    let longest =
        results.iter().map(|(_, median)| median.value).filter(|value| value.is_finite()).fold(0.0, f64::max);
    let top = canvas.y;
    canvas.text(MARGIN, top + LINE * 0.75, "", &row.name);
    let left = MARGIN + LABEL_WIDTH;
    for (server, median) in &results {
        let share =
            if longest > 0.0 && median.value.is_finite() { (median.value / longest).max(0.0) } else { 0.0 };
        let width = (share * (WIDTH - MARGIN - left - FIGURES_WIDTH)).max(1.0);
        let class = colour(servers, &server.server);
        let y = canvas.y;
        let _ = writeln!(
            canvas.body,
            "<rect class=\"f{class}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" rx=\"2\"/>",
            y + 1.0,
            BAR - 2.0
        );
        canvas.text(left + width + 6.0, y + BAR - 3.5, "", &figures(row, server));
        canvas.y += BAR;
    }
    canvas.y = canvas.y.max(top + LINE) + 7.0;
}

/// The result, the tail of its latencies, and how it compares.
fn figures(row: &RowReport, server: &ServerReport) -> String {
    let Some(median) = &server.median else { return String::new() };
    let mut text = format!("{} {}", short(median.value), row.unit);
    if let Some(p99) = median.p99_us {
        let _ = write!(text, " · p99 {}", duration(p99));
    }
    let ratios: Vec<String> =
        server.ratios.iter().map(|ratio| format!("{:.2} × {}", ratio.value, ratio.peer)).collect();
    if !ratios.is_empty() {
        let _ = write!(text, " · {}", ratios.join(", "));
    }
    text
}
