//! Writers, live readers and readers of pages at one time.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::live_readers::{Progress, SseReader};
use super::live_writer::{Pace, Writer};
use super::pages::Pages;
use super::{Measured, Run};
use crate::suite::generator::{Answer, Client, Gate, Request, Step};
use crate::suite::messages::Format;
use crate::suite::stats::{Stats, Which};

/// Each has a writer, an SSE reader and a reader of pages.
const STREAMS: usize = 32;
const MESSAGE_BYTES: usize = 100;

/// The result is appends per second; live readers check every message.
pub(super) fn run(run: &Run<'_>) -> io::Result<Measured> {
    let made = run.create_streams(STREAMS, Format::Text.content_type(), &Bytes::new())?;
    let gate = Gate::new(STREAMS);
    let mut clients: Vec<Box<dyn Client>> = Vec::new();
    for stream in 0..STREAMS {
        let progress = Arc::new(Progress::default());
        clients.push(Box::new(SseReader::new(run, stream, &progress, &gate, None)));
        clients.push(Box::new(Writer::new(
            run,
            stream,
            MESSAGE_BYTES,
            &progress,
            Pace::Saturated,
            Which::Main,
        )));
        clients.push(Box::new(Follower { pages: Pages::new(run, stream, "", "") }));
    }
    let driven = run.drive(clients, &gate)?;
    run.delete_streams(STREAMS);
    Ok(Measured::rate(&driven).with_side("reads", &driven).after_mutations(made))
}

/// Reads from where it stands to the tail, again and again.
#[derive(Debug)]
struct Follower {
    pages: Pages,
}

impl Client for Follower {
    fn next(&mut self, _: u64, request: &mut Request) -> Step {
        self.pages.write(&mut request.head);
        Step::Send
    }

    fn head(&mut self, status: u16, head: &[u8], _: u64) {
        self.pages.head(status, head);
    }

    fn answered(&mut self, answer: &Answer, stats: &mut Stats) {
        match self.pages.turn(answer.status) {
            Ok(_) => stats.record(Which::Side, answer.sent_at, answer.now),
            Err(what) => {
                stats.error(format!("read: {what}"), 1);
                self.pages.rewind();
            }
        }
    }
}
