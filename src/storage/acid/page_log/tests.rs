//! The page log against a plain array of bytes, over closings and crashes; and what a damaged one is.

use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::storage::disk::MemoryDisk;

mod crash;

const DATABASE: &str = "database";
const LOG_SIZE: u64 = 64 << 10;

struct Place {
    disk: Arc<MemoryDisk>,
    file: Arc<dyn DiskFile>,
}

impl Place {
    fn new() -> Self {
        let disk = Arc::new(MemoryDisk::new());
        create(&*disk, Path::new(""), 3).unwrap();
        let file = disk.open(Path::new(DATABASE), OpenMode::Create).unwrap();
        Self { disk, file }
    }

    fn open(&self) -> io::Result<PageLog> {
        let log = PageLog::open(self.disk.clone(), Path::new(""), Arc::clone(&self.file), 3, LOG_SIZE)?;
        log.opened();
        Ok(log)
    }

    fn log(&self, index: usize) -> Arc<dyn DiskFile> {
        self.disk.open(Path::new(NUMBERED_FILES[index].1), OpenMode::Write).unwrap()
    }

    fn damage(&self, index: usize, at: u64) {
        let mut byte = [0];
        self.log(index).read_at(at, &mut byte).unwrap();
        self.log(index).write_at(at, &[!byte[0]]).unwrap();
    }

