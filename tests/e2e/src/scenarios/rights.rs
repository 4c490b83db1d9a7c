//! What the processes of a node on the path may do: the one that reads what strangers send has no right at all, and carries
//! all the same.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Place;

use super::pair::{Client, ECHO, Nodes, STALL, echo_server};
use super::pair_mail::{self, Sees};
use crate::case::Case;

/// The node carries IPv4, IPv6 and mail without a capability; netd beside it has those that this takes.
pub(crate) fn worker(case: &Case) -> anyhow::Result<()> {
    let site = pair_mail::site(case)?;
    let lab = &site.lab;
    echo_server(lab)?;
    let mut nodes = Nodes::of(case, lab)?;
    let ports = format!("143, 993, {ECHO}");
    let with_mail = pair_mail::branch(&site, &nodes, 993, "")?;
    nodes.start_served(Place::Centre, "intercept", &ports, &pair_mail::centre(&site, 993))?;
    nodes.start_served(Place::Branch, "intercept", &ports, &with_mail)?;
    let mut live = Vec::new();
    for ip in [Place::Server.v4(), Place::Server.v6()] {
        let mut client = Client::connect(lab, ip)?;
        client.sees_the_truth(ip)?;
        client.echoes(b"carried")?;
        live.push(client);
    }
    ensure!(nodes.count(Place::Branch, "carried")? == 2, "control: they are not carried");
    let (_, octets, _) = pair_mail::visit(&site, 993, Sees::Branch)?;
    ensure!(octets > 0, "control: no mail was read");
    for place in [Place::Branch, Place::Centre] {
        let (node, netd) = (nodes.node(place)?.node(), nodes.node(place)?.netd());
        let (node, netd) = (node.context("no node")?, netd.context("no netd")?);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            for (thread, rights) in held(node, set)? {
                ensure!(rights == 0, "{}: {thread} of the node has {set} {rights:x}", place.name());
            }
        }
        let first = held(netd, "CapEff")?.first().context("no thread")?.1;
        ensure!(first & NET_ADMIN != 0, "control: netd has {first:x}");
        let environment = std::fs::read_to_string(format!("/proc/{node}/status"))?;
        ensure!(environment.contains("NoNewPrivs:\t1"), "a set-user-id program could give it some");
        // No socket of its that looks into other people's packets: AF_NETLINK and AF_PACKET, and raw ones.
        let (mine, netds) = (special(node)?, special(netd)?);
        ensure!(mine.is_empty(), "{}: the node holds {mine:?}", place.name());
        ensure!(!netds.is_empty(), "control: netd holds none either");
    }
    for client in &mut live {
        client.echoes(b"still carried")?;
    }
    // The right to serve is netd's to give: without it nothing is carried, and nothing is kept.
    let (node, netd) = (nodes.node(Place::Branch)?.node(), nodes.node(Place::Branch)?.netd());
    nodes.node(Place::Branch)?.watch.announce("the node has ended");
    let (node, netd) = (node.context("no node")?, netd.context("no netd")?);
    lab::sys::kill(node, libc::SIGSTOP)?;
    lab::sys::kill(netd, libc::SIGKILL)?;
    let start = Instant::now();
    while runs(node) {
        ensure!(
            start.elapsed() < Duration::from_secs(1),
            "a stopped node outlives the process that gave it rights"
        );
        thread::sleep(Duration::from_millis(5));
    }
    case.note("ended-ms", u64::try_from(start.elapsed().as_millis())?);
    for mut client in live {
        use std::io::Read as _;
        client.stream.set_read_timeout(Some(STALL))?;
        let told = client.stream.read(&mut [0]).map_err(|error| error.kind());
        ensure!(told == Err(std::io::ErrorKind::ConnectionReset), "its client is told {told:?}");
    }
    Ok(())
}

/// Whoever has to know of its end may not have heard yet.
fn runs(process: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/status"))
        .is_ok_and(|status| !status.contains("State:\tZ"))
}

/// A set of capabilities of each thread.
fn held(process: i32, set: &str) -> anyhow::Result<Vec<(String, u64)>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?;
        // A thread may end meanwhile.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
        let named = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let rights = u64::from_str_radix(named(set).context("no such set")?.trim(), 16)?;
        all.push((named("Name").unwrap_or_default().trim().to_owned(), rights));
    }
    ensure!(!all.is_empty(), "no thread of {process}");
    Ok(all)
}

/// The kinds of its sockets for which a right is needed.
fn special(process: i32) -> anyhow::Result<Vec<String>> {
    let mut inodes = Vec::new();
    for table in ["netlink", "packet", "raw", "raw6"] {
        let text = std::fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default();
        let mut lines = text.lines();
        let column = lines
            .next()
            .and_then(|head| head.split_whitespace().position(|word| word.eq_ignore_ascii_case("inode")));
        for line in lines {
            // In the tables of raw sockets two heads stand over one column, and three over two.
            let column = if table.starts_with("raw") { Some(9) } else { column };
            let inode = column.and_then(|column| line.split_whitespace().nth(column));
            inodes.extend(inode.map(|inode| (format!("socket:[{inode}]"), table)));
        }
    }
    let mut held = Vec::new();
    for fd in std::fs::read_dir(format!("/proc/{process}/fd"))? {
        let Ok(to) = std::fs::read_link(fd?.path()) else { continue };
        let named = inodes.iter().find(|(socket, _)| to.as_os_str() == socket.as_str());
        held.extend(named.map(|(_, table)| (*table).to_owned()));
    }
    Ok(held)
}

const NET_ADMIN: u64 = 1 << 12;
