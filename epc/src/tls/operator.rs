//! The operator's own certificate, from files that he may replace while sessions run.

use super::files::{self, FileError};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
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
