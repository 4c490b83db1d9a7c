//! The proxy mapping table (US 9,172,620, 'PMT'): which node stands on the path to a server, or that none does.
//!
//! Keyed by the server's address and port, because a node may serve one port and not another. What is learnt lives
//! for a time that grows while it stays true and shrinks when it changes; what the operator named is never refreshed.
//! That answers do not come back through this node is a property of routes, so it is kept for a network of servers.
//! Bounded: the entry longest not used goes first.

pub mod kept;
mod prefix;
mod snapshot;

pub use prefix::Prefix;

use crate::{
    engine::Peer,
    lru::Lru,
    now::{Now, UnixMillis},
    probe::KeyHint,
};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// What is known of the path to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Known {
    /// This node stands there.
    Peer(Peer),
    /// The operator says that this node stands there.
    Static(Peer),
    /// No node does, or none that takes connections from here.
    NoProxy,
    /// A SYN with the query does not arrive.
    OptionDropped,
    /// Answers do not come back through this node.
    Asymmetric,
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// One port of one server.
    Server(SocketAddr),
    /// All servers of a network, on one port or on all.
    Network(Prefix, Option<u16>),
}

/// One entry as plain values: for whoever keeps it on disk or shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmtRow {
    /// What it is about.
    pub place: Place,
    /// What is known.
    pub known: Known,
    /// Until when; none for what the operator named.
    pub until: Option<UnixMillis>,
    /// How long it lived or will live after its last confirmation.
    pub ttl: Duration,
    /// How often the answer changed.
    pub flaps: u32,
}

/// A peer that the operator named for some servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticPeer {
    /// For these addresses.
    pub network: Prefix,
    /// For this port, or every one.
    pub port: Option<u16>,
    /// This peer.
    pub peer: Peer,
    /// Lower first; those of equal preference share connections by client and server.
    pub preference: u8,
}

/// How it is learnt anew who stands on the path, before an entry runs out. That a peer which is known carries one
/// connection more shows that it is well, not that it still stands there: only a probe does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// It is not: the entry runs out, and the SYN of the connection after that asks.
    NextSyn,
    /// A separate probe when the path has not been asked for [`PmtConfig::ttl_min`] and the entry was used.
    Timer {
        /// Between two such probes, of all servers.
        interval: Duration,
    },
    /// The same beside the next connection, which is carried as if nobody asked.
    Connection {
        /// Between two such probes, of all servers.
        interval: Duration,
    },
}

/// Bounds and times of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PmtConfig {
    /// What the operator named: whoever fits a server is a candidate for it.
    pub statics: Vec<StaticPeer>,
    /// Servers known at once.
    pub entries_max: usize,
    /// Networks marked at once.
    pub networks_max: usize,
    /// How long a new or changed answer is believed.
    pub ttl_min: Duration,
    /// How long an answer is believed that was confirmed again and again.
    pub ttl_max: Duration,
    /// The most that 'no proxy' is believed: a node may be installed at any time.
    pub no_proxy_ttl_max: Duration,
    /// The same while a peer is missed that may come back at any moment.
    pub missed_ttl: Duration,
    /// How long a peer that failed us is left alone.
    pub failed_ttl: Duration,
    /// How long a network stays marked as asymmetric, and a server as one that gets no SYN with options.
    pub obstacle_ttl: Duration,
    /// How many bits make a network, IPv4.
    pub network_v4_bits: u8,
    /// How many bits make a network, IPv6.
    pub network_v6_bits: u8,
    /// So many probes in a row that ended in silence mark the server's port as asymmetric.
    pub silent_max: u8,
    /// So many own connects in a row that lost the SYN with the query, and no other, mark the server.
    pub suspects_max: u8,
    /// How it is learnt anew who stands on the path.
    pub refresh: Refresh,
}

impl Default for PmtConfig {
    fn default() -> Self {
        Self {
            statics: Vec::new(),
            entries_max: 16_384,
            networks_max: 256,
            ttl_min: Duration::from_secs(60),
            ttl_max: Duration::from_secs(3600),
            no_proxy_ttl_max: Duration::from_secs(600),
            missed_ttl: Duration::from_secs(2),
            failed_ttl: Duration::from_secs(30),
            obstacle_ttl: Duration::from_secs(600),
            network_v4_bits: 24,
            network_v6_bits: 64,
            silent_max: 3,
            suspects_max: 2,
            refresh: Refresh::NextSyn,
        }
    }
}

