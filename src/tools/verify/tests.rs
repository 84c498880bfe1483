//! Directories whose checksums are right, and whose parts do not fit together.

use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::engine::shard_of;
use crate::protocol::content_type::ContentType;
use crate::storage::disk::MemoryDisk;
use crate::storage::layout::{Kind, ShardCount};
use crate::storage::offline::OfflineDirectory;
use crate::storage::segment::RunSource;
use crate::storage::{
    Checkpoint, Group, OpenedShard, StreamCheckpoint, acid, file, frame, open_shard, record,
};
use crate::stream::event::{Creation, Event, Payload};
use crate::stream::fork::{Ancestor, ForkOrigin, StreamRef};
use crate::stream::producer::{ProducerState, ProducerTag};
use crate::stream::state::{Closure, StreamState};
use crate::tools::image::stream_ref;

const SHARDS: usize = 2;

/// A stream as it is to be stored, right or wrong.
struct Stored {
    name: StreamName,
    own: StreamRef,
    state: StreamState,
    content: &'static [u8],
}

/// A name that belongs to this shard.
fn name(shard: usize, text: &str) -> StreamName {
    let fits = |name: &String| shard_of(name, SHARDS) == shard;
    let found = (0..).map(|n| format!("{text}{n}")).find(fits).unwrap();
    StreamName::from_stored(&found)
}

fn stored(shard: usize, id: u64, text: &str, content_type: &str, content: &'static [u8]) -> Stored {
    let name = name(shard, text);
    let mut state = StreamState::created(&Creation {
        name: name.clone(),
        content_type: ContentType::parse(content_type.as_bytes()).unwrap(),
        lifetime: None,
        retention: None,
        fork: None,
        closed: false,
        payload: Payload::default(),
        at_ms: 0,
    });
    state.tail = content.len() as u64;
    Stored { name, own: stream_ref(shard, id), state, content }
}

/// Makes the stream a fork, and its source know of it.
fn forks(fork: &mut Stored, source: &mut Stored, point: u64) {
    fork.state.fork = Some(Box::new(ForkOrigin {
        source: source.name.clone(),
        source_ref: source.own,
        anchor: point,
        earliest: 0,
        sub_offset: 0,
        point,
        lifetime_inherited: false,
        lineage: vec![Ancestor { stream: source.own, end: point }],
    }));
    fork.state.tail += point;
    source.state.apply(&Event::Pinned { child: fork.own }, 1);
}

/// What `verify` says of a directory with these streams, and with what `change` makes of its shards' commits.
fn told(kind: Kind, streams: &[Stored], change: &dyn Fn(usize, &mut Group)) -> Vec<String> {
    let taken = OfflineDirectory::on(Arc::new(MemoryDisk::new()));
    taken.create(kind, ShardCount { explicit: None, default: SHARDS }).unwrap();
    let catalogs = taken.begin_generation(&crate::storage::layout::Layout {
        storage: kind.name.to_owned(),
        shard_count: SHARDS,
        generation: 1,
    });
    let catalogs = catalogs.unwrap();
    for shard in 0..SHARDS {
        let OpenedShard { mut log, segments, .. } = open_shard(&*catalogs, shard).unwrap();
        let mut checkpoint = Checkpoint { next_stream_id: 1000, trim_before: 1, ..Checkpoint::default() };
        let mut runs = Vec::new();
        for stream in streams.iter().filter(|stream| usize::from(stream.own.shard) == shard) {
            let (id, start, end) = (stream.own.id, stream.state.base(), stream.state.tail);
            let producers = stream.state.producers.iter();
            let producers = producers.map(|(id, known)| (id.clone(), known.epoch, known.seq)).collect();
            let record = record::encode(&stream.name, &stream.state, 1);
            let payload = Vec::new();
            checkpoint.streams.push(StreamCheckpoint {
                id,
                record,
                producers,
                cut: None,
                start,
                end,
                payload,
            });
            runs.push(RunSource { stream: id, start, pieces: vec![Bytes::from_static(stream.content)] });
        }
        if runs.iter().any(|run| !run.pieces[0].is_empty()) {
            checkpoint.segments_added.push(segments.write_segment(runs).unwrap().meta());
        }
        checkpoint.next_segment_id = segments.next_segment_id();
        let mut group = Group { seq: 1, checkpoint: Some(checkpoint), ..Group::default() };
        change(shard, &mut group);
        log.commit(std::slice::from_mut(&mut group)).unwrap();
        log.checkpoint(std::slice::from_mut(&mut group)).unwrap();
    }
    catalogs.directory().put_in_use(kind).unwrap();
    crate::storage::generation::remove_others(&**taken.disk(), 1).unwrap();
    let mut told = Vec::new();
    let directory = DataDirectory::on_disk(Arc::clone(taken.disk()));
    let summary = verify(&directory, &mut (), &mut |finding| told.push(finding.to_string()));
    assert_eq!(summary.errors + summary.notes, told.len() as u64);
    told
}

/// Exactly one finding, which says this, in both kinds of storage.
#[track_caller]
fn assert_told(streams: &[Stored], says: &str) {
    for kind in [acid::KIND, file::KIND] {
        let told = told(kind, streams, &|_, _| ());
        assert!(told.len() == 1 && told[0].contains(says), "{}: {told:?} lacks {says:?}", kind.name);
    }
}

