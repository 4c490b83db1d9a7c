//! The origin's side: its responses, what each teaches, and what the client hears of it.

use super::{
    Idle, Phase, Selection,
    exchange::{Closing, Compress, Event},
    renumber::search_line,
    tee::Reading,
    underway::{Effect, Own, Owner, Selecting},
};
use crate::{
    catalog::{CatalogOp, MailboxKey},
    framer::Frame,
    response::{self, Code, Response, Status},
    sequence_set::SequenceSet,
    uid::{Msn, Uid, UidValidity},
    views::Window,
};
use bytes::Bytes;
use discovery_core::id::AccountKey;

impl super::Session {
    pub(super) fn server_frame(&mut self, frame: Frame) {
        let Some(frame) = self.without_modseq(frame) else { return };
        if !matches!(self.reading, Reading::Nothing) {
            return self.continue_response(frame);
        }
        let Some(frame) = self.answer_ahead(frame) else { return };
        let piece = match &frame {
            Frame::End { piece } | Frame::Literal { piece, .. } | Frame::Overlong { piece } => piece.clone(),
            // A chunk without its literal cannot come out of the framer.
            Frame::Chunk(_) => return,
        };
        let Ok(response) = response::response(&piece) else {
            // Not a response that anyone knows: the client may.
            if self.absorbs() {
                return self.skip_rest(&frame);
            }
            return self.forward_response(frame);
        };
        self.refresh_proof();
        if self.absorb(&response, &piece, &frame) {
            return;
        }
        match response {
            Response::Tagged { tag, status, code } => self.tagged(tag, status, code, &piece),
            Response::Continuation(_) => self.continuation(piece),
            Response::Fetch { msn, .. } if self.proves() => self.keep_said(frame, &piece, msn),
            Response::Fetch { msn, payload_at } if self.is_selected() => {
                self.begin_fetch(frame, &piece, msn, payload_at);
            }
            Response::Exists(n) if self.is_selected() => {
                if self.views.handle_exists(n).is_err() {
                    return self.desync("EXISTS shrank without EXPUNGE", frame);
                }
                self.tell();
            }
            Response::Exists(n) if matches!(self.phase, Phase::Selecting) => {
                // Until the tag, it may be said of the mailbox that is being left; the last one is of the new one.
                self.views.reset();
                if self.views.handle_exists(n).is_err() {
                    return self.desync("EXISTS cannot be while the mailbox is opened", frame);
                }
                self.views.deliver(Window::All, &mut |_| ());
                self.say(piece);
            }
            Response::Recent(n) if matches!(self.phase, Phase::Selecting) => {
                self.remembered.saw_recent(n);
                match self.recent_with_remembered(n) {
                    Some(all) => {
                        self.say(format!("* {} RECENT\r\n", all.min(self.views.server_len())).into())
                    }
                    None => self.forward_response(frame),
                }
            }
            Response::Recent(n) if self.is_selected() => {
                self.remembered.saw_recent(n);
                self.views.log_recent(n);
                self.tell();
            }
            Response::Expunge(msn) if self.is_selected() => match self.views.handle_expunge(msn) {
                Ok(uid) => {
                    self.expunged(uid.into_iter().collect());
                    self.tell();
                }
                Err(_) => self.desync("EXPUNGE of a message that is not there", frame),
            },
            Response::Expunge(msn) if matches!(self.phase, Phase::Selecting) => {
                // Of the mailbox that is being left it says nothing that the client could still use, and its number
                // may not be the client's.
                if self.views.handle_expunge(msn).is_ok() {
                    self.views.deliver(Window::All, &mut |_| ());
                    self.say(piece);
                }
            }
            // Likewise.
            Response::Fetch { .. } if matches!(self.phase, Phase::Selecting) => {
                if !matches!(frame, Frame::End { .. }) {
                    self.reading = Reading::Opaque { told: false };
                }
            }
            // A slice of a mailbox that has been left.
            Response::Fetch { .. } if self.flights.has_slice() && !self.is_selected() => {
                self.skip_rest(&frame);
            }
            // Only a client that asked for QRESYNC hears VANISHED, and its session is not followed.
            Response::Vanished { .. } if self.is_selected() => self.desync("VANISHED", frame),
            Response::Status { status, code } => self.untagged_status(status, code, &piece, frame),
            Response::Capability(_) => {
                self.learn_capabilities(&piece);
                self.forward_filtered(&piece);
            }
            Response::Search(list) if self.renumbers() => {
                let line = search_line(list, &self.views);
                self.say(line);
            }
            Response::Esearch(text) if self.answers_uids(text) => self.learn_uids(text, &frame),
            Response::Enabled(names) => {
                self.utf8 |= has_word(names, b"UTF8=ACCEPT");
                self.forward_response(frame);
            }
            Response::Other(word) if word.eq_ignore_ascii_case(b"ID") && self.announces() => {
                self.skip_id(&frame);
            }
            Response::Other(word) if word.eq_ignore_ascii_case(b"MYRIGHTS") && self.asks_rights() => {
                self.learn_rights(&piece, &frame);
            }
            Response::Fetch { .. }
            | Response::Exists(_)
            | Response::Recent(_)
            | Response::Expunge(_)
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
            | Response::Other(_) => self.forward_response(frame),
        }
    }

