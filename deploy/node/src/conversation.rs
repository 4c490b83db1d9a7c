//! One client of a node, from its arrival to its end: what `epc::handler::conversation` does, without the waiting.

use crate::{
    exchange::{Arrival, ConnId, Count, Ended, Limits, NoOrigin, Output, Preloads, ServerTerms},
    flow::Flow,
    planted,
};
use bytes::Bytes;
use discovery_core::{id::UserKeying, now::Now};
use imap_core::{
    catalog::CatalogReply,
    mutants,
    retained::Facts,
    session::{Output as Wanted, Session, SessionConfig, Side},
    start_profile::StartProfiles,
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Instant,
};

/// What all clients of a node have in common.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) keying: Arc<dyn UserKeying>,
    /// How clients begin, by account and program.
    pub(crate) habits: Arc<Mutex<StartProfiles>>,
    /// Who says what sessions fetch that nobody asked for.
    pub(crate) preloads: Option<Preloads>,
}

/// Where it stands.
enum Stage {
    /// The origin is not there yet; the client is not read.
    Opening { since: Instant, finished: bool },
    /// The session runs.
    Serving(Box<Serving>),
    /// What is queued is still written, for a while; then it is closed.
    Ending { how: Ended, since: Instant },
}

struct Serving {
    session: Session,
    /// When either side last said something.
    heard: Instant,
    /// When the client said that it will say nothing more.
    finished: Option<Instant>,
    /// Why we end it, if it is we who do.
    ours: Option<Ended>,
    /// Since when the client's TLS handshake runs.
    in_tls: Option<Instant>,
    /// Since when another origin is awaited.
    replacing: Option<Instant>,
}

/// Whether the node goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    Serving,
    By(Instant),
    Now,
}

pub(crate) struct Conversation {
    arrival: Arrival,
    number: u64,
    terms: ServerTerms,
    limits: Limits,
    common: Common,
    stage: Stage,
    client: Flow,
    origin: Flow,
    /// The origin's connection outlives the client.
    retained: Option<Box<Facts>>,
    /// Octets of the origin that belong to nobody yet.
    ahead: Vec<Bytes>,
    /// Whether it is over, and may be forgotten.
    over: bool,
}

impl Conversation {
    /// A client that is welcome: its origin is sought.
    pub(crate) fn begin(
        now: Now,
        arrival: Arrival,
        number: u64,
        terms: ServerTerms,
        limits: Limits,
        common: Common,
        outputs: &mut VecDeque<Output>,
    ) -> Self {
        let (conn, server) = (arrival.conn, arrival.server.clone());
        outputs.push_back(Output::Open { conn, server, anew: false });
        Self {
            arrival,
            number,
            terms,
            limits,
            common,
            stage: Stage::Opening { since: now.mono, finished: false },
            client: Flow::new(now.mono),
            origin: Flow::new(now.mono),
            retained: None,
            ahead: Vec::new(),
            over: false,
        }
    }

    /// Tells a client why it is not served, and ends.
    pub(crate) fn turn_away(&mut self, now: Now, how: Ended, why: &str, outputs: &mut VecDeque<Output>) {
        // RFC 9051 §7.1.5, RFC 5530 §3.
        let line = Bytes::from(format!("* BYE [UNAVAILABLE] Waypost: {why}\r\n"));
        self.write(now, Side::Client, line, false, outputs);
        self.end(now, how, outputs);
        self.settle(now, outputs);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    pub(crate) fn conn(&self) -> ConnId {
        self.arrival.conn
    }

    /// Whether octets of this side are wanted now: only while less than a window waits for the other.
    pub(crate) fn reads(&self, side: Side) -> bool {
        let Stage::Serving(serving) = &self.stage else { return false };
        if serving.in_tls.is_some() || serving.replacing.is_some() {
            return false;
        }
        let (open, wants, other) = match side {
            Side::Client => {
                (serving.finished.is_none(), serving.session.wants_client(), self.origin.waiting())
            }
            Side::Server => (true, serving.session.wants_server(), self.client.waiting()),
        };
        let room = other < self.limits.window_octets || mutants::on("node-window-unbounded");
        open && self.flow(side).is_open() && wants && room
    }

    /// Octets that wait for the client and for the origin.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.client.waiting(), self.origin.waiting())
    }

    fn flow(&self, side: Side) -> &Flow {
        match side {
            Side::Client => &self.client,
            Side::Server => &self.origin,
        }
    }

    fn flow_mut(&mut self, side: Side) -> &mut Flow {
        match side {
            Side::Client => &mut self.client,
            Side::Server => &mut self.origin,
        }
    }
}

