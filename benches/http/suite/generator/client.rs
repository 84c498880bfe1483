//! What sits at a connection: it makes requests and is told what came.

use bytes::Bytes;

use crate::suite::stats::Stats;

/// A request's bytes.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// Request line and headers, and a short body right behind them.
    pub(crate) head: Vec<u8>,
    /// A long body, which is not copied.
    pub(crate) body: Bytes,
}

/// What a [`Client`] does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It has written a request.
    Send,
    /// To be asked again at this time. Nanoseconds.
    Wait(u64),
    /// It needs its connection no more.
    Finish,
}

/// A response that has arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    /// Bytes of its body.
    pub(crate) body_bytes: u64,
    /// When the request was handed over. Nanoseconds.
    pub(crate) sent_at: u64,
    /// When the last byte of the response was seen. Nanoseconds.
    pub(crate) now: u64,
}

impl Answer {
    /// 2xx.
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Who sits at one connection.
pub(crate) trait Client: Send {
    /// Writes the next request into `request`, which is empty, or does not.
    fn next(&mut self, now: u64, request: &mut Request) -> Step;

    /// The response is complete.
    fn answered(&mut self, answer: &Answer, stats: &mut Stats);

    /// A response begins with these lines.
    fn head(&mut self, _status: u16, _head: &[u8], _now: u64) {}

    /// Body bytes have come. Only told if [`Self::wants_body`].
    fn body(&mut self, _piece: &[u8], _now: u64, _stats: &mut Stats) {}

    /// It looks at bodies.
    fn wants_body(&self) -> bool {
        false
    }

    /// Its requests are HEAD.
    fn asks_for_heads(&self) -> bool {
        false
    }

    /// It does not wait for the gate to open.
    fn starts_early(&self) -> bool {
        false
    }

    /// Nothing that is still to come matters. `awaiting`: a response is due.
    fn is_settled(&self, awaiting: bool) -> bool {
        !awaiting
    }

    /// The run is over.
    fn ended(&mut self, _stats: &mut Stats) {}
}
