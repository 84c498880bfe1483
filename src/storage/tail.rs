//! The recent bytes of one stream in RAM: what is not settled yet, and what was settled but is still worth keeping.
//!
//! Small appends are gathered in one growing block, so that a read hands out few pieces; a full block is frozen and
//! then shared without copying. Large appends become blocks of their own, as they are.
//!
//! In a JSON stream only positions between messages may be read from. Each block begins at one and remembers some more
//! ("marks", sparse); the rest is found by scanning from the nearest mark.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::protocol::json;
use crate::storage::lent::{Kept, Lent};
use crate::stream::event::{LARGE_PAYLOAD_BYTES, Payload};

/// Size at which the growing block is frozen.
const BLOCK_BYTES: usize = 64 * 1024;
/// An append of at least this size is not copied into the growing block.
const LARGE_BYTES: usize = LARGE_PAYLOAD_BYTES;
/// Least distance between two marks. Bounds both what marks cost and what is scanned in vain.
const MARK_STEP: usize = 256;

/// Contiguous bytes from `start` on.
#[derive(Debug)]
struct Block {
    start: u64,
    kept: Kept,
    marks: Vec<u32>,
}

impl Block {
    fn end(&self) -> u64 {
        self.start + self.kept.bytes().len() as u64
    }

    /// See [`RecentTail::release_before`].
    fn release_before(&mut self, position: u64, lent: &Lent) {
        let dead = position.saturating_sub(self.start) as usize;
        if dead > self.kept.bytes().len() / 2 {
            self.start = position;
            self.kept = lent.keep(Bytes::copy_from_slice(&self.kept.bytes()[dead..]));
            release_marks(&mut self.marks, dead);
        }
    }
}

