//! A live connection adopted by two nodes, one socket each: the client's node speaks to the client in the server's name,
//! the server's node to the server in the client's, and a stream of their link carries what both say.
//!
//! ```text
//!  client      client's node                          server's node      server
//!    │  observes both ways  ──OPEN──►  observes both ways     │
//!    │                      ◄─READY──  has known everything under way once
//!    │  holds what the client says from `expects` on
//!    │                      ──CUT───►  waits for all before `expects`, makes its socket
//!    │                      ◄──YE────  the server's octets from `ye` on are its own
//!    │  has all before `ye`: makes its socket, lets go what was held
//! ```
//! Until its own socket stands, the client's node can let go as if nothing had been; the server's node until it has
//! said YE. What the server said and the client has not acknowledged comes again behind YE: whether it got lost between the
//! nodes, nobody can know in time.

mod words;

pub use words::{CutWord, Ready, Ye};

use super::{FIN, Half, OBSERVE_MAX, Observation, RST, Segment, Terms, behind};
use crate::{flow::Flow, mutants, reason::Reason};
use std::time::{Duration, Instant};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Pass,
    /// It waits for what becomes of the adoption.
    Hold,
    /// There is no room for it to wait: it will be sent again.
    Drop,
}

/// The client's node.
#[derive(Clone, Debug)]
pub struct Near {
    flow: Flow,
    observation: Observation,
    phase: Phase,
    held: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The other node observes.
    Asked,
    /// It is ready.
    Ready,
    /// What the client says waits.
    Frozen { expects: u32, since: Instant },
    /// The server's end is the peer's. `next`: how far what follows YE has come; `since`: when it last did.
    Filling { expects: u32, ye: u32, next: u32, since: Instant },
}

impl Near {
    /// Begins; nothing is known yet. Without `terms` the peer may know them.
    #[must_use]
    pub fn begin(now: Instant, flow: Flow, terms: Option<Terms>) -> Self {
        let observation = Observation { terms, ..Observation::without_terms(now) };
        Self { flow, observation, phase: Phase::Asked, held: 0 }
    }

    /// A packet of the connection.
    ///
    /// # Errors
    /// Why the connection cannot be adopted.
    pub fn see(&mut self, now: Instant, segment: &Segment<'_>) -> Result<Fate, Reason> {
        if let Phase::Frozen { expects, .. } | Phase::Filling { expects, .. } = self.phase
            && segment.up
            && segment.flags & RST == 0
        {
            // A bare acknowledgement from behind what is held would show the other node a gap.
            if behind(expects, end(segment)) || segment.flags & FIN != 0 {
                if self.held >= HELD_MAX {
                    return Ok(Fate::Drop);
                }
                self.held += 1;
                return Ok(Fate::Hold);
            }
        }
        match (self.observation.see(now, segment), self.phase) {
            // It cannot go back: what is missing here comes behind YE.
            (Err(Reason::AdoptUnsteady), Phase::Filling { .. }) => {}
            (seen, _) => seen?,
        }
        self.observation.settle(now);
        Ok(Fate::Pass)
    }

    /// The peer is ready.
    ///
    /// # Errors
    /// When neither knows the terms.
    pub fn ready(&mut self, word: Ready) -> Result<(), Reason> {
        let terms = self.observation.terms.or(word.terms).ok_or(Reason::AdoptUnscaled)?;
        self.observation.terms = Some(terms);
        if self.phase == Phase::Asked {
            self.phase = Phase::Ready;
        }
        if terms.sack { Ok(()) } else { Err(Reason::AdoptUnsteady) }
    }

    /// What to tell the peer if this is a moment. From then on what the client says is held.
    pub fn freeze(&mut self, now: Instant) -> Option<CutWord> {
        let terms = self.observation.terms?;
        if self.phase != Phase::Ready || !self.observation.sure {
            return None;
        }
        // Else the observation would end while the peer may have cut.
        if now.saturating_duration_since(self.observation.since) > OBSERVE_MAX - FROZEN_MAX {
            return None;
        }
        let (_, expects) = self.observation.up.known(true)?;
        self.phase = Phase::Frozen { expects, since: now };
        Some(CutWord { expects, terms })
    }

    /// The peer has cut. From here on there is no way back.
    ///
    /// # Errors
    /// When it was not asked to.
    pub fn answered(&mut self, now: Instant, word: Ye) -> Result<(), Reason> {
        match self.phase {
            Phase::Frozen { expects, .. } => {
                self.phase = Phase::Filling { expects, ye: word.ye, next: word.from, since: now };
                Ok(())
            }
            Phase::Asked | Phase::Ready | Phase::Filling { .. } => Err(Reason::AdoptUnsteady),
        }
    }

    /// What the stream brought next behind YE. More than YE tells of is let go.
    pub fn filled(&mut self, now: Instant, octets: &[u8]) {
        if let Phase::Filling { next, since, ye, .. } = &mut self.phase {
            let left = usize::try_from(ye.wrapping_sub(*next)).unwrap_or(usize::MAX);
            let octets = octets.get(..left).unwrap_or(octets);
            let way = &mut self.observation.down;
            way.shadow.sent(*next, octets);
            if let Some(acked) = way.acked {
                way.shadow.acked(acked);
            }
            *next = next.wrapping_add(u32::try_from(octets.len()).unwrap_or(u32::MAX));
            *since = now;
        }
    }

    /// The socket to the client, once everything is here that the client may have or still has to get.
    #[must_use]
    pub fn half(&self, now: Instant) -> Option<Half> {
        let Phase::Filling { expects, ye, .. } = self.phase else { return None };
        let way = &self.observation.down;
        let acked = way.acked?;
        let (first, end) = way.shadow.ends().unwrap_or((acked, acked));
        let whole = first == acked && end == ye;
        if !whole && !mutants::on("adopt-split-with-a-gap") {
            return None;
        }
        self.observation.to_client(now, self.flow, (first, end), expects)
    }

