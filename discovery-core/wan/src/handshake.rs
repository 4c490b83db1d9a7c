//! From a TCP connection to one that a link has taken: TLS, who it is, HELLO.

use crate::{
    admit::Expected,
    identity::{Authority, Presented},
    link::{Link, Taken},
    links::Inner,
    narrow::Place,
    socket,
};
use bytes::BytesMut;
use rustls::pki_types::ServerName;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use wan_core::{
    LaneSet, Reason,
    frame::{Frame, decode},
    hello::{Greeting, Hello},
};

/// A connection that carries its lanes.
pub(crate) struct Met {
    pub(crate) link: Arc<Link>,
    pub(crate) taken: Taken,
    pub(crate) tls: TlsStream<TcpStream>,
    /// What came behind HELLO.
    pub(crate) arrived: BytesMut,
    pub(crate) lanes: LaneSet,
    /// Where it was dialled; none when the peer did.
    pub(crate) place: Option<Place>,
}

/// Connects to `to`, finds whom it was meant for, and lets the link have it.
pub(crate) async fn dial(
    inner: &Arc<Inner>,
    to: SocketAddr,
    expected: &Expected,
    lanes: LaneSet,
) -> Result<Met, Reason> {
    let segment = inner.segment_max(to);
    let place = Place { at: to, narrow: segment.is_some() };
    let tcp = socket::dial(to, inner.sockets(), segment).await?;
    let mut heard = Heard { inner, place, since: Instant::now(), ended: false };
    let met = timeout(HANDSHAKE_MAX, meet(inner, tcp, place, expected, lanes)).await;
    heard.ended = met.is_ok();
    met.unwrap_or(Err(Reason::PeerTimedOut))
}

/// A handshake that nobody let end, whoever was tired of it first, has met silence: if it was given time.
struct Heard<'i> {
    inner: &'i Inner,
    place: Place,
    since: Instant,
    ended: bool,
}

impl Drop for Heard<'_> {
    fn drop(&mut self) {
        if !self.ended && self.since.elapsed() >= SILENCE_MIN {
            self.inner.fell_silent(self.place);
        }
    }
}

async fn meet(
    inner: &Arc<Inner>,
    tcp: TcpStream,
    place: Place,
    expected: &Expected,
    lanes: LaneSet,
) -> Result<Met, Reason> {
    let to = place.at;
    let congestion = socket::prepare(&tcp).map_err(|_| Reason::PeerUnreachable)?;
    let setup = inner.setup();
    // No name is checked: see `trust`.
    let name = ServerName::IpAddress(to.ip().into());
    let tls = TlsConnector::from(setup.tls.client.clone()).connect(name, tcp).await.map_err(|error| {
        tracing::debug!(%to, %error, "no TLS with a peer");
        Reason::Tls
    })?;
    let mut tls = TlsStream::Client(tls);
    let (link, authority) = match who(inner, &tls, expected) {
        Ok(known) => known,
        Err(reason) => {
            part(&mut tls, reason).await;
            return Err(reason);
        }
    };
    let mut hello = BytesMut::new();
    link.hello(lanes).encode(&mut hello);
    let lost = |_| Reason::Tls;
    tls.write_all(&hello).await.map_err(lost)?;
    tls.flush().await.map_err(lost)?;
    let mut arrived = BytesMut::new();
    let greeting = match greeting(&mut tls, &mut arrived).await {
        Ok(greeting) if greeting.lanes == lanes => greeting,
        Ok(_) => return Err(Reason::Violation),
        Err(reason) => {
            part(&mut tls, reason).await;
            return Err(reason);
        }
    };
    let dialled = Link::side(&setup.node, &link.node);
    let taken = link.attach(dialled, &greeting, authority, to, congestion)?;
    Ok(Met { link, taken, tls, arrived, lanes, place: Some(place) })
}

/// Somebody connected to us.
pub(crate) async fn accept(inner: &Arc<Inner>, tcp: TcpStream, from: SocketAddr) -> Result<Met, Reason> {
    timeout(HANDSHAKE_MAX, welcome(inner, tcp, from)).await.unwrap_or(Err(Reason::PeerTimedOut))
}

