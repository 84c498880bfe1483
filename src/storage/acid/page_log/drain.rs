//! Emptying a log: its pages are written into the file, and then it is begun anew.

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
        Self { blocks, log, header, log_bytes }
    }

    /// A log that is longer had a record that was too large for it.
    fn longest(&self) -> u64 {
        2 * self.log_bytes.max(FILL_STEP)
    }

    /// The header goes last: as long as it is the old one, the records count.
    fn run(&self, shared: &Shared) -> io::Result<()> {
        self.write_pages(&*shared.file)?;
        shared.file.sync_data()?;
        self.header.write(&*self.log)?;
        self.log.sync_data()?;
        // Not before: with some of its records only, the log would bring back what the file had before.
        if self.log.len()? > self.longest() {
            self.log.set_len(self.log_bytes)?;
        }
        shared.pages().overlay.forget(&self.blocks);
        Ok(())
    }

    fn write_pages(&self, file: &dyn DiskFile) -> io::Result<()> {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let mut first = 0;
        for (number, block) in &self.blocks {
            let next = first + (piece.len() / BLOCK_BYTES) as u64;
            if !piece.is_empty() && (*number != next || piece.len() == PIECE_BYTES) {
                file.write_at(first * BLOCK_BYTES as u64, &piece)?;
                piece.clear();
            }
            if piece.is_empty() {
                first = *number;
            }
            piece.extend_from_slice(&block[..]);
        }
        if !piece.is_empty() {
            file.write_at(first * BLOCK_BYTES as u64, &piece)?;
        }
        Ok(())
    }
}

/// A log that is empty.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drained {
    pub(super) header: Header,
}

/// What becomes of the log that is not written to.
enum State {
    Begun(Box<Drain>),
    UnderWay,
    Empty(Drained),
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
                State::Begun(drain) => {
                    drop(state);
                    let outcome = drain.run(shared);
                    state = self.state();
                    // Who stopped it meanwhile need not know any more.
                    if !matches!(*state, State::Stopped) {
                        *state = match outcome {
                            Ok(()) => State::Empty(Drained { header: drain.header }),
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
        self.turn.set(State::Empty(Drained { header }));
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

    /// Waits for the log that is not written to. It is the caller's then.
    pub(super) fn wait(&self) -> io::Result<Drained> {
        let mut state = self.turn.state();
        loop {
            match &*state {
                State::Empty(drained) => return Ok(*drained),
                State::Failed(kind) => {
                    return Err(io::Error::new(
                        *kind,
                        "writing logged pages into the database's file failed",
                    ));
                }
                State::Stopped => return Err(io::Error::other("the page log is closed")),
                State::Begun(_) | State::UnderWay => {
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

impl Drop for Drainer {
    fn drop(&mut self) {
        self.stop();
    }
}
