//! Configuration: what can be set, where values come from, which rules they obey.
//!
//! Layers, of which a later one overrides an earlier one:
//!
//! 1. built-in defaults ([`Config::default`]),
//! 2. `config/default.toml`,
//! 3. `config/<profile>.toml`,
//! 4. `config/local.toml`,
//! 5. the file of `--config`,
//! 6. `RUST_LOG`, then the `DS_*` environment variables.
//!
//! ```text
//!   load    finds and reads the layers, remembers where each value came from
//!   table   the one table of keys: name, rule, how a value gets in and out of `Config`
//!   keys    what a key is, and how it is found by a name that somebody wrote
//!   kind    what sorts of values there are, and how one is read and checked
//!   check   rules that concern more than one key
//!   model   the outcome: plain values that are known to be right
//!   print   the outcome as text, for `--print-config`
//! ```
//!
//! The names of the 0.2 and of the 0.3 family of published servers both load; `docs/configuration.md` lists them.
//!
//! ```
//! use durable_streams_server::config::{Config, ConfigLoadOptions, StorageMode};
//!
//! let options = ConfigLoadOptions::default().with_env([("DS_STORAGE__MODE", "acid")]);
//! let config = Config::load(&options)?;
//! assert_eq!(config.storage.mode, StorageMode::Acid);
//! # Ok::<(), durable_streams_server::config::ConfigError>(())
//! ```

mod check;
mod defaults;
mod error;
mod keys;
mod kind;
mod load;
mod model;
mod print;
mod table;
mod value;

pub use error::{ConfigError, Origin};
pub use keys::Key;
pub use kind::Range;
pub use load::{ConfigLoadOptions, Loaded};
pub use model::*;
pub use print::Setting;
pub use table::{KEYS, LEGACY_KEYS};
