//! The router from outside, over a store that gives fixed answers: paths, precedence, statuses and headers. Live reads
//! and everything that depends on state are tested over the real engine, in `tests/`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::config::{Config, CorsOrigins};
use crate::engine::api::{AppendError, AppendRefusal, Appended};
use crate::http::fake_store::{CONTENT, FakeStore};
use crate::http::{build_router, build_router_with_ready};
use crate::protocol::lifetime::Lifetime;

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
    /// Length known beforehand, which becomes `Content-Length`.
    length: Option<u64>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn code(&self) -> String {
        let document: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        document["code"].as_str().unwrap_or_default().to_owned()
    }
}

async fn send(router: &Router, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let (parts, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    let length = body.size_hint().exact();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.into()).unwrap();
    Answer { status: parts.status, headers: parts.headers, body, length }
}

fn router() -> Router {
    build_router(Arc::new(FakeStore::new()), &Config::default())
}

fn with_base(base: &str) -> Router {
    let mut config = Config::default();
    config.http.stream_base_path = base.to_owned();
    build_router(Arc::new(FakeStore::new()), &config)
}

#[tokio::test]
async fn paths_and_methods_lead_where_the_table_says() {
    let router = router();
    for (method, path, status, code) in [
        ("GET", "/v1/stream/a", 200, ""),
        ("HEAD", "/v1/stream/a", 200, ""),
        ("PUT", "/v1/stream/b", 201, ""),
        ("DELETE", "/v1/stream/a", 204, ""),
        ("GET", "/v1/stream/b", 404, "NOT_FOUND"),
        ("PATCH", "/v1/stream/a", 405, "METHOD_NOT_ALLOWED"),
        ("TRACE", "/v1/stream/a//", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/stream/a//b", 400, "INVALID_STREAM_NAME"),
        ("GET", "/v1/stream/a/..", 400, "INVALID_STREAM_NAME"),
        ("GET", "/v1/stream/%00", 400, "INVALID_STREAM_NAME"),
        ("GET", "/v1/stream/%zz", 400, "INVALID_STREAM_NAME"),
        ("GET", "/v1/stream/1/2/3/4/5/6/7/8/9", 400, "INVALID_STREAM_NAME"),
        ("GET", "/v1/stream", 404, "NOT_FOUND"),
        ("GET", "/v1/stream/", 404, "NOT_FOUND"),
        ("GET", "/v1/streams/a", 404, "NOT_FOUND"),
        ("GET", "/", 404, "NOT_FOUND"),
        ("PATCH", "/", 404, "NOT_FOUND"),
        ("GET", "/v1/stream/__ds", 404, "NOT_FOUND"),
        ("PUT", "/v1/stream/__ds/subscriptions/x", 404, "NOT_FOUND"),
        ("PATCH", "/v1/stream/%5F_ds/x", 404, "NOT_FOUND"),
        ("GET", "/healthz", 200, ""),
        ("HEAD", "/readyz", 200, ""),
        ("POST", "/healthz", 405, "METHOD_NOT_ALLOWED"),
    ] {
        let answer = send(&router, method, path, &[], "").await;
        assert_eq!((answer.status.as_u16(), &*answer.code()), (status, code), "{method} {path}");
        let allow = answer.header("allow").is_some();
        assert_eq!(allow, status == 405, "{method} {path}");
    }
}

#[tokio::test]
async fn every_response_carries_the_headers_for_browsers() {
    let mut config = Config::default();
    config.http.cors_origins = CorsOrigins::List(vec!["https://a.example".into()]);
    let listed = build_router(Arc::new(FakeStore::new()), &config);
    let open = router();
    let etag = send(&open, "GET", "/v1/stream/a", &[], "").await.header("etag").unwrap().to_owned();
    for (method, path, header, status) in [
        ("GET", "/v1/stream/a", ("accept", "*/*"), 200),
        ("GET", "/v1/stream/a", ("if-none-match", &*etag), 304),
        ("PUT", "/v1/stream/b", ("stream-ttl", "60"), 201),
        ("PUT", "/v1/stream/b", ("stream-ttl", "1e3"), 400),
        ("PUT", "/v1/stream/b", ("content-encoding", "gzip"), 415),
        ("DELETE", "/v1/stream/a", ("accept", "*/*"), 204),
        ("HEAD", "/v1/stream/b", ("accept", "*/*"), 404),
        ("PATCH", "/v1/stream/b", ("accept", "*/*"), 405),
        ("GET", "/v1/stream/a?offset=-1&live=sse", ("accept", "*/*"), 503),
        ("OPTIONS", "/nowhere", ("access-control-request-headers", "authorization"), 204),
        ("GET", "/nowhere", ("accept", "*/*"), 404),
        ("GET", "/healthz", ("accept", "*/*"), 200),
    ] {
        let answer = send(&open, method, path, &[header], "").await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{method} {path}");
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("cross-origin"), "{method} {path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{method} {path}");
        let exposed = answer.header("access-control-expose-headers").unwrap();
        assert!(exposed.contains("Stream-SSE-Data-Encoding"), "{method} {path}");

        let answer = send(&listed, method, path, &[header, ("origin", "https://a.example")], "").await;
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("https://a.example"),
            "{method} {path}"
        );
        assert_eq!(answer.header("vary"), Some("Origin"), "{method} {path}");
        let answer = send(&listed, method, path, &[header], "").await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{method} {path}");
        assert_eq!(answer.header("vary"), Some("Origin"), "{method} {path}");
    }
}

