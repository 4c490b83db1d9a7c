use crate::support::{
    Ca, Road, Two, echo, hint, id, links, open, pattern, settings, summary, summing, until,
};
use discovery_core::value::Class;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{Instant, sleep},
};
use wan::{Peer, PeerSpec};
use wan_core::Reason;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_again_and_again_lose_no_octet() {
    let road = Road::new();
    let two = Two::through(|at| {
        let road = road.clone();
        async move { road.to(at).await }
    })
    .await;
    let server = echo().await;
    let stream = two.a.open(&two.to_b, open(server, Class::Bulk)).await.unwrap();
    let octets = pattern(24 << 20, 5);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sent = octets.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let breaking = tokio::spawn({
        let road = road.clone();
        async move {
            for _ in 0..6 {
                sleep(Duration::from_millis(150)).await;
                road.break_all();
            }
        }
    });
    let mut heard = Vec::new();
    reader.read_to_end(&mut heard).await.unwrap();
    writing.await.unwrap();
    breaking.await.unwrap();
    assert!(heard == octets, "{} of {} octets", heard.len(), octets.len());
    let counts = two.a.status()[0].counts;
    assert!(counts.resumes > 0 && counts.repeated_octets > 0, "{counts:?}");
    println!("{} resumes, {} octets sent again", counts.resumes, counts.repeated_octets);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_noticed_within_three_seconds_and_streams_outlive_it() {
    let road = Road::new();
    let two = Two::through(|at| {
        let road = road.clone();
        async move { road.to(at).await }
    })
    .await;
    let server = summing().await;
    two.up().await;
    let mut stream = two.a.open(&two.to_b, open(server, Class::Interactive)).await.unwrap();
    stream.write_all(b"before, ").await.unwrap();
    stream.opened().await.unwrap();
    road.silence(true);
    let begun = Instant::now();
    until("the silence is noticed", || {
        two.a.status()[0].lanes.is_empty() && two.b.status()[0].lanes.is_empty()
    })
    .await;
    let noticed = begun.elapsed();
    assert!(noticed < Duration::from_secs(3), "{noticed:?}");
    stream.write_all(b"meanwhile, ").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    road.silence(false);
    stream.write_all(b"after").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, summary(b"before, meanwhile, after"));
    println!("noticed after {noticed:?}");
}

/// Who only dials cannot be asked whether it is there: how its connections ended must do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_held_that_is_gone_ends_sooner_than_if_it_were_silent() {
    for gone in [true, false] {
        let ca = Ca::new();
        let mut theirs = settings(&ca, ca.identity(&["b"]));
        theirs.link.gone_max = Duration::from_secs(1);
        let b = links(&theirs);
        let road = Road::new();
        let at = road.to(crate::support::listen(&b).await).await;
        let mut own = settings(&ca, ca.identity(&["a"]));
        own.peers.known.insert(id("b"), PeerSpec { addresses: vec![at], ..PeerSpec::default() });
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = open(server.local_addr().unwrap(), Class::Interactive);
        // Its process, with all its sockets.
        let process = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let a = process.spawn(async move { links(&own) }).await.unwrap();
        let opener = a.clone();
        let stream = process
            .spawn(async move { opener.open(&Peer::Node(id("b")), open).await.unwrap() })
            .await
            .unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        until("all lanes stand", || b.status()[0].lanes.len() == 3).await;
        let begun = Instant::now();
        let lives = if gone {
            process.shutdown_background();
            None
        } else {
            road.silence(true);
            Some(process)
        };
        let ended = tokio::time::timeout(Duration::from_secs(5), served.read_u8()).await;
        assert_eq!(ended.is_ok(), gone, "{ended:?}");
        if gone {
            assert!(
                begun.elapsed() >= Duration::from_secs(1),
                "one that is there has had no time to come back"
            );
        }
        if let Some(process) = lives {
            process.shutdown_background();
        }
        drop((stream, a));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_is_replaced_keeps_its_streams_and_its_successor_gets_the_new_ones() {
    let ca = Ca::new();
    let theirs = settings(&ca, ca.identity(&["b"]));
    let old = links(&theirs);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let serving = tokio::spawn({
        let old = old.clone();
        async move { old.serve(listener).await }
    });
    let mut own = settings(&ca, ca.identity(&["a"]));
    own.peers.known.insert(id("b"), PeerSpec { addresses: vec![at], ..PeerSpec::default() });
    let (a, peer, server) = (links(&own), Peer::Node(id("b")), echo().await);
    let mut stands = a.open(&peer, open(server, Class::Interactive)).await.unwrap();
    stands.write_all(b"x").await.unwrap();
    stands.read_u8().await.unwrap();
    serving.abort();
    drop(serving.await);
    let new = links(&theirs);
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn({
        let new = new.clone();
        async move { new.serve(listener).await }
    });
    old.leave();
    until("the successor is met", || new.status().first().is_some_and(|link| link.lanes.len() == 3)).await;
    let mut next = a.open(&peer, open(server, Class::Interactive)).await.unwrap();
    for stream in [&mut stands, &mut next] {
        stream.write_all(b"y").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'y');
    }
    assert_eq!((old.status()[0].counts.accepted, new.status()[0].counts.accepted), (1, 1));
    old.stop();
    assert!(stands.read_u8().await.is_err(), "what stood ends with its process, at once");
    next.write_all(b"z").await.unwrap();
    assert_eq!(next.read_u8().await.unwrap(), b'z');
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_silence_packets_are_kept_small() {
    let ca = Ca::new();
    let a = links(&settings(&ca, ca.identity(&["a"])));
    // Its system accepts, and nothing more comes: so does a line that carries the SYN and no large packet.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer::At(listener.local_addr().unwrap(), hint(&ca.identity(&["b"])));
    let segments = async || {
        let (tcp, _) = listener.accept().await.unwrap();
        (socket2::SockRef::from(&tcp).tcp_mss().unwrap(), tcp)
    };
    let (refused, (usual, _held)) = tokio::join!(a.connect(&peer), segments());
    assert_eq!(refused, Err(Reason::PeerTimedOut));
    assert!(usual > 1400, "control: {usual}");
    let again = tokio::spawn({
        let (a, peer) = (a.clone(), peer.clone());
        async move { a.connect(&peer).await }
    });
    let (small, _held) = segments().await;
    assert!((1000..=1220).contains(&small), "{small}");
    again.abort();
}
