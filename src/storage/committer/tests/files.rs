//! Files in RAM that cannot be made, or only later, when they are told so.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::storage::disk::{Disk, DiskEntry, DiskFile, MemoryDisk, OpenMode};

/// A step of writing a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    /// The same, for want of room.
    CreateWithoutRoom,
    SyncDir,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    disk: MemoryDisk,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    /// Steps that fail, in this order.
    failing: VecDeque<Step>,
    /// All creations fail.
    is_broken: bool,
    failures: usize,
    is_held: bool,
    waiting: usize,
    free: Option<u64>,
}

impl Files {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap()
    }

    /// Has the next of these steps fail, then the next one behind it.
    pub(super) fn fail(&self, steps: impl IntoIterator<Item = Step>) {
        self.lock().failing.extend(steps);
    }

    /// From now on no file can be made.
    pub(super) fn break_down(&self) {
        self.lock().is_broken = true;
    }

    /// Returns once so many steps have failed.
    pub(super) fn wait_for_failures(&self, count: usize) {
        self.wait_until(|state| state.failures >= count);
    }

    /// From now on so many bytes are free.
    pub(super) fn set_free(&self, bytes: u64) {
        self.lock().free = Some(bytes);
    }

    /// From now on making a file waits.
    pub(super) fn hold(&self) {
        self.lock().is_held = true;
    }

    /// Returns once somebody waits to make a file.
    pub(super) fn wait_for_held(&self) {
        self.wait_until(|state| state.waiting > 0);
    }

    /// Lets go on what waits.
    pub(super) fn let_go(&self) {
        self.lock().is_held = false;
        self.state.1.notify_all();
    }

    fn wait_until(&self, is_so: impl Fn(&State) -> bool) {
        let mut state = self.lock();
        while !is_so(&state) {
            let (now, waited) = self.state.1.wait_timeout(state, super::PATIENCE).unwrap();
            assert!(!waited.timed_out() || is_so(&now), "it happens in time");
            state = now;
        }
    }

    /// Files there are.
    pub(super) fn count(&self) -> usize {
        self.disk.list(Path::new("")).unwrap().len()
    }

    fn step(&self, step: Step) -> io::Result<()> {
        let mut state = self.lock();
        if step == Step::Create {
            state.waiting += 1;
            self.state.1.notify_all();
            while state.is_held {
                state = self.state.1.wait(state).unwrap();
            }
            state.waiting -= 1;
        }
        let lacks_room = step == Step::Create && state.failing.front() == Some(&Step::CreateWithoutRoom);
        let is_told = state.failing.front() == Some(&step) || lacks_room;
        let fails = is_told || (state.is_broken && step == Step::Create);
        if !fails {
            return Ok(());
        }
        state.failing.pop_front();
        state.failures += 1;
        self.state.1.notify_all();
        Err(if lacks_room { io::ErrorKind::StorageFull.into() } else { io::Error::other("as told") })
    }
}

impl Disk for Files {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if mode == OpenMode::Create {
            self.step(Step::Create)?;
        }
        self.disk.open(path, mode)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        self.disk.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(Step::SyncDir)?;
        self.disk.sync_dir(dir)
    }

    fn free_bytes(&self) -> Option<u64> {
        self.lock().free
    }
}
