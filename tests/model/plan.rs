//! Commands as they are drawn at random: in terms that make sense whatever came before. What they come to is decided
//! when their turn comes, by what the model holds by then; so a sequence stays meaningful while it shrinks.

use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;

use durable_streams_server::engine::api::{ForkAnchor, Retention};

use crate::model::{Model, Stream, Tag, is_json};
use crate::request::{Append, Body, Create, Fork, Life};

/// Few names, so that they meet.
pub(crate) const NAMES: u8 = 6;
/// Names behind those that are only written to, and many at a time: so many that settling them takes several groups.
pub(crate) const CROWD: u8 = 60;
const PRODUCERS: u8 = 4;

const TYPES: [&str; 6] = [
    "application/octet-stream",
    "application/json",
    "text/plain",
    "Application/JSON; charset=utf-8",
    "TEXT/Plain; x=\"y\"",
    "application/json",
];

/// How the store is built for one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) shards: usize,
    /// Above this, the journal is settled.
    pub(crate) journal_bytes: u64,
    /// Above this, settled content leaves the RAM; over all shards.
    pub(crate) recent_bytes: u64,
    pub(crate) stream_bytes_max: Option<usize>,
    /// Decides what a crash leaves of unsynced sectors.
    pub(crate) seed: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Command {
    Create(CreatePlan),
    Append(AppendPlan),
    /// Many to one stream, so that it is cut.
    Appends(Vec<AppendPlan>),
    Delete(u8),
    Head(u8),
    Read(u8, At, usize),
    /// A live read, up to the tail.
    Tail(u8, At, usize),
    /// An append to each of so many streams of the crowd, from this one on, all at once.
    Crowd(u8, u8),
    /// Milliseconds.
    Advance(i64),
    /// Shut down in order, and opened again.
    Restart,
    /// The power is cut between two requests.
    Crash,
    /// The disk fails, or the power is cut, after so many calls of the disk: before, during or after the request.
    Broken {
        after_calls: u64,
        power: bool,
        change: Change,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Create(CreatePlan),
    Append(AppendPlan),
    Delete(u8),
}

#[derive(Clone, Debug)]
pub(crate) struct CreatePlan {
    name: u8,
    content_type: Option<usize>,
    life: Option<LifePlan>,
    retention: Retention,
    closed: bool,
    body: Option<BodyPlan>,
    fork: Option<(u8, Option<At>, u64)>,
}

#[derive(Clone, Debug)]
enum LifePlan {
    Ttl(u64),
    /// Milliseconds from the start of the test.
    At(i64, bool),
}

#[derive(Clone, Debug)]
pub(crate) struct AppendPlan {
    name: u8,
    /// `None` = the stream's own.
    content_type: Option<usize>,
    /// `None` = closes and nothing else.
    body: Option<BodyPlan>,
    close: bool,
    seq: Option<u8>,
    producer: Option<(u8, ProducerPlan)>,
}

#[derive(Clone, Copy, Debug)]
enum ProducerPlan {
    Next,
    Again,
    Older,
    Gap,
    NewEpoch,
    NewEpochLate,
    OldEpoch,
    /// The request that closed the stream, if a producer did.
    Closing,
}

#[derive(Clone, Debug)]
struct BodyPlan {
    /// Of each message; a body that is not JSON is all of them.
    sizes: Vec<usize>,
    seed: u8,
    spoilt: bool,
}

/// A position.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    Start,
    Now,
    /// A position that the stream has, counted in 1/65536 of all it has.
    Valid(u16),
    /// Any byte, in the same way.
    Byte(u16),
    Beyond(u64),
}

/// An [`At`] made concrete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    Start,
    Now,
    Byte(u64),
}

