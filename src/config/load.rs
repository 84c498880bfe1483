//! Finds and reads the layers, and remembers where each value came from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat, Source as _};

use super::check::Draft;
use super::error::{ConfigError, Origin, one_line, shown};
use super::keys::{self, Key};
use super::model::Config;
use super::print::Setting;
use super::table::KEYS;
use super::value::{Raw, leaves};

/// Variables that choose the layers. They are no keys, and no mistakes either.
const PROFILE_VARIABLE: &str = "DS_PROFILE";
const CONFIG_DIR_VARIABLE: &str = "DS_CONFIG_DIR";

/// Read by every program that logs through `tracing`, so it comes before our own variables.
const RUST_LOG_VARIABLE: &str = "RUST_LOG";

/// The shipped profiles. They are compiled in, because asking for `prod` away from the repository must never end in the
/// defaults, which keep streams in memory.
const BUILT_IN_PROFILES: [(&str, &str); 3] = [
    ("dev", include_str!("../../config/dev.toml")),
    ("prod", include_str!("../../config/prod.toml")),
    ("prod-tls", include_str!("../../config/prod-tls.toml")),
];

/// Which layers to read.
///
/// ```
/// use durable_streams_server::config::{Config, ConfigLoadOptions};
///
/// let options = ConfigLoadOptions::default().with_profile("dev").with_env([("DS_SERVER__PORT", "8080")]);
/// assert_eq!(Config::load(&options)?.server.bind_address.port(), 8080);
/// # Ok::<(), durable_streams_server::config::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigLoadOptions {
    /// Name of the profile; `None` = what `DS_PROFILE` says, else `default`.
    pub profile: Option<String>,
    /// File that overrides the standard ones. It must exist.
    pub config_path: Option<PathBuf>,
    /// Directory of the standard files; `None` = what `DS_CONFIG_DIR` says, else `config` in the working directory.
    pub config_dir: Option<PathBuf>,
    /// Environment variables; `None` = those of the process.
    pub env: Option<BTreeMap<String, String>>,
}

impl ConfigLoadOptions {
    /// Chooses a profile.
    #[must_use]
    pub fn with_profile(mut self, profile: impl Into<String>) -> Self {
        self.profile = Some(profile.into());
        self
    }

    /// Adds a file that overrides the standard ones.
    #[must_use]
    pub fn with_config_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.config_path = Some(path.into());
        self
    }

    /// Chooses the directory of the standard files.
    #[must_use]
    pub fn with_config_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.config_dir = Some(dir.into());
        self
    }

    /// Reads these environment variables instead of the process's.
    #[must_use]
    pub fn with_env<N: Into<String>, V: Into<String>>(
        mut self,
        env: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.env = Some(env.into_iter().map(|(name, value)| (name.into(), value.into())).collect());
        self
    }
}

/// A configuration together with where its values came from. `Display` is what `--print-config` prints.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Loaded {
    /// The effective configuration.
    pub config: Config,
    /// Every key with its effective value, in the order of [`KEYS`].
    pub settings: Vec<Setting>,
}

impl Config {
    /// Reads all layers and checks the outcome.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong: a file that can't be read, an unknown key or `DS_*` variable, a value against its rule.
    pub fn load(options: &ConfigLoadOptions) -> Result<Self, ConfigError> {
        Loaded::load(options).map(|loaded| loaded.config)
    }

    /// Checks a configuration that a program filled in itself, by the rules that files and variables obey, and normalises
    /// it (a slash at the end of the base path goes, for instance).
    ///
    /// # Errors
    ///
    /// The first value that breaks a rule.
    pub fn validated(&self) -> Result<Self, ConfigError> {
        let mut settings = Settings { found: BTreeMap::new(), fallback: Origin::Program };
        for key in KEYS {
            settings.insert(key, key.name(), key.raw_in(self), Origin::Program);
        }
        settings.resolve()
    }
}

