//! What one connection that carries an event stream is waiting for, and since when.
//!
//! It lies in the core's registry, and replaces a [`ConnectionState`](super::connection_state::ConnectionState) and the
//! timers of the response: there may be very many of these connections, most of them idle.

use std::task::Waker;
use std::time::Duration;

use super::registry::Timeouts;

/// What the connection's task is to do when it is woken next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Nothing but what its stream and its socket want of it.
    #[default]
    None,
    /// Look whether the peer is gone.
    Probe,
    /// Say something, so that proxies keep the connection open.
    Heartbeat,
    /// End the response in order.
    End,
    /// End the connection at once.
    Cut {
        /// By a reset: its peer reads nothing, so an orderly end would keep the unsent bytes in the kernel for minutes.
        reset: bool,
    },
}

/// See the module's description. Every `*_since_ms` and `*_at_ms` is a time of the registry's clock; 0 = not so.
#[derive(Debug)]
pub(super) struct LiveState {
    task: Option<Waker>,
    /// Bytes were last taken by the socket.
    sent_at_ms: u64,
    /// The socket has refused bytes.
    stalled_since_ms: u64,
    /// The peer has closed its sending side.
    half_closed_since_ms: u64,
    /// The response has lasted long enough.
    ends_at_ms: u64,
    order: Order,
}

impl LiveState {
    /// A response that begins now.
    pub(super) fn new(now_ms: u64, life: Option<Duration>) -> Self {
        let ends_at_ms = life.map_or(0, |life| now_ms.saturating_add(millis(life)));
        Self {
            task: None,
            sent_at_ms: now_ms,
            stalled_since_ms: 0,
            half_closed_since_ms: 0,
            ends_at_ms,
            order: Order::None,
        }
    }

    /// Whom to wake with an order.
    pub(super) fn note_task(&mut self, task: &Waker) {
        if self.task.as_ref().is_none_or(|known| !known.will_wake(task)) {
            self.task = Some(task.clone());
        }
    }

    /// The socket took bytes.
    pub(super) fn note_sent(&mut self, now_ms: u64) {
        self.sent_at_ms = now_ms;
        self.stalled_since_ms = 0;
    }

    /// The socket takes no bytes now.
    pub(super) fn note_stalled(&mut self, now_ms: u64) {
        if self.stalled_since_ms == 0 {
            self.stalled_since_ms = now_ms;
        }
    }

    /// The peer will send nothing more.
    pub(super) fn note_end_of_input(&mut self, now_ms: u64) {
        if self.half_closed_since_ms == 0 {
            self.half_closed_since_ms = now_ms;
        }
    }

    /// What is to be done. An end stays ordered until it is reached, everything else is to be done once.
    pub(super) fn order(&mut self) -> Order {
        let order = self.order;
        if order < Order::End {
            self.order = Order::None;
        }
        order
    }

    /// Orders something, unless more was ordered before. Returns whom to wake.
    #[must_use]
    pub(super) fn give(&mut self, order: Order) -> Option<Waker> {
        self.order = self.order.max(order);
        self.task.clone()
    }

    /// Orders what is due at `now_ms`. `slack` is how much younger than it looks anything may be, as the clock moves in
    /// steps: bounds are kept late by it, but a heartbeat that is promised for a time comes early. Returns whom to wake.
    pub(super) fn judge(&mut self, now_ms: u64, slack: Duration, timeouts: &Timeouts) -> Option<Waker> {
        let slack_ms = millis(slack);
        let due = |since_ms: u64, bound: Duration| {
            since_ms != 0 && now_ms.saturating_sub(since_ms) >= millis(bound) + slack_ms
        };
        if due(self.stalled_since_ms, timeouts.write) {
            return self.give(Order::Cut { reset: true });
        }
        if due(self.half_closed_since_ms, timeouts.half_closed) {
            return self.give(Order::Cut { reset: false });
        }
        if self.ends_at_ms != 0 && now_ms >= self.ends_at_ms {
            return self.give(Order::End);
        }
        let heartbeat_is_due = timeouts.heartbeat.is_some_and(|idle| {
            now_ms.saturating_sub(self.sent_at_ms) + slack_ms.min(millis(idle) / 2) >= millis(idle)
        });
        if heartbeat_is_due && self.stalled_since_ms == 0 {
            return self.give(Order::Heartbeat);
        }
        if self.half_closed_since_ms != 0 {
            return self.give(Order::Probe);
        }
        None
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(life_secs: Option<u64>) -> LiveState {
        LiveState::new(1, life_secs.map(Duration::from_secs))
    }

    /// The order `seconds` after everything that happened so far, which the tests date 1.
    fn after(state: &mut LiveState, seconds: u64) -> Order {
        let _ = state.judge(1 + seconds * 1000, Duration::from_secs(1), &Timeouts::OF_TESTS);
        state.order()
    }

    #[test]
    fn an_idle_response_gets_heartbeats_a_little_early_and_again_when_it_was_silent_as_long() {
        let mut state = state(None);
        assert_eq!(after(&mut state, 13), Order::None);
        assert_eq!(after(&mut state, 14), Order::Heartbeat);
        state.note_sent(14_001);
        assert_eq!(after(&mut state, 27), Order::None);
        assert_eq!(after(&mut state, 28), Order::Heartbeat);
    }

    #[test]
    fn an_end_is_ordered_until_it_is_reached() {
        let mut state = state(Some(60));
        state.note_sent(59_000);
        assert_eq!(after(&mut state, 59), Order::None);
        assert_eq!(after(&mut state, 60), Order::End);
        let _ = state.give(Order::Heartbeat);
        assert_eq!(state.order(), Order::End);
    }

    #[test]
    fn a_reader_that_takes_nothing_is_cut_and_gets_no_heartbeats() {
        let mut state = state(None);
        state.note_stalled(1);
        assert_eq!(after(&mut state, 30), Order::None);
        assert_eq!(after(&mut state, 31), Order::Cut { reset: true });
    }

    #[test]
    fn a_reader_that_takes_some_is_not_cut() {
        let mut state = state(None);
        state.note_stalled(1);
        state.note_sent(20_000);
        state.note_stalled(20_001);
        assert_eq!(after(&mut state, 50), Order::None);
        assert_eq!(after(&mut state, 51), Order::Cut { reset: true });
    }

    #[test]
    fn a_half_closed_connection_is_looked_at_and_cut_in_the_end() {
        let mut state = state(None);
        state.note_end_of_input(1);
        assert_eq!(after(&mut state, 1), Order::Probe);
        state.note_sent(40_000);
        assert_eq!(after(&mut state, 41), Order::Cut { reset: false });
    }
}
