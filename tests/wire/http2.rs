//! HTTP/2 over TLS behaves as HTTP/1.1 does.

use std::sync::Arc;

use axum::http::Request;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::contract::{self, Expectations};
use crate::service::{CLOSED, JSON, Producer, TEXT, offset, path, start};
use crate::support::http::{PATIENCE, Response};
use crate::support::tls::write_certificate;
use crate::support::{ServerProcess, path_text};

/// One HTTP/2 connection.
struct Http2 {
    sender: SendRequest<Bytes>,
    authority: String,
}

impl Http2 {
    /// Connects to a server with a certificate, which has to agree on HTTP/2 by ALPN.
    async fn to(server: &ServerProcess) -> Self {
        let origin = server.origin();
        let certificate = origin.trusted_certificate.as_deref().expect("the server has a certificate");
        let mut trusted = RootCertStore::empty();
        trusted.add(CertificateDer::from_pem_file(certificate).expect("it is PEM")).expect("it is valid");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has safe versions")
            .with_root_certificates(trusted)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let socket = TcpStream::connect(&origin.authority).await.expect("the server accepts connections");
        let name = ServerName::try_from("127.0.0.1").expect("it is an address");
        let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
        let stream = stream.expect("the handshake succeeds");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = h2::client::handshake(stream).await.expect("both speak HTTP/2");
        tokio::spawn(async move {
            // Ends with the test; what goes wrong shows in the answers.
            let _ = connection.await;
        });
        Self { sender, authority: origin.authority.clone() }
    }

    /// Sends a head and leaves the body to the caller, unless there is none.
    async fn open(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        has_body: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let uri = format!("https://{}{target}", self.authority);
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut sender = self.sender.clone().ready().await.expect("the connection is open");
        let request = request.body(()).expect("it is a request");
        sender.send_request(request, !has_body).expect("the head is sent")
    }

    /// One request and its checked answer.
    async fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let (answer, mut upload) = self.open(method, target, headers, !body.is_empty()).await;
        if !body.is_empty() {
            upload.send_data(Bytes::copy_from_slice(body), true).expect("the body is queued");
        }
        let answer = collect(answer).await;
        contract::check(&answer, method, target);
        answer
    }
}

async fn collect(answer: ResponseFuture) -> Response {
    let whole = async {
        let (head, mut stream) = answer.await.expect("there is an answer").into_parts();
        let text = |value: &axum::http::HeaderValue| value.to_str().expect("it is text").to_owned();
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let mut body = Vec::new();
        while let Some(piece) = stream.data().await {
            let piece = piece.expect("the body is complete");
            stream.flow_control().release_capacity(piece.len()).expect("it was received");
            body.extend_from_slice(&piece);
        }
        Response { status: head.status.as_u16(), headers, body }
    };
    tokio::time::timeout(PATIENCE, whole).await.expect("the answer is complete")
}

/// A server with a certificate, and the directory that holds it.
fn start_with_tls(environment: &[(&str, &str)]) -> (ServerProcess, TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let files = write_certificate(directory.path());
    let (certificate, key) = (path_text(&files.certificate), path_text(&files.key));
    let tls = [("DS_TLS__CERT_PATH", certificate.as_str()), ("DS_TLS__KEY_PATH", key.as_str())];
    (start(&[&tls[..], environment].concat()), directory)
}

