//! Which streams a directory is going to have, under which ids, and who forks whom.

use std::collections::HashMap;

use crate::engine::shard_of;
use crate::protocol::name::StreamName;
use crate::stream::fork::{Ancestor, StreamRef, lineage};
use crate::tools::ToolError;
use crate::tools::image::{Image, stream_ref};

/// Where a stream comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The directory as it is.
    There(StreamRef),
    /// The input: number of the stream in it.
    Input(usize),
}

/// A stream that is to be there.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: StreamName,
    pub(super) origin: Origin,
    /// It is there for its forks only.
    pub(super) deleted: bool,
    /// Name of its source, and where it forks it.
    pub(super) fork: Option<(StreamName, u64)>,
}

/// A stream with its place.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) name: StreamName,
    pub(super) origin: Origin,
    pub(super) own: StreamRef,
    pub(super) fork: Option<PlannedFork>,
    /// The forks that need it.
    pub(super) pins: Vec<StreamRef>,
}

/// What a fork refers to.
#[derive(Debug)]
pub(super) struct PlannedFork {
    pub(super) source: StreamRef,
    pub(super) lineage: Vec<Ancestor>,
}

/// All streams, by shard and id.
#[derive(Debug)]
pub(super) struct Population {
    pub(super) streams: Vec<Planned>,
    /// No stream has this id or a higher one.
    pub(super) next_id: u64,
}

/// The streams of a directory as it is.
pub(super) fn members(image: &Image) -> impl Iterator<Item = Member> + '_ {
    image.by_name().into_values().map(|stream| {
        let there = image.stream(stream).expect("it was just listed");
        Member {
            name: there.name.clone(),
            origin: Origin::There(stream),
            deleted: there.state.soft_deleted,
            fork: there.state.fork.as_ref().map(|fork| (fork.source.clone(), fork.point)),
        }
    })
}

impl Population {
    /// Gives each member a shard and an id: new ones from `first_id` on, over all shards, so that no incarnation is ever
    /// that of two streams. Those that are deleted and have no forks any more are left out.
    pub(super) fn plan(
        mut members: Vec<Member>,
        shard_count: usize,
        first_id: u64,
    ) -> Result<Self, ToolError> {
        let sources = needed(&mut members)?;
        let mut next_id = first_id;
        let mut own = Vec::with_capacity(members.len());
        for member in &members {
            own.push(stream_ref(shard_of(member.name.as_str(), shard_count), next_id));
            next_id += 1;
        }
        let lineages = lineages(&members, &sources, &own)?;
        let mut pins = vec![Vec::new(); members.len()];
        for (fork, source) in sources.iter().enumerate() {
            if let Some(source) = source {
                pins[*source].push(own[fork]);
            }
        }
        let streams = members.into_iter().zip(lineages).zip(pins).enumerate();
        let mut streams: Vec<Planned> = streams
            .map(|(index, ((member, lineage), pins))| Planned {
                name: member.name,
                origin: member.origin,
                own: own[index],
                fork: sources[index].map(|source| PlannedFork { source: own[source], lineage }),
                pins,
            })
            .collect();
        streams.sort_unstable_by_key(|stream| stream.own);
        Ok(Self { streams, next_id })
    }
}

