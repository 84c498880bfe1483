//! The client's side of TLS, and certificates for the server's.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

use super::http::Wire;

/// PEM files of a certificate that is its own authority, for `127.0.0.1`, `::1` and `localhost`.
#[derive(Clone, Debug)]
pub(crate) struct CertificateFiles {
    /// For `DS_TLS__CERT_PATH`, and as the client's trust anchor.
    pub(crate) certificate: PathBuf,
    /// For `DS_TLS__KEY_PATH`.
    pub(crate) key: PathBuf,
}

/// Makes a key and a certificate and writes both into `directory`.
pub(crate) fn write_certificate(directory: &Path) -> CertificateFiles {
    let names = ["127.0.0.1", "::1", "localhost"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names).expect("names and addresses are valid");
    let files =
        CertificateFiles { certificate: directory.join("server.crt"), key: directory.join("server.key") };
    std::fs::write(&files.certificate, made.cert.pem()).expect("the test's directory is writable");
    std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("the test's directory is writable");
    files
}

struct TlsWire(StreamOwned<ClientConnection, TcpStream>);

impl Read for TlsWire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for TlsWire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Wire for TlsWire {
    fn socket(&self) -> &TcpStream {
        self.0.get_ref()
    }
}

/// Speaks TLS over `socket` to the server named in `authority` (`host:port`), which must show `certificate` or one
/// that it signed. Offers HTTP/1.1 by ALPN.
pub(crate) fn wrap(socket: TcpStream, authority: &str, certificate: &Path) -> io::Result<impl Wire + use<>> {
    let mut trusted = RootCertStore::empty();
    for found in CertificateDer::pem_file_iter(certificate).map_err(io::Error::other)? {
        trusted.add(found.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    Ok(TlsWire(StreamOwned::new(session, socket)))
}
