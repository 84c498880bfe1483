//! Readers of a stream that is cut under them: they get the right bytes or are told that these are gone, and never anything
//! else.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::*;

const MAX_BYTES: (&str, &str) = ("Stream-Retention-Max-Bytes", "60000");
const SETTINGS: [(&str, &str); 2] =
    [("DS_LIMITS__READ_PAGE_BYTES", "20000"), ("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "1")];
/// What is read comes from disk, and is settled, cut and rewritten all the time.
const COLD: [(&str, &str); 2] =
    [("DS_STORAGE__JOURNAL_BYTES", "64KiB"), ("DS_LIMITS__MAX_MEMORY_BYTES", "1")];
const NUMBER_BYTES: usize = 10;
const APPENDS: usize = 500;
/// Numbers in one append.
const NUMBERS: usize = 400;

/// The numbers from this one on, as JSON messages of equal length.
fn numbers(from: usize, count: usize) -> String {
    let numbers: Vec<String> = (from..from + count).map(|number| format!("1{number:08}")).collect();
    format!("[{}]", numbers.join(","))
}

fn position(offset: &str) -> usize {
    offset.strip_prefix("0000000000000000_").and_then(|digits| digits.parse().ok()).expect("it is an offset")
}

/// Reads until the writer is done, each page when it is about to be cut. Says how often bytes came, and how often they were
/// gone. `tail` is where the writer is.
fn read_on(
    server: &ServerProcess,
    live: &str,
    tail: &AtomicUsize,
    is_done: &AtomicBool,
    mut dice: Dice,
) -> (usize, usize) {
    let mut client = server.client();
    let (mut pages, mut gone) = (0, 0);
    let mut from = "-1".to_owned();
    loop {
        if from != "-1" {
            let due = position(&from) + 50_000 + dice.roll(16_000);
            while tail.load(Ordering::SeqCst) < due && !is_done.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_micros(200));
            }
        }
        let was_done = is_done.load(Ordering::SeqCst);
        let answer = client.request("GET", &path(&format!("a?offset={from}{live}")), &[], b"");
        match answer.status {
            200 | 204 => {
                let next = answer.header("Stream-Next-Offset").expect("each page has an end").to_owned();
                if answer.status == 200 && answer.text() != "[]" {
                    let count = (answer.text().len() - 1) / NUMBER_BYTES;
                    let first = position(&next) / NUMBER_BYTES - count;
                    assert_eq!(answer.text(), numbers(first, count), "the page from {from} to {next}");
                    assert!(from == "-1" || position(&from) == first * NUMBER_BYTES);
                    pages += 1;
                }
                from = next;
                if was_done && answer.header("Stream-Up-To-Date").is_some() {
                    return (pages, gone);
                }
            }
            410 => {
                let earliest = answer.header("Stream-Earliest-Offset").expect("it says what is left");
                assert!(from != "-1" && position(&from) < position(earliest), "{from} is before {earliest}");
                gone += 1;
                from = if gone % 2 == 0 { "-1".to_owned() } else { earliest.to_owned() };
            }
            _ => panic!("{answer:?}"),
        }
    }
}

#[test]
fn what_is_read_while_a_stream_is_cut_is_right_or_gone() {
    for mode in ["memory", "file-durable", "acid"] {
        let cold = if mode == "memory" { &[][..] } else { &COLD };
        let server = &start(mode, &[&SETTINGS, cold].concat());
        create(server, "a", &[JSON, MAX_BYTES], "");
        let (tail, is_done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (pages, gone) = thread::scope(|threads| {
            let readers: Vec<_> = (1_u64..)
                .zip(["", "", "&live=long-poll"])
                .map(|(seed, live)| {
                    let (tail, is_done) = (&tail, &is_done);
                    threads.spawn(move || read_on(server, live, tail, is_done, Dice::new(seed)))
                })
                .collect();
            let end = RaiseOnDrop(&is_done);
            let mut client = server.client();
            for append in 0..APPENDS {
                let body = numbers(append * NUMBERS, NUMBERS);
                client.request("POST", &path("a"), &[JSON], body.as_bytes()).expect_status(204);
                tail.store((append + 1) * NUMBERS * NUMBER_BYTES, Ordering::SeqCst);
            }
            drop(end);
            let counts = readers.into_iter().map(|reader| reader.join().expect("the reader succeeds"));
            counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1))
        });
        eprintln!("{pages} pages, {gone} times gone");
        assert!(pages > 0 && gone > 0);
        let tail = APPENDS * NUMBERS * NUMBER_BYTES;
        let head = server.client().request("HEAD", &path("a"), &[], b"").expect_status(200);
        let earliest = position(head.header("Stream-Earliest-Offset").expect("it was cut"));
        assert!((60_000..60_000 + 60_000 / 32 + 4_000).contains(&(tail - earliest)), "{earliest}");
    }
}
