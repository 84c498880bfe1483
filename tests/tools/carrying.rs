//! `export`, `import` and `reshard` on directories and input that are all right.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::stock::{TEXT, bytes, check_memory, fill, post, put, seen, start};
use crate::support::{ServerProcess, path_text, server_command};
use crate::{refused, run, tool};

/// A directory for a tool, which makes the data directory for this mode and number of shards.
pub(crate) fn import_into(directory: &Path, mode: &str, shards: &str, arguments: &[&str]) -> String {
    let output = server_command(directory)
        .env("DS_STORAGE__MODE", mode)
        .env("DS_STORAGE__ACID_SHARD_COUNT", shards)
        .args(arguments)
        .args(["--data-dir", &path_text(&directory.join("data"))])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_was_exported_and_imported_is_the_same_in_every_mode_and_number_of_shards() {
    for (mode, shards, other) in [
        ("acid", "3", [("file-durable", "1"), ("acid", "5")]),
        ("file-fast", "2", [("acid", "2"), ("file-fast", "4")]),
    ] {
        let mut server = start(mode, shards);
        fill(&server);
        let before = seen(&server);
        server.terminate();
        let exported = run(server.directory(), &["export"]);
        assert_eq!(run(server.directory(), &["verify"]).lines().count(), 1);
        for (mode, shards) in other {
            let mut target = start(mode, shards);
            target.terminate();
            fs::remove_dir_all(target.directory().join("data")).unwrap();
            fs::write(target.directory().join("exported"), &exported).unwrap();
            let told = import_into(target.directory(), mode, shards, &["import", "exported"]);
            assert_eq!(told, "48 streams added, 0 replaced, 0 skipped\n");
            assert_eq!(run(target.directory(), &["verify"]).lines().count(), 1);
            // The second time over is the same text, but for the order of what has the same name.
            let again = run(target.directory(), &["export"]);
            assert!(again == exported, "{mode} {shards}");
            target.restart();
            assert_eq!(seen(&target), before);
            check_memory(&target);
        }
    }
}

#[test]
fn resharding_changes_nothing_that_a_client_sees_but_etags() {
    for mode in ["acid", "file-fast"] {
        let mut server = start(mode, "3");
        fill(&server);
        let before = seen(&server);
        let etag = |server: &ServerProcess| {
            let page = server.client().request("GET", "/v1/stream/large?offset=-1", &[], b"");
            page.header("ETag").map(str::to_owned)
        };
        let mut etags = vec![etag(&server)];
        server.kill9();
        for shards in ["7", "2"] {
            let told = run(server.directory(), &["reshard", "--to", shards]);
            assert!(
                told.starts_with(&format!("48 streams on {shards} shards; set storage.acid_shard_count")),
                "{told}"
            );
            assert_eq!(run(server.directory(), &["verify"]).lines().count(), 1);
            server.set("DS_STORAGE__ACID_SHARD_COUNT", shards);
            server.restart();
            assert_eq!(seen(&server), before);
            check_memory(&server);
            assert!(!etags.contains(&etag(&server)), "{mode}");
            etags.push(etag(&server));
            // New streams and forks go on where the old ones are.
            let name = format!("new/{shards}");
            put(&mut server.client(), &name, &[TEXT, ("Stream-Forked-From", "/v1/stream/fork/of/fork")], b"");
            server.client().request("DELETE", &format!("/v1/stream/{name}"), &[], b"").expect_status(204);
            server.terminate();
        }
        let told = run(server.directory(), &["reshard", "--to", "2"]);
        assert_eq!(told, "there are 2 shards already\n");
        assert!(refused(server.directory(), &["reshard", "--to", "0"]).contains("between 1 and 256"));
        server.set("DS_STORAGE__ACID_SHARD_COUNT", "3");
        let output = server_command(server.directory())
            .envs([
                ("DS_STORAGE__MODE", mode),
                ("DS_STORAGE__ACID_SHARD_COUNT", "3"),
                ("DS_SERVER__PORT", "0"),
            ])
            .env("DS_STORAGE__DATA_DIR", server.directory().join("data"))
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("`durable-streams-server reshard --to 3`"), "{error}");
    }
}

