//! Connections against a router of the tests', over real sockets.

mod http2;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::acceptor::Stop;
use super::admission::Gate;
use super::cores::{Cores, Setup, start_acceptors};
use super::listener::Reservation;
use crate::config::Config;

/// Longest time that a test waits for what should come; long before that it has come or never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// A bound that a test waits for; long enough for a busy machine to do in time what it should.
const SOON: Duration = Duration::from_secs(2);

type Task = Box<dyn FnOnce() + Send>;

/// Core threads without an engine.
struct Threads {
    tasks: Vec<mpsc::UnboundedSender<Task>>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    fn new(count: usize) -> Self {
        let (tasks, threads) = (0..count).map(|_| Self::start()).unzip();
        Self { tasks, threads }
    }

    fn start() -> (mpsc::UnboundedSender<Task>, JoinHandle<()>) {
        let (sender, mut tasks) = mpsc::unbounded_channel::<Task>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                while let Some(task) = tasks.recv().await {
                    task();
                }
            });
        });
        (sender, thread)
    }
}

impl Cores for Threads {
    fn run_on(&self, index: usize, task: Task) {
        self.tasks[index].send(task).unwrap_or_else(|_| panic!("core {index} is gone"));
    }
}

struct TestServer {
    address: SocketAddr,
    stop: Stop,
    /// Ends `/wait`, as the end of live reads does for long-polls.
    live: CancellationToken,
    gate: Arc<Gate>,
    cores: Threads,
}

impl TestServer {
    fn start(configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        configure(&mut config);
        let cores = Threads::new(2);
        let gate = Gate::new(config.limits.max_connections, 2);
        let reservation = Reservation::new(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = reservation.address();
        let live = CancellationToken::new();
        let setup =
            Setup { config: Arc::new(config), tls: None, gate: Arc::clone(&gate), stop: Stop::default() };
        let routers = vec![router(live.clone()).into(), router(live.clone()).into()];
        start_acceptors(&cores, reservation.listen(2).unwrap(), &setup, routers).unwrap();
        Self { address, stop: setup.stop, live, gate, cores }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// A request on a connection of its own, and the whole answer.
    fn exchange(&self, request: &str) -> String {
        read_to_end(&mut self.send(request))
    }

    fn assert_serves_others(&self) {
        let answer = self.exchange(&last_get("/ok"));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.drain.cancel();
        self.stop.cut.cancel();
        self.cores.tasks.clear();
        for thread in self.cores.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn router(live: CancellationToken) -> Router {
    Router::new()
        .route("/", get(|| async { "root" }))
        .route("/ok", get(|| async { "ok" }))
        .route("/big", get(|| async { Bytes::from(vec![b'x'; 1 << 20]) }))
        .route("/endless", get(endless))
        .route(
            "/wait",
            get(|| async move {
                live.cancelled().await;
                StatusCode::NO_CONTENT
            }),
        )
        .route("/echo", post(|body: Bytes| async { body }))
        .route("/refuse", post(refuse))
        .route("/panic", get(panicking))
        .route("/scheme", get(scheme))
}

async fn endless() -> Body {
    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
    Body::from_stream(stream::repeat_with(move || Ok::<_, io::Error>(chunk.clone())))
}

/// Answers without looking at the body.
async fn refuse() -> impl IntoResponse {
    (StatusCode::PAYLOAD_TOO_LARGE, [(header::CONNECTION, "close")])
}

async fn panicking() -> &'static str {
    panic!("asked for by a test")
}

async fn scheme(request: axum::extract::Request) -> String {
    format!("{:?}", request.extensions().get::<crate::http::ConnectionScheme>())
}

fn keep_alive_get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")
}

fn last_get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
}

fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// Reads until `end` has come.
fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut answer = String::new();
    let mut byte = [0];
    while !answer.ends_with(end) {
        // Unlike a plain read, this one goes on if the process stood still meanwhile.
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {answer:?}"));
        answer.push(char::from(byte[0]));
    }
    answer
}

/// Waits until the server has ended the connection, in order or by a reset.
fn wait_for_end(stream: &mut TcpStream) {
    let mut discarded = [0; 16 * 1024];
    loop {
        match stream.read(&mut discarded) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("the server does not end the connection: {error}"),
        }
    }
}