    #[track_caller]
    fn is_damaged(&self) {
        assert_eq!(self.open().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

fn read(log: &PageLog, range: Range<usize>) -> Vec<u8> {
    let mut out = vec![0; range.len()];
    log.read(range.start as u64, &mut out).unwrap();
    out
}

#[derive(Clone, Debug)]
enum Call {
    /// To so many pages.
    SetLen(usize),
    /// At which page, where in it, and how many bytes.
    Write(usize, usize, usize),
    Sync,
    GiveBack,
    Close,
    Crash,
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    let size = prop_oneof![3 => Just(4096_usize), 1 => 1..9000_usize, 1 => 30_000..70_000_usize];
    let call = prop_oneof![
        2 => (1..100_usize).prop_map(Call::SetLen),
        // Also within one page, as redb writes its header.
        20 => (0..100_usize, prop_oneof![4 => Just(0_usize), 1 => 0..4096_usize], size)
            .prop_map(|(page, at, len)| Call::Write(page, at, len)),
        8 => Just(Call::Sync),
        1 => Just(Call::GiveBack),
        1 => Just(Call::Close),
        1 => Just(Call::Crash),
    ];
    prop::collection::vec(call, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_reads_as_written_and_after_a_crash_as_synced(calls in calls()) {
        let place = Place::new();
        let mut log = place.open().unwrap();
        // As it is, as it was at the last sync, and where it was written since: after a crash nobody knows what is there.
        let (mut now, mut synced, mut unsure) = (Vec::new(), Vec::new(), Vec::new());
        for (index, call) in calls.into_iter().enumerate() {
            match call {
                Call::SetLen(pages) => {
                    log.set_len((pages * BLOCK_BYTES) as u64).unwrap();
                    log.sync_data().unwrap();
                    now.resize(pages * BLOCK_BYTES, 0);
                    (synced, unsure) = (now.clone(), vec![]);
                }
                Call::Write(page, at, len) => {
                    let start = page * BLOCK_BYTES + at;
                    let end = (start + len).min(now.len());
                    if start < end {
                        let data = vec![index as u8 + 1; end - start];
                        log.write(start as u64, &data).unwrap();
                        now[start..end].copy_from_slice(&data);
                        unsure.push(start..end);
                    }
                }
                Call::Sync => {
                    log.sync_data().unwrap();
                    (synced, unsure) = (now.clone(), vec![]);
                }
                Call::GiveBack => log.give_back().unwrap(),
                Call::Close => {
                    log.sync_data().unwrap();
                    log.close().unwrap();
                    let mut file = vec![0; now.len()];
                    place.file.read_at(0, &mut file).unwrap();
                    prop_assert!(file == now, "the file alone is the database");
                    log = place.open().unwrap();
                    (synced, unsure) = (now.clone(), vec![]);
                }
                Call::Crash => {
                    drop(log);
                    log = place.open().unwrap();
                    now = read(&log, 0..synced.len());
                    for range in unsure.drain(..) {
                        synced[range.clone()].copy_from_slice(&now[range]);
                    }
                    prop_assert!(now == synced);
                }
            }
            prop_assert_eq!(log.len().unwrap(), now.len() as u64);
            prop_assert!(read(&log, 0..now.len()) == now, "call {}", index);
        }
    }
}

/// Writes a page in each of so many commits.
fn commit_pages(log: &PageLog, count: usize) {
    for number in 0..count {
        let page = number % 40;
        log.write((page * BLOCK_BYTES) as u64, &[number as u8 + 1; BLOCK_BYTES]).unwrap();
        log.sync_data().unwrap();
    }
}

#[test]
fn a_full_log_is_followed_by_the_other_one_and_is_used_again() {
    let place = Place::new();
    let log = place.open().unwrap();
    log.set_len(40 * BLOCK_BYTES as u64).unwrap();
    commit_pages(&log, 200);
    for index in [0, 1] {
        let bytes = place.log(index).len().unwrap();
        assert!((FIRST_RECORD..=FILL_STEP).contains(&bytes), "log {index} has {bytes} bytes");
    }
    let overlay = log.shared.pages().overlay.blocks();
    assert!(overlay as u64 <= 2 * LOG_SIZE / BLOCK_BYTES as u64, "{overlay} blocks are in RAM");
    drop(log);
    let log = place.open().unwrap();
    for page in 0..40 {
        let last = 160 + page;
        assert_eq!(read(&log, page * BLOCK_BYTES..page * BLOCK_BYTES + 1), [last as u8 + 1]);
    }
}

#[test]
fn logs_give_back_what_they_took_and_go_on() {
    let place = Place::new();
    let taken = || [0, 1].map(|index| place.log(index).len().unwrap());
    let new = taken();
    let log = place.open().unwrap();
    log.set_len(40 * BLOCK_BYTES as u64).unwrap();
    for round in 0..3 {
        commit_pages(&log, 20 + 20 * round);
        assert_ne!(taken(), new);
        log.write(0, &[99; BLOCK_BYTES]).unwrap();
        log.give_back().unwrap();
        assert_eq!(taken(), new);
        log.sync_data().unwrap();
    }
    drop(log);
    let log = place.open().unwrap();
    for (page, value) in [(0, 99), (19, 60), (39, 40)] {
        assert_eq!(read(&log, page * BLOCK_BYTES..page * BLOCK_BYTES + 1), [value]);
    }
}

#[test]
fn nothing_is_written_for_a_sync_without_writes() {
    let place = Place::new();
    let log = place.open().unwrap();
    log.sync_data().unwrap();
    assert_eq!(log.writer().end, FIRST_RECORD);
}

#[test]
fn what_is_large_goes_into_the_file_unless_a_log_has_pages_there() {
    let place = Place::new();
    let log = place.open().unwrap();
    log.set_len(64 * BLOCK_BYTES as u64).unwrap();
    log.write(0, &[1; LARGE_BYTES]).unwrap();
    assert!(!log.shared.pages().overlay.has_any(0, LARGE_BYTES));
    log.sync_data().unwrap();
    log.write(4096, &[2; BLOCK_BYTES]).unwrap();
    log.sync_data().unwrap();
    log.write(0, &[3; LARGE_BYTES]).unwrap();
    assert!(log.shared.pages().overlay.has_any(0, BLOCK_BYTES));
    log.sync_data().unwrap();
    drop(log);
    assert_eq!(read(&place.open().unwrap(), 0..LARGE_BYTES), [3; LARGE_BYTES]);
}

#[test]
fn the_end_of_a_log_may_be_incomplete_and_nothing_else() {
    let place = Place::new();
    let log = place.open().unwrap();
    log.set_len(40 * BLOCK_BYTES as u64).unwrap();
    commit_pages(&log, 3);
    let active = log.writer().active;
    let end = log.writer().end;
    drop(log);

    // Each of these commits takes two blocks of the log.
    place.damage(active, end - 1 - BLOCK_BYTES as u64);
    let log = place.open().unwrap();
    assert_eq!(read(&log, 2 * BLOCK_BYTES..2 * BLOCK_BYTES + 1), [0]);
    assert_eq!(read(&log, BLOCK_BYTES..BLOCK_BYTES + 1), [2]);
    drop(log);
    place.damage(active, end - 1 - BLOCK_BYTES as u64);

    place.damage(active, FIRST_RECORD + 20);
    place.is_damaged();
    place.damage(active, FIRST_RECORD + 20);
    place.damage(1 - active, 512 + 20);
    place.is_damaged();
    place.damage(1 - active, 512 + 20);
    assert_eq!(read(&place.open().unwrap(), 2 * BLOCK_BYTES..2 * BLOCK_BYTES + 1), [3]);

    place.disk.remove(Path::new(NUMBERED_FILES[active].1)).unwrap();
    place.is_damaged();
}

#[test]
fn the_older_log_has_to_be_whole_if_the_newer_one_is_in_use() {
    let place = Place::new();
    let log = place.open().unwrap();
    log.set_len(40 * BLOCK_BYTES as u64).unwrap();
    let older = log.writer().active;
    let (mut before, mut end) = (Vec::new(), 0);
    while log.writer().active == older {
        let file = place.log(older);
        before.resize(file.len().unwrap() as usize, 0);
        file.read_at(0, &mut before).unwrap();
        end = log.writer().end;
        commit_pages(&log, 1);
    }
    drop(log);
    // As if a crash had come before the older one was begun anew.
    place.log(older).write_at(0, &before).unwrap();
    drop(place.open().unwrap());
    place.log(older).write_at(0, &before).unwrap();
    place.damage(older, end - 1 - BLOCK_BYTES as u64);
    place.is_damaged();
}

#[test]
fn a_log_that_cannot_be_emptied_ends_the_commits_and_keeps_what_it_has() {
    let place = Place::new();
    let log = place.open().unwrap();
    log.set_len(BLOCK_BYTES as u64).unwrap();
    log.drainer.stop();
    let mut last = 0;
    for number in 1..100 {
        log.write(0, &[number; BLOCK_BYTES]).unwrap();
        if log.sync_data().is_err() {
            break;
        }
        last = number;
    }
    assert!((5..99).contains(&last));
    log.sync_data().unwrap_err();
    log.close().unwrap();
    drop(log);
    assert_eq!(read(&place.open().unwrap(), 0..1), [last]);
}

#[test]
fn a_log_of_another_shard_is_refused() {
    let place = Place::new();
    create(&*place.disk, Path::new(""), 4).unwrap();
    place.is_damaged();
}

#[test]
fn what_is_left_of_a_log_does_not_take_the_place_of_what_is_newer() {
    let place = Place::new();
    let log = place.open().unwrap();
    log.set_len(4 * BLOCK_BYTES as u64).unwrap();
    commit_pages(&log, 1);
    let left = [0, 1, 2].map(|number| (number, Arc::new([9; BLOCK_BYTES])));
    let mut blocks = vec![(1, Arc::new([1; BLOCK_BYTES]))];
    log.writer().add_left(&mut blocks, &left);
    let found: Vec<(u64, u8)> = blocks.iter().map(|(number, block)| (*number, block[0])).collect();
    assert_eq!(found, [(1, 1), (2, 9)], "the log has a newer page 0, and the record a newer page 1");
}

#[test]
fn a_log_of_another_time_is_refused() {
    let place = Place::new();
    let log = place.open().unwrap();
    log.set_len(40 * BLOCK_BYTES as u64).unwrap();
    let index = log.writer().active;
    let mut earlier = vec![0; place.log(index).len().unwrap() as usize];
    place.log(index).read_at(0, &mut earlier).unwrap();
    // Until it was begun anew, twice, and has no records.
    let number = log.writer().header.number;
    while log.writer().header.number < number + 4 {
        commit_pages(&log, 1);
    }
    log.close().unwrap();
    drop(log);
    place.log(index).write_at(0, &earlier).unwrap();
    place.is_damaged();
}
