//! Retention: when the beginning of a stream goes, and how far. `protocol.md` §17.
//!
//! A stream with limits notes where some of its appends begin, and when. What lies between two notes is a *unit*: it stays
//! or goes as a whole. So a cut always falls on the beginning of an append, which is a message boundary. Appends are joined
//! into one unit until it has a 32nd part of either limit; that is how exact the limits are, and it bounds the number of
//! units.
//!
//! Two positions move. Before `earliest` nobody reads any more. Before `released` the bytes are not needed by anybody:
//! it follows `earliest` as long as no fork pins the stream, as forks may read what was there when they were made.

use crate::protocol::retention::Retention;

/// Parts into which a limit is divided: how exact it is.
const PARTS: u64 = 32;
/// Most units of a stream. The limits keep them to half of that, as long as cuts are not late.
const UNITS_MAX: usize = 128;

/// The limits of one stream, and where they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionSettings {
    /// What holds. At least one limit is set.
    pub limits: Retention,
    /// The age was asked for at creation, and is no default.
    pub age_asked: bool,
    /// The bytes were asked for at creation, and are no default.
    pub bytes_asked: bool,
}

impl RetentionSettings {
    /// What becomes of a creation that asks for `asked` on a server with these defaults. `None` = everything is kept.
    pub fn decide(asked: Retention, defaults: Retention) -> Option<Self> {
        let limits = asked.or(defaults);
        (!limits.is_none()).then_some(Self {
            limits,
            age_asked: asked.max_age_secs.is_some(),
            bytes_asked: asked.max_bytes.is_some(),
        })
    }
}

/// Whether a repeated creation that asks for `asked` agrees with what the first one came to. A limit that is asked for has
/// to be the one that holds. One that is not must not have been asked for then, whatever the default was or is: so a
/// change of the configuration turns no repeated creation into a conflict.
pub fn matches(settings: Option<&RetentionSettings>, asked: Retention) -> bool {
    let agrees = |asked: Option<u64>, holds: Option<u64>, was_asked: bool| match asked {
        Some(_) => asked == holds,
        None => !was_asked,
    };
    match settings {
        None => asked.is_none(),
        Some(RetentionSettings { limits, age_asked, bytes_asked }) => {
            agrees(asked.max_age_secs, limits.max_age_secs, *age_asked)
                && agrees(asked.max_bytes, limits.max_bytes, *bytes_asked)
        }
    }
}

/// Content that stays or goes as a whole: from here to the next unit, or the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// First position.
    pub start: u64,
    /// When its last byte came. Wall clock, milliseconds since 1970.
    pub newest_ms: i64,
}

/// What is kept of a stream with limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retained {
    settings: RetentionSettings,
    earliest: u64,
    released: u64,
    /// By position, and by time. The first one begins at `earliest`; empty if nothing is kept.
    units: Vec<Unit>,
}

impl Retained {
    /// Of a new stream whose own content begins at `base`. What a fork inherits, from `earliest` to there, is one unit of
    /// the age of the fork.
    pub(super) fn new(settings: RetentionSettings, earliest: u64, base: u64, at_ms: i64) -> Self {
        let mut units = Vec::new();
        if earliest < base {
            units.push(Unit { start: earliest, newest_ms: at_ms });
        }
        Self { settings, earliest, released: base, units }
    }

    /// Puts together what the accessors gave. `None` if that cannot be.
    pub fn from_parts(
        settings: RetentionSettings,
        (earliest, released, tail): (u64, u64, u64),
        units: Vec<Unit>,
    ) -> Option<Self> {
        let in_order = units
            .windows(2)
            .all(|pair| pair[0].start < pair[1].start && pair[0].newest_ms <= pair[1].newest_ms);
        let begins = units.first().map_or(earliest == tail, |unit| unit.start == earliest);
        let ends = units.last().is_none_or(|unit| unit.start < tail);
        let sound = in_order && begins && ends && earliest <= tail && released <= tail;
        sound.then_some(Self { settings, earliest, released, units })
    }

    /// Its limits.
    pub fn settings(&self) -> &RetentionSettings {
        &self.settings
    }

    /// First position that readers of the stream see.
    pub fn earliest(&self) -> u64 {
        self.earliest
    }

    /// First own position whose bytes somebody may need.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// What is kept, from [`Self::earliest`] on.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// Content that begins at `start`, the tail until now, came.
    pub(super) fn appended(&mut self, start: u64, at_ms: i64) {
        let last = self.units.last();
        // A clock that was set back must not make what is behind older than what is before it.
        let at_ms = last.map_or(at_ms, |last| last.newest_ms.max(at_ms));
        let joins =
            last.is_some_and(|last| self.units.len() >= UNITS_MAX || self.has_room(last, start, at_ms));
        match self.units.last_mut() {
            Some(last) if joins => last.newest_ms = at_ms,
            _ => self.units.push(Unit { start, newest_ms: at_ms }),
        }
    }

