//! The account of the disk that rows take, and what a compaction gives back.

use super::*;
use crate::storage::CommitLog;
use crate::storage::acid::usage::FIXED_BYTES;

const MIB: u64 = 1 << 20;

/// What the database's file of shard 0 takes of its disk.
fn file_bytes(acid: &AcidLog) -> u64 {
    let file =
        acid.directory.disk().open(&acid.directory.shard_dir(0).join(SHARD_FILE), OpenMode::Read).unwrap();
    file.allocated_bytes().unwrap()
}

fn trimming(seq: u64) -> Group {
    with_checkpoint(seq, Checkpoint { trim_before: seq + 1, ..Checkpoint::default() })
}

fn in_files(directory: &tempfile::TempDir) -> AcidLog {
    AcidLog::new(AcidOptions { cache_bytes: 4 << 20, ..AcidOptions::new(directory.path()) }).unwrap()
}

/// Reclaims as the commit thread does: until there is nothing more.
fn reclaim(log: &mut dyn CommitLog) {
    while log.reclaim().unwrap() {}
}

#[test]
fn frames_count_about_once_and_no_longer_than_they_are_needed() {
    let acid = without_database_files();
    let mut opened = acid.open(0).unwrap();
    assert_eq!(opened.log.disk_bytes(), FIXED_BYTES);
    for seq in 0..10 {
        opened.log.commit(&mut [group(seq, vec![7; MIB as usize])]).unwrap();
    }
    let full = opened.log.disk_bytes();
    assert!((10 * MIB..11 * MIB + FIXED_BYTES).contains(&full), "{full}");
    opened.log.commit(&mut [trimming(10)]).unwrap();
    assert_eq!(opened.log.disk_bytes(), FIXED_BYTES);
}

#[test]
fn records_producers_and_listed_segments_count_until_they_are_removed() {
    let acid = without_database_files();
    let mut opened = acid.open(0).unwrap();
    let mut before = opened.log.disk_bytes();
    for seq in 1..=20 {
        let mut checkpoint = settling(seq, 0, vec![vec![7; 100].into()]);
        checkpoint.streams[0].producers = vec![(vec![b'p'; 50].into(), 1, seq)];
        carry_out(&mut opened, vec![with_checkpoint(seq, checkpoint)]);
        let now = opened.log.disk_bytes();
        assert!((before + 120..before + 400).contains(&now), "{before}, then {now}");
        before = now;
    }
    carry_out(&mut opened, vec![with_checkpoint(21, settling(1, 100, Vec::new()))]);
    assert_eq!(opened.log.disk_bytes(), before, "a record that is replaced counts once");
    let removed = Checkpoint { removed: (1..=20).collect(), ..Checkpoint::default() };
    carry_out(&mut opened, vec![with_checkpoint(22, removed)]);
    let segments_removed = opened.segments.dead_segments();
    assert_eq!(segments_removed.len(), 20);
    let given_up = Checkpoint { segments_removed, ..Checkpoint::default() };
    carry_out(&mut opened, vec![with_checkpoint(23, given_up)]);
    assert_eq!((opened.log.disk_bytes(), opened.segments.disk_bytes()), (FIXED_BYTES, 0));
}

#[test]
fn a_compaction_gives_back_what_a_database_does_not_need_any_more() {
    let directory = tempfile::tempdir().unwrap();
    for acid in [in_files(&directory), in_memory()] {
        let mut opened = acid.open(0).unwrap();
        let new = file_bytes(&acid);
        for seq in 1..=24 {
            let mut batch = vec![group(seq, vec![7; MIB as usize])];
            if seq % 4 == 0 {
                batch = vec![Group {
                    frames: vec![7; MIB as usize].into(),
                    ..with_checkpoint(seq, settling(seq, 0, vec![vec![7; 1000].into()]))
                }];
            }
            carry_out(&mut opened, batch);
        }
        assert!(file_bytes(&acid) > 20 * MIB);
        let removed = Checkpoint { removed: (1..=24).collect(), trim_before: 26, ..Checkpoint::default() };
        carry_out(&mut opened, vec![with_checkpoint(25, removed)]);
        let given_up =
            Checkpoint { segments_removed: opened.segments.dead_segments(), ..Checkpoint::default() };
        carry_out(&mut opened, vec![with_checkpoint(26, given_up)]);
        assert!(opened.log.disk_bytes() <= FIXED_BYTES, "what is not needed counts as room at once");
        assert!(file_bytes(&acid) > 20 * MIB, "nobody compacts before there is time for it");
        reclaim(&mut *opened.log);
        let taken = file_bytes(&acid);
        assert!(taken <= new + 2 * MIB + FIXED_BYTES, "{new} when it was new, then {taken}");
        assert!(segment_files(&acid).is_empty());
        // It is a working database still.
        opened.log.commit(&mut [group(27, "after")]).unwrap();
        drop(opened);
        let opened = acid.open(0).unwrap();
        assert_eq!(opened.recovered.groups, [(27, "after".into())]);
        assert!(opened.log.disk_bytes() <= file_bytes(&acid));
    }
}

#[test]
fn page_logs_that_take_more_than_the_database_become_as_short_as_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let acid = in_files(&directory);
    let logs = || ["pages-0.log", "pages-1.log"].map(|name| acid.directory.shard_dir(0).join(name));
    let taken = || logs().map(|log| std::fs::metadata(directory.path().join(log)).unwrap().len());
    let mut opened = acid.open(0).unwrap();
    let new = taken();
    for seq in 1..=700 {
        opened.log.commit(&mut [group(seq, vec![7; 15_000])]).unwrap();
    }
    let full = taken();
    assert!(full.iter().sum::<u64>() > 4 * MIB, "{full:?}");
    reclaim(&mut *opened.log);
    assert_eq!(taken(), full, "a database of that size may have them");
    opened.log.commit(&mut [trimming(701)]).unwrap();
    assert_eq!(taken(), full, "nobody empties them before there is time for it");
    reclaim(&mut *opened.log);
    assert_eq!(taken(), new);
    opened.log.commit(&mut [group(702, "after")]).unwrap();
    drop(opened);
    assert_eq!(acid.open(0).unwrap().recovered.groups, [(702, "after".into())]);
}

#[test]
fn a_database_that_is_large_or_well_used_is_not_compacted() {
    for (kept, trimmed) in [(34, 40), (8, 1), (1, 1), (0, 0)] {
        let acid = in_memory();
        let mut opened = acid.open(0).unwrap();
        for seq in 0..trimmed + kept {
            opened.log.commit(&mut [group(seq, vec![7; MIB as usize])]).unwrap();
        }
        let checkpoint = Checkpoint { trim_before: trimmed, ..Checkpoint::default() };
        opened.log.commit(&mut [with_checkpoint(trimmed + kept, checkpoint)]).unwrap();
        let written = acid.counters().bytes_written();
        assert!(!opened.log.reclaim().unwrap());
        assert_eq!(acid.counters().bytes_written(), written, "{kept} MiB of {}", trimmed + kept);
    }
}