impl Loaded {
    /// Reads all layers and checks the outcome.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn load(options: &ConfigLoadOptions) -> Result<Self, ConfigError> {
        let env = match &options.env {
            Some(env) => env.clone(),
            None => relevant(std::env::vars_os())?,
        };
        let mut settings = Settings { found: BTreeMap::new(), fallback: Origin::Default };
        for layer in file_layers(options, &env)? {
            settings.absorb_text(&layer.text, &layer.origin)?;
        }
        settings.absorb_env(&env)?;
        let config = settings.resolve()?;
        let settings = KEYS.iter().map(|key| settings.effective(key, &config)).collect();
        Ok(Self { config, settings })
    }
}

/// What the layers said, the last word on each key.
pub(crate) struct Settings {
    found: BTreeMap<&'static str, Found>,
    /// Where values come from that no layer set.
    fallback: Origin,
}

struct Found {
    key: &'static Key,
    /// The name that was used: the key's own or an alias.
    written: String,
    raw: Raw,
    origin: Origin,
}

impl Settings {
    /// An error about a key whose own rule holds, but which does not go with others.
    pub(crate) fn refused(&self, name: &'static str, config: &Config, rule: String) -> ConfigError {
        if let Some(found) = self.found.get(name) {
            return found.refused(rule);
        }
        let value = keys::find(name).map_or_else(String::new, |(key, _)| key.value_in(config));
        ConfigError::Invalid { origin: self.fallback.clone(), key: name.to_owned(), value, rule }
    }

    fn insert(&mut self, key: &'static Key, written: &str, raw: Raw, origin: Origin) {
        self.found.insert(key.name(), Found { key, written: written.to_owned(), raw, origin });
    }

    /// Reads one TOML layer.
    fn absorb_text(&mut self, text: &str, origin: &Origin) -> Result<(), ConfigError> {
        let table =
            File::from_str(text, FileFormat::Toml).collect().map_err(|error| ConfigError::Unreadable {
                origin: origin.clone(),
                problem: format!("is not valid TOML: {}", toml_problem(&error)),
            })?;
        let mut entries = Vec::new();
        for (written, raw) in leaves(table) {
            match raw {
                None if keys::is_section(&written) => {}
                None => return Err(unknown(&written, "{}".to_owned(), origin.clone())),
                Some(raw) => entries.push((written, raw, origin.clone())),
            }
        }
        self.absorb(entries)
    }

    /// Reads the variables: `RUST_LOG` below the `DS_*` ones.
    fn absorb_env(&mut self, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        if let Some(filter) = env.get(RUST_LOG_VARIABLE).filter(|filter| !filter.is_empty()) {
            let origin = Origin::Variable(RUST_LOG_VARIABLE.to_owned());
            self.absorb(vec![("log.rust_log".to_owned(), Raw::text(filter), origin)])?;
        }
        let is_ours =
            |name: &str| name.starts_with("DS_") && name != PROFILE_VARIABLE && name != CONFIG_DIR_VARIABLE;
        let ours =
            env.iter().filter(|(name, _)| is_ours(name)).map(|(name, value)| (name.clone(), value.clone()));
        // Letter case counts, as it does for the system: of two spellings of one variable either could win.
        let ours: config::Map<String, String> = ours.collect();
        if let Some(name) = ours.keys().filter(|name| **name != name.to_ascii_uppercase()).min() {
            return Err(unknown_variable(name, &ours[name]));
        }
        let variables =
            Environment::with_prefix("DS").prefix_separator("_").separator("__").source(Some(ours));
        let table = variables.collect().map_err(|error| ConfigError::Unreadable {
            origin: Origin::Variable("DS_*".to_owned()),
            problem: one_line(&error.to_string()),
        })?;
        let mut entries = Vec::new();
        for (written, raw) in leaves(table) {
            let name = keys::env_name(&written);
            let raw = raw.unwrap_or_else(|| Raw::text(""));
            if keys::find(&written).is_none() {
                return Err(unknown_variable(&name, env.get(&name).map_or("", String::as_str)));
            }
            entries.push((written, raw, Origin::Variable(name)));
        }
        self.absorb(entries)
    }

