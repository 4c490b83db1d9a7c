//! Leaf certificates under the interception CA, made when a client asks for a name (0.3 to 1.1 ms each) and kept in
//! memory.
//!
//! Every leaf has what strict clients ask for: SAN, key usage, extended key usage, authority key identifier (openssl
//! `-x509_strict`, Python ≥ 3.13), P-256 (NSS refuses Ed25519), seven days. The issuing certificate is sent with it.
//!
//! **RSA.** A TLS 1.2 client that offers only ECDHE-RSA suites or no ECDSA signature scheme needs a leaf with an RSA
//! key. The crypto library here (ring) signs with RSA keys but cannot *make* one, so the operator provides it once:
//! `openssl genrsa -out FILE 2048` (PKCS #8 PEM, OpenSSL 3's default; mode 0600). It is used for such clients only.
//! Without it they get a handshake failure, as a server with an ECDSA certificate would give them. A client limited to
//! RSA *key exchange* cannot be served by this TLS library at all; only a tunnel helps it.

use super::{
    authority::{Authority, AuthorityError, common_name, is_address},
    canonical, files, provider,
};
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, SanType,
};
use rustls::{
    CipherSuite, SignatureScheme,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use time::{Duration, OffsetDateTime};

/// Which names a [`Minter`] makes certificates for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MintNames {
    /// What a ClientHello may ask for: the configured servers' names and their aliases.
    pub allowed: Vec<String>,
    /// What the leaf bears when a client names nobody (it connects by address, or is old): names and addresses.
    /// Must not be empty; the first one is the subject.
    pub default: Vec<String>,
}

/// Makes and keeps leaves; a rustls certificate resolver.
pub struct Minter {
    authority: Authority,
    allowed: HashSet<String>,
    default: Vec<String>,
    rsa: Option<KeyPair>,
    /// Bounded by itself: a key is an allowed name or the default, times two kinds.
    leaves: Mutex<HashMap<(Option<String>, KeyKind), Leaf>>,
}

impl fmt::Debug for Minter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minter")
            .field("authority", &self.authority)
            .field("allowed", &self.allowed)
            .field("default", &self.default)
            .field("rsa", &self.rsa.is_some())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum KeyKind {
    P256,
    Rsa,
}

#[derive(Clone, Debug)]
struct Leaf {
    key: Arc<CertifiedKey>,
    made: OffsetDateTime,
}

/// Short enough that a stolen memory image ages fast, long enough for a client that was offline over a holiday.
const LIFETIME: Duration = Duration::days(7);
/// Two thirds: a client never meets a leaf that is about to end.
const RENEW_AFTER: Duration = Duration::hours(7 * 24 * 2 / 3);
/// Clocks of clients differ.
const BACKDATED: Duration = Duration::hours(1);

impl Minter {
    /// Checks every name against the CA's constraints now, and reads the RSA key when one is given.
    ///
    /// # Errors
    /// [`AuthorityError::NotPermitted`] for a name that clients would refuse from this CA;
    /// [`AuthorityError::NoNames`] without a default; [`AuthorityError::File`] for the RSA key.
    pub fn new(
        authority: Authority,
        names: &MintNames,
        rsa_key: Option<&Path>,
    ) -> Result<Self, AuthorityError> {
        let allowed = names.allowed.iter().map(|n| authority.permits(n)).collect::<Result<_, _>>()?;
        let default = names.default.iter().map(|n| authority.permits(n)).collect::<Result<Vec<_>, _>>()?;
        if default.is_empty() {
            return Err(AuthorityError::NoNames);
        }
        let rsa = rsa_key.map(read_rsa).transpose()?;
        Ok(Self { authority, allowed, default, rsa, leaves: Mutex::new(HashMap::new()) })
    }

    /// The names that a ClientHello may ask for, in canonical spelling.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.allowed.iter().map(String::as_str)
    }

    /// The leaf for `name` (`None`: the client named nobody); `None` when it is not a name of ours.
    fn leaf(&self, name: Option<&str>, kind: KeyKind, now: OffsetDateTime) -> Option<Arc<CertifiedKey>> {
        let name = match name {
            None => None,
            Some(name) => Some(canonical(name).filter(|n| self.allowed.contains(n))?),
        };
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = (name, kind);
        if let Some(leaf) = leaves.get(&slot) {
            // A clock that was set back makes the kept one a certificate from the future.
            if leaf.made <= now && now - leaf.made < RENEW_AFTER {
                return Some(Arc::clone(&leaf.key));
            }
        }
        let names = slot.0.as_ref().map_or(self.default.as_slice(), std::slice::from_ref);
        match self.mint(names, kind, now) {
            Ok(key) => {
                leaves.insert(slot, Leaf { key: Arc::clone(&key), made: now });
                Some(key)
            }
            Err(error) => {
                tracing::error!(%error, "a certificate for a client could not be made");
                None
            }
        }
    }

    fn mint(
        &self,
        names: &[String],
        kind: KeyKind,
        now: OffsetDateTime,
    ) -> Result<Arc<CertifiedKey>, MintError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(names.first().map_or("", String::as_str));
        params.subject_alt_names = names.iter().map(|n| alternative_name(n)).collect::<Result<_, _>>()?;
        params.not_before = now - BACKDATED;
        params.not_after = now + LIFETIME;
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let (certificate, key) = match (kind, &self.rsa) {
            (KeyKind::Rsa, Some(rsa)) => {
                params.key_usages.push(KeyUsagePurpose::KeyEncipherment);
                (params.signed_by(rsa, self.authority.issuer())?, rsa.serialize_der())
            }
            (KeyKind::Rsa, None) | (KeyKind::P256, _) => {
                let key = KeyPair::generate()?;
                (params.signed_by(&key, self.authority.issuer())?, key.serialize_der())
            }
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let key = provider().key_provider.load_private_key(key)?;
        let chain = vec![certificate.der().clone(), self.authority.issuing().clone()];
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }
}

