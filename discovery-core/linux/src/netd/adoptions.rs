//! Connections that are observed in order to adopt them, alone or with a peer, and those whose SYNs went past.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use discovery_core::adopt::split::{Far, FarCut, Fate, Near, Ye};
use discovery_core::adopt::{Observation, Passed, Segment, Terms};
use discovery_core::engine::{Adopter, Peer, Reason};
use discovery_core::flow::Flow;
use discovery_core::packet::flags::{RST, SYN};

use super::split::{Step, Tell, Ticket, Word};
use crate::queue::PacketId;
use crate::{conntrack, repair};

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Adoptions {
    observed: HashMap<Flow, Observed>,
    /// Those that were, as long as packets of theirs may come.
    over: HashMap<Flow, (Over, Instant)>,
    begun: u64,
    pub(super) passed: Passed,
}

struct Observed {
    watch: Watch,
    /// A packet has come because every one does.
    begun: bool,
    /// When the last one came: that they still do, only a packet says.
    seen: Option<Instant>,
}

enum Watch {
    Alone(Observation),
    /// With a peer: this is the client's node. `held`: what waits in the queue, in order.
    Near {
        near: Near,
        peer: Peer,
        nth: u64,
        tell: Tell,
        held: Vec<PacketId>,
    },
    /// With a peer: this is the server's node. `ruled`: the rules have been asked.
    Far {
        far: Far,
        nth: u64,
        tell: Tell,
        ruled: bool,
    },
}

/// What is left of one that is observed no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// Its next packets make it known to the kernel.
    Refused,
    /// Its next packets go on, and then it may be tried again.
    Later,
    /// Its other end's socket is the peer's: what comes from the peer's side is a straggler, which would show one end
    /// octets that the other node's socket has not. `far`: which attempt it was, of the server's node.
    Adopted { drops_up: bool, far: Option<(u64, Ye)> },
    /// There was no way back, and no socket. The client is told at whatever it says: a reset counts only at the very
    /// number that it expects (RFC 5961 §3.2).
    Torn,
}

/// What becomes of a packet.
#[derive(Debug)]
pub(super) enum Seen {
    /// It goes on.
    Pass,
    /// It waits in the queue.
    Held,
    /// It ends here.
    Drop,
    /// It ends here, and its sender is told that its connection is over, at this number.
    Reset(u32),
    /// It goes on, and its connection is of no interest any more.
    Settled(Option<Outcome>),
}

/// What became of a connection.
pub(super) enum Outcome {
    Alone {
        flow: Flow,
        client: OwnedFd,
        server: OwnedFd,
    },
    Near {
        flow: Flow,
        peer: Peer,
        client: OwnedFd,
        tell: Tell,
        held: Vec<PacketId>,
    },
    Far {
        flow: Flow,
        server: OwnedFd,
        word: Ye,
        octets: Vec<u8>,
        tell: Tell,
    },
    /// The server's node has cut and its peer did not go on: the client is told, where it may expect it.
    Torn {
        flow: Flow,
        at: [u32; 2],
    },
    /// `reset`: there is no way back, and there the client may expect it.
    Refused {
        flow: Flow,
        by: Adopter,
        why: Reason,
        tell: Option<Tell>,
        held: Vec<PacketId>,
        reset: Option<[u32; 2]>,
    },
}

impl Adoptions {
    pub(super) fn is_empty(&self) -> bool {
        self.observed.is_empty() && self.over.is_empty()
    }

    /// Whether no further one can be observed now.
    pub(super) fn is_full(&self) -> bool {
        self.observed.len() >= OBSERVED_MAX
    }

    /// From now on every packet of it will be shown.
    pub(super) fn begin(&mut self, now: Instant, flow: Flow, mss: u16) -> Result<(), Reason> {
        let terms = self.terms(flow, mss).ok_or(Reason::AdoptUnscaled)?;
        tracing::debug!(%flow, ?terms, "observed, to adopt it");
        self.observe(flow, Watch::Alone(Observation::begin(now, terms)));
        Ok(())
    }

