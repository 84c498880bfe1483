//! Idempotent producers: what one (id, epoch, sequence number) means against what is known. `protocol.md` §9.

use std::collections::HashMap;

use bytes::Bytes;

use crate::stream::refusal::AppendRefusal;

/// The three producer headers of one request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProducerTag {
    /// Opaque, 1 to 256 bytes.
    pub id: Bytes,
    /// At most 2^53 − 1.
    pub epoch: u64,
    /// At most 2^53 − 1.
    pub seq: u64,
}

/// What is known of one producer of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// Its current epoch.
    pub epoch: u64,
    /// Last accepted sequence number of that epoch.
    pub seq: u64,
    /// Journal group that carried the last change: lets a checkpoint write only what changed since the previous one.
    pub group: u64,
}

/// A tag measured against the known state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProducerVerdict {
    /// Goes on to the next check.
    Next,
    /// Was accepted before; carries epoch and *last* accepted sequence number.
    Duplicate {
        /// Known epoch.
        epoch: u64,
        /// Last accepted sequence number.
        seq: u64,
    },
    /// Refused.
    Refused(AppendRefusal),
}

/// The producers of one stream. Empty for most streams, and then it costs one pointer.
#[derive(Clone, Debug, Default)]
#[expect(clippy::box_collection, reason = "an empty map takes four pointers, and there may be millions")]
pub struct Producers(Option<Box<HashMap<Bytes, ProducerState, ahash::RandomState>>>);

impl Producers {
    /// Measures `tag` against the known state; changes nothing.
    pub fn judge(&self, tag: &ProducerTag) -> ProducerVerdict {
        let Some(known) = self.get(&tag.id) else {
            return match tag.seq {
                0 => ProducerVerdict::Next,
                received => ProducerVerdict::Refused(AppendRefusal::SequenceGap { expected: 0, received }),
            };
        };
        if tag.epoch < known.epoch {
            return ProducerVerdict::Refused(AppendRefusal::StaleEpoch { current: known.epoch });
        }
        if tag.epoch > known.epoch {
            return match tag.seq {
                0 => ProducerVerdict::Next,
                _ => ProducerVerdict::Refused(AppendRefusal::NewEpochNotAtZero),
            };
        }
        let expected = known.seq + 1;
        match tag.seq.cmp(&expected) {
            std::cmp::Ordering::Less => ProducerVerdict::Duplicate { epoch: known.epoch, seq: known.seq },
            std::cmp::Ordering::Equal => ProducerVerdict::Next,
            std::cmp::Ordering::Greater => {
                ProducerVerdict::Refused(AppendRefusal::SequenceGap { expected, received: tag.seq })
            }
        }
    }

    /// Records an accepted tag.
    pub fn accept(&mut self, tag: &ProducerTag, group: u64) {
        let state = ProducerState { epoch: tag.epoch, seq: tag.seq, group };
        match self.0.get_or_insert_with(Box::default).get_mut(&tag.id) {
            Some(known) => *known = state,
            // Copied: the tag's bytes may be a slice of a large buffer, which they would keep alive.
            None => self.set(Bytes::copy_from_slice(&tag.id), state),
        }
    }

    /// Sets a producer's state, as read back from storage.
    pub fn set(&mut self, id: Bytes, state: ProducerState) {
        self.0.get_or_insert_with(Box::default).insert(id, state);
    }

    /// State of one producer.
    pub fn get(&self, id: &[u8]) -> Option<ProducerState> {
        self.0.as_ref()?.get(id).copied()
    }

    /// Number of producers.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |map| map.len())
    }

    /// No producer is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All producers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Bytes, &ProducerState)> {
        self.0.iter().flat_map(|map| map.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(epoch: u64, seq: u64) -> ProducerTag {
        ProducerTag { id: Bytes::from_static(b"p"), epoch, seq }
    }

    #[test]
    fn each_row_of_the_producer_table_is_judged_as_written() {
        let mut producers = Producers::default();
        assert_eq!(producers.judge(&tag(7, 0)), ProducerVerdict::Next);
        assert_eq!(
            producers.judge(&tag(0, 2)),
            ProducerVerdict::Refused(AppendRefusal::SequenceGap { expected: 0, received: 2 })
        );
        producers.accept(&tag(3, 0), 1);
        producers.accept(&tag(3, 1), 2);
        assert_eq!(
            producers.judge(&tag(2, 5)),
            ProducerVerdict::Refused(AppendRefusal::StaleEpoch { current: 3 })
        );
        assert_eq!(producers.judge(&tag(4, 0)), ProducerVerdict::Next);
        assert_eq!(producers.judge(&tag(4, 1)), ProducerVerdict::Refused(AppendRefusal::NewEpochNotAtZero));
        assert_eq!(producers.judge(&tag(3, 0)), ProducerVerdict::Duplicate { epoch: 3, seq: 1 });
        assert_eq!(producers.judge(&tag(3, 1)), ProducerVerdict::Duplicate { epoch: 3, seq: 1 });
        assert_eq!(producers.judge(&tag(3, 2)), ProducerVerdict::Next);
        assert_eq!(
            producers.judge(&tag(3, 3)),
            ProducerVerdict::Refused(AppendRefusal::SequenceGap { expected: 2, received: 3 })
        );
    }
}
