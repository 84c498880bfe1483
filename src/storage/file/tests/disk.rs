//! A disk in RAM that keeps the promises of [`Disk`] and no other: at a power cut it keeps any of the unsynced sectors, lengths
//! and names; after a failed sync it keeps any of them and shows all of them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::storage::disk::{Disk, DiskEntry, DiskFile, OpenMode};

const SECTOR: usize = 512;

/// Random numbers from a seed.
#[derive(Clone, Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The power goes in the middle of it. Everything fails from then on.
    PowerCut,
    /// It fails once.
    Io,
    /// It fails once, for want of room.
    Full,
}

#[derive(Debug, Default)]
struct Inode {
    /// What a power cut cannot take.
    disk: Vec<u8>,
    /// What a read shows.
    cache: Vec<u8>,
    /// Of each sector, what was written since the last sync.
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Lengths since the last sync.
    lens: Vec<usize>,
}

impl Inode {
    fn write(&mut self, offset: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = offset + data.len();
        if end > self.cache.len() {
            self.cache.resize(end, 0);
            self.lens.push(end);
        }
        self.cache[offset..end].copy_from_slice(data);
        for sector in offset / SECTOR..end.div_ceil(SECTOR) {
            let content = sector_of(&self.cache, sector);
            self.dirty.entry(sector).or_default().push(content);
        }
    }

    fn set_len(&mut self, len: usize) {
        self.cache.resize(len, 0);
        self.lens.push(len);
    }

    fn sync(&mut self) {
        if !self.lens.is_empty() {
            self.disk.resize(self.cache.len(), 0);
        }
        for (sector, _) in std::mem::take(&mut self.dirty) {
            let content = sector_of(&self.cache, sector);
            put_sector(&mut self.disk, sector, &content);
        }
        self.lens.clear();
    }

    /// Any part of what is not synced gets to the disk, and the rest never will.
    fn sync_by_chance(&mut self, dice: &mut Dice) {
        let lens = std::mem::take(&mut self.lens);
        let len = match dice.below(lens.len() as u64 + 1) as usize {
            0 => self.disk.len(),
            chosen => lens[chosen - 1],
        };
        let keeps = dice.below(4);
        self.disk.resize(len, 0);
        for (sector, versions) in std::mem::take(&mut self.dirty) {
            // Now and then all or nothing, else any.
            let chosen = match keeps {
                0 => versions.len(),
                1 => 0,
                _ => dice.below(versions.len() as u64 + 1) as usize,
            };
            if chosen > 0 {
                put_sector(&mut self.disk, sector, &versions[chosen - 1]);
            }
        }
    }
}

fn sector_of(content: &[u8], sector: usize) -> Vec<u8> {
    let start = (sector * SECTOR).min(content.len());
    content[start..(start + SECTOR).min(content.len())].to_vec()
}

fn put_sector(disk: &mut [u8], sector: usize, content: &[u8]) {
    let start = (sector * SECTOR).min(disk.len());
    let end = (start + content.len()).min(disk.len());
    disk[start..end].copy_from_slice(&content[..end - start]);
}

#[derive(Debug)]
enum NameChange {
    Made(PathBuf, usize),
    Renamed(PathBuf, PathBuf, usize),
    Removed(PathBuf, usize),
}

#[derive(Debug)]
struct State {
    dice: Dice,
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    changes: Vec<NameChange>,
    calls: u64,
    trouble: Option<(u64, Trouble)>,
    is_off: bool,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub(super) struct TestDisk(Arc<Mutex<State>>);

impl TestDisk {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            dice: Dice(seed),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            calls: 0,
            trouble: None,
            is_off: false,
        })))
    }

    pub(super) fn as_disk(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Calls so far.
    pub(super) fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Lets the call fail that comes after so many others.
    pub(super) fn plan(&self, after: u64, trouble: Trouble) {
        let mut state = self.state();
        state.trouble = Some((state.calls + after, trouble));
    }

    /// Nothing fails any more; returns whether what was planned has happened.
    pub(super) fn calm(&self) -> bool {
        let mut state = self.state();
        state.is_off = false;
        state.trouble.take().is_none()
    }

    /// What is there when the power is back.
    pub(super) fn cut(&self) {
        let mut state = self.state();
        let State { dice, inodes, durable_names, changes, names, .. } = &mut *state;
        for change in std::mem::take(changes) {
            if dice.one_in(2) {
                continue;
            }
            match change {
                NameChange::Made(path, inode) => {
                    durable_names.insert(path, inode);
                }
                NameChange::Renamed(from, to, inode) => {
                    if durable_names.get(&from) == Some(&inode) {
                        durable_names.remove(&from);
                    }
                    durable_names.insert(to, inode);
                }
                NameChange::Removed(path, inode) => {
                    if durable_names.get(&path) == Some(&inode) {
                        durable_names.remove(&path);
                    }
                }
            }
        }
        names.clone_from(durable_names);
        for inode in inodes {
            inode.sync_by_chance(dice);
            inode.cache.clone_from(&inode.disk);
        }
    }

    /// The files whose names begin with `prefix`, by name.
    pub(super) fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let has = |path: &&PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(prefix);
        self.state().names.keys().filter(has).cloned().collect()
    }

    pub(super) fn content(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.names[path]].cache.clone()
    }

    /// Replaces a file's content behind everybody's back.
    pub(super) fn overwrite(&self, path: &Path, content: Vec<u8>) {
        let mut state = self.state();
        let inode = state.names[path];
        state.inodes[inode] = Inode { disk: content.clone(), cache: content, ..Inode::default() };
    }

    /// A disk with the same content.
    pub(super) fn copy(&self) -> Self {
        let copy = Self::new(1);
        let state = self.state();
        let mut other = copy.state();
        for (path, &inode) in &state.names {
            let cache = state.inodes[inode].cache.clone();
            other.inodes.push(Inode { disk: cache.clone(), cache, ..Inode::default() });
            let inode = other.inodes.len() - 1;
            other.names.insert(path.clone(), inode);
            other.durable_names.insert(path.clone(), inode);
        }
        drop(other);
        drop(state);
        copy
    }
}

