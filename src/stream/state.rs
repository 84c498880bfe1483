//! What a stream is, and how events change it.

use std::collections::BTreeSet;

use crate::protocol::content_type::ContentType;
use crate::protocol::lifetime::Lifetime;
use crate::stream::event::{Append, Creation, Event};
use crate::stream::fork::{ForkOrigin, StreamRef};
use crate::stream::producer::{ProducerTag, Producers};
use crate::stream::retention::Retained;

/// Whether a stream takes appends.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Closure {
    /// It does.
    #[default]
    Open,
    /// It never will again. Remembers the producer request that closed it, so that its retry is recognised.
    Closed(Option<Box<ProducerTag>>),
}

impl Closure {
    /// No more appends.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }
}

/// One incarnation of a stream, without its bytes and its name.
#[derive(Clone, Debug)]
pub struct StreamState {
    /// As sent at creation, or inherited.
    pub content_type: ContentType,
    /// Own or inherited.
    pub lifetime: Option<Lifetime>,
    /// When the window of a sliding lifetime began. Wall clock, milliseconds since 1970.
    pub renewed_at_ms: i64,
    /// End of the content, in stored bytes, inherited ones included.
    pub tail: u64,
    /// Open or closed.
    pub closure: Closure,
    /// Deleted or expired, but kept for forks.
    pub soft_deleted: bool,
    /// Last accepted `Stream-Seq`. Boxed twice, as most streams have none: then it costs one pointer.
    pub stream_seq: Option<Box<Box<[u8]>>>,
    /// Idempotent producers.
    pub producers: Producers,
    /// Where inherited bytes come from.
    pub fork: Option<Box<ForkOrigin>>,
    /// What is kept of it, if that is not everything.
    pub retained: Option<Box<Retained>>,
    #[expect(clippy::box_collection, reason = "most streams have none, and then it costs one pointer")]
    pins: Option<Box<BTreeSet<StreamRef>>>,
}

impl StreamState {
    /// The state after [`Event::Created`].
    pub fn created(creation: &Creation) -> Self {
        let (earliest, base) = creation.fork.as_ref().map_or((0, 0), |fork| (fork.earliest, fork.point));
        let retained = creation.retention.map(|settings| {
            let mut retained = Box::new(Retained::new(settings, earliest, base, creation.at_ms));
            if !creation.payload.is_empty() {
                retained.appended(base, creation.at_ms);
            }
            retained
        });
        Self {
            content_type: creation.content_type.clone(),
            lifetime: creation.lifetime.clone(),
            renewed_at_ms: creation.at_ms,
            tail: base + creation.payload.len() as u64,
            closure: if creation.closed { Closure::Closed(None) } else { Closure::Open },
            soft_deleted: false,
            stream_seq: None,
            producers: Producers::default(),
            fork: creation.fork.clone(),
            retained,
            pins: None,
        }
    }

    /// Applies an event other than [`Event::Created`]. `group` is the journal group that carries it.
    ///
    /// Events are facts: they were decided before they were stored, so nothing is refused here.
    pub fn apply(&mut self, event: &Event, group: u64) {
        match event {
            Event::Created(_) => unreachable!("a creation makes a new state, it does not change one"),
            Event::Appended(append) => self.appended(append, group),
            Event::Renewed { at_ms } => self.renew(*at_ms),
            Event::SoftDeleted => self.soft_deleted = true,
            Event::Removed => {}
            Event::Pinned { child } => {
                self.pins.get_or_insert_with(Box::default).insert(*child);
            }
            Event::Unpinned { child } => {
                if let Some(pins) = &mut self.pins {
                    pins.remove(child);
                    if pins.is_empty() {
                        self.pins = None;
                        let base = self.base();
                        self.retained.iter_mut().for_each(|retained| retained.release(base));
                    }
                }
            }
            Event::Trimmed { earliest } => {
                let (base, tail, is_pinned) = (self.base(), self.tail, self.is_pinned());
                if let Some(retained) = &mut self.retained {
                    retained.trim(*earliest, base, tail, is_pinned);
                }
            }
        }
    }

