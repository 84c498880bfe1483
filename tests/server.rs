//! The server around the protocol: limits on connections, TLS, start and stop.

mod support;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use durable_streams_server::config::Config;
use durable_streams_server::server::{Server, ServerError};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use support::http::{Connection, Origin, PATIENCE, uninterrupted};
use support::port::HeldPort;
use support::sse::EventStream;
use support::tls::write_certificate;
use support::{ServerProcess, path_text, server_command};

const MEBIBYTE: usize = 1024 * 1024;

/// A bound that a test waits for. Seconds; enough for clients on a busy machine that do what they should in time.
const SOON: &str = "3";

fn connect(server: &ServerProcess) -> Connection {
    server.origin().connect().expect("the server accepts connections")
}

/// A connection on which `bytes` were sent and nothing was read.
fn send(server: &ServerProcess, bytes: &str) -> Connection {
    let mut connection = connect(server);
    connection.send_raw(bytes.as_bytes()).expect("a new connection takes bytes");
    connection
}

fn create(server: &ServerProcess, path: &str) {
    server.client().request("PUT", path, &[("Content-Type", "text/plain")], b"").expect_status(201);
}

#[track_caller]
fn assert_serves(server: &ServerProcess) {
    server.client().request("GET", "/healthz", &[], b"").expect_status(200);
}

/// Tries until it works: the server learns of a closed connection, and gives its place away, a moment after the client.
#[track_caller]
fn keep_trying<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(outcome) = attempt() {
            return outcome;
        }
        assert!(Instant::now() < deadline, "{what}");
        // Others may need the processor for it.
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until one more connection is served.
#[track_caller]
fn wait_for_room(server: &ServerProcess) {
    keep_trying("no connection is given up", || {
        let answer = server.client().try_request("GET", "/healthz", &[], b"");
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    });
}

/// Runs a server that cannot start, to its end.
fn start_in_vain(directory: &Path, environment: &[(&str, &str)]) -> Output {
    let mut command = server_command(directory);
    command.env("DS_SERVER__PORT", "0").envs(environment.iter().copied());
    command.output().expect("the server's binary can be started")
}

#[track_caller]
fn assert_refuses_to_start(output: &Output, reasons: &[&str]) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let error = stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    for reason in reasons {
        assert!(error.contains(reason), "no {reason:?} in {stderr}");
    }
}

#[test]
fn half_open_requests_do_not_stop_others() {
    let server = ServerProcess::start(&[]);
    let _half_open: Vec<_> = (0..200)
        .map(|_| send(&server, "PUT /v1/stream/a HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"))
        .collect();
    let _headless: Vec<_> = (0..200).map(|_| send(&server, "GET /v1/stream/a HT")).collect();
    create(&server, "/v1/stream/b");
    server
        .client()
        .request("POST", "/v1/stream/b", &[("Content-Type", "text/plain")], b"x")
        .expect_status(204);
}

#[test]
fn head_that_is_too_large_is_answered_431_and_others_are_served() {
    let server = ServerProcess::start(&[]);
    let filler = "x".repeat(100_000);
    let mut connection = connect(&server);
    connection.send_request("GET", "/v1/stream/a", &[("Filler", &filler)], b"").expect("the head is taken");
    let answer = connection.read_response("GET").expect("there is an answer").expect_status(431);
    assert_eq!(answer.header("Content-Type"), Some("application/problem+json"));
    assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
    assert!(connection.is_closed_by_server());
    assert_serves(&server);
}

#[test]
fn slow_head_is_cut_and_others_are_served() {
    let server = ServerProcess::start(&[("DS_LIMITS__REQUEST_HEADER_TIMEOUT_SECS", SOON)]);
    let mut silent = connect(&server);
    let mut slow = send(&server, "GET /v1/stream/a HTTP/1.1\r\nHost: a\r\n");
    assert!(silent.is_closed_by_server());
    assert!(slow.is_closed_by_server());
    assert_serves(&server);
}

#[test]
fn declared_body_above_the_limit_is_refused_before_it_is_sent() {
    let server = ServerProcess::start(&[]);
    create(&server, "/v1/stream/a");
    let mut connection = connect(&server);
    let headers = [("Content-Type", "text/plain"), ("Content-Length", "200000000")];
    connection.send_request("POST", "/v1/stream/a", &headers, b"").expect("the head is taken");
    connection.read_response("POST").expect("there is an answer").expect_status(413);
}