/// What the table says about a server now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Nothing, or nothing that is still believed.
    Unknown,
    /// A separate probe is on its way.
    Probing,
    /// What is known.
    Known(Known),
}

/// The table.
#[derive(Clone, Debug)]
pub struct Pmt {
    config: PmtConfig,
    servers: Lru<SocketAddr, Entry>,
    networks: Lru<Prefix, Instant>,
    /// When peers' entries are to be refreshed by separate probes.
    dues: BTreeSet<(Instant, SocketAddr)>,
    refresh_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    known: Option<Known>,
    until: Instant,
    ttl: Duration,
    flaps: u32,
    silent: u8,
    suspects: u8,
    /// A separate probe found the peer, and it has carried nothing yet.
    beside: bool,
    probing_until: Option<Instant>,
    /// When the path itself was last asked by a separate probe, or last answered.
    path_at: Option<Instant>,
    /// When it is to be asked by a separate probe.
    due: Option<Instant>,
}

impl Pmt {
    /// An empty table.
    #[must_use]
    pub fn new(config: PmtConfig) -> Self {
        Self {
            servers: Lru::new(config.entries_max),
            networks: Lru::new(config.networks_max),
            dues: BTreeSet::new(),
            refresh_at: None,
            config,
        }
    }

    /// What is known about the server.
    pub fn lookup(&mut self, now: Instant, server: SocketAddr) -> Lookup {
        if let Some(named) = self.named(server).min_by_key(|named| named.preference) {
            return Lookup::Known(Known::Static(named.peer));
        }
        let network = self.network(server);
        match self.networks.peek(&network) {
            Some(until) if *until > now => return Lookup::Known(Known::Asymmetric),
            Some(_) | None => {}
        }
        let Some(entry) = self.servers.touch(&server) else { return Lookup::Unknown };
        let found = match entry.known {
            Some(known) if entry.until > now => Lookup::Known(known),
            _ if entry.probing_until.is_some_and(|until| until > now) => Lookup::Probing,
            _ => Lookup::Unknown,
        };
        let (path_at, waits) = (entry.path_at, entry.due.is_some());
        if matches!(found, Lookup::Known(Known::Peer(_))) && !waits {
            self.used(now, server, path_at);
        }
        found
    }

    /// Whom the operator named for the server.
    pub fn named(&self, server: SocketAddr) -> impl Iterator<Item = &StaticPeer> {
        let fits = move |named: &&StaticPeer| {
            named.network.contains(server.ip()) && named.port.is_none_or(|port| port == server.port())
        };
        self.config.statics.iter().filter(fits)
    }

    /// Who is known to stand before the server, but for the operator's word. Looks without counting as use.
    #[must_use]
    pub fn learnt(&self, now: Instant, server: SocketAddr) -> Option<Peer> {
        match self.servers.peek(&server)? {
            Entry { known: Some(Known::Peer(peer)), until, .. } if *until > now => Some(*peer),
            _ => None,
        }
    }

    /// Whether anybody of this key stands before a server of these networks, as the operator says or as was learnt.
    #[must_use]
    pub fn leads_to(&self, now: Instant, key: KeyHint, networks: &[Prefix]) -> bool {
        let named = |named: &StaticPeer| {
            let meets = |network: &Prefix| {
                network.contains(named.network.address()) || named.network.contains(network.address())
            };
            named.peer.key == key && networks.iter().any(meets)
        };
        let learnt = |(server, entry): (&SocketAddr, &Entry)| {
            let here = matches!(entry.known, Some(Known::Peer(peer)) if peer.key == key);
            here && entry.until > now && networks.iter().any(|network| network.contains(server.ip()))
        };
        self.config.statics.iter().any(named) || self.servers.iter().any(learnt)
    }

    /// A peer answered on the path and carried a connection to the server.
    pub fn learn_peer(&mut self, now: Now, server: SocketAddr, peer: Peer) -> PmtRow {
        self.answered(now, server, Known::Peer(peer), (self.config.ttl_min, self.config.ttl_max))
    }

    /// A peer that was known, and asked for this connection then, carried it: it is believed longer, and the path is asked
    /// no later for it. None where the path has meanwhile answered otherwise: that counts.
    pub fn carried(&mut self, now: Now, server: SocketAddr, peer: Peer, since: Instant) -> Option<PmtRow> {
        let known = Known::Peer(peer);
        let before = self.servers.peek(&server).map(|entry| (entry.known, entry.path_at, entry.due));
        let answered_since = |at: Option<Instant>| at.is_some_and(|at| at >= since);
        match before {
            Some((Some(other), path_at, _)) if other != known && answered_since(path_at) => return None,
            Some(_) | None => {}
        }
        let row = self.learn(now, server, known, (self.config.ttl_min, self.config.ttl_max));
        if let Some((Some(same), _, due)) = before
            && same == known
        {
            self.entry(now.mono, server).due = due;
        }
        Some(row)
    }

