//! Both TLS ends of the proxy: who the mail server proved to be ([`roots`]), and which certificate a client sees
//! ([`operator`] serves the operator's own files, [`mint`] makes leaves under the interception CA of [`authority`]).
//!
//! One TLS library (rustls) with one provider (ring), always named explicitly: a process-wide default would let
//! another crate decide which algorithms this proxy speaks.

pub mod authority;
pub mod files;
pub mod mint;
pub mod operator;
pub mod roots;

use ring::digest::{SHA256, digest};
use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName},
};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The algorithms of every TLS connection of this process.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// SHA-256 of `octets`.
#[must_use]
pub fn sha256(octets: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, octets).as_ref());
    out
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469 §2.4): what a pin compares. It survives a renewed
/// certificate as long as the key stays. `None` when the octets are no certificate.
#[must_use]
pub fn spki_sha256(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(certificate.as_ref()).ok()?;
    Some(sha256(parsed.public_key().raw))
}

/// `octets` as lower-case hex: how fingerprints and pins are printed and configured.
#[must_use]
pub fn hex(octets: &[u8]) -> String {
    octets.iter().map(|o| format!("{o:02x}")).collect()
}

/// A host as configured (`mail.example.org`, `192.0.2.7`, `[2001:db8::7]`) as the name that a certificate must bear.
#[must_use]
pub fn server_name(host: &str) -> Option<ServerName<'static>> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(bare.to_owned()).ok()
}

/// A name or address in the one spelling that lists and caches compare: lower case, no final dot, no brackets.
pub(crate) fn canonical(name: &str) -> Option<String> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    let name = server_name(bare)?;
    if let ServerName::IpAddress(address) = &name {
        return Some(std::net::IpAddr::from(*address).to_string());
    }
    Some(name.to_str().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_spelling() {
        assert_eq!(canonical("Mail.Lab.Test.").as_deref(), Some("mail.lab.test"));
        assert_eq!(canonical("[2001:DB8:0::1]").as_deref(), Some("2001:db8::1"));
        assert_eq!(canonical("192.0.2.7").as_deref(), Some("192.0.2.7"));
        assert_eq!(canonical("not a name"), None);
        assert_eq!(canonical(""), None);
    }

    #[test]
    fn octets_that_are_no_certificate_have_no_key() {
        assert_eq!(spki_sha256(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])), None);
    }
}