/// Leaves the members that are to be there, and says which of them is the source of each.
fn needed(members: &mut Vec<Member>) -> Result<Vec<Option<usize>>, ToolError> {
    let by_name: HashMap<StreamName, usize> =
        members.iter().enumerate().map(|(index, member)| (member.name.clone(), index)).collect();
    let mut sources = Vec::with_capacity(members.len());
    for member in &*members {
        sources.push(match &member.fork {
            None => None,
            Some((source, _)) => Some(*by_name.get(source).ok_or_else(|| {
                ToolError::Conflict(format!(
                    "{:?} is a fork of {:?}, which is not there",
                    member.name.as_str(),
                    source.as_str()
                ))
            })?),
        });
    }
    let mut is_needed = vec![false; members.len()];
    for (index, member) in members.iter().enumerate() {
        let mut next = (!member.deleted).then_some(index);
        while let Some(index) = next.filter(|index| !is_needed[*index]) {
            is_needed[index] = true;
            next = sources[index];
        }
    }
    // Numbers of those that stay, by their numbers before.
    let mut count = 0;
    let places: Vec<Option<usize>> = is_needed
        .iter()
        .map(|is_needed| {
            let place = is_needed.then_some(count);
            count += usize::from(*is_needed);
            place
        })
        .collect();
    let mut kept = is_needed.iter();
    members.retain(|_| *kept.next().expect("there is one for each"));
    let renumbered = sources.iter().zip(&is_needed).filter(|(_, is_needed)| **is_needed);
    Ok(renumbered.map(|(source, _)| source.and_then(|source| places[source])).collect())
}

/// The lineage of each fork, empty for others: sources first.
fn lineages(
    members: &[Member],
    sources: &[Option<usize>],
    own: &[StreamRef],
) -> Result<Vec<Vec<Ancestor>>, ToolError> {
    let mut done: Vec<Option<Vec<Ancestor>>> = vec![None; members.len()];
    for index in 0..members.len() {
        let mut chain = Vec::new();
        let mut next = Some(index);
        while let Some(index) = next.filter(|index| done[*index].is_none()) {
            if chain.len() > members.len() {
                let what = format!("{:?} would be a fork of itself", members[index].name.as_str());
                return Err(ToolError::Conflict(what));
            }
            chain.push(index);
            next = sources[index];
        }
        for index in chain.into_iter().rev() {
            let of_source = sources[index].zip(members[index].fork.as_ref());
            done[index] = Some(of_source.map_or_else(Vec::new, |(source, (_, point))| {
                let inherited = done[source].as_deref().unwrap_or_default();
                lineage(own[source], inherited, *point)
            }));
        }
    }
    Ok(done.into_iter().map(Option::unwrap_or_default).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, deleted: bool, fork: Option<(&str, u64)>) -> Member {
        Member {
            name: StreamName::from_stored(name),
            origin: Origin::Input(0),
            deleted,
            fork: fork.map(|(source, point)| (StreamName::from_stored(source), point)),
        }
    }

    #[test]
    fn sources_are_found_wherever_they_are_and_those_that_nobody_needs_are_left_out() {
        let members = vec![
            member("c", false, Some(("b", 7))),
            member("b", true, Some(("a", 5))),
            member("a", true, None),
            member("alone", true, None),
            member("gone", true, Some(("a", 1))),
        ];
        let Population { streams, next_id } = Population::plan(members, 3, 100).unwrap();
        assert_eq!(next_id, 103);
        let of = |name: &str| streams.iter().find(|stream| stream.name.as_str() == name).unwrap();
        let (a, b, c) = (of("a"), of("b"), of("c"));
        assert_eq!((&a.pins, &b.pins, &c.pins), (&vec![b.own], &vec![c.own], &vec![]));
        let expected = [Ancestor { stream: a.own, end: 5 }, Ancestor { stream: b.own, end: 7 }];
        assert_eq!(c.fork.as_ref().unwrap().lineage, expected);
        assert_eq!(streams.len(), 3);
        assert!(streams.is_sorted_by_key(|stream| stream.own));
        assert_eq!(usize::from(a.own.shard), shard_of("a", 3));
    }

    #[test]
    fn forks_in_a_circle_and_forks_of_nothing_are_refused() {
        let circle = vec![member("a", false, Some(("b", 0))), member("b", false, Some(("a", 0)))];
        assert!(Population::plan(circle, 1, 1).unwrap_err().to_string().contains("fork of itself"));
        let orphan = vec![member("a", false, Some(("b", 0)))];
        assert!(Population::plan(orphan, 1, 1).unwrap_err().to_string().contains("is not there"));
    }
}
