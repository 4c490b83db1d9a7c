//! Prints what the store costs: filling, per second of processor time, and resolving a list.
//!
//! ```text
//! cargo run --release -p epc --example measure_store
//! ```
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for one's own terminal")]

use bytes::Bytes;
use discovery_core::{
    id::{AccountKey, ServerId, UserKey},
    value::Proof,
};
use epc::store::{Store, StoreConfig};
use imap_core::{
    catalog::{Catalog, CatalogOp, CatalogReply, FillId, MailboxKey, RequestId},
    item::ItemKey,
    uid::{Uid, UidValidity},
};
use std::{collections::BTreeMap, fs, path::Path, time::Instant};
use zeroize::Zeroizing;

fn main() {
    for (name, key) in [("plain", None), ("sealed", Some(Zeroizing::new([7; 32])))] {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path(), key);
        println!("{name}: one body of 512 MiB        {}", fill_large(&store, 512 << 20));
        println!("{name}: 4,000 bodies of 26 kB      {}", fill_small(&store, 4000, 26_000));
        let (best, median) = resolve(&store);
        println!("{name}: 256 UIDs, 4 items          {median:.2} ms, {best:.2} ms at best of 50");
        let (best, median) = resolve_after_record(&store);
        println!("{name}: a value, right after it came {median:.3} ms, {best:.3} ms at best of 50");
        let (best, median) = resolve_bodies(&store, 1);
        println!("{name}: one body of 26 kB          {median:.3} ms, {best:.3} ms at best of 50");
    }
}

fn open(path: &Path, seal_key: Option<Zeroizing<[u8; 32]>>) -> Store {
    let shadow = BTreeMap::from([(mailbox().account.server, false)]);
    Store::open(StoreConfig { path: path.to_owned(), size_max: 8 << 30, seal_key, shadow }).unwrap()
}

fn mailbox() -> MailboxKey {
    MailboxKey {
        account: AccountKey {
            server: ServerId::new("mail.example.org").unwrap(),
            user: UserKey { version: 1, hash: [1; 16] },
        },
        name: Bytes::from_static(b"INBOX"),
        uid_validity: UidValidity::new(1).unwrap(),
        utf8: false,
    }
}

fn fill_large(store: &Store, octets: u64) -> String {
    let line =
        b"VGhpcyBpcyBhIGxpbmUgb2YgYmFzZTY0IGFzIGF0dGFjaG1lbnRzIGhhdmUgdGhlbSBpbiBtYWls\r\n".repeat(205);
    let piece = Bytes::from([line.as_slice(), b" ".repeat(16_384 - line.len()).as_slice()].concat());
    measured(octets, || {
        let fill = FillId { session: 1, n: 0 };
        let mut done = 0;
        begin(store, fill, 100_000, octets);
        while done < octets {
            store.handle(CatalogOp::FillData { fill, octets: piece.clone() });
            done += piece.len() as u64;
        }
        let uid = Uid::new(100_000).unwrap();
        store.handle(CatalogOp::FillCommit { fill, uid, proof: Proof::Origin });
        store.flush();
    })
}

fn fill_small(store: &Store, n: u32, octets: usize) -> String {
    measured(u64::from(n) * octets as u64, || {
        for nth in 1..=n {
            let header = format!(
                "Received: from a.example.org by b.example.org; Mon, 1 Jan 2024 00:00:00 +0000\r\nFrom: A <a@example.org>\r\n\
                 To: B <b@example.org>\r\nSubject: number {nth}\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <{nth}@example.org>\r\n\
                 X-Filler: {}\r\n\r\n",
                "filler ".repeat(150)
            );
            let mut body = header.into_bytes();
            while body.len() + 80 < octets {
                body.extend_from_slice(
                    b"a line of an ordinary message, as people write them to each other all day\r\n",
                );
            }
            body.resize(octets, b'.');
            let fill = FillId { session: 1, n: nth.into() };
            let uid = Uid::new(nth).unwrap();
            begin(store, fill, nth, octets as u64);
            store.handle(CatalogOp::FillData { fill, octets: body.into() });
            store.handle(CatalogOp::FillCommit { fill, uid, proof: Proof::Origin });
            let items = ["ENVELOPE", "RFC822.SIZE", "INTERNALDATE"];
            let value = |name: &str| (ItemKey::named(name.as_bytes()).unwrap(), Bytes::from(vec![b'v'; 400]));
            let items = items.into_iter().map(value).collect();
            store.handle(CatalogOp::Record { mailbox: mailbox(), uid, items, proof: Proof::Origin });
        }
        store.flush();
    })
}

fn begin(store: &Store, fill: FillId, n: u32, octets: u64) {
    let (mailbox, uid, item) = (mailbox(), Uid::new(n), ItemKey::whole());
    store.handle(CatalogOp::FillOpen { fill, mailbox, uid, item, octets });
}

/// A list as mail programs ask for it: three values of the origin, and header fields that are cut.
fn resolve(store: &Store) -> (f64, f64) {
    let mut items =
        ["ENVELOPE", "RFC822.SIZE", "INTERNALDATE"].map(|n| ItemKey::named(n.as_bytes()).unwrap()).to_vec();
    items.push(ItemKey::section(b"HEADER.FIELDS (FROM TO SUBJECT DATE MESSAGE-ID)").unwrap());
    timed(store, &items, 256)
}

fn resolve_bodies(store: &Store, uids: u32) -> (f64, f64) {
    timed(store, &[ItemKey::whole()], uids)
}

fn resolve_after_record(store: &Store) -> (f64, f64) {
    let item = ItemKey::named(b"SAVEDATE").unwrap();
    let told = |uid| {
        let items = vec![(item.clone(), Bytes::from_static(b"NIL"))];
        store.handle(CatalogOp::Record { mailbox: mailbox(), uid, items, proof: Proof::Origin });
    };
    timed_after(store, std::slice::from_ref(&item), 1, told)
}

fn timed(store: &Store, items: &[ItemKey], uids: u32) -> (f64, f64) {
    timed_after(store, items, uids, |_| ())
}

fn timed_after(store: &Store, items: &[ItemKey], uids: u32, before: impl Fn(Uid)) -> (f64, f64) {
    let mut times: Vec<f64> = (0..50)
        .map(|round| {
            let first = 1 + round * 64;
            let uids: Vec<Uid> = (first..first + uids).filter_map(Uid::new).collect();
            uids.iter().for_each(|uid| before(*uid));
            let began = Instant::now();
            let op =
                CatalogOp::Resolve { request: RequestId(1), mailbox: mailbox(), uids, items: items.to_vec() };
            let Some(CatalogReply::Resolved { rows, .. }) = store.handle(op) else { return f64::NAN };
            let took = began.elapsed().as_secs_f64() * 1000.0;
            assert!(rows.iter().all(|row| row.values.iter().all(Option::is_some)), "not all held");
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times.first().copied().unwrap_or(f64::NAN), times.get(25).copied().unwrap_or(f64::NAN))
}

fn measured(octets: u64, work: impl FnOnce()) -> String {
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    work();
    let (cpu, wall) = (cpu_seconds() - cpu, wall.elapsed().as_secs_f64());
    let mega = octets as f64 / 1e6;
    format!("{:7.0} MB per CPU-second, {cpu:.2} CPU-s, {wall:.2} s", mega / cpu)
}

/// Of this process, all threads, user and system.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let after = stat.rsplit(')').next().unwrap_or_default();
    after.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>()
        / 100.0
}
