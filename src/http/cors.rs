//! Which browser origins may read responses: `protocol.md` §20.

use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ORIGIN, VARY,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;

use crate::config::CorsOrigins;
use crate::http::response;

/// Response headers that scripts of other origins may read.
pub(crate) static EXPOSED: HeaderValue = HeaderValue::from_static(
    "Stream-Next-Offset, Stream-Cursor, Stream-Up-To-Date, Stream-Closed, Stream-TTL, Stream-Expires-At, \
     Stream-SSE-Data-Encoding, Stream-Earliest-Offset, Stream-Retention-Max-Age, Stream-Retention-Max-Bytes, \
     Producer-Epoch, Producer-Seq, Producer-Expected-Seq, \
     Producer-Received-Seq, ETag, Location, Retry-After, WWW-Authenticate",
);
static METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, PUT, POST, DELETE, OPTIONS");
/// Named as well as `*`, because `*` never covers `Authorization`.
static HEADERS: HeaderValue = HeaderValue::from_static(
    "Authorization, Content-Type, If-None-Match, Stream-Seq, Stream-TTL, Stream-Expires-At, Stream-Closed, \
     Stream-Forked-From, Stream-Fork-Offset, Stream-Fork-Sub-Offset, Stream-Retention-Max-Age, \
     Stream-Retention-Max-Bytes, Producer-Id, Producer-Epoch, Producer-Seq, traceparent, tracestate, *",
);
static MAX_AGE: HeaderValue = HeaderValue::from_static("86400");
static ANY: HeaderValue = HeaderValue::from_static("*");

/// The configured origins.
#[derive(Debug)]
pub(super) struct Cors {
    origins: CorsOrigins,
}

impl Cors {
    pub(super) fn new(origins: &CorsOrigins) -> Self {
        Self { origins: origins.clone() }
    }

    /// Lets the request's origin read the response, if it may.
    pub(super) fn allow(&self, headers: &mut HeaderMap, request: &HeaderMap) {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED.clone());
        match &self.origins {
            CorsOrigins::Any => {
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY.clone());
            }
            CorsOrigins::List(listed) => {
                headers.append(VARY, HeaderValue::from_static("Origin"));
                let Some(origin) = request.get(ORIGIN) else { return };
                if listed.iter().any(|listed| listed.as_bytes() == origin.as_bytes()) {
                    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                }
            }
        }
    }
}

/// The answer to OPTIONS on any path.
pub(super) fn preflight() -> Response {
    let mut response = response::without_body(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS.clone());
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HEADERS.clone());
    headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE.clone());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(origins: &CorsOrigins, origin: Option<&'static str>) -> HeaderMap {
        let mut request = HeaderMap::new();
        if let Some(origin) = origin {
            request.insert(ORIGIN, HeaderValue::from_static(origin));
        }
        let mut headers = HeaderMap::new();
        Cors::new(origins).allow(&mut headers, &request);
        headers
    }

    #[test]
    fn without_a_list_every_origin_may_read() {
        let headers = allowed(&CorsOrigins::Any, Some("https://a.example"));
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(!headers.contains_key(VARY));
    }

    #[test]
    fn with_a_list_only_listed_origins_may_read_and_every_response_varies() {
        let list = CorsOrigins::List(vec!["https://a.example".into(), "https://b.example".into()]);
        let headers = allowed(&list, Some("https://b.example"));
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://b.example");
        for other in [None, Some("https://c.example"), Some("null"), Some("https://a.example.c")] {
            let headers = allowed(&list, other);
            assert!(!headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN), "{other:?}");
            assert_eq!(headers[VARY], "Origin");
            assert!(headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS));
        }
    }
}
