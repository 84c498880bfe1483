//! One thing at a time.

use super::*;

#[test]
fn what_is_settled_can_be_read_in_any_part_and_after_reopening() {
    let disk = new_disk();
    let store = new_store(&disk);
    let first =
        settle(&store, vec![run(9, 100, &[10, 70_000, 5]), run(2, 0, &[1]), run(0, 7, &[BLOCK, BLOCK])]);
    let second = settle(&store, vec![run(9, 70_115, &[40_000]), run(u64::MAX, 5, &[3])]);
    let check = |store: &SegmentStore| {
        for positions in [100..110_115, 100..101, 110_114..110_115, 70_000..70_200, 32_868..32_868 + BLOCK] {
            check_read(store, 9, positions);
        }
        check_read(store, 2, 0..1);
        check_read(store, 0, 7..7 + 2 * BLOCK);
        check_read(store, u64::MAX, 5..8);
        check_read(store, 9, 5..5);
        for (stream, positions) in [(9, 99..101), (9, 110_114..110_116), (9, 0..100), (1, 0..1), (2, 1..2)] {
            check_missing(store, stream, positions);
        }
        assert_eq!(store.settled(9), Some(100..110_115));
        assert_eq!(store.segment_count(), 2);
        assert_eq!(store.live_bytes(), 110_015 + 1 + 2 * BLOCK + 3);
        assert_eq!(store.disk_bytes(), first.file_bytes + second.file_bytes);
        assert!(store.verify(&mut |_| ()).is_empty());
    };
    check(&store);
    let keep = [(9, 100..110_115), (2, 0..1), (u64::MAX, 5..8), (0, 7..7 + 2 * BLOCK), (77, 4..4)];
    let reopened = open(&disk, &[second, first], &keep).unwrap();
    check(&reopened);
    assert_eq!(reopened.next_segment_id(), store.next_segment_id());
}

#[test]
fn an_opening_refuses_what_is_not_kept_exactly_once() {
    let disk = new_disk();
    let store = new_store(&disk);
    let a = settle(&store, vec![run(1, 0, &[50]), run(2, 0, &[50])]);
    let b = settle(&store, vec![run(1, 50, &[50])]);
    assert!(open(&disk, &[a, b], &[(1, 0..100), (2, 0..50)]).is_ok());
    // Files of refused openings are left alone.
    for (live, keep) in [
        (vec![a], vec![(1, 0..100)]),
        (vec![b], vec![(1, 0..100)]),
        (vec![a, b], vec![(1, 0..101)]),
        (vec![a, b], vec![(1, 0..99)]),
        (vec![a, b], vec![(1, 0..100), (3, 0..1)]),
        (vec![a, b], vec![(1, 0..100), (1, 0..100)]),
        (vec![a, a, b], vec![(1, 0..100)]),
        (vec![a, SegmentMeta { id: 99, ..b }], vec![]),
        (vec![a, SegmentMeta { footer_crc: !b.footer_crc, ..b }], vec![]),
        (vec![a, SegmentMeta { file_bytes: b.file_bytes + 1, ..b }], vec![]),
    ] {
        let outcome = open(&disk, &live, &keep);
        assert!(matches!(outcome, Err(StorageError::Corrupt(_))), "{live:?} {keep:?}");
    }
    assert_eq!(files(&disk).len(), 2);
    // The same bytes twice.
    let prepared = store.write_segment(vec![run(1, 50, &[50])]).unwrap();
    let outcome = open(&disk, &[a, b, prepared.meta()], &[(1, 0..100)]);
    assert!(matches!(outcome, Err(StorageError::Corrupt(_))));
}

