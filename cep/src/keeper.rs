//! One kept session, without its streams.
//!
//! ```text
//!            ┌──────────────────── EXISTS, EXPUNGE, or time ───────────────────┐
//!  (DONE) ─► EXAMINE + UID SEARCH ─► small items ─► bodies, newest first ─► IDLE or a pause
//! ```
//! Only EXAMINE, never SELECT or CLOSE; only BODY.PEEK, never BODY: `\Recent`, `\Seen` and `\Deleted` messages stay
//! as their reader left them. EXAMINE again before each fetch, because a server with ACLs (Cyrus) answers NOOP and
//! IDLE long after the right to read has gone.

use bytes::Bytes;
use discovery_core::{
    now::Now,
    seam::gate::{BackgroundGate, Grant},
    value::{Class, Proof},
};
use imap_core::{
    catalog::{CatalogOp, FillId, MailboxKey},
    fetch_response::{FetchReader, FetchedValue, LiteralOf},
    framer::{Direction, Frame, Framer},
    item::{ItemClass, ItemKey},
    mutants,
    response::{Code, Response, Status, response},
    retained::{Facts, UidRanges},
    sequence_set::SequenceSet,
    uid::{Uid, UidValidity},
};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Bounds of a kept session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// After the last login that the origin accepted, whatever happens.
    pub absolute: Duration,
    /// After the client left.
    pub idle: Duration,
    /// After a login by a token.
    pub token: Duration,
    /// Larger messages are left to their reader.
    pub size_max: u64,
    /// How long the origin may owe an answer.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            absolute: Duration::from_secs(24 * 3600),
            idle: Duration::from_secs(12 * 3600),
            token: Duration::from_secs(3600),
            size_max: 8 << 20,
            patience: Duration::from_secs(120),
        }
    }
}

/// Why a kept session ended. Closed: the log field, the metric label and what `sessions` prints are the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// Its user logged in again.
    NewLogin,
    /// Another session of the same user was left later.
    Replaced,
    /// The time since its login or its leaving.
    Limit,
    /// Its token may have expired.
    Token,
    /// The origin said that the user has too many connections.
    Connections,
    /// The operator.
    Operator,
    /// The node ends.
    Drain,
    /// The server has as many as it may.
    Full,
    /// The origin said BYE or closed.
    OriginLost,
    /// The origin said what cannot be understood, or nothing for too long.
    OriginGarbled,
    /// The mailbox may no longer be opened.
    NoMailbox,
}

impl Why {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::NewLogin,
        Self::Replaced,
        Self::Limit,
        Self::Token,
        Self::Connections,
        Self::Operator,
        Self::Drain,
        Self::Full,
        Self::OriginLost,
        Self::OriginGarbled,
        Self::NoMailbox,
    ];

    /// One word for logs and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::NewLogin => "new-login",
            Self::Replaced => "replaced",
            Self::Limit => "limit",
            Self::Token => "token",
            Self::Connections => "connections",
            Self::Operator => "operator",
            Self::Drain => "drain",
            Self::Full => "full",
            Self::OriginLost => "origin-lost",
            Self::OriginGarbled => "origin-garbled",
            Self::NoMailbox => "no-mailbox",
        }
    }
}

/// What the shell must do, in this order.
#[derive(Debug)]
pub enum Output {
    /// Write this to the origin.
    ToServer(Bytes),
    /// Tell the store.
    Catalog(CatalogOp),
    /// It is over; close the stream.
    Ended(Why),
}

/// What is done at the moment.
#[derive(Debug)]
enum Phase {
    /// The client's IDLE is being ended.
    LeavingIdle(Bytes),
    /// EXAMINE and UID SEARCH are with the origin.
    Opening { search: Bytes, examine: Bytes },
    /// Small items of new messages, or a body, are with the origin.
    Fetching(Bytes),
    /// The gate said when to ask again.
    Waiting(Instant),
    /// IDLE; `true` once DONE was said.
    Idle(Bytes, bool),
    /// Nothing until then.
    Pausing(Instant),
    /// LOGOUT is with the origin.
    Leaving(Why),
    /// Over.
    Over,
}

