//! Where kept sessions live: one small task each, a list of them, and the rules between them.
//!
//! * At most one of a user and server: the one that was left last.
//! * A new login ends the old session after the origin has accepted it, never before (decisions/0003): whoever names a
//!   user ends nothing.
//! * Nothing is dialled here.

use crate::keeper::{Keeper, Limits, Output, Why};
use bytes::Bytes;
use discovery_core::{
    id::{AccountKey, ServerId, UserKey},
    now::{Now, UnixMillis},
    seam::{
        advisor::Held,
        gate::Grant,
        sink::{Put, Sink},
    },
};
use imap_core::{
    catalog::{Catalog, CatalogOp, CatalogReply, MailboxKey},
    mutants,
    preload::{Description, Order, Preload, Read},
    retained::{Handed, Retained, UidRanges},
    uid::Uid,
};
use seams::AsyncIo;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};

/// A kept session, as the operator sees it.
#[derive(Clone, Debug)]
pub struct Sustained {
    /// Whose.
    pub account: AccountKey,
    /// Which mailbox is watched.
    pub mailbox: Bytes,
    /// When its client left.
    pub since: UnixMillis,
    /// `idle` or `poll`.
    pub way: &'static str,
    /// Messages fetched.
    pub messages: u64,
    /// Their octets.
    pub octets: u64,
}

/// Makes the [`Preload`] of one account's keeper.
pub type Preloads = Arc<dyn Fn(&AccountKey) -> Box<dyn Preload> + Send + Sync>;

/// See the module's documentation. Clones are the same house.
#[derive(Clone)]
pub struct House(Arc<Inner>);

struct Inner {
    limits: Limits,
    per_server_max: usize,
    catalog: Arc<dyn Catalog>,
    /// Whose turn it is with the store: a thread each while a server tells everybody of new mail is too many.
    turns: Semaphore,
    preloads: Preloads,
    kept: Mutex<HashMap<AccountKey, Arc<Card>>>,
    counts: Counts,
    /// `true` once the node ends; the task of each session holds a receiver.
    drain: watch::Sender<bool>,
}

#[derive(Default)]
struct Counts {
    kept: AtomicU64,
    ended: [AtomicU64; Why::ALL.len()],
}

struct Card {
    since: UnixMillis,
    mailbox: Bytes,
    way: &'static str,
    messages: AtomicU64,
    octets: AtomicU64,
    end: watch::Sender<Option<Why>>,
    /// Nothing is fetched before this moment: somebody tried this user's name with a wrong password.
    suspended: Arc<Mutex<Option<std::time::Instant>>>,
}

/// How long a refused login holds up synthetic work in that user's name.
const SUSPENSION: Duration = Duration::from_secs(15 * 60);
/// While nothing but news is expected.
const BUFFER_WATCHING: usize = 2 * 1024;
/// While mail comes.
const BUFFER_FETCHING: usize = 64 * 1024;
/// Kept sessions that are with the store at a time; it writes for one at a time.
pub const TURNS: usize = 4;
/// How long the origin may not take what is written to it.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

impl House {
    /// An empty one.
    #[must_use]
    pub fn new(limits: Limits, per_server_max: usize, catalog: Arc<dyn Catalog>, preloads: Preloads) -> Self {
        Self(Arc::new(Inner {
            limits,
            per_server_max,
            catalog,
            turns: Semaphore::new(TURNS),
            preloads,
            kept: Mutex::default(),
            counts: Counts::default(),
            drain: watch::Sender::new(false),
        }))
    }

    /// Who is in it.
    #[must_use]
    pub fn list(&self) -> Vec<Sustained> {
        let sustained = |(account, card): (&AccountKey, &Arc<Card>)| Sustained {
            account: account.clone(),
            mailbox: card.mailbox.clone(),
            since: card.since,
            way: card.way,
            messages: card.messages.load(Ordering::Relaxed),
            octets: card.octets.load(Ordering::Relaxed),
        };
        let mut list: Vec<_> = self.0.kept().iter().map(sustained).collect();
        list.sort_by(|a, b| a.account.cmp(&b.account));
        list
    }

    /// Ends the sessions of `user`, at whatever server; how many these are.
    #[must_use]
    pub fn end(&self, user: UserKey, why: Why) -> usize {
        let mut ended = 0;
        for (account, card) in self.0.kept().iter() {
            if account.user == user {
                card.end.send_replace(Some(why));
                ended += 1;
            }
        }
        ended
    }

    /// How many sessions were taken over, and how many ended for which reason.
    #[must_use]
    pub fn counts(&self) -> (u64, Vec<(Why, u64)>) {
        let counts = &self.0.counts;
        let ended = Why::ALL.iter().zip(&counts.ended).map(|(why, n)| (*why, n.load(Ordering::Relaxed)));
        (counts.kept.load(Ordering::Relaxed), ended.collect())
    }

