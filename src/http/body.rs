//! Receiving request bodies: whole, or not at all (`protocol.md` §1, rule 7).
//!
//! Four limits stand between a client and the memory of the server: the declared length (refused before a byte is
//! read), the length as it comes in, the pause between two pieces, and the bytes of all bodies that are under way at one
//! time. A body that has arrived by the time it is asked for, as small ones have, costs neither a timer nor a counter.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, EXPECT};
use axum::http::{HeaderMap, Version};
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::config::LimitsConfig;
use crate::engine::api;
use crate::http::headers::CLOSE;
use crate::http::problem::{Code, Problem};
use crate::http::request::Call;
use crate::protocol::json;

/// JSON bodies longer than this are parsed on a thread of their own: a core thread must not be held up.
const INLINE_JSON_BYTES_MAX: usize = 256 * 1024;
/// Least speed of a body that takes long, in bytes a second on average: else a few clients that send a byte now and
/// then could keep the budget from everybody else.
const BYTES_PER_SEC_MIN: u64 = 32 * 1024;
/// A piece of at least this size waits as it is for those behind it. Smaller ones are gathered, as each may keep a whole
/// receive buffer, and only what has come counts against the budget.
const KEPT_PIECE_BYTES_MIN: usize = 32 * 1024;
/// Size to which they are gathered.
const GATHERED_BYTES: usize = 64 * 1024;
/// A body that nobody asked for is read and dropped up to this size, so that its connection stays in use.
const DISCARDED_BYTES_MAX: usize = 64 * 1024;
/// Time such a body may take altogether.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Limits on request bodies; clones share one budget.
#[derive(Clone, Debug)]
pub(super) struct BodyLimits {
    bytes_max: u64,
    pause_max: Duration,
    budget: Arc<Budget>,
}

impl BodyLimits {
    pub(super) fn new(limits: &LimitsConfig) -> Self {
        Self {
            bytes_max: limits.max_body_bytes,
            pause_max: limits.request_body_timeout,
            budget: Arc::new(Budget { bytes_max: limits.max_buffered_body_bytes, taken: AtomicU64::new(0) }),
        }
    }
}

/// Bytes of bodies that are being received, over all connections of a router and its clones.
#[derive(Debug)]
struct Budget {
    bytes_max: u64,
    taken: AtomicU64,
}

/// One body's part of the budget, given back on drop.
#[derive(Debug)]
struct BudgetShare {
    budget: Arc<Budget>,
    bytes: u64,
}

impl BudgetShare {
    fn grow(&mut self, bytes: usize) -> Result<(), Problem> {
        let bytes = bytes as u64;
        let before = self.budget.taken.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before + bytes <= self.budget.bytes_max {
            return Ok(());
        }
        Err(Problem::new(Code::Unavailable, "too many request bodies are being received"))
    }
}

impl Drop for BudgetShare {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The body of one request, as far as it was read.
#[derive(Debug)]
pub(super) struct Upload {
    body: Body,
    declared: Option<u64>,
    is_finished: bool,
    /// It is over a limit, or broken: the rest is not even worth dropping.
    is_given_up: bool,
}

impl Upload {
    pub(super) fn new(headers: &HeaderMap, body: Body) -> Self {
        let declared = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let is_finished = body.is_end_stream();
        Self { body, declared, is_finished, is_given_up: false }
    }

    /// No byte is going to come.
    pub(super) fn is_absent(&self) -> bool {
        self.is_finished
    }

    /// Takes the body whole. Empty if there is none. In memory of its own if it is large: it may stay.
    pub(super) async fn receive(&mut self, limits: &BodyLimits) -> Result<Bytes, Problem> {
        if self.is_finished {
            return Ok(Bytes::new());
        }
        // Until the contrary is known.
        self.is_given_up = true;
        let received = self.receive_within(limits).await?;
        self.is_given_up = false;
        Ok(received)
    }

