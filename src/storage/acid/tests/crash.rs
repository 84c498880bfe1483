//! A disk that fails, and forgets what was not synced.

use std::io;
use std::sync::Mutex;

use crossbeam_channel::unbounded;
use proptest::collection::vec;
use proptest::prelude::*;
use redb::StorageBackend;

use super::model::{Model, cases, group_plan};
use super::*;
use crate::storage::committer::{Committer, Completion};
use crate::storage::{RoomRule, RoomWatch};

const SECTOR_BYTES: usize = 512;

/// The content of a disk, and what of it a power cut would leave.
#[derive(Debug, Default)]
struct Disk {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync: (offset, content).
    pending: Vec<(usize, Vec<u8>)>,
    /// Writes and syncs until one fails; all after it fail too. `None` = the disk works.
    calls_until_failure: Option<u64>,
    /// State of the generator that decides which sectors survive.
    random: u64,
}

impl Disk {
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

    /// Cuts the power: of what was not synced, any sectors are there and any are not.
    fn crash(&mut self) {
        let mut image = std::mem::take(&mut self.durable);
        if self.coin() {
            image.resize(self.live.len(), 0);
        }
        for (offset, sector) in std::mem::take(&mut self.pending) {
            if self.coin() {
                image.resize(image.len().max(offset + sector.len()), 0);
                image[offset..offset + sector.len()].copy_from_slice(&sector);
            }
        }
        self.live.clone_from(&image);
        self.durable = image;
        self.calls_until_failure = None;
    }
}

#[derive(Debug)]
struct CrashBackend(Arc<Mutex<Disk>>);

impl StorageBackend for CrashBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.0.lock().unwrap();
        let source = disk.live.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.live.resize(len as usize, 0);
        disk.pending.retain(|(offset, sector)| offset + sector.len() <= len as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.call()?;
        let Disk { live, durable, pending, .. } = &mut *disk;
        durable.clone_from(live);
        pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.call()?;
        let offset = offset as usize;
        disk.live
            .get_mut(offset..offset + data.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?
            .copy_from_slice(data);
        for (at, sector) in data.chunks(SECTOR_BYTES).enumerate() {
            disk.pending.push((offset + at * SECTOR_BYTES, sector.to_vec()));
        }
        Ok(())
    }
}

/// A storage whose disk loses what was not synced each time the shard is opened.
fn on_crashing_disk(random: u64) -> (Arc<Mutex<Disk>>, AcidLog) {
    let disk = Arc::new(Mutex::new(Disk { random, ..Disk::default() }));
    let shared = Arc::clone(&disk);
    let factory: BackendFactory = Arc::new(move |_| {
        shared.lock().unwrap().crash();
        Ok(Box::new(CrashBackend(Arc::clone(&shared))))
    });
    (disk, with_backend(Backend::Factory(factory)))
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_failed_commit_is_there_as_a_whole_or_not_at_all(
        random in any::<u64>(),
        rounds in vec((vec(vec(group_plan(), 1..3), 1..6), 0..60_u64), 1..6),
    ) {
        let (disk, acid) = on_crashing_disk(random);
        let (mut log, _) = acid.open(0).unwrap();
        let mut model = Model::default();
        for (commits, calls_until_failure) in &rounds {
            disk.lock().unwrap().calls_until_failure = Some(*calls_until_failure);
            let mut tried = model.clone();
            for plans in commits {
                let mut groups: Vec<_> = plans.iter().map(|plan| tried.apply(plan)).collect();
                if log.commit(&mut groups).is_err() {
                    break;
                }
                model = tried.clone();
            }
            drop(log);
            let recovered;
            (log, recovered) = acid.open(0).unwrap();
            if tried.is_recovered_as(&recovered) {
                model = tried;
            }
            prop_assert!(model.is_recovered_as(&recovered), "{model:?}\n{recovered:?}");
            model.check_reads(&*log.reader());
        }
    }

    #[test]
    fn an_opening_that_failed_can_be_repeated(random in any::<u64>(), calls in 0..40_u64, plan in group_plan()) {
        let (disk, acid) = on_crashing_disk(random);
        let mut model = Model::default();
        // Making a database is another matter: see `a_database_that_was_left_half_made_is_made_again`.
        drop(acid.open(0).unwrap());
        for round in 0..2 {
            // The crash resets the disk, so the failure has to be armed behind it: by a backend of its own.
            let armed = with_backend(Backend::Factory({
                let disk = Arc::clone(&disk);
                Arc::new(move |_| {
                    disk.lock().unwrap().calls_until_failure = Some(calls);
                    Ok(Box::new(CrashBackend(Arc::clone(&disk))))
                })
            }));
            drop(armed.open(0));
            let (mut log, recovered) = acid.open(0).unwrap();
            prop_assert!(model.is_recovered_as(&recovered), "{round}: {model:?}\n{recovered:?}");
            log.commit(&mut [model.apply(&plan)]).unwrap();
            // No clean closing either: the next opening has to repair.
            disk.lock().unwrap().calls_until_failure = Some(0);
        }
    }
}

#[test]
fn the_commit_thread_reopens_after_a_failed_sync_and_nothing_half_done_is_there() {
    let (disk, acid) = on_crashing_disk(1);
    let (log, _) = acid.open(0).unwrap();
    let (sender, completions) = unbounded();
    let report = Box::new(move |completion| drop(sender.send(completion)));
    let mut committer =
        Committer::spawn(0, Arc::new(acid), log, RoomWatch::new(0, RoomRule::new(0, 1, 0)), report).unwrap();

    committer.submit(group(0, "kept"));
    assert!(matches!(completions.recv().unwrap(), Completion::Durable { through: 0, .. }));
    disk.lock().unwrap().calls_until_failure = Some(1);
    committer.submit(group(1, vec![7; 500_000]));
    assert!(
        matches!(completions.recv().unwrap(), Completion::Failed { error } if error.contains("the disk fails"))
    );
    let Completion::Reopened { recovered, .. } = completions.recv().unwrap() else { panic!("it reopens") };
    assert_eq!(recovered.groups, [(0, "kept".into())]);

    committer.acknowledge_failure();
    committer.submit(group(recovered.next_group, "after"));
    assert!(matches!(completions.recv().unwrap(), Completion::Durable { .. }));
    committer.close();
    assert!(matches!(completions.recv().unwrap(), Completion::Closed));
}
