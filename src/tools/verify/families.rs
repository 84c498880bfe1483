//! Forks and their sources, over all shards.

use super::{Finding, Report};
use crate::stream::fork::{Ancestor, ForkOrigin, StreamRef, lineage};
use crate::tools::image::{StreamImage, Streams, stream_ref};

/// Checks each fork against its source and ancestors, and each pin against its fork. Shards that could not be read are
/// passed over, and so is what refers to them.
pub(super) fn check(shards: &[Option<Streams>], report: &mut Report<'_>) {
    let families = Families { shards };
    for (shard, streams) in shards.iter().enumerate() {
        for (&id, stream) in streams.iter().flat_map(|streams| &streams.by_id) {
            let own = stream_ref(shard, id);
            let mut add = |finding: Finding| {
                report.add(finding.in_shard(shard).of_stream(id, Some(&stream.name)));
            };
            if let Some(fork) = &stream.state.fork {
                families.fork(own, fork, &mut |what| add(Finding::error(what)));
            }
            families.pins(own, stream, &mut |what| add(Finding::note(what)));
            if stream.state.soft_deleted && !stream.state.is_pinned() {
                add(Finding::note("it is kept for forks, and has none; a server lets go of it"));
            }
        }
    }
}

struct Families<'a> {
    shards: &'a [Option<Streams>],
}

/// What is known of a stream that somebody refers to.
enum Referred<'a> {
    Known(&'a StreamImage),
    Missing,
    /// Its shard could not be read.
    Unreadable,
}

impl Families<'_> {
    fn stream(&self, stream: StreamRef) -> Referred<'_> {
        match self.shards.get(usize::from(stream.shard)) {
            None => Referred::Missing,
            Some(None) => Referred::Unreadable,
            Some(Some(streams)) => streams.by_id.get(&stream.id).map_or(Referred::Missing, Referred::Known),
        }
    }

    fn fork(&self, own: StreamRef, fork: &ForkOrigin, wrong: &mut dyn FnMut(String)) {
        for &Ancestor { stream, end } in &fork.lineage {
            match self.stream(stream) {
                Referred::Missing => wrong(format!("its content up to {end} was that of {}", Id(stream))),
                Referred::Known(ancestor) if ancestor.state.tail < end => wrong(format!(
                    "it takes content up to {end} from {:?}, which ends at {}",
                    ancestor.name.as_str(),
                    ancestor.state.tail
                )),
                Referred::Known(_) | Referred::Unreadable => {}
            }
        }
        let source = match self.stream(fork.source_ref) {
            Referred::Unreadable => return,
            Referred::Missing => {
                return wrong(format!(
                    "its source {:?} is gone ({})",
                    fork.source.as_str(),
                    Id(fork.source_ref)
                ));
            }
            Referred::Known(source) => source,
        };
        let (needed, released) = (fork.earliest.max(source.state.base()), source.state.released());
        if needed < released.min(fork.point) {
            let name = source.name.as_str();
            wrong(format!("it needs {name:?} from {needed} on, which keeps what begins at {released}"));
        }
        if source.name != fork.source {
            wrong(format!(
                "its source is {:?}, and should be {:?}",
                source.name.as_str(),
                fork.source.as_str()
            ));
        }
        if !source.state.pins().any(|pin| pin == own) {
            wrong(format!("its source {:?} has no pin for it", source.name.as_str()));
        }
        if source.state.tail < fork.point {
            let tail = source.state.tail;
            wrong(format!("it forks {:?} at {}, which ends at {tail}", source.name.as_str(), fork.point));
        }
        let inherited = source.state.fork.as_ref().map_or(&[][..], |fork| &fork.lineage);
        if lineage(fork.source_ref, inherited, fork.point) != fork.lineage {
            wrong(format!("its lineage is not what follows from its source {:?}", source.name.as_str()));
        }
    }

    /// A crash at the wrong moment leaves a pin for a fork that was never made; a server lets go of it.
    fn pins(&self, own: StreamRef, stream: &StreamImage, note: &mut dyn FnMut(String)) {
        for pin in stream.state.pins() {
            let is_fork = match self.stream(pin) {
                Referred::Unreadable => true,
                Referred::Missing => false,
                Referred::Known(child) => {
                    child.state.fork.as_ref().is_some_and(|fork| fork.source_ref == own)
                }
            };
            if !is_fork {
                note(format!("it is kept for a fork that does not exist ({})", Id(pin)));
            }
        }
    }
}

/// Prints a reference.
struct Id(StreamRef);

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "id {} of shard {:02}", self.0.id, self.0.shard)
    }
}