    async fn receive_within(&mut self, limits: &BodyLimits) -> Result<Bytes, Problem> {
        if self.declared.unwrap_or(0).max(self.body.size_hint().lower()) > limits.bytes_max {
            return Err(too_large(limits));
        }
        let Some(first) = self.next_piece(limits).await? else { return Ok(Bytes::new()) };
        if first.len() as u64 > limits.bytes_max {
            return Err(too_large(limits));
        }
        if self.is_finished {
            return Ok(if first.len() < api::LARGE_PAYLOAD_BYTES {
                first
            } else {
                Bytes::copy_from_slice(&first)
            });
        }
        self.collect(first, limits).await
    }

    /// Receives what comes behind `first`.
    async fn collect(&mut self, first: Bytes, limits: &BodyLimits) -> Result<Bytes, Problem> {
        let mut share = BudgetShare { budget: Arc::clone(&limits.budget), bytes: 0 };
        let begun = Instant::now();
        let mut received = Received::default();
        let mut next = Some(first);
        while let Some(piece) = next {
            if (received.bytes + piece.len()) as u64 > limits.bytes_max {
                return Err(too_large(limits));
            }
            share.grow(piece.len())?;
            received.push(piece);
            let allowed = limits.pause_max + Duration::from_secs(received.bytes as u64 / BYTES_PER_SEC_MIN);
            if begun.elapsed() > allowed {
                return Err(too_slow());
            }
            next = self.next_piece(limits).await?;
        }
        Ok(received.join())
    }

    /// Next piece that holds bytes; `None` at the end.
    async fn next_piece(&mut self, limits: &BodyLimits) -> Result<Option<Bytes>, Problem> {
        while !self.is_finished {
            let ready = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut self.body).poll_frame(cx))).await;
            let frame = match ready {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    tokio::time::timeout(limits.pause_max, self.body.frame()).await.map_err(|_| stalled())?
                }
            };
            let Some(frame) = frame else {
                self.is_finished = true;
                break;
            };
            let frame = frame.map_err(|_| cut_off())?;
            self.is_finished = self.body.is_end_stream();
            match frame.into_data() {
                Ok(data) if !data.is_empty() => return Ok(Some(data)),
                // An empty piece, or trailers: neither says anything here.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Leaves the connection in order after an answer that did not take the whole body. On HTTP/1 the next request
    /// stands behind the body: a small one is read and dropped, else the connection has to end with this answer, and
    /// the client is told so instead of finding out. On HTTP/2 only the stream ends early, but there are clients that
    /// miss an answer which comes while they send.
    pub(super) async fn settle(&mut self, call: &Call<'_>, headers: &mut HeaderMap) {
        if self.is_finished {
            return;
        }
        let is_small = self.declared.is_none_or(|bytes| bytes <= DISCARDED_BYTES_MAX as u64);
        // Reading the body would ask a waiting client to send it.
        let is_awaited = call.headers.contains_key(EXPECT);
        if is_small && !is_awaited && !self.is_given_up {
            let _ = tokio::time::timeout(DISCARD_TIMEOUT, self.discard()).await;
        }
        if !self.is_finished && call.version < Version::HTTP_2 {
            headers.insert(CONNECTION, CLOSE.clone());
        }
    }

    async fn discard(&mut self) {
        let mut left = DISCARDED_BYTES_MAX;
        while !self.is_finished {
            match self.body.frame().await {
                None => self.is_finished = true,
                Some(Err(_)) => return,
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    let Some(rest) = left.checked_sub(bytes) else { return };
                    left = rest;
                    self.is_finished = self.body.is_end_stream();
                }
            }
        }
    }
}

/// What has come of a body. It is put together once all of it is there: a buffer that grew with it would be copied time and
/// again.
#[derive(Debug, Default)]
struct Received {
    pieces: Vec<Bytes>,
    gathered: Vec<u8>,
    bytes: usize,
}

