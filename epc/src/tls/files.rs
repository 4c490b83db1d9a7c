//! Certificates and keys on disk: read with an error that names the file and the remedy, written so that a power
//! cut leaves the old file or the new one, secrets with mode 0600.

use rustls::{
    crypto::KeyProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Why a file of certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is far larger than what it should hold.
    #[error("{path}: larger than {FILE_OCTETS_MAX} octets; expected PEM")]
    TooLarge {
        /// Which file.
        path: PathBuf,
    },
    /// Others may read a secret.
    #[error("{path}: mode {mode:o} lets others read a secret; run chmod 600 on it")]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Its content is not what it should be.
    #[error("{path}: {why}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        why: String,
    },
}

impl FileError {
    pub(crate) fn content(path: &Path, why: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// A PEM file of ours is some kilobytes; a system's bundle of roots is about 250 kB.
const FILE_OCTETS_MAX: u64 = 4 << 20;

/// The whole file, at most [`FILE_OCTETS_MAX`].
pub(crate) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = fs::File::open(path).map_err(|e| FileError::io(path, e))?;
    let mut octets = Zeroizing::new(Vec::new());
    let taken =
        file.take(FILE_OCTETS_MAX + 1).read_to_end(&mut octets).map_err(|e| FileError::io(path, e))?;
    if u64::try_from(taken).unwrap_or(u64::MAX) > FILE_OCTETS_MAX {
        return Err(FileError::TooLarge { path: path.to_owned() });
    }
    Ok(octets)
}

/// A secret: refused when group or others may touch it.
pub(crate) fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let mode = fs::metadata(path).map_err(|e| FileError::io(path, e))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode });
    }
    read(path)
}

/// All certificates of a PEM file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let pem = read(path)?;
    let all = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| FileError::content(path, format!("not PEM: {e}")))?;
    if all.is_empty() {
        return Err(FileError::content(path, "holds no certificate; expected -----BEGIN CERTIFICATE-----"));
    }
    Ok(all)
}

/// A certificate chain, leaf first, with its private key; the two are checked to belong together.
pub(crate) fn certified_key(
    chain_path: &Path,
    key_path: &Path,
    keys: &dyn KeyProvider,
) -> Result<CertifiedKey, FileError> {
    let chain = certificates(chain_path)?;
    let key_pem = read_secret(key_path)?;
    let key = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|e| FileError::content(key_path, format!("holds no private key that is readable: {e}")))?;
    let key =
        keys.load_private_key(key).map_err(|e| FileError::content(key_path, format!("unusable key: {e}")))?;
    let both = CertifiedKey::new(chain, key);
    both.keys_match().map_err(|e| {
        let why = format!("is not the key of the first certificate in {}: {e}", chain_path.display());
        FileError::content(key_path, why)
    })?;
    Ok(both)
}

/// Who may read a new file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Audience {
    /// Only the owner: 0600.
    Owner,
    /// Everybody: 0644, for what clients shall install.
    All,
}

/// Writes `octets` beside `path`, syncs, renames over it, syncs the directory.
pub(crate) fn write(path: &Path, octets: &[u8], audience: Audience) -> Result<(), FileError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mode = match audience {
        Audience::Owner => 0o600,
        Audience::All => 0o644,
    };
    // What a crash left here may have a wrong mode: `mode` counts only when the file is created.
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(FileError::io(&beside, e)),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .map_err(|e| FileError::io(&beside, e))?;
    file.write_all(octets).and_then(|()| file.sync_all()).map_err(|e| FileError::io(&beside, e))?;
    fs::rename(&beside, path).map_err(|e| FileError::io(path, e))?;
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => {
            fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|e| FileError::io(dir, e))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("key");
        write(&path, b"secret", Audience::Owner).expect("writable");
        assert_eq!(read_secret(&path).expect("ours alone").as_slice(), b"secret");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("ours");
        assert!(matches!(read_secret(&path), Err(FileError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn a_file_without_certificates_says_so() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("ca.pem");
        write(&path, b"hello", Audience::All).expect("writable");
        assert!(certificates(&path).expect_err("no PEM in it").to_string().contains("holds no certificate"));
    }
}
