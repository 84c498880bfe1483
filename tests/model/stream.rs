//! One stream of the model.

use std::collections::{BTreeMap, BTreeSet};

use durable_streams_server::engine::api::Retention;

use crate::request::Life;

/// A request's producer: which one, epoch, sequence number.
pub(crate) type Tag = (u8, u64, u64);

#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// Tells incarnations apart.
    pub(crate) uid: u64,
    pub(crate) content_type: String,
    /// Inherited and own, in stored form.
    pub(crate) content: Vec<u8>,
    /// Where messages of a JSON stream begin, and the tail.
    pub(crate) boundaries: BTreeSet<u64>,
    pub(super) own_from: usize,
    pub(crate) retention: Retention,
    /// First position that is kept, as the store was last found to have it.
    pub(crate) earliest: u64,
    /// Where appends begin, and when they came; what is inherited counts as one.
    pub(super) appends: Vec<(u64, i64)>,
    /// `Some` = closed, by which request if it had a producer.
    pub(crate) closed: Option<Option<Tag>>,
    pub(super) seq: Option<Vec<u8>>,
    pub(crate) producers: BTreeMap<u8, (u64, u64)>,
    pub(crate) life: Option<Life>,
    /// When the window began: at the earliest and at the latest that the store may believe.
    pub(super) renewed: (i64, i64),
    pub(super) fork: Option<Fork>,
    /// Deleted or expired, and kept for its forks.
    pub(crate) deleted: bool,
    pub(super) children: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Fork {
    pub(super) source: u8,
    pub(super) parent: u64,
    pub(super) anchor: u64,
    /// Where the source began.
    pub(super) earliest: u64,
    pub(super) skip: u64,
    pub(super) inherited_life: bool,
}

pub(super) fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

pub(crate) fn is_json(content_type: &str) -> bool {
    media_type(content_type) == "application/json"
}

pub(super) const DEFAULT_TYPE: &str = "application/octet-stream";

/// Longest time by which a renewal that was written may be older than the real one: `protocol.md` §16 lets renewals be
/// persisted coarsely, and the store says how coarsely.
pub(super) fn lag_ms(ttl: u64) -> i64 {
    i64::try_from(ttl * 1000 / 4).expect("windows in tests are short").min(60_000)
}

impl Stream {
    pub(crate) fn is_json(&self) -> bool {
        is_json(&self.content_type)
    }

    pub(crate) fn tail(&self) -> u64 {
        self.content.len() as u64
    }

    pub(crate) fn is_position(&self, at: u64) -> bool {
        at <= self.tail() && (!self.is_json() || self.boundaries.contains(&at))
    }

    pub(super) fn push(&mut self, messages: &[Vec<u8>], now_ms: i64) {
        if !messages.is_empty() {
            self.appends.push((self.tail(), now_ms));
        }
        for message in messages {
            self.content.extend_from_slice(message);
            self.boundaries.insert(self.tail());
        }
    }

    /// The stream was found to begin here: nowhere else than where an append does, nothing that is to be kept is gone, and
    /// not much more than that is there.
    #[track_caller]
    pub(super) fn learn(&mut self, earliest: u64, now_ms: i64) {
        let tail = self.tail();
        let begins = |(start, _): &(u64, i64)| *start == earliest;
        assert!(earliest >= self.earliest, "from {} it came back to {earliest}", self.earliest);
        assert!(
            earliest == self.earliest || earliest == tail || self.appends.iter().any(begins),
            "it was cut at {earliest}, within an append"
        );
        let age_ms = self.retention.max_age_secs.map(|secs| i64::try_from(secs * 1000).expect("it is short"));
        let ends = self.appends.iter().skip(1).map(|(start, _)| *start).chain([tail]);
        let aged = self
            .appends
            .iter()
            .zip(ends)
            .filter(|((_, at_ms), _)| age_ms.is_some_and(|age_ms| at_ms + age_ms <= now_ms));
        let by_age = aged.map(|(_, end)| end).last().unwrap_or(0);
        let spare = |start: &u64| self.retention.max_bytes.is_some_and(|max| start + max <= tail);
        let by_bytes = self.appends.iter().map(|(start, _)| *start).rfind(spare).unwrap_or(0);
        assert!(
            earliest <= self.earliest.max(by_age).max(by_bytes),
            "{earliest} to {tail} is there, and more is to be kept"
        );
        if let Some(max) = self.retention.max_bytes {
            let starts = self.appends.iter().map(|(start, _)| *start).chain([tail]).collect::<Vec<_>>();
            let largest = starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
            assert!(tail - earliest < max + (max / 32).max(1) + largest, "{earliest} to {tail} is too much");
        }
        if let Some(age_ms) = age_ms
            && let Some((_, at_ms)) = self.appends.iter().find(|(start, _)| *start >= earliest)
        {
            assert!(now_ms - at_ms <= age_ms + age_ms / 32, "{} ms is too old", now_ms - at_ms);
        }
        self.earliest = earliest;
    }

    /// Earliest and latest end.
    pub(crate) fn deadline(&self) -> Option<(i64, i64)> {
        match self.life.as_ref()? {
            Life::Ttl(seconds) => {
                let window = i64::try_from(seconds * 1000).expect("windows in tests are short");
                Some((self.renewed.0 + window, self.renewed.1 + window))
            }
            Life::At { ms, .. } => Some((*ms, *ms)),
        }
    }

    pub(super) fn renew(&mut self, now_ms: i64) {
        self.renewed = (self.renewed.0.max(now_ms), self.renewed.1.max(now_ms));
    }
}
