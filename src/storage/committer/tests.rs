//! The commit thread over a scripted log, and segments in RAM.

mod files;
mod room;
mod settling;
mod timing;

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use self::files::Files;
use super::traffic::Traffic;
use super::worker::COMMIT_BYTES_MAX;
use super::*;
use crate::storage::backup::LogSnapshot;
use crate::storage::segment::SegmentMeta;
use crate::storage::{DiskRoom, OpenedShard, RoomRule, StorageError};

const SETTLED_DISK_BYTES: u64 = 7;
/// How long something that has to happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
const SHARD: usize = 3;

/// What the log does when it is asked to commit.
#[derive(Debug)]
enum Act {
    Fail,
    RunOut,
    Panic,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Commit(Vec<u64>),
    Reclaim,
    Open,
    Close,
}

/// What is below the log: what was done to it, and what it does to the next calls.
#[derive(Debug)]
struct Below {
    script: Mutex<VecDeque<Act>>,
    open_failures: Mutex<usize>,
    /// Reclaim steps until nothing is left.
    doomed: Mutex<usize>,
    /// What the log takes until something is reclaimed; [`SETTLED_DISK_BYTES`] from then on.
    disk_bytes: Mutex<u64>,
    /// What the file system has left, if it tells.
    free: Mutex<Option<u64>>,
    reusable: Mutex<u64>,
    /// How long a look at the room takes: meanwhile others get on.
    look_takes: Mutex<Duration>,
    events: Mutex<Vec<Event>>,
    /// A commit says that it began, then waits for its turn if it is to be held.
    began: Sender<()>,
    turns: Option<Receiver<()>>,
    catalog: Mutex<Catalog>,
    files: Files,
}

/// What checkpoints left behind.
#[derive(Debug, Default)]
struct Catalog {
    kept: BTreeMap<u64, Range<u64>>,
    segments: Vec<SegmentMeta>,
}

impl Catalog {
    fn apply(&mut self, checkpoint: &Checkpoint) {
        for stream in &checkpoint.streams {
            self.kept.entry(stream.id).or_insert(stream.start..stream.start).end = stream.end;
        }
        self.kept.retain(|id, _| !checkpoint.removed.contains(id));
        self.segments.extend(checkpoint.segments_added.iter().copied());
        self.segments.retain(|segment| !checkpoint.segments_removed.contains(&segment.id));
    }
}

impl Below {
    fn open_segments(&self, shard: usize) -> Result<SegmentStore, StorageError> {
        let Catalog { kept, segments } = &*self.catalog.lock().unwrap();
        let kept = kept.iter().map(|(id, range)| (*id, range.clone()));
        SegmentStore::open(Arc::new(self.files.clone()), shard, PathBuf::new(), segments, 0, kept)
    }

    fn note(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }

    fn committed(&self) -> Vec<Vec<u64>> {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .filter_map(|event| if let Event::Commit(seqs) = event { Some(seqs.clone()) } else { None })
            .collect()
    }
}

#[derive(Debug)]
struct FakeOpener(Arc<Below>);
#[derive(Debug)]
struct FakeLog(Arc<Below>);

impl OpenLog for FakeOpener {
    fn open(&self, shard: usize) -> Result<OpenedShard, StorageError> {
        let mut failures = self.0.open_failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(StorageError::Corrupt("not yet".to_owned()));
        }
        self.0.note(Event::Open);
        let next_group = self.0.committed().concat().last().map_or(1, |last| last + 1);
        Ok(OpenedShard {
            log: Box::new(FakeLog(Arc::clone(&self.0))),
            segments: Arc::new(self.0.open_segments(shard)?),
            recovered: Recovered { next_group, ..Recovered::default() },
        })
    }
}

impl CommitLog for FakeLog {
    fn commit(&mut self, groups: &mut [Group]) -> Result<(), StorageError> {
        let _ = self.0.began.send(());
        if let Some(turns) = &self.0.turns {
            turns.recv().unwrap();
        }
        let act = self.0.script.lock().unwrap().pop_front();
        match act {
            Some(Act::Fail) => return Err(StorageError::Corrupt("as told".to_owned())),
            Some(Act::RunOut) => return Err(StorageError::DiskFull("as told".to_owned())),
            Some(Act::Panic) => panic!("panic as told"),
            None => {}
        }
        self.0.note(Event::Commit(groups.iter().map(|group| group.seq).collect()));
        for checkpoint in groups.iter().filter_map(|group| group.checkpoint.as_ref()) {
            self.0.catalog.lock().unwrap().apply(checkpoint);
        }
        Ok(())
    }

    fn reclaim(&mut self) -> Result<bool, StorageError> {
        let mut doomed = self.0.doomed.lock().unwrap();
        if *doomed == 0 {
            return Ok(false);
        }
        self.0.note(Event::Reclaim);
        *doomed -= 1;
        *self.0.disk_bytes.lock().unwrap() = SETTLED_DISK_BYTES;
        Ok(*doomed > 0)
    }