/// A request as tests write it down: method, target, headers, body.
type Step = (&'static str, String, Vec<(String, String)>, Vec<u8>);

fn step(method: &'static str, target: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Step {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    (method, target.to_owned(), headers, body.as_ref().to_vec())
}

/// The life of some streams, refusals included.
fn story() -> Vec<Step> {
    let (a, json) = (path("a"), path("json"));
    let from = |position| format!("{}?offset={}", path("a"), offset(position));
    vec![
        step("PUT", &a, &[("Content-Type", "text/plain; charset=utf-8")], "abc"),
        step("PUT", &a, &[TEXT], ""),
        step("PUT", &a, &[JSON], ""),
        step("POST", &a, &[TEXT], "def"),
        step("POST", &a, &[TEXT], ""),
        step("POST", &a, &[], "x"),
        step("POST", &a, &[JSON], "1"),
        step("POST", &a, &[TEXT, ("Content-Encoding", "gzip")], "x"),
        step("POST", &a, &[TEXT, ("Stream-Seq", "b")], "ghi"),
        step("POST", &a, &[TEXT, ("Stream-Seq", "a")], "x"),
        step("POST", &a, &[TEXT, ("Stream-Seq", "c"), ("Stream-Seq", "c")], "x"),
        step("POST", &a, &Producer::new("p", 3, 0).with(&[TEXT]), "jkl"),
        step("POST", &a, &Producer::new("p", 3, 0).with(&[TEXT]), "jkl"),
        step("POST", &a, &Producer::new("p", 3, 5).with(&[TEXT]), "x"),
        step("POST", &a, &Producer::new("p", 2, 0).with(&[TEXT]), "x"),
        step("GET", &a, &[], ""),
        step("GET", &from(4), &[], ""),
        step("GET", &from(99), &[], ""),
        step("GET", &a, &[("If-None-Match", "*")], ""),
        step("GET", &a, &[("Cookie", "a=b")], ""),
        step("GET", &format!("{a}?offset=now"), &[], ""),
        step("GET", &format!("{a}?offset=now&live=what"), &[], ""),
        step("HEAD", &a, &[], ""),
        step("POST", &a, &[CLOSED], ""),
        step("POST", &a, &[TEXT], "x"),
        step("GET", &format!("{}&live=long-poll&cursor=999999999999999", from(12)), &[], ""),
        step("DELETE", &a, &[], ""),
        step("GET", &a, &[], ""),
        step("HEAD", &a, &[], ""),
        step("PUT", &json, &[JSON, CLOSED], " [1, {\"a\": 1.10}, [2]] "),
        step("GET", &json, &[], ""),
        step("PUT", &path("bad"), &[JSON], "["),
        step("PUT", &path("a%00"), &[], ""),
        step("PUT", &path("a/../b"), &[], ""),
        step("GET", &path("__ds/x"), &[], ""),
        step("PATCH", &json, &[], ""),
        step("OPTIONS", &json, &[("Origin", "https://page.example")], ""),
        step("GET", "/healthz", &[], ""),
        step("GET", "/elsewhere", &[], ""),
    ]
}

/// What both versions have to agree on.
fn comparable(answer: &Response, url: &str) -> (u16, Vec<(String, String)>, Vec<u8>) {
    // The time, what identifies the stream or is random, and what only HTTP/1.1 has: it has to say that an answer has
    // no content.
    let differing = ["date", "etag", "stream-cursor", "connection"];
    let mut headers: Vec<_> = answer
        .headers
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.replace(url, "")))
        .filter(|(name, value)| {
            !differing.contains(&name.as_str()) && (name != "content-length" || value != "0")
        })
        .collect();
    headers.sort();
    (answer.status, headers, answer.body.clone())
}

#[tokio::test]
async fn both_versions_answer_alike() {
    let (one, _one) = start_with_tls(&[]);
    let (two, _two) = start_with_tls(&[]);
    let mut client = one.client();
    let connection = Http2::to(&two).await;
    for (method, target, headers, body) in story() {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let by_one = client.request(method, &target, &headers, &body);
        let by_two = connection.request(method, &target, &headers, &body).await;
        assert_eq!(comparable(&by_two, two.url()), comparable(&by_one, one.url()), "{method} {target}");
        assert_eq!(by_two.header("ETag").is_some(), by_one.header("ETag").is_some(), "{method} {target}");
        by_two.expect_no_header("Connection").expect_no_header("Transfer-Encoding");
    }
}

#[tokio::test]
async fn location_begins_with_the_authority() {
    let (server, _directory) = start_with_tls(&[]);
    let mut connection = Http2::to(&server).await;
    let created = connection.request("PUT", &path("a%20b"), &[], b"").await.expect_status(201);
    created.expect_header("Location", &format!("{}/v1/stream/a%20b", server.url()));
    connection.authority = "streams.example.test:444".to_owned();
    for (name, headers) in [("c", &[][..]), ("d", &[("Host", "other.test")])] {
        let created = connection.request("PUT", &path(name), headers, b"").await.expect_status(201);
        created.expect_header("Location", &format!("https://streams.example.test:444/v1/stream/{name}"));
    }
}

