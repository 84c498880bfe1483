//! A core's mailbox: a crossbeam channel and one coalesced wake.
//!
//! Waking another thread's runtime costs a system call. So a sender wakes only if no wake is pending, and the core
//! takes everything that has gathered since.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::Notify;

use crate::engine::request::Mail;

/// The sending side, shared by all.
#[derive(Debug)]
pub(crate) struct Mailbox {
    queue: Sender<Mail>,
    /// Set by the first sender after the core looked, cleared by the core before it looks.
    wake_pending: AtomicBool,
    notify: Notify,
}

impl Mailbox {
    /// A mailbox and the queue that its core drains. The queue is unbounded because everybody who posts waits for an
    /// answer: it holds no more than the requests under way, which the limits on connections bound.
    pub(crate) fn new() -> (Self, Receiver<Mail>) {
        let (queue, receiver) = unbounded();
        (Self { queue, wake_pending: AtomicBool::new(false), notify: Notify::new() }, receiver)
    }

    /// Posts mail and wakes the core. Mail to a core that has stopped is dropped, which its sender notices by the
    /// answer's channel closing.
    pub(crate) fn post(&self, mail: Mail) {
        if self.queue.send(mail).is_ok() {
            self.wake();
        }
    }

    /// Makes the core run another round.
    pub(crate) fn wake(&self) {
        if !self.wake_pending.swap(true, Ordering::AcqRel) {
            self.notify.notify_one();
        }
    }

    /// Core side: waits for a wake. What was posted before it returns is in the queue by then.
    pub(crate) async fn woken(&self) {
        self.notify.notified().await;
    }

    /// Core side: from here on, posting wakes again. Must be called before the queue is drained, else mail that is
    /// posted in between would lie there without a wake.
    pub(crate) fn rearm(&self) {
        self.wake_pending.swap(false, Ordering::AcqRel);
    }
}
