//! Shards by hand: the test is their commit threads and carries their mail, so it can meet them at any moment.

use bytes::Bytes;
use crossbeam_channel::Receiver;

use super::*;
use crate::config::Config;
use crate::engine::EngineOptions;
use crate::engine::api::{AppendRequest, Body, CreateRequest, ForkAnchor, ForkRequest, Retention};
use crate::engine::backup::Backups;
use crate::engine::clock::Clock;
use crate::engine::mailbox::Mailbox;
use crate::engine::quota::{QuotaLimits, Quotas};
use crate::engine::read_budget::ReadBudget;
use crate::engine::request::{
    CreateAnswer, CreateStep, Place, PlanRequest, SourceAnswer, SourceRequest, Target,
};
use crate::protocol::content_type::ContentType;
use crate::protocol::offset::RequestedOffset;
use crate::storage::committer::{Completion, SubmittedGroups};
use crate::storage::pieces::Pieces;
use crate::storage::{DiskUse, ReadTarget, Recovered, RoomRule, StorageError, frame};
use crate::stream::create::ResolvedFork;
use crate::stream::event::Event;

const SOURCE: &str = "source";
const FORK: &str = "fork";
const DISK: DiskUse = DiskUse { taken: 0, room: None };
const START_MS: i64 = 1_700_000_000_000;

/// There is nothing on the disk.
#[derive(Debug)]
struct Nothing;

impl ColdReader for Nothing {
    fn read(&self, _: u64, _: u64, _: u64, _: &mut dyn FnMut(&[u8])) -> Result<(), StorageError> {
        Err(StorageError::Missing)
    }

    fn read_into(&self, _: u64, _: u64, _: u64, _: &mut dyn ReadTarget) -> Result<(), StorageError> {
        Err(StorageError::Missing)
    }

    fn boundary_at_or_before(&self, _: u64, _: u64) -> Result<u64, StorageError> {
        Err(StorageError::Missing)
    }
}

/// A shard, and what comes out of it.
struct Rig {
    shard: Shard,
    mail: Receiver<Mail>,
    submitted: SubmittedGroups,
    /// Groups that the commit thread has, and those that are durable.
    queued: VecDeque<(u64, Bytes)>,
    journal: Vec<(u64, Bytes)>,
}

/// The shards of a source and of its fork.
fn rigs() -> (Rig, Rig) {
    let (mailboxes, mail): (Vec<_>, Vec<_>) = (0..2).map(|_| Mailbox::new()).unzip();
    let limits = QuotaLimits {
        memory_bytes_max: None,
        streams_max: u64::MAX,
        disk_bytes_max: None,
        room: RoomRule::new(0, 2, 0),
    };
    let backups = Backups::new(&Config::default(), &EngineOptions::default());
    let reads = ReadBudget::new(1 << 20, 2);
    let clock = Clock::manual(START_MS);
    let shared = Arc::new(Shared::new(0, mailboxes, Quotas::new(2, limits), reads, clock, backups));
    let mut rigs = mail.into_iter().enumerate().map(|(index, mail)| Rig::new(index, &shared, mail));
    let mut next = || rigs.next().expect("there are two");
    (next(), next())
}

impl Rig {
    fn new(index: usize, shared: &Arc<Shared>, mail: Receiver<Mail>) -> Self {
        let limits = ShardLimits {
            stream: StreamLimits {
                stream_bytes_max: None,
                producers_max: 1,
                retention: Retention { max_age_secs: None, max_bytes: None },
            },
            staged_bytes_max: u64::MAX,
            journal_bytes: u64::MAX,
            recent_bytes_max: u64::MAX,
        };
        let (committer, submitted) = Committer::by_hand();
        let mut shard = Shard::new(index, Arc::clone(shared), limits);
        shard.attach_committer(committer);
        shard.restore(Recovered { next_group: 1, ..Recovered::default() }, Arc::new(Nothing)).unwrap();
        Self { shard, mail, submitted, queued: VecDeque::new(), journal: Vec::new() }
    }

    /// The answer comes when it does.
    fn ask<T>(&mut self, request: impl FnOnce(Reply<T>) -> Request) -> oneshot::Receiver<T> {
        let (sender, answer) = oneshot::channel();
        self.shard.handle(request(Reply { sender, origin: Origin::Foreign }));
        answer
    }

