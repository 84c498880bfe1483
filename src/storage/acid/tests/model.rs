//! Random commits against a model that is a few maps.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::storage::segment::SegmentMeta;
use crate::storage::{ColdReader, StorageError};

/// What a shard should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    streams: BTreeMap<u64, ModelStream>,
    groups: BTreeMap<u64, Bytes>,
    segments: BTreeMap<u64, SegmentMeta>,
    next_stream_id: u64,
    next_group: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct ModelStream {
    record: Vec<u8>,
    producers: BTreeMap<Bytes, (u64, u64)>,
    start: u64,
    payload: Vec<u8>,
    /// Positions at which a piece began.
    boundaries: Vec<u64>,
}

/// A group in terms that make sense whatever came before.
#[derive(Clone, Debug)]
pub(super) struct GroupPlan {
    seq_step: u64,
    frames_bytes: usize,
    checkpoint: Option<CheckpointPlan>,
}

#[derive(Clone, Debug)]
struct CheckpointPlan {
    streams: Vec<StreamPlan>,
    removed: Vec<usize>,
    trim: u64,
    /// Whether segments without anything alive are given up.
    gives_up: bool,
}

#[derive(Clone, Debug)]
struct StreamPlan {
    /// One of the streams there are, or a new one.
    which: usize,
    name_bytes: usize,
    producers: Vec<(u8, u64, u64)>,
    pieces: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Step {
    Commit(Vec<GroupPlan>),
    Reclaim,
    Reopen,
}

/// Sets the number of cases, unless `PROPTEST_CASES` does.
pub(super) fn cases(count: u32) -> ProptestConfig {
    let default = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() {
        default
    } else {
        ProptestConfig { cases: count, ..default }
    }
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..300_usize, 3 => 3_900..4_200_usize, 2 => 65_400..65_600_usize, 1 => 0..200_000_usize]
}

fn stream_plan() -> impl Strategy<Value = StreamPlan> {
    let producers = vec((0..4_u8, 0..9_u64, any::<u64>()), 0..3);
    (any::<usize>(), 1..200_usize, producers, vec(sizes(), 0..5)).prop_map(
        |(which, name_bytes, producers, pieces)| StreamPlan { which, name_bytes, producers, pieces },
    )
}

pub(super) fn group_plan() -> impl Strategy<Value = GroupPlan> {
    let checkpoint = (vec(stream_plan(), 0..4), vec(any::<usize>(), 0..2), 0..6_u64, any::<bool>())
        .prop_map(|(streams, removed, trim, gives_up)| CheckpointPlan { streams, removed, trim, gives_up });
    (1..3_u64, sizes(), proptest::option::of(checkpoint))
        .prop_map(|(seq_step, frames_bytes, checkpoint)| GroupPlan { seq_step, frames_bytes, checkpoint })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => vec(group_plan(), 1..4).prop_map(Step::Commit),
        1 => Just(Step::Reclaim),
        2 => Just(Step::Reopen),
    ]
}

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    (0..count as u64).map(|at| (at.wrapping_mul(31) ^ seed.wrapping_mul(131) ^ (at >> 8)) as u8).collect()
}

impl Model {
    /// Makes the plan concrete, writes its content into a segment, and takes it as committed.
    ///
    /// After an error, which is the disk's, the model is of no use.
    pub(super) fn apply(&mut self, plan: &GroupPlan, segments: &SegmentStore) -> Result<Group, StorageError> {
        let seq = self.next_group + plan.seq_step - 1;
        self.next_group = seq + 1;
        let frames = bytes(seq, plan.frames_bytes);
        if !frames.is_empty() || plan.checkpoint.is_none() {
            self.groups.insert(seq, frames.clone().into());
        }
        let checkpoint = plan.checkpoint.as_ref().map(|plan| self.apply_checkpoint(seq, plan));
        let mut group = Group { seq, frames: frames.into(), checkpoint, ..Group::default() };
        prepare(segments, &mut group)?;
        if let Some(checkpoint) = &mut group.checkpoint {
            self.segments.extend(checkpoint.segments_added.iter().map(|added| (added.id, *added)));
            if plan.checkpoint.as_ref().is_some_and(|plan| plan.gives_up) {
                checkpoint.segments_removed = segments.dead_segments();
                checkpoint.segments_removed.retain(|id| self.segments.remove(id).is_some());
            }
        }
        Ok(group)
    }

    fn apply_checkpoint(&mut self, seq: u64, plan: &CheckpointPlan) -> Checkpoint {
        let mut streams: Vec<StreamCheckpoint> = Vec::new();
        for stream in &plan.streams {
            let stream = self.apply_stream(seq, stream);
            // A checkpoint has each stream once.
            if streams.iter().all(|other| other.id != stream.id) {
                self.settle(&stream);
                streams.push(stream);
            }
        }
        let mut removed = Vec::new();
        for which in &plan.removed {
            let alive: Vec<_> = self.streams.keys().copied().collect();
            if !alive.is_empty() {
                let id = alive[which % alive.len()];
                self.streams.remove(&id);
                removed.push(id);
            }
        }
        let trim_before = (seq + 1).saturating_sub(plan.trim);
        self.groups = self.groups.split_off(&trim_before);
        let next_stream_id = self.next_stream_id;
        Checkpoint { streams, removed, trim_before, next_stream_id, ..Checkpoint::default() }
    }

