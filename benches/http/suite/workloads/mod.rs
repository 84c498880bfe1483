//! What servers are made to do. A workload is one [`Row`]; rows belong to families, one file each.

mod append;
mod catch_up;
mod clients;
mod growth;
mod list;
mod live;
mod live_readers;
mod live_writer;
mod mixed;
mod pages;
mod small;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::list::rows;
use super::generator::{self, Client, Gate};
use super::measured::{Driven, Measured};
use super::process;
use super::servers::{OwnServer, Target};
use super::stats::{now_ns, ns};

/// Longest wait for readers to subscribe. Seconds.
const ARRIVAL_SECONDS_MAX: f64 = 120.0;
/// Longest wait, after the window, for what is under way. Seconds.
const DRAIN_SECONDS_MAX: f64 = 30.0;

/// Kinds of workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Appends.
    Append,
    /// Creation of streams.
    Create,
    /// HEAD.
    Head,
    /// GET of a short stream.
    Get,
    /// GET of a long stream, page by page.
    CatchUp,
    /// From an append to the long-poll that holds it.
    LongPoll,
    /// From an append to the SSE reader that holds it.
    Sse,
    /// From an append to very many SSE readers.
    FanOut,
    /// Memory of SSE readers to whom nothing happens.
    IdleSse,
    /// Everything at one time.
    Mixed,
    /// Appends and restarts as the data grow.
    Growth,
    /// Memory and restarts as the number of streams grows.
    ManyStreams,
}

impl Family {
    /// For the command line and the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Create => "create",
            Self::Head => "head",
            Self::Get => "get",
            Self::CatchUp => "catch-up",
            Self::LongPoll => "long-poll",
            Self::Sse => "sse",
            Self::FanOut => "fan-out",
            Self::IdleSse => "idle-sse",
            Self::Mixed => "mixed",
            Self::Growth => "growth",
            Self::ManyStreams => "many-streams",
        }
    }
}

/// One workload.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) family: Family,
    /// Begins with the family's name.
    pub(crate) name: String,
    /// Of what is shown as the result.
    pub(crate) unit: &'static str,
    /// A smaller result is a better one.
    pub(crate) less_is_better: bool,
    /// Only our server can do it, because it has to be stopped and started.
    pub(crate) own_only: bool,
    work: Work,
}

#[derive(Clone, Debug)]
enum Work {
    Append(append::Load),
    Create { connections: usize },
    Head { connections: usize },
    Get { connections: usize },
    CatchUp(catch_up::Load),
    LongPoll { pairs: usize },
    Sse { pairs: usize },
    FanOut(live::FanOut),
    IdleSse { connections: usize },
    Mixed,
    Growth { gigabytes: Vec<f64> },
    ManyStreams { streams: usize },
}

/// How long things take, and on how many threads. Seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) warm_up: f64,
    pub(crate) seconds: f64,
    pub(crate) threads: usize,
}

/// One measurement of one server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    pub(crate) target: &'a Target,
    /// All streams of this run are called this and a number.
    pub(crate) prefix: &'a str,
    pub(crate) timing: Timing,
    /// The server goes on after the run.
    pub(crate) is_peer: bool,
}

/// What a row gave: usually one result with an empty suffix to the row's name.
pub(crate) type Readings = Vec<(String, Measured)>;

impl Row {
    /// Does it. `own`: the server behind the run's target, if it is ours.
    ///
    /// # Errors
    /// If the server cannot be driven at all. Single failures are counted instead.
    pub(crate) fn run(&self, run: &Run<'_>, own: Option<&mut OwnServer>) -> io::Result<Readings> {
        let measured = match &self.work {
            Work::Append(load) => load.run(run)?,
            Work::Create { connections } => small::create(run, *connections)?,
            Work::Head { connections } => small::head(run, *connections)?,
            Work::Get { connections } => small::get(run, *connections)?,
            Work::CatchUp(load) => load.run(run)?,
            Work::LongPoll { pairs } => live::long_poll(run, *pairs)?,
            Work::Sse { pairs } => live::sse(run, *pairs)?,
            Work::FanOut(load) => load.run(run)?,
            Work::IdleSse { connections } => live::idle(run, *connections)?,
            Work::Mixed => mixed::run(run)?,
            Work::Growth { gigabytes } => return growth::growth(run, own.expect("only ours"), gigabytes),
            Work::ManyStreams { streams } => {
                return growth::many_streams(run, own.expect("only ours"), *streams);
            }
        };
        Ok(vec![(String::new(), measured)])
    }
}

impl Run<'_> {
    /// Connects the clients, waits for the readers among them, and measures for as long as the run says.
    fn drive(&self, clients: Vec<Box<dyn Client>>, gate: &Arc<Gate>) -> io::Result<Driven> {
        let running = generator::start(self.target.address, clients, self.timing.threads, gate)?;
        if !wait_for_readers(gate) {
            gate.give_up_at(now_ns());
            let errors = running.join()?.errors;
            let (arrived, expected) = gate.arrivals();
            return Err(io::Error::other(format!(
                "only {arrived} of {expected} readers got through: {errors:?}"
            )));
        }
        let from = now_ns() + ns(self.timing.warm_up);
        let until = from + ns(self.timing.seconds);
        gate.give_up_at(until + ns(DRAIN_SECONDS_MAX));
        gate.open(from, until);
        if let Some(pid) = self.target.pid {
            process::reset_peak(pid);
        }
        sleep_until(from);
        let (before, own_before) = (self.usage()?, process::usage(std::process::id())?);
        sleep_until(until);
        let (after, own_after) = (self.usage()?, process::usage(std::process::id())?);
        let stats = running.join()?;
        let seconds = self.timing.seconds;
        let generator_busy =
            (own_after.cpu_seconds - own_before.cpu_seconds) / (seconds * self.timing.threads as f64);
        Ok(Driven { stats, seconds, before, after, generator_busy })
    }

    fn usage(&self) -> io::Result<Option<process::Usage>> {
        self.target.pid.map(process::usage).transpose()
    }
}

fn wait_for_readers(gate: &Gate) -> bool {
    let deadline = now_ns() + ns(ARRIVAL_SECONDS_MAX);
    loop {
        if gate.is_decided() || now_ns() > deadline {
            let (arrived, expected) = gate.arrivals();
            return arrived >= expected;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn sleep_until(at: u64) {
    std::thread::sleep(Duration::from_nanos(at.saturating_sub(now_ns())));
}
