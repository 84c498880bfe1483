//! Serving while storage is being opened: `/healthz` answers, `/readyz` says what it waits for, and streams are 503.
//!
//! A thread with a listener of its own on the same address does it, with the same connections, TLS and router as later. It stops
//! when the listeners of the cores take connections and nobody accepts them yet: so nobody is refused, and whoever connects to a
//! server that is ready meets a core. Connections end after the requests under way, and their clients come back to the cores.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, LocalOptions};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::acceptor::Stop;
use super::admission::Gate;
use super::cores::{Setup, start_acceptor};
use super::moving::Ways;
use crate::config::Config;
use crate::engine::opening::Opening;
use crate::http::build_router_with_ready;

/// Time for the requests under way when it ends.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause between two looks at whether there are any.
const POLL: Duration = Duration::from_millis(1);

/// The thread. Dropping it ends it, without waiting.
#[derive(Debug)]
pub(super) struct OpeningServer {
    stop: Stop,
    gate: Arc<Gate>,
}

impl OpeningServer {
    /// Serves on `listener` what `opening` says. At most `max_connections` connections.
    ///
    /// # Errors
    /// If the operating system gives no thread or no runtime.
    pub(super) fn start(
        listener: TcpListener,
        opening: Opening,
        config: &Arc<Config>,
        tls: Option<TlsAcceptor>,
        max_connections: usize,
    ) -> io::Result<Self> {
        let stop = Stop::default();
        let gate = Gate::new(max_connections, 1);
        let ready = Arc::new(AtomicBool::new(false));
        let router = build_router_with_ready(Arc::new(opening), config, ready, CancellationToken::new());
        let setup = Setup { config: Arc::clone(config), tls, gate: Arc::clone(&gate), stop: stop.clone() };
        let (of_thread, connections) = (stop.clone(), Arc::clone(&gate));
        let serve = async move {
            let (ways, arrivals) = Ways::to_nowhere(&setup.gate);
            if let Err(error) = start_acceptor(listener, &setup, router.into(), ways, arrivals) {
                tracing::warn!(%error, "nobody is told what the start waits for");
                return;
            }
            of_thread.drain.cancelled().await;
            let emptied = async {
                while !connections.is_shut() || connections.open() > 0 {
                    tokio::time::sleep(POLL).await;
                }
            };
            let _ = tokio::time::timeout(PATIENCE, emptied).await;
            of_thread.cut.cancel();
            tokio::time::sleep(POLL).await;
        };
        let run =
            move || match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => runtime.block_on(serve),
                Err(error) => tracing::warn!(%error, "nobody is told what the start waits for"),
            };
        thread::Builder::new().name("ds-opening".to_owned()).spawn(run)?;
        Ok(Self { stop, gate })
    }

    /// Ends it. When this returns, it takes no connections any more.
    pub(super) fn finish(self) {
        self.stop.drain.cancel();
        let deadline = Instant::now() + PATIENCE;
        while !self.gate.is_shut() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
    }
}

impl Drop for OpeningServer {
    fn drop(&mut self) {
        self.stop.drain.cancel();
    }
}
