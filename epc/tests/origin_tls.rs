//! The connector towards mail servers, over loopback against scripted servers: what it accepts, and above all what
//! it refuses.

mod origin_support;

use discovery_core::{id::ServerId, value::Class};
use epc::{
    origin::{DirectOrigins, OriginServer, OriginSetupError, OriginTls},
    tls::{roots::Trust, spki_sha256},
};
use origin_support::{Lab, connect};
use rustls::{
    HandshakeKind, ServerConfig,
    version::{TLS12, TLS13},
};
use seams::{
    intake::ClientAddr,
    origin::{OpenError, OriginConnector, OriginRequest, OriginStream, SourcePolicy, VerifiedBy},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

const GREETING: &[u8] = b"* OK [CAPABILITY IMAP4rev1 STARTTLS] Lab ready.\r\n";
const PLAIN_GREETING: &[u8] = b"* OK Lab ready.\r\n";

/// What a scripted server does with its one client.
#[derive(Clone)]
struct Script {
    /// Sent first, in plain text.
    plain: &'static [u8],
    /// Sent when a line has come in plain text; empty: no line is waited for.
    answer: &'static [u8],
    tls: Option<Arc<ServerConfig>>,
    /// Sent inside TLS.
    inside: &'static [u8],
}

/// Starts a server for `clients` clients; it echoes one octet after its script. Returns what the client said in
/// plain text and how each handshake went.
async fn start(
    script: Script,
    clients: usize,
) -> (SocketAddr, JoinHandle<(Vec<u8>, Vec<Option<HandshakeKind>>)>) {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = socket.local_addr().expect("bound");
    let task = tokio::spawn(async move {
        let (mut heard, mut kinds) = (Vec::new(), Vec::new());
        for _ in 0..clients {
            let (mut io, _) = socket.accept().await.expect("a client");
            io.write_all(script.plain).await.expect("open");
            if !script.answer.is_empty() {
                let mut octet = [0];
                while io.read(&mut octet).await.is_ok_and(|n| n == 1) {
                    heard.extend_from_slice(&octet);
                    if octet == *b"\n" {
                        break;
                    }
                }
                io.write_all(script.answer).await.expect("open");
            }
            let Some(config) = script.tls.clone() else {
                // Whoever gives up closes first; a reset would hide what was said.
                let _ended = io.read_to_end(&mut heard).await;
                continue;
            };
            let Ok(mut io) = TlsAcceptor::from(config).accept(io).await else { continue };
            kinds.push(io.get_ref().1.handshake_kind());
            io.write_all(script.inside).await.expect("open");
            let mut octet = [0];
            if io.read(&mut octet).await.is_ok_and(|n| n == 1) {
                let _gone = io.write_all(&octet).await;
            }
            let _ended = io.shutdown().await;
        }
        (heard, kinds)
    });
    (address, task)
}

fn server(address: SocketAddr, tls: OriginTls, trust: Trust) -> OriginServer {
    let id = ServerId::new("mail.lab.test").expect("a name");
    OriginServer {
        addresses: vec![address],
        tls,
        trust,
        ..OriginServer::new(id, "mail.lab.test", address.port())
    }
}

fn request() -> OriginRequest {
    OriginRequest {
        server: ServerId::new("mail.lab.test").expect("a name"),
        addr: None,
        client: ClientAddr(SocketAddr::from(([127, 0, 0, 1], 4000))),
        source: SourcePolicy::Own,
        purpose: Class::Interactive,
        patience: Duration::from_secs(20),
    }
}

async fn open(server: OriginServer) -> Result<OriginStream, OpenError> {
    DirectOrigins::new([server]).expect("usable").open(request()).await
}

async fn echoes(stream: &mut OriginStream) {
    stream.io.write_all(b"x").await.expect("open");
    stream.io.flush().await.expect("open");
    let mut octet = [0];
    stream.io.read_exact(&mut octet).await.expect("echoed");
    assert_eq!(&octet, b"x");
}

fn implicit(lab: &Lab, inside: &'static [u8]) -> Script {
    Script { plain: b"", answer: b"", tls: Some(lab.server(&[&TLS13, &TLS12])), inside }
}

#[tokio::test]
async fn a_verified_server_is_handed_out_with_its_greeting_and_key() {
    let lab = Lab::new();
    for version in [&TLS12, &TLS13] {
        let script = Script { tls: Some(lab.server(&[version])), ..implicit(&lab, GREETING) };
        let (address, _) = start(script, 1).await;
        let mut stream = open(server(address, OriginTls::Implicit, lab.trust())).await.expect("verified");
        assert_eq!(stream.greeting, GREETING);
        assert_eq!(stream.peer.verified_by, VerifiedBy::Local);
        assert_ne!(stream.peer.spki_sha256, [0; 32]);
        echoes(&mut stream).await;
    }
}

#[tokio::test]
async fn octets_behind_the_greeting_are_not_lost() {
    let lab = Lab::new();
    let (address, _) = start(implicit(&lab, b"* OK hi\r\n* 1 EXISTS\r\n"), 1).await;
    let mut stream = open(server(address, OriginTls::Implicit, lab.trust())).await.expect("verified");
    assert_eq!(stream.greeting, &b"* OK hi\r\n"[..]);
    let mut rest = [0; 12];
    stream.io.read_exact(&mut rest).await.expect("kept");
    assert_eq!(&rest, b"* 1 EXISTS\r\n");
    echoes(&mut stream).await;
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused() {
    let lab = Lab::new();
    // The server has certificates for its own names only; towards a client that names nobody it shows mail.lab.test.
    let (address, _) = start(implicit(&lab, GREETING), 1).await;
    let wrong =
        OriginServer { host: "127.0.0.2".into(), ..server(address, OriginTls::Implicit, lab.trust()) };
    let refused = open(wrong).await.expect_err("another host");
    assert!(
        matches!(&refused, OpenError::Tls(why) if why.contains("NotValidForName")
        || why.contains("not valid for name")),
        "{refused}"
    );
}

#[tokio::test]
async fn an_unknown_ca_is_refused() {
    let (lab, other) = (Lab::new(), Lab::new());
    for trust in [other.trust(), Trust::System] {
        let (address, _) = start(implicit(&lab, GREETING), 1).await;
        // A machine without system roots cannot have them refuse anybody.
        match DirectOrigins::new([server(address, OriginTls::Implicit, trust)]) {
            Ok(origins) => {
                let refused = origins.open(request()).await.expect_err("an unknown CA");
                assert!(
                    matches!(&refused, OpenError::Tls(why) if why.contains("UnknownIssuer")),
                    "{refused}"
                );
            }
            Err(error) => assert!(error.to_string().contains("root certificates"), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_pin_accepts_one_key_whoever_certified_it_and_no_other() {
    let lab = Lab::new();
    let (address, _) = start(implicit(&lab, GREETING), 3).await;
    let open_with = |trust| open(server(address, OriginTls::Implicit, trust));
    let pin = open_with(lab.trust()).await.expect("verified").peer.spki_sha256;
    let pinned = open_with(Trust::Pin(pin)).await.expect("the same key");
    assert_eq!(pinned.peer.spki_sha256, pin);
    drop(pinned);
    let refused = open_with(Trust::Pin([7; 32])).await.expect_err("another key").to_string();
    let seen: String = pin.iter().map(|o| format!("{o:02x}")).collect();
    assert!(refused.contains("not the pinned one") && refused.contains(&seen), "{refused}");
}

#[tokio::test]
async fn a_pin_is_not_satisfied_by_a_certificate_without_its_key() {
    use rustls::{pki_types::PrivateKeyDer, sign::CertifiedKey};
    let lab = Lab::new();
    let own = rcgen::KeyPair::generate().expect("a key");
    let stolen = rcgen::CertificateParams::new(vec!["mail.lab.test".to_owned()])
        .and_then(|p| p.self_signed(&own))
        .expect("a certificate");
    let other = rcgen::KeyPair::generate().expect("another key").serialize_der();
    let provider = epc::tls::provider();
    let key = provider.key_provider.load_private_key(PrivateKeyDer::Pkcs8(other.into())).expect("a key");
    // The thief shows the pinned certificate, but signs with a key of his own.
    let thief = Arc::new(CertifiedKey::new(vec![stolen.der().clone()], key));
    for version in [&TLS12, &TLS13] {
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .expect("known")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&thief))));
        let script = Script { tls: Some(Arc::new(config)), ..implicit(&lab, GREETING) };
        let (address, _) = start(script, 1).await;
        let pin = spki_sha256(stolen.der()).expect("a certificate");
        let refused =
            open(server(address, OriginTls::Implicit, Trust::Pin(pin))).await.expect_err("no proof");
        assert!(matches!(&refused, OpenError::Tls(why) if why.contains("BadSignature")), "{refused}");
    }
}

#[tokio::test]
async fn sessions_are_resumed() {
    let lab = Lab::new();
    let (address, task) = start(implicit(&lab, GREETING), 2).await;
    let origins = DirectOrigins::new([server(address, OriginTls::Implicit, lab.trust())]).expect("usable");
    let mut keys = Vec::new();
    for _ in 0..2 {
        let mut stream = origins.open(request()).await.expect("verified");
        keys.push(stream.peer.spki_sha256);
        // Tickets come behind the handshake: read something, so that they are read too.
        echoes(&mut stream).await;
    }
    let (_, kinds) = task.await.expect("served");
    assert_eq!(kinds, [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)]);
    assert_eq!(keys.first(), keys.last(), "a resumed session is the same server");
}

#[tokio::test]
async fn starttls_leads_to_a_verified_session_and_trusts_nothing_from_before() {
    let lab = Lab::new();
    let tls = Some(lab.server(&[&TLS13, &TLS12]));
    let script = Script { plain: GREETING, answer: b"w1 OK Begin TLS.\r\n", tls, inside: b"" };
    let (address, task) = start(script, 1).await;
    let mut stream = open(server(address, OriginTls::StartTls, lab.trust())).await.expect("verified");
    assert_eq!(
        stream.greeting,
        &b"* OK Lab ready.\r\n"[..],
        "capabilities from before TLS must not be believed"
    );
    assert_ne!(stream.peer.spki_sha256, [0; 32]);
    echoes(&mut stream).await;
    assert_eq!(task.await.expect("served").0, b"w1 STARTTLS\r\n");
}

#[tokio::test]
async fn starttls_with_surplus_octets_is_refused() {
    let lab = Lab::new();
    for (plain, answer) in [
        (PLAIN_GREETING, &b"w1 OK go\r\n* CAPABILITY IMAP4rev1 AUTH=EVIL\r\n"[..]),
        (PLAIN_GREETING, b"w1 OK go\r\nx"),
        (b"* OK hi\r\n* CAPABILITY EVIL\r\n", b"w1 OK go\r\n"),
    ] {
        let script = Script { plain, answer, tls: Some(lab.server(&[&TLS13])), inside: b"" };
        let (address, _) = start(script, 1).await;
        let refused =
            open(server(address, OriginTls::StartTls, lab.trust())).await.expect_err("an injection");
        assert!(matches!(refused, OpenError::StartTls(_)), "{refused}");
    }
}

#[tokio::test]
async fn a_server_without_starttls_is_never_used_in_plain_text() {
    let lab = Lab::new();
    for answer in [&b"w1 BAD Unknown command\r\n"[..], b"w1 NO not now\r\n"] {
        let (address, task) =
            start(Script { plain: PLAIN_GREETING, answer, tls: None, inside: b"" }, 1).await;
        let refused = open(server(address, OriginTls::StartTls, lab.trust())).await.expect_err("no TLS");
        assert!(matches!(refused, OpenError::StartTls(_)), "{refused}");
        assert_eq!(
            task.await.expect("served").0,
            b"w1 STARTTLS\r\n",
            "nothing else may be said in plain text"
        );
    }
}

#[tokio::test]
async fn preauth_is_refused_before_tls_always_and_inside_unless_allowed() {
    let lab = Lab::new();
    const PREAUTH: &[u8] = b"* PREAUTH welcome\r\n";
    for allow_preauth in [false, true] {
        let (address, task) = start(Script { plain: PREAUTH, answer: b"", tls: None, inside: b"" }, 1).await;
        let road = OriginServer { allow_preauth, ..server(address, OriginTls::StartTls, lab.trust()) };
        let refused = open(road).await.expect_err("PREAUTH forbids STARTTLS");
        assert!(matches!(refused, OpenError::Greeting(_)), "{refused}");
        assert_eq!(task.await.expect("served").0, b"", "nothing may be said in plain text");

        let (address, _) = start(implicit(&lab, PREAUTH), 1).await;
        let road = OriginServer { allow_preauth, ..server(address, OriginTls::Implicit, lab.trust()) };
        match open(road).await {
            Ok(stream) => assert!(allow_preauth && stream.greeting == PREAUTH),
            Err(error) => assert!(!allow_preauth && matches!(error, OpenError::Greeting(_)), "{error}"),
        }
    }
}

#[tokio::test]
async fn bye_is_told_with_its_line() {
    let lab = Lab::new();
    const BYE: &[u8] = b"* BYE Connection queue full\r\n";
    let (address, _) = start(implicit(&lab, BYE), 1).await;
    let told = open(server(address, OriginTls::Implicit, lab.trust())).await.expect_err("BYE");
    assert_eq!(told, OpenError::Bye(bytes::Bytes::from_static(BYE)));
    let (address, _) = start(Script { plain: BYE, answer: b"", tls: None, inside: b"" }, 1).await;
    let told = open(server(address, OriginTls::StartTls, lab.trust())).await.expect_err("BYE");
    assert_eq!(told, OpenError::Bye(bytes::Bytes::from_static(BYE)));
}

#[tokio::test]
async fn plain_is_plain_only_when_configured() {
    let lab = Lab::new();
    let script = Script { plain: GREETING, answer: b"", tls: None, inside: b"" };
    let (address, _) = start(script.clone(), 1).await;
    let stream = open(server(address, OriginTls::Plain, lab.trust())).await.expect("configured");
    assert_eq!(stream.greeting, GREETING);
    assert_eq!((stream.peer.verified_by, stream.peer.spki_sha256), (VerifiedBy::Plain, [0; 32]));
    // A plain server on a road that wants TLS.
    let (address, _) = start(script, 1).await;
    let refused = open(server(address, OriginTls::Implicit, lab.trust())).await.expect_err("no TLS");
    assert!(matches!(refused, OpenError::Tls(_)), "{refused}");
}

#[tokio::test]
async fn patience_bounds_a_server_that_says_nothing() {
    let lab = Lab::new();
    let (address, _) = start(Script { plain: b"", answer: b"", tls: None, inside: b"" }, 2).await;
    for tls in [OriginTls::Implicit, OriginTls::StartTls] {
        let origins = DirectOrigins::new([server(address, tls, lab.trust())]).expect("usable");
        let impatient = OriginRequest { patience: Duration::from_millis(50), ..request() };
        assert_eq!(origins.open(impatient).await.expect_err("silence"), OpenError::TimedOut);
    }
}

#[tokio::test]
async fn what_this_road_cannot_do_is_refused_and_not_done_otherwise() {
    let lab = Lab::new();
    let (address, _) = start(implicit(&lab, GREETING), 1).await;
    let origins = DirectOrigins::new([server(address, OriginTls::Implicit, lab.trust())]).expect("usable");
    let other = ServerId::new("other.lab.test").expect("a name");
    let unknown =
        origins.open(OriginRequest { server: other.clone(), ..request() }).await.expect_err("unknown");
    assert_eq!(unknown, OpenError::UnknownServer(other));
    let spoof = origins.open(OriginRequest { source: SourcePolicy::Spoof, ..request() }).await;
    assert!(matches!(spoof, Err(OpenError::Network(_))));
}

#[tokio::test]
async fn the_requests_address_wins_but_the_certificate_stays_the_servers() {
    let lab = Lab::new();
    let (address, _) = start(implicit(&lab, GREETING), 1).await;
    let gone = SocketAddr::from(([127, 0, 0, 1], 1));
    let origins = DirectOrigins::new([server(gone, OriginTls::Implicit, lab.trust())]).expect("usable");
    let asked = OriginRequest { addr: Some(address), ..request() };
    assert_eq!(origins.open(asked).await.expect("verified").greeting, GREETING);
    assert_eq!(origins.open(request()).await.expect_err("nobody there"), OpenError::Refused);
}

#[tokio::test]
async fn a_name_is_resolved_and_one_without_address_is_told() {
    let lab = Lab::new();
    let (address, _) = start(implicit(&lab, GREETING), 1).await;
    let by_name = OriginServer {
        host: "localhost".into(),
        addresses: vec![],
        ..server(address, OriginTls::Implicit, lab.trust())
    };
    assert_eq!(open(by_name.clone()).await.expect("localhost is in the hosts file").greeting, GREETING);
    // RFC 6761 §6.4: 'invalid' never has an address.
    let nowhere = OriginServer { host: "mail.invalid".into(), ..by_name };
    let refused = open(nowhere).await.expect_err("no address");
    assert!(matches!(refused, OpenError::Resolve { .. }), "{refused}");
}

#[tokio::test]
async fn wrong_settings_are_known_at_the_start() {
    let lab = Lab::new();
    let good = server(SocketAddr::from(([127, 0, 0, 1], 993)), OriginTls::Implicit, lab.trust());
    let missing = OriginServer { trust: Trust::CaFile(lab.dir.path().join("none.pem")), ..good.clone() };
    assert!(matches!(DirectOrigins::new([missing]), Err(OriginSetupError::Trust { .. })));
    let bad_host = OriginServer { host: "mail lab".into(), ..good.clone() };
    assert!(matches!(DirectOrigins::new([bad_host]), Err(OriginSetupError::BadHost { .. })));
    assert!(matches!(DirectOrigins::new([good.clone(), good]), Err(OriginSetupError::Twice(_))));
}

#[tokio::test]
async fn a_certificate_outside_the_constraints_of_the_ca_is_refused() {
    let lab = Lab::new();
    // Whoever steals the issuing key can sign anything; clients must not believe it beyond the named servers.
    let read = |path| std::fs::read_to_string(path).expect("written");
    let stolen = rcgen::KeyPair::from_pem(&read(&lab.ca.issuing_key)).expect("a key");
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read(&lab.ca.issuing_cert), stolen).expect("a CA");
    for (name, good) in [("mail.lab.test", true), ("mail.other.test", false), ("192.0.2.1", false)] {
        let key = rcgen::KeyPair::generate().expect("a key");
        let leaf = rcgen::CertificateParams::new(vec![name.to_owned()])
            .and_then(|p| p.signed_by(&key, &issuer))
            .expect("signed");
        let issuing =
            rustls::pki_types::pem::PemObject::from_pem_file(&lab.ca.issuing_cert).expect("written");
        let config = ServerConfig::builder_with_provider(epc::tls::provider())
            .with_safe_default_protocol_versions()
            .expect("known")
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone(), issuing],
                rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .expect("a key of its own");
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let accept = TlsAcceptor::from(Arc::new(config)).accept(theirs);
        let (seen, _) = tokio::join!(connect(lab.client(), name, ours), accept);
        match seen {
            Ok(_) => assert!(good, "{name} was believed"),
            Err(error) => assert!(!good && error.to_string().contains("NameConstraint"), "{name}: {error}"),
        }
    }
}
