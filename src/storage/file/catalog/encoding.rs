//! The catalog's records.
//!
//! ```text
//! content    version (1 byte, = 1)
//!            kind (1 byte): 1 = checkpoint, 2 = part of what a new file begins with, 3 = the end of that
//!            sequence (varint): 0, 1, 2, … within the file
//!            number of streams, and for each: id, record (string), number of producers,
//!                and for each: id (string), epoch, last sequence number
//!            number of streams removed, and each one's id
//!            number of segments added, and for each: id, bytes, checksum of the footer
//!            number of segments removed, and each one's id
//!            trim before, next stream id, next segment id, next group, durable through
//! kind 3     number of streams, number of segments: all that the file has so far
//! ```
//!
//! Numbers are varints. What is added goes before what is removed. A stream's record replaces the one before; its producers add to those before.

use bytes::Bytes;

use crate::storage::codec::{Put, Take};
use crate::storage::segment::SegmentMeta;
use crate::storage::{Checkpoint, StorageError};

const VERSION: u8 = 1;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Checkpoint,
    /// Some of what was live when the file was made.
    Base,
    /// The last record that was written before the file got its name.
    Complete,
}

/// What only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) trim_before: u64,
    pub(super) next_stream_id: u64,
    pub(super) next_segment_id: u64,
    /// Journal groups up to this one were durable.
    pub(super) durable_through: u64,
}

impl Counters {
    pub(super) fn of(checkpoint: &Checkpoint, durable_through: u64) -> Self {
        Self {
            trim_before: checkpoint.trim_before,
            next_stream_id: checkpoint.next_stream_id,
            next_segment_id: checkpoint.next_segment_id,
            durable_through,
        }
    }

    pub(super) fn raise(&mut self, to: Self) {
        for (counter, to) in [
            (&mut self.trim_before, to.trim_before),
            (&mut self.next_stream_id, to.next_stream_id),
            (&mut self.next_segment_id, to.next_segment_id),
            (&mut self.durable_through, to.durable_through),
        ] {
            *counter = to.max(*counter);
        }
    }

    fn put(self, out: &mut Vec<u8>) {
        for counter in [self.trim_before, self.next_stream_id, self.next_segment_id, self.durable_through] {
            out.put_varint(counter);
        }
    }

    fn take(record: &mut Take) -> Result<Self, StorageError> {
        Ok(Self {
            trim_before: record.varint()?,
            next_stream_id: record.varint()?,
            next_segment_id: record.varint()?,
            durable_through: record.varint()?,
        })
    }
}

/// A producer: id, epoch, last sequence number.
pub(super) type Producer = (Bytes, u64, u64);

/// One stream of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamEntry {
    pub(super) id: u64,
    pub(super) record: Bytes,
    pub(super) producers: Vec<Producer>,
}

/// A record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) kind: Kind,
    pub(super) sequence: u64,
    pub(super) streams: Vec<StreamEntry>,
    pub(super) removed: Vec<u64>,
    pub(super) segments_added: Vec<SegmentMeta>,
    pub(super) segments_removed: Vec<u64>,
    pub(super) counters: Counters,
    /// Streams and segments that a complete file begins with.
    pub(super) totals: Option<(u64, u64)>,
}

fn put_head(out: &mut Vec<u8>, kind: Kind, sequence: u64) {
    out.put_byte(VERSION);
    out.put_byte(match kind {
        Kind::Checkpoint => 1,
        Kind::Base => 2,
        Kind::Complete => 3,
    });
    out.put_varint(sequence);
}

fn put_stream(out: &mut Vec<u8>, id: u64, record: &[u8], producers: &[Producer]) {
    out.put_varint(id);
    out.put_string(record);
    out.put_varint(producers.len() as u64);
    for (producer, epoch, last) in producers {
        out.put_string(producer);
        out.put_varint(*epoch);
        out.put_varint(*last);
    }
}

fn put_ids(out: &mut Vec<u8>, ids: &[u64]) {
    out.put_varint(ids.len() as u64);
    for id in ids {
        out.put_varint(*id);
    }
}

