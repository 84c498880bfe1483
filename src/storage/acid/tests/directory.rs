//! What the data directory accepts and refuses.

use std::fs;
use std::path::Path;

use tempfile::{TempDir, tempdir};

use super::*;
use crate::storage::SHARDS_MAX;

fn open(dir: &Path, shards: Option<usize>) -> Result<AcidLog, StorageError> {
    AcidLog::new(AcidOptions { shards, default_shards: 3, cache_bytes: 1 << 20, ..AcidOptions::new(dir) })
}

/// A data directory with one group in each of its shards.
fn used(shards: usize) -> TempDir {
    let dir = tempdir().unwrap();
    let acid = open(dir.path(), Some(shards)).unwrap();
    for shard in 0..shards {
        let mut log = acid.open(shard).unwrap().log;
        log.commit(&mut [group(1, format!("shard {shard}"))]).unwrap();
        assert!(log.disk_bytes() > 0);
    }
    dir
}

fn refusal(dir: &Path, shards: Option<usize>) -> String {
    match open(dir, shards) {
        Err(StorageError::Layout(message)) => message,
        other => panic!("expected a refusal of the layout, got {other:?}"),
    }
}

#[test]
fn a_new_directory_is_made_with_the_default_number_of_shards() {
    let dir = tempdir().unwrap();
    let nested = dir.path().join("not/yet/there");
    assert_eq!(open(&nested, None).unwrap().shard_count(), 3);
    let manifest = fs::read_to_string(nested.join("layout.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(
        manifest,
        serde_json::json!({ "format_version": 1, "storage": "acid", "shard_count": 3, "hash": "xxh3-64/seed0" })
    );
}

#[test]
fn each_shard_finds_its_own_groups_after_a_restart() {
    let dir = used(2);
    let acid = open(dir.path(), None).unwrap();
    assert_eq!(acid.shard_count(), 2, "the manifest's number wins over the default");
    for shard in 0..2 {
        let recovered = acid.open(shard).unwrap().recovered;
        assert_eq!(recovered.groups, [(1, format!("shard {shard}").into())]);
        assert_eq!(recovered.next_group, 2);
    }
}

#[test]
fn another_explicit_shard_count_is_refused_with_both_numbers_and_the_remedy() {
    let dir = used(2);
    let message = refusal(dir.path(), Some(5));
    for part in ["5", "2 shards", "`durable-streams-server reshard --to 5`"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert_eq!(open(dir.path(), Some(2)).unwrap().shard_count(), 2);
}

#[test]
fn a_shard_count_out_of_range_is_refused() {
    let dir = tempdir().unwrap();
    for count in [0, SHARDS_MAX + 1] {
        assert!(refusal(dir.path(), Some(count)).contains(&count.to_string()));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_second_opener_is_refused_until_the_first_has_let_go_of_everything() {
    let dir = tempdir().unwrap();
    let first = open(dir.path(), None).unwrap();
    let locked =
        |error| matches!(error, Err(StorageError::Locked(path)) if path == dir.path().display().to_string());
    assert!(locked(open(dir.path(), None)));
    let log = first.open(0).unwrap().log;
    drop(first);
    assert!(locked(open(dir.path(), None)));
    drop(log);
    open(dir.path(), None).unwrap();
}

#[test]
fn a_manifest_of_another_version_is_refused_whatever_else_it_says() {
    let dir = used(1);
    fs::write(dir.path().join("layout.json"), r#"{"format_version":2,"shards":[1,2]}"#).unwrap();
    let message = refusal(dir.path(), None);
    assert!(message.contains("format version 2") && message.contains("version 1"), "{message}");
}

#[test]
fn a_manifest_with_another_hash_is_refused() {
    let dir = used(1);
    let manifest = r#"{"format_version":1,"storage":"acid","shard_count":1,"hash":"crc32"}"#;
    fs::write(dir.path().join("layout.json"), manifest).unwrap();
    let message = refusal(dir.path(), None);
    assert!(message.contains("crc32") && message.contains("xxh3-64/seed0"), "{message}");
}

#[test]
fn a_malformed_manifest_is_refused() {
    let dir = used(1);
    for text in [
        "",
        "{",
        r#"{"format_version":1}"#,
        r#"{"format_version":1,"shard_count":1,"hash":"xxh3-64/seed0"}"#,
        r#"{"format_version":1,"storage":"acid","shard_count":0,"hash":"xxh3-64/seed0"}"#,
    ] {
        fs::write(dir.path().join("layout.json"), text).unwrap();
        assert!(refusal(dir.path(), None).contains("layout.json"));
    }
}

#[test]
fn a_directory_of_another_kind_of_storage_is_refused_with_both_kinds_and_the_remedy() {
    let dir = used(1);
    let path = dir.path().join("layout.json");
    let manifest = fs::read_to_string(&path).unwrap();
    fs::write(&path, manifest.replace("\"acid\"", "\"file-durable\"")).unwrap();
    let message = refusal(dir.path(), None);
    for part in ["layout.json", "\"file-durable\"", "\"acid\"", "storage.mode", "export", "import"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    assert_eq!(message.lines().count(), 1, "{message:?}");
    fs::write(&path, manifest).unwrap();
    assert_eq!(open(dir.path(), None).unwrap().shard_count(), 1);
}

#[test]
fn shards_without_a_manifest_are_refused() {
    let dir = used(2);
    fs::remove_file(dir.path().join("layout.json")).unwrap();
    assert!(refusal(dir.path(), Some(2)).contains("layout.json"));
}

#[test]
fn a_first_start_that_was_cut_off_is_repeated() {
    let dir = tempdir().unwrap();
    open(dir.path(), Some(2)).unwrap();
    fs::remove_file(dir.path().join("layout.json")).unwrap();
    fs::write(dir.path().join("layout.json.new"), "{").unwrap();
    assert_eq!(open(dir.path(), Some(4)).unwrap().shard_count(), 4);
}

#[test]
fn a_database_that_was_left_half_made_is_made_again() {
    let dir = tempdir().unwrap();
    let acid = open(dir.path(), Some(1)).unwrap();
    // What redb writes last is the header that says that the file is a database.
    fs::write(dir.path().join("shard-00/shard.redb.new"), vec![0; 73_728]).unwrap();
    let mut log = acid.open(0).unwrap().log;
    log.commit(&mut [group(1, "x")]).unwrap();
    drop(log);
    assert!(!dir.path().join("shard-00/shard.redb.new").exists());
    assert_eq!(acid.open(0).unwrap().recovered.next_group, 2);
}

#[test]
fn files_of_others_are_left_alone() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    fs::write(dir.path().join("shard-notes.txt"), "mine").unwrap();
    open(dir.path(), None).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("shard-notes.txt")).unwrap(), "mine");
}

#[test]
fn a_missing_shard_file_is_refused() {
    let dir = used(2);
    fs::remove_file(dir.path().join("shard-01/shard.redb")).unwrap();
    assert!(refusal(dir.path(), None).contains("shard-01"));
}

#[test]
fn a_shard_file_in_the_place_of_another_is_refused() {
    let dir = used(2);
    fs::copy(dir.path().join("shard-00/shard.redb"), dir.path().join("shard-01/shard.redb")).unwrap();
    let acid = open(dir.path(), None).unwrap();
    acid.open(0).unwrap();
    let refused = acid.open(1).map(|_| ());
    assert!(
        matches!(&refused, Err(StorageError::Layout(message)) if message.contains("shard = 0")),
        "{refused:?}"
    );
}

#[test]
fn a_shard_of_files_can_be_reopened() {
    let dir = used(1);
    let acid = open(dir.path(), None).unwrap();
    for seq in 2..5 {
        let OpenedShard { mut log, recovered, .. } = acid.open(0).unwrap();
        assert_eq!(recovered.next_group, seq);
        log.commit(&mut [group(seq, "x")]).unwrap();
    }
}

#[test]
fn a_page_that_was_damaged_after_a_clean_stop_is_refused() {
    let dir = used(1);
    let path = dir.path().join("shard-00").join(SHARD_FILE);
    let sound = fs::read(&path).unwrap();
    let places: Vec<usize> =
        sound.windows(7).enumerate().filter(|(_, bytes)| bytes == b"shard 0").map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    let mut refused = 0;
    for at in places {
        let mut damaged = sound.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        match open(dir.path(), None).unwrap().open(0) {
            // The place of an earlier commit, which nothing refers to.
            Ok(opened) => assert_eq!(opened.recovered.groups, [(1, "shard 0".into())]),
            Err(StorageError::Corrupt(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0);
    fs::write(&path, sound).unwrap();
    let recovered = open(dir.path(), None).unwrap().open(0).unwrap().recovered;
    assert_eq!(recovered.groups, [(1, "shard 0".into())]);
}

#[test]
fn a_database_that_was_made_and_is_empty_is_refused_and_nothing_is_removed() {
    let dir = used(2);
    let path = dir.path().join("shard-01/shard.redb");
    let segment = dir.path().join("shard-01/segment-0000000000000000.seg");
    fs::write(&path, b"").unwrap();
    fs::write(&segment, b"content").unwrap();
    let acid = open(dir.path(), None).unwrap();
    assert!(acid.open(0).is_ok());
    for _ in 0..2 {
        let error = acid.open(1).map(drop).unwrap_err();
        assert!(matches!(&error, StorageError::Corrupt(why) if why.contains("shard.redb")), "{error}");
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert!(segment.exists());
}

#[test]
fn a_first_start_that_was_cut_off_before_or_after_it_made_a_database_is_made_up_for() {
    let dir = used(1);
    let (path, mark) = (dir.path().join("shard-00/shard.redb"), dir.path().join("shard-00/shard.made"));
    fs::remove_file(&mark).unwrap();
    assert_eq!(open(dir.path(), None).unwrap().open(0).unwrap().recovered.groups.len(), 1);
    assert!(mark.exists());
    fs::remove_file(&mark).unwrap();
    fs::write(&path, b"").unwrap();
    assert_eq!(open(dir.path(), None).unwrap().open(0).unwrap().recovered.groups.len(), 0);
    assert!(mark.exists());
}
