//! The connections that the engine has something to do with, their deadlines and the SYNs it keeps for them. Bounded
//! in number and in octets: what does not fit is not touched.

use super::{Peer, Reason};
use crate::{
    flow::{Flow, Ingress},
    probe::KeyHint,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) state: State,
    /// The sequence number of the client's SYN; none when a peer asked for the connection and no SYN was seen.
    pub(super) isn: Option<u32>,
    /// Where its SYN came in.
    pub(super) ingress: Option<Ingress>,
    packet: Vec<u8>,
    pub(super) deadline: Option<Instant>,
    /// Who was asked over the link, since when; none once the path has been asked.
    pub(super) asked: Option<Asked>,
}

/// Peers that were asked for a connection, one after another.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) since: Instant,
    pub(super) keys: Vec<KeyHint>,
}

impl Entry {
    pub(super) fn new(state: State, isn: Option<u32>, ingress: Option<Ingress>) -> Self {
        Self { state, isn, ingress, packet: Vec::new(), deadline: None, asked: None }
    }
}

/// What the engine does for a connection: as the client's node, or as the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Client: the query is on its way on the client's own SYN.
    Probing { probes: u8, last: Instant },
    /// Client: the connection goes past this node. `withheld`: its last SYN went without the query because the ones
    /// before it were not answered.
    Direct { withheld: bool },
    /// Client: the SYN waits for a separate probe. `strict`: it may not go past a peer.
    Held { strict: bool },
    /// Client: the SYN waits for the peer's word. `unasked`: the path was not asked, because the peer is known, and still
    /// can be; when the client last sent the SYN.
    Opening { peer: Peer, strict: bool, unasked: Option<Instant> },
    /// Client: the SYN was given to this node's own stack. No peer: terminated here alone.
    Carried { peer: Option<Peer>, opened: bool },
    /// Server: an own connect is on its way.
    Connecting(Connecting),
    /// Server: connected before anybody claimed it.
    Early { own_isn: Option<u32> },
    /// Server: a further node answered the own SYN.
    Middle { next: Peer, connected: bool, own_isn: Option<u32> },
    /// Server: a peer has it.
    Claimed { own_isn: Option<u32>, next: Option<Peer> },
}

/// An own connect on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connecting {
    pub(super) own_isn: Option<u32>,
    /// Own SYNs that carried the query.
    pub(super) probes: u8,
    /// The last own SYN went without it.
    pub(super) plain: bool,
    /// A peer waits for the outcome.
    pub(super) claimed: bool,
}

impl State {
    /// An early connection, or the place of one, that nobody has claimed.
    pub(super) fn unclaimed(&self) -> bool {
        match self {
            Self::Connecting(connecting) => !connecting.claimed,
            Self::Early { .. } | Self::Middle { .. } => true,
            Self::Probing { .. } | Self::Direct { .. } | Self::Held { .. } | Self::Opening { .. } => false,
            Self::Carried { .. } | Self::Claimed { .. } => false,
        }
    }

    /// The sequence number of this node's own SYN for the flow.
    pub(super) fn own_isn(&self) -> Option<u32> {
        match self {
            Self::Connecting(connecting) => connecting.own_isn,
            Self::Early { own_isn } | Self::Middle { own_isn, .. } | Self::Claimed { own_isn, .. } => {
                *own_isn
            }
            Self::Probing { .. } | Self::Direct { .. } | Self::Held { .. } => None,
            Self::Opening { .. } | Self::Carried { .. } => None,
        }
    }
}

/// All of them.
#[derive(Clone, Debug)]
pub(super) struct Table {
    entries: BTreeMap<Flow, Entry>,
    deadlines: BTreeSet<(Instant, Flow)>,
    octets: usize,
    held: usize,
    unclaimed: usize,
    flows_max: usize,
    octets_max: usize,
}