/// A FETCH response that is being read.
#[derive(Debug)]
struct Reading {
    reader: Option<FetchReader>,
    fill: Option<FillId>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Keeper {
    facts: Facts,
    limits: Limits,
    written: Bytes,
    name: Bytes,
    key: Option<MailboxKey>,
    /// What was there before the client left; `None`: take the first listing for it.
    known: Option<UidRanges>,
    /// What the EXAMINE and SEARCH under way have said.
    validity: Option<UidValidity>,
    listed: Option<UidRanges>,
    opened: bool,
    /// Bodies to fetch, newest first.
    bodies: VecDeque<(Uid, u64)>,
    /// Something changed meanwhile.
    stale: bool,
    phase: Phase,
    framer: Framer,
    reading: Option<Reading>,
    skipping: bool,
    tags: u64,
    left: Instant,
    asked: Instant,
    /// Fetched so far: messages and octets.
    fetched: (u64, u64),
    outputs: VecDeque<Output>,
}

impl Keeper {
    /// Takes a session over.
    #[must_use]
    pub fn new(facts: Facts, limits: Limits, now: Now) -> Self {
        let (written, name, key, known) = match facts.mailbox.clone() {
            Some(watched) => (watched.written, watched.key.name.clone(), Some(watched.key), watched.uids),
            None => (Bytes::from_static(b"INBOX"), Bytes::from_static(b"INBOX"), None, None),
        };
        let mut keeper = Self {
            limits,
            written,
            name,
            key,
            known,
            validity: None,
            listed: None,
            opened: false,
            bodies: VecDeque::new(),
            stale: false,
            phase: Phase::Over,
            framer: Framer::new(Direction::FromServer),
            reading: None,
            skipping: false,
            tags: 0,
            left: now.mono,
            asked: now.mono,
            fetched: (0, 0),
            outputs: VecDeque::new(),
            facts,
        };
        match keeper.facts.idle.clone() {
            Some(tag) => {
                keeper.send("DONE\r\n".into());
                keeper.phase = Phase::LeavingIdle(tag);
            }
            None => keeper.open(now),
        }
        keeper
    }

    /// Octets of the origin.
    pub fn handle_server(&mut self, now: Now, mut octets: Bytes, gate: &dyn BackgroundGate) {
        while !matches!(self.phase, Phase::Over) {
            match self.framer.next(&mut octets) {
                Ok(Some(frame)) => {
                    // An answer that gets on is no answer owed.
                    self.asked = now.mono;
                    self.frame(now, frame, gate);
                }
                Ok(None) => return,
                Err(_) => return self.over(Why::OriginGarbled),
            }
        }
    }

    /// The origin's stream has ended.
    pub fn handle_closed(&mut self) {
        let why = if let Phase::Leaving(why) = self.phase { why } else { Why::OriginLost };
        self.over(why);
    }

    /// Leaves the origin in good order.
    pub fn handle_end(&mut self, now: Now, why: Why) {
        if matches!(self.phase, Phase::Leaving(_) | Phase::Over) {
            return;
        }
        if let Phase::Idle(_, false) = self.phase {
            self.send("DONE\r\n".into());
        }
        let tag = self.tag();
        self.send(format!("{tag} LOGOUT\r\n"));
        self.asked = now.mono;
        self.phase = Phase::Leaving(why);
    }

