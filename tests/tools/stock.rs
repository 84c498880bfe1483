//! Streams with everything that a stream can have, and what a client sees of them.

use std::collections::BTreeMap;

use crate::support::ServerProcess;
use crate::support::http::{Client, Response};

pub(crate) const TEXT: (&str, &str) = ("Content-Type", "text/plain");
pub(crate) const JSON: (&str, &str) = ("Content-Type", "application/json");

/// Starts a server whose content goes into segments soon.
pub(crate) fn start(mode: &str, shards: &str) -> ServerProcess {
    ServerProcess::start(&[
        ("DS_STORAGE__MODE", mode),
        ("DS_STORAGE__ACID_SHARD_COUNT", shards),
        ("DS_STORAGE__JOURNAL_BYTES", "65536"),
        ("DS_LIMITS__MAX_MEMORY_BYTES", "65536"),
    ])
}

fn path(name: &str) -> String {
    format!("/v1/stream/{}", name.replace(' ', "%20"))
}

#[track_caller]
pub(crate) fn put(client: &mut Client, name: &str, headers: &[(&str, &str)], body: &[u8]) {
    client.request("PUT", &path(name), headers, body).expect_status(201);
}

pub(crate) fn post(client: &mut Client, name: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    client.request("POST", &path(name), headers, body)
}

/// Bytes that are no text, and as JSON messages of many kinds and sizes.
pub(crate) fn bytes(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u32 | 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(next).collect()
}

fn producer(seq: &str) -> [(&'static str, &str); 3] {
    [("Producer-Id", "writer ü"), ("Producer-Epoch", "3"), ("Producer-Seq", seq)]
}

/// Makes all of them.
pub(crate) fn fill(server: &ServerProcess) {
    let client = &mut server.client();
    let binary = ("Content-Type", "application/octet-stream");
    put(client, "empty", &[TEXT], b"");
    for n in 0..30 {
        let name = format!("many/{n}");
        put(client, &name, &[binary], &bytes(n, 3000 * (n % 5)));
        post(client, &name, &[binary], &bytes(n + 100, 1 + n)).expect_status(204);
    }
    put(client, "large", &[binary], &bytes(7, 700_000));
    post(client, "large", &[binary], &bytes(8, 300_000)).expect_status(204);
    put(
        client,
        "json",
        &[("Content-Type", "application/json; charset=utf-8")],
        b"[1, {\"a\" : [true,null]}, \"x,y\"]",
    );
    post(client, "json", &[JSON], "[{\"spread\":\n [1,\r\n2]},\"é\\u0041\"]".as_bytes()).expect_status(204);
    let long: String = "lorem, \\\"ipsum\\\" ".repeat(40_000);
    post(client, "json", &[JSON], format!("[\"{long}\",[{}]]", "1,".repeat(2_000) + "2").as_bytes())
        .expect_status(204);
    for n in 0..300 {
        post(client, "json", &[JSON], format!("{{\"n\":{n},\"text\":\"{}\"}}", "z".repeat(n)).as_bytes())
            .expect_status(204);
    }
    put(client, "closed", &[TEXT, ("Stream-Closed", "true")], b"created closed");
    put(client, "produced", &[TEXT], b"");
    for seq in ["0", "1", "2"] {
        post(client, "produced", &[&[TEXT][..], &producer(seq)].concat(), b"abc").expect_status(200);
    }
    put(client, "closed by a producer", &[TEXT], b"");
    let closing = [&[TEXT, ("Stream-Closed", "true")][..], &producer("0")].concat();
    post(client, "closed by a producer", &closing, b"the end").expect_status(200);
    put(client, "sequence", &[TEXT], b"");
    post(client, "sequence", &[TEXT, ("Stream-Seq", "0005")], b"five").expect_status(204);
    put(client, "ttl", &[TEXT, ("Stream-TTL", "86400")], b"for a day");
    put(client, "expires", &[TEXT, ("Stream-Expires-At", "2099-01-01T00:00:00.5+02:00")], b"for long");
    // A family over shards: a source that is deleted, with a fork that has a fork, and one at another place.
    put(client, "source", &[TEXT], b"0123456789");
    let from = |source: &'static str| ("Stream-Forked-From", source);
    put(
        client,
        "fork",
        &[from("/v1/stream/source"), ("Stream-Fork-Offset", "0000000000000000_0000000000000007")],
        b"",
    );
    post(client, "fork", &[TEXT], b"abcdef").expect_status(204);
    put(
        client,
        "fork/of/fork",
        &[from("/v1/stream/fork"), ("Stream-Fork-Offset", "0000000000000000_0000000000000010")],
        b"",
    );
    post(client, "fork/of/fork", &[TEXT], b"XYZ").expect_status(204);
    put(
        client,
        "young",
        &[from("/v1/stream/fork/of/fork"), ("Stream-Fork-Offset", "0000000000000000_0000000000000003")],
        b"",
    );
    put(client, "json fork", &[from("/v1/stream/json")], b"[\"own\"]");
    fill_kept(client);
    client.request("DELETE", &path("source"), &[], b"").expect_status(204);
}

/// A family that retention has cut: a source that was cut before and after it was forked, and is kept for that from the first
/// cut on, a fork at its new beginning, a fork of a fork that gives up what it inherited, and one that is deleted.
fn fill_kept(client: &mut Client) {
    let bytes = |max: &'static str| ("Stream-Retention-Max-Bytes", max);
    let from = |source: &'static str| ("Stream-Forked-From", source);
    put(client, "kept", &[TEXT, bytes("100"), ("Stream-Retention-Max-Age", "864000")], b"");
    let go_on = |client: &mut Client| {
        for n in 0..30 {
            post(client, "kept", &[TEXT], format!("{n:09} ").as_bytes()).expect_status(204);
        }
    };
    go_on(client);
    put(client, "kept/fork", &[from("/v1/stream/kept")], b"");
    post(client, "kept/fork", &[TEXT], b"abc").expect_status(204);
    put(client, "kept/fork/of/fork", &[from("/v1/stream/kept/fork"), bytes("4")], b"");
    post(client, "kept/fork/of/fork", &[TEXT], b"defghi").expect_status(204);
    post(client, "kept/fork/of/fork", &[TEXT], b"jk").expect_status(204);
    put(client, "kept/gone", &[from("/v1/stream/kept/fork/of/fork")], b"");
    go_on(client);
    put(client, "kept/late", &[from("/v1/stream/kept"), ("Stream-Fork-Offset", "-1")], b"late");
    client.request("DELETE", &path("kept/gone"), &[], b"").expect_status(204);
}

/// What a client sees of a stream, but for what differs between two incarnations.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    status: u16,
    headers: Vec<(String, String)>,
    content: Vec<u8>,
}

