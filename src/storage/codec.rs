//! The building blocks of frames and records. All integers are unsigned little-endian base-128 ("varint", low seven
//! bits first, high bit = more follows) unless a fixed width is named; strings are a varint length and bytes.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use bytes::Bytes;

use crate::protocol::content_type::ContentType;
use crate::protocol::lifetime::{ExpiresAt, Lifetime};
use crate::protocol::name::StreamName;
use crate::protocol::retention::Retention;
use crate::storage::StorageError;
use crate::stream::fork::{Ancestor, ForkOrigin, StreamRef};
use crate::stream::producer::ProducerTag;
use crate::stream::retention::RetentionSettings;

/// Bits of the first byte of retention settings. Persisted.
const RETENTION_AGE: u8 = 1;
const RETENTION_BYTES: u8 = 2;
const RETENTION_AGE_ASKED: u8 = 4;
const RETENTION_BYTES_ASKED: u8 = 8;

/// What the records of one file begin with, so that bytes which clients chose, or which were left in the file by its earlier use, are
/// not taken for records. Another one each time, and never 0, which is what space that was not written yet reads as.
pub(crate) fn random_mark() -> u64 {
    // The standard library's hash maps have to be safe from chosen keys too, hence its keys are good enough here.
    RandomState::new().hash_one(0_u8).max(1)
}

/// Appends values to a byte buffer.
pub(crate) trait Put {
    fn put_byte(&mut self, value: u8);
    fn put_slice(&mut self, value: &[u8]);

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put_byte((value as u8 & 0x7f) | 0x80);
            value >>= 7;
        }
        self.put_byte(value as u8);
    }

    fn put_string(&mut self, value: &[u8]) {
        self.put_varint(value.len() as u64);
        self.put_slice(value);
    }

    /// Signed: zigzag, so that times before 1970 stay short too.
    fn put_time(&mut self, ms: i64) {
        self.put_varint(((ms << 1) ^ (ms >> 63)) as u64);
    }

    fn put_stream_ref(&mut self, value: StreamRef) {
        self.put_varint(u64::from(value.shard));
        self.put_varint(value.id);
    }

    fn put_producer(&mut self, tag: &ProducerTag) {
        self.put_string(&tag.id);
        self.put_varint(tag.epoch);
        self.put_varint(tag.seq);
    }

    /// One byte 0 = none, 1 = TTL and seconds, 2 = Expires-At: seconds (zigzag), nanoseconds, spelling.
    fn put_lifetime(&mut self, lifetime: Option<&Lifetime>) {
        match lifetime {
            None => self.put_byte(0),
            Some(Lifetime::Ttl { seconds }) => {
                self.put_byte(1);
                self.put_varint(*seconds);
            }
            Some(Lifetime::ExpiresAt(at)) => {
                self.put_byte(2);
                self.put_time(at.seconds());
                self.put_varint(u64::from(at.nanos()));
                self.put_string(at.raw().as_bytes());
            }
        }
    }

    /// One byte 1 = age, 2 = bytes, 4 = the age was asked for, 8 = the bytes were; and each limit that is set.
    fn put_retention(&mut self, settings: &RetentionSettings) {
        let RetentionSettings { limits, age_asked, bytes_asked } = settings;
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        self.put_byte(
            flag(limits.max_age_secs.is_some(), RETENTION_AGE)
                | flag(limits.max_bytes.is_some(), RETENTION_BYTES)
                | flag(*age_asked, RETENTION_AGE_ASKED)
                | flag(*bytes_asked, RETENTION_BYTES_ASKED),
        );
        for limit in [limits.max_age_secs, limits.max_bytes].into_iter().flatten() {
            self.put_varint(limit);
        }
    }

    /// Source name, source, anchor, earliest position, sub-offset, fork point, 1 if the lifetime is inherited, number of
    /// ancestors and each one's stream and end.
    fn put_fork(&mut self, fork: &ForkOrigin) {
        self.put_string(fork.source.as_str().as_bytes());
        self.put_stream_ref(fork.source_ref);
        self.put_varint(fork.anchor);
        self.put_varint(fork.earliest);
        self.put_varint(fork.sub_offset);
        self.put_varint(fork.point);
        self.put_byte(u8::from(fork.lifetime_inherited));
        self.put_varint(fork.lineage.len() as u64);
        for ancestor in &fork.lineage {
            self.put_stream_ref(ancestor.stream);
            self.put_varint(ancestor.end);
        }
    }
}

impl Put for Vec<u8> {
    fn put_byte(&mut self, value: u8) {
        self.push(value);
    }
    fn put_slice(&mut self, value: &[u8]) {
        self.extend_from_slice(value);
    }
}

/// Takes values from the front of a byte buffer. Everything it hands out shares the buffer.
#[derive(Debug)]
pub(crate) struct Take {
    bytes: Bytes,
    what: &'static str,
}

