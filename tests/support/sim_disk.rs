//! A disk of RAM that loses power, fails, fills up, and keeps no more promises than a real one.
//!
//! [`SimDisk`] implements [`Disk`]. It remembers what was done to each file and each directory since that was synced, and
//! [`SimDisk::power_cut`] makes another disk of it that holds any part of that: any of the unsynced writes, torn at
//! sectors; the length of the file before or after them; names before or after they were made, changed or removed. What was
//! synced is there. The disk that was cut fails all calls from then on, so that nothing that is left of its user gets through.
//!
//! [`SimDisk::cut_at`] and [`SimDisk::fail_call`] pick a call by its number, counted from when the disk was made. All that is
//! random follows from the seed and the order of the calls.
//!
//! Not a part of `support`, which starts the real binary: tests of the library include this file by its path, and have the
//! trait at `crate::disk`.
#![allow(dead_code)]

#[path = "dice.rs"]
mod dice;
#[path = "sim_disk/file.rs"]
mod file;
#[path = "sim_disk/handle.rs"]
mod handle;
#[path = "sim_disk/names.rs"]
mod names;
#[path = "sim_disk/pages.rs"]
mod pages;
#[path = "sim_disk/state.rs"]
mod state;
#[path = "sim_disk/tests.rs"]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use durable_streams_server::storage::disk::{Disk, DiskEntry, DiskFile, OpenMode};

pub(crate) use dice::Dice;
use handle::SimFile;
use state::{Call, State};

/// What a power cut leaves of changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survives {
    Nothing,
    Everything,
    /// The first ones, in order; the content of the next one in part.
    Prefix,
    /// Any of them, in part or whole; of names any but for the order of changes of the same name.
    Any,
}

/// What a power cut leaves, of content and of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) content: Survives,
    pub(crate) names: Survives,
    /// What is written as a whole: 512 or 4096.
    pub(crate) sector_bytes: usize,
}

impl Style {
    /// Any style; the ones that leave any part of it most often.
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let survives = |roll| match roll {
            0 => Survives::Nothing,
            1 => Survives::Everything,
            2 | 3 => Survives::Prefix,
            _ => Survives::Any,
        };
        let (content, names) = (survives(dice.roll(8)), survives(dice.roll(6)));
        Self { content, names, sector_bytes: [512, 4096][dice.roll(2)] }
    }
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { content, names, sector_bytes } = self;
        write!(f, "content {content:?}, names {names:?}, sectors of {sector_bytes}")
    }
}

/// Which calls are counted. None of them are reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// Syncs of files and directories.
    Syncs,
    /// Whatever changes something, and syncs.
    Calls,
}

/// Where in a call the disk stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The call changes nothing, and fails.
    Before,
    /// The call does what it should, and fails.
    Within,
    /// The call succeeds, and is the last one to do so.
    After,
}

impl Moment {
    pub(crate) const ALL: [Self; 3] = [Self::Before, Self::Within, Self::After];
}

/// When the disk stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CutPoint {
    pub(crate) count: Count,
    /// Number of the call, from 1.
    pub(crate) number: u64,
    pub(crate) moment: Moment,
}

impl fmt::Display for CutPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, number, moment } = self;
        write!(f, "{moment:?} number {number} of {count:?}")
    }
}

/// How a call fails. Where a kind makes no sense, it is [`Fault::Io`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No room: nothing is written.
    NoSpace,
    /// An error: nothing is written.
    Io,
    /// An error after half of it was written.
    ShortWrite,
    /// An error of a sync, after which what was to be synced counts as clean and is on the disk or not. Every fault does that
    /// to a sync.
    Sync,
}

impl Fault {
    pub(crate) const ALL: [Self; 4] = [Self::NoSpace, Self::Io, Self::ShortWrite, Self::Sync];
}

/// A disk. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    /// An empty one. The seed decides what failed syncs leave.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State::new(seed))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk after the power was cut. All calls of this one fail from now on.
    pub(crate) fn power_cut(&self, dice: &mut Dice, style: Style) -> Self {
        Self(Arc::new(Mutex::new(self.lock().power_cut(dice, style))))
    }

    /// Stops the disk there: all later calls fail, reads too, and nothing changes any more. To be followed by
    /// [`Self::power_cut`].
    pub(crate) fn cut_at(&self, point: CutPoint) {
        self.lock().cut_point = Some(point);
    }

    /// Takes back [`Self::cut_at`], unless it is too late: whether the disk works on.
    pub(crate) fn spare(&self) -> bool {
        let mut state = self.lock();
        state.cut_point = None;
        !state.frozen
    }

    /// Stops the disk now.
    pub(crate) fn freeze(&self) {
        self.lock().frozen = true;
    }

    /// It has stopped.
    pub(crate) fn is_frozen(&self) -> bool {
        self.lock().frozen
    }

    /// Lets one call fail, counted as [`Self::calls`] does, from 1.
    pub(crate) fn fail_call(&self, number: u64, fault: Fault) {
        self.lock().fault = Some((number, fault));
    }

    /// Lets one read fail, counted as [`Self::reads`] does, from 1.
    pub(crate) fn fail_read(&self, number: u64) {
        self.lock().read_fault = Some(number);
    }

    /// A fault was armed and has struck.
    pub(crate) fn has_failed(&self) -> bool {
        self.lock().failures > 0
    }

    /// The same, once: what it excuses is excused then.
    pub(crate) fn takes_failure(&self) -> bool {
        std::mem::take(&mut self.lock().failures) > 0
    }

    /// Syncs so far, failed ones included.
    pub(crate) fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Calls so far that change something, and syncs; failed ones included.
    pub(crate) fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Reads of files so far, failed ones included.
    pub(crate) fn reads(&self) -> u64 {
        self.lock().reads
    }

    /// From now on all files together can take that many bytes, in whole pages. `None` = any number.
    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// From now on a sync takes that long, as it does on a disk that is not RAM: meanwhile others queue up behind it.
    pub(crate) fn slow_down(&self, sync: Duration) {
        self.lock().sync_takes = sync;
    }

    /// Bytes that all files take, open ones without a name included.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Something was written to a file and not synced since.
    pub(crate) fn has_unsynced_content(&self) -> bool {
        self.lock().has_unsynced_content()
    }

    /// Open handles.
    pub(crate) fn open_handles(&self) -> usize {
        self.lock().open_handles()
    }

    /// Changes stored bytes behind everybody's back.
    pub(crate) fn damage(&self, path: &str, offset: u64, len: usize) {
        self.lock().damage(path, offset, len);
    }

    /// The latest calls, one a line.
    pub(crate) fn trace(&self) -> String {
        self.lock().trace.iter().map(|line| format!("{line}\n")).collect()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        let file = match mode {
            OpenMode::Create => state.call(Call::Create, path, |state| state.create_file(path))?,
            OpenMode::Read | OpenMode::Write => {
                state.look()?;
                state.file_at(path)?
            }
        };
        state.open_handle(file);
        drop(state);
        let label = path.display().to_string();
        Ok(Arc::new(SimFile::new(self.clone(), file, label, mode != OpenMode::Read)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.lock().call(Call::Rename, to, |state| state.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.lock().call(Call::Remove, path, |state| state.remove(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.lock().call(Call::CreateDir, path, |state| state.create_dir(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.lock().call(Call::Remove, path, |state| state.remove_dir(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        let state = self.lock();
        state.look()?;
        state.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.lock().call(Call::SyncDir, dir, |state| state.sync_dir(dir))
    }

    fn free_bytes(&self) -> Option<u64> {
        self.lock().free_bytes()
    }
}
