//! A configuration key: its names, its rule, its way into and out of a [`Config`]; and how keys are found by name.

use std::fmt;

use super::check::Draft;
use super::error;
use super::kind::{Kind, Range};
use super::model::Config;
use super::table::{KEYS, LEGACY_KEYS};
use super::value::Raw;

/// One configuration key.
#[derive(Clone, Copy)]
pub struct Key {
    name: &'static str,
    about: &'static str,
    aliases: &'static [&'static str],
    optional: bool,
    pub(crate) kind: Kind,
    get: fn(&Config) -> Raw,
}

impl Key {
    /// The dotted path, as `section.key` of a TOML file.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it does, in a line.
    #[must_use]
    pub fn about(&self) -> &'static str {
        self.about
    }

    /// Other names under which earlier families knew it, as dotted paths. Within one layer such a name wins.
    #[must_use]
    pub fn aliases(&self) -> &'static [&'static str] {
        self.aliases
    }

    /// The environment variable that sets it.
    #[must_use]
    pub fn env_name(&self) -> String {
        env_name(self.name)
    }

    /// Which values are allowed, in words.
    #[must_use]
    pub fn rule(&self) -> String {
        let rule = self.kind.rule();
        if self.optional { format!("{rule}; empty = not set") } else { rule }
    }

    /// Which numbers are allowed, if it takes numbers.
    #[must_use]
    pub fn range(&self) -> Option<Range> {
        self.kind.range()
    }

    /// The built-in default as TOML; `""` means "not set".
    #[must_use]
    pub fn default_value(&self) -> String {
        self.value_in(&Config::default())
    }

    /// Its value in `config` as TOML, masked if it is secret.
    #[must_use]
    pub fn value_in(&self, config: &Config) -> String {
        error::masked(self.name, &(self.get)(config))
    }

    /// Its value in `config`, as a layer would hold it.
    pub(crate) fn raw_in(&self, config: &Config) -> Raw {
        (self.get)(config)
    }

    /// Puts a value into place, or says which rule it breaks.
    pub(crate) fn apply(&self, draft: &mut Draft, raw: &Raw) -> Result<(), String> {
        // The empty string takes back what an earlier layer said.
        if self.optional && raw.is_empty_text() { Ok(()) } else { self.kind.apply(draft, raw) }
    }

    pub(super) const fn new(
        name: &'static str,
        about: &'static str,
        kind: Kind,
        get: fn(&Config) -> Raw,
    ) -> Self {
        Self { name, about, aliases: &[], optional: false, kind, get }
    }

    /// A key of an earlier family that may only say what holds here anyway.
    pub(super) const fn legacy(
        name: &'static str,
        about: &'static str,
        allowed: &'static [&'static str],
    ) -> Self {
        Self::new(name, about, Kind::Fixed { allowed }, |_| Raw::text("")).optional()
    }

    pub(super) const fn aliases_are(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    pub(super) const fn optional(mut self) -> Self {
        self.optional = true;
        self
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("name", &self.name)
            .field("aliases", &self.aliases)
            .finish_non_exhaustive()
    }
}

/// The environment variable of a dotted path.
pub(crate) fn env_name(path: &str) -> String {
    format!("DS_{}", path.to_ascii_uppercase().replace('.', "__"))
}

/// The key of a dotted path, and whether the path is one of its aliases.
pub(crate) fn find(path: &str) -> Option<(&'static Key, bool)> {
    KEYS.iter().chain(LEGACY_KEYS).find_map(|key| {
        let alias = key.aliases.contains(&path);
        (alias || key.name == path).then_some((key, alias))
    })
}

/// Whether `path` is a table that holds keys.
pub(crate) fn is_section(path: &str) -> bool {
    names().any(|name| name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The known path that differs least from an unknown one.
pub(crate) fn nearest(path: &str) -> &'static str {
    let (section, leaf) = path.rsplit_once('.').unwrap_or(("", path));
    let distance = |name: &&'static str| {
        let (other_section, other_leaf) = name.rsplit_once('.').unwrap_or(("", name));
        // The right key in the wrong section is a likelier slip than any other key.
        let likelihood = match (leaf == other_leaf, is_section(section) && section != other_section) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => 2,
        };
        (likelihood, strsim::osa_distance(path, name))
    };
    names().min_by_key(distance).expect("the table of keys is not empty")
}

/// All names of keys that can be set to something, aliases included.
fn names() -> impl Iterator<Item = &'static str> {
    KEYS.iter()
        .chain(LEGACY_KEYS)
        .flat_map(|key| std::iter::once(key.name).chain(key.aliases.iter().copied()))
}
