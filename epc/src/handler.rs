//! Connection handlers: the shell around [`imap_core::session::Session`], one task per client.
//!
//! ```text
//! Accepted ── origin opened first ── greeting ── Session
//!                                                  │ outputs, in order
//!   client ⇄ Wire(queue ≤ window) ⇄ conversation ⇄ Wire(queue ≤ window) ⇄ origin
//!                                       ⇅
//!                                    Errands ⇄ Catalog (blocking threads)
//! ```
//! It moves octets and fires timers, and decides nothing about IMAP. What it owes: no side that is slow costs more memory
//! than its window, no session ends another, and a client whose origin is gone hears so and never hangs.

mod body;
mod buffers;
mod conversation;
mod errands;
pub mod metrics;
pub mod roster;
mod wire;

pub use errands::NoCatalog;

use buffers::Buffers;
use bytes::Bytes;
use conversation::Conversation;
use discovery_core::{
    id::{ServerId, UserKeying},
    now::{Now, UnixMillis},
    seam::sink::{Nowhere, Sink},
    value::Class,
};
use imap_core::{
    catalog::Catalog,
    flag_snapshot::FlagSnapshots,
    mutants,
    preload::Preload,
    retained::Handed,
    session::{Compress, Road, Session, SessionConfig},
    start_profile::StartProfiles,
};
use metrics::{Ended, Metrics};
use ring::rand::{SecureRandom, SystemRandom};
use roster::{Card, Roster};
use seams::{
    AsyncIo,
    intake::{Accepted, ClientAddr, ClientTls, ClientUpgrade},
    origin::{OpenError, OriginConnector, OriginRequest, SourcePolicy, VerifiedBy},
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::AsyncWriteExt,
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use tracing::Instrument;

/// Bounds of every session.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Octets that may wait for one side before the other side is no longer read.
    pub window_octets: usize,
    /// How long to try to reach the origin before the client is told that it cannot be reached.
    pub origin_patience: Duration,
    /// How long both sides may be silent before the client has logged in.
    pub login_idle: Duration,
    /// How long a side may take nothing of what waits for it. RFC 9051 §5.4 allows a server to end an idle session after
    /// 30 minutes, not earlier.
    pub stuck: Duration,
    /// How long a stored body that is still being written may not grow while a client waits for it.
    pub body_patience: Duration,
    /// How long an ending session may go on writing what is queued, as long as each write gets on.
    pub close_patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            window_octets: 256 * 1024,
            origin_patience: Duration::from_secs(20),
            login_idle: Duration::from_secs(60),
            stuck: Duration::from_secs(30 * 60),
            body_patience: Duration::from_secs(30),
            close_patience: Duration::from_secs(5),
        }
    }
}

/// What a connector may take beyond its patience.
const OPEN_GRACE: Duration = Duration::from_secs(1);

/// What holds for every session with one server.
#[derive(Debug)]
pub struct ServerTerms {
    /// Its canonical name.
    pub id: ServerId,
    /// Whether COMPRESS is used when offered.
    pub compress: bool,
    /// Whether anything is stored or served from the store.
    pub cache: bool,
    /// For how long a session's right to a mailbox is believed.
    pub re_proof: Duration,
    /// Messages up to this length are fetched whole when a client asks for a chunk.
    pub chunk_fill_max: u64,
    /// Whether connections to the server outlive their clients.
    pub retain: bool,
    /// Whether each session begins by telling the server the client's address (ID).
    pub announce_client: bool,
    /// Whether what a known client always asks first is asked behind its login.
    pub foresee: bool,
    sessions_max: usize,
    sessions: Semaphore,
    compress_known: AtomicBool,
}

/// A message with attachments is rarely larger; the rest of a larger one is not fetched because a client looked at its
/// beginning.
const CHUNK_FILL_MAX: u64 = 32 << 20;

impl ServerTerms {
    /// The defaults, for at most `sessions_max` sessions at a time.
    #[must_use]
    pub fn new(id: ServerId, sessions_max: usize) -> Self {
        Self {
            id,
            compress: true,
            cache: true,
            re_proof: Duration::from_secs(300),
            chunk_fill_max: CHUNK_FILL_MAX,
            retain: false,
            announce_client: false,
            foresee: true,
            sessions_max,
            sessions: Semaphore::new(sessions_max),
            compress_known: AtomicBool::new(false),
        }
    }

