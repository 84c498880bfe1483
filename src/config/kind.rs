//! The sorts of values that keys take: how each is read from a layer, checked, and put into place.

use std::time::Duration;

use super::check::Draft;
use super::value::Raw;

/// What a key takes, and where it goes. Times are seconds, sizes are bytes.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A whole number.
    Whole { min: u64, max: u64, set: fn(&mut Draft, u64) },
    /// A size in bytes, or with a unit. `unlimited` is what that word does, where it is allowed.
    Bytes { min: u64, max: u64, set: fn(&mut Draft, u64), unlimited: Option<fn(&mut Draft)> },
    /// A TCP port.
    Port { set: fn(&mut Draft, u16) },
    /// A time; fractions are allowed.
    Seconds { min: f64, max: f64, set: fn(&mut Draft, Duration) },
    /// A time, or 0 for what `zero` says.
    SecondsOrZero { max: f64, zero: &'static str, set: fn(&mut Draft, Option<Duration>) },
    /// `true` or `false`.
    Flag { set: fn(&mut Draft, bool) },
    /// One of some words.
    Choice { words: &'static [Word] },
    /// Some of some words, at least one. `clear` removes what the defaults had put there.
    Words { words: &'static [Word], clear: fn(&mut Draft) },
    /// Text with a rule of its own. `set` says whether the rule holds.
    Text { rule: &'static str, set: fn(&mut Draft, &str) -> bool },
    /// A list of texts with a rule of its own. `set` says whether the rule holds.
    Texts { rule: &'static str, set: fn(&mut Draft, &[String]) -> bool },
    /// A key of an earlier family that may only say what holds here anyway.
    Fixed { allowed: &'static [&'static str] },
}

/// A word of a [`Kind::Choice`] or [`Kind::Words`].
#[derive(Clone, Copy)]
pub(crate) struct Word {
    name: &'static str,
    /// Other spellings that earlier families took.
    also: &'static [&'static str],
    effect: Effect,
}

#[derive(Clone, Copy)]
enum Effect {
    Set(fn(&mut Draft)),
    /// A known word that this version does not carry out, and why.
    Refused(&'static str),
}

impl Word {
    pub(crate) const fn new(name: &'static str, set: fn(&mut Draft)) -> Self {
        Self { name, also: &[], effect: Effect::Set(set) }
    }

    pub(crate) const fn refused(name: &'static str, why: &'static str) -> Self {
        Self { name, also: &[], effect: Effect::Refused(why) }
    }

    pub(crate) const fn also(mut self, spellings: &'static [&'static str]) -> Self {
        self.also = spellings;
        self
    }

    fn is(&self, text: &str) -> bool {
        self.name.eq_ignore_ascii_case(text) || self.also.iter().any(|also| also.eq_ignore_ascii_case(text))
    }
}

/// The smallest and the largest number that a key takes, both allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Range {
    /// Whole numbers: counts, or bytes.
    Whole {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// Seconds, with fractions.
    Seconds {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
}

impl Kind {
    /// The rule in words, fit to follow "key = value: ".
    pub(crate) fn rule(&self) -> String {
        match self {
            Self::Whole { min, max, .. } => format!("must be a whole number from {min} to {max}"),
            Self::Bytes { min, max, unlimited, .. } => {
                let or = if unlimited.is_some() { ", or \"unlimited\"" } else { "" };
                format!(
                    "must be a size from {} to {}, in bytes or like \"16MiB\"{or}",
                    size(*min),
                    size(*max)
                )
            }
            Self::Port { .. } => format!("must be a whole number from 0 to {}", u16::MAX),
            Self::Seconds { min, max, .. } => {
                format!("must be a number of seconds from {min} to {max}, fractions allowed")
            }
            Self::SecondsOrZero { max, zero, .. } => {
                format!("must be a number of seconds from 0 ({zero}) to {max}, fractions allowed")
            }
            Self::Flag { .. } => "must be true or false".to_owned(),
            Self::Choice { words } => format!("must be one of {}", names(words)),
            Self::Words { words, .. } => format!("must be a list of one or more of {}", names(words)),
            Self::Text { rule, .. } | Self::Texts { rule, .. } => (*rule).to_owned(),
            Self::Fixed { allowed: [] } => "is not supported yet".to_owned(),
            Self::Fixed { allowed } => {
                format!("must be {}, for nothing else is supported yet", allowed.join(" or "))
            }
        }
    }

    /// The numbers that are allowed, if this takes numbers.
    pub(crate) fn range(&self) -> Option<Range> {
        match *self {
            Self::Whole { min, max, .. } | Self::Bytes { min, max, .. } => Some(Range::Whole { min, max }),
            Self::Port { .. } => Some(Range::Whole { min: 0, max: u16::MAX.into() }),
            Self::Seconds { min, max, .. } => Some(Range::Seconds { min, max }),
            Self::SecondsOrZero { max, .. } => Some(Range::Seconds { min: 0.0, max }),
            _ => None,
        }
    }

    /// Puts a value into place, or says which rule it breaks.
    pub(crate) fn apply(&self, draft: &mut Draft, raw: &Raw) -> Result<(), String> {
        let broken = || self.rule();
        match self {
            Self::Whole { min, max, set } => set(draft, number(raw, *min, *max).ok_or_else(broken)?),
            Self::Bytes { unlimited: Some(lift), .. }
                if word(raw).is_some_and(|word| word == "unlimited") =>
            {
                lift(draft);
            }
            Self::Bytes { min, max, set, .. } => set(draft, bytes(raw, *min, *max).ok_or_else(broken)?),
            Self::Port { set } => {
                let port = number(raw, 0, u16::MAX.into()).and_then(|port| u16::try_from(port).ok());
                set(draft, port.ok_or_else(broken)?);
            }
            Self::Seconds { min, max, set } => set(draft, seconds(raw, *min, *max).ok_or_else(broken)?),
            Self::SecondsOrZero { max, set, .. } => {
                let time = seconds(raw, 0.0, *max).ok_or_else(broken)?;
                set(draft, (!time.is_zero()).then_some(time));
            }
            Self::Flag { set } => set(draft, flag(raw).ok_or_else(broken)?),
            Self::Choice { words } => {
                let text = word(raw).ok_or_else(broken)?;
                pick(words, text, draft).unwrap_or_else(|| Err(broken()))?;
            }
            Self::Words { words, clear } => {
                let items = raw.items().filter(|items| !items.is_empty()).ok_or_else(broken)?;
                clear(draft);
                for item in &items {
                    pick(words, item, draft).unwrap_or_else(|| Err(broken()))?;
                }
            }
            Self::Text { set, .. } => {
                let held = word(raw).is_some_and(|text| set(draft, text));
                return if held { Ok(()) } else { Err(broken()) };
            }
            Self::Texts { set, .. } => {
                let held = raw.items().is_some_and(|items| set(draft, &items));
                return if held { Ok(()) } else { Err(broken()) };
            }
            Self::Fixed { allowed } => {
                let text = word(raw).map_or_else(|| raw.to_string(), str::to_owned);
                return if allowed.contains(&text.as_str()) { Ok(()) } else { Err(broken()) };
            }
        }
        Ok(())
    }
}

fn names(words: &[Word]) -> String {
    let available = words.iter().filter(|word| matches!(word.effect, Effect::Set(_)));
    available.map(|word| word.name).collect::<Vec<_>>().join(", ")
}

/// A size with the largest unit that divides it.
fn size(bytes: u64) -> String {
    let unit = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match unit.iter().find(|(_, shift)| bytes.trailing_zeros() >= *shift && bytes > 0) {
        Some((name, shift)) => format!("{}{name}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// Carries a word out; `None` if it is not one of `words`.
fn pick(words: &[Word], text: &str, draft: &mut Draft) -> Option<Result<(), String>> {
    let word = words.iter().find(|word| word.is(text))?;
    Some(match word.effect {
        Effect::Set(set) => {
            set(draft);
            Ok(())
        }
        Effect::Refused(why) => Err(format!("{} {why}", word.name)),
    })
}

/// Environment variables are all text, so every kind also reads its text form.
fn word(raw: &Raw) -> Option<&str> {
    match raw {
        Raw::Text(text) => Some(text.trim()),
        _ => None,
    }
}

fn flag(raw: &Raw) -> Option<bool> {
    match raw {
        Raw::Flag(flag) => Some(*flag),
        _ => word(raw)?.parse().ok(),
    }
}

fn number(raw: &Raw, min: u64, max: u64) -> Option<u64> {
    let number = match raw {
        Raw::Whole(number) => *number,
        _ => word(raw)?.parse().ok()?,
    };
    u64::try_from(number).ok().filter(|number| (min..=max).contains(number))
}

fn bytes(raw: &Raw, min: u64, max: u64) -> Option<u64> {
    if let Some(number) = number(raw, min, max) {
        return Some(number);
    }
    let text = word(raw)?;
    let unit_start = text.find(|character: char| !character.is_ascii_digit())?;
    let count: u64 = text[..unit_start].parse().ok()?;
    let unit: u64 = match text[unit_start..].trim_start() {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    count.checked_mul(unit).filter(|number| (min..=max).contains(number))
}

fn seconds(raw: &Raw, min: f64, max: f64) -> Option<Duration> {
    let number = match raw {
        Raw::Whole(number) => *number as f64,
        Raw::Fraction(number) => *number,
        _ => word(raw)?.parse().ok()?,
    };
    // NaN is in no range.
    if (min..=max).contains(&number) { Duration::try_from_secs_f64(number).ok() } else { None }
}
