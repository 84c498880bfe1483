//! The one table of keys. Everything that lists keys (files, variables, errors, `--print-config`, the documentation's table)
//! is made from it or tested against it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::check::{self, Draft};
use super::defaults::HANDSHAKE_TIMEOUT;
use super::keys::Key;
use super::kind::{Kind, Word};
use super::model::{AcidBackend, Config, CorsOrigins, LogFormat, StorageMode, TlsConfig};
use super::value::Raw;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// More than any machine holds. Sums of such numbers over all shards stay far from overflow.
const BYTES_MAX: u64 = 1 << 50;
/// The greatest number that a header may have.
const NUMBER_MAX: u64 = crate::protocol::producer::NUMBER_MAX;
const DAY_SECS: f64 = 86_400.0;
const HOUR_SECS: f64 = 3_600.0;
/// Shortest time-out: a shorter one could only be a mistake about the unit.
const TIMEOUT_SECS_MIN: f64 = 0.001;

/// Every key, in the order of `config/default.toml`.
pub static KEYS: &[Key] = &[
    // Before server.port, which changes only the port of it.
    Key::new(
        "server.bind_address",
        "Address to listen on; in one layer it wins over `server.port`",
        Kind::Text {
            rule: "must be host:port, the host an IP address or localhost",
            set: check::bind_address,
        },
        |c| Raw::text(c.server.bind_address.to_string()),
    ),
    Key::new(
        "server.port",
        "Port to listen on, at the host of `server.bind_address`; 0 lets the system choose",
        Kind::Port { set: |d, port| d.config.server.bind_address.set_port(port) },
        |c| Raw::Whole(c.server.bind_address.port().into()),
    ),
    Key::new(
        "server.long_poll_timeout_secs",
        "How long a long-poll waits for data before it answers 204",
        timeout(DAY_SECS, |d, time| d.config.server.long_poll_timeout = time),
        |c| Raw::seconds(c.server.long_poll_timeout),
    )
    .aliases_are(&["transport.connection.long_poll_timeout_secs"]),
    Key::new(
        "server.sse_reconnect_interval_secs",
        "Life of an SSE response, after which the client is to reconnect",
        or_zero("never", |d, time| d.config.server.sse_reconnect_interval = time),
        |c| Raw::seconds(c.server.sse_reconnect_interval.unwrap_or_default()),
    )
    .aliases_are(&["transport.connection.sse_reconnect_interval_secs"]),
    Key::new(
        "server.sse_heartbeat_secs",
        "Idle time after which an SSE response carries a comment, so that proxies keep it open",
        or_zero("none", |d, time| d.config.server.sse_heartbeat = time),
        |c| Raw::seconds(c.server.sse_heartbeat.unwrap_or_default()),
    ),
    Key::new(
        "server.shutdown_timeout_secs",
        "How long a shutdown waits for requests under way",
        timeout(HOUR_SECS, |d, time| d.config.server.shutdown_timeout = time),
        |c| Raw::seconds(c.server.shutdown_timeout),
    ),
    Key::new(
        "server.pin_cores",
        "Keep each core thread on one CPU of those that the process may run on, where the system can",
        Kind::Flag { set: |d, on| d.config.server.pin_cores = on },
        |c| Raw::Flag(c.server.pin_cores),
    ),
    Key::new(
        "http.public_origin",
        "Where clients reach this server, for absolute URLs; not set: taken from each request",
        Kind::Text { rule: "must be http://host[:port] or https://host[:port]", set: check::public_origin },
        |c| Raw::text(c.http.public_origin.as_deref().unwrap_or_default()),
    )
    .optional(),
    Key::new(
        "http.cors_origins",
        "Origins whose pages may read responses in a browser",
        Kind::Texts { rule: "must be * or a list of scheme://host[:port]", set: check::cors_origins },
        |c| match &c.http.cors_origins {
            CorsOrigins::Any => Raw::text("*"),
            CorsOrigins::List(origins) => Raw::List(origins.iter().map(Raw::text).collect()),
        },
    ),
    Key::new(
        "http.stream_base_path",
        "Path under which streams live; `/` works too",
        Kind::Text {
            rule: "must be a path that begins with /, without ?, #, *, {}, % or empty segments, and outside /healthz and /readyz",
            set: check::stream_base_path,
        },
        |c| Raw::text(if c.http.stream_base_path.is_empty() { "/" } else { &c.http.stream_base_path }),
    ),
    Key::new(
        "limits.max_memory_bytes",
        "Payload held in RAM: a hard cap in memory mode (507), the size of hot tails and memtables in disk modes",
        bytes(1, BYTES_MAX, |d, n| d.config.limits.max_memory_bytes = n),
        |c| whole(c.limits.max_memory_bytes),
    ),
    Key::new(
        "limits.max_stream_bytes",
        "Size of one stream (413); by default 10 MiB in memory mode, unlimited on disk",
        Kind::Bytes {
            min: 1,
            max: BYTES_MAX,
            set: |d, n| d.max_stream_bytes = Some(Some(n)),
            unlimited: Some(|d| d.max_stream_bytes = Some(None)),
        },
        |c| or_unlimited(c.limits.max_stream_bytes),
    )
    .optional(),
    Key::new(
        "limits.max_stream_name_bytes",
        "Length of a decoded stream name (400)",
        count(1, 16_384, |d, n| d.config.limits.max_stream_name_bytes = to_usize(n)),
        |c| size(c.limits.max_stream_name_bytes),
    ),
    Key::new(
        "limits.max_stream_name_segments",
        "Segments of a stream name, separated by `/` (400)",
        count(1, 1_024, |d, n| d.config.limits.max_stream_name_segments = to_usize(n)),
        |c| size(c.limits.max_stream_name_segments),
    ),
    Key::new(
        "limits.max_body_bytes",
        "Size of one request body (413)",
        bytes(1, GIB, |d, n| d.config.limits.max_body_bytes = n),
        |c| whole(c.limits.max_body_bytes),
    ),
    Key::new(
        "limits.max_buffered_body_bytes",
        "Bytes of request bodies being received at one time, over all connections (503)",
        bytes(1, BYTES_MAX, |d, n| d.config.limits.max_buffered_body_bytes = n),
        |c| whole(c.limits.max_buffered_body_bytes),
    ),
    Key::new(
        "limits.max_connections",
        "Open connections (503)",
        count(1, 10_000_000, |d, n| d.config.limits.max_connections = to_usize(n)),
        |c| size(c.limits.max_connections),
    ),
    Key::new(
        "limits.max_streams",
        "Streams that exist at one time (507)",
        count(1, 1_000_000_000_000, |d, n| d.config.limits.max_streams = n),
        |c| whole(c.limits.max_streams),
    ),
    Key::new(
        "limits.max_producers_per_stream",
        "Producers that one stream remembers (400)",
        count(1, 10_000_000, |d, n| d.config.limits.max_producers_per_stream = to_usize(n)),
        |c| size(c.limits.max_producers_per_stream),
    ),
    Key::new(
        "limits.read_page_bytes",
        "Most bytes of content in one catch-up or long-poll answer",
        bytes(1, 256 * MIB, |d, n| d.config.limits.read_page_bytes = to_usize(n)),
        |c| size(c.limits.read_page_bytes),
    ),
    Key::new(
        "limits.max_read_buffer_bytes",
        "Bytes read from disk that clients have not taken yet, over all connections (503)",
        bytes(1, BYTES_MAX, |d, n| d.config.limits.max_read_buffer_bytes = n),
        |c| whole(c.limits.max_read_buffer_bytes),
    ),
    Key::new(
        "limits.max_json_depth",
        "Nesting depth of a JSON body (400)",
        count(1, 10_000, |d, n| d.config.limits.max_json_depth = to_usize(n)),
        |c| size(c.limits.max_json_depth),
    ),
    Key::new(
        "limits.max_header_bytes",
        "Size of a request's line and headers (431)",
        bytes(8_192, MIB, |d, n| d.config.limits.max_header_bytes = to_usize(n)),
        |c| size(c.limits.max_header_bytes),
    ),
    Key::new(
        "limits.max_staged_bytes",
        "Bytes accepted but not yet durable, per shard (503)",
        bytes(1, 16 * GIB, |d, n| d.config.limits.max_staged_bytes = n),
        |c| whole(c.limits.max_staged_bytes),
    ),
    Key::new(
        "limits.max_disk_bytes",
        "Disk that the stored streams take (507); files keep the room of deleted ones for later ones",
        Kind::Bytes {
            min: 1,
            max: BYTES_MAX,
            set: |d, n| d.config.limits.max_disk_bytes = Some(n),
            unlimited: Some(|d| d.config.limits.max_disk_bytes = None),
        },
        |c| or_unlimited(c.limits.max_disk_bytes),
    )
    .optional(),
    Key::new(
        "limits.request_header_timeout_secs",
        "Time to receive a request's head",
        timeout(HOUR_SECS, |d, time| d.config.limits.request_header_timeout = time),
        |c| Raw::seconds(c.limits.request_header_timeout),
    ),
    Key::new(
        "limits.request_body_timeout_secs",
        "Longest pause between two pieces of a request body (408)",
        timeout(HOUR_SECS, |d, time| d.config.limits.request_body_timeout = time),
        |c| Raw::seconds(c.limits.request_body_timeout),
    ),
    Key::new(
        "limits.idle_timeout_secs",
        "Time a connection without a request is kept",
        timeout(DAY_SECS, |d, time| d.config.limits.idle_timeout = time),
        |c| Raw::seconds(c.limits.idle_timeout),
    ),
    Key::new(
        "limits.write_timeout_secs",
        "Time a client may leave bytes unread before it is cut off",
        timeout(HOUR_SECS, |d, time| d.config.limits.write_timeout = time),
        |c| Raw::seconds(c.limits.write_timeout),
    ),
    Key::new(
        "storage.mode",
        "What a success answer promises: `memory` is gone with the process, `file-fast` with the machine unless flushed; \
         `file-durable` is fsynced, `acid` a redb transaction on disk",
        Kind::Choice {
            words: &[
                Word::new("memory", |d| d.config.storage.mode = StorageMode::Memory),
                Word::new("file-fast", |d| d.config.storage.mode = StorageMode::FileFast).also(&["fast"]),
                Word::new("file-durable", |d| d.config.storage.mode = StorageMode::FileDurable)
                    .also(&["file", "durable"]),
                Word::new("acid", |d| d.config.storage.mode = StorageMode::Acid).also(&["redb"]),
            ],
        },
        |c| match c.storage.mode {
            StorageMode::Memory => Raw::text("memory"),
            StorageMode::FileFast => Raw::text("file-fast"),
            StorageMode::FileDurable => Raw::text("file-durable"),
            StorageMode::Acid => Raw::text("acid"),
        },
    ),
    Key::new(
        "storage.data_dir",
        "Directory of all files, in the modes that have any; created, and locked by one process",
        Kind::Text {
            rule: "must be the path of a directory",
            set: |d, text| check::path(text).map(|path| d.config.storage.data_dir = path).is_some(),
        },
        |c| path_text(&c.storage.data_dir),
    ),
    Key::new(
        "storage.acid_shard_count",
        "Shards, and core threads, in every mode; not set: what the data directory has, else one a core",
        count(1, 256, |d, n| d.config.storage.acid_shard_count = Some(to_usize(n))),
        |c| c.storage.acid_shard_count.map_or_else(|| Raw::text(""), size),
    )
    .optional(),
    Key::new(
        "storage.acid_backend",
        "Whether the redb databases are files or live in RAM (for tests and comparisons)",
        Kind::Choice {
            words: &[
                Word::new("file", |d| d.config.storage.acid_backend = AcidBackend::File),
                Word::new("in-memory", |d| d.config.storage.acid_backend = AcidBackend::InMemory)
                    .also(&["memory", "inmemory"]),
            ],
        },
        |c| match c.storage.acid_backend {
            AcidBackend::File => Raw::text("file"),
            AcidBackend::InMemory => Raw::text("in-memory"),
        },
    ),
    Key::new(
        "storage.acid_two_phase_commit",
        "Two fsyncs a commit instead of one with checksums",
        Kind::Flag { set: |d, flag| d.config.storage.acid_two_phase_commit = flag },
        |c| Raw::Flag(c.storage.acid_two_phase_commit),
    ),
    Key::new(
        "storage.cache_bytes",
        "redb page cache, over all shards",
        bytes(MIB, BYTES_MAX, |d, n| d.config.storage.cache_bytes = n),
        |c| whole(c.storage.cache_bytes),
    ),
    Key::new(
        "storage.journal_bytes",
        "Journal size per shard at which settling starts, at most a quarter of its share of limits.max_disk_bytes",
        bytes(64 << 10, 4 * GIB, |d, n| d.config.storage.journal_bytes = n),
        |c| whole(c.storage.journal_bytes),
    ),
    Key::new(
        "storage.flush_interval_ms",
        "Longest time in milliseconds for which a change is acknowledged and not fsynced, in file-fast",
        count(1, 60_000, |d, n| d.config.storage.flush_interval = Duration::from_millis(n)),
        |c| whole(u64::try_from(c.storage.flush_interval.as_millis()).unwrap_or(u64::MAX)),
    ),
    Key::new(
        "storage.min_free_disk_bytes",
        "Room that creations and appends leave on the disk of storage.data_dir (507), for what frees room; 0 = none",
        bytes(0, BYTES_MAX, |d, n| d.config.storage.min_free_disk_bytes = n),
        |c| whole(c.storage.min_free_disk_bytes),
    ),
    Key::new(
        "storage.rewrite_bytes_per_sec",
        "Pace per shard at which segments with little live content are rewritten to give disk back; 0 = never",
        bytes(0, BYTES_MAX, |d, n| d.config.storage.rewrite_bytes_per_sec = n),
        |c| whole(c.storage.rewrite_bytes_per_sec),
    ),
    Key::new(
        "retention.max_age_secs",
        "Age in seconds at which content leaves streams created without `Stream-Retention-Max-Age`; not set: never",
        count(1, NUMBER_MAX, |d, n| d.config.retention.max_age_secs = Some(n)),
        |c| c.retention.max_age_secs.map_or_else(|| Raw::text(""), whole),
    )
    .optional(),
    Key::new(
        "retention.max_bytes",
        "Content that is kept of streams created without `Stream-Retention-Max-Bytes`: what goes beyond leaves",
        Kind::Bytes {
            min: 1,
            max: BYTES_MAX,
            set: |d, n| d.config.retention.max_bytes = Some(n),
            unlimited: Some(|d| d.config.retention.max_bytes = None),
        },
        |c| or_unlimited(c.retention.max_bytes),
    )
    .optional(),
    Key::new(
        "tls.cert_path",
        "PEM file with the certificate chain, leaf first; with `tls.key_path` it turns HTTPS on",
        Kind::Text {
            rule: "must be the path of a PEM file",
            set: |d, text| check::path(text).map(|path| d.cert_path = Some(path)).is_some(),
        },
        |c| tls_path(c, |tls| &tls.cert_path),
    )
    .aliases_are(&["transport.tls.cert_path"])
    .optional(),
    Key::new(
        "tls.key_path",
        "PEM file with the private key",
        Kind::Text {
            rule: "must be the path of a PEM file",
            set: |d, text| check::path(text).map(|path| d.key_path = Some(path)).is_some(),
        },
        |c| tls_path(c, |tls| &tls.key_path),
    )
    .aliases_are(&["transport.tls.key_path"])
    .optional(),
    Key::new(
        "tls.handshake_timeout_secs",
        "Time for a TLS handshake",
        timeout(HOUR_SECS, |d, time| d.handshake_timeout = time),
        |c| Raw::seconds(c.tls.as_ref().map_or(HANDSHAKE_TIMEOUT, |tls| tls.handshake_timeout)),
    ),
    Key::new(
        "transport.mode",
        "States whether TLS is meant; not set: TLS if a certificate is configured",
        Kind::Choice {
            words: &[
                Word::new("http", |d| d.tls_wanted = Some(false)),
                Word::new("tls", |d| d.tls_wanted = Some(true)),
                Word::refused("mtls", "is not supported yet; this version has http and tls"),
            ],
        },
        |c| if c.tls.is_some() { Raw::text("tls") } else { Raw::text("") },
    )
    .optional(),
    Key::new(
        "transport.http.versions",
        "HTTP versions; `http2` is spoken over TLS (by ALPN), `h2c` is HTTP/2 without TLS",
        Kind::Words {
            words: &[
                Word::new("http1", |d| d.config.transport.http1 = true)
                    .also(&["http1.1", "http/1.1", "1.1", "h1"]),
                Word::new("http2", |d| d.config.transport.http2 = true).also(&["2", "h2"]),
                Word::new("h2c", |d| d.config.transport.h2c = true),
            ],
            clear: |d| {
                d.config.transport.http1 = false;
                d.config.transport.http2 = false;
                d.config.transport.h2c = false;
            },
        },
        |c| {
            let named =
                [(c.transport.http1, "http1"), (c.transport.http2, "http2"), (c.transport.h2c, "h2c")];
            Raw::List(
                named.into_iter().filter(|(spoken, _)| *spoken).map(|(_, name)| Raw::text(name)).collect(),
            )
        },
    ),
    Key::new(
        "log.rust_log",
        "`tracing` filter directives; the variable RUST_LOG is read too, DS_LOG__RUST_LOG wins",
        Kind::Text {
            rule: "must be filter directives, like info or warn,durable_streams_server=debug",
            set: check::rust_log,
        },
        |c| Raw::text(&c.log.rust_log),
    )
    .aliases_are(&["observability.rust_log"]),
    Key::new(
        "log.format",
        "Shape of a log line: `text` for people, `json` with ECS field names",
        Kind::Choice {
            words: &[
                Word::new("text", |d| d.config.log.format = LogFormat::Text),
                Word::new("json", |d| d.config.log.format = LogFormat::Json),
            ],
        },
        |c| match c.log.format {
            LogFormat::Text => Raw::text("text"),
            LogFormat::Json => Raw::text("json"),
        },
    ),
];