    fn snapshot(&mut self) -> Result<Box<dyn LogSnapshot>, StorageError> {
        unreachable!("nobody backs it up")
    }

    fn disk_bytes(&self) -> u64 {
        *self.0.disk_bytes.lock().unwrap()
    }

    fn disk_room(&self) -> Option<DiskRoom> {
        thread::sleep(*self.0.look_takes.lock().unwrap());
        let reusable = *self.0.reusable.lock().unwrap();
        self.0.free.lock().unwrap().map(|free| DiskRoom { free, withheld: 0, reusable })
    }
}

impl Drop for FakeLog {
    fn drop(&mut self) {
        self.0.note(Event::Close);
    }
}

struct Rig {
    committer: Committer,
    below: Arc<Below>,
    segments: Arc<SegmentStore>,
    began: Receiver<()>,
    turns: Sender<()>,
    completions: Receiver<Completion>,
    /// As it was reported last.
    disk: Cell<DiskUse>,
}

/// What a [`Rig`] is made of.
#[derive(Default)]
struct Setup {
    script: Vec<Act>,
    /// Commits wait for their turn.
    held: bool,
    open_failures: usize,
    doomed: usize,
    /// Bytes on the disk, of which 1000 are to stay.
    free: Option<u64>,
    rewrite_bytes_per_sec: u64,
    files: Files,
    /// Pause after the first failure.
    write_delay: Duration,
    /// The time by which traffic is judged; without one, the real one.
    clock: Option<Arc<Mutex<Instant>>>,
}

impl Setup {
    fn build(self) -> Rig {
        let (began_sender, began) = unbounded();
        let (turns, turns_receiver) = unbounded();
        let below = Arc::new(Below {
            script: Mutex::new(self.script.into()),
            open_failures: Mutex::new(self.open_failures),
            doomed: Mutex::new(self.doomed),
            disk_bytes: Mutex::new(SETTLED_DISK_BYTES),
            free: Mutex::new(self.free),
            reusable: Mutex::new(0),
            look_takes: Mutex::default(),
            events: Mutex::new(Vec::new()),
            began: began_sender,
            turns: self.held.then_some(turns_receiver),
            catalog: Mutex::default(),
            files: self.files,
        });
        let (sender, completions) = unbounded();
        let report = Arc::new(move |completion| drop(sender.send(completion)));
        let opener = Arc::new(FakeOpener(Arc::clone(&below)));
        let log = Box::new(FakeLog(Arc::clone(&below)));
        let segments = Arc::new(below.open_segments(SHARD).unwrap());
        let rule = match self.free {
            Some(_) => RoomRule { min_free: 1000, ample: 2000 },
            None => RoomRule::new(0, 1, 0),
        };
        let mut watch = RoomWatch::new(SHARD, rule);
        watch.look(&*log);
        let disk = Cell::new(DiskUse { taken: SETTLED_DISK_BYTES, room: watch.room() });
        let pace = RewritePace { bytes_per_sec: self.rewrite_bytes_per_sec, shards: 1 };
        let (committer, mut worker) =
            Committer::prepare(SHARD, opener, log, Arc::clone(&segments), pace, watch, report).unwrap();
        worker.write_delay = self.write_delay;
        if let Some(clock) = self.clock {
            worker.traffic = Traffic::new(Box::new(move || *clock.lock().unwrap()));
        }
        worker.spawn().unwrap();
        Rig { committer, below, segments, began, turns, completions, disk }
    }
}

impl Rig {
    fn new(held: bool, script: impl IntoIterator<Item = Act>, open_failures: usize, doomed: usize) -> Self {
        Setup { held, script: script.into_iter().collect(), open_failures, doomed, ..Setup::default() }
            .build()
    }

    /// With `free` bytes on its disk, of which 1000 are to stay.
    fn with_free(free: u64, script: impl IntoIterator<Item = Act>) -> Self {
        Setup { free: Some(free), script: script.into_iter().collect(), ..Setup::default() }.build()
    }

    fn submit(&self, seqs: impl IntoIterator<Item = u64>) {
        for seq in seqs {
            self.committer.submit(Group { seq, ..Group::default() });
        }
    }

    /// The next report of anything but the disk.
    fn next(&self) -> Completion {
        loop {
            match self.completions.recv_timeout(PATIENCE).unwrap() {
                Completion::Disk(disk) => self.disk.set(disk),
                other => return other,
            }
        }
    }

    fn expect_durable(&self, through: u64) {
        let completion = self.next();
        assert!(
            matches!(completion, Completion::Durable { through: t } if t == through),
            "expected durable through {through}, got {completion:?}"
        );
    }

