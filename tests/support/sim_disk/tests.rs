//! The disk itself: what survives, what may be lost, and what fails.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use durable_streams_server::storage::disk::{Disk, DiskFile, OpenMode, RealDisk};

use super::{Count, CutPoint, Dice, Fault, Moment, SimDisk, Style, Survives};

const ANY: Style = Style { content: Survives::Any, names: Survives::Any, sector_bytes: 512 };
const NOTHING: Style = Style { content: Survives::Nothing, names: Survives::Nothing, sector_bytes: 512 };
const EVERYTHING: Style =
    Style { content: Survives::Everything, names: Survives::Everything, sector_bytes: 512 };

fn open(disk: &SimDisk, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
    disk.open(Path::new(path), mode)
}

fn create(disk: &SimDisk, path: &str, content: &[u8]) -> Arc<dyn DiskFile> {
    let file = open(disk, path, OpenMode::Create).unwrap();
    file.write_at(0, content).unwrap();
    file
}

/// A file that is on the disk, with its name.
fn stored(disk: &SimDisk, path: &str, content: &[u8]) -> Arc<dyn DiskFile> {
    let file = create(disk, path, content);
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("")).unwrap();
    file
}

fn content(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    let file = match open(disk, path, OpenMode::Read) {
        Ok(file) => file,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            return None;
        }
    };
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    Some(bytes)
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.list(Path::new("")).unwrap().into_iter().map(|entry| entry.name).collect()
}

/// What so many cuts leave, each of a disk of its own.
fn outcomes<T: Ord>(style: Style, make: impl Fn(&SimDisk), look: impl Fn(&SimDisk) -> T) -> BTreeSet<T> {
    let outcome = |seed| {
        let disk = SimDisk::new(seed);
        make(&disk);
        look(&disk.power_cut(&mut Dice::new(seed), style))
    };
    (0..300).map(outcome).collect()
}

#[test]
fn what_is_synced_survives_every_cut() {
    let mut dice = Dice::new(1);
    for _ in 0..100 {
        let disk = SimDisk::new(1);
        let file = stored(&disk, "a", &[7; 10_000]);
        file.write_at(20_000, &[8; 5]).unwrap();
        let style = Style::draw(&mut dice);
        let after = disk.power_cut(&mut dice, style);
        let bytes = content(&after, "a").expect("its name is synced");
        assert_eq!(bytes[..10_000], [7; 10_000]);
        assert!(bytes[10_000..].iter().all(|byte| [0, 8].contains(byte)));
    }
}

#[test]
fn unsynced_writes_are_torn_at_sectors_and_nowhere_else() {
    for sector_bytes in [512, 4096] {
        let style = Style { sector_bytes, ..ANY };
        let make = |disk: &SimDisk| stored(disk, "a", &[1; 16_384]).write_at(100, &[2; 12_000]).unwrap();
        let seen = outcomes(style, make, |disk| content(disk, "a").unwrap());
        assert!(seen.len() > 5, "any subset of the sectors");
        for bytes in seen {
            assert_eq!(bytes.len(), 16_384);
            for (at, sector) in bytes.chunks(sector_bytes).enumerate() {
                let new = |byte: usize| (100..12_100).contains(&(at * sector_bytes + byte));
                let is_new = |(byte, value): (usize, &u8)| *value == if new(byte) { 2 } else { 1 };
                assert!(
                    sector.iter().all(|value| *value == 1) || sector.iter().enumerate().all(is_new),
                    "sector {at} is neither old nor new"
                );
            }
        }
    }
}

#[test]
fn in_order_a_later_write_implies_the_earlier_ones() {
    let style = Style { content: Survives::Prefix, ..ANY };
    let make = |disk: &SimDisk| {
        let file = stored(disk, "a", &[0; 30_000]);
        for at in 0..3 {
            file.write_at(at * 10_000, &[9; 3_000]).unwrap();
        }
    };
    let share = |bytes: &[u8]| match bytes.iter().filter(|byte| **byte == 9).count() {
        0 => 0,
        3_000 => 2,
        _ => 1,
    };
    let look = |disk: &SimDisk| content(disk, "a").unwrap().chunks(10_000).map(share).collect::<Vec<_>>();
    let seen = outcomes(style, make, look);
    assert!(seen.iter().all(|shares| shares.is_sorted_by(|a, b| a > b || (a == b && *a != 1))), "{seen:?}");
    assert!(seen.len() > 5, "{seen:?}");
}

