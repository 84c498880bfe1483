//! Pages that the database's file does not have yet.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::format::{BLOCK_BYTES, Block};

type Map<K, V> = HashMap<K, V, ahash::RandomState>;

/// Blocks that were written and are not in the file, as they are now.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    blocks: Map<u64, Arc<Block>>,
    /// Those that were written since the last sync.
    touched: HashSet<u64, ahash::RandomState>,
}

/// The part of a block that a write or a read is about.
pub(super) struct Part {
    pub(super) block: u64,
    /// Where it begins within the block, and within the bytes of the call.
    pub(super) in_block: usize,
    pub(super) in_call: usize,
    pub(super) len: usize,
}

/// Cuts `len` bytes at `offset` at the borders of blocks.
pub(super) fn parts(offset: u64, len: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let in_block = (at % BLOCK_BYTES as u64) as usize;
        let part = Part {
            block: at / BLOCK_BYTES as u64,
            in_block,
            in_call: done,
            len: (BLOCK_BYTES - in_block).min(len - done),
        };
        done += part.len;
        (part.len > 0).then_some(part)
    })
}

impl Overlay {
    pub(super) fn get(&self, block: u64) -> Option<&Arc<Block>> {
        self.blocks.get(&block)
    }

    #[cfg(test)]
    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn has_any(&self, offset: u64, len: usize) -> bool {
        !self.blocks.is_empty() && parts(offset, len).any(|part| self.blocks.contains_key(&part.block))
    }

    /// Writes a part of a block; `below` is what the file has of it, asked for if that is needed.
    pub(super) fn write<E>(
        &mut self,
        part: &Part,
        data: &[u8],
        below: impl FnOnce() -> Result<Block, E>,
    ) -> Result<(), E> {
        let into = part.in_block..part.in_block + part.len;
        if let Some(block) = self.blocks.get_mut(&part.block) {
            // Copied if a log has it as it was.
            Arc::make_mut(block)[into].copy_from_slice(data);
        } else {
            let mut block = if part.len == BLOCK_BYTES { [0; BLOCK_BYTES] } else { below()? };
            block[into].copy_from_slice(data);
            self.blocks.insert(part.block, Arc::new(block));
        }
        self.touched.insert(part.block);
        Ok(())
    }

    /// Has a block as a log has it.
    pub(super) fn restore(&mut self, number: u64, block: Arc<Block>) {
        self.blocks.insert(number, block);
    }

    /// What was written since the last time, in order.
    pub(super) fn take_touched(&mut self) -> Vec<(u64, Arc<Block>)> {
        let mut touched: Vec<_> = self
            .touched
            .drain()
            .filter_map(|number| Some((number, Arc::clone(self.blocks.get(&number)?))))
            .collect();
        touched.sort_unstable_by_key(|&(number, _)| number);
        touched
    }

    /// The file has these now. What was written since is kept.
    pub(super) fn forget<'a>(&mut self, written: impl Iterator<Item = &'a (u64, Arc<Block>)>) {
        for (number, block) in written {
            if self.blocks.get(number).is_some_and(|now| Arc::ptr_eq(now, block)) {
                self.blocks.remove(number);
            }
        }
    }

    /// The file is cut to so many blocks.
    pub(super) fn cut(&mut self, blocks: u64) {
        self.blocks.retain(|&number, _| number < blocks);
        self.touched.retain(|&number| number < blocks);
    }
}
