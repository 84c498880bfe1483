//! Emptying a log: its pages are written into the file, and then it is begun anew.
//!
//! A page for which the file has no room stays in the log, which keeps all of its records then. Whoever has the other log takes what
//! was left along, durably, and has this one begun anew ([`Drain::finish`]).

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::format::{BLOCK_BYTES, Block, Header};
use super::{FILL_STEP, Shared};
use crate::storage::disk::DiskFile;

/// Neighbouring blocks are written together, up to so many bytes.
const PIECE_BYTES: usize = 256 << 10;

/// A log to be emptied.
pub(super) struct Drain {
    /// What it has, in order.
    blocks: Vec<(u64, Arc<Block>)>,
    /// Those of them that the file has no room for.
    left: Vec<(u64, Arc<Block>)>,
    log: Arc<dyn DiskFile>,
    /// What it begins with after that.
    header: Header,
    /// Its size if no record is too large.
    log_bytes: u64,
}

impl Drain {
    pub(super) fn new(
        blocks: HashMap<u64, Arc<Block>, ahash::RandomState>,
        log: Arc<dyn DiskFile>,
        header: Header,
        log_bytes: u64,
    ) -> Self {
        let mut blocks: Vec<_> = blocks.into_iter().collect();
        blocks.sort_unstable_by_key(|&(number, _)| number);
        Self { blocks, left: Vec::new(), log, header, log_bytes }
    }

    /// What is in no other place than this log.
    pub(super) fn left(&self) -> &[(u64, Arc<Block>)] {
        &self.left
    }

    /// A log that is longer had a record that was too large for it.
    fn longest(&self) -> u64 {
        2 * self.log_bytes.max(FILL_STEP)
    }

    fn run(&mut self, shared: &Shared) -> io::Result<()> {
        self.left = self.write_pages(&*shared.file)?;
        shared.sync_file()?;
        if self.left.is_empty() { self.finish(shared).map(drop) } else { Ok(()) }
    }

    /// Begins the log anew: the file has what it has, durably, or another log has. As long as the header is the old one, the
    /// records count.
    pub(super) fn finish(&self, shared: &Shared) -> io::Result<Header> {
        self.header.write(&*self.log)?;
        self.log.sync_data()?;
        // Not before: with some of its records only, the log would bring back what the file had before.
        if self.log.len()? > self.longest() {
            self.log.set_len(self.log_bytes)?;
        }
        let is_left = |number| self.left.binary_search_by_key(&number, |&(left, _)| left).is_ok();
        let written = self.blocks.iter().filter(|&&(number, _)| !is_left(number));
        shared.pages().overlay.forget(written);
        Ok(self.header)
    }

    /// Says which ones it has no room for.
    fn write_pages(&self, file: &dyn DiskFile) -> io::Result<Vec<(u64, Arc<Block>)>> {
        let mut left = Vec::new();
        let is_next = |a: &(u64, Arc<Block>), b: &(u64, Arc<Block>)| a.0 + 1 == b.0;
        for run in self.blocks.chunk_by(is_next).flat_map(|run| run.chunks(PIECE_BYTES / BLOCK_BYTES)) {
            if write_run(file, run)? {
                continue;
            }
            // Some of them may have their place in the file.
            for one in run {
                if !write_run(file, std::slice::from_ref(one))? {
                    left.push(one.clone());
                }
            }
        }
        Ok(left)
    }
}

/// Writes blocks that are neighbours. Says whether there was room for them.
fn write_run(file: &dyn DiskFile, run: &[(u64, Arc<Block>)]) -> io::Result<bool> {
    let Some((first, _)) = run.first() else { return Ok(true) };
    let blocks: Vec<&[u8]> = run.iter().map(|(_, block)| &block[..]).collect();
    match file.write_at(first * BLOCK_BYTES as u64, &blocks.concat()) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(false),
        written => written.map(|()| true),
    }
}

