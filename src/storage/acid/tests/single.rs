//! Single properties: what a commit costs, how rows are laid out, what readers see.

use bytes::Bytes;

use super::*;
use crate::storage::acid::log::REMOVED_ROWS_MAX;
use crate::storage::acid::rows::{JOURNAL_KEY_BYTES, value_bytes_max};
use crate::storage::{Checkpoint, StreamCheckpoint};

fn settling(id: u64, start: u64, payload: Vec<Bytes>) -> Checkpoint {
    let stream = StreamCheckpoint { id, record: b"record".to_vec(), producers: Vec::new(), start, payload };
    Checkpoint { streams: vec![stream], ..Checkpoint::default() }
}

fn with_checkpoint(seq: u64, checkpoint: Checkpoint) -> Group {
    Group { seq, frames: Vec::new(), checkpoint: Some(checkpoint) }
}

/// Syncs of `commits` commits of `groups` groups each, growth of the database not counted.
fn syncs(two_phase_commit: bool, commits: u64, groups: u64) -> u64 {
    let acid =
        AcidLog::new(AcidOptions { backend: Backend::InMemory, two_phase_commit, ..AcidOptions::new("") })
            .unwrap();
    let (mut log, _) = acid.open(0).unwrap();
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
fn a_full_row_of_the_journal_takes_no_more_than_its_page() {
    for (size, expected_rows) in
        [(value_bytes_max(JOURNAL_KEY_BYTES), 1), (value_bytes_max(JOURNAL_KEY_BYTES) + 1, 2)]
    {
        let acid = in_memory();
        let (mut log, _) = acid.open(0).unwrap();
        let before = acid.counters().bytes_written();
        log.commit(&mut [group(1, vec![7; size])]).unwrap();
        let written = acid.counters().bytes_written() - before;
        assert!(written < 65_536 + 40_000, "{size} bytes took {written}");
        assert_eq!(rows(&acid).0, expected_rows);
    }
}

#[test]
fn a_group_of_any_size_comes_back_in_one_piece() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    let frames = |seq: u64| (0..seq * 77_777).map(|at| (at % 251) as u8).collect::<Vec<_>>();
    for seq in 0..6 {
        log.commit(&mut [group(seq, frames(seq))]).unwrap();
    }
    drop(log);
    let (_log, recovered) = acid.open(0).unwrap();
    assert_eq!(recovered.groups, (0..6).map(|seq| (seq, frames(seq).into())).collect::<Vec<_>>());
}

#[test]
fn group_numbers_are_never_given_out_twice_even_if_the_journal_was_trimmed_empty() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    log.commit(&mut [group(1, "a"), group(8, "b")]).unwrap();
    let checkpoint = Checkpoint { trim_before: 10, next_stream_id: 4, ..Checkpoint::default() };
    log.commit(&mut [with_checkpoint(9, checkpoint)]).unwrap();
    assert_eq!(rows(&acid).0, 0);
    drop(log);
    let (mut log, recovered) = acid.open(0).unwrap();
    assert_eq!((recovered.groups.len(), recovered.next_group, recovered.next_stream_id), (0, 10, 4));
    log.commit(&mut [group(10, "")]).unwrap();
    drop(log);
    assert_eq!(acid.open(0).unwrap().1.next_group, 11, "a group without content counts too");
}

#[test]
fn a_group_number_that_was_used_is_refused_and_nothing_of_the_commit_stays() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    log.commit(&mut [group(5, "a")]).unwrap();
    assert!(matches!(log.commit(&mut [group(6, "b"), group(6, "c")]), Err(StorageError::Corrupt(_))));
    assert!(log.commit(&mut [group(7, "d")]).is_err(), "a log that failed takes no more");
    drop(log);
    assert_eq!(acid.open(0).unwrap().1.groups, [(5, "a".into())]);
}

#[test]
fn a_trim_that_reaches_past_its_own_group_is_refused() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    let checkpoint = Checkpoint { trim_before: 3, ..Checkpoint::default() };
    assert!(log.commit(&mut [with_checkpoint(1, checkpoint)]).is_err());
}

#[test]
fn payload_that_does_not_continue_what_is_settled_is_refused() {
    for start in [4, 6] {
        let acid = in_memory();
        let (mut log, _) = acid.open(0).unwrap();
        log.commit(&mut [with_checkpoint(1, settling(1, 0, vec!["hello".into()]))]).unwrap();
        let refused = log.commit(&mut [with_checkpoint(2, settling(1, start, vec!["more".into()]))]);
        assert!(matches!(refused, Err(StorageError::Corrupt(_))), "{refused:?}");
    }
}

#[test]
fn trickling_payload_is_gathered_into_few_rows() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    for seq in 0..400 {
        log.commit(&mut [with_checkpoint(seq, settling(1, seq * 100, vec![vec![7; 100].into()]))]).unwrap();
    }
    let (_, extents) = rows(&acid);
    assert!((10..=11).contains(&extents), "40,000 bytes are in {extents} rows");
    for position in (0..=40_000).step_by(50) {
        let boundary = log.reader().boundary_at_or_before(1, position).unwrap();
        assert!(boundary % 100 == 0 && boundary <= position && position - boundary < 4096);
    }
}

