//! What stands in for an engine while that is being opened: it says what it waits for, and refuses everything else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::api::{
    AppendError, AppendRequest, Appended, CreateError, CreateRequest, Created, Health, LookupError, Page,
    ReadError, ReadRequest, Storage, StorageFuture, StreamInfo, Subscription, Unavailable,
};
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;

/// Which shards of an engine are still to be opened. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Opening {
    /// By shard; empty as long as nobody knows how many there are.
    is_open: Arc<Mutex<Vec<bool>>>,
}

impl Opening {
    fn is_open(&self) -> MutexGuard<'_, Vec<bool>> {
        self.is_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There are so many shards.
    pub(crate) fn begin(&self, shards: usize) {
        *self.is_open() = vec![false; shards];
    }

    /// That one is open.
    pub(crate) fn opened(&self, shard: usize) {
        self.is_open()[shard] = true;
    }
}

/// Nothing was stored, and it is worth to be tried again.
fn refuse<T: Send, E: From<Unavailable> + Send>() -> StorageFuture<'static, Result<T, E>> {
    Box::pin(async { Err(Unavailable::Recovering.into()) })
}

impl Storage for Opening {
    fn create(&self, _: CreateRequest) -> StorageFuture<'_, Result<Created, CreateError>> {
        refuse()
    }

    fn append(&self, _: AppendRequest) -> StorageFuture<'_, Result<Appended, AppendError>> {
        refuse()
    }

    fn delete(&self, _: StreamName) -> StorageFuture<'_, Result<(), LookupError>> {
        refuse()
    }

    fn head(&self, _: StreamName) -> StorageFuture<'_, Result<StreamInfo, LookupError>> {
        refuse()
    }

    fn read(&self, _: ReadRequest) -> StorageFuture<'_, Result<Page, ReadError>> {
        refuse()
    }

    fn subscribe(
        &self,
        _: StreamName,
        _: RequestedOffset,
    ) -> StorageFuture<'_, Result<Subscription, ReadError>> {
        refuse()
    }

    fn health(&self) -> Health {
        let is_open = self.is_open();
        let closed = is_open.iter().enumerate().filter(|(_, is_open)| !**is_open);
        let mut waiting_for: Vec<String> =
            closed.map(|(shard, _)| format!("shard {shard}: it is being opened")).collect();
        if is_open.is_empty() {
            waiting_for.push("the data directory is being opened".to_owned());
        }
        Health { waiting_for }
    }

    fn shutdown(&self) -> StorageFuture<'_, ()> {
        Box::pin(async {})
    }
}
