//! How much room a log has on its disk, and when the commit thread looks.
//!
//! Room is what the file system has left, and what the log's own files take without needing it: pages of removed streams
//! are written again before a file grows. Both are estimates. What is certain is only that a write has failed for want of
//! room; from then on, room is what was freed since.

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use super::CommitLog;

/// Longest time for which commits go by, while room is ample, without a look at the file system …
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// … and most bytes that they may write meanwhile.
const LOOK_BYTES: u64 = 4 << 20;
/// A disk with less free than this is full when a write says so, whatever else it may have. Bytes.
const HIDDEN_MIN: u64 = 4 << 20;
/// Pause between two looks of an idle commit thread, as long as room is not ample.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// A disk that is full though its file system has room (a quota, most likely) is tried again after this time: that there
/// is room again could not be seen.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Tells the bytes that are free for this process on the file system of a log. Called on commit threads.
#[derive(Clone)]
pub struct FreeSpaceProbe(Arc<dyn Fn() -> io::Result<u64> + Send + Sync>);

impl FreeSpaceProbe {
    /// A probe that asks `look`.
    pub fn new(look: impl Fn() -> io::Result<u64> + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }

    /// Asks it. Bytes.
    ///
    /// # Errors
    /// Whatever keeps the file system from being asked.
    pub fn free_bytes(&self) -> io::Result<u64> {
        (self.0)()
    }
}

impl fmt::Debug for FreeSpaceProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FreeSpaceProbe")
    }
}

/// Room of one log. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskRoom {
    /// Free on the file system, for all logs on it.
    pub free: u64,
    /// Part of `free` that is known not to be had, or is to be left to deletions.
    pub withheld: u64,
    /// Taken by the log's own files, and not needed by what they hold.
    pub reusable: u64,
}

impl DiskRoom {
    /// What the log may take.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.free.saturating_sub(self.withheld).saturating_add(self.reusable)
    }
}

/// What a log takes of its disk, and what it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskUse {
    /// See [`CommitLog::disk_bytes`].
    pub(crate) taken: u64,
    /// `None` where there is no disk, nobody can tell, or nobody asks.
    pub(crate) room: Option<DiskRoom>,
}

/// From which room on something follows. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoomRule {
    /// `storage.min_free_disk_bytes`.
    pub(crate) min_free: u64,
    /// Above this, whatever may be under way leaves [`Self::min_free`].
    pub(crate) ample: u64,
}

impl RoomRule {
    /// For that many shards, each of which has at most `staged_bytes_max`, and one request more, on its way to the disk.
    pub(crate) fn new(min_free: u64, shards: usize, staged_bytes_max: u64) -> Self {
        let under_way = staged_bytes_max.saturating_mul(2).saturating_mul(shards as u64 + 1);
        Self { min_free, ample: min_free.saturating_add(under_way) }
    }
}

/// What room there was when a write found none.
#[derive(Clone, Copy, Debug)]
struct RanOut {
    free: u64,
    withheld: u64,
    reusable: u64,
    at: Instant,
}

/// The commit thread's idea of its log's room.
#[derive(Debug)]
pub(crate) struct RoomWatch {
    shard: usize,
    rule: RoomRule,
    room: Option<DiskRoom>,
    looked: Option<Instant>,
    bytes_since: u64,
    ran_out: Option<RanOut>,
    /// A write found no room, and nobody has looked since.
    is_out: bool,
    is_low: bool,
}

impl RoomWatch {
    pub(crate) fn new(shard: usize, rule: RoomRule) -> Self {
        Self {
            shard,
            rule,
            room: None,
            looked: None,
            bytes_since: 0,
            ran_out: None,
            is_out: false,
            is_low: false,
        }
    }

    /// As last seen.
    pub(crate) fn room(&self) -> Option<DiskRoom> {
        self.room
    }

    /// That many bytes were committed to `log`: looks at it, if it is time.
    pub(crate) fn wrote(&mut self, bytes: usize, log: &dyn CommitLog) {
        self.bytes_since = self.bytes_since.saturating_add(bytes as u64);
        let is_due = self.bytes_since >= LOOK_BYTES
            || self.room.is_some_and(|room| room.bytes() < self.rule.ample)
            || self.looked.is_none_or(|looked| looked.elapsed() >= LOOK_INTERVAL);
        if is_due {
            self.look(log);
        }
    }

    /// A write to the log found no room. The next look tells what that looks like.
    pub(crate) fn ran_out(&mut self) {
        self.is_out = true;
    }

    /// Looks at once.
    pub(crate) fn look(&mut self, log: &dyn CommitLog) {
        self.looked = Some(Instant::now());
        self.bytes_since = 0;
        self.room = log.disk_room().map(|room| self.corrected(room));
        let is_low = self.room.is_some_and(|room| room.bytes() < self.rule.min_free);
        if let Some(room) = self.room
            && is_low != self.is_low
        {
            let (shard, room) = (self.shard, room.bytes());
            if is_low {
                tracing::warn!(
                    ds.shard = shard,
                    room,
                    "the disk is almost full: creations and appends are refused"
                );
            } else {
                tracing::info!(
                    ds.shard = shard,
                    room,
                    "there is room on the disk again: creations and appends are taken"
                );
            }
        }
        self.is_low = is_low;
    }

    fn corrected(&mut self, room: DiskRoom) -> DiskRoom {
        if std::mem::take(&mut self.is_out) {
            self.ran_out = Some(RanOut {
                free: room.free,
                withheld: room.withheld,
                reusable: room.reusable,
                at: Instant::now(),
            });
        }
        let hidden_min = self.rule.min_free.max(HIDDEN_MIN);
        let is_hidden = |out: &RanOut| out.free >= hidden_min && out.at.elapsed() >= RETRY_AFTER;
        // There was room to set some aside again.
        let is_over = |out: &RanOut| room.withheld < out.withheld;
        self.ran_out = self.ran_out.filter(|out| !is_hidden(out) && !is_over(out));
        match self.ran_out {
            Some(out) => DiskRoom {
                free: room.free,
                // Not 0, even if nothing is free: that would say that nothing is known.
                withheld: out.free.max(room.withheld).max(1),
                reusable: room.reusable.saturating_sub(out.reusable),
            },
            None => room,
        }
    }

    /// How long an idle commit thread waits before it looks again; `None` = until it writes.
    pub(crate) fn pause(&self) -> Option<Duration> {
        self.room.filter(|room| room.bytes() < self.rule.ample).map(|_| IDLE_INTERVAL)
    }
}
