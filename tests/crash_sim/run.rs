//! One run: clients at work on a disk that stops again and again, and what is checked in between.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use durable_streams_server::engine::clock::Clock;
use futures_util::future::{join, join_all};

use crate::client::Client;
use crate::ledger::Ledger;
use crate::observer::Observer;
use crate::sim_disk::{Count, CutPoint, Dice, Fault, Moment, SimDisk, Style, Survives};
use crate::store::{Setting, open, verify_if_made};
use crate::window::Window;
use crate::workload::{TTL_MAX, Workload};
use crate::world::{Down, PATIENCE, START_MS, Step, World};

/// Cuts during one recovery, at most.
const NESTED_MAX: usize = 3;
/// Of so many cuts one is followed by a verification, before anybody opens what is left.
const VERIFY_EVERY: u64 = 5;
const NAMES_OF_CLIENT: u8 = 4;
/// Requests may fail more than once for one call that does: those that were sent before the failure was known.
const HEALING_MAX: usize = 20;

/// What a run does; nothing else decides, but for when threads get their turn.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// What to give `DS_SIM_SEED` to have this run again.
    pub(crate) label: String,
    pub(crate) seed: u64,
    pub(crate) setting: Setting,
    pub(crate) clients: u8,
    /// Of each client, between two moments at which all of them wait.
    pub(crate) bursts: usize,
    /// So often in each life.
    pub(crate) phases: usize,
    pub(crate) body_bytes_max: usize,
    /// Time for requests to queue up behind a sync.
    pub(crate) sync_takes: Duration,
    /// Where each life of the disk ends; `None` = after the last phase.
    pub(crate) lives: Vec<Option<CutPoint>>,
    /// How often a recovery is cut as well.
    pub(crate) nested_percent: usize,
    /// What fails in the first life. There are no lifetimes then: a shard that is reopened has to be noticed to know them.
    pub(crate) breakage: Option<Breakage>,
}

/// A call that fails, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breakage {
    Call(u64, Fault),
    Read(u64),
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    pub(crate) cuts: u64,
    pub(crate) nested: u64,
    /// Of the first life.
    pub(crate) syncs: u64,
    /// Of the first life.
    pub(crate) calls: u64,
    /// Of the first life.
    pub(crate) reads: u64,
    /// Cuts that met requests under way.
    pub(crate) in_flight: u64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.cuts += other.cuts;
        self.nested += other.nested;
        self.syncs += other.syncs;
        self.calls += other.calls;
        self.reads += other.reads;
        self.in_flight += other.in_flight;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cuts, nested, in_flight, .. } = self;
        write!(f, "{cuts} cuts, {nested} of them during a recovery, {in_flight} with requests under way")
    }
}

pub(crate) struct Run {
    plan: Plan,
    dice: Dice,
    world: World,
    clients: Vec<Client>,
    ledger: Ledger,
    window: Window,
    observer: Observer,
    /// Some stream has expired; if that was not written down, it is back for a while.
    has_expired: bool,
    report: Report,
}

/// Does it, and says how to do it again if it fails.
pub(crate) fn run(plan: &Plan) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut run = Run::new(plan.clone());
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(run.all())));
    if let Err(panic) = outcome {
        eprintln!("{:#?}\n{}\nagain: DS_SIM_SEED={}", run.plan, run.world.record(), run.plan.label);
        resume_unwind(panic);
    }
    run.report
}

