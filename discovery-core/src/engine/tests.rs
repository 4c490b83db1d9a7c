//! One engine under a script of packets and events.

mod choice;
mod client;
mod existing;
mod grid;
mod server;

use super::*;
use crate::{
    flow::Ingress,
    now::UnixMillis,
    pmt::Known,
    probe::{KeyHint, Query, Response},
};
use std::time::Duration;

pub(super) const LAN: Ingress = Ingress(1);
pub(super) const WAN: Ingress = Ingress(2);
pub(super) const ISN: u32 = u32::MAX;

/// A SYN of so many octets; the engine does not look inside.
pub(super) const SYN: &[u8] = &[0x45; 60];

pub(super) fn flow() -> Flow {
    flow_of(40_000)
}

pub(super) fn flow_of(port: u16) -> Flow {
    Flow { client: SocketAddr::from(([10, 1, 0, 2], port)), server: SocketAddr::from(([10, 2, 0, 2], 143)) }
}

pub(super) fn peer(n: u8) -> Peer {
    Peer { link: SocketAddr::from(([10, 8, 0, n], 7777)), key: KeyHint([n; 8]) }
}

pub(super) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// An engine with a clock, an agent and a way to say things shortly.
pub(super) struct Rig {
    pub(super) engine: Engine,
    start: Instant,
    pub(super) at: Duration,
    pub(super) action: Action,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    pub(super) fn with(config: Config) -> Self {
        let mut rig = Self {
            engine: Engine::new(config),
            start: Instant::now(),
            at: Duration::ZERO,
            action: Action::Intercept,
        };
        rig.tell(Event::AgentUp);
        rig
    }

    pub(super) fn now(&self) -> Now {
        Now { mono: self.start + self.at, wall: UnixMillis(1_800_000_000_000).plus(self.at) }
    }

    /// Lets time go by, with every timer a little after its time, as timers are.
    pub(super) fn wait(&mut self, by: Duration) {
        let until = self.at + by;
        while let Some(at) = self.engine.poll_timeout().map(|at| at.saturating_duration_since(self.start)) {
            if at > until {
                break;
            }
            self.at = self.at.max(at + ms(1));
            self.engine.handle_timeout(self.now());
        }
        self.at = self.at.max(until);
    }

    pub(super) fn see(&mut self, seen: &Seen) -> (Verdict, Reason) {
        let ruled = Ruled { action: self.action, rule: Some(1) };
        let dry = self.engine.explain(self.now(), seen, ruled);
        let verdict = self.engine.handle_segment(self.now(), seen, ruled, SYN);
        let decision = (verdict, self.engine.last_reason());
        assert_eq!(dry, decision, "what is explained is what is done");
        decision
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.engine.handle_event(self.now(), event);
    }

    /// Everything it wants done, but for what it has learnt.
    pub(super) fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.engine.poll_output()).filter(|o| !matches!(o, Output::Learnt(_))).collect()
    }

    pub(super) fn known(&mut self) -> Lookup {
        self.engine.pmt.lookup(self.start + self.at, flow().server)
    }

    pub(super) fn standing(&self) -> Option<Reason> {
        self.engine.flows().find(|row| row.flow == flow()).map(|row| row.standing)
    }
}

pub(super) fn syn(flow: Flow, isn: u32) -> Seen {
    Seen {
        src: flow.client,
        dst: flow.server,
        hook: Hook::Forwarded(LAN),
        kind: Kind::Syn,
        seq: isn,
        ack: 0,
        probe: None,
        room: Room::Fits,
    }
}

pub(super) fn query(flow: Flow, isn: u32) -> Seen {
    Seen { probe: Some(Probe::Query(Query)), hook: Hook::Forwarded(WAN), ..syn(flow, isn) }
}

pub(super) fn own(flow: Flow, isn: u32) -> Seen {
    Seen { hook: Hook::Own, ..syn(flow, isn) }
}

pub(super) fn answer(flow: Flow, ack: u32) -> Seen {
    Seen {
        src: flow.server,
        dst: flow.client,
        hook: Hook::Forwarded(WAN),
        kind: Kind::SynAck,
        seq: 77,
        ack,
        probe: None,
        room: Room::Fits,
    }
}

pub(super) fn response(flow: Flow, ack: u32, from: Peer, connected: bool) -> Seen {
    let response = Response { link: from.link, key: from.key, connected };
    Seen { probe: Some(Probe::Response(response)), ..answer(flow, ack) }
}

pub(super) fn rst(flow: Flow, seq: u32) -> Seen {
    Seen { kind: Kind::Rst, ..syn(flow, seq) }
}

pub(super) fn inject() -> Output {
    Output::InjectSyn { flow: flow(), packet: SYN.to_vec() }
}

pub(super) fn release() -> Output {
    Output::ReleaseSyn { flow: flow(), packet: SYN.to_vec() }
}

pub(super) fn probe() -> Output {
    Output::ProbeSyn { flow: flow(), packet: SYN.to_vec() }
}

pub(super) fn open(n: u8) -> Output {
    Output::Open { flow: flow(), peer: peer(n) }
}
