//! Power cuts of `file-fast`, which answers before it syncs. A cut may lose the end of each shard's journal, and that is all:
//!
//! * what is lost of a shard was acknowledged after everything that is left of it had been sent: a prefix, in the order that
//!   clients can know of;
//! * what is left is there once and in order, at the positions that were acknowledged, and retries are told from news;
//! * a fork reads what its source had, whichever shards they are on, and one whose end was acknowledged does not come back;
//! * what was acknowledged before a flush is there, and so is everything after a stop in good order.
//!
//! Each life of the store writes other bytes at the same positions, so that bytes of a lost life show where they should not.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use durable_streams_server::config::{Config, StorageMode};
use durable_streams_server::engine::api::{
    AppendRequest, Body, CreateRequest, ForkAnchor, ForkRequest, LookupError, LookupRefusal, ProducerTag,
    ReadError, ReadRequest, Retention, Storage,
};
use durable_streams_server::engine::clock::Clock;
use durable_streams_server::engine::{EngineOptions, FileStorage, shard_of};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::name::StreamName;
use durable_streams_server::protocol::offset::RequestedOffset;
use futures_util::future::join_all;

use crate::sim_disk::{Count, CutPoint, Dice, Moment, SimDisk, Style, Survives};
use crate::world::{PATIENCE, START_MS, within};

const STREAMS: usize = 5;
const LIVES: usize = 5;
/// Neither of which a run waits for: one is soon over, the other never.
const SOON: Duration = Duration::from_millis(1);
const NEVER: Duration = Duration::from_secs(3_600);

/// What runs came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    pub(crate) cuts: u64,
    /// Acknowledged requests whose effect a cut has undone.
    pub(crate) lost: u64,
    pub(crate) flushes: u64,
    /// Forks that were read after a cut.
    pub(crate) forks: u64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.cuts += other.cuts;
        self.lost += other.lost;
        self.flushes += other.flushes;
        self.forks += other.forks;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuts, lost, flushes, forks } = self;
        write!(f, "{cuts} cuts, {lost} acknowledged requests lost, {flushes} flushes, {forks} forks read")
    }
}

/// When something happened: a number that only grows.
type Instant64 = u64;

#[derive(Clone, Debug)]
struct Record {
    text: String,
    sent: Instant64,
    /// When, and where the record ended.
    acknowledged: Option<(Instant64, u64)>,
    /// Acknowledged, and synced since.
    is_safe: bool,
}

#[derive(Clone, Debug)]
struct Fork {
    /// What it inherits.
    content: String,
    sent: Instant64,
    acknowledged: Option<Instant64>,
    is_safe: bool,
    is_deleted: bool,
}

/// One producer and its stream.
struct Line {
    name: String,
    records: Vec<Record>,
    forks: BTreeMap<String, Fork>,
    dice: Dice,
}

struct World {
    store: Option<Arc<FileStorage>>,
    disk: SimDisk,
    shards: usize,
    config: Config,
    life: usize,
    now: Cell<Instant64>,
    notes: RefCell<Vec<String>>,
}

impl World {
    fn tick(&self) -> Instant64 {
        self.now.set(self.now.get() + 1);
        self.now.get()
    }

    fn store(&self) -> &FileStorage {
        self.store.as_ref().expect("the store is open")
    }

    fn note(&self, line: String) {
        self.notes.borrow_mut().push(line);
    }

    fn open(&mut self) -> bool {
        let options = EngineOptions::default()
            .with_clock(Clock::manual(START_MS))
            .with_disk(Arc::new(self.disk.clone()));
        match FileStorage::open_with(&self.config, &options) {
            Ok(store) => self.store = Some(Arc::new(store)),
            Err(error) => assert!(self.disk.is_frozen(), "the store cannot be opened: {error}"),
        }
        self.store.is_some()
    }

    async fn stop(&mut self) {
        if let Some(store) = self.store.take() {
            within(store.shutdown()).await;
        }
    }

