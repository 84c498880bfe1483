//! The acid storage as a whole, over files, RAM and a disk that fails.

mod crash;
mod directory;
mod model;
mod single;
mod usage;

use std::ops::Range;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTableMetadata};

use super::tables::JOURNAL;
use super::*;
use crate::protocol::content_type::ContentType;
use crate::protocol::name::StreamName;
use crate::storage::segment::{RunSource, SegmentStore};
use crate::storage::{Checkpoint, ColdReader, Group, StreamCheckpoint};
use crate::stream::event::{Creation, Payload};
use crate::stream::fork::{ForkOrigin, StreamRef};
use crate::stream::state::StreamState;

fn in_memory() -> AcidLog {
    with_backend(Backend::InMemory)
}

fn with_backend(backend: Backend) -> AcidLog {
    AcidLog::new(AcidOptions { backend, cache_bytes: 4 << 20, ..AcidOptions::new("") }).unwrap()
}

/// A storage whose databases are no files of its disk, so that nobody asks what they take of it.
fn without_database_files() -> AcidLog {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let database = disk.open(Path::new("database"), OpenMode::Create).unwrap();
    let backend = move || DiskBackend::new(Arc::clone(&database), Arc::clone(&disk));
    let factory: BackendFactory = Arc::new(move |_| Ok(Box::new(backend())));
    with_backend(Backend::Factory(factory, Arc::new(MemoryDisk::new())))
}

fn group(seq: u64, frames: impl Into<Vec<u8>>) -> Group {
    Group { seq, frames: frames.into().into(), ..Group::default() }
}

fn with_checkpoint(seq: u64, checkpoint: Checkpoint) -> Group {
    Group { seq, checkpoint: Some(checkpoint), ..Group::default() }
}

/// The record of a stream that keeps these positions, all of them settled, as of group `group`.
fn record(kept: Range<u64>, name_bytes: usize, group: u64) -> Vec<u8> {
    let name = StreamName::from_stored(&"n".repeat(name_bytes));
    // Only content that was inherited is not the stream's own to keep.
    let fork = (kept.start > 0).then(|| ForkOrigin {
        source: StreamName::from_stored("source"),
        source_ref: StreamRef { shard: 0, id: 0 },
        anchor: kept.start,
        earliest: 0,
        sub_offset: 0,
        point: kept.start,
        lifetime_inherited: false,
        lineage: Vec::new(),
    });
    let creation = Creation {
        name,
        content_type: ContentType::octet_stream(),
        lifetime: None,
        retention: None,
        fork: fork.map(Box::new),
        closed: false,
        payload: Payload::default(),
        at_ms: 0,
    };
    let mut state = StreamState::created(&creation);
    state.tail = kept.end;
    crate::storage::record::encode(&creation.name, &state, group)
}

/// Stream `id`, which keeps all of its content, continued by `payload` from `start` on.
fn settled(id: u64, start: u64, payload: Vec<Bytes>) -> StreamCheckpoint {
    let end = start + payload.iter().map(|piece| piece.len() as u64).sum::<u64>();
    let record = record(0..end, 8, 1);
    StreamCheckpoint { id, record, producers: Vec::new(), cut: None, start, end, payload }
}

fn settling(id: u64, start: u64, payload: Vec<Bytes>) -> Checkpoint {
    Checkpoint { streams: vec![settled(id, start, payload)], ..Checkpoint::default() }
}

/// Writes the payload of the group's checkpoint into a segment, as the settle thread does.
fn prepare(segments: &SegmentStore, group: &mut Group) -> Result<(), StorageError> {
    let Some(checkpoint) = &mut group.checkpoint else { return Ok(()) };
    let mut runs = Vec::new();
    for stream in &mut checkpoint.streams {
        let pieces = std::mem::take(&mut stream.payload);
        runs.push(RunSource { stream: stream.id, start: stream.start, pieces });
    }
    if runs.iter().any(|run| run.pieces.iter().any(|piece| !piece.is_empty())) {
        let prepared = segments.write_segment(runs)?;
        checkpoint.segments_added.push(prepared.meta());
        checkpoint.to_publish.push(prepared);
        checkpoint.next_segment_id = segments.next_segment_id();
    }
    Ok(())
}

/// Makes what the groups' checkpoints say true for readers, as the commit thread does after the commit.
fn publish(segments: &SegmentStore, groups: Vec<Group>) {
    for checkpoint in groups.into_iter().filter_map(|group| group.checkpoint) {
        segments.publish(checkpoint.to_publish, &checkpoint.segments_removed).unwrap();
        segments.forget(&checkpoint.removed);
    }
}

/// All of it: content into segments, commit, publication.
fn carry_out(opened: &mut OpenedShard, mut groups: Vec<Group>) {
    groups.iter_mut().for_each(|group| prepare(&opened.segments, group).unwrap());
    opened.log.commit(&mut groups).unwrap();
    publish(&opened.segments, groups);
}

/// Settled content of a stream.
fn read(segments: &SegmentStore, stream: u64, positions: Range<u64>) -> Result<Vec<u8>, StorageError> {
    let reader: &dyn ColdReader = segments;
    reader.read_whole(stream, positions.start, positions.end)
}

/// The database of shard 0, which is closed.
fn database(acid: &AcidLog) -> Database {
    let below = acid.backend(&acid.shards[0]).unwrap();
    let database = log::open_database(0, below.backend, 1 << 20).unwrap();
    if let Some(log) = &below.page_log {
        log.opened();
    }
    database
}

/// Rows in the journal of shard 0, which is closed.
fn journal_rows(acid: &AcidLog) -> u64 {
    let database = database(acid);
    let transaction = database.begin_read().unwrap();
    transaction.open_table(JOURNAL).unwrap().len().unwrap()
}

/// Names of the segment files of shard 0.
fn segment_files(acid: &AcidLog) -> Vec<String> {
    let entries = acid.directory.disk().list(&acid.directory.shard_dir(0)).unwrap();
    entries.into_iter().map(|entry| entry.name).filter(|name| name.starts_with("segment-")).collect()
}
