//! The server side of TLS towards clients: reads the ClientHello, decides by its name, then finishes the handshake.

use super::recorder::Recorder;
use crate::tls::{canonical, provider};
use bytes::Bytes;
use rustls::{
    ServerConfig,
    server::{Accepted, Acceptor, ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use seams::{AsyncIo, BoxFuture, Stream, intake::ClientUpgrade};
use std::{
    collections::HashSet,
    io,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, server::TlsStream};

/// Which names in a ClientHello are ours. A client that names nobody is always ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Whatever is asked for gets the certificate: the client checks the name anyway.
    Any,
    /// These names, however spelled; a name that cannot be one is ignored.
    Only(Vec<String>),
}

/// The oldest TLS that clients may speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinTls {
    /// RFC 5246, still spoken by many mail clients; RFC 8997 forbids anything older.
    #[default]
    Tls12,
    /// RFC 8446 only.
    Tls13,
}

/// TLS towards clients, shared by every listener that shows the same certificates.
#[derive(Debug)]
pub struct FrontTls {
    current: RwLock<Arc<Current>>,
    min: MinTls,
    upgrade_timeout: Duration,
}

#[derive(Debug)]
struct Current {
    serving: Arc<ServerConfig>,
    refusing: Arc<ServerConfig>,
    /// `None`: any.
    listed: Option<HashSet<String>>,
}

/// What a ClientHello led to.
pub(super) enum Hello<Io> {
    Ours { io: Box<TlsStream<Recorder<Io>>>, server_name: Option<String> },
    Unlisted { io: Io, hello: Bytes },
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrontError {
    #[error("the client does not speak TLS")]
    NotTls,
    #[error("the client asked for a name that is not ours")]
    Unlisted,
    #[error("{0}")]
    Failed(io::Error),
}

impl FrontTls {
    /// `certificates` is an [`OperatorCert`](crate::tls::operator::OperatorCert) or a
    /// [`Minter`](crate::tls::mint::Minter). Sessions are resumed by ticket; early data is not taken.
    ///
    /// # Errors
    /// When the TLS library cannot make its ticket keys (no randomness).
    pub fn new(
        certificates: Arc<dyn ResolvesServerCert>,
        listed: &Listed,
        min: MinTls,
    ) -> Result<Self, rustls::Error> {
        let current = RwLock::new(Arc::new(Current::new(certificates, listed, min)?));
        Ok(Self { current, min, upgrade_timeout: Duration::from_secs(10) })
    }

