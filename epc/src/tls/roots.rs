//! Whom the proxy believes to be the mail server.
//!
//! The proxy stands where the client's own check stood, so it is never weaker: TLS 1.2 or newer, the chain up to a
//! trusted root and the host name, or the exact key. There is no setting that skips the check. Sessions are resumed
//! (one round trip less), early data is not used: it can be replayed, and what comes first is a login.

use super::{
    files::{self, FileError},
    hex, provider, spki_sha256,
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use std::{fmt, path::PathBuf, sync::Arc};

/// What makes a server's certificate good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// A chain to one of the system's roots, and the host name.
    System,
    /// A chain to a certificate of this PEM file, and the host name.
    CaFile(PathBuf),
    /// Exactly this key (SHA-256 of the SubjectPublicKeyInfo): neither chain, name nor dates count, but the server
    /// must prove that it holds the key.
    Pin([u8; 32]),
}

/// Why a [`Trust`] cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// The CA file.
    #[error("CA file {0}")]
    File(#[from] FileError),
    /// The system has no roots.
    #[error("the system has no usable root certificates ({0}); install ca-certificates or name a CA file")]
    NoSystemRoots(String),
    /// The TLS library refused the settings.
    #[error("TLS settings: {0}")]
    Tls(#[from] rustls::Error),
}

/// The client side of TLS towards one server. Make it once per server and keep it: it holds the sessions to resume.
///
/// # Errors
/// [`TrustError`] when the roots cannot be read.
pub fn client_config(trust: &Trust) -> Result<Arc<ClientConfig>, TrustError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match trust {
        Trust::System => builder.with_root_certificates(system_roots()?),
        Trust::CaFile(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in files::certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|e| FileError::content(path, format!("not usable as a root: {e}")))?;
            }
            builder.with_root_certificates(roots)
        }
        Trust::Pin(spki_sha256) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned { spki_sha256: *spki_sha256, provider })),
    };
    let mut config = builder.with_no_client_auth();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

fn system_roots() -> Result<RootCertStore, TrustError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A system bundle often holds one odd certificate; the others are still good.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(TrustError::NoSystemRoots(why));
    }
    Ok(roots)
}

/// Accepts one key, whoever certified it.
#[derive(Debug)]
struct Pinned {
    spki_sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match spki_sha256(end_entity) {
            Some(seen) if seen == self.spki_sha256 => Ok(ServerCertVerified::assertion()),
            Some(seen) => Err(CertificateError::Other(OtherError(Arc::new(NotThePin { seen }))).into()),
            None => Err(CertificateError::BadEncoding.into()),
        }
    }

    // The pin names a key; these prove that the server holds it.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The server showed another key; the operator needs it to decide whether it was renewed.
struct NotThePin {
    seen: [u8; 32],
}

impl fmt::Display for NotThePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server's key is sha256:{}, which is not the pinned one", hex(&self.seen))
    }
}

/// The TLS library prints what it wraps as `Debug`, and that is what the operator gets to read.
impl fmt::Debug for NotThePin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for NotThePin {}
