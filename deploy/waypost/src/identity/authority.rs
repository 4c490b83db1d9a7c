//! The authority of an organisation's nodes: one key pair, kept on one machine, that signs who a node is.

use super::{make_private, put};
use crate::{
    durable::Audience,
    exit::{Exit, Failure},
};
use discovery_core::id::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{fs, os::unix::fs::MetadataExt, path::Path};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// The certificate that all nodes know.
const CERT: &str = "ca.pem";
/// What signs them.
pub(crate) const KEY: &str = "ca.key";

/// An authority, ready to sign.
pub(crate) struct NodeAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// What a node proves itself with.
#[derive(Clone)]
pub(crate) struct Identity {
    /// PEM.
    pub(crate) certificate: String,
    /// PEM, PKCS #8.
    pub(crate) key: Zeroizing<String>,
}

const LIFETIME: Duration = Duration::days(3650);
/// A node whose certificate ends goes direct: long enough for an office that nobody visits.
const NODE_LIFETIME: Duration = Duration::days(825);
/// Clocks of nodes differ; a certificate from the future is refused.
const BACKDATED: Duration = Duration::days(1);

impl NodeAuthority {
    /// Makes one in `dir`; gives the SHA-256 of its certificate. The certificate is written last: without it nothing
    /// counts as made.
    pub(crate) fn create(dir: &Path) -> Result<[u8; 32], Failure> {
        let (cert, key) = (dir.join(CERT), dir.join(KEY));
        if cert.exists() {
            let what = "exists: nodes may know it already; choose another directory or move it away";
            return Err(Failure::say(Exit::Usage, format_args!("{} {what}", cert.display())));
        }
        make_private(dir)?;
        let pair = KeyPair::generate().map_err(unmakeable)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("Waypost nodes {}", short(&pair)));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = OffsetDateTime::now_utc();
        params.not_before = now - BACKDATED;
        params.not_after = now + LIFETIME;
        let signed = params.self_signed(&pair).map_err(unmakeable)?;
        put(&key, Zeroizing::new(pair.serialize_pem()).as_bytes(), Audience::Owner)?;
        put(&cert, signed.pem().as_bytes(), Audience::All)?;
        fingerprint(&signed.pem())
    }

    /// Reads the one in `dir`.
    pub(crate) fn load(dir: &Path) -> Result<Self, Failure> {
        let (cert, key) = (dir.join(CERT), dir.join(KEY));
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|error| {
                let none = error.kind() == std::io::ErrorKind::NotFound;
                let advice = if none { "; `waypost ca init --node` makes one" } else { "" };
                Failure::io(format!("{}{advice}", path.display()), error)
            })
        };
        let certificate = read(&cert)?;
        let mode = fs::metadata(&key).map_err(|e| Failure::io(key.display().to_string(), e))?.mode() & 0o777;
        if mode & 0o077 != 0 {
            let what =
                format_args!("{}: mode {mode:o} lets others read a secret; chmod 600 it", key.display());
            return Err(Failure::say(Exit::Usage, what));
        }
        let unusable =
            |path: &Path, why: &str| Failure::say(Exit::Usage, format_args!("{}: {why}", path.display()));
        let pair = KeyPair::from_pem(&Zeroizing::new(read(&key)?))
            .map_err(|_| unusable(&key, "is not a private key in PEM (PKCS #8)"))?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|_| unusable(&cert, "holds no certificate in PEM"))?;
        let issuer = Issuer::from_ca_cert_der(&der, pair)
            .map_err(|_| unusable(&cert, "is not the certificate of an authority"))?;
        Ok(Self { issuer, certificate })
    }

    /// Its certificate in PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Makes a key pair for `id` and signs it.
    pub(crate) fn issue(&self, id: &NodeId) -> Result<Identity, Failure> {
        let pair = KeyPair::generate().map_err(unmakeable)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(id.as_str());
        let uri = format!("waypost://node/{id}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(unmakeable)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let now = OffsetDateTime::now_utc();
        params.not_before = now - BACKDATED;
        params.not_after = now + NODE_LIFETIME;
        let signed = params.signed_by(&pair, &self.issuer).map_err(unmakeable)?;
        Ok(Identity { certificate: signed.pem(), key: Zeroizing::new(pair.serialize_pem()) })
    }
}

/// SHA-256 of a certificate in PEM.
pub(crate) fn fingerprint(pem: &str) -> Result<[u8; 32], Failure> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| Failure::say(Exit::Usage, "there is no certificate where one should be"))?;
    Ok(sha256(&der))
}

fn sha256(octets: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(octets).into()
}

/// Two authorities must not share a name: one would be taken for the other, and its signatures called bad.
fn short(pair: &KeyPair) -> String {
    let digest = sha256(&pair.subject_public_key_info());
    digest.iter().take(4).map(|octet| format!("{octet:02x}")).collect()
}

fn named(name: &str) -> rcgen::DistinguishedName {
    let mut names = rcgen::DistinguishedName::new();
    names.push(DnType::CommonName, name.chars().take(NAME_CHARS_MAX).collect::<String>());
    names
}

/// RFC 5280, upper bound of a common name.
const NAME_CHARS_MAX: usize = 64;

fn unmakeable(error: rcgen::Error) -> Failure {
    Failure::say(Exit::Unavailable, format_args!("certificate: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_never_overwritten_and_its_key_is_its_own() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        NodeAuthority::create(dir.path()).unwrap();
        let again = NodeAuthority::create(dir.path()).err().unwrap();
        assert!(again.to_string().contains("exists"), "{again}");
        NodeAuthority::load(dir.path()).unwrap();
        fs::set_permissions(dir.path().join(KEY), fs::Permissions::from_mode(0o640)).unwrap();
        let exposed = NodeAuthority::load(dir.path()).err().unwrap();
        assert!(exposed.to_string().contains("chmod 600"), "{exposed}");
    }

    #[test]
    fn where_there_is_none_it_says_how_one_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let none = NodeAuthority::load(dir.path()).err().unwrap();
        assert!(none.to_string().contains("waypost ca init --node"), "{none}");
    }
}
