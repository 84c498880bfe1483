//! The load generator: threads that wait with epoll, each with its share of the connections.
//!
//! It has to be cheap, because it shares the cores with the server: requests are prebuilt bytes, responses are parsed for
//! their framing only, and bodies that nobody looks at are thrown away inside the kernel.
//!
//! A connection belongs to a [`Client`], which says what to send next and is told what came. Time goes like this:
//!
//! ```text
//! connect all ── readers subscribe ── gate opens ── warm-up ── window: counted ── stop ── drain: what is under way ends
//! ```

mod client;
mod connection;
mod gate;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;

pub(crate) use self::client::{Answer, Client, Request, Step};
use self::connection::{Connection, Progress};
pub(crate) use self::gate::Gate;
use super::stats::{Stats, now_ns};

/// A thread looks at the gate this often when nothing happens. Milliseconds.
const LOOK_MS: u64 = 5;
const READ_BUFFER_BYTES: usize = 256 << 10;
const EVENTS_MAX: usize = 1024;
/// Clients that finish by themselves are given up when nothing has come for so long.
const SILENCE_MAX_NS: u64 = 60_000_000_000;

/// Clients and their connections, on threads of their own.
pub(crate) struct Running {
    threads: Vec<thread::JoinHandle<io::Result<Stats>>>,
}

impl Running {
    /// Waits for the threads, and adds up what they counted.
    pub(crate) fn join(self) -> io::Result<Stats> {
        let mut all = Stats::new();
        for thread in self.threads {
            all.merge(&thread.join().expect("a thread of the generator has panicked")?);
        }
        Ok(all)
    }
}

/// Connects each client to `address` and starts. Returns when all are connected.
///
/// # Errors
/// If threads, descriptors or connections are refused.
pub(crate) fn start(
    address: SocketAddr,
    clients: Vec<Box<dyn Client>>,
    threads: usize,
    gate: &Arc<Gate>,
) -> io::Result<Running> {
    let threads = threads.clamp(1, clients.len().max(1));
    let mut shares: Vec<Vec<Box<dyn Client>>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, client) in clients.into_iter().enumerate() {
        shares[index % threads].push(client);
    }
    let mut loops = Vec::new();
    for share in shares {
        loops.push(EventLoop::connect(address, share, Arc::clone(gate))?);
    }
    let spawn =
        |mut one: EventLoop| thread::Builder::new().name("bench-load".to_owned()).spawn(move || one.run());
    Ok(Running { threads: loops.into_iter().map(spawn).collect::<io::Result<_>>()? })
}

/// Runs clients that finish by themselves, and waits until they have.
///
/// # Errors
/// As [`start`], if any of them met an error, and if the server says nothing any more.
pub(crate) fn run_to_end(address: SocketAddr, clients: Vec<Box<dyn Client>>) -> io::Result<Stats> {
    let gate = Gate::new(0);
    gate.open(u64::MAX, u64::MAX);
    let mut all = EventLoop::connect(address, clients, gate)?;
    all.silence_max_ns = SILENCE_MAX_NS;
    let stats = all.run()?;
    match stats.errors.iter().next() {
        Some((what, count)) => Err(io::Error::other(format!("{what} ({count} times)"))),
        None => Ok(stats),
    }
}

struct EventLoop {
    address: SocketAddr,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    /// Who wants to be asked again, and when.
    timers: BinaryHeap<Reverse<(u64, usize)>>,
    /// Connections whose clients have not finished.
    open: usize,
    gate: Arc<Gate>,
    stats: Stats,
    silence_max_ns: u64,
}

impl EventLoop {
    fn connect(address: SocketAddr, clients: Vec<Box<dyn Client>>, gate: Arc<Gate>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut connections = Vec::with_capacity(clients.len());
        for (index, client) in clients.into_iter().enumerate() {
            let connection = Connection::connect(address, client)?;
            epoll::add(&epoll, connection.socket(), EventData::new_u64(index as u64), EventFlags::IN)?;
            connections.push(connection);
        }
        let open = connections.len();
        let (timers, stats) = (BinaryHeap::new(), Stats::new());
        Ok(Self { address, epoll, connections, timers, open, gate, stats, silence_max_ns: u64::MAX })
    }

