//! The listener towards clients, over loopback with real TLS clients: who gets in, with which certificate, and what
//! one bad client can do to the others (nothing).

#[path = "origin_support/mod.rs"]
mod support;

use epc::{
    intake::{Front, FrontTls, Listed, Listener, ListenerConfig, MinTls, TunnelTo, Unlisted},
    tls::operator::OperatorCert,
};
use rustls::{
    CipherSuite, ClientConfig, ProtocolVersion, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use seams::intake::{Accepted, Arrival, ClientAddr, ClientTls, Intake, OriginalDst};
use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    process::Command,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use support::{Lab, NAMES, connect};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
};

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn front(lab: &Lab, listed: &Listed) -> Arc<FrontTls> {
    Arc::new(FrontTls::new(lab.minter(None), listed, MinTls::Tls12).expect("randomness"))
}

fn ours() -> Listed {
    Listed::Only(NAMES.map(str::to_owned).to_vec())
}

fn implicit(lab: &Lab) -> ListenerConfig {
    let tls = front(lab, &ours());
    ListenerConfig::new(any_port(), Front::Implicit { tls, unlisted: Unlisted::Refuse })
}

async fn tcp(listener: &Listener) -> TcpStream {
    let stream = TcpStream::connect(listener.local_addr()).await.expect("loopback");
    stream.set_nodelay(true).expect("TCP");
    stream
}

/// Connects as `name` and exchanges one octet through the listener.
async fn serve_one(listener: &mut Listener, config: Arc<ClientConfig>, name: &str) -> Accepted {
    let io = tcp(listener).await;
    let (client, accepted) = tokio::join!(connect(config, name, io), listener.accept());
    let (mut client, mut accepted) = (client.expect("verified"), accepted.expect("handed out"));
    accepted.io.write_all(b"*").await.expect("open");
    accepted.io.flush().await.expect("open");
    let mut octet = [0];
    client.read_exact(&mut octet).await.expect("sent");
    assert_eq!(&octet, b"*");
    accepted
}

/// Waits until a counter shows what happened in another task.
async fn until(what: impl Fn() -> bool) {
    tokio::time::timeout(Duration::from_secs(10), async {
        while !what() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it happens");
}

#[tokio::test]
async fn a_client_is_handed_out_with_who_where_and_how() {
    let lab = Lab::new();
    let mut listener = Listener::bind(implicit(&lab)).expect("a free port");
    let io = tcp(&listener).await;
    let from = io.local_addr().expect("connected");
    let (client, accepted) = tokio::join!(connect(lab.client(), "imap.lab.test", io), listener.accept());
    client.expect("verified");
    let accepted = accepted.expect("handed out");
    assert_eq!(accepted.client, ClientAddr(from));
    assert_eq!(accepted.original_dst, OriginalDst(listener.local_addr()));
    assert_eq!(accepted.server_name.as_deref(), Some("imap.lab.test"));
    assert_eq!((accepted.how, accepted.tls), (Arrival::Listener, ClientTls::Implicit));
    until(|| listener.counts().accepted() == 1).await;
}

#[tokio::test]
async fn a_client_that_connects_by_address_gets_a_leaf_with_that_address() {
    let lab = Lab::new();
    let mut listener = Listener::bind(implicit(&lab)).expect("a free port");
    let accepted = serve_one(&mut listener, lab.client(), "127.0.0.1").await;
    assert_eq!(accepted.server_name, None);
}

#[tokio::test]
async fn ipv6_has_a_listener_of_its_own() {
    let lab = Lab::new();
    let config = ListenerConfig { address: SocketAddr::from(([0; 8], 0)), ..implicit(&lab) };
    let mut listener = match Listener::bind(config) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("skipped: this machine has no IPv6: {error}");
            return;
        }
    };
    let port = listener.local_addr().port();
    // [::] takes no IPv4 clients: the port is free there.
    let v4 = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await;
    assert!(v4.is_ok(), "IPv4 of the same port must be free: {v4:?}");
    let Ok(io) = TcpStream::connect(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port))).await else {
        eprintln!("skipped: this machine has no IPv6 loopback address");
        return;
    };
    let (client, accepted) = tokio::join!(connect(lab.client(), "::1", io), listener.accept());
    client.expect("verified");
    assert!(accepted.expect("handed out").client.0.is_ipv6());
}

