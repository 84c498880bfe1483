//! [`Engine`]: routes each request to the shard that owns its stream, and waits for the answer.

use std::fmt;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::engine::api::{
    AppendError, AppendRequest, Appended, CreateError, CreateRequest, Created, Health, LookupError, Page,
    ReadError, ReadRequest, Storage, StorageFuture, StreamInfo, Unavailable,
};
use crate::engine::core::{self, Shared};
use crate::engine::live::Subscription;
use crate::engine::request::{
    Answer, CreateStep, ForkSource, Mail, Origin, PlanRequest, Reply, Request, SourceRequest, Target,
};
use crate::engine::routing::shard_of;
use crate::protocol::lifetime::Lifetime;
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;

/// A fork's source may change between being looked at and being pinned; then it is looked at again, this often.
const FORK_ATTEMPTS: usize = 16;

/// A running engine: its shards, each on a core thread of its own. Cheap to clone.
///
/// May be used from any runtime. On one of its own cores, requests for that core's shard take no detour.
#[derive(Clone)]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    // Held by every clone: the last one to go stops the cores.
    pub(super) _stop: Arc<StopOnDrop>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("shards", &self.shard_count()).finish_non_exhaustive()
    }
}

/// Ends the cores of an engine that nobody holds any more.
pub(super) struct StopOnDrop(pub(super) Arc<Shared>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        for mailbox in &self.0.mailboxes {
            mailbox.post(Mail::Stop(None));
        }
    }
}

impl Engine {
    /// One more handle of a running engine.
    pub(super) fn of(running: Arc<StopOnDrop>) -> Self {
        Self { shared: Arc::clone(&running.0), _stop: running }
    }

    /// The half of a handle that the other can be had from, see [`Self::of`].
    pub(super) fn into_running(self) -> Arc<StopOnDrop> {
        self._stop
    }

    /// Number of shards, which is the number of core threads.
    pub fn shard_count(&self) -> usize {
        self.shared.mailboxes.len()
    }

    /// Runs something on a core's thread, within its runtime: it may call `tokio::task::spawn_local`. Must not block.
    pub fn run_on_core(&self, core: usize, task: Box<dyn FnOnce() + Send>) {
        self.post(core, Mail::Run(task));
    }

    pub(crate) fn post(&self, core: usize, mail: Mail) {
        self.shared.mailboxes[core].post(mail);
    }

    fn shard_of(&self, name: &StreamName) -> usize {
        shard_of(name.as_str(), self.shard_count())
    }

    /// Asks a shard and waits for its answer.
    pub(super) async fn ask<T: Answer>(&self, shard: usize, request: impl FnOnce(Reply<T>) -> Request) -> T {
        let (sender, answer) = oneshot::channel();
        let origin = core::origin(self.shared.id);
        let request = request(Reply { sender, origin });
        if matches!(origin, Origin::Core(_)) {
            core::note_asked(shard);
        }
        if origin == Origin::Core(shard) {
            core::handle_locally(&self.shared, request);
        } else {
            self.post(shard, Mail::Request(request));
        }
        // A shard that drops a request without an answer is gone.
        answer.await.unwrap_or_else(|_| T::unavailable(Unavailable::ShuttingDown))
    }

    async fn create_stream(&self, request: CreateRequest) -> Result<Created, CreateError> {
        let shard = self.shard_of(&request.name);
        let mut resolved = None;
        for attempt in 0..FORK_ATTEMPTS {
            let step = self
                .ask(shard, |reply| {
                    Request::Create(Box::new(request.clone()), resolved.take().map(Box::new), reply)
                })
                .await?;
            let source = match (step, &request.fork) {
                (CreateStep::Done(created), _) => return Ok(created),
                (CreateStep::NeedsSource | CreateStep::SourceChanged, Some(fork)) => fork,
                (CreateStep::NeedsSource | CreateStep::SourceChanged, None) => {
                    unreachable!("only forks have a source")
                }
            };
            resolved = Some(self.resolve_fork(source, request.content_type.as_ref(), attempt > 0).await?);
        }
        Err(Unavailable::Overloaded.into())
    }

    /// The shard that a fork source belongs to is asked what it offers.
    pub(super) async fn fork_source(&self, request: SourceRequest) -> Result<ForkSource, CreateError> {
        self.ask(self.shard_of(&request.name), |reply| Request::Source(request, reply)).await
    }

    async fn subscribe_to(&self, name: StreamName, from: RequestedOffset) -> Result<Subscription, ReadError> {
        let shard = self.shard_of(&name);
        let subscribed = self.ask(shard, |reply| Request::Subscribe(name.clone(), from, reply)).await?;
        let check_start = subscribed.check_start;
        let mut subscription = Subscription::new(self.clone(), subscribed, from);
        if check_start {
            subscription.reader_mut().check_start(from).await?;
            self.await_renewal(shard, name, subscription.info()).await?;
        }
        Ok(subscription)
    }

    /// A read turned out to be one, and renews a sliding lifetime: nobody may be told of it before that is durable.
    async fn await_renewal(
        &self,
        shard: usize,
        name: StreamName,
        info: &StreamInfo,
    ) -> Result<(), ReadError> {
        if !matches!(info.lifetime, Some(Lifetime::Ttl { .. })) {
            return Ok(());
        }
        let request = PlanRequest {
            target: Target::Name(name),
            from: RequestedOffset::Now,
            bytes_max: 1,
            start_checked: true,
        };
        match self.ask(shard, |reply| Request::Plan(request, reply)).await {
            Err(error @ ReadError::Unavailable(_)) => Err(error),
            // If it has ended meanwhile, the reader is told so where it reads.
            _ => Ok(()),
        }
    }

    async fn stop(&self) {
        let mut stopped = Vec::new();
        for core in 0..self.shard_count() {
            let (sender, done) = oneshot::channel();
            self.post(core, Mail::Stop(Some(sender)));
            stopped.push(done);
        }
        for done in stopped {
            // A core that is gone has stopped.
            let _ = done.await;
        }
    }
}

impl Storage for Engine {
    fn create(&self, request: CreateRequest) -> StorageFuture<'_, Result<Created, CreateError>> {
        Box::pin(self.create_stream(request))
    }

    fn append(&self, request: AppendRequest) -> StorageFuture<'_, Result<Appended, AppendError>> {
        let shard = self.shard_of(&request.name);
        Box::pin(self.ask(shard, |reply| Request::Append(Box::new(request), reply)))
    }

    fn delete(&self, name: StreamName) -> StorageFuture<'_, Result<(), LookupError>> {
        Box::pin(self.ask(self.shard_of(&name), |reply| Request::Delete(name, reply)))
    }

    fn head(&self, name: StreamName) -> StorageFuture<'_, Result<StreamInfo, LookupError>> {
        Box::pin(self.ask(self.shard_of(&name), |reply| Request::Head(name, reply)))
    }

    fn read(&self, request: ReadRequest) -> StorageFuture<'_, Result<Page, ReadError>> {
        let ReadRequest { name, from, max_bytes } = request;
        let shard = self.shard_of(&name);
        Box::pin(self.page(shard, Target::Name(name), from, max_bytes))
    }

    fn subscribe(
        &self,
        name: StreamName,
        from: RequestedOffset,
    ) -> StorageFuture<'_, Result<Subscription, ReadError>> {
        Box::pin(self.subscribe_to(name, from))
    }

    fn health(&self) -> Health {
        self.shared.health()
    }

    fn shutdown(&self) -> StorageFuture<'_, ()> {
        Box::pin(self.stop())
    }
}
