//! Dialogues: what each side says, and what the other must hear.

use super::*;
use crate::retained::Facts;
use crate::{
    catalog::{Claim, Held, Row},
    item::ItemKey,
    uid::Uid,
};
use discovery_core::{
    id::{ServerId, UserKey, UserKeying},
    now::UnixMillis,
    seam::blob::{BlobReader, Length, StoreError},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

struct PlainKeys;

impl UserKeying for PlainKeys {
    fn user_key(&self, identity: &[u8]) -> UserKey {
        let mut hash = [0; 16];
        for (to, from) in hash.iter_mut().zip(identity) {
            *to = *from;
        }
        UserKey { version: 1, hash }
    }
}

/// A store as simple as can be: one value a mailbox, UID and item.
#[derive(Clone, Default)]
pub(super) struct Shelf(Arc<Mutex<ShelfState>>);

#[derive(Default)]
struct ShelfState {
    values: BTreeMap<(MailboxKey, Uid, ItemKey), Bytes>,
    fills: BTreeMap<FillId, Stream>,
    claims: BTreeMap<u64, (MailboxKey, Uid, ItemKey)>,
}

/// Where it belongs, how long it will be, what there is of it.
type Stream = (MailboxKey, Option<Uid>, ItemKey, u64, Arc<Body>);

struct Body(Mutex<Vec<u8>>);

impl BlobReader for Body {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let octets = self.0.lock().unwrap();
        let rest = octets.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn len(&self) -> Length {
        Length::Growing(self.0.lock().unwrap().len() as u64)
    }

    fn wait(&self, _: u64, _: Duration) -> Result<Length, StoreError> {
        Ok(self.len())
    }
}

impl Shelf {
    pub(super) fn handle(&self, op: CatalogOp) -> Option<CatalogReply> {
        let mut state = self.0.lock().unwrap();
        match op {
            CatalogOp::Record { mailbox, uid, items, .. } => {
                for (key, value) in items {
                    state.values.insert((mailbox.clone(), uid, key), value);
                }
            }
            CatalogOp::FillOpen { fill, mailbox, uid, item, octets } => {
                state.fills.insert(fill, (mailbox, uid, item, octets, Arc::new(Body(Mutex::default()))));
            }
            CatalogOp::FillData { fill, octets } => {
                state.fills[&fill].4.0.lock().unwrap().extend_from_slice(&octets);
            }
            CatalogOp::FillCommit { fill, uid, .. } => {
                let (mailbox, _, item, octets, body) = state.fills.remove(&fill).unwrap();
                let body = body.0.lock().unwrap().clone();
                assert_eq!(body.len() as u64, octets);
                state.values.insert((mailbox, uid, item), body.into());
            }
            CatalogOp::FillAbort { fill } => {
                state.fills.remove(&fill);
            }
            CatalogOp::Resolve { request, mailbox, uids, items } => {
                let held = |uid: Uid, key: &ItemKey| {
                    let value = state.values.get(&(mailbox.clone(), uid, key.clone())).cloned();
                    let filling = state.fills.values().find(|f| f.1 == Some(uid) && f.2 == *key);
                    value
                        .map(Held::Inline)
                        .or_else(|| filling.map(|f| Held::Filling { reader: f.4.clone(), octets: f.3 }))
                };
                let rows = uids
                    .iter()
                    .map(|&uid| Row { uid, values: items.iter().map(|key| held(uid, key)).collect() })
                    .collect();
                return Some(CatalogReply::Resolved { request, rows });
            }
            CatalogOp::Claim { request, session, mailbox, uid, item } => {
                let what = (mailbox, uid, item);
                let others = state.claims.iter().any(|(owner, had)| *owner != session && *had == what);
                let claim = if others {
                    Claim::Others
                } else if state.values.contains_key(&what) {
                    Claim::Held
                } else {
                    state.claims.insert(session, what);
                    Claim::Yours
                };
                return Some(CatalogReply::Claimed { request, claim });
            }
            CatalogOp::Release { session } => {
                state.claims.remove(&session);
            }
            CatalogOp::Account { .. }
            | CatalogOp::Selected { .. }
            | CatalogOp::Count { .. }
            | CatalogOp::Expunged { .. }
            | CatalogOp::Forget { .. }
            | CatalogOp::Used { .. }
            | CatalogOp::ShadowWanted { .. } => {}
        }
        None
    }
}

pub(super) struct Dialogue {
    pub(super) session: Session,
    pub(super) shelf: Shelf,
    pub(super) client: Vec<u8>,
    pub(super) server: Vec<u8>,
    pub(super) events: Vec<Event>,
    pub(super) replaced: usize,
    pub(super) closed: Option<Closing>,
    pub(super) retained: Option<Box<Facts>>,
    pub(super) clock: Instant,
}

#[expect(clippy::disallowed_methods, reason = "std has no other way to any Instant")]
pub(super) fn any_time() -> Instant {
    Instant::now()
}

pub(super) fn dialogue(shelf: &Shelf, change: impl FnOnce(&mut SessionConfig)) -> Dialogue {
    let mut config = SessionConfig {
        number: 1,
        nonce: [1, 2, 3, 4, 5, 6],
        server: ServerId::new("mail.example.org").unwrap(),
        keying: Arc::new(PlainKeys),
        road: Road::Tls,
        compress: Compress::Off,
        cache: true,
        re_proof: Duration::from_secs(300),
        chunk_fill_max: 1 << 20,
        retain: false,
    };
    change(&mut config);
    let mut dialogue = Dialogue {
        session: Session::new(config),
        shelf: shelf.clone(),
        client: Vec::new(),
        server: Vec::new(),
        events: Vec::new(),
        replaced: 0,
        closed: None,
        retained: None,
        clock: any_time(),
    };
    let now = dialogue.now();
    dialogue.session.handle_greeting(now, &Bytes::from_static(b"* OK [CAPABILITY IMAP4rev1] ready\r\n"));
    dialogue.drain();
    dialogue.hears("* OK [CAPABILITY IMAP4rev1] ready\r\n");
    dialogue
}

impl Dialogue {
    pub(super) fn now(&self) -> Now {
        Now { mono: self.clock, wall: UnixMillis(0) }
    }

    pub(super) fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::ToClient(octets) => self.client.extend_from_slice(&octets),
                Output::ToClientFrom { reader, offset, octets } => {
                    let mut buf = vec![0; usize::try_from(octets).unwrap()];
                    let n = reader.read_at(offset, &mut buf).unwrap();
                    buf.truncate(n);
                    self.client.extend_from_slice(&buf);
                }
                Output::ToServer(octets) => self.server.extend_from_slice(&octets),
                Output::Catalog(op) => {
                    if let Some(reply) = self.shelf.handle(op) {
                        self.session.handle_store(self.now(), reply);
                    }
                }
                Output::Event(event) => self.events.push(event),
                Output::Close(why) => self.closed = Some(why),
                Output::Retain(facts) => self.retained = Some(facts),
                Output::ReplaceOrigin => self.replaced += 1,
                Output::StartTls | Output::CompressServer { .. } => {}
            }
        }
    }

    pub(super) fn client(&mut self, text: &str) -> &mut Self {
        let now = self.now();
        self.session.handle_client(now, Bytes::copy_from_slice(text.as_bytes()));
        self.drain();
        self
    }

    pub(super) fn server(&mut self, text: &str) -> &mut Self {
        let now = self.now();
        self.session.handle_server(now, Bytes::copy_from_slice(text.as_bytes()));
        self.drain();
        self
    }

    /// Time passes.
    pub(super) fn later(&mut self, by: Duration) -> &mut Self {
        self.clock += by;
        let now = self.now();
        if self.session.poll_timeout().is_some_and(|due| due <= now.mono) {
            self.session.handle_timeout(now);
            self.drain();
        }
        self
    }

    /// What the client heard since the last look.
    #[track_caller]
    pub(super) fn hears(&mut self, text: &str) -> &mut Self {
        assert_eq!(String::from_utf8_lossy(&std::mem::take(&mut self.client)), text);
        self
    }

    /// What the origin heard since the last look.
    #[track_caller]
    pub(super) fn gets(&mut self, text: &str) -> &mut Self {
        assert_eq!(String::from_utf8_lossy(&std::mem::take(&mut self.server)), text);
        self
    }

    pub(super) fn log_in(&mut self, user: &str) -> &mut Self {
        let login = format!("a1 LOGIN {user} secret\r\n");
        let ok = "a1 OK [CAPABILITY IMAP4rev1 ESEARCH IDLE] in\r\n";
        self.client(&login).gets(&login).server(ok).hears(ok)
    }

    /// Three messages with UIDs 11, 12 and 13.
    pub(super) fn select(&mut self) -> &mut Self {
        self.client("a2 SELECT INBOX\r\n")
            .gets("a2 SELECT INBOX\r\nEPC0102030405061 UID SEARCH RETURN (ALL) ALL\r\n");
        let opening = "* 3 EXISTS\r\n* OK [UIDVALIDITY 7] v\r\na2 OK [READ-WRITE] open\r\n";
        self.server(opening).hears(opening);
        self.server("* ESEARCH (TAG \"EPC0102030405061\") UID ALL 11:13\r\nEPC0102030405061 OK found\r\n")
            .hears("")
    }

    /// Message 11 as fetched by a client before.
    pub(super) fn fill(&mut self) -> &mut Self {
        self.client("f UID FETCH 11 (RFC822.SIZE BODY.PEEK[])\r\n")
            .gets("f UID FETCH 11 (RFC822.SIZE BODY.PEEK[])\r\n");
        let answer = "* 1 FETCH (UID 11 RFC822.SIZE 5 BODY[] {5}\r\nhello)\r\nf OK done\r\n";
        self.server(answer).hears(answer)
    }
}

