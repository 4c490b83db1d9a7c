//! Where kept sessions live: one small task each, and a list of them. What becomes of them, the [`rules`](crate::rules)
//! say. Nothing is dialled here.

use crate::{
    keeper::{Keeper, Limits, Output, Why},
    rules::{Event, KeptId, Rules, Terms, Verdict},
};
use bytes::Bytes;
use discovery_core::{
    id::{AccountKey, UserKey},
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
    collections::BTreeMap,
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
    /// Whether its user is connected beside it.
    pub lane: bool,
    /// Whether it says goodbye.
    pub leaving: bool,
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
    catalog: Arc<dyn Catalog>,
    /// Whose turn it is with the store: a thread each while a server tells everybody of new mail is too many.
    turns: Semaphore,
    preloads: Preloads,
    rooms: Mutex<Rooms>,
    counts: Counts,
    /// `true` once the node ends; the task of each session holds a receiver.
    drain: watch::Sender<bool>,
}

struct Rooms {
    rules: Rules,
    /// All that run, those that say goodbye too.
    cards: BTreeMap<KeptId, Arc<Card>>,
    last: u64,
}

#[derive(Default)]
struct Counts {
    kept: AtomicU64,
    ended: [AtomicU64; Why::ALL.len()],
    messages: AtomicU64,
    octets: AtomicU64,
    /// Receive windows that could not be set.
    unbounded: AtomicU64,
}

struct Card {
    account: AccountKey,
    since: UnixMillis,
    mailbox: Bytes,
    way: &'static str,
    messages: AtomicU64,
    octets: AtomicU64,
    told: watch::Sender<Told>,
    /// Nothing is fetched before this moment: somebody tried this user's name with a wrong password.
    suspended: Arc<Mutex<Option<std::time::Instant>>>,
}

/// What a task is told; only ever the last word counts.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    end: Option<Why>,
    beside: bool,
}

/// While nothing but news is expected.
const BUFFER_WATCHING: usize = 2 * 1024;
/// While mail comes.
const BUFFER_FETCHING: usize = 64 * 1024;
/// Kept sessions that are with the store at a time; it writes for one at a time.
pub const TURNS: usize = 4;
/// How long the origin finds nobody who reads.
const STILL_MAX: Duration = Duration::from_secs(30);
/// How long the origin may not take what is written to it.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);

impl House {
    /// An empty one.
    #[must_use]
    pub fn new(limits: Limits, terms: Terms, catalog: Arc<dyn Catalog>, preloads: Preloads) -> Self {
        let rooms = Rooms { rules: Rules::new(terms), cards: BTreeMap::new(), last: 0 };
        Self(Arc::new(Inner {
            limits,
            catalog,
            turns: Semaphore::new(TURNS),
            preloads,
            rooms: Mutex::new(rooms),
            counts: Counts::default(),
            drain: watch::Sender::new(false),
        }))
    }

    /// Who is in it.
    #[must_use]
    pub fn list(&self) -> Vec<Sustained> {
        let sustained = |card: &Arc<Card>| Sustained {
            account: card.account.clone(),
            mailbox: card.mailbox.clone(),
            since: card.since,
            way: card.way,
            lane: card.told.borrow().beside,
            leaving: card.told.borrow().end.is_some(),
            messages: card.messages.load(Ordering::Relaxed),
            octets: card.octets.load(Ordering::Relaxed),
        };
        let mut list: Vec<_> = lock(&self.0.rooms).cards.values().map(sustained).collect();
        list.sort_by(|a, b| a.account.cmp(&b.account));
        list
    }

    /// Ends the sessions of `user`, at whatever server; how many these are.
    #[must_use]
    pub fn end(&self, user: UserKey) -> usize {
        lock(&self.0.rooms).happened(Event::Operator(user))
    }

