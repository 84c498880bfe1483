//! The server around the router: listeners, TLS, connections, start-up and drain.
//!
//! * `lifecycle`: [`Server`] and [`run`]: the order in which everything starts and stops.
//! * `opening`: what is served until storage is open.
//! * `listener`: one listening socket per core on one address.
//! * `acceptor`: the accept loop of a core; connections above the limit.
//! * `connection`: TLS, choice of the HTTP version, hyper's settings.
//! * `service`: the router as a connection calls it; which requests are under way.
//! * `transport`: the socket, watched; problem documents for heads that are no HTTP.
//! * `registry`, `connection_state`: who waits for what since when, and the sweep that ends those who wait too long.
//! * `live`, `live_state`: connections that carry an event stream, without hyper; what the sweep knows of them.
//! * `moving`: connections that go to a core with fewer, or to the one that owns their stream.
//! * `admission`: how many connections are open, over all cores and on each.
//! * `cores`: acceptors on all core threads.
//! * `admin`, `admin_client`: the endpoint on a Unix domain socket for who runs the server, and its other end.
//! * `raw_response`, `tls`, `open_files`, `signals`, `banner`: what their names say.
//!
//! Connections live on the core that accepted them, unless another one has fewer, or they move to the one that owns their
//! stream. Nothing here knows a rule of the protocol, except that errors are problem documents.

mod acceptor;
#[cfg(unix)]
mod admin;
#[cfg(unix)]
mod admin_client;
mod admission;
mod banner;
mod connection;
mod connection_state;
mod cores;
mod lifecycle;
mod listener;
mod live;
mod live_state;
mod moving;
mod open_files;
#[cfg(unix)]
mod opening;
mod raw_response;
mod registry;
mod service;
mod signals;
mod tls;
mod transport;

#[cfg(test)]
mod tests;

#[cfg(unix)]
pub use admin_client::{AdminError, request_backup};
pub use lifecycle::{Server, ServerError, run};
pub use listener::ListenError;
pub use tls::TlsError;