    /// The same, with a peer that is to take the server's end. Who tells it is still to be said.
    pub(super) fn begin_near(
        &mut self,
        now: Instant,
        flow: Flow,
        mss: u16,
        peer: Peer,
        tell: impl FnOnce(Ticket) -> Tell,
    ) {
        let terms = self.terms(flow, mss);
        tracing::debug!(%flow, ?terms, link = %peer.link, "observed, to adopt it with a peer");
        let nth = self.next();
        let (near, tell) = (Near::begin(now, flow, terms), tell(Ticket { flow, nth }));
        self.observe(flow, Watch::Near { near, peer, nth, tell, held: Vec::new() });
    }

    /// The same, for a peer that takes the client's end. Of two nodes that ask each other, the one of whose flow the
    /// client comes first is right.
    pub(super) fn begin_far(
        &mut self,
        now: Instant,
        flow: Flow,
        mss: u16,
        mut tell: Tell,
    ) -> Result<Option<Outcome>, (Reason, Tell)> {
        let back = Flow { client: flow.server, server: flow.client };
        let gives_way = flow.client < flow.server;
        let outcome = match self.observed.get(&back).map(|observed| &observed.watch) {
            Some(Watch::Near { near, .. }) if gives_way && !near.is_frozen() => {
                self.refused(now, back, Reason::TupleInUse)
            }
            Some(_) => return Err((Reason::TupleInUse, tell)),
            None => None,
        };
        if self.observed.contains_key(&flow) {
            return Err((Reason::TupleInUse, tell));
        }
        // Nobody shows that what he asks for is there: some room is this node's own.
        let far = self.observed.values().filter(|observed| matches!(observed.watch, Watch::Far { .. }));
        if self.is_full() || far.count() >= FAR_MAX {
            return Err((Reason::ExistingLater, tell));
        }
        let nth = self.next();
        // Whoever asked may have gone since.
        if !tell(Step::Begun(Ticket { flow, nth })) {
            return Err((Reason::AbortedByPeer, tell));
        }
        self.over.remove(&back);
        let terms = self.terms(flow, mss);
        tracing::debug!(%flow, ?terms, "observed, to adopt it for a peer");
        self.observe(flow, Watch::Far { far: Far::begin(now, flow, terms), nth, tell, ruled: false });
        Ok(outcome)
    }

