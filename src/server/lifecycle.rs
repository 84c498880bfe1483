//! The order in which a server starts and stops.
//!
//! Start: TLS files, address, storage, listeners. What can fail without touching data comes first. While storage is being opened,
//! a listener of its own answers for the server (`opening`); nothing else accepts before everything is there. Stop: not ready, live reads end, the accept queues are emptied and closed, connections
//! end after the requests under way, storage makes everything accepted durable. A stop is never waited for longer than
//! `server.shutdown_timeout`, except by storage.

use std::future::Future;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::acceptor::Stop;
#[cfg(unix)]
use super::admin::Admin;
use super::admission::Gate;
use super::cores::{Cores, Setup, start_acceptors};
use super::listener::{ListenError, Reservation};
#[cfg(unix)]
use super::opening::OpeningServer;
use super::tls::{self, TlsError};
use super::{banner, open_files, signals};
use crate::config::Config;
use crate::engine::opening::Opening;
use crate::engine::{Engine, Storage};
use crate::http::build_fronts_with_ready;
use crate::storage::StorageError;

/// Time for connections that were cut to be gone.
const CUT_PATIENCE: Duration = Duration::from_secs(1);

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// No HTTP version is left that a client could speak.
    #[error(
        "transport: with HTTP/1.1 off, a plain listener needs h2c and a TLS listener needs HTTP/2; nothing could be served"
    )]
    NoTransport,
    /// Certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The data directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The operating system.
    #[error("{context}: {source}")]
    System {
        /// What was being done.
        context: &'static str,
        /// The reason.
        source: io::Error,
    },
}

/// A running server. Stops when it is dropped, without waiting for the requests under way; [`Server::shutdown`] waits.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    engine: Engine,
    config: Arc<Config>,
    ready: Arc<AtomicBool>,
    /// Ends live reads.
    live: CancellationToken,
    stop: Stop,
    gate: Arc<Gate>,
    #[cfg(unix)]
    admin: Option<Admin>,
    stopped: bool,
}

impl Server {
    /// Starts serving in the background. Blocks until requests are accepted: as long as storage takes to recover.
    ///
    /// # Errors
    ///
    /// [`ServerError`], in one line for a person; nothing is left running then.
    pub fn start(config: Config) -> Result<Self, ServerError> {
        let speaks_http2 = if config.tls.is_some() { config.transport.http2 } else { config.transport.h2c };
        if !config.transport.http1 && !speaks_http2 {
            return Err(ServerError::NoTransport);
        }
        let open_files = open_files::raise();
        let tls = config.tls.as_ref().map(|tls| tls::acceptor(tls, &config.transport)).transpose()?;
        let reservation = Reservation::new(config.server.bind_address)?;
        let address = reservation.address();

        let config = Arc::new(config);
        let opening = Opening::default();
        // Ends by itself if the start fails.
        #[cfg(unix)]
        let meanwhile = OpeningServer::start(
            reservation.listen_meanwhile()?,
            opening.clone(),
            &config,
            tls.clone(),
            open_files::connections_while_opening(open_files, config.limits.max_connections),
        )
        .map_err(|source| ServerError::System { context: "cannot start a thread", source })?;
        let engine = Engine::open_telling(&config, &opening)?;
        tracing::info!(mode = ?config.storage.mode, shards = engine.shard_count(), "storage opened");

        let shards = engine.shard_count();
        let max_connections =
            open_files::connections_below(open_files, config.limits.max_connections, shards);
        let gate = Gate::new(max_connections, shards);
        let mut server = Self {
            address,
            engine,
            config,
            ready: Arc::default(),
            live: CancellationToken::new(),
            stop: Stop::default(),
            gate,
            #[cfg(unix)]
            admin: None,
            stopped: false,
        };
        // From here on a failure drops `server`, which closes storage.
        let listeners = reservation.listen(server.engine.shard_count())?;
        #[cfg(unix)]
        meanwhile.finish();
        server.serve(listeners, tls)?;
        server.start_admin();
        tracing::info!(address = %server.address, url = server.url(), "listening");
        Ok(server)
    }