    /// Ends all of them; returns when the last has said goodbye, which takes a few seconds at most.
    pub async fn drain(&self) {
        self.0.drain.send_replace(true);
        self.0.drain.closed().await;
    }

    fn take(&self, retained: Retained<Box<dyn AsyncIo>>) {
        let account = retained.facts.account.clone();
        let now = now();
        let suspended = Arc::new(Mutex::new(None));
        let inner = (self.0.preloads)(&account);
        let preload = Box::new(Suspending { inner, until: Arc::clone(&suspended) });
        let keeper = Keeper::new(retained.facts, self.0.limits, preload, now);
        let (end, ending) = watch::channel(None);
        let card = Arc::new(Card {
            since: now.wall,
            mailbox: keeper.mailbox().clone(),
            way: keeper.way(),
            messages: AtomicU64::new(0),
            octets: AtomicU64::new(0),
            end,
            suspended,
        });
        let draining = self.0.drain.subscribe();
        {
            let mut kept = self.0.kept();
            let others = kept.keys().filter(|a| a.server == account.server && **a != account).count();
            if others >= self.0.per_server_max {
                card.end.send_replace(Some(Why::Full));
            } else if let Some(old) = kept.insert(account.clone(), Arc::clone(&card)) {
                old.end.send_replace(Some(Why::Replaced));
            }
        }
        self.0.counts.kept.fetch_add(1, Ordering::Relaxed);
        tracing::info!(user = %account.user, server = %account.server, way = card.way, "kept");
        let inner = Arc::clone(&self.0);
        let task = Task { inner, account, card, keeper, ending, draining };
        tokio::spawn(task.run(retained.io, retained.ahead));
    }
}

impl Sink<Handed<Box<dyn AsyncIo>>> for House {
    fn put(&self, value: Handed<Box<dyn AsyncIo>>) -> Put {
        let end = |account: &AccountKey, why| {
            if let Some(card) = self.0.kept().get(account) {
                card.end.send_replace(Some(why));
            }
        };
        match value {
            Handed::Left(retained) => self.take(*retained),
            Handed::LoggedIn(account) => end(&account, Why::NewLogin),
            Handed::Limited(account) => end(&account, Why::Connections),
            Handed::Refused(account) => {
                if mutants::on("house-stranger-ends") {
                    end(&account, Why::NewLogin);
                }
                if let Some(card) = self.0.kept().get(&account) {
                    *lock(&card.suspended) = Some(now().mono + SUSPENSION);
                }
            }
            Handed::ServerGone(server) => self.server_gone(&server),
        }
        Put::Taken
    }
}

impl House {
    fn server_gone(&self, server: &ServerId) {
        for (account, card) in self.0.kept().iter() {
            if account.server == *server {
                card.end.send_replace(Some(Why::Operator));
            }
        }
    }
}

impl Inner {
    fn kept(&self) -> MutexGuard<'_, HashMap<AccountKey, Arc<Card>>> {
        lock(&self.kept)
    }
}

struct Task {
    inner: Arc<Inner>,
    account: AccountKey,
    card: Arc<Card>,
    keeper: Keeper,
    ending: watch::Receiver<Option<Why>>,
    draining: watch::Receiver<bool>,
}

impl Task {
    async fn run(mut self, mut io: Box<dyn AsyncIo>, ahead: Vec<Bytes>) {
        let why = self.serve(&mut io, ahead).await;
        // A server that is gone cannot be said goodbye to.
        let _gone = timeout(Duration::from_secs(1), io.shutdown()).await;
        let mut kept = self.inner.kept();
        if kept.get(&self.account).is_some_and(|card| Arc::ptr_eq(card, &self.card)) {
            kept.remove(&self.account);
        }
        drop(kept);
        if let Some(n) = Why::ALL.iter().zip(&self.inner.counts.ended).find(|(w, _)| **w == why) {
            n.1.fetch_add(1, Ordering::Relaxed);
        }
        let (messages, octets) = self.keeper.fetched();
        tracing::info!(user = %self.account.user, why = why.word(), messages, octets, "no longer kept");
    }