    fn next(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    fn observe(&mut self, flow: Flow, watch: Watch) {
        self.over.remove(&flow);
        self.observed.insert(flow, Observed { watch, begun: false, seen: None });
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

    /// The flow to which a packet belongs that is observed, or was, and whether its client sent it.
    pub(super) fn of(&self, up: Flow) -> Option<(Flow, bool)> {
        let down = Flow { client: up.server, server: up.client };
        let both = [(up, true), (down, false)];
        let observed = both.into_iter().find(|(flow, _)| self.observed.contains_key(flow));
        observed.or_else(|| both.into_iter().find(|(flow, _)| self.over.contains_key(flow)))
    }

    /// Whether what the rules say of the flow is still to be asked, now that its packets come.
    pub(super) fn is_unruled(&mut self, flow: Flow) -> bool {
        let Some(Observed { watch: Watch::Far { ruled, .. }, .. }) = self.observed.get_mut(&flow) else {
            return false;
        };
        !std::mem::replace(ruled, true)
    }

    /// A packet of such a flow. `watched`: every packet of the flow comes, as long as the kernel says so without a break.
    pub(super) fn see(
        &mut self,
        now: Instant,
        flow: Flow,
        segment: &Segment<'_>,
        watched: bool,
        id: PacketId,
    ) -> Seen {
        let Some(observed) = self.observed.get_mut(&flow) else { return self.was_observed(flow, segment) };
        match (observed.begun, watched) {
            // It waited in the queue before its flow was watched.
            (false, false) => return Seen::Pass,
            (true, false) if observed.watch.is_beyond_return() => {}
            (true, false) => return Seen::Settled(self.refused(now, flow, Reason::AdoptUnsteady)),
            (_, true) => (observed.begun, observed.seen) = (true, Some(now)),
        }
        let fate = match &mut observed.watch {
            Watch::Alone(observation) => observation.see(now, segment).map(|()| Fate::Pass),
            Watch::Near { near, .. } => near.see(now, segment),
            Watch::Far { far, .. } => far.see(now, segment).map(|()| Fate::Pass),
        };
        match fate {
            Ok(Fate::Pass) => Seen::Pass,
            Ok(Fate::Drop) => Seen::Drop,
            Ok(Fate::Hold) => {
                if let Watch::Near { held, .. } = &mut observed.watch {
                    held.push(id);
                }
                Seen::Held
            }
            Err(why) => Seen::Settled(self.refused(now, flow, why)),
        }
    }

    fn was_observed(&mut self, flow: Flow, segment: &Segment<'_>) -> Seen {
        match self.over.get(&flow) {
            // It begins anew.
            Some((Over::Adopted { .. } | Over::Torn, _)) if segment.flags & SYN != 0 => {
                self.over.remove(&flow);
                Seen::Pass
            }
            Some((Over::Adopted { drops_up, .. }, _)) => {
                if segment.up == *drops_up {
                    Seen::Drop
                } else {
                    Seen::Pass
                }
            }
            Some((Over::Torn, _)) if segment.up && segment.flags & RST == 0 => Seen::Reset(segment.ack),
            Some((Over::Torn, _)) => Seen::Drop,
            Some((Over::Later, _)) => Seen::Pass,
            // More of them may be in the queue.
            Some((Over::Refused, _)) | None => Seen::Settled(None),
        }
    }

    /// Something was not seen, nobody knows of which flow: nothing is certain of any. What cannot go back gets what it
    /// misses from the peer.
    pub(super) fn blind(&mut self, now: Instant, why: Reason) -> Vec<Outcome> {
        let open = self.observed.iter().filter(|(_, observed)| !observed.watch.is_beyond_return());
        let flows: Vec<Flow> = open.map(|(flow, _)| *flow).collect();
        flows.into_iter().filter_map(|flow| self.refused(now, flow, why)).collect()
    }

    /// Nobody is there any more to go on with any.
    pub(super) fn end(&mut self, now: Instant) -> Vec<Outcome> {
        let flows: Vec<Flow> = self.observed.keys().copied().collect();
        flows.into_iter().filter_map(|flow| self.refused(now, flow, Reason::AdoptUnsteady)).collect()
    }

    pub(super) fn refused(&mut self, now: Instant, flow: Flow, why: Reason) -> Option<Outcome> {
        let watch = self.observed.remove(&flow)?.watch;
        let (by, tell, held, reset) = match watch {
            Watch::Alone(_) => (Adopter::Alone, None, Vec::new(), None),
            Watch::Near { near, peer, tell, held, .. } => {
                (Adopter::Client { peer }, Some(tell), held, near.is_beyond_return())
            }
            Watch::Far { tell, .. } => (Adopter::Server, Some(tell), Vec::new(), None),
        };
        if reset.is_some() {
            self.over.insert(flow, (Over::Torn, now + OVER_FOR));
        }
        Some(Outcome::Refused { flow, by, why, tell, held, reset })
    }

    /// What the next packets of a flow that is given up, and not by one of its packets, come to: it is known then, or may
    /// be adopted later.
    pub(super) fn settle_later(&mut self, now: Instant, flow: Flow, why: Reason) {
        if matches!(self.over.get(&flow), Some((Over::Torn, _))) {
            return;
        }
        let over = if [Reason::ExistingLater, Reason::PeerDown, Reason::Bypass].contains(&why) {
            (Over::Later, now + LATER_AFTER)
        } else {
            (Over::Refused, now + OVER_FOR)
        };
        self.over.insert(flow, over);
    }

    /// Whether this is a moment for the flow. What was shown has left, and what comes waits until the next call returns.
    pub(super) fn is_moment(&self, now: Instant, flow: Flow) -> bool {
        self.observed.get(&flow).is_some_and(|observed| {
            observed.begun
                && match &observed.watch {
                    Watch::Alone(observation) => observation.is_steady(now),
                    Watch::Near { near, .. } => near.half(now).is_some(),
                    Watch::Far { far, .. } => observed.is_seen(now) && far.half(now).is_some(),
                }
        })
    }

    /// Tells the peer what is to be told by now.
    pub(super) fn tell(&mut self, now: Instant, flow: Flow) -> Option<Outcome> {
        let observed = self.observed.get_mut(&flow)?;
        let seen = observed.is_seen(now);
        let told = match &mut observed.watch {
            Watch::Alone(_) => true,
            // The peer cuts only while it sees the packets, and this one's last is on its way there.
            Watch::Near { .. } if !seen => true,
            Watch::Near { near, tell, .. } => match near.freeze(now) {
                Some(word) => tell(Step::Cut(word)),
                None => true,
            },
            Watch::Far { far, tell, nth, .. } => match far.ready() {
                Some(word) => tell(Step::Ready(Ticket { flow, nth: *nth }, word)),
                None => true,
            },
        };
        if told { None } else { self.refused(now, flow, Reason::AdoptUnsteady) }
    }

    /// What the peer said of an attempt, if it is still the one.
    pub(super) fn word(&mut self, now: Instant, ticket: Ticket, word: Word) -> Option<Outcome> {
        let Some(Observed { watch, .. }) = self.observed.get_mut(&ticket.flow) else {
            return self.torn(ticket, &word);
        };
        let taken = match (watch, word) {
            (Watch::Near { nth, .. } | Watch::Far { nth, .. }, _) if *nth != ticket.nth => return None,
            (Watch::Near { .. } | Watch::Far { .. }, Word::Over(why)) => Err(why),
            (Watch::Near { near, .. }, Word::Ready(ready)) => near.ready(ready),
            (Watch::Near { near, .. }, Word::Ye(ye)) => near.answered(now, ye),
            (Watch::Near { near, .. }, Word::Filled(octets)) => {
                near.filled(now, &octets);
                Ok(())
            }
            (Watch::Far { far, .. }, Word::Cut(cut)) => far.asked(now, cut),
            (Watch::Far { .. }, Word::Ready(_) | Word::Ye(_) | Word::Filled(_))
            | (Watch::Near { .. }, Word::Cut(_))
            | (Watch::Alone(_), _) => return None,
        };
        taken.err().and_then(|why| self.refused(now, ticket.flow, why))
    }

    /// The peer may not have heard that this node has cut, and lets the client's packets pass: they must reach the server's
    /// answer that its end is gone.
    fn torn(&mut self, ticket: Ticket, word: &Word) -> Option<Outcome> {
        let (over, _) = self.over.get_mut(&ticket.flow)?;
        match (*over, word) {
            (Over::Adopted { far: Some((nth, ye)), .. }, Word::Over(_)) if nth == ticket.nth => {
                *over = Over::Refused;
                Some(Outcome::Torn { flow: ticket.flow, at: [ye.from, ye.ye] })
            }
            (Over::Adopted { .. } | Over::Refused | Over::Later | Over::Torn, _) => None,
        }
    }

    /// Makes the sockets.
    pub(super) fn adopt(&mut self, now: Instant, flow: Flow) -> Option<Outcome> {
        let begun = Instant::now();
        let made = match &self.observed.get(&flow)?.watch {
            Watch::Alone(observation) => {
                let cut = observation.cut(now, flow)?;
                tracing::debug!(%flow, to_client = cut.to_client.unacknowledged.len(), to_server = cut.to_server.unacknowledged.len(), "cut");
                repair::adopt(&cut).map(Made::Both)
            }
            Watch::Near { near, .. } => {
                let half = near.half(now)?;
                tracing::debug!(%flow, to_client = half.unacknowledged.len(), "cut");
                repair::adopt_half(&half, repair::TO_CLIENT).map(Made::Client)
            }
            Watch::Far { far, .. } => {
                let FarCut { half, word, octets } = far.half(now)?;
                tracing::debug!(%flow, to_server = half.unacknowledged.len(), again = octets.len(), "cut");
                repair::adopt_half(&half, repair::TO_SERVER).map(|server| Made::Server(server, word, octets))
            }
        };
        tracing::debug!(%flow, took = ?begun.elapsed(), ok = made.is_ok(), "sockets made");
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                tracing::warn!(%flow, %error, "the system makes no socket in the middle of a connection");
                return self.refused(now, flow, Reason::AdoptFailed);
            }
        };
        let watch = self.observed.remove(&flow)?.watch;
        let until = now + OVER_FOR;
        match (made, watch) {
            (Made::Client(client), Watch::Near { peer, tell, held, .. }) => {
                self.over.insert(flow, (Over::Adopted { drops_up: false, far: None }, until));
                Some(Outcome::Near { flow, peer, client, tell, held })
            }
            (Made::Server(server, word, octets), Watch::Far { tell, nth, .. }) => {
                self.over.insert(flow, (Over::Adopted { drops_up: true, far: Some((nth, word)) }, until));
                Some(Outcome::Far { flow, server, word, octets, tell })
            }
            (Made::Both((client, server)), _) => Some(Outcome::Alone { flow, client, server }),
            (Made::Client(_) | Made::Server(..), _) => None,
        }
    }

