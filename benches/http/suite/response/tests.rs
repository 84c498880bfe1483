//! Responses in pieces, and what is none.

use super::*;

/// What is found when the bytes arrive in pieces of `step`.
fn found(bytes: &[u8], step: usize, no_body: bool) -> Vec<String> {
    let mut parser = Parser::new();
    let mut seen: Vec<String> = Vec::new();
    for piece in bytes.chunks(step) {
        let found = |piece: Piece<'_>| match piece {
            Piece::Head(status, head) => seen.push(format!("{status} of {} bytes", head.len())),
            Piece::Body(body) => {
                let text = String::from_utf8(body.to_vec()).unwrap();
                match seen.last_mut().and_then(|last| last.strip_prefix("body ").map(str::to_owned)) {
                    Some(last) => *seen.last_mut().unwrap() = format!("body {last}{text}"),
                    None => seen.push(format!("body {text}")),
                }
            }
            Piece::End => seen.push("end".to_owned()),
        };
        parser.feed(piece, no_body, found).unwrap();
    }
    assert!(parser.is_between_responses());
    seen
}

#[test]
fn responses_are_found_however_their_bytes_arrive() {
    let bytes = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\n\r\nhelloHTTP/1.1 204 No Content\r\n\r\n\
        HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n\
        HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    let expected = [
        "200 of 38 bytes",
        "body hello",
        "end",
        "204 of 27 bytes",
        "end",
        "200 of 47 bytes",
        "body abc0123456789",
        "end",
        "404 of 45 bytes",
        "end",
    ];
    for step in [1, 2, 3, 7, 50, bytes.len()] {
        assert_eq!(found(bytes, step, false), expected, "in pieces of {step}");
    }
}

#[test]
fn a_response_to_head_has_no_body_and_an_interim_one_is_none() {
    let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(found(bytes, 9, true), ["200 of 38 bytes", "end"]);
}

#[test]
fn bytes_that_are_known_to_come_may_be_skipped_up_to_the_last() {
    let mut parser = Parser::new();
    let mut ends = 0;
    let mut count = |piece: Piece<'_>| ends += usize::from(piece == Piece::End);
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nab", false, &mut count).unwrap();
    assert_eq!(parser.skippable(), 97);
    parser.skip(97);
    assert_eq!(parser.skippable(), 0);
    parser.feed(b"z", false, &mut count).unwrap();
    assert_eq!(ends, 1);
}

#[test]
fn a_body_without_a_length_ends_with_the_connection() {
    let mut parser = Parser::new();
    parser.feed(b"HTTP/1.1 200 OK\r\n\r\nabc", false, |_| ()).unwrap();
    assert!(parser.closed());
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", false, |_| ()).unwrap();
    assert!(!parser.closed(), "it was cut off");
}

#[test]
fn what_is_no_response_is_refused() {
    for bytes in [
        &b"HTTP/1.0 200 OK\r\n\r\n"[..],
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
    ] {
        let outcome = Parser::new().feed(bytes, false, |_| ());
        assert!(outcome.is_err(), "{}", String::from_utf8_lossy(bytes));
    }
}
