//! What one connection is waiting for, and since when.
//!
//! Everything is written by the tasks of one core and read by the sweep of the same core; the atomics are there because
//! request bodies have to be `Send`, not because anything is contended.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use slab::Slab;

use super::registry::{CoarseClock, Timeouts};

/// Time for which bytes of a request that nobody wants are still taken in after the answer, so that the answer is not
/// lost to the reset that unread bytes provoke.
const LINGER: Duration = Duration::from_secs(2);

/// Time for a connection without requests to end once it was asked to.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Time without a byte in either direction after which a connection with a request under way is checked for whether
/// its peer is still there.
const PROBE_AFTER: Duration = Duration::from_secs(30);

/// What the sweep decides about one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing is due.
    Keep,
    /// Find out whether the peer has closed its side.
    Probe,
    /// End it in order.
    AskToClose(&'static str),
    /// End it at once.
    Cut(&'static str),
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// TLS is being set up.
    Handshake,
    /// HTTP/1, or not known yet.
    Http1,
    /// HTTP/2.
    Http2,
}

/// See the module's description. Every `*_since` is a time of the [`CoarseClock`] in milliseconds; 0 = not so.
#[derive(Debug)]
pub(super) struct ConnectionState {
    clock: Arc<CoarseClock>,
    phase: AtomicU8,
    /// Requests begun, wrapping.
    requests: AtomicU32,
    /// Requests whose answer has not been given to the socket to its last byte.
    in_flight: AtomicU32,
    /// A handshake or a request's head has been expected, and is incomplete.
    head_since: AtomicU64,
    /// No request is under way.
    idle_since: AtomicU64,
    /// The socket has refused bytes.
    stalled_since: AtomicU64,
    /// Bytes were last sent, or a request last begun.
    active_at: AtomicU64,
    /// The peer has closed its sending side with a request under way.
    half_closed_since: AtomicU64,
    /// The answer is out, the rest of the request is being thrown away.
    lingering_since: AtomicU64,
    /// The connection was asked to end.
    closing_since: AtomicU64,
    /// Bytes of a request may still come that nobody is going to read.
    request_unread: AtomicBool,
    /// The transport shall find out whether the peer is still there.
    probe_wanted: AtomicBool,
    /// The socket shall be reset rather than closed: its peer reads nothing, so an orderly end would keep the unsent
    /// bytes in the kernel for minutes.
    reset: AtomicBool,
    task: AtomicWaker,
    /// HTTP/2 responses that wait for the peer's flow control, each with its `since`.
    paced: Mutex<Slab<u64>>,
}

impl ConnectionState {
    /// A connection that has just been accepted.
    pub(super) fn new(clock: Arc<CoarseClock>) -> Self {
        let now_ms = clock.now_ms();
        Self {
            clock,
            phase: AtomicU8::new(Phase::Http1 as u8),
            requests: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            head_since: AtomicU64::new(now_ms),
            idle_since: AtomicU64::new(now_ms),
            stalled_since: AtomicU64::new(0),
            active_at: AtomicU64::new(now_ms),
            half_closed_since: AtomicU64::new(0),
            lingering_since: AtomicU64::new(0),
            closing_since: AtomicU64::new(0),
            request_unread: AtomicBool::new(false),
            probe_wanted: AtomicBool::new(false),
            reset: AtomicBool::new(false),
            task: AtomicWaker::new(),
            paced: Mutex::default(),
        }
    }

    /// The connection enters a phase; the time for its first message starts again.
    pub(super) fn enter_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
        self.head_since.store(self.clock.now_ms(), Ordering::Relaxed);
    }

    fn is_phase(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Relaxed) == phase as u8
    }

    /// A request's head is complete.
    pub(super) fn begin_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        self.request_unread.store(false, Ordering::Relaxed);
        self.active_at.store(self.clock.now_ms(), Ordering::Relaxed);
    }

    /// An answer was sent to its end, or given up.
    pub(super) fn end_request(&self) {
        if self.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.idle_since.store(self.clock.now_ms(), Ordering::Relaxed);
            self.half_closed_since.store(0, Ordering::Relaxed);
        }
    }

    /// The connection has been served before, elsewhere, and is idle as after an answer.
    pub(super) fn resume(&self) {
        self.begin_request();
        self.end_request();
    }

    /// Whether any request was ever begun.
    pub(super) fn has_served(&self) -> bool {
        self.requests() != 0
    }

    /// Number of requests begun, wrapping.
    pub(super) fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
    }

    /// The rest of a request will not be read.
    pub(super) fn leave_request_unread(&self) {
        if self.is_phase(Phase::Http1) {
            self.request_unread.store(true, Ordering::Relaxed);
        }
    }

    /// Bytes were received.
    pub(super) fn note_received(&self) {
        if self.is_idle() && self.is_phase(Phase::Http1) && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.clock.now_ms(), Ordering::Relaxed);
        }
    }

    /// The peer will send nothing more.
    pub(super) fn note_end_of_input(&self) {
        self.request_unread.store(false, Ordering::Relaxed);
        set_once(&self.half_closed_since, self.clock.now_ms());
    }

    /// The socket took bytes.
    pub(super) fn note_sent(&self) {
        self.stalled_since.store(0, Ordering::Relaxed);
        self.active_at.store(self.clock.now_ms(), Ordering::Relaxed);
    }

    /// The socket takes no bytes now.
    pub(super) fn note_stalled(&self) {
        set_once(&self.stalled_since, self.clock.now_ms());
    }

    /// Whether the socket has refused bytes, and taken none since.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled_since.load(Ordering::Relaxed) != 0
    }

    /// Whether the connection is between two requests, with nothing of the last one left, so that anybody could serve the next.
    pub(super) fn is_between_requests(&self) -> bool {
        self.is_idle()
            && self.has_served()
            && !self.is_stalled()
            && !self.is_asked_to_close()
            && !self.request_unread.load(Ordering::Relaxed)
            && self.lingering_since.load(Ordering::Relaxed) == 0
    }

    /// The sending side is closed. Whether to go on reading what the peer may still send.
    pub(super) fn start_lingering(&self) -> bool {
        let wanted = self.request_unread.load(Ordering::Relaxed);
        if wanted {
            set_once(&self.lingering_since, self.clock.now_ms());
        }
        wanted
    }

    /// Asks for an end after the requests under way.
    pub(super) fn ask_to_close(&self) {
        set_once(&self.closing_since, self.clock.now_ms());
        self.task.wake();
    }

    /// Whether an end was asked for.
    pub(super) fn is_asked_to_close(&self) -> bool {
        self.closing_since.load(Ordering::Relaxed) != 0
    }

    /// Has the connection's task look whether the peer is still there.
    pub(super) fn probe(&self) {
        self.active_at.store(self.clock.now_ms(), Ordering::Relaxed);
        self.probe_wanted.store(true, Ordering::Relaxed);
        self.task.wake();
    }

    /// Whether a look at the peer is due; each request for one is reported once.
    pub(super) fn take_probe(&self) -> bool {
        self.probe_wanted.load(Ordering::Relaxed) && self.probe_wanted.swap(false, Ordering::Relaxed)
    }

    /// Whether the socket shall be reset when it is closed.
    pub(super) fn is_to_be_reset(&self) -> bool {
        self.reset.load(Ordering::Relaxed)
    }

    /// Where the task that serves the connection leaves its waker.
    pub(super) fn task(&self) -> &AtomicWaker {
        &self.task
    }

    /// Lists an HTTP/2 response. Flow control is per stream there, so that a stalled one never shows on the socket.
    pub(super) fn list_paced(&self) -> usize {
        let now_ms = self.clock.now_ms();
        self.paced.lock().unwrap_or_else(PoisonError::into_inner).insert(now_ms)
    }

    /// The transport asks for (`false`), or was given (`true`), a piece of a listed response.
    pub(super) fn note_paced(&self, key: usize, given: bool) {
        let since = if given { self.clock.now_ms() } else { 0 };
        if let Some(entry) = self.paced.lock().unwrap_or_else(PoisonError::into_inner).get_mut(key) {
            *entry = since;
        }
    }

    /// Takes a response off the list.
    pub(super) fn unlist_paced(&self, key: usize) {
        self.paced.lock().unwrap_or_else(PoisonError::into_inner).try_remove(key);
    }

    fn longest_paced_since(&self) -> u64 {
        let paced = self.paced.lock().unwrap_or_else(PoisonError::into_inner);
        paced.iter().map(|(_, &since)| since).filter(|&since| since != 0).min().unwrap_or(0)
    }

    /// What is due at `now_ms`. `slack` is added to every bound, because the clock may date an event too early by it.
    pub(super) fn judge(&self, now_ms: u64, slack: Duration, timeouts: &Timeouts) -> Verdict {
        let due = |since: &AtomicU64, bound| passed(since.load(Ordering::Relaxed), now_ms, bound, slack);
        if due(&self.stalled_since, timeouts.write) {
            self.reset.store(true, Ordering::Relaxed);
            return Verdict::Cut("the peer leaves its bytes unread");
        }
        if due(&self.lingering_since, LINGER) {
            return Verdict::Cut("the peer goes on sending after the answer");
        }
        if self.is_phase(Phase::Handshake) {
            return if due(&self.head_since, timeouts.handshake) {
                Verdict::Cut("the TLS handshake takes too long")
            } else {
                Verdict::Keep
            };
        }
        if self.is_phase(Phase::Http2) && passed(self.longest_paced_since(), now_ms, timeouts.write, slack) {
            self.reset.store(true, Ordering::Relaxed);
            return Verdict::Cut("the peer leaves an HTTP/2 stream unread");
        }
        if self.is_idle() { self.judge_idle(due, timeouts) } else { self.judge_busy(due, timeouts) }
    }

    fn judge_idle(&self, due: impl Fn(&AtomicU64, Duration) -> bool, timeouts: &Timeouts) -> Verdict {
        if due(&self.closing_since, CLOSE_GRACE) {
            Verdict::Cut("the connection did not end when asked")
        } else if due(&self.head_since, timeouts.header) {
            Verdict::Cut("the request's head takes too long")
        } else if due(&self.idle_since, timeouts.idle) && !self.is_asked_to_close() {
            Verdict::AskToClose("idle")
        } else {
            Verdict::Keep
        }
    }

    fn judge_busy(&self, due: impl Fn(&AtomicU64, Duration) -> bool, timeouts: &Timeouts) -> Verdict {
        if due(&self.half_closed_since, timeouts.half_closed) {
            Verdict::Cut("the peer has closed its side")
        } else if due(&self.active_at, PROBE_AFTER) {
            Verdict::Probe
        } else {
            Verdict::Keep
        }
    }
}

