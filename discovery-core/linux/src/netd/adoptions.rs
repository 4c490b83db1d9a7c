//! Connections that are observed in order to adopt them, and those whose SYNs went past.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use discovery_core::adopt::{Observation, Passed, Segment, Terms};
use discovery_core::engine::Reason;
use discovery_core::flow::Flow;

use crate::{conntrack, repair};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Adoptions {
    observed: HashMap<Flow, Observed>,
    pub(super) passed: Passed,
}

#[derive(Debug)]
struct Observed {
    observation: Observation,
    /// A packet has come because every one does.
    begun: bool,
}

/// What became of a connection.
#[derive(Debug)]
pub(super) enum Outcome {
    Adopted { flow: Flow, client: OwnedFd, server: OwnedFd },
    Refused { flow: Flow, why: Reason },
}

impl Adoptions {
    pub(super) fn is_empty(&self) -> bool {
        self.observed.is_empty()
    }

    /// Whether no further one can be observed now.
    pub(super) fn is_full(&self) -> bool {
        self.observed.len() >= OBSERVED_MAX
    }

    /// From now on every packet of it will be shown.
    pub(super) fn begin(&mut self, now: Instant, flow: Flow, mss: u16) -> Result<(), Reason> {
        let terms = self.terms(flow, mss).ok_or(Reason::AdoptUnscaled)?;
        tracing::debug!(%flow, ?terms, "observed, to adopt it");
        let observation = Observation::begin(now, terms);
        self.observed.insert(flow, Observed { observation, begun: false });
        Ok(())
    }

    fn terms(&mut self, flow: Flow, mss: u16) -> Option<Terms> {
        // Where the rules fit either way, its client may be the other end.
        let back = Flow { client: flow.server, server: flow.client };
        let passed = self.passed.terms(&flow).or_else(|| self.passed.terms(&back).map(Terms::turned));
        passed.or_else(|| {
            conntrack::ask(flow, mss).unwrap_or_else(|error| {
                tracing::debug!(%flow, %error, "connection tracking says nothing");
                None
            })
        })
    }

    /// The observed flow to which a packet belongs, and whether its client sent it.
    pub(super) fn of(&self, up: Flow) -> Option<(Flow, bool)> {
        let down = Flow { client: up.server, server: up.client };
        [(up, true), (down, false)].into_iter().find(|(flow, _)| self.observed.contains_key(flow))
    }

    /// A packet of an observed flow goes on; why it is observed no longer, if it is not. `watched`: every packet of the
    /// flow comes, as long as the kernel says so without a break.
    pub(super) fn see(
        &mut self,
        now: Instant,
        flow: Flow,
        segment: &Segment<'_>,
        watched: bool,
    ) -> Option<Outcome> {
        let observed = self.observed.get_mut(&flow)?;
        match (observed.begun, watched) {
            // It waited in the queue before its flow was watched.
            (false, false) => return None,
            (true, false) => return Some(self.refused(flow, Reason::AdoptUnsteady)),
            (_, true) => observed.begun = true,
        }
        let seen = observed.observation.see(now, segment);
        seen.err().map(|why| self.refused(flow, why))
    }

    /// Something was not seen, nobody knows of which flow: nothing is certain of any.
    pub(super) fn blind(&mut self) -> Vec<Outcome> {
        let flows: Vec<Flow> = self.observed.keys().copied().collect();
        flows.into_iter().map(|flow| self.refused(flow, Reason::AdoptUnsteady)).collect()
    }

    fn refused(&mut self, flow: Flow, why: Reason) -> Outcome {
        self.observed.remove(&flow);
        Outcome::Refused { flow, why }
    }

    /// Whether this is a moment for the flow. What was shown has left, and what comes waits until the next call returns.
    pub(super) fn is_moment(&self, now: Instant, flow: Flow) -> bool {
        self.observed.get(&flow).is_some_and(|observed| observed.begun && observed.observation.is_steady(now))
    }

