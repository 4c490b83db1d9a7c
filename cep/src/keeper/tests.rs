//! The keeper against a scripted origin.

use super::*;
use crate::plain::Plain;
use discovery_core::{
    id::{AccountKey, ServerId, UserKey},
    now::UnixMillis,
};
use imap_core::{
    capability::Capabilities,
    catalog::{Held as Value, MailboxKey, Row},
    item::ItemKey,
    preload::{DESCRIBING, describing_fields, describing_items},
    retained::Watched,
};

#[expect(clippy::disallowed_methods, reason = "std has no other way to any Instant")]
fn any_time() -> Instant {
    Instant::now()
}

struct Dialogue {
    keeper: Keeper,
    now: Now,
    said: String,
    told: Vec<String>,
    store: BTreeMap<(u32, String), Bytes>,
    window: Option<u32>,
    ended: Option<Why>,
}

fn facts(capabilities: &[u8]) -> Facts {
    let now = Now { mono: any_time(), wall: UnixMillis(0) };
    let account = AccountKey {
        server: ServerId::new("mail.example.org").unwrap(),
        user: UserKey { version: 1, hash: [1; 16] },
    };
    let key = MailboxKey {
        account: account.clone(),
        name: Bytes::from_static(b"INBOX"),
        uid_validity: UidValidity::new(7).unwrap(),
        utf8: false,
    };
    Facts {
        number: 1,
        last_fill: 3,
        nonce: [0; 6],
        account,
        authenticated: now,
        token: false,
        capabilities: Capabilities::from_list(capabilities),
        utf8: false,
        mailbox: Some(Watched {
            key,
            written: Bytes::from_static(b"INBOX"),
            uids: Some(UidRanges::of([1, 2, 3])),
        }),
        idle: None,
    }
}

fn dialogue(facts: Facts) -> Dialogue {
    ordered(facts, Box::new(Plain::default()))
}

fn ordered(facts: Facts, preload: Box<dyn Preload>) -> Dialogue {
    let now = facts.authenticated;
    let keeper = Keeper::new(facts, Limits::default(), preload, now);
    let (said, told, store) = (String::new(), Vec::new(), BTreeMap::new());
    let mut d = Dialogue { keeper, now, said, told, store, window: None, ended: None };
    d.drain();
    d
}

impl Dialogue {
    fn drain(&mut self) {
        while let Some(output) = self.keeper.poll_output() {
            match output {
                Output::ToServer(octets) => {
                    self.said.push_str(&String::from_utf8_lossy(&octets).replace("CEP000000000000", "t"));
                    self.said = self.said.replace(DESCRIBING, "D");
                }
                Output::Catalog(op) => {
                    self.answer(&op);
                    let op = format!("{op:?}");
                    self.told.push(op.split([' ', '{']).next().unwrap_or_default().to_owned());
                }
                Output::Window(octets) => self.window = Some(octets),
                Output::Ended(why) => self.ended = Some(why),
            }
        }
    }

    /// As a store that has what is in `store` answers.
    fn answer(&mut self, op: &CatalogOp) {
        if let CatalogOp::Resolve { request, uids, items, .. } = op {
            let value = |uid, key: &ItemKey| self.store.get(&(uid, key.as_str().to_owned())).cloned();
            let row = |uid: &Uid| Row {
                uid: *uid,
                values: items.iter().map(|key| value(uid.get(), key).map(Value::Inline)).collect(),
            };
            let rows = uids.iter().map(row).collect();
            self.keeper.handle_store(self.now, CatalogReply::Resolved { request: *request, rows });
        }
    }

    fn server(&mut self, text: &str) -> &mut Self {
        let text = text.replace("\n", "\r\n").replace("<t", "CEP000000000000");
        self.keeper.handle_server(self.now, text.into());
        self.drain();
        self
    }

    fn after(&mut self, time: Duration) -> &mut Self {
        self.now.mono += time;
        self.keeper.handle_timeout(self.now);
        self.drain();
        self
    }

    #[track_caller]
    fn says(&mut self, text: &str) -> &mut Self {
        assert_eq!(std::mem::take(&mut self.said), text.replace('\n', "\r\n"));
        self
    }

    #[track_caller]
    fn tells(&mut self, ops: &[&str]) -> &mut Self {
        assert_eq!(std::mem::take(&mut self.told), ops);
        self
    }
}