/// What happened.
impl Conversation {
    pub(crate) fn opened(
        &mut self,
        now: Now,
        greeting: &Bytes,
        parked: bool,
        outputs: &mut VecDeque<Output>,
    ) {
        match &mut self.stage {
            Stage::Opening { finished, .. } => {
                let finished = *finished;
                let mut session = Session::new(SessionConfig {
                    number: self.number,
                    nonce: self.arrival.nonce,
                    server: self.arrival.server.clone(),
                    keying: Arc::clone(&self.common.keying),
                    road: self.arrival.road,
                    compress: self.terms.compress,
                    cache: self.terms.cache,
                    re_proof: self.terms.re_proof,
                    chunk_fill_max: self.terms.chunk_fill_max,
                    retain: self.terms.retain,
                });
                if parked {
                    session.origin_was_parked();
                }
                if self.terms.foresee {
                    session.foresee(Arc::clone(&self.common.habits) as Arc<_>);
                }
                if let Some(preloads) = &self.common.preloads {
                    session.preload_by(preloads(&self.arrival.server));
                }
                session.handle_greeting(now, greeting);
                if finished {
                    session.handle_client_finished(now);
                }
                self.stage = Stage::Serving(Box::new(Serving {
                    session,
                    heard: now.mono,
                    finished: finished.then_some(now.mono),
                    ours: None,
                    in_tls: None,
                    replacing: None,
                }));
            }
            Stage::Serving(serving) if serving.replacing.is_some() => {
                serving.replacing = None;
                serving.session.handle_replacement(now, greeting);
                self.origin.reopen(now.mono);
                outputs.push_back(Output::Count { conn: self.conn(), what: Count::OriginReplaced });
            }
            // Too late: whoever waited for it has been told otherwise.
            Stage::Serving(_) | Stage::Ending { .. } => {}
        }
        self.settle(now, outputs);
    }

    pub(crate) fn open_failed(&mut self, now: Now, why: NoOrigin, outputs: &mut VecDeque<Output>) {
        let conn = self.conn();
        let failed = Output::Count { conn, what: Count::OpenFailed(why.0) };
        match &mut self.stage {
            Stage::Opening { .. } => {
                outputs.push_back(failed);
                let why = format!("the mail server cannot be reached ({})", why.0);
                self.turn_away(now, Ended::NoOrigin, &why, outputs);
            }
            Stage::Serving(serving) if serving.replacing.is_some() => {
                serving.replacing = None;
                outputs.push_back(failed);
                self.origin.break_off();
                serving.session.handle_closed(now, Side::Server);
                self.settle(now, outputs);
            }
            Stage::Serving(_) | Stage::Ending { .. } => {}
        }
    }

    pub(crate) fn octets(&mut self, now: Now, side: Side, octets: Bytes, outputs: &mut VecDeque<Output>) {
        if let Stage::Serving(serving) = &mut self.stage {
            serving.heard = now.mono;
            match side {
                Side::Client => serving.session.handle_client(now, octets),
                Side::Server => serving.session.handle_server(now, octets),
            }
            self.settle(now, outputs);
        } else if side == Side::Server && self.retained.is_some() {
            // Read before its session had decided to leave it behind: its keeper's.
            self.ahead.push(octets);
        }
    }

    pub(crate) fn finished(&mut self, now: Now, side: Side, outputs: &mut VecDeque<Output>) {
        match (side, &mut self.stage) {
            (Side::Server, _) => return self.broken(now, side, outputs),
            (Side::Client, Stage::Opening { finished, .. }) => *finished = true,
            (Side::Client, Stage::Serving(serving)) => {
                serving.finished.get_or_insert(now.mono);
                serving.session.handle_client_finished(now);
            }
            (Side::Client, Stage::Ending { .. }) => {}
        }
        self.settle(now, outputs);
    }

    pub(crate) fn broken(&mut self, now: Now, side: Side, outputs: &mut VecDeque<Output>) {
        let news = self.flow_mut(side).break_off();
        match &mut self.stage {
            Stage::Opening { .. } if side == Side::Client => self.end(now, Ended::Done, outputs),
            Stage::Serving(serving) if news => serving.session.handle_closed(now, side),
            Stage::Opening { .. } | Stage::Serving(_) | Stage::Ending { .. } => {}
        }
        self.settle(now, outputs);
    }

    pub(crate) fn wrote(
        &mut self,
        now: Now,
        side: Side,
        octets: usize,
        pieces: usize,
        outputs: &mut VecDeque<Output>,
    ) {
        self.flow_mut(side).wrote(now.mono, octets, pieces);
        self.settle(now, outputs);
    }

