//! Forks against appends and deletions of their source, and against a server that is killed. Whatever wins, a fork that
//! was promised is whole, and a source goes when its last fork goes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Forks made at the same time, by as many clients.
const FORKS: usize = 5;

/// What the source consists of: any beginning of it is recognised.
fn content(length: usize) -> String {
    (0..).flat_map(|number| format!("{number} ").into_bytes()).take(length).map(char::from).collect()
}

/// Appends the next bytes of [`content`] until the source is gone.
fn append_until_gone(process: &ServerProcess, source: &str) {
    let mut client = process.client();
    let mut tail = 0;
    loop {
        let piece = content(tail + 7).split_off(tail);
        let answer = client.request("POST", &path(source), &[TEXT], piece.as_bytes());
        match answer.status {
            204 => tail = next_position(&answer),
            404 | 410 => return,
            _ => panic!("{answer:?}"),
        }
    }
}

/// Makes sure that a fork is what its source was up to its fork point, and takes appends.
#[track_caller]
fn check_fork(server: &mut Server, name: &str, point: usize) {
    assert_eq!(server.content(name), content(point), "{name}");
    server.append(name, TEXT, "own");
    assert_eq!(server.content(name), content(point) + "own", "{name}");
}

#[test]
fn forks_against_appends_and_a_deletion_of_their_source() {
    on_each_layout(|mut server| {
        for round in 0..15 {
            let source = &*format!("round-{round}/source");
            let fork = |number: usize| format!("round-{round}/fork-{number}");
            server.create(source, &[TEXT], "");
            let process = &server.process;
            let forks: BTreeMap<usize, usize> = thread::scope(|threads| {
                let _guard = process.killed_by_panics();
                threads.spawn(|| append_until_gone(process, source));
                let forkers: Vec<_> = (0..FORKS)
                    .map(|number| {
                        threads.spawn(move || {
                            let mut client = process.client();
                            let headers = [(FORKED_FROM, &*path(source))];
                            let answer = client.request("PUT", &path(&fork(number)), &headers, b"");
                            match answer.status {
                                201 => Some((number, next_position(&answer))),
                                // Deleted before: with other forks, or without.
                                404 | 409 => None,
                                _ => panic!("{answer:?}"),
                            }
                        })
                    })
                    .collect();
                let mut client = process.client();
                for _ in 0..round % 5 {
                    client.request("HEAD", &path(source), &[], b"").expect_status(200);
                }
                client.request("DELETE", &path(source), &[], b"").expect_status(204);
                forkers.into_iter().filter_map(|forker| forker.join().expect("the forker succeeds")).collect()
            });
            server.expect_status(source, if forks.is_empty() { 404 } else { 410 });
            for (number, point) in &forks {
                check_fork(&mut server, &fork(*number), *point);
            }
            for number in (0..FORKS).filter(|number| !forks.contains_key(number)) {
                server.expect_status(&fork(number), 404);
            }
            if round % 5 == 4 {
                server.check_over_restarts(|server| {
                    server.expect_status(source, if forks.is_empty() { 404 } else { 410 });
                    for (number, point) in &forks {
                        assert_eq!(server.content(&fork(*number)), content(*point) + "own");
                    }
                });
            }
            for number in forks.keys() {
                server.expect_status(source, 410);
                server.delete(&fork(*number));
            }
            server.wait_for_status(source, 404);
            server.create(source, &[JSON], "");
        }
    });
}

#[test]
fn forks_that_come_and_go_while_their_source_is_deleted() {
    on_each_layout(|mut server| {
        for round in 0..15 {
            let source = &*format!("round-{round}/source");
            server.create(source, &[TEXT], content(50));
            let process = &server.process;
            thread::scope(|threads| {
                for forker in 0..3 {
                    threads.spawn(move || {
                        let mut client = process.client();
                        for number in 0.. {
                            let fork = path(&format!("round-{round}/fork-{forker}-{number}"));
                            let created = client.request("PUT", &fork, &[(FORKED_FROM, &path(source))], b"");
                            match created.status {
                                201 => {}
                                404 | 409 => return,
                                _ => panic!("{created:?}"),
                            }
                            let read = client.request("GET", &fork, &[], b"").expect_status(200);
                            assert_eq!(read.text(), content(50));
                            client.request("DELETE", &fork, &[], b"").expect_status(204);
                        }
                    });
                }
                let _guard = process.killed_by_panics();
                let mut client = process.client();
                for _ in 0..round % 5 {
                    client.request("HEAD", &path(source), &[], b"").expect_status(200);
                }
                client.request("DELETE", &path(source), &[], b"").expect_status(204);
            });
            // All forks are gone, so nothing holds it.
            server.wait_for_status(source, 404);
        }
    });
}

