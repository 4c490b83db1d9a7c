//! What a node on the path tells about itself: netd of the packet loop, the node of its links.

use super::{
    carrier::Carrier,
    questions::{Key, LoopExplained},
};
use crate::api::{
    CandidateStatus, DatagramStatus, Explained, FlowStatus, LaneStatus, Named, PathStatus, PeerStatus,
    TableStatus,
};
use discovery_core::{
    engine::{Engine, FlowRow, Hook, Kind, Peer, Ranked, Reason, Room, Seen, Verdict},
    flow::{Flow, Ingress},
    now::Now,
    packet::Protocol,
    pmt::{Known, Place, PmtRow},
    probe::KeyHint,
    rule::{Action, Facts, RuleSet},
};
use discovery_linux::{
    netd::Handle,
    rules::{Instance, Rules},
};
use std::{net::SocketAddr, time::Duration};
use tokio::{sync::oneshot, time::timeout};
use wan::LinkStatus;

/// What the packet loop knows.
pub(super) async fn look(
    handle: &Handle,
    instance: Instance,
    bypassed: bool,
) -> (PathStatus, Vec<(SocketAddr, Key)>) {
    let mut peers = Vec::new();
    let mut status = PathStatus::default();
    let told = ask(handle, |engine, now| {
        let counts =
            Reason::ALL.iter().map(|reason| Named { word: reason.to_string(), n: engine.count(*reason) });
        (
            engine.pmt_rows(now).into_iter().map(entry).collect(),
            candidates(engine, now),
            engine.flows().take(FLOWS_MAX).map(flow).collect(),
            counts.filter(|count| count.n > 0).collect(),
            engine.datagram_flows(),
        )
    })
    .await;
    let state = match (&told, bypassed) {
        (None, _) => HANGING,
        (Some(_), true) => "bypassed",
        (Some(_), false) => "taking",
    };
    status.state = state.to_owned();
    if let Some((table, candidates, flows, reasons, udp)) = told {
        (status.table, status.flows, status.reasons) = (table, flows, reasons);
        (status.candidates, peers) = candidates.into_iter().map(candidate).unzip();
        status.datagrams = datagrams(instance, udp).await;
    }
    (status, peers)
}

/// UDP flows that passed, and what the kernel has counted of them.
async fn datagrams(instance: Instance, flows: u64) -> Option<DatagramStatus> {
    let counted = tokio::task::spawn_blocking(move || Rules::datagrams(&instance)).await;
    let (datagrams, octets) = counted.ok()?.ok()??;
    Some(DatagramStatus { flows, datagrams, octets })
}

/// What would become of a SYN that came in through the interface of this number.
pub(super) async fn explain(
    handle: &Handle,
    rules: RuleSet,
    flow: Flow,
    ingress: Ingress,
) -> Option<LoopExplained> {
    let facts = Facts { flow, protocol: Protocol::Tcp, ingress: Some(ingress), vlan: None };
    let ruled = rules.decide(&facts, &[]);
    let seen = Seen {
        src: flow.client,
        dst: flow.server,
        hook: Hook::Forwarded(ingress),
        kind: Kind::Syn,
        seq: 0,
        ack: 0,
        probe: None,
        room: Room::Fits,
    };
    let ((verdict, reason), candidates) =
        ask(handle, move |engine, now| (engine.explain(now, &seen, ruled), engine.candidates(now, &flow)))
            .await?;
    let verdict = match verdict {
        Verdict::Pass => "pass",
        Verdict::PassWithQuery => "pass-with-query",
        Verdict::Drop => "taken",
    };
    let server = flow.server.to_string();
    let (candidates, peers) =
        candidates.into_iter().map(|ranked| candidate((server.clone(), ranked))).unzip();
    let explained = Explained {
        rule: ruled.to_string(),
        verdict: verdict.to_owned(),
        reason: reason.to_string(),
        candidates,
        mail: Vec::new(),
    };
    Some(LoopExplained { explained, peers, ends_here: ends_here(ruled.action) })
}