#[tokio::test]
async fn uploads_are_taken_whole_or_not_at_all() {
    let (server, _directory) = start_with_tls(&[("DS_LIMITS__MAX_BODY_BYTES", "1000")]);
    let connection = Http2::to(&server).await;
    let a = path("a");
    connection.request("PUT", &a, &[TEXT], b"").await.expect_status(201);

    let (answer, mut upload) = connection.open("POST", &a, &[TEXT], true).await;
    for piece in ["ab", "", "cd", "ef"] {
        upload.send_data(Bytes::from_static(piece.as_bytes()), false).expect("the piece is queued");
    }
    upload.send_data(Bytes::new(), true).expect("the end is queued");
    collect(answer).await.expect_status(204).expect_header("Stream-Next-Offset", &offset(6));

    connection.request("POST", &a, &[TEXT], &[b'x'; 1000]).await.expect_status(204);
    let refused = connection.request("POST", &a, &[TEXT], &[b'x'; 1001]).await;
    refused.expect_refusal("PAYLOAD_TOO_LARGE").expect_no_header("Connection");
    let (answer, _never_sent) =
        connection.open("POST", &a, &[TEXT, ("Content-Length", "200000000")], true).await;
    collect(answer).await.expect_refusal("PAYLOAD_TOO_LARGE");

    let (answer, mut broken) = connection.open("PUT", &path("new"), &[TEXT], true).await;
    broken.send_data(Bytes::from_static(b"abc"), false).expect("the piece is queued");
    broken.send_reset(Reason::CANCEL);
    answer.await.expect_err("the request was taken back");

    // The connection outlives all of this.
    connection.request("HEAD", &path("new"), &[], b"").await.expect_status(404);
    connection.request("HEAD", &a, &[], b"").await.expect_header("Stream-Next-Offset", &offset(1006));
}

#[tokio::test]
async fn stalled_upload_is_timed_out_alone() {
    let (server, _directory) = start_with_tls(&[("DS_LIMITS__REQUEST_BODY_TIMEOUT_SECS", "0.1")]);
    let connection = Http2::to(&server).await;
    let (answer, mut stalled) = connection.open("PUT", &path("new"), &[TEXT], true).await;
    stalled.send_data(Bytes::from_static(b"abc"), false).expect("the piece is queued");
    collect(answer).await.expect_refusal("REQUEST_TIMEOUT").expect_no_header("Connection");
    connection.request("HEAD", &path("new"), &[], b"").await.expect_status(404);
}

#[tokio::test]
async fn waiting_reads_and_appends_share_a_connection() {
    let (server, _directory) = start_with_tls(&[]);
    let connection = Http2::to(&server).await;
    let a = path("a");
    connection.request("PUT", &a, &[TEXT], b"").await.expect_status(201);
    let (polled, _) = connection.open("GET", &format!("{a}?offset=-1&live=long-poll"), &[], false).await;
    let (followed, _) = connection.open("GET", &format!("{a}?offset=-1&live=sse"), &[], false).await;
    connection.request("POST", &a, &[TEXT], b"abc").await.expect_status(204);
    let page = collect(polled).await.expect_status(200);
    assert_eq!(page.text(), "abc");
    page.expect_header("Stream-Next-Offset", &offset(3));
    connection.request("POST", &a, &[TEXT, CLOSED], b"def").await.expect_status(204);
    let events = collect(followed).await.expect_status(200);
    events.expect_header("Content-Type", "text/event-stream");
    let text: String = events.text().lines().filter_map(|line| line.strip_prefix("data:")).collect();
    let (before, after) = (text.find("abc"), text.find("def"));
    assert!(before.is_some() && before < after, "{}", events.text());
    assert!(events.text().trim_end().ends_with(r#""streamClosed":true}"#), "{}", events.text());
}

#[tokio::test]
async fn large_answers_arrive_whole() {
    let (server, _directory) = start_with_tls(&[]);
    let connection = Http2::to(&server).await;
    let content: Vec<u8> = (0..3_000_000_u32).map(|index| (index % 251) as u8).collect();
    server.client().request("PUT", &path("a"), &[], &content).expect_status(201);
    let target = path("a");
    let (first, second) = tokio::join!(
        connection.request("GET", &target, &[], b""),
        connection.request("GET", &target, &[], b""),
    );
    for page in [first, second] {
        assert_eq!(page.expect_status(200).body, content);
    }
}