impl Received {
    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        let is_kept = piece.len() >= KEPT_PIECE_BYTES_MIN;
        if !self.gathered.is_empty() && (is_kept || self.gathered.len() + piece.len() > GATHERED_BYTES) {
            self.pieces.push(mem::take(&mut self.gathered).into());
        }
        if is_kept {
            self.pieces.push(piece);
        } else {
            self.gathered.extend_from_slice(&piece);
        }
    }

    fn join(self) -> Bytes {
        let mut whole = Vec::with_capacity(self.bytes);
        for piece in self.pieces {
            whole.extend_from_slice(&piece);
        }
        whole.extend_from_slice(&self.gathered);
        whole.into()
    }
}

fn too_large(limits: &BodyLimits) -> Problem {
    let detail = format!("the body is longer than {} bytes", limits.bytes_max);
    Problem::new(Code::PayloadTooLarge, detail)
}

fn stalled() -> Problem {
    Problem::new(Code::RequestTimeout, "the request body stopped coming")
}

fn too_slow() -> Problem {
    Problem::new(Code::RequestTimeout, "the request body comes too slowly")
}

fn cut_off() -> Problem {
    Problem::bad_request("the request body was cut off or is malformed")
}

/// A received body in the forms that the store may ask for; `as_json` if its stream may be one of JSON.
pub(super) async fn in_all_forms(raw: Bytes, as_json: bool, depth_max: usize) -> Result<api::Body, Problem> {
    if !as_json {
        return Ok(api::Body { raw, json: None });
    }
    let json = if raw.len() <= INLINE_JSON_BYTES_MAX {
        json::parse_body(&raw, depth_max)
    } else {
        let raw = raw.clone();
        tokio::task::spawn_blocking(move || json::parse_body(&raw, depth_max))
            .await
            .map_err(|_| Problem::fault(Code::Internal, "the JSON parser panicked"))?
    };
    Ok(api::Body { raw, json: Some(json) })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io;

    use axum::http::{HeaderValue, Request};
    use futures_util::stream;

    use super::*;

    fn limits(bytes_max: u64, in_flight_max: u64) -> BodyLimits {
        let budget = Budget { bytes_max: in_flight_max, taken: AtomicU64::new(0) };
        BodyLimits { bytes_max, pause_max: Duration::from_millis(1), budget: Arc::new(budget) }
    }

    fn chunked(pieces: &[&'static str]) -> Body {
        let pieces: Vec<_> = pieces.iter().map(|piece| Ok::<_, Infallible>(piece.as_bytes())).collect();
        Body::from_stream(stream::iter(pieces))
    }

    async fn receive(body: Body, limits: &BodyLimits) -> Result<Bytes, &'static str> {
        let received = Upload::new(&HeaderMap::new(), body).receive(limits).await;
        assert_eq!(limits.budget.taken.load(Ordering::Relaxed), 0, "the budget was not given back");
        received.map_err(|problem| problem.code().as_str())
    }

    #[tokio::test]
    async fn bodies_arrive_whole_however_they_are_cut() {
        let limits = limits(6, 6);
        assert_eq!(receive(Body::empty(), &limits).await.unwrap(), "");
        assert_eq!(receive(Body::from("abcdef"), &limits).await.unwrap(), "abcdef");
        assert_eq!(receive(chunked(&[]), &limits).await.unwrap(), "");
        assert_eq!(receive(chunked(&["", "ab", "", "cd", "ef"]), &limits).await.unwrap(), "abcdef");
    }

    #[test]
    fn pieces_large_and_small_are_put_together_in_order() {
        let sizes =
            [1, KEPT_PIECE_BYTES_MIN, 5, KEPT_PIECE_BYTES_MIN - 1, KEPT_PIECE_BYTES_MIN - 1, 9, 100_000, 3];
        let (mut received, mut expected) = (Received::default(), Vec::new());
        for (index, size) in sizes.into_iter().enumerate() {
            let piece = vec![index as u8; size];
            expected.extend_from_slice(&piece);
            received.push(piece.into());
        }
        assert_eq!(received.bytes, expected.len());
        assert!(received.pieces.iter().all(|piece| piece.len() <= GATHERED_BYTES || piece.len() == 100_000));
        assert_eq!(received.join(), expected);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_declared_or_not() {
        let limits = limits(6, 100);
        assert_eq!(receive(Body::from("abcdefg"), &limits).await, Err("PAYLOAD_TOO_LARGE"));
        assert_eq!(receive(chunked(&["abcdefg"]), &limits).await, Err("PAYLOAD_TOO_LARGE"));
        assert_eq!(receive(chunked(&["abc", "def", "g"]), &limits).await, Err("PAYLOAD_TOO_LARGE"));

        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("7"))]);
        let never_sent = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let refused = Upload::new(&headers, never_sent).receive(&limits).await.unwrap_err();
        assert_eq!(refused.code(), Code::PayloadTooLarge);
    }

    #[tokio::test]
    async fn bodies_that_are_too_much_together_are_refused() {
        let limits = limits(100, 4);
        assert_eq!(receive(chunked(&["abc", "def"]), &limits).await, Err("UNAVAILABLE"));
        assert_eq!(receive(chunked(&["ab", "cd"]), &limits).await.unwrap(), "abcd");
    }

    #[tokio::test]
    async fn a_body_that_stops_coming_or_breaks_off_is_refused() {
        let limits = limits(100, 100);
        let stalled = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        assert_eq!(receive(stalled, &limits).await, Err("REQUEST_TIMEOUT"));
        let broken = stream::iter([Ok("ab"), Err(io::Error::from(io::ErrorKind::UnexpectedEof))]);
        assert_eq!(receive(Body::from_stream(broken), &limits).await, Err("BAD_REQUEST"));
    }

    #[tokio::test]
    async fn a_body_nobody_asked_for_is_drained_if_small_and_ends_the_connection_otherwise() {
        let settled = async |version, expects: bool, body: Body| {
            let mut request = Request::post("/a").version(version);
            if expects {
                request = request.header(EXPECT, "100-continue");
            }
            let parts = request.body(()).unwrap().into_parts().0;
            let mut headers = HeaderMap::new();
            Upload::new(&parts.headers, body).settle(&Call::of(&parts), &mut headers).await;
            headers.contains_key(CONNECTION)
        };
        assert!(!settled(Version::HTTP_11, false, chunked(&["ab", "cd"])).await);
        assert!(!settled(Version::HTTP_11, true, Body::empty()).await);
        assert!(settled(Version::HTTP_11, true, chunked(&["ab"])).await);
        assert!(!settled(Version::HTTP_2, true, chunked(&["ab"])).await);
        let large =
            || Body::from_stream(stream::repeat(Ok::<_, Infallible>(Bytes::from_static(b"0123456789"))));
        assert!(settled(Version::HTTP_11, false, large()).await);
        assert!(!settled(Version::HTTP_2, false, large()).await);
    }

    #[tokio::test]
    async fn json_is_parsed_alike_inline_and_aside() {
        let small = in_all_forms(Bytes::from_static(b"[1, 2]"), true, 8).await.unwrap();
        assert_eq!(small.json.unwrap().unwrap().stored, "1,2,");
        let large = Bytes::from(format!("[{}1]", "1,".repeat(INLINE_JSON_BYTES_MAX)));
        let parsed = in_all_forms(large, true, 8).await.unwrap().json.unwrap().unwrap();
        assert_eq!(parsed.messages, INLINE_JSON_BYTES_MAX as u64 + 1);
        assert!(in_all_forms(Bytes::from_static(b"[1"), true, 8).await.unwrap().json.unwrap().is_err());
        assert!(in_all_forms(Bytes::from_static(b"[1"), false, 8).await.unwrap().json.is_none());
    }
}
