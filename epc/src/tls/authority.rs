//! The interception CA: what clients install so that they accept the certificates that [`super::mint`] makes.
//!
//! ```text
//! root.pem (self-signed, pathlen 1; clients install this one)      root.key    needed never again: take it offline
//!   └── issuing.pem (pathlen 0, name constraints: only these names) issuing.key what the proxy signs with
//!         └── leaf per name, 7 days, in memory
//! ```
//! Whoever steals `issuing.key` can be the named mail servers towards these clients, and nobody else: clients refuse
//! a name outside the constraints (RFC 5280 §4.2.1.10). Keys are P-256; files are PEM.

use super::{
    canonical,
    files::{self, Audience, FileError},
    hex, sha256,
};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, GeneralSubtree, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::{
    fmt,
    fs::DirBuilder,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

/// Why there is no interception CA.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// One stands there already: clients trust it, so it is never overwritten.
    #[error("{0} exists: clients may trust it already; choose another directory or move it away")]
    Exists(PathBuf),
    /// Nothing to permit.
    #[error("no name given: a CA without name constraints could be any server; name the mail servers")]
    NoNames,
    /// Something that no certificate can bear.
    #[error("{0:?} is neither a DNS name nor an IP address")]
    BadName(String),
    /// A name that this CA may not sign.
    #[error(
        "{0} is not among the names this CA may sign; make a new CA that names it, and install that at the clients"
    )]
    NotPermitted(String),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Making the certificates.
    #[error("certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// What [`Authority::create`] wrote.
#[derive(Clone, Debug)]
pub struct Created {
    /// Clients install this.
    pub root_cert: PathBuf,
    /// Not needed to run: take it offline.
    pub root_key: PathBuf,
    /// Sent with each leaf.
    pub issuing_cert: PathBuf,
    /// What the proxy signs with.
    pub issuing_key: PathBuf,
    /// SHA-256 of the root certificate, as clients and browsers show it.
    pub root_sha256: [u8; 32],
}

/// The issuing CA, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    issuing: CertificateDer<'static>,
    root_sha256: [u8; 32],
    permitted: Permitted,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("permitted", &self.permitted).finish_non_exhaustive()
    }
}

const ROOT_CERT: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
const ISSUING_CERT: &str = "issuing.pem";
const ISSUING_KEY: &str = "issuing.key";
const LIFETIME: Duration = Duration::days(3650);
/// Clocks of clients differ; a certificate from the future is refused.
const BACKDATED: Duration = Duration::days(1);

impl Authority {
    /// Makes a root and a constrained issuing CA in `dir` (created 0700 when missing), permitted for exactly these
    /// DNS names (and what lies below them) and IP addresses. Keys get mode 0600. `root.pem` is written last: without it
    /// nothing counts as made, and the next call starts over.
    ///
    /// # Errors
    /// [`AuthorityError`]; never overwrites a CA that exists.
    pub fn create(dir: &Path, permitted: &[String]) -> Result<Created, AuthorityError> {
        let permitted = Permitted::parse(permitted)?;
        let made = Created {
            root_cert: dir.join(ROOT_CERT),
            root_key: dir.join(ROOT_KEY),
            issuing_cert: dir.join(ISSUING_CERT),
            issuing_key: dir.join(ISSUING_KEY),
            root_sha256: [0; 32],
        };
        if made.root_cert.exists() {
            return Err(AuthorityError::Exists(made.root_cert));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| FileError::io(dir, e))?;

        let root_key = KeyPair::generate()?;
        let root_params = ca_params(&subject("root", &root_key, &permitted), 1);
        let root = root_params.self_signed(&root_key)?;
        let issuing_key = KeyPair::generate()?;
        let mut issuing_params = ca_params(&subject("issuing CA", &issuing_key, &permitted), 0);
        issuing_params.name_constraints = Some(permitted.constraints());
        issuing_params.use_authority_key_identifier_extension = true;
        let root_pem_key = zeroize::Zeroizing::new(root_key.serialize_pem());
        let issuing = issuing_params.signed_by(&issuing_key, &Issuer::new(root_params, root_key))?;
        let issuing_pem_key = zeroize::Zeroizing::new(issuing_key.serialize_pem());

        files::write(&made.issuing_key, issuing_pem_key.as_bytes(), Audience::Owner)?;
        files::write(&made.issuing_cert, issuing.pem().as_bytes(), Audience::All)?;
        files::write(&made.root_key, root_pem_key.as_bytes(), Audience::Owner)?;
        files::write(&made.root_cert, root.pem().as_bytes(), Audience::All)?;
        Ok(Created { root_sha256: sha256(root.der()), ..made })
    }

