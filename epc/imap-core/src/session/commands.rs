//! The client's side: its octets cut into commands, and what becomes of each that is no FETCH from the store.

use super::{
    Idle, Phase, Road,
    exchange::{Closing, Output},
    fetch::Waiting,
    login::Login,
    renumber::renumbered,
    underway::{Effect, Own, Selecting, Underway, forbids_expunge, is_by_number, numbers},
};
use crate::{
    command::{self, Command, Kind},
    framer::{Direction, Frame, FrameError, Framer},
    mutants,
    uid::Msn,
    views::SlotId,
};
use bytes::{Bytes, BytesMut};

/// A command whose literals stream through: its lines and small literals are kept to learn what it was.
pub(super) struct Passing {
    tag: Bytes,
    octets: BytesMut,
    kept: bool,
    /// It carries a message, of any length.
    upload: bool,
    /// A literal was announced and the client waits for `+`.
    awaits_leave: bool,
}

impl super::Session {
    /// Takes the client's octets as far as something can be done with them now.
    pub(super) fn pump(&mut self) {
        loop {
            self.release();
            if self.absorbs() || self.asks_compress() {
                break;
            }
            if let Some(waiting) = self.waiting.take() {
                self.waiting = self.foreseen_from_here(waiting).and_then(|waiting| self.advance(waiting));
                if self.waiting.is_some() {
                    break;
                }
                continue;
            }
            if self.is_blocked() {
                break;
            }
            if let Some(frame) = self.take_stalled() {
                self.client_frame(frame);
                continue;
            }
            match self.client.next(&mut self.client_input) {
                Ok(Some(frame)) => self.client_frame(frame),
                Ok(None) => break,
                Err(error) => {
                    self.client_garbled(&error);
                    break;
                }
            }
        }
        self.release_claim();
        self.tell();
        self.work_ahead();
        self.end_if_finished();
    }

    /// Whether the client's next octets must wait for something already under way.
    pub(super) fn is_blocked(&self) -> bool {
        matches!(self.phase, Phase::Greeting | Phase::Selecting | Phase::Tunnel | Phase::Closed)
            || self.underway.len() >= PIPELINE_MAX
            || self.asks_compress()
            || self.renumbers()
            || self.owes_answer()
            || self.owes_done()
            || self.is_stalled() && self.flights.has_slice()
            || self.is_replacing()
            || self.is_ahead() && !self.underway.is_empty()
            || matches!(self.idle, Idle::Asked(_))
            || matches!(self.outputs.back(), Some(Output::StartTls))
    }

    /// Nothing may follow COMPRESS until it is answered.
    pub(super) fn asks_compress(&self) -> bool {
        self.flights.owns(|own| *own == Own::Compress)
    }

    /// A SEARCH response would be taken for another's: nothing else is forwarded meanwhile.
    pub(super) fn renumbers(&self) -> bool {
        self.underway.iter().any(|u| u.completion.is_none() && matches!(u.effect, Effect::Renumber))
    }

    fn client_frame(&mut self, frame: Frame) {
        if let Idle::Listening(tag) = &self.idle {
            let tag = tag.clone();
            return self.idle_line(&tag, frame);
        }
        if self.passing.is_none() && self.login_in_dialogue() {
            return self.sasl_line(frame);
        }
        match frame {
            Frame::End { piece } if self.passing.is_none() => self.client_command(piece),
            frame @ Frame::Literal { .. } if self.passing.is_none() && self.is_ahead() => {
                if let Some(frame) = self.unforeseen(frame) {
                    self.client_frame(frame);
                }
            }
            Frame::Literal { ref piece, .. } if self.passing.is_none() && self.stalls_behind_slice(piece) => {
                self.stall(frame);
            }
            Frame::Literal { piece, octets, nonsync, .. } => {
                if self.passing.is_none() && !self.begin_passing(&piece) {
                    return;
                }
                self.pass(&piece, octets);
                if let Some(passing) = &mut self.passing {
                    passing.awaits_leave = !nonsync;
                }
            }
            Frame::Chunk(octets) => self.pass(&octets, 0),
            Frame::End { piece } => {
                self.pass(&piece, 0);
                self.end_passing();
            }
            // Only servers' lines may be that long.
            Frame::Overlong { .. } => self.client_garbled(&FrameError::LineTooLong),
        }
    }

