//! The log: `tracing` events as lines on the standard error stream.
//!
//! * Text, for people. Whatever comes from outside is escaped, so that a request can neither forge a line nor reach the
//!   terminal with an escape sequence.
//! * JSON, one object a line, with the names of the Elastic Common Schema: `@timestamp`, `log.level`, `log.logger`, `message`.
//!   An event's fields keep their dotted names, which by this project's convention are OpenTelemetry's and ECS's
//!   (`http.request.method`, `url.path`, `error.type`).

use std::fmt;
use std::io::{self, IsTerminal as _};

use serde::ser::{SerializeMap as _, Serializer as _};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer, debug_fn};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogConfig, LogFormat};

/// The version of the Elastic Common Schema whose names are used.
const ECS_VERSION: &str = "8.11.0";

const TIMESTAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The filter directives are malformed. A checked configuration has none such.
    #[error("log.rust_log = {directives:?}: must be filter directives: {problem}")]
    Filter {
        /// The directives.
        directives: String,
        /// What is wrong with them.
        problem: String,
    },
    /// The process has a global `tracing` subscriber already.
    #[error("the log is set up already")]
    AlreadySet,
}

/// Sends the process's `tracing` events to the standard error stream. To be called once, before anything is logged.
///
/// A program that embeds the server and has a subscriber of its own does not call this.
///
/// # Errors
///
/// If the directives are malformed, or the process has a global subscriber already.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let colours = io::stderr().is_terminal();
    subscriber(config, colours, io::stderr)?.try_init().map_err(|_| TelemetryError::AlreadySet)
}

/// The subscriber behind [`init`], writing wherever it is told to.
fn subscriber<W>(
    config: &LogConfig,
    colours: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&config.rust_log).map_err(|problem| TelemetryError::Filter {
        directives: config.rust_log.clone(),
        problem: problem.to_string(),
    })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let filtered = tracing_subscriber::registry().with(filter);
    Ok(match config.format {
        LogFormat::Text => {
            let fields =
                debug_fn(|writer, field, value| write_text_field(writer, field, value)).delimited(" ");
            Box::new(filtered.with(lines.with_ansi(colours).fmt_fields(fields)))
        }
        LogFormat::Json => Box::new(filtered.with(lines.with_ansi(false).event_format(EcsLines))),
    })
}

fn write_text_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let mut escaped = Escaped(writer);
    if field.name() == "message" {
        fmt::write(&mut escaped, format_args!("{value:?}"))
    } else {
        fmt::write(&mut escaped, format_args!("{}={value:?}", field.name()))
    }
}

/// Escapes what would end the line or steer the terminal.
struct Escaped<'a, 'writer>(&'a mut Writer<'writer>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_safe =
            |character: char| !character.is_control() && !matches!(character, '\u{2028}' | '\u{2029}');
        let mut rest = text;
        while let Some(at) = rest.find(|character| !is_safe(character)) {
            let (safe, tail) = rest.split_at(at);
            self.0.write_str(safe)?;
            let unsafe_chars = tail.chars().take_while(|character| !is_safe(*character)).count();
            for character in tail.chars().take(unsafe_chars) {
                write!(self.0, "{}", character.escape_default())?;
            }
            rest = tail.trim_start_matches(|character| !is_safe(character));
        }
        self.0.write_str(rest)
    }
}

/// One JSON object a line, with ECS names.
struct EcsLines;

impl<S, N> FormatEvent<S, N> for EcsLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let line = ecs_line(event, OffsetDateTime::now_utc()).map_err(|_| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

fn ecs_line(event: &Event<'_>, now: OffsetDateTime) -> Result<String, Box<dyn std::error::Error>> {
    let metadata = event.metadata();
    let mut line = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("@timestamp", &now.format(TIMESTAMP)?)?;
    map.serialize_entry("log.level", &metadata.level().as_str().to_ascii_lowercase())?;
    map.serialize_entry("log.logger", metadata.target())?;
    map.serialize_entry("ecs.version", ECS_VERSION)?;
    let mut fields = EcsFields { map, outcome: Ok(()) };
    event.record(&mut fields);
    fields.outcome?;
    fields.map.end()?;
    Ok(String::from_utf8(line)?)
}

/// Writes an event's fields, `message` among them, with the types they have.
struct EcsFields<'a> {
    map: serde_json::ser::Compound<'a, &'a mut Vec<u8>, serde_json::ser::CompactFormatter>,
    outcome: serde_json::Result<()>,
}