    /// Lets go of those whose time is over.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Outcome> {
        self.over.retain(|_, (_, until)| *until > now);
        let over = self.observed.iter().filter_map(|(flow, observed)| {
            let why = match &observed.watch {
                Watch::Alone(observation) => observation.expired(now).then_some(Reason::AdoptUnsteady),
                Watch::Near { near, .. } => near.expired(now),
                Watch::Far { far, .. } => far.expired(now),
            };
            why.map(|why| (*flow, why))
        });
        let over: Vec<(Flow, Reason)> = over.collect();
        over.into_iter().filter_map(|(flow, why)| self.refused(now, flow, why)).collect()
    }
}

impl Watch {
    fn is_beyond_return(&self) -> bool {
        match self {
            Self::Near { near, .. } => near.is_beyond_return().is_some(),
            Self::Alone(_) | Self::Far { .. } => false,
        }
    }
}

impl Observed {
    fn is_seen(&self, now: Instant) -> bool {
        self.seen.is_some_and(|seen| now.saturating_duration_since(seen) <= SEEN_FOR)
    }
}

enum Made {
    Both((OwnedFd, OwnedFd)),
    Client(OwnedFd),
    Server(OwnedFd, Ye, Vec<u8>),
}

impl std::fmt::Debug for Observed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.watch {
            Watch::Alone(_) => "Alone",
            Watch::Near { .. } => "Near",
            Watch::Far { .. } => "Far",
        };
        f.debug_struct(kind).field("begun", &self.begun).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Alone { flow, .. } => write!(f, "{flow} adopted"),
            Self::Near { flow, .. } => write!(f, "{flow} adopted with a peer"),
            Self::Far { flow, .. } => write!(f, "{flow} adopted for a peer"),
            Self::Torn { flow, .. } => write!(f, "{flow} torn"),
            Self::Refused { flow, why, .. } => write!(f, "{flow} {}", why.word()),
        }
    }
}

