//! What starts a sliding window anew, and what does not: the table of `protocol.md` §16, row by row.

use super::*;

const WINDOW: Duration = Duration::from_secs(10);
const JSON: (&str, &str) = ("Content-Type", "application/json");

/// An offset inside the first message of [`prepare`]'s streams.
const INSIDE: &str = "0000000000000000_0000000000000001";

/// One way to touch a stream.
struct Touch {
    what: &'static str,
    method: &'static str,
    query: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    status: u16,
}

const fn touch(
    what: &'static str,
    method: &'static str,
    query: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    status: u16,
) -> Touch {
    Touch { what, method, query, headers, body, status }
}

const PRODUCER: [(&str, &str); 3] = [("Producer-Id", "p"), ("Producer-Epoch", "1"), ("Producer-Seq", "0")];
const DUPLICATE: &[(&str, &str)] = &[PRODUCER[0], PRODUCER[1], PRODUCER[2], JSON];
const GAP: &[(&str, &str)] = &[PRODUCER[0], PRODUCER[1], ("Producer-Seq", "5"), JSON];
const STALE: &[(&str, &str)] = &[PRODUCER[0], ("Producer-Epoch", "0"), PRODUCER[2], JSON];
const NEW_EPOCH: &[(&str, &str)] = &[PRODUCER[0], ("Producer-Epoch", "2"), ("Producer-Seq", "1"), JSON];

/// Each on a JSON stream that holds `[1]`, appended by the producer with sequence number 0 and `Stream-Seq: m`.
const RENEWING: &[Touch] = &[
    touch("catch-up", "GET", "", &[], "", 200),
    touch("catch-up from an offset", "GET", "?offset=0000000000000000_0000000000000002", &[], "", 200),
    touch("the tail", "GET", "?offset=now", &[], "", 200),
    touch("what the client has", "GET", "?offset=-1", &[("If-None-Match", "*")], "", 304),
    touch("long-poll with data", "GET", "?offset=-1&live=long-poll", &[], "", 200),
    touch("long-poll without data", "GET", "?offset=now&live=long-poll", &[], "", 204),
    touch("server-sent events", "GET", "?offset=-1&live=sse", &[], "", 200),
    touch("append", "POST", "", &[JSON], "2", 204),
    touch("duplicate", "POST", "", DUPLICATE, "1", 204),
    touch("close", "POST", "", &[("Stream-Closed", "true")], "", 204),
    touch("creation that finds it", "PUT", "", &[JSON, ("Stream-TTL", "10")], "", 200),
];

const NOT_RENEWING: &[Touch] = &[
    touch("description", "HEAD", "", &[], "", 200),
    touch("preflight", "OPTIONS", "", &[], "", 204),
    touch("read beyond the tail", "GET", "?offset=0000000000000000_0000000000000099", &[], "", 400),
    touch("read inside a message", "GET", "?offset=0000000000000000_0000000000000001", &[], "", 400),
    touch(
        "tailing inside a message",
        "GET",
        "?offset=0000000000000000_0000000000000001&live=sse",
        &[],
        "",
        400,
    ),
    touch("read from nonsense", "GET", "?offset=x", &[], "", 400),
    touch("read in an unknown mode", "GET", "?offset=-1&live=x", &[], "", 400),
    touch("append of another type", "POST", "", &[OCTETS], "x", 409),
    touch("append of malformed JSON", "POST", "", &[JSON], "{", 400),
    touch("append of nothing", "POST", "", &[JSON], "[]", 400),
    touch("append without body", "POST", "", &[JSON], "", 400),
    touch("append behind a gap", "POST", "", GAP, "2", 409),
    touch("append of a stale epoch", "POST", "", STALE, "2", 403),
    touch("append of an epoch that begins late", "POST", "", NEW_EPOCH, "2", 400),
    touch("append out of sequence", "POST", "", &[JSON, ("Stream-Seq", "l")], "2", 409),
    touch("creation of something else", "PUT", "", &[JSON], "", 409),
    touch("unknown method", "PATCH", "", &[], "", 405),
];

#[tokio::test]
async fn these_requests_start_a_window_anew() {
    in_each_mode(async |server| {
        for touch in RENEWING {
            let name = prepare(&server).await;
            server.pass(WINDOW * 3 / 4);
            apply(&server, &name, touch).await;
            assert_lives_for(&server, &name, WINDOW, touch.what).await;
        }
    })
    .await;
}

#[tokio::test]
async fn these_requests_leave_a_window_alone() {
    in_each_mode(async |server| {
        for touch in NOT_RENEWING {
            let name = prepare(&server).await;
            server.pass(WINDOW * 3 / 4);
            apply(&server, &name, touch).await;
            assert_lives_for(&server, &name, WINDOW / 4, touch.what).await;
        }
    })
    .await;
}

