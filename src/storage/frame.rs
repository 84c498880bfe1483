//! The journal's frames: one event of one stream each.
//!
//! ```text
//! frame   := length (u32, fixed, of what follows) kind (1 byte) stream id (varint) body
//! kind 1  created       name, content type, lifetime, time, flags (1 = closed, 2 = fork, 4 = retention), [fork], [retention],
//!                       payload
//! kind 2  appended      time, flags (1 = close, 2 = producer, 4 = Stream-Seq), [producer], [Stream-Seq], payload
//! kind 3  renewed       time
//! kind 4  soft-deleted  (nothing)
//! kind 5  removed       (nothing)
//! kind 6  pinned        child: shard, id
//! kind 7  unpinned      child: shard, id
//! kind 8  trimmed       first position that is kept (varint)
//! ```
//!
//! The payload is the rest of the frame, without a length of its own. Values are encoded as [`codec`] says. Kinds and
//! flags are persisted: they keep their meaning, new ones get new numbers.
//!
//! [`codec`]: crate::storage::codec

use bytes::Bytes;

use crate::storage::StorageError;
use crate::storage::codec::{Put, Take};
use crate::storage::pieces::Pieces;
use crate::stream::event::{Append, Creation, Event};

const CREATED: u8 = 1;
const APPENDED: u8 = 2;
const RENEWED: u8 = 3;
const SOFT_DELETED: u8 = 4;
const REMOVED: u8 = 5;
const PINNED: u8 = 6;
const UNPINNED: u8 = 7;
const TRIMMED: u8 = 8;

const FLAG_CLOSED: u8 = 1;
const FLAG_FORK: u8 = 2;
const FLAG_RETENTION: u8 = 4;
const FLAG_PRODUCER: u8 = 2;
const FLAG_STREAM_SEQ: u8 = 4;

