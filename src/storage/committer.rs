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
//!
//! # Backups
//!
//! A backup's [`Ticket`] is an order like others. Behind what was submitted before it, the thread stands still until those of all
//! other shards do, notes what its shard has, and goes on.

mod traffic;
mod worker;

use std::io;
use std::sync::Arc;

use crossbeam_channel::{Sender, unbounded};

use self::worker::{Start, Worker};
use super::backup::Ticket;
use super::segment::SegmentStore;
use super::settler::RewritePace;
use super::{Checkpoint, ColdReader, CommitLog, DiskUse, Group, OpenLog, Recovered, RoomWatch};

/// What the commit thread reports to its shard, in this order for each failure: `Failed`, any number of `ReopenFailed`,
/// `Reopened`. `Closed` is the last report ever.
#[derive(Debug)]
pub(crate) enum Completion {
    /// All groups up to and including number `through` are durable. Comes once for each commit, and may be followed by its failure:
    /// of what comes after it.
    Durable {
        /// Number of the last group of the commit.
        through: u64,
    },
    /// What the shard takes of its disk, and may take, has changed. Comes before the `Durable` of what takes more, as an upper
    /// bound, and again when it is known.
    Disk(DiskUse),
    /// A checkpoint that was handed to [`Committer::settle`] comes back without payload; or one that rewrites segments,
    /// which nobody asked for. It is to ride on a group. Those of before a failure are not to be used after it, and none of
    /// them comes after `Reopened`.
    Prepared(Checkpoint),
    /// A checkpoint that was handed to [`Committer::settle`] comes back as it was: its content finds no room. As for those that are
    /// prepared, it is not to be used after a failure.
    NoRoom(Checkpoint),
    /// The checkpoint of group number `group` is published: the content that it settled is read from segments.
    Published {
        /// Number of the group that carried it.
        group: u64,
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

/// Where completions go. Called on the commit thread and the settle thread; must not block.
pub(crate) type Report = Arc<dyn Fn(Completion) + Send + Sync>;

#[derive(Debug)]
enum Order {
    Commit { failures_seen: u64, group: Group },
    Settle { failures_seen: u64, checkpoint: Checkpoint },
    Snapshot(Ticket),
    Close,
}

/// The shard's end of its commit thread. Dropping it closes the log like [`Committer::close`].
#[derive(Debug)]
pub(crate) struct Committer {
    orders: Sender<Order>,
    failures_seen: u64,
}

impl Committer {
    /// Starts the commit thread of shard number `shard`, and the settle thread beside it, on what `opener` opened and
    /// `watch` has looked at. Rewrites of segments keep to `pace`.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub(crate) fn spawn(
        shard: usize,
        opener: Arc<dyn OpenLog>,
        log: Box<dyn CommitLog>,
        segments: Arc<SegmentStore>,
        pace: RewritePace,
        watch: RoomWatch,
        report: Report,
    ) -> io::Result<Self> {
        let (committer, worker) = Self::prepare(shard, opener, log, segments, pace, watch, report)?;
        worker.spawn()?;
        Ok(committer)
    }

    /// See [`Self::spawn`]: all but the commit thread itself is at work.
    fn prepare(
        shard: usize,
        opener: Arc<dyn OpenLog>,
        log: Box<dyn CommitLog>,
        segments: Arc<SegmentStore>,
        pace: RewritePace,
        watch: RoomWatch,
        report: Report,
    ) -> io::Result<(Self, Worker)> {
        let (sender, orders) = unbounded();
        let start = Start { shard, pace, report };
        let open = start.settler(log, segments)?;
        let worker = Worker::new(start, opener, open, watch, orders);
        Ok((Self { orders: sender, failures_seen: 0 }, worker))
    }

    /// Queues a group. Never blocks: how much may queue up is bounded by the shard's own limit on staged bytes.
    pub(crate) fn submit(&self, group: Group) {
        // The thread ends only after `Close`, and what comes after that is nobody's concern.
        let _ = self.orders.send(Order::Commit { failures_seen: self.failures_seen, group });
    }

    /// Has a checkpoint's payload written into a segment; it comes back as [`Completion::Prepared`]. One at a time.
    pub(crate) fn settle(&self, checkpoint: Checkpoint) {
        let _ = self.orders.send(Order::Settle { failures_seen: self.failures_seen, checkpoint });
    }

    /// Takes part in a backup, behind everything that was submitted.
    pub(crate) fn snapshot(&self, ticket: Ticket) {
        // A ticket that is dropped on its way says so.
        let _ = self.orders.send(Order::Snapshot(ticket));
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

/// What a shard submitted to a commit thread that is not there: the test stands in for it.
#[cfg(test)]
pub(crate) struct SubmittedGroups(crossbeam_channel::Receiver<Order>);

#[cfg(test)]
impl SubmittedGroups {
    /// Those since the last time.
    pub(crate) fn take(&self) -> Vec<Group> {
        let orders = self.0.try_iter();
        orders
            .filter_map(|order| if let Order::Commit { group, .. } = order { Some(group) } else { None })
            .collect()
    }
}

#[cfg(test)]
impl Committer {
    /// Without a thread.
    pub(crate) fn by_hand() -> (Self, SubmittedGroups) {
        let (orders, submitted) = unbounded();
        (Self { orders, failures_seen: 0 }, SubmittedGroups(submitted))
    }
}

#[cfg(test)]
mod tests;
