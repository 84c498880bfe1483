//! A budget for what was read from disk: content in RAM is shared with whoever reads it, but a page from disk is memory
//! of its own until its client has taken it, and a client may take its time.
//!
//! Content that was shared and has left the RAM since is memory of its readers as well ([`Lent`]). Once there is much of
//! that, no more is shared: pages are copies then, which take room as those from disk do.
//!
//! Room is taken once for a page, before anything is read, and in order: who holds some never waits for more, so that
//! nobody waits for somebody who waits. Each buffer of the page carries its part of the room and gives it back by being
//! dropped, wherever that happens; so the layers above deal in plain [`Bytes`].

use std::iter;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::engine::api::Unavailable;
use crate::storage::lent::Lent;
use crate::storage::{READ_BUFFER_BYTES, ReadTarget};

/// What room is counted in.
const UNIT_BYTES: u64 = 4 * 1024;
/// How long a page waits for room: enough for clients that read, too little to pile requests up behind those that don't.
pub(super) const WAIT: Duration = Duration::from_secs(2);
/// A page is as large as it may be while this many of its size fit into what is left of the budget. From there on pages get
/// smaller, so that clients which do not read take ever less of what others need.
const PAGES_LEFT_MIN: u64 = 64;
/// Pages do not get smaller than this.
const PAGE_BYTES_MIN: u64 = 64 * 1024;
/// What a page may have of content in RAM without taking room, as it may of the block that a stream is growing by.
const COPY_BYTES_MAX: u64 = PAGE_BYTES_MIN;
/// The part of the budget from which on as much as that is lent, and no more content is shared.
const LENT_PART: u64 = 4;
/// Content that is let go together.
const BLOCK_BYTES: usize = 64 * 1024;
/// Reads at one time, for each shard. More make no disk faster, but each is a thread, and keeps some memory after it.
const READS_PER_SHARD: usize = 8;

/// Shared by all shards of an engine.
#[derive(Debug)]
pub(crate) struct ReadBudget {
    room: Arc<Semaphore>,
    units_max: u32,
    turns: Arc<Semaphore>,
    lent: Lent,
    lent_bytes_max: u64,
}

impl ReadBudget {
    /// `bytes_max` is rounded down to units, but one unit there is.
    pub(crate) fn new(bytes_max: u64, shards: usize) -> Self {
        // More than any machine has.
        let units_max = u32::try_from(bytes_max / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        Self {
            room: Arc::new(Semaphore::new(units_max as usize)),
            units_max,
            turns: Arc::new(Semaphore::new(shards * READS_PER_SHARD)),
            lent: Lent::default(),
            lent_bytes_max: bytes_max / LENT_PART,
        }
    }

    /// Counts what readers keep of content that left the RAM.
    pub(super) fn lent(&self) -> &Lent {
        &self.lent
    }

    /// Content in RAM may be shared with a reader, for however long that takes.
    pub(super) fn shares(&self) -> bool {
        self.lent.bytes() <= self.lent_bytes_max
    }

    /// Room that a copy of content in RAM takes.
    pub(super) fn copy_bytes(bytes: u64) -> u64 {
        if bytes <= COPY_BYTES_MAX { 0 } else { bytes }
    }

    /// Size of a page that may have `bytes_max`.
    pub(super) fn page_bytes(&self, bytes_max: usize) -> usize {
        let free = self.room.available_permits() as u64 * UNIT_BYTES;
        let fair = (free / PAGES_LEFT_MIN).max(PAGE_BYTES_MIN);
        bytes_max.min(usize::try_from(fair).unwrap_or(usize::MAX))
    }

    /// Size to try next if there is no room for a page of `bytes`. `None` = it is as small as pages get.
    pub(super) fn smaller_page(&self, bytes: usize) -> Option<usize> {
        let smaller = self.page_bytes(bytes / 2).max(PAGE_BYTES_MIN as usize);
        (smaller < bytes).then_some(smaller)
    }

    /// Takes room for `bytes` if it is there.
    pub(super) fn try_take(&self, bytes: u64) -> Option<Room> {
        Some(Room { room: self.room.clone().try_acquire_many_owned(self.share(bytes)).ok()? })
    }

    fn share(&self, bytes: u64) -> u32 {
        units(bytes).min(u64::from(self.units_max)) as u32
    }

    /// Takes room for `bytes`, waiting for it until `deadline`. What is larger than the whole budget takes all of it: a
    /// message has to stay readable, whatever its size. The caller must not hold any room.
    pub(super) async fn take(&self, bytes: u64, deadline: Instant) -> Result<Room, Unavailable> {
        if let Some(room) = self.try_take(bytes) {
            return Ok(room);
        }
        let room = timeout_at(deadline, self.room.clone().acquire_many_owned(self.share(bytes)))
            .await
            .map_err(|_| Unavailable::ReadBufferFull)?
            .expect("nobody closes the budget");
        Ok(Room { room })
    }

    /// Waits for a turn to read, which is over when the value is dropped.
    pub(super) async fn turn(&self) -> OwnedSemaphorePermit {
        self.turns.clone().acquire_owned().await.expect("nobody closes the turns")
    }
}

fn units(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT_BYTES)
}