const SECOND: &str = "* 1 FETCH (UID 11 RFC822.SIZE 5 BODY[] {5}\r\nhello)\r\n";

#[test]
fn what_was_fetched_once_comes_from_the_store_the_second_time() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("b UID FETCH 11 (RFC822.SIZE BODY.PEEK[])\r\n")
        .gets("")
        .hears(&format!("{SECOND}b OK UID FETCH completed\r\n"));
    assert!(
        d.events.contains(&Event::Fetched { outcome: Outcome::Store, messages: 1, octets: 6 }),
        "{:?}",
        d.events
    );
}

#[test]
fn pieces_and_numbers_are_cut_from_the_store() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("b FETCH 1 BODY.PEEK[]<1.3>\r\n")
        .gets("")
        .hears("* 1 FETCH (UID 11 BODY[]<1> {3}\r\nell)\r\nb OK FETCH completed\r\n");
    d.client("c FETCH 1 BODY.PEEK[]<9.3>\r\n")
        .gets("")
        .hears("* 1 FETCH (UID 11 BODY[]<9> {0}\r\n)\r\nc OK FETCH completed\r\n");
}

#[test]
fn nobody_else_is_served_what_one_user_fetched() {
    let shelf = Shelf::default();
    dialogue(&shelf, |_| ()).log_in("alice").select().fill();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("bob").select();
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n").gets("b UID FETCH 11 (BODY.PEEK[])\r\n");
}

#[test]
fn nothing_is_served_of_a_message_that_the_origin_has_not_shown_to_this_session() {
    let shelf = Shelf::default();
    dialogue(&shelf, |_| ()).log_in("alice").select().fill();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice");
    d.client("a2 SELECT INBOX\r\n").server("* 1 EXISTS\r\n* OK [UIDVALIDITY 7] v\r\na2 OK open\r\n");
    d.server("EPC0102030405061 NO search is off\r\n");
    d.server.clear();
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n").gets("b UID FETCH 11 (BODY.PEEK[])\r\n");
}

#[test]
fn another_generation_of_the_mailbox_is_other_mail() {
    let shelf = Shelf::default();
    dialogue(&shelf, |_| ()).log_in("alice").select().fill();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice");
    d.client("a2 SELECT INBOX\r\n").server("* 1 EXISTS\r\n* OK [UIDVALIDITY 8] v\r\na2 OK open\r\n");
    d.server("* ESEARCH (TAG \"EPC0102030405061\") UID ALL 11\r\nEPC0102030405061 OK found\r\n");
    d.server.clear();
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n").gets("b UID FETCH 11 (BODY.PEEK[])\r\n");
}

