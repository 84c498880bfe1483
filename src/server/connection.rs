//! One connection, from the accepted socket to its end.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::connection_state::{ConnectionState, Phase};
use super::live::LiveConnection;
use super::moving::Ways;
use super::raw_response::RawResponses;
use super::registry::Listed;
use super::service::{ConnectionService, Handover};
use super::tls::ALPN_HTTP2;
use super::transport::{ErrorDocuments, WatchedStream};
use crate::config::{Config, TransportConfig};
use crate::http::{EventStream, Front};

/// Most bytes that HTTP/1 buffers of a request that is being received, and of an answer before it writes.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;

/// HTTP/2 requests under way on one connection.
const HTTP2_STREAMS: u32 = 128;

/// HTTP/2 body bytes that a peer may send ahead, per stream and per connection.
const HTTP2_STREAM_WINDOW: u32 = 256 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 1024 * 1024;

/// HTTP/2 answer bytes that wait for the peer, per stream.
const HTTP2_SEND_BUFFER_BYTES: usize = 16 * 1024;

/// Pause after which an HTTP/2 peer is asked whether it is still there, and the time it has to answer.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What an HTTP/2 client sends first (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Spawns on the core's own thread: HTTP/2 serves each stream as a task of its own, and none may leave the core.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// What all connections of a core have in common.
pub(super) struct Protocols {
    front: Front,
    tls: Option<TlsAcceptor>,
    transport: TransportConfig,
    responses: Rc<RawResponses>,
    ways: Ways,
    http1: http1::Builder,
    http2: http2::Builder<LocalExecutor>,
}

impl Protocols {
    pub(super) fn new(
        config: &Config,
        front: Front,
        tls: Option<TlsAcceptor>,
        responses: Rc<RawResponses>,
        ways: Ways,
    ) -> Self {
        let header_bytes = config.limits.max_header_bytes;
        Self {
            front,
            tls,
            transport: config.transport.clone(),
            responses,
            ways,
            http1: http1_builder(header_bytes),
            http2: http2_builder(header_bytes),
        }
    }

    pub(super) fn responses(&self) -> &RawResponses {
        &self.responses
    }

    /// Those from this core to others.
    pub(super) fn ways(&self) -> &Ways {
        &self.ways
    }

    /// Whether a client expects a TLS handshake first.
    pub(super) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(stream: TcpStream, protocols: Rc<Protocols>, listed: Listed) {
    let state = listed.state();
    if protocols.has_tls() {
        state.enter_phase(Phase::Handshake);
    }
    // Buffers, and the larger part of this task, only once there is something to be read: a client that connects ahead of
    // its request has none, and of very many that connect at one time only those whose turn it is.
    if stream.readable().await.is_err() {
        return;
    }
    let stream = WatchedStream::new(stream, Arc::clone(state));
    if let Some(taken) = Box::pin(protocols.serve_stream(stream, state)).await {
        taken.go_on(protocols, listed);
    }
}

/// Serves a plain HTTP/1 connection on, which has been taken from hyper between two requests. `sent_ahead`: what the client had
/// sent by then and was read.
pub(super) async fn serve_again(
    stream: TcpStream,
    sent_ahead: Bytes,
    protocols: Rc<Protocols>,
    listed: Listed,
) {
    let state = listed.state();
    let mut stream = WatchedStream::new(stream, Arc::clone(state));
    stream.put_back(sent_ahead);
    if let Some(taken) = protocols.serve_plain_http1(stream, state).await {
        taken.go_on(protocols, listed);
    }
}

/// A connection that was taken from hyper.
struct TakenOver {
    stream: TcpStream,
    /// What the client has sent behind the last request, as far as it was read.
    sent_ahead: Bytes,
    reason: Reason,
}

enum Reason {
    /// The last request is answered by this, and whether the client does not want to use the connection again.
    Events(Box<(EventStream, bool)>),
    /// Its streams are on that core.
    Move { to: usize },
}

impl TakenOver {
    fn go_on(self, protocols: Rc<Protocols>, listed: Listed) {
        let Self { stream, sent_ahead, reason } = self;
        match reason {
            Reason::Events(events) => {
                let (events, closes) = *events;
                Self::go_live(stream, sent_ahead, events, closes, protocols, listed);
            }
            Reason::Move { to } => {
                if let Some(admission) = listed.leave() {
                    protocols.ways.send(to, stream, sent_ahead, admission);
                }
            }
        }
    }

    /// Hands it to a task of its own, which is much smaller than that of a connection that serves requests.
    fn go_live(
        stream: TcpStream,
        sent_ahead: Bytes,
        events: EventStream,
        closes: bool,
        protocols: Rc<Protocols>,
        listed: Listed,
    ) {
        let closes = closes || listed.state().is_asked_to_close();
        let head = events.head(closes);
        let place = listed.go_live(events.life);
        let live = LiveConnection::new(stream, sent_ahead, head, events.frames, closes, place, protocols);
        tokio::task::spawn_local(live);
    }
}

impl Protocols {
    /// Serves it to its end, or until it was taken over by an event stream.
    async fn serve_stream(&self, stream: WatchedStream, state: &Arc<ConnectionState>) -> Option<TakenOver> {
        match &self.tls {
            None => self.serve_plain(stream, state).await,
            Some(tls) => {
                self.serve_tls(tls, stream, state).await;
                None
            }
        }
    }

