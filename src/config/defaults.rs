//! The built-in defaults.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::model::{
    AcidBackend, Config, CorsOrigins, HttpConfig, LimitsConfig, LogConfig, LogFormat, RetentionConfig,
    ServerConfig, StorageConfig, StorageMode, TransportConfig,
};

const MIB: u64 = 1 << 20;

/// Time for a TLS handshake, when none is configured.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

impl Default for Config {
    /// The built-in defaults: plain HTTP on 127.0.0.1:4437, streams in memory.
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            http: HttpConfig::default(),
            limits: LimitsConfig::default(),
            storage: StorageConfig::default(),
            retention: RetentionConfig::default(),
            tls: None,
            transport: TransportConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Config {
    /// The built-in defaults of one storage mode.
    ///
    /// It differs from setting `storage.mode` on [`Config::default`] in what follows from the mode:
    /// `limits.max_stream_bytes` is 10 MiB in memory and unlimited on disk.
    #[must_use]
    pub fn with_mode(mode: StorageMode) -> Self {
        let mut config = Self::default();
        config.storage.mode = mode;
        config.limits.max_stream_bytes = max_stream_bytes(mode);
        config
    }
}

/// `limits.max_stream_bytes`, when none is configured: RAM is scarce, disk has `limits.max_disk_bytes`.
pub(crate) fn max_stream_bytes(mode: StorageMode) -> Option<u64> {
    match mode {
        StorageMode::Memory => Some(10 * MIB),
        StorageMode::FileFast | StorageMode::FileDurable | StorageMode::Acid => None,
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            // A server without authentication is not put on the network unasked.
            bind_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 4437)),
            long_poll_timeout: Duration::from_secs(30),
            sse_reconnect_interval: Some(Duration::from_secs(60)),
            sse_heartbeat: Some(Duration::from_secs(15)),
            shutdown_timeout: Duration::from_secs(10),
            pin_cores: false,
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            public_origin: None,
            cors_origins: CorsOrigins::Any,
            stream_base_path: "/v1/stream".to_owned(),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_memory_bytes: 100 * MIB,
            max_stream_bytes: max_stream_bytes(StorageMode::Memory),
            max_stream_name_bytes: 1024,
            max_stream_name_segments: 8,
            max_body_bytes: 16 * MIB,
            max_buffered_body_bytes: 256 * MIB,
            max_connections: 65_536,
            max_streams: 1_000_000,
            max_producers_per_stream: 10_000,
            read_page_bytes: 4 << 20,
            max_read_buffer_bytes: 256 * MIB,
            max_json_depth: 512,
            max_header_bytes: 32 << 10,
            max_staged_bytes: 64 * MIB,
            max_disk_bytes: None,
            request_header_timeout: Duration::from_secs(10),
            request_body_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            mode: StorageMode::Memory,
            data_dir: PathBuf::from("./data"),
            acid_shard_count: None,
            acid_backend: AcidBackend::File,
            acid_two_phase_commit: false,
            cache_bytes: 256 * MIB,
            journal_bytes: 32 * MIB,
            rewrite_bytes_per_sec: 32 * MIB,
            flush_interval: Duration::from_millis(200),
            min_free_disk_bytes: 64 * MIB,
        }
    }
}

impl Default for TransportConfig {
    fn default() -> Self {
        Self { http1: true, http2: true, h2c: false }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { rust_log: "info".to_owned(), format: LogFormat::Text }
    }
}
