//! PUT: create a stream, or confirm that it is there. `protocol.md` §7 and §18.

use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::Response;

use crate::engine::api::CreateRequest;
use crate::http::body::{Upload, in_all_forms};
use crate::http::problem::Problem;
use crate::http::request::Call;
use crate::http::response::{self, StreamHeaders};
use crate::http::router::App;
use crate::protocol::name::StreamName;

pub(super) async fn put(
    app: &App,
    call: &Call<'_>,
    name: StreamName,
    upload: &mut Upload,
) -> Result<Response, Problem> {
    let content_type = call.content_type()?;
    let lifetime = call.lifetime()?;
    let retention = call.retention()?;
    let closed = call.closes();
    let fork = call.fork(&app.base, &app.names)?;
    let location = call.location(app.public_origin.as_deref())?;
    call.check_content_encoding()?;

    let raw = upload.receive(&app.bodies).await?;
    // A fork without a type has its source's, which only the store knows.
    let as_json = match &content_type {
        Some(content_type) => content_type.is_json(),
        None => fork.is_some(),
    };
    let body = in_all_forms(raw, as_json, app.json_depth_max).await?;

    let request = CreateRequest { name, content_type, lifetime, retention, closed, body, fork };
    let created = app.storage.create(request).await?;

    let status = if created.existed { StatusCode::OK } else { StatusCode::CREATED };
    let mut response = response::with_room(status);
    let headers = response.headers_mut();
    if !created.existed {
        headers.insert(LOCATION, location);
    }
    headers.put_content_type(&created.content_type);
    headers.put_next_offset(created.tail);
    headers.put_closed(created.closed);
    Ok(response)
}
