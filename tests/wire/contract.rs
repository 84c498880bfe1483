//! What holds for every answer, whatever was asked (`protocol.md` §1, §12, §20 and §21), and words to say what a test
//! expects of one.

use serde_json::Value;

use crate::support::http::Response;

/// Headers that scripts of other origins may read (§20), as sent.
pub(crate) const EXPOSED: &str = "Stream-Next-Offset, Stream-Cursor, Stream-Up-To-Date, Stream-Closed, Stream-TTL, \
     Stream-Expires-At, Stream-SSE-Data-Encoding, Stream-Earliest-Offset, Stream-Retention-Max-Age, \
     Stream-Retention-Max-Bytes, Producer-Epoch, Producer-Seq, Producer-Expected-Seq, Producer-Received-Seq, ETag, Location, Retry-After, WWW-Authenticate";

/// `code`, status, last part of `type`, `title`: the table of §21 as far as this server can be brought to answer it.
const PROBLEMS: &[(&str, u16, &str, &str)] = &[
    ("BAD_REQUEST", 400, "bad-request", "Bad request"),
    ("INVALID_STREAM_NAME", 400, "invalid-stream-name", "Invalid stream name"),
    ("INVALID_OFFSET", 400, "invalid-offset", "Invalid offset"),
    ("INVALID_JSON", 400, "invalid-json", "Body is not valid JSON"),
    ("EMPTY_BODY", 400, "empty-body", "Empty body"),
    ("EMPTY_ARRAY", 400, "empty-array", "Empty JSON array"),
    ("PRODUCER_LIMIT", 400, "producer-limit", "Too many producers on this stream"),
    ("PRODUCER_EPOCH_FENCED", 403, "producer-epoch-fenced", "Producer epoch is stale"),
    ("NOT_FOUND", 404, "not-found", "Not found"),
    ("METHOD_NOT_ALLOWED", 405, "method-not-allowed", "Method not allowed"),
    ("REQUEST_TIMEOUT", 408, "request-timeout", "Request body timed out"),
    ("ALREADY_EXISTS", 409, "already-exists", "Stream exists with other configuration"),
    ("STREAM_CLOSED", 409, "stream-closed", "Stream is closed"),
    ("CONTENT_TYPE_MISMATCH", 409, "content-type-mismatch", "Content type differs from the stream's"),
    ("SEQUENCE_CONFLICT", 409, "sequence-conflict", "Sequence conflict"),
    ("PATH_BLOCKED", 409, "path-blocked", "Name is held by a deleted stream with forks"),
    ("FORK_FROM_TOMBSTONE", 409, "fork-from-tombstone", "Fork source is deleted"),
    ("GONE", 410, "gone", "Stream is deleted"),
    ("OFFSET_GONE", 410, "offset-gone", "Offset is no longer kept"),
    ("PAYLOAD_TOO_LARGE", 413, "payload-too-large", "Body or stream too large"),
    ("UNSUPPORTED_ENCODING", 415, "unsupported-encoding", "Content coding not supported"),
    ("UNAVAILABLE", 503, "unavailable", "Temporarily unavailable"),
    ("INSUFFICIENT_STORAGE", 507, "insufficient-storage", "Insufficient storage"),
];

/// Checks what does not depend on the question. `target` is the request's, as sent; CORS is at its default.
#[track_caller]
pub(crate) fn check(response: &Response, method: &str, target: &str) {
    response.expect_header("Access-Control-Allow-Origin", "*").expect_no_header("Vary");
    check_whatever_the_origin(response, method, target);
}