#[tokio::test]
async fn a_silent_client_blocks_nobody() {
    let lab = Lab::new();
    let mut listener = Listener::bind(implicit(&lab)).expect("a free port");
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(tcp(&listener).await);
    }
    let mut half = tcp(&listener).await;
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.expect("open");
    serve_one(&mut listener, lab.client(), "mail.lab.test").await;
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_closed() {
    let lab = Lab::new();
    let config =
        ListenerConfig { handshake_timeout: Duration::from_millis(30), handshakes_max: 1, ..implicit(&lab) };
    let mut listener = Listener::bind(config).expect("a free port");
    let mut silent = tcp(&listener).await;
    assert_eq!(silent.read(&mut [0]).await.expect("closed in order"), 0);
    assert_eq!(listener.counts().handshake_timed_out(), 1);
    // Its permit, the only one, is free again.
    serve_one(&mut listener, lab.client(), "mail.lab.test").await;
}

#[tokio::test]
async fn one_address_cannot_take_all_handshakes() {
    let lab = Lab::new();
    let config = ListenerConfig { handshakes_per_client_max: 2, ..implicit(&lab) };
    let mut listener = Listener::bind(config).expect("a free port");
    let first = tcp(&listener).await;
    let second = tcp(&listener).await;
    let mut third = tcp(&listener).await;
    assert_eq!(third.read(&mut [0]).await.expect("closed in order"), 0);
    assert_eq!(listener.counts().per_client_refused(), 1);
    drop((first, second));
    until(|| listener.counts().handshake_failed() == 2).await;
    serve_one(&mut listener, lab.client(), "mail.lab.test").await;
}

#[tokio::test]
async fn a_hello_of_one_octet_per_segment_is_understood() {
    let lab = Lab::new();
    let mut listener = Listener::bind(implicit(&lab)).expect("a free port");
    let io = Drip(tcp(&listener).await);
    let (client, accepted) = tokio::join!(connect(lab.client(), "mail.lab.test", io), listener.accept());
    client.expect("verified");
    assert_eq!(accepted.expect("handed out").server_name.as_deref(), Some("mail.lab.test"));
}

#[tokio::test]
async fn tls_1_2_clients_are_served_unless_forbidden() {
    let lab = Lab::new();
    let old = restricted(&lab, |_| true);
    for (min, served) in [(MinTls::Tls12, true), (MinTls::Tls13, false)] {
        let tls = Arc::new(FrontTls::new(lab.minter(None), &ours(), min).expect("randomness"));
        let front = Front::Implicit { tls, unlisted: Unlisted::Refuse };
        let mut listener = Listener::bind(ListenerConfig::new(any_port(), front)).expect("a free port");
        if served {
            serve_one(&mut listener, Arc::clone(&old), "mail.lab.test").await;
        } else {
            let io = tcp(&listener).await;
            let refused = connect(Arc::clone(&old), "mail.lab.test", io).await.expect_err("too old");
            assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
        }
    }
}

#[tokio::test]
async fn an_rsa_only_client_is_served_when_the_operator_gave_a_key() {
    let lab = Lab::new();
    let rsa = lab.dir.path().join("leaf-rsa.key");
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&rsa).arg("2048").output();
    if !made.is_ok_and(|o| o.status.success()) {
        eprintln!("skipped: openssl, which makes the RSA key, is not installed");
        return;
    }
    fs::set_permissions(&rsa, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
    let old = restricted(&lab, |suite| format!("{suite:?}").contains("ECDHE_RSA"));
    for (key, served) in [(Some(rsa.as_path()), true), (None, false)] {
        let tls = Arc::new(FrontTls::new(lab.minter(key), &ours(), MinTls::Tls12).expect("randomness"));
        let front = Front::Implicit { tls, unlisted: Unlisted::Refuse };
        let mut listener = Listener::bind(ListenerConfig::new(any_port(), front)).expect("a free port");
        if served {
            serve_one(&mut listener, Arc::clone(&old), "mail.lab.test").await;
            // The others still get P-256.
            let io = tcp(&listener).await;
            let (client, _) = tokio::join!(connect(lab.client(), "mail.lab.test", io), listener.accept());
            let client = client.expect("verified");
            let leaf = client.get_ref().1.peer_certificates().and_then(<[_]>::first).expect("one").len();
            assert!(leaf < 700, "a P-256 leaf is short, this one has {leaf} octets");
        } else {
            let io = tcp(&listener).await;
            connect(Arc::clone(&old), "mail.lab.test", io).await.expect_err("no suite in common");
        }
    }
}

