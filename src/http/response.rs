//! Success answers: their headers, and what every response carries.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;

use crate::engine::api::StreamInfo;
use crate::http::cors::Cors;
use crate::http::headers::{
    CROSS_ORIGIN_RESOURCE_POLICY, STREAM_CLOSED, STREAM_CURSOR, STREAM_EARLIEST_OFFSET, STREAM_EXPIRES_AT,
    STREAM_NEXT_OFFSET, STREAM_RETENTION_MAX_AGE, STREAM_RETENTION_MAX_BYTES, STREAM_TTL, STREAM_UP_TO_DATE,
    TRUE,
};
use crate::http::page_body::NoBody;
use crate::http::request::Call;
use crate::protocol::content_type::ContentType;
use crate::protocol::lifetime::Lifetime;
use crate::protocol::offset;

/// Headers that a response has room for from the start: most have fewer, and a map that grows is built twice.
const HEADERS: usize = 12;

/// An empty response whose header map has room for what is to come. The body counts as known to be empty
/// (`Content-Length: 0`).
pub(super) fn with_room(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    *response.headers_mut() = HeaderMap::with_capacity(HEADERS);
    response
}

/// A response to which no body belongs (204, 304, HEAD), so that it must not speak of a length either.
pub(super) fn without_body(status: StatusCode) -> Response {
    let mut response = with_room(status);
    *response.body_mut() = Body::new(NoBody);
    response
}

/// Puts the headers of `protocol.md` §20 on a response. Every response passes here, whatever its status.
pub(super) fn finish(headers: &mut HeaderMap, call: &Call<'_>, cors: &Cors) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(&CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
    cors.allow(headers, call.headers);
}

/// An offset as a header value.
pub(super) fn offset_value(position: u64) -> HeaderValue {
    HeaderValue::from_bytes(offset::format(position).as_bytes())
        .expect("digits and an underscore make a header value")
}

/// Stream headers of a success answer. Flags are present or absent, never `false`: clients test for presence.
pub(super) trait StreamHeaders {
    fn put_content_type(&mut self, content_type: &ContentType);
    fn put_next_offset(&mut self, position: u64);
    fn put_closed(&mut self, closed: bool);
    fn put_up_to_date(&mut self, up_to_date: bool);
    fn put_cursor(&mut self, cursor: u64);
    fn put_cache_control(&mut self, value: HeaderValue);
    fn put_etag(&mut self, etag: &str);
    fn put_lifetime(&mut self, info: &StreamInfo);
    fn put_retention(&mut self, info: &StreamInfo);
}

impl StreamHeaders for HeaderMap {
    fn put_content_type(&mut self, content_type: &ContentType) {
        let value = HeaderValue::from_bytes(content_type.as_str().as_bytes())
            .expect("a content type was a header value when it came in");
        self.insert(CONTENT_TYPE, value);
    }

    fn put_next_offset(&mut self, position: u64) {
        self.insert(&STREAM_NEXT_OFFSET, offset_value(position));
    }

    fn put_closed(&mut self, closed: bool) {
        if closed {
            self.insert(&STREAM_CLOSED, TRUE.clone());
        }
    }

    fn put_up_to_date(&mut self, up_to_date: bool) {
        if up_to_date {
            self.insert(&STREAM_UP_TO_DATE, TRUE.clone());
        }
    }

    fn put_cursor(&mut self, cursor: u64) {
        self.insert(&STREAM_CURSOR, HeaderValue::from(cursor));
    }

    fn put_cache_control(&mut self, value: HeaderValue) {
        self.insert(CACHE_CONTROL, value);
    }

    fn put_etag(&mut self, etag: &str) {
        let value = HeaderValue::from_str(etag).expect("an ETag is made of quotes, digits and colons");
        self.insert(ETAG, value);
    }

    /// The lifetime as it was given, not what is left of it (`protocol.md` §11).
    fn put_lifetime(&mut self, info: &StreamInfo) {
        match &info.lifetime {
            None => {}
            Some(Lifetime::Ttl { seconds }) => {
                self.insert(&STREAM_TTL, HeaderValue::from(*seconds));
            }
            Some(Lifetime::ExpiresAt(instant)) => {
                let value = HeaderValue::from_str(instant.raw()).expect("an RFC 3339 date-time is ASCII");
                self.insert(&STREAM_EXPIRES_AT, value);
            }
        }
    }

    /// The limits that hold, and where the stream begins if something is gone (`protocol.md` §17).
    fn put_retention(&mut self, info: &StreamInfo) {
        if let Some(secs) = info.retention.max_age_secs {
            self.insert(&STREAM_RETENTION_MAX_AGE, HeaderValue::from(secs));
        }
        if let Some(bytes) = info.retention.max_bytes {
            self.insert(&STREAM_RETENTION_MAX_BYTES, HeaderValue::from(bytes));
        }
        if info.earliest > 0 {
            self.insert(&STREAM_EARLIEST_OFFSET, offset_value(info.earliest));
        }
    }
}