    /// Takes one layer in. Within a layer the names of the 0.3 family win over the others, as they did in 0.3.
    fn absorb(&mut self, entries: Vec<(String, Raw, Origin)>) -> Result<(), ConfigError> {
        let mut by_alias = Vec::new();
        let mut has_address = false;
        for (written, raw, origin) in entries {
            match keys::find(&written) {
                None => return Err(unknown(&written, shown(&written, &raw), origin)),
                Some((key, true)) => by_alias.push((key, written, raw, origin)),
                Some((key, false)) => {
                    has_address |= key.name() == "server.bind_address";
                    self.insert(key, &written, raw, origin);
                }
            }
        }
        for (key, written, raw, origin) in by_alias {
            self.insert(key, &written, raw, origin);
        }
        if has_address {
            // An address names a port of its own: what this or an earlier layer said about the port is overridden.
            self.found.remove("server.port");
        }
        Ok(())
    }

    /// Puts every value into place and checks the whole.
    fn resolve(&self) -> Result<Config, ConfigError> {
        let mut draft = Draft::new();
        // In the order of the table, in which server.bind_address stands before server.port.
        for key in KEYS.iter().chain(super::LEGACY_KEYS) {
            if let Some(found) = self.found.get(key.name()) {
                found.key.apply(&mut draft, &found.raw).map_err(|rule| found.refused(rule))?;
            }
        }
        draft.finish(self)
    }

    fn effective(&self, key: &'static Key, config: &Config) -> Setting {
        let origin = |name| self.found.get(name).map(|found| found.origin.clone());
        let address = origin("server.bind_address");
        let port = origin("server.port");
        let (from, port_origin) = match key.name() {
            "server.bind_address" => (address, port),
            "server.port" => (port.or(address), None),
            name => (origin(name), None),
        };
        let origin = from.unwrap_or_else(|| self.fallback.clone());
        Setting { key: key.name(), value: key.value_in(config), origin, port_origin }
    }
}

impl Found {
    fn refused(&self, rule: String) -> ConfigError {
        ConfigError::Invalid {
            origin: self.origin.clone(),
            key: self.written.clone(),
            value: shown(&self.written, &self.raw),
            rule,
        }
    }
}

/// The text of one layer.
struct Layer {
    origin: Origin,
    text: String,
}

/// All TOML layers that exist, lowest first.
fn file_layers(
    options: &ConfigLoadOptions,
    env: &BTreeMap<String, String>,
) -> Result<Vec<Layer>, ConfigError> {
    let dir = config_dir(options, env)?;
    let mut layers = Vec::new();
    layers.extend(read_if_exists(dir.join("default.toml"))?);
    layers.extend(profile_layer(options, env, &dir)?);
    layers.extend(read_if_exists(dir.join("local.toml"))?);
    if let Some(path) = &options.config_path {
        layers.push(read(path.clone()).map_err(|problem| unreadable(path, &problem))?);
    }
    Ok(layers)
}

/// The directory of the standard files. One that was named must exist; the default one need not.
fn config_dir(options: &ConfigLoadOptions, env: &BTreeMap<String, String>) -> Result<PathBuf, ConfigError> {
    let (dir, origin) =
        match (&options.config_dir, env.get(CONFIG_DIR_VARIABLE).filter(|dir| !dir.is_empty())) {
            (Some(dir), _) => (dir.clone(), Origin::Option("--config-dir")),
            (None, Some(dir)) => (PathBuf::from(dir), Origin::Variable(CONFIG_DIR_VARIABLE.to_owned())),
            (None, None) => return Ok(PathBuf::from("config")),
        };
    if dir.is_dir() {
        return Ok(dir);
    }
    let problem = format!("{} is not a directory that can be read", Raw::text(dir.to_string_lossy()));
    Err(ConfigError::Unreadable { origin, problem })
}