    fn create(
        &mut self,
        name: &str,
        retention: Retention,
        fork: Option<ResolvedFork>,
    ) -> oneshot::Receiver<CreateAnswer> {
        let source = || ForkRequest {
            source: StreamName::from_stored(SOURCE),
            anchor: ForkAnchor::Start,
            sub_offset: 0,
        };
        let request = CreateRequest {
            name: StreamName::from_stored(name),
            content_type: None,
            lifetime: None,
            retention,
            closed: false,
            body: Body::default(),
            fork: fork.is_some().then(source),
        };
        self.ask(|reply| Request::Create(Box::new(request), fork.map(Box::new), reply))
    }

    fn append(&mut self, name: &str, data: &'static str) {
        let request = AppendRequest {
            name: StreamName::from_stored(name),
            content_type: Some(ContentType::octet_stream()),
            body: Body { raw: data.into(), json: None },
            close: false,
            stream_seq: None,
            producer: None,
        };
        drop(self.ask(|reply| Request::Append(Box::new(request), reply)));
        self.shard.finish_round();
    }

    /// What the source offers to a fork of its beginning.
    fn offer(&mut self) -> ResolvedFork {
        let request = SourceRequest { name: StreamName::from_stored(SOURCE), hold: false };
        let answer: SourceAnswer = self.ask(|reply| Request::Source(request, reply)).try_recv().unwrap();
        let fork = answer.unwrap().fork;
        ResolvedFork { anchor: fork.earliest, point: fork.earliest, ..fork }
    }

    /// The commit thread reports that this many more of the submitted groups are durable, or all that there are.
    fn commit(&mut self, groups: usize) {
        self.shard.finish_round();
        self.queued.extend(self.submitted.take().into_iter().map(|group| (group.seq, whole(&group.frames))));
        self.journal.extend(self.queued.drain(..groups.min(self.queued.len())));
        let through = self.journal.last().map_or(0, |(group, _)| *group);
        self.shard.completed(Completion::Durable { through });
    }

    /// It reports a failure.
    fn fail(&mut self) {
        self.shard.finish_round();
        drop(self.submitted.take());
        self.queued.clear();
        self.shard.completed(Completion::Failed { error: "as told".to_owned() });
    }

    /// It reports that the storage is open again, and has this journal.
    fn reopen(&mut self, journal: Vec<(u64, Bytes)>) {
        let next_group = journal.last().map_or(1, |(group, _)| group + 1);
        let recovered = Recovered { groups: journal, next_group, ..Recovered::default() };
        self.shard.completed(Completion::Reopened { recovered, reader: Arc::new(Nothing), disk: DISK });
    }

    fn fork_mail(&self) -> Vec<ForkMail> {
        let mail = self.mail.try_iter();
        mail.filter_map(|mail| if let Mail::Fork(mail) = mail { Some(mail) } else { None }).collect()
    }

    /// Takes what other shards have sent.
    fn take_mail(&mut self) {
        for mail in self.fork_mail() {
            self.shard.handle_fork_mail(mail);
        }
    }

    fn id(&self, name: &str) -> u64 {
        self.shard.names.get(&StreamName::from_stored(name), &self.shard.streams).unwrap()
    }

    fn has_pins(&self) -> bool {
        self.shard.entry(self.id(SOURCE)).unwrap().state.is_pinned()
    }
}

fn whole(pieces: &Pieces) -> Bytes {
    pieces.iter().collect::<Vec<_>>().concat().into()
}

/// Makes the fork that was offered, durably.
#[track_caller]
fn make_fork(source: &mut Rig, fork: &mut Rig, offer: ResolvedFork) {
    let mut created = fork.create(FORK, Retention::default(), Some(offer));
    source.take_mail();
    source.commit(usize::MAX);
    fork.take_mail();
    fork.commit(usize::MAX);
    assert!(matches!(created.try_recv().unwrap(), Ok(CreateStep::Done(_))));
    assert!(source.has_pins());
}

