//! Where rows are cut: sizes that fill redb's pages, and settled payload as rows.

/// redb's page size; leaves are this times a power of two.
const PAGE_BYTES: usize = 4096;
/// Largest page that a row of ours may take.
const PAGE_BYTES_MAX: usize = 64 * 1024;
/// A page with a single row: 4 bytes of page header and 4 bytes of value length, besides the key.
const PAGE_OVERHEAD_BYTES: usize = 8;

/// Key of `journal`: `u64` and `u32`.
pub(super) const JOURNAL_KEY_BYTES: usize = 12;
/// Key of `extents`: two `u64`.
pub(super) const EXTENT_KEY_BYTES: usize = 16;

/// Key of `streams`: `u64`.
pub(super) const STREAM_KEY_BYTES: usize = 8;
/// Key of `producers`, besides the producer's id: `u64`.
pub(super) const PRODUCER_KEY_BYTES_MIN: usize = 8;
/// Value of `producers`: two `u64`.
pub(super) const PRODUCER_VALUE_BYTES: usize = 16;

/// Flag byte of an extent: the row starts at a message boundary.
pub(super) const STARTS_AT_BOUNDARY: u8 = 1;

/// Largest value of a row with a key of `key_bytes`.
pub(super) const fn value_bytes_max(key_bytes: usize) -> usize {
    PAGE_BYTES_MAX - PAGE_OVERHEAD_BYTES - key_bytes
}

/// Bytes of disk for a row: a page of its own if it is large, else its share of one.
pub(super) fn disk_bytes_of_row(key_bytes: usize, value_bytes: usize) -> u64 {
    let used = key_bytes + value_bytes + PAGE_OVERHEAD_BYTES;
    (if used > PAGE_BYTES { used.next_power_of_two() } else { used }) as u64
}

/// Size of the next value when `remaining` bytes (more than 0) are to be written as values under keys of `key_bytes`.
///
/// Leaves at most a quarter of a page empty: 36 KiB become a row of 32 KiB and one of 4 KiB, not one that takes 64 KiB.
pub(super) fn next_value_bytes(remaining: usize, key_bytes: usize) -> usize {
    let overhead = PAGE_OVERHEAD_BYTES + key_bytes;
    if remaining + overhead >= PAGE_BYTES_MAX {
        return PAGE_BYTES_MAX - overhead;
    }
    let page = (remaining + overhead).next_power_of_two().max(PAGE_BYTES);
    if page == PAGE_BYTES || remaining + overhead > page / 4 * 3 { remaining } else { page / 2 - overhead }
}

/// One row of `extents` to be written.
#[derive(Debug)]
pub(super) struct ExtentRow<'a> {
    /// Position of the first byte of payload.
    pub(super) start: u64,
    /// Flag byte and payload.
    pub(super) value: &'a [u8],
}

/// Cuts one stream's payload into rows.
///
/// Small pieces share a row; one that does not fit into the row at hand begins the next. So from any position, a row that
/// starts at a message boundary is at most one piece and one row away.
#[derive(Debug, Default)]
pub(super) struct ExtentCutter {
    /// Value of the row at hand: flag byte and payload.
    row: Vec<u8>,
    /// Indices into `row` at which a piece is known to begin, ascending.
    boundaries: Vec<usize>,
    start: u64,
}

impl ExtentCutter {
    /// Begins at `start`, a message boundary.
    pub(super) fn begin(&mut self, start: u64) {
        self.resume(start, &[STARTS_AT_BOUNDARY]);
    }

    /// Begins by continuing the stored row `value` that starts at `start`.
    pub(super) fn resume(&mut self, start: u64, value: &[u8]) {
        self.boundaries.clear();
        self.row.clear();
        self.row.extend_from_slice(value);
        self.start = start;
    }

    /// Whether a stored row should be continued: it is short enough to be rewritten anyway, with the page that it shares
    /// with its successor, and it starts at a boundary. One that does not is left alone, lest boundaries get rare.
    pub(super) fn is_worth_resuming(value: &[u8]) -> bool {
        value.len() + EXTENT_KEY_BYTES + PAGE_OVERHEAD_BYTES < PAGE_BYTES
            && value.first() == Some(&STARTS_AT_BOUNDARY)
    }