#[test]
fn a_refused_login_leads_to_no_store() {
    let shelf = Shelf::default();
    dialogue(&shelf, |_| ()).log_in("alice").select().fill();
    let mut d = dialogue(&shelf, |_| ());
    d.client("a1 LOGIN alice wrong\r\n").server("a1 NO no\r\n").hears("a1 NO no\r\n");
    assert_eq!(d.session.account(), None);
    assert!(d.events.contains(&Event::LoginRefused));
}

#[test]
fn flags_come_from_the_origin_into_the_same_response() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("b UID FETCH 11 (UID RFC822.SIZE FLAGS BODY.PEEK[])\r\n")
        .gets("b UID FETCH 11 (FLAGS)\r\n")
        .hears("");
    d.server("* 1 FETCH (UID 11 FLAGS (\\Seen))\r\nb OK done\r\n")
        .hears("* 1 FETCH (UID 11 FLAGS (\\Seen) RFC822.SIZE 5 BODY[] {5}\r\nhello)\r\nb OK done\r\n");
}

#[test]
fn flags_that_the_origin_told_a_moment_ago_are_not_asked_again() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    let flags = "* 1 FETCH (UID 11 FLAGS (\\Seen))\r\nb OK done\r\n";
    d.client("b UID FETCH 11 (FLAGS)\r\n").gets("b UID FETCH 11 (FLAGS)\r\n").server(flags).hears(flags);
    d.client("c UID FETCH 11 (UID RFC822.SIZE FLAGS)\r\n")
        .gets("")
        .hears("* 1 FETCH (UID 11 FLAGS (\\Seen) RFC822.SIZE 5)\r\nc OK UID FETCH completed\r\n");
    d.clock += Duration::from_millis(2001);
    d.client("d UID FETCH 11 (UID RFC822.SIZE FLAGS)\r\n").gets("d UID FETCH 11 (FLAGS)\r\n");
    d.server("* 1 FETCH (UID 11 FLAGS (\\Seen))\r\nd OK done\r\n");
    // What the client changes is asked, whatever the origin says meanwhile.
    d.client("e UID FETCH 11 (FLAGS)\r\nf UID STORE 11 -FLAGS.SILENT (\\Seen)\r\n");
    d.server("* 1 FETCH (UID 11 FLAGS (\\Seen))\r\ne OK done\r\nf OK done\r\n");
    d.server.clear();
    d.client("g UID FETCH 11 (UID RFC822.SIZE FLAGS)\r\n").gets("g UID FETCH 11 (FLAGS)\r\n");
}

#[test]
fn what_is_held_and_what_is_not_are_answered_together() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("b UID FETCH 11:12 (RFC822.SIZE BODY.PEEK[])\r\n")
        .gets("b UID FETCH 12 (RFC822.SIZE BODY.PEEK[])\r\n");
    d.hears(SECOND);
    let rest = "* 2 FETCH (UID 12 RFC822.SIZE 2 BODY[] {2}\r\nhi)\r\nb OK done\r\n";
    d.server(rest).hears(rest);
}

#[test]
fn seen_is_honest() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("b UID FETCH 11 (BODY[])\r\n").gets("EPC0102030405062 UID STORE 11 +FLAGS (\\Seen)\r\n");
    d.hears("* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\n");
    d.server("* 1 FETCH (UID 11 FLAGS (\\Seen))\r\n").hears("* 1 FETCH (UID 11 FLAGS (\\Seen))\r\n");
    d.server("EPC0102030405062 OK stored\r\n").hears("b OK UID FETCH completed\r\n");
    // Now that it is known to be seen, nothing is asked.
    d.client("c UID FETCH 11 (BODY[])\r\n")
        .gets("")
        .hears("* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\nc OK UID FETCH completed\r\n");
    // The client takes it away without the origin saying so.
    d.client("d UID STORE 11 -FLAGS.SILENT (\\Seen)\r\n").server("d OK stored\r\n");
    d.server.clear();
    d.client("e UID FETCH 11 (BODY[])\r\n").gets("EPC0102030405063 UID STORE 11 +FLAGS (\\Seen)\r\n");
}

#[test]
fn answers_keep_the_order_of_the_questions() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("b UID FETCH 12 (BODY.PEEK[])\r\nc UID FETCH 11 (BODY.PEEK[])\r\nd NOOP\r\n");
    d.gets("b UID FETCH 12 (BODY.PEEK[])\r\nd NOOP\r\n").hears("");
    let second = "* 2 FETCH (UID 12 BODY[] {2}\r\nhi)\r\n";
    d.server(second).hears(second);
    d.server("b OK done\r\n")
        .hears("b OK done\r\n* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\nc OK UID FETCH completed\r\n");
    d.server("d OK done\r\n").hears("d OK done\r\n");
}

#[test]
fn nothing_is_said_in_the_middle_of_a_response() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client(
        "b UID FETCH 12 (BODY.PEEK[])\r\nc UID FETCH 11 (BODY.PEEK[])\r\nd UID FETCH 13 (BODY.PEEK[])\r\n",
    );
    // The end of one answer and the beginning of another come together; one from the store lies between them.
    d.server("* 2 FETCH (UID 12 BODY[] {2}\r\nhi)\r\nb OK done\r\n* 3 FETCH (UID 13 BODY[] {4}\r\nwo").hears(
        "* 2 FETCH (UID 12 BODY[] {2}\r\nhi)\r\nb OK done\r\n\
         * 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\nc OK UID FETCH completed\r\n\
         * 3 FETCH (UID 13 BODY[] {4}\r\nwo",
    );
    // Nor does a command that comes meanwhile.
    d.client("e UID FETCH 11 (BODY.PEEK[])\r\nf COMPRESS DEFLATE\r\n\r\n").hears("");
    d.server("rd)\r\nd OK done\r\n").hears(
        "rd)\r\nd OK done\r\n* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\ne OK UID FETCH completed\r\n\
         f NO [CANNOT] Compression is not offered here\r\n* BAD A command begins with a tag and a name\r\n",
    );
}