    /// A command of one line.
    fn client_command(&mut self, octets: Bytes) {
        if octets.len() > PRE_LOGIN_OCTETS_MAX && matches!(self.phase, Phase::NotAuthenticated) {
            return self.client_garbled(&FrameError::LineTooLong);
        }
        if !self.is_secret() {
            self.remembered.saw_command(&octets);
        }
        match command::parse(&octets) {
            Ok(command) => self.waiting = self.foreseen(Waiting::new(command, octets)),
            // RFC 9051 §7.1.3. Servers differ in their words for it, and the framing is sound.
            Err(_) => {
                self.answer(
                    &Bytes::new(),
                    true,
                    Bytes::from_static(b"* BAD A command begins with a tag and a name\r\n"),
                );
            }
        }
    }

    /// A command that the store does not answer. Gives it back while the origin is not ready for it.
    pub(super) fn pass_on(&mut self, waiting: Waiting) -> Option<Waiting> {
        let Waiting { command, octets, .. } = &waiting;
        if let Some(line) = self.local_answer(command) {
            let starts_tls =
                matches!(command.kind, Kind::StartTls) && self.config.road == Road::StartTlsRequired;
            if starts_tls && !self.underway.is_empty() {
                return Some(waiting);
            }
            self.answer(&command.tag, false, line);
            if starts_tls {
                self.release();
                self.start_tls();
            }
            return None;
        }
        if command.kind == Kind::Logout && self.may_retain() {
            if !self.is_quiet() {
                return Some(waiting);
            }
            // What came behind LOGOUT is nobody's.
            self.client_input = Bytes::new();
            let done = [b"* BYE Logging out\r\n", &*command.tag, b" OK Logout completed\r\n"].concat();
            self.say(done.into());
            self.retain();
            return None;
        }
        let tunnel = self.tunnel_reason(command);
        if needs_silence(command) || tunnel.is_some() {
            // In a tunnel, a slice would be told.
            let silent = if tunnel.is_some() { self.flights.is_empty() } else { self.flights.is_silent() };
            if !silent || !self.underway.is_empty() || self.is_mid_response() {
                return Some(waiting);
            }
            if tunnel.is_some() && !self.views.is_settled() && self.is_selected() {
                // A moment at which everything may be told: this command has not begun for anybody.
                self.tell_in(crate::views::Window::All);
            }
        }
        let asked = self.fetches_what_we_ask(command) || self.fetches_a_slice(command);
        if asked || self.compress_before(command) {
            return Some(waiting);
        }
        let by_number = self.is_selected() && is_by_number(command);
        let mut sent = octets.clone();
        let mut effect = self.effect_of(command, octets);
        if by_number {
            // The origin's numbers must stand still from here until it has read ours.
            if self.flights.may_expunge() || self.views.has_log() && self.is_mid_response() {
                return Some(waiting);
            }
            self.tell_before_data();
            if !self.views.agree() && !mutants::on("session-numbers-not-translated") {
                match renumbered(command, octets, &self.views) {
                    Ok(octets) => sent = octets,
                    Err(_) => {
                        self.refuse_expunged(command);
                        return None;
                    }
                }
                if matches!(command.kind, Kind::Search { .. }) && !command.uid {
                    if !self.underway.is_empty() {
                        return Some(waiting);
                    }
                    effect = Effect::Renumber;
                }
            }
        }
        if let Some(why) = tunnel {
            self.send(sent);
            self.tunnel(why);
            return None;
        }
        if let Some(slots) = self.forget_seen(command, octets) {
            effect = Effect::Store(slots);
        }
        self.forward(command, sent, effect);
        None
    }

