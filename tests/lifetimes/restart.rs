//! Windows across stops and crashes, and what renewals cost. All in acid mode with one shard.

use durable_streams_server::engine::api::LiveEvent;

use super::*;

const TTL: (&str, &str) = ("Stream-TTL", "100");
const WINDOW: Duration = Duration::from_secs(100);
/// A restart may lengthen a window, by less than this.
const SLACK: Duration = Duration::from_secs(100);

fn acid() -> Server {
    Server::start(StorageMode::Acid, 1)
}

/// After a crash or a restart at this moment, the stream lives for another whole window, and not for ever.
async fn assert_whole_window_after(server: Server, name: &str) {
    server.pass(WINDOW - MILLISECOND);
    server.expect_status(name, 200).await;
    server.pass(SLACK);
    server.expect_status(name, 404).await;
}

#[tokio::test]
async fn a_renewal_that_was_not_written_down_counts_after_a_restart() {
    let server = acid();
    server.create("read", &[TTL]).await;
    for _ in 0..30 {
        server.pass(SECOND * 7);
        server.get("read").await.expect(200);
    }
    assert_whole_window_after(server.restarted().await, "read").await;
}

#[tokio::test]
async fn a_renewal_that_was_not_written_down_counts_after_a_crash() {
    // However long ago the last one was written: at some of these moments that is just short of due.
    for reads in 1..30 {
        let server = acid();
        server.create("read", &[TTL]).await;
        for _ in 0..reads {
            server.pass(SECOND * 7);
            server.get("read").await.expect(200);
        }
        server.settle().await;
        assert_whole_window_after(server.as_after_a_crash(), "read").await;
    }
}

#[tokio::test]
async fn a_window_that_a_live_reader_held_open_is_whole_after_a_crash() {
    for steps in 1..30 {
        let server = acid();
        server.create("tailed", &[TTL]).await;
        let reader = server.subscribe("tailed").await;
        for _ in 0..steps {
            server.pass(SECOND * 9);
            server.settle().await;
        }
        assert_whole_window_after(server.as_after_a_crash(), "tailed").await;
        drop(reader);
    }
}

#[tokio::test]
async fn a_window_that_a_live_reader_held_open_is_whole_after_a_restart() {
    let server = acid();
    server.create("tailed", &[TTL]).await;
    let reader = server.subscribe("tailed").await;
    for _ in 0..50 {
        server.pass(SECOND * 9);
        server.settle().await;
    }
    let Server { clock, config, storage, acid, router, directory } = server;
    // The reader is there to the end: only the shutdown parts it from the stream.
    storage.shutdown().await;
    drop((reader, storage, acid, router));
    assert_whole_window_after(Server::open(config, directory, clock), "tailed").await;
}

#[tokio::test]
async fn restarting_again_and_again_neither_ends_nor_perpetuates_a_stream() {
    let mut server = acid();
    server.create("idle", &[TTL]).await;
    server.pass(WINDOW - SECOND);
    for _ in 0..5 {
        server = server.restarted().await;
        server.expect_status("idle", 200).await;
    }
    server.pass(WINDOW);
    server.expect_status("idle", 404).await;
    let server = server.restarted().await;
    server.expect_status("idle", 404).await;
}

#[tokio::test]
async fn a_fixed_instant_is_the_same_after_a_restart() {
    let server = acid();
    server.create("fixed", &[("Stream-Expires-At", "2030-03-17T20:46:50.5+03:00")]).await;
    server.pass(Duration::from_millis(10_499));
    let server = server.restarted().await;
    let head = server.request("HEAD", "fixed", &[], "").await.expect(200);
    assert_eq!(head.header("Stream-Expires-At"), Some("2030-03-17T20:46:50.5+03:00"));
    server.pass(MILLISECOND);
    server.expect_status("fixed", 404).await;
}

#[tokio::test]
async fn a_stream_that_expired_while_nobody_served_it_is_absent_at_once() {
    let server = acid();
    server.create("sliding", &[TTL]).await;
    server.create("fixed", &[("Stream-Expires-At", "2030-03-17T17:46:50Z")]).await;
    server.storage.shutdown().await;
    server.pass(WINDOW * 2);
    let server = server.restarted().await;
    server.expect_status("sliding", 404).await;
    server.expect_status("fixed", 404).await;
    server.create("sliding", &[]).await;
    let server = server.restarted().await;
    server.expect_status("sliding", 200).await;
    server.expect_status("fixed", 404).await;
}

#[tokio::test]
async fn renewals_by_reads_do_not_cost_a_commit_each() {
    let server = acid();
    server.create("read", &[("Stream-TTL", "1000")]).await;
    server.settle().await;
    let counters = server.acid.as_ref().expect("the mode is acid").io_counters();

    let before = counters.syncs();
    for _ in 0..500 {
        server.get("read").await.expect(200);
        server.get("read?offset=now&live=long-poll").await.expect(204);
    }
    assert_eq!(counters.syncs() - before, 0, "reads at one moment renew nothing that has to be written");

    // Once over the whole window, a thousand reads.
    let before = counters.syncs();
    for _ in 0..1000 {
        server.pass(SECOND);
        server.get("read").await.expect(200);
    }
    let syncs = counters.syncs() - before;
    assert!((1..=100).contains(&syncs), "{syncs} syncs for 1000 reads");
    server.expect_status("read", 200).await;
}

#[tokio::test]
async fn live_readers_of_a_sliding_stream_cost_no_commits_of_their_own() {
    let server = acid();
    server.create("sliding", &[TTL]).await;
    server.create("lasting", &[]).await;
    let counters = server.acid.as_ref().expect("the mode is acid").io_counters();
    let mut costs = Vec::new();
    for name in ["lasting", "sliding"] {
        let mut readers = Vec::new();
        for _ in 0..20 {
            readers.push(server.subscribe(name).await);
        }
        let before = counters.syncs();
        for _ in 0..100 {
            server.pass(MILLISECOND * 100);
            server.request("POST", name, &[OCTETS], "event").await.expect(204);
            for reader in &mut readers {
                let event = reader.next(1 << 20).await.expect("the stream can be read");
                assert!(matches!(event, LiveEvent::Data(_)), "{event:?}");
            }
        }
        costs.push(counters.syncs() - before);
    }
    // Whatever else the database does now and then is not counted against either of them.
    assert!(costs[1] <= costs[0] + 20, "syncs without and with a sliding lifetime: {costs:?}");
}
