//! Where clients come in: one listening address, its TLS, and a bounded number of handshakes at a time.
//!
//! ```text
//! accept ── permit (handshakes_max) ── task: ClientHello ─┬─ listed or no name: TLS ──── Accepted ── accept()
//!                                                         ├─ unlisted: alert, or tunnel to the own server
//!                                                         └─ not TLS, too slow: closed, counted
//! ```
//! A client that is slow with its hello holds one permit and nobody else; the listener goes on accepting.

mod front;
mod recorder;
mod tunnel;

pub use front::{Asked, FrontTls, Listed, MinTls, Unasked};
pub use tunnel::TunnelTo;

use crate::origin::tune;
use front::{FrontError, Hello};
use seams::{
    AsyncIo, BoxFuture, Stream,
    intake::{Accepted, Arrival, ClientAddr, ClientTls, ClientUpgrade, Intake, OriginalDst},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

/// What a listener does about encryption.
#[derive(Clone, Debug)]
pub enum Front {
    /// TLS from the first octet (port 993).
    Implicit {
        /// The server side of TLS.
        tls: Arc<FrontTls>,
        /// What happens to a client that asks for a name that is not ours.
        unlisted: Unlisted,
    },
    /// Plain until STARTTLS (port 143); the session upgrades with the same [`FrontTls`].
    StartTls(Arc<FrontTls>),
    /// Never encrypted. Clients outside these networks (address and prefix length) are closed at once; an empty list
    /// means loopback only.
    Plain(Vec<(IpAddr, u8)>),
}

/// What happens to a client that asks for a name that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// A fatal TLS alert.
    Refuse,
    /// Its octets go, unread and from the first one, to this listener's own server, and to no other.
    Tunnel(TunnelTo),
}

/// A listening address.
#[derive(Clone, Debug)]
pub struct ListenerConfig {
    /// Where. An IPv6 address takes IPv6 clients only, also `[::]`.
    pub address: SocketAddr,
    /// Its encryption.
    pub front: Front,
    /// Clients between connect and the end of the handshake, all together.
    pub handshakes_max: usize,
    /// The same per client address, so that one machine cannot take all of them. A branch behind one translated
    /// address shares it.
    pub handshakes_per_client_max: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Tunnels at a time; more are refused.
    pub tunnels_max: usize,
}

impl ListenerConfig {
    /// The defaults: 1,024 handshakes (128 from one address) of at most 10 s, 256 tunnels.
    #[must_use]
    pub fn new(address: SocketAddr, front: Front) -> Self {
        Self {
            address,
            front,
            handshakes_max: 1024,
            handshakes_per_client_max: 128,
            handshake_timeout: Duration::from_secs(10),
            tunnels_max: 256,
        }
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened at a listener since it was bound.
        #[derive(Debug, Default)]
        pub struct IntakeCounts { $($name: AtomicU64,)* }

        impl IntakeCounts {
            $($(#[$doc])* #[must_use] pub fn $name(&self) -> u64 { self.$name.load(Ordering::Relaxed) })*
        }
    };
}
counts! {
    /// Clients handed out.
    accepted,
    /// The first octets were not TLS.
    not_tls,
    /// A name that is not ours, refused.
    unlisted_refused,
    /// A name that is not ours, tunnelled.
    tunnelled,
    /// A handshake that failed: alert, certificate not trusted, connection closed.
    handshake_failed,
    /// A handshake that took too long.
    handshake_timed_out,
    /// One client address had too many handshakes open.
    per_client_refused,
    /// A plain client from outside the permitted networks.
    plain_refused,
    /// Accepting failed for lack of files or memory.
    accept_errors,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A bound address that hands out clients. Dropping it closes the address and gives up unfinished handshakes; clients
/// that were handed out, and tunnels, go on.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    upgrade: Option<Arc<FrontTls>>,
    counts: Arc<IntakeCounts>,
    ready: mpsc::Receiver<io::Result<Accepted>>,
    acceptor: JoinHandle<()>,
}

/// Clients that are ready but not yet taken by the session layer; behind it the handshakes wait, then the kernel.
const READY_MAX: usize = 64;
/// How long to leave the kernel alone when it has no file or memory for another connection.
const BACK_OFF: Duration = Duration::from_millis(50);
/// Connections that the kernel holds for us.
const BACKLOG: i32 = 1024;

impl Listener {
    /// Binds and starts accepting. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// What the system says about the address.
    pub fn bind(config: ListenerConfig) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(config.address), Type::STREAM, Some(Protocol::TCP))?;
        if config.address.is_ipv6() {
            // Else the order of binding 0.0.0.0 and [::] would decide who serves IPv4.
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&config.address.into())?;
        socket.listen(BACKLOG)?;
        Self::from_std(socket.into(), config)
    }