    fn forward(&mut self, command: &Command, octets: Bytes, effect: Effect) {
        let tag = Bytes::copy_from_slice(&command.tag);
        let dialogue = matches!(&effect, Effect::Login(login) if login.is_dialogue());
        let forbids = self.is_selected() && forbids_expunge(command.uid, &command.verb);
        let selects = matches!(effect, Effect::Select(_));
        let login = matches!(effect, Effect::Login(_));
        if let Effect::Login(login) = &effect
            && self.prompts(login)
        {
            let Effect::Login(login) = effect else { return };
            return self.prompt(command, octets, login);
        }
        if let Effect::Idle = effect {
            self.idle = Idle::Asked(tag.clone());
        }
        let mut underway = Underway::new(tag.clone(), forbids, effect);
        underway.fetches = *command.verb == *b"FETCH";
        underway.keeps_flags = self.keeps_flags(command);
        if !underway.keeps_flags {
            // What the origin said of them before is of before.
            self.flags.clear();
        }
        self.underway.push_back(underway);
        self.flights.client(tag, false);
        self.send(octets);
        if dialogue || self.idle.is_engaged() {
            self.client.set_raw_lines(true);
        }
        if login {
            self.login_sent();
        }
        if selects {
            self.phase = Phase::Selecting;
            self.forget_mailbox();
            self.ask_uids();
        }
    }

    /// Whether a command changes no flags. Of most it is not known.
    pub(super) fn keeps_flags(&self, command: &Command) -> bool {
        if let Kind::Fetch(fetch) = &command.kind {
            return !self.sets_seen(fetch);
        }
        command.kind == Kind::Noop || command.kind.criteria().is_some()
    }

    /// Which messages there are: asked behind SELECT, so that it costs no round trip.
    pub(super) fn ask_uids(&mut self) {
        if !self.config.cache || self.account.is_none() || !self.capabilities.has("ESEARCH") {
            return;
        }
        let tag = self.flights.own(Own::Uids);
        self.send(format!("{tag} UID SEARCH RETURN (ALL) ALL\r\n").into());
    }

    /// What we say ourselves to commands that the origin must not see.
    fn local_answer(&self, command: &Command) -> Option<Bytes> {
        let tag = &command.tag;
        let line = |text: &str| Some(Bytes::from([tag, b" ".as_slice(), text.as_bytes(), b"\r\n"].concat()));
        let plain = self.config.road == Road::StartTlsRequired;
        match &*command.verb {
            b"STARTTLS" if plain && command.kind == Kind::StartTls => line("OK Begin TLS negotiation now"),
            b"STARTTLS" => line("BAD TLS is already active, or not offered here"),
            b"COMPRESS" => line("NO [CANNOT] Compression is not offered here"),
            b"LOGIN" | b"AUTHENTICATE" if plain => line("NO [PRIVACYREQUIRED] Say STARTTLS first"),
            _ => None,
        }
    }

    /// RFC 9051 §6.2.1: whatever came behind STARTTLS came before TLS, from whomever.
    fn start_tls(&mut self) {
        if !self.client_input.is_empty() || !self.client.is_between_lines() {
            return self.close(Closing::StartTlsSurplus);
        }
        self.outputs.push_back(Output::StartTls);
    }