#[test]
fn what_nobody_asked_for_is_not_cut_in_two() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.server("* 2 FETCH (UID 12 BODY[] {4}\r\nwo").hears("* 2 FETCH (UID 12 BODY[] {4}\r\nwo");
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n").hears("");
    d.server("rd)\r\n")
        .hears("rd)\r\n* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\nb OK UID FETCH completed\r\n");
}

#[test]
fn done_is_answered_at_once_and_the_next_command_follows_it() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("i IDLE\r\n").gets("i IDLE\r\n").server("+ idling\r\n").hears("+ idling\r\n");
    d.server("* 4 EXISTS\r\n").hears("* 4 EXISTS\r\n");
    d.client("DONE\r\n").gets("DONE\r\n").hears("i OK Idle completed\r\n");
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n")
        .gets("")
        .hears("* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\nb OK UID FETCH completed\r\n");
    // Between commands nobody hears EXPUNGE.
    d.server("* 1 EXPUNGE\r\ni OK done\r\n").hears("");
    d.client("n NOOP\r\n").gets("n NOOP\r\n").hears("* 1 EXPUNGE\r\n").server("n OK\r\n").hears("n OK\r\n");
}

#[test]
fn an_expunged_message_is_not_served() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("n NOOP\r\n").server("* 1 EXPUNGE\r\nn OK\r\n").hears("* 1 EXPUNGE\r\nn OK\r\n");
    d.server.clear();
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n").gets("b UID FETCH 11 (BODY.PEEK[])\r\n");
}

#[test]
fn numbers_are_translated_while_an_expunge_waits() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    // The client's FETCH by number becomes one by UID, during which the origin may tell EXPUNGE; the client may not
    // hear it now.
    d.client("b FETCH 1 (FLAGS BODY.PEEK[])\r\n").gets("b UID FETCH 11 (FLAGS)\r\n");
    d.server("* 2 EXPUNGE\r\n* 1 FETCH (UID 11 FLAGS ())\r\nb OK done\r\n")
        .hears("* 1 FETCH (UID 11 FLAGS () BODY[] {5}\r\nhello)\r\nb OK done\r\n");
    // Message 3 of the client is message 2 of the origin.
    d.client("c FETCH 3 (FLAGS)\r\n").gets("c FETCH 2 (FLAGS)\r\n");
    d.server("* 2 FETCH (FLAGS (\\Draft))\r\nc OK\r\n").hears("* 3 FETCH (FLAGS (\\Draft))\r\nc OK\r\n");
    d.client("d SEARCH 3\r\n")
        .gets("d SEARCH 2\r\n")
        .server("* SEARCH 2\r\nd OK\r\n")
        .hears("* SEARCH 3\r\nd OK\r\n");
    d.client("e STORE 2 +FLAGS (\\Seen)\r\n")
        .gets("")
        .hears("e NO [EXPUNGEISSUED] Some of these messages were expunged; say NOOP\r\n");
    d.client("n NOOP\r\n").hears("* 2 EXPUNGE\r\n").server("n OK\r\n").hears("n OK\r\n");
}

#[test]
fn numbers_that_wait_are_the_ones_that_the_client_has() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select();
    d.client("i IDLE\r\n").server("+ idling\r\n").client("DONE\r\n");
    d.server.clear();
    d.client.clear();
    d.client("m MOVE 3 Trash\r\nu UID SEARCH 3 UNSEEN\r\n").gets("");
    // It hears of it during the MOVE, for which its numbers were read before.
    d.server("* 2 EXPUNGE\r\ni OK done\r\n")
        .gets("m MOVE 2 Trash\r\nu UID SEARCH 2 UNSEEN\r\n")
        .hears("* 2 EXPUNGE\r\n");
}

#[test]
fn proof_is_as_old_as_the_question() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.client("a1 LOGIN alice secret\r\n").server("a1 OK [CAPABILITY IMAP4rev1 ESEARCH ACL] in\r\n");
    d.client("a2 SELECT INBOX\r\n");
    d.clock += Duration::from_secs(301);
    d.server("* 1 EXISTS\r\n* OK [UIDVALIDITY 7] v\r\na2 OK [READ-WRITE] open\r\n");
    d.server("* ESEARCH (TAG \"EPC0102030405061\") UID ALL 11\r\nEPC0102030405061 OK found\r\n");
    d.server.clear();
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n").gets("EPC0102030405062 MYRIGHTS INBOX\r\n");
}

#[test]
fn a_piece_of_a_large_message_brings_all_of_it() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select();
    d.client("s UID FETCH 12 (RFC822.SIZE)\r\n").server("* 2 FETCH (UID 12 RFC822.SIZE 10)\r\ns OK\r\n");
    d.server.clear();
    d.client.clear();
    d.client("b UID FETCH 12 (BODY.PEEK[]<0.4>)\r\n").gets("EPC0102030405062 UID FETCH 12 (BODY.PEEK[])\r\n");
    d.server("* 2 FETCH (UID 12 BODY[] {10}\r\n01234")
        .hears("* 2 FETCH (UID 12 BODY[]<0> {4}\r\n0123)\r\nb OK UID FETCH completed\r\n");
    d.server("56789)\r\nEPC0102030405062 OK done\r\n").hears("");
    d.client("c UID FETCH 12 (BODY.PEEK[]<4.100>)\r\n")
        .gets("")
        .hears("* 2 FETCH (UID 12 BODY[]<4> {6}\r\n456789)\r\nc OK UID FETCH completed\r\n");
}

#[test]
fn a_piece_of_a_large_part_brings_all_of_the_part() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select();
    d.client("s UID FETCH 12 (RFC822.SIZE)\r\n").server("* 2 FETCH (UID 12 RFC822.SIZE 1000000)\r\ns OK\r\n");
    d.server.clear();
    d.client.clear();
    d.client("b UID FETCH 12 (UID BODY.PEEK[2]<0.65536>)\r\n")
        .gets("EPC0102030405062 UID FETCH 12 (BODY.PEEK[2])\r\n");
    // Small enough to be told from memory, once it is complete.
    d.server("* 2 FETCH (UID 12 BODY[2] {3}\r\nabc)\r\nEPC0102030405062 OK\r\n")
        .hears("* 2 FETCH (UID 12 BODY[2]<0> {3}\r\nabc)\r\nb OK UID FETCH completed\r\n");
}

