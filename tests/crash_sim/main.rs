//! Power cuts and broken calls: the store on a simulated disk that stops at any of its calls and keeps any part of what was
//! not synced, or lets any one call fail.
//!
//! Clients with streams of their own send bursts of every operation and know from a model what the answers have to be; all of
//! them append to one ledger besides, and somebody reads what the others change. After each cut the store is opened on what
//! the disk kept, sometimes to be cut again meanwhile, and then:
//!
//! * what was acknowledged is there, once and in order;
//! * each request that was not answered is done as a whole or not at all;
//! * what anybody has read is there, what was closed is closed, what was gone is gone;
//! * a stream that keeps only so much has just that, and what was cut stays cut;
//! * everything on the disk fits together, as `verify` says;
//! * producers' last requests are duplicates, forks read their bytes, and sources of forks that are gone are let go.
//!
//! `file-fast` promises less, and has an oracle of its own: see `fast`.
//!
//! A run that fails prints what happened in it and a label. What a run does follows from its label, but for the moments at
//! which threads get their turn; so it is repeated:
//!
//! ```sh
//! DS_SIM_SEED=sweep-3-17 cargo test --test crash_sim              # this run, 50 times, or DS_SIM_REPEAT times
//! DS_SIM_CUTS=200000 DS_SIM_FROM=1000 cargo test --test crash_sim # runs from seed 1000 on, so many cuts of each kind
//! ```

// What stands around the tests is a test too.
#![allow(clippy::unwrap_used)]

#[path = "../model/model.rs"]
#[allow(dead_code)]
mod model;
#[path = "../model/outcome.rs"]
#[allow(dead_code)]
mod outcome;
#[path = "../model/request.rs"]
#[allow(dead_code)]
mod request;
#[path = "../support/sim_disk.rs"]
mod sim_disk;

mod client;
mod fast;
mod full;
mod ledger;
mod observer;
mod offline;
mod op;
mod plans;
mod run;
mod store;
mod window;
mod workload;
mod world;

use std::time::Instant;

use plans::{broken, long, number_from, rehearsal, replay, sweep};
use run::{Breakage, Report, run};
use sim_disk::Fault;

/// Cuts at syncs of short runs, one after the other.
const SWEEP_CUTS: u64 = 1_700;
/// Cuts at any calls of longer runs.
const LONG_CUTS: u64 = 700;
/// Cuts of a store that answers before it syncs.
const FAST_CUTS: u64 = 400;
/// Short runs in which every call fails in turn.
const BROKEN_SEEDS: u64 = 2;
/// Runs with a read that fails, of each of those; there are too many reads for all of them.
const UNREADABLE_RUNS: u64 = 60;

/// Cuts that a test makes before it is content.
fn cuts(default: u64) -> u64 {
    number_from("DS_SIM_CUTS").unwrap_or(default)
}

fn first_seed() -> u64 {
    number_from("DS_SIM_FROM").unwrap_or(0)
}

#[test]
fn a_cut_at_any_sync_of_a_short_run_loses_nothing_that_was_promised() {
    if replay("sweep") {
        return;
    }
    let (start, target) = (Instant::now(), cuts(SWEEP_CUTS));
    let mut total = Report::default();
    let mut seeds = 0;
    while total.cuts < target {
        let seed = first_seed() + seeds;
        let syncs = run(&rehearsal(seed)).syncs;
        for number in 1..=syncs {
            total += run(&sweep(seed, number));
        }
        seeds += 1;
    }
    println!("{seeds} short runs, cut at each sync: {total}, in {:.1?}", start.elapsed());
    assert!(total.cuts >= target && total.nested > total.cuts / 20 && total.in_flight > total.cuts / 5);
}

#[test]
fn cuts_at_any_call_of_longer_runs_and_of_recoveries_lose_nothing_that_was_promised() {
    if replay("long") {
        return;
    }
    let (start, target) = (Instant::now(), cuts(LONG_CUTS));
    let mut total = Report::default();
    let mut seeds = 0;
    while total.cuts < target {
        total += run(&long(first_seed() + seeds));
        seeds += 1;
    }
    println!("{seeds} longer runs, cut at any call: {total}, in {:.1?}", start.elapsed());
    assert!(total.cuts >= target && total.nested > total.cuts / 10 && total.in_flight > total.cuts / 5);
}

#[test]
fn a_cut_of_file_fast_loses_the_end_of_each_shard_and_nothing_that_was_flushed() {
    if replay("fast") {
        return;
    }
    let (start, target) = (Instant::now(), cuts(FAST_CUTS));
    let mut total = fast::Report::default();
    let mut seeds = 0;
    while total.cuts < target {
        total += fast::run(first_seed() + seeds);
        seeds += 1;
    }
    println!("{seeds} runs of file-fast: {total}, in {:.1?}", start.elapsed());
    assert!(total.cuts >= target && total.lost > 0 && total.flushes > 0 && total.forks > 0);
}

#[test]
fn any_call_may_fail_once_and_nothing_that_was_promised_is_lost() {
    if replay("broken") {
        return;
    }
    let start = Instant::now();
    let mut runs = 0;
    for seed in first_seed()..first_seed() + BROKEN_SEEDS {
        let calls = run(&broken(seed, Breakage::Call(u64::MAX, Fault::Io))).calls;
        for number in 1..=calls {
            for (at, fault) in Fault::ALL.into_iter().enumerate() {
                // The first ones in every way, the others each in one.
                if seed == first_seed() || number as usize % Fault::ALL.len() == at {
                    run(&broken(seed, Breakage::Call(number, fault)));
                    runs += 1;
                }
            }
        }
    }
    println!("{runs} runs with one call that failed, in {:.1?}", start.elapsed());
    assert!(runs > 200);
}

#[test]
fn any_read_may_fail_once_and_no_wrong_bytes_are_read() {
    if replay("unreadable") {
        return;
    }
    let start = Instant::now();
    let mut runs = 0;
    for seed in first_seed()..first_seed() + BROKEN_SEEDS {
        let reads = run(&broken(seed, Breakage::Read(u64::MAX))).reads;
        let step = (reads / UNREADABLE_RUNS).max(1);
        for number in (1..=reads).step_by(step as usize) {
            run(&broken(seed, Breakage::Read(number)));
            runs += 1;
        }
    }
    println!("{runs} runs with one read that failed, in {:.1?}", start.elapsed());
    assert!(runs > 50);
}