fn put_segments<'a>(out: &mut Vec<u8>, segments: impl ExactSizeIterator<Item = &'a SegmentMeta>) {
    out.put_varint(segments.len() as u64);
    for segment in segments {
        out.put_varint(segment.id);
        out.put_varint(segment.file_bytes);
        out.put_varint(u64::from(segment.footer_crc));
    }
}

/// Appends the content of a record with checkpoints that are written together, as if they were one. That is one record, since
/// of several in one write any may be lost, and one that follows a lost one would tell that it had been durable.
pub(super) fn put_checkpoints(
    out: &mut Vec<u8>,
    sequence: u64,
    checkpoints: &[&Checkpoint],
    durable_through: u64,
) {
    put_head(out, Kind::Checkpoint, sequence);
    out.put_varint(checkpoints.iter().map(|checkpoint| checkpoint.streams.len() as u64).sum());
    for stream in checkpoints.iter().flat_map(|checkpoint| &checkpoint.streams) {
        put_stream(out, stream.id, &stream.record, &stream.producers);
    }
    let removed: Vec<u64> = checkpoints.iter().flat_map(|checkpoint| &checkpoint.removed).copied().collect();
    put_ids(out, &removed);
    let added: Vec<&SegmentMeta> =
        checkpoints.iter().flat_map(|checkpoint| &checkpoint.segments_added).collect();
    put_segments(out, added.into_iter());
    let removed: Vec<u64> =
        checkpoints.iter().flat_map(|checkpoint| &checkpoint.segments_removed).copied().collect();
    put_ids(out, &removed);
    let mut counters = Counters::default();
    for checkpoint in checkpoints {
        counters.raise(Counters::of(checkpoint, durable_through));
    }
    counters.put(out);
}

/// Appends the content of a record with some of what is live.
pub(super) fn put_base(out: &mut Vec<u8>, sequence: u64, streams: &[StreamEntry]) {
    put_head(out, Kind::Base, sequence);
    out.put_varint(streams.len() as u64);
    for stream in streams {
        put_stream(out, stream.id, &stream.record, &stream.producers);
    }
    put_ids(out, &[]);
    put_segments(out, [].iter());
    put_ids(out, &[]);
    Counters::default().put(out);
}

/// Appends the content of the record that ends what a new file begins with.
pub(super) fn put_complete<'a>(
    out: &mut Vec<u8>,
    sequence: u64,
    segments: impl ExactSizeIterator<Item = &'a SegmentMeta>,
    counters: Counters,
    streams: u64,
) {
    let segment_count = segments.len() as u64;
    put_head(out, Kind::Complete, sequence);
    put_ids(out, &[]);
    put_ids(out, &[]);
    put_segments(out, segments);
    put_ids(out, &[]);
    counters.put(out);
    out.put_varint(streams);
    out.put_varint(segment_count);
}

/// Appends the content of a checkpoint's record from another file. Its place in the file is all that changes.
pub(super) fn put_moved(out: &mut Vec<u8>, sequence: u64, content: Bytes) -> Result<(), StorageError> {
    let mut record = Take::new(content, "catalog record");
    let (kind, _) = take_head(&mut record)?;
    if kind != Kind::Checkpoint {
        return Err(record.corrupt("something else than a checkpoint after the file was complete"));
    }
    put_head(out, kind, sequence);
    out.put_slice(&record.rest());
    Ok(())
}

fn take_head(record: &mut Take) -> Result<(Kind, u64), StorageError> {
    let version = record.byte()?;
    if version != VERSION {
        return Err(StorageError::Layout(format!(
            "a catalog record has version {version}; this server reads version {VERSION}"
        )));
    }
    let kind = match record.byte()? {
        1 => Kind::Checkpoint,
        2 => Kind::Base,
        3 => Kind::Complete,
        _ => return Err(record.corrupt("unknown kind")),
    };
    Ok((kind, record.varint()?))
}

fn take_all<T>(
    record: &mut Take,
    take: impl Fn(&mut Take) -> Result<T, StorageError>,
) -> Result<Vec<T>, StorageError> {
    let count = record.varint()?;
    // Not reserved: the count may be wrong, the bytes for each are what it is checked by.
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(take(record)?);
    }
    Ok(all)
}