#[test]
fn files_that_no_catalog_lists_are_removed_and_their_ids_not_used_again() {
    let disk = new_disk();
    let store = new_store(&disk);
    let kept = settle(&store, vec![run(1, 0, &[5])]);
    let lost = store.write_segment(vec![run(1, 5, &[5])]).unwrap().meta();
    let other = dir().join("segment-00.seg");
    disk.open(&other, OpenMode::Create).unwrap();
    let store = open(&disk, &[kept], &[(1, 0..5)]).unwrap();
    assert_eq!(files(&disk), ["segment-00.seg", "segment-0000000000000000.seg"]);
    assert!(store.next_segment_id() > lost.id);
    let store = SegmentStore::open(Arc::new(disk.clone()), 3, dir(), &[kept], 40, [(1, 0..5)]).unwrap();
    assert_eq!(store.write_segment(vec![run(1, 5, &[5])]).unwrap().meta().id, 40);
    assert_eq!(store.next_segment_id(), 41);
    let store = SegmentStore::open(Arc::new(disk.clone()), 3, dir(), &[kept], 0, [(1, 0..5)]).unwrap();
    assert_eq!(store.next_segment_id(), 41);
}

#[test]
fn a_prepared_segment_is_not_seen_and_can_be_discarded() {
    let disk = new_disk();
    let store = new_store(&disk);
    let prepared = store.write_segment(vec![run(1, 0, &[5])]).unwrap();
    check_missing(&store, 1, 0..5);
    assert_eq!((store.segment_count(), files(&disk).len()), (0, 1));
    store.discard(prepared);
    assert!(files(&disk).is_empty());
}

#[test]
fn overlapping_runs_are_not_written() {
    let disk = new_disk();
    let store = new_store(&disk);
    for runs in [
        vec![run(1, 0, &[5]), run(1, 4, &[5])],
        vec![run(1, 0, &[5]), run(1, 0, &[5])],
        vec![RunSource { start: u64::MAX - 1, ..run(1, 0, &[5]) }],
    ] {
        assert!(matches!(store.write_segment(runs), Err(StorageError::Corrupt(_))));
    }
    assert!(files(&disk).is_empty());
    // Nothing at all is possible, if of little use.
    let nothing = settle(&store, vec![run(1, 0, &[])]);
    assert_eq!(store.dead_segments(), [nothing.id]);
}

#[test]
fn a_settled_run_continues_its_stream() {
    let store = new_store(&new_disk());
    settle(&store, vec![run(1, 10, &[5])]);
    for start in [14, 16] {
        let prepared = store.write_segment(vec![run(1, start, &[5])]).unwrap();
        assert!(matches!(store.publish(vec![prepared], &[]), Err(StorageError::Corrupt(_))));
    }
    check_read(&store, 1, 10..15);
}

#[test]
fn what_is_cut_or_forgotten_is_missing_and_counts_as_dead() {
    let disk = new_disk();
    let store = new_store(&disk);
    let a = settle(&store, vec![run(1, 0, &[50, 50]), run(2, 0, &[30])]);
    let b = settle(&store, vec![run(1, 100, &[50])]);
    store.cut(1, 50);
    check_missing(&store, 1, 49..60);
    check_read(&store, 1, 50..150);
    assert_eq!(store.live_bytes(), 130);
    store.cut(1, 20);
    assert_eq!((store.live_bytes(), store.settled(1)), (130, Some(50..150)));
    assert_eq!(store.boundary_at_or_before(1, 60).unwrap(), 50);
    store.forget(&[2, 3]);
    check_missing(&store, 2, 0..1);
    assert!(store.dead_segments().is_empty());
    store.cut(1, 100);
    assert_eq!(store.dead_segments(), [a.id]);
    store.publish(vec![], &[a.id, 12_345]).unwrap();
    assert_eq!((store.segment_count(), store.disk_bytes()), (1, b.file_bytes));
    assert_eq!(files(&disk).len(), 1);
    check_read(&store, 1, 100..150);
    let refused = store.publish(vec![], &[b.id]);
    assert!(matches!(refused, Err(StorageError::Corrupt(_))), "some of it is alive");
    check_read(&store, 1, 100..150);
}

