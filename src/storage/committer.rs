//! The commit thread of a shard.
//!
//! The core thread hands groups over and goes on; the commit thread takes whatever queued up while it was busy, makes that
//! durable in one step and reports once. There is no timer: the fsync under way is what gathers the next batch.
//!
//! # Failures
//!
//! A failed commit leaves it open what the disk holds, so nothing built on top of it may be written. The thread reports
//! [`Completion::Failed`], opens the log again until that works, and reports [`Completion::Reopened`] with what is really
//! there. Groups that the shard submitted before it learned of that belong to a state that no longer exists: each group
//! carries the number of failures that the shard had taken note of ([`Committer::acknowledge_failure`]), and the thread
//! drops those that lag behind its own count. A panic below is a failure like any other.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, unbounded};

use super::{ColdReader, CommitLog, DiskUse, Group, OpenLog, Recovered, RoomWatch, StorageError};

/// Most bytes of frames and payload taken into one commit, give or take one group: bounds how long the first group of a
/// batch waits for the others.
const COMMIT_BYTES_MAX: usize = 4 << 20;
/// A busy shard gets one reclaim step in after this many commits …
const RECLAIM_AFTER_COMMITS: usize = 64;
/// … or after this many bytes, so that removed streams free their disk under load too.
const RECLAIM_AFTER_BYTES: usize = 8 << 20;
/// Pauses between attempts to open that fail.
const REOPEN_DELAY_MIN: Duration = Duration::from_millis(50);
const REOPEN_DELAY_MAX: Duration = Duration::from_secs(5);
/// Pauses before the next write when opening works and writing does not, lest such a disk be hammered. The log is open
/// meanwhile, so readers do not wait.
const WRITE_DELAY_MIN: Duration = Duration::from_millis(50);
const WRITE_DELAY_MAX: Duration = Duration::from_secs(1);

/// What the commit thread reports to its shard, in this order for each failure: `Failed`, any number of `ReopenFailed`,
/// `Reopened`. `Closed` is the last report ever.
#[derive(Debug)]
pub(crate) enum Completion {
    /// All groups up to and including number `through` are durable. Comes after each commit, and again when something
    /// else changed how much disk is taken or free: a shard whose disk is full has no commits to learn that from.
    Durable {
        /// Number of the last group of the last commit; 0, which no group has, before the first one of this process.
        through: u64,
        /// What the shard takes of its disk, and may take.
        disk: DiskUse,
    },
    /// A commit, or the reclaim of removed payload, failed. Groups not reported durable are lost or not: only `Reopened`
    /// tells.
    Failed {
        /// What went wrong.
        error: String,
    },
    /// The log was opened again.
    Reopened {
        /// What it holds.
        recovered: Recovered,
        /// Its read side.
        reader: Arc<dyn ColdReader>,
        /// What it takes of its disk, and may take.
        disk: DiskUse,
    },
    /// The log could not be opened again yet; the thread goes on trying.
    ReopenFailed {
        /// What went wrong.
        error: String,
    },
    /// Everything submitted before the closing was committed or reported failed, and the log is closed.
    Closed,
}

/// Where completions go. Called on the commit thread; must not block.
pub(crate) type Report = Box<dyn Fn(Completion) + Send>;

#[derive(Debug)]
enum Order {
    Commit { failures_seen: u64, group: Group },
    Close,
}

/// The shard's end of its commit thread. Dropping it closes the log like [`Committer::close`].
#[derive(Debug)]
pub(crate) struct Committer {
    orders: Sender<Order>,
    failures_seen: u64,
}

