//! A consistent copy of a data directory, also while a server works on it.
//!
//! ```text
//!   backup thread                       commit thread of each shard
//!   ─────────────                       ───────────────────────────
//!   a ticket for each ─── queued ─────► … commits …
//!                                       arrives, waits for the others       no shard commits here
//!                                       snapshot: what there is, not a copy of it
//!   snapshots ◄──────────────────────── … commits …
//!   journal and catalog copied, segments linked or copied, all synced
//!   manifest, synced
//! ```
//!
//! * `barrier`: the instant at which all commit threads stand still.
//! * `target`: the directory that is filled, and what is left of it after a failure.
//!
//! # Why all of them at one instant
//!
//! A pin is durable before its fork is, and a fork's removal before that of its pin, mostly on two shards. A copy of one shard
//! from before and of the other from after could have a fork without its source. With one instant for all, the copy is what
//! a power cut would have left in that instant, and opening it is what opening after a power cut is.
//!
//! # What keeps a snapshot from changing
//!
//! Journal and catalog files are only ever appended to, so a descriptor and a length will do. redb keeps the pages of a read
//! transaction. Segments never change, and are not removed as long as they are held. A shard that is reopened after a failure,
//! or closed, lets go of what is held; then the backup fails.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use super::StorageError;
use super::layout::{self, Kind};
use super::segment::SegmentHold;

mod barrier;
mod target;

pub(crate) use barrier::{Missed, Ticket, tickets};
pub(crate) use target::Target;
pub(super) use target::UNFINISHED_FILE;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The streams are in RAM only.
    #[error("the storage mode is memory: there is nothing on disk to back up")]
    NothingOnDisk,
    /// One is being made.
    #[error("another backup is under way")]
    Busy,
    /// The target will not do.
    #[error("{0}")]
    Target(String),
    /// A shard does not commit just now, or stopped doing so while its files were copied.
    #[error("{0}; the backup was given up")]
    ShardUnavailable(String),
    /// Whoever asked for it went away, or the server stops.
    #[error("the backup was cancelled")]
    Cancelled,
    /// Reading the data or writing the copy failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// How far a backup is. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackupProgress {
    /// Linked and copied so far.
    pub done_bytes: u64,
    /// In all, about.
    pub total_bytes: u64,
}

/// What a backup consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupSummary {
    /// Shards.
    pub shards: usize,
    /// Segment files.
    pub segments: u64,
    /// Bytes written into the target.
    pub copied_bytes: u64,
    /// Bytes of segments that the target shares with the data directory, by hard links.
    pub linked_bytes: u64,
    /// How long commits stood still for it; zero for one of a stopped server.
    pub paused: Duration,
}

/// Whoever is told how a backup gets on, and may end it.
pub type OnProgress<'a> = &'a mut dyn FnMut(BackupProgress) -> ControlFlow<()>;

/// Journal and catalog of a shard at one instant. Costs the shard nothing but disk that is not used again meanwhile.
pub(crate) trait LogSnapshot: Send {
    /// What the manifest has to say.
    fn kind(&self) -> Kind;
    /// Bytes that [`Self::copy`] writes, about.
    fn bytes(&self) -> u64;
    /// Writes them below `dir`, the shard's directory in the target, durably but for the directory's own entries.
    fn copy(self: Box<Self>, dir: &Path, target: &mut Target<'_>) -> Result<(), BackupError>;
}

/// A shard at one instant.
pub(crate) struct ShardSnapshot {
    /// Journal and catalog.
    pub(crate) log: Box<dyn LogSnapshot>,
    /// Content.
    pub(crate) segments: SegmentHold,
}

impl fmt::Debug for ShardSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardSnapshot").field("segments", &self.segments).finish_non_exhaustive()
    }
}

/// Fills the target with all shards, in order, which are of one instant.
///
/// # Errors
/// Whatever fails; the target is emptied then, as far as that is possible.
pub(crate) fn write(
    shards: Vec<ShardSnapshot>,
    mut target: Target<'_>,
) -> Result<BackupSummary, BackupError> {
    match fill(shards, &mut target) {
        Ok(()) => Ok(target.into_summary()),
        Err(error) => {
            target.abandon();
            Err(error)
        }
    }
}

fn fill(shards: Vec<ShardSnapshot>, target: &mut Target<'_>) -> Result<(), BackupError> {
    let Some(kind) = shards.first().map(|shard| shard.log.kind()) else {
        return Err(BackupError::NothingOnDisk);
    };
    let count = shards.len();
    target.begin(count, shards.iter().map(|shard| shard.log.bytes() + shard.segments.bytes()).sum())?;
    // Journals first: they are what goes on changing, and their snapshots are what costs room.
    let mut holds = Vec::with_capacity(count);
    for (index, ShardSnapshot { log, segments }) in shards.into_iter().enumerate() {
        let dir = layout::shard_dir(0, index);
        target.create_dir(&dir)?;
        log.copy(&dir, target).map_err(|error| segments.explain(error))?;
        holds.push((dir, segments));
    }
    for (dir, segments) in &holds {
        segments.copy(target).map_err(|error| segments.explain(error))?;
        target.sync_dir(dir)?;
    }
    // A shard that was reopened may have lost what it had acknowledged, and what was read of it cannot be trusted.
    if let Some((_, segments)) = holds.iter().find(|(_, segments)| !segments.is_valid()) {
        return Err(segments.gone());
    }
    target.complete(kind, count)
}