#[tokio::test]
async fn on_a_closed_stream_a_repeated_close_renews_and_an_append_does_not() {
    in_each_mode(async |server| {
        let closing = [("Stream-Closed", "true")];
        let closing_by_producer = [PRODUCER[0], PRODUCER[1], ("Producer-Seq", "1"), JSON, closing[0]];
        for producer in [false, true] {
            let close = if producer { &closing_by_producer[..] } else { &closing[..] };
            let body = if producer { "2" } else { "" };
            let name = prepare(&server).await;
            server.request("POST", &name, close, body).await.expect(if producer { 200 } else { 204 });
            server.pass(WINDOW * 3 / 4);
            server.request("POST", &name, close, body).await.expect(204);
            server.pass(WINDOW * 3 / 4);
            server.request("POST", &name, &[JSON], "3").await.expect(409);
            server.request("POST", &name, &[JSON, closing[0]], "3").await.expect(409);
            assert_lives_for(&server, &name, WINDOW / 4, "append to a closed stream").await;
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_moves_a_fixed_instant() {
    in_each_mode(async |server| {
        for touch in RENEWING.iter().filter(|touch| touch.method != "PUT") {
            let deadline_ms = server.clock.now_ms() + 10_000;
            let instant =
                time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(deadline_ms) * 1_000_000)
                    .expect("the year has four digits");
            let instant = instant.format(&time::format_description::well_known::Rfc3339);
            let lifetime = ("Stream-Expires-At", &*instant.expect("the year has four digits"));
            let name = prepare_with(&server, lifetime).await;
            server.pass(WINDOW * 3 / 4);
            apply(&server, &name, touch).await;
            assert_lives_for(&server, &name, WINDOW / 4, touch.what).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_fork_and_its_source_have_windows_of_their_own() {
    in_each_mode(async |server| {
        let source = prepare(&server).await;
        let forked_from = ("Stream-Forked-From", &*format!("/v1/stream/{source}"));
        let inheriting = format!("{source}-fork");
        server.create(&inheriting, &[forked_from]).await;
        assert_eq!(
            server.request("HEAD", &inheriting, &[], "").await.header("Stream-TTL"),
            Some("10"),
            "the window is inherited"
        );
        let own = format!("{source}-own");
        server.create(&own, &[forked_from, ("Stream-TTL", "1000")]).await;

        // The fork is kept alive by reading what it inherited; its source is not.
        server.pass(WINDOW * 3 / 4);
        assert_eq!(server.get(&inheriting).await.expect(200).text().await, "[1]");
        server.request("POST", &own, &[JSON], "2").await.expect(204);
        server.pass(WINDOW / 4);
        server.expect_status(&source, 410).await;
        server.expect_status(&inheriting, 200).await;
        server.pass(WINDOW * 3 / 4);
        server.expect_status(&inheriting, 404).await;
        assert_eq!(server.get(&own).await.expect(200).text().await, "[1,2]");
    })
    .await;
}

#[tokio::test]
async fn a_refused_read_of_inherited_data_leaves_a_window_alone() {
    in_each_mode(async |server| {
        // Whether an offset lies between two messages is only known where the messages are.
        for query in ["", "&live=long-poll", "&live=sse"] {
            let source = prepare(&server).await;
            let fork = format!("{source}-fork");
            let forked_from = ("Stream-Forked-From", &*format!("/v1/stream/{source}"));
            server.create(&fork, &[forked_from, ("Stream-TTL", "10")]).await;
            server.pass(WINDOW / 4);
            server.get(&format!("{fork}?offset={INSIDE}{query}")).await.expect(400);
            assert_lives_for(&server, &fork, WINDOW * 3 / 4, query).await;
        }
    })
    .await;
}

#[tokio::test]
async fn reading_a_source_does_not_keep_its_fork_alive() {
    in_each_mode(async |server| {
        let source = prepare(&server).await;
        let fork = format!("{source}-fork");
        server.create(&fork, &[("Stream-Forked-From", &format!("/v1/stream/{source}"))]).await;
        server.pass(WINDOW * 3 / 4);
        server.get(&source).await.expect(200);
        server.request("POST", &source, &[JSON], "2").await.expect(204);
        server.pass(WINDOW / 4);
        server.expect_status(&fork, 404).await;
        server.expect_status(&source, 200).await;
    })
    .await;
}

/// A new JSON stream with one message and a window of 10 s.
async fn prepare(server: &Server) -> String {
    prepare_with(server, ("Stream-TTL", "10")).await
}

async fn prepare_with(server: &Server, lifetime: (&str, &str)) -> String {
    let name = format!("touched-at-{}", server.clock.now_ms());
    server.create(&name, &[JSON, lifetime]).await;
    let headers = [PRODUCER[0], PRODUCER[1], PRODUCER[2], JSON, ("Stream-Seq", "m")];
    server.request("POST", &name, &headers, "1").await.expect(200);
    name
}

async fn apply(server: &Server, name: &str, touch: &Touch) {
    let target = format!("{name}{}", touch.query);
    let answer = server.request(touch.method, &target, touch.headers, touch.body).await;
    assert_eq!(answer.status.as_u16(), touch.status, "{}", touch.what);
    // A response that goes on would keep the stream alive.
    drop(answer);
}

/// The stream ends when this time has passed, and not a millisecond before.
async fn assert_lives_for(server: &Server, name: &str, time: Duration, what: &str) {
    assert_eq!(server.status(name).await, 200, "{what}: it is gone at once");
    server.pass(time - MILLISECOND);
    assert_eq!(server.status(name).await, 200, "{what}: it is gone too early");
    server.pass(MILLISECOND);
    assert_eq!(server.status(name).await, 404, "{what}: it is still there");
}
