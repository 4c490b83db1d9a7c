//! What a session asks of and tells the store: in order, one after the other, on threads that may block.
//!
//! A disk slower than the wire must not slow mail. When [`FILL_OCTETS_SOFT`] of bodies wait for it the origin is not
//! read for a moment ([`Errands::pause`]); when the moments of one body add up to [`PAUSE_MAX`], that body is given up
//! and counted: the client gets its octets anyway, and the store learns them another time. A body that another session
//! may be following has longer: giving it up ends that session's answer in the middle. A disk that gets on earns more.

use imap_core::{
    catalog::{Catalog, CatalogOp, CatalogReply, Claim, FillId, Row},
    mutants,
    uid::Uid,
};
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::{JoinError, JoinHandle, spawn_blocking},
    time::Instant,
};

/// Octets of bodies with the store or on their way to it, per session, beyond which it is waited for.
const FILL_OCTETS_SOFT: usize = 512 * 1024;
/// Beyond which nothing is waited for: half of what a session may cost in memory.
const FILL_OCTETS_MAX: usize = 1024 * 1024;
/// For how long one body may hold up its own reader on the whole. A person who opens it does not notice more easily.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// So many octets that the store takes earn a microsecond more: a disk of 10 MB/s or more is waited for as long as it
/// takes, because no line to a branch is much faster.
const EARNING_OCTETS: usize = 10;
/// The same for a body that others may be following; below their own patience.
const PAUSE_AWAITED_MAX: Duration = Duration::from_secs(10);
/// Octets of a body that are handed over together.
const GATHERED: usize = 128 * 1024;
/// Told the store in one go.
const BATCH_MAX: usize = 16;
/// Questions and small facts that may wait; a session that has more is one with a broken store, and its facts are
/// forgotten rather than kept.
const OPS_MAX: usize = 16 * 1024;

/// The queue of one session towards the store.
pub(super) struct Errands {
    catalog: Arc<dyn Catalog>,
    waiting: VecDeque<CatalogOp>,
    /// Of bodies: waiting, and with the store.
    fill_octets: usize,
    running_octets: usize,
    /// The body that grows.
    growing: Option<FillId>,
    /// Whether it was announced with its UID, so that other sessions can find it.
    awaited: bool,
    paused_since: Option<Instant>,
    /// What the growing body has cost its reader before.
    paused: Duration,
    /// Fills of which the store must hear nothing more.
    given_up: BTreeSet<FillId>,
    running: Option<JoinHandle<Vec<CatalogReply>>>,
    /// What to answer when the running batch does not.
    fallback: Option<CatalogReply>,
    replies: VecDeque<CatalogReply>,
    abandoned: u64,
    failed: u64,
}

impl Errands {
    pub(super) fn new(catalog: Arc<dyn Catalog>) -> Self {
        Self {
            catalog,
            waiting: VecDeque::new(),
            fill_octets: 0,
            running_octets: 0,
            growing: None,
            awaited: false,
            paused_since: None,
            paused: Duration::ZERO,
            given_up: BTreeSet::new(),
            running: None,
            fallback: None,
            replies: VecDeque::new(),
            abandoned: 0,
            failed: 0,
        }
    }

    /// Queues `op` behind all others.
    pub(super) fn push(&mut self, op: CatalogOp) {
        match &op {
            CatalogOp::FillData { fill, octets } => {
                let fill = *fill;
                if self.given_up.contains(&fill) {
                    return;
                }
                if self.fill_octets.saturating_add(octets.len()) > FILL_OCTETS_MAX
                    && !mutants::on("handler-slow-store-unbounded")
                {
                    self.give_up(fill);
                    return;
                }
                self.fill_octets += octets.len();
                self.growing = Some(fill);
            }
            CatalogOp::FillOpen { uid, .. } => {
                self.paused = Duration::ZERO;
                self.awaited = uid.is_some();
            }
            CatalogOp::FillCommit { fill, .. } | CatalogOp::FillAbort { fill } => {
                if self.given_up.remove(fill) {
                    return;
                }
            }
            CatalogOp::Record { .. } | CatalogOp::Used { .. } if self.waiting.len() >= OPS_MAX => return,
            CatalogOp::Account { .. }
            | CatalogOp::Selected { .. }
            | CatalogOp::Resolve { .. }
            | CatalogOp::Claim { .. }
            | CatalogOp::Release { .. }
            | CatalogOp::Count { .. }
            | CatalogOp::Record { .. }
            | CatalogOp::Expunged { .. }
            | CatalogOp::Forget { .. }
            | CatalogOp::Used { .. }
            | CatalogOp::ShadowWanted { .. } => {}
        }
        let gathers = matches!(op, CatalogOp::FillData { .. }) && self.gathers();
        self.waiting.push_back(op);
        if !gathers {
            self.start();
        }
    }

