//! Windows while somebody reads live.

use durable_streams_server::engine::api::LiveEvent;

use super::*;

const TTL: (&str, &str) = ("Stream-TTL", "10");
const WINDOW: Duration = Duration::from_secs(10);
const BATCH: usize = 1 << 20;

#[tokio::test]
async fn a_live_reader_keeps_a_stream_alive_and_its_leaving_starts_the_window() {
    in_each_mode(async |server| {
        server.create("tailed", &[TTL]).await;
        let reader = server.subscribe("tailed").await;
        for _ in 0..20 {
            server.pass(WINDOW * 3);
            server.expect_status("tailed", 200).await;
        }
        server.leave("tailed", reader).await;
        server.pass(WINDOW - MILLISECOND);
        server.expect_status("tailed", 200).await;
        server.pass(MILLISECOND);
        server.expect_status("tailed", 404).await;
    })
    .await;
}

#[tokio::test]
async fn only_the_last_of_several_readers_starts_the_window() {
    in_each_mode(async |server| {
        server.create("tailed", &[TTL]).await;
        let (first, second) = (server.subscribe("tailed").await, server.subscribe("tailed").await);
        server.leave("tailed", first).await;
        server.pass(WINDOW * 2);
        server.expect_status("tailed", 200).await;
        server.leave("tailed", second).await;
        server.pass(WINDOW);
        server.expect_status("tailed", 404).await;
    })
    .await;
}

#[tokio::test]
async fn an_open_event_stream_keeps_its_stream_alive() {
    in_each_mode(async |server| {
        server.create("tailed", &[TTL]).await;
        let response = server.get("tailed?offset=now&live=sse").await.expect(200);
        server.pass(WINDOW * 5);
        server.expect_status("tailed", 200).await;
        drop(response);
        server.expect_status("tailed", 200).await;
        server.pass(WINDOW);
        server.expect_status("tailed", 404).await;
    })
    .await;
}

#[tokio::test]
async fn a_waiting_long_poll_keeps_its_stream_alive() {
    for mode in [StorageMode::Memory, StorageMode::Acid] {
        let server = Server::start_with(mode, 2, |config| config.server.long_poll_timeout = PATIENCE);
        server.create("polled", &[TTL]).await;
        let poll = server.get("polled?offset=now&live=long-poll");
        let rest = async {
            // The request was sent first, and the shard takes its mail in order.
            server.expect_status("polled", 200).await;
            server.pass(WINDOW * 5);
            server.expect_status("polled", 200).await;
            server.request("POST", "polled", &[OCTETS], "data").await.expect(204);
        };
        let (answer, ()) = tokio::join!(poll, rest);
        assert_eq!(answer.expect(200).text().await, "data");
        // By now the reader has left; behind this answer the shard knows.
        server.expect_status("polled", 200).await;
        server.pass(WINDOW);
        server.expect_status("polled", 404).await;
    }
}

#[tokio::test]
async fn a_reader_that_gave_up_while_it_was_let_in_keeps_nothing_alive() {
    in_each_mode(async |server| {
        server.create("tailed", &[TTL]).await;
        for _ in 0..100 {
            let name = StreamName::from_stored("tailed");
            let mut subscribing = server.storage.subscribe(name, RequestedOffset::Now);
            // Polled once, so that the request is on its way; the answer may or may not be there when it is dropped.
            tokio::select! {
                biased;
                _ = &mut subscribing => {}
                () = std::future::ready(()) => {}
            }
        }
        // The shard takes its mail in order: behind the first answer all readers were let in and dropped, behind the
        // second it knows.
        server.expect_status("tailed", 200).await;
        server.expect_status("tailed", 200).await;
        server.pass(WINDOW);
        server.expect_status("tailed", 404).await;
    })
    .await;
}

#[tokio::test]
async fn a_fixed_instant_ends_live_readers() {
    in_each_mode(async |server| {
        server.create("ending", &[("Stream-Expires-At", "2030-03-17T17:46:50Z")]).await;
        let mut reader = server.subscribe("ending").await;
        let mut forked = server.subscribe("ending").await;
        server.pass(WINDOW - MILLISECOND);
        server.request("POST", "ending", &[OCTETS], "last").await.expect(204);
        assert_data(&mut reader, b"last").await;
        server.pass(MILLISECOND);
        // Nobody asks for the stream: it ends by itself.
        let event = next(&mut reader).await;
        assert!(matches!(event, LiveEvent::Removed), "{event:?}");
        // Bytes that a reader did not take in time are gone with the stream.
        let event = next(&mut forked).await;
        assert!(matches!(event, LiveEvent::Removed), "{event:?}");
    })
    .await;
}

#[tokio::test]
async fn an_expired_source_of_forks_is_soft_deleted_for_its_live_readers() {
    in_each_mode(async |server| {
        server.create("source", &[("Stream-Expires-At", "2030-03-17T17:46:50Z")]).await;
        let fork = [("Stream-Forked-From", "/v1/stream/source"), ("Stream-TTL", "1000")];
        server.create("fork", &fork).await;
        let mut reader = server.subscribe("source").await;
        let mut of_fork = server.subscribe("fork").await;
        server.pass(WINDOW);
        let event = next(&mut reader).await;
        assert!(matches!(event, LiveEvent::SoftDeleted), "{event:?}");
        server.request("POST", "fork", &[OCTETS], "goes on").await.expect(204);
        assert_data(&mut of_fork, b"goes on").await;
    })
    .await;
}

async fn next(reader: &mut Subscription) -> LiveEvent {
    let event = tokio::time::timeout(PATIENCE, reader.next(BATCH)).await.expect("something happens");
    event.expect("the stream can be read")
}

async fn assert_data(reader: &mut Subscription, expected: &[u8]) {
    match next(reader).await {
        LiveEvent::Data(batch) => assert_eq!(batch.data.concat(), expected),
        other => panic!("{other:?}"),
    }
}
