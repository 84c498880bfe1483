//! Single properties: what a commit costs, how rows are laid out, what an opening finds and refuses.

use super::*;
use crate::storage::Recovered;
use crate::storage::acid::rows::{JOURNAL_KEY_BYTES, next_value_bytes};

/// Syncs of `commits` commits of `groups` groups each, growth of the database not counted.
fn syncs(two_phase_commit: bool, commits: u64, groups: u64) -> u64 {
    let acid =
        AcidLog::new(AcidOptions { backend: Backend::InMemory, two_phase_commit, ..AcidOptions::new("") })
            .unwrap();
    let mut log = acid.open(0).unwrap().log;
    let counters = acid.counters();
    let before = counters.syncs() - counters.resizes();
    for commit in 0..commits {
        let mut batch: Vec<_> = (0..groups).map(|at| group(commit * groups + at, vec![7; 100])).collect();
        log.commit(&mut batch).unwrap();
    }
    counters.syncs() - counters.resizes() - before
}

#[test]
fn a_commit_costs_one_sync_however_many_groups_it_has() {
    assert_eq!(syncs(false, 50, 1), 50);
    assert_eq!(syncs(false, 50, 20), 50);
}

#[test]
fn a_two_phase_commit_costs_two_syncs() {
    assert_eq!(syncs(true, 50, 20), 100);
}

#[test]
fn a_commit_does_not_write_the_content_that_it_settles() {
    let acid = in_memory();
    let mut opened = acid.open(0).unwrap();
    let mut group = with_checkpoint(1, settling(1, 0, vec![vec![7; 1_000_000].into()]));
    prepare(&opened.segments, &mut group).unwrap();
    let counters = acid.counters();
    let (syncs, before) = (counters.syncs() - counters.resizes(), counters.bytes_written());
    opened.log.commit(&mut [group]).unwrap();
    let written = counters.bytes_written() - before;
    assert!(written < 100_000, "{written}");
    assert_eq!(counters.syncs() - counters.resizes() - syncs, 1);
}

#[test]
fn a_full_row_of_the_journal_takes_no_more_than_its_page() {
    let full = next_value_bytes(1 << 20, JOURNAL_KEY_BYTES);
    for (size, expected_rows) in [(full, 1), (full + 1, 2)] {
        let acid = in_memory();
        let mut log = acid.open(0).unwrap().log;
        let before = acid.counters().bytes_written();
        log.commit(&mut [group(1, vec![7; size])]).unwrap();
        let written = acid.counters().bytes_written() - before;
        assert!(written < 65_536 + 40_000, "{size} bytes took {written}");
        drop(log);
        assert_eq!(journal_rows(&acid), expected_rows);
    }
}

#[test]
fn a_group_of_any_size_comes_back_in_one_piece() {
    let acid = in_memory();
    let mut log = acid.open(0).unwrap().log;
    let frames = |seq: u64| (0..seq * 77_777).map(|at| (at % 251) as u8).collect::<Vec<_>>();
    for seq in 0..6 {
        log.commit(&mut [group(seq, frames(seq))]).unwrap();
    }
    drop(log);
    let recovered = acid.open(0).unwrap().recovered;
    assert_eq!(recovered.groups, (0..6).map(|seq| (seq, frames(seq).into())).collect::<Vec<_>>());
}

#[test]
fn group_numbers_are_never_given_out_twice_even_if_the_journal_was_trimmed_empty() {
    let acid = in_memory();
    let mut log = acid.open(0).unwrap().log;
    log.commit(&mut [group(1, "a"), group(8, "b")]).unwrap();
    let checkpoint = Checkpoint { trim_before: 10, next_stream_id: 4, ..Checkpoint::default() };
    log.commit(&mut [with_checkpoint(9, checkpoint)]).unwrap();
    drop(log);
    assert_eq!(journal_rows(&acid), 0);
    let OpenedShard { mut log, recovered, .. } = acid.open(0).unwrap();
    assert_eq!((recovered.groups.len(), recovered.next_group, recovered.next_stream_id), (0, 10, 4));
    log.commit(&mut [group(10, "")]).unwrap();
    drop(log);
    assert_eq!(acid.open(0).unwrap().recovered.next_group, 11, "a group without content counts too");
}

