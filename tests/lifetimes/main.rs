//! Lifetimes (`protocol.md` §16), on a clock that the tests drive: a day passes in no time, and nothing depends on how
//! busy the machine is.
//!
//! * `headers`: what `Stream-TTL` and `Stream-Expires-At` may say, and what it means.
//! * `renewal`: what starts a window anew, and what does not.
//! * `live_readers`: windows while somebody reads live.
//! * `restart`: windows across stops and crashes, and what renewals cost.
//! * `reclaim`: expired streams give back what they held, without being asked for.
//! * `forks`: expiry of sources and forks.
//! * `retention`: content that leaves at an age.

mod forks;
mod headers;
mod live_readers;
mod reclaim;
mod renewal;
mod restart;
mod retention;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use durable_streams_server::config::{Config, StorageMode};
use durable_streams_server::engine::api::{Storage, Subscription};
use durable_streams_server::engine::clock::Clock;
use durable_streams_server::engine::{AcidStorage, EngineOptions, FileStorage, InMemoryStorage};
use durable_streams_server::http::build_router;
use durable_streams_server::protocol::name::StreamName;
use durable_streams_server::protocol::offset::RequestedOffset;
use tempfile::TempDir;
use tower::ServiceExt;

/// 2030-03-17T17:46:40Z, when all tests begin.
const START_MS: i64 = 1_900_000_000_000;
/// How long a test waits for something that has to come.
const PATIENCE: Duration = Duration::from_secs(30);

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// A store of its own, the protocol over it, and the time.
struct Server {
    clock: Clock,
    config: Config,
    storage: Arc<dyn Storage>,
    /// The same storage, where it is [`AcidStorage`].
    acid: Option<AcidStorage>,
    router: Router,
    directory: TempDir,
}

impl Server {
    fn start(mode: StorageMode, shards: usize) -> Self {
        Self::start_with(mode, shards, |_| {})
    }

    fn start_with(mode: StorageMode, shards: usize, adjust: impl FnOnce(&mut Config)) -> Self {
        let directory = TempDir::new().expect("a temporary directory can be made");
        let mut config = Config::with_mode(mode);
        config.storage.acid_shard_count = Some(shards);
        // Nothing comes to a reader by itself in these tests: a wait that is not ended by an event is over at once.
        config.server.long_poll_timeout = MILLISECOND;
        adjust(&mut config);
        Self::open(config, directory, Clock::manual(START_MS))
    }

