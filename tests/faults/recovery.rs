//! Recovering itself: while it lasts, when it fails, and what it must not shorten.

use std::time::Duration;

use bytes::Bytes;

use durable_streams_server::config::Config;
use durable_streams_server::engine::FileStorage;
use durable_streams_server::engine::api::{
    AppendError, Body, CreateRequest, LookupError, LookupRefusal, ReadError, Retention, Storage, Unavailable,
};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::json::parse_body;
use durable_streams_server::protocol::lifetime::Lifetime;
use durable_streams_server::protocol::offset::RequestedOffset;
use futures_util::future::join_all;

use crate::disk::{Calls, Fault, Unsynced};
use crate::{Machine, POLL, append, read, stream, within};

/// Holds the next sync of the only shard up until the store waits for it.
async fn hold_sync(machine: &Machine) {
    let disks = machine.disks.clone();
    within(tokio::task::spawn_blocking(move || disks.shard(0).wait_for_held_sync())).await.unwrap();
}

#[tokio::test]
async fn a_shard_that_cannot_be_opened_again_says_so_while_the_others_work() {
    let machine = Machine::start(2, 21);
    let (broken, sound) = (machine.name_on(0, "s"), machine.name_on(1, "s"));
    machine.create(&broken).await.unwrap();
    machine.create(&sound).await.unwrap();
    machine.append(&broken, "kept").await.unwrap();
    let lasting = machine.name_on(0, "lasting");
    machine.create_with(&lasting, None, Some(100)).await.unwrap();
    machine.disks.shard(0).arm(Fault { lasting: true, ..Fault::next(Calls::All) });
    assert!(machine.append(&broken, "lost").await.is_err());
    machine.wait_until_not_ready().await;
    let health = machine.store.health();
    assert!(health.waiting_for.len() == 1 && health.waiting_for[0].contains("shard 0"), "{health:?}");
    let recovering = Unavailable::Recovering;
    assert_eq!(machine.append(&broken, "refused").await, Err(AppendError::Unavailable(recovering)));
    assert_eq!(machine.delete(&broken).await, Err(LookupError::Unavailable(recovering)));
    // What was durable before still is.
    assert_eq!(machine.content(&broken).await.unwrap(), b"kept");
    // But a window that cannot be written down is not promised.
    machine.clock.advance(Duration::from_secs(20));
    assert_eq!(machine.content(&lasting).await.unwrap(), b"");
    machine.clock.advance(Duration::from_secs(20));
    assert_eq!(machine.content(&lasting).await, Err(ReadError::Unavailable(recovering)));
    assert_eq!(machine.tail(&lasting).await, Ok(0));
    machine.append(&sound, "taken").await.unwrap();
    machine.disks.heal();
    machine.wait_until_ready().await;
    machine.append(&broken, "taken").await.unwrap();
    assert!(machine.content(&broken).await.unwrap().ends_with(b"taken"));
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn a_store_can_be_shut_down_while_a_shard_recovers() {
    let mut machine = Machine::start(1, 22);
    machine.create("s").await.unwrap();
    machine.append("s", "kept").await.unwrap();
    machine.disks.shard(0).arm(Fault { lasting: true, ..Fault::next(Calls::All) });
    assert!(machine.append("s", "lost").await.is_err());
    machine.wait_until_not_ready().await;
    within(machine.store.shutdown()).await;
    assert_eq!(
        machine.append("s", "late").await,
        Err(AppendError::Unavailable(Unavailable::ShuttingDown)),
        "a store that was shut down takes nothing"
    );
    machine.crash().await;
    assert!(machine.content("s").await.unwrap().starts_with(b"kept"));
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn what_a_shutdown_finds_on_its_way_is_answered() {
    for fails in [false, true] {
        let machine = Machine::start(1, 23);
        machine.create("s").await.unwrap();
        let disk = machine.disks.shard(0);
        disk.stall_syncs();
        let append = tokio::spawn({
            let machine = machine.clone();
            async move { machine.append("s", "on its way").await }
        });
        hold_sync(&machine).await;
        let shutdown = tokio::spawn({
            let store = machine.store.clone();
            async move { store.shutdown().await }
        });
        // This runtime has one thread: by then the task above has said what it wants.
        tokio::task::yield_now().await;
        let late = machine.append("s", "late").await;
        assert_eq!(late, Err(AppendError::Unavailable(Unavailable::ShuttingDown)));
        assert!(!append.is_finished() && !shutdown.is_finished());
        if fails {
            disk.arm(Fault::next(Calls::Syncs));
        }
        disk.resume_syncs();
        let answer = within(append).await.unwrap();
        assert_eq!(answer.is_ok(), !fails, "{answer:?}");
        within(shutdown).await.unwrap();
    }
}

#[tokio::test]
async fn a_read_that_renews_a_window_is_answered_when_the_renewal_is_durable() {
    let mut machine = Machine::start(1, 24);
    machine.create_with("s", None, Some(100)).await.unwrap();
    machine.append("s", "x").await.unwrap();
    machine.clock.advance(Duration::from_secs(90));
    let disks = machine.disks.clone();
    disks.shard(0).stall_syncs();
    let reads: Vec<_> = (0..2)
        .map(|_| {
            let store = machine.store.clone();
            tokio::spawn(async move { store.read(read("s")).await.map(drop) })
        })
        .collect();
    let subscription = tokio::spawn({
        let store = machine.store.clone();
        async move { store.subscribe(stream("s"), RequestedOffset::Now).await.map(drop) }
    });
    hold_sync(&machine).await;
    // Answered in order: by then the shard has looked at the reads.
    assert_eq!(machine.tail("s").await, Ok(1));
    assert!(reads.iter().all(|read| !read.is_finished()) && !subscription.is_finished());
    machine.crash().await;
    for read in reads {
        let answer = within(read).await.unwrap();
        assert!(matches!(answer, Err(ReadError::Unavailable(_))), "{answer:?}");
    }
    assert!(within(subscription).await.unwrap().is_err());

    machine.clock.advance(Duration::from_secs(9));
    machine.read("s").await.unwrap();
    machine.crash().await;
    machine.clock.advance(Duration::from_secs(99));
    assert_eq!(machine.tail("s").await, Ok(1), "the answered read promised a whole window");
    machine.clock.advance(Duration::from_secs(100));
    assert_eq!(machine.tail("s").await, Err(LookupError::Refused(LookupRefusal::NotFound)));
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn a_live_read_whose_start_is_looked_up_on_disk_waits_for_its_renewal_too() {
    let mut machine = Machine::configured(1, 29, |config| {
        config.storage.journal_bytes = 300;
        config.limits.max_memory_bytes = 0;
    });
    let messages = Bytes::from_static(b"[1,2,3]");
    let creation = CreateRequest {
        name: stream("s"),
        content_type: Some(ContentType::parse(b"application/json").unwrap()),
        lifetime: Some(Lifetime::Ttl { seconds: 100 }),
        retention: Retention::default(),
        closed: false,
        body: Body { json: Some(parse_body(&messages, 8)), raw: messages },
        fork: None,
    };
    within(machine.store.create(creation)).await.unwrap();
    machine.create("filler").await.unwrap();
    for _ in 0..20 {
        machine.append("filler", vec![b'x'; 100]).await.unwrap();
    }
    machine.crash().await;
    machine.clock.advance(Duration::from_secs(90));
    machine.disks.stall_syncs();
    let subscription = tokio::spawn({
        let store = machine.store.clone();
        async move { store.subscribe(stream("s"), RequestedOffset::At(2)).await.map(drop) }
    });
    hold_sync(&machine).await;
    // Answered in order: by then the shard has heard all that the subscription has to say before it waits.
    for _ in 0..10 {
        assert_eq!(machine.tail("s").await, Ok(6));
    }
    assert!(!subscription.is_finished(), "its renewal is not durable");
    machine.crash().await;
    assert!(within(subscription).await.unwrap().is_err());
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn a_crash_does_not_shorten_the_window_that_a_live_reader_holds_open() {
    let mut machine = Machine::start(1, 25);
    machine.create_with("s", None, Some(100)).await.unwrap();
    machine.append("s", "x").await.unwrap();
    let reader = within(machine.store.subscribe(stream("s"), RequestedOffset::Now)).await.unwrap();
    for _ in 0..20 {
        let syncs = machine.store.io_counters().syncs();
        machine.clock.advance(Duration::from_secs(25));
        crate::wait_until("the store notes that the stream is read", || {
            machine.store.io_counters().syncs() > syncs
        })
        .await;
    }
    machine.clock.advance(Duration::from_secs(24));
    machine.crash().await;
    drop(reader);
    machine.clock.advance(Duration::from_secs(99));
    assert_eq!(machine.tail("s").await, Ok(1));
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn a_crash_as_a_live_reader_leaves_shortens_no_window_though_storage_takes_its_time() {
    let mut machine = Machine::start(1, 28);
    machine.create_with("s", None, Some(100)).await.unwrap();
    machine.create("other").await.unwrap();
    let reader = within(machine.store.subscribe(stream("s"), RequestedOffset::Now)).await.unwrap();
    machine.clock.advance(Duration::from_secs(20));
    // What is due goes with the group of whatever comes next.
    machine.append("other", "x").await.unwrap();
    machine.disks.stall_syncs();
    machine.clock.advance(Duration::from_secs(19));
    hold_sync(&machine).await;
    drop(reader);
    // The reader's leaving has arrived by then.
    assert_eq!(machine.tail("s").await, Ok(0));
    machine.crash().await;
    machine.clock.advance(Duration::from_millis(99_999));
    assert_eq!(machine.tail("s").await, Ok(0), "its window began when the reader left");
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn room_is_given_back_over_failures() {
    let machine = Machine::configured(2, 26, |config| config.limits.max_streams = 4);
    let names = [0, 0, 1, 1].into_iter().enumerate();
    let names: Vec<String> =
        names.map(|(number, shard)| machine.name_on(shard, &format!("s{number}"))).collect();
    for (round, unsynced) in [Unsynced::None, Unsynced::All, Unsynced::Some].into_iter().enumerate() {
        for shard in 0..2 {
            machine.disks.shard(shard).arm(Fault {
                unsynced,
                after: round as u64,
                ..Fault::next(Calls::Syncs)
            });
        }
        // One stands alone on its shard, one is the source of two forks, of which one lives with it.
        let _ = machine.create(&names[0]).await;
        let _ = machine.create(&names[3]).await;
        let forks = [&names[1], &names[2]].map(|name| machine.create_with(name, Some(&names[0]), None));
        let _ = join_all(forks).await;
        machine.disks.heal();
        machine.wait_until_ready().await;
        for name in &names {
            machine.insist_on_deleting(name).await;
        }
        for name in &names {
            machine.wait_until_absent(name).await;
        }
        for name in &names {
            machine.create(name).await.expect("there is room for as many streams as before");
        }
        assert!(machine.create("one-too-many").await.is_err());
        for name in &names {
            machine.delete(name).await.unwrap();
        }
    }
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn a_group_that_is_settled_in_part_is_replayed_for_the_other_streams_only() {
    const CROWD: usize = 100;
    for (number, journal_bytes) in [3_000, 6_000, 9_000, 12_000].into_iter().enumerate() {
        let mut machine = Machine::configured(1, 27 + number as u64, |config| {
            config.storage.journal_bytes = journal_bytes;
            config.limits.max_memory_bytes = 1_000;
        });
        machine.create("first").await.unwrap();
        let crowd: Vec<String> = (0..CROWD).map(|number| format!("s{number}")).collect();
        let mut expected = Vec::new();
        for round in 0..30_u8 {
            machine.create("brief").await.unwrap();
            // A group of many streams, then some of one that is dirty for long: those settle a few streams each.
            if round % 5 == 0 {
                for answer in join_all(crowd.iter().map(|name| machine.create(name))).await {
                    answer.unwrap();
                }
                for answer in join_all(crowd.iter().map(|name| machine.append(name, "x"))).await {
                    answer.unwrap();
                }
            }
            // Its end may be all that the journal still has of this one.
            machine.append("brief", "content").await.unwrap();
            machine.delete("brief").await.unwrap();
            machine.append("first", vec![round; 700]).await.unwrap();
            expected.extend([round; 700]);
            machine.crash().await;
            assert_eq!(
                machine.content("first").await.unwrap(),
                expected,
                "journal of {journal_bytes}, {round}"
            );
            for name in &crowd {
                let appends = usize::from(round / 5) + 1;
                assert_eq!(machine.content(name).await.unwrap(), vec![b'x'; appends], "{name}");
            }
        }
        within(machine.store.shutdown()).await;
    }
}

#[tokio::test]
async fn a_shard_that_is_started_again_and_again_keeps_a_bounded_number_of_journal_files() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.storage.data_dir = directory.path().to_owned();
    config.storage.acid_shard_count = Some(1);
    let journals = || {
        let entries = std::fs::read_dir(directory.path().join("shard-00")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("journal-")).count()
    };
    let mut most = 0;
    for round in 0..30 {
        let store = FileStorage::open(&config).unwrap();
        if round == 0 {
            let request = CreateRequest {
                name: stream("s"),
                content_type: None,
                lifetime: None,
                retention: Retention::default(),
                closed: false,
                body: Body::default(),
                fork: None,
            };
            within(store.create(request)).await.unwrap();
        }
        within(store.append(append("s", "x", None))).await.unwrap();
        // What is settled rides on a later group.
        if journals() > 9 {
            within(async {
                while journals() > 2 {
                    store.append(append("s", "y", None)).await.unwrap();
                    tokio::time::sleep(POLL).await;
                }
            })
            .await;
        }
        most = most.max(journals());
        within(store.shutdown()).await;
    }
    assert!(most <= 12, "{most} files");
}