    /// Whether octets of a body may wait for more of it: nobody can read it before its end, which comes by another op,
    /// and each hand-over to a thread costs as much as hashing what is handed over.
    fn gathers(&self) -> bool {
        !self.awaited && self.running.is_none() && self.fill_octets < GATHERED
    }

    /// The next answer, or `None` when the store has got on without one; pending while it does nothing. Cancel-safe.
    pub(super) async fn turn(&mut self) -> Option<CatalogReply> {
        if self.replies.is_empty() {
            match &mut self.running {
                None => std::future::pending().await,
                Some(running) => {
                    let done = running.await;
                    self.finished(done);
                }
            }
        }
        self.replies.pop_front()
    }

    /// Counts a pause that goes on as one that ended now and began again.
    fn settle_pause(&mut self) {
        if let Some(since) = &mut self.paused_since {
            let now = Instant::now();
            self.paused += now.saturating_duration_since(*since);
            *since = now;
        }
    }

    /// Whether the origin should not be read now, so that the store can keep up, and until when at most. A body that
    /// has used up its patience is given up here.
    pub(super) fn pause(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let behind = self.fill_octets > FILL_OCTETS_SOFT;
        let growing = self.growing.filter(|fill| behind && !self.given_up.contains(fill));
        let Some(fill) = growing else {
            self.settle_pause();
            self.paused_since = None;
            return None;
        };
        let since = *self.paused_since.get_or_insert(now);
        let all = if self.awaited { PAUSE_AWAITED_MAX } else { PAUSE_MAX };
        let until = since + all.saturating_sub(self.paused);
        if until <= now {
            self.paused_since = None;
            self.give_up(fill);
            return None;
        }
        Some(until)
    }

    /// Does all that waits, answers or not: what a client fetched last shall not be lost because it left.
    pub(super) async fn finish(&mut self) {
        while let Some(running) = &mut self.running {
            let done = running.await;
            self.finished(done);
        }
    }

    /// How many bodies were given up because the store was too slow, and how many times it failed outright, since the
    /// last time of asking.
    pub(super) fn take_troubles(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.abandoned), std::mem::take(&mut self.failed))
    }

    fn give_up(&mut self, fill: FillId) {
        self.abandoned += 1;
        self.given_up.insert(fill);
        let mut freed = 0;
        self.waiting.retain(|op| {
            let CatalogOp::FillData { fill: its, octets } = op else { return true };
            if *its == fill {
                freed += octets.len();
            }
            *its != fill
        });
        self.fill_octets = self.fill_octets.saturating_sub(freed);
        self.waiting.push_back(CatalogOp::FillAbort { fill });
        self.start();
    }

    fn start(&mut self) {
        if self.running.is_some() || self.waiting.is_empty() {
            return;
        }
        let mut batch = Vec::new();
        while let Some(op) = self.waiting.pop_front() {
            if let CatalogOp::FillData { octets, .. } = &op {
                self.running_octets += octets.len();
            }
            self.fallback = not_held(&op);
            batch.push(op);
            // Whoever asks waits for the answer, and should not wait for what comes after it.
            if self.fallback.is_some() || batch.len() == BATCH_MAX {
                break;
            }
        }
        let catalog = Arc::clone(&self.catalog);
        self.running =
            Some(spawn_blocking(move || batch.into_iter().filter_map(|op| catalog.handle(op)).collect()));
    }

    fn finished(&mut self, done: Result<Vec<CatalogReply>, JoinError>) {
        self.running = None;
        self.settle_pause();
        let taken = std::mem::take(&mut self.running_octets);
        self.fill_octets = self.fill_octets.saturating_sub(taken);
        let earned = u64::try_from(taken / EARNING_OCTETS).unwrap_or(u64::MAX);
        self.paused = self.paused.saturating_sub(Duration::from_micros(earned));
        let fallback = self.fallback.take();
        match done {
            Ok(replies) if !replies.is_empty() => self.replies.extend(replies),
            // Nobody asked, or nobody answered.
            Ok(_) => self.replies.extend(fallback),
            Err(error) => {
                tracing::error!(%error, "the store failed in the middle of a session");
                self.failed += 1;
                self.replies.extend(fallback);
            }
        }
        self.start();
    }
}

