//! Backups of the real server, running and stopped: whatever was acknowledged before is in the copy, and a server that is started
//! on it goes on as if it had been there all the time.

#[path = "../support/mod.rs"]
mod support;

mod consistency;
mod directories;

use std::path::Path;
use std::process::Output;

use support::http::Client;
use support::{ServerProcess, path_text, server_command};

const SHARDS: &str = "3";

/// Small enough that settling, trimming and rewriting are under way all the time.
fn settings(mode: &str) -> [(&str, &str); 4] {
    [
        ("DS_STORAGE__MODE", mode),
        ("DS_STORAGE__ACID_SHARD_COUNT", SHARDS),
        ("DS_STORAGE__JOURNAL_BYTES", "65536"),
        ("DS_LIMITS__MAX_MEMORY_BYTES", "65536"),
    ]
}

fn backup(data_dir: &Path, target: &Path) -> Output {
    server_command(data_dir.parent().expect("a data directory is in some directory"))
        .arg("backup")
        .arg(target)
        .arg("--data-dir")
        .arg(data_dir)
        .output()
        .expect("the server's binary can be started")
}

/// What it says.
#[track_caller]
fn backup_works(data_dir: &Path, target: &Path) -> String {
    let output = backup(data_dir, target);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it says so as text")
}

/// Why it does not work.
#[track_caller]
fn backup_fails(data_dir: &Path, target: &Path) -> String {
    let output = backup(data_dir, target);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).expect("it says so as text")
}

/// A server on a copy.
fn server_on(mode: &str, copy: &Path) -> ServerProcess {
    let data_dir = path_text(copy);
    let mut settings = settings(mode).to_vec();
    settings.push(("DS_STORAGE__DATA_DIR", &data_dir));
    ServerProcess::start(&settings)
}

/// A whole stream.
#[track_caller]
fn content(client: &mut Client, path: &str) -> String {
    let mut content = Vec::new();
    let mut offset = "-1".to_owned();
    loop {
        let page = client.request("GET", &format!("{path}?offset={offset}"), &[], b"").expect_status(200);
        let next = page.header("Stream-Next-Offset").expect("a page says where the next one begins");
        offset = next.to_owned();
        let is_last = page.header("Stream-Up-To-Date").is_some();
        content.extend_from_slice(&page.body);
        if is_last {
            return String::from_utf8(content).expect("it is text");
        }
    }
}