#[tokio::test]
async fn a_preflight_allows_what_clients_send() {
    let answer = send(&router(), "OPTIONS", "/v1/stream/a//b", &[], "").await;
    assert_eq!((answer.status, &*answer.body), (StatusCode::NO_CONTENT, ""));
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET, HEAD, PUT, POST, DELETE, OPTIONS"));
    assert_eq!(answer.header("access-control-max-age"), Some("86400"));
    let allowed = answer.header("access-control-allow-headers").unwrap();
    for header in ["Authorization", "Producer-Id", "Stream-Closed", "*"] {
        assert!(allowed.split(", ").any(|listed| listed == header), "{header}");
    }
}

#[tokio::test]
async fn at_the_root_service_routes_win_over_streams() {
    for router in [with_base(""), with_base("/")] {
        assert_eq!(send(&router, "GET", "/a", &[], "").await.body, CONTENT);
        assert_eq!(send(&router, "GET", "/healthz", &[], "").await.body, "ok");
        assert_eq!(send(&router, "GET", "/", &[], "").await.code(), "NOT_FOUND");
        assert_eq!(send(&router, "GET", "/__ds/x", &[], "").await.code(), "NOT_FOUND");
        let created = send(&router, "PUT", "/x/b", &[("host", "h")], "").await;
        assert_eq!(created.header("location"), Some("http://h/x/b"));
    }
}

#[tokio::test]
async fn nested_in_a_host_the_path_as_sent_is_what_clients_see() {
    let store = Arc::new(FakeStore::new());
    let app = Router::new().nest("/api/v2", build_router(store.clone(), &Config::default()));
    assert_eq!(send(&app, "GET", "/api/v2/v1/stream/a", &[], "").await.body, CONTENT);
    assert_eq!(send(&app, "GET", "/api/v2/healthz", &[], "").await.body, "ok");
    let created = send(&app, "PUT", "/api/v2/v1/stream/x%20y", &[("host", "h:8")], "").await;
    assert_eq!(created.header("location"), Some("http://h:8/api/v2/v1/stream/x%20y"));
    for path in ["/api/v2/v1/stream/b", "/api/v2/nowhere", "/api/v2"] {
        let answer = send(&app, "GET", path, &[], "").await;
        let document: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(document["instance"], path);
    }
    for (source, status) in [("/api/v2/v1/stream/a", 201), ("/v1/stream/a", 404)] {
        let answer = send(&app, "PUT", "/api/v2/v1/stream/f", &[("stream-forked-from", source)], "[1]").await;
        assert_eq!(answer.status.as_u16(), status, "{source}");
    }
    let asked = ["create x y json=false", "create f json=true"];
    assert_eq!(
        store.take_asked().iter().filter(|call| call.starts_with("create")).collect::<Vec<_>>(),
        asked
    );
}

