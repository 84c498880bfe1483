//! The commit thread over a scripted log.

use std::collections::VecDeque;
use std::sync::Mutex;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::*;
use crate::storage::{Checkpoint, DiskRoom, RoomRule};

const SETTLED_DISK_BYTES: u64 = 7;

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

/// The disk: what was done to it, and what it does to the next calls.
#[derive(Debug)]
struct Disk {
    script: Mutex<VecDeque<Act>>,
    open_failures: Mutex<usize>,
    /// Reclaim steps until nothing is left.
    doomed: Mutex<usize>,
    /// What the log takes until something is reclaimed; [`SETTLED_DISK_BYTES`] from then on.
    disk_bytes: Mutex<u64>,
    /// What the file system has left, if it tells.
    free: Mutex<Option<u64>>,
    reusable: Mutex<u64>,
    events: Mutex<Vec<Event>>,
    /// A commit says that it began, then waits for its turn if it is to be held.
    began: Sender<()>,
    turns: Option<Receiver<()>>,
}

impl Disk {
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
struct FakeOpener(Arc<Disk>);
#[derive(Debug)]
struct FakeLog(Arc<Disk>);
#[derive(Debug)]
struct FakeReader;

impl ColdReader for FakeReader {
    fn read(&self, _: u64, _: u64, _: u64, _: &mut dyn FnMut(&[u8])) -> Result<(), StorageError> {
        Err(StorageError::Missing)
    }

    fn boundary_at_or_before(&self, _: u64, _: u64) -> Result<u64, StorageError> {
        Err(StorageError::Missing)
    }
}

impl OpenLog for FakeOpener {
    fn open(&self, _: usize) -> Result<(Box<dyn CommitLog>, Recovered), StorageError> {
        let mut failures = self.0.open_failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err(StorageError::Corrupt("not yet".to_owned()));
        }
        self.0.note(Event::Open);
        let next_group = self.0.committed().concat().last().map_or(1, |last| last + 1);
        Ok((Box::new(FakeLog(Arc::clone(&self.0))), Recovered { next_group, ..Recovered::default() }))
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

    fn reader(&self) -> Arc<dyn ColdReader> {
        Arc::new(FakeReader)
    }

    fn disk_bytes(&self) -> u64 {
        *self.0.disk_bytes.lock().unwrap()
    }

    fn disk_room(&self) -> Option<DiskRoom> {
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
    disk: Arc<Disk>,
    began: Receiver<()>,
    turns: Sender<()>,
    completions: Receiver<Completion>,
}

impl Rig {
    fn new(held: bool, script: impl IntoIterator<Item = Act>, open_failures: usize, doomed: usize) -> Self {
        Self::on_disk(None, RoomRule::new(0, 1, 0), held, script, open_failures, doomed)
    }

    /// With `free` bytes on its disk, of which 1000 are to stay.
    fn with_free(free: u64, script: impl IntoIterator<Item = Act>) -> Self {
        Self::on_disk(Some(free), RoomRule { min_free: 1000, ample: 2000 }, false, script, 0, 0)
    }

    fn on_disk(
        free: Option<u64>,
        rule: RoomRule,
        held: bool,
        script: impl IntoIterator<Item = Act>,
        open_failures: usize,
        doomed: usize,
    ) -> Self {
        let (began_sender, began) = unbounded();
        let (turns, turns_receiver) = unbounded();
        let disk = Arc::new(Disk {
            script: Mutex::new(script.into_iter().collect()),
            open_failures: Mutex::new(open_failures),
            doomed: Mutex::new(doomed),
            disk_bytes: Mutex::new(SETTLED_DISK_BYTES),
            free: Mutex::new(free),
            reusable: Mutex::new(0),
            events: Mutex::new(Vec::new()),
            began: began_sender,
            turns: held.then_some(turns_receiver),
        });
        let (sender, completions) = unbounded();
        let report = Box::new(move |completion| drop(sender.send(completion)));
        let opener = Arc::new(FakeOpener(Arc::clone(&disk)));
        let log = Box::new(FakeLog(Arc::clone(&disk)));
        let mut watch = RoomWatch::new(3, rule);
        watch.look(&*log);
        let committer = Committer::spawn(3, opener, log, watch, report).unwrap();
        Self { committer, disk, began, turns, completions }
    }

    fn submit(&self, seqs: impl IntoIterator<Item = u64>) {
        for seq in seqs {
            self.committer.submit(Group { seq, ..Group::default() });
        }
    }

    fn next(&self) -> Completion {
        self.completions.recv().unwrap()
    }

    fn expect_durable(&self, through: u64) {
        self.expect_durable_taking(through, SETTLED_DISK_BYTES);
    }