impl Table {
    pub(super) fn new(flows_max: usize, octets_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            octets: 0,
            held: 0,
            unclaimed: 0,
            flows_max,
            octets_max,
        }
    }

    pub(super) fn get(&self, flow: &Flow) -> Option<&Entry> {
        self.entries.get(flow)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Octets of kept SYNs.
    pub(super) fn octets(&self) -> usize {
        self.octets
    }

    /// SYNs that wait for separate probes.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Early connections that nobody claimed.
    pub(super) fn unclaimed(&self) -> usize {
        self.unclaimed
    }

    /// Whether another connection whose SYN has so many octets fits.
    pub(super) fn has_room(&self, octets: usize) -> bool {
        self.entries.len() < self.flows_max && self.octets.saturating_add(octets) <= self.octets_max
    }

    /// Puts a connection in. The caller asked [`Table::has_room`] before.
    pub(super) fn insert(&mut self, flow: Flow, entry: Entry, deadline: Option<Instant>, packet: &[u8]) {
        self.remove(&flow);
        self.count(&entry.state, true);
        self.entries.insert(flow, entry);
        self.set_deadline(&flow, deadline);
        self.keep(&flow, packet);
    }

    pub(super) fn remove(&mut self, flow: &Flow) -> Option<Entry> {
        let entry = self.entries.remove(flow)?;
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, *flow));
        }
        self.count(&entry.state, false);
        self.octets -= entry.packet.len();
        Some(entry)
    }

    pub(super) fn set_state(&mut self, flow: &Flow, state: State) {
        let Some(entry) = self.entries.get_mut(flow) else { return };
        let before = std::mem::replace(&mut entry.state, state);
        self.count(&before, false);
        self.count(&state, true);
    }

    pub(super) fn set_asked(&mut self, flow: &Flow, asked: Option<Asked>) {
        if let Some(entry) = self.entries.get_mut(flow) {
            entry.asked = asked;
        }
    }

    pub(super) fn set_deadline(&mut self, flow: &Flow, deadline: Option<Instant>) {
        let Some(entry) = self.entries.get_mut(flow) else { return };
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, *flow));
        }
        entry.deadline = deadline;
        if let Some(at) = deadline {
            self.deadlines.insert((at, *flow));
        }
    }

    /// Keeps the newest SYN of a connection, when it fits.
    pub(super) fn keep(&mut self, flow: &Flow, packet: &[u8]) {
        let Some(entry) = self.entries.get_mut(flow) else { return };
        let others = self.octets - entry.packet.len();
        if others.saturating_add(packet.len()) <= self.octets_max {
            packet.clone_into(&mut entry.packet);
            self.octets = others + packet.len();
        }
    }

    /// The kept SYN, which is kept no longer.
    pub(super) fn take_packet(&mut self, flow: &Flow) -> Option<Vec<u8>> {
        let packet = std::mem::take(&mut self.entries.get_mut(flow)?.packet);
        self.octets -= packet.len();
        (!packet.is_empty()).then_some(packet)
    }

    /// A connection whose time has come; its deadline is gone with it.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Flow> {
        let (at, flow) = *self.deadlines.first()?;
        if at > now {
            return None;
        }
        self.set_deadline(&flow, None);
        Some(flow)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Flow, &Entry)> {
        self.entries.iter()
    }

    /// The flows for which `wanted` holds, to be gone through while the table changes.
    pub(super) fn flows(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Flow> {
        self.entries.iter().filter(|(_, entry)| wanted(entry)).map(|(flow, _)| *flow).collect()
    }

    fn count(&mut self, state: &State, more: bool) {
        let step = |n: &mut usize| *n = if more { *n + 1 } else { *n - 1 };
        if state.unclaimed() {
            step(&mut self.unclaimed);
        }
        if matches!(state, State::Held { .. }) {
            step(&mut self.held);
        }
    }
}

/// A connection as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRow {
    /// Which.
    pub flow: Flow,
    /// What the engine does for it, in its own words.
    pub standing: Reason,
    /// Through whom.
    pub peer: Option<Peer>,
}

impl FlowRow {
    pub(super) fn of(flow: Flow, state: &State) -> Self {
        let (standing, peer) = match state {
            State::Probing { .. } => (Reason::Probing, None),
            State::Direct { .. } => (Reason::Direct, None),
            State::Held { .. } => (Reason::Held, None),
            State::Opening { peer, .. } => (Reason::Opening, Some(*peer)),
            State::Carried { peer: None, .. } => (Reason::Single, None),
            State::Carried { peer, .. } => (Reason::Carried, *peer),
            State::Connecting(_) => (Reason::Connecting, None),
            State::Early { .. } => (Reason::AnsweredProbe, None),
            State::Middle { next, .. } => (Reason::Middle, Some(*next)),
            State::Claimed { next, .. } => (Reason::Claimed, *next),
        };
        Self { flow, standing, peer }
    }
}
