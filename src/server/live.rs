//! A connection that carries an event stream.
//!
//! It was taken from hyper when its request was answered by one (`connection`). What is left then is the socket, a place in the
//! stream, and a place in the registry: no buffers, and no timers. Chunks are encoded once for all readers, and are written from
//! where they lie. The next chunk is asked for when the socket has taken the last one, so a slow reader holds one of them and
//! nothing more, and is told from one that stalls by whether the socket takes anything.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::connection::{Protocols, serve_again};
use super::live_state::{LiveState, Order};
use super::registry::{Listed, Place};
use super::transport::{WatchedStream, reset_on_close};
use crate::http::{Chunk, Frames};

/// Longest chunk that is copied to be written together with the end of its response.
const JOINED_BYTES_MAX: usize = 4096;

const SOCKET_IS_HERE: &str = "it is given on when the response is over, and nothing is done with it then";

/// What is known of the client's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// It is silent, as it should be.
    Listens,
    /// It has sent something, which lies in the kernel until the response is over. What comes behind that cannot be seen.
    Talks,
    /// It has closed its sending side. That it has closed the connection shows when it is sent something.
    HalfClosed,
}

/// What is kept from one poll to the next, if there is any of it. Boxed, as most clients take all at once.
#[derive(Default)]
struct Kept {
    /// What the socket has not taken yet: a chunk, or in the beginning the head, perhaps with the first chunk.
    unsent: Bytes,
    /// What the client has sent ahead of the end of the response, as far as it was read.
    sent_ahead: Bytes,
}

/// See the module's description.
pub(super) struct LiveConnection {
    /// `None` once the connection was given on.
    socket: Option<TcpStream>,
    frames: Frames,
    /// `None` most of the time.
    kept: Option<Box<Kept>>,
    place: Option<Place>,
    protocols: Rc<Protocols>,
    peer: Peer,
    heartbeat_is_due: bool,
    /// The first chunk is out, or on its way.
    opened: bool,
    /// The last chunk is out, or on its way.
    ended: bool,
    /// The connection ends with the response.
    closes: bool,
}

impl LiveConnection {
    /// `head` and the chunks of `frames` are to be written to `socket`.
    pub(super) fn new(
        socket: TcpStream,
        sent_ahead: Bytes,
        head: Bytes,
        frames: Frames,
        closes: bool,
        place: Place,
        protocols: Rc<Protocols>,
    ) -> Self {
        let peer = if sent_ahead.is_empty() { Peer::Listens } else { Peer::Talks };
        Self {
            socket: Some(socket),
            frames,
            kept: Some(Box::new(Kept { unsent: head, sent_ahead })),
            place: Some(place),
            protocols,
            peer,
            heartbeat_is_due: false,
            opened: false,
            ended: false,
            closes,
        }
    }