    /// The same over a socket that listens already (handed over by systemd, or bound before privileges were
    /// dropped). `config.address` is ignored.
    ///
    /// # Errors
    /// What the system says about the socket.
    pub fn from_std(socket: std::net::TcpListener, config: ListenerConfig) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(socket)?;
        let address = socket.local_addr()?;
        let upgrade = match &config.front {
            Front::StartTls(tls) => Some(Arc::clone(tls)),
            Front::Implicit { .. } | Front::Plain(_) => None,
        };
        let counts = Arc::new(IntakeCounts::default());
        let (deliver, ready) = mpsc::channel(READY_MAX);
        let door = Arc::new(Door {
            tunnels: Arc::new(Semaphore::new(config.tunnels_max)),
            per_client: Mutex::new(HashMap::new()),
            counts: Arc::clone(&counts),
            deliver,
            config,
        });
        let acceptor = tokio::spawn(accept_all(socket, door));
        Ok(Self { address, upgrade, counts, ready, acceptor })
    }

    /// Where it listens; with port 0 configured, the port that the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What a session of this listener upgrades with after STARTTLS; `None` unless the front is [`Front::StartTls`].
    #[must_use]
    pub fn upgrade(&self) -> Option<Arc<dyn ClientUpgrade>> {
        self.upgrade.clone().map(|tls| tls as Arc<dyn ClientUpgrade>)
    }

    /// Closes the address; when this returns it can be bound again. Clients that were handed out go on.
    pub async fn close(mut self) {
        self.acceptor.abort();
        let _aborted = (&mut self.acceptor).await;
    }

    /// The counters; they outlive the listener.
    #[must_use]
    pub fn counts(&self) -> Arc<IntakeCounts> {
        Arc::clone(&self.counts)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

impl Intake for Listener {
    /// An error means that the listening socket is gone for good; everything else is dealt with inside.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async {
            match self.ready.recv().await {
                Some(client) => client,
                None => Err(io::Error::new(io::ErrorKind::NotConnected, "the listener has ended")),
            }
        })
    }
}

/// What the accepting task and its handshakes share.
struct Door {
    config: ListenerConfig,
    counts: Arc<IntakeCounts>,
    tunnels: Arc<Semaphore>,
    /// Handshakes open per client address; an entry goes with its last handshake.
    per_client: Mutex<HashMap<IpAddr, usize>>,
    deliver: mpsc::Sender<io::Result<Accepted>>,
}

async fn accept_all(socket: TcpListener, door: Arc<Door>) {
    let permits = Arc::new(Semaphore::new(door.config.handshakes_max));
    let mut handshakes = JoinSet::new();
    let mut starving = false;
    loop {
        while handshakes.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, client)) => {
                starving = false;
                handshakes.spawn(Arc::clone(&door).receive(stream, client, permit));
            }
            Err(error) if is_shortage(&error) => {
                count(&door.counts.accept_errors);
                if !starving {
                    tracing::warn!(%error, "clients must wait: raise the limit of open files (LimitNOFILE)");
                }
                starving = true;
                sleep(BACK_OFF).await;
            }
            Err(error) if is_one_client(&error) => {}
            Err(error) => {
                // The receiver may be gone; then nobody is left to tell.
                let _gone = door.deliver.send(Err(error)).await;
                return;
            }
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE | ENOBUFS | ENOMEM))
}

/// Linux hands errors of the new connection to `accept` (accept(2), 'Error handling').
fn is_one_client(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionAborted
            | K::ConnectionReset
            | K::Interrupted
            | K::WouldBlock
            | K::TimedOut
            | K::NetworkDown
            | K::NetworkUnreachable
            | K::HostUnreachable
            | K::PermissionDenied
    ) || matches!(error.raw_os_error(), Some(EPROTO | ENOPROTOOPT | EHOSTDOWN | ENONET | EOPNOTSUPP))
}

// Linux's numbers, equal on all its architectures that Rust's std supports with these names (asm-generic/errno.h).
const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENONET: i32 = 64;
const EPROTO: i32 = 71;
const ENOPROTOOPT: i32 = 92;
const EOPNOTSUPP: i32 = 95;
const ENOBUFS: i32 = 105;
const EHOSTDOWN: i32 = 112;

