//! Bits that flip, and files that are cut short.

use std::path::Path;

use super::disk::{Dice, TestDisk};
use super::model::{Model, open};
use super::{small, stream};
use crate::storage::disk::OpenMode;
use crate::storage::file::SyncPolicy;
use crate::storage::{Checkpoint, Group, StorageError};

const DURABLE: SyncPolicy = SyncPolicy::EachCommit;

fn group(seq: u64, frames: &[u8]) -> Group {
    Group { seq, frames: frames.to_vec().into(), ..Group::default() }
}

/// A journal of several files, and where the last record begins. Closed, or cut off after the last commit.
fn journal(is_closed: bool) -> (TestDisk, Vec<(u64, Vec<u8>)>) {
    let disk = TestDisk::new(1);
    let (mut log, _) = open(&disk, small(DURABLE)).unwrap();
    let mut committed = Vec::new();
    for seq in 1..=12 {
        let frames: Vec<u8> = (0..seq * 150).map(|at| (at % 251) as u8).collect();
        log.commit(&[group(seq, &frames)]).unwrap();
        committed.push((seq, frames));
    }
    if is_closed {
        drop(log);
    } else {
        std::mem::forget(log);
    }
    assert!(disk.files("journal").len() > 1);
    (disk, committed)
}

fn found(disk: &TestDisk) -> Result<Vec<(u64, Vec<u8>)>, StorageError> {
    let (_, opened) = open(disk, small(DURABLE))?;
    Ok(opened.groups.into_iter().map(|(number, frames)| (number, frames.to_vec())).collect())
}

/// A copy of `disk` with one bit of a file flipped.
fn flipped(disk: &TestDisk, path: &Path, at: usize, bit: usize) -> TestDisk {
    let damaged = disk.copy();
    let mut content = disk.content(path);
    content[at] ^= 1 << bit;
    damaged.overwrite(path, content);
    damaged
}

