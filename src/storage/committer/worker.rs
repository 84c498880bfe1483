//! What the commit thread does.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::traffic::Traffic;
use super::{Completion, Order, Report};
use crate::storage::backup::{ShardSnapshot, Ticket};
use crate::storage::segment::SegmentStore;
use crate::storage::settler::{Hand, Outcome, RewritePace, Settler};
use crate::storage::{
    ColdReader, CommitLog, DiskUse, Group, OpenLog, OpenedShard, Recovered, RoomWatch, StorageError,
};

/// Most bytes of frames and payload taken into one commit, give or take one group: bounds how long the first group of a
/// batch waits for the others.
pub(super) const COMMIT_BYTES_MAX: usize = 4 << 20;
/// How long the thread looks for more after a commit before it sleeps. A client that waits for each answer is back by then,
/// and to wake a thread takes a third of that, on both sides.
const LOOK_OUT: Duration = Duration::from_micros(150);
/// How long nothing has to be committed before something is reclaimed: that may take its time.
const RECLAIM_AFTER: Duration = Duration::from_millis(500);
/// Pauses between attempts to open that fail.
const REOPEN_DELAY_MIN: Duration = Duration::from_millis(50);
const REOPEN_DELAY_MAX: Duration = Duration::from_secs(5);
/// Pauses before the next write when opening works and writing does not, lest such a disk be hammered. The log is open
/// meanwhile, so readers do not wait.
const WRITE_DELAY_MIN: Duration = Duration::from_millis(50);
const WRITE_DELAY_MAX: Duration = Duration::from_secs(1);

/// A shard's storage at work.
pub(super) struct Open {
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
pub(super) struct Start {
    pub(super) shard: usize,
    pub(super) pace: RewritePace,
    pub(super) report: Report,
}

impl Start {
    pub(super) fn settler(&self, log: Box<dyn CommitLog>, segments: Arc<SegmentStore>) -> io::Result<Open> {
        let report = Arc::clone(&self.report);
        let hand: Hand = Arc::new(move |outcome| {
            report(match outcome {
                Outcome::Prepared(checkpoint) => Completion::Prepared(checkpoint),
                Outcome::NoRoom(checkpoint) => Completion::NoRoom(checkpoint),
            });
        });
        let settler = Settler::spawn(self.shard, Arc::clone(&segments), self.pace, hand)?;
        Ok(Open { settler, log, segments })
    }
}

/// The thread's own state.
pub(super) struct Worker {
    start: Start,
    opener: Arc<dyn OpenLog>,
    /// `None` only while it is being reopened, or after that was given up because of `closing`.
    open: Option<Open>,
    orders: Receiver<Order>,
    /// Orders that came during a pause, before those in `orders`.
    postponed: VecDeque<Order>,
    watch: RoomWatch,
    reported_disk: DiskUse,
    failures: u64,
    /// For a backup, when what was gathered before it is committed.
    ticket: Option<Ticket>,
    /// Pause after the next reopening. Back to zero when something was written.
    pub(super) write_delay: Duration,
    /// There was a commit, and nobody has looked for the next one.
    is_alert: bool,
    /// Whether removed streams may have left something behind.
    may_reclaim: bool,
    pub(super) traffic: Traffic,
    closing: bool,
}

impl Worker {
    /// A thread that is still to be started.
    pub(super) fn new(
        start: Start,
        opener: Arc<dyn OpenLog>,
        open: Open,
        watch: RoomWatch,
        orders: Receiver<Order>,
    ) -> Self {
        let reported_disk = DiskUse { taken: open.disk_bytes(), room: watch.room() };
        open.settler.look(false);
        Self {
            start,
            opener,
            open: Some(open),
            orders,
            postponed: VecDeque::new(),
            watch,
            reported_disk,
            failures: 0,
            ticket: None,
            write_delay: Duration::ZERO,
            is_alert: false,
            may_reclaim: true,
            traffic: Traffic::new(Box::new(Instant::now)),
            closing: false,
        }
    }

