//! The page log on a disk that loses power at any call, and has no room at any time.

use super::*;

#[path = "../../../../../tests/support/sim_disk.rs"]
mod sim_disk;

use sim_disk::{Count, CutPoint, Dice, Fault, Moment, SimDisk, Style, Survives};

#[derive(Clone, Debug)]
enum Step {
    /// To so many pages.
    SetLen(usize),
    /// At which page, where in it, and how many bytes.
    Write(usize, usize, usize),
    Sync,
    GiveBack,
    Close,
    /// The power is cut within so many calls from now, at the latest by the next such step.
    Cut(u64),
    /// There is no room any more.
    Full,
    /// There is room for everything.
    Room,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![6 => Just(4096_usize), 1 => 1..9000_usize, 1 => 30_000..70_000_usize];
    let step = prop_oneof![
        2 => (1..100_usize).prop_map(Step::SetLen),
        20 => (0..100_usize, prop_oneof![4 => Just(0_usize), 1 => 0..4096_usize], size)
            .prop_map(|(page, at, len)| Step::Write(page, at, len)),
        10 => Just(Step::Sync),
        1 => Just(Step::GiveBack),
        1 => Just(Step::Close),
        2 => prop_oneof![1 => Just(0_u64), 2 => 1..30_u64].prop_map(Step::Cut),
        1 => Just(Step::Full),
        1 => Just(Step::Room),
    ];
    prop::collection::vec(step, 1..150)
}

/// A page log, and what is known of it.
struct World {
    disk: SimDisk,
    dice: Dice,
    log: PageLog,
    now: Vec<u8>,
    synced: Vec<u8>,
    /// Where it was written since the last sync: after a crash nobody knows what is there.
    unsure: Vec<Range<usize>>,
    /// How long it was at least since then: what was behind that may be lost.
    shortest: usize,
}

fn open(disk: &SimDisk) -> io::Result<PageLog> {
    let file = disk.open(Path::new(DATABASE), OpenMode::Write)?;
    file.drop_cache()?;
    let log = PageLog::open(Arc::new(disk.clone()), Path::new(""), file, 3, LOG_SIZE)?;
    log.opened();
    Ok(log)
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = SimDisk::new(seed);
        create(&disk, Path::new(""), 3).unwrap();
        disk.open(Path::new(DATABASE), OpenMode::Create).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        let log = open(&disk).unwrap();
        let (now, synced, unsure) = (Vec::new(), Vec::new(), Vec::new());
        Self { disk, dice: Dice::new(seed), log, now, synced, unsure, shortest: 0 }
    }

    fn synced(&mut self) {
        self.synced.clone_from(&self.now);
        self.unsure.clear();
        self.shortest = self.now.len();
    }

    /// Says whether it could be done.
    fn try_step(&mut self, step: &Step, value: u8) -> io::Result<()> {
        match *step {
            Step::SetLen(pages) => {
                let len = pages * BLOCK_BYTES;
                self.shortest = self.shortest.min(len);
                self.log.set_len(len as u64)?;
                self.now.resize(len, 0);
                self.log.sync_data()?;
                self.synced();
            }
            Step::Write(page, at, len) => {
                let start = page * BLOCK_BYTES + at;
                let end = (start + len).min(self.now.len());
                if start < end {
                    let data = vec![value; end - start];
                    self.unsure.push(start..end);
                    self.log.write(start as u64, &data)?;
                    self.now[start..end].copy_from_slice(&data);
                }
            }
            Step::Sync => {
                self.log.sync_data()?;
                self.synced();
            }
            Step::GiveBack => self.log.give_back()?,
            Step::Close => {
                self.log.sync_data()?;
                self.synced();
                self.log.close()?;
                self.log = open(&self.disk)?;
            }
            Step::Cut(0) => return Err(io::Error::other("now")),
            Step::Cut(calls) => {
                let moment = Moment::ALL[self.dice.roll(3)];
                let number = self.disk.calls() + calls;
                self.disk.cut_at(CutPoint { count: Count::Calls, number, moment });
            }
            Step::Full => self.disk.set_capacity(Some(self.disk.used_bytes())),
            Step::Room => self.disk.set_capacity(None),
        }
        Ok(())
    }

    /// Opens the log again, after a power cut, or after a want of room that nobody else has seen.
    fn reopen(&mut self) -> Result<(), TestCaseError> {
        let is_cut = !self.disk.spare() || self.dice.roll(2) == 0;
        if is_cut {
            let style = Style::draw(&mut self.dice);
            self.disk = self.disk.power_cut(&mut self.dice, style);
        } else {
            self.log.close().unwrap();
        }
        self.log = open(&self.disk).unwrap();
        let len = self.log.len().unwrap() as usize;
        prop_assert!(len >= self.shortest, "{} of {} bytes are there", len, self.shortest);
        let found = read(&self.log, 0..len);
        // The last sync may have failed, and be there all the same.
        if found != self.now {
            let compared = self.shortest.min(self.synced.len());
            let mut expected = self.synced[..compared].to_vec();
            for range in &self.unsure {
                let range = range.start.min(compared)..range.end.min(compared);
                expected[range.clone()].copy_from_slice(&found[range]);
            }
            prop_assert!(found[..compared] == expected, "what was synced is not there");
        }
        self.now = found;
        if is_cut {
            // There is nothing but what the disk has.
            self.synced();
        } else {
            self.synced.clone_from(&self.now);
        }
        Ok(())
    }
}

