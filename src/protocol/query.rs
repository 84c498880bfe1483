//! The query string of a read. `protocol.md` §3 and §5.

use crate::protocol::cursor;
use crate::protocol::name::percent_decode;
use crate::protocol::offset::{self, InvalidOffset, RequestedOffset};

/// The parameters of a read, valid together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadQuery {
    /// `offset`; absent only without `live`.
    pub offset: Option<RequestedOffset>,
    /// `live`; absent = catch-up.
    pub live: Option<LiveMode>,
    /// `cursor`, if it is a cursor.
    pub cursor: Option<u64>,
}

/// How a live read is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LiveMode {
    /// `long-poll`: one answer, as soon as there is something to say.
    LongPoll,
    /// `sse`: server-sent events.
    Sse,
}

/// The query string is not one of a read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// `offset` is malformed, empty or repeated.
    #[error(transparent)]
    Offset(#[from] InvalidOffset),
    /// `live` is neither of the two modes, or repeated; carries the value, repetitions joined by commas.
    #[error("the parameter live must be given once, as \"long-poll\" or \"sse\", not as {0:?}")]
    Live(String),
    /// `live` without `offset`.
    #[error("a live read needs the parameter offset")]
    MissingOffset,
}

/// Reads the query string of a GET (without its `?`). Names and values are percent-decoded once and never trimmed;
/// unknown parameters are ignored, as is a `cursor` that is none.
pub fn parse(query: Option<&str>) -> Result<ReadQuery, QueryError> {
    let mut offset = None;
    let mut live: Option<String> = None;
    let mut cursor = None;
    for pair in query.unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // A name that cannot be decoded is none of ours.
        let Ok(name) = percent_decode(name) else { continue };
        match &*name {
            b"offset" if offset.is_some() => return Err(InvalidOffset::Repeated.into()),
            b"offset" => {
                let value = decode(value).ok_or(InvalidOffset::Malformed)?;
                offset = Some(offset::parse(&value)?);
            }
            b"live" => {
                let value = decode(value).unwrap_or_else(|| value.to_owned());
                live = Some(match live {
                    Some(earlier) => format!("{earlier},{value}"),
                    None => value,
                });
            }
            b"cursor" => cursor = cursor.or_else(|| cursor::parse(&decode(value)?)),
            _ => {}
        }
    }
    let live = live.map(live_mode).transpose()?;
    if live.is_some() && offset.is_none() {
        return Err(QueryError::MissingOffset);
    }
    Ok(ReadQuery { offset, live, cursor })
}

fn live_mode(value: String) -> Result<LiveMode, QueryError> {
    match &*value {
        "long-poll" => Ok(LiveMode::LongPoll),
        "sse" => Ok(LiveMode::Sse),
        _ => Err(QueryError::Live(value)),
    }
}

/// Percent-decoded text; `None` if the encoding or the text is broken.
fn decode(value: &str) -> Option<String> {
    String::from_utf8(percent_decode(value).ok()?.into_owned()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: &str = "0000000000000000_0000000000000000";

    fn live_error(value: &str) -> Result<ReadQuery, QueryError> {
        Err(QueryError::Live(value.to_owned()))
    }

    #[test]
    fn no_query_is_a_catch_up_from_the_start() {
        for query in [None, Some(""), Some("&&"), Some("x=1&Offset=2&=3&%zz=1&foo")] {
            assert_eq!(parse(query), Ok(ReadQuery::default()), "{query:?}");
        }
    }

    #[test]
    fn all_parameters_are_read_in_any_order() {
        let read = parse(Some(&format!("cursor=12&x=y&live=sse&offset={ZERO}"))).unwrap();
        let expected =
            ReadQuery { offset: Some(RequestedOffset::At(0)), live: Some(LiveMode::Sse), cursor: Some(12) };
        assert_eq!(read, expected);
        let read = parse(Some("%6Fffset=%2D1&live=long%2Dpoll")).unwrap();
        let expected =
            ReadQuery { offset: Some(RequestedOffset::Start), live: Some(LiveMode::LongPoll), cursor: None };
        assert_eq!(read, expected);
    }

    #[test]
    fn bad_offsets_are_refused() {
        for (query, error) in [
            ("offset=", InvalidOffset::Empty),
            ("offset", InvalidOffset::Empty),
            ("offset=-1&offset=-1", InvalidOffset::Repeated),
            ("offset=-1&offset=", InvalidOffset::Repeated),
            ("offset=%20-1", InvalidOffset::Malformed),
            ("offset=-1+", InvalidOffset::Malformed),
            ("offset=-1%0A", InvalidOffset::Malformed),
            ("offset=-1%00", InvalidOffset::Malformed),
            ("offset=0,1", InvalidOffset::Malformed),
            ("offset=%", InvalidOffset::Malformed),
            ("offset=%FF", InvalidOffset::Malformed),
            ("offset==-1", InvalidOffset::Malformed),
            ("offset=%252D1", InvalidOffset::Malformed),
            ("offset=0000000000000001_0000000000000000", InvalidOffset::Generation),
            // The offset is judged before `live`.
            ("live=bogus&offset=x", InvalidOffset::Malformed),
        ] {
            assert_eq!(parse(Some(query)), Err(QueryError::Offset(error)), "{query}");
        }
    }

    #[test]
    fn unknown_and_repeated_live_modes_are_refused() {
        assert_eq!(parse(Some("offset=-1&live=")), live_error(""));
        assert_eq!(parse(Some("offset=-1&live")), live_error(""));
        assert_eq!(parse(Some("offset=-1&live=SSE")), live_error("SSE"));
        assert_eq!(parse(Some("offset=-1&live=true")), live_error("true"));
        assert_eq!(parse(Some("offset=-1&live=sse&live=sse")), live_error("sse,sse"));
        assert_eq!(parse(Some("live=sse%FF")), live_error("sse%FF"));
    }

    #[test]
    fn live_needs_an_offset() {
        assert_eq!(parse(Some("live=sse")), Err(QueryError::MissingOffset));
        assert_eq!(parse(Some("live=long-poll&cursor=1")), Err(QueryError::MissingOffset));
    }

    #[test]
    fn an_invalid_cursor_is_ignored() {
        for cursor in ["", "x", "-1", "1.5", "1234567890123456", "%zz", "1%20"] {
            let read = parse(Some(&format!("offset=now&cursor={cursor}"))).unwrap();
            assert_eq!(read.cursor, None, "{cursor}");
            assert_eq!(read.offset, Some(RequestedOffset::Now));
        }
    }
}
