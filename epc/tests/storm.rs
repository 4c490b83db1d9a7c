//! Everybody comes at once: how many of them a server sees before it has greeted them.

use discovery_core::{id::ServerId, value::Class};
use epc::origin::{DirectOrigins, OriginServer, OriginTls};
use seams::{
    intake::ClientAddr,
    origin::{OpenError, OriginConnector, OriginRequest, SourcePolicy},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::yield_now,
};

const DOOR: usize = 3;
const CLIENTS: usize = 20;

struct Lab {
    socket: TcpListener,
    origins: Arc<DirectOrigins>,
}

impl Lab {
    async fn new() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = socket.local_addr().expect("bound");
        let origins = DirectOrigins::new([OriginServer {
            addresses: vec![address],
            tls: OriginTls::Plain,
            dials_max: DOOR,
            ..OriginServer::new(name(), "127.0.0.1", address.port())
        }]);
        Self { socket, origins: Arc::new(origins.expect("usable")) }
    }

    /// Whoever is at the door and nobody has let in.
    async fn at_the_door(&self) -> Vec<TcpStream> {
        let mut there = Vec::new();
        // What is on its way through loopback has come after so many turns of everybody.
        for _ in 0..200 {
            tokio::select! {
                biased;
                accepted = self.socket.accept() => there.push(accepted.expect("a client").0),
                () = yield_now() => {}
            }
        }
        there
    }
}

fn name() -> ServerId {
    ServerId::new("mail.lab.test").expect("a name")
}

fn request(patience: Duration) -> OriginRequest {
    OriginRequest {
        server: name(),
        addr: None,
        client: ClientAddr(SocketAddr::from(([127, 0, 0, 1], 4000))),
        source: SourcePolicy::Own,
        purpose: Class::Interactive,
        patience,
    }
}

#[tokio::test]
async fn no_more_than_a_few_stand_at_the_door_and_they_go_in_as_they_came() {
    let lab = Lab::new().await;
    let (inside, mut came_in) = mpsc::unbounded_channel();
    for nth in 0..CLIENTS {
        let (origins, inside) = (Arc::clone(&lab.origins), inside.clone());
        tokio::spawn(async move {
            let stream = origins.open(request(Duration::from_secs(60))).await.expect("greeted");
            inside.send((nth, stream)).expect("the test waits");
        });
        // In this order.
        yield_now().await;
    }
    let mut kept = Vec::new();
    let mut waiting = lab.at_the_door().await;
    for nth in 0..CLIENTS {
        assert_eq!(waiting.len(), DOOR.min(CLIENTS - nth), "before the {nth}th came in");
        let mut far = waiting.remove(0);
        far.write_all(b"* OK ready\r\n").await.expect("open");
        let (who, stream) = came_in.recv().await.expect("one came in");
        assert_eq!(who, nth, "somebody passed the others");
        kept.push((far, stream));
        waiting.extend(lab.at_the_door().await);
    }
}

#[tokio::test]
async fn a_turn_that_does_not_come_is_an_end_of_patience_and_gives_the_turn_back() {
    let lab = Lab::new().await;
    let mut silent = Vec::new();
    for _ in 0..DOOR {
        let origins = Arc::clone(&lab.origins);
        silent.push(tokio::spawn(async move { origins.open(request(Duration::from_secs(60))).await }));
    }
    let unheard = lab.at_the_door().await;
    assert_eq!(unheard.len(), DOOR);
    let late = lab.origins.open(request(Duration::from_millis(20))).await;
    assert_eq!(late.err(), Some(OpenError::TimedOut));
    assert!(lab.at_the_door().await.is_empty(), "dialled without a turn");
    for task in silent {
        task.abort();
    }
    let (next, far) = tokio::join!(lab.origins.open(request(Duration::from_secs(60))), async {
        let mut far = lab.at_the_door().await;
        far.last_mut().expect("the next one").write_all(b"* OK ready\r\n").await.expect("open");
        far
    });
    assert!(next.is_ok() && far.len() == 1);
}
