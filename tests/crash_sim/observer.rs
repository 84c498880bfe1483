//! A reader that looks at streams while others change them. What it has seen was durable, so it is there after a cut.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use durable_streams_server::engine::api::{ReadError, ReadRequest};
use durable_streams_server::protocol::offset::RequestedOffset;

use crate::client::Client;
use crate::request::stream_name;
use crate::sim_disk::Dice;
use crate::world::{World, within};

pub(crate) struct Observer {
    names: Vec<u8>,
    dice: Dice,
    /// By name and incarnation.
    seen: HashMap<(u8, u128), Seen>,
    /// Incarnations after whose end somebody was told of it.
    over: HashSet<(u8, u128)>,
}

struct Seen {
    content: Vec<u8>,
    closed: bool,
    /// Deletions of the name that were over before.
    ends: u64,
}

impl Observer {
    pub(crate) fn new(names: Vec<u8>, dice: Dice) -> Self {
        Self { names, dice, seen: HashMap::new(), over: HashSet::new() }
    }

    /// Looks until told to stop.
    pub(crate) async fn watch(&mut self, world: &World, stop: &Cell<bool>) {
        while !stop.get() && !world.disk.is_frozen() {
            let name = self.names[self.dice.roll(self.names.len())];
            let (_, ends) = world.ends(name);
            let request =
                ReadRequest { name: stream_name(name), from: RequestedOffset::Start, max_bytes: 1 << 24 };
            match within(world.store().read(request)).await {
                Ok(page) => {
                    assert!(page.up_to_date(), "these streams fit into one page");
                    let known = (name, page.info.incarnation);
                    assert!(!self.over.contains(&known), "{name} was gone");
                    let new = Seen { content: page.data.concat(), closed: page.info.closed, ends };
                    if let Some(seen) = self.seen.get(&known) {
                        assert!(new.content.starts_with(&seen.content), "bytes of {name} that were read");
                        assert!(new.closed || !seen.closed, "{name} was closed");
                    }
                    self.seen.insert(known, new);
                }
                Err(ReadError::Refused(_)) => {
                    let lives = self.seen.keys().filter(|(other, _)| *other == name);
                    self.over.extend(lives.copied());
                }
                Err(ReadError::Unavailable(why)) => world.expect_unreadable(why),
                Err(ReadError::InvalidOffset | ReadError::OffsetGone { .. }) => {
                    panic!("the start of {name} is a position")
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// Compares what was seen with what is there. To be asked when that is known.
    pub(crate) fn check(&self, world: &World, client: &Client) {
        for name in client.lasting_names() {
            let current = client.incarnation(name);
            for ((_, incarnation), seen) in self.seen.iter().filter(|((other, _), _)| *other == name) {
                let is_over = self.over.contains(&(name, *incarnation));
                if current != Some(*incarnation) {
                    let ended = is_over || world.ends(name).0 > seen.ends;
                    assert!(ended, "{name} was read, nobody has deleted it, and it is gone");
                    continue;
                }
                assert!(!is_over, "{name} is back from the dead");
                let stream = client.stream(name).expect("its incarnation is known");
                assert!(stream.content.starts_with(&seen.content), "bytes of {name} that were read are gone");
                assert!(stream.closed.is_some() || !seen.closed, "{name} was closed");
            }
        }
    }
}
