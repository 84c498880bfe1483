//! Expired streams give back what they held, without being asked for.

use std::fs;

use super::*;

const TTL: (&str, &str) = ("Stream-TTL", "10");
const WINDOW: Duration = Duration::from_secs(10);

/// Names of streams that all live on one shard, and one name of the other. The streams do not exist yet.
async fn names(server: &Server, count: usize) -> (Vec<String>, String) {
    let (mut here, mut elsewhere) = (Vec::new(), None);
    for number in 0.. {
        let name = format!("stream-{number}");
        server.create(&name, &[]).await;
        let shard = server.shard_of(&name).await;
        server.request("DELETE", &name, &[], "").await.expect(204);
        match shard {
            0 if here.len() < count => here.push(name),
            1 if elsewhere.is_none() => elsewhere = Some(name),
            _ => {}
        }
        if here.len() == count && elsewhere.is_some() {
            break;
        }
    }
    (here, elsewhere.expect("the loop ends with one"))
}

/// Tries on a shard that has nothing to do with the expired streams, until there is room.
pub(super) async fn wait_for_room(server: &Server, name: &str, body: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match server.request("PUT", name, &[], body).await.status.as_u16() {
            201 => return,
            507 => assert!(Instant::now() < deadline, "expired streams still hold their room"),
            other => panic!("{other}"),
        }
        tokio::time::sleep(MILLISECOND).await;
    }
}

#[tokio::test]
async fn expired_streams_free_their_places_without_traffic() {
    for mode in [StorageMode::Memory, StorageMode::Acid] {
        eprintln!("storage mode: {mode:?}");
        let server = Server::start_with(mode, 2, |config| config.limits.max_streams = 20);
        let (names, elsewhere) = names(&server, 20).await;
        for name in &names {
            server.create(name, &[TTL]).await;
        }
        server.request("PUT", &elsewhere, &[], "").await.expect(507);
        server.pass(WINDOW - MILLISECOND);
        server.request("PUT", &elsewhere, &[], "").await.expect(507);
        server.pass(MILLISECOND);
        wait_for_room(&server, &elsewhere, "").await;
    }
}

#[tokio::test]
async fn expired_streams_free_their_memory_without_traffic() {
    let mebibyte = "x".repeat(1 << 20);
    let server =
        Server::start_with(StorageMode::Memory, 2, |config| config.limits.max_memory_bytes = 8 << 20);
    let (names, elsewhere) = names(&server, 8).await;
    for name in &names {
        server.request("PUT", name, &[TTL], &mebibyte).await.expect(201);
    }
    server.request("PUT", &elsewhere, &[], &mebibyte).await.expect(507);
    server.expect_status(&elsewhere, 404).await;
    server.pass(WINDOW);
    wait_for_room(&server, &elsewhere, &mebibyte).await;
    // All of it is free, not only enough for one.
    for name in &names[..7] {
        server.request("PUT", name, &[], &mebibyte).await.expect(201);
    }
}

#[tokio::test]
async fn the_disk_of_expired_streams_is_used_again() {
    const ROUNDS: usize = 16;
    let quarter = "x".repeat(256 << 10);
    let server = Server::start_with(StorageMode::Acid, 1, |config| config.storage.journal_bytes = 64 << 10);
    let mut used = Vec::new();
    for round in 0..ROUNDS {
        for number in 0..4 {
            let name = format!("round-{round}/{number}");
            server.request("PUT", &name, &[TTL], &quarter).await.expect(201);
            // What comes behind content makes it leave the journal for its lasting place.
            server.request("POST", &name, &[OCTETS], &quarter).await.expect(204);
        }
        server.pass(WINDOW);
        server.settle().await;
        used.push(disk_bytes(&server));
    }
    // Each round writes 2 MiB of content, half of the rounds 16 MiB. Files that are not needed any more may go a moment later.
    eprintln!("bytes on disk after each round: {used:?}");
    wait_for_disk(&server, used[ROUNDS / 2] + (8 << 20)).await;
}

/// Waits until less than that is on the disk.
pub(super) async fn wait_for_disk(server: &Server, bytes_max: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = disk_bytes(server);
        if found < bytes_max {
            return;
        }
        assert!(Instant::now() < deadline, "{found} bytes are on the disk");
        tokio::time::sleep(MILLISECOND * 10).await;
    }
}

#[tokio::test]
async fn what_was_deleted_leaves_a_journal_that_an_older_stream_keeps() {
    let mebibyte = "x".repeat(1 << 20);
    for mode in [StorageMode::Acid, StorageMode::FileDurable] {
        for is_restarted in [false, true] {
            eprintln!("storage mode: {mode:?}, restarted: {is_restarted}");
            let mut server = Server::start(mode, 1);
            server.request("PUT", "older", &[], "kept").await.expect(201);
            for number in 0..20 {
                server.request("PUT", &format!("{number}"), &[], &mebibyte).await.expect(201);
            }
            for number in 0..20 {
                server.request("DELETE", &format!("{number}"), &[], "").await.expect(204);
            }
            if is_restarted {
                server = server.restarted().await;
            }
            assert!(disk_bytes(&server) > 20 << 20, "it leaves in its own time");
            server.pass(Duration::from_secs(30));
            wait_for_disk(&server, 8 << 20).await;
            assert_eq!(server.get("older?offset=-1").await.text().await, "kept");
        }
    }
}

pub(super) fn disk_bytes(server: &Server) -> u64 {
    fn bytes(directory: &Path) -> u64 {
        let entries = fs::read_dir(directory).expect("the directory can be read");
        entries
            .map(|entry| {
                let entry = entry.expect("the directory can be read");
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => bytes(&entry.path()),
                    // Segments go when they are not needed any more.
                    meta => meta.map_or(0, |meta| meta.len()),
                }
            })
            .sum()
    }
    bytes(server.directory.path())
}
