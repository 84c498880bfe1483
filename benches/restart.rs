//! How long a server with much in its data directory takes from its start until `/readyz` answers 200: after a stop in good order,
//! and after `kill -9` under writers.
//!
//! ```sh
//! cargo bench --bench restart -- --streams 100000 --gib 20 --modes acid,file-durable --dir /var/tmp/restart
//! ```
//!
//! Everything goes through the real server. `--dir` is made, and removed at the end. Where it may (as root), it also starts the
//! server with nothing of the disk in the operating system's cache.

use std::error::Error;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const CONNECTIONS: usize = 8;
/// Requests sent before their answers are read. Bytes of bodies, and requests.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_MAX: usize = 64;
/// How long writers are at work before the server is killed.
const WRITING: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;
/// Longest time that a start or a stop may take.
const PATIENCE: Duration = Duration::from_secs(300);

struct Options {
    streams: usize,
    bytes: u64,
    modes: Vec<String>,
    dir: PathBuf,
    server: PathBuf,
}

impl Options {
    fn parse() -> Outcome<Self> {
        let mut options = Self {
            streams: 100_000,
            bytes: 1 << 30,
            modes: ["acid", "file-durable", "file-fast"].map(String::from).to_vec(),
            dir: std::env::temp_dir().join(format!("restart-{}", std::process::id())),
            server: env!("CARGO_BIN_EXE_durable-streams-server").into(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if name == "--bench" {
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--streams" => options.streams = value.parse()?,
                "--gib" => options.bytes = (value.parse::<f64>()? * f64::from(1 << 30)) as u64,
                "--modes" => options.modes = value.split(',').map(String::from).collect(),
                "--dir" => options.dir = value.into(),
                "--server" => options.server = value.into(),
                _ => return Err(format!("unknown option {name}").into()),
            }
        }
        Ok(options)
    }

    fn body_bytes(&self) -> usize {
        (self.bytes / self.streams.max(1) as u64) as usize
    }
}

/// A server on a port of its own.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts it, and says how long it took until it was ready.
    fn start(options: &Options, mode: &str) -> Outcome<(Self, Duration)> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = fs::File::create(options.dir.join("log"))?;
        let begun = Instant::now();
        let child = Command::new(&options.server)
            .current_dir(&options.dir)
            .env("DS_SERVER__PORT", address.port().to_string())
            .env("DS_STORAGE__MODE", mode)
            .env("DS_STORAGE__DATA_DIR", options.dir.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let mut server = Self { child, address };
        while !server.is_ready() {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("the server ended: {status}, see {}", options.dir.display()).into());
            }
            if begun.elapsed() > PATIENCE {
                return Err("the server does not become ready".into());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok((server, begun.elapsed()))
    }

    fn is_ready(&self) -> bool {
        let ask = || -> Outcome<bool> {
            let mut stream = TcpStream::connect(self.address)?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.starts_with("HTTP/1.1 200"))
        };
        ask().unwrap_or(false)
    }

    /// Stops it in good order, and says how long that took.
    fn stop(mut self) -> Outcome<Duration> {
        let begun = Instant::now();
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        self.child.wait()?;
        Ok(begun.elapsed())
    }

    fn kill9(mut self) -> Outcome<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

fn request(method: &str, stream: usize, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut bytes = format!(
        "{method} /v1/stream/restart/{stream} HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Reads one answer without a body.
fn read_status(reader: &mut BufReader<TcpStream>) -> Outcome<u16> {
    let (mut line, mut status, mut length) = (String::new(), None, 0);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err("the connection ended".into());
        }
        let text = line.trim_end().to_ascii_lowercase();
        if status.is_none() {
            status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
        } else if let Some(value) = text.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        } else if text.is_empty() {
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            return status.ok_or_else(|| "no status".into());
        }
    }
}