    /// Reads the issuing CA of `dir` and what it may sign. `root.key` is not needed.
    ///
    /// # Errors
    /// [`AuthorityError::File`] when a file is missing, exposed, expired or not of this CA.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let (cert_path, key_path) = (dir.join(ISSUING_CERT), dir.join(ISSUING_KEY));
        let root = first_certificate(&dir.join(ROOT_CERT))?;
        let issuing = first_certificate(&cert_path)?;
        let key_pem = files::read_secret(&key_path)?;
        let key = std::str::from_utf8(&key_pem)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .ok_or_else(|| FileError::content(&key_path, "is not a private key in PEM (PKCS #8)"))?;
        let permitted = check(&root, &issuing, &key).map_err(|why| FileError::content(&cert_path, why))?;
        let issuer = Issuer::from_ca_cert_der(&issuing, key)?;
        Ok(Self { issuer, issuing, root_sha256: sha256(&root), permitted })
    }

    /// SHA-256 of the root certificate: what `create` printed and clients show.
    #[must_use]
    pub fn root_sha256(&self) -> [u8; 32] {
        self.root_sha256
    }

    /// The canonical spelling of `name` when this CA may sign it.
    ///
    /// # Errors
    /// [`AuthorityError::BadName`] or [`AuthorityError::NotPermitted`].
    pub fn permits(&self, name: &str) -> Result<String, AuthorityError> {
        let Some(canonical) = canonical(name) else {
            return Err(AuthorityError::BadName(name.to_owned()));
        };
        if self.permitted.covers(&canonical) {
            Ok(canonical)
        } else {
            Err(AuthorityError::NotPermitted(canonical))
        }
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(super) fn issuing(&self) -> &CertificateDer<'static> {
        &self.issuing
    }
}

fn ca_params(name: &str, intermediates: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(intermediates));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + LIFETIME;
    params
}

/// Two CAs must not share a name: clients would take one for the other and report a bad signature.
fn subject(what: &str, key: &KeyPair, permitted: &Permitted) -> String {
    let key = sha256(&key.subject_public_key_info());
    let short: String = hex(&key).chars().take(8).collect();
    format!("Waypost {what} {short}: {}", permitted.label())
}

/// A subject of one common name, cut to the 64 characters of RFC 5280's upper bound.
pub(super) fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    subject
}

fn first_certificate(path: &Path) -> Result<CertificateDer<'static>, FileError> {
    let pem = files::read(path)?;
    CertificateDer::from_pem_slice(&pem)
        .map_err(|e| FileError::content(path, format!("no certificate in PEM: {e}")))
}

/// That root, issuing certificate and key are one family and still valid; what the certificate permits.
fn check(
    root: &CertificateDer<'_>,
    issuing: &CertificateDer<'_>,
    key: &KeyPair,
) -> Result<Permitted, String> {
    let parse = |der: &CertificateDer<'_>| {
        X509Certificate::from_der(der.as_ref()).map(|_| ()).map_err(|e| e.to_string())
    };
    parse(root)?;
    parse(issuing)?;
    let (_, root) = X509Certificate::from_der(root.as_ref()).map_err(|e| e.to_string())?;
    let (_, issuing) = X509Certificate::from_der(issuing.as_ref()).map_err(|e| e.to_string())?;
    if issuing.public_key().raw != key.subject_public_key_info().as_slice() {
        return Err(format!("is not the certificate of {ISSUING_KEY}"));
    }
    if issuing.issuer() != root.subject() || issuing.verify_signature(Some(root.public_key())).is_err() {
        return Err(format!("was not signed by {ROOT_CERT}"));
    }
    if !issuing.validity().is_valid() || !root.validity().is_valid() {
        return Err("the CA has expired or is not yet valid; make a new one".into());
    }
    Permitted::of(&issuing).ok_or_else(|| "has no name constraints; make the CA with this program".to_owned())
}

