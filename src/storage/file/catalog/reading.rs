//! Reading catalog files record by record.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::account::RamMap;
use super::encoding::{self, Kind, Producer, StreamEntry, Update};
use crate::storage::disk::DiskFile;
use crate::storage::file::sealed::{self, HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::storage::file::{corrupt, failed};
use crate::storage::{RecoveredStream, StorageError};

/// Read at once, unless a record is longer. Bytes.
const WINDOW_BYTES: u64 = 1 << 20;

/// Goes through the records of a file. Clones share the file.
#[derive(Clone, Debug)]
pub(super) struct RecordReader {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    mark: u64,
    /// Where the next record begins.
    at: u64,
    /// Nothing at or beyond this is looked at.
    end: u64,
    window: Bytes,
    window_at: u64,
}

impl RecordReader {
    /// Reads from the first record up to `end`.
    pub(super) fn new(path: &Path, file: &Arc<dyn DiskFile>, mark: u64, end: u64) -> Self {
        Self {
            path: path.to_owned(),
            file: Arc::clone(file),
            mark,
            at: HEADER_BYTES as u64,
            end,
            window: Bytes::new(),
            window_at: 0,
        }
    }

    /// Goes on up to `end` later.
    pub(super) fn extend(&mut self, end: u64) {
        self.end = end;
    }

    /// Where the next record begins, or would.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// Where the reader stops.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn corrupt(&self, why: impl std::fmt::Display) -> StorageError {
        corrupt(&self.path, self.at, why)
    }

    /// The content of the next record. `None` if there is none that checks out.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, StorageError> {
        let head = self.look(RECORD_HEADER_BYTES as u64)?;
        let Some(whole) = sealed::record_bytes(&head, self.mark) else { return Ok(None) };
        let record = self.look(whole)?;
        let Some(content) = sealed::unseal(&record, 0, self.mark) else { return Ok(None) };
        self.at += whole;
        Ok(Some(record.slice(content)))
    }

    /// The next record, which has to be there unless the end is reached.
    pub(super) fn next_durable(&mut self) -> Result<Option<Bytes>, StorageError> {
        if self.at >= self.end {
            return Ok(None);
        }
        self.next()?.map(Some).ok_or_else(|| self.corrupt("a record that was durable does not check out"))
    }

    /// Whether any record beyond checks out.
    pub(super) fn is_followed(&self) -> Result<bool, StorageError> {
        let mut beyond = self.clone();
        while beyond.at < beyond.end {
            let bytes = beyond.look(WINDOW_BYTES)?;
            match sealed::find_mark(&bytes, 0, self.mark) {
                None => beyond.at += (bytes.len() as u64).next_multiple_of(sealed::ALIGNMENT as u64),
                Some(offset) => {
                    beyond.at += offset as u64;
                    if beyond.next()?.is_some() {
                        return Ok(true);
                    }
                    beyond.at += sealed::ALIGNMENT as u64;
                }
            }
        }
        Ok(false)
    }

    /// The next `bytes`, or fewer at the end.
    fn look(&mut self, bytes: u64) -> Result<Bytes, StorageError> {
        let bytes = bytes.min(self.end.saturating_sub(self.at));
        let has = (self.window_at..self.window_at + self.window.len() as u64).contains(&self.at)
            && self.at + bytes <= self.window_at + self.window.len() as u64;
        if !has {
            let len = bytes.max(WINDOW_BYTES).min(self.end.saturating_sub(self.at));
            let len =
                usize::try_from(len).map_err(|_| self.corrupt("a record is too long for this machine"))?;
            let mut window = vec![0; len];
            self.file.read_at(self.at, &mut window).map_err(failed("reading", &self.path))?;
            (self.window, self.window_at) = (window.into(), self.at);
        }
        let start = (self.at - self.window_at) as usize;
        Ok(self.window.slice(start..start + bytes as usize))
    }
}

/// Sees to it that the records of a file come in an order that makes sense.
#[derive(Debug, Default)]
pub(super) struct Order {
    next: u64,
    pub(super) is_complete: bool,
}

impl Order {
    /// Takes note of a record. `streams` and `segments` are live when it is applied.
    pub(super) fn check(&mut self, update: &Update) -> Result<(), &'static str> {
        if update.sequence != self.next {
            return Err("a record is not in its place");
        }
        match (update.kind, self.is_complete) {
            (Kind::Base, false) | (Kind::Checkpoint, true) => {}
            (Kind::Complete, false) => self.is_complete = true,
            (Kind::Checkpoint, false) => return Err("a checkpoint before the file is complete"),
            (Kind::Base | Kind::Complete, true) => return Err("the file is complete twice"),
        }
        self.next += 1;
        Ok(())
    }

    /// Number of records so far.
    pub(super) fn count(&self) -> u64 {
        self.next
    }
}

/// Gathers what is live.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    streams: RamMap<(Bytes, Vec<Producer>)>,
}

impl Gathered {
    pub(super) fn add(&mut self, update: Update) {
        for StreamEntry { id, record, producers } in update.streams {
            let stream = self.streams.entry(id).or_default();
            // Copied: it would keep all of the window in RAM that it was read with.
            stream.0 = Bytes::copy_from_slice(&record);
            let detached = |(id, epoch, last): Producer| (Bytes::copy_from_slice(&id), epoch, last);
            stream.1.extend(producers.into_iter().map(detached));
        }
        for id in update.removed {
            self.streams.remove(&id);
        }
    }

    /// The streams by id, each producer once.
    pub(super) fn finish(self) -> Vec<RecoveredStream> {
        let distinct = |(id, (record, mut producers)): (u64, (Bytes, Vec<Producer>))| {
            keep_last(&mut producers);
            RecoveredStream { id, record, producers }
        };
        let mut streams: Vec<RecoveredStream> = self.streams.into_iter().map(distinct).collect();
        streams.sort_unstable_by_key(|stream| stream.id);
        streams
    }
}

/// Of several mentions of a producer, keeps the last. Sorts by id.
pub(super) fn keep_last(producers: &mut Vec<Producer>) {
    producers.reverse();
    producers.sort_by(|a, b| a.0.cmp(&b.0));
    producers.dedup_by(|later, first| later.0 == first.0);
}

/// Decodes a record, naming the place if that fails.
pub(super) fn decode(reader: &RecordReader, content: Bytes) -> Result<Update, StorageError> {
    encoding::decode(content).map_err(|error| match error {
        StorageError::Corrupt(why) => reader.corrupt(format_args!("before here: {why}")),
        other => other,
    })
}
