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