/// Every packet of each goes through this loop.
const OBSERVED_MAX: usize = 16;
/// Of these, for peers.
const FAR_MAX: usize = OBSERVED_MAX / 2;
/// After a packet, the flow's others are taken to come here still. CUT comes so much later than the packet it follows.
const SEEN_FOR: Duration = Duration::from_millis(250);
/// Whoever could not adopt a connection is asked again after this.
const LATER_AFTER: Duration = Duration::from_secs(2);
/// Longer than the kernel's rules send packets of one here because it was watched.
const OVER_FOR: Duration = Duration::from_secs(40);

#[cfg(test)]
mod tests {
    use super::*;
    use discovery_core::adopt::split::{CutWord, Ready};
    use discovery_core::now::UnixMillis;
    use discovery_core::packet::SynFacts;
    use discovery_core::packet::flags::ACK;
    use std::time::Duration;

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

    fn see(adoptions: &mut Adoptions, now: Instant, up: bool, watched: bool) -> Seen {
        adoptions.see(now, flow(), &segment(up), watched, PacketId(1))
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
        assert!(matches!(see(&mut adoptions, now, true, false), Seen::Pass));
        assert!(matches!(see(&mut adoptions, now, false, false), Seen::Pass));
        assert!(!adoptions.is_moment(late, flow()));
        for up in [true, false] {
            assert!(matches!(see(&mut adoptions, now, up, true), Seen::Pass));
        }
        assert!(!adoptions.is_moment(now, flow()), "too early");
        assert!(adoptions.is_moment(late, flow()));
        // The rules were put in anew.
        let Seen::Settled(outcome) = see(&mut adoptions, late, true, false) else { panic!("it goes on") };
        assert!(steady(outcome) && adoptions.is_empty());
        let mut adoptions = begun(now);
        assert!(steady(adoptions.blind(now, Reason::AdoptUnsteady).pop()) && adoptions.is_empty());
    }

