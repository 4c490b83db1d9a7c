//! One client's IMAP session, between a client and its origin: what is forwarded, what is answered from the
//! store, and what is asked of the origin on the client's behalf.
//!
//! ```text
//!  client octets ─► framer ─► command ─┬─► forward as it came ───────────────────► origin
//!                                      └─► FETCH: the store, the origin, or both (fetch)
//!  origin octets ─► framer ─► response ─► views ─► told to the client when it may hear it
//!                                    └─► what passes is kept (tee) ─► store
//! ```
//!
//! The rules that must never bend:
//! * A stored octet goes out only after the origin accepted this session's login, opened this mailbox under
//!   this UIDVALIDITY, and listed this UID to this very session ([`views`](crate::views)).
//! * A tagged OK that promises a change (`\Seen`) waits for the origin's own answer.
//! * The client hears EXPUNGE only where RFC 9051 §7.5.1 allows it; message numbers sent to it are positions
//!   in what *it* has been told.
//! * What is not understood is forwarded as it came.
//!
//! The session owns no socket, file or clock: the shell calls `handle_*`, then drains
//! [`Session::poll_output`].

mod announcing;
mod claim;
mod commands;
mod exchange;
mod fetch;
mod flight;
mod fresh_flags;
mod login;
mod prompting;
mod remembered;
mod renumber;
mod replacing;
mod responses;
mod retain;
mod slices;
mod tee;
mod telling;
mod underway;

#[cfg(test)]
mod flags_ahead_tests;
#[cfg(test)]
mod flight_tests;
#[cfg(test)]
mod tests;

pub use exchange::{Closing, Compress, Doubt, Event, Outcome, Output, Reason, Road, SessionConfig, Side};

use crate::{
    capability::{self, Capabilities, ClientRoad},
    catalog::{CatalogOp, CatalogReply, FillId, MailboxKey, RequestId},
    framer::{Direction, Framer},
    mutants,
    response::{self, Response, Status},
    views::{SlotId, Told, Views, Window},
};
use bytes::{Bytes, BytesMut};
use commands::Passing;
use discovery_core::{id::AccountKey, now::Now};
use fetch::{Splices, Waiting};
use flight::Ahead;
use fresh_flags::FreshFlags;
use remembered::Remembered;
use replacing::Replacing;
use slices::Synthetic;
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Instant,
};
use tee::Reading;
use underway::{Flights, Underway};

/// The session's place in RFC 9051 §3, and three of ours.
enum Phase {
    /// Before the greeting.
    Greeting,
    /// RFC 9051 §3.1.
    NotAuthenticated,
    /// RFC 9051 §3.2.
    Authenticated,
    /// A SELECT or EXAMINE is with the origin; untagged data describe the mailbox to come.
    Selecting,
    /// RFC 9051 §3.3.
    Selected(Selection),
    /// Octets pass both ways; nothing is learned.
    Tunnel,
    /// Over.
    Closed,
}

/// An open mailbox.
struct Selection {
    /// Scope of what is stored; `None` where nothing may be: no certain identity, no UIDVALIDITY, turned off, or
    /// the origin no longer lets this user read it.
    key: Option<MailboxKey>,
    /// The name as the client wrote it, for asking the origin about it.
    written: Bytes,
    read_only: bool,
    /// When the origin last showed that this user may read this mailbox.
    proved: Instant,
}

/// Where the client stands with IDLE (RFC 2177).
enum Idle {
    Off,
    /// Forwarded; the origin has not said `+`.
    Asked(Bytes),
    /// The client listens.
    Listening(Bytes),
}

impl Idle {
    fn is_engaged(&self) -> bool {
        !matches!(self, Self::Off)
    }
}

/// See the module's documentation.
pub struct Session {
    config: SessionConfig,
    phase: Phase,
    account: Option<AccountKey>,
    capabilities: Capabilities,
    /// The client turned UTF8=ACCEPT on (RFC 6855).
    utf8: bool,
    views: Views,
    sizes: BTreeMap<SlotId, u64>,
    flags: FreshFlags,
    remembered: Remembered,

    client: Framer,
    client_input: Bytes,
    server: Framer,
    reading: Reading,