    /// Whether a unit that has content up to `end` takes what comes now.
    fn has_room(&self, unit: &Unit, end: u64, at_ms: i64) -> bool {
        let by_bytes =
            self.settings.limits.max_bytes.is_none_or(|max| end - unit.start < (max / PARTS).max(1));
        let by_age = self.max_age_ms().is_none_or(|max| {
            // All of a unit is of one slice of time, so that its first byte is not much older than its last.
            let slice_ms = (max / PARTS as i64).max(1);
            unit.newest_ms.div_euclid(slice_ms) == at_ms.div_euclid(slice_ms)
        });
        by_bytes && by_age
    }

    fn max_age_ms(&self) -> Option<i64> {
        let secs = self.settings.limits.max_age_secs?;
        Some(i64::try_from(secs.saturating_mul(1000)).unwrap_or(i64::MAX))
    }

    /// What is before `earliest` goes; for readers, and unless a fork may read it, for good.
    pub(super) fn trim(&mut self, earliest: u64, base: u64, tail: u64, is_pinned: bool) {
        let earliest = earliest.clamp(self.earliest, tail);
        let ended = self.units.partition_point(|unit| unit.start < earliest);
        // The one that the cut is in, if it is in one.
        let cut = self.units[..ended].last().copied();
        self.units.drain(..ended);
        if let Some(cut) = cut
            && self.units.first().map_or(tail, |unit| unit.start) > earliest
        {
            self.units.insert(0, Unit { start: earliest, ..cut });
        }
        self.earliest = earliest;
        if !is_pinned {
            self.release(base);
        }
    }

    /// No fork needs what readers do not see.
    pub(super) fn release(&mut self, base: u64) {
        self.released = self.released.max(self.earliest.max(base));
    }

    /// Where the limits ask for a cut now; `None` = they do not.
    pub(super) fn due_cut(&self, tail: u64, now_ms: i64) -> Option<u64> {
        let by_age = self.max_age_ms().map_or(0, |max_age_ms| {
            let aged = self.units.partition_point(|unit| unit.newest_ms.saturating_add(max_age_ms) <= now_ms);
            let next = self.units.get(aged).map_or(tail, |unit| unit.start);
            if aged == 0 { 0 } else { next }
        });
        let cut = by_age.max(self.cut_by_bytes(tail).unwrap_or(0));
        (cut > self.earliest).then_some(cut)
    }

    /// The last beginning of a unit from which there is as much to `tail` as is to be kept.
    pub(super) fn cut_by_bytes(&self, tail: u64) -> Option<u64> {
        let spare = tail.checked_sub(self.settings.limits.max_bytes?)?;
        let spared = self.units.partition_point(|unit| unit.start <= spare);
        Some(self.units[spared.checked_sub(1)?].start)
    }

