//! Topics: one stream as the live readers of one core see it, and the batches that they share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use slab::Slab;

use crate::engine::core::Shared;
use crate::engine::fan_out::{Waiting, wake_in_turns};
use crate::engine::request::{Mail, Origin};
use crate::stream::fork::StreamRef;

/// Bytes that a topic keeps for readers who are a little late.
const RECENT_BYTES_MAX: usize = 256 * 1024;
/// Joined batches that a topic remembers, for readers who are late by the same amount.
const JOINED_MAX: usize = 4;

/// Contiguous bytes of a stream, shared by all its subscribers on a core.
#[derive(Debug)]
pub struct LiveBatch {
    /// First position.
    pub start: u64,
    /// Position after the last byte.
    pub end: u64,
    /// Stored bytes `start..end` in order.
    pub data: Vec<Bytes>,
    /// The batch ends at the durable tail.
    pub up_to_date: bool,
    /// The stream is closed and the batch ends at its tail.
    pub closed: bool,
    encoded: Mutex<Option<(u64, Bytes)>>,
}

impl LiveBatch {
    pub(super) fn new(start: u64, end: u64, data: Vec<Bytes>, up_to_date: bool, closed: bool) -> Arc<Self> {
        Arc::new(Self { start, end, data, up_to_date, closed, encoded: Mutex::new(None) })
    }

    /// The batch as encoded by `encode`, computed once for all subscribers that ask with the same `key`.
    pub fn encode_once(&self, key: u64, encode: impl FnOnce(&LiveBatch) -> Bytes) -> Bytes {
        let mut encoded = lock(&self.encoded);
        match &*encoded {
            Some((known, bytes)) if *known == key => bytes.clone(),
            _ => {
                let bytes = encode(self);
                *encoded = Some((key, bytes.clone()));
                bytes
            }
        }
    }
}

/// Taken over even from a thread that panicked: what is behind these locks is consistent between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a stream ended for its readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Removed,
    SoftDeleted,
}

/// What a commit means for the readers of a stream.
#[derive(Clone, Debug)]
pub(crate) struct TopicNews {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// `start..end`, or nothing if that is too much to push to readers.
    pub(crate) data: Option<Bytes>,
    pub(crate) closed: bool,
    pub(crate) ended: Option<Ended>,
}

/// One stream as seen by the live readers of one core.
#[derive(Debug)]
pub(crate) struct Topic {
    state: Mutex<TopicState>,
    /// Where its readers are.
    origin: Origin,
    /// What its readers would have to know each for itself.
    stream: StreamRef,
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct TopicState {
    tail: u64,
    closed: bool,
    ended: Option<Ended>,
    /// The latest batches, contiguous, the last one ending at `tail`.
    recent: VecDeque<Arc<LiveBatch>>,
    recent_bytes: usize,
    joined: VecDeque<Arc<LiveBatch>>,
    /// Who is to be woken by the next news.
    pub(super) waiting: Waiting,
}

/// What a topic has for a reader at some position.
pub(super) enum Next {
    Batch(Arc<LiveBatch>),
    Closed {
        tail: u64,
    },
    Ended(Ended),
    /// The bytes are there, but no longer here.
    Behind,
    Nothing,
}

impl Topic {
    /// A topic of `stream` for readers that run on `origin`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        stream: StreamRef,
        tail: u64,
        closed: bool,
        origin: Origin,
    ) -> Arc<Self> {
        let state = TopicState {
            tail,
            closed,
            ended: None,
            recent: VecDeque::new(),
            recent_bytes: 0,
            joined: VecDeque::new(),
            waiting: Waiting::default(),
        };
        Arc::new(Self { state: Mutex::new(state), origin, stream, shared })
    }

