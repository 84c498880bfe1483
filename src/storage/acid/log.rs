//! The write side of a shard's journal and catalog: commits, trims, compaction; and what an opening finds.

use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend, Table,
    WriteTransaction,
};

use super::Shard;
use super::commit_notice::CommitNotice;
use super::page_log::PageLog;
use super::rows::{JOURNAL_KEY_BYTES, next_value_bytes};
use super::snapshot::DatabaseSnapshot;
use super::tables::{
    CheckpointTables, JOURNAL, PRODUCERS, SEGMENTS, STREAMS, SYS, SYS_FORMAT, SYS_NEXT_GROUP,
    SYS_NEXT_SEGMENT_ID, SYS_NEXT_STREAM_ID, SYS_SHARD, failed, read_sys,
};
use super::usage::{self, Usage};
use crate::storage::backup::LogSnapshot;
use crate::storage::disk::DiskFile;
use crate::storage::layout::{DataDirectory, FORMAT_VERSION};
use crate::storage::pieces::Pieces;
use crate::storage::reserve::Reserve;
use crate::storage::segment::SegmentMeta;
use crate::storage::{
    Checkpoint, CommitLog, DiskRoom, Group, OnDurable, Recovered, RecoveredStream, StorageError,
};

/// A database with more than this is not compacted. Bytes.
const COMPACTED_BYTES_MAX: u64 = 32 << 20;
/// A check of the database that takes longer is told of.
const TELL_AFTER: Duration = Duration::from_secs(1);
/// Room that a database may waste, besides as much as it needs. Bytes.
const WASTE_BYTES_MAX: u64 = 2 << 20;

/// Opens the database of a shard, making its tables if it is new.
pub(super) fn open_database(
    shard: usize,
    backend: impl StorageBackend,
    cache_bytes: u64,
) -> Result<Database, StorageError> {
    let (begun, told_tenths) = (Instant::now(), AtomicU64::new(0));
    let database = Builder::new()
        .set_cache_size(usize::try_from(cache_bytes).unwrap_or(usize::MAX))
        // Also after a clean stop: redb itself would take a page as it is then, and nothing else has a checksum of it.
        .set_check_integrity_on_open(true)
        .set_repair_callback(move |session| {
            let tenths = (session.progress() * 10.0) as u64;
            if begun.elapsed() >= TELL_AFTER && told_tenths.swap(tenths, Ordering::Relaxed) != tenths {
                tracing::info!(ds.shard = shard, percent = tenths * 10, "checking the database");
            }
        })
        .create_with_backend(backend)
        .map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => StorageError::Locked(format!("of shard {shard}")),
            other => failed("opening the database")(other),
        })?;
    if !is_initialised(&database, shard)? {
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
    }
    transaction.commit().map_err(failed("making the tables"))
}

/// What a database holds.
pub(super) struct Found {
    pub(super) recovered: Recovered,
    pub(super) segments: Vec<SegmentMeta>,
    pub(super) next_segment_id: u64,
    pub(super) usage: Usage,
}

/// Reads all of it.
pub(super) fn recover(database: &Database) -> Result<Found, StorageError> {
    const DOING: &str = "reading the database";
    let transaction = database.begin_read().map_err(failed(DOING))?;
    let sys = transaction.open_table(SYS).map_err(failed(DOING))?;
    let mut usage = Usage::default();
    let mut recovered = Recovered {
        next_stream_id: read_sys(&sys, SYS_NEXT_STREAM_ID)?.unwrap_or(0),
        next_group: read_sys(&sys, SYS_NEXT_GROUP)?.unwrap_or(0),
        ..Recovered::default()
    };
    let next_segment_id = read_sys(&sys, SYS_NEXT_SEGMENT_ID)?.unwrap_or(0);

    let streams = transaction.open_table(STREAMS).map_err(failed(DOING))?;
    for row in streams.range::<u64>(..).map_err(failed(DOING))? {
        let (id, record) = row.map_err(failed(DOING))?;
        usage.put_settled(usage::stream_row(record.value().len()), None);
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
        usage.put_settled(usage::producer_row(producer.len()), None);
        while streams.next_if(|stream| stream.id < id).is_some() {}
        let stream = streams
            .peek_mut()
            .filter(|stream| stream.id == id)
            .ok_or_else(|| StorageError::Corrupt(format!("stream {id} has producers but no record")))?;
        stream.producers.push((Bytes::copy_from_slice(producer), epoch, sequence));
    }

    let mut segments = Vec::new();
    let table = transaction.open_table(SEGMENTS).map_err(failed(DOING))?;
    for row in table.range::<u64>(..).map_err(failed(DOING))? {
        let (id, value) = row.map_err(failed(DOING))?;
        let (file_bytes, footer_crc) = value.value();
        usage.put_settled(usage::segment_row(), None);
        segments.push(SegmentMeta { id: id.value(), file_bytes, footer_crc });
    }

    let journal = transaction.open_table(JOURNAL).map_err(failed(DOING))?;
    recovered.groups = join_groups(&journal, &mut usage)?;
    if let Some((last, _)) = recovered.groups.last() {
        recovered.next_group = recovered.next_group.max(last + 1);
    }
    Ok(Found { recovered, segments, next_segment_id, usage })
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

/// What a database takes of its disk. There may be none of it.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) database: Option<Arc<dyn DiskFile>>,
    pub(super) page_log: Option<Arc<PageLog>>,
}

