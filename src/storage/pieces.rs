//! Bytes on their way to the disk, in pieces: small ones are gathered, large ones shared with whoever has them. So content
//! that comes in large appends is not copied before it is written.

use std::borrow::Cow;

use bytes::Bytes;

use super::codec::Put;
use crate::stream::event::LARGE_PAYLOAD_BYTES;

/// Content of at least this size is shared. Below, a piece costs more than the copy.
const SHARED_BYTES_MIN: usize = LARGE_PAYLOAD_BYTES;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces {
    small: Vec<u8>,
    /// What goes between the small bytes, in order: before which of them, and what.
    shared: Vec<(usize, Bytes)>,
    shared_bytes: usize,
}

impl Pieces {
    /// Bytes of all pieces.
    pub(crate) fn len(&self) -> usize {
        self.small.len() + self.shared_bytes
    }

    /// There is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes everything out, and keeps the room for small bytes.
    pub(crate) fn clear(&mut self) {
        self.small.clear();
        self.shared.clear();
        self.shared_bytes = 0;
    }

    /// Bytes for which there is room without allocating any.
    pub(crate) fn capacity(&self) -> usize {
        self.small.capacity()
    }

    /// What was gathered, to add to it or to change what is there. As much of it has to stay as was there.
    pub(crate) fn small_mut(&mut self) -> &mut Vec<u8> {
        &mut self.small
    }

    /// Adds content at the end: as it is if that is large.
    pub(crate) fn put_content(&mut self, content: &Bytes) {
        if content.len() < SHARED_BYTES_MIN {
            return self.small.extend_from_slice(content);
        }
        self.shared.push((self.small.len(), content.clone()));
        self.shared_bytes += content.len();
    }

    /// Adds what `others` has at the end.
    pub(crate) fn put_pieces(&mut self, others: &Self) {
        let before = self.small.len();
        self.small.extend_from_slice(&others.small);
        self.shared.extend(others.shared.iter().map(|(at, bytes)| (before + at, bytes.clone())));
        self.shared_bytes += others.shared_bytes;
    }

    /// All pieces, in order. None is empty.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let ends = self.shared.iter().map(|(at, _)| *at).chain([self.small.len()]);
        let shared = self.shared.iter().map(|(_, bytes)| &bytes[..]).chain([&[][..]]);
        let mut at = 0;
        let all = ends.zip(shared).flat_map(move |(end, shared)| {
            let small = &self.small[at..end];
            at = end;
            [small, shared]
        });
        all.filter(|piece| !piece.is_empty())
    }

    /// The bytes cut anew: calls `each` with as many of them as `size` says, which is told how many are left (more than 0)
    /// and says at least 1. What lies within one piece is not copied.
    pub(crate) fn cut<E>(
        &self,
        mut size: impl FnMut(usize) -> usize,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pieces = self.iter();
        let (mut piece, mut left) = (&[][..], self.len());
        while left > 0 {
            let wanted = size(left).min(left);
            let mut part = Cow::Borrowed(&[][..]);
            while part.len() < wanted {
                if piece.is_empty() {
                    piece = pieces.next().expect("the pieces are as long as they say together");
                }
                let (now, later) = piece.split_at(piece.len().min(wanted - part.len()));
                piece = later;
                if part.is_empty() {
                    part = Cow::Borrowed(now);
                } else {
                    part.to_mut().extend_from_slice(now);
                }
            }
            left -= wanted;
            each(&part)?;
        }
        Ok(())
    }
}

impl Put for Pieces {
    fn put_byte(&mut self, value: u8) {
        self.small.put_byte(value);
    }

    fn put_slice(&mut self, value: &[u8]) {
        self.small.put_slice(value);
    }
}

impl From<Vec<u8>> for Pieces {
    fn from(small: Vec<u8>) -> Self {
        Self { small, ..Self::default() }
    }
}

#[cfg(any(test, feature = "bench-internals"))]
impl Pieces {
    /// All of it in one piece.
    pub(crate) fn into_vec(self) -> Vec<u8> {
        if self.shared.is_empty() { self.small } else { self.iter().flatten().copied().collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn content() -> impl Strategy<Value = Bytes> {
        let size = prop_oneof![0..40_usize, SHARED_BYTES_MIN - 2..SHARED_BYTES_MIN + 40];
        (size, any::<u8>()).prop_map(|(size, first)| {
            (0..size).map(|at| first.wrapping_add(at as u8)).collect::<Vec<_>>().into()
        })
    }

    fn pieces_of(parts: &[Bytes]) -> Pieces {
        let mut pieces = Pieces::default();
        for part in parts {
            pieces.put_byte(7);
            pieces.put_content(part);
        }
        pieces
    }

    proptest! {
        #[test]
        fn all_is_there_in_order_however_it_is_cut(
            parts in prop::collection::vec(content(), 0..6),
            others in prop::collection::vec(content(), 0..4),
            sizes in prop::collection::vec(1..40_000_usize, 1..6),
        ) {
            let mut pieces = pieces_of(&parts);
            pieces.put_pieces(&pieces_of(&others));
            let mut whole = Vec::new();
            for part in parts.iter().chain(&others) {
                whole.push(7);
                whole.extend_from_slice(part);
            }
            prop_assert_eq!((pieces.len(), pieces.is_empty()), (whole.len(), whole.is_empty()));
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
            prop_assert_eq!(pieces.clone().into_vec(), whole.clone());

            let (mut turn, mut found, mut left_before) = (0, Vec::new(), whole.len());
            let mut wanted = Vec::new();
            let size = |left: usize| {
                assert_eq!(left, left_before);
                turn += 1;
                let size = sizes[turn % sizes.len()];
                left_before -= size.min(left);
                wanted.push(size.min(left));
                size
            };
            let mut cuts = Vec::new();
            let each = |part: &[u8]| {
                cuts.push(part.len());
                found.extend_from_slice(part);
                Ok::<_, Infallible>(())
            };
            pieces.cut(size, each).unwrap();
            prop_assert_eq!(cuts, wanted);
            prop_assert_eq!(found, whole);
        }
    }

    #[test]
    fn large_content_is_shared_and_what_lies_within_it_is_not_copied() {
        let (small, large) = (Bytes::from(vec![1; 100]), Bytes::from(vec![2; 3 * SHARED_BYTES_MIN]));
        let mut pieces = Pieces::default();
        for content in [&small, &large, &small] {
            pieces.put_content(content);
        }
        let found: Vec<_> = pieces.iter().collect();
        assert_eq!(found.iter().map(|piece| piece.len()).collect::<Vec<_>>(), [100, large.len(), 100]);
        assert_eq!(found[1].as_ptr(), large.as_ptr());
        let mut at = Vec::new();
        let each = |part: &[u8]| {
            at.push(part.as_ptr());
            Ok::<_, Infallible>(())
        };
        pieces.cut(|left| if left == pieces.len() { 100 } else { SHARED_BYTES_MIN }, each).unwrap();
        assert_eq!(at[1], large.as_ptr());
        pieces.clear();
        assert!(pieces.is_empty() && pieces.capacity() > 0);
    }
}