    pub(super) fn locked(&self) -> MutexGuard<'_, TopicState> {
        lock(&self.state)
    }

    /// Where its readers are.
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// The incarnation that is read.
    pub(crate) fn stream(&self) -> StreamRef {
        self.stream
    }

    /// Tells the shard that owns the stream. By mail even to the own core: its shard may be at work.
    pub(crate) fn post(&self, mail: Mail) {
        self.shared.mailboxes[usize::from(self.stream.shard)].post(mail);
    }

    /// Takes in news and wakes all readers.
    pub(crate) fn announce(&self, news: TopicNews) {
        let called = self.locked().take_in(news);
        match self.origin {
            Origin::Core(_) => wake_in_turns(called),
            // Their runtime is not kept from anything else by it.
            Origin::Foreign => called.into_iter().for_each(|(_, waker)| waker.wake()),
        }
    }
}

impl TopicState {
    /// Takes in news. Returns who is to be told.
    fn take_in(&mut self, news: TopicNews) -> Slab<Waker> {
        self.closed |= news.closed;
        self.ended = self.ended.or(news.ended);
        match news.data {
            Some(data) if news.start == self.tail && news.end > news.start => {
                self.recent_bytes += data.len();
                let batch = LiveBatch::new(news.start, news.end, vec![data], true, news.closed);
                self.recent.push_back(batch);
                while self.recent_bytes > RECENT_BYTES_MAX {
                    let oldest = self.recent.pop_front().expect("the sum of nothing is 0");
                    self.recent_bytes -= (oldest.end - oldest.start) as usize;
                }
            }
            _ if news.end != self.tail => {
                self.recent.clear();
                self.recent_bytes = 0;
            }
            _ => {}
        }
        self.tail = self.tail.max(news.end);
        self.joined.clear();
        self.waiting.call()
    }

    /// `position` is where the reader is, `held` how much before that it wants again.
    pub(super) fn next(&mut self, position: u64, held: u64, bytes_max: usize) -> Next {
        if let Some(ended) = self.ended {
            return Next::Ended(ended);
        }
        if position >= self.tail {
            let at_end = self.closed && position == self.tail;
            return match (at_end, held) {
                (false, _) => Next::Nothing,
                (true, 0) => Next::Closed { tail: self.tail },
                (true, _) => self.batch_from(position - held, bytes_max),
            };
        }
        self.batch_from(position - held, bytes_max)
    }

    fn batch_from(&mut self, start: u64, bytes_max: usize) -> Next {
        let first = self.recent.partition_point(|batch| batch.end <= start);
        if self.recent.get(first).is_none_or(|batch| batch.start > start) {
            return Next::Behind;
        }
        // As much as fits, in whole batches, so that no JSON message is cut; at least one.
        let mut end = self.recent[first].end;
        for batch in self.recent.range(first + 1..) {
            if batch.end - start > bytes_max as u64 {
                break;
            }
            end = batch.end;
        }
        let up_to_date = end == self.tail;
        let closed = up_to_date && self.closed;
        let as_asked = |batch: &LiveBatch| {
            batch.start == start
                && batch.end == end
                && batch.up_to_date == up_to_date
                && batch.closed == closed
        };
        let mut known = self.joined.iter().chain(self.recent.get(first));
        if let Some(batch) = known.find(|batch| as_asked(batch)) {
            return Next::Batch(batch.clone());
        }
        let joined = LiveBatch::new(start, end, self.bytes(first, start, end), up_to_date, closed);
        if self.joined.len() == JOINED_MAX {
            self.joined.pop_front();
        }
        self.joined.push_back(joined.clone());
        Next::Batch(joined)
    }

    fn bytes(&self, first: usize, start: u64, end: u64) -> Vec<Bytes> {
        let mut data = Vec::new();
        for batch in self.recent.range(first..).take_while(|batch| batch.start < end) {
            let mut at = batch.start;
            for piece in &batch.data {
                let skip = start.saturating_sub(at).min(piece.len() as u64) as usize;
                at += piece.len() as u64;
                if skip < piece.len() {
                    data.push(piece.slice(skip..));
                }
            }
        }
        data
    }
}