async fn welcome(inner: &Arc<Inner>, tcp: TcpStream, from: SocketAddr) -> Result<Met, Reason> {
    let congestion = socket::prepare(&tcp).map_err(|_| Reason::PeerUnreachable)?;
    let setup = inner.setup();
    let tls = timeout(TLS_MAX, TlsAcceptor::from(setup.tls.server.clone()).accept(tcp)).await;
    let tls = tls.map_err(|_| Reason::PeerTimedOut)?.map_err(|error| {
        tracing::debug!(%from, %error, "no TLS with somebody who connected");
        Reason::Tls
    })?;
    let mut tls = TlsStream::Server(tls);
    let mut arrived = BytesMut::new();
    // Read first: a connection that is closed with octets unread is reset, and the reason is lost with it.
    let met = match greeting(&mut tls, &mut arrived).await {
        Ok(greeting) => who(inner, &tls, &Expected::default()).and_then(|(link, authority)| {
            let dialled = Link::side(&link.node, &setup.node);
            let taken = link.attach(dialled, &greeting, authority, from, congestion)?;
            Ok((link, taken, greeting.lanes))
        }),
        Err(reason) => Err(reason),
    };
    let (link, taken, lanes) = match met {
        Ok(met) => met,
        Err(reason) => {
            part(&mut tls, reason).await;
            return Err(reason);
        }
    };
    let mut hello = BytesMut::new();
    link.hello(lanes).encode(&mut hello);
    if tls.write_all(&hello).await.is_err() || tls.flush().await.is_err() {
        link.detach(taken.conn, Reason::Closed, false);
        return Err(Reason::Closed);
    }
    Ok(Met { link, taken, tls, arrived, lanes, place: None })
}

/// The link with who the other side's certificate says it is, if that may be.
fn who(
    inner: &Arc<Inner>,
    tls: &TlsStream<TcpStream>,
    expected: &Expected,
) -> Result<(Arc<Link>, Authority), Reason> {
    let setup = inner.setup();
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let presented = Presented::of(chain)?;
    let authority = setup.tls.authority(chain).ok_or(Reason::Tls)?;
    inner.admit(&setup, expected, &presented, &authority).map(|link| (link, authority))
}

/// The other side's HELLO, or its goodbye.
async fn greeting(tls: &mut TlsStream<TcpStream>, arrived: &mut BytesMut) -> Result<Greeting, Reason> {
    loop {
        match decode(arrived).map_err(|_| Reason::Violation)? {
            Some(Frame::Hello(hello)) => return Hello::agree(&hello).map(|(greeting, _)| greeting),
            Some(Frame::Goaway(reason)) => return Err(reason),
            Some(Frame::Ignored) => {}
            Some(_) => return Err(Reason::Violation),
            None if arrived.len() > HELLO_OCTETS_MAX => return Err(Reason::Violation),
            None => match tls.read_buf(arrived).await {
                Ok(0) => return Err(Reason::Closed),
                Ok(_) => {}
                // A certificate that the other side refuses shows here: its alert comes behind the handshake.
                Err(_) => return Err(Reason::Tls),
            },
        }
    }
}

/// Says why and hangs up.
pub(crate) async fn part(tls: &mut TlsStream<TcpStream>, reason: Reason) {
    let mut goodbye = BytesMut::new();
    Frame::Goaway(reason).encode(&mut goodbye);
    let said = async {
        tls.write_all(&goodbye).await?;
        tls.shutdown().await
    };
    // Whoever does not listen is not waited for.
    drop(timeout(PART_MAX, said).await);
}

/// Four round trips of a satellite and a slow machine.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Who connected has said who it is by then: one round trip of a satellite, and one packet sent again on any other line.
const TLS_MAX: Duration = Duration::from_secs(3);
/// A dial that is given up sooner says nothing of the line: whoever dials counts the way to the other system too.
const SILENCE_MIN: Duration = Duration::from_secs(1);
const PART_MAX: Duration = Duration::from_millis(500);
/// Of a newer version, too.
const HELLO_OCTETS_MAX: usize = 4096;
