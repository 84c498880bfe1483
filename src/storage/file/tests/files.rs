//! Files that come and go: rolling over, trimming, rewriting, on the real disk.

use std::sync::Arc;

use bytes::Bytes;

use super::disk::{TestDisk, Trouble};
use super::model::open;
use super::small;
use crate::storage::disk::{Disk, RealDisk};
use crate::storage::file::sealed::HEADER_BYTES;
use crate::storage::file::{Options, RewriteOn, ShardLog, SyncPolicy};
use crate::storage::segment::SegmentMeta;
use crate::storage::{Checkpoint, Group, StorageError, StreamCheckpoint};

fn group(seq: u64, bytes: usize, checkpoint: Option<Checkpoint>) -> Group {
    Group { seq, frames: vec![7; bytes].into(), checkpoint, ..Group::default() }
}

fn settled(trim_before: u64) -> Checkpoint {
    Checkpoint { trim_before, ..Checkpoint::default() }
}

fn stream(id: u64, record: &str, producers: &[(&str, u64)]) -> StreamCheckpoint {
    let producers = producers.iter().map(|(id, last)| (Bytes::copy_from_slice(id.as_bytes()), 0, *last));
    super::stream(id, record.into(), producers.collect())
}

fn real() -> (tempfile::TempDir, Arc<dyn Disk>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("shard-00")).unwrap();
    let disk = Arc::new(RealDisk::new(dir.path()));
    (dir, disk)
}

#[test]
fn journal_files_that_are_needed_no_more_are_removed_the_current_one_included() {
    let disk = TestDisk::new(1);
    let (mut log, _) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
    for seq in 1..=33 {
        log.commit(&[group(seq, 1000, None)]).unwrap();
    }
    assert!(disk.files("journal").len() >= 3);
    let last = [group(34, 10, Some(settled(35)))];
    log.commit(&last).unwrap();
    log.checkpoint(&last).unwrap();
    let left = disk.files("journal");
    assert!(left.len() == 1 && disk.content(&left[0]).len() == HEADER_BYTES, "{left:?}");
    assert!(log.disk_bytes() < 4096);
    drop(log);
    let (mut log, opened) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
    assert_eq!((opened.next_group, opened.groups.len()), (35, 0));
    log.commit(&[group(40, 10, None)]).unwrap();
    drop(log);
    let (_, opened) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
    assert_eq!(opened.groups, [(40, Bytes::from(vec![7; 10]))]);
}

#[test]
fn a_record_larger_than_a_file_has_one_of_its_own() {
    let disk = TestDisk::new(1);
    let (mut log, _) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
    for (seq, bytes) in [(1, 10), (2, 50_000), (3, 10)] {
        log.commit(&[group(seq, bytes, None)]).unwrap();
    }
    assert_eq!(disk.files("journal").len(), 3);
    drop(log);
    let (_, opened) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
    let sizes: Vec<usize> = opened.groups.iter().map(|(_, frames)| frames.len()).collect();
    assert_eq!(sizes, [10, 50_000, 10]);
}

#[test]
fn opening_again_and_again_leaves_no_files_behind() {
    let disk = TestDisk::new(1);
    for round in 1..20 {
        let (mut log, opened) = open(&disk, small(SyncPolicy::OnFlush)).unwrap();
        assert!(opened.next_group >= 1);
        let groups = [group(opened.next_group, 10, Some(settled(opened.next_group)))];
        log.commit(&groups).unwrap();
        if round % 2 == 0 {
            log.checkpoint(&groups).unwrap();
        }
    }
    assert!(disk.files("journal").len() <= 3, "{:?}", disk.files("journal"));
    let before = disk.calls();
    drop(open(&disk, small(SyncPolicy::OnFlush)).unwrap());
    assert!(disk.calls() > before);
}

#[test]
fn one_commit_is_one_write_and_one_sync() {
    let disk = TestDisk::new(1);
    let (mut log, _) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
    log.commit(&[group(1, 10, None)]).unwrap();
    let before = disk.calls();
    log.commit(&[group(2, 100, None), group(3, 0, None), group(5, 100, None)]).unwrap();
    assert_eq!(disk.calls() - before, 2);
    drop(log);
    let (mut log, _) = open(&disk, small(SyncPolicy::OnFlush)).unwrap();
    log.commit(&[group(6, 10, None)]).unwrap();
    log.flush().unwrap();
    let before = disk.calls();
    log.commit(&[group(7, 100, None)]).unwrap();
    assert_eq!(disk.calls() - before, 1);
    assert!(log.dirty_since().is_some());
    log.flush().unwrap();
    assert_eq!(disk.calls() - before, 2);
}

