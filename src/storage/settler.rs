//! The settle thread of a shard: writes content into segments, away from commits, and rewrites segments that are worth it.
//!
//! ```text
//!   core thread                 commit thread             settle thread
//!   ───────────                 ─────────────             ─────────────
//!   checkpoint with payload ───► passed on ─────────────► segment written, fsynced
//!   checkpoint without      ◄──────────────────────────── Completion::Prepared
//!   rides on the next group ───► committed; published ──► what is dead now may be worth a rewrite
//! ```
//!
//! A segment that was written and not committed is a file that nobody lists: the next opening removes it. So this thread
//! may be stopped anywhere.
//!
//! Rewrites give way: they are paced, and content that comes to be settled meanwhile is written in between.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::segment::{PreparedSegment, RunSource, SegmentStore};
use super::{Checkpoint, StorageError};

/// Pause before a segment that could not be written is tried again, under another name.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);
/// A rewrite that is ahead of its pace by less does not pause.
const PACE_SLACK: Duration = Duration::from_millis(20);

/// Part of what is free on the disk that one rewrite may take: it frees no less, but only afterwards.
const PART_OF_FREE: u64 = 4;
/// Bytes that a rewrite reads and writes between two looks at what is free.
const LOOK_BYTES: u64 = 4 << 20;
/// Longest pause before rewrites are tried again that failed or found no room.
const REWRITE_DELAY_MAX: Duration = Duration::from_secs(300);

/// How rewrites of segments give way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RewritePace {
    /// Read and written at most; 0 = nothing is rewritten.
    pub(crate) bytes_per_sec: u64,
    /// Shards that share the disk, at least 1.
    pub(crate) shards: usize,
}

/// What becomes of a checkpoint.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Its content is in a segment; it has none itself any more.
    Prepared(Checkpoint),
    /// There is no room for its content, none of which was written.
    NoRoom(Checkpoint),
}

/// Where checkpoints go. Called on the settle thread; must not block.
pub(crate) type Hand = Arc<dyn Fn(Outcome) + Send + Sync>;

#[derive(Debug)]
enum Order {
    Settle(Checkpoint),
    /// Segments were published or lost live content. `rewritten` = a rewrite is among what was published.
    Look {
        rewritten: bool,
    },
}

/// The commit thread's end of a settle thread. Dropping it stops the thread and waits for it.
#[derive(Debug)]
pub(crate) struct Settler {
    orders: Option<Sender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Settler {
    /// Starts the thread of shard number `shard`. Rewrites keep to `pace`.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub(crate) fn spawn(
        shard: usize,
        store: Arc<SegmentStore>,
        pace: RewritePace,
        hand: Hand,
    ) -> io::Result<Self> {
        let (sender, orders) = unbounded();
        let mut worker = Worker {
            shard,
            store,
            orders,
            hand,
            pace,
            rewrite_is_out: false,
            settle_delay: RETRY_DELAY_MIN,
            rewrite_delay: RETRY_DELAY_MAX,
            lacks_room: false,
            closing: false,
        };
        let thread = thread::Builder::new().name(format!("ds-settle-{shard}")).spawn(move || worker.run())?;
        Ok(Self { orders: Some(sender), thread: Some(thread) })
    }

    /// Has the checkpoint's payload written. It comes back by [`Hand`].
    pub(crate) fn settle(&self, checkpoint: Checkpoint) {
        self.order(Order::Settle(checkpoint));
    }

    /// Tells that segments were published or that content of theirs died; the first time, that somebody waits for what is handed over.
    pub(crate) fn look(&self, rewritten: bool) {
        self.order(Order::Look { rewritten });
    }

    /// Whether the thread is no more: it has panicked.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(thread::JoinHandle::is_finished)
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A thread that ended has panicked, which its joining reports.
            let _ = orders.send(order);
        }
    }
}

impl Drop for Settler {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a settle thread panicked");
        }
    }
}

struct Worker {
    shard: usize,
    store: Arc<SegmentStore>,
    orders: Receiver<Order>,
    hand: Hand,
    pace: RewritePace,
    /// A rewrite is under way, or was handed over and is not committed yet: nothing else is rewritten or given up before.
    rewrite_is_out: bool,
    /// Pause after the next checkpoint that cannot be written.
    settle_delay: Duration,
    /// Pause before the next rewrite, should this one fail.
    rewrite_delay: Duration,
    /// Something is worth a rewrite, and there is no room for it.
    lacks_room: bool,
    closing: bool,
}