/// Keys of the 0.3 family without a counterpart here. They load where they say what holds anyway, so that a file written for
/// 0.3 does; any other value is refused, for ignoring it would be a silent change of meaning.
pub static LEGACY_KEYS: &[Key] = &[
    Key::new(
        "http.allow_wildcard_cors",
        "`*` needs no acknowledgement here",
        Kind::Flag { set: |_, _| {} },
        |_| Raw::Flag(true),
    ),
    Key::new(
        "transport.tls.alpn_protocols",
        "Follows from `transport.http.versions`, and must agree with it",
        Kind::Words {
            words: &[
                Word::new("http/1.1", |d| d.offer(true, false)).also(&["http1", "h1"]),
                Word::new("h2", |d| d.offer(false, true)).also(&["http2"]),
            ],
            clear: |d| d.alpn = None,
        },
        |_| Raw::text(""),
    )
    .optional(),
    Key::legacy("transport.tls.min_version", "TLS 1.2 and 1.3 are spoken", &["1.2"]),
    Key::legacy("transport.tls.max_version", "TLS 1.2 and 1.3 are spoken", &["1.3"]),
    Key::legacy("transport.tls.client_ca_path", "Client certificates are not asked for", &[]),
    Key::legacy("proxy.enabled", "Forwarding headers are not read", &["false"]),
    Key::legacy("proxy.forwarded_headers", "Forwarding headers are not read", &["none"]),
    Key::legacy("proxy.trusted_proxies", "Forwarding headers are not read", &["[]"]),
    Key::legacy("proxy.identity.mode", "Clients are not identified", &["none"]),
    Key::legacy("proxy.identity.header_name", "Clients are not identified", &[]),
    Key::new(
        "proxy.identity.require_tls",
        "Clients are not identified",
        Kind::Flag { set: |_, _| {} },
        |_| Raw::Flag(true),
    ),
];