#[test]
fn group_numbers_that_do_not_increase_are_refused() {
    for (first, second) in [(5, 5), (5, 4)] {
        let disk = TestDisk::new(1);
        let (mut log, _) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
        log.commit(&[group(first, 1, None)]).unwrap();
        assert!(matches!(log.commit(&[group(second, 1, None)]), Err(StorageError::Corrupt(_))));
    }
    let disk = TestDisk::new(1);
    let (mut log, _) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
    let too_far = group(1, 1, Some(settled(3)));
    assert!(matches!(log.commit(&[too_far]), Err(StorageError::Corrupt(_))));
}

#[test]
fn what_a_killed_server_only_gave_to_the_operating_system_is_durable_once_it_was_read() {
    let disk = TestDisk::new(1);
    let (mut log, _) = open(&disk, small(SyncPolicy::OnFlush)).unwrap();
    log.commit(&[group(1, 10, None)]).unwrap();
    std::mem::forget(log);
    let (log, opened) = open(&disk, small(SyncPolicy::OnFlush)).unwrap();
    assert_eq!(opened.groups.len(), 1);
    std::mem::forget(log);
    disk.cut();
    let (_, opened) = open(&disk, small(SyncPolicy::OnFlush)).unwrap();
    assert_eq!(opened.groups.len(), 1);
}

#[test]
fn a_rewritten_catalog_whose_name_is_not_durable_yet_is_made_so_before_the_old_one_goes() {
    let mut seen = 0;
    for seed in 0..300 {
        let disk = TestDisk::new(seed);
        let (mut log, _) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
        for round in 1..25 {
            let checkpoint = Checkpoint { streams: vec![stream(1, &"r".repeat(300), &[])], ..settled(0) };
            let groups = [group(round, 5, Some(checkpoint))];
            log.commit(&groups).unwrap();
            if round > 1 {
                disk.plan(3 + seed % 12, Trouble::Io);
            }
            let outcome = log.checkpoint(&groups);
            disk.calm();
            if outcome.is_err() || disk.files("catalog-0000000000000002").len() == 1 {
                break;
            }
        }
        std::mem::forget(log);
        seen += usize::from(disk.files("catalog").len() == 2);
        // The server is started, and the power goes at once.
        std::mem::forget(open(&disk, small(SyncPolicy::EachCommit)).unwrap());
        disk.cut();
        let (_, opened) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
        assert_eq!(opened.streams.len(), 1, "seed {seed}");
    }
    assert!(seen > 0, "never were both there");
}

/// Checkpoints many streams again and again, until the catalog was rewritten a few times.
fn rewrite_often(disk: &Arc<dyn Disk>, options: Options) -> u64 {
    let (mut log, _) = ShardLog::open(disk, std::path::Path::new("shard-00"), 0, options).unwrap();
    let mut rewrites = 0;
    let mut bytes = log.disk_bytes();
    let rounds = 400;
    for round in 1..=rounds {
        let mut checkpoint = Checkpoint { trim_before: round, ..Checkpoint::default() };
        for id in 0..40 {
            let producer = format!("producer {}", round % 3);
            checkpoint.streams.push(stream(
                id,
                &format!("stream {id} in round {round}"),
                &[(&producer, round)],
            ));
        }
        checkpoint.streams.push(stream(1000 + round, "short-lived", &[("p", 1)]));
        checkpoint.removed = if round > 1 { vec![1000 + round - 1] } else { Vec::new() };
        checkpoint.segments_added = vec![SegmentMeta { id: round, file_bytes: round, footer_crc: 1 }];
        checkpoint.segments_removed = if round > 5 { vec![round - 5] } else { Vec::new() };
        let groups = [group(round, 5, Some(checkpoint))];
        log.commit(&groups).unwrap();
        log.checkpoint(&groups).unwrap();
        while round % 50 == 0 && log.reclaim().unwrap() {}
        let now = log.disk_bytes();
        rewrites += u64::from(now < bytes);
        bytes = now;
    }
    drop(log);
    let (_, opened) = ShardLog::open(disk, std::path::Path::new("shard-00"), 0, options).unwrap();
    assert_eq!(opened.streams.len(), 41);
    for stream in &opened.streams[..40] {
        assert_eq!(stream.record, format!("stream {} in round {rounds}", stream.id).as_bytes());
        let producers: Vec<_> = stream.producers.iter().map(|(id, _, last)| (id.clone(), *last)).collect();
        let expected = [(0, 399), (1, 400), (2, 398)];
        assert_eq!(producers, expected.map(|(id, last)| (Bytes::from(format!("producer {id}")), last)));
    }
    let segments: Vec<u64> = opened.segments.iter().map(|segment| segment.id).collect();
    assert_eq!(segments, (rounds - 4..=rounds).collect::<Vec<u64>>());
    rewrites
}

