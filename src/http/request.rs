//! What a request says, before its body: the path it was sent to, and its headers, checked.
//!
//! Everything here is step 4 of `protocol.md` §4: judged from the request alone, so that the answer is the same
//! whether or not the stream exists.

use axum::extract::OriginalUri;
use axum::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, COOKIE, HOST, TRANSFER_ENCODING};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use bytes::Bytes;

use crate::engine::api::{ForkAnchor, ForkRequest, ProducerTag};
use crate::http::headers::{
    PRODUCER_EPOCH, PRODUCER_ID, PRODUCER_SEQ, SENT_ONCE, STREAM_CLOSED, STREAM_EXPIRES_AT,
    STREAM_FORK_OFFSET, STREAM_FORK_SUB_OFFSET, STREAM_FORKED_FROM, STREAM_RETENTION_MAX_AGE,
    STREAM_RETENTION_MAX_BYTES, STREAM_SEQ, STREAM_TTL,
};
use crate::http::problem::{Code, Problem};
use crate::http::{ConnectionScheme, NotOneHost, TakesOver};
use crate::protocol::content_type::ContentType;
use crate::protocol::lifetime::{Lifetime, parse_expires_at, parse_ttl};
use crate::protocol::name::{NameLimits, StreamName, Target, parse_path};
use crate::protocol::offset::{self, RequestedOffset};
use crate::protocol::producer::{parse_number, parse_plain_number};
use crate::protocol::retention::{Retention, parse_max_age, parse_max_bytes};

/// Longest `Producer-Id` and `Stream-Seq`, in bytes.
const OPAQUE_BYTES_MAX: usize = 256;

/// The head of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) version: Version,
    /// The URI as the client sent it.
    pub(super) sent: &'a Uri,
    /// The path under the mount point of this router, still percent-encoded.
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// Who took the request writes an event stream by itself.
    pub(super) takes_over: bool,
    scheme: &'static str,
    has_one_host: bool,
}

