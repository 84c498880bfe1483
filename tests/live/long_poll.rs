//! Long-poll: `protocol.md` §13.

use super::*;

/// A long-poll request that is on its way.
struct Waiting(Connection);

impl Waiting {
    fn send(server: &ServerProcess, name: &str, offset: &str) -> Self {
        let target = path(&format!("{name}?offset={offset}&live=long-poll"));
        let mut connection = server.origin().connect().expect("the server accepts connections");
        connection.send_request("GET", &target, &[], b"").expect("the request can be sent");
        Self(connection)
    }

    /// Sends a request that the server has nothing to answer to, and returns when it has begun to wait.
    #[track_caller]
    fn begin(server: &ServerProcess, name: &str, offset: &str) -> Self {
        let target = path(&format!("{name}?offset={offset}&live=long-poll"));
        let mut connection = server.origin().connect().expect("the server accepts connections");
        connection.begin_wait("/healthz", &target).expect("the request can be sent");
        wait_for_cores(server);
        assert_silent(&connection);
        Self(connection)
    }

    #[track_caller]
    fn answer(mut self) -> Response {
        self.0.read_response("GET").expect("the wait ends with an answer")
    }
}

#[track_caller]
fn poll(server: &ServerProcess, name: &str, query: &str) -> Response {
    get(server, &format!("{name}?live=long-poll&{query}"))
}

/// What every 204 has: the client's own offset, and no trace of a body.
#[track_caller]
fn expect_nothing_new(response: Response, at: usize, closed: bool) {
    let response = response.expect_status(204);
    assert_eq!(next_position(&response), at);
    assert_eq!(response.header("Stream-Up-To-Date"), Some("true"));
    assert_eq!(response.header("Stream-Closed"), closed.then_some("true"));
    assert_eq!(response.header("Cache-Control"), Some("no-store"));
    assert_eq!(response.header("Content-Type"), None);
    assert_eq!(response.header("Content-Length"), None);
    assert_eq!(response.header("ETag"), None);
    cursor(&response);
}

/// What every 200 that ends at the tail has.
#[track_caller]
fn expect_page(response: Response, body: &str, end: usize, closed: bool) {
    let response = response.expect_status(200);
    assert_eq!(response.text(), body);
    assert_eq!(next_position(&response), end);
    assert_eq!(response.header("Stream-Up-To-Date"), Some("true"));
    assert_eq!(response.header("Stream-Closed"), closed.then_some("true"));
    cursor(&response);
}

#[track_caller]
fn cursor(response: &Response) -> u64 {
    let cursor = response.header("Stream-Cursor").expect("every 200 and 204 has a cursor");
    cursor.parse().expect("a cursor is a decimal number")
}

#[test]
fn data_that_is_there_is_answered_at_once() {
    in_each_mode(&[LONG], |server| {
        create(server, "s", &[("Content-Type", "text/plain; charset=utf-8")], "hello world");
        for (offset, body) in [("-1", "hello world"), (&*offset(0), "hello world"), (&*offset(6), "world")] {
            let response = poll(server, "s", &format!("offset={offset}"));
            assert_eq!(response.header("Content-Type"), Some("text/plain; charset=utf-8"));
            let fresh = "public, max-age=60, stale-while-revalidate=300";
            assert_eq!(response.header("Cache-Control"), Some(fresh));
            assert!(response.header("ETag").is_some());
            assert!(cursor(&response).abs_diff(current_interval()) <= 1);
            expect_page(response, body, 11, false);
        }
    });
}

#[test]
fn the_start_of_an_empty_stream_waits_for_its_first_data() {
    in_each_mode(&[LONG], |server| {
        for (name, content_type, data, body, end) in
            [("text", TEXT, "first", "first", 5), ("json", JSON, "[1, 2]", "[1,2]", 4)]
        {
            create(server, name, &[content_type], "");
            let readers = ["-1", "now", &offset(0)].map(|offset| Waiting::begin(server, name, offset));
            append(server, name, content_type, data);
            for reader in readers {
                expect_page(reader.answer(), body, end, false);
            }
        }
    });
}

#[test]
fn the_tail_is_waited_at_whatever_was_there_before() {
    in_each_mode(&[LONG], |server| {
        create(server, "s", &[TEXT], "before ");
        let tail = offset(7);
        let readers = ["now", &tail].map(|offset| Waiting::begin(server, "s", offset));
        append(server, "s", TEXT, "after");
        let [now, known] = readers.map(Waiting::answer);
        // A page that begins at "now" is nobody else's.
        assert_eq!(now.header("Cache-Control"), Some("no-store"));
        assert_eq!(now.header("ETag"), None);
        assert!(known.header("ETag").is_some());
        expect_page(now, "after", 12, false);
        expect_page(known, "after", 12, false);
    });
}

