//! Boundaries between stored messages. Stored bytes passed the checks when they came in; they are trusted here, and
//! only strings and brackets are looked at.
//!
//! All of these take bytes that begin at a boundary, and none looks further than it has to.

use super::text;

/// By how much a byte outside strings changes the depth of nesting.
static DEPTH_CHANGES: [i8; 256] = {
    let mut changes = [0; 256];
    changes[b'[' as usize] = 1;
    changes[b'{' as usize] = 1;
    changes[b']' as usize] = -1;
    changes[b'}' as usize] = -1;
    changes
};

/// Length in bytes of the first message, its comma included; `None` if `stored` does not hold all of it.
pub fn first_message_len(stored: &[u8]) -> Option<usize> {
    let mut depth = 0_isize;
    let mut at = 0;
    loop {
        let byte = *stored.get(at)?;
        at += 1;
        // Brackets come in no order that a processor could guess, so they are counted without a branch.
        depth += isize::from(DEPTH_CHANGES[usize::from(byte)]);
        if byte == b'"' {
            at = text::trusted_end(stored, at)?;
        } else if byte == b',' && depth == 0 {
            return Some(at);
        }
    }
}

/// Whether a message begins at `at`, or the last one ends there.
pub fn is_boundary(stored: &[u8], at: usize) -> bool {
    match at.checked_sub(1) {
        None => true,
        // Nearly every other position is told apart by its byte alone.
        Some(last) => stored.get(last) == Some(&b',') && floor_boundary(stored, at) == at,
    }
}

/// Greatest boundary that is at most `at_most`.
pub fn floor_boundary(stored: &[u8], at_most: usize) -> usize {
    let within = &stored[..at_most.min(stored.len())];
    let mut boundary = 0;
    while let Some(len) = first_message_len(&within[boundary..]) {
        boundary += len;
    }
    boundary
}

/// Skips up to `count` messages. Returns the bytes and the messages that were skipped; these are fewer than `count` if
/// `stored` does not hold as many.
pub fn skip_messages(stored: &[u8], count: u64) -> (usize, u64) {
    let mut bytes = 0;
    let mut messages = 0;
    while messages < count
        && let Some(len) = first_message_len(&stored[bytes..])
    {
        bytes += len;
        messages += 1;
    }
    (bytes, messages)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STORED: &[u8] = b"1,\"a,\\\"]\",[1,{\"b\":[2,3]}],{\"c,\":\",\"},null,";
    const BOUNDARIES: [usize; 6] = [0, 2, 10, 26, 37, 42];

    #[test]
    fn commas_in_strings_and_brackets_are_no_boundaries() {
        for at in 0..=STORED.len() {
            assert_eq!(is_boundary(STORED, at), BOUNDARIES.contains(&at), "{at}");
            let floor = BOUNDARIES.into_iter().rfind(|&boundary| boundary <= at);
            assert_eq!(Some(floor_boundary(STORED, at)), floor, "{at}");
        }
        assert!(!is_boundary(STORED, STORED.len() + 1));
        assert_eq!(floor_boundary(STORED, usize::MAX), STORED.len());
    }

    #[test]
    fn a_message_that_is_cut_off_has_no_length() {
        assert_eq!(first_message_len(b""), None);
        for (index, pair) in BOUNDARIES.windows(2).enumerate() {
            let message = &STORED[pair[0]..pair[1]];
            assert_eq!(first_message_len(&STORED[pair[0]..]), Some(message.len()), "message {index}");
            for len in 0..message.len() {
                assert_eq!(first_message_len(&message[..len]), None, "message {index}");
            }
        }
    }

    #[test]
    fn skipping_stops_at_the_end() {
        for (count, boundary) in BOUNDARIES.into_iter().enumerate() {
            assert_eq!(skip_messages(STORED, count as u64), (boundary, count as u64));
        }
        assert_eq!(skip_messages(STORED, 9), (STORED.len(), 5));
        assert_eq!(skip_messages(&STORED[..30], u64::MAX), (26, 3));
        assert_eq!(skip_messages(b"", 1), (0, 0));
    }

    proptest! {
        #[test]
        fn boundaries_are_where_messages_were_put_together(
            messages in prop::collection::vec(
                "-?[1-9]{1,3}|\"([a,\\[\\]{}]|\\\\\"|\\\\\\\\){0,80}\"|\\[(1,\\{\"\\}\":\\[\\]\\},)?2\\]", 1..12,
            ),
            at in 0..400_usize,
        ) {
            let mut stored = String::new();
            let mut boundaries = vec![0];
            for message in &messages {
                stored = stored + message + ",";
                boundaries.push(stored.len());
            }
            let stored = stored.as_bytes();
            prop_assert_eq!(is_boundary(stored, at), boundaries.contains(&at));
            let floor = boundaries.iter().copied().rfind(|&boundary| boundary <= at);
            prop_assert_eq!(Some(floor_boundary(stored, at)), floor);
            let count = at.min(messages.len());
            prop_assert_eq!(skip_messages(stored, count as u64), (boundaries[count], count as u64));
        }
    }
}
