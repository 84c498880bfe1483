//! The HTTP surface: the only layer that knows status codes and header names.
//!
//! Everything enters through one service, in `router`: it takes the path apart, hands the request to
//! the file of its method and puts the headers of every response on the way out. There are no routes and no
//! middleware inside: a request costs one look at its path and one at its method.
//!
//! | file | what is in it |
//! |---|---|
//! | `router` | the router a host mounts, dispatch by path and method, preflights, health checks |
//! | `put`, `post`, `get`, `long_poll`, `sse`, `head`, `delete` | one operation each: read the head, take the body, ask the store, answer |
//! | `request` | what a request says: its path under the mount, its headers, checked |
//! | `body` | receiving a body whole, within its limits |
//! | `response`, `page_body` | success answers and their bodies |
//! | `cache`, `cors` | who may keep a response, and which origins may see it |
//! | `problem` | every refusal and failure, and the status it becomes |
//! | `headers` | every header name of the protocol |
//! | `observe` | one event per request |

mod body;
mod cache;
mod cors;
mod delete;
#[cfg(test)]
mod fake_store;
mod get;
mod head;
mod headers;
mod long_poll;
mod observe;
mod page_body;
mod post;
mod problem;
mod put;
mod request;
mod response;
mod router;
mod sse;
#[cfg(test)]
mod tests;

pub(crate) use cors::EXPOSED;
pub(crate) use page_body::Page;
pub use router::{DEFAULT_STREAM_BASE_PATH, build_router, build_router_with_ready};
pub(crate) use router::{Exchange, Front, build_fronts_with_ready};
pub(crate) use sse::{Chunk, EventStream, Frames, TakesOver};

/// Scheme of the connection that a request came in on, `"http"` or `"https"`.
///
/// Whoever accepts connections puts it into the request's extensions; without it `http` is assumed. It ends up in the
/// `Location` of a created stream unless `http.public_origin` is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionScheme(pub &'static str);

/// In the extensions of a request: it has no `Host`, or several, where RFC 9112 section 3.2 asks for one, and is refused
/// whatever it asks for.
///
/// Our own server judges that, which sees requests as they were sent. The router alone may be driven without HTTP.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotOneHost;
