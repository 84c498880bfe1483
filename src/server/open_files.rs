//! The limit on open files, which bounds connections before `limits.max_connections` does on most systems' defaults.

/// Descriptors that are needed besides those of connections: listeners, epoll, storage.
#[cfg(unix)]
const RESERVED: u64 = 128;

/// Raises the soft limit to the hard one, and warns if `max_connections` still does not fit.
#[cfg(unix)]
pub(super) fn raise_limit(max_connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // Some systems cap a process below the hard limit that they report; then the soft one stays as it was.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    let limit = if raised { maximum } else { current };
    if limit.is_some_and(|limit| limit < (max_connections as u64).saturating_add(RESERVED)) {
        tracing::warn!(
            open_files = limit,
            max_connections,
            "the limit on open files (ulimit -n) is too low for limits.max_connections"
        );
    }
}

/// There is no such limit.
#[cfg(not(unix))]
pub(super) fn raise_limit(_max_connections: usize) {}
