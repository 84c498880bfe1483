//! GET with `live=sse`: everything from an offset on, as server-sent events. `protocol.md` §14.
//!
//! What a response consists of is said in `frames`, chunk by chunk. There are two ways of sending it:
//!
//! * as a body: a [`Feed`], which the transport asks for its next chunk, and which keeps the response's time itself. So over
//!   HTTP/2, HTTP/1.0 and TLS, and in a host's application.
//! * as an [`EventStream`]: whoever accepted the connection writes head and chunks to the socket itself, and keeps the time.
//!   That takes a fraction of the memory, and has to be asked for: see `event_stream`.

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
use crate::http::cache::jitter;
use crate::http::headers::{NO_CACHE, STREAM_SSE_DATA_ENCODING, X_ACCEL_BUFFERING};
use crate::http::problem::Problem;
use crate::http::request::Call;
use crate::http::response::{self, StreamHeaders};
use crate::http::router::App;
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;
use crate::protocol::sse::SseEncoding;

mod event_stream;
mod frames;

pub(crate) use event_stream::{EventStream, TakesOver};
pub(crate) use frames::{Chunk, Frames};

/// Connections live up to this part of their span shorter, so that those opened together do not all come back at once.
const LIFE_SPREAD: u32 = 10;
/// Far enough away to stand for never.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

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

    /// Of one response.
    fn draw_life(&self) -> Option<Duration> {
        self.life.map(|life| life - spread(life, jitter()))
    }
}

pub(super) async fn answer(
    app: &App,
    call: &Call<'_>,
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
    let frames = Frames::new(subscription, encoding, client_cursor);
    if call.takes_over {
        event_stream::attach(&mut response, frames, app.sse.draw_life());
        return Ok(response);
    }
    let feed = Feed::new(app, frames);
    *response.body_mut() = Body::from_stream(stream::unfold(feed, |mut feed| async move {
        let chunk = feed.next_chunk().await?;
        Some((Ok::<_, Infallible>(chunk), feed))
    }));
    Ok(response)
}

/// One SSE response as a body.
#[derive(Debug)]
struct Feed {
    frames: Frames,
    pace: Pace,
    /// Of this connection's own token: polling one that all connections share would make their cores wait for each
    /// other at each event.
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// What a wait ended with.
enum Woken {
    Chunk(Chunk),
    /// Time is up, the server is shutting down, or there is nothing more.
    End,
}

impl Feed {
    fn new(app: &App, frames: Frames) -> Self {
        Self {
            frames,
            pace: Pace::new(app.sse, Instant::now()),
            shutdown: Box::pin(app.shutdown.child_token().cancelled_owned()),
        }
    }

    /// Next piece of the response, always whole events; `None` at its end.
    async fn next_chunk(&mut self) -> Option<Bytes> {
        let may_end = self.frames.may_end();
        // Data that never pauses must not keep a response alive for ever.
        if may_end && self.pace.is_over() {
            return None;
        }
        let Self { frames, pace, shutdown } = self;
        let woken = tokio::select! {
            biased;
            () = shutdown, if may_end => Woken::End,
            chunk = poll_fn(|cx| frames.poll_next(cx)) => chunk.map_or(Woken::End, Woken::Chunk),
            woken = pace.tick(), if may_end => woken,
        };
        match woken {
            Woken::Chunk(chunk) => {
                pace.sent();
                Some(chunk.events())
            }
            Woken::End => None,
        }
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
        let ends_at = now + timing.draw_life().unwrap_or(NEVER);
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
                return Woken::Chunk(Chunk::HEARTBEAT);
            }
            self.timer.as_mut().reset(due.map_or(self.ends_at, |due| self.ends_at.min(due)));
        }
    }
}

/// Up to a tenth of `life`.
fn spread(life: Duration, random: u64) -> Duration {
    life / LIFE_SPREAD * (random % 1024) as u32 / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

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
