//! Requests, and clients that several workloads use.

use std::io;

use bytes::Bytes;

use super::Run;
use crate::suite::generator::{self, Answer, Client, Request, Step};
use crate::suite::stats::{Stats, Which};

/// Bodies up to this length go out in one piece with the head. Bytes.
const JOINED_MAX: usize = 8 << 10;
/// Connections that make and remove streams.
const SETUP_CONNECTIONS: usize = 16;
/// Time until a request is sent again that found no room.
const REFUSED_PAUSE_NS: u64 = 50_000_000;

/// A request whose stream's number, and little else, is filled in.
#[derive(Clone, Debug)]
pub(super) struct Template {
    before_number: Vec<u8>,
    before_headers: Vec<u8>,
    headers: Vec<u8>,
}

impl Template {
    /// `headers`: lines with their ends. `body_bytes`: `None` = without a body.
    pub(super) fn new(
        run: &Run<'_>,
        method: &str,
        query: &str,
        headers: &str,
        body_bytes: Option<usize>,
    ) -> Self {
        let length = body_bytes.map_or(String::new(), |bytes| format!("Content-Length: {bytes}\r\n"));
        Self {
            before_number: format!("{method} {}/{}-", run.target.base, run.prefix).into(),
            before_headers: format!("{query} HTTP/1.1\r\n").into(),
            headers: format!("Host: {}\r\n{headers}{length}\r\n", run.target.host).into(),
        }
    }

    /// An append, or a creation with content.
    pub(super) fn with_body(run: &Run<'_>, method: &str, content_type: &str, body_bytes: usize) -> Self {
        Self::new(run, method, "", &format!("Content-Type: {content_type}\r\n"), Some(body_bytes))
    }

    /// Writes the head for a stream; `more`: further header lines.
    pub(super) fn write(&self, out: &mut Vec<u8>, stream: usize, more: &[u8]) {
        out.extend_from_slice(&self.before_number);
        out.extend_from_slice(itoa::Buffer::new().format(stream).as_bytes());
        out.extend_from_slice(&self.before_headers);
        out.extend_from_slice(more);
        out.extend_from_slice(&self.headers);
    }

    /// Writes head and body.
    pub(super) fn write_with(&self, request: &mut Request, stream: usize, more: &[u8], body: &Bytes) {
        self.write(&mut request.head, stream, more);
        if body.len() <= JOINED_MAX {
            request.head.extend_from_slice(body);
        } else {
            request.body = body.clone();
        }
    }
}

/// `bytes` of content: zeros as text, or one JSON object.
pub(super) fn content(json: bool, bytes: usize) -> Bytes {
    if !json {
        return vec![b'x'; bytes].into();
    }
    let filling = bytes.saturating_sub(8).max(1);
    format!("{{\"v\":\"{}\"}}", "x".repeat(filling)).into()
}

/// Content type of a stream for [`content`].
pub(super) fn content_type(json: bool) -> &'static str {
    if json { "application/json" } else { "application/octet-stream" }
}

/// The same request again and again, over streams in turn, until the window is over or each stream had its request.
#[derive(Debug)]
pub(super) struct Looper {
    template: Template,
    body: Bytes,
    streams: Turn,
    /// Requests that are left; `None` = without an end.
    left: Option<usize>,
    /// The stream of the last request, and when that was answered with 503, if it is to be sent again.
    last: usize,
    refused_at: Option<u64>,
    method: Method,
}

/// What a [`Looper`]'s requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// Change something.
    Mutates,
    /// GET.
    Reads,
    /// HEAD.
    Heads,
}

/// Which streams a connection goes through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    first: usize,
    step: usize,
    count: usize,
    at: usize,
}

impl Turn {
    /// The share of connection `index` of `connections` in `streams` streams: one of its own at least if there are enough,
    /// else one that it shares.
    pub(super) fn share(index: usize, connections: usize, streams: usize) -> Self {
        if index >= streams {
            return Self { first: index % streams, step: 0, count: 1, at: 0 };
        }
        Self { first: index, step: connections, count: (streams - index).div_ceil(connections), at: 0 }
    }

    /// Numbers that nobody else takes, without an end.
    pub(super) fn fresh(index: usize, connections: usize) -> Self {
        Self { first: index, step: connections, count: usize::MAX, at: 0 }
    }

    /// How many streams.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The next stream, and its place in this share.
    pub(super) fn next(&mut self) -> (usize, usize) {
        let place = self.at;
        self.at = if self.at + 1 == self.count { 0 } else { self.at + 1 };
        (self.first + place * self.step, place)
    }
}

