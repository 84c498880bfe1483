//! Catch-up reads in pages: `protocol.md` §12.

use std::thread;

use crate::contract::Expectations;
use crate::service::{CLOSED, Caller, Deadline, JSON, MODES, TEXT, offset, start, start_in};
use crate::support::ServerProcess;
use crate::support::http::Response;

const PAGE_BYTES: usize = 1000;

fn start_with_small_pages(mode: &str) -> ServerProcess {
    start_in(mode, &[("DS_LIMITS__READ_PAGE_BYTES", &PAGE_BYTES.to_string())])
}

/// All pages from `from` on. Checks what ties one page to the next.
#[track_caller]
fn pages(caller: &mut Caller, name: &str, from: &str) -> Vec<Response> {
    let mut pages = Vec::new();
    let mut next = from.to_owned();
    loop {
        let page = caller.get(&format!("{name}?offset={next}"), &[]).expect_status(200);
        let is_last = page.header("Stream-Up-To-Date").is_some();
        let end = page.next_offset();
        assert!(is_last || end > next, "a page without content before the tail: {page:?}");
        let mark = match (is_last, page.header("Stream-Closed").is_some()) {
            (false, false) => "",
            (true, false) => ":t",
            (true, true) => ":c",
            (false, true) => panic!("closed before the end: {page:?}"),
        };
        let etag = page.header("ETag").expect("a page has an ETag");
        let expected = format!(":{}:{}{mark}\"", position(&next), position(&end));
        assert!(etag.starts_with('"') && etag.ends_with(&expected), "{etag} does not end with {expected}");
        next = end;
        pages.push(page);
        if is_last {
            return pages;
        }
    }
}

/// The position that an offset stands for.
fn position(offset: &str) -> usize {
    match offset {
        "-1" => 0,
        minted => minted[17..].parse().expect("the second field of an offset is a number"),
    }
}

/// The messages of all pages, joined by commas. Each page has to be an array.
#[track_caller]
fn messages(pages: &[Response]) -> String {
    let inner = |page: &Response| {
        count(page);
        page.text().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).expect("an array").to_owned()
    };
    pages.iter().map(inner).filter(|inner| !inner.is_empty()).collect::<Vec<_>>().join(",")
}

/// Number of messages on a page.
#[track_caller]
fn count(page: &Response) -> usize {
    let array: Vec<serde_json::Value> =
        serde_json::from_slice(&page.body).unwrap_or_else(|_| panic!("no array: {:?}", page.text()));
    array.len()
}

#[track_caller]
fn bytes(pages: &[Response]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.body.clone()).collect()
}

/// Runs `check` on the running server and, in acid mode, once more after a restart, when all content is on disk.
fn twice(server: &mut ServerProcess, mode: &str, check: impl Fn(&mut Caller)) {
    check(&mut Caller::to(server));
    if mode == "acid" {
        server.terminate();
        server.restart();
        check(&mut Caller::to(server));
    }
}

/// Appends of many sizes, a page limit's neighbourhood among them.
fn pieces() -> Vec<Vec<u8>> {
    let sizes = [1, 10, 999, 1000, 1001, 2, 3500, 400, 599, 1, 5];
    let mut byte = 0_u8;
    let mut piece = |size: usize| {
        let next = |_| {
            byte = byte.wrapping_mul(31).wrapping_add(7);
            byte
        };
        (0..size).map(next).collect::<Vec<u8>>()
    };
    sizes.map(&mut piece).to_vec()
}

#[test]
fn pages_of_bytes_together_equal_the_whole() {
    for mode in MODES {
        let mut server = start_with_small_pages(mode);
        let mut caller = Caller::to(&server);
        let pieces = pieces();
        let whole = pieces.concat();
        let octets = ("Content-Type", "application/octet-stream");
        caller.create("piecewise", octets, "");
        for piece in &pieces {
            caller.append("piecewise", octets, piece);
        }
        caller.create("at-once", octets, &whole);
        caller.put("closed", &[octets, CLOSED], &whole).expect_status(201);
        drop(caller);
        twice(&mut server, mode, |caller| {
            for name in ["piecewise", "at-once", "closed"] {
                for start in [0, 1, 500, 1000, 1010, whole.len() - 1000, whole.len() - 1] {
                    let pages = pages(caller, name, &offset(start));
                    assert_eq!(bytes(&pages), whole[start..], "{mode}, {name} from {start}");
                    assert!(pages.iter().all(|page| page.body.len() <= PAGE_BYTES));
                    assert_eq!(pages.len(), (whole.len() - start).div_ceil(PAGE_BYTES));
                    let last = &pages[pages.len() - 1];
                    assert_eq!(last.header("Stream-Closed").is_some(), name == "closed");
                }
                assert_eq!(bytes(&pages(caller, name, "-1")), whole);
                let at_tail = pages(caller, name, &offset(whole.len()));
                assert_eq!(at_tail.len(), 1);
                assert_eq!(at_tail[0].body, b"");
            }
        });
    }
}

