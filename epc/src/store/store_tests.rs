//! What the store promises to sessions, seen through `Catalog` only.

use super::{trust::SAME_MIN, *};
use bytes::Bytes;
use discovery_core::{
    id::{AccountKey, ServerId, UserKey},
    seam::blob::{BlobReader, Length, StoreError},
};
use disk::faults::FaultDisk;
use imap_core::{
    catalog::{FillId, INLINE_OCTETS_MAX, RequestId},
    uid::UidValidity,
};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tempfile::TempDir;

pub(super) fn config(path: &Path) -> StoreConfig {
    StoreConfig { path: path.to_owned(), size_max: 1 << 30, seal_key: None, shadow: BTreeMap::new() }
}

fn unshadowed(path: &Path) -> StoreConfig {
    StoreConfig { shadow: BTreeMap::from([(server(), false)]), ..config(path) }
}

fn open(config: StoreConfig) -> Store {
    Store::open(config).unwrap()
}

pub(super) fn fresh() -> (TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = open(config(&root.path().join("store")));
    (root, store)
}

fn server() -> ServerId {
    ServerId::new("mail.example.org").unwrap()
}

pub(super) fn mailbox(user: u8, name: &str, uid_validity: u32) -> MailboxKey {
    MailboxKey {
        account: AccountKey { server: server(), user: UserKey { version: 1, hash: [user; 16] } },
        name: Bytes::copy_from_slice(name.as_bytes()),
        uid_validity: UidValidity::new(uid_validity).unwrap(),
        utf8: false,
    }
}

pub(super) fn uid(n: u32) -> Uid {
    Uid::new(n).unwrap()
}

pub(super) fn item(name: &str) -> ItemKey {
    match name.strip_prefix("BODY[").and_then(|spec| spec.strip_suffix(']')) {
        Some(spec) => ItemKey::section(spec.as_bytes()).unwrap(),
        None => ItemKey::named(name.as_bytes()).unwrap(),
    }
}

pub(super) fn record(store: &Store, mailbox: &MailboxKey, n: u32, values: &[(&str, &str)]) {
    record_by(store, mailbox, n, values, Proof::Origin);
}

fn record_by(store: &Store, mailbox: &MailboxKey, n: u32, values: &[(&str, &str)], proof: Proof) {
    let items = values.iter().map(|(name, value)| (item(name), Bytes::copy_from_slice(value.as_bytes())));
    let op = CatalogOp::Record { mailbox: mailbox.clone(), uid: uid(n), items: items.collect(), proof };
    assert!(store.handle(op).is_none());
}

pub(super) fn begin(
    store: &Store,
    mailbox: &MailboxKey,
    n: Option<u32>,
    name: &str,
    octets: usize,
) -> FillId {
    static FILLS: AtomicU64 = AtomicU64::new(0);
    let fill = FillId { session: 1, n: FILLS.fetch_add(1, Ordering::Relaxed) };
    let octets = octets as u64;
    let op =
        CatalogOp::FillOpen { fill, mailbox: mailbox.clone(), uid: n.map(uid), item: item(name), octets };
    store.handle(op);
    fill
}

pub(super) fn data(store: &Store, fill: FillId, octets: &[u8]) {
    for piece in octets.chunks(16 * 1024) {
        store.handle(CatalogOp::FillData { fill, octets: Bytes::copy_from_slice(piece) });
    }
}

fn commit(store: &Store, fill: FillId, n: u32, proof: Proof) {
    store.handle(CatalogOp::FillCommit { fill, uid: uid(n), proof });
}

pub(super) fn fill(store: &Store, mailbox: &MailboxKey, n: u32, name: &str, octets: &[u8]) {
    let id = begin(store, mailbox, Some(n), name, octets.len());
    data(store, id, octets);
    commit(store, id, n, Proof::Origin);
}

pub(super) fn resolve(store: &Store, mailbox: &MailboxKey, uids: &[u32], names: &[&str]) -> Vec<Row> {
    let op = CatalogOp::Resolve {
        request: RequestId(7),
        mailbox: mailbox.clone(),
        uids: uids.iter().map(|n| uid(*n)).collect(),
        items: names.iter().map(|name| item(name)).collect(),
    };
    match store.handle(op) {
        Some(CatalogReply::Resolved { request: RequestId(7), rows }) => rows,
        other => panic!("{other:?}"),
    }
}

