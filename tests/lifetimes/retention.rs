//! Retention by age (`protocol.md` §17): content leaves by itself, and gives back what it took.

use durable_streams_server::engine::api::LiveEvent;

use super::reclaim::wait_for_disk;
use super::*;

const HOUR: (&str, &str) = ("Stream-Retention-Max-Age", "3600");
const AGE: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const EARLIEST: &str = "stream-earliest-offset";

fn offset(position: usize) -> String {
    format!("0000000000000000_{position:016}")
}

async fn earliest(server: &Server, name: &str) -> Option<String> {
    server.request("HEAD", name, &[], "").await.expect(200).header(EARLIEST).map(str::to_owned)
}

/// Waits for a cut that has to come by itself. HEAD is not what makes it.
async fn wait_for_earliest(server: &Server, name: &str, position: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = earliest(server, name).await;
        if found.as_deref() == Some(&*offset(position)) {
            return;
        }
        assert!(Instant::now() < deadline, "{name} begins at {found:?} instead of {position}");
        tokio::time::sleep(MILLISECOND).await;
    }
}

async fn content(server: &Server, name: &str) -> String {
    server.get(name).await.expect(200).text().await
}

#[tokio::test]
async fn content_leaves_at_its_age_without_traffic() {
    in_each_mode(async |server| {
        server.request("PUT", "a", &[HOUR], "first ").await.expect(201);
        server.pass(MINUTE * 10);
        server.request("POST", "a", &[OCTETS], "second ").await.expect(204);
        server.pass(MINUTE * 10);
        server.request("POST", "a", &[OCTETS], "third").await.expect(204);
        server.pass(MINUTE * 40 - MILLISECOND);
        assert_eq!(content(&server, "a").await, "first second third");
        assert_eq!(earliest(&server, "a").await, None);
        server.pass(MILLISECOND);
        wait_for_earliest(&server, "a", 6).await;
        server.get(&format!("a?offset={}", offset(0))).await.expect(410);
        assert_eq!(content(&server, "a").await, "second third");
        server.pass(MINUTE * 10);
        wait_for_earliest(&server, "a", 13).await;
        server.pass(AGE);
        wait_for_earliest(&server, "a", 18).await;
        // Nothing is left but the stream.
        let page = server.get("a").await.expect(200);
        assert_eq!(page.header("stream-up-to-date"), Some("true"));
        assert_eq!(page.header("stream-next-offset"), Some(&*offset(18)));
        assert_eq!(page.text().await, "");
        server.request("POST", "a", &[OCTETS], "again").await.expect(204);
        assert_eq!(content(&server, "a").await, "again");
        server.pass(AGE);
        wait_for_earliest(&server, "a", 23).await;
    })
    .await;
}

#[tokio::test]
async fn a_closed_stream_goes_on_to_age_and_stays_closed() {
    in_each_mode(async |server| {
        let closed = ("Stream-Closed", "true");
        server.request("PUT", "a", &[HOUR, closed], "all").await.expect(201);
        server.pass(AGE);
        wait_for_earliest(&server, "a", 3).await;
        let page = server.get("a").await.expect(200);
        assert_eq!(
            (page.header("stream-closed"), page.header("stream-next-offset")),
            (Some("true"), Some(&*offset(3)))
        );
        server.request("POST", "a", &[OCTETS], "x").await.expect(409);
        server.get(&format!("a?offset={}&live=long-poll", offset(3))).await.expect(204);
    })
    .await;
}