    /// What is said of the disk next, if need be, is that so much is taken in the end.
    fn expect_taken(&self, bytes: u64) {
        while self.disk.get().taken != bytes {
            match self.completions.recv_timeout(PATIENCE).unwrap() {
                Completion::Disk(disk) => self.disk.set(disk),
                other => panic!("expected {bytes} to be taken, not {:?}; got {other:?}", self.disk.get()),
            }
        }
    }

    fn expect_failed(&self, with: &str) {
        let completion = self.next();
        assert!(
            matches!(&completion, Completion::Failed { error } if error.contains(with)),
            "{completion:?}"
        );
    }

    fn expect_reopened(&self) -> Recovered {
        match self.next() {
            Completion::Reopened { recovered, .. } => recovered,
            other => panic!("expected a reopening, got {other:?}"),
        }
    }

    /// The next room that is reported.
    fn expect_room(&self) -> u64 {
        let before = self.disk.get().room;
        while self.disk.get().room == before {
            match self.completions.recv_timeout(PATIENCE).unwrap() {
                Completion::Disk(disk) | Completion::Reopened { disk, .. } => self.disk.set(disk),
                Completion::Durable { .. } => {}
                other => panic!("expected to hear of the disk, got {other:?}"),
            }
        }
        self.disk.get().room.unwrap().bytes()
    }

    /// Waits until nothing is left to be reclaimed.
    fn wait_for_reclaims(&self) {
        let deadline = Instant::now() + PATIENCE;
        while *self.below.doomed.lock().unwrap() > 0 {
            assert!(Instant::now() < deadline, "an idle shard reclaims");
            thread::yield_now();
        }
    }

    fn expect_closed(&self) {
        let completion = self.next();
        assert!(matches!(completion, Completion::Closed), "{completion:?}");
    }
}

#[test]
fn groups_that_queue_up_during_a_commit_are_committed_together() {
    let rig = Rig::new(true, [], 0, 0);
    rig.submit([1]);
    rig.began.recv().unwrap();
    rig.submit(2..=5);
    rig.turns.send(()).unwrap();
    rig.turns.send(()).unwrap();
    rig.expect_durable(1);
    rig.expect_durable(5);
    assert_eq!(rig.below.committed(), [vec![1], vec![2, 3, 4, 5]]);
}

#[test]
fn one_commit_takes_a_bounded_number_of_bytes() {
    let rig = Rig::new(true, [], 0, 0);
    rig.submit([1]);
    rig.began.recv().unwrap();
    for seq in 2..=4 {
        rig.committer.submit(Group {
            seq,
            frames: vec![0; COMMIT_BYTES_MAX / 2 + 1].into(),
            ..Group::default()
        });
    }
    for _ in 0..3 {
        rig.turns.send(()).unwrap();
    }
    rig.expect_durable(1);
    rig.expect_durable(3);
    rig.expect_durable(4);
}

#[test]
fn a_failure_discards_what_was_submitted_before_the_shard_learned_of_it() {
    let mut rig = Rig::new(true, [Act::Fail], 0, 0);
    rig.submit([1]);
    rig.began.recv().unwrap();
    rig.submit([2, 3]);
    rig.turns.send(()).unwrap();
    rig.expect_failed("as told");
    assert_eq!(rig.expect_reopened().next_group, 1);
    rig.submit([4]);
    rig.committer.acknowledge_failure();
    rig.submit([5]);
    rig.turns.send(()).unwrap();
    rig.expect_durable(5);
    assert_eq!(rig.below.committed(), [vec![5]]);
}

#[test]
fn the_log_is_closed_before_it_is_opened_again() {
    let rig = Rig::new(false, [Act::Fail], 0, 0);
    rig.submit([1]);
    rig.expect_failed("as told");
    rig.expect_reopened();
    assert_eq!(*rig.below.events.lock().unwrap(), [Event::Close, Event::Open]);
}

#[test]
fn a_panic_below_is_a_failure() {
    let mut rig = Rig::new(false, [Act::Panic], 0, 0);
    rig.submit([1]);
    rig.expect_failed("panic as told");
    rig.expect_reopened();
    rig.committer.acknowledge_failure();
    rig.submit([2]);
    rig.expect_durable(2);
}

#[test]
fn opening_is_tried_again_until_it_works() {
    let rig = Rig::new(false, [Act::Fail], 2, 0);
    rig.submit([1]);
    rig.expect_failed("as told");
    for _ in 0..2 {
        assert!(matches!(rig.next(), Completion::ReopenFailed { .. }));
    }
    rig.expect_reopened();
}

#[test]
fn each_failure_counts_for_itself() {
    let mut rig = Rig::new(false, [Act::Fail, Act::Fail], 0, 0);
    for seq in [1, 2] {
        rig.submit([seq]);
        rig.expect_failed("as told");
        rig.expect_reopened();
        rig.committer.acknowledge_failure();
    }
    rig.submit([3]);
    rig.expect_durable(3);
    assert_eq!(rig.below.committed(), [vec![3]]);
}

