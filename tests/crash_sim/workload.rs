//! What a client does next, drawn at random from what its model holds.
//!
//! A *burst* is sent all at once, so that it shares groups with what other clients send. Its parts on one stream are done in
//! the order in which they were sent; parts on different streams do not depend on each other.

use durable_streams_server::engine::api::{ForkAnchor, Retention};

use crate::model::{Model, Stream, is_json};
use crate::op::Op;
use crate::request::{Append, Body, Create, Fork, Life};
use crate::sim_disk::Dice;

const TYPES: [&str; 4] =
    ["application/octet-stream", "application/json", "text/plain", "Application/JSON; charset=utf-8"];
const PRODUCERS: usize = 3;
/// Longest sliding window; seconds.
pub(crate) const TTL_MAX: u64 = 16;

/// Draws bursts for one client.
#[derive(Debug)]
pub(crate) struct Workload {
    client: u8,
    /// The streams of this client; only the last one may have a lifetime.
    names: Vec<u8>,
    /// Largest body, in bytes.
    body_bytes_max: usize,
    lifetimes: bool,
    dice: Dice,
    /// Makes every body and every `Stream-Seq` another one.
    drawn: u64,
}

impl Workload {
    pub(crate) fn new(
        client: u8,
        names: Vec<u8>,
        body_bytes_max: usize,
        lifetimes: bool,
        dice: Dice,
    ) -> Self {
        Self { client, names, body_bytes_max, lifetimes, dice, drawn: 0 }
    }

