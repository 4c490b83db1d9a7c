//! What a known client is going to ask, asked behind its login. The commands go out with tags of ours; the origin's
//! octets are held back unread, and when the client asks the same, they are read as the answer to its own command. So
//! everything that holds for an answer holds for these: they only came earlier.
//!
//! ```text
//!          login sent, commands behind it
//!                       │
//!         ┌── refused ──┴── accepted ──┐
//!         ▼                            ▼     the client asks the next one, octet for octet
//!     absorbing ◄── it asks other ── holding ───────────────────────────► its answer is read
//!         │         than foreseen,     │ ▲                                      │
//!         │         or nothing         │ └──────────── answered ────────────────┘
//!         ▼                            ▼
//!        over ◄─────────── all were answered
//! ```
//! Absorbing: what the client did not ask is not told. In a mailbox that it has opened, it is learned; one that it has
//! not opened is left again, and what opening it took from `\Recent` is remembered for the client.

mod proving;

use super::{
    Phase,
    exchange::Event,
    fetch::Waiting,
    login::Login,
    tee::Reading,
    underway::{Effect, Underway, forbids_expunge},
};
use crate::{
    command::{Command, Fetch, Kind},
    framer::Frame,
    mutants,
    response::{Response, Status},
    start_profile::{COMMANDS_MAX, StartHabits, StartKey},
};
use bytes::Bytes;
use discovery_core::{id::AccountKey, now::Now};
use proving::Proving;
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

/// What is foreseen, what was asked of it, and what came.
#[derive(Default)]
pub(super) struct Ahead {
    habits: Option<Arc<dyn StartHabits>>,
    /// How the client came to its login.
    opening: Vec<u8>,
    /// Which session of its program this is.
    begun: Option<StartKey>,
    /// What it has said since.
    recording: Option<Vec<Bytes>>,
    flight: Option<Flight>,
    /// A login was refused: another one may be too, and servers count commands without a login.
    refused: bool,
    /// The origin's octets that are not read yet, with the moment at which they came.
    held: VecDeque<(Now, Bytes)>,
    held_octets: usize,
    /// The beginning of a command with a literal, which must wait.
    stalled: Option<Frame>,
    /// What a mailbox that was opened in vain said of `\Recent`.
    recent: Option<(Bytes, u32)>,
    /// COMPRESS is to be asked for.
    compress_due: bool,
}

struct Flight {
    /// Those that the origin has not answered, in the order in which they were sent.
    commands: VecDeque<Sent>,
    sent: Option<Instant>,
    /// The login's answer, and until when its client may ask for the rest.
    accepted: Option<Instant>,
    absorbing: bool,
    refused: bool,
    /// Commands that are a mistake without a login.
    mistakes: usize,
    told: u32,
    absorbed: u32,
}

struct Sent {
    tag: Bytes,
    /// Without a tag.
    octets: Bytes,
    mailbox: Option<Bytes>,
    fetches: bool,
    /// The client's tag, once it has asked the same.
    asked: Option<Bytes>,
    /// The origin was asked in other words than the client's.
    reworded: bool,
    /// What it says is an answer only together with what is known.
    proving: Option<Proving>,
}

impl Ahead {
    /// Whether the origin's octets are not to be read yet.
    fn holds(&self, underway: bool) -> bool {
        !underway && self.flight.as_ref().is_some_and(|flight| flight.accepted.is_some() && !flight.absorbing)
    }

    /// Whoever begins next may be this one again.
    fn leave(&mut self) {
        if let (Some(key), Some(habits)) = (self.begun.take(), &self.habits) {
            habits.end(&key);
        }
    }

    fn unasked(&mut self) -> Option<&mut Sent> {
        self.flight.as_mut()?.commands.iter_mut().find(|sent| sent.asked.is_none())
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.leave();
    }
}

/// From the outside.
impl super::Session {
    /// Learns how this client begins, and asks ahead what it is going to ask. Only on a road on which each piece sent is
    /// read by itself: Cyrus reads what stands behind AUTHENTICATE in the same TLS record twice.
    pub fn foresee(&mut self, habits: Arc<dyn StartHabits>) {
        self.ahead.habits = Some(habits);
    }

    /// Whether more may be held back.
    pub(super) fn may_hold_more(&self) -> bool {
        self.ahead.held_octets < HELD_OCTETS_MAX
    }

