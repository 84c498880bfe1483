//! The connections of one core, and the single timer that bounds them.
//!
//! A timer per connection costs an entry in the timer wheel for every request. Here each connection notes, as plain
//! numbers, since when it has been waiting for what; one sweep per core looks at those numbers about once a second and
//! ends the connections whose time is up. Bounds are therefore kept late by up to two ticks, never early. The sweep runs
//! only while there are connections, and pauses between slices so that a hundred thousand of them do not stall the core.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use super::admission::Admission;
use super::connection_state::{ConnectionState, Verdict};

/// Longest pause between two sweeps.
const TICK_MAX: Duration = Duration::from_secs(1);

/// Shortest pause between two sweeps, however small the configured bounds are.
const TICK_MIN: Duration = Duration::from_millis(10);

/// Connections looked at before other tasks of the core get their turn.
const SWEEP_SLICE: usize = 1024;

/// The bounds that the sweep keeps.
#[derive(Clone, Debug)]
pub(super) struct Timeouts {
    /// Time for a TLS handshake.
    pub(super) handshake: Duration,
    /// Time from the first byte of a request's head, or from the connection's begin, to the head's end.
    pub(super) header: Duration,
    /// Time without any request.
    pub(super) idle: Duration,
    /// Time in which the peer takes none of the bytes that wait for it.
    pub(super) write: Duration,
    /// Time for which an answer is still prepared for a peer that has closed its sending side.
    pub(super) half_closed: Duration,
}

impl Timeouts {
    /// Pause between two sweeps: fine enough for the smallest bound.
    fn tick(&self) -> Duration {
        let least = self.handshake.min(self.header).min(self.idle).min(self.write);
        (least / 4).clamp(TICK_MIN, TICK_MAX)
    }
}

/// A clock that is read with one load and moves with each sweep. Milliseconds, never 0, so that 0 can mean "not".
#[derive(Debug)]
pub(super) struct CoarseClock {
    began: Instant,
    now_ms: AtomicU64,
}

impl CoarseClock {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), now_ms: AtomicU64::new(1) }
    }

    /// Time of the latest sweep, in milliseconds.
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    fn advance(&self) {
        let passed_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.now_ms.store(passed_ms + 1, Ordering::Relaxed);
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Registry {
    clock: Arc<CoarseClock>,
    timeouts: Timeouts,
    /// The clock stands still for up to one tick, so what it dates may be that much younger than it looks.
    tick: Duration,
    entries: RefCell<Slab<Entry>>,
    sweeping: Cell<bool>,
    draining: Cell<bool>,
}

#[derive(Debug)]
struct Entry {
    state: Arc<ConnectionState>,
    task: Option<AbortHandle>,
}

impl Registry {
    pub(super) fn new(timeouts: Timeouts) -> Rc<Self> {
        let tick = timeouts.tick();
        Rc::new(Self {
            clock: Arc::new(CoarseClock::new()),
            timeouts,
            tick,
            entries: RefCell::default(),
            sweeping: Cell::new(false),
            draining: Cell::new(false),
        })
    }

    /// Enters a connection. It is listed until the returned value is dropped.
    pub(super) fn enter(self: &Rc<Self>, admission: Admission) -> Listed {
        if !self.sweeping.replace(true) {
            self.clock.advance();
            tokio::task::spawn_local(Rc::clone(self).sweep_while_connected());
        }
        let state = Arc::new(ConnectionState::new(Arc::clone(&self.clock)));
        if self.draining.get() {
            state.ask_to_close();
        }
        let key = self.entries.borrow_mut().insert(Entry { state: Arc::clone(&state), task: None });
        Listed { registry: Rc::downgrade(self), key, state, _admission: admission }
    }

    /// Names the task that serves the connection `key`, for when it has to be ended from outside.
    pub(super) fn attach(&self, key: usize, task: AbortHandle) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(key) {
            entry.task = Some(task);
        }
    }

    /// Asks every connection, present and future, to end after the requests that it has under way.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        for (_, entry) in self.entries.borrow().iter() {
            entry.state.ask_to_close();
        }
    }

    /// Ends every connection, whatever it is doing.
    pub(super) fn cut_all(&self) {
        for (_, entry) in self.entries.borrow().iter() {
            if let Some(task) = &entry.task {
                task.abort();
            }
        }
    }

    async fn sweep_while_connected(self: Rc<Self>) {
        let mut ticks = tokio::time::interval(self.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.clock.advance();
            let mut from = 0;
            while from < self.entries.borrow().capacity() {
                self.sweep(from, from + SWEEP_SLICE);
                from += SWEEP_SLICE;
                tokio::task::yield_now().await;
            }
            if self.entries.borrow().is_empty() {
                self.entries.borrow_mut().shrink_to_fit();
                self.sweeping.set(false);
                return;
            }
        }
    }

    fn sweep(&self, from: usize, to: usize) {
        let entries = self.entries.borrow();
        let now_ms = self.clock.now_ms();
        for key in from..to.min(entries.capacity()) {
            let Some(entry) = entries.get(key) else { continue };
            match entry.state.judge(now_ms, self.tick, &self.timeouts) {
                Verdict::Keep => {}
                Verdict::Probe => entry.state.probe(),
                Verdict::AskToClose(reason) => {
                    tracing::debug!(reason, "closing a connection");
                    entry.state.ask_to_close();
                }
                Verdict::Cut(reason) => {
                    tracing::debug!(reason, "cutting a connection");
                    if let Some(task) = &entry.task {
                        task.abort();
                    }
                }
            }
        }
    }
}

/// A connection's place in its core's [`Registry`]; owned by the task that serves it.
#[derive(Debug)]
pub(super) struct Listed {
    registry: Weak<Registry>,
    key: usize,
    state: Arc<ConnectionState>,
    _admission: Admission,
}

impl Listed {
    pub(super) fn key(&self) -> usize {
        self.key
    }

    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.entries.borrow_mut().try_remove(self.key);
        }
    }
}
