//! The write side of a shard: commits, trims, reclaim; and what an opening finds.

use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, Table, WriteTransaction,
};

use super::Shard;
use super::backend::CountingBackend;
use super::layout::DataDirectory;
use super::reader::{ShardReader, range_of};
use super::rows::{ExtentCutter, ExtentRow, JOURNAL_KEY_BYTES, next_value_bytes};
use super::tables::{
    CheckpointTables, DOOMED, EXTENTS, Extents, FORMAT_VERSION, JOURNAL, PRODUCERS, STREAMS, SYS, SYS_FORMAT,
    SYS_NEXT_GROUP, SYS_NEXT_STREAM_ID, SYS_SETTLED_BYTES, SYS_SHARD, failed, read_sys,
};
use super::usage::{self, Usage};
use crate::storage::{
    Checkpoint, ColdReader, CommitLog, DiskRoom, Group, Recovered, RecoveredStream, StorageError,
    StreamCheckpoint,
};

/// Most `extents` rows that one transaction removes on behalf of removed streams: what keeps a commit short when a
/// large stream, or very many, are removed at once.
pub(super) const REMOVED_ROWS_MAX: usize = 256;

/// Opens the database of a shard, making its tables if it is new.
pub(super) fn open_database(
    shard: usize,
    backend: CountingBackend,
    cache_bytes: u64,
) -> Result<Database, StorageError> {
    let repaired_tenths = AtomicU64::new(0);
    let database = Builder::new()
        .set_cache_size(usize::try_from(cache_bytes).unwrap_or(usize::MAX))
        .set_repair_callback(move |session| {
            let tenths = (session.progress() * 10.0) as u64;
            if repaired_tenths.swap(tenths, Ordering::Relaxed) != tenths {
                tracing::info!(
                    ds.shard = shard,
                    percent = tenths * 10,
                    "checking the database after a crash"
                );
            }
        })
        .create_with_backend(backend)
        .map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StorageError::Locked(format!("of shard {shard}")),
            other => failed("opening the database")(other),
        })?;
    if is_initialised(&database, shard)? {
        usage::record_if_missing(&database, shard)?;
    } else {
        initialise(&database, shard)?;
    }
    Ok(database)
}

/// Whether the tables are there, after checking whose they are.
fn is_initialised(database: &Database, shard: usize) -> Result<bool, StorageError> {
    let transaction = database.begin_read().map_err(failed("beginning to read"))?;
    let sys = match transaction.open_table(SYS) {
        Ok(sys) => sys,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(false),
        Err(error) => return Err(failed("opening the system table")(error)),
    };
    for (name, expected) in [(SYS_FORMAT, FORMAT_VERSION), (SYS_SHARD, shard as u64)] {
        let found = read_sys(&sys, name)?;
        if found != Some(expected) {
            return Err(StorageError::Layout(format!(
                "the database of shard {shard} says {name} = {}, expected {expected}",
                found.map_or_else(|| "nothing".to_owned(), |found| found.to_string())
            )));
        }
    }
    Ok(true)
}

fn initialise(database: &Database, shard: usize) -> Result<(), StorageError> {
    let transaction = database.begin_write().map_err(failed("beginning to write"))?;
    {
        transaction.open_table(JOURNAL).map_err(failed("making the tables"))?;
        let mut tables = CheckpointTables::open(&transaction).map_err(failed("making the tables"))?;
        tables.sys.insert(SYS_FORMAT, FORMAT_VERSION).map_err(failed("making the tables"))?;
        tables.sys.insert(SYS_SHARD, shard as u64).map_err(failed("making the tables"))?;
        tables.sys.insert(SYS_SETTLED_BYTES, 0).map_err(failed("making the tables"))?;
    }
    transaction.commit().map_err(failed("making the tables"))
}

