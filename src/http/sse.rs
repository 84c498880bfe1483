//! GET with `live=sse`: everything from an offset on, as server-sent events. `protocol.md` §14.
//!
//! A response is a [`Feed`]: a position in a stream that gives one chunk at a time, whenever the connection has room for
//! it. A chunk is a data event with its control event, or a heartbeat; so a response can end between any two of them,
//! and a client that saw data knows how to go on from there.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::config::ServerConfig;
use crate::engine::api::{LiveBatch, LiveEvent, ReadError, Subscription};
use crate::http::cache::{jitter, now_ms};
use crate::http::headers::{NO_CACHE, STREAM_SSE_DATA_ENCODING, X_ACCEL_BUFFERING};
use crate::http::problem::Problem;
use crate::http::response::{self, StreamHeaders};
use crate::http::router::App;
use crate::protocol::cursor;
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;
use crate::protocol::sse::{Control, HEARTBEAT, SseEncoding, complete_text_len, write_control, write_data};

/// Stored bytes in one data event, unless a JSON message is longer.
const BATCH_BYTES_MAX: usize = 128 * 1024;
/// Connections live up to this part of their span shorter, so that those opened together do not all come back at once.
const LIFE_SPREAD: u32 = 10;
/// Far enough away to stand for never.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
/// Key under which a batch's encoding without a cursor is shared; no cursor has as many digits.
const NO_CURSOR_KEY: u64 = u64::MAX;

/// How long an SSE response may be silent, and how long it may last.
#[derive(Clone, Copy, Debug)]
pub(super) struct SseTiming {
    life: Option<Duration>,
    heartbeat: Option<Duration>,
}

impl SseTiming {
    pub(super) fn new(server: &ServerConfig) -> Self {
        Self { life: server.sse_reconnect_interval, heartbeat: server.sse_heartbeat }
    }
}

