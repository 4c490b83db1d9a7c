//! What the admin API says, in values: the node writes them, `waypost status` and its like read them. Fields are only
//! ever added.

use serde::{Deserialize, Serialize};

/// `GET /api/v1/status`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) node: String,
    pub(crate) site: String,
    /// `serving` or `draining`.
    pub(crate) state: String,
    pub(crate) uptime_s: u64,
    pub(crate) listeners: Vec<ListenerStatus>,
    pub(crate) sessions: u64,
    pub(crate) sessions_opened: u64,
    /// How sessions ended, where it is not zero.
    pub(crate) ended: Vec<Named>,
    /// Failures to reach a server by kind, where not zero.
    pub(crate) origin_failures: Vec<Named>,
    /// Connections kept ready, by server; only servers where there were any.
    #[serde(default)]
    pub(crate) parked: Vec<ParkedStatus>,
    pub(crate) logins_accepted: u64,
    pub(crate) logins_refused: u64,
    /// FETCH commands by who answered them, where not zero.
    pub(crate) fetches: Vec<Named>,
    pub(crate) served_octets: u64,
    pub(crate) filled_octets: u64,
    pub(crate) fills_abandoned: u64,
    pub(crate) store: StoreStatus,
    /// Where the node stands on a path or speaks to others.
    #[serde(default)]
    pub(crate) path: Option<PathStatus>,
}

/// Connections kept ready for clients to come.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct ParkedStatus {
    pub(crate) server: String,
    pub(crate) ready: u64,
    /// What became of earlier ones, where not zero.
    pub(crate) became: Vec<Named>,
}

/// A listening address.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct ListenerStatus {
    pub(crate) address: String,
    pub(crate) server: String,
    pub(crate) tls: String,
    pub(crate) accepted: u64,
    pub(crate) handshakes_failed: u64,
    pub(crate) refused: u64,
}

/// A count with its word.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Named {
    pub(crate) word: String,
    pub(crate) n: u64,
}

/// `GET /api/v1/store/stats`, and the store's part of the status.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct StoreStatus {
    pub(crate) path: String,
    /// Whether it is in use; without it everything comes from the servers.
    pub(crate) open: bool,
    /// Whether stored mail is encrypted on disk.
    pub(crate) sealed: bool,
    pub(crate) bodies: u64,
    pub(crate) octets: u64,
    pub(crate) disk_octets: u64,
    pub(crate) size_max: u64,
    pub(crate) messages: u64,
    pub(crate) values: u64,
    pub(crate) accounts: u64,
    pub(crate) mailboxes: u64,
    pub(crate) hits: u64,
    pub(crate) misses: u64,
    /// Moved aside because they were not what had been written.
    pub(crate) corrupt: u64,
    pub(crate) lost: u64,
    pub(crate) evicted: u64,
    pub(crate) evicted_rows: u64,
    pub(crate) changed: u64,
    pub(crate) index_failures: u64,
    pub(crate) disk_failures: u64,
    /// Bodies on their way in, by what became of them.
    pub(crate) fills: Vec<Named>,
    pub(crate) compared_same: u64,
    pub(crate) compared_different: u64,
    /// Which servers' messages are cut here, and how sure that is.
    pub(crate) trust: Vec<TrustStatus>,
}

/// What was found of one class of sections of one server.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct TrustStatus {
    pub(crate) server: String,
    pub(crate) class: String,
    pub(crate) trusted: bool,
    pub(crate) same: u64,
    pub(crate) different: u64,
}

/// `POST /api/v1/store/verify`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Verified {
    pub(crate) bodies: u64,
    pub(crate) octets: u64,
    pub(crate) corrupt: u64,
    pub(crate) rows: u64,
    pub(crate) damaged_rows: u64,
    /// Whether everything was read.
    pub(crate) complete: bool,
}

/// `POST /api/v1/store/gc`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Collected {
    pub(crate) bodies_removed: u64,
    pub(crate) rows_without_body: u64,
    pub(crate) retired_rows: u64,
    pub(crate) evicted: u64,
}

