//! All scenarios, a row each.

use crate::case::Case;
use crate::scenarios::{
    ahead, bridge, carry, chain, changes, commands, crowds, datagrams, deflected, deflector, durability,
    existing, existing_split, failures, forged, front, garbage, hole, identical, kept, kills, logins, matrix,
    odd, pair, pair_mail, pair_mail_more, prefer, released, resets, rights, sites, start, supervised,
};

/// One row.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// What holds, in one clause.
    pub(crate) says: &'static str,
    /// Whether it is part of `--quick`.
    pub(crate) quick: bool,
    pub(crate) run: fn(&Case) -> anyhow::Result<()>,
}

/// A scenario that cannot run here, with the reason.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

const fn row(name: &'static str, says: &'static str, run: fn(&Case) -> anyhow::Result<()>) -> Scenario {
    Scenario { name, says, quick: false, run }
}

const fn quick(scenario: Scenario) -> Scenario {
    Scenario { quick: true, ..scenario }
}

/// In the order in which they begin: the long ones first, so that none of them ends alone.
pub(crate) const SCENARIOS: &[Scenario] = &[
    row("pair-outage", "streams live on through half a minute without a line", pair::outage),
    quick(row("pair-carries", "two nodes find each other and nobody sees them", pair::carries)),
    row("pair-killed", "a killed node: its connections are reset, new ones go direct", pair::killed),
    quick(row("pair-rests", "a carried connection that says nothing costs no CPU", kills::rests)),
    row("pair-kills", "connections that begin around a node's death are served", kills::sample),
    row(
        "pair-hung",
        "a node that stands still is gone round, and goes on with what it carries",
        supervised::hung,
    ),
    row(
        "super-killed",
        "a killed node: resets at once, new ones go direct, it is back by itself",
        supervised::killed,
    ),
    row("rights-worker", "the node carries IPv4, IPv6 and mail without any right", rights::worker),
    row("super-orphaned", "a killed supervisor: its node leaves nothing behind", supervised::orphaned),
    row(
        "super-bypass",
        "bypass and status are answered while the node hangs, which is then replaced",
        supervised::bypassed,
    ),
    row("super-upgrade", "another executable takes over: no connection is lost", supervised::upgraded),
    row(
        "super-upgrade-mail",
        "another executable takes over from one that serves mail, with its store",
        pair_mail::upgraded,
    ),
    row(
        "super-leaves-once",
        "a replaced node is told once that all ends, and finishes",
        released::leaves_once,
    ),
    row("super-orphaned-released", "a replaced node's orphan touches nothing", released::orphaned),
    row("super-tools", "no tool of a node gets its supervisor's channel", released::tools),
    row("super-relay", "the machine's watchdog is fed, a card's relay is told", supervised::relay),
    row("pair-bypass", "bypass takes nothing new and ends nothing", pair::bypassed),
    row(
        "pair-refused-alone",
        "a closed port is refused; a node alone is not in the way",
        pair::refused_and_alone,
    ),
    row("pair-single", "a node alone terminates connections and resets what is refused", pair::single),
    row(
        "pair-last-words",
        "what an end said before it reset is heard, and then the reset",
        resets::last_words,
    ),
    row("pair-peer-restarted", "a peer that has started anew carries the next connection", chain::restarted),
    row(
        "pair-upgraded-peer",
        "a peer that was away for a moment is used again at once",
        prefer::upgraded_peer,
    ),
    row(
        "servers-preferred",
        "of two nodes at the servers the preferred one carries, while it is well",
        prefer::preferred,
    ),
    row("servers-shared", "equal nodes share by client and server", prefer::shared),
    row("servers-told", "a node tells of another one, and the client's node chooses", prefer::told),
    quick(row(
        "chain-two",
        "one and two in the middle: each link carries, the ends see the truth",
        chain::two,
    )),
    row("chain-three", "three in the middle, and one of them dies", chain::three),
    quick(row("bridge-pair", "two bridges, two and three ports; every other frame passes", bridge::pair)),
    row("host-ends", "the node on the client's machine, the server's, on both", bridge::host),
    row("path-alone", "one node alone, and rules without a process, are in nobody's way", sites::alone),
    row("path-moves", "a peer that comes, moves and goes is followed", sites::moves),
    row("path-four-sites", "four sites crosswise at once, one of them without a node", sites::four),
    row("path-burst", "a thousand connections at once: none fails, nothing is left", sites::burst),
    row("path-stripped", "a firewall that takes the query out costs nothing", odd::stripped),
    row("path-dropped", "a firewall that drops the query costs one repeated SYN, once", odd::dropped),
    row("path-invalid-drop", "connection tracking that drops what is invalid, everywhere", odd::invalid_drop),
    row(
        "path-servers",
        "a closed port, a silent server, a late one: the client is told the truth",
        odd::servers,
    ),
    row("path-options", "ends with few or unusual options are carried", odd::options),
    row("path-hole", "a line that swallows large packets stalls what goes direct, and no pair", hole::hole),
    row("path-asymmetric", "what comes back another way is left alone and hangs nobody", odd::asymmetric),
    row("path-strangers", "a revoked peer and one of another authority carry nothing", odd::strangers),
    row("path-partner", "another organisation's node carries to what is named for it", odd::partner),
    row("path-spoofed", "forged answers delay one connection and carry none", forged::answers),
    row(
        "path-peers",
        "an older peer, a newer one and a rogue carry nothing, and are told why",
        forged::peers,
    ),
    row("matrix-v4-routed-plain", "the core journey", matrix::v4_routed_plain),
    row("matrix-v4-bridge-tracked", "the core journey", matrix::v4_bridge_tracked),
    row("matrix-v6-routed-tracked", "the core journey", matrix::v6_routed_tracked),
    row("matrix-v6-bridge-plain", "the core journey", matrix::v6_bridge_plain),
    row("pair-restarted", "a node that starts again knows its peers", existing::restarted),
    row("deflector-v6", "the same over IPv6: the proxy asks for its server", deflector::by_turning_v6),
    row("deflector-v6-discovering", "clients' nodes are told over IPv6, too", deflector::by_telling_v6),
    row("deflector-forgotten", "the kernel is told again of what it forgot", deflected::forgotten),
    row("deflector-unturned", "a dead deflector lets nothing past unturned", deflected::unturned),
    row("deflector-static", "a deflector turns connections to proxies off the path", deflector::by_turning),
    row(
        "deflector-discovering",
        "a deflector tells clients' nodes of proxies off the path",
        deflector::by_telling,
    ),
    row(
        "deflector-failover",
        "the second proxy stands in, and the servers themselves",
        deflector::fails_over,
    ),
    row(
        "hybrid",
        "a node off the path that was named for servers: they see it, clients do not",
        deflector::hybrid,
    ),
    row(
        "non-transparent",
        "a client speaks to its node by address, the node's peer to the server",
        carry::non_transparent,
    ),
    row(
        "non-transparent-replaced",
        "the client's node is upgraded and killed while it carries",
        carry::replaced,
    ),
    row("udp-counted", "UDP flows pass, are counted, and obey the rules", datagrams::counted),
    row("datagram-response", "where options are taken out, a datagram answers", datagrams::answered),
    row(
        "pair-mail",
        "a mail server's clients are served in the branch; the server sees them",
        pair_mail::pair,
    ),
    row("pair-mail-starttls", "the same behind STARTTLS", pair_mail::starttls),
    row("pair-mail-single", "the same without a peer", pair_mail::single),
    row(
        "pair-mail-fallback",
        "what a node may not open the other one does, and what neither may is carried",
        pair_mail::fallback,
    ),
    row("pair-mail-v6", "a mail server's clients are served over IPv6", pair_mail_more::v6),
    row("pair-mail-both-ports", "one section serves both of IMAP's ports", pair_mail_more::both_ports),
    row("pair-mail-cyrus", "the same of another server", pair_mail_more::cyrus),
    row("pair-mail-ahead", "mail that came meanwhile is in the branch, and a hit", pair_mail_more::ahead),
    row(
        "pair-mail-same-port",
        "a client comes again from its kept session's port",
        pair_mail_more::same_port,
    ),
    row("pair-mail-own", "the same from the centre's own address", pair_mail::own_address),
    row("pair-mail-kept", "a session through the pair outlives its client", pair_mail::kept),
    row("pair-mail-restart", "the branch's node killed: its client comes back, direct", pair_mail::restart),
    row("existing-reset", "what stood before is reset at both ends and comes back carried", existing::reset),
    row("existing-rerouted", "a change of routes brings one that stood before", existing::rerouted),
    row("existing-adopted-many", "twenty bulk transfers are adopted at once", existing::adopted_many),
    row("existing-left", "what stood before goes on where nobody could carry it", existing::left),
    row("existing-adopted", "bulk transfers are adopted in their middle, whole", existing::adopted),
    row("existing-split", "two nodes adopt bulk transfers, one socket each", existing_split::adopted),
    row(
        "existing-split-refused",
        "a peer that cannot adopt leaves a connection alive",
        existing_split::refused,
    ),
    row("existing-split-killed", "a node dies before the cut, and after it", existing_split::killed),
    row("start-renewed", "connections kept ready are renewed in time", start::renewed),
    row("wan-outage", "nobody waits for ever on a dead line", failures::wan_outage),
    row("withdrawn-cyrus", "rights or mailbox gone: nothing out of the store", changes::withdrawn_cyrus),
    row("withdrawn-dovecot", "rights or mailbox gone: nothing out of the store", changes::withdrawn_dovecot),
    row("identical-thunderbird-dovecot", "Thunderbird gets the same", identical::thunderbird_dovecot),
    row("identical-thunderbird-cyrus", "Thunderbird gets the same", identical::thunderbird_cyrus),
    row("identical-curl-dovecot", "curl gets the same direct, cold and warm", identical::curl_dovecot),
    quick(row(
        "identical-mbsync-dovecot",
        "mbsync gets the same, awkward mail too",
        identical::mbsync_dovecot,
    )),
    row("identical-mutt-dovecot", "mutt gets the same direct, cold and warm", identical::mutt_dovecot),
    row("identical-imaplib-dovecot", "imaplib gets the same, awkward mail too", identical::imaplib_dovecot),
    quick(row("identical-items-dovecot", "every kind of item, awkward mail too", identical::items_dovecot)),
    row("identical-curl-cyrus", "curl gets the same direct, cold and warm", identical::curl_cyrus),
    row("identical-mbsync-cyrus", "mbsync gets the same, awkward mail too", identical::mbsync_cyrus),
    row("identical-mutt-cyrus", "mutt gets the same direct, cold and warm", identical::mutt_cyrus),
    row("identical-imaplib-cyrus", "imaplib gets the same, awkward mail too", identical::imaplib_cyrus),
    row("identical-items-cyrus", "every kind of item, awkward mail too", identical::items_cyrus),
    quick(row("identical-pipelined", "a body a command, all at once", identical::pipelined)),
    quick(row("identical-raw", "with constant texts, octet for octet", garbage::raw_octets)),
    quick(row("warm-mbsync-dovecot", "a second mbsync costs 2 % at most", identical::warm_mbsync_dovecot)),
    row("warm-mbsync-cyrus", "a second mbsync costs 2 % at most", identical::warm_mbsync_cyrus),
    row("warm-open-dovecot", "a message opened again does not cross", identical::warm_open_dovecot),
    row("pieces-dovecot", "a message read in pieces crosses about once", identical::pieces_dovecot),
    row("pieces-cyrus", "a message read in pieces crosses about once", identical::pieces_cyrus),
    row("warm-open-cyrus", "a message opened again does not cross", identical::warm_open_cyrus),
    quick(row("login-refused", "a wrong password gets the server's refusal and no mail", logins::refused)),
    row(
        "login-other-mailbox",
        "another's mailbox is refused as the server does",
        logins::somebody_elses_mailbox,
    ),
    quick(row("canaries", "nobody's mail in another's stream or in the log", logins::canaries)),
    row("sealed-store", "a sealed store shows no mail on disk", logins::sealed_store),
    row("secrets", "no password in memory a second after the login", logins::secrets),
    row("starttls-and-implicit", "both doors, both ways to the server", front::starttls_and_implicit),
    row("starttls-surplus", "what stands behind STARTTLS is not obeyed", front::starttls_surplus),
    row("starttls-lies", "a server that lies before TLS gets no password", garbage::starttls_lies),
    row("ipv6", "the same over IPv6", front::ipv6),
    row("two-servers", "each name gets its own server's mail", front::two_servers),
    quick(row(
        "capabilities",
        "what cannot be done is not offered, and all else is",
        front::capabilities_filtered,
    )),
    quick(row("branch-one-line", "`branch --mail` serves whoever trusts its root", commands::branch)),
    row("check", "every mistake with its line; the server really asked", commands::check),
    quick(row("status", "status, trace and pages tell how, never whose", commands::status)),
    row("plain-needs-permission", "plain text only where the file says so", front::plain_needs_permission),
    quick(row("certificates", "trusted or nothing, towards clients and servers", front::certificates)),
    row("certificates-minted", "whoever installs the root is served", front::minted),
    row("reload", "SIGHUP keeps sessions; a bad file changes nothing", front::reload),
    quick(row("drains", "SIGTERM: BYE at rest, the rest of a message under way", front::drains)),
    quick(row("seen-is-honest-dovecot", "no OK before the server has the flag", changes::seen_dovecot)),
    row("seen-is-honest-cyrus", "no OK before the server has the flag", changes::seen_cyrus),
    row("unread-at-once", "an unread message's octets do not wait", changes::unread_at_once),
    quick(row("expunge-elsewhere-dovecot", "message numbers hold", changes::expunge_dovecot)),
    row("expunge-elsewhere-cyrus", "message numbers hold", changes::expunge_cyrus),
    row("recreated-dovecot", "a mailbox made anew never shows old mail", changes::recreated_dovecot),
    row("recreated-cyrus", "a mailbox made anew never shows old mail", changes::recreated_cyrus),
    row("uid-validity", "UIDs that begin anew never show old mail", changes::uid_validity),
    quick(row(
        "kept-new-mail-dovecot",
        "mail that came while its reader was away is a hit",
        kept::away_dovecot,
    )),
    row("kept-new-mail-cyrus", "mail that came while its reader was away is a hit", kept::away_cyrus),
    quick(row(
        "ahead-away-dovecot",
        "mail is here before its reader is, nobody notices",
        ahead::away_dovecot,
    )),
    row("ahead-away-cyrus", "mail is here before its reader is, nobody notices", ahead::away_cyrus),
    row("ahead-elsewhere-dovecot", "mail in another mailbox, by NOTIFY too", ahead::elsewhere_dovecot),
    row("ahead-elsewhere-cyrus", "mail in another mailbox", ahead::elsewhere_cyrus),
    row(
        "ahead-killed",
        "kill -9 while mail is fetched ahead: nothing wrong, the ledger adds up",
        ahead::killed,
    ),
    row("ahead-beside-dovecot", "fetched ahead on the client's own session", ahead::beside_dovecot),
    row("ahead-beside-cyrus", "fetched ahead on the client's own session", ahead::beside_cyrus),
    row(
        "kept-user-comes-first",
        "a kept session takes no connection that its user needs",
        kept::user_comes_first,
    ),
    row("kept-limit-is-learned", "a server's limit on connections is remembered", kept::limit_is_learned),
    row("kept-window", "mail fetched ahead leaves the line's queue empty", kept::window),
    row("kept-ends", "a kept session ends when it must, and for a reason", kept::ends),
    row("kept-crowd", "fifty kept sessions: all listed, all counted, no thread each", crowds::kept_crowd),
    row("storm", "two hundred at once after an outage: a few at the server's door", crowds::storm),
    row("new-mail", "new mail is announced in IDLE and can be read", changes::new_mail),
    row("origin-dies", "BYE to who waits, a clean cut to who reads", failures::origin_dies),
    row("short-outage", "two seconds without a line end nothing", failures::short_outage),
    row("slow-clients", "clients that do not read cost 2 MiB at most", failures::slow_clients),
    row("killed", "kill -9 in the middle of fills: nothing wrong", durability::killed),
    row("power-cut", "power cuts in the middle of fills: nothing wrong", durability::power_cut),
    row("disk-full", "a full disk is nobody's trouble", durability::disk_full),
    row("disk-was-full", "a full disk is nobody's trouble, and it was full", durability::disk_was_full),
    row("flipped-bits", "a damaged body is a miss, counted", durability::flipped_bits),
    row("damaged-index", "a damaged index does not lie", durability::damaged_index),
    row("garbage-from-the-client", "no client harms the session beside", garbage::from_the_client),
    row("garbage-from-the-server", "no server harms the session beside", garbage::from_the_server),
    row("cut-literals", "half a message is never taken for a whole one", garbage::cut_literals),
    row("clients-leave", "a client that leaves in the middle leaves nothing half", failures::clients_leave),
    row("same-message-at-once", "eight at once, about once over the line", failures::same_message_at_once),
    quick(row(
        "start-known-dovecot",
        "a known client is greeted and logged in at once",
        start::known_dovecot,
    )),
    row("start-known-large", "600 and 10,000 messages: only changes are waited for", start::large_dovecot),
    row("start-known-cyrus", "the same where it is allowed, and only there", start::known_cyrus),
    row("start-wrong-password", "one user's wrong password slows nobody else", start::wrong_password),
    row("start-queue-full", "a server that cuts what is kept ready is left in peace", start::queue_full),
    row("another-key", "a store sealed with another key gives nobody garbage", durability::another_key),
    row("hurries", "a second SIGTERM ends what would go on", front::hurries),
];
