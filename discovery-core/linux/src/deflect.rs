//! The deflector's packets: which connections of the path go to which proxy off it, and their packets turned.
//!
//! Shared by the packet loop, which turns, and whoever speaks with the proxies, who gives out ports. The kernel queues a
//! connection's packets once it has seen a primer with its addresses: one sent here, which goes nowhere.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use discovery_core::candidates::{Candidate, Policy, choose};
use discovery_core::deflector::Mode;
use discovery_core::deflector::control::By;
use discovery_core::deflector::legs::{Again, Legs};
use discovery_core::engine::Peer;
use discovery_core::flow::Flow;
use discovery_core::packet::flags::{ACK, FIN, RST, SYN};
use discovery_core::packet::forge::reset;
use discovery_core::packet::{Tcp, View, readdress, splice};
use discovery_core::probe::{Codec, Response};

use crate::marks::{DELIVER, PRIMER};
use crate::socket::RawSender;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Deflect {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    mode: Mode,
    policy: Policy,
    codec: Codec,
    proxy_port: u16,
    primer: RawSender,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    legs: Legs,
    candidates: Vec<Candidate>,
    deflected: u64,
    past: u64,
    /// Which client was refused by the system of which proxy, and when. Of this client alone it is believed: a refusal is
    /// easily forged by who is refused.
    refused: VecDeque<(SocketAddr, IpAddr, Instant)>,
    /// The one that the kernel was told of last.
    told: Option<Flow>,
}

/// What became of a packet of a connection that has been deflected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turning {
    /// It goes on, turned.
    Turned,
    /// No rule is about it any more; a SYN is as good as a new one.
    Nobodys,
    /// It is a proxy's refusal, of which the client learns nothing: it asks again, and is given to another.
    Refused,
}

/// How many connections were given to proxies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeflectCounters {
    /// Given to a proxy that did not refuse.
    pub deflected: u64,
    /// Sent on to their servers, for want of a proxy.
    pub past: u64,
    /// Rules that stand, towards clients and towards servers.
    pub rules: (usize, usize),
    /// Proxies that take connections.
    pub ready: usize,
}

impl Deflect {
    /// With no proxies yet.
    ///
    /// # Errors
    /// Without CAP_NET_RAW and CAP_NET_ADMIN.
    pub fn new(mode: Mode, policy: Policy, codec: Codec, proxy_port: u16, v6: bool) -> io::Result<Self> {
        let state = State {
            legs: Legs::new(proxy_port),
            candidates: Vec::new(),
            deflected: 0,
            past: 0,
            refused: VecDeque::new(),
            told: None,
        };
        let (primer, state) = (RawSender::open(PRIMER | DELIVER, v6)?, Mutex::new(state));
        Ok(Self { inner: Arc::new(Inner { mode, policy, codec, proxy_port, primer, state }) })
    }

    /// From now on connections go to one of these.
    pub fn candidates(&self, candidates: Vec<Candidate>) {
        self.lock().candidates = candidates;
    }

