//! Reads of settled content.

use std::io;
use std::sync::Arc;

use super::SegmentStore;
use super::file::{Segment, io_failed, read_blocks};
use super::format::{BLOCK_BYTES, RunEntry};
use super::index::Place;
use crate::storage::disk::DiskFile;
use crate::storage::{ColdReader, StorageError};

/// Blocks that a search for a message boundary reads at once after it found none in that many.
const SEARCH_BLOCKS_MAX: u64 = 8;

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
        self.with_buffer(|buffer| self.read_into(stream, (from, to), buffer, take))
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
    fn read_into(
        &self,
        stream: u64,
        (from, to): (u64, u64),
        buffer: &mut Vec<u8>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(), StorageError> {
        let mut at = from;
        let mut opener = Opener::default();
        while at < to {
            let places = self.index().places(stream, at, to).ok_or(StorageError::Missing)?;
            for Place { segment, run } in places {
                let Some(file) = opener.open(self, &segment)? else { break };
                let range = (at, to.min(run.end()));
                read_blocks(&segment, &*file, &run, range, buffer, &mut |block| {
                    // Both fit: they are at most the length of a block.
                    let low = at.saturating_sub(block.start) as usize;
                    let high = (to.min(block.end()) - block.start) as usize;
                    take(&block.payload[low..high]);
                })?;
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
