//! Who an input is for, and what the whole node does.

use crate::{
    conversation::{Common, Conversation, Drain},
    exchange::{Arrival, ConnId, Count, Ended, Input, Limits, NodeConfig, Order, Output, ServerTerms},
    planted,
};
use discovery_core::{id::ServerId, now::Now};
use imap_core::session::Side;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

/// See the crate's documentation.
pub struct Node {
    limits: Limits,
    servers: BTreeMap<ServerId, ServerTerms>,
    common: Common,
    conversations: BTreeMap<ConnId, Conversation>,
    /// How many each server has.
    sessions: BTreeMap<ServerId, usize>,
    /// Which server each conversation counts for.
    counted: BTreeMap<ConnId, ServerId>,
    /// When each conversation wants to be woken.
    deadlines: BTreeSet<(Instant, ConnId)>,
    wakes: BTreeMap<ConnId, Instant>,
    drain: Drain,
    numbers: u64,
    outputs: VecDeque<Output>,
}

impl Node {
    /// A node without clients.
    #[must_use]
    pub fn new(config: NodeConfig) -> Self {
        let NodeConfig { limits, servers, keying, preloads } = config;
        Self {
            limits,
            servers,
            common: Common { keying: planted::keying(keying), habits: Arc::default(), preloads },
            conversations: BTreeMap::new(),
            sessions: BTreeMap::new(),
            counted: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            wakes: BTreeMap::new(),
            drain: Drain::Serving,
            numbers: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Something happened. What the node wants done is there afterwards.
    pub fn handle(&mut self, now: Now, input: Input) {
        match input {
            Input::Accepted(arrival) => self.accepted(now, arrival),
            Input::OriginOpened { conn, greeting, parked } => {
                self.with(now, conn, |talk, out| talk.opened(now, &greeting, parked, out));
            }
            Input::OriginFailed { conn, why } => {
                self.with(now, conn, |talk, out| talk.open_failed(now, why, out));
            }
            Input::Octets { conn, side, octets } => {
                self.with(now, conn, |talk, out| talk.octets(now, side, octets, out));
            }
            Input::Finished { conn, side } => self.with(now, conn, |talk, out| talk.finished(now, side, out)),
            Input::Broken { conn, side } => self.with(now, conn, |talk, out| talk.broken(now, side, out)),
            Input::Wrote { conn, side, octets, pieces } => {
                self.with(now, conn, |talk, out| talk.wrote(now, side, octets, pieces, out));
            }
            Input::BodyLost { conn } => self.with(now, conn, |talk, out| talk.body_lost(now, out)),
            Input::TlsUp { conn } => self.with(now, conn, |talk, out| talk.tls_up(now, out)),
            Input::TlsFailed { conn, surplus } => {
                self.with(now, conn, |talk, out| talk.tls_failed(now, surplus, out));
            }
            Input::Store { conn, reply } => self.with(now, conn, |talk, out| talk.store(now, reply, out)),
            Input::Tick => self.tick(now),
            Input::Operator(Order::DrainBy(moment)) => self.drain(now, Drain::By(moment)),
            Input::Operator(Order::DrainNow) => self.drain(now, Drain::Now),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to say [`Input::Tick`], if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Whether octets of this side are wanted now; the shell asks before it reads.
    #[must_use]
    pub fn reads(&self, conn: ConnId, side: Side) -> bool {
        self.conversations.get(&conn).is_some_and(|talk| talk.reads(side))
    }

    /// How many clients there are.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.conversations.len()
    }

    /// Octets that wait for the client and for the origin of a connection, small pieces counted for more.
    #[must_use]
    pub fn waiting(&self, conn: ConnId) -> Option<(usize, usize)> {
        self.conversations.get(&conn).map(Conversation::waiting)
    }

    fn accepted(&mut self, now: Now, arrival: Arrival) {
        let conn = arrival.conn;
        self.outputs.push_back(Output::Count { conn, what: Count::Accepted });
        self.numbers += 1;
        let terms = self.servers.get(&arrival.server).cloned();
        let Some(terms) = terms else {
            self.outputs.push_back(Output::Count { conn, what: Count::OpenFailed("unknown-server") });
            self.outputs.push_back(Output::Count { conn, what: Count::Ended(Ended::NoOrigin) });
            self.outputs.push_back(Output::Close { conn });
            return;
        };
        let count = self.sessions.entry(arrival.server.clone()).or_default();
        let full = *count >= terms.sessions_max;
        *count += 1;
        self.counted.insert(conn, arrival.server.clone());
        let mut begun = VecDeque::new();
        let mut talk = Conversation::begin(
            now,
            arrival,
            self.numbers,
            terms,
            self.limits,
            self.common.clone(),
            &mut begun,
        );
        if full {
            talk.turn_away(now, Ended::Full, "too many sessions (full)", &mut self.outputs);
        } else if self.drain != Drain::Serving {
            talk.drain(now, self.drain, &mut self.outputs);
        } else {
            self.outputs.append(&mut begun);
        }
        self.conversations.insert(conn, talk);
        self.after(conn);
    }

    fn with(&mut self, now: Now, conn: ConnId, act: impl FnOnce(&mut Conversation, &mut VecDeque<Output>)) {
        let Some(talk) = self.conversations.get_mut(&conn) else {
            self.outputs.push_back(Output::Count { conn, what: Count::NobodyThere });
            return;
        };
        act(talk, &mut self.outputs);
        talk.drain(now, self.drain, &mut self.outputs);
        self.after(conn);
    }

    /// Forgets a conversation that is over, and knows when to wake one that is not.
    fn after(&mut self, conn: ConnId) {
        let Some(talk) = self.conversations.get(&conn) else { return };
        let due = if talk.is_over() { None } else { talk.deadline(self.drain) };
        if talk.is_over() {
            self.conversations.remove(&conn);
            if let Some(count) = self.counted.remove(&conn).and_then(|server| self.sessions.get_mut(&server))
            {
                *count = count.saturating_sub(1);
            }
        }
        let before = match due {
            Some(at) => self.wakes.insert(conn, at),
            None => self.wakes.remove(&conn),
        };
        if before != due {
            if let Some(at) = before {
                self.deadlines.remove(&(at, conn));
            }
            if let Some(at) = due {
                self.deadlines.insert((at, conn));
            }
        }
    }

    fn tick(&mut self, now: Now) {
        let due: Vec<ConnId> =
            self.deadlines.iter().take_while(|(at, _)| *at <= now.mono).map(|(_, conn)| *conn).collect();
        for conn in due {
            let drain = self.drain;
            self.with(now, conn, |talk, out| talk.tick(now, drain, out));
        }
    }

    fn drain(&mut self, now: Now, drain: Drain) {
        self.drain = drain;
        let all: Vec<ConnId> = self.conversations.keys().copied().collect();
        for conn in all {
            self.with(now, conn, |_, _| {});
        }
    }
}
