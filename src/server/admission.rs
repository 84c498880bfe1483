//! How many connections are open, over all cores.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Counts connections up to a limit, and acceptors, and lets a thread wait until none of either is left.
#[derive(Debug)]
pub(super) struct Gate {
    limit: usize,
    open: AtomicUsize,
    /// Acceptors that may still admit connections.
    acceptors: AtomicUsize,
    /// Somebody waits. Before that, closing a connection costs no lock.
    awaited: AtomicBool,
    lock: Mutex<()>,
    emptied: Condvar,
}

impl Gate {
    /// A gate for at most `limit` connections.
    pub(super) fn new(limit: usize, acceptors: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open: AtomicUsize::new(0),
            acceptors: AtomicUsize::new(acceptors),
            awaited: AtomicBool::new(false),
            lock: Mutex::new(()),
            emptied: Condvar::new(),
        })
    }

    /// Admits a connection; `None` at the limit. The place is given back when the returned value is dropped.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Admission> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let admission = Admission(Arc::clone(self));
        (before < self.limit).then_some(admission)
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
pub(super) struct Admission(Arc<Gate>);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        self.0.tell_if_empty();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gate_admits_up_to_its_limit_and_again_after_one_left() {
        let gate = Gate::new(2, 0);
        let first = gate.admit();
        let second = gate.admit();
        assert!(first.is_some() && second.is_some());
        assert!(gate.admit().is_none());
        assert_eq!(gate.open(), 2);
        drop(first);
        assert!(gate.admit().is_some());
    }

    #[test]
    fn gate_is_empty_when_acceptors_and_connections_are_gone() {
        let gate = Gate::new(2, 1);
        let admission = gate.admit();
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