#[test]
fn an_idle_shard_reclaims_until_nothing_is_left() {
    let rig = Rig::new(false, [], 0, 2);
    rig.wait_for_reclaims();
    rig.submit([1]);
    rig.expect_durable(1);
    let events = rig.below.events.lock().unwrap();
    assert_eq!(events.iter().filter(|event| **event == Event::Reclaim).count(), 2);
}

#[test]
fn removing_streams_makes_an_idle_shard_look_again() {
    let rig = Rig::new(false, [], 0, 0);
    rig.submit([1]);
    rig.expect_durable(1);
    *rig.below.doomed.lock().unwrap() = 1;
    let checkpoint = Checkpoint { removed: vec![9], ..Checkpoint::default() };
    rig.committer.submit(Group { seq: 2, checkpoint: Some(checkpoint), ..Group::default() });
    rig.expect_durable(2);
    rig.wait_for_reclaims();
}

#[test]
fn what_reclaim_frees_is_reported_without_a_further_commit() {
    let rig = Rig::new(false, [], 0, 0);
    rig.submit([1]);
    rig.expect_durable(1);
    *rig.below.doomed.lock().unwrap() = 2;
    *rig.below.disk_bytes.lock().unwrap() = 100;
    let checkpoint = Checkpoint { removed: vec![9], ..Checkpoint::default() };
    rig.committer.submit(Group { seq: 2, checkpoint: Some(checkpoint), ..Group::default() });
    rig.expect_durable(2);
    rig.expect_taken(100);
    assert!(matches!(rig.next(), Completion::Published { group: 2 }));
    rig.expect_taken(SETTLED_DISK_BYTES);
    rig.committer.close();
    rig.expect_closed();
}

#[test]
fn a_shard_that_has_something_to_commit_does_not_reclaim() {
    let rig = Rig::new(true, [], 0, usize::MAX);
    rig.submit([1]);
    rig.began.recv().unwrap();
    for seq in 2..=6 {
        let checkpoint = Some(Checkpoint { removed: vec![9], ..Checkpoint::default() });
        rig.committer.submit(Group {
            seq,
            frames: vec![0; COMMIT_BYTES_MAX].into(),
            checkpoint,
            ..Group::default()
        });
    }
    rig.committer.close();
    for _ in 0..6 {
        rig.turns.send(()).unwrap();
    }
    assert!(rig.completions.iter().any(|completion| matches!(completion, Completion::Closed)));
    let events = rig.below.events.lock().unwrap();
    let commit_of = |seq| events.iter().position(|event| *event == Event::Commit(vec![seq])).unwrap();
    assert!(!events[commit_of(1)..].contains(&Event::Reclaim));
}

#[test]
fn closing_finishes_what_is_queued() {
    let rig = Rig::new(true, [], 0, 0);
    rig.submit([1]);
    rig.began.recv().unwrap();
    rig.submit([2, 3]);
    rig.committer.close();
    rig.submit([4]);
    rig.turns.send(()).unwrap();
    rig.turns.send(()).unwrap();
    rig.expect_durable(1);
    rig.expect_durable(3);
    rig.expect_closed();
    assert_eq!(*rig.below.events.lock().unwrap().last().unwrap(), Event::Close);
}

#[test]
fn dropping_the_committer_finishes_what_is_queued() {
    let Rig { committer, below, began, completions, .. } = Rig::new(false, [], 0, 0);
    committer.submit(Group { seq: 1, ..Group::default() });
    drop(committer);
    assert!(matches!(completions.recv().unwrap(), Completion::Durable { through: 1 }));
    assert!(matches!(completions.recv().unwrap(), Completion::Closed));
    assert_eq!(below.committed(), [vec![1]]);
    drop(began);
}

#[test]
fn closing_gives_up_a_reopening_that_does_not_work() {
    let rig = Rig::new(false, [Act::Fail], usize::MAX, 0);
    rig.submit([1]);
    rig.expect_failed("as told");
    rig.committer.close();
    let last =
        rig.completions.iter().find(|completion| !matches!(completion, Completion::ReopenFailed { .. }));
    assert!(matches!(last, Some(Completion::Closed)));
}

#[test]
fn a_failed_commit_during_closing_is_reported_and_closes() {
    let rig = Rig::new(true, [Act::Fail], 0, 0);
    rig.submit([1]);
    rig.began.recv().unwrap();
    rig.committer.close();
    rig.turns.send(()).unwrap();
    rig.expect_failed("as told");
    let last = rig.completions.iter().find(|completion| !matches!(completion, Completion::Reopened { .. }));
    assert!(matches!(last, Some(Completion::Closed)));
}