#[test]
fn a_sector_that_was_written_twice_is_never_the_later_write_alone() {
    let make = |disk: &SimDisk| {
        let file = stored(disk, "a", &[0; 512]);
        file.write_at(0, &[1; 8]).unwrap();
        file.write_at(8, &[2; 8]).unwrap();
    };
    let seen = outcomes(ANY, make, |disk| content(disk, "a").unwrap()[..16].to_vec());
    let first = [[1; 8], [0; 8]].concat();
    let both = [[1; 8], [2; 8]].concat();
    assert_eq!(seen, BTreeSet::from([vec![0; 16], first, both]));
}

#[test]
fn a_longer_file_may_be_found_short_or_full_of_zeros() {
    let make = |disk: &SimDisk| {
        let file = stored(disk, "a", b"abc");
        file.set_len(600).unwrap();
        file.write_at(1_000, b"xyz").unwrap();
    };
    let look = |disk: &SimDisk| {
        let bytes = content(disk, "a").unwrap();
        assert_eq!(&bytes[..3], b"abc");
        (bytes.len(), bytes.ends_with(b"xyz"))
    };
    let seen = outcomes(ANY, make, look);
    assert_eq!(seen, BTreeSet::from([(3, false), (600, false), (1_003, false), (1_003, true)]));
}

#[test]
fn a_cut_file_may_be_found_whole() {
    let make = |disk: &SimDisk| {
        let file = stored(disk, "a", &[1; 9_000]);
        file.set_len(5_000).unwrap();
        file.set_len(7_000).unwrap();
    };
    let look = |disk: &SimDisk| {
        let bytes = content(disk, "a").unwrap();
        (bytes.len(), bytes.iter().filter(|byte| **byte == 1).count())
    };
    assert_eq!(outcomes(ANY, make, look), BTreeSet::from([(9_000, 9_000), (5_000, 5_000), (7_000, 5_000)]));
}

#[test]
fn a_new_name_is_not_there_before_its_directory_is_synced() {
    let make = |disk: &SimDisk| create(disk, "a", b"x").sync_data().unwrap();
    let seen = outcomes(ANY, make, |disk| content(disk, "a"));
    assert_eq!(seen, BTreeSet::from([None, Some(b"x".to_vec())]));
    assert_eq!(outcomes(NOTHING, make, names), BTreeSet::from([vec![]]));
}

#[test]
fn what_is_in_a_directory_is_lost_with_the_directory() {
    let make = |disk: &SimDisk| {
        disk.create_dir(Path::new("d")).unwrap();
        create(disk, "d/a", b"x").sync_data().unwrap();
        disk.sync_dir(Path::new("d")).unwrap();
    };
    let seen = outcomes(ANY, make, |disk| (names(disk), content(disk, "d/a")));
    let whole = (vec!["d".to_owned()], Some(b"x".to_vec()));
    assert_eq!(seen, BTreeSet::from([(vec![], None), whole]));
}

#[test]
fn a_rename_is_done_or_not() {
    let make = |disk: &SimDisk| {
        stored(disk, "a", b"old");
        create(disk, "a.new", b"new").sync_data().unwrap();
        disk.rename(Path::new("a.new"), Path::new("a")).unwrap();
    };
    for names in [Survives::Any, Survives::Prefix] {
        let style = Style { names, ..ANY };
        let seen = outcomes(style, make, |disk| (content(disk, "a").unwrap(), content(disk, "a.new")));
        let (old, new) = (b"old".to_vec(), b"new".to_vec());
        assert_eq!(seen, BTreeSet::from([(old.clone(), None), (old, Some(new.clone())), (new, None)]));
    }
}

#[test]
fn independent_names_survive_in_any_combination_or_in_order() {
    let make = |disk: &SimDisk| {
        stored(disk, "a", b"");
        disk.remove(Path::new("a")).unwrap();
        create(disk, "b", b"");
        create(disk, "c", b"");
    };
    let count = |survives| outcomes(Style { names: survives, ..ANY }, make, names).len();
    assert_eq!((count(Survives::Any), count(Survives::Prefix)), (8, 4));
}

