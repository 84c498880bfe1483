//! What streams are, written down once more and as simply as possible: a map from names to bytes. A fork is a copy.
//!
//! How far the store cuts a stream within the bounds of its retention is the store's choice; the model learns of it, and says
//! whether it may be so.
//!
//! Nothing here knows of shards, groups, journals or RAM. Refusals are texts that begin with the protocol's code.

// By its path, because another test includes this file by its own.
#[path = "stream.rs"]
mod stream;

use std::collections::{BTreeMap, BTreeSet};

use durable_streams_server::engine::api::ForkAnchor;

use self::stream::{DEFAULT_TYPE, Fork, lag_ms, media_type};
pub(crate) use self::stream::{Stream, Tag, is_json};
use crate::request::{Append, Create, Life};

/// Outcome of an operation that can be refused.
pub(crate) type Answer<T> = Result<T, String>;

/// Bounds that the store was given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) stream_bytes: Option<usize>,
    pub(crate) producers: usize,
}

/// A successful creation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) existed: bool,
    pub(crate) content_type: String,
    pub(crate) tail: u64,
    pub(crate) closed: bool,
}

/// A successful append.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) tail: u64,
    pub(crate) closed: bool,
    pub(crate) duplicate: bool,
    pub(crate) producer: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) now_ms: i64,
    pub(crate) streams: BTreeMap<u8, Stream>,
    limits: Limits,
    next_uid: u64,
}

impl Model {
    pub(crate) fn new(now_ms: i64, limits: Limits) -> Self {
        Self { now_ms, streams: BTreeMap::new(), limits, next_uid: 0 }
    }

    pub(crate) fn get(&self, name: u8) -> Option<&Stream> {
        self.streams.get(&name)
    }

    /// The stream, for a reader.
    pub(crate) fn readable(&self, name: u8) -> Answer<&Stream> {
        match self.streams.get(&name) {
            None => Err("NOT_FOUND".into()),
            Some(stream) if stream.deleted => Err("GONE".into()),
            Some(stream) => Ok(stream),
        }
    }

    /// See [`Stream::learn`].
    #[track_caller]
    pub(crate) fn learn(&mut self, name: u8, earliest: u64) {
        let now_ms = self.now_ms;
        self.streams.get_mut(&name).expect("it was just found").learn(earliest, now_ms);
    }

    /// Whether streams are as large as they like: otherwise it is not foreseen here how much of them is stored.
    pub(crate) fn is_roomy(&self) -> bool {
        self.limits.stream_bytes.is_none()
    }

    /// A read was answered, or a live reader left.
    pub(crate) fn renew(&mut self, name: u8) {
        let now_ms = self.now_ms;
        self.streams.get_mut(&name).expect("only what was read is renewed").renew(now_ms);
    }

    /// The store was opened anew: windows may be longer by what a written renewal lags.
    pub(crate) fn reopened(&mut self) {
        for stream in self.streams.values_mut() {
            if let Some(Life::Ttl(seconds)) = stream.life {
                stream.renewed.1 += lag_ms(seconds);
            }
        }
    }

    /// The outcome of an operation turned out to be this one and not `other`; but a renewal may have happened either
    /// way.
    pub(crate) fn blur(&mut self, other: &Self) {
        for (name, stream) in &mut self.streams {
            if let Some(other) = other.streams.get(name).filter(|other| other.uid == stream.uid) {
                stream.renewed.0 = stream.renewed.0.min(other.renewed.0);
                stream.renewed.1 = stream.renewed.1.max(other.renewed.1);
            }
        }
    }

    /// Lets time pass, and a little more if it were uncertain otherwise whether a stream has expired.
    pub(crate) fn advance(&mut self, ms: i64) -> i64 {
        let before = self.now_ms;
        self.now_ms += ms;
        let deadlines =
            || self.streams.values().filter(|stream| !stream.deleted).filter_map(Stream::deadline);
        while let Some((_, latest)) = deadlines().find(|(from, to)| *from <= self.now_ms && self.now_ms < *to)
        {
            self.now_ms = latest;
        }
        self.expire();
        self.now_ms - before
    }

    pub(crate) fn expire(&mut self) {
        let is_over = |stream: &Stream| stream.deadline().is_some_and(|(_, latest)| latest <= self.now_ms);
        let over: Vec<u8> = self
            .streams
            .iter()
            .filter(|(_, stream)| !stream.deleted && is_over(stream))
            .map(|(&name, _)| name)
            .collect();
        for name in over {
            self.end(name);
        }
    }

    fn end(&mut self, name: u8) {
        // A cascade may have taken it already.
        let Some(stream) = self.streams.get_mut(&name) else { return };
        if stream.children.is_empty() {
            self.remove(name);
        } else {
            stream.deleted = true;
        }
    }

