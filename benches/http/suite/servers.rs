//! The servers that are driven: ours, started for each measurement, and peers, which somebody else has started.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// What the server prints before its URL once it takes requests.
const READY_LINE: &str = "listening on ";
/// What it logs when its data directory is closed, with the number of its syncs.
const SYNCS_KEY: &str = "disk.syncs=";
/// Where streams live unless told otherwise.
const BASE_PATH: &str = "/v1/stream";
/// Room for what a workload appends in memory mode, and in one stream. Bytes.
const MEMORY_BYTES: &str = "64GiB";
/// How long a server may take to write everything down.
const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// Where requests go.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Of the server.
    pub(crate) address: SocketAddr,
    /// Value of `Host`.
    pub(crate) host: String,
    /// Path of the streams, without a slash at the end.
    pub(crate) base: String,
    /// The server's process, if it is known.
    pub(crate) pid: Option<u32>,
}

impl Target {
    /// Reads a URL like `http://127.0.0.1:4437` or `http://localhost:8080/streams`.
    ///
    /// # Errors
    /// In one line for a person.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        let rest =
            url.strip_prefix("http://").ok_or_else(|| format!("{url:?} does not begin with http://"))?;
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let with_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let mut addresses =
            with_port.to_socket_addrs().map_err(|error| format!("{url:?} cannot be resolved: {error}"))?;
        let address = addresses.next().ok_or_else(|| format!("{url:?} has no address"))?;
        let path = path.trim_end_matches('/');
        let base = if path.is_empty() { BASE_PATH } else { path };
        Ok(Self { address, host: host.to_owned(), base: base.to_owned(), pid: None })
    }
}

/// How our server is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnConfig {
    /// `storage.mode`.
    pub(crate) mode: String,
    /// `storage.acid_shard_count`.
    pub(crate) shards: usize,
    /// Further variables.
    pub(crate) environment: Vec<(String, String)>,
}

impl OwnConfig {
    /// As it is called in the report.
    pub(crate) fn name(&self) -> String {
        format!("{} × {}", self.mode, self.shards)
    }
}

/// Our server, running. It is killed, and its directory removed, when this is dropped.
#[derive(Debug)]
pub(crate) struct OwnServer {
    program: PathBuf,
    config: OwnConfig,
    directory: TempDir,
    child: Child,
    target: Target,
}

impl OwnServer {
    /// Starts `program` with an empty data directory below `base`, and returns when it takes requests.
    ///
    /// # Errors
    /// If it cannot be started, or ends before it takes requests; with what it wrote to its log.
    pub(crate) fn start(program: &Path, config: &OwnConfig, base: &Path) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("durable-streams-bench-").tempdir_in(base)?;
        let (child, target) = launch(program, config, directory.path())?;
        Ok(Self { program: program.to_owned(), config: config.clone(), directory, child, target })
    }

    /// Where it listens.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// The last line that it logged.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        log.lines().next_back().unwrap_or("nothing").to_owned()
    }

    /// Bytes that its files take.
    pub(crate) fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.directory.path().join("data"))
    }

    /// Ends it with `signal` and starts it again on its data; how long it took until it took requests.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) fn restart(&mut self, signal: Signal) -> io::Result<Duration> {
        self.end(signal)?;
        let begun = Instant::now();
        (self.child, self.target) = launch(&self.program, &self.config, self.directory.path())?;
        Ok(begun.elapsed())
    }

    /// Stops it in order. The number of syncs of its files since it was started, if it has any files.
    ///
    /// # Errors
    /// If it does not end.
    pub(crate) fn stop(mut self) -> io::Result<Option<u64>> {
        self.end(Signal::TERM)?;
        let log = fs::read_to_string(self.directory.path().join("log"))?;
        let syncs = log.rfind(SYNCS_KEY).map(|at| &log[at + SYNCS_KEY.len()..]);
        Ok(syncs.and_then(|rest| rest.split_whitespace().next()?.parse().ok()))
    }

    fn end(&mut self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("it is a process");
        kill_process(pid, signal)?;
        let deadline = Instant::now() + STOP_PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Err(io::Error::other("the server does not stop"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        // It may have ended already, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(program: &Path, config: &OwnConfig, directory: &Path) -> io::Result<(Child, Target)> {
    let log = directory.join("log");
    let mut command = Command::new(program);
    // Neither files nor variables of whoever runs this.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("DS_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command
        .current_dir(directory)
        .env("DS_SERVER__BIND_ADDRESS", "127.0.0.1:0")
        .env("DS_SERVER__SSE_RECONNECT_INTERVAL_SECS", "0")
        .env("DS_STORAGE__MODE", &config.mode)
        .env("DS_STORAGE__ACID_SHARD_COUNT", config.shards.to_string())
        .env("DS_STORAGE__DATA_DIR", directory.join("data"))
        .env("DS_LIMITS__MAX_STREAMS", "100000000");
    if config.mode == "memory" {
        command
            .env("DS_LIMITS__MAX_MEMORY_BYTES", MEMORY_BYTES)
            .env("DS_LIMITS__MAX_STREAM_BYTES", MEMORY_BYTES);
    }
    let mut child = command
        .envs(config.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&log)?)
        .spawn()?;
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
    while output.read_line(&mut line)? > 0 {
        if let Some(url) = line.trim_end().strip_prefix(READY_LINE) {
            let mut target = Target::parse(url).map_err(io::Error::other)?;
            target.pid = Some(child.id());
            return Ok((child, target));
        }
        line.clear();
    }
    child.wait()?;
    let log = fs::read_to_string(&log).unwrap_or_default();
    Err(io::Error::other(format!("the server ended at once: {}", log.trim_end())))
}

/// Bytes of disk below a directory; files that vanish meanwhile count as nothing.
fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_peers_are_taken_apart() {
        let target = Target::parse("http://127.0.0.1:4437").unwrap();
        assert_eq!((target.base.as_str(), target.address.port()), ("/v1/stream", 4437));
        let target = Target::parse("http://127.0.0.1/streams/").unwrap();
        assert_eq!((target.base.as_str(), target.address.port()), ("/streams", 80));
        assert!(Target::parse("https://127.0.0.1").is_err());
    }
}
