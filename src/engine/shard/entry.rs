//! One stream of a shard.

use std::collections::HashSet;
use std::num::NonZeroU64;

use crate::engine::api::StreamInfo;
use crate::protocol::content_type::ContentType;
use crate::protocol::lifetime::Lifetime;
use crate::protocol::name::StreamName;
use crate::protocol::retention::Retention;
use crate::storage::lent::Lent;
use crate::storage::tail::RecentTail;
use crate::stream::event::{Creation, Payload};
use crate::stream::expiry::renewal_lag_ms;
use crate::stream::fork::StreamRef;
use crate::stream::state::StreamState;

/// Content types that are kept once. A client could make up any number.
const CONTENT_TYPES_MAX: usize = 64;

/// A stream: what was decided about it, and what of that is durable.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: StreamName,
    /// With everything that is staged.
    pub(super) state: StreamState,
    /// Recent bytes, staged ones included.
    pub(super) recent: RecentTail,
    pub(super) durable: Durable,
    /// Last group that carries something of this stream.
    pub(super) last_group: u64,
    /// Its end is staged: mutations wait until it is durable.
    pub(super) ending: bool,
    /// Start of a sliding window as storage knows it once everything staged is durable. Milliseconds since 1970.
    pub(super) stored_renewal_ms: i64,
    /// Content below is settled, or on its way; equals the base where there is nothing to settle to.
    pub(super) settled: u64,
    /// Group as of which the last checkpoint is, begun or done; 0 = none.
    pub(super) settled_group: u64,
    /// First group with something that no checkpoint has, begun or done; `None` = there is none. Groups count from 1.
    pub(super) dirty_since: Option<NonZeroU64>,
}

/// What readers see, and what a crash leaves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Durable {
    pub(super) exists: bool,
    pub(super) soft_deleted: bool,
    pub(super) closed: bool,
    pub(super) tail: u64,
    /// See [`StreamState::earliest`].
    pub(super) earliest: u64,
    /// See [`StreamState::released`].
    pub(super) released: u64,
    /// Start of a sliding window as storage knows it. Milliseconds since 1970.
    pub(super) renewal_ms: i64,
}

/// The content types of a shard's streams, each of them once: most streams have one of very few.
#[derive(Debug, Default)]
pub(super) struct ContentTypes(HashSet<ContentType, ahash::RandomState>);

impl ContentTypes {
    /// Makes `content_type` share its memory with an equal one, if it is among the first that were seen.
    fn share(&mut self, content_type: &mut ContentType) {
        match self.0.get(content_type) {
            Some(known) => *content_type = known.clone(),
            None if self.0.len() < CONTENT_TYPES_MAX => {
                self.0.insert(content_type.clone());
            }
            None => {}
        }
    }
}

impl Entry {
    /// A stream whose creation is being staged.
    pub(super) fn new(creation: &Creation, types: &mut ContentTypes, lent: &Lent) -> Self {
        let mut state = StreamState::created(creation);
        types.share(&mut state.content_type);
        let base = state.base();
        let mut recent = RecentTail::new(base, state.content_type.is_json());
        recent.push(&creation.payload, lent);
        Self {
            name: creation.name.clone(),
            recent,
            durable: Durable::default(),
            last_group: 0,
            ending: false,
            stored_renewal_ms: state.renewed_at_ms,
            settled: base,
            settled_group: 0,
            dirty_since: None,
            state,
        }
    }

    /// A stream as storage holds it: settled, durable, nothing of it in RAM.
    pub(super) fn restored(
        name: StreamName,
        mut state: StreamState,
        types: &mut ContentTypes,
        settled: u64,
        group: u64,
    ) -> Self {
        types.share(&mut state.content_type);
        Self {
            name,
            recent: RecentTail::new(settled, state.content_type.is_json()),
            durable: Durable::default(),
            last_group: group,
            ending: false,
            stored_renewal_ms: state.renewed_at_ms,
            settled,
            settled_group: group,
            dirty_since: None,
            state,
        }
    }

    /// Adds an append's payload to the recent bytes.
    pub(super) fn push(&mut self, payload: &Payload, lent: &Lent) {
        self.recent.push(payload, lent);
    }

    /// Where content begins that no checkpoint has, begun or done: nobody needs what was released before it was settled.
    pub(super) fn first_unsettled(&self) -> u64 {
        self.settled.max(self.state.released())
    }

    /// How much that is.
    pub(super) fn unsettled_bytes(&self) -> u64 {
        self.state.tail - self.first_unsettled()
    }

    /// Everything staged is durable.
    pub(super) fn all_durable(&mut self) {
        self.durable = self.staged();
    }

    /// What readers will see once everything staged is durable.
    pub(super) fn staged(&self) -> Durable {
        Durable {
            exists: true,
            soft_deleted: self.state.soft_deleted,
            closed: self.state.closure.is_closed(),
            tail: self.state.tail,
            earliest: self.state.earliest(),
            released: self.state.released(),
            renewal_ms: self.stored_renewal_ms,
        }
    }

    /// How far storage may lag behind a renewal of the sliding window; `None` if the window does not slide.
    pub(super) fn renewal_lag_ms(&self) -> Option<i64> {
        match self.state.lifetime.as_ref()? {
            lifetime @ Lifetime::Ttl { .. } => Some(renewal_lag_ms(lifetime).max(1)),
            Lifetime::ExpiresAt(_) => None,
        }
    }

    /// The stream as readers see it.
    pub(super) fn info(&self, stream: StreamRef, now_ms: i64) -> StreamInfo {
        let remaining_ms = self.state.lifetime.as_ref().map(|lifetime| match lifetime {
            Lifetime::Ttl { seconds } => seconds.saturating_mul(1000),
            Lifetime::ExpiresAt(at) => u64::try_from(at.at_ms().saturating_sub(now_ms)).unwrap_or(0),
        });
        StreamInfo {
            incarnation: u128::from(stream.shard) << 64 | u128::from(stream.id),
            content_type: self.state.content_type.clone(),
            lifetime: self.state.lifetime.clone(),
            remaining_ms,
            retention: self.state.retained.as_ref().map_or_else(Retention::default, |r| r.settings().limits),
            earliest: self.durable.earliest,
            tail: self.durable.tail,
            closed: self.durable.closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There may be a million of them: what is added here is looked at twice. 256 bytes are a size that allocators have.
    #[test]
    fn a_stream_is_small() {
        assert!(size_of::<Entry>() <= 256, "{}", size_of::<Entry>());
    }

    #[test]
    fn equal_content_types_are_kept_once() {
        let of = |text: &str| ContentType::parse(text.as_bytes()).unwrap();
        let address = |content_type: &ContentType| content_type.as_str().as_ptr();
        let mut types = ContentTypes::default();
        let (mut first, mut second, mut other) = (of("text/plain"), of("text/plain"), of("Text/plain"));
        for content_type in [&mut first, &mut second, &mut other] {
            types.share(content_type);
        }
        assert_eq!(address(&first), address(&second));
        assert_eq!(other.as_str(), "Text/plain");
        for number in 0..2 * CONTENT_TYPES_MAX {
            types.share(&mut of(&format!("text/x{number}")));
        }
        assert_eq!(types.0.len(), CONTENT_TYPES_MAX);
    }
}
