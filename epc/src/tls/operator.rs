//! The operator's own certificate, from files that he may replace while sessions run.

use super::{
    files::{self, FileError},
    server_name,
};
use rustls::{
    client::verify_server_name,
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate chain (PEM, leaf first) and its key (PEM, mode 0600), shown to every client whatever name it asks.
#[derive(Debug)]
pub struct OperatorCert {
    chain_path: PathBuf,
    key_path: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl OperatorCert {
    /// Reads both files. An expired certificate is taken at the start (the clients will say so, and so does
    /// [`OperatorCert::expires`]); a reload never exchanges a good one for an expired one.
    ///
    /// # Errors
    /// [`FileError`] when a file is unreadable, exposed, or the key is not that of the certificate.
    pub fn open(chain_path: PathBuf, key_path: PathBuf) -> Result<Self, FileError> {
        let current = RwLock::new(Arc::new(load(&chain_path, &key_path)?));
        Ok(Self { chain_path, key_path, current })
    }

    /// Reads both files again. New handshakes get the new certificate; sessions that run are not touched.
    ///
    /// # Errors
    /// [`FileError`] as for [`OperatorCert::open`], or when the new certificate has expired; the old one stays.
    pub fn reload(&self) -> Result<(), FileError> {
        let new = load(&self.chain_path, &self.key_path)?;
        if expires(&new).is_none_or(|end| end <= SystemTime::now()) {
            return Err(FileError::content(
                &self.chain_path,
                "the new certificate has expired; the old one stays",
            ));
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(())
    }

    /// Whether the certificate in use is good for `name`, as clients judge it (RFC 6125: exact names, wildcards,
    /// addresses).
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        let current = self.current();
        let parsed = current.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        match (parsed, server_name(name)) {
            (Some(parsed), Some(name)) => verify_server_name(&parsed, &name).is_ok(),
            (None, _) | (_, None) => false,
        }
    }

    /// When the certificate in use ends; `None` when it cannot be told.
    #[must_use]
    pub fn expires(&self) -> Option<SystemTime> {
        expires(&self.current())
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for OperatorCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

fn load(chain_path: &std::path::Path, key_path: &std::path::Path) -> Result<CertifiedKey, FileError> {
    files::certified_key(chain_path, key_path, super::provider().key_provider)
}

fn expires(key: &CertifiedKey) -> Option<SystemTime> {
    let (_, leaf) = X509Certificate::from_der(key.cert.first()?.as_ref()).ok()?;
    let end = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::files::{Audience, write};

    #[test]
    fn a_certificate_is_for_the_names_in_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let names = ["mail.lab.test", "*.office.test", "192.0.2.7"].map(str::to_owned);
        let made = rcgen::generate_simple_self_signed(names).expect("made");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        write(&cert, made.cert.pem().as_bytes(), Audience::All).expect("writable");
        write(&key, made.signing_key.serialize_pem().as_bytes(), Audience::Owner).expect("writable");
        let operator = OperatorCert::open(cert, key).expect("a pair");
        for (name, good) in [
            ("mail.lab.test", true),
            ("MAIL.lab.test", true),
            ("imap.office.test", true),
            ("192.0.2.7", true),
            ("office.test", false),
            ("a.b.office.test", false),
            ("evil.test", false),
            ("192.0.2.8", false),
            ("not a name", false),
        ] {
            assert_eq!(operator.is_for(name), good, "{name}");
        }
    }
}
