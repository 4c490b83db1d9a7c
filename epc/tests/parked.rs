//! Connections that are made before a client comes, over loopback against a scripted server.

use discovery_core::{id::ServerId, value::Class};
use epc::origin::{DirectOrigins, OriginServer, OriginTls, ParkCounts, ParkTerms};
use seams::{
    intake::ClientAddr,
    origin::{OriginConnector, OriginRequest, OriginStream, SourcePolicy},
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::yield_now,
};

const DOVECOT: &[u8] = b"* OK [CAPABILITY IMAP4rev1 SASL-IR] Dovecot ready.\r\n";

struct Lab {
    socket: TcpListener,
    origins: DirectOrigins,
}

impl Lab {
    async fn new(max: u8) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = socket.local_addr().expect("bound");
        let origins = DirectOrigins::new([OriginServer {
            addresses: vec![address],
            tls: OriginTls::Plain,
            park: ParkTerms { max, idle: Duration::from_secs(600), on_cyrus: false },
            ..OriginServer::new(name(), "127.0.0.1", address.port())
        }]);
        Self { socket, origins: origins.expect("usable") }
    }

    async fn greet(&self, greeting: &[u8]) -> TcpStream {
        let (mut io, _) = self.socket.accept().await.expect("a client");
        io.write_all(greeting).await.expect("open");
        io
    }

    /// The first client, for whom nothing can be ready.
    async fn first_client(&self, greeting: &[u8]) -> (OriginStream, TcpStream) {
        let (stream, far) = tokio::join!(self.origins.open(request()), self.greet(greeting));
        let stream = stream.expect("greeted");
        assert_eq!(stream.caps.parked_age, None);
        (stream, far)
    }

    fn counts(&self) -> ParkCounts {
        self.origins.parked().first().expect("one server").1
    }

    async fn until(&self, fits: impl Fn(ParkCounts) -> bool) {
        while !fits(self.counts()) {
            yield_now().await;
        }
    }
}

fn name() -> ServerId {
    ServerId::new("mail.lab.test").expect("a name")
}

fn request() -> OriginRequest {
    OriginRequest {
        server: name(),
        addr: None,
        client: ClientAddr(SocketAddr::from(([127, 0, 0, 1], 4000))),
        source: SourcePolicy::Own,
        purpose: Class::Interactive,
        patience: Duration::from_secs(20),
    }
}

async fn is_live(stream: &mut OriginStream, far: &mut TcpStream) {
    stream.io.write_all(b"x").await.expect("open");
    stream.io.flush().await.expect("open");
    let mut octet = [0];
    far.read_exact(&mut octet).await.expect("heard");
    assert_eq!(&octet, b"x");
}

#[tokio::test]
async fn the_second_client_is_greeted_at_once_and_another_is_made() {
    let lab = Lab::new(1).await;
    let _first = lab.first_client(DOVECOT).await;
    let mut far = lab.greet(DOVECOT).await;
    lab.until(|counts| counts.ready == 1).await;
    let mut stream = lab.origins.open(request()).await.expect("ready");
    assert!(stream.caps.parked_age.is_some());
    assert_eq!(stream.greeting, DOVECOT);
    is_live(&mut stream, &mut far).await;
    let _third = lab.greet(DOVECOT).await;
    lab.until(|counts| counts.ready == 1 && counts.handed_out == 1).await;
    assert_eq!(lab.counts().missed, 1);
}

#[tokio::test]
async fn a_parked_connection_that_has_ended_is_never_handed_out() {
    for said in [&b"* BYE Connection queue full\r\n"[..], b"* OK Still here\r\n", b""] {
        let lab = Lab::new(1).await;
        let _first = lab.first_client(DOVECOT).await;
        let mut far = lab.greet(DOVECOT).await;
        lab.until(|counts| counts.ready == 1).await;
        far.write_all(said).await.expect("open");
        drop(far);
        // The news is on its way through loopback.
        for _ in 0..200 {
            yield_now().await;
        }
        let (stream, mut far) = tokio::join!(lab.origins.open(request()), lab.greet(DOVECOT));
        let mut stream = stream.expect("dialled");
        assert_eq!(stream.caps.parked_age, None, "{}", said.escape_ascii());
        is_live(&mut stream, &mut far).await;
        let counts = lab.counts();
        assert_eq!(counts.ended + counts.queue_full + counts.spoke, 1, "{counts:?}");
    }
}

#[tokio::test]
async fn whoever_must_have_a_new_one_gets_a_new_one() {
    let lab = Lab::new(1).await;
    let _first = lab.first_client(DOVECOT).await;
    let _parked = lab.greet(DOVECOT).await;
    lab.until(|counts| counts.ready == 1).await;
    let (stream, _far) = tokio::join!(lab.origins.open_anew(request()), lab.greet(DOVECOT));
    assert_eq!(stream.expect("dialled").caps.parked_age, None);
    assert_eq!(lab.counts().ready, 1);
}

#[tokio::test]
async fn nothing_is_parked_at_cyrus_or_where_it_is_off() {
    for (max, greeting) in
        [(0, DOVECOT), (2, &b"* OK [CAPABILITY IMAP4rev1] sp Cyrus IMAP 3.6.1 ready\r\n"[..])]
    {
        let lab = Lab::new(max).await;
        for _ in 0..2 {
            let _client = lab.first_client(greeting).await;
        }
        assert_eq!(lab.counts(), ParkCounts::default());
    }
}

#[tokio::test]
async fn those_of_a_configuration_that_is_gone_are_closed() {
    let lab = Lab::new(2).await;
    let _first = lab.first_client(DOVECOT).await;
    let mut parked = [lab.greet(DOVECOT).await, lab.greet(DOVECOT).await];
    lab.until(|counts| counts.ready == 2).await;
    lab.origins.park(&name(), 1);
    lab.until(|counts| counts.ready == 1).await;
    drop(lab.origins);
    for far in &mut parked {
        assert_eq!(far.read(&mut [0; 8]).await.expect("closed in order"), 0);
    }
}
