//! A shard's database at one instant, and copying it.
//!
//! redb keeps the pages of a read transaction, and takes new ones for what is written meanwhile. So the file grows by as much as is
//! written until the tables are copied, and is used again after that. The copy is a database of its own, without what is free
//! in the original.

use std::fmt;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{Database, Key, ReadTransaction, ReadableTableMetadata as _, TableDefinition, Value};

use super::backend::{CountingBackend, DiskBackend, IoCounters};
use super::log::open_database;
use super::tables::{JOURNAL, PRODUCERS, SEGMENTS, STREAMS, SYS, failed};
use super::{KIND, SHARD_FILE, page_log};
use crate::storage::backup::{BackupError, LogSnapshot, Target};
use crate::storage::layout::Kind;

/// Rows of about so many bytes are one transaction of the copy.
const BATCH_BYTES: usize = 4 << 20;
/// Page cache of the copy, whose pages are written once. Bytes.
const CACHE_BYTES: u64 = 16 << 20;

/// What a read transaction sees.
pub(super) struct DatabaseSnapshot {
    shard: usize,
    transaction: ReadTransaction,
    /// Dropped after the transaction: then the database may be compacted again.
    _alive: Arc<()>,
}

impl fmt::Debug for DatabaseSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseSnapshot").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl DatabaseSnapshot {
    /// What was committed so far. `alive` is let go of when it is.
    pub(super) fn new(shard: usize, transaction: ReadTransaction, alive: Arc<()>) -> Self {
        Self { shard, transaction, _alive: alive }
    }

    fn stored_bytes<K: Key + 'static, V: Value + 'static>(&self, table: TableDefinition<'_, K, V>) -> u64 {
        let stats = self.transaction.open_table(table).ok().and_then(|table| table.stats().ok());
        stats.map_or(0, |stats| stats.stored_bytes())
    }

    /// Copies a table, in transactions of some size.
    fn copy_table<K: Key + 'static, V: Value + 'static>(
        &self,
        table: TableDefinition<'_, K, V>,
        copy: &Database,
        target: &mut Target<'_>,
    ) -> Result<(), BackupError> {
        const DOING: &str = "copying the database";
        let from = self.transaction.open_table(table).map_err(failed(DOING))?;
        let mut last: Option<Vec<u8>> = None;
        loop {
            let begin = match &last {
                None => Bound::Unbounded,
                Some(last) => Bound::Excluded(K::from_bytes(last)),
            };
            let transaction = copy.begin_write().map_err(failed(DOING))?;
            let mut to = transaction.open_table(table).map_err(failed(DOING))?;
            let (mut bytes, mut next) = (0, None);
            for row in from.range::<K::SelfType<'_>>((begin, Bound::Unbounded)).map_err(failed(DOING))? {
                let (key, value) = row.map_err(failed(DOING))?;
                to.insert(key.value(), value.value()).map_err(failed(DOING))?;
                let key = K::as_bytes(&key.value()).as_ref().to_vec();
                bytes += key.len() + V::as_bytes(&value.value()).as_ref().len();
                if bytes >= BATCH_BYTES {
                    next = Some(key);
                    break;
                }
            }
            drop(to);
            transaction.commit().map_err(failed(DOING))?;
            target.wrote(bytes as u64)?;
            if next.is_none() {
                return Ok(());
            }
            last = next;
        }
    }
}

impl LogSnapshot for DatabaseSnapshot {
    fn kind(&self) -> Kind {
        KIND
    }

    fn bytes(&self) -> u64 {
        // What is estimated too low shows at the end of a progress bar only.
        self.stored_bytes(JOURNAL) + self.stored_bytes(STREAMS) + self.stored_bytes(PRODUCERS)
    }

    fn copy(self: Box<Self>, dir: &Path, target: &mut Target<'_>) -> Result<(), BackupError> {
        let path = dir.join(SHARD_FILE);
        let file = target.create(&path)?;
        let disk = Arc::clone(target.disk());
        for (number, name) in page_log::NUMBERED_FILES {
            let path = dir.join(name);
            let log = target.create(&path)?;
            page_log::begin(&*log, self.shard as u32, number).map_err(target.failed(&path))?;
        }
        let ran_out = Arc::new(AtomicBool::new(false));
        let backend = CountingBackend::new(
            Box::new(DiskBackend::new(file, disk)),
            Arc::new(IoCounters::default()),
            Arc::clone(&ran_out),
        );
        let copied = self.copy_into(backend, target);
        match copied {
            // redb's errors do not say which of the two databases they are about.
            Err(BackupError::Storage(error)) if ran_out.load(Ordering::Relaxed) => {
                let full = io::Error::new(io::ErrorKind::StorageFull, error.to_string());
                Err(target.failed(&path)(full).into())
            }
            copied => copied,
        }
    }
}

impl DatabaseSnapshot {
    fn copy_into(&self, backend: CountingBackend, target: &mut Target<'_>) -> Result<(), BackupError> {
        let copy = open_database(self.shard, backend, CACHE_BYTES)?;
        self.copy_table(JOURNAL, &copy, target)?;
        self.copy_table(STREAMS, &copy, target)?;
        self.copy_table(PRODUCERS, &copy, target)?;
        self.copy_table(SEGMENTS, &copy, target)?;
        self.copy_table(SYS, &copy, target)?;
        // Closed in order, so that the first opening need not check every page.
        copy.close().map_err(failed("closing the copy of the database"))?;
        Ok(())
    }
}
