//! The protocol as a connection sees it: requests are counted until their answers are out.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body as AxumBody;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::connection_state::ConnectionState;
use super::moving::Drift;
use super::raw_response::RawResponses;
use crate::engine;
use crate::http::{ConnectionScheme, EventStream, Exchange, Front, NotOneHost, TakesOver};

/// Largest piece of an HTTP/2 response that is given to the transport at a time. What was given waits for the peer
/// where the sweep does not see it, so it has to be little; it is also one frame's default size.
const PACED_BYTES: usize = 16 * 1024;

/// The protocol, for one connection.
#[derive(Debug)]
pub(super) struct ConnectionService {
    /// Calling it needs it mutable; no borrow outlives the call.
    front: RefCell<Front>,
    state: Arc<ConnectionState>,
    responses: Rc<RawResponses>,
    /// Said to the front unless it is the one that it assumes.
    scheme: Option<ConnectionScheme>,
    is_http2: bool,
    /// `None` = the connection is hyper's to its end.
    handover: Option<Rc<Handover>>,
}

/// Why a connection may be taken from hyper.
#[derive(Debug, Default)]
pub(super) struct Handover {
    events: RefCell<Option<Box<(EventStream, bool)>>>,
    /// Where its requests go.
    pub(super) drift: Drift,
}

impl Handover {
    /// Whether an event stream is the answer to the last request, which stays under way as far as hyper can see.
    pub(super) fn has_events(&self) -> bool {
        self.events.borrow().is_some()
    }

    /// That event stream, and whether the client wants the connection to end with it.
    pub(super) fn take_events(&self) -> Option<Box<(EventStream, bool)>> {
        self.events.take()
    }
}

impl ConnectionService {
    /// `is_tls` and `is_http2` describe the connection.
    pub(super) fn new(
        front: Front,
        state: Arc<ConnectionState>,
        responses: Rc<RawResponses>,
        is_tls: bool,
        is_http2: bool,
    ) -> Self {
        let scheme = is_tls.then_some(ConnectionScheme("https"));
        Self { front: RefCell::new(front), state, responses, scheme, is_http2, handover: None }
    }

    /// Leaves event streams in `handover`, where the connection finds them and writes them by itself, and notes there which
    /// shards are asked.
    pub(super) fn handing_over(self, handover: &Rc<Handover>) -> Self {
        Self { handover: Some(Rc::clone(handover)), ..self }
    }
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let in_flight = InFlight::new(&self.state);
        let mut request = request.map(|incoming| RequestBody::new(incoming, &self.state));
        if let Some(scheme) = self.scheme {
            request.extensions_mut().insert(scheme);
        }
        if !self.is_http2 && !has_one_host(request.version(), request.headers()) {
            request.extensions_mut().insert(NotOneHost);
        }
        let may_offer = self.handover.is_some() && request.body().ended;
        let offer = may_offer.then(|| TakesOver::offer(&request)).flatten();
        if let Some(takes_over) = offer {
            request.extensions_mut().insert(takes_over);
        }
        let exchange = self.front.borrow_mut().call(request.map(AxumBody::new));
        Answer {
            exchange,
            in_flight: Some(in_flight),
            handed_over: None,
            responses: Rc::clone(&self.responses),
            paced: self.is_http2,
            offer,
            handover: self.handover.clone(),
        }
    }
}

/// What RFC 9112 section 3.2 asks of a request: never several `Host`, and from HTTP/1.1 on not none either. In HTTP/2
/// `:authority` takes its place.
fn has_one_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    match hosts.next() {
        None => version < Version::HTTP_11,
        Some(_) => hosts.next().is_none(),
    }
}

/// A request under way. Ends when dropped.
#[derive(Debug)]
struct InFlight(Arc<ConnectionState>);

