//! Nodes on loopback, certificates from nowhere, a relay that can be stopped.

use discovery_core::{flow::Flow, id::NodeId, probe::KeyHint, seam::sink::Nowhere, value::Class};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use seams::{BoxFuture, Stream};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{Instant, sleep},
};
use wan::{
    AllGranted, Authority, Grants, Identity, Links, OpenedStream, Peer, PeerSpec, Presented, Settings,
    StreamOpener, admit::Peers, key_hint, splice,
};
use wan_core::{Config, Kind, OpenFrame, Reason};

/// An authority and its key.
pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn authority(&self, name: &str) -> Authority {
        Authority { name: name.to_owned(), roots: vec![self.0.der().clone()], prefixes: None }
    }

    pub(crate) fn identity(&self, names: &[&str]) -> Identity {
        let mut params = CertificateParams::default();
        let uri = |name: &&str| SanType::URI(format!("waypost://node/{name}").try_into().unwrap());
        params.subject_alt_names = names.iter().map(uri).collect();
        let key = KeyPair::generate().unwrap();
        let leaf: CertificateDer<'static> = params.signed_by(&key, &self.0).unwrap().into();
        Identity {
            chain: vec![leaf],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        }
    }
}

impl Ca {
    /// A leaf for a host name, as an ordinary server has one.
    pub(crate) fn named(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap().into();
        (leaf, PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))
    }
}

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn hint(identity: &Identity) -> KeyHint {
    key_hint(&Presented::of(&identity.chain).unwrap().spki)
}

pub(crate) fn settings(ca: &Ca, identity: Identity) -> Settings {
    Settings {
        identity,
        authorities: vec![ca.authority("own")],
        peers: Peers::default(),
        sockets: None,
        link: Config::default(),
        patience: Duration::from_secs(4),
        loopback: true,
    }
}

pub(crate) fn links(settings: &Settings) -> Links {
    granted(settings, Arc::new(AllGranted))
}

pub(crate) fn granted(settings: &Settings, grants: Arc<dyn Grants>) -> Links {
    Links::new(settings, Arc::new(Dialler), grants, Arc::new(Nowhere), Arc::new(Nowhere), None).unwrap()
}

/// Listens; where.
pub(crate) async fn listen(links: &Links) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let links = links.clone();
    tokio::spawn(async move { links.serve(listener).await });
    at
}

/// Two nodes of one authority; the first knows where the second listens.
pub(crate) struct Two {
    pub(crate) a: Links,
    pub(crate) b: Links,
    pub(crate) to_b: Peer,
}

impl Two {
    pub(crate) async fn new() -> Self {
        Self::through(|at| async move { at }).await
    }

    /// The way to the second node is what `road` makes of its address.
    pub(crate) async fn through<F: Future<Output = SocketAddr>>(road: impl FnOnce(SocketAddr) -> F) -> Self {
        let ca = Ca::new();
        let b = links(&settings(&ca, ca.identity(&["b"])));
        let at = road(listen(&b).await).await;
        let mut own = settings(&ca, ca.identity(&["a"]));
        own.peers.known.insert(id("b"), PeerSpec { addresses: vec![at], ..PeerSpec::default() });
        Self { a: links(&own), b, to_b: Peer::Node(id("b")) }
    }

    pub(crate) async fn up(&self) {
        until("all lanes are up", || self.a.status().first().is_some_and(|link| link.lanes.len() == 3)).await;
    }
}

/// Connects to the flow's server.
pub(crate) struct Dialler;

impl StreamOpener for Dialler {
    fn open(&self, _: NodeId, open: OpenFrame) -> BoxFuture<'_, Result<OpenedStream, Reason>> {
        Box::pin(async move {
            let tcp = TcpStream::connect(open.flow.server).await.map_err(|_| Reason::ServerRefused)?;
            Ok(OpenedStream { io: Box::new(Stream::bare(tcp)), info: "there".into() })
        })
    }
}

pub(crate) fn open(server: SocketAddr, class: Class) -> OpenFrame {
    let flow = Flow { client: ([10, 9, 8, 7], 6543).into(), server };
    OpenFrame { flow, class, kind: Kind::Carry, spoof: false, server: None }
}

