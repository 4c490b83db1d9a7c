//! Connections to one server that are made, verified and greeted before a client asks: its greeting then costs no round
//! trip. How many and for how long is decided in `parking`.
//!
//! ```text
//! keeper ── dials ── watch (one task each) ─┬─ asked for ──► the client
//!    ▲                                      ├─ the server spoke or closed ──► discarded
//!    └────────────── what became of it ─────┴─ too old ──► closed
//! ```
//! Whatever a server says on such a connection was said to nobody: it is discarded. The watch looks once more at the
//! moment of handing out, so a client sees one that has ended only if the news of it is still on the wire.

use super::{
    Road,
    parking::{Fate, Lot, Next, ParkTerms},
};
use imap_core::mutants;
use ring::rand::{SecureRandom, SystemRandom};
use seams::origin::OriginStream;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};

/// What became of connections that were kept ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParkCounts {
    /// Ready now.
    pub ready: u64,
    /// Given to a client.
    pub handed_out: u64,
    /// Clients for which there was none although some are kept.
    pub missed: u64,
    /// Closed by us in time.
    pub expired: u64,
    /// Ended by the server.
    pub ended: u64,
    /// Ended by the server because it had too many.
    pub queue_full: u64,
    /// Discarded because the server said something.
    pub spoke: u64,
    /// Not made.
    pub failed: u64,
}

impl ParkCounts {
    /// All but those that are ready, each with its word in logs, metrics and `status`.
    #[must_use]
    pub fn became(self) -> [(&'static str, u64); 7] {
        [
            ("handed-out", self.handed_out),
            ("missed", self.missed),
            ("expired", self.expired),
            ("ended", self.ended),
            ("queue-full", self.queue_full),
            ("spoke", self.spoke),
            ("failed", self.failed),
        ]
    }
}

/// The connections of one server.
#[derive(Debug)]
pub(super) struct Parked {
    state: Mutex<State>,
    changed: Notify,
    counts: Counts,
}

#[derive(Debug)]
struct State {
    lot: Lot,
    ready: Vec<Ready>,
    last: u64,
    keeper_runs: bool,
}

#[derive(Debug)]
struct Ready {
    number: u64,
    ask: oneshot::Sender<oneshot::Sender<OriginStream>>,
}

#[derive(Debug, Default)]
struct Counts {
    handed_out: AtomicU64,
    missed: AtomicU64,
    expired: AtomicU64,
    ended: AtomicU64,
    queue_full: AtomicU64,
    spoke: AtomicU64,
    failed: AtomicU64,
}

impl Parked {
    pub(super) fn new(terms: ParkTerms) -> Self {
        let lot = Lot::new(terms);
        Self {
            state: Mutex::new(State { lot, ready: Vec::new(), last: 0, keeper_runs: false }),
            changed: Notify::new(),
            counts: Counts::default(),
        }
    }

    /// One that is ready, if there is one: the youngest, which has the longest time left for a login.
    pub(super) async fn take(&self) -> Option<OriginStream> {
        loop {
            let Some(ready) = self.state().ready.pop() else { break };
            let (give, given) = oneshot::channel();
            if ready.ask.send(give).is_ok()
                && let Ok(stream) = given.await
            {
                return Some(stream);
            }
        }
        None
    }

    /// A client has been here and was given a connection that began with `greeting`; `parked`: one of ours.
    pub(super) fn client_served(self: &Arc<Self>, road: &Arc<Road>, greeting: &[u8], parked: bool) {
        let mut state = self.state();
        let now = Instant::now().into_std();
        state.lot.handle_greeting(greeting);
        state.lot.handle_client(now);
        if state.lot.next(now) == Next::Rest {
            return;
        }
        if !parked {
            self.counts.missed.fetch_add(1, Ordering::Relaxed);
        }
        if !state.keeper_runs {
            state.keeper_runs = true;
            tokio::spawn(Arc::clone(self).keep(Arc::downgrade(road)));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Keeps up to `max` from now on.
    pub(super) fn set_max(&self, max: u8) {
        let mut state = self.state();
        state.lot.set_max(max);
        state.ready.truncate(usize::from(max));
        drop(state);
        self.changed.notify_one();
    }

    /// Lets all go.
    pub(super) fn close(&self) {
        self.set_max(0);
    }

    pub(super) fn counts(&self) -> ParkCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ParkCounts {
            ready: self.state().ready.len() as u64,
            handed_out: of(&self.counts.handed_out),
            missed: of(&self.counts.missed),
            expired: of(&self.counts.expired),
            ended: of(&self.counts.ended),
            queue_full: of(&self.counts.queue_full),
            spoke: of(&self.counts.spoke),
            failed: of(&self.counts.failed),
        }
    }

    /// Makes connections, one at a time, until no client has come for long.
    async fn keep(self: Arc<Self>, road: Weak<Road>) {
        loop {
            let next = {
                let mut state = self.state();
                let next = state.lot.next(Instant::now().into_std());
                state.keeper_runs = next != Next::Rest;
                next
            };
            match next {
                Next::Rest => return,
                Next::Wait(moment) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(moment.into()) => {}
                },
                Next::Dial => {
                    // Gone with a reload.
                    let Some(road) = road.upgrade() else { return };
                    self.dial(&road).await;
                }
            }
        }
    }

