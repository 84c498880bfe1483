//! Connections that are served by another core than the one that accepted them.
//!
//! The kernel chooses the core of a connection blindly. Of a few that have much to do all may get to the same one, and another
//! core has nothing to do. So a new connection goes on to the core that has the fewest, if that makes a difference.
//!
//! Later it may move to the core that owns its stream. Whose requests all go to streams of one other core pays for two hops with
//! each: two wakes of a thread that may be asleep, and its bytes in another core's cache. Who writes a stream usually writes many
//! times over one connection. So after some requests in a row the connection goes where they go: between two requests hyper gives
//! the socket back, and the other core serves it on. As long as requests go here and there, it stays.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::admission::{Admission, Gate};

/// Requests in a row to one core after which a connection moves there. A move costs about as much as the hops of two.
const MOVES_AFTER: u32 = 16;

/// Body from which on a request or answer has no part in this: next to taking it in or sending it the hops are nothing, and many
/// readers of one long stream would all be served by one core. Bytes.
pub(super) const BULK_BYTES: u64 = 64 * 1024;

/// Where the latest requests of a connection went.
#[derive(Debug, Default)]
pub(super) struct Drift {
    core: Cell<usize>,
    /// Requests in a row.
    run: Cell<u32>,
}

impl Drift {
    /// A request is answered by `core`.
    pub(super) fn note(&self, core: usize) {
        let before = if self.core.replace(core) == core { self.run.get() } else { 0 };
        self.run.set(before.saturating_add(1));
    }

    /// The last request was one of [`BULK_BYTES`], or its answer is.
    pub(super) fn note_bulk(&self) {
        self.run.set(0);
    }

    /// Where the last one went.
    pub(super) fn core(&self) -> usize {
        self.core.get()
    }
}

/// A connection on its way, between two requests.
#[derive(Debug)]
pub(super) struct Moved {
    pub(super) stream: std::net::TcpStream,
    /// What the client has sent of its next requests, as far as it was read.
    pub(super) sent_ahead: Bytes,
    pub(super) admission: Admission,
}

/// What comes to a core from others.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A connection of which nothing was read yet.
    New(std::net::TcpStream, Admission),
    Moved(Moved),
}

/// Connections that come to a core from others.
pub(super) type Arrivals = UnboundedReceiver<Arrival>;

/// The ways from one core to the others.
#[derive(Clone, Debug)]
pub(super) struct Ways {
    here: usize,
    // As many can be under way as there may be connections.
    to: Arc<[UnboundedSender<Arrival>]>,
    gate: Arc<Gate>,
}

impl Ways {
    /// For each of `cores` cores its ways to all others, and what comes over theirs.
    pub(super) fn between(gate: &Arc<Gate>, cores: usize) -> Vec<(Self, Arrivals)> {
        let (to, arrivals): (Vec<_>, Vec<_>) = (0..cores).map(|_| unbounded_channel()).unzip();
        let to: Arc<[_]> = to.into();
        let ways = (0..cores).map(|here| Self { here, to: Arc::clone(&to), gate: Arc::clone(gate) });
        ways.zip(arrivals).collect()
    }

    /// Those of a core that is the only one.
    pub(super) fn to_nowhere(gate: &Arc<Gate>) -> (Self, Arrivals) {
        Self::between(gate, 1).remove(0)
    }

    /// The core that they begin at.
    pub(super) fn here(&self) -> usize {
        self.here
    }

    /// Whether a connection should go where its requests go. If there is no room it is asked again only after as many more.
    pub(super) fn leads_away(&self, drift: &Drift) -> bool {
        if drift.run.get() < MOVES_AFTER || drift.core() == self.here {
            return false;
        }
        drift.run.set(0);
        self.gate.has_room_on(drift.core())
    }

    /// Sends a connection to `core`, which has to be one that [`Self::leads_away`] was asked about. If that takes no connections
    /// any more, it ends.
    pub(super) fn send(&self, core: usize, stream: TcpStream, sent_ahead: Bytes, mut admission: Admission) {
        match stream.into_std() {
            Ok(stream) => {
                tracing::debug!(from = self.here, to = core, "a connection moves to the core of its stream");
                admission.move_to(core);
                // Who does not receive any more has dropped the way, and with it what was on it.
                let _ = self.to[core].send(Arrival::Moved(Moved { stream, sent_ahead, admission }));
            }
            Err(error) => tracing::debug!(%error, "a connection cannot move"),
        }
    }

    /// Sends a connection that was just accepted to the core that it was admitted to. If that serves none, as it has failed, it
    /// is returned, admitted to this one.
    pub(super) fn send_new(
        &self,
        stream: TcpStream,
        admission: Admission,
    ) -> io::Result<Option<(TcpStream, Admission)>> {
        let core = admission.core();
        tracing::debug!(from = self.here, to = core, "a new connection goes to another core");
        let Err(returned) = self.to[core].send(Arrival::New(stream.into_std()?, admission)) else {
            return Ok(None);
        };
        let Arrival::New(stream, mut admission) = returned.0 else {
            unreachable!("what is returned is what was sent")
        };
        admission.move_to(self.here);
        Ok(Some((TcpStream::from_std(stream)?, admission)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways() -> Ways {
        Ways::between(&Gate::new(10, 2), 2).remove(0).0
    }

    fn noted(drift: &Drift, core: usize, requests: u32) {
        (0..requests).for_each(|_| drift.note(core));
    }

    #[test]
    fn a_connection_moves_after_some_requests_in_a_row_to_another_core() {
        let (ways, drift) = (ways(), Drift::default());
        noted(&drift, 1, MOVES_AFTER - 1);
        assert!(!ways.leads_away(&drift));
        noted(&drift, 1, 1);
        assert!(ways.leads_away(&drift));
        assert_eq!(drift.core(), 1);
    }

    #[test]
    fn a_connection_stays_if_its_requests_go_here_or_here_and_there() {
        let (ways, drift) = (ways(), Drift::default());
        noted(&drift, 0, 10 * MOVES_AFTER);
        assert!(!ways.leads_away(&drift));
        for _ in 0..10 {
            noted(&drift, 1, MOVES_AFTER - 1);
            noted(&drift, 0, 1);
            assert!(!ways.leads_away(&drift));
        }
    }

    #[test]
    fn a_connection_stays_if_much_is_sent_over_it() {
        let (ways, drift) = (ways(), Drift::default());
        for _ in 0..3 * MOVES_AFTER {
            noted(&drift, 1, 1);
            drift.note_bulk();
            assert!(!ways.leads_away(&drift));
        }
        noted(&drift, 1, MOVES_AFTER);
        assert!(ways.leads_away(&drift));
    }

    #[test]
    fn a_connection_that_finds_no_room_asks_again_after_as_many_requests() {
        let gate = Gate::new(100, 2);
        let (ways, _) = Ways::between(&gate, 2).remove(0);
        let crowd: Vec<_> = (0..40).map(|_| gate.admit(1)).collect();
        let drift = Drift::default();
        noted(&drift, 1, MOVES_AFTER);
        assert!(!ways.leads_away(&drift));
        drop(crowd);
        noted(&drift, 1, MOVES_AFTER - 1);
        assert!(!ways.leads_away(&drift));
        noted(&drift, 1, 1);
        assert!(ways.leads_away(&drift));
    }
}
