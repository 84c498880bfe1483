//! One connection and its client.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::RecvFlags;

use super::{Answer, Client, Request, Step};
use crate::suite::response::{Parser, Piece};
use crate::suite::stats::{Stats, now_ns};

/// Reads from one connection before others get their turn.
const READS_MAX: usize = 16;
/// Bodies with more to come than this are thrown away by the kernel if nobody looks at them. Bytes.
const SKIP_MIN: u64 = 16 << 10;
/// Time for a server to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) enum Progress {
    Sent,
    /// The socket takes no more for now.
    Blocked,
    Waits(u64),
    Finished,
}

pub(super) enum Received {
    /// The response is complete.
    Answered,
    More,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No request is under way.
    Idle,
    /// There is, and its response is not complete.
    Awaiting,
    Finished,
}

pub(super) struct Connection {
    socket: TcpStream,
    client: Box<dyn Client>,
    state: State,
    request: Request,
    /// Of head and body together.
    written: usize,
    parser: Parser,
    status: u16,
    body_bytes: u64,
    sent_at: u64,
    /// A request was lost with the connection before.
    lost_one: bool,
}

impl Connection {
    pub(super) fn connect(address: SocketAddr, client: Box<dyn Client>) -> io::Result<Self> {
        Ok(Self {
            socket: socket(address)?,
            client,
            state: State::Idle,
            request: Request::default(),
            written: 0,
            parser: Parser::new(),
            status: 0,
            body_bytes: 0,
            sent_at: 0,
            lost_one: false,
        })
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(super) fn client(&self) -> &dyn Client {
        &*self.client
    }

    pub(super) fn is_awaiting(&self) -> bool {
        self.state == State::Awaiting
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    pub(super) fn is_settled(&self) -> bool {
        self.is_finished() || self.client.is_settled(self.is_awaiting())
    }

    /// Asks the client for its next request, and sends it.
    pub(super) fn advance(&mut self, now: u64) -> io::Result<Progress> {
        if self.state != State::Idle {
            return Ok(Progress::Sent);
        }
        self.request.head.clear();
        self.request.body.clear();
        match self.client.next(now, &mut self.request) {
            Step::Wait(at) => return Ok(Progress::Waits(at)),
            Step::Finish => {
                self.state = State::Finished;
                return Ok(Progress::Finished);
            }
            Step::Send => {}
        }
        self.state = State::Awaiting;
        self.written = 0;
        self.sent_at = now_ns();
        Ok(if self.flush()? { Progress::Sent } else { Progress::Blocked })
    }

    /// Writes what is left of the request; whether that was all. A broken connection shows when it is read from.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let (head, body) = (&self.request.head, &self.request.body);
        while self.written < head.len() + body.len() {
            let parts = [
                IoSlice::new(&head[self.written.min(head.len())..]),
                IoSlice::new(&body[self.written.saturating_sub(head.len())..]),
            ];
            match self.socket.write_vectored(&parts) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
                {
                    return Ok(true);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads what is there.
    pub(super) fn receive(&mut self, buffer: &mut [u8], stats: &mut Stats) -> io::Result<Received> {
        let looks = self.client.wants_body();
        for _ in 0..READS_MAX {
            let skippable = if looks { 0 } else { self.parser.skippable() };
            let skips = skippable > SKIP_MIN;
            let outcome = if skips {
                let len = buffer.len().min(usize::try_from(skippable).unwrap_or(usize::MAX));
                let received = rustix::net::recv(&self.socket, &mut buffer[..len], RecvFlags::TRUNC);
                received.map(|(_, count)| count).map_err(io::Error::from)
            } else {
                (&self.socket).read(buffer)
            };
            let count = match outcome {
                Ok(0) if self.parser.closed() => return Ok(self.answered(stats)),
                Ok(0) => return Ok(Received::Closed),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::More),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if skips {
                self.parser.skip(count as u64);
                self.body_bytes += count as u64;
                stats.received(now_ns(), count as u64);
            } else if self.parse(&buffer[..count], stats)? {
                return Ok(self.answered(stats));
            } else if count < buffer.len() {
                return Ok(Received::More);
            }
        }
        Ok(Received::More)
    }

    /// Whether the response is complete.
    fn parse(&mut self, input: &[u8], stats: &mut Stats) -> io::Result<bool> {
        let now = now_ns();
        let Self { parser, client, status, body_bytes, .. } = self;
        let (looks, no_body) = (client.wants_body(), client.asks_for_heads());
        let mut complete = false;
        let mut bytes = 0;
        let found = |piece: Piece<'_>| match piece {
            Piece::Head(code, head) => {
                *status = code;
                *body_bytes = 0;
                client.head(code, head, now);
            }
            Piece::Body(body) => {
                *body_bytes += body.len() as u64;
                bytes += body.len() as u64;
                if looks {
                    client.body(body, now, stats);
                }
            }
            Piece::End => complete = true,
        };
        parser.feed(input, no_body, found).map_err(|error| io::Error::other(error.to_string()))?;
        stats.received(now, bytes);
        Ok(complete)
    }

    fn answered(&mut self, stats: &mut Stats) -> Received {
        self.state = State::Idle;
        let answer =
            Answer { status: self.status, body_bytes: self.body_bytes, sent_at: self.sent_at, now: now_ns() };
        self.client.answered(&answer, stats);
        Received::Answered
    }

    pub(super) fn reconnect(&mut self, address: SocketAddr) -> io::Result<()> {
        self.socket = socket(address)?;
        self.parser = Parser::new();
        self.lost_one = self.state == State::Awaiting;
        if self.lost_one {
            self.state = State::Idle;
        }
        Ok(())
    }

    /// Whether a request was lost with the connection, so that the client has to go on. If not it waits for its time.
    pub(super) fn takes_up(&self) -> bool {
        self.lost_one
    }

    pub(super) fn end(&mut self, stats: &mut Stats) {
        self.client.ended(stats);
    }
}

fn socket(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