    /// The deadline of [`Keeper::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Now, gate: &dyn BackgroundGate) {
        if now.mono >= self.ends() && !mutants::on("keeper-outlives-its-limit") {
            let token = self.facts.token && now.mono >= self.facts.authenticated.mono + self.limits.token;
            self.handle_end(now, if token { Why::Token } else { Why::Limit });
        }
        match self.phase {
            Phase::Waiting(until) if until <= now.mono => self.next(now, gate),
            Phase::Pausing(until) if until <= now.mono => self.open(now),
            Phase::Idle(_, false) if self.asked + self.reissue() <= now.mono => self.leave_idle(now),
            Phase::Leaving(why) if self.asked + LEAVE <= now.mono => self.over(why),
            Phase::LeavingIdle(_) | Phase::Opening { .. } | Phase::Fetching(_) | Phase::Idle(_, true)
                if self.asked + self.limits.patience <= now.mono =>
            {
                self.over(Why::OriginGarbled);
            }
            Phase::Waiting(_)
            | Phase::Pausing(_)
            | Phase::Idle(..)
            | Phase::Leaving(_)
            | Phase::LeavingIdle(_)
            | Phase::Opening { .. }
            | Phase::Fetching(_)
            | Phase::Over => {}
        }
    }

    /// When to call [`Keeper::handle_timeout`]; `None` once it is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = match self.phase {
            Phase::Waiting(until) | Phase::Pausing(until) => until,
            Phase::Idle(_, false) => self.asked + self.reissue(),
            Phase::Leaving(_) => return Some(self.asked + LEAVE),
            Phase::LeavingIdle(_) | Phase::Opening { .. } | Phase::Fetching(_) | Phase::Idle(_, true) => {
                self.asked + self.limits.patience
            }
            Phase::Over => return None,
        };
        Some(due.min(self.ends()))
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Messages and octets fetched so far.
    #[must_use]
    pub fn fetched(&self) -> (u64, u64) {
        self.fetched
    }

    /// Which mailbox, as its name stands in the store's keys.
    #[must_use]
    pub fn mailbox(&self) -> &Bytes {
        &self.name
    }

    /// Whether mail is expected.
    #[must_use]
    pub fn is_fetching(&self) -> bool {
        matches!(self.phase, Phase::Fetching(_))
    }

    /// Whether it has been told to end.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving(_) | Phase::Over)
    }

    /// How the mailbox is watched.
    #[must_use]
    pub fn way(&self) -> &'static str {
        if self.facts.capabilities.has("IDLE") { "idle" } else { "poll" }
    }

    fn ends(&self) -> Instant {
        let login = self.facts.authenticated.mono;
        let token = self.facts.token.then(|| login + self.limits.token);
        let limits = [login + self.limits.absolute, self.left + self.limits.idle];
        limits.into_iter().chain(token).min().unwrap_or(login)
    }

    /// Servers end an IDLE after 29 to 30 minutes; two thousand sessions shall not all speak at once.
    fn reissue(&self) -> Duration {
        REISSUE + Duration::from_secs(u64::from(self.facts.nonce.iter().fold(0_u8, |a, o| a ^ o)))
    }

    fn tag(&mut self) -> String {
        self.tags += 1;
        let nonce: String = self.facts.nonce.iter().map(|o| format!("{o:02X}")).collect();
        format!("CEP{nonce}{}", self.tags)
    }

    fn send(&mut self, line: String) {
        self.outputs.push_back(Output::ToServer(line.into()));
    }

    fn catalog(&mut self, op: CatalogOp) {
        self.outputs.push_back(Output::Catalog(op));
    }

    fn over(&mut self, why: Why) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        if let Some(fill) = self.reading.take().and_then(|reading| reading.fill) {
            self.catalog(CatalogOp::FillAbort { fill });
        }
        self.phase = Phase::Over;
        self.outputs.push_back(Output::Ended(why));
    }
}

/// The round: open, list, fetch, watch.
impl Keeper {
    fn open(&mut self, now: Now) {
        let (examine, search) = (self.tag(), self.tag());
        let verb = if mutants::on("keeper-selects") { "SELECT" } else { "EXAMINE" };
        let result = if self.facts.capabilities.has("ESEARCH") { "RETURN (ALL) " } else { "" };
        let line = [
            format!("{examine} {verb} ").as_bytes(),
            &self.written,
            format!("\r\n{search} UID SEARCH {result}ALL\r\n").as_bytes(),
        ]
        .concat();
        self.outputs.push_back(Output::ToServer(line.into()));
        self.asked = now.mono;
        (self.validity, self.listed, self.opened, self.stale) = (None, None, false, false);
        self.bodies.clear();
        self.phase = Phase::Opening { search: search.into(), examine: examine.into() };
    }

