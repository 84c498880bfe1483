//! Reads of settled content.

use std::io;
use std::sync::Arc;

use super::SegmentStore;
use super::file::{Segment, io_failed, read_blocks, verified};
use super::format::{BLOCK_BYTES, BLOCK_HEADER_BYTES, BLOCK_STRIDE, RunEntry};
use super::index::Place;
use crate::storage::disk::DiskFile;
use crate::storage::{ColdReader, ReadTarget, StorageError};

/// Blocks that a search for a message boundary reads at once after it found none in that many.
const SEARCH_BLOCKS_MAX: u64 = 8;
/// Blocks that are read into one buffer of a page.
const SHARED_BLOCKS: usize = 2;
/// Their content.
const SHARED_BYTES: u64 = (SHARED_BLOCKS * BLOCK_BYTES) as u64;
/// Room that they need, headers included. Bytes.
pub(crate) const READ_BUFFER_BYTES: usize = SHARED_BLOCKS * BLOCK_STRIDE;

/// Opens the files of places that were looked up a moment ago.
#[derive(Debug, Default)]
struct Opener {
    /// The segment whose file was not there.
    vanished: Option<u64>,
}

impl Opener {
    /// The file. `None` = it was removed meanwhile: look up again where the bytes are.
    ///
    /// A segment leaves the index before its file is removed. So one that is still in it at the second look is lost.
    fn open(
        &mut self,
        store: &SegmentStore,
        segment: &Segment,
    ) -> Result<Option<Arc<dyn DiskFile>>, StorageError> {
        let error = match store.descriptors.get(segment) {
            Ok(file) => return Ok(Some(file)),
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::NotFound {
            return Err(io_failed("opening", &segment.path, error));
        }
        if store.is_retired() {
            // Who looks again does so in the store that has taken this one's place.
            return Err(StorageError::Missing);
        }
        if self.vanished.replace(segment.key.id) == Some(segment.key.id) {
            return Err(segment.corrupt("the file is not there"));
        }
        Ok(None)
    }
}

impl ColdReader for SegmentStore {
    fn read(&self, stream: u64, from: u64, to: u64, take: &mut dyn FnMut(&[u8])) -> Result<(), StorageError> {
        self.with_buffer(|buffer| {
            self.each_range(stream, (from, to), &mut |segment, file, run, range| {
                read_copied(segment, file, run, range, buffer, take)
            })
        })
    }

    fn read_into(
        &self,
        stream: u64,
        from: u64,
        to: u64,
        target: &mut dyn ReadTarget,
    ) -> Result<(), StorageError> {
        self.with_buffer(|buffer| {
            self.each_range(stream, (from, to), &mut |segment, file, run, range| {
                read_shared(segment, file, run, range, buffer, target)
            })
        })
    }

    /// Blocks are verified whole though only their headers are asked for: otherwise a damaged one could send a reader
    /// into the middle of a message.
    fn boundary_at_or_before(&self, stream: u64, position: u64) -> Result<u64, StorageError> {
        if position == 0 {
            return Ok(0);
        }
        self.with_buffer(|buffer| self.boundary(stream, position, buffer))
    }
}

impl SegmentStore {
    /// Finds the files of the positions `from..to`, and has them read, in order.
    fn each_range(
        &self,
        stream: u64,
        (from, to): (u64, u64),
        read: &mut ReadRange<'_>,
    ) -> Result<(), StorageError> {
        let mut at = from;
        let mut opener = Opener::default();
        while at < to {
            let places = self.index().places(stream, at, to).ok_or(StorageError::Missing)?;
            for Place { segment, run } in places {
                let Some(file) = opener.open(self, &segment)? else { break };
                let range = (at, to.min(run.end()));
                read(&segment, &*file, &run, range)?;
                at = range.1;
            }
        }
        Ok(())
    }