/// The layer of the profile: its file, or what is compiled in under that name. `default` has no layer of its own beyond
/// `default.toml`.
fn profile_layer(
    options: &ConfigLoadOptions,
    env: &BTreeMap<String, String>,
    dir: &Path,
) -> Result<Option<Layer>, ConfigError> {
    let (profile, origin) =
        match (&options.profile, env.get(PROFILE_VARIABLE).filter(|name| !name.is_empty())) {
            (Some(profile), _) => (profile.as_str(), Origin::Option("--profile")),
            (None, Some(profile)) => (profile.as_str(), Origin::Variable(PROFILE_VARIABLE.to_owned())),
            (None, None) => return Ok(None),
        };
    if profile == "default" {
        return Ok(None);
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if profile.is_empty() || profile.starts_with('.') || !profile.bytes().all(plain) {
        let problem = format!("{} is not the name of a profile: letters, digits, - _ .", Raw::text(profile));
        return Err(ConfigError::Unreadable { origin, problem });
    }
    let path = dir.join(format!("{profile}.toml"));
    if let Some(layer) = read_if_exists(path.clone())? {
        return Ok(Some(layer));
    }
    if let Some((name, text)) = BUILT_IN_PROFILES.iter().find(|(name, _)| *name == profile) {
        return Ok(Some(Layer { origin: Origin::Profile((*name).to_owned()), text: (*text).to_owned() }));
    }
    let known = BUILT_IN_PROFILES.map(|(name, _)| name).join(", ");
    let path = one_line(&path.to_string_lossy());
    let problem = format!("there is no profile {profile}: neither {path} nor one of default, {known}");
    Err(ConfigError::Unreadable { origin, problem })
}

fn read_if_exists(path: PathBuf) -> Result<Option<Layer>, ConfigError> {
    match read(path.clone()) {
        Ok(layer) => Ok(Some(layer)),
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(problem) => Err(unreadable(&path, &problem)),
    }
}

fn read(path: PathBuf) -> io::Result<Layer> {
    std::fs::read_to_string(&path).map(|text| Layer { origin: Origin::File(path), text })
}

fn unreadable(path: &Path, problem: &io::Error) -> ConfigError {
    let problem = format!("cannot be read: {}", one_line(&problem.to_string()));
    ConfigError::Unreadable { origin: Origin::File(path.to_owned()), problem }
}

/// The variables that concern us, as text.
fn relevant(
    env: impl Iterator<Item = (OsString, OsString)>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut ours = BTreeMap::new();
    for (name, value) in env {
        let name = name.to_string_lossy().into_owned();
        if !name.starts_with("DS_") && name != RUST_LOG_VARIABLE {
            continue;
        }
        let value = value.into_string().map_err(|_| ConfigError::Unreadable {
            origin: Origin::Variable(name.clone()),
            problem: "its value is not UTF-8".to_owned(),
        })?;
        ours.insert(name, value);
    }
    Ok(ours)
}

fn unknown(written: &str, value: String, origin: Origin) -> ConfigError {
    let nearest = keys::nearest(written).to_owned();
    ConfigError::Unknown { origin, key: one_line(written), value, nearest }
}

fn unknown_variable(name: &str, value: &str) -> ConfigError {
    let written = name.strip_prefix("DS_").unwrap_or(name).to_ascii_lowercase().replace("__", ".");
    ConfigError::Unknown {
        origin: Origin::Variable(name.to_owned()),
        value: shown(&written, &Raw::text(value)),
        nearest: keys::env_name(keys::nearest(&written)),
        key: one_line(&written),
    }
}

/// A TOML error without the excerpt of the file, which is several lines long and may show a secret.
fn toml_problem(error: &config::ConfigError) -> String {
    let text = match error {
        config::ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    let is_excerpt =
        |line: &str| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|');
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !is_excerpt(line));
    one_line(&lines.collect::<Vec<_>>().join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_text_is_named() {
        use std::os::unix::ffi::OsStringExt as _;

        let broken = (OsString::from("DS_STORAGE__DATA_DIR"), OsString::from_vec(vec![0xff]));
        let error = relevant([broken].into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "DS_STORAGE__DATA_DIR: its value is not UTF-8");
    }

    #[test]
    fn variables_of_other_programs_are_left_alone() {
        let foreign = [("PATH", "/bin"), ("DSX", "1"), ("XDS_SERVER__PORT", "1")];
        let found = relevant(foreign.map(|(name, value)| (name.into(), value.into())).into_iter()).unwrap();
        assert!(found.is_empty());
    }
}
