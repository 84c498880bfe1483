//! Journal and catalog against a model, on a disk that loses power, refuses calls and flips bits.

use bytes::Bytes;

use super::{Options, RewriteOn, Sizes, SyncPolicy};
use crate::storage::StreamCheckpoint;

mod crash;
mod damage;
mod disk;
mod files;
mod model;

/// Small enough for a short run to begin many files and rewrite the catalog.
fn small(sync: SyncPolicy) -> Options {
    let sizes =
        Sizes { journal_file: 8 << 10, fill: 2 << 10, give_up: 3 << 10, dead_min: 2 << 10, reserve: 5 << 10 };
    Options { sync, rewrite_on: RewriteOn::Checkpoint, sizes }
}

/// A stream's part of a checkpoint, as far as the catalog is concerned.
pub(super) fn stream(id: u64, record: Vec<u8>, producers: Vec<(Bytes, u64, u64)>) -> StreamCheckpoint {
    StreamCheckpoint { id, record, producers, cut: None, start: 0, end: 0, payload: Vec::new() }
}
