//! Writes a segment file from front to back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::SegmentMeta;
use super::file::{Segment, io_failed};
use super::format::{
    BLOCK_BYTES, BLOCK_HEADER_BYTES, BLOCK_STRIDE, FooterBuilder, FooterRuns, SegmentKey, encode_header,
    file_path, seal_block,
};
use crate::storage::StorageError;
use crate::storage::disk::{Disk, DiskFile, OpenMode};

/// Most bytes that wait to be written.
const WRITE_BYTES: usize = 1 << 20;
/// Bytes after which a file that is being written is synced, though it means nothing before it is complete: one sync
/// for all of a large file would hold up those of the journal on the same disk.
const SYNC_BYTES: u64 = 8 << 20;

/// A segment that is on disk and in no checkpoint yet.
///
/// Dropping it leaves the file where it is: whether a commit that failed made it part of the catalog is not known. If
/// it did not, the next opening removes the file.
#[derive(Debug)]
pub(crate) struct PreparedSegment {
    pub(super) segment: Arc<Segment>,
    pub(super) footer: Bytes,
    /// What the runs were copied from, if this is a rewrite.
    pub(super) sources: Option<Vec<u64>>,
}

impl PreparedSegment {
    /// What the catalog keeps of it.
    pub(crate) fn meta(&self) -> SegmentMeta {
        self.segment.meta()
    }

    pub(super) fn runs(&self) -> FooterRuns {
        FooterRuns::new(&self.segment.trailer, self.footer.clone())
    }
}

/// A segment file being written. Its bytes mean nothing before [`SegmentWriter::finish`].
#[derive(Debug)]
pub(super) struct SegmentWriter {
    key: SegmentKey,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// Not written yet. Ends within the block at hand.
    buffer: Vec<u8>,
    /// Bytes of file before the buffer.
    written: u64,
    synced: u64,
    footer: FooterBuilder,
    run: Option<OpenRun>,
    limits: RunLimits,
}

/// How long runs get.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunLimits {
    /// Parts are joined up to here.
    pub(super) joined_bytes_max: u32,
    /// What is longer is split.
    pub(super) bytes_max: u32,
}

/// The run at hand and its last block.
#[derive(Debug)]
struct OpenRun {
    stream: u64,
    start: u64,
    len: u32,
    /// Where the block's header is in the buffer. There is none before the block's first byte.
    block_at: usize,
    block_len: usize,
    boundary: Option<u32>,
}

impl OpenRun {
    fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }
}

impl SegmentWriter {
    /// Makes the file.
    pub(super) fn create(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        key: SegmentKey,
        limits: RunLimits,
    ) -> Result<Self, StorageError> {
        let path = file_path(dir, key.id);
        let file = disk.open(&path, OpenMode::Create).map_err(|error| {
            // It may have been made for all that.
            let _ = disk.remove(&path);
            io_failed("creating", &path, error)
        })?;
        let mut buffer = Vec::with_capacity(WRITE_BYTES);
        buffer.extend_from_slice(&encode_header(key));
        Ok(Self {
            key,
            disk: Arc::clone(disk),
            dir: dir.to_owned(),
            path,
            file,
            buffer,
            written: 0,
            synced: 0,
            footer: FooterBuilder::default(),
            run: None,
            limits,
        })
    }

    /// Bytes written to the file so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Says that what is pushed next, `len` bytes of it, is of `stream` and begins at `start`: as a part of the run
    /// at hand if it continues it, otherwise as one of its own. Runs come in order of stream and position.
    pub(super) fn begin(&mut self, stream: u64, start: u64, len: u64) {
        if let Some(run) = &self.run {
            let continues = run.stream == stream && run.end() == start;
            if continues && u64::from(run.len) + len <= self.limits.joined_bytes_max.into() {
                return;
            }
            self.end_run();
        }
        self.run = Some(OpenRun { stream, start, len: 0, block_at: 0, block_len: 0, boundary: None });
    }

    /// Says that a message begins at the byte that is pushed next.
    pub(super) fn mark_boundary(&mut self) {
        self.split_if_full();
        if let Some(run) = &mut self.run
            && run.boundary.is_none()
        {
            // Less than a block, so it fits.
            run.boundary = Some(run.block_len as u32);
        }
    }