impl Committer {
    /// Starts the thread of shard number `shard` on `log`, which `opener` opened and `watch` has looked at.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub(crate) fn spawn(
        shard: usize,
        opener: Arc<dyn OpenLog>,
        log: Box<dyn CommitLog>,
        watch: RoomWatch,
        report: Report,
    ) -> io::Result<Self> {
        let (sender, orders) = unbounded();
        let reported_disk = DiskUse { taken: log.disk_bytes(), room: watch.room() };
        let worker = Worker {
            shard,
            opener,
            log: Some(log),
            report,
            orders,
            durable_through: 0,
            watch,
            reported_disk,
            failures: 0,
            write_delay: Duration::ZERO,
            may_reclaim: true,
            commits_since_reclaim: 0,
            bytes_since_reclaim: 0,
            closing: false,
        };
        thread::Builder::new().name(format!("ds-commit-{shard}")).spawn(move || worker.run())?;
        Ok(Self { orders: sender, failures_seen: 0 })
    }

    /// Queues a group. Never blocks: how much may queue up is bounded by the shard's own limit on staged bytes.
    pub(crate) fn submit(&self, group: Group) {
        // The thread ends only after `Close`, and what comes after that is nobody's concern.
        let _ = self.orders.send(Order::Commit { failures_seen: self.failures_seen, group });
    }

    /// To be called exactly once for each failure, when [`Completion::Reopened`] is handled and before anything is submitted
    /// on top of the recovered state. Groups submitted before the call are never committed.
    pub(crate) fn acknowledge_failure(&mut self) {
        self.failures_seen += 1;
    }

    /// Lets the thread finish what is queued and close the log; [`Completion::Closed`] says when that is done. Does not
    /// block. While the log is being reopened, that is given up.
    pub(crate) fn close(&self) {
        let _ = self.orders.send(Order::Close);
    }
}

struct Worker {
    shard: usize,
    opener: Arc<dyn OpenLog>,
    /// `None` only while it is being reopened, or after that was given up because of `closing`.
    log: Option<Box<dyn CommitLog>>,
    report: Report,
    orders: Receiver<Order>,
    /// Number of the last group that this thread committed.
    durable_through: u64,
    watch: RoomWatch,
    reported_disk: DiskUse,
    failures: u64,
    /// Pause after the next reopening. Back to zero when something was written.
    write_delay: Duration,
    /// Whether removed streams may have left something behind.
    may_reclaim: bool,
    commits_since_reclaim: usize,
    bytes_since_reclaim: usize,
    closing: bool,
}

impl Worker {
    fn run(mut self) {
        while !self.closing {
            let Some(first) = self.next_order() else { break };
            let (groups, bytes) = self.gather(first);
            if !groups.is_empty() {
                self.commit(groups, bytes);
            }
            let due = self.commits_since_reclaim >= RECLAIM_AFTER_COMMITS
                || self.bytes_since_reclaim >= RECLAIM_AFTER_BYTES;
            if due && self.may_reclaim && !self.closing {
                self.reclaim();
            }
        }
        let Self { opener, log, report, .. } = self;
        // Whoever hears of the closing may open the same data directory at once.
        close_log(log);
        drop(opener);
        report(Completion::Closed);
    }

