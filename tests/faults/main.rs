//! The store over disks that fail: nothing that was acknowledged is lost, nothing that was refused half done, nobody who
//! waits is forgotten, and when the disk works again, so does the store.

// What stands around the tests is a test too.
#![allow(clippy::unwrap_used)]

#[path = "../support/disk.rs"]
mod disk;

mod backups;
mod commits;
mod forks;
mod limits;
mod recovery;
mod room;
mod settling;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use disk::Disks;
use durable_streams_server::config::Config;
use durable_streams_server::engine::api::{
    AppendError, AppendRequest, Appended, Body, CreateError, CreateRequest, Created, ForkAnchor, ForkRequest,
    LookupError, LookupRefusal, Page, ProducerTag, ReadError, ReadRequest, Retention, Storage,
};
use durable_streams_server::engine::clock::Clock;
use durable_streams_server::engine::{AcidStorage, EngineOptions, shard_of};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::lifetime::Lifetime;
use durable_streams_server::protocol::name::StreamName;
use durable_streams_server::protocol::offset::RequestedOffset;

/// How long something that has to happen may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at something that cannot be waited for.
const POLL: Duration = Duration::from_millis(1);
const START_MS: i64 = 1_700_000_000_000;

/// A store, its disks and its clock.
#[derive(Clone)]
struct Machine {
    config: Config,
    disks: Arc<Disks>,
    clock: Clock,
    store: Arc<AcidStorage>,
}

impl Machine {
    fn start(shards: usize, seed: u64) -> Self {
        Self::configured(shards, seed, |_| {})
    }

    fn configured(shards: usize, seed: u64, configure: impl FnOnce(&mut Config)) -> Self {
        Self::with_options(shards, seed, EngineOptions::default(), configure)
    }

    fn with_options(
        shards: usize,
        seed: u64,
        options: EngineOptions,
        configure: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config::default();
        config.storage.acid_shard_count = Some(shards);
        config.storage.cache_bytes = 1 << 20;
        configure(&mut config);
        let disks = Arc::new(Disks::new(shards, seed));
        let clock = Clock::manual(START_MS);
        let store = open_with(&config, &disks, &clock, options);
        Self { config, disks, clock, store }
    }

    /// The power is cut and comes back.
    async fn crash(&mut self) {
        self.disks.cut_power();
        within(self.store.shutdown()).await;
        self.store = open(&self.config, &self.disks, &self.clock);
    }

    /// A name with this beginning on this shard.
    fn name_on(&self, shard: usize, beginning: &str) -> String {
        let shards = self.store.engine().shard_count();
        let mut names = (0..).map(|number| format!("{beginning}-{number}"));
        names.find(|name| shard_of(name, shards) == shard).expect("names spread over all shards")
    }

    async fn create(&self, name: &str) -> Result<Created, CreateError> {
        self.create_with(name, None, None).await
    }

    async fn create_with(
        &self,
        name: &str,
        source: Option<&str>,
        ttl: Option<u64>,
    ) -> Result<Created, CreateError> {
        let request = CreateRequest {
            lifetime: ttl.map(|seconds| Lifetime::Ttl { seconds }),
            fork: source.map(|source| ForkRequest {
                source: stream(source),
                anchor: ForkAnchor::Tail,
                sub_offset: 0,
            }),
            ..creation(name)
        };
        within(self.store.create(request)).await
    }

    async fn append(&self, name: &str, data: impl Into<Bytes>) -> Result<Appended, AppendError> {
        within(self.store.append(append(name, data, None))).await
    }

    async fn close(&self, name: &str) -> Result<Appended, AppendError> {
        let request = AppendRequest { close: true, ..append(name, Bytes::new(), None) };
        within(self.store.append(request)).await
    }

    async fn delete(&self, name: &str) -> Result<(), LookupError> {
        within(self.store.delete(stream(name))).await
    }

    async fn tail(&self, name: &str) -> Result<u64, LookupError> {
        Ok(within(self.store.head(stream(name))).await?.tail)
    }

    async fn read(&self, name: &str) -> Result<Page, ReadError> {
        within(self.store.read(read(name))).await
    }

    async fn content(&self, name: &str) -> Result<Vec<u8>, ReadError> {
        let page = self.read(name).await?;
        assert!(page.up_to_date(), "these streams fit into one page");
        Ok(page.data.concat())
    }

    async fn wait_until_ready(&self) {
        wait_until("the store is ready", || self.store.health().is_ready()).await;
    }

    async fn wait_until_not_ready(&self) {
        wait_until("the store says that it is not ready", || !self.store.health().is_ready()).await;
    }

    /// Does it until the store can tell what came of it.
    async fn insist_on_deleting(&self, name: &str) {
        let mut tries = 0;
        while let Err(LookupError::Unavailable(_)) = self.delete(name).await {
            tries += 1;
            assert!(tries < 10_000, "{name} can be deleted");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until nothing is left of a deleted stream, not even for its forks.
    async fn wait_until_absent(&self, name: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.tail(name).await {
                Err(LookupError::Refused(LookupRefusal::NotFound)) => return,
                // The shard may still be recovering, or wait for a fork's shard that is.
                Err(LookupError::Refused(LookupRefusal::Gone) | LookupError::Unavailable(_)) => {}
                other => panic!("{name} was deleted: {other:?}"),
            }
            assert!(tokio::time::Instant::now() < deadline, "{name} is kept for forks that do not exist");
            tokio::time::sleep(POLL).await;
        }
    }
}

fn open(config: &Config, disks: &Disks, clock: &Clock) -> Arc<AcidStorage> {
    open_with(config, disks, clock, EngineOptions::default())
}

fn open_with(config: &Config, disks: &Disks, clock: &Clock, options: EngineOptions) -> Arc<AcidStorage> {
    let options = disks.put_below(options.with_clock(clock.clone()));
    Arc::new(AcidStorage::open_with(config, &options).expect("the disks work"))
}

fn stream(name: &str) -> StreamName {
    StreamName::from_stored(name)
}

fn creation(name: &str) -> CreateRequest {
    CreateRequest {
        name: stream(name),
        content_type: None,
        lifetime: None,
        retention: Retention::default(),
        closed: false,
        body: Body::default(),
        fork: None,
    }
}

fn append(name: &str, data: impl Into<Bytes>, producer: Option<(&str, u64)>) -> AppendRequest {
    AppendRequest {
        name: stream(name),
        content_type: Some(ContentType::octet_stream()),
        body: Body { raw: data.into(), json: None },
        close: false,
        stream_seq: None,
        producer: producer.map(|(id, seq)| ProducerTag { id: id.to_owned().into(), epoch: 0, seq }),
    }
}

fn read(name: &str) -> ReadRequest {
    ReadRequest { name: stream(name), from: RequestedOffset::Start, max_bytes: 1 << 24 }
}

#[track_caller]
fn within<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let answer = tokio::time::timeout(PATIENCE, future).await;
        answer.unwrap_or_else(|_| panic!("there is no answer at {caller}"))
    }
}

async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(POLL).await;
    }
}
