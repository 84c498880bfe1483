//! Runs a sequence against a store and the model at once.

mod broken;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use durable_streams_server::engine::api::{LiveEvent, Page, ReadRequest, Storage, StreamInfo};
use durable_streams_server::engine::clock::Clock;
use durable_streams_server::engine::shard_of;
use durable_streams_server::protocol::offset::RequestedOffset;
use futures_util::future::join_all;
use tokio::runtime::Runtime;

use crate::disk::{Calls, Fault};
use crate::model::{Answer, Appended, Created, Limits, Model, Stream};
use crate::outcome::{Trouble, certain};
use crate::plan::{
    AppendPlan, At, CROWD, Change, Command, NAMES, Position, Setting, plain_append, plain_creation,
};
use crate::request::{Append, Body, Create, Life, stream_name};
use crate::store::{Below, MEMORY_BYTES, PROBES_MAX, PRODUCERS_MAX, open};

/// How long something that has to happen by itself may take.
const PATIENCE: Duration = Duration::from_secs(30);
const START_MS: i64 = 1_700_000_000_000;
/// Names that no command uses, one on each shard.
const PROBES: u8 = 100;

/// A store, the model, and what was done so far.
pub(crate) struct Run {
    runtime: Runtime,
    setting: Setting,
    below: Below,
    clock: Clock,
    store: Arc<dyn Storage>,
    model: Model,
    incarnations: HashMap<u64, u128>,
    log: String,
}

