//! What `verify` says of damaged files.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use durable_streams_server::tools::DataDirectory;
use durable_streams_server::tools::verify::{Finding, Severity, verify};

use crate::stock::{JSON, TEXT, fill, put, start};
use crate::support::http::PATIENCE;
use crate::{files, tool};

/// Flipped bytes in each file.
const FLIPS: usize = 8;

/// Verifies in this process, which is faster than the binary.
fn findings(data: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    // A child that another test starts has this process's locks until it is the program that it is to be.
    let deadline = Instant::now() + PATIENCE;
    let directory = loop {
        match DataDirectory::take(data) {
            Ok(directory) => break directory,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::sleep(Duration::from_millis(1));
    };
    verify(&directory, &mut (), &mut |finding| found.push(finding.clone()));
    found
}

fn errors(data: &Path) -> Vec<String> {
    let found = findings(data).into_iter();
    found.filter(|finding| finding.severity == Severity::Error).map(|finding| finding.to_string()).collect()
}

/// A directory whose server has stopped, with its files.
fn stopped(mode: &str) -> (crate::support::ServerProcess, PathBuf) {
    let mut server = start(mode, "2");
    fill(&server);
    server.terminate();
    let data = server.directory().join("data");
    assert_eq!(errors(&data), [""; 0]);
    (server, data)
}

/// Flips bytes all over a file, one at a time, and hands what is found to `judge`. Where `is_meant` says so.
fn flip(data: &Path, name: &str, content: &[u8], end: usize, judge: &mut dyn FnMut(usize, Vec<Finding>)) {
    let path = data.join(name);
    let mut damaged = content.to_vec();
    for step in 0..FLIPS {
        let at = step * (end - 1) / (FLIPS - 1);
        damaged[at] ^= 0x5a;
        fs::write(&path, &damaged).unwrap();
        judge(at, findings(data));
        damaged[at] = content[at];
    }
    fs::write(&path, content).unwrap();
}

#[test]
fn every_flipped_byte_of_a_segment_is_found_and_its_file_named() {
    let (_server, data) = stopped("acid");
    let segments: Vec<_> = files(&data).into_iter().filter(|(name, _)| name.ends_with(".seg")).collect();
    assert!(!segments.is_empty());
    let mut named_streams = 0;
    for (name, content) in segments {
        let file = name.rsplit('/').next().unwrap().to_owned();
        flip(&data, &name, &content, content.len(), &mut |at, found| {
            let told: Vec<String> = found.iter().map(ToString::to_string).collect();
            assert!(told.iter().any(|line| line.contains(&file)), "{name} at {at}: {told:?}");
            named_streams += usize::from(found.iter().any(|finding| finding.stream.is_some()));
        });
    }
    assert!(named_streams > FLIPS / 2, "{named_streams}");
    assert_eq!(errors(&data), [""; 0]);
}

#[test]
fn flipped_bytes_of_journal_and_catalog_files_are_found_and_named() {
    let (_server, data) = stopped("file-durable");
    for (name, content) in files(&data).into_iter().filter(|(name, _)| name.ends_with(".log")) {
        // Nobody can tell damage to the very last record from a crash while it was written; behind it are zeros.
        let written = content.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        let file = name.rsplit('/').next().unwrap().to_owned();
        flip(&data, &name, &content, written.saturating_sub(64), &mut |at, found| {
            let told: Vec<String> = found.iter().map(ToString::to_string).collect();
            // The last record of a catalog may be a checkpoint that was cut off: the journal has what it says.
            let is_found = |line: &String| {
                if name.contains("catalog-") { line.contains(&name[..8]) } else { line.contains(&file) }
            };
            assert!(told.iter().any(is_found), "{name} at {at}: {told:?}");
        });
    }
    assert_eq!(errors(&data), [""; 0]);
}

#[test]
fn flipped_bytes_of_a_database_are_found_where_something_is_stored_and_never_end_the_check() {
    let (_server, data) = stopped("acid");
    for (name, content) in files(&data).into_iter().filter(|(name, _)| name.ends_with("shard.redb")) {
        let mut found = 0;
        flip(&data, &name, &content, content.len(), &mut |_, findings| {
            found += usize::from(findings.iter().any(|finding| finding.severity == Severity::Error));
        });
        assert!(found > 0, "{name}");
    }
}

#[test]
fn a_missing_file_is_named_and_the_other_shards_are_checked_all_the_same() {
    for mode in ["acid", "file-durable"] {
        let (server, data) = stopped(mode);
        for (name, content) in files(&data) {
            let path = data.join(&name);
            // The other shard has damage of its own, which is to be found as well.
            let other = if name.starts_with("shard-00") { "shard-01" } else { "shard-00" };
            let damaged =
                files(&data).into_keys().find(|name| name.starts_with(other) && name.ends_with(".seg"));
            if name == "LOCK" || name == "layout.json" || damaged.is_none() {
                continue;
            }
            let damaged = data.join(damaged.unwrap());
            let whole = fs::read(&damaged).unwrap();
            fs::remove_file(&path).unwrap();
            fs::write(&damaged, &whole[..whole.len() - 1]).unwrap();
            let found: Vec<String> = findings(&data).iter().map(ToString::to_string).collect();
            let is_told = |shard: &str| found.iter().any(|line| line.contains(shard));
            // A file that says that a shard is there has nothing else to say; and after a checkpoint of everything a shard has
            // no need of a journal, so that nobody can tell whether there was one.
            let is_silent =
                ["/SHARD", "/shard.made", "/RESERVE", "/journal-"].iter().any(|silent| name.contains(silent));
            assert!(is_told(&name[..8]) || is_silent, "{mode} without {name}: {found:?}");
            assert!(is_told(other), "{mode} without {name}: {found:?}");
            let output = tool(server.directory(), &["verify"]);
            assert_eq!(output.status.code(), Some(1), "{mode} without {name}");
            fs::write(&path, content).unwrap();
            fs::write(&damaged, whole).unwrap();
        }
        fs::remove_file(data.join("layout.json")).unwrap();
        assert!(!errors(&data).is_empty());
    }
}

#[test]
fn files_that_mean_nothing_are_noted() {
    let mut server = start("file-durable", "1");
    put(&mut server.client(), "a", &[TEXT], b"x");
    put(&mut server.client(), "b", &[JSON], b"[1]");
    server.terminate();
    let data = server.directory().join("data");
    fs::write(data.join("notes.txt"), "").unwrap();
    fs::write(data.join("shard-00/notes.txt"), "").unwrap();
    fs::write(data.join("shard-00/journal-00000000000000ff.log.new"), "").unwrap();
    fs::create_dir(data.join("shard-07")).unwrap();
    fs::create_dir(data.join("shard-00-g5")).unwrap();
    let told: Vec<String> = findings(&data).iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "note: notes.txt: not a file of a data directory",
            "note: shard-00-g5: left over from a reshard or an import that was cut off; the next start removes it",
            "note: shard-07: there is no such shard",
            "note: shard 00: shard-00/journal-00000000000000ff.log.new: of no use; the next start removes it",
            "note: shard 00: shard-00/notes.txt: not a file of a shard",
        ]
    );
    server.restart();
    server.terminate();
    assert!(!data.join("shard-00-g5").exists() && data.join("notes.txt").exists());
}
