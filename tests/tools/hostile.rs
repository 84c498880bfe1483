//! Input that no export has written: refused with the line, before anything is changed.

use std::fs;
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use crate::stock::{TEXT, fill, put, start};
use crate::{files, refused, run};

const OPENING: &str = "{\"format\":\"durable-streams-export\",\"version\":1}";

/// These lines, with a last one that fits to them.
fn sealed(lines: &[&str], streams: usize, bytes: usize) -> String {
    let mut text = format!("{OPENING}\n");
    for line in lines {
        text += line;
        text.push('\n');
    }
    let checksum = xxh3_128(text.as_bytes());
    text + &format!(
        "{{\"end\":{{\"streams\":{streams},\"bytes\":{bytes},\"checksum\":\"{checksum:032x}\"}}}}\n"
    )
}

/// Fails to import this text in a way that names the line, if there is one, and says this.
#[track_caller]
fn refuse(directory: &Path, text: &[u8], says: &str) {
    fs::write(directory.join("input"), text).unwrap();
    let error = refused(directory, &["import", "input", "--on-conflict", "replace"]);
    assert!(error.contains(says), "{error} lacks {says:?}: {}", String::from_utf8_lossy(text));
}

fn stream(name: &str, more: &str) -> String {
    format!(
        "{{\"stream\":{{\"name\":\"{name}\",\"content_type\":\"text/plain\",\"start\":0,\"tail\":3,\
         \"renewed_at_ms\":0{more}}}}}"
    )
}

fn json_stream(tail: usize) -> String {
    format!(
        "{{\"stream\":{{\"name\":\"j\",\"content_type\":\"application/json\",\"start\":0,\"tail\":{tail},\
         \"renewed_at_ms\":0}}}}"
    )
}