    /// When what is held back is too old to be told.
    pub(super) fn held_until(&self) -> Option<Instant> {
        if self.holds() { self.ahead.flight.as_ref()?.accepted } else { None }
    }

    /// That moment may have come.
    pub(super) fn hold_no_longer(&mut self) {
        if self.held_until().zip(self.mono()).is_some_and(|(until, now)| until <= now) {
            self.absorb_rest();
        }
    }
}

/// Before and with the login.
impl super::Session {
    /// The client has said a command. Gives it back if it is not answered by what was asked ahead.
    pub(super) fn foreseen(&mut self, waiting: Waiting) -> Option<Waiting> {
        if matches!(self.phase, Phase::NotAuthenticated) {
            self.note_opening(&waiting.command, &waiting.octets);
        } else {
            self.note_command(&waiting.command, &waiting.octets);
        }
        let waiting = self.meet_foreseen(waiting)?;
        self.foreseen_from_here(waiting)
    }

    /// Nothing was asked ahead of this command: what follows it may be. Gives it back if it is to be asked by itself.
    pub(super) fn foreseen_from_here(&mut self, waiting: Waiting) -> Option<Waiting> {
        self.launch_opening(&waiting);
        if self.ahead.holds(false) { self.meet_foreseen(waiting) } else { Some(waiting) }
    }

    fn note_opening(&mut self, command: &Command, octets: &[u8]) {
        let opening = &mut self.ahead.opening;
        let words: &[u8] = if let Kind::Authenticate { mechanism, .. } = &command.kind {
            mechanism
        } else if command.kind == Kind::Id {
            after_tag(octets)
        } else {
            b""
        };
        // No argument of a login is among them.
        for part in [&command.verb, words, b"\n"] {
            let room = OPENING_OCTETS_MAX.saturating_sub(opening.len());
            opening.extend(part.iter().take(room));
        }
    }

    /// The login is on its way: the commands follow it. `false`: none does.
    pub(super) fn launch(&mut self) -> bool {
        let Some(now) = self.mono() else { return false };
        let alone = self.client_input.is_empty() && self.waiting.is_none() && self.ahead.flight.is_none();
        let once = alone && !self.ahead.refused;
        let Some(habits) = self.ahead.habits.clone().filter(|_| once) else { return false };
        let login = self
            .underway
            .iter()
            .filter(|u| u.completion.is_none())
            .find_map(|u| if let Effect::Login(login) = &u.effect { login.identity() } else { None });
        let Some(identity) = login else { return false };
        let user = self.config.keying.user_key(identity);
        let account = AccountKey { server: self.config.server.clone(), user };
        let opening = Bytes::copy_from_slice(&self.ahead.opening);
        self.ahead.leave();
        let (key, commands) = habits.begin(&account, opening);
        self.ahead.begun = Some(key);
        self.ahead.recording = Some(Vec::new());
        self.fly(now, &account, commands);
        self.is_ahead()
    }

    /// The client opens a mailbox, unforeseen: what it says in it is asked together with that.
    fn launch_opening(&mut self, waiting: &Waiting) {
        let Waiting { command, octets, .. } = waiting;
        let at_rest = self.underway.is_empty() && self.client_input.is_empty() && self.flights.is_empty();
        let ready = at_rest && matches!(self.phase, Phase::Authenticated) && self.flight_is_over();
        let opens = matches!(command.kind, Kind::Select { .. }) && self.returns_from(command);
        if !ready || !opens || self.ahead.refused || !is_foreseeable(command, octets) {
            return;
        }
        let (Some(habits), Some(key), Some(now)) = (&self.ahead.habits, &self.ahead.begun, self.mono())
        else {
            return;
        };
        let select = Bytes::copy_from_slice(after_tag(octets));
        let inside = habits.opens(key, &select);
        let account = key.account.clone();
        if inside.is_empty() {
            return;
        }
        self.fly(now, &account, [select].into_iter().chain(inside));
        if let Some(flight) = &mut self.ahead.flight {
            flight.accepted = Some(now + TELL_WITHIN);
        }
    }

    /// A mailbox that was opened in vain can be left again.
    fn returns_from(&self, command: &Command) -> bool {
        !matches!(command.kind, Kind::Select { .. }) || self.capabilities.has("UNSELECT")
    }