#[test]
fn an_export_is_lines_of_json_that_other_programs_can_read() {
    let mut server = start("acid", "2");
    fill(&server);
    server.terminate();
    let told = run(server.directory(), &["export", "--output", "all.ndjson"]);
    assert!(told.starts_with("48 streams, "), "{told}");
    let before = crate::files(&server.directory().join("data"));
    for inside in ["data/layout.json", "data/shard-00/all.ndjson"] {
        let error = refused(server.directory(), &["export", "--output", inside]);
        assert!(error.contains("is within the data directory"), "{error}");
    }
    assert_eq!(crate::files(&server.directory().join("data")), before);
    let text = fs::read_to_string(server.directory().join("all.ndjson")).unwrap();
    assert!(!server.directory().join("all.ndjson.part").exists());
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], serde_json::json!({"format": "durable-streams-export", "version": 1}));
    assert_eq!(lines.last().unwrap()["end"]["streams"], 48);
    assert!(text.lines().all(|line| line.len() < 300_000));
    let messages = lines.iter().filter_map(|line| line["json"].as_array()).map(Vec::len).sum::<usize>();
    assert!(messages >= 300, "{messages}");
    // Some streams, with the sources that they need.
    let some = run(server.directory(), &["export", "young", "many/2*"]);
    let names: Vec<String> = some
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|line| line["stream"]["name"].as_str().map(str::to_owned))
        .collect();
    let many = ["many/2", "many/20", "many/21", "many/22", "many/23", "many/24", "many/25"];
    assert_eq!(names[..7], many);
    assert_eq!(names[names.len() - 4..], ["source", "fork", "fork/of/fork", "young"]);
    assert!(refused(server.directory(), &["export", "source"]).contains("there is no stream \"source\""));
}

#[test]
fn conflicts_are_left_out_refused_or_replaced_as_is_asked() {
    let mut server = start("file-durable", "2");
    fill(&server);
    let original = seen(&server);
    server.terminate();
    run(server.directory(), &["export", "--output", "all"]);
    server.restart();
    // A stream that goes on, one that is gone, one that is another, and a new one.
    let client = &mut server.client();
    post(client, "fork", &[TEXT], b"more").expect_status(204);
    for name in ["empty", "large"] {
        client.request("DELETE", &format!("/v1/stream/{name}"), &[], b"").expect_status(204);
    }
    put(client, "large", &[TEXT], b"small");
    put(client, "new", &[TEXT], b"new");
    let changed = seen(&server);
    server.terminate();
    let data = server.directory().join("data");
    let files = crate::files(&data);
    for arguments in [&["import", "all"][..], &["import", "all", "--on-conflict", "fail"]] {
        let error = refused(server.directory(), arguments);
        assert!(error.contains("47 streams of the input are there already"), "{error}");
        assert_eq!(crate::files(&data), files);
    }
    let told = run(server.directory(), &["import", "all", "--on-conflict", "skip"]);
    assert_eq!(told, "1 streams added, 0 replaced, 47 skipped\n");
    run(server.directory(), &["verify"]);
    server.restart();
    let skipped = seen(&server);
    assert!(
        skipped.iter().all(|(name, seen)| *seen == if name == "empty" { &original } else { &changed }[name])
    );
    server.terminate();
    let told = run(server.directory(), &["import", "all", "--on-conflict", "replace"]);
    assert_eq!(told, "0 streams added, 48 replaced, 0 skipped\n");
    assert_eq!(run(server.directory(), &["verify"]).lines().count(), 1);
    server.restart();
    assert_eq!(seen(&server), original);
    check_memory(&server);
    server.client().request("HEAD", "/v1/stream/new", &[], b"").expect_status(200);
}