    /// Makes the sockets.
    pub(super) fn adopt(&mut self, now: Instant, flow: Flow) -> Option<Outcome> {
        let cut = self.observed.get(&flow)?.observation.cut(now, flow)?;
        self.observed.remove(&flow);
        let begun = Instant::now();
        let outcome: io::Result<_> = repair::adopt(&cut);
        let under_way = [&cut.to_client, &cut.to_server].map(|half| half.unacknowledged.len());
        tracing::debug!(%flow, ?under_way, took = ?begun.elapsed(), ok = outcome.is_ok(), "cut");
        Some(match outcome {
            Ok((client, server)) => Outcome::Adopted { flow, client, server },
            Err(error) => {
                tracing::warn!(%flow, %error, "the system makes no socket in the middle of a connection");
                Outcome::Refused { flow, why: Reason::AdoptFailed }
            }
        })
    }

    /// Lets go of those whose time is over.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Outcome> {
        let over = self.observed.iter().filter(|(_, observed)| observed.observation.expired(now));
        let flows: Vec<Flow> = over.map(|(flow, _)| *flow).collect();
        flows.into_iter().map(|flow| self.refused(flow, Reason::AdoptUnsteady)).collect()
    }
}

/// Every packet of each goes through this loop.
const OBSERVED_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use discovery_core::now::UnixMillis;
    use discovery_core::packet::SynFacts;
    use std::time::Duration;

    const ACK: u8 = 16;

    fn flow() -> Flow {
        Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() }
    }

    fn segment(up: bool) -> Segment<'static> {
        let (seq, ack) = if up { (100, 900) } else { (900, 100) };
        Segment { up, seq, ack, flags: ACK, window: 500, timestamps: None, sacked: None, payload: &[] }
    }

    fn begun(now: Instant) -> Adoptions {
        let mut adoptions = Adoptions::default();
        let facts = SynFacts { window_scale: Some(7), sack_permitted: true, ..SynFacts::default() };
        adoptions.passed.syn(flow(), 99, facts);
        adoptions.passed.syn_ack(UnixMillis(0), flow(), 100, &facts);
        adoptions.begin(now, flow(), 1460).unwrap();
        adoptions
    }

    fn steady(outcome: Option<Outcome>) -> bool {
        matches!(outcome, Some(Outcome::Refused { why: Reason::AdoptUnsteady, .. }))
    }

    #[test]
    fn nothing_is_cut_where_something_may_have_gone_by_unseen() {
        let now = Instant::now();
        let late = now + Duration::from_secs(1);
        let mut adoptions = begun(now);
        // What waited in the queue before.
        assert!(adoptions.see(now, flow(), &segment(true), false).is_none());
        assert!(adoptions.see(now, flow(), &segment(false), false).is_none());
        assert!(!adoptions.is_moment(late, flow()));
        for up in [true, false] {
            assert!(adoptions.see(now, flow(), &segment(up), true).is_none());
        }
        assert!(!adoptions.is_moment(now, flow()), "too early");
        assert!(adoptions.is_moment(late, flow()));
        // The rules were put in anew.
        assert!(steady(adoptions.see(late, flow(), &segment(true), false)));
        assert!(adoptions.is_empty() && adoptions.see(late, flow(), &segment(true), true).is_none());
        let mut adoptions = begun(now);
        assert!(steady(adoptions.blind().pop()) && adoptions.is_empty());
    }

    #[test]
    fn an_observation_ends_in_time_and_there_are_not_too_many() {
        let now = Instant::now();
        let mut adoptions = begun(now);
        assert!(adoptions.expired(now + Duration::from_secs(9)).is_empty());
        assert_eq!(adoptions.expired(now + Duration::from_secs(11)).len(), 1);
        let mut adoptions = begun(now);
        let terms = adoptions.passed.terms(&flow()).unwrap();
        for port in 1..u16::try_from(OBSERVED_MAX).unwrap() {
            let other = Flow { client: (flow().client.ip(), port).into(), ..flow() };
            adoptions.passed.restore(UnixMillis(0), &[(other, terms, UnixMillis(0))]);
            assert!(!adoptions.is_full());
            adoptions.begin(now, other, 1460).unwrap();
        }
        assert!(adoptions.is_full());
    }

    #[test]
    fn either_end_of_a_packet_finds_its_flow() {
        let adoptions = begun(Instant::now());
        let back = Flow { client: flow().server, server: flow().client };
        assert_eq!(adoptions.of(flow()), Some((flow(), true)));
        assert_eq!(adoptions.of(back), Some((flow(), false)));
        assert_eq!(adoptions.of(Flow { client: "10.1.0.3:1".parse().unwrap(), ..flow() }), None);
    }
}
