//! A small public key infrastructure in a temporary directory, and TLS ends made from it.

use epc::tls::{
    authority::{Authority, Created},
    mint::{MintNames, Minter},
    provider,
    roots::{Trust, client_config},
};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion, pki_types::ServerName};
use std::{path::Path, sync::Arc};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A CA for `mail.lab.test`, `imap.lab.test`, `localhost` and the loopback addresses.
pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) ca: Created,
}

pub(crate) const NAMES: [&str; 5] = ["mail.lab.test", "imap.lab.test", "localhost", "127.0.0.1", "::1"];

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ca = Authority::create(&dir.path().join("ca"), &NAMES.map(str::to_owned)).expect("a new CA");
        Self { dir, ca }
    }

    pub(crate) fn authority(&self) -> Authority {
        Authority::load(&self.dir.path().join("ca")).expect("the CA just made")
    }

    /// Mints for the two mail names and `localhost`; a client without a name gets `mail.lab.test` and the addresses.
    pub(crate) fn minter(&self, rsa_key: Option<&Path>) -> Arc<Minter> {
        let names = MintNames {
            allowed: NAMES[..3].iter().map(|n| (*n).to_owned()).collect(),
            default: ["mail.lab.test", "127.0.0.1", "::1"].map(str::to_owned).to_vec(),
        };
        Arc::new(Minter::new(self.authority(), &names, rsa_key).expect("permitted names"))
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::CaFile(self.ca.root_cert.clone())
    }

    /// A mail server's TLS, as a plain rustls server.
    pub(crate) fn server(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("known versions")
            .with_no_client_auth()
            .with_cert_resolver(self.minter(None));
        Arc::new(config)
    }

    /// A client that trusts this CA.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        client_config(&self.trust()).expect("the CA just made")
    }
}

/// The client side of a handshake that asks for `name`.
pub(crate) async fn connect<Io>(
    config: Arc<ClientConfig>,
    name: &str,
    io: Io,
) -> std::io::Result<TlsStream<Io>>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    TlsConnector::from(config).connect(name, io).await
}