#[test]
fn a_disk_without_power_does_nothing_any_more() {
    let disk = SimDisk::new(1);
    let file = stored(&disk, "a", b"abc");
    let after = disk.power_cut(&mut Dice::new(1), EVERYTHING);
    assert!(file.write_at(0, b"x").is_err() && file.read_at(0, &mut [0]).is_err() && file.len().is_err());
    assert!(file.sync_data().is_err() && file.set_len(0).is_err() && file.drop_cache().is_err());
    assert!(open(&disk, "a", OpenMode::Read).is_err() && disk.list(Path::new("")).is_err());
    assert_eq!(content(&after, "a").unwrap(), b"abc");
}

#[test]
fn a_disk_stops_before_within_or_after_a_call() {
    for (moment, survives) in [(Moment::Before, false), (Moment::Within, true), (Moment::After, true)] {
        let disk = SimDisk::new(1);
        let file = stored(&disk, "a", b"abc");
        disk.cut_at(CutPoint { count: Count::Syncs, number: 3, moment });
        file.write_at(0, b"x").unwrap();
        assert_eq!(file.sync_data().is_ok(), moment == Moment::After);
        assert!(disk.is_frozen() && file.write_at(0, b"y").is_err());
        let after = disk.power_cut(&mut Dice::new(1), NOTHING);
        assert_eq!(content(&after, "a").unwrap().starts_with(b"x"), survives, "{moment:?}");
        assert!(!after.is_frozen());
    }
}

#[test]
fn after_a_failed_sync_the_next_one_succeeds_and_makes_nothing_durable() {
    let fail = |disk: &SimDisk| {
        let file = stored(disk, "a", b"old");
        file.write_at(0, b"new").unwrap();
        disk.fail_call(disk.calls() + 1, Fault::Sync);
        file.sync_data().unwrap_err();
        file.sync_data().unwrap();
        assert_eq!(content(disk, "a").unwrap(), b"new", "it is still in the cache");
        file
    };
    let either = BTreeSet::from([b"new".to_vec(), b"old".to_vec()]);
    assert_eq!(outcomes(NOTHING, |disk| drop(fail(disk)), |disk| content(disk, "a").unwrap()), either);
    let dropped = |seed| {
        let disk = SimDisk::new(seed);
        fail(&disk).drop_cache().unwrap();
        content(&disk, "a").unwrap()
    };
    assert_eq!((0..50).map(dropped).collect::<BTreeSet<_>>(), either);
    let written_again = |disk: &SimDisk| {
        let file = fail(disk);
        file.write_at(2, b"t").unwrap();
        file.sync_data().unwrap();
    };
    let net = BTreeSet::from([b"net".to_vec()]);
    assert_eq!(outcomes(NOTHING, written_again, |disk| content(disk, "a").unwrap()), net);
}

#[test]
fn calls_fail_once_and_as_asked() {
    let disk = SimDisk::new(1);
    let file = stored(&disk, "a", b"");
    for (fault, kind, len) in [
        (Fault::NoSpace, io::ErrorKind::StorageFull, 0),
        (Fault::Io, io::ErrorKind::Other, 0),
        (Fault::ShortWrite, io::ErrorKind::Other, 2),
    ] {
        disk.fail_call(disk.calls() + 1, fault);
        assert_eq!(file.write_at(0, b"abcd").unwrap_err().kind(), kind);
        assert_eq!(file.len().unwrap(), len);
    }
    assert!(disk.takes_failure() && !disk.takes_failure());
    file.write_at(0, b"abcd").unwrap();
    disk.fail_read(disk.reads() + 1);
    file.read_at(0, &mut [0]).unwrap_err();
    file.read_at(0, &mut [0]).unwrap();
}