const OPENED: &str = "* 3 EXISTS\n* OK [UIDVALIDITY 7] v\n<t1 OK [READ-ONLY] x\n* ESEARCH (TAG \"<t2\") UID ALL 1:3\n<t2 OK x\n";

fn watching() -> Dialogue {
    let mut d = dialogue(facts(b"IMAP4rev1 IDLE ESEARCH"));
    d.says("t1 EXAMINE INBOX\nt2 UID SEARCH RETURN (ALL) ALL\n").server(OPENED).says("t3 IDLE\n");
    d.tells(&["Selected"]).server("+ idling\n");
    d
}

mod orders;
mod places;

#[test]
fn new_mail_is_in_the_store_with_all_that_clients_ask() {
    let mut d = watching();
    d.server("* 4 EXISTS\n").says("DONE\n").server("<t3 OK x\n");
    d.says("t4 EXAMINE INBOX\nt5 UID SEARCH RETURN (ALL) ALL\n");
    d.server(
        "* 4 EXISTS\n* OK [UIDVALIDITY 7] v\n<t4 OK x\n* ESEARCH (TAG \"<t5\") UID ALL 1:3,9\n<t5 OK x\n",
    );
    d.says("t6 UID FETCH 9 (D)\n").tells(&["Selected", "Resolve"]);
    d.server("* 4 FETCH (UID 9 FLAGS (\\Recent) RFC822.SIZE 5)\n<t6 OK x\n");
    d.says("t7 UID FETCH 9 (UID BODY.PEEK[])\n").tells(&["Record"]);
    d.server("* 4 FETCH (UID 9 BODY[] {5}\nhello)\n").tells(&["FillOpen", "FillData", "FillCommit"]);
    d.server("<t7 OK x\n").says("t8 IDLE\n");
    assert_eq!(d.keeper.fetched(), (1, 5));
}

#[test]
fn what_is_gone_is_told_the_store() {
    let mut d = watching();
    d.server("* 2 EXPUNGE\n<t3 OK x\n");
    d.server("* OK [UIDVALIDITY 7] v\n<t4 OK x\n* ESEARCH (TAG \"<t5\") UID ALL 1,3\n<t5 OK x\n");
    d.tells(&["Selected", "Expunged"]);
}

#[test]
fn another_generation_is_other_mail() {
    let mut d = watching();
    d.server("* 1 EXISTS\n<t3 OK x\n");
    d.server("* OK [UIDVALIDITY 8] v\n<t4 OK x\n* ESEARCH (TAG \"<t5\") UID ALL 1\n<t5 OK x\n");
    d.tells(&["Selected"]);
    d.says("DONE\nt4 EXAMINE INBOX\nt5 UID SEARCH RETURN (ALL) ALL\nt6 IDLE\n");
}

#[test]
fn the_clients_idle_is_ended_first() {
    let mut d = dialogue(Facts { idle: Some("i".into()), ..facts(b"IDLE") });
    d.says("DONE\n").server("* 4 EXISTS\ni OK x\n").says("t1 EXAMINE INBOX\nt2 UID SEARCH ALL\n");
    d.server("* OK [UIDVALIDITY 7] v\n<t1 OK x\n* SEARCH 1 2 3 4\n<t2 OK x\n");
    d.says("t3 UID FETCH 4 (D)\n");
}

#[test]
fn idle_is_said_again_and_without_it_the_mailbox_is_opened_again() {
    let mut d = watching();
    d.after(REISSUE).says("DONE\n");
    let mut d = dialogue(facts(b"IMAP4rev1 ESEARCH"));
    d.server(OPENED).says("t1 EXAMINE INBOX\nt2 UID SEARCH RETURN (ALL) ALL\n");
    d.after(ROUND_MAX).says("t3 EXAMINE INBOX\nt4 UID SEARCH RETURN (ALL) ALL\n");
}

#[test]
fn no_session_is_kept_beyond_its_limit() {
    for (token, after, why) in
        [(false, Limits::default().idle, Why::Limit), (true, Limits::default().token, Why::Token)]
    {
        let mut d = dialogue(Facts { token, ..facts(b"IMAP4rev1 ESEARCH") });
        d.server(OPENED);
        d.said.clear();
        assert!(d.keeper.poll_timeout().expect("a deadline") <= d.now.mono + after);
        d.after(after).says("t3 LOGOUT\n").server("* BYE\n<t3 OK x\n");
        assert_eq!(d.ended, Some(why));
    }
}