    /// How many sessions were taken over, and how many ended for which reason.
    #[must_use]
    pub fn counts(&self) -> (u64, Vec<(Why, u64)>) {
        let counts = &self.0.counts;
        let ended = Why::ALL.iter().zip(&counts.ended).map(|(why, n)| (*why, n.load(Ordering::Relaxed)));
        (counts.kept.load(Ordering::Relaxed), ended.collect())
    }

    /// Messages and their octets that were fetched, by those too that have ended.
    #[must_use]
    pub fn fetched(&self) -> (u64, u64) {
        let counts = &self.0.counts;
        (counts.messages.load(Ordering::Relaxed), counts.octets.load(Ordering::Relaxed))
    }

    /// How often a stream could not be told how much may be on its way.
    #[must_use]
    pub fn unbounded(&self) -> u64 {
        self.0.counts.unbounded.load(Ordering::Relaxed)
    }

    /// Accounts that are known to have no connection to spare.
    #[must_use]
    pub fn limited_accounts(&self) -> usize {
        lock(&self.0.rooms).rules.limited_accounts(now().mono)
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
        let (told, hearing) = watch::channel(Told::default());
        let card = Arc::new(Card {
            account: account.clone(),
            since: now.wall,
            mailbox: keeper.mailbox().clone(),
            way: keeper.way(),
            messages: AtomicU64::new(0),
            octets: AtomicU64::new(0),
            told,
            suspended,
        });
        let draining = self.0.drain.subscribe();
        self.0.counts.kept.fetch_add(1, Ordering::Relaxed);
        let id = lock(&self.0.rooms).move_in(Arc::clone(&card));
        tracing::info!(user = %account.user, server = %account.server, way = card.way, "kept");
        let stay = Stay { inner: Arc::clone(&self.0), id, card, why: Why::Failed };
        let task = Task { stay, keeper, hearing, draining, still: None };
        tokio::spawn(task.run(retained.io, retained.ahead));
    }
}

impl Sink<Handed<Box<dyn AsyncIo>>> for House {
    fn put(&self, value: Handed<Box<dyn AsyncIo>>) -> Put {
        let event = match value {
            Handed::Left(retained) => {
                self.take(*retained);
                return Put::Taken;
            }
            Handed::LoggedIn(account) => {
                // Whoever tried his name, it was he who came.
                let rooms = lock(&self.0.rooms);
                let his = rooms.cards.values().filter(|card| card.account == account);
                his.for_each(|card| *lock(&card.suspended) = None);
                drop(rooms);
                Event::LoggedIn(account)
            }
            Handed::LoggedOut(account) => Event::LoggedOut(account),
            Handed::Limited(account) => Event::Limited(account),
            Handed::Refused(account) => Event::Refused(account),
            Handed::ServerGone(server) => Event::ServerGone(server),
        };
        lock(&self.0.rooms).happened(event);
        Put::Taken
    }
}

impl Rooms {
    fn move_in(&mut self, card: Arc<Card>) -> KeptId {
        self.last += 1;
        let id = KeptId(self.last);
        let account = card.account.clone();
        self.cards.insert(id, card);
        self.happened(Event::Left(account, id));
        id
    }

    /// Does what the rules say; how many sessions are told to end.
    fn happened(&mut self, event: Event) -> usize {
        let now = now().mono;
        let mut ended = 0;
        for verdict in self.rules.handle(event, now) {
            let (Verdict::End(id, _) | Verdict::Beside(id, _) | Verdict::Suspend(id, _)) = verdict;
            let Some(card) = self.cards.get(&id) else { continue };
            match verdict {
                Verdict::End(_, why) => {
                    ended += 1;
                    card.told.send_modify(|told| told.end = Some(why));
                }
                Verdict::Beside(_, beside) => card.told.send_modify(|told| told.beside = beside),
                Verdict::Suspend(_, until) => *lock(&card.suspended) = Some(until),
            }
        }
        ended
    }
}

/// A place in the house. Its end is counted, with whatever reason and however it comes.
struct Stay {
    inner: Arc<Inner>,
    id: KeptId,
    card: Arc<Card>,
    why: Why,
}

