//! One session from its greeting to its end: the loop that moves octets between the two wires, the session and the
//! store.

use super::{
    Drain, Handler, Limits, ServerTerms, Upgrade,
    body::{Body, BodyLost},
    errands::Errands,
    metrics::{Ended, Metrics},
    now,
    roster::{Card, Decision},
    wire::{Cut, Happened, Reading, Wire},
};
use crate::compress::Deflated;
use bytes::{Bytes, BytesMut};
use discovery_core::{id::AccountKey, seam::sink::Sink};
use imap_core::{
    mutants,
    retained::{Facts, Handed, Retained},
    session::{Event, Output, Session, Side},
};
use seams::{AsyncIo, intake::ClientAddr, origin::OriginConnector};
use std::{
    future::{pending, ready},
    pin::Pin,
    sync::Arc,
    sync::atomic::Ordering,
};
use tokio::{
    sync::watch,
    time::{Duration, Instant, Sleep, sleep_until, timeout},
};

/// How long a closed client may take to notice, so that what was said last is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
/// Discarded while lingering.
const LINGER_READS_MAX: usize = 64;
/// All of an ending: a client that takes an octet now and then must not keep a node from going.
const CLOSE_MAX: Duration = Duration::from_secs(60);

pub(super) struct Conversation<'a> {
    handler: &'a Handler,
    session: Session,
    client: Wire,
    origin: Wire,
    origins: Arc<dyn OriginConnector>,
    client_open: bool,
    origin_open: bool,
    upgrade: Option<Upgrade>,
    server: &'a ServerTerms,
    client_addr: ClientAddr,
    errands: Errands,
    card: Arc<Card>,
    /// When the client said that it will say nothing more.
    finished: Option<Instant>,
    /// When either side last said something.
    heard: Instant,
    /// Why we end it, if it is we who do.
    ours: Option<Ended>,
    draining: Drain,
    /// What goes with the connection to the origin when the client has left it behind.
    retained: Option<Box<Facts>>,
    /// Once the origin has accepted one.
    login: Option<Login>,
    counted: Counted,
}

/// A client that is logged in, as whoever keeps sessions counts them: its end is told however it comes.
struct Login {
    account: AccountKey,
    kept: Arc<dyn Sink<Handed<Box<dyn AsyncIo>>>>,
}

impl Login {
    fn new(account: AccountKey, kept: Arc<dyn Sink<Handed<Box<dyn AsyncIo>>>>) -> Self {
        let _taken = kept.put(Handed::LoggedIn(account.clone()));
        Self { account, kept }
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let _taken = self.kept.put(Handed::LoggedOut(self.account.clone()));
    }
}