#[test]
fn a_read_returns_exactly_what_was_asked_for_or_nothing() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    let payload: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    log.commit(&mut [with_checkpoint(1, settling(1, 1_000, vec![payload.clone().into()]))]).unwrap();
    // A neighbour on either side, whose rows must not be taken for those of stream 1.
    log.commit(&mut [with_checkpoint(2, settling(0, 0, vec![vec![1; 400_000].into()]))]).unwrap();
    log.commit(&mut [with_checkpoint(3, settling(2, 0, vec![vec![2; 400_000].into()]))]).unwrap();
    let reader = log.reader();
    for (from, to) in
        [(1_000, 301_000), (1_000, 1_001), (66_000, 67_000), (66_511, 66_512), (300_999, 301_000)]
    {
        let read = reader.read_whole(1, from, to).unwrap();
        assert!(read == payload[from as usize - 1_000..to as usize - 1_000], "{from}..{to}");
    }
    assert!(reader.read_whole(1, 5, 5).unwrap().is_empty());
    for (stream, from, to) in [(1, 999, 1_001), (1, 300_000, 301_001), (1, 301_000, 301_001), (3, 0, 1)] {
        assert!(
            matches!(reader.read_whole(stream, from, to), Err(StorageError::Missing)),
            "{stream} {from}..{to}"
        );
    }
    assert!(matches!(reader.boundary_at_or_before(1, 999), Err(StorageError::Missing)));
    assert_eq!(reader.boundary_at_or_before(1, 300_999).unwrap(), 1_000);
    assert_eq!(reader.boundary_at_or_before(1, 301_000).unwrap(), 301_000);
}

#[test]
fn a_reader_survives_the_reopening_of_its_shard() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    log.commit(&mut [with_checkpoint(1, settling(1, 0, vec!["hello".into()]))]).unwrap();
    let reader = log.reader();
    assert!(acid.open(0).is_err(), "a shard has one log at a time");
    drop(log);
    assert!(matches!(reader.read_whole(1, 0, 5), Err(StorageError::Reopening(_))));
    let (_log, _) = acid.open(0).unwrap();
    assert_eq!(reader.read_whole(1, 1, 4).unwrap(), b"ell");
}

#[test]
fn little_payload_goes_with_its_stream_and_much_is_reclaimed_in_steps() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    let large = 3 * REMOVED_ROWS_MAX + 10;
    let piece = Bytes::from(vec![7; 40_000]);
    log.commit(&mut [
        with_checkpoint(1, settling(1, 0, vec![piece.clone(); 10])),
        with_checkpoint(2, settling(2, 0, vec![piece.clone(); large])),
        with_checkpoint(3, settling(3, 0, vec![piece; 10])),
    ])
    .unwrap();
    let kept = rows(&acid).1 / (large as u64 + 20) * 10;
    assert!(!log.reclaim().unwrap(), "nothing was removed yet");
    log.commit(&mut [with_checkpoint(4, Checkpoint { removed: vec![1], ..Checkpoint::default() })]).unwrap();
    assert!(!log.reclaim().unwrap(), "a small stream leaves nothing behind");
    log.commit(&mut [with_checkpoint(5, Checkpoint { removed: vec![2], ..Checkpoint::default() })]).unwrap();
    drop(log);
    let (mut log, recovered) = acid.open(0).unwrap();
    assert_eq!(recovered.streams.iter().map(|stream| stream.id).collect::<Vec<_>>(), [3]);
    let mut steps = 0;
    loop {
        let before = rows(&acid).1;
        let more = log.reclaim().unwrap();
        assert!(before - rows(&acid).1 <= REMOVED_ROWS_MAX as u64);
        steps += 1;
        if !more {
            break;
        }
    }
    assert!(steps > 1);
    assert_eq!(rows(&acid).1, kept);
    assert_eq!(log.reader().read_whole(3, 0, 400_000).unwrap().len(), 400_000);
}

#[test]
fn removing_many_streams_at_once_is_bounded_too() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    let streams = 2 * REMOVED_ROWS_MAX as u64;
    for id in 0..streams {
        log.commit(&mut [with_checkpoint(id, settling(id, 0, vec!["x".into()]))]).unwrap();
    }
    let checkpoint = Checkpoint { removed: (0..streams).collect(), ..Checkpoint::default() };
    log.commit(&mut [with_checkpoint(streams, checkpoint)]).unwrap();
    assert_eq!(rows(&acid).1, streams - REMOVED_ROWS_MAX as u64);
    while log.reclaim().unwrap() {}
    assert_eq!(rows(&acid).1, 0);
}

#[test]
fn the_neighbours_of_a_removed_stream_keep_their_producers() {
    let acid = in_memory();
    let (mut log, _) = acid.open(0).unwrap();
    let ids = [6, 7, 8, u64::MAX];
    let streams = ids.map(|id| StreamCheckpoint {
        id,
        record: Vec::new(),
        producers: vec![("".into(), id, 1), ("b".into(), 1, 2), (vec![0xff; 40].into(), 3, 4)],
        start: 0,
        payload: Vec::new(),
    });
    let checkpoint = Checkpoint { streams: streams.into(), ..Checkpoint::default() };
    log.commit(&mut [with_checkpoint(1, checkpoint)]).unwrap();
    let checkpoint = Checkpoint { removed: vec![u64::MAX, 7], ..Checkpoint::default() };
    log.commit(&mut [with_checkpoint(2, checkpoint)]).unwrap();
    drop(log);
    let (_log, recovered) = acid.open(0).unwrap();
    let found: Vec<_> = recovered.streams.iter().map(|stream| (stream.id, stream.producers.len())).collect();
    assert_eq!(found, [(6, 3), (8, 3)]);
}
