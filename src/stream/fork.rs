//! Forks: where inherited bytes come from. `protocol.md` §18.

use crate::protocol::name::StreamName;

/// One incarnation of a stream, wherever it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamRef {
    /// Shard that owns it.
    pub shard: u16,
    /// Its id within the shard.
    pub id: u64,
}

/// A stretch of inherited bytes: from the end of the previous stretch to `end`, read from `stream`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// Who stores these bytes.
    pub stream: StreamRef,
    /// First position that is no longer inherited from it.
    pub end: u64,
}

/// How a fork came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkOrigin {
    /// Name of the source at that time.
    pub source: StreamName,
    /// The source's incarnation; it holds a pin for this fork.
    pub source_ref: StreamRef,
    /// Anchor as resolved.
    pub anchor: u64,
    /// First position that the source's readers saw at that time, at or before the anchor: the fork's readers see no
    /// earlier one either.
    pub earliest: u64,
    /// Sub-offset as sent, absent counting as 0.
    pub sub_offset: u64,
    /// Where the fork's own bytes begin.
    pub point: u64,
    /// The lifetime was the source's, not asked for.
    pub lifetime_inherited: bool,
    /// Who stores the inherited bytes, in order of position; the last one ends at `point`. Flat: a chain of forks is
    /// resolved once, at creation, so a read never walks it.
    pub lineage: Vec<Ancestor>,
}

/// Lineage of a fork at `point` of a source that has the lineage `inherited` and owns what follows it.
///
/// Each ancestor is read up to the smallest fork point between it and the fork.
pub fn lineage(source: StreamRef, inherited: &[Ancestor], point: u64) -> Vec<Ancestor> {
    let mut lineage = Vec::with_capacity(inherited.len() + 1);
    let mut covered = 0;
    for ancestor in inherited {
        if covered >= point {
            break;
        }
        covered = ancestor.end.min(point);
        lineage.push(Ancestor { stream: ancestor.stream, end: covered });
    }
    if covered < point {
        lineage.push(Ancestor { stream: source, end: point });
    }
    lineage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(id: u64) -> StreamRef {
        StreamRef { shard: 0, id }
    }

    fn ancestor(id: u64, end: u64) -> Ancestor {
        Ancestor { stream: stream(id), end }
    }

    #[test]
    fn a_chain_is_cut_at_the_smallest_fork_point_above_each_ancestor() {
        let second = lineage(stream(1), &[], 10);
        assert_eq!(second, [ancestor(1, 10)]);
        assert_eq!(lineage(stream(2), &second, 15), [ancestor(1, 10), ancestor(2, 15)]);
        assert_eq!(lineage(stream(2), &second, 4), [ancestor(1, 4)]);
        assert_eq!(lineage(stream(2), &second, 10), [ancestor(1, 10)]);
        assert_eq!(lineage(stream(2), &second, 0), []);
    }
}
