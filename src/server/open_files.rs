//! The limit on open files, which on many systems' defaults bounds connections before `limits.max_connections` does.

/// Raises the soft limit to the hard one, and returns how many of `max_connections` fit below it. The rest is for
/// listeners, runtimes and storage: out of descriptors, those would fail where a connection only has to wait.
#[cfg(unix)]
pub(super) fn make_room(max_connections: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Some systems cap a process below the hard limit that they report; then the soft one stays as it was.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let Some(open_files) = (if raised { maximum } else { current }) else { return max_connections };
    let room = for_connections(open_files);
    if room < max_connections {
        tracing::warn!(open_files, connections = room, "limits.max_connections is lowered to fit ulimit -n");
    }
    room.min(max_connections)
}

/// There is no such limit.
#[cfg(not(unix))]
pub(super) fn make_room(max_connections: usize) -> usize {
    max_connections
}

#[cfg(unix)]
fn for_connections(open_files: u64) -> usize {
    /// Enough for a few shards; with many of them the eighth counts.
    const RESERVED_MIN: u64 = 128;
    let reserved = (open_files / 8).max(RESERVED_MIN).min(open_files / 2);
    usize::try_from(open_files - reserved).unwrap_or(usize::MAX)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_left_for_everything_that_is_not_a_connection() {
        assert_eq!(for_connections(100), 50);
        assert_eq!(for_connections(1024), 896);
        assert_eq!(for_connections(80_000), 70_000);
    }
}