fn take_stream(record: &mut Take) -> Result<StreamEntry, StorageError> {
    Ok(StreamEntry {
        id: record.varint()?,
        record: record.string()?,
        producers: take_all(record, |record| Ok((record.string()?, record.varint()?, record.varint()?)))?,
    })
}

fn take_segment(record: &mut Take) -> Result<SegmentMeta, StorageError> {
    let (id, file_bytes) = (record.varint()?, record.varint()?);
    let footer_crc = u32::try_from(record.varint()?).map_err(|_| record.corrupt("a checksum is too long"))?;
    Ok(SegmentMeta { id, file_bytes, footer_crc })
}

/// Decodes the content of a record. What it hands out shares `content`.
pub(super) fn decode(content: Bytes) -> Result<Update, StorageError> {
    let mut record = Take::new(content, "catalog record");
    let (kind, sequence) = take_head(&mut record)?;
    let update = Update {
        kind,
        sequence,
        streams: take_all(&mut record, take_stream)?,
        removed: take_all(&mut record, Take::varint)?,
        segments_added: take_all(&mut record, take_segment)?,
        segments_removed: take_all(&mut record, Take::varint)?,
        counters: Counters::take(&mut record)?,
        totals: match kind {
            Kind::Complete => Some((record.varint()?, record.varint()?)),
            Kind::Checkpoint | Kind::Base => None,
        },
    };
    if !record.is_empty() {
        return Err(record.corrupt("longer than its contents"));
    }
    Ok(update)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::file::tests::stream;

    fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..max)
    }

    fn checkpoint() -> impl Strategy<Value = Checkpoint> {
        let producer = (bytes(20).prop_map(Bytes::from), any::<u64>(), any::<u64>());
        let stream = (any::<u64>(), bytes(80), prop::collection::vec(producer, 0..3))
            .prop_map(|(id, record, producers)| stream(id, record, producers));
        let segment = (any::<u64>(), any::<u64>(), any::<u32>())
            .prop_map(|(id, file_bytes, footer_crc)| SegmentMeta { id, file_bytes, footer_crc });
        let ids = || prop::collection::vec(any::<u64>(), 0..4);
        let lists = (prop::collection::vec(stream, 0..4), ids(), prop::collection::vec(segment, 0..3), ids());
        (lists, any::<[u64; 3]>()).prop_map(
            |((streams, removed, segments_added, segments_removed), counters)| {
                let [trim_before, next_stream_id, next_segment_id] = counters;
                Checkpoint {
                    streams,
                    removed,
                    segments_added,
                    segments_removed,
                    trim_before,
                    next_stream_id,
                    next_segment_id,
                    to_publish: Vec::new(),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(checkpoint in checkpoint(), sequence in any::<u64>(), durable in any::<u64>()) {
            let mut out = Vec::new();
            put_checkpoints(&mut out, sequence, &[&checkpoint], durable);
            let content = Bytes::from(out);
            let update = decode(content.clone()).unwrap();
            prop_assert_eq!((update.kind, update.sequence, update.totals), (Kind::Checkpoint, sequence, None));
            prop_assert_eq!(update.streams.len(), checkpoint.streams.len());
            for (found, given) in update.streams.iter().zip(&checkpoint.streams) {
                prop_assert_eq!((found.id, &found.record[..], &found.producers), (given.id, &given.record[..], &given.producers));
            }
            prop_assert_eq!(&update.removed, &checkpoint.removed);
            prop_assert_eq!(&update.segments_added, &checkpoint.segments_added);
            prop_assert_eq!(&update.segments_removed, &checkpoint.segments_removed);
            prop_assert_eq!(update.counters, Counters::of(&checkpoint, durable));

            let mut moved = Vec::new();
            put_moved(&mut moved, 7, content).unwrap();
            prop_assert_eq!(decode(moved.into()).unwrap(), Update { sequence: 7, ..update });
        }

        #[test]
        fn damaged_records_are_refused_or_read_and_never_panic(
            checkpoint in checkpoint(),
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut out = Vec::new();
            put_checkpoints(&mut out, 1, &[&checkpoint], 2);
            prop_assert!(decode(Bytes::copy_from_slice(&out[..cut.index(out.len())])).is_err());
            let at = at.index(out.len());
            out[at] = value;
            let _ = decode(out.into());
        }
    }
}
