//! From the configuration to what the packet loop, the engine and the rules are made of.

use super::deflecting;
use crate::{
    config::{
        Config,
        deflection::Deflector,
        network::{Interception, Link, RuleConfig},
        value::{Ack, Answer, HostSide, InterfaceName, ProbeManner, Refresh, Standing},
    },
    exit::{Exit, Failure},
};
use discovery_core::{
    engine::{self, AckVariant, Answering, Embodiment},
    flow::Ingress,
    id::NodeId,
    packet::Protocol,
    pmt,
    probe::{Codec, KeyHint},
    rule::{Action, BpfInsn, Existing, Ports, Prefix, Program, RuleSet},
};
use discovery_linux::{
    queue::QueueSettings,
    rules::{BadPlan, Deflecting, ExistingFilter, Host, Instance, Interface, Listen, Mode, Plan, PlanSpec},
};
use std::process::Stdio;
use std::{
    collections::HashMap,
    fmt::Display,
    io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::Duration,
};
use tokio::process::Command;

pub(super) fn plan(
    interception: &Interception,
    deflector: Option<&Deflector>,
    listen: Listen,
) -> Result<Plan, Failure> {
    let wrong = |bad: BadPlan| Failure::new(Exit::Usage, bad);
    let interface = |name: &InterfaceName| Interface::new(&name.0).map_err(wrong);
    let interfaces = interception.interfaces.iter().map(interface).collect::<Result<Vec<_>, _>>()?;
    let mode = match (interception.mode, &interception.bridge) {
        (Standing::Routed, _) => Mode::Routed { interfaces },
        (Standing::Bridge, Some(bridge)) => {
            Mode::Bridge { bridge: interface(bridge)?, ports: interfaces, tagged: interception.tagged }
        }
        (Standing::Bridge, None) => return Err(Failure::say(Exit::Bug, "a bridge without its name")),
        (Standing::Host, _) => Mode::Host {
            interfaces,
            host: match interception.host {
                HostSide::Client => Host::Client,
                HostSide::Server => Host::Server,
                HostSide::Both => Host::Both,
            },
        },
    };
    // Two nodes in one namespace have different queues.
    let instance = Instance::new(&format!("q{}", interception.queue)).map_err(wrong)?;
    Plan::new(PlanSpec {
        instance,
        mode,
        queue: interception.queue,
        listen,
        route_table: u32::from(interception.queue),
        probe_kind: interception.option_kind,
        probing: true,
        datagrams: true,
        deflecting: deflector.map(|deflector| Deflecting {
            proxies: deflecting::addresses(deflector),
            proxy_port: deflector.port,
        }),
        probe_port: engine::Config::default().probe_port,
    })
    .map(|plan| plan.with_existing(existing(interception)))
    .map_err(wrong)
}

/// What the kernel can tell of the rules about connections that stood before.
fn existing(interception: &Interception) -> Vec<ExistingFilter> {
    let networks =
        |prefixes: &[Prefix]| prefixes.iter().map(|prefix| (prefix.network(), prefix.length())).collect();
    let ports = |ports: &[Ports]| ports.iter().map(Ports::ends).collect();
    let rules = interception.rules.iter().filter(|rule| asks(rule));
    let filters = rules.map(|rule| ExistingFilter {
        clients: networks(&rule.clients),
        servers: networks(&rule.servers),
        client_ports: ports(&rule.client_ports),
        server_ports: ports(&rule.ports),
        watches: rule.existing == Existing::Adopt,
    });
    filters.collect()
}

fn asks(rule: &RuleConfig) -> bool {
    let takes = match rule.action {
        Action::Intercept | Action::InterceptSingle | Action::DropIfNoPeer => true,
        Action::Pass | Action::Drop | Action::Deny => false,
    };
    takes && rule.existing != Existing::Leave && rule.protocol != Some(Protocol::Udp)
}

/// Handshakes are short; segments in the middle of a connection may not be, and all of a deflected one come by.
pub(super) fn queue(interception: &Interception, deflects: bool) -> QueueSettings {
    if deflects || interception.rules.iter().any(asks) {
        QueueSettings::segments(interception.queue)
    } else {
        QueueSettings::handshakes(interception.queue)
    }
}

/// Kernel settings as they were are remembered until the machine starts anew.
pub(super) fn saved(config: &Config, queue: u16) -> PathBuf {
    let run = std::path::Path::new("/run");
    let dir = if run.is_dir() { run } else { &config.node.state_dir };
    // Nodes in several network namespaces of one machine may share /run, and each has settings of its own.
    let namespace = std::fs::metadata("/proc/self/ns/net").map_or(0, |namespace| namespace.ino());
    dir.join(format!("waypost-q{queue}-{namespace}.saved"))
}

