//! Reading a `text/event-stream` response as it arrives.

use std::collections::VecDeque;
use std::io;

use super::http::{Connection, Head, Origin, Response};

/// What stands between two empty lines of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// `event:` and `data:` lines.
    Message {
        /// The value of `event`.
        kind: String,
        /// The values of the `data` lines, joined by LF, each without one leading space.
        data: String,
    },
    /// Lines that begin with a colon only.
    Comment,
}

/// An open SSE response.
pub(crate) struct EventStream {
    connection: Connection,
    head: Head,
    /// Bytes after the last empty line.
    rest: Vec<u8>,
    /// Events that came with an earlier piece.
    ready: VecDeque<Event>,
}

impl EventStream {
    /// Sends a GET over a new connection. An answer other than 200 is returned as error, body included.
    pub(crate) fn open(
        origin: &Origin,
        path: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<Result<Self, Response>> {
        let mut connection = origin.connect()?;
        connection.send_request("GET", path, headers, b"")?;
        let mut head = connection.read_head("GET")?;
        if head.response.status == 200 {
            return Ok(Ok(Self { connection, head, rest: Vec::new(), ready: VecDeque::new() }));
        }
        let mut response = head.response.clone();
        while let Some(piece) = connection.read_piece(&mut head)? {
            response.body.extend_from_slice(&piece);
        }
        Ok(Err(response))
    }

    /// Status and headers of the response.
    pub(crate) fn response(&self) -> &Response {
        &self.head.response
    }

    /// The connection below, for timeouts and for leaving it unread.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Waits for the next event or comment; `None` = the response ended, and it ended between two events.
    pub(crate) fn next_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let Some(piece) = self.connection.read_piece(&mut self.head)? else {
                let rest = String::from_utf8_lossy(&self.rest);
                assert!(self.rest.is_empty(), "the response ended inside an event: {rest:?}");
                return Ok(None);
            };
            self.take(&piece);
        }
    }

    /// Waits for the next event that is not a comment.
    pub(crate) fn next_message(&mut self) -> io::Result<Option<(String, String)>> {
        loop {
            match self.next_event()? {
                Some(Event::Message { kind, data }) => return Ok(Some((kind, data))),
                Some(Event::Comment) => {}
                None => return Ok(None),
            }
        }
    }

    fn take(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
        while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = self.rest.drain(..end + 2).collect();
            let text = std::str::from_utf8(&block[..end]).expect("an event is UTF-8");
            self.ready.push_back(parse_block(text));
        }
    }
}

fn parse_block(block: &str) -> Event {
    let mut kind = None;
    let mut data: Option<String> = None;
    for line in block.split('\n') {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => {}
            "event" => kind = Some(value.to_owned()),
            "data" => match &mut data {
                None => data = Some(value.to_owned()),
                Some(lines) => {
                    lines.push('\n');
                    lines.push_str(value);
                }
            },
            other => panic!("unexpected field {other:?} in {block:?}"),
        }
    }
    match (kind, data) {
        (None, None) => Event::Comment,
        (kind, data) => Event::Message { kind: kind.unwrap_or_default(), data: data.unwrap_or_default() },
    }
}
