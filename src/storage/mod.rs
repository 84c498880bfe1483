//! Durable storage below the shards: what a group commit is made of, and the traits that a storage mode implements.
//!
//! ```text
//!   shard (core thread)                         commit thread
//!   ───────────────────                         ─────────────
//!   Group { frames, checkpoint } ──crossbeam──►  CommitLog::commit(all that queued up)   one atomic, durable step
//!   Completion::Durable { through }  ◄─────────  one callback per step
//! ```
//!
//! * `codec`: the integers, strings and options that both formats below are made of.
//! * `frame`: the journal's frames, byte for byte.
//! * `record`: a stream's checkpointed state, byte for byte.
//! * `tail`: the recent bytes of a stream in RAM.
//! * `committer`: the commit thread: batches what queued up, reports what is durable, reopens after a failure.
//! * `room`: what room there is on the disk, and when the commit thread looks.
//! * [`acid`]: journal, records and settled payload in one redb database per shard.
//!
//! Storage knows stream ids, positions and opaque bytes. It knows no protocol rules and no runtime.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

pub use room::{DiskRoom, FreeSpaceProbe};
pub(crate) use room::{DiskUse, RoomRule, RoomWatch};

pub mod acid;
pub(crate) mod codec;
pub(crate) mod committer;
pub(crate) mod frame;
pub(crate) mod record;
mod room;
pub(crate) mod tail;

/// One unit of durability: everything a shard accepted since its previous group.
#[derive(Debug, Default)]
pub struct Group {
    /// Number of the group, strictly increasing within a shard, across restarts.
    pub seq: u64,
    /// Encoded frames, one after the other. May be empty when only a checkpoint is carried.
    pub frames: Vec<u8>,
    /// State to settle in the same atomic step.
    pub checkpoint: Option<Checkpoint>,
}

/// State of some streams as of the end of the group that carries it, and what that makes superfluous.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// Streams whose state and payload are settled.
    pub streams: Vec<StreamCheckpoint>,
    /// Streams that no longer exist: record, producers and payload go, payload perhaps later and in pieces.
    pub removed: Vec<u64>,
    /// Journal groups below this number are no longer needed once the checkpoint is durable.
    pub trim_before: u64,
    /// No stream id at or above this one has been given out.
    pub next_stream_id: u64,
}

/// One stream's part of a [`Checkpoint`].
#[derive(Debug)]
pub struct StreamCheckpoint {
    /// Stream id.
    pub id: u64,
    /// Encoded `record`, replacing the previous one.
    pub record: Vec<u8>,
    /// Producers that changed since the stream's previous checkpoint: (producer id, epoch, last sequence number).
    pub producers: Vec<(Bytes, u64, u64)>,
    /// Position of the first byte of `payload`; equals the end of what was settled before.
    pub start: u64,
    /// Content to settle. Every piece begins at a message boundary.
    pub payload: Vec<Bytes>,
}

/// What a shard's storage holds at opening.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Checkpointed streams.
    pub streams: Vec<RecoveredStream>,
    /// Journal groups in order: (seq, frames). Some may already be contained in the checkpoints.
    pub groups: Vec<(u64, Bytes)>,
    /// From the last checkpoint; 0 if there is none.
    pub next_stream_id: u64,
    /// A number above that of every group ever committed.
    pub next_group: u64,
}

/// One checkpointed stream.
#[derive(Debug)]
pub struct RecoveredStream {
    /// Stream id.
    pub id: u64,
    /// Encoded `record`.
    pub record: Bytes,
    /// All producers: (producer id, epoch, last sequence number).
    pub producers: Vec<(Bytes, u64, u64)>,
}

/// The write side of one shard's storage. Used by the commit thread only; may block.
pub trait CommitLog: Send {
    /// Makes all of `groups` durable in one atomic step. After an error nothing may be assumed of them, and the log
    /// takes no further commits: it has to be opened again.
    fn commit(&mut self, groups: &mut [Group]) -> Result<(), StorageError>;
    /// Frees a bounded amount of what removed streams left behind. `Ok(true)` = there is more.
    fn reclaim(&mut self) -> Result<bool, StorageError>;
    /// The read side.
    fn reader(&self) -> Arc<dyn ColdReader>;
    /// Bytes of disk in use: less than the files take once something was removed, as its room is used again.
    fn disk_bytes(&self) -> u64;
    /// Room on the disk. Asks the file system: not for every commit. `None` = there is no disk, or nobody can tell.
    fn disk_room(&self) -> Option<DiskRoom>;
}

/// Opens shards: at start, and again after a failed commit.
pub trait OpenLog: Send + Sync + fmt::Debug {
    /// Opens one shard and says what it holds. Idempotent: a crash during it loses nothing.
    fn open(&self, shard: usize) -> Result<(Box<dyn CommitLog>, Recovered), StorageError>;
}

/// The read side of one shard's settled payload. Blocks on disk: never call it on a core thread.
pub trait ColdReader: Send + Sync + fmt::Debug {
    /// Hands the settled bytes `from..to` of a stream to `take`, in order and in pieces of any size.
    /// [`StorageError::Missing`] if any of them is not there; what was handed out before is of no use then.
    fn read(&self, stream: u64, from: u64, to: u64, take: &mut dyn FnMut(&[u8])) -> Result<(), StorageError>;
    /// The greatest position at or below `position` that is known to be a message boundary.
    fn boundary_at_or_before(&self, stream: u64, position: u64) -> Result<u64, StorageError>;
}

#[cfg(test)]
impl dyn ColdReader + '_ {
    /// [`Self::read`] into one piece.
    pub(crate) fn read_whole(&self, stream: u64, from: u64, to: u64) -> Result<Vec<u8>, StorageError> {
        let mut whole = Vec::new();
        self.read(stream, from, to, &mut |piece| whole.extend_from_slice(piece))?;
        Ok(whole)
    }
}

/// Why storage failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// Settled bytes are not there: the stream was removed meanwhile.
    #[error("the bytes are no longer stored")]
    Missing,
    /// The shard is being reopened after a failure.
    #[error("shard {0} is being reopened")]
    Reopening(usize),
    /// The data directory is held by another process.
    #[error("the data directory {0} is in use by another process")]
    Locked(String),
    /// The data directory was made for something else.
    #[error("{0}")]
    Layout(String),
    /// A write found no room on the disk, or more than a quota allows.
    #[error("the disk is full: {0}")]
    DiskFull(String),
    /// The operating system said no.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, with the path.
        context: String,
        /// The error.
        source: std::io::Error,
    },
    /// The database said no.
    #[error("{context}: {message}")]
    Database {
        /// What was being done.
        context: String,
        /// The error, as the database words it.
        message: String,
    },
    /// Stored bytes contradict themselves.
    #[error("corrupt data: {0}")]
    Corrupt(String),
}
