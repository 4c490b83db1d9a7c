//! A proxy off the path: connections come to it by its deflector or over the link, and it reaches their servers through
//! the deflector, which makes them see the client.

use super::{deflecting::READY_EVERY, tcp::Tcp};
use crate::{config::deflection, exit::Failure};
use discovery_core::{
    deflector::control::{By, Control},
    flow::Flow,
    id::NodeId,
    probe::{Codec, KeyHint},
};
use discovery_linux::socket::{keep_syns, meant_server};
use seams::AsyncIo;
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, ReadBuf, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, broadcast},
    time::{sleep, timeout},
};
use wan::{Links, Peer};
use wan_core::{Notice, Reason as Why};

/// See the module's documentation.
pub(super) struct OffPath {
    config: deflection::OffPath,
    codec: Codec,
    links: OnceLock<Links>,
    /// What the deflector says, for whoever waits for it.
    said: broadcast::Sender<Control>,
    /// One for each connection that is carried, whichever way it came.
    places: Arc<Semaphore>,
}

impl OffPath {
    pub(super) fn new(config: &deflection::OffPath) -> Self {
        let (said, _) = broadcast::channel(1024);
        Self {
            config: config.clone(),
            codec: super::plan::codec_of(config.option_kind),
            links: OnceLock::new(),
            said,
            places: Arc::new(Semaphore::new(CARRIED_MAX)),
        }
    }

    /// Begins: says that it is there, and accepts.
    pub(super) async fn start(
        self: &Arc<Self>,
        links: Links,
        key: KeyHint,
        link: u16,
    ) -> Result<(), Failure> {
        let _once = self.links.set(links);
        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), self.config.port);
        let cannot = |error| Failure::io(format!("[off_path] port: cannot listen on {address}"), error);
        let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), self.config.port);
        // The second for a machine without IPv6; it fails where the first failed for another reason.
        let listener = TcpListener::bind([address, v4].as_slice()).await.map_err(cannot)?;
        keep_syns(&listener).map_err(cannot)?;
        tracing::info!(%address, deflector = %self.config.deflector, "off the path");
        tokio::spawn(Arc::clone(self).announce(key, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), link)));
        tokio::spawn(Arc::clone(self).accept(listener));
        Ok(())
    }

    pub(super) fn hear(&self, from: &NodeId, control: Control) {
        if *from == self.config.deflector {
            let _nobody_waits = self.said.send(control);
        }
    }

    /// A connection to the server that sees `client` as its other end. Without a server: the one that this client meant
    /// when it was deflected.
    pub(super) async fn reach(
        &self,
        client: SocketAddr,
        server: Option<SocketAddr>,
        by: By,
    ) -> Result<(SocketAddr, Tcp), Why> {
        let (server, door) =
            timeout(ASK_MAX, self.ask(client, server, by)).await.map_err(|_| Why::PeerTimedOut)??;
        let dialled = timeout(DIAL_MAX, TcpStream::connect(door)).await;
        let stream = match dialled {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(Why::ServerRefused);
            }
            Ok(Err(_)) => return Err(Why::ServerUnreachable),
            Err(_) => return Err(Why::ServerTimedOut),
        };
        Ok((server, Tcp::new(stream).map_err(|_| Why::ConnectionReset)?))
    }

    async fn ask(
        &self,
        client: SocketAddr,
        server: Option<SocketAddr>,
        by: By,
    ) -> Result<(SocketAddr, SocketAddr), Why> {
        let mut said = self.said.subscribe();
        loop {
            self.tell(&Control::Ask { client, server, by });
            let answer = timeout(ASK_AGAIN, async {
                loop {
                    match said.recv().await {
                        Ok(Control::Given { client: of, server: to, port })
                            if of == client && (server.is_none() || to == server) =>
                        {
                            return (to, port);
                        }
                        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return (None, None),
                    }
                }
            });
            match answer.await {
                Ok((Some(server), Some(port))) => {
                    return Ok((server, SocketAddr::new(self.config.at.ip(), port)));
                }
                Ok((_, _)) => return Err(Why::NotGranted),
                // Nobody repeats it but who asked.
                Err(_) => {}
            }
        }
    }

    fn tell(&self, control: &Control) {
        if let Some(links) = self.links.get() {
            let notice = Notice::Other { kind: CONTROL, octets: control.encode().into() };
            links.notify(Some(&self.config.deflector), &notice);
        }
    }

    async fn announce(self: Arc<Self>, key: KeyHint, link: SocketAddr) {
        loop {
            self.tell(&Control::Ready { load: load(&self.places), key, link });
            sleep(READY_EVERY).await;
            if let Some(links) = self.links.get()
                && let Err(why) = links.connect(&Peer::Node(self.config.deflector.clone())).await
            {
                tracing::debug!(%why, "the deflector is not reached");
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            // Whoever comes then waits in the kernel's queue, which is bounded too.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, from)) => {
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    tokio::spawn(Arc::clone(&self).carry(stream, from, place));
                }
                Err(error) => {
                    tracing::warn!(%error, "a client could not be accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn carry(self: Arc<Self>, stream: TcpStream, client: SocketAddr, _place: OwnedSemaphorePermit) {
        let said = meant_server(&stream, &self.codec);
        let Ok(mut from) = Tcp::new(stream) else { return };
        match self.reach(client, said, By::Port).await {
            Ok((server, mut to)) => {
                tracing::debug!(%client, %server, by_option = said.is_some(), "deflected to this proxy");
                let ended = copy_bidirectional(&mut from, &mut to).await;
                tracing::debug!(%client, %server, ?ended, "carried");
            }
            // The client is reset: it has been answered.
            Err(why) => tracing::debug!(%client, ?said, %why, "no way to the server"),
        }
    }

    /// The server's end of a peer's stream.
    pub(super) async fn serve(&self, flow: Flow) -> Result<Box<dyn AsyncIo>, Why> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Why::Busy)?;
        let (_, io) = self.reach(flow.client, Some(flow.server), By::Stream).await?;
        Ok(Box::new(Placed { io, _place: place }))
    }
}

/// A connection that counts for as long as it is there.
struct Placed<Io> {
    io: Io,
    _place: OwnedSemaphorePermit,
}

impl<Io: AsyncIo> AsyncRead for Placed<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

seams::write_through!(Placed);

seams::hand_down!(Placed);

/// In percent of what counts as full.
fn load(places: &Semaphore) -> u8 {
    let carried = CARRIED_MAX.saturating_sub(places.available_permits());
    u8::try_from(carried * 100 / CARRIED_MAX).unwrap_or(100).min(100)
}

/// The notice by which deflectors and proxies speak.
pub(super) const CONTROL: u64 = 1;
const ASK_MAX: Duration = Duration::from_secs(3);
const ASK_AGAIN: Duration = Duration::from_millis(200);
const DIAL_MAX: Duration = Duration::from_secs(10);
/// What counts as full.
const CARRIED_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_counts_until_it_ends() {
        let places = Arc::new(Semaphore::new(CARRIED_MAX));
        assert_eq!(load(&places), 0);
        let half = u32::try_from(CARRIED_MAX / 2).unwrap();
        let carried = Arc::clone(&places).try_acquire_many_owned(half).unwrap();
        assert_eq!(load(&places), 50);
        drop(carried);
        assert_eq!(load(&places), 0);
    }
}