    async fn dial(self: &Arc<Self>, road: &Road) {
        let opened = timeout(DIAL_PATIENCE, road.open(None)).await;
        let mut state = self.state();
        match opened {
            // One on which nobody logs in is no one's until a client is there.
            Ok(Ok(stream)) if !is_preauth(&stream.greeting) => {
                state.lot.handle_greeting(&stream.greeting);
                let life = state.lot.handle_ready(chance());
                state.last += 1;
                let (number, (ask, asked)) = (state.last, oneshot::channel());
                state.ready.push(Ready { number, ask });
                tokio::spawn(Arc::clone(self).watch(number, stream, asked, life));
            }
            failed => {
                let why = match &failed {
                    Ok(Ok(_)) => "preauth",
                    Ok(Err(error)) => error.word(),
                    Err(_) => "timed-out",
                };
                tracing::debug!(server = %road.server.id, why, "no connection could be made ready");
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                state.lot.handle_failed(Instant::now().into_std(), chance());
            }
        }
    }

    /// Holds one until it is asked for or of no use any more.
    async fn watch(
        self: Arc<Self>,
        number: u64,
        mut stream: OriginStream,
        asked: oneshot::Receiver<oneshot::Sender<OriginStream>>,
        life: Duration,
    ) {
        let since = Instant::now();
        let mut said = [0; 512];
        let fate = tokio::select! {
            biased;
            read = stream.io.read(&mut said), if !mutants::on("parked-stale-handed-out") => match read {
                Ok(0) | Err(_) => Fate::Ended,
                Ok(octets) => fate_of(said.get(..octets).unwrap_or_default()),
            },
            ask = asked => {
                stream.caps.parked_age = Some(since.elapsed());
                // Whoever asked is gone, or nobody can ask any more.
                let given = ask.is_ok_and(|give| give.send(stream).is_ok());
                if given { Fate::HandedOut } else { Fate::Expired }
            }
            () = sleep(life) => {
                self.state().ready.retain(|ready| ready.number != number);
                close(&mut stream).await;
                Fate::Expired
            }
        };
        self.ended(number, fate, since.elapsed());
    }

    fn ended(&self, number: u64, fate: Fate, age: Duration) {
        let counter = match fate {
            Fate::HandedOut => &self.counts.handed_out,
            Fate::Expired => &self.counts.expired,
            Fate::Ended => &self.counts.ended,
            Fate::QueueFull => &self.counts.queue_full,
            Fate::Spoke => &self.counts.spoke,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.ready.retain(|ready| ready.number != number);
        state.lot.handle_fate(Instant::now().into_std(), fate, age, chance());
        drop(state);
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn close(stream: &mut OriginStream) {
    let _peer_may_be_gone = timeout(CLOSE_PATIENCE, stream.io.shutdown()).await;
}

fn is_preauth(greeting: &[u8]) -> bool {
    greeting.get(2..9).is_some_and(|word| word.eq_ignore_ascii_case(b"PREAUTH"))
}

/// What a server's unasked words on a connection without a login mean (Dovecot's own texts).
fn fate_of(said: &[u8]) -> Fate {
    let said = said.to_ascii_lowercase();
    let says = |text: &[u8]| said.windows(text.len()).any(|at| at == text);
    match said.starts_with(b"* bye") {
        true if says(b"queue full") || says(b"too many") => Fate::QueueFull,
        true => Fate::Ended,
        false => Fate::Spoke,
    }
}

/// Spreads what would otherwise happen everywhere at once.
fn chance() -> u8 {
    let mut chance = [0];
    // Without chance they are only less spread.
    let _even = SystemRandom::new().fill(&mut chance);
    chance[0]
}

/// A server that is slower than this is not worth keeping a connection to.
const DIAL_PATIENCE: Duration = Duration::from_secs(20);
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_words_are_told_apart() {
        for (said, fate) in [
            (&b"* BYE Connection queue full\r\n"[..], Fate::QueueFull),
            (b"* BYE Too many open connections\r\n", Fate::QueueFull),
            (b"* BYE Disconnected for inactivity.\r\n", Fate::Ended),
            (b"* bye idle for too long\r\n", Fate::Ended),
            (b"* OK Still here\r\n", Fate::Spoke),
            (b"", Fate::Spoke),
        ] {
            assert_eq!(fate_of(said), fate, "{}", said.escape_ascii());
        }
    }
}