#[test]
fn a_wait_in_vain_ends_with_the_offset_the_client_had() {
    in_each_mode(&[("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "0.05")], |server| {
        create(server, "s", &[JSON], "[1,22]");
        expect_nothing_new(poll(server, "s", "offset=now"), 5, false);
        expect_nothing_new(poll(server, "s", &format!("offset={}", offset(5))), 5, false);
        create(server, "empty", &[], "");
        expect_nothing_new(poll(server, "empty", "offset=-1"), 0, false);
    });
}

#[test]
fn a_204_never_skips_data() {
    // Waits as short as appends are apart, so that both ends of a wait race all the time.
    in_each_mode(&[("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "0.002")], |server| {
        const APPENDS: usize = 250;
        create(server, "s", &[TEXT], "");
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let _guard = server.killed_by_panics();
                let mut client = server.client();
                for number in 0..APPENDS {
                    let line = format!("{number}\n");
                    client.request("POST", &path("s"), &[TEXT], line.as_bytes()).expect_status(204);
                }
                client.request("POST", &path("s"), &[CLOSED], b"").expect_status(204);
            });
            for _ in 0..3 {
                threads.spawn(|| {
                    let (mut client, mut at, mut seen) = (server.client(), 0, String::new());
                    loop {
                        let target = path(&format!("s?offset={}&live=long-poll", offset(at)));
                        let response = client.request("GET", &target, &[], b"");
                        if response.status == 204 {
                            assert_eq!(next_position(&response), at);
                        } else {
                            assert_eq!(next_position(&response), at + response.body.len());
                            at = next_position(&response);
                            seen += response.text();
                        }
                        if response.header("Stream-Closed").is_some() {
                            break;
                        }
                    }
                    let expected: String = (0..APPENDS).map(|number| format!("{number}\n")).collect();
                    assert_eq!(seen, expected);
                });
            }
        });
    });
}

#[test]
fn the_tail_of_a_closed_stream_is_answered_at_once() {
    in_each_mode(&[LONG], |server| {
        create(server, "s", &[TEXT, CLOSED], "all");
        create(server, "empty", &[TEXT, CLOSED], "");
        expect_nothing_new(poll(server, "s", "offset=now"), 3, true);
        expect_nothing_new(poll(server, "s", &format!("offset={}", offset(3))), 3, true);
        expect_nothing_new(poll(server, "empty", "offset=-1"), 0, true);
        expect_page(poll(server, "s", "offset=-1"), "all", 3, true);
    });
}

#[test]
fn closing_without_data_ends_a_wait_with_204() {
    in_each_mode(&[LONG], |server| {
        create(server, "s", &[TEXT], "all");
        let readers = ["now", &offset(3)].map(|offset| Waiting::begin(server, "s", offset));
        close(server, "s");
        for reader in readers {
            expect_nothing_new(reader.answer(), 3, true);
        }
    });
}

#[test]
fn closing_with_data_ends_a_wait_with_the_data() {
    in_each_mode(&[LONG], |server| {
        create(server, "s", &[JSON], "");
        let reader = Waiting::begin(server, "s", "-1");
        let closing = server.client().request("POST", &path("s"), &[JSON, CLOSED], b"{\"last\":true}");
        closing.expect_status(204);
        expect_page(reader.answer(), "[{\"last\":true}]", 14, true);
    });
}

#[test]
fn deletion_ends_a_wait_with_404_and_with_forks_410() {
    in_each_mode(&[LONG], |server| {
        create(server, "s", &[TEXT], "content");
        create(server, "source", &[TEXT], "content");
        fork(server, "fork", "source");
        let (reader, of_source) =
            (Waiting::begin(server, "s", "now"), Waiting::begin(server, "source", "now"));
        let of_fork = Waiting::begin(server, "fork", "now");
        delete(server, "s");
        delete(server, "source");
        for (reader, status, code) in [(reader, 404, "NOT_FOUND"), (of_source, 410, "GONE")] {
            let problem = reader.answer().expect_status(status);
            assert_eq!(problem.header("Content-Type"), Some("application/problem+json"));
            assert_eq!(problem.header("Cache-Control"), Some("no-store"));
            assert!(problem.text().contains(&format!("\"code\":\"{code}\"")), "{}", problem.text());
        }
        append(server, "fork", TEXT, "own");
        expect_page(of_fork.answer(), "own", 10, false);
    });
}

#[test]
fn expiry_ends_a_wait_with_404_and_with_forks_410() {
    in_each_mode_at_once(&[LONG], |server| {
        let soon = ("Stream-Expires-At", &*in_seconds(SOON));
        create(server, "s", &[TEXT, soon], "content");
        create(server, "source", &[TEXT, soon], "content");
        let lasting = ("Stream-TTL", "1000");
        create(server, "fork", &[("Stream-Forked-From", &path("source")), lasting], "");
        let (reader, of_source) = (Waiting::send(server, "s", "now"), Waiting::send(server, "source", "now"));
        reader.answer().expect_status(404);
        of_source.answer().expect_status(410);
        expect_page(poll(server, "fork", "offset=-1"), "content", 7, false);
    });
}