/// A page in a commit of its own.
fn commit_page(log: &PageLog, page: usize, value: u8) -> io::Result<()> {
    log.write((page * BLOCK_BYTES) as u64, &[value; BLOCK_BYTES])?;
    log.sync_data()
}

/// A disk that is full, and the log on it of a file that has room for nothing but its first page.
fn on_a_full_disk() -> World {
    let mut world = World::new(1);
    // So that there is little from the beginning on: the file is not filled ahead.
    world.disk.set_capacity(Some(1 << 20));
    world.log.close().unwrap();
    world.log = open(&world.disk).unwrap();
    world.log.set_len(40 * BLOCK_BYTES as u64).unwrap();
    commit_page(&world.log, 0, 1).unwrap();
    world.disk.set_capacity(Some(world.disk.used_bytes()));
    world
}

#[test]
fn pages_that_find_no_room_go_from_log_to_log_and_into_the_file_when_there_is_some() {
    let mut world = on_a_full_disk();
    for round in 1..100 {
        for page in [0, 5, 6, 9] {
            commit_page(&world.log, page, round).unwrap();
        }
        if round % 7 == 0 {
            if round % 2 == 0 {
                world.disk = world.disk.power_cut(&mut world.dice, Style::draw(&mut Dice::new(round.into())));
            } else {
                world.log.close().unwrap();
            }
            world.log = open(&world.disk).unwrap();
        }
        for page in [0, 5, 6, 9] {
            assert_eq!(read(&world.log, page * BLOCK_BYTES..page * BLOCK_BYTES + 1), [round]);
        }
    }
    assert_eq!(world.disk.free_bytes(), Some(0));
    world.disk.set_capacity(None);
    world.log.close().unwrap();
    let file = world.disk.open(Path::new(DATABASE), OpenMode::Read).unwrap();
    for page in [0, 5, 6, 9] {
        let mut byte = [0];
        file.read_at((page * BLOCK_BYTES) as u64, &mut byte).unwrap();
        assert_eq!(byte, [99]);
    }
}

#[test]
fn what_finds_no_room_in_the_logs_either_is_not_taken_and_costs_nothing_that_was() {
    let world = on_a_full_disk();
    let taken = (1..40).take_while(|&page| commit_page(&world.log, page, 7).is_ok()).count();
    assert!((5..39).contains(&taken), "{taken}");
    for _ in 0..3 {
        let log = open(&world.disk).unwrap();
        for page in 1..=taken {
            assert_eq!(read(&log, page * BLOCK_BYTES..page * BLOCK_BYTES + 1), [7]);
        }
    }
    world.disk.set_capacity(None);
    let log = open(&world.disk).unwrap();
    commit_page(&log, taken + 1, 7).unwrap();
}

#[test]
fn an_opening_writes_nothing_before_the_first_commit() {
    let world = on_a_full_disk();
    world.log.close().unwrap();
    let file = world.disk.open(Path::new(DATABASE), OpenMode::Write).unwrap();
    let log = PageLog::open(Arc::new(world.disk.clone()), Path::new(""), file, 3, LOG_SIZE).unwrap();
    let calls = world.disk.calls();
    for value in 1..100 {
        commit_page(&log, 0, value).unwrap();
    }
    assert_eq!(world.disk.calls(), calls);
    log.opened();
    log.sync_data().unwrap();
    drop(log);
    assert_eq!(read(&open(&world.disk).unwrap(), 0..1), [99], "the first commit has it, too");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_was_synced_is_there_whatever_happens_and_it_can_always_be_opened(
        steps in steps(),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(seed);
        for (index, step) in steps.iter().enumerate() {
            if world.try_step(step, index as u8 + 1).is_err() {
                world.reopen()?;
            }
            let mut found = vec![0; world.now.len()];
            match world.log.read(0, &mut found) {
                Ok(()) => prop_assert!(found == world.now, "step {}", index),
                // The thread that empties logs may have met the cut.
                Err(error) => prop_assert!(world.disk.is_frozen(), "step {}: {}", index, error),
            }
        }
    }
}