    underway: VecDeque<Underway>,
    flights: Flights,
    /// The client's next command, which must wait for something; those behind it stay in `client_input`.
    waiting: Option<Waiting>,
    /// A client's command with literals, passing piece by piece.
    passing: Option<Passing>,
    idle: Idle,
    splices: Splices,
    /// The tag of the command for which this session has the store's claim.
    claimed: Option<Bytes>,
    /// The message asked whole whose octets have begun to come.
    whole_begun: Option<SlotId>,
    /// When the origin was last asked for the rights to the open mailbox.
    rights_asked: Option<Instant>,
    /// The origin listed `r` for the open mailbox in answer to our question.
    rights_seen: bool,
    /// COMPRESS was asked for behind a login that was not yet answered.
    compress_early: bool,
    /// COMPRESS has been asked for, and not refused with a login.
    compress_asked: bool,
    /// Everything behind this point of the origin's octets is deflated.
    compress_begins: bool,
    /// The client says nothing more.
    client_finished: bool,
    /// The origin said BYE.
    bye_heard: bool,
    /// When the origin accepted the login, and whether by a token.
    authenticated: Option<(Now, bool)>,
    replacing: Replacing,
    /// The client's address, to be told to the origin before anything else.
    announce: Option<SocketAddr>,
    ahead: Ahead,
    synthetic: Synthetic,

    last_request: u64,
    last_fill: u64,
    now: Option<Now>,
    outputs: VecDeque<Output>,
}

impl Session {
    /// A session whose origin is connected; [`Session::handle_greeting`] comes first.
    #[must_use]
    pub fn new(config: SessionConfig) -> Self {
        Self {
            phase: Phase::Greeting,
            account: None,
            capabilities: Capabilities::default(),
            utf8: false,
            views: Views::new(),
            sizes: BTreeMap::new(),
            flags: FreshFlags::default(),
            remembered: Remembered::default(),
            client: Framer::new(Direction::FromClient),
            client_input: Bytes::new(),
            server: Framer::new(Direction::FromServer),
            reading: Reading::Nothing,
            underway: VecDeque::new(),
            flights: Flights::new(config.nonce),
            waiting: None,
            passing: None,
            idle: Idle::Off,
            splices: Splices::default(),
            claimed: None,
            whole_begun: None,
            rights_asked: None,
            rights_seen: false,
            compress_early: false,
            compress_asked: false,
            compress_begins: false,
            client_finished: false,
            bye_heard: false,
            authenticated: None,
            replacing: Replacing::Never,
            announce: None,
            ahead: Ahead::default(),
            synthetic: Synthetic::default(),
            last_request: 0,
            last_fill: 0,
            now: None,
            outputs: VecDeque::new(),
            config,
        }
    }

    /// The origin's greeting line, CRLF included.
    pub fn handle_greeting(&mut self, now: Now, line: &Bytes) {
        self.now = Some(now);
        let status = match response::response(line) {
            Ok(Response::Status { status, .. }) => Some(status),
            _ => None,
        };
        self.phase = match status {
            Some(Status::Ok) => Phase::NotAuthenticated,
            // Who that is was settled on another road; nothing may be stored for a nameless user.
            Some(Status::Preauth) => Phase::Authenticated,
            Some(Status::No | Status::Bad | Status::Bye) | None => {
                self.say(line.clone());
                self.close(Closing::Done);
                return;
            }
        };
        self.learn_capabilities(line);
        self.forward_filtered(line);
    }

    /// Octets from the client.
    pub fn handle_client(&mut self, now: Now, octets: Bytes) {
        self.now = Some(now);
        match self.phase {
            Phase::Tunnel => self.send(octets),
            Phase::Closed => {}
            Phase::Greeting
            | Phase::NotAuthenticated
            | Phase::Authenticated
            | Phase::Selecting
            | Phase::Selected(_) => {
                self.client_input = joined(std::mem::take(&mut self.client_input), octets);
                self.pump();
            }
        }
    }

    /// Octets from the origin.
    pub fn handle_server(&mut self, now: Now, octets: Bytes) {
        self.now = Some(now);
        self.hold(now, octets, false);
        self.read_held();
        self.pump();
    }