    /// Passes a response that teaches nothing, however many frames it has.
    fn forward_response(&mut self, frame: Frame) {
        let Frame::End { piece } = frame else {
            self.tell_before_data();
            self.reading = Reading::Opaque { told: true };
            return self.continue_response(frame);
        };
        if self.is_selected() && self.window().is_none() {
            // Nobody asked for it; `FLAGS` and the like are told in their order with the next command.
            self.views.log_line(Bytes::copy_from_slice(&piece));
        } else {
            self.tell_before_data();
            self.say(piece);
        }
    }

    fn untagged_status(&mut self, status: Status, code: Option<Code<'_>>, piece: &Bytes, frame: Frame) {
        if status == Status::Bye && self.replace_origin() {
            return;
        }
        self.bye_heard |= status == Status::Bye;
        let generation = code.filter(|c| c.name.eq_ignore_ascii_case(b"UIDVALIDITY"));
        if let Some(code) = generation {
            let said = number(code.argument).and_then(UidValidity::new);
            let changed = match (&self.phase, said) {
                (Phase::Selected(open), said) => {
                    open.key.as_ref().is_some_and(|key| Some(key.uid_validity) != said)
                }
                _ => false,
            };
            if changed {
                return self.desync("UIDVALIDITY changed under an open mailbox", frame);
            }
            if let Some(selecting) = self.selecting() {
                selecting.uid_validity = said;
            }
        }
        self.learn_capabilities(piece);
        if !self.saw_code(status, code) {
            self.forward_filtered(piece);
        }
    }

    fn continuation(&mut self, piece: Bytes) {
        if let Idle::Asked(tag) = &self.idle {
            self.idle = Idle::Listening(tag.clone());
        } else if self.returned_to_idle() {
            return;
        } else if !self.client_awaits_leave() {
            // Whatever it is for, the client knows better than we do.
            self.event(Event::UnexpectedContinuation);
        } else if self.prompted_again() {
            return;
        }
        self.say(piece);
        self.tell();
    }

    // ---- completions -------------------------------------------------------------------------------------

    fn tagged(&mut self, tag: &[u8], status: Status, code: Option<Code<'_>>, piece: &Bytes) {
        match self.flights.completed(tag) {
            // An answer to nothing that we sent: the client may know.
            None => self.forward_filtered(piece),
            Some(Owner::Own(Own::IdleAgain)) => self.idle_again_ended(piece),
            Some(Owner::Own(own)) => {
                let ended = self.splices.end(tag);
                self.tell_mentioned(ended);
                self.own_completed(own, status);
            }
            Some(Owner::Client) => self.client_completed(tag, status, code, piece),
        }
    }

    fn client_completed(&mut self, tag: &[u8], status: Status, code: Option<Code<'_>>, piece: &Bytes) {
        self.literal_refused(tag);
        self.learn_capabilities(piece);
        let Some(underway) = self.underway.iter_mut().find(|u| u.tag == tag && u.completion.is_none()) else {
            return self.forward_filtered(piece);
        };
        underway.completion = Some(Bytes::copy_from_slice(piece));
        let fetched = underway.fetches && status == Status::Ok;
        let effect = std::mem::replace(&mut underway.effect, Effect::Nothing);
        let ended = self.splices.end(tag);
        self.tell_mentioned(ended);
        let ok = status == Status::Ok;
        match effect {
            Effect::Nothing | Effect::Renumber => {}
            // What the origin said of them meanwhile may be older than this.
            Effect::Store(slots) => slots.into_iter().for_each(|slot| self.views.set_seen(slot, false)),
            Effect::Login(login) => {
                self.client.set_raw_lines(false);
                if ok {
                    self.logged_in(&login);
                } else {
                    self.event(Event::LoginRefused);
                    if let Some(account) = self.account_of(&login) {
                        let limited = is_limit(code, piece);
                        self.event(Event::LoginRefusedFor { account, limited });
                    }
                    self.flight_refused();
                }
            }
            Effect::Select(selecting) => self.selected(selecting, status, code),
            Effect::Deselect if ok => {
                self.release();
                self.forget_mailbox();
                self.phase = Phase::Authenticated;
            }
            Effect::Forget(name) if ok => {
                if let Some(account) = self.account.clone() {
                    self.catalog(CatalogOp::Forget { account, name });
                }
            }
            Effect::Idle => {
                self.idle = Idle::Off;
                self.client.set_raw_lines(false);
            }
            Effect::Tunnel(why) => {
                self.release();
                if self.underway.is_empty() && self.flights.is_empty() {
                    self.tunnel(why);
                } else {
                    self.bye(Closing::OriginGarbled, "the session cannot be followed");
                }
            }
            Effect::Deselect | Effect::Forget(_) => {}
        }
        if fetched {
            self.leave_flags();
        }
    }