/// As [`check`], for servers with a list of origins.
#[track_caller]
pub(crate) fn check_whatever_the_origin(response: &Response, method: &str, target: &str) {
    response
        .expect_header("X-Content-Type-Options", "nosniff")
        .expect_header("Cross-Origin-Resource-Policy", "cross-origin")
        .expect_header("Access-Control-Expose-Headers", EXPOSED)
        .expect_no_header("Access-Control-Allow-Credentials");
    for flag in ["Stream-Up-To-Date", "Stream-Closed"] {
        assert!(matches!(response.header(flag), None | Some("true")), "{flag}: {response:?}");
    }
    for origin in ["Stream-Forked-From", "Stream-Fork-Offset", "Stream-Fork-Sub-Offset"] {
        response.expect_no_header(origin);
    }
    if let Some(offset) = response.header("Stream-Next-Offset") {
        assert!(is_offset(offset), "{response:?}");
    }
    if method == "HEAD" || matches!(response.status, 204 | 304) {
        assert!(response.body.is_empty(), "{response:?}");
    }
    if response.status == 204 {
        response.expect_no_header("Content-Type").expect_no_header("Content-Length");
    }
    if response.status >= 400 {
        check_problem(response, method, target);
    } else {
        assert_ne!(response.header("Content-Type"), Some("application/problem+json"), "{response:?}");
    }
}

fn is_offset(text: &str) -> bool {
    let digits = |part: &str| part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('_').is_some_and(|(generation, position)| digits(generation) && digits(position))
}

#[track_caller]
fn check_problem(response: &Response, method: &str, target: &str) {
    response.expect_header("Cache-Control", "no-store").expect_no_header("ETag");
    let is_control = response.header("Content-Type") == Some("application/json");
    if !is_control {
        response.expect_header("Content-Type", "application/problem+json");
    }
    if method == "HEAD" {
        return;
    }
    let document: Value = serde_json::from_slice(&response.body).expect("a problem is JSON");
    assert_eq!(document["status"], response.status, "{document}");
    let code = document["code"].as_str().expect("a problem has a code");
    let (_, status, kind, title) = row(code);
    assert_eq!(response.status, status, "{document}");
    assert_eq!(document["type"], format!("/errors/{kind}"), "{document}");
    assert_eq!(document["title"], title, "{document}");
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    assert_eq!(document["instance"], path, "{document}");
    if is_control {
        assert_eq!(document["error"]["code"], code, "{document}");
        assert!(document["error"]["message"].is_string(), "{document}");
    } else {
        assert!(document.get("error").is_none(), "{document}");
    }
    match code {
        "UNAVAILABLE" => drop(response.expect_header("Retry-After", "1")),
        "UNSUPPORTED_ENCODING" => drop(response.expect_header("Accept-Encoding", "identity")),
        "STREAM_CLOSED" => {
            response.expect_header("Stream-Closed", "true");
            assert!(response.header("Stream-Next-Offset").is_some(), "{response:?}");
        }
        "METHOD_NOT_ALLOWED" => assert!(response.header("Allow").is_some(), "{response:?}"),
        _ => {}
    }
}

#[track_caller]
fn row(code: &str) -> (&'static str, u16, &'static str, &'static str) {
    *PROBLEMS.iter().find(|row| row.0 == code).unwrap_or_else(|| panic!("{code} is no code of the protocol"))
}

/// What tests say of an answer.
pub(crate) trait Expectations: Sized {
    /// The header was sent once, with this value.
    fn expect_header(&self, name: &str, value: &str) -> &Self;
    /// The header was not sent.
    fn expect_no_header(&self, name: &str) -> &Self;
    /// It is the problem with this code.
    fn expect_refusal(self, code: &str) -> Self;
    /// The value of `Stream-Next-Offset`.
    fn next_offset(&self) -> String;
}

impl Expectations for Response {
    #[track_caller]
    fn expect_header(&self, name: &str, value: &str) -> &Self {
        assert_eq!(self.header(name), Some(value), "{name} of {self:?}");
        self
    }

    #[track_caller]
    fn expect_no_header(&self, name: &str) -> &Self {
        assert_eq!(self.header(name), None, "{name} of {self:?}");
        self
    }

    #[track_caller]
    fn expect_refusal(self, code: &str) -> Self {
        let (_, status, ..) = row(code);
        let body = String::from_utf8_lossy(&self.body).into_owned();
        let refusal = self.expect_status(status);
        assert!(refusal.body.is_empty() || body.contains(&format!(r#""code":"{code}""#)), "{body}");
        refusal
    }

    #[track_caller]
    fn next_offset(&self) -> String {
        self.header("Stream-Next-Offset").unwrap_or_else(|| panic!("no offset in {self:?}")).to_owned()
    }
}
