//! How a running node is asked: an HTTP API on a Unix socket that file permissions guard, and, where the configuration
//! gives a loopback address, what monitoring reads.
//!
//! | path | what |
//! |---|---|
//! | `GET /api/v1/status` `sessions` `trace?user=` | JSON, on the socket only: it tells who works when |
//! | `GET /api/v1/store/stats`, `POST /api/v1/store/verify` `gc` | the store, on the socket only |
//! | `GET /api/v1/sustained`, `POST /api/v1/sustained/end?user=` | sessions whose client has left, on the socket only |
//! | `GET /api/v1/path/explain?client=&server=` | interception, on the socket only; `bypass` is the supervisor's |
//! | `GET /api/v1/report/preload` | what was fetched ahead, and what came of it, on the socket only |
//! | `GET /metrics` | Prometheus text |
//! | `GET /livez` `/readyz` | whether it runs; whether it takes clients |

mod metrics;
pub(crate) mod socket;

use crate::{
    api::{
        Collected, EndedSessions, Kept, KeptSession, ListenerStatus, Named, ParkedStatus, PathStatus,
        PreloadReport, Readiness, SessionStatus, Status, StoreStatus, Trace, TraceLine, Trouble, Verified,
    },
    config,
    exit::Failure,
    node::Node,
    storage,
};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use discovery_core::{
    flow::Flow,
    id::{ServerId, UserKey, UserKeying},
};
use epc::{handler::metrics::Ended, origin::ParkCounts};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::{TcpListener, UnixListener},
    task::{JoinHandle, spawn_blocking},
};

/// Whether the node takes clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Health {
    /// Not yet.
    Starting,
    /// It does.
    Ready,
    /// No longer.
    Draining,
}

/// The running interface.
pub(crate) struct Admin {
    health: Arc<AtomicU8>,
    socket: PathBuf,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Asked {
    node: Arc<Node>,
    health: Arc<AtomicU8>,
}

impl Admin {
    /// Answers from now on.
    pub(crate) async fn start(config: &config::Admin, node: Arc<Node>) -> Result<Self, Failure> {
        let health = Arc::new(AtomicU8::new(Health::Starting as u8));
        let asked = Asked { node, health: Arc::clone(&health) };
        let public = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(|| async { "alive\n" }))
            .route("/readyz", get(readyz));
        let private = public
            .clone()
            .route("/api/v1/status", get(status))
            .route("/api/v1/sessions", get(sessions))
            .route("/api/v1/trace", get(trace))
            .route("/api/v1/sustained", get(sustained))
            .route("/api/v1/sustained/end", post(sustained_end))
            .route("/api/v1/report/preload", get(report_preload))
            .route("/api/v1/path/explain", get(path_explain))
            .route("/api/v1/store/stats", get(store_stats))
            .route("/api/v1/store/verify", post(store_verify))
            .route("/api/v1/store/gc", post(store_gc));
        let mut tasks = Vec::new();
        if let Some(address) = config.listen {
            tasks.push(serve_tcp(address, public.with_state(asked.clone())).await?);
        }
        let listener = socket::bind(config, &config.socket)?;
        let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        let listener = listener.map_err(|error| Failure::io("the admin socket", error))?;
        let private = private.with_state(asked);
        tasks.push(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, private).await {
                tracing::error!(%error, "the admin socket answers no more");
            }
        }));
        Ok(Self { health, socket: config.socket.clone(), tasks })
    }

    /// What `/readyz` says from now on.
    pub(crate) fn say(&self, health: Health) {
        self.health.store(health as u8, Ordering::Relaxed);
    }

    /// Answers no more.
    pub(crate) fn stop(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        let _somebody_removed_it = std::fs::remove_file(&self.socket);
    }
}

async fn serve_tcp(address: SocketAddr, router: Router) -> Result<JoinHandle<()>, Failure> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| Failure::io(format!("[admin] listen: cannot listen on {address}"), error))?;
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the metrics address answers no more");
        }
    }))
}

async fn metrics(State(asked): State<Asked>) -> Response {
    let path = path_status(&asked).await;
    let text = spawn_blocking(move || metrics::text(&asked.node, &stats(&asked.node), path.as_ref())).await;
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => trouble(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

async fn readyz(State(asked): State<Asked>) -> Response {
    let health = asked.health.load(Ordering::Relaxed);
    let mut reasons = Vec::new();
    if health == Health::Starting as u8 {
        reasons.push("the node is starting".to_owned());
    }
    if health == Health::Draining as u8 || asked.node.is_draining() {
        reasons.push("the node is draining".to_owned());
    }
    let ready = reasons.is_empty();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Readiness { ready, reasons })).into_response()
}

