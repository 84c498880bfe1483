//! Appends: connections that send the next one when the one before is answered.

use std::io::{self, Write as _};

use bytes::Bytes;

use super::clients::{Template, Turn, content, content_type};
use super::{Measured, Run};
use crate::suite::generator::{Answer, Client, Gate, Request, Step};
use crate::suite::stats::{Stats, Which};

/// So many streams are removed again; more than these take too long.
const DELETED_MAX: usize = 2000;

/// What is appended, and over what.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) connections: usize,
    pub(super) streams: usize,
    /// Of one append.
    pub(super) bytes: usize,
    pub(super) json: bool,
    /// With the three producer headers.
    pub(super) producers: bool,
}

impl Load {
    /// What sets it apart, for its name.
    pub(super) fn name(&self) -> String {
        let size = match self.bytes {
            bytes if bytes >= 1_000_000 && bytes % 1_000_000 == 0 => format!("{}MB", bytes / 1_000_000),
            bytes if bytes >= 1000 && bytes % 1000 == 0 => format!("{}kB", bytes / 1000),
            bytes => format!("{bytes}B"),
        };
        let streams = match self.streams {
            streams if streams >= 1000 && streams % 1000 == 0 => format!("{}k", streams / 1000),
            streams => streams.to_string(),
        };
        let json = if self.json { "-json" } else { "" };
        let producers = if self.producers { "-producers" } else { "" };
        format!("append-c{}-s{streams}-{size}{json}{producers}", self.connections)
    }

    pub(super) fn run(&self, run: &Run<'_>) -> io::Result<Measured> {
        let made = run.create_streams(self.streams, content_type(self.json), &Bytes::new())?;
        let gate = Gate::new(0);
        let body = content(self.json, self.bytes);
        let template = Template::with_body(run, "POST", content_type(self.json), body.len());
        let client = |index: usize| -> Box<dyn Client> {
            let streams = Turn::share(index, self.connections, self.streams);
            let producer = self.producers.then(|| Producer::new(index, streams.len()));
            Box::new(Appender { template: template.clone(), body: body.clone(), streams, producer })
        };
        let driven = run.drive((0..self.connections).map(client).collect(), &gate)?;
        if self.streams <= DELETED_MAX {
            run.delete_streams(self.streams);
        }
        Ok(Measured::rate(&driven).after_mutations(made))
    }
}

/// One connection's producer: the same id on all of its streams.
#[derive(Debug)]
struct Producer {
    id: usize,
    /// The next number, for each of the connection's streams.
    next: Vec<u64>,
    header: Vec<u8>,
}

impl Producer {
    fn new(id: usize, streams: usize) -> Self {
        Self { id, next: vec![0; streams], header: Vec::new() }
    }

    fn header(&mut self, place: usize) -> &[u8] {
        self.header.clear();
        let (id, seq) = (self.id, self.next[place]);
        self.next[place] += 1;
        write!(self.header, "Producer-Id: p{id}\r\nProducer-Epoch: 0\r\nProducer-Seq: {seq}\r\n")
            .expect("a vector takes everything");
        &self.header
    }
}

#[derive(Debug)]
struct Appender {
    template: Template,
    body: Bytes,
    streams: Turn,
    producer: Option<Producer>,
}

impl Client for Appender {
    fn next(&mut self, _: u64, request: &mut Request) -> Step {
        let (stream, place) = self.streams.next();
        let header = self.producer.as_mut().map_or(&b""[..], |producer| producer.header(place));
        self.template.write_with(request, stream, header, &self.body);
        Step::Send
    }

    fn answered(&mut self, answer: &Answer, stats: &mut Stats) {
        if answer.is_success() {
            stats.mutations += 1;
            stats.record(Which::Main, answer.sent_at, answer.now);
        } else {
            stats.error(format!("status {}", answer.status), 1);
        }
    }
}