    pub(crate) fn body_lost(&mut self, now: Now, outputs: &mut VecDeque<Output>) {
        self.client.break_off();
        self.end(now, Ended::StoreLost, outputs);
        self.settle(now, outputs);
    }

    pub(crate) fn tls_up(&mut self, now: Now, outputs: &mut VecDeque<Output>) {
        if let Stage::Serving(serving) = &mut self.stage
            && serving.in_tls.take().is_some()
        {
            serving.session.handle_client_tls(now);
        }
        self.settle(now, outputs);
    }

    pub(crate) fn tls_failed(&mut self, now: Now, surplus: bool, outputs: &mut VecDeque<Output>) {
        self.end(now, if surplus { Ended::StartTlsSurplus } else { Ended::StartTlsFailed }, outputs);
        self.settle(now, outputs);
    }

    pub(crate) fn store(&mut self, now: Now, reply: CatalogReply, outputs: &mut VecDeque<Output>) {
        if planted::loses(&reply) {
            return;
        }
        if let Stage::Serving(serving) = &mut self.stage {
            serving.session.handle_store(now, reply);
            self.settle(now, outputs);
        }
    }

    /// Does what a drain asks for, and what is due.
    pub(crate) fn tick(&mut self, now: Now, drain: Drain, outputs: &mut VecDeque<Output>) {
        if self.deadline(drain).is_some_and(|due| due <= now.mono) {
            self.due(now, outputs);
        }
        self.drain(now, drain, outputs);
    }

    /// Ends a session that is at rest when the node drains.
    pub(crate) fn drain(&mut self, now: Now, drain: Drain, outputs: &mut VecDeque<Output>) {
        if drain == Drain::Serving {
            return;
        }
        match &mut self.stage {
            Stage::Opening { .. } => self.turn_away(now, Ended::Drained, "shutting down (drain)", outputs),
            Stage::Serving(serving) => {
                let end = match drain {
                    Drain::Serving => false,
                    Drain::By(moment) => serving.session.is_at_rest() || now.mono >= moment,
                    Drain::Now => true,
                };
                if end {
                    serving.shut_down(now, Ended::Drained, "shutting down");
                    self.settle(now, outputs);
                }
            }
            Stage::Ending { .. } => {}
        }
    }

    /// The next moment at which something must be done although nothing happens.
    pub(crate) fn deadline(&self, drain: Drain) -> Option<Instant> {
        let limits = &self.limits;
        match &self.stage {
            Stage::Opening { since, .. } => Some(*since + limits.origin_patience),
            Stage::Serving(serving) => {
                let login = serving.session.is_secret().then(|| serving.heard + limits.login_idle);
                let drained = match drain {
                    Drain::By(moment) if serving.ours.is_none() => Some(moment),
                    Drain::By(_) | Drain::Serving | Drain::Now => None,
                };
                let tls = serving.in_tls.map(|since| since + limits.stuck);
                let replacing = serving.replacing.map(|since| since + limits.origin_patience);
                let finished = serving.finished.map(|since| since + limits.close_max);
                let stuck = [self.client.stuck_at(limits.stuck), self.origin.stuck_at(limits.stuck)];
                [login, drained, tls, replacing, finished, serving.session.poll_timeout()]
                    .into_iter()
                    .chain(stuck)
                    .flatten()
                    .min()
            }
            Stage::Ending { since, .. } => {
                let patience = limits.close_patience;
                [self.client.stuck_at(patience), self.origin.stuck_at(patience)]
                    .into_iter()
                    .flatten()
                    .max()
                    .map(|both| both.min(*since + limits.close_max))
            }
        }
    }

    fn due(&mut self, now: Now, outputs: &mut VecDeque<Output>) {
        let limits = self.limits;
        let is_stuck = |flow: &Flow| flow.stuck_at(limits.stuck).is_some_and(|at| at <= now.mono);
        let stuck = is_stuck(&self.client) || is_stuck(&self.origin);
        match &mut self.stage {
            Stage::Opening { .. } => return self.open_failed(now, NoOrigin("timed-out"), outputs),
            Stage::Serving(serving) => {
                let over = |since: Option<Instant>, limit| since.is_some_and(|at| at + limit <= now.mono);
                if serving.session.poll_timeout().is_some_and(|moment| moment <= now.mono) {
                    serving.session.handle_timeout(now);
                }
                if over(serving.replacing, limits.origin_patience) {
                    return self.open_failed(now, NoOrigin("timed-out"), outputs);
                }
                if over(serving.finished, limits.close_max) {
                    self.end(now, Ended::Done, outputs);
                } else if stuck || over(serving.in_tls, limits.stuck) {
                    self.end(now, Ended::Stuck, outputs);
                } else if serving.session.is_secret() && serving.heard + limits.login_idle <= now.mono {
                    serving.shut_down(now, Ended::IdleBeforeLogin, "idle for too long before a login");
                }
            }
            // Its time is over.
            Stage::Ending { .. } => {
                self.client.break_off();
                self.origin.break_off();
            }
        }
        self.settle(now, outputs);
    }
}

