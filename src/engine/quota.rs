//! Limits that hold over all shards. Counters only; what exceeds them is refused before it is staged.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::api::Full;

/// Shared by all shards of an engine.
#[derive(Debug)]
pub(crate) struct Quotas {
    /// `None` in disk modes, where RAM is bounded by eviction instead.
    memory_bytes_max: Option<u64>,
    memory_bytes: AtomicU64,
    streams_max: u64,
    streams: AtomicU64,
    disk_bytes_max: Option<u64>,
    /// One per shard, as last reported by its commit thread.
    disk_bytes: Vec<AtomicU64>,
}

impl Quotas {
    pub(crate) fn new(
        shards: usize,
        memory_bytes_max: Option<u64>,
        streams_max: u64,
        disk_bytes_max: Option<u64>,
    ) -> Self {
        Self {
            memory_bytes_max,
            memory_bytes: AtomicU64::new(0),
            streams_max,
            streams: AtomicU64::new(0),
            disk_bytes_max,
            disk_bytes: (0..shards).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Takes room for `payload` bytes, or says what is full. What was taken is given back with [`Self::release`].
    pub(crate) fn take_bytes(&self, payload: u64) -> Result<(), Full> {
        if let Some(max) = self.disk_bytes_max {
            let used: u64 = self.disk_bytes.iter().map(|shard| shard.load(Ordering::Relaxed)).sum();
            if used.saturating_add(payload) > max {
                return Err(Full::Disk);
            }
        }
        let Some(max) = self.memory_bytes_max else { return Ok(()) };
        if self.memory_bytes.fetch_add(payload, Ordering::Relaxed) + payload > max {
            self.memory_bytes.fetch_sub(payload, Ordering::Relaxed);
            return Err(Full::Memory);
        }
        Ok(())
    }

    /// Gives room back.
    pub(crate) fn release_bytes(&self, payload: u64) {
        if self.memory_bytes_max.is_some() {
            self.memory_bytes.fetch_sub(payload, Ordering::Relaxed);
        }
    }

    /// Counts one more stream, if there may be one.
    pub(crate) fn take_stream(&self) -> Result<(), Full> {
        if self.streams.fetch_add(1, Ordering::Relaxed) >= self.streams_max {
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

    /// Notes the disk use of one shard.
    pub(crate) fn set_disk_bytes(&self, shard: usize, bytes: u64) {
        self.disk_bytes[shard].store(bytes, Ordering::Relaxed);
    }
}
