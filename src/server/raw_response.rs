//! Answers given below the router: to heads that are no HTTP, to connections that cannot be admitted, and for handlers
//! that panic.

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};

use crate::config::CorsOrigins;
use crate::http::EXPOSED;

/// Complete HTTP/1.1 responses, each a problem document (protocol section 21) that ends its connection.
///
/// They carry what every response carries (section 20), as far as it does not depend on the request, which nobody has
/// understood: with a list of origins there is no `Access-Control-Allow-Origin`, and no document has an `instance`.
#[derive(Debug)]
pub(super) struct RawResponses {
    bad_request: Bytes,
    uri_too_long: Bytes,
    header_too_large: Bytes,
    too_many_connections: Bytes,
    any_origin: bool,
}

struct Problem {
    status: &'static str,
    kind: &'static str,
    title: &'static str,
    code: &'static str,
    detail: &'static str,
    extra_header: &'static str,
}

impl RawResponses {
    pub(super) fn new(cors: &CorsOrigins) -> Self {
        let render = |problem: &Problem| render(problem, cors);
        Self {
            bad_request: render(&Problem {
                status: "400 Bad Request",
                kind: "bad-request",
                title: "Bad request",
                code: "BAD_REQUEST",
                detail: "the request is not valid HTTP",
                extra_header: "",
            }),
            uri_too_long: render(&Problem {
                status: "414 URI Too Long",
                kind: "uri-too-long",
                title: "Request target too long",
                code: "URI_TOO_LONG",
                detail: "the request target is longer than the server accepts",
                extra_header: "",
            }),
            header_too_large: render(&Problem {
                status: "431 Request Header Fields Too Large",
                kind: "header-too-large",
                title: "Request head too large",
                code: "HEADER_TOO_LARGE",
                detail: "the request line and headers are larger, or more, than the server accepts",
                extra_header: "",
            }),
            too_many_connections: render(&Problem {
                status: "503 Service Unavailable",
                kind: "unavailable",
                title: "Temporarily unavailable",
                code: "UNAVAILABLE",
                detail: "the server's limit on connections is reached",
                extra_header: "retry-after: 1\r\n",
            }),
            any_origin: matches!(cors, CorsOrigins::Any),
        }
    }

    /// The answer to a head that could not be parsed, by the status that hyper gives it.
    pub(super) fn for_unparsable_head(&self, status: u16) -> Option<Bytes> {
        match status {
            400 => Some(self.bad_request.clone()),
            414 => Some(self.uri_too_long.clone()),
            431 => Some(self.header_too_large.clone()),
            _ => None,
        }
    }

    /// The answer to a connection above the limit.
    pub(super) fn too_many_connections(&self) -> &[u8] {
        &self.too_many_connections
    }

    /// The answer of a handler that panicked; the panic itself is on standard error.
    pub(super) fn internal_error(&self) -> Response<Body> {
        const DOCUMENT: &str =
            r#"{"type":"/errors/internal","title":"Internal error","status":500,"code":"INTERNAL_ERROR"}"#;
        let origin = if self.any_origin {
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*")
        } else {
            (header::VARY, "Origin")
        };
        let mut response = Response::new(Body::from(DOCUMENT));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        for (name, value) in [
            origin,
            (header::CONTENT_TYPE, "application/problem+json"),
            (header::CACHE_CONTROL, "no-store"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response.headers_mut().insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED.clone());
        response
    }
}

fn render(problem: &Problem, cors: &CorsOrigins) -> Bytes {
    let Problem { status, kind, title, code, detail, extra_header } = problem;
    let number = &status[..3];
    let body = format!(
        r#"{{"type":"/errors/{kind}","title":"{title}","status":{number},"code":"{code}","detail":"{detail}"}}"#
    );
    let origin = match cors {
        CorsOrigins::Any => "access-control-allow-origin: *\r\n",
        CorsOrigins::List(_) => "vary: Origin\r\n",
    };
    let exposed = EXPOSED.to_str().expect("the list is made of header names");
    let length = body.len();
    Bytes::from(format!(
        "HTTP/1.1 {status}\r\n\
         content-type: application/problem+json\r\n\
         content-length: {length}\r\n\
         cache-control: no-store\r\n\
         connection: close\r\n\
         x-content-type-options: nosniff\r\n\
         cross-origin-resource-policy: cross-origin\r\n\
         access-control-expose-headers: {exposed}\r\n\
         {origin}{extra_header}\r\n{body}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_responses_are_complete_problem_documents() {
        let responses = RawResponses::new(&CorsOrigins::Any);
        for status in [400, 414, 431] {
            let response = responses.for_unparsable_head(status).expect("there is one for this status");
            let text = String::from_utf8(response.to_vec()).expect("responses are text");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head ends with an empty line");
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
            let document: serde_json::Value = serde_json::from_str(body).expect("the body is JSON");
            assert_eq!(document["status"], status);
        }
        assert!(responses.for_unparsable_head(200).is_none());
    }

    #[test]
    fn listed_origins_are_not_given_away() {
        let responses = RawResponses::new(&CorsOrigins::List(vec!["https://a.example".to_owned()]));
        let text = String::from_utf8_lossy(responses.too_many_connections());
        assert!(!text.contains("access-control-allow-origin"));
        assert!(text.contains("vary: Origin\r\n"));
    }
}
