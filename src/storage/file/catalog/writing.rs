//! A catalog file that is written to.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::account::Account;
use super::encoding::{self, Counters, StreamEntry};
use super::reading::RecordReader;
use crate::storage::disk::{Disk, DiskFile, OpenMode};
use crate::storage::file::failed;
use crate::storage::file::sealed::{self, CatalogEnd, FileKind, Found, HEADER_BYTES, Header};
use crate::storage::segment::SegmentMeta;
use crate::storage::{Checkpoint, StorageError};

/// The buffer is given back after a write that needed more. Bytes.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// A file with its account. What is pushed is in `pending` until it is written.
pub(super) struct CatalogFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    header: Header,
    /// Where the next write goes.
    end: u64,
    /// Of the next record.
    sequence: u64,
    pending: Vec<u8>,
    /// Something may follow the end: what is left of an unfinished write.
    has_rest: bool,
    pub(super) account: Account,
}

impl fmt::Debug for CatalogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatalogFile")
            .field("path", &self.path)
            .field("end", &self.end)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl CatalogFile {
    /// A draft with nothing but a header, which is not written yet.
    pub(super) fn draft(disk: &dyn Disk, dir: &Path, shard: u32, number: u64) -> Result<Self, StorageError> {
        let header = Header::new(FileKind::Catalog, shard, number, 0, CatalogEnd::default());
        let path = FileKind::Catalog.draft_path(dir, number);
        let file = disk.open(&path, OpenMode::Create).map_err(failed("creating", &path))?;
        Ok(Self {
            path,
            file,
            header,
            end: 0,
            sequence: 0,
            pending: header.encode().to_vec(),
            has_rest: false,
            account: Account::default(),
        })
    }

    /// The file that an opening found, with `sequence` good records that reach up to `end`.
    pub(super) fn found(found: Found, end: u64, sequence: u64, account: Account) -> Self {
        Self {
            path: found.path,
            file: found.file,
            header: found.header,
            end,
            sequence,
            pending: Vec::new(),
            has_rest: found.len > end,
            account,
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.header.number
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// Bytes written.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The end as records tell it. What was pushed counts, too.
    pub(super) fn catalog_end(&self) -> CatalogEnd {
        CatalogEnd { file: self.header.number, records: self.sequence }
    }

    /// Bytes pushed and not written.
    pub(super) fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// Reads what was written.
    pub(super) fn reader(&self) -> RecordReader {
        RecordReader::new(&self.path, &self.file, self.header.mark, self.end)
    }

    /// Whether the dead part exceeds the live one by more than `min` bytes.
    pub(super) fn is_mostly_dead(&self, min: u64) -> bool {
        let (live_min, live_max) = self.account.live_bytes();
        let doubtful = live_max - live_min;
        let dead = self.end.saturating_sub(HEADER_BYTES as u64 + live_max) + doubtful;
        dead > live_min + min
    }

    pub(super) fn push_checkpoints(
        &mut self,
        checkpoints: &[&Checkpoint],
        durable_through: u64,
    ) -> Result<(), StorageError> {
        for checkpoint in checkpoints {
            self.account.add_checkpoint(checkpoint, durable_through)?;
        }
        self.push(|out, sequence| {
            encoding::put_checkpoints(out, sequence, checkpoints, durable_through);
            Ok(())
        })
    }

    pub(super) fn push_base(&mut self, streams: &[StreamEntry]) -> Result<(), StorageError> {
        for stream in streams {
            self.account.add_stream(stream);
        }
        self.push(|out, sequence| {
            encoding::put_base(out, sequence, streams);
            Ok(())
        })
    }

    /// Ends what the file begins with.
    pub(super) fn push_complete<'a>(
        &mut self,
        segments: impl ExactSizeIterator<Item = &'a SegmentMeta> + Clone,
        counters: Counters,
    ) -> Result<(), StorageError> {
        self.account.add_rest(segments.clone(), counters)?;
        let streams = self.account.stream_count();
        self.push(|out, sequence| {
            encoding::put_complete(out, sequence, segments, counters, streams);
            Ok(())
        })
    }

    /// Appends a checkpoint that `from` reads next, as far as there is one.
    pub(super) fn push_moved(&mut self, from: &mut RecordReader) -> Result<bool, StorageError> {
        let Some(content) = from.next_durable()? else { return Ok(false) };
        self.account.add_update(&super::reading::decode(from, content.clone())?)?;
        self.push(|out, sequence| encoding::put_moved(out, sequence, content))?;
        Ok(true)
    }

    fn push(
        &mut self,
        put: impl FnOnce(&mut Vec<u8>, u64) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let start = sealed::begin(&mut self.pending);
        put(&mut self.pending, self.sequence)?;
        sealed::seal(&mut self.pending, start, self.header.mark)?;
        self.sequence += 1;
        Ok(())
    }

    /// Writes what was pushed, in one piece.
    pub(super) fn write(&mut self) -> Result<(), StorageError> {
        if self.has_rest {
            self.file.set_len(self.end).map_err(failed("cutting", &self.path))?;
            self.has_rest = false;
        }
        self.file.write_at(self.end, &self.pending).map_err(failed("writing", &self.path))?;
        self.end += self.pending.len() as u64;
        self.pending.clear();
        if self.pending.capacity() > BUFFER_BYTES_MAX {
            self.pending = Vec::new();
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(failed("flushing", &self.path))
    }

    /// Gives a complete draft its own name, durably. From then on it is the catalog.
    pub(super) fn publish(&mut self, disk: &dyn Disk, dir: &Path) -> Result<(), StorageError> {
        sealed::publish(disk, dir, &self.header, &*self.file)?;
        self.path = FileKind::Catalog.path(dir, self.header.number);
        Ok(())
    }
}
