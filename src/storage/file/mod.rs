//! Journal and catalog of a shard as files of our own, for the modes `file-durable` and `file-fast`.
//!
//! ```text
//! shard-00/
//!   journal-<number>.log     what was committed, in order; 16 MiB each; number = 16 hex digits, never used again
//!   catalog-<number>.log     what checkpoints say: streams, producers, segments; one file, the one with the highest number
//!   RESERVE                  zeros: room for deletions on a full disk, see `storage::reserve`
//!   *.new                    drafts: of no meaning, removed at the next opening
//! ```
//!
//! * `sealed`: the header of both kinds of files, and records under a checksum.
//! * `journal`: writing, flushing and trimming the journal; `scan`: reading it after a start.
//! * `catalog`: appending checkpoints, reading them, and writing the file anew when most of it is dead.
//! * `snapshot`: what a backup copies of both.
//! * `shard_log`: both of them together; `opening`: all shards of a data directory.
//!
//! # Who may be believed after a crash
//!
//! A commit is one write and, in `file-durable`, one sync. A crash leaves any part of what was not synced, so a record at the
//! end that does not check out is an unfinished commit, which nobody was told of, and is dropped. The same damage in a
//! record that *was* synced is loss. The two are told apart by what was written later: every journal record, the header
//! of every journal file and every checkpoint name a group up to which everything was durable when they were written. If
//! less than that can be read, opening fails and says where.
//!
//! Groups form a chain: each record names the last group before it. So a file that is missing is noticed, and one that was
//! trimmed and comes back after a power cut, because its removal was not durable yet, does no harm.
//!
//! The journal goes first: a checkpoint is written when the groups below it are durable, and the journal is trimmed when the
//! checkpoint is. So whatever is lost of a checkpoint is still in the journal.

use std::io;
use std::path::Path;

use super::{StorageError, reserve};

mod catalog;
mod journal;
mod opening;
mod scan;
mod sealed;
mod shard_log;
mod snapshot;
#[cfg(test)]
mod tests;

pub(crate) use catalog::RewriteOn;
pub(crate) use journal::SyncPolicy;
pub(crate) use opening::{FileLog, FileOptions, KIND};
#[cfg(test)]
use shard_log::Opened;
use shard_log::ShardLog;

/// How a shard's files are opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// When commits are synced.
    pub(crate) sync: SyncPolicy,
    /// Where the catalog is written anew.
    pub(crate) rewrite_on: RewriteOn,
    /// Tests have small files.
    sizes: Sizes,
}

impl Options {
    /// Rewrites the catalog on a thread of its own.
    pub(crate) fn new(sync: SyncPolicy) -> Self {
        Self { sync, rewrite_on: RewriteOn::Thread, sizes: Sizes::default() }
    }
}

/// Sizes at which something happens. Bytes.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// The next journal file is begun, unless a single record is larger. A multiple of `fill`.
    journal_file: u64,
    /// Step of filling journal files ahead.
    fill: u64,
    /// A journal file of which nothing is needed any more is given up, although it is not full.
    give_up: u64,
    /// A catalog with less dead content is left alone.
    dead_min: u64,
    /// Set aside for deletions on a full disk.
    reserve: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            journal_file: 16 << 20,
            fill: 256 << 10,
            give_up: 1 << 20,
            dead_min: 1 << 20,
            reserve: reserve::RESERVE_BYTES,
        }
    }
}

/// Whether a file has a name as journal and catalog files have.
pub(crate) fn is_own_name(name: &str) -> bool {
    name == reserve::RESERVE_FILE
        || [sealed::FileKind::Journal, sealed::FileKind::Catalog]
            .iter()
            .any(|kind| kind.number_of(name).is_some())
}

/// Words an error of the operating system, telling a full disk from other troubles.
fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let context = format!("{doing} {}", path.display());
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StorageError::DiskFull(format!("{context}: {source}"))
        }
        _ => StorageError::Io { context, source },
    }
}

/// Says where stored bytes contradict themselves.
fn corrupt(path: &Path, offset: u64, why: impl std::fmt::Display) -> StorageError {
    StorageError::Corrupt(format!("{} at byte {offset}: {why}", path.display()))
}

/// The answer to whoever goes on after a failure.
fn refused() -> StorageError {
    StorageError::Database {
        context: "writing".to_owned(),
        message: "an earlier write failed; the shard has to be reopened".to_owned(),
    }
}
