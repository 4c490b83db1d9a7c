//! Clients of mail servers that are served here. What reaches the server, in this order, until one does:
//!
//! ```text
//! the peer opens it, TLS and greeting beside the server ── else its octets, TLS from here ── else carried as octets
//! ```
//! Until the server has been greeted the client is told nothing, so that the last is still possible. Each attempt has a
//! connection of its own, with the client's address and port: the one before is closed first.

use super::{Attempt, Carrier, Far, asks, copy, leash::leashed, splice};
use crate::{
    config::{
        self, Trust,
        network::OWN,
        value::{Encryption, Source},
    },
    node::{
        mail::{Intercepted, MailServer, Meant},
        origin_tls,
    },
    path::tcp::Tcp,
};
use bytes::Bytes;
use discovery_core::{
    engine::{self, ConnectFailure},
    flow::Flow,
    id::ServerId,
    value::Class,
};
use epc::{
    handler::Way,
    intake::{Asked, Unasked},
    origin::Prefixed,
};
use seams::{
    AsyncIo, BoxFuture,
    intake::ClientAddr,
    origin::{
        OpenError, Opened, OriginConnector, OriginIdentity, OriginRequest, OriginStream, SourcePolicy,
        StreamCaps, VerifiedBy,
    },
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};
use wan::LinkStream;
use wan_core::{Kind, OpenFrame, Reason as Why};

/// What a client's session is to be with.
pub(super) struct Bound {
    servers: Meant,
    road: Road,
    reached: Reached,
}

/// Which way.
#[derive(Clone, Copy, Debug)]
enum Road {
    Peer(engine::Peer),
    Alone,
}

enum Reached {
    /// Greeted, and verified by whoever greeted it.
    Server(OriginStream),
    /// Connected, with the client's address; nothing said.
    Octets(Octets),
}

enum Octets {
    Stream(LinkStream),
    Tcp(Tcp),
}

impl Carrier {
    /// The mail servers that a client of `flow` may mean and that are served here.
    pub(super) fn mail_at(&self, flow: Flow) -> Meant {
        let meant = self.mail.get().map(|mail| mail.at(flow.server)).unwrap_or_default();
        // Of several it is known later which one it is.
        if meant.only().is_some_and(|server| self.declines(server)) { Meant::default() } else { meant }
    }

    /// The names of those servers.
    pub(in crate::path) fn mail_names(&self, flow: Flow) -> Vec<String> {
        self.mail_at(flow).names().map(str::to_owned).collect()
    }

    /// Its clients are carried as octets for a while.
    fn declines(&self, server: &MailServer) -> bool {
        self.lock().declined.holds(&Who::here(server), Instant::now())
    }

    pub(super) async fn ask_mail(self: &Arc<Self>, attempt: &Attempt, peer: engine::Peer, servers: Meant) {
        let road = Road::Peer(peer);
        match self.reach(attempt.flow, road, servers.only()).await {
            Ok(reached) => {
                self.opened(attempt);
                self.far(attempt, Far::Mail(Box::new(Bound { servers, road, reached })));
            }
            Err(why) => self.ended(attempt, Some(why)),
        }
    }

    pub(super) async fn single_mail(self: &Arc<Self>, attempt: &Attempt, servers: Meant) {
        match self.reach(attempt.flow, Road::Alone, servers.only()).await {
            Ok(reached) => {
                self.opened(attempt);
                self.far(attempt, Far::Mail(Box::new(Bound { servers, road: Road::Alone, reached })));
            }
            Err(why) => {
                tracing::debug!(flow = %attempt.flow, %why, "the server is not reached");
                self.closed(attempt);
            }
        }
    }

