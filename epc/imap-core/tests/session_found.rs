//! What the model of everything around a session (`session_model`) has found, each as the shortest dialogue that
//! shows it. Seeds change their meaning with the model; these do not.

#![allow(clippy::unwrap_used, reason = "all of it is a test, and a test reports by panicking")]

use bytes::Bytes;
use discovery_core::{
    id::{ServerId, UserKey, UserKeying},
    now::{Now, UnixMillis},
};
use imap_core::{
    catalog::{CatalogOp, CatalogReply, Claim, Held, Row},
    item::ItemKey,
    session::{Closing, Compress, Output, Road, Session, SessionConfig},
    uid::Uid,
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

struct OneKey;

impl UserKeying for OneKey {
    fn user_key(&self, _: &[u8]) -> UserKey {
        UserKey { version: 1, hash: [7; 16] }
    }
}

/// A logged-in client of a mailbox with four messages, UIDs 11 to 14, all known; 11 is in the store: `hello`, and
/// for 12 its size: 100,000.
struct Dialogue {
    session: Session,
    held: BTreeMap<(Uid, ItemKey), Bytes>,
    client: String,
    server: String,
    closed: Option<Closing>,
    now: Now,
}

#[expect(clippy::disallowed_methods, reason = "std has no other way to any Instant")]
fn dialogue() -> Dialogue {
    let config = SessionConfig {
        number: 1,
        nonce: [1, 2, 3, 4, 5, 6],
        server: ServerId::new("mail.example.org").unwrap(),
        keying: Arc::new(OneKey),
        road: Road::Tls,
        compress: Compress::Off,
        cache: true,
        re_proof: Duration::from_secs(60),
        chunk_fill_max: 1 << 20,
        retain: false,
    };
    let uid = |n| Uid::new(n).unwrap();
    let size = ItemKey::named(b"RFC822.SIZE").unwrap();
    let mut d = Dialogue {
        session: Session::new(config),
        held: BTreeMap::from([
            ((uid(11), ItemKey::whole()), Bytes::from_static(b"hello")),
            ((uid(11), size.clone()), Bytes::from_static(b"5")),
            ((uid(12), size), Bytes::from_static(b"100000")),
        ]),
        client: String::new(),
        server: String::new(),
        closed: None,
        now: Now { mono: Instant::now(), wall: UnixMillis(0) },
    };
    d.session.handle_greeting(d.now, &Bytes::from_static(b"* OK ready\r\n"));
    d.client("a LOGIN alice secret\r\n").server("a OK [CAPABILITY IMAP4rev1 ACL ESEARCH IDLE] in\r\n");
    d.client("b SELECT INBOX\r\n");
    d.server("* 4 EXISTS\r\n* OK [UIDVALIDITY 7] v\r\nb OK [READ-WRITE] open\r\n");
    d.server("* ESEARCH (TAG \"EPC0102030405061\") UID ALL 11:14\r\nEPC0102030405061 OK found\r\n");
    d.forget();
    d
}

impl Dialogue {
    fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::ToClient(octets) => self.client += &String::from_utf8_lossy(&octets),
                Output::ToServer(octets) => self.server += &String::from_utf8_lossy(&octets),
                Output::Catalog(CatalogOp::Resolve { request, uids, items, .. }) => {
                    let value = |uid: Uid, item: &ItemKey| {
                        self.held.get(&(uid, item.clone())).cloned().map(Held::Inline)
                    };
                    let row = |&uid| Row { uid, values: items.iter().map(|item| value(uid, item)).collect() };
                    let rows = uids.iter().map(row).collect();
                    self.session.handle_store(self.now, CatalogReply::Resolved { request, rows });
                }
                Output::Catalog(CatalogOp::Claim { request, .. }) => {
                    let claim = Claim::Yours;
                    self.session.handle_store(self.now, CatalogReply::Claimed { request, claim });
                }
                Output::Close(why) => self.closed = Some(why),
                Output::ToClientFrom { .. }
                | Output::Catalog(_)
                | Output::StartTls
                | Output::CompressServer { .. }
                | Output::Retain(_)
                | Output::ReplaceOrigin
                | Output::Event(_) => {}
            }
        }
    }

    fn client(&mut self, text: &str) -> &mut Self {
        self.session.handle_client(self.now, Bytes::copy_from_slice(text.as_bytes()));
        self.drain();
        self
    }

    fn server(&mut self, text: &str) -> &mut Self {
        self.session.handle_server(self.now, Bytes::copy_from_slice(text.as_bytes()));
        self.drain();
        self
    }

    #[track_caller]
    fn hears(&mut self, text: &str) -> &mut Self {
        assert_eq!(std::mem::take(&mut self.client), text);
        self
    }

    #[track_caller]
    fn gets(&mut self, text: &str) -> &mut Self {
        assert_eq!(std::mem::take(&mut self.server), text);
        self
    }

    fn forget(&mut self) {
        self.client.clear();
        self.server.clear();
    }

    /// An IDLE that the client has left and the origin has not: what it still says may be EXPUNGE.
    fn leave_idle(&mut self) {
        self.client("i IDLE\r\n").server("+ idling\r\n").client("DONE\r\n");
        self.forget();
    }
}

#[test]
fn our_own_question_for_a_whole_message_is_nobodys_whatever_the_answer() {
    for answer in ["NIL", "\"short\""] {
        let mut d = dialogue();
        d.client("c UID FETCH 12 (RFC822.SIZE)\r\n");
        d.forget();
        d.client("d UID FETCH 12 (BODY.PEEK[]<0.70000>)\r\n");
        assert!(d.server.contains("(BODY.PEEK[])"), "{}", d.server);
        d.server(&format!("* 2 FETCH (UID 12 BODY[] {answer})\r\n"));
        assert!(!d.client.contains("BODY[] "), "{}", d.client);
    }
}

