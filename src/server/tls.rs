//! TLS: certificate and key from PEM files, versions 1.2 and 1.3, ALPN.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::{TlsConfig, TransportConfig};

/// ALPN name of HTTP/2.
pub(super) const ALPN_HTTP2: &[u8] = b"h2";

/// ALPN name of HTTP/1.1.
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Why `tls.cert_path` and `tls.key_path` cannot be used. Each names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read.
    #[error("{key} = {path}: cannot be read: {source}", path = path.display())]
    Unreadable {
        /// Configuration key.
        key: &'static str,
        /// Its value.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{key} = {path}: {reason}", path = path.display())]
    Malformed {
        /// Configuration key.
        key: &'static str,
        /// Its value.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Both files are fine, but not together.
    #[error(
        "tls.key_path = {key}: the key does not belong to the certificate in tls.cert_path = {cert}",
        key = key_path.display(), cert = cert_path.display()
    )]
    Mismatch {
        /// `tls.cert_path`
        cert_path: PathBuf,
        /// `tls.key_path`
        key_path: PathBuf,
    },
}

/// Loads certificate and key.
///
/// # Errors
///
/// [`TlsError`], in one line that names the file.
pub(super) fn acceptor(tls: &TlsConfig, transport: &TransportConfig) -> Result<TlsAcceptor, TlsError> {
    let provider = ring::default_provider();
    let certified = certified_key(tls, &provider)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has cipher suites for both versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    if transport.http2 {
        config.alpn_protocols.push(ALPN_HTTP2.to_vec());
    }
    if transport.http1 {
        config.alpn_protocols.push(ALPN_HTTP1.to_vec());
    }
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certified_key(tls: &TlsConfig, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let cert_file = PemFile { key: "tls.cert_path", path: &tls.cert_path };
    let key_file = PemFile { key: "tls.key_path", path: &tls.key_path };
    let chain = cert_file.certificates()?;
    let key = key_file.private_key()?;
    let signing_key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| key_file.malformed(format!("the private key cannot be used: {error}")))?;
    let certified = CertifiedKey::new(chain, signing_key);
    match certified.keys_match() {
        // The second: a key that cannot tell its public half. Handshakes would show a mismatch.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(TlsError::Mismatch { cert_path: tls.cert_path.clone(), key_path: tls.key_path.clone() })
        }
        Err(error) => Err(cert_file.malformed(format!("the first certificate is malformed: {error}"))),
    }
}

/// A PEM file and the key that names it.
struct PemFile<'a> {
    key: &'static str,
    path: &'a Path,
}

impl PemFile<'_> {
    fn read(&self) -> Result<Vec<u8>, TlsError> {
        std::fs::read(self.path).map_err(|source| TlsError::Unreadable {
            key: self.key,
            path: self.path.to_owned(),
            source,
        })
    }

    fn malformed(&self, reason: impl Into<String>) -> TlsError {
        TlsError::Malformed { key: self.key, path: self.path.to_owned(), reason: reason.into() }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let pem = self.read()?;
        let chain = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, pem::Error>>()
            .map_err(|error| self.malformed(format!("is not valid PEM: {error}")))?;
        if chain.is_empty() {
            return Err(self.malformed("contains no certificate (`BEGIN CERTIFICATE`)"));
        }
        Ok(chain)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let pem = self.read()?;
        PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
            pem::Error::NoItemsFound => self.malformed(
                "contains no private key (`BEGIN PRIVATE KEY`; an encrypted key is not supported)",
            ),
            error => self.malformed(format!("is not valid PEM: {error}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TRANSPORT: TransportConfig = TransportConfig { http1: true, http2: true, h2c: false };

    struct Files {
        directory: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().expect("a temporary directory can be made") }
        }

        fn write(&self, name: &str, content: &str) -> PathBuf {
            let path = self.directory.path().join(name);
            std::fs::write(&path, content).expect("a temporary file can be written");
            path
        }

        fn pair(&self, name: &str) -> (PathBuf, PathBuf) {
            let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])
                .expect("a certificate can be made");
            (
                self.write(&format!("{name}.crt"), &pair.cert.pem()),
                self.write(&format!("{name}.key"), &pair.signing_key.serialize_pem()),
            )
        }
    }

    fn refusal(cert_path: &Path, key_path: &Path) -> String {
        let tls = TlsConfig {
            cert_path: cert_path.to_owned(),
            key_path: key_path.to_owned(),
            handshake_timeout: Duration::from_secs(1),
        };
        let message = match acceptor(&tls, &TRANSPORT) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(!message.contains('\n'), "{message}");
        message
    }

    #[test]
    fn matching_certificate_and_key_are_accepted() {
        let files = Files::new();
        let (cert, key) = files.pair("a");
        assert_eq!(refusal(&cert, &key), "accepted");
    }

    #[test]
    fn missing_file_is_named() {
        let files = Files::new();
        let (cert, key) = files.pair("a");
        let absent = files.directory.path().join("absent.pem");
        let message = refusal(&absent, &key);
        assert!(message.starts_with("tls.cert_path") && message.contains("absent.pem"), "{message}");
        let message = refusal(&cert, &absent);
        assert!(message.starts_with("tls.key_path") && message.contains("cannot be read"), "{message}");
    }

    #[test]
    fn empty_and_malformed_files_are_told_apart() {
        let files = Files::new();
        let (cert, key) = files.pair("a");
        let empty = files.write("empty.pem", "");
        assert!(refusal(&empty, &key).contains("contains no certificate"));
        assert!(refusal(&cert, &empty).contains("contains no private key"));
        let broken =
            files.write("broken.pem", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
        assert!(refusal(&broken, &key).contains("is not valid PEM"));
        let nonsense =
            files.write("nonsense.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        assert!(refusal(&nonsense, &key).contains("malformed"));
        let nonsense =
            files.write("nonsense.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
        assert!(refusal(&cert, &nonsense).contains("cannot be used"));
    }

    #[test]
    fn key_of_another_certificate_is_refused() {
        let files = Files::new();
        let (cert, _) = files.pair("a");
        let (_, other_key) = files.pair("b");
        assert!(refusal(&cert, &other_key).contains("does not belong to the certificate"));
    }

    #[test]
    fn swapped_files_are_refused() {
        let files = Files::new();
        let (cert, key) = files.pair("a");
        assert!(refusal(&key, &cert).contains("contains no certificate"));
    }
}