    /// `None` = it is not there.
    async fn content(&self, name: &str) -> Option<String> {
        let request = ReadRequest { name: stream(name), from: RequestedOffset::Start, max_bytes: 1 << 24 };
        match within(self.store().read(request)).await {
            Ok(page) => {
                assert!(page.up_to_date(), "these streams fit into one page");
                Some(String::from_utf8(page.data.concat()).expect("it is text"))
            }
            Err(ReadError::Refused(LookupRefusal::NotFound)) => None,
            Err(other) => panic!("{name} can be read: {other}"),
        }
    }
}

fn stream(name: &str) -> StreamName {
    StreamName::from_stored(name)
}

fn creation(name: &str, source: Option<&str>) -> CreateRequest {
    CreateRequest {
        name: stream(name),
        content_type: source.is_none().then(ContentType::octet_stream),
        lifetime: None,
        retention: Retention::default(),
        closed: false,
        body: Body::default(),
        fork: source.map(|source| ForkRequest {
            source: stream(source),
            anchor: ForkAnchor::Tail,
            sub_offset: 0,
        }),
    }
}

impl Line {
    fn append(&self, seq: usize) -> AppendRequest {
        AppendRequest {
            name: stream(&self.name),
            content_type: Some(ContentType::octet_stream()),
            body: Body { raw: Bytes::from(self.records[seq].text.clone()), json: None },
            close: false,
            stream_seq: None,
            producer: Some(ProducerTag { id: Bytes::from_static(b"p"), epoch: 0, seq: seq as u64 }),
        }
    }

    fn content(&self) -> String {
        self.records.iter().map(|record| record.text.as_str()).collect()
    }

    /// Creates, appends, forks, deletes forks, until something is not answered.
    async fn work(&mut self, world: &World, steps: usize) -> bool {
        for _ in 0..steps {
            let went_well = match self.dice.roll(8) {
                0 => self.fork(world).await,
                1 => self.delete_a_fork(world).await,
                _ => self.write(world).await,
            };
            if !went_well {
                assert!(world.disk.is_frozen(), "the disk works, and {} has no answer", self.name);
                return false;
            }
        }
        true
    }

    /// An empty stream is as good as none: creations are repeated.
    async fn write(&mut self, world: &World) -> bool {
        if self.records.is_empty() && within(world.store().create(creation(&self.name, None))).await.is_err()
        {
            return false;
        }
        let (seq, filler) = (self.records.len(), "*".repeat([1, 50, 2_000][self.dice.roll(3)]));
        let text = format!("<{}:{}:{seq}:{filler}>", self.name, world.life);
        self.records.push(Record { text, sent: world.tick(), acknowledged: None, is_safe: false });
        let Ok(appended) = within(world.store().append(self.append(seq))).await else { return false };
        assert!(!appended.duplicate, "record {seq} of {} is new", self.name);
        assert_eq!(appended.tail, self.content().len() as u64, "end of record {seq} of {}", self.name);
        self.records[seq].acknowledged = Some((world.tick(), appended.tail));
        true
    }

    async fn fork(&mut self, world: &World) -> bool {
        if self.records.is_empty() {
            return true;
        }
        let name = format!("{}/fork-{}", self.name, world.tick());
        let (content, sent) = (self.content(), world.tick());
        let fork = Fork { content, sent, acknowledged: None, is_safe: false, is_deleted: false };
        self.forks.insert(name.clone(), fork);
        if within(world.store().create(creation(&name, Some(&self.name)))).await.is_err() {
            return false;
        }
        let fork = self.forks.get_mut(&name).expect("it was just added");
        fork.acknowledged = Some(world.tick());
        // Its pin was synced before, with all that it inherits.
        self.records.iter_mut().for_each(|record| record.is_safe = true);
        true
    }

    async fn delete_a_fork(&mut self, world: &World) -> bool {
        let alive = self.forks.iter_mut().filter(|(_, fork)| !fork.is_deleted && fork.acknowledged.is_some());
        let alive: Vec<_> = alive.collect();
        if alive.is_empty() {
            return true;
        }
        let number = self.dice.roll(alive.len());
        let (name, fork) = alive.into_iter().nth(number).expect("there are so many");
        match within(world.store().delete(stream(name))).await {
            Ok(()) => fork.is_deleted = true,
            Err(LookupError::Unavailable(_)) => {
                // It may be there or not.
                (fork.acknowledged, fork.is_safe) = (None, false);
                return false;
            }
            Err(other) => panic!("{name} can be deleted: {other}"),
        }
        true
    }

