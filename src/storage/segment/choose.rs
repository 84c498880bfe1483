//! Which segments are worth to be written anew.
//!
//! There are two reasons:
//!
//! * **Dead bytes.** Less than half of a segment is alive. Copying what is left frees more than it writes.
//! * **Many segments.** Eight or more are of the same size class: they become one. Classes are powers of four of live
//!   bytes, from 16 KiB up to 64 MiB. What is larger is not joined any more.
//!
//! # What it costs
//!
//! Eight segments of a class make one of a higher class, with at least twice the bytes that the higher class begins
//! with. So a byte is joined at most once a class on its way up: seven times if it was settled in the lowest class,
//! twice from 4 MiB on. Only dying bytes bring a segment down a class. One that was joined has to lose half for that, and
//! so did one that is rewritten for its dead bytes; so for each byte that dies, one that lives may have the same way
//! to go again. (Segments in the lowest class may stay in it: a hundred KiB, joined again and again.)
//!
//! Bytes written by rewrites are therefore bounded by seven times what was settled and eight times what died. With
//! segments of the size that a busy shard settles it is twice and three times.
//!
//! # What it keeps
//!
//! Live segments have about twice the bytes that are alive in them at most. There are at most seven of each of seven
//! classes, and those above, of which each has 64 MiB.

use super::index::LiveSegment;

/// When to rewrite.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RewritePolicy {
    /// A segment is rewritten if fewer of its payload bytes are alive, percent.
    pub(crate) live_percent_min: u64,
    /// Such segments are joined up to so many bytes.
    pub(crate) target_bytes: u64,
    /// Number of segments of a class that makes them one.
    pub(crate) class_count: usize,
    /// Live bytes of the largest segment of the lowest class …
    pub(crate) lowest_class_bytes: u64,
    /// … and above those of the largest one of the highest.
    pub(crate) highest_class_bytes: u64,
    /// Most live bytes that are joined because there are many segments.
    pub(crate) joined_bytes_max: u64,
    /// Most segments that are read at a time: each takes a descriptor and a buffer.
    pub(crate) sources_max: usize,
}

impl Default for RewritePolicy {
    fn default() -> Self {
        Self {
            live_percent_min: 50,
            target_bytes: 64 << 20,
            class_count: 8,
            lowest_class_bytes: 16 << 10,
            highest_class_bytes: 64 << 20,
            joined_bytes_max: 256 << 20,
            sources_max: 32,
        }
    }
}

/// Segments that are to become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RewritePlan {
    pub(super) segments: Vec<u64>,
    pub(super) live_bytes: u64,
}

impl RewritePlan {
    /// Their ids: what the checkpoint that carries the rewritten segment removes.
    pub(crate) fn segments(&self) -> &[u64] {
        &self.segments
    }

    /// Payload bytes that were alive when the plan was made.
    #[cfg(test)]
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u64,
    live_bytes: u64,
    payload_bytes: u64,
}

/// Chooses among `segments`, which come by id: oldest first. The plan has at most `live_bytes_max`.
pub(super) fn choose<'a>(
    policy: &RewritePolicy,
    live_bytes_max: u64,
    segments: impl Iterator<Item = &'a LiveSegment>,
) -> Option<RewritePlan> {
    let candidates: Vec<Candidate> = segments
        .filter(|live| (1..=live_bytes_max).contains(&live.live_bytes) && !live.incomplete && !live.damaged)
        .map(|live| Candidate {
            id: live.segment.key.id,
            live_bytes: live.live_bytes,
            payload_bytes: live.segment.trailer.payload_bytes,
        })
        .collect();
    sparse(policy, live_bytes_max, &candidates).or_else(|| many(policy, live_bytes_max, candidates))
}

/// The emptiest segments.
fn sparse(policy: &RewritePolicy, live_bytes_max: u64, candidates: &[Candidate]) -> Option<RewritePlan> {
    let percent = |candidate: &Candidate| {
        u128::from(candidate.live_bytes) * 100 / u128::from(candidate.payload_bytes.max(1))
    };
    let is_sparse = |candidate: &&Candidate| percent(candidate) < u128::from(policy.live_percent_min);
    let mut sparse: Vec<Candidate> = candidates.iter().filter(is_sparse).copied().collect();
    sparse.sort_by_key(|candidate| (percent(candidate), candidate.id));
    (!sparse.is_empty()).then(|| join(policy, &sparse, policy.target_bytes.min(live_bytes_max)))
}

/// The oldest segments of the lowest class that has too many.
fn many(policy: &RewritePolicy, live_bytes_max: u64, mut candidates: Vec<Candidate>) -> Option<RewritePlan> {
    candidates.retain(|candidate| candidate.live_bytes < policy.highest_class_bytes);
    let class = |candidate: &Candidate| {
        let mut class_bytes = policy.lowest_class_bytes.max(1);
        while class_bytes <= candidate.live_bytes {
            class_bytes = class_bytes.saturating_mul(4);
        }
        class_bytes
    };
    candidates.sort_by_key(|candidate| (class(candidate), candidate.id));
    let of_a_class = candidates.chunk_by(|a, b| class(a) == class(b));
    let many = of_a_class.into_iter().find(|candidates| candidates.len() >= policy.class_count.max(2))?;
    Some(join(policy, many, policy.joined_bytes_max.min(live_bytes_max)))
}

/// As many of `candidates`, at least one, as have no more than `bytes_max` together.
fn join(policy: &RewritePolicy, candidates: &[Candidate], bytes_max: u64) -> RewritePlan {
    let mut plan = RewritePlan { segments: Vec::new(), live_bytes: 0 };
    for candidate in candidates.iter().take(policy.sources_max.max(1)) {
        let live_bytes = plan.live_bytes + candidate.live_bytes;
        if !plan.segments.is_empty() && live_bytes > bytes_max {
            break;
        }
        plan.live_bytes = live_bytes;
        plan.segments.push(candidate.id);
    }
    plan
}
