//! How many connections are open, over all cores and on each.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Connections by which a core may have more than its share when others move to it.
const SHARE_SLACK: usize = 4;

/// Counts connections up to a limit, and acceptors, and lets a thread wait until none of either is left.
#[derive(Debug)]
pub(super) struct Gate {
    limit: usize,
    open: AtomicUsize,
    /// The same, on each core.
    on_core: Box<[AtomicUsize]>,
    /// Acceptors that may still admit connections.
    acceptors: AtomicUsize,
    /// Somebody waits. Before that, closing a connection costs no lock.
    awaited: AtomicBool,
    lock: Mutex<()>,
    emptied: Condvar,
}

impl Gate {
    /// A gate for at most `limit` connections, and an acceptor on each of `acceptors` cores.
    pub(super) fn new(limit: usize, acceptors: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open: AtomicUsize::new(0),
            on_core: (0..acceptors).map(|_| AtomicUsize::new(0)).collect(),
            acceptors: AtomicUsize::new(acceptors),
            awaited: AtomicBool::new(false),
            lock: Mutex::new(()),
            emptied: Condvar::new(),
        })
    }

    /// Admits a connection to `core`; `None` at the limit. The place is given back when the returned value is dropped.
    pub(super) fn admit(self: &Arc<Self>, core: usize) -> Option<Admission> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        self.on_core[core].fetch_add(1, Ordering::Relaxed);
        let admission = Admission { gate: Arc::clone(self), core };
        (before < self.limit).then_some(admission)
    }

    /// The core for a connection that `core` is about to accept: that with the fewest, if `core` has more by over a quarter.
    /// Of two connections each gets a core of its own, and of very many few are passed on, which costs a wake each.
    pub(super) fn core_for_one_more(&self, core: usize) -> usize {
        let counts = self.on_core.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
        let here = self.on_core[core].load(Ordering::Relaxed);
        let fewest = counts.min_by_key(|&(_, count)| count);
        fewest.filter(|(_, count)| here > count + count / 4).map_or(core, |(fewest, _)| fewest)
    }

    /// Whether a connection may move to `core`: not if that has a good deal more than its share already. Parsing requests costs
    /// more than passing them on, so a core does better with the half of a hot stream's connections than with all.
    pub(super) fn has_room_on(&self, core: usize) -> bool {
        let share = self.open.load(Ordering::Relaxed).div_ceil(self.on_core.len());
        let there = self.on_core.get(core).map(|count| count.load(Ordering::Relaxed));
        there.is_some_and(|there| there < share + share / 4 + SHARE_SLACK)
    }

    /// An acceptor has admitted its last connection.
    pub(super) fn acceptor_is_done(&self) {
        self.acceptors.fetch_sub(1, Ordering::SeqCst);
        self.tell_if_empty();
    }

    /// Waits until all acceptors are done and all connections closed, for at most `patience`. Whether that happened.
    pub(super) fn wait_until_empty(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.awaited.store(true, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self.emptied.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// No acceptor will admit anybody any more.
    #[cfg(unix)]
    pub(super) fn is_shut(&self) -> bool {
        self.acceptors.load(Ordering::SeqCst) == 0
    }

    /// Connections open now.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    fn is_empty(&self) -> bool {
        self.acceptors.load(Ordering::SeqCst) == 0 && self.open() == 0
    }

    fn tell_if_empty(&self) {
        if self.awaited.load(Ordering::SeqCst) && self.is_empty() {
            let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.emptied.notify_all();
        }
    }
}

/// The place of one connection behind a [`Gate`].
#[derive(Debug)]
pub(super) struct Admission {
    gate: Arc<Gate>,
    core: usize,
}

impl Admission {
    /// Where the connection is.
    pub(super) fn core(&self) -> usize {
        self.core
    }

    /// The connection moves to `core`.
    pub(super) fn move_to(&mut self, core: usize) {
        self.gate.on_core[core].fetch_add(1, Ordering::Relaxed);
        self.gate.on_core[self.core].fetch_sub(1, Ordering::Relaxed);
        self.core = core;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.gate.on_core[self.core].fetch_sub(1, Ordering::Relaxed);
        self.gate.open.fetch_sub(1, Ordering::SeqCst);
        self.gate.tell_if_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_admits_up_to_its_limit_and_again_after_one_left() {
        let gate = Gate::new(2, 1);
        let first = gate.admit(0);
        let second = gate.admit(0);
        assert!(first.is_some() && second.is_some());
        assert!(gate.admit(0).is_none());
        assert_eq!(gate.open(), 2);
        drop(first);
        assert!(gate.admit(0).is_some());
    }

    #[test]
    fn connections_may_move_until_a_core_has_a_quarter_more_than_its_share() {
        let gate = Gate::new(1000, 2);
        let mut admitted: Vec<_> = (0..100).map(|n| gate.admit(n % 2).expect("the limit is far")).collect();
        let mut moved = 0;
        for admission in admitted.iter_mut().skip(1).step_by(2) {
            if gate.has_room_on(0) {
                admission.move_to(0);
                moved += 1;
            }
        }
        assert_eq!(moved, 12 + SHARE_SLACK);
        assert!(gate.has_room_on(1));
        assert!(!gate.has_room_on(2), "there is no such core");
        admitted.clear();
        assert!(gate.on_core.iter().all(|count| count.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn new_connections_go_where_the_fewest_are() {
        let gate = Gate::new(100, 3);
        assert_eq!(gate.core_for_one_more(1), 1, "all have none");
        let mut admitted: Vec<_> = [0, 2].map(|core| gate.admit(core)).into();
        assert_eq!(gate.core_for_one_more(0), 1);
        assert_eq!(gate.core_for_one_more(1), 1);
        // Whatever the kernel chooses, a core has a quarter more than another at most, and that only if there are many.
        for _ in 0..70 {
            admitted.push(gate.admit(gate.core_for_one_more(2)));
        }
        let mut counts: Vec<_> = gate.on_core.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        counts.sort_unstable();
        assert_eq!(counts, [22, 22, 28]);
        assert_eq!(gate.core_for_one_more(0), 0, "who has few keeps what comes");
    }

    #[test]
    fn gate_is_empty_when_acceptors_and_connections_are_gone() {
        let gate = Gate::new(2, 1);
        let admission = gate.admit(0);
        assert!(!gate.wait_until_empty(Duration::ZERO));
        let waiter = std::thread::spawn({
            let gate = Arc::clone(&gate);
            move || gate.wait_until_empty(Duration::from_secs(60))
        });
        drop(admission);
        gate.acceptor_is_done();
        assert!(waiter.join().expect("the waiting thread does not panic"));
    }
}