    fn logged_in(&mut self, login: &super::login::Login) {
        self.phase = Phase::Authenticated;
        if login.may_wrap() {
            self.release();
            return self.tunnel("the login may wrap what follows");
        }
        self.authenticated = self.now.map(|now| (now, login.is_token()));
        if let (Some(identity), Some(account)) = (login.identity(), self.account_of(login)) {
            let identity = Bytes::copy_from_slice(identity);
            self.account = Some(account.clone());
            self.event(Event::LoggedIn(account.clone()));
            self.catalog(CatalogOp::Account { account, identity });
        }
        if !self.flight_accepted() {
            self.ask_compress();
        }
    }

    fn account_of(&self, login: &super::login::Login) -> Option<AccountKey> {
        let user = self.config.keying.user_key(login.identity()?);
        Some(AccountKey { server: self.config.server.clone(), user })
    }

    /// RFC 4978 §3: nothing may follow until the origin has answered, so the client waits a round trip. Where the
    /// origin is known to have it, see [`super::Session::ask_compress_early`].
    pub(super) fn ask_compress(&mut self) {
        let offered = self.capabilities.has("COMPRESS=DEFLATE");
        if self.config.compress != Compress::Off && !self.compress_asked && offered && self.flights.is_empty()
        {
            self.send_compress();
        }
    }

    /// Behind a login whose last message has gone out: the answer comes right behind the login's, and costs nothing.
    /// Only once: a refused login makes it an invalid command, and servers count those.
    pub(super) fn ask_compress_early(&mut self) {
        if self.config.compress == Compress::Known && !self.compress_asked && !self.compress_early {
            self.compress_early = true;
            self.send_compress();
        }
    }

    fn send_compress(&mut self) {
        self.compress_asked = true;
        let tag = self.flights.own(Own::Compress);
        self.send(format!("{tag} COMPRESS DEFLATE\r\n").into());
    }

    fn selected(&mut self, selecting: Selecting, status: Status, code: Option<Code<'_>>) {
        if status != Status::Ok {
            self.forget_mailbox();
            self.phase = Phase::Authenticated;
            return;
        }
        let read_only = selecting.examine || code.is_some_and(|c| c.name.eq_ignore_ascii_case(b"READ-ONLY"));
        let account = self.account.clone().filter(|_| self.config.cache);
        let key = account.zip(selecting.uid_validity).map(|(account, uid_validity)| MailboxKey {
            account,
            name: selecting.mailbox,
            uid_validity,
            utf8: self.utf8,
        });
        if let Some(mailbox) = key.clone() {
            self.catalog(CatalogOp::Selected { mailbox });
        }
        let Some(proved) = selecting.asked else { return };
        self.phase = Phase::Selected(Selection { key, written: selecting.written, read_only, proved });
    }

    fn own_completed(&mut self, own: Own, status: Status) {
        let ok = status == Status::Ok;
        match own {
            Own::Compress => {
                self.compress_begins = ok;
                // Refused together with an early login: to be asked again behind a good one.
                self.compress_asked = ok || self.account.is_some();
            }
            Own::IdleEnd => self.idle_is_left(),
            Own::Slice => self.slice_completed(ok),
            Own::ClientAddress
            | Own::Uids
            | Own::IdleAgain
            | Own::SeenAhead
            | Own::Size(_)
            | Own::Whole(..) => {}
            Own::Rights => {
                let proved = self.rights_asked.filter(|_| ok && self.rights_seen);
                if let Phase::Selected(open) = &mut self.phase {
                    match proved {
                        Some(now) => open.proved = now,
                        // The origin does not show this mailbox to this user any more: neither do we.
                        None => open.key = None,
                    }
                }
            }
            // NO to `\Seen` is no failure of the FETCH: without the right, it would have set nothing either.
            Own::Seen(tag) | Own::Rest(tag) => self.awaited(&tag),
        }
    }

    fn awaited(&mut self, tag: &Bytes) {
        if let Some(underway) = self.underway.iter_mut().find(|u| u.tag == *tag) {
            underway.awaits = underway.awaits.saturating_sub(1);
        }
    }

    // ---- what is learned ---------------------------------------------------------------------------------

    /// Servers without access rights of their own end the session when a mailbox goes; on others only a question
    /// about the rights proves anything.
    fn refresh_proof(&mut self) {
        let now = self.mono();
        if let (Phase::Selected(open), Some(now), false) =
            (&mut self.phase, now, self.capabilities.has("ACL"))
        {
            open.proved = now;
        }
    }

