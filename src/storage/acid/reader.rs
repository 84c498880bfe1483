//! Reads of settled payload.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use redb::{Database, ReadOnlyTable, ReadableDatabase};

use super::Shard;
use super::rows::STARTS_AT_BOUNDARY;
use super::tables::{EXTENTS, failed};
use crate::storage::{ColdReader, StorageError};

type Extents = ReadOnlyTable<(u64, u64), &'static [u8]>;

/// Reads one shard, through any number of reopenings.
pub(super) struct ShardReader {
    shard: Arc<Shard>,
}

impl fmt::Debug for ShardReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardReader").field("shard", &self.shard.index).finish_non_exhaustive()
    }
}

impl ShardReader {
    pub(super) fn new(shard: Arc<Shard>) -> Self {
        Self { shard }
    }

    /// Runs `read` on a snapshot that ends with the call: one kept longer would keep freed pages from being used again.
    fn with_extents<T>(
        &self,
        read: impl FnOnce(&Extents) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let database = self.shard.database.read().unwrap_or_else(PoisonError::into_inner);
        let database: &Database = database.as_deref().ok_or(StorageError::Reopening(self.shard.index))?;
        let transaction = database.begin_read().map_err(failed("beginning to read"))?;
        let extents = transaction.open_table(EXTENTS).map_err(failed("opening the extents"))?;
        read(&extents)
    }
}

impl ColdReader for ShardReader {
    fn read(&self, stream: u64, from: u64, to: u64, take: &mut dyn FnMut(&[u8])) -> Result<(), StorageError> {
        if from >= to {
            return Ok(());
        }
        self.with_extents(|extents| {
            let first = row_at_or_before(extents, stream, from)?.ok_or(StorageError::Missing)?;
            let mut at = from;
            let rows =
                extents.range((stream, first.start)..(stream, to)).map_err(failed("reading extents"))?;
            for row in rows {
                let (key, value) = row.map_err(failed("reading extents"))?;
                let (_, start) = key.value();
                let payload = payload(value.value())?;
                let end = start + payload.len() as u64;
                if start > at || end <= at {
                    return Err(StorageError::Missing);
                }
                // Both fit: they are at most the length of a row.
                let wanted = (at - start) as usize..(end.min(to) - start) as usize;
                take(&payload[wanted]);
                at = end.min(to);
            }
            if at == to { Ok(()) } else { Err(StorageError::Missing) }
        })
    }

    fn boundary_at_or_before(&self, stream: u64, position: u64) -> Result<u64, StorageError> {
        if position == 0 {
            return Ok(0);
        }
        self.with_extents(|extents| {
            let last = row_at_or_before(extents, stream, position)?.ok_or(StorageError::Missing)?;
            // Rows are contiguous, so this is the end of what is settled, which always is a whole number of messages.
            if position >= last.end {
                return Ok(last.end);
            }
            let rows =
                extents.range((stream, 0)..=(stream, last.start)).map_err(failed("reading extents"))?;
            for row in rows.rev() {
                let (key, value) = row.map_err(failed("reading extents"))?;
                if value.value().first() == Some(&STARTS_AT_BOUNDARY) {
                    return Ok(key.value().1);
                }
            }
            Err(StorageError::Corrupt(format!("no row of stream {stream} starts at a message boundary")))
        })
    }
}

/// Positions of the row that contains `position`, or else of the last one before it.
fn row_at_or_before(
    extents: &Extents,
    stream: u64,
    position: u64,
) -> Result<Option<Range<u64>>, StorageError> {
    let mut rows = extents.range((stream, 0)..=(stream, position)).map_err(failed("reading extents"))?;
    let Some(row) = rows.next_back() else { return Ok(None) };
    let (key, value) = row.map_err(failed("reading extents"))?;
    range_of(key.value().1, value.value()).map(Some)
}

/// Positions that the row `value` at `start` holds.
pub(super) fn range_of(start: u64, value: &[u8]) -> Result<Range<u64>, StorageError> {
    Ok(start..start + payload(value)?.len() as u64)
}

fn payload(value: &[u8]) -> Result<&[u8], StorageError> {
    match value.split_first() {
        Some((flags, payload)) if *flags <= STARTS_AT_BOUNDARY && !payload.is_empty() => Ok(payload),
        _ => Err(StorageError::Corrupt("an extent without payload or with unknown flags".to_owned())),
    }
}