/// The marks of what is left when `dead` bytes have gone.
fn release_marks(marks: &mut Vec<u32>, dead: usize) {
    marks.retain_mut(|mark| {
        let is_left = *mark as usize > dead;
        if is_left {
            *mark -= dead as u32;
        }
        is_left
    });
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RecentTail {
    json: bool,
    open_start: u64,
    open: Vec<u8>,
    /// `None` = all of it is empty, as it is for the very most of many streams.
    more: Option<Box<More>>,
}

#[derive(Debug, Default)]
struct More {
    sealed: VecDeque<Block>,
    open_marks: Vec<u32>,
}

impl RecentTail {
    /// Holds nothing yet; the first append comes at `start`.
    pub(crate) fn new(start: u64, json: bool) -> Self {
        Self { json, open_start: start, open: Vec::new(), more: None }
    }

    fn sealed(&self) -> &VecDeque<Block> {
        static NOTHING: VecDeque<Block> = VecDeque::new();
        self.more.as_ref().map_or(&NOTHING, |more| &more.sealed)
    }

    fn open_marks(&self) -> &[u32] {
        self.more.as_ref().map_or(&[], |more| &more.open_marks)
    }

    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// First position held.
    pub(crate) fn start(&self) -> u64 {
        self.sealed().front().map_or(self.open_start, |block| block.start)
    }

    /// Position after the last byte held.
    pub(crate) fn end(&self) -> u64 {
        self.open_start + self.open.len() as u64
    }

    /// Bytes held.
    pub(crate) fn len(&self) -> u64 {
        self.end() - self.start()
    }

    /// Adds one append's payload. What is handed out of it and outlasts it here counts as `lent`.
    pub(crate) fn push(&mut self, payload: &Payload, lent: &Lent) {
        if payload.is_empty() {
            return;
        }
        if payload.len() >= LARGE_BYTES {
            self.seal(lent);
            let marks = match payload.marks() {
                _ if !self.json => Vec::new(),
                Some(marks) => marks.to_vec(),
                None => marks(payload),
            };
            // No slice of something larger, which would stay in RAM with it, beyond what is accounted for: see `Payload`.
            let kept = lent.keep(Bytes::clone(payload));
            let start = self.open_start;
            self.more().sealed.push_back(Block { start, kept, marks });
            self.open_start += payload.len() as u64;
            return;
        }
        if self.open.len() + payload.len() > BLOCK_BYTES {
            self.seal(lent);
        }
        if self.json {
            let at = self.open.len();
            let last = self.open_marks().last().map_or(0, |&mark| mark as usize);
            if at >= last + MARK_STEP {
                self.more().open_marks.push(at as u32);
            }
        }
        self.open.extend_from_slice(payload);
    }

    fn seal(&mut self, lent: &Lent) {
        if self.open.is_empty() {
            return;
        }
        let start = self.open_start;
        self.open_start = self.end();
        let mut bytes = std::mem::take(&mut self.open);
        bytes.shrink_to_fit();
        let more = self.more();
        let marks = std::mem::take(&mut more.open_marks);
        more.sealed.push_back(Block { start, kept: lent.keep(bytes.into()), marks });
    }

    /// Forgets blocks that end at or before `position`. Returns the number of bytes freed.
    pub(crate) fn forget_before(&mut self, position: u64) -> u64 {
        let before = self.len();
        if let Some(more) = &mut self.more {
            while more.sealed.front().is_some_and(|block| block.end() <= position) {
                more.sealed.pop_front();
            }
            if more.sealed.is_empty() {
                more.sealed.shrink_to_fit();
            }
        }
        if self.sealed().is_empty() && self.end() <= position {
            *self = Self::new(self.end(), self.json);
        }
        before - self.len()
    }

    /// Gives up what lies before `position`, a message boundary. Of a block that it falls into, the rest is copied once it
    /// is less than half of it: so at most as much as is held is kept for nothing. Returns the number of bytes freed.
    pub(crate) fn release_before(&mut self, position: u64, lent: &Lent) -> u64 {
        let before = self.len();
        self.forget_before(position);
        match self.more.as_mut().and_then(|more| more.sealed.front_mut()) {
            Some(block) => block.release_before(position, lent),
            None => {
                let dead = position.min(self.end()).saturating_sub(self.open_start) as usize;
                if dead > self.open.len() / 2 {
                    self.open_start += dead as u64;
                    // Not drained: what it has room for would stay.
                    self.open = self.open[dead..].to_vec();
                    if let Some(more) = &mut self.more {
                        release_marks(&mut more.open_marks, dead);
                    }
                }
            }
        }
        before - self.len()
    }

    /// The bytes `from..to`, which must be held, in order.
    pub(crate) fn slice(&self, from: u64, to: u64) -> Vec<Bytes> {
        assert!(self.start() <= from && from <= to && to <= self.end(), "only held bytes are asked for");
        let mut pieces = Vec::new();
        let first = self.sealed().partition_point(|block| block.end() <= from);
        for block in self.sealed().range(first..).take_while(|block| block.start < to) {
            let low = from.max(block.start) - block.start;
            let high = to.min(block.end()) - block.start;
            pieces.push(block.kept.bytes().slice(low as usize..high as usize));
        }
        if to > self.open_start && from < to {
            let low = from.max(self.open_start) - self.open_start;
            let high = to - self.open_start;
            pieces.push(Bytes::copy_from_slice(&self.open[low as usize..high as usize]));
        }
        pieces
    }

    /// `position`, which must be held or the end, lies between two messages. Always so in other streams.
    pub(crate) fn is_boundary(&self, position: u64) -> bool {
        if !self.json || position == self.end() {
            return true;
        }
        let (bytes, at) = self.since_mark(position);
        json::is_boundary(bytes, at)
    }

    /// Where to end a page that begins at the boundary `from` and should not exceed `to`: the last boundary not after
    /// `to`, or the end of the first message if that alone is larger.
    pub(crate) fn page_end(&self, from: u64, to: u64) -> u64 {
        if !self.json || to >= self.end() {
            return to.min(self.end());
        }
        let (bytes, at) = self.since_mark(to);
        let floor = to - (at - json::floor_boundary(bytes, at)) as u64;
        if floor > from {
            return floor;
        }
        let (bytes, at) = self.since_mark(from);
        let message = json::first_message_len(&bytes[at..]).expect("a block holds whole messages");
        from + message as u64
    }

    /// The bytes from the last mark at or before `position` to the end of its block, and where `position` is in them.
    fn since_mark(&self, position: u64) -> (&[u8], usize) {
        let index = self.sealed().partition_point(|block| block.end() <= position);
        let (start, bytes, marks): (u64, &[u8], &[u32]) = match self.sealed().get(index) {
            Some(block) => (block.start, block.kept.bytes(), &block.marks),
            None => (self.open_start, &self.open, self.open_marks()),
        };
        let at = (position - start) as usize;
        let marks_before = marks.partition_point(|&mark| mark as usize <= at);
        let mark = marks_before.checked_sub(1).map_or(0, |last| marks[last] as usize);
        (&bytes[mark..], at - mark)
    }

    /// The bytes from `from` on in pieces that each begin at a message boundary and, if the messages allow it, are not
    /// larger than a block.
    pub(crate) fn pieces(&self, from: u64) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut at = from;
        let mut block = self.sealed().partition_point(|block| block.end() <= at);
        while at < self.end() {
            while self.sealed().get(block).is_some_and(|block| block.end() <= at) {
                block += 1;
            }
            let block_end = self.sealed().get(block).map_or_else(|| self.end(), Block::end);
            let end = self.page_end(at, block_end.min(at + BLOCK_BYTES as u64));
            pieces.extend(self.slice(at, end));
            at = end;
        }
        pieces
    }
}