#[test]
fn a_preview_of_a_large_message_does_not_bring_all_of_it() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select();
    d.client("s UID FETCH 12 (RFC822.SIZE)\r\n").server("* 2 FETCH (UID 12 RFC822.SIZE 1000000)\r\ns OK\r\n");
    d.server.clear();
    d.client("b UID FETCH 12 (BODY.PEEK[]<0.2048>)\r\n").gets("b UID FETCH 12 (BODY.PEEK[]<0.2048>)\r\n");
}

#[test]
fn the_first_piece_of_an_unread_message_costs_one_flight() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select();
    d.client("s UID FETCH 12 (RFC822.SIZE)\r\n").server("* 2 FETCH (UID 12 RFC822.SIZE 10)\r\ns OK\r\n");
    d.server.clear();
    d.client.clear();
    d.client("b UID FETCH 12 (BODY[]<0.4>)\r\n").gets(
        "EPC0102030405062 UID STORE 12 +FLAGS (\\Seen)\r\nEPC0102030405063 UID FETCH 12 (BODY.PEEK[])\r\n",
    );
    d.server("* 2 FETCH (UID 12 FLAGS (\\Seen))\r\nEPC0102030405062 OK\r\n* 2 FETCH (UID 12 BODY[] {10}\r\n0123")
        .hears("* 2 FETCH (UID 12 FLAGS (\\Seen))\r\n* 2 FETCH (UID 12 BODY[]<0> {4}\r\n0123)\r\nb OK UID FETCH completed\r\n")
        .gets("");
}

#[test]
fn rights_are_asked_again_before_old_proof_serves() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    let ok = "a1 OK [CAPABILITY IMAP4rev1 ESEARCH ACL] in\r\n";
    d.client("a1 LOGIN alice secret\r\n").server(ok).hears(ok);
    d.server.clear();
    d.select().fill();
    d.clock += Duration::from_secs(301);
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n").gets("EPC0102030405062 MYRIGHTS INBOX\r\n").hears("");
    d.server("* MYRIGHTS INBOX lrs\r\nEPC0102030405062 OK\r\n")
        .gets("")
        .hears("* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\nb OK UID FETCH completed\r\n");
    d.clock += Duration::from_secs(301);
    d.client("c UID FETCH 11 (BODY.PEEK[])\r\n").gets("EPC0102030405063 MYRIGHTS INBOX\r\n");
    d.server("EPC0102030405063 NO Mailbox does not exist\r\n").gets("c UID FETCH 11 (BODY.PEEK[])\r\n");
}

#[test]
fn nothing_may_wait_behind_starttls() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |c| c.road = Road::Tls);
    d.client("s STARTTLS\r\n").gets("").hears("s BAD TLS is already active, or not offered here\r\n");
    let mut session = Session::new(SessionConfig { road: Road::StartTlsRequired, ..config() });
    let now = Now { mono: any_time(), wall: UnixMillis(0) };
    session.handle_greeting(now, &Bytes::from_static(b"* OK ready\r\n"));
    session.handle_client(now, Bytes::from_static(b"l LOGIN a b\r\ns STARTTLS\r\nx NOOP\r\n"));
    let said: Vec<String> = std::iter::from_fn(|| session.poll_output()).map(|o| format!("{o:?}")).collect();
    assert!(said.iter().any(|o| o.contains("PRIVACYREQUIRED")), "{said:?}");
    assert!(!said.iter().any(|o| o.contains("ToServer")), "{said:?}");
    assert_eq!(said.last().map(String::as_str), Some("Close(StartTlsSurplus)"));
}

fn config() -> SessionConfig {
    SessionConfig {
        number: 1,
        nonce: [0; 6],
        server: ServerId::new("s").unwrap(),
        keying: Arc::new(PlainKeys),
        road: Road::Tls,
        compress: Compress::Off,
        cache: true,
        re_proof: Duration::from_secs(300),
        chunk_fill_max: 0,
        retain: false,
    }
}

#[test]
fn compression_is_asked_behind_the_login_and_never_of_the_client() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |c| c.compress = Compress::WhenOffered);
    d.client("c COMPRESS DEFLATE\r\n").gets("").hears("c NO [CANNOT] Compression is not offered here\r\n");
    d.client("a LOGIN alice secret\r\n").gets("a LOGIN alice secret\r\n");
    d.server("a OK [CAPABILITY IMAP4rev1 COMPRESS=DEFLATE] in\r\n")
        .hears("a OK [CAPABILITY IMAP4rev1] in\r\n");
    d.client("n NOOP\r\n").gets("EPC0102030405061 COMPRESS DEFLATE\r\n");
    d.server("EPC0102030405061 OK go\r\n").hears("").gets("n NOOP\r\n");
    assert!(d.events.contains(&Event::Compressing));
}

#[test]
fn a_known_server_is_asked_for_compression_together_with_the_login() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |c| c.compress = Compress::Known);
    d.client("a LOGIN alice wrong\r\n").gets("a LOGIN alice wrong\r\nEPC0102030405061 COMPRESS DEFLATE\r\n");
    d.server("a NO no\r\nEPC0102030405061 BAD first log in\r\n").hears("a NO no\r\n");
    // The second time it is asked only when the login is good.
    d.client("b AUTHENTICATE PLAIN AGEAYg==\r\n").gets("b AUTHENTICATE PLAIN AGEAYg==\r\n");
    d.server("b OK [CAPABILITY COMPRESS=DEFLATE] in\r\n").gets("EPC0102030405062 COMPRESS DEFLATE\r\n");
}

#[test]
fn a_session_that_cannot_be_followed_passes_untouched() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("q ENABLE QRESYNC\r\n").gets("q ENABLE QRESYNC\r\n").server("* ENABLED QRESYNC\r\nq OK\r\n");
    d.hears("* ENABLED QRESYNC\r\nq OK\r\n");
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n").gets("b UID FETCH 11 (BODY.PEEK[])\r\n");
    assert_eq!(d.session.state_word(), "tunnel");
}

