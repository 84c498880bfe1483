//! Expiry of sources and forks: `protocol.md` §16 and §18.4.

use super::*;

const WINDOW: Duration = Duration::from_secs(10);
const TTL: (&str, &str) = ("Stream-TTL", "10");
const LASTING: (&str, &str) = ("Stream-TTL", "100000");

/// Runs a test in each mode, with all streams on one shard and spread over five.
async fn on_all_layouts(test: impl AsyncFn(Server)) {
    for mode in [StorageMode::Memory, StorageMode::Acid] {
        for shards in [1, 5] {
            eprintln!("storage mode: {mode:?}, shards: {shards}");
            test(Server::start(mode, shards)).await;
        }
    }
}

async fn fork(server: &Server, name: &str, source: &str, headers: &[(&str, &str)]) {
    let source = format!("/v1/stream/{source}");
    let headers = [&[("Stream-Forked-From", &*source)], headers].concat();
    server.create(name, &headers).await;
}

#[tokio::test]
async fn an_expired_source_with_forks_is_gone_but_serves_them() {
    on_all_layouts(async |server| {
        server.request("PUT", "source", &[TTL], "inherited ").await.expect(201);
        fork(&server, "fork", "source", &[LASTING]).await;
        server.request("POST", "source", &[OCTETS], "not").await.expect(204);
        server.pass(WINDOW);
        assert_gone(&server, "source").await;
        server.request("POST", "fork", &[OCTETS], "own").await.expect(204);
        assert_eq!(server.get("fork").await.expect(200).text().await, "inherited own");
        // The one request to a deleted source that goes on working.
        let again = [("Stream-Forked-From", "/v1/stream/source"), LASTING];
        server.request("PUT", "fork", &again, "").await.expect(200);

        server.request("DELETE", "fork", &[], "").await.expect(204);
        server.wait_for_status("source", 404).await;
        server.create("source", &[("Content-Type", "application/json")]).await;
    })
    .await;
}

/// Every operation of the table of section 1, on a soft-deleted stream.
async fn assert_gone(server: &Server, name: &str) {
    server.get(name).await.expect(410);
    server.get(&format!("{name}?offset=now")).await.expect(410);
    server.get(&format!("{name}?offset=-1&live=long-poll")).await.expect(410);
    server.get(&format!("{name}?offset=-1&live=sse")).await.expect(410);
    server.request("HEAD", name, &[], "").await.expect(410);
    server.request("POST", name, &[OCTETS], "x").await.expect(410);
    server.request("POST", name, &[("Stream-Closed", "true")], "").await.expect(410);
    server.request("DELETE", name, &[], "").await.expect(410);
    server.request("PUT", name, &[TTL], "").await.expect(409);
    let from = format!("/v1/stream/{name}");
    let refused =
        server.request("PUT", "another-fork", &[("Stream-Forked-From", &from)], "").await.expect(409);
    assert!(refused.text().await.contains("FORK_FROM_TOMBSTONE"));
}

#[tokio::test]
async fn the_expiry_of_the_last_fork_removes_deleted_sources_up_the_chain() {
    on_all_layouts(async |server| {
        server.request("PUT", "a", &[], "a").await.expect(201);
        fork(&server, "b", "a", &[]).await;
        fork(&server, "c", "b", &[]).await;
        fork(&server, "d", "c", &[TTL]).await;
        for name in ["a", "b", "c"] {
            server.request("DELETE", name, &[], "").await.expect(204);
            server.expect_status(name, 410).await;
        }
        server.pass(WINDOW - MILLISECOND);
        assert_eq!(server.get("d?offset=-1").await.expect(200).text().await, "a");
        server.pass(WINDOW);
        for name in ["d", "c", "b", "a"] {
            server.wait_for_status(name, 404).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_chain_that_expires_all_at_once_leaves_nothing_behind() {
    on_all_layouts(async |server| {
        server.request("PUT", "a", &[TTL], "a").await.expect(201);
        // Windows are inherited.
        fork(&server, "b", "a", &[]).await;
        fork(&server, "c", "b", &[]).await;
        fork(&server, "d", "c", &[]).await;
        server.pass(WINDOW);
        for name in ["a", "b", "c", "d"] {
            server.wait_for_status(name, 404).await;
        }
        server.create("a", &[]).await;
        assert_eq!(server.get("a").await.expect(200).text().await, "");
    })
    .await;
}

#[tokio::test]
async fn an_expired_source_waits_for_the_last_of_its_forks() {
    on_all_layouts(async |server| {
        server.request("PUT", "source", &[TTL], "x").await.expect(201);
        fork(&server, "soon", "source", &[("Stream-TTL", "20")]).await;
        fork(&server, "later", "source", &[("Stream-TTL", "30")]).await;
        fork(&server, "never", "source", &[LASTING]).await;
        for (name, gone) in [("source", 410), ("soon", 404), ("later", 404)] {
            server.pass(WINDOW);
            server.wait_for_status(name, gone).await;
            server.expect_status("source", 410).await;
        }
        assert_eq!(server.get("never").await.expect(200).text().await, "x");
        server.request("DELETE", "never", &[], "").await.expect(204);
        server.wait_for_status("source", 404).await;
    })
    .await;
}

#[tokio::test]
async fn forks_inherit_an_instant_and_share_its_fate() {
    on_all_layouts(async |server| {
        let instant = ("Stream-Expires-At", "2030-03-17T17:46:50Z");
        server.request("PUT", "source", &[instant], "x").await.expect(201);
        server.pass(WINDOW / 2);
        fork(&server, "fork", "source", &[]).await;
        fork(&server, "uncapped", "source", &[("Stream-Expires-At", "2040-01-01T00:00:00Z")]).await;
        let head = server.request("HEAD", "fork", &[], "").await.expect(200);
        assert_eq!(head.header("Stream-Expires-At"), Some("2030-03-17T17:46:50Z"));
        // Repeated without or with what it inherited, it is the same fork.
        let from = ("Stream-Forked-From", "/v1/stream/source");
        server.request("PUT", "fork", &[from], "").await.expect(200);
        server.request("PUT", "fork", &[from, instant], "").await.expect(200);
        server.request("PUT", "fork", &[from, TTL], "").await.expect(409);
        server.request("PUT", "uncapped", &[from], "").await.expect(409);
        server.pass(WINDOW / 2);
        server.expect_status("fork", 404).await;
        server.expect_status("source", 410).await;
        assert_eq!(server.get("uncapped").await.expect(200).text().await, "x");
    })
    .await;
}

#[tokio::test]
async fn what_expired_with_forks_while_nobody_served_it_is_soft_deleted() {
    for shards in [1, 5] {
        let server = Server::start(StorageMode::Acid, shards);
        server.request("PUT", "source", &[TTL], "inherited").await.expect(201);
        fork(&server, "middle", "source", &[TTL]).await;
        fork(&server, "fork", "middle", &[LASTING]).await;
        server.storage.shutdown().await;
        server.pass(WINDOW * 10);
        let mut server = server.restarted().await;
        for _ in 0..2 {
            assert_gone(&server, "source").await;
            assert_gone(&server, "middle").await;
            assert_eq!(server.get("fork").await.expect(200).text().await, "inherited");
            server = server.restarted().await;
        }
        server.request("DELETE", "fork", &[], "").await.expect(204);
        server.wait_for_status("middle", 404).await;
        server.wait_for_status("source", 404).await;
        let server = server.restarted().await;
        server.expect_status("source", 404).await;
    }
}
