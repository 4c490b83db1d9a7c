//! Looks at the files that a configuration names: are they there, can only their owner read them, do they hold
//! what they should? Contents stay here.

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

/// Whether files are looked at: not where a file is only read or shown, perhaps on another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileUse {
    Look,
    Ignore,
}

/// What a missing file means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    /// The node makes it at its first start.
    WillBeMade,
    /// The administrator forgot it.
    IsWrong,
}

/// A key that is used as it stands.
pub(crate) const KEY_OCTETS: u64 = 32;

/// A file with a key of [`KEY_OCTETS`].
pub(crate) fn look_at_key(path: &Path, files: FileUse, absence: Absence) -> Result<(), String> {
    if files == FileUse::Ignore {
        return Ok(());
    }
    let shown = path.display();
    match private_file(path) {
        Ok(octets) if octets == KEY_OCTETS => Ok(()),
        Ok(octets) => Err(format!(
            "{shown} has {octets} octets, not {KEY_OCTETS}; make a new one: head -c {KEY_OCTETS} /dev/urandom > {shown}"
        )),
        Err(Trouble::Absent) if absence == Absence::WillBeMade => Ok(()),
        Err(Trouble::Absent) => Err(format!(
            "{shown} does not exist; make it: (umask 077; head -c {KEY_OCTETS} /dev/urandom > {shown})"
        )),
        Err(Trouble::Says(why)) => Err(why),
    }
}

/// Which of the two files is wrong, and how.
#[derive(Debug)]
pub(crate) struct PairTrouble {
    pub(crate) key: bool,
    pub(crate) why: String,
}

/// A certificate chain and its private key.
pub(crate) fn look_at_pair(cert: &Path, key: &Path, files: FileUse) -> Result<(), PairTrouble> {
    if files == FileUse::Ignore {
        return Ok(());
    }
    let at_cert = |why| PairTrouble { key: false, why };
    let at_key = |why| PairTrouble { key: true, why };
    let chain = certificates(cert).map_err(at_cert)?;
    match private_file(key) {
        Ok(_) => {}
        Err(Trouble::Absent) => return Err(at_key(format!("{} does not exist", key.display()))),
        Err(Trouble::Says(why)) => return Err(at_key(why)),
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|_| at_key(format!("{} holds no private key in PEM", key.display())))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, private, &provider).map(drop).map_err(|error| {
        if matches!(error, rustls::Error::InconsistentKeys(_)) {
            return at_key(format!(
                "{} is not the key of the certificate in {}",
                key.display(),
                cert.display()
            ));
        }
        at_cert(format!("{} and {} cannot be used: {error}", cert.display(), key.display()))
    })
}

/// An RSA key for certificates that are minted; what is in it is judged when it is used.
pub(crate) fn look_at_rsa_key(path: &Path, files: FileUse) -> Result<(), String> {
    if files == FileUse::Ignore {
        return Ok(());
    }
    let shown = path.display();
    match private_file(path) {
        Ok(_) => epc::tls::mint::check_rsa_key(path).map_err(|error| error.to_string()),
        Err(Trouble::Absent) => {
            Err(format!("{shown} does not exist; make it: (umask 077; openssl genrsa -out {shown} 2048)"))
        }
        Err(Trouble::Says(why)) => Err(why),
    }
}

/// CA certificates.
pub(crate) fn look_at_roots(path: &Path, files: FileUse) -> Result<(), String> {
    if files == FileUse::Ignore {
        return Ok(());
    }
    certificates(path).map(drop)
}

/// The directory of an interception CA.
pub(crate) fn look_at_authority(dir: &Path, files: FileUse) -> Result<(), String> {
    if files == FileUse::Ignore {
        return Ok(());
    }
    let key = dir.join(AUTHORITY_KEY);
    match private_file(&key) {
        Ok(_) => certificates(&dir.join(AUTHORITY_CERT)).map(drop),
        Err(Trouble::Absent) => Err(format!(
            "there is no interception CA in {}; make one: waypost ca init --interception --permit HOST --dir {}",
            dir.display(),
            dir.display()
        )),
        Err(Trouble::Says(why)) => Err(why),
    }
}

/// Names of the files in an interception CA's directory.
const AUTHORITY_KEY: &str = "issuing.key";
const AUTHORITY_CERT: &str = "issuing.pem";

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let open = CertificateDer::pem_file_iter(path).map_err(|_| match fs::metadata(path) {
        Ok(_) => format!("{shown} cannot be read"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => format!("{shown} does not exist"),
        Err(error) => format!("{shown}: {error}"),
    })?;
    let all: Result<Vec<_>, _> = open.take(CERTIFICATES_MAX).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) | Err(_) => Err(format!("{shown} holds no certificate in PEM")),
    }
}

/// All public CAs together are about 150.
const CERTIFICATES_MAX: usize = 2000;

enum Trouble {
    Absent,
    Says(String),
}

/// The length of a file that only its owner can read.
fn private_file(path: &Path) -> Result<u64, Trouble> {
    let shown = path.display();
    let about = fs::metadata(path).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            return Trouble::Absent;
        }
        Trouble::Says(format!("{shown}: {error}"))
    })?;
    let mode = about.permissions().mode() & 0o7777;
    if !about.is_file() {
        return Err(Trouble::Says(format!("{shown} is not a file")));
    }
    if mode & 0o077 != 0 && !(is_credential(path) && mode & 0o007 == 0) {
        return Err(Trouble::Says(format!(
            "{shown} has mode {mode:04o}, so others can read a secret; correct it: chmod 600 {shown}"
        )));
    }
    fs::File::open(path).map_err(|error| Trouble::Says(format!("{shown}: {error}")))?;
    Ok(about.size())
}

/// Credentials of systemd are 0440 in a directory that only the service can enter.
fn is_credential(path: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|dir| path.starts_with(dir))
}
