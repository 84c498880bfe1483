//! Which CPUs core threads run on: `server.pin_cores`.
//!
//! A core keeps its shard's state in one CPU's caches if it stays there. Whatever else a core starts (the threads that read
//! from disk on its behalf) would inherit its one CPU, and is given back those that it came from.

/// The CPUs that core threads are put on, one for each.
#[derive(Clone)]
pub(crate) struct Pinning(imp::Pinning);

impl Pinning {
    /// For the CPUs that the calling thread may run on, which are the process's unless somebody has seen to that.
    /// `None`, with a warning, where threads cannot be pinned.
    pub(crate) fn new() -> Option<Self> {
        match imp::Pinning::new() {
            Ok(pinning) => Some(Self(pinning)),
            Err(error) => {
                tracing::warn!(%error, "server.pin_cores has no effect: threads cannot be pinned here");
                None
            }
        }
    }

    /// Pins the calling thread to the CPU of core number `index`. There may be more cores than CPUs.
    pub(crate) fn pin(&self, index: usize) {
        if let Err(error) = self.0.pin(index) {
            tracing::warn!(core = index, %error, "server.pin_cores: the core could not be pinned");
        }
    }

    /// Lets the calling thread run on all of the CPUs.
    pub(crate) fn release(&self) {
        // It has been pinned by the same call, so there is nothing that could be wrong with this one.
        if let Err(error) = self.0.release() {
            tracing::warn!(%error, "server.pin_cores: a thread that is none of the cores stays pinned");
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
mod imp {
    use std::io;

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    #[derive(Clone)]
    pub(super) struct Pinning {
        allowed: CpuSet,
        /// Those of `allowed`, in order; at least one.
        cpus: Vec<usize>,
    }

    impl Pinning {
        pub(super) fn new() -> io::Result<Self> {
            let allowed = sched_getaffinity(None)?;
            let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
            if cpus.is_empty() {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Ok(Self { allowed, cpus })
        }

        pub(super) fn pin(&self, index: usize) -> io::Result<()> {
            let mut one = CpuSet::new();
            one.set(self.cpus[index % self.cpus.len()]);
            Ok(sched_setaffinity(None, &one)?)
        }

        pub(super) fn release(&self) -> io::Result<()> {
            Ok(sched_setaffinity(None, &self.allowed)?)
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
mod imp {
    use std::io;

    #[derive(Clone)]
    pub(super) struct Pinning;

    impl Pinning {
        pub(super) fn new() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn pin(&self, _index: usize) -> io::Result<()> {
            Ok(())
        }

        pub(super) fn release(&self) -> io::Result<()> {
            Ok(())
        }
    }
}
