//! Writes all streams of a directory anew, in a generation of its own, and then puts that into the place of the old one.
//!
//! Until the manifest is replaced nothing refers to what is written here; then all of it is in use at once. So whoever is
//! cut off leaves the directory as it was before or as it is to be.

use bytes::Bytes;

use crate::protocol::json::ContentCheck;
use crate::storage::disk::Disk;
use crate::storage::layout::Layout;
use crate::storage::offline::{OfflineDirectory, kind};
use crate::storage::segment::SegmentDraft;
use crate::storage::{
    Catalogs, Checkpoint, Group, OpenedShard, StorageError, StreamCheckpoint, generation, open_shard, record,
};
use crate::stream::event::Event;
use crate::stream::fork::ForkOrigin;
use crate::stream::state::StreamState;
use crate::tools::image::{Image, PIECE_BYTES};
use crate::tools::import::Input;
use crate::tools::population::{Origin, Planned, Population};
use crate::tools::{Progress, ToolError};

/// Streams of one checkpoint.
const STREAMS_MAX: usize = 1024;
/// Producers of one checkpoint, unless one stream has more.
const PRODUCERS_MAX: usize = 16 << 10;
/// Bytes of one segment, by and large. Larger ones are not joined by rewriting, either.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Boundaries are noted at least so far from each other: each block of a segment has room for one. Bytes.
const BOUNDARY_STEP: usize = 4 << 10;
/// Disk that a shard takes beside its streams, a stream beside its content, and a producer. Bytes, estimated.
const SHARD_COSTS: u64 = 2 << 20;
const STREAM_COSTS: u64 = 1 << 10;
const PRODUCER_COSTS: u64 = 400;

/// Where streams come from.
pub(super) struct Origins<'a> {
    pub(super) image: &'a Image,
    pub(super) input: Option<&'a Input>,
}

/// Makes the population what the directory has, spread over `shard_count` shards.
pub(super) fn build(
    directory: &OfflineDirectory,
    shard_count: usize,
    population: &Population,
    origins: &Origins<'_>,
    progress: &mut dyn Progress,
) -> Result<(), ToolError> {
    let disk = &**directory.disk();
    let Layout { storage, generation: in_use, .. } = directory.layout()?;
    let failed = |source| StorageError::Io { context: "looking for old shards".to_owned(), source };
    // What an earlier one left takes room that this one needs.
    generation::remove_others(disk, in_use).map_err(failed)?;
    let bytes = check_room(disk, shard_count, population, origins)?;
    progress.begin("writing", bytes);
    let generation = generation::unused(disk, in_use).map_err(failed)?;
    let layout = Layout { storage, shard_count, generation };
    let catalogs = directory.begin_generation(&layout)?;
    for shard in 0..shard_count {
        let of_shard = |stream: &&Planned| usize::from(stream.own.shard) == shard;
        let mut writer = ShardWriter::open(&*catalogs, shard, population.next_id)?;
        for stream in population.streams.iter().filter(of_shard) {
            writer.add(stream, origins, progress)?;
        }
        writer.finish()?;
    }
    catalogs.directory().put_in_use(kind(&layout.storage)?)?;
    generation::remove_others_if_possible(disk, generation);
    progress.end();
    Ok(())
}

/// Compares what is to be written with the room on the disk. Returns the bytes of content.
fn check_room(
    disk: &dyn Disk,
    shard_count: usize,
    population: &Population,
    origins: &Origins<'_>,
) -> Result<u64, ToolError> {
    let (mut bytes, mut more) = (0, SHARD_COSTS * shard_count as u64);
    for stream in &population.streams {
        more += STREAM_COSTS;
        bytes += match stream.origin {
            Origin::Input(index) => origins.input.map_or(0, |input| input.bytes_of(index)),
            Origin::There(there) => {
                let there = origins.image.stream(there).expect("the population is of this image");
                more += PRODUCER_COSTS * there.state.producers.len() as u64;
                there.kept().end - there.kept().start
            }
        };
    }
    let needed = bytes + bytes / 2048 + more;
    match disk.free_bytes() {
        Some(free) if free < needed => Err(ToolError::NoRoom { needed, free }),
        _ => Ok(bytes),
    }
}

/// Writes the streams of one shard, in order of their ids.
struct ShardWriter {
    opened: OpenedShard,
    group: u64,
    next_stream_id: u64,
    draft: Option<SegmentDraft>,
    pending: Checkpoint,
    producers: usize,
}

impl ShardWriter {
    fn open(catalogs: &dyn Catalogs, shard: usize, next_stream_id: u64) -> Result<Self, StorageError> {
        let opened = open_shard(catalogs, shard)?;
        let group = opened.recovered.next_group.max(1);
        let pending = Checkpoint::default();
        Ok(Self { opened, group, next_stream_id, draft: None, pending, producers: 0 })
    }

