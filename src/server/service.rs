//! The protocol as a connection sees it: requests are counted until their answers are out.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::io::IoSlice;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body as AxumBody;
use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, Response, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::connection_state::ConnectionState;
use super::moving::{BULK_BYTES, Drift};
use super::raw_response::RawResponses;
use crate::engine;
use crate::http::{ConnectionScheme, EventStream, Exchange, Front, NotOneHost, Page, TakesOver};

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
        let is_bulky = request.body().size_hint().lower() >= BULK_BYTES;
        let exchange = self.front.borrow_mut().call(request.map(AxumBody::new));
        Answer {
            exchange,
            in_flight: Some(in_flight),
            handed_over: None,
            responses: Rc::clone(&self.responses),
            paced: self.is_http2,
            offer,
            handover: self.handover.clone(),
            is_bulky,
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
    /// The request has a large body.
    is_bulky: bool,
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
        let page = Page::take_from(&mut response);
        let paced = this.paced;
        let response = response.map(|body| {
            let content = match page {
                Some(page) if paced => Content::Body(page.into_body()),
                Some(page) => Content::Page(Some(page)),
                None => Content::Body(body),
            };
            ResponseBody::new(content, in_flight, paced)
        });
        if let Some(handover) = &this.handover
            && (this.is_bulky || response.body().size_hint().lower() >= BULK_BYTES)
        {
            handover.drift.note_bulk();
        }
        Poll::Ready(Ok(response))
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

/// A response's body. Its request is under way until this is dropped, or the last of its [`Data`].
#[derive(Debug)]
pub(super) struct ResponseBody {
    content: Content,
    pace: Option<Pace>,
    /// `None` once the last data were handed out.
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
enum Content {
    Body(AxumBody),
    /// Goes out at once; `None` = it has.
    Page(Option<Page>),
}

/// What an HTTP/2 body adds: pieces, and a place on the connection's list of responses that wait for the peer.
#[derive(Debug)]
struct Pace {
    key: usize,
    rest: Bytes,
}

/// What a [`ResponseBody`] is made of. The transport drops it when it was sent.
#[derive(Debug)]
pub(super) struct Data {
    bytes: DataBytes,
    _in_flight: Option<InFlight>,
}

#[derive(Debug)]
enum DataBytes {
    One(Bytes),
    Page(Page),
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        match &self.bytes {
            DataBytes::One(bytes) => bytes.remaining(),
            DataBytes::Page(page) => page.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.bytes {
            DataBytes::One(bytes) => bytes.chunk(),
            DataBytes::Page(page) => page.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match &self.bytes {
            DataBytes::One(bytes) => bytes.chunks_vectored(slices),
            DataBytes::Page(page) => page.chunks_vectored(slices),
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.bytes {
            DataBytes::One(bytes) => bytes.advance(count),
            DataBytes::Page(page) => page.advance(count),
        }
    }
}

impl ResponseBody {
    fn new(content: Content, in_flight: InFlight, paced: bool) -> Self {
        let mut body = Self { content, pace: None, in_flight: None };
        if paced && !body.is_end_stream() {
            body.pace = Some(Pace { key: in_flight.0.list_paced(), rest: Bytes::new() });
        }
        body.in_flight = Some(in_flight);
        body
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<DataBytes>, axum::Error>>> {
        let body = match &mut self.content {
            Content::Page(page) => {
                return Poll::Ready(page.take().map(|page| Ok(Frame::data(DataBytes::Page(page)))));
            }
            Content::Body(body) => body,
        };
        let Some(pace) = &mut self.pace else {
            let frame = ready!(Pin::new(body).poll_frame(cx));
            return Poll::Ready(frame.map(|frame| Ok(frame?.map_data(DataBytes::One))));
        };
        if pace.rest.is_empty() {
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => pace.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers.map_data(DataBytes::One)))),
                },
                end => return Poll::Ready(end.map(|end| Ok(end?.map_data(DataBytes::One)))),
            }
        }
        let piece = pace.rest.split_to(pace.rest.len().min(PACED_BYTES));
        Poll::Ready(Some(Ok(Frame::data(DataBytes::One(piece)))))
    }
}

impl Body for ResponseBody {
    type Data = Data;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, axum::Error>>> {
        let this = &mut *self;
        let polled = this.poll_bytes(cx);
        if let (Some(pace), Some(in_flight)) = (&this.pace, &this.in_flight) {
            in_flight.0.note_paced(pace.key, matches!(polled, Poll::Ready(Some(Ok(_)))));
        }
        let frame = match ready!(polled) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        };
        // HTTP/2 keeps little of a response, but lists it by this body.
        let is_last = this.pace.is_none() && this.is_end_stream();
        let in_flight = if is_last { this.in_flight.take() } else { None };
        Poll::Ready(Some(Ok(frame.map_data(|bytes| Data { bytes, _in_flight: in_flight }))))
    }

    fn is_end_stream(&self) -> bool {
        let is_empty = match &self.content {
            Content::Body(body) => body.is_end_stream(),
            Content::Page(page) => page.is_none(),
        };
        is_empty && self.pace.as_ref().is_none_or(|pace| pace.rest.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        let body = match &self.content {
            Content::Body(body) => body.size_hint(),
            Content::Page(page) => {
                SizeHint::with_exact(page.as_ref().map_or(0, |page| page.remaining() as u64))
            }
        };
        let waiting = self.pace.as_ref().map_or(0, |pace| pace.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + waiting);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + waiting);
        }
        hint
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let (Some(pace), Some(in_flight)) = (&self.pace, &self.in_flight) {
            in_flight.0.unlist_paced(pace.key);
        }
    }
}
