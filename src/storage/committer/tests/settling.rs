//! Content on its way into segments, and segments on their way into others.

use bytes::Bytes;

use super::files::Step;
use super::*;
use crate::storage::StreamCheckpoint;

const FAST: u64 = u64::MAX;
/// At this pace no rewrite gets anywhere.
const SLOW: u64 = 1;

/// Streams with so much content from position 0 on.
fn settling(streams: &[(u64, usize)]) -> Checkpoint {
    let stream = |&(id, bytes): &(u64, usize)| StreamCheckpoint {
        id,
        record: Vec::new(),
        producers: Vec::new(),
        cut: None,
        start: 0,
        end: bytes as u64,
        payload: vec![Bytes::from(vec![id as u8; bytes])],
    };
    Checkpoint { streams: streams.iter().map(stream).collect(), ..Checkpoint::default() }
}

fn removing(id: u64) -> Checkpoint {
    Checkpoint { removed: vec![id], ..Checkpoint::default() }
}

impl Rig {
    /// The next report of anything but the disk, and of groups after `durable`.
    fn next_event(&self, durable: u64) -> Completion {
        loop {
            match self.next() {
                Completion::Durable { through } if through <= durable => {}
                other => return other,
            }
        }
    }

    fn expect_prepared(&self) -> Checkpoint {
        match self.next_event(u64::MAX) {
            Completion::Prepared(checkpoint) => checkpoint,
            other => panic!("expected a prepared checkpoint, got {other:?}"),
        }
    }

    /// Commits a checkpoint and waits until it is in force.
    fn commit(&self, seq: u64, checkpoint: Checkpoint) {
        self.committer.submit(Group { seq, checkpoint: Some(checkpoint), ..Group::default() });
        let durable = self.next_event(seq - 1);
        assert!(matches!(durable, Completion::Durable { through } if through == seq), "{durable:?}");
        let published = self.next();
        assert!(matches!(published, Completion::Published { group } if group == seq), "{published:?}");
    }

    /// Settles the streams with group `seq`.
    fn settle(&self, seq: u64, streams: &[(u64, usize)]) {
        self.committer.settle(settling(streams));
        let prepared = self.expect_prepared();
        self.commit(seq, prepared);
    }

