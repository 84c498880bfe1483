//! The crate as a library: the router inside a host's application, on the host's runtime.
//!
//! * [`example`]: `examples/embed.rs`, run as a program.
//! * [`nesting`]: paths, stores and runtimes that a host may choose.
//! * [`ending`]: what ends with the shutdown token, and what with the last handle.

mod ending;
mod example;
mod nesting;

#[path = "../support/mod.rs"]
mod support;

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use durable_streams_server::Config;
use http_body_util::BodyExt as _;
use support::http::PATIENCE;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt as _;

/// Shards of the stores in these tests.
const SHARDS: usize = 2;

/// Held for reading by tests that start stores, and for writing by the one that counts their threads.
static STORES: RwLock<()> = RwLock::new(());

/// Held by whoever starts a child, until it is the program that it is to be: up to then it has the locks of this process, too. And
/// by the test that looks when they are released.
static CHILDREN: Mutex<()> = Mutex::new(());

fn may_start_children() -> MutexGuard<'static, ()> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn may_start_stores() -> RwLockReadGuard<'static, ()> {
    STORES.read().unwrap_or_else(PoisonError::into_inner)
}

/// The defaults, with few shards and live reads that do not end by themselves.
fn config() -> Config {
    let mut config = Config::default();
    config.storage.acid_shard_count = Some(SHARDS);
    config.server.long_poll_timeout = Duration::from_secs(3600);
    config.server.sse_reconnect_interval = None;
    config.server.sse_heartbeat = None;
    config
}

/// One runtime of each kind that a host may have.
fn host_runtimes() -> [Runtime; 2] {
    let current_thread = Builder::new_current_thread().enable_all().build();
    let multi_thread = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    [current_thread, multi_thread].map(|runtime| runtime.expect("a runtime can be built"))
}

/// Waits for something that says nothing when it happens.
#[track_caller]
fn wait_until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(outcome) = attempt() {
            return outcome;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The answer to a request that went straight into a router.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    #[track_caller]
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"));
        value.to_str().expect("the header is text")
    }

    /// A member of a problem document.
    #[track_caller]
    fn problem(&self, member: &str) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json");
        let document: serde_json::Value = serde_json::from_slice(&self.body).expect("a problem is JSON");
        document[member].as_str().expect("the member is text").to_owned()
    }
}

/// Sends a request to `example.org` into the router, as a host's server does.
async fn send(app: &Router, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("Host", "example.org");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).expect("the request is well-formed");
    let response = match app.clone().oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("the body is complete").to_bytes();
    Answer { status: parts.status, headers: parts.headers, body }
}