    /// Greeted, if that can be had at once.
    async fn reach(
        self: &Arc<Self>,
        flow: Flow,
        road: Road,
        server: Option<&Arc<MailServer>>,
    ) -> Result<Reached, Why> {
        if let Some(server) = server {
            match road {
                Road::Peer(peer) => {
                    let who = Who::Peer(peer, server.config.name.clone(), server.config.port.0);
                    let declined = self.lock().declined.holds(&who, Instant::now());
                    if !declined && let Some(host) = self.may_open(peer, &server.config).await? {
                        match self.through(flow, peer, server, host).await {
                            Ok(origin) => return Ok(Reached::Server(origin)),
                            Err(why) if !octets_may_do(why) => return Err(why),
                            Err(why) => {
                                tracing::info!(server = %server.config.name, %why, "the peer does not open it; TLS from here");
                                if why != Why::Unknown {
                                    self.lock().declined.note(who, Instant::now());
                                }
                            }
                        }
                    }
                }
                Road::Alone if server.config.source == Source::Own => {
                    if let Some(origin) = self.open_as_node(flow, server).await {
                        return Ok(Reached::Server(origin));
                    }
                }
                Road::Alone => {}
            }
        }
        self.octets(flow, road).await.map(Reached::Octets)
    }

    /// By what name the peer is asked to open the server, if it is.
    async fn may_open(&self, peer: engine::Peer, server: &config::Server) -> Result<Option<ServerId>, Why> {
        let Some(host) = ServerId::new(&server.host.0).ok().filter(|_| server.tls != Encryption::Plain)
        else {
            return Ok(None);
        };
        let links = self.links.get().ok_or(Why::NoLink)?;
        let node = links.connect(&self.at(peer)).await?;
        let known = links.status().into_iter().find(|link| link.node == node);
        let authority = known.and_then(|link| link.authority);
        Ok(is_believed(&server.trust, authority.as_deref()).then_some(host))
    }

    /// Opened by the peer.
    async fn through(
        self: &Arc<Self>,
        flow: Flow,
        peer: engine::Peer,
        server: &MailServer,
        host: ServerId,
    ) -> Result<OriginStream, Why> {
        let config = &server.config;
        let spoof = config.source == Source::Spoof;
        let open =
            OpenFrame { flow, class: Class::Interactive, kind: Kind::Origin, spoof, server: Some(host) };
        let (stream, info) = self.stream(peer, open).await?;
        let told = Opened::decode(&info).ok_or(Why::Violation)?;
        let preauth = told.greeting.get(2..9).is_some_and(|word| word.eq_ignore_ascii_case(b"PREAUTH"));
        if preauth && !config.allow_preauth {
            return Err(Why::ServerTls);
        }
        let verified_by = VerifiedBy::Peer(stream.peer().clone());
        Ok(OriginStream {
            // With the node's own address it is in nobody's way.
            io: if spoof { Box::new(leashed(self, flow, stream)) } else { Box::new(stream) },
            greeting: told.greeting,
            peer: OriginIdentity { spki_sha256: told.spki_sha256, verified_by },
            caps: StreamCaps { half_close: true, parked_age: told.parked.then_some(Duration::ZERO) },
        })
    }

    /// A stream that the peer has opened. What stood between the same ends may be on its way out.
    async fn stream(&self, peer: engine::Peer, open: OpenFrame) -> Result<(LinkStream, Bytes), Why> {
        let links = self.links.get().ok_or(Why::NoLink)?;
        let mut tries = 0;
        loop {
            let stream = links.open(&self.at(peer), open.clone()).await?;
            self.met(peer, stream.peer().clone());
            match stream.opened().await {
                Ok(info) => return Ok((stream, info)),
                Err(why) if passes(why) && tries < IN_USE_TRIES => tries += 1,
                Err(why) => return Err(why),
            }
            drop(stream);
            sleep(IN_USE_PAUSE).await;
        }
    }

    /// From this node's own address.
    async fn open_as_node(&self, flow: Flow, server: &MailServer) -> Option<OriginStream> {
        let request = OriginRequest {
            server: server.config.name.clone(),
            addr: None,
            client: ClientAddr(flow.client),
            source: SourcePolicy::Own,
            purpose: Class::Interactive,
            patience: GREET_MAX,
        };
        match self.mail.get()?.origins().open(request).await {
            Ok(origin) => Some(origin),
            Err(error) => {
                tracing::warn!(%error, server = %server.config.name, "the server cannot be reached");
                None
            }
        }
    }