impl Door {
    async fn receive(self: Arc<Self>, stream: TcpStream, client: SocketAddr, permit: OwnedSemaphorePermit) {
        let Some(place) = Place::take(&self, client.ip()) else {
            count(&self.counts.per_client_refused);
            return;
        };
        // A peer that is gone already: nobody to serve.
        let (Ok(local), Ok(())) = (stream.local_addr(), tune(&stream)) else { return };
        let ready = |io: Box<dyn AsyncIo>, server_name, tls| Accepted {
            io,
            client: ClientAddr(client),
            original_dst: OriginalDst(local),
            server_name,
            how: Arrival::Listener,
            tls,
        };
        let accepted = match &self.config.front {
            Front::Plain(networks) => {
                if !is_permitted(client.ip(), networks) {
                    count(&self.counts.plain_refused);
                    return;
                }
                ready(Box::new(Stream::bare(stream)), None, ClientTls::Plain)
            }
            Front::StartTls(_) => ready(Box::new(Stream::bare(stream)), None, ClientTls::StartTls),
            Front::Implicit { tls, unlisted } => {
                let replay = matches!(unlisted, Unlisted::Tunnel(_));
                match timeout(self.config.handshake_timeout, tls.handshake(stream, replay)).await {
                    Ok(Ok(Hello::Ours { io, server_name })) => {
                        ready(Box::new(Stream::bare(*io)), server_name, ClientTls::Implicit)
                    }
                    Ok(Ok(Hello::Unlisted { io, hello })) => {
                        self.start_tunnel(unlisted, io, hello);
                        return;
                    }
                    Ok(Err(error)) => return self.count_failure(&error),
                    Err(_) => return count(&self.counts.handshake_timed_out),
                }
            }
        };
        drop(place);
        if self.deliver.send(Ok(accepted)).await.is_ok() {
            count(&self.counts.accepted);
        }
        drop(permit);
    }

    fn count_failure(&self, error: &FrontError) {
        tracing::debug!(%error, "a TLS handshake with a client failed");
        count(match error {
            FrontError::NotTls => &self.counts.not_tls,
            FrontError::Unlisted => &self.counts.unlisted_refused,
            FrontError::Failed(_) => &self.counts.handshake_failed,
        });
    }

    fn start_tunnel(&self, unlisted: &Unlisted, io: TcpStream, hello: bytes::Bytes) {
        let (Unlisted::Tunnel(to), Ok(permit)) = (unlisted, Arc::clone(&self.tunnels).try_acquire_owned())
        else {
            return count(&self.counts.unlisted_refused);
        };
        count(&self.counts.tunnelled);
        let to = to.clone();
        tokio::spawn(async move {
            if let Err(error) = to.run(io, hello).await {
                tracing::debug!(%error, "a tunnel ended");
            }
            drop(permit);
        });
    }
}

/// One of the handshakes that a client address may have open.
struct Place {
    door: Arc<Door>,
    client: IpAddr,
}

impl Place {
    fn take(door: &Arc<Door>, client: IpAddr) -> Option<Self> {
        let mut open = door.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = open.entry(client).or_insert(0);
        if *mine >= door.config.handshakes_per_client_max {
            return None;
        }
        *mine += 1;
        Some(Self { door: Arc::clone(door), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.door.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = open.get_mut(&self.client) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// Whether a plain client may come in.
fn is_permitted(client: IpAddr, networks: &[(IpAddr, u8)]) -> bool {
    if networks.is_empty() {
        return client.is_loopback();
    }
    networks.iter().any(|(network, prefix)| match (client, network) {
        (IpAddr::V4(c), IpAddr::V4(n)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(u32::from(*prefix))).unwrap_or(0);
            c.to_bits() & mask == n.to_bits() & mask
        }
        (IpAddr::V6(c), IpAddr::V6(n)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(u32::from(*prefix))).unwrap_or(0);
            c.to_bits() & mask == n.to_bits() & mask
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_clients_come_from_named_networks_or_loopback() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert!(is_permitted(ip("127.0.0.1"), &[]) && is_permitted(ip("::1"), &[]));
        assert!(!is_permitted(ip("192.0.2.1"), &[]));
        let lan = [(ip("192.0.2.0"), 24), (ip("2001:db8::"), 32)];
        assert!(is_permitted(ip("192.0.2.200"), &lan) && is_permitted(ip("2001:db8:9::1"), &lan));
        assert!(!is_permitted(ip("192.0.3.1"), &lan) && !is_permitted(ip("2001:db9::1"), &lan));
        // Naming networks replaces the default: loopback is not among them.
        assert!(!is_permitted(ip("127.0.0.1"), &lan));
        assert!(is_permitted(ip("8.8.8.8"), &[(ip("0.0.0.0"), 0)]));
        assert!(!is_permitted(ip("::1"), &[(ip("0.0.0.0"), 0)]));
    }
}
