//! What the house does with kept sessions, over streams in memory.

mod common;

use cep::{
    house::{House, Sustained},
    keeper::{Limits, Why},
    plain::Plain,
    rules::Terms,
};
use common::{account, facts, serve};
use discovery_core::{
    now::Now,
    seam::{advisor::Held, gate::Grant, sink::Sink},
};
use imap_core::{
    catalog::{Catalog, CatalogOp, CatalogReply, MailboxKey},
    preload::{Description, Order, Preload, Read},
    retained::{Handed, Retained, UidRanges},
    uid::Uid,
};
use seams::AsyncIo;
use std::sync::Arc;
use tokio::task::JoinHandle;

struct Nothing;

impl Catalog for Nothing {
    fn handle(&self, _: CatalogOp) -> Option<CatalogReply> {
        None
    }
}

/// An error of ours.
struct Broken;

impl Preload for Broken {
    fn listed(&mut self, _: &MailboxKey, _: &UidRanges, _: Now) {
        panic!("this is the error that the test wants");
    }
    fn described(&mut self, _: &MailboxKey, _: Uid, _: &Description, _: Now) {}
    fn held(&mut self, _: &MailboxKey, _: Uid, _: Held) {}
    fn read(&mut self, _: &MailboxKey, _: Uid, _: Read, _: Now) {}
    fn fetched(&mut self, _: &MailboxKey, _: Uid, _: u64, _: Now) {}
    fn gone(&mut self, _: &MailboxKey, _: &[Uid], _: Now) {}
    fn next(&mut self, _: &MailboxKey, _: bool, _: Now) -> Option<Order> {
        None
    }
    fn ask(&mut self, _: u32, _: Now) -> Grant {
        Grant::Go
    }
    fn foreground(&mut self, _: bool, _: Now) {}
}

/// User 9 has the broken one.
fn house(lane: bool) -> House {
    House::new(
        Limits::default(),
        Terms { lane, user_connections_max: 2, per_server_max: 100 },
        Arc::new(Nothing),
        Arc::new(|account| {
            if *account == common::account(9) {
                Box::new(Broken) as Box<dyn Preload>
            } else {
                Box::new(Plain::default())
            }
        }),
    )
}

/// The server of the session that is kept now.
fn keep(house: &House, user: u8) -> JoinHandle<std::io::Result<()>> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let io: Box<dyn AsyncIo> = Box::new(near);
    let _taken = house.put(Handed::Left(Box::new(Retained { io, ahead: Vec::new(), facts: facts(user) })));
    tokio::spawn(serve(far))
}

/// Those that ended, once `left` are kept.
async fn ended(house: &House, left: usize) -> Vec<(Why, u64)> {
    while house.list().len() != left {
        tokio::task::yield_now().await;
    }
    house.counts().1.into_iter().filter(|(_, n)| *n > 0).collect()
}

#[tokio::test]
async fn every_end_is_counted_with_its_reason() {
    let house = house(true);
    let _served = keep(&house, 1);
    let dies = keep(&house, 2);
    let _served_too = keep(&house, 9);
    assert_eq!(house.end(account(1).user), 1);
    dies.abort();
    let ended = ended(&house, 0).await;
    assert_eq!(ended, [(Why::Operator, 1), (Why::OriginLost, 1), (Why::Failed, 1)]);
    assert_eq!(house.counts().0, 3);
}

#[tokio::test]
async fn what_happens_with_clients_reaches_the_session() {
    let put = |house: &House, what| {
        let _taken = house.put(what);
    };
    let is = |house: &House| house.list().iter().map(|Sustained { lane, .. }| *lane).collect::<Vec<_>>();
    let house_with = house(true);
    let _served = keep(&house_with, 1);
    for (what, lane) in [
        (Handed::LoggedIn(account(1)), true),
        (Handed::Refused(account(1)), true),
        (Handed::LoggedIn(account(2)), true),
        (Handed::LoggedOut(account(1)), false),
        (Handed::LoggedIn(account(1)), true),
    ] {
        put(&house_with, what);
        assert_eq!(is(&house_with), [lane]);
    }
    // A second client of his is the second connection beyond ours.
    put(&house_with, Handed::LoggedIn(account(1)));
    assert_eq!(ended(&house_with, 0).await, [(Why::Budget, 1)]);

    let alone = house(false);
    let _served = keep(&alone, 1);
    put(&alone, Handed::Limited(account(1)));
    assert_eq!(ended(&alone, 0).await, [(Why::Connections, 1)]);
    let _served = keep(&alone, 2);
    put(&alone, Handed::LoggedIn(account(2)));
    assert_eq!(ended(&alone, 0).await, [(Why::NewLogin, 1), (Why::Connections, 1)]);
    let _served = keep(&alone, 3);
    put(&alone, Handed::ServerGone(account(3).server));
    assert_eq!(ended(&alone, 0).await.len(), 3);
}