impl Run {
    fn new(plan: Plan) -> Self {
        let mut dice = Dice::new(plan.seed);
        let clock = Clock::manual(START_MS);
        let disk = SimDisk::new(dice.roll(1 << 30) as u64);
        disk.slow_down(plan.sync_takes);
        let mut fork = || Dice::new(dice.roll(1 << 30) as u64);
        let clients: Vec<Client> = (0..plan.clients)
            .map(|id| {
                let names: Vec<u8> = (id * NAMES_OF_CLIENT..(id + 1) * NAMES_OF_CLIENT).collect();
                let lifetimes = plan.breakage.is_none();
                let workload = Workload::new(id, names.clone(), plan.body_bytes_max, lifetimes, fork());
                Client::new(id, names, workload)
            })
            .collect();
        let observer = Observer::new(clients.iter().flat_map(Client::lasting_names).collect(), fork());
        let ledger = Ledger::new(usize::from(plan.clients), &mut fork());
        let world = World::new(disk, clock);
        let window = Window::new(usize::from(plan.clients), &mut fork());
        Self {
            plan,
            dice,
            world,
            clients,
            ledger,
            window,
            observer,
            has_expired: false,
            report: Report::default(),
        }
    }

    async fn all(&mut self) {
        for life in 0..self.plan.lives.len() {
            let point = self.plan.lives[life];
            self.world.note(format!("life {life}, which ends {}", End(point)));
            if let Some(point) = point {
                self.world.disk.cut_at(point);
            }
            let outcome = match self.plan.breakage {
                Some(breakage) if life == 0 => {
                    self.live_with(breakage).await;
                    Ok(())
                }
                _ => self.live().await,
            };
            if life == 0 {
                let disk = &self.world.disk;
                self.report.syncs = disk.syncs();
                self.report.calls = disk.calls();
                self.report.reads = disk.reads();
            }
            if outcome.is_ok() && self.dice.roll(2) == 0 {
                self.world.shut_down().await;
            }
            // What is idle has everything on the disk that it was told about.
            let style = outcome.is_ok().then_some(Survives::Nothing);
            self.report.in_flight += u64::from(outcome.is_err());
            self.recover(style).await;
        }
        for client in &mut self.clients {
            client.delete_everything(&self.world).await.expect("the disk works");
        }
        self.world.shut_down().await;
    }

    /// From opening to the end of the last phase, or to the cut.
    async fn live(&mut self) -> Step {
        if !self.world.has_store() {
            self.open()?;
        }
        self.ledger.create(&self.world).await?;
        self.window.create(&self.world).await?;
        for _ in 0..self.plan.phases {
            self.phase().await?;
            if self.dice.roll(3) == 0 {
                let ms = 100 + self.dice.roll(6_000) as i64;
                self.advance(ms);
                for client in &mut self.clients {
                    client.wait_for_ends(&self.world).await?;
                }
            }
        }
        Ok(())
    }

    /// The same while something fails: it is answered as such, passes, and nothing is lost.
    async fn live_with(&mut self, breakage: Breakage) {
        match breakage {
            Breakage::Call(number, fault) => self.world.disk.fail_call(number, fault),
            Breakage::Read(number) => self.world.disk.fail_read(number),
        }
        while self.open().is_err() {}
        for _ in 0..self.plan.phases {
            while self.ledger.create(&self.world).await.is_err()
                || self.window.create(&self.world).await.is_err()
                || self.phase().await.is_err()
            {
                self.heal().await;
            }
        }
        self.heal().await;
    }

