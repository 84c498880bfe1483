//! The wire protocol as pure functions and types: no state, no clock, no input or output.
//!
//! Each module is one notation of the protocol (`protocol.md`), read strictly and written canonically:
//!
//! - [`content_type`]: content types, how they compare, and the three kinds of stream they make (§6)
//! - [`cursor`]: the interval numbers that keep caches from answering live reads with old pages (§15.3)
//! - [`etag`]: entity tags of pages, and `If-None-Match` (§15.1)
//! - [`json`]: JSON bodies split into messages, and positions in their stored form (§6)
//! - [`lifetime`]: `Stream-TTL` and `Stream-Expires-At` (§3, §16)
//! - [`name`]: stream names out of URL paths (§2)
//! - [`offset`]: offsets as they are sent and asked for (§5)
//! - [`producer`]: the decimal numbers of headers (§3)
//! - [`query`]: the query string of a read (§3)
//! - [`retention`]: `Stream-Retention-Max-Age` and `Stream-Retention-Max-Bytes` (§17)
//! - [`sse`]: server-sent events, byte for byte (§14)

pub mod content_type;
pub mod cursor;
pub mod etag;
pub mod json;
pub mod lifetime;
pub mod name;
pub mod offset;
pub mod producer;
pub mod query;
pub mod retention;
pub mod sse;
