//! From single values to a [`Config`]: the rules of texts, and the rules that concern more than one key.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use super::defaults::{self, HANDSHAKE_TIMEOUT};
use super::error::ConfigError;
use super::load::Settings;
use super::model::{Config, CorsOrigins, TlsConfig};

/// A configuration under construction: keys whose meaning depends on others wait beside it.
pub(crate) struct Draft {
    pub(crate) config: Config,
    pub(crate) cert_path: Option<PathBuf>,
    pub(crate) key_path: Option<PathBuf>,
    pub(crate) handshake_timeout: Duration,
    /// `transport.mode`: `Some(true)` asks for TLS, `Some(false)` rules it out.
    pub(crate) tls_wanted: Option<bool>,
    /// `None` until somebody sets it: its default follows from the storage mode.
    pub(crate) max_stream_bytes: Option<Option<u64>>,
    /// ALPN protocols as a 0.3 file lists them: `(http/1.1, h2)`.
    pub(crate) alpn: Option<(bool, bool)>,
}

impl Draft {
    pub(crate) fn new() -> Self {
        Self {
            config: Config::default(),
            cert_path: None,
            key_path: None,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            tls_wanted: None,
            max_stream_bytes: None,
            alpn: None,
        }
    }

    /// Notes one protocol of the 0.3 family's ALPN list.
    pub(crate) fn offer(&mut self, http1: bool, http2: bool) {
        let (had_http1, had_http2) = self.alpn.unwrap_or_default();
        self.alpn = Some((had_http1 || http1, had_http2 || http2));
    }

    /// Checks what concerns several keys. `settings` knows where their values came from.
    pub(crate) fn finish(mut self, settings: &Settings) -> Result<Config, ConfigError> {
        self.finish_tls(settings)?;
        self.finish_versions(settings)?;
        self.config.limits.max_stream_bytes =
            self.max_stream_bytes.unwrap_or_else(|| defaults::max_stream_bytes(self.config.storage.mode));

        let limits = &self.config.limits;
        for (other, bytes) in [
            ("limits.max_buffered_body_bytes", limits.max_buffered_body_bytes),
            ("limits.max_staged_bytes", limits.max_staged_bytes),
        ] {
            if limits.max_body_bytes > bytes {
                let rule = format!("must not exceed {other} ({bytes}), or such a body could never be taken");
                return Err(settings.refused("limits.max_body_bytes", &self.config, rule));
            }
        }
        if limits.read_page_bytes as u64 > limits.max_read_buffer_bytes {
            let bytes = limits.max_read_buffer_bytes;
            let rule = format!("must not exceed limits.max_read_buffer_bytes ({bytes}), which pages share");
            return Err(settings.refused("limits.read_page_bytes", &self.config, rule));
        }
        Ok(self.config)
    }

    fn finish_tls(&mut self, settings: &Settings) -> Result<(), ConfigError> {
        let refused = |key, rule: &str| Err(settings.refused(key, &self.config, rule.to_owned()));
        let (cert_path, key_path) = match (self.cert_path.take(), self.key_path.take()) {
            (None, None) if self.tls_wanted == Some(true) => {
                return refused("transport.mode", "tls needs tls.cert_path and tls.key_path");
            }
            (None, None) => return Ok(()),
            (Some(_), None) => return refused("tls.cert_path", "must be set together with tls.key_path"),
            (None, Some(_)) => return refused("tls.key_path", "must be set together with tls.cert_path"),
            (Some(cert_path), Some(key_path)) => (cert_path, key_path),
        };
        if self.tls_wanted == Some(false) {
            return refused(
                "transport.mode",
                "contradicts tls.cert_path and tls.key_path, which are set: tls, or unset them",
            );
        }
        self.config.tls = Some(TlsConfig { cert_path, key_path, handshake_timeout: self.handshake_timeout });
        Ok(())
    }

