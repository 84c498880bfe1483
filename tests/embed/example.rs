//! `examples/embed.rs`, run as a program and driven over HTTP.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::support::http::{Client, Origin};
use super::support::sse::EventStream;
use super::{may_start_children, wait_until};

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const FEED: &str = "/api/streams/news/today";

/// The example's binary. `cargo test` builds it; asked for this test alone, Cargo leaves it out.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a program knows where it is");
    let profile = test.ancestors().nth(2).expect("tests are built into <profile>/deps");
    let binary = profile.join("examples").join("embed").with_extension(std::env::consts::EXE_EXTENSION);
    if !binary.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--example", "embed"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let _may_start = may_start_children();
        assert!(build.status().expect("Cargo can be started").success(), "the example cannot be built");
    }
    binary
}

/// The running example. Killed when dropped.
struct Example {
    child: Child,
    stdout: BufReader<ChildStdout>,
    origin: Origin,
}

impl Example {
    fn start(directory: &Path) -> Self {
        let mut command = Command::new(binary());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("DS_") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        command
            .arg("0")
            .current_dir(directory)
            .env("DS_STORAGE__MODE", "acid")
            .env("DS_STORAGE__ACID_SHARD_COUNT", "2")
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let may_start = may_start_children();
        let mut child = command.spawn().expect("the example can be started");
        drop(may_start);
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it prints text");
        let url = line.strip_prefix("listening on ").unwrap_or_else(|| panic!("printed {line:?}"));
        let origin = Origin::parse(url.trim(), None);
        Self { child, stdout, origin }
    }

    fn interrupt(&self) {
        let command = format!("kill -INT {}", self.child.id());
        let _may_start = may_start_children();
        assert!(Command::new("sh").args(["-c", &command]).status().expect("sh is there").success());
    }

    /// Waits for a stop in good order.
    fn expect_stop(mut self) {
        let status = wait_until("the end of the example", || self.child.try_wait().expect("it can be asked"));
        assert!(status.success(), "{status}");
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("it prints text");
        assert_eq!(rest, "stopped\n");
    }

    fn client(&self) -> Client {
        self.origin.client()
    }

    fn tail(&self, path: &str) -> EventStream {
        EventStream::open(&self.origin, path, &[]).expect("the example answers").expect("the stream exists")
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // Fails only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn message(kind: &str, data: &str) -> Option<(String, String)> {
    Some((kind.to_owned(), data.to_owned()))
}

#[test]
fn streams_are_served_beside_the_hosts_own_route() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let example = Example::start(directory.path());
    let mut client = example.client();
    let own = client.request("GET", "/", &[], b"").expect_status(200);
    assert!(own.text().contains("/api/streams/"), "{own:?}");
    client.request("GET", "/api/streams/readyz", &[], b"").expect_status(200);

    let created = client.request("PUT", FEED, &[TEXT], b"").expect_status(201);
    let location = format!("http://{}{FEED}", example.origin.authority);
    assert_eq!(created.header("Location"), Some(&*location));
    let mut tail = example.tail(&format!("{FEED}?offset=-1&live=sse"));
    assert_eq!(tail.response().header("Content-Type"), Some("text/event-stream"));
    assert_eq!(tail.next_message().unwrap().expect("it says where it is").0, "control");
    for text in ["first", "second"] {
        client.request("POST", FEED, &[TEXT], text.as_bytes()).expect_status(204);
        assert_eq!(tail.next_message().unwrap(), message("data", text));
        assert_eq!(tail.next_message().unwrap().expect("data has its control event").0, "control");
    }
    let read = client.request("GET", FEED, &[], b"").expect_status(200);
    assert_eq!(read.text(), "firstsecond");

    let fork = "/api/streams/fork";
    client.request("PUT", fork, &[("Stream-Forked-From", FEED)], b"").expect_status(201);
    assert_eq!(client.request("GET", fork, &[], b"").expect_status(200).text(), "firstsecond");
    let bare = [("Stream-Forked-From", "/news/today")];
    client.request("PUT", "/api/streams/other", &bare, b"").expect_status(404);

    let absent = "/api/streams/absent";
    let refused = client.request("GET", absent, &[], b"").expect_status(404);
    assert_eq!(refused.header("Content-Type"), Some("application/problem+json"));
    let problem: serde_json::Value = serde_json::from_slice(&refused.body).expect("a problem is JSON");
    assert_eq!((&problem["code"], &problem["instance"]), (&"NOT_FOUND".into(), &absent.into()));
    assert_eq!(client.request("GET", "/elsewhere", &[], b"").expect_status(404).body, b"");
}

#[test]
fn ctrl_c_ends_live_reads_and_keeps_what_was_acknowledged() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let example = Example::start(directory.path());
    let mut client = example.client();
    client.request("PUT", FEED, &[TEXT], b"kept").expect_status(201);
    let mut waiting = example.origin.connect().expect("the example accepts connections");
    waiting.begin_wait("/api/streams/readyz", &format!("{FEED}?offset=now&live=long-poll")).unwrap();
    let mut tail = example.tail(&format!("{FEED}?offset=now&live=sse"));
    assert_eq!(tail.next_message().unwrap().expect("it says where it is").0, "control");

    example.interrupt();
    waiting.read_response("GET").expect("the long-poll is answered").expect_status(204);
    assert_eq!(tail.next_message().unwrap(), None, "the response ends between two events");
    example.expect_stop();

    let example = Example::start(directory.path());
    assert_eq!(example.client().request("GET", FEED, &[], b"").expect_status(200).text(), "kept");
    example.interrupt();
    example.expect_stop();
}
