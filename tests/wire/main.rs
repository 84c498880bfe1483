//! The protocol as clients see it: the real binary, over the wire, one file a topic.

mod contract;
mod service;
#[path = "../support/mod.rs"]
mod support;

mod append;
mod browsers;
mod caching;
mod close;
mod create;
mod hostile;
mod http2;
mod json;
mod limits;
mod names;
mod offsets;
mod origins;
mod pages;
mod problems;
mod producers;
mod retention;
mod telemetry;
mod uploads;