    fn boundary(&self, stream: u64, position: u64, buffer: &mut Vec<u8>) -> Result<u64, StorageError> {
        let mut opener = Opener::default();
        // The last position that may be one.
        let mut last = position;
        loop {
            let index = self.index();
            let (from, end) = index.kept(stream).ok_or(StorageError::Missing)?;
            if position < from {
                return Err(StorageError::Missing);
            }
            if position >= end {
                return Ok(end);
            }
            if last <= from {
                return Ok(from);
            }
            let Place { segment, run } = index.place_of(stream, last).ok_or(StorageError::Missing)?;
            drop(index);
            let Some(file) = opener.open(self, &segment)? else { continue };
            let first = from.max(run.start);
            if let Some(boundary) = last_boundary(&segment, &*file, &run, (first, last), buffer)? {
                return Ok(boundary.max(from));
            }
            // The start of what is kept always is one, and where a run starts another ends.
            if first == from {
                return Ok(from);
            }
            last = run.start - 1;
        }
    }
}

/// Reads positions of a run, of which there is at least one.
type ReadRange<'a> =
    dyn FnMut(&Segment, &dyn DiskFile, &RunEntry, (u64, u64)) -> Result<(), StorageError> + 'a;

fn read_copied(
    segment: &Segment,
    file: &dyn DiskFile,
    run: &RunEntry,
    (from, to): (u64, u64),
    buffer: &mut Vec<u8>,
    take: &mut dyn FnMut(&[u8]),
) -> Result<(), StorageError> {
    read_blocks(segment, file, run, (from, to), buffer, &mut |block| {
        // Both fit: they are at most the length of a block.
        let low = from.saturating_sub(block.start) as usize;
        let high = (to.min(block.end()) - block.start) as usize;
        take(&block.payload[low..high]);
    })
}

/// Reads what is whole blocks into buffers of the target, and copies the ends.
fn read_shared(
    segment: &Segment,
    file: &dyn DiskFile,
    run: &RunEntry,
    (from, to): (u64, u64),
    buffer: &mut Vec<u8>,
    target: &mut dyn ReadTarget,
) -> Result<(), StorageError> {
    let whole_from = run.start + (from - run.start).next_multiple_of(BLOCK_BYTES as u64);
    let buffers = to.saturating_sub(whole_from) / SHARED_BYTES;
    if buffers == 0 {
        return read_copied(segment, file, run, (from, to), buffer, &mut |piece| target.push(piece));
    }
    let mut at = whole_from;
    if from < at {
        read_copied(segment, file, run, (from, at), buffer, &mut |piece| target.push(piece))?;
    }
    while at + SHARED_BYTES <= to {
        let mut lent = target.lend();
        let offset = run.block_offset(at);
        let read = file.read_onto(offset, READ_BUFFER_BYTES, &mut lent);
        read.map_err(|error| io_failed("reading", &segment.path, error))?;
        for bytes in lent.chunks(BLOCK_STRIDE) {
            at = verified(segment, run.stream, at, bytes)?.end();
        }
        let payload = |block| block * BLOCK_STRIDE + BLOCK_HEADER_BYTES..(block + 1) * BLOCK_STRIDE;
        target.take(lent, (0..SHARED_BLOCKS).map(payload).collect());
    }
    if at < to {
        read_copied(segment, file, run, (at, to), buffer, &mut |piece| target.push(piece))?;
    }
    Ok(())
}

/// The last known message boundary of `first..=last` in a run, or one below `first` if none is in these positions but
/// one in the same block.
fn last_boundary(
    segment: &Segment,
    file: &dyn DiskFile,
    run: &RunEntry,
    (first, last): (u64, u64),
    buffer: &mut Vec<u8>,
) -> Result<Option<u64>, StorageError> {
    let first = run.block_start(first);
    let mut blocks = 1;
    let mut to = last + 1;
    while to > first {
        let from = first.max(run.block_start(to - 1).saturating_sub((blocks - 1) * BLOCK_BYTES as u64));
        let mut found = None;
        read_blocks(segment, file, run, (from, to), buffer, &mut |block| {
            found = block.boundary.filter(|&boundary| boundary <= last).or(found);
        })?;
        if found.is_some() {
            return Ok(found);
        }
        to = from;
        blocks = (blocks * 2).min(SEARCH_BLOCKS_MAX);
    }
    Ok(None)
}
