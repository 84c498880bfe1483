//! The suite over HTTP. It starts our server anew for each measurement, drives it and its peers in turns, and reports.
//!
//! * `arguments`: the command line. `workloads`: what is done, a file for each family.
//! * `servers`: ours and the peers. `process`: what they take of the machine.
//! * `generator`: connections, threads and time. `response`: HTTP. `messages`: the check that each message comes once.
//! * `stats`, `measured`: from single latencies to the figures of a round, and the medians of rounds.
//! * `report`, `svg`: table, JSON, picture.

mod arguments;
mod generator;
mod measured;
mod messages;
mod process;
mod report;
mod response;
mod servers;
mod stats;
mod svg;
mod workloads;

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser as _;

use self::arguments::{Arguments, Other};
use self::process::Machine;
use self::report::{Report, RowReport, ServerReport};
use self::servers::{OwnConfig, OwnServer, Target};
use self::workloads::{Readings, Row, Run, Timing};

/// Enough for every workload, with a server that has as many open.
const OPEN_FILES: u64 = 65_536;

/// Runs the suite on `program`, our server, as a command line says.
pub(crate) fn main(line: impl IntoIterator<Item = OsString>, program: &Path) -> ExitCode {
    let arguments = Arguments::parse_from(line);
    // `cargo test --benches` runs this too, without the word, and wants no figures.
    if !arguments.bench {
        println!("run by cargo bench");
        return ExitCode::SUCCESS;
    }
    match run(arguments, program) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does what the arguments say; the report, if anything was measured.
fn run(mut arguments: Arguments, program: &Path) -> Result<Option<Report>, Box<dyn Error>> {
    if let Some(Other::Render { json, svg }) = &arguments.command {
        let report: Report = serde_json::from_slice(&fs::read(json)?)?;
        fs::write(svg, svg::render(&report))?;
        return Ok(None);
    }
    if arguments.quick {
        (arguments.seconds, arguments.warm_up, arguments.rounds) = (0.5, 0.2, 1);
    }
    process::raise_open_files(OPEN_FILES);
    let rows = workloads::rows(&arguments)?;
    if arguments.list {
        rows.iter().for_each(|row| println!("{}", row.name));
        return Ok(None);
    }
    let report = Suite::new(&arguments, program)?.run(&rows);
    print!("{}", report.table());
    if let Some(path) = &arguments.json {
        fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    if let Some(path) = &arguments.svg {
        fs::write(path, svg::render(&report))?;
    }
    Ok(Some(report))
}

/// One of the servers that take turns.
#[derive(Debug)]
enum Subject {
    Own(OwnConfig),
    Peer(String, Target),
}

impl Subject {
    fn name(&self) -> String {
        match self {
            Self::Own(config) => config.name(),
            Self::Peer(name, _) => name.clone(),
        }
    }
}

struct Suite<'a> {
    arguments: &'a Arguments,
    program: &'a Path,
    subjects: Vec<Subject>,
    data_dir_base: PathBuf,
    timing: Timing,
}

impl<'a> Suite<'a> {
    fn new(arguments: &'a Arguments, program: &'a Path) -> Result<Self, String> {
        let own = arguments.own()?.into_iter().map(Subject::Own);
        let peers = arguments.peers()?.into_iter().map(|(name, target)| Subject::Peer(name, target));
        let subjects: Vec<Subject> = own.chain(peers).collect();
        if subjects.is_empty() {
            return Err("there is no server to be driven".to_owned());
        }
        let Arguments { warm_up, seconds, threads, rounds, .. } = *arguments;
        if rounds == 0 || threads == 0 || seconds <= 0.0 || warm_up < 0.0 {
            return Err("there is nothing to be measured in no time, no rounds or no threads".to_owned());
        }
        let data_dir_base = arguments.data_dir_base.clone().unwrap_or_else(std::env::temp_dir);
        Ok(Self { arguments, program, subjects, data_dir_base, timing: Timing { warm_up, seconds, threads } })
    }

    fn run(&self, rows: &[Row]) -> Report {
        let peers = self.subjects.iter().filter(|subject| matches!(subject, Subject::Peer(..)));
        let mut report = Report {
            format: report::VERSION,
            date: date(),
            version: version(),
            machine: Machine::here(&self.data_dir_base),
            command: std::env::args().skip(1).collect(),
            seconds: self.timing.seconds,
            rounds: self.arguments.rounds,
            peers: peers.map(Subject::name).collect(),
            rows: Vec::new(),
        };
        for (index, row) in rows.iter().enumerate() {
            eprintln!("[{}/{}] {}", index + 1, rows.len(), row.name);
            let mut done = self.row(row);
            done.iter_mut().for_each(|row| row.conclude(&report.peers));
            report.rows.extend(done);
        }
        report
    }

    /// All rounds of a workload. It gives several rows if it measures at several points.
    fn row(&self, row: &Row) -> Vec<RowReport> {
        let rounds = if row.own_only { 1 } else { self.arguments.rounds };
        let mut reports: Vec<RowReport> = Vec::new();
        for round in 0..rounds {
            for turn in 0..self.subjects.len() {
                // Whoever goes first finds the machine as the row before left it.
                let subject = &self.subjects[(turn + round) % self.subjects.len()];
                if row.own_only && matches!(subject, Subject::Peer(..)) {
                    continue;
                }
                let outcome = self.measure(row, subject, round);
                self.enter(&mut reports, row, &subject.name(), outcome);
            }
        }
        reports
    }

    fn measure(&self, row: &Row, subject: &Subject, round: usize) -> std::io::Result<Readings> {
        let prefix = format!("{}-{}-{round}", row.name, std::process::id());
        let is_peer = matches!(subject, Subject::Peer(..));
        let run = |target| Run { target, prefix: &prefix, timing: self.timing, is_peer };
        let config = match subject {
            Subject::Peer(_, target) => return row.run(&run(target), None),
            Subject::Own(config) => config,
        };
        let mut server = OwnServer::start(self.program, config, &self.data_dir_base)?;
        let target = server.target().clone();
        let outcome = row.run(&run(&target), Some(&mut server));
        let explained =
            |error| std::io::Error::other(format!("{error}; the server logged: {}", server.last_words()));
        let mut readings = outcome.map_err(explained)?;
        let syncs = server.stop()?;
        for (_, measured) in &mut readings {
            if measured.mutations > 0 && !row.own_only {
                measured.syncs_per_append = syncs.map(|syncs| syncs as f64 / measured.mutations as f64);
            }
        }
        Ok(readings)
    }

    fn enter(
        &self,
        reports: &mut Vec<RowReport>,
        row: &Row,
        server: &str,
        outcome: std::io::Result<Readings>,
    ) {
        let (readings, failure) = match outcome {
            Ok(readings) => (readings, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        for (suffix, measured) in readings {
            let bad =
                if measured.errors.is_empty() { String::new() } else { format!("  {:?}", measured.errors) };
            eprintln!("    {server}{suffix}: {} {}{bad}", report::short(measured.value), row.unit);
            self.slot(reports, row, &suffix, server).rounds.push(measured);
        }
        if let Some(why) = failure {
            eprintln!("    {server}: failed: {why}");
            self.slot(reports, row, "", server).failures.push(why);
        }
    }

    /// Where a server's results of a row go; servers stand in the order in which they were named.
    fn slot<'r>(
        &self,
        reports: &'r mut Vec<RowReport>,
        row: &Row,
        suffix: &str,
        server: &str,
    ) -> &'r mut ServerReport {
        let name = format!("{}{suffix}", row.name);
        let at = reports.iter().position(|report| report.name == name).unwrap_or_else(|| {
            let servers = self.subjects.iter().map(|subject| ServerReport {
                server: subject.name(),
                median: None,
                rounds: Vec::new(),
                failures: Vec::new(),
                ratios: Vec::new(),
            });
            reports.push(RowReport {
                family: row.family.name().to_owned(),
                name,
                unit: row.unit.to_owned(),
                less_is_better: row.less_is_better,
                servers: servers.filter(|report| !row.own_only || !self.is_peer(&report.server)).collect(),
            });
            reports.len() - 1
        });
        let slot = reports[at].servers.iter_mut().find(|known| known.server == server);
        slot.expect("every server has a place in every row")
    }

    fn is_peer(&self, name: &str) -> bool {
        self.subjects.iter().any(|subject| matches!(subject, Subject::Peer(known, _) if known == name))
    }
}

/// Now, in UTC, to the minute.
fn date() -> String {
    let now = time::OffsetDateTime::now_utc();
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    now.format(format).expect("these parts are always known")
}

/// Of this package, with the commit if there is a working copy.
fn version() -> String {
    let describe = Command::new("git")
        .args(["describe", "--always", "--dirty"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    let commit = describe.ok().filter(|output| output.status.success());
    let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let package = env!("CARGO_PKG_VERSION");
    commit.map_or(package.to_owned(), |commit| format!("{package} ({commit})"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::measured::Measured;
    use super::*;

    /// Measures with these arguments; what went wrong, in which row. That nothing came to an end is not: the machine may be busy.
    pub(crate) fn errors_of(program: &Path, line: &[&str]) -> Vec<String> {
        let arguments = Arguments::parse_from([&["http", "--bench"], line].concat());
        let report = run(arguments, program).unwrap().unwrap();
        assert!(!report.rows.is_empty());
        let mut errors = Vec::new();
        for (row, server) in
            report.rows.iter().flat_map(|row| row.servers.iter().map(move |server| (row, server)))
        {
            errors.extend(server.failures.iter().map(|why| format!("{}: {why}", row.name)));
            let is_synced = |round: &Measured| round.mutations == 0 || round.syncs_per_append.is_some();
            if !row.name.starts_with("growth")
                && !server.server.starts_with("memory")
                && !server.rounds.iter().all(is_synced)
            {
                errors.push(format!("{}: no syncs are known", row.name));
            }
            let counted = server.rounds.iter().flat_map(|round| round.errors.keys());
            let counted = counted.filter(|what| !what.starts_with("nothing came"));
            errors.extend(counted.map(|what| format!("{}: {what}", row.name)));
        }
        errors
    }
}
