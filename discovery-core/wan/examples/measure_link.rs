//! What a link costs on loopback, beside a plain TLS connection in the same run: CPU seconds a gigabyte, both ends
//! together, and the time from opening a stream to its first octet back.
//!
//!     cargo run --release -p wan --example measure_link [ROUNDS]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "a measurement")]

#[allow(dead_code, reason = "what it does not use, the tests do")]
#[path = "../tests/link/support.rs"]
mod support;

use discovery_core::{id::NodeId, seam::sink::Nowhere, value::Class};
use rustls::{RootCertStore, ServerConfig, pki_types::ServerName, server::WebPkiClientVerifier};
use seams::{AsyncIo, BoxFuture};
use std::{
    env, fs,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};
use support::{Ca, id, listen, open, settings};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use wan::{AllGranted, Links, OpenedStream, Peer, PeerSpec, StreamOpener};
use wan_core::{OpenFrame, Reason};

const GIGABYTE: usize = 1_000_000_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let rounds = env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(3);
    let ca = Ca::new();
    let opener: Arc<dyn StreamOpener> = Arc::new(Opener);
    let links = |settings: &wan::Settings| {
        let (notices, candidates) = (Arc::new(Nowhere), Arc::new(Nowhere));
        Links::new(settings, opener.clone(), Arc::new(AllGranted), notices, candidates, None).unwrap()
    };
    let b = links(&settings(&ca, ca.identity(&["b"])));
    let at = listen(&b).await;
    let mut own = settings(&ca, ca.identity(&["a"]));
    own.peers.known.insert(id("b"), PeerSpec { addresses: vec![at], ..PeerSpec::default() });
    let (a, peer) = (links(&own), Peer::Node(id("b")));
    for round in 1..=rounds {
        let (cpu, wall) = (cpu(), Instant::now());
        plain(&ca).await;
        let (plain_cpu, plain_wall) = (self::cpu() - cpu, wall.elapsed());
        let (cpu, wall) = (self::cpu(), Instant::now());
        let mut stream = a.open(&peer, open(([127, 0, 0, 1], HOLE).into(), Class::Bulk)).await.unwrap();
        push(&mut stream).await;
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        let (link_cpu, link_wall) = (self::cpu() - cpu, wall.elapsed());
        println!(
            "round {round}: plain {plain_cpu:.2} CPU-s/GB in {:.2} s, link {link_cpu:.2} in {:.2} s, ratio {:.2}",
            plain_wall.as_secs_f64(),
            link_wall.as_secs_f64(),
            link_cpu / plain_cpu
        );
    }
    let mut times = Vec::new();
    for _ in 0..2000 {
        let begun = Instant::now();
        let mut stream =
            a.open(&peer, open(([127, 0, 0, 1], ECHO).into(), Class::Interactive)).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_u8().await.unwrap();
        times.push(begun.elapsed());
    }
    times.sort();
    println!("open and first octet back, of 2000: p50 {:?}, p95 {:?}", times[1000], times[1900]);
}

async fn push(io: &mut (impl AsyncWrite + Unpin)) {
    let piece = vec![7; 64 * 1024];
    let mut left = GIGABYTE;
    while left > 0 {
        let n = left.min(piece.len());
        io.write_all(&piece[..n]).await.unwrap();
        left -= n;
    }
    io.shutdown().await.unwrap();
}

/// The same octets over one mutually authenticated connection, and nothing else.
async fn plain(ca: &Ca) {
    let mut roots = RootCertStore::empty();
    roots.add(ca.authority("").roots[0].clone()).unwrap();
    let roots = Arc::new(roots);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let identity = ca.identity(&["plain"]);
    let (leaf, key) = ca.named("localhost");
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf], key)
        .unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain, identity.key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let reading = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut tls = TlsAcceptor::from(Arc::new(server)).accept(tcp).await.unwrap();
        let mut buffer = vec![0; 64 * 1024];
        let mut heard = 0;
        while let Ok(n @ 1..) = tls.read(&mut buffer).await {
            heard += n;
        }
        assert_eq!(heard, GIGABYTE);
    });
    let tcp = TcpStream::connect(at).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = TlsConnector::from(Arc::new(client)).connect(name, tcp).await.unwrap();
    push(&mut tls).await;
    reading.await.unwrap();
}

fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

const HOLE: u16 = 1;
const ECHO: u16 = 2;

/// Servers without sockets: one hears and forgets, one says what it hears.
struct Opener;

impl StreamOpener for Opener {
    fn open(&self, _: NodeId, open: OpenFrame) -> BoxFuture<'_, Result<OpenedStream, Reason>> {
        Box::pin(async move {
            let io: Box<dyn AsyncIo> = if open.flow.server.port() == HOLE {
                Box::new(seams::Stream::bare(Hole::default()))
            } else {
                let (near, mut far) = tokio::io::duplex(4096);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while let Ok(n @ 1..) = far.read(&mut buffer).await {
                        far.write_all(&buffer[..n]).await.unwrap();
                    }
                });
                Box::new(near)
            };
            Ok(OpenedStream { io, info: "".into() })
        })
    }
}

#[derive(Default)]
struct Hole {
    ended: bool,
    reader: Option<Waker>,
}

impl AsyncRead for Hole {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Hole {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.ended = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }
}