    /// A connection to the server, with the client's address.
    async fn octets(&self, flow: Flow, road: Road) -> Result<Octets, Why> {
        match road {
            Road::Peer(peer) => self.stream(peer, asks(flow)).await.map(|(stream, _)| Octets::Stream(stream)),
            Road::Alone => {
                let mut tries = 0;
                loop {
                    match timeout(super::CONNECT_MAX, self.connect(flow)).await {
                        Ok(Ok(tcp)) => return Ok(Octets::Tcp(tcp)),
                        Ok(Err(ConnectFailure::Local)) if tries < IN_USE_TRIES => tries += 1,
                        Ok(Err(ConnectFailure::Refused)) => return Err(Why::ServerRefused),
                        Ok(Err(_)) => return Err(Why::ServerUnreachable),
                        Err(_) => return Err(Why::ServerTimedOut),
                    }
                    sleep(IN_USE_PAUSE).await;
                }
            }
        }
    }

    /// TLS and greeting, from here.
    async fn greet(
        self: &Arc<Self>,
        flow: Flow,
        server: &MailServer,
        octets: Octets,
    ) -> Result<OriginStream, OpenError> {
        let io: Box<dyn AsyncIo> = match octets {
            Octets::Stream(stream) => Box::new(leashed(self, flow, stream)),
            Octets::Tcp(tcp) => Box::new(leashed(self, flow, tcp)),
        };
        let name = &server.config.name;
        let Some(mail) = self.mail.get() else { return Err(OpenError::UnknownServer(name.clone())) };
        let tls = Some(origin_tls(server.config.tls));
        let greeted = timeout(GREET_MAX, mail.origins().greet_over(name, tls, io)).await;
        greeted.unwrap_or(Err(OpenError::TimedOut))
    }

    /// Serves a client to its end, or carries its octets. Why it was cut, if it was.
    pub(super) async fn serve(self: &Arc<Self>, flow: Flow, mut client: Tcp, bound: Bound) -> Option<Why> {
        let Bound { servers, road, reached } = bound;
        client.speaks(true);
        if let Some(server) = servers.only().filter(|server| server.config.tls != Encryption::Implicit) {
            return self.serve_plain(flow, client, server, road, reached).await;
        }
        let asked = match Asked::of(client, HELLO_MAX).await {
            Ok(asked) => asked,
            // Its server may understand it, and is the one to judge.
            Err(Unasked { io, said, error }) => {
                tracing::debug!(%error, "no ClientHello; carried as octets");
                let octets = match reached {
                    Reached::Octets(octets) => Some(octets),
                    Reached::Server(_) => None,
                };
                return self.carry_octets(flow, road, octets, io, said).await;
            }
        };
        let name = asked.server_name();
        let chosen = servers.called(name.as_deref()).filter(|server| !self.declines(server));
        let met = match (chosen, reached) {
            (Some(server), Reached::Server(origin)) => Ok((server, origin)),
            (Some(server), Reached::Octets(octets)) => match self.greet(flow, server, octets).await {
                Ok(origin) => Ok((server, origin)),
                Err(error) => {
                    self.not_greeted(server, &error);
                    Err(None)
                }
            },
            (None, Reached::Octets(octets)) => Err(Some(octets)),
            (None, Reached::Server(_)) => Err(None),
        };
        let (server, origin) = match met {
            Ok(met) => met,
            Err(octets) => {
                let (client, hello) = asked.into_parts();
                return self.carry_octets(flow, road, octets, client, hello).await;
            }
        };
        let Some(front) = &server.front else { return Some(Why::ConnectionReset) };
        match timeout(HELLO_MAX, front.answer(asked)).await {
            Ok(Ok(io)) => self.session(flow, (io, name), server, road, origin).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake with a client failed"),
            Err(_) => tracing::debug!("a TLS handshake with a client takes too long"),
        }
        None
    }