#[test]
fn refusal_of_a_large_body_arrives_although_the_client_goes_on_sending() {
    let server = ServerProcess::start(&[("DS_LIMITS__MAX_BODY_BYTES", "1000")]);
    create(&server, "/v1/stream/a");
    let mut connection = connect(&server);
    let body = vec![b'x'; 8 * MEBIBYTE];
    connection
        .send_request("POST", "/v1/stream/a", &[("Content-Type", "text/plain")], &body)
        .expect("the body is taken in, though not stored");
    connection.read_response("POST").expect("there is an answer").expect_status(413);
}

#[test]
fn reader_that_stops_reading_is_cut() {
    let server = ServerProcess::start(&[
        ("DS_LIMITS__WRITE_TIMEOUT_SECS", "1"),
        ("DS_LIMITS__MAX_CONNECTIONS", "1"),
        ("DS_LIMITS__MAX_STREAM_BYTES", "100000000"),
        ("DS_LIMITS__MAX_MEMORY_BYTES", "200000000"),
    ]);
    let mut client = keep_trying("there is no room for a connection", || {
        let mut client = server.client();
        let answer = client.try_request("PUT", "/v1/stream/a", &[("Content-Type", "text/plain")], b"");
        answer.is_ok_and(|answer| answer.status == 201).then_some(client)
    });
    // More than the kernel buffers for a connection.
    let piece = vec![b'x'; 4 * MEBIBYTE];
    for _ in 0..8 {
        client.request("POST", "/v1/stream/a", &[("Content-Type", "text/plain")], &piece).expect_status(204);
    }
    drop(client);
    let _stalled = keep_trying("there is no room for a connection", || {
        let mut connection = connect(&server);
        connection.send_request("GET", "/v1/stream/a?offset=-1&live=sse", &[], b"").ok()?;
        let head = connection.read_head("GET").ok()?;
        (head.response.status == 200).then_some(connection)
    });
    wait_for_room(&server);
}