    fn open(mut config: Config, directory: TempDir, clock: Clock) -> Self {
        config.storage.data_dir = directory.path().join("data");
        let options = EngineOptions::default().with_clock(clock.clone());
        let (storage, acid): (Arc<dyn Storage>, _) = match config.storage.mode {
            StorageMode::Memory => {
                let storage = InMemoryStorage::with_options(&config, &options).expect("there are threads");
                (Arc::new(storage), None)
            }
            StorageMode::FileDurable => {
                let storage = FileStorage::open_with(&config, &options).expect("the directory can be opened");
                (Arc::new(storage), None)
            }
            _ => {
                let storage = AcidStorage::open_with(&config, &options).expect("the directory can be opened");
                (Arc::new(storage.clone()), Some(storage))
            }
        };
        let router = build_router(Arc::clone(&storage), &config);
        Self { clock, config, storage, acid, router, directory }
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// Stops in good order and starts again on the same data, at the same time.
    async fn restarted(self) -> Self {
        let Self { clock, config, storage, acid, router, directory } = self;
        storage.shutdown().await;
        drop((storage, acid, router));
        Self::open(config, directory, clock)
    }

    /// Another server on a copy of what the files hold at some moment from now on: what a process finds whose predecessor was
    /// killed then. Everything that was answered has to be in there.
    fn as_after_a_crash(&self) -> Self {
        let directory = TempDir::new().expect("a temporary directory can be made");
        for (path, content) in files_at_one_moment(&self.directory.path().join("data")) {
            let path = directory.path().join("data").join(path);
            fs::create_dir_all(path.parent().expect("it is in the copy")).expect("the copy can be made");
            fs::write(path, content).expect("the copy can be made");
        }
        Self::open(self.config.clone(), directory, self.clock.clone())
    }

    /// Returns when everything that the store's one shard decided before is durable.
    async fn settle(&self) {
        assert_eq!(self.config.storage.acid_shard_count, Some(1), "other shards settle for themselves");
        self.request("PUT", "settled", &[], "").await;
        self.request("POST", "settled", &[OCTETS], "x").await.expect(204);
    }

    async fn request(&self, method: &str, name: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let method = Method::from_bytes(method.as_bytes()).expect("the method is a token");
        let mut request = Request::builder().method(method).uri(format!("/v1/stream/{name}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).expect("the request is well-formed");
        let response = self.router.clone().oneshot(request).await.expect("the router always answers");
        let (parts, body) = response.into_parts();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    async fn create(&self, name: &str, headers: &[(&str, &str)]) -> Answer {
        self.request("PUT", name, headers, "").await.expect(201)
    }

    async fn get(&self, name_and_query: &str) -> Answer {
        self.request("GET", name_and_query, &[], "").await
    }

    /// HEAD, which changes nothing.
    async fn status(&self, name: &str) -> u16 {
        self.request("HEAD", name, &[], "").await.status.as_u16()
    }

    #[track_caller]
    fn expect_status(&self, name: &str, status: u16) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let found = self.status(name).await;
            assert_eq!(found, status, "{name}, asked for at {caller}");
        }
    }

    /// Waits until HEAD answers with this status.
    async fn wait_for_status(&self, name: &str, status: u16) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.status(name).await;
            if found == status {
                return;
            }
            assert!(Instant::now() < deadline, "{name} still answers {found} instead of {status}");
            tokio::time::sleep(MILLISECOND).await;
        }
    }

    /// Begins a live read at the tail.
    async fn subscribe(&self, name: &str) -> Subscription {
        let name = StreamName::from_stored(name);
        self.storage.subscribe(name, RequestedOffset::Now).await.expect("the stream exists")
    }

    /// Ends a live read, and returns when the stream's shard knows. The shard takes its mail in order.
    async fn leave(&self, name: &str, subscription: Subscription) {
        drop(subscription);
        self.status(name).await;
    }

    /// The shard that holds this stream: the upper half of its incarnation.
    async fn shard_of(&self, name: &str) -> u128 {
        let info = self.storage.head(StreamName::from_stored(name)).await.expect("the stream exists");
        info.incarnation >> 64
    }
}

/// The answer to a request.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Body,
}

impl Answer {
    #[track_caller]
    fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.headers);
        self
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("headers are ASCII"))
    }

    async fn text(self) -> String {
        let body = to_bytes(self.body, usize::MAX).await.expect("the body arrives whole");
        String::from_utf8(body.to_vec()).expect("the body is UTF-8")
    }
}

const OCTETS: (&str, &str) = ("Content-Type", "application/octet-stream");

/// Runs a test in each storage mode.
async fn in_each_mode(test: impl AsyncFn(Server)) {
    for mode in [StorageMode::Memory, StorageMode::Acid] {
        // Shown with a failure only.
        eprintln!("storage mode: {mode:?}");
        test(Server::start(mode, 2)).await;
    }
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// All files below a directory, which the server may be working on: read twice with the same outcome, they were like that in
/// between.
fn files_at_one_moment(root: &Path) -> Files {
    let deadline = Instant::now() + PATIENCE;
    let mut before = None;
    loop {
        match files(root, Path::new("")) {
            Ok(now) if before.as_ref() == Some(&now) => return now,
            now => before = now.ok(),
        }
        assert!(Instant::now() < deadline, "the server never rests");
    }
}

/// All files below a directory of `root`, by their paths below `root`.
///
/// # Errors
/// One of them was removed meanwhile.
fn files(root: &Path, directory: &Path) -> io::Result<Files> {
    let mut found = Files::new();
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.append(&mut files(root, &path)?);
        } else {
            found.insert(path.clone(), fs::read(root.join(path))?);
        }
    }
    Ok(found)
}