    fn finish_versions(&self, settings: &Settings) -> Result<(), ConfigError> {
        let transport = &self.config.transport;
        let refused = |key, rule: &str| Err(settings.refused(key, &self.config, rule.to_owned()));
        if self.config.tls.is_some() && !transport.http1 && !transport.http2 {
            return refused("transport.http.versions", "must contain http1 or http2 when TLS is on");
        }
        if self.config.tls.is_none() && !transport.http1 && !transport.h2c {
            return refused(
                "transport.http.versions",
                "must contain http1 or h2c when TLS is off: http2 is spoken over TLS",
            );
        }
        match self.alpn {
            Some(alpn) if alpn != (transport.http1, transport.http2) => refused(
                "transport.tls.alpn_protocols",
                "must name the same protocols as transport.http.versions",
            ),
            _ => Ok(()),
        }
    }
}

/// `host:port`; the host is an IP address or `localhost`.
pub(crate) fn bind_address(draft: &mut Draft, text: &str) -> bool {
    let localhost = || {
        let port = text.strip_prefix("localhost:")?.parse().ok()?;
        Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
    };
    match text.parse().ok().or_else(localhost) {
        Some(address) => {
            draft.config.server.bind_address = address;
            true
        }
        None => false,
    }
}

/// The origin that absolute URLs begin with.
pub(crate) fn public_origin(draft: &mut Draft, text: &str) -> bool {
    match origin(text) {
        Some(origin) if origin.starts_with("http://") || origin.starts_with("https://") => {
            draft.config.http.public_origin = Some(origin);
            true
        }
        _ => false,
    }
}

/// `*` alone, or a list of origins.
pub(crate) fn cors_origins(draft: &mut Draft, items: &[String]) -> bool {
    if let [any] = items
        && any == "*"
    {
        draft.config.http.cors_origins = CorsOrigins::Any;
        return true;
    }
    let origins: Option<Vec<String>> =
        items.iter().map(|item| origin(item).map(without_default_port)).collect();
    match origins.filter(|origins| !origins.is_empty()) {
        Some(origins) => {
            draft.config.http.cors_origins = CorsOrigins::List(origins);
            true
        }
        None => false,
    }
}

/// `scheme://host[:port]` in lower case; a slash at the end is trimmed.
fn origin(text: &str) -> Option<String> {
    let text = text.strip_suffix('/').unwrap_or(text).to_ascii_lowercase();
    let (_, authority) = text.split_once("://")?;
    if authority.contains(['/', '?', '#', '@']) {
        return None;
    }
    let uri: Uri = text.parse().ok()?;
    // Wildcards and other characters that a URI may have, but no host name.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
    let host = uri.host().filter(|host| !host.is_empty() && host.bytes().all(plain))?;
    let port = authority.strip_prefix(host)?;
    let port_is_right = match port.strip_prefix(':') {
        Some(digits) => digits.parse::<u16>().is_ok_and(|port| port != 0),
        None => port.is_empty(),
    };
    port_is_right.then_some(text)
}

/// Browsers leave the scheme's own port out of the Origin header, and origins are compared as strings.
fn without_default_port(origin: String) -> String {
    let port = if origin.starts_with("https://") { ":443" } else { ":80" };
    match origin.strip_suffix(port) {
        Some(bare) if origin.starts_with("http") => bare.to_owned(),
        _ => origin,
    }
}

/// The path that stream names are appended to. Kept without a slash at the end, so `/` is kept as the empty string.
pub(crate) fn stream_base_path(draft: &mut Draft, text: &str) -> bool {
    if text == "/" {
        draft.config.http.stream_base_path = String::new();
        return true;
    }
    let path = text.strip_suffix('/').unwrap_or(text);
    let Some(segments) = path.strip_prefix('/') else { return false };
    let segment_is_right = |segment: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~@!$&'()+,;=".contains(&byte);
        !matches!(segment, "" | "." | "..") && segment.bytes().all(plain)
    };
    // The server's own routes at the root.
    let taken = matches!(segments.split('/').next(), Some("healthz" | "readyz"));
    if taken || !segments.split('/').all(segment_is_right) {
        return false;
    }
    path.clone_into(&mut draft.config.http.stream_base_path);
    true
}

/// A path for the operating system; `None` if it can't be one.
pub(crate) fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text))
}

/// Filter directives that the log understands.
pub(crate) fn rust_log(draft: &mut Draft, text: &str) -> bool {
    let held = !text.is_empty() && tracing_subscriber::EnvFilter::try_new(text).is_ok();
    if held {
        text.clone_into(&mut draft.config.log.rust_log);
    }
    held
}
