//! TLS 1.3, both sides with a certificate of a trusted authority. The chain is checked by rustls; a name is not, for a
//! node is who its certificate says, wherever it was found: [`admit`](crate::admit) decides on that.

use crate::identity::{Authority, BadIdentity, Identity};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};
use std::{fmt, sync::Arc};

/// Both ends of TLS, for one identity and its authorities.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
    trust: Arc<Trust>,
}

impl Tls {
    pub(crate) fn new(identity: &Identity, authorities: &[Authority]) -> Result<Self, BadIdentity> {
        let bad = |error: Error| BadIdentity::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let trust = Arc::new(Trust::new(authorities, &provider)?);
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(bad)?
            .dangerous()
            .with_custom_certificate_verifier(trust.clone())
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(bad)?;
        // A resumed session is not asked for its certificate again, and it may have been revoked meanwhile.
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        client.alpn_protocols = vec![ALPN.to_vec()];
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(bad)?
            .with_client_cert_verifier(trust.clone())
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(bad)?;
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { client: Arc::new(client), server: Arc::new(server), trust })
    }

    /// Whether there is an authority of this name.
    pub(crate) fn trusts(&self, name: &str) -> bool {
        self.trust.roots.iter().any(|root| root.authority.name == name)
    }

    /// Which authority a chain is of; asked after the handshake, which has checked it.
    pub(crate) fn authority(&self, chain: &[CertificateDer<'_>]) -> Option<Authority> {
        let (leaf, rest) = chain.split_first()?;
        let of = |root: &&Root| root.verifier.verify_client_cert(leaf, rest, UnixTime::now()).is_ok();
        self.trust.roots.iter().find(of).map(|root| root.authority.clone())
    }
}

struct Root {
    authority: Authority,
    store: Arc<RootCertStore>,
    verifier: Arc<dyn ClientCertVerifier>,
}

struct Trust {
    provider: Arc<CryptoProvider>,
    roots: Vec<Root>,
    hints: Vec<DistinguishedName>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.roots.iter().map(|root| &root.authority.name)).finish()
    }
}

impl Trust {
    fn new(authorities: &[Authority], provider: &Arc<CryptoProvider>) -> Result<Self, BadIdentity> {
        let bad = |error: String| BadIdentity::Tls(error);
        let mut roots = Vec::new();
        for authority in authorities {
            let mut store = RootCertStore::empty();
            for root in &authority.roots {
                store.add(root.clone()).map_err(|error| bad(error.to_string()))?;
            }
            let store = Arc::new(store);
            let verifier = WebPkiClientVerifier::builder_with_provider(store.clone(), provider.clone());
            let verifier = verifier.build().map_err(|error| bad(error.to_string()))?;
            roots.push(Root { authority: authority.clone(), store, verifier });
        }
        let hints = roots.iter().flat_map(|root| root.store.subjects()).collect();
        if roots.is_empty() {
            Err(BadIdentity::NoAuthority)
        } else {
            Ok(Self { provider: provider.clone(), roots, hints })
        }
    }

    /// The first authority that agrees, or what the last one said.
    fn any<T>(&self, check: impl Fn(&Root) -> Result<T, Error>) -> Result<T, Error> {
        let mut said = Error::General("no authority".to_owned());
        for root in &self.roots {
            match check(root) {
                Ok(yes) => return Ok(yes),
                Err(error) => said = error,
            }
        }
        Err(said)
    }

    fn tls12() -> Error {
        Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled)
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = ParsedCertificate::try_from(leaf)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        self.any(|root| verify_server_cert_signed_by_trust_anchor(&leaf, &root.store, rest, now, algorithms))
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Self::tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Trust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.any(|root| root.verifier.verify_client_cert(leaf, rest, now))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Self::tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// So that nothing else's TLS is taken for a link, and no link for something else.
const ALPN: &[u8] = b"waypost-link";
