//! The limit on open files, which on many systems' defaults bounds connections before `limits.max_connections` does.

/// Raises the soft limit to the hard one, and says what it is now; `None` = there is none.
pub(super) fn raise() -> Option<u64> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        // Some systems cap a process below the hard limit that they report; then the soft one stays as it was.
        let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
        if raised { maximum } else { current }
    }
    #[cfg(not(unix))]
    None
}

/// How many of `max_connections` fit below the limit, beside `shards` shards. The rest is for listeners, runtimes and
/// storage: out of descriptors, those would fail where a connection only has to wait.
pub(super) fn connections_below(limit: Option<u64>, max_connections: usize, shards: usize) -> usize {
    let Some(open_files) = limit else { return max_connections };
    let room = for_connections(open_files, shards);
    if room < max_connections {
        tracing::warn!(open_files, connections = room, "limits.max_connections is lowered to fit ulimit -n");
    }
    room.min(max_connections)
}

/// How many of `max_connections` may be open while storage is being opened, when nobody knows yet what that needs.
pub(super) fn connections_while_opening(limit: Option<u64>, max_connections: usize) -> usize {
    let share = limit.map_or(usize::MAX, |open_files| usize::try_from(open_files / 4).unwrap_or(usize::MAX));
    max_connections.min(share)
}

fn for_connections(open_files: u64, shards: usize) -> usize {
    /// A core's runtime and listener, and a shard's files besides segments that are only kept open for speed.
    const OF_A_SHARD: u64 = 16;
    const RESERVED_MIN: u64 = 128;
    let needed = RESERVED_MIN.max(OF_A_SHARD * shards as u64);
    let reserved = (open_files / 8).max(needed).min(open_files / 2);
    usize::try_from(open_files - reserved).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_left_for_everything_that_is_not_a_connection() {
        assert_eq!(for_connections(100, 2), 50);
        assert_eq!(for_connections(1024, 2), 896);
        assert_eq!(for_connections(1024, 16), 768);
        assert_eq!(for_connections(80_000, 16), 70_000);
    }
}
