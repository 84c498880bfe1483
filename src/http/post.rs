//! POST: append, close, or both in one step. `protocol.md` §8, §9 and §10.

use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;

use crate::engine::api::{AppendRequest, Body};
use crate::http::body::{Upload, in_all_forms};
use crate::http::headers::{PRODUCER_EPOCH, PRODUCER_SEQ};
use crate::http::problem::{Code, Problem};
use crate::http::request::Call;
use crate::http::response::{self, StreamHeaders};
use crate::http::router::App;
use crate::protocol::name::StreamName;

pub(super) async fn post(
    app: &App,
    call: &Call<'_>,
    name: StreamName,
    upload: &mut Upload,
) -> Result<Response, Problem> {
    // A close-only request has no use for a content type, well-formed or not.
    let content_type = if upload.is_absent() { None } else { call.content_type()? };
    let close = call.closes();
    let stream_seq = call.stream_seq()?;
    let producer = call.producer()?;
    call.check_content_encoding()?;

    let raw = upload.receive(&app.bodies).await?;
    let has_body = !raw.is_empty();
    let has_producer = producer.is_some();
    let (content_type, body) = if has_body {
        let content_type =
            content_type.ok_or_else(|| Problem::bad_request("a body needs the header Content-Type"))?;
        let body = in_all_forms(raw, content_type.is_json(), app.json_depth_max).await?;
        (Some(content_type), body)
    } else if close {
        (None, Body::default())
    } else {
        return Err(Problem::new(Code::EmptyBody, "there is nothing to append, and nothing to close"));
    };

    let request = AppendRequest { name, content_type, body, close, stream_seq, producer };
    let appended = app.storage.append(request).await?;

    let mut response = if has_producer && has_body && !appended.duplicate {
        response::with_room(StatusCode::OK)
    } else {
        response::without_body(StatusCode::NO_CONTENT)
    };
    let headers = response.headers_mut();
    headers.put_next_offset(appended.tail);
    headers.put_closed(appended.closed);
    if let Some((epoch, seq)) = appended.producer {
        headers.insert(&PRODUCER_EPOCH, HeaderValue::from(epoch));
        headers.insert(&PRODUCER_SEQ, HeaderValue::from(seq));
    }
    Ok(response)
}
