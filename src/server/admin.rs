//! The admin endpoint of a running server: plain HTTP/1.1 over a Unix domain socket in its data directory.
//!
//! Nothing of it is on the network. Whoever may use the socket is a matter of the file system: its mode is 0600, so that is the
//! user of the server, and root. The directory's lock is held while the socket is made and removed, so one that is found
//! there is left over from a server that was killed, and nobody else makes one.
//!
//! `POST /backup` with `{"target": "/an/absolute/path"}` has a backup made by the server's own user. The answer is one JSON document
//! a line: `{"progress": …}` any number of times, then `{"complete": …}` or `{"error": "…"}`. What is refused before
//! anything is copied has a status of its own. If the client goes away, the backup is given up.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::post;
use futures_util::stream;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::storage::backup::{BackupError, BackupProgress, BackupSummary};
use crate::storage::layout::ADMIN_SOCKET_FILE;

/// Longest path of a socket everywhere: the kernel's field has 104 to 108 bytes, one of them a zero. Bytes.
const PATH_BYTES_MAX: usize = 100;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;
/// How long a stopping server waits for a backup to be given up, and for whoever asked for it to be told.
const PATIENCE: Duration = Duration::from_secs(2);

/// A request to `/backup`.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct BackupOrder {
    pub(super) target: PathBuf,
}

/// A line of the answer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BackupLine {
    Progress { done_bytes: u64, total_bytes: u64 },
    Complete { shards: usize, segments: u64, copied_bytes: u64, linked_bytes: u64, paused_us: u64 },
    Error(String),
}

impl From<BackupProgress> for BackupLine {
    fn from(BackupProgress { done_bytes, total_bytes }: BackupProgress) -> Self {
        Self::Progress { done_bytes, total_bytes }
    }
}

impl From<BackupSummary> for BackupLine {
    fn from(summary: BackupSummary) -> Self {
        Self::Complete {
            shards: summary.shards,
            segments: summary.segments,
            copied_bytes: summary.copied_bytes,
            linked_bytes: summary.linked_bytes,
            paused_us: u64::try_from(summary.paused.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// The endpoint of a server. Ends, and its socket goes, when this is dropped.
#[derive(Debug)]
pub(super) struct Admin {
    socket: PathBuf,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Starts it on the data directory of `engine`, which that has locked. `None` if there is no such directory.
    ///
    /// # Errors
    /// If the socket cannot be made, or there is no thread.
    pub(super) fn start(engine: &Engine) -> io::Result<Option<Self>> {
        let Some(data_dir) = engine.data_dir() else { return Ok(None) };
        let listener = listen(data_dir)?;
        let socket = data_dir.join(ADMIN_SOCKET_FILE);
        // From here on the socket goes if the rest fails.
        let mut admin = Self { socket, stop: CancellationToken::new(), thread: None };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (engine, stop) = (engine.clone(), admin.stop.clone());
        let serve = move || {
            runtime.block_on(async {
                if let Err(error) = serve(listener, engine, stop).await {
                    tracing::error!(%error, "the admin endpoint has ended");
                }
            });
        };
        admin.thread = Some(thread::Builder::new().name("ds-admin".to_owned()).spawn(serve)?);
        Ok(Some(admin))
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        // Before the data directory is given up: later it could be that of another server.
        let _ = fs::remove_file(&self.socket);
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the admin endpoint panicked");
        }
    }
}

/// A path that leads to the socket and is short enough for the kernel. It is valid as long as what comes with it.
pub(super) fn socket_path(data_dir: &Path) -> io::Result<(PathBuf, Option<fs::File>)> {
    let path = data_dir.join(ADMIN_SOCKET_FILE);
    if path.as_os_str().len() <= PATH_BYTES_MAX {
        return Ok((path, None));
    }
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd as _;
        let directory = fs::File::open(data_dir)?;
        let path = format!("/proc/self/fd/{}/{ADMIN_SOCKET_FILE}", directory.as_raw_fd()).into();
        Ok((path, Some(directory)))
    }
    #[cfg(not(target_os = "linux"))]
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{} is too long for the path of a socket; {PATH_BYTES_MAX} bytes fit", path.display()),
    ))
}

