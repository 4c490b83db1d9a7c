//! A deflector's side of what it and its proxies say to each other: which of them are there, and what they may reach.

use super::questions::Offered;
use crate::config::{
    deflection::Deflector,
    value::{DeflectMode, DeflectPolicy},
};
use discovery_core::{
    candidates::{Candidate, Policy, Standing},
    deflector::{Mode, control::Control},
    engine::Peer,
    flow::{Flow, Ingress},
    id::NodeId,
    packet::Protocol,
    probe::Codec,
    rule::{Action, Facts, RuleSet},
};
use discovery_linux::deflect::Deflect;
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// See the module's documentation.
pub(super) struct Deflecting {
    pub(super) deflect: Deflect,
    proxies: Vec<(NodeId, SocketAddr)>,
    policy: Policy,
    rules: RuleSet,
    ingress: Ingress,
    heard: Mutex<HashMap<NodeId, (Candidate, Instant)>>,
}

impl Deflecting {
    pub(super) fn new(
        config: &Deflector,
        codec: Codec,
        v6: bool,
        rules: RuleSet,
        ingress: Ingress,
    ) -> io::Result<Self> {
        let mode = match config.mode {
            DeflectMode::Static => Mode::Static,
            DeflectMode::Discovering => Mode::Discovering,
        };
        let policy = match config.policy {
            DeflectPolicy::Primary => Policy::Primary,
            DeflectPolicy::Load => Policy::Load,
            DeflectPolicy::Hash => Policy::Hash,
        };
        let deflect = Deflect::new(mode, policy, codec, config.port, v6)?;
        Ok(Self { deflect, proxies: config.proxies.clone(), policy, rules, ingress, heard: Mutex::default() })
    }

    /// What a peer says; what it is answered.
    pub(super) fn hear(&self, from: &NodeId, control: Control) -> Option<Control> {
        let rank = self.proxies.iter().position(|(proxy, _)| proxy == from)?;
        let (_, at) = self.proxies.get(rank)?;
        match control {
            Control::Ready { load, key, link } => {
                let rank = u8::try_from(rank).unwrap_or(u8::MAX);
                // The operator's word about where it is counts more than its own.
                let peer = Peer { link: SocketAddr::new(at.ip(), link.port()), key };
                let candidate = Candidate { peer, rank, standing: Standing::Ready, load };
                self.lock().insert(from.clone(), (candidate, Instant::now()));
                self.renew();
                None
            }
            Control::Ask { client, server, by } => {
                let allowed = server.is_none_or(|server| self.allows(Flow { client, server }));
                let (server, port) =
                    if allowed { self.deflect.reach(at.ip(), client, server, by) } else { (server, None) };
                tracing::debug!(%from, %client, ?server, ?port, "a proxy asks for a way to a server");
                Some(Control::Given { client, server, port })
            }
            Control::Given { .. } => None,
        }
    }

    /// A proxy reaches what it could be given, and nothing else.
    fn allows(&self, flow: Flow) -> bool {
        let facts = Facts { flow, protocol: Protocol::Tcp, ingress: Some(self.ingress), vlan: None };
        match self.rules.decide(&facts, &[]).action {
            Action::Intercept | Action::InterceptSingle | Action::DropIfNoPeer => true,
            Action::Pass | Action::Drop | Action::Deny => false,
        }
    }

    /// Its proxies, for clients' nodes: those choose among them as this node would.
    pub(super) fn told(&self) -> Vec<Offered> {
        let now = Instant::now();
        let node = |(candidate, at): &(Candidate, Instant)| Offered {
            link: candidate.peer.link,
            key: candidate.peer.key.0,
            rank: if self.policy == Policy::Primary { candidate.rank } else { 0 },
            able: now.saturating_duration_since(*at) < SILENT_MAX,
            load: candidate.load,
        };
        self.lock().values().map(node).collect()
    }

    fn renew(&self) {
        let now = Instant::now();
        let heard = self.lock();
        let all = heard.values().map(|(candidate, at)| {
            let heard = now.saturating_duration_since(*at) < SILENT_MAX;
            Candidate { standing: if heard { Standing::Ready } else { Standing::Away }, ..*candidate }
        });
        self.deflect.candidates(all.collect());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, (Candidate, Instant)>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes proxies out that have fallen silent, and keeps the kernel's sets filled.
pub(super) async fn watch(deflecting: Arc<Deflecting>) {
    loop {
        sleep(READY_EVERY).await;
        deflecting.renew();
        deflecting.deflect.remind();
    }
}

/// The proxies' addresses, for the rules.
pub(super) fn addresses(config: &Deflector) -> Vec<IpAddr> {
    config.proxies.iter().map(|(_, at)| at.ip()).collect()
}

/// How often a proxy says that it is there.
pub(super) const READY_EVERY: Duration = Duration::from_millis(300);
/// Several of them.
const SILENT_MAX: Duration = Duration::from_millis(1500);