/// What became of a log that was to be emptied.
pub(super) enum Drained {
    /// It is empty, and begins with this.
    Whole(Header),
    /// Some of its pages found no room, and it is the caller's to have it emptied.
    Partly(Box<Drain>),
}

/// What becomes of the log that is not written to.
enum State {
    Begun(Box<Drain>),
    UnderWay,
    Empty(Header),
    Left(Box<Drain>),
    Failed(io::ErrorKind),
    Stopped,
}

/// The thread that empties one log at a time. It begins with the first one.
pub(super) struct Drainer {
    shared: Arc<Shared>,
    shard: u32,
    turn: Arc<Turn>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

impl Turn {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.notify_all();
    }

    fn run(&self, shared: &Shared) {
        let mut state = self.state();
        loop {
            match std::mem::replace(&mut *state, State::UnderWay) {
                State::Begun(mut drain) => {
                    drop(state);
                    let outcome = drain.run(shared);
                    state = self.state();
                    // Who stopped it meanwhile need not know any more.
                    if !matches!(*state, State::Stopped) {
                        *state = match outcome {
                            Ok(()) if drain.left.is_empty() => State::Empty(drain.header),
                            Ok(()) => State::Left(drain),
                            Err(error) => State::Failed(error.kind()),
                        };
                        self.changed.notify_all();
                    }
                }
                State::Stopped => return,
                other => {
                    *state = other;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl Drainer {
    pub(super) fn new(shared: Arc<Shared>, shard: u32) -> Self {
        // Nobody waits before a log is begun or said to be empty.
        let turn = Turn { state: Mutex::new(State::UnderWay), changed: Condvar::new() };
        Self { shared, shard, turn: Arc::new(turn), thread: Mutex::new(None) }
    }

    fn thread(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log that is not written to has this header and no records.
    pub(super) fn is_empty(&self, header: Header) {
        self.turn.set(State::Empty(header));
    }

    /// Has a log emptied. The other one has been waited for.
    pub(super) fn begin(&self, drain: Drain) -> io::Result<()> {
        self.turn.set(State::Begun(Box::new(drain)));
        let mut thread = self.thread();
        if thread.is_none() {
            let (turn, shared) = (Arc::clone(&self.turn), Arc::clone(&self.shared));
            let run = move || {
                // A panic must not leave anybody waiting.
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| turn.run(&shared)));
                if outcome.is_err() {
                    turn.set(State::Failed(io::ErrorKind::Other));
                }
            };
            let name = format!("ds-pages-{}", self.shard);
            *thread = Some(thread::Builder::new().name(name).spawn(run)?);
        }
        Ok(())
    }

    /// What is left of the log that is not written to, if that is known by now.
    pub(super) fn take_left(&self) -> Option<Box<Drain>> {
        take_left(&mut self.turn.state())
    }

    /// Waits for the log that is not written to. It is the caller's then.
    pub(super) fn wait(&self) -> io::Result<Drained> {
        let mut state = self.turn.state();
        loop {
            if let Some(drain) = take_left(&mut state) {
                return Ok(Drained::Partly(drain));
            }
            match &*state {
                State::Empty(header) => return Ok(Drained::Whole(*header)),
                State::Failed(kind) => {
                    return Err(io::Error::new(
                        *kind,
                        "writing logged pages into the database's file failed",
                    ));
                }
                State::Stopped => return Err(io::Error::other("the page log is closed")),
                State::Begun(_) | State::UnderWay | State::Left(_) => {
                    state = self.turn.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Ends the thread, which finishes the log that it empties, if it has begun with it.
    pub(super) fn stop(&self) {
        self.turn.set(State::Stopped);
        if let Some(thread) = self.thread().take() {
            // It has told of its panic, if that is what ended it.
            let _ = thread.join();
        }
    }
}

fn take_left(state: &mut State) -> Option<Box<Drain>> {
    match std::mem::replace(state, State::UnderWay) {
        State::Left(drain) => Some(drain),
        other => {
            *state = other;
            None
        }
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        self.stop();
    }
}