    /// Sends `commands`, as far as they are such as may be sent ahead.
    fn fly(&mut self, now: Instant, account: &AccountKey, commands: impl IntoIterator<Item = Bytes>) {
        let mut flight = Flight {
            commands: VecDeque::new(),
            sent: Some(now),
            accepted: None,
            absorbing: false,
            refused: false,
            mistakes: 0,
            told: 0,
            absorbed: 0,
        };
        for octets in commands {
            let tag = self.flights.reserve();
            let line = Bytes::from([tag.as_bytes(), b" ", &octets].concat());
            // Learned from a client, and judged again: it goes out under another's login.
            let command =
                crate::command::parse(&line).ok().filter(|command| is_foreseeable(command, &octets));
            let Some(command) = command else { break };
            let mailbox = if let Kind::Select { mailbox, .. } = &command.kind {
                Some(Bytes::copy_from_slice(mailbox))
            } else {
                None
            };
            let fetches = matches!(command.kind, Kind::Fetch(_));
            flight.mistakes += usize::from(!matches!(&*command.verb, b"ID" | b"CAPABILITY" | b"NOOP"));
            let proving = self.ask_changes(&flight, account, &command, &tag, &octets);
            let reopened = self.open_with_modseq(mailbox.as_ref(), account, &tag, &octets);
            if proving.is_some() {
                flight.mistakes += 1;
            } else if !reopened {
                self.send(line);
            }
            flight.commands.push_back(Sent {
                tag: tag.into(),
                octets,
                mailbox,
                fetches,
                asked: None,
                reworded: proving.is_some() || reopened,
                proving,
            });
        }
        self.ahead.flight = (!flight.commands.is_empty()).then_some(flight);
    }

    /// The origin has accepted the login. Whether commands went behind it.
    pub(super) fn flight_accepted(&mut self) -> bool {
        let until = self.mono().map(|now| now + TELL_WITHIN);
        let Some(flight) = &mut self.ahead.flight else { return false };
        flight.accepted = until;
        self.ahead.compress_due = true;
        true
    }

    /// It has not: the commands behind it were said by nobody.
    pub(super) fn flight_refused(&mut self) {
        self.ahead.refused = true;
        self.ahead.recording = None;
        self.remembered.show_modseq();
        if let Some(flight) = &mut self.ahead.flight {
            flight.refused = true;
            flight.absorbing = !mutants::on("session-flight-after-refusal");
            if !flight.absorbing {
                flight.accepted = self.now.map(|now| now.mono + TELL_WITHIN);
            }
        }
    }

    /// Whether the origin has refused the login that commands went behind: it may then have had enough of us.
    pub(super) fn was_refused(&self) -> bool {
        self.ahead.flight.as_ref().is_some_and(|flight| flight.refused)
    }

    /// Whether nothing of what was asked ahead is still to be answered or read.
    pub(super) fn flight_is_over(&self) -> bool {
        self.ahead.flight.is_none() && self.ahead.held.is_empty()
    }

    /// The origin's connection is another one.
    pub(super) fn forget_flight(&mut self) {
        if let Some(Flight { told, absorbed, refused, .. }) = self.ahead.flight.take() {
            self.event(Event::Foreseen { told, in_vain: absorbed, refused });
        }
        self.ahead.held.clear();
        self.ahead.held_octets = 0;
        self.flights.forget_uids();
    }
}

/// What the client says.
impl super::Session {
    fn note_command(&mut self, command: &Command, octets: &Bytes) {
        let returns = self.returns_from(command);
        let Some(commands) = &mut self.ahead.recording else { return };
        if !returns || !is_foreseeable(command, octets) || commands.len() >= COMMANDS_MAX {
            return self.recorded();
        }
        commands.push(Bytes::copy_from_slice(after_tag(octets)));
        if matches!(command.kind, Kind::Fetch(_)) {
            self.recorded();
        }
    }

    /// That was how this session began.
    pub(super) fn recorded(&mut self) {
        let Some(commands) = self.ahead.recording.take() else { return };
        if let (Some(key), Some(habits)) = (&self.ahead.begun, &self.ahead.habits) {
            habits.observe(key, commands);
        }
    }

