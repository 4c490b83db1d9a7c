//! Connections whose client has left: a keeper each, on the node that had the client.

use super::*;
use crate::ordering::{Mood, Ordering};
use cep::keeper::{self, Keeper, Why};
use discovery_core::id::AccountKey;
use imap_core::{
    capability::Capabilities,
    catalog::{FillId, MailboxKey},
    item::ItemKey,
    mutants,
    retained::Facts,
    uid::Uid,
};

/// A connection to an origin without a client.
pub(crate) struct Kept {
    pub(crate) node: usize,
    pub(crate) server: usize,
    conn: ConnId,
    account: AccountKey,
    number: u64,
    keeper: Keeper,
    mood: Arc<Mutex<Mood>>,
    pub(crate) origin: Origin,
    forward: Pipe,
    answer: Pipe,
    to_origin: VecDeque<Bytes>,
    wan: Road,
    origin_at: u64,
    woken_at: Option<u64>,
    hung_up: bool,
    deceived: bool,
    /// Why the origin may go.
    excuse: Option<&'static str>,
    /// After this it must be over.
    ends_us: u64,
    /// From this UID on everything in the mailbox is new; none: what is new is not known.
    new_from: Option<u32>,
    fills: BTreeMap<FillId, (MailboxKey, Vec<u8>)>,
}

/// How long an origin may take to say goodbye, and what a tick may come late.
const LEAVE_US: u64 = 5_000_000 + 1_000_000;
/// As `cep::house`.
const SUSPENSION: Duration = Duration::from_secs(15 * 60);
/// Once everything rests, origins go on telling news for so long.
const NEWS_US: u64 = 20_000_000;

impl World {
    /// The client has heard all of it and is gone; the node keeps its connection to the origin.
    pub(super) fn keep(&mut self, slot: usize, mut facts: Facts) -> Result<(), Broken> {
        // The model's servers offer NOTIFY and do not know it.
        let offered = self.lines[slot].origin.capabilities().replace(" NOTIFY", "");
        facts.capabilities = Capabilities::from_list(offered.as_bytes());
        let now = self.now(self.lines[slot].node);
        let site = &self.sites[self.lines[slot].node];
        let limits = site.limits;
        let mut ends = (facts.authenticated.mono + limits.absolute).min(now.mono + limits.idle);
        if facts.token {
            ends = ends.min(facts.authenticated.mono + limits.token);
        }
        // One that is handed over too late ends at once.
        let ends_us = self.us_of(ends).max(self.now_us);
        let manner = self.servers[self.lines[slot].server].manner;
        let random = Random::new(self.random.below(1 << 30) as u64);
        let mood = Arc::new(Mutex::new(Mood::new(random)));
        let ordering = Box::new(Ordering::news(Arc::clone(&mood)));
        let line = &mut self.lines[slot];
        let ahead = std::mem::take(&mut line.ahead);
        let origin = std::mem::replace(&mut line.origin, Origin::new(manner));
        let hung_up = line.hung_up && (origin.said_bye || origin.is_gone);
        let new_from = facts.mailbox.as_ref().and_then(|watched| {
            let known = watched.uids.as_ref()?;
            Some(known.newest_first().next().unwrap_or(0) + 1)
        });
        let kept = Kept {
            node: line.node,
            server: line.server,
            conn: line.conn,
            account: facts.account.clone(),
            number: facts.number,
            keeper: Keeper::new(facts, limits, ordering, now),
            mood,
            origin,
            forward: std::mem::take(&mut line.forward),
            answer: std::mem::take(&mut line.answer),
            to_origin: std::mem::take(&mut line.to_origin),
            wan: line.wan,
            origin_at: u64::MAX,
            woken_at: None,
            hung_up,
            deceived: line.deceived,
            excuse: None,
            ends_us,
            new_from,
            fills: BTreeMap::new(),
        };
        let (node, server, conn, account) = (kept.node, kept.server, kept.conn, kept.account.clone());
        self.must_end(node, &account);
        self.kept.push(kept);
        self.totals.kept += 1;
        let ends = self.sites[node].house.left(&account, conn);
        if let Some((conn, why)) = ends {
            self.end_kept(conn, why)?;
        }
        if self.sites[node].draining {
            self.end_kept(conn, Why::Drain)?;
        }
        let stays = |kept: &&Kept| (kept.node, kept.server) == (node, server) && !kept.keeper.is_leaving();
        let (there, may) = (self.kept.iter().filter(stays).count(), self.sites[node].house.per_server_max);
        if there > may {
            let what = format!("node {node} keeps {there} at one server, and {may} are allowed");
            return Err(Broken { checker: Checker::Kept, what });
        }
        self.kept_origin_soon(conn, 2000);
        for octets in ahead {
            self.trace.note(self.now_us, node, "K<-S", &octets);
            if let Some(kept) = self.kept(conn) {
                kept.keeper.handle_server(now, octets);
                self.kept_on(conn)?;
            }
        }
        self.kept_hears(conn)
    }

