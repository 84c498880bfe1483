//! The picture of a run: bars for each workload, and latency curves of those that have them.
//!
//! Colours come from style classes, so that the picture follows the reader's light or dark scheme.

mod bars;
mod curves;

use std::fmt::Write as _;

use super::report::{Report, RowReport};

/// Colours of servers in light and dark schemes, in the order of the report. Ours first, in blues and greens as they come.
const COLOURS: [(&str, &str); 8] = [
    ("#2563eb", "#60a5fa"),
    ("#059669", "#34d399"),
    ("#7c3aed", "#a78bfa"),
    ("#0891b2", "#22d3ee"),
    ("#ea580c", "#fb923c"),
    ("#be123c", "#fb7185"),
    ("#a16207", "#facc15"),
    ("#52525b", "#a1a1aa"),
];

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// Height of a line of text.
const LINE: f64 = 18.0;

/// Draws `report`.
pub(crate) fn render(report: &Report) -> String {
    let servers = servers(report);
    let mut canvas = Canvas { body: String::new(), y: MARGIN };
    title(&mut canvas, report);
    legend(&mut canvas, &servers);
    let mut families: Vec<&str> = Vec::new();
    for row in &report.rows {
        if !families.contains(&row.family.as_str()) {
            families.push(&row.family);
        }
    }
    for family in &families {
        let rows: Vec<&RowReport> = report.rows.iter().filter(|row| row.family == *family).collect();
        bars::draw(&mut canvas, family, &rows, &servers);
    }
    curves::draw(&mut canvas, report, &servers);
    let height = canvas.y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" role=\"img\">\n\
         <title>{}</title>\n<style>{}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{height:.0}\"/>\n{}</svg>\n",
        escaped(&format!("durable-streams-server benchmarks, {}", report.date)),
        style(),
        canvas.body
    )
}

/// Where the next thing goes.
struct Canvas {
    body: String,
    y: f64,
}

impl Canvas {
    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(self.body, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>");
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.body,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    fn heading(&mut self, text: &str) {
        self.y += LINE * 1.6;
        let y = self.y;
        self.text(MARGIN, y, "heading", text);
        self.y += LINE * 0.6;
    }
}

/// All servers that have a result, in the order of the report; the place says the colour.
fn servers(report: &Report) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for server in report.rows.iter().flat_map(|row| &row.servers) {
        if server.median.is_some() && !names.contains(&server.server) {
            names.push(server.server.clone());
        }
    }
    names
}

fn colour(servers: &[String], name: &str) -> usize {
    servers.iter().position(|known| known == name).unwrap_or(0) % COLOURS.len()
}

fn title(canvas: &mut Canvas, report: &Report) {
    let machine = &report.machine;
    canvas.y += 8.0;
    let y = canvas.y;
    canvas.text(MARGIN, y, "title", "durable-streams-server");
    let lines = [
        format!(
            "{} · version {} · medians of {} rounds of {} s",
            report.date, report.version, report.rounds, report.seconds
        ),
        format!(
            "{}, {} cores, {} GB, Linux {}, {}; server and load generator on the same machine",
            machine.cpu,
            machine.cores,
            machine.memory_bytes >> 30,
            machine.kernel,
            machine.file_system
        ),
    ];
    for line in lines {
        canvas.y += LINE;
        let y = canvas.y;
        canvas.text(MARGIN, y, "quiet", &line);
    }
    canvas.y += LINE * 0.8;
}

fn legend(canvas: &mut Canvas, servers: &[String]) {
    let mut x = MARGIN;
    canvas.y += LINE * 0.6;
    for name in servers {
        let width = 30.0 + 7.0 * name.chars().count() as f64;
        if x + width > WIDTH - MARGIN {
            x = MARGIN;
            canvas.y += LINE;
        }
        let y = canvas.y;
        let class = colour(servers, name);
        let _ = writeln!(
            canvas.body,
            "<rect class=\"f{class}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"12\" rx=\"2\"/>",
            y - 10.0
        );
        canvas.text(x + 17.0, y, "", name);
        x += width;
    }
    canvas.y += LINE * 0.4;
}

fn style() -> String {
    let mut light = String::from(
        "text{fill:#18181b}.title{font-size:20px;font-weight:600}.heading{font-size:15px;font-weight:600}\
         .quiet{fill:#71717a}.end{text-anchor:end}.middle{text-anchor:middle}.page{fill:#ffffff}\
         .grid{stroke:#e4e4e7}.axis{stroke:#a1a1aa}",
    );
    let mut dark = String::from(
        "text{fill:#f4f4f5}.quiet{fill:#a1a1aa}.page{fill:#18181b}.grid{stroke:#3f3f46}.axis{stroke:#71717a}",
    );
    for (index, (on_light, on_dark)) in COLOURS.iter().enumerate() {
        let _ = write!(
            light,
            ".f{index}{{fill:{on_light}}}.s{index}{{stroke:{on_light};fill:none;stroke-width:2}}"
        );
        let _ = write!(dark, ".f{index}{{fill:{on_dark}}}.s{index}{{stroke:{on_dark}}}");
    }
    format!("{light}@media(prefers-color-scheme:dark){{{dark}}}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::*;

    #[test]
    fn the_picture_has_every_result_and_is_balanced() {
        let svg = render(&sample());
        assert!(svg.contains("20.0k /s") && svg.contains("a&lt;b&gt;") && !svg.contains("a<b>"), "{svg}");
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("prefers-color-scheme:dark"));
    }

    #[test]
    fn a_report_without_results_can_be_drawn() {
        let mut report = sample();
        report.rows.clear();
        assert!(render(&report).ends_with("</svg>\n"));
    }
}