    /// Through which port of this node's `proxy` reaches the server of this client; the server itself is known by rule 1 where the
    /// proxy does not say it. None: it may not, or cannot now.
    pub fn reach(
        &self,
        proxy: IpAddr,
        client: SocketAddr,
        server: Option<SocketAddr>,
        by: By,
    ) -> (Option<SocketAddr>, Option<u16>) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(server) = server.or_else(|| state.legs.meant(now, client, proxy)) else {
            return (None, None);
        };
        let flow = Flow { client, server };
        let meant = state.legs.meant(now, client, proxy) == Some(server);
        let known = self.inner.mode.may_reach(by, meant);
        let door = if known { state.legs.reach(now, flow, proxy) } else { None };
        drop(state);
        if door.is_some() {
            self.prime(flow);
        }
        (Some(server), door)
    }

    /// Tells the kernel of some of the connections again, and of all in turn: its sets are lost where somebody else has
    /// cleared the rules.
    pub fn remind(&self) {
        let mut state = self.lock();
        let some = state.legs.some_after(Instant::now(), state.told, REMINDED_MAX);
        state.told = some.last().copied();
        drop(state);
        some.into_iter().for_each(|flow| self.prime(flow));
    }

    /// What has been done.
    #[must_use]
    pub fn counters(&self) -> DeflectCounters {
        let state = self.lock();
        DeflectCounters {
            deflected: state.deflected,
            past: state.past,
            rules: state.legs.len(),
            ready: state.candidates.iter().filter(|candidate| candidate.standing.is_able()).count(),
        }
    }

    /// Whether clients' nodes are told of proxies.
    pub(crate) fn discovers(&self) -> bool {
        self.inner.mode == Mode::Discovering
    }

    /// Whom a client's node that asks on the path is told instead of this node.
    pub(crate) fn answer(&self, flow: Flow) -> Option<Response> {
        let mut state = self.lock();
        let Some(Peer { link, key }) = choose(&state.candidates, self.inner.policy, &flow) else {
            state.past += 1;
            return None;
        };
        state.deflected += 1;
        Some(Response { link, key, connected: false })
    }

    /// A client's SYN: turned to a proxy, with the server's address in it where that fits. False: it goes on.
    pub(crate) fn syn(&self, view: &View<'_>, octets_max: usize, out: &mut Vec<u8>) -> bool {
        if self.inner.mode != Mode::Static {
            return false;
        }
        let (now, flow) = (Instant::now(), view.from_client());
        let isn = view.tcp().map_or(0, |tcp| tcp.seq());
        let mut state = self.lock();
        let mut candidates = state.candidates.clone();
        candidates.retain(|candidate| !state.has_refused(flow.client, candidate.peer.link.ip(), now));
        let proxy = loop {
            let Some(peer) = choose(&candidates, self.inner.policy, &flow) else {
                state.legs.release(now, flow);
                state.past += 1;
                return false;
            };
            if state.legs.deflect(now, flow, isn, peer.link.ip()) {
                break peer.link.ip();
            }
            candidates.retain(|candidate| candidate.peer != peer);
        };
        state.deflected += 1;
        drop(state);
        self.prime(flow);
        let mut plain = Vec::new();
        if !readdress(view, flow.client, SocketAddr::new(proxy, self.inner.proxy_port), &mut plain) {
            return false;
        }
        let option = self.inner.codec.encode_destination(flow.server);
        let spliced =
            View::parse(&plain).is_ok_and(|view| splice(&view, option.octets(), octets_max, out).is_ok());
        if !spliced {
            out.clear();
            out.extend_from_slice(&plain);
        }
        true
    }

    /// A packet of a connection that has been deflected.
    pub(crate) fn turn(&self, view: &View<'_>, tcp: &Tcp<'_>, out: &mut Vec<u8>) -> Turning {
        let (now, flags, client) = (Instant::now(), tcp.flags(), view.dst());
        let mut state = self.lock();
        if flags & RST != 0
            && let Some(proxy) = state.legs.refuses(now, view.src(), client, tcp.ack())
        {
            state.refused.retain(|(_, _, at)| now.saturating_duration_since(*at) < REFUSED_FOR);
            if state.refused.len() == REFUSALS_MAX {
                state.refused.pop_front();
            }
            state.refused.push_back((client, proxy, now));
            // It was given to nobody.
            state.deflected = state.deflected.saturating_sub(1);
            return Turning::Refused;
        }
        if flags & (SYN | ACK) == SYN {
            let State { legs, candidates, .. } = &mut *state;
            let takes =
                |proxy| candidates.iter().any(|one| one.standing.is_able() && one.peer.link.ip() == proxy);
            if legs.again(now, view.from_client(), tcp.seq(), takes) == Again::Anew {
                return Turning::Nobodys;
            }
        }
        let turned = state.legs.turn(now, view.src(), view.dst(), flags & (FIN | RST) != 0);
        drop(state);
        match turned {
            Some(turned) if readdress(view, turned.src, turned.dst, out) => Turning::Turned,
            Some(_) | None => Turning::Nobodys,
        }
    }

    /// From now on the kernel queues what the two ends say. The rules refuse the primer, which is as it should be; while
    /// they are out, its mark routes it to this machine itself, which has no use for it.
    fn prime(&self, flow: Flow) {
        if let Ok(packet) = reset(flow.client, flow.server, 0)
            && self.inner.primer.send(&packet).is_ok()
        {
            tracing::debug!(%flow, "the rules are out: nobody has noted it");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_refused(&self, client: SocketAddr, proxy: IpAddr, now: Instant) -> bool {
        self.refused.iter().any(|(other, by, at)| {
            (*other, *by) == (client, proxy) && now.saturating_duration_since(*at) < REFUSED_FOR
        })
    }
}

/// Longer than the silence by which a proxy is known to be gone; if it is not gone, it has connections again after that.
const REFUSED_FOR: Duration = Duration::from_secs(2);
/// Nobody has so many clients at a proxy that died a moment ago; what is forgotten is refused once more.
const REFUSALS_MAX: usize = 1024;
/// At one time: enough for all within some seconds, and little beside the packets themselves.
const REMINDED_MAX: usize = 512;
