//! Disks of RAM for redb: they fail, fill up, stall, and forget what was not synced. And one for all other files, on which
//! no more can be made if it is told so, and which is out of reach once the power is cut.
//!
//! Not a part of `support`, which starts the real binary: tests of the library include this file by its path.
#![allow(dead_code)]

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::Duration;

use durable_streams_server::engine::EngineOptions;
use durable_streams_server::storage::acid::BackendFactory;
use durable_streams_server::storage::disk::{Disk as FileDisk, DiskEntry, DiskFile, MemoryDisk, OpenMode};
use redb::StorageBackend;

/// What a disk writes or forgets as a whole.
const SECTOR_BYTES: usize = 512;

/// The disks of all shards, and the life of the machine that they are in.
#[derive(Debug)]
pub(crate) struct Disks {
    databases: Vec<Arc<Disk>>,
    files: MemoryDisk,
    machine: Arc<RwLock<Machine>>,
}

/// What decides on calls to the files.
#[derive(Debug, Default)]
struct Machine {
    /// Number of its life.
    life: u64,
    /// Files cannot be made.
    is_broken: bool,
}

impl Disks {
    /// Empty disks for that many shards. `seed` decides which unsynced sectors survive.
    pub(crate) fn new(shards: usize, seed: u64) -> Self {
        let disk = |index| Arc::new(Disk::new(seed.wrapping_add(index as u64)));
        let databases = (0..shards).map(disk).collect();
        Self { databases, files: MemoryDisk::new(), machine: Arc::default() }
    }

    /// The disk of one shard's database.
    pub(crate) fn shard(&self, index: usize) -> &Disk {
        &self.databases[index]
    }

    /// Has a storage that is about to start work on these disks. It loses them with the next [`Disks::cut_power`].
    pub(crate) fn put_below(&self, options: EngineOptions) -> EngineOptions {
        options.with_backend(self.factory()).with_disk(self.files())
    }

    /// The files beside the databases: what is written to them is durable at once.
    pub(crate) fn files(&self) -> Arc<dyn FileDisk> {
        let life = self.machine.read().unwrap_or_else(PoisonError::into_inner).life;
        let power = Power { life, machine: Arc::clone(&self.machine) };
        Arc::new(Files { disk: self.files.clone(), power })
    }

    /// From now on no files can be made, until all is healed.
    pub(crate) fn break_files(&self) {
        self.machine.write().unwrap_or_else(PoisonError::into_inner).is_broken = true;
    }

    fn factory(&self) -> BackendFactory {
        let disks: Vec<_> = self.databases.iter().map(|disk| (Arc::clone(disk), disk.lock().life)).collect();
        Arc::new(move |shard| {
            let (disk, life) = &disks[shard];
            let handle = disk.open(*life)?;
            Ok(Box::new(Handle { disk: Arc::clone(disk), number: handle }))
        })
    }

    /// Ends all that uses the disks: nothing reaches them any more, and of what was not synced, any sectors are there
    /// and any are not.
    pub(crate) fn cut_power(&self) {
        let mut machine = self.machine.write().unwrap_or_else(PoisonError::into_inner);
        *machine = Machine { life: machine.life + 1, is_broken: false };
        drop(machine);
        for disk in &self.databases {
            let mut state = disk.lock();
            state.life += 1;
            state.handle += 1;
            state.fault = None;
            state.stalled = false;
            state.forget(Unsynced::Some);
            drop(state);
            disk.changed.notify_all();
        }
    }

    /// From now on a sync takes that long, as it does on a disk that is not RAM.
    pub(crate) fn slow_down(&self, sync: Duration) {
        self.databases.iter().for_each(|disk| disk.lock().sync_takes = sync);
    }

    /// From now on syncs wait.
    pub(crate) fn stall_syncs(&self) {
        self.databases.iter().for_each(|disk| disk.stall_syncs());
    }

    /// Lets the syncs go on.
    pub(crate) fn resume_syncs(&self) {
        self.databases.iter().for_each(|disk| disk.resume_syncs());
    }