    pub(crate) fn may_expire(&self, name: u8) -> bool {
        self.lifetimes && self.names.last() == Some(&name)
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.dice.roll(100) < percent
    }

    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.dice.roll(sides)
    }

    /// What to do next.
    pub(crate) fn burst(&mut self, model: &Model) -> Vec<Op> {
        let mut model = model.clone();
        match self.dice.roll(100) {
            0..16 => vec![self.create(&model)],
            16..28 => self.fork(&mut model),
            28..36 => self.end(&mut model),
            36..46 => self.beginnings(&mut model),
            _ => {
                let count = 1 + self.dice.roll(4);
                self.appends(&mut model, None, count)
            }
        }
    }

    /// A stream that can be appended to, or at least read.
    fn readable(&mut self, model: &Model) -> Option<u8> {
        let readable: Vec<u8> =
            self.names.iter().copied().filter(|name| model.readable(*name).is_ok()).collect();
        let open: Vec<u8> = readable
            .iter()
            .copied()
            .filter(|name| model.get(*name).is_some_and(|stream| stream.closed.is_none()))
            .collect();
        let among = if open.is_empty() || self.chance(8) { &readable } else { &open };
        (!among.is_empty()).then(|| among[self.dice.roll(among.len())])
    }

    fn create(&mut self, model: &Model) -> Op {
        let name = self.names[self.dice.roll(self.names.len())];
        Op::Create(self.creation(model, name))
    }

    fn creation(&mut self, model: &Model, name: u8) -> Create {
        let content_type = TYPES[self.dice.roll(TYPES.len())];
        let body = if self.chance(65) { self.body(content_type) } else { Body::Bytes(Vec::new()) };
        let life = self.may_expire(name).then(|| self.life(model)).flatten();
        let closed = self.chance(6);
        let retention = Retention::default();
        Create {
            name,
            content_type: Some(content_type.to_owned()),
            life,
            retention,
            closed,
            body,
            fork: None,
        }
    }

    fn life(&mut self, model: &Model) -> Option<Life> {
        match self.dice.roll(4) {
            0 => None,
            1 => {
                let ms = model.now_ms + 1000 * (4 + self.dice.roll(12) as i64);
                Some(Life::At { ms, spelling: "2033-05-18T03:33:20Z" })
            }
            _ => Some(Life::Ttl(4 + self.dice.roll(TTL_MAX as usize - 3) as u64)),
        }
    }

    /// New streams with their first appends behind them.
    fn beginnings(&mut self, model: &mut Model) -> Vec<Op> {
        let absent: Vec<u8> = self.names.iter().copied().filter(|name| model.get(*name).is_none()).collect();
        let mut ops = Vec::new();
        for name in absent.into_iter().take(2) {
            let create = Op::Create(self.creation(model, name));
            create.apply(model).expect("the name is free");
            ops.push(create);
            let count = 1 + self.dice.roll(2);
            ops.extend(self.appends(model, Some(name), count));
        }
        if ops.is_empty() { self.appends(model, None, 2) } else { ops }
    }

    /// A fork, perhaps together with appends to its source.
    fn fork(&mut self, model: &mut Model) -> Vec<Op> {
        let Some(source) = self.readable(model) else { return vec![self.create(model)] };
        let stream = model.get(source).expect("it is readable").clone();
        let free: Vec<u8> = self
            .names
            .iter()
            .copied()
            .filter(|name| *name != source && (stream.life.is_none() || self.may_expire(*name)))
            .filter(|name| model.get(*name).is_none())
            .collect();
        if free.is_empty() {
            return self.appends(model, Some(source), 2);
        }
        let name = free[self.dice.roll(free.len())];
        let anchor = self.chance(80).then(|| self.position(&stream));
        let skip = if self.chance(30) { self.dice.roll(4) as u64 } else { 0 };
        let content_type = self.chance(50).then(|| stream.content_type.clone());
        let body = if self.chance(40) { self.body(&stream.content_type) } else { Body::Bytes(Vec::new()) };
        let fork = Some(Fork { source, anchor: anchor.map_or(ForkAnchor::Tail, ForkAnchor::At), skip });
        let retention = Retention::default();
        let create =
            Op::Create(Create { name, content_type, life: None, retention, closed: false, body, fork });
        // Without an anchor, or beyond it, the fork point depends on what comes before.
        if anchor.is_none() || skip > 0 {
            return vec![create];
        }
        let count = self.dice.roll(3);
        let mut ops = self.appends(model, Some(source), count);
        ops.insert(self.dice.roll(ops.len() + 1), create);
        ops
    }

    pub(crate) fn position(&mut self, stream: &Stream) -> u64 {
        if stream.is_json() {
            let at = self.dice.roll(stream.boundaries.len());
            *stream.boundaries.iter().nth(at).expect("it is one of them")
        } else {
            self.dice.roll(stream.content.len() + 1) as u64
        }
    }

    /// A deletion, perhaps right behind appends to the same stream.
    fn end(&mut self, model: &mut Model) -> Vec<Op> {
        let Some(name) = self.readable(model) else { return vec![self.create(model)] };
        let count = self.dice.roll(3);
        let mut ops = self.appends(model, Some(name), count);
        ops.push(Op::Delete(name));
        ops
    }

    /// Appends to any streams, or to this one.
    fn appends(&mut self, model: &mut Model, to: Option<u8>, count: usize) -> Vec<Op> {
        let mut ops = Vec::new();
        for _ in 0..count {
            let Some(name) = to.or_else(|| self.readable(model)) else { return vec![self.create(model)] };
            let stream = model.get(name).expect("it is readable").clone();
            let append = Op::Append(self.append(name, &stream));
            // Whatever comes of it, later ones are drawn on top.
            let _ = append.apply(model);
            ops.push(append);
        }
        ops
    }

    fn append(&mut self, name: u8, stream: &Stream) -> Append {
        let producer = self.chance(55).then(|| self.producer(stream));
        self.drawn += 1;
        // One in four is too small, if there was another.
        let seq = if self.chance(25) { self.dice.roll(self.drawn as usize) as u64 } else { self.drawn };
        let seq = self.chance(25).then(|| format!("{seq:08}").into_bytes());
        let close = self.chance(6);
        let body =
            if close && self.chance(40) { Body::Bytes(Vec::new()) } else { self.body(&stream.content_type) };
        Append { name, content_type: stream.content_type.clone(), body, close, seq, producer }
    }

    fn producer(&mut self, stream: &Stream) -> (u8, u64, u64) {
        let id = self.dice.roll(PRODUCERS) as u8;
        let Some(&(epoch, last)) = stream.producers.get(&id) else { return (id, 0, 0) };
        match self.dice.roll(12) {
            0 | 1 => (id, epoch, last),
            2 => (id, epoch + 1, 0),
            3 => (id, epoch, last + 2),
            _ => (id, epoch, last + 1),
        }
    }

    /// A request that the stream has seen, as far as its producer tells.
    pub(crate) fn retry(&mut self, name: u8, stream: &Stream, producer: (u8, u64, u64)) -> Append {
        let body = self.body(&stream.content_type);
        let content_type = stream.content_type.clone();
        Append { name, content_type, body, close: false, seq: None, producer: Some(producer) }
    }

    /// A request with a `Stream-Seq` that is smaller than all others.
    pub(crate) fn stale(&mut self, name: u8, stream: &Stream) -> Append {
        let body = self.body(&stream.content_type);
        let (content_type, seq) = (stream.content_type.clone(), Some(b"0".to_vec()));
        Append { name, content_type, body, close: false, seq, producer: None }
    }

    /// Bytes that are nowhere else.
    fn body(&mut self, content_type: &str) -> Body {
        self.drawn += 1;
        let len = match self.dice.roll(100) {
            0..60 => 1 + self.dice.roll(80),
            60..85 => 100 + self.dice.roll(2_000),
            85..97 => 4_000 + self.dice.roll(16_000),
            _ => 60_000 + self.dice.roll(140_000),
        };
        let len = len.min(self.body_bytes_max);
        let mark = format!("{}.{}:", self.client, self.drawn);
        if !is_json(content_type) {
            return Body::Bytes(filled(&mark, len));
        }
        let count = 1 + self.dice.roll(3);
        let message = |at: usize| [b"\"", &*filled(&format!("{mark}{at}:"), len / count), b"\""].concat();
        let messages: Vec<Vec<u8>> = (0..count).map(message).collect();
        let text = [b"[", &*messages.join(&b","[..]), b"]"].concat();
        Body::Json(text, messages)
    }
}

/// The mark, as often as it takes.
fn filled(mark: &str, len: usize) -> Vec<u8> {
    mark.bytes().cycle().take(len.max(mark.len())).collect()
}
