//! The engine: shards, mailboxes, routing by hash, live notifiers, quotas. The operations of the protocol over many
//! cores, without HTTP and without a storage format.
//!
//! * [`api`]: the [`Storage`] trait, its requests, answers and errors.
//! * `handle`: [`Engine`], the trait's implementation: routes each request to the shard that owns its stream.
//! * `embed`: [`InMemoryStorage`] and [`AcidStorage`], engines with core threads of their own.
//! * `backup`: brings the shards together for a consistent copy.
//! * `opening`: stands in for an engine while that is being opened.
//! * `reading`: puts a page together from RAM, from disk, and from the shards of a fork's ancestors.
//! * `read_budget`: bounds what was read from disk and is still on its way to clients.
//! * [`live`]: topics, batches, subscriptions.
//! * `fan_out`: wakes the readers of a stream in turns.
//! * `core`: the core threads, each with one runtime, one mailbox and one `shard`.
//! * `affinity`: keeps core threads on CPUs of their own.
//! * `mailbox`, `request`: what travels between cores.
//! * `quota`, [`clock`], `routing`: limits over all shards; time; the map from names to shards.

mod affinity;
pub mod api;
mod backup;
pub mod clock;
pub(crate) mod core;
mod embed;
mod fan_out;
mod handle;
pub mod live;
mod mailbox;
pub(crate) mod opening;
mod quota;
mod read_budget;
mod reading;
mod request;
mod routing;
pub(crate) mod shard;

pub use api::Storage;
pub use backup::backup_offline;
pub(crate) use core::take_asked;
pub use embed::{AcidStorage, EngineOptions, FileStorage, InMemoryStorage};
pub use handle::Engine;
pub use routing::{HASH_NAME, shard_of};