    /// The same, by a separate probe: no SYN of a connection has shown the peer yet that it passes there.
    pub fn learn_peer_beside(&mut self, now: Now, server: SocketAddr, peer: Peer) -> PmtRow {
        let shown =
            self.servers.peek(&server).is_some_and(|e| e.known == Some(Known::Peer(peer)) && !e.beside);
        let row = self.learn_peer(now, server, peer);
        self.entry(now.mono, server).beside = !shown;
        row
    }

    /// Whether the peer is known by a separate probe alone, so that it may ask for a SYN before it takes a connection.
    #[must_use]
    pub fn is_beside(&self, server: SocketAddr) -> bool {
        self.servers.peek(&server).is_some_and(|entry| entry.beside)
    }

    /// The server itself answered a query.
    pub fn learn_none(&mut self, now: Now, server: SocketAddr) -> PmtRow {
        self.answered(now, server, Known::NoProxy, (self.config.ttl_min, self.config.no_proxy_ttl_max))
    }

    /// The same, while somebody who may stand there is missed: the next SYN but one asks again.
    pub fn learn_none_for_now(&mut self, now: Now, server: SocketAddr) -> PmtRow {
        self.answered(now, server, Known::NoProxy, (self.config.missed_ttl, self.config.missed_ttl))
    }

    /// That nobody stands before a server is believed no longer than [`Pmt::learn_none_for_now`] would, where it was learnt
    /// within this time.
    pub fn doubt_none(&mut self, now: Instant, within: Duration) {
        let missed_ttl = self.config.missed_ttl;
        self.servers.change_each(|entry| {
            let learnt_ago = entry.ttl.saturating_sub(entry.until.saturating_duration_since(now));
            if entry.known == Some(Known::NoProxy) && learnt_ago <= within && entry.ttl > missed_ttl {
                entry.until = entry.until.min(now + missed_ttl);
                entry.ttl = missed_ttl;
            }
        });
    }

    /// The peer on the path to the server does not take connections: past it, for a short time.
    pub fn failed(&mut self, now: Now, server: SocketAddr) -> PmtRow {
        self.learn(now, server, Known::NoProxy, (self.config.failed_ttl, self.config.failed_ttl))
    }

    /// SYNs with the query do not reach the server; without it they do.
    pub fn option_dropped(&mut self, now: Now, server: SocketAddr) -> PmtRow {
        self.learn(now, server, Known::OptionDropped, (self.config.obstacle_ttl, self.config.obstacle_ttl))
    }

    /// A SYN with the query was lost and one without it was not. Once may be chance.
    pub fn option_suspect(&mut self, now: Now, server: SocketAddr) -> Option<PmtRow> {
        let suspects_max = self.config.suspects_max.max(1);
        let entry = self.entry(now.mono, server);
        entry.suspects = entry.suspects.saturating_add(1);
        (entry.suspects >= suspects_max).then(|| self.option_dropped(now, server))
    }

    /// Answers from the server do not pass here: nor do those of its neighbours.
    pub fn asymmetric(&mut self, now: Now, server: SocketAddr) -> PmtRow {
        let network = self.network(server);
        let ttl = self.config.obstacle_ttl;
        self.networks.insert(network, now.mono + ttl);
        self.networks.touch(&network);
        PmtRow {
            place: Place::Network(network, None),
            known: Known::Asymmetric,
            until: Some(now.wall.plus(ttl)),
            ttl,
            flaps: 0,
        }
    }

    /// A query on a SYN ended in silence: no answer, no second SYN. Often enough, that is an asymmetric path, or a port
    /// where nobody listens: it is believed of this port alone.
    pub fn silent(&mut self, now: Now, server: SocketAddr) -> Option<PmtRow> {
        let silent_max = self.config.silent_max.max(1);
        let entry = self.entry(now.mono, server);
        entry.silent = entry.silent.saturating_add(1);
        if entry.silent < silent_max {
            return None;
        }
        let ttl = self.config.obstacle_ttl;
        Some(self.learn(now, server, Known::Asymmetric, (ttl, ttl)))
    }