pub(super) async fn answer(
    app: &App,
    name: StreamName,
    from: RequestedOffset,
    client_cursor: Option<u64>,
) -> Result<Response, Problem> {
    let subscription = app.storage.subscribe(name, from).await?;

    let mut response = response::with_room(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.put_cache_control(NO_CACHE.clone());
    // nginx would hold events back to fill its buffers.
    headers.insert(&X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    let info = subscription.info();
    let encoding = SseEncoding::of(info.content_type.kind());
    if encoding == SseEncoding::Base64 {
        headers.insert(&STREAM_SSE_DATA_ENCODING, HeaderValue::from_static("base64"));
    }
    if info.closed && subscription.position() == info.tail {
        headers.put_next_offset(info.tail);
        headers.put_up_to_date(true);
        headers.put_closed(true);
    }
    let feed = Feed::new(app, subscription, encoding, client_cursor);
    *response.body_mut() = Body::from_stream(stream::unfold(feed, |mut feed| async move {
        let chunk = feed.next_chunk().await?;
        Some((Ok::<_, Infallible>(chunk), feed))
    }));
    Ok(response)
}

/// What a feed may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was sent yet; the first chunk has to be a control event, with data or without.
    Opening,
    /// A control event was the last thing sent, or a heartbeat behind one.
    Open,
    /// The last control event was sent.
    Over,
}

/// One SSE response.
#[derive(Debug)]
struct Feed {
    subscription: Subscription,
    encoding: SseEncoding,
    stage: Stage,
    /// Last cursor sent, or the first to send. Never goes back.
    cursor: u64,
    pace: Pace,
    /// Of this connection's own token: polling one that all connections share would make their cores wait for each
    /// other at each event.
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// What a wait ended with.
enum Woken {
    Event(LiveEvent),
    Heartbeat,
    /// Time is up, the server is shutting down, or the stream cannot be read.
    End,
}

impl Feed {
    fn new(app: &App, subscription: Subscription, encoding: SseEncoding, client_cursor: Option<u64>) -> Self {
        Self {
            subscription,
            encoding,
            stage: Stage::Opening,
            cursor: cursor::answer(client_cursor, now_ms(), jitter()),
            pace: Pace::new(app.sse, Instant::now()),
            shutdown: Box::pin(app.shutdown.child_token().cancelled_owned()),
        }
    }

    /// Next piece of the response, always whole events; `None` at its end.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        if self.stage == Stage::Opening {
            let info = self.subscription.info();
            if self.subscription.position() == info.tail {
                let closed = info.closed;
                return Some(self.control_alone(closed));
            }
        }
        while self.stage != Stage::Over {
            let chunk = match self.wait().await {
                Woken::Event(LiveEvent::Data(batch)) => self.batch(&batch),
                Woken::Event(LiveEvent::Closed { .. }) => Some(self.control_alone(true)),
                Woken::Heartbeat => Some(Bytes::from_static(HEARTBEAT)),
                // No event says so: the client learns it by coming back.
                Woken::Event(LiveEvent::Removed | LiveEvent::SoftDeleted) | Woken::End => return None,
            };
            if chunk.is_some() {
                self.pace.sent();
                return chunk;
            }
        }
        None
    }

    async fn wait(&mut self) -> Woken {
        let is_open = self.stage == Stage::Open;
        // Data that never pauses must not keep a response alive for ever.
        if is_open && self.pace.is_over() {
            return Woken::End;
        }
        let Self { subscription, pace, shutdown, .. } = self;
        tokio::select! {
            biased;
            () = shutdown, if is_open => Woken::End,
            event = subscription.next(BATCH_BYTES_MAX) => match event {
                Ok(event) => Woken::Event(event),
                // The client was too slow for the stream's retention; it is told when it comes back.
                Err(ReadError::OffsetGone { .. }) => Woken::End,
                Err(error) => {
                    tracing::warn!(error = %error, "an SSE response ends because its stream cannot be read");
                    Woken::End
                }
            },
            woken = pace.tick(), if is_open => woken,
        }
    }

    /// Data with its control event; `None` if all of the batch has to wait for more.
    fn batch(&mut self, batch: &LiveBatch) -> Option<Bytes> {
        let len: usize = batch.data.iter().map(Bytes::len).sum();
        let held = match self.encoding {
            SseEncoding::Text if !batch.closed => incomplete_len(&batch.data, batch.up_to_date),
            _ => 0,
        };
        if held > 0 {
            self.subscription.hold_back(held);
        }
        if held == len {
            return (self.stage == Stage::Opening && batch.up_to_date).then(|| self.control_alone(false));
        }
        self.stage = if batch.closed { Stage::Over } else { Stage::Open };
        let current = self.refresh_cursor();
        let cursor = (!batch.closed).then_some(self.cursor);
        let encoding = self.encoding;
        let encode = |batch: &LiveBatch| encode(encoding, batch, held, cursor);
        // Who came back early has a cursor of its own, and must not push out what the others share.
        match cursor {
            Some(cursor) if cursor > current => Some(encode(batch)),
            cursor => Some(batch.encode_once(cursor.unwrap_or(NO_CURSOR_KEY), encode)),
        }
    }

    /// A control event without data: the client has everything that can be sent.
    fn control_alone(&mut self, closed: bool) -> Bytes {
        self.refresh_cursor();
        self.stage = if closed { Stage::Over } else { Stage::Open };
        let control = Control {
            next_offset: self.subscription.position(),
            cursor: (!closed).then_some(self.cursor),
            up_to_date: true,
            closed,
        };
        let mut out = Vec::with_capacity(160);
        write_control(&mut out, &control);
        out.into()
    }

    /// Moves the cursor on with the time, and returns the current interval.
    fn refresh_cursor(&mut self) -> u64 {
        let current = cursor::current(now_ms());
        self.cursor = self.cursor.max(current);
        current
    }
}

/// The clock of a feed: one timer, for whatever comes first.
#[derive(Debug)]
struct Pace {
    ends_at: Instant,
    heartbeat: Option<Duration>,
    /// Last time that the connection carried something.
    sent_at: Instant,
    /// Moved only when it fires: an event does not touch it, so that a busy feed costs no timer work.
    timer: Pin<Box<Sleep>>,
}

impl Pace {
    fn new(timing: SseTiming, now: Instant) -> Self {
        let life = timing.life.map_or(NEVER, |life| life - spread(life, jitter()));
        let ends_at = now + life;
        let first = timing.heartbeat.map_or(ends_at, |idle| ends_at.min(now + idle));
        Self { ends_at, heartbeat: timing.heartbeat, sent_at: now, timer: Box::pin(sleep_until(first)) }
    }

    fn sent(&mut self) {
        self.sent_at = Instant::now();
    }

    /// As of the last thing sent, which is recent enough while there is always more to send.
    fn is_over(&self) -> bool {
        self.sent_at >= self.ends_at
    }