impl Looper {
    /// Sends `template` with `body` until the window is over.
    pub(super) fn new(template: Template, body: Bytes, streams: Turn, method: Method) -> Self {
        Self { template, body, streams, left: None, last: 0, refused_at: None, method }
    }

    /// Finishes after so many requests, all of which are to be carried out: those that the server has no room for just now are
    /// sent again.
    pub(super) fn finishing_after(mut self, requests: usize) -> Self {
        self.left = Some(requests);
        self
    }
}

impl Client for Looper {
    fn next(&mut self, now: u64, request: &mut Request) -> Step {
        if let Some(refused_at) = self.refused_at {
            let again_at = refused_at + REFUSED_PAUSE_NS;
            if now < again_at {
                return Step::Wait(again_at);
            }
            self.refused_at = None;
        } else {
            match &mut self.left {
                Some(0) => return Step::Finish,
                Some(left) => *left -= 1,
                None => {}
            }
            (self.last, _) = self.streams.next();
        }
        self.template.write_with(request, self.last, b"", &self.body);
        Step::Send
    }

    fn answered(&mut self, answer: &Answer, stats: &mut Stats) {
        if answer.status == 503 && self.left.is_some() {
            self.refused_at = Some(answer.now);
            return;
        }
        if !answer.is_success() {
            stats.error(format!("status {}", answer.status), 1);
            return;
        }
        stats.mutations += u64::from(self.method == Method::Mutates);
        stats.record(Which::Main, answer.sent_at, answer.now);
    }

    fn asks_for_heads(&self) -> bool {
        self.method == Method::Heads
    }
}

impl Run<'_> {
    /// Makes streams 0 to `count`, each with `body`; how many mutations that took.
    ///
    /// # Errors
    /// If any is refused.
    pub(super) fn create_streams(&self, count: usize, content_type: &str, body: &Bytes) -> io::Result<u64> {
        let template = Template::with_body(self, "PUT", content_type, body.len());
        self.for_each_stream(count, &template, body)
    }

    /// Removes them from a server that goes on running, so that it gets its memory back.
    pub(super) fn delete_streams(&self, count: usize) {
        if self.is_peer {
            let template = Template::new(self, "DELETE", "", "", None);
            // What was measured is measured; a server that does not delete will have more to carry in the next row.
            let _ = self.for_each_stream(count, &template, &Bytes::new());
        }
    }

    /// Sends one request to each of the streams 0 to `count`.
    fn for_each_stream(&self, count: usize, template: &Template, body: &Bytes) -> io::Result<u64> {
        let connections = SETUP_CONNECTIONS.min(count);
        let client = |index: usize| -> Box<dyn Client> {
            let share = Turn::share(index, connections, count);
            let looper = Looper::new(template.clone(), body.clone(), share, Method::Mutates);
            Box::new(looper.finishing_after(share.len()))
        };
        Ok(generator::run_to_end(self.target.address, (0..connections).map(client).collect())?.mutations)
    }

    /// Appends `body` to stream 0 so many times, one after the other.
    ///
    /// # Errors
    /// If any is refused.
    pub(super) fn fill(&self, content_type: &str, body: &Bytes, times: usize) -> io::Result<u64> {
        let template = Template::with_body(self, "POST", content_type, body.len());
        let looper = Looper::new(template, body.clone(), Turn::share(0, 1, 1), Method::Mutates);
        let client: Box<dyn Client> = Box::new(looper.finishing_after(times));
        Ok(generator::run_to_end(self.target.address, vec![client])?.mutations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_each_stream_once() {
        for (connections, streams) in [(1, 1), (4, 4), (3, 10), (64, 1000)] {
            let mut seen = vec![0; streams];
            for index in 0..connections {
                let mut turn = Turn::share(index, connections, streams);
                for place in 0..turn.len() {
                    let (stream, at) = turn.next();
                    assert_eq!(at, place);
                    seen[stream] += 1;
                }
                let again = turn.next().0;
                assert_eq!(again, index, "it begins again");
            }
            assert!(seen.iter().all(|count| *count == 1), "{connections} over {streams}: {seen:?}");
        }
        let mut shared = Turn::share(7, 8, 3);
        assert_eq!((shared.next().0, shared.next().0, shared.len()), (1, 1, 1));
    }

    #[test]
    fn content_has_its_length_and_json_is_valid() {
        for bytes in [100, 1000] {
            assert_eq!(content(false, bytes).len(), bytes);
            let json = content(true, bytes);
            assert_eq!(json.len(), bytes);
            serde_json::from_slice::<serde_json::Value>(&json).unwrap();
        }
    }
}