    /// Those of this account are over soon, whatever the house thinks.
    fn must_end(&mut self, node: usize, account: &AccountKey) {
        let now = self.now_us;
        let own = self.kept.iter_mut().filter(|kept| kept.node == node && kept.account == *account);
        own.for_each(|kept| kept.ends_us = kept.ends_us.min(now));
    }

    fn us_of(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.start).as_micros()).unwrap()
    }

    pub(super) fn is_kept(&self, conn: ConnId) -> bool {
        self.kept.iter().any(|kept| kept.conn == conn)
    }

    fn kept(&mut self, conn: ConnId) -> Option<&mut Kept> {
        self.kept.iter_mut().find(|kept| kept.conn == conn)
    }

    /// What a session learned that others must hear of.
    pub(super) fn house_hears(&mut self, node: usize, event: &Learned) -> Result<(), Broken> {
        let (account, why) = match event {
            Learned::LoggedIn(account) => (account, Why::NewLogin),
            Learned::LoginRefusedFor { account, limited: true } => (account, Why::Connections),
            Learned::LoginRefusedFor { account, limited: false } => {
                let until = self.now(node).mono + SUSPENSION;
                let conn = self.sites[node].house.of(account);
                if let Some(kept) = conn.and_then(|conn| self.kept(conn)) {
                    kept.mood.lock().unwrap().suspended = Some(until);
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        self.must_end(node, account);
        match self.sites[node].house.of(account) {
            Some(conn) => self.end_kept(conn, why),
            None => Ok(()),
        }
    }

    pub(super) fn drain_kept(&mut self, node: usize) -> Result<(), Broken> {
        let all: Vec<ConnId> =
            self.kept.iter().filter(|kept| kept.node == node).map(|kept| kept.conn).collect();
        all.into_iter().try_for_each(|conn| self.end_kept(conn, Why::Drain))
    }

    fn end_kept(&mut self, conn: ConnId, why: Why) -> Result<(), Broken> {
        let now_us = self.now_us;
        let Some(at) = self.kept.iter().position(|kept| kept.conn == conn) else { return Ok(()) };
        let now = self.now(self.kept[at].node);
        let kept = &mut self.kept[at];
        if !kept.keeper.is_leaving() {
            kept.ends_us = kept.ends_us.min(now_us);
            kept.keeper.handle_end(now, why);
        }
        self.kept_on(conn)
    }

    /// The connection is reset.
    pub(crate) fn sever_kept(&mut self, node: usize, n: usize) -> Result<bool, Broken> {
        let Some(conn) = self.some_kept(node, n) else { return Ok(false) };
        let now = self.now(node);
        if let Some(kept) = self.kept(conn) {
            kept.excuse = Some("reset");
            kept.keeper.handle_closed(now);
        }
        self.kept_on(conn)?;
        Ok(true)
    }

    fn some_kept(&self, node: usize, n: usize) -> Option<ConnId> {
        let of_node: Vec<ConnId> =
            self.kept.iter().filter(|kept| kept.node == node).map(|kept| kept.conn).collect();
        of_node.get(n.checked_rem(of_node.len())?).copied()
    }

    /// A server says something on it that is not so.
    pub(crate) fn lie_to_kept(&mut self, node: usize, n: usize, said: &str) -> bool {
        let now = self.now_us;
        let Some(kept) = self.some_kept(node, n).and_then(|conn| self.kept(conn)) else { return false };
        if kept.origin.has_output() || kept.hung_up {
            return false;
        }
        kept.deceived = true;
        let segment = Segment { octets: said.to_owned().into(), ..Segment::default() };
        let (arrives, conn) = (kept.answer.send(now, kept.wan, segment), kept.conn);
        let user = kept.origin.user.clone().unwrap_or_default();
        let mark = (kept.node, kept.server, user);
        self.at(arrives, Event::Arrive(usize::MAX, conn, Way::Answer));
        for other in &mut self.lines {
            if (other.node, other.server, &other.client.user) == (mark.0, mark.1, &mark.2) {
                other.deceived = true;
            }
        }
        if !self.deceived.contains(&mark) {
            self.deceived.push(mark);
        }
        true
    }

    pub(super) fn kept_arrive(&mut self, conn: ConnId, way: Way) -> Result<(), Broken> {
        let Some(kept) = self.kept(conn) else { return Ok(()) };
        match way {
            // Its client's, who has left.
            Way::Ask | Way::Tell => Ok(()),
            Way::Forward => {
                kept.forward.arrive();
                while let Some(segment) = kept.forward.take() {
                    kept.origin.receive(&segment.octets);
                }
                self.kept_forward_on(conn);
                self.kept_origin_soon(conn, 2000);
                Ok(())
            }
            Way::Answer => {
                kept.answer.arrive();
                self.kept_hears(conn)
            }
        }
    }

    fn kept_hears(&mut self, conn: ConnId) -> Result<(), Broken> {
        while let Some(kept) = self.kept(conn) {
            let Some(segment) = kept.answer.take() else { break };
            let node = kept.node;
            self.trace.note(self.now_us, node, "K<-S", &segment.octets);
            let now = self.now(node);
            let Some(kept) = self.kept(conn) else { break };
            if segment.octets.is_empty() && segment.last {
                kept.keeper.handle_closed(now);
            } else {
                kept.keeper.handle_server(now, segment.octets);
            }
            self.kept_on(conn)?;
        }
        self.kept_answer_on(conn);
        self.kept_on(conn)
    }

    pub(super) fn kept_turn(&mut self, conn: ConnId) -> Result<(), Broken> {
        let now_us = self.now_us;
        let Some(kept) = self.kept(conn).filter(|kept| kept.woken_at == Some(now_us)) else { return Ok(()) };
        kept.woken_at = None;
        let node = kept.node;
        let now = self.now(node);
        if let Some(kept) = self.kept(conn)
            && kept.keeper.poll_timeout().is_some_and(|due| due <= now.mono)
        {
            kept.keeper.handle_timeout(now);
        }
        self.kept_on(conn)
    }

    pub(super) fn kept_origin_turn(&mut self, conn: ConnId) -> Result<(), Broken> {
        let (resting, now_us) = (self.resting, self.now_us);
        let Some(at) = self.kept.iter().position(|kept| kept.conn == conn && kept.origin_at == now_us) else {
            return Ok(());
        };
        let kept = &mut self.kept[at];
        kept.origin_at = u64::MAX;
        let mail = &mut self.servers[kept.server].mail;
        kept.origin.step(mail, &mut self.random, resting);
        let (quiet, over) = (kept.origin.is_quiet(), kept.hung_up);
        self.kept_answer_on(conn);
        let tells = !resting || now_us < RUN_US + NEWS_US;
        if !over && (tells || !quiet) {
            self.kept_origin_soon(conn, if quiet { 2_000_000 } else { 3000 });
        }
        self.kept_on(conn)
    }

    fn kept_origin_soon(&mut self, conn: ConnId, max_us: usize) {
        let at = self.now_us + 1 + self.random.below(max_us) as u64;
        if let Some(kept) = self.kept(conn).filter(|kept| at < kept.origin_at) {
            kept.origin_at = at;
            self.at(at, Event::OriginTurn(usize::MAX, conn));
        }
    }

    fn kept_forward_on(&mut self, conn: ConnId) {
        let now = self.now_us;
        loop {
            let n = some(&mut self.random);
            let Some(at) = self.kept.iter().position(|kept| kept.conn == conn) else { return };
            let kept = &mut self.kept[at];
            if kept.forward.room() == 0 {
                return;
            }
            let Some(front) = kept.to_origin.front_mut() else { return };
            let octets = front.split_to(n.min(front.len()));
            if front.is_empty() {
                kept.to_origin.pop_front();
            }
            kept.forward.blocked_until = self.sites[kept.node].parted_until[kept.server];
            let arrives = kept.forward.send(now, kept.wan, Segment { octets, ..Segment::default() });
            self.at(arrives, Event::Arrive(usize::MAX, conn, Way::Forward));
        }
    }

    fn kept_answer_on(&mut self, conn: ConnId) {
        let now = self.now_us;
        loop {
            let n = some(&mut self.random);
            let Some(at) = self.kept.iter().position(|kept| kept.conn == conn) else { return };
            let kept = &mut self.kept[at];
            let segment = if kept.origin.has_output() {
                if kept.answer.room() == 0 {
                    return;
                }
                let (octets, marks) = kept.origin.take_output(n);
                Segment { octets: octets.into(), marks, ..Segment::default() }
            } else if (kept.origin.said_bye || kept.origin.is_gone) && !kept.hung_up {
                kept.hung_up = true;
                Segment { last: true, ..Segment::default() }
            } else {
                return;
            };
            kept.answer.blocked_until = self.sites[kept.node].parted_until[kept.server];
            let arrives = kept.answer.send(now, kept.wan, segment);
            self.at(arrives, Event::Arrive(usize::MAX, conn, Way::Answer));
        }
    }

    /// Does what the keeper wants, checks it, and knows when to wake it.
    fn kept_on(&mut self, conn: ConnId) -> Result<(), Broken> {
        while let Some(at) = self.kept.iter().position(|kept| kept.conn == conn) {
            let Some(output) = self.kept[at].keeper.poll_output() else { break };
            match output {
                keeper::Output::ToServer(octets) => {
                    self.trace.note(self.now_us, self.kept[at].node, "K->S", &octets);
                    if let Err(lie) = may_say(&octets) {
                        return Err(self.kept_broken(at, Checker::Seen, lie));
                    }
                    self.kept[at].to_origin.push_back(octets);
                }
                keeper::Output::Catalog(op) => {
                    if let Err((checker, lie)) = self.check_told(at, &op) {
                        return Err(self.kept_broken(at, checker, lie));
                    }
                    let node = self.kept[at].node;
                    let now = self.now(node);
                    if let Some(reply) = self.sites[node].store.handle(self.now_us, planted(op)) {
                        self.kept[at].keeper.handle_store(now, reply);
                    }
                }
                // Its socket has no buffer here.
                keeper::Output::Window(_) => {}
                keeper::Output::Ended(why) => return self.kept_over(at, why),
            }
        }
        self.kept_forward_on(conn);
        let start = self.start;
        let Some(kept) = self.kept(conn) else { return Ok(()) };
        let Some(due) = kept.keeper.poll_timeout() else { return Ok(()) };
        let us = u64::try_from(due.saturating_duration_since(start).as_micros()).unwrap() + 1;
        if kept.woken_at.is_none_or(|at| at > us) {
            // A node is told late now and then, never early.
            let us = us.max(self.now_us + 1);
            if let Some(kept) = self.kept(conn) {
                kept.woken_at = Some(us);
            }
            self.at(us, Event::KeptTurn(conn));
        }
        Ok(())
    }

    fn kept_over(&mut self, at: usize, why: Why) -> Result<(), Broken> {
        let kept = self.kept.remove(at);
        self.sites[kept.node].house.over(&kept.account, kept.conn);
        *self.totals.kept_ended.entry(why.word()).or_default() += 1;
        let (messages, _) = kept.keeper.fetched();
        self.totals.kept_messages += messages;
        let told = format!("kept {} of line {} ended: {}", kept.number, kept.conn.0, why.word());
        self.trace.note(self.now_us, kept.node, "KEPT", told.as_bytes());
        let store = &self.sites[kept.node].store;
        let wrong = if store.fills_of(kept.number) > 0 {
            Some((Checker::Budget, "is over, and still holds a body in the store".to_owned()))
        } else if self.now_us > kept.ends_us + LEAVE_US {
            Some((Checker::Kept, format!("ended ({}) long after it had to", why.word())))
        } else if kept.deceived {
            None
        } else {
            match why {
                Why::OriginGarbled => Some((Checker::NoWedge, "gave up on an honest server".to_owned())),
                Why::OriginLost if kept.excuse.is_none() => {
                    Some((Checker::NothingLost, "lost a connection that nobody ended".to_owned()))
                }
                Why::NoMailbox if &**kept.keeper.mailbox() != b"Shared" => {
                    Some((Checker::NothingLost, "lost a mailbox that is there".to_owned()))
                }
                _ => None,
            }
        };
        match wrong {
            Some((checker, lie)) => Err(self.broken_kept(&kept, checker, lie)),
            None => Ok(()),
        }
    }

    /// With the node's process.
    pub(super) fn kept_gone(&mut self, node: usize) {
        let before = self.kept.len();
        self.kept.retain(|kept| kept.node != node);
        *self.totals.kept_ended.entry("node-gone").or_default() += (before - self.kept.len()) as u64;
        self.sites[node].house.clear();
    }

    /// At the very end: nobody is beyond his limit, and what came is in the store.
    pub(super) fn check_kept_at_rest(&self) -> Result<(), Broken> {
        for (at, kept) in self.kept.iter().enumerate() {
            if self.now_us > kept.ends_us + LEAVE_US {
                return Err(self.kept_broken(at, Checker::Kept, "outlives its limit".into()));
            }
            let site = &self.sites[kept.node];
            let suspended = kept.mood.lock().unwrap().suspended.is_some();
            let whole_store = site.store.damaged == 0 && site.store.refused == 0;
            let leaving = kept.keeper.is_leaving();
            let Some(new_from) = kept.new_from.filter(|_| whole_store && !suspended && !leaving) else {
                continue;
            };
            let Some(open) = kept.origin.selected.as_ref().filter(|_| !kept.deceived) else { continue };
            let mailbox = &self.servers[kept.server].mail.boxes[&open.name];
            let missing = mailbox.live.iter().find(|live| {
                live.uid >= new_from
                    && !site.store.has_whole(&kept.account, &open.name.1, mailbox.validity, live.uid)
            });
            if let Some(live) = missing {
                let lie = format!("UID {} of {:?} came and was not fetched", live.uid, open.name);
                return Err(self.kept_broken(at, Checker::NoWedge, lie));
            }
        }
        let (kept, ended): (u64, u64) = (self.totals.kept, self.totals.kept_ended.values().sum());
        if kept != ended + self.kept.len() as u64 {
            let what = format!("{kept} were kept, {ended} ended, {} are there", self.kept.len());
            return Err(Broken { checker: Checker::NothingLost, what });
        }
        Ok(())
    }

    fn kept_broken(&self, at: usize, checker: Checker, what: String) -> Broken {
        self.broken_kept(&self.kept[at], checker, what)
    }

    fn broken_kept(&self, kept: &Kept, checker: Checker, what: String) -> Broken {
        let who = format!("kept session {} of node {}", kept.number, kept.node);
        Broken { checker, what: format!("{who} at {:.3} s: {what}", self.now_us as f64 / 1e6) }
    }

    /// What goes into the store is this user's, and is what the server has.
    fn check_told(&mut self, at: usize, op: &CatalogOp) -> Result<(), (Checker, String)> {
        let Kept { origin, account, deceived, server, fills, .. } = &mut self.kept[at];
        let mail = &self.servers[*server].mail;
        let user = origin.user.clone().unwrap_or_default();
        let own = |mailbox: &MailboxKey| {
            let is = mailbox.account == *account && account.user == PlainKeys.user_key(user.as_bytes());
            is.then_some(()).ok_or_else(|| {
                (Checker::Canary, format!("told the store of {}'s mail in another's name", user))
            })
        };
        let message = |mailbox: &MailboxKey, uid: Uid| {
            let name = String::from_utf8_lossy(&mailbox.name).into_owned();
            mail.history.get(&(box_of(&user, &name), mailbox.uid_validity.get(), uid.get()))
        };
        let lie = |what: &str, uid: Uid| {
            Err((Checker::Transcript, format!("{what} of UID {} is wrong", uid.get())))
        };
        match op {
            CatalogOp::Record { mailbox, uid, items, .. } => {
                own(mailbox)?;
                let Some(message) = message(mailbox, *uid).filter(|_| !*deceived) else {
                    return if *deceived { Ok(()) } else { lie("the number", *uid) };
                };
                for (key, value) in items {
                    let truth = match key.as_str() {
                        "RFC822.SIZE" => message.content.octets.len().to_string(),
                        "INTERNALDATE" => format!("\"{}\"", message.date),
                        "ENVELOPE" => message.content.envelope(),
                        "BODYSTRUCTURE" => message.content.structure(),
                        section => {
                            let spec = section.strip_prefix("BODY[").and_then(|spec| spec.strip_suffix(']'));
                            let octets = spec.and_then(|spec| message.content.section(spec));
                            String::from_utf8(octets.unwrap_or_default()).unwrap()
                        }
                    };
                    if truth.as_bytes() != value {
                        return lie(key.as_str(), *uid);
                    }
                }
            }
            CatalogOp::FillOpen { fill, mailbox, item, .. } => {
                own(mailbox)?;
                if *item != ItemKey::whole() {
                    return Err((Checker::Transcript, "fetched what nobody wants".into()));
                }
                fills.insert(*fill, (mailbox.clone(), Vec::new()));
            }
            CatalogOp::FillData { fill, octets } => {
                fills.entry(*fill).and_modify(|(_, body)| body.extend_from_slice(octets));
            }
            CatalogOp::FillAbort { fill } => drop(fills.remove(fill)),
            CatalogOp::FillCommit { fill, uid, .. } => {
                let Some((mailbox, body)) = fills.remove(fill).filter(|_| !*deceived) else { return Ok(()) };
                if message(&mailbox, *uid).is_none_or(|message| message.content.octets != body) {
                    return lie("the body", *uid);
                }
            }
            CatalogOp::Selected { mailbox } | CatalogOp::Resolve { mailbox, .. } => own(mailbox)?,
            CatalogOp::Expunged { mailbox, uids } => {
                own(mailbox)?;
                let name = box_of(&user, &String::from_utf8_lossy(&mailbox.name));
                let current = mail.boxes[&name].validity == mailbox.uid_validity.get();
                let lives = |uid: &&Uid| current && mail.live(&name, uid.get()).is_some();
                if let Some(uid) = uids.iter().find(lives).filter(|_| !*deceived) {
                    return lie("the end", *uid);
                }
            }
            other => return Err((Checker::Kept, format!("told the store {other:?}"))),
        }
        Ok(())
    }
}

/// With the bug that is found for `no-wedge`: no body gets into the store.
fn planted(op: CatalogOp) -> CatalogOp {
    match op {
        CatalogOp::FillCommit { fill, .. } if mutants::on("sim-kept-body-lost") => {
            CatalogOp::FillAbort { fill }
        }
        op => op,
    }
}

/// A keeper looks and changes nothing.
fn may_say(octets: &[u8]) -> Result<(), String> {
    SeenWatch::default().forwarded(octets)?;
    let text = String::from_utf8_lossy(octets);
    for line in text.lines() {
        let mut words = line.split(' ').skip(1);
        let verb = match words.next() {
            Some("UID") => words.next().unwrap_or_default(),
            verb => verb.unwrap_or_default(),
        };
        let looks = ["EXAMINE", "SEARCH", "FETCH", "IDLE", "NOOP", "LOGOUT", "CAPABILITY"].contains(&verb);
        if line != "DONE" && !looks {
            return Err(format!("nobody asked, and the origin was sent {}", line.escape_debug()));
        }
    }
    Ok(())
}