    /// Waits for a heartbeat or the end. Cancel-safe.
    async fn tick(&mut self) -> Woken {
        loop {
            poll_fn(|cx| self.timer.as_mut().poll(cx)).await;
            let now = Instant::now();
            if now >= self.ends_at {
                return Woken::End;
            }
            let due = self.heartbeat.map(|idle| self.sent_at + idle);
            if let (Some(due), Some(idle)) = (due, self.heartbeat)
                && now >= due
            {
                self.timer.as_mut().reset(self.ends_at.min(now + idle));
                return Woken::Heartbeat;
            }
            self.timer.as_mut().reset(due.map_or(self.ends_at, |due| self.ends_at.min(due)));
        }
    }
}

/// Up to a tenth of `life`.
fn spread(life: Duration, random: u64) -> Duration {
    life / LIFE_SPREAD * (random % 1024) as u32 / 1024
}

/// Data and control event of a batch without its last `held` bytes, as one piece: who sees the data sees the control.
fn encode(encoding: SseEncoding, batch: &LiveBatch, held: usize, cursor: Option<u64>) -> Bytes {
    let control = Control {
        next_offset: batch.end - held as u64,
        cursor,
        up_to_date: batch.up_to_date,
        closed: batch.closed,
    };
    let mut out = Vec::with_capacity(256);
    if held == 0 {
        write_data(&mut out, encoding, &batch.data);
    } else {
        write_data(&mut out, encoding, &without_last(&batch.data, held));
    }
    write_control(&mut out, &control);
    out.into()
}

fn without_last(data: &[Bytes], bytes: usize) -> Vec<Bytes> {
    let mut left = data.iter().map(Bytes::len).sum::<usize>() - bytes;
    let mut kept = Vec::with_capacity(data.len());
    for piece in data {
        let len = piece.len().min(left);
        kept.push(piece.slice(..len));
        left -= len;
    }
    kept
}

/// Bytes at the end of text that cannot be sent before what follows them: a code point that is not complete, or a CR
/// whose LF may be the next byte (only if there is one).
fn incomplete_len(data: &[Bytes], up_to_date: bool) -> usize {
    let mut last = [0; 4];
    let mut len = 0;
    for &byte in data.iter().rev().flat_map(|piece| piece.iter().rev()).take(last.len()) {
        len += 1;
        last[4 - len] = byte;
    }
    let last = &last[4 - len..];
    match len - complete_text_len(last) {
        0 => usize::from(!up_to_date && len > 1 && last.ends_with(b"\r")),
        incomplete => incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(texts: &[&[u8]]) -> Vec<Bytes> {
        texts.iter().map(|text| Bytes::copy_from_slice(text)).collect()
    }

    #[test]
    fn an_incomplete_code_point_is_found_across_pieces() {
        let euro = "€".as_bytes();
        for (data, expected) in [
            (pieces(&[b"abc"]), 0),
            (pieces(&[b"ab", euro]), 0),
            (pieces(&[b"abcdef", &euro[..1]]), 1),
            (pieces(&[b"ab", &euro[..1], &euro[1..2]]), 2),
            (pieces(&[&euro[..2]]), 2),
            (pieces(&["😀".as_bytes().split_at(3).0]), 3),
            // Invalid, so there is nothing to wait for.
            (pieces(&[b"ab\x80"]), 0),
            (pieces(&[b"ab\xff"]), 0),
            (pieces(&[]), 0),
        ] {
            assert_eq!(incomplete_len(&data, true), expected, "{data:?}");
            assert_eq!(incomplete_len(&data, false), expected, "{data:?}");
        }
    }

    #[test]
    fn a_cr_waits_for_its_lf_only_if_there_is_more() {
        assert_eq!(incomplete_len(&pieces(&[b"a\r"]), false), 1);
        assert_eq!(incomplete_len(&pieces(&[b"a\r"]), true), 0);
        assert_eq!(incomplete_len(&pieces(&[b"a\r\n"]), false), 0);
    }

    #[test]
    fn the_last_bytes_are_cut_off_across_pieces() {
        let data = pieces(&[b"abc", b"d", b"e"]);
        assert_eq!(without_last(&data, 2).concat(), b"abc");
        assert_eq!(without_last(&data, 3).concat(), b"ab");
    }

    #[test]
    fn a_life_is_shortened_by_less_than_a_tenth() {
        let life = Duration::from_secs(60);
        assert_eq!(spread(life, 0), Duration::ZERO);
        assert!((0..2048).all(|random| spread(life, random) < life / 10));
        assert!(spread(life, 1023) > life / 11);
    }

    #[tokio::test]
    async fn a_feed_that_may_live_for_ever_has_a_timer_that_can_be_set() {
        let pace = Pace::new(SseTiming { life: None, heartbeat: None }, Instant::now());
        assert!(!pace.is_over());
    }
}