#[test]
fn a_server_that_contradicts_itself_ends_trust() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("b NOOP\r\n").server("* 1 EXISTS\r\n");
    assert!(d.events.iter().any(|e| matches!(e, Event::Desync(_))), "{:?}", d.events);
    d.server("b OK\r\n").hears("* 1 EXISTS\r\nb OK\r\n");
    d.server.clear();
    d.client("c UID FETCH 11 (BODY.PEEK[])\r\n").gets("c UID FETCH 11 (BODY.PEEK[])\r\n");
}

#[test]
fn the_end_of_the_origin_is_the_end_of_the_session() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select();
    let now = d.now();
    d.session.handle_closed(now, Side::Server);
    d.drain();
    assert_eq!(d.closed, Some(Closing::OriginLost));
}

#[test]
fn a_client_that_has_said_all_hears_the_answers() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    d.client("b UID FETCH 12 (BODY.PEEK[])\r\nc LOGOUT\r\n");
    let now = d.now();
    d.session.handle_client_finished(now);
    d.drain();
    assert_eq!(d.closed, None);
    let answers = "* 2 FETCH (UID 12 BODY[] {2}\r\nhi)\r\nb OK done\r\n* BYE\r\nc OK bye\r\n";
    d.server(answers).hears(answers);
    assert_eq!(d.closed, Some(Closing::Done));
}

#[test]
fn a_client_that_leaves_in_idle_has_left() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select();
    d.client("i IDLE\r\n").server("+ idling\r\n");
    let now = d.now();
    d.session.handle_client_finished(now);
    d.drain();
    assert_eq!(d.closed, Some(Closing::Done));
}

#[test]
fn login_by_literals_is_known_too() {
    let shelf = Shelf::default();
    dialogue(&shelf, |_| ()).log_in("alice").select().fill();
    let mut d = dialogue(&shelf, |_| ());
    d.client("a1 LOGIN {5}\r\n").gets("a1 LOGIN {5}\r\n").server("+ go\r\n").hears("+ go\r\n");
    d.client("alice {6}\r\n").server("+ go\r\n").client("secret\r\n").gets("alice {6}\r\nsecret\r\n");
    d.hears("+ go\r\n");
    d.server("a1 OK [CAPABILITY IMAP4rev1 ESEARCH] in\r\n")
        .hears("a1 OK [CAPABILITY IMAP4rev1 ESEARCH] in\r\n");
    d.select();
    d.client("b UID FETCH 11 (BODY.PEEK[])\r\n")
        .gets("")
        .hears("* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\nb OK UID FETCH completed\r\n");
}

fn greeted_with_sasl_ir(shelf: &Shelf) -> Dialogue {
    let mut d = dialogue(shelf, |_| ());
    d.session.origin_was_parked();
    let caps = "* CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=XOAUTH2 AUTH=LOGIN\r\n";
    d.session.learn_capabilities(caps.as_bytes());
    d
}

/// `\0alice\0secret`
const ALICE: &str = "AGFsaWNlAHNlY3JldA==";

#[test]
fn a_known_prompt_costs_no_round_trip() {
    let shelf = Shelf::default();
    let mut d = greeted_with_sasl_ir(&shelf);
    d.client("a1 authenticate plain\r\n").gets("").hears("+ \r\n");
    let together = format!("a1 authenticate plain {ALICE}\r\n");
    d.client(&format!("{ALICE}\r\n")).gets(&together).hears("");
    let ok = "a1 OK [CAPABILITY IMAP4rev1 ESEARCH] in\r\n";
    d.server(ok).hears(ok);
    assert!(d.session.account().is_some());
    d.client("a2 NOOP\r\n").gets("a2 NOOP\r\n");
}

#[test]
fn what_is_no_single_message_goes_the_long_way() {
    let long = "QUFB".repeat(800);
    for (line, answer) in [
        ("*", "a1 BAD aborted\r\n"),
        ("", "a1 NO no\r\n"),
        ("!!", "a1 BAD no base64\r\n"),
        ("AGFsaWNl", "a1 NO no\r\n"),
        (long.as_str(), "a1 NO no\r\n"),
    ] {
        let mut d = greeted_with_sasl_ir(&Shelf::default());
        d.client("a1 AUTHENTICATE PLAIN\r\n").gets("").hears("+ \r\n");
        d.client(&format!("{line}\r\n")).gets("a1 AUTHENTICATE PLAIN\r\n").hears("");
        // The client has answered that prompt.
        d.server("+ \r\n").gets(&format!("{line}\r\n")).hears("");
        d.server(answer).hears(answer).gets("");
        d.client("a2 NOOP\r\n").gets("a2 NOOP\r\n");
    }
}

#[test]
fn a_prompt_that_is_not_known_is_the_origins() {
    let shelf = Shelf::default();
    for login in
        ["a1 AUTHENTICATE LOGIN\r\n", "a1 AUTHENTICATE SCRAM-SHA-1\r\n", "a1 AUTHENTICATE OAUTHBEARER\r\n"]
    {
        greeted_with_sasl_ir(&shelf).client(login).gets(login).hears("");
    }
    let mut without = dialogue(&shelf, |_| ());
    without.client("a1 AUTHENTICATE PLAIN\r\n").gets("a1 AUTHENTICATE PLAIN\r\n").hears("");
}

#[test]
fn a_challenge_behind_the_first_message_is_told() {
    let mut d = greeted_with_sasl_ir(&Shelf::default());
    d.client("a1 AUTHENTICATE XOAUTH2\r\n").hears("+ \r\n");
    // `user=a@b^Aauth=Bearer x^A^A`
    let token = "dXNlcj1hQGIBYXV0aD1CZWFyZXIgeAEB";
    d.client(&format!("{token}\r\n")).gets(&format!("a1 AUTHENTICATE XOAUTH2 {token}\r\n"));
    d.server("+ eyJzdGF0dXMiOiI0MDEifQ==\r\n").hears("+ eyJzdGF0dXMiOiI0MDEifQ==\r\n");
    d.client("\r\n").gets("\r\n");
    d.server("a1 NO no\r\n").hears("a1 NO no\r\n");
}