fn assert_is_problem(answer: &str, status: u16) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    for line in [
        "content-type: application/problem+json",
        "x-content-type-options: nosniff",
        "cross-origin-resource-policy: cross-origin",
        "access-control-allow-origin: *",
        "access-control-expose-headers: Stream-Next-Offset, ",
        "cache-control: no-store",
    ] {
        assert!(head.contains(line), "no {line:?} in {answer}");
    }
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(document["status"], status);
}

#[test]
fn requests_of_one_connection_are_answered_in_order() {
    let server = TestServer::start(|_| {});
    let mut stream = server
        .send(&format!("POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\none{}", last_get("/ok")));
    let answer = read_to_end(&mut stream);
    let first = answer.find("\r\n\r\none").unwrap();
    assert!(first < answer.find("\r\n\r\nok").unwrap(), "{answer}");
}

#[test]
fn plain_connections_leave_the_scheme_to_the_default() {
    let server = TestServer::start(|_| {});
    assert!(server.exchange(&last_get("/scheme")).ends_with("\r\n\r\nNone"));
}

#[test]
fn client_that_closes_its_sending_side_still_gets_its_answer() {
    let server = TestServer::start(|_| {});
    let mut stream = server.send(&keep_alive_get("/wait"));
    stream.shutdown(Shutdown::Write).unwrap();
    server.assert_serves_others();
    server.live.cancel();
    let answer = read_to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
}

#[test]
fn head_at_the_limit_is_taken_and_one_byte_more_is_answered_431() {
    let server = TestServer::start(|config| config.limits.max_header_bytes = 8192);
    let head = |bytes: usize| {
        let begin = "GET /ok HTTP/1.1\r\nhost: a\r\nconnection: close\r\nfiller: ";
        format!("{begin}{}\r\n\r\n", "x".repeat(bytes - begin.len() - 4))
    };
    let answer = server.exchange(&head(8192));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_is_problem(&server.exchange(&head(8193)), 431);
    assert_is_problem(&server.exchange(&head(100_000)), 431);
    server.assert_serves_others();
}

#[test]
fn too_many_headers_are_answered_431() {
    let server = TestServer::start(|_| {});
    let many: String = (0..101).map(|index| format!("h{index}: x\r\n")).collect();
    assert_is_problem(&server.exchange(&format!("GET /ok HTTP/1.1\r\n{many}\r\n")), 431);
}

#[test]
fn head_that_is_not_http_is_answered_with_a_problem_document() {
    let server = TestServer::start(|_| {});
    assert_is_problem(&server.exchange("GET /ok HTTP/1.1\r\nno colon\r\n\r\n"), 400);
    assert_is_problem(&server.exchange("nonsense\r\n\r\n"), 400);
}

#[test]
fn unparsable_second_head_is_answered_with_a_problem_document() {
    let server = TestServer::start(|_| {});
    let mut stream = server.send(&keep_alive_get("/ok"));
    read_until(&mut stream, "\r\n\r\nok");
    stream.write_all(b"nonsense\r\n\r\n").unwrap();
    assert_is_problem(&read_to_end(&mut stream), 400);
}