#[test]
fn connection_above_the_limit_is_answered_503() {
    let server = ServerProcess::start(&[("DS_LIMITS__MAX_CONNECTIONS", "2")]);
    let mut kept = Vec::new();
    let refused = loop {
        let mut connection = connect(&server);
        let answer = connection.request("GET", "/healthz", &[], b"").expect("there is an answer");
        if answer.status == 503 {
            break answer;
        }
        kept.push(connection);
        assert!(kept.len() <= 2, "a third connection is served");
    };
    assert_eq!(refused.header("Retry-After"), Some("1"));
    assert_eq!(refused.header("Content-Type"), Some("application/problem+json"));
    assert!(refused.text().contains(r#""code":"UNAVAILABLE""#), "{}", refused.text());
    kept.clear();
    wait_for_room(&server);
}

#[test]
fn idle_connection_is_closed_and_a_live_one_is_not() {
    let server = ServerProcess::start(&[
        ("DS_LIMITS__IDLE_TIMEOUT_SECS", SOON),
        ("DS_LIMITS__REQUEST_HEADER_TIMEOUT_SECS", SOON),
    ]);
    create(&server, "/v1/stream/a");
    let mut live = EventStream::open(server.origin(), "/v1/stream/a?offset=-1&live=sse", &[])
        .expect("the server answers")
        .expect("the stream can be read");
    live.next_message().expect("the response goes on").expect("it begins with a control event");
    // Two idle connections, one after the other, are closed; the live one is older than both.
    for _ in 0..2 {
        let mut idle = connect(&server);
        idle.request("GET", "/healthz", &[], b"").expect("there is an answer").expect_status(200);
        assert!(idle.is_closed_by_server());
    }
    server
        .client()
        .request("POST", "/v1/stream/a", &[("Content-Type", "text/plain")], b"x")
        .expect_status(204);
    let (kind, data) = live.next_message().expect("the response goes on").expect("the append is seen");
    assert_eq!((kind.as_str(), data.as_str()), ("data", "x"));
}

#[test]
fn a_slow_reader_gets_its_answer_however_long_it_takes() {
    let server = ServerProcess::start(&[
        ("DS_LIMITS__IDLE_TIMEOUT_SECS", "1"),
        ("DS_LIMITS__WRITE_TIMEOUT_SECS", "300"),
    ]);
    create(&server, "/v1/stream/one");
    create(&server, "/v1/stream/many");
    let append = |name: &str, piece: &[u8]| {
        let answer = server.client().request("POST", name, &[("Content-Type", "text/plain")], piece);
        answer.expect_status(204);
    };
    // More than the kernel buffers for a connection whose client does not read, in one piece and in several.
    append("/v1/stream/one", &vec![b'x'; 4 * MEBIBYTE]);
    (0..4).for_each(|_| append("/v1/stream/many", &vec![b'x'; MEBIBYTE]));
    let slow = ["/v1/stream/one", "/v1/stream/many"].map(|name| {
        let mut reader = connect(&server);
        reader.send_request("GET", name, &[], b"").expect("a new connection takes bytes");
        reader.socket().read_exact(&mut [0; 1000]).expect("an answer begins");
        reader
    });
    // Time passes, after which connections are closed over which nothing is sent, and more than they have to end then.
    for _ in 0..4 {
        let mut idle = connect(&server);
        idle.request("GET", "/healthz", &[], b"").expect("there is an answer").expect_status(200);
        assert!(idle.is_closed_by_server());
    }
    for reader in slow {
        let mut rest = vec![0; 4 * MEBIBYTE - 1000];
        reader.socket().read_exact(&mut rest).expect("the answer goes on");
    }
}

#[test]
fn client_that_closes_its_sending_side_gets_its_answer() {
    let server = ServerProcess::start(&[("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "1")]);
    create(&server, "/v1/stream/a");
    let mut connection = connect(&server);
    connection
        .send_request("GET", "/v1/stream/a?offset=now&live=long-poll", &[], b"")
        .expect("a new connection takes bytes");
    connection.socket().shutdown(Shutdown::Write).expect("the sending side can be closed");
    connection.read_response("GET").expect("there is an answer").expect_status(204);
}

#[test]
fn stop_ends_live_reads_in_order_and_exits_with_0() {
    let mut server = ServerProcess::start(&[]);
    create(&server, "/v1/stream/a");
    let mut live = EventStream::open(server.origin(), "/v1/stream/a?offset=-1&live=sse", &[])
        .expect("the server answers")
        .expect("the stream can be read");
    live.next_message().expect("the response goes on").expect("it begins with a control event");
    let mut waiting = connect(&server);
    waiting
        .send_request("GET", "/v1/stream/a?offset=now&live=long-poll", &[], b"")
        .expect("a new connection takes bytes");
    let mut idle = connect(&server);
    idle.request("GET", "/healthz", &[], b"").expect("there is an answer").expect_status(200);

    server.signal("TERM");
    waiting.read_response("GET").expect("there is an answer").expect_status(204);
    while live.next_event().expect("the response ends in order").is_some() {}
    assert!(idle.is_closed_by_server());
    assert_eq!(server.wait_for_exit().code(), Some(0));
}

#[test]
fn stop_waits_for_a_request_under_way() {
    let mut server = ServerProcess::start(&[]);
    create(&server, "/v1/stream/a");
    let mut writer = connect(&server);
    let headers = [("Content-Type", "text/plain"), ("Content-Length", "6"), ("Expect", "100-continue")];
    writer.send_request("POST", "/v1/stream/a", &headers, b"").expect("a new connection takes bytes");
    // The interim answer shows that the request is under way.
    let mut interim = [0; 25];
    writer.socket().read_exact(&mut interim).expect("the body is asked for");
    server.signal("TERM");
    wait_until_refused(&server);
    writer.send_raw(b"abcdef").expect("the connection is still there");
    let answer = writer.read_response("POST").expect("there is an answer").expect_status(204);
    assert_eq!(answer.header("Connection"), Some("close"));
    assert_eq!(server.wait_for_exit().code(), Some(0));
}

#[test]
fn second_signal_ends_the_process_at_once() {
    let mut server = ServerProcess::start(&[("DS_SERVER__SHUTDOWN_TIMEOUT_SECS", "3600")]);
    create(&server, "/v1/stream/a");
    let mut writer = connect(&server);
    let headers = [("Content-Type", "text/plain"), ("Content-Length", "6"), ("Expect", "100-continue")];
    writer.send_request("POST", "/v1/stream/a", &headers, b"").expect("a new connection takes bytes");
    writer.socket().read_exact(&mut [0; 25]).expect("the body is asked for");
    server.signal("TERM");
    wait_until_refused(&server);
    server.signal("INT");
    assert_eq!(server.wait_for_exit().code(), Some(130));
}

#[track_caller]
fn wait_until_refused(server: &ServerProcess) {
    keep_trying("connections are still accepted", || server.origin().connect().err());
}

#[test]
fn address_of_another_server_is_refused() {
    let server = ServerProcess::start(&[]);
    let port = server.url().rsplit(':').next().expect("a URL has a port");
    let output = start_in_vain(server.directory(), &[("DS_SERVER__PORT", port)]);
    assert_refuses_to_start(&output, &[&format!("address 127.0.0.1:{port} is already in use")]);
    let foreign = TcpListener::bind("127.0.0.1:0").expect("a free port can be bound");
    let port = foreign.local_addr().expect("a listener has an address").port().to_string();
    let output = start_in_vain(server.directory(), &[("DS_SERVER__PORT", &port)]);
    assert_refuses_to_start(&output, &["is already in use"]);
}

#[test]
fn banner_names_url_mode_shards_and_a_command_to_try() {
    let server = ServerProcess::start(&[("DS_STORAGE__ACID_SHARD_COUNT", "3")]);
    // The server has written all of it by now, but it is read line by line.
    let banner = keep_trying("the banner has no command to try", || {
        Some(server.stdout()).filter(|banner| banner.contains("\ntry: curl "))
    });
    let mut lines = banner.lines();
    assert_eq!(lines.next(), Some(&*format!("listening on {}", server.url())));
    assert!(banner.contains("storage: memory"), "{banner}");
    assert!(banner.contains("shards: 3\n"), "{banner}");
}

#[test]
fn unusable_tls_files_are_refused_by_name() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let files = write_certificate(directory.path());
    let other = directory.path().join("other");
    std::fs::create_dir(&other).expect("the temporary directory is writable");
    let other = write_certificate(&other);
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "").expect("the temporary directory is writable");
    let absent = directory.path().join("absent.pem");
    for (certificate, key, reasons) in [
        (&absent, &files.key, ["tls.cert_path", "absent.pem"]),
        (&files.certificate, &absent, ["tls.key_path", "absent.pem"]),
        (&empty, &files.key, ["empty.pem", "contains no certificate"]),
        (&files.certificate, &empty, ["empty.pem", "contains no private key"]),
        (&files.certificate, &other.key, ["other", "does not belong to the certificate"]),
    ] {
        let environment =
            [("DS_TLS__CERT_PATH", path_text(certificate)), ("DS_TLS__KEY_PATH", path_text(key))];
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        assert_refuses_to_start(&start_in_vain(directory.path(), &environment), &reasons);
    }
}

/// A server with a certificate, and the directory that holds it.
fn start_with_tls(environment: &[(&str, &str)]) -> (ServerProcess, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let files = write_certificate(directory.path());
    let (certificate, key) = (path_text(&files.certificate), path_text(&files.key));
    let mut environment = environment.to_vec();
    environment.extend([("DS_TLS__CERT_PATH", certificate.as_str()), ("DS_TLS__KEY_PATH", key.as_str())]);
    (ServerProcess::start(&environment), directory)
}

type TlsStream = StreamOwned<ClientConnection, TcpStream>;

/// Connects with these ALPN names and this version of TLS; both sides have agreed when this returns.
fn connect_tls(
    origin: &Origin,
    alpn: &[&str],
    version: &'static rustls::SupportedProtocolVersion,
) -> io::Result<TlsStream> {
    let mut trusted = RootCertStore::empty();
    let certificate = origin.trusted_certificate.as_deref().expect("the server has a certificate");
    trusted.add(CertificateDer::from_pem_file(certificate).expect("it is PEM")).expect("it is a certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .expect("the provider knows the version")
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("127.0.0.1").expect("it is an address");
    let session = ClientConnection::new(Arc::new(config), name).expect("the configuration is sound");
    let socket = TcpStream::connect(&origin.authority)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(session, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

#[test]
fn tls_offers_http2_and_http1_over_both_versions() {
    let (server, _directory) = start_with_tls(&[]);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (offered, chosen) in
            [(&["h2", "http/1.1"][..], Some(&b"h2"[..])), (&["http/1.1"], Some(b"http/1.1")), (&[], None)]
        {
            let stream = connect_tls(server.origin(), offered, version).expect("the handshake succeeds");
            assert_eq!(stream.conn.alpn_protocol(), chosen);
        }
        connect_tls(server.origin(), &["spdy/1"], version).expect_err("nothing in common");
    }
}

#[test]
fn http2_over_tls_answers() {
    let (server, _directory) = start_with_tls(&[]);
    let mut stream =
        connect_tls(server.origin(), &["h2"], &rustls::version::TLS13).expect("the handshake succeeds");
    // The preface, empty SETTINGS, and HEADERS of stream 1: GET, https, `/healthz` as a literal path.
    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    request.extend_from_slice(b"\0\0\x0c\x01\x05\0\0\0\x01\x82\x87\x04\x08/healthz");
    stream.write_all(&request).expect("the request is taken");
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).expect("frames come until the answer is complete");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).expect("a frame has its length");
        // DATA
        if head[3] == 0 {
            assert_eq!(payload.trim_ascii(), b"ok");
            return;
        }
    }
}

#[test]
fn location_of_a_stream_created_over_tls_begins_with_https() {
    let (server, _directory) = start_with_tls(&[]);
    let answer = server.client().request("PUT", "/v1/stream/a", &[], b"").expect_status(201);
    assert_eq!(answer.header("Location"), Some(&*format!("{}/v1/stream/a", server.url())));
}

#[test]
fn handshake_that_is_never_finished_is_cut_and_others_are_served() {
    let (server, _directory) = start_with_tls(&[("DS_TLS__HANDSHAKE_TIMEOUT_SECS", SOON)]);
    let mut silent = TcpStream::connect(&server.origin().authority).expect("the server accepts connections");
    silent.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
    assert_serves(&server);
    let read = uninterrupted(|| silent.read(&mut [0; 16]));
    assert_eq!(read.expect("the server closes in order"), 0);
    assert_serves(&server);
}

fn embedded() -> Config {
    let mut config = Config::default();
    config.server.bind_address = SocketAddr::from(([127, 0, 0, 1], 0));
    config
}

#[test]
fn embedded_server_starts_and_stops() {
    let server = Server::start(embedded()).expect("the server starts");
    let address = server.local_addr();
    assert_ne!(address.port(), 0);
    assert_eq!(server.url(), format!("http://{address}"));
    let origin = Origin::parse(&server.url(), None);
    origin.client().request("GET", "/readyz", &[], b"").expect_status(200);
    server.shutdown();
    // A child that another test starts has this process's sockets until it is the program that it is to be.
    keep_trying("somebody still listens", || TcpStream::connect(address).err());
}

#[test]
fn dropped_server_does_not_wait_for_requests() {
    let mut config = embedded();
    config.server.shutdown_timeout = Duration::from_secs(3600);
    let server = Server::start(config).expect("the server starts");
    let mut half_open = TcpStream::connect(server.local_addr()).expect("the server accepts connections");
    half_open
        .write_all(b"PUT /v1/stream/a HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        .expect("it is taken");
    drop(server);
}

#[test]
fn server_for_which_no_http_version_is_left_is_refused() {
    let mut config = embedded();
    config.transport.http1 = false;
    assert!(matches!(Server::start(config), Err(ServerError::NoTransport)));
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_says_what_it_waits_for_while_storage_is_being_opened() {
    let mut server =
        ServerProcess::start(&[("DS_STORAGE__MODE", "file-durable"), ("DS_STORAGE__ACID_SHARD_COUNT", "2")]);
    create(&server, "/v1/stream/a");
    server.terminate();
    // Who opens a pipe for reading waits for somebody who writes to it. That it is there is all that is asked of this file.
    let file = server.directory().join("data/shard-01/SHARD");
    std::fs::remove_file(&file).expect("each shard has it");
    assert!(std::process::Command::new("mkfifo").arg(&file).status().expect("mkfifo is there").success());
    let held = HeldPort::any();
    let port = held.number();
    server.set("DS_SERVER__PORT", &port.to_string());
    let opener = thread::spawn({
        let origin = Origin::parse(&format!("http://127.0.0.1:{port}"), None);
        move || {
            let ask = |method: &str, path: &str| {
                keep_trying("the server listens", || {
                    origin.client().try_request(method, path, &[("Content-Type", "text/plain")], b"").ok()
                })
            };
            let waiting = ask("GET", "/readyz").expect_status(503);
            assert!(waiting.text().contains("the data directory is being opened"), "{}", waiting.text());
            ask("GET", "/healthz").expect_status(200);
            let refused = ask("PUT", "/v1/stream/a").expect_status(503);
            assert_eq!(refused.header("Retry-After"), Some("1"));
            ask("GET", "/v1/stream/a").expect_status(503);
            std::fs::OpenOptions::new().write(true).open(file).expect("the server waits for it")
        }
    });
    server.restart();
    drop(opener.join().expect("all was answered as it should be"));
    server.client().request("GET", "/v1/stream/a", &[], b"").expect_status(200);
    assert!(server.terminate().success());
}
