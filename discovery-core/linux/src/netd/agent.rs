//! Who carries connections, and how the loop hears of it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use discovery_core::engine::{Event, Peer, Reason};
use discovery_core::flow::Flow;
use discovery_core::pmt::PmtRow;
use rustix::event::epoll;

use super::split::{Tell, Ticket};
use super::{Netd, QUEUE, now};
use crate::queue::PacketQueue;
use crate::worker::{Heard, Word};

/// A connection's far side, for whoever claimed it.
#[derive(Debug)]
pub enum Ready {
    /// The connection to the server.
    Here(OwnedFd),
    /// The next node, which takes the stream on.
    Onward(Peer),
}

/// The answer to a claim.
#[derive(Debug)]
pub enum Claimed {
    /// It can go on at once.
    Ready(Ready),
    /// The server is being asked: [`Agent::claim_ready`] or [`Agent::claim_failed`] follows.
    Wait,
    /// No.
    Refused(Reason),
}

/// Who carries connections: streams on links, and the two ends of what was intercepted. Called in the loop's thread:
/// a call hands the order on and returns. Outcomes come back through [`super::Handle`].
///
/// It takes intercepted connections from the transparent listeners itself, by their flow.
pub trait Agent {
    /// Open a stream for the flow on the link to `peer`: answer with `Event::Opened` or `Event::Refused`.
    fn open(&mut self, flow: Flow, peer: Peer);
    /// The flow is terminated here alone: reach its server from the client's address.
    fn single(&mut self, flow: Flow);
    /// Give up what [`Agent::open`] began, and reset the client's connection if it stands.
    fn abort(&mut self, flow: Flow, why: Reason);
    /// Give up a connection to a server that was handed out, leaving no trace.
    fn abandon(&mut self, flow: Flow, why: Reason);
    /// A claim that had to wait can go on.
    fn claim_ready(&mut self, flow: Flow, ready: Ready);
    /// A claim that had to wait failed.
    fn claim_failed(&mut self, flow: Flow, why: Reason);
    /// Tell the next node that the flow is given up: the attempt whose SYN had this number.
    fn abort_onward(&mut self, flow: Flow, next: Peer, isn: u32);
    /// The proxy mapping table has changed.
    fn learnt(&mut self, row: PmtRow);
    /// A connection that stood before goes on in these two sockets, to its client and to its server: carry between them,
    /// and say `Event::Closed` at the end. Whoever never wants rules that adopt need not.
    fn adopted(&mut self, flow: Flow, client: OwnedFd, server: OwnedFd) {
        tracing::error!(%flow, "nobody carries what was adopted");
        drop((client, server));
    }
    /// Ask `peer` to adopt the server's end of a connection, and answer through [`super::Handle::adoption`] or
    /// [`Word::Adoption`]. What is returned hears what is to be told, and gets the socket to the client. Whoever never
    /// wants rules that adopt need not.
    fn adopt(&mut self, ticket: Ticket, peer: Peer) -> Tell {
        tracing::error!(flow = %ticket.flow, link = %peer.link, "nobody asks a peer to adopt");
        Box::new(|_| false)
    }
    /// The answer to [`Word::Claim`]. Whoever claims by [`super::Handle`] is answered there.
    fn claimed(&mut self, id: u32, claimed: Claimed) {
        drop((id, claimed));
    }
    /// A client's SYN on its way to the own stack: given back, it goes there now; kept, when [`Word::Inject`] is said.
    fn inject(&mut self, flow: Flow, packet: Vec<u8>) -> Option<Vec<u8>> {
        let _nobody_has_to_be_asked = flow;
        Some(packet)
    }
    /// Called when what [`Netd::watch_agent`] was given is readable. An agent of this process says nothing there.
    fn hear(&mut self) -> Heard {
        Heard::Gone
    }
    /// Called in each turn of the loop; `all`: whatever waits for the agent is given up.
    fn turn(&mut self, now: Instant, all: bool) -> Vec<Word> {
        let (_, _) = (now, all);
        Vec::new()
    }
    /// Whether it has been silent for longer than one that turns. New packets wait for it, until they are let go.
    fn is_quiet(&self, now: Instant) -> bool {
        let _always_here = now;
        false
    }
}

impl<Q: PacketQueue, A: Agent> Netd<Q, A> {
    /// Packets wait in the queue while whoever would carry them is silent: whether they have waited for long.
    pub(super) fn hold(&mut self) -> io::Result<bool> {
        let now = Instant::now();
        let hold = !self.bypassed && self.lifeline.is_some() && self.agent.is_quiet(now);
        let data = epoll::EventData::new_u64(QUEUE);
        match (hold, self.held) {
            (true, None) => {
                tracing::debug!("whoever carries connections is silent: packets wait");
                self.held = Some(now);
                epoll::delete(&self.poll, &self.queue)?;
            }
            (false, Some(since)) => {
                self.held = None;
                epoll::add(&self.poll, &self.queue, data, epoll::EventFlags::IN)?;
                return Ok(now.saturating_duration_since(since) >= WAITED_LONG);
            }
            (true, Some(_)) | (false, None) => {}
        }
        Ok(false)
    }

    pub(super) fn hear(&mut self) -> io::Result<()> {
        match self.agent.hear() {
            Heard::Words(words) => self.understand(words),
            Heard::Gone => {
                self.agent_gone();
                Ok(())
            }
        }
    }

    pub(super) fn understand(&mut self, words: Vec<Word>) -> io::Result<()> {
        for word in words {
            match word {
                Word::Event(event) => self.engine.handle_event(now(), event),
                Word::Claim { id, flow, granted } => {
                    let claimed = self.claim(flow, granted);
                    self.agent.claimed(id, claimed);
                }
                Word::Inject(flow, packet) => {
                    let sent = self.senders.inject(flow, &packet);
                    self.counters.unsent += u64::from(sent.is_err());
                }
                Word::AdoptForPeer(flow, tell) => self.adopt_for_peer(now(), flow, tell),
                Word::Adoption(ticket, word) => self.adoption_word(now(), ticket, word)?,
            }
            self.obey();
        }
        Ok(())
    }

    fn agent_gone(&mut self) {
        if let Some(lifeline) = self.lifeline.take() {
            // Other descriptors of it may live on: it would wake the loop for ever.
            let _not_there = epoll::delete(&self.poll, &lifeline);
            tracing::info!("whoever carries connections is gone: new ones flow untouched");
            self.engine.handle_event(now(), Event::AgentDown);
            self.adoptions_end(now());
            self.obey();
        }
    }
}

/// What has waited for so long behind a silent agent, after it had been silent for a while, is let go as well.
const WAITED_LONG: Duration = Duration::from_millis(150);
