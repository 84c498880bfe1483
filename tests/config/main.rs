//! The configuration as operators meet it: layers, names, rules, errors, and the files and pages that describe them.

use std::fs;
use std::path::{Path, PathBuf};

use durable_streams_server::config::{Config, ConfigError, ConfigLoadOptions, KEYS, Key, Loaded};
use tempfile::TempDir;

mod layers;
mod names;
mod rules;
mod shipped;

/// A configuration directory with some files, and an environment. Nothing of the process's own environment is seen.
struct Case {
    dir: TempDir,
    options: ConfigLoadOptions,
}

impl Case {
    fn new(files: &[(&str, &str)], env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            fs::write(dir.path().join(name), text).expect("the directory is writable");
        }
        let options = ConfigLoadOptions::default().with_config_dir(dir.path()).with_env(env.iter().copied());
        Self { dir, options }
    }

    fn profile(mut self, profile: &str) -> Self {
        self.options = self.options.with_profile(profile);
        self
    }

    fn config_path(mut self, name: &str) -> Self {
        let path = self.path(name);
        self.options = self.options.with_config_path(path);
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.options)
    }

    fn loaded(&self) -> Loaded {
        Loaded::load(&self.options).expect("the case is right")
    }

    /// The error as printed, with the directory left out.
    fn error(&self) -> String {
        let text = self.load().expect_err("the case is wrong").to_string();
        assert!(!text.chars().any(char::is_control), "not one line: {text:?}");
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

fn env(env: &[(&str, &str)]) -> Case {
    Case::new(&[], env)
}

fn file(text: &str) -> Case {
    Case::new(&[("default.toml", text)], &[])
}

fn key(name: &str) -> &'static Key {
    KEYS.iter().find(|key| key.name() == name).expect("a known key")
}

fn shipped(name: &str) -> String {
    fs::read_to_string(repository().join(name)).expect("the repository ships it")
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
