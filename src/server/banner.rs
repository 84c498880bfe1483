//! What a person sees when the server starts.

use super::Server;
use crate::config::{AcidBackend, StorageMode};

/// Where it listens, how it stores, and a command to try. The first URL is the real address, for programs to parse.
pub(super) fn text(server: &Server) -> String {
    let address = server.local_addr();
    let scheme = server.scheme();
    let config = server.config();
    let shards = server.shard_count();
    let mode = match config.storage.mode {
        StorageMode::Memory => "memory (nothing is kept after a stop)".to_owned(),
        StorageMode::Acid if config.storage.acid_backend == AcidBackend::InMemory => {
            "acid, in memory (nothing is kept after a stop)".to_owned()
        }
        StorageMode::FileFast => format!("file-fast, in {}", config.storage.data_dir.display()),
        StorageMode::FileDurable => format!("file-durable, in {}", config.storage.data_dir.display()),
        StorageMode::Acid => format!("acid, in {}", config.storage.data_dir.display()),
    };
    // A person types a name, and the default certificate of a test has one too.
    let ip = address.ip();
    let host = if ip.is_unspecified() || ip.is_loopback() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    };
    let base = &config.http.stream_base_path;
    let insecure = if config.tls.is_some() { "-k " } else { "" };
    format!(
        "listening on {scheme}://{address}\n\
         storage: {mode}\n\
         shards: {shards}\n\
         try: curl {insecure}-i -X PUT {scheme}://{host}{base}/hello -H 'content-type: text/plain' -d 'hello, stream'\n"
    )
}