impl Run {
    pub(crate) fn new(setting: Setting, below: Below) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let clock = Clock::manual(START_MS);
        let limits = Limits { stream_bytes: setting.stream_bytes_max, producers: PRODUCERS_MAX };
        let store = open(&setting, &below, &clock);
        Self {
            runtime,
            setting,
            below,
            clock,
            store,
            model: Model::new(START_MS, limits),
            incarnations: HashMap::new(),
            log: String::new(),
        }
    }

    /// Runs all of it, and prints what happened if that is not what should have.
    pub(crate) fn all(mut self, commands: &[Command]) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for command in commands {
                self.step(command);
            }
            self.check_everything();
            self.check_that_nothing_is_left();
        }));
        if let Err(panic) = outcome {
            eprintln!("{:?}\n{}", self.setting, self.log);
            std::panic::resume_unwind(panic);
        }
        self.wait_for(self.store.shutdown());
    }

    fn note(&mut self, what: impl std::fmt::Debug) {
        writeln!(self.log, "  {what:?}").expect("a text takes more text");
    }

    #[track_caller]
    fn wait_for<T>(&self, future: impl Future<Output = T>) -> T {
        let bounded = async { tokio::time::timeout(PATIENCE, future).await };
        self.runtime.block_on(bounded).expect("there is an answer in time")
    }

    fn step(&mut self, command: &Command) {
        match command {
            Command::Create(plan) => {
                let request = plan.resolve(&self.model, START_MS);
                self.note(&request);
                self.create(&request);
            }
            Command::Append(plan) => self.append_planned(plan),
            Command::Appends(plans) => plans.iter().for_each(|plan| self.append_planned(plan)),
            Command::Delete(name) => {
                self.note(command);
                self.delete(*name);
            }
            Command::Head(name) => {
                self.note(command);
                self.check_head(*name);
            }
            Command::Read(name, at, max) => self.read(*name, *at, *max),
            Command::Tail(name, at, max) => self.tail(*name, *at, *max),
            Command::Crowd(first, count) => {
                self.note(command);
                self.crowd(*first, *count);
            }
            Command::Advance(ms) => {
                let ms = self.model.advance(*ms);
                self.note(format!("{ms} ms pass"));
                self.clock.advance(Duration::from_millis(ms.unsigned_abs()));
                self.wait_until_settled();
                self.wait_until_cut();
            }
            Command::Restart => {
                self.note(command);
                self.wait_for(self.store.shutdown());
                self.reopen();
            }
            Command::Crash => {
                self.note(command);
                self.crash();
            }
            Command::Broken { after_calls, power, change } => self.broken(*after_calls, *power, change),
        }
    }

    fn create(&mut self, request: &Create) {
        let answer = self.wait_for(self.store.create(request.for_store()));
        let answer = certain(answer.map(|created| Created {
            existed: created.existed,
            content_type: created.content_type.as_str().to_owned(),
            tail: created.tail,
            closed: created.closed,
        }));
        let expected = self.model.create(request);
        assert_eq!(answer, expected, "create");
        self.wait_until_settled();
        self.check_head(request.name);
    }

    fn append_planned(&mut self, plan: &AppendPlan) {
        let request = plan.resolve(&self.model);
        self.note(&request);
        self.append(&request);
    }

    fn append(&mut self, request: &Append) {
        let answer = self.wait_for(self.store.append(request.for_store()));
        let answer = certain(answer.map(|appended| Appended {
            tail: appended.tail,
            closed: appended.closed,
            duplicate: appended.duplicate,
            producer: appended.producer,
        }));
        assert_eq!(answer, self.model.append(request), "append");
        self.check_head(request.name);
    }

    fn crowd(&mut self, first: u8, count: u8) {
        let names: Vec<u8> = (0..count).map(|number| NAMES + (first + number) % CROWD).collect();
        let requests: Vec<Create> = names.iter().map(|&name| plain_creation(name)).collect();
        let creations = requests.iter().map(|request| self.store.create(request.for_store()));
        for (answer, request) in self.wait_for(join_all(creations)).into_iter().zip(&requests) {
            let existed = certain(answer).map(|created| created.existed);
            assert_eq!(existed, self.model.create(request).map(|created| created.existed), "create");
        }
        let requests: Vec<Append> = names.iter().map(|&name| plain_append(name)).collect();
        let appends = requests.iter().map(|request| self.store.append(request.for_store()));
        for (answer, request) in self.wait_for(join_all(appends)).into_iter().zip(&requests) {
            let tail = certain(answer).map(|appended| appended.tail);
            assert_eq!(tail, self.model.append(request).map(|appended| appended.tail), "append");
        }
    }

    fn delete(&mut self, name: u8) {
        let answer = certain(self.wait_for(self.store.delete(stream_name(name))));
        assert_eq!(answer, self.model.delete(name), "delete");
        self.check_head(name);
        self.wait_until_settled();
    }

    /// One page, compared with what the model holds there.
    fn read(&mut self, name: u8, at: At, max_bytes: usize) {
        let position = at.resolve(self.model.get(name));
        self.note(format!("read {name} from {position:?}, at most {max_bytes}"));
        let answer = self.page(name, position, max_bytes);
        match self.start_of(name, position) {
            Err(refusal) => assert_eq!(answer.map(drop), Err(refusal), "read"),
            Ok(start) => {
                let page = answer.expect("it can be read");
                check_page(self.model.get(name).expect("it is readable"), start, max_bytes, &page);
                self.check_info(name, &page.info);
                self.model.renew(name);
            }
        }
    }

    fn page(&self, name: u8, position: Position, max_bytes: usize) -> Answer<Page> {
        let request = ReadRequest { name: stream_name(name), from: offset(position), max_bytes };
        certain(self.wait_for(self.store.read(request)))
    }

    fn start_of(&self, name: u8, position: Position) -> Answer<u64> {
        let stream = self.model.readable(name)?;
        match position {
            Position::Start => Ok(stream.earliest),
            Position::Now => Ok(stream.tail()),
            Position::Byte(at) if at < stream.earliest => Err("OFFSET_GONE".into()),
            Position::Byte(at) if stream.is_position(at) => Ok(at),
            Position::Byte(_) => Err("INVALID_OFFSET".into()),
        }
    }

    /// A live reader that leaves when it has seen everything.
    fn tail(&mut self, name: u8, at: At, max_bytes: usize) {
        let position = at.resolve(self.model.get(name));
        self.note(format!("live read of {name} from {position:?}, at most {max_bytes}"));
        let answer = certain(self.wait_for(self.store.subscribe(stream_name(name), offset(position))));
        let start = match self.start_of(name, position) {
            Err(refusal) => return assert_eq!(answer.map(drop), Err(refusal), "subscribe"),
            Ok(start) => start,
        };
        let mut subscription = answer.expect("it can be read");
        let stream = self.model.get(name).expect("it is readable").clone();
        let mut at = start;
        // At the tail of an open stream nothing comes.
        while at < stream.tail() || (stream.closed.is_some() && at == start) {
            // Enough for a few batches at least, so that a large stream does not take for ever.
            let max_bytes = max_bytes.max(stream.content.len() / 16);
            let event = certain(self.wait_for(subscription.next(max_bytes))).expect("it goes on");
            match event {
                LiveEvent::Data(batch) => {
                    assert_eq!(batch.start, at, "batches are contiguous");
                    let data = batch.data.concat();
                    assert_eq!(data, stream.content[at as usize..batch.end as usize]);
                    assert!(batch.end > at, "batches are not empty");
                    at = batch.end;
                    assert!(stream.is_position(at));
                    assert_eq!(batch.up_to_date, at == stream.tail());
                    assert_eq!(batch.closed, at == stream.tail() && stream.closed.is_some());
                }
                LiveEvent::Closed { tail } => {
                    assert_eq!((tail, at), (stream.tail(), stream.tail()));
                    assert!(stream.closed.is_some());
                    break;
                }
                other => panic!("the stream did not end: {other:?}"),
            }
        }
        drop(subscription);
        // That the reader left is on its way to the shard; this comes behind it.
        self.check_head(name);
        self.model.renew(name);
    }

    /// What a description says, against the model.
    #[track_caller]
    fn check_head(&mut self, name: u8) {
        let answer = certain(self.wait_for(self.store.head(stream_name(name))));
        match self.model.readable(name) {
            Err(refusal) => assert_eq!(answer.map(drop), Err(refusal), "head of {name}"),
            Ok(_) => self.check_info(name, &answer.expect("it is there")),
        }
    }

    #[track_caller]
    fn check_info(&mut self, name: u8, info: &StreamInfo) {
        let stream = self.model.get(name).expect("it is there");
        assert_eq!(info.content_type.as_str(), stream.content_type);
        assert_eq!(info.tail, stream.tail(), "tail of {name}");
        assert_eq!(info.retention, stream.retention);
        assert_eq!(info.closed, stream.closed.is_some(), "closure of {name}");
        let remaining_ms = stream.life.as_ref().map(|life| match life {
            Life::Ttl(seconds) => seconds * 1000,
            Life::At { ms, .. } => (ms - self.model.now_ms).unsigned_abs(),
        });
        assert_eq!(info.remaining_ms, remaining_ms);
        let known = *self.incarnations.entry(stream.uid).or_insert(info.incarnation);
        assert_eq!(info.incarnation, known, "an incarnation keeps its id");
        let others =
            self.incarnations.iter().filter(|(uid, id)| **uid != stream.uid && **id == known).count();
        assert_eq!(others, 0, "incarnations are never used again");
        self.model.learn(name, info.earliest);
    }

    /// Waits for what ends by itself: expired streams, and deleted ones whose last fork ended.
    fn wait_until_settled(&mut self) {
        for name in 0..NAMES {
            let Err(expected) = self.model.readable(name).map(drop) else { continue };
            let deadline = Instant::now() + PATIENCE;
            loop {
                let answer = certain(self.wait_for(self.store.head(stream_name(name)))).map(drop);
                if answer == Err(expected.clone()) {
                    break;
                }
                assert_eq!(answer, Err("GONE".into()), "{name} has ended");
                assert!(Instant::now() < deadline, "{name} is kept for forks that are gone");
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Content that has become too old leaves with the next round of its shard, and is gone when that is durable.
    fn wait_until_cut(&mut self) {
        if self.model.streams.values().all(|stream| stream.retention.max_age_secs.is_none()) {
            return;
        }
        self.wait_until_writable();
        for probe in self.probes() {
            // Readers are told at the end of a round.
            let name = stream_name(probe);
            let tail = certain(self.wait_for(self.store.subscribe(name, RequestedOffset::Now)));
            certain(self.wait_for(self.store.append(plain_append(probe).for_store()))).expect("it is there");
            let event = self.wait_for(tail.expect("it is there").next(1 << 20));
            assert!(matches!(certain(event), Ok(LiveEvent::Data(_))), "somebody else ended it");
        }
        for name in 0..NAMES {
            self.check_head(name);
        }
    }

    fn reopen(&mut self) {
        self.store = open(&self.setting, &self.below, &self.clock);
        self.model.reopened();
        self.wait_until_settled();
        self.wait_until_cut();
        self.check_everything();
    }

    fn crash(&mut self) {
        if let Below::Disks(disks) = &self.below {
            disks.cut_power();
        }
        // Ends its threads; its disks are gone already.
        self.wait_for(self.store.shutdown());
        self.reopen();
    }

    /// Every stream, whole.
    fn check_everything(&mut self) {
        for name in 0..NAMES + CROWD {
            self.check_head(name);
            let Ok(stream) = self.model.readable(name).cloned() else { continue };
            let max_bytes = 100.max(stream.content.len() / 8);
            let mut at = self.model.get(name).expect("it is readable").earliest;
            loop {
                let page = self.page(name, Position::Byte(at), max_bytes).expect("it can be read");
                check_page(&stream, at, max_bytes, &page);
                at = page.end;
                if page.up_to_date() {
                    break;
                }
            }
            self.model.renew(name);
        }
    }

    /// Deletes all there is. Then as much room is left as at the beginning.
    fn check_that_nothing_is_left(&mut self) {
        for name in 0..NAMES {
            self.delete(name);
        }
        for name in NAMES..NAMES + CROWD {
            if self.model.get(name).is_some() {
                self.delete(name);
            }
        }
        for probe in self.probes() {
            // Not all sequences made them.
            let _ = self.wait_for(self.store.delete(stream_name(probe)));
        }
        let room = match self.below {
            Below::Memory => MEMORY_BYTES as usize,
            _ => 1,
        };
        for name in 0..NAMES + CROWD + PROBES_MAX {
            let mut request = plain_creation(name);
            if name == 0 && self.setting.stream_bytes_max.is_none() {
                request.body = Body::Bytes(vec![1; room]);
            }
            let answer = certain(self.wait_for(self.store.create(request.for_store())));
            assert!(answer.is_ok(), "room for {name}: {answer:?}");
        }
    }
}

fn offset(position: Position) -> RequestedOffset {
    match position {
        Position::Start => RequestedOffset::Start,
        Position::Now => RequestedOffset::Now,
        Position::Byte(at) => RequestedOffset::At(at),
    }
}

/// `protocol.md` §12.
#[track_caller]
fn check_page(stream: &Stream, start: u64, max_bytes: usize, page: &Page) {
    assert_eq!(page.start, start);
    let data = page.data.concat();
    assert_eq!(data.len() as u64, page.end - page.start);
    assert!(page.end <= stream.tail(), "a page of {start}..{} and a tail of {}", page.end, stream.tail());
    assert!(
        data == stream.content[start as usize..page.end as usize],
        "the bytes from {start} to {}",
        page.end
    );
    assert_eq!(page.up_to_date(), page.end == stream.tail());
    assert!(page.end > start || start == stream.tail(), "a page is never empty while there is data");
    assert!(stream.is_position(page.end), "JSON pages end between messages");
    if data.len() > max_bytes {
        let messages = stream.boundaries.range(start + 1..=page.end).count();
        assert!(stream.is_json() && messages == 1, "{} bytes in a page of {max_bytes}", data.len());
    }
}