#[test]
fn one_name_forked_by_many_at_once_is_one_fork() {
    on_each_layout(|mut server| {
        for round in 0..15 {
            let source = &*format!("round-{round}/source");
            let fork = &*format!("round-{round}/fork");
            server.create(source, &[TEXT], content(20));
            let process = &server.process;
            let mut statuses: Vec<u16> = thread::scope(|threads| {
                let forkers: Vec<_> = (0..FORKS)
                    .map(|number| {
                        threads.spawn(move || {
                            let mut client = process.client();
                            if number == 0 {
                                // What comes while the fork is being made waits for it, or comes before it.
                                let early = client.request("POST", &path(fork), &[TEXT], b"own");
                                assert!(matches!(early.status, 204 | 404), "{early:?}");
                            }
                            client.request("PUT", &path(fork), &[(FORKED_FROM, &path(source))], b"").status
                        })
                    })
                    .collect();
                forkers.into_iter().map(|forker| forker.join().expect("the forker succeeds")).collect()
            });
            statuses.sort_unstable();
            assert_eq!(statuses, [200, 200, 200, 200, 201]);
            let read = server.content(fork);
            assert!(read == content(20) || read == content(20) + "own", "{read:?}");
            // One fork, one pin.
            server.delete(source);
            server.delete(fork);
            server.wait_for_status(source, 404);
        }
    });
}

#[test]
fn chains_that_are_deleted_from_both_ends_at_once_leave_nothing_behind() {
    on_each_layout(|mut server| {
        for round in 0..12 {
            let name = |link: usize| format!("round-{round}/{link}");
            server.create(&name(0), &[TEXT], "root");
            for link in 1..6 {
                server.fork(&name(link), &name(link - 1));
            }
            let process = &server.process;
            thread::scope(|threads| {
                for links in [[0, 2, 4], [5, 3, 1]] {
                    threads.spawn(move || {
                        let mut client = process.client();
                        for link in links {
                            client.request("DELETE", &path(&name(link)), &[], b"").expect_status(204);
                        }
                    });
                }
            });
            for link in 0..6 {
                server.wait_for_status(&name(link), 404);
            }
        }
    });
}

#[test]
fn a_server_that_is_killed_among_forks_keeps_its_promises_and_no_pins() {
    for shards in ["1", "5"] {
        let mut server = Server::start("acid", shards, &[]);
        let mut dice = Dice::new(5);
        for round in 0..8 {
            let source = &*format!("round-{round}/source");
            let fork = |forker: usize, number: usize| format!("round-{round}/fork-{forker}-{number}");
            server.create(source, &[TEXT], content(30));
            let promised = fork_until_killed(&mut server, source, &fork, dice.roll(12));
            for (forker, promised) in promised.iter().enumerate() {
                for number in 0..*promised {
                    assert_eq!(server.content(&fork(forker, number)), content(30));
                }
            }
            // One more each may be there, without a promise; and none beyond it.
            server.delete(source);
            for (forker, promised) in promised.iter().enumerate() {
                for number in 0..*promised {
                    server.delete(&fork(forker, number));
                }
                let status = server.request("DELETE", &fork(forker, *promised), &[], b"").status;
                assert!(matches!(status, 204 | 404), "{status}");
                server.expect_status(&fork(forker, promised + 1), 404);
            }
            server.wait_for_status(source, 404);
        }
    }
}

/// Lets three clients fork as fast as they can, kills the server when there have been a few promises, and starts it
/// again. Returns how many forks each client was promised.
fn fork_until_killed(
    server: &mut Server,
    source: &str,
    fork: &(impl Fn(usize, usize) -> String + Sync),
    enough: usize,
) -> Vec<usize> {
    let is_killed = &AtomicBool::new(false);
    let (promises, promised) = std::sync::mpsc::channel();
    let promised = thread::scope(|threads| {
        let forkers: Vec<_> = (0..3)
            .map(|forker| {
                let (mut client, promises) = (server.process.client(), promises.clone());
                threads.spawn(move || {
                    for number in 0.. {
                        let headers = [(FORKED_FROM, &*path(source))];
                        match client.try_request("PUT", &path(&fork(forker, number)), &headers, b"") {
                            Ok(answer) => assert_eq!(answer.status, 201, "{answer:?}"),
                            Err(error) if is_killed.load(Ordering::SeqCst) => {
                                // Shown with a failure only.
                                eprintln!("forker {forker} after {number} forks: {error}");
                                return number;
                            }
                            Err(error) => panic!("{error}"),
                        }
                        // Nobody listens any more once the server is about to be killed.
                        let _ = promises.send(());
                    }
                    unreachable!("the server is killed")
                })
            })
            .collect();
        // Killed in any case: the clients go on for as long as they are answered.
        let have_come = (0..enough).all(|_| promised.recv_timeout(PATIENCE).is_ok());
        is_killed.store(true, Ordering::SeqCst);
        server.process.kill9();
        assert!(have_come, "forks are made");
        forkers.into_iter().map(|forker| forker.join().expect("the forker succeeds")).collect()
    });
    server.start_again();
    promised
}
