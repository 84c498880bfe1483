//! A stream's checkpointed state, without its producers and its payload, which have tables of their own.
//!
//! ```text
//! record := version (1 byte, = 1)
//!           base, released, settled end, tail (varints; released less base): content from the released position to the
//!           settled end is in segments
//!           name, content type, lifetime, time of the last renewal
//!           group (varint): the journal group up to whose end this is the state
//!           flags (1 byte): 1 = closed, 2 = closed by a producer, 4 = soft-deleted, 8 = Stream-Seq, 16 = fork,
//!           32 = retention
//!           [producer that closed it] [Stream-Seq] [fork] [retention]
//!           number of pins, and each one's shard and id
//! retention := settings, earliest position, number of units,
//!           and each one's start (less the one before; the first: less earliest) and time (the first), or how much later
//! ```
//!
//! The settled end always equals the tail at present: a checkpoint settles all that there is. It is written apart so
//! that a later version may leave some payload to the journal.

use std::ops::Range;

use bytes::Bytes;

use crate::protocol::name::StreamName;
use crate::storage::StorageError;
use crate::storage::codec::{Put, Take};
use crate::stream::event::{Creation, Event, Payload};
use crate::stream::retention::{Retained, Unit};
use crate::stream::state::{Closure, StreamState};

const VERSION: u8 = 1;
const FLAG_CLOSED: u8 = 1;
const FLAG_CLOSED_BY_PRODUCER: u8 = 2;
const FLAG_SOFT_DELETED: u8 = 4;
const FLAG_STREAM_SEQ: u8 = 8;
const FLAG_FORK: u8 = 16;
const FLAG_RETENTION: u8 = 32;
const FLAGS: u8 = 63;

/// What a record says.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) name: StreamName,
    /// Without producers.
    pub(crate) state: StreamState,
    /// End of the settled content.
    pub(crate) settled: u64,
    /// The state is as of the end of this journal group.
    pub(crate) group: u64,
}

/// Encodes the record of a stream whose content is settled up to its tail.
pub(crate) fn encode(name: &StreamName, state: &StreamState, group: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + name.as_str().len());
    out.put_byte(VERSION);
    out.put_varint(state.base());
    out.put_varint(state.released() - state.base());
    out.put_varint(state.tail);
    out.put_varint(state.tail);
    out.put_string(name.as_str().as_bytes());
    out.put_string(state.content_type.as_str().as_bytes());
    out.put_lifetime(state.lifetime.as_ref());
    out.put_time(state.renewed_at_ms);
    out.put_varint(group);
    let closed_by = match &state.closure {
        Closure::Open => None,
        Closure::Closed(by) => Some(by.as_deref()),
    };
    let mut flags = 0;
    for (set, flag) in [
        (closed_by.is_some(), FLAG_CLOSED),
        (matches!(closed_by, Some(Some(_))), FLAG_CLOSED_BY_PRODUCER),
        (state.soft_deleted, FLAG_SOFT_DELETED),
        (state.stream_seq.is_some(), FLAG_STREAM_SEQ),
        (state.fork.is_some(), FLAG_FORK),
        (state.retained.is_some(), FLAG_RETENTION),
    ] {
        if set {
            flags |= flag;
        }
    }
    out.put_byte(flags);
    if let Some(Some(tag)) = closed_by {
        out.put_producer(tag);
    }
    if let Some(seq) = &state.stream_seq {
        out.put_string(seq);
    }
    if let Some(fork) = &state.fork {
        out.put_fork(fork);
    }
    if let Some(retained) = &state.retained {
        put_retained(&mut out, retained);
    }
    out.put_varint(state.pins().count() as u64);
    for child in state.pins() {
        out.put_stream_ref(child);
    }
    out
}

fn put_retained(out: &mut Vec<u8>, retained: &Retained) {
    out.put_retention(retained.settings());
    out.put_varint(retained.earliest());
    out.put_varint(retained.units().len() as u64);
    let mut before = None;
    for unit in retained.units() {
        let Unit { start, newest_ms } = before.unwrap_or(Unit { start: retained.earliest(), newest_ms: 0 });
        out.put_varint(unit.start - start);
        match before {
            None => out.put_time(unit.newest_ms),
            // Wraps only if the clock went from one end of time to the other, and wraps back when it is read.
            Some(_) => out.put_varint(unit.newest_ms.wrapping_sub(newest_ms) as u64),
        }
        before = Some(*unit);
    }
}

/// `released` and `tail` are as in the record.
fn take_retained(record: &mut Take, released: u64, tail: u64) -> Result<Retained, StorageError> {
    let settings = record.retention()?;
    let earliest = record.varint()?;
    let mut units: Vec<Unit> = Vec::new();
    for _ in 0..record.varint()? {
        let unit = match units.last().copied() {
            None => Unit { start: earliest.saturating_add(record.varint()?), newest_ms: record.time()? },
            Some(Unit { start, newest_ms }) => Unit {
                start: start.saturating_add(record.varint()?),
                newest_ms: newest_ms.wrapping_add(record.varint()? as i64),
            },
        };
        units.push(unit);
    }
    Retained::from_parts(settings, (earliest, released, tail), units)
        .ok_or_else(|| record.corrupt("what is kept contradicts itself"))
}

