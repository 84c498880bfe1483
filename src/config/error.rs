//! Why a configuration was refused, in one line, and where a value came from.

use std::fmt;
use std::path::PathBuf;

use super::value::{Raw, breaks_line};

/// Longest value that an error shows, in characters.
const SHOWN_CHARS_MAX: usize = 120;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// The defaults compiled into the program.
    Default,
    /// A shipped profile, compiled in, used because the configuration directory has no file of that name.
    Profile(String),
    /// A TOML file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// An option of the command line, or the field of [`ConfigLoadOptions`](super::ConfigLoadOptions) behind it.
    Option(&'static str),
    /// A [`Config`](super::Config) that the embedding program filled in.
    Program,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("built-in default"),
            Self::Profile(name) => write!(f, "built-in profile {}", one_line(name)),
            Self::File(path) => f.write_str(&one_line(&path.to_string_lossy())),
            Self::Variable(name) => f.write_str(&one_line(name)),
            Self::Option(name) => f.write_str(name),
            Self::Program => f.write_str("set by the program"),
        }
    }
}

/// A configuration that cannot be used. `Display` is one line that names the source, the key, the value (masked if the
/// key holds a secret) and the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A source could not be read, or is not TOML.
    #[error("{origin}: {problem}")]
    Unreadable {
        /// The source.
        origin: Origin,
        /// What is wrong with it.
        problem: String,
    },
    /// A value breaks the rule of its key.
    #[error("{origin}: {key} = {value}: {rule}")]
    Invalid {
        /// Where the value came from.
        origin: Origin,
        /// The key as it was written.
        key: String,
        /// The value as TOML, masked if it is secret.
        value: String,
        /// What is allowed.
        rule: String,
    },
    /// A key or a `DS_*` variable that means nothing.
    #[error("{origin}: {key} = {value}: unknown key; the nearest known one is {nearest}")]
    Unknown {
        /// Where it was found.
        origin: Origin,
        /// The key as it was written.
        key: String,
        /// The value as TOML, masked if the key sounds like a secret.
        value: String,
        /// The known key or variable that differs least.
        nearest: String,
    },
}

/// A value as TOML on one line, masked if `key` sounds like a secret.
pub(crate) fn masked(key: &str, value: &Raw) -> String {
    if sounds_secret(key) { "\"***\"".to_owned() } else { without_password(value.to_string()) }
}

/// A value as an error shows it: masked, and not too long.
pub(crate) fn shown(key: &str, value: &Raw) -> String {
    let mut text = masked(key, value);
    if text.chars().count() > SHOWN_CHARS_MAX {
        text = text.chars().take(SHOWN_CHARS_MAX).collect();
        text.push('…');
    }
    text
}

/// Whether a key holds, or by its name seems to hold, something that must not be printed. Unknown keys go through this
/// too: a misspelt secret is still a secret. Paths of files with secrets are no secrets.
pub(crate) fn sounds_secret(key: &str) -> bool {
    let leaf = key.rsplit('.').next().unwrap_or(key).to_ascii_lowercase();
    !leaf.ends_with("_path")
        && ["token", "secret", "password", "passphrase", "passwd", "credential", "private", "api_key"]
            .iter()
            .any(|word| leaf.contains(word))
}

/// Masks `user:password@` in anything that looks like a URL.
fn without_password(text: String) -> String {
    let Some(scheme_end) = text.find("://") else { return text };
    let authority = scheme_end + 3;
    match text[authority..].rfind('@') {
        Some(at) => format!("{}***{}", &text[..authority], &text[authority + at..]),
        None => text,
    }
}

/// Text from outside, made fit for one line of output.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|character| if breaks_line(character) { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_passwords_in_urls_are_masked() {
        assert_eq!(shown("auth.token", &Raw::text("s3cret")), "\"***\"");
        assert_eq!(shown("tls.key_path", &Raw::text("/etc/key.pem")), "\"/etc/key.pem\"");
        assert_eq!(shown("http.public_origin", &Raw::text("https://u:p@h")), "\"https://***@h\"");
    }

    #[test]
    fn a_long_value_is_cut_at_a_character() {
        let value = shown("http.cors_origins", &Raw::text("ä".repeat(500)));
        assert_eq!(value.chars().count(), SHOWN_CHARS_MAX + 1);
        assert!(value.ends_with('…'));
    }

    #[test]
    fn control_characters_never_reach_a_message() {
        assert_eq!(shown("http.public_origin", &Raw::text("a\nb\u{1b}[31m")), "\"a\\u000Ab\\u001B[31m\"");
        assert_eq!(Origin::Variable("DS_A\nB".to_owned()).to_string(), "DS_A\u{fffd}B");
    }
}
