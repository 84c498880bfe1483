//! A segment file that exists: opening it, keeping few of them open, and reading verified blocks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::SegmentMeta;
use super::format::{
    BLOCK_BYTES, BLOCK_HEADER_BYTES, BLOCK_STRIDE, Block, HEADER_BYTES, RunEntry, SegmentKey, TRAILER_BYTES,
    Trailer, check_header, file_path, open_block,
};
use crate::storage::StorageError;
use crate::storage::disk::{Disk, DiskFile, OpenMode};

/// Blocks that are read at once: what a reader has in RAM besides what it hands out.
const READ_BLOCKS: usize = 8;

/// Our error for one of the operating system; `doing` something with `path` failed.
pub(super) fn io_failed(doing: &str, path: &Path, error: io::Error) -> StorageError {
    let context = format!("{doing} {}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StorageError::DiskFull(format!("{context}: {error}"))
        }
        io::ErrorKind::UnexpectedEof => {
            StorageError::Corrupt(format!("{}: it ends too early", path.display()))
        }
        _ => StorageError::Io { context, source: error },
    }
}

/// What is known of a complete segment file.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) key: SegmentKey,
    pub(super) path: PathBuf,
    pub(super) file_bytes: u64,
    pub(super) footer_crc: u32,
    pub(super) trailer: Trailer,
    /// Its file is about to be removed: a descriptor of it is not to be kept.
    gone: AtomicBool,
}

impl Segment {
    pub(super) fn new(key: SegmentKey, path: PathBuf, meta: &SegmentMeta, trailer: Trailer) -> Self {
        let &SegmentMeta { file_bytes, footer_crc, .. } = meta;
        Self { key, path, file_bytes, footer_crc, trailer, gone: AtomicBool::new(false) }
    }

    pub(super) fn meta(&self) -> SegmentMeta {
        SegmentMeta { id: self.key.id, file_bytes: self.file_bytes, footer_crc: self.footer_crc }
    }

    pub(super) fn corrupt(&self, why: impl std::fmt::Display) -> StorageError {
        corrupt(&self.path, why)
    }

    pub(super) fn corrupt_block(&self, stream: u64, position: u64, why: &str) -> StorageError {
        self.corrupt(format_args!("stream {stream}, position {position}: {why}"))
    }
}

/// Data of the file `path` is wrong.
pub(super) fn corrupt(path: &Path, why: impl std::fmt::Display) -> StorageError {
    StorageError::Corrupt(format!("{}: {why}", path.display()))
}

/// Reads what is needed to know a file's runs, and checks it against what the catalog has: header, trailer and footer.
pub(super) fn open_segment(
    disk: &dyn Disk,
    dir: &Path,
    shard: u32,
    meta: &SegmentMeta,
) -> Result<(Segment, Bytes), StorageError> {
    let key = SegmentKey { shard, id: meta.id };
    let path = file_path(dir, meta.id);
    let file = disk.open(&path, OpenMode::Read).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => corrupt(&path, "the file is not there"),
        _ => io_failed("opening", &path, error),
    })?;
    let (trailer, footer) = read_footer(&*file, &path, key, meta)?;
    Ok((Segment::new(key, path, meta, trailer), footer))
}

/// See [`open_segment`]. Nothing is allocated before the file is known to be as long as the catalog says.
pub(super) fn read_footer(
    file: &dyn DiskFile,
    path: &Path,
    key: SegmentKey,
    meta: &SegmentMeta,
) -> Result<(Trailer, Bytes), StorageError> {
    let failed = |error| io_failed("reading", path, error);
    let found = file.len().map_err(failed)?;
    if found != meta.file_bytes {
        let why = format!("it has {found} bytes, where {} are on record", meta.file_bytes);
        return Err(corrupt(path, why));
    }
    if found < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Err(corrupt(path, "it is too short for a segment file"));
    }
    let mut header = [0; HEADER_BYTES];
    file.read_at(0, &mut header).map_err(failed)?;
    check_header(key, &header).map_err(|why| corrupt(path, why))?;
    let mut trailer = [0; TRAILER_BYTES];
    file.read_at(found - TRAILER_BYTES as u64, &mut trailer).map_err(failed)?;
    let trailer = Trailer::decode(meta, key, &trailer).map_err(|why| corrupt(path, why))?;
    let footer_bytes =
        usize::try_from(trailer.footer_bytes).map_err(|_| corrupt(path, "its footer is too long"))?;
    let mut footer = vec![0; footer_bytes];
    file.read_at(trailer.footer_offset, &mut footer).map_err(failed)?;
    trailer.check_footer(key, meta.footer_crc, &footer).map_err(|why| corrupt(path, why))?;
    Ok((trailer, footer.into()))
}

/// Reads `out.len()` bytes at `offset` of a segment's file.
pub(super) fn read_at(
    segment: &Segment,
    file: &dyn DiskFile,
    offset: u64,
    out: &mut [u8],
) -> Result<(), StorageError> {
    file.read_at(offset, out).map_err(|error| io_failed("reading", &segment.path, error))
}

