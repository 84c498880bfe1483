//! HEAD: a stream without its content. `protocol.md` §11 and §17.

use axum::http::StatusCode;
use axum::response::Response;

use crate::http::headers::NO_STORE;
use crate::http::problem::Problem;
use crate::http::response::{self, StreamHeaders};
use crate::http::router::App;
use crate::protocol::name::StreamName;

pub(super) async fn head(app: &App, name: StreamName) -> Result<Response, Problem> {
    let info = app.storage.head(name).await?;

    let mut response = response::without_body(StatusCode::OK);
    let headers = response.headers_mut();
    headers.put_content_type(&info.content_type);
    headers.put_next_offset(info.tail);
    headers.put_closed(info.closed);
    headers.put_lifetime(&info);
    headers.put_retention(&info);
    headers.put_cache_control(NO_STORE.clone());
    Ok(response)
}