fn family() -> [Stored; 2] {
    let mut source = stored(0, 5, "source", "text/plain", b"0123456789");
    let mut fork = stored(1, 7, "fork", "text/plain", b"own");
    forks(&mut fork, &mut source, 4);
    [source, fork]
}

#[test]
fn a_directory_in_which_everything_fits_has_no_findings() {
    let json = stored(0, 9, "json", "application/json", b"1,{\"a\":[]},");
    let [source, fork] = family();
    for kind in [acid::KIND, file::KIND] {
        assert_eq!(told(kind, &[], &|_, _| ()), [""; 0]);
    }
    let streams = [source, fork, json];
    for kind in [acid::KIND, file::KIND] {
        assert_eq!(told(kind, &streams, &|_, _| ()), [""; 0]);
    }
}

#[test]
fn a_fork_that_its_source_does_not_know_of_is_an_error_and_a_pin_without_a_fork_is_none() {
    let [mut source, fork] = family();
    source.state.apply(&Event::Unpinned { child: fork.own }, 1);
    assert_told(&[source, fork], "has no pin for it");
    let [source, _] = family();
    assert_told(&[source], "note: shard 00: stream \"source");
    let [mut source, _] = family();
    source.state.soft_deleted = true;
    source.state.apply(&Event::Unpinned { child: stream_ref(1, 7) }, 1);
    assert_told(&[source], "it is kept for forks, and has none");
}

#[test]
fn a_fork_that_does_not_fit_to_its_source_is_an_error() {
    let [source, mut fork] = family();
    fork.state.fork.as_mut().unwrap().lineage.clear();
    assert_told(&[source, fork], "its lineage is not what follows from its source");
    let [source, mut fork] = family();
    fork.state.fork.as_mut().unwrap().source = StreamName::from_stored("another");
    assert_told(&[source, fork], "should be \"another\"");
    let mut source = stored(0, 5, "source", "text/plain", b"0123");
    let mut fork = stored(1, 7, "fork", "text/plain", b"own");
    forks(&mut fork, &mut source, 6);
    let found = told(acid::KIND, &[source, fork], &|_, _| ());
    assert!(found.len() == 2 && found.iter().all(|line| line.contains("ends at 4")), "{found:?}");
    let [_, fork] = family();
    let found = told(file::KIND, &[fork], &|_, _| ());
    assert!(found.iter().any(|line| line.contains("is gone (id 5 of shard 00)")), "{found:?}");
}

#[test]
fn names_in_the_wrong_shard_or_there_twice_are_errors() {
    let mut stream = stored(0, 5, "a", "text/plain", b"x");
    stream.own = stream_ref(1, 5);
    assert_told(&[stream], "the name belongs to shard 00");
    let twice = [stored(0, 5, "a", "text/plain", b"x"), stored(0, 6, "a", "text/plain", b"y")];
    assert_told(&twice, "is there more than once, as streams 5, 6");
}

#[test]
fn a_closing_producer_that_is_not_known_and_content_that_is_not_json_are_errors() {
    let tag = ProducerTag { id: Bytes::from_static(b"p"), epoch: 1, seq: 2 };
    let mut stream = stored(0, 5, "a", "text/plain", b"x");
    stream.state.closure = Closure::Closed(Some(Box::new(tag.clone())));
    stream.state.producers.set(tag.id, ProducerState { epoch: 1, seq: 1, group: 1 });
    assert_told(&[stream], "the producer that closed it");
    assert_told(&[stored(1, 5, "a", "application/json", b"1,2")], "the last JSON message is not complete");
    assert_told(&[stored(1, 5, "a", "application/json", b"1,2}")], "byte 3 is not what");
}

#[test]
fn content_that_is_in_no_segment_and_records_that_cannot_be_read_are_errors() {
    let streams = [stored(0, 5, "a", "text/plain", b"abc"), stored(1, 6, "b", "text/plain", b"def")];
    for kind in [acid::KIND, file::KIND] {
        let found = told(kind, &streams, &|shard, group| {
            let checkpoint = group.checkpoint.as_mut().unwrap();
            if shard == 0 {
                checkpoint.segments_added.clear();
            } else {
                checkpoint.streams[0].record[0] = 99;
            }
        });
        let has = |text: &str| found.iter().any(|line| line.starts_with("error: ") && line.contains(text));
        assert!(has("bytes 0 to 3 are in no segment") && has("unknown version"), "{found:?}");
    }
}

#[test]
fn a_journal_that_speaks_of_streams_that_are_not_there_or_in_unknown_words_is_an_error() {
    for kind in [acid::KIND, file::KIND] {
        let found = told(kind, &[], &|shard, group| {
            group.checkpoint.as_mut().unwrap().trim_before = 0;
            frame::encode(&mut group.frames, 77, &Event::Renewed { at_ms: 1 });
            if shard == 1 {
                group.frames.small_mut()[4] = 200;
            }
        });
        let has = |text: &str| found.iter().any(|line| line.starts_with("error: ") && line.contains(text));
        assert!(has("speaks of stream 77") && has("group 1 of the journal"), "{}: {found:?}", kind.name);
    }
}
