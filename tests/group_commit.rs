//! What durability costs: syncs of the disk, counted and not timed.

// What stands around the tests is a test too.
#![allow(clippy::unwrap_used)]

#[path = "support/disk.rs"]
mod disk;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::Disks;
use durable_streams_server::config::Config;
use durable_streams_server::engine::api::{AppendRequest, Body, CreateRequest, Retention, Storage};
use durable_streams_server::engine::{AcidStorage, EngineOptions};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::lifetime::Lifetime;
use durable_streams_server::protocol::name::StreamName;
use futures_util::future::join_all;

const PATIENCE: Duration = Duration::from_secs(30);
const SHARDS: usize = 2;
/// Bounds of what a sync takes while writers race.
const SYNC_MIN: Duration = Duration::from_millis(4);
const SYNC_MAX: Duration = Duration::from_millis(200);

struct Machine {
    disks: Disks,
    store: Arc<AcidStorage>,
}

fn machine(configure: impl FnOnce(&mut Config)) -> Machine {
    let mut config = Config::default();
    config.storage.acid_shard_count = Some(SHARDS);
    configure(&mut config);
    let disks = Disks::new(SHARDS, 0);
    let options = disks.put_below(EngineOptions::default());
    Machine { store: Arc::new(AcidStorage::open_with(&config, &options).unwrap()), disks }
}

impl Machine {
    fn syncs(&self) -> u64 {
        self.store.io_counters().syncs()
    }

    fn growths(&self) -> u64 {
        self.store.io_counters().resizes()
    }

    /// Segment files, of all shards.
    fn segments(&self) -> usize {
        let files = self.disks.files();
        let of_shard = |shard| files.list(Path::new(&format!("shard-{shard:02}"))).unwrap();
        let all = (0..SHARDS).flat_map(of_shard);
        all.filter(|entry| entry.name.starts_with("segment-")).count()
    }

    async fn create(&self, name: &str) {
        self.create_with(name, None).await;
    }

    async fn create_with(&self, name: &str, lifetime: Option<Lifetime>) {
        let request = CreateRequest {
            name: stream(name),
            content_type: None,
            lifetime,
            retention: Retention::default(),
            closed: false,
            body: Body::default(),
            fork: None,
        };
        within(self.store.create(request)).await.unwrap();
    }

    async fn append(&self, name: &str) {
        within(self.store.append(append(name))).await.unwrap();
    }

    /// Returns when every shard has handled what was sent to it before: requests are handled in order.
    async fn wait_for_shards(&self) {
        for number in 0..32 {
            // Among so many names there are some on each shard. None of them is a stream.
            assert!(within(self.store.head(stream(&format!("absent-{number}")))).await.is_err());
        }
    }
}

fn stream(name: &str) -> StreamName {
    StreamName::from_stored(name)
}