    fn examined(&mut self) {
        self.opened = true;
        let Some(uid_validity) = self.validity else { return };
        let account = self.facts.account.clone();
        let key = MailboxKey { account, name: self.name.clone(), uid_validity, utf8: self.facts.utf8 };
        if self.key.as_ref().is_some_and(|old| *old != key) {
            // Every UID is other mail now.
            self.known = None;
        }
        self.catalog(CatalogOp::Selected { mailbox: key.clone() });
        self.key = Some(key);
    }

    fn listed(&mut self, now: Now) {
        let (Some(listed), Some(key)) = (self.listed.take(), self.key.clone()) else {
            return self.watch(now);
        };
        let known = self.known.replace(listed.clone()).unwrap_or_else(|| listed.clone());
        let gone: Vec<Uid> =
            known.without(&listed).newest_first().take(GONE_MAX).filter_map(Uid::new).collect();
        if !gone.is_empty() {
            self.catalog(CatalogOp::Expunged { mailbox: key, uids: gone });
        }
        let new: Vec<u32> = listed.without(&known).newest_first().take(NEW_MAX).collect();
        if new.is_empty() {
            return self.watch(now);
        }
        self.bodies.clear();
        let set = new.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let tag = self.tag();
        self.send(format!("{tag} UID FETCH {set} ({SMALL})\r\n"));
        self.asked = now.mono;
        self.phase = Phase::Fetching(tag.into());
    }

    /// The next body, if the gate lets it; else watching.
    fn next(&mut self, now: Now, gate: &dyn BackgroundGate) {
        while let Some((uid, size)) = self.bodies.front().copied() {
            if size > self.limits.size_max {
                self.bodies.pop_front();
                continue;
            }
            let octets = u32::try_from(size).unwrap_or(u32::MAX);
            match gate.ask(Class::Background, &self.facts.account.server, octets, now) {
                Grant::Go => {
                    self.bodies.pop_front();
                    let item = if mutants::on("keeper-marks-seen") { "BODY[]" } else { "BODY.PEEK[]" };
                    let tag = self.tag();
                    self.send(format!("{tag} UID FETCH {} (UID {item})\r\n", uid.get()));
                    self.asked = now.mono;
                    self.phase = Phase::Fetching(tag.into());
                    return;
                }
                Grant::Wait(until) => {
                    self.phase = Phase::Waiting(until);
                    return;
                }
                Grant::Never(_) => self.bodies.clear(),
            }
        }
        self.watch(now);
    }

    fn watch(&mut self, now: Now) {
        self.asked = now.mono;
        if self.stale {
            return self.open(now);
        }
        if self.facts.capabilities.has("IDLE") {
            let tag = self.tag();
            self.send(format!("{tag} IDLE\r\n"));
            self.phase = Phase::Idle(tag.into(), false);
        } else {
            self.phase = Phase::Pausing(now.mono + POLL);
        }
    }

    fn leave_idle(&mut self, now: Now) {
        if let Phase::Idle(_, done) = &mut self.phase {
            *done = true;
            self.asked = now.mono;
            self.send("DONE\r\n".into());
        }
    }
}