    /// Adds bytes to the run at hand.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), StorageError> {
        while !bytes.is_empty() {
            self.split_if_full();
            let run = self.run.as_mut().expect("bytes are pushed into a run");
            if run.block_len == 0 {
                run.block_at = self.buffer.len();
                self.buffer.extend_from_slice(&[0; BLOCK_HEADER_BYTES]);
            }
            let room = (BLOCK_BYTES - run.block_len).min((self.limits.bytes_max - run.len) as usize);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            run.block_len += now.len();
            run.len += now.len() as u32;
            if run.block_len == BLOCK_BYTES {
                self.seal();
                self.flush_if_full()?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Goes on with the same stream in another run if the one at hand is as long as a run may be.
    fn split_if_full(&mut self) {
        let Some(run) = &self.run else { return };
        if run.len >= self.limits.bytes_max {
            let (stream, start) = (run.stream, run.end());
            self.end_run();
            self.begin(stream, start, 0);
        }
    }

    fn seal(&mut self) {
        let run = self.run.as_mut().expect("only a run at hand has a block");
        let block = &mut self.buffer[run.block_at..];
        debug_assert_eq!(block.len(), BLOCK_HEADER_BYTES + run.block_len);
        let start = run.end() - run.block_len as u64;
        // A boundary at the end of a block is the next block's, or the next run's.
        let boundary = run.boundary.take().filter(|&boundary| (boundary as usize) < run.block_len);
        seal_block(self.key, run.stream, start, boundary, block);
        run.block_len = 0;
    }

    fn end_run(&mut self) {
        if self.run.as_ref().is_some_and(|run| run.block_len > 0) {
            self.seal();
        }
        if let Some(run) = self.run.take()
            && run.len > 0
        {
            self.footer.add(run.stream, run.start, run.len);
        }
    }

    /// Called where the buffer ends with a whole block.
    fn flush_if_full(&mut self) -> Result<(), StorageError> {
        if self.buffer.len() + BLOCK_STRIDE > WRITE_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        let outcome = self.file.write_at(self.written, &self.buffer);
        outcome.map_err(|error| io_failed("writing", &self.path, error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        if self.written - self.synced >= SYNC_BYTES { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(|error| io_failed("syncing", &self.path, error))?;
        self.synced = self.written;
        Ok(())
    }

    /// Makes the file complete and durable, name included. What fails leaves no file behind, as far as it can be
    /// helped.
    pub(super) fn finish(mut self, sources: Option<Vec<u64>>) -> Result<PreparedSegment, StorageError> {
        match self.complete(sources) {
            Ok(prepared) => Ok(prepared),
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    fn complete(&mut self, sources: Option<Vec<u64>>) -> Result<PreparedSegment, StorageError> {
        self.end_run();
        let footer_offset = self.written + self.buffer.len() as u64;
        let (footer, trailer) = std::mem::take(&mut self.footer).finish(footer_offset);
        let (encoded, footer_crc) = trailer.encode(self.key, &footer);
        if self.buffer.len() + footer.len() + encoded.len() > WRITE_BYTES {
            self.flush()?;
        }
        if footer.len() + encoded.len() > WRITE_BYTES {
            // The footer is in RAM already, and need not be there twice.
            let outcome = self.file.write_at(self.written, &footer);
            outcome.map_err(|error| io_failed("writing", &self.path, error))?;
            self.written += footer.len() as u64;
        } else {
            self.buffer.extend_from_slice(&footer);
        }
        self.buffer.extend_from_slice(&encoded);
        self.flush()?;
        if self.synced < self.written {
            self.sync()?;
        }
        self.disk.sync_dir(&self.dir).map_err(|error| io_failed("syncing", &self.dir, error))?;
        let meta = SegmentMeta { id: self.key.id, file_bytes: self.written, footer_crc };
        let segment = Arc::new(Segment::new(self.key, self.path.clone(), &meta, trailer));
        Ok(PreparedSegment { segment, footer: footer.into(), sources })
    }

    /// Gives up, and removes the file. If that fails too, the next opening does it.
    pub(super) fn abandon(self) {
        if let Err(error) = self.disk.remove(&self.path) {
            tracing::warn!(
                path = %self.path.display(), %error,
                "a segment file that was not completed could not be removed; the next start does it"
            );
        }
    }
}
