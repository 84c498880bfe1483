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
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use super::admission::Admission;
use super::connection_state::{ConnectionState, Verdict};
use super::live_state::{LiveState, Order};

/// Longest pause between two sweeps.
const TICK_MAX: Duration = Duration::from_secs(1);

/// Shortest pause between two sweeps, however small the configured bounds are.
const TICK_MIN: Duration = Duration::from_millis(10);

/// Connections looked at before other tasks of the core get their turn.
const SWEEP_SLICE: usize = 1024;

/// Time after a connection gave its buffers up in which the allocator is reminded of them: longer than it keeps freed memory.
const REMINDED_FOR: Duration = Duration::from_secs(4);

/// Times that it is reminded between two sweeps.
const REMINDERS_PER_TICK: u32 = 2;

/// What is allocated for that, one after the other. With every ten-thousandth block of more than a kilobyte mimalloc looks
/// for memory that nobody uses; left to itself it keeps some of each size, and some for as long as it is not asked for more.
const REMINDER_BLOCKS: usize = 10_000;
/// Of these, before other tasks get their turn.
const REMINDER_SLICE: usize = 1000;
/// Time between two reminders, at least.
const REMINDER_PAUSE: Duration = Duration::from_millis(300);
const REMINDER_BLOCK_BYTES: usize = 2048;

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
    /// Time for which an event stream may be silent; `None` = for ever.
    pub(super) heartbeat: Option<Duration>,
}

impl Timeouts {
    /// Each another one, so that it shows which of them was kept.
    #[cfg(test)]
    pub(super) const OF_TESTS: Self = Self {
        handshake: Duration::from_secs(5),
        header: Duration::from_secs(10),
        idle: Duration::from_secs(60),
        write: Duration::from_secs(30),
        half_closed: Duration::from_secs(40),
        heartbeat: Some(Duration::from_secs(15)),
    };

    /// Pause between two sweeps: fine enough for the smallest bound.
    fn tick(&self) -> Duration {
        let least = self.handshake.min(self.header).min(self.idle).min(self.write);
        let least = self.heartbeat.map_or(least, |heartbeat| heartbeat.min(least));
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
    /// Time of the clock until which the allocator is reminded.
    remind_until_ms: Cell<u64>,
    /// And the next time that it may be.
    remind_next: Cell<Instant>,
}

/// What is known of a connection.
#[derive(Debug)]
struct Entry {
    admission: Admission,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Serves requests.
    Requests { state: Arc<ConnectionState>, task: Option<AbortHandle> },
    /// Carries an event stream, and nothing else.
    Live(LiveState),
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
            remind_until_ms: Cell::new(0),
            remind_next: Cell::new(Instant::now()),
        })
    }

    /// Enters a connection. It is listed until the returned value is dropped.
    pub(super) fn enter(self: &Rc<Self>, admission: Admission) -> Listed {
        if !self.sweeping.replace(true) {
            self.clock.advance();
            tokio::task::spawn_local(Rc::clone(self).sweep_while_connected());
        }
        let state = self.new_state();
        let entry = Entry { admission, state: State::Requests { state: Arc::clone(&state), task: None } };
        let key = self.entries.borrow_mut().insert(entry);
        Listed { place: Place { registry: Rc::downgrade(self), key }, state }
    }

    /// Enters a connection that has been served before, and is idle as after an answer.
    pub(super) fn enter_idle(self: &Rc<Self>, admission: Admission) -> Listed {
        let listed = self.enter(admission);
        listed.state.resume();
        listed
    }

    fn new_state(&self) -> Arc<ConnectionState> {
        let state = Arc::new(ConnectionState::new(Arc::clone(&self.clock)));
        if self.draining.get() {
            state.ask_to_close();
        }
        state
    }

    /// Names the task that serves the connection `key`, for when it has to be ended from outside.
    pub(super) fn attach(&self, key: usize, task: AbortHandle) {
        if let Some(Entry { state: State::Requests { task: place, .. }, .. }) =
            self.entries.borrow_mut().get_mut(key)
        {
            *place = Some(task);
        }
    }

    /// Asks every connection, present and future, to end after the requests that it has under way.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        self.tell_all(Order::End, |state, _| state.ask_to_close());
    }

    /// Ends every connection, whatever it is doing.
    pub(super) fn cut_all(&self) {
        self.tell_all(Order::Cut { reset: false }, |_, task| {
            if let Some(task) = task {
                task.abort();
            }
        });
    }

    fn tell_all(&self, order: Order, tell: impl Fn(&ConnectionState, Option<&AbortHandle>)) {
        let mut live = Vec::new();
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            match &mut entry.state {
                State::Requests { state, task } => tell(state, task.as_ref()),
                State::Live(state) => live.extend(state.give(order)),
            }
        }
        live.into_iter().for_each(Waker::wake);
    }

    /// A connection's buffers have gone, or are about to.
    fn note_freed(&self) {
        let until_ms = self.clock.now_ms() + REMINDED_FOR.as_millis() as u64;
        self.remind_until_ms.set(until_ms);
    }

    /// Replaces what is known of a connection.
    fn set(&self, key: usize, state: State) {
        if let Some(entry) = self.entries.borrow_mut().get_mut(key) {
            entry.state = state;
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
            for _ in 0..REMINDERS_PER_TICK {
                if self.clock.now_ms() >= self.remind_until_ms.get() {
                    break;
                }
                let now = Instant::now();
                if now >= self.remind_next.get() {
                    self.remind_next.set(now + REMINDER_PAUSE);
                    remind_allocator().await;
                }
                tokio::time::sleep(self.tick / (REMINDERS_PER_TICK + 1)).await;
            }
            if self.entries.borrow().is_empty() {
                self.entries.borrow_mut().shrink_to_fit();
                self.sweeping.set(false);
                return;
            }
        }
    }

    fn sweep(&self, from: usize, to: usize) {
        let mut entries = self.entries.borrow_mut();
        let now_ms = self.clock.now_ms();
        let mut live = Vec::new();
        for key in from..to.min(entries.capacity()) {
            match entries.get_mut(key).map(|entry| &mut entry.state) {
                None => {}
                Some(State::Requests { state, task }) => self.judge(state, task.as_ref()),
                Some(State::Live(state)) => live.extend(state.judge(now_ms, self.tick, &self.timeouts)),
            }
        }
        drop(entries);
        live.into_iter().for_each(Waker::wake);
    }

    fn judge(&self, state: &ConnectionState, task: Option<&AbortHandle>) {
        match state.judge(self.clock.now_ms(), self.tick, &self.timeouts) {
            Verdict::Keep => {}
            Verdict::Probe => state.probe(),
            Verdict::AskToClose(reason) => {
                tracing::debug!(reason, "closing a connection");
                state.ask_to_close();
            }
            Verdict::Cut(reason) => {
                tracing::debug!(reason, "cutting a connection");
                if let Some(task) = task {
                    task.abort();
                }
            }
        }
    }
}