#[tokio::test]
async fn appends_of_a_slice_of_time_leave_together_and_none_before_its_time() {
    in_each_mode(async |server| {
        // One second is a 32nd part.
        server.create("a", &[("Stream-Retention-Max-Age", "32")]).await;
        let mut written = Vec::new();
        for number in 0..300_usize {
            server.request("POST", "a", &[OCTETS], "0123456789").await.expect(204);
            written.push(number * 100);
            server.pass(MILLISECOND * 100);
            let now = (number + 1) * 100;
            // What is between the two may have left or not.
            let oldest = written.iter().filter(|&&at| at + 33_000 <= now).count() * 10;
            let newest = written.iter().filter(|&&at| at + 32_000 <= now).count() * 10;
            if oldest > 0 {
                let deadline = Instant::now() + PATIENCE;
                loop {
                    let found = earliest(&server, "a").await.unwrap_or_else(|| offset(0));
                    assert!(*found <= *offset(newest), "{found} is gone too early");
                    if *found >= *offset(oldest) {
                        break;
                    }
                    assert!(Instant::now() < deadline, "{found} instead of {oldest}");
                    tokio::time::sleep(MILLISECOND).await;
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn ages_are_counted_on_over_restarts_and_crashes() {
    // With a small journal they come from records, with a large one from frames.
    for journal_bytes in [64 << 10, 32 << 20] {
        let mut server =
            Server::start_with(StorageMode::Acid, 1, |config| config.storage.journal_bytes = journal_bytes);
        server.request("PUT", "a", &[HOUR], "first ").await.expect(201);
        server.pass(MINUTE * 10);
        server.request("POST", "a", &[OCTETS], "second ").await.expect(204);
        server.request("PUT", "filler", &[], &"x".repeat(100 << 10)).await.expect(201);
        server.settle().await;
        server = server.as_after_a_crash();
        assert_eq!(content(&server, "a").await, "first second ");
        server.pass(MINUTE * 10);
        server.request("POST", "a", &[OCTETS], "third").await.expect(204);
        server = server.restarted().await;
        server.pass(MINUTE * 40);
        wait_for_earliest(&server, "a", 6).await;
        server = server.restarted().await;
        assert_eq!(earliest(&server, "a").await, Some(offset(6)), "what is gone does not come back");
        server = server.as_after_a_crash();
        assert_eq!(content(&server, "a").await, "second third");
        // Nobody was there when it was due.
        let Server { clock, config, storage, acid, router, directory } = server;
        storage.shutdown().await;
        drop((storage, acid, router));
        clock.advance(MINUTE * 10);
        server = Server::open(config, directory, clock);
        wait_for_earliest(&server, "a", 13).await;
        let shown = server.request("HEAD", "a", &[], "").await.expect(200);
        assert_eq!(shown.header("stream-retention-max-age"), Some("3600"));
        server.request("PUT", "a", &[HOUR], "").await.expect(200);
        server.request("PUT", "a", &[], "").await.expect(409);
    }
}

#[tokio::test]
async fn a_waiting_reader_is_not_disturbed_by_a_cut() {
    in_each_mode(async |server| {
        server.request("PUT", "a", &[HOUR], "old").await.expect(201);
        let mut reader = server.subscribe("a").await;
        server.pass(AGE);
        wait_for_earliest(&server, "a", 3).await;
        server.request("POST", "a", &[OCTETS], "new").await.expect(204);
        let event = reader.next(1 << 20).await.expect("it goes on");
        let LiveEvent::Data(batch) = event else { panic!("{event:?}") };
        assert_eq!((batch.start, batch.data.concat()), (3, b"new".to_vec()));
        server.leave("a", reader).await;
    })
    .await;
}

#[tokio::test]
async fn a_live_read_from_the_start_begins_with_what_is_kept_by_then() {
    in_each_mode(async |server| {
        server.request("PUT", "a", &[HOUR], "old").await.expect(201);
        let name = StreamName::from_stored("a");
        let mut late =
            server.storage.subscribe(name.clone(), RequestedOffset::Start).await.expect("it exists");
        let mut exact = server.storage.subscribe(name, RequestedOffset::At(0)).await.expect("it exists");
        server.pass(AGE);
        wait_for_earliest(&server, "a", 3).await;
        // Asked for from wherever it begins, it is told that there is nothing; asked for from 0, that this is gone.
        let event = late.next(1 << 20).await.expect("it goes on");
        let LiveEvent::Data(batch) = event else { panic!("{event:?}") };
        assert_eq!((batch.start, batch.end, batch.up_to_date), (3, 3, true));
        assert!(exact.next(1 << 20).await.is_err());
        server.request("POST", "a", &[OCTETS], "new").await.expect(204);
        let event = late.next(1 << 20).await.expect("it goes on");
        let LiveEvent::Data(batch) = event else { panic!("{event:?}") };
        assert_eq!((batch.start, batch.data.concat()), (3, b"new".to_vec()));
    })
    .await;
}

#[tokio::test]
async fn a_live_read_of_a_closed_stream_ends_if_everything_has_gone() {
    in_each_mode(async |server| {
        server.request("PUT", "a", &[HOUR, ("Stream-Closed", "true")], "old").await.expect(201);
        let name = StreamName::from_stored("a");
        let mut reader = server.storage.subscribe(name, RequestedOffset::Start).await.expect("it exists");
        server.pass(AGE);
        wait_for_earliest(&server, "a", 3).await;
        let event = reader.next(1 << 20).await.expect("it ends");
        assert!(matches!(event, LiveEvent::Closed { tail: 3 }), "{event:?}");
        assert_eq!(reader.position(), 3);
    })
    .await;
}

#[tokio::test]
async fn forks_keep_what_they_read_and_let_go_of_it_when_they_end() {
    in_each_mode(async |server| {
        server.request("PUT", "source", &[HOUR], "inherited").await.expect(201);
        let from = ("Stream-Forked-From", "/v1/stream/source");
        server.create("fork", &[from]).await;
        server.create("aging", &[from, HOUR]).await;
        server.pass(AGE);
        wait_for_earliest(&server, "source", 9).await;
        wait_for_earliest(&server, "aging", 9).await;
        assert_eq!(content(&server, "source").await, "");
        assert_eq!(content(&server, "aging").await, "");
        assert_eq!(content(&server, "fork").await, "inherited");
        server.create("late", &[from]).await;
        assert_eq!(content(&server, "late").await, "");
        for fork in ["fork", "aging", "late"] {
            server.request("DELETE", fork, &[], "").await.expect(204);
        }
        server.request("POST", "source", &[OCTETS], "more").await.expect(204);
        assert_eq!(content(&server, "source").await, "more");
    })
    .await;
}

#[tokio::test]
async fn what_has_aged_frees_its_memory_without_traffic() {
    let mebibyte = "x".repeat(1 << 20);
    let server = Server::start_with(StorageMode::Memory, 1, |config| {
        config.limits.max_memory_bytes = 4 << 20;
        config.limits.max_stream_bytes = None;
    });
    server.create("a", &[HOUR]).await;
    for round in 0..3 {
        for _ in 0..4 {
            server.request("POST", "a", &[OCTETS], &mebibyte).await.expect(204);
        }
        server.request("POST", "a", &[OCTETS], "x").await.expect(507);
        server.pass(AGE);
        wait_for_earliest(&server, "a", (round + 1) << 22).await;
    }
    // While a fork may read it, it takes its room.
    server.request("POST", "a", &[OCTETS], &mebibyte).await.expect(204);
    server.create("fork", &[("Stream-Forked-From", "/v1/stream/a")]).await;
    server.pass(AGE);
    wait_for_earliest(&server, "a", 13 << 20).await;
    server.request("PUT", "b", &[], &mebibyte.repeat(4)).await.expect(507);
    server.request("DELETE", "fork", &[], "").await.expect(204);
    super::reclaim::wait_for_room(&server, "b", &mebibyte.repeat(4)).await;
    server.request("DELETE", "a", &[], "").await.expect(204);
    server.request("PUT", "c", &[], "x").await.expect(507);
}

#[tokio::test]
async fn fifty_megabytes_under_a_limit_of_one_take_a_few_on_disk() {
    for mode in [StorageMode::Acid, StorageMode::FileDurable] {
        eprintln!("storage mode: {mode:?}");
        let server = Server::start_with(mode, 1, |config| config.storage.journal_bytes = 1 << 20);
        server.create("a", &[("Stream-Retention-Max-Bytes", "1000000")]).await;
        let append = "x".repeat(250_000);
        let mut most = 0;
        for _ in 0..200 {
            server.request("POST", "a", &[OCTETS], &append).await.expect(204);
            most = most.max(super::reclaim::disk_bytes(&server));
        }
        eprintln!("{most} bytes at most, {} at the end", super::reclaim::disk_bytes(&server));
        // The last cut is settled by itself.
        server.pass(MINUTE);
        wait_for_disk(&server, 8 << 20).await;
        assert_eq!(earliest(&server, "a").await, Some(offset(49_000_000)));
        let server = if mode == StorageMode::Acid { server.restarted().await } else { server };
        assert_eq!(content(&server, "a").await.len(), 1_000_000);
    }
}

#[tokio::test]
async fn a_stream_that_has_aged_frees_its_disk_without_traffic() {
    for mode in [StorageMode::Acid, StorageMode::FileDurable] {
        eprintln!("storage mode: {mode:?}");
        let server = Server::start_with(mode, 1, |config| config.storage.journal_bytes = 256 << 10);
        server.create("a", &[HOUR]).await;
        server.create("lasting", &[]).await;
        for _ in 0..64 {
            server.request("POST", "a", &[OCTETS], &"x".repeat(500_000)).await.expect(204);
            server.request("POST", "lasting", &[OCTETS], &"y".repeat(5_000)).await.expect(204);
        }
        assert!(super::reclaim::disk_bytes(&server) > 30 << 20);
        server.pass(AGE);
        wait_for_earliest(&server, "a", 32_000_000).await;
        server.pass(MINUTE / 2);
        wait_for_disk(&server, 8 << 20).await;
        assert_eq!(content(&server, "lasting").await.len(), 320_000);
        assert_eq!(content(&server, "a").await, "");
        // And all of this again for the same stream.
        server.request("POST", "a", &[OCTETS], "again").await.expect(204);
        assert_eq!(content(&server, "a").await, "again");
    }
}
