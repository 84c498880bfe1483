//! What is live in a catalog file, as far as it has to be known while the file is appended to: which segments there are, the
//! counters, and how many bytes it would take to write the live content anew.

use std::collections::{BTreeMap, HashMap};

use super::encoding::{Counters, Producer, StreamEntry, Update};
use crate::storage::segment::SegmentMeta;
use crate::storage::{Checkpoint, StorageError};

/// A map in RAM, never on disk: see `ahash` in the dependencies.
pub(super) type RamMap<V> = HashMap<u64, V, ahash::RandomState>;

/// Bytes of a stream's entry besides its record, about.
const STREAM_BYTES: u64 = 12;
/// Bytes of a producer besides its id, about.
const PRODUCER_BYTES: u64 = 12;
/// Bytes of a segment, about.
const SEGMENT_BYTES: u64 = 16;

/// Bytes of one stream that are live.
#[derive(Clone, Copy, Debug, Default)]
struct StreamBytes {
    record: u32,
    /// Of all mentions of its producers. How many of them are of the same producer nobody keeps in mind.
    producers: u32,
}

/// What is live besides streams.
#[derive(Debug, Default)]
pub(super) struct Roots {
    segments: BTreeMap<u64, SegmentMeta>,
    pub(super) counters: Counters,
}

impl Roots {
    /// Live segments by id.
    pub(super) fn segments(&self) -> impl ExactSizeIterator<Item = &SegmentMeta> + Clone {
        self.segments.values()
    }

    pub(super) fn change(
        &mut self,
        added: &[SegmentMeta],
        removed: &[u64],
        counters: Counters,
    ) -> Result<(), StorageError> {
        for segment in added {
            if self.segments.insert(segment.id, *segment).is_some() {
                return Err(StorageError::Corrupt(format!("segment {:x} is added twice", segment.id)));
            }
        }
        for id in removed {
            if self.segments.remove(id).is_none() {
                return Err(StorageError::Corrupt(format!("segment {id:x} is removed and was not there")));
            }
        }
        self.counters.raise(counters);
        Ok(())
    }
}

/// The account of a file.
#[derive(Debug, Default)]
pub(super) struct Account {
    streams: RamMap<StreamBytes>,
    pub(super) roots: Roots,
    /// Sum over the streams.
    live: u64,
    /// Mentions of producers that may have replaced others, among the live bytes.
    doubtful: u64,
}

impl Account {
    pub(super) fn stream_count(&self) -> u64 {
        self.streams.len() as u64
    }

    /// Bytes of live content: at least so many, and at most so many.
    pub(super) fn live_bytes(&self) -> (u64, u64) {
        let segments = self.roots.segments.len() as u64 * SEGMENT_BYTES;
        (self.live.saturating_sub(self.doubtful) + segments, self.live + segments)
    }

    pub(super) fn add_update(&mut self, update: &Update) -> Result<(), StorageError> {
        for stream in &update.streams {
            self.add_stream(stream);
        }
        self.change(&update.removed, &update.segments_added, &update.segments_removed, update.counters)
    }

    pub(super) fn add_checkpoint(
        &mut self,
        checkpoint: &Checkpoint,
        durable_through: u64,
    ) -> Result<(), StorageError> {
        for stream in &checkpoint.streams {
            self.put_stream(stream.id, stream.record.len(), &stream.producers);
        }
        let counters = Counters::of(checkpoint, durable_through);
        self.change(&checkpoint.removed, &checkpoint.segments_added, &checkpoint.segments_removed, counters)
    }

    pub(super) fn add_stream(&mut self, stream: &StreamEntry) {
        self.put_stream(stream.id, stream.record.len(), &stream.producers);
    }

    pub(super) fn add_rest<'a>(
        &mut self,
        segments: impl Iterator<Item = &'a SegmentMeta>,
        counters: Counters,
    ) -> Result<(), StorageError> {
        let segments: Vec<SegmentMeta> = segments.copied().collect();
        self.change(&[], &segments, &[], counters)
    }

    fn put_stream(&mut self, id: u64, record: usize, producers: &[Producer]) {
        let record = saturated(record as u64 + STREAM_BYTES);
        let mentions = producers.iter().map(|(id, ..)| id.len() as u64 + PRODUCER_BYTES).sum();
        let mentions = saturated(mentions);
        let stream = self.streams.entry(id).or_default();
        if stream.producers > 0 {
            self.doubtful += u64::from(mentions);
        }
        self.live -= u64::from(stream.record) + u64::from(stream.producers);
        stream.record = record;
        stream.producers = stream.producers.saturating_add(mentions);
        self.live += u64::from(stream.record) + u64::from(stream.producers);
    }

    fn change(
        &mut self,
        removed: &[u64],
        segments_added: &[SegmentMeta],
        segments_removed: &[u64],
        counters: Counters,
    ) -> Result<(), StorageError> {
        for id in removed {
            if let Some(stream) = self.streams.remove(id) {
                self.live -= u64::from(stream.record) + u64::from(stream.producers);
            }
        }
        self.roots.change(segments_added, segments_removed, counters)
    }
}

fn saturated(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