    /// Whether readers find all of a stream's content.
    fn has(&self, id: u64, bytes: usize) -> bool {
        match (&*self.segments as &dyn ColdReader).read_whole(id, 0, bytes as u64) {
            Ok(read) => {
                assert!(read == vec![id as u8; bytes]);
                true
            }
            Err(StorageError::Missing) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn wait_for_files(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.below.files.count() != count {
            assert!(Instant::now() < deadline, "there are {} files, not {count}", self.below.files.count());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Closes, and returns what is reported until that is done, but for the disk.
    fn rest(&self) -> Vec<Completion> {
        self.committer.close();
        let mut rest = Vec::new();
        loop {
            match self.next_event(u64::MAX) {
                Completion::Closed => return rest,
                other => rest.push(other),
            }
        }
    }
}

fn is_prepared(completion: &Completion) -> bool {
    matches!(completion, Completion::Prepared(_))
}

#[test]
fn content_is_found_in_its_segment_once_the_group_that_says_so_is_durable() {
    let rig = Setup { held: true, ..Setup::default() }.build();
    rig.committer.settle(settling(&[(7, 100_000), (2, 10), (5, 0)]));
    let prepared = rig.expect_prepared();
    let streams: Vec<_> =
        prepared.streams.iter().map(|stream| (stream.id, stream.start, stream.end)).collect();
    assert_eq!(streams, [(7, 0, 100_000), (2, 0, 10), (5, 0, 0)]);
    assert!(prepared.streams.iter().all(|stream| stream.payload.is_empty()));
    assert_eq!(prepared.segments_added.len(), 1);
    assert!(!rig.has(7, 100_000) && !rig.has(2, 10), "nothing says yet that it is there");
    rig.committer.submit(Group { seq: 1, checkpoint: Some(prepared), ..Group::default() });
    rig.began.recv().unwrap();
    assert!(!rig.has(7, 100_000) && !rig.has(2, 10), "the commit is under way");
    rig.turns.send(()).unwrap();
    assert!(matches!(rig.next(), Completion::Durable { through: 1, .. }));
    assert!(matches!(rig.next(), Completion::Published { group: 1 }));
    assert!(rig.has(7, 100_000) && rig.has(2, 10));
}

#[test]
fn streams_without_content_need_no_segment() {
    let rig = Setup::default().build();
    rig.committer.settle(settling(&[(1, 0)]));
    let prepared = rig.expect_prepared();
    assert!(prepared.segments_added.is_empty() && prepared.streams.len() == 1);
    rig.commit(1, prepared);
    assert_eq!(rig.below.files.count(), 0);
}

#[test]
fn content_of_a_stream_that_ended_meanwhile_is_not_found() {
    let rig = Setup::default().build();
    rig.committer.settle(settling(&[(1, 10), (2, 10)]));
    let mut prepared = rig.expect_prepared();
    prepared.streams.retain(|stream| stream.id == 2);
    prepared.removed.push(1);
    rig.commit(1, prepared);
    assert!(!rig.has(1, 10) && rig.has(2, 10));
    assert_eq!(rig.segments.live_bytes(), 10);
}

#[test]
fn what_segments_take_is_reported_with_what_the_log_takes() {
    let rig = Setup::default().build();
    rig.committer.settle(settling(&[(1, 50_000)]));
    let prepared = rig.expect_prepared();
    let bytes = prepared.segments_added[0].file_bytes;
    rig.commit(1, prepared);
    rig.expect_taken(SETTLED_DISK_BYTES + bytes);
}

#[test]
fn a_checkpoint_of_before_a_failure_is_not_prepared_after_it() {
    let mut rig = Setup { script: vec![Act::Fail], ..Setup::default() }.build();
    rig.below.files.hold();
    rig.committer.settle(settling(&[(1, 10)]));
    rig.below.files.wait_for_held();
    rig.submit([1]);
    rig.expect_failed("as told");
    // One that comes in while the log is being opened, and one whose segment is being written.
    rig.committer.settle(settling(&[(2, 10)]));
    rig.below.files.let_go();
    loop {
        match rig.next() {
            // Too late, and the shard knows: it has heard of the failure.
            Completion::Prepared(checkpoint) => assert_eq!(checkpoint.streams[0].id, 1),
            Completion::Reopened { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    rig.committer.settle(settling(&[(3, 10)]));
    rig.committer.acknowledge_failure();
    rig.committer.settle(settling(&[(4, 10)]));
    assert_eq!(rig.expect_prepared().streams[0].id, 4);
    assert!(rig.rest().is_empty());
}

#[test]
fn a_segment_of_before_a_failure_leaves_no_file_and_one_that_was_committed_is_there_after_it() {
    let mut rig = Setup { script: vec![Act::Fail], ..Setup::default() }.build();
    rig.committer.settle(settling(&[(1, 10)]));
    let prepared = rig.expect_prepared();
    rig.committer.submit(Group { seq: 1, checkpoint: Some(prepared), ..Group::default() });
    rig.expect_failed("as told");
    rig.expect_reopened();
    assert_eq!(rig.below.files.count(), 0);
    rig.committer.acknowledge_failure();
    rig.settle(2, &[(1, 10)]);
    rig.below.script.lock().unwrap().push_back(Act::Panic);
    rig.submit([3]);
    rig.expect_failed("panic as told");
    let Completion::Reopened { reader, .. } = rig.next() else { panic!("it reopens") };
    assert_eq!(reader.read_whole(1, 0, 10).unwrap(), [1; 10]);
}

#[test]
fn a_segment_is_written_again_until_the_disk_takes_it() {
    let rig = Setup::default().build();
    rig.below.files.fail([Step::Create, Step::SyncDir]);
    rig.settle(1, &[(1, 10)]);
    assert!(rig.has(1, 10));
    assert_eq!(rig.below.files.count(), 1, "what failed leaves nothing behind");
}

#[test]
fn a_checkpoint_that_finds_no_room_comes_back_as_it_was_and_another_one_can_be_settled() {
    let rig = Setup::default().build();
    rig.below.files.fail([Step::CreateWithoutRoom]);
    rig.committer.settle(settling(&[(1, 10), (2, 20)]));
    let Completion::NoRoom(back) = rig.next_event(u64::MAX) else { panic!("there is none") };
    let bytes = |stream: &StreamCheckpoint| stream.payload.iter().map(Bytes::len).sum();
    assert_eq!(back.streams.iter().map(bytes).collect::<Vec<usize>>(), [10, 20]);
    assert!(back.segments_added.is_empty());
    rig.settle(1, &[(2, 20)]);
    assert!(rig.has(2, 20) && !rig.has(1, 10));
}

#[test]
fn commits_go_on_while_no_segment_can_be_written() {
    let rig = Setup::default().build();
    rig.below.files.break_down();
    rig.committer.settle(settling(&[(1, 10)]));
    rig.below.files.wait_for_failures(1);
    rig.submit([1]);
    rig.expect_durable(1);
    rig.below.files.wait_for_failures(2);
    assert!(rig.rest().is_empty(), "closing gives it up");
}

#[test]
fn closing_waits_for_a_segment_that_is_being_written_and_for_nothing_else() {
    let rig = Setup::default().build();
    rig.below.files.hold();
    rig.committer.settle(settling(&[(1, 10)]));
    rig.below.files.wait_for_held();
    rig.committer.close();
    rig.below.files.let_go();
    let last = rig.completions.iter().find(|completion| !is_prepared(completion));
    assert!(matches!(last, Some(Completion::Closed)), "{last:?}");
}

#[test]
fn a_dead_segment_is_handed_over_once_and_its_file_goes_when_that_is_committed() {
    let rig = Setup::default().build();
    rig.settle(1, &[(1, 10)]);
    rig.settle(2, &[(2, 10)]);
    rig.commit(3, removing(1));
    let removal = rig.expect_prepared();
    assert_eq!(removal.segments_removed.len(), 1);
    assert!(removal.streams.is_empty() && removal.segments_added.is_empty());
    // It is looked for again, and must not be found twice.
    rig.settle(4, &[(3, 10)]);
    assert_eq!(rig.below.files.count(), 3);
    rig.commit(5, removal);
    assert_eq!(rig.below.files.count(), 2);
    assert!(!rig.has(1, 10) && rig.has(2, 10) && rig.has(3, 10));
    assert!(!rig.rest().iter().any(is_prepared));
}

#[test]
fn a_segment_with_little_live_content_is_rewritten_and_swapped_by_a_commit() {
    let rig = Setup { rewrite_bytes_per_sec: FAST, ..Setup::default() }.build();
    rig.settle(1, &[(1, 100_000), (2, 1_000_000)]);
    let before = rig.segments.disk_bytes();
    rig.commit(2, removing(2));
    let rewrite = rig.expect_prepared();
    assert!(rewrite.streams.is_empty() && rewrite.removed.is_empty());
    assert_eq!((rewrite.segments_added.len(), rewrite.segments_removed.len()), (1, 1));
    assert_eq!((rig.below.files.count(), rig.segments.disk_bytes()), (2, before));
    assert!(rig.has(1, 100_000));
    rig.commit(3, rewrite);
    assert_eq!(rig.below.files.count(), 1);
    assert!(rig.segments.disk_bytes() < before / 5);
    assert!(rig.has(1, 100_000));
    assert!(!rig.rest().iter().any(is_prepared), "one rewrite is enough");
}

#[test]
fn a_rewrite_that_the_disk_has_no_room_for_waits_until_it_has() {
    let rig = Setup { rewrite_bytes_per_sec: FAST, ..Setup::default() }.build();
    rig.settle(1, &[(1, 100_000), (2, 1_000_000)]);
    rig.below.files.set_free(300_000);
    rig.commit(2, removing(2));
    rig.settle(3, &[(3, 1_000)]);
    assert_eq!(rig.below.files.count(), 2, "nothing is written but what is settled");
    rig.below.files.set_free(1_000_000);
    // Whichever comes first: the thread looks for room whenever it has something to do.
    rig.committer.settle(settling(&[(4, 1_000)]));
    let prepared = [rig.expect_prepared(), rig.expect_prepared()];
    let of_rewrites = prepared.iter().filter(|prepared| prepared.streams.is_empty());
    let counts = of_rewrites.map(|rewrite| (rewrite.segments_added.len(), rewrite.segments_removed.len()));
    assert!(counts.eq([(1, 1)]));
}

#[test]
fn without_a_pace_nothing_is_rewritten_but_dead_segments_go() {
    let rig = Setup::default().build();
    rig.settle(1, &[(1, 10), (2, 1_000)]);
    rig.commit(2, removing(2));
    rig.commit(3, removing(1));
    let removal = rig.expect_prepared();
    assert_eq!((removal.segments_added.len(), removal.segments_removed.len()), (0, 1));
}

/// A rig whose settle thread is busy with a rewrite that does not end. Group 2 was the last one.
fn with_endless_rewrite() -> Rig {
    let rig = Setup { rewrite_bytes_per_sec: SLOW, ..Setup::default() }.build();
    rig.settle(1, &[(1, 100_000), (2, 1_000_000)]);
    rig.commit(2, removing(2));
    rig.wait_for_files(2);
    rig
}

#[test]
fn closing_ends_a_rewrite_and_leaves_no_part_of_it() {
    let rig = with_endless_rewrite();
    assert!(rig.rest().is_empty());
    assert_eq!(rig.below.files.count(), 1);
}

#[test]
fn content_is_settled_while_segments_are_rewritten() {
    let rig = with_endless_rewrite();
    for seq in 3..6 {
        rig.settle(seq, &[(seq, 1_000)]);
        assert!(rig.has(seq, 1_000) && rig.has(1, 100_000));
    }
}

#[test]
fn content_is_settled_while_a_rewrite_that_failed_waits_to_be_tried_again() {
    let rig = Setup { rewrite_bytes_per_sec: FAST, ..Setup::default() }.build();
    rig.settle(1, &[(1, 100_000), (2, 1_000_000)]);
    rig.below.files.fail([Step::Create]);
    rig.commit(2, removing(2));
    rig.below.files.wait_for_failures(1);
    rig.committer.settle(settling(&[(3, 1_000)]));
    let prepared = rig.expect_prepared();
    assert_eq!(prepared.streams.len(), 1, "{prepared:?}");
    rig.commit(3, prepared);
    assert!(rig.has(3, 1_000));
    // The rewrite is not forgotten.
    let rewrite = rig.expect_prepared();
    assert_eq!((rewrite.segments_added.len(), rewrite.segments_removed.len()), (1, 1));
}

/// Until it is told of the reopening a shard takes nothing, and what it does not take does not come again.
#[test]
fn dead_segments_are_given_up_after_a_failure_when_the_shard_is_open_again() {
    let mut rig = Rig::new(false, [], 0, 0);
    rig.settle(1, &[(7, 100)]);
    rig.commit(2, removing(7));
    *rig.below.look_takes.lock().unwrap() = Duration::from_millis(20);
    rig.below.script.lock().unwrap().push_back(Act::Fail);
    let dead = rig.expect_prepared();
    rig.committer.submit(Group { seq: 3, checkpoint: Some(dead), ..Group::default() });
    let failed = rig.next_event(2);
    assert!(matches!(failed, Completion::Failed { .. }), "{failed:?}");
    let reopened = rig.next_event(2);
    assert!(matches!(reopened, Completion::Reopened { .. }), "{reopened:?}");
    rig.committer.acknowledge_failure();
    let dead = rig.expect_prepared();
    assert_eq!(dead.segments_removed.len(), 1);
    rig.commit(3, dead);
    rig.wait_for_files(0);
}