impl At {
    pub(crate) fn resolve(self, stream: Option<&Stream>) -> Position {
        let tail = stream.map_or(0, Stream::tail);
        let share = |of: u64, part: u16| (of + 1) * u64::from(part) / 65_536;
        match self {
            Self::Start => Position::Start,
            Self::Now => Position::Now,
            Self::Beyond(by) => Position::Byte(tail + by),
            Self::Byte(part) => Position::Byte(share(tail, part)),
            Self::Valid(part) => match stream.filter(|stream| stream.is_json()) {
                None => Position::Byte(share(tail, part)),
                Some(stream) => {
                    let at = share(stream.boundaries.len() as u64 - 1, part);
                    let boundary = stream.boundaries.iter().nth(usize::try_from(at).expect("few messages"));
                    Position::Byte(*boundary.expect("it is a share of their number"))
                }
            },
        }
    }
}

/// A JSON value of about `size` bytes that is not easily cut in the wrong place.
fn json_value(size: usize, seed: u8) -> Vec<u8> {
    let filler = |count: usize| {
        let tricky = b"a,]}\\\"[{ :x";
        let mut text = Vec::new();
        let mut at = usize::from(seed);
        while text.len() < count {
            match tricky[at % tricky.len()] {
                b'\\' => text.extend_from_slice(b"\\\\"),
                b'"' => text.extend_from_slice(b"\\\""),
                other => text.push(other),
            }
            at += 1;
        }
        text
    };
    match seed % 4 {
        0 => vec![b'1' + seed / 4 % 9; size.max(1)],
        1 => [b"\"", &filler(size)[..], b"\""].concat(),
        2 => [b"[1, [\"", &filler(size)[..], b"\"], {}]"].concat(),
        _ => [b"{\"k,\": [null , \"", &filler(size)[..], b"\"]}"].concat(),
    }
}

impl BodyPlan {
    fn body(&self, content_type: &str) -> Body {
        if !is_json(content_type) {
            let size = self.sizes.iter().sum::<usize>().max(1);
            let bytes = (0..size).map(|at| self.seed.wrapping_add((at % 251) as u8)).collect();
            return Body::Bytes(bytes);
        }
        if self.spoilt {
            return Body::BadJson(b"[1, 2".to_vec());
        }
        let messages: Vec<Vec<u8>> = (0_u8..)
            .zip(&self.sizes)
            .map(|(index, size)| json_value(*size, self.seed.wrapping_add(index)))
            .collect();
        let text = match &messages[..] {
            [only] if only[0] != b'[' && self.seed.is_multiple_of(2) => [&b" "[..], only, b"\n"].concat(),
            _ => [&b"[ "[..], &messages.join(&b" ,\t"[..]), b" ]"].concat(),
        };
        Body::Json(text, messages)
    }
}

impl ProducerPlan {
    fn tag(self, id: u8, stream: Option<&Stream>) -> Tag {
        let known = stream.and_then(|stream| stream.producers.get(&id)).copied();
        let closing = stream.and_then(|stream| stream.closed.flatten());
        let (epoch, last) = known.unwrap_or((0, 0));
        let next = known.map_or(0, |(_, last)| last + 1);
        match self {
            Self::Next => (id, epoch, next),
            Self::Again => (id, epoch, last),
            Self::Older => (id, epoch, last.saturating_sub(1)),
            Self::Gap => (id, epoch, next + 2),
            Self::NewEpoch => (id, epoch + 1, 0),
            Self::NewEpochLate => (id, epoch + 1, 1),
            Self::OldEpoch => (id, epoch.saturating_sub(1), next),
            Self::Closing => closing.unwrap_or((id, epoch, last)),
        }
    }
}

/// What the streams of the crowd are made by.
pub(crate) fn plain_creation(name: u8) -> Create {
    let (retention, body) = (Retention::default(), Body::Bytes(Vec::new()));
    Create { name, content_type: None, life: None, retention, closed: false, body, fork: None }
}

/// What is written to them.
pub(crate) fn plain_append(name: u8) -> Append {
    Append {
        name,
        content_type: TYPES[0].to_owned(),
        body: Body::Bytes(vec![name; 20]),
        close: false,
        seq: None,
        producer: None,
    }
}

