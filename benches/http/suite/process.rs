//! What processes take, from `/proc`, and the limit on open files.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Of what is to be open besides connections.
const OPEN_FILES_RESERVED: u64 = 200;

/// What a process has taken so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// User and system time of all its threads, ended ones included. Seconds.
    pub(crate) cpu_seconds: f64,
    /// Most memory that it had at one time, since [`reset_peak`] if that works. Bytes.
    pub(crate) peak_bytes: u64,
    /// Memory that it has now. Bytes.
    pub(crate) resident_bytes: u64,
}

/// What a process has taken so far.
///
/// # Errors
/// If there is no such process, or it is somebody else's.
pub(crate) fn usage(pid: u32) -> io::Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Usage {
        cpu_seconds: cpu_seconds(pid)?,
        peak_bytes: kib_in(&status, "VmHWM:"),
        resident_bytes: kib_in(&status, "VmRSS:"),
    })
}

fn kib_in(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}

fn cpu_seconds(pid: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may have anything in it; the fields after it are numbered from 3 on.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: f64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
}

/// Makes the peak of a process start anew at what it has now. Where that is not allowed it stays that of its whole life.
pub(crate) fn reset_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// Raises the limit on open files of this process and those that it starts, as far as it may.
pub(crate) fn raise_open_files(wanted: u64) {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let higher = maximum.map(|maximum| maximum.max(wanted));
    if setrlimit(Resource::Nofile, Rlimit { current: higher, maximum: higher }).is_err() {
        // Only root may raise the hard limit; below it is better than nothing.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// How many connections this process may have open, and a server with the same limit that keeps an eighth for itself.
pub(crate) fn connections_max() -> usize {
    let open_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from((open_files - open_files / 8).saturating_sub(OPEN_FILES_RESERVED)).unwrap_or(usize::MAX)
}

/// The machine, for the report.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Machine {
    /// As the kernel names it.
    pub(crate) cpu: String,
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// All memory. Bytes.
    pub(crate) memory_bytes: u64,
    /// Kernel version.
    pub(crate) kernel: String,
    /// File system of the data directories.
    pub(crate) file_system: String,
    /// Processes that wanted to run in the minute before the start: more than 0.5 says that the figures are worth little.
    pub(crate) load_before: f64,
}

impl Machine {
    /// This one; `data_dir` is where servers keep their files.
    pub(crate) fn here(data_dir: &std::path::Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu_info = read("/proc/cpuinfo");
        let cpu = cpu_info.lines().find(|line| line.starts_with("model name"));
        let cpu = cpu.and_then(|line| line.split_once(':')).map_or("unknown", |(_, name)| name.trim());
        Self {
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: kib_in(&read("/proc/meminfo"), "MemTotal:"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system(&read("/proc/self/mounts"), data_dir),
            load_before: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(0.0),
        }
    }
}

/// Type of the file system with the longest mount point that `path` is below.
fn file_system(mounts: &str, path: &std::path::Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let above = mounts.filter(|(point, _)| path.starts_with(point));
    above.max_by_key(|(point, _)| point.len()).map_or("unknown", |(_, kind)| kind).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_taken_something() {
        let mut sum = 0_u64;
        let enough = |usage: Usage| usage.cpu_seconds > 0.0;
        while !enough(usage(std::process::id()).unwrap()) {
            sum = sum.wrapping_add((0..1_000_000_u64).map(std::hint::black_box).sum::<u64>());
        }
        std::hint::black_box(sum);
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.resident_bytes > 1 << 16 && usage.peak_bytes >= usage.resident_bytes / 2, "{usage:?}");
    }

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount() {
        let mounts = "a / ext4 rw 0 0\nb /proc proc rw 0 0\nc /proc/sys tmpfs rw 0 0\n";
        assert_eq!(file_system(mounts, "/proc/self".as_ref()), "proc");
        assert_eq!(file_system(mounts, "/nowhere/at/all".as_ref()), "ext4");
    }
}