pub(super) fn codec(interception: &Interception) -> Codec {
    codec_of(interception.option_kind)
}

/// In this TCP option.
pub(super) fn codec_of(option_kind: u8) -> Codec {
    Codec::new(option_kind, EXPERIMENT).unwrap_or_default()
}

/// Waypost's experiment identifier (RFC 6994): 'WP'.
const EXPERIMENT: u16 = 0x5750;

/// Between two separate probes by which a node refreshes what it knows, of all servers together.
const REFRESH_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn engine(interception: &Interception, link: &Link) -> engine::Config {
    let embodiment = match interception.probe {
        ProbeManner::OnSyn => Embodiment::OnSyn,
        ProbeManner::Stalled => Embodiment::Stalled,
        ProbeManner::Parallel => Embodiment::Parallel,
    };
    let ack = match interception.ack {
        Ack::Isn => AckVariant::Isn,
        Ack::IsnPlusOne => AckVariant::IsnPlusOne,
    };
    let answering = match interception.answer {
        Answer::Auto => Answering::Auto,
        Answer::Option => Answering::Option,
        Answer::Datagram => Answering::Datagram,
    };
    let interval = REFRESH_INTERVAL;
    let refresh = match interception.refresh {
        Refresh::WhenStale => pmt::Refresh::NextSyn,
        Refresh::ByConnection => pmt::Refresh::Connection { interval },
        Refresh::ByTimer => pmt::Refresh::Timer { interval },
    };
    let mut config =
        engine::Config { embodiment, ack, answering, cookie: cookie(), ..engine::Config::default() };
    config.named = names(link).into_keys().map(|peer| peer.key).collect();
    (config.pmt.refresh, config.pmt.ttl_min) = (refresh, interception.entry_ttl);
    config.pmt.statics = link
        .peers
        .iter()
        .filter_map(|peer| Some((named(peer)?, peer)))
        .flat_map(|(address, peer)| {
            peer.servers.iter().map(move |servers| pmt::StaticPeer {
                network: pmt::Prefix::new(servers.network(), servers.length()),
                port: None,
                peer: address,
                preference: peer.preference,
            })
        })
        .collect();
    config
}

/// Peers that are known by name, as the engine knows them.
pub(super) fn names(link: &Link) -> HashMap<engine::Peer, NodeId> {
    link.peers.iter().filter_map(|peer| Some((named(peer)?, peer.id.clone()))).collect()
}

fn named(peer: &crate::config::network::Peer) -> Option<engine::Peer> {
    // Without a pin its key is not known; it only has to differ from the others'.
    let key = peer.pin.map_or_else(|| stand_in(&peer.id), |pin| wan::key_hint(&pin.0));
    Some(engine::Peer { link: peer.address?, key })
}

fn stand_in(id: &NodeId) -> KeyHint {
    let mut hint = [0; 8];
    let digest = blake3::hash(id.as_str().as_bytes());
    hint.iter_mut().zip(digest.as_bytes()).for_each(|(to, from)| *to = *from);
    KeyHint(hint)
}

fn cookie() -> u32 {
    let mut octets = [0; 4];
    // Without randomness TLS does not work either.
    let _ = epc::tls::provider().secure_random.fill(&mut octets);
    u32::from_ne_bytes(octets)
}

/// The ports of the bridge that are taken; none when there is no bridge.
pub(super) fn ports(interception: &Interception) -> Vec<String> {
    match interception.mode {
        Standing::Bridge => interception.interfaces.iter().map(|name| name.0.clone()).collect(),
        Standing::Routed | Standing::Host => Vec::new(),
    }
}

/// The rules with interfaces by number and expressions as programs.
pub(super) async fn rules(interception: &Interception) -> Result<RuleSet, Failure> {
    rules_with(interception, ingress).await
}

/// The same with other numbers.
pub(super) async fn rules_with(
    interception: &Interception,
    ingress: impl Fn(&InterfaceName, &RuleConfig) -> Ingress,
) -> Result<RuleSet, Failure> {
    let mut built = Vec::new();
    for (nth, rule) in interception.rules.iter().enumerate() {
        let program = match &rule.bpf {
            Some(expression) => Some(compile(expression, nth + 1).await?),
            None => None,
        };
        built.push(rule.build(|name| ingress(name, rule), program));
    }
    RuleSet::new(built).map_err(|error| Failure::new(Exit::Usage, error))
}

