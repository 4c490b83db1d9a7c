//! A TLS relay in the client's namespace that records what passes, the same in all arms: real clients have no
//! clock of their own, and their octets are seen nowhere else.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use lab::{Authority, sys};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::arm::{Arm, Ground};
use crate::recording::{Recording, Side};

/// A running relay. Dropping it ends it and every connection through it.
pub(crate) struct Relay {
    pub(crate) recording: Arc<Recording>,
    /// On the client's own machine.
    pub(crate) port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Relay {
    /// Starts a relay beside an arm's client.
    pub(crate) fn start(ground: &Ground, arm: Arm) -> anyhow::Result<Self> {
        let recording = Arc::new(Recording::default());
        let acceptor = acceptor(&ground.authority, ground.lab.directory())?;
        let roots = Arc::clone(&ground.roots);
        let connector = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(connector));
        let namespace = ground.lab.namespace(arm.place());
        let (stop, stopped) = oneshot::channel();
        let (started, wait) = std::sync::mpsc::channel();
        let shared = Arc::clone(&recording);
        let thread = std::thread::Builder::new().name(format!("relay-{}", arm.name()));
        let thread = thread.spawn(move || {
            let runtime = sys::enter_netns(&namespace)
                .and_then(|()| tokio::runtime::Builder::new_current_thread().enable_all().build());
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error))),
            };
            runtime.block_on(async move {
                let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await {
                    Ok(listener) => listener,
                    Err(error) => return drop(started.send(Err(error))),
                };
                drop(started.send(listener.local_addr()));
                tokio::select! {
                    () = accept(listener, acceptor, connector, arm.address(), shared) => {}
                    _ = stopped => {}
                }
            });
        })?;
        let address = wait.recv().context("the relay did not start")?.context("the relay cannot listen")?;
        Ok(Self { recording, port: address.port(), stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn acceptor(authority: &Authority, directory: &std::path::Path) -> anyhow::Result<TlsAcceptor> {
    let identity = match directory.join("ca/localhost.pem") {
        certificate if certificate.exists() => {
            lab::pki::Identity { key: certificate.with_extension("key"), certificate }
        }
        _ => authority.issue(&["localhost"])?,
    };
    let certificate = CertificateDer::from_pem_file(&identity.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&identity.key)?;
    let config =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    target: SocketAddr,
    recording: Arc<Recording>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let (acceptor, connector, recording) = (acceptor.clone(), connector.clone(), Arc::clone(&recording));
        tokio::spawn(async move {
            // A client that hangs up or does not trust us shows in what it then reports.
            drop(relay(client, &acceptor, &connector, target, &recording).await);
        });
    }
}

async fn relay(
    client: TcpStream,
    acceptor: &TlsAcceptor,
    connector: &TlsConnector,
    target: SocketAddr,
    recording: &Recording,
) -> anyhow::Result<()> {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(target).await?;
    let began = Instant::now();
    server.set_nodelay(true)?;
    let server = connector.connect(ServerName::try_from(lab::net::DOVECOT)?, server).await?;
    let client = acceptor.accept(client).await?;
    let connection = recording.begin(began);
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = tokio::io::split(server);
    tokio::select! {
        done = pump(client_read, server_write, |octets| recording.note(connection, Side::Client, octets)) => done,
        done = pump(server_read, client_write, |octets| recording.note(connection, Side::Server, octets)) => done,
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut note: impl FnMut(&[u8]),
) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = from.read(&mut buffer).await?;
        let octets = buffer.get(..count).unwrap_or_default();
        if octets.is_empty() {
            to.shutdown().await?;
            return Ok(());
        }
        note(octets);
        to.write_all(octets).await?;
        to.flush().await?;
    }
}