#[test]
fn a_fork_finds_its_source_where_that_is_the_same_and_is_refused_where_it_is_not() {
    let mut server = start("acid", "3");
    let client = &mut server.client();
    let offset = |at: usize| format!("0000000000000000_{at:016}");
    put(client, "source", &[TEXT], b"0123456789");
    let at = offset(4);
    put(client, "fork", &[("Stream-Forked-From", "/v1/stream/source"), ("Stream-Fork-Offset", &at)], b"");
    post(client, "fork", &[TEXT], b"abc").expect_status(204);
    server.terminate();
    run(server.directory(), &["export", "--output", "all"]);
    for (content, fits) in [("0123-else", true), ("0123", true), ("012", false), ("01x3456789", false)] {
        let mut other = start("file-durable", "2");
        put(&mut other.client(), "source", &[TEXT], content.as_bytes());
        other.terminate();
        fs::copy(server.directory().join("all"), other.directory().join("all")).unwrap();
        let arguments = ["import", "all", "--on-conflict", "skip"];
        if !fits {
            let error = refused(other.directory(), &arguments);
            assert!(error.contains("\"fork\" is a fork of \"source\" at 4"), "{error}");
            continue;
        }
        run(other.directory(), &arguments);
        assert_eq!(run(other.directory(), &["verify"]).lines().count(), 1);
        other.restart();
        let read = |name: &str| {
            other.client().request("GET", &format!("/v1/stream/{name}?offset=-1"), &[], b"").body
        };
        assert_eq!((read("source"), read("fork")), (content.into(), b"0123abc".to_vec()));
    }
    // A source with a fork of its own is replaced only by one that the fork can live with.
    let mut other = start("acid", "1");
    put(&mut other.client(), "source", &[TEXT], b"0123456xxx");
    put(&mut other.client(), "own", &[("Stream-Forked-From", "/v1/stream/source")], b"");
    other.terminate();
    fs::copy(server.directory().join("all"), other.directory().join("all")).unwrap();
    let error = refused(other.directory(), &["import", "all", "--on-conflict", "replace"]);
    assert!(error.contains("\"own\" is a fork of \"source\" at 10"), "{error}");
}

#[test]
fn forks_of_a_source_that_retention_has_cut_find_it_and_a_source_without_its_forks_keeps_nothing_for_them() {
    let mut server = start("acid", "3");
    fill(&server);
    let before = seen(&server);
    server.terminate();
    let directory = server.directory();
    let header = |exported: &str| serde_json::from_str::<Value>(exported.lines().nth(1).unwrap()).unwrap();
    run(directory, &["export", "--output", "family", "kept*"]);
    run(directory, &["export", "--output", "source", "kept"]);
    let target = tempfile::tempdir().unwrap();
    for name in ["family", "source"] {
        fs::copy(directory.join(name), target.path().join(name)).unwrap();
    }
    import_into(target.path(), "file-durable", "2", &["import", "source"]);
    let alone = header(&run(target.path(), &["export"]));
    let whole = header(&fs::read_to_string(directory.join("family")).unwrap());
    let [alone, whole] = [&alone, &whole].map(|header| {
        assert_eq!(header["stream"]["name"], "kept");
        (
            header["stream"]["start"].as_u64().unwrap(),
            header["stream"]["retention"]["earliest"].as_u64().unwrap(),
        )
    });
    assert!(whole.0 < whole.1, "its forks need more than its readers see: {whole:?}");
    assert_eq!(alone, (whole.1, whole.1), "without them it keeps nothing for them");
    assert_eq!(run(target.path(), &["verify"]).lines().count(), 1);
    // It lacks what the forks need, and is the same otherwise.
    let error = refused(target.path(), &["import", "family", "--on-conflict", "skip"]);
    assert!(error.contains("is a fork of \"kept\" at"), "{error}");
    let told = run(target.path(), &["import", "family", "--on-conflict", "replace"]);
    assert_eq!(told, "3 streams added, 1 replaced, 0 skipped\n");
    // What is there is what they come with.
    for (on_conflict, expected) in [
        ("skip", "0 streams added, 0 replaced, 4 skipped\n"),
        ("replace", "0 streams added, 4 replaced, 0 skipped\n"),
    ] {
        assert_eq!(run(target.path(), &["import", "family", "--on-conflict", on_conflict]), expected);
        assert_eq!(run(target.path(), &["verify"]).lines().count(), 1);
    }
    assert_eq!(run(target.path(), &["export"]), fs::read_to_string(directory.join("family")).unwrap());
    // A fork goes to a source that is there, and was cut as its own was.
    server.restart();
    for name in ["fork", "fork/of/fork"] {
        let path = format!("/v1/stream/kept/{name}");
        server.client().request("DELETE", &path, &[], b"").expect_status(204);
    }
    server.client().request("DELETE", "/v1/stream/kept/late", &[], b"").expect_status(204);
    put(&mut server.client(), "kept/late", &[("Stream-Forked-From", "/v1/stream/kept")], b"");
    server.terminate();
    run(server.directory(), &["export", "--output", "late", "kept/late"]);
    server.restart();
    server.client().request("DELETE", "/v1/stream/kept/late", &[], b"").expect_status(204);
    server.terminate();
    let told = run(server.directory(), &["import", "late", "--on-conflict", "skip"]);
    assert_eq!(told, "1 streams added, 0 replaced, 1 skipped\n");
    assert_eq!(run(server.directory(), &["verify"]).lines().count(), 1);
    server.restart();
    assert_eq!(seen(&server)["kept"], before["kept"]);
    let late = server.client().request("GET", "/v1/stream/kept/late?offset=-1", &[], b"").body;
    assert_eq!(late, server.client().request("GET", "/v1/stream/kept?offset=-1", &[], b"").body);
}

