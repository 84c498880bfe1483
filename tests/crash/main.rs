//! `kill -9` at any moment, while sixteen writers write, and one more thread creates, forks, closes and deletes.
//!
//! Whatever was acknowledged before is there after the restart, once and in order; what was on its way is there or not,
//! as a whole, and its retry is answered accordingly.

#[path = "../support/mod.rs"]
mod support;

mod garden;
mod writers;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::http::{Client, PATIENCE, Response};
use support::{ServerProcess, server_command};

use garden::Garden;
use writers::Writer;

const ROUNDS: usize = 12;
const WRITERS: usize = 16;
/// Acknowledged requests of a round before the server is in danger.
const PROGRESS: u64 = 60;
/// Longest time that the server lives after that.
const LIFE_MS: u64 = 150;
/// Longest time that a start is given in which nobody waits for its end.
const START_MS: u64 = 80;

fn settings(mode: &str) -> [(&str, &str); 4] {
    [
        ("DS_STORAGE__MODE", mode),
        ("DS_STORAGE__ACID_SHARD_COUNT", "3"),
        // Small enough that settling and reading from disk are under way all the time.
        ("DS_STORAGE__JOURNAL_BYTES", "65536"),
        ("DS_LIMITS__MAX_MEMORY_BYTES", "65536"),
    ]
}

/// Milliseconds below `most`, not the same twice.
fn any_ms(most: u64) -> Duration {
    Duration::from_millis(RandomState::new().build_hasher().finish() % most)
}

/// Reads a whole stream, page by page: the pages' bodies.
#[track_caller]
fn pages(client: &mut Client, path: &str) -> Vec<Vec<u8>> {
    let mut pages = Vec::new();
    let mut offset = "-1".to_owned();
    loop {
        let page = client.request("GET", &format!("{path}?offset={offset}"), &[], b"").expect_status(200);
        let next =
            page.header("Stream-Next-Offset").expect("a page says where the next one begins").to_owned();
        let up_to_date = page.header("Stream-Up-To-Date").is_some();
        assert!(up_to_date || next > offset, "{path} goes on at {offset}");
        pages.push(page.body);
        offset = next;
        if up_to_date {
            return pages;
        }
    }
}

/// Asks until the answer has this status: for what the server does by itself, behind an answer.
#[track_caller]
fn wait_for_status(client: &mut Client, path: &str, status: u16) -> Response {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let response = client.request("HEAD", path, &[], b"");
        if response.status == status {
            return response;
        }
        assert!(Instant::now() < deadline, "{path} answers {}, not {status}", response.status);
        thread::sleep(Duration::from_millis(2));
    }
}

/// Starts the server on the data that a killed one left, and kills it before it is ready, or soon after.
fn interrupt_a_start(server: &ServerProcess, mode: &str) {
    let mut child = server_command(server.directory())
        .envs(settings(mode))
        .env("DS_SERVER__PORT", "0")
        .env("DS_STORAGE__DATA_DIR", server.directory().join("data"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the server's binary can be started");
    thread::sleep(any_ms(START_MS));
    child.kill().expect("an unreaped child can be killed");
    child.wait().expect("a killed child can be waited for");
}

/// All that a server left fits together, whatever ended it.
#[track_caller]
fn verify(server: &ServerProcess) {
    let output = server_command(server.directory())
        .args(["verify", "--data-dir", "data"])
        .output()
        .expect("the server's binary can be started");
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{found}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn whatever_acid_acknowledged_survives_kill_9_once_and_in_order() {
    kill_again_and_again("acid");
}

#[test]
fn whatever_file_durable_acknowledged_survives_kill_9_once_and_in_order() {
    kill_again_and_again("file-durable");
}

#[test]
fn whatever_file_fast_acknowledged_survives_kill_9_once_and_in_order() {
    kill_again_and_again("file-fast");
}

fn kill_again_and_again(mode: &str) {
    let mut server = ServerProcess::start(&settings(mode));
    writers::create_streams(&mut server.client());
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    let mut garden = Garden::default();
    for round in 0..ROUNDS {
        let acknowledged = AtomicU64::new(0);
        thread::scope(|scope| {
            for writer in &mut writers {
                let (client, acknowledged) = (server.client(), &acknowledged);
                scope.spawn(move || writer.write_until_cut_off(client, acknowledged));
            }
            let (client, garden) = (server.client(), &mut garden);
            let gardener = scope.spawn(|| garden.grow_until_cut_off(client));
            let deadline = Instant::now() + PATIENCE;
            let has_progressed = || acknowledged.load(Ordering::Relaxed) >= PROGRESS;
            while !has_progressed() && !gardener.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(any_ms(LIFE_MS));
            // Killed in any case: the writers go on for as long as they are answered.
            server.kill9();
            assert!(has_progressed(), "the server answers");
        });
        for _ in 0..round % 3 {
            interrupt_a_start(&server, mode);
        }
        if round % 4 == 0 {
            verify(&server);
        }
        server.restart();
        let mut client = server.client();
        writers::check(&mut client, &mut writers);
        garden.check(&mut client);
    }
    server.terminate();
    verify(&server);
    let total: u64 = writers.iter().map(Writer::acknowledged).sum();
    assert!(total >= PROGRESS * ROUNDS as u64 / 2, "{total} records in all");
}
