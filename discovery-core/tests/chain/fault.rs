//! What befalls a node, and what its kernel and its peers make of it.

use crate::{
    node::{Node, Stream, peer},
    tcp::{Packet, What},
    world::{Due, Fault, World},
};
use discovery_core::{
    engine::{Engine, Event, Refusal},
    flow::Flow,
};

impl World {
    pub(crate) fn befall(&mut self, at: usize, fault: Fault) {
        if !self.node(at).alive {
            return;
        }
        self.note(format!("{at} {fault:?}"));
        match fault {
            Fault::Kill(back) => {
                let config = self.node(at).config.clone();
                self.sockets_go(at);
                let node = self.node(at);
                let (queries, answers) =
                    (std::mem::take(&mut node.queries), std::mem::take(&mut node.answers));
                *node = Node { alive: false, agent: false, queries, answers, ..Node::new(at, config) };
                self.later(back, Due::Back { node: at, fault });
            }
            Fault::Agent(back) => {
                self.node(at).agent = false;
                self.sockets_go(at);
                self.node(at).up.clear();
                self.event(at, Event::AgentDown);
                self.later(back, Due::Back { node: at, fault });
            }
            Fault::Bypass(back) => {
                self.event(at, Event::Bypass { on: true });
                self.later(back, Due::Back { node: at, fault });
            }
        }
    }

    /// What a kernel does with the sockets of a process that is gone.
    pub(crate) fn sockets_go(&mut self, at: usize) {
        self.node(at).streams.clear();
        self.node(at).early.clear();
        for (_, (caller, _)) in std::mem::take(&mut self.node(at).callers) {
            if let Some(rst) = caller.abort() {
                self.send(at, true, Packet { what: What::Fin, ..rst });
            }
        }
        let conns: Vec<Flow> = self.node(at).listener.conns.keys().copied().collect();
        // A listener that is closed forgets what it did not hand over.
        for flow in conns {
            if let Some(fin) = self.node(at).listener.end(flow, What::Fin) {
                self.send(at, false, fin);
            }
        }
        self.node(at).listener.conns.clear();
        for other in (1..=self.plan.nodes).filter(|other| *other != at) {
            let delay = self.distance(at, other) + 1;
            self.later(delay, Due::Lost { node: other, peer: at });
        }
    }

    pub(crate) fn come_back(&mut self, at: usize, fault: Fault) {
        match fault {
            Fault::Kill(_) => {
                let config = self.node(at).config.clone();
                self.node(at).engine = Engine::new(config);
                self.wake_up(at);
            }
            Fault::Agent(_) if self.node(at).alive && !self.node(at).agent => self.wake_up(at),
            Fault::Agent(_) => {}
            Fault::Bypass(_) => self.event(at, Event::Bypass { on: false }),
        }
    }

    pub(crate) fn peer_lost(&mut self, at: usize, lost: usize) {
        if !self.node(at).alive || !self.node(at).agent {
            return;
        }
        self.node(at).up.retain(|up| *up != lost);
        self.event(at, Event::PeerDown { peer: peer(lost) });
        let broken: Vec<(Flow, Stream)> = (self.node(at).streams.iter())
            .filter(|(_, stream)| stream.up == Some(lost) || stream.down == Some(lost))
            .map(|(flow, stream)| (*flow, *stream))
            .collect();
        for (flow, stream) in broken {
            if stream.down.is_none() && !stream.opened {
                self.node(at).streams.remove(&flow);
                self.event(at, Event::Refused { flow, why: Refusal::NoLink });
            } else {
                self.close(at, flow, Some(lost));
            }
        }
        if self.nodes[lost - 1].alive && self.nodes[lost - 1].agent && self.plan.warm {
            self.link_stands(at, lost);
            self.drain(at);
        }
    }
}
