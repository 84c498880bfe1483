//! GET: reads. Catch-up is here (`protocol.md` §12 and §15); live reads have files of their own.

use axum::http::header::IF_NONE_MATCH;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;

use crate::engine::api::{Page, ReadRequest, StreamInfo};
use crate::http::cache::{KnownPage, PageFacts, left_ms, none_match_hits, now_ms};
use crate::http::headers::NO_STORE;
use crate::http::page_body::put_page;
use crate::http::problem::Problem;
use crate::http::request::Call;
use crate::http::response::{self, StreamHeaders};
use crate::http::router::App;
use crate::http::{long_poll, sse};
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;
use crate::protocol::query::{self, LiveMode};

pub(super) async fn get(app: &App, call: &Call<'_>, name: StreamName) -> Result<Response, Problem> {
    let query = query::parse(call.query)?;
    let from = query.offset.unwrap_or(RequestedOffset::Start);
    match query.live {
        None => catch_up(app, call, name, from).await,
        Some(LiveMode::LongPoll) => long_poll::answer(app, call, name, from, query.cursor).await,
        Some(LiveMode::Sse) => sse::answer(app, call, name, from, query.cursor).await,
    }
}

async fn catch_up(
    app: &App,
    call: &Call<'_>,
    name: StreamName,
    from: RequestedOffset,
) -> Result<Response, Problem> {
    // The tail of this instant is nobody's page: neither kept nor recognised again.
    let is_conditional = from != RequestedOffset::Now && call.headers.contains_key(IF_NONE_MATCH);
    if is_conditional && let Some(unchanged) = unchanged(app, call, &name, from).await? {
        return Ok(unchanged);
    }

    let page = app.storage.read(ReadRequest { name, from, max_bytes: app.page_bytes }).await?;
    let up_to_date = page.up_to_date();
    let facts =
        PageFacts { start: page.start, end: page.end, up_to_date, closed: up_to_date && page.info.closed };
    let etag = facts.etag(page.info.incarnation);

    if is_conditional && none_match_hits(call.headers, &etag) {
        return Ok(not_modified(call, &page.info, from, facts, &etag));
    }
    let mut response = response::with_room(StatusCode::OK);
    let headers = response.headers_mut();
    headers.put_content_type(&page.info.content_type);
    if from == RequestedOffset::Now {
        headers.put_cache_control(NO_STORE.clone());
    } else {
        headers.put_etag(&etag);
        headers.put_cache_control(cache_control(call, &page.info, from, facts));
    }
    put_position(&mut response, facts);
    put_page(&mut response, page.data, page.info.content_type.is_json(), app.page_form);
    Ok(response)
}

/// Answers a conditional request for a page that ended at the tail, if it still does, without reading its data:
/// the positions before and behind it are looked at instead. `None` if the page has to be read to tell.
async fn unchanged(
    app: &App,
    call: &Call<'_>,
    name: &StreamName,
    from: RequestedOffset,
) -> Result<Option<Response>, Problem> {
    let Some(known) = KnownPage::of(call.headers) else { return Ok(None) };
    let may_start_there = match from {
        RequestedOffset::At(position) => known.start == position,
        // Where that is depends on what is kept.
        RequestedOffset::Start => true,
        RequestedOffset::Now => false,
    };
    if !may_start_there || known.end < known.start {
        return Ok(None);
    }
    let at = |position| ReadRequest { name: name.clone(), from: RequestedOffset::At(position), max_bytes: 1 };
    let is_same = |page: &Page| {
        let starts_there = match from {
            RequestedOffset::Start => known.start == page.info.earliest,
            _ => known.start >= page.info.earliest,
        };
        starts_there
            && page.info.incarnation == known.incarnation
            && page.info.tail == known.end
            && page.info.closed == known.closed
    };
    // Whatever speaks against it is said by the read that follows.
    let Ok(page) = app.storage.read(at(known.end)).await else { return Ok(None) };
    if !is_same(&page) {
        return Ok(None);
    }
    // A page of ours begins between two messages, but anybody can make up a tag. In RAM this looks at no content, on disk
    // at what lies around the position.
    let is_in_doubt = page.info.content_type.is_json() && 0 < known.start && known.start < known.end;
    if is_in_doubt && !app.storage.read(at(known.start)).await.is_ok_and(|page| is_same(&page)) {
        return Ok(None);
    }
    let facts = PageFacts { start: known.start, end: known.end, up_to_date: true, closed: known.closed };
    let etag = facts.etag(known.incarnation);
    Ok(Some(not_modified(call, &page.info, from, facts, &etag)))
}

fn not_modified(
    call: &Call<'_>,
    info: &StreamInfo,
    from: RequestedOffset,
    facts: PageFacts,
    etag: &str,
) -> Response {
    let mut response = response::without_body(StatusCode::NOT_MODIFIED);
    let headers = response.headers_mut();
    headers.put_etag(etag);
    headers.put_cache_control(cache_control(call, info, from, facts));
    put_position(&mut response, facts);
    response
}

/// `Cache-Control` of a page of this stream that was asked for in this way, for this client.
pub(super) fn cache_control(
    call: &Call<'_>,
    info: &StreamInfo,
    from: RequestedOffset,
    facts: PageFacts,
) -> HeaderValue {
    // The start moves: whoever got an old one from a cache would be told that what comes next is gone, start again, and
    // get the same.
    if from == RequestedOffset::Start && !info.retention.is_none() {
        return NO_STORE.clone();
    }
    let left_ms = left_ms(info, now_ms());
    facts.cache_control(call.has_credentials(), left_ms)
}

/// Where the page ends, and what the client knows then.
pub(super) fn put_position(response: &mut Response, facts: PageFacts) {
    let headers = response.headers_mut();
    headers.put_next_offset(facts.end);
    headers.put_up_to_date(facts.up_to_date);
    headers.put_closed(facts.closed);
}