    #[test]
    fn what_is_given_up_without_a_packet_is_settled_by_its_next_one() {
        let now = Instant::now();
        let mut adoptions = begun(now);
        assert!(steady(adoptions.refused(now, flow(), Reason::AdoptUnsteady)));
        assert_eq!(adoptions.of(flow()), None);
        adoptions.settle_later(now, flow(), Reason::AdoptUnsteady);
        assert_eq!(adoptions.of(flow()), Some((flow(), true)));
        for up in [true, false] {
            assert!(matches!(see(&mut adoptions, now, up, true), Seen::Settled(None)));
        }
        assert!(adoptions.expired(now + OVER_FOR).is_empty() && adoptions.is_empty());
    }

    #[test]
    fn stragglers_of_the_other_nodes_half_end_here_until_it_begins_anew() {
        let now = Instant::now();
        for drops_up in [true, false] {
            let mut adoptions = Adoptions::default();
            adoptions.over.insert(flow(), (Over::Adopted { drops_up, far: None }, now + OVER_FOR));
            assert!(matches!(see(&mut adoptions, now, drops_up, true), Seen::Drop));
            assert!(matches!(see(&mut adoptions, now, !drops_up, true), Seen::Pass));
            let syn = Segment { flags: 2, ..segment(drops_up) };
            assert!(matches!(adoptions.see(now, flow(), &syn, true, PacketId(1)), Seen::Pass));
            assert!(adoptions.is_empty(), "it begins anew");
        }
    }

    fn tell() -> Tell {
        Box::new(|_| true)
    }

    fn peer() -> Peer {
        Peer { link: "10.9.0.2:7777".parse().unwrap(), key: discovery_core::probe::KeyHint([3; 8]) }
    }

