//! Rewrites one at a time; and which of them are chosen, over many settled segments.

use super::*;
use crate::storage::segment::format::{HEADER_BYTES, TRAILER_BYTES};

#[test]
fn a_rewrite_keeps_what_is_alive_joins_it_and_frees_the_rest() {
    let disk = new_disk();
    let store = new_store(&disk);
    let mut metas = Vec::new();
    for part in 0..4 {
        metas.push(settle(
            &store,
            vec![
                run(1, part * 50_000, &[30_000, 20_000]),
                run(100 + part, 0, &[200_000]),
                run(200, part * 10, &[10]),
            ],
        ));
    }
    store.forget(&[100, 101, 102]);
    store.cut(1, 80_000);
    let ids: Vec<u64> = metas.iter().map(|meta| meta.id).collect();
    let new = rewrite(&store, &ids).unwrap();
    assert_eq!(store.segments(), [new]);
    assert_eq!(files(&disk).len(), 1);
    let live = 120_000 + 200_000 + 40;
    assert_eq!(store.live_bytes(), live);
    // Three runs.
    let blocks = 4 + 7 + 1;
    assert!(new.file_bytes <= live + blocks * 8 + (HEADER_BYTES + TRAILER_BYTES + 30) as u64);
    let check = |store: &SegmentStore| {
        check_read(store, 1, 80_000..200_000);
        check_missing(store, 1, 79_999..80_001);
        check_read(store, 103, 0..200_000);
        check_missing(store, 100, 0..1);
        check_read(store, 200, 0..40);
        // 130,000 was not the first one in its block.
        for (position, boundary) in [(80_000, 80_000), (130_000, 80_000), (150_000, 150_000)] {
            assert_eq!(store.boundary_at_or_before(1, position).unwrap(), boundary);
        }
        assert!(store.verify(&mut |_| ()).is_empty());
    };
    check(&store);
    check(&open(&disk, &[new], &[(1, 80_000..200_000), (103, 0..200_000), (200, 0..40)]).unwrap());
}

