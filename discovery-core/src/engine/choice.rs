//! Which of several peers a connection goes to, and to which one next: those that the operator named for its server, or the
//! one that the table has learnt, and whom these have told of.
//!
//! Who is told of is never more than its teller: a list counts for the servers for which its teller is asked itself, within
//! the networks that the teller's authority may serve. A stranger can tell what he likes.

use super::*;
use crate::candidates::{Candidate, Policy, Standing, order};
use std::time::Duration;

/// What a peer has told: of these servers, these nodes serve as well as itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which servers. What the peer may not serve itself is not among them: its authority was asked.
    pub networks: Vec<Prefix>,
    /// Which nodes, in no order.
    pub offers: Vec<Offer>,
    /// Until when that is believed.
    pub until: Instant,
}

/// One that a peer has told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Who.
    pub peer: Peer,
    /// How it is preferred among them: lower first.
    pub rank: u8,
    /// How much of it is in use, in percent.
    pub load: u8,
    /// It takes connections, as far as the teller knows.
    pub able: bool,
}

/// A peer that could carry a connection, and how it comes to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// Who, and how it stands.
    pub candidate: Candidate,
    /// Through whom.
    pub known: KnownBy,
}

/// How a peer comes to be one that could carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KnownBy {
    /// The operator named it for the server.
    Named,
    /// It was found on the path to the server.
    Learnt,
    /// One that is asked itself has told of it.
    Told,
}

impl KnownBy {
    /// The word that `status` and `explain` show.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Learnt => "learnt",
            Self::Told => "told",
        }
    }
}

impl Engine {
    /// A peer tells who serves as well as itself.
    pub fn told(&mut self, teller: KeyHint, told: Told) {
        let Told { mut networks, mut offers, until } = told;
        networks.truncate(self.config.candidates_max);
        offers.truncate(self.config.candidates_max);
        let peers = &self.peers;
        self.told.insert_beside(teller, Told { networks, offers, until }, |teller| peers.is_named(teller));
    }

    /// Whether a peer is asked for any server of these networks, so that it matters whom it tells of.
    #[must_use]
    pub fn counts(&self, now: Now, teller: KeyHint, networks: &[Prefix]) -> bool {
        self.pmt.leads_to(now.mono, teller, networks)
    }

    /// Who could carry a connection, those that can be asked now first, each as it is preferred. Empty where nobody is known.
    #[must_use]
    pub fn candidates(&self, now: Now, flow: &Flow) -> Vec<Ranked> {
        let named = self.pmt.named(flow.server).next().is_some();
        let known = if named { KnownBy::Named } else { KnownBy::Learnt };
        let mut found: Vec<Ranked> = self
            .asked_for(now.mono, flow.server)
            .into_iter()
            .map(|(peer, rank)| self.ranked(now.mono, flow.server, peer, rank, 0, known))
            .collect();
        let mut tellers: Vec<(KeyHint, u8)> =
            found.iter().map(|ranked| (ranked.candidate.peer.key, ranked.candidate.rank)).collect();
        if crate::mutants::on("engine-told-by-anyone") {
            tellers.extend(self.told.iter().map(|(teller, _)| (*teller, 0)));
        }
        for (teller, teller_rank) in tellers {
            for offer in self.offers(now.mono, teller, flow.server) {
                let full = found.len() >= self.config.candidates_max;
                let known = found.iter_mut().find(|ranked| ranked.candidate.peer.key == offer.peer.key);
                match known {
                    // Nobody displaces another one by what he tells of him.
                    Some(Ranked { candidate, .. })
                        if teller == offer.peer.key || crate::mutants::on("engine-load-told-by-another") =>
                    {
                        candidate.load = offer.load;
                        // The operator's word about its place counts more than its own.
                        if !named {
                            candidate.rank = offer.rank;
                        }
                    }
                    Some(_) => {}
                    None if full => {}
                    None => {
                        let rank = teller_rank.saturating_add(offer.rank);
                        let known = KnownBy::Told;
                        let mut ranked =
                            self.ranked(now.mono, flow.server, offer.peer, rank, offer.load, known);
                        if !offer.able && ranked.candidate.standing.is_able() {
                            ranked.candidate.standing = Standing::Aside;
                        }
                        found.push(ranked);
                    }
                }
            }
        }
        let all: Vec<Candidate> = found.iter().map(|ranked| ranked.candidate).collect();
        let of = |candidate: Candidate| found.iter().find(|ranked| ranked.candidate == candidate).copied();
        order(&all, Policy::Primary, flow).into_iter().filter_map(of).collect()
    }

    /// Whom to ask first, and why that one; none when nobody can be asked.
    pub(super) fn best(&self, now: Now, flow: &Flow) -> Option<(Peer, Reason)> {
        let all = self.candidates(now, flow);
        let first = all.first().filter(|ranked| ranked.candidate.standing.is_able())?;
        let Candidate { peer, rank, .. } = first.candidate;
        let preferred = all.iter().all(|ranked| ranked.candidate.rank >= rank);
        let why = match (preferred, first.known) {
            (false, _) => Reason::StandIn,
            (true, KnownBy::Told) => Reason::ToldHit,
            (true, KnownBy::Named) => Reason::StaticHit,
            (true, KnownBy::Learnt) => Reason::TableHit,
        };
        Some((peer, why))
    }