/// One of `GET /api/v1/sessions`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct SessionStatus {
    pub(crate) number: u64,
    pub(crate) client: String,
    pub(crate) server: String,
    /// The user's keyed hash, once logged in.
    pub(crate) user: Option<String>,
    pub(crate) state: String,
    pub(crate) age_s: u64,
    pub(crate) from_client_octets: u64,
    pub(crate) to_client_octets: u64,
}

/// `GET /api/v1/sustained`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Kept {
    pub(crate) sessions: Vec<KeptSession>,
    /// Sessions kept since the node started.
    pub(crate) so_far: u64,
    /// How they ended, where it is not zero.
    pub(crate) ended: Vec<Named>,
    /// Accounts whose server said that they have too many connections, as far as that is remembered.
    pub(crate) limited_accounts: u64,
}

/// A session whose client has left.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct KeptSession {
    pub(crate) user: String,
    pub(crate) server: String,
    pub(crate) mailbox: String,
    pub(crate) since_unix_ms: i64,
    /// `idle` or `poll`.
    pub(crate) way: String,
    /// Its user is connected beside it.
    pub(crate) lane: bool,
    /// Whether it says goodbye: its end is counted when the server has answered.
    #[serde(default)]
    pub(crate) leaving: bool,
    pub(crate) messages: u64,
    pub(crate) octets: u64,
}

/// `POST /api/v1/sustained/end?user=…`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct EndedSessions {
    pub(crate) ended: u64,
}

/// `GET /api/v1/report/preload`, of one user with `?user=…`
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct PreloadReport {
    /// Whether anything is fetched ahead.
    pub(crate) on: bool,
    pub(crate) rows: Vec<PreloadRow>,
    /// Of the user affinity database: records now, and changes since the node started.
    pub(crate) database: Vec<Named>,
}

/// A user at a site; since the database was made.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct PreloadRow {
    pub(crate) user: String,
    pub(crate) site: String,
    /// Messages opened.
    pub(crate) opens: u64,
    /// Of these, served by the store.
    pub(crate) hits: u64,
    /// Octets fetched ahead; each is used, wasted or waits.
    pub(crate) fetched: u64,
    pub(crate) used: u64,
    pub(crate) wasted: u64,
    pub(crate) waiting: u64,
}

/// `GET /api/v1/trace?user=…`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Trace {
    pub(crate) user: String,
    pub(crate) decisions: Vec<TraceLine>,
}

/// One decision.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct TraceLine {
    pub(crate) unix_ms: i64,
    pub(crate) session: u64,
    pub(crate) what: String,
    pub(crate) outcome: String,
    pub(crate) messages: u32,
    pub(crate) octets: u64,
}

/// What is answered when something cannot be done.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Trouble {
    pub(crate) error: String,
}

/// `GET /readyz`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Readiness {
    pub(crate) ready: bool,
    /// Why not.
    pub(crate) reasons: Vec<String>,
}

/// The node on the path, in the status.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct PathStatus {
    /// `taking`, `bypassed`, `hanging`, or `link-only`.
    pub(crate) state: String,
    pub(crate) peers: Vec<PeerStatus>,
    /// The proxy mapping table.
    pub(crate) table: Vec<TableStatus>,
    /// Where several peers could carry to a server: those of one server one behind the other, best first.
    #[serde(default)]
    pub(crate) candidates: Vec<CandidateStatus>,
    /// Connections that the node has something to do with; at most a thousand.
    pub(crate) flows: Vec<FlowStatus>,
    /// How often each reason was given, where not zero.
    pub(crate) reasons: Vec<Named>,
    /// Connections carried now, for clients here and for peers.
    pub(crate) carried: u64,
    /// Files of an earlier process that could not be read, so that what they told was forgotten.
    #[serde(default)]
    pub(crate) forgotten_files: u64,
    /// Where UDP flows are ruled on.
    #[serde(default)]
    pub(crate) datagrams: Option<DatagramStatus>,
    /// Where the node is a deflector.
    #[serde(default)]
    pub(crate) deflector: Option<DeflectorStatus>,
}