impl<'a> Call<'a> {
    pub(super) fn of(parts: &'a Parts) -> Self {
        let sent = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |uri| &uri.0);
        let scheme = parts.extensions.get::<ConnectionScheme>().map_or("http", |scheme| scheme.0);
        Self {
            method: &parts.method,
            headers: &parts.headers,
            version: parts.version,
            sent,
            path: parts.uri.path(),
            query: parts.uri.query(),
            takes_over: parts.extensions.get::<TakesOver>().is_some(),
            scheme,
            has_one_host: parts.extensions.get::<NotOneHost>().is_none(),
        }
    }

    /// Path under which the host's application has put this router: what was cut off before it got here.
    fn mount(&self) -> &'a str {
        self.sent.path().strip_suffix(self.path).unwrap_or_default()
    }

    /// The request says who is asking, so that shared caches must not keep the answer.
    pub(super) fn has_credentials(&self) -> bool {
        self.headers.contains_key(AUTHORIZATION) || self.headers.contains_key(COOKIE)
    }

    /// Absolute URL of the resource, for `Location` (`protocol.md` §2). A request without `Host` (HTTP/1.0) gets the
    /// path alone, which is a valid reference too.
    pub(super) fn location(&self, public_origin: Option<&str>) -> Result<HeaderValue, Problem> {
        let path = self.sent.path();
        let url = match public_origin {
            Some(origin) => [origin, path].concat(),
            None => match self.authority() {
                Some(authority) => [self.scheme, "://", authority, path].concat(),
                None => path.to_owned(),
            },
        };
        HeaderValue::try_from(url)
            .map_err(|_| Problem::bad_request("the path holds bytes that a URL cannot hold"))
    }

    fn authority(&self) -> Option<&'a str> {
        match self.sent.authority() {
            Some(authority) => Some(authority.as_str()),
            None => self.headers.get(HOST)?.to_str().ok(),
        }
    }

    /// Refuses what the server that took the request says about its `Host`, before anything else is looked at.
    pub(super) fn check_host(&self) -> Result<(), Problem> {
        if self.has_one_host {
            return Ok(());
        }
        Err(Problem::bad_request("a request has the header Host, and has it once"))
    }

    /// Refuses a malformed `Host`, and headers sent twice that may be sent once.
    pub(super) fn check_syntax(&self) -> Result<(), Problem> {
        if self.headers.len() != self.headers.keys_len() {
            for name in SENT_ONCE {
                if self.headers.get_all(name).iter().nth(1).is_some() {
                    return Err(Problem::bad_request(format!("the header {name} was sent more than once")));
                }
            }
        }
        let authority = match self.sent.authority() {
            Some(authority) => is_host(authority.as_str().as_bytes()),
            None => true,
        };
        let host = self.headers.get(HOST).is_none_or(|host| is_host(host.as_bytes()));
        if authority && host {
            Ok(())
        } else {
            Err(Problem::bad_request("the header Host is not a host with an optional port"))
        }
    }

    fn header(&self, name: &HeaderName) -> Option<&'a [u8]> {
        self.headers.get(name).map(HeaderValue::as_bytes)
    }

    /// `Content-Type`; empty counts as absent.
    pub(super) fn content_type(&self) -> Result<Option<ContentType>, Problem> {
        match self.header(&CONTENT_TYPE) {
            None | Some(b"") => Ok(None),
            Some(value) => Ok(Some(ContentType::parse(value)?)),
        }
    }

    /// Refuses coded bodies: they would be stored, and returned, as they are.
    pub(super) fn check_content_encoding(&self) -> Result<(), Problem> {
        // The framing is what the transport has undone; any other coding is still in the body.
        let mut codings = self.headers.get_all(TRANSFER_ENCODING).iter();
        let is_framed_only =
            codings.next().is_none_or(|first| first.as_bytes().eq_ignore_ascii_case(b"chunked"))
                && codings.next().is_none();
        if !is_framed_only {
            return Err(Problem::new(Code::UnsupportedEncoding, "bodies must be sent uncompressed"));
        }
        match self.header(&CONTENT_ENCODING) {
            None => Ok(()),
            Some(value) if value.eq_ignore_ascii_case(b"identity") => Ok(()),
            Some(_) => Err(Problem::new(Code::UnsupportedEncoding, "bodies must be sent uncompressed")),
        }
    }

    /// `Stream-Closed: true` on any line, in any letter case. Every other value means no.
    pub(super) fn closes(&self) -> bool {
        self.headers
            .get_all(&STREAM_CLOSED)
            .iter()
            .any(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
    }

    /// `Stream-TTL` or `Stream-Expires-At`.
    pub(super) fn lifetime(&self) -> Result<Option<Lifetime>, Problem> {
        match (self.header(&STREAM_TTL), self.header(&STREAM_EXPIRES_AT)) {
            (None, None) => Ok(None),
            (Some(ttl), None) => Ok(Some(Lifetime::Ttl { seconds: parse_ttl(ttl)? })),
            (None, Some(instant)) => Ok(Some(Lifetime::ExpiresAt(parse_expires_at(instant)?))),
            (Some(_), Some(_)) => {
                Err(Problem::bad_request("Stream-TTL and Stream-Expires-At exclude each other"))
            }
        }
    }

    /// `Stream-Retention-Max-Age` and `Stream-Retention-Max-Bytes`.
    pub(super) fn retention(&self) -> Result<Retention, Problem> {
        Ok(Retention {
            max_age_secs: self.header(&STREAM_RETENTION_MAX_AGE).map(parse_max_age).transpose()?,
            max_bytes: self.header(&STREAM_RETENTION_MAX_BYTES).map(parse_max_bytes).transpose()?,
        })
    }

    /// `Stream-Seq`.
    pub(super) fn stream_seq(&self) -> Result<Option<Bytes>, Problem> {
        self.header(&STREAM_SEQ).map(|value| opaque("Stream-Seq", value)).transpose()
    }

    /// The producer headers: all three or none.
    pub(super) fn producer(&self) -> Result<Option<ProducerTag>, Problem> {
        let headers = (self.header(&PRODUCER_ID), self.header(&PRODUCER_EPOCH), self.header(&PRODUCER_SEQ));
        match headers {
            (None, None, None) => Ok(None),
            (Some(id), Some(epoch), Some(seq)) => Ok(Some(ProducerTag {
                id: opaque("Producer-Id", id)?,
                epoch: number("Producer-Epoch", parse_number(epoch))?,
                seq: number("Producer-Seq", parse_number(seq))?,
            })),
            _ => Err(Problem::bad_request(
                "Producer-Id, Producer-Epoch and Producer-Seq go together: send all three or none",
            )),
        }
    }

    /// The fork headers; `base` is the base path of streams under the mount (`protocol.md` §18.1).
    pub(super) fn fork(&self, base: &str, limits: &NameLimits) -> Result<Option<ForkRequest>, Problem> {
        let offset = self.header(&STREAM_FORK_OFFSET);
        let sub_offset = self.header(&STREAM_FORK_SUB_OFFSET);
        let Some(source) = self.header(&STREAM_FORKED_FROM) else {
            if offset.is_some() || sub_offset.is_some() {
                return Err(Problem::bad_request(
                    "Stream-Fork-Offset and Stream-Fork-Sub-Offset need Stream-Forked-From",
                ));
            }
            return Ok(None);
        };
        if !source.starts_with(b"/") {
            return Err(Problem::bad_request("Stream-Forked-From is not a path that begins with a slash"));
        }
        let anchor = offset.map(fork_anchor).transpose()?.unwrap_or_default();
        let sub_offset = match sub_offset {
            Some(value) => number("Stream-Fork-Sub-Offset", parse_plain_number(value))?,
            None => 0,
        };
        let source = self.fork_source(source, base, limits).ok_or_else(|| {
            Problem::new(Code::NotFound, "Stream-Forked-From does not name a stream of this server")
        })?;
        Ok(Some(ForkRequest { source, anchor, sub_offset }))
    }

    /// The stream that a full URL path leads to.
    fn fork_source(&self, path: &[u8], base: &str, limits: &NameLimits) -> Option<StreamName> {
        let path = std::str::from_utf8(path).ok()?;
        let name = path.strip_prefix(self.mount())?.strip_prefix(base)?.strip_prefix('/')?;
        match parse_path(name, limits) {
            Ok(Target::Stream(name)) => Some(name),
            Ok(Target::Reserved) | Err(_) => None,
        }
    }
}

