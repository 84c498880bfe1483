//! Cursors: numbers of 20-second intervals that live reads carry in their URLs, so that a shared cache never answers
//! one with the page of an earlier one. `protocol.md` §15.3.

/// 2024-10-09T00:00:00Z, where the counting of intervals begins, in milliseconds since the Unix epoch.
const EPOCH_MS: i64 = 1_728_432_000_000;
/// Length of an interval in milliseconds.
const INTERVAL_MS: i64 = 20_000;
/// Most intervals that an answer goes past the client's cursor: 3600 s.
const JITTER_MAX: u64 = 180;
/// Most digits of a client's cursor. Keeps every sum far from overflowing.
const DIGITS_MAX: usize = 15;

/// Number of the interval that holds `now_ms` (milliseconds since the Unix epoch); 0 before the counting began.
pub fn current(now_ms: i64) -> u64 {
    u64::try_from(now_ms.saturating_sub(EPOCH_MS) / INTERVAL_MS).unwrap_or(0)
}

/// Reads a client's cursor: 1 to 15 decimal digits. Anything else is to be ignored, hence no error.
pub fn parse(value: &str) -> Option<u64> {
    if value.is_empty() || value.len() > DIGITS_MAX || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    value.parse().ok()
}

/// The cursor to answer with: the current interval, or, if the client is already there or ahead, its cursor plus 1 to
/// 180, chosen by `jitter` (any random number). So always greater than the client's.
pub fn answer(client: Option<u64>, now_ms: i64, jitter: u64) -> u64 {
    let current = current(now_ms);
    match client {
        Some(client) if client >= current => client.saturating_add(1 + jitter % JITTER_MAX),
        _ => current,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn intervals_are_counted_from_the_epoch() {
        assert_eq!(current(EPOCH_MS), 0);
        assert_eq!(current(EPOCH_MS + 19_999), 0);
        assert_eq!(current(EPOCH_MS + 20_000), 1);
        assert_eq!(current(EPOCH_MS - 1), 0);
        assert_eq!(current(EPOCH_MS - 1_000_000), 0);
        assert_eq!(current(i64::MIN), 0);
    }

    #[test]
    fn only_up_to_15_digits_are_a_cursor() {
        assert_eq!(parse("0"), Some(0));
        assert_eq!(parse("007"), Some(7));
        assert_eq!(parse("999999999999999"), Some(999_999_999_999_999));
        for value in ["", "1000000000000000", "-1", "+1", " 1", "1 ", "1.0", "0x1", "٣"] {
            assert_eq!(parse(value), None, "{value:?}");
        }
    }

    #[test]
    fn without_a_cursor_or_with_an_old_one_the_current_interval_is_answered() {
        let now_ms = EPOCH_MS + 100 * INTERVAL_MS;
        assert_eq!(answer(None, now_ms, 7), 100);
        assert_eq!(answer(Some(99), now_ms, 7), 100);
    }

    proptest! {
        #[test]
        fn the_answer_is_greater_than_the_clients_cursor(
            client in 0..=999_999_999_999_999_u64, now_ms in any::<i64>(), jitter in any::<u64>(),
        ) {
            let answered = answer(Some(client), now_ms, jitter);
            prop_assert!(answered > client);
            prop_assert!(answered >= current(now_ms));
            if client >= current(now_ms) {
                prop_assert!((1..=JITTER_MAX).contains(&(answered - client)));
            }
        }
    }
}