    async fn serve_tls(&self, tls: &TlsAcceptor, stream: WatchedStream, state: &Arc<ConnectionState>) {
        match tls.accept(stream).await {
            Ok(stream) => {
                let chosen = stream.get_ref().1.alpn_protocol();
                if chosen == Some(ALPN_HTTP2) || !self.transport.http1 {
                    self.serve_http2(stream, state, true).await;
                } else {
                    self.serve_http1(stream, state, true).await;
                }
            }
            Err(error) => tracing::debug!(%error, "TLS handshake failed"),
        }
    }

    async fn serve_plain(
        &self,
        mut stream: WatchedStream,
        state: &Arc<ConnectionState>,
    ) -> Option<TakenOver> {
        let is_http2 = match self.transport {
            TransportConfig { h2c: false, .. } => false,
            TransportConfig { http1: false, .. } => true,
            _ => match begins_http2(&mut stream).await {
                Ok(is_http2) => is_http2,
                Err(error) => {
                    tracing::debug!(%error, "connection ended");
                    return None;
                }
            },
        };
        if is_http2 {
            self.serve_http2(stream, state, false).await;
            return None;
        }
        state.enter_phase(Phase::Http1);
        self.serve_plain_http1(stream, state).await
    }

    async fn serve_plain_http1(
        &self,
        stream: WatchedStream,
        state: &Arc<ConnectionState>,
    ) -> Option<TakenOver> {
        let handover = Rc::new(Handover::default());
        let service = self.service(state, false, false).handing_over(&handover);
        let stream = ErrorDocuments::new(stream, Arc::clone(state), Rc::clone(&self.responses));
        let mut connection = self.http1.serve_connection(TokioIo::new(stream), service);
        // What hyper has written before, answers to earlier requests, has to be out: it would be lost. It tries to get rid
        // of it each time that it is polled, so if the socket refused nothing there is nothing left.
        let is_handed_over = || {
            (handover.has_events() && !state.is_stalled())
                || (state.is_between_requests() && self.ways.leads_away(&handover.drift))
        };
        if !drive(Pin::new(&mut connection), state, is_handed_over).await {
            return None;
        }
        let reason = match handover.take_events() {
            Some(events) => Reason::Events(events),
            None => Reason::Move { to: handover.drift.core() },
        };
        let parts = connection.into_parts();
        let (stream, returned) = parts.io.into_inner().into_inner().into_parts()?;
        // Behind what hyper has read comes what is left of what was put back.
        let sent_ahead =
            if returned.is_empty() { parts.read_buf } else { [parts.read_buf, returned].concat().into() };
        Some(TakenOver { stream, sent_ahead, reason })
    }

    fn service(&self, state: &Arc<ConnectionState>, is_tls: bool, is_http2: bool) -> ConnectionService {
        let responses = Rc::clone(&self.responses);
        ConnectionService::new(self.front.clone(), Arc::clone(state), responses, is_tls, is_http2)
    }

    async fn serve_http1<T>(&self, stream: T, state: &Arc<ConnectionState>, is_tls: bool)
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        state.enter_phase(Phase::Http1);
        let stream = ErrorDocuments::new(stream, Arc::clone(state), Rc::clone(&self.responses));
        let service = self.service(state, is_tls, false);
        drive(pin!(self.http1.serve_connection(TokioIo::new(stream), service)), state, || false).await;
    }

    async fn serve_http2<T>(&self, stream: T, state: &Arc<ConnectionState>, is_tls: bool)
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        state.enter_phase(Phase::Http2);
        let service = self.service(state, is_tls, true);
        drive(pin!(self.http2.serve_connection(TokioIo::new(stream), service)), state, || false).await;
    }
}

/// Whether the client begins with HTTP/2's preface. What was read for that is put back.
async fn begins_http2(stream: &mut WatchedStream) -> io::Result<bool> {
    let mut begin = [0; HTTP2_PREFACE.len()];
    let mut received = 0;
    while received < begin.len() && HTTP2_PREFACE.starts_with(&begin[..received]) {
        match stream.read(&mut begin[received..]).await? {
            0 => break,
            count => received += count,
        }
    }
    stream.put_back(Bytes::copy_from_slice(&begin[..received]));
    Ok(begin == *HTTP2_PREFACE)
}

/// Runs a connection to its end, or until `is_handed_over` says that it was; which of them. Once it is asked to close, it ends
/// after the requests under way.
async fn drive<C>(
    mut connection: Pin<&mut C>,
    state: &ConnectionState,
    is_handed_over: impl Fn() -> bool,
) -> bool
where
    C: GracefulConnection,
    C::Error: std::fmt::Display,
{
    let mut closing = false;
    let outcome = poll_fn(|cx| {
        state.task().register(cx.waker());
        if let Poll::Ready(outcome) = connection.as_mut().poll(cx) {
            return Poll::Ready(Some(outcome));
        }
        if is_handed_over() {
            return Poll::Ready(None);
        }
        // A connection that was just accepted may have its first request in the kernel's buffer; it gets its answer.
        if !closing && state.is_asked_to_close() && state.has_served() {
            closing = true;
            connection.as_mut().graceful_shutdown();
            return connection.as_mut().poll(cx).map(Some);
        }
        Poll::Pending
    })
    .await;
    match outcome {
        None => return true,
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "connection ended"),
    }
    false
}

fn http1_builder(header_bytes: usize) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_header_size(header_bytes)
        .max_buf_size(HTTP1_BUFFER_BYTES.max(header_bytes))
        // Bounded by the registry's sweep: hyper's own timer would allocate and register a timer for every request,
        // and would count the idle time before a request as part of its head.
        .header_read_timeout(None)
        // A client may close its sending side after its request and still gets the answer. It also spares the read
        // buffer of a connection that only waits, which is most of what an idle live reader costs.
        .half_close(true);
    builder
}

fn http2_builder(header_bytes: usize) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT);
    builder
}
