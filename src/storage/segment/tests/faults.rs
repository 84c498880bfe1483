//! Every call to the disk fails once.

use super::watched_disk::WatchedDisk;
use super::*;

fn watched() -> (Arc<WatchedDisk>, MemoryDisk, SegmentStore) {
    let disk = new_disk();
    let watched = Arc::new(WatchedDisk::new(disk.clone()));
    let store = SegmentStore::open(Arc::clone(&watched) as Arc<dyn Disk>, 3, dir(), &[], 0, []).unwrap();
    (watched, disk, store)
}

/// Runs `work` with each of its calls failing in turn, until it gets through.
fn fail_each_call(watched: &WatchedDisk, mut work: impl FnMut() -> Result<(), StorageError>) -> u64 {
    for calls in 0.. {
        watched.fail_after(calls);
        let before = watched.calls();
        let outcome = work();
        watched.fail_none();
        match outcome {
            Ok(()) if watched.calls() - before <= calls => return calls,
            Ok(()) => {}
            Err(error) => assert!(matches!(error, StorageError::Io { .. }), "{error}"),
        }
    }
    unreachable!("some number of calls is enough")
}

#[test]
fn a_segment_that_could_not_be_written_leaves_nothing_behind() {
    let (watched, disk, store) = watched();
    // Large enough to be synced on the way.
    let runs = vec![run(1, 0, &[9 << 20]), run(2, 0, &[5])];
    let calls = fail_each_call(&watched, || {
        let before = files(&disk).len();
        match store.write_segment(runs.clone()) {
            Ok(prepared) => {
                store.discard(prepared);
                Ok(())
            }
            Err(error) => {
                assert_eq!(files(&disk).len(), before);
                Err(error)
            }
        }
    });
    assert!(calls >= 14, "{calls}");
    settle(&store, vec![run(1, 0, &[5])]);
    check_read(&store, 1, 0..5);
}

#[test]
fn reads_fail_with_their_call_and_work_again_with_the_next() {
    let (watched, _, store) = watched();
    let store = store.with_limits(StoreLimits { descriptors_max: 1, ..StoreLimits::default() });
    settle(&store, vec![run(1, 0, &[10 * BLOCK])]);
    settle(&store, vec![run(1, 10 * BLOCK, &[10 * BLOCK])]);
    let calls = fail_each_call(&watched, || {
        let bytes = read(&store, 1, 0..20 * BLOCK)?;
        assert_eq!(bytes, content(1, 0..20 * BLOCK));
        store.boundary_at_or_before(1, 20 * BLOCK - 1).map(|boundary| assert_eq!(boundary, 10 * BLOCK))
    });
    assert!(calls >= 6, "{calls}");
}

#[test]
fn a_rewrite_that_fails_changes_nothing() {
    let (watched, disk, store) = watched();
    let a = settle(&store, vec![run(1, 0, &[100_000]), run(2, 0, &[5])]);
    let b = settle(&store, vec![run(1, 100_000, &[100_000])]);
    let plan = RewritePlan { segments: vec![a.id, b.id], live_bytes: 0 };
    let calls = fail_each_call(&watched, || {
        let outcome = store.rewrite(plan.clone(), &mut |_| ControlFlow::Continue(()));
        if let Ok(Some(prepared)) = outcome {
            store.discard(prepared);
        } else {
            assert_eq!(files(&disk).len(), 2);
            outcome?;
        }
        Ok(())
    });
    assert!(calls >= 10, "{calls}");
    check_read(&store, 1, 0..200_000);
    assert!(rewrite(&store, &[a.id, b.id]).is_some());
    check_read(&store, 1, 0..200_000);
}

#[test]
fn an_opening_that_fails_can_be_repeated() {
    let (watched, _, store) = watched();
    let a = settle(&store, vec![run(1, 0, &[100])]);
    let b = settle(&store, vec![run(1, 100, &[100])]);
    store.write_segment(vec![run(1, 200, &[5])]).unwrap();
    let mut opened = None;
    let calls = fail_each_call(&watched, || {
        let disk = Arc::clone(&watched) as Arc<dyn Disk>;
        opened = Some(SegmentStore::open(disk, 3, dir(), &[a, b], 0, [(1, 0..200)])?);
        Ok(())
    });
    assert!(calls >= 10, "{calls}");
    check_read(&opened.unwrap(), 1, 0..200);
}

#[test]
fn reads_close_what_is_kept_open_when_there_are_no_descriptors_left() {
    let (watched, _, store) = watched();
    for stream in 0..8 {
        settle(&store, vec![run(stream, 0, &[10])]);
    }
    for stream in 0..6 {
        check_read(&store, stream, 0..10);
    }
    assert_eq!(store.descriptors.kept_open(), 6);
    // As many as are open already, then fewer: something else of the process has taken them.
    for allowed in [6, 2, 1] {
        watched.allow_open_files(allowed);
        for stream in 0..8 {
            check_read(&store, stream, 0..10);
            assert_eq!(store.boundary_at_or_before(stream, 9).unwrap(), 0);
        }
        assert_eq!((watched.open_files(), store.descriptors.kept_open()), (allowed, allowed));
    }
    watched.allow_open_files(0);
    check_read(&store, 7, 0..10);
    let Err(StorageError::Io { source, .. }) = read(&store, 0, 0..10) else {
        panic!("nothing was left to be closed");
    };
    assert_eq!(rustix::io::Errno::from_io_error(&source), Some(rustix::io::Errno::MFILE));
    watched.allow_open_files(1);
    for stream in 0..8 {
        check_read(&store, stream, 0..10);
    }
}
