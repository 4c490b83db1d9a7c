//! UDP has no SYN: the first packet between two addresses and ports begins a flow, and silence ends it (US 9,172,620,
//! 'the first packet of a UDP flow'). Such flows are recognised, ruled on, passed and counted; nothing carries them.

use crate::{
    engine::{Reason, Verdict},
    flow::Flow,
    lru::Lru,
    rule::{Action, Ruled},
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// The flows that pass.
#[derive(Clone, Debug)]
pub struct Datagrams {
    flows: Lru<Flow, Instant>,
    idle_max: Duration,
    begun: u64,
}

impl Datagrams {
    /// At most `flows_max` at once, each until `idle_max` after its last packet.
    #[must_use]
    pub fn new(flows_max: usize, idle_max: Duration) -> Self {
        Self { flows: Lru::new(flows_max), idle_max, begun: 0 }
    }

    /// Decides about one packet. The rule is that of the flow's first one, in the direction in which it went.
    pub fn see(&mut self, now: Instant, src: SocketAddr, dst: SocketAddr, ruled: Ruled) -> (Verdict, Reason) {
        let begins = Flow { client: src, server: dst };
        for flow in [begins, Flow { client: dst, server: src }] {
            if let Some(until) = self.flows.touch(&flow).filter(|until| **until > now) {
                *until = now + self.idle_max;
                return (Verdict::Pass, Reason::DatagramGoesOn);
            }
        }
        match ruled.action {
            Action::Drop => return (Verdict::Drop, Reason::RuleDrop),
            Action::Deny => return (Verdict::Drop, Reason::RuleDeny),
            // There never is a peer for it.
            Action::DropIfNoPeer => return (Verdict::Drop, Reason::NoPeer),
            Action::Pass | Action::Intercept | Action::InterceptSingle => {}
        }
        self.begun = self.begun.saturating_add(1);
        self.flows.insert(begins, now + self.idle_max);
        (Verdict::Pass, Reason::DatagramBegins)
    }

    /// Flows that ever began.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Flows remembered now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    #[test]
    fn the_first_packet_begins_a_flow_and_silence_ends_it() {
        let (mut datagrams, now) = (Datagrams::new(2, Duration::from_secs(30)), Instant::now());
        let address = |n| SocketAddr::from(([10, 1, 0, n], 53));
        let ruled = |action| Ruled { action, rule: Some(1) };
        let mut see = |after, src, dst, action| {
            datagrams.see(now + Duration::from_secs(after), address(src), address(dst), ruled(action))
        };
        assert_eq!(see(0, 1, 2, Action::Intercept), (Verdict::Pass, Reason::DatagramBegins));
        assert_eq!(
            see(29, 2, 1, Action::Drop),
            (Verdict::Pass, Reason::DatagramGoesOn),
            "an answer needs no rule"
        );
        assert_eq!(see(58, 1, 2, Action::Intercept), (Verdict::Pass, Reason::DatagramGoesOn));
        assert_eq!(
            see(88, 2, 1, Action::Drop),
            (Verdict::Drop, Reason::RuleDrop),
            "another flow, the other way"
        );
        assert_eq!(see(88, 1, 3, Action::DropIfNoPeer), (Verdict::Drop, Reason::NoPeer));
        assert_eq!(see(88, 1, 3, Action::Deny), (Verdict::Drop, Reason::RuleDeny));
        for n in 3..9 {
            assert_eq!(see(90, 1, n, Action::Pass), (Verdict::Pass, Reason::DatagramBegins));
        }
        assert_eq!((datagrams.begun(), datagrams.len(), datagrams.is_empty()), (7, 2, false));
    }
}