/// The one writer of a shard's database. Dropping it closes the database.
pub(super) struct ShardLog {
    shard: Arc<Shard>,
    database: Database,
    files: Files,
    /// `None` where there is no such file, or nobody knows what its disk has free.
    reserve: Option<Reserve>,
    notice: CommitNotice,
    /// Keeps the data directory locked for as long as one of its databases is open.
    directory: Arc<DataDirectory>,
    two_phase_commit: bool,
    /// Numbers below this have been committed.
    next_group: u64,
    /// Set while a transaction is under way, so that a panic in it counts as a failure too.
    failed: bool,
    /// With the rows of the transaction under way; if that fails, nobody looks at it any more.
    usage: Usage,
    /// Of the last snapshot, as long as somebody reads it.
    snapshot: Weak<()>,
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
        files: Files,
        directory: Arc<DataDirectory>,
        two_phase_commit: bool,
        next_group: u64,
        usage: Usage,
    ) -> Self {
        Self {
            shard,
            database,
            files,
            reserve: None,
            notice: CommitNotice::default(),
            directory,
            two_phase_commit,
            next_group,
            failed: false,
            usage,
            snapshot: Weak::new(),
        }
    }

    /// The same log with room set aside on its disk.
    pub(super) fn with_reserve(mut self, reserve: Option<Reserve>) -> Self {
        self.reserve = reserve;
        self
    }

    /// The same log with commits told of as soon as `notice`, which is over the database's backend, has them.
    pub(super) fn with_notice(mut self, notice: CommitNotice) -> Self {
        self.notice = notice;
        self
    }

    /// Bytes that the database file takes of its disk. `None` = there is no such file, or nobody can tell just now.
    fn file_bytes(&self) -> Option<u64> {
        self.files.database.as_ref()?.allocated_bytes().ok()
    }

    /// Runs `write`, unless an earlier one failed. Tells a full disk from other troubles.
    fn attempt<T>(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        if self.failed {
            return Err(StorageError::Database {
                context: "writing".to_owned(),
                message: "an earlier commit failed; the shard has to be reopened".to_owned(),
            });
        }
        self.failed = true;
        let answer = write(self).map_err(|error| {
            let ran_out = self.shard.ran_out.load(Ordering::Relaxed);
            if !ran_out {
                return error;
            }
            // The next opening goes on with it.
            self.reserve.as_mut().map(Reserve::give_up);
            StorageError::DiskFull(error.to_string())
        })?;
        self.failed = false;
        self.reserve.as_mut().map(Reserve::restore);
        Ok(answer)
    }

    /// Writes groups in a durable transaction.
    fn commit_groups(&mut self, groups: &mut [Group]) -> Result<(), StorageError> {
        let mut transaction = self.database.begin_write().map_err(failed("beginning to write"))?;
        transaction.set_durability(Durability::Immediate).map_err(failed("beginning to write"))?;
        transaction.set_two_phase_commit(self.two_phase_commit);
        self.write_groups(&transaction, groups)?;
        transaction.commit().map_err(failed("committing"))
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
                self.write_checkpoint(tables, checkpoint, group.seq)?;
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
        checkpoint.removed.sort_unstable();
        for id in &checkpoint.removed {
            self.remove_stream(tables, *id)?;
        }
        for segment in &checkpoint.segments_added {
            let &SegmentMeta { id, file_bytes, footer_crc } = segment;
            tables.segments.insert(id, (file_bytes, footer_crc)).map_err(failed(DOING))?;
            self.usage.put_settled(usage::segment_row(), None);
            tables.sys.insert(SYS_NEXT_SEGMENT_ID, checkpoint.next_segment_id).map_err(failed(DOING))?;
        }
        for id in &checkpoint.segments_removed {
            if tables.segments.remove(id).map_err(failed(DOING))?.is_some() {
                self.usage.remove_settled(usage::segment_row());
            }
        }
        tables.sys.insert(SYS_NEXT_STREAM_ID, checkpoint.next_stream_id).map_err(failed(DOING))?;
        tables.sys.insert(SYS_NEXT_GROUP, seq + 1).map_err(failed(DOING))?;
        Ok(())
    }

    /// Page logs that take more than the database needs are what is left of busier times.
    fn shorten_page_log(&mut self, needed: u64) -> Result<(), StorageError> {
        let Some(page_log) = self.files.page_log.clone() else { return Ok(()) };
        // Who cannot be asked now will be asked again.
        if !page_log.disk_bytes().is_ok_and(|taken| taken > needed) {
            return Ok(());
        }
        let failed = |source: io::Error| match source.kind() {
            // Somebody else has taken what there was a moment ago.
            io::ErrorKind::StorageFull => StorageError::DiskFull(source.to_string()),
            _ => StorageError::Io { context: "emptying the page log".to_owned(), source },
        };
        self.attempt(|_| page_log.give_back().map_err(failed))
    }

    fn remove_stream(&mut self, tables: &mut CheckpointTables<'_>, id: u64) -> Result<(), StorageError> {
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
    frames: &Pieces,
) -> Result<(), StorageError> {
    let mut part = 0;
    let mut insert = |value: &[u8]| {
        journal.insert((seq, part), value).map_err(failed("writing the journal"))?;
        usage.journal += usage::journal_row(value.len());
        part += 1;
        Ok(())
    };
    if frames.is_empty() {
        return insert(&[]);
    }
    frames.cut(|left| next_value_bytes(left, JOURNAL_KEY_BYTES), insert)
}