    /// Commands after which the origin's words cannot be followed by two views.
    fn tunnel_reason(&self, command: &Command) -> Option<&'static str> {
        let enables = |name: &[u8]| {
            if let Kind::Enable { names } = &command.kind {
                names.iter().any(|n| **n == *name)
            } else {
                false
            }
        };
        let qresync = matches!(command.kind, Kind::Select { qresync: true, .. }) || enables(b"QRESYNC");
        match &*command.verb {
            _ if qresync => Some("QRESYNC"),
            _ if enables(b"UIDONLY") => Some("UIDONLY"),
            b"NOTIFY" => Some("NOTIFY"),
            b"UNAUTHENTICATE" => Some("UNAUTHENTICATE"),
            // It may succeed all the same.
            b"SELECT" | b"EXAMINE" if command.kind == Kind::Other => Some("SELECT"),
            _ => None,
        }
    }

    pub(super) fn effect_of(&self, command: &Command, octets: &Bytes) -> Effect {
        if let Some(login) = Login::of(command) {
            return Effect::Login(login);
        }
        if let Kind::Select { mailbox, examine, .. } = &command.kind {
            return Effect::Select(Selecting {
                mailbox: Bytes::copy_from_slice(mailbox),
                written: written_argument(octets).unwrap_or_default(),
                examine: *examine,
                uid_validity: None,
                asked: self.mono(),
            });
        }
        if let Kind::Delete { mailbox } | Kind::Rename { from: mailbox, .. } = &command.kind {
            return Effect::Forget(Bytes::copy_from_slice(mailbox));
        }
        match &*command.verb {
            b"CLOSE" | b"UNSELECT" => Effect::Deselect,
            b"IDLE" if command.kind == Kind::Idle => Effect::Idle,
            _ => Effect::Nothing,
        }
    }

    /// The messages of a STORE may lose `\Seen`. Gives them where the origin will not say so (SILENT).
    fn forget_seen(&mut self, command: &Command, octets: &[u8]) -> Option<Vec<SlotId>> {
        let Kind::Store { set } = &command.kind else { return None };
        let largest = if command.uid {
            self.views.largest_uid().map_or(0, crate::uid::Uid::get)
        } else {
            self.views.client_len()
        };
        let slots: Vec<_> = match (&set.set, command.uid) {
            (Some(set), true) => set
                .resolve(largest)
                .flat_map(|range| self.views.uids_between(range).map(|(slot, _)| slot).collect::<Vec<_>>())
                .collect(),
            (Some(_), false) => numbers(set, largest)
                .into_iter()
                .flatten()
                .take_while(|n| *n <= largest)
                .filter_map(|n| self.views.slot_of_client(Msn::new(n)?))
                .collect(),
            // `$` may mean any.
            (None, _) => (1..=self.views.client_len())
                .filter_map(|n| self.views.slot_of_client(Msn::new(n)?))
                .collect(),
        };
        for slot in &slots {
            self.views.set_seen(*slot, false);
        }
        let silent = octets.to_ascii_uppercase().windows(7).any(|w| w == b".SILENT");
        silent.then_some(slots)
    }

    /// RFC 5530: its messages are gone, and the client will hear of it when it may.
    fn refuse_expunged(&mut self, command: &Command) {
        let mut line = command.tag.to_vec();
        line.extend_from_slice(b" NO [EXPUNGEISSUED] Some of these messages were expunged; say NOOP\r\n");
        self.answer(&command.tag, forbids_expunge(command.uid, &command.verb), line.into());
    }

    /// Our own answer to a command, in its turn.
    fn answer(&mut self, tag: &Bytes, forbids_expunge: bool, line: Bytes) {
        let mut underway = Underway::new(Bytes::copy_from_slice(tag), forbids_expunge, Effect::Nothing);
        underway.completion = Some(line);
        self.underway.push_back(underway);
    }

    // ---- lines that are no commands ----------------------------------------------------------------------

    /// A line of a client in IDLE: DONE is answered at once, while the origin is still told.
    fn idle_line(&mut self, tag: &Bytes, frame: Frame) {
        let Frame::End { piece } = frame else { return self.client_garbled(&FrameError::LineTooLong) };
        let done = piece.trim_ascii_end().eq_ignore_ascii_case(b"DONE");
        let interrupted = self.ends_interrupted_idle();
        if !interrupted {
            self.send(piece);
            if !done {
                // The origin says BAD and ends the IDLE, or does not.
                return;
            }
        }
        self.client.set_raw_lines(false);
        self.tell();
        self.idle = Idle::Off;
        self.flights.disown_idle(tag);
        if let Some(underway) = self.underway.iter_mut().find(|u| u.tag == *tag) {
            let line: &[u8] = if done { b" OK Idle completed\r\n" } else { b" BAD Expected DONE\r\n" };
            underway.completion = Some([tag, line].concat().into());
        }
    }

    pub(super) fn login_in_dialogue(&self) -> bool {
        self.underway.iter().any(|u| {
            u.completion.is_none() && matches!(&u.effect, Effect::Login(login) if login.is_dialogue())
        })
    }

    /// A line of the SASL dialogue: opaque, never kept.
    fn sasl_line(&mut self, frame: Frame) {
        let Frame::End { piece } = frame else { return self.client_garbled(&FrameError::LineTooLong) };
        if piece.len() > SASL_LINE_OCTETS_MAX {
            return self.client_garbled(&FrameError::LineTooLong);
        }
        if self.answered_prompt(&piece) {
            return;
        }
        for underway in &mut self.underway {
            if let (None, Effect::Login(login)) = (&underway.completion, &mut underway.effect) {
                login.message(piece.trim_ascii_end());
            }
        }
        self.send(piece);
        self.login_sent();
    }

    /// What may follow a login, if it has all been sent now.
    pub(super) fn login_sent(&mut self) {
        let complete = |effect: &Effect| matches!(effect, Effect::Login(login) if login.may_be_followed());
        if self.underway.iter().any(|u| u.completion.is_none() && complete(&u.effect)) && !self.launch() {
            self.ask_compress_early();
        }
    }

    // ---- commands with literals --------------------------------------------------------------------------

    /// A command with literals begins: it goes through as it comes. `false` if it cannot.
    fn begin_passing(&mut self, piece: &Bytes) -> bool {
        let begun = command::parse(piece);
        let (tag, uid, verb) = match &begun {
            Ok(command) => (command.tag.clone(), command.uid, command.verb.clone()),
            Err(_) => {
                self.client_garbled(&FrameError::BadLiteral("the command has no tag or no name"));
                return false;
            }
        };
        if self.config.road == Road::StartTlsRequired && matches!(&*verb, b"LOGIN" | b"AUTHENTICATE") {
            self.bye(Closing::ClientGarbled, "a login needs STARTTLS first");
            return false;
        }
        // Of a search by UID too: its criteria have not all come.
        let searches = matches!(&*verb, b"SEARCH" | b"SORT" | b"THREAD");
        let by_number = self.is_selected()
            && (searches || !uid && matches!(&*verb, b"FETCH" | b"STORE" | b"COPY" | b"MOVE"));
        let quiet = self.flights.is_silent() && self.underway.is_empty();
        // Its end has not come, so it cannot wait, be translated or be taken back.
        let unfollowable = *verb == *b"FETCH" && self.flights.whole().is_some()
            || by_number && (self.flights.may_expunge() || !self.views.agree())
            || matches!(&*verb, b"SELECT" | b"EXAMINE") && !quiet;
        if unfollowable {
            self.bye(Closing::ClientGarbled, "the mailbox must be opened again");
            return false;
        }
        let tag = Bytes::copy_from_slice(&tag);
        let upload = matches!(&*verb, b"APPEND" | b"REPLACE");
        let mut underway = Underway::new(tag.clone(), forbids_expunge(uid, &verb), Effect::Nothing);
        underway.fetches = *verb == *b"FETCH";
        self.flags.clear();
        self.underway.push_back(underway);
        self.flights.client(tag.clone(), false);
        self.passing =
            Some(Passing { tag, octets: BytesMut::new(), kept: true, upload, awaits_leave: false });
        true
    }

    /// Whether a command that begins like this asks of messages what cannot be known before its end.
    fn stalls_behind_slice(&self, piece: &Bytes) -> bool {
        let fetches = || command::parse(piece).is_ok_and(|begun| *begun.verb == *b"FETCH");
        self.flights.has_slice() && fetches()
    }

    /// A piece or a chunk of such a command; `literal` octets will follow.
    fn pass(&mut self, octets: &Bytes, literal: u64) {
        let before_login = matches!(self.phase, Phase::NotAuthenticated);
        let Some(passing) = &mut self.passing else { return };
        passing.awaits_leave = false;
        let max = if before_login { PRE_LOGIN_OCTETS_MAX } else { LITERALS_OCTETS_MAX };
        let held = passing.octets.len() as u64 + octets.len() as u64 + literal;
        if held > max as u64 {
            passing.kept = false;
            if !passing.upload {
                return self.client_garbled(&FrameError::LineTooLong);
            }
        }
        if passing.kept {
            passing.octets.extend_from_slice(octets);
        }
        self.send(octets.clone());
    }

    /// All of it went to the origin: learn what it was.
    fn end_passing(&mut self) {
        let Some(passing) = self.passing.take() else { return };
        let octets = zeroizing(passing.octets);
        if !self.is_secret() {
            self.remembered.saw_command(&octets);
        }
        let Ok(command) = command::parse(&octets) else { return };
        if !passing.kept {
            return;
        }
        let mut effect = self.effect_of(&command, &octets);
        if let Some(slots) = self.forget_seen(&command, &octets) {
            effect = Effect::Store(slots);
        }
        if self.tunnel_reason(&command).is_some() {
            self.set_effect(&passing.tag, Effect::Tunnel("a command that cannot be followed"));
            return;
        }
        if let Effect::Select(_) = effect {
            self.phase = Phase::Selecting;
            self.forget_mailbox();
        }
        self.set_effect(&passing.tag, effect);
        if self.phase_is_selecting() {
            self.ask_uids();
        }
    }

    fn phase_is_selecting(&self) -> bool {
        matches!(self.phase, Phase::Selecting)
    }

    fn set_effect(&mut self, tag: &Bytes, effect: Effect) {
        if let Some(underway) = self.underway.iter_mut().find(|u| u.tag == *tag) {
            underway.effect = effect;
        }
    }

    /// The origin refused a literal that the client has not sent: what comes next is a command.
    pub(super) fn literal_refused(&mut self, tag: &[u8]) {
        if self.passing.as_ref().is_some_and(|p| p.tag == tag && p.awaits_leave) {
            self.passing = None;
            self.client = Framer::new(Direction::FromClient);
        }
    }

    /// Whether a `+` is due for a client's literal or dialogue.
    pub(super) fn client_awaits_leave(&self) -> bool {
        self.passing.as_ref().is_some_and(|p| p.awaits_leave) || self.login_in_dialogue()
    }

    pub(super) fn client_garbled(&mut self, error: &FrameError) {
        let text = if *error == FrameError::LineTooLong {
            "the command is too long"
        } else {
            "the command cannot be read safely"
        };
        self.bye(Closing::ClientGarbled, text);
    }
}

