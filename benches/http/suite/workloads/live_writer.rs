//! Writers of numbered messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Run;
use super::clients::Template;
use super::live_readers::Progress;
use crate::suite::generator::{Answer, Client, Request, Step};
use crate::suite::messages::{self, Format};
use crate::suite::stats::{Stats, Which, now_ns};

/// A delivery that takes longer is lost. Nanoseconds.
const LOST_AFTER_NS: u64 = 5_000_000_000;
/// A writer that waits for a delivery looks this often; the loop rounds it up. Nanoseconds.
const LOOK_NS: u64 = 200_000;

/// When a [`Writer`] sends. Nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// When the last append was answered.
    Saturated,
    /// By the clock.
    Every { interval: u64, next: u64 },
    /// Some time after the last message was delivered.
    AfterDelivery { pause: u64 },
}

/// One of a stream's writers.
#[derive(Debug)]
pub(super) struct Writer {
    template: Template,
    stream: usize,
    /// Among the stream's.
    writer: u8,
    /// Of the next message.
    number: u32,
    bytes: usize,
    message: Vec<u8>,
    progress: Arc<Progress>,
    pace: Pace,
    which: Which,
    sent_at: u64,
    lost: u64,
}

impl Writer {
    pub(super) fn new(
        run: &Run<'_>,
        stream: usize,
        bytes: usize,
        progress: &Arc<Progress>,
        pace: Pace,
        which: Which,
    ) -> Self {
        let bytes = bytes.max(messages::BYTES_MIN);
        Self {
            template: Template::with_body(run, "POST", Format::Text.content_type(), bytes),
            stream,
            writer: 0,
            number: 0,
            bytes,
            message: Vec::new(),
            progress: Arc::clone(progress),
            pace,
            which,
            sent_at: 0,
            lost: 0,
        }
    }

    /// As another one of the stream's writers.
    pub(super) fn numbered(mut self, writer: u8) -> Self {
        self.writer = writer;
        self
    }

    /// When the next message is due, if that is later.
    fn due(&mut self, now: u64) -> Option<u64> {
        match &mut self.pace {
            Pace::Saturated => None,
            Pace::Every { next, .. } if *next > now => Some(*next),
            Pace::Every { interval, next } => {
                if *next == 0 {
                    // Not all writers in the same instant.
                    *next = now + *interval * (self.stream as u64 * 37 % 100) / 100;
                    if *next > now {
                        return Some(*next);
                    }
                }
                // What was missed is not made up for.
                *next = (*next + *interval).max(now.saturating_sub(*interval));
                None
            }
            Pace::AfterDelivery { pause } => {
                let sent = self.progress.sent.load(Ordering::Relaxed);
                if self.progress.delivered.load(Ordering::Relaxed) < sent {
                    if now < self.sent_at + LOST_AFTER_NS {
                        return Some(now + LOOK_NS);
                    }
                    self.lost += 1;
                }
                let due = self.sent_at + *pause;
                (sent > 0 && now < due).then_some(due)
            }
        }
    }
}

impl Client for Writer {
    fn next(&mut self, now: u64, request: &mut Request) -> Step {
        if let Some(at) = self.due(now) {
            return Step::Wait(at);
        }
        self.progress.sent.fetch_add(1, Ordering::Relaxed);
        self.sent_at = now_ns();
        messages::write(&mut self.message, Format::Text, self.bytes, self.writer, self.number, self.sent_at);
        self.number += 1;
        self.template.write(&mut request.head, self.stream, b"");
        request.head.extend_from_slice(&self.message);
        Step::Send
    }

    fn answered(&mut self, answer: &Answer, stats: &mut Stats) {
        if answer.is_success() {
            stats.mutations += 1;
            self.progress.acked.fetch_add(1, Ordering::Relaxed);
            stats.record(self.which, answer.sent_at, answer.now);
        } else {
            stats.error(format!("append: status {}", answer.status), 1);
        }
    }

    fn ended(&mut self, stats: &mut Stats) {
        stats.error("messages not delivered within seconds", self.lost);
    }
}
