//! One stream that all clients append to, each as a producer: every record that was acknowledged is there once, those of one
//! producer are in order, and a record of several messages is there as a whole.

use bytes::Bytes;
use durable_streams_server::engine::api::{
    AppendError, AppendRefusal, AppendRequest, Body, CreateError, CreateRequest, ProducerTag, ReadError,
    ReadRequest, Retention,
};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::json;
use durable_streams_server::protocol::name::StreamName;
use durable_streams_server::protocol::offset::RequestedOffset;
use futures_util::future::join_all;

use crate::sim_disk::Dice;
use crate::world::{Down, Step, World, within};

pub(crate) struct Ledger {
    name: StreamName,
    created: bool,
    /// All that was ever read of it.
    seen: Vec<u8>,
    pub(crate) writers: Vec<Writer>,
}

/// One producer.
pub(crate) struct Writer {
    id: usize,
    name: StreamName,
    dice: Dice,
    /// What was sent, by sequence number.
    records: Vec<Record>,
    /// So many of the first ones were acknowledged.
    acknowledged: usize,
}

struct Record {
    body: Bytes,
    stored: Vec<u8>,
    /// End of it, as acknowledged.
    tail: Option<u64>,
}

pub(crate) fn content_type() -> ContentType {
    ContentType::parse(b"application/json").expect("it is well-formed")
}

impl Ledger {
    pub(crate) fn new(writers: usize, dice: &mut Dice) -> Self {
        let name = StreamName::from_stored(&format!("ledger/{}", dice.roll(100)));
        let writers = (0..writers).map(|id| Writer::new(id, name.clone(), dice)).collect();
        Self { name: name.clone(), created: false, seen: Vec::new(), writers }
    }

    /// Makes it, unless it is there.
    pub(crate) async fn create(&mut self, world: &World) -> Step {
        let request = CreateRequest {
            name: self.name.clone(),
            content_type: Some(content_type()),
            lifetime: None,
            retention: Retention::default(),
            closed: false,
            body: Body::default(),
            fork: None,
        };
        match within(world.store().create(request)).await {
            Ok(created) => {
                assert!(created.existed || !self.created, "the ledger is gone");
                self.created = true;
                Ok(())
            }
            Err(CreateError::Unavailable(why)) => {
                world.expect_unreadable(why);
                Err(Down)
            }
            Err(CreateError::Full(full)) => {
                world.note(format!("ledger: {full}"));
                world.expect_trouble(&[]);
                Err(Down)
            }
            Err(CreateError::Refused(refusal)) => panic!("the ledger can be made: {refusal}"),
        }
    }

    /// Reads all of it and checks each record. Then each writer sends what it was not told about, and what it was told last.
    pub(crate) async fn check(&mut self, world: &World) -> Step {
        self.create(world).await?;
        let request =
            ReadRequest { name: self.name.clone(), from: RequestedOffset::Start, max_bytes: 1 << 24 };
        let page = match within(world.store().read(request)).await {
            Ok(page) => page,
            Err(ReadError::Unavailable(why)) => {
                world.expect_unreadable(why);
                return Err(Down);
            }
            Err(other) => panic!("the ledger can be read: {other}"),
        };
        assert!(page.up_to_date(), "the ledger fits into one page");
        let content = page.data.concat();
        assert!(content.starts_with(&self.seen), "bytes of the ledger that were read are gone");
        let there = self.count(&content);
        self.seen = content;
        for (writer, there) in self.writers.iter_mut().zip(there) {
            writer.repeat(world, there).await?;
        }
        Ok(())
    }

    /// How many records of each writer there are: each once, in order, nothing else.
    fn count(&self, content: &[u8]) -> Vec<usize> {
        let mut there = vec![0; self.writers.len()];
        let mut at = 0;
        while at < content.len() {
            let next = self.writers.iter().zip(&there).position(|(writer, &count)| {
                writer.records.get(count).is_some_and(|record| content[at..].starts_with(&record.stored))
            });
            let Some(next) = next else {
                let rest = String::from_utf8_lossy(&content[at..content.len().min(at + 100)]).into_owned();
                panic!("the ledger goes on with what is nobody's next record: {rest}");
            };
            let record = &self.writers[next].records[there[next]];
            at += record.stored.len();
            if let Some(tail) = record.tail {
                assert_eq!(tail, at as u64, "the record is where it was acknowledged to be");
            }
            there[next] += 1;
        }
        for (writer, count) in self.writers.iter().zip(&there) {
            let acknowledged = writer.acknowledged;
            assert!(*count >= acknowledged, "{count} of {acknowledged} records of writer {}", writer.id);
        }
        there
    }
}