/// The answer of a store that holds nothing, for the ops that are questions: a session must never wait for good.
fn not_held(op: &CatalogOp) -> Option<CatalogReply> {
    match op {
        CatalogOp::Resolve { request, uids, items, .. } => {
            let row = |uid: &Uid| Row { uid: *uid, values: vec![None; items.len()] };
            Some(CatalogReply::Resolved { request: *request, rows: uids.iter().map(row).collect() })
        }
        CatalogOp::Claim { request, .. } => {
            Some(CatalogReply::Claimed { request: *request, claim: Claim::Yours })
        }
        CatalogOp::Count { request, .. } => {
            Some(CatalogReply::Counted { request: *request, messages: 0, known: 0 })
        }
        CatalogOp::ShadowWanted { request, .. } => {
            Some(CatalogReply::ShadowWanted { request: *request, wanted: None })
        }
        CatalogOp::Account { .. }
        | CatalogOp::Selected { .. }
        | CatalogOp::Release { .. }
        | CatalogOp::Record { .. }
        | CatalogOp::FillOpen { .. }
        | CatalogOp::FillData { .. }
        | CatalogOp::FillCommit { .. }
        | CatalogOp::FillAbort { .. }
        | CatalogOp::Expunged { .. }
        | CatalogOp::Forget { .. }
        | CatalogOp::Used { .. } => None,
    }
}

/// A store that holds nothing and keeps nothing: for a node whose store is turned off or cannot be opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCatalog;