/// Reads all that a shard has to know at start: everything but settled payload. Says also what all rows take.
pub(super) fn recover(database: &Database) -> Result<(Recovered, Usage), StorageError> {
    const DOING: &str = "reading the database";
    let transaction = database.begin_read().map_err(failed(DOING))?;
    let sys = transaction.open_table(SYS).map_err(failed(DOING))?;
    let settled = read_sys(&sys, SYS_SETTLED_BYTES)?.unwrap_or(0);
    let mut usage = Usage { settled, journal: 0 };
    let mut recovered = Recovered {
        next_stream_id: read_sys(&sys, SYS_NEXT_STREAM_ID)?.unwrap_or(0),
        next_group: read_sys(&sys, SYS_NEXT_GROUP)?.unwrap_or(0),
        ..Recovered::default()
    };

    for row in
        transaction.open_table(STREAMS).map_err(failed(DOING))?.range::<u64>(..).map_err(failed(DOING))?
    {
        let (id, record) = row.map_err(failed(DOING))?;
        recovered.streams.push(RecoveredStream {
            id: id.value(),
            record: Bytes::copy_from_slice(record.value()),
            producers: Vec::new(),
        });
    }

    // Both tables are in stream-id order.
    let mut streams = recovered.streams.iter_mut().peekable();
    let producers = transaction.open_table(PRODUCERS).map_err(failed(DOING))?;
    for row in producers.range::<(u64, &[u8])>(..).map_err(failed(DOING))? {
        let (key, value) = row.map_err(failed(DOING))?;
        let ((id, producer), (epoch, sequence)) = (key.value(), value.value());
        while streams.next_if(|stream| stream.id < id).is_some() {}
        let stream = streams
            .peek_mut()
            .filter(|stream| stream.id == id)
            .ok_or_else(|| StorageError::Corrupt(format!("stream {id} has producers but no record")))?;
        stream.producers.push((Bytes::copy_from_slice(producer), epoch, sequence));
    }

    let journal = transaction.open_table(JOURNAL).map_err(failed(DOING))?;
    recovered.groups = join_groups(&journal, &mut usage)?;
    if let Some((last, _)) = recovered.groups.last() {
        recovered.next_group = recovered.next_group.max(last + 1);
    }
    Ok((recovered, usage))
}

fn join_groups(
    journal: &impl ReadableTable<(u64, u32), &'static [u8]>,
    usage: &mut Usage,
) -> Result<Vec<(u64, Bytes)>, StorageError> {
    const DOING: &str = "reading the journal";
    let mut groups: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut expected_part = 0;
    for row in journal.range::<(u64, u32)>(..).map_err(failed(DOING))? {
        let (key, value) = row.map_err(failed(DOING))?;
        let (seq, part) = key.value();
        usage.journal += usage::journal_row(value.value().len());
        match groups.last_mut() {
            Some((last, frames)) if *last == seq => frames.extend_from_slice(value.value()),
            _ => {
                groups.push((seq, value.value().to_vec()));
                expected_part = 0;
            }
        }
        if part != expected_part {
            return Err(StorageError::Corrupt(format!(
                "group {seq} of the journal lacks part {expected_part}"
            )));
        }
        expected_part += 1;
    }
    Ok(groups.into_iter().map(|(seq, frames)| (seq, Bytes::from(frames))).collect())
}

/// The one writer of a shard's database. Dropping it closes the database.
pub(super) struct ShardLog {
    shard: Arc<Shard>,
    database: Arc<Database>,
    reader: Arc<ShardReader>,
    /// Keeps the data directory locked for as long as one of its databases is open. `None` without files.
    directory: Option<Arc<DataDirectory>>,
    two_phase_commit: bool,
    /// Numbers below this have been committed.
    next_group: u64,
    /// Whether `doomed` has rows.
    has_doomed: bool,
    /// Set while a transaction is under way, so that a panic in it counts as a failure too.
    failed: bool,
    cutter: ExtentCutter,
    /// With the rows of the transaction under way; if that fails, nobody looks at it any more.
    usage: Usage,
}