impl EcsFields<'_> {
    fn put(&mut self, field: &Field, value: &(impl serde::Serialize + ?Sized)) {
        if self.outcome.is_ok() {
            self.outcome = self.map.serialize_entry(field.name(), value);
        }
    }
}

impl Visit for EcsFields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, &value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::config::Config;

    /// What the subscriber wrote, for all clones.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines_of(format: LogFormat, rust_log: &str, log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let mut config = Config::default().log;
        config.format = format;
        config.rust_log = rust_log.to_owned();
        let subscriber = subscriber(&config, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_lines_have_ecs_names_and_typed_fields() {
        let text = lines_of(LogFormat::Json, "info", || {
            tracing::info!(
                http.request.method = "GET",
                http.response.status_code = 200_u64,
                event.duration = -1_i64,
                ratio = 0.5,
                ds.closed = true,
                url.path = %"/v1/stream/a",
                "served \"{}\"",
                "a"
            );
        });
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["log.level"], "info");
        assert_eq!(line["log.logger"], module_path!());
        assert_eq!(line["message"], "served \"a\"");
        assert_eq!(line["http.request.method"], "GET");
        assert_eq!(line["http.response.status_code"], 200);
        assert_eq!(line["event.duration"], -1);
        assert_eq!(line["ratio"], 0.5);
        assert_eq!(line["ds.closed"], true);
        assert_eq!(line["url.path"], "/v1/stream/a");
        assert_eq!(line["ecs.version"], ECS_VERSION);
        let timestamp = line["@timestamp"].as_str().unwrap();
        let parsed = OffsetDateTime::parse(timestamp, &time::format_description::well_known::Rfc3339);
        assert!(parsed.is_ok(), "{timestamp}");
    }

    #[test]
    fn json_lines_stay_one_line_whatever_is_logged() {
        let text = lines_of(LogFormat::Json, "info", || tracing::warn!(url.path = "a\nb\u{1b}[31m", "x\ny"));
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.contains('\u{1b}'));
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["url.path"], "a\nb\u{1b}[31m");
        assert_eq!(line["message"], "x\ny");
    }

    #[test]
    fn text_lines_carry_no_control_characters_from_outside() {
        let hostile = "a\r\nERROR forged \u{1b}[31m\u{9b}\u{2028}é";
        let text = lines_of(LogFormat::Text, "info", || {
            tracing::info!(shown = %hostile, quoted = hostile, "said {hostile}");
        });
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(!text.trim_end().contains(|c: char| c.is_control() || c == '\u{2028}'), "{text:?}");
        assert!(text.contains("said a\\r\\nERROR forged \\u{1b}[31m\\u{9b}\\u{2028}é"), "{text}");
        assert!(text.contains(" shown=a\\r\\n"), "{text}");
    }

    #[test]
    fn fields_of_spans_are_escaped_too() {
        let text = lines_of(LogFormat::Text, "info", || {
            let _entered = tracing::info_span!("request", path = %"a\nb").entered();
            tracing::info!("inside");
        });
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.contains("request{path=a\\nb}"), "{text}");
    }

    #[test]
    fn what_the_filter_rules_out_is_not_written() {
        let text = lines_of(LogFormat::Text, "warn", || tracing::info!("quiet"));
        assert_eq!(text, "");
    }

    #[test]
    fn malformed_directives_are_refused() {
        let mut config = Config::default().log;
        config.rust_log = "a=b=c".to_owned();
        let error = subscriber(&config, false, io::sink).err().map(|error| error.to_string()).unwrap();
        assert!(error.starts_with("log.rust_log = \"a=b=c\": must be filter directives"), "{error}");
    }
}