#[test]
fn pages_of_json_are_arrays_of_whole_messages() {
    for mode in MODES {
        let mut server = start_with_small_pages(mode);
        let mut caller = Caller::to(&server);
        // With its separator each message takes one byte more in the stream.
        let sizes =
            [2, 10, 497, 498, 499, 997, 998, 999, 1000, 1001, 5000, 3, 300, 20_000, 400, 298, 1100, 2];
        let all = sizes.map(|size| format!("\"{}\"", &"[,]".repeat(size)[..size - 2]));
        caller.create("single", JSON, "");
        for message in &all {
            caller.append("single", JSON, message);
        }
        caller.create("batches", JSON, "");
        for batch in all.chunks(4) {
            caller.append("batches", JSON, format!("[{}]", batch.join(",")));
        }
        caller.put("at-once", &[JSON, CLOSED], format!("[{}]", all.join(","))).expect_status(201);
        drop(caller);
        twice(&mut server, mode, |caller| {
            for name in ["single", "batches", "at-once"] {
                let mut start = 0;
                for skipped in 0..all.len() {
                    let pages = pages(caller, name, &offset(start));
                    assert_eq!(messages(&pages), all[skipped..].join(","), "{mode}, {name} from {start}");
                    start += all[skipped].len() + 1;
                    for page in &pages {
                        // The brackets take the place of the last separator and one byte more.
                        let bytes = page.body.len();
                        assert!(bytes <= PAGE_BYTES + 1 || count(page) == 1, "{bytes} bytes");
                    }
                    let last = &pages[pages.len() - 1];
                    assert_eq!(last.header("Stream-Closed").is_some(), name == "at-once");
                }
                assert_eq!(messages(&pages(caller, name, "-1")), all.join(","));
                let at_tail = pages(caller, name, &offset(start));
                assert_eq!(at_tail[0].text(), "[]");
            }
        });
    }
}

#[test]
fn one_byte_is_a_page_too() {
    for mode in MODES {
        let mut server = start_in(mode, &[("DS_LIMITS__READ_PAGE_BYTES", "1")]);
        let mut caller = Caller::to(&server);
        caller.create("bytes", TEXT, "abc");
        caller.append("bytes", TEXT, "de");
        caller.create("json", JSON, "[1,\"two\"]");
        caller.append("json", JSON, "[[3],null]");
        drop(caller);
        twice(&mut server, mode, |caller| {
            let single: Vec<_> =
                pages(caller, "bytes", "-1").iter().map(|page| page.text().to_owned()).collect();
            assert_eq!(single, ["a", "b", "c", "d", "e"]);
            let single: Vec<_> =
                pages(caller, "json", "-1").iter().map(|page| page.text().to_owned()).collect();
            assert_eq!(single, ["[1]", "[\"two\"]", "[[3]]", "[null]"]);
        });
    }
}

#[test]
fn small_streams_come_in_one_page_by_default() {
    let server = start(&[]);
    let mut caller = Caller::to(&server);
    let mebibyte = vec![b'x'; 1024 * 1024];
    caller.create("a", TEXT, &mebibyte);
    assert_eq!(caller.content("a").len(), mebibyte.len());
}

#[test]
fn range_is_ignored() {
    for mode in MODES {
        let server = start_in(mode, &[]);
        let mut caller = Caller::to(&server);
        caller.create("a", TEXT, "abcdef");
        for range in ["bytes=0-0", "bytes=2-", "bytes=100-200", "bytes=-1"] {
            let page = caller.get("a", &[("Range", range)]).expect_status(200);
            assert_eq!(page.text(), "abcdef");
            page.expect_no_header("Content-Range");
        }
    }
}

#[test]
fn pages_read_while_data_is_appended_join_without_gap_or_overlap() {
    for mode in MODES {
        let server = start_with_small_pages(mode);
        Caller::to(&server).create("a", JSON, "");
        let record = |index: usize| format!(r#"{{"n":{index},"pad":"{}"}}"#, "x".repeat(index * 7 % 300));
        thread::scope(|scope| {
            scope.spawn(|| {
                let _guard = server.killed_by_panics();
                let mut caller = Caller::to(&server);
                for index in 0..150 {
                    caller.append("a", JSON, record(index));
                }
                caller.post("a", &[CLOSED], "").expect_status(204);
            });
            let mut reader = Caller::to(&server);
            let mut read = Vec::new();
            let mut next = offset(0);
            let mut deadline = Deadline::start();
            loop {
                deadline.check();
                let some = pages(&mut reader, "a", &next);
                read.push(messages(&some));
                let last = &some[some.len() - 1];
                if last.next_offset() != next {
                    deadline = Deadline::start();
                }
                next = last.next_offset();
                if last.header("Stream-Closed").is_some() {
                    break;
                }
            }
            read.retain(|messages| !messages.is_empty());
            let expected: Vec<_> = (0..150).map(record).collect();
            assert_eq!(read.join(","), expected.join(","), "{mode}");
        });
    }
}

#[test]
fn first_page_stays_the_same_while_the_stream_grows() {
    let server = start_with_small_pages("memory");
    let mut caller = Caller::to(&server);
    caller.create("a", TEXT, vec![b'x'; PAGE_BYTES + 1]);
    let first = caller.get("a", &[]).expect_status(200);
    first.expect_no_header("Stream-Up-To-Date").expect_header("Stream-Next-Offset", &offset(PAGE_BYTES));
    caller.append("a", TEXT, "more");
    caller.post("a", &[CLOSED], "").expect_status(204);
    let etag = first.header("ETag").expect("a page has an ETag");
    let unchanged = caller.get("a", &[("If-None-Match", etag)]).expect_status(304);
    unchanged
        .expect_header("ETag", etag)
        .expect_header("Stream-Next-Offset", &offset(PAGE_BYTES))
        .expect_no_header("Stream-Up-To-Date")
        .expect_no_header("Stream-Closed");
}
