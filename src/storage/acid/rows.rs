//! Where rows are cut: sizes that fill redb's pages.

/// redb's page size; leaves are this times a power of two.
const PAGE_BYTES: usize = 4096;
/// Largest page that a row of ours may take.
const PAGE_BYTES_MAX: usize = 64 * 1024;
/// A page with a single row: 4 bytes of page header and 4 bytes of value length, besides the key.
const PAGE_OVERHEAD_BYTES: usize = 8;

/// Key of `journal`: `u64` and `u32`.
pub(super) const JOURNAL_KEY_BYTES: usize = 12;

/// Key of `streams`: `u64`.
pub(super) const STREAM_KEY_BYTES: usize = 8;
/// Key of `producers`, besides the producer's id: `u64`.
pub(super) const PRODUCER_KEY_BYTES_MIN: usize = 8;
/// Value of `producers`: two `u64`.
pub(super) const PRODUCER_VALUE_BYTES: usize = 16;
/// Key and value of `segments`: two `u64` and a `u32`.
pub(super) const SEGMENT_ROW_BYTES: usize = 20;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fill_their_page_and_waste_at_most_a_quarter() {
        for total in (1..300_000).step_by(97) {
            let mut remaining = total;
            while remaining > 0 {
                let size = next_value_bytes(remaining, JOURNAL_KEY_BYTES);
                assert!(size > 0 && size <= remaining);
                let used = size + JOURNAL_KEY_BYTES + PAGE_OVERHEAD_BYTES;
                assert!(used <= PAGE_BYTES_MAX);
                let page = used.next_power_of_two().max(PAGE_BYTES);
                assert!(page == PAGE_BYTES || page - used <= page / 4, "{total}: {used} of {page}");
                remaining -= size;
            }
        }
    }
}
