//! Where backups come from and go to: stopped servers, sockets, directories that will not do.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;

use crate::support::{ServerProcess, path_text, server_command};
use crate::{backup_fails, backup_works, content, server_on, settings};

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const PATH: &str = "/v1/stream/a";

fn server_with_content(mode: &str) -> ServerProcess {
    let server = ServerProcess::start(&settings(mode));
    server.client().request("PUT", PATH, &[TEXT], b"content").expect_status(201);
    server
}

/// What a server says that does not start on this directory.
#[track_caller]
fn refusal(mode: &str, data_dir: &Path) -> String {
    let output = server_command(data_dir.parent().expect("it is in some directory"))
        .envs(settings(mode))
        .env("DS_SERVER__PORT", "0")
        .env("DS_STORAGE__DATA_DIR", data_dir)
        .stdin(Stdio::null())
        .output()
        .expect("the server's binary can be started");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_stopped_server_is_backed_up_in_every_mode() {
    for mode in ["acid", "file-durable", "file-fast"] {
        let mut server = server_with_content(mode);
        server.terminate();
        let (data_dir, copy) = (server.directory().join("data"), server.directory().join("copy"));
        let said = backup_works(&data_dir, &copy);
        assert!(said.contains("3 shards") && !said.contains("paused"), "{said}");
        assert_eq!(content(&mut server_on(mode, &copy).client(), PATH), "content");
        server.restart();
        assert_eq!(content(&mut server.client(), PATH), "content");
    }
}

#[test]
fn a_killed_server_is_backed_up_and_its_socket_replaced() {
    let mut server = server_with_content("acid");
    server.kill9();
    let data_dir = server.directory().join("data");
    assert!(data_dir.join("admin.sock").exists(), "nobody removed it");
    backup_works(&data_dir, &server.directory().join("copy-1"));
    server.restart();
    assert!(backup_works(&data_dir, &server.directory().join("copy-2")).contains("paused"));
    server.terminate();
    assert!(!data_dir.join("admin.sock").exists(), "a server that stops removes it");
}

#[test]
fn the_socket_is_for_its_owner_only_and_its_path_may_be_long() {
    let parent = TempDir::new().expect("a temporary directory can be made");
    let data_dir = parent.path().join("d".repeat(120)).join("data");
    let text = path_text(&data_dir);
    let mut settings = settings("file-durable").to_vec();
    settings.push(("DS_STORAGE__DATA_DIR", &text));
    let server = ServerProcess::start(&settings);
    server.client().request("PUT", PATH, &[TEXT], b"content").expect_status(201);
    let metadata = fs::metadata(data_dir.join("admin.sock")).expect("the socket is there");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let said = backup_works(&data_dir, &parent.path().join("copy"));
    assert!(said.contains("paused"), "the server did it: {said}");
}

#[test]
fn targets_that_will_not_do_are_refused_and_left_alone() {
    let server = server_with_content("acid");
    let directory = server.directory();
    let data_dir = directory.join("data");
    let full = directory.join("full");
    fs::create_dir(&full).expect("it can be made");
    fs::write(full.join("precious"), "content").expect("it can be written");
    assert!(backup_fails(&data_dir, &full).contains("not empty"));
    assert_eq!(fs::read_dir(&full).expect("it is still there").count(), 1);
    for within in ["shard-00/copy", "copy", "missing/../copy"] {
        assert!(backup_fails(&data_dir, &data_dir.join(within)).contains("within the data directory"));
    }
    assert!(!data_dir.join("copy").exists());
    assert!(backup_fails(&data_dir, &full.join("precious")).contains("precious"));
    assert!(backup_fails(&data_dir, &full.join("precious/copy")).contains("precious"));
    backup_works(&data_dir, &directory.join("copy"));
    assert!(backup_fails(&data_dir, &directory.join("copy")).contains("not empty"));
    assert!(
        backup_fails(&directory.join("nothing"), &directory.join("x")).contains("there is no data directory")
    );
    assert!(!directory.join("x").exists() && !directory.join("nothing").exists());
    assert_eq!(content(&mut server.client(), PATH), "content");
}

#[test]
fn a_data_directory_without_socket_is_refused_while_somebody_has_it() {
    let server = server_with_content("file-fast");
    let data_dir = server.directory().join("data");
    fs::remove_file(data_dir.join("admin.sock")).expect("it is there");
    assert!(backup_fails(&data_dir, &server.directory().join("copy")).contains("in use by another process"));
    assert!(!server.directory().join("copy").exists());
}

#[test]
fn a_half_done_backup_is_refused_by_server_and_backup() {
    let mut server = server_with_content("acid");
    server.terminate();
    let (data_dir, copy) = (server.directory().join("data"), server.directory().join("copy"));
    backup_works(&data_dir, &copy);
    // As a backup looks that was killed shortly before its end.
    fs::remove_file(copy.join("layout.json")).expect("it is there");
    fs::write(copy.join("BACKUP-UNFINISHED"), "").expect("it can be written");
    let said = refusal("acid", &copy);
    assert!(said.contains("backup that was not finished"), "{said}");
    assert!(backup_fails(&data_dir, &copy).contains("not finished"));
    assert!(backup_fails(&copy, &server.directory().join("other")).contains("not a data directory"));
}

#[test]
fn the_endpoint_says_what_it_does_not_understand() {
    let server = server_with_content("acid");
    let ask = |request: &str| {
        let socket = server.directory().join("data/admin.sock");
        let mut stream = UnixStream::connect(socket).expect("the server listens");
        stream.write_all(request.as_bytes()).expect("it can be asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers and closes");
        answer
    };
    let post = |body: &str| {
        let length = body.len();
        ask(&format!(
            "POST /backup HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    };
    assert!(post("{\"target\": \"relative\"}").contains("400 Bad Request"));
    assert!(post("{\"target\": 5}").contains("400 Bad Request"));
    assert!(post("{\"target\": \"/dev/null/x\"}").contains("400 Bad Request"));
    assert!(ask("GET /backup HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").contains("405 Method"));
    assert!(ask("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").contains("404 Not Found"));
}

#[test]
fn a_memory_server_has_nothing_to_back_up() {
    let server = ServerProcess::start(&[]);
    let data_dir = server.directory().join("data");
    assert!(backup_fails(&data_dir, &server.directory().join("copy")).contains("there is no data directory"));
    assert!(!data_dir.exists());
}
