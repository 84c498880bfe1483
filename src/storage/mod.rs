//! Durable storage below the shards: what a group commit is made of, and the traits that a storage mode implements.
//!
//! ```text
//!   shard (core thread)                         commit thread
//!   ───────────────────                         ─────────────
//!   Group { frames, checkpoint } ──crossbeam──►  CommitLog::commit(all that queued up)   one atomic, durable step
//!   Completion::Durable { through }  ◄─────────  one callback per step
//!
//!                                                settle thread
//!                                                ─────────────
//!   Checkpoint with payload ───────────────────► payload written into a segment
//!   Checkpoint naming it ◄────────────────────── and back, to ride on a group
//! ```
//!
//! * `codec`: the integers, strings and options that both formats below are made of.
//! * `frame`: the journal's frames, byte for byte.
//! * `pieces`: bytes on their way to the disk, of which large ones are shared.
//! * `record`: a stream's checkpointed state, byte for byte.
//! * `tail`: the recent bytes of a stream in RAM.
//! * `committer`: the commit thread: batches what queued up, reports what is durable, reopens after a failure.
//! * `settler`: the settle thread: writes content into segments, and rewrites segments, away from commits.
//! * `segment`: immutable files of content, shared by many streams.
//! * [`disk`]: the files of a data directory, behind a trait.
//! * [`backup`]: a consistent copy of a data directory, also of one at work.
//! * `room`: what room there is on the disk, and when the commit thread looks.
//! * `reserve`: room that is set aside for deletions on a full disk.
//! * [`acid`]: journal and catalog in one redb database per shard.
//! * `file`: journal and catalog in files of our own.
//! * `replay`: from records and journal to the state of streams.
//! * `offline`: a data directory that no server has.
//! * `generation`: one set of shard directories beside another, and which of them counts.
//!
//! Storage knows stream ids, positions and opaque bytes. It knows no protocol rules and no runtime.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use layout::DataDirectory;
use pieces::Pieces;
pub use room::{DiskRoom, FreeSpaceProbe};
pub(crate) use room::{DiskUse, RoomRule, RoomWatch};
use segment::{PreparedSegment, SegmentStore, StoreLimits};
pub(crate) use segment::{READ_BUFFER_BYTES, SegmentMeta};

pub mod acid;
pub mod backup;
pub(crate) mod codec;
pub(crate) mod committer;
pub mod disk;
pub(crate) mod file;
pub(crate) mod frame;
pub(crate) mod generation;
pub(crate) mod layout;
pub(crate) mod lent;
pub(crate) mod offline;
pub(crate) mod pieces;
pub(crate) mod record;
pub(crate) mod replay;
pub(crate) mod reserve;
mod room;
pub(crate) mod segment;
pub(crate) mod settler;
pub(crate) mod tail;

/// Most shards of one data directory.
pub const SHARDS_MAX: usize = 256;

/// One unit of durability: everything a shard accepted since its previous group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Number of the group, strictly increasing within a shard, across restarts.
    pub(crate) seq: u64,
    /// Encoded frames, one after the other. May be empty when only a checkpoint is carried.
    pub(crate) frames: Pieces,
    /// What becomes part of the catalog in the same atomic step, or right after it.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Another shard relies on it: it has to survive a power cut when it is reported, whatever the mode.
    pub(crate) is_relied_on: bool,
}

/// A change of the catalog: state of some streams as of the end of an earlier group, with their content in a segment, and
/// what that makes superfluous.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    /// Streams whose state and payload are settled.
    pub(crate) streams: Vec<StreamCheckpoint>,
    /// Streams that no longer exist: record and producers go, and with them the claim to content in segments.
    pub(crate) removed: Vec<u64>,
    /// Segments that have become part of the catalog.
    pub(crate) segments_added: Vec<SegmentMeta>,
    /// Segments that are part of it no more: nothing in them is needed, or what is needed has been rewritten.
    pub(crate) segments_removed: Vec<u64>,
    /// Journal groups below this number are no longer needed once the checkpoint is durable.
    pub(crate) trim_before: u64,
    /// No stream id at or above this one has been given out.
    pub(crate) next_stream_id: u64,
    /// No segment id at or above this one has been given out.
    pub(crate) next_segment_id: u64,
    /// What readers find in the segments that are added, once that is so.
    pub(crate) to_publish: Vec<PreparedSegment>,
}

