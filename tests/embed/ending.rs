//! What ends with the shutdown token, and what with the last handle of a store.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use durable_streams_server::config::Config;
use durable_streams_server::engine::api::{CreateRequest, LookupError, LookupRefusal, Retention};
use durable_streams_server::engine::clock::Clock;
use durable_streams_server::engine::{AcidStorage, EngineOptions};
use durable_streams_server::protocol::lifetime::Lifetime;
use durable_streams_server::protocol::name::{NameLimits, StreamName, Target, parse_path};
use durable_streams_server::protocol::offset::RequestedOffset;
use durable_streams_server::stream::command::Body;
use durable_streams_server::{
    CancellationToken, Engine, InMemoryStorage, Storage, StorageError, StorageMode, build_router,
    build_router_with_ready,
};
use futures_util::FutureExt as _;
use tokio::runtime::{Builder, Runtime};

use super::support::http::Origin;
use super::support::sse::EventStream;
use super::{SHARDS, STORES, config, host_runtimes, may_start_children, may_start_stores, send, wait_until};

const TEXT: (&str, &str) = ("Content-Type", "text/plain");

/// A host's server on a runtime of its own. Stops in order when it is dropped.
struct Host {
    origin: Origin,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    fn serve(runtime: Runtime, app: Router) -> Self {
        let (bound, address) = mpsc::channel();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serve = async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
            bound.send(listener.local_addr().expect("it is bound")).expect("the test waits for it");
            axum::serve(listener, app).with_graceful_shutdown(stopped).await.expect("it serves");
        };
        let thread = thread::spawn(move || runtime.block_on(serve));
        let address = address.recv().expect("the host listens");
        let origin = Origin::parse(&format!("http://{address}"), None);
        Self { origin, stop, thread: Some(thread) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().expect("it is taken here only").join();
        assert!(ended.is_ok() || thread::panicking(), "the host panicked");
    }
}

#[test]
fn shutdown_token_ends_live_reads_in_good_order() {
    let _stores = may_start_stores();
    for runtime in host_runtimes() {
        let config = config();
        let storage = Arc::new(InMemoryStorage::new(&config).expect("threads can be started"));
        let shutdown = CancellationToken::new();
        let ready = Arc::new(AtomicBool::new(true));
        let streams = build_router_with_ready(storage, &config, ready, shutdown.clone());
        let host = Host::serve(runtime, Router::new().nest("/live", streams));
        let mut client = host.origin.client();
        client.request("PUT", "/live/v1/stream/a", &[TEXT], b"abc").expect_status(201);
        client.request("GET", "/live/readyz", &[], b"").expect_status(200);

        let at_tail = "/live/v1/stream/a?offset=now&live=long-poll";
        let mut waiting = host.origin.connect().expect("the host accepts connections");
        waiting.send_request("GET", at_tail, &[], b"").expect("the host reads requests");
        let mut tailing = EventStream::open(&host.origin, "/live/v1/stream/a?offset=-1&live=sse", &[])
            .expect("the host answers")
            .expect("the stream exists");
        assert_eq!(tailing.next_message().unwrap(), Some(("data".to_owned(), "abc".to_owned())));
        assert_eq!(tailing.next_message().unwrap().expect("data has its control event").0, "control");

        shutdown.cancel();
        let answer = waiting.read_response("GET").expect("the long-poll is answered").expect_status(204);
        assert_eq!(answer.header("Stream-Next-Offset"), Some("0000000000000000_0000000000000003"));
        assert_eq!(answer.header("Stream-Up-To-Date"), Some("true"));
        assert_eq!(tailing.next_message().unwrap(), None, "nothing follows the last control event");

        // When to stop serving is the host's decision; only waiting is over.
        client.request("POST", "/live/v1/stream/a", &[TEXT], b"d").expect_status(204);
        assert_eq!(client.request("GET", "/live/v1/stream/a", &[], b"").expect_status(200).body, b"abcd");
        client.request("GET", at_tail, &[], b"").expect_status(204);
        let mut late = EventStream::open(&host.origin, "/live/v1/stream/a?offset=now&live=sse", &[])
            .expect("the host answers")
            .expect("the stream exists");
        assert_eq!(late.next_message().unwrap().expect("it says where it is").0, "control");
        assert_eq!(late.next_message().unwrap(), None);
        client.request("GET", "/live/readyz", &[], b"").expect_status(503);
    }
}

#[test]
fn readiness_is_what_the_host_and_the_store_say() {
    let _stores = may_start_stores();
    let config = config();
    let storage = Arc::new(InMemoryStorage::new(&config).expect("threads can be started"));
    let ready = Arc::new(AtomicBool::new(false));
    let app = build_router_with_ready(storage, &config, Arc::clone(&ready), CancellationToken::new());
    for runtime in host_runtimes() {
        runtime.block_on(async {
            ready.store(false, Ordering::Release);
            send(&app, "GET", "/readyz", &[], "").await.expect(503);
            send(&app, "GET", "/healthz", &[], "").await.expect(200);
            ready.store(true, Ordering::Release);
            send(&app, "GET", "/readyz", &[], "").await.expect(200);
        });
    }
}