    /// Takes what is left for all that there is. `events` = of each shard, what is left, and what is lost.
    async fn check(&mut self, world: &World, report: &mut Report, events: &mut [Events]) {
        let content = world.content(&self.name).await.unwrap_or_default();
        let mut there = 0;
        let mut at = 0;
        while at < content.len() {
            let record = self.records.get(there).filter(|record| content[at..].starts_with(&record.text));
            let Some(record) = record else { panic!("{} has at {at} what it never had", self.name) };
            at += record.text.len();
            assert!(record.acknowledged.is_none_or(|(_, tail)| tail == at as u64), "{} at {at}", self.name);
            there += 1;
        }
        let own = &mut events[shard_of(&self.name, world.shards)];
        for (seq, record) in self.records.iter().enumerate() {
            let acknowledged = record.acknowledged.map(|(when, _)| when);
            own.add(seq < there, record.sent, acknowledged, record.is_safe, &format!("{} {seq}", self.name));
        }
        self.records.truncate(there);
        for (name, fork) in std::mem::take(&mut self.forks) {
            let found = world.content(&name).await;
            if fork.is_deleted {
                assert!(found.is_none(), "{name} is back: its end was synced before it was acknowledged");
                continue;
            }
            if let Some(found) = &found {
                report.forks += 1;
                assert!(*found == fork.content, "{name} has other bytes than its source had");
                assert!(content.starts_with(&fork.content), "{} lost what {name} inherits", self.name);
            }
            events[shard_of(&name, world.shards)].add(
                found.is_some(),
                fork.sent,
                fork.acknowledged,
                fork.is_safe,
                &name,
            );
            if found.is_some() {
                self.forks.insert(name, fork);
            }
        }
    }

    /// What was sent last is a duplicate.
    async fn retry(&self, world: &World) {
        let Some(last) = self.records.len().checked_sub(1) else { return };
        let again = within(world.store().append(self.append(last))).await.expect("the disk works");
        assert!(again.duplicate, "record {last} of {} is known", self.name);
    }

    /// What is there now has been seen after a cut, or flushed.
    fn is_safe(&mut self) {
        self.records.iter_mut().for_each(|record| record.is_safe |= record.acknowledged.is_some());
        self.forks.values_mut().for_each(|fork| fork.is_safe |= fork.acknowledged.is_some());
    }
}

/// What became of the requests of one shard.
#[derive(Clone, Debug, Default)]
struct Events {
    /// When the latest of those that are left was sent.
    left: Option<(Instant64, String)>,
    /// When the first of those that are lost was acknowledged.
    lost: Option<(Instant64, String)>,
    count: u64,
}

impl Events {
    fn add(
        &mut self,
        is_left: bool,
        sent: Instant64,
        acknowledged: Option<Instant64>,
        is_safe: bool,
        what: &str,
    ) {
        if is_left {
            self.left = self.left.take().max(Some((sent, what.to_owned())));
        } else if let Some(when) = acknowledged {
            assert!(!is_safe, "{what} is lost, and was synced");
            self.count += 1;
            let earlier = self.lost.take().filter(|(earlier, _)| *earlier < when);
            self.lost = earlier.or_else(|| Some((when, what.to_owned())));
        }
    }

    fn check(&self) {
        if let (Some((left, this)), Some((lost, that))) = (&self.left, &self.lost) {
            assert!(
                left < lost,
                "{that} is lost, and was acknowledged before {this} was sent, which is left"
            );
        }
    }
}