async fn path_status(asked: &Asked) -> Option<PathStatus> {
    match asked.node.path() {
        Some(path) => Some(path.status().await),
        None => None,
    }
}

async fn status(State(asked): State<Asked>) -> Response {
    let path = path_status(&asked).await;
    blocking(move || Status { path, ..describe(&asked.node, stats(&asked.node)) }).await
}

#[derive(Deserialize)]
struct Connection {
    client: SocketAddr,
    server: SocketAddr,
}

async fn path_explain(State(asked): State<Asked>, Query(meant): Query<Connection>) -> Response {
    let Connection { client, server } = meant;
    let explained = match asked.node.path() {
        Some(path) => path.explain(Flow { client, server }).await,
        None => None,
    };
    match explained {
        Some(explained) => Json(explained).into_response(),
        None => trouble(StatusCode::NOT_FOUND, "nobody stands on a path here, or its loop hangs".to_owned()),
    }
}

async fn store_stats(State(asked): State<Asked>) -> Response {
    blocking(move || stats(&asked.node)).await
}

fn stats(node: &Node) -> StoreStatus {
    storage::describe(&node.config().store.path, node.store().map(Arc::as_ref))
}

async fn store_verify(State(asked): State<Asked>) -> Response {
    let Some(store) = asked.node.store().cloned() else { return no_store() };
    blocking(move || Verified::from(store.verify(u64::MAX))).await
}