/// Gives the allocator an occasion to return what was freed to the system. mimalloc does so only while it is at work, and some
/// time after the memory was freed: on a core with nothing but idle event streams, what they used while they were requests
/// would stay for as long as they do. Hardly anything is written to the memory, so it costs next to nothing.
async fn remind_allocator() {
    for _ in 0..REMINDER_BLOCKS / REMINDER_SLICE {
        for _ in 0..REMINDER_SLICE {
            drop(std::hint::black_box(Vec::<u8>::with_capacity(REMINDER_BLOCK_BYTES)));
        }
        tokio::task::yield_now().await;
    }
}

/// A connection that serves requests, as its core's [`Registry`] has it; owned by the task that serves it.
#[derive(Debug)]
pub(super) struct Listed {
    place: Place,
    state: Arc<ConnectionState>,
}

impl Listed {
    pub(super) fn key(&self) -> usize {
        self.place.key
    }

    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }

    /// The connection leaves this core, but not the server. `None` if the core is about to stop.
    pub(super) fn leave(self) -> Option<Admission> {
        let registry = self.place.registry.upgrade()?;
        let entry = registry.entries.borrow_mut().try_remove(self.place.key)?;
        Some(entry.admission)
    }

    /// The connection carries an event stream from now on, for at most `life`.
    pub(super) fn go_live(self, life: Option<Duration>) -> Place {
        let Self { place, state } = self;
        place.with_registry(|registry| {
            let mut live = LiveState::new(registry.clock.now_ms(), life);
            if state.is_asked_to_close() {
                // Nobody waits for this yet.
                let _ = live.give(Order::End);
            }
            registry.set(place.key, State::Live(live));
            registry.note_freed();
        });
        place
    }
}

/// A connection's place in its core's [`Registry`].
#[derive(Debug)]
pub(super) struct Place {
    registry: Weak<Registry>,
    key: usize,
}

impl Place {
    /// The connection serves requests again: it is idle as after an answer. Its task is to be attached. `None` if there is no
    /// registry any more.
    pub(super) fn serve_requests(self) -> Option<(Rc<Registry>, Listed)> {
        let registry = self.registry.upgrade()?;
        let state = registry.new_state();
        state.resume();
        registry.set(self.key, State::Requests { state: Arc::clone(&state), task: None });
        Some((registry, Listed { place: self, state }))
    }

    /// Does something with what is known of an event stream, at the time of the registry's clock in milliseconds. `None` if
    /// this is none.
    pub(super) fn with_live<T>(&self, act: impl FnOnce(&mut LiveState, u64) -> T) -> Option<T> {
        self.with_registry(|registry| match registry.entries.borrow_mut().get_mut(self.key) {
            Some(Entry { state: State::Live(state), .. }) => Some(act(state, registry.clock.now_ms())),
            _ => None,
        })?
    }

    /// All connections of the core are to end.
    pub(super) fn is_draining(&self) -> bool {
        self.with_registry(|registry| registry.draining.get()).unwrap_or(true)
    }

    fn with_registry<T>(&self, act: impl FnOnce(&Registry) -> T) -> Option<T> {
        self.registry.upgrade().map(|registry| act(&registry))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.with_registry(|registry| {
            let entry = registry.entries.borrow_mut().try_remove(self.key);
            drop(entry);
            registry.note_freed();
        });
    }
}