    fn server_octets(&mut self, mut octets: Bytes) {
        loop {
            if self.is_replacing() {
                return;
            }
            if let Some(now) = self.now.filter(|_| self.holds()) {
                return self.hold(now, octets, true);
            }
            match self.phase {
                Phase::Tunnel => {
                    self.say(octets);
                    return;
                }
                Phase::Closed => return,
                Phase::Greeting
                | Phase::NotAuthenticated
                | Phase::Authenticated
                | Phase::Selecting
                | Phase::Selected(_) => {}
            }
            match self.server.next(&mut octets) {
                Ok(Some(frame)) => {
                    self.server_frame(frame);
                    // At once: what the next frame brings is told behind it.
                    self.release();
                    self.end_flight();
                    if std::mem::take(&mut self.compress_begins) {
                        self.outputs.push_back(Output::CompressServer { surplus: octets });
                        self.event(Event::Compressing);
                        break;
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    self.bye(Closing::OriginGarbled, "the server's answer cannot be read safely");
                    return;
                }
            }
        }
    }

    /// The store's answer to a question of ours.
    pub fn handle_store(&mut self, now: Now, reply: CatalogReply) {
        self.now = Some(now);
        self.store_replied(reply);
        self.pump();
    }

    /// The client's TLS is up after [`Output::StartTls`].
    pub fn handle_client_tls(&mut self, now: Now) {
        self.now = Some(now);
        self.config.road = Road::Tls;
        // RFC 9051 §6.2.1: what was said before belongs to whoever could write on the wire.
        self.client = Framer::new(Direction::FromClient);
        self.client_input = Bytes::new();
    }

    /// The client has said all that it will say, and may still listen: what it asked for is done, then the session
    /// ends.
    pub fn handle_client_finished(&mut self, now: Now) {
        self.now = Some(now);
        self.client_finished = true;
        self.end_if_finished();
    }

    /// One side closed its stream, in whatever way.
    pub fn handle_closed(&mut self, now: Now, side: Side) {
        self.now = Some(now);
        if side == Side::Client {
            return self.client_gone();
        }
        if self.bye_heard || matches!(self.phase, Phase::Tunnel) {
            return self.close(Closing::Done);
        }
        if self.replace_origin() {
            return;
        }
        self.bye(Closing::OriginLost, "the connection to the mail server was lost");
    }

    /// The deadline of [`Session::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Now) {
        self.now = Some(now);
        self.hold_no_longer();
        self.pump();
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Session::handle_timeout`], if nothing happens before. Only what another session fetches is waited
    /// for by the clock, and what was asked ahead is given up; all else ends by itself, in an answer or in the end of a
    /// connection. What is fetched ahead goes by the clock, too.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let pause = self.waiting.as_ref().and_then(Waiting::pause);
        pause.into_iter().chain(self.held_until()).chain(self.slices_due()).min()
    }

    /// Whether the session can take more from the client now; if not, the shell stops reading it.
    #[must_use]
    pub fn wants_client(&self) -> bool {
        matches!(self.phase, Phase::Tunnel) || self.client_input.is_empty()
    }

    /// Whether the session can take more from the origin now.
    #[must_use]
    pub fn wants_server(&self) -> bool {
        !self.views.is_full() && self.may_hold_more()
    }

    /// Whether a secret may pass: the shell then keeps its buffers to itself and wipes them.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        matches!(self.phase, Phase::Greeting | Phase::NotAuthenticated)
    }

    /// Whether nothing is half done, so that a drain may end the session here.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let only_idle = self.underway.len() == usize::from(matches!(self.idle, Idle::Listening(_)));
        only_idle
            && self.waiting.is_none()
            && self.passing.is_none()
            && self.client_input.is_empty()
            && !self.is_stalled()
            && matches!(self.reading, Reading::Nothing)
            && !matches!(self.phase, Phase::Tunnel)
    }

    /// Ends the session from our side, telling the client `why`.
    pub fn handle_shutdown(&mut self, now: Now, why: &str) {
        self.now = Some(now);
        self.bye(Closing::Done, why);
    }

    /// The shell carries out nothing more of it but its last [`CatalogOp`]s, which give back what it holds of the store.
    pub fn handle_abandoned(&mut self, now: Now) {
        self.now = Some(now);
        self.close(Closing::Done);
    }

    /// The account, once the origin has accepted the login.
    #[must_use]
    pub fn account(&self) -> Option<&AccountKey> {
        self.account.as_ref()
    }

    /// The state in one word, for `status`.
    #[must_use]
    pub fn state_word(&self) -> &'static str {
        match &self.phase {
            Phase::Greeting => "greeting",
            Phase::NotAuthenticated => "login",
            Phase::Authenticated => "authenticated",
            Phase::Selecting => "selecting",
            Phase::Selected(_) if self.idle.is_engaged() => "idle",
            Phase::Selected(_) => "selected",
            Phase::Tunnel => "tunnel",
            Phase::Closed => "closed",
        }
    }
}

/// Telling the client what may be told.
impl Session {
    /// What RFC 9051 §7.5.1 lets us tell the client now; `None`: nothing at all. The oldest command decides: it is
    /// the one that the origin is at.
    fn window(&self) -> Option<Window> {
        if matches!(self.idle, Idle::Listening(_)) {
            return Some(Window::All);
        }
        let waiting = self.waiting.as_ref().map(|w| underway::is_by_number(&w.command));
        let oldest = self.underway.front().map(|u| u.by_number);
        // One that waits means the numbers that the client has now, whatever is before it.
        match if waiting == Some(true) { waiting } else { oldest.or(waiting) } {
            Some(true) if !mutants::on("session-expunge-in-any-window") => Some(Window::NoExpunge),
            Some(_) => Some(Window::All),
            // What the origin says to a question of ours was not meant for a client that says nothing.
            None if self.flights.has_own() => None,
            None => Some(Window::NoExpunge),
        }
    }

    /// Whether the client is in the middle of a response: nothing else may be said to it.
    fn is_mid_response(&self) -> bool {
        self.reading.is_told() && !mutants::on("session-speaks-within-a-response")
    }

    fn tell(&mut self) {
        if self.views.has_log()
            && !self.is_mid_response()
            && self.is_selected()
            && let Some(window) = self.window()
        {
            self.tell_in(window);
        }
    }

    /// Before message data: the client must know of the message first.
    fn tell_before_data(&mut self) {
        if self.views.has_log() && self.is_selected() && !self.is_mid_response() {
            self.tell_in(Window::NoExpunge);
        }
    }

    fn tell_in(&mut self, window: Window) {
        let outputs = &mut self.outputs;
        self.views.deliver(window, &mut |told| {
            outputs.push_back(Output::ToClient(match told {
                Told::Exists(n) => format!("* {n} EXISTS\r\n").into(),
                Told::Expunge(msn) => format!("* {msn} EXPUNGE\r\n").into(),
                Told::Recent(n) => format!("* {n} RECENT\r\n").into(),
                Told::Fetch { msn, payload } => {
                    let mut line = BytesMut::from(format!("* {msn} FETCH ").as_bytes());
                    line.extend_from_slice(&payload);
                    line.freeze()
                }
                Told::Line(line) => line,
            }));
        });
    }

    /// Completes what can be completed, oldest first.
    fn release(&mut self) {
        while !self.is_mid_response() {
            let Some(front) = self.underway.front_mut() else { return };
            let rows = std::mem::take(&mut front.prepared);
            if !rows.is_empty() {
                self.tell_before_data();
                for row in &rows {
                    self.tell_prepared(row);
                }
            }
            let Some(front) = self.underway.front_mut() else { return };
            if front.awaits > 0 {
                return;
            }
            let Some(line) = front.completion.take() else { return };
            self.tell();
            self.underway.pop_front();
            self.forward_filtered(&line);
        }
    }
}

/// Small things.
impl Session {
    fn is_selected(&self) -> bool {
        matches!(self.phase, Phase::Selected(_))
    }

    fn selection(&self) -> Option<&Selection> {
        if let Phase::Selected(selection) = &self.phase { Some(selection) } else { None }
    }

    /// Scope of what is stored of the open mailbox, if anything may be.
    fn mailbox_key(&self) -> Option<&MailboxKey> {
        self.selection()?.key.as_ref()
    }

    fn forbids(&self, command: &crate::command::Command) -> bool {
        self.is_selected() && underway::forbids_expunge(command.uid, &command.verb)
    }

    fn say(&mut self, octets: Bytes) {
        if !octets.is_empty() {
            self.outputs.push_back(Output::ToClient(octets));
        }
    }

    fn send(&mut self, octets: Bytes) {
        if !octets.is_empty() {
            self.replacing = Replacing::Never;
            self.announce();
            self.outputs.push_back(Output::ToServer(octets));
        }
    }

    fn catalog(&mut self, op: CatalogOp) {
        self.outputs.push_back(Output::Catalog(op));
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    /// A line, freed of the capabilities that the client must not be offered.
    fn forward_filtered(&mut self, line: &Bytes) {
        let road = ClientRoad {
            tls_now: self.config.road == Road::Tls,
            starttls_offered: self.config.road == Road::StartTlsRequired,
        };
        match capability::filter_line(line, road) {
            Some(line) => self.say(line.into()),
            None => self.say(line.clone()),
        }
    }

    fn learn_capabilities(&mut self, line: &[u8]) {
        let list = match response::response(line) {
            Ok(Response::Capability(list)) => list,
            Ok(Response::Status { code: Some(code), .. } | Response::Tagged { code: Some(code), .. })
                if code.name.eq_ignore_ascii_case(b"CAPABILITY") =>
            {
                code.argument
            }
            _ => return,
        };
        self.capabilities = Capabilities::from_list(list);
    }

    fn request(&mut self) -> RequestId {
        self.last_request += 1;
        RequestId(self.last_request)
    }

    fn fill_id(&mut self) -> FillId {
        self.last_fill += 1;
        FillId { session: self.config.number, n: self.last_fill }
    }

    /// The last reading of the clock; every entry point takes one first.
    fn mono(&self) -> Option<Instant> {
        self.now.map(|now| now.mono)
    }

    /// Ends the session of a client that says nothing more, once nothing can still be told to it.
    fn end_if_finished(&mut self) {
        let answerable =
            !(self.underway.is_empty() && self.waiting.is_none() && self.client_input.is_empty())
                || self.is_stalled();
        // An IDLE, a dialogue and half a command end only by a word of the client.
        let waits_for_it = self.idle.is_engaged() || self.passing.is_some() || self.login_in_dialogue();
        let followed = !matches!(self.phase, Phase::Tunnel | Phase::Greeting);
        if self.client_finished && !(answerable && followed && !waits_for_it) {
            self.client_gone();
        }
    }

    /// Nothing of the open mailbox means anything any more.
    fn forget_mailbox(&mut self) {
        self.leave_slices();
        self.views.reset();
        self.sizes.clear();
        self.flags.clear();
        self.remembered.closed();
        self.splices.clear();
        self.whole_begun = None;
    }

    fn tunnel(&mut self, why: &'static str) {
        self.abort_fills();
        self.end_slices();
        self.drop_claim();
        self.phase = Phase::Tunnel;
        self.event(Event::Tunnel(why));
        let rest = std::mem::take(&mut self.client_input);
        self.send(rest);
    }

    fn bye(&mut self, why: Closing, text: &str) {
        let quiet = matches!(self.phase, Phase::Closed | Phase::Tunnel);
        // In the middle of a literal a BYE would be taken for mail.
        let whole = matches!(self.reading, Reading::Nothing) || self.reads_a_slice();
        if !quiet && whole {
            self.say(Bytes::from(format!("* BYE Waypost: {text}\r\n")));
        }
        self.close(why);
    }

    fn close(&mut self, why: Closing) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        self.abort_fills();
        self.end_slices();
        self.recorded();
        self.drop_claim();
        self.phase = Phase::Closed;
        self.waiting = None;
        self.outputs.push_back(Output::Close(why));
    }
}

/// `a`, then `b`, without copying where one is empty.
fn joined(a: Bytes, b: Bytes) -> Bytes {
    if a.is_empty() {
        return b;
    }
    if b.is_empty() {
        return a;
    }
    // It may hold a secret: kept out of memory that is freed unwiped.
    let mut both = zeroize::Zeroizing::new(Vec::with_capacity(a.len() + b.len()));
    both.extend_from_slice(&a);
    both.extend_from_slice(&b);
    Bytes::from_owner(both)
}

/// A decimal number and nothing else, white space around it aside.
fn number(octets: &[u8]) -> Option<u64> {
    std::str::from_utf8(octets).ok()?.trim().parse().ok()
}