    fn meet_foreseen(&mut self, waiting: Waiting) -> Option<Waiting> {
        let holding = self.holds();
        let Some(sent) = self.ahead.unasked() else { return Some(waiting) };
        let (command, octets) = (&waiting.command, &waiting.octets);
        let same = sent.octets == after_tag(octets)
            || mutants::on("session-foreseen-other-arguments") && sent.fetches && *command.verb == *b"FETCH";
        if !same || !holding {
            self.absorb_rest();
            return Some(waiting);
        }
        let tag = Bytes::copy_from_slice(&command.tag);
        sent.asked = Some(tag.clone());
        let mut effect = self.effect_of(command, octets);
        let selects = if let Effect::Select(selecting) = &mut effect {
            selecting.asked = self.ahead.flight.as_ref().and_then(|flight| flight.sent);
            true
        } else {
            false
        };
        let mut underway = Underway::new(tag.clone(), forbids_expunge(command.uid, &command.verb), effect);
        underway.fetches = *command.verb == *b"FETCH";
        underway.keeps_flags = self.keeps_flags(command);
        self.underway.push_back(underway);
        self.flights.client(tag, false);
        if selects {
            self.phase = Phase::Selecting;
            self.forget_mailbox();
            // The FETCH behind it says which messages there are.
            let fetches = |sent: &Sent| sent.fetches && sent.asked.is_none();
            if !self.ahead.flight.as_ref().is_some_and(|flight| flight.commands.iter().any(fetches)) {
                self.ask_uids();
            }
        }
        self.read_held();
        None
    }

    /// A command with a literal begins; it cannot be foreseen. Gives the frame back if it need not wait.
    pub(super) fn unforeseen(&mut self, frame: Frame) -> Option<Frame> {
        self.recorded();
        self.absorb_rest();
        if !self.absorbs() {
            return Some(frame);
        }
        self.ahead.stalled = Some(frame);
        None
    }

    /// The beginning of a command with a literal has to wait.
    pub(super) fn stall(&mut self, frame: Frame) {
        self.ahead.stalled = Some(frame);
    }

    pub(super) fn take_stalled(&mut self) -> Option<Frame> {
        self.ahead.stalled.take()
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.ahead.stalled.is_some()
    }

    /// The client does not ask what was foreseen: what comes of it is not told.
    fn absorb_rest(&mut self) {
        let Some(flight) = &mut self.ahead.flight else { return };
        if flight.absorbing {
            return;
        }
        flight.absorbing = true;
        if flight.commands.iter().any(|sent| sent.mailbox.is_some() && sent.asked.is_none()) {
            let tag = self.flights.reserve();
            let octets = Bytes::from_static(b"UNSELECT\r\n");
            let line = [tag.as_bytes(), b" ", &octets].concat();
            let sent = Sent {
                tag: tag.into(),
                octets,
                mailbox: None,
                fetches: false,
                asked: None,
                reworded: false,
                proving: None,
            };
            flight.commands.push_back(sent);
            self.send(line.into());
        }
        self.read_held();
    }

    /// Whether the client has to wait for the end of what it did not ask.
    pub(super) fn absorbs(&self) -> bool {
        self.ahead.flight.as_ref().is_some_and(|flight| flight.absorbing)
    }

    /// Whether commands are on their way that the client has not asked.
    pub(super) fn is_ahead(&self) -> bool {
        self.ahead.flight.is_some()
    }
}

/// What the origin says.
impl super::Session {
    /// The origin's octets are not to be read before the client has asked.
    pub(super) fn holds(&self) -> bool {
        self.ahead.holds(!self.underway.is_empty())
    }

    /// Keeps octets for later: `first`, before those that are kept already.
    pub(super) fn hold(&mut self, now: Now, octets: Bytes, first: bool) {
        if octets.is_empty() {
            return;
        }
        self.ahead.held_octets += octets.len();
        if first {
            self.ahead.held.push_front((now, octets));
        } else {
            self.ahead.held.push_back((now, octets));
        }
    }

    /// Reads what is held back, as far as it may be read, as of the moment at which it came.
    pub(super) fn read_held(&mut self) {
        let now = self.now;
        while !self.holds() && !self.is_replacing() {
            let Some((came, octets)) = self.ahead.held.pop_front() else { break };
            self.ahead.held_octets -= octets.len();
            self.now = Some(came);
            self.server_octets(octets);
        }
        self.now = now;
    }