/// An interface that is not there yet has no number, and a rule about it alone fits nothing.
fn ingress(name: &InterfaceName, rule: &RuleConfig) -> Ingress {
    let number = number(name);
    if number.is_none() {
        tracing::warn!(interface = %name.0, action = %rule.action, "there is no such interface; the rule does not fit");
    }
    number.unwrap_or(Ingress(u32::MAX))
}

/// The kernel's number of an interface.
pub(super) fn number(name: &InterfaceName) -> Option<Ingress> {
    let number = std::fs::read_to_string(format!("/sys/class/net/{}/ifindex", name.0)).ok()?;
    number.trim().parse().ok().map(Ingress)
}

/// Has tcpdump compile an expression for packets that begin with their IP header.
async fn compile(expression: &str, nth: usize) -> Result<Program, Failure> {
    let wrong = |why: &dyn Display| {
        Failure::say(Exit::Usage, format_args!("[[rule]] {nth}: bpf: {expression:?}: {why}"))
    };
    let output = Command::new("tcpdump")
        .args(["-ddd", "-y", "RAW", "--", expression])
        // A node's own is its supervisor's channel.
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(|error| wrong(&format_args!("tcpdump, which compiles it, cannot be run: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(wrong(&said.lines().last().unwrap_or("tcpdump does not say why")));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(str::parse::<u32>);
    let count = numbers.next().and_then(Result::ok).unwrap_or(0);
    let numbers: Vec<u32> = numbers.flatten().collect();
    let instruction = |four: &[u32]| match four {
        [code, jt, jf, k] => Some(BpfInsn {
            code: u16::try_from(*code).ok()?,
            jt: u8::try_from(*jt).ok()?,
            jf: u8::try_from(*jf).ok()?,
            k: *k,
        }),
        _ => None,
    };
    let instructions: Option<Vec<_>> = numbers.chunks(4).map(instruction).collect();
    match instructions {
        Some(instructions) if usize::try_from(count) == Ok(instructions.len()) => {
            Program::new(&instructions).map_err(|error| wrong(&error))
        }
        Some(_) | None => Err(wrong(&"tcpdump printed no program")),
    }
}

/// Where other nodes reach this one: as configured, else the first addresses of the interfaces on the path.
pub(super) async fn addresses(
    interception: &Interception,
    link: &Link,
) -> Result<(Option<SocketAddr>, Option<SocketAddr>), Failure> {
    let mut all: Vec<SocketAddr> = link.advertise.clone();
    if !link.listen.ip().is_unspecified() {
        all.push(link.listen);
    }
    let names = interception.bridge.iter().chain(&interception.interfaces);
    for name in names {
        let own = global_addresses(&["dev", &name.0]).await?;
        all.extend(own.into_iter().map(|ip| SocketAddr::new(ip, link.listen.port())));
    }
    let v4 = all.iter().find(|address| address.is_ipv4()).copied();
    let v6 = all.iter().find(|address| address.is_ipv6()).copied();
    if v4.is_none() && v6.is_none() {
        return Err(Failure::say(
            Exit::Unavailable,
            "[interception]: none of the interfaces has an address that other nodes could reach; \
             [link] advertise names one",
        ));
    }
    Ok((v4, v6))
}

/// This machine's own addresses, where its own servers' connections are taken.
pub(super) async fn here(interception: &Interception) -> Result<Vec<IpAddr>, Failure> {
    let serves = matches!(interception.host, HostSide::Server | HostSide::Both);
    if interception.mode == Standing::Host && serves { global_addresses(&[]).await } else { Ok(Vec::new()) }
}

async fn global_addresses(of: &[&str]) -> Result<Vec<IpAddr>, Failure> {
    let mut ip = Command::new("ip");
    // A node's own is its supervisor's channel.
    ip.args(["-j", "addr", "show"]).args(of).stdin(Stdio::null());
    let output = ip.output().await;
    let output = output.map_err(|error| Failure::io("ip, of the package iproute2", error))?;
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let addresses = shown.as_array().into_iter().flatten().filter_map(|link| link.get("addr_info"));
    let local = addresses.filter_map(|info| info.as_array()).flatten();
    let local = local.filter(|info| info.get("scope").and_then(|scope| scope.as_str()) == Some("global"));
    Ok(local.filter_map(|info| info.get("local")?.as_str()?.parse().ok()).collect())
}

pub(super) fn needs_rights(what: impl Display, error: io::Error) -> Failure {
    let denied = error.kind() == io::ErrorKind::PermissionDenied;
    let advice = if denied {
        ": standing on the path needs CAP_NET_ADMIN and CAP_NET_RAW, as root or the systemd unit has them"
    } else {
        ""
    };
    Failure::io(format!("{what}{advice}"), error)
}