    /// Takes in a piece that begins at a message boundary; `emit` gets the rows that are complete by that.
    pub(super) fn push<E>(
        &mut self,
        piece: &[u8],
        emit: &mut impl FnMut(ExtentRow<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        const MAX: usize = value_bytes_max(EXTENT_KEY_BYTES);
        if piece.is_empty() {
            return Ok(());
        }
        if self.row.len() > 1 && self.row.len() + piece.len() > MAX {
            self.finish(emit)?;
        }
        if self.row.is_empty() {
            self.row.push(STARTS_AT_BOUNDARY);
        } else {
            self.boundaries.push(self.row.len());
        }
        let mut rest = piece;
        while self.row.len() + rest.len() > MAX {
            let (now, later) = rest.split_at(MAX - self.row.len());
            self.row.extend_from_slice(now);
            self.cut(self.row.len(), emit)?;
            self.row.push(0);
            rest = later;
        }
        self.row.extend_from_slice(rest);
        Ok(())
    }

    /// Emits what is left. A piece pushed after this begins a row.
    pub(super) fn finish<E>(
        &mut self,
        emit: &mut impl FnMut(ExtentRow<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.row.len() > 1 {
            let fitting = next_value_bytes(self.row.len(), EXTENT_KEY_BYTES);
            let boundary = self.boundaries.iter().rev().copied().find(|at| *at <= fitting);
            let size =
                boundary.filter(|at| *at >= fitting / 4 * 3 && fitting < self.row.len()).unwrap_or(fitting);
            let flag = if boundary == Some(size) { STARTS_AT_BOUNDARY } else { 0 };
            self.cut(size, emit)?;
            if !self.row.is_empty() {
                self.row.insert(0, flag);
                self.boundaries.retain_mut(|at| {
                    let keep = *at > size;
                    *at = (*at + 1).saturating_sub(size);
                    keep
                });
            }
        }
        self.row.clear();
        self.boundaries.clear();
        Ok(())
    }

    /// Emits the first `size` bytes of the row at hand and keeps the others, without a flag byte.
    fn cut<E>(
        &mut self,
        size: usize,
        emit: &mut impl FnMut(ExtentRow<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        emit(ExtentRow { start: self.start, value: &self.row[..size] })?;
        self.start += (size - 1) as u64;
        self.row.drain(..size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn cut(start: u64, sizes: &[usize]) -> Vec<(u64, Vec<u8>)> {
        let mut rows = Vec::new();
        let mut emit = |row: ExtentRow<'_>| {
            rows.push((row.start, row.value.to_vec()));
            Ok::<_, Infallible>(())
        };
        let mut cutter = ExtentCutter::default();
        cutter.begin(start);
        for (index, size) in sizes.iter().enumerate() {
            cutter.push(&vec![index as u8; *size], &mut emit).unwrap();
        }
        cutter.finish(&mut emit).unwrap();
        rows
    }

    fn joined(rows: &[(u64, Vec<u8>)], start: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (at, value) in rows {
            assert_eq!(*at, start + bytes.len() as u64, "rows are contiguous");
            assert!(value.len() > 1 && value.len() <= value_bytes_max(EXTENT_KEY_BYTES));
            bytes.extend_from_slice(&value[1..]);
        }
        bytes
    }

    #[test]
    fn values_fill_their_page_and_waste_at_most_a_quarter() {
        for key_bytes in [JOURNAL_KEY_BYTES, EXTENT_KEY_BYTES] {
            for total in (1..300_000).step_by(97) {
                let mut remaining = total;
                while remaining > 0 {
                    let size = next_value_bytes(remaining, key_bytes);
                    assert!(size > 0 && size <= remaining && size <= value_bytes_max(key_bytes));
                    let used = size + key_bytes + PAGE_OVERHEAD_BYTES;
                    let page = used.next_power_of_two().max(PAGE_BYTES);
                    assert!(page == PAGE_BYTES || page - used <= page / 4, "{total}: {used} of {page}");
                    remaining -= size;
                }
            }
        }
    }

    #[test]
    fn small_pieces_share_a_row_that_starts_at_a_boundary() {
        let rows = cut(7, &[10, 20, 30]);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].0, rows[0].1[0]), (7, STARTS_AT_BOUNDARY));
        assert_eq!(joined(&rows, 7).len(), 60);
    }

    #[test]
    fn a_piece_that_does_not_fit_begins_a_row() {
        let rows = cut(0, &[10_000, 60_000]);
        assert_eq!(joined(&rows, 0), [vec![0; 10_000], vec![1; 60_000]].concat());
        let at =
            rows.iter().find(|(start, _)| *start == 10_000).expect("the second piece has a row of its own");
        assert_eq!(at.1[0], STARTS_AT_BOUNDARY);
    }

    #[test]
    fn a_large_piece_is_flagged_at_its_first_row_only() {
        let rows = cut(0, &[200_000]);
        assert_eq!(joined(&rows, 0).len(), 200_000);
        assert_eq!(rows.iter().filter(|(_, value)| value[0] == STARTS_AT_BOUNDARY).count(), 1);
        assert_eq!(rows[0].1[0], STARTS_AT_BOUNDARY);
    }

    #[test]
    fn rows_are_cut_between_pieces_where_that_wastes_little() {
        let rows = cut(0, &[100; 50]);
        assert_eq!(joined(&rows, 0).len(), 5_000);
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[1].0, rows[1].1[0]), (4_000, STARTS_AT_BOUNDARY));
    }

    #[test]
    fn sizes_around_the_limit_lose_nothing() {
        let max = value_bytes_max(EXTENT_KEY_BYTES);
        for size in [1, max - 2, max - 1, max, max + 1, 2 * max - 2, 2 * max - 1, 2 * max, 2 * max + 1] {
            for next in [0, 1, max] {
                assert_eq!(joined(&cut(5, &[size, next]), 5).len(), size + next, "{size} + {next}");
            }
        }
    }
}