impl fmt::Debug for ShardLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardLog")
            .field("shard", &self.shard.index)
            .field("next_group", &self.next_group)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl ShardLog {
    pub(super) fn new(
        shard: Arc<Shard>,
        database: Database,
        directory: Option<Arc<DataDirectory>>,
        two_phase_commit: bool,
        next_group: u64,
        usage: Usage,
    ) -> Result<Self, StorageError> {
        let has_doomed = {
            let transaction = database.begin_read().map_err(failed("beginning to read"))?;
            let doomed = transaction.open_table(DOOMED).map_err(failed("opening the doomed"))?;
            doomed.first().map_err(failed("reading the doomed"))?.is_some()
        };
        let database = Arc::new(database);
        *shard.database.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&database));
        Ok(Self {
            reader: Arc::new(ShardReader::new(Arc::clone(&shard))),
            shard,
            database,
            directory,
            two_phase_commit,
            next_group,
            has_doomed,
            failed: false,
            cutter: ExtentCutter::default(),
            usage,
        })
    }

    /// Runs `write` in a durable transaction. Once that failed, no other is begun.
    fn transact<T>(
        &mut self,
        write: impl FnOnce(&mut Self, &WriteTransaction) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        if self.failed {
            return Err(StorageError::Database {
                context: "writing".to_owned(),
                message: "an earlier commit failed; the shard has to be reopened".to_owned(),
            });
        }
        self.failed = true;
        let answer = self.transact_once(write).map_err(|error| {
            let ran_out = self.shard.ran_out.load(Ordering::Relaxed);
            if ran_out { StorageError::DiskFull(error.to_string()) } else { error }
        })?;
        self.failed = false;
        Ok(answer)
    }

    fn transact_once<T>(
        &mut self,
        write: impl FnOnce(&mut Self, &WriteTransaction) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let mut transaction = self.database.begin_write().map_err(failed("beginning to write"))?;
        transaction.set_durability(Durability::Immediate).map_err(failed("beginning to write"))?;
        transaction.set_two_phase_commit(self.two_phase_commit);
        let answer = write(self, &transaction)?;
        transaction.commit().map_err(failed("committing"))?;
        Ok(answer)
    }

    fn write_groups(
        &mut self,
        transaction: &WriteTransaction,
        groups: &mut [Group],
    ) -> Result<(), StorageError> {
        const DOING: &str = "writing the journal";
        let mut journal = transaction.open_table(JOURNAL).map_err(failed(DOING))?;
        let mut trim_before = 0;
        let mut tables = None;
        let mut budget = REMOVED_ROWS_MAX;
        for group in groups {
            if group.seq < self.next_group {
                return Err(StorageError::Corrupt(format!(
                    "group {} was submitted after group {}",
                    group.seq,
                    self.next_group - 1
                )));
            }
            self.next_group = group.seq + 1;
            if !group.frames.is_empty() || group.checkpoint.is_none() {
                insert_group(&mut journal, &mut self.usage, group.seq, &group.frames)?;
            }
            if let Some(checkpoint) = &mut group.checkpoint {
                let tables = match &mut tables {
                    Some(tables) => tables,
                    none => none
                        .insert(CheckpointTables::open(transaction).map_err(failed("opening the tables"))?),
                };
                if checkpoint.trim_before > group.seq + 1 {
                    return Err(StorageError::Corrupt(format!(
                        "group {} would trim groups up to {}, which come after it",
                        group.seq, checkpoint.trim_before
                    )));
                }
                trim_before = trim_before.max(checkpoint.trim_before);
                self.write_checkpoint(tables, checkpoint, group.seq, &mut budget)?;
            }
        }
        if trim_before > 0 {
            let mut trimmed = 0;
            let trim = |_: (u64, u32), value: &[u8]| {
                trimmed += usage::journal_row(value.len());
                false
            };
            journal.retain_in(..(trim_before, 0), trim).map_err(failed("trimming the journal"))?;
            self.usage.journal = self.usage.journal.saturating_sub(trimmed);
        }
        Ok(())
    }

    fn write_checkpoint(
        &mut self,
        tables: &mut CheckpointTables<'_>,
        checkpoint: &mut Checkpoint,
        seq: u64,
        budget: &mut usize,
    ) -> Result<(), StorageError> {
        const DOING: &str = "writing a checkpoint";
        // In key order, a leaf that several streams share is copied and checksummed once.
        checkpoint.streams.sort_unstable_by_key(|stream| stream.id);
        for stream in &checkpoint.streams {
            let record = stream.record.as_slice();
            let replaced = tables.streams.insert(stream.id, record).map_err(failed(DOING))?;
            let replaced = replaced.map(|record| usage::stream_row(record.value().len()));
            self.usage.put_settled(usage::stream_row(record.len()), replaced);
        }
        for stream in &mut checkpoint.streams {
            stream.producers.sort_unstable();
            for (producer, epoch, sequence) in &stream.producers {
                let key = (stream.id, producer.as_ref());
                let replaced = tables.producers.insert(key, (*epoch, *sequence)).map_err(failed(DOING))?;
                let bytes = usage::producer_row(producer.len());
                self.usage.put_settled(bytes, replaced.map(|_| bytes));
            }
        }
        for stream in &checkpoint.streams {
            settle(&mut tables.extents, &mut self.cutter, &mut self.usage, stream)?;
        }
        checkpoint.removed.sort_unstable();
        for id in &checkpoint.removed {
            self.remove_stream(tables, *id, budget)?;
        }
        tables.sys.insert(SYS_NEXT_STREAM_ID, checkpoint.next_stream_id).map_err(failed(DOING))?;
        tables.sys.insert(SYS_NEXT_GROUP, seq + 1).map_err(failed(DOING))?;
        tables.sys.insert(SYS_SETTLED_BYTES, self.usage.settled).map_err(failed(DOING))?;
        Ok(())
    }

    fn remove_stream(
        &mut self,
        tables: &mut CheckpointTables<'_>,
        id: u64,
        budget: &mut usize,
    ) -> Result<(), StorageError> {
        const DOING: &str = "removing a stream";
        if let Some(record) = tables.streams.remove(id).map_err(failed(DOING))? {
            self.usage.remove_settled(usage::stream_row(record.value().len()));
        }
        let of_stream = (Bound::Included((id, &[][..])), after(id).map_or(Bound::Unbounded, Bound::Excluded));
        let remove = |(_, producer): (u64, &[u8]), _| {
            self.usage.remove_settled(usage::producer_row(producer.len()));
            false
        };
        tables.producers.retain_in(of_stream, remove).map_err(failed(DOING))?;
        if !remove_extents(&mut tables.extents, &mut self.usage, id, budget)? {
            tables.doomed.insert(id, ()).map_err(failed(DOING))?;
            self.has_doomed = true;
        }
        Ok(())
    }
}