    #[test]
    fn of_two_nodes_that_ask_each_other_one_gives_way() {
        let now = Instant::now();
        let back = Flow { client: flow().server, server: flow().client };
        assert!(flow().client < flow().server);
        for (own, asked, gives_way) in [(back, flow(), true), (flow(), back, false)] {
            let mut adoptions = Adoptions::default();
            adoptions.begin_near(now, own, 1460, peer(), |_| tell());
            let begun = adoptions.begin_far(now, asked, 1460, tell());
            let gave_way = matches!(begun, Ok(Some(Outcome::Refused { why: Reason::TupleInUse, .. })));
            assert_eq!(gave_way, gives_way, "{own}");
            assert!(adoptions.begin_far(now, asked, 1460, tell()).is_err(), "somebody has it");
        }
    }

    #[test]
    fn a_word_for_another_attempt_is_nobodys() {
        let now = Instant::now();
        let mut adoptions = Adoptions::default();
        let mut first = None;
        adoptions.begin_near(now, flow(), 1460, peer(), |ticket| {
            first = Some(ticket);
            tell()
        });
        let first = first.unwrap();
        let older = Ticket { nth: first.nth - 1, ..first };
        assert!(adoptions.word(now, older, Word::Over(Reason::PeerDown)).is_none());
        let over = adoptions.word(now, first, Word::Over(Reason::PeerDown));
        let by = Adopter::Client { peer: peer() };
        let refused =
            matches!(over, Some(Outcome::Refused { by: told, why: Reason::PeerDown, .. }) if told == by);
        assert!(refused && adoptions.is_empty());
    }

    /// The client's node, whose peer has cut; something is missing still.
    fn beyond_return(now: Instant) -> (Adoptions, Ticket) {
        let mut adoptions = begun(now);
        adoptions.end(now);
        let mut ticket = None;
        adoptions.begin_near(now, flow(), 1460, peer(), |begun| {
            ticket = Some(begun);
            tell()
        });
        let ticket = ticket.unwrap();
        let late = now + Duration::from_secs(1);
        for (at, up) in [(now, true), (now, false), (late, true)] {
            assert!(matches!(see(&mut adoptions, at, up, true), Seen::Pass));
        }
        assert!(adoptions.word(late, ticket, Word::Ready(Ready { terms: None })).is_none());
        assert!(adoptions.tell(late, flow()).is_none());
        assert!(adoptions.word(late, ticket, Word::Ye(Ye { from: 900, ye: 902 })).is_none());
        (adoptions, ticket)
    }

    #[test]
    fn what_cannot_go_back_goes_on_though_something_was_not_seen() {
        let now = Instant::now();
        let late = now + Duration::from_secs(1);
        let (mut adoptions, ticket) = beyond_return(now);
        assert!(adoptions.blind(late, Reason::AdoptUnsteady).is_empty());
        assert!(matches!(see(&mut adoptions, late, false, false), Seen::Pass), "without the mark");
        assert!(!adoptions.is_moment(late, flow()));
        assert!(adoptions.word(late, ticket, Word::Filled(b"ab".to_vec())).is_none());
        assert!(adoptions.is_moment(late, flow()));
        assert_eq!(adoptions.end(late).len(), 1);
    }

    #[test]
    fn a_client_whose_connection_is_torn_is_told_at_whatever_it_says() {
        let now = Instant::now();
        let (mut adoptions, ticket) = beyond_return(now);
        let over = adoptions.word(now, ticket, Word::Over(Reason::PeerDown));
        assert!(matches!(over, Some(Outcome::Refused { reset: Some([900, 900]), .. })));
        adoptions.settle_later(now, flow(), Reason::PeerDown);
        let further = Segment { ack: 950, ..segment(true) };
        for _ in 0..2 {
            assert!(matches!(adoptions.see(now, flow(), &further, true, PacketId(1)), Seen::Reset(950)));
        }
        assert!(matches!(see(&mut adoptions, now, false, true), Seen::Drop));
        let reset = Segment { flags: 4, ..segment(true) };
        assert!(matches!(adoptions.see(now, flow(), &reset, true, PacketId(1)), Seen::Drop));
    }