    fn selecting(&mut self) -> Option<&mut Selecting> {
        self.underway
            .iter_mut()
            .find_map(|u| if let Effect::Select(selecting) = &mut u.effect { Some(selecting) } else { None })
    }

    fn asks_rights(&self) -> bool {
        self.flights.owns(|own| *own == Own::Rights)
    }

    fn learn_rights(&mut self, piece: &[u8], frame: &Frame) {
        let rights = piece.trim_ascii_end().rsplit(|o| *o == b' ').next().unwrap_or_default();
        self.rights_seen = rights.contains(&b'r');
        if !matches!(frame, Frame::End { .. }) {
            self.rights_seen = false;
            self.reading = Reading::Opaque { told: false };
        }
    }

    /// Whether an ESEARCH response answers our question for UIDs.
    fn answers_uids(&self, text: &[u8]) -> bool {
        let Some(tag) = self.flights.uids_tag() else { return false };
        let named = |quote: &[u8]| [b"(TAG ", quote, tag, quote, b")"].concat();
        [named(b"\""), named(b"")].iter().any(|correlator| {
            text.get(..correlator.len()).is_some_and(|start| start.eq_ignore_ascii_case(correlator))
        })
    }

    /// `(TAG "…") UID ALL 1:5,9`: the UIDs of all messages, in their order.
    fn learn_uids(&mut self, text: &[u8], frame: &Frame) {
        if !matches!(frame, Frame::End { .. }) {
            self.reading = Reading::Opaque { told: false };
            return;
        }
        let mut words =
            text.trim_ascii().split(|o| *o == b' ').skip_while(|w| !w.eq_ignore_ascii_case(b"ALL"));
        let set = words.nth(1).and_then(|set| SequenceSet::parse(set).ok()).filter(|set| !set.has_star());
        let Some(set) = set else { return };
        let known = u64::from(self.views.server_len());
        let count: u64 = set.resolve(0).map(|r| u64::from(*r.end()) - u64::from(*r.start()) + 1).sum();
        // More or fewer than there are: the numbers moved in between, and nothing is certain.
        if count != known {
            return;
        }
        for (at, uid) in (1..).zip(set.resolve(0).flatten()) {
            let (Some(msn), uid) = (Msn::new(at), Uid::new(uid)) else { return };
            if self.views.handle_fetch(msn, uid, None).is_err() {
                return self.desync("UIDs of SEARCH and of FETCH differ", Frame::End { piece: Bytes::new() });
            }
        }
    }

    fn expunged(&mut self, uids: Vec<Uid>) {
        if let (false, Some(mailbox)) = (uids.is_empty(), self.mailbox_key().cloned()) {
            self.preload_gone(&uids);
            self.catalog(CatalogOp::Expunged { mailbox, uids });
        }
    }

    /// The origin's numbering and ours have parted: nothing is stored or served any more. Where the client's view
    /// is still the origin's, octets go on passing, `frame` first; otherwise only a new session can mend it.
    pub(super) fn desync(&mut self, why: &'static str, frame: Frame) {
        self.event(Event::Desync(why));
        let clean = self.views.agree()
            && !self.is_ahead()
            && self.waiting.is_none()
            && self.passing.is_none()
            && self.splices.is_empty()
            && !self.flights.has_own()
            && !self.idle.is_engaged()
            && self.underway.iter().all(|u| u.completion.is_none() && u.awaits == 0);
        if !clean {
            return self.bye(Closing::OriginGarbled, "the mailbox must be opened again");
        }
        self.tell_in(Window::NoExpunge);
        match frame {
            Frame::Literal { piece, .. } | Frame::End { piece } | Frame::Overlong { piece } => {
                self.say(piece)
            }
            Frame::Chunk(octets) => self.say(octets),
        }
        self.tunnel(why);
    }
}

fn has_word(list: &[u8], word: &[u8]) -> bool {
    list.split(|o| *o == b' ').any(|w| w.trim_ascii().eq_ignore_ascii_case(word))
}

fn number(octets: &[u8]) -> Option<u32> {
    std::str::from_utf8(octets).ok()?.trim().parse().ok()
}

/// Whether a refusal is about the number of connections: RFC 5530's code, or the words of Dovecot and of Cyrus. Words
/// that a server may also say to a wrong password must not be among them: a stranger would end the session that is kept.
fn is_limit(code: Option<Code<'_>>, line: &[u8]) -> bool {
    let line = line.to_ascii_lowercase();
    let says = |words: &[u8]| line.windows(words.len()).any(|at| at == words);
    code.is_some_and(|code| code.name.eq_ignore_ascii_case(b"LIMIT"))
        || says(b"maximum number of connections from user")
        || says(b"too many open connections")
}
