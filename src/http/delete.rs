//! DELETE: remove a stream, or hide it while forks live. `protocol.md` §11.

use axum::http::StatusCode;
use axum::response::Response;

use crate::http::problem::Problem;
use crate::http::response;
use crate::http::router::App;
use crate::protocol::name::StreamName;

pub(super) async fn delete(app: &App, name: StreamName) -> Result<Response, Problem> {
    app.storage.delete(name).await?;

    Ok(response::without_body(StatusCode::NO_CONTENT))
}
