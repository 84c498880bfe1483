//! Readers that check the messages of their stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Run;
use super::pages::Pages;
use crate::suite::generator::{Answer, Client, Gate, Request, Step};
use crate::suite::messages::Checker;
use crate::suite::stats::{Stats, Which, ns};

/// Pause after a refusal, so that it is not repeated a million times. Seconds.
const REFUSED_PAUSE: f64 = 0.05;

/// How far a stream has got: numbers of messages.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Sent by the writer.
    pub(super) sent: AtomicU64,
    /// Acknowledged.
    pub(super) acked: AtomicU64,
    /// Received by a reader.
    pub(super) delivered: AtomicU64,
}

/// What every reader of numbered messages has to do.
#[derive(Debug)]
struct Check {
    checker: Checker,
    progress: Arc<Progress>,
    /// Where deliveries are counted, if anywhere.
    which: Option<Which>,
}

impl Check {
    fn new(progress: &Arc<Progress>, which: Option<Which>) -> Self {
        Self { checker: Checker::default(), progress: Arc::clone(progress), which }
    }

    fn take(&mut self, piece: &[u8], now: u64, stats: &mut Stats) {
        let which = self.which;
        self.checker.feed(piece, |sent_at| {
            if let Some(which) = which {
                stats.record(which, sent_at, now);
            }
        });
        self.progress.delivered.store(self.checker.received(), Ordering::Relaxed);
    }

    fn has_all(&self) -> bool {
        self.checker.received() >= self.progress.sent.load(Ordering::Relaxed)
    }

    fn report(&self, stats: &mut Stats) {
        let unseen = self.progress.acked.load(Ordering::Relaxed).saturating_sub(self.checker.received());
        stats.error("messages delivered twice", self.checker.doubled);
        stats.error("messages missing", self.checker.missing + unseen);
        stats.error("messages garbled", self.checker.garbled);
    }
}

/// A reader that asks again as soon as it is answered.
#[derive(Debug)]
pub(super) struct LongPoller {
    pages: Pages,
    check: Check,
    gate: Arc<Gate>,
    has_arrived: bool,
    refused: bool,
}

impl LongPoller {
    pub(super) fn new(run: &Run<'_>, stream: usize, progress: &Arc<Progress>, gate: &Arc<Gate>) -> Self {
        Self {
            pages: Pages::new(run, stream, "&live=long-poll", ""),
            check: Check::new(progress, Some(Which::Main)),
            gate: Arc::clone(gate),
            has_arrived: false,
            refused: false,
        }
    }
}

impl Client for LongPoller {
    fn next(&mut self, now: u64, request: &mut Request) -> Step {
        if std::mem::take(&mut self.refused) {
            return Step::Wait(now + ns(REFUSED_PAUSE));
        }
        self.pages.write(&mut request.head);
        if !std::mem::replace(&mut self.has_arrived, true) {
            self.gate.arrive();
        }
        Step::Send
    }

    fn head(&mut self, status: u16, head: &[u8], _: u64) {
        self.pages.head(status, head);
    }

    fn body(&mut self, piece: &[u8], now: u64, stats: &mut Stats) {
        self.check.take(piece, now, stats);
    }

    fn answered(&mut self, answer: &Answer, stats: &mut Stats) {
        if let Err(what) = self.pages.turn(answer.status) {
            stats.error(format!("long-poll: {what}"), 1);
            self.refused = true;
        }
    }

    fn wants_body(&self) -> bool {
        true
    }

    fn starts_early(&self) -> bool {
        true
    }

    fn is_settled(&self, _: bool) -> bool {
        self.check.has_all()
    }

    fn ended(&mut self, stats: &mut Stats) {
        self.check.report(stats);
    }
}

/// A reader of an event stream.
#[derive(Debug)]
pub(super) struct SseReader {
    request: Vec<u8>,
    check: Check,
    gate: Arc<Gate>,
    ended: bool,
}

impl SseReader {
    /// From the beginning of a stream. Deliveries are counted in `which`.
    pub(super) fn new(
        run: &Run<'_>,
        stream: usize,
        progress: &Arc<Progress>,
        gate: &Arc<Gate>,
        which: Option<Which>,
    ) -> Self {
        let mut request = Vec::new();
        Pages::new(run, stream, "&live=sse", "Accept: text/event-stream\r\n").write(&mut request);
        Self { request, check: Check::new(progress, which), gate: Arc::clone(gate), ended: false }
    }
}

impl Client for SseReader {
    fn next(&mut self, _: u64, request: &mut Request) -> Step {
        if self.ended {
            return Step::Finish;
        }
        request.head.append(&mut self.request);
        self.ended = true;
        Step::Send
    }

    fn head(&mut self, status: u16, _: &[u8], _: u64) {
        if status == 200 {
            self.gate.arrive();
        }
    }

    fn body(&mut self, piece: &[u8], now: u64, stats: &mut Stats) {
        self.check.take(piece, now, stats);
    }

    fn answered(&mut self, answer: &Answer, stats: &mut Stats) {
        stats.error(format!("an event stream ended early, status {}", answer.status), 1);
        if answer.status != 200 {
            self.gate.refuse();
        }
    }

    fn wants_body(&self) -> bool {
        true
    }

    fn starts_early(&self) -> bool {
        true
    }

    fn is_settled(&self, _: bool) -> bool {
        self.check.has_all()
    }

    fn ended(&mut self, stats: &mut Stats) {
        self.check.report(stats);
    }
}