/// Commands that change what untagged data mean: nothing else may be under way.
fn needs_silence(command: &Command) -> bool {
    matches!(
        command.kind,
        Kind::Select { .. }
            | Kind::Close
            | Kind::Unselect
            | Kind::Idle
            | Kind::Login { .. }
            | Kind::Authenticate { .. }
    ) || matches!(&*command.verb, b"LOGIN" | b"AUTHENTICATE")
}

/// The first argument as the client wrote it, if it is no literal.
fn written_argument(octets: &Bytes) -> Option<Bytes> {
    let line = octets.trim_ascii_end();
    let mut spaces = line.iter().enumerate().filter(|(_, o)| **o == b' ').map(|(at, _)| at);
    let from = spaces.nth(1)? + 1;
    let rest = line.get(from..)?;
    let end = if rest.starts_with(b"\"") {
        let mut escaped = false;
        rest.iter()
            .skip(1)
            .position(|o| {
                let closes = *o == b'"' && !escaped;
                escaped = *o == b'\\' && !escaped;
                closes
            })
            .map(|at| at + 2)?
    } else {
        rest.iter().position(|o| *o == b' ').unwrap_or(rest.len())
    };
    let written = rest.get(..end)?;
    (!written.contains(&b'{') && !written.is_empty()).then(|| Bytes::copy_from_slice(written))
}

/// A login's literals lie in it.
fn zeroizing(octets: BytesMut) -> Bytes {
    let kept = zeroize::Zeroizing::new(octets.to_vec());
    let mut octets = octets;
    octets.fill(0);
    Bytes::from_owner(kept)
}

/// Commands of one client under way at once; more wait in its own socket.
const PIPELINE_MAX: usize = 32;

/// A command before login: SASL lines come apart from it; longer ones are only ever attacks.
const PRE_LOGIN_OCTETS_MAX: usize = 8 * 1024;

/// A line of a SASL dialogue; tokens with many claims are long.
const SASL_LINE_OCTETS_MAX: usize = 16 * 1024;

/// Literals of a command that carries no message (mailbox names, search texts), with its lines: Dovecot's own
/// limit for a line.
const LITERALS_OCTETS_MAX: usize = 64 * 1024;