/// Where the bytes end that are not zero.
fn end_of(content: &[u8]) -> usize {
    content.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

fn is_refused(error: &StorageError, path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    matches!(error, StorageError::Corrupt(text) | StorageError::Layout(text) if text.contains(&*name))
}

#[test]
fn a_flipped_bit_in_a_durable_record_is_reported_with_its_file() {
    let (disk, committed) = journal(true);
    assert_eq!(found(&disk).unwrap(), committed);
    let paths = disk.files("journal");
    for path in &paths {
        let content = disk.content(path);
        // The last record of all only says that everything before it is durable.
        let end = if path == paths.last().unwrap() {
            end_of(&content).next_multiple_of(8) - 24
        } else {
            end_of(&content)
        };
        for at in 0..end {
            match found(&flipped(&disk, path, at, at % 8)) {
                Err(error) => assert!(is_refused(&error, path), "{} {at}: {error}", path.display()),
                Ok(_) => panic!("nobody noticed byte {at} of {end} in {}", path.display()),
            }
        }
    }
}

#[test]
fn a_flipped_bit_at_the_end_is_reported_or_takes_the_last_commit_and_nothing_else() {
    for is_closed in [false, true] {
        let (disk, committed) = journal(is_closed);
        let path = disk.files("journal").pop().unwrap();
        let content = disk.content(&path);
        let from = end_of(&content) - 1000;
        for at in from..content.len() {
            if let Ok(groups) = found(&flipped(&disk, &path, at, at % 8)) {
                let all_but_last = &committed[..committed.len() - 1];
                assert!(groups == committed || (!is_closed && groups == all_but_last), "byte {at}");
            }
        }
    }
}

#[test]
fn damage_to_the_last_commit_before_a_stop_is_noticed_also_if_only_the_stop_synced_it() {
    let disk = TestDisk::new(3);
    let (mut log, _) = open(&disk, small(SyncPolicy::OnFlush)).unwrap();
    log.commit(&[group(1, b"flushed")]).unwrap();
    log.flush().unwrap();
    log.commit(&[group(2, &[7; 100])]).unwrap();
    drop(log);
    assert_eq!(found(&disk).unwrap().len(), 2);
    let path = disk.files("journal").pop().unwrap();
    let content = disk.content(&path);
    let of_last = content.windows(100).position(|window| window == [7; 100]).unwrap();
    for at in of_last..of_last + 100 {
        let error = found(&flipped(&disk, &path, at, at % 8)).unwrap_err();
        assert!(is_refused(&error, &path), "byte {at}: {error}");
    }
}

#[test]
fn a_journal_cut_off_within_its_last_record_loses_that_one_only() {
    let (disk, committed) = journal(false);
    let path = disk.files("journal").pop().unwrap();
    let content = disk.content(&path);
    let end = end_of(&content).next_multiple_of(8);
    let start = end - (16 + 9 + committed[11].1.len()).next_multiple_of(8);
    for len in start..end {
        for keeps_length in [false, true] {
            let cut = disk.copy();
            let mut rest = content[..len].to_vec();
            if keeps_length {
                rest.resize(content.len(), 0);
            }
            cut.overwrite(&path, rest);
            let (mut log, opened) = open(&cut, small(DURABLE)).unwrap();
            let missing = committed.len() - opened.groups.len();
            assert!(missing <= 1, "{len} of {end}");
            assert!(missing == 1 || len > end - 8, "{len} of {end}");
            // What comes next goes to another file, and what was dropped stays dropped.
            log.commit(&[group(opened.next_group, b"next")]).unwrap();
            drop(log);
            let groups = found(&cut).unwrap();
            assert_eq!(groups.last(), Some(&(opened.next_group, b"next".to_vec())));
            assert_eq!(groups.len(), opened.groups.len() + 1);
        }
    }
}

#[test]
fn a_journal_file_that_is_missing_is_noticed() {
    let (disk, _) = journal(true);
    let (_, all_but_last) =
        disk.files("journal").split_last().map(|(last, rest)| (last.clone(), rest.to_vec())).unwrap();
    for path in &all_but_last {
        let damaged = disk.copy();
        crate::storage::disk::Disk::remove(&damaged, path).unwrap();
        let error = found(&damaged).unwrap_err();
        assert!(matches!(error, StorageError::Corrupt(_)), "{error}");
    }
}

#[test]
fn a_file_of_another_shard_is_refused() {
    let (disk, _) = journal(true);
    let options = small(DURABLE);
    for path in disk.files("journal") {
        let other = std::path::PathBuf::from("shard-01").join(path.file_name().unwrap());
        crate::storage::disk::Disk::rename(&disk, &path, &other).unwrap();
    }
    let error =
        crate::storage::file::ShardLog::open(&disk.as_disk(), std::path::Path::new("shard-01"), 1, options)
            .unwrap_err();
    assert!(matches!(&error, StorageError::Layout(text) if text.contains("shard 0")), "{error}");
}

/// A catalog whose journal has everything still, so that only the catalog can notice.
fn catalog() -> (TestDisk, Model, usize) {
    let disk = TestDisk::new(3);
    let (mut log, opened) = open(&disk, small(DURABLE)).unwrap();
    let mut model = Model::default();
    model.accept(&opened, false).unwrap();
    let mut dice = Dice(11);
    let mut before_last = 0;
    for _ in 0..60 {
        let before = disk.files("catalog").last().map_or(0, |path| disk.content(path).len());
        model.step(&mut log, &mut dice, DURABLE).unwrap();
        let after = disk.files("catalog").last().map_or(0, |path| disk.content(path).len());
        if after != before {
            before_last = before;
        }
    }
    drop(log);
    (disk, model, before_last)
}

#[test]
fn a_flipped_bit_in_the_catalog_is_reported_except_in_its_last_record() {
    let (disk, mut model, before_last) = catalog();
    let path = disk.files("catalog").pop().unwrap();
    assert!(before_last < disk.content(&path).len(), "the last checkpoint rewrote the catalog");
    for at in 0..before_last {
        match open(&flipped(&disk, &path, at, at % 8), small(DURABLE)) {
            Err(error) => assert!(is_refused(&error, &path), "{at}: {error}"),
            Ok(_) => panic!("nobody noticed byte {at} of {before_last}"),
        }
    }
    let (_, opened) = open(&disk, small(DURABLE)).unwrap();
    assert_eq!(model.accept(&opened, false), Ok(()));
}

#[test]
fn a_catalog_cut_off_within_its_last_record_is_what_it_was_before_or_reported() {
    let (disk, _, before_last) = catalog();
    let path = disk.files("catalog").pop().unwrap();
    let content = disk.content(&path);
    let (mut dropped, mut refused) = (0, 0);
    for len in before_last..content.len() {
        let cut = disk.copy();
        cut.overwrite(&path, content[..len].to_vec());
        match open(&cut, small(DURABLE)) {
            Ok((_, opened)) => {
                dropped += 1;
                assert_eq!(opened.dropped_bytes, (len - before_last) as u64);
            }
            // The journal was trimmed already.
            Err(error) => {
                refused += 1;
                assert!(matches!(error, StorageError::Corrupt(_)), "{error}");
            }
        }
    }
    assert!(dropped == 0 || refused == 0);
}

/// A catalog whose journal was trimmed as far as it goes. Closed, or cut off after the last checkpoint.
fn trimmed(is_closed: bool) -> TestDisk {
    let disk = TestDisk::new(5);
    let (mut log, _) = open(&disk, small(DURABLE)).unwrap();
    for seq in 1..=5 {
        let checkpoint = Checkpoint {
            streams: vec![stream(seq, vec![b'r'; 40], Vec::new())],
            trim_before: seq + 1,
            ..Checkpoint::default()
        };
        let groups =
            [Group { seq, frames: vec![1; 4000].into(), checkpoint: Some(checkpoint), ..Group::default() }];
        log.commit(&groups).unwrap();
        log.checkpoint(&groups).unwrap();
    }
    if is_closed {
        drop(log);
    } else {
        std::mem::forget(log);
    }
    let (log, opened) = open(&disk.copy(), small(DURABLE)).unwrap();
    assert_eq!((opened.streams.len(), opened.groups.len()), (5, 0));
    std::mem::forget(log);
    disk
}

#[test]
fn damage_to_the_last_record_of_the_catalog_is_noticed_when_the_journal_was_trimmed() {
    for is_closed in [true, false] {
        let disk = trimmed(is_closed);
        let path = disk.files("catalog").pop().unwrap();
        let content = disk.content(&path);
        for at in 0..content.len() {
            let error = open(&flipped(&disk, &path, at, at % 8), small(DURABLE)).map(drop).unwrap_err();
            assert!(is_refused(&error, &path), "byte {at}: {error}");
            let cut = disk.copy();
            cut.overwrite(&path, content[..at].to_vec());
            let error = open(&cut, small(DURABLE)).map(drop).unwrap_err();
            assert!(is_refused(&error, &path), "cut at {at}: {error}");
        }
    }
}

#[test]
fn a_catalog_or_journal_that_is_missing_is_noticed() {
    for is_closed in [true, false] {
        let disk = trimmed(is_closed);
        for prefix in ["catalog", "journal"] {
            let damaged = disk.copy();
            for path in disk.files(prefix) {
                crate::storage::disk::Disk::remove(&damaged, &path).unwrap();
            }
            let error = open(&damaged, small(DURABLE)).map(drop).unwrap_err();
            assert!(matches!(&error, StorageError::Corrupt(why) if why.contains(prefix)), "{error}");
        }
    }
}

#[test]
fn segments_without_catalog_and_journal_are_refused() {
    let disk = TestDisk::new(1);
    let segment = Path::new("shard-00/segment-0000000000000000.seg");
    crate::storage::disk::Disk::open(&disk, segment, OpenMode::Create).unwrap();
    let error = open(&disk, small(DURABLE)).map(drop).unwrap_err();
    assert!(matches!(&error, StorageError::Corrupt(why) if why.contains("segments")), "{error}");
}

#[test]
fn what_a_rewriting_of_the_catalog_copied_is_missed_when_it_is_gone() {
    let disk = TestDisk::new(5);
    let (mut log, _) = open(&disk, small(DURABLE)).unwrap();
    let mut seq = 0;
    while disk.files("catalog-0000000000000002").is_empty() {
        seq += 1;
        let streams = vec![stream(seq % 3, vec![b'r'; 300], Vec::new())];
        let groups = [Group {
            seq,
            frames: vec![1; 10].into(),
            checkpoint: Some(Checkpoint { streams, trim_before: seq + 1, ..Checkpoint::default() }),
            ..Group::default()
        }];
        log.commit(&groups).unwrap();
        log.checkpoint(&groups).unwrap();
    }
    std::mem::forget(log);
    let path = disk.files("catalog").pop().unwrap();
    let content = disk.content(&path);
    for len in (0..content.len()).step_by(8) {
        let cut = disk.copy();
        cut.overwrite(&path, content[..len].to_vec());
        assert!(open(&cut, small(DURABLE)).is_err(), "cut at {len}");
    }
}