/// What of a session's octets stands in the metrics already.
#[derive(Default)]
struct Counted {
    client: (u64, u64),
    origin: (u64, u64),
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        handler: &'a Handler,
        session: Session,
        client: Box<dyn AsyncIo>,
        (origin, origins): (Box<dyn AsyncIo>, Arc<dyn OriginConnector>),
        upgrade: Option<Upgrade>,
        server: &'a ServerTerms,
        card: Arc<Card>,
    ) -> Self {
        let client_addr = ClientAddr(card.client);
        let wire = |io, cut| Wire::new(io, Arc::clone(&handler.buffers), cut);
        Self {
            handler,
            session,
            client: wire(client, Cut::Together),
            origin: wire(origin, Cut::Apart),
            origins,
            client_open: true,
            origin_open: true,
            upgrade,
            server,
            client_addr,
            errands: Errands::new(Arc::clone(&handler.catalog)),
            card,
            finished: None,
            heard: Instant::now(),
            ours: None,
            draining: Drain::Serving,
            retained: None,
            login: None,
            counted: Counted::default(),
        }
    }

    /// Serves until the end, and ends it.
    pub(super) async fn run(mut self, drain: watch::Receiver<Drain>) -> Ended {
        let how = self.serve(drain).await;
        // However it ended: a body or a claim that it holds is given back.
        self.session.handle_abandoned(now());
        while let Some(output) = self.session.poll_output() {
            if let Output::Catalog(op) = output {
                self.errands.push(op);
            }
        }
        self.end().await;
        how
    }

    async fn serve(&mut self, mut drain: watch::Receiver<Drain>) -> Ended {
        let mut timer = Box::pin(sleep_until(Instant::now()));
        let mut watched = true;
        self.draining = *drain.borrow_and_update();
        loop {
            self.drain_at_rest();
            if let Some(how) = self.obey().await {
                return self.ours.unwrap_or(how);
            }
            if !self.client_open && !self.origin_open {
                return self.ours.unwrap_or(Ended::Done);
            }
            self.report();
            let client_speaks = self.client_open && self.finished.is_none();
            let from_client = self.reading(client_speaks && self.session.wants_client(), &self.origin);
            let pause = self.errands.pause();
            let wanted = self.origin_open && pause.is_none() && self.session.wants_server();
            let from_origin = self.reading(wanted, &self.client);
            let deadline = pause.into_iter().chain([self.deadline()]).min().unwrap_or_else(Instant::now);
            tokio::select! {
                happened = self.client.turn(from_client) => {
                    if let Some(how) = self.look_at_untouched().await {
                        return how;
                    }
                    if let Some(how) = self.happened(Side::Client, happened) {
                        return how;
                    }
                }
                happened = self.origin.turn(from_origin) => {
                    if let Some(how) = self.happened(Side::Server, happened) {
                        return how;
                    }
                }
                reply = self.errands.turn() => {
                    if let Some(reply) = reply {
                        self.session.handle_store(now(), reply);
                    }
                }
                () = until(timer.as_mut(), deadline) => {
                    if let Some(how) = self.due() {
                        return how;
                    }
                }
                changed = drain.changed(), if watched => {
                    watched = changed.is_ok();
                    self.draining = *drain.borrow_and_update();
                }
            }
        }
    }

    /// What the client says first must not go to a parked connection of whose end the news has come already.
    async fn look_at_untouched(&mut self) -> Option<Ended> {
        if !self.session.is_origin_untouched() || !self.origin_open {
            return None;
        }
        let happened = tokio::select! {
            biased;
            happened = self.origin.turn(Reading::Yes { secret: self.session.is_secret() }) => happened,
            () = ready(()) => return None,
        };
        self.happened(Side::Server, happened)
    }

    /// Whether to read one side: only while less than a window waits for the other.
    fn reading(&self, wanted: bool, other: &Wire) -> Reading {
        let room = other.waiting() < self.limits().window_octets || mutants::on("handler-window-unbounded");
        if wanted && room { Reading::Yes { secret: self.session.is_secret() } } else { Reading::No }
    }

    /// Tells the session what happened on one side.
    fn happened(&mut self, side: Side, happened: Happened) -> Option<Ended> {
        match happened {
            Happened::Octets(octets) => {
                self.heard = Instant::now();
                match side {
                    Side::Client => self.session.handle_client(now(), octets),
                    Side::Server => self.session.handle_server(now(), octets),
                }
            }
            Happened::Wrote => {}
            Happened::Ended if side == Side::Client => {
                self.finished.get_or_insert_with(Instant::now);
                self.session.handle_client_finished(now());
            }
            Happened::Ended | Happened::Broken => self.closed(side),
            Happened::BodyLost(BodyLost::Store | BodyLost::Stalled) => return Some(Ended::StoreLost),
        }
        None
    }

    fn closed(&mut self, side: Side) {
        let open = match side {
            Side::Client => &mut self.client_open,
            Side::Server => &mut self.origin_open,
        };
        if std::mem::replace(open, false) {
            if side == Side::Client {
                // What the session still waits for must come before long.
                self.finished.get_or_insert_with(Instant::now);
            }
            self.session.handle_closed(now(), side);
        }
    }

    /// Does what the session wants done, in order. `Some` when it wants to end.
    async fn obey(&mut self) -> Option<Ended> {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::ToClient(octets) => self.client.push(octets),
                Output::ToClientFrom { reader, offset, octets } => {
                    self.client.push_body(Body::new(reader, offset, octets, self.limits().body_patience));
                }
                // Before a login each piece may be a credential: on its own it shares no record with anything that an
                // observer knows the length of.
                Output::ToServer(octets) if self.session.is_secret() => self.origin.push_flushed(octets),
                Output::ToServer(octets) => self.origin.push(octets),
                Output::Catalog(op) => self.errands.push(op),
                Output::StartTls => {
                    if let Err(how) = self.start_tls().await {
                        return Some(how);
                    }
                }
                Output::CompressServer { surplus } => self.compress(surplus).await,
                Output::ReplaceOrigin => self.replace_origin().await,
                Output::Event(event) => self.learned(&event),
                Output::Close(why) => return Some(why.into()),
                Output::Retain(facts) => {
                    self.retained = Some(facts);
                    return Some(Ended::Done);
                }
            }
        }
        None
    }

    async fn start_tls(&mut self) -> Result<(), Ended> {
        match timeout(self.limits().stuck, self.client.drain()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Ended::Done),
            Err(_) => return Err(Ended::Stuck),
        }
        // It came in clear text, before TLS: an attacker's words that would count as the client's (CVE-2011-0411).
        if self.client.has_ahead() && !mutants::on("handler-starttls-surplus-kept") {
            return Err(Ended::StartTlsSurplus);
        }
        let Some(Upgrade(upgrade)) = self.upgrade.take() else {
            return Err(Ended::StartTlsFailed);
        };
        match self.client.rewrap(|io| async move { upgrade.upgrade(io).await }).await {
            Ok(()) => {
                self.session.handle_client_tls(now());
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%error, "the client's TLS handshake failed");
                Err(Ended::StartTlsFailed)
            }
        }
    }

    /// The server ended a parked connection that nothing was said on.
    async fn replace_origin(&mut self) {
        let request = self.handler.request(self.server, self.client_addr);
        self.report();
        // The next one may come from the same address and port.
        self.origin = Wire::new(Box::new(tokio::io::empty()), Arc::clone(&self.handler.buffers), Cut::Apart);
        self.counted.origin = (0, 0);
        match timeout(self.limits().origin_patience, self.origins.open_anew(request)).await {
            Ok(Ok(origin)) => {
                self.origin = Wire::new(origin.io, Arc::clone(&self.handler.buffers), Cut::Apart);
                self.origin_open = true;
                self.metrics().origins_replaced.one();
                self.session.handle_replacement(now(), &origin.greeting);
            }
            failed => {
                let word = failed.map_or("timed-out", |opened| opened.err().map_or("", |error| error.word()));
                tracing::warn!(why = word, "the server cannot be reached");
                self.metrics().count_open_failed(word);
                self.origin_open = false;
                self.session.handle_closed(now(), Side::Server);
            }
        }
    }

    async fn compress(&mut self, surplus: Bytes) {
        if !matches!(timeout(self.limits().stuck, self.origin.drain()).await, Ok(Ok(()))) {
            self.closed(Side::Server);
            return;
        }
        let mut already = BytesMut::from(surplus.as_ref());
        self.origin.take_ahead().for_each(|octets| already.extend_from_slice(&octets));
        let wrapped = self.origin.rewrap(|io| async move {
            Ok(Box::new(Deflated::new(io, already.freeze())) as Box<dyn AsyncIo>)
        });
        if wrapped.await.is_err() {
            self.closed(Side::Server);
        }
    }

    fn learned(&mut self, event: &Event) {
        self.metrics().count_event(event);
        if matches!(event, Event::Compressing) {
            self.server.compress_known.store(true, Ordering::Relaxed);
        }
        let account = match event {
            Event::LoggedIn(account) => Some(account),
            Event::LoginRefused
            | Event::LoginRefusedFor { .. }
            | Event::Fetched { .. }
            | Event::Filled(_)
            | Event::Foreseen { .. }
            | Event::FlagsProved { .. }
            | Event::FlagsDoubted(_)
            | Event::Unread
            | Event::Compressing
            | Event::UnexpectedContinuation
            | Event::Tunnel(_)
            | Event::Desync(_) => self.session.account(),
        };
        match event {
            Event::LoggedIn(account) => {
                self.login = Some(Login::new(account.clone(), Arc::clone(&self.handler.kept)));
            }
            Event::LoginRefusedFor { account, limited: true } => {
                return self.hand(Handed::Limited(account.clone()));
            }
            Event::LoginRefusedFor { account, limited: false } => {
                return self.hand(Handed::Refused(account.clone()));
            }
            Event::LoginRefused
            | Event::Fetched { .. }
            | Event::Filled(_)
            | Event::Foreseen { .. }
            | Event::FlagsProved { .. }
            | Event::FlagsDoubted(_)
            | Event::Unread
            | Event::Compressing
            | Event::UnexpectedContinuation
            | Event::Tunnel(_)
            | Event::Desync(_) => {}
        }
        let decision = Decision::of(event, self.card.number, now().wall);
        if let Some(account) = account {
            self.handler.roster.decided(account.user, decision);
        }
        match event {
            Event::Desync(why) => {
                tracing::warn!(why, "the server contradicts itself; nothing more is learned in this session");
            }
            Event::LoggedIn(account) => tracing::info!(user = %account.user, "logged in"),
            Event::LoginRefused
            | Event::LoginRefusedFor { .. }
            | Event::Fetched { .. }
            | Event::Filled(_)
            | Event::Foreseen { .. }
            | Event::FlagsProved { .. }
            | Event::FlagsDoubted(_)
            | Event::Unread
            | Event::Compressing
            | Event::UnexpectedContinuation
            | Event::Tunnel(_) => {
                tracing::debug!(what = decision.what, outcome = decision.outcome, "decided");
            }
        }
    }

    /// Ends a session that is at rest when the node drains.
    fn drain_at_rest(&mut self) {
        let end = match self.draining {
            Drain::Serving => false,
            Drain::By(moment) => self.session.is_at_rest() || Instant::now() >= moment,
            Drain::Now => true,
        };
        if end {
            self.shut_down(Ended::Drained, "shutting down");
        }
    }

    fn shut_down(&mut self, how: Ended, why: &str) {
        if self.ours.is_none() {
            self.ours = Some(how);
            self.session.handle_shutdown(now(), why);
        }
    }

    /// The next moment at which something must be done although nothing happens.
    fn deadline(&self) -> Instant {
        let limits = self.limits();
        let stuck = |wire: &Wire| wire.stuck_since().map(|since| since + limits.stuck);
        let login = self.session.is_secret().then(|| self.heard + limits.login_idle);
        let drained = match self.draining {
            Drain::By(moment) if self.ours.is_none() => Some(moment),
            Drain::By(_) | Drain::Serving | Drain::Now => None,
        };
        let session = self.session.poll_timeout().map(Instant::from_std);
        let finished = self.finished.map(|since| since + CLOSE_MAX);
        [finished, login, drained, session, stuck(&self.client), stuck(&self.origin)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or_else(|| Instant::now() + NOTHING_DUE)
    }

    /// Does what is due.
    fn due(&mut self) -> Option<Ended> {
        let (at, limits) = (Instant::now(), *self.limits());
        if self.session.poll_timeout().is_some_and(|moment| Instant::from_std(moment) <= at) {
            self.session.handle_timeout(now());
        }
        let stuck = |wire: &Wire| wire.stuck_since().is_some_and(|since| since + limits.stuck <= at);
        if self.finished.is_some_and(|since| since + CLOSE_MAX <= at) {
            return Some(Ended::Done);
        }
        if stuck(&self.client) || stuck(&self.origin) {
            return Some(Ended::Stuck);
        }
        if self.session.is_secret() && self.heard + limits.login_idle <= at {
            self.shut_down(Ended::IdleBeforeLogin, "idle for too long before a login");
        }
        None
    }

    /// Keeps the roster and the metrics up to date.
    fn report(&mut self) {
        let (client, origin) = (self.client.totals(), self.origin.totals());
        self.card.update(
            self.session.account().map(|account| account.user),
            self.session.state_word(),
            client,
        );
        let metrics = self.metrics();
        metrics.client_read_octets.add(client.0 - self.counted.client.0);
        metrics.client_written_octets.add(client.1 - self.counted.client.1);
        metrics.origin_read_octets.add(origin.0 - self.counted.origin.0);
        metrics.origin_written_octets.add(origin.1 - self.counted.origin.1);
        let (abandoned, failed) = self.errands.take_troubles();
        metrics.fills_abandoned.add(abandoned);
        metrics.store_failures.add(failed);
        self.counted = Counted { client, origin };
    }

    /// Writes what is still queued, as long as it gets on, and closes both sides.
    async fn end(&mut self) {
        let patience = self.limits().close_patience;
        let retained = self.retained.take().filter(|_| self.draining == Drain::Serving);
        let kept = &self.handler.kept;
        let login = self.login.take();
        let _late = timeout(CLOSE_MAX, async {
            let (client, origin, errands) = (&mut self.client, &mut self.origin, &mut self.errands);
            let client = async {
                flush(client, patience).await;
                if timeout(patience, client.shut_down()).await.is_ok() {
                    linger(client).await;
                }
            };
            let origin = async {
                flush(origin, patience).await;
                // What the session has told the store comes before what is told after it.
                errands.finish().await;
                if let Some(facts) = retained
                    && let Some((io, ahead)) = origin.release()
                {
                    drop(login);
                    let _taken = kept.put(Handed::Left(Box::new(Retained { io, ahead, facts: *facts })));
                    return;
                }
                let _late = timeout(patience, origin.shut_down()).await;
            };
            tokio::join!(client, origin);
        })
        .await;
        self.report();
    }

    fn hand(&self, what: Handed<Box<dyn AsyncIo>>) {
        let _taken = self.handler.kept.put(what);
    }

    fn limits(&self) -> &'a Limits {
        &self.handler.limits
    }

    fn metrics(&self) -> &'a Metrics {
        &self.handler.metrics
    }
}