const fn bytes(min: u64, max: u64, set: fn(&mut Draft, u64)) -> Kind {
    Kind::Bytes { min, max, set, unlimited: None }
}

const fn count(min: u64, max: u64, set: fn(&mut Draft, u64)) -> Kind {
    Kind::Whole { min, max, set }
}

const fn timeout(max: f64, set: fn(&mut Draft, Duration)) -> Kind {
    Kind::Seconds { min: TIMEOUT_SECS_MIN, max, set }
}

const fn or_zero(zero: &'static str, set: fn(&mut Draft, Option<Duration>)) -> Kind {
    Kind::SecondsOrZero { max: DAY_SECS, zero, set }
}

fn whole(number: u64) -> Raw {
    Raw::Whole(number.into())
}

fn size(number: usize) -> Raw {
    // Lossless: no supported machine has a `usize` of more than 64 bits.
    whole(number as u64)
}

/// A checked number as `usize`. On a 32-bit machine what does not fit is as good as no limit.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn path_text(path: &Path) -> Raw {
    Raw::text(path.to_string_lossy())
}

fn tls_path(config: &Config, path: fn(&TlsConfig) -> &PathBuf) -> Raw {
    config.tls.as_ref().map_or_else(|| Raw::text(""), |tls| path_text(path(tls)))
}

fn or_unlimited(limit: Option<u64>) -> Raw {
    limit.map_or_else(|| Raw::text("unlimited"), whole)
}