async fn store_gc(State(asked): State<Asked>) -> Response {
    let Some(store) = asked.node.store().cloned() else { return no_store() };
    match spawn_blocking(move || store.gc()).await {
        Ok(Ok(report)) => Json(Collected::from(report)).into_response(),
        Ok(Err(error)) => trouble(StatusCode::INTERNAL_SERVER_ERROR, format!("the store's disk: {error}")),
        Err(error) => trouble(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn no_store() -> Response {
    trouble(StatusCode::SERVICE_UNAVAILABLE, "the node could not open its store; its log says why".to_owned())
}

fn trouble(code: StatusCode, error: String) -> Response {
    (code, Json(Trouble { error })).into_response()
}

/// Answers with what `work` finds where waiting for a disk is fine.
async fn blocking<T: Serialize + Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Response {
    match spawn_blocking(work).await {
        Ok(value) => Json(value).into_response(),
        Err(error) => trouble(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn describe(node: &Node, store: StoreStatus) -> Status {
    let (config, metrics) = (node.config(), node.metrics());
    let named = |word: &str, n: u64| (n > 0).then(|| Named { word: word.to_owned(), n });
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: config.node.id.to_string(),
        site: config.node.site.to_string(),
        state: if node.is_draining() { "draining" } else { "serving" }.to_owned(),
        uptime_s: node.uptime().as_secs(),
        listeners: node
            .doors()
            .iter()
            .map(|door| ListenerStatus {
                address: door.address.to_string(),
                server: door.server.to_string(),
                tls: door.tls.word().to_owned(),
                accepted: door.counts.accepted(),
                handshakes_failed: door.counts.handshake_failed()
                    + door.counts.handshake_timed_out()
                    + door.counts.not_tls(),
                refused: door.counts.unlisted_refused()
                    + door.counts.per_client_refused()
                    + door.counts.plain_refused(),
            })
            .collect(),
        sessions: node.roster().running() as u64,
        sessions_opened: metrics.sessions_opened.get(),
        ended: Ended::ALL.iter().filter_map(|how| named(how.word(), metrics.ended(*how))).collect(),
        origin_failures: metrics.open_failed().filter_map(|(word, n)| named(word, n)).collect(),
        parked: node.parked().into_iter().filter_map(|(server, counts)| parked(&server, counts)).collect(),
        logins_accepted: metrics.logins_accepted.get(),
        logins_refused: metrics.logins_refused.get(),
        fetches: metrics.fetches().filter_map(|(outcome, n, _)| named(outcome.word(), n)).collect(),
        served_octets: metrics.served_octets.get(),
        filled_octets: metrics.filled_octets.get(),
        fills_abandoned: metrics.fills_abandoned.get(),
        path: None,
        store,
    }
}

fn parked(server: &ServerId, counts: ParkCounts) -> Option<ParkedStatus> {
    let named = counts.became().into_iter().filter(|(_, n)| *n > 0);
    let became: Vec<_> = named.map(|(word, n)| Named { word: word.to_owned(), n }).collect();
    let any = counts.ready > 0 || !became.is_empty();
    any.then(|| ParkedStatus { server: server.to_string(), ready: counts.ready, became })
}

async fn sessions(State(asked): State<Asked>) -> Json<Vec<SessionStatus>> {
    let now = unix_millis();
    let sessions = asked.node.roster().sessions();
    let describe = |card: &Arc<epc::handler::roster::Card>| {
        let (from_client_octets, to_client_octets) = card.octets();
        SessionStatus {
            number: card.number,
            client: card.client.to_string(),
            server: card.server.to_string(),
            user: card.user().map(|user| user.to_string()),
            state: card.state().to_owned(),
            age_s: u64::try_from(now.saturating_sub(card.since.0) / 1000).unwrap_or(0),
            from_client_octets,
            to_client_octets,
        }
    };
    Json(sessions.iter().map(describe).collect())
}

async fn sustained(State(asked): State<Asked>) -> Json<Kept> {
    let house = asked.node.house();
    let (so_far, ended) = house.counts();
    let sessions = house.list().into_iter().map(|kept| KeptSession {
        user: kept.account.user.to_string(),
        server: kept.account.server.to_string(),
        mailbox: String::from_utf8_lossy(&kept.mailbox).into_owned(),
        since_unix_ms: kept.since.0,
        way: kept.way.to_owned(),
        lane: kept.lane,
        leaving: kept.leaving,
        messages: kept.messages,
        octets: kept.octets,
    });
    let ended = ended.into_iter().filter(|(_, n)| *n > 0);
    let ended = ended.map(|(why, n)| Named { word: why.word().to_owned(), n }).collect();
    let limited_accounts = u64::try_from(house.limited_accounts()).unwrap_or(u64::MAX);
    Json(Kept { sessions: sessions.collect(), so_far, ended, limited_accounts })
}

async fn sustained_end(State(asked): State<Asked>, Query(whose): Query<Whose>) -> Json<EndedSessions> {
    let user = parse_key(&whose.user).unwrap_or_else(|| asked.node.keying().user_key(whose.user.as_bytes()));
    let ended = asked.node.house().end(user);
    Json(EndedSessions { ended: u64::try_from(ended).unwrap_or(u64::MAX) })
}

async fn report_preload(
    State(asked): State<Asked>,
    Query(whose): Query<PerhapsWhose>,
) -> Json<PreloadReport> {
    let user = whose
        .user
        .map(|user| parse_key(&user).unwrap_or_else(|| asked.node.keying().user_key(user.as_bytes())));
    Json(asked.node.prefetch().map_or_else(PreloadReport::default, |prefetch| prefetch.report(user)))
}

#[derive(Deserialize)]
struct PerhapsWhose {
    user: Option<String>,
}

#[derive(Deserialize)]
struct Whose {
    user: String,
}

async fn trace(State(asked): State<Asked>, Query(whose): Query<Whose>) -> Response {
    let user = parse_key(&whose.user).unwrap_or_else(|| asked.node.keying().user_key(whose.user.as_bytes()));
    let Some(decisions) = asked.node.roster().trace(&user) else {
        let error =
            format!("nothing is known of {user} since the node started: no login of that user passed here");
        return trouble(StatusCode::NOT_FOUND, error);
    };
    let line = |decision: &epc::handler::roster::Decision| TraceLine {
        unix_ms: decision.at.0,
        session: decision.session,
        what: decision.what.to_owned(),
        outcome: decision.outcome.to_owned(),
        messages: decision.messages,
        octets: decision.octets,
    };
    Json(Trace { user: user.to_string(), decisions: decisions.iter().map(line).collect() }).into_response()
}

/// `u1-…` as [`UserKey`] is written.
fn parse_key(text: &str) -> Option<UserKey> {
    let (version, digits) = text.strip_prefix('u')?.split_once('-')?;
    let mut octets = vec![version.parse::<u8>().ok()?];
    if digits.len() != 32 || !digits.is_ascii() {
        return None;
    }
    for pair in digits.as_bytes().chunks(2) {
        octets.push(u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?);
    }
    UserKey::from_octets(&octets)
}

fn unix_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_as_it_is_written() {
        let key = UserKey { version: 7, hash: [0x0a; 16] };
        assert_eq!(parse_key(&key.to_string()), Some(key));
        for wrong in ["", "mia", "u1-", "u1-0a", "u300-0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a", "u1-ü"] {
            assert_eq!(parse_key(wrong), None, "{wrong}");
        }
    }
}