/// What the origin says.
impl Keeper {
    fn frame(&mut self, now: Now, frame: Frame, gate: &dyn BackgroundGate) {
        if self.reading.is_some() {
            return self.read_on(frame);
        }
        let (piece, whole) = match &frame {
            Frame::End { piece } => (piece.clone(), true),
            Frame::Literal { piece, .. } | Frame::Overlong { piece } => (piece.clone(), false),
            Frame::Chunk(_) => return,
        };
        if std::mem::replace(&mut self.skipping, !whole) {
            return;
        }
        match response(&piece) {
            Ok(Response::Fetch { .. }) => {
                self.skipping = false;
                let reader = FetchReader::start(&piece).ok();
                self.reading = Some(Reading { reader, fill: None });
                match frame {
                    Frame::Literal { octets, binary, .. } => self.literal(octets, binary),
                    Frame::End { .. } => self.end_fetch(),
                    Frame::Chunk(_) | Frame::Overlong { .. } => {}
                }
            }
            Ok(Response::Exists(_) | Response::Expunge(_) | Response::Vanished { earlier: false, .. }) => {
                self.changed(now);
            }
            Ok(Response::Status { status: Status::Bye, .. }) => {
                if !matches!(self.phase, Phase::Leaving(_)) {
                    self.over(Why::OriginLost);
                }
            }
            Ok(Response::Status { code: Some(Code { name, argument }), .. })
                if name.eq_ignore_ascii_case(b"UIDVALIDITY") =>
            {
                self.validity = number(argument).and_then(UidValidity::new);
            }
            Ok(Response::Esearch(said)) => self.found(esearch_all(said)),
            Ok(Response::Search(said)) => {
                let uids = said.split(|o| *o == b' ').map_while(number);
                self.found(Some(UidRanges::of(uids)));
            }
            Ok(Response::Tagged { tag, status, .. }) => self.completed(now, tag, status, gate),
            Ok(_) | Err(_) => {}
        }
    }

    fn found(&mut self, uids: Option<UidRanges>) {
        if matches!(self.phase, Phase::Opening { .. }) {
            self.listed = uids;
        }
    }

    /// New mail, or some is gone: looked at after what is under way.
    fn changed(&mut self, now: Now) {
        match self.phase {
            // What EXAMINE itself says.
            Phase::Opening { .. } | Phase::Leaving(_) | Phase::Over => {}
            Phase::Idle(_, false) => {
                self.stale = true;
                self.leave_idle(now);
            }
            Phase::Idle(_, true)
            | Phase::LeavingIdle(_)
            | Phase::Fetching(_)
            | Phase::Waiting(_)
            | Phase::Pausing(_) => self.stale = true,
        }
    }

    fn completed(&mut self, now: Now, tag: &[u8], status: Status, gate: &dyn BackgroundGate) {
        let ok = status == Status::Ok;
        match &self.phase {
            Phase::LeavingIdle(idle) | Phase::Idle(idle, true) if *idle == tag => self.open(now),
            // The origin will not idle.
            Phase::Idle(idle, false) if *idle == tag => self.phase = Phase::Pausing(now.mono + POLL),
            Phase::Opening { examine, .. } if *examine == tag => {
                if ok {
                    self.examined();
                } else {
                    self.handle_end(now, Why::NoMailbox);
                }
            }
            Phase::Opening { search, .. } if *search == tag => {
                if ok && self.opened {
                    // An empty mailbox: ESEARCH names no UIDs.
                    self.listed.get_or_insert_with(UidRanges::default);
                    self.listed(now);
                } else {
                    self.watch(now);
                }
            }
            Phase::Fetching(fetch) if *fetch == tag => self.next(now, gate),
            Phase::Leaving(why) if tag.starts_with(b"CEP") => {
                let why = *why;
                if status == Status::Ok && self.tags > 0 && is_tag(tag, self.tags) {
                    self.over(why);
                }
            }
            Phase::LeavingIdle(_)
            | Phase::Opening { .. }
            | Phase::Fetching(_)
            | Phase::Waiting(_)
            | Phase::Idle(..)
            | Phase::Pausing(_)
            | Phase::Leaving(_)
            | Phase::Over => {}
        }
    }

    fn read_on(&mut self, frame: Frame) {
        let Some(reading) = &mut self.reading else { return };
        match frame {
            Frame::Chunk(octets) => {
                if let Some(reader) = &mut reading.reader {
                    reader.literal_chunk(&octets);
                }
                if let Some(fill) = reading.fill {
                    self.fetched.1 += octets.len() as u64;
                    self.catalog(CatalogOp::FillData { fill, octets });
                }
            }
            Frame::Literal { piece, octets, binary, .. } => {
                self.piece(&piece);
                self.literal(octets, binary);
            }
            Frame::Overlong { .. } => reading.reader = None,
            Frame::End { piece } => {
                self.piece(&piece);
                self.end_fetch();
            }
        }
    }

