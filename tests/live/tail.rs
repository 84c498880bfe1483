//! An SSE response as it travels. Each chunk of the transfer coding is one write of the server; a chunk has to be whole
//! events, and no data event may be without its control event in the same chunk.

use std::collections::VecDeque;
use std::io;

use super::support::ServerProcess;
use super::support::http::{Connection, Head, Origin, Response};
use super::{assert_silent, path, position};

/// A control event, and the data event before it, if there was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// The payload as an event source hands it over: lines joined by LF, one leading space of each removed.
    pub(super) data: Option<String>,
    pub(super) control: Control,
    /// Both events as sent.
    pub(super) raw: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) next: usize,
    pub(super) cursor: Option<u64>,
    pub(super) up_to_date: bool,
    pub(super) closed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Batch(Batch),
    Heartbeat,
}

/// An open SSE response.
pub(super) struct Tail {
    connection: Connection,
    head: Head,
    arrived: VecDeque<Arrival>,
    /// Control events so far: offsets never go back, and grow with data.
    last: Option<Control>,
}

impl Tail {
    /// Opens `name?offset=…&live=sse` and expects it to begin.
    #[track_caller]
    pub(super) fn open(server: &ServerProcess, name: &str, offset: &str) -> Self {
        Self::open_with(server, &format!("{name}?offset={offset}&live=sse"), &[])
    }

    #[track_caller]
    pub(super) fn open_with(server: &ServerProcess, target: &str, headers: &[(&str, &str)]) -> Self {
        match Self::try_open(server.origin(), target, headers) {
            Ok(Ok(tail)) => tail,
            Ok(Err(response)) => panic!("{target}: {response:?}"),
            Err(error) => panic!("{target}: {error}"),
        }
    }

    /// The inner error is an answer other than 200.
    pub(super) fn try_open(
        origin: &Origin,
        target: &str,
        headers: &[(&str, &str)],
    ) -> io::Result<Result<Self, Response>> {
        let mut connection = origin.connect()?;
        connection.send_request("GET", &path(target), headers, b"")?;
        let mut head = connection.read_head("GET")?;
        if head.response.status == 200 {
            return Ok(Ok(Self { connection, head, arrived: VecDeque::new(), last: None }));
        }
        let mut response = head.response.clone();
        while let Some(piece) = connection.read_piece(&mut head)? {
            response.body.extend_from_slice(&piece);
        }
        Ok(Err(response))
    }

    /// Status and headers.
    pub(super) fn response(&self) -> &Response {
        &self.head.response
    }

    #[track_caller]
    pub(super) fn assert_silent(&self) {
        assert!(self.arrived.is_empty(), "{:?}", self.arrived);
        assert_silent(&self.connection);
    }

    /// The next batch or heartbeat; `None` = the response ended as it should, with its last chunk.
    pub(super) fn try_arrival(&mut self) -> io::Result<Option<Arrival>> {
        while self.arrived.is_empty() {
            let Some(chunk) = self.connection.read_piece(&mut self.head)? else { return Ok(None) };
            let chunk = String::from_utf8(chunk).expect("a chunk is whole events, and those are UTF-8");
            self.take(&chunk);
        }
        Ok(self.arrived.pop_front())
    }

    /// As [`Self::try_arrival`], without heartbeats.
    pub(super) fn try_batch(&mut self) -> io::Result<Option<Batch>> {
        loop {
            match self.try_arrival()? {
                Some(Arrival::Batch(batch)) => return Ok(Some(batch)),
                Some(Arrival::Heartbeat) => {}
                None => return Ok(None),
            }
        }
    }

    #[track_caller]
    pub(super) fn arrival(&mut self) -> Arrival {
        match self.try_arrival() {
            Ok(Some(arrival)) => arrival,
            other => panic!("{other:?} instead of the next event"),
        }
    }

    #[track_caller]
    pub(super) fn batch(&mut self) -> Batch {
        match self.try_batch() {
            Ok(Some(batch)) => batch,
            other => panic!("{other:?} instead of the next batch"),
        }
    }

