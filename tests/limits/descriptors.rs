//! Open files: no descriptor belongs to a stream.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use crate::resident::path;
use crate::streams::{create_all, name};
use crate::support::ServerProcess;
use crate::support::http::PATIENCE;

const FEW: usize = 100;
const MANY: usize = 50_000;
const SHARDS: usize = 2;
/// Descriptors of segments that a shard keeps open at most, so that reads need not open them again.
const SEGMENTS_OPEN_MAX: usize = 64;
/// The journal file that is written to, the catalog, and what is just being made.
const FILES_OF_SHARD_MAX: usize = 4;
/// Streams that are read: from all segments, so that as many of these are open as may be.
const READ_EVERY: usize = 250;

fn open_files(server: &ServerProcess) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.id())).expect("the process can be looked at").count()
}

/// How many files are open when no connection is.
fn open_files_at_rest(server: &ServerProcess) -> usize {
    let deadline = Instant::now() + PATIENCE;
    let sockets = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", server.id())).expect("the process can be looked at");
        let links = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    // Listeners, the admin endpoint, and what each thread has to be woken by signals.
    let at_rest = 2 * SHARDS + 6;
    while sockets() > at_rest {
        assert!(Instant::now() < deadline, "{} sockets are open", sockets());
        thread::sleep(Duration::from_millis(10));
    }
    open_files(server)
}

fn read_some(server: &ServerProcess, streams: usize, step: usize) {
    let mut client = server.client();
    for index in (0..streams).step_by(step) {
        let page = client.request("GET", &path(&name(index)), &[], b"").expect_status(200);
        assert_eq!(page.text(), format!("{index:05}"));
    }
}

fn count_descriptors(mode: &str) {
    let server = ServerProcess::start(&[
        ("DS_STORAGE__MODE", mode),
        ("DS_STORAGE__ACID_SHARD_COUNT", &SHARDS.to_string()),
        // Content is settled, and leaves the RAM, all the time.
        ("DS_STORAGE__JOURNAL_BYTES", "1MiB"),
        ("DS_LIMITS__MAX_MEMORY_BYTES", "64KiB"),
    ]);
    create_all(&server, 0..FEW);
    read_some(&server, FEW, 1);
    let few = open_files_at_rest(&server);
    create_all(&server, FEW..MANY);
    let written = open_files_at_rest(&server);
    read_some(&server, MANY, READ_EVERY);
    let read = open_files_at_rest(&server);
    println!(
        "{mode}: {few} files open with {FEW} streams, {written} with {MANY}, {read} after reading from all of them"
    );
    assert!(written <= few + SHARDS * FILES_OF_SHARD_MAX, "{few}, then {written}");
    assert!(read <= few + SHARDS * (SEGMENTS_OPEN_MAX + FILES_OF_SHARD_MAX), "{few}, then {read}");
}

#[test]
fn an_acid_server_has_no_more_files_open_with_fifty_thousand_streams() {
    count_descriptors("acid");
}

#[test]
fn a_file_fast_server_has_no_more_files_open_with_fifty_thousand_streams() {
    count_descriptors("file-fast");
}