impl CommitLog for ShardLog {
    fn commit(&mut self, groups: &mut [Group]) -> Result<(), StorageError> {
        if groups.is_empty() {
            return Ok(());
        }
        self.attempt(|log| log.commit_groups(groups))
    }

    fn commit_and_tell(&mut self, groups: &mut [Group], on_durable: OnDurable) -> Result<(), StorageError> {
        let notice = self.notice.clone();
        let expected = notice.expect(on_durable);
        self.commit(groups)?;
        expected.tell_if_untold();
        Ok(())
    }

    /// redb uses the pages of removed rows again, but gives back only the end of its file, and only if that happens to be
    /// free. Moving rows there takes time in proportion to what is stored, so it is done only where that is little.
    fn reclaim(&mut self) -> Result<bool, StorageError> {
        let needed = self.usage.total().saturating_add(usage::FIXED_BYTES);
        let taken = self.file_bytes().unwrap_or(0);
        if self.failed || needed > COMPACTED_BYTES_MAX {
            return Ok(false);
        }
        if taken >= needed.saturating_mul(2) + WASTE_BYTES_MAX {
            if self.snapshot.strong_count() > 0 {
                // redb refuses; later.
                return Ok(true);
            }
            self.attempt(|log| log.database.compact().map_err(failed("compacting the database")))?;
        }
        self.shorten_page_log(needed)?;
        Ok(false)
    }

    fn snapshot(&mut self) -> Result<Box<dyn LogSnapshot>, StorageError> {
        let transaction = self.database.begin_read().map_err(failed("beginning to read"))?;
        let alive = Arc::new(());
        self.snapshot = Arc::downgrade(&alive);
        Ok(Box::new(DatabaseSnapshot::new(self.shard.index, transaction, alive)))
    }

    fn disk_bytes(&self) -> u64 {
        let needed = self.usage.total().saturating_add(usage::FIXED_BYTES);
        // A momentary failure to look must not stop anything: the next commit looks again.
        self.file_bytes().map_or(needed, |taken| taken.min(needed))
    }

    fn disk_room(&self) -> Option<DiskRoom> {
        // Who cannot be asked knows of no limit either.
        let free = match &self.shard.free_space {
            Some(probe) => probe.free_bytes().ok()?,
            None => self.directory.disk().free_bytes()?,
        };
        let needed = self.usage.total().saturating_add(usage::FIXED_BYTES);
        let reusable = self.file_bytes().unwrap_or(0).saturating_sub(needed);
        let withheld = self.reserve.as_ref().map_or(0, Reserve::missing_bytes);
        Some(DiskRoom { free, withheld, reusable })
    }
}
