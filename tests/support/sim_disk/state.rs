//! All of a disk: its files, its directories, and the calls that it counts, stops at and lets fail.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Component, Path};
use std::time::Duration;

use durable_streams_server::storage::disk::DiskEntry;

use super::file::SimInode;
use super::names::{Names, SimDir, Target};
use super::{Count, CutPoint, Dice, Fault, Moment, Style};

const ROOT: u64 = 0;
/// Calls that a disk remembers for whoever looks for a failure.
const TRACE_LINES: usize = 60;

/// A call that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Create,
    Rename,
    Remove,
    CreateDir,
    SyncDir,
    Write,
    SetLen,
    Sync,
}

impl Call {
    fn is_sync(self) -> bool {
        matches!(self, Self::Sync | Self::SyncDir)
    }
}

#[derive(Debug)]
pub(super) struct State {
    dice: Dice,
    files: BTreeMap<u64, SimInode>,
    dirs: BTreeMap<u64, SimDir>,
    /// Of files and directories.
    next_number: u64,
    pub(super) cut_point: Option<CutPoint>,
    pub(super) frozen: bool,
    pub(super) fault: Option<(u64, Fault)>,
    pub(super) read_fault: Option<u64>,
    pub(super) failures: u64,
    pub(super) calls: u64,
    pub(super) syncs: u64,
    pub(super) reads: u64,
    pub(super) capacity: Option<u64>,
    pub(super) sync_takes: Duration,
    pub(super) trace: VecDeque<String>,
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            dice: Dice::new(seed),
            files: BTreeMap::new(),
            dirs: BTreeMap::from([(ROOT, SimDir::default())]),
            next_number: ROOT + 1,
            cut_point: None,
            frozen: false,
            fault: None,
            read_fault: None,
            failures: 0,
            calls: 0,
            syncs: 0,
            reads: 0,
            capacity: None,
            sync_takes: Duration::ZERO,
            trace: VecDeque::new(),
        }
    }

    /// A call that changes nothing.
    pub(super) fn look(&self) -> io::Result<()> {
        if self.frozen { Err(off()) } else { Ok(()) }
    }

    /// Counts a call, and lets `work` do it, unless the disk stops there or the call is to fail.
    pub(super) fn call<T>(
        &mut self,
        call: Call,
        path: &Path,
        work: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        self.counted(call, &path.display().to_string(), |state, fault| match fault {
            None => work(state),
            Some(fault) => Err(error_of(fault)),
        })
    }

    /// The same with a say in how it fails.
    pub(super) fn counted<T>(
        &mut self,
        call: Call,
        what: &str,
        work: impl FnOnce(&mut Self, Option<Fault>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.look()?;
        self.calls += 1;
        self.syncs += u64::from(call.is_sync());
        let stops = self.cut_point.is_some_and(|point| match point.count {
            Count::Syncs => call.is_sync() && self.syncs == point.number,
            Count::Calls => self.calls == point.number,
        });
        let moment = self.cut_point.filter(|_| stops).map(|point| point.moment);
        let fault = self.fault.take_if(|(number, _)| *number == self.calls).map(|(_, fault)| fault);
        self.failures += u64::from(fault.is_some());
        self.note(call, what, moment, fault);
        self.frozen = moment.is_some();
        if moment == Some(Moment::Before) {
            return Err(off());
        }
        let outcome = work(self, fault);
        if moment == Some(Moment::Within) { Err(off()) } else { outcome }
    }

    fn note(&mut self, call: Call, what: &str, moment: Option<Moment>, fault: Option<Fault>) {
        let (calls, syncs) = (self.calls, self.syncs);
        let cut = moment.map(|moment| format!(", power cut {moment:?}")).unwrap_or_default();
        let fault = fault.map(|fault| format!(", {fault:?}")).unwrap_or_default();
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{calls} ({syncs}) {call:?} {what}{cut}{fault}"));
    }

    pub(super) fn read_is_to_fail(&mut self) -> bool {
        self.reads += 1;
        let fails = self.read_fault.take_if(|number| *number == self.reads).is_some();
        self.failures += u64::from(fails);
        fails
    }

    pub(super) fn power_cut(&mut self, dice: &mut Dice, style: Style) -> Self {
        self.frozen = true;
        let mut after = Self::new(dice.roll(1 << 30) as u64);
        after.capacity = self.capacity;
        after.sync_takes = self.sync_takes;
        after.next_number = self.next_number;
        after.dirs.clear();
        let mut found = vec![ROOT];
        while let Some(number) = found.pop() {
            let names = self.dirs[&number].after_cut(style, dice);
            for target in names.values() {
                match target {
                    Target::Dir(number) => found.push(*number),
                    Target::File(number) => {
                        let content = self.files[number].after_cut(style, dice);
                        after.files.entry(*number).or_insert_with(|| SimInode::on_disk(content));
                    }
                }
            }
            after.dirs.insert(number, SimDir::on_disk(names));
        }
        after
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// The directory that has this entry, and the entry's name.
    fn parent(&self, path: &Path) -> io::Result<(u64, String)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.dir_at(parent)?, name.to_string_lossy().into_owned()))
    }

    fn dir_at(&self, path: &Path) -> io::Result<u64> {
        let mut at = ROOT;
        for component in path.components() {
            let Component::Normal(name) = component else { return Err(io::ErrorKind::InvalidInput.into()) };
            at = match self.dirs[&at].live().get(&*name.to_string_lossy()) {
                Some(Target::Dir(number)) => *number,
                Some(Target::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => return Err(io::ErrorKind::NotFound.into()),
            };
        }
        Ok(at)
    }

    fn target(&self, path: &Path) -> io::Result<(u64, String, Option<Target>)> {
        let (dir, name) = self.parent(path)?;
        let target = self.dirs[&dir].live().get(&name).copied();
        Ok((dir, name, target))
    }

    pub(super) fn file_at(&self, path: &Path) -> io::Result<u64> {
        match self.target(path)? {
            (.., Some(Target::File(number))) => Ok(number),
            (.., Some(Target::Dir(_))) => Err(io::ErrorKind::IsADirectory.into()),
            (.., None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn dir(&mut self, number: u64) -> &mut SimDir {
        self.dirs.get_mut(&number).expect("directories are never forgotten")
    }

    pub(super) fn file(&mut self, number: u64) -> &mut SimInode {
        self.files.get_mut(&number).expect("an open file is never forgotten")
    }

    pub(super) fn create_file(&mut self, path: &Path) -> io::Result<u64> {
        let (dir, name, target) = self.target(path)?;
        match target {
            Some(Target::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            Some(Target::File(number)) => {
                self.file(number).set_len(0);
                Ok(number)
            }
            None => {
                let number = self.number();
                self.files.insert(number, SimInode::default());
                self.dir(dir).set(&name, Target::File(number));
                Ok(number)
            }
        }
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let (dir, name, target) = self.target(path)?;
        match target {
            Some(Target::Dir(_)) => Ok(()),
            Some(Target::File(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            None => {
                let number = self.number();
                self.dirs.insert(number, SimDir::default());
                self.dir(dir).set(&name, Target::Dir(number));
                Ok(())
            }
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (dir, old, source) = self.target(from)?;
        let (other, new, replaced) = self.target(to)?;
        if dir != other || matches!(replaced, Some(Target::Dir(_))) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        source.ok_or(io::ErrorKind::NotFound)?;
        if old != new {
            self.dir(dir).rename(&old, &new);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.file_at(path)?;
        let (dir, name) = self.parent(path)?;
        self.dir(dir).remove(&name);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        let number = self.dir_at(path)?;
        if !self.dirs[&number].live().is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let (dir, name) = self.parent(path)?;
        self.dir(dir).remove(&name);
        Ok(())
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        let names: &Names = self.dirs[&self.dir_at(dir)?].live();
        let entry = |(name, target): (&String, &Target)| {
            let (is_dir, len) = match target {
                Target::Dir(_) => (true, 0),
                Target::File(number) => (false, self.files[number].live().len()),
            };
            DiskEntry { name: name.clone(), is_dir, len }
        };
        Ok(names.iter().map(entry).collect())
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        let number = self.dir_at(dir)?;
        self.dir(number).sync();
        self.forget_lost_files();
        Ok(())
    }

    pub(super) fn open_handle(&mut self, file: u64) {
        self.file(file).handles += 1;
    }

    pub(super) fn close_handle(&mut self, file: u64) {
        self.file(file).handles -= 1;
        self.forget_lost_files();
    }

    /// Files that nobody has open and no power cut brings back.
    fn forget_lost_files(&mut self) {
        let dirs = &self.dirs;
        self.files.retain(|number, file| file.handles > 0 || dirs.values().any(|dir| dir.may_hold(*number)));
    }

    pub(super) fn fail_sync(&mut self, file: u64) {
        let inode = self.files.get_mut(&file).expect("an open file is never forgotten");
        inode.fail_sync(&mut self.dice);
    }

    fn is_named(&self, number: u64) -> bool {
        let target = Target::File(number);
        self.dirs.values().any(|dir| dir.live().values().any(|held| *held == target))
    }

    pub(super) fn has_unsynced_content(&self) -> bool {
        self.files.iter().any(|(number, file)| !file.is_synced() && self.is_named(*number))
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let counts = self.files.iter().filter(|(number, file)| file.handles > 0 || self.is_named(**number));
        counts.map(|(_, file)| file.live().allocated_bytes()).sum()
    }

    pub(super) fn open_handles(&self) -> usize {
        self.files.values().map(|file| file.handles).sum()
    }

    pub(super) fn free_bytes(&self) -> Option<u64> {
        self.capacity.map(|capacity| capacity.saturating_sub(self.used_bytes()))
    }

    pub(super) fn damage(&mut self, path: &str, offset: u64, len: usize) {
        let number = self.file_at(Path::new(path)).expect("the file is there");
        self.file(number).damage(offset, len);
    }
}

/// What every call of a disk without power comes to.
pub(super) fn off() -> io::Error {
    io::Error::other("the power is cut")
}

pub(super) fn error_of(fault: Fault) -> io::Error {
    match fault {
        Fault::NoSpace => io::ErrorKind::StorageFull.into(),
        Fault::Io | Fault::ShortWrite | Fault::Sync => io::Error::other("input/output error"),
    }
}