#[test]
fn an_origin_that_ended_before_anything_was_asked_is_replaced() {
    for bye in [true, false] {
        let mut d = greeted_with_sasl_ir(&Shelf::default());
        d.client("a1 AUTHENTICATE PLAIN\r\n").hears("+ \r\n");
        if bye {
            d.server("* BYE Disconnected for inactivity.\r\n* BYE and more");
        } else {
            let now = d.now();
            d.session.handle_closed(now, Side::Server);
            d.drain();
        }
        assert_eq!(d.replaced, 1);
        d.client(&format!("{ALICE}\r\n")).hears("").gets("");
        let now = d.now();
        // It does not take both in one line, so it is asked step by step.
        d.session.handle_replacement(now, &Bytes::from_static(b"* OK [CAPABILITY IMAP4rev1] again\r\n"));
        d.drain();
        d.gets("a1 AUTHENTICATE PLAIN\r\n").server("+ \r\n").gets(&format!("{ALICE}\r\n"));
        d.server("a1 OK in\r\n").hears("a1 OK in\r\n");
    }
}

#[test]
fn an_origin_that_ends_after_it_was_asked_is_lost() {
    let mut d = greeted_with_sasl_ir(&Shelf::default());
    d.client("a1 LOGIN alice secret\r\n").gets("a1 LOGIN alice secret\r\n");
    let now = d.now();
    d.session.handle_closed(now, Side::Server);
    d.drain();
    assert_eq!((d.replaced, d.closed), (0, Some(Closing::OriginLost)));
    d.hears("* BYE Waypost: the connection to the mail server was lost\r\n").gets("");
}

#[test]
fn only_a_parked_origin_is_replaced_and_only_once() {
    let mut d = dialogue(&Shelf::default(), |_| ());
    let now = d.now();
    d.session.handle_closed(now, Side::Server);
    d.drain();
    assert_eq!((d.replaced, d.closed), (0, Some(Closing::OriginLost)));
    let mut d = greeted_with_sasl_ir(&Shelf::default());
    d.session.handle_closed(now, Side::Server);
    d.session.handle_replacement(now, &Bytes::from_static(b"* OK again\r\n"));
    d.server("* BYE no\r\n").hears("* BYE no\r\n");
    assert_eq!(d.replaced, 1);
}

#[test]
fn flags_told_before_a_silent_store_are_asked_again() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select().fill();
    let flags = "* 1 FETCH (UID 11 FLAGS ())\r\nb OK done\r\n";
    d.client("b UID FETCH 11 (FLAGS)\r\n").gets("b UID FETCH 11 (FLAGS)\r\n").server(flags).hears(flags);
    let store = "c UID STORE 11 +FLAGS.SILENT (\\Seen)\r\n";
    d.client(store).gets(store).server("c OK done\r\n").hears("c OK done\r\n");
    d.client("d UID FETCH 11 (FLAGS BODY.PEEK[])\r\n").gets("d UID FETCH 11 (FLAGS)\r\n");
}

#[test]
fn the_clients_address_is_told_before_its_first_words() {
    let mut d = greeted_with_sasl_ir(&Shelf::default());
    d.session.learn_capabilities(b"* CAPABILITY IMAP4rev1 ID\r\n");
    d.session.announce_client("[::ffff:192.0.2.7]:4000".parse().unwrap());
    let ours = "EPC0102030405061 ID (\"x-originating-ip\" \"192.0.2.7\" \"x-originating-port\" \"4000\")\r\n";
    d.client("a1 ID NIL\r\n").gets(&format!("{ours}a1 ID NIL\r\n"));
    d.server("* ID (\"name\" \"D\")\r\nEPC0102030405061 OK\r\n").hears("");
    d.server("* ID (\"name\" \"D\")\r\na1 OK\r\n").hears("* ID (\"name\" \"D\")\r\na1 OK\r\n");
    d.client("a2 LOGIN alice secret\r\n").gets("a2 LOGIN alice secret\r\n");
}

const MOMENT: Duration = Duration::from_millis(60);

/// Two sessions of alice, the first of which fetches message 11 at this moment.
fn two_that_want_the_same() -> (Dialogue, Dialogue) {
    let shelf = Shelf::default();
    let mut first = dialogue(&shelf, |_| ());
    let mut second = dialogue(&shelf, |config| config.number = 2);
    first
        .log_in("alice")
        .select()
        .client("f UID FETCH 11 BODY.PEEK[]\r\n")
        .gets("f UID FETCH 11 BODY.PEEK[]\r\n");
    second.log_in("alice").select().client("s UID FETCH 11 BODY.PEEK[]\r\n").gets("");
    (first, second)
}

#[test]
fn what_another_session_fetches_is_waited_for() {
    let (mut first, mut second) = two_that_want_the_same();
    first.server("* 1 FETCH (UID 11 BODY[] {5}\r\nhel");
    second.later(MOMENT).gets("").hears("");
    first.server("lo)\r\nf OK done\r\n");
    second
        .later(MOMENT)
        .gets("")
        .hears("* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\ns OK UID FETCH completed\r\n");
    assert!(first.shelf.0.lock().unwrap().claims.is_empty());
}

#[test]
fn what_another_session_did_not_get_is_fetched() {
    for ending in ["answered", "gone"] {
        let (mut first, mut second) = two_that_want_the_same();
        if ending == "answered" {
            first.server("f NO not now\r\n");
        } else {
            let now = first.now();
            first.session.handle_closed(now, Side::Client);
            first.drain();
        }
        second.later(MOMENT).gets("s UID FETCH 11 BODY.PEEK[]\r\n");
        let answer = "* 1 FETCH (UID 11 BODY[] {5}\r\nhello)\r\ns OK done\r\n";
        second.server(answer).hears(answer);
        assert!(second.shelf.0.lock().unwrap().claims.is_empty());
    }
}

#[test]
fn nobody_waits_for_ever_for_another_session() {
    let (_first, mut second) = two_that_want_the_same();
    let mut rounds = 0;
    while second.server.is_empty() && rounds < 1000 {
        second.later(MOMENT);
        rounds += 1;
    }
    second.gets("s UID FETCH 11 BODY.PEEK[]\r\n");
    assert!((300..400).contains(&rounds), "{rounds} looks of 60 ms are not about 20 s");
}