#[tokio::test]
async fn what_the_request_alone_tells_comes_before_the_state_of_the_stream() {
    let store = Arc::new(FakeStore::new());
    let mut config = Config::default();
    config.limits.max_body_bytes = 4;
    let router = build_router(store.clone(), &config);
    let text = ("content-type", "text/plain");
    for (method, path, headers, body, code) in [
        ("POST", "/v1/stream/none", &[text][..], "12345", "PAYLOAD_TOO_LARGE"),
        ("POST", "/v1/stream/none", &[text, ("producer-id", "p")], "12345", "BAD_REQUEST"),
        ("POST", "/v1/stream/none", &[text, ("content-encoding", "br")], "12345", "UNSUPPORTED_ENCODING"),
        ("POST", "/v1/stream/none", &[("content-type", "text")], "1", "BAD_REQUEST"),
        ("POST", "/v1/stream/none", &[text, ("stream-seq", "")], "1", "BAD_REQUEST"),
        ("POST", "/v1/stream/none", &[text], "", "EMPTY_BODY"),
        ("POST", "/v1/stream/none", &[text, ("stream-closed", "yes")], "", "EMPTY_BODY"),
        ("POST", "/v1/stream/none", &[], "1", "BAD_REQUEST"),
        ("POST", "/v1/stream/none", &[("content-type", "")], "1", "BAD_REQUEST"),
        ("PUT", "/v1/stream/a", &[("stream-ttl", "-1")], "", "BAD_REQUEST"),
        ("PUT", "/v1/stream/a", &[("stream-forked-from", "a")], "12345", "BAD_REQUEST"),
        ("PUT", "/v1/stream/a", &[("host", "a b")], "", "BAD_REQUEST"),
        ("PUT", "/v1/stream/a", &[], "12345", "PAYLOAD_TOO_LARGE"),
        ("GET", "/v1/stream/none?offset=x", &[], "", "INVALID_OFFSET"),
        ("GET", "/v1/stream/none?offset=", &[], "", "INVALID_OFFSET"),
        ("GET", "/v1/stream/none?offset=-1&offset=-1", &[], "", "INVALID_OFFSET"),
        ("GET", "/v1/stream/none?offset=-1&live=poll", &[], "", "BAD_REQUEST"),
        ("GET", "/v1/stream/none?live=sse", &[], "", "BAD_REQUEST"),
    ] {
        let answer = send(&router, method, path, headers, body).await;
        assert_eq!(answer.code(), code, "{method} {path} {headers:?}");
        let closes = code == "PAYLOAD_TOO_LARGE";
        assert_eq!(answer.header("connection").is_some(), closes, "{method} {path} {headers:?}");
    }
    assert_eq!(store.take_asked(), [""; 0]);
}