    /// The peer did not take the connection over the link. Whether another one is asked.
    pub(super) fn refused_over_link(&mut self, now: Now, flow: Flow, why: Refusal) -> bool {
        let Some(State::Opening { peer, .. }) = self.table.get(&flow).map(|entry| entry.state) else {
            return false;
        };
        let left_alone = match why {
            Refusal::Peer | Refusal::Unseen => self.config.pmt.failed_ttl,
            // How the link stands is told soon.
            Refusal::NoLink => self.config.pmt.missed_ttl,
            // It says nothing of other connections; nor does the server, whose word it is.
            Refusal::NotNow | Refusal::ServerRefused => Duration::ZERO,
            Refusal::ServerUnreachable(_) | Refusal::ServerSilent => Duration::ZERO,
        };
        if !left_alone.is_zero() {
            self.refusals.insert((peer.key, flow.server), now.mono + left_alone);
        }
        self.ask_next(now, flow)
    }

    /// The peer said that it does not take the connection. Asks another one, but not when the first was asked long ago: the
    /// client waits.
    pub(super) fn ask_next(&mut self, now: Now, flow: Flow) -> bool {
        let asked = self.table.get(&flow).and_then(|entry| entry.asked.as_ref());
        let late =
            asked.is_none_or(|asked| now.mono.saturating_duration_since(asked.since) > self.config.open_max);
        !late && self.ask_another(now, flow)
    }

    /// The peer said nothing for as long as is waited. Timers come after their time, and by how much is nobody's choice, so
    /// no clock is asked here: one silence leads to another peer, and what was asked behind another one waited beside it.
    pub(super) fn ask_after_silence(&mut self, now: Now, flow: Flow) -> bool {
        let asked = self.table.get(&flow).and_then(|entry| entry.asked.as_ref());
        asked.is_some_and(|asked| asked.keys.len() == 1) && self.ask_another(now, flow)
    }

    /// Asks another peer for a connection whose SYN was kept and never shown.
    fn ask_another(&mut self, now: Now, flow: Flow) -> bool {
        let Some(entry) = self.table.get(&flow) else { return false };
        let (State::Opening { strict, unasked, .. }, Some(mut asked)) = (entry.state, entry.asked.clone())
        else {
            return false;
        };
        if asked.keys.len() >= self.config.candidates_max || crate::mutants::on("engine-no-next-peer") {
            return false;
        }
        let fresh = |ranked: &Ranked| {
            ranked.candidate.standing.is_able() && !asked.keys.contains(&ranked.candidate.peer.key)
        };
        let Some(next) = self.candidates(now, &flow).into_iter().find(fresh) else { return false };
        let peer = next.candidate.peer;
        asked.keys.push(peer.key);
        self.table.set_state(&flow, State::Opening { peer, strict, unasked });
        self.table.set_asked(&flow, Some(asked));
        self.table.set_deadline(&flow, Some(now.mono + self.config.open_max));
        self.outputs.push_back(Output::Open { flow, peer });
        self.journal.note(now.wall, flow, Reason::NextPeer);
        true
    }

    /// Whether the peer carries in the place of whom the table knows, so that the table learns nothing by it.
    pub(super) fn stands_in(&self, now: Now, server: SocketAddr, peer: Peer) -> bool {
        let known = self.asked_for(now.mono, server);
        let told = |(teller, _): &(Peer, u8)| {
            teller.key != peer.key
                && self.offers(now.mono, teller.key, server).any(|offer| offer.peer.key == peer.key)
        };
        self.pmt.named(server).next().is_some() || known.iter().any(told)
    }

    /// Nobody but the server has answered. While somebody is missed who may stand there, that is not believed for long.
    pub(super) fn nobody_there(&mut self, now: Now, server: SocketAddr) -> PmtRow {
        if self.peers.is_one_missed(now.mono) && !crate::mutants::on("engine-absence-believed") {
            self.pmt.learn_none_for_now(now, server)
        } else {
            self.pmt.learn_none(now, server)
        }
    }

    /// Somebody is missed from now on, and was away before that was known here: a server that answered in the meantime
    /// proves no more than one that answers now.
    pub(super) fn doubt(&mut self, now: Now) {
        if !crate::mutants::on("engine-late-word-ignored") {
            self.pmt.doubt_none(now.mono, self.config.word_max);
        }
    }

    /// Whom the operator named for the server, or else whom the table has learnt, with their ranks.
    fn asked_for(&self, now: Instant, server: SocketAddr) -> Vec<(Peer, u8)> {
        let named: Vec<(Peer, u8)> = self
            .pmt
            .named(server)
            .take(self.config.candidates_max)
            .map(|named| (named.peer, named.preference))
            .collect();
        if named.is_empty() {
            return self.pmt.learnt(now, server).map(|peer| (peer, 0)).into_iter().collect();
        }
        named
    }

    fn offers(&self, now: Instant, teller: KeyHint, server: SocketAddr) -> impl Iterator<Item = &Offer> {
        let about = move |told: &&Told| {
            told.until > now && told.networks.iter().any(|network| network.contains(server.ip()))
        };
        self.told.peek(&teller).filter(about).into_iter().flat_map(|told| &told.offers)
    }

    fn ranked(
        &self,
        now: Instant,
        server: SocketAddr,
        peer: Peer,
        rank: u8,
        load: u8,
        known: KnownBy,
    ) -> Ranked {
        let standing = match self.peers.standing(now, &peer.key) {
            able if able.is_able() => {
                let refused = self.refusals.peek(&(peer.key, server)).is_some_and(|until| *until > now);
                if refused { Standing::Refused } else { able }
            }
            other => other,
        };
        Ranked { candidate: Candidate { peer, rank, standing, load }, known }
    }
}