/// Sends these streams, in batches, and again what the server had no room for just then.
fn send(address: SocketAddr, method: &str, streams: &[usize], body: &[u8], stop: &AtomicBool) -> Outcome<()> {
    let mut writer = TcpStream::connect(address)?;
    let mut reader = BufReader::new(writer.try_clone()?);
    let batch = (BATCH_BYTES / body.len().max(1)).clamp(1, BATCH_MAX);
    for streams in streams.chunks(batch) {
        let mut left: Vec<usize> = streams.to_vec();
        while !left.is_empty() && !stop.load(Ordering::Relaxed) {
            let bytes: Vec<u8> = left.iter().flat_map(|&stream| request(method, stream, body)).collect();
            writer.write_all(&bytes)?;
            let mut again = Vec::new();
            for &stream in &left {
                match read_status(&mut reader)? {
                    200..=299 => {}
                    503 => again.push(stream),
                    other => return Err(format!("{method} {stream}: {other}").into()),
                }
            }
            if !again.is_empty() {
                thread::sleep(Duration::from_millis(50));
            }
            left = again;
        }
    }
    Ok(())
}

fn fill(options: &Options, address: SocketAddr) -> Outcome<Duration> {
    let (begun, body, stop) = (Instant::now(), vec![b'x'; options.body_bytes()], AtomicBool::new(false));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|first| {
                let streams: Vec<usize> = (first..options.streams).step_by(CONNECTIONS).collect();
                let (body, stop) = (&body, &stop);
                scope.spawn(move || send(address, "PUT", &streams, body, stop))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("a panic".into())))
    })?;
    Ok(begun.elapsed())
}

/// Kills the server while all connections append.
fn kill_under_writers(options: &Options, server: Server) -> Outcome<()> {
    let (address, stop) = (server.address, AtomicBool::new(false));
    let body = [b'y'; 1_000];
    thread::scope(|scope| {
        for first in 0..CONNECTIONS {
            let streams: Vec<usize> =
                (first..options.streams).step_by(CONNECTIONS).cycle().take(1 << 24).collect();
            let (stop, body) = (&stop, &body);
            // Cut off, as it is meant to be.
            scope.spawn(move || drop(send(address, "POST", &streams, body, stop)));
        }
        thread::sleep(WRITING);
        stop.store(true, Ordering::Relaxed);
        server.kill9()
    })
}

/// Has the operating system forget what it has read of the disk. Only root may.
fn forget_cache() -> bool {
    let synced = Command::new("sync").status().is_ok_and(|status| status.success());
    synced && fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn seconds(times: &[Duration]) -> String {
    times.iter().map(|time| format!("{:.2}", time.as_secs_f64())).collect::<Vec<_>>().join(", ")
}

fn measure(options: &Options, mode: &str) -> Outcome<()> {
    let (mut server, _) = Server::start(options, mode)?;
    let filled = fill(options, server.address)?;
    let gib = options.bytes as f64 / f64::from(1 << 30);
    println!("{mode}: {} streams, {gib:.1} GiB, written in {:.0} s", options.streams, filled.as_secs_f64());
    let (mut stops, mut clean, mut killed, mut cold) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut ready;
    for _ in 0..ROUNDS {
        stops.push(server.stop()?);
        (server, ready) = Server::start(options, mode)?;
        clean.push(ready);
    }
    for _ in 0..ROUNDS {
        kill_under_writers(options, server)?;
        (server, ready) = Server::start(options, mode)?;
        killed.push(ready);
    }
    kill_under_writers(options, server)?;
    if forget_cache() {
        (server, ready) = Server::start(options, mode)?;
        cold.push(ready);
        server.stop()?;
        forget_cache();
        (server, ready) = Server::start(options, mode)?;
        cold.push(ready);
        server.kill9()?;
    }
    println!("  stop [s]: {}", seconds(&stops));
    println!("  stop → ready [s]: {}", seconds(&clean));
    println!("  kill -9 → ready [s]: {}", seconds(&killed));
    println!("  without cache, after kill -9 and after a stop [s]: {}", seconds(&cold));
    Ok(())
}

fn main() -> Outcome<()> {
    let options = Options::parse()?;
    for mode in &options.modes {
        fs::create_dir_all(&options.dir)?;
        measure(&options, mode)?;
        fs::remove_dir_all(&options.dir)?;
    }
    Ok(())
}
