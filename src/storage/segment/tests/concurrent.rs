//! Readers while segments come and go.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::ending::RaiseOnDrop;
use super::*;

const STREAMS: u64 = 6;

#[test]
fn readers_find_every_byte_while_segments_are_replaced_and_removed() {
    let disk = new_disk();
    let limits = StoreLimits { descriptors_max: 2, ..StoreLimits::default() };
    let store = new_store(&disk).with_limits(limits);
    let policy = RewritePolicy { class_count: 2, lowest_class_bytes: 1, ..RewritePolicy::default() };
    let store = &store.with_policy(policy);
    let settled: Vec<AtomicU64> = (0..STREAMS).map(|_| AtomicU64::new(0)).collect();
    let (settled, stop) = (&settled[..], &AtomicBool::new(false));
    thread::scope(|scope| {
        // However this ends, readers do.
        let _stop = RaiseOnDrop(stop);
        for reader in 0..3 {
            scope.spawn(move || read_on(store, settled, stop, reader));
        }
        let mut ends = vec![0; STREAMS as usize];
        for round in 0..150_u64 {
            let mut runs = vec![run(100 + round, 0, &[100])];
            for stream in (0..STREAMS).filter(|stream| (stream + round) % 3 > 0) {
                let len = 1 + (round * 7919 + stream * 104_729) % 9000;
                runs.push(run(stream, ends[stream as usize], &[len]));
                ends[stream as usize] += len;
            }
            settle(store, runs);
            for (end, settled) in ends.iter().zip(settled) {
                settled.store(*end, Ordering::SeqCst);
            }
            store.forget(&[100 + round]);
            while let Some(plan) = store.choose_rewrite(u64::MAX) {
                rewrite(store, plan.segments());
            }
        }
    });
    assert!(store.segment_count() < 20);
    assert_eq!(files(&disk).len(), store.segment_count());
}

fn read_on(store: &SegmentStore, settled: &[AtomicU64], stop: &AtomicBool, reader: u64) {
    let mut dice = reader + 1;
    while !stop.load(Ordering::SeqCst) {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let stream = (dice >> 33) % STREAMS;
        let end = settled[stream as usize].load(Ordering::SeqCst);
        if end == 0 {
            continue;
        }
        let from = (dice >> 20) % end;
        let to = end.min(from + 20_000);
        check_read(store, stream, from..to);
        let boundary = store.boundary_at_or_before(stream, from).unwrap();
        assert!(boundary <= from);
        // A stream that comes and goes: all of it or nothing.
        let short_lived = 100 + (dice >> 40) % 150;
        match read(store, short_lived, 0..100) {
            Ok(bytes) => assert_eq!(bytes, content(short_lived, 0..100)),
            Err(error) => assert!(matches!(error, StorageError::Missing), "{error}"),
        }
    }
}
