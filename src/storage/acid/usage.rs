//! The account of the disk that a shard's rows take.
//!
//! The file of redb gets shorter only where its end is free; other pages of removed rows are used again. So its size says
//! what was needed at some time, and the account says what is needed now. It counts pages as far as a row has one of its own, and knows
//! nothing of half-filled leaves and of redb's own tables: [`FIXED_BYTES`] stands for those.

use redb::{Database, ReadTransaction, ReadableDatabase};

use super::rows::{
    EXTENT_KEY_BYTES, JOURNAL_KEY_BYTES, PRODUCER_KEY_BYTES_MIN, PRODUCER_VALUE_BYTES, STREAM_KEY_BYTES,
    disk_bytes_of_row,
};
use super::tables::{EXTENTS, PRODUCERS, STREAMS, SYS, SYS_SETTLED_BYTES, failed, read_sys};
use crate::storage::StorageError;

/// What a database takes besides its rows, about: a new one has less than 50 KiB, and each commit writes the pages on the way to
/// its rows anew before it gives the old ones up.
pub(super) const FIXED_BYTES: u64 = 128 * 1024;

/// Bytes that the rows of a shard take, in two sums because they come back at an opening in two ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Of `streams`, `producers` and `extents`, those of removed streams included until they are reclaimed. Stands in
    /// `sys`, replaced in the transaction that changes it.
    pub(super) settled: u64,
    /// Of `journal`. Summed up at each opening, which reads all of it anyway.
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

/// A row of `extents` with so long a value.
pub(super) fn extent_row(value_bytes: usize) -> u64 {
    disk_bytes_of_row(EXTENT_KEY_BYTES, value_bytes)
}

/// Gives a database the account that one made by an earlier build does not have.
pub(super) fn record_if_missing(database: &Database, shard: usize) -> Result<(), StorageError> {
    const DOING: &str = "recording the disk use";
    let settled = {
        let transaction = database.begin_read().map_err(failed(DOING))?;
        let sys = transaction.open_table(SYS).map_err(failed(DOING))?;
        if read_sys(&sys, SYS_SETTLED_BYTES)?.is_some() {
            return Ok(());
        }
        tracing::info!(
            ds.shard = shard,
            "adding up the disk use, once, as an earlier version did not record it"
        );
        settled_bytes(&transaction)?
    };
    let transaction = database.begin_write().map_err(failed(DOING))?;
    {
        let mut sys = transaction.open_table(SYS).map_err(failed(DOING))?;
        sys.insert(SYS_SETTLED_BYTES, settled).map_err(failed(DOING))?;
    }
    transaction.commit().map_err(failed(DOING))
}

/// [`Usage::settled`] from the tables themselves. Reads all that is stored.
pub(super) fn settled_bytes(transaction: &ReadTransaction) -> Result<u64, StorageError> {
    const DOING: &str = "adding up the disk use";
    let mut bytes = 0;
    let streams = transaction.open_table(STREAMS).map_err(failed(DOING))?;
    for row in streams.range::<u64>(..).map_err(failed(DOING))? {
        bytes += stream_row(row.map_err(failed(DOING))?.1.value().len());
    }
    let producers = transaction.open_table(PRODUCERS).map_err(failed(DOING))?;
    for row in producers.range::<(u64, &[u8])>(..).map_err(failed(DOING))? {
        bytes += producer_row(row.map_err(failed(DOING))?.0.value().1.len());
    }
    let extents = transaction.open_table(EXTENTS).map_err(failed(DOING))?;
    for row in extents.range::<(u64, u64)>(..).map_err(failed(DOING))? {
        bytes += extent_row(row.map_err(failed(DOING))?.1.value().len());
    }
    Ok(bytes)
}
