//! Checks every byte of segment files. Whatever they hold, the outcome is a list.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::SegmentMeta;
use super::file::{Segment, io_failed, open_segment, read_at};
use super::format::{BLOCK_STRIDE, FooterRuns, HEADER_BYTES, RunEntry, TRAILER_BYTES, open_block};
use crate::storage::StorageError;
use crate::storage::disk::{Disk, DiskFile, OpenMode};

/// Something that is wrong with a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Its file, within the data directory.
    pub(crate) path: PathBuf,
    /// Which content is affected: stream id and positions. `None` = all of the file.
    pub(crate) content: Option<(u64, Range<u64>)>,
    /// What is wrong.
    pub(crate) what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            None => f.write_str(&self.what),
            Some((stream, positions)) => write!(
                f,
                "{}: stream {stream}, positions {} to {}: {}",
                self.path.display(),
                positions.start,
                positions.end,
                self.what
            ),
        }
    }
}

#[cfg(test)]
impl super::SegmentStore {
    /// Reads all of every live segment, dead runs included. `progress` is told of bytes read; in the end, of
    /// [`Self::disk_bytes`] if all went well. Segments that are removed meanwhile are passed over.
    pub(crate) fn verify(&self, progress: &mut dyn FnMut(u64)) -> Vec<Finding> {
        let mut findings = Vec::new();
        for meta in self.segments() {
            let found = verify_segment(&*self.disk, &self.dir, self.shard, &meta, progress);
            if self.index().segment(meta.id).is_some() {
                findings.extend(found);
            }
        }
        findings
    }
}

/// Reads all of a segment that the catalog of a shard lists; for a shard that cannot be opened.
pub(crate) fn verify_segment(
    disk: &dyn Disk,
    dir: &Path,
    shard: u32,
    meta: &SegmentMeta,
    progress: &mut dyn FnMut(u64),
) -> Vec<Finding> {
    let mut findings = Findings { path: super::format::file_path(dir, meta.id), found: Vec::new() };
    let (segment, footer) = match open_segment(disk, dir, shard, meta) {
        Ok(opened) => opened,
        Err(error) => {
            findings.add_of_file(&error);
            return findings.found;
        }
    };
    let file = match disk.open(&segment.path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) => {
            findings.add_of_file(&io_failed("opening", &segment.path, error));
            return findings.found;
        }
    };
    progress(HEADER_BYTES as u64 + footer.len() as u64 + TRAILER_BYTES as u64);
    let mut buffer = vec![0; BLOCK_STRIDE];
    for run in FooterRuns::new(&segment.trailer, footer) {
        match run {
            Ok(run) => verify_run(&segment, &*file, &run, &mut buffer, progress, &mut findings),
            Err(why) => findings.add_of_file(&segment.corrupt(why)),
        }
    }
    findings.found
}

/// Each block on its own, so that one that cannot be read does not hide others.
fn verify_run(
    segment: &Segment,
    file: &dyn DiskFile,
    run: &RunEntry,
    buffer: &mut [u8],
    progress: &mut dyn FnMut(u64),
    findings: &mut Findings,
) {
    let mut start = run.start;
    while start < run.end() {
        let end = start + run.block_payload_bytes(start) as u64;
        let bytes = &mut buffer[..super::format::BLOCK_HEADER_BYTES + (end - start) as usize];
        match read_at(segment, file, run.block_offset(start), bytes) {
            Ok(()) => {
                if let Err(why) = open_block(segment.key, run.stream, start, bytes) {
                    findings.add(run.stream, start..end, why);
                }
            }
            Err(error) => findings.add(run.stream, start..end, &error.to_string()),
        }
        progress(bytes.len() as u64);
        start = end;
    }
}

#[derive(Debug)]
struct Findings {
    path: PathBuf,
    found: Vec<Finding>,
}

impl Findings {
    fn add_of_file(&mut self, error: &StorageError) {
        self.found.push(Finding { path: self.path.clone(), content: None, what: error.to_string() });
    }

    /// What is wrong with neighbours is one finding.
    fn add(&mut self, stream: u64, positions: Range<u64>, what: &str) {
        if let Some(last) = self.found.last_mut()
            && let Some((last_stream, last_positions)) = &mut last.content
            && *last_stream == stream
            && last_positions.end == positions.start
            && last.what == what
        {
            last_positions.end = positions.end;
            return;
        }
        let content = Some((stream, positions));
        self.found.push(Finding { path: self.path.clone(), content, what: what.to_owned() });
    }
}
