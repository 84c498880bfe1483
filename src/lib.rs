//! A sharded, thread-per-core server for the Durable Streams protocol, as a program and as a library.
//!
//! A *stream* is a URL that holds an append-only sequence of bytes or of JSON messages. It is read from any offset,
//! in pages or live (long-poll, Server-Sent Events), and kept in RAM or on disk. Streams are hashed onto shards. A
//! shard belongs to one core thread, and in acid mode it has one redb database and one commit thread below it.
//! `docs/architecture.md` has the picture, `docs/durability.md` what an answer promises, `docs/format.md` the files.
//!
//! # Layout
//!
//! Imports point downwards only.
//!
//! | module | what it does | what it knows |
//! |---|---|---|
//! | [`cli`] | turns arguments into a configuration, and the outcome into an exit code | arguments, exit codes |
//! | [`server`] | listens, accepts, speaks TLS, and starts and stops everything in order | sockets and threads; no rule of the protocol |
//! | [`http`] | makes engine requests of HTTP requests, and status codes of their outcome | axum, headers, status codes; no files |
//! | [`engine`] | routes requests to shards, commits in groups, wakes live readers, holds quotas | threads, mailboxes, time; neither HTTP nor redb |
//! | [`tools`] | looks at, checks and rewrites a data directory that no server has | storage and state of streams; no threads, no HTTP |
//! | [`stream`] | decides what a request does to one stream: `(state, command, now) → decision` | the rules of one stream; no clock, no input or output |
//! | [`storage`] | keeps groups of frames and settled content, and finds them again | frames, redb, files; neither HTTP nor tokio |
//! | [`protocol`] | reads and writes each notation of the protocol | text and bytes; no state |
//! | [`config`], [`telemetry`] | load and check what can be set; set up the log | what their names say |
//!
//! A rule of the protocol stands in one place, `stream`, and its status code in one other, `http::problem`.
//!
//! # Embedding
//!
//! [`build_router`] makes an [`axum::Router`] to be nested into a host's application, on any tokio runtime that has
//! time and I/O enabled. A storage brings its own core threads along. They end, and a data directory is given up, when
//! the last handle (storage, router, live read) is dropped, or with [`Storage::shutdown`], which also says when.
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//!
//! use axum::Router;
//! use axum::routing::get;
//! use durable_streams_server::{CancellationToken, Config, InMemoryStorage, Storage, build_router_with_ready};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let config = Config::default();
//! // Or `AcidStorage::open(&config)?`, or `Engine::open(&config)?` for the mode that the configuration names.
//! let storage: Arc<dyn Storage> = Arc::new(InMemoryStorage::new(&config)?);
//!
//! let ready = Arc::new(AtomicBool::new(false)); // what /readyz says
//! let shutdown = CancellationToken::new(); // ends live reads
//! let streams = build_router_with_ready(storage.clone(), &config, ready.clone(), shutdown.clone());
//! // Streams are at /live/v1/stream/<name>.
//! let app = Router::new().route("/", get(|| async { "hello" })).nest("/live", streams);
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! ready.store(true, Ordering::Release);
//! # shutdown.cancel();
//! axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await?;
//! storage.shutdown().await; // everything accepted is durable, all files are closed
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! To run the whole server inside a program instead, with its own listeners and TLS, see [`server::Server`].

// Disks of `tests/support` that tests of the library include name it as those of the program do.
#[cfg(test)]
extern crate self as durable_streams_server;

#[cfg(feature = "bench-internals")]
#[doc(hidden)]
pub mod bench_internals;
pub mod cli;
pub mod config;
pub mod engine;
pub mod http;
pub mod protocol;
pub mod server;
pub mod storage;
pub mod stream;
pub mod telemetry;
pub mod tools;

pub use crate::config::{AcidBackend, Config, ConfigError, ConfigLoadOptions, StorageMode};
pub use crate::engine::api::Health;
pub use crate::engine::{AcidStorage, Engine, FileStorage, InMemoryStorage, Storage};
pub use crate::http::{ConnectionScheme, DEFAULT_STREAM_BASE_PATH, build_router, build_router_with_ready};
pub use crate::storage::StorageError;
pub use crate::storage::backup::{BackupError, BackupProgress, BackupSummary};
/// Ends live reads: see [`build_router_with_ready`]. Of the crate `tokio-util`.
pub use tokio_util::sync::CancellationToken;

/// Compiles the Rust code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
