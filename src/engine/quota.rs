//! Limits that hold over all shards. Counters only; what exceeds them is refused before it is staged.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::api::Full;
use crate::storage::{DiskUse, RoomRule};

/// What all shards together may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuotaLimits {
    /// `None` in disk modes, where RAM is bounded by eviction instead.
    pub(crate) memory_bytes_max: Option<u64>,
    pub(crate) streams_max: u64,
    pub(crate) disk_bytes_max: Option<u64>,
    pub(crate) room: RoomRule,
}

/// Shared by all shards of an engine.
#[derive(Debug)]
pub(crate) struct Quotas {
    limits: QuotaLimits,
    memory_bytes: AtomicU64,
    streams: AtomicU64,
    /// Free on the file system that all shards share, as the shard that looked last saw it.
    free_disk_bytes: AtomicU64,
    disks: Vec<ShardDisk>,
}

/// One shard's use of the disk. Bytes; all but `staged_bytes` as last reported by its commit thread.
///
/// On a cache line of its own, as cores write theirs with every event.
#[derive(Debug, Default)]
#[repr(align(64))]
struct ShardDisk {
    taken: AtomicU64,
    /// On its way to the disk, and in nothing that the commit thread reported yet.
    staged: AtomicU64,
    withheld: AtomicU64,
    reusable: AtomicU64,
}

impl Quotas {
    pub(crate) fn new(shards: usize, limits: QuotaLimits) -> Self {
        Self {
            limits,
            memory_bytes: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            free_disk_bytes: AtomicU64::new(u64::MAX),
            disks: (0..shards).map(|_| ShardDisk::default()).collect(),
        }
    }

    /// Whether the disk has room for `payload` bytes more of this shard, or what speaks against it.
    pub(crate) fn check_disk(&self, shard: usize, payload: u64) -> Result<(), Full> {
        let sum = |of: fn(&ShardDisk) -> &AtomicU64| -> u64 {
            self.disks.iter().map(|disk| of(disk).load(Ordering::Relaxed)).sum()
        };
        if let Some(max) = self.limits.disk_bytes_max {
            // In this order: what is on its way to the other may be in both, never in none.
            let staged = sum(|disk| &disk.staged);
            let used = staged.saturating_add(sum(|disk| &disk.taken));
            if used.saturating_add(payload) > max {
                return Err(Full::Disk);
            }
        }
        let RoomRule { min_free, ample } = self.limits.room;
        // Nobody wants room to stay: then only a write that found none is a reason.
        if min_free == 0 && self.disks[shard].withheld.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let room = self.disk_room(shard);
        if room < ample {
            let spoken_for = min_free.saturating_add(sum(|disk| &disk.staged)).saturating_add(payload);
            if room < spoken_for {
                return Err(Full::FileSystem);
            }
        }
        Ok(())
    }

    /// Bytes that this shard may take of its disk, those included that are to stay free.
    pub(crate) fn disk_room(&self, shard: usize) -> u64 {
        let disk = &self.disks[shard];
        let free = self.free_disk_bytes.load(Ordering::Relaxed);
        free.saturating_sub(disk.withheld.load(Ordering::Relaxed))
            .saturating_add(disk.reusable.load(Ordering::Relaxed))
    }

    /// Takes RAM for `payload` bytes, or says that it is full. What was taken is given back with
    /// [`Self::release_bytes`].
    pub(crate) fn take_bytes(&self, payload: u64) -> Result<(), Full> {
        let Some(max) = self.limits.memory_bytes_max else { return Ok(()) };
        if self.memory_bytes.fetch_add(payload, Ordering::Relaxed) + payload > max {
            self.memory_bytes.fetch_sub(payload, Ordering::Relaxed);
            return Err(Full::Memory);
        }
        Ok(())
    }

    /// Gives room back.
    pub(crate) fn release_bytes(&self, payload: u64) {
        if self.limits.memory_bytes_max.is_some() {
            self.memory_bytes.fetch_sub(payload, Ordering::Relaxed);
        }
    }

    /// Counts one more stream, if there may be one.
    pub(crate) fn take_stream(&self) -> Result<(), Full> {
        if self.streams.fetch_add(1, Ordering::Relaxed) >= self.limits.streams_max {
            self.streams.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Streams);
        }
        Ok(())
    }

    /// Counts `count` streams that exist already.
    pub(crate) fn add_streams(&self, count: u64) {
        self.streams.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts `count` streams less.
    pub(crate) fn release_streams(&self, count: u64) {
        self.streams.fetch_sub(count, Ordering::Relaxed);
    }

    /// Notes what one shard takes of its disk, and may take.
    pub(crate) fn set_disk_use(&self, shard: usize, used: DiskUse) {
        let disk = &self.disks[shard];
        disk.taken.store(used.taken, Ordering::Relaxed);
        let (free, withheld, reusable) =
            used.room.map_or((u64::MAX, 0, 0), |room| (room.free, room.withheld, room.reusable));
        disk.withheld.store(withheld, Ordering::Relaxed);
        disk.reusable.store(reusable, Ordering::Relaxed);
        self.free_disk_bytes.store(free, Ordering::Relaxed);
    }

    /// Notes how much of one shard is on its way to the disk.
    pub(crate) fn set_staged_bytes(&self, shard: usize, bytes: u64) {
        self.disks[shard].staged.store(bytes, Ordering::Relaxed);
    }
}
