//! The parts that every request passes, without sockets: `cargo bench --bench engine`.
//!
//! With `--features bench-internals` the journal's frames are measured too, which nothing public reaches.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use durable_streams_server::engine::api::{AppendRequest, Body, CreateRequest};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::json;
use durable_streams_server::protocol::name::StreamName;
use durable_streams_server::protocol::retention::Retention;
use durable_streams_server::protocol::sse::{self, Control, SseEncoding};
use durable_streams_server::stream::append::{AppendDecision, StreamLimits};
#[cfg(feature = "bench-internals")]
use durable_streams_server::stream::event::Append;
use durable_streams_server::stream::event::{Creation, Event};
use durable_streams_server::stream::producer::ProducerTag;
use durable_streams_server::stream::state::StreamState;
use durable_streams_server::{AcidBackend, AcidStorage, Config, InMemoryStorage, Storage, StorageMode};
use futures_util::future::join_all;
use tokio::runtime::{Builder, Runtime};

/// Of one append, as in most workloads of the other suite.
const MESSAGE_BYTES: usize = 100;
const NOW_MS: i64 = 1_700_000_000_000;

fn message() -> Bytes {
    Bytes::from_static(&[b'x'; MESSAGE_BYTES])
}

fn append_to(name: &StreamName, producer: Option<ProducerTag>) -> AppendRequest {
    AppendRequest {
        name: name.clone(),
        content_type: Some(ContentType::octet_stream()),
        body: Body { raw: message(), json: None },
        close: false,
        stream_seq: None,
        producer,
    }
}

fn creation(name: &StreamName) -> Creation {
    Creation {
        name: name.clone(),
        content_type: ContentType::octet_stream(),
        lifetime: None,
        retention: None,
        fork: None,
        closed: false,
        payload: Bytes::new().into(),
        at_ms: NOW_MS,
    }
}

/// Deciding on an append, and applying it.
fn state_machine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stream");
    let limits =
        StreamLimits { stream_bytes_max: None, producers_max: 10_000, retention: Retention::default() };
    let name = StreamName::from_stored("bench");
    for with_producer in [false, true] {
        let mut state = StreamState::created(&creation(&name));
        let mut seq = 0;
        let id = BenchmarkId::new("append", if with_producer { "producer" } else { "plain" });
        group.bench_function(id, |bencher| {
            bencher.iter(|| {
                let id = Bytes::from_static(b"producer");
                let producer = with_producer.then(|| ProducerTag { id, epoch: 0, seq });
                seq += 1;
                let request = append_to(&name, producer);
                let AppendDecision::Accept(append) = state.decide_append(&request, NOW_MS, &limits) else {
                    panic!("the append is in order");
                };
                state.apply(&Event::Appended(append), seq);
            });
        });
    }
    group.finish();
}

/// Writing and reading the journal's frames.
#[cfg(feature = "bench-internals")]
fn frames(criterion: &mut Criterion) {
    use durable_streams_server::bench_internals::{decode_frames, encode_frame};

    const FRAMES: u64 = 64;
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Elements(FRAMES));
    let append =
        Append { payload: message().into(), producer: None, stream_seq: None, close: false, at_ms: NOW_MS };
    let event = Event::Appended(append);
    let mut frames = Vec::new();
    let write = |out: &mut Vec<u8>| {
        out.clear();
        (0..FRAMES).for_each(|stream| encode_frame(out, stream, &event));
    };
    group.bench_function("encode", |bencher| bencher.iter(|| write(black_box(&mut frames))));
    write(&mut frames);
    let frames = Bytes::from(frames);
    group.bench_function("decode", |bencher| bencher.iter(|| decode_frames(frames.clone())));
    group.finish();
}

#[cfg(not(feature = "bench-internals"))]
fn frames(_: &mut Criterion) {}

