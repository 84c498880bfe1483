//! A blocking HTTP/1.1 client that is small enough to be trusted and sends exactly what it is told to, so that tests
//! can also say what no proper client would say.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::tls;

/// How long a test waits for bytes before it fails instead of hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Repeats a read that was interrupted. One with a timeout is not taken up again by the system after the process stood still.
pub(crate) fn uninterrupted<T>(mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// A plain or encrypted byte stream.
pub(crate) trait Wire: Read + Write + Send {
    /// The socket below, for timeouts and half-closing.
    fn socket(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

/// Where a server listens and, for `https`, which certificate it must show.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// `host:port`
    pub(crate) authority: String,
    /// PEM file with the trusted certificate; `None` = plain HTTP.
    pub(crate) trusted_certificate: Option<PathBuf>,
}

impl Origin {
    /// Reads `http://host:port` or, with the certificate to trust, `https://host:port`.
    pub(crate) fn parse(url: &str, trusted_certificate: Option<&Path>) -> Self {
        let (scheme, authority) = url.split_once("://").unwrap_or_else(|| panic!("not a URL: {url}"));
        let trusted_certificate = match scheme {
            "http" => None,
            "https" => Some(trusted_certificate.expect("https needs a certificate to trust").to_path_buf()),
            other => panic!("neither http nor https: {other}"),
        };
        Self { authority: authority.to_owned(), trusted_certificate }
    }

    /// Opens a new connection.
    pub(crate) fn connect(&self) -> io::Result<Connection> {
        self.connect_over(TcpStream::connect(&self.authority)?)
    }

    /// Opens a new connection on which the system buffers little of what is not read.
    pub(crate) fn connect_narrow(&self) -> io::Result<Connection> {
        let address: SocketAddr = self.authority.parse().expect("the server listens on an address");
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // Has to be said before the connection is made.
        socket.set_recv_buffer_size(4096)?;
        socket.connect(&address.into())?;
        self.connect_over(socket.into())
    }

    fn connect_over(&self, socket: TcpStream) -> io::Result<Connection> {
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let wire: Box<dyn Wire> = match &self.trusted_certificate {
            None => Box::new(socket),
            Some(certificate) => Box::new(tls::wrap(socket, &self.authority, certificate)?),
        };
        Ok(Connection { wire: BufReader::new(wire), authority: self.authority.clone(), open: true })
    }

    /// A client that keeps one connection alive.
    pub(crate) fn client(&self) -> Client {
        Client { origin: self.clone(), connection: None }
    }
}

/// A response whose body has been read whole.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// In order of arrival; names as sent.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The value of a header that was sent once, compared without case; `None` if it was not sent.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let values = self.header_values(name);
        assert!(values.len() <= 1, "{name} was sent {} times: {values:?}", values.len());
        values.first().copied()
    }

    /// All values of a header.
    pub(crate) fn header_values(&self, name: &str) -> Vec<&str> {
        let matching = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        matching.map(|(_, value)| value.as_str()).collect()
    }

    /// The body as text; invalid UTF-8 fails the test.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    /// Fails with the whole answer unless the status is the one expected; returns the answer for further questions.
    #[track_caller]
    pub(crate) fn expect_status(self, status: u16) -> Self {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "headers {:?}, body {body:?}", self.headers);
        self
    }
}

/// Sends one request after the other over one connection and opens a new one when the server closed it.
pub(crate) struct Client {
    origin: Origin,
    connection: Option<Connection>,
}

impl Client {
    /// Sends a request and reads the whole answer. Any failure of the connection fails the test.
    #[track_caller]
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        match self.try_request(method, path, headers, body) {
            Ok(response) => response,
            Err(error) => panic!("{method} {path}: {error}"),
        }
    }

    /// As [`Client::request`], for servers that may die under it. Nothing is sent twice: after an error the outcome is
    /// unknown, and the next request opens a new connection.
    pub(crate) fn try_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.origin.connect()?,
        };
        connection.send_request(method, path, headers, body)?;
        let response = connection.read_response(method)?;
        if connection.open {
            self.connection = Some(connection);
        }
        Ok(response)
    }
}

/// Status and headers of a response whose body is still to be read.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) response: Response,
    framing: Framing,
}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Sized(u64),
    Chunked,
    UntilClose,
}

/// One connection, for tests that care about what exactly travels over it.
pub(crate) struct Connection {
    wire: BufReader<Box<dyn Wire>>,
    authority: String,
    /// False as soon as the server announced, or showed, that it takes no further request.
    pub(crate) open: bool,
}

impl Connection {
    /// The socket below, for timeouts and half-closing.
    pub(crate) fn socket(&self) -> &TcpStream {
        self.wire.get_ref().socket()
    }