/// The first key of `producers` past those of stream `id`.
fn after(id: u64) -> Option<(u64, &'static [u8])> {
    id.checked_add(1).map(|next| (next, &[][..]))
}

fn insert_group(
    journal: &mut Table<'_, (u64, u32), &'static [u8]>,
    usage: &mut Usage,
    seq: u64,
    frames: &[u8],
) -> Result<(), StorageError> {
    let mut rest = frames;
    let mut part = 0;
    loop {
        let size = if rest.is_empty() { 0 } else { next_value_bytes(rest.len(), JOURNAL_KEY_BYTES) };
        let (now, later) = rest.split_at(size);
        journal.insert((seq, part), now).map_err(failed("writing the journal"))?;
        usage.journal += usage::journal_row(now.len());
        if later.is_empty() {
            return Ok(());
        }
        (rest, part) = (later, part + 1);
    }
}

/// Writes the payload that a checkpoint settles.
fn settle(
    extents: &mut Extents<'_>,
    cutter: &mut ExtentCutter,
    usage: &mut Usage,
    stream: &StreamCheckpoint,
) -> Result<(), StorageError> {
    const DOING: &str = "settling payload";
    if stream.payload.iter().all(Bytes::is_empty) {
        return Ok(());
    }
    cutter.begin(stream.start);
    resume_last_row(extents, cutter, stream)?;
    let mut emit = |row: ExtentRow<'_>| {
        let replaced = extents.insert((stream.id, row.start), row.value).map_err(failed(DOING))?;
        let replaced = replaced.map(|row| usage::extent_row(row.value().len()));
        usage.put_settled(usage::extent_row(row.value.len()), replaced);
        Ok(())
    };
    for piece in &stream.payload {
        cutter.push(piece, &mut emit)?;
    }
    cutter.finish(&mut emit)
}

/// Looks at what is settled of a stream: it has to end where the new payload starts, and its last row may be short enough
/// to be continued.
fn resume_last_row(
    extents: &Extents<'_>,
    cutter: &mut ExtentCutter,
    stream: &StreamCheckpoint,
) -> Result<(), StorageError> {
    const DOING: &str = "settling payload";
    let mut rows = extents.range((stream.id, 0)..=(stream.id, u64::MAX)).map_err(failed(DOING))?;
    let Some((key, value)) = rows.next_back().transpose().map_err(failed(DOING))? else { return Ok(()) };
    let settled = range_of(key.value().1, value.value())?;
    if settled.end != stream.start {
        return Err(StorageError::Corrupt(format!(
            "stream {} is settled up to {}, not up to {}",
            stream.id, settled.end, stream.start
        )));
    }
    if ExtentCutter::is_worth_resuming(value.value()) {
        cutter.resume(settled.start, value.value());
    }
    Ok(())
}