/// Positions of the content that a record says is in segments. Looks at nothing else of it.
pub(crate) fn settled_range(bytes: &Bytes) -> Result<Range<u64>, StorageError> {
    let mut record = Take::new(bytes.clone(), "stream record");
    if record.byte()? != VERSION {
        return Err(record.corrupt("unknown version"));
    }
    let (base, released) = (record.varint()?, record.varint()?);
    Ok(base.saturating_add(released)..record.varint()?)
}

/// Decodes a record.
pub(crate) fn decode(bytes: Bytes) -> Result<Record, StorageError> {
    let mut record = Take::new(bytes, "stream record");
    if record.byte()? != VERSION {
        return Err(record.corrupt("unknown version"));
    }
    let base = record.varint()?;
    let released = base.saturating_add(record.varint()?);
    let settled = record.varint()?;
    let tail = record.varint()?;
    let name = record.name()?;
    let content_type = record.content_type()?;
    let lifetime = record.lifetime()?;
    let at_ms = record.time()?;
    let group = record.varint()?;
    let flags = record.byte()?;
    if flags & !FLAGS != 0 {
        return Err(record.corrupt("unknown flags"));
    }
    let has = |flag: u8| flags & flag != 0;
    let closed_by = if has(FLAG_CLOSED_BY_PRODUCER) { Some(Box::new(record.producer()?)) } else { None };
    let stream_seq = if has(FLAG_STREAM_SEQ) { Some(record.string()?) } else { None };
    let fork = if has(FLAG_FORK) { Some(Box::new(record.fork()?)) } else { None };
    let retained =
        if has(FLAG_RETENTION) { Some(Box::new(take_retained(&mut record, released, tail)?)) } else { None };
    let creation = Creation {
        name: name.clone(),
        content_type,
        lifetime,
        retention: None,
        fork,
        closed: false,
        payload: Payload::default(),
        at_ms,
    };
    let mut state = StreamState::created(&creation);
    state.retained = retained;
    let is_sound = state.base() == base && state.released() == released;
    if !is_sound || released > settled || settled != tail {
        return Err(record.corrupt("positions contradict each other"));
    }
    state.tail = tail;
    state.soft_deleted = has(FLAG_SOFT_DELETED);
    state.stream_seq = stream_seq.map(|seq| Box::new(seq.as_ref().into()));
    if has(FLAG_CLOSED) {
        state.closure = Closure::Closed(closed_by);
    }
    for _ in 0..record.varint()? {
        state.apply(&Event::Pinned { child: record.stream_ref()? }, group);
    }
    if !record.is_empty() {
        return Err(record.corrupt("longer than its contents"));
    }
    Ok(Record { name, state, settled, group })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::frame::tests::{creation, producer};
    use crate::stream::event::Append;
    use crate::stream::fork::StreamRef;

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            creation in creation(),
            closed_by in prop::option::of(producer()),
            stream_seq in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            pins in prop::collection::vec((any::<u16>(), any::<u64>()), 0..4),
            later in prop::collection::vec((0..300_usize, any::<i64>(), prop::option::of(0..600_u64)), 0..6),
            soft_deleted in any::<bool>(),
            group in any::<u64>(),
        ) {
            let mut state = StreamState::created(&creation);
            for (len, at_ms, cut) in later.into_iter().filter(|_| !creation.closed) {
                let payload = Bytes::from(vec![7; len]).into();
                let append = Append { payload, producer: None, stream_seq: None, close: false, at_ms };
                state.apply(&Event::Appended(append), group);
                if let Some(cut) = cut {
                    state.apply(&Event::Trimmed { earliest: state.base() + cut }, group);
                }
            }
            if !creation.closed {
                let append = Append {
                    payload: Payload::default(),
                    close: closed_by.is_some(),
                    producer: closed_by,
                    stream_seq: stream_seq.map(Bytes::from),
                    at_ms: creation.at_ms,
                };
                state.apply(&Event::Appended(append), group);
            }
            for (shard, id) in pins {
                state.apply(&Event::Pinned { child: StreamRef { shard, id } }, group);
            }
            state.soft_deleted = soft_deleted;
            let record = decode(encode(&creation.name, &state, group).into()).unwrap();
            prop_assert_eq!(&record.name, &creation.name);
            prop_assert_eq!((record.group, record.settled, record.state.tail), (group, state.tail, state.tail));
            prop_assert_eq!(&record.state.content_type, &state.content_type);
            prop_assert_eq!(&record.state.lifetime, &state.lifetime);
            prop_assert_eq!(record.state.renewed_at_ms, state.renewed_at_ms);
            prop_assert_eq!(&record.state.closure, &state.closure);
            prop_assert_eq!(record.state.soft_deleted, soft_deleted);
            prop_assert_eq!(&record.state.stream_seq, &state.stream_seq);
            prop_assert_eq!(&record.state.fork, &state.fork);
            prop_assert_eq!(&record.state.retained, &state.retained);
            let kept = settled_range(&encode(&creation.name, &state, group).into()).unwrap();
            prop_assert_eq!(kept, state.released()..state.tail);
            prop_assert!(record.state.pins().eq(state.pins()));
        }

        #[test]
        fn damaged_records_are_refused_or_read_and_never_panic(
            creation in creation(),
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut record = encode(&creation.name, &StreamState::created(&creation), 1);
            prop_assert!(decode(Bytes::copy_from_slice(&record[..cut.index(record.len())])).is_err());
            let at = at.index(record.len());
            record[at] = value;
            let _ = decode(record.into());
        }
    }
}
