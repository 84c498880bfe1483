//! What all who take part in a run share: the store of the moment, its disk, the time, and the record of what happened.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use durable_streams_server::engine::api::{Storage, Unavailable};
use durable_streams_server::engine::clock::Clock;

use crate::op::Verdict;
use crate::sim_disk::{Dice, SimDisk, Style};

/// How long something that has to happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const START_MS: i64 = 1_700_000_000_000;
/// Lines of the record that are kept.
const LINES: usize = 400;

/// The disk does not work, and what was under way is given up.
#[derive(Debug)]
pub(crate) struct Down;

pub(crate) type Step<T = ()> = Result<T, Down>;

pub(crate) struct World {
    /// `None` = not opened yet.
    store: Option<Arc<dyn Storage>>,
    pub(crate) disk: SimDisk,
    pub(crate) clock: Clock,
    /// Deletions by name: sent, and certainly over.
    ends: RefCell<BTreeMap<u8, (u64, u64)>>,
    record: RefCell<VecDeque<String>>,
}

impl World {
    pub(crate) fn new(disk: SimDisk, clock: Clock) -> Self {
        Self { store: None, disk, clock, ends: RefCell::default(), record: RefCell::default() }
    }

    pub(crate) fn store(&self) -> &dyn Storage {
        &**self.store.as_ref().expect("the store is open")
    }

    pub(crate) fn has_store(&self) -> bool {
        self.store.is_some()
    }

    pub(crate) fn opened(&mut self, store: Arc<dyn Storage>) {
        self.store = Some(store);
    }

    /// Stops the store in good order.
    pub(crate) async fn shut_down(&mut self) {
        let store = self.store.take().expect("the store is open");
        self.note("the store is shut down".into());
        within(store.shutdown()).await;
    }

    /// The power is cut and comes back. Nobody has opened the store by then.
    pub(crate) async fn cut_power(&mut self, dice: &mut Dice, style: Style) {
        self.disk = self.disk.power_cut(dice, style);
        if let Some(store) = self.store.take() {
            // Ends its threads; its disk is gone already.
            within(store.shutdown()).await;
        }
    }

    pub(crate) fn note(&self, line: String) {
        let mut record = self.record.borrow_mut();
        if record.len() == LINES {
            record.pop_front();
        }
        record.push_back(line);
    }

    /// What happened, and the last calls of the disk.
    pub(crate) fn record(&self) -> String {
        let lines: String = self.record.borrow().iter().map(|line| format!("  {line}\n")).collect();
        format!("{lines}last calls of the disk, and syncs among them:\n{}", self.disk.trace())
    }

    /// A deletion is about to be sent.
    pub(crate) fn is_about_to_end(&self, name: u8) {
        self.ends.borrow_mut().entry(name).or_default().0 += 1;
    }

    /// A deletion was answered.
    pub(crate) fn has_ended(&self, name: u8) {
        self.ends.borrow_mut().entry(name).or_default().1 += 1;
    }

    /// Deletions that were sent, and how many of them can have no effect on what is asked for from now on.
    pub(crate) fn ends(&self, name: u8) -> (u64, u64) {
        self.ends.borrow().get(&name).copied().unwrap_or_default()
    }

    /// Only a broken disk excuses these.
    pub(crate) fn expect_trouble(&self, verdicts: &[Verdict]) {
        let broken = self.disk.is_frozen() || self.disk.has_failed();
        assert!(broken, "the disk works, and yet: {verdicts:?}");
    }

    /// The same for a read.
    pub(crate) fn expect_unreadable(&self, why: Unavailable) {
        self.note(format!("→ {why}"));
        let broken = self.disk.is_frozen() || self.disk.has_failed();
        assert!(broken, "the disk works, and yet: {why}");
    }
}

/// The answer, which has to come.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("there is an answer in time")
}
