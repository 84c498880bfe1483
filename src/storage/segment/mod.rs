//! Segments: immutable files that hold the settled content of many streams, and what finds it in them.
//!
//! * `format`: the bytes of a file.
//! * `writer`: writes a file from front to back; `draft`: the same for those who have the content in pieces.
//! * `file`: a file that exists: opening, descriptors, verified reading of its blocks.
//! * `index`: which run of which segment holds which positions of a stream, in RAM.
//! * `store`: the segments of one shard: writing, publishing, forgetting, cutting.
//! * `open`: what is checked when a shard is opened.
//! * `hold`: keeps files from being removed while they are copied.
//! * `read`: the [`ColdReader`](super::ColdReader) over them.
//! * `choose`, `rewrite`: which segments are worth to be written anew, and doing it.
//! * `verify`: every checksum of every file.
//!
//! # The file
//!
//! ```text
//! header │ run │ run │ … │ run │ footer │ trailer         run = block │ block │ … │ block
//! ```
//!
//! All integers are little-endian. Checksums are CRC32C.
//!
//! | header, 32 bytes | |
//! |---|---|
//! | 0 | magic: `89 44 53 73 65 67 0d 0a` |
//! | 8 | format version, `u32`, = 1 |
//! | 12 | shard, `u32` |
//! | 16 | segment id, `u64` |
//! | 24 | zero, `u32` |
//! | 28 | checksum of bytes 0 to 27, `u32` |
//!
//! A *run* is a stretch of one stream's stored bytes without a gap. Runs are sorted by stream and position and follow
//! each other without space between. Every block of a run but the last holds 32,768 bytes of payload, the last what
//! is left, at least one.
//!
//! | block, 8 bytes and payload | |
//! |---|---|
//! | 0 | checksum, `u32`, of: shard `u32`, segment id `u64`, stream id `u64`, position of the block's first byte `u64`, the following field, payload |
//! | 4 | boundary, `u32`: offset in the payload of the first byte that is known to begin a message, or `ffffffff` |
//! | 8 | payload |
//!
//! | footer, per run | |
//! |---|---|
//! | varint | stream id, less that of the run before (the first: less 0) |
//! | varint | position of the first byte; if the run before is of the same stream, less that run's end (the first: less 0) |
//! | varint | length in bytes of payload |
//!
//! Where a run's blocks are follows from the lengths of those before it.
//!
//! | trailer, 56 bytes | |
//! |---|---|
//! | 0 | offset of the footer in the file, `u64` |
//! | 8 | length of the footer in bytes, `u64` |
//! | 16 | number of runs, `u64` |
//! | 24 | payload of all runs in bytes, `u64` |
//! | 32 | segment id, `u64` |
//! | 40 | shard, `u32` |
//! | 44 | checksum of the footer and of bytes 0 to 43 of the trailer, `u32`; the catalog has it too |
//! | 48 | magic: `44 53 73 65 67 45 4e 44` |
//!
//! # What is alive
//!
//! Files say which runs there are, the catalog says which streams there are and what is kept of each. A run is dead
//! if its stream is gone or if it lies below what is kept. The index has live runs only. It learns of a stream by the
//! publication of a settled run: the checkpoint that lists the segment carries the stream's record. A rewritten run
//! only ever replaces what it was copied from; what died meanwhile stays dead.
//!
//! # Message boundaries
//!
//! A block knows the first boundary in it and no others, and a rewrite passes on what it reads. So the distance from
//! a position to the known boundary before it is at most the message it is in, two blocks, and another block for each
//! time that the bytes were written anew to places of other alignment within their run; which, see `choose`, does not
//! happen often.

use bytes::Bytes;

mod choose;
mod draft;
mod file;
mod format;
mod hold;
mod index;
mod open;
mod read;
mod rewrite;
mod store;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

pub(crate) use choose::RewritePlan;
#[cfg(test)]
pub(crate) use choose::RewritePolicy;
pub(crate) use draft::SegmentDraft;
pub(crate) use format::id_of_file_name;
pub(crate) use hold::SegmentHold;
pub(crate) use open::{Examined, examine};
pub(crate) use read::READ_BUFFER_BYTES;
pub(crate) use store::SegmentStore;
pub(crate) use store::StoreLimits;
pub(crate) use verify::{Finding, verify_segment};
pub(crate) use writer::PreparedSegment;

/// What the catalog keeps of a live segment: enough to tell the file from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentMeta {
    /// Number of the segment, never used again within a shard.
    pub(crate) id: u64,
    /// Length of the file.
    pub(crate) file_bytes: u64,
    /// Checksum of footer and trailer.
    pub(crate) footer_crc: u32,
}

/// Content of one stream to be written into a segment.
#[derive(Clone, Debug)]
pub(crate) struct RunSource {
    /// Stream id.
    pub(crate) stream: u64,
    /// Position of the first byte.
    pub(crate) start: u64,
    /// The bytes. Every piece begins at a message boundary.
    pub(crate) pieces: Vec<Bytes>,
}