    /// Whether both say the same; what they have learned or count does not matter.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let said = |terms: &Self| {
            let proof = (terms.cache, terms.re_proof, terms.announce_client, terms.foresee);
            (terms.compress, proof, terms.chunk_fill_max, terms.retain, terms.sessions_max)
        };
        self.id == other.id && said(self) == said(other)
    }

    fn compress(&self) -> Compress {
        match (self.compress, self.compress_known.load(Ordering::Relaxed)) {
            (false, _) => Compress::Off,
            (true, false) => Compress::WhenOffered,
            (true, true) => Compress::Known,
        }
    }
}

/// Whether the node goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// It does.
    Serving,
    /// Sessions at rest end now, the others when they come to rest, all of them by this moment.
    By(Instant),
    /// All end now.
    Now,
}

/// Returns when the node no longer serves, also when whoever could have said so is gone.
pub async fn ordered(drain: &mut watch::Receiver<Drain>) {
    drop(drain.wait_for(|drain| *drain != Drain::Serving).await);
}

/// A client that has arrived, with what its listener knows.
#[derive(Debug)]
pub struct Visit {
    /// The client.
    pub accepted: Accepted,
    /// How to upgrade it after STARTTLS.
    pub upgrade: Option<Upgrade>,
    /// Where it is going.
    pub server: Arc<ServerTerms>,
    /// The way there, if it has one of its own: it came on it.
    pub way: Option<Way>,
}

/// A client's own way to its server.
#[derive(Clone)]
pub struct Way(pub Arc<dyn OriginConnector>);

impl std::fmt::Debug for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Way")
    }
}

/// A listener's way to TLS.
#[derive(Clone)]
pub struct Upgrade(pub Arc<dyn ClientUpgrade>);

impl std::fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Upgrade")
    }
}

/// Serves clients; one for all listeners of a process.
pub struct Handler {
    origins: Arc<dyn OriginConnector>,
    catalog: Arc<dyn Catalog>,
    keying: Arc<dyn UserKeying>,
    limits: Limits,
    metrics: Arc<Metrics>,
    roster: Arc<Roster>,
    buffers: Arc<Buffers>,
    /// How clients begin, by account and program; in memory alone.
    habits: Arc<Mutex<StartProfiles>>,
    /// The flags of mailboxes as sessions leave them to the next; in memory alone.
    flags: Arc<Mutex<FlagSnapshots>>,
    numbers: AtomicU64,
    kept: Arc<dyn Sink<Handed<Box<dyn AsyncIo>>>>,
    preloads: Option<Preloads>,
}

/// Makes what a session with a server asks about mail that is fetched ahead.
pub type Preloads = Arc<dyn Fn(&ServerId) -> Box<dyn Preload> + Send + Sync>;

impl Handler {
    /// A handler that reaches servers by `origins` and remembers in `catalog`.
    #[must_use]
    pub fn new(
        origins: Arc<dyn OriginConnector>,
        catalog: Arc<dyn Catalog>,
        keying: Arc<dyn UserKeying>,
        limits: Limits,
    ) -> Self {
        Self {
            origins,
            catalog,
            keying,
            limits,
            metrics: Arc::new(Metrics::default()),
            roster: Arc::new(Roster::default()),
            buffers: Arc::new(Buffers::default()),
            habits: Arc::default(),
            flags: Arc::default(),
            numbers: AtomicU64::new(1),
            kept: Arc::new(Nowhere),
            preloads: None,
        }
    }

    /// Hands connections whose client has left to `kept`, where the server's terms say so.
    #[must_use]
    pub fn with_keeper(mut self, kept: Arc<dyn Sink<Handed<Box<dyn AsyncIo>>>>) -> Self {
        self.kept = kept;
        self
    }

    /// Lets sessions fetch ahead what `preloads` find worth it.
    #[must_use]
    pub fn with_preloads(mut self, preloads: Preloads) -> Self {
        self.preloads = Some(preloads);
        self
    }

    /// The counters.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// The sessions and what was decided in them.
    #[must_use]
    pub fn roster(&self) -> Arc<Roster> {
        Arc::clone(&self.roster)
    }

    /// Serves one client to its end. A panic in here is counted and ends this client only.
    pub async fn serve(&self, visit: Visit, drain: watch::Receiver<Drain>) -> Ended {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!(
            "conn",
            session = number,
            client.addr = %visit.accepted.client,
            server = %visit.server.id
        );
        async {
            let mut presence = Presence::enter(self, number, &visit);
            let how = self.converse(number, visit, drain, Arc::clone(&presence.card)).await;
            tracing::debug!(how = how.word(), "ended");
            presence.how = how;
            how
        }
        .instrument(span)
        .await
    }

