//! Values as they stand in a layer, before a rule was applied.

use std::fmt::{self, Write as _};
use std::time::Duration;

use config::{Value, ValueKind};

/// One value as written. Its `Display` is TOML on one line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Raw {
    Flag(bool),
    Whole(i128),
    Fraction(f64),
    Text(String),
    List(Vec<Raw>),
}

impl Raw {
    /// A text value.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A duration in seconds, whole if it can be.
    pub(crate) fn seconds(duration: Duration) -> Self {
        if duration.subsec_nanos() == 0 {
            Self::Whole(i128::from(duration.as_secs()))
        } else {
            Self::Fraction(duration.as_secs_f64())
        }
    }

    /// Whether this is the empty string, with which a layer takes an optional value back.
    pub(crate) fn is_empty_text(&self) -> bool {
        matches!(self, Self::Text(text) if text.is_empty())
    }

    /// The items of a TOML array or of a comma-separated string; `None` if it is neither.
    pub(crate) fn items(&self) -> Option<Vec<String>> {
        match self {
            Self::Text(text) => Some(text.split(',').map(|item| item.trim().to_owned()).collect()),
            Self::List(list) => list
                .iter()
                .map(|item| match item {
                    Self::Text(text) => Some(text.trim().to_owned()),
                    _ => None,
                })
                .collect(),
            _ => None,
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Whole(number) => write!(f, "{number}"),
            // `{:?}` keeps the point that makes it a TOML float.
            Self::Fraction(number) => write!(f, "{number:?}"),
            Self::Text(text) => quote(f, text),
            Self::List(list) => {
                f.write_char('[')?;
                for (index, item) in list.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{item}")?;
                }
                f.write_char(']')
            }
        }
    }
}

/// Writes a TOML basic string. Control characters are escaped, which also keeps an error on one line.
fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for character in text.chars() {
        match character {
            '"' | '\\' => write!(f, "\\{character}")?,
            _ if breaks_line(character) => write!(f, "\\u{:04X}", u32::from(character))?,
            _ => f.write_char(character)?,
        }
    }
    f.write_char('"')
}

/// Whether a character must not reach a terminal or a line of output as it is.
pub(crate) fn breaks_line(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}

/// The leaves of a layer as `(dotted path, value)`, ordered by path. An empty table stands for itself, so that a
/// misspelt section without keys is noticed too.
pub(crate) fn leaves(table: impl IntoIterator<Item = (String, Value)>) -> Vec<(String, Option<Raw>)> {
    let mut found = Vec::new();
    for (name, value) in table {
        collect(name, value, &mut found);
    }
    found.sort_by(|left, right| left.0.cmp(&right.0));
    found
}

fn collect(path: String, value: Value, found: &mut Vec<(String, Option<Raw>)>) {
    match value.kind {
        ValueKind::Table(table) if table.is_empty() => found.push((path, None)),
        ValueKind::Table(table) => {
            for (name, value) in table {
                collect(format!("{path}.{name}"), value, found);
            }
        }
        kind => found.push((path, Some(leaf(kind)))),
    }
}

fn leaf(kind: ValueKind) -> Raw {
    match kind {
        ValueKind::Nil => Raw::Text(String::new()),
        ValueKind::Boolean(flag) => Raw::Flag(flag),
        ValueKind::I64(number) => Raw::Whole(i128::from(number)),
        ValueKind::I128(number) => Raw::Whole(number),
        ValueKind::U64(number) => Raw::Whole(i128::from(number)),
        ValueKind::U128(number) => Raw::Whole(i128::try_from(number).unwrap_or(i128::MAX)),
        ValueKind::Float(number) => Raw::Fraction(number),
        ValueKind::String(text) => Raw::Text(text),
        // No key takes a table inside a list; its text form is good enough for the error that follows.
        table @ ValueKind::Table(_) => Raw::Text(table.to_string()),
        ValueKind::Array(list) => Raw::List(list.into_iter().map(|item| leaf(item.kind)).collect()),
    }
}
