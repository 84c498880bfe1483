//! What the commit thread does by the clock.

use super::*;
use crate::storage::committer::traffic::{LIGHT_BYTES, SPAN};

/// A shard that has something to commit at any time.
struct BusyShard {
    rig: Rig,
    clock: Arc<Mutex<Instant>>,
    /// The group whose commit is under way.
    seq: u64,
    /// What was reclaimed when it began.
    reclaims: usize,
}

impl BusyShard {
    fn start() -> Self {
        let clock = Arc::new(Mutex::new(Instant::now()));
        let setup =
            Setup { held: true, doomed: usize::MAX, clock: Some(Arc::clone(&clock)), ..Setup::default() };
        let rig = setup.build();
        rig.submit([1]);
        rig.began.recv_timeout(PATIENCE).unwrap();
        let mut shard = Self { rig, clock, seq: 1, reclaims: 0 };
        shard.reclaims();
        shard
    }

    /// How often something was reclaimed since this was asked last.
    fn reclaims(&mut self) -> usize {
        let events = self.rig.below.events.lock().unwrap();
        let reclaims = events.iter().filter(|event| **event == Event::Reclaim).count();
        reclaims - std::mem::replace(&mut self.reclaims, reclaims)
    }

    /// Some time goes by, then the commit under way ends and one of `bytes` begins. Says how often something was reclaimed
    /// in between.
    fn commit(&mut self, pause: Duration, bytes: usize) -> usize {
        self.seq += 1;
        self.rig.committer.submit(Group { seq: self.seq, frames: vec![0; bytes].into(), ..Group::default() });
        *self.clock.lock().unwrap() += pause;
        self.rig.turns.send(()).unwrap();
        self.rig.began.recv_timeout(PATIENCE).unwrap();
        self.reclaims()
    }
}

#[test]
fn light_traffic_that_never_pauses_does_not_keep_a_shard_from_reclaiming() {
    let mut shard = BusyShard::start();
    let moment = Duration::from_millis(1);
    assert_eq!(shard.commit(SPAN - moment, LIGHT_BYTES - 1), 0, "the span is not over");
    assert_eq!(shard.commit(moment, 0), 1, "a byte more would be too much");
    assert_eq!(shard.commit(SPAN - moment, LIGHT_BYTES / 2), 0, "the next span begins there");
    assert_eq!(shard.commit(Duration::ZERO, LIGHT_BYTES / 2), 0);
    assert_eq!(shard.commit(moment, 0), 0, "what is free in the files is used again");
    assert_eq!(shard.commit(SPAN * 3, 0), 1, "what was before the span does not count");
    assert_eq!(shard.commit(moment, 0), 0);
    shard.rig.committer.close();
    shard.rig.turns.send(()).unwrap();
    let mut completions = shard.rig.completions.iter();
    assert!(completions.any(|completion| matches!(completion, Completion::Closed)));
}

/// Longer than any test is waited for.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn closing_does_not_wait_for_the_end_of_the_pause_after_a_failed_write() {
    let mut rig = Setup { script: vec![Act::Fail], write_delay: DAY, ..Setup::default() }.build();
    rig.submit([1]);
    rig.expect_failed("as told");
    rig.expect_reopened();
    rig.submit([2]);
    rig.committer.acknowledge_failure();
    rig.submit([3, 4]);
    rig.committer.close();
    rig.submit([5]);
    rig.expect_durable(4);
    rig.expect_closed();
    assert_eq!(rig.below.committed(), [vec![3, 4]], "what came in meanwhile keeps its order");
}

#[test]
fn a_shard_that_is_dropped_does_not_wait_for_the_end_of_that_pause_either() {
    let mut rig = Setup { script: vec![Act::Fail], write_delay: DAY, ..Setup::default() }.build();
    rig.submit([1]);
    rig.expect_failed("as told");
    rig.expect_reopened();
    rig.committer.acknowledge_failure();
    rig.submit([2]);
    let Rig { committer, below, completions, .. } = rig;
    drop(committer);
    let completion = completions.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(completion, Completion::Durable { through: 2 }), "{completion:?}");
    let completion = completions.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(completion, Completion::Closed), "{completion:?}");
    assert_eq!(below.committed(), [vec![2]]);
}

#[test]
fn a_write_that_fails_again_while_its_shard_is_being_closed_is_given_up() {
    let mut rig = Setup { script: vec![Act::Fail, Act::Fail], write_delay: DAY, ..Setup::default() }.build();
    rig.submit([1]);
    rig.expect_failed("as told");
    rig.expect_reopened();
    rig.committer.acknowledge_failure();
    // Each of them is a commit of its own.
    for seq in [2, 3] {
        rig.committer.submit(Group { seq, frames: vec![0; COMMIT_BYTES_MAX].into(), ..Group::default() });
    }
    rig.committer.close();
    rig.expect_failed("as told");
    rig.expect_closed();
    assert_eq!(rig.below.committed(), [[0; 0]; 0]);
}
