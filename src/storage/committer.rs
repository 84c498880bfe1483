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

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::backup::{ShardSnapshot, Ticket};
use super::segment::SegmentStore;
use super::settler::{Hand, RewritePace, Settler};
use super::{
    Checkpoint, ColdReader, CommitLog, DiskUse, Group, OpenLog, OpenedShard, Recovered, RoomWatch,
    StorageError,
};

/// Most bytes of frames and payload taken into one commit, give or take one group: bounds how long the first group of a
/// batch waits for the others.
const COMMIT_BYTES_MAX: usize = 4 << 20;
/// How long nothing has to be committed before something is reclaimed: that may take its time.
const RECLAIM_AFTER: Duration = Duration::from_millis(500);
/// Without such a pause it is reclaimed after this time, between two commits …
const RECLAIM_LATEST: Duration = Duration::from_secs(10);
/// … if so little was committed meanwhile that what is free in the files will not be used again soon. Bytes.
const LIGHT_TRAFFIC_BYTES: usize = 1 << 20;
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
    /// A checkpoint that was handed to [`Committer::settle`] comes back without payload; or one that rewrites segments,
    /// which nobody asked for. It is to ride on a group. Those of before a failure are not to be used after it, and none of
    /// them comes after `Reopened`.
    Prepared(Checkpoint),
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
        let (sender, orders) = unbounded();
        let start = Start { shard, pace, report: Arc::clone(&report) };
        let open = start.settler(log, segments)?;
        let reported_disk = DiskUse { taken: open.disk_bytes(), room: watch.room() };
        let worker = Worker {
            shard,
            opener,
            start,
            open: Some(open),
            report,
            orders,
            durable_through: 0,
            watch,
            reported_disk,
            failures: 0,
            ticket: None,
            write_delay: Duration::ZERO,
            may_reclaim: true,
            reclaim_since: (Instant::now(), 0),
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

/// A shard's storage at work.
struct Open {
    /// First, so that the thread has ended before what it works on is closed.
    settler: Settler,
    log: Box<dyn CommitLog>,
    segments: Arc<SegmentStore>,
}

impl Open {
    fn disk_bytes(&self) -> u64 {
        self.log.disk_bytes() + self.segments.disk_bytes()
    }
}

/// What a settle thread is started with.
struct Start {
    shard: usize,
    pace: RewritePace,
    report: Report,
}

impl Start {
    fn settler(&self, log: Box<dyn CommitLog>, segments: Arc<SegmentStore>) -> io::Result<Open> {
        let report = Arc::clone(&self.report);
        let hand: Hand = Arc::new(move |checkpoint| report(Completion::Prepared(checkpoint)));
        let settler = Settler::spawn(self.shard, Arc::clone(&segments), self.pace, hand)?;
        Ok(Open { settler, log, segments })
    }
}

struct Worker {
    shard: usize,
    opener: Arc<dyn OpenLog>,
    start: Start,
    /// `None` only while it is being reopened, or after that was given up because of `closing`.
    open: Option<Open>,
    report: Report,
    orders: Receiver<Order>,
    /// Number of the last group that this thread committed.
    durable_through: u64,
    watch: RoomWatch,
    reported_disk: DiskUse,
    failures: u64,
    /// For a backup, when what was gathered before it is committed.
    ticket: Option<Ticket>,
    /// Pause after the next reopening. Back to zero when something was written.
    write_delay: Duration,
    /// Whether removed streams may have left something behind.
    may_reclaim: bool,
    /// Since when, or since the traffic was looked at, and the bytes that were committed since.
    reclaim_since: (Instant, usize),
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
            self.take_snapshot();
            self.flush_if_due();
            self.reclaim_if_traffic_is_light();
            if self.open.as_ref().is_some_and(|open| open.settler.has_ended()) {
                // Nothing would be settled any more, and the journal would grow.
                self.fail(&StorageError::Database {
                    context: "settling".to_owned(),
                    message: "the settle thread panicked".to_owned(),
                });
            }
        }
        let Self { opener, open, start, report, .. } = self;
        if let Some(open) = &open {
            // A backup under way has no claim to the files any more.
            open.segments.retire();
        }
        // Whoever hears of the closing may open the same data directory at once.
        close(open);
        drop(start);
        drop(opener);
        report(Completion::Closed);
    }

    /// The next order. If there is none for a while, reclaims, and looks for room if that is scarce. `None` = there will
    /// not be any.
    fn next_order(&mut self) -> Option<Order> {
        while !self.closing {
            let reclaim = self.may_reclaim.then_some(RECLAIM_AFTER);
            let flush = self.flush_due().map(|due| due.saturating_duration_since(Instant::now()));
            let Some(pause) = reclaim.into_iter().chain(self.watch.pause()).chain(flush).min() else {
                return self.orders.recv().ok();
            };
            match self.orders.recv_timeout(pause) {
                Ok(order) => return Some(order),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.flush_if_due() => {}
                Err(RecvTimeoutError::Timeout) if self.may_reclaim => self.reclaim(),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(open) = &self.open {
                        self.watch.look(&*open.log);
                    }
                    self.report_disk();
                }
            }
        }
        None
    }

    fn flush_due(&self) -> Option<Instant> {
        self.open.as_ref()?.log.flush_due()
    }

    /// Flushes the log if it is time. Says whether it was.
    fn flush_if_due(&mut self) -> bool {
        if self.flush_due().is_none_or(|due| due > Instant::now()) {
            return false;
        }
        let Some(open) = &mut self.open else { return false };
        if let Err(error) = guarded(|| open.log.flush()) {
            self.fail(&error);
        }
        true
    }

    /// Says what the log takes of its disk and may take, if that has changed.
    fn report_disk(&mut self) {
        let Some(open) = &self.open else { return };
        let disk = DiskUse { taken: open.disk_bytes(), room: self.watch.room() };
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
                Order::Settle { failures_seen, checkpoint } if failures_seen == self.failures => {
                    if let Some(open) = &self.open {
                        open.settler.settle(checkpoint);
                    }
                }
                Order::Commit { .. } | Order::Settle { .. } => {}
                Order::Snapshot(ticket) => {
                    self.ticket = Some(ticket);
                    break;
                }
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
        let Some(open) = &mut self.open else { return };
        if let Err(error) = guarded(|| open.log.commit(&mut groups)) {
            return self.fail(&error);
        }
        self.durable_through = through;
        self.reclaim_since.1 += bytes;
        self.watch.wrote(bytes, &*open.log);
        self.reported_disk = DiskUse { taken: open.disk_bytes(), room: self.watch.room() };
        (self.report)(Completion::Durable { through, disk: self.reported_disk });
        self.write_delay = Duration::ZERO;
        self.may_reclaim |= groups.iter().any(frees_disk);
        groups.retain(|group| group.checkpoint.is_some());
        if !groups.is_empty() {
            self.publish(groups);
        }
    }

    /// Groups with checkpoints are durable.
    fn publish(&mut self, mut groups: Vec<Group>) {
        let Some(open) = &mut self.open else { return };
        let published = guarded(|| {
            open.log.checkpoint(&mut groups)?;
            for group in groups {
                let Some(checkpoint) = group.checkpoint else { continue };
                for stream in &checkpoint.streams {
                    if let Some(cut) = stream.cut {
                        open.segments.cut(stream.id, cut);
                    }
                }
                open.segments.publish(checkpoint.to_publish, &checkpoint.segments_removed)?;
                open.segments.forget(&checkpoint.removed);
                (self.report)(Completion::Published { group: group.seq });
                open.settler.look(!checkpoint.segments_removed.is_empty());
            }
            Ok(())
        });
        if let Err(error) = published {
            self.fail(&error);
        }
    }

    /// Stands still with the other shards if a backup asks for it, and notes what there is.
    fn take_snapshot(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        // Without a log the ticket is dropped, which tells the others.
        let Some(open) = &mut self.open else { return };
        ticket.use_up(|| {
            // A panic in here leaves the log as it was: nothing is written.
            let log = guarded(|| open.log.snapshot())?;
            Ok(ShardSnapshot { log, segments: Arc::clone(&open.segments).hold() })
        });
    }

    fn reclaim_if_traffic_is_light(&mut self) {
        let (since, bytes) = self.reclaim_since;
        if since.elapsed() < RECLAIM_LATEST {
            return;
        }
        if self.may_reclaim && bytes < LIGHT_TRAFFIC_BYTES {
            self.reclaim();
        }
        self.reclaim_since = (Instant::now(), 0);
    }

    fn reclaim(&mut self) {
        let Some(open) = &mut self.open else { return };
        match guarded(|| open.log.reclaim()) {
            Ok(more) => {
                self.may_reclaim = more;
                // The last step tells what all of it brought.
                self.watch.wrote(if more { 0 } else { usize::MAX }, &*open.log);
                self.report_disk();
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &StorageError) {
        self.failures += 1;
        self.ticket = None;
        (self.report)(Completion::Failed { error: error.to_string() });
        if let Some(open) = &self.open {
            open.segments.retire();
        }
        close(self.open.take());
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
            match guarded(|| self.reopen()) {
                Ok((open, recovered)) => {
                    let reader = Arc::clone(&open.segments) as Arc<dyn ColdReader>;
                    self.watch.look(&*open.log);
                    self.reported_disk = DiskUse { taken: open.disk_bytes(), room: self.watch.room() };
                    self.open = Some(open);
                    self.may_reclaim = true;
                    (self.report)(Completion::Reopened { recovered, reader, disk: self.reported_disk });
                    // Orders wait in the queue. A closing does too, but no longer than `WRITE_DELAY_MAX`.
                    thread::sleep(self.write_delay);
                    self.write_delay = (self.write_delay * 2).clamp(WRITE_DELAY_MIN, WRITE_DELAY_MAX);
                    return;
                }
                Err(error) => (self.report)(Completion::ReopenFailed { error: error.to_string() }),
            }
        }
    }

    fn reopen(&self) -> Result<(Open, Recovered), StorageError> {
        let OpenedShard { log, segments, recovered } = self.opener.open(self.shard)?;
        let open = self
            .start
            .settler(log, segments)
            .map_err(|source| StorageError::Io { context: "starting a settle thread".to_owned(), source })?;
        Ok((open, recovered))
    }

    /// Waits, dropping all groups that come in: the shard cannot know yet what they would be based on.
    fn drop_orders_for(&mut self, pause: Duration) {
        let deadline = Instant::now() + pause;
        loop {
            match self.orders.recv_deadline(deadline) {
                Ok(Order::Commit { .. } | Order::Settle { .. } | Order::Snapshot(_)) => {}
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
    let records = group.checkpoint.iter().flat_map(|checkpoint| &checkpoint.streams);
    group.frames.len() + records.map(|stream| stream.record.len()).sum::<usize>()
}

fn frees_disk(group: &Group) -> bool {
    group.checkpoint.as_ref().is_some_and(|checkpoint| {
        !checkpoint.removed.is_empty()
            || !checkpoint.segments_removed.is_empty()
            || checkpoint.trim_before > 0
    })
}

fn close(open: Option<Open>) {
    // What fails here fails at the next opening too, where it is reported.
    let _ = guarded(|| {
        drop(open);
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
