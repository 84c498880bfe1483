//! A segment that somebody writes piece by piece, who has not all of its content in RAM.

use super::store::SegmentStore;
use super::writer::{PreparedSegment, RunLimits, SegmentWriter};
use crate::storage::StorageError;

/// A segment being written. Dropping it leaves a file that means nothing, and that the next opening removes.
#[derive(Debug)]
pub(crate) struct SegmentDraft(SegmentWriter);

impl SegmentStore {
    /// Begins a segment.
    ///
    /// # Errors
    /// What the disk says, here and in all that follows.
    pub(crate) fn begin_segment(&self) -> Result<SegmentDraft, StorageError> {
        let max = self.limits.run_bytes_max;
        let limits = RunLimits { joined_bytes_max: max, bytes_max: max };
        SegmentWriter::create(&self.disk, &self.dir, self.take_key(), limits).map(SegmentDraft)
    }
}

impl SegmentDraft {
    /// Says that what is pushed next is of `stream` and begins at `start`. Streams come in order of their ids, each
    /// once.
    pub(crate) fn begin(&mut self, stream: u64, start: u64) {
        self.0.begin(stream, start, 0);
    }

    /// Adds content. `boundaries` are places in it, in order, at which messages begin.
    pub(crate) fn push(&mut self, bytes: &[u8], boundaries: &[usize]) -> Result<(), StorageError> {
        let mut at = 0;
        for &boundary in boundaries.iter().filter(|boundary| **boundary < bytes.len()) {
            self.0.push(&bytes[at..boundary])?;
            self.0.mark_boundary();
            at = boundary;
        }
        self.0.push(&bytes[at..])
    }

    /// Bytes that went to the disk so far.
    pub(crate) fn written(&self) -> u64 {
        self.0.written()
    }

    /// Makes it complete and durable. Nobody sees it before a checkpoint lists it.
    pub(crate) fn finish(self) -> Result<PreparedSegment, StorageError> {
        self.0.finish(None)
    }
}
