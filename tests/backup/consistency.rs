//! A backup amid writers with producers, and streams that are created, forked, deleted while their forks live, and so on.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::ServerProcess;
use crate::support::ending::RaiseOnDrop;
use crate::support::http::{Client, PATIENCE, Response};
use crate::{backup_works, content, server_on, settings};

const WRITERS: usize = 8;
const GARDENERS: usize = 2;
/// Records of each writer before the first backup, and again before the second.
const PROGRESS: u64 = 40;
const TEXT: (&str, &str) = ("Content-Type", "text/plain");
/// Requests in the life of a plant.
const STEPS: u64 = 5;

/// What was acknowledged so far.
#[derive(Default)]
struct Acknowledged {
    records: [AtomicU64; WRITERS],
    /// Of each gardener, all steps: plant after plant.
    steps: [AtomicU64; GARDENERS],
    is_over: AtomicBool,
}

#[derive(Clone, Debug)]
struct Counts {
    records: Vec<u64>,
    steps: Vec<u64>,
}

impl Acknowledged {
    fn counts(&self) -> Counts {
        let of = |counters: &[AtomicU64]| counters.iter().map(|count| count.load(Ordering::SeqCst)).collect();
        Counts { records: of(&self.records), steps: of(&self.steps) }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn wait_for(&self, records: u64) {
        let (mut seen, mut deadline) = (0, Instant::now() + PATIENCE);
        while self.counts().records.iter().any(|count| *count < records) {
            let there = self.counts().records.iter().sum();
            if there > seen {
                (seen, deadline) = (there, Instant::now() + PATIENCE);
            }
            assert!(Instant::now() < deadline, "the writers get on: {:?}", self.counts());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn log_path(writer: usize) -> String {
    format!("/v1/stream/log/{writer}")
}

fn record(seq: u64) -> String {
    format!("{seq} {}\n", "x".repeat((seq * 37 % 1_500) as usize))
}

fn send(client: &mut Client, writer: usize, seq: u64) -> Response {
    let (producer, number) = (format!("writer-{writer}"), seq.to_string());
    let headers =
        [TEXT, ("Producer-Id", &producer), ("Producer-Epoch", "0"), ("Producer-Seq", number.as_str())];
    client.request("POST", &log_path(writer), &headers, record(seq).as_bytes())
}

fn write(mut client: Client, writer: usize, acknowledged: &Acknowledged) {
    let mut seq = 0;
    while !acknowledged.is_over() {
        send(&mut client, writer, seq).expect_status(200);
        seq += 1;
        acknowledged.records[writer].store(seq, Ordering::SeqCst);
    }
}

fn source(gardener: usize, plant: u64) -> String {
    format!("/v1/stream/source/{gardener}-{plant}")
}

fn fork(gardener: usize, plant: u64) -> String {
    format!("/v1/stream/fork/{gardener}-{plant}")
}

fn inherited(plant: u64) -> String {
    format!("inherited by {plant};").repeat(1 + plant as usize % 40)
}

fn take_step(client: &mut Client, gardener: usize, plant: u64, step: u64) {
    let (source, fork) = (source(gardener, plant), fork(gardener, plant));
    match step {
        0 => client.request("PUT", &source, &[TEXT], inherited(plant).as_bytes()).expect_status(201),
        1 => client.request("PUT", &fork, &[("Stream-Forked-From", &source)], b"").expect_status(201),
        2 => client.request("POST", &fork, &[TEXT], b"own;").expect_status(204),
        3 => client.request("DELETE", &source, &[], b"").expect_status(204),
        _ => client.request("DELETE", &fork, &[], b"").expect_status(204),
    };
}

fn tend(mut client: Client, gardener: usize, acknowledged: &Acknowledged) {
    let mut steps = 0;
    while !acknowledged.is_over() {
        let plant = steps / STEPS;
        // Every other plant ends with its source deleted and its fork alive.
        if plant.is_multiple_of(2) || steps % STEPS != STEPS - 1 {
            take_step(&mut client, gardener, plant, steps % STEPS);
        }
        steps += 1;
        acknowledged.steps[gardener].store(steps, Ordering::SeqCst);
    }
}

/// Status and content of source and fork after so many steps.
fn states(plant: u64, steps: u64) -> [(u16, String); 2] {
    let inherited = inherited(plant);
    let own = format!("{inherited}own;");
    let nothing = String::new;
    let is_kept = !plant.is_multiple_of(2);
    match steps {
        0 => [(404, nothing()), (404, nothing())],
        1 => [(200, inherited), (404, nothing())],
        2 => [(200, inherited.clone()), (200, inherited)],
        3 => [(200, inherited), (200, own)],
        _ if steps == 4 || is_kept => [(410, nothing()), (200, own)],
        _ => [(404, nothing()), (404, nothing())],
    }
}

fn look(client: &mut Client, path: &str) -> (u16, String) {
    let status = client.request("HEAD", path, &[], b"").status;
    (status, if status == 200 { content(client, path) } else { String::new() })
}

fn check_writer(client: &mut Client, writer: usize, before: u64, after: u64) {
    let text = content(client, &log_path(writer));
    let there = text.lines().count() as u64;
    let expected: String = (0..there).map(record).collect();
    assert!(text == expected, "writer {writer}: the {there} records are not the first ones, in order");
    assert!((before..=after).contains(&there), "writer {writer}: {there} of {before} to {after} records");
    send(client, writer, there - 1).expect_status(204);
    send(client, writer, there + 1).expect_status(409);
    send(client, writer, there).expect_status(200);
    send(client, writer, there).expect_status(204);
}

fn check_plant(client: &mut Client, gardener: usize, plant: u64, before: u64, after: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let there = [look(client, &source(gardener, plant)), look(client, &fork(gardener, plant))];
        if (before..=after).any(|steps| states(plant, steps) == there) {
            return;
        }
        // A source goes when it has heard of its last fork's end, which may take a moment.
        let is_on_its_way = after >= STEPS && there[0].0 == 410 && there[1].0 == 404;
        assert!(
            is_on_its_way && Instant::now() < deadline,
            "plant {plant} of {gardener} after {before} to {after} steps: {there:?}"
        );
        thread::sleep(Duration::from_millis(2));
    }
}

fn check(mode: &str, copy: &Path, before: &Counts, after: &Counts) {
    let mut server = server_on(mode, copy);
    let mut client = server.client();
    for writer in 0..WRITERS {
        check_writer(&mut client, writer, before.records[writer], after.records[writer] + 1);
    }
    for gardener in 0..GARDENERS {
        let (before, after) = (before.steps[gardener], after.steps[gardener] + 1);
        for plant in 0..=after / STEPS {
            let within = |steps: u64| steps.saturating_sub(plant * STEPS).min(STEPS);
            check_plant(&mut client, gardener, plant, within(before), within(after));
        }
    }
    // What the copy holds is taken for its own from now on: settling, trimming, removing.
    server.terminate();
    server.restart();
    let mut client = server.client();
    for writer in 0..WRITERS {
        assert!(content(&mut client, &log_path(writer)).lines().count() as u64 > before.records[writer]);
    }
}

/// A directory on another file system than the temporary one, if there is any.
fn elsewhere() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a temporary directory can be made")
}

fn back_up_amid_writers(mode: &str) {
    let mut server = ServerProcess::start(&settings(mode));
    let data_dir = server.directory().join("data");
    let (linked, copied) = (server.directory().join("copy"), elsewhere());
    for writer in 0..WRITERS {
        server.client().request("PUT", &log_path(writer), &[TEXT], b"").expect_status(201);
    }
    let acknowledged = Acknowledged::default();
    let backups = thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (client, acknowledged) = (server.client(), &acknowledged);
            scope.spawn(move || write(client, writer, acknowledged));
        }
        for gardener in 0..GARDENERS {
            let (client, acknowledged) = (server.client(), &acknowledged);
            scope.spawn(move || tend(client, gardener, acknowledged));
        }
        let _end = RaiseOnDrop(&acknowledged.is_over);
        let mut backups = Vec::new();
        for (number, target) in [(1, linked.clone()), (2, copied.path().join("made/anew"))] {
            acknowledged.wait_for(number * PROGRESS);
            let before = acknowledged.counts();
            let said = backup_works(&data_dir, &target);
            assert!(said.starts_with("backup complete") && said.contains("3 shards"), "{said}");
            backups.push((target, before, acknowledged.counts()));
        }
        // Commits go on behind the backups.
        let records = acknowledged.counts().records.into_iter().max().unwrap_or(0);
        acknowledged.wait_for(records + 1);
        backups
    });
    server.kill9();
    for (target, before, after) in backups {
        check(mode, &target, &before, &after);
    }
}

#[test]
fn an_acid_backup_amid_writers_has_what_was_acknowledged_and_no_gap() {
    back_up_amid_writers("acid");
}

#[test]
fn a_file_durable_backup_amid_writers_has_what_was_acknowledged_and_no_gap() {
    back_up_amid_writers("file-durable");
}

#[test]
fn a_file_fast_backup_amid_writers_has_what_was_acknowledged_and_no_gap() {
    back_up_amid_writers("file-fast");
}
