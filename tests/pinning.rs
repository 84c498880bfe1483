//! `server.pin_cores`: which CPUs the threads of the real server may run on.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use support::ServerProcess;
use support::http::PATIENCE;

/// More than most machines that run tests have CPUs.
const CORES: usize = 5;

/// The CPUs that a thread may run on, from its directory in `/proc`. `None` if it has just ended.
fn cpus(task: &Path) -> Option<Vec<usize>> {
    let status = fs::read_to_string(task.join("status")).ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("Linux has it");
    let number = |text: &str| text.trim().parse::<usize>().expect("it is a number");
    let ranges = list.split(',').map(|range| match range.split_once('-') {
        Some((first, last)) => number(first)..=number(last),
        None => number(range)..=number(range),
    });
    Some(ranges.flatten().collect())
}

/// The CPUs that this thread, and so a server that it starts, may run on.
fn own_cpus() -> Vec<usize> {
    cpus(Path::new("/proc/thread-self")).expect("this thread goes on")
}

/// Starts a server that has threads of all sorts: it keeps streams on disk, and has split a large body, which no core does.
fn start(pin_cores: &str) -> ServerProcess {
    let server = ServerProcess::start(&[
        ("DS_SERVER__PIN_CORES", pin_cores),
        ("DS_STORAGE__MODE", "file-durable"),
        ("DS_STORAGE__ACID_SHARD_COUNT", &CORES.to_string()),
    ]);
    let body = format!("[\"{}\"]", "x".repeat(400_000));
    let json = [("Content-Type", "application/json")];
    server.client().request("PUT", "/v1/stream/a", &json, body.as_bytes()).expect_status(201);
    server
}

/// A thread's name, and the CPUs that it may run on.
type Task = (String, Vec<usize>);

fn tasks(server: &ServerProcess) -> Vec<Task> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).expect("the process can be looked at");
    let task = |path: &Path| Some((fs::read_to_string(path.join("comm")).ok()?, cpus(path)?));
    tasks.flatten().filter_map(|entry| task(&entry.path())).collect()
}

/// Whether there are threads of all sorts, and each may run where it should: cores on one CPU each, in turn, if they are pinned.
fn is_as_it_should(tasks: &[Task], allowed: &[usize], is_pinned: bool) -> bool {
    let named = |prefix: &str| tasks.iter().filter(|(name, _)| name.starts_with(prefix)).count();
    let is_in_its_place = |(name, cpus): &Task| match name.trim().strip_prefix("ds-core-") {
        Some(index) if is_pinned => {
            let index: usize = index.parse().expect("cores are numbered");
            *cpus == [allowed[index % allowed.len()]]
        }
        _ => cpus == allowed,
    };
    // One of tokio's has split the large body.
    (named("ds-core-"), named("ds-commit-")) == (CORES, CORES)
        && named("tokio-") > 0
        && tasks.iter().all(is_in_its_place)
}

/// A thread gives itself its name, and leaves its parent's CPU, a moment after it was started.
#[track_caller]
fn check(server: &ServerProcess, allowed: &[usize], is_pinned: bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tasks = tasks(server);
        if is_as_it_should(&tasks, allowed, is_pinned) {
            return;
        }
        assert!(Instant::now() < deadline, "of {allowed:?}, pinned: {is_pinned}: {tasks:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn pinned_cores_stay_on_one_cpu_each_and_other_threads_go_anywhere() {
    check(&start("true"), &own_cpus(), true);
}

#[test]
fn cores_that_are_not_to_be_pinned_go_anywhere() {
    check(&start("false"), &own_cpus(), false);
}

#[test]
fn a_server_that_may_not_run_everywhere_pins_its_cores_to_where_it_may() {
    let cpus = own_cpus();
    let last = *cpus.last().expect("this thread runs somewhere");
    let server = thread::spawn(move || {
        let mut only = CpuSet::new();
        only.set(last);
        sched_setaffinity(None, &only).expect("a thread may keep to fewer CPUs");
        start("true")
    });
    check(&server.join().expect("the server starts"), &[last], true);
}