    /// Waits for a batch with this payload.
    #[track_caller]
    pub(super) fn expect_data(&mut self, data: &str) -> Control {
        let batch = self.batch();
        assert_eq!(batch.data.as_deref(), Some(data), "{:?}", batch.control);
        batch.control
    }

    /// Waits for a control event without data.
    #[track_caller]
    pub(super) fn expect_control(&mut self) -> Control {
        let batch = self.batch();
        assert_eq!(batch.data, None, "{:?}", batch.control);
        batch.control
    }

    /// Waits for the end, which has to come without another event.
    #[track_caller]
    pub(super) fn expect_end(&mut self) {
        match self.try_batch() {
            Ok(None) => {}
            other => panic!("{other:?} instead of the end"),
        }
    }

    fn take(&mut self, chunk: &str) {
        assert!(!chunk.is_empty(), "an empty chunk ends a response");
        let mut rest = chunk;
        while !rest.is_empty() {
            if let Some(behind) = rest.strip_prefix(":\n\n") {
                assert!(self.last.is_some(), "a heartbeat is the first thing that comes: {chunk:?}");
                self.arrived.push_back(Arrival::Heartbeat);
                rest = behind;
                continue;
            }
            let start = rest;
            let data = take_data(&mut rest);
            let control = take_control(&mut rest).unwrap_or_else(|| {
                panic!("data comes without its control event, or a control is odd: {chunk:?}")
            });
            let raw = start[..start.len() - rest.len()].to_owned();
            self.check(data.as_deref(), control, &raw);
            self.arrived.push_back(Arrival::Batch(Batch { data, control, raw }));
        }
    }

    /// What holds for every control event, whatever a test is about.
    fn check(&mut self, data: Option<&str>, control: Control, raw: &str) {
        assert_eq!(control.cursor.is_none(), control.closed, "{raw:?}");
        assert!(!control.closed || control.up_to_date, "{raw:?}");
        if let Some(last) = self.last.replace(control) {
            assert!(!last.closed, "something comes after the last control event: {raw:?}");
            assert!(control.cursor.is_none_or(|cursor| Some(cursor) >= last.cursor), "{last:?} {raw:?}");
            let grows = if data.is_some() { control.next > last.next } else { control.next == last.next };
            // A closure may also turn bytes that were held back into data.
            assert!(grows, "{last:?} {raw:?}");
        }
    }
}

/// `event: data`, one or more `data:` lines, an empty line.
fn take_data(rest: &mut &str) -> Option<String> {
    let event = rest.strip_prefix("event: data\n")?;
    let end = event.find("\n\n").unwrap_or_else(|| panic!("a data event is cut off: {rest:?}"));
    let lines = event[..end].split('\n').map(|line| {
        let value = line.strip_prefix("data:").unwrap_or_else(|| panic!("neither data nor end: {line:?}"));
        value.strip_prefix(' ').unwrap_or(value)
    });
    let data = lines.collect::<Vec<_>>().join("\n");
    assert!(!data.is_empty(), "a data event is never empty");
    *rest = &event[end + 2..];
    Some(data)
}

/// One line of JSON, its fields in the order in which the protocol prints them.
fn take_control(rest: &mut &str) -> Option<Control> {
    let mut left = rest.strip_prefix("event: control\ndata:{\"streamNextOffset\":\"")?;
    let next = position(left.get(..33)?);
    left = &left[33..];
    left = left.strip_prefix('"')?;
    let mut cursor = None;
    if let Some(value) = left.strip_prefix(",\"streamCursor\":\"") {
        let (digits, behind) = value.split_once('"')?;
        assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{digits:?}");
        cursor = Some(digits.parse().ok()?);
        left = behind;
    }
    let mut flag = |text: &str| {
        let behind = left.strip_prefix(text);
        left = behind.unwrap_or(left);
        behind.is_some()
    };
    let up_to_date = flag(",\"upToDate\":true");
    let closed = flag(",\"streamClosed\":true");
    *rest = left.strip_prefix("}\n\n")?;
    Some(Control { next, cursor, up_to_date, closed })
}