    /// The next order; until there is one, reclaims, and then looks for room if that is scarce. `None` = there will not be
    /// any.
    fn next_order(&mut self) -> Option<Order> {
        while self.may_reclaim && !self.closing {
            match self.orders.try_recv() {
                Ok(order) => return Some(order),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => self.reclaim(),
            }
        }
        while !self.closing {
            let Some(pause) = self.watch.pause() else { return self.orders.recv().ok() };
            match self.orders.recv_timeout(pause) {
                Ok(order) => return Some(order),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(log) = &self.log {
                        self.watch.look(&**log);
                    }
                    self.report_disk();
                }
            }
        }
        None
    }

    /// Says what the log takes of its disk and may take, if that has changed.
    fn report_disk(&mut self) {
        let Some(log) = &self.log else { return };
        let disk = DiskUse { taken: log.disk_bytes(), room: self.watch.room() };
        if disk != self.reported_disk {
            self.reported_disk = disk;
            (self.report)(Completion::Durable { through: self.durable_through, disk });
        }
    }

    /// Everything that queued up behind `first`, as far as it fits into one commit, and its bytes.
    fn gather(&mut self, first: Order) -> (Vec<Group>, usize) {
        let mut groups = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(order) = next {
            match order {
                Order::Commit { failures_seen, group } if failures_seen == self.failures => {
                    bytes += bytes_of(&group);
                    groups.push(group);
                }
                Order::Commit { .. } => {}
                Order::Close => {
                    self.closing = true;
                    break;
                }
            }
            if bytes >= COMMIT_BYTES_MAX {
                break;
            }
            next = self.orders.try_recv().ok();
        }
        (groups, bytes)
    }

    fn commit(&mut self, mut groups: Vec<Group>, bytes: usize) {
        let through = groups.last().map_or(0, |group| group.seq);
        let Some(log) = &mut self.log else { return };
        match guarded(|| log.commit(&mut groups)) {
            Ok(()) => {
                self.durable_through = through;
                self.watch.wrote(bytes, &**log);
                self.reported_disk = DiskUse { taken: log.disk_bytes(), room: self.watch.room() };
                (self.report)(Completion::Durable { through, disk: self.reported_disk });
                self.write_delay = Duration::ZERO;
                self.may_reclaim |= groups.iter().any(removes_streams);
                self.commits_since_reclaim += 1;
                self.bytes_since_reclaim += bytes;
            }
            Err(error) => self.fail(&error),
        }
    }

    fn reclaim(&mut self) {
        let Some(log) = &mut self.log else { return };
        self.commits_since_reclaim = 0;
        self.bytes_since_reclaim = 0;
        match guarded(|| log.reclaim()) {
            Ok(more) => {
                self.may_reclaim = more;
                // The last step tells what all of it brought.
                self.watch.wrote(if more { 0 } else { usize::MAX }, &**log);
                self.report_disk();
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &StorageError) {
        self.failures += 1;
        (self.report)(Completion::Failed { error: error.to_string() });
        close_log(self.log.take());
        if matches!(error, StorageError::DiskFull(_)) {
            self.watch.ran_out();
        }
        let mut reopen_delay = Duration::ZERO;
        while !self.closing {
            self.drop_orders_for(reopen_delay);
            if self.closing {
                return;
            }
            reopen_delay = (reopen_delay * 2).clamp(REOPEN_DELAY_MIN, REOPEN_DELAY_MAX);
            match guarded(|| self.opener.open(self.shard)) {
                Ok((log, recovered)) => {
                    let reader = log.reader();
                    self.watch.look(&*log);
                    self.reported_disk = DiskUse { taken: log.disk_bytes(), room: self.watch.room() };
                    self.log = Some(log);
                    self.may_reclaim = true;
                    (self.report)(Completion::Reopened { recovered, reader, disk: self.reported_disk });
                    thread::sleep(self.write_delay);
                    self.write_delay = (self.write_delay * 2).clamp(WRITE_DELAY_MIN, WRITE_DELAY_MAX);
                    return;
                }
                Err(error) => (self.report)(Completion::ReopenFailed { error: error.to_string() }),
            }
        }
    }

    /// Waits, dropping all groups that come in: the shard cannot know yet what they would be based on.
    fn drop_orders_for(&mut self, pause: Duration) {
        let deadline = Instant::now() + pause;
        loop {
            match self.orders.recv_deadline(deadline) {
                Ok(Order::Commit { .. }) => {}
                Ok(Order::Close) | Err(RecvTimeoutError::Disconnected) => {
                    self.closing = true;
                    return;
                }
                Err(RecvTimeoutError::Timeout) => return,
            }
        }
    }
}

fn bytes_of(group: &Group) -> usize {
    let settled = group.checkpoint.iter().flat_map(|checkpoint| &checkpoint.streams);
    let settled = settled
        .map(|stream| stream.record.len() + stream.payload.iter().map(bytes::Bytes::len).sum::<usize>());
    group.frames.len() + settled.sum::<usize>()
}

fn removes_streams(group: &Group) -> bool {
    group.checkpoint.as_ref().is_some_and(|checkpoint| !checkpoint.removed.is_empty())
}

fn close_log(log: Option<Box<dyn CommitLog>>) {
    // What fails here fails at the next opening too, where it is reported.
    let _ = guarded(|| {
        drop(log);
        Ok(())
    });
}

/// Runs `f`, turning a panic into an error. The log is given up after either, so what a panic left half done in it is
/// never looked at.
fn guarded<T>(f: impl FnOnce() -> Result<T, StorageError>) -> Result<T, StorageError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        Err(StorageError::Database {
            context: "the storage panicked".to_owned(),
            message: message_of(&*panic).to_owned(),
        })
    })
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests;
