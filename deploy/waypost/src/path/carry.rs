//! Clients that come to an address of this node, carried to a server by a peer: nobody stands on anybody's path, and each
//! end sees the node that it speaks to.

use super::{
    carrier::class,
    tcp::Tcp,
    upward::{self, Upward},
};
use crate::{config::carry::Carry, exit::Failure};
use discovery_core::flow::Flow;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use wan::{Links, Peer, splice};
use wan_core::{Kind, OpenFrame, Reason};

/// The addresses at which this node carries.
pub(super) struct Carrying {
    listening: Vec<AbortHandle>,
    /// Each connection holds it.
    one: Arc<()>,
}

impl Carrying {
    /// Listens at all of them.
    pub(super) async fn start(
        carries: &[Carry],
        links: &Links,
        upward: Option<&Upward>,
    ) -> Result<Self, Failure> {
        let mut carrying = Self { listening: Vec::new(), one: Arc::new(()) };
        for carry in carries {
            let listener = upward::listener(upward, carry.listen).await.map_err(|error| {
                Failure::io(format!("[[carry]] listen: cannot listen on {}", carry.listen), error)
            })?;
            tracing::info!(address = %carry.listen, server = %carry.server, peer = %carry.peer, "carries");
            let accepting = accept(carry.clone(), listener, links.clone(), Arc::downgrade(&carrying.one));
            carrying.listening.push(tokio::spawn(accepting).abort_handle());
        }
        Ok(carrying)
    }

    /// How many connections are carried.
    pub(super) fn carried(&self) -> usize {
        Arc::strong_count(&self.one) - 1
    }

    /// Takes no more; the addresses are free for a successor.
    pub(super) fn leave(&self) {
        self.listening.iter().for_each(AbortHandle::abort);
    }
}

async fn accept(carry: Carry, listener: TcpListener, links: Links, count: Weak<()>) {
    loop {
        match listener.accept().await {
            Ok((client, from)) => {
                let Some(counted) = count.upgrade() else { return };
                let (carry, links) = (carry.clone(), links.clone());
                tokio::spawn(async move {
                    one(&carry, &links, client, from).await;
                    drop(counted);
                });
            }
            Err(error) => {
                tracing::warn!(%error, address = %carry.listen, "a client could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A client whose server is not reached is reset, as by a server that does not listen.
async fn one(carry: &Carry, links: &Links, client: TcpStream, from: SocketAddr) {
    let Ok(mut client) = Tcp::new(client) else { return };
    match links.open(&Peer::Node(carry.peer.clone()), asks(carry.server, from)).await {
        Ok(stream) => {
            // What the client says goes along with what is asked.
            let answer = stream.answer();
            let (answer, spliced) = tokio::join!(answer, splice(stream, &mut client));
            match answer {
                Ok(_) => tracing::debug!(%from, server = %carry.server, cut = ?spliced.cut, "carried"),
                // The stream was over before it was asked again.
                Err(Reason::Cancelled) => not_carried(carry, from, spliced.cut.unwrap_or(Reason::Cancelled)),
                Err(why) => not_carried(carry, from, why),
            }
        }
        Err(why) => not_carried(carry, from, why),
    }
}

fn not_carried(carry: &Carry, from: SocketAddr, why: Reason) {
    tracing::warn!(%from, server = %carry.server, peer = %carry.peer, %why, "not carried");
}

fn asks(server: SocketAddr, from: SocketAddr) -> OpenFrame {
    let ip = match (server.ip(), from.ip().to_canonical()) {
        (IpAddr::V4(_), IpAddr::V4(v4)) => v4.into(),
        (IpAddr::V6(_), IpAddr::V6(v6)) => v6.into(),
        // Of two families; nobody but the two nodes joins them.
        (IpAddr::V4(_), IpAddr::V6(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (IpAddr::V6(_), IpAddr::V4(_)) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let flow = Flow { client: SocketAddr::new(ip, from.port()), server };
    OpenFrame { flow, class: class(flow), kind: Kind::Carry, spoof: false, server: None }
}

/// Descriptors may be scarce for a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
