//! HTTP/2 by hand: the client's preface, a SETTINGS frame, and `GET /` as three indexed header fields.

use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: u8 = 4;
const HEADERS: u8 = 1;
const DATA: u8 = 0;
const END_OF_STREAM_AND_HEADERS: u8 = 5;
const INITIAL_WINDOW_SIZE: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, 0, u8::try_from(payload.len()).unwrap(), kind, flags, 0, 0, 0, stream];
    frame.extend_from_slice(payload);
    frame
}

fn request(window: u32) -> Vec<u8> {
    let mut setting = vec![0, INITIAL_WINDOW_SIZE];
    setting.extend_from_slice(&window.to_be_bytes());
    let get_root = [0x82, 0x86, 0x84];
    [
        PREFACE.to_vec(),
        frame(SETTINGS, 0, 0, &setting),
        frame(HEADERS, END_OF_STREAM_AND_HEADERS, 1, &get_root),
    ]
    .concat()
}

fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 9];
    stream.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).unwrap();
    (head[3], payload)
}

#[test]
fn prior_knowledge_works_if_configured_and_http1_beside_it() {
    let server = TestServer::start(|config| config.transport.h2c = true);
    let mut stream = server.connect();
    let request = request(1000);
    // In two pieces, so that the choice has to wait for the rest.
    stream.write_all(&request[..10]).unwrap();
    server.assert_serves_others();
    stream.write_all(&request[10..]).unwrap();
    loop {
        if let (DATA, body) = read_frame(&mut stream) {
            assert_eq!(body, b"root");
            break;
        }
    }
}

#[test]
fn response_that_the_peer_gives_no_window_is_cut() {
    let server = TestServer::start(|config| {
        config.transport.h2c = true;
        config.limits.write_timeout = SOON;
    });
    let mut stream = server.connect();
    stream.write_all(&request(0)).unwrap();
    wait_for_end(&mut stream);
}

#[test]
fn idle_connection_is_closed() {
    let server = TestServer::start(|config| {
        config.transport.h2c = true;
        config.limits.idle_timeout = SOON;
    });
    let mut stream = server.connect();
    stream.write_all(&request(1000)).unwrap();
    wait_for_end(&mut stream);
}

#[test]
fn prior_knowledge_is_refused_unless_configured() {
    let server = TestServer::start(|_| {});
    let mut stream = server.connect();
    stream.write_all(&request(1000)).unwrap();
    wait_for_end(&mut stream);
    server.assert_serves_others();
}