/// A part of the budget, given back on drop.
#[derive(Debug)]
pub(super) struct Room {
    room: OwnedSemaphorePermit,
}

impl Room {
    /// What was gathered, as buffers that each hold their part of this room. What is left of it stays here.
    pub(super) fn hold(&mut self, gathered: Blocks) -> Vec<Bytes> {
        let mut left: u64 = gathered.blocks.iter().map(|block| block.len() as u64).sum();
        let all = units(left).min(self.room.num_permits() as u64);
        let mut held = Vec::with_capacity(gathered.blocks.len());
        for Block { mut bytes, parts } in gathered.blocks {
            if bytes.len() < bytes.capacity() / 2 {
                bytes.shrink_to_fit();
            }
            // Counted from the end, so that of a page that is larger than the budget the last blocks hold it.
            let before = units(left).min(all);
            left -= parts.iter().map(|part| part.len() as u64).sum::<u64>();
            let share = (before - units(left).min(all)) as usize;
            let room = self.room.split(share).expect("the shares of a page add up to no more than its room");
            let whole = Bytes::from_owner(HeldBlock { bytes, _room: room });
            held.extend(parts.into_iter().map(|part| whole.slice(part)));
        }
        held
    }
}

/// The owner of a buffer's bytes.
struct HeldBlock {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for HeldBlock {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes being gathered, in blocks of [`BLOCK_BYTES`].
#[derive(Debug)]
pub(super) struct Blocks {
    blocks: Vec<Block>,
    /// The last block is one that pieces are copied into.
    is_open: bool,
    /// Empty buffers for blocks to come.
    spare: Vec<Vec<u8>>,
}

/// Bytes that are let go together.
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    /// What counts of them, in order.
    parts: Vec<Range<usize>>,
}

impl Block {
    /// Bytes that count.
    fn len(&self) -> usize {
        self.parts.iter().map(Range::len).sum()
    }
}

impl Blocks {
    /// Makes room for `bytes`, and for what a reader has around them. To be called on the thread that will let go of them: an allocator keeps what one thread
    /// allocates and another one frees.
    pub(super) fn with_capacity(bytes: u64) -> Self {
        let block_bytes = BLOCK_BYTES as u64;
        let mut spare: Vec<_> =
            (0..bytes / block_bytes).map(|_| Vec::with_capacity(READ_BUFFER_BYTES)).collect();
        let rest = (bytes % block_bytes) as usize;
        if rest > 0 {
            // Lent last.
            spare.insert(0, Vec::with_capacity(rest));
        }
        Self { blocks: Vec::with_capacity(spare.len()), is_open: false, spare }
    }
}

impl ReadTarget for Blocks {
    fn push(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            if !self.is_open {
                let bytes = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BLOCK_BYTES));
                self.blocks.push(Block { bytes, parts: iter::once(0..0).collect() });
                self.is_open = true;
            }
            let Block { bytes, parts } = self.blocks.last_mut().expect("one is open");
            let size = bytes.capacity().min(BLOCK_BYTES);
            let (now, later) = piece.split_at(piece.len().min(size - bytes.len()));
            bytes.extend_from_slice(now);
            parts[0].end = bytes.len();
            self.is_open = bytes.len() < size;
            piece = later;
        }
    }

    fn lend(&mut self) -> Vec<u8> {
        let spare = self.spare.pop_if(|buffer| buffer.capacity() >= READ_BUFFER_BYTES);
        spare.unwrap_or_else(|| Vec::with_capacity(READ_BUFFER_BYTES))
    }

    fn take(&mut self, buffer: Vec<u8>, parts: Vec<Range<usize>>) {
        self.blocks.push(Block { bytes: buffer, parts });
        self.is_open = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn page(bytes: u64) -> Blocks {
        let mut blocks = Blocks::with_capacity(bytes);
        let content: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
        for piece in content.chunks(10_000) {
            blocks.push(piece);
        }
        blocks
    }

    fn free(budget: &ReadBudget) -> u64 {
        budget.room.available_permits() as u64 * UNIT_BYTES
    }

    /// Room that has to be there at once.
    async fn take(budget: &ReadBudget, bytes: u64) -> Result<Room, Unavailable> {
        budget.take(bytes, Instant::now()).await
    }

    #[tokio::test]
    async fn room_comes_back_as_a_pages_buffers_are_let_go() {
        let budget = ReadBudget::new(8 * MIB, 1);
        for bytes in [1, 4_095, 4_096, 4_097, 70_000, MIB, 3 * MIB + 1] {
            let mut room = take(&budget, 4 * MIB).await.unwrap();
            let held = room.hold(page(bytes));
            assert_eq!(free(&budget), 4 * MIB);
            drop(room);
            let content = held.concat();
            assert!(content.iter().enumerate().all(|(index, &byte)| byte == (index % 251) as u8));
            let mut left = content.len() as u64;
            assert_eq!(left, bytes);
            for buffer in held {
                assert_eq!(free(&budget), 8 * MIB - units(left) * UNIT_BYTES);
                left -= buffer.len() as u64;
                // A part of it keeps all of it.
                let part = buffer.slice(..1);
                drop(buffer);
                assert!(free(&budget) <= 8 * MIB - units(left + 1) * UNIT_BYTES);
                drop(part);
            }
            assert_eq!(free(&budget), 8 * MIB);
        }
    }

    #[tokio::test]
    async fn blocks_that_were_lent_stand_between_copied_pieces_and_hold_what_counts_of_them() {
        let budget = ReadBudget::new(MIB, 1);
        let mut room = take(&budget, 300_000).await.unwrap();
        let mut blocks = Blocks::with_capacity(300_000);
        let mut expected = Vec::new();
        for turn in 0..3_u8 {
            let piece = vec![turn; 20_000];
            blocks.push(&piece);
            expected.extend_from_slice(&piece);
            let mut lent = blocks.lend();
            assert!(lent.is_empty() && lent.capacity() >= READ_BUFFER_BYTES);
            lent.extend((0..READ_BUFFER_BYTES).map(|at| (at % 250) as u8));
            let parts = vec![8..32_000, 32_100..BLOCK_BYTES];
            parts.iter().for_each(|part| expected.extend_from_slice(&lent[part.clone()]));
            blocks.take(lent, parts);
        }
        let held = room.hold(blocks);
        drop(room);
        assert_eq!(held.concat(), expected);
        assert_eq!(held.len(), 9);
        assert_eq!(free(&budget), MIB - units(expected.len() as u64) * UNIT_BYTES);
        drop(held);
        assert_eq!(free(&budget), MIB);
    }

    #[tokio::test]
    async fn page_that_is_larger_than_the_budget_takes_it_whole_until_its_end() {
        let budget = ReadBudget::new(MIB, 1);
        let mut room = take(&budget, 5 * MIB).await.unwrap();
        let mut held = room.hold(page(5 * MIB));
        drop(room);
        held.drain(..held.len() - 16).for_each(drop);
        assert_eq!(free(&budget), 0);
        held.pop();
        assert_eq!(free(&budget), 64 * 1024);
        drop(held);
        assert_eq!(free(&budget), MIB);
    }

    #[tokio::test]
    async fn who_finds_no_room_is_refused_in_the_end_and_served_if_some_comes() {
        let budget = ReadBudget::new(MIB, 1);
        let all = take(&budget, MIB).await.unwrap();
        assert_eq!(take(&budget, 1).await.unwrap_err(), Unavailable::ReadBufferFull);
        let (served, ()) = tokio::join!(budget.take(MIB, Instant::now() + WAIT), async { drop(all) });
        drop(served.unwrap());
        assert_eq!(free(&budget), MIB);
    }

    #[tokio::test]
    async fn pages_get_smaller_as_room_does_and_never_tiny() {
        let budget = ReadBudget::new(256 * MIB, 1);
        let (page, small) = (4 << 20, 64 << 10);
        assert_eq!((budget.page_bytes(page), budget.page_bytes(1)), (page, 1));
        let mut taken = Vec::new();
        let mut last = page;
        while free(&budget) >= small as u64 {
            let bytes = budget.page_bytes(page);
            assert!((small..=last).contains(&bytes), "{bytes} after {last}");
            last = bytes;
            taken.push(take(&budget, bytes as u64).await.unwrap());
        }
        // With pages of one size it would be 64.
        assert!(taken.len() > 300, "{} pages", taken.len());
        taken.truncate(1);
        assert_eq!(budget.page_bytes(page), (252 << 20) / 64);
    }

    #[tokio::test]
    async fn small_pages_do_not_overtake_a_large_one() {
        let budget = ReadBudget::new(MIB, 1);
        let first = take(&budget, MIB / 2).await.unwrap();
        let large = budget.take(MIB, Instant::now() + WAIT);
        let (large, ()) = tokio::join!(large, async {
            assert_eq!(take(&budget, 1).await.unwrap_err(), Unavailable::ReadBufferFull);
            drop(first);
        });
        drop(large.unwrap());
        assert_eq!(free(&budget), MIB);
        // Nor does one that gave up take anything with it.
        let first = take(&budget, MIB / 2).await.unwrap();
        take(&budget, MIB).await.unwrap_err();
        take(&budget, MIB / 2).await.unwrap();
        drop(first);
        assert_eq!(free(&budget), MIB);
    }

    #[tokio::test]
    async fn a_page_without_bytes_needs_no_room() {
        let budget = ReadBudget::new(0, 1);
        let _all = take(&budget, 1).await.unwrap();
        let mut none = take(&budget, 0).await.unwrap();
        assert!(none.hold(Blocks::with_capacity(MIB)).is_empty());
    }
}