/// One stream's part of a [`Checkpoint`].
#[derive(Debug)]
pub(crate) struct StreamCheckpoint {
    /// Stream id.
    pub(crate) id: u64,
    /// Encoded `record`, replacing the previous one.
    pub(crate) record: Vec<u8>,
    /// Producers that changed since the stream's previous checkpoint: (producer id, epoch, last sequence number).
    pub(crate) producers: Vec<(Bytes, u64, u64)>,
    /// What segments hold of the stream below this message boundary is not needed any more; `None` = all of it is.
    pub(crate) cut: Option<u64>,
    /// Position of the first byte of `payload`: the end of what was settled before, or the cut if that is beyond.
    pub(crate) start: u64,
    /// Position after its last byte.
    pub(crate) end: u64,
    /// Content to settle, until it is written. Every piece begins at a message boundary.
    pub(crate) payload: Vec<Bytes>,
}

/// What a shard's storage holds at opening.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// Checkpointed streams.
    pub(crate) streams: Vec<RecoveredStream>,
    /// Journal groups in order: (seq, frames). Some may already be contained in the checkpoints.
    pub(crate) groups: Vec<(u64, Bytes)>,
    /// From the last checkpoint; 0 if there is none.
    pub(crate) next_stream_id: u64,
    /// A number above that of every group ever committed.
    pub(crate) next_group: u64,
    /// Where the journal is a number of files, the last group of each of them, oldest first.
    pub(crate) journal_files: Vec<u64>,
}

/// One checkpointed stream.
#[derive(Debug)]
pub(crate) struct RecoveredStream {
    /// Stream id.
    pub(crate) id: u64,
    /// Encoded `record`.
    pub(crate) record: Bytes,
    /// All producers: (producer id, epoch, last sequence number).
    pub(crate) producers: Vec<(Bytes, u64, u64)>,
}

/// Called when something is durable, on the thread that made it so; must not block.
pub(crate) type OnDurable = Box<dyn FnOnce() + Send>;