#[test]
fn a_sync_of_the_file_that_failed_for_one_thread_is_not_made_good_by_that_of_the_other() {
    let World { disk, log, .. } = World::new(1);
    log.set_len(16 * BLOCK_BYTES as u64).unwrap();
    log.sync_data().unwrap();
    // Large enough for its place in the file, which the next record relies on.
    log.write(0, &[7; 10 * BLOCK_BYTES]).unwrap();
    disk.fail_call(disk.calls() + 1, Fault::Io);
    // As the thread does that empties a log. The disk has forgotten now what it could not write, of whomever it is.
    log.shared.sync_file().unwrap_err();
    log.sync_data().unwrap_err();
}

#[test]
fn what_a_failed_sync_left_in_the_cache_alone_is_not_built_upon() {
    // What such a sync leaves on the disk differs from seed to seed.
    for seed in 0..20 {
        let World { disk, mut dice, log, .. } = World::new(seed);
        log.set_len(4 * BLOCK_BYTES as u64).unwrap();
        log.sync_data().unwrap();
        log.write(0, &[1; BLOCK_BYTES]).unwrap();
        // The record is written, and then synced.
        disk.fail_call(disk.calls() + 2, Fault::Sync);
        log.sync_data().unwrap_err();
        drop(log);
        let log = open(&disk).unwrap();
        commit_page(&log, 2, 7).unwrap();
        let style = Style { content: Survives::Nothing, names: Survives::Nothing, sector_bytes: 512 };
        let log = open(&disk.power_cut(&mut dice, style)).unwrap();
        assert_eq!(read(&log, 2 * BLOCK_BYTES..2 * BLOCK_BYTES + 1), [7], "seed {seed}");
    }
}

#[test]
fn what_the_database_gave_up_at_its_end_does_not_come_back_when_it_grows_again() {
    let World { disk, mut dice, log, .. } = World::new(1);
    log.set_len(20 * BLOCK_BYTES as u64).unwrap();
    // Large enough for its place in the file.
    log.write(0, &[7; 20 * BLOCK_BYTES]).unwrap();
    log.sync_data().unwrap();
    for pages in [5, 20] {
        log.set_len(pages * BLOCK_BYTES as u64).unwrap();
        log.sync_data().unwrap();
    }
    let style = Style { content: Survives::Nothing, names: Survives::Nothing, sector_bytes: 512 };
    let log = open(&disk.power_cut(&mut dice, style)).unwrap();
    let found = read(&log, 0..20 * BLOCK_BYTES);
    assert!(found[..5 * BLOCK_BYTES] == [7; 5 * BLOCK_BYTES]);
    assert!(found[5 * BLOCK_BYTES..] == [0; 15 * BLOCK_BYTES], "redb takes its new end for zeros");
}

#[test]
fn a_log_that_became_too_long_is_whole_or_begun_anew_wherever_the_power_is_cut() {
    const PAGES: usize = 140;
    for (call, seed) in (1..=12).flat_map(|call| (0..8).map(move |seed| (call, seed))) {
        let World { disk, mut dice, log, .. } = World::new(seed);
        log.set_len((PAGES * BLOCK_BYTES) as u64).unwrap();
        commit_page(&log, 0, 1).unwrap();
        // One record, so large that its log is made shorter when it is begun anew.
        for page in 0..PAGES {
            log.write((page * BLOCK_BYTES) as u64, &[2; BLOCK_BYTES]).unwrap();
        }
        log.sync_data().unwrap();
        disk.cut_at(CutPoint { count: Count::Calls, number: disk.calls() + call, moment: Moment::Before });
        // Somewhere in this the disk stops, or behind it.
        let _ = log.close();
        let style = Style::draw(&mut dice);
        let log = open(&disk.power_cut(&mut dice, style)).unwrap();
        assert!(read(&log, 0..PAGES * BLOCK_BYTES) == [2; PAGES * BLOCK_BYTES], "call {call}, {style}");
    }
}

#[test]
fn each_commit_looks_how_much_room_there_is() {
    let World { disk, log, .. } = World::new(1);
    log.set_len(40 * BLOCK_BYTES as u64).unwrap();
    let is_in_a_log = |page: usize| {
        commit_page(&log, 39, 1).unwrap();
        log.write((page * BLOCK_BYTES) as u64, &[2; BLOCK_BYTES]).unwrap();
        log.shared.pages().overlay.get(page as u64).is_some()
    };
    assert!(is_in_a_log(1));
    disk.set_capacity(Some(disk.used_bytes() + (1 << 20)));
    assert!(!is_in_a_log(2), "it goes into the file at once");
    disk.set_capacity(None);
    assert!(is_in_a_log(3));
}