#[test]
fn a_preview_waits_for_nobody() {
    let (_first, mut second) = two_that_want_the_same();
    let mut third = dialogue(&second.shelf, |config| config.number = 3);
    third.log_in("alice").select();
    third.client("t UID FETCH 11 BODY.PEEK[]<0.100>\r\n").gets("t UID FETCH 11 BODY.PEEK[]<0.100>\r\n");
    // Nor another user.
    let mut bob = dialogue(&second.shelf, |config| config.number = 4);
    bob.log_in("bob").select();
    bob.client("b UID FETCH 11 BODY.PEEK[]\r\n").gets("b UID FETCH 11 BODY.PEEK[]\r\n");
    second.later(MOMENT).gets("");
}

#[test]
fn behind_the_first_piece_of_a_message_of_unknown_size_its_size_is_asked() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select();
    d.client("b UID FETCH 12 BODY.PEEK[]<0.65536>\r\n")
        .gets("b UID FETCH 12 BODY.PEEK[]<0.65536>\r\nEPC0102030405062 UID FETCH 12 (RFC822.SIZE)\r\n");
    let first = format!("* 2 FETCH (UID 12 BODY[]<0> {{65536}}\r\n{})\r\nb OK done\r\n", "x".repeat(65_536));
    d.server(&first).hears(&first);
    // Before it is known, the second piece waits: an answer to it could be taken for the size's.
    d.client("c UID FETCH 12 BODY.PEEK[]<65536.65536>\r\n").gets("");
    d.server("* 2 FETCH (UID 12 RFC822.SIZE 100000)\r\nEPC0102030405062 OK done\r\n")
        .hears("")
        .gets("EPC0102030405063 UID FETCH 12 (BODY.PEEK[])\r\n");
    d.server(&format!("* 2 FETCH (UID 12 BODY[] {{100000}}\r\n{}", "y".repeat(100_000)));
    let second = format!("* 2 FETCH (UID 12 BODY[]<65536> {{34464}}\r\n{})\r\n", "y".repeat(34_464));
    d.hears(&format!("{second}c OK UID FETCH completed\r\n"));
}

#[test]
fn a_message_that_is_too_large_is_read_in_the_pieces_that_are_asked() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select();
    d.client("b UID FETCH 12 BODY.PEEK[]<0.65536>\r\n")
        .server("* 2 FETCH (UID 12 BODY[]<0> {1}\r\nx)\r\nb OK done\r\n");
    d.server("* 2 FETCH (UID 12 RFC822.SIZE 200000000)\r\nEPC0102030405062 OK done\r\n");
    d.server.clear();
    d.client("c UID FETCH 12 BODY.PEEK[]<65536.65536>\r\n")
        .gets("c UID FETCH 12 BODY.PEEK[]<65536.65536>\r\n");
}

fn leaving(shelf: &Shelf) -> Dialogue {
    let mut d = dialogue(shelf, |c| c.retain = true);
    d.log_in("alice").select();
    d.server.clear();
    d.client.clear();
    d
}

#[test]
fn a_logout_is_answered_here_and_the_connection_handed_over() {
    let mut d = leaving(&Shelf::default());
    d.client("z LOGOUT\r\n").gets("").hears("* BYE Logging out\r\nz OK Logout completed\r\n");
    let facts = d.retained.take().expect("handed over");
    let mailbox = facts.mailbox.expect("a mailbox was open");
    assert_eq!(mailbox.written, "INBOX");
    assert!(mailbox.uids.is_some_and(|uids| !uids.is_empty()));
    assert_eq!((facts.idle, facts.token, d.closed), (None, false, None));
}

#[test]
fn a_logout_behind_a_question_waits_for_its_answer() {
    let mut d = leaving(&Shelf::default());
    d.client("b NOOP\r\nz LOGOUT\r\n").gets("b NOOP\r\n").hears("");
    assert!(d.retained.is_none());
    d.server("b OK\r\n").hears("b OK\r\n* BYE Logging out\r\nz OK Logout completed\r\n");
    assert!(d.retained.is_some());
}

#[test]
fn a_client_that_closes_in_idle_leaves_the_idle_to_be_ended() {
    let mut d = leaving(&Shelf::default());
    d.client("i IDLE\r\n").server("+ idling\r\n");
    let now = d.now();
    d.session.handle_client_finished(now);
    d.drain();
    assert_eq!(d.retained.take().expect("handed over").idle.as_deref(), Some(&b"i"[..]));
}

#[test]
fn nothing_is_kept_of_a_client_that_left_in_the_middle() {
    for half in ["z LOGO", "z APPEND INBOX {5}\r\nab", "b NOOP\r\n"] {
        let mut d = leaving(&Shelf::default());
        d.client(half);
        let now = d.now();
        d.session.handle_closed(now, Side::Client);
        d.drain();
        assert!(d.retained.is_none(), "{half}");
        assert_eq!(d.closed, Some(Closing::Done), "{half}");
    }
}

#[test]
fn nothing_is_kept_without_a_login_or_the_operators_leave() {
    let shelf = Shelf::default();
    let mut d = dialogue(&shelf, |c| c.retain = true);
    d.client("z LOGOUT\r\n").gets("z LOGOUT\r\n");
    let mut d = dialogue(&shelf, |_| ());
    d.log_in("alice").select();
    d.server.clear();
    d.client("z LOGOUT\r\n").gets("z LOGOUT\r\n");
    assert!(d.retained.is_none());
}

#[test]
fn a_server_that_has_too_many_connections_is_understood() {
    let shelf = Shelf::default();
    for (line, limited) in [
        ("a NO [LIMIT] no more\r\n", true),
        ("a NO [UNAVAILABLE] Maximum number of connections from user+IP exceeded\r\n", true),
        ("a NO Too many open connections (4 of 6 from sp [10.0.0.1], 3 of 3 for carol)\r\n", true),
        ("a NO [AUTHENTICATIONFAILED] no\r\n", false),
        ("a NO Too many failed logins, maximum is 3\r\n", false),
    ] {
        let mut d = dialogue(&shelf, |_| ());
        d.client("a LOGIN alice wrong\r\n").server(line);
        let said = |e: &Event| matches!(e, Event::LoginRefusedFor { limited: l, .. } if *l == limited);
        assert!(d.events.iter().any(said), "{line}: {:?}", d.events);
    }
}
