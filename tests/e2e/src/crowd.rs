//! A mail server by script for thousands of connections at once, and clients for it: small tasks, where a thread each
//! would be what is measured. It counts who is on its doorstep, which is what a storm costs a server.

mod clients;
mod script;

pub use clients::{Client, Clients};
pub use script::Mailbox;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::pki::Identity;
use lab::{Lab, Place};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// How the server is.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// What stands in everybody's INBOX.
    pub mailbox: Mailbox,
    /// How long it takes to greet a client, whom it may greet at a time.
    pub greeting: Duration,
    /// How many it greets at a time.
    pub greeted_at_once: usize,
}

/// What has happened at the server.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Connections that are accepted and not greeted.
    pub opening: Gauge,
    /// Connections on which nobody is logged in.
    pub strangers: Gauge,
    /// Connections in IDLE.
    pub idling: Gauge,
    /// Logins accepted so far.
    pub logins: u64,
    /// Times that a message's body was asked for.
    pub bodies: u64,
    /// Times that IDLE was said.
    pub idles: u64,
    /// When connections began.
    pub starts: Vec<Instant>,
}

impl Counts {
    /// Connections begun within the busiest second.
    #[must_use]
    pub fn busiest_second(&self) -> usize {
        let within = |from: &Instant| {
            let until = *from + Duration::from_secs(1);
            self.starts.iter().filter(|at| (*from..until).contains(*at)).count()
        };
        self.starts.iter().map(within).max().unwrap_or(0)
    }
}

/// How many now, and the most that there ever were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauge {
    /// Now.
    pub now: usize,
    /// At most so far.
    pub peak: usize,
}

impl Gauge {
    fn enter(&mut self) {
        self.now += 1;
        self.peak = self.peak.max(self.now);
    }

    fn leave(&mut self) {
        self.now = self.now.saturating_sub(1);
    }
}

/// A running server. Dropping it ends it and every connection.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Shared {
    manner: Manner,
    counts: Mutex<Counts>,
    greeters: Semaphore,
    /// Messages delivered to everybody so far.
    delivered: watch::Sender<u32>,
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Crowd {
    /// Listens at an address in a place of the lab.
    ///
    /// # Errors
    /// When it cannot.
    pub fn start(
        lab: &Lab,
        place: Place,
        address: SocketAddr,
        identity: &Identity,
        manner: Manner,
    ) -> anyhow::Result<Self> {
        let certificate = CertificateDer::from_pem_file(&identity.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&identity.key)?;
        let config =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        // A queue for all that may come at once: who must wait shall be decided by others.
        let bind = move || {
            let socket = socket_of(address)?;
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(4096)?.into_std()
        };
        let runtime = runtime()?;
        let handle = runtime.handle().clone();
        let listener = lab.inside(place, move || {
            let _inside = handle.enter();
            bind()
        })?;
        let listener = listener.with_context(|| format!("cannot listen on {address}"))?;
        let shared = Arc::new(Shared {
            manner,
            counts: Mutex::default(),
            greeters: Semaphore::new(manner.greeted_at_once),
            delivered: watch::Sender::new(0),
        });
        let serving = Arc::clone(&shared);
        runtime.spawn(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, acceptor) = (Arc::clone(&serving), acceptor.clone());
                // A client that leaves in the middle is no fault of the server's.
                tokio::spawn(async move { drop(script::serve(&shared, &acceptor, stream).await) });
            }
        });
        Ok(Self { shared, runtime: Some(runtime) })
    }

    /// What has happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counts().clone()
    }

    /// A message comes for everybody.
    pub fn deliver(&self) {
        self.shared.delivered.send_modify(|messages| *messages += 1);
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

fn socket_of(address: SocketAddr) -> std::io::Result<tokio::net::TcpSocket> {
    if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// A client's TLS that trusts the authority in this file.
///
/// # Errors
/// When the file holds no certificate.
pub fn trusting(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_second_is_found_wherever_it_is() {
        let zero = Instant::now();
        let at = |millis| zero + Duration::from_millis(millis);
        let counts =
            Counts { starts: [0, 100, 1_500, 1_600, 2_400, 2_600].map(at).to_vec(), ..Counts::default() };
        assert_eq!(counts.busiest_second(), 3);
        assert_eq!(Counts::default().busiest_second(), 0);
    }

    #[test]
    fn a_gauge_remembers_its_peak() {
        let mut gauge = Gauge::default();
        gauge.enter();
        gauge.enter();
        gauge.leave();
        assert_eq!(gauge, Gauge { now: 1, peak: 2 });
    }
}