/// Where there is more than one, for the server or the first of its network. Which of equal ones it is depends on the client.
fn candidates(engine: &Engine, now: Now) -> Vec<(String, Ranked)> {
    let mut places: Vec<Place> = Vec::new();
    for row in engine.pmt_rows(now) {
        if matches!(row.known, Known::Peer(_) | Known::Static(_)) && !places.contains(&row.place) {
            places.push(row.place);
        }
        if places.len() == PLACES_MAX {
            break;
        }
    }
    let mut all = Vec::new();
    for place in places {
        let server = match place {
            Place::Server(server) => server,
            Place::Network(network, port) => SocketAddr::new(network.address(), port.unwrap_or(0)),
        };
        let found = engine.candidates(now, &Flow { client: server, server });
        if found.len() > 1 {
            all.extend(found.into_iter().map(|ranked| (shown(place), ranked)));
        }
    }
    all
}

/// Which node it is, the packet loop does not know.
fn candidate((server, ranked): (String, Ranked)) -> (CandidateStatus, (SocketAddr, Key)) {
    let Ranked { candidate, known } = ranked;
    let status = CandidateStatus {
        server,
        peer: candidate.peer.link.to_string(),
        node: None,
        by: known.word().to_owned(),
        preference: candidate.rank,
        standing: candidate.standing.word().to_owned(),
        load_percent: candidate.load,
    };
    (status, (candidate.peer.link, candidate.peer.key.0))
}

/// Says which nodes they are, as far as that is known.
pub(super) fn named(candidates: &mut [CandidateStatus], peers: &[(SocketAddr, Key)], carrier: &Carrier) {
    for (candidate, (link, key)) in candidates.iter_mut().zip(peers) {
        let peer = Peer { link: *link, key: KeyHint(*key) };
        candidate.node = carrier.name(peer).map(|node| node.to_string());
    }
}

/// Whether a session of a mail server may end here, where a rule says this.
fn ends_here(action: Action) -> bool {
    match action {
        Action::Intercept | Action::InterceptSingle | Action::DropIfNoPeer => true,
        Action::Pass | Action::Drop | Action::Deny => false,
    }
}

/// Runs a closure in the loop's thread; none when the loop hangs or is gone.
pub(super) async fn ask<T: Send + 'static>(
    handle: &Handle,
    question: impl FnOnce(&mut Engine, Now) -> T + Send + 'static,
) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    handle.with(move |engine, now, _| drop(answer.send(question(engine, now))));
    timeout(PATIENCE, answered).await.ok()?.ok()
}

pub(super) fn peer(link: LinkStatus) -> PeerStatus {
    let lanes = link.lanes.into_iter().map(|lane| LaneStatus {
        lane: format!("{:?}", lane.lane).to_ascii_lowercase(),
        remote: lane.remote.to_string(),
        rtt_us: lane.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        congestion_control: lane.congestion,
    });
    PeerStatus {
        node: link.node.to_string(),
        lanes: lanes.collect(),
        streams: u64::try_from(link.counts.streams).unwrap_or(u64::MAX),
        sent_octets: link.counts.sent_octets,
        received_octets: link.counts.received_octets,
        resumes: link.counts.resumes,
        last: link.last.map(|why| why.to_string()),
    }
}

fn entry(row: PmtRow) -> TableStatus {
    let (known, peer) = match row.known {
        Known::Peer(peer) => ("peer", Some(peer)),
        Known::Static(peer) => ("static", Some(peer)),
        Known::NoProxy => ("no-proxy", None),
        Known::OptionDropped => ("option-dropped", None),
        Known::Asymmetric => ("asymmetric", None),
    };
    let server = shown(row.place);
    let peer = peer.map(|peer| peer.link.to_string());
    TableStatus { server, known: known.to_owned(), peer, ttl_s: row.ttl.as_secs(), flaps: row.flaps }
}

fn shown(place: Place) -> String {
    match place {
        Place::Server(server) => server.to_string(),
        Place::Network(network, Some(port)) => format!("{network} port {port}"),
        Place::Network(network, None) => network.to_string(),
    }
}

fn flow(row: FlowRow) -> FlowStatus {
    FlowStatus {
        client: row.flow.client.to_string(),
        server: row.flow.server.to_string(),
        reason: row.standing.to_string(),
        peer: row.peer.map(|peer| peer.link.to_string()),
    }
}

/// The state of a packet loop that does not answer.
pub(super) const HANGING: &str = "hanging";
/// A loop that hangs must not hang `status`.
const PATIENCE: Duration = Duration::from_millis(500);
/// For eyes: servers with several candidates.
const PLACES_MAX: usize = 256;
/// For eyes; the reasons count all.
const FLOWS_MAX: usize = 1000;
