//! Deleted sources, and what goes when the last fork goes: `protocol.md` §18.4.

use super::*;

/// Every operation on a soft-deleted stream, as the table of section 1 has it.
#[track_caller]
fn assert_soft_deleted(server: &mut Server, name: &str) {
    for query in [
        "",
        "?offset=-1",
        "?offset=now",
        "?offset=-1&live=long-poll",
        "?offset=now&live=sse",
        "?offset=-1&live=sse",
    ] {
        let refused = server.get(&format!("{name}{query}"));
        assert_eq!(refused.status, 410, "GET {name}{query}");
        assert!(refused.text().contains("\"code\":\"GONE\""), "{}", refused.text());
    }
    for (method, headers, body, status) in [
        ("HEAD", &[][..], "", 410),
        ("POST", &[TEXT], "x", 410),
        ("POST", &[TEXT, CLOSED], "x", 410),
        ("POST", &[CLOSED], "", 410),
        ("DELETE", &[], "", 410),
    ] {
        let refused = server.request(method, name, headers, body.as_bytes());
        assert_eq!(refused.status, status, "{method} {name} {headers:?}");
    }
    server.expect_refusal(name, &[TEXT], "", 409, "PATH_BLOCKED");
    server.expect_refusal(name, &[JSON], "", 409, "PATH_BLOCKED");
    server.expect_refusal("never", &[(FORKED_FROM, &path(name))], "", 409, "FORK_FROM_TOMBSTONE");
    server.expect_status("never", 404);
}

#[test]
fn a_deleted_source_answers_as_gone_and_serves_its_forks() {
    on_each_layout(|mut server| {
        server.create("source", &[TEXT], "inherited ");
        server.create("fork", &[(FORKED_FROM, &path("source"))], "own");
        server.delete("source");
        server.check_over_restarts(|server| {
            assert_soft_deleted(server, "source");
            assert_eq!(server.content("fork"), "inherited own");
        });
        // It can be written and forked on, though its own source cannot.
        server.append("fork", TEXT, "!");
        server.fork("fork-of-fork", "fork");
        server.check_over_restarts(|server| assert_eq!(server.content("fork-of-fork"), "inherited own!"));
    });
}

#[test]
fn the_last_fork_takes_its_deleted_source_with_it() {
    on_each_layout(|mut server| {
        server.create("source", &[TEXT], "content");
        for name in ["a", "b", "c"] {
            server.fork(name, "source");
        }
        server.delete("b");
        server.delete("source");
        server.delete("a");
        server.check_over_restarts(|server| {
            server.expect_status("source", 410);
            assert_eq!(server.content("c"), "content");
        });
        server.delete("c");
        server.wait_for_status("source", 404);
        server.check_over_restarts(|server| {
            for name in ["source", "a", "b", "c"] {
                server.expect_status(name, 404);
            }
        });
        // The name is free for something else, which knows nothing of what was there.
        server.create("source", &[JSON], "");
        server.check_over_restarts(|server| assert_eq!(server.content("source"), "[]"));
    });
}

#[test]
fn a_chain_of_deleted_sources_goes_with_its_last_link() {
    on_each_layout(|mut server| {
        server.create("a", &[TEXT], "a");
        for (name, source) in [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d")] {
            server.create(name, &[(FORKED_FROM, &path(source))], name);
        }
        for name in ["c", "a", "d", "b"] {
            server.delete(name);
        }
        server.check_over_restarts(|server| {
            for name in ["a", "b", "c", "d"] {
                server.expect_status(name, 410);
            }
            assert_eq!(server.content("e"), "abcde");
        });
        server.delete("e");
        for name in ["a", "b", "c", "d"] {
            server.wait_for_status(name, 404);
        }
        server.check_over_restarts(|server| {
            for name in ["a", "b", "c", "d", "e"] {
                server.expect_status(name, 404);
            }
        });
    });
}

