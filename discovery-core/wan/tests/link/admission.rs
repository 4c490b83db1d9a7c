use crate::support::{Ca, Dialler, Two, echo, granted, hint, id, links, listen, open, settings, until};
use discovery_core::{id::NodeId, probe::KeyHint, rule::Prefix, value::Class};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;
use wan::{AllGranted, Grants, Identity, Links, Peer, PeerSpec, Presented};
use wan_core::{OpenFrame, Reason};

/// What comes of connecting to `b` with what a probe would have told.
async fn meet(a: &Links, at: SocketAddr, b: &Identity) -> Result<NodeId, Reason> {
    a.connect(&Peer::At(at, hint(b))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_one_authority_pair_without_configuration() {
    let (ca, server) = (Ca::new(), echo().await);
    let identity = ca.identity(&["b"]);
    let b = links(&settings(&ca, identity.clone()));
    let at = listen(&b).await;
    let a = links(&settings(&ca, ca.identity(&["a"])));
    let peer = Peer::At(at, hint(&identity));
    let (first, second) = tokio::join!(a.connect(&peer), a.connect(&peer));
    assert_eq!((first, second), (Ok(id("b")), Ok(id("b"))));
    let mut stream = a.open(&peer, open(server, Class::Bulk)).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).await.unwrap();
    assert!(a.is_up(&peer) && a.is_up(&Peer::Node(id("b"))) && b.is_up(&Peer::Node(id("a"))));
    assert_eq!(b.status().len(), 1);
    // The side that was dialled opens streams as well.
    let back = b.open(&Peer::Node(id("a")), open(server, Class::Interactive)).await.unwrap();
    assert_eq!(back.opened().await.unwrap(), "there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_impostors_are_told_why_not() {
    let (ca, rogue) = (Ca::new(), Ca::new());
    let identity = ca.identity(&["b"]);
    let mut own = settings(&ca, identity.clone());
    own.peers.revoked.push(id("thief"));
    let b = links(&own);
    let at = listen(&b).await;
    let with = |ca: &Ca, names: &[&str]| links(&settings(ca, ca.identity(names)));
    assert_eq!(meet(&with(&rogue, &["a"]), at, &identity).await, Err(Reason::Tls), "a rogue authority");
    let mut trusting = settings(&ca, rogue.identity(&["a"]));
    trusting.authorities.push(rogue.authority("rogue"));
    assert_eq!(meet(&links(&trusting), at, &identity).await, Err(Reason::Tls), "b does not trust it");
    assert_eq!(meet(&with(&ca, &["thief"]), at, &identity).await, Err(Reason::Revoked));
    assert_eq!(meet(&with(&ca, &["b"]), at, &identity).await, Err(Reason::Itself));
    assert_eq!(
        meet(&with(&ca, &["a"]), at, &ca.identity(&["b"])).await,
        Err(Reason::WrongNode),
        "another key"
    );
    assert_eq!(
        meet(&links(&settings(&ca, ca.identity(&["a"]))), at, &identity).await,
        Ok(id("b")),
        "the control"
    );

    let mut pinned = settings(&ca, ca.identity(&["a"]));
    let pin = Presented::of(&ca.identity(&["b"]).chain).unwrap().spki;
    let spec = PeerSpec { addresses: vec![at], pin: Some(pin), ..PeerSpec::default() };
    pinned.peers.known.insert(id("b"), spec);
    pinned.patience = Duration::from_millis(500);
    let a = links(&pinned);
    let refused = a.open(&Peer::Node(id("b")), open(at, Class::Bulk)).await;
    assert_eq!(refused.err(), Some(Reason::WrongPin));
    assert_eq!(a.status()[0].last, Some(Reason::WrongPin), "and the status says so");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_must_name_one_node() {
    let ca = Ca::new();
    for names in [&[][..], &["a", "b"]] {
        assert_eq!(Presented::of(&ca.identity(names).chain), Err(Reason::NoIdentity));
    }
    assert_eq!(Presented::of(&[]), Err(Reason::NoIdentity));
    assert_eq!(Presented::of(&ca.identity(&["a"]).chain).unwrap().node, id("a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_revoked_is_cut_off_at_once() {
    let ca = Ca::new();
    let own = settings(&ca, ca.identity(&["b"]));
    let b = links(&own);
    let identity = own.identity.clone();
    let at = listen(&b).await;
    let server = echo().await;
    let a = links(&settings(&ca, ca.identity(&["a"])));
    let peer = Peer::At(at, hint(&identity));
    let mut stream = a.open(&peer, open(server, Class::Interactive)).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_u8().await.unwrap();
    let mut revoking = own.clone();
    revoking.peers.revoked.push(id("a"));
    b.update(&revoking).unwrap();
    assert!(stream.read_u8().await.is_err());
    assert_eq!(stream.reason(), Some(Reason::Revoked));
    until("its link is gone", || !a.is_up(&peer)).await;
    assert_eq!(a.connect(&peer).await, Err(Reason::Revoked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_authority_serves_its_prefixes_only() {
    let (ca, other, server) = (Ca::new(), Ca::new(), echo().await);
    let mut own = settings(&ca, ca.identity(&["a"]));
    let mut second = other.authority("partner");
    second.prefixes = Some(vec![Prefix::new("127.0.0.0".parse().unwrap(), 8).unwrap()]);
    own.authorities.push(second);
    let mut theirs = settings(&other, other.identity(&["b"]));
    theirs.authorities.push(ca.authority("customer"));
    let b = links(&theirs);
    let at = listen(&b).await;
    let a = links(&own);
    let peer = Peer::At(at, hint(&theirs.identity));
    let stream = a.open(&peer, open(server, Class::Interactive)).await.unwrap();
    assert_eq!(stream.opened().await.unwrap(), "there");
    let outside = a.open(&peer, open(([10, 0, 0, 1], 143).into(), Class::Interactive)).await;
    assert_eq!(outside.err(), Some(Reason::NotGranted));
    assert_eq!(a.status()[0].authority.as_deref(), Some("partner"));
    assert!(a.is_up(&peer) && !a.is_sure(&peer), "what it offers is to be asked for first");
    // What it asks of us is held to the same.
    let asked =
        b.open(&Peer::Node(id("a")), open(([10, 0, 0, 1], 143).into(), Class::Interactive)).await.unwrap();
    assert_eq!(asked.opened().await, Err(Reason::NotGranted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grants_are_asked_before_anything_is_opened() {
    struct Port(u16);
    impl Grants for Port {
        fn may_open(&self, peer: &NodeId, open: &OpenFrame) -> Result<(), Reason> {
            let granted = peer.as_str() == "a" && open.flow.server.port() == self.0;
            if granted { Ok(()) } else { Err(Reason::NotGranted) }
        }
    }
    let (ca, server) = (Ca::new(), echo().await);
    let identity = ca.identity(&["b"]);
    let b = granted(&settings(&ca, identity.clone()), Arc::new(Port(server.port())));
    let at = listen(&b).await;
    let a = links(&settings(&ca, ca.identity(&["a"])));
    let peer = Peer::At(at, hint(&identity));
    let granted = a.open(&peer, open(server, Class::Interactive)).await.unwrap();
    assert_eq!(granted.opened().await.unwrap(), "there");
    let refused = a.open(&peer, open(at, Class::Interactive)).await.unwrap();
    assert_eq!(refused.opened().await, Err(Reason::NotGranted));
}

/// Somebody with a good certificate who says what he likes.
async fn speak(ca: &Ca, at: SocketAddr, octets: &[u8]) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.authority("").roots[0].clone()).unwrap();
    let identity = ca.identity(&["speaker"]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .unwrap();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(identity.chain, identity.key)
        .unwrap();
    config.alpn_protocols = vec![b"waypost-link".to_vec()];
    let anyone = Arc::new(Anyone(config.crypto_provider().clone()));
    config.dangerous().set_certificate_verifier(anyone);
    let tcp = TcpStream::connect(at).await.unwrap();
    let name = ServerName::try_from("node").unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    tls.write_all(octets).await.unwrap();
    let mut heard = Vec::new();
    tls.read_to_end(&mut heard).await.unwrap();
    heard
}

#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_is_refused_with_its_name() {
    let ca = Ca::new();
    let at = listen(&links(&settings(&ca, ca.identity(&["b"])))).await;
    let goodbye = |reason: Reason| vec![2, 0x0d, reason.code()];
    assert_eq!(speak(&ca, at, b"\x07\x01WPLK\x00\x09").await, goodbye(Reason::OlderVersion));
    assert_eq!(speak(&ca, at, b"\x09\x01WPLK\x02\x00??").await, goodbye(Reason::NewerVersion));
    assert_eq!(speak(&ca, at, b"\x00").await, goodbye(Reason::Violation));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_breaks_the_rules_loses_his_link_and_nobody_else_does() {
    let ca = Ca::new();
    let identity = ca.identity(&["b"]);
    let b = links(&settings(&ca, identity.clone()));
    let at = listen(&b).await;
    let a = links(&settings(&ca, ca.identity(&["a"])));
    let peer = Peer::At(at, hint(&identity));
    let mut stream = a.open(&peer, open(echo().await, Class::Interactive)).await.unwrap();
    // HELLO for the first lane, and data for a stream that was never opened.
    let hello = b"\x10\x01WPLK\x01\x00\x01\0\0\0\0\0\0\0\x05";
    let broken = [&hello[..], b"\x05\x02\x00\x01\x00\x00", b"\x06\x06\x08\x00\x00\x00x"].concat();
    let heard = speak(&ca, at, &broken).await;
    assert!(heard.ends_with(&[2, 0x0d, Reason::Violation.code()]), "{}", heard.escape_ascii());
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_three_connections_cannot_be_had_one_carries_all() {
    let (ca, server) = (Ca::new(), echo().await);
    let b = links(&settings(&ca, ca.identity(&["b"])));
    let fallback = listen(&b).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut own = settings(&ca, ca.identity(&["a"]));
    let spec = PeerSpec { addresses: vec![closed], fallback: Some(fallback), pin: None };
    own.peers.known.insert(id("b"), spec);
    let a = links(&own);
    for class in [Class::Interactive, Class::Bulk, Class::Background] {
        let mut stream = a.open(&Peer::Node(id("b")), open(server, class)).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }
    let lanes = a.status()[0].lanes.clone();
    assert!(lanes.len() == 3 && lanes.iter().all(|lane| lane.shared && lane.remote == fallback), "{lanes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_says_how_it_is() {
    let two = Two::new().await;
    two.up().await;
    until("the round trips are known", || two.a.status()[0].lanes.iter().all(|lane| lane.rtt.is_some()))
        .await;
    let status = two.a.status();
    assert!(status[0].lanes.iter().all(|lane| lane.congestion == "bbr" && !lane.shared), "{status:?}");
    assert_eq!((status[0].node.clone(), status[0].authority.as_deref()), (id("b"), Some("own")));
    let bad = KeyHint([0; 8]);
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(two.b.connect(&Peer::At(nowhere, bad)).await, Err(Reason::PeerRefused));
    assert_eq!(
        two.b.open(&Peer::Node(id("c")), open(nowhere, Class::Bulk)).await.err(),
        Some(Reason::NoLink)
    );
    // What cannot be built is refused whole.
    let (ca, _) = (Ca::new(), Dialler);
    let mut nobody = settings(&ca, ca.identity(&[]));
    assert!(two.a.update(&nobody).is_err());
    nobody.identity = ca.identity(&["a"]);
    nobody.authorities.clear();
    assert!(two.a.update(&nobody).is_err() && two.a.is_up(&two.to_b));
    let _ = AllGranted;
}
