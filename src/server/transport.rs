//! The socket as the registry sees it, and HTTP/1 errors as the protocol wants them.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::connection_state::ConnectionState;
use super::raw_response::RawResponses;

/// Bytes thrown away per read while lingering.
const DISCARD_BYTES: usize = 16 * 1024;

/// Reads while lingering before other tasks of the core get their turn.
const DISCARD_READS: usize = 16;

/// A TCP stream that tells its [`ConnectionState`] what the peer does. Sits below TLS, where the peer's progress is
/// visible.
#[derive(Debug)]
pub(super) struct WatchedStream {
    /// `None` once it was given away.
    stream: Option<TcpStream>,
    state: Arc<ConnectionState>,
    closing: Closing,
    /// Bytes that were read to find out what is spoken, to be read again.
    returned: Bytes,
}

#[derive(Debug, PartialEq, Eq)]
enum Closing {
    Open,
    Lingering,
    Done,
}

impl WatchedStream {
    pub(super) fn new(stream: TcpStream, state: Arc<ConnectionState>) -> Self {
        Self { stream: Some(stream), state, closing: Closing::Open, returned: Bytes::new() }
    }

    /// Has `bytes`, which were read before, read again.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        self.returned = bytes;
    }

    /// The socket, and what was put back and not read again.
    pub(super) fn into_parts(mut self) -> Option<(TcpStream, Bytes)> {
        let stream = self.stream.take()?;
        Some((stream, std::mem::take(&mut self.returned)))
    }

    fn socket(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("who gave the socket away has nothing to call this on"))
    }

    fn note_write(&self, outcome: &Poll<io::Result<usize>>) {
        match outcome {
            Poll::Ready(Ok(_)) => self.state.note_sent(),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.state.note_stalled(),
        }
    }

    /// Looks at the socket without taking anything from it.
    fn look_for_peer(&mut self) -> io::Result<()> {
        match SockRef::from(&*self.socket()).peek(&mut [MaybeUninit::uninit()]) {
            Ok(0) => self.state.note_end_of_input(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Throws away what the peer still sends, until it stops. How long is the sweep's concern.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [MaybeUninit::uninit(); DISCARD_BYTES];
        for _ in 0..DISCARD_READS {
            let mut buffer = ReadBuf::uninit(&mut bytes);
            let read = ready!(self.socket().poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.returned.is_empty() {
            let count = self.returned.len().min(buffer.remaining());
            buffer.put_slice(&self.returned.split_to(count));
            self.state.note_received();
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(self.socket().poll_read(cx, buffer))?;
        if buffer.filled().len() > before {
            self.state.note_received();
        } else if buffer.remaining() > 0 {
            self.state.note_end_of_input();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = self.socket().poll_write(cx, bytes);
        self.note_write(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = self.socket().poll_write_vectored(cx, slices);
        self.note_write(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state.take_probe() {
            self.look_for_peer()?;
        }
        self.socket().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing == Closing::Open {
            ready!(self.socket().poll_shutdown(cx))?;
            self.closing = if self.state.start_lingering() { Closing::Lingering } else { Closing::Done };
        }
        if self.closing == Closing::Lingering {
            ready!(self.poll_discard(cx));
            self.closing = Closing::Done;
        }
        Poll::Ready(Ok(()))
    }
}

/// Has the socket reset when it is closed.
pub(super) fn reset_on_close(stream: &TcpStream) {
    // A failure leaves an orderly close, which is only slower.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

impl Drop for WatchedStream {
    fn drop(&mut self) {
        if let Some(stream) = &self.stream
            && self.state.is_to_be_reset()
        {
            reset_on_close(stream);
        }
    }
}

/// An HTTP/1 transport that turns hyper's own answers to heads that it cannot parse (400, 414, 431), which have no body
/// and no headers of ours, into problem documents.
///
/// hyper offers no hook for them. They are recognised by when they come: every byte of an answer of ours follows a
/// request that the service has seen, so a status line while no request is under way, and with everything before it
/// flushed, is hyper's own. One that shares a write with the end of a pipelined answer keeps its empty body.
#[derive(Debug)]
pub(super) struct ErrorDocuments<T> {
    inner: T,
    state: Arc<ConnectionState>,
    responses: Rc<RawResponses>,
    /// Requests that had begun at the last flush that left nothing behind.
    flushed_requests: u32,
    /// A document on its way out in place of hyper's bytes.
    document: Option<Bytes>,
}

impl<T: AsyncWrite + Unpin> ErrorDocuments<T> {
    pub(super) fn new(inner: T, state: Arc<ConnectionState>, responses: Rc<RawResponses>) -> Self {
        Self { inner, state, responses, flushed_requests: 0, document: None }
    }

    /// The transport below.
    pub(super) fn into_inner(self) -> T {
        self.inner
    }

    /// The document that replaces `head`, if `head` is hyper's own.
    fn replacement(&self, head: &[u8]) -> Option<Bytes> {
        if !self.state.is_idle() || self.state.requests() != self.flushed_requests {
            return None;
        }
        let status = head.strip_prefix(b"HTTP/1.")?.get(2..5)?;
        let status = std::str::from_utf8(status).ok()?.parse().ok()?;
        self.responses.for_unparsable_head(status)
    }

    /// Writes the pending document; afterwards `replaced` bytes count as written.
    fn poll_document(&mut self, cx: &mut Context<'_>, replaced: usize) -> Poll<io::Result<usize>> {
        while let Some(document) = &mut self.document {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, document))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            document.advance(written);
            if document.is_empty() {
                self.document = None;
            }
        }
        Poll::Ready(Ok(replaced))
    }

    fn start_document(&mut self, head: &[u8]) -> bool {
        if self.document.is_none() {
            self.document = self.replacement(head);
            if self.document.is_some() {
                self.state.leave_request_unread();
            }
        }
        self.document.is_some()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ErrorDocuments<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ErrorDocuments<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.start_document(bytes) {
            return self.poll_document(cx, bytes.len());
        }
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.first().map_or(&[][..], |slice| &slice[..]);
        if self.start_document(first) {
            let replaced = slices.iter().map(|slice| slice.len()).sum();
            return self.poll_document(cx, replaced);
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        if self.state.is_idle() {
            self.flushed_requests = self.state.requests();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::server::connection_state::Verdict;
    use crate::server::registry::{CoarseClock, Timeouts};

    #[tokio::test]
    async fn a_head_of_which_something_was_put_back_has_begun() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let state = Arc::new(ConnectionState::new(Arc::new(CoarseClock::new())));
        state.resume();
        let mut stream = WatchedStream::new(stream, Arc::clone(&state));
        let after = |seconds: u64| state.judge(1 + seconds * 1000, Duration::ZERO, &Timeouts::OF_TESTS);
        assert_eq!(after(11), Verdict::Keep);
        stream.put_back(Bytes::from_static(b"GET"));
        assert_eq!(stream.read(&mut [0; 3]).await.unwrap(), 3);
        assert!(matches!(after(11), Verdict::Cut(_)));
    }
}