impl State {
    /// Counts a call. `Err` with the trouble that it has.
    fn call(&mut self) -> Result<(), (Trouble, io::Error)> {
        if self.is_off {
            return Err((Trouble::PowerCut, io::Error::other("the power is off")));
        }
        let call = self.calls;
        self.calls += 1;
        match self.trouble {
            Some((at, trouble)) if at == call => {
                self.trouble = None;
                self.is_off = trouble == Trouble::PowerCut;
                let error = match trouble {
                    Trouble::PowerCut => io::Error::other("the power went"),
                    Trouble::Io => io::Error::other("this call fails"),
                    Trouble::Full => io::ErrorKind::StorageFull.into(),
                };
                Err((trouble, error))
            }
            _ => Ok(()),
        }
    }

    /// A call that has an effect although it fails, or not.
    fn change(&mut self) -> (bool, io::Result<()>) {
        match self.call() {
            Ok(()) => (true, Ok(())),
            Err((_, error)) => (!self.is_off && self.dice.one_in(2), Err(error)),
        }
    }
}

impl Disk for TestDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.call().map_err(|(_, error)| error)?;
        let inode = match (state.names.get(path).copied(), mode) {
            (Some(inode), OpenMode::Create) => {
                state.inodes[inode].set_len(0);
                inode
            }
            (Some(inode), _) => inode,
            (None, OpenMode::Create) => {
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
                state.names.insert(path.to_owned(), inode);
                state.changes.push(NameChange::Made(path.to_owned(), inode));
                inode
            }
            (None, _) => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(TestFile { disk: self.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let (happens, outcome) = state.change();
        if happens {
            let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), inode);
            state.changes.push(NameChange::Renamed(from.to_owned(), to.to_owned(), inode));
        }
        outcome
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let (happens, outcome) = state.change();
        if happens {
            let inode = state.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
            state.changes.push(NameChange::Removed(path.to_owned(), inode));
        }
        outcome
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        let mut state = self.state();
        state.call().map_err(|(_, error)| error)?;
        let within = state.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        let entry = |(path, inode): (&PathBuf, &usize)| DiskEntry {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            is_dir: false,
            len: state.inodes[*inode].cache.len() as u64,
        };
        Ok(within.map(entry).collect())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.call().map_err(|(_, error)| error)?;
        state.durable_names = state.names.clone();
        state.changes.clear();
        Ok(())
    }

    fn free_bytes(&self) -> Option<u64> {
        // Known, so that room is set aside.
        Some(u64::MAX)
    }
}

#[derive(Debug)]
struct TestFile {
    disk: TestDisk,
    inode: usize,
}

impl DiskFile for TestFile {
    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.call().map_err(|(_, error)| error)?;
        Ok(state.inodes[self.inode].cache.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.call().map_err(|(_, error)| error)?;
        let content = &state.inodes[self.inode].cache;
        let range = offset as usize..offset as usize + out.len();
        out.copy_from_slice(content.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let outcome = state.call();
        let written =
            if outcome.is_ok() { data.len() } else { state.dice.below(data.len() as u64 + 1) as usize };
        if !state.is_off || outcome.as_ref().is_err_and(|(trouble, _)| *trouble == Trouble::PowerCut) {
            state.inodes[self.inode].write(offset as usize, &data[..written]);
        }
        outcome.map_err(|(_, error)| error)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let (happens, outcome) = state.change();
        if happens {
            state.inodes[self.inode].set_len(len as usize);
        }
        outcome
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        match state.call() {
            Ok(()) => {
                state.inodes[self.inode].sync();
                Ok(())
            }
            Err((trouble, error)) => {
                if trouble != Trouble::PowerCut {
                    let State { inodes, dice, .. } = &mut *state;
                    inodes[self.inode].sync_by_chance(dice);
                }
                Err(error)
            }
        }
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.len()
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.sync_data()?;
        let mut state = self.disk.state();
        let inode = &mut state.inodes[self.inode];
        inode.cache.clone_from(&inode.disk);
        Ok(())
    }
}
