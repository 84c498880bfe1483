//! The state of a directory's streams as a server would have it after opening, and their content in pieces.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::protocol::name::StreamName;
use crate::storage::layout::Layout;
use crate::storage::offline::OfflineDirectory;
use crate::storage::record::Record;
use crate::storage::replay::{ReplayTarget, replay};
use crate::storage::segment::SegmentStore;
use crate::storage::{ColdReader, OpenedShard, StorageError, open_shard};
use crate::stream::event::{Creation, Event};
use crate::stream::fork::StreamRef;
use crate::stream::state::StreamState;

/// Content is read in pieces of up to this many bytes.
pub(super) const PIECE_BYTES: u64 = 256 << 10;

/// One stream.
#[derive(Debug)]
pub(crate) struct StreamImage {
    pub(crate) name: StreamName,
    pub(crate) state: StreamState,
    /// Content below is in segments.
    settled: u64,
    /// The record is as of this group; 0 = there is none.
    group: u64,
    /// Content that is in the journal.
    recent: Vec<Bytes>,
}

impl StreamImage {
    /// Positions of the content that is the stream's own and kept; what a fork inherits is its ancestors'.
    pub(crate) fn kept(&self) -> Range<u64> {
        self.state.released()..self.state.tail
    }
}

/// The streams of one shard by id.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) by_id: BTreeMap<u64, StreamImage>,
    /// No id at or above this one was given out.
    pub(crate) next_id: u64,
}

impl ReplayTarget for Streams {
    fn checkpointed(&mut self, id: u64, record: Record) {
        let Record { name, state, settled, group } = record;
        self.next_id = self.next_id.max(id + 1);
        self.by_id.insert(id, StreamImage { name, state, settled, group, recent: Vec::new() });
    }

    fn created(&mut self, id: u64, creation: Creation, _: u64) {
        let state = StreamState::created(&creation);
        // Before it was cut.
        let settled = state.base();
        let mut image = StreamImage { name: creation.name, state, settled, group: 0, recent: Vec::new() };
        image.push(&creation.payload);
        self.next_id = self.next_id.max(id + 1);
        self.by_id.insert(id, image);
    }

    fn settled_group(&self, id: u64) -> Option<u64> {
        self.by_id.get(&id).map(|stream| stream.group)
    }

    fn changed(&mut self, id: u64, event: Event, group: u64) {
        let stream = self.by_id.get_mut(&id).expect("only events of streams that are there come here");
        if let Event::Appended(append) = &event {
            stream.push(&append.payload);
        }
        stream.state.apply(&event, group);
    }

    fn removed(&mut self, id: u64, _: u64) {
        self.by_id.remove(&id);
    }
}

impl StreamImage {
    /// All of its content is in the journal.
    pub(crate) fn is_recent(&self) -> bool {
        self.settled <= self.kept().start
    }

    fn push(&mut self, payload: &Bytes) {
        if !payload.is_empty() {
            self.recent.push(payload.clone());
        }
    }
}

/// One shard.
#[derive(Debug)]
pub(crate) struct ShardImage {
    pub(crate) streams: Streams,
    pub(crate) segments: Arc<SegmentStore>,
}

impl ShardImage {
    /// Hands the content of a stream to `take`, from what is kept of it to its tail, in pieces of any size.
    pub(crate) fn read<E: From<StorageError>>(
        &self,
        id: u64,
        take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let kept = self.streams.by_id[&id].kept();
        self.read_range(id, kept, take)
    }

    /// Hands a range of a stream's content to `take`.
    pub(crate) fn read_range<E: From<StorageError>>(
        &self,
        id: u64,
        range: Range<u64>,
        take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let stream = &self.streams.by_id[&id];
        if range.is_empty() {
            return Ok(());
        }
        let mut at = range.start;
        let mut piece = Vec::new();
        while at < stream.settled.min(range.end) {
            let to = stream.settled.min(range.end).min(at + PIECE_BYTES);
            piece.clear();
            self.segments.read(id, at, to, &mut |bytes| piece.extend_from_slice(bytes))?;
            take(&piece)?;
            at = to;
        }
        let mut start = stream.settled;
        for bytes in &stream.recent {
            let end = start + bytes.len() as u64;
            if start < range.end && end > at {
                let part = (at.max(start) - start) as usize..(range.end.min(end) - start) as usize;
                take(&bytes[part])?;
            }
            start = end;
        }
        Ok(())
    }
}

/// All of a directory.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) layout: Layout,
    pub(crate) shards: Vec<ShardImage>,
}

impl Image {
    /// That of a directory that is still to be made.
    pub(crate) fn empty(storage: &str, shard_count: usize) -> Self {
        Self {
            layout: Layout { storage: storage.to_owned(), shard_count, generation: 0 },
            shards: Vec::new(),
        }
    }

    /// Reads the state of all streams. Changes nothing on the disk.
    pub(crate) fn open(directory: &OfflineDirectory) -> Result<Self, StorageError> {
        let (layout, catalogs) = directory.look()?;
        let mut shards = Vec::with_capacity(layout.shard_count);
        for shard in 0..layout.shard_count {
            let OpenedShard { log, segments, recovered } = open_shard(&*catalogs, shard)?;
            // It was opened to be read, and that is done.
            drop(log);
            let mut streams = Streams { next_id: recovered.next_stream_id, ..Streams::default() };
            replay(recovered.streams, recovered.groups, &mut streams)?;
            shards.push(ShardImage { streams, segments });
        }
        Ok(Self { layout, shards })
    }

    /// A stream, wherever it is.
    pub(crate) fn stream(&self, stream: StreamRef) -> Option<&StreamImage> {
        self.shards.get(usize::from(stream.shard))?.streams.by_id.get(&stream.id)
    }

    /// All streams by name.
    pub(crate) fn by_name(&self) -> BTreeMap<&str, StreamRef> {
        let mut names = BTreeMap::new();
        for (shard, image) in self.shards.iter().enumerate() {
            for (&id, stream) in &image.streams.by_id {
                names.insert(stream.name.as_str(), stream_ref(shard, id));
            }
        }
        names
    }

    /// No stream of any shard has this id or a higher one, nor ever had.
    pub(crate) fn next_id(&self) -> u64 {
        self.shards.iter().map(|shard| shard.streams.next_id).max().unwrap_or(0)
    }
}

/// Names a stream of a directory.
pub(crate) fn stream_ref(shard: usize, id: u64) -> StreamRef {
    StreamRef { shard: u16::try_from(shard).expect("there are at most 256 shards"), id }
}