#[test]
fn a_group_number_that_was_used_is_refused_and_nothing_of_the_commit_stays() {
    let acid = in_memory();
    let mut log = acid.open(0).unwrap().log;
    log.commit(&mut [group(5, "a")]).unwrap();
    assert!(matches!(log.commit(&mut [group(6, "b"), group(6, "c")]), Err(StorageError::Corrupt(_))));
    assert!(log.commit(&mut [group(7, "d")]).is_err(), "a log that failed takes no more");
    assert!(!log.reclaim().unwrap(), "nor does it compact anything");
    drop(log);
    assert_eq!(acid.open(0).unwrap().recovered.groups, [(5, "a".into())]);
}

#[test]
fn a_trim_that_reaches_past_its_own_group_is_refused() {
    let acid = in_memory();
    let mut log = acid.open(0).unwrap().log;
    let checkpoint = Checkpoint { trim_before: 3, ..Checkpoint::default() };
    assert!(log.commit(&mut [with_checkpoint(1, checkpoint)]).is_err());
}

#[test]
fn readers_of_a_closed_shard_go_on_and_the_next_opening_finds_the_same() {
    let acid = in_memory();
    let mut opened = acid.open(0).unwrap();
    carry_out(&mut opened, vec![with_checkpoint(1, settling(1, 0, vec!["hello".into()]))]);
    let reader = Arc::clone(&opened.segments);
    drop(opened);
    assert_eq!(read(&reader, 1, 1..4).unwrap(), b"ell");
    let opened = acid.open(0).unwrap();
    assert_eq!(read(&opened.segments, 1, 1..4).unwrap(), b"ell");
    assert_eq!(read(&reader, 1, 1..4).unwrap(), b"ell");
}

#[test]
fn a_segment_that_no_commit_lists_is_removed_by_the_next_opening_and_its_number_is_left_alone() {
    let acid = in_memory();
    let mut opened = acid.open(0).unwrap();
    carry_out(&mut opened, vec![with_checkpoint(1, settling(1, 0, vec!["kept".into()]))]);
    let mut lost = with_checkpoint(2, settling(1, 4, vec!["lost".into()]));
    prepare(&opened.segments, &mut lost).unwrap();
    let number = lost.checkpoint.unwrap().segments_added[0].id;
    assert_eq!(segment_files(&acid).len(), 2);
    drop(opened);
    let opened = acid.open(0).unwrap();
    assert_eq!(segment_files(&acid).len(), 1);
    assert!(opened.segments.next_segment_id() > number);
    assert!(matches!(read(&opened.segments, 1, 0..5), Err(StorageError::Missing)));
    assert_eq!(read(&opened.segments, 1, 0..4).unwrap(), b"kept");
}

#[test]
fn segment_numbers_are_not_given_out_again_once_all_segments_are_gone() {
    let acid = in_memory();
    let mut opened = acid.open(0).unwrap();
    carry_out(&mut opened, vec![with_checkpoint(1, settling(1, 0, vec!["x".into()]))]);
    carry_out(
        &mut opened,
        vec![with_checkpoint(2, Checkpoint { removed: vec![1], ..Checkpoint::default() })],
    );
    let segments_removed = opened.segments.dead_segments();
    let numbers = opened.segments.next_segment_id();
    assert_eq!(segments_removed.len(), 1);
    carry_out(
        &mut opened,
        vec![with_checkpoint(3, Checkpoint { segments_removed, ..Checkpoint::default() })],
    );
    assert!(segment_files(&acid).is_empty());
    drop(opened);
    assert!(acid.open(0).unwrap().segments.next_segment_id() >= numbers);
}

