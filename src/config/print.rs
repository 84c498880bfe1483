//! The effective configuration as text.

use std::fmt;

use super::error::Origin;
use super::load::Loaded;

/// The column in which sources begin, if the value leaves room.
const SOURCE_COLUMN: usize = 52;

/// One key with its effective value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setting {
    /// The key as a dotted path.
    pub key: &'static str,
    /// The value as TOML, masked if it is secret; `""` = not set.
    pub value: String,
    /// Where the value came from.
    pub origin: Origin,
    /// Where the port came from, if this is an address whose port a later layer changed.
    pub port_origin: Option<Origin>,
}

/// A TOML file that, given to `--config`, leads to the same configuration; each line ends with its source.
impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut open_section = "";
        for setting in &self.settings {
            let (section, leaf) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
            if section != open_section {
                let gap = if open_section.is_empty() { "" } else { "\n" };
                writeln!(f, "{gap}[{section}]")?;
                open_section = section;
            }
            let line = format!("{leaf} = {}", setting.value);
            write!(f, "{line:<SOURCE_COLUMN$} # {}", setting.origin)?;
            match &setting.port_origin {
                Some(origin) => writeln!(f, ", the port: {origin}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}