impl Drop for Stay {
    fn drop(&mut self) {
        let mut rooms = lock(&self.inner.rooms);
        rooms.cards.remove(&self.id);
        rooms.happened(Event::Over(self.card.account.clone(), self.id));
        if let Some((_, n)) = Why::ALL.iter().zip(&self.inner.counts.ended).find(|(why, _)| **why == self.why)
            && !mutants::on("house-loses-one")
        {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Task {
    stay: Stay,
    keeper: Keeper,
    hearing: watch::Receiver<Told>,
    draining: watch::Receiver<bool>,
    /// Since when nothing is read.
    still: Option<std::time::Instant>,
}

impl Task {
    async fn run(mut self, mut io: Box<dyn AsyncIo>, ahead: Vec<Bytes>) {
        io.slim();
        let why = self.serve(&mut io, ahead).await;
        self.stay.why = why;
        // A server that is gone cannot be said goodbye to.
        let _gone = timeout(Duration::from_secs(1), io.shutdown()).await;
        let (messages, octets) = self.keeper.fetched();
        let user = self.stay.card.account.user;
        tracing::info!(%user, why = why.word(), messages, octets, "no longer kept");
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
            let told = *self.hearing.borrow_and_update();
            let end = if *self.draining.borrow_and_update() { Some(Why::Drain) } else { told.end };
            if let Some(why) = end
                && !self.keeper.is_leaving()
            {
                self.keeper.handle_end(now(), why);
                continue;
            }
            self.keeper.handle_beside(now(), told.beside);
            let still = self.stands_still(now());
            tokio::select! {
                read = io.read(&mut buffer), if still.is_none() => match read {
                    Ok(n) if n > 0 => {
                        let octets = Bytes::copy_from_slice(buffer.get(..n).unwrap_or_default());
                        self.heard(octets);
                    }
                    Ok(_) | Err(_) => self.keeper.handle_closed(now()),
                },
                () = sleep_until(due) => self.keeper.handle_timeout(now()),
                () = sleep_until(still.map_or(due, Instant::from_std)), if still.is_some() => {}
                _ = self.hearing.changed() => {}
                _ = self.draining.changed() => {}
            }
        }
    }

    /// Until when nothing is read: what is fetched ahead stands still behind its small window while somebody waits for
    /// other octets. Not for so long that the origin takes us for dead.
    fn stands_still(&mut self, now: Now) -> Option<std::time::Instant> {
        let until = self.keeper.standstill(now).filter(|until| *until > now.mono);
        let since = *self.still.get_or_insert(now.mono);
        if until.is_some() && now.mono.saturating_duration_since(since) < STILL_MAX {
            return until;
        }
        self.still = None;
        None
    }

    fn heard(&mut self, octets: Bytes) {
        self.keeper.handle_server(now(), octets);
        let (messages, octets) = self.keeper.fetched();
        let (card, counts) = (&self.stay.card, &self.stay.inner.counts);
        let before = card.messages.swap(messages, Ordering::Relaxed);
        counts.messages.fetch_add(messages - before, Ordering::Relaxed);
        let before = card.octets.swap(octets, Ordering::Relaxed);
        counts.octets.fetch_add(octets - before, Ordering::Relaxed);
    }

    /// A stream that cannot is no reason not to keep it.
    fn bound(&self, io: &dyn AsyncIo, octets: u32) {
        if let Err(error) = io.set_receive_window(octets)
            && self.stay.inner.counts.unbounded.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::warn!(%error, octets, "what is fetched ahead may delay what is asked for");
        }
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
                    Output::Window(octets) => self.bound(io, octets),
                    Output::Ended(why) => ended = Some(why),
                }
            }
            if ops.is_empty() {
                return ended;
            }
            let all_at_once = mutants::on("house-thread-each");
            let turn = if all_at_once { None } else { self.stay.inner.turns.acquire().await.ok() };
            let replies = tell(Arc::clone(&self.stay.inner.catalog), ops).await;
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
