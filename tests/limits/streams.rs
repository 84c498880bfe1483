//! Many streams.

use std::ops::Range;
use std::thread;

use crate::resident::{MIB, assert_grew_less_than, path, resident_bytes};
use crate::support::ServerProcess;

const STREAMS: usize = 20_000;
const WRITERS: usize = 8;
/// Requests that a writer sends before it reads their answers.
const BATCH: usize = 100;
/// What a small stream may take in RAM: its entry, its name, and, until it is settled, its first bytes in the journal.
const STREAM_BYTES: usize = 2048;
const TEXT: (&str, &str) = ("Content-Type", "text/plain");

pub(crate) fn name(index: usize) -> String {
    format!("many/{}/{index}", index % 17)
}

/// Creates streams with content, over several connections.
pub(crate) fn create_all(server: &ServerProcess, indices: Range<usize>) {
    thread::scope(|scope| {
        for first in 0..WRITERS {
            let own = indices.clone().skip(first).step_by(WRITERS).collect();
            scope.spawn(move || create(server, own));
        }
    });
}

/// Creates streams over one connection.
fn create(server: &ServerProcess, own: Vec<usize>) {
    let mut connection = server.origin().connect().expect("the server accepts connections");
    for batch in own.chunks(BATCH) {
        let requests: String = batch
            .iter()
            .map(|&index| {
                let body = format!("{index:05}");
                let target = path(&name(index));
                format!(
                    "PUT {target} HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n{body}"
                )
            })
            .collect();
        connection.send_raw(requests.as_bytes()).expect("the requests are taken");
        for _ in batch {
            connection.read_response("PUT").expect("there is an answer").expect_status(201);
        }
    }
}

#[track_caller]
fn assert_sample(server: &ServerProcess) {
    let mut client = server.client();
    for index in (0..STREAMS).step_by(97).chain([STREAMS - 1]) {
        let head = client.request("HEAD", &path(&name(index)), &[], b"").expect_status(200);
        assert_eq!(head.header("Stream-Next-Offset"), Some("0000000000000000_0000000000000005"), "{index}");
        assert_eq!(head.header("Content-Type"), Some("text/plain"));
        let page = client.request("GET", &path(&name(index)), &[], b"").expect_status(200);
        assert_eq!(page.text(), format!("{index:05}"));
    }
    client.request("HEAD", &path(&name(STREAMS)), &[], b"").expect_status(404);
}

#[test]
fn many_streams_take_little_memory_each_and_are_there_after_a_crash() {
    let mut server = ServerProcess::start(&[
        ("DS_STORAGE__MODE", "acid"),
        ("DS_STORAGE__ACID_SHARD_COUNT", "2"),
        ("DS_STORAGE__CACHE_BYTES", "8MiB"),
        ("DS_STORAGE__JOURNAL_BYTES", "1MiB"),
    ]);
    let before = resident_bytes(&server);
    create_all(&server, 0..STREAMS);
    assert_grew_less_than(&server, before, STREAMS * STREAM_BYTES + 24 * MIB);
    assert_sample(&server);
    server.client().request("POST", &path(&name(0)), &[TEXT], b"!").expect_status(204);
    server.kill9();
    server.restart();
    server
        .client()
        .request("GET", &format!("{}?offset=0000000000000000_{:016}", path(&name(0)), 5), &[], b"")
        .expect_status(200);
    server.client().request("DELETE", &path(&name(0)), &[], b"").expect_status(204);
    server.client().request("PUT", &path(&name(0)), &[TEXT], b"00000").expect_status(201);
    assert_sample(&server);
    assert_grew_less_than(&server, before, STREAMS * STREAM_BYTES + 24 * MIB);
}