#[test]
fn input_that_is_cut_off_or_damaged_anywhere_is_refused_and_changes_nothing() {
    let mut server = start("acid", "2");
    fill(&server);
    server.terminate();
    run(server.directory(), &["export", "--output", "all", "fork*", "produced", "json*", "many/1"]);
    let text = fs::read(server.directory().join("all")).unwrap();
    let data = server.directory().join("data");
    let before = files(&data);
    for step in 0..25 {
        let at = step * (text.len() - 1) / 24;
        refuse(server.directory(), &text[..at], "of the input: ");
        let mut damaged = text.clone();
        damaged[at] ^= 1;
        refuse(server.directory(), &damaged, "of the input: ");
    }
    let last = text[..text.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    refuse(server.directory(), &text[..last], "the input is cut off");
    refuse(server.directory(), &[&text[..], b"\n"].concat(), "of the input: something follows the last line");
    // A line less, or twice, which is well-formed by itself.
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    for at in [2, 5, lines.len() - 3] {
        let without = [&lines[..at], &lines[at + 1..]].concat().concat();
        refuse(server.directory(), &without, "of the input: ");
        let doubled = [&lines[..=at], &lines[at..]].concat().concat();
        refuse(server.directory(), &doubled, "of the input: ");
    }
    assert_eq!(files(&data), before);
    assert_eq!(run(server.directory(), &["verify"]).lines().count(), 1);
}

#[test]
fn input_that_contradicts_itself_is_refused_with_the_line() {
    let mut server = start("file-durable", "1");
    put(&mut server.client(), "there", &[TEXT], b"abc");
    server.terminate();
    let directory = server.directory();
    let before = files(&directory.join("data"));
    let abc = "{\"base64\":\"YWJj\"}";
    let refuse = |lines: &[&str], streams: usize, bytes: usize, says: &str| {
        refuse(directory, sealed(lines, streams, bytes).as_bytes(), says);
    };
    refuse(&[abc], 0, 3, "line 2 of the input: it comes before any stream");
    refuse(
        &[&stream("a", ""), abc, &stream("a", ""), abc],
        2,
        6,
        "line 4 of the input: stream \"a\" is there twice",
    );
    refuse(&[&stream("a", ""), abc], 2, 3, "its last line does not fit");
    refuse(&[&stream("a", ""), abc], 1, 4, "its last line does not fit");
    refuse(&[&stream("a", "")], 1, 0, "the content of \"a\" before it ends at 0, not at 3");
    refuse(&[&stream("a", ""), abc, abc], 1, 6, "more than its stream");
    refuse(&[&stream("a", ""), "{\"base64\":\"\"}"], 1, 0, "no content");
    refuse(&[&stream("a", ""), "{\"base64\":\"YWJ\"}"], 1, 3, "not base64");
    refuse(&[&stream("a", ""), "{\"json\":[1]}"], 1, 3, "a stream that is not JSON");
    refuse(&[&stream("a", ",\"colour\":\"blue\""), abc], 1, 3, "unknown field `colour`");
    refuse(&["{\"colour\":1}"], 0, 0, "unknown variant `colour`");
    refuse(&["[]"], 0, 0, "line 2 of the input: ");
    for name in ["", "/a", "a//b", "a/", "..", "a/./b", "__ds/x", "a\\u0000"] {
        refuse(&[&stream(name, ""), abc], 1, 3, "line 2 of the input: ");
    }
    refuse(&[&stream(&"n".repeat(5_000), ""), abc], 1, 3, "longer than");
    let fork = |source: &str, point: u64, anchor: u64| {
        format!(
            ",\"fork\":{{\"source\":\"{source}\",\"anchor\":{anchor},\"sub_offset\":0,\"point\":{point},\
             \"lifetime_inherited\":false}}"
        )
    };
    refuse(&[&stream("a", &fork("b", 0, 0)), abc], 1, 3, "its source \"b\" does not come before it");
    refuse(&[&stream("a", &fork("a", 0, 0)), abc], 1, 3, "its source \"a\" does not come before it");
    refuse(&[&stream("a", &fork("there", 0, 0)), abc], 1, 3, "does not come before it");
    let forked = stream("b", &fork("a", 4, 4)).replace("\"start\":0,\"tail\":3", "\"start\":4,\"tail\":4");
    refuse(&[&stream("a", ""), abc, &forked], 2, 3, "it forks \"a\" at 4, which ends at 3");
    refuse(&[&stream("a", ""), abc, &stream("b", &fork("a", 2, 2))], 2, 3, "begins at 2");
    // A source of which less is kept than a fork of it needs.
    let cut = ",\"retention\":{\"max_bytes\":{\"limit\":1,\"asked\":true},\"earliest\":2,\"units\":[[2,0]]}";
    let cut = stream("a", cut).replace("\"start\":0", "\"start\":2");
    let forked = stream("b", &fork("a", 3, 3)).replace("\"start\":0", "\"start\":3");
    let last = "{\"base64\":\"Yw==\"}";
    refuse(
        &[&cut, last, &forked],
        2,
        1,
        "line 4 of the input: it needs \"a\" from 0 on, of which less is kept",
    );
    refuse(
        &[&stream("a", ",\"closed_by\":{\"id\":\"p\",\"epoch\":0,\"seq\":0}"), abc],
        1,
        3,
        "closed by nobody",
    );
    let closed = ",\"closed\":true,\"closed_by\":{\"id\":\"p\",\"epoch\":0,\"seq\":0}";
    refuse(&[&stream("a", closed), abc], 1, 3, "the producer that closed \"a\"");
    let producer = "{\"producer\":{\"id\":\"p\",\"epoch\":0,\"seq\":0}}";
    refuse(&[&stream("a", ""), producer, producer, abc], 1, 3, "the producer is there twice");
    refuse(&[&stream("a", ""), abc, producer], 1, 3, "a producer comes after content");
    refuse(
        &[&stream("a", ",\"ttl_seconds\":1,\"expires_at\":\"2030-01-01T00:00:00Z\""), abc],
        1,
        3,
        "one lifetime",
    );
    refuse(&[&stream("a", ",\"ttl_seconds\":18446744073709551615"), abc], 1, 3, "at most 2^53-1");
    refuse(&[&stream("a", ",\"expires_at\":\"tomorrow\""), abc], 1, 3, "RFC 3339");
    let epoch = "{\"producer\":{\"id\":\"p\",\"epoch\":18446744073709551615,\"seq\":0}}";
    refuse(&[&stream("a", ""), epoch, abc], 1, 3, "at most 2^53-1");
    // Content that would not be messages, and lines that only look like messages.
    refuse(&[&json_stream(2), "{\"base64\":\"MTE=\"}"], 1, 2, "the last JSON message is not complete");
    refuse(&[&json_stream(2), "{\"json\":[]}"], 1, 2, "not what a sequence of JSON messages");
    refuse(&[&json_stream(8), "{\"json\":[1]},[2]}"], 1, 8, "not what a sequence of JSON messages");
    refuse(&[&json_stream(4), "{\"base64\":\"Ww==\"}", "{\"json\":[1]}"], 1, 4, "not whole messages");
    refuse(&[&json_stream(4), "{\"json\":[ 1]}"], 1, 4, "not what a sequence of JSON messages");
    refuse(&[&json_stream(4), "{\"json\":[1}"], 1, 4, "does not end with them");
    assert_eq!(files(&directory.join("data")), before);
    // All of these are refused for what they are, as the same without it is taken.
    let forked = forked.replace("\"sub_offset\"", "\"earliest\":2,\"sub_offset\"");
    let taken = [&cut, last, &forked, &json_stream(2), "{\"json\":[1]}"];
    fs::write(directory.join("input"), sealed(&taken, 3, 3)).unwrap();
    assert_eq!(run(directory, &["import", "input"]), "3 streams added, 0 replaced, 0 skipped\n");
}

#[test]
fn other_versions_other_files_and_endless_lines_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut server = start("acid", "1");
    server.terminate();
    fs::create_dir(&data).unwrap();
    for (name, content) in files(&server.directory().join("data")) {
        let path = data.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let before = files(&data);
    let newer = OPENING.replace("\"version\":1", "\"version\":2");
    refuse(directory.path(), format!("{newer}\n").as_bytes(), "version 2, this program reads version 1");
    for text in ["", "\n", "{}\n", "hello\n", "{\"stream\":{}}\n"] {
        refuse(
            directory.path(),
            text.as_bytes(),
            "line 1 of the input: this is not the first line of an export",
        );
    }
    let endless = [OPENING.as_bytes(), b"\n", &vec![b'x'; 3 << 20]].concat();
    refuse(directory.path(), &endless, "line 2 of the input: it has more than 2097152 bytes");
    assert_eq!(files(&data), before);
    assert!(refused(directory.path(), &["import", "nowhere"]).contains("reading the input"));
}

#[test]
fn the_example_in_the_documentation_is_taken() {
    let text = include_str!("../../docs/tools.md");
    let start = text.find(OPENING).unwrap();
    let example = &text[start..start + text[start..].find("```").unwrap()];
    let last = example.trim_end().rfind('\n').unwrap() + 1;
    let checksum = format!("{:032x}", xxh3_128(&example.as_bytes()[..last]));
    assert!(example[last..].contains(&checksum), "the checksum is {checksum}");
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("example"), example).unwrap();
    let told = crate::carrying::import_into(directory.path(), "acid", "1", &["import", "example"]);
    assert_eq!(told, "2 streams added, 0 replaced, 0 skipped\n");
    assert_eq!(run(directory.path(), &["export"]), example);
}
