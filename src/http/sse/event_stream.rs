//! SSE responses that whoever accepted the connection writes by itself.
//!
//! It says so with the request ([`TakesOver`]), and finds an [`EventStream`] with the response instead of a body. What an
//! HTTP library would have written is then written here: the head, and the framing of chunks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::header::{CONNECTION, DATE, TRANSFER_ENCODING};
use axum::http::{HeaderMap, Method, Request, Version};
use axum::response::Response;
use bytes::Bytes;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::http::sse::frames::Frames;

/// In the extensions of a request: who sent it may be given an [`EventStream`] instead of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TakesOver {
    /// The client does not want to use the connection again.
    pub(crate) closes: bool,
}

impl TakesOver {
    /// For a request without a body that came over plain HTTP/1; `None` if its answer has to be an ordinary one.
    pub(crate) fn offer<B>(request: &Request<B>) -> Option<Self> {
        // Looked at for each request, so what tells most of them apart comes first. Whether an event stream is asked for
        // is not for here to say; a client that writes it in another way gets an ordinary response.
        let may_be_sse = request.uri().query().is_some_and(|query| query.contains("live=sse"))
            && *request.method() == Method::GET
            && request.version() == Version::HTTP_11;
        may_be_sse.then(|| Self { closes: says_close(request.headers()) })
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case("close"))
}

/// A response of events, to be written to an HTTP/1.1 connection: [`Self::head`], then the chunks of `frames`, then
/// [`Chunk::LAST`](super::frames::Chunk::LAST).
#[derive(Debug)]
pub(crate) struct EventStream {
    pub(crate) frames: Frames,
    /// The response is to end when it is that old, so that its client comes back; `None` = never for its age.
    pub(crate) life: Option<Duration>,
    headers: HeaderMap,
}

/// In the extensions of a response. Those have to be `Clone` and `Sync`, which frames are not.
#[derive(Clone)]
struct Attached(Arc<Mutex<Option<Content>>>);

/// Frames, and how long the response may last.
type Content = (Frames, Option<Duration>);

/// Sends `frames` along with a response instead of a body.
pub(super) fn attach(response: &mut Response, frames: Frames, life: Option<Duration>) {
    response.extensions_mut().insert(Attached(Arc::new(Mutex::new(Some((frames, life))))));
}

impl EventStream {
    /// What is in `response` instead of a body.
    pub(crate) fn take_from(response: &mut Response) -> Option<Self> {
        let Attached(attached) = response.extensions_mut().remove()?;
        let (frames, life) = attached.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Self { frames, life, headers: std::mem::take(response.headers_mut()) })
    }

    /// Status line and headers. `closes`: the connection ends with the response.
    pub(crate) fn head(&self, closes: bool) -> Bytes {
        let mut head = Vec::with_capacity(1024);
        let mut line = |name: &str, value: &[u8]| {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        };
        for (name, value) in &self.headers {
            line(name.as_str(), value.as_bytes());
        }
        if closes {
            line(CONNECTION.as_str(), b"close");
        }
        line(TRANSFER_ENCODING.as_str(), b"chunked");
        line(DATE.as_str(), date().as_bytes());
        [b"HTTP/1.1 200 OK\r\n", &*head, b"\r\n"].concat().into()
    }
}

/// RFC 9110 section 5.6.7.
fn date() -> String {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    OffsetDateTime::now_utc().format(format).expect("a date of our time can be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(method: &str, target: &str, version: Version, connection: &str) -> Option<bool> {
        let request = Request::builder().method(method).uri(target).version(version);
        let request = request.header(CONNECTION, connection).body(()).unwrap();
        TakesOver::offer(&request).map(|offered| offered.closes)
    }

    #[test]
    fn only_an_event_stream_over_http_1_1_can_be_taken_over() {
        let sse = "/v1/stream/a?offset=now&live=sse";
        assert_eq!(offer("GET", sse, Version::HTTP_11, "keep-alive"), Some(false));
        assert_eq!(offer("GET", sse, Version::HTTP_11, "TE, Close"), Some(true));
        assert_eq!(offer("GET", sse, Version::HTTP_10, "keep-alive"), None);
        assert_eq!(offer("HEAD", sse, Version::HTTP_11, "keep-alive"), None);
        assert_eq!(offer("GET", "/v1/stream/a?live=long-poll", Version::HTTP_11, "close"), None);
        assert_eq!(offer("GET", "/v1/stream/live=sse", Version::HTTP_11, "close"), None);
    }

    #[test]
    fn a_date_is_as_http_wants_it() {
        let date = date();
        assert_eq!((date.len(), &date[3..5], &date[25..]), (29, ", ", " GMT"), "{date}");
    }
}