    /// Removes all faults. What has failed already stays failed until the shard is opened again.
    pub(crate) fn heal(&self) {
        self.machine.write().unwrap_or_else(PoisonError::into_inner).is_broken = false;
        self.databases.iter().for_each(|disk| disk.heal());
    }

    /// Calls that failed so far, on all disks.
    pub(crate) fn failures(&self) -> u64 {
        self.databases.iter().map(|disk| disk.lock().failures).sum()
    }
}

/// Which calls a fault counts and strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    Writes,
    Syncs,
    Growths,
    All,
}

/// What the next opening finds of the sectors that were not synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// Any of them.
    #[default]
    Some,
    All,
    None,
}

/// A fault that is about to strike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) calls: Calls,
    /// Calls that still work.
    pub(crate) after: u64,
    pub(crate) error: io::ErrorKind,
    /// Strikes again and again until the disk is healed, not once.
    pub(crate) lasting: bool,
    pub(crate) unsynced: Unsynced,
}

impl Fault {
    /// Strikes once, the first of these calls.
    pub(crate) fn next(calls: Calls) -> Self {
        Self { calls, after: 0, error: io::ErrorKind::Other, lasting: false, unsynced: Unsynced::Some }
    }
}

/// One shard's disk.
#[derive(Debug)]
pub(crate) struct Disk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What reads see.
    live: Vec<u8>,
    /// What a power cut leaves for certain.
    durable: Vec<u8>,
    /// Sectors written since the last sync: (offset, content).
    pending: Vec<(usize, Vec<u8>)>,
    shrunk: bool,
    /// Number of the machine's life.
    life: u64,
    /// The one handle that works.
    handle: u64,
    fault: Option<Fault>,
    /// A call failed since the disk was opened: its cache is worth that much.
    failed: Option<Unsynced>,
    failures: u64,
    stalled: bool,
    sync_takes: Duration,
    /// Syncs that are held up.
    waiting: usize,
    random: u64,
}