    async fn serve(&mut self, io: &mut Box<dyn AsyncIo>, ahead: Vec<Bytes>) -> Why {
        for octets in ahead {
            self.heard(octets);
        }
        let mut buffer = vec![0; BUFFER_WATCHING];
        loop {
            if let Some(why) = self.obey(io).await {
                return why;
            }
            let room = if self.keeper.is_fetching() { BUFFER_FETCHING } else { BUFFER_WATCHING };
            if buffer.len() != room {
                buffer = vec![0; room];
            }
            let due = self.keeper.poll_timeout().map_or_else(Instant::now, Instant::from_std);
            let ending = *self.ending.borrow_and_update();
            let ending = if *self.draining.borrow_and_update() { Some(Why::Drain) } else { ending };
            if let Some(why) = ending
                && !self.keeper.is_leaving()
            {
                self.keeper.handle_end(now(), why);
                continue;
            }
            tokio::select! {
                read = io.read(&mut buffer) => match read {
                    Ok(n) if n > 0 => {
                        let octets = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
                        self.heard(octets);
                    }
                    Ok(_) | Err(_) => self.keeper.handle_closed(now()),
                },
                () = sleep_until(due) => self.keeper.handle_timeout(now()),
                _ = self.ending.changed() => {}
                _ = self.draining.changed() => {}
            }
        }
    }

    fn heard(&mut self, octets: Bytes) {
        self.keeper.handle_server(now(), octets);
        let (messages, octets) = self.keeper.fetched();
        self.card.messages.store(messages, Ordering::Relaxed);
        self.card.octets.store(octets, Ordering::Relaxed);
    }

    /// Does what the keeper wants; nothing is read meanwhile, so a slow disk slows the origin and fills no memory.
    async fn obey(&mut self, io: &mut Box<dyn AsyncIo>) -> Option<Why> {
        let mut ended = None;
        loop {
            let mut ops: Vec<CatalogOp> = Vec::new();
            while let Some(output) = self.keeper.poll_output() {
                match output {
                    Output::ToServer(octets) => {
                        let said = async {
                            io.write_all(&octets).await?;
                            io.flush().await
                        };
                        if !matches!(timeout(WRITE_PATIENCE, said).await, Ok(Ok(()))) {
                            self.keeper.handle_closed(now());
                        }
                    }
                    Output::Catalog(op) => ops.push(op),
                    Output::Ended(why) => ended = Some(why),
                }
            }
            if ops.is_empty() {
                return ended;
            }
            let all_at_once = mutants::on("house-thread-each");
            let turn = if all_at_once { None } else { self.inner.turns.acquire().await.ok() };
            let replies = tell(Arc::clone(&self.inner.catalog), ops).await;
            drop(turn);
            for reply in replies {
                self.keeper.handle_store(now(), reply);
            }
        }
    }
}

async fn tell(catalog: Arc<dyn Catalog>, ops: Vec<CatalogOp>) -> Vec<CatalogReply> {
    let told = spawn_blocking(move || ops.into_iter().filter_map(|op| catalog.handle(op)).collect());
    told.await.unwrap_or_else(|error| {
        tracing::error!(%error, "the store failed under a kept session");
        Vec::new()
    })
}

/// Nothing is fetched while this user's name is under suspicion.
struct Suspending {
    inner: Box<dyn Preload>,
    until: Arc<Mutex<Option<std::time::Instant>>>,
}

impl Preload for Suspending {
    fn ask(&mut self, octets: u32, now: Now) -> Grant {
        match *lock(&self.until) {
            Some(until) if until > now.mono => Grant::Wait(until),
            Some(_) | None => self.inner.ask(octets, now),
        }
    }

    fn listed(&mut self, mailbox: &MailboxKey, uids: &UidRanges, now: Now) {
        self.inner.listed(mailbox, uids, now);
    }

    fn described(&mut self, mailbox: &MailboxKey, uid: Uid, said: &Description, now: Now) {
        self.inner.described(mailbox, uid, said, now);
    }

    fn held(&mut self, mailbox: &MailboxKey, uid: Uid, held: Held) {
        self.inner.held(mailbox, uid, held);
    }

    fn read(&mut self, mailbox: &MailboxKey, uid: Uid, read: Read, now: Now) {
        self.inner.read(mailbox, uid, read, now);
    }

    fn fetched(&mut self, mailbox: &MailboxKey, uid: Uid, octets: u64, now: Now) {
        self.inner.fetched(mailbox, uid, octets, now);
    }

    fn gone(&mut self, mailbox: &MailboxKey, uids: &[Uid], now: Now) {
        self.inner.gone(mailbox, uids, now);
    }

    fn next(&mut self, open: &MailboxKey, roams: bool, now: Now) -> Option<Order> {
        self.inner.next(open, roams, now)
    }

    fn standstill(&mut self, now: Now) -> Option<std::time::Instant> {
        self.inner.standstill(now)
    }

    fn foreground(&mut self, active: bool, now: Now) {
        self.inner.foreground(active, now);
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the shell that tells the core the time")]
fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall = UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    Now { mono: Instant::now().into_std(), wall }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