/// What a deflector has done.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct DeflectorStatus {
    /// Connections given to a proxy.
    pub(crate) deflected: u64,
    /// Connections sent on for want of one.
    pub(crate) past: u64,
    /// Proxies that take connections.
    pub(crate) ready: u64,
    /// Rewrite rules towards clients, and towards servers.
    pub(crate) clients: u64,
    pub(crate) servers: u64,
}

/// UDP flows that passed. Those that did not are among the reasons.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct DatagramStatus {
    /// Since the node started.
    pub(crate) flows: u64,
    /// Since the rules were last put in place.
    pub(crate) datagrams: u64,
    pub(crate) octets: u64,
}

/// What the supervisor of a node on the path answers to `status`; `waypost status` puts it beside the node's own.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct SupervisorStatus {
    /// `starting`, `working`, `bypassed`, `hanging`, `starting-anew`, `upgrading`, or `leaving`.
    pub(crate) state: String,
    pub(crate) since_s: u64,
    /// Whether new connections are led to the node.
    pub(crate) taking: bool,
    /// How often the node was started anew.
    pub(crate) restarts: u64,
    /// Why the last time, or why rules are not in place.
    pub(crate) why: Option<String>,
    pub(crate) node_pid: Option<u32>,
    /// Nodes that an upgrade has replaced and that go on with what they carry.
    #[serde(default)]
    pub(crate) leaving: u64,
    pub(crate) pid: u32,
}

/// What the supervisor answers to an order that it has carried out.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Done {
    pub(crate) done: bool,
}

/// Another node.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct PeerStatus {
    pub(crate) node: String,
    pub(crate) lanes: Vec<LaneStatus>,
    pub(crate) streams: u64,
    pub(crate) sent_octets: u64,
    pub(crate) received_octets: u64,
    /// How often streams went on over another connection.
    pub(crate) resumes: u64,
    /// Why the last attempt or connection ended.
    pub(crate) last: Option<String>,
}

/// One of the connections of a link.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct LaneStatus {
    pub(crate) lane: String,
    pub(crate) remote: String,
    pub(crate) rtt_us: Option<u64>,
    pub(crate) congestion_control: String,
}

/// An entry of the proxy mapping table.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct TableStatus {
    pub(crate) server: String,
    /// `peer`, `static`, `no-proxy`, `option-dropped`, `asymmetric`.
    pub(crate) known: String,
    pub(crate) peer: Option<String>,
    pub(crate) ttl_s: u64,
    pub(crate) flaps: u32,
}

/// A peer that could carry to a server, or to those of a network.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct CandidateStatus {
    pub(crate) server: String,
    pub(crate) peer: String,
    /// Its id, as far as it is known.
    pub(crate) node: Option<String>,
    /// How it comes to be one: `named`, `learnt`, `told`.
    pub(crate) by: String,
    /// Lower first.
    pub(crate) preference: u8,
    /// `ready`, `held-down`, `refused`, `aside`, `away`.
    pub(crate) standing: String,
    pub(crate) load_percent: u8,
}

/// A connection.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct FlowStatus {
    pub(crate) client: String,
    pub(crate) server: String,
    pub(crate) reason: String,
    pub(crate) peer: Option<String>,
}

/// `GET /api/v1/path/explain?client=&server=`
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Explained {
    pub(crate) rule: String,
    pub(crate) verdict: String,
    pub(crate) reason: String,
    /// Who could carry it, in the order in which they would be asked.
    #[serde(default)]
    pub(crate) candidates: Vec<CandidateStatus>,
    /// The mail servers with which it would be a session here; of several the name that the client asks for decides. None:
    /// its octets are carried, or it passes.
    #[serde(default)]
    pub(crate) mail: Vec<String>,
}