    fn run(&mut self) -> io::Result<Stats> {
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let mut events = Vec::with_capacity(EVENTS_MAX);
        for index in 0..self.connections.len() {
            if self.connections[index].client().starts_early() {
                self.advance(index)?;
            }
        }
        let mut opened = false;
        let mut heard_at = now_ns();
        while self.open > 0 {
            if !opened && let Some((from, until)) = self.gate.window() {
                opened = true;
                self.stats.set_window(from, until);
                for index in 0..self.connections.len() {
                    if !self.connections[index].client().starts_early() {
                        self.advance(index)?;
                    }
                }
            }
            let now = now_ns();
            // Not at once: another thread may have sent something in the last instant that readers here are to see.
            let is_over = self.gate.is_over(now.saturating_sub(LOOK_MS * 1_000_000));
            if is_over && self.is_settled() || self.gate.is_given_up(now) {
                break;
            }
            self.wait(&mut events)?;
            if !events.is_empty() {
                heard_at = now;
            } else if now.saturating_sub(heard_at) > self.silence_max_ns {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server says nothing any more"));
            }
            for event in events.drain(..) {
                let event: epoll::Event = event;
                let index = usize::try_from(event.data.u64()).expect("it was a usize");
                let flags = event.flags;
                if flags.contains(EventFlags::OUT) {
                    self.flush(index)?;
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.receive(index, &mut buffer)?;
                }
            }
            self.fire_timers()?;
        }
        for connection in &mut self.connections {
            connection.end(&mut self.stats);
        }
        Ok(self.stats.clone())
    }

    fn is_settled(&self) -> bool {
        self.connections.iter().all(Connection::is_settled)
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let now = now_ns();
        let due = self.timers.peek().map_or(u64::MAX, |Reverse((at, _))| at.saturating_sub(now));
        let timeout = Duration::from_nanos(due.min(LOOK_MS * 1_000_000));
        let timeout = Timespec::try_from(timeout).expect("a few milliseconds fit");
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn fire_timers(&mut self) -> io::Result<()> {
        let now = now_ns();
        while let Some(&Reverse((at, index))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            self.advance(index)?;
        }
        Ok(())
    }

    /// Lets a client without a request under way go on.
    fn advance(&mut self, index: usize) -> io::Result<()> {
        let now = now_ns();
        if self.gate.is_over(now) && !self.connections[index].client().starts_early() {
            return Ok(());
        }
        let connection = &mut self.connections[index];
        match connection.advance(now)? {
            Progress::Sent => Ok(()),
            Progress::Blocked => self.watch(index, EventFlags::IN | EventFlags::OUT),
            Progress::Waits(at) => {
                self.timers.push(Reverse((at, index)));
                Ok(())
            }
            Progress::Finished => {
                self.open -= 1;
                Ok(())
            }
        }
    }

    fn watch(&self, index: usize, flags: EventFlags) -> io::Result<()> {
        let socket = self.connections[index].socket();
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(index as u64), flags)?)
    }

    fn flush(&mut self, index: usize) -> io::Result<()> {
        if self.connections[index].flush()? {
            self.watch(index, EventFlags::IN)?;
        }
        Ok(())
    }

    fn receive(&mut self, index: usize, buffer: &mut [u8]) -> io::Result<()> {
        let connection = &mut self.connections[index];
        if connection.is_finished() {
            // Nobody listens any more; what comes would wake this thread for ever.
            return Ok(epoll::delete(&self.epoll, connection.socket())?);
        }
        match connection.receive(buffer, &mut self.stats) {
            Ok(connection::Received::Answered) => self.advance(index),
            Ok(connection::Received::More) => Ok(()),
            Ok(connection::Received::Closed) => self.reconnect(index, "connection closed by the server"),
            Err(error) => self.reconnect(index, &error.to_string()),
        }
    }

    /// Begins again on a new connection. Whatever was under way is lost, and counted if it matters.
    fn reconnect(&mut self, index: usize, why: &str) -> io::Result<()> {
        let connection = &mut self.connections[index];
        if connection.is_awaiting() && !(self.gate.is_over(now_ns()) && connection.is_settled()) {
            self.stats.error(why, 1);
        }
        // The old socket leaves the epoll set by being closed.
        connection.reconnect(self.address)?;
        let socket = self.connections[index].socket();
        epoll::add(&self.epoll, socket, EventData::new_u64(index as u64), EventFlags::IN)?;
        if self.connections[index].takes_up() { self.advance(index) } else { Ok(()) }
    }
}
