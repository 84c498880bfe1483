//! From what storage holds to the state of streams: records first, then the journal over them.
//!
//! A checkpoint may contain more than the journal has been trimmed to, so events that a record has seen already are passed
//! over. Events of a stream that has neither a record nor a creation in the journal are left over from before its end,
//! which has to follow.

use std::collections::HashSet;

use bytes::Bytes;

use super::record::{self, Record};
use super::{RecoveredStream, StorageError, frame};
use crate::stream::event::{Creation, Event};
use crate::stream::producer::ProducerState;

/// What takes the streams of one shard.
pub(crate) trait ReplayTarget {
    /// A stream as of its last checkpoint, producers included.
    fn checkpointed(&mut self, id: u64, record: Record);
    /// A stream that began after the last checkpoint.
    fn created(&mut self, id: u64, creation: Creation, group: u64);
    /// The group as of which the stream's record is, 0 if it has none. `None` = there is no such stream.
    fn settled_group(&self, id: u64) -> Option<u64>;
    /// Something happened to a stream that is there: neither its beginning nor its end.
    fn changed(&mut self, id: u64, event: Event, group: u64);
    /// A stream has ended; it may have been gone from the checkpoints already.
    fn removed(&mut self, id: u64, group: u64);
    /// The journal has a group of this many bytes.
    fn has_group(&mut self, group: u64, bytes: u64) {
        let _ = (group, bytes);
    }
}

/// Hands everything to `target`, in order.
pub(crate) fn replay(
    streams: Vec<RecoveredStream>,
    groups: Vec<(u64, Bytes)>,
    target: &mut impl ReplayTarget,
) -> Result<(), StorageError> {
    for stream in streams {
        let (id, record) = decode(stream)?;
        target.checkpointed(id, record);
    }
    let mut orphans = HashSet::new();
    for (group, frames) in groups {
        replay_group(group, frames, target, &mut orphans)?;
    }
    match orphans.iter().next() {
        Some(id) => Err(orphaned(*id)),
        None => Ok(()),
    }
}

/// A checkpointed stream, with its producers.
pub(crate) fn decode(stream: RecoveredStream) -> Result<(u64, Record), StorageError> {
    let RecoveredStream { id, record, producers } = stream;
    let mut record = record::decode(record)?;
    for (producer, epoch, seq) in producers {
        // Copied: it would keep the buffer that it was read with.
        let id = Bytes::copy_from_slice(&producer);
        record.state.producers.set(id, ProducerState { epoch, seq, group: record.group });
    }
    Ok((id, record))
}

/// Applies one group of the journal. `orphans` are streams that events speak of and nothing else: removed ones, whose
/// removal is still to come.
pub(crate) fn replay_group(
    group: u64,
    frames: Bytes,
    target: &mut impl ReplayTarget,
    orphans: &mut HashSet<u64>,
) -> Result<(), StorageError> {
    target.has_group(group, frames.len() as u64);
    for (id, event) in frame::decode_all(frames)? {
        match (event, target.settled_group(id)) {
            (Event::Created(creation), None) => target.created(id, *creation, group),
            (Event::Created(_), Some(_)) => {}
            (Event::Removed, None) => {
                orphans.remove(&id);
                target.removed(id, group);
            }
            (_, None) => drop(orphans.insert(id)),
            (_, Some(settled)) if group <= settled => {}
            (Event::Removed, Some(_)) => target.removed(id, group),
            (event, Some(_)) => target.changed(id, event, group),
        }
    }
    Ok(())
}

/// What is wrong with a stream of which only the middle is known.
pub(crate) fn orphaned(id: u64) -> StorageError {
    StorageError::Corrupt(format!("the journal speaks of stream {id}, which does not exist"))
}