    /// A tagged line for one of these commands: the answer to the client's own, or nobody's. Any other comes back.
    pub(super) fn answer_ahead(&mut self, frame: Frame) -> Option<Frame> {
        let Some(flight) = &mut self.ahead.flight else { return Some(frame) };
        let Frame::End { piece } = &frame else { return Some(frame) };
        let tag = piece.split(|o| *o == b' ').next().unwrap_or_default();
        let Some(at) = flight.commands.iter().position(|sent| sent.tag == tag) else { return Some(frame) };
        let rest = piece.slice(tag.len()..);
        let sent = flight.commands.remove(at);
        let Some((Some(tag), sent)) = sent.map(|mut sent| (sent.asked.take(), sent)) else {
            flight.absorbed += 1;
            // Before its turn: whatever this server does, it is not what was foreseen.
            flight.absorbing = true;
            return None;
        };
        let completed = rest.get(..4).is_some_and(|status| status.eq_ignore_ascii_case(b" OK "));
        let proved = sent.proving.as_ref().is_none_or(|proving| self.tell_proved(proving, completed));
        let told = proved && (completed || !sent.reworded);
        if !told {
            // Nothing of it was told; the client's own words are asked.
            self.send([&tag, &b" "[..], &sent.octets].concat().into());
        }
        if let Some(flight) = &mut self.ahead.flight {
            flight.told += u32::from(told);
            flight.absorbed += u32::from(!told);
        }
        told.then(|| Frame::End { piece: [tag, rest].concat().into() })
    }

    /// Whether a response belongs to what the client did not ask, and is dealt with.
    pub(super) fn absorb(&mut self, response: &Response<'_>, piece: &Bytes, frame: &Frame) -> bool {
        let opened = matches!(self.phase, Phase::Selected(_)) && !mutants::on("session-asked-in-vain-told");
        let closed = matches!(self.phase, Phase::NotAuthenticated | Phase::Authenticated);
        let dropped = closed || opened && says_nothing_of_messages(response);
        if !self.absorbs() || !dropped {
            return false;
        }
        match response {
            Response::Tagged { .. } | Response::Continuation(_) => return false,
            // Of the connection, whatever was asked.
            Response::Status { status: Status::Bye, .. } => return false,
            Response::Status { code: Some(code), .. } if code.name.eq_ignore_ascii_case(b"ALERT") => {
                return false;
            }
            Response::Recent(n) => self.remember_recent(*n),
            Response::Capability(_) => self.learn_capabilities(piece),
            Response::Status { .. }
            | Response::Exists(_)
            | Response::Expunge(_)
            | Response::Fetch { .. }
            | Response::Vanished { .. }
            | Response::Search(_)
            | Response::Sort(_)
            | Response::Thread
            | Response::Esearch(_)
            | Response::Flags
            | Response::List
            | Response::Lsub
            | Response::StatusData
            | Response::Namespace
            | Response::Enabled(_)
            | Response::Other(_) => {}
        }
        self.skip_rest(frame);
        true
    }

    /// What belongs to a response of which nothing is told.
    pub(super) fn skip_rest(&mut self, frame: &Frame) {
        if !matches!(frame, Frame::End { .. }) {
            self.reading = Reading::Opaque { told: false };
        }
    }

    fn remember_recent(&mut self, n: u32) {
        let Some(flight) = &self.ahead.flight else { return };
        let opened = flight.commands.iter().find_map(|sent| sent.mailbox.clone());
        if let Some(mailbox) = opened.filter(|_| n > 0) {
            self.ahead.recent = Some((mailbox, n));
        }
    }

    /// How many are recent in a mailbox that the client opens, with those that opening it in vain took away.
    pub(super) fn recent_with_remembered(&mut self, said: u32) -> Option<u32> {
        let (mailbox, taken) = self.ahead.recent.as_ref()?;
        let examine = self.underway.iter().find_map(|u| match &u.effect {
            Effect::Select(selecting) => (selecting.mailbox == *mailbox).then_some(selecting.examine),
            Effect::Nothing
            | Effect::Login(_)
            | Effect::Deselect
            | Effect::Forget(_)
            | Effect::Idle
            | Effect::Renumber
            | Effect::Store(_)
            | Effect::Tunnel(_) => None,
        })?;
        let all = said.saturating_add(*taken);
        if !examine {
            self.ahead.recent = None;
        }
        Some(all)
    }