/// Removes payload of a stream as far as `budget` goes, which it lowers by the rows removed. Returns whether that was
/// all of it.
fn remove_extents(
    extents: &mut Extents<'_>,
    usage: &mut Usage,
    id: u64,
    budget: &mut usize,
) -> Result<bool, StorageError> {
    const DOING: &str = "removing payload";
    let rows = (id, 0)..=(id, u64::MAX);
    let mut removal = extents.extract_from_if(rows.clone(), |_, _| true).map_err(failed(DOING))?;
    while *budget > 0 {
        let Some(row) = removal.next() else { break };
        let (_, value) = row.map_err(failed(DOING))?;
        usage.remove_settled(usage::extent_row(value.value().len()));
        *budget -= 1;
    }
    removal.close().map_err(failed(DOING))?;
    let left = extents.range(rows).map_err(failed(DOING))?.next().transpose().map_err(failed(DOING))?;
    Ok(left.is_none())
}

impl CommitLog for ShardLog {
    fn commit(&mut self, groups: &mut [Group]) -> Result<(), StorageError> {
        if groups.is_empty() {
            return Ok(());
        }
        self.transact(|log, transaction| log.write_groups(transaction, groups))
    }

    fn reclaim(&mut self) -> Result<bool, StorageError> {
        const DOING: &str = "reclaiming payload";
        if !self.has_doomed {
            return Ok(false);
        }
        self.has_doomed = self.transact(|log, transaction| {
            let mut doomed = transaction.open_table(DOOMED).map_err(failed(DOING))?;
            let mut extents = transaction.open_table(EXTENTS).map_err(failed(DOING))?;
            let mut budget = REMOVED_ROWS_MAX;
            while budget > 0 {
                let Some(id) = doomed.first().map_err(failed(DOING))?.map(|(id, _)| id.value()) else {
                    break;
                };
                if remove_extents(&mut extents, &mut log.usage, id, &mut budget)? {
                    doomed.remove(id).map_err(failed(DOING))?;
                }
            }
            let mut sys = transaction.open_table(SYS).map_err(failed(DOING))?;
            sys.insert(SYS_SETTLED_BYTES, log.usage.settled).map_err(failed(DOING))?;
            Ok(doomed.first().map_err(failed(DOING))?.is_some())
        })?;
        Ok(self.has_doomed)
    }

    fn reader(&self) -> Arc<dyn ColdReader> {
        Arc::clone(&self.reader) as Arc<dyn ColdReader>
    }

    fn disk_bytes(&self) -> u64 {
        let Some(files) = &self.directory else { return self.usage.total() };
        let needed = self.usage.total().saturating_add(usage::FIXED_BYTES);
        // A momentary failure to look must not stop anything: the next commit looks again.
        files.shard_disk_bytes(self.shard.index).map_or(needed, |taken| taken.min(needed))
    }

    fn disk_room(&self) -> Option<DiskRoom> {
        // Who cannot be asked knows of no limit either.
        let free = match (&self.shard.free_space, &self.directory) {
            (Some(probe), _) => probe.free_bytes().ok()?,
            (None, files) => files.as_ref()?.free_bytes()?,
        };
        let taken = self.directory.as_ref().and_then(|files| files.shard_disk_bytes(self.shard.index).ok());
        let needed = self.usage.total().saturating_add(usage::FIXED_BYTES);
        Some(DiskRoom { free, withheld: 0, reusable: taken.unwrap_or(0).saturating_sub(needed) })
    }
}

impl Drop for ShardLog {
    fn drop(&mut self) {
        // Waits for the reads in progress. What is dropped after this, with the last `Arc`, is `self.database`, and that
        // is what closes the database and gives up its file lock.
        self.shard.database.write().unwrap_or_else(PoisonError::into_inner).take();
    }
}