/// A source with a fork, both durable.
fn forked() -> (Rig, Rig) {
    let (mut source, mut fork) = rigs();
    drop(source.create(SOURCE, Retention::default(), None));
    source.append(SOURCE, "inherited");
    source.commit(usize::MAX);
    let offer = source.offer();
    make_fork(&mut source, &mut fork, offer);
    (source, fork)
}

/// The source's shard asks what it asks after each opening.
fn check_pins(source: &mut Rig, fork: &mut Rig) {
    source.shard.check_pins();
    fork.take_mail();
    source.take_mail();
}

#[test]
fn a_pin_stays_while_the_shard_of_the_fork_is_not_open() {
    let (mut source, mut fork) = forked();
    drop(fork.ask(|reply| Request::Delete(StreamName::from_stored(FORK), reply)));
    fork.fail();
    check_pins(&mut source, &mut fork);
    assert!(source.has_pins(), "the end of the fork was not durable");

    // What is read contradicts itself, so nothing of it is in RAM.
    let mut frames = Pieces::default();
    frame::encode(&mut frames, 77, &Event::SoftDeleted);
    fork.reopen(vec![(1, whole(&frames))]);
    assert!(matches!(fork.shard.phase, Phase::Failed));
    check_pins(&mut source, &mut fork);
    assert!(source.has_pins(), "nobody knows whether there is a fork");

    // That takes a start, after a repair.
    fork.shard.phase = Phase::Recovering;
    fork.reopen(fork.journal.clone());
    source.take_mail();
    assert!(source.has_pins(), "there is");
    check_pins(&mut source, &mut fork);
    assert!(source.has_pins());
}

#[test]
fn a_pin_that_was_asked_for_meanwhile_goes_when_the_shard_is_open_and_has_no_such_fork() {
    let (mut source, mut fork) = forked();
    fork.fail();
    check_pins(&mut source, &mut fork);
    assert!(source.has_pins());
    fork.reopen(Vec::new());
    source.take_mail();
    assert!(!source.has_pins());
}

/// Keeps the last append.
const SHORT: Retention = Retention { max_age_secs: None, max_bytes: Some(4) };

#[test]
fn a_source_that_was_cut_behind_the_anchor_since_it_was_asked_is_not_pinned() {
    let (mut source, mut fork) = rigs();
    drop(source.create(SOURCE, SHORT, None));
    source.append(SOURCE, "aaaa");
    source.commit(usize::MAX);
    let offer = source.offer();
    assert_eq!(offer.anchor, 0);
    let mut created = fork.create(FORK, Retention::default(), Some(offer));
    // Staged is enough: who pins it then is in the same group, or in a later one.
    source.append(SOURCE, "bbbb");
    source.take_mail();
    fork.take_mail();
    assert!(matches!(created.try_recv().unwrap(), Ok(CreateStep::SourceChanged)));
    source.commit(usize::MAX);
    assert!(!source.has_pins());

    let offer = source.offer();
    assert_eq!(offer.anchor, 4);
    make_fork(&mut source, &mut fork, offer);
}

#[test]
fn content_stays_in_ram_until_its_own_cut_is_durable() {
    let (mut rig, _) = rigs();
    drop(rig.create(SOURCE, SHORT, None));
    for data in ["aaaa", "bbbb", "cccc"] {
        rig.append(SOURCE, data);
    }
    let content = |rig: &mut Rig| {
        let request = PlanRequest {
            target: Target::Name(StreamName::from_stored(SOURCE)),
            from: RequestedOffset::Start,
            bytes_max: 100,
            start_checked: true,
        };
        let answer = rig.ask(|reply| Request::Plan(request, reply)).try_recv().unwrap();
        let regions = answer.unwrap().regions.into_iter();
        let bytes = regions.map(|region| match region.place {
            Place::Memory(pieces) => pieces.concat(),
            place => panic!("it is not in RAM: {place:?}"),
        });
        String::from_utf8(bytes.collect::<Vec<_>>().concat()).unwrap()
    };
    // The creation came with the first append; the cut before the last one is on its way while the one before is done.
    rig.commit(2);
    assert_eq!(content(&mut rig), "bbbb");
    rig.commit(usize::MAX);
    assert_eq!(content(&mut rig), "cccc");
}
