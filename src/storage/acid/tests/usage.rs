//! The account of the disk that rows take.

use bytes::Bytes;

use super::*;
use crate::storage::acid::usage::FIXED_BYTES;
use crate::storage::{Checkpoint, StreamCheckpoint};

const MB: u64 = 1_000_000;

/// Group `seq`: settles `bytes` more of stream `id` from `start` on, and trims the journal.
fn settling(seq: u64, id: u64, start: u64, bytes: u64) -> Group {
    let payload = vec![Bytes::from(vec![7; 1000]); bytes as usize / 1000];
    let producers = vec![("p".into(), 1, seq)];
    let stream = StreamCheckpoint { id, record: vec![1; 50], producers, start, payload };
    let checkpoint = Checkpoint { streams: vec![stream], trim_before: seq, ..Checkpoint::default() };
    Group { seq, frames: vec![2; 500], checkpoint: Some(checkpoint) }
}

fn removing(seq: u64, removed: Vec<u64>) -> Group {
    let checkpoint = Checkpoint { removed, trim_before: seq + 1, ..Checkpoint::default() };
    Group { seq, frames: Vec::new(), checkpoint: Some(checkpoint) }
}

fn in_files(directory: &tempfile::TempDir) -> AcidLog {
    AcidLog::new(AcidOptions { cache_bytes: 4 << 20, ..AcidOptions::new(directory.path()) }).unwrap()
}

#[test]
fn content_counts_about_once_and_no_longer_than_it_is_stored() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    assert_eq!(log.disk_bytes(), 0);
    log.commit(&mut [settling(1, 1, 0, 40 * MB)]).unwrap();
    let full = log.disk_bytes();
    assert!((40 * MB..46 * MB).contains(&full), "{full}");
    // Too much for one step: what is left counts until it is reclaimed.
    log.commit(&mut [removing(2, vec![1])]).unwrap();
    let mut before = log.disk_bytes();
    assert!((MB..full).contains(&before), "{before}");
    while log.reclaim().unwrap() {
        assert!(log.disk_bytes() < before);
        before = log.disk_bytes();
    }
    assert_eq!(log.disk_bytes(), 0);
}

#[test]
fn the_room_of_removed_streams_is_free_whatever_size_the_file_keeps() {
    let directory = tempfile::tempdir().unwrap();
    let acid = in_files(&directory);
    let (mut log, _) = acid.open(0).unwrap();
    assert!(log.disk_bytes() <= FIXED_BYTES);
    for seq in 1..=16 {
        log.commit(&mut [settling(seq, 1, (seq - 1) * MB, MB)]).unwrap();
    }
    let full = log.disk_bytes();
    assert!(full >= 16 * MB, "{full}");
    log.commit(&mut [removing(17, vec![1])]).unwrap();
    while log.reclaim().unwrap() {}
    assert!(log.disk_bytes() <= FIXED_BYTES);
    drop(log);
    let (log, _) = acid.open(0).unwrap();
    assert!(log.disk_bytes() <= FIXED_BYTES);
}

#[test]
fn a_database_without_an_account_gets_one_when_it_is_opened() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    log.commit(&mut [settling(1, 1, 0, MB), settling(2, 2, 0, MB), group(3, vec![7; 9000])]).unwrap();
    let expected = log.disk_bytes();
    {
        let database = acid.shards[0].database.read().unwrap();
        let transaction = database.as_ref().unwrap().begin_write().unwrap();
        assert!(transaction.open_table(SYS).unwrap().remove(SYS_SETTLED_BYTES).unwrap().is_some());
        transaction.commit().unwrap();
    }
    drop(log);
    let (mut log, _) = acid.open(0).unwrap();
    assert_eq!(log.disk_bytes(), expected);
    let (settled, journal) = usage_of_tables(&acid);
    assert_eq!(settled + journal, expected);
    log.commit(&mut [removing(4, vec![1, 2])]).unwrap();
    assert_eq!(log.disk_bytes(), 0);
}
