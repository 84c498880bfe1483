//! From an append to the readers that wait for it: long-poll, SSE, very many SSE readers, and such to whom nothing happens.
//!
//! Messages carry a number and the time at which they were sent. Each reader checks that every message comes once and in
//! order, and a run ends when all have all.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::live_readers::{LongPoller, Progress, SseReader};
use super::live_writer::{Pace, Writer};
use super::{Measured, Run};
use crate::suite::generator::{self, Client, Gate};
use crate::suite::messages::Format;
use crate::suite::stats::{Which, now_ns, ns};

/// Of one message.
const MESSAGE_BYTES: usize = 100;
/// Pause between a delivery and the next append of a pair, in which the reader's next long-poll arrives. Nanoseconds.
const PAIR_PAUSE_NS: u64 = 1_000_000;
/// How long a server is left alone before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// Writers and readers in pairs: the next append waits for the delivery of the last one.
pub(super) fn long_poll(run: &Run<'_>, pairs: usize) -> io::Result<Measured> {
    in_pairs(run, pairs, |run, index, progress, gate| Box::new(LongPoller::new(run, index, progress, gate)))
}

/// The same with SSE.
pub(super) fn sse(run: &Run<'_>, pairs: usize) -> io::Result<Measured> {
    in_pairs(run, pairs, |run, index, progress, gate| {
        Box::new(SseReader::new(run, index, progress, gate, Some(Which::Main)))
    })
}

fn in_pairs(
    run: &Run<'_>,
    pairs: usize,
    reader: impl Fn(&Run<'_>, usize, &Arc<Progress>, &Arc<Gate>) -> Box<dyn Client>,
) -> io::Result<Measured> {
    let made = run.create_streams(pairs, Format::Text.content_type(), &Bytes::new())?;
    let gate = Gate::new(pairs);
    let mut clients: Vec<Box<dyn Client>> = Vec::new();
    for index in 0..pairs {
        let progress = Arc::new(Progress::default());
        clients.push(reader(run, index, &progress, &gate));
        let pace = Pace::AfterDelivery { pause: PAIR_PAUSE_NS };
        clients.push(Box::new(Writer::new(run, index, MESSAGE_BYTES, &progress, pace, Which::Side)));
    }
    let driven = run.drive(clients, &gate)?;
    run.delete_streams(pairs);
    Ok(Measured::latency(&driven).with_side("appends", &driven).after_mutations(made))
}

/// Streams with many readers each, and one or more writers each: with one, a reader never gets two messages at once.
#[derive(Clone, Debug)]
pub(super) struct FanOut {
    pub(super) streams: usize,
    /// Of each stream.
    pub(super) readers: usize,
    /// Of each stream.
    pub(super) writers: u8,
    /// Over all streams; `None` = each writer as fast as it is answered.
    pub(super) appends_per_second: Option<u32>,
}

impl FanOut {
    pub(super) fn run(&self, run: &Run<'_>) -> io::Result<Measured> {
        let made = run.create_streams(self.streams, Format::Text.content_type(), &Bytes::new())?;
        let gate = Gate::new(self.streams * self.readers);
        let mut clients: Vec<Box<dyn Client>> = Vec::new();
        let progress: Vec<_> = (0..self.streams).map(|_| Arc::new(Progress::default())).collect();
        for index in 0..self.streams * self.readers {
            let stream = index % self.streams;
            let reader = SseReader::new(run, stream, &progress[stream], &gate, Some(Which::Main));
            clients.push(Box::new(reader));
        }
        for (stream, progress) in progress.iter().enumerate() {
            let pace = self.appends_per_second.map_or(Pace::Saturated, |rate| Pace::Every {
                interval: 1_000_000_000 * self.streams as u64 * u64::from(self.writers)
                    / u64::from(rate.max(1)),
                next: 0,
            });
            for number in 0..self.writers {
                let writer = Writer::new(run, stream, MESSAGE_BYTES, progress, pace, Which::Side);
                clients.push(Box::new(writer.numbered(number)));
            }
        }
        let driven = run.drive(clients, &gate)?;
        run.delete_streams(self.streams);
        Ok(Measured::rate(&driven).with_side("appends", &driven).after_mutations(made))
    }
}

/// Memory of the server for each SSE reader to whom nothing happens; and at the end a message to all of them.
pub(super) fn idle(run: &Run<'_>, connections: usize) -> io::Result<Measured> {
    let usage =
        || run.usage()?.ok_or_else(|| io::Error::other("the server's process is not known: --peer-pid"));
    run.create_streams(1, Format::Text.content_type(), &Bytes::new())?;
    let before = usage()?;
    let gate = Gate::new(connections);
    let progress = Arc::new(Progress::default());
    let reader = |_| -> Box<dyn Client> { Box::new(SseReader::new(run, 0, &progress, &gate, None)) };
    let readers: Vec<_> = (0..connections).map(reader).collect();
    let readers = generator::start(run.target.address, readers, run.timing.threads, &gate)?;
    let all_arrived = super::wait_for_readers(&gate);
    std::thread::sleep(SETTLE);
    let after = usage()?;
    let from = now_ns();
    let until = from + ns(1.0);
    gate.give_up_at(until + ns(super::DRAIN_SECONDS_MAX));
    gate.open(from, until);
    // One message, as the next one would come after the end.
    let pace = Pace::Every { interval: ns(2.0), next: 0 };
    let writer: Box<dyn Client> = Box::new(Writer::new(run, 0, MESSAGE_BYTES, &progress, pace, Which::Side));
    generator::start(run.target.address, vec![writer], 1, &gate)?.join()?;
    let mut stats = readers.join()?;
    let missing = connections.saturating_sub(gate.arrivals().0);
    stats.error("readers that did not get through", if all_arrived { 0 } else { missing as u64 });
    run.delete_streams(1);
    Ok(Measured {
        value: (after.resident_bytes as f64 - before.resident_bytes as f64) / connections as f64,
        peak_bytes: Some(after.peak_bytes as f64),
        errors: stats.errors,
        more: [("connections".to_owned(), connections as f64)].into(),
        ..Measured::default()
    })
}
