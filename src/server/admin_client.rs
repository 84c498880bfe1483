//! The other end of the [admin endpoint](super::admin), for the command line.

use std::io;
use std::path::Path;

use axum::body::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::admin::{BackupLine, BackupOrder, socket_path};
use crate::storage::backup::{BackupProgress, BackupSummary};

/// Longest line of an answer. Bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Why a server that runs made no backup.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// It said so.
    #[error("{0}")]
    Refused(String),
    /// The server's socket cannot be used.
    #[error("{socket}: {source}")]
    Socket {
        /// Its path.
        socket: String,
        /// What is wrong.
        source: io::Error,
    },
    /// The server ended meanwhile, or does not speak as it should.
    #[error("the server's answer broke off ({0}); the target is not a complete backup")]
    BrokenOff(String),
}

/// Has the server that runs on `data_dir` make a backup in `target`, an absolute path as that server sees it. `None` if no server
/// listens there. Blocks.
///
/// # Errors
/// [`AdminError`].
pub fn request_backup(
    data_dir: &Path,
    target: &Path,
    on_progress: &mut dyn FnMut(BackupProgress),
) -> Result<Option<BackupSummary>, AdminError> {
    let failed = |source| AdminError::Socket { socket: data_dir.display().to_string(), source };
    if !data_dir.is_dir() {
        return Ok(None);
    }
    let (path, _directory) = socket_path(data_dir).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(async {
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        exchange(stream, target, on_progress).await.map(Some)
    })
}

async fn exchange(
    stream: UnixStream,
    target: &Path,
    on_progress: &mut dyn FnMut(BackupProgress),
) -> Result<BackupSummary, AdminError> {
    let broken = |error: &dyn std::fmt::Display| AdminError::BrokenOff(error.to_string());
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    // It ends with the sender, or with an error that the answer shows too.
    let connection = tokio::spawn(connection);
    let order = serde_json::to_vec(&BackupOrder { target: target.to_owned() })
        .map_err(|error| AdminError::Refused(format!("the target: {error}")))?;
    let request = http::Request::post("/backup")
        .header(http::header::HOST, "localhost")
        .body(Full::new(Bytes::from(order)))
        .expect("the request has nothing that HTTP cannot say");
    let mut body = sender.send_request(request).await.map_err(|error| broken(&error))?.into_body();
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = memchr::memchr(b'\n', &text) {
            let line: Vec<u8> = text.drain(..=end).collect();
            match serde_json::from_slice(&line).map_err(|error| broken(&error))? {
                BackupLine::Progress { done_bytes, total_bytes } => {
                    on_progress(BackupProgress { done_bytes, total_bytes });
                }
                BackupLine::Error(why) => return Err(AdminError::Refused(why)),
                complete => return summary(complete).ok_or_else(|| broken(&"an unknown line")),
            }
        }
        if text.len() > LINE_BYTES_MAX {
            return Err(broken(&"a line without end"));
        }
    }
    connection.abort();
    Err(broken(&"it has no end"))
}

fn summary(line: BackupLine) -> Option<BackupSummary> {
    let BackupLine::Complete { shards, segments, copied_bytes, linked_bytes, paused_us } = line else {
        return None;
    };
    let paused = std::time::Duration::from_micros(paused_us);
    Some(BackupSummary { shards, segments, copied_bytes, linked_bytes, paused })
}