    /// # Errors
    /// If the operating system gives no thread.
    pub(super) fn spawn(self) -> io::Result<()> {
        let name = format!("ds-commit-{}", self.start.shard);
        thread::Builder::new().name(name).spawn(move || self.run())?;
        Ok(())
    }

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
        let Self { opener, open, start, .. } = self;
        if let Some(open) = &open {
            // A backup under way has no claim to the files any more.
            open.segments.retire();
        }
        // Whoever hears of the closing may open the same data directory at once.
        close(open);
        drop(opener);
        (start.report)(Completion::Closed);
    }

    /// The next order. If there is none for a while, reclaims, and looks for room if that is scarce. `None` = there will
    /// not be any.
    fn next_order(&mut self) -> Option<Order> {
        while !self.closing {
            if let Some(order) = self.postponed.pop_front().or_else(|| self.look_out()) {
                return Some(order);
            }
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

    /// Looks for a while, after a commit, whether its clients go on at once. Meanwhile others have this CPU if they want it.
    fn look_out(&mut self) -> Option<Order> {
        let until = std::mem::take(&mut self.is_alert).then(|| Instant::now() + LOOK_OUT)?;
        loop {
            match self.orders.try_recv() {
                Err(TryRecvError::Empty) if Instant::now() < until => thread::yield_now(),
                found => return found.ok(),
            }
        }
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
            (self.start.report)(Completion::Disk(disk));
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
            next = self.postponed.pop_front().or_else(|| self.orders.try_recv().ok());
        }
        (groups, bytes)
    }

    fn commit(&mut self, mut groups: Vec<Group>, bytes: usize) {
        let through = groups.last().map_or(0, |group| group.seq);
        let Some(open) = &mut self.open else { return };
        // Before the groups count as staged no more: for an instant they count twice, but never not at all.
        self.reported_disk.taken += bytes as u64;
        let takes_more = (bytes > 0).then_some(self.reported_disk);
        let report = Arc::clone(&self.start.report);
        let on_durable = Box::new(move || {
            takes_more.into_iter().for_each(|disk| report(Completion::Disk(disk)));
            report(Completion::Durable { through });
        });
        if let Err(error) = guarded(|| open.log.commit_and_tell(&mut groups, on_durable)) {
            return self.fail(&error);
        }
        self.is_alert = true;
        self.traffic.add(bytes);
        self.watch.wrote(bytes, &*open.log);
        self.report_disk();
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
                (self.start.report)(Completion::Published { group: group.seq });
                open.settler.look(!checkpoint.segments_removed.is_empty());
            }
            Ok(())
        });
        match published {
            Ok(()) => self.report_disk(),
            Err(error) => self.fail(&error),
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
        if self.traffic.was_light() && self.may_reclaim {
            self.reclaim();
        }
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
        (self.start.report)(Completion::Failed { error: error.to_string() });
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
                    (self.start.report)(Completion::Reopened { recovered, reader, disk: self.reported_disk });
                    if let Some(open) = &self.open {
                        open.settler.look(false);
                    }
                    self.postpone_orders_for(self.write_delay);
                    self.write_delay = (self.write_delay * 2).clamp(WRITE_DELAY_MIN, WRITE_DELAY_MAX);
                    return;
                }
                Err(error) => (self.start.report)(Completion::ReopenFailed { error: error.to_string() }),
            }
        }
    }

    fn reopen(&self) -> Result<(Open, Recovered), StorageError> {
        let OpenedShard { log, segments, recovered } = self.opener.open(self.start.shard)?;
        let open = self
            .start
            .settler(log, segments)
            .map_err(|source| StorageError::Io { context: "starting a settle thread".to_owned(), source })?;
        Ok((open, recovered))
    }

    /// Waits, leaving all that comes in for later. A closing does not wait: what is left is tried once.
    fn postpone_orders_for(&mut self, pause: Duration) {
        let deadline = Instant::now() + pause;
        // Nobody sends any more, or the time is over.
        while let Ok(order) = self.orders.recv_deadline(deadline) {
            let closes = matches!(order, Order::Close);
            self.postponed.push_back(order);
            if closes {
                return;
            }
        }
    }

    /// Waits, dropping all groups that come in: the shard cannot know yet what they would be based on.
    fn drop_orders_for(&mut self, pause: Duration) {
        let deadline = Instant::now() + pause;
        loop {
            let order = self.postponed.pop_front().map_or_else(|| self.orders.recv_deadline(deadline), Ok);
            match order {
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
