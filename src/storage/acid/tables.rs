//! The tables of a shard's database. Their names and types are the format: see the [module](super).

use redb::{ReadableTable, Table, TableDefinition, TableError, WriteTransaction};

use crate::storage::StorageError;

/// Version of everything in a shard's database, and of the data directory's layout.
pub(super) const FORMAT_VERSION: u64 = 1;

pub(super) const JOURNAL: TableDefinition<'static, (u64, u32), &'static [u8]> =
    TableDefinition::new("journal");
pub(super) const STREAMS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("streams");
pub(super) const PRODUCERS: TableDefinition<'static, (u64, &'static [u8]), (u64, u64)> =
    TableDefinition::new("producers");
pub(super) const EXTENTS: TableDefinition<'static, (u64, u64), &'static [u8]> =
    TableDefinition::new("extents");
pub(super) const DOOMED: TableDefinition<'static, u64, ()> = TableDefinition::new("doomed");
pub(super) const SYS: TableDefinition<'static, &'static str, u64> = TableDefinition::new("sys");

pub(super) const SYS_FORMAT: &str = "format";
pub(super) const SYS_SHARD: &str = "shard";
pub(super) const SYS_NEXT_STREAM_ID: &str = "next_stream_id";
pub(super) const SYS_NEXT_GROUP: &str = "next_group";
pub(super) const SYS_SETTLED_BYTES: &str = "settled_bytes";

pub(super) type Extents<'t> = Table<'t, (u64, u64), &'static [u8]>;

/// The tables that a checkpoint writes, opened once for all checkpoints of a transaction.
pub(super) struct CheckpointTables<'t> {
    pub(super) streams: Table<'t, u64, &'static [u8]>,
    pub(super) producers: Table<'t, (u64, &'static [u8]), (u64, u64)>,
    pub(super) extents: Extents<'t>,
    pub(super) doomed: Table<'t, u64, ()>,
    pub(super) sys: Table<'t, &'static str, u64>,
}

impl<'t> CheckpointTables<'t> {
    /// Opens them, making those that do not exist.
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            streams: transaction.open_table(STREAMS)?,
            producers: transaction.open_table(PRODUCERS)?,
            extents: transaction.open_table(EXTENTS)?,
            doomed: transaction.open_table(DOOMED)?,
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