impl CreatePlan {
    pub(crate) fn resolve(&self, model: &Model, start_ms: i64) -> Create {
        let content_type = self.content_type.map(|index| TYPES[index].to_owned());
        let source = self.fork.as_ref().map(|(source, ..)| *source).and_then(|source| model.get(source));
        let body_type = content_type.clone().or_else(|| source.map(|source| source.content_type.clone()));
        let body = self.body.as_ref().map(|plan| plan.body(body_type.as_deref().unwrap_or(TYPES[0])));
        let life = self.life.as_ref().map(|plan| match plan {
            LifePlan::Ttl(seconds) => Life::Ttl(*seconds),
            LifePlan::At(ms, other) => {
                Life::At { ms: start_ms + ms, spelling: if *other { "so" } else { "or otherwise" } }
            }
        });
        let fork = self.fork.as_ref().map(|(source, anchor, skip)| {
            let anchor = anchor.map(|at| match at.resolve(model.get(*source)) {
                Position::Byte(position) => ForkAnchor::At(position),
                Position::Start | Position::Now => ForkAnchor::Start,
            });
            let anchor = anchor.unwrap_or_default();
            Fork { source: *source, anchor, skip: *skip }
        });
        let body = body.unwrap_or(Body::Bytes(Vec::new()));
        let retention = if model.is_roomy() { self.retention } else { Retention::default() };
        Create { name: self.name, content_type, life, retention, closed: self.closed, body, fork }
    }
}

impl AppendPlan {
    pub(crate) fn resolve(&self, model: &Model) -> Append {
        let stream = model.get(self.name);
        let own = || stream.map_or(TYPES[0].to_owned(), |stream| stream.content_type.clone());
        let content_type = self.content_type.map_or_else(own, |index| TYPES[index].to_owned());
        let body = self.body.as_ref().map(|plan| plan.body(&content_type));
        Append {
            name: self.name,
            close: self.close || body.is_none(),
            body: body.unwrap_or(Body::Bytes(Vec::new())),
            content_type,
            seq: self.seq.map(|number| number.to_string().into_bytes()),
            producer: self.producer.map(|(id, plan)| plan.tag(id, stream)),
        }
    }
}

fn names() -> impl Strategy<Value = u8> {
    0..NAMES
}

fn body() -> impl Strategy<Value = BodyPlan> {
    let size = prop_oneof![16 => 1..40_usize, 4 => 200..1_500_usize, 1 => 15_000..70_000_usize];
    let sizes = prop_oneof![12 => vec(size, 1..4), 1 => Just(Vec::new()), 1 => vec(1..9_usize, 60..90)];
    (sizes, any::<u8>(), weighted(0.05, Just(()))).prop_map(|(sizes, seed, spoilt)| BodyPlan {
        sizes,
        seed,
        spoilt: spoilt.is_some(),
    })
}

fn positions() -> impl Strategy<Value = At> {
    prop_oneof![
        2 => Just(At::Start),
        1 => Just(At::Now),
        6 => any::<u16>().prop_map(At::Valid),
        2 => any::<u16>().prop_map(At::Byte),
        1 => (1..5_u64).prop_map(At::Beyond),
    ]
}

fn lives() -> impl Strategy<Value = LifePlan> {
    prop_oneof![
        4 => prop::sample::select(vec![0, 1, 10, 10, 100]).prop_map(LifePlan::Ttl),
        2 => (prop::sample::select(vec![-1, 2_500, 30_000]), any::<bool>())
            .prop_map(|(ms, other)| LifePlan::At(ms, other)),
    ]
}

fn retentions() -> impl Strategy<Value = Retention> {
    let limits = (
        weighted(0.5, prop::sample::select(vec![1, 10, 40])),
        weighted(0.7, prop::sample::select(vec![1, 40, 700, 5_000])),
    );
    limits.prop_map(|(max_age_secs, max_bytes)| Retention { max_age_secs, max_bytes })
}

