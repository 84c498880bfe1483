//! A client with streams of its own and a model of them: sends bursts, remembers what it was promised, and after a failure
//! finds out what came of what it was not told.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use durable_streams_server::engine::api::{Page, ReadRequest, StreamInfo};
use durable_streams_server::protocol::offset::RequestedOffset;
use futures_util::future::join_all;

use crate::model::{Answer, Limits, Model, Stream};
use crate::op::{Op, Verdict};
use crate::outcome::Trouble;
use crate::request::{Life, stream_name};
use crate::workload::Workload;
use crate::world::{Down, PATIENCE, START_MS, Step, World, within};

/// Parts of a burst that a client was not told about, at most; each one doubles what is to be tried.
const PARTS_MAX: usize = 8;

pub(crate) struct Client {
    id: u8,
    names: Vec<u8>,
    pub(crate) model: Model,
    workload: Workload,
    doubt: Option<Doubt>,
    /// Incarnations by the model's number.
    incarnations: HashMap<u64, u128>,
}

/// A burst of which not everything was answered.
struct Doubt {
    before: Model,
    parts: Vec<(Op, Verdict)>,
    /// What has happened to streams since.
    since: Vec<Since>,
    /// Which parts turned out to have been done; `None` = not known yet.
    done: Vec<Option<bool>>,
}

#[derive(Clone, Copy)]
enum Since {
    /// The store was opened anew: lifetimes may be longer.
    Reopened,
    /// The time came to be this.
    Time(i64),
    /// A stream was read.
    Read(u8),
    /// Somebody asked for a page of it and was told nothing.
    PerhapsRead(u8),
}

impl Since {
    fn happen(self, model: &mut Model) {
        match self {
            Self::Reopened => model.reopened(),
            Self::Time(now_ms) => {
                model.now_ms = now_ms;
                model.expire();
            }
            Self::Read(name) if model.readable(name).is_ok() => model.renew(name),
            Self::PerhapsRead(name) if model.readable(name).is_ok() => {
                let mut renewed = model.clone();
                renewed.renew(name);
                model.blur(&renewed);
            }
            Self::Read(_) | Self::PerhapsRead(_) => {}
        }
    }
}

/// What is seen of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Sight {
    content: Vec<u8>,
    closed: bool,
}

impl Client {
    pub(crate) fn new(id: u8, names: Vec<u8>, workload: Workload) -> Self {
        let limits = Limits { stream_bytes: None, producers: 8 };
        Self {
            id,
            names,
            model: Model::new(START_MS, limits),
            workload,
            doubt: None,
            incarnations: HashMap::new(),
        }
    }

    /// Streams that only this client ends, and time does not.
    pub(crate) fn lasting_names(&self) -> impl Iterator<Item = u8> {
        self.names.iter().copied().filter(|name| !self.workload.may_expire(*name))
    }