impl Catalog for NoCatalog {
    fn handle(&self, op: CatalogOp) -> Option<CatalogReply> {
        not_held(&op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use discovery_core::{
        id::{AccountKey, ServerId, UserKey},
        value::Proof,
    };
    use imap_core::{
        catalog::{MailboxKey, RequestId},
        item::ItemKey,
        uid::UidValidity,
    };
    use std::sync::{Condvar, Mutex};
    use tokio::time::advance;

    /// Writes down what it is told; holds every op back while it is closed.
    #[derive(Default)]
    struct Recording {
        told: Mutex<Vec<String>>,
        closed: Mutex<bool>,
        opened: Condvar,
    }

    impl Recording {
        fn close(&self) {
            *self.closed.lock().unwrap() = true;
        }

        fn open(&self) {
            *self.closed.lock().unwrap() = false;
            self.opened.notify_all();
        }

        fn told(&self) -> Vec<String> {
            self.told.lock().unwrap().clone()
        }
    }

    impl Catalog for Recording {
        fn handle(&self, op: CatalogOp) -> Option<CatalogReply> {
            // A test that failed while the store was closed must still end.
            let at_most = Duration::from_secs(10);
            drop(
                self.opened
                    .wait_timeout_while(self.closed.lock().unwrap(), at_most, |closed| *closed)
                    .unwrap(),
            );
            let told = if let CatalogOp::FillOpen { fill, .. } = &op {
                format!("open {}", fill.n)
            } else if let CatalogOp::FillData { fill, octets } = &op {
                format!("data {} {}", fill.n, octets.len())
            } else if let CatalogOp::FillCommit { fill, .. } = &op {
                format!("commit {}", fill.n)
            } else if let CatalogOp::FillAbort { fill } = &op {
                format!("abort {}", fill.n)
            } else if let CatalogOp::Resolve { request, .. } = &op {
                format!("resolve {}", request.0)
            } else {
                "other".to_owned()
            };
            self.told.lock().unwrap().push(told);
            not_held(&op)
        }
    }

    async fn reply(errands: &mut Errands) -> CatalogReply {
        loop {
            if let Some(reply) = errands.turn().await {
                return reply;
            }
        }
    }

    fn mailbox() -> MailboxKey {
        let server = ServerId::new("mail.lab.test").expect("a name");
        let account = AccountKey { server, user: UserKey { version: 1, hash: [7; 16] } };
        let uid_validity = UidValidity::new(1).expect("not zero");
        MailboxKey { account, name: Bytes::from_static(b"INBOX"), uid_validity, utf8: false }
    }

    fn uid(n: u32) -> Uid {
        Uid::new(n).expect("not zero")
    }

    fn fill(n: u64) -> FillId {
        FillId { session: 1, n }
    }

    fn open(n: u64) -> CatalogOp {
        let item = ItemKey::whole();
        CatalogOp::FillOpen { fill: fill(n), mailbox: mailbox(), uid: None, item, octets: 1 }
    }

    fn open_for_all(n: u64) -> CatalogOp {
        let item = ItemKey::whole();
        CatalogOp::FillOpen { fill: fill(n), mailbox: mailbox(), uid: Some(uid(1)), item, octets: 1 }
    }

    fn data(n: u64, octets: usize) -> CatalogOp {
        CatalogOp::FillData { fill: fill(n), octets: vec![0; octets].into() }
    }

    fn commit(n: u64) -> CatalogOp {
        CatalogOp::FillCommit { fill: fill(n), uid: uid(1), proof: Proof::Origin }
    }

    fn resolve(n: u64) -> CatalogOp {
        let items = vec![ItemKey::whole(), ItemKey::whole()];
        CatalogOp::Resolve { request: RequestId(n), mailbox: mailbox(), uids: vec![uid(1), uid(2)], items }
    }

    fn used() -> CatalogOp {
        CatalogOp::Used { mailbox: mailbox(), uids: vec![] }
    }

    #[tokio::test]
    async fn the_store_hears_everything_in_order() {
        let catalog = Arc::new(Recording::default());
        let mut errands = Errands::new(Arc::clone(&catalog) as Arc<dyn Catalog>);
        let mut wanted = vec!["open 1".to_owned()];
        errands.push(open(1));
        for n in 1..=200 {
            errands.push(data(1, n));
            wanted.push(format!("data 1 {n}"));
        }
        errands.push(resolve(9));
        errands.push(commit(1));
        wanted.extend(["resolve 9".to_owned(), "commit 1".to_owned()]);
        assert!(matches!(reply(&mut errands).await, CatalogReply::Resolved { request: RequestId(9), .. }));
        errands.finish().await;
        assert_eq!(catalog.told(), wanted);
        assert_eq!(errands.take_troubles(), (0, 0));
    }

    #[tokio::test]
    async fn a_question_is_answered_before_what_comes_behind_it() {
        let catalog = Arc::new(Recording::default());
        let mut errands = Errands::new(Arc::clone(&catalog) as Arc<dyn Catalog>);
        catalog.close();
        errands.push(used());
        errands.push(resolve(1));
        errands.push(used());
        catalog.open();
        reply(&mut errands).await;
        assert_eq!(catalog.told()[..2], ["other", "resolve 1"]);
        errands.finish().await;
        assert_eq!(catalog.told().len(), 3);
    }

    #[tokio::test]
    async fn a_body_that_the_disk_cannot_keep_up_with_is_given_up() {
        let catalog = Arc::new(Recording::default());
        let mut errands = Errands::new(Arc::clone(&catalog) as Arc<dyn Catalog>);
        catalog.close();
        // This one is with the store already and blocks it.
        errands.push(open(1));
        errands.push(open(2));
        errands.push(data(2, 10));
        let mut pushed = 0;
        while errands.take_troubles().0 == 0 {
            errands.push(data(1, 64 * 1024));
            pushed += 64 * 1024;
            assert!(pushed <= 2 * FILL_OCTETS_MAX, "what waits for the disk has no bound");
        }
        assert!(pushed >= FILL_OCTETS_MAX / 2);
        errands.push(data(1, 5));
        errands.push(commit(1));
        errands.push(data(2, 20));
        errands.push(commit(2));
        catalog.open();
        errands.finish().await;
        assert_eq!(catalog.told(), ["open 1", "open 2", "data 2 10", "abort 1", "data 2 20", "commit 2"]);
        // The name is free again.
        errands.push(open(1));
        errands.push(data(1, 7));
        errands.finish().await;
        assert_eq!(catalog.told()[6..], ["open 1", "data 1 7"]);
    }

    const KIB_64: usize = 64 * 1024;

    fn crowd(errands: &mut Errands, n: u64) {
        let mut pushed = 0;
        while errands.pause().is_none() {
            errands.push(data(n, KIB_64));
            pushed += KIB_64;
            assert!(pushed <= FILL_OCTETS_MAX, "nothing is waited for");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_waited_for_a_moment_and_no_longer() {
        let catalog = Arc::new(Recording::default());
        let mut errands = Errands::new(Arc::clone(&catalog) as Arc<dyn Catalog>);
        catalog.close();
        errands.push(open(1));
        crowd(&mut errands, 1);
        assert_eq!(errands.pause(), Some(Instant::now() + PAUSE_MAX));
        advance(PAUSE_MAX).await;
        assert_eq!(errands.pause(), None);
        assert_eq!(errands.take_troubles(), (1, 0));
        // The next body has its own patience, and one that others follow has more of it.
        errands.push(open(2));
        crowd(&mut errands, 2);
        assert_eq!(errands.pause(), Some(Instant::now() + PAUSE_MAX));
        errands.push(open_for_all(3));
        errands.push(data(3, 1));
        assert_eq!(errands.pause(), Some(Instant::now() + PAUSE_AWAITED_MAX));
        catalog.open();
        errands.finish().await;
        assert_eq!(catalog.told().last().map(String::as_str), Some("data 3 1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_as_fast_as_a_line_is_waited_for_as_long_as_it_takes_and_a_slower_one_is_not() {
        for (millis, kept) in [(40, true), (80, false)] {
            let catalog = Arc::new(Recording::default());
            let mut errands = Errands::new(Arc::clone(&catalog) as Arc<dyn Catalog>);
            errands.push(open(1));
            let mut given_up = false;
            // Half a mebibyte in 40 ms is 13 MB/s, in 80 ms 6.5 MB/s.
            for _ in 0..100 {
                catalog.close();
                for _ in 0..9 {
                    errands.push(data(1, KIB_64));
                }
                errands.pause();
                advance(Duration::from_millis(millis)).await;
                errands.pause();
                catalog.open();
                errands.finish().await;
                errands.pause();
                given_up |= errands.take_troubles().0 > 0;
            }
            assert_eq!(!given_up, kept, "{millis} ms");
        }
    }

    #[tokio::test]
    async fn a_store_that_panics_answers_not_held_and_goes_on() {
        struct Broken;
        impl Catalog for Broken {
            fn handle(&self, _: CatalogOp) -> Option<CatalogReply> {
                panic!("a bug in the store")
            }
        }
        let mut errands = Errands::new(Arc::new(Broken));
        for n in 1..=2 {
            errands.push(resolve(n));
            let CatalogReply::Resolved { request, rows } = reply(&mut errands).await else {
                panic!("another answer")
            };
            assert_eq!(request, RequestId(n));
            assert_eq!(rows.iter().map(|row| row.uid).collect::<Vec<_>>(), [uid(1), uid(2)]);
            assert!(rows.iter().all(|row| row.values.len() == 2 && row.values.iter().all(Option::is_none)));
        }
        assert_eq!(errands.take_troubles(), (0, 2));
    }

    #[tokio::test]
    async fn a_reply_that_is_not_awaited_to_its_end_is_not_lost() {
        let catalog = Arc::new(Recording::default());
        let mut errands = Errands::new(Arc::clone(&catalog) as Arc<dyn Catalog>);
        catalog.close();
        errands.push(resolve(4));
        tokio::select! {
            biased;
            _ = errands.turn() => panic!("the store is closed"),
            () = std::future::ready(()) => {}
        }
        catalog.open();
        assert!(matches!(reply(&mut errands).await, CatalogReply::Resolved { request: RequestId(4), .. }));
    }
}