fn create() -> impl Strategy<Value = CreatePlan> {
    let fork = (names(), of(positions()), prop_oneof![3 => Just(0), 1 => 1..4_u64, 1 => Just(90)]);
    let ends = (weighted(0.3, lives()), weighted(0.5, retentions()));
    (names(), of(0..TYPES.len()), ends, weighted(0.1, Just(())), of(body()), of(fork)).prop_map(
        |(name, content_type, (life, retention), closed, body, fork)| {
            // A fork that names a type is most often refused.
            let content_type = content_type.filter(|index| fork.is_none() || index % 3 == 0);
            let retention = retention.unwrap_or_default();
            CreatePlan { name, content_type, life, retention, closed: closed.is_some(), body, fork }
        },
    )
}

fn append() -> impl Strategy<Value = AppendPlan> {
    let producer = prop_oneof![
        8 => Just(ProducerPlan::Next),
        2 => Just(ProducerPlan::Again),
        1 => Just(ProducerPlan::Older),
        1 => Just(ProducerPlan::Gap),
        1 => Just(ProducerPlan::NewEpoch),
        1 => Just(ProducerPlan::NewEpochLate),
        1 => Just(ProducerPlan::OldEpoch),
        2 => Just(ProducerPlan::Closing),
    ];
    (
        names(),
        weighted(0.1, 0..TYPES.len()),
        weighted(0.95, body()),
        weighted(0.06, Just(())),
        weighted(0.15, 0..30_u8),
        of((0..PRODUCERS, producer)),
    )
        .prop_map(|(name, content_type, body, close, seq, producer)| AppendPlan {
            name,
            content_type,
            body,
            close: close.is_some(),
            seq,
            producer,
        })
}

fn page_sizes() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![1, 7, 64, 1_000, 5_000, 65_536, 1 << 30])
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => create().prop_map(Change::Create),
        6 => append().prop_map(Change::Append),
        2 => names().prop_map(Change::Delete),
    ]
}

fn requests() -> impl Strategy<Value = Command> {
    prop_oneof![
        10 => create().prop_map(Command::Create),
        24 => append().prop_map(Command::Append),
        6 => (names(), vec(append(), 2..12)).prop_map(|(name, plans)| {
            let here = |plan| AppendPlan { name, close: false, ..plan };
            Command::Appends(plans.into_iter().map(here).collect())
        }),
        4 => names().prop_map(Command::Delete),
        3 => names().prop_map(Command::Head),
        8 => (names(), positions(), page_sizes()).prop_map(|(name, at, max)| Command::Read(name, at, max)),
        3 => (names(), positions(), page_sizes()).prop_map(|(name, at, max)| Command::Tail(name, at, max)),
        1 => (0..CROWD, 1..CROWD).prop_map(|(first, count)| Command::Crowd(first, count)),
        3 => prop::sample::select(vec![1, 300, 2_600, 9_999, 60_000]).prop_map(Command::Advance),
    ]
}

fn disasters() -> impl Strategy<Value = Command> {
    prop_oneof![
        1 => Just(Command::Restart),
        1 => Just(Command::Crash),
        2 => (0..12_u64, any::<bool>(), change())
            .prop_map(|(after_calls, power, change)| Command::Broken { after_calls, power, change }),
    ]
}

/// Any sequence, with or without what only a store on disk survives.
pub(crate) fn commands(with_disasters: bool) -> impl Strategy<Value = Vec<Command>> {
    let command = if with_disasters {
        prop_oneof![7 => requests(), 1 => disasters()].boxed()
    } else {
        requests().boxed()
    };
    vec(command, 1..60)
}

pub(crate) fn settings() -> impl Strategy<Value = Setting> {
    let journal_bytes = prop::sample::select(vec![0, 300, 6_000, 12_000, 1 << 30]);
    let recent_bytes = prop::sample::select(vec![0, 1_000, 1 << 30]);
    let stream_bytes_max = prop_oneof![3 => Just(None), 1 => Just(Some(3_000))];
    (1..4_usize, journal_bytes, recent_bytes, stream_bytes_max, any::<u64>()).prop_map(
        |(shards, journal_bytes, recent_bytes, stream_bytes_max, seed)| Setting {
            shards,
            journal_bytes,
            recent_bytes,
            stream_bytes_max,
            seed,
        },
    )
}