/// `Stream-Fork-Offset`: a minted offset, or `-1` for the start. `now` is said by leaving the header out.
fn fork_anchor(value: &[u8]) -> Result<ForkAnchor, Problem> {
    let requested = std::str::from_utf8(value).ok().and_then(|text| offset::parse(text).ok());
    match requested {
        Some(RequestedOffset::At(position)) => Ok(ForkAnchor::At(position)),
        Some(RequestedOffset::Start) => Ok(ForkAnchor::Start),
        Some(RequestedOffset::Now) | None => Err(Problem::new(
            Code::InvalidOffset,
            "Stream-Fork-Offset is neither an offset of a stream nor -1",
        )),
    }
}

fn opaque(name: &'static str, value: &[u8]) -> Result<Bytes, Problem> {
    if (1..=OPAQUE_BYTES_MAX).contains(&value.len()) {
        Ok(Bytes::copy_from_slice(value))
    } else {
        Err(Problem::bad_request(format!("{name} has to have 1 to {OPAQUE_BYTES_MAX} bytes")))
    }
}

fn number(name: &'static str, value: Option<u64>) -> Result<u64, Problem> {
    value.ok_or_else(|| Problem::bad_request(format!("{name} is not a number from 0 to 2^53 - 1")))
}

/// `host[:port]` without user info. The usual spellings are told by their bytes alone.
fn is_host(value: &[u8]) -> bool {
    let is_name_byte = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let (host, port) = match value.iter().position(|&byte| byte == b':') {
        Some(colon) => (&value[..colon], &value[colon + 1..]),
        None => (value, &b""[..]),
    };
    if !host.is_empty() && host.iter().all(is_name_byte) {
        return port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    }
    !value.contains(&b'@') && Authority::try_from(value).is_ok_and(|parsed| !parsed.host().is_empty())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    const LIMITS: NameLimits = NameLimits { max_bytes: 1024, max_segments: 8 };

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::put(uri);
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request.body(()).unwrap().into_parts().0
    }

    fn mounted(sent: &str, inner: &str, headers: &[(&str, &str)]) -> Parts {
        let mut parts = parts(inner, headers);
        parts.extensions.insert(OriginalUri(sent.parse().unwrap()));
        parts
    }

    fn code<T>(result: Result<T, Problem>) -> Option<&'static str> {
        result.err().map(|problem| problem.code().as_str())
    }

    #[test]
    fn only_the_word_true_closes_in_any_letter_case_and_on_any_line() {
        let closes = |values: &[&str]| {
            let headers: Vec<_> = values.iter().map(|value| ("stream-closed", *value)).collect();
            Call::of(&parts("/a", &headers)).closes()
        };
        for values in [&["true"][..], &["TRUE"], &["True"], &["no", "true"]] {
            assert!(closes(values), "{values:?}");
        }
        for values in [&[][..], &[""], &["yes"], &["1"], &["false"], &["true,true"]] {
            assert!(!closes(values), "{values:?}");
        }
    }

    #[test]
    fn a_header_sent_twice_is_refused_unless_it_may_be() {
        for name in SENT_ONCE {
            let parts = parts("/a", &[(name.as_str(), "a"), (name.as_str(), "a")]);
            assert_eq!(code(Call::of(&parts).check_syntax()), Some("BAD_REQUEST"), "{name}");
        }
        for name in ["stream-closed", "if-none-match", "accept"] {
            let parts = parts("/a", &[(name, "a"), (name, "a")]);
            assert_eq!(code(Call::of(&parts).check_syntax()), None, "{name}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_an_optional_port() {
        for host in ["localhost", "a.example:80", "127.0.0.1:4437", "[::1]", "[::1]:4437", "a_b", "x:"] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in ["", ":80", "a b", "a/b", "u@a", "a:b", "a:123456", "[::1", "a:80:90", "a\u{e9}"] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn producer_headers_go_together_and_hold_plain_numbers() {
        let producer = |id: Option<&str>, epoch: Option<&str>, seq: Option<&str>| {
            let headers: Vec<_> = [("producer-id", id), ("producer-epoch", epoch), ("producer-seq", seq)]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect();
            Call::of(&parts("/a", &headers)).producer()
        };
        let tag = producer(Some("p"), Some("007"), Some("9007199254740991")).unwrap().unwrap();
        assert_eq!((tag.id.as_ref(), tag.epoch, tag.seq), (&b"p"[..], 7, 9_007_199_254_740_991));
        assert!(producer(None, None, None).unwrap().is_none());
        let long = "p".repeat(257);
        for (id, epoch, seq) in [
            (Some("p"), Some("0"), None),
            (None, Some("0"), Some("0")),
            (Some(""), Some("0"), Some("0")),
            (Some(&*long), Some("0"), Some("0")),
            (Some("p"), Some("+1"), Some("0")),
            (Some("p"), Some("0"), Some("1e3")),
            (Some("p"), Some("0"), Some("9007199254740992")),
            (Some("p"), Some(""), Some("0")),
        ] {
            assert_eq!(code(producer(id, epoch, seq)), Some("BAD_REQUEST"), "{id:?} {epoch:?} {seq:?}");
        }
    }

    #[test]
    fn fork_headers_are_told_apart_by_what_is_wrong_with_them() {
        let fork =
            |headers: &[(&str, &str)]| Call::of(&parts("/v1/stream/b", headers)).fork("/v1/stream", &LIMITS);
        let from = |path| ("stream-forked-from", path);
        let source = from("/v1/stream/a%2Fx");
        let at = |offset| ("stream-fork-offset", offset);
        let sub = |offset| ("stream-fork-sub-offset", offset);

        let request = fork(&[source]).unwrap().unwrap();
        assert_eq!(
            (request.source.as_str(), request.anchor, request.sub_offset),
            ("a/x", ForkAnchor::Tail, 0)
        );
        let request = fork(&[source, at("-1"), sub("7")]).unwrap().unwrap();
        assert_eq!((request.anchor, request.sub_offset), (ForkAnchor::Start, 7));
        let request = fork(&[source, at("0000000000000000_0000000000000042")]).unwrap().unwrap();
        assert_eq!(request.anchor, ForkAnchor::At(42));
        assert!(fork(&[]).unwrap().is_none());

        for (headers, expected) in [
            (&[from("v1/stream/a")][..], "BAD_REQUEST"),
            (&[from("")], "BAD_REQUEST"),
            (&[at("-1")], "BAD_REQUEST"),
            (&[sub("0")], "BAD_REQUEST"),
            (&[source, sub("-1")], "BAD_REQUEST"),
            (&[source, sub("01")], "BAD_REQUEST"),
            (&[source, at("now")], "INVALID_OFFSET"),
            (&[source, at("0000000000000001_0000000000000042")], "INVALID_OFFSET"),
            (&[from("/v2/stream/a")], "NOT_FOUND"),
            (&[from("/v1/stream")], "NOT_FOUND"),
            (&[from("/v1/stream/")], "NOT_FOUND"),
            (&[from("/v1/stream/__ds/x")], "NOT_FOUND"),
            (&[from("/v1/streams/a")], "NOT_FOUND"),
        ] {
            assert_eq!(code(fork(headers)), Some(expected), "{headers:?}");
        }
    }

    #[test]
    fn under_a_mount_the_path_as_sent_counts() {
        let headers = [("stream-forked-from", "/api/s/a"), ("host", "h:1")];
        let parts = mounted("/api/s/b%20c", "/s/b%20c", &headers);
        let call = Call::of(&parts);
        assert_eq!(call.fork("/s", &LIMITS).unwrap().unwrap().source.as_str(), "a");
        assert_eq!(call.location(None).unwrap(), "http://h:1/api/s/b%20c");
        assert_eq!(call.location(Some("https://o")).unwrap(), "https://o/api/s/b%20c");

        let parts = mounted("/api/s/b", "/s/b", &[("stream-forked-from", "/s/a")]);
        assert_eq!(code(Call::of(&parts).fork("/s", &LIMITS)), Some("NOT_FOUND"));
        assert_eq!(Call::of(&parts).location(None).unwrap(), "/api/s/b");
    }

    #[test]
    fn the_authority_of_the_uri_goes_before_host() {
        let mut parts = parts("https://a.example:8/s/x", &[("host", "b.example")]);
        parts.extensions.insert(ConnectionScheme("https"));
        assert_eq!(Call::of(&parts).location(None).unwrap(), "https://a.example:8/s/x");
    }

    #[test]
    fn lifetimes_exclude_each_other_and_coded_bodies_are_refused() {
        let both = [("stream-ttl", "1"), ("stream-expires-at", "2030-01-01T00:00:00Z")];
        assert_eq!(code(Call::of(&parts("/a", &both)).lifetime()), Some("BAD_REQUEST"));
        assert_eq!(code(Call::of(&parts("/a", &[("stream-ttl", "")])).lifetime()), Some("BAD_REQUEST"));
        for (coding, refused) in [("identity", false), ("IDENTITY", false), ("gzip", true), ("", true)] {
            let parts = parts("/a", &[("content-encoding", coding)]);
            assert_eq!(Call::of(&parts).check_content_encoding().is_err(), refused, "{coding}");
        }
    }
}