#[test]
fn news_of_the_mailbox_that_is_left_are_not_of_the_one_that_is_opened() {
    let mut d = dialogue();
    d.client("c SELECT Trash\r\n");
    d.server("* 6 EXISTS\r\n* OK [CLOSED] c\r\n* 2 EXISTS\r\n* OK [UIDVALIDITY 9] v\r\nc OK open\r\n");
    assert_eq!(d.closed, None);
    assert!(d.client.ends_with("* 2 EXISTS\r\n* OK [UIDVALIDITY 9] v\r\nc OK open\r\n"), "{}", d.client);
    // And it is the new one's that is served by.
    d.server("* ESEARCH (TAG \"EPC0102030405062\") UID ALL 1:2\r\nEPC0102030405062 OK\r\n* 3 EXISTS\r\n");
    assert!(d.client.ends_with("* 3 EXISTS\r\n"), "{}", d.client);
}

#[test]
fn nothing_of_the_old_mailbox_is_told_by_numbers_that_the_client_does_not_know() {
    let mut d = dialogue();
    d.leave_idle();
    d.server("* 1 EXPUNGE\r\ni OK done\r\n");
    d.client("c SELECT Trash\r\n");
    d.client.clear();
    // Its number 1 is UID 12 to the origin and UID 11 to the client.
    d.server("* 1 FETCH (UID 12 FLAGS (\\Seen))\r\n");
    assert!(!d.client.contains("* 1 FETCH"), "{}", d.client);
}

#[test]
fn a_flag_that_is_being_taken_away_is_not_believed() {
    let mut d = dialogue();
    d.client("c UID FETCH 11 (ENVELOPE BODY[])\r\nd UID STORE 11 -FLAGS.SILENT (\\Seen)\r\n");
    d.server("* 1 FETCH (UID 11 ENVELOPE NIL BODY[] {5}\r\nhello FLAGS (\\Seen))\r\nc OK\r\nd OK\r\n");
    d.forget();
    // Whatever was heard before the STORE was done: it may be gone.
    d.client("e UID FETCH 11 (BODY[])\r\n");
    assert!(d.server.contains("UID STORE 11 +FLAGS (\\Seen)"), "{}", d.server);
    assert!(!d.client.contains("e OK"), "{}", d.client);
}

#[test]
fn what_the_store_adds_is_put_into_the_answer_it_belongs_to() {
    let mut d = dialogue();
    d.client(
        "c UID FETCH 11:14 (RFC822.SIZE ENVELOPE)\r\ne UID FETCH 11 (RFC822.SIZE BODY.PEEK[] FLAGS)\r\n",
    );
    d.forget();
    let mine = "* 1 FETCH (UID 11 RFC822.SIZE 5 ENVELOPE NIL)\r\n";
    d.server(mine).hears(mine);
}

#[test]
fn an_answer_to_a_client_is_never_taken_for_ours() {
    let mut d = dialogue();
    d.client("c UID FETCH 12 (RFC822.SIZE)\r\n");
    d.client("e UID FETCH 11:14 (FLAGS BODY.PEEK[] MODSEQ)\r\nf UID FETCH 12 (BODY.PEEK[]<0.70000>)\r\n");
    d.forget();
    let answer = "* 2 FETCH (UID 12 FLAGS () BODY[] {2}\r\nhi)\r\n";
    d.server(answer).hears(answer);
}

#[test]
fn numbers_of_a_command_that_waits_keep_their_meaning() {
    for verb in ["COPY 2 Trash", "MOVE 2 Trash", "STORE 2 +FLAGS (\\Deleted)", "FETCH 2 (FLAGS)"] {
        let mut d = dialogue();
        d.leave_idle();
        d.server("* 1 EXPUNGE\r\n");
        // The client's number 2 is UID 12, whatever has happened meanwhile: it has not heard of it.
        d.client(&format!("c {verb}\r\n")).server("i OK done\r\n");
        let one = verb.replacen('2', "1", 1);
        assert_eq!(d.server, format!("c {one}\r\n"), "heard {}", d.client);
    }
}

#[test]
fn a_line_that_is_no_command_is_no_moment_for_expunge() {
    let mut d = dialogue();
    d.leave_idle();
    d.server("* 1 EXPUNGE\r\ni OK done\r\n");
    d.client("\r\n").hears("* BAD A command begins with a tag and a name\r\n");
}

#[test]
fn numbers_in_a_uid_search_are_translated_too() {
    let mut d = dialogue();
    d.leave_idle();
    d.server("* 1 EXPUNGE\r\n");
    d.client("c UID SEARCH 2 UNSEEN\r\n").server("i OK done\r\n");
    d.gets("c UID SEARCH 1 UNSEEN\r\n");
}

#[test]
fn proof_is_as_old_as_the_question() {
    let mut d = dialogue();
    d.now.mono += Duration::from_secs(61);
    d.client("c UID FETCH 11 (BODY.PEEK[])\r\n");
    assert!(d.server.contains("MYRIGHTS"), "{}", d.server);
    // The answer hangs in the line for longer than it proves anything.
    d.now.mono += Duration::from_secs(61);
    d.server("* MYRIGHTS INBOX lr\r\nEPC0102030405062 OK done\r\n");
    assert!(!d.client.contains("hello"), "{}", d.client);
}
