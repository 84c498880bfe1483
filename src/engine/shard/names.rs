//! Which stream of a shard has which name.
//!
//! The names are with the streams. Here is only what leads to them: with a million streams, a second reference to each name
//! would be much of what they take.

use hashbrown::HashTable;

use crate::engine::shard::RamMap;
use crate::engine::shard::entry::Entry;
use crate::protocol::name::StreamName;

/// The ids of all streams of a shard, to be found by their names. Each of them has to be among the streams that are given
/// along.
#[derive(Debug, Default)]
pub(super) struct Names {
    slots: HashTable<Slot>,
    state: ahash::RandomState,
}

/// In pieces of four bytes, so that it takes twelve.
#[derive(Clone, Copy, Debug)]
struct Slot {
    id: [u32; 2],
    /// Kept so that the table can grow without looking at every stream.
    hash: u32,
}

impl Slot {
    fn new(id: u64, hash: u32) -> Self {
        Self { id: [(id >> 32) as u32, id as u32], hash }
    }

    fn id(self) -> u64 {
        u64::from(self.id[0]) << 32 | u64::from(self.id[1])
    }

    fn hash(&self) -> u64 {
        spread(self.hash)
    }
}

/// The table looks at both ends of a hash.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

impl Names {
    fn hash(&self, name: &StreamName) -> u32 {
        self.state.hash_one(name) as u32
    }

    /// The stream that has this name.
    pub(super) fn get(&self, name: &StreamName, streams: &RamMap<u64, Box<Entry>>) -> Option<u64> {
        let hash = self.hash(name);
        let found = self.slots.find(spread(hash), |slot| is_named(slot, name, hash, streams))?;
        Some(found.id())
    }

    /// From now on the stream `id`, which need not be there yet, has this name, and no other stream has it.
    pub(super) fn insert(&mut self, name: &StreamName, id: u64, streams: &RamMap<u64, Box<Entry>>) {
        let hash = self.hash(name);
        match self.slots.find_mut(spread(hash), |slot| is_named(slot, name, hash, streams)) {
            Some(slot) => *slot = Slot::new(id, hash),
            None => {
                self.slots.insert_unique(spread(hash), Slot::new(id, hash), Slot::hash);
            }
        }
    }

    /// The stream `id` does not have this name any more, if it had it: another one may have it by now.
    pub(super) fn remove(&mut self, name: &StreamName, id: u64) {
        if let Ok(entry) = self.slots.find_entry(spread(self.hash(name)), |slot| slot.id() == id) {
            entry.remove();
        }
    }
}

fn is_named(slot: &Slot, name: &StreamName, hash: u32, streams: &RamMap<u64, Box<Entry>>) -> bool {
    slot.hash == hash && streams.get(&slot.id()).is_some_and(|entry| entry.name == *name)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::content_type::ContentType;
    use crate::storage::lent::Lent;
    use crate::stream::event::{Creation, Payload};

    fn named(name: &str) -> Box<Entry> {
        let creation = Creation {
            name: StreamName::from_stored(name),
            content_type: ContentType::octet_stream(),
            lifetime: None,
            retention: None,
            fork: None,
            closed: false,
            payload: Payload::default(),
            at_ms: 0,
        };
        Box::new(Entry::new(&creation, &mut Default::default(), &Lent::default()))
    }

    proptest! {
        #[test]
        fn each_name_leads_to_the_stream_that_took_it_last(
            steps in prop::collection::vec((0..40_u8, any::<bool>()), 0..300),
        ) {
            let (mut names, mut streams) = (Names::default(), RamMap::default());
            let mut expected = HashMap::new();
            for (id, (number, ends)) in (1_u64 << 40..).zip(steps) {
                let text = number.to_string();
                let name = StreamName::from_stored(&text);
                if ends {
                    // Both the one that has it and one that had it before.
                    for (id, _) in streams.extract_if(|_, entry: &mut Box<Entry>| entry.name == name) {
                        names.remove(&name, id);
                    }
                    expected.remove(&number);
                } else {
                    names.insert(&name, id, &streams);
                    streams.insert(id, named(&text));
                    expected.insert(number, id);
                }
                for number in 0..40 {
                    let name = StreamName::from_stored(&number.to_string());
                    prop_assert_eq!(names.get(&name, &streams), expected.get(&number).copied());
                }
            }
            prop_assert_eq!(names.slots.len(), expected.len());
        }
    }

    #[test]
    fn a_slot_takes_twelve_bytes_and_keeps_its_id() {
        assert_eq!(size_of::<Slot>(), 12);
        assert_eq!(Slot::new(u64::MAX - 5, 7).id(), u64::MAX - 5);
    }
}
