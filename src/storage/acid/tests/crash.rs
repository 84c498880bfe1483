//! A disk that fails, and forgets what was not synced: content, and names.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard};

use crossbeam_channel::unbounded;
use proptest::collection::vec;
use proptest::prelude::*;

use super::model::{Model, cases, group_plan};
use super::*;
use crate::storage::committer::{Committer, Completion};
use crate::storage::disk::DiskEntry;
use crate::storage::settler::RewritePace;
use crate::storage::{RoomRule, RoomWatch};

const SECTOR_BYTES: usize = 512;

/// A disk, and what of it a power cut would leave.
#[derive(Clone, Debug)]
struct CrashDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<u64, Content>,
    /// Changes and syncs until one fails; all after it fail too. `None` = the disk works.
    calls_until_failure: Option<u64>,
    /// State of the generator that decides what survives.
    random: u64,
}

#[derive(Debug, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync: (offset, content).
    pending: Vec<(usize, Vec<u8>)>,
}

impl State {
    fn call(&mut self) -> io::Result<()> {
        match &mut self.calls_until_failure {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the disk fails")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn coin(&mut self) -> bool {
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 63) == 1
    }

    fn content(&mut self, file: u64) -> io::Result<&mut Content> {
        self.files.get_mut(&file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Loses what was not synced of a file: any sectors of it are there and any are not.
    fn forget(&mut self, file: u64) {
        let Some(Content { live, durable: mut image, pending }) = self.files.remove(&file) else { return };
        if self.coin() {
            image.resize(live.len(), 0);
        }
        for (offset, sector) in pending {
            if self.coin() {
                image.resize(image.len().max(offset + sector.len()), 0);
                image[offset..offset + sector.len()].copy_from_slice(&sector);
            }
        }
        self.files.insert(file, Content { live: image.clone(), durable: image, pending: Vec::new() });
    }
}

impl CrashDisk {
    fn new(random: u64) -> Self {
        Self(Arc::new(Mutex::new(State { random, ..State::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn fail_after(&self, calls: u64) {
        self.lock().calls_until_failure = Some(calls);
    }

    fn heal(&self) {
        self.lock().calls_until_failure = None;
    }

    /// Cuts the power: of what was not synced, anything is there and anything is not. The disk works again.
    fn crash(&self) {
        let mut state = self.lock();
        let durable = std::mem::take(&mut state.durable_names);
        let live = std::mem::take(&mut state.names);
        let paths: BTreeSet<_> = durable.keys().chain(live.keys()).cloned().collect();
        for path in paths {
            let (before, after) = (durable.get(&path), live.get(&path));
            let left = if before == after || state.coin() { after } else { before };
            if let Some(&file) = left {
                state.names.insert(path, file);
            }
        }
        state.durable_names = state.names.clone();
        let files: Vec<u64> = state.files.keys().copied().collect();
        for file in files {
            state.forget(file);
        }
        state.calls_until_failure = None;
    }
}

impl Disk for CrashDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        if mode == OpenMode::Create {
            state.call()?;
            let number = state.files.keys().next_back().map_or(0, |last| last + 1);
            state.files.insert(number, Content::default());
            state.names.insert(path.to_owned(), number);
        }
        let number = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        drop(state);
        Ok(Arc::new(CrashFile { disk: self.clone(), number }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.call()?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.call()?;
        state.names.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.lock().dirs.insert(path.to_owned());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        let state = self.lock();
        let is_in = |path: &Path| path.parent() == Some(dir);
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let dirs = state.dirs.iter().filter(|path| is_in(path));
        let files = state.names.iter().filter(|(path, _)| is_in(path));
        Ok(dirs
            .map(|path| DiskEntry { name: name(path), is_dir: true, len: 0 })
            .chain(files.map(|(path, file)| DiskEntry {
                name: name(path),
                is_dir: false,
                len: state.files[file].live.len() as u64,
            }))
            .collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.call()?;
        let State { names, durable_names, .. } = &mut *state;
        durable_names.retain(|path, _| path.parent() != Some(dir));
        let in_dir = names.iter().filter(|(path, _)| path.parent() == Some(dir));
        durable_names.extend(in_dir.map(|(path, file)| (path.clone(), *file)));
        Ok(())
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }
}

#[derive(Debug)]
struct CrashFile {
    disk: CrashDisk,
    number: u64,
}

impl DiskFile for CrashFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().content(self.number)?.live.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let live = &state.content(self.number)?.live;
        let source = live.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.call()?;
        let Content { live, pending, .. } = state.content(self.number)?;
        let offset = offset as usize;
        live.resize(live.len().max(offset + data.len()), 0);
        live[offset..offset + data.len()].copy_from_slice(data);
        for (at, sector) in data.chunks(SECTOR_BYTES).enumerate() {
            pending.push((offset + at * SECTOR_BYTES, sector.to_vec()));
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.call()?;
        let Content { live, pending, .. } = state.content(self.number)?;
        live.resize(len as usize, 0);
        pending.retain(|(offset, sector)| offset + sector.len() <= len as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.call()?;
        let Content { live, durable, pending } = state.content(self.number)?;
        durable.clone_from(live);
        pending.clear();
        Ok(())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.len()
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.disk.lock().forget(self.number);
        Ok(())
    }
}

/// A new storage on a disk that works so far.
fn on_crashing_disk(random: u64) -> (CrashDisk, AcidLog) {
    let disk = CrashDisk::new(random);
    let acid = with_backend(Backend::Disk(Arc::new(disk.clone())));
    (disk, acid)
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_failed_commit_is_there_as_a_whole_or_not_at_all(
        random in any::<u64>(),
        rounds in vec((vec(vec(group_plan(), 1..3), 1..6), 0..60_u64), 1..6),
    ) {
        let (disk, acid) = on_crashing_disk(random);
        let mut opened = acid.open(0).unwrap();
        let mut model = Model::default();
        for (commits, calls_until_failure) in &rounds {
            disk.fail_after(*calls_until_failure);
            let mut tried = model.clone();
            for plans in commits {
                let segments = Arc::clone(&opened.segments);
                let groups: Result<Vec<_>, _> =
                    plans.iter().map(|plan| tried.apply(plan, &segments)).collect();
                let Ok(mut groups) = groups else {
                    // The content could not be written: there is nothing to commit.
                    tried = model.clone();
                    break;
                };
                if opened.log.commit(&mut groups).is_err() {
                    break;
                }
                publish(&segments, groups);
                model = tried.clone();
            }
            drop(opened);
            disk.crash();
            opened = acid.open(0).unwrap();
            if tried.is_found_in(&opened) {
                model = tried;
            }
            prop_assert!(model.is_found_in(&opened), "{model:?}\n{:?}", opened.recovered);
            model.check_reads(&*opened.segments);
            prop_assert!(segment_files(&acid).len() == opened.segments.segment_count());
        }
    }

    #[test]
    fn what_was_told_of_survives_a_power_cut_at_that_moment(
        random in any::<u64>(),
        two_phase_commit in any::<bool>(),
        rounds in vec((vec(group_plan(), 1..3), vec(group_plan(), 1..3)), 1..6),
    ) {
        let disk = CrashDisk::new(random);
        let backend = Backend::Disk(Arc::new(disk.clone()));
        let options = AcidOptions { backend, two_phase_commit, cache_bytes: 4 << 20, ..AcidOptions::new("") };
        let acid = AcidLog::new(options).unwrap();
        let mut model = Model::default();
        for (before, last) in &rounds {
            let mut opened = acid.open(0).unwrap();
            prop_assert!(model.is_found_in(&opened), "{model:?}\n{:?}", opened.recovered);
            model.check_reads(&*opened.segments);
            for (plans, is_last) in [(before, false), (last, true)] {
                let segments = Arc::clone(&opened.segments);
                let mut groups: Vec<_> =
                    plans.iter().map(|plan| model.apply(plan, &segments).unwrap()).collect();
                let told = Arc::new(Mutex::new(false));
                let on_durable = {
                    let (told, disk) = (Arc::clone(&told), disk.clone());
                    Box::new(move || {
                        *told.lock().unwrap() = true;
                        if is_last {
                            disk.fail_after(0);
                        }
                    })
                };
                let outcome = opened.log.commit_and_tell(&mut groups, on_durable);
                prop_assert!(*told.lock().unwrap());
                prop_assert!(is_last || outcome.is_ok());
                if !is_last {
                    publish(&segments, groups);
                }
            }
            drop(opened);
            disk.crash();
        }
    }

    #[test]
    fn an_opening_that_failed_can_be_repeated(random in any::<u64>(), calls in 0..40_u64, plan in group_plan()) {
        let (disk, acid) = on_crashing_disk(random);
        let mut model = Model::default();
        for round in 0..3 {
            disk.fail_after(calls);
            drop(acid.open(0));
            disk.crash();
            let mut opened = acid.open(0).unwrap();
            prop_assert!(model.is_found_in(&opened), "{round}: {model:?}\n{:?}", opened.recovered);
            let group = model.apply(&plan, &opened.segments).unwrap();
            let mut groups = vec![group];
            opened.log.commit(&mut groups).unwrap();
            publish(&opened.segments, groups);
            // No clean closing either: the next opening has to repair.
            disk.fail_after(0);
            drop(opened);
            disk.crash();
        }
    }

    #[test]
    fn a_directory_that_was_left_half_made_is_made_again(random in any::<u64>(), calls in 0..20_u64) {
        let disk = CrashDisk::new(random);
        let new = || {
            let backend = Backend::Disk(Arc::new(disk.clone()));
            AcidLog::new(AcidOptions { backend, shards: Some(2), cache_bytes: 4 << 20, ..AcidOptions::new("") })
        };
        disk.fail_after(calls);
        drop(new().and_then(|acid| acid.open(1).map(drop)));
        disk.crash();
        let opened = new().and_then(|acid| acid.open(1));
        prop_assert!(opened.is_ok(), "{:?}", opened.err());
    }
}

#[test]
fn the_commit_thread_reopens_after_a_failed_sync_and_nothing_half_done_is_there() {
    let (disk, acid) = on_crashing_disk(1);
    let OpenedShard { log, segments, .. } = acid.open(0).unwrap();
    let (sender, completions) = unbounded();
    let report = Arc::new(move |completion| drop(sender.send(completion)));
    let watch = RoomWatch::new(0, RoomRule::new(0, 1, 0));
    let pace = RewritePace { bytes_per_sec: 0, shards: 1 };
    let mut committer = Committer::spawn(0, Arc::new(acid), log, segments, pace, watch, report).unwrap();

    committer.settle(settling(1, 0, vec!["content".into()]));
    let Completion::Prepared(prepared) = completions.recv().unwrap() else { panic!("it is settled") };
    committer.submit(Group { frames: b"kept".to_vec().into(), ..with_checkpoint(0, prepared) });
    let mut reports = completions.iter().filter(|report| !matches!(report, Completion::Disk(_)));
    assert!(matches!(reports.next(), Some(Completion::Durable { through: 0 })));
    assert!(matches!(reports.next(), Some(Completion::Published { group: 0 })));
    disk.fail_after(1);
    committer.submit(group(1, vec![7; 500_000]));
    let failed = reports.next();
    assert!(
        matches!(&failed, Some(Completion::Failed { error }) if error.contains("the disk fails")),
        "{failed:?}"
    );
    disk.heal();
    let reopened = reports.find(|report| !matches!(report, Completion::ReopenFailed { .. }));
    let Some(Completion::Reopened { recovered, reader, .. }) = reopened else { panic!("it reopens") };
    assert_eq!(recovered.groups, [(0, "kept".into())]);
    assert_eq!(reader.read_whole(1, 0, 7).unwrap(), b"content");

    committer.acknowledge_failure();
    committer.submit(group(recovered.next_group, "after"));
    committer.close();
    let reports: Vec<_> = reports.take_while(|report| !matches!(report, Completion::Closed)).collect();
    let durable = |report: &Completion| matches!(report, Completion::Durable { through: 1 });
    assert!(reports.iter().any(durable), "{reports:?}");
}