#[test]
fn what_dies_while_it_is_rewritten_stays_dead() {
    let store = new_store(&new_disk());
    let a = settle(&store, vec![run(1, 0, &[50, 50]), run(2, 0, &[10]), run(3, 0, &[50]), run(4, 0, &[10])]);
    let b = settle(&store, vec![run(1, 100, &[100]), run(3, 50, &[50])]);
    let plan = RewritePlan { segments: vec![a.id, b.id], live_bytes: 0 };
    store.cut(1, 20);
    let prepared = store.rewrite(plan, &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
    store.cut(1, 120);
    store.forget(&[2]);
    store.cut(3, 100);
    // Settled meanwhile, and not part of it.
    settle(&store, vec![run(1, 200, &[5]), run(3, 100, &[5])]);
    store.publish(vec![prepared], &[a.id, b.id]).unwrap();
    assert_eq!((store.settled(1), store.settled(3)), (Some(120..205), Some(100..105)));
    check_read(&store, 1, 120..205);
    check_missing(&store, 1, 119..121);
    check_missing(&store, 2, 0..1);
    check_missing(&store, 3, 99..101);
    check_read(&store, 3, 100..105);
    check_read(&store, 4, 0..10);
    assert_eq!(store.live_bytes(), 85 + 5 + 10);
    assert_eq!(store.segment_count(), 2);
}

#[test]
fn whole_runs_that_are_cut_while_they_are_joined_to_others_stay_cut() {
    let store = new_store(&new_disk());
    let a = settle(&store, vec![run(1, 0, &[50])]);
    let b = settle(&store, vec![run(1, 50, &[50])]);
    let plan = RewritePlan { segments: vec![a.id, b.id], live_bytes: 0 };
    let prepared = store.rewrite(plan, &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
    store.cut(1, 50);
    store.publish(vec![prepared], &[a.id, b.id]).unwrap();
    assert_eq!((store.settled(1), store.live_bytes()), (Some(50..100), 50));
    check_missing(&store, 1, 49..51);
}

#[test]
fn a_rewrite_of_later_runs_leaves_an_earlier_cut_alone() {
    let store = new_store(&new_disk());
    settle(&store, vec![run(1, 0, &[50, 50])]);
    let b = settle(&store, vec![run(1, 100, &[50])]);
    store.cut(1, 50);
    rewrite(&store, &[b.id]).unwrap();
    assert_eq!((store.settled(1), store.live_bytes()), (Some(50..150), 100));
}

#[test]
fn a_rewrite_of_which_all_died_is_dead_itself() {
    let disk = new_disk();
    let store = new_store(&disk);
    let a = settle(&store, vec![run(1, 0, &[50])]);
    let plan = || RewritePlan { segments: vec![a.id], live_bytes: 0 };
    let prepared = store.rewrite(plan(), &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
    let id = prepared.meta().id;
    store.forget(&[1]);
    assert!(store.rewrite(plan(), &mut |_| ControlFlow::Continue(())).unwrap().is_none());
    store.publish(vec![prepared], &[a.id]).unwrap();
    assert_eq!(store.dead_segments(), [id]);
    store.publish(vec![], &[id]).unwrap();
    assert_eq!((store.disk_bytes(), files(&disk).len()), (0, 0));
    // What is gone cannot be rewritten.
    assert!(store.rewrite(plan(), &mut |_| ControlFlow::Continue(())).unwrap().is_none());
}

#[test]
fn a_rewrite_takes_the_place_of_its_sources_or_is_refused() {
    let store = new_store(&new_disk());
    let a = settle(&store, vec![run(1, 0, &[50])]);
    let plan = RewritePlan { segments: vec![a.id], live_bytes: 0 };
    let first = store.rewrite(plan.clone(), &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
    let second = store.rewrite(plan.clone(), &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
    let third = store.rewrite(plan, &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
    assert!(store.publish(vec![first], &[]).is_err(), "its source would stay");
    store.publish(vec![second], &[a.id]).unwrap();
    assert!(store.publish(vec![third], &[a.id]).is_err(), "its source was replaced before");
    check_read(&store, 1, 0..50);
}

#[test]
fn the_throttle_sees_all_bytes_and_can_end_a_rewrite() {
    let disk = new_disk();
    let store = new_store(&disk);
    let a = settle(&store, vec![run(1, 0, &[4 << 20])]);
    let plan = RewritePlan { segments: vec![a.id], live_bytes: 0 };
    let mut calls = Vec::new();
    let prepared = store.rewrite(plan.clone(), &mut |bytes| {
        // The store can be used meanwhile.
        store.cut(1, 0);
        check_read(&store, 1, 0..10);
        calls.push(bytes);
        ControlFlow::Continue(())
    });
    store.discard(prepared.unwrap().unwrap());
    assert!(calls.len() >= 8 && calls.iter().all(|&bytes| bytes <= 2 << 20), "{calls:?}");
    assert!(calls.iter().sum::<u64>() >= 7 << 20, "{calls:?}");
    for stop_at in 0..calls.len() {
        let mut call = 0;
        let outcome = store.rewrite(plan.clone(), &mut |_| {
            call += 1;
            if call > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(outcome.unwrap().is_none());
        assert_eq!(files(&disk).len(), 1);
    }
    check_read(&store, 1, 0..4 << 20);
}

#[test]
fn sparse_segments_are_chosen_emptiest_first_up_to_the_target() {
    let policy = RewritePolicy { target_bytes: 1000, ..RewritePolicy::default() };
    let store = new_store(&new_disk()).with_policy(policy);
    let mut ids = Vec::new();
    for (at, live) in [600, 499, 100, 450, 500, 300].into_iter().enumerate() {
        let at = at as u64;
        ids.push(settle(&store, vec![run(at, 0, &[live]), run(100 + at, 0, &[1000 - live])]).id);
    }
    assert_eq!(store.choose_rewrite(u64::MAX), None);
    store.forget(&[100, 101, 102, 103, 104, 105]);
    let plan = store.choose_rewrite(u64::MAX).unwrap();
    assert_eq!((plan.segments(), plan.live_bytes()), (&[ids[2], ids[5], ids[3]][..], 850));
    let sources = plan.segments().to_vec();
    rewrite(&store, &sources).unwrap();
    assert_eq!(store.choose_rewrite(u64::MAX).unwrap().segments(), [ids[1]]);
    rewrite(&store, &[ids[1]]).unwrap();
    assert_eq!(store.choose_rewrite(u64::MAX), None);
}

/// Settles `count` segments of `bytes(i)` bytes and rewrites whatever is chosen. Returns the most segments seen, and
/// the bytes that rewrites wrote.
fn settle_many(
    store: &SegmentStore,
    count: u64,
    bytes: impl Fn(u64) -> u64,
    mut then: impl FnMut(&SegmentStore, u64),
) -> (usize, u64) {
    let mut most = 0;
    let mut rewritten = 0;
    let mut ends = [0; 4];
    for round in 0..count {
        let stream = (round % 4) as usize;
        let len = bytes(round);
        settle(store, vec![run(stream as u64, ends[stream], &[len]), run(1000 + round, 0, &[10])]);
        ends[stream] += len;
        then(store, round);
        store.publish(vec![], &store.dead_segments()).unwrap();
        while let Some(plan) = store.choose_rewrite(u64::MAX) {
            rewritten += rewrite(store, plan.segments()).unwrap().file_bytes;
        }
        most = most.max(store.segment_count());
    }
    for (stream, end) in ends.into_iter().enumerate() {
        let from = store.settled(stream as u64).unwrap().start;
        check_read(store, stream as u64, from..end);
    }
    (most, rewritten)
}

/// As the default, a thousand times smaller.
fn small_policy() -> RewritePolicy {
    RewritePolicy {
        target_bytes: 64 << 10,
        lowest_class_bytes: 64,
        highest_class_bytes: 64 << 10,
        joined_bytes_max: 256 << 10,
        ..RewritePolicy::default()
    }
}

#[test]
fn the_number_of_segments_and_the_bytes_written_anew_stay_bounded() {
    let store = new_store(&new_disk()).with_policy(small_policy());
    let (most, rewritten) = settle_many(&store, 2000, |round| 300 + round % 700, |_, _| ());
    let live = store.live_bytes();
    assert!(live > 1_200_000);
    let large = live / (64 << 10) + 1;
    assert!(most as u64 <= large + 7 * 6, "{most} segments");
    // From 300 bytes to 64 KiB there are at most five classes to climb.
    assert!(rewritten <= 5 * (live + live / 10), "{rewritten} bytes for {live}");
}

#[test]
fn dead_bytes_stay_within_what_is_alive() {
    let store = new_store(&new_disk()).with_policy(small_policy());
    // All but the last 20 small streams end, and the large ones are cut.
    let (_, rewritten) = settle_many(
        &store,
        600,
        |_| 500,
        |store, round| {
            store.forget(&[1000 + round.saturating_sub(20)]);
            for stream in 0..4 {
                if let Some(kept) = store.settled(stream) {
                    store.cut(stream, kept.end.saturating_sub(20_000));
                }
            }
        },
    );
    assert!(store.live_bytes() <= 4 * 20_000 + 21 * 10);
    assert!(
        store.disk_bytes() <= 3 * store.live_bytes(),
        "{} for {}",
        store.disk_bytes(),
        store.live_bytes()
    );
    assert!(rewritten <= 6 * 600 * 510, "{rewritten}");
    store.forget(&[0, 1, 2, 3]);
    store.forget(&(1000..1600).collect::<Vec<_>>());
    store.publish(vec![], &store.dead_segments()).unwrap();
    assert_eq!((store.disk_bytes(), store.segment_count(), store.live_bytes()), (0, 0, 0));
}