    fn piece(&mut self, piece: &[u8]) {
        let Some(reading) = &mut self.reading else { return };
        if reading.reader.as_mut().is_some_and(|reader| reader.piece(piece).is_err()) {
            reading.reader = None;
        }
    }

    fn literal(&mut self, octets: u64, binary: bool) {
        let Some(reading) = &mut self.reading else { return };
        let Some(reader) = &mut reading.reader else { return };
        let literal = reader.literal_begins(octets, binary);
        let uid = reader.uid();
        let LiteralOf::Section { key: item, origin: None, .. } = literal else { return };
        let Some(mailbox) = self.key.clone().filter(|_| item == ItemKey::whole() && reading.fill.is_none())
        else {
            return;
        };
        self.facts.last_fill += 1;
        let fill = FillId { session: self.facts.number, n: self.facts.last_fill };
        reading.fill = Some(fill);
        self.catalog(CatalogOp::FillOpen { fill, mailbox, uid, item, octets });
    }

    fn end_fetch(&mut self) {
        let Some(Reading { reader, fill }) = self.reading.take() else { return };
        let said = reader.and_then(|reader| reader.finish().ok());
        let Some((said, uid)) = said.and_then(|said| said.uid.map(|uid| (said, uid))) else {
            if let Some(fill) = fill {
                self.catalog(CatalogOp::FillAbort { fill });
            }
            return;
        };
        if let Some(fill) = fill {
            self.fetched.0 += 1;
            self.catalog(CatalogOp::FillCommit { fill, uid, proof: Proof::Origin });
        }
        let mut items = Vec::new();
        for item in said.items {
            if let (FetchedValue::Raw(octets), ItemClass::Fixed) = (&item.value, item.key.class()) {
                if item.key.as_str() == "RFC822.SIZE" && matches!(self.phase, Phase::Fetching(_)) {
                    let size = number(octets).map_or(u64::MAX, u64::from);
                    let at = self.bodies.partition_point(|(other, _)| *other > uid);
                    self.bodies.insert(at, (uid, size));
                }
                items.push((item.key, Bytes::copy_from_slice(octets)));
            }
        }
        if let (false, Some(mailbox)) = (items.is_empty(), self.key.clone()) {
            self.catalog(CatalogOp::Record { mailbox, uid, items, proof: Proof::Origin });
        }
    }
}

fn is_tag(tag: &[u8], n: u64) -> bool {
    // After `CEP` and the nonce's twelve digits.
    tag.get(15..) == Some(n.to_string().as_bytes())
}

/// The set behind ALL in an ESEARCH response.
fn esearch_all(said: &[u8]) -> Option<UidRanges> {
    let mut words = said.split(|o| *o == b' ');
    words.find(|word| word.eq_ignore_ascii_case(b"ALL"))?;
    let set = SequenceSet::parse(words.next()?).ok()?;
    if set.has_star() {
        return None;
    }
    Some(UidRanges::of_ranges(set.resolve(u32::MAX)))
}

fn number(octets: &[u8]) -> Option<u32> {
    std::str::from_utf8(octets).ok()?.trim().parse().ok()
}

/// What clients ask of messages that they list.
const SMALL: &str = "UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE";
/// Without IDLE.
const POLL: Duration = Duration::from_secs(180);
/// RFC 2177: 'at least every 29 minutes'; up to 255 seconds are added.
const REISSUE: Duration = Duration::from_secs(24 * 60);
/// How long the origin may take to say goodbye.
const LEAVE: Duration = Duration::from_secs(5);
/// New messages of one round; more are left to their reader.
const NEW_MAX: usize = 200;
/// Vanished messages told the store in one round; the rest is found out by its reader.
const GONE_MAX: usize = 10_000;

#[cfg(test)]
mod tests;
