//! The node's way to netd, the process that has the rights: what it is ordered, what it asks for, what it is told.

use super::{agent::PathAgent, carrier::Carrier, questions::Questions, telling::Telling};
use crate::{
    exit::{Exit, Failure},
    run,
};
use discovery_linux::{
    broker::{BrokerError, RemoteBroker, SocketBroker},
    socket::Family,
    supervisor::Wish,
    worker::{Came, Notice, ToNetd},
};
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};
use tokio::{
    io::Interest,
    net::{TcpListener, UnixDatagram},
    runtime::Handle,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

/// See the module's documentation. Clones are the same.
#[derive(Clone)]
pub(crate) struct Upward {
    pub(super) netd: Arc<ToNetd>,
    broker: Arc<RemoteBroker>,
    pub(super) questions: Arc<Questions>,
    wish: UnboundedSender<run::Wish>,
}

/// What the supervisor wishes of the node.
pub(crate) type Wished = UnboundedReceiver<run::Wish>;

impl Upward {
    /// Waits for netd's first word. Inside a tokio runtime.
    pub(crate) async fn begin(netd: ToNetd) -> Result<(Self, Wished), Failure> {
        let failed = |error| Failure::io("netd", error);
        let netd = Arc::new(netd);
        let (broker, questions) = first_word(&netd).await.map_err(failed)?;
        let broker = Arc::new(RemoteBroker::new(broker).map_err(failed)?);
        let questions = Arc::new(Questions::new(questions).map_err(failed)?);
        let (wish, wished) = unbounded_channel();
        Ok((Self { netd, broker, questions, wish }, wished))
    }

    /// The node can carry what is taken.
    pub(crate) fn ready(&self) {
        self.netd.notice(Notice::Ready);
    }

    /// What only one can have is free.
    pub(crate) fn released(&self) {
        self.netd.notice(Notice::Released);
    }

    /// Carries out what is ordered, from now on.
    pub(super) fn obey(&self, carrier: &Arc<Carrier>, telling: &Arc<Telling>) -> io::Result<()> {
        let orders = readiness(&self.netd)?;
        let mut agent = PathAgent::new(Arc::clone(carrier), Handle::current());
        let (netd, carrier, wish) = (Arc::clone(&self.netd), Arc::clone(carrier), self.wish.clone());
        let telling = Arc::clone(telling);
        tokio::spawn(async move {
            loop {
                if orders.readable().await.is_err() {
                    return gone();
                }
                let came = orders.try_io(Interest::READABLE, || match netd.turn(&mut agent) {
                    Came::Nothing => Err(io::ErrorKind::WouldBlock.into()),
                    came @ (Came::Wish(_) | Came::Meet(_) | Came::Gone) => Ok(came),
                });
                match came {
                    Err(_) | Ok(Came::Nothing) => {}
                    Ok(Came::Wish(wanted)) => {
                        let wanted = match wanted {
                            // The engine, which is not here, has heard it.
                            Wish::Bypass(on) => {
                                telling.aside(on);
                                continue;
                            }
                            Wish::Leave | Wish::Hurry => run::Wish::End,
                            Wish::Reload => run::Wish::Reload,
                            Wish::HandOver => run::Wish::HandOver,
                        };
                        let _ends_already = wish.send(wanted);
                    }
                    Ok(Came::Meet(peer)) => drop(tokio::spawn(Arc::clone(&carrier).meet(peer))),
                    Ok(Came::Gone) => return gone(),
                }
            }
        });
        Ok(())
    }

    /// What `ask` asks of the broker, which may take a moment.
    pub(super) async fn socket(
        &self,
        ask: impl FnOnce(&RemoteBroker) -> Result<OwnedFd, BrokerError> + Send + 'static,
    ) -> io::Result<OwnedFd> {
        let broker = Arc::clone(&self.broker);
        let asked = tokio::task::spawn_blocking(move || ask(&broker)).await;
        asked.map_err(io::Error::other)?.map_err(io::Error::from)
    }

    /// A socket that listens at `address`, where the system would not let this process have one.
    pub(crate) fn reserved(&self, address: SocketAddr) -> Option<io::Result<std::net::TcpListener>> {
        (1..RESERVED_BELOW).contains(&address.port()).then(|| Ok(self.broker.listen(address)?.into()))
    }
}

impl std::fmt::Debug for Upward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upward").finish_non_exhaustive()
    }
}

impl wan::Sockets for Upward {
    fn tcp(&self, to: SocketAddr) -> io::Result<OwnedFd> {
        Ok(self.broker.untouched(Family::of(to))?)
    }
}

/// Listens; netd gives the listener where the system would not.
pub(super) async fn listener(upward: Option<&Upward>, at: SocketAddr) -> io::Result<TcpListener> {
    match upward.and_then(|upward| upward.reserved(at)) {
        Some(listener) => listener.and_then(TcpListener::from_std),
        None => TcpListener::bind(at).await,
    }
}

/// Whether something waits there; nothing is read or written by it.
fn readiness(netd: &ToNetd) -> io::Result<UnixDatagram> {
    let channel = std::os::unix::net::UnixDatagram::from(netd.as_fd().try_clone_to_owned()?);
    channel.set_nonblocking(true)?;
    UnixDatagram::from_std(channel)
}

async fn first_word(netd: &Arc<ToNetd>) -> io::Result<(OwnedFd, OwnedFd)> {
    readiness(netd)?.readable().await?;
    match netd.begin() {
        Some(channels) => Ok(channels),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Its engine holds what this process carries for known, and nobody could end it any more.
fn gone() {
    tracing::info!("netd is gone; this node ends, with what it carries");
    std::process::exit(i32::from(Exit::Unavailable as u8));
}

/// ip(7): ip_unprivileged_port_start, as it is by default.
const RESERVED_BELOW: u16 = 1024;