    #[test]
    fn whoever_cut_for_a_peer_that_is_gone_lets_the_client_reach_the_server() {
        let now = Instant::now();
        let mut adoptions = Adoptions::default();
        let far = Some((7, Ye { from: 900, ye: 950 }));
        adoptions.over.insert(flow(), (Over::Adopted { drops_up: true, far }, now + OVER_FOR));
        assert!(matches!(see(&mut adoptions, now, true, true), Seen::Drop));
        let over = Word::Over(Reason::AbortedByPeer);
        assert!(adoptions.word(now, Ticket { flow: flow(), nth: 6 }, over.clone()).is_none(), "another one");
        let torn = adoptions.word(now, Ticket { flow: flow(), nth: 7 }, over);
        assert!(matches!(torn, Some(Outcome::Torn { at: [900, 950], .. })));
        assert!(matches!(see(&mut adoptions, now, true, true), Seen::Settled(None)));
    }

    #[test]
    fn who_may_later_is_asked_again_and_not_made_known() {
        let now = Instant::now();
        for why in [Reason::ExistingLater, Reason::PeerDown, Reason::Bypass] {
            let mut adoptions = begun(now);
            assert_eq!(adoptions.blind(now, why).len(), 1);
            adoptions.settle_later(now, flow(), why);
            assert!(matches!(see(&mut adoptions, now, true, true), Seen::Pass), "{why:?}");
            adoptions.expired(now + LATER_AFTER);
            assert_eq!(adoptions.of(flow()), None, "{why:?}");
        }
    }

    #[test]
    fn a_word_alone_is_no_moment_where_no_packet_comes() {
        let now = Instant::now();
        let late = now + Duration::from_secs(1);
        for (seen, expected) in [(late, true), (now, false)] {
            let mut adoptions = begun(now);
            let terms = adoptions.passed.terms(&flow()).unwrap();
            adoptions.end(now);
            let ticket = Ticket { flow: flow(), nth: 1 };
            assert!(adoptions.begin_far(now, flow(), 1460, tell()).is_ok());
            for (at, up) in [(now, true), (now, false), (late, true)] {
                assert!(matches!(see(&mut adoptions, at, up, true), Seen::Pass));
            }
            assert!(adoptions.tell(late, flow()).is_none());
            adoptions.observed.get_mut(&flow()).unwrap().seen = Some(seen);
            let cut = Word::Cut(CutWord { expects: 100, terms });
            assert!(adoptions.word(late, ticket, cut).is_none());
            assert_eq!(adoptions.is_moment(late, flow()), expected);
        }
    }

    #[test]
    fn peers_do_not_fill_all_and_one_that_is_gone_begins_nothing() {
        let now = Instant::now();
        let mut adoptions = Adoptions::default();
        let gone = adoptions.begin_far(now, flow(), 1460, Box::new(|_| false));
        assert!(matches!(gone, Err((Reason::AbortedByPeer, _))) && adoptions.is_empty());
        for port in 1..=u16::try_from(FAR_MAX).unwrap() {
            let other = Flow { client: (flow().client.ip(), port).into(), ..flow() };
            assert!(adoptions.begin_far(now, other, 1460, tell()).is_ok());
        }
        let more = adoptions.begin_far(now, flow(), 1460, tell());
        assert!(matches!(more, Err((Reason::ExistingLater, _))) && !adoptions.is_full());
    }

    #[test]
    fn the_rules_are_asked_once_and_only_for_a_peer() {
        let now = Instant::now();
        let mut adoptions = begun(now);
        assert!(!adoptions.is_unruled(flow()));
        let mut adoptions = Adoptions::default();
        assert!(adoptions.begin_far(now, flow(), 1460, tell()).is_ok());
        assert!(adoptions.is_unruled(flow()) && !adoptions.is_unruled(flow()));
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