#[test]
fn a_full_disk_has_room_again_when_a_file_is_gone_and_closed() {
    let disk = SimDisk::new(1);
    disk.set_capacity(Some(3 * 4096));
    let first = create(&disk, "a", &[1; 8192]);
    let second = create(&disk, "b", b"x");
    assert_eq!(disk.free_bytes(), Some(0));
    assert_eq!(second.write_at(4096, b"y").unwrap_err().kind(), io::ErrorKind::StorageFull);
    second.write_at(1, b"y").expect("its page is there");
    second.set_len(1 << 30).expect("holes take no room");
    disk.remove(Path::new("a")).unwrap();
    assert_eq!(disk.free_bytes(), Some(0), "somebody has it open");
    first.read_at(0, &mut [0; 8192]).unwrap();
    drop(first);
    assert_eq!((disk.free_bytes(), disk.open_handles()), (Some(8192), 1));
    second.write_at(4096, b"y").unwrap();
}

#[test]
fn the_same_calls_with_the_same_seed_leave_the_same() {
    let outcome = || {
        let disk = SimDisk::new(5);
        let file = stored(&disk, "a", &[0; 50_000]);
        file.write_at(1, &[1; 40_000]).unwrap();
        disk.fail_call(disk.calls() + 1, Fault::Sync);
        file.sync_data().unwrap_err();
        file.write_at(2_000, &[2; 40_000]).unwrap();
        content(&disk.power_cut(&mut Dice::new(6), ANY), "a")
    };
    assert_eq!(outcome(), outcome());
}

#[test]
fn without_faults_it_behaves_as_the_operating_system_does() {
    let directory = tempfile::TempDir::new().unwrap();
    let (real, simulated) = (RealDisk::new(directory.path()), SimDisk::new(1));
    let mut dice = Dice::new(3);
    let mut files: Vec<(Arc<dyn DiskFile>, Arc<dyn DiskFile>)> = Vec::new();
    let kind = |error: io::Error| error.kind();
    for _ in 0..4_000 {
        let paths = ["a", "b", "d/a", "d/b", "c"];
        let [path, other] = [0; 2].map(|_| Path::new(paths[dice.roll(paths.len())]));
        match dice.roll(12) {
            0 | 1 => {
                let mode = [OpenMode::Read, OpenMode::Write, OpenMode::Create][dice.roll(3)];
                match (real.open(path, mode), simulated.open(path, mode)) {
                    (Ok(real), Ok(simulated)) if mode != OpenMode::Read => files.push((real, simulated)),
                    (real, simulated) => {
                        assert_eq!(real.map(drop).map_err(kind), simulated.map(drop).map_err(kind));
                    }
                }
            }
            2 if path.parent() == other.parent() => {
                let outcomes = [real.rename(path, other), simulated.rename(path, other)];
                let [real, simulated] = outcomes.map(|outcome| outcome.map_err(kind));
                assert_eq!(real, simulated, "{} to {}", path.display(), other.display());
            }
            3 => assert_eq!(real.remove(path).map_err(kind), simulated.remove(path).map_err(kind)),
            4 => {
                let dir = Path::new("d");
                assert_eq!(real.create_dir(dir).is_ok(), simulated.create_dir(dir).is_ok());
                assert_eq!(real.list(dir).unwrap(), simulated.list(dir).unwrap());
            }
            5 => files.truncate(dice.roll(6)),
            6 => assert_eq!(real.list(Path::new("")).unwrap(), simulated.list(Path::new("")).unwrap()),
            _ if files.is_empty() => {}
            choice => {
                let (real, simulated) = &files[dice.roll(files.len())];
                let (offset, len) = (dice.roll(10_000) as u64, dice.roll(6_000));
                let [mut there, mut here] = [vec![0; len], vec![0; len]];
                let read = real.read_at(offset, &mut there).map_err(kind);
                assert_eq!(read, simulated.read_at(offset, &mut here).map_err(kind));
                if read.is_ok() {
                    assert!(there == here, "{len} bytes from {offset}");
                }
                let data = vec![dice.roll(255) as u8; len];
                for file in [real, simulated] {
                    match choice {
                        7 => file.set_len(offset).unwrap(),
                        8 => file.sync_data().unwrap(),
                        9 => file.drop_cache().unwrap(),
                        _ => file.write_at(offset, &data).unwrap(),
                    }
                }
                assert_eq!(real.len().unwrap(), simulated.len().unwrap());
            }
        }
    }
}