/// Threads of this process that belong to stores.
#[cfg(target_os = "linux")]
fn store_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("Linux has it");
    // A thread may end between being listed and being looked at.
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("ds-core-") || name.starts_with("ds-commit-")).count()
}

#[cfg(target_os = "linux")]
#[test]
fn dropping_the_last_handle_ends_the_threads() {
    let _alone = STORES.write().unwrap_or_else(PoisonError::into_inner);
    wait_until("the end of earlier stores", || (store_threads() == 0).then_some(()));
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut config = config();
    config.storage.data_dir = directory.path().join("data");
    let runtime = Builder::new_multi_thread().enable_all().build().expect("a runtime can be built");

    for mode in [StorageMode::Memory, StorageMode::Acid] {
        config.storage.mode = mode;
        let storage = Arc::new(Engine::open(&config).expect("the directory is free"));
        let threads = if mode == StorageMode::Memory { SHARDS } else { 2 * SHARDS };
        // A thread gives itself its name, a moment after it was started.
        wait_until("the start of the threads", || (store_threads() == threads).then_some(()));
        let app = build_router(Arc::clone(&storage), &config);
        runtime.block_on(async {
            send(&app, "PUT", "/v1/stream/a", &[TEXT], "a").await.expect(201);
            let reading = storage.subscribe(name("a"), RequestedOffset::Now).await;
            let mut reading = reading.expect("the stream exists");
            drop(storage);
            // The router goes on serving, and after it the live read goes on waiting.
            send(&app, "POST", "/v1/stream/a", &[TEXT], "b").await.expect(204);
            drop(app);
            reading.next(1024).await.expect("the store is still there");
            assert_eq!(store_threads(), threads);
        });
        wait_until("the end of the threads", || (store_threads() == 0).then_some(()));
    }
}

/// Opens the data directory, if nobody else has it.
fn open_if_free(config: &Config) -> Option<AcidStorage> {
    match AcidStorage::open(config) {
        Ok(storage) => Some(storage),
        Err(StorageError::Locked(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_data_directory_is_free_once_its_store_is_gone() {
    let _stores = may_start_stores();
    let _children = may_start_children();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let mut config = config();
    config.storage.data_dir = directory.path().join("data");
    let [runtime, _] = host_runtimes();

    let storage = open_if_free(&config).expect("the directory is new");
    let app = build_router(Arc::new(storage), &config);
    runtime.block_on(send(&app, "PUT", "/v1/stream/a", &[TEXT], "kept")).expect(201);
    assert!(open_if_free(&config).is_none(), "two stores have one directory");
    drop(app);

    let storage = wait_until("the release of the directory", || open_if_free(&config));
    let app = build_router(Arc::new(storage.clone()), &config);
    runtime.block_on(async {
        assert_eq!(send(&app, "GET", "/v1/stream/a", &[], "").await.expect(200).body, "kept");
        // Says when it is over, even while others still hold handles.
        storage.shutdown().await;
        storage.shutdown().await;
        let refused = send(&app, "POST", "/v1/stream/a", &[TEXT], "x").await.expect(503);
        assert_eq!(refused.problem("code"), "UNAVAILABLE");
    });
    let storage = open_if_free(&config).expect("the directory is free as soon as the shutdown is over");
    let app = build_router(Arc::new(storage), &config);
    let read = runtime.block_on(send(&app, "GET", "/v1/stream/a", &[], ""));
    assert_eq!(read.expect(200).body, "kept");
}

fn name(text: &str) -> StreamName {
    match parse_path(text, &NameLimits { max_bytes: 64, max_segments: 8 }) {
        Ok(Target::Stream(name)) => name,
        other => panic!("{text} names no stream: {other:?}"),
    }
}

#[test]
fn a_reader_that_left_before_its_answer_does_not_keep_a_stream_alive() {
    let _stores = may_start_stores();
    let clock = Clock::manual(1_000_000);
    let options = EngineOptions::default().with_clock(clock.clone());
    let storage = InMemoryStorage::with_options(&config(), &options).expect("threads can be started");
    for runtime in host_runtimes() {
        runtime.block_on(async {
            for n in 0..64 {
                let name = name(&format!("stream-{n}"));
                let request = CreateRequest {
                    name: name.clone(),
                    content_type: None,
                    lifetime: Some(Lifetime::Ttl { seconds: 60 }),
                    retention: Retention::default(),
                    closed: false,
                    body: Body::default(),
                    fork: None,
                };
                assert!(!storage.create(request).await.expect("there is room").existed);
                // Asked and abandoned: the answer finds nobody.
                drop(storage.subscribe(name.clone(), RequestedOffset::Now).now_or_never());
                // Behind the question in the shard's mailbox, and then behind the news that the reader is gone.
                for _ in 0..2 {
                    storage.head(name.clone()).await.expect("its time has not come");
                }
                clock.advance(Duration::from_secs(61));
                let gone = storage.head(name).await.expect_err("nobody reads it");
                assert_eq!(gone, LookupError::Refused(LookupRefusal::NotFound));
            }
        });
    }
}