    fn remove(&mut self, name: u8) {
        let stream = self.streams.remove(&name).expect("it is there");
        let Some(Fork { parent, .. }) = stream.fork else { return };
        let parent = self.streams.iter_mut().find(|(_, other)| other.uid == parent);
        let (&name, parent) = parent.expect("a source outlives its forks");
        parent.children.remove(&stream.uid);
        if parent.deleted && parent.children.is_empty() {
            self.remove(name);
        }
    }

    /// `protocol.md` §7, §18.
    pub(crate) fn create(&mut self, request: &Create) -> Answer<Created> {
        let name = request.name;
        if let Some(stream) = self.streams.get_mut(&name) {
            if stream.deleted {
                return Err("PATH_BLOCKED".into());
            }
            if !matches(stream, request) {
                return Err("ALREADY_EXISTS".into());
            }
            stream.renew(self.now_ms);
            return Ok(created(stream, true));
        }
        let mut stream = self.begin(request)?;
        let messages = match request.body.stored(&stream.content_type) {
            Ok(messages) => messages,
            Err(empty) if empty == "EMPTY_ARRAY" => Vec::new(),
            Err(refusal) => return Err(refusal),
        };
        let added: usize = messages.iter().map(Vec::len).sum();
        if self.limits.stream_bytes.is_some_and(|limit| added > limit) {
            return Err("PAYLOAD_TOO_LARGE".into());
        }
        stream.push(&messages, self.now_ms);
        let answer = created(&stream, false);
        if let Some(Fork { parent, .. }) = stream.fork {
            let parent = self.streams.values_mut().find(|other| other.uid == parent);
            parent.expect("it was just looked at").children.insert(stream.uid);
        }
        self.next_uid += 1;
        self.streams.insert(name, stream);
        self.expire();
        Ok(answer)
    }

    /// The new stream with what it inherits.
    fn begin(&self, request: &Create) -> Answer<Stream> {
        let mut stream = Stream {
            uid: self.next_uid,
            content_type: request.content_type.clone().unwrap_or_else(|| DEFAULT_TYPE.to_owned()),
            content: Vec::new(),
            boundaries: BTreeSet::from([0]),
            own_from: 0,
            retention: request.retention,
            earliest: 0,
            appends: Vec::new(),
            closed: request.closed.then_some(None),
            seq: None,
            producers: BTreeMap::new(),
            life: request.life.clone(),
            renewed: (self.now_ms, self.now_ms),
            fork: None,
            deleted: false,
            children: BTreeSet::new(),
        };
        let Some(asked) = &request.fork else { return Ok(stream) };
        let source = self.streams.get(&asked.source).ok_or("NOT_FOUND")?;
        if source.deleted {
            return Err("FORK_FROM_TOMBSTONE".into());
        }
        match &request.content_type {
            Some(own) if media_type(own) != media_type(&source.content_type) => {
                return Err("CONTENT_TYPE_MISMATCH".into());
            }
            Some(_) => {}
            None => stream.content_type = source.content_type.clone(),
        }
        let anchor = match asked.anchor {
            ForkAnchor::Tail => source.tail(),
            ForkAnchor::Start => source.earliest,
            ForkAnchor::At(position) => position,
        };
        if anchor < source.earliest {
            return Err("OFFSET_GONE".into());
        }
        if !source.is_position(anchor) {
            return Err("INVALID_OFFSET".into());
        }
        let point = if source.is_json() {
            source.boundaries.range(anchor..).nth(usize::try_from(asked.skip).unwrap_or(usize::MAX)).copied()
        } else {
            anchor.checked_add(asked.skip).filter(|&point| point <= source.tail())
        };
        let point = point.ok_or("INVALID_OFFSET")?;
        stream.content = source.content[..point as usize].to_vec();
        stream.boundaries = source.boundaries.range(..=point).copied().collect();
        stream.own_from = point as usize;
        stream.earliest = source.earliest;
        if source.earliest < point {
            stream.appends.push((source.earliest, self.now_ms));
        }
        stream.life = request.life.clone().or_else(|| source.life.clone());
        stream.fork = Some(Fork {
            source: asked.source,
            parent: source.uid,
            anchor,
            earliest: source.earliest,
            skip: asked.skip,
            inherited_life: request.life.is_none(),
        });
        Ok(stream)
    }