fn listen(data_dir: &Path) -> io::Result<UnixListener> {
    let (path, _directory) = socket_path(data_dir)?;
    match fs::symlink_metadata(&path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(&path)?,
        Ok(_) => {
            let why = format!("{} is there and is no socket", data_dir.join(ADMIN_SOCKET_FILE).display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(&path)?)?;
    // Nobody can connect before it listens.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[derive(Debug)]
struct App {
    engine: Engine,
    stop: CancellationToken,
}

async fn serve(listener: UnixListener, engine: Engine, stop: CancellationToken) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let app = Arc::new(App { engine, stop: stop.clone() });
    let router = Router::new().route("/backup", post(backup)).with_state(app);
    let patience = stop.clone();
    tokio::select! {
        served = async { axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await } => served,
        () = async { patience.cancelled().await; tokio::time::sleep(PATIENCE).await } => Ok(()),
    }
}

async fn backup(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let target = match serde_json::from_slice::<BackupOrder>(&body) {
        Ok(BackupOrder { target }) if target.is_absolute() => target,
        Ok(_) => return refused(StatusCode::BAD_REQUEST, "target has to be an absolute path".to_owned()),
        Err(error) => return refused(StatusCode::BAD_REQUEST, format!("the body: {error}")),
    };
    // Room for one: news that nobody has taken yet need no successor.
    let (lines, mut received) = mpsc::channel(1);
    let work = move || {
        tracing::info!(target = %target.display(), "backup begun");
        let mut tell = |progress: BackupProgress| {
            let is_over = app.stop.is_cancelled()
                || matches!(lines.try_send(Ok(progress.into())), Err(mpsc::error::TrySendError::Closed(_)));
            if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let outcome = app.engine.backup(&target, &mut tell);
        match &outcome {
            Ok(summary) => tracing::info!(target = %target.display(), ?summary, "backup complete"),
            Err(error) => tracing::warn!(target = %target.display(), %error, "backup failed"),
        }
        // Nobody may be listening any more.
        let _ = lines.blocking_send(outcome.map(BackupLine::from));
    };
    if let Err(error) = thread::Builder::new().name("ds-backup".to_owned()).spawn(work) {
        return refused(StatusCode::SERVICE_UNAVAILABLE, format!("there is no thread for it: {error}"));
    }
    let first = match received.recv().await {
        Some(Ok(first)) => first,
        Some(Err(error)) => return refused(status(&error), error.to_string()),
        None => return refused(StatusCode::INTERNAL_SERVER_ERROR, "the backup panicked".to_owned()),
    };
    // A thread that panics ends the body without the line that says how it went.
    let lines = stream::unfold((Some(first), received), async |(first, mut received)| {
        let line = match first {
            Some(first) => first,
            None => received.recv().await?.unwrap_or_else(|error| BackupLine::Error(error.to_string())),
        };
        Some((Ok::<_, io::Error>(encoded(&line)), (None, received)))
    });
    answer(StatusCode::OK, Body::from_stream(lines))
}

fn status(error: &BackupError) -> StatusCode {
    match error {
        BackupError::Target(_) | BackupError::NothingOnDisk => StatusCode::BAD_REQUEST,
        BackupError::Busy => StatusCode::CONFLICT,
        BackupError::ShardUnavailable(_) | BackupError::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        BackupError::Storage(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn refused(status: StatusCode, why: String) -> Response {
    answer(status, encoded(&BackupLine::Error(why)).into())
}

fn answer(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

fn encoded(line: &BackupLine) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("a line has nothing that JSON cannot say");
    text.push(b'\n');
    text.into()
}