    /// Waits until the store works again, and checks all that was promised.
    async fn heal(&mut self) {
        for _ in 0..HEALING_MAX {
            let deadline = Instant::now() + PATIENCE;
            while !self.world.store().health().is_ready() {
                assert!(Instant::now() < deadline, "{:?}", self.world.store().health());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if self.check(false).await.is_ok() {
                return;
            }
        }
        panic!("one call has failed, and the store works no more");
    }

    fn open(&mut self) -> Step {
        match open(&self.world.disk, &self.plan.setting, &self.world.clock) {
            Ok(store) => self.world.opened(store),
            Err(error) => {
                self.world.note(format!("opening fails: {error}"));
                let broken = self.world.disk.is_frozen() || self.world.disk.takes_failure();
                assert!(broken, "the store cannot be opened: {error}");
                return Err(Down);
            }
        }
        Ok(())
    }

    /// All clients and writers at once, with somebody who watches.
    async fn phase(&mut self) -> Step {
        let Self { plan, world, clients, ledger, window, observer, .. } = self;
        let (world, bursts, stop) = (&*world, plan.bursts, Cell::new(false));
        let clients = join_all(clients.iter_mut().map(|client| client.work(world, bursts)));
        let writers = join_all(ledger.writers.iter_mut().map(|writer| writer.work(world, bursts / 2)));
        let windowed = window.work(world, bursts.div_ceil(2));
        let work = async {
            let ((clients, writers), windowed) = join(join(clients, writers), windowed).await;
            stop.set(true);
            clients.into_iter().chain(writers).chain([windowed]).collect::<Step<Vec<()>>>()
        };
        let (outcome, ()) = join(work, observer.watch(world, &stop)).await;
        outcome.map(drop)
    }

    /// Lets time pass, and a little more if it were uncertain otherwise whether a stream has expired.
    fn advance(&mut self, ms: i64) {
        let start = self.clients[0].model.now_ms;
        let mut target = start + ms;
        loop {
            let latest = self.clients.iter_mut().map(|client| client.later(target)).max();
            let latest = latest.expect("there are clients");
            if latest == target {
                break;
            }
            target = latest;
        }
        for client in &mut self.clients {
            self.has_expired |= client.pass(target);
        }
        self.world.note(format!("{} ms pass", target - start));
        self.world.clock.advance(Duration::from_millis((target - start).unsigned_abs()));
    }

    /// Cuts the power until the store has come back and everything is there.
    async fn recover(&mut self, content: Option<Survives>) {
        let mut content = content;
        for nested in 0.. {
            self.report.cuts += 1;
            self.report.nested += u64::from(nested > 0);
            let mut style = Style::draw(&mut self.dice);
            style.content = content.take().unwrap_or(style.content);
            self.world.note(format!("the power is cut: {style}"));
            self.world.cut_power(&mut self.dice, style).await;
            if self.report.cuts.is_multiple_of(VERIFY_EVERY) {
                verify_if_made(&self.world.disk);
            }
            if nested < NESTED_MAX && self.dice.roll(100) < self.plan.nested_percent {
                let point = self.draw_point(Count::Calls, 40);
                self.world.note(format!("again {point}"));
                self.world.disk.cut_at(point);
            }
            // The store goes on by itself once everything is there: the cut may come then, too.
            if self.come_back().await.is_ok() && self.world.disk.spare() {
                return;
            }
        }
    }

    fn draw_point(&mut self, count: Count, most: usize) -> CutPoint {
        let number = 1 + self.dice.roll(most) as u64;
        CutPoint { count, number, moment: Moment::ALL[self.dice.roll(3)] }
    }

    async fn come_back(&mut self) -> Step {
        self.open()?;
        self.clients.iter_mut().for_each(Client::reopened);
        // What has expired may be back, for a quarter of its window.
        let least_ms = if self.has_expired { TTL_MAX as i64 * 1000 / 4 } else { 0 };
        let now_ms = self.clients[0].model.now_ms;
        let deadline_ms = self.clients.iter().filter_map(Client::next_deadline).min();
        // No window is shorter than it was, to the last moment.
        let almost_ms = deadline_ms.map_or(0, |deadline_ms| deadline_ms - 1 - now_ms);
        let ms = if self.dice.roll(2) == 0 { least_ms.max(almost_ms) } else { least_ms };
        if ms > 0 {
            self.advance(ms);
        }
        self.check(true).await
    }

    /// All that was promised to anybody.
    async fn check(&mut self, in_order: bool) -> Step {
        for client in &mut self.clients {
            client.settle_doubts(&self.world, in_order).await?;
        }
        for client in &mut self.clients {
            client.check_everything(&self.world).await?;
            self.observer.check(&self.world, client);
            client.repeat_requests(&self.world).await?;
        }
        self.ledger.check(&self.world).await?;
        self.window.check(&self.world).await
    }
}

/// When a life ends, in words.
struct End(Option<CutPoint>);

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(point) => point.fmt(f),
            None => f.write_str("when all is done"),
        }
    }
}