#[tokio::test]
async fn appends_are_answered_by_what_they_did() {
    let producer = [("producer-id", "p"), ("producer-epoch", "1"), ("producer-seq", "2")];
    let text = ("content-type", "text/plain");
    let json = ("content-type", "Application/JSON; x=y");
    let close = ("stream-closed", "TRUE");
    let with_producer = |more: &[(&'static str, &'static str)]| [&producer[..], more].concat();
    let plain = Appended { tail: 12, closed: false, duplicate: false, producer: None };
    let produced = Appended { producer: Some((1, 2)), ..plain };
    let closed = |answer: Appended| Appended { closed: true, ..answer };
    let duplicate = |answer: Appended| Appended { duplicate: true, ..answer };
    for (headers, body, answer, status, asked) in [
        (vec![text], "xy", plain, 204, "append a bytes=2 json=false close=false"),
        (vec![json], "[1]", plain, 204, "append a bytes=3 json=true close=false"),
        (vec![text, close], "xy", closed(plain), 204, "append a bytes=2 json=false close=true"),
        (vec![close], "", closed(plain), 204, "append a bytes=0 json=false close=true"),
        (
            vec![close, ("content-type", "nonsense")],
            "",
            closed(plain),
            204,
            "append a bytes=0 json=false close=true",
        ),
        (with_producer(&[text]), "xy", produced, 200, "append a bytes=2 json=false close=false"),
        (with_producer(&[text]), "xy", duplicate(produced), 204, "append a bytes=2 json=false close=false"),
        (
            with_producer(&[text, close]),
            "xy",
            closed(produced),
            200,
            "append a bytes=2 json=false close=true",
        ),
        (with_producer(&[close]), "", closed(produced), 204, "append a bytes=0 json=false close=true"),
    ] {
        let store = Arc::new(FakeStore { appended: Ok(answer), ..FakeStore::new() });
        let router = build_router(store.clone(), &Config::default());
        let response = send(&router, "POST", "/v1/stream/a", &headers, body).await;
        assert_eq!((response.status.as_u16(), &*response.body), (status, ""), "{headers:?}");
        assert_eq!(store.take_asked(), [asked]);
        assert_eq!(response.header("stream-next-offset"), Some("0000000000000000_0000000000000012"));
        assert_eq!(response.header("stream-closed"), answer.closed.then_some("true"), "{headers:?}");
        assert_eq!(response.header("producer-epoch"), answer.producer.map(|_| "1"), "{headers:?}");
        assert_eq!(response.header("producer-seq"), answer.producer.map(|_| "2"), "{headers:?}");
        assert_eq!(response.length, (status == 200).then_some(0), "{headers:?}");
    }
    let refused = Err(AppendError::Refused(AppendRefusal::Closed { tail: 3 }));
    let store = FakeStore { appended: refused, ..FakeStore::new() };
    let router = build_router(Arc::new(store), &Config::default());
    let answer = send(&router, "POST", "/v1/stream/a", &[text], "xy").await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (409, "STREAM_CLOSED"));
    assert_eq!(answer.header("stream-next-offset"), Some("0000000000000000_0000000000000003"));
}

