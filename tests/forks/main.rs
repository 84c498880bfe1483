//! Forks: `protocol.md` §18, with all streams on one shard and spread over five, and again after the server was killed
//! and stopped.
//!
//! * `chains`: forks of forks, read from every offset.
//! * `creation`: where a fork begins, what it inherits, and which requests repeat its creation.
//! * `deletion`: deleted sources, and what goes when the last fork goes.
//! * `races`: forks against appends and deletions of their source, and against a server that is killed.
//! * `retention`: forks of a source that is cut all the time.

mod chains;
mod creation;
mod deletion;
mod races;
mod retention;
#[path = "../support/mod.rs"]
mod support;

use std::thread;
use std::time::{Duration, Instant};

use support::ServerProcess;
use support::dice::Dice;
use support::http::{Client, PATIENCE, Response};

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const JSON: (&str, &str) = ("Content-Type", "application/json");
const CLOSED: (&str, &str) = ("Stream-Closed", "true");
const FORKED_FROM: &str = "Stream-Forked-From";
const FORK_OFFSET: &str = "Stream-Fork-Offset";
const SUB_OFFSET: &str = "Stream-Fork-Sub-Offset";

/// A server with a client that is always connected to its present life.
struct Server {
    process: ServerProcess,
    client: Client,
    is_durable: bool,
}

/// Runs a test in each storage mode, with one shard and with five.
fn on_each_layout(test: impl Fn(Server)) {
    on_each_layout_with(&[], test);
}

fn on_each_layout_with(settings: &[(&str, &str)], test: impl Fn(Server)) {
    for mode in ["memory", "file-durable", "acid"] {
        for shards in ["1", "5"] {
            test(Server::start(mode, shards, settings));
        }
    }
}

impl Server {
    fn start(mode: &str, shards: &str, settings: &[(&str, &str)]) -> Self {
        // Shown with a failure only.
        eprintln!("storage mode: {mode}, shards: {shards}");
        let layout = [("DS_STORAGE__MODE", mode), ("DS_STORAGE__ACID_SHARD_COUNT", shards)];
        let process = ServerProcess::start(&[&layout, settings].concat());
        Self { client: process.client(), process, is_durable: mode != "memory" }
    }

    /// Makes sure that something holds now and, where streams outlive the process, after it was killed and after it was
    /// stopped.
    fn check_over_restarts(&mut self, check: impl Fn(&mut Self)) {
        check(self);
        if self.is_durable {
            eprintln!("after being killed:");
            self.kill();
            check(self);
            eprintln!("after being stopped:");
            assert!(self.process.terminate().success());
            self.start_again();
            check(self);
        }
    }

    fn kill(&mut self) {
        self.process.kill9();
        self.start_again();
    }

    fn start_again(&mut self) {
        self.process.restart();
        self.client = self.process.client();
    }

    fn request(&mut self, method: &str, name: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.client.request(method, &path(name), headers, body)
    }

    fn put(&mut self, name: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
        self.request("PUT", name, headers, body.as_ref())
    }

    #[track_caller]
    fn create(&mut self, name: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Response {
        let created = self.put(name, headers, body).expect_status(201);
        for header in [FORKED_FROM, FORK_OFFSET, SUB_OFFSET] {
            assert_eq!(created.header(header), None);
        }
        created
    }

    /// A fork at the source's tail, with all of its configuration inherited.
    #[track_caller]
    fn fork(&mut self, name: &str, source: &str) {
        self.create(name, &[(FORKED_FROM, &path(source))], "");
    }

    #[track_caller]
    fn append(&mut self, name: &str, content_type: (&str, &str), body: impl AsRef<[u8]>) {
        self.request("POST", name, &[content_type], body.as_ref()).expect_status(204);
    }

    #[track_caller]
    fn delete(&mut self, name: &str) {
        self.request("DELETE", name, &[], b"").expect_status(204);
    }

    fn get(&mut self, name_and_query: &str) -> Response {
        self.request("GET", name_and_query, &[], b"")
    }

    /// The content of a stream that fits on a page.
    #[track_caller]
    fn content(&mut self, name: &str) -> String {
        self.get(name).expect_status(200).text().to_owned()
    }

    fn status(&mut self, name: &str) -> u16 {
        self.request("HEAD", name, &[], b"").status
    }

    #[track_caller]
    fn expect_status(&mut self, name: &str, status: u16) {
        assert_eq!(self.status(name), status, "{name}");
    }

    /// Fails unless the answer is this refusal.
    #[track_caller]
    fn expect_refusal(&mut self, name: &str, headers: &[(&str, &str)], body: &str, status: u16, code: &str) {
        let refused = self.put(name, headers, body).expect_status(status);
        let expected = format!("\"code\":\"{code}\"");
        assert!(refused.text().contains(&expected), "{} instead of {code}", refused.text());
    }

    /// Waits until HEAD answers with this status.
    #[track_caller]
    fn wait_for_status(&mut self, name: &str, status: u16) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.status(name);
            if found == status {
                return;
            }
            assert!(Instant::now() < deadline, "{name} still answers {found} instead of {status}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/stream/{name}")
}

/// The offset of a position.
fn offset(position: usize) -> String {
    format!("{:016}_{position:016}", 0)
}

/// The position that an answer names as the next one.
#[track_caller]
fn next_position(response: &Response) -> usize {
    let offset = response.header("Stream-Next-Offset").expect("the answer has an offset");
    let digits = offset.strip_prefix("0000000000000000_").expect("the offset is one of this server's");
    digits.parse().expect("the offset is one of this server's")
}
