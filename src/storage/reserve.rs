//! Room on the disk that is set aside while there is plenty, and given up when a write finds none.
//!
//! On a full disk only deletions free anything, and they have to be written down themselves. Blocks that a file really takes
//! are the only room that nobody else can have, so the reserve is a file of zeros. Giving it up is removing it; what it took is
//! kept from new content until it is there again ([`Reserve::missing_bytes`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Disk, OpenMode};

/// Name of the file.
pub(crate) const RESERVE_FILE: &str = "RESERVE";
/// Bytes that a shard sets aside: some hundred small writes, of which the first ones free more.
pub(crate) const RESERVE_BYTES: u64 = 512 << 10;
const DRAFT_FILE: &str = "RESERVE.new";
/// A reserve is made if this many times as much is free, so that it does not take the last room itself.
const FREE_TIMES: u64 = 4;
/// Zeros written at once.
const STEP_BYTES: u64 = 64 << 10;

/// The reserve of one shard, which its commit thread has.
#[derive(Debug)]
pub(crate) struct Reserve {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// What it takes when it is there.
    bytes: u64,
    is_there: bool,
    /// Making it has failed: it is not tried again before the next opening.
    is_given_up: bool,
}

impl Reserve {
    /// Looks for the reserve in `dir`; removes an unfinished one.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path, bytes: u64) -> io::Result<Self> {
        let mut is_there = false;
        for entry in disk.list(dir)? {
            match entry.name.as_str() {
                RESERVE_FILE => is_there = true,
                DRAFT_FILE => disk.remove(&dir.join(DRAFT_FILE))?,
                _ => {}
            }
        }
        Ok(Self { disk, dir: dir.to_owned(), bytes, is_there, is_given_up: false })
    }

    /// Bytes that are free for now, and to be kept for the reserve.
    pub(crate) fn missing_bytes(&self) -> u64 {
        if self.is_there || self.disk.free_bytes().is_none() { 0 } else { self.bytes }
    }

    /// Makes the reserve if it is missing and there is room; not where nobody can tell. That it fails is no failure of anything else.
    pub(crate) fn restore(&mut self) {
        let has_room = |free| free >= self.bytes.saturating_mul(FREE_TIMES);
        if self.is_there || self.is_given_up || !self.disk.free_bytes().is_some_and(has_room) {
            return;
        }
        match self.make() {
            Ok(()) => self.is_there = true,
            Err(error) => {
                tracing::debug!(dir = %self.dir.display(), %error, "setting room aside for deletions");
                self.is_given_up = true;
                // If it cannot be removed now, the next opening does.
                let _ = self.disk.remove(&self.dir.join(DRAFT_FILE));
            }
        }
    }

    fn make(&self) -> io::Result<()> {
        let draft = self.dir.join(DRAFT_FILE);
        let file = self.disk.open(&draft, OpenMode::Create)?;
        let zeros = vec![0; STEP_BYTES.min(self.bytes) as usize];
        let mut at = 0;
        while at < self.bytes {
            let step = STEP_BYTES.min(self.bytes - at);
            file.write_at(at, &zeros[..step as usize])?;
            at += step;
        }
        file.sync_data()?;
        self.disk.rename(&draft, &self.dir.join(RESERVE_FILE))?;
        self.disk.sync_dir(&self.dir)
    }

    /// Gives the reserve up. Returns whether there was one.
    pub(crate) fn give_up(&mut self) -> bool {
        if !self.is_there {
            return false;
        }
        let path = self.dir.join(RESERVE_FILE);
        match self.disk.remove(&path) {
            Ok(()) => {
                tracing::warn!(path = %path.display(), "the disk is full: what was set aside is given up for deletions");
                self.is_there = false;
                true
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what was set aside cannot be given up");
                false
            }
        }
    }
}
