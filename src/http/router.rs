//! The router that a host mounts, and the way of a request through it.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use axum::routing::future::RouteFuture;
use tokio_util::sync::CancellationToken;
use tower::{Service as _, service_fn};

use crate::config::Config;
use crate::engine::api::Storage;
use crate::http::body::{BodyLimits, Upload};
use crate::http::cors::{Cors, preflight};
use crate::http::headers::NO_STORE;
use crate::http::observe::Observation;
use crate::http::page_body::PageForm;
use crate::http::problem::{Code, Problem};
use crate::http::request::Call;
use crate::http::response::{self, StreamHeaders};
use crate::http::sse::SseTiming;
use crate::http::{delete, get, head, post, put};
use crate::protocol::name::{NameLimits, StreamName, Target, parse_path};

/// Path under which streams live unless `http.stream_base_path` says otherwise.
pub const DEFAULT_STREAM_BASE_PATH: &str = "/v1/stream";

const STREAM_METHODS: &str = "GET, HEAD, PUT, POST, DELETE, OPTIONS";
const SERVICE_METHODS: &str = "GET, HEAD, OPTIONS";

/// The protocol over HTTP, as a router that serves `storage`, ready from the start and never shut down.
///
/// It has the streams under `config.http.stream_base_path`, `/healthz` and `/readyz`, and answers everything else that
/// reaches it with a 404 problem document. It may be nested anywhere in a host's application and driven by any tokio
/// runtime with time and I/O enabled; `Location` and `Stream-Forked-From` then include the path it is nested under.
/// Of `config` it uses `http`, the request limits of `limits`, and the live-read timing of `server`; clones of the
/// router share one budget for bodies under way.
///
/// The host may put a [`ConnectionScheme`](crate::http::ConnectionScheme) into the extensions of requests that came in
/// over TLS. Use [`build_router_with_ready`] to end live reads when the host shuts down.
pub fn build_router<S: Storage + ?Sized>(storage: Arc<S>, config: &Config) -> Router {
    build_router_with_ready(storage, config, Arc::new(AtomicBool::new(true)), CancellationToken::new())
}

/// Like [`build_router`], with a start and an end.
///
/// `/readyz` answers 503 until `ready` is set, while a shard of `storage` does not take writes, and once `shutdown` is
/// cancelled. Cancelling `shutdown` also ends live reads in good order: long-polls with 204, SSE responses behind a
/// complete event, so that their clients come back without having lost anything. Requests go on being served: when to
/// stop taking connections is the host's decision.
pub fn build_router_with_ready<S: Storage + ?Sized>(
    storage: Arc<S>,
    config: &Config,
    ready: Arc<AtomicBool>,
    shutdown: CancellationToken,
) -> Router {
    let bodies = BodyLimits::new(&config.limits);
    mount(Arc::new(App::new(Arc::new(storage), config, bodies, ready, shutdown)))
}

/// The protocol for `count` threads. A request counts references to what its front holds; over fronts of their own,
/// threads do not contend for those. Only the budget for bodies under way is one for all. Whoever calls them looks for a
/// [`Page`](super::Page) with each response.
pub(crate) fn build_fronts_with_ready<S: Storage + ?Sized>(
    count: usize,
    storage: &Arc<S>,
    config: &Config,
    ready: &Arc<AtomicBool>,
    shutdown: &CancellationToken,
) -> Vec<Front> {
    let bodies = BodyLimits::new(&config.limits);
    (0..count)
        .map(|_| {
            let storage = Arc::new(Arc::clone(storage));
            let mut app = App::new(storage, config, bodies.clone(), Arc::clone(ready), shutdown.clone());
            app.page_form = PageForm::Attached;
            let app = Arc::new(app);
            Front { router: mount(Arc::clone(&app)), app: Some(app) }
        })
        .collect()
}

fn mount(app: Arc<App>) -> Router {
    let service = service_fn(move |request: Request| {
        let app = Arc::clone(&app);
        async move { Ok::<_, Infallible>(exchange(&app, request).await) }
    });
    Router::new().fallback_service(service)
}

/// The router with a short cut: our own server calls the streams directly. For them the router has nothing to find, and
/// finding that out took a tenth of an append's instructions.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    /// `None` = the router has everything.
    app: Option<Arc<App>>,
    router: Router,
}

impl Front {
    pub(crate) fn call(&mut self, request: Request) -> Exchange {
        let app = self.app.as_ref().filter(|app| matches!(app.route(request.uri().path()), Route::Stream(_)));
        match app {
            Some(app) => {
                let app = Arc::clone(app);
                Exchange::Direct(Box::pin(async move { exchange(&app, request).await }))
            }
            None => Exchange::Routed(Box::new(self.router.call(request))),
        }
    }
}

/// Without the short cut.
impl From<Router> for Front {
    fn from(router: Router) -> Self {
        Self { app: None, router }
    }
}

/// A request on its way through a [`Front`].
pub(crate) enum Exchange {
    Direct(Pin<Box<dyn Future<Output = Response> + Send>>),
    Routed(Box<RouteFuture<Infallible>>),
}

impl Future for Exchange {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        match &mut *self {
            Self::Direct(exchange) => exchange.as_mut().poll(cx),
            Self::Routed(route) => {
                let Ok(response) = ready!(Pin::new(&mut **route).poll(cx));
                Poll::Ready(response)
            }
        }
    }
}

