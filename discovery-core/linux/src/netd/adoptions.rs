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
    observed: HashMap<Flow, Observation>,
    pub(super) passed: Passed,
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
        self.observed.insert(flow, Observation::begin(now, terms));
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

    /// A packet of an observed flow goes on; why it is observed no longer, if it is not.
    pub(super) fn see(&mut self, now: Instant, flow: Flow, segment: &Segment<'_>) -> Option<Outcome> {
        let seen = self.observed.get_mut(&flow)?.see(now, segment);
        seen.err().map(|why| self.refused(flow, why))
    }

    /// Something was not seen: nothing is certain any more.
    pub(super) fn blind(&mut self, flow: Flow) -> Outcome {
        self.refused(flow, Reason::AdoptUnsteady)
    }

    fn refused(&mut self, flow: Flow, why: Reason) -> Outcome {
        self.observed.remove(&flow);
        Outcome::Refused { flow, why }
    }

    /// Whether this is a moment for the flow. What was shown has left, and what comes waits until the next call returns.
    pub(super) fn is_moment(&self, now: Instant, flow: Flow) -> bool {
        self.observed.get(&flow).is_some_and(|observation| observation.is_steady(now))
    }

    /// Makes the sockets.
    pub(super) fn adopt(&mut self, now: Instant, flow: Flow) -> Option<Outcome> {
        let cut = self.observed.get(&flow)?.cut(now, flow)?;
        self.observed.remove(&flow);
        let begun = Instant::now();
        let outcome: io::Result<_> = repair::adopt(&cut);
        let under_way = [&cut.to_client, &cut.to_server].map(|half| half.unacknowledged.len());
        tracing::info!(%flow, ?under_way, took = ?begun.elapsed(), ok = outcome.is_ok(), "adopted");
        Some(match outcome {
            Ok((client, server)) => Outcome::Adopted { flow, client, server },
            Err(error) => {
                tracing::warn!(%flow, %error, "the system makes no socket in the middle of a connection");
                Outcome::Refused { flow, why: Reason::AdoptFailed }
            }
        })
    }

    /// Flows whose moment may have come without a packet, and those whose time is over.
    pub(super) fn due(&mut self, now: Instant) -> (Vec<Flow>, Vec<Outcome>) {
        let expired: Vec<Flow> =
            self.observed.iter().filter(|(_, o)| o.expired(now)).map(|(flow, _)| *flow).collect();
        let refused = expired.into_iter().map(|flow| self.refused(flow, Reason::AdoptUnsteady)).collect();
        (self.observed.keys().copied().collect(), refused)
    }
}

/// Every packet of each goes through this loop.
const OBSERVED_MAX: usize = 16;
