//! The instant at which all commit threads stand still.
//!
//! Each thread arrives between two commits and goes on when the last one has arrived. It then looks at what it has, which is
//! still what it had in that instant: nobody else writes to its shard. So the threads wait for each other's commits under way,
//! and for nothing else.

use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{BackupError, ShardSnapshot};
use crate::storage::StorageError;

/// How long a thread stands still at most: longer than a commit takes on a disk in use, and shorter than any client waits.
const PATIENCE: Duration = Duration::from_secs(1);

/// What comes of it for one shard.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The shard's number.
    pub(crate) shard: usize,
    /// What it has; `Err` = there is no such instant, or the shard could not be looked at.
    pub(crate) snapshot: Result<ShardSnapshot, Missed>,
    /// How long its commits stood still.
    pub(crate) paused: Duration,
}

/// Why a shard has no snapshot.
#[derive(Debug)]
pub(crate) enum Missed {
    /// The threads did not come together in time; another try may help.
    TooLate,
    /// A shard does not commit.
    Absent(String),
    /// The snapshot failed.
    Failed(StorageError),
}

impl From<Missed> for BackupError {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::TooLate => {
                Self::ShardUnavailable("the commits of all shards could not be paused at one time".to_owned())
            }
            Missed::Absent(why) => Self::ShardUnavailable(why),
            Missed::Failed(error) => Self::Storage(error),
        }
    }
}

#[derive(Debug)]
struct Barrier {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    missing: usize,
    /// Why it will never be complete. Somebody's snapshot is not to be had, so nobody waits any more.
    broken: Option<Broken>,
}

#[derive(Clone, Debug)]
enum Broken {
    TooLate,
    Absent(String),
}

impl Barrier {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_with(&self, why: Broken) {
        self.state().broken.get_or_insert(why);
        self.changed.notify_all();
    }

    /// Waits for the others.
    fn arrive(&self) -> Result<(), Missed> {
        let mut state = self.state();
        state.missing = state.missing.saturating_sub(1);
        if state.missing == 0 {
            self.changed.notify_all();
        }
        let is_open = |state: &mut State| state.missing > 0 && state.broken.is_none();
        let (mut state, _) =
            self.changed.wait_timeout_while(state, PATIENCE, is_open).unwrap_or_else(PoisonError::into_inner);
        if state.missing > 0 && state.broken.is_none() {
            state.broken = Some(Broken::TooLate);
            self.changed.notify_all();
        }
        match state.broken.clone() {
            None => Ok(()),
            Some(Broken::TooLate) => Err(Missed::TooLate),
            Some(Broken::Absent(why)) => Err(Missed::Absent(why)),
        }
    }
}

/// A shard's invitation. Whoever drops it without having used it keeps the others from waiting.
pub(crate) struct Ticket {
    shard: usize,
    barrier: Arc<Barrier>,
    /// `None` once it was used.
    outcomes: Option<Sender<Outcome>>,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl Ticket {
    /// Arrives, waits for all others, and hands over what `take` finds then. For the commit thread, between two commits.
    pub(crate) fn use_up(mut self, take: impl FnOnce() -> Result<ShardSnapshot, StorageError>) {
        let Some(outcomes) = self.outcomes.take() else { return };
        let begun = Instant::now();
        let snapshot = self.barrier.arrive().and_then(|()| take().map_err(Missed::Failed));
        // Nobody waits any more if the backup was given up; then what was taken is let go of here.
        let _ = outcomes.send(Outcome { shard: self.shard, snapshot, paused: begun.elapsed() });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(outcomes) = self.outcomes.take() {
            let why = format!("shard {} takes no writes at present", self.shard);
            self.barrier.break_with(Broken::Absent(why.clone()));
            let snapshot = Err(Missed::Absent(why));
            let _ = outcomes.send(Outcome { shard: self.shard, snapshot, paused: Duration::ZERO });
        }
    }
}

/// Tickets for so many shards, and where their outcomes, one for each, come in.
pub(crate) fn tickets(shards: usize) -> (Vec<Ticket>, Receiver<Outcome>) {
    let state = Mutex::new(State { missing: shards, broken: None });
    let barrier = Arc::new(Barrier { state, changed: Condvar::new() });
    let (sender, outcomes) = channel();
    let ticket = |shard| Ticket { shard, barrier: Arc::clone(&barrier), outcomes: Some(sender.clone()) };
    ((0..shards).map(ticket).collect(), outcomes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    const SHARDS: usize = 3;
    /// How long it is looked whether anybody goes on who should not.
    const LOOK: Duration = Duration::from_millis(20);

    fn nothing() -> Result<ShardSnapshot, StorageError> {
        Err(StorageError::Missing)
    }

    /// Says whether nobody was too late, which a busy machine may make of it.
    fn all_but_one_arrive_and_then_the_last() -> bool {
        let (mut tickets, outcomes) = tickets(SHARDS);
        let last = tickets.pop().expect("there is one for each shard");
        let barrier = Arc::clone(&last.barrier);
        let last_has_come = AtomicBool::new(false);
        let is_too_late = |state: &State| matches!(state.broken, Some(Broken::TooLate));
        thread::scope(|scope| {
            for ticket in tickets {
                let last_has_come = &last_has_come;
                scope.spawn(move || {
                    ticket.use_up(|| {
                        assert!(last_has_come.load(Ordering::SeqCst), "somebody is still at work");
                        nothing()
                    });
                });
            }
            while barrier.state().missing > 1 && !is_too_late(&barrier.state()) {
                thread::yield_now();
            }
            thread::sleep(LOOK);
            last_has_come.store(true, Ordering::SeqCst);
            last.use_up(nothing);
        });
        let mut shards: Vec<usize> = outcomes.iter().map(|outcome| outcome.shard).collect();
        shards.sort_unstable();
        assert_eq!(shards, [0, 1, 2]);
        let broken = barrier.state().broken.clone();
        assert!(matches!(broken, None | Some(Broken::TooLate)), "{broken:?}");
        broken.is_none()
    }

    #[test]
    fn nobody_looks_at_a_shard_before_all_stand_still() {
        while !all_but_one_arrive_and_then_the_last() {}
    }

    #[test]
    fn nobody_waits_for_a_shard_whose_ticket_was_dropped() {
        let (mut tickets, outcomes) = tickets(SHARDS);
        drop(tickets.pop());
        for ticket in tickets {
            ticket.use_up(|| unreachable!("there is no instant to look at"));
        }
        let missed: Vec<_> = outcomes.iter().map(|outcome| outcome.snapshot.unwrap_err()).collect();
        assert!(missed.len() == SHARDS && missed.iter().all(|why| matches!(why, Missed::Absent(_))));
    }
}
