//! The tables of a shard's database. Their names and types are the format: see the [module](super).

use redb::{ReadableTable, Table, TableDefinition, TableError, WriteTransaction};

use crate::storage::StorageError;

pub(super) const JOURNAL: TableDefinition<'static, (u64, u32), &'static [u8]> =
    TableDefinition::new("journal");
pub(super) const STREAMS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("streams");
pub(super) const PRODUCERS: TableDefinition<'static, (u64, &'static [u8]), (u64, u64)> =
    TableDefinition::new("producers");
pub(super) const SEGMENTS: TableDefinition<'static, u64, (u64, u32)> = TableDefinition::new("segments");
pub(super) const SYS: TableDefinition<'static, &'static str, u64> = TableDefinition::new("sys");

pub(super) const SYS_FORMAT: &str = "format";
pub(super) const SYS_SHARD: &str = "shard";
pub(super) const SYS_NEXT_STREAM_ID: &str = "next_stream_id";
pub(super) const SYS_NEXT_GROUP: &str = "next_group";
pub(super) const SYS_NEXT_SEGMENT_ID: &str = "next_segment_id";

/// The tables that a checkpoint writes, opened once for all checkpoints of a transaction.
pub(super) struct CheckpointTables<'t> {
    pub(super) streams: Table<'t, u64, &'static [u8]>,
    pub(super) producers: Table<'t, (u64, &'static [u8]), (u64, u64)>,
    pub(super) segments: Table<'t, u64, (u64, u32)>,
    pub(super) sys: Table<'t, &'static str, u64>,
}

impl<'t> CheckpointTables<'t> {
    /// Opens them, making those that do not exist.
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            streams: transaction.open_table(STREAMS)?,
            producers: transaction.open_table(PRODUCERS)?,
            segments: transaction.open_table(SEGMENTS)?,
            sys: transaction.open_table(SYS)?,
        })
    }
}

/// One row of `sys`.
pub(super) fn read_sys(
    sys: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<Option<u64>, StorageError> {
    Ok(sys.get(name).map_err(failed("reading the system table"))?.map(|value| value.value()))
}

/// Turns an error of redb into ours; `context` says what was being done.
pub(super) fn failed<E: Into<redb::Error>>(context: &'static str) -> impl FnOnce(E) -> StorageError {
    move |error| match error.into() {
        redb::Error::Io(source) => StorageError::Io { context: context.to_owned(), source },
        redb::Error::Corrupted(message) => StorageError::Corrupt(format!("{context}: {message}")),
        other => StorageError::Database { context: context.to_owned(), message: other.to_string() },
    }
}