/// Long enough to cost nothing.
const NOTHING_DUE: Duration = Duration::from_secs(3600);

async fn flush(wire: &mut Wire, patience: Duration) {
    while !wire.is_drained() {
        match timeout(patience, wire.turn(Reading::No)).await {
            Ok(Happened::Wrote) => {}
            Ok(Happened::Octets(_) | Happened::Ended | Happened::Broken | Happened::BodyLost(_)) | Err(_) => {
                return;
            }
        }
    }
}

/// Reads what the client still says until it closes: octets unread at the close would make the kernel send a reset, and
/// a reset overtakes our last line.
async fn linger(wire: &mut Wire) {
    let _late = timeout(LINGER, async {
        for _ in 0..LINGER_READS_MAX {
            match wire.turn(Reading::Yes { secret: true }).await {
                Happened::Octets(_) | Happened::Wrote => {}
                Happened::Ended | Happened::Broken | Happened::BodyLost(_) => return,
            }
        }
        pending::<()>().await;
    })
    .await;
}

/// Waits for `deadline` with a timer that is moved only when it must be: most rounds end by octets, and a timer that
/// fires early asks again.
async fn until(mut timer: Pin<&mut Sleep>, deadline: Instant) {
    loop {
        if timer.deadline() > deadline || timer.is_elapsed() {
            if timer.is_elapsed() && deadline <= Instant::now() {
                return;
            }
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().await;
        if deadline <= Instant::now() {
            return;
        }
    }
}