/// Checks a block of a segment.
pub(super) fn verified<'a>(
    segment: &Segment,
    stream: u64,
    start: u64,
    bytes: &'a [u8],
) -> Result<Block<'a>, StorageError> {
    open_block(segment.key, stream, start, bytes).map_err(|why| segment.corrupt_block(stream, start, why))
}

/// Hands the blocks of a run that hold positions `from..to` (at least one) to `each`, in order. `buffer` is used
/// again by whoever reads several runs.
pub(super) fn read_blocks(
    segment: &Segment,
    file: &dyn DiskFile,
    run: &RunEntry,
    (from, to): (u64, u64),
    buffer: &mut Vec<u8>,
    each: &mut dyn FnMut(Block<'_>),
) -> Result<(), StorageError> {
    debug_assert!(run.start <= from && from < to && to <= run.end());
    let mut at = run.block_start(from);
    while at < to {
        let wanted = (to - at).div_ceil(BLOCK_BYTES as u64).min(READ_BLOCKS as u64) as usize;
        // The last block of a run may be shorter than the others.
        let end = run.end().min(at + (wanted * BLOCK_BYTES) as u64);
        let span = (end - at) as usize + wanted * BLOCK_HEADER_BYTES;
        if buffer.len() < span {
            buffer.resize(span, 0);
        }
        let bytes = &mut buffer[..span];
        read_at(segment, file, run.block_offset(at), bytes)?;
        for bytes in bytes.chunks(BLOCK_STRIDE) {
            let block = verified(segment, run.stream, at, bytes)?;
            at = block.end();
            each(block);
        }
    }
    Ok(())
}

/// Descriptors of segment files: those used last are kept open, others are opened when they are needed.
///
/// Whoever got one may go on with it whatever becomes of the file. So there are as many descriptors as are kept, and
/// one for each read under way.
#[derive(Debug)]
pub(super) struct Descriptors {
    disk: Arc<dyn Disk>,
    max: usize,
    open: Mutex<Open>,
}

/// Whether the process, or the machine, may open no more files.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        Errno::from_io_error(error).is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE))
    }
    #[cfg(not(unix))]
    {
        let _ = error;
        false
    }
}

#[derive(Debug, Default)]
struct Open {
    files: Vec<OpenFile>,
    /// Counts uses, to tell which file was used last.
    uses: u64,
}

#[derive(Debug)]
struct OpenFile {
    id: u64,
    last_use: u64,
    file: Arc<dyn DiskFile>,
}

impl Open {
    fn get(&mut self, id: u64) -> Option<Arc<dyn DiskFile>> {
        let found = self.files.iter_mut().find(|open| open.id == id)?;
        self.uses += 1;
        found.last_use = self.uses;
        Some(Arc::clone(&found.file))
    }

    fn take_oldest(&mut self) -> Option<OpenFile> {
        let oldest = self.files.iter().enumerate().min_by_key(|(_, file)| file.last_use);
        oldest.map(|(at, _)| at).map(|at| self.files.swap_remove(at))
    }
}

impl Descriptors {
    /// Keeps at most `max`, at least 1, open.
    pub(super) fn new(disk: Arc<dyn Disk>, max: usize) -> Self {
        Self { disk, max: max.max(1), open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segment's file. [`io::ErrorKind::NotFound`] if it was removed.
    pub(super) fn get(&self, segment: &Segment) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.open().get(segment.key.id) {
            return Ok(file);
        }
        // Not under the lock: others read meanwhile. If two open the same file, one of the descriptors is dropped.
        let file = loop {
            match self.disk.open(&segment.path, OpenMode::Read) {
                // What is kept open is kept for speed alone.
                Err(error) if is_out_of_descriptors(&error) && self.close_oldest() => {}
                opened => break opened?,
            }
        };
        let mut open = self.open();
        if segment.gone.load(Ordering::Relaxed) {
            return Ok(file);
        }
        if let Some(file) = open.get(segment.key.id) {
            return Ok(file);
        }
        let closed = if open.files.len() >= self.max { open.take_oldest() } else { None };
        open.uses += 1;
        let last_use = open.uses;
        open.files.push(OpenFile { id: segment.key.id, last_use, file: Arc::clone(&file) });
        drop(open);
        drop(closed);
        Ok(file)
    }

    /// Closes the file that was used longest ago. `false` = none is kept open.
    fn close_oldest(&self) -> bool {
        let oldest = self.open().take_oldest();
        oldest.is_some()
    }

    /// Closes the segment's file, and keeps it from being kept open again: its room is wanted.
    pub(super) fn close(&self, segment: &Segment) {
        // Whoever is about to keep a descriptor takes the lock first: either it sees this, or it is found below.
        segment.gone.store(true, Ordering::Relaxed);
        let mut open = self.open();
        let at = open.files.iter().position(|file| file.id == segment.key.id);
        let closed = at.map(|at| open.files.swap_remove(at));
        drop(open);
        drop(closed);
    }

    #[cfg(test)]
    pub(super) fn kept_open(&self) -> usize {
        self.open().files.len()
    }
}
