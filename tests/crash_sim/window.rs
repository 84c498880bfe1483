//! A stream that keeps only so much, and a fork of it. One producer appends to it, so everything that it ever held is known by
//! position: what can be read is exactly the end of that, from a place that the limits allow, and never from an earlier one
//! than somebody has seen. The fork keeps what was there when it was made.

use durable_streams_server::engine::api::{
    Body, CreateError, CreateRequest, ForkAnchor, ForkRequest, LookupError, Page, ReadError, ReadRequest,
    Retention,
};
use durable_streams_server::protocol::name::StreamName;
use durable_streams_server::protocol::offset::RequestedOffset;

use crate::ledger::{Writer, content_type};
use crate::sim_disk::Dice;
use crate::world::{Down, Step, World, within};

pub(crate) struct Window {
    name: StreamName,
    fork_name: StreamName,
    retention: Retention,
    created: bool,
    writer: Writer,
    /// The last beginning that was seen.
    earliest: u64,
    /// When each record was first sent.
    sent_ms: Vec<i64>,
    fork: Fork,
    dice: Dice,
}

enum Fork {
    /// There is none, or perhaps there is.
    Unknown,
    /// It has these bytes, from this position on.
    Made(u64, Vec<u8>),
    /// It is to go, and perhaps has gone.
    Ending,
}

impl Window {
    pub(crate) fn new(id: usize, dice: &mut Dice) -> Self {
        let name = StreamName::from_stored(&format!("window/{}", dice.roll(100)));
        let fork_name = StreamName::from_stored(&format!("fork/{}", dice.roll(100)));
        let max_bytes = [Some(1), Some(400), Some(6_000), None][dice.roll(4)];
        let max_age_secs = if dice.roll(2) == 0 || max_bytes.is_none() { Some(4) } else { None };
        Self {
            writer: Writer::new(id, name.clone(), dice),
            name,
            fork_name,
            retention: Retention { max_age_secs, max_bytes },
            created: false,
            earliest: 0,
            sent_ms: Vec::new(),
            fork: Fork::Unknown,
            dice: Dice::new(dice.roll(1 << 30) as u64),
        }
    }

    /// Makes it, unless it is there.
    pub(crate) async fn create(&mut self, world: &World) -> Step {
        let request = self.creation(self.name.clone(), self.retention, None);
        let existed = make(world, request).await?;
        assert!(existed || !self.created, "the window is gone");
        self.created = true;
        Ok(())
    }

    fn creation(&self, name: StreamName, retention: Retention, fork: Option<ForkRequest>) -> CreateRequest {
        let content_type = Some(content_type());
        CreateRequest {
            name,
            content_type,
            lifetime: None,
            retention,
            closed: false,
            body: Body::default(),
            fork,
        }
    }

    /// Appends, and looks at what is left now and then.
    pub(crate) async fn work(&mut self, world: &World, bursts: usize) -> Step {
        for _ in 0..bursts {
            let now_ms = world.clock.now_ms();
            let outcome = self.writer.work(world, 1).await;
            self.sent_ms.resize(self.writer.len(), now_ms);
            outcome?;
            let page = read(world, &self.name).await?;
            self.check_page(world, &page);
        }
        Ok(())
    }

    /// All that was promised.
    pub(crate) async fn check(&mut self, world: &World) -> Step {
        self.create(world).await?;
        let page = read(world, &self.name).await?;
        let there = self.check_page(world, &page);
        self.writer.repeat(world, there).await?;
        self.check_fork(world).await
    }

    /// How many records there have been by the end of this page.
    fn check_page(&mut self, world: &World, page: &Page) -> usize {
        let (content, starts) = self.writer.history();
        let there = starts.iter().position(|start| *start == page.end).expect("a record ends at the tail");
        assert!(there >= self.writer.acknowledged(), "{there} of {} records", self.writer.acknowledged());
        assert_eq!(page.info.earliest, page.start);
        assert!(page.data.concat() == content[page.start as usize..page.end as usize], "bytes of the window");
        assert!(page.start >= self.earliest, "from {} it came back to {}", self.earliest, page.start);
        let gone = starts.iter().position(|start| *start == page.start).expect("a record begins there");
        self.earliest = page.start;
        world.note(format!("window: {} to {} is there: records {gone} to {there}", page.start, page.end));
        let kept = page.end - page.start;
        let Retention { max_age_secs, max_bytes } = self.retention;
        if let Some(max) = max_bytes {
            let largest = starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
            assert!(kept < max + (max / 32).max(1) + largest, "{kept} bytes are there");
        }
        if gone > 0 && max_bytes.is_none_or(|max| kept < max) {
            let age_ms = max_age_secs.map(|secs| secs as i64 * 1000).expect("there is another limit");
            let at_ms = self.sent_ms[gone - 1];
            assert!(at_ms + age_ms <= world.clock.now_ms(), "record {} is gone too early", gone - 1);
        }
        there
    }

    /// What the fork has, whatever its source has lost. Makes or ends it, now and then.
    async fn check_fork(&mut self, world: &World) -> Step {
        if matches!(self.fork, Fork::Ending) || self.dice.roll(4) == 0 {
            self.fork = Fork::Ending;
            match within(world.store().delete(self.fork_name.clone())).await {
                Ok(()) | Err(LookupError::Refused(_)) => self.fork = Fork::Unknown,
                Err(LookupError::Unavailable(why)) => {
                    world.expect_unreadable(why);
                    return Err(Down);
                }
            }
        }
        if matches!(self.fork, Fork::Unknown) {
            let source = self.name.clone();
            let fork = ForkRequest { source, anchor: ForkAnchor::Tail, sub_offset: 0 };
            let request = self.creation(self.fork_name.clone(), Retention::default(), Some(fork));
            make(world, request).await?;
        }
        let page = read(world, &self.fork_name).await?;
        let found = page.data.concat();
        if let Fork::Made(start, content) = &self.fork {
            assert!(page.start == *start && found == *content, "bytes of the fork");
        } else {
            let (content, starts) = self.writer.history();
            assert!(starts.contains(&page.start) && starts.contains(&page.end));
            assert!(found == content[page.start as usize..page.end as usize], "bytes of the new fork");
            self.fork = Fork::Made(page.start, found);
        }
        Ok(())
    }
}

/// Makes a stream, or finds that it is there. Says which.
async fn make(world: &World, request: CreateRequest) -> Step<bool> {
    match within(world.store().create(request)).await {
        Ok(created) => Ok(created.existed),
        Err(CreateError::Unavailable(why)) => {
            world.expect_unreadable(why);
            Err(Down)
        }
        Err(CreateError::Full(full)) => {
            world.note(format!("window: {full}"));
            world.expect_trouble(&[]);
            Err(Down)
        }
        Err(CreateError::Refused(refusal)) => panic!("it can be made: {refusal}"),
    }
}

/// All of a stream that is kept.
async fn read(world: &World, name: &StreamName) -> Step<Page> {
    let request = ReadRequest { name: name.clone(), from: RequestedOffset::Start, max_bytes: 1 << 24 };
    match within(world.store().read(request)).await {
        Ok(page) => {
            assert!(page.up_to_date(), "it fits into one page");
            Ok(page)
        }
        Err(ReadError::Unavailable(why)) => {
            world.expect_unreadable(why);
            Err(Down)
        }
        Err(other) => panic!("it can be read: {other}"),
    }
}