/// What an issuing CA may sign.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Permitted {
    dns: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Permitted {
    fn parse(names: &[String]) -> Result<Self, AuthorityError> {
        let mut out = Self::default();
        for name in names {
            let Some(canonical) = canonical(name) else {
                return Err(AuthorityError::BadName(name.clone()));
            };
            match canonical.parse() {
                Ok(address) => out.addresses.push(address),
                Err(_) => out.dns.push(canonical),
            }
        }
        if out.dns.is_empty() && out.addresses.is_empty() { Err(AuthorityError::NoNames) } else { Ok(out) }
    }

    fn label(&self) -> String {
        let first = self.dns.first().cloned().or_else(|| self.addresses.first().map(IpAddr::to_string));
        first.unwrap_or_default()
    }

    /// A kind of name that nobody permits is excluded whole: an absent kind would be unconstrained. An excluded subtree
    /// wins over a permitted one, so a family with a permitted address is left to the permitted list.
    fn constraints(&self) -> NameConstraints {
        let mut permitted: Vec<_> = self.dns.iter().cloned().map(GeneralSubtree::DnsName).collect();
        permitted.extend(self.addresses.iter().map(|address| {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*address, bits))
        }));
        let mut excluded = Vec::new();
        if self.dns.is_empty() {
            excluded.push(GeneralSubtree::DnsName(String::new()));
        }
        if !self.addresses.iter().any(IpAddr::is_ipv4) {
            excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])));
        }
        if !self.addresses.iter().any(IpAddr::is_ipv6) {
            excluded.push(GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])));
        }
        NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded }
    }

    /// Reads the constraints of a certificate back; `None` when it has none.
    fn of(certificate: &X509Certificate<'_>) -> Option<Self> {
        let constraints = certificate.extensions().iter().find_map(|e| {
            if let ParsedExtension::NameConstraints(constraints) = e.parsed_extension() {
                Some(constraints)
            } else {
                None
            }
        })?;
        let mut out = Self::default();
        for subtree in constraints.permitted_subtrees.as_ref()? {
            if let GeneralName::DNSName(name) = &subtree.base {
                out.dns.push((*name).to_owned());
            } else if let GeneralName::IPAddress(octets) = &subtree.base {
                out.addresses.extend(single_address(octets));
            }
        }
        Some(out)
    }

    fn covers(&self, canonical: &str) -> bool {
        match canonical.parse::<IpAddr>() {
            Ok(address) => self.addresses.contains(&address),
            Err(_) => self.dns.iter().any(|permitted| {
                canonical
                    .strip_suffix(permitted.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
        }
    }
}

/// The address of a constraint that names a single host; address and mask follow each other.
fn single_address(octets: &[u8]) -> Option<IpAddr> {
    let (address, mask) = octets.split_at_checked(octets.len() / 2)?;
    if mask.iter().any(|o| *o != 0xff) {
        return None;
    }
    <[u8; 4]>::try_from(address)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(address).map(IpAddr::from))
        .ok()
}

/// Whether `canonical` is an address, for what needs a different kind of alternative name.
pub(super) fn is_address(canonical: &str) -> bool {
    matches!(ServerName::try_from(canonical), Ok(ServerName::IpAddress(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::MetadataExt};

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn the_issuing_ca_is_constrained_to_what_was_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let made =
            Authority::create(&dir.path().join("ca"), &names(&["Mail.Lab.Test", "192.0.2.7"])).expect("made");
        for key in [&made.root_key, &made.issuing_key] {
            assert_eq!(fs::metadata(key).expect("written").mode() & 0o777, 0o600);
        }
        let issuing = first_certificate(&made.issuing_cert).expect("written");
        let (_, issuing) = X509Certificate::from_der(&issuing).expect("a certificate");
        let extension = issuing
            .extensions()
            .iter()
            .find(|e| matches!(e.parsed_extension(), ParsedExtension::NameConstraints(_)))
            .expect("constrained");
        assert!(extension.critical);
        let ParsedExtension::NameConstraints(constraints) = extension.parsed_extension() else {
            panic!("found above");
        };
        let permitted = constraints.permitted_subtrees.as_ref().expect("some");
        let kinds: Vec<_> = permitted.iter().map(|s| s.base.clone()).collect();
        assert_eq!(
            kinds,
            [
                GeneralName::DNSName("mail.lab.test"),
                GeneralName::IPAddress(&[192, 0, 2, 7, 255, 255, 255, 255])
            ]
        );
        let excluded = constraints.excluded_subtrees.as_ref().expect("IPv6 is");
        assert_eq!(
            excluded.iter().map(|s| s.base.clone()).collect::<Vec<_>>(),
            [GeneralName::IPAddress(&[0; 32])]
        );
        let depth = issuing.basic_constraints().expect("one").expect("a CA");
        assert!(depth.value.ca);
        assert_eq!(depth.value.path_len_constraint, Some(0));
    }

    #[test]
    fn a_loaded_ca_knows_what_it_may_sign() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let made = Authority::create(dir.path(), &names(&["mail.lab.test", "2001:db8::7"])).expect("made");
        // The root key may leave the machine.
        fs::remove_file(&made.root_key).expect("written");
        let ca = Authority::load(dir.path()).expect("loadable");
        assert_eq!(ca.root_sha256(), made.root_sha256);
        assert_eq!(ca.permits("MAIL.lab.test.").expect("named"), "mail.lab.test");
        assert_eq!(ca.permits("imap.mail.lab.test").expect("below"), "imap.mail.lab.test");
        assert_eq!(ca.permits("[2001:DB8::7]").expect("named"), "2001:db8::7");
        for other in ["evilmail.lab.test", "lab.test", "192.0.2.7", "2001:db8::8"] {
            assert!(matches!(ca.permits(other), Err(AuthorityError::NotPermitted(_))), "{other}");
        }
    }

    #[test]
    fn a_ca_of_addresses_alone_signs_no_name() {
        let only = Permitted::parse(&names(&["192.0.2.7"])).expect("an address");
        let excluded = only.constraints().excluded_subtrees;
        assert!(excluded.contains(&GeneralSubtree::DnsName(String::new())));
        assert!(matches!(Permitted::parse(&[]), Err(AuthorityError::NoNames)));
        assert!(matches!(Permitted::parse(&names(&["a b"])), Err(AuthorityError::BadName(_))));
    }

    #[test]
    fn a_ca_that_exists_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let made = Authority::create(dir.path(), &names(&["mail.lab.test"])).expect("made");
        let before = fs::read(&made.root_cert).expect("written");
        let again = Authority::create(dir.path(), &names(&["mail.lab.test"]));
        assert!(matches!(again, Err(AuthorityError::Exists(_))));
        assert_eq!(fs::read(&made.root_cert).expect("still there"), before);
    }

    #[test]
    fn files_of_two_cas_do_not_mix() {
        let (one, two) = (tempfile::tempdir().expect("temporary"), tempfile::tempdir().expect("temporary"));
        let one = Authority::create(one.path(), &names(&["mail.lab.test"])).map(|m| (m, one)).expect("made");
        let two = Authority::create(two.path(), &names(&["mail.lab.test"])).map(|m| (m, two)).expect("made");
        fs::copy(&one.0.issuing_key, &two.0.issuing_key).expect("copied");
        let mixed = Authority::load(two.1.path()).expect_err("another key").to_string();
        assert!(mixed.contains("is not the certificate of"), "{mixed}");
        fs::copy(&one.0.issuing_cert, &two.0.issuing_cert).expect("copied");
        let mixed = Authority::load(two.1.path()).expect_err("another root").to_string();
        assert!(mixed.contains("was not signed by"), "{mixed}");
    }
}
