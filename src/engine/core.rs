//! The core threads: each runs one current-thread runtime, drains one mailbox and owns one shard.
//!
//! A request whose stream is owned by the very core that it came in on runs without a hop: the shard is reached
//! through a thread-local, for the length of one synchronous call. Everything else comes through the mailbox.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tracing::error;

use crate::engine::affinity::Pinning;
use crate::engine::api::Health;
use crate::engine::backup::Backups;
use crate::engine::clock::Clock;
use crate::engine::fan_out;
use crate::engine::mailbox::Mailbox;
use crate::engine::quota::Quotas;
use crate::engine::read_budget::ReadBudget;
use crate::engine::request::{Mail, Origin, Request};
use crate::engine::shard::Shard;

/// Mail handled before other tasks of the core get a turn.
const MAIL_PER_ROUND: usize = 1024;

/// What all cores of an engine share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Tells engines of one process apart.
    pub(crate) id: u64,
    pub(crate) mailboxes: Vec<Mailbox>,
    pub(crate) quotas: Quotas,
    pub(crate) reads: ReadBudget,
    pub(crate) clock: Clock,
    pub(crate) backups: Backups,
    /// Per shard: why it takes no writes.
    health: Vec<Mutex<Option<String>>>,
}

impl Shared {
    pub(crate) fn new(
        id: u64,
        mailboxes: Vec<Mailbox>,
        quotas: Quotas,
        reads: ReadBudget,
        clock: Clock,
        backups: Backups,
    ) -> Self {
        let health = mailboxes.iter().map(|_| Mutex::new(None)).collect();
        Self { id, mailboxes, quotas, reads, clock, backups, health }
    }

    pub(crate) fn set_health(&self, shard: usize, waiting_for: Option<String>) {
        *self.health[shard].lock().unwrap_or_else(PoisonError::into_inner) = waiting_for;
    }

    pub(crate) fn health(&self) -> Health {
        let lines = self.health.iter();
        let waiting_for =
            lines.filter_map(|line| line.lock().unwrap_or_else(PoisonError::into_inner).clone()).collect();
        Health { waiting_for }
    }
}

/// The core that this thread is.
struct CoreContext {
    engine: u64,
    index: usize,
    shard: Rc<RefCell<Shard>>,
}

thread_local! {
    static CORE: RefCell<Option<CoreContext>> = const { RefCell::new(None) };
    /// The shard that a task of this core asked last.
    static ASKED: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A task of this core asks `shard`.
pub(crate) fn note_asked(shard: usize) {
    ASKED.set(Some(shard));
}

/// The shard that was asked last on this thread since this was last called, if it is a core and there was one.
pub(crate) fn take_asked() -> Option<usize> {
    ASKED.take()
}

/// Which core of this engine the current thread is, if any.
pub(crate) fn origin(engine: u64) -> Origin {
    CORE.with_borrow(|core| match core {
        Some(core) if core.engine == engine => Origin::Core(core.index),
        _ => Origin::Foreign,
    })
}

/// Hands a request to the shard of the current thread, which must be a core.
pub(crate) fn handle_locally(shared: &Shared, request: Request) {
    let (index, shard) = CORE.with_borrow(|core| {
        let core = core.as_ref().expect("only core threads are asked to handle a request locally");
        (core.index, core.shard.clone())
    });
    let handling = || shard.borrow_mut().handle(request);
    if catch_unwind(AssertUnwindSafe(handling)).is_err() {
        // As in a round. The request's own answer is gone with its sender, which the waiting task notices.
        shard.borrow_mut().give_up();
    }
    // What was staged goes down once the tasks that are ready now have had their turn.
    shared.mailboxes[index].wake();
}

/// Starts a thread for each shard, on a CPU of its own if that is wanted.
pub(crate) fn start(
    shared: &Arc<Shared>,
    shards: Vec<(Shard, Receiver<Mail>)>,
    pinning: Option<&Pinning>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::with_capacity(shards.len());
    for (index, (shard, mail)) in shards.into_iter().enumerate() {
        let shared = shared.clone();
        let pinning = pinning.cloned();
        let body = move || match runtime(index, pinning) {
            Ok(runtime) => runtime.block_on(run(shared, index, shard, mail)),
            Err(error) => {
                error!(shard = index, %error, "the core has no runtime");
                shared.set_health(index, Some(format!("core {index}: {error}")));
            }
        };
        threads.push(std::thread::Builder::new().name(format!("ds-core-{index}")).spawn(body)?);
    }
    Ok(threads)
}

/// Of core number `index`, for the calling thread.
fn runtime(index: usize, pinning: Option<Pinning>) -> std::io::Result<LocalRuntime> {
    let mut builder = Builder::new_current_thread();
    if let Some(pinning) = pinning {
        pinning.pin(index);
        // Those are its blocking threads only: the core itself is there already.
        builder.on_thread_start(move || pinning.release());
    }
    builder.enable_all().build_local(LocalOptions::default())
}

async fn run(shared: Arc<Shared>, index: usize, shard: Shard, mail: Receiver<Mail>) {
    let shard = Rc::new(RefCell::new(shard));
    let context = CoreContext { engine: shared.id, index, shard: shard.clone() };
    CORE.set(Some(context));
    tokio::task::spawn_local(fan_out::turn_by_turn());
    // A task of its own, so that its rounds take turns with the tasks of connections.
    let rounds = tokio::task::spawn_local(rounds(shared.clone(), index, shard, mail));
    if rounds.await.is_err() {
        shared.set_health(index, Some(format!("core {index} failed")));
    }
    CORE.set(None);
}

async fn rounds(shared: Arc<Shared>, index: usize, shard: Rc<RefCell<Shard>>, mail: Receiver<Mail>) {
    let mailbox = &shared.mailboxes[index];
    loop {
        let deadline_ms = shard.borrow().next_deadline_ms();
        tokio::select! {
            biased;
            () = mailbox.woken() => {}
            () = shared.clock.sleep_until(deadline_ms) => {}
        }
        mailbox.rearm();
        let round = || {
            for item in mail.try_iter().take(MAIL_PER_ROUND) {
                open(index, &shard, item);
            }
            shard.borrow_mut().finish_round();
        };
        if catch_unwind(AssertUnwindSafe(round)).is_err() {
            // The panic's message is out already. Whatever state it left, nothing of it is acknowledged.
            shard.borrow_mut().give_up();
        }
        if !mail.is_empty() {
            mailbox.wake();
        }
        if shard.borrow().is_stopped() {
            return;
        }
    }
}

fn open(index: usize, shard: &RefCell<Shard>, mail: Mail) {
    match mail {
        Mail::Request(request) => shard.borrow_mut().handle(request),
        Mail::Fork(mail) => shard.borrow_mut().handle_fork_mail(mail),
        Mail::Parcels(parcels) => parcels.into_iter().for_each(super::request::Parcel::deliver),
        Mail::Completion(completion) => shard.borrow_mut().completed(completion),
        Mail::Confirmed { stream } => shard.borrow_mut().confirm_reader(stream),
        Mail::Detach { stream, origin, in_doubt } => shard.borrow_mut().detach(stream, origin, in_doubt),
        // Not the shard's code, and without the shard in hand: it may well ask it something.
        Mail::Run(task) => {
            if catch_unwind(AssertUnwindSafe(task)).is_err() {
                error!(core = index, "a task that was to be run on a core panicked");
            }
        }
        Mail::Snapshot(ticket) => shard.borrow_mut().snapshot(ticket),
        Mail::Stop(done) => shard.borrow_mut().stop(done),
    }
}
