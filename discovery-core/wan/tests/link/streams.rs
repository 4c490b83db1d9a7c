use crate::support::{
    Ca, Two, echo, front, id, links, listen, open, pattern, settings, summary, summing, until,
};
use discovery_core::{id::NodeId, seam::sink::Nowhere, value::Class};
use seams::BoxFuture;
use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use wan::{AllGranted, Links, OpenedStream, Peer, PeerSpec, StreamOpener};
use wan_core::{Kind, OpenFrame, Reason};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_reaches_the_server_and_each_direction_ends_alone() {
    let (two, server) = (Two::new().await, summing().await);
    let mut stream = two.a.open(&two.to_b, open(server, Class::Interactive)).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(stream.opened().await.unwrap(), "there");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, summary(b"hello"), "the answer came behind the end of the question");
    drop(stream);
    until("nothing is left", || two.a.status()[0].counts.streams + two.b.status()[0].counts.streams == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_megabytes_go_both_ways_on_every_lane_and_are_the_same() {
    let (two, server) = (Two::new().await, echo().await);
    let mut carried = Vec::new();
    for (class, size) in
        [(Class::Bulk, 64 << 20), (Class::Interactive, 3 << 20), (Class::Background, 5 << 20)]
    {
        let stream = two.a.open(&two.to_b, open(server, class)).await.unwrap();
        carried.push(tokio::spawn(async move {
            let octets = pattern(size, size as u64);
            let (mut reader, mut writer) = tokio::io::split(stream);
            let sent = octets.clone();
            let writing = tokio::spawn(async move {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            });
            let mut heard = Vec::new();
            reader.read_to_end(&mut heard).await.unwrap();
            writing.await.unwrap();
            assert!(heard == octets, "{class:?}: {} of {size} octets", heard.len());
        }));
    }
    for carried in carried {
        timeout(Duration::from_secs(60), carried).await.unwrap().unwrap();
    }
    let counts = two.a.status()[0].counts;
    assert_eq!((counts.sent_octets, counts.received_octets, counts.repeated_octets), (72 << 20, 72 << 20, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_server_is_told_as_such() {
    let two = Two::new().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut stream = two.a.open(&two.to_b, open(closed, Class::Interactive)).await.unwrap();
    stream.write_all(b"early").await.unwrap();
    assert_eq!(stream.opened().await, Err(Reason::ServerRefused));
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    assert_eq!(stream.reason(), Some(Reason::ServerRefused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_dropped_is_reset_at_the_other_end() {
    let (two, server) = (Two::new().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let at = server.local_addr().unwrap();
    let mut stream = two.a.open(&two.to_b, open(at, Class::Interactive)).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let (mut tcp, _) = server.accept().await.unwrap();
    assert_eq!(tcp.read_u8().await.unwrap(), b'x');
    drop(stream);
    let end = timeout(Duration::from_secs(5), tcp.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    until("nothing is left", || two.b.status()[0].counts.streams == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_reset_overtakes_nothing_that_it_said() {
    let (two, server) = (Two::new().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let at = server.local_addr().unwrap();
    let mut stream = two.a.open(&two.to_b, open(at, Class::Interactive)).await.unwrap();
    stream.opened().await.unwrap();
    let (mut tcp, _) = server.accept().await.unwrap();
    tcp.write_all(&pattern(100_000, 1)).await.unwrap();
    until("everything was read from the server", || two.b.status()[0].counts.sent_octets == 100_000).await;
    tcp.set_zero_linger().unwrap();
    drop(tcp);
    until("the server's node knows no more of it", || two.b.status()[0].counts.streams == 0).await;
    let mut heard = Vec::new();
    let end = timeout(Duration::from_secs(10), stream.read_to_end(&mut heard)).await.unwrap();
    assert!(heard == pattern(100_000, 1), "{} octets", heard.len());
    assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
    drop(stream);
    until("nothing is left", || two.a.status()[0].counts.streams == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_holds_up_its_server_and_nobody_else() {
    let (two, server) = (Two::new().await, TcpListener::bind("127.0.0.1:0").await.unwrap());
    let at = front(&two, server.local_addr().unwrap(), Class::Bulk).await;
    let slow = tokio::net::TcpStream::connect(at).await.unwrap();
    let (mut tcp, _) = server.accept().await.unwrap();
    let filled = async {
        let mut written = 0;
        while let Ok(Ok(n)) = timeout(Duration::from_millis(700), tcp.write(&[7; 65536])).await {
            written += n;
        }
        written
    };
    let written = filled.await;
    let held: u64 = [&two.a, &two.b]
        .map(|links| links.status()[0].counts)
        .iter()
        .map(|c| c.held_octets + c.unread_octets)
        .sum();
    assert!(held < 6 << 20, "{held} octets are held of {written}");
    let echo = echo().await;
    let mut other = tokio::net::TcpStream::connect(front(&two, echo, Class::Bulk).await).await.unwrap();
    other.write_all(b"quick").await.unwrap();
    let mut heard = [0; 5];
    timeout(Duration::from_secs(5), other.read_exact(&mut heard)).await.unwrap().unwrap();
    drop(slow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_stream_that_was_dropped_does_not_stay_away() {
    let (two, server) = (Two::new().await, echo().await);
    let stream = two.a.open(&two.to_b, open(server, Class::Interactive)).await.unwrap();
    let answer = stream.answer();
    drop(stream);
    let answer = timeout(Duration::from_secs(5), answer).await.unwrap();
    assert_eq!(answer.err(), Some(Reason::Cancelled));
}

/// Never gets through; what it holds meanwhile counts the tries.
struct Trying(Arc<()>);

impl StreamOpener for Trying {
    fn open(&self, _: NodeId, _: OpenFrame) -> BoxFuture<'_, Result<OpenedStream, Reason>> {
        let held = self.0.clone();
        Box::pin(async move {
            std::future::pending::<()>().await;
            drop(held);
            Err(Reason::ServerTimedOut)
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gives_up_ends_what_was_begun_for_him() {
    let ca = Ca::new();
    let held = Arc::new(());
    let tries = Arc::downgrade(&held);
    let trying = Arc::new(Trying(held));
    let own = settings(&ca, ca.identity(&["b"]));
    let nowhere = (Arc::new(Nowhere), Arc::new(Nowhere));
    let b = Links::new(&own, trying, Arc::new(AllGranted), nowhere.0, nowhere.1, None).unwrap();
    let at = listen(&b).await;
    let mut own = settings(&ca, ca.identity(&["a"]));
    own.peers.known.insert(id("b"), PeerSpec { addresses: vec![at], ..PeerSpec::default() });
    let a = links(&own);
    let server = ([192, 0, 2, 1], 993).into();
    let stream = a.open(&Peer::Node(id("b")), open(server, Class::Interactive)).await.unwrap();
    until("it is tried", || Weak::strong_count(&tries) == 2).await;
    drop(stream);
    until("it is tried no more", || Weak::strong_count(&tries) == 1).await;
}

/// A server behind TLS that says something and hangs up without a word about it.
struct Abrupt(&'static [u8]);

impl tokio::io::AsyncRead for Abrupt {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match std::mem::take(&mut self.0) {
            [] => Poll::Ready(Err(std::io::ErrorKind::UnexpectedEof.into())),
            said => {
                buf.put_slice(said);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl tokio::io::AsyncWrite for Abrupt {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl StreamOpener for Abrupt {
    fn open(&self, _: NodeId, _: OpenFrame) -> BoxFuture<'_, Result<OpenedStream, Reason>> {
        let io = Box::new(seams::Stream::bare(Self(self.0)));
        Box::pin(async { Ok(OpenedStream { io, info: "there".into() }) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_words_before_an_unsaid_end_are_heard() {
    let ca = Ca::new();
    let own = settings(&ca, ca.identity(&["b"]));
    let (opener, nowhere) = (Arc::new(Abrupt(b"last words")), Arc::new(Nowhere));
    let b = Links::new(&own, opener, Arc::new(AllGranted), nowhere.clone(), nowhere, None).unwrap();
    let at = listen(&b).await;
    let mut theirs = settings(&ca, ca.identity(&["a"]));
    theirs.peers.known.insert(id("b"), PeerSpec { addresses: vec![at], ..PeerSpec::default() });
    let a = links(&theirs);
    for _ in 0..20 {
        let asks = OpenFrame { kind: Kind::Origin, ..open(at, Class::Interactive) };
        let mut stream = a.open(&Peer::Node(id("b")), asks).await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"last words");
    }
    // Whoever knows no ends of his own is told that it is none.
    let mut stream = a.open(&Peer::Node(id("b")), open(at, Class::Interactive)).await.unwrap();
    let ended = stream.read_to_end(&mut Vec::new()).await;
    assert_eq!(ended.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
}