    /// Whether something of the client's may be held.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        matches!(self.phase, Phase::Frozen { .. } | Phase::Filling { .. })
    }

    /// The server's end is the peer's already: if this one fails, so does the connection. Where a reset may hit what the
    /// client expects next: what it acknowledged, and the end of what passed.
    #[must_use]
    pub fn is_beyond_return(&self) -> Option<[u32; 2]> {
        match self.phase {
            Phase::Filling { next, .. } => {
                let way = &self.observation.down;
                Some([way.acked.unwrap_or(next), way.next.unwrap_or(next)])
            }
            Phase::Asked | Phase::Ready | Phase::Frozen { .. } => None,
        }
    }

    /// Why it has to be given up by now, if it has.
    #[must_use]
    pub fn expired(&self, now: Instant) -> Option<Reason> {
        let too_long = match self.phase {
            Phase::Asked | Phase::Ready => self.observation.expired(now),
            Phase::Frozen { since, .. } => now.saturating_duration_since(since) > FROZEN_MAX,
            Phase::Filling { since, .. } => now.saturating_duration_since(since) > FILLING_MAX,
        };
        too_long.then_some(Reason::AdoptUnsteady)
    }
}

/// The server's node.
#[derive(Clone, Debug)]
pub struct Far {
    flow: Flow,
    observation: Observation,
    told: bool,
    cut: Option<(CutWord, Instant)>,
}

/// What the server's node does when it cuts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FarCut {
    /// Its socket.
    pub half: Half,
    /// What to answer.
    pub word: Ye,
    /// What the stream has behind that, before anything that the socket says.
    pub octets: Vec<u8>,
}

impl Far {
    /// Begins; nothing is known yet.
    #[must_use]
    pub fn begin(now: Instant, flow: Flow, terms: Option<Terms>) -> Self {
        let observation = Observation { terms, ..Observation::without_terms(now) };
        Self { flow, observation, told: false, cut: None }
    }

    /// A packet of the connection goes on.
    ///
    /// # Errors
    /// Why the connection cannot be adopted.
    pub fn see(&mut self, now: Instant, segment: &Segment<'_>) -> Result<(), Reason> {
        self.observation.see(now, segment)?;
        self.observation.settle(now);
        // The peer does not hold what it said it would, or means another connection.
        match self.cut {
            Some((CutWord { expects, .. }, _)) if segment.up && behind(expects, end(segment)) => {
                Err(Reason::AdoptUnsteady)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// What to tell the peer, once.
    pub fn ready(&mut self) -> Option<Ready> {
        let first = self.observation.sure && !self.told;
        self.told |= first;
        first.then_some(Ready { terms: self.observation.terms })
    }

    /// The peer holds what the client says.
    ///
    /// # Errors
    /// When that cannot be true, or it knows other terms.
    pub fn asked(&mut self, now: Instant, word: CutWord) -> Result<(), Reason> {
        if !self.told || self.cut.is_some() || !word.terms.sack {
            return Err(Reason::AdoptUnsteady);
        }
        if self.observation.terms.is_some_and(|terms| terms.scale != word.terms.scale) {
            return Err(Reason::AdoptUnscaled);
        }
        let beyond = self.observation.up.next.is_none_or(|next| behind(word.expects, next));
        if beyond && !mutants::on("adopt-split-any-number") {
            return Err(Reason::AdoptUnsteady);
        }
        self.observation.terms.get_or_insert(word.terms);
        self.cut = Some((word, now));
        Ok(())
    }

    /// The cut, once everything that passed the peer is here.
    #[must_use]
    pub fn half(&self, now: Instant) -> Option<FarCut> {
        let (CutWord { expects, .. }, _) = self.cut?;
        let up = self.observation.up.known(true)?;
        if up.1 != expects && !mutants::on("adopt-split-too-early") {
            return None;
        }
        let (from, ye) = self.observation.down.known(true)?;
        let half = self.observation.to_server(now, self.flow, up, ye)?;
        Some(FarCut { half, word: Ye { from, ye }, octets: self.observation.down.shadow.copy() })
    }

    /// Why it has to be given up by now, if it has.
    #[must_use]
    pub fn expired(&self, now: Instant) -> Option<Reason> {
        let too_long = match self.cut {
            None => self.observation.expired(now),
            Some((_, since)) => now.saturating_duration_since(since) > STRAGGLE_MAX,
        };
        too_long.then_some(Reason::AdoptUnsteady)
    }
}

/// One past the last octet.
fn end(segment: &Segment<'_>) -> u32 {
    segment.seq.wrapping_add(u32::try_from(segment.payload.len()).unwrap_or(u32::MAX))
}

/// Packets of one client that wait: a window of a fast line, in the pieces that the system makes of it.
const HELD_MAX: usize = 2048;
/// The other node answers a round trip later, of a line that is slow and full, and after [`STRAGGLE_MAX`].
const FROZEN_MAX: Duration = Duration::from_secs(2);
/// Between YE and what follows it, and between any two pieces of that. Nothing goes back from there.
const FILLING_MAX: Duration = Duration::from_secs(8);
/// What the client repeats within the round trips of that.
const STRAGGLE_MAX: Duration = Duration::from_millis(400);
/// How long a connection is looked at before both nodes have to have cut.
pub const LOOKED_AT_MAX: Duration = OBSERVE_MAX;

#[cfg(test)]
mod tests;
