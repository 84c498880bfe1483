//! GET with `live=long-poll`: one answer, as soon as there is something to say. `protocol.md` §13.

use axum::http::StatusCode;
use axum::response::Response;

use crate::engine::api::{LiveBatch, LiveEvent, LookupRefusal, StreamInfo};
use crate::http::cache::{PageFacts, jitter, now_ms};
use crate::http::get::{cache_control, put_position};
use crate::http::headers::NO_STORE;
use crate::http::page_body::{PageForm, put_page};
use crate::http::problem::Problem;
use crate::http::request::Call;
use crate::http::response::{self, StreamHeaders};
use crate::http::router::App;
use crate::protocol::cursor;
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;

pub(super) async fn answer(
    app: &App,
    call: &Call<'_>,
    name: StreamName,
    from: RequestedOffset,
    client_cursor: Option<u64>,
) -> Result<Response, Problem> {
    let mut subscription = app.storage.subscribe(name, from).await?;

    let give_up = async {
        tokio::select! {
            () = tokio::time::sleep(app.long_poll_timeout) => {}
            () = app.shutdown.cancelled() => {}
        }
    };
    let mut response = match subscription.next_page(app.page_bytes, give_up).await? {
        Some(LiveEvent::Data(batch)) => page(call, subscription.info(), from, &batch),
        Some(LiveEvent::Closed { tail }) => nothing_new(tail, true),
        Some(LiveEvent::Removed) => return Err(LookupRefusal::NotFound.into()),
        Some(LiveEvent::SoftDeleted) => return Err(LookupRefusal::Gone.into()),
        None => nothing_new(subscription.position(), false),
    };
    response.headers_mut().put_cursor(cursor::answer(client_cursor, now_ms(), jitter()));
    Ok(response)
}

fn page(call: &Call<'_>, info: &StreamInfo, from: RequestedOffset, batch: &LiveBatch) -> Response {
    let facts =
        PageFacts { start: batch.start, end: batch.end, up_to_date: batch.up_to_date, closed: batch.closed };
    let mut response = response::with_room(StatusCode::OK);
    let headers = response.headers_mut();
    headers.put_content_type(&info.content_type);
    if from == RequestedOffset::Now {
        headers.put_cache_control(NO_STORE.clone());
    } else {
        headers.put_etag(&facts.etag(info.incarnation));
        headers.put_cache_control(cache_control(call, info, from, facts));
    }
    put_position(&mut response, facts);
    put_page(&mut response, batch.data.clone(), info.content_type.is_json(), PageForm::Body);
    response
}

/// 204: the client has everything there is, up to the offset it came with.
fn nothing_new(position: u64, closed: bool) -> Response {
    let mut response = response::without_body(StatusCode::NO_CONTENT);
    let headers = response.headers_mut();
    headers.put_next_offset(position);
    headers.put_up_to_date(true);
    headers.put_closed(closed);
    headers.put_cache_control(NO_STORE.clone());
    response
}
