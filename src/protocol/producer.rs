//! The decimal numbers of request headers. `protocol.md` §3.

/// Greatest number in any header: 2^53 − 1, the greatest integer that every JSON and JavaScript client holds exactly.
pub const NUMBER_MAX: u64 = 9_007_199_254_740_991;

/// Reads `Producer-Epoch` and `Producer-Seq`: `[0-9]+`, leading zeros allowed, at most [`NUMBER_MAX`].
pub fn parse_number(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0, |number: u64, digit| {
        let number = digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))?;
        // Checked at every digit, so the product above stays far from overflowing.
        (number <= NUMBER_MAX).then_some(number)
    })
}

/// Reads `Stream-TTL` and `Stream-Fork-Sub-Offset`: `0` or `[1-9][0-9]*`, at most [`NUMBER_MAX`].
pub fn parse_plain_number(value: &[u8]) -> Option<u64> {
    match value {
        [b'0', _, ..] => None,
        _ => parse_number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_allowed_in_producer_numbers() {
        assert_eq!(parse_number(b"0"), Some(0));
        assert_eq!(parse_number(b"007"), Some(7));
        assert_eq!(parse_number(&[b'0'; 300]), Some(0));
        assert_eq!(parse_number(b"0009007199254740991"), Some(NUMBER_MAX));
    }

    #[test]
    fn plain_numbers_have_no_leading_zeros() {
        assert_eq!(parse_plain_number(b"0"), Some(0));
        assert_eq!(parse_plain_number(b"10"), Some(10));
        assert_eq!(parse_plain_number(b"9007199254740991"), Some(NUMBER_MAX));
        assert_eq!(parse_plain_number(b"00"), None);
        assert_eq!(parse_plain_number(b"01"), None);
    }

    #[test]
    fn anything_but_digits_and_anything_too_large_is_refused() {
        for value in [
            "",
            " ",
            "+1",
            "-1",
            "-0",
            "1 ",
            " 1",
            "1.0",
            "1e3",
            "0x1",
            "1_0",
            "٣",
            "9007199254740992",
            "18446744073709551616",
            "99999999999999999999999999999999999999999",
        ] {
            assert_eq!(parse_number(value.as_bytes()), None, "{value:?}");
            assert_eq!(parse_plain_number(value.as_bytes()), None, "{value:?}");
        }
    }
}