impl Serving {
    fn shut_down(&mut self, now: Now, how: Ended, why: &str) {
        if self.ours.is_none() {
            self.ours = Some(how);
            self.session.handle_shutdown(now, why);
        }
    }
}

/// What follows.
impl Conversation {
    /// Does what the session wants done, in order, and closes what is at its end.
    fn settle(&mut self, now: Now, outputs: &mut VecDeque<Output>) {
        let conn = self.conn();
        while let Stage::Serving(serving) = &mut self.stage {
            let Some(wanted) = serving.session.poll_output() else { break };
            let apart = serving.session.is_secret();
            match wanted {
                Wanted::ToClient(octets) => self.write(now, Side::Client, octets, false, outputs),
                Wanted::ToServer(octets) => match planted::answers_itself(&octets) {
                    Some(answer) => self.write(now, Side::Client, answer, false, outputs),
                    None => self.write(now, Side::Server, planted::unpeeked(octets), apart, outputs),
                },
                Wanted::ToClientFrom { reader, offset, octets } => {
                    if self.client.push(now.mono, 0) {
                        let offset = planted::shifted(offset);
                        outputs.push_back(Output::WriteFrom { conn, reader, offset, octets });
                    }
                }
                Wanted::Catalog(op) => outputs.push_back(Output::Catalog { conn, op }),
                Wanted::StartTls => {
                    serving.in_tls = Some(now.mono);
                    outputs.push_back(Output::StartTls { conn });
                }
                Wanted::CompressServer { surplus } => outputs.push_back(Output::Deflate { conn, surplus }),
                Wanted::ReplaceOrigin => {
                    serving.replacing = Some(now.mono);
                    self.origin.break_off();
                    let server = self.arrival.server.clone();
                    outputs.push_back(Output::Open { conn, server, anew: true });
                }
                Wanted::Event(event) => {
                    outputs.push_back(Output::Count { conn, what: Count::Event(event) });
                }
                Wanted::Retain(facts) => {
                    self.retained = Some(facts);
                    let how = serving.ours.unwrap_or(Ended::Done);
                    self.end(now, how, outputs);
                }
                Wanted::Close(why) => {
                    let how = serving.ours.unwrap_or(why.into());
                    self.end(now, how, outputs);
                }
            }
        }
        if let Stage::Serving(serving) = &self.stage
            && !self.client.is_open()
            && !self.origin.is_open()
            && serving.replacing.is_none()
        {
            let how = serving.ours.unwrap_or(Ended::Done);
            self.end(now, how, outputs);
        }
        if let Stage::Ending { how, .. } = &self.stage
            && self.client.is_drained()
            && self.origin.is_drained()
            && !self.over
        {
            self.over = true;
            outputs.push_back(Output::Count { conn, what: Count::Ended(*how) });
            outputs.push_back(match self.retained.take().filter(|_| self.origin.is_open()) {
                Some(facts) => {
                    let ahead = std::mem::take(&mut self.ahead);
                    Output::HandOver { conn, facts: planted::handed(facts), ahead }
                }
                None => Output::Close { conn },
            });
        }
    }

    fn write(&mut self, now: Now, side: Side, octets: Bytes, apart: bool, outputs: &mut VecDeque<Output>) {
        let conn = self.conn();
        if !octets.is_empty() && self.flow_mut(side).push(now.mono, octets.len()) {
            outputs.push_back(Output::Write { conn, side, octets, apart });
        }
    }

    fn end(&mut self, now: Now, how: Ended, outputs: &mut VecDeque<Output>) {
        let conn = self.conn();
        if let Stage::Serving(serving) = &mut self.stage {
            // What it still wants of the store is said; what it still wants to say is not.
            serving.session.handle_abandoned(now);
            while let Some(wanted) = serving.session.poll_output() {
                if let Wanted::Catalog(op) = wanted {
                    outputs.push_back(Output::Catalog { conn, op });
                }
            }
        }
        if !matches!(self.stage, Stage::Ending { .. }) {
            self.stage = Stage::Ending { how, since: now.mono };
        }
    }
}