const NAMES: [&str; 20] = [
    "empty",
    "large",
    "json",
    "closed",
    "produced",
    "closed by a producer",
    "sequence",
    "ttl",
    "expires",
    "source",
    "fork",
    "fork/of/fork",
    "young",
    "json fork",
    "kept",
    "kept/fork",
    "kept/fork/of/fork",
    "kept/gone",
    "kept/late",
    "none",
];

/// What a client sees of all of them.
pub(crate) fn seen(server: &ServerProcess) -> BTreeMap<String, Seen> {
    let client = &mut server.client();
    let many = (0..30).map(|n| format!("many/{n}"));
    let names = NAMES.iter().map(ToString::to_string).chain(many);
    names
        .map(|name| {
            let seen = see(client, &name);
            (name, seen)
        })
        .collect()
}

fn see(client: &mut Client, name: &str) -> Seen {
    let head = client.request("HEAD", &path(name), &[], b"");
    let told = [
        "content-type",
        "stream-next-offset",
        "stream-closed",
        "stream-ttl",
        "stream-expires-at",
        "stream-earliest-offset",
        "stream-retention-max-age",
        "stream-retention-max-bytes",
    ];
    let is_told = |(key, value): &(String, String)| {
        let key = key.to_ascii_lowercase();
        told.contains(&key.as_str()).then(|| (key, value.clone()))
    };
    let mut headers: Vec<_> = head.headers.iter().filter_map(is_told).collect();
    headers.sort_unstable();
    let mut content = Vec::new();
    let mut offset = "-1".to_owned();
    let mut is_there = head.status == 200;
    while is_there {
        let page =
            client.request("GET", &format!("{}?offset={offset}", path(name)), &[], b"").expect_status(200);
        content.extend_from_slice(&page.body);
        offset = page.header("Stream-Next-Offset").expect("a page has an end").to_owned();
        is_there = page.header("Stream-Up-To-Date").is_none();
    }
    Seen { status: head.status, headers, content }
}

/// What the streams remember of writers is still true. Changes nothing.
#[track_caller]
pub(crate) fn check_memory(server: &ServerProcess) {
    let client = &mut server.client();
    for seq in ["0", "2"] {
        let repeated =
            post(client, "produced", &[&[TEXT][..], &producer(seq)].concat(), b"abc").expect_status(204);
        assert_eq!(repeated.header("Producer-Seq"), Some("2"));
    }
    post(client, "produced", &[&[TEXT][..], &producer("4")].concat(), b"abc").expect_status(409);
    let closing = [&[TEXT, ("Stream-Closed", "true")][..], &producer("0")].concat();
    post(client, "closed by a producer", &closing, b"the end").expect_status(204);
    post(client, "closed", &[TEXT], b"more").expect_status(409);
    post(client, "sequence", &[TEXT, ("Stream-Seq", "0005")], b"again").expect_status(409);
}