    /// A separate probe went out and may be answered until then.
    pub fn probing(&mut self, now: Instant, server: SocketAddr, until: Instant) {
        self.entry(now, server).probing_until = Some(until);
    }

    /// The next server whose entry is to be refreshed by a separate probe, and not before its time.
    pub fn take_refresh(&mut self, now: Instant) -> Option<SocketAddr> {
        let interval = match self.config.refresh {
            Refresh::NextSyn => return None,
            Refresh::Timer { interval } | Refresh::Connection { interval } => interval,
        };
        if self.refresh_at.is_some_and(|at| at > now) {
            return None;
        }
        while let Some((at, server)) = self.dues.first().copied() {
            if at > now {
                break;
            }
            self.dues.pop_first();
            if self.servers.peek(&server).is_some_and(|entry| entry.due == Some(at)) {
                let entry = self.entry(now, server);
                (entry.path_at, entry.due) = (Some(now), None);
                self.refresh_at = Some(now + interval);
                return Some(server);
            }
        }
        None
    }

    /// When [`Pmt::take_refresh`] has something next.
    #[must_use]
    pub fn next_refresh(&self) -> Option<Instant> {
        let (at, _) = self.dues.first()?;
        Some(self.refresh_at.map_or(*at, |next| next.max(*at)))
    }

    /// How many servers and networks are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.servers.len() + self.networks.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The path says so. `lives`: the shortest and the longest that it may be believed.
    fn answered(
        &mut self,
        now: Now,
        server: SocketAddr,
        known: Known,
        lives: (Duration, Duration),
    ) -> PmtRow {
        let row = self.learn(now, server, known, lives);
        self.entry(now.mono, server).path_at = Some(now.mono);
        row
    }

    fn learn(&mut self, now: Now, server: SocketAddr, known: Known, lives: (Duration, Duration)) -> PmtRow {
        let (ttl_min, ttl_max) = (lives.0.min(lives.1), lives.1);
        let entry = self.entry(now.mono, server);
        entry.ttl = match entry.known {
            Some(before) if before == known => entry.ttl.saturating_mul(2).clamp(ttl_min, ttl_max),
            Some(_) => {
                entry.flaps = entry.flaps.saturating_add(1);
                ttl_min
            }
            None => ttl_min,
        };
        (entry.known, entry.probing_until, entry.due) = (Some(known), None, None);
        (entry.silent, entry.suspects, entry.beside) = (0, 0, false);
        entry.until = now.mono + entry.ttl;
        let (ttl, flaps) = (entry.ttl, entry.flaps);
        PmtRow { place: Place::Server(server), known, until: Some(now.wall.plus(ttl)), ttl, flaps }
    }

    /// A connection is led by what is known: sooner or later the path is asked whether it is still so.
    fn used(&mut self, now: Instant, server: SocketAddr, path_at: Option<Instant>) {
        let due = path_at.map_or(now, |at| at + self.config.ttl_min);
        let at = match self.config.refresh {
            Refresh::Timer { .. } => due.max(now),
            Refresh::Connection { .. } if due <= now => now,
            Refresh::Connection { .. } | Refresh::NextSyn => return,
        };
        // Old marks of the same server are skipped when their time comes; their number is bounded here.
        if self.dues.len() >= self.config.entries_max.saturating_mul(2) {
            self.dues.pop_first();
        }
        self.dues.insert((at, server));
        self.entry(now, server).due = Some(at);
    }

    fn entry(&mut self, now: Instant, server: SocketAddr) -> &mut Entry {
        if self.servers.peek(&server).is_none() {
            let fresh = Entry {
                known: None,
                until: now,
                ttl: Duration::ZERO,
                flaps: 0,
                silent: 0,
                suspects: 0,
                beside: false,
                probing_until: None,
                path_at: None,
                due: None,
            };
            self.servers.insert(server, fresh);
        }
        self.servers.touch(&server).expect("it was put in just now")
    }

    fn ttl_max(&self, known: Known) -> Duration {
        match known {
            Known::Peer(_) | Known::Static(_) => self.config.ttl_max,
            Known::NoProxy => self.config.no_proxy_ttl_max,
            Known::OptionDropped | Known::Asymmetric => self.config.obstacle_ttl,
        }
    }

    fn network(&self, server: SocketAddr) -> Prefix {
        Prefix::around(server.ip(), self.config.network_v4_bits, self.config.network_v6_bits)
    }
}

#[cfg(test)]
mod tests;
