//! Which runs there are, and their labels.

use std::time::Duration;

use durable_streams_server::config::StorageMode;

use crate::fast;
use crate::run::{Breakage, Plan, run};
use crate::sim_disk::{Count, CutPoint, Dice, Fault, Moment};
use crate::store::Setting;

fn setting(dice: &mut Dice) -> Setting {
    Setting {
        shards: 1 + dice.roll(3),
        // With the smallest, every group settles; with the largest, few do.
        journal_bytes: [100, 400, 2_000, 20_000][dice.roll(4)],
        recent_bytes: [100, 3_000, 1 << 20][dice.roll(3)],
        cache_bytes: [0, 1 << 20][dice.roll(2)],
        mode: [StorageMode::Acid, StorageMode::FileDurable][dice.roll(2)],
    }
}

fn sync_time(dice: &mut Dice) -> Duration {
    Duration::from_micros([0, 0, 400][dice.roll(3)])
}

fn short(seed: u64, label: String) -> Plan {
    let mut dice = Dice::new(seed.wrapping_add(1 << 40));
    Plan {
        label,
        seed,
        setting: setting(&mut dice),
        clients: 2 + dice.roll(2) as u8,
        bursts: 2 + dice.roll(3),
        phases: 1 + dice.roll(2),
        body_bytes_max: [500, 3_000, 30_000][dice.roll(3)],
        sync_takes: sync_time(&mut dice),
        lives: vec![None],
        nested_percent: 20,
        breakage: None,
    }
}

/// A short run without a cut, to see what there is to cut.
pub(crate) fn rehearsal(seed: u64) -> Plan {
    short(seed, format!("rehearsal-{seed}"))
}

/// The same with a cut at that sync, and work on what is left.
pub(crate) fn sweep(seed: u64, number: u64) -> Plan {
    let moment = Moment::ALL[((seed + number) % 3) as usize];
    let point = CutPoint { count: Count::Syncs, number, moment };
    Plan { lives: vec![Some(point), None], ..short(seed, format!("sweep-{seed}-{number}")) }
}

/// A run through several cuts at any calls.
pub(crate) fn long(seed: u64) -> Plan {
    let mut dice = Dice::new(seed.wrapping_add(1 << 41));
    let lives = (0..4 + dice.roll(4)).map(|_| {
        let number = 1 + dice.roll(500) as u64;
        let point = CutPoint { count: Count::Calls, number, moment: Moment::ALL[dice.roll(3)] };
        (dice.roll(6) > 0).then_some(point)
    });
    let lives = lives.collect();
    Plan {
        label: format!("long-{seed}"),
        seed,
        setting: setting(&mut dice),
        clients: 3 + dice.roll(3) as u8,
        bursts: 4 + dice.roll(6),
        phases: 2 + dice.roll(4),
        body_bytes_max: [3_000, 30_000, 1 << 20][dice.roll(3)],
        sync_takes: sync_time(&mut dice),
        lives,
        nested_percent: 40,
        breakage: None,
    }
}

/// A short run in which a call or a read fails. Then the power is cut, and whatever is not on the disk is lost.
pub(crate) fn broken(seed: u64, breakage: Breakage) -> Plan {
    let label = match breakage {
        Breakage::Call(number, fault) => format!("broken-{seed}-{number}-{fault:?}"),
        Breakage::Read(number) => format!("unreadable-{seed}-{number}"),
    };
    let mut plan = Plan { breakage: Some(breakage), nested_percent: 0, ..short(seed, label) };
    // In turn, lest all of the few seeds draw the same one.
    plan.setting.mode = [StorageMode::FileDurable, StorageMode::Acid][(seed % 2) as usize];
    if matches!(breakage, Breakage::Call(..)) {
        // So that other groups wait behind one that fails.
        plan.sync_takes = Duration::from_micros(400);
    }
    if matches!(breakage, Breakage::Read(_)) {
        // Nothing stays in RAM, so that there is something to read.
        plan.setting = Setting { journal_bytes: 100, recent_bytes: 0, cache_bytes: 0, ..plan.setting };
    }
    plan
}

/// Runs the one that `DS_SIM_SEED` asks for, if it is of this kind. `false` = none is asked for.
pub(crate) fn replay(kind: &str) -> bool {
    let Ok(label) = std::env::var("DS_SIM_SEED") else { return false };
    let parts: Vec<&str> = label.split('-').collect();
    if parts[0] != kind {
        return true;
    }
    let number = |at: usize| parts[at].parse::<u64>().expect("DS_SIM_SEED is a label as it was printed");
    if kind == "fast" {
        for _ in 0..number_from("DS_SIM_REPEAT").unwrap_or(50) {
            fast::run(number(1));
        }
        return true;
    }
    let plan = match kind {
        "sweep" => sweep(number(1), number(2)),
        "long" => long(number(1)),
        "unreadable" => broken(number(1), Breakage::Read(number(2))),
        _ => broken(number(1), Breakage::Call(number(2), fault(parts[3]))),
    };
    for _ in 0..number_from("DS_SIM_REPEAT").unwrap_or(50) {
        run(&plan);
    }
    true
}

fn fault(name: &str) -> Fault {
    Fault::ALL.into_iter().find(|fault| format!("{fault:?}") == name).expect("DS_SIM_SEED is a label")
}

/// A number from the environment.
pub(crate) fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text}")))
}
