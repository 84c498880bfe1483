//! Heartbeats, cursors, and how SSE responses end: `protocol.md` §14.3, §15.3 and §11.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::tail::{Arrival, Tail};
use super::*;

#[test]
fn an_idle_connection_carries_comments_behind_control_events() {
    in_each_mode(&[("DS_SERVER__SSE_HEARTBEAT_SECS", "0.02")], |server| {
        create(server, "s", &[TEXT], "");
        let mut tail = Tail::open(server, "s", "-1");
        // That it is never the first thing is checked for every chunk.
        tail.expect_control();
        for round in 0..5 {
            for _ in 0..3 {
                assert_eq!(tail.arrival(), Arrival::Heartbeat);
            }
            append(server, "s", TEXT, round.to_string());
            tail.expect_data(&round.to_string());
        }
        close(server, "s");
        assert!(tail.expect_control().closed);
        tail.expect_end();
    });
}

#[test]
fn without_heartbeats_silence_is_silence() {
    in_each_mode(&[("DS_SERVER__SSE_HEARTBEAT_SECS", "0")], |server| {
        create(server, "s", &[TEXT], "");
        let mut tail = Tail::open(server, "s", "-1");
        tail.expect_control();
        tail.assert_silent();
    });
}

#[test]
fn an_idle_response_ends_behind_its_control_event_when_its_time_is_up() {
    in_each_mode(&[("DS_SERVER__SSE_RECONNECT_INTERVAL_SECS", "0.3")], |server| {
        create(server, "s", &[TEXT], "content");
        let mut tail = Tail::open(server, "s", "-1");
        assert_eq!(tail.expect_data("content").next, 7);
        tail.expect_end();
        assert_eq!(Tail::open(server, "s", &offset(7)).expect_control().next, 7);
    });
}

#[test]
fn constant_data_does_not_keep_a_response_alive_and_nothing_is_lost_over_its_end() {
    in_each_mode(&[("DS_SERVER__SSE_RECONNECT_INTERVAL_SECS", "0.4")], |server| {
        create(server, "s", &[JSON], "");
        let enough = AtomicBool::new(false);
        thread::scope(|threads| {
            let writer = threads.spawn(|| {
                let (mut client, mut count) = (server.client(), 0);
                while !enough.load(Ordering::Relaxed) {
                    let body = count.to_string();
                    client.request("POST", &path("s"), &[JSON], body.as_bytes()).expect_status(204);
                    count += 1;
                }
                client.request("POST", &path("s"), &[CLOSED], b"").expect_status(204);
                count
            });
            let end = RaiseOnDrop(&enough);
            let (mut at, mut seen, mut lives) = (0, Vec::new(), 0);
            loop {
                let mut tail = Tail::open(server, "s", &offset(at));
                let mut is_closed = false;
                while let Some(batch) = tail.try_batch().expect("the response ends as it should") {
                    if let Some(data) = &batch.data {
                        let numbers: Vec<usize> = serde_json::from_str(data).expect("each event is an array");
                        seen.extend(numbers);
                    }
                    at = batch.control.next;
                    is_closed = batch.control.closed;
                }
                lives += 1;
                // The writer never pauses, so each of these ended under constant data.
                enough.store(lives >= 4, Ordering::Relaxed);
                if is_closed {
                    break;
                }
            }
            drop(end);
            let count = writer.join().expect("the writer succeeds");
            assert!(lives >= 4, "{lives}");
            assert!(seen.iter().copied().eq(0..count), "{count} appended, {} seen", seen.len());
        });
    });
}

#[test]
fn a_cursor_moves_on_from_the_clients_and_never_goes_back() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT], "content");
        let before = current_interval();
        let cursors = |query: &str| {
            let mut tail = Tail::open_with(server, &format!("s?offset=-1&live=sse{query}"), &[]);
            let mut cursors = vec![tail.batch().control.cursor.expect("the stream is open")];
            for _ in 0..3 {
                append(server, "s", TEXT, "more");
                cursors.push(tail.batch().control.cursor.expect("the stream is open"));
            }
            cursors
        };
        for ignored in ["", "&cursor=x", "&cursor=1", "&cursor=1000000000000000"] {
            let cursors = cursors(ignored);
            assert!(cursors.is_sorted(), "{cursors:?}");
            assert!(
                cursors.iter().all(|cursor| (before..=current_interval()).contains(cursor)),
                "{cursors:?}"
            );
        }
        for ahead in [current_interval() + 2, 999_999_999_999_999] {
            let cursors = cursors(&format!("&cursor={ahead}"));
            // Drawn once for the connection.
            assert!(cursors.iter().all(|cursor| *cursor == cursors[0]), "{cursors:?}");
            assert!((ahead + 1..=ahead + 180).contains(&cursors[0]), "{ahead}: {cursors:?}");
        }
    });
}

