//! Accepting connections on one core.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Gate};
use super::connection::{Protocols, serve, serve_again};
use super::moving::{Arrival, Arrivals, Moved};
use super::registry::{Registry, Timeouts};

/// Pauses after a failed accept: the first, and the longest.
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_millis(100);

/// Shortest time between two log lines about failed accepts.
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Refused connections of one core that are kept until their client has read why; above that they are closed at once.
const REFUSED_KEPT: usize = 32;

/// Time for a refused client to read why.
const REFUSED_PATIENCE: Duration = Duration::from_secs(1);

/// The two steps of an end, shared by all cores.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop {
    /// No further connections; those that are open end after the requests under way.
    pub(super) drain: CancellationToken,
    /// Connections end now.
    pub(super) cut: CancellationToken,
}

/// The acceptor of one core.
pub(super) struct Acceptor {
    protocols: Rc<Protocols>,
    registry: Rc<Registry>,
    gate: Arc<Gate>,
    /// Which one this is.
    core: usize,
    refused_kept: Rc<Cell<usize>>,
}

impl Acceptor {
    pub(super) fn new(protocols: Protocols, timeouts: Timeouts, gate: Arc<Gate>, core: usize) -> Self {
        Self {
            core,
            protocols: Rc::new(protocols),
            registry: Registry::new(timeouts),
            gate,
            refused_kept: Rc::default(),
        }
    }

    /// Accepts until told to drain, then waits to be told to cut what is still open then.
    pub(super) async fn run(self, listener: TcpListener, arrivals: Arrivals, stop: Stop) {
        let accept = async {
            stop.drain.run_until_cancelled(self.accept_forever(&listener)).await;
            self.registry.drain();
            self.accept_waiting(listener);
            self.gate.acceptor_is_done();
        };
        // What is on its way between cores when connections are cut is cut with the way.
        let welcome = stop.cut.run_until_cancelled(self.welcome_forever(arrivals));
        tokio::join!(accept, welcome);
        self.registry.cut_all();
    }

    /// Takes in the connections that come from other cores.
    async fn welcome_forever(&self, mut arrivals: Arrivals) {
        while let Some(arrival) = arrivals.recv().await {
            let welcomed = match arrival {
                Arrival::New(stream, admission) => {
                    TcpStream::from_std(stream).map(|stream| self.serve_new(stream, admission))
                }
                Arrival::Moved(moved) => self.serve_on(moved),
            };
            if let Err(error) = welcomed {
                tracing::debug!(%error, "a connection was lost on its way to another core");
            }
        }
        std::future::pending::<()>().await;
    }

    fn serve_on(&self, moved: Moved) -> io::Result<()> {
        let stream = TcpStream::from_std(moved.stream)?;
        let listed = self.registry.enter_idle(moved.admission);
        let key = listed.key();
        let served = serve_again(stream, moved.sent_ahead, Rc::clone(&self.protocols), listed);
        self.registry.attach(key, tokio::task::spawn_local(served).abort_handle());
        Ok(())
    }

    fn serve_new(&self, stream: TcpStream, admission: Admission) {
        let listed = self.registry.enter(admission);
        let key = listed.key();
        let task = tokio::task::spawn_local(serve(stream, Rc::clone(&self.protocols), listed));
        self.registry.attach(key, task.abort_handle());
    }

    async fn accept_forever(&self, listener: &TcpListener) {
        let mut failures = Failures::default();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    failures.back_off = BACK_OFF_MIN;
                    self.admit(stream, self.gate.core_for_one_more(self.core));
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => failures.note(&error).await,
            }
        }
    }

    /// Admits what already waits in the kernel, so that no client whose connection was established is reset.
    fn accept_waiting(&self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else { return };
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok()
                        && let Ok(stream) = TcpStream::from_std(stream)
                    {
                        self.admit(stream, self.core);
                    }
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(_) => return,
            }
        }
    }

    fn admit(&self, stream: TcpStream, core: usize) {
        let Some(admission) = self.gate.admit(core) else {
            self.refuse(stream);
            return;
        };
        // Answers are written whole; waiting for more to send would only delay them. A failure costs just that.
        let _ = stream.set_nodelay(true);
        if core == self.core {
            return self.serve_new(stream, admission);
        }
        match self.protocols.ways().send_new(stream, admission) {
            Ok(None) => {}
            Ok(Some((stream, admission))) => self.serve_new(stream, admission),
            Err(error) => tracing::debug!(%error, "a connection cannot be passed on"),
        }
    }

    /// Answers 503 without a parser, and without waiting for the client to take it.
    fn refuse(&self, stream: TcpStream) {
        // Inside TLS nothing can be said before the handshake, which is what is being refused.
        if self.protocols.has_tls() || self.refused_kept.get() >= REFUSED_KEPT {
            return;
        }
        let kept = Kept::new(&self.refused_kept);
        let protocols = Rc::clone(&self.protocols);
        tokio::task::spawn_local(async move {
            let _kept = kept;
            let farewell = say_too_many(stream, &protocols);
            let _ = tokio::time::timeout(REFUSED_PATIENCE, farewell).await;
        });
    }
}

/// Writes the refusal, then reads until the client closes: unread bytes would reset the connection and with it the
/// refusal.
async fn say_too_many(mut stream: TcpStream, protocols: &Protocols) -> io::Result<()> {
    stream.write_all(protocols.responses().too_many_connections()).await?;
    stream.shutdown().await?;
    let mut discarded = [0; 1024];
    while stream.read(&mut discarded).await? != 0 {}
    Ok(())
}

/// Counts a refused connection that is kept.
struct Kept(Rc<Cell<usize>>);

impl Kept {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The failure took its connection with it; the next accept is a different one.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Accepts that failed for want of descriptors or memory: the connection still waits, so trying at once would spin.
#[derive(Debug)]
struct Failures {
    back_off: Duration,
    logged: Option<Instant>,
    unlogged: u64,
}

impl Default for Failures {
    fn default() -> Self {
        Self { back_off: BACK_OFF_MIN, logged: None, unlogged: 0 }
    }
}

impl Failures {
    async fn note(&mut self, error: &io::Error) {
        if self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            let unlogged = std::mem::take(&mut self.unlogged);
            tracing::warn!(%error, unlogged, "connections cannot be accepted");
            self.logged = Some(Instant::now());
        } else {
            self.unlogged += 1;
        }
        tokio::time::sleep(self.back_off).await;
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
    }
}