#[tokio::test]
async fn an_unlisted_name_gets_a_fatal_alert() {
    let lab = Lab::new();
    let mut listener = Listener::bind(implicit(&lab)).expect("a free port");
    let io = tcp(&listener).await;
    let refused = connect(lab.client(), "evil.test", io).await.expect_err("not ours");
    assert!(refused.to_string().contains("AccessDenied"), "{refused}");
    until(|| listener.counts().unlisted_refused() == 1).await;
    serve_one(&mut listener, lab.client(), "mail.lab.test").await;
}

#[tokio::test]
async fn an_unlisted_name_is_tunnelled_to_the_own_server_and_sees_its_certificate() {
    let (lab, server) = (Lab::new(), Lab::new());
    for version in [&TLS12, &TLS13] {
        let own = TcpListener::bind(any_port()).await.expect("loopback");
        let port = own.local_addr().expect("bound").port();
        let config = server.server(&[version]);
        let serving = tokio::spawn(async move {
            let (io, _) = own.accept().await.expect("the tunnel");
            let mut io =
                tokio_rustls::TlsAcceptor::from(config).accept(io).await.expect("a whole ClientHello");
            let mut line = [0; 3];
            io.read_exact(&mut line).await.expect("sent");
            io.write_all(&line).await.expect("open");
            io.shutdown().await.expect("open");
        });
        let to = TunnelTo { host: "127.0.0.1".into(), port, connect_timeout: Duration::from_secs(5) };
        let listed = Listed::Only(vec!["mail.lab.test".into()]);
        let front = Front::Implicit { tls: front(&lab, &listed), unlisted: Unlisted::Tunnel(to) };
        let listener = Listener::bind(ListenerConfig::new(any_port(), front)).expect("a free port");
        // imap.lab.test is not listed here; only the own server's CA vouches for what comes back.
        let io = Drip(tcp(&listener).await);
        let mut client =
            connect(server.client(), "imap.lab.test", io).await.expect("the server's own certificate");
        client.write_all(b"abc").await.expect("open");
        client.flush().await.expect("open");
        let mut echoed = Vec::new();
        client.read_to_end(&mut echoed).await.expect("closed in order");
        assert_eq!(echoed, b"abc");
        serving.await.expect("served");
        assert_eq!((listener.counts().tunnelled(), listener.counts().accepted()), (1, 0));
    }
}

#[tokio::test]
async fn plain_text_on_a_tls_port_gets_an_alert_and_is_counted() {
    let lab = Lab::new();
    let mut listener = Listener::bind(implicit(&lab)).expect("a free port");
    let mut lost = tcp(&listener).await;
    lost.write_all(b"a1 CAPABILITY\r\n").await.expect("open");
    let mut alert = Vec::new();
    lost.read_to_end(&mut alert).await.expect("closed in order");
    // A TLS record of type 21 with a fatal (2) alert.
    assert_eq!((alert.first(), alert.get(5)), (Some(&21), Some(&2)), "{alert:?}");
    until(|| listener.counts().not_tls() == 1).await;
    serve_one(&mut listener, lab.client(), "mail.lab.test").await;
}