impl Take {
    /// `what` names the thing being read, for error messages.
    pub(crate) fn new(bytes: Bytes, what: &'static str) -> Self {
        Self { bytes, what }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn corrupt(&self, why: &str) -> StorageError {
        StorageError::Corrupt(format!("{}: {why}", self.what))
    }

    pub(crate) fn byte(&mut self) -> Result<u8, StorageError> {
        Ok(self.slice(1)?[0])
    }

    pub(crate) fn flag(&mut self) -> Result<bool, StorageError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.corrupt("a flag is neither 0 nor 1")),
        }
    }

    pub(crate) fn slice(&mut self, len: usize) -> Result<Bytes, StorageError> {
        if self.bytes.len() < len {
            return Err(self.corrupt("ends too early"));
        }
        Ok(self.bytes.split_to(len))
    }

    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes)
    }

    pub(crate) fn varint(&mut self) -> Result<u64, StorageError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.corrupt("an integer is too long"))
    }

    pub(crate) fn string(&mut self) -> Result<Bytes, StorageError> {
        let len = self.varint()?;
        let len = usize::try_from(len).map_err(|_| self.corrupt("a string is too long"))?;
        self.slice(len)
    }

    pub(crate) fn text(&mut self) -> Result<String, StorageError> {
        let bytes = self.string()?;
        String::from_utf8(bytes.into()).map_err(|_| self.corrupt("a text is not UTF-8"))
    }

    pub(crate) fn time(&mut self) -> Result<i64, StorageError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    pub(crate) fn name(&mut self) -> Result<StreamName, StorageError> {
        Ok(StreamName::from_stored(&self.text()?))
    }

    pub(crate) fn content_type(&mut self) -> Result<ContentType, StorageError> {
        let bytes = self.string()?;
        ContentType::parse(&bytes).map_err(|_| self.corrupt("not a content type"))
    }

    pub(crate) fn stream_ref(&mut self) -> Result<StreamRef, StorageError> {
        let shard = self.varint()?;
        let shard = u16::try_from(shard).map_err(|_| self.corrupt("a shard number is too large"))?;
        Ok(StreamRef { shard, id: self.varint()? })
    }

    pub(crate) fn producer(&mut self) -> Result<ProducerTag, StorageError> {
        Ok(ProducerTag { id: self.string()?, epoch: self.varint()?, seq: self.varint()? })
    }

    pub(crate) fn lifetime(&mut self) -> Result<Option<Lifetime>, StorageError> {
        match self.byte()? {
            0 => Ok(None),
            1 => Ok(Some(Lifetime::Ttl { seconds: self.varint()? })),
            2 => {
                let seconds = self.time()?;
                let nanos = u32::try_from(self.varint()?).map_err(|_| self.corrupt("not nanoseconds"))?;
                let raw = self.text()?;
                Ok(Some(Lifetime::ExpiresAt(ExpiresAt::from_parts(raw, seconds, nanos))))
            }
            _ => Err(self.corrupt("unknown kind of lifetime")),
        }
    }

    pub(crate) fn retention(&mut self) -> Result<RetentionSettings, StorageError> {
        let flags = self.byte()?;
        let has = |flag: u8| flags & flag != 0;
        let is_known =
            flags & !(RETENTION_AGE | RETENTION_BYTES | RETENTION_AGE_ASKED | RETENTION_BYTES_ASKED) == 0;
        let is_sound = (has(RETENTION_AGE) || !has(RETENTION_AGE_ASKED))
            && (has(RETENTION_BYTES) || !has(RETENTION_BYTES_ASKED));
        if !is_known || !is_sound {
            return Err(self.corrupt("unknown limits of a retention"));
        }
        let max_age_secs = if has(RETENTION_AGE) { Some(self.varint()?) } else { None };
        let max_bytes = if has(RETENTION_BYTES) { Some(self.varint()?) } else { None };
        let limits = Retention { max_age_secs, max_bytes };
        if limits.is_none() || [max_age_secs, max_bytes].contains(&Some(0)) {
            return Err(self.corrupt("a retention without limits"));
        }
        Ok(RetentionSettings {
            limits,
            age_asked: has(RETENTION_AGE_ASKED),
            bytes_asked: has(RETENTION_BYTES_ASKED),
        })
    }

    pub(crate) fn fork(&mut self) -> Result<ForkOrigin, StorageError> {
        let source = self.name()?;
        let source_ref = self.stream_ref()?;
        let anchor = self.varint()?;
        let earliest = self.varint()?;
        let sub_offset = self.varint()?;
        let point = self.varint()?;
        let lifetime_inherited = self.flag()?;
        let count = self.varint()?;
        let mut lineage = Vec::new();
        for _ in 0..count {
            lineage.push(Ancestor { stream: self.stream_ref()?, end: self.varint()? });
        }
        if earliest > point {
            return Err(self.corrupt("a fork begins before what it inherits"));
        }
        Ok(ForkOrigin {
            source,
            source_ref,
            anchor,
            earliest,
            sub_offset,
            point,
            lifetime_inherited,
            lineage,
        })
    }
}
