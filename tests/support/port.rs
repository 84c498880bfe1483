//! Ports for programs that cannot choose one and tell which.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port of 127.0.0.1. As long as this is held the kernel gives it to nobody who wants any port; whoever asks for it by its
/// number gets it.
#[derive(Debug)]
pub(crate) struct HeldPort {
    /// Bound, and never listening: that is what leaves the port to others who do not insist on being alone with it.
    socket: Socket,
}

impl HeldPort {
    pub(crate) fn any() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there are descriptors");
        socket.set_reuse_address(true).expect("a new socket takes options");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port is free");
        Self { socket }
    }

    pub(crate) fn number(&self) -> u16 {
        let address = self.socket.local_addr().expect("a bound socket has an address");
        address.as_socket().expect("it is one of IP").port()
    }
}