    /// Works for so many bursts, or until something is not answered.
    pub(crate) async fn work(&mut self, world: &World, bursts: usize) -> Step {
        for _ in 0..bursts {
            if self.doubt.is_some() || world.disk.is_frozen() {
                return Err(Down);
            }
            let ops = self.workload.burst(&self.model);
            self.send(world, ops).await?;
            if self.workload.chance(50) {
                self.look_somewhere(world).await?;
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Sends a burst and checks the answers.
    pub(crate) async fn send(&mut self, world: &World, ops: Vec<Op>) -> Step {
        assert!(ops.len() <= PARTS_MAX, "what is in doubt can be tried");
        let before = self.model.clone();
        let expected: Vec<_> = ops.iter().map(|op| op.apply(&mut self.model)).collect();
        for op in ops.iter().filter(|op| matches!(op, Op::Delete(_))) {
            world.is_about_to_end(op.name());
        }
        let verdicts = within(join_all(ops.iter().map(|op| op.send(world.store())))).await;
        for (op, verdict) in ops.iter().zip(&verdicts) {
            world.note(format!("{}: {op} → {verdict:?}", self.id));
        }
        if verdicts.iter().all(Verdict::is_certain) {
            for ((op, expected), verdict) in ops.iter().zip(&expected).zip(&verdicts) {
                let Verdict::Certain(answer) = verdict else { unreachable!("they all are") };
                assert_eq!(answer, expected, "{op}");
            }
            let deletions = ops.iter().filter(|op| matches!(op, Op::Delete(_)));
            deletions.clone().for_each(|op| world.has_ended(op.name()));
            return if deletions.count() > 0 { self.wait_for_ends(world).await } else { Ok(()) };
        }
        world.expect_trouble(&verdicts);
        let done = vec![None; ops.len()];
        let parts = ops.into_iter().zip(verdicts).collect();
        self.doubt = Some(Doubt { before, parts, since: Vec::new(), done });
        Err(Down)
    }

    /// Reads a page or a description.
    async fn look_somewhere(&mut self, world: &World) -> Step {
        let name = self.names[self.workload.roll(self.names.len())];
        if self.workload.chance(30) {
            return self.check_head(world, name).await;
        }
        let start = match self.model.readable(name).cloned() {
            Ok(stream) => self.workload.position(&stream),
            Err(_) => 0,
        };
        let max_bytes = [64, 1_000, 1 << 20][self.workload.roll(3)];
        let page = self.page(world, name, start, max_bytes).await?;
        self.check_page(name, start, max_bytes, page);
        Ok(())
    }

    /// A read that may be told that the store is down, or the answer.
    async fn page(&mut self, world: &World, name: u8, start: u64, max_bytes: usize) -> Step<Answer<Page>> {
        let request = ReadRequest { name: stream_name(name), from: RequestedOffset::At(start), max_bytes };
        let answer = within(world.store().read(request)).await;
        let answer = match answer.map_err(Trouble::from) {
            Ok(page) => Ok(page),
            Err(Trouble::Refused(refusal)) => Err(refusal),
            Err(Trouble::Unavailable(why)) => {
                world.note(format!("{}: read {name}", self.id));
                world.expect_unreadable(why);
                // It may have renewed a lifetime all the same.
                self.happens(Since::PerhapsRead(name));
                return Err(Down);
            }
        };
        Ok(answer)
    }

    fn check_page(&mut self, name: u8, start: u64, max_bytes: usize, page: Answer<Page>) {
        let stream = match self.model.readable(name) {
            Err(refusal) => {
                assert_eq!(page.map(drop), Err(refusal), "a page of {name}");
                return;
            }
            Ok(stream) => stream,
        };
        let page = page.unwrap_or_else(|refusal| panic!("{name} can be read: {refusal}"));
        let data = page.data.concat();
        assert_eq!(page.start, start, "a page of {name}");
        assert_eq!(data.len() as u64, page.end - start, "a page of {name}");
        assert_eq!(page.info.tail, stream.tail(), "tail of {name}");
        let expected = &stream.content[start as usize..page.end as usize];
        assert!(data == expected, "{name} has other bytes from {start} to {}", page.end);
        assert!(page.end > start || start == stream.tail(), "a page of {name} is empty");
        assert!(stream.is_position(page.end), "a page of {name} ends within a message");
        assert!(data.len() <= max_bytes || stream.is_json(), "a page of {name} is too long");
        self.check_info(name, &page.info);
        self.model.renew(name);
    }

    async fn check_head(&mut self, world: &World, name: u8) -> Step {
        let answer = match within(world.store().head(stream_name(name))).await.map_err(Trouble::from) {
            Ok(info) => Ok(info),
            Err(Trouble::Refused(refusal)) => Err(refusal),
            Err(Trouble::Unavailable(why)) => {
                world.expect_unreadable(why);
                return Err(Down);
            }
        };
        match (self.model.readable(name), answer) {
            (Err(refusal), answer) => assert_eq!(answer.map(drop), Err(refusal), "head of {name}"),
            (Ok(_), Ok(info)) => self.check_info(name, &info),
            (Ok(_), Err(refusal)) => panic!("{name} is there: {refusal}"),
        }
        Ok(())
    }

    fn check_info(&mut self, name: u8, info: &StreamInfo) {
        let stream = self.model.get(name).expect("it is there");
        assert_eq!(info.content_type.as_str(), stream.content_type, "type of {name}");
        assert_eq!(info.tail, stream.tail(), "tail of {name}");
        assert_eq!(info.closed, stream.closed.is_some(), "closure of {name}");
        let remaining_ms = stream.life.as_ref().map(|life| match life {
            Life::Ttl(seconds) => seconds * 1000,
            Life::At { ms, .. } => (ms - self.model.now_ms).unsigned_abs(),
        });
        assert_eq!(info.remaining_ms, remaining_ms, "lifetime of {name}");
        let uid = stream.uid;
        let known = *self.incarnations.entry(uid).or_insert(info.incarnation);
        assert_eq!(info.incarnation, known, "an incarnation of {name} keeps its id");
        let twice = self.incarnations.iter().any(|(other, id)| *other != uid && *id == known);
        assert!(!twice, "incarnations are never used again");
    }

    /// Waits for what ends by itself: deleted streams whose last fork ended, and expired ones.
    pub(crate) async fn wait_for_ends(&mut self, world: &World) -> Step {
        for name in self.names.clone() {
            let Err(expected) = self.model.readable(name).map(drop) else { continue };
            let deadline = Instant::now() + PATIENCE;
            loop {
                if world.disk.is_frozen() {
                    return Err(Down);
                }
                match within(world.store().head(stream_name(name))).await.map_err(Trouble::from) {
                    Err(Trouble::Refused(refusal)) if refusal == expected => break,
                    // It may still have to hear of the end of its last fork.
                    Err(Trouble::Refused(refusal)) if refusal == "GONE" => {}
                    Err(Trouble::Unavailable(why)) => {
                        world.expect_unreadable(why);
                        return Err(Down);
                    }
                    other => panic!("{name} has ended ({expected}): {other:?}"),
                }
                assert!(Instant::now() < deadline, "{name} is kept for forks that are gone");
                tokio::time::sleep(std::time::Duration::from_micros(200)).await;
            }
        }
        Ok(())
    }

    /// The store has been opened anew.
    pub(crate) fn reopened(&mut self) {
        self.happens(Since::Reopened);
    }

    /// That time, or a later one at which it is certain what has expired.
    pub(crate) fn later(&self, now_ms: i64) -> i64 {
        let without = self.doubt.as_ref().map(Doubt::without);
        let mut now_ms = now_ms;
        for mut model in without.into_iter().chain([self.model.clone()]) {
            model.advance(now_ms - model.now_ms);
            now_ms = model.now_ms;
        }
        now_ms
    }

    /// The next time at which a stream may expire.
    pub(crate) fn next_deadline(&self) -> Option<i64> {
        let live = self.model.streams.values().filter(|stream| !stream.deleted);
        live.filter_map(Stream::deadline).map(|(earliest, _)| earliest).min()
    }

    /// It is that time now. Says whether anything has ended by that.
    pub(crate) fn pass(&mut self, now_ms: i64) -> bool {
        let lives = |model: &Model| model.streams.values().filter(|stream| !stream.deleted).count();
        let count = |client: &Self| {
            lives(&client.model) + client.doubt.as_ref().map_or(0, |doubt| lives(&doubt.without()))
        };
        let before = count(self);
        self.happens(Since::Time(now_ms));
        count(self) < before
    }

    fn happens(&mut self, what: Since) {
        what.happen(&mut self.model);
        if let Some(doubt) = &mut self.doubt {
            doubt.since.push(what);
        }
    }

    /// Finds out what became of the parts that were not answered. If `in_order`, a part that was done implies all parts before
    /// it on the same stream.
    pub(crate) async fn settle_doubts(&mut self, world: &World, in_order: bool) -> Step {
        let Some(doubt) = &self.doubt else { return Ok(()) };
        let names: BTreeSet<u8> = doubt.parts.iter().map(|(op, _)| op.name()).collect();
        for name in names {
            let own = self.doubt.as_ref().expect("it is settled only below").own(name);
            if own.iter().all(|&at| self.doubt.as_ref().is_some_and(|doubt| doubt.done[at].is_some())) {
                continue;
            }
            let sight = self.look_at(world, name).await?;
            let doubt = self.doubt.as_mut().expect("it is settled only below");
            let Some(done) = doubt.explain(&own, sight.as_ref(), in_order) else {
                panic!("{name} shows what no part of this burst explains: {}", doubt.describe(&own, sight));
            };
            world.note(format!("{}: of the burst on {name} this was done: {done:?}", self.id));
            for (at, done) in own.into_iter().zip(done) {
                doubt.done[at] = Some(done);
            }
        }
        let doubt = self.doubt.take().expect("it was there");
        let mut model = doubt.before.clone();
        for ((op, _), done) in doubt.parts.iter().zip(&doubt.done) {
            if *done == Some(true) {
                // Refusals change nothing.
                let _ = op.apply(&mut model);
            }
        }
        doubt.since.iter().for_each(|since| since.happen(&mut model));
        model.blur(&doubt.without());
        model.blur(&self.model);
        self.model = model;
        Ok(())
    }

    /// A stream as it is now; `None` = not to be seen.
    async fn look_at(&mut self, world: &World, name: u8) -> Step<Option<Sight>> {
        let mut content = Vec::new();
        loop {
            match self.page(world, name, content.len() as u64, 1 << 24).await? {
                Ok(page) => {
                    content.extend(page.data.concat());
                    self.happens(Since::Read(name));
                    if page.up_to_date() {
                        return Ok(Some(Sight { content, closed: page.info.closed }));
                    }
                }
                Err(_) => return Ok(None),
            }
        }
    }

    /// Every stream, whole; and that what was in doubt or acknowledged last is known as such.
    pub(crate) async fn check_everything(&mut self, world: &World) -> Step {
        self.wait_for_ends(world).await?;
        for name in self.names.clone() {
            self.check_head(world, name).await?;
            let Ok(stream) = self.model.readable(name).cloned() else { continue };
            let max_bytes = 100.max(stream.content.len() / 3);
            let mut at = 0;
            loop {
                let page = self.page(world, name, at, max_bytes).await?;
                let end = page.as_ref().map_or(at, |page| page.end);
                self.check_page(name, at, max_bytes, page);
                at = end;
                if at == stream.tail() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// What each producer sent last is a duplicate, everywhere, and a `Stream-Seq` from the beginning is too small.
    pub(crate) async fn repeat_requests(&mut self, world: &World) -> Step {
        for name in self.names.clone() {
            let Ok(stream) = self.model.readable(name).cloned() else { continue };
            let mut retries: Vec<Op> = stream
                .producers
                .iter()
                .map(|(&id, &(epoch, seq))| Op::Append(self.workload.retry(name, &stream, (id, epoch, seq))))
                .collect();
            retries.push(Op::Append(self.workload.stale(name, &stream)));
            self.send(world, retries).await?;
        }
        Ok(())
    }

    /// Deletes all there is. Then nothing is left, not even for forks.
    pub(crate) async fn delete_everything(&mut self, world: &World) -> Step {
        for name in self.names.clone() {
            if self.model.readable(name).is_ok() {
                self.send(world, vec![Op::Delete(name)]).await?;
            }
        }
        for name in self.names.clone() {
            assert_eq!(self.model.readable(name).map(drop), Err("NOT_FOUND".into()), "{name}");
        }
        self.wait_for_ends(world).await
    }

    pub(crate) fn incarnation(&self, name: u8) -> Option<u128> {
        self.incarnations.get(&self.model.readable(name).ok()?.uid).copied()
    }

    pub(crate) fn stream(&self, name: u8) -> Option<&Stream> {
        self.model.readable(name).ok()
    }
}

impl Doubt {
    /// The model as it is if nothing was done.
    fn without(&self) -> Model {
        let mut model = self.before.clone();
        self.since.iter().for_each(|since| since.happen(&mut model));
        model
    }

    /// The parts about this stream.
    fn own(&self, name: u8) -> Vec<usize> {
        (0..self.parts.len()).filter(|&at| self.parts[at].0.name() == name).collect()
    }

    /// Which of these parts were done, if that explains both the answers and the sight.
    fn explain(&self, own: &[usize], sight: Option<&Sight>, in_order: bool) -> Option<Vec<bool>> {
        let name = self.parts[own[0]].0.name();
        (0..1_u32 << own.len()).rev().find_map(|mask| {
            let done: Vec<bool> = (0..own.len()).map(|at| mask >> at & 1 == 1).collect();
            let mut model = self.before.clone();
            let mut skipped = false;
            for (&at, &done) in own.iter().zip(&done) {
                let (op, verdict) = &self.parts[at];
                let would_change = {
                    let mut trial = model.clone();
                    op.apply(&mut trial).is_ok_and(|outcome| changes(&outcome))
                };
                if !done {
                    if verdict.is_certain() {
                        return None;
                    }
                    skipped |= would_change;
                    continue;
                }
                if in_order && skipped && would_change {
                    return None;
                }
                let answer = op.apply(&mut model);
                match verdict {
                    Verdict::Certain(given) if *given != answer => return None,
                    Verdict::Full(_) => return None,
                    _ => {}
                }
            }
            self.since.iter().for_each(|since| since.happen(&mut model));
            let expected = model
                .readable(name)
                .ok()
                .map(|stream| Sight { content: stream.content.clone(), closed: stream.closed.is_some() });
            (expected.as_ref() == sight).then_some(done)
        })
    }

    fn describe(&self, own: &[usize], sight: Option<Sight>) -> String {
        let name = self.parts[own[0]].0.name();
        let before = self.before.readable(name).map(|stream| (stream.tail(), stream.closed));
        let sight = sight.map(|sight| (sight.content.len(), sight.closed));
        let parts: Vec<String> =
            own.iter().map(|&at| format!("{} → {:?}", self.parts[at].0, self.parts[at].1)).collect();
        format!("before {before:?}, now {sight:?}, {parts:#?}")
    }
}

fn changes(outcome: &crate::op::Outcome) -> bool {
    use crate::op::Outcome;
    match outcome {
        Outcome::Created(created) => !created.existed,
        Outcome::Appended(appended) => !appended.duplicate,
        Outcome::Deleted => true,
    }
}