#[test]
fn answer_of_a_handler_is_never_taken_for_an_unparsable_head() {
    let server = TestServer::start(|_| {});
    for _ in 0..2 {
        let mut stream = server.send(&keep_alive_get("/absent"));
        assert!(read_until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 404 "));
        stream.write_all(keep_alive_get("/ok").as_bytes()).unwrap();
        read_until(&mut stream, "\r\n\r\nok");
    }
}

#[test]
fn refusal_arrives_although_the_body_is_still_being_sent() {
    let server = TestServer::start(|_| {});
    let mut stream = server.send("POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: 8000000\r\n\r\n");
    // What the server does not want is taken in all the same, so that the answer is not lost to a reset.
    stream.write_all(&vec![b'x'; 8_000_000]).unwrap();
    let answer = read_to_end(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[test]
fn declared_body_that_never_comes_is_refused_at_once() {
    let server = TestServer::start(|_| {});
    let mut stream = server.send("POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: 200000000\r\n\r\n");
    assert!(read_until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 413 "));
    stream.shutdown(Shutdown::Write).unwrap();
    wait_for_end(&mut stream);
}

#[test]
fn panic_of_a_handler_is_answered_500_and_hurts_nobody_else() {
    let server = TestServer::start(|_| {});
    assert_is_problem(&server.exchange(&last_get("/panic")), 500);
    server.assert_serves_others();
}

#[test]
fn connection_that_sends_nothing_is_cut() {
    let server = TestServer::start(|config| config.limits.request_header_timeout = SOON);
    wait_for_end(&mut server.connect());
}

#[test]
fn head_that_is_never_finished_is_cut() {
    let server = TestServer::start(|config| config.limits.request_header_timeout = SOON);
    wait_for_end(&mut server.send("GET /ok HTTP/1.1\r\nhost"));
}

#[test]
fn second_head_that_is_never_finished_is_cut() {
    let server = TestServer::start(|config| config.limits.request_header_timeout = SOON);
    let mut stream = server.send(&keep_alive_get("/ok"));
    read_until(&mut stream, "\r\n\r\nok");
    stream.write_all(b"GET /ok").unwrap();
    wait_for_end(&mut stream);
}

#[test]
fn idle_connection_is_closed() {
    let server = TestServer::start(|config| config.limits.idle_timeout = SOON);
    let mut stream = server.send(&keep_alive_get("/ok"));
    let answer = read_to_end(&mut stream);
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[test]
fn waiting_request_is_not_idle() {
    let server = TestServer::start(|config| {
        config.limits.idle_timeout = SOON;
        config.limits.request_header_timeout = SOON;
    });
    let mut waiting = server.send(&keep_alive_get("/wait"));
    // By the time that two idle connections, one after the other, were closed, the waiting one would be overdue.
    for _ in 0..2 {
        let mut idle = server.send(&keep_alive_get("/ok"));
        wait_for_end(&mut idle);
    }
    server.live.cancel();
    assert!(read_until(&mut waiting, "\r\n\r\n").starts_with("HTTP/1.1 204 "));
}

#[test]
fn reader_that_stops_reading_is_cut() {
    let server = TestServer::start(|config| {
        config.limits.write_timeout = SOON;
        config.limits.max_connections = 1;
    });
    let mut stalled = server.send(&keep_alive_get("/endless"));
    read_until(&mut stalled, "\r\n\r\n");
    // Its place is free only when it is gone.
    let started = std::time::Instant::now();
    while !server.exchange(&last_get("/ok")).starts_with("HTTP/1.1 200 ") {
        assert!(started.elapsed() < PATIENCE, "the stalled connection keeps its place");
    }
}

#[test]
fn connection_above_the_limit_is_answered_503_until_there_is_room() {
    let server = TestServer::start(|config| config.limits.max_connections = 1);
    let mut first = server.send(&keep_alive_get("/ok"));
    read_until(&mut first, "\r\n\r\nok");
    let answer = server.exchange(&keep_alive_get("/ok"));
    assert_is_problem(&answer, 503);
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    drop(first);
    let started = std::time::Instant::now();
    while !server.exchange(&last_get("/ok")).starts_with("HTTP/1.1 200 ") {
        assert!(started.elapsed() < PATIENCE, "the place is not given back");
    }
}

#[test]
fn drain_ends_idle_connections_and_waits_for_requests() {
    let server = TestServer::start(|_| {});
    let mut idle = server.send(&keep_alive_get("/ok"));
    read_until(&mut idle, "\r\n\r\nok");
    let mut silent = server.connect();
    let mut waiting = server.send(&keep_alive_get("/wait"));
    server.assert_serves_others();

    server.stop.drain.cancel();
    wait_for_end(&mut idle);
    wait_for_end(&mut silent);
    assert!(!server.gate.wait_until_empty(Duration::ZERO));
    // Each core closes its listener when it gets to it.
    let started = std::time::Instant::now();
    while TcpStream::connect(server.address).is_ok() {
        assert!(started.elapsed() < PATIENCE, "connections are still accepted");
    }

    server.live.cancel();
    assert!(read_to_end(&mut waiting).starts_with("HTTP/1.1 204 "));
    assert!(server.gate.wait_until_empty(PATIENCE));
}

#[test]
fn cut_ends_what_drain_would_wait_for() {
    let server = TestServer::start(|_| {});
    let mut waiting = server.send(&keep_alive_get("/wait"));
    server.assert_serves_others();
    server.stop.drain.cancel();
    server.stop.cut.cancel();
    wait_for_end(&mut waiting);
    assert!(server.gate.wait_until_empty(PATIENCE));
}