#[test]
fn readers_with_cursors_of_their_own_share_everything_else() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT], "");
        let ahead = [current_interval() + 500, current_interval() + 90_000];
        let mut tails = [
            Tail::open(server, "s", "-1"),
            Tail::open_with(server, &format!("s?offset=-1&live=sse&cursor={}", ahead[0]), &[]),
            Tail::open_with(server, &format!("s?offset=-1&live=sse&cursor={}", ahead[1]), &[]),
            Tail::open(server, "s", "-1"),
        ];
        let own = tails.each_mut().map(|tail| tail.expect_control().cursor.expect("the stream is open"));
        for number in 0..10 {
            let data = format!("payload {number}");
            append(server, "s", TEXT, &data);
            for (tail, own) in tails.iter_mut().zip(own) {
                let cursor = tail.expect_data(&data).cursor.expect("the stream is open");
                // The clock may move on to the next interval meanwhile, for those that follow it.
                assert!(
                    cursor == own || own < ahead[0] && cursor == current_interval(),
                    "{cursor} after {own}"
                );
            }
        }
    });
}

#[test]
fn a_closure_without_data_is_one_control_event_and_the_end() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT], "all");
        let mut tails = ["-1", "now"].map(|at| Tail::open(server, "s", at));
        tails[0].expect_data("all");
        tails[1].expect_control();
        close(server, "s");
        for tail in &mut tails {
            let batch = tail.batch();
            let expected = format!(
                "event: control\ndata:{{\"streamNextOffset\":\"{}\",\"upToDate\":true,\"streamClosed\":true}}\n\n",
                offset(3)
            );
            assert_eq!(batch.raw, expected);
            tail.expect_end();
        }
    });
}

#[test]
fn a_closure_with_data_is_one_batch_and_the_end() {
    in_each_mode(&[], |server| {
        create(server, "s", &[JSON], "1");
        let mut tail = Tail::open(server, "s", "now");
        tail.expect_control();
        server.client().request("POST", &path("s"), &[JSON, CLOSED], b"[2,3]").expect_status(204);
        let control = tail.expect_data("[2,3]");
        assert_eq!((control.next, control.closed), (6, true));
        tail.expect_end();
    });
}

#[test]
fn deletion_ends_the_response_without_another_event() {
    in_each_mode(&[], |server| {
        create(server, "s", &[TEXT], "content");
        create(server, "source", &[TEXT], "content");
        fork(server, "fork", "source");
        for (name, status) in [("s", 404), ("source", 410)] {
            let mut tail = Tail::open(server, name, "-1");
            tail.expect_data("content");
            delete(server, name);
            tail.expect_end();
            get(server, &format!("{name}?offset={}&live=sse", offset(7))).expect_status(status);
        }
        assert_eq!(Tail::open(server, "fork", "-1").expect_data("content").next, 7);
    });
}

#[test]
fn expiry_ends_the_response_without_another_event() {
    in_each_mode_at_once(&[], |server| {
        let soon = ("Stream-Expires-At", &*in_seconds(SOON));
        create(server, "s", &[TEXT, soon], "content");
        create(server, "source", &[TEXT, soon], "content");
        create(server, "fork", &[("Stream-Forked-From", &path("source")), ("Stream-TTL", "1000")], "");
        let mut tails = ["s", "source"].map(|name| Tail::open(server, name, "-1"));
        for tail in &mut tails {
            tail.expect_data("content");
            tail.expect_end();
        }
        get(server, "s").expect_status(404);
        get(server, "source").expect_status(410);
    });
}

#[test]
fn shutting_down_ends_the_response_behind_a_control_event() {
    for mode in ["memory", "acid"] {
        let mut server = start(mode, &[]);
        create(&server, "idle", &[TEXT], "content");
        create(&server, "busy", &[JSON], "");
        let enough = AtomicBool::new(false);
        let mut idle = Tail::open(&server, "idle", "-1");
        let mut busy = Tail::open(&server, "busy", "-1");
        thread::scope(|threads| {
            let writer = threads.spawn(|| {
                let (mut client, mut acknowledged) = (server.client(), 0_usize);
                while !enough.load(Ordering::Relaxed) {
                    let body = acknowledged.to_string();
                    match client.try_request("POST", &path("busy"), &[JSON], body.as_bytes()) {
                        Ok(answer) if answer.status == 204 => acknowledged += 1,
                        // The server goes.
                        _ => break,
                    }
                }
                acknowledged
            });
            let end = RaiseOnDrop(&enough);
            idle.expect_data("content");
            let mut seen = Vec::new();
            let mut signalled = false;
            while let Some(batch) = busy.try_batch().expect("the response ends as it should") {
                let data = batch.data.unwrap_or_else(|| "[]".to_owned());
                seen.extend(serde_json::from_str::<Vec<usize>>(&data).expect("each event is an array"));
                if seen.len() > 20 && !signalled {
                    server.signal("TERM");
                    signalled = true;
                }
            }
            idle.expect_end();
            drop(end);
            let acknowledged = writer.join().expect("the writer succeeds");
            // A reader may be told to come back before it saw the last of it, but never sees a gap; and at most one
            // append was on its way without an answer.
            assert!(seen.iter().copied().eq(0..seen.len()));
            assert!(seen.len() <= acknowledged + 1, "{} seen, {acknowledged} acknowledged", seen.len());
        });
        assert!(server.wait_for_exit().success());
    }
}