pub(super) fn one(store: &Store, mailbox: &MailboxKey, n: u32, name: &str) -> Option<Held> {
    let mut rows = resolve(store, mailbox, &[n], &[name]);
    assert_eq!((rows.len(), rows[0].uid, rows[0].values.len()), (1, uid(n), 1));
    rows.remove(0).values.remove(0)
}

pub(super) fn octets(held: &Held) -> Vec<u8> {
    try_octets(held).unwrap()
}

pub(super) fn try_octets(held: &Held) -> Result<Vec<u8>, StoreError> {
    let (reader, mut at, end): (&Arc<dyn BlobReader>, u64, u64) = match held {
        Held::Inline(octets) => return Ok(octets.to_vec()),
        Held::Stored { reader, offset, octets } => (reader, *offset, offset + octets),
        Held::Filling { reader, octets } => (reader, 0, *octets),
    };
    let mut out = Vec::new();
    while at < end {
        let mut buf = vec![0; 10_000.min(usize::try_from(end - at).unwrap())];
        reader.wait(at, Duration::from_secs(20))?;
        let read = reader.read_at(at, &mut buf)?;
        assert!(read > 0, "ended at {at} of {end}");
        out.extend_from_slice(&buf[..read]);
        at += read as u64;
    }
    Ok(out)
}

pub(super) fn text(store: &Store, mailbox: &MailboxKey, n: u32, name: &str) -> Option<String> {
    one(store, mailbox, n, name).map(|held| String::from_utf8(octets(&held)).unwrap())
}

/// An ordinary message in two parts.
pub(super) fn message(n: u32, filler: usize) -> String {
    format!(
        "From: a@example.org\r\nSubject: number {n}\r\nX-Id: {n}\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/mixed; boundary=\"=b\"\r\n\r\n\
         --=b\r\nContent-Type: text/plain\r\n\r\ntext {n}\r\n\
         --=b\r\nContent-Type: application/octet-stream\r\n\r\n{}\r\n--=b--\r\n",
        "filler and more \r\n".repeat(filler / 18)
    )
}

fn header(n: u32) -> String {
    let all = message(n, 0);
    all[..all.find("\r\n\r\n").unwrap() + 4].to_owned()
}