    /// Shows other certificates or names from the next handshake on; sessions that run are not touched.
    ///
    /// # Errors
    /// As [`FrontTls::new`]; then the old ones stay.
    pub fn replace(
        &self,
        certificates: Arc<dyn ResolvesServerCert>,
        listed: &Listed,
    ) -> Result<(), rustls::Error> {
        let new = Arc::new(Current::new(certificates, listed, self.min)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Whether a client that asks for `name` is to see these certificates.
    #[must_use]
    pub fn lists(&self, name: Option<&str>) -> bool {
        self.current().is_listed(name)
    }

    /// Finishes the handshake of a client whose name has been looked at.
    ///
    /// # Errors
    /// The client's, or of the road to it.
    pub async fn answer<Io>(&self, asked: Asked<Io>) -> io::Result<Box<dyn AsyncIo>>
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = asked.answer(&self.current().serving).await?;
        Ok(Box::new(Stream::bare(*io)))
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads a ClientHello and finishes the handshake when its name is ours. With `replay` an unlisted client comes
    /// back with what it said; else it gets a fatal alert.
    pub(super) async fn handshake<Io>(&self, io: Io, replay: bool) -> Result<Hello<Io>, FrontError>
    where
        Io: AsyncRead + AsyncWrite + Unpin,
    {
        let current = self.current();
        let asked = Asked::read(io, replay).await?;
        let server_name = asked.server_name();
        let ours = current.is_listed(server_name.as_deref());
        if !ours && replay {
            let (io, hello) = asked.into_parts();
            return Ok(Hello::Unlisted { io, hello });
        }
        let config = if ours { &current.serving } else { &current.refusing };
        match asked.answer(config).await {
            Ok(io) => Ok(Hello::Ours { io, server_name }),
            Err(_) if !ours => Err(FrontError::Unlisted),
            Err(error) => Err(FrontError::Failed(error)),
        }
    }
}

/// A client that has said its ClientHello, and has been told nothing.
pub struct Asked<Io>(StartHandshake<Recorder<Io>>);

impl<Io: AsyncRead + AsyncWrite + Unpin> Asked<Io> {
    /// Reads it, to be sent on as it came or answered.
    ///
    /// # Errors
    /// When the client says something else, or nothing within `patience`. It has been told nothing either, and may be
    /// somebody else's.
    pub async fn of(io: Io, patience: Duration) -> Result<Self, Unasked<Io>> {
        let mut io = Recorder::new(io, true);
        match timeout(patience, hello(&mut io)).await.unwrap_or_else(|late| Err(late.into())) {
            Ok(hello) => Ok(Self(StartHandshake::from_parts(hello, io))),
            Err(error) => {
                let (io, said) = io.into_parts();
                Err(Unasked { io, said, error })
            }
        }
    }

    async fn read(io: Io, replay: bool) -> Result<Self, FrontError> {
        // The acceptor itself sends the fatal alert when the octets are no ClientHello.
        let start = LazyConfigAcceptor::new(Acceptor::default(), Recorder::new(io, replay)).await;
        start.map(Self).map_err(|e| {
            if e.kind() == io::ErrorKind::InvalidData { FrontError::NotTls } else { FrontError::Failed(e) }
        })
    }

    /// Whom it asks for.
    #[must_use]
    pub fn server_name(&self) -> Option<String> {
        self.0.client_hello().server_name().map(str::to_ascii_lowercase)
    }

    /// The stream, and what was read from it, for whoever is to hear it instead.
    #[must_use]
    pub fn into_parts(self) -> (Io, Bytes) {
        self.0.io.into_parts()
    }

    async fn answer(self, config: &Arc<ServerConfig>) -> io::Result<Box<TlsStream<Recorder<Io>>>> {
        let mut io = self.0.into_stream(Arc::clone(config)).await?;
        io.get_mut().0.stop();
        Ok(Box::new(io))
    }
}

/// A client that has said no ClientHello, and has been told nothing.
#[derive(Debug)]
pub struct Unasked<Io> {
    /// The stream.
    pub io: Io,
    /// What was read from it.
    pub said: Bytes,
    /// What is wrong with that.
    pub error: io::Error,
}

/// Without the alert that an acceptor with a stream would send.
async fn hello<Io: AsyncRead + Unpin>(io: &mut Io) -> io::Result<Accepted> {
    let mut acceptor = Acceptor::default();
    let mut buffer = [0; HELLO_READ_OCTETS];
    loop {
        let length = io.read(&mut buffer).await?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !rest.is_empty() {
            if acceptor.read_tls(&mut rest)? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        match acceptor.accept() {
            Ok(Some(hello)) => return Ok(hello),
            Ok(None) => {}
            Err((error, _)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

/// What the TLS library takes at once.
const HELLO_READ_OCTETS: usize = 2048;

impl<Io> std::fmt::Debug for Asked<Io> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Asked")
    }
}

impl ClientUpgrade for FrontTls {
    fn upgrade(&self, io: Box<dyn AsyncIo>) -> BoxFuture<'_, io::Result<Box<dyn AsyncIo>>> {
        Box::pin(async move {
            match timeout(self.upgrade_timeout, self.handshake(io, false)).await {
                Ok(Ok(Hello::Ours { io, .. })) => Ok(Box::new(Stream::bare(*io)) as Box<dyn AsyncIo>),
                Ok(Ok(Hello::Unlisted { .. })) => Err(io::Error::other(FrontError::Unlisted)),
                Ok(Err(error)) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                Err(late) => Err(late.into()),
            }
        })
    }
}

impl Current {
    fn new(
        certificates: Arc<dyn ResolvesServerCert>,
        listed: &Listed,
        min: MinTls,
    ) -> Result<Self, rustls::Error> {
        let mut serving = server_config(certificates, min)?;
        serving.ticketer = rustls::crypto::ring::Ticketer::new()?;
        // One is enough: mail clients keep a connection, and each costs 200 octets of the first flight.
        serving.send_tls13_tickets = 1;
        let listed = match listed {
            Listed::Any => None,
            Listed::Only(names) => Some(names.iter().filter_map(|n| canonical(n)).collect()),
        };
        Ok(Self {
            serving: Arc::new(serving),
            refusing: Arc::new(server_config(Arc::new(Nobody), min)?),
            listed,
        })
    }

    fn is_listed(&self, name: Option<&str>) -> bool {
        match (&self.listed, name) {
            (None, _) | (_, None) => true,
            (Some(listed), Some(name)) => canonical(name).is_some_and(|n| listed.contains(&n)),
        }
    }
}

fn server_config(
    certificates: Arc<dyn ResolvesServerCert>,
    min: MinTls,
) -> Result<ServerConfig, rustls::Error> {
    let both = [&rustls::version::TLS13, &rustls::version::TLS12];
    let versions = match min {
        MinTls::Tls12 => both.as_slice(),
        MinTls::Tls13 => both.get(..1).unwrap_or(&both),
    };
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
    Ok(builder.with_no_client_auth().with_cert_resolver(certificates))
}

/// Has no certificate for anybody: the TLS library then sends the alert access_denied.
#[derive(Debug)]
struct Nobody;

impl ResolvesServerCert for Nobody {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// A ClientHello goes in by the tests of the listener; these are what others say.
    #[tokio::test]
    async fn whoever_says_no_client_hello_is_handed_back_with_all_of_it_and_told_nothing() {
        let too_much = [&[22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff][..], &[0; 80_000]].concat();
        for said in [&b"a1 NOOP\r\n"[..], &[22, 3, 1], &[], &too_much] {
            let (mut client, here) = tokio::io::duplex(100_000);
            client.write_all(said).await.unwrap();
            let Err(unasked) = Asked::of(here, Duration::from_millis(20)).await else {
                panic!("{said:?} is a ClientHello")
            };
            assert!(said.starts_with(&unasked.said));
            let mut here = unasked.io;
            // What was not read is still there, and nothing is missing in between.
            let mut rest = vec![0; said.len() - unasked.said.len()];
            here.read_exact(&mut rest).await.unwrap();
            assert_eq!([&unasked.said[..], &rest].concat(), said);
            drop(here);
            let mut told = Vec::new();
            client.read_to_end(&mut told).await.unwrap();
            assert!(told.is_empty(), "told {told:?}");
        }
    }
}
