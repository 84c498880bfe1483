//! The commands that work on a data directory which no server has, with the real binary.
//!
//! * `stock`: streams with everything that a stream can have, and what a client sees of them.
//! * `hostile`: input that `import` refuses.
//! * `looking`: `list` and `verify`, and that they leave the directory alone.
//! * `carrying`: `export`, `import` and `reshard`.
//! * `damage`: what `verify` says of damaged files.

// What stands around the tests is a test too.
#![allow(clippy::unwrap_used)]

mod carrying;
mod damage;
mod hostile;
mod looking;
mod stock;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use support::{path_text, server_command};

/// The modes that have a data directory.
const MODES: [&str; 3] = ["acid", "file-durable", "file-fast"];

/// Every command, as it may be called.
const COMMANDS: [&[&str]; 5] =
    [&["verify"], &["list"], &["export"], &["import", "/dev/null"], &["reshard", "--to", "5"]];

/// Runs a command on a data directory.
fn tool(directory: &Path, arguments: &[&str]) -> Output {
    server_command(directory)
        .args(arguments)
        .args(["--data-dir", &path_text(&directory.join("data"))])
        .stdin(Stdio::null())
        .output()
        .expect("the binary can be started")
}

/// The same, which has to work. Returns what it printed.
#[track_caller]
fn run(directory: &Path, arguments: &[&str]) -> String {
    let output = tool(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", texts(&output));
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

/// The same, which has to be refused with one line. Returns that.
#[track_caller]
fn refused(directory: &Path, arguments: &[&str]) -> String {
    let output = tool(directory, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", texts(&output));
    let error = String::from_utf8(output.stderr).expect("the output is UTF-8");
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "{arguments:?}: {error}");
    error
}

fn texts(output: &Output) -> String {
    let [out, error] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}\n{out}\n{error}", output.status)
}

/// All files below a directory, with their content.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("a directory can be listed") {
            let path = entry.expect("a directory can be listed").path();
            let kind = fs::symlink_metadata(&path).expect("what is listed is there").file_type();
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(root).expect("it is below").to_string_lossy().into_owned();
                found.insert(name, fs::read(path).expect("a file can be read"));
            }
        }
    }
    found
}