fn append(name: &str) -> AppendRequest {
    AppendRequest {
        name: stream(name),
        content_type: Some(ContentType::octet_stream()),
        body: Body { raw: vec![b'x'; 100].into(), json: None },
        close: false,
        stream_seq: None,
        producer: None,
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("there is an answer in time")
}

/// Has many writers append at the same time, and counts the syncs of the databases for that.
async fn sixty_four_writers_need_at_most_a_quarter_of_a_sync_per_append(machine: &Machine) {
    const WRITERS: usize = 64;
    const APPENDS: usize = 20;
    let names: Vec<String> = (0..WRITERS).map(|writer| format!("stream-{}", writer / 2)).collect();
    join_all(names.iter().map(|name| machine.create(name))).await;
    // As on a disk, others come while one is being served; as many of them on a machine that is slow or busy.
    let begin = Instant::now();
    join_all(names.iter().map(|name| machine.append(name))).await;
    machine.disks.slow_down(begin.elapsed().clamp(SYNC_MIN, SYNC_MAX));
    let before = machine.syncs();
    let writers = names.iter().map(|name| async move {
        for _ in 0..APPENDS {
            machine.append(name).await;
        }
    });
    join_all(writers).await;
    let syncs = machine.syncs() - before;
    let appends = (WRITERS * APPENDS) as u64;
    assert!(4 * syncs <= appends, "{syncs} syncs for {appends} appends");
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn many_writers_share_their_syncs() {
    let machine = machine(|_| {});
    sixty_four_writers_need_at_most_a_quarter_of_a_sync_per_append(&machine).await;
    assert_eq!(machine.segments(), 0, "all of it fits into the journal");
}

#[tokio::test]
async fn many_writers_share_their_syncs_with_what_settles_their_content() {
    let machine = machine(|config| config.storage.journal_bytes = 0);
    sixty_four_writers_need_at_most_a_quarter_of_a_sync_per_append(&machine).await;
    assert!(machine.segments() > 0);
}

#[tokio::test]
async fn what_comes_during_a_sync_shares_the_next_one() {
    let machine = machine(|_| {});
    for round in 0..3 {
        let before = (machine.syncs(), machine.growths());
        machine.disks.stall_syncs();
        let names: Vec<String> = (0..300).map(|number| format!("round-{round}/stream-{number}")).collect();
        let creations = join_all(names.iter().map(|name| machine.create(name)));
        let go_on = async {
            machine.wait_for_shards().await;
            machine.disks.resume_syncs();
        };
        tokio::join!(creations, go_on);
        let growths = machine.growths() - before.1;
        let syncs = machine.syncs() - before.0 - growths;
        // The one that was held up, and one for all the others.
        assert!(
            syncs <= 2 * SHARDS as u64,
            "{syncs} syncs for 300 creations, not counting {growths} growths"
        );

        let before = (machine.syncs(), machine.growths());
        machine.disks.stall_syncs();
        let ends =
            join_all(names.iter().map(|name| async { within(machine.store.delete(stream(name))).await }));
        let go_on = async {
            machine.wait_for_shards().await;
            machine.disks.resume_syncs();
        };
        let (ends, ()) = tokio::join!(ends, go_on);
        assert!(ends.iter().all(Result::is_ok));
        let growths = machine.growths() - before.1;
        let syncs = machine.syncs() - before.0 - growths;
        // Once they are gone, what is left of them is cleaned up by a commit that nobody waits for.
        assert!(
            syncs <= 4 * SHARDS as u64,
            "{syncs} syncs for 300 deletions, not counting {growths} growths"
        );
    }
    within(machine.store.shutdown()).await;
}

/// Syncs of each of some appends that come one after the other, without those that a growing file takes.
async fn syncs_of_lone_appends(two_phases: bool) -> Vec<u64> {
    let machine = machine(|config| config.storage.acid_two_phase_commit = two_phases);
    machine.create("s").await;
    let mut syncs = Vec::new();
    for _ in 0..50 {
        let before = (machine.syncs(), machine.growths());
        machine.append("s").await;
        if machine.growths() == before.1 {
            syncs.push(machine.syncs() - before.0);
        }
    }
    within(machine.store.shutdown()).await;
    syncs
}

#[tokio::test]
async fn a_lone_append_is_one_sync_and_two_in_two_phases() {
    for (two_phases, expected) in [(false, 1), (true, 2)] {
        let syncs = syncs_of_lone_appends(two_phases).await;
        assert!(syncs.len() > 40, "the file seldom grows");
        assert!(syncs.iter().all(|&each| each == expected), "{syncs:?}");
    }
}

#[tokio::test]
async fn what_changes_nothing_is_not_written() {
    let machine = machine(|_| {});
    machine.create("s").await;
    machine.create_with("t", Some(Lifetime::Ttl { seconds: 1_000 })).await;
    let before = machine.syncs();
    for _ in 0..20 {
        machine.create("s").await;
        machine.create_with("t", Some(Lifetime::Ttl { seconds: 1_000 })).await;
        assert!(within(machine.store.head(stream("s"))).await.is_ok());
        assert!(
            within(machine.store.append(AppendRequest { content_type: None, ..append("s") })).await.is_err()
        );
        assert!(within(machine.store.delete(stream("absent"))).await.is_err());
    }
    assert_eq!(machine.syncs(), before);
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn a_journal_over_its_budget_costs_an_idle_shard_one_more_commit_for_a_change_and_is_then_left_alone() {
    let machine = machine(|config| config.storage.journal_bytes = 0);
    let names: Vec<String> = (0..20).map(|number| format!("stream-{number}")).collect();
    for name in &names {
        machine.create(name).await;
        machine.append(name).await;
    }
    // Each round of a shard may find something to do; once all is settled, none does.
    for _ in 0..10 {
        machine.wait_for_shards().await;
    }
    // What is under way then is finished, so that nothing escapes the count.
    within(machine.store.shutdown()).await;
    let growths = machine.growths();
    let syncs = machine.syncs() - growths;
    let changes = 2 * names.len() as u64;
    assert!(syncs <= 2 * changes + 10, "{syncs} syncs for {changes} changes, not counting {growths} growths");
    assert!(machine.segments() > 0, "content is settled");
}