    fn appended(&mut self, append: &Append, group: u64) {
        assert!(!self.closure.is_closed(), "a closed stream takes no appends");
        if let Some(retained) = &mut self.retained
            && !append.payload.is_empty()
        {
            retained.appended(self.tail, append.at_ms);
        }
        self.tail += append.payload.len() as u64;
        if let Some(tag) = &append.producer {
            self.producers.accept(tag, group);
        }
        if let Some(seq) = &append.stream_seq {
            self.stream_seq = Some(Box::new(seq.as_ref().into()));
        }
        if append.close {
            self.closure = Closure::Closed(append.producer.clone().map(Box::new));
        }
        self.renew(append.at_ms);
    }

    /// Starts the window of a sliding lifetime anew. Time never runs backwards here, whatever the wall clock does.
    pub fn renew(&mut self, at_ms: i64) {
        self.renewed_at_ms = self.renewed_at_ms.max(at_ms);
    }

    /// First position that is the stream's own; what lies before is inherited.
    pub fn base(&self) -> u64 {
        self.fork.as_ref().map_or(0, |fork| fork.point)
    }

    /// First position that readers see: 0, or what retention has left of this stream or of a fork's source.
    pub fn earliest(&self) -> u64 {
        let inherited = || self.fork.as_ref().map_or(0, |fork| fork.earliest);
        self.retained.as_ref().map_or_else(inherited, |retained| retained.earliest())
    }

    /// First own position whose bytes are needed, by readers or by forks.
    pub fn released(&self) -> u64 {
        self.retained.as_ref().map_or_else(|| self.base(), |retained| retained.released())
    }

    /// The cut that retention asks for at this moment. A stream that is kept for its forks alone is let be.
    pub fn due_cut(&self, now_ms: i64) -> Option<u64> {
        if self.soft_deleted {
            return None;
        }
        self.retained.as_ref()?.due_cut(self.tail, now_ms)
    }

    /// Own bytes that are stored once `added` more have come, and retention has taken what it takes by size.
    pub fn stored_bytes_after(&self, added: u64) -> u64 {
        let tail = self.tail + added;
        let cut = self.retained.as_ref().filter(|_| !self.is_pinned());
        let cut = cut.and_then(|retained| retained.cut_by_bytes(tail)).unwrap_or(0);
        tail - self.released().max(cut)
    }

    /// The forks that need this stream's bytes.
    pub fn pins(&self) -> impl Iterator<Item = StreamRef> + '_ {
        self.pins.iter().flat_map(|pins| pins.iter().copied())
    }

    /// Some fork needs this stream's bytes.
    pub fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::name::StreamName;
    use crate::protocol::retention::Retention;
    use crate::stream::event::Payload;
    use crate::stream::retention::RetentionSettings;

    #[test]
    fn what_was_cut_is_released_when_the_last_fork_lets_go_and_not_before() {
        let asked = Retention { max_age_secs: None, max_bytes: Some(1) };
        let mut state = StreamState::created(&Creation {
            name: StreamName::from_stored("a"),
            content_type: ContentType::octet_stream(),
            lifetime: None,
            retention: RetentionSettings::decide(asked, Retention::default()),
            fork: None,
            closed: false,
            payload: Payload::from(bytes::Bytes::from_static(b"content")),
            at_ms: 0,
        });
        let children = [1, 2, 3].map(|id| StreamRef { shard: 0, id });
        for child in children {
            state.apply(&Event::Pinned { child }, 1);
        }
        state.apply(&Event::Trimmed { earliest: 7 }, 1);
        for child in children {
            assert_eq!((state.earliest(), state.released()), (7, 0), "{child:?} needs what was cut");
            state.apply(&Event::Unpinned { child }, 2);
        }
        assert_eq!((state.earliest(), state.released()), (7, 7));
    }
}