    /// Sends these bytes and nothing else.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let wire = self.wire.get_mut();
        wire.write_all(bytes)?;
        wire.flush()
    }

    /// Sends a request in one write. `Host` is added unless given; `Content-Length` is added for a body and for PUT
    /// and POST, unless a length or a transfer coding is given.
    pub(crate) fn send_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<()> {
        let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !given("Host") {
            head += &format!("Host: {}\r\n", self.authority);
        }
        let takes_body = !body.is_empty() || matches!(method, "PUT" | "POST");
        if takes_body && !given("Content-Length") && !given("Transfer-Encoding") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.send_raw(&bytes)
    }

    /// Sends a request and reads the whole answer.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        self.send_request(method, path, headers, body)?;
        self.read_response(method)
    }

    /// Sends a GET that is going to wait for its answer, behind another one that is answered with 200 at once. Both are one
    /// write: a server that has answered the first one has read the second as well, and begins with it before it does anything
    /// else for this connection, such as closing it.
    pub(crate) fn begin_wait(&mut self, at_once: &str, waiting: &str) -> io::Result<()> {
        let head = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", self.authority);
        let heads = head(at_once) + &head(waiting);
        self.send_raw(heads.as_bytes())?;
        self.read_response("GET")?.expect_status(200);
        Ok(())
    }

    /// Reads one answer to a request with `method`, body included. Interim (1xx) answers are skipped.
    pub(crate) fn read_response(&mut self, method: &str) -> io::Result<Response> {
        let mut head = self.read_head(method)?;
        let mut body = Vec::new();
        while let Some(piece) = self.read_piece(&mut head)? {
            body.extend_from_slice(&piece);
        }
        Ok(Response { body, ..head.response })
    }

    /// Reads status line and headers of one answer to a request with `method`, and leaves its body unread.
    pub(crate) fn read_head(&mut self, method: &str) -> io::Result<Head> {
        loop {
            let status = self.read_status_line()?;
            let headers = self.read_headers()?;
            if (100..200).contains(&status) {
                continue;
            }
            let response = Response { status, headers, body: Vec::new() };
            let framing = framing_of(&response, method)?;
            let says_close =
                response.header_values("Connection").iter().any(|value| value.eq_ignore_ascii_case("close"));
            self.open = !says_close && framing != Framing::UntilClose;
            return Ok(Head { response, framing });
        }
    }

    /// The next piece of a body as it arrived: a chunk of a chunked body, at most 64 KiB of any other. `None` = the body
    /// is complete.
    pub(crate) fn read_piece(&mut self, head: &mut Head) -> io::Result<Option<Vec<u8>>> {
        match head.framing {
            Framing::Sized(0) => Ok(None),
            Framing::Sized(left) => {
                let piece = self.read_available(left)?;
                if piece.is_empty() {
                    return Err(cut_off("a sized body"));
                }
                head.framing = Framing::Sized(left - piece.len() as u64);
                Ok(Some(piece))
            }
            Framing::Chunked => {
                let piece = self.read_chunk()?;
                if piece.is_none() {
                    head.framing = Framing::Sized(0);
                }
                Ok(piece)
            }
            Framing::UntilClose => {
                let piece = self.read_available(u64::MAX)?;
                Ok((!piece.is_empty()).then_some(piece))
            }
        }
    }

    /// True if the server closed the connection and sent nothing more; waits for that.
    pub(crate) fn is_closed_by_server(&mut self) -> bool {
        match uninterrupted(|| self.wire.fill_buf().map(<[u8]>::is_empty)) {
            Ok(is_at_end) => is_at_end,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
            ),
        }
    }

    fn read_status_line(&mut self) -> io::Result<u16> {
        let line = self.read_line()?;
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok());
        status.ok_or_else(|| malformed("status line", &line))
    }

    fn read_headers(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut headers = Vec::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                return Ok(headers);
            }
            let (name, value) = line.split_once(':').ok_or_else(|| malformed("header", &line))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.wire.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\r\n") {
            return Err(cut_off("a line"));
        }
        line.truncate(line.len() - 2);
        String::from_utf8(line).map_err(|error| malformed("line", &error.to_string()))
    }

    fn read_available(&mut self, most: u64) -> io::Result<Vec<u8>> {
        let mut piece = vec![0; usize::try_from(most.min(64 * 1024)).expect("64 KiB fit")];
        let count = uninterrupted(|| self.wire.read(&mut piece))?;
        piece.truncate(count);
        Ok(piece)
    }

    fn read_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.read_line()?;
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| malformed("chunk size", &line))?;
        if size == 0 {
            // Trailers are headers once more, ended by an empty line.
            self.read_headers()?;
            return Ok(None);
        }
        let mut chunk = vec![0; size];
        self.wire.read_exact(&mut chunk)?;
        let end = self.read_line()?;
        if end.is_empty() { Ok(Some(chunk)) } else { Err(malformed("end of a chunk", &end)) }
    }
}

/// The rules of RFC 9112, section 6.3, as far as responses go.
fn framing_of(response: &Response, method: &str) -> io::Result<Framing> {
    if method == "HEAD" || matches!(response.status, 204 | 304) {
        return Ok(Framing::Sized(0));
    }
    if let Some(coding) = response.header("Transfer-Encoding") {
        return match coding {
            "chunked" => Ok(Framing::Chunked),
            other => Err(malformed("transfer coding", other)),
        };
    }
    match response.header("Content-Length") {
        Some(length) => length.parse().map(Framing::Sized).map_err(|_| malformed("length", length)),
        None => Ok(Framing::UntilClose),
    }
}

fn malformed(what: &str, text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what}: {text:?}"))
}

fn cut_off(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the connection ended inside {what}"))
}