/// Splitting a JSON body into messages, and checking each.
fn json_split(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("json/split");
    let one = format!(
        "{{\"id\":12345,\"name\":\"a \\\"quoted\\\" name\",\"tags\":[1,2.5,null,true],\"text\":\"{}\"}}",
        "x".repeat(40)
    );
    let many = |count| format!("[{}]", vec![one.as_str(); count].join(","));
    for (name, body) in [("1 message", one.clone()), ("10 messages", many(10)), ("1000 messages", many(1000))]
    {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| json::parse_body(black_box(body.as_bytes()), 512).expect("it is JSON"));
        });
    }
    group.finish();
}

/// Framing stored bytes as events.
fn sse_frame(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sse/frame");
    let control = Control { next_offset: 123_456, cursor: Some(1234), up_to_date: true, closed: false };
    for (name, encoding) in
        [("text", SseEncoding::Text), ("json", SseEncoding::Json), ("base64", SseEncoding::Base64)]
    {
        for bytes in [100, 10_000] {
            let line = if encoding == SseEncoding::Json { "\"0123456789\"," } else { "0123456789012\n" };
            let stored = [Bytes::from(line.repeat(bytes / line.len()))];
            group.throughput(Throughput::Bytes(stored[0].len() as u64));
            let mut out = Vec::new();
            group.bench_function(BenchmarkId::new(name, bytes), |bencher| {
                bencher.iter(|| {
                    out.clear();
                    sse::write_data(&mut out, encoding, black_box(&stored));
                    sse::write_control(&mut out, &control);
                });
            });
        }
    }
    group.finish();
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

fn create(runtime: &Runtime, storage: &dyn Storage, name: &StreamName) {
    let request = CreateRequest {
        name: name.clone(),
        content_type: None,
        lifetime: None,
        retention: Retention::default(),
        closed: false,
        body: Body::default(),
        fork: None,
    };
    runtime.block_on(storage.create(request)).expect("the stream is new");
}

/// A question to a shard from another thread and back: two changes of thread.
fn mailbox(criterion: &mut Criterion) {
    let mut config = Config::default();
    config.storage.acid_shard_count = Some(1);
    let storage = InMemoryStorage::new(&config).expect("threads can be started");
    let (runtime, name) = (runtime(), StreamName::from_stored("bench"));
    create(&runtime, &storage, &name);
    let mut group = criterion.benchmark_group("mailbox/hop");
    for at_once in [1, 64] {
        group.throughput(Throughput::Elements(at_once));
        group.bench_function(BenchmarkId::from_parameter(at_once), |bencher| {
            bencher.iter(|| runtime.block_on(join_all((0..at_once).map(|_| storage.head(name.clone())))));
        });
    }
    group.finish();
    runtime.block_on(storage.shutdown());
}

/// Appends that arrive together and are committed together, by redb in RAM: all of a durable append but the disk.
fn group_commit(criterion: &mut Criterion) {
    let mut config = Config::default();
    config.storage.mode = StorageMode::Acid;
    config.storage.acid_backend = AcidBackend::InMemory;
    config.storage.acid_shard_count = Some(1);
    let storage = AcidStorage::open(&config).expect("a storage in RAM can be opened");
    let runtime = runtime();
    let names: Vec<_> = (0..64).map(|index| StreamName::from_stored(&format!("bench-{index}"))).collect();
    names.iter().for_each(|name| create(&runtime, &storage, name));
    let mut group = criterion.benchmark_group("group commit");
    for at_once in [1, 16, 64] {
        group.throughput(Throughput::Elements(at_once as u64));
        group.bench_function(BenchmarkId::from_parameter(at_once), |bencher| {
            bencher.iter(|| {
                let appends = names[..at_once].iter().map(|name| storage.append(append_to(name, None)));
                let answers = runtime.block_on(join_all(appends));
                assert!(answers.iter().all(Result::is_ok), "an append failed");
            });
        });
    }
    group.finish();
    runtime.block_on(storage.shutdown());
}

criterion_group!(benches, state_machine, frames, json_split, sse_frame, mailbox, group_commit);
criterion_main!(benches);