impl Writer {
    pub(crate) fn new(id: usize, name: StreamName, dice: &mut Dice) -> Self {
        let dice = Dice::new(dice.roll(1 << 30) as u64);
        Self { id, name, dice, records: Vec::new(), acknowledged: 0 }
    }

    /// Number of records that were sent, or are about to be.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// So many of the first ones were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged
    }

    /// What a stream has held that nobody else appends to, if all was stored; where each record begins, and the end.
    pub(crate) fn history(&self) -> (Vec<u8>, Vec<u64>) {
        let (mut content, mut starts) = (Vec::new(), vec![0]);
        for record in &self.records {
            content.extend_from_slice(&record.stored);
            starts.push(content.len() as u64);
        }
        (content, starts)
    }

    /// Appends so many times, some of them at once.
    pub(crate) async fn work(&mut self, world: &World, bursts: usize) -> Step {
        for _ in 0..bursts {
            if world.disk.is_frozen() || self.acknowledged < self.records.len() {
                return Err(Down);
            }
            for _ in 0..=self.dice.roll(3) {
                self.draw();
            }
            self.send(world, self.acknowledged, self.acknowledged).await?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn draw(&mut self) {
        let seq = self.records.len();
        let count = 1 + self.dice.roll(3);
        let filler = "*".repeat([10, 100, 3_000][self.dice.roll(3)]);
        let id = self.id;
        let message = |at: usize| format!(r#"{{"w":{id},"s":{seq},"m":{at},"f":"{filler}"}}"#);
        let messages: Vec<String> = (0..count).map(message).collect();
        let body = Bytes::from(format!("[{}]", messages.join(",")));
        let stored = messages.iter().map(|message| format!("{message},")).collect::<String>().into_bytes();
        self.records.push(Record { body, stored, tail: None });
    }

    /// After a failure, with so many records there.
    pub(crate) async fn repeat(&mut self, world: &World, there: usize) -> Step {
        world.note(format!("ledger: {there} of {} records of writer {}", self.records.len(), self.id));
        let from = self.acknowledged.saturating_sub(1);
        self.send(world, from, there).await
    }

    /// Sends these records at once. The first `there` of all records are known to be there.
    async fn send(&mut self, world: &World, from: usize, there: usize) -> Step {
        let to = self.records.len();
        let requests: Vec<_> = (from..to).map(|seq| self.request(seq)).collect();
        let sent = requests.into_iter().map(|request| world.store().append(request));
        let answers = within(join_all(sent)).await;
        let mut outcome = Ok(());
        for (seq, answer) in (from..to).zip(answers) {
            world.note(format!("ledger: writer {} record {seq} → {answer:?}", self.id));
            match answer {
                Ok(appended) => {
                    let duplicate = seq < there;
                    assert_eq!(appended.duplicate, duplicate, "record {seq} of writer {}", self.id);
                    let last = if duplicate { there - 1 } else { seq };
                    assert_eq!(
                        appended.producer,
                        Some((0, last as u64)),
                        "record {seq} of writer {}",
                        self.id
                    );
                    if !duplicate {
                        self.records[seq].tail = Some(appended.tail);
                    }
                    // With all before it, whatever was said of those.
                    self.acknowledged = self.acknowledged.max(seq + 1);
                }
                Err(AppendError::Unavailable(why)) => {
                    world.expect_unreadable(why);
                    outcome = Err(Down);
                }
                Err(AppendError::Full(_)) => {
                    world.expect_trouble(&[]);
                    outcome = Err(Down);
                }
                Err(AppendError::Refused(AppendRefusal::SequenceGap { .. })) if outcome.is_err() => {}
                Err(AppendError::Refused(refusal)) => panic!("record {seq} can be appended: {refusal}"),
            }
        }
        outcome
    }

    fn request(&self, seq: usize) -> AppendRequest {
        let raw = self.records[seq].body.clone();
        let json = Some(json::parse_body(&raw, 8));
        AppendRequest {
            name: self.name.clone(),
            content_type: Some(content_type()),
            body: Body { raw, json },
            close: false,
            stream_seq: None,
            producer: Some(ProducerTag {
                id: Bytes::from(format!("writer-{}", self.id)),
                epoch: 0,
                seq: seq as u64,
            }),
        }
    }
}
