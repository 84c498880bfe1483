//! Power cuts, killed processes and failing calls at any point.

use proptest::prelude::*;

use super::disk::{Dice, TestDisk, Trouble};
use super::model::{Model, open};
use super::small;
use crate::storage::StorageError;
use crate::storage::file::{ShardLog, SyncPolicy};

const BOTH: [SyncPolicy; 2] = [SyncPolicy::EachCommit, SyncPolicy::OnFlush];

/// Steps until something fails or they are all done.
fn run(
    log: &mut ShardLog,
    model: &mut Model,
    dice: &mut Dice,
    sync: SyncPolicy,
    steps: u64,
) -> Result<(), StorageError> {
    for _ in 0..steps {
        model.step(log, dice, sync)?;
    }
    Ok(())
}

/// One life of a shard: it is opened, used, cut off, and so on. Returns how often it was cut off.
fn live_through_cuts(seed: u64, sync: SyncPolicy, trouble: Trouble) -> Result<u64, String> {
    let mut dice = Dice(seed);
    let disk = TestDisk::new(seed ^ 0x5eed);
    let mut model = Model::default();
    let mut lost_unsynced = false;
    let mut cuts = 0;
    for _ in 0..6 {
        disk.plan(dice.below(70), trouble);
        let outcome = open(&disk, small(sync)).map(|(log, opened)| {
            let accepted = model.accept(&opened, lost_unsynced);
            (log, accepted)
        });
        let outcome = match outcome {
            Ok((mut log, accepted)) => {
                accepted?;
                lost_unsynced = false;
                let outcome = run(&mut log, &mut model, &mut dice, sync, 40);
                if outcome.is_err()
                    && log.commit(&[crate::storage::Group { seq: u64::MAX, ..Default::default() }]).is_ok()
                {
                    return Err("the log goes on after a failure".to_owned());
                }
                outcome
            }
            Err(error) => Err(error),
        };
        let happened = disk.calm();
        if let Err(error) = &outcome
            && !happened
        {
            return Err(format!("without trouble: {error}"));
        }
        cuts += u64::from(happened);
        // A failing sync loses what it was to keep; a killed process loses nothing that it wrote.
        if trouble == Trouble::PowerCut && dice.one_in(4) {
            continue;
        }
        lost_unsynced = true;
        if trouble == Trouble::PowerCut || dice.one_in(3) {
            disk.cut();
        }
    }
    let (_, opened) = open(&disk, small(sync)).map_err(|error| format!("at last: {error}"))?;
    model.accept(&opened, lost_unsynced)?;
    Ok(cuts)
}

/// `DS_FILE_SEED` runs one seed, `DS_FILE_SEEDS` another number of them.
fn live_many_lives(trouble: Trouble, seeds: u64, cuts_min: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = number("DS_FILE_SEEDS").unwrap_or(seeds);
    let seeds = number("DS_FILE_SEED").map_or(0..seeds, |seed| seed..seed + 1);
    let is_short = seeds.end - seeds.start < 100;
    let mut cuts = 0;
    for sync in BOTH {
        for seed in seeds.clone() {
            match live_through_cuts(seed, sync, trouble) {
                Ok(count) => cuts += count,
                Err(why) => panic!("DS_FILE_SEED={seed} ({sync:?}, {trouble:?}): {why}"),
            }
        }
    }
    assert!(is_short || cuts >= cuts_min, "only {cuts} cuts");
}

#[test]
fn what_was_acknowledged_survives_power_cuts_and_nothing_else_appears() {
    live_many_lives(Trouble::PowerCut, 600, 4_000);
}

#[test]
fn what_was_acknowledged_survives_failing_calls_and_nothing_else_appears() {
    live_many_lives(Trouble::Io, 150, 1_000);
}

#[test]
fn every_call_may_fail_once() {
    const STEPS: u64 = 25;
    for sync in BOTH {
        for trouble in [Trouble::Io, Trouble::Full] {
            let mut after = 0;
            loop {
                let disk = TestDisk::new(after);
                let mut dice = Dice(7);
                let mut model = Model::default();
                disk.plan(after, trouble);
                let outcome = open(&disk, small(sync)).and_then(|(mut log, opened)| {
                    model.accept(&opened, false).unwrap();
                    run(&mut log, &mut model, &mut dice, sync, STEPS)
                });
                let happened = disk.calm();
                if let Err(error) = &outcome {
                    let is_full = matches!(error, StorageError::DiskFull(_));
                    assert_eq!(is_full, trouble == Trouble::Full, "call {after}: {error}");
                }
                let (mut log, opened) = open(&disk, small(sync)).unwrap();
                model
                    .accept(&opened, true)
                    .unwrap_or_else(|why| panic!("call {after} {sync:?} {trouble:?}: {why}"));
                run(&mut log, &mut model, &mut dice, sync, 4).unwrap();
                drop(log);
                let (_, opened) = open(&disk, small(sync)).unwrap();
                model
                    .accept(&opened, false)
                    .unwrap_or_else(|why| panic!("call {after} {sync:?} {trouble:?}: {why}"));
                if !happened {
                    break;
                }
                after += 1;
            }
            assert!(after > 80, "the steps have {after} calls only");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_log_that_is_reopened_anywhere_holds_what_was_committed(
        runs in prop::collection::vec((any::<u64>(), 0_u64..20, any::<bool>()), 1..6),
        is_fast in any::<bool>(),
    ) {
        let sync = BOTH[usize::from(is_fast)];
        let disk = TestDisk::new(0);
        let mut model = Model::default();
        for (seed, steps, is_killed) in runs {
            let (mut log, opened) = open(&disk, small(sync)).unwrap();
            prop_assert_eq!(opened.dropped_bytes, 0);
            prop_assert_eq!(model.accept(&opened, false), Ok(()));
            run(&mut log, &mut model, &mut Dice(seed), sync, steps).unwrap();
            if is_killed {
                std::mem::forget(log);
            }
        }
        let (_, opened) = open(&disk, small(sync)).unwrap();
        prop_assert_eq!(model.accept(&opened, false), Ok(()));
    }
}

#[test]
fn what_an_opening_found_of_a_process_that_was_killed_survives_a_power_cut() {
    for sync in BOTH {
        for seed in 0..20 {
            let disk = TestDisk::new(seed);
            let (mut log, _) = open(&disk, small(SyncPolicy::OnFlush)).unwrap();
            for seq in 1..=3 {
                let group = crate::storage::Group { seq, frames: vec![7; 700].into(), ..Default::default() };
                log.commit(&[group]).unwrap();
            }
            // Killed: what it wrote is in the hands of the operating system.
            std::mem::forget(log);
            let (log, opened) = open(&disk, small(sync)).unwrap();
            assert_eq!(opened.groups.len(), 3);
            std::mem::forget(log);
            disk.cut();
            let (_, opened) = open(&disk, small(sync)).unwrap();
            assert_eq!(opened.groups.len(), 3, "{sync:?}, seed {seed}: they had been shown to readers");
        }
    }
}