/// Appends one frame to `pieces`.
pub(crate) fn encode(pieces: &mut Pieces, stream: u64, event: &Event) {
    let out = pieces.small_mut();
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let mut payload = None;
    match event {
        Event::Created(creation) => {
            head(out, CREATED, stream);
            encode_creation(out, creation);
            payload = Some(&creation.payload);
        }
        Event::Appended(append) => {
            head(out, APPENDED, stream);
            encode_append(out, append);
            payload = Some(&append.payload);
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
        Event::Trimmed { earliest } => {
            head(out, TRIMMED, stream);
            out.put_varint(*earliest);
        }
    }
    let length = out.len() - start - 4 + payload.map_or(0, |payload| payload.len());
    let length = u32::try_from(length).expect("a request body is far below 4 GiB");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    if let Some(payload) = payload {
        pieces.put_content(payload);
    }
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
    let retention = if creation.retention.is_some() { FLAG_RETENTION } else { 0 };
    out.put_byte(fork | retention | if creation.closed { FLAG_CLOSED } else { 0 });
    if let Some(fork) = &creation.fork {
        out.put_fork(fork);
    }
    if let Some(settings) = &creation.retention {
        out.put_retention(settings);
    }
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
        TRIMMED => Event::Trimmed { earliest: frame.varint()? },
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
    if flags & !(FLAG_CLOSED | FLAG_FORK | FLAG_RETENTION) != 0 {
        return Err(frame.corrupt("unknown flags"));
    }
    let fork = if flags & FLAG_FORK != 0 { Some(Box::new(frame.fork()?)) } else { None };
    let retention = if flags & FLAG_RETENTION != 0 { Some(frame.retention()?) } else { None };
    let payload = frame.rest().into();
    let closed = flags & FLAG_CLOSED != 0;
    Ok(Creation { name, content_type, lifetime, retention, fork, closed, payload, at_ms })
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

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::content_type::ContentType;
    use crate::protocol::lifetime::{Lifetime, parse_expires_at};
    use crate::protocol::name::StreamName;
    use crate::protocol::retention::Retention;
    use crate::stream::fork::{Ancestor, ForkOrigin, StreamRef};
    use crate::stream::producer::ProducerTag;
    use crate::stream::retention::RetentionSettings;

    fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
    }

    fn stream_ref() -> impl Strategy<Value = StreamRef> {
        (any::<u16>(), any::<u64>()).prop_map(|(shard, id)| StreamRef { shard, id })
    }

    pub(crate) fn producer() -> impl Strategy<Value = ProducerTag> {
        (bytes(40), any::<u64>(), any::<u64>()).prop_map(|(id, epoch, seq)| ProducerTag { id, epoch, seq })
    }

    fn lifetime() -> impl Strategy<Value = Lifetime> {
        prop_oneof![
            any::<u64>().prop_map(|seconds| Lifetime::Ttl { seconds }),
            prop_oneof![Just("1969-12-31T23:59:59.123456789-01:00"), Just("2030-01-01T00:00:00Z")]
                .prop_map(|raw| Lifetime::ExpiresAt(parse_expires_at(raw.as_bytes()).unwrap())),
        ]
    }

    fn fork() -> impl Strategy<Value = ForkOrigin> {
        let ancestors = prop::collection::vec((stream_ref(), any::<u64>()), 0..4);
        ("[a-zü/]{1,20}", stream_ref(), any::<[u64; 3]>(), any::<bool>(), ancestors).prop_map(
            |(source, source_ref, [anchor, sub_offset, point], lifetime_inherited, ancestors)| ForkOrigin {
                source: StreamName::from_stored(&source),
                source_ref,
                anchor,
                earliest: (point >> 8).min(anchor),
                sub_offset,
                point: point >> 8,
                lifetime_inherited,
                lineage: ancestors.into_iter().map(|(stream, end)| Ancestor { stream, end }).collect(),
            },
        )
    }

    fn retention() -> impl Strategy<Value = Option<RetentionSettings>> {
        let limits = || (prop::option::of(1..=u64::MAX), prop::option::of(1..=u64::MAX));
        (limits(), limits()).prop_map(|(asked, defaults)| {
            let retention = |(max_age_secs, max_bytes)| Retention { max_age_secs, max_bytes };
            RetentionSettings::decide(retention(asked), retention(defaults))
        })
    }

    pub(crate) fn creation() -> impl Strategy<Value = Creation> {
        let lifetime = prop::option::of(lifetime());
        let fork = prop::option::of(fork().prop_map(Box::new));
        ("[a-zü/]{1,40}", lifetime, retention(), fork, any::<bool>(), bytes(100), any::<i64>()).prop_map(
            |(name, lifetime, retention, fork, closed, payload, at_ms)| Creation {
                name: StreamName::from_stored(&name),
                content_type: ContentType::parse(b"text/plain; charset=utf-8").unwrap(),
                lifetime,
                retention,
                fork,
                closed,
                payload: payload.into(),
                at_ms,
            },
        )
    }

    fn event() -> impl Strategy<Value = Event> {
        let append = (
            bytes(300),
            prop::option::of(producer()),
            prop::option::of(bytes(20)),
            any::<bool>(),
            any::<i64>(),
        )
            .prop_map(|(payload, producer, stream_seq, close, at_ms)| {
                Event::Appended(Append { payload: payload.into(), producer, stream_seq, close, at_ms })
            });
        prop_oneof![
            creation().prop_map(|creation| Event::Created(Box::new(creation))),
            append,
            any::<i64>().prop_map(|at_ms| Event::Renewed { at_ms }),
            Just(Event::SoftDeleted),
            Just(Event::Removed),
            stream_ref().prop_map(|child| Event::Pinned { child }),
            stream_ref().prop_map(|child| Event::Unpinned { child }),
            any::<u64>().prop_map(|earliest| Event::Trimmed { earliest }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(events in prop::collection::vec((any::<u64>(), event()), 0..8)) {
            let mut frames = Pieces::default();
            for (stream, event) in &events {
                encode(&mut frames, *stream, event);
            }
            prop_assert_eq!(decode_all(frames.into_vec().into()).unwrap(), events);
        }

        #[test]
        fn damaged_frames_are_refused_or_read_and_never_panic(
            event in event(),
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut frame = Pieces::default();
            encode(&mut frame, 1, &event);
            let mut frame = frame.into_vec();
            let cut = cut.index(frame.len());
            prop_assert!(cut == 0 || decode_all(Bytes::copy_from_slice(&frame[..cut])).is_err());
            let at = at.index(frame.len());
            frame[at] = value;
            let _ = decode_all(frame.into());
        }
    }

    #[test]
    fn the_bytes_of_a_frame_are_what_the_format_says() {
        let append = Append {
            payload: Bytes::from_static(b"xy").into(),
            producer: Some(ProducerTag { id: Bytes::from_static(b"p"), epoch: 1, seq: 300 }),
            stream_seq: None,
            close: true,
            at_ms: -1,
        };
        let mut frame = Pieces::default();
        encode(&mut frame, 5, &Event::Appended(append));
        assert_eq!(frame.into_vec(), [11, 0, 0, 0, 2, 5, 1, 3, 1, b'p', 1, 0xac, 2, b'x', b'y']);
        let mut frame = Pieces::default();
        encode(&mut frame, 5, &Event::Trimmed { earliest: 300 });
        assert_eq!(frame.into_vec(), [4, 0, 0, 0, 8, 5, 0xac, 2]);
    }
}
