//! One event per request: at debug level, and at warn level if the server failed. Field names are those of
//! OpenTelemetry and ECS.

use std::time::Instant;

use axum::http::{Method, StatusCode};
use tracing::Level;

use crate::http::problem::Problem;
use crate::http::request::Call;
use crate::http::router::App;
use crate::protocol::name::StreamName;
use crate::protocol::query::{self, LiveMode};

/// Watches over one request. If nobody listens it does nothing, and takes no time.
#[derive(Debug)]
pub(super) struct Observation {
    started: Option<Instant>,
}

impl Observation {
    pub(super) fn begin() -> Self {
        Self { started: tracing::enabled!(Level::DEBUG).then(Instant::now) }
    }

    /// Says how the request ended. `problem` is what was refused or failed, if anything.
    pub(super) fn end(self, app: &App, call: &Call<'_>, status: StatusCode, problem: Option<&Problem>) {
        let is_failure = status.is_server_error();
        if self.started.is_none() && !(is_failure && tracing::enabled!(Level::WARN)) {
            return;
        }
        // At the default level only failures come here, without a duration: taking the time costs every request.
        let duration_ns = self.started.map(|at| u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let name = app.stream_of(call.path);
        let name = name.as_ref().map(StreamName::as_str);
        let operation = name.and(operation(call));
        let error = problem.map(|problem| problem.code().as_str());
        // Event macros build a static for each level, so the level cannot be a variable.
        macro_rules! event {
            ($level:expr) => {
                tracing::event!(
                    $level,
                    "http.request.method" = call.method.as_str(),
                    "url.path" = call.sent.path(),
                    "http.response.status_code" = status.as_u16(),
                    "ds.stream" = name,
                    "ds.operation" = operation,
                    "event.duration" = duration_ns,
                    "error.type" = error,
                    "error.message" = problem.map(Problem::detail),
                    "request"
                )
            };
        }
        if is_failure {
            event!(Level::WARN);
        } else {
            event!(Level::DEBUG);
        }
    }
}

fn operation(call: &Call<'_>) -> Option<&'static str> {
    Some(match *call.method {
        Method::PUT => "create",
        Method::POST => "append",
        Method::DELETE => "delete",
        Method::HEAD => "head",
        Method::GET => match query::parse(call.query).ok()?.live {
            None => "read",
            Some(LiveMode::LongPoll) => "long_poll",
            Some(LiveMode::Sse) => "sse",
        },
        _ => return None,
    })
}
