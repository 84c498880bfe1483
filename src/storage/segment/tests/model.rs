//! Random work against a model: settling, cuts, removals, rewrites with any of these in between, and reopening.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// Largest message.
const MESSAGE_BYTES_MAX: u64 = 70_000;

#[derive(Clone, Debug)]
enum Step {
    /// Messages of some streams. A stream that does not exist is made.
    Settle(Vec<(u64, Vec<u64>)>),
    Cut(u64, Index),
    Forget(u64),
    /// Segments to be rewritten, all that the policy chooses if there are none; and what happens meanwhile.
    Rewrite(Vec<Index>, Vec<Step>),
    RemoveDead,
    Reopen,
    Look(Vec<(u64, Index, Index)>),
}

#[derive(Debug)]
struct Stream {
    kept: u64,
    end: u64,
    boundaries: BTreeSet<u64>,
}

#[derive(Debug)]
struct Model {
    disk: MemoryDisk,
    store: SegmentStore,
    /// By number; ids of streams are never used again.
    streams: BTreeMap<u64, (u64, Stream)>,
    catalog: Vec<SegmentMeta>,
    next_stream: u64,
    rewrites: u64,
}

const LIMITS: StoreLimits = StoreLimits { descriptors_max: 2, run_bytes_max: 90_000 };

fn policy() -> RewritePolicy {
    RewritePolicy { class_count: 3, ..RewritePolicy::default() }
}

impl Model {
    fn new() -> Self {
        let disk = new_disk();
        let store = new_store(&disk).with_limits(LIMITS).with_policy(policy());
        let (streams, catalog) = (BTreeMap::new(), Vec::new());
        Self { disk, store, streams, catalog, next_stream: 1, rewrites: 0 }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Settle(runs) => self.settle(runs),
            Step::Cut(number, at) => self.cut(*number, at),
            Step::Forget(number) => {
                if let Some((id, _)) = self.streams.remove(number) {
                    self.store.forget(&[id]);
                }
            }
            Step::Rewrite(chosen, meanwhile) => self.rewrite(chosen, meanwhile),
            Step::RemoveDead => {
                let dead = self.store.dead_segments();
                self.catalog.retain(|meta| !dead.contains(&meta.id));
                self.store.publish(vec![], &dead).unwrap();
            }
            Step::Reopen => self.reopen(),
            Step::Look(looks) => {
                for (number, from, to) in looks {
                    self.look(*number, from, to);
                }
            }
        }
    }

    fn settle(&mut self, runs: &[(u64, Vec<u64>)]) {
        let mut sources = BTreeMap::new();
        for (number, messages) in runs {
            let next = self.next_stream;
            let (id, stream) = self.streams.entry(*number).or_insert_with(|| {
                let start = if next.is_multiple_of(2) { 0 } else { next * 1000 };
                (next, Stream { kept: start, end: start, boundaries: BTreeSet::new() })
            });
            self.next_stream += u64::from(*id == next);
            sources.entry(*id).or_insert_with(Vec::new).push(run(*id, stream.end, messages));
            for message in messages {
                stream.boundaries.insert(stream.end);
                stream.end += message;
            }
        }
        let prepared = self.store.write_segment(sources.into_values().flatten().collect()).unwrap();
        self.catalog.push(prepared.meta());
        self.store.publish(vec![prepared], &[]).unwrap();
    }

    fn cut(&mut self, number: u64, at: &Index) {
        if let Some((id, stream)) = self.streams.get_mut(&number) {
            let cuts: Vec<u64> =
                stream.boundaries.range(stream.kept..).copied().chain([stream.end]).collect();
            stream.kept = cuts[at.index(cuts.len())];
            self.store.cut(*id, stream.kept);
        }
    }

    fn rewrite(&mut self, chosen: &[Index], meanwhile: &[Step]) {
        let chosen: BTreeSet<u64> = chosen
            .iter()
            .filter(|_| !self.catalog.is_empty())
            .map(|at| self.catalog[at.index(self.catalog.len())].id)
            .collect();
        let plan = if chosen.is_empty() {
            self.store.choose_rewrite(u64::MAX)
        } else {
            Some(RewritePlan { segments: chosen.into_iter().collect(), live_bytes: 0 })
        };
        let Some(plan) = plan else { return };
        let segments = plan.segments().to_vec();
        let prepared = self.store.rewrite(plan, &mut |_| ControlFlow::Continue(())).unwrap();
        for step in meanwhile {
            self.take(step);
        }
        if let Some(prepared) = prepared {
            self.rewrites += 1;
            self.catalog.retain(|meta| !segments.contains(&meta.id));
            self.catalog.push(prepared.meta());
            self.store.publish(vec![prepared], &segments).unwrap();
        }
    }

    fn reopen(&mut self) {
        let keep = self.streams.values().map(|(id, stream)| (*id, stream.kept..stream.end));
        let store = open(&self.disk, &self.catalog, &keep.collect::<Vec<_>>()).unwrap();
        assert_eq!(store.live_bytes(), self.store.live_bytes());
        assert_eq!(store.disk_bytes(), self.store.disk_bytes());
        assert_eq!(store.dead_segments(), self.store.dead_segments());
        assert_eq!(files(&self.disk).len(), self.catalog.len());
        self.store = store.with_limits(LIMITS).with_policy(policy());
    }

    fn look(&self, number: u64, from: &Index, to: &Index) {
        let Some((id, stream)) = self.streams.get(&number) else { return };
        // A little beyond both ends.
        let position = |index: &Index| {
            let low = stream.kept.saturating_sub(3);
            low + index.index((stream.end + 3 - low) as usize) as u64
        };
        let (a, b) = (position(from), position(to));
        let (from, to) = (a.min(b), a.max(b));
        if from < to && (from < stream.kept || to > stream.end) {
            check_missing(&self.store, *id, from..to);
        } else {
            check_read(&self.store, *id, from..to);
        }
        self.check_boundary(*id, stream, a);
    }

    fn check_boundary(&self, id: u64, stream: &Stream, position: u64) {
        let found = self.store.boundary_at_or_before(id, position);
        if position == 0 {
            assert_eq!(found.unwrap(), 0);
        } else if position < stream.kept || stream.kept == stream.end {
            assert!(matches!(found, Err(StorageError::Missing)), "{found:?}");
        } else if position >= stream.end {
            assert_eq!(found.unwrap(), stream.end);
        } else {
            let found = found.unwrap();
            assert!(stream.kept <= found && found <= position);
            assert!(stream.boundaries.contains(&found), "{found}");
            let distance = MESSAGE_BYTES_MAX + (2 + self.rewrites) * BLOCK;
            assert!(position - found <= distance, "{found} for {position}");
        }
    }

    fn check_all(&self) {
        let live: u64 = self.streams.values().map(|(_, stream)| stream.end - stream.kept).sum();
        assert_eq!(self.store.live_bytes(), live);
        assert_eq!(self.store.segments().len(), self.catalog.len());
        for (id, stream) in self.streams.values() {
            check_read(&self.store, *id, stream.kept..stream.end);
            for &boundary in stream.boundaries.range(stream.kept..) {
                self.check_boundary(*id, stream, boundary);
            }
        }
        assert_eq!(self.store.verify(&mut |_| ()), vec![]);
    }
}

