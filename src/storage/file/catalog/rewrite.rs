//! Writing the live part of a catalog into a new file.
//!
//! This takes long where there are many streams, so it is done on a thread of its own, while checkpoints go on being appended to
//! the old file. The thread reads what the old file had when it began, twice: first to learn which mention of each stream
//! is the last, then to write those. What was appended meanwhile it copies, and again, until little is left; the commit
//! thread copies that little, and puts the new file into its place.
//!
//! In RAM it has a number for each live stream, its account of the new file, and the producers of streams whose record
//! is yet to come.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::account::{RamMap, Roots};
use super::encoding::{Producer, StreamEntry, Update};
use super::reading::{RecordReader, decode, keep_last};
use super::writing::CatalogFile;
use crate::storage::StorageError;

/// Streams are written in records of about this size. Bytes.
const RECORD_BYTES: usize = 256 << 10;
/// The new file is synced each time so much was written: one sync of all of it would keep the disk from those of commits.
/// Bytes.
const SYNC_BYTES: u64 = 4 << 20;
/// What may be left for the commit thread to copy. Bytes.
const LEFT_BYTES_MAX: u64 = 256 << 10;
/// Times that the thread copies what was appended meanwhile. Appends that outrun it are not waited for.
const ROUNDS_MAX: usize = 16;

/// What both threads know.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Length of the old file, as far as it is durable.
    pub(super) durable_end: AtomicU64,
    /// Set when nobody waits for the outcome any more.
    pub(super) is_cancelled: AtomicBool,
}

/// A new file, and how far into the old one it reaches.
#[derive(Debug)]
pub(super) struct Rewritten {
    pub(super) draft: CatalogFile,
    /// Reads on from there.
    pub(super) rest: RecordReader,
}

/// Fills `draft` with what is live in the file that `old` reads. `Ok(None)` if it was cancelled.
pub(super) fn rewrite(
    old: RecordReader,
    mut draft: CatalogFile,
    shared: &Shared,
) -> Result<Option<Rewritten>, StorageError> {
    let mut survey = Survey::default();
    if !each_update(&mut old.clone(), shared, |update| survey.add(&update))? {
        return Ok(None);
    }
    let mut rest = old;
    let mut output = Output { draft: &mut draft, unsynced: 0 };
    let mut selection = Selection { last: survey.last, ..Selection::default() };
    if !each_update(&mut rest, shared, |update| selection.add(update, &mut output))? {
        return Ok(None);
    }
    selection.write(&mut output)?;
    drop(selection);
    output.draft.push_complete(survey.roots.segments(), survey.roots.counters)?;
    output.write()?;
    for _ in 0..ROUNDS_MAX {
        rest.extend(shared.durable_end.load(Ordering::Acquire));
        if rest.end() - rest.position() <= LEFT_BYTES_MAX {
            break;
        }
        while output.draft.push_moved(&mut rest)? {
            if output.draft.pending_bytes() >= RECORD_BYTES {
                output.write()?;
            }
            if shared.is_cancelled.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        output.write()?;
    }
    draft.sync()?;
    Ok(Some(Rewritten { draft, rest }))
}

/// Hands all records to `take`. Returns whether that was all of them, and nobody cancelled it.
fn each_update(
    reader: &mut RecordReader,
    shared: &Shared,
    mut take: impl FnMut(Update) -> Result<(), StorageError>,
) -> Result<bool, StorageError> {
    while let Some(content) = reader.next_durable()? {
        if shared.is_cancelled.load(Ordering::Relaxed) {
            return Ok(false);
        }
        take(decode(reader, content)?)?;
    }
    Ok(true)
}

/// Learns what is live. Mentions of streams are numbered in the order of the file.
#[derive(Debug, Default)]
struct Survey {
    mentions: u64,
    /// Of each live stream, the last mention.
    last: RamMap<u64>,
    roots: Roots,
}

impl Survey {
    fn add(&mut self, update: &Update) -> Result<(), StorageError> {
        for stream in &update.streams {
            self.last.insert(stream.id, self.mentions);
            self.mentions += 1;
        }
        for id in &update.removed {
            self.last.remove(id);
        }
        self.roots.change(&update.segments_added, &update.segments_removed, update.counters)
    }
}

/// Takes what is live, in the order of the file.
#[derive(Debug, Default)]
struct Selection {
    mentions: u64,
    last: RamMap<u64>,
    /// Producers of streams whose last mention is yet to come.
    producers: RamMap<Vec<Producer>>,
    chosen: Vec<StreamEntry>,
    chosen_bytes: usize,
}

impl Selection {
    fn add(&mut self, update: Update, output: &mut Output<'_>) -> Result<(), StorageError> {
        for mut stream in update.streams {
            let mention = self.mentions;
            self.mentions += 1;
            let Some(&last) = self.last.get(&stream.id) else { continue };
            if mention < last {
                if !stream.producers.is_empty() {
                    let detached = |(id, epoch, last): Producer| (Bytes::copy_from_slice(&id), epoch, last);
                    let producers = self.producers.entry(stream.id).or_default();
                    producers.extend(stream.producers.into_iter().map(detached));
                }
                continue;
            }
            if let Some(mut producers) = self.producers.remove(&stream.id) {
                producers.append(&mut stream.producers);
                keep_last(&mut producers);
                stream.producers = producers;
            }
            self.chosen_bytes += stream.record.len();
            self.chosen_bytes += stream.producers.iter().map(|(id, ..)| id.len()).sum::<usize>();
            self.chosen.push(stream);
            if self.chosen_bytes >= RECORD_BYTES {
                self.write(output)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, output: &mut Output<'_>) -> Result<(), StorageError> {
        self.chosen_bytes = 0;
        output.draft.push_base(&mem::take(&mut self.chosen))?;
        output.write()
    }
}

struct Output<'a> {
    draft: &'a mut CatalogFile,
    /// Bytes written since the last sync.
    unsynced: u64,
}

impl Output<'_> {
    fn write(&mut self) -> Result<(), StorageError> {
        self.unsynced += self.draft.pending_bytes() as u64;
        self.draft.write()?;
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.draft.sync()?;
        }
        Ok(())
    }
}