#[test]
fn a_listed_segment_that_is_gone_or_another_one_is_noticed() {
    let acid = in_memory();
    let mut opened = acid.open(0).unwrap();
    carry_out(&mut opened, vec![with_checkpoint(1, settling(1, 0, vec!["first".into()]))]);
    carry_out(&mut opened, vec![with_checkpoint(2, settling(2, 0, vec!["other".into()]))]);
    drop(opened);
    let disk = Arc::clone(acid.directory.disk());
    let paths: Vec<_> =
        segment_files(&acid).into_iter().map(|name| acid.directory.shard_dir(0).join(name)).collect();
    let aside = acid.directory.shard_dir(0).join("aside");
    disk.rename(&paths[0], &aside).unwrap();
    let refused = acid.open(0).map(drop);
    assert!(matches!(refused, Err(StorageError::Corrupt(_))), "{refused:?}");
    disk.rename(&paths[1], &paths[0]).unwrap();
    disk.rename(&aside, &paths[1]).unwrap();
    let refused = acid.open(0).map(drop);
    assert!(matches!(refused, Err(StorageError::Corrupt(_))), "{refused:?}");
}

#[test]
fn a_record_that_promises_content_which_is_in_no_segment_is_noticed() {
    let acid = in_memory();
    let mut opened = acid.open(0).unwrap();
    let mut group = with_checkpoint(1, settling(1, 0, vec!["promised".into()]));
    group.checkpoint.as_mut().unwrap().streams[0].payload.clear();
    opened.log.commit(&mut [group]).unwrap();
    drop(opened);
    let refused = acid.open(0).map(drop);
    assert!(
        matches!(&refused, Err(StorageError::Corrupt(message)) if message.contains("stream 1")),
        "{refused:?}"
    );
}

#[test]
fn a_record_that_nobody_can_read_is_noticed() {
    let acid = in_memory();
    let mut opened = acid.open(0).unwrap();
    let mut checkpoint = settling(1, 0, Vec::new());
    checkpoint.streams[0].record = vec![99, 0, 0];
    opened.log.commit(&mut [with_checkpoint(1, checkpoint)]).unwrap();
    drop(opened);
    assert!(matches!(acid.open(0).map(drop), Err(StorageError::Corrupt(_))));
}

#[test]
fn segments_are_listed_by_what_tells_their_files_apart() {
    let acid = in_memory();
    let mut opened = acid.open(0).unwrap();
    for seq in 1..=3 {
        carry_out(&mut opened, vec![with_checkpoint(seq, settling(seq, 0, vec![vec![7; 9].into()]))]);
    }
    let listed = opened.segments.segments();
    drop(opened);
    let opened = acid.open(0).unwrap();
    assert_eq!(opened.segments.segments(), listed);
    assert!(listed.windows(2).all(|two| two[0].id < two[1].id && two[0].footer_crc != two[1].footer_crc));
}

#[test]
fn the_neighbours_of_a_removed_stream_keep_their_producers() {
    let acid = in_memory();
    let mut opened = acid.open(0).unwrap();
    let ids = [6, 7, 8, u64::MAX];
    let streams = ids.map(|id| StreamCheckpoint {
        producers: vec![("".into(), id, 1), ("b".into(), 1, 2), (vec![0xff; 40].into(), 3, 4)],
        ..settled(id, 0, Vec::new())
    });
    let checkpoint = Checkpoint { streams: streams.into(), ..Checkpoint::default() };
    carry_out(&mut opened, vec![with_checkpoint(1, checkpoint)]);
    let checkpoint = Checkpoint { removed: vec![u64::MAX, 7], ..Checkpoint::default() };
    carry_out(&mut opened, vec![with_checkpoint(2, checkpoint)]);
    drop(opened);
    let Recovered { streams, .. } = acid.open(0).unwrap().recovered;
    let found: Vec<_> = streams.iter().map(|stream| (stream.id, stream.producers.len())).collect();
    assert_eq!(found, [(6, 3), (8, 3)]);
}
