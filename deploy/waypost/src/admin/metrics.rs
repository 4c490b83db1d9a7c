//! `/metrics`: every counter in the text form of Prometheus. Labels are closed sets of words, names of servers and our
//! own addresses; never a user, a mailbox or a client.

use crate::{
    api::{PathStatus, StoreStatus},
    node::Node,
};
use epc::handler::metrics::Ended;
use std::fmt::Write;

/// All of them.
pub(super) fn text(node: &Node, store: &StoreStatus, path: Option<&PathStatus>) -> String {
    let (metrics, roster) = (node.metrics(), node.roster());
    let mut page = Page::default();
    page.family("waypost_node_info", "gauge", "What runs.");
    page.sample("waypost_node_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.one("waypost_node_uptime_seconds", "gauge", "Since the start.", node.uptime().as_secs());
    page.one("waypost_node_draining", "gauge", "1 while it ends.", u64::from(node.is_draining()));
    page.one("waypost_epc_sessions_running", "gauge", "Sessions now.", roster.running() as u64);
    page.one(
        "waypost_epc_sessions_opened_total",
        "counter",
        "Clients taken on.",
        metrics.sessions_opened.get(),
    );
    page.family("waypost_epc_sessions_ended_total", "counter", "Sessions by how they ended.");
    for how in Ended::ALL {
        page.sample("waypost_epc_sessions_ended_total", &[("how", how.word())], metrics.ended(*how));
    }
    page.family("waypost_epc_origin_failures_total", "counter", "Servers not reached, by reason.");
    for (word, n) in metrics.open_failed() {
        page.sample("waypost_epc_origin_failures_total", &[("reason", word)], n);
    }
    let parked = node.parked();
    page.family("waypost_epc_parked_ready", "gauge", "Connections kept ready now.");
    for (server, counts) in &parked {
        page.sample("waypost_epc_parked_ready", &[("server", server.as_str())], counts.ready);
    }
    page.family(
        "waypost_epc_parked_total",
        "counter",
        "Connections kept ready since the last reload, by what became of them; clients for whom there was none.",
    );
    for (server, counts) in &parked {
        for (word, n) in counts.became() {
            page.sample("waypost_epc_parked_total", &[("server", server.as_str()), ("result", word)], n);
        }
    }
    page.family(
        "waypost_epc_foreseen_commands_total",
        "counter",
        "Commands sent behind a login before its client asked.",
    );
    for (word, n) in [("asked", metrics.foreseen_told.get()), ("in-vain", metrics.foreseen_in_vain.get())] {
        page.sample("waypost_epc_foreseen_commands_total", &[("result", word)], n);
    }
    page.family(
        "waypost_epc_flags_ahead_total",
        "counter",
        "Flags of whole mailboxes asked ahead as what has changed of them.",
    );
    for (word, n) in [("proved", metrics.flags_proved.get()), ("doubted", metrics.flags_doubted.get())] {
        page.sample("waypost_epc_flags_ahead_total", &[("result", word)], n);
    }
    page.one(
        "waypost_epc_origins_replaced_total",
        "counter",
        "Connections kept ready that ended before anything was said on them.",
        metrics.origins_replaced.get(),
    );
    page.family("waypost_epc_logins_total", "counter", "Logins by the server's answer.");
    page.sample("waypost_epc_logins_total", &[("answer", "accepted")], metrics.logins_accepted.get());
    page.sample("waypost_epc_logins_total", &[("answer", "refused")], metrics.logins_refused.get());
    page.family("waypost_epc_fetch_commands_total", "counter", "FETCH commands by who answered.");
    for (outcome, commands, _) in metrics.fetches() {
        page.sample("waypost_epc_fetch_commands_total", &[("outcome", outcome.word())], commands);
    }
    page.family("waypost_epc_fetch_messages_total", "counter", "Messages named in FETCH commands.");
    for (outcome, _, messages) in metrics.fetches() {
        page.sample("waypost_epc_fetch_messages_total", &[("outcome", outcome.word())], messages);
    }
    for (name, help, n) in [
        ("waypost_epc_served_bytes_total", "Message data given from the store.", metrics.served_octets.get()),
        ("waypost_epc_filled_bytes_total", "Message data put into the store.", metrics.filled_octets.get()),
        (
            "waypost_epc_fills_abandoned_total",
            "Messages not stored because the disk was slower than the wire.",
            metrics.fills_abandoned.get(),
        ),
        (
            "waypost_epc_store_failures_total",
            "Times the store failed outright.",
            metrics.store_failures.get(),
        ),
        (
            "waypost_epc_compressed_total",
            "Sessions with COMPRESS towards the server.",
            metrics.compressed.get(),
        ),
        ("waypost_epc_tunnels_total", "Sessions in which nothing could be learned.", metrics.tunnels.get()),
        ("waypost_epc_desyncs_total", "Sessions whose server contradicted itself.", metrics.desyncs.get()),
    ] {
        page.one(name, "counter", help, n);
    }
    kept(&mut page, node);
    page.family("waypost_epc_relayed_bytes_total", "counter", "Octets of sessions, TLS removed.");
    for (side, direction, n) in [
        ("client", "read", metrics.client_read_octets.get()),
        ("client", "written", metrics.client_written_octets.get()),
        ("origin", "read", metrics.origin_read_octets.get()),
        ("origin", "written", metrics.origin_written_octets.get()),
    ] {
        page.sample("waypost_epc_relayed_bytes_total", &[("side", side), ("direction", direction)], n);
    }
    page.family(
        "waypost_epc_intake_clients_total",
        "counter",
        "Clients at each listener, by what came of them.",
    );
    for door in node.doors() {
        let address = door.address.to_string();
        let counts = &door.counts;
        for (result, n) in [
            ("accepted", counts.accepted()),
            ("not-tls", counts.not_tls()),
            ("unlisted-refused", counts.unlisted_refused()),
            ("tunnelled", counts.tunnelled()),
            ("handshake-failed", counts.handshake_failed()),
            ("handshake-timed-out", counts.handshake_timed_out()),
            ("per-client-refused", counts.per_client_refused()),
            ("plain-refused", counts.plain_refused()),
            ("accept-error", counts.accept_errors()),
        ] {
            let labels = [("listener", address.as_str()), ("result", result)];
            page.sample("waypost_epc_intake_clients_total", &labels, n);
        }
    }
    prefetch_families(&mut page, node);
    store_families(&mut page, store);
    if let Some(path) = path {
        path_families(&mut page, path);
    }
    page.0
}

/// All users together: who read what is nobody's business here.
fn prefetch_families(page: &mut Page, node: &Node) {
    let Some(prefetch) = node.prefetch() else { return };
    let total = prefetch.total();
    page.family(
        "waypost_prefetch_bytes_total",
        "counter",
        "Octets fetched ahead since the database was made; each is used, wasted, or waits to be either.",
    );
    for (word, n) in [("fetched", total.fetched), ("used", total.used), ("wasted", total.wasted)] {
        page.sample("waypost_prefetch_bytes_total", &[("state", word)], n);
    }
    page.family("waypost_prefetch_opens_total", "counter", "Messages opened, by whether they were here.");
    for (word, n) in [("hit", total.hits), ("miss", total.opens.saturating_sub(total.hits))] {
        page.sample("waypost_prefetch_opens_total", &[("result", word)], n);
    }
    for named in prefetch.database() {
        let name = format!("waypost_affinity_{}", named.word);
        page.one(&name, "gauge", "Of the user affinity database.", named.n);
    }
}

fn store_families(page: &mut Page, store: &StoreStatus) {
    page.one("waypost_epc_store_open", "gauge", "1 when the store is in use.", u64::from(store.open));
    page.one(
        "waypost_epc_store_sealed",
        "gauge",
        "1 when stored mail is encrypted.",
        u64::from(store.sealed),
    );
    for (name, help, n) in [
        ("waypost_epc_store_bodies", "Bodies held, each once.", store.bodies),
        ("waypost_epc_store_content_bytes", "Their content.", store.octets),
        ("waypost_epc_store_disk_bytes", "What files and index take.", store.disk_octets),
        ("waypost_epc_store_disk_max_bytes", "The cap of that.", store.size_max),
        ("waypost_epc_store_messages", "Messages known, per account.", store.messages),
        ("waypost_epc_store_accounts", "Accounts known.", store.accounts),
        ("waypost_epc_store_mailboxes", "Mailboxes known.", store.mailboxes),
    ] {
        page.one(name, "gauge", help, n);
    }
    page.family("waypost_epc_store_values_total", "counter", "Values asked for.");
    page.sample("waypost_epc_store_values_total", &[("result", "held")], store.hits);
    page.sample("waypost_epc_store_values_total", &[("result", "not-held")], store.misses);
    page.family(
        "waypost_epc_store_fills_total",
        "counter",
        "Sections on their way in, by what became of them.",
    );
    for fill in &store.fills {
        page.sample("waypost_epc_store_fills_total", &[("result", fill.word.as_str())], fill.n);
    }
    page.family(
        "waypost_epc_store_comparisons_total",
        "counter",
        "Our cut of a message against the server's.",
    );
    for (result, n) in [("same", store.compared_same), ("different", store.compared_different)] {
        page.sample("waypost_epc_store_comparisons_total", &[("result", result)], n);
    }
    for (name, help, n) in [
        ("waypost_epc_store_corrupt_total", "Found damaged and moved aside.", store.corrupt),
        ("waypost_epc_store_lost_total", "Bodies whose file was gone.", store.lost),
        ("waypost_epc_store_evicted_total", "Removed to make room.", store.evicted + store.evicted_rows),
        ("waypost_epc_store_changed_total", "Messages sent otherwise than before.", store.changed),
        ("waypost_epc_store_index_failures_total", "What the index could not do.", store.index_failures),
        ("waypost_epc_store_disk_failures_total", "What the disk could not do.", store.disk_failures),
    ] {
        page.one(name, "counter", help, n);
    }
}

/// Sessions that outlive their client.
fn kept(page: &mut Page, node: &Node) {
    let house = node.house();
    let (so_far, ended) = house.counts();
    let sessions = house.list();
    let lanes = sessions.iter().filter(|session| session.lane).count();
    page.family("waypost_cep_sessions", "gauge", "Kept sessions now, without and beside their user.");
    for (role, n) in [("kept", sessions.len() - lanes), ("lane", lanes)] {
        page.sample("waypost_cep_sessions", &[("role", role)], u64::try_from(n).unwrap_or(u64::MAX));
    }
    page.one("waypost_cep_sessions_taken_total", "counter", "Sessions whose client left.", so_far);
    page.family("waypost_cep_sessions_ended_total", "counter", "Kept sessions by why they ended.");
    for (why, n) in ended {
        page.sample("waypost_cep_sessions_ended_total", &[("why", why.word())], n);
    }
    page.one(
        "waypost_cep_limited_accounts",
        "gauge",
        "Accounts whose server said that they have too many connections.",
        u64::try_from(house.limited_accounts()).unwrap_or(u64::MAX),
    );
    page.one(
        "waypost_cep_windows_failed_total",
        "counter",
        "Receive windows that could not be set.",
        house.unbounded(),
    );
    let fetched = house.fetched();
    page.one("waypost_cep_fetched_messages_total", "counter", "Messages fetched ahead.", fetched.0);
    page.one("waypost_cep_fetched_bytes_total", "counter", "Message data fetched ahead.", fetched.1);
}

fn path_families(page: &mut Page, path: &PathStatus) {
    page.one("waypost_discovery_carried", "gauge", "Connections carried now.", path.carried);
    page.family("waypost_discovery_decisions_total", "counter", "Decisions about packets, by reason.");
    for reason in &path.reasons {
        page.sample("waypost_discovery_decisions_total", &[("reason", &reason.word)], reason.n);
    }
    if let Some(deflector) = path.deflector {
        page.one(
            "waypost_discovery_deflected_total",
            "counter",
            "Connections given to proxies.",
            deflector.deflected,
        );
        page.one(
            "waypost_discovery_past_proxies_total",
            "counter",
            "Connections sent on for want of a proxy.",
            deflector.past,
        );
        page.one("waypost_discovery_proxies", "gauge", "Proxies that take connections.", deflector.ready);
    }
    if let Some(udp) = path.datagrams {
        page.one("waypost_discovery_udp_flows_total", "counter", "UDP flows that passed.", udp.flows);
        page.one("waypost_discovery_udp_datagrams_total", "counter", "Datagrams that passed.", udp.datagrams);
        page.one("waypost_discovery_udp_bytes_total", "counter", "Octets of them.", udp.octets);
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Values of labels are words and addresses of ours: nothing in them needs escaping.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], n: u64) {
        let labels = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect::<Vec<_>>();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {n}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, n: u64) {
        self.family(name, kind, help);
        self.sample(name, &[], n);
    }
}