    fn add(
        &mut self,
        planned: &Planned,
        origins: &Origins<'_>,
        progress: &mut dyn Progress,
    ) -> Result<(), ToolError> {
        let id = planned.own.id;
        let state = match planned.origin {
            Origin::There(at) => {
                let there = origins.image.stream(at).expect("the population is of this image");
                let state = placed(there.state.clone(), planned);
                let kept = state.released()..state.tail;
                let mut content = Content::of(&state, id, kept.start);
                let shard = &origins.image.shards[usize::from(at.shard)];
                shard.read_range::<ToolError>(at.id, kept, &mut |piece| {
                    content.write(piece, self, progress)
                })?;
                content.finish()?;
                state
            }
            Origin::Input(index) => {
                let input = origins.input.expect("only who has an input plans with it");
                let mut opened = input.open(index)?;
                let state = placed(opened.with_fork(planned.fork.as_ref())?, planned);
                // What only forks need that do not come along.
                let start = state.released().max(opened.start);
                let mut unneeded = start - opened.start;
                let mut content = Content::of(&state, id, start);
                opened.read(&mut |piece| {
                    let left_out =
                        usize::try_from(unneeded).map_or(piece.len(), |bytes| bytes.min(piece.len()));
                    unneeded -= left_out as u64;
                    content.write(&piece[left_out..], self, progress)
                })?;
                content.finish()?;
                state
            }
        };
        let producers = state.producers.iter().map(|(id, known)| (id.clone(), known.epoch, known.seq));
        let producers: Vec<(Bytes, u64, u64)> = producers.collect();
        self.producers += producers.len();
        let record = record::encode(&planned.name, &state, self.group);
        let (start, end) = (state.released(), state.tail);
        self.pending.streams.push(StreamCheckpoint {
            id,
            record,
            producers,
            cut: None,
            start,
            end,
            payload: Vec::new(),
        });
        let is_full = self.draft.as_ref().is_some_and(|draft| draft.written() >= SEGMENT_BYTES);
        if is_full || self.pending.streams.len() >= STREAMS_MAX || self.producers >= PRODUCERS_MAX {
            self.commit()?;
        }
        Ok(())
    }

    /// Ends the segment at hand.
    fn seal(&mut self) -> Result<(), StorageError> {
        if let Some(draft) = self.draft.take() {
            self.pending.segments_added.push(draft.finish()?.meta());
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), StorageError> {
        self.seal()?;
        self.producers = 0;
        let mut checkpoint = std::mem::take(&mut self.pending);
        checkpoint.trim_before = self.group + 1;
        checkpoint.next_stream_id = self.next_stream_id;
        checkpoint.next_segment_id = self.opened.segments.next_segment_id();
        let group = Group { seq: self.group, checkpoint: Some(checkpoint), ..Group::default() };
        self.group += 1;
        let groups = &mut [group];
        self.opened.log.commit(groups)?;
        self.opened.log.checkpoint(groups)
    }

    /// The last commit says which ids were given out, also where there are no streams.
    fn finish(mut self) -> Result<(), StorageError> {
        self.commit()
    }
}

/// The state that a stream has in its place: with the pins of its forks, and referring to its source where that is now.
fn placed(mut state: StreamState, planned: &Planned) -> StreamState {
    if let (Some(fork), Some(planned)) = (&mut state.fork, &planned.fork) {
        **fork =
            ForkOrigin { source_ref: planned.source, lineage: planned.lineage.clone(), ..(**fork).clone() };
    }
    // The new ones first: with its last pin a stream lets go of what only forks need.
    let old: Vec<_> = state.pins().filter(|child| !planned.pins.contains(child)).collect();
    for &child in &planned.pins {
        state.apply(&Event::Pinned { child }, 0);
    }
    for child in old {
        state.apply(&Event::Unpinned { child }, 0);
    }
    // One that came without its forks lets go of it, too.
    let earliest = state.earliest();
    state.apply(&Event::Trimmed { earliest }, 0);
    state
}

/// Content on its way into segments.
struct Content {
    stream: u64,
    at: u64,
    has_begun: bool,
    /// Only JSON has boundaries within pieces.
    check: Option<ContentCheck>,
    boundaries: Vec<usize>,
}

impl Content {
    fn of(state: &StreamState, stream: u64, start: u64) -> Self {
        let check = state.content_type.is_json().then(ContentCheck::default);
        Self { stream, at: start, has_begun: false, check, boundaries: Vec::new() }
    }

    fn write(
        &mut self,
        piece: &[u8],
        writer: &mut ShardWriter,
        progress: &mut dyn Progress,
    ) -> Result<(), ToolError> {
        for piece in piece.chunks(PIECE_BYTES as usize) {
            self.write_some(piece, writer)?;
            progress.advance(piece.len() as u64);
        }
        Ok(())
    }

    fn write_some(&mut self, piece: &[u8], writer: &mut ShardWriter) -> Result<(), ToolError> {
        if writer.draft.as_ref().is_some_and(|draft| draft.written() >= SEGMENT_BYTES) {
            writer.seal()?;
            self.has_begun = false;
        }
        if writer.draft.is_none() {
            writer.draft = Some(writer.opened.segments.begin_segment()?);
            self.has_begun = false;
        }
        let draft = writer.draft.as_mut().expect("it was begun if there was none");
        if !self.has_begun {
            draft.begin(self.stream, self.at);
            self.has_begun = true;
        }
        self.boundaries.clear();
        match &mut self.check {
            None => self.boundaries.push(0),
            Some(check) => {
                let boundaries = &mut self.boundaries;
                boundaries.extend(check.is_at_boundary().then_some(0));
                check
                    .push(piece, &mut |at| {
                        if boundaries.last().is_none_or(|last| at >= last + BOUNDARY_STEP) {
                            boundaries.push(at);
                        }
                    })
                    .map_err(|error| self.not_json(error))?;
            }
        }
        draft.push(piece, &self.boundaries)?;
        self.at += piece.len() as u64;
        Ok(())
    }

    fn finish(&self) -> Result<(), ToolError> {
        match self.check.as_ref().map(ContentCheck::finish) {
            Some(Err(error)) => Err(self.not_json(error)),
            _ => Ok(()),
        }
    }

    fn not_json(&self, error: impl std::fmt::Display) -> ToolError {
        ToolError::Storage(StorageError::Corrupt(format!(
            "stream {}: {error}: `durable-streams-server verify` says more",
            self.stream
        )))
    }
}