    fn serve(
        &self,
        listeners: Vec<TcpListener>,
        tls: Option<tokio_rustls::TlsAcceptor>,
    ) -> Result<(), ServerError> {
        let setup = Setup {
            config: Arc::clone(&self.config),
            tls,
            gate: Arc::clone(&self.gate),
            stop: self.stop.clone(),
        };
        let storage = Arc::new(self.engine.clone());
        let fronts =
            build_fronts_with_ready(listeners.len(), &storage, &self.config, &self.ready, &self.live);
        start_acceptors(&self.engine, listeners, &setup, fronts)
            .map_err(|source| ServerError::System { context: "cannot register a listener", source })?;
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Streams are served without it, too.
    fn start_admin(&mut self) {
        #[cfg(unix)]
        match Admin::start(&self.engine) {
            Ok(admin) => self.admin = admin,
            Err(error) => {
                tracing::warn!(%error, "there is no admin endpoint: this server can be backed up when it is stopped only");
            }
        }
    }

    /// The address that is listened on, with the port that the kernel chose for port 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Root of the server's URLs as seen from this machine, without a slash at the end. A server on all addresses is
    /// named by its loopback address.
    pub fn url(&self) -> String {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        format!("{}://{}", self.scheme(), SocketAddr::new(ip, self.address.port()))
    }

    /// `http` or `https`.
    pub(super) fn scheme(&self) -> &'static str {
        if self.config.tls.is_some() { "https" } else { "http" }
    }

    /// The configuration that it was started with.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Number of shards.
    pub(super) fn shard_count(&self) -> usize {
        self.engine.shard_count()
    }

    /// Stops: long-polls answer 204, SSE ends, requests under way get up to `server.shutdown_timeout`, everything
    /// accepted becomes durable, files are closed. Blocks; do not call it on a thread that runs async tasks.
    pub fn shutdown(mut self) {
        self.stop(self.config.server.shutdown_timeout);
    }

    fn stop(&mut self, patience: Duration) {
        if std::mem::replace(&mut self.stopped, true) {
            return;
        }
        tracing::info!(connections = self.gate.open(), "shutting down");
        self.ready.store(false, Ordering::Release);
        self.live.cancel();
        self.stop.drain.cancel();
        #[cfg(unix)]
        drop(self.admin.take());
        let emptied = self.gate.wait_until_empty(patience);
        if !emptied {
            tracing::warn!(connections = self.gate.open(), "cutting the connections that are still open");
        }
        self.stop.cut.cancel();
        if !emptied {
            self.gate.wait_until_empty(CUT_PATIENCE);
        }
        block_on(self.engine.shutdown());
        tracing::info!("storage closed");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

impl Cores for Engine {
    fn run_on(&self, index: usize, task: Box<dyn FnOnce() + Send>) {
        self.run_on_core(index, task);
    }
}

/// Serves until SIGINT or SIGTERM, then stops in order. A second signal ends the process at once, with the status that
/// shells give to a process killed by it (130, 143).
///
/// On standard output it says where it listens and how to try it, and nothing else.
///
/// # Errors
///
/// [`ServerError`] if it cannot start.
pub fn run(config: Config) -> Result<(), ServerError> {
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
    // Before anything that has to be stopped in order is started.
    let signals = signals::Signals::listen()
        .map_err(|source| ServerError::System { context: "cannot listen to signals", source })?;
    let server = Server::start(config)?;
    // Whoever started the process may have closed its output; that is no reason not to serve.
    let _ = io::stdout().lock().write_all(banner::text(&server).as_bytes());
    let name = signals.wait();
    tracing::info!(signal = name, "stopping");
    signals.exit_at_the_next();
    server.shutdown();
    tracing::info!("stopped");
    Ok(())
}

/// Waits for `future` on a thread of its own, so that it works wherever the caller is: blocking on a runtime's own
/// thread would panic.
fn block_on(future: impl Future<Output = ()> + Send) {
    // Without drivers, which would need descriptors and might not get them.
    let wait = || match tokio::runtime::Builder::new_current_thread().build() {
        Ok(runtime) => runtime.block_on(future),
        Err(error) => tracing::error!(%error, "storage cannot be closed in order"),
    };
    thread::scope(|scope| {
        // A panic in there has been reported, and there is nothing left to do about it.
        let _ = scope.spawn(wait).join();
    });
}
