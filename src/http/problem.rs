//! Every refusal and failure, and what it looks like on the wire.
//!
//! An error answer has one of three origins:
//!
//! - **The request** is malformed by itself: its path, a header, a parameter, its body's length or pace. Found in this
//!   layer, before the store is asked; the answer is the same whether or not the stream exists.
//! - **The stream** refuses: it is closed, of another type, gone, and so on. Decided by the state machine, which knows
//!   nothing of status codes; its refusals arrive here through the errors of [`engine::api`](crate::engine::api).
//! - **The server** cannot: a quota is used up (nothing was stored), or a shard cannot commit or read (the outcome of a
//!   mutation is unknown). What broke inside goes to the log; the client sees the title alone.
//!
//! All of them become a [`Problem`]: one of the codes in the table of [`Code`], a sentence for people, and the
//! headers that clients act on. `code`, `type`, `title` and status are a contract (`protocol.md` §21); the sentence is
//! not. The `From` implementations in `mapping` are the only place where an error meets its code.

mod mapping;

use std::borrow::Cow;

use axum::body::Body;
use axum::http::header::{ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use serde::Serialize;

use crate::http::headers::{
    NO_STORE, PRODUCER_EPOCH, PRODUCER_EXPECTED_SEQ, PRODUCER_RECEIVED_SEQ, STREAM_CLOSED,
    STREAM_EARLIEST_OFFSET, STREAM_NEXT_OFFSET, TRUE,
};
use crate::http::request::Call;
use crate::http::response;

/// The stable part of a problem document.
struct Row {
    code: &'static str,
    status: u16,
    kind: &'static str,
    title: &'static str,
}

/// Writes [`Code`] and its table from one list.
macro_rules! codes {
    ($($name:ident $code:literal $status:literal $kind:literal $title:literal;)*) => {
        /// What went wrong, as a client's program tells it apart.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Code {
            $($name,)*
        }

        impl Code {
            const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row {
                        code: $code,
                        status: $status,
                        kind: concat!("/errors/", $kind),
                        title: $title,
                    },)*
                }
            }

            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

codes! {
    BadRequest          "BAD_REQUEST"           400 "bad-request"           "Bad request";
    InvalidStreamName   "INVALID_STREAM_NAME"   400 "invalid-stream-name"   "Invalid stream name";
    InvalidOffset       "INVALID_OFFSET"        400 "invalid-offset"        "Invalid offset";
    InvalidJson         "INVALID_JSON"          400 "invalid-json"          "Body is not valid JSON";
    EmptyBody           "EMPTY_BODY"            400 "empty-body"            "Empty body";
    EmptyArray          "EMPTY_ARRAY"           400 "empty-array"           "Empty JSON array";
    ProducerLimit       "PRODUCER_LIMIT"        400 "producer-limit"        "Too many producers on this stream";
    ProducerEpochFenced "PRODUCER_EPOCH_FENCED" 403 "producer-epoch-fenced" "Producer epoch is stale";
    NotFound            "NOT_FOUND"             404 "not-found"             "Not found";
    MethodNotAllowed    "METHOD_NOT_ALLOWED"    405 "method-not-allowed"    "Method not allowed";
    RequestTimeout      "REQUEST_TIMEOUT"       408 "request-timeout"       "Request body timed out";
    AlreadyExists       "ALREADY_EXISTS"        409 "already-exists"        "Stream exists with other configuration";
    StreamClosed        "STREAM_CLOSED"         409 "stream-closed"         "Stream is closed";
    ContentTypeMismatch "CONTENT_TYPE_MISMATCH" 409 "content-type-mismatch" "Content type differs from the stream's";
    SequenceConflict    "SEQUENCE_CONFLICT"     409 "sequence-conflict"     "Sequence conflict";
    PathBlocked         "PATH_BLOCKED"          409 "path-blocked"          "Name is held by a deleted stream with forks";
    ForkFromTombstone   "FORK_FROM_TOMBSTONE"   409 "fork-from-tombstone"   "Fork source is deleted";
    Gone                "GONE"                  410 "gone"                  "Stream is deleted";
    OffsetGone          "OFFSET_GONE"           410 "offset-gone"           "Offset is no longer kept";
    PayloadTooLarge     "PAYLOAD_TOO_LARGE"     413 "payload-too-large"     "Body or stream too large";
    UnsupportedEncoding "UNSUPPORTED_ENCODING"  415 "unsupported-encoding"  "Content coding not supported";
    Internal            "INTERNAL_ERROR"        500 "internal"              "Internal error";
    Unavailable         "UNAVAILABLE"           503 "unavailable"           "Temporarily unavailable";
    InsufficientStorage "INSUFFICIENT_STORAGE"  507 "insufficient-storage"  "Insufficient storage";
}

