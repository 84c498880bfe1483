//! The journal's frames: one event of one stream each.
//!
//! ```text
//! frame   := length (u32, fixed, of what follows) kind (1 byte) stream id (varint) body
//! kind 1  created       name, content type, lifetime, time, flags (1 = closed, 2 = fork), [fork], payload
//! kind 2  appended      time, flags (1 = close, 2 = producer, 4 = Stream-Seq), [producer], [Stream-Seq], payload
//! kind 3  renewed       time
//! kind 4  soft-deleted  (nothing)
//! kind 5  removed       (nothing)
//! kind 6  pinned        child: shard, id
//! kind 7  unpinned      child: shard, id
//! ```
//!
//! The payload is the rest of the frame, without a length of its own. Values are encoded as [`codec`] says. Kinds and
//! flags are persisted: they keep their meaning, new ones get new numbers.
//!
//! [`codec`]: crate::storage::codec

use bytes::Bytes;

use crate::storage::StorageError;
use crate::storage::codec::{Put, Take};
use crate::stream::event::{Append, Creation, Event};

const CREATED: u8 = 1;
const APPENDED: u8 = 2;
const RENEWED: u8 = 3;
const SOFT_DELETED: u8 = 4;
const REMOVED: u8 = 5;
const PINNED: u8 = 6;
const UNPINNED: u8 = 7;

const FLAG_CLOSED: u8 = 1;
const FLAG_FORK: u8 = 2;
const FLAG_PRODUCER: u8 = 2;
const FLAG_STREAM_SEQ: u8 = 4;

/// Appends one frame to `out`.
pub(crate) fn encode(out: &mut Vec<u8>, stream: u64, event: &Event) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    match event {
        Event::Created(creation) => {
            head(out, CREATED, stream);
            encode_creation(out, creation);
        }
        Event::Appended(append) => {
            head(out, APPENDED, stream);
            encode_append(out, append);
        }
        Event::Renewed { at_ms } => {
            head(out, RENEWED, stream);
            out.put_time(*at_ms);
        }
        Event::SoftDeleted => head(out, SOFT_DELETED, stream),
        Event::Removed => head(out, REMOVED, stream),
        Event::Pinned { child } => {
            head(out, PINNED, stream);
            out.put_stream_ref(*child);
        }
        Event::Unpinned { child } => {
            head(out, UNPINNED, stream);
            out.put_stream_ref(*child);
        }
    }
    let length = u32::try_from(out.len() - start - 4).expect("a request body is far below 4 GiB");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn head(out: &mut Vec<u8>, kind: u8, stream: u64) {
    out.put_byte(kind);
    out.put_varint(stream);
}

fn encode_creation(out: &mut Vec<u8>, creation: &Creation) {
    out.put_string(creation.name.as_str().as_bytes());
    out.put_string(creation.content_type.as_str().as_bytes());
    out.put_lifetime(creation.lifetime.as_ref());
    out.put_time(creation.at_ms);
    let fork = if creation.fork.is_some() { FLAG_FORK } else { 0 };
    out.put_byte(fork | if creation.closed { FLAG_CLOSED } else { 0 });
    if let Some(fork) = &creation.fork {
        out.put_fork(fork);
    }
    out.put_slice(&creation.payload);
}

fn encode_append(out: &mut Vec<u8>, append: &Append) {
    out.put_time(append.at_ms);
    let mut flags = if append.close { FLAG_CLOSED } else { 0 };
    if append.producer.is_some() {
        flags |= FLAG_PRODUCER;
    }
    if append.stream_seq.is_some() {
        flags |= FLAG_STREAM_SEQ;
    }
    out.put_byte(flags);
    if let Some(tag) = &append.producer {
        out.put_producer(tag);
    }
    if let Some(seq) = &append.stream_seq {
        out.put_string(seq);
    }
    out.put_slice(&append.payload);
}

/// Decodes all frames of a group, in order.
pub(crate) fn decode_all(frames: Bytes) -> Result<Vec<(u64, Event)>, StorageError> {
    let mut all = Take::new(frames, "journal group");
    let mut events = Vec::new();
    while !all.is_empty() {
        let length =
            u32::from_le_bytes(all.slice(4)?.as_ref().try_into().expect("four bytes were asked for"));
        events.push(decode(all.slice(length as usize)?)?);
    }
    Ok(events)
}

fn decode(bytes: Bytes) -> Result<(u64, Event), StorageError> {
    let mut frame = Take::new(bytes, "frame");
    let kind = frame.byte()?;
    let stream = frame.varint()?;
    let event = match kind {
        CREATED => Event::Created(Box::new(decode_creation(&mut frame)?)),
        APPENDED => Event::Appended(decode_append(&mut frame)?),
        RENEWED => Event::Renewed { at_ms: frame.time()? },
        SOFT_DELETED => Event::SoftDeleted,
        REMOVED => Event::Removed,
        PINNED => Event::Pinned { child: frame.stream_ref()? },
        UNPINNED => Event::Unpinned { child: frame.stream_ref()? },
        _ => return Err(frame.corrupt("unknown kind")),
    };
    if !frame.is_empty() {
        return Err(frame.corrupt("longer than its contents"));
    }
    Ok((stream, event))
}

fn decode_creation(frame: &mut Take) -> Result<Creation, StorageError> {
    let name = frame.name()?;
    let content_type = frame.content_type()?;
    let lifetime = frame.lifetime()?;
    let at_ms = frame.time()?;
    let flags = frame.byte()?;
    if flags & !(FLAG_CLOSED | FLAG_FORK) != 0 {
        return Err(frame.corrupt("unknown flags"));
    }
    let fork = if flags & FLAG_FORK != 0 { Some(Box::new(frame.fork()?)) } else { None };
    let payload = frame.rest().into();
    Ok(Creation { name, content_type, lifetime, fork, closed: flags & FLAG_CLOSED != 0, payload, at_ms })
}

fn decode_append(frame: &mut Take) -> Result<Append, StorageError> {
    let at_ms = frame.time()?;
    let flags = frame.byte()?;
    if flags & !(FLAG_CLOSED | FLAG_PRODUCER | FLAG_STREAM_SEQ) != 0 {
        return Err(frame.corrupt("unknown flags"));
    }
    let producer = if flags & FLAG_PRODUCER != 0 { Some(frame.producer()?) } else { None };
    let stream_seq = if flags & FLAG_STREAM_SEQ != 0 { Some(frame.string()?) } else { None };
    let payload = frame.rest().into();
    Ok(Append { payload, producer, stream_seq, close: flags & FLAG_CLOSED != 0, at_ms })
}