/// A server that says what it hears, and ends when it has heard the end.
pub(crate) async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tcp.split();
                tokio::io::copy(&mut reader, &mut writer).await?;
                writer.shutdown().await
            });
        }
    });
    at
}

/// A server that answers one octet and then holds the connection, which costs it nothing but the socket.
pub(crate) async fn holding() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut tcp, _)) = listener.accept().await {
            let octet = tcp.read_u8().await?;
            tcp.write_u8(octet).await?;
            held.push(tcp);
        }
        Ok::<_, std::io::Error>(())
    });
    at
}

/// A server that hears everything, and then says how much that was and its sum.
pub(crate) async fn summing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                tcp.read_to_end(&mut all).await?;
                tcp.write_all(&summary(&all)).await?;
                tcp.shutdown().await
            });
        }
    });
    at
}

pub(crate) fn summary(octets: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, octets).as_ref().to_vec()
}

pub(crate) fn pattern(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32).to_le_bytes()
    };
    let mut octets: Vec<u8> = (0..n.div_ceil(4)).flat_map(|_| next()[..4].to_vec()).collect();
    octets.truncate(n);
    octets
}

/// Waits for what must come, ten seconds at most.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}: not within ten seconds");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The client's side as the node uses it: a socket and a stream, spliced.
pub(crate) async fn front(two: &Two, server: SocketAddr, class: Class) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (links, peer) = (two.a.clone(), two.to_b.clone());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (links, peer) = (links.clone(), peer.clone());
            tokio::spawn(async move {
                let stream = links.open(&peer, open(server, class)).await.unwrap();
                splice(stream, &mut Stream::bare(tcp)).await
            });
        }
    });
    at
}

/// A road that can be made silent, and broken.
#[derive(Clone)]
pub(crate) struct Road {
    silent: Arc<AtomicBool>,
    changed: Arc<Notify>,
    broken: Arc<Notify>,
}

impl Road {
    pub(crate) fn new() -> Self {
        Self { silent: Arc::default(), changed: Arc::default(), broken: Arc::default() }
    }

    /// Nothing goes through any more, and nobody is told: neither octets nor new connections.
    pub(crate) fn silence(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Every connection ends at once.
    pub(crate) fn break_all(&self) {
        self.broken.notify_waiters();
    }

    async fn open(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if !self.silent.load(Ordering::SeqCst) {
                return;
            }
            changed.await;
        }
    }

    pub(crate) async fn to(&self, at: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap();
        let road = self.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let road = road.clone();
                tokio::spawn(async move {
                    let broken = road.broken.clone();
                    tokio::select! {
                        () = broken.notified() => {}
                        () = road.carry(near, at) => {}
                    }
                });
            }
        });
        own
    }

    async fn carry(&self, near: TcpStream, at: SocketAddr) {
        self.open().await;
        let Ok(far) = TcpStream::connect(at).await else { return };
        let (mut near, mut far) = (near.into_split(), far.into_split());
        tokio::join!(self.one_way(&mut near.0, &mut far.1), self.one_way(&mut far.0, &mut near.1));
    }

    async fn one_way(
        &self,
        from: &mut tokio::net::tcp::OwnedReadHalf,
        to: &mut tokio::net::tcp::OwnedWriteHalf,
    ) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            self.open().await;
            // Some 10 MB/s: octets are under way when it breaks.
            sleep(Duration::from_millis(1)).await;
            if to.write_all(&buffer[..n]).await.is_err() {
                break;
            }
        }
        drop(to.shutdown().await);
    }
}

/// A road to `at` on which every octet takes so long, each way.
pub(crate) async fn far(at: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let far = TcpStream::connect(at).await?;
                let (near, far) = (near.into_split(), far.into_split());
                tokio::try_join!(late(near.0, far.1, delay), late(far.0, near.1, delay))
            });
        }
    });
    own
}

async fn late(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Duration,
) -> std::io::Result<()> {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let reading = async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = from.read(&mut buffer).await?;
            let sent = sender.send((Instant::now() + delay, buffer[..n].to_vec()));
            if n == 0 || sent.is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    let writing = async move {
        while let Some((due, octets)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&octets).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing).map(|_| ())
}
