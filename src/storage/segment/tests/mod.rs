//! Content is a function of stream and position, so that any bytes read anywhere can be judged.

mod concurrent;
mod damage;
#[path = "../../../../tests/support/ending.rs"]
mod ending;
mod faults;
mod format;
mod holding;
mod model;
mod rewriting;
mod single;
mod watched_disk;

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use proptest::test_runner::Config as ProptestConfig;

use super::*;
use crate::storage::disk::{Disk, MemoryDisk, OpenMode};
use crate::storage::{ColdReader, StorageError};

const BLOCK: u64 = super::format::BLOCK_BYTES as u64;

/// Sets the number of cases, unless `PROPTEST_CASES` does. What failed is printed, not kept in a file.
fn cases(count: u32) -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = count;
    }
    config
}

/// The content of `stream` at `positions`.
fn content(stream: u64, positions: Range<u64>) -> Vec<u8> {
    let word = |at: u64| (stream.rotate_left(40) ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    let skipped = positions.start % 8;
    let words = positions.start / 8..positions.end.div_ceil(8);
    let mut bytes: Vec<u8> = words.flat_map(word).collect();
    bytes.drain(..skipped as usize);
    bytes.truncate(positions.end.saturating_sub(positions.start) as usize);
    bytes
}

/// A run of `stream` from `start` on, in messages of the given lengths.
fn run(stream: u64, start: u64, messages: &[u64]) -> RunSource {
    let mut at = start;
    let mut piece = |&len: &u64| {
        at += len;
        Bytes::from(content(stream, at - len..at))
    };
    RunSource { stream, start, pieces: messages.iter().map(&mut piece).collect() }
}

fn dir() -> PathBuf {
    PathBuf::from("shard-03")
}

fn new_disk() -> MemoryDisk {
    let disk = MemoryDisk::new();
    disk.create_dir(&dir()).unwrap();
    disk
}

fn open(
    disk: &MemoryDisk,
    live: &[SegmentMeta],
    keep: &[(u64, Range<u64>)],
) -> Result<SegmentStore, StorageError> {
    SegmentStore::open(Arc::new(disk.clone()), 3, dir(), live, 0, keep.to_vec())
}

fn new_store(disk: &MemoryDisk) -> SegmentStore {
    open(disk, &[], &[]).unwrap()
}

/// Writes and publishes.
fn settle(store: &SegmentStore, runs: Vec<RunSource>) -> SegmentMeta {
    let prepared = store.write_segment(runs).unwrap();
    let meta = prepared.meta();
    store.publish(vec![prepared], &[]).unwrap();
    meta
}

/// Rewrites all of `segments` and publishes. `None` if nothing in them was alive.
fn rewrite(store: &SegmentStore, segments: &[u64]) -> Option<SegmentMeta> {
    let plan = RewritePlan { segments: segments.to_vec(), live_bytes: 0 };
    let prepared = store.rewrite(plan, &mut |_| ControlFlow::Continue(())).unwrap()?;
    let meta = prepared.meta();
    store.publish(vec![prepared], segments).unwrap();
    Some(meta)
}

fn read(store: &SegmentStore, stream: u64, positions: Range<u64>) -> Result<Vec<u8>, StorageError> {
    (store as &dyn ColdReader).read_whole(stream, positions.start, positions.end)
}

#[track_caller]
fn check_read(store: &SegmentStore, stream: u64, positions: Range<u64>) {
    assert_eq!(read(store, stream, positions.clone()).unwrap(), content(stream, positions));
}

#[track_caller]
fn check_missing(store: &SegmentStore, stream: u64, positions: Range<u64>) {
    let outcome = read(store, stream, positions);
    assert!(matches!(outcome, Err(StorageError::Missing)), "{outcome:?}");
}

/// Names of the segment files that exist.
fn files(disk: &dyn Disk) -> Vec<String> {
    disk.list(&dir()).unwrap().into_iter().map(|entry| entry.name).collect()
}

fn file_bytes(disk: &MemoryDisk, id: u64) -> Vec<u8> {
    let file = disk.open(&super::format::file_path(&dir(), id), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

fn put_file(disk: &MemoryDisk, id: u64, bytes: &[u8]) {
    let file = disk.open(&super::format::file_path(&dir(), id), OpenMode::Create).unwrap();
    file.write_at(0, bytes).unwrap();
}