#[test]
fn what_was_said_is_held_at_once_and_after_a_restart() {
    let (root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    let big = message(2, 300_000);
    record(&store, &inbox, 1, &[("ENVELOPE", "(NIL {3}\r\nabc)"), ("BODY[1.MIME]", "A: b\r\n\r\n")]);
    fill(&store, &inbox, 1, "BODY[]", b"small");
    fill(&store, &inbox, 2, "BODY[]", big.as_bytes());
    fill(&store, &inbox, 2, "BODY[2.TEXT]", big.as_bytes());
    fill(&store, &inbox, 3, "BODY[HEADER]", b"A: 1\r\n\r\n");
    record(&store, &inbox, 4, &[("BODY[]", "whole and recorded")]);
    let check = |store: &Store| {
        assert_eq!(text(store, &inbox, 1, "ENVELOPE").as_deref(), Some("(NIL {3}\r\nabc)"));
        assert_eq!(text(store, &inbox, 1, "BODY[1.MIME]").as_deref(), Some("A: b\r\n\r\n"));
        assert_eq!(text(store, &inbox, 1, "BODY[]").as_deref(), Some("small"));
        assert_eq!(text(store, &inbox, 3, "BODY[HEADER]").as_deref(), Some("A: 1\r\n\r\n"));
        assert_eq!(text(store, &inbox, 4, "RFC822").as_deref(), Some("whole and recorded"));
        for name in ["BODY[]", "BODY[2.TEXT]"] {
            let held = one(store, &inbox, 2, name).unwrap();
            assert!(
                matches!(&held, Held::Stored { reader, .. } if reader.len() == Length::Known(held.octets()))
            );
            assert_eq!(octets(&held), big.as_bytes());
        }
        let rows = resolve(store, &inbox, &[9, 1, 3], &["ENVELOPE", "RFC822.SIZE"]);
        let held: Vec<Vec<bool>> =
            rows.iter().map(|row| row.values.iter().map(Option::is_some).collect()).collect();
        assert_eq!(held, [[false, false], [true, false], [false, false]]);
    };
    check(&store);
    drop(store);
    let store = open(config(&root.path().join("store")));
    check(&store);
    let stats = store.stats();
    // The body and the large section are the same octets.
    assert_eq!((stats.bodies, stats.messages, stats.accounts, stats.mailboxes), (3, 4, 1, 1));
    assert_eq!((stats.corrupt, stats.lost, stats.index_failures, stats.disk_failures), (0, 0, 0, 0));
}

#[test]
fn a_store_is_shared_by_all_sessions() {
    fn shared<T: Catalog + 'static>() {}
    shared::<Store>();
}

#[test]
fn what_changes_is_never_kept() {
    let (_root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    record(&store, &inbox, 1, &[("FLAGS", "(\\Seen)"), ("MODSEQ", "(9)"), ("UID", "1"), ("PREVIEW", "x")]);
    for name in ["FLAGS", "MODSEQ", "UID", "PREVIEW"] {
        assert!(one(&store, &inbox, 1, name).is_none(), "{name}");
    }
    assert_eq!(store.stats().values, 0);
}

#[test]
fn two_users_share_a_body_and_no_row() {
    let (_root, store) = fresh();
    let (anna, bert) = (mailbox(1, "INBOX", 5), mailbox(2, "INBOX", 5));
    let body = message(1, 200_000);
    fill(&store, &anna, 1, "BODY[]", body.as_bytes());
    record(&store, &anna, 1, &[("ENVELOPE", "(anna)")]);
    for name in ["BODY[]", "ENVELOPE"] {
        assert!(one(&store, &bert, 1, name).is_none(), "{name} without a row of his own");
    }
    fill(&store, &bert, 8, "BODY[]", body.as_bytes());
    assert_eq!(text(&store, &bert, 8, "BODY[]").as_ref(), Some(&body));
    assert!(one(&store, &bert, 1, "BODY[]").is_none());
    assert!(one(&store, &bert, 8, "ENVELOPE").is_none());
    let stats = store.stats();
    assert_eq!((stats.bodies, stats.octets, stats.messages), (1, body.len() as u64, 2));

    // Whether UTF8=ACCEPT is on, and which server it is, makes another mailbox.
    let mut other = anna.clone();
    other.utf8 = true;
    assert!(one(&store, &other, 1, "BODY[]").is_none());
    let mut other = anna;
    other.account.server = ServerId::new("mail.example.net").unwrap();
    assert!(one(&store, &other, 1, "BODY[]").is_none());
}

#[test]
fn another_uidvalidity_is_other_mail() {
    let (root, store) = fresh();
    let (old, new) = (mailbox(1, "INBOX", 5), mailbox(1, "INBOX", 6));
    store.handle(CatalogOp::Selected { mailbox: old.clone() });
    fill(&store, &old, 1, "BODY[]", b"old");
    let late = begin(&store, &old, Some(2), "BODY[]", 3);
    data(&store, late, b"old");
    assert!(matches!(one(&store, &old, 2, "BODY[]"), Some(Held::Filling { .. })));
    assert!(one(&store, &new, 1, "BODY[]").is_none());
    assert!(one(&store, &new, 2, "BODY[]").is_none());

    store.handle(CatalogOp::Selected { mailbox: new.clone() });
    assert!(one(&store, &old, 1, "BODY[]").is_none());
    assert!(one(&store, &old, 2, "BODY[]").is_none());
    // A session that has the old generation open still fills; nobody may ever be served it.
    commit(&store, late, 2, Proof::Origin);
    record(&store, &old, 3, &[("ENVELOPE", "(old)")]);
    fill(&store, &new, 1, "BODY[]", b"new");
    let check = |store: &Store| {
        for n in 1..=3 {
            assert!(one(store, &old, n, "BODY[]").is_none() && one(store, &old, n, "ENVELOPE").is_none());
        }
        assert_eq!(text(store, &new, 1, "BODY[]").as_deref(), Some("new"));
    };
    check(&store);
    assert_eq!(store.stats().fills.stale, 2);
    // The same number again is not the same mail again.
    store.handle(CatalogOp::Selected { mailbox: old.clone() });
    assert!(one(&store, &old, 1, "BODY[]").is_none() && one(&store, &new, 1, "BODY[]").is_none());
    drop(store);
    let store = open(config(&root.path().join("store")));
    assert!(one(&store, &old, 1, "BODY[]").is_none() && one(&store, &new, 1, "BODY[]").is_none());
    let report = store.gc().unwrap();
    assert_eq!((report.bodies_removed, store.stats().messages, store.stats().bodies), (2, 0, 0));
}

#[test]
fn what_was_pushed_is_not_served_and_never_replaces_the_origins_word() {
    let (_root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    for (n, proof) in [(1, Proof::Push), (2, Proof::Relay)] {
        record_by(
            &store,
            &inbox,
            n,
            &[("ENVELOPE", "(pushed)"), ("BODY[HEADER]", "A: pushed\r\n\r\n")],
            proof,
        );
        let id = begin(&store, &inbox, None, "BODY[]", 6);
        data(&store, id, b"pushed");
        commit(&store, id, n, proof);
        for name in ["ENVELOPE", "BODY[HEADER]", "BODY[]"] {
            assert!(one(&store, &inbox, n, name).is_none(), "{name} by {proof:?}");
        }
        // The origin's word about one thing is no word about another.
        record(&store, &inbox, n, &[("ENVELOPE", "(origin)")]);
        assert_eq!(text(&store, &inbox, n, "ENVELOPE").as_deref(), Some("(origin)"));
        assert!(one(&store, &inbox, n, "BODY[]").is_none(), "{proof:?}");
        fill(&store, &inbox, n, "BODY[]", b"origin");
        record_by(&store, &inbox, n, &[("ENVELOPE", "(pushed)"), ("BODY[]", "pushed")], proof);
        assert_eq!(text(&store, &inbox, n, "ENVELOPE").as_deref(), Some("(origin)"));
        assert_eq!(text(&store, &inbox, n, "BODY[]").as_deref(), Some("origin"));
    }
    assert_eq!(store.stats().messages, 2, "stored all the same");
    let op = CatalogOp::Count {
        request: RequestId(1),
        mailbox: inbox,
        uids: Vec::new(),
        items: vec![item("BODY[HEADER]")],
    };
    assert!(matches!(store.handle(op), Some(CatalogReply::Counted { messages: 0, known: 2, .. })));
}

#[test]
fn half_a_body_is_not_findable() {
    let (_root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    let body = message(1, 150_000);
    let short = begin(&store, &inbox, Some(1), "BODY[]", body.len());
    data(&store, short, &body.as_bytes()[..body.len() - 1]);
    commit(&store, short, 1, Proof::Origin);
    let long = begin(&store, &inbox, Some(2), "BODY[]", body.len() - 1);
    data(&store, long, body.as_bytes());
    commit(&store, long, 2, Proof::Origin);
    let aborted = begin(&store, &inbox, Some(3), "BODY[]", body.len());
    data(&store, aborted, body.as_bytes());
    store.handle(CatalogOp::FillAbort { fill: aborted });
    commit(&store, aborted, 3, Proof::Origin);
    let section = begin(&store, &inbox, Some(4), "BODY[HEADER]", 20);
    data(&store, section, b"A: 1\r\n\r\n");
    commit(&store, section, 4, Proof::Origin);
    for n in 1..=4 {
        assert!(one(&store, &inbox, n, "BODY[]").is_none(), "{n}");
        assert!(one(&store, &inbox, n, "BODY[HEADER]").is_none(), "{n}");
    }
    let stats = store.stats();
    assert_eq!((stats.fills.wrong_length, stats.fills.aborted, stats.bodies), (2 + 1, 1, 0));
}

#[test]
fn a_body_on_its_way_is_joined_and_ends_well_or_badly() {
    let (_root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    let body = message(1, 250_000);
    let id = begin(&store, &inbox, Some(1), "BODY[]", body.len());
    data(&store, id, &body.as_bytes()[..100_000]);
    let joined = one(&store, &inbox, 1, "BODY[]").unwrap();
    assert!(matches!(&joined, Held::Filling { octets, .. } if *octets == body.len() as u64));
    assert!(one(&store, &mailbox(2, "INBOX", 5), 1, "BODY[]").is_none(), "another account joins nothing");
    assert!(one(&store, &inbox, 2, "BODY[]").is_none());
    thread::scope(|scope| {
        let reading = scope.spawn(|| octets(&joined));
        data(&store, id, &body.as_bytes()[100_000..]);
        commit(&store, id, 1, Proof::Origin);
        assert_eq!(reading.join().unwrap(), body.as_bytes());
    });
    assert!(matches!(one(&store, &inbox, 1, "BODY[]"), Some(Held::Stored { .. })));

    let id = begin(&store, &inbox, Some(2), "BODY[]", 10);
    let Some(Held::Filling { reader, .. }) = one(&store, &inbox, 2, "BODY[]") else { panic!() };
    store.handle(CatalogOp::FillAbort { fill: id });
    assert!(matches!(reader.wait(0, Duration::from_secs(9)), Err(StoreError::Abandoned)));
    assert!(one(&store, &inbox, 2, "BODY[]").is_none());

    // What is expunged or forgotten is joined no more.
    begin(&store, &inbox, Some(3), "BODY[]", 10);
    store.handle(CatalogOp::Expunged { mailbox: inbox.clone(), uids: vec![uid(3)] });
    assert!(one(&store, &inbox, 3, "BODY[]").is_none());
    begin(&store, &inbox, Some(4), "BODY[]", 10);
    store.handle(CatalogOp::Forget { account: inbox.account.clone(), name: inbox.name.clone() });
    assert!(one(&store, &inbox, 4, "BODY[]").is_none());
}

#[test]
fn a_body_that_turns_out_to_be_another_message_never_ends_for_who_joined() {
    let (_root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    let id = begin(&store, &inbox, Some(1), "BODY[]", 5);
    let joined = one(&store, &inbox, 1, "BODY[]").unwrap();
    data(&store, id, b"other");
    commit(&store, id, 2, Proof::Origin);
    assert!(matches!(try_octets(&joined), Err(StoreError::Abandoned)));
    assert!(one(&store, &inbox, 1, "BODY[]").is_none() && one(&store, &inbox, 2, "BODY[]").is_none());
}

#[test]
fn what_is_gone_at_the_origin_is_gone_here() {
    let (_root, store) = fresh();
    let (inbox, other) = (mailbox(1, "INBOX", 5), mailbox(1, "Other", 5));
    for mailbox in [&inbox, &other] {
        for n in 1..=3 {
            fill(&store, mailbox, n, "BODY[]", format!("body {n}").as_bytes());
            record(&store, mailbox, n, &[("ENVELOPE", "(e)")]);
        }
    }
    store.handle(CatalogOp::Expunged { mailbox: inbox.clone(), uids: vec![uid(1), uid(3)] });
    let held = |mailbox: &MailboxKey, n| {
        let rows = resolve(&store, mailbox, &[n], &["BODY[]", "ENVELOPE"]);
        [rows[0].values[0].is_some(), rows[0].values[1].is_some()]
    };
    assert_eq!([1, 2, 3].map(|n| held(&inbox, n)), [[false; 2], [true; 2], [false; 2]]);
    assert_eq!(held(&other, 1), [true; 2]);
    store.handle(CatalogOp::Forget { account: other.account.clone(), name: other.name.clone() });
    assert_eq!([held(&other, 1), held(&inbox, 2)], [[false; 2], [true; 2]]);
    assert_eq!(store.gc().unwrap().bodies_removed, 2);
}

#[test]
fn a_message_that_changes_takes_everything_said_of_it_along() {
    let (_root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    record(&store, &inbox, 1, &[("ENVELOPE", "(one)")]);
    fill(&store, &inbox, 1, "BODY[]", b"one");
    fill(&store, &inbox, 1, "BODY[]", b"one");
    assert_eq!(text(&store, &inbox, 1, "ENVELOPE").as_deref(), Some("(one)"));
    fill(&store, &inbox, 1, "BODY[]", b"two");
    assert_eq!(text(&store, &inbox, 1, "BODY[]").as_deref(), Some("two"));
    assert!(one(&store, &inbox, 1, "ENVELOPE").is_none());
    assert_eq!(store.stats().changed, 1);
}

/// Lets so many comparisons of `name` be equal, each of another message.
fn earn(store: &Store, mailbox: &MailboxKey, name: &str, times: u64, first: u32) {
    for n in first..first + u32::try_from(times).unwrap() {
        let body = message(n, 0);
        fill(store, mailbox, n, "BODY[]", body.as_bytes());
        record(store, mailbox, n, &[(name, &expected(n, name))]);
    }
    store.flush();
}

fn expected(n: u32, name: &str) -> String {
    match name {
        "BODY[HEADER]" => header(n),
        "BODY[HEADER.FIELDS (SUBJECT)]" => format!("Subject: number {n}\r\n\r\n"),
        "BODY[TEXT]" => message(n, 0)[header(n).len()..].to_owned(),
        "BODY[1]" => format!("text {n}"),
        "BODY[1.MIME]" => "Content-Type: text/plain\r\n\r\n".to_owned(),
        other => panic!("{other}"),
    }
}

const CUT: [&str; 5] =
    ["BODY[HEADER]", "BODY[HEADER.FIELDS (SUBJECT)]", "BODY[TEXT]", "BODY[1]", "BODY[1.MIME]"];

#[test]
fn sections_are_cut_only_where_trust_is_earned() {
    for name in CUT {
        let (root, disk) = (tempfile::tempdir().unwrap(), FaultDisk::default());
        let open = || Store::open_on(Arc::new(disk.clone()), config(root.path())).unwrap();
        let store = open();
        let inbox = mailbox(1, "INBOX", 5);
        fill(&store, &inbox, 9999, "BODY[]", message(9999, 0).as_bytes());
        assert!(one(&store, &inbox, 9999, name).is_none(), "{name} before");
        earn(&store, &inbox, name, SAME_MIN - 1, 1);
        assert!(one(&store, &inbox, 9999, name).is_none(), "{name} after one too few");
        // The same message again, from the same account and another, proves nothing new.
        record(&store, &inbox, 1, &[(name, &expected(1, name))]);
        earn(&store, &mailbox(2, "INBOX", 5), name, 3, 1);
        assert!(one(&store, &inbox, 9999, name).is_none(), "{name} after the same once more");
        drop(store);
        let store = open();
        earn(&store, &inbox, name, 1, 5000);
        assert_eq!(text(&store, &inbox, 9999, name), Some(expected(9999, name)), "{name}");
        for other in CUT.iter().filter(|other| **other != name) {
            assert!(one(&store, &inbox, 9999, other).is_none(), "{other} by {name}");
        }
        let mut elsewhere = inbox.clone();
        elsewhere.account.server = ServerId::new("mail.example.net").unwrap();
        fill(&store, &elsewhere, 1, "BODY[]", message(1, 0).as_bytes());
        assert!(one(&store, &elsewhere, 1, name).is_none(), "{name} at another server");

        // One difference, and never again.
        fill(&store, &inbox, 6000, "BODY[]", message(6000, 0).as_bytes());
        record(&store, &inbox, 6000, &[(name, "otherwise")]);
        store.flush();
        assert!(one(&store, &inbox, 9999, name).is_none(), "{name} after a difference");
        assert_eq!(text(&store, &inbox, 6000, name).as_deref(), Some("otherwise"));
        earn(&store, &inbox, name, 3, 7000);
        drop(store);
        let store = open();
        assert!(one(&store, &inbox, 9999, name).is_none(), "{name} after a restart");
        let off: Vec<_> = store.stats().trust.into_iter().filter(|(_, tally)| tally.different > 0).collect();
        assert!(off.len() == 1 && !off[0].1.is_trusted(), "{off:?}");
    }
}

#[test]
fn without_comparison_sections_are_cut_at_once_and_refused_where_unsure() {
    let root = tempfile::tempdir().unwrap();
    let store = open(unshadowed(root.path()));
    let inbox = mailbox(1, "INBOX", 5);
    fill(&store, &inbox, 1, "BODY[]", message(1, 0).as_bytes());
    for name in CUT {
        assert_eq!(text(&store, &inbox, 1, name), Some(expected(1, name)), "{name}");
    }
    for name in ["BODY[3]", "BODY[1.HEADER]", "BODY[1.1]", "ENVELOPE", "RFC822.SIZE", "BODYSTRUCTURE"] {
        assert!(one(&store, &inbox, 1, name).is_none(), "{name}");
    }
    fill(&store, &inbox, 2, "BODY[]", b"A: 1\r\n\r\nbare\nlf");
    assert!(one(&store, &inbox, 2, "BODY[TEXT]").is_none());
    assert_eq!(text(&store, &inbox, 2, "BODY[]").as_deref(), Some("A: 1\r\n\r\nbare\nlf"));
    // Of a large message: a small part, a large one, and a header that is too long for the index.
    let large = format!("X: {}\r\n{}", "x".repeat(50_000), message(3, 400_000));
    fill(&store, &inbox, 3, "BODY[]", large.as_bytes());
    assert_eq!(text(&store, &inbox, 3, "BODY[1]").as_deref(), Some("text 3"));
    let part = one(&store, &inbox, 3, "BODY[2]").unwrap();
    assert!(
        matches!(part, Held::Stored { offset, octets, .. } if offset > 50_000 && octets > INLINE_OCTETS_MAX)
    );
    assert!(octets(&part).starts_with(b"filler and more") && octets(&part).ends_with(b"more \r\n"));
    assert_eq!(
        text(&store, &inbox, 3, "BODY[HEADER.FIELDS (SUBJECT)]"),
        Some("Subject: number 3\r\n\r\n".into())
    );
    // A header alone gives its lists, and no text.
    record(&store, &inbox, 4, &[("BODY[HEADER]", &header(4))]);
    assert_eq!(
        text(&store, &inbox, 4, "BODY[HEADER.FIELDS (SUBJECT)]"),
        Some("Subject: number 4\r\n\r\n".into())
    );
    assert!(one(&store, &inbox, 4, "BODY[TEXT]").is_none() && one(&store, &inbox, 4, "BODY[]").is_none());
}

#[test]
fn comparisons_are_asked_for_until_they_are_enough() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open_on(Arc::new(FaultDisk::default()), config(root.path())).unwrap();
    let inbox = mailbox(1, "INBOX", 5);
    let wanted = |mailbox: &MailboxKey| {
        let op = CatalogOp::ShadowWanted { request: RequestId(3), mailbox: mailbox.clone() };
        match store.handle(op) {
            Some(CatalogReply::ShadowWanted { request: RequestId(3), wanted }) => wanted,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(wanted(&inbox), None);
    let mut rounds = 0;
    for n in 1..=250 {
        fill(&store, &inbox, n, "BODY[]", message(n, 0).as_bytes());
    }
    while let Some((of, sections)) = wanted(&inbox) {
        rounds += 1;
        assert!(rounds <= 250 && !sections.is_empty());
        let whole = message(of.get(), 0);
        let mut indexer = imap_core::mime::SectionIndexer::new();
        indexer.push(whole.as_bytes());
        let head = head::Head::new(indexer.finish(), &Bytes::from(whole.clone()));
        for section in sections {
            let value = match head.cut(&section) {
                Some(head::Piece::Octets(octets)) => octets,
                Some(head::Piece::Range { offset, octets }) => {
                    let start = usize::try_from(offset).unwrap();
                    Bytes::copy_from_slice(&whole.as_bytes()[start..start + usize::try_from(octets).unwrap()])
                }
                other => panic!("{other:?}"),
            };
            let items = vec![(section, value)];
            store.handle(CatalogOp::Record { mailbox: inbox.clone(), uid: of, items, proof: Proof::Origin });
        }
        store.flush();
    }
    let stats = store.stats();
    assert!(stats.trust.values().filter(|tally| tally.is_trusted()).count() == 5, "{:?}", stats.trust);
    assert_eq!(stats.compared_different, 0);
    assert_eq!(text(&store, &inbox, 1, "BODY[1]").as_deref(), Some("text 1"));

    // One in a thousand is compared from then on.
    fill(&store, &inbox, 999, "BODY[]", message(999, 0).as_bytes());
    let uids: Vec<u32> = (1..=250).collect();
    for _ in 0..4 {
        assert_eq!(wanted(&inbox), None);
        resolve(&store, &inbox, &uids, &["BODY[HEADER.FIELDS (X-ID)]"]);
    }
    let (of, sections) = wanted(&inbox).unwrap();
    assert_eq!(of, uid(999));
    assert!(
        sections.iter().all(|section| section.as_str().starts_with("BODY[HEADER.FIELDS")),
        "{sections:?}"
    );
    record(
        &store,
        &inbox,
        999,
        &[("BODY[HEADER.FIELDS (SUBJECT)]", &expected(999, "BODY[HEADER.FIELDS (SUBJECT)]"))],
    );
    store.flush();
    assert_eq!(wanted(&inbox), None);
}

#[test]
fn an_answer_with_many_large_bodies_holds_few_octets_and_files() {
    let (root, store) = fresh();
    let inbox = mailbox(1, "INBOX", 5);
    for n in 1..=60 {
        fill(&store, &inbox, n, "BODY[]", message(n, 140_000).as_bytes());
    }
    store.flush();
    let open_files = || fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    let blobs = || {
        open_files()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .filter(|to| {
                to.starts_with(root.path()) && to.components().any(|part| part.as_os_str() == "blobs")
            })
            .count()
    };
    let rows = resolve(&store, &inbox, &(1..=60).collect::<Vec<_>>(), &["BODY[]"]);
    let stored = rows.iter().filter(|row| matches!(row.values[0], Some(Held::Stored { .. }))).count();
    assert_eq!((stored, blobs()), (60, 0));
    for row in &rows {
        assert_eq!(octets(row.values[0].as_ref().unwrap()), message(row.uid.get(), 140_000).as_bytes());
    }
    drop(rows);
    assert_eq!(blobs(), 0);
    // Small ones come as octets, but not without end.
    for n in 101..=200 {
        fill(&store, &inbox, n, "BODY[]", message(n, 80_000).as_bytes());
    }
    let rows = resolve(&store, &inbox, &(101..=200).collect::<Vec<_>>(), &["BODY[]"]);
    let inline: u64 = rows
        .iter()
        .flat_map(|row| &row.values)
        .flatten()
        .filter(|held| matches!(held, Held::Inline(_)))
        .map(Held::octets)
        .sum();
    assert!((2 << 20..=4 << 20).contains(&inline), "{inline}");
    assert!(rows.iter().all(|row| row.values[0].is_some()));
}

#[test]
fn messages_that_hold_all_items_are_counted() {
    let root = tempfile::tempdir().unwrap();
    let store = open(unshadowed(root.path()));
    let inbox = mailbox(1, "INBOX", 5);
    for n in 1..=6 {
        record(&store, &inbox, n, &[("ENVELOPE", "(e)")]);
    }
    fill(&store, &inbox, 1, "BODY[]", b"A: 1\r\n\r\n");
    record(&store, &inbox, 2, &[("BODY[HEADER]", "A: 1\r\n\r\n")]);
    record(&store, &inbox, 3, &[("BODY[HEADER.FIELDS (A)]", "A: 1\r\n\r\n")]);
    let count = |uids: &[u32], names: &[&str]| {
        let op = CatalogOp::Count {
            request: RequestId(4),
            mailbox: inbox.clone(),
            uids: uids.iter().map(|n| uid(*n)).collect(),
            items: names.iter().map(|name| item(name)).collect(),
        };
        match store.handle(op) {
            Some(CatalogReply::Counted { request: RequestId(4), messages, known }) => (messages, known),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(count(&[], &["ENVELOPE"]), (6, 6));
    assert_eq!(count(&[1, 2, 77], &["ENVELOPE"]), (2, 6));
    assert_eq!(count(&[], &["ENVELOPE", "BODY[HEADER.FIELDS (A)]"]), (3, 6));
    assert_eq!(count(&[], &["BODY[]"]), (1, 6));
    assert_eq!(count(&[], &["RFC822.SIZE"]), (0, 6));
    assert_eq!(count(&[], &["FLAGS"]), (0, 6));
}
