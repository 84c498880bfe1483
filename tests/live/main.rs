//! Live reads over the wire, against the real binary: `protocol.md` §13 and §14, and the races around them.
//!
//! * `tail`: an SSE response as it travels, chunk by chunk, with what every chunk has to keep to.
//! * `long_poll`: one answer, as soon as there is something to say.
//! * `sse`: events, byte for byte.
//! * `sse_text`: text, where payloads and code points are cut.
//! * `sse_ends`: heartbeats, cursors, and how responses end.
//! * `takeover`: event streams that the server writes without its HTTP library, among other requests.
//! * `races`: readers against writers, closers and deleters; exactly-once delivery is counted.
//! * `retention`: readers of a stream that is cut under them.
//! * `wakes`: what happens just before a reader waits.
//! * `incarnations`: one name, deleted and created again under its readers and writers.

#[path = "../support/mod.rs"]
mod support;

mod incarnations;
mod long_poll;
mod races;
mod retention;
mod sse;
mod sse_ends;
mod sse_text;
mod tail;
mod takeover;
mod wakes;

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use support::ServerProcess;
use support::dice::Dice;
use support::ending::RaiseOnDrop;
use support::http::{Connection, PATIENCE, Response, uninterrupted};

/// Longer than any test waits for its reader to be woken, so that a wait never ends by itself.
const LONG: (&str, &str) = ("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "60");
/// Event streams without end and without heartbeats: a reader that is not told what it waits for runs out of patience,
/// where otherwise it would come back and learn it then.
const ENDLESS: [(&str, &str); 2] =
    [("DS_SERVER__SSE_RECONNECT_INTERVAL_SECS", "0"), ("DS_SERVER__SSE_HEARTBEAT_SECS", "0")];
/// Time until the end of a stream that a test waits for. Seconds; enough for a busy machine to do before what has to be done then.
const SOON: u64 = 5;
/// What must not come is waited for this long. A slow machine can only make a test that looks for it miss it.
const SILENCE: Duration = Duration::from_millis(40);

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const JSON: (&str, &str) = ("Content-Type", "application/json");
const BINARY: (&str, &str) = ("Content-Type", "application/octet-stream");
const CLOSED: (&str, &str) = ("Stream-Closed", "true");

const MODES: [&str; 3] = ["memory", "file-durable", "acid"];

/// Runs a test against a fresh server in each storage mode.
fn in_each_mode(settings: &[(&str, &str)], test: impl Fn(&ServerProcess)) {
    for mode in MODES {
        test(&start(mode, settings));
    }
}

/// The same in all of them at one time, for tests that mostly wait.
fn in_each_mode_at_once(settings: &[(&str, &str)], test: impl Fn(&ServerProcess) + Sync) {
    std::thread::scope(|threads| {
        for mode in MODES {
            let test = &test;
            threads.spawn(move || test(&start(mode, settings)));
        }
    });
}

fn start(mode: &str, settings: &[(&str, &str)]) -> ServerProcess {
    // Shown with a failure only.
    eprintln!("storage mode: {mode}");
    let layout = [("DS_STORAGE__MODE", mode), ("DS_STORAGE__ACID_SHARD_COUNT", "2")];
    ServerProcess::start(&[&layout, settings].concat())
}

fn path(name: &str) -> String {
    format!("/v1/stream/{name}")
}

#[track_caller]
fn create(server: &ServerProcess, name: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) {
    server.client().request("PUT", &path(name), headers, body.as_ref()).expect_status(201);
}

#[track_caller]
fn append(server: &ServerProcess, name: &str, content_type: (&str, &str), body: impl AsRef<[u8]>) {
    server.client().request("POST", &path(name), &[content_type], body.as_ref()).expect_status(204);
}

#[track_caller]
fn close(server: &ServerProcess, name: &str) {
    server.client().request("POST", &path(name), &[CLOSED], b"").expect_status(204);
}

#[track_caller]
fn delete(server: &ServerProcess, name: &str) {
    server.client().request("DELETE", &path(name), &[], b"").expect_status(204);
}

#[track_caller]
fn fork(server: &ServerProcess, name: &str, source: &str) {
    create(server, name, &[("Stream-Forked-From", &path(source))], b"");
}

#[track_caller]
fn get(server: &ServerProcess, name_and_query: &str) -> Response {
    server.client().request("GET", &path(name_and_query), &[], b"")
}

/// The offset of a position.
fn offset(position: usize) -> String {
    format!("{:016}_{position:016}", 0)
}

/// The position of an offset, which has to be one of this server's.
#[track_caller]
fn position(offset: &str) -> usize {
    let digits =
        offset.strip_prefix("0000000000000000_").unwrap_or_else(|| panic!("not an offset: {offset:?}"));
    assert_eq!(digits.len(), 16, "not an offset: {offset:?}");
    digits.parse().unwrap_or_else(|_| panic!("not an offset: {offset:?}"))
}

/// The position that an answer tells its reader to go on from.
#[track_caller]
fn next_position(response: &Response) -> usize {
    position(response.header("Stream-Next-Offset").expect("every answer to a reader has an offset"))
}

/// The number of the current cursor interval: 20 s each, counted from 2024-10-09T00:00:00Z.
fn current_interval() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("this is after 1970").as_secs();
    (now - 1_728_432_000) / 20
}

/// An instant that many seconds from now, for `Stream-Expires-At`.
fn in_seconds(seconds: u64) -> String {
    let instant = time::OffsetDateTime::now_utc() + Duration::from_secs(seconds);
    instant.format(&time::format_description::well_known::Rfc3339).expect("the year has four digits")
}

/// Returns when both cores have done everything that either of them knew of before.
fn wait_for_cores(server: &ServerProcess) {
    const NAMES: usize = 16;
    let mut client = server.client();
    // Among so many names there are some on each core, and none of them is a stream. In the second round a core has done what the
    // other one handed on to it in the first.
    for number in 0..2 * NAMES {
        let name = path(&format!("absent-{}", number % NAMES));
        client.request("HEAD", &name, &[], b"").expect_status(404);
    }
}

/// Makes sure that the server sends nothing for a while: whoever waits, waits.
#[track_caller]
fn assert_silent(connection: &Connection) {
    let socket = connection.socket();
    socket.set_read_timeout(Some(SILENCE)).expect("the timeout is not zero");
    let seen = uninterrupted(|| socket.peek(&mut [0]));
    socket.set_read_timeout(Some(PATIENCE)).expect("the timeout is not zero");
    match seen {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
        other => panic!("the server was expected to wait, but: {other:?}"),
    }
}