impl ResolvesServerCert for Minter {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let kind = if self.rsa.is_some() && needs_rsa(hello.cipher_suites(), hello.signature_schemes()) {
            KeyKind::Rsa
        } else {
            KeyKind::P256
        };
        self.leaf(hello.server_name(), kind, OffsetDateTime::now_utc())
    }
}

#[derive(Debug, thiserror::Error)]
enum MintError {
    #[error("{0}")]
    Make(#[from] rcgen::Error),
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

fn alternative_name(name: &str) -> Result<SanType, rcgen::Error> {
    match name.parse() {
        Ok(address) if is_address(name) => Ok(SanType::IpAddress(address)),
        Ok(_) | Err(_) => Ok(SanType::DnsName(name.try_into()?)),
    }
}

/// No TLS 1.3, and no suite or no scheme that an ECDSA key could serve.
fn needs_rsa(suites: &[CipherSuite], schemes: &[SignatureScheme]) -> bool {
    let tls13 = suites.iter().any(|s| {
        matches!(
            *s,
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS13_AES_256_GCM_SHA384
                | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        )
    });
    let ecdsa_suite = suites.iter().any(|s| {
        matches!(
            *s,
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        )
    });
    let ecdsa_scheme = schemes
        .iter()
        .any(|s| matches!(*s, SignatureScheme::ECDSA_NISTP256_SHA256 | SignatureScheme::ECDSA_SHA1_Legacy));
    !(ecdsa_scheme && (tls13 || ecdsa_suite))
}

/// Whether the file holds an RSA key that leaves can have.
///
/// # Errors
/// [`AuthorityError::File`] with what is wrong and how to make one.
pub fn check_rsa_key(path: &Path) -> Result<(), AuthorityError> {
    read_rsa(path).map(drop)
}

fn read_rsa(path: &Path) -> Result<KeyPair, AuthorityError> {
    let pem = files::read_secret(path)?;
    let key = std::str::from_utf8(&pem)
        .ok()
        .and_then(|p| KeyPair::from_pem_and_sign_algo(p, &PKCS_RSA_SHA256).ok());
    key.ok_or_else(|| {
        let why = "is not an RSA key of 2048 bits or more in PKCS #8 PEM; make one with: openssl genrsa -out FILE 2048";
        files::FileError::content(path, why).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minter(dir: &Path) -> Minter {
        let names = ["mail.lab.test".to_owned(), "imap.lab.test".to_owned(), "192.0.2.7".to_owned()];
        Authority::create(dir, &names).expect("made");
        let names = MintNames {
            allowed: vec!["mail.lab.test".into(), "imap.lab.test".into()],
            default: vec!["mail.lab.test".into(), "192.0.2.7".into()],
        };
        Minter::new(Authority::load(dir).expect("loadable"), &names, None).expect("permitted names")
    }

    #[test]
    fn only_listed_names_get_a_leaf() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (minter, now) = (minter(dir.path()), OffsetDateTime::now_utc());
        assert!(minter.leaf(Some("MAIL.lab.test"), KeyKind::P256, now).is_some());
        assert!(minter.leaf(None, KeyKind::P256, now).is_some());
        // Below a permitted name: the CA could sign it, the operator did not list it.
        assert!(minter.leaf(Some("x.mail.lab.test"), KeyKind::P256, now).is_none());
        assert!(minter.leaf(Some("evil.test"), KeyKind::P256, now).is_none());
        assert_eq!(minter.leaves.lock().expect("not poisoned").len(), 2);
    }

    #[test]
    fn a_leaf_is_kept_and_made_again_at_two_thirds_of_its_life() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (minter, now) = (minter(dir.path()), OffsetDateTime::now_utc());
        let at = |when| minter.leaf(Some("mail.lab.test"), KeyKind::P256, when).expect("listed");
        let first = at(now);
        assert!(Arc::ptr_eq(&first, &at(now + Duration::days(4))));
        let second = at(now + Duration::days(5));
        assert!(!Arc::ptr_eq(&first, &second));
        let set_back = at(now);
        assert!(
            !Arc::ptr_eq(&second, &set_back),
            "a clock set back must not show a certificate from the future"
        );
    }

    #[test]
    fn a_name_that_the_ca_may_not_sign_is_known_at_the_start() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Authority::create(dir.path(), &["mail.lab.test".to_owned()]).expect("made");
        let names =
            MintNames { allowed: vec!["mail.other.test".into()], default: vec!["mail.lab.test".into()] };
        let refused = Minter::new(Authority::load(dir.path()).expect("loadable"), &names, None);
        assert!(matches!(refused, Err(AuthorityError::NotPermitted(_))));
    }

    #[test]
    fn rsa_is_for_clients_that_can_do_nothing_else() {
        use CipherSuite as S;
        use SignatureScheme as A;
        let (ec, rsa) =
            (S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256);
        for (suites, schemes, wanted) in [
            (&[S::TLS13_AES_128_GCM_SHA256, rsa][..], &[A::ECDSA_NISTP256_SHA256][..], false),
            (&[ec, rsa], &[A::ECDSA_NISTP256_SHA256, A::RSA_PSS_SHA256], false),
            (&[rsa], &[A::ECDSA_NISTP256_SHA256, A::RSA_PSS_SHA256], true),
            (&[ec, rsa], &[A::RSA_PSS_SHA256, A::RSA_PKCS1_SHA256], true),
        ] {
            assert_eq!(needs_rsa(suites, schemes), wanted, "{suites:?} {schemes:?}");
        }
    }
}