impl Worker {
    fn run(&mut self) {
        // What is handed over while the shard is not open yet is lost, so the first order says that it is.
        match self.orders.recv() {
            Ok(order) => self.obey(order),
            Err(_) => return,
        }
        loop {
            while self.rewrite_what_is_worth_it() {}
            let next = match self.lacks_room {
                // Others may make room, of which nobody tells this thread.
                true => self.orders.recv_timeout(REWRITE_DELAY_MAX),
                false => self.orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                _ if self.closing => return,
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Settle(checkpoint) => self.settle(checkpoint),
            Order::Look { rewritten } => self.rewrite_is_out &= !rewritten,
        }
    }

    /// Writes the payload, trying again until it works: the journal has it all meanwhile. But on a full disk another checkpoint
    /// may fit, of what is left of its streams by then, and this one never.
    fn settle(&mut self, mut checkpoint: Checkpoint) {
        while !self.closing {
            let lacks_room = match self.write(&checkpoint) {
                Ok(segment) => {
                    self.settle_delay = RETRY_DELAY_MIN;
                    self.add(&mut checkpoint, segment);
                    for stream in &mut checkpoint.streams {
                        stream.payload = Vec::new();
                    }
                    return (self.hand)(Outcome::Prepared(checkpoint));
                }
                Err(error) => {
                    tracing::error!(
                        ds.shard = self.shard,
                        %error,
                        "a segment could not be written; the journal grows until it can"
                    );
                    matches!(error, StorageError::DiskFull(_))
                }
            };
            self.pause(self.settle_delay);
            self.settle_delay = (self.settle_delay * 2).min(RETRY_DELAY_MAX);
            if lacks_room && !self.closing {
                return (self.hand)(Outcome::NoRoom(checkpoint));
            }
        }
    }

    fn write(&self, checkpoint: &Checkpoint) -> Result<Option<PreparedSegment>, StorageError> {
        let runs: Vec<RunSource> = checkpoint
            .streams
            .iter()
            .filter(|stream| stream.start < stream.end)
            .map(|stream| RunSource {
                stream: stream.id,
                start: stream.start,
                pieces: stream.payload.clone(),
            })
            .collect();
        if runs.is_empty() { Ok(None) } else { self.store.write_segment(runs).map(Some) }
    }

    fn add(&self, checkpoint: &mut Checkpoint, segment: Option<PreparedSegment>) {
        checkpoint.next_segment_id = self.store.next_segment_id();
        checkpoint.segments_added.extend(segment.iter().map(PreparedSegment::meta));
        checkpoint.to_publish.extend(segment);
    }

    /// Lets `pause` pass, obeying orders meanwhile, unless the thread is to end. What dies meanwhile is given up at once: that may be
    /// what the pause waits for.
    fn pause(&mut self, pause: Duration) {
        let deadline = Instant::now() + pause;
        while !self.closing {
            self.give_up_dead_segments();
            match self.orders.recv_deadline(deadline) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.closing = true,
            }
        }
    }

    /// Hands over what there is to give up or to swap. Whether to look again, without an order that says so.
    fn rewrite_what_is_worth_it(&mut self) -> bool {
        if self.rewrite_is_out || self.closing {
            return false;
        }
        if self.give_up_dead_segments() {
            return false;
        }
        if self.pace.bytes_per_sec == 0 {
            return false;
        }
        let free = self.store.free_bytes();
        let share = free.map_or(u64::MAX, |free| free / PART_OF_FREE / self.pace.shards as u64);
        let Some(plan) = self.store.choose_rewrite(share) else {
            self.lacks_room = share < u64::MAX && self.store.choose_rewrite(u64::MAX).is_some();
            return false;
        };
        let replaced = plan.segments().to_vec();
        let store = Arc::clone(&self.store);
        let begun = Instant::now();
        // What the plan names must stay until it is carried out.
        self.rewrite_is_out = true;
        let (mut bytes, mut looked_at) = (0, 0);
        let throttle = &mut |more| {
            if bytes - looked_at >= LOOK_BYTES {
                looked_at = bytes;
                // Somebody else takes what was there.
                if self.store.free_bytes() < free.map(|free| free / 2) {
                    return ControlFlow::Break(());
                }
            }
            self.pace(begun, &mut bytes, more)
        };
        match store.rewrite(plan, throttle) {
            // It was ended, or nothing was alive any more.
            Ok(None) => {
                self.rewrite_is_out = false;
                true
            }
            Ok(Some(segment)) => {
                self.rewrite_delay = RETRY_DELAY_MAX;
                let mut checkpoint = Checkpoint { segments_removed: replaced, ..Checkpoint::default() };
                self.add(&mut checkpoint, Some(segment));
                (self.hand)(Outcome::Prepared(checkpoint));
                false
            }
            Err(error) => {
                tracing::error!(ds.shard = self.shard, %error, "segments could not be rewritten");
                self.rewrite_is_out = false;
                self.pause(self.rewrite_delay);
                self.rewrite_delay = (self.rewrite_delay * 2).min(REWRITE_DELAY_MAX);
                true
            }
        }
    }

    /// Hands over the segments in which nothing is alive. Returns whether there are any.
    fn give_up_dead_segments(&mut self) -> bool {
        if self.rewrite_is_out || self.closing {
            return false;
        }
        let dead = self.store.dead_segments();
        if dead.is_empty() {
            return false;
        }
        self.rewrite_is_out = true;
        (self.hand)(Outcome::Prepared(Checkpoint { segments_removed: dead, ..Checkpoint::default() }));
        true
    }

    /// Holds a rewrite to its pace, obeying orders meanwhile.
    fn pace(&mut self, begun: Instant, bytes: &mut u64, more: u64) -> ControlFlow<()> {
        *bytes += more;
        let due = begun + Duration::from_secs_f64(*bytes as f64 / self.pace.bytes_per_sec as f64);
        loop {
            let now = Instant::now();
            let order = if due > now + PACE_SLACK {
                self.orders.recv_deadline(due)
            } else {
                self.orders.recv_deadline(now)
            };
            match order {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => return ControlFlow::Continue(()),
                Err(RecvTimeoutError::Disconnected) => self.closing = true,
            }
            if self.closing {
                return ControlFlow::Break(());
            }
        }
    }
}