#[test]
fn a_cut_concerns_runs_that_are_on_their_way() {
    let store = new_store(&new_disk());
    settle(&store, vec![run(1, 0, &[50])]);
    let prepared = store.write_segment(vec![run(1, 50, &[50, 50]), run(2, 0, &[10])]).unwrap();
    store.cut(1, 100);
    store.cut(2, 10);
    store.publish(vec![prepared], &[]).unwrap();
    assert_eq!((store.settled(1), store.settled(2)), (Some(100..150), None));
    check_missing(&store, 1, 99..101);
    check_read(&store, 1, 100..150);
    assert_eq!(store.live_bytes(), 50);
    settle(&store, vec![run(1, 150, &[5]), run(2, 10, &[5])]);
    assert_eq!((store.settled(1), store.settled(2)), (Some(100..155), Some(10..15)));
    store.cut(1, 200);
    assert_eq!(store.settled(1), None);
    // Nothing of what lies between was ever settled.
    settle(&store, vec![run(1, 200, &[5])]);
    assert_eq!(store.settled(1), Some(200..205));
    store.forget(&[1, 2]);
    assert_eq!(store.live_bytes(), 0);
}

#[test]
fn the_last_known_boundary_is_found_across_blocks_and_runs() {
    let store = new_store(&new_disk());
    let messages = [10, 10, 3 * BLOCK, 100, 100, BLOCK];
    settle(&store, vec![run(1, 1000, &messages)]);
    let end = 1000 + messages.iter().sum::<u64>();
    settle(&store, vec![run(1, end, &[7, 7])]);
    let boundary = |position| store.boundary_at_or_before(1, position).unwrap();
    // Each block knows the first boundary in it. The fourth one's is the end of the large message.
    let large_end = 1020 + 3 * BLOCK;
    for (position, expected) in [
        (0, 0),
        (1000, 1000),
        (1015, 1000),
        (1000 + BLOCK, 1000),
        (1000 + 2 * BLOCK, 1000),
        (large_end - 1, 1000),
        (large_end, large_end),
        (large_end + 150, large_end),
        (1000 + 4 * BLOCK, large_end),
        (end - 1, large_end),
        (end, end),
        (end + 8, end),
        (end + 14, end + 14),
        (end + 15, end + 14),
    ] {
        assert_eq!(boundary(position), expected, "{position}");
    }
    for (stream, position) in [(1, 999), (1, 1), (2, 1)] {
        let outcome = store.boundary_at_or_before(stream, position);
        assert!(matches!(outcome, Err(StorageError::Missing)));
    }
    store.cut(1, large_end + 100);
    assert_eq!(boundary(large_end + 150), large_end + 100);
    assert!(store.boundary_at_or_before(1, large_end).is_err());
}

#[test]
fn long_runs_are_split_and_each_part_is_found() {
    let disk = new_disk();
    let limits = StoreLimits { run_bytes_max: 50_000, ..StoreLimits::default() };
    let store = new_store(&disk).with_limits(limits);
    let meta = settle(&store, vec![run(1, 0, &[20_000, 30_000, 120_000, 1, 10_000])]);
    check_read(&store, 1, 0..180_001);
    for (position, expected) in [(49_999, 20_000), (50_000, 50_000), (169_999, 50_000), (170_000, 170_000)] {
        let found = store.boundary_at_or_before(1, position).unwrap();
        assert!([expected, 0].contains(&found), "{position}: {found}");
    }
    // A store that joins more takes them together again.
    let store = open(&disk, &[meta], &[(1, 0..180_001)]).unwrap();
    let joined = rewrite(&store, &[meta.id]).unwrap();
    assert!(joined.file_bytes < meta.file_bytes);
    check_read(&store, 1, 0..180_001);
    // One that joins less leaves them as they are.
    let store = open(&disk, &[joined], &[(1, 0..180_001)]).unwrap().with_limits(limits);
    rewrite(&store, &[joined.id]).unwrap();
    check_read(&store, 1, 0..180_001);
}

