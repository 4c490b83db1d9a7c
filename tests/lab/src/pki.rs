//! The lab's certificate authority and the servers' certificates: ECDSA P-256, made anew for each lab.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// A certificate authority with its files.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
}

/// A server's files, PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority whose files stand in `directory` (created).
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create(directory: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "Waypost lab CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        fs::write(directory.join(CA), certificate.pem())?;
        fs::write(directory.join("ca.key"), key.serialize_pem())?;
        Ok(Self { issuer: Issuer::new(params, key), directory: directory.to_owned() })
    }

    /// The file that clients must trust.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.directory.join(CA)
    }

    /// Makes a server certificate for these names and addresses.
    ///
    /// # Errors
    /// When a name is not a DNS name, or the files cannot be written.
    pub fn issue(&self, names: &[&str]) -> anyhow::Result<Identity> {
        let first = names.first().context("a server certificate needs a name")?;
        let key = KeyPair::generate()?;
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, *first);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            certificate: self.directory.join(format!("{first}.pem")),
            key: self.directory.join(format!("{first}.key")),
        };
        fs::write(&identity.certificate, certificate.pem())?;
        fs::write(&identity.key, key.serialize_pem())?;
        Ok(identity)
    }
}

const CA: &str = "ca.pem";
