//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::servers::{OwnConfig, Target};
use super::workloads::Family;

/// Drives durable-streams-server over loopback, beside other servers if told to
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo bench --bench http --", bin_name = "cargo bench --bench http --")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Other>,

    /// A run of about a minute that shows whether everything works; its figures mean nothing
    #[arg(long)]
    pub(crate) quick: bool,

    /// Families of workloads, or single ones by name
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub(crate) workloads: Vec<String>,

    /// Print the names of all workloads, and stop
    #[arg(long)]
    pub(crate) list: bool,

    /// Storage modes of our server
    #[arg(long, value_delimiter = ',', default_values_t = ["memory".to_owned(), "acid".to_owned()], value_name = "MODE,…")]
    pub(crate) modes: Vec<String>,

    /// Numbers of shards of our server [default: one a core]
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub(crate) shards: Vec<usize>,

    /// A further setting of our server
    #[arg(long, value_name = "DS_SECTION__KEY=VALUE")]
    pub(crate) env: Vec<String>,

    /// Another Durable Streams server, beside ours
    #[arg(long, value_name = "NAME=URL")]
    pub(crate) peer: Vec<String>,

    /// Its process, to read what it takes
    #[arg(long, value_name = "NAME=PID")]
    pub(crate) peer_pid: Vec<String>,

    /// Leave our server out
    #[arg(long)]
    pub(crate) peers_only: bool,

    /// How long each measurement counts
    #[arg(long, default_value_t = 5.0)]
    pub(crate) seconds: f64,

    /// How long each runs before that
    #[arg(long, default_value_t = 1.0)]
    pub(crate) warm_up: f64,

    /// Rounds, of which the medians are shown; servers alternate within a round
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,

    /// Threads of the load generator
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,

    /// Appends with all combinations of these instead of the usual ones: connections
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub(crate) connections: Vec<usize>,

    /// Streams, of such combinations; 0 = one a connection
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub(crate) streams: Vec<usize>,

    /// Bytes, of such combinations
    #[arg(long, value_delimiter = ',', value_name = "BYTES,…")]
    pub(crate) sizes: Vec<usize>,

    /// bytes or json, of such combinations
    #[arg(long, value_delimiter = ',', value_name = "TYPE,…")]
    pub(crate) types: Vec<String>,

    /// yes or no, of such combinations
    #[arg(long, value_delimiter = ',', value_name = "YES,NO")]
    pub(crate) producers: Vec<String>,

    /// Idle SSE connections
    #[arg(long, default_value_t = 15_000, value_name = "N")]
    pub(crate) idle_connections: usize,

    /// Measure the cost of growth at these sizes on disk; takes as much room and some time
    #[arg(long, value_delimiter = ',', value_name = "GB,…")]
    pub(crate) growth: Vec<f64>,

    /// Measure memory and restart with so many streams of one byte each
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub(crate) many_streams: Vec<usize>,

    /// Where data directories are made [default: the system's temporary directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir_base: Option<PathBuf>,

    /// Write everything that was measured
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Write a picture
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,

    /// Cargo says this
    #[arg(long, global = true, hide = true)]
    pub(crate) bench: bool,
}

/// What else the program does.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Other {
    /// Draw the picture of an earlier run
    Render {
        /// What --json wrote
        json: PathBuf,
        /// The picture
        svg: PathBuf,
    },
}

impl Arguments {
    /// Our servers.
    ///
    /// # Errors
    /// In one line for a person.
    pub(crate) fn own(&self) -> Result<Vec<OwnConfig>, String> {
        if self.peers_only {
            return Ok(Vec::new());
        }
        let environment = self.env.iter().map(|text| pair("--env", text)).collect::<Result<Vec<_>, _>>()?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let shards = if self.shards.is_empty() { vec![cores] } else { self.shards.clone() };
        let with = |mode: &String, shards: &usize| OwnConfig {
            mode: mode.clone(),
            shards: *shards,
            environment: environment.clone(),
        };
        Ok(self.modes.iter().flat_map(|mode| shards.iter().map(move |shards| with(mode, shards))).collect())
    }

    /// The others, by name.
    ///
    /// # Errors
    /// In one line for a person.
    pub(crate) fn peers(&self) -> Result<Vec<(String, Target)>, String> {
        let mut peers = Vec::new();
        for text in &self.peer {
            let (name, url) = pair("--peer", text)?;
            if peers.iter().any(|(known, _)| *known == name) {
                return Err(format!("--peer: there are two called {name}"));
            }
            peers.push((name, Target::parse(&url)?));
        }
        for text in &self.peer_pid {
            let (name, pid) = pair("--peer-pid", text)?;
            let pid = pid.parse().map_err(|_| format!("--peer-pid: {pid:?} is not a process id"))?;
            let peer = peers.iter_mut().find(|(known, _)| *known == name);
            peer.ok_or_else(|| format!("--peer-pid: there is no --peer {name}"))?.1.pid = Some(pid);
        }
        Ok(peers)
    }

    /// Whether a workload was asked for.
    pub(crate) fn wants(&self, family: Family, name: &str) -> bool {
        let named = |wanted: &String| wanted == family.name() || wanted == name;
        self.workloads.is_empty() || self.workloads.iter().any(named)
    }
}

fn pair(option: &str, text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{option}: {text:?} has no ="))?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn servers_are_read_from_the_line() {
        let line = [
            "http",
            "--modes",
            "acid,memory",
            "--shards",
            "1,4",
            "--peer",
            "a=http://127.0.0.1:1",
            "--peer-pid",
            "a=7",
            "--env",
            "DS_A__B=c",
            "--bench",
        ];
        let arguments = Arguments::parse_from(line);
        // Cargo says it at the end, behind whatever there is.
        let render = Arguments::try_parse_from(["http", "render", "run.json", "run.svg", "--bench"]);
        assert!(matches!(render.unwrap().command, Some(Other::Render { .. })));
        let names: Vec<String> = arguments.own().unwrap().iter().map(OwnConfig::name).collect();
        assert_eq!(names, ["acid × 1", "acid × 4", "memory × 1", "memory × 4"]);
        assert_eq!(arguments.peers().unwrap()[0].1.pid, Some(7));
        let twice = Arguments::parse_from([
            "http",
            "--peer",
            "a=http://127.0.0.1:1",
            "--peer",
            "a=http://127.0.0.1:2",
        ]);
        assert_eq!(twice.peers().unwrap_err(), "--peer: there are two called a");
        let wrong = Arguments::parse_from(["http", "--peer-pid", "b=7"]);
        assert_eq!(wrong.peers().unwrap_err(), "--peer-pid: there is no --peer b");
    }
}