#[test]
fn there_may_be_very_many_runs() {
    // So many that the footer alone is more than is written at once.
    const COUNT: u64 = 63 * 1024;
    let disk = new_disk();
    let store = new_store(&disk);
    let stream = |at: u64| at << 47;
    let start = |at: u64| (u64::MAX >> 1) - at;
    let runs: Vec<_> = (0..COUNT).map(|at| run(stream(at), start(at), &[1])).collect();
    let meta = settle(&store, runs);
    assert!(meta.file_bytes > COUNT * 9 + (1 << 20));
    assert_eq!((store.live_bytes(), store.dead_segments()), (COUNT, vec![]));
    store.forget(&(0..COUNT).filter(|at| at % 3 == 0).map(stream).collect::<Vec<_>>());
    let meta = rewrite(&store, &[meta.id]).unwrap();
    assert_eq!(store.live_bytes(), COUNT / 3 * 2);
    let keep: Vec<_> =
        (0..COUNT).filter(|at| at % 3 != 0).map(|at| (stream(at), start(at)..start(at) + 1)).rev().collect();
    let store = open(&disk, &[meta], &keep).unwrap();
    for at in [1, 2, COUNT / 2 + 1, COUNT - 1] {
        check_read(&store, stream(at), start(at)..start(at) + 1);
    }
    check_missing(&store, stream(3), start(3)..start(3) + 1);
    store.forget(&(0..COUNT).map(stream).collect::<Vec<_>>());
    assert_eq!((store.live_bytes(), store.dead_segments()), (0, vec![meta.id]));
}

#[test]
fn few_descriptors_are_kept_open_however_many_segments_there_are() {
    let watched = Arc::new(super::watched_disk::WatchedDisk::new(new_disk()));
    let disk = Arc::clone(&watched) as Arc<dyn Disk>;
    let store = SegmentStore::open(disk, 3, dir(), &[], 0, []).unwrap();
    let store = store.with_limits(StoreLimits { descriptors_max: 4, ..StoreLimits::default() });
    for stream in 0..50 {
        settle(&store, vec![run(stream, 0, &[10])]);
    }
    assert_eq!(watched.open_files(), 0);
    for stream in (0..50).chain([3, 7]) {
        check_read(&store, stream, 0..10);
        assert!(watched.open_files() <= 4);
    }
    assert_eq!(store.descriptors.kept_open(), 4);
    let opened = watched.calls();
    check_read(&store, 7, 0..10);
    check_read(&store, 3, 0..10);
    assert_eq!(watched.calls(), opened + 2, "the files used last are open");
    store.forget(&(0..50).collect::<Vec<_>>());
    store.publish(vec![], &store.dead_segments()).unwrap();
    assert_eq!(watched.open_files(), 0, "removed files are not kept open");
}

#[test]
fn a_file_that_is_gone_is_a_loss_unless_another_store_has_taken_over() {
    let disk = new_disk();
    let store = new_store(&disk);
    let meta = settle(&store, vec![run(1, 0, &[5])]);
    let reopened = |store: SegmentStore| {
        drop(store);
        SegmentStore::open(Arc::new(disk.clone()), 3, dir(), &[meta], 0, [(1, 0..5)]).unwrap()
    };
    let store = reopened(store);
    let old = SegmentStore::open(Arc::new(disk.clone()), 3, dir(), &[meta], 0, [(1, 0..5)]).unwrap();
    old.retire();
    check_read(&old, 1, 0..5);
    let old = reopened(old);
    old.retire();
    disk.remove(&super::super::format::file_path(&dir(), meta.id)).unwrap();
    check_missing(&old, 1, 0..5);
    assert!(matches!(read(&store, 1, 0..5), Err(StorageError::Corrupt(_))));
}