impl InFlight {
    fn new(state: &Arc<ConnectionState>) -> Self {
        state.begin_request();
        Self(Arc::clone(state))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

/// Future of a response.
pub(super) struct Answer {
    exchange: Exchange,
    in_flight: Option<InFlight>,
    /// The same, once an event stream was handed over: the connection is busy until it was taken.
    handed_over: Option<InFlight>,
    /// For a handler that panics.
    responses: Rc<RawResponses>,
    paced: bool,
    /// What the handler was told. An event stream goes to `handover` then.
    offer: Option<TakesOver>,
    handover: Option<Rc<Handover>>,
}

impl Answer {
    /// A handler that panics is never polled again; what it shared with others is guarded where it is shared.
    fn poll_exchange(&mut self, cx: &mut Context<'_>) -> Poll<Response<AxumBody>> {
        // What other tasks asked.
        engine::take_asked();
        let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.exchange).poll(cx)));
        if let Some(handover) = &self.handover
            && let Some(shard) = engine::take_asked()
        {
            handover.drift.note(shard);
        }
        polled.unwrap_or_else(|_| Poll::Ready(self.responses.internal_error()))
    }
}

impl Future for Answer {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.in_flight.is_none() {
            // Handed over, and the driver of the connection has not come to it yet.
            return Poll::Pending;
        }
        let mut response = ready!(this.poll_exchange(cx));
        if let (Some(takes_over), Some(handover)) = (this.offer, &this.handover)
            && let Some(events) = EventStream::take_from(&mut response)
        {
            handover.events.replace(Some(Box::new((events, takes_over.closes))));
            this.handed_over = this.in_flight.take();
            return Poll::Pending;
        }
        let in_flight = this.in_flight.take().expect("a finished future is not polled again");
        let paced = this.paced;
        Poll::Ready(Ok(response.map(|body| ResponseBody::new(body, in_flight, paced))))
    }
}

/// A request's body, which notes when it is left before its end.
#[derive(Debug)]
struct RequestBody {
    incoming: Incoming,
    state: Arc<ConnectionState>,
    ended: bool,
}

impl RequestBody {
    fn new(incoming: Incoming, state: &Arc<ConnectionState>) -> Self {
        let ended = incoming.is_end_stream();
        Self { incoming, state: Arc::clone(state), ended }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        self.ended = !matches!(frame, Some(Ok(_))) || self.incoming.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.ended {
            self.state.leave_request_unread();
        }
    }
}

/// A response's body; its request is under way until this is dropped.
#[derive(Debug)]
pub(super) struct ResponseBody {
    inner: AxumBody,
    pace: Option<Pace>,
    in_flight: InFlight,
}

/// What an HTTP/2 body adds: pieces, and a place on the connection's list of responses that wait for the peer.
#[derive(Debug)]
struct Pace {
    key: usize,
    rest: Bytes,
}

impl ResponseBody {
    fn new(inner: AxumBody, in_flight: InFlight, paced: bool) -> Self {
        let pace = (paced && !inner.is_end_stream())
            .then(|| Pace { key: in_flight.0.list_paced(), rest: Bytes::new() });
        Self { inner, pace, in_flight }
    }

    fn poll_paced(
        inner: &mut AxumBody,
        rest: &mut Bytes,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if rest.is_empty() {
            let frame = ready!(Pin::new(inner).poll_frame(cx));
            let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
            match frame.into_data() {
                Ok(data) => *rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let piece = rest.split_to(rest.len().min(PACED_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(pace) = &mut this.pace else {
            return Pin::new(&mut this.inner).poll_frame(cx);
        };
        let polled = Self::poll_paced(&mut this.inner, &mut pace.rest, cx);
        this.in_flight.0.note_paced(pace.key, matches!(polled, Poll::Ready(Some(Ok(_)))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.pace.as_ref().is_none_or(|pace| pace.rest.is_empty()) && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.size_hint();
        let waiting = self.pace.as_ref().map_or(0, |pace| pace.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + waiting);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + waiting);
        }
        hint
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(pace) = &self.pace {
            self.in_flight.0.unlist_paced(pace.key);
        }
    }
}
