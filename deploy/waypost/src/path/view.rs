//! What a node on the path tells about itself: netd of the packet loop, the node of its links.

use crate::api::{
    DatagramStatus, Explained, FlowStatus, LaneStatus, Named, PathStatus, PeerStatus, TableStatus,
};
use discovery_core::{
    engine::{Engine, FlowRow, Hook, Kind, Reason, Room, Seen, Verdict},
    flow::{Flow, Ingress},
    now::Now,
    packet::Protocol,
    pmt::{Known, Place, PmtRow},
    rule::{Facts, RuleSet},
};
use discovery_linux::{
    netd::Handle,
    rules::{Instance, Rules},
};
use std::time::Duration;
use tokio::{sync::oneshot, time::timeout};
use wan::LinkStatus;

/// What the packet loop knows.
pub(super) async fn look(handle: &Handle, instance: Instance, bypassed: bool) -> PathStatus {
    let mut status = PathStatus::default();
    let told = ask(handle, |engine, now| {
        let counts =
            Reason::ALL.iter().map(|reason| Named { word: reason.to_string(), n: engine.count(*reason) });
        (
            engine.pmt_rows(now).into_iter().map(entry).collect(),
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
    if let Some((table, flows, reasons, udp)) = told {
        (status.table, status.flows, status.reasons) = (table, flows, reasons);
        status.datagrams = datagrams(instance, udp).await;
    }
    status
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
) -> Option<Explained> {
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
    let (verdict, reason) = ask(handle, move |engine, now| engine.explain(now, &seen, ruled)).await?;
    let verdict = match verdict {
        Verdict::Pass => "pass",
        Verdict::PassWithQuery => "pass-with-query",
        Verdict::Drop => "taken",
    };
    Some(Explained { rule: ruled.to_string(), verdict: verdict.to_owned(), reason: reason.to_string() })
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
    let server = match row.place {
        Place::Server(server) => server.to_string(),
        Place::Network(network, Some(port)) => format!("{network} port {port}"),
        Place::Network(network, None) => network.to_string(),
    };
    let peer = peer.map(|peer| peer.link.to_string());
    TableStatus { server, known: known.to_owned(), peer, ttl_s: row.ttl.as_secs(), flaps: row.flaps }
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
/// For eyes; the reasons count all.
const FLOWS_MAX: usize = 1000;
