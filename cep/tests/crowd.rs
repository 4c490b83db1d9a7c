//! Many kept sessions in one house, over streams in memory.

mod common;

use bytes::Bytes;
use cep::{
    house::{House, TURNS},
    keeper::Limits,
    plain::Plain,
    rules::Terms,
};
use common::{facts, serve};
use discovery_core::seam::sink::Sink;
use imap_core::{
    catalog::{Catalog, CatalogOp, CatalogReply},
    preload::Preload,
    retained::{Handed, Retained},
};
use seams::AsyncIo;
use std::{
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

/// Who is inside meets up to `TURNS + 1`; nobody waits for more than a moment for one more to come.
#[derive(Default)]
struct Meeting {
    /// Inside now, at most so far, in all.
    inside: Mutex<(usize, usize, usize)>,
    changed: Condvar,
}

impl Catalog for Meeting {
    fn handle(&self, _: CatalogOp) -> Option<CatalogReply> {
        let mut inside = self.inside.lock().expect("nobody panics in here");
        inside.0 += 1;
        inside.1 = inside.1.max(inside.0);
        inside.2 += 1;
        self.changed.notify_all();
        let first = |inside: &mut (usize, usize, usize)| inside.1 <= TURNS && inside.2 <= TURNS;
        inside =
            self.changed.wait_timeout_while(inside, Duration::from_millis(300), first).expect("as above").0;
        inside.0 -= 1;
        None
    }
}

#[tokio::test]
async fn many_that_hear_of_mail_at_once_take_few_threads() {
    let catalog = Arc::new(Meeting::default());
    let house = House::new(
        Limits::default(),
        Terms { lane: true, user_connections_max: 8, per_server_max: 100 },
        Arc::clone(&catalog) as Arc<_>,
        Arc::new(|_| Box::new(Plain::default()) as Box<dyn Preload>),
    );
    for user in 0..40 {
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(far));
        let io: Box<dyn AsyncIo> = Box::new(near);
        let retained = Retained { io, ahead: vec![Bytes::new()], facts: facts(user) };
        let _taken = house.put(Handed::Left(Box::new(retained)));
    }
    assert_eq!(house.list().len(), 40);
    // Each of them tells the store which mailbox it has opened.
    while catalog.inside.lock().unwrap().2 < 40 {
        tokio::task::yield_now().await;
    }
    assert_eq!(catalog.inside.lock().unwrap().1, TURNS);
    house.drain().await;
    assert!(house.list().is_empty());
}