fn set_once(since: &AtomicU64, now_ms: u64) {
    if since.load(Ordering::Relaxed) == 0 {
        since.store(now_ms, Ordering::Relaxed);
    }
}

fn passed(since_ms: u64, now_ms: u64, bound: Duration, slack: Duration) -> bool {
    since_ms != 0 && u128::from(now_ms.saturating_sub(since_ms)) >= (bound + slack).as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> ConnectionState {
        ConnectionState::new(Arc::new(CoarseClock::new()))
    }

    /// The verdict `seconds` after everything that happened so far, which the clock of a test dates 1.
    fn after(state: &ConnectionState, seconds: u64) -> Verdict {
        state.judge(1 + seconds * 1000, Duration::ZERO, &Timeouts::OF_TESTS)
    }

    fn is_cut(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Cut(_))
    }

    #[test]
    fn connection_that_sends_nothing_is_cut_after_the_header_timeout() {
        let state = state();
        assert_eq!(after(&state, 9), Verdict::Keep);
        assert!(is_cut(after(&state, 10)));
    }

    #[test]
    fn bounds_are_extended_by_the_clocks_slack() {
        let state = state();
        let slack = Duration::from_secs(1);
        assert_eq!(state.judge(1 + 10_999, slack, &Timeouts::OF_TESTS), Verdict::Keep);
        assert!(is_cut(state.judge(1 + 11_000, slack, &Timeouts::OF_TESTS)));
    }

    #[test]
    fn kept_alive_connection_is_closed_in_order_after_the_idle_timeout() {
        let state = state();
        state.begin_request();
        state.end_request();
        assert_eq!(after(&state, 59), Verdict::Keep);
        assert_eq!(after(&state, 60), Verdict::AskToClose("idle"));
        state.ask_to_close();
        assert!(is_cut(after(&state, 60)));
    }

    #[test]
    fn second_head_is_bounded_by_the_header_timeout_once_it_begins() {
        let state = state();
        state.begin_request();
        state.end_request();
        state.note_received();
        assert!(is_cut(after(&state, 10)));
    }

    #[test]
    fn request_under_way_is_never_idle() {
        let state = state();
        state.begin_request();
        assert_eq!(after(&state, 29), Verdict::Keep);
        assert_eq!(after(&state, 100_000), Verdict::Probe);
    }

    #[test]
    fn frames_of_an_idle_http2_connection_do_not_count_as_a_head() {
        let state = state();
        state.enter_phase(Phase::Http2);
        state.begin_request();
        state.end_request();
        state.note_received();
        assert_eq!(after(&state, 59), Verdict::Keep);
    }

    #[test]
    fn unread_bytes_cut_the_connection_until_the_peer_takes_some() {
        let state = state();
        state.begin_request();
        state.note_stalled();
        assert_eq!(after(&state, 29), Verdict::Keep);
        state.note_sent();
        assert!(!is_cut(after(&state, 30)));
        state.note_stalled();
        assert!(is_cut(after(&state, 30)));
        assert!(state.is_to_be_reset());
    }

    #[test]
    fn stalled_http2_response_cuts_the_connection_while_others_move() {
        let state = state();
        state.enter_phase(Phase::Http2);
        state.begin_request();
        let stalled = state.list_paced();
        let moving = state.list_paced();
        state.note_paced(moving, false);
        assert!(is_cut(after(&state, 30)));
        state.unlist_paced(stalled);
        assert!(!is_cut(after(&state, 30)));
    }

    #[test]
    fn handshake_has_its_own_bound() {
        let state = state();
        state.enter_phase(Phase::Handshake);
        assert_eq!(after(&state, 4), Verdict::Keep);
        assert!(is_cut(after(&state, 5)));
    }

    #[test]
    fn vanished_peer_of_a_long_answer_is_cut_late_enough_for_a_half_closing_client() {
        let state = state();
        state.begin_request();
        state.note_end_of_input();
        assert!(!is_cut(after(&state, 39)));
        assert!(is_cut(after(&state, 40)));
    }

    #[test]
    fn connection_asked_to_close_keeps_its_request() {
        let state = state();
        state.begin_request();
        state.ask_to_close();
        assert!(!is_cut(after(&state, 20)));
        state.end_request();
        assert!(is_cut(after(&state, 20)));
    }
}
