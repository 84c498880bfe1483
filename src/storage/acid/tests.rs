//! The acid storage as a whole, over files, RAM and a disk that fails.

mod crash;
mod directory;
mod model;
mod single;
mod usage;

use std::collections::BTreeSet;

use redb::{ReadableDatabase, ReadableTableMetadata};

use super::tables::{EXTENTS, JOURNAL, SYS, SYS_SETTLED_BYTES, read_sys};
use super::usage::{journal_row, settled_bytes};
use super::*;
use crate::storage::Group;

fn in_memory() -> AcidLog {
    with_backend(Backend::InMemory)
}

fn with_backend(backend: Backend) -> AcidLog {
    AcidLog::new(AcidOptions { backend, cache_bytes: 4 << 20, ..AcidOptions::new("") }).unwrap()
}

fn group(seq: u64, frames: impl Into<Vec<u8>>) -> Group {
    Group { seq, frames: frames.into(), checkpoint: None }
}

/// Rows of the open shard 0: of the journal, of the extents.
fn rows(acid: &AcidLog) -> (u64, u64) {
    let database = acid.shards[0].database.read().unwrap();
    let transaction = database.as_ref().unwrap().begin_read().unwrap();
    let journal = transaction.open_table(JOURNAL).unwrap().len().unwrap();
    (journal, transaction.open_table(EXTENTS).unwrap().len().unwrap())
}

/// What the rows of the open shard 0 take, from the tables themselves: the settled ones, those of the journal. What `sys`
/// says of the former has to be the same.
fn usage_of_tables(acid: &AcidLog) -> (u64, u64) {
    let database = acid.shards[0].database.read().unwrap();
    let transaction = database.as_ref().unwrap().begin_read().unwrap();
    let settled = settled_bytes(&transaction).unwrap();
    let sys = transaction.open_table(SYS).unwrap();
    assert_eq!(read_sys(&sys, SYS_SETTLED_BYTES).unwrap(), Some(settled));
    let journal = transaction.open_table(JOURNAL).unwrap();
    let rows = journal.range::<(u64, u32)>(..).unwrap();
    (settled, rows.map(|row| journal_row(row.unwrap().1.value().len())).sum())
}

/// Streams of which the open shard 0 holds payload.
fn streams_with_extents(acid: &AcidLog) -> BTreeSet<u64> {
    let database = acid.shards[0].database.read().unwrap();
    let transaction = database.as_ref().unwrap().begin_read().unwrap();
    let extents = transaction.open_table(EXTENTS).unwrap();
    extents.range::<(u64, u64)>(..).unwrap().map(|row| row.unwrap().0.value().0).collect()
}