    async fn converse(
        &self,
        number: u64,
        visit: Visit,
        mut drain: watch::Receiver<Drain>,
        card: Arc<Card>,
    ) -> Ended {
        let Visit { accepted, upgrade, server, way } = visit;
        let origins = way.map_or_else(|| Arc::clone(&self.origins), |Way(origins)| origins);
        let mut client = accepted.io;
        let Ok(_permit) = server.sessions.try_acquire() else {
            tracing::warn!("the server has as many sessions as [server.limits] sessions_max allows");
            self.turn_away(&mut client, "too many sessions (full)").await;
            return Ended::Full;
        };
        let request = self.request(&server, accepted.client);
        let patience = if mutants::on("handler-origin-without-patience") {
            Duration::from_secs(24 * 3600)
        } else {
            self.limits.origin_patience + OPEN_GRACE
        };
        let opened = tokio::select! {
            // The connector has its own patience; a client must not depend on it.
            opened = timeout(patience, origins.open(request)) => opened.unwrap_or(Err(OpenError::TimedOut)),
            () = ordered(&mut drain) => {
                self.turn_away(&mut client, "shutting down (drain)").await;
                return Ended::Drained;
            }
        };
        let origin = match opened {
            Ok(origin) => origin,
            Err(error) => {
                tracing::warn!(%error, "the server cannot be reached");
                self.metrics.count_open_failed(error.word());
                self.turn_away(&mut client, &format!("the mail server cannot be reached ({})", error.word()))
                    .await;
                return Ended::NoOrigin;
            }
        };
        let mut session = Session::new(SessionConfig {
            number,
            nonce: nonce(),
            server: server.id.clone(),
            keying: Arc::clone(&self.keying),
            road: match accepted.tls {
                ClientTls::Implicit => Road::Tls,
                ClientTls::StartTls => Road::StartTlsRequired,
                ClientTls::Plain => Road::Plain,
            },
            compress: server.compress(),
            cache: server.cache,
            re_proof: server.re_proof,
            chunk_fill_max: server.chunk_fill_max,
            retain: server.retain && !matches!(*drain.borrow(), Drain::By(_) | Drain::Now),
        });
        if origin.caps.parked_age.is_some() {
            session.origin_was_parked();
        }
        // Without TLS there are no records to keep commands apart.
        if server.foresee && origin.peer.verified_by != VerifiedBy::Plain {
            session.foresee(Arc::clone(&self.habits) as Arc<_>);
            session.remember_flags(Arc::clone(&self.flags) as Arc<_>);
        }
        if let Some(preloads) = self.preloads.as_ref().filter(|_| server.cache) {
            session.preload_by(preloads(&server.id));
        }
        if server.announce_client {
            session.announce_client(accepted.client.0);
        }
        session.handle_greeting(now(), &origin.greeting);
        Conversation::new(self, session, client, (origin.io, origins), upgrade, &server, card)
            .run(drain)
            .await
    }

    fn request(&self, server: &ServerTerms, client: ClientAddr) -> OriginRequest {
        OriginRequest {
            server: server.id.clone(),
            addr: None,
            client,
            source: SourcePolicy::Own,
            purpose: Class::Interactive,
            patience: self.limits.origin_patience,
        }
    }

    /// Tells a client why it is not served.
    async fn turn_away(&self, client: &mut Box<dyn AsyncIo>, why: &str) {
        let said = async {
            client.write_all(&bye(why)).await?;
            client.shutdown().await
        };
        let _client_may_be_gone = timeout(self.limits.close_patience, said).await;
    }
}

/// The one line that a client hears from us when it is not served (RFC 9051 §7.1.5, RFC 5530 §3).
fn bye(why: &str) -> Bytes {
    format!("* BYE [UNAVAILABLE] Waypost: {why}\r\n").into()
}

fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall = UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    Now { mono: Instant::now().into_std(), wall }
}

/// Tags of ours must not be guessable: a client that could use one would take our answer for its own.
fn nonce() -> [u8; 6] {
    let mut nonce = [0; 6];
    SystemRandom::new()
        .fill(&mut nonce)
        .expect("the system gives random octets, or TLS would not have come up");
    nonce
}

/// A session in the roster; leaves it however the session ends.
struct Presence<'a> {
    handler: &'a Handler,
    card: Arc<Card>,
    how: Ended,
}

impl<'a> Presence<'a> {
    fn enter(handler: &'a Handler, number: u64, visit: &Visit) -> Self {
        handler.metrics.sessions_opened.one();
        let client = visit.accepted.client.0;
        let card = handler.roster.enter(number, client, visit.server.id.clone(), now().wall);
        Self { handler, card, how: Ended::Drained }
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.how = Ended::Panicked;
        }
        self.handler.metrics.count_ended(self.how);
        self.handler.roster.leave(self.card.number);
    }
}