/// What all requests share.
pub(super) struct App {
    /// Behind one more pointer than it has to be, so that the handlers are compiled once and not for each store: a
    /// request pays one indirect call for it.
    pub(super) storage: Arc<dyn Storage>,
    /// `http.stream_base_path`.
    pub(super) base: String,
    pub(super) public_origin: Option<String>,
    pub(super) names: NameLimits,
    pub(super) bodies: BodyLimits,
    pub(super) json_depth_max: usize,
    pub(super) page_bytes: usize,
    pub(super) page_form: PageForm,
    pub(super) long_poll_timeout: Duration,
    pub(super) sse: SseTiming,
    pub(super) shutdown: CancellationToken,
    cors: Cors,
    ready: Arc<AtomicBool>,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("base", &self.base).finish_non_exhaustive()
    }
}

/// What a path leads to.
enum Route<'a> {
    /// A name under the base path, still percent-encoded.
    Stream(&'a str),
    Health,
    Ready,
    Nothing,
}

impl App {
    fn new(
        storage: Arc<dyn Storage>,
        config: &Config,
        bodies: BodyLimits,
        ready: Arc<AtomicBool>,
        shutdown: CancellationToken,
    ) -> Self {
        let limits = &config.limits;
        Self {
            storage,
            base: config.http.stream_base_path.trim_end_matches('/').to_owned(),
            public_origin: config.http.public_origin.clone(),
            names: NameLimits {
                max_bytes: limits.max_stream_name_bytes,
                max_segments: limits.max_stream_name_segments,
            },
            bodies,
            json_depth_max: limits.max_json_depth,
            page_bytes: limits.read_page_bytes,
            page_form: PageForm::Body,
            long_poll_timeout: config.server.long_poll_timeout,
            sse: SseTiming::new(&config.server),
            shutdown,
            cors: Cors::new(&config.http.cors_origins),
            ready,
        }
    }

    fn route<'a>(&self, path: &'a str) -> Route<'a> {
        match path {
            "/healthz" => Route::Health,
            "/readyz" => Route::Ready,
            _ => match path.strip_prefix(&*self.base).and_then(|rest| rest.strip_prefix('/')) {
                None | Some("") => Route::Nothing,
                Some(name) => Route::Stream(name),
            },
        }
    }

    /// The stream that a path names, if it names one.
    pub(super) fn stream_of(&self, path: &str) -> Option<StreamName> {
        match self.route(path) {
            Route::Stream(name) => match parse_path(name, &self.names) {
                Ok(Target::Stream(name)) => Some(name),
                Ok(Target::Reserved) | Err(_) => None,
            },
            _ => None,
        }
    }
}

/// One request and its answer. Whatever the outcome, it leaves through here.
async fn exchange(app: &App, request: Request) -> Response {
    let observation = Observation::begin();
    let (parts, body) = request.into_parts();
    let call = Call::of(&parts);
    let mut upload = Upload::new(call.headers, body);

    let outcome = dispatch(app, &call, &mut upload).await;
    let (mut response, problem) = match outcome {
        Ok(response) => (response, None),
        Err(problem) => (problem.to_response(&call), Some(problem)),
    };
    response::finish(response.headers_mut(), &call, &app.cors);
    upload.settle(&call, response.headers_mut()).await;
    observation.end(app, &call, response.status(), problem.as_ref());
    response
}

/// Steps 1, 2 and the beginning of 4 of `protocol.md` §4; the rest is the method's own.
async fn dispatch(app: &App, call: &Call<'_>, upload: &mut Upload) -> Result<Response, Problem> {
    call.check_host()?;
    if call.method == Method::OPTIONS {
        return Ok(preflight());
    }
    let (name, is_known) = match app.route(call.path) {
        Route::Health => return service(call, healthz),
        Route::Ready => return service(call, || readyz(app)),
        Route::Nothing => return Err(Problem::new(Code::NotFound, "nothing is at this path")),
        Route::Stream(encoded) => (parse_path(encoded, &app.names), is_stream_method(call.method)),
    };
    if matches!(name, Ok(Target::Reserved)) {
        return Err(Problem::no_control_route());
    }
    if !is_known {
        return Err(Problem::method_not_allowed(STREAM_METHODS));
    }
    let Target::Stream(name) = name? else { return Err(Problem::no_control_route()) };
    call.check_syntax()?;
    match *call.method {
        // Reads have the largest future by far, which all other requests would carry around.
        Method::GET => Box::pin(get::get(app, call, name)).await,
        Method::POST => post::post(app, call, name, upload).await,
        Method::PUT => put::put(app, call, name, upload).await,
        Method::HEAD => head::head(app, name).await,
        _ => delete::delete(app, name).await,
    }
}

fn is_stream_method(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::POST | Method::PUT | Method::HEAD | Method::DELETE)
}

fn service(call: &Call<'_>, answer: impl FnOnce() -> Result<Response, Problem>) -> Result<Response, Problem> {
    if matches!(*call.method, Method::GET | Method::HEAD) {
        answer()
    } else {
        Err(Problem::method_not_allowed(SERVICE_METHODS))
    }
}

/// The process answers: that is all it says.
fn healthz() -> Result<Response, Problem> {
    Ok(plain_text("ok"))
}

/// The process takes writes, or what it waits for.
fn readyz(app: &App) -> Result<Response, Problem> {
    if app.shutdown.is_cancelled() {
        return Err(Problem::new(Code::Unavailable, "the server is shutting down"));
    }
    let mut waiting_for = app.storage.health().waiting_for;
    if !app.ready.load(Ordering::Acquire) {
        waiting_for.insert(0, "start-up".to_owned());
    }
    if waiting_for.is_empty() {
        return Ok(plain_text("ready"));
    }
    Err(Problem::new(Code::Unavailable, format!("waiting for: {}", waiting_for.join("; "))))
}

fn plain_text(text: &'static str) -> Response {
    let mut response = response::with_room(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.put_cache_control(NO_STORE.clone());
    *response.body_mut() = Body::from(text);
    response
}
