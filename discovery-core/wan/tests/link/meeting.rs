use crate::support::{Ca, echo, far, hint, id, links, listen, open, settings, until};
use discovery_core::{probe::KeyHint, value::Class};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};
use wan::Peer;
use wan_core::Reason;

/// Where nobody listens.
async fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_dialled_us_is_found_by_its_key_wherever_a_probe_saw_it() {
    let (ca, server) = (Ca::new(), echo().await);
    let (one, two) = (ca.identity(&["a"]), ca.identity(&["b"]));
    let (a, b) = (links(&settings(&ca, one.clone())), links(&settings(&ca, two.clone())));
    let (at_a, at_b) = (listen(&a).await, listen(&b).await);
    assert_eq!(a.connect(&Peer::At(at_b, hint(&two))).await, Ok(id("b")));
    for at in [at_a, nowhere().await, ([169, 254, 0, 1], 1).into()] {
        let back = Peer::At(at, hint(&one));
        until("the link stands at both ends", || b.is_up(&back)).await;
        assert_eq!(b.connect(&back).await, Ok(id("a")), "{at}");
        let stream = b.open(&back, open(server, Class::Interactive)).await.unwrap();
        assert_eq!(stream.opened().await.unwrap(), "there");
    }
    let other = Peer::At(nowhere().await, KeyHint([0; 8]));
    assert!(!b.is_up(&other));
    assert_eq!(b.connect(&other).await, Err(Reason::PeerRefused), "another key is another node");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_dial_each_other_at_once_have_one_link() {
    let ca = Ca::new();
    for _ in 0..20 {
        let (one, two) = (ca.identity(&["a"]), ca.identity(&["b"]));
        let (a, b) = (links(&settings(&ca, one.clone())), links(&settings(&ca, two.clone())));
        let (to_a, to_b) = (Peer::At(listen(&a).await, hint(&one)), Peer::At(listen(&b).await, hint(&two)));
        assert_eq!(tokio::join!(a.connect(&to_b), b.connect(&to_a)), (Ok(id("b")), Ok(id("a"))));
        a.stop();
        b.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_frees_its_port_and_makes_no_links() {
    let (ca, server) = (Ca::new(), echo().await);
    let (one, two) = (ca.identity(&["a"]), ca.identity(&["b"]));
    let (a, b) = (links(&settings(&ca, one)), links(&settings(&ca, two.clone())));
    let at = listen(&b).await;
    let peer = Peer::At(at, hint(&two));
    let mut stream = a.open(&peer, open(server, Class::Interactive)).await.unwrap();
    stream.opened().await.unwrap();
    b.leave();
    let bound = || std::net::TcpListener::bind(at);
    until("its port is free", || bound().is_ok()).await;
    let third = ca.identity(&["c"]);
    let c = links(&settings(&ca, third.clone()));
    assert_eq!(c.connect(&peer).await, Err(Reason::PeerRefused));
    assert_eq!(b.connect(&Peer::At(listen(&c).await, hint(&third))).await, Err(Reason::ShuttingDown));
    assert!(b.status().iter().all(|link| link.node == id("a")), "{:?}", b.status());
    stream.write_all(b"x").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'x', "what stands goes on");
    // A successor takes the place.
    let next = links(&settings(&ca, two));
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn({
        let next = next.clone();
        async move { next.serve(listener).await }
    });
    assert_eq!(c.connect(&peer).await, Ok(id("b")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serving_ends_with_the_node_also_when_it_begins_later() {
    let ca = Ca::new();
    let b = links(&settings(&ca, ca.identity(&["b"])));
    b.stop();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    timeout(Duration::from_secs(2), b.serve(listener)).await.expect("it ends").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_this_machine_is_not_dialled_because_a_probe_says_so() {
    let ca = Ca::new();
    let mut own = settings(&ca, ca.identity(&["a"]));
    own.loopback = false;
    let a = links(&own);
    let trap = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = trap.local_addr().unwrap();
    let peer = Peer::At(at, KeyHint([1; 8]));
    assert_eq!(a.connect(&peer).await, Err(Reason::PeerUnreachable));
    assert!(timeout(Duration::from_millis(200), trap.accept()).await.is_err(), "nobody came");
    own.loopback = true;
    a.update(&own).unwrap();
    let (_, came) = tokio::join!(
        timeout(Duration::from_secs(1), a.connect(&peer)),
        timeout(Duration::from_secs(1), trap.accept())
    );
    assert!(came.is_ok(), "the control");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_where_nobody_answers_is_given_up_and_makes_room() {
    let ca = Ca::new();
    let mut own = settings(&ca, ca.identity(&["a"]));
    own.patience = Duration::from_secs(8);
    let a = links(&own);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let begun = Instant::now();
    let dials: Vec<_> = (0..4)
        .map(|octet| {
            let a = a.clone();
            tokio::spawn(async move { a.connect(&Peer::At(silent, KeyHint([octet; 8]))).await })
        })
        .collect();
    sleep(Duration::from_millis(300)).await;
    let full = Peer::At(silent, KeyHint([9; 8]));
    assert_eq!(a.connect(&full).await, Err(Reason::Busy), "one address has its share");
    assert_eq!(a.connect(&Peer::At(nowhere().await, KeyHint([9; 8]))).await, Err(Reason::PeerRefused));
    for dial in dials {
        assert_eq!(dial.await.unwrap(), Err(Reason::PeerTimedOut));
    }
    let took = begun.elapsed();
    assert!((Duration::from_millis(2900)..Duration::from_secs(4)).contains(&took), "{took:?}");
    drop(listener);
    assert_eq!(a.connect(&full).await, Err(Reason::PeerRefused), "there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_host_that_says_nothing_keeps_nobody_else_out() {
    let ca = Ca::new();
    let identity = ca.identity(&["b"]);
    let b = links(&settings(&ca, identity.clone()));
    let at = listen(&b).await;
    let mut silent = Vec::new();
    for _ in 0..80 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(at).await.unwrap());
    }
    let begun = Instant::now();
    let a = links(&settings(&ca, ca.identity(&["a"])));
    assert_eq!(a.connect(&Peer::At(at, hint(&identity))).await, Ok(id("b")));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    // Those beyond the share are shown out at once, the others after three seconds.
    let mut held = 0;
    for tcp in &mut silent {
        held += usize::from(begun.elapsed() < Duration::from_secs(1) && !ended(tcp, 50).await);
    }
    assert_eq!(held, 16);
    sleep(Duration::from_millis(3700).saturating_sub(begun.elapsed())).await;
    for tcp in &mut silent {
        assert!(ended(tcp, 300).await);
    }
}

async fn ended(tcp: &mut TcpStream, within: u64) -> bool {
    let read = timeout(Duration::from_millis(within), tcp.read(&mut [0; 16])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_far_away_gets_its_link_though_nobody_waits_so_long() {
    let ca = Ca::new();
    let identity = ca.identity(&["b"]);
    let b = links(&settings(&ca, identity.clone()));
    let at = far(listen(&b).await, Duration::from_millis(300)).await;
    let mut own = settings(&ca, ca.identity(&["a"]));
    own.patience = Duration::from_millis(500);
    let a = links(&own);
    let peer = Peer::At(at, hint(&identity));
    let begun = Instant::now();
    assert_eq!(a.connect(&peer).await, Err(Reason::PeerTimedOut));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    until("the link stands", || a.is_up(&peer)).await;
    assert_eq!(a.connect(&peer).await, Ok(id("b")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_authority_does_not_name_the_nodes_of_a_link() {
    let (ca, other) = (Ca::new(), Ca::new());
    let trusting = |identity| {
        let mut settings = settings(&ca, identity);
        settings.authorities.push(other.authority("partner"));
        settings
    };
    let own = trusting(ca.identity(&["a"]));
    let a = links(&own);
    let at = listen(&a).await;
    let peer = Peer::At(at, hint(&own.identity));
    let b = links(&trusting(ca.identity(&["b"])));
    let thief = links(&trusting(other.identity(&["b"])));
    assert_eq!(b.connect(&peer).await, Ok(id("a")));
    until("the link stands at both ends", || a.is_up(&Peer::Node(id("b")))).await;
    assert_eq!(thief.connect(&peer).await, Err(Reason::WrongNode));
    assert_eq!(a.status()[0].authority.as_deref(), Some("own"));
    assert!(a.is_up(&Peer::Node(id("b"))) && b.is_up(&peer));
    // Names of its own it may give.
    let partner = links(&trusting(other.identity(&["p"])));
    assert_eq!(partner.connect(&peer).await, Ok(id("a")));
}