#[tokio::test]
async fn starttls_upgrades_the_clients_own_stream() {
    let lab = Lab::new();
    let config = ListenerConfig::new(any_port(), Front::StartTls(front(&lab, &ours())));
    let mut listener = Listener::bind(config).expect("a free port");
    let upgrade = listener.upgrade().expect("a STARTTLS front");
    for (name, good) in [("mail.lab.test", true), ("evil.test", false)] {
        let mut io = tcp(&listener).await;
        let mut accepted = listener.accept().await.expect("handed out at once");
        assert_eq!((accepted.tls, accepted.server_name), (ClientTls::StartTls, None));
        accepted.io.write_all(b"a1 OK\r\n").await.expect("open");
        io.read_exact(&mut [0; 7]).await.expect("plain so far");
        let (client, served) = tokio::join!(connect(lab.client(), name, io), upgrade.upgrade(accepted.io));
        assert_eq!(client.is_ok(), good, "{name}");
        if good {
            let (mut client, mut served) = (client.expect("verified"), served.expect("verified"));
            served.write_all(b"*").await.expect("open");
            served.flush().await.expect("open");
            client.read_exact(&mut [0]).await.expect("sent");
        } else {
            assert!(served.err().expect("refused").to_string().contains("not ours"));
        }
    }
    assert!(Listener::bind(implicit(&lab)).expect("a free port").upgrade().is_none());
}

#[tokio::test]
async fn a_plain_listener_serves_named_networks_only() {
    let mut open =
        Listener::bind(ListenerConfig::new(any_port(), Front::Plain(vec![]))).expect("a free port");
    let _client = tcp(&open).await;
    assert_eq!(open.accept().await.expect("loopback").tls, ClientTls::Plain);
    let elsewhere = vec![(std::net::IpAddr::from([192, 0, 2, 0]), 24)];
    let closed =
        Listener::bind(ListenerConfig::new(any_port(), Front::Plain(elsewhere))).expect("a free port");
    let mut client = tcp(&closed).await;
    assert_eq!(client.read(&mut [0]).await.expect("closed in order"), 0);
    assert_eq!(closed.counts().plain_refused(), 1);
}

#[tokio::test]
async fn a_reload_shows_the_new_certificate_and_keeps_running_sessions() {
    let lab = Lab::new();
    let (chain, key) = (lab.dir.path().join("mail.pem"), lab.dir.path().join("mail.key"));
    install(&chain, &key, 30);
    let cert = Arc::new(OperatorCert::open(chain.clone(), key.clone()).expect("good files"));
    let tls =
        Arc::new(FrontTls::new(Arc::clone(&cert) as _, &Listed::Any, MinTls::Tls12).expect("randomness"));
    let front = Front::Implicit { tls, unlisted: Unlisted::Refuse };
    let mut listener = Listener::bind(ListenerConfig::new(any_port(), front)).expect("a free port");

    let before = trusting(&chain);
    let io = tcp(&listener).await;
    let (client, accepted) =
        tokio::join!(connect(Arc::clone(&before), "mail.lab.test", io), listener.accept());
    let (mut client, mut session) = (client.expect("the first certificate"), accepted.expect("handed out"));

    // Wrong new files: a key of another certificate, then no certificate at all, then an expired one.
    let good_chain = fs::read(&chain).expect("written");
    let good_key = fs::read(&key).expect("written");
    install(&lab.dir.path().join("other.pem"), &key, 30);
    assert!(cert.reload().expect_err("another key").to_string().contains("is not the key of"));
    fs::write(&key, &good_key).expect("ours");
    fs::write(&chain, b"half a fi").expect("ours");
    assert!(cert.reload().expect_err("no PEM").to_string().contains("no certificate"));
    install(&chain, &key, -1);
    assert!(cert.reload().expect_err("expired").to_string().contains("expired"));
    fs::write(&chain, &good_chain).expect("ours");
    fs::write(&key, &good_key).expect("ours");
    serve_one(&mut listener, before, "mail.lab.test").await;

    install(&chain, &key, 60);
    let old_end = cert.expires();
    cert.reload().expect("good files");
    assert!(cert.expires() > old_end);
    serve_one(&mut listener, trusting(&chain), "mail.lab.test").await;

    session.io.write_all(b"x").await.expect("still open");
    session.io.flush().await.expect("still open");
    client.read_exact(&mut [0]).await.expect("the first session goes on");
}

