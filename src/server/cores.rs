//! Acceptors on all core threads.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio_rustls::TlsAcceptor;

use super::acceptor::{Acceptor, Stop};
use super::admission::Gate;
use super::connection::Protocols;
use super::moving::{Arrivals, Ways};
use super::raw_response::RawResponses;
use super::registry::Timeouts;
use crate::config::Config;
use crate::http::Front;

/// Time beyond a long-poll's for which an answer is prepared for a client that has closed its sending side.
const HALF_CLOSED_MARGIN: Duration = Duration::from_secs(5);

/// The threads that connections live on.
pub(super) trait Cores {
    /// Runs `task` on thread `index`, where it may spawn local tasks.
    fn run_on(&self, index: usize, task: Box<dyn FnOnce() + Send>);
}

/// What every acceptor is started with.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) config: Arc<Config>,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) gate: Arc<Gate>,
    pub(super) stop: Stop,
}

/// Starts an acceptor on each core, with a listener and a front of its own. Returns when all accept.
pub(super) fn start_acceptors(
    cores: &dyn Cores,
    listeners: Vec<TcpListener>,
    setup: &Setup,
    fronts: Vec<Front>,
) -> io::Result<()> {
    let (started, outcomes) = mpsc::channel();
    let ways = Ways::between(&setup.gate, listeners.len());
    for ((listener, front), (ways, arrivals)) in listeners.into_iter().zip(fronts).zip(ways) {
        let setup = setup.clone();
        let started = started.clone();
        cores.run_on(
            ways.here(),
            Box::new(move || {
                // The receiver waits for every core; it is gone only if another core could not start.
                let _ = started.send(start_acceptor(listener, &setup, front, ways, arrivals));
            }),
        );
    }
    drop(started);
    outcomes.into_iter().collect()
}

/// Starts one on the current thread, which runs a local runtime.
pub(super) fn start_acceptor(
    listener: TcpListener,
    setup: &Setup,
    front: Front,
    ways: Ways,
    arrivals: Arrivals,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let Setup { config, tls, gate, stop } = setup;
    let responses = Rc::new(RawResponses::new(&config.http.cors_origins));
    let core = ways.here();
    let protocols = Protocols::new(config, front, tls.clone(), responses, ways);
    let acceptor = Acceptor::new(protocols, timeouts(config), Arc::clone(gate), core);
    tokio::task::spawn_local(acceptor.run(listener, arrivals, stop.clone()));
    Ok(())
}

fn timeouts(config: &Config) -> Timeouts {
    let header = config.limits.request_header_timeout;
    Timeouts {
        handshake: config.tls.as_ref().map_or(header, |tls| tls.handshake_timeout),
        header,
        idle: config.limits.idle_timeout,
        write: config.limits.write_timeout,
        half_closed: config.server.long_poll_timeout + HALF_CLOSED_MARGIN,
        heartbeat: config.server.sse_heartbeat,
    }
}