#[test]
fn the_standard_input_is_imported_as_a_file_is_and_leaves_nothing_behind() {
    let mut server = start("acid", "2");
    put(&mut server.client(), "a", &[("Content-Type", "application/octet-stream")], &bytes(1, 500_000));
    server.terminate();
    let exported = run(server.directory(), &["export"]);
    let directory = tempfile::tempdir().unwrap();
    for expected in ["1 streams added, 0 replaced, 0 skipped\n", "0 streams added, 0 replaced, 1 skipped\n"] {
        let mut child = server_command(directory.path())
            .envs([("DS_STORAGE__MODE", "file-durable"), ("DS_STORAGE__DATA_DIR", "data")])
            .args(["import", "-", "--on-conflict", "skip"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(exported.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.success(), String::from_utf8(output.stdout).unwrap()),
            (true, expected.to_owned())
        );
        assert!(!directory.path().join("data/import.spool").exists());
    }
    assert!(run(directory.path(), &["export"]) == exported);
    assert!(tool(directory.path(), &["verify"]).status.success());
}

#[test]
fn input_without_an_end_that_is_no_export_is_refused_at_its_beginning() {
    let directory = tempfile::tempdir().unwrap();
    for piece in [vec![0; 1 << 20], b"no export\n".repeat(1 << 16)] {
        let mut child = server_command(directory.path())
            .envs([("DS_STORAGE__MODE", "acid"), ("DS_STORAGE__DATA_DIR", "data")])
            .args(["import", "-", "--on-conflict", "skip"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let refused = (0..64).find_map(|_| input.write_all(&piece).err()).expect("all of it is taken in");
        assert_eq!(refused.kind(), std::io::ErrorKind::BrokenPipe);
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains("line 1 of the input"), "{error}");
        assert!(!directory.path().join("data/import.spool").exists());
    }
}

#[test]
fn streams_of_the_same_name_that_have_nothing_in_common_are_told_apart() {
    let mut server = start("acid", "2");
    let client = &mut server.client();
    put(client, "source", &[TEXT], b"0123456789");
    put(client, "x", &[("Stream-Forked-From", "/v1/stream/source")], b"");
    put(client, "y", &[TEXT], b"plain");
    put(client, "z", &[("Content-Type", "text/html")], b"0123");
    put(client, "of z", &[("Stream-Forked-From", "/v1/stream/z")], b"");
    let before = seen_of(&server, &["source", "x", "y", "z", "of z"]);
    server.terminate();
    run(server.directory(), &["export", "--output", "all"]);
    let fill_other = |other: &ServerProcess| {
        let client = &mut other.client();
        put(client, "source", &[TEXT], b"0123456789");
        put(client, "x", &[TEXT], b"plain");
        put(client, "y", &[("Stream-Forked-From", "/v1/stream/source")], b"");
        put(client, "z", &[TEXT], b"0123");
    };
    for on_conflict in ["skip", "replace"] {
        let mut other = start("file-durable", "3");
        fill_other(&other);
        other.terminate();
        fs::copy(server.directory().join("all"), other.directory().join("all")).unwrap();
        let arguments = ["import", "all", "--on-conflict", on_conflict];
        if on_conflict == "skip" {
            let error = refused(other.directory(), &arguments);
            assert!(error.contains("\"of z\" is a fork of \"z\" at 4"), "{error}");
            continue;
        }
        assert_eq!(run(other.directory(), &arguments), "1 streams added, 4 replaced, 0 skipped\n");
        assert_eq!(run(other.directory(), &["verify"]).lines().count(), 1);
        other.restart();
        assert_eq!(seen_of(&other, &["source", "x", "y", "z", "of z"]), before);
    }
}

fn seen_of(server: &ServerProcess, names: &[&str]) -> Vec<(u16, Option<String>, Vec<u8>)> {
    let client = &mut server.client();
    let read = |name: &&str| {
        let path = format!("/v1/stream/{}?offset=-1", name.replace(' ', "%20"));
        let page = client.request("GET", &path, &[], b"");
        let content_type = page.header("Content-Type").map(str::to_owned);
        (page.status, content_type, page.body)
    };
    names.iter().map(read).collect()
}
