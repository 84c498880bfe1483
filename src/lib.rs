//! A sharded, thread-per-core server for the Durable Streams protocol, as a binary and as a library.

pub mod config;
pub mod engine;
pub mod http;
pub mod protocol;
pub mod server;
pub mod storage;
pub mod stream;
pub mod telemetry;
pub mod cli;