    /// After each response: the flight may be over.
    pub(super) fn end_flight(&mut self) {
        // It may say BYE to the last of them, and to whatever came after that.
        let too_many = |flight: &Flight| flight.refused && flight.mistakes > MISTAKES_MAX;
        if self.ahead.flight.as_ref().is_some_and(too_many) && self.replace_origin() {
            return;
        }
        if let Some(Flight { commands, told, absorbed, refused, .. }) = &self.ahead.flight
            && commands.is_empty()
            && matches!(self.reading, Reading::Nothing)
        {
            let event = Event::Foreseen { told: *told, in_vain: *absorbed, refused: *refused };
            self.ahead.flight = None;
            self.event(event);
        }
    }

    /// COMPRESS, behind which nothing may stand, comes before the first FETCH that goes to the origin after a flight: a
    /// client that finds everything in the store does not wait for it. Whether it was asked now.
    pub(super) fn compress_before(&mut self, command: &Command) -> bool {
        let due = self.ahead.compress_due && self.ahead.flight.is_none() && self.flights.is_empty();
        if !due || *command.verb != *b"FETCH" {
            return false;
        }
        self.ahead.compress_due = false;
        self.ask_compress();
        self.asks_compress()
    }
}

impl Login {
    /// Whether commands may follow it although its answer is not known.
    pub(super) fn may_be_followed(&self) -> bool {
        self.is_complete() && self.identity().is_some()
    }
}

/// Commands that change nothing, whose answers come in the order of the commands, and that need no literal. A SELECT
/// takes `\Recent` away, which is remembered.
fn is_foreseeable(command: &Command, octets: &[u8]) -> bool {
    let line = octets.strip_suffix(b"\r\n").unwrap_or_default();
    if line.iter().any(|o| matches!(o, b'\r' | b'\n')) || line.ends_with(b"}") {
        return false;
    }
    if let Kind::Select { examine, qresync, condstore, .. } = &command.kind {
        return !examine && !qresync && !condstore;
    }
    if let Kind::Fetch(Fetch { set, items, changed, .. }) = &command.kind {
        let small = |label: &[u8]| label == b"FLAGS" || label == b"UID";
        let small = items.iter().all(|item| small(&item.label));
        return command.uid && set.set.is_some() && changed.is_none() && small;
    }
    let harmless = [
        &b"ID"[..],
        b"CAPABILITY",
        b"NOOP",
        b"NAMESPACE",
        b"LIST",
        b"LSUB",
        b"STATUS",
        b"MYRIGHTS",
        b"GETACL",
        b"GETQUOTAROOT",
    ];
    !command.uid && harmless.contains(&&*command.verb)
}

/// Answers to commands that are asked ahead, without meaning for the mailbox that is open.
fn says_nothing_of_messages(response: &Response<'_>) -> bool {
    match response {
        Response::List | Response::Lsub | Response::StatusData | Response::Namespace => true,
        Response::Other(name) => {
            let names = [&b"ID"[..], b"ACL", b"MYRIGHTS", b"QUOTA", b"QUOTAROOT"];
            names.iter().any(|known| name.eq_ignore_ascii_case(known))
        }
        Response::Tagged { .. }
        | Response::Continuation(_)
        | Response::Status { .. }
        | Response::Capability(_)
        | Response::Exists(_)
        | Response::Recent(_)
        | Response::Expunge(_)
        | Response::Fetch { .. }
        | Response::Vanished { .. }
        | Response::Search(_)
        | Response::Sort(_)
        | Response::Thread
        | Response::Esearch(_)
        | Response::Flags
        | Response::Enabled(_) => false,
    }
}

fn after_tag(octets: &[u8]) -> &[u8] {
    let space = octets.iter().position(|o| *o == b' ');
    space.and_then(|at| octets.get(at + 1..)).unwrap_or_default()
}

/// For so long after its login a client may ask for what was asked ahead; afterwards it is no longer news. As for
/// repeated flags (decisions/0010).
const TELL_WITHIN: Duration = Duration::from_secs(2);
/// The flags of 10,000 messages; with more, the origin waits.
const HELD_OCTETS_MAX: usize = 512 * 1024;
/// Dovecot says BYE to the third invalid command of a connection.
const MISTAKES_MAX: usize = 2;
const OPENING_OCTETS_MAX: usize = 256;