    /// A client that hears the server before it says anything.
    async fn serve_plain(
        self: &Arc<Self>,
        flow: Flow,
        client: Tcp,
        server: &Arc<MailServer>,
        road: Road,
        reached: Reached,
    ) -> Option<Why> {
        let greeted = match reached {
            Reached::Server(origin) => Ok(origin),
            Reached::Octets(octets) => self.greet(flow, server, octets).await,
        };
        match greeted {
            Ok(origin) => {
                self.session(flow, (Box::new(client), None), server, road, origin).await;
                None
            }
            Err(error) => {
                self.not_greeted(server, &error);
                self.carry_octets(flow, road, None, client, Bytes::new()).await
            }
        }
    }

    async fn session(
        self: &Arc<Self>,
        flow: Flow,
        (io, server_name): (Box<dyn AsyncIo>, Option<String>),
        server: &Arc<MailServer>,
        road: Road,
        origin: OriginStream,
    ) {
        let Some(mail) = self.mail.get() else { return };
        let way = OwnWay {
            carrier: Arc::clone(self),
            flow,
            road,
            server: Arc::clone(server),
            reached: Mutex::new(Some(origin)),
        };
        let client = Intercepted { io, client: flow.client, server: flow.server, server_name };
        mail.serve(server, client, Some(Way(Arc::new(way)))).await;
    }

    /// What the client has said goes first.
    async fn carry_octets(
        &self,
        flow: Flow,
        road: Road,
        octets: Option<Octets>,
        mut client: Tcp,
        said: Bytes,
    ) -> Option<Why> {
        client.speaks(false);
        let octets = match octets {
            Some(octets) => octets,
            None => match self.octets(flow, road).await {
                Ok(octets) => octets,
                Err(why) => return Some(why),
            },
        };
        let client = Prefixed::new(said, client);
        match octets {
            Octets::Stream(stream) => splice(stream, client).await,
            Octets::Tcp(server) => copy(server, client).await,
        }
    }

    fn not_greeted(&self, server: &MailServer, error: &OpenError) {
        if !lasts(error) {
            return tracing::info!(%error, server = %server.config.name, "the server is not greeted; this client is carried as octets");
        }
        tracing::warn!(%error, server = %server.config.name, "the server is not greeted; its clients are carried as octets for a while");
        self.lock().declined.note(Who::here(server), Instant::now());
    }
}

/// Whether a peer's word is enough that it speaks with the right server: passwords go through it in the clear. A pin is there
/// to believe nobody but the server's key.
fn is_believed(trust: &Trust, authority: Option<&str>) -> bool {
    match trust {
        Trust::Pin(_) => false,
        Trust::System | Trust::Ca(_) => authority == Some(OWN),
    }
}

/// Whether a server's failure to greet would meet its next client too. The rest one client can bring about, or chance.
fn lasts(error: &OpenError) -> bool {
    match error {
        OpenError::Tls(_) | OpenError::StartTls(_) | OpenError::Greeting(_) => true,
        OpenError::UnknownServer(_)
        | OpenError::Resolve { .. }
        | OpenError::Refused
        | OpenError::TimedOut
        | OpenError::Network(_)
        | OpenError::Bye(_) => false,
    }
}

/// Whether a refusal is about what stood before between the same ends and is on its way out. A SYN that was not seen is not
/// seen a moment later either: it is to be shown at once.
fn passes(why: Why) -> bool {
    matches!(why, Why::OtherWay | Why::Busy)
}

/// Whether a peer that does not open a server may still carry octets to it.
fn octets_may_do(why: Why) -> bool {
    matches!(why, Why::ServerTls | Why::Unsupported | Why::UnknownServer | Why::Violation | Why::Unknown)
}

/// A session's way to its server: what was reached for its client first, another one when that has ended.
struct OwnWay {
    carrier: Arc<Carrier>,
    flow: Flow,
    road: Road,
    server: Arc<MailServer>,
    reached: Mutex<Option<OriginStream>>,
}

