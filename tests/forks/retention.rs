//! Forks of a source that is cut with nearly every append: each is made, begins with its source, and is whole.

use std::sync::atomic::{AtomicBool, Ordering};

use super::support::ending::RaiseOnDrop;
use super::*;

const SMALL: (&str, &str) = ("Stream-Retention-Max-Bytes", "40");
const ROUNDS: usize = 60;

/// What a stream has from one position to another whose every byte follows from its position.
fn content(from: usize, to: usize) -> String {
    (from..to).map(|position| char::from(b'a' + u8::try_from(position % 26).expect("it is small"))).collect()
}

fn earliest(server: &mut Server, name: &str) -> usize {
    let head = server.request("HEAD", name, &[], b"").expect_status(200);
    let earliest = head.header("Stream-Earliest-Offset").unwrap_or("0000000000000000_0").to_owned();
    earliest.rsplit('_').next().and_then(|digits| digits.parse().ok()).expect("it is an offset")
}

#[test]
fn forks_of_a_source_that_is_cut_all_the_time_are_made_and_whole() {
    on_each_layout_with(&[("DS_STORAGE__JOURNAL_BYTES", "64KiB")], |mut server| {
        server.create("source", &[TEXT, SMALL], "");
        let process = &server.process;
        let is_done = AtomicBool::new(false);
        let mut forks = Vec::new();
        thread::scope(|threads| {
            threads.spawn(|| {
                let mut client = process.client();
                let mut tail = 0;
                while !is_done.load(Ordering::Relaxed) {
                    let piece = content(tail, tail + 7);
                    client.request("POST", &path("source"), &[TEXT], piece.as_bytes()).expect_status(204);
                    tail += 7;
                }
            });
            let _end = RaiseOnDrop(&is_done);
            let mut client = process.client();
            for round in 0..ROUNDS {
                let name = format!("fork-{round}");
                let source = path("source");
                let start = [(FORKED_FROM, &*source), (FORK_OFFSET, "-1")];
                let headers = if round % 3 == 0 { &start[..] } else { &start[..1] };
                let made = client.request("PUT", &path(&name), headers, b"");
                assert_eq!(made.status, 201, "{made:?}");
                forks.push((name, next_position(&made)));
                if round % 2 == 1 {
                    let (gone, _) = forks.swap_remove(round % forks.len());
                    client.request("DELETE", &path(&gone), &[], b"").expect_status(204);
                }
            }
        });
        server.check_over_restarts(|server| {
            for (name, point) in &forks {
                let begins = earliest(server, name);
                // How much it has is not said: a source that is too quick for its forks is cut later.
                assert!(begins <= *point, "{name}: {begins} to {point}");
                assert_eq!(server.content(name), content(begins, *point), "{name}");
            }
        });
        for (name, _) in &forks {
            server.delete(name);
        }
        server.append("source", TEXT, "x");
        assert!(server.content("source").ends_with('x'));
    });
}

/// Finding where such a fork begins takes several questions to the source, and each of them may find it cut again.
#[test]
fn the_start_of_a_source_can_be_forked_however_quickly_it_is_cut() {
    on_each_layout(|mut server| {
        server.create("source", &[JSON, SMALL], "");
        let process = &server.process;
        let is_done = AtomicBool::new(false);
        thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    let mut client = process.client();
                    while !is_done.load(Ordering::Relaxed) {
                        client.request("POST", &path("source"), &[JSON], b"[1,2,3,4]").expect_status(204);
                    }
                });
            }
            let end = RaiseOnDrop(&is_done);
            let mut client = process.client();
            let source = path("source");
            let headers = [(FORKED_FROM, &*source), (FORK_OFFSET, "-1"), (SUB_OFFSET, "1")];
            // Before the first cut there would be nothing to see.
            while client.request("HEAD", &source, &[], b"").header("Stream-Earliest-Offset").is_none() {}
            let statuses: Vec<u16> = (0..20)
                .map(|round| client.request("PUT", &path(&format!("fork-{round}")), &headers, b"").status)
                .collect();
            drop(end);
            assert_eq!(statuses, [201; 20]);
        });
        for round in 0..20 {
            assert_eq!(server.content(&format!("fork-{round}")), "[1]");
        }
    });
}