/// A run through several cuts. Prints how to do it again if it fails.
pub(crate) fn run(seed: u64) -> Report {
    let mut dice = Dice::new(seed.wrapping_add(1 << 42));
    let shards = 1 + dice.roll(3);
    let mut config = Config::default();
    config.storage.mode = StorageMode::FileFast;
    config.storage.acid_shard_count = Some(shards);
    config.storage.journal_bytes = [400, 20_000, 1 << 20][dice.roll(3)];
    config.storage.flush_interval = [SOON, NEVER][dice.roll(2)];
    config.limits.max_memory_bytes = [100, 1 << 20][dice.roll(2)];
    let disk = SimDisk::new(dice.roll(1 << 30) as u64);
    let (now, notes) = (Cell::new(0), RefCell::default());
    let mut world = World { store: None, disk, shards, config, life: 0, now, notes };
    let mut lines: Vec<Line> = (0..STREAMS)
        .map(|number| Line {
            name: format!("line-{number}"),
            records: Vec::new(),
            forks: BTreeMap::new(),
            dice: Dice::new(dice.roll(1 << 30) as u64),
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut report = Report::default();
    let all = all(&mut world, &mut lines, &mut dice, &mut report);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| runtime.block_on(all))) {
        let (notes, trace) = (world.notes.borrow().join("\n  "), world.disk.trace());
        eprintln!("{:#?}\n  {notes}\nlast calls of the disk:\n{trace}", world.config.storage);
        eprintln!("again: DS_SIM_SEED=fast-{seed}");
        resume_unwind(panic);
    }
    report
}

async fn all(world: &mut World, lines: &mut [Line], dice: &mut Dice, report: &mut Report) {
    assert!(world.open(), "nothing has happened yet");
    for life in 0..LIVES {
        world.life = life;
        if dice.roll(3) > 0 {
            let number = 1 + dice.roll(150) as u64;
            let point = CutPoint { count: Count::Calls, number, moment: Moment::ALL[dice.roll(3)] };
            world.note(format!("life {life} ends {point}"));
            world.disk.cut_at(point);
        }
        for _ in 0..1 + dice.roll(3) {
            let steps = 1 + dice.roll(12);
            let worked = join_all(lines.iter_mut().map(|line| line.work(world, steps))).await;
            if !worked.into_iter().all(|went_well| went_well) {
                break;
            }
            if world.config.storage.flush_interval == SOON && dice.roll(2) == 0 && wait_for_flush(world).await
            {
                world.note("all is flushed".to_owned());
                report.flushes += 1;
                lines.iter_mut().for_each(Line::is_safe);
            }
        }
        let mut style = Style::draw(dice);
        if dice.roll(4) == 0 && world.disk.spare() {
            world.note("the store is stopped in good order".to_owned());
            world.stop().await;
            lines.iter_mut().for_each(Line::is_safe);
            style.content = Survives::Nothing;
        }
        cut(world, dice, style, report).await;
        let mut events = vec![Events::default(); world.shards];
        for line in lines.iter_mut() {
            line.check(world, report, &mut events).await;
        }
        for shard in &events {
            shard.check();
            report.lost += shard.count;
        }
        for line in lines.iter_mut() {
            line.retry(world).await;
            // An opening syncs what it takes for true.
            line.records.iter_mut().for_each(|record| record.is_safe = true);
            line.forks.values_mut().for_each(|fork| fork.is_safe = true);
        }
    }
    world.stop().await;
}

/// Everything that was written is synced, which the store sees to by itself. `false` = the disk has stopped.
async fn wait_for_flush(world: &World) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while world.disk.has_unsynced_content() {
        if world.disk.is_frozen() {
            return false;
        }
        assert!(Instant::now() < deadline, "what was written is synced by and by");
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    !world.disk.is_frozen()
}

/// Cuts the power, sometimes while the store is being opened, too.
async fn cut(world: &mut World, dice: &mut Dice, style: Style, report: &mut Report) {
    let mut style = style;
    loop {
        report.cuts += 1;
        world.note(format!("the power is cut: {style}"));
        world.disk = world.disk.power_cut(dice, style);
        world.stop().await;
        if dice.roll(100) < 30 {
            let point = CutPoint {
                count: Count::Calls,
                number: 1 + dice.roll(12) as u64,
                moment: Moment::ALL[dice.roll(3)],
            };
            world.disk.cut_at(point);
        }
        if world.open() && world.disk.spare() {
            return;
        }
        style = Style::draw(dice);
    }
}