    /// When to look again whether content is too old, if nothing comes. Milliseconds since 1970; `None` = never.
    pub fn next_due_ms(&self) -> Option<i64> {
        Some(self.units.first()?.newest_ms.saturating_add(self.max_age_ms()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn retained(max_age_secs: Option<u64>, max_bytes: Option<u64>) -> Retained {
        let asked = Retention { max_age_secs, max_bytes };
        Retained::new(RetentionSettings::decide(asked, Retention::default()).unwrap(), 0, 0, 0)
    }

    #[test]
    fn a_repeated_creation_matches_what_was_asked_for_or_what_holds() {
        let limits = |max_age_secs, max_bytes| Retention { max_age_secs, max_bytes };
        let none = Retention::default();
        for (asked, defaults, same, other) in [
            (none, none, vec![none], vec![limits(Some(1), None), limits(None, Some(1))]),
            (
                limits(Some(1), None),
                none,
                vec![limits(Some(1), None)],
                vec![none, limits(Some(2), None), limits(Some(1), Some(1))],
            ),
            // What holds by default may be asked for, or not.
            (
                none,
                limits(Some(7), Some(8)),
                vec![none, limits(Some(7), None), limits(Some(7), Some(8))],
                vec![limits(Some(8), None), limits(None, Some(7))],
            ),
            (
                limits(Some(1), None),
                limits(Some(7), Some(8)),
                vec![limits(Some(1), None), limits(Some(1), Some(8))],
                vec![none, limits(Some(7), None)],
            ),
        ] {
            let settings = RetentionSettings::decide(asked, defaults);
            for same in same {
                assert!(matches(settings.as_ref(), same), "{asked:?} by {defaults:?}: {same:?}");
            }
            for other in other {
                assert!(!matches(settings.as_ref(), other), "{asked:?} by {defaults:?}: {other:?}");
            }
        }
    }

    #[test]
    fn an_append_is_one_unit_however_large_it_is() {
        let mut kept = retained(None, Some(10));
        kept.appended(0, 0);
        assert_eq!(kept.due_cut(1_000, 0), None, "nothing but the last append is there");
        kept.appended(1_000, 0);
        assert_eq!(kept.due_cut(1_009, 0), None, "what is behind is less than is to be kept");
        kept.appended(1_009, 0);
        assert_eq!(kept.due_cut(1_010, 0), Some(1_000));
        kept.trim(1_000, 0, 1_010, false);
        assert_eq!((kept.earliest(), kept.released(), kept.due_cut(1_010, 0)), (1_000, 1_000, None));
    }

    #[test]
    fn content_leaves_at_its_age_and_an_empty_stream_goes_on() {
        let mut kept = retained(Some(32), None);
        assert_eq!(kept.next_due_ms(), None);
        kept.appended(0, 5_000);
        kept.appended(3, 5_999);
        kept.appended(5, 6_000);
        assert_eq!(kept.next_due_ms(), Some(37_999), "what came within a second is one unit");
        assert_eq!(kept.due_cut(9, 37_998), None);
        assert_eq!(kept.due_cut(9, 37_999), Some(5));
        assert_eq!(kept.due_cut(9, 38_000), Some(9));
        kept.trim(9, 0, 9, false);
        assert_eq!((kept.earliest(), kept.units(), kept.next_due_ms()), (9, &[][..], None));
        kept.appended(9, 1);
        assert_eq!(kept.due_cut(10, 32_001), Some(10));
    }

    #[test]
    fn while_forks_pin_the_stream_its_bytes_stay() {
        let mut kept = retained(Some(1), None);
        kept.appended(0, 0);
        kept.trim(4, 0, 4, true);
        assert_eq!((kept.earliest(), kept.released()), (4, 0));
        kept.release(0);
        assert_eq!(kept.released(), 4);
    }

    #[test]
    fn what_a_fork_inherits_is_a_unit_of_its_own_age() {
        let settings = *retained(Some(10), Some(4)).settings();
        let mut kept = Retained::new(settings, 3, 8, 1_000);
        assert_eq!((kept.earliest(), kept.released(), kept.next_due_ms()), (3, 8, Some(11_000)));
        kept.appended(8, 2_000);
        assert_eq!(kept.due_cut(11, 2_000), None);
        assert_eq!(kept.due_cut(12, 2_000), Some(8));
        assert_eq!(kept.due_cut(11, 11_000), Some(8));
        kept.trim(8, 8, 11, false);
        assert_eq!((kept.earliest(), kept.released()), (8, 8));
    }

    #[test]
    fn times_saturate() {
        let mut kept = retained(Some(9_007_199_254_740_991), Some(9_007_199_254_740_991));
        kept.appended(0, i64::MAX);
        assert_eq!((kept.next_due_ms(), kept.due_cut(5, i64::MAX - 1)), (Some(i64::MAX), None));
    }

    proptest! {
        /// The promise of `docs/extensions.md`, for any sequence of appends.
        #[test]
        fn limits_are_kept_to_a_32nd_part_and_one_append(
            max_age_secs in prop::option::of(1..100_u64),
            max_bytes in prop::option::of(1..3_000_u64),
            appends in prop::collection::vec((1..200_u64, 0..5_000_i64), 1..300),
        ) {
            prop_assume!(max_age_secs.is_some() || max_bytes.is_some());
            let mut kept = retained(max_age_secs, max_bytes);
            let (mut tail, mut now_ms, mut largest) = (0, 0, 0);
            let mut log = Vec::new();
            for (len, pause_ms) in appends {
                now_ms += pause_ms;
                kept.appended(tail, now_ms);
                log.push((tail, now_ms));
                tail += len;
                largest = largest.max(len);
                let before = kept.clone();
                if let Some(cut) = kept.due_cut(tail, now_ms) {
                    prop_assert!(cut > kept.earliest() && cut <= tail);
                    prop_assert!(cut == tail || log.iter().any(|&(start, _)| start == cut));
                    kept.trim(cut, 0, tail, false);
                    prop_assert_eq!(kept.due_cut(tail, now_ms), None);
                }
                prop_assert!(kept.units().len() <= 2 * PARTS as usize + 4, "{}", kept.units().len());
                let earliest = kept.earliest();
                // What is gone was old enough, or was beyond what is kept by size.
                let beyond = max_bytes.is_some_and(|max| tail - earliest >= max);
                let newest_gone = log.iter().rev().find(|&&(start, _)| start < earliest);
                let aged = |&(_, at_ms): &(u64, i64)| {
                    max_age_secs.is_some_and(|max| at_ms + max as i64 * 1_000 <= now_ms)
                };
                prop_assert!(earliest == before.earliest() || beyond || newest_gone.is_none_or(aged));
                // What is there is not much more than the limits allow.
                if let Some(max) = max_bytes {
                    prop_assert!(tail - earliest < max + (max / PARTS).max(1) + largest);
                }
                if let (Some(max), Some((_, at_ms))) = (max_age_secs, log.iter().find(|&&(start, _)| start >= earliest)) {
                    prop_assert!(now_ms - at_ms < max as i64 * 1_000 + max as i64 * 1_000 / PARTS as i64 + 1);
                }
                let parts = (kept.earliest(), kept.released(), tail);
                prop_assert_eq!(Retained::from_parts(*kept.settings(), parts, kept.units().to_vec()), Some(kept.clone()));
            }
        }
    }
}