    fn apply_stream(&mut self, seq: u64, plan: &StreamPlan) -> StreamCheckpoint {
        let alive: Vec<_> = self.streams.keys().copied().collect();
        let id = alive.get(plan.which % (alive.len() + 1)).copied().unwrap_or_else(|| {
            self.next_stream_id += 1;
            self.next_stream_id - 1
        });
        // A fork's own payload does not start at zero.
        let (base, start) = self
            .streams
            .get(&id)
            .map_or((id * 5, id * 5), |stream| (stream.start, stream.start + stream.payload.len() as u64));
        let piece = |(at, size): (usize, &usize)| bytes(seq + at as u64, *size).into();
        let payload: Vec<Bytes> = plan.pieces.iter().enumerate().map(piece).collect();
        let end = start + plan.pieces.iter().sum::<usize>() as u64;
        StreamCheckpoint {
            id,
            record: record(base..end, plan.name_bytes, seq),
            producers: plan
                .producers
                .iter()
                .map(|(id, epoch, last)| (vec![*id; 3].into(), *epoch, *last))
                .collect(),
            cut: None,
            start,
            end,
            payload,
        }
    }

    fn settle(&mut self, checkpoint: &StreamCheckpoint) {
        let stream = self.streams.entry(checkpoint.id).or_insert_with(|| ModelStream {
            record: Vec::new(),
            producers: BTreeMap::new(),
            start: checkpoint.start,
            payload: Vec::new(),
            boundaries: Vec::new(),
        });
        stream.record.clone_from(&checkpoint.record);
        // The order of a producer's entries within one checkpoint is not part of the contract: keep the greatest.
        let mut producers = checkpoint.producers.clone();
        producers.sort_unstable();
        stream.producers.extend(producers.into_iter().map(|(id, epoch, last)| (id, (epoch, last))));
        for piece in &checkpoint.payload {
            stream.boundaries.push(stream.start + stream.payload.len() as u64);
            stream.payload.extend_from_slice(piece);
        }
    }

    /// Whether this is what an opening found, content aside.
    pub(super) fn is_found_in(&self, opened: &OpenedShard) -> bool {
        let OpenedShard { recovered, segments, .. } = opened;
        let streams = recovered.streams.iter().map(|stream| {
            let producers: BTreeMap<_, _> =
                stream.producers.iter().map(|(id, epoch, last)| (id.clone(), (*epoch, *last))).collect();
            (stream.id, stream.record.to_vec(), producers)
        });
        self.groups.iter().map(|(seq, frames)| (*seq, frames.clone())).eq(recovered.groups.iter().cloned())
            && self
                .streams
                .iter()
                .map(|(id, stream)| (*id, stream.record.clone(), stream.producers.clone()))
                .eq(streams)
            && self.segments.values().copied().eq(segments.segments())
            && self.next_group == recovered.next_group
            && self.next_stream_id >= recovered.next_stream_id
    }

    /// Compares all settled payload, in several cuts.
    pub(super) fn check_reads(&self, reader: &dyn ColdReader) {
        for (id, stream) in &self.streams {
            let length = stream.payload.len();
            let end = stream.start + length as u64;
            for (from, to) in [(0, length), (0, length / 3), (length / 3, length / 2), (length / 2, length)] {
                let read =
                    reader.read_both_ways(*id, stream.start + from as u64, stream.start + to as u64).unwrap();
                assert!(read == stream.payload[from..to], "stream {id}, {from}..{to}");
            }
            assert!(matches!(
                reader.read_both_ways(*id, end.saturating_sub(1), end + 1),
                Err(StorageError::Missing)
            ));
            if length == 0 {
                continue;
            }
            assert_eq!(reader.boundary_at_or_before(*id, end).unwrap(), end);
            for position in (stream.start..end).step_by(length.div_ceil(20)) {
                let boundary = reader.boundary_at_or_before(*id, position).unwrap();
                assert!(boundary <= position && (boundary == 0 || stream.boundaries.contains(&boundary)));
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn reopening_finds_what_was_committed(has_file in any::<bool>(), steps in vec(step(), 1..25)) {
        let acid = if has_file { in_memory() } else { without_database_files() };
        let mut opened = acid.open(0).unwrap();
        let mut model = Model::default();
        for step in &steps {
            match step {
                Step::Commit(plans) => {
                    let segments = Arc::clone(&opened.segments);
                    let mut groups: Vec<_> =
                        plans.iter().map(|plan| model.apply(plan, &segments).unwrap()).collect();
                    opened.log.commit(&mut groups).unwrap();
                    publish(&segments, groups);
                }
                Step::Reclaim => prop_assert!(!opened.log.reclaim().unwrap()),
                Step::Reopen => {
                    let (taken, live) = (opened.log.disk_bytes(), opened.segments.live_bytes());
                    drop(opened);
                    opened = acid.open(0).unwrap();
                    prop_assert!(model.is_found_in(&opened), "{model:?}\n{:?}", opened.recovered);
                    prop_assert_eq!(opened.segments.live_bytes(), live);
                    // The account that was kept is the one that the tables give. A file may take less.
                    prop_assert!(has_file || opened.log.disk_bytes() == taken);
                }
            }
            model.check_reads(&*opened.segments);
            let payload: u64 = model.streams.values().map(|stream| stream.payload.len() as u64).sum();
            prop_assert_eq!(opened.segments.live_bytes(), payload);
        }
    }
}
