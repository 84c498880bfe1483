//! Counts content that has left the RAM as far as its stream is concerned, while somebody still sends it to a client.
//!
//! Pages share their bytes with the recent bytes of a stream, which costs nothing as long as both are there. A client
//! that takes its time keeps them there beyond that, and with them all of the block that they are a part of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// How much that is, in bytes. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lent(Arc<AtomicU64>);

impl Lent {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Bytes that are kept, and may be handed out as slices of [`Kept::bytes`].
    pub(crate) fn keep(&self, bytes: Bytes) -> Kept {
        Kept { bytes: Bytes::from_owner(LastOwner { bytes, lent: self.clone() }), lent: self.clone() }
    }
}

/// Kept bytes. From its drop on they count as lent, until the last slice of them is dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    bytes: Bytes,
    lent: Lent,
}

impl Kept {
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The fields go after this: if nobody else has the bytes, their last owner takes them off again at once.
        self.lent.0.fetch_add(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

/// Dropped with the last slice, which is never before its [`Kept`].
struct LastOwner {
    bytes: Bytes,
    lent: Lent,
}

impl AsRef<[u8]> for LastOwner {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for LastOwner {
    fn drop(&mut self) {
        self.lent.0.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_bytes_are_lent_from_their_end_to_that_of_their_last_slice() {
        let lent = Lent::default();
        let (first, second) = (lent.keep(vec![1; 1000].into()), lent.keep(vec![2; 300].into()));
        let slices = [first.bytes().slice(10..20), first.bytes().slice(990..), second.bytes().clone()];
        assert_eq!(lent.bytes(), 0);
        drop(first);
        assert_eq!(lent.bytes(), 1000, "a part keeps the whole");
        drop(second);
        assert_eq!(lent.bytes(), 1300);
        let [start, end, whole] = slices;
        drop(start);
        assert_eq!(lent.bytes(), 1300);
        drop(end);
        assert_eq!(lent.bytes(), 300);
        drop(whole);
        assert_eq!(lent.bytes(), 0);
        drop(lent.keep(vec![3; 50].into()));
        assert_eq!(lent.bytes(), 0, "nobody had them");
    }
}