#[test]
fn a_server_that_goes_is_not_dialled_again() {
    for line in ["* BYE restarting\n", "garbage without end"] {
        let mut d = watching();
        d.server(line);
        d.keeper.handle_closed(d.now);
        d.drain();
        assert_eq!(d.ended, Some(Why::OriginLost), "{line}");
        d.says("");
        assert_eq!(d.keeper.poll_timeout(), None);
    }
}

#[test]
fn a_server_that_says_nothing_is_left() {
    let mut d = dialogue(facts(b"IDLE"));
    d.after(Limits::default().patience);
    assert_eq!(d.ended, Some(Why::OriginGarbled));
}

#[test]
fn a_message_that_is_too_large_is_left_to_its_reader() {
    let mut d = watching();
    d.server("* 4 EXISTS\n<t3 OK x\n");
    d.server("* OK [UIDVALIDITY 7] v\n<t4 OK x\n* ESEARCH (TAG \"<t5\") UID ALL 1:4\n<t5 OK x\n");
    d.said.clear();
    d.server("* 4 FETCH (UID 4 RFC822.SIZE 99999999)\n<t6 OK x\n").says("t7 IDLE\n");
}

#[test]
fn a_body_cut_short_is_given_up() {
    let mut d = watching();
    d.server("* 4 EXISTS\n<t3 OK x\n");
    d.server("* OK [UIDVALIDITY 7] v\n<t4 OK x\n* ESEARCH (TAG \"<t5\") UID ALL 1:4\n<t5 OK x\n");
    d.server("* 4 FETCH (UID 4 RFC822.SIZE 9)\n<t6 OK x\n* 4 FETCH (UID 4 BODY[] {9}\nhel");
    d.told.clear();
    d.keeper.handle_closed(d.now);
    d.drain();
    d.tells(&["FillAbort"]);
}

#[test]
fn the_window_is_half_of_what_the_line_holds() {
    let mut d = dialogue(facts(b"IMAP4rev1 ESEARCH"));
    d.now.mono += Duration::from_millis(100);
    d.server(OPENED);
    assert_eq!(d.window, Some(62_500));
    for (millis, window) in [(150, 62_500), (40, 25_000)] {
        d.after(ROUND_MAX);
        let said = std::mem::take(&mut d.said);
        let tag = said.rsplit('t').next().and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
        let search: u64 = tag.parse().unwrap();
        d.now.mono += Duration::from_millis(millis);
        d.server(&format!("* OK [UIDVALIDITY 7] v\n<t{} OK x\n<t{search} OK x\n", search - 1));
        assert_eq!(d.window, Some(window), "{millis} ms");
    }
}

/// Whatever it is at when the operator, or whoever, ends it.
#[test]
fn nothing_is_asked_after_the_end() {
    let mut listing = dialogue(facts(b"IDLE ESEARCH"));
    listing.said.clear();
    let mut idle = watching();
    idle.said.clear();
    let mut describing = watching();
    describing.server("* 4 EXISTS\n<t3 OK x\n");
    describing.server("* OK [UIDVALIDITY 7] v\n<t4 OK x\n* ESEARCH (TAG \"<t5\") UID ALL 1:4\n<t5 OK x\n");
    describing.said.clear();
    for (mut d, logout, answers) in [
        (listing, "t3 LOGOUT\n", OPENED),
        (idle, "DONE\nt4 LOGOUT\n", "* 4 EXISTS\n<t3 OK x\n"),
        (describing, "t7 LOGOUT\n", "* 4 FETCH (UID 4 RFC822.SIZE 9)\n<t6 OK x\n* 5 EXISTS\n"),
    ] {
        d.keeper.handle_end(d.now, Why::Operator);
        d.drain();
        d.says(logout).server(answers).says("");
        assert_eq!(d.keeper.poll_timeout(), Some(d.now.mono + LEAVE), "{logout}");
        d.after(LEAVE).says("");
        assert_eq!((d.ended, d.keeper.poll_timeout()), (Some(Why::Operator), None), "{logout}");
    }
}