    /// Writes until the response is over, `unsent` first. An error ends the connection.
    fn poll_response(&mut self, cx: &mut Context<'_>, unsent: &mut Bytes) -> Poll<io::Result<()>> {
        self.with_live(|live, _| live.note_task(cx.waker()));
        loop {
            self.obey(unsent)?;
            if !self.ended && (unsent.is_empty() || !self.opened) {
                let is_waiting = self.poll_chunk(cx, unsent).is_pending();
                if is_waiting && unsent.is_empty() {
                    ready!(self.poll_peer(cx))?;
                    continue;
                }
            }
            while !unsent.is_empty() {
                ready!(self.poll_write(cx, unsent))?;
            }
            if self.ended {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Does what the sweep wants done.
    fn obey(&mut self, unsent: &mut Bytes) -> io::Result<()> {
        // Without a registry the core is about to stop.
        match self.with_live(|live, _| live.order()).unwrap_or(Order::Cut { reset: false }) {
            Order::None => {}
            Order::Probe => {
                if let Some(error) = self.socket().take_error()? {
                    return Err(error);
                }
            }
            Order::Heartbeat => self.heartbeat_is_due = true,
            // Ordered on until the client knows its position, and what it has of a chunk is whole.
            Order::End if self.frames.may_end() && unsent.is_empty() && !self.ended => {
                self.closes |= self.place.as_ref().is_some_and(Place::is_draining);
                self.end(unsent);
            }
            Order::End => {}
            Order::Cut { reset } => {
                if reset {
                    reset_on_close(self.socket());
                }
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }

    /// Has something to be written, once there is something.
    fn poll_chunk(&mut self, cx: &mut Context<'_>, unsent: &mut Bytes) -> Poll<()> {
        match self.frames.poll_next(cx) {
            Poll::Ready(Some(chunk)) => {
                self.opened = true;
                push(unsent, chunk);
                if self.frames.is_over() && unsent.len() <= JOINED_BYTES_MAX {
                    self.end(unsent);
                }
            }
            Poll::Ready(None) => self.end(unsent),
            Poll::Pending if self.heartbeat_is_due && self.frames.may_end() => push(unsent, Chunk::HEARTBEAT),
            Poll::Pending => return Poll::Pending,
        }
        self.heartbeat_is_due = false;
        Poll::Ready(())
    }

    fn end(&mut self, unsent: &mut Bytes) {
        self.opened = true;
        self.ended = true;
        push(unsent, Chunk::LAST);
    }

    /// Writes some of what is to be written.
    fn poll_write(&mut self, cx: &mut Context<'_>, unsent: &mut Bytes) -> Poll<io::Result<()>> {
        let socket = Pin::new(self.socket.as_mut().expect(SOCKET_IS_HERE));
        let outcome = socket.poll_write(cx, unsent);
        let Poll::Ready(outcome) = outcome else {
            self.with_live(LiveState::note_stalled);
            return Poll::Pending;
        };
        let written = outcome?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        unsent.advance(written);
        if unsent.is_empty() {
            // Even of an empty part the whole chunk would stay.
            *unsent = Bytes::new();
        }
        self.with_live(LiveState::note_sent);
        Poll::Ready(Ok(()))
    }

    /// Waits for the client to do something. Ready if that may be a reason to write.
    fn poll_peer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.peer != Peer::Listens {
            return Poll::Pending;
        }
        let mut byte = [0];
        let seen = ready!(self.socket().poll_peek(cx, &mut ReadBuf::new(&mut byte)))?;
        if seen > 0 {
            self.peer = Peer::Talks;
            return Poll::Pending;
        }
        self.peer = Peer::HalfClosed;
        self.with_live(LiveState::note_end_of_input);
        self.heartbeat_is_due = true;
        Poll::Ready(Ok(()))
    }

    fn take_unsent(&mut self) -> Bytes {
        let Some(kept) = &mut self.kept else { return Bytes::new() };
        let unsent = std::mem::take(&mut kept.unsent);
        if kept.sent_ahead.is_empty() {
            self.kept = None;
        }
        unsent
    }

    fn keep_unsent(&mut self, unsent: Bytes) {
        if !unsent.is_empty() {
            self.kept.get_or_insert_default().unsent = unsent;
        }
    }

    fn socket(&self) -> &TcpStream {
        self.socket.as_ref().expect(SOCKET_IS_HERE)
    }

    fn with_live<T>(&self, act: impl FnOnce(&mut LiveState, u64) -> T) -> Option<T> {
        self.place.as_ref()?.with_live(act)
    }

    /// The response is over: what the client sends next is a request again.
    fn go_on(&mut self) {
        let (Some(socket), Some(place)) = (self.socket.take(), self.place.take()) else { return };
        let Some((registry, listed)) = place.serve_requests() else { return };
        let key = listed.key();
        let sent_ahead = self.kept.take().map_or_else(Bytes::new, |kept| kept.sent_ahead);
        let task = if self.closes {
            let is_unread = self.peer == Peer::Talks;
            tokio::task::spawn_local(close(socket, is_unread, listed))
        } else {
            tokio::task::spawn_local(serve_again(socket, sent_ahead, Rc::clone(&self.protocols), listed))
        };
        registry.attach(key, task.abort_handle());
    }
}

/// Has `chunk` written behind what is still unsent, in one write.
fn push(unsent: &mut Bytes, chunk: Chunk) {
    let chunk = chunk.framed();
    *unsent = if unsent.is_empty() { chunk } else { [&**unsent, &*chunk].concat().into() };
}

/// `is_unread`: the client has sent something that nobody reads.
async fn close(socket: TcpStream, is_unread: bool, listed: Listed) {
    let state = listed.state();
    if is_unread {
        state.leave_request_unread();
    }
    if let Err(error) = WatchedStream::new(socket, Arc::clone(state)).shutdown().await {
        tracing::debug!(%error, "connection ended");
    }
}

impl Future for LiveConnection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut unsent = self.take_unsent();
        match self.poll_response(cx, &mut unsent) {
            Poll::Pending => {
                self.keep_unsent(unsent);
                return Poll::Pending;
            }
            Poll::Ready(Ok(())) => self.go_on(),
            Poll::Ready(Err(error)) => tracing::debug!(%error, "an event stream was cut off"),
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_connection_is_small() {
        // With the 32 bytes of a socket, which has more in debug builds, and what the runtime adds, a task of 256 bytes. The
        // next larger ones have 384, and as they are aligned the allocator takes 512 for them.
        let without_socket = size_of::<LiveConnection>() - size_of::<Option<TcpStream>>();
        assert!(without_socket <= 120, "{without_socket}");
    }
}