impl Code {
    /// The code as it stands in a problem document.
    pub(super) const fn as_str(self) -> &'static str {
        self.row().code
    }

    fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().status).expect("every status of the table is one")
    }
}

/// Headers that some problems carry for clients to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extra {
    None,
    /// Methods of the resource.
    Allow(&'static str),
    /// Final tail of a closed stream.
    ClosedAt(u64),
    /// First position that is kept.
    EarliestAt(u64),
    /// Epoch that fenced the request's.
    KnownEpoch(u64),
    /// Producer sequence numbers.
    Gap {
        expected: u64,
        received: u64,
    },
}

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    code: Code,
    detail: Cow<'static, str>,
    /// A fault inside the server: `detail` is for the log alone.
    is_fault: bool,
    extra: Extra,
    /// Rendered in the format of the control API (`protocol.md` §19.8).
    is_control: bool,
}

impl Problem {
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { code, detail: detail.into(), is_fault: false, extra: Extra::None, is_control: false }
    }

    pub(super) fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::BadRequest, detail)
    }

    /// A fault inside the server; `detail` is not shown to the client.
    pub(super) fn fault(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { is_fault: true, ..Self::new(code, detail) }
    }

    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        let problem = Self::new(Code::MethodNotAllowed, format!("this resource has the methods {allow}"));
        Self { extra: Extra::Allow(allow), ..problem }
    }

    /// A path below `__ds` that leads nowhere.
    pub(super) fn no_control_route() -> Self {
        Self { is_control: true, ..Self::new(Code::NotFound, "there is no such control route") }
    }

    pub(super) fn code(&self) -> Code {
        self.code
    }

    /// What went wrong, in full: for the log.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// The answer to `call`, without the headers that every response gets.
    pub(super) fn to_response(&self, call: &Call<'_>) -> Response {
        let body = self.document(call.sent.path());
        let mut response = response::with_room(self.code.status());
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, NO_STORE.clone());
        let content_type = if self.is_control { "application/json" } else { "application/problem+json" };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.write_extra(headers);
        if call.method == Method::HEAD {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        } else {
            *response.body_mut() = Body::from(body);
        }
        response
    }

    fn write_extra(&self, headers: &mut HeaderMap) {
        match self.extra {
            Extra::None => {}
            Extra::Allow(methods) => {
                headers.insert(ALLOW, HeaderValue::from_static(methods));
            }
            Extra::ClosedAt(tail) => {
                headers.insert(&STREAM_CLOSED, TRUE.clone());
                headers.insert(&STREAM_NEXT_OFFSET, response::offset_value(tail));
            }
            Extra::EarliestAt(earliest) => {
                headers.insert(&STREAM_EARLIEST_OFFSET, response::offset_value(earliest));
            }
            Extra::KnownEpoch(epoch) => {
                headers.insert(&PRODUCER_EPOCH, HeaderValue::from(epoch));
            }
            Extra::Gap { expected, received } => {
                headers.insert(&PRODUCER_EXPECTED_SEQ, HeaderValue::from(expected));
                headers.insert(&PRODUCER_RECEIVED_SEQ, HeaderValue::from(received));
            }
        }
        match self.code {
            Code::UnsupportedEncoding => {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            Code::Unavailable => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
    }

    fn document(&self, instance: &str) -> Vec<u8> {
        #[derive(Serialize)]
        struct Document<'a> {
            r#type: &'a str,
            title: &'a str,
            status: u16,
            code: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            detail: Option<&'a str>,
            instance: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<ControlError<'a>>,
        }
        #[derive(Serialize)]
        struct ControlError<'a> {
            code: &'a str,
            message: &'a str,
        }
        let row = self.code.row();
        let document = Document {
            r#type: row.kind,
            title: row.title,
            status: row.status,
            code: row.code,
            detail: (!self.is_fault).then_some(&*self.detail),
            instance,
            error: self.is_control.then_some(ControlError { code: row.code, message: &self.detail }),
        };
        serde_json::to_vec(&document).expect("strings and a number can always be written as JSON")
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;
    use crate::engine::api::{AppendRefusal, CreateRefusal, LookupRefusal, ReadError, Unavailable};

    async fn answer(problem: &Problem, method: Method) -> (Response, Value) {
        let uri = "/v1/stream/a%20b?offset=x";
        let parts = Request::builder().method(method).uri(uri).body(()).unwrap().into_parts().0;
        let (parts, body) = problem.to_response(&Call::of(&parts)).into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let document = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        (Response::from_parts(parts, Body::empty()), document)
    }

    async fn get(problem: &Problem) -> (Response, Value) {
        answer(problem, Method::GET).await
    }

    #[tokio::test]
    async fn every_code_makes_a_whole_document() {
        for (i, code) in Code::ALL.iter().enumerate() {
            let row = code.row();
            assert!(
                Code::ALL[i + 1..].iter().all(|other| other.as_str() != row.code),
                "{code:?} is not alone"
            );
            let kind = row.kind.strip_prefix("/errors/").unwrap();
            assert_eq!(kind.to_uppercase().replace('-', "_"), row.code.trim_end_matches("_ERROR"));
            let (response, document) = get(&Problem::new(*code, "why \"it\"")).await;
            assert_eq!(response.status().as_u16(), row.status);
            assert!(response.status().is_client_error() || response.status().is_server_error());
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
            let expected = json!({
                "type": row.kind, "title": row.title, "status": row.status, "code": row.code,
                "detail": "why \"it\"", "instance": "/v1/stream/a%20b",
            });
            assert_eq!(document, expected);
        }
    }

    #[tokio::test]
    async fn a_fault_keeps_its_cause_to_itself() {
        for cause in [Unavailable::CommitFailed, Unavailable::Recovering, Unavailable::ReadFailed] {
            let (response, document) = get(&cause.into()).await;
            assert!(response.status().is_server_error());
            assert_eq!(document.get("detail"), None);
        }
    }

    #[tokio::test]
    async fn control_routes_have_an_error_member_beside() {
        let (response, document) = get(&Problem::no_control_route()).await;
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        assert_eq!(document["code"], document["error"]["code"]);
        assert_eq!(document["detail"], document["error"]["message"]);
    }

    #[tokio::test]
    async fn to_head_a_problem_has_its_headers_alone() {
        let (response, document) = answer(&LookupRefusal::Gone.into(), Method::HEAD).await;
        assert_eq!((response.status(), document), (StatusCode::GONE, Value::Null));
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert!(response.headers()[CONTENT_LENGTH].to_str().unwrap().parse::<u64>().unwrap() > 0);
    }

    #[tokio::test]
    async fn clients_find_what_they_act_on_in_headers() {
        let header = async |problem: Problem, name: &str| {
            let (response, _) = get(&problem).await;
            response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        for (problem, name, value) in [
            (AppendRefusal::Closed { tail: 42 }.into(), "stream-closed", "true"),
            (
                AppendRefusal::Closed { tail: 42 }.into(),
                "stream-next-offset",
                "0000000000000000_0000000000000042",
            ),
            (
                ReadError::OffsetGone { earliest: 42 }.into(),
                "stream-earliest-offset",
                "0000000000000000_0000000000000042",
            ),
            (
                CreateRefusal::AnchorGone { earliest: 1 }.into(),
                "stream-earliest-offset",
                "0000000000000000_0000000000000001",
            ),
            (AppendRefusal::StaleEpoch { current: 7 }.into(), "producer-epoch", "7"),
            (AppendRefusal::SequenceGap { expected: 3, received: 9 }.into(), "producer-expected-seq", "3"),
            (AppendRefusal::SequenceGap { expected: 3, received: 9 }.into(), "producer-received-seq", "9"),
            (Problem::method_not_allowed("GET, HEAD"), "allow", "GET, HEAD"),
            (Problem::new(Code::UnsupportedEncoding, ""), "accept-encoding", "identity"),
            (Unavailable::Overloaded.into(), "retry-after", "1"),
            (Unavailable::ReadBufferFull.into(), "retry-after", "1"),
        ] {
            assert_eq!(header(problem, name).await.as_deref(), Some(value), "{name}");
        }
        assert_eq!(header(AppendRefusal::StreamSeqConflict.into(), "producer-expected-seq").await, None);
    }
}
