//! `list` and `verify` on directories that are all right.

use serde_json::Value;

use crate::stock::{check_memory, fill, seen, start};
use crate::{MODES, files, refused, run, tool};

#[test]
fn looking_at_a_directory_changes_no_byte_of_it_even_if_the_server_was_killed() {
    for mode in MODES {
        for is_killed in [false, true] {
            let mut server = start(mode, "3");
            fill(&server);
            let before = seen(&server);
            if is_killed {
                server.kill9();
            } else {
                assert!(server.terminate().success());
            }
            let data = server.directory().join("data");
            // What a crash leaves: a segment that is in no catalog, and a draft.
            std::fs::write(data.join("shard-01/segment-00000000000fffff.seg"), b"stray").unwrap();
            std::fs::write(data.join("shard-01/journal-00000000000fffff.log.new"), b"draft").unwrap();
            let files_before = files(&data);
            let list = run(server.directory(), &["list"]);
            assert_eq!(list.lines().count(), 49 - usize::from(true) + 1, "{list}");
            let verified = run(server.directory(), &["verify"]);
            assert!(verified.contains("segment-00000000000fffff.seg: of no use"), "{verified}");
            assert!(verified.ends_with(" 0 errors, 2 notes\n") || mode == "acid", "{verified}");
            assert_eq!(files(&data), files_before, "{mode}");
            server.restart();
            assert_eq!(seen(&server), before);
            check_memory(&server);
        }
    }
}

#[test]
fn list_says_what_there_is_of_each_stream_sorted_by_name() {
    let mut server = start("acid", "3");
    fill(&server);
    server.terminate();
    let list = run(server.directory(), &["list", "--json"]);
    let streams: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = streams.iter().map(|stream| stream["name"].as_str().unwrap()).collect();
    assert!(names.is_sorted() && names.len() == 48, "{names:?}");
    let of = |name: &str| &streams[names.iter().position(|known| *known == name).unwrap()];
    assert_eq!((&of("large")["tail"], &of("large")["closed"]), (&1_000_000.into(), &false.into()));
    assert_eq!(of("closed by a producer")["closed"], true);
    assert_eq!(of("produced")["producers"], 1);
    assert_eq!(of("ttl")["ttl_seconds"], 86400);
    assert_eq!(of("expires")["expires_at"], "2099-01-01T00:00:00.5+02:00");
    assert_eq!((&of("source")["deleted"], &of("source")["forks"]), (&true.into(), &1.into()));
    let fork = of("fork/of/fork");
    assert_eq!((&fork["fork_source"], &fork["fork_offset"]), (&"fork".into(), &10.into()));
    assert_eq!((&fork["tail"], &fork["bytes"]), (&13.into(), &3.into()));
    let some = run(server.directory(), &["list", "--json", "many/1"]);
    assert_eq!(some.lines().count(), 11);
    let table = run(server.directory(), &["list", "fork"]);
    assert!(table.contains("fork/of/fork (fork of fork at 10)"), "{table}");
}

#[test]
fn a_directory_that_a_server_has_is_refused_by_every_command() {
    let server = start("file-durable", "2");
    fill(&server);
    for arguments in crate::COMMANDS {
        let error = refused(server.directory(), arguments);
        assert!(error.contains("in use by another process"), "{error}");
    }
    assert!(!seen(&server).is_empty());
}

#[test]
fn where_there_is_no_directory_the_commands_say_so_and_make_none() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [&["list"][..], &["verify"], &["list", "--json", "a"]] {
        let error = refused(directory.path(), arguments);
        assert!(error.contains("there is no data directory"), "{error}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    // The configuration says where, unless it says that there is none.
    let output = crate::support::server_command(directory.path()).arg("list").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("storage.mode is \"memory\""), "{error}");
    let without = |mode: &str| {
        let mut command = crate::support::server_command(directory.path());
        command.env("DS_STORAGE__MODE", mode).env("DS_STORAGE__DATA_DIR", "elsewhere").arg("list");
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    assert!(without("acid").contains("there is no data directory elsewhere"), "{}", without("acid"));
    std::fs::create_dir(directory.path().join("data")).unwrap();
    assert!(refused(directory.path(), &["list"]).contains("is not a data directory"));
    assert!(!tool(directory.path(), &["verify"]).status.success());
}