/// Marks within a large payload, found by walking its messages. For what comes back from the journal; a request's body
/// was walked when it was checked, away from the core if it was large.
fn marks(stored: &[u8]) -> Vec<u32> {
    let mut marks = Vec::new();
    let mut at = 0;
    let mut last = 0;
    while let Some(len) = json::first_message_len(&stored[at..]) {
        at += len;
        if at >= last + json::MARK_STEP && at < stored.len() {
            marks.push(at as u32);
            last = at;
        }
    }
    marks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A body of JSON messages in stored form, with the lengths that make the blocks differ.
    fn messages() -> impl Strategy<Value = Vec<String>> {
        let length = prop_oneof![1..40_usize, 200..600_usize, 10_000..40_000_usize, Just(70_000)];
        let message = (length, any::<bool>()).prop_map(|(length, nested)| {
            let text = "a,b\\\"]".repeat(length / 6 + 1);
            if nested { format!("{{\"k\":[1,\"{text}\"]}}") } else { format!("\"{text}\"") }
        });
        prop::collection::vec(message, 1..6)
    }

    fn stored(messages: &[String]) -> Payload {
        let body = format!("[{}]", messages.join(" ,"));
        Payload::from(&json::parse_body(body.as_bytes(), 8).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn positions_between_messages_are_told_from_others(
            bodies in prop::collection::vec(messages(), 1..12),
            base in 0..1000_u64,
            known in any::<bool>(),
            probes in prop::collection::vec((any::<prop::sample::Index>(), 1..100_000_u64), 24),
        ) {
            let lent = Lent::default();
            let mut tail = RecentTail::new(base, true);
            let mut all = Vec::new();
            let mut boundaries = vec![base];
            for body in &bodies {
                let payload = stored(body);
                // What comes from the journal has no marks, and must behave alike.
                let payload = if known { payload } else { Bytes::clone(&payload).into() };
                tail.push(&payload, &lent);
                all.extend_from_slice(&payload);
                for message in body {
                    boundaries.push(boundaries.last().unwrap() + message.len() as u64 + 1);
                }
            }
            prop_assert_eq!(tail.end(), base + all.len() as u64);
            for (probe, page) in probes {
                let position = base + probe.index(all.len() + 1) as u64;
                prop_assert_eq!(tail.is_boundary(position), boundaries.contains(&position));
                let from = boundaries[probe.index(boundaries.len() - 1)];
                let expected = boundaries.iter().rev().find(|&&b| b <= from + page && b > from);
                let next = boundaries.iter().find(|&&b| b > from);
                prop_assert_eq!(Some(tail.page_end(from, from + page)), expected.or(next).copied());
                let end = tail.page_end(from, from + page);
                prop_assert_eq!(tail.slice(from, end).concat(), &all[(from - base) as usize..(end - base) as usize]);
            }
            let pieces = tail.pieces(base);
            prop_assert_eq!(pieces.concat(), all);
            let mut at = base;
            for piece in pieces {
                prop_assert!(boundaries.contains(&at));
                at += piece.len() as u64;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_released_goes_and_the_rest_is_as_it_was(
            bodies in prop::collection::vec(messages(), 1..12),
            base in 0..1000_u64,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        ) {
            let lent = Lent::default();
            let (mut tail, mut whole) = (RecentTail::new(base, true), RecentTail::new(base, true));
            let mut starts = vec![base];
            for body in &bodies {
                let payload = stored(body);
                tail.push(&payload, &lent);
                whole.push(&payload, &lent);
                starts.push(tail.end());
            }
            let mut released = base;
            for cut in cuts {
                let (position, before) = (starts[cut.index(starts.len())], tail.len());
                released = released.max(position);
                prop_assert_eq!(tail.release_before(position, &lent), before - tail.len());
                prop_assert!(tail.start() <= released);
                let live = tail.end() - released;
                prop_assert!(tail.len() <= 2 * live + 2 * LARGE_BYTES as u64 || tail.sealed().len() > 1, "{}", tail.len());
                prop_assert_eq!(tail.slice(released, tail.end()).concat(), whole.slice(released, whole.end()).concat());
                for position in released..tail.end().min(released + 600) {
                    prop_assert_eq!(tail.is_boundary(position), whole.is_boundary(position), "{}", position);
                }
                prop_assert_eq!(tail.pieces(released).concat(), whole.slice(released, whole.end()).concat());
            }
            let more = Payload::from(Bytes::from_static(b"1,"));
            tail.push(&more, &lent);
            whole.push(&more, &lent);
            prop_assert_eq!(tail.slice(released, tail.end()).concat(), whole.slice(released, whole.end()).concat());
        }
    }

    #[test]
    fn what_is_forgotten_is_whole_blocks_and_never_too_much() {
        let lent = Lent::default();
        let mut tail = RecentTail::new(0, false);
        let payload = Payload::from(Bytes::from(vec![7; 10_000]));
        for _ in 0..20 {
            tail.push(&payload, &lent);
        }
        assert_eq!(tail.forget_before(1), 0);
        let freed = tail.forget_before(150_000);
        assert_eq!(tail.start(), freed);
        assert!((64_000..=150_000).contains(&freed), "{freed}");
        assert_eq!(tail.slice(freed, 200_000).concat().len() as u64, 200_000 - freed);
        assert_eq!(tail.forget_before(200_000), 200_000 - freed);
        assert_eq!((tail.start(), tail.end(), tail.len()), (200_000, 200_000, 0));
        tail.push(&payload, &lent);
        assert_eq!(tail.slice(200_000, 210_000).concat(), payload.to_vec());
    }
}
