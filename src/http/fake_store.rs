//! A store for tests: one open stream `a` that nothing changes, and answers to mutations as set.

use std::sync::Mutex;

use bytes::Bytes;

use crate::engine::api::{
    AppendError, AppendRefusal, AppendRequest, Appended, CreateError, CreateRequest, Created, Health,
    LookupError, LookupRefusal, Page, ReadError, ReadRequest, Storage, StorageFuture, StreamInfo,
    Subscription, Unavailable,
};
use crate::protocol::content_type::ContentType;
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;
use crate::protocol::retention::Retention;

/// Content of the stream `a`.
pub(super) const CONTENT: &str = "0123456789";

#[derive(Debug)]
pub(super) struct FakeStore {
    pub(super) info: StreamInfo,
    /// Answer to every append to `a`.
    pub(super) appended: Result<Appended, AppendError>,
    pub(super) health: Health,
    /// What was asked for, in short.
    pub(super) asked: Mutex<Vec<String>>,
}

impl FakeStore {
    pub(super) fn new() -> Self {
        let info = StreamInfo {
            incarnation: 0xabc,
            content_type: ContentType::parse(b"text/plain; charset=utf-8").unwrap(),
            lifetime: None,
            remaining_ms: None,
            retention: Retention::default(),
            earliest: 0,
            tail: CONTENT.len() as u64,
            closed: false,
        };
        let appended = Ok(Appended { tail: 12, closed: false, duplicate: false, producer: None });
        Self { info, appended, health: Health::default(), asked: Mutex::default() }
    }

    pub(super) fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn look_up(&self, name: &StreamName) -> Result<(), LookupError> {
        if name.as_str() == "a" { Ok(()) } else { Err(LookupRefusal::NotFound.into()) }
    }

    fn page(&self, request: &ReadRequest) -> Result<Page, ReadError> {
        if request.name.as_str() != "a" {
            return Err(LookupRefusal::NotFound.into());
        }
        let start = match request.from {
            RequestedOffset::Start => 0,
            RequestedOffset::Now => self.info.tail,
            RequestedOffset::At(position) if position <= self.info.tail => position,
            RequestedOffset::At(_) => return Err(ReadError::InvalidOffset),
        };
        let end = self.info.tail.min(start + request.max_bytes as u64);
        let data = vec![Bytes::from_static(&CONTENT.as_bytes()[start as usize..end as usize])];
        Ok(Page { info: self.info.clone(), start, end, data })
    }
}

impl Storage for FakeStore {
    fn create(&self, request: CreateRequest) -> StorageFuture<'_, Result<Created, CreateError>> {
        self.note(format!("create {} json={}", request.name.as_str(), request.body.json.is_some()));
        let created = Created {
            existed: request.name.as_str() == "a",
            content_type: request.content_type.unwrap_or_else(ContentType::octet_stream),
            tail: request.body.raw.len() as u64,
            closed: request.closed,
        };
        Box::pin(async { Ok(created) })
    }

    fn append(&self, request: AppendRequest) -> StorageFuture<'_, Result<Appended, AppendError>> {
        self.note(format!(
            "append {} bytes={} json={} close={}",
            request.name.as_str(),
            request.body.raw.len(),
            request.body.json.is_some(),
            request.close,
        ));
        let answer = match self.look_up(&request.name) {
            Ok(()) => self.appended.clone(),
            Err(_) => Err(AppendRefusal::NotFound.into()),
        };
        Box::pin(async { answer })
    }

    fn delete(&self, name: StreamName) -> StorageFuture<'_, Result<(), LookupError>> {
        Box::pin(async move { self.look_up(&name) })
    }

    fn head(&self, name: StreamName) -> StorageFuture<'_, Result<StreamInfo, LookupError>> {
        Box::pin(async move { self.look_up(&name).map(|()| self.info.clone()) })
    }

    fn read(&self, request: ReadRequest) -> StorageFuture<'_, Result<Page, ReadError>> {
        self.note(format!("read {:?} max={}", request.from, request.max_bytes));
        Box::pin(async move { self.page(&request) })
    }

    fn subscribe(
        &self,
        name: StreamName,
        _: RequestedOffset,
    ) -> StorageFuture<'_, Result<Subscription, ReadError>> {
        Box::pin(async move {
            self.look_up(&name).map_err(|_| LookupRefusal::NotFound)?;
            Err(Unavailable::Overloaded.into())
        })
    }

    fn health(&self) -> Health {
        self.health.clone()
    }

    fn shutdown(&self) -> StorageFuture<'_, ()> {
        Box::pin(async {})
    }
}
