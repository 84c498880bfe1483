//! The account of the disk that a shard's rows take.
//!
//! The file of redb gets shorter only where its end is free; other pages of removed rows are used again. So its size says
//! what was needed at some time, and the account says what is needed now. It counts pages as far as a row has one of its own, and knows
//! nothing of half-filled leaves and of redb's own tables: [`FIXED_BYTES`] stands for those.

use super::rows::{
    JOURNAL_KEY_BYTES, PRODUCER_KEY_BYTES_MIN, PRODUCER_VALUE_BYTES, SEGMENT_ROW_BYTES, STREAM_KEY_BYTES,
    disk_bytes_of_row,
};

/// What a database takes besides its rows, about: a new one has less than 50 KiB, and each commit writes the pages on the way to
/// its rows anew before it gives the old ones up.
pub(super) const FIXED_BYTES: u64 = 128 * 1024;

/// Bytes that the rows of a shard take. Summed up at each opening, which reads all of them anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Of `streams`, `producers` and `segments`.
    pub(super) settled: u64,
    /// Of `journal`.
    pub(super) journal: u64,
}

impl Usage {
    /// All of it.
    pub(super) fn total(self) -> u64 {
        self.settled.saturating_add(self.journal)
    }

    /// A settled row of `bytes` was written, in place of one of `replaced` bytes.
    pub(super) fn put_settled(&mut self, bytes: u64, replaced: Option<u64>) {
        self.remove_settled(replaced.unwrap_or(0));
        self.settled = self.settled.saturating_add(bytes);
    }

    /// Settled rows of `bytes` were removed.
    pub(super) fn remove_settled(&mut self, bytes: u64) {
        // An account that is wrong, for whatever reason, must not stop the shard.
        self.settled = self.settled.saturating_sub(bytes);
    }
}

/// A row of `journal` with so long a value.
pub(super) fn journal_row(value_bytes: usize) -> u64 {
    disk_bytes_of_row(JOURNAL_KEY_BYTES, value_bytes)
}

/// A row of `streams` with so long a record.
pub(super) fn stream_row(record_bytes: usize) -> u64 {
    disk_bytes_of_row(STREAM_KEY_BYTES, record_bytes)
}

/// A row of `producers` with so long an id.
pub(super) fn producer_row(id_bytes: usize) -> u64 {
    disk_bytes_of_row(PRODUCER_KEY_BYTES_MIN + id_bytes, PRODUCER_VALUE_BYTES)
}

/// A row of `segments`.
pub(super) fn segment_row() -> u64 {
    disk_bytes_of_row(0, SEGMENT_ROW_BYTES)
}