#[test]
fn requests_that_make_no_sense_are_refused_and_do_not_wait() {
    in_each_mode(&[LONG], |server| {
        create(server, "s", &[JSON], "[123]");
        for query in [
            "live=long-poll",
            "live=long-poll&offset=",
            "live=long-poll&offset=-1&offset=-1",
            "live=long-poll&live=long-poll&offset=-1",
            "live=&offset=-1",
            "live=poll&offset=-1",
            "live=LONG-POLL&offset=-1",
            // Beyond the tail, inside the message, of another generation.
            "live=long-poll&offset=0000000000000000_0000000000000005",
            "live=long-poll&offset=9999999999999999_9999999999999999",
            "live=long-poll&offset=0000000000000000_0000000000000002",
            "live=long-poll&offset=0000000000000001_0000000000000000",
        ] {
            let response = get(server, &format!("s?{query}"));
            assert_eq!(response.status, 400, "{query}");
        }
        get(server, "absent?live=long-poll&offset=-1").expect_status(404);
        get(server, "absent?live=long-poll&offset=now").expect_status(404);
    });
}

#[test]
fn the_cursor_always_moves_on() {
    in_each_mode(&[("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "0.01")], |server| {
        create(server, "s", &[TEXT], "content");
        for offset in ["-1", "now"] {
            let before = current_interval();
            for ignored in
                ["", "&cursor=", "&cursor=x", "&cursor=-5", "&cursor=1000000000000000", "&cursor=5"]
            {
                let cursor = cursor(&poll(server, "s", &format!("offset={offset}{ignored}")));
                assert!((before..=current_interval()).contains(&cursor), "{ignored:?}: {cursor}");
            }
            for ahead in [current_interval() + 1, current_interval() + 1000, 999_999_999_999_999] {
                let cursor = cursor(&poll(server, "s", &format!("offset={offset}&cursor={ahead}")));
                assert!((ahead + 1..=ahead + 180).contains(&cursor), "{ahead}: {cursor}");
            }
        }
    });
}

#[test]
fn if_none_match_means_nothing_to_a_long_poll() {
    in_each_mode(&[LONG], |server| {
        create(server, "s", &[TEXT], "content");
        let target = path("s?offset=-1&live=long-poll");
        let etag = poll(server, "s", "offset=-1").header("ETag").expect("a page has an ETag").to_owned();
        for value in ["*", &etag] {
            let response = server.client().request("GET", &target, &[("If-None-Match", value)], b"");
            expect_page(response, "content", 7, false);
        }
    });
}

#[test]
fn a_wait_on_a_fork_is_not_ended_by_its_source() {
    in_each_mode(&[LONG], |server| {
        create(server, "source", &[TEXT], "inherited");
        fork(server, "fork", "source");
        expect_page(poll(server, "fork", "offset=-1"), "inherited", 9, false);
        let reader = Waiting::begin(server, "fork", &offset(9));
        append(server, "source", TEXT, "not for the fork");
        close(server, "source");
        assert_silent(&reader.0);
        append(server, "fork", TEXT, " own");
        expect_page(reader.answer(), " own", 13, false);
    });
}

#[test]
fn a_reader_that_is_behind_gets_one_page_after_the_other() {
    in_each_mode(&[LONG, ("DS_LIMITS__READ_PAGE_BYTES", "10")], |server| {
        create(server, "s", &[TEXT, CLOSED], "0123456789abcdefghijABC");
        let (mut at, mut pages) = (offset(0), Vec::new());
        loop {
            let page = poll(server, "s", &format!("offset={at}")).expect_status(200);
            at = offset(next_position(&page));
            pages.push(page.text().to_owned());
            cursor(&page);
            let is_last = pages.len() == 3;
            assert_eq!(page.header("Stream-Up-To-Date").is_some(), is_last);
            assert_eq!(page.header("Stream-Closed").is_some(), is_last);
            if is_last {
                break;
            }
        }
        assert_eq!(pages, ["0123456789", "abcdefghij", "ABC"]);
    });
}

#[test]
fn an_append_larger_than_a_page_ends_a_wait_with_its_first_page() {
    in_each_mode(&[LONG, ("DS_LIMITS__READ_PAGE_BYTES", "10")], |server| {
        for (name, content_type, data, first, end) in [
            ("text", TEXT, "0123456789abc", "0123456789", 10),
            ("json", JSON, "[111,222,333]", "[111,222]", 8),
            // A message that is larger than a page comes alone.
            ("large", JSON, "[\"0123456789\",1]", "[\"0123456789\"]", 13),
        ] {
            create(server, name, &[content_type], "");
            let reader = Waiting::begin(server, name, "-1");
            append(server, name, content_type, data);
            let page = reader.answer().expect_status(200);
            assert_eq!((page.text(), next_position(&page)), (first, end));
            assert_eq!(page.header("Stream-Up-To-Date"), None);
        }
    });
}

#[test]
fn shutting_down_ends_a_wait_with_204() {
    for mode in ["memory", "acid"] {
        let mut server = start(mode, &[LONG]);
        create(&server, "s", &[TEXT], "content");
        create(&server, "empty", &[TEXT], "");
        let readers = [("s", "now", 7), ("s", &*offset(7), 7), ("empty", "-1", 0)]
            .map(|(name, offset, at)| (Waiting::begin(&server, name, offset), at));
        server.signal("TERM");
        for (reader, at) in readers {
            expect_nothing_new(reader.answer(), at, false);
        }
        assert!(server.wait_for_exit().success());
    }
}
