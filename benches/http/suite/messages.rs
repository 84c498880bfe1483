//! Messages that say who sent them as the how manieth and when, and the check that each arrives once, and in its writer's order.
//!
//! ```text
//! message := '@' writer (2 hex digits) number (8) time (16, ns) 'x'…     as text with a line end, as JSON in quotes
//! ```
//!
//! Nothing else that a server sends with a stream's content has an `@`: neither framing of events nor control events.

use memchr::memchr;

/// Sign, number and time.
const MARK_BYTES: usize = 27;
/// Mark and quotes: a message is not shorter.
pub(crate) const BYTES_MIN: usize = MARK_BYTES + 2;

/// How messages are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `text/plain`, a line each.
    Text,
    /// `application/json`, a string each.
    Json,
}

impl Format {
    /// Of the streams that hold them.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain",
            Self::Json => "application/json",
        }
    }
}

/// Writes message `number` of a writer over what is in `out`: `len` bytes, at least [`BYTES_MIN`].
pub(crate) fn write(out: &mut Vec<u8>, format: Format, len: usize, writer: u8, number: u32, sent_at_ns: u64) {
    let len = len.max(BYTES_MIN);
    out.clear();
    out.resize(len, b'x');
    let start = usize::from(format == Format::Json);
    out[start] = b'@';
    hex(&mut out[start + 1..start + 3], u64::from(writer));
    hex(&mut out[start + 3..start + 11], u64::from(number));
    hex(&mut out[start + 11..start + MARK_BYTES], sent_at_ns);
    match format {
        Format::Json => {
            out[0] = b'"';
            out[len - 1] = b'"';
        }
        Format::Text => out[len - 1] = b'\n',
    }
}

fn hex(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}

fn parse_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, &digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// Finds messages in a body that arrives in pieces of any size, and holds each against the one before.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    /// Number of the message that is due, for each writer.
    next: Vec<u64>,
    received: u64,
    /// The beginning of a mark whose rest has not arrived.
    carry: Vec<u8>,
    /// Messages that had arrived before.
    pub(crate) doubled: u64,
    /// Messages that were left out.
    pub(crate) missing: u64,
    /// Marks that are none.
    pub(crate) garbled: u64,
}

impl Checker {
    /// Messages that have arrived, or were passed over.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Takes a piece of a body; calls `each` with the time at which a message was sent, in ns.
    pub(crate) fn feed(&mut self, mut input: &[u8], mut each: impl FnMut(u64)) {
        if !self.carry.is_empty() {
            let wanted = (MARK_BYTES - self.carry.len()).min(input.len());
            self.carry.extend_from_slice(&input[..wanted]);
            if self.carry.len() < MARK_BYTES {
                return;
            }
            let mark = std::mem::take(&mut self.carry);
            self.mark(&mark, &mut each);
            input = &input[wanted..];
            self.carry = mark;
            self.carry.clear();
        }
        while let Some(at) = memchr(b'@', input) {
            let Some(mark) = input.get(at..at + MARK_BYTES) else {
                self.carry.extend_from_slice(&input[at..]);
                return;
            };
            self.mark(mark, &mut each);
            input = &input[at + MARK_BYTES..];
        }
    }

    fn mark(&mut self, mark: &[u8], each: &mut impl FnMut(u64)) {
        let fields = (parse_hex(&mark[1..3]), parse_hex(&mark[3..11]), parse_hex(&mark[11..]));
        let (Some(writer), Some(number), Some(sent_at)) = fields else {
            self.garbled += 1;
            return;
        };
        let writer = usize::try_from(writer).expect("two digits fit");
        if self.next.len() <= writer {
            self.next.resize(writer + 1, 0);
        }
        let next = &mut self.next[writer];
        if number < *next {
            self.doubled += 1;
            return;
        }
        self.missing += number - *next;
        self.received += number + 1 - *next;
        *next = number + 1;
        each(sent_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(format: Format, numbers: &[u32]) -> Vec<u8> {
        let of_one = numbers.iter().map(|number| (0, *number)).collect::<Vec<_>>();
        events_of(format, &of_one)
    }

    fn events_of(format: Format, messages: &[(u8, u32)]) -> Vec<u8> {
        let (mut all, mut message) = (Vec::new(), Vec::new());
        for &(writer, number) in messages {
            write(&mut message, format, 60, writer, number, u64::from(number) * 1000);
            assert_eq!(message.len(), 60);
            all.extend_from_slice(b"event: data\ndata:");
            all.extend_from_slice(&message);
            all.extend_from_slice(b"\n\nevent: control\ndata:{\"streamNextOffset\":\"0000\"}\n\n");
        }
        all
    }

    #[test]
    fn messages_are_found_wherever_the_pieces_are_cut() {
        for format in [Format::Text, Format::Json] {
            let bytes = events(format, &[0, 1, 2, 3]);
            for step in 1..bytes.len() {
                let (mut checker, mut times) = (Checker::default(), Vec::new());
                for piece in bytes.chunks(step) {
                    checker.feed(piece, |at| times.push(at));
                }
                assert_eq!(times, [0, 1000, 2000, 3000], "in pieces of {step}");
                assert_eq!((checker.received(), checker.doubled, checker.missing), (4, 0, 0));
            }
        }
    }

    #[test]
    fn doubled_missing_and_garbled_messages_are_counted() {
        let mut checker = Checker::default();
        let mut delivered = 0;
        checker.feed(&events(Format::Text, &[0, 1, 1, 0, 4, 5, 3]), |_| delivered += 1);
        assert_eq!((checker.doubled, checker.missing, checker.received()), (3, 2, 6));
        assert_eq!(delivered, 4);
        checker.feed(b"data:@not hex at all, but long enough\n\n", |_| delivered += 1);
        assert_eq!((checker.garbled, delivered), (1, 4));
    }

    #[test]
    fn each_writer_has_an_order_of_its_own() {
        let mut checker = Checker::default();
        let mut feed = |messages: &[(u8, u32)]| checker.feed(&events_of(Format::Text, messages), |_| ());
        feed(&[(255, 0), (0, 0), (0, 1), (255, 1), (7, 0)]);
        feed(&[(0, 1), (7, 2)]);
        assert_eq!((checker.received(), checker.doubled, checker.missing), (7, 1, 1));
    }

    #[test]
    fn json_messages_are_valid_json() {
        let mut message = Vec::new();
        write(&mut message, Format::Json, 0, u8::MAX, u32::MAX, 7);
        assert_eq!(message.len(), BYTES_MIN);
        let text: String = serde_json::from_slice(&message).unwrap();
        assert_eq!(text, "@ffffffffff0000000000000007");
    }
}