    fn expect_durable_taking(&self, through: u64, bytes: u64) {
        let completion = self.next();
        assert!(
            matches!(completion, Completion::Durable { through: t, disk } if (t, disk.taken) == (through, bytes)),
            "expected durable through {through} taking {bytes}, got {completion:?}"
        );
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

    /// The next report of room, whatever else it says.
    fn expect_room(&self) -> u64 {
        match self.next() {
            Completion::Durable { disk, .. } | Completion::Reopened { disk, .. } => {
                disk.room.unwrap().bytes()
            }
            other => panic!("expected to hear of the disk, got {other:?}"),
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
    assert_eq!(rig.disk.committed(), [vec![1], vec![2, 3, 4, 5]]);
}

#[test]
fn one_commit_takes_a_bounded_number_of_bytes() {
    let rig = Rig::new(true, [], 0, 0);
    rig.submit([1]);
    rig.began.recv().unwrap();
    for seq in 2..=4 {
        rig.committer.submit(Group { seq, frames: vec![0; COMMIT_BYTES_MAX / 2 + 1], checkpoint: None });
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
    assert_eq!(rig.disk.committed(), [vec![5]]);
}

#[test]
fn the_log_is_closed_before_it_is_opened_again() {
    let rig = Rig::new(false, [Act::Fail], 0, 0);
    rig.submit([1]);
    rig.expect_failed("as told");
    rig.expect_reopened();
    assert_eq!(*rig.disk.events.lock().unwrap(), [Event::Close, Event::Open]);
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
    assert_eq!(rig.disk.committed(), [vec![3]]);
}

#[test]
fn an_idle_shard_reclaims_until_nothing_is_left() {
    let rig = Rig::new(false, [], 0, 5);
    while *rig.disk.doomed.lock().unwrap() > 0 {
        thread::yield_now();
    }
    rig.submit([1]);
    rig.expect_durable(1);
    let events = rig.disk.events.lock().unwrap();
    assert_eq!(events.iter().filter(|event| **event == Event::Reclaim).count(), 5);
}

#[test]
fn removing_streams_makes_an_idle_shard_look_again() {
    let rig = Rig::new(false, [], 0, 0);
    rig.submit([1]);
    rig.expect_durable(1);
    *rig.disk.doomed.lock().unwrap() = 3;
    let checkpoint = Checkpoint { removed: vec![9], ..Checkpoint::default() };
    rig.committer.submit(Group { seq: 2, checkpoint: Some(checkpoint), ..Group::default() });
    rig.expect_durable(2);
    while *rig.disk.doomed.lock().unwrap() > 0 {
        thread::yield_now();
    }
}

#[test]
fn what_reclaim_frees_is_reported_without_a_further_commit() {
    let rig = Rig::new(false, [], 0, 0);
    rig.submit([1]);
    rig.expect_durable(1);
    *rig.disk.doomed.lock().unwrap() = 2;
    *rig.disk.disk_bytes.lock().unwrap() = 100;
    let checkpoint = Checkpoint { removed: vec![9], ..Checkpoint::default() };
    rig.committer.submit(Group { seq: 2, checkpoint: Some(checkpoint), ..Group::default() });
    rig.expect_durable_taking(2, 100);
    rig.expect_durable(2);
    rig.committer.close();
    rig.expect_closed();
}

#[test]
fn a_shard_that_is_never_idle_reclaims_as_well() {
    let rig = Rig::new(true, [], 0, usize::MAX);
    rig.submit([1]);
    rig.began.recv().unwrap();
    for seq in 2..=6 {
        rig.committer.submit(Group { seq, frames: vec![0; COMMIT_BYTES_MAX], checkpoint: None });
    }
    for _ in 0..6 {
        rig.turns.send(()).unwrap();
    }
    for through in 1..=6 {
        rig.expect_durable(through);
    }
    let events = rig.disk.events.lock().unwrap();
    let commit_of = |seq| events.iter().position(|event| *event == Event::Commit(vec![seq])).unwrap();
    assert!(events[commit_of(1)..commit_of(6)].contains(&Event::Reclaim));
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
    assert_eq!(*rig.disk.events.lock().unwrap().last().unwrap(), Event::Close);
}

#[test]
fn dropping_the_committer_finishes_what_is_queued() {
    let Rig { committer, disk, began, completions, .. } = Rig::new(false, [], 0, 0);
    committer.submit(Group { seq: 1, ..Group::default() });
    drop(committer);
    assert!(matches!(completions.recv().unwrap(), Completion::Durable { through: 1, .. }));
    assert!(matches!(completions.recv().unwrap(), Completion::Closed));
    assert_eq!(disk.committed(), [vec![1]]);
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

#[test]
fn room_is_looked_at_again_without_traffic_while_it_is_scarce() {
    let rig = Rig::with_free(1500, []);
    for free in [900, 500, 1700] {
        *rig.disk.free.lock().unwrap() = Some(free);
        assert_eq!(rig.expect_room(), free);
    }
    *rig.disk.reusable.lock().unwrap() = 300;
    assert_eq!(rig.expect_room(), 2000);
    // Now that there is plenty, nobody looks before something is written.
    *rig.disk.free.lock().unwrap() = Some(1);
    rig.submit([1]);
    rig.committer.close();
    assert!(matches!(rig.next(), Completion::Durable { through: 1, .. }));
    rig.expect_closed();
}

#[test]
fn many_bytes_are_a_reason_to_look_at_once() {
    let rig = Rig::with_free(5000, []);
    *rig.disk.free.lock().unwrap() = Some(4000);
    rig.committer.submit(Group { seq: 1, frames: vec![0; COMMIT_BYTES_MAX], checkpoint: None });
    assert_eq!(rig.expect_room(), 4000);
}

#[test]
fn once_a_write_found_no_room_only_what_is_freed_since_counts() {
    let mut rig = Rig::with_free(5000, [Act::RunOut]);
    *rig.disk.reusable.lock().unwrap() = 4000;
    rig.submit([1]);
    rig.expect_failed("as told");
    assert_eq!(rig.expect_room(), 0);
    rig.committer.acknowledge_failure();
    *rig.disk.reusable.lock().unwrap() = 4300;
    assert_eq!(rig.expect_room(), 300);
    *rig.disk.free.lock().unwrap() = Some(5500);
    assert_eq!(rig.expect_room(), 800);
    rig.submit([2]);
    rig.expect_durable(2);
}