#[test]
fn a_catalog_that_is_rewritten_on_a_thread_beside_checkpoints_holds_all_of_them() {
    let (dir, disk) = real();
    let options = Options { rewrite_on: RewriteOn::Thread, ..small(SyncPolicy::OnFlush) };
    assert!(rewrite_often(&disk, options) >= 2);
    let names = std::fs::read_dir(dir.path().join("shard-00")).unwrap();
    let catalogs =
        names.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("catalog"));
    assert_eq!(catalogs.count(), 1);
}

#[test]
fn a_catalog_that_is_rewritten_within_checkpoints_holds_all_of_them() {
    let disk = TestDisk::new(1).as_disk();
    assert!(rewrite_often(&disk, small(SyncPolicy::EachCommit)) >= 10);
}

#[test]
fn a_catalog_that_cannot_be_rewritten_goes_on_as_it_is() {
    // A checkpoint that trims nothing makes two calls; those of the rewriting follow.
    for failing in 2..6 {
        let disk = TestDisk::new(1);
        let (mut log, _) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
        let record = "r".repeat(300);
        let mut rounds = 0;
        loop {
            rounds += 1;
            let checkpoint = Checkpoint { streams: vec![stream(1, &record, &[])], ..settled(0) };
            let groups = [group(rounds, 5, Some(checkpoint))];
            log.commit(&groups).unwrap();
            if rounds > 1 {
                disk.plan(failing, Trouble::Full);
            }
            log.checkpoint(&groups).unwrap();
            assert_eq!(disk.files("catalog").len(), 1);
            if disk.calm() && rounds > 1 {
                break;
            }
            assert!(rounds < 100, "it is never rewritten");
        }
        assert!(disk.content(&disk.files("catalog")[0]).len() > 300 * rounds as usize, "it was rewritten");
        std::mem::forget(log);
        let (_, opened) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
        assert_eq!((opened.streams.len(), opened.groups.len()), (1, rounds as usize));
    }
}

#[test]
fn what_was_filled_ahead_is_given_back_by_a_clean_stop_and_by_the_start_after_another() {
    for is_killed in [false, true] {
        let disk = TestDisk::new(1);
        for _ in 0..30 {
            let (mut log, opened) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
            log.commit(&[group(opened.next_group, 1, None)]).unwrap();
            if is_killed {
                std::mem::forget(log);
            }
        }
        let sizes: Vec<usize> = disk.files("journal").iter().map(|path| disk.content(path).len()).collect();
        let large = sizes.iter().filter(|&&len| len > 200).count();
        assert!(large <= usize::from(is_killed), "{sizes:?}");
        let (_, opened) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
        assert_eq!((opened.groups.len(), opened.journal_files.len()), (30, 30));
    }
}

#[test]
fn on_a_full_disk_the_reserve_is_given_up_for_the_next_file_and_made_again() {
    let reserve = |disk: &TestDisk| disk.files("RESERVE").len();
    let disk = TestDisk::new(1);
    let (mut log, _) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
    assert_eq!((reserve(&disk), log.withheld()), (0, small(SyncPolicy::EachCommit).sizes.reserve));
    log.commit(&[group(1, 10, None)]).unwrap();
    assert_eq!((reserve(&disk), log.withheld()), (1, 0));
    drop(log);
    // The first call that writes is the one that makes the next file.
    let (mut log, _) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
    disk.plan(0, Trouble::Full);
    log.commit(&[group(2, 10, None)]).unwrap();
    assert!(disk.calm());
    assert_eq!(reserve(&disk), 1, "there is room again");
    // Where a write into a file finds no room, nobody knows what it left.
    disk.plan(0, Trouble::Full);
    assert!(matches!(log.commit(&[group(3, 10, None)]), Err(StorageError::DiskFull(_))));
    assert_eq!(reserve(&disk), 0);
    drop(log);
    let (mut log, opened) = open(&disk, small(SyncPolicy::EachCommit)).unwrap();
    log.commit(&[group(opened.next_group, 10, None)]).unwrap();
    assert_eq!(reserve(&disk), 1);
}