fn step(depth: u32) -> BoxedStrategy<Step> {
    let number = 0..5_u64;
    let message = prop_oneof![12 => 1..300_u64, 2 => 20_000..40_000_u64, 1 => Just(MESSAGE_BYTES_MAX)];
    let messages = prop::collection::vec(message, 1..8);
    let look = (number.clone(), any::<Index>(), any::<Index>());
    let simple = prop_oneof![
        4 => prop::collection::vec((number.clone(), messages), 1..4).prop_map(Step::Settle),
        2 => (number.clone(), any::<Index>()).prop_map(|(number, at)| Step::Cut(number, at)),
        1 => number.prop_map(Step::Forget),
        3 => prop::collection::vec(look, 1..6).prop_map(Step::Look),
    ];
    if depth == 0 {
        return simple.boxed();
    }
    let meanwhile = prop::collection::vec(step(depth - 1), 0..4);
    prop_oneof![
        6 => simple,
        3 => (prop::collection::vec(any::<Index>(), 0..4), meanwhile)
            .prop_map(|(chosen, meanwhile)| Step::Rewrite(chosen, meanwhile)),
        1 => Just(Step::RemoveDead),
        1 => Just(Step::Reopen),
    ]
    .boxed()
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_store_behaves_like_its_model(steps in prop::collection::vec(step(1), 1..25)) {
        let mut model = Model::new();
        for step in &steps {
            model.take(step);
        }
        model.check_all();
        model.take(&Step::Reopen);
        model.check_all();
    }
}