impl OwnWay {
    async fn anew(&self) -> Result<OriginStream, OpenError> {
        let (carrier, server) = (&self.carrier, &self.server);
        let reached = carrier.reach(self.flow, self.road, Some(server)).await;
        match reached {
            Ok(Reached::Server(origin)) => Ok(origin),
            Ok(Reached::Octets(octets)) => carrier.greet(self.flow, server, octets).await,
            Err(why) => Err(OpenError::Network(why.to_string())),
        }
    }
}

impl OriginConnector for OwnWay {
    fn open(&self, request: OriginRequest) -> BoxFuture<'_, Result<OriginStream, OpenError>> {
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner).take();
        match reached {
            Some(origin) => Box::pin(async { Ok(origin) }),
            None => self.open_anew(request),
        }
    }

    fn open_anew(&self, _: OriginRequest) -> BoxFuture<'_, Result<OriginStream, OpenError>> {
        Box::pin(self.anew())
    }

    fn park(&self, _: &ServerId, _: u8) {}
}

/// Who did not open a server, at which port.
#[derive(PartialEq, Eq, Hash)]
pub(super) enum Who {
    Peer(engine::Peer, ServerId, u16),
    Here(ServerId, u16),
}

impl Who {
    fn here(server: &MailServer) -> Self {
        Self::Here(server.config.name.clone(), server.config.port.0)
    }
}

/// What did not work, for a while.
#[derive(Default)]
pub(super) struct Declined(HashMap<Who, Instant>);

impl Declined {
    pub(super) fn holds(&self, who: &Who, now: Instant) -> bool {
        self.0.get(who).is_some_and(|until| *until > now)
    }

    fn note(&mut self, who: Who, now: Instant) {
        self.0.retain(|_, until| *until > now);
        self.0.insert(who, now + DECLINED_FOR);
    }
}

/// Somebody may have mended it.
const DECLINED_FOR: Duration = Duration::from_secs(60);
/// As a listener gives its clients.
const HELLO_MAX: Duration = Duration::from_secs(10);
/// Where the client waits already.
const GREET_MAX: Duration = Duration::from_secs(10);
/// The end of what stood before between the same ends has a way to go.
const IN_USE_TRIES: u32 = 6;
const IN_USE_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::opener::refused;
    use discovery_core::engine::Reason;

    #[test]
    fn what_is_on_its_way_out_is_waited_for_and_what_was_not_seen_is_not() {
        for (reason, waits) in [
            (Reason::AlreadyClaimed, true),
            (Reason::TupleInUse, true),
            (Reason::LocalFailure, true),
            (Reason::NotGranted, false),
            (Reason::ServerRefused, false),
            (Reason::ServerSilent, false),
            (Reason::AgentDown, false),
        ] {
            assert_eq!(passes(refused(reason)), waits, "{reason:?}");
        }
    }

    #[test]
    fn a_peer_is_believed_by_its_authority_and_never_for_a_pin() {
        let (ca, pin) = (Trust::Ca("/ca.pem".into()), Trust::Pin(config::value::Pin([7; 32])));
        for (trust, authority, believed) in [
            (&Trust::System, Some(OWN), true),
            (&ca, Some(OWN), true),
            (&pin, Some(OWN), false),
            (&Trust::System, Some("partner"), false),
            (&ca, Some("partner"), false),
            (&pin, Some("partner"), false),
            (&Trust::System, None, false),
        ] {
            assert_eq!(is_believed(trust, authority), believed, "{trust:?} {authority:?}");
        }
    }

    #[test]
    fn only_what_the_next_client_would_meet_too_is_noted() {
        let why = || "why".to_owned();
        for (error, noted) in [
            (OpenError::Tls(why()), true),
            (OpenError::StartTls("why"), true),
            (OpenError::Greeting("why"), true),
            (OpenError::Bye(Bytes::new()), false),
            (OpenError::TimedOut, false),
            (OpenError::Network(why()), false),
            (OpenError::Refused, false),
        ] {
            assert_eq!(lasts(&error), noted, "{error:?}");
        }
    }
}