#[test]
fn a_cascade_stops_at_a_stream_that_was_never_deleted() {
    on_each_layout(|mut server| {
        server.create("root", &[TEXT], "root");
        server.fork("kept", "root");
        server.fork("middle", "kept");
        server.fork("leaf", "middle");
        server.delete("root");
        server.delete("middle");
        server.delete("leaf");
        server.wait_for_status("middle", 404);
        server.check_over_restarts(|server| {
            // It is deleted, and its fork is not.
            server.expect_status("root", 410);
            assert_eq!(server.content("kept"), "root");
        });
        server.delete("kept");
        server.wait_for_status("root", 404);
    });
}

#[test]
fn a_source_that_was_never_deleted_survives_all_its_forks() {
    on_each_layout(|mut server| {
        server.create("source", &[TEXT], "content");
        for round in 0..3 {
            let name = format!("fork-{round}");
            server.fork(&name, "source");
            server.delete(&name);
            server.expect_status(&name, 404);
        }
        server.append("source", TEXT, "!");
        server.check_over_restarts(|server| assert_eq!(server.content("source"), "content!"));
        // No pin was left behind.
        server.delete("source");
        server.expect_status("source", 404);
    });
}

#[test]
fn a_fork_of_inherited_data_only_keeps_every_stream_of_its_chain() {
    on_each_layout(|mut server| {
        server.create("root", &[TEXT], "0123456789");
        server.create("middle", &[(FORKED_FROM, &path("root"))], "middle");
        // Nothing of the middle is inherited, but that is where it was forked.
        server.create("leaf", &[(FORKED_FROM, &path("middle")), (FORK_OFFSET, &offset(4))], "leaf");
        server.delete("middle");
        server.delete("root");
        server.check_over_restarts(|server| {
            server.expect_status("middle", 410);
            server.expect_status("root", 410);
            assert_eq!(server.content("leaf"), "0123leaf");
        });
        server.delete("leaf");
        server.wait_for_status("middle", 404);
        server.wait_for_status("root", 404);
    });
}

#[test]
fn expiry_cascades_as_deletion_does() {
    // All layouts at the same time: most of it is waiting.
    thread::scope(|threads| {
        for (mode, shards) in [("memory", "1"), ("memory", "5"), ("acid", "1"), ("acid", "5")] {
            threads.spawn(move || check_cascades_by_expiry(Server::start(mode, shards, &[])));
        }
    });
}

fn check_cascades_by_expiry(mut server: Server) {
    // Enough for a busy machine to make all of them before.
    let soon = time::OffsetDateTime::now_utc() + Duration::from_secs(8);
    let soon = soon.format(&time::format_description::well_known::Rfc3339).expect("the year has four digits");
    let soon = ("Stream-Expires-At", &*soon);
    let lasting = ("Stream-TTL", "1000");
    // Deleted sources of a fork that expires.
    server.create("a", &[TEXT], "a");
    server.fork("b", "a");
    server.create("c", &[(FORKED_FROM, &path("b")), soon], "");
    server.delete("b");
    server.delete("a");
    // An expiring source of a fork that lasts, and a whole chain that expires at once.
    server.create("source", &[TEXT, soon], "inherited");
    server.create("fork", &[(FORKED_FROM, &path("source")), lasting], "");
    server.create("all", &[TEXT, soon], "");
    server.fork("all-of", "all");
    server.fork("all-of-it", "all-of");

    let ended = ["a", "b", "c", "all", "all-of", "all-of-it"];
    for name in ended {
        server.wait_for_status(name, 404);
    }
    server.wait_for_status("source", 410);
    server.check_over_restarts(|server| {
        assert_soft_deleted(server, "source");
        assert_eq!(server.content("fork"), "inherited");
        for name in ended {
            server.expect_status(name, 404);
        }
    });
    server.delete("fork");
    server.wait_for_status("source", 404);
    server.create("source", &[JSON], "");
}