#[tokio::test]
async fn names_can_be_exchanged_while_it_listens() {
    let lab = Lab::new();
    let tls = front(&lab, &Listed::Only(vec!["mail.lab.test".into()]));
    let front = Front::Implicit { tls: Arc::clone(&tls), unlisted: Unlisted::Refuse };
    let mut listener = Listener::bind(ListenerConfig::new(any_port(), front)).expect("a free port");
    let io = tcp(&listener).await;
    connect(lab.client(), "imap.lab.test", io).await.expect_err("not yet listed");
    tls.replace(lab.minter(None), &ours()).expect("randomness");
    serve_one(&mut listener, lab.client(), "imap.lab.test").await;
}

#[tokio::test]
async fn dropping_the_listener_closes_the_address_and_keeps_the_clients() {
    let lab = Lab::new();
    let mut listener = Listener::bind(implicit(&lab)).expect("a free port");
    let address = listener.local_addr();
    let io = tcp(&listener).await;
    let (client, accepted) = tokio::join!(connect(lab.client(), "mail.lab.test", io), listener.accept());
    let (mut client, mut accepted) = (client.expect("verified"), accepted.expect("handed out"));
    drop(listener);
    accepted.io.write_all(b"*").await.expect("open");
    accepted.io.flush().await.expect("open");
    client.read_exact(&mut [0]).await.expect("sent");
    tokio::time::timeout(Duration::from_secs(10), async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the address is closed");
}

#[tokio::test]
async fn openssl_accepts_a_minted_leaf_when_it_is_strict() {
    let lab = Lab::new();
    let mut listener = Listener::bind(implicit(&lab)).expect("a free port");
    for (name, flag) in [("mail.lab.test", "-verify_hostname"), ("127.0.0.1", "-verify_ip")] {
        let io = tcp(&listener).await;
        let (client, _) = tokio::join!(connect(lab.client(), name, io), listener.accept());
        let client = client.expect("verified");
        let sent = client.get_ref().1.peer_certificates().expect("a chain").to_vec();
        assert_eq!(sent.len(), 2, "leaf and issuing CA");
        let leaf = lab.dir.path().join("leaf.pem");
        fs::write(&leaf, pem(&sent[0])).expect("ours");
        let mut openssl = Command::new("openssl");
        openssl.args(["verify", "-x509_strict", "-purpose", "sslserver", flag, name, "-CAfile"]);
        openssl.arg(&lab.ca.root_cert).arg("-untrusted").arg(&lab.ca.issuing_cert).arg(&leaf);
        match openssl.output() {
            Ok(said) => assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr)),
            Err(error) => {
                eprintln!("skipped: openssl cannot be run: {error}");
                return;
            }
        }
    }
}

/// Writes one octet at a time.
struct Drip(TcpStream);

impl AsyncRead for Drip {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Drip {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let one = octets.get(..1).unwrap_or(octets);
        Pin::new(&mut self.0).poll_write(cx, one)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A TLS 1.2 client that offers only some suites.
fn restricted(lab: &Lab, keep: impl Fn(CipherSuite) -> bool) -> Arc<ClientConfig> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|s| s.version().version == ProtocolVersion::TLSv1_2 && keep(s.suite()));
    let config = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&TLS12]);
    let config = config.expect("suites of TLS 1.2").with_root_certificates(roots(&lab.ca.root_cert));
    Arc::new(config.with_no_client_auth())
}

fn roots(path: &Path) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(path).expect("PEM")).expect("a certificate");
    roots
}

/// A client that trusts exactly the self-signed certificate of this file.
fn trusting(path: &Path) -> Arc<ClientConfig> {
    let config =
        ClientConfig::builder_with_provider(epc::tls::provider()).with_safe_default_protocol_versions();
    Arc::new(config.expect("known").with_root_certificates(roots(path)).with_no_client_auth())
}

/// An operator's certificate for `mail.lab.test`, good for so many days from now.
fn install(chain: &Path, key: &Path, days: i64) {
    let own = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["mail.lab.test".to_owned()]).expect("a name");
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(90);
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
    fs::write(chain, params.self_signed(&own).expect("signed").pem()).expect("ours");
    fs::write(key, own.serialize_pem()).expect("ours");
    fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours");
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    let lines: Vec<_> = body.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