impl Disk {
    fn new(seed: u64) -> Self {
        Self { state: Mutex::new(State { random: seed, ..State::default() }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Arms a fault.
    pub(crate) fn arm(&self, fault: Fault) {
        self.lock().fault = Some(fault);
    }

    /// Removes the fault.
    pub(crate) fn heal(&self) {
        self.lock().fault = None;
    }

    /// Calls that failed so far.
    pub(crate) fn failures(&self) -> u64 {
        self.lock().failures
    }

    /// From now on syncs wait.
    pub(crate) fn stall_syncs(&self) {
        self.lock().stalled = true;
    }

    /// Lets the syncs go on.
    pub(crate) fn resume_syncs(&self) {
        self.lock().stalled = false;
        self.changed.notify_all();
    }

    /// Returns once a sync is held up.
    pub(crate) fn wait_for_held_sync(&self) {
        let mut state = self.lock();
        while state.waiting == 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open(&self, life: u64) -> io::Result<u64> {
        let mut state = self.lock();
        if state.life != life {
            return Err(io::Error::other("the power is cut"));
        }
        if let Some(unsynced) = state.failed.take() {
            state.forget(unsynced);
        }
        state.handle += 1;
        Ok(state.handle)
    }
}

impl State {
    fn check(&mut self, handle: u64, calls: Calls) -> io::Result<()> {
        if handle != self.handle {
            return Err(io::Error::other("the power is cut"));
        }
        let Some(fault) = &mut self.fault else { return Ok(()) };
        if fault.calls != Calls::All && fault.calls != calls {
            return Ok(());
        }
        if fault.after > 0 {
            fault.after -= 1;
            return Ok(());
        }
        let Fault { error, lasting, unsynced, .. } = *fault;
        if !lasting {
            self.fault = None;
        }
        self.failed = Some(unsynced);
        self.failures += 1;
        Err(error.into())
    }

    fn coin(&mut self) -> bool {
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 63) == 1
    }

    fn keeps(&mut self, unsynced: Unsynced) -> bool {
        match unsynced {
            Unsynced::Some => self.coin(),
            Unsynced::All => true,
            Unsynced::None => false,
        }
    }

    /// Loses the cache.
    fn forget(&mut self, unsynced: Unsynced) {
        let mut image = std::mem::take(&mut self.durable);
        if self.keeps(unsynced) {
            image.resize(self.live.len(), 0);
        }
        for (offset, sector) in std::mem::take(&mut self.pending) {
            if self.keeps(unsynced) {
                image.resize(image.len().max(offset + sector.len()), 0);
                image[offset..offset + sector.len()].copy_from_slice(&sector);
            }
        }
        self.live.clone_from(&image);
        self.durable = image;
        self.shrunk = false;
    }

    fn sync(&mut self) {
        if std::mem::take(&mut self.shrunk) {
            self.durable.clone_from(&self.live);
            self.pending.clear();
        }
        self.durable.resize(self.live.len(), 0);
        for (offset, sector) in self.pending.drain(..) {
            self.durable[offset..offset + sector.len()].copy_from_slice(&sector);
        }
    }
}

/// An open disk.
#[derive(Debug)]
struct Handle {
    disk: Arc<Disk>,
    number: u64,
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.lock();
        if self.number != state.handle {
            return Err(io::Error::other("the power is cut"));
        }
        let source = state.live.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (old, new) = (state.live.len(), len as usize);
        if new > old {
            state.check(self.number, Calls::Growths)?;
        }
        state.shrunk |= new < old;
        state.live.resize(new, 0);
        state.pending.retain(|(offset, sector)| offset + sector.len() <= new);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.waiting += 1;
        self.disk.changed.notify_all();
        while state.stalled && state.handle == self.number {
            state = self.disk.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        if !state.sync_takes.is_zero() {
            let pause = state.sync_takes;
            drop(state);
            thread::sleep(pause);
            state = self.disk.lock();
        }
        state.check(self.number, Calls::Syncs)?;
        state.sync();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.check(self.number, Calls::Writes)?;
        let offset = offset as usize;
        let target = state.live.get_mut(offset..offset + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        target.copy_from_slice(data);
        for (at, sector) in data.chunks(SECTOR_BYTES).enumerate() {
            state.pending.push((offset + at * SECTOR_BYTES, sector.to_vec()));
        }
        Ok(())
    }
}

/// Whether what was opened in one of the machine's lives is still in reach.
#[derive(Clone, Debug)]
struct Power {
    life: u64,
    machine: Arc<RwLock<Machine>>,
}

impl Power {
    /// The power is not cut before the guard is dropped.
    fn on(&self) -> io::Result<RwLockReadGuard<'_, Machine>> {
        let machine = self.machine.read().unwrap_or_else(PoisonError::into_inner);
        if machine.life == self.life { Ok(machine) } else { Err(io::Error::other("the power is cut")) }
    }
}

/// The files, for one life of the machine.
#[derive(Debug)]
struct Files {
    disk: MemoryDisk,
    power: Power,
}

impl FileDisk for Files {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let machine = self.power.on()?;
        if mode == OpenMode::Create && machine.is_broken {
            return Err(io::Error::other("no more files"));
        }
        let file = self.disk.open(path, mode)?;
        Ok(Arc::new(PoweredFile { file, power: self.power.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _on = self.power.on()?;
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let _on = self.power.on()?;
        self.disk.remove(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let _on = self.power.on()?;
        self.disk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        let _on = self.power.on()?;
        self.disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let _on = self.power.on()?;
        self.disk.sync_dir(dir)
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }
}

#[derive(Debug)]
struct PoweredFile {
    file: Arc<dyn DiskFile>,
    power: Power,
}

impl DiskFile for PoweredFile {
    fn len(&self) -> io::Result<u64> {
        let _on = self.power.on()?;
        self.file.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let _on = self.power.on()?;
        self.file.read_at(offset, out)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let _on = self.power.on()?;
        self.file.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _on = self.power.on()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let _on = self.power.on()?;
        self.file.sync_data()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        let _on = self.power.on()?;
        self.file.allocated_bytes()
    }

    fn drop_cache(&self) -> io::Result<()> {
        let _on = self.power.on()?;
        self.file.drop_cache()
    }
}
