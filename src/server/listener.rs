//! Listening sockets: one per core on one address, so that the kernel spreads connections over the cores.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel keeps for each core until they are accepted.
const BACKLOG: i32 = 4096;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody else listens there.
    #[error("address {0} is already in use")]
    InUse(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Refused {
        /// Address asked for.
        address: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl ListenError {
    fn new(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::InUse(address),
            _ => Self::Refused { address, source },
        }
    }
}

/// An address that is bound but does not yet accept: reserved early, so that a taken port fails before storage is opened,
/// and refusing connections until the server can serve them.
#[derive(Debug)]
pub(super) struct Reservation {
    first: Socket,
    address: SocketAddr,
}

impl Reservation {
    /// Binds `address`; with port 0 the kernel chooses one.
    pub(super) fn new(address: SocketAddr) -> Result<Self, ListenError> {
        let reserve = || {
            if address.port() != 0 {
                // Two processes of one user may share a port by SO_REUSEPORT, and each would get half of the other's
                // clients. A socket without that option finds out whether anybody listens.
                bind(address, false)?;
            }
            let first = bind(address, true)?;
            let address = first.local_addr()?.as_socket().unwrap_or(address);
            Ok(Self { first, address })
        };
        reserve().map_err(|error| ListenError::new(address, error))
    }

    /// The real address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens with one more socket, which is closed before long. Others do not listen yet.
    #[cfg(unix)]
    pub(super) fn listen_meanwhile(&self) -> Result<TcpListener, ListenError> {
        let listen = || {
            let socket = another(&self.first, self.address)?;
            socket.listen(BACKLOG)?;
            Ok(TcpListener::from(socket))
        };
        listen().map_err(|error| ListenError::new(self.address, error))
    }

    /// Starts listening with `count` sockets.
    pub(super) fn listen(self, count: usize) -> Result<Vec<TcpListener>, ListenError> {
        let address = self.address;
        self.all(count).map_err(|error| ListenError::new(address, error))
    }

    fn all(self, count: usize) -> io::Result<Vec<TcpListener>> {
        let mut sockets = vec![self.first];
        while sockets.len() < count {
            sockets.push(another(&sockets[0], self.address)?);
        }
        // Bound all before any listens: a connection made in between would go to a socket of the first few only.
        for socket in &sockets {
            socket.listen(BACKLOG)?;
        }
        Ok(sockets.into_iter().map(TcpListener::from).collect())
    }
}

/// Bytes that the kernel holds unsent for a connection before it stops taking more.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

fn bind(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Connections of an earlier run in TIME_WAIT do not block the port. On Windows the option would let others steal it.
    #[cfg(unix)]
    {
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
    }
    #[cfg(not(unix))]
    let _ = shared;
    // Handed on to connections. Without it a slow reader's socket counts as writable only after megabytes have left,
    // and a client that does read would look like one that does not.
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(unix)]
fn another(_first: &Socket, address: SocketAddr) -> io::Result<Socket> {
    bind(address, true)
}

/// Without SO_REUSEPORT the cores share one socket.
#[cfg(not(unix))]
fn another(first: &Socket, _address: SocketAddr) -> io::Result<Socket> {
    first.try_clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any_port() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn all_listeners_share_the_port_that_the_kernel_chose() {
        let reservation = Reservation::new(any_port()).expect("a free port can be bound");
        let address = reservation.address();
        let listeners = reservation.listen(3).expect("the port can be shared");
        assert_ne!(address.port(), 0);
        assert_eq!(listeners.len(), 3);
        for listener in listeners {
            assert_eq!(listener.local_addr().expect("a listener has an address"), address);
        }
    }

    #[test]
    fn port_of_another_server_is_refused_even_if_it_could_be_shared() {
        let reservation = Reservation::new(any_port()).expect("a free port can be bound");
        let address = reservation.address();
        let _listeners = reservation.listen(2).expect("the port can be shared");
        let error = Reservation::new(address).expect_err("the port is taken");
        assert_eq!(error.to_string(), format!("address {address} is already in use"));
    }

    #[test]
    fn port_is_free_again_after_the_listeners_are_gone() {
        let reservation = Reservation::new(any_port()).expect("a free port can be bound");
        let address = reservation.address();
        drop(reservation.listen(2).expect("the port can be shared"));
        Reservation::new(address).expect("nobody listens any more");
    }

    #[test]
    fn foreign_address_is_refused_with_its_reason() {
        // 192.0.2.0/24 is reserved for documentation: no machine has such an address.
        let address = SocketAddr::from(([192, 0, 2, 1], 0));
        let error = Reservation::new(address).expect_err("the address is not ours");
        assert!(error.to_string().starts_with("cannot listen on 192.0.2.1:0: "), "{error}");
    }
}
