//! A server whose content is on disk rather than in RAM, and the memory that it takes.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::support::ServerProcess;
use crate::support::http::{Connection, PATIENCE, Response};

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const BYTES: (&str, &str) = ("Content-Type", "application/octet-stream");
/// `limits.read_page_bytes` of these servers.
pub(crate) const PAGE_BYTES: usize = MIB;
/// What a page may have however little of the budget is left.
pub(crate) const SMALL_PAGE_BYTES: usize = 64 * 1024;
/// `limits.max_read_buffer_bytes` of these servers.
pub(crate) const BUDGET_BYTES: usize = 8 * MIB;

/// An acid server that keeps next to nothing in RAM.
#[track_caller]
pub(crate) fn start(environment: &[(&str, &str)]) -> ServerProcess {
    let mut variables = vec![
        ("DS_STORAGE__MODE", "acid"),
        ("DS_STORAGE__ACID_SHARD_COUNT", "2"),
        ("DS_STORAGE__CACHE_BYTES", "2MiB"),
        ("DS_STORAGE__JOURNAL_BYTES", "256KiB"),
        ("DS_LIMITS__MAX_MEMORY_BYTES", "1MiB"),
        ("DS_LIMITS__READ_PAGE_BYTES", "1MiB"),
        ("DS_LIMITS__MAX_READ_BUFFER_BYTES", "8MiB"),
        // Nobody who stops reading is cut off before the test is over.
        ("DS_LIMITS__WRITE_TIMEOUT_SECS", "3600"),
        // A line for each refusal is as it should be, and too much to read when a test fails.
        ("DS_LOG__RUST_LOG", "error"),
    ];
    for (name, value) in environment {
        variables.retain(|(known, _)| known != name);
        variables.push((name, value));
    }
    ServerProcess::start(&variables)
}

/// What the process has in RAM now, in bytes.
pub(crate) fn resident_bytes(server: &ServerProcess) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).expect("the server runs");
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says what is resident");
    let kib = line.trim().strip_suffix(" kB").expect("it is given in KiB");
    kib.trim().parse::<usize>().expect("it is a number") * 1024
}

#[track_caller]
pub(crate) fn assert_grew_less_than(server: &ServerProcess, before: usize, bytes: usize) {
    let now = resident_bytes(server);
    assert!(
        now < before + bytes,
        "{} MiB became {} MiB, which is more than {} MiB on top",
        before / MIB,
        now / MIB,
        bytes / MIB
    );
}

pub(crate) fn path(name: &str) -> String {
    format!("/v1/stream/{name}")
}

pub(crate) fn from(name: &str, position: usize) -> String {
    format!("{}?offset=0000000000000000_{position:016}", path(name))
}

/// Bytes `start..start + length`, at most [`MIB`], of every stream that [`fill`] fills: a position's byte is its rest by 251.
pub(crate) fn content(start: usize, length: usize) -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| (0..251).collect::<Vec<u8>>().repeat(MIB / 251 + 2));
    &CONTENT[start % 251..][..length]
}

/// Creates a stream, appends to it up to `bytes`, and then some, so that these have left the RAM.
#[track_caller]
pub(crate) fn fill(server: &ServerProcess, name: &str, bytes: usize) {
    let mut client = server.client();
    client.request("PUT", &path(name), &[BYTES], b"").expect_status(201);
    append(server, name, 0, bytes + 4 * MIB);
}

/// Appends the bytes of positions `from..to`.
#[track_caller]
pub(crate) fn append(server: &ServerProcess, name: &str, from: usize, to: usize) {
    let mut client = server.client();
    for start in (from..to).step_by(MIB) {
        let piece = content(start, MIB.min(to - start));
        client.request("POST", &path(name), &[BYTES], piece).expect_status(204);
    }
}

/// A page from disk, as large as the budget allows: [`PAGE_BYTES`], or less as long as others have not taken theirs.
#[track_caller]
pub(crate) fn assert_page(page: &Response, start: usize) {
    let bytes = page.body.len();
    assert_eq!(page.status, 200);
    assert!((SMALL_PAGE_BYTES..=PAGE_BYTES).contains(&bytes), "a page of {bytes} bytes");
    assert!(page.body == content(start, bytes), "other bytes than those of {start}");
}

/// A connection whose kernel buffers take little of what is not read.
pub(crate) fn connect_narrow(server: &ServerProcess) -> Connection {
    server.origin().connect_narrow().expect("the server accepts connections")
}

/// Tries until it works: the server learns of a closed connection, and lets go of its bytes, a moment after the client.
#[track_caller]
pub(crate) fn keep_trying<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(outcome) = attempt() {
            return outcome;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
