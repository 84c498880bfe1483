//! The effective configuration: plain values, already checked. How they are found and checked is `load`'s concern.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that can be configured, after all layers were merged and checked.
///
/// A program that embeds the server starts from [`Config::default`] or [`Config::with_mode`], changes fields, and may have the
/// outcome checked by [`Config::validated`]; or it reads files and variables with [`Config::load`].
///
/// ```
/// use durable_streams_server::config::{Config, StorageMode};
///
/// let mut config = Config::with_mode(StorageMode::Acid);
/// config.storage.data_dir = "streams".into();
/// config.http.stream_base_path = "/streams/".to_owned();
/// assert_eq!(config.validated()?.http.stream_base_path, "/streams");
/// # Ok::<(), durable_streams_server::config::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Listening address and live-read timing.
    pub server: ServerConfig,
    /// The HTTP surface: base path, origins.
    pub http: HttpConfig,
    /// Bounds on everything that could grow.
    pub limits: LimitsConfig,
    /// Where and how streams are kept.
    pub storage: StorageConfig,
    /// What is kept of streams whose creation does not say.
    pub retention: RetentionConfig,
    /// Certificate and key; absent means plain HTTP.
    pub tls: Option<TlsConfig>,
    /// HTTP versions that are spoken.
    pub transport: TransportConfig,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// `server.*`
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Address to listen on. Port 0 lets the kernel choose.
    pub bind_address: SocketAddr,
    /// How long a long-poll waits for data before it answers 204.
    pub long_poll_timeout: Duration,
    /// Life of an SSE response; `None` = no limit.
    pub sse_reconnect_interval: Option<Duration>,
    /// Idle time after which an SSE response carries a comment; `None` = never.
    pub sse_heartbeat: Option<Duration>,
    /// How long a shutdown waits for requests under way.
    pub shutdown_timeout: Duration,
    /// Each core thread stays on one CPU of those that the process may run on. Without effect where that cannot be asked for.
    pub pin_cores: bool,
}

/// `http.*`
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HttpConfig {
    /// `scheme://host[:port]` for absolute URLs; `None` = taken from each request.
    pub public_origin: Option<String>,
    /// Who may read responses in a browser.
    pub cors_origins: CorsOrigins,
    /// Path under which streams live: starts with `/`, has no trailing slash; `/` itself is the empty string.
    pub stream_base_path: String,
}

/// `http.cors_origins`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigins {
    /// `*`
    Any,
    /// These origins, compared as strings.
    List(Vec<String>),
}

/// `limits.*`. Sizes in bytes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LimitsConfig {
    /// Payload held in RAM, over all shards: a hard cap in memory mode (507), the size of hot tails and memtables in
    /// disk modes.
    pub max_memory_bytes: u64,
    /// Size of one stream; `None` = unlimited (413 past it).
    pub max_stream_bytes: Option<u64>,
    /// Length of a decoded stream name (400 past it).
    pub max_stream_name_bytes: usize,
    /// Segments of a stream name (400 past it).
    pub max_stream_name_segments: usize,
    /// Size of one request body (413 past it).
    pub max_body_bytes: u64,
    /// Bytes of request bodies that are being received at one time, over all connections (503 past it).
    pub max_buffered_body_bytes: u64,
    /// Open connections (503 past it).
    pub max_connections: usize,
    /// Streams that exist at one time (507 past it).
    pub max_streams: u64,
    /// Producers of one stream (400 past it).
    pub max_producers_per_stream: usize,
    /// Most bytes of content in one catch-up or long-poll answer.
    pub read_page_bytes: usize,
    /// Bytes that were read from disk and that clients have not taken yet, over all connections (503 past it). At least
    /// `read_page_bytes`; a message that is larger is read alone.
    pub max_read_buffer_bytes: u64,
    /// Nesting depth of a JSON body (400 past it).
    pub max_json_depth: usize,
    /// Size of a request's head: line and headers (431 past it).
    pub max_header_bytes: usize,
    /// Bytes of frames accepted but not yet durable, per shard (503 past it).
    pub max_staged_bytes: u64,
    /// Bytes of disk that the stored streams take; `None` = unlimited (507 past it). Files keep the room of deleted streams
    /// for later ones.
    pub max_disk_bytes: Option<u64>,
    /// Time to receive a request's head.
    pub request_header_timeout: Duration,
    /// Longest pause between two pieces of a request body (408 past it).
    pub request_body_timeout: Duration,
    /// Time an idle connection is kept.
    pub idle_timeout: Duration,
    /// Time a client may leave bytes unread before it is cut off.
    pub write_timeout: Duration,
}

/// `storage.*`
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StorageConfig {
    /// What a success answer promises.
    pub mode: StorageMode,
    /// Directory of all files, in the modes that have any.
    pub data_dir: PathBuf,
    /// Number of shards (and core threads) in every mode; `None` = one per available core, or what the data directory says.
    pub acid_shard_count: Option<usize>,
    /// Whether redb works on a file or in RAM.
    pub acid_backend: AcidBackend,
    /// Two fsyncs per commit instead of one; see `docs/`.
    pub acid_two_phase_commit: bool,
    /// redb page cache in bytes, over all shards.
    pub cache_bytes: u64,
    /// Journal size in bytes per shard at which settling starts; at most a quarter of the shard's share of
    /// [`LimitsConfig::max_disk_bytes`] takes effect.
    pub journal_bytes: u64,
    /// Bytes per second and shard that rewriting of segments may read and write; 0 = segments are never rewritten, so that
    /// disk is given back only by segments that are dead as a whole.
    pub rewrite_bytes_per_sec: u64,
    /// With [`StorageMode::FileFast`], the longest time for which an acknowledged change is not on stable storage.
    pub flush_interval: Duration,
    /// Bytes that stay free on the file system of [`Self::data_dir`] (507 below it, for what needs room); 0 = all of it is
    /// used.
    pub min_free_disk_bytes: u64,
}

/// `storage.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageMode {
    /// RAM only.
    Memory,
    /// Files of our own; what was acknowledged survives the end of the process, and of the machine once it was flushed.
    FileFast,
    /// Files of our own, fsynced before anything is acknowledged.
    FileDurable,
    /// redb transactions.
    Acid,
}

/// `storage.acid_backend`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcidBackend {
    /// A file per shard.
    File,
    /// redb without disk, for tests and comparisons.
    InMemory,
}

/// `retention.*`: for streams that are created without the header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionConfig {
    /// Age in seconds that content may reach; `None` = any.
    pub max_age_secs: Option<u64>,
    /// Stored bytes from the tail back that are kept; `None` = all.
    pub max_bytes: Option<u64>,
}

/// `tls.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsConfig {
    /// PEM file with the certificate chain, leaf first.
    pub cert_path: PathBuf,
    /// PEM file with the private key.
    pub key_path: PathBuf,
    /// Time for a handshake.
    pub handshake_timeout: Duration,
}

/// `transport.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransportConfig {
    /// HTTP/1.1 is spoken.
    pub http1: bool,
    /// HTTP/2 is spoken, by ALPN on TLS.
    pub http2: bool,
    /// HTTP/2 with prior knowledge on plain connections.
    pub h2c: bool,
}

/// `log.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogConfig {
    /// `tracing` filter directives.
    pub rust_log: String,
    /// Shape of a line.
    pub format: LogFormat,
}

/// `log.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, ECS field names.
    Json,
}
