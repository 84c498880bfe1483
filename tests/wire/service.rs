//! Servers to test, and a client that checks on every answer what holds for all of them.

use std::time::Instant;

use crate::contract::{self, Expectations};
use crate::support::ServerProcess;
use crate::support::http::{Client, Connection, PATIENCE, Response};

/// The storage modes that a rule about streams is tested in.
pub(crate) const MODES: [&str; 2] = ["memory", "acid"];
/// Where streams live by default, with the slash behind it.
pub(crate) const BASE: &str = "/v1/stream/";
/// `Content-Type` of streams whose type does not matter.
pub(crate) const TEXT: (&str, &str) = ("Content-Type", "text/plain");
/// `Content-Type` of streams of JSON messages.
pub(crate) const JSON: (&str, &str) = ("Content-Type", "application/json");
/// Asks for closure.
pub(crate) const CLOSED: (&str, &str) = ("Stream-Closed", "true");

/// Makes of each function two tests, `memory::name` and `acid::name`. It is given a server without streams.
macro_rules! in_each_mode {
    ($($name:ident),+ $(,)?) => {
        mod memory {
            $(#[test] fn $name() { super::$name(&crate::service::start_in("memory", &[])); })+
        }
        mod acid {
            $(#[test] fn $name() { super::$name(&crate::service::start_in("acid", &[])); })+
        }
    };
}
pub(crate) use in_each_mode;

/// A server in memory mode.
#[track_caller]
pub(crate) fn start(environment: &[(&str, &str)]) -> ServerProcess {
    start_in("memory", environment)
}

/// A server in this storage mode, with two shards.
#[track_caller]
pub(crate) fn start_in(mode: &str, environment: &[(&str, &str)]) -> ServerProcess {
    let mut variables = vec![("DS_STORAGE__MODE", mode), ("DS_STORAGE__ACID_SHARD_COUNT", "2")];
    variables.extend_from_slice(environment);
    ServerProcess::start(&variables)
}

/// The offset of a position.
pub(crate) fn offset(position: usize) -> String {
    format!("0000000000000000_{position:016}")
}

/// The three producer headers.
pub(crate) struct Producer {
    id: String,
    epoch: String,
    seq: String,
}

impl Producer {
    pub(crate) fn new(id: &str, epoch: u64, seq: u64) -> Self {
        Self::spelled(id, &epoch.to_string(), &seq.to_string())
    }

    /// With numbers as they are to be sent.
    pub(crate) fn spelled(id: &str, epoch: &str, seq: &str) -> Self {
        Self { id: id.to_owned(), epoch: epoch.to_owned(), seq: seq.to_owned() }
    }

    /// These headers and `others`.
    pub(crate) fn with<'a>(&'a self, others: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut headers = others.to_vec();
        headers.push(("Producer-Id", &self.id));
        headers.push(("Producer-Epoch", &self.epoch));
        headers.push(("Producer-Seq", &self.seq));
        headers
    }
}

/// Sends requests over one connection and checks every answer against [`contract`].
pub(crate) struct Caller {
    client: Client,
}

impl Caller {
    pub(crate) fn to(server: &ServerProcess) -> Self {
        Self { client: server.client() }
    }

    /// A request to any path.
    #[track_caller]
    pub(crate) fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let response = self.client.request(method, target, headers, body);
        contract::check(&response, method, target);
        response
    }

    #[track_caller]
    pub(crate) fn put(&mut self, name: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
        self.send("PUT", &path(name), headers, body.as_ref())
    }

    #[track_caller]
    pub(crate) fn post(&mut self, name: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
        self.send("POST", &path(name), headers, body.as_ref())
    }

    /// `name` may have a query behind it.
    #[track_caller]
    pub(crate) fn get(&mut self, name: &str, headers: &[(&str, &str)]) -> Response {
        self.send("GET", &path(name), headers, b"")
    }

    #[track_caller]
    pub(crate) fn head(&mut self, name: &str) -> Response {
        self.send("HEAD", &path(name), &[], b"")
    }

    #[track_caller]
    pub(crate) fn delete(&mut self, name: &str) -> Response {
        self.send("DELETE", &path(name), &[], b"")
    }

    /// Creates a stream with this content.
    #[track_caller]
    pub(crate) fn create(
        &mut self,
        name: &str,
        content_type: (&str, &str),
        body: impl AsRef<[u8]>,
    ) -> Response {
        self.put(name, &[content_type], body).expect_status(201)
    }

    /// Appends to a stream.
    #[track_caller]
    pub(crate) fn append(
        &mut self,
        name: &str,
        content_type: (&str, &str),
        body: impl AsRef<[u8]>,
    ) -> Response {
        self.post(name, &[content_type], body).expect_status(204)
    }

    /// The whole content of a stream that fits into one page, as text.
    #[track_caller]
    pub(crate) fn content(&mut self, name: &str) -> String {
        let page = self.get(name, &[]).expect_status(200);
        page.expect_header("Stream-Up-To-Date", "true");
        page.text().to_owned()
    }

    /// The tail of a stream.
    #[track_caller]
    pub(crate) fn tail(&mut self, name: &str) -> String {
        self.head(name).expect_status(200).next_offset()
    }

    #[track_caller]
    pub(crate) fn is_closed(&mut self, name: &str) -> bool {
        self.head(name).expect_status(200).header("Stream-Closed").is_some()
    }

    #[track_caller]
    pub(crate) fn assert_absent(&mut self, name: &str) {
        self.head(name).expect_status(404);
    }
}

/// Ends loops that wait for what another thread does, should that thread have failed.
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn start() -> Self {
        Self(Instant::now() + PATIENCE)
    }

    #[track_caller]
    pub(crate) fn check(&self) {
        assert!(Instant::now() < self.0, "what was waited for did not happen");
    }
}

/// The path of a stream under the default base path.
pub(crate) fn path(name: &str) -> String {
    format!("{BASE}{name}")
}

/// A connection for requests that no proper client sends.
#[track_caller]
pub(crate) fn connect(server: &ServerProcess) -> Connection {
    server.origin().connect().expect("the server accepts connections")
}

/// Sends these bytes over a connection of their own and reads one answer, which is checked. `None` if the server
/// closed the connection without one.
#[track_caller]
pub(crate) fn answer_to(server: &ServerProcess, bytes: impl AsRef<[u8]>) -> Option<Response> {
    let mut connection = connect(server);
    connection.send_raw(bytes.as_ref()).expect("a new connection takes bytes");
    connection.read_response("GET").ok()
}