#[tokio::test]
async fn a_page_says_where_it_ends_and_how_long_it_may_be_kept() {
    let page = send(&router(), "GET", "/v1/stream/a?offset=0000000000000000_0000000000000004", &[], "").await;
    assert_eq!((&*page.body, page.length), (&CONTENT[4..], Some(6)));
    for (name, value) in [
        ("content-type", "text/plain; charset=utf-8"),
        ("stream-next-offset", "0000000000000000_0000000000000010"),
        ("stream-up-to-date", "true"),
        ("cache-control", "public, max-age=60, stale-while-revalidate=300"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    for absent in ["stream-closed", "stream-cursor"] {
        assert_eq!(page.header(absent), None, "{absent}");
    }
    let private = send(&router(), "GET", "/v1/stream/a", &[("cookie", "x=y")], "").await;
    assert_eq!(private.header("cache-control"), Some("private, max-age=60, stale-while-revalidate=300"));

    let now = send(&router(), "GET", "/v1/stream/a?offset=now", &[("if-none-match", "*")], "").await;
    assert_eq!((now.status.as_u16(), &*now.body), (200, ""));
    assert_eq!((now.header("etag"), now.header("cache-control")), (None, Some("no-store")));
    assert_eq!(now.header("stream-up-to-date"), Some("true"));

    let mut config = Config::default();
    config.limits.read_page_bytes = 3;
    let mut store = FakeStore::new();
    store.info.closed = true;
    let router = build_router(Arc::new(store), &config);
    let part = send(&router, "GET", "/v1/stream/a?offset=-1", &[], "").await;
    assert_eq!(part.body, &CONTENT[..3]);
    assert_eq!((part.header("stream-up-to-date"), part.header("stream-closed")), (None, None));
    let eof = send(&router, "GET", "/v1/stream/a?offset=0000000000000000_0000000000000010", &[], "").await;
    assert_eq!((eof.header("stream-up-to-date"), eof.header("stream-closed")), (Some("true"), Some("true")));
    assert_eq!(eof.header("cache-control"), Some("public, max-age=60, stale-while-revalidate=300"));
}

#[tokio::test]
async fn an_unchanged_page_is_recognised_without_being_read() {
    let store = Arc::new(FakeStore::new());
    let router = build_router(store.clone(), &Config::default());
    let first = send(&router, "GET", "/v1/stream/a", &[], "").await;
    let etag = first.header("etag").unwrap().to_owned();
    store.take_asked();

    let again = send(&router, "GET", "/v1/stream/a", &[("if-none-match", &etag)], "").await;
    assert_eq!((again.status.as_u16(), &*again.body), (304, ""));
    for name in ["etag", "cache-control", "stream-next-offset", "stream-up-to-date"] {
        assert_eq!(again.header(name), first.header(name), "{name}");
    }
    assert_eq!((again.length, again.header("content-type")), (None, None));
    assert_eq!(store.take_asked(), ["read At(10) max=1"]);

    for hit in ["*", &format!("\"x\", W/{etag}")] {
        let answer = send(&router, "GET", "/v1/stream/a", &[("if-none-match", hit)], "").await;
        assert_eq!(answer.status.as_u16(), 304, "{hit}");
    }
    for (path, miss) in [
        ("/v1/stream/a?offset=0000000000000000_0000000000000001", &*etag),
        ("/v1/stream/a", &etag.replace("abc", "abd")),
        ("/v1/stream/a", &etag.replace(":t", ":c")),
        ("/v1/stream/a", &etag.replace(":10:", ":99:")),
        ("/v1/stream/a", &etag.replace(":10:", ":9:")),
        ("/v1/stream/a", "nonsense"),
    ] {
        let answer = send(&router, "GET", path, &[("if-none-match", miss)], "").await;
        assert_eq!(answer.status.as_u16(), 200, "{path} {miss}");
    }
}

#[tokio::test]
async fn head_describes_the_stream_without_a_length() {
    let mut store = FakeStore::new();
    store.info.lifetime = Some(Lifetime::Ttl { seconds: 60 });
    store.info.closed = true;
    let router = build_router(Arc::new(store), &Config::default());
    let head = send(&router, "HEAD", "/v1/stream/a", &[], "").await;
    assert_eq!((head.status.as_u16(), head.length), (200, None));
    for (name, value) in [
        ("content-type", Some("text/plain; charset=utf-8")),
        ("stream-next-offset", Some("0000000000000000_0000000000000010")),
        ("stream-ttl", Some("60")),
        ("stream-expires-at", None),
        ("stream-closed", Some("true")),
        ("cache-control", Some("no-store")),
        ("etag", None),
    ] {
        assert_eq!(head.header(name), value, "{name}");
    }
}

#[tokio::test]
async fn readiness_needs_the_start_and_every_shard_and_ends_with_shutdown() {
    let mut store = FakeStore::new();
    store.health.waiting_for.push("shard 1 is recovering".into());
    let ready = Arc::new(AtomicBool::new(false));
    let shutdown = CancellationToken::new();
    let config = Config::default();
    let recovering = build_router_with_ready(Arc::new(store), &config, ready.clone(), shutdown.clone());
    let healthy =
        build_router_with_ready(Arc::new(FakeStore::new()), &config, ready.clone(), shutdown.clone());

    let answer = send(&recovering, "GET", "/readyz", &[], "").await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (503, "UNAVAILABLE"));
    assert!(answer.body.contains("start-up; shard 1 is recovering"), "{}", answer.body);
    assert_eq!(send(&healthy, "GET", "/readyz", &[], "").await.status.as_u16(), 503);
    ready.store(true, Ordering::Release);
    assert_eq!(send(&recovering, "GET", "/readyz", &[], "").await.status.as_u16(), 503);
    assert_eq!(send(&healthy, "GET", "/readyz", &[], "").await.body, "ready");
    shutdown.cancel();
    assert_eq!(send(&healthy, "GET", "/readyz", &[], "").await.status.as_u16(), 503);
    assert_eq!(send(&healthy, "GET", "/healthz", &[], "").await.status.as_u16(), 200);
}