/// The write side of one shard's journal and catalog. Used by the commit thread only; may block.
pub(crate) trait CommitLog: Send {
    /// Makes all of `groups` durable in one atomic step. After an error nothing may be assumed of them, and the log
    /// takes no further commits: it has to be opened again.
    fn commit(&mut self, groups: &mut [Group]) -> Result<(), StorageError>;
    /// The same, and calls `on_durable` as soon as the groups are durable, be it that the log goes on with something else
    /// then: if that fails, so does the commit, but they are durable all the same.
    fn commit_and_tell(&mut self, groups: &mut [Group], on_durable: OnDurable) -> Result<(), StorageError> {
        self.commit(groups)?;
        on_durable();
        Ok(())
    }
    /// Makes the checkpoints of groups that [`Self::commit`] made durable part of the catalog, where that is a step of its
    /// own. The groups have been acknowledged by then. An error is one of a commit.
    fn checkpoint(&mut self, groups: &mut [Group]) -> Result<(), StorageError> {
        let _ = groups;
        Ok(())
    }
    /// When [`Self::flush`] has to be called; `None` = it need not be.
    fn flush_due(&self) -> Option<Instant> {
        None
    }
    /// Makes what was committed safe from more than commits do. An error is one of a commit.
    fn flush(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
    /// Called when there is nothing to commit: gives back disk that is not needed any more, a bounded amount of it. `Ok(true)` = there is more.
    fn reclaim(&mut self) -> Result<bool, StorageError> {
        Ok(false)
    }
    /// What a backup copies: everything that was committed, and its checkpoints. An error says nothing about the log, which
    /// goes on.
    fn snapshot(&mut self) -> Result<Box<dyn backup::LogSnapshot>, StorageError>;
    /// Bytes of disk that journal and catalog need: less than their files take once something was removed.
    fn disk_bytes(&self) -> u64;
    /// Room on the disk. Asks the file system: not for every commit. `None` = there is no disk, or nobody can tell.
    fn disk_room(&self) -> Option<DiskRoom>;
}

/// A shard's storage, as it was opened.
pub(crate) struct OpenedShard {
    /// Journal and catalog.
    pub(crate) log: Box<dyn CommitLog>,
    /// Content.
    pub(crate) segments: Arc<SegmentStore>,
    /// What journal and catalog hold.
    pub(crate) recovered: Recovered,
}

/// A shard's journal and catalog, as they were opened, without the content.
pub(crate) struct OpenedCatalog {
    /// Journal and catalog.
    pub(crate) log: Box<dyn CommitLog>,
    /// What they hold.
    pub(crate) recovered: Recovered,
    /// The segments that hold content.
    pub(crate) segments: Vec<SegmentMeta>,
    /// No segment id at or above this one was given out when the last checkpoint was made.
    pub(crate) next_segment_id: u64,
    /// Bytes of commits and checkpoints that a crash cut off, and that nobody was told of.
    pub(crate) dropped_bytes: u64,
}

/// What storage modes differ in when a shard is opened.
pub(crate) trait Catalogs {
    /// The data directory.
    fn directory(&self) -> &Arc<DataDirectory>;
    /// Opens journal and catalog of one shard. Idempotent: a crash during it loses nothing.
    fn open_catalog(&self, shard: usize) -> Result<OpenedCatalog, StorageError>;
}

/// Opens a shard as a whole.
pub(crate) fn open_shard<C: Catalogs + ?Sized>(
    catalogs: &C,
    shard: usize,
) -> Result<OpenedShard, StorageError> {
    let OpenedCatalog { log, recovered, segments, next_segment_id, .. } = catalogs.open_catalog(shard)?;
    let directory = catalogs.directory();
    let mut kept = Vec::with_capacity(recovered.streams.len());
    for stream in &recovered.streams {
        kept.push((stream.id, record::settled_range(&stream.record)?));
    }
    let disk = Arc::clone(directory.disk());
    let segments =
        SegmentStore::open(disk, shard, directory.shard_dir(shard), &segments, next_segment_id, kept)?
            .with_limits(StoreLimits::of_one_in(directory.shard_count()));
    Ok(OpenedShard { log, segments: Arc::new(segments), recovered })
}

/// Opens shards: at start, and again after a failed commit.
pub(crate) trait OpenLog: Send + Sync + fmt::Debug {
    /// Opens one shard and says what it holds. Idempotent: a crash during it loses nothing.
    fn open(&self, shard: usize) -> Result<OpenedShard, StorageError>;
}

/// The read side of one shard's settled payload. Blocks on disk: never call it on a core thread.
pub(crate) trait ColdReader: Send + Sync + fmt::Debug {
    /// Hands the settled bytes `from..to` of a stream to `take`, in order and in pieces of any size.
    /// [`StorageError::Missing`] if any of them is not there; what was handed out before is of no use then.
    fn read(&self, stream: u64, from: u64, to: u64, take: &mut dyn FnMut(&[u8])) -> Result<(), StorageError>;
    /// The same with buffers that the target lends: what fills one of them is not copied.
    fn read_into(
        &self,
        stream: u64,
        from: u64,
        to: u64,
        target: &mut dyn ReadTarget,
    ) -> Result<(), StorageError>;
    /// The greatest position at or below `position` that is known to be a message boundary.
    fn boundary_at_or_before(&self, stream: u64, position: u64) -> Result<u64, StorageError>;
}

/// What a [`ColdReader`] reads into. The bytes that it is given are those that were asked for, in order.
pub(crate) trait ReadTarget {
    /// Adds a copy of `piece`.
    fn push(&mut self, piece: &[u8]);
    /// Lends an empty buffer, with room for [`READ_BUFFER_BYTES`].
    fn lend(&mut self) -> Vec<u8>;
    /// Takes back a buffer that was lent, and adds these parts of it.
    fn take(&mut self, buffer: Vec<u8>, parts: Vec<Range<usize>>);
}

#[cfg(test)]
impl dyn ColdReader + '_ {
    /// [`Self::read`] into one piece.
    pub(crate) fn read_whole(&self, stream: u64, from: u64, to: u64) -> Result<Vec<u8>, StorageError> {
        let mut whole = Vec::new();
        self.read(stream, from, to, &mut |piece| whole.extend_from_slice(piece))?;
        Ok(whole)
    }

    /// The same, after comparing it with what [`Self::read_into`] gives.
    pub(crate) fn read_both_ways(&self, stream: u64, from: u64, to: u64) -> Result<Vec<u8>, StorageError> {
        let mut whole = Vec::new();
        let outcome = self.read(stream, from, to, &mut |piece| whole.extend_from_slice(piece));
        let mut target = WholeTarget::default();
        let again = self.read_into(stream, from, to, &mut target);
        assert_eq!(again.is_ok(), outcome.is_ok(), "{again:?}, {outcome:?}");
        outcome?;
        assert!(target.0 == whole, "both ways to read give the same");
        Ok(whole)
    }
}

#[cfg(test)]
#[derive(Default)]
struct WholeTarget(Vec<u8>);

#[cfg(test)]
impl ReadTarget for WholeTarget {
    fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    fn lend(&mut self) -> Vec<u8> {
        Vec::with_capacity(READ_BUFFER_BYTES)
    }

    fn take(&mut self, buffer: Vec<u8>, parts: Vec<Range<usize>>) {
        parts.into_iter().for_each(|part| self.0.extend_from_slice(&buffer[part]));
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