    /// `protocol.md` §4, §8, §9, §10.
    pub(crate) fn append(&mut self, request: &Append) -> Answer<Appended> {
        let (now_ms, limits) = (self.now_ms, self.limits);
        let stream = self.streams.get_mut(&request.name).ok_or("NOT_FOUND")?;
        if stream.deleted {
            return Err("GONE".into());
        }
        let empty = request.body.is_empty();
        if let Some(closed_by) = stream.closed {
            let again = match request.producer {
                Some(tag) => closed_by == Some(tag),
                None => empty && request.close,
            };
            if !again {
                return Err(format!("STREAM_CLOSED at {}", stream.tail()));
            }
            stream.renew(now_ms);
            let producer = request.producer.map(|(_, epoch, seq)| (epoch, seq));
            return Ok(Appended { tail: stream.tail(), closed: true, duplicate: true, producer });
        }
        if !empty && media_type(&request.content_type) != media_type(&stream.content_type) {
            return Err("CONTENT_TYPE_MISMATCH".into());
        }
        if let Some(known) = judge(stream, request.producer)? {
            stream.renew(now_ms);
            return Ok(Appended {
                tail: stream.tail(),
                closed: false,
                duplicate: true,
                producer: Some(known),
            });
        }
        let messages = request.body.stored(&stream.content_type)?;
        if let (Some(new), Some(last)) = (&request.seq, &stream.seq)
            && new <= last
        {
            return Err("SEQUENCE_CONFLICT".into());
        }
        let own = stream.content.len() - stream.own_from;
        let added: usize = messages.iter().map(Vec::len).sum();
        if limits.stream_bytes.is_some_and(|limit| own + added > limit) {
            return Err("PAYLOAD_TOO_LARGE".into());
        }
        if let Some((id, ..)) = request.producer
            && !stream.producers.contains_key(&id)
            && stream.producers.len() >= limits.producers
        {
            return Err("PRODUCER_LIMIT".into());
        }
        stream.push(&messages, now_ms);
        stream.renew(now_ms);
        if let Some((id, epoch, seq)) = request.producer {
            stream.producers.insert(id, (epoch, seq));
        }
        if request.seq.is_some() {
            stream.seq.clone_from(&request.seq);
        }
        if request.close {
            stream.closed = Some(request.producer);
        }
        let producer = request.producer.map(|(_, epoch, seq)| (epoch, seq));
        Ok(Appended { tail: stream.tail(), closed: request.close, duplicate: false, producer })
    }

    /// `protocol.md` §11.
    pub(crate) fn delete(&mut self, name: u8) -> Answer<()> {
        self.readable(name)?;
        self.end(name);
        Ok(())
    }
}

/// The table of `protocol.md` §9: to be accepted, or a duplicate of what is known.
fn judge(stream: &Stream, tag: Option<Tag>) -> Answer<Option<(u64, u64)>> {
    let Some((id, epoch, seq)) = tag else { return Ok(None) };
    let expected = match stream.producers.get(&id) {
        None => 0,
        Some(&(known, _)) if epoch < known => return Err(format!("PRODUCER_EPOCH_FENCED by {known}")),
        Some(&(known, _)) if epoch > known && seq > 0 => return Err("BAD_REQUEST".into()),
        Some(&(known, _)) if epoch > known => 0,
        Some(&(known, last)) if seq <= last => return Ok(Some((known, last))),
        Some(&(_, last)) => last + 1,
    };
    if seq == expected {
        Ok(None)
    } else {
        Err(format!("SEQUENCE_CONFLICT, {expected} expected, {seq} sent"))
    }
}

fn matches(stream: &Stream, request: &Create) -> bool {
    let fork = match (&stream.fork, &request.fork) {
        (None, None) => None,
        (Some(fork), Some(asked)) => {
            let same_anchor = match asked.anchor {
                ForkAnchor::Tail => true,
                ForkAnchor::Start => fork.anchor == fork.earliest,
                ForkAnchor::At(position) => fork.anchor == position,
            };
            if asked.source != fork.source || !same_anchor || asked.skip != fork.skip {
                return false;
            }
            Some(fork)
        }
        _ => return false,
    };
    let same_type = match (&request.content_type, fork) {
        (None, Some(_)) => true,
        (asked, _) => {
            media_type(asked.as_deref().unwrap_or(DEFAULT_TYPE)) == media_type(&stream.content_type)
        }
    };
    let same_life = match (&request.life, fork) {
        (None, Some(fork)) if fork.inherited_life => true,
        (asked, _) => *asked == stream.life,
    };
    same_type
        && same_life
        && request.retention == stream.retention
        && request.closed == stream.closed.is_some()
}

fn created(stream: &Stream, existed: bool) -> Created {
    Created {
        existed,
        content_type: stream.content_type.clone(),
        tail: stream.tail(),
        closed: stream.closed.is_some(),
    }
}
