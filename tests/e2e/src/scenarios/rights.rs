//! What the processes of a node on the path may do: the one that reads what strangers send has no right at all, and carries
//! all the same.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Place;

use super::pair::{Client, ECHO, Nodes, STALL, echo_server};
use super::pair_mail::{self, Sees};
use crate::case::Case;
use crate::path::until;

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

/// The node is another user than supervisor and netd. It carries, serves mail and is replaced as before; what is root's it
/// neither writes nor takes away, and a directory in which it could is refused.
pub(crate) fn user(case: &Case) -> anyhow::Result<()> {
    let site = pair_mail::site(case)?;
    let lab = &site.lab;
    echo_server(lab)?;
    let mut nodes = Nodes::of(case, lab)?;
    nodes.user = Some(NOBODY);
    let ports = format!("143, 993, {ECHO}");
    let with_mail = pair_mail::branch(&site, &nodes, 993, "")?;
    // On the way to its directory it need not read, but pass.
    std::fs::set_permissions(lab.directory(), Permissions::from_mode(0o711))?;
    own(&site.front().key, NOBODY_ID)?;
    let (branch, centre) = (nodes.directory(Place::Branch), nodes.directory(Place::Centre));
    for directory in [&branch, &centre] {
        own(directory, NOBODY_ID)?;
    }
    // All of it is the node's: then so would be what netd keeps there.
    let refused = nodes.start_served(Place::Branch, "intercept", &ports, &with_mail);
    let why = refused.err().context("a directory of the node's own is taken for root's")?.to_string();
    ensure!(why.contains("is not root's") && why.contains("chown root "), "refused with {why}");
    for directory in [&branch, &centre] {
        chown(directory, Some(0), Some(0))?;
    }
    nodes.start_served(Place::Centre, "intercept", &ports, &pair_mail::centre(&site, 993))?;
    nodes.start_served(Place::Branch, "intercept", &ports, &with_mail)?;
    let ip = Place::Server.v4();
    let mut live = Client::connect(lab, ip)?;
    live.sees_the_truth(ip)?;
    live.echoes(b"carried")?;
    ensure!(nodes.count(Place::Branch, "carried")? == 1, "control: it is not carried");
    ensure!(pair_mail::visit(&site, 993, Sees::Branch)?.1 > 0, "control: no mail was read");
    let first = nodes.node(Place::Branch)?.node().context("no node")?;
    nodes.upgrade(Place::Branch)?;
    ensure!(nodes.node(Place::Branch)?.node() != Some(first), "control: it was not replaced");
    let (again, octets, crossed) = pair_mail::visit(&site, 993, Sees::Branch)?;
    ensure!(
        crossed < octets,
        "{crossed} octets on the WAN for {octets} of mail ({again}) that the store had"
    );
    live.echoes(b"still carried")?;
    for place in [Place::Branch, Place::Centre] {
        let (node, netd) = (nodes.node(place)?.node(), nodes.node(place)?.netd());
        let (node, netd) = (node.context("no node")?, netd.context("no netd")?);
        for process in [node, first] {
            for id in ["Uid", "Gid"] {
                let all = format!("{0}\t{0}\t{0}\t{0}", NOBODY_ID);
                for (thread, is) in threads(process, id)? {
                    ensure!(is == all, "{}: {thread} of the node is {id} {is}", place.name());
                }
            }
            ensure!(threads(process, "Groups")?.iter().all(|(_, groups)| groups.is_empty()), "it has groups");
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                ensure!(held(process, set)?.iter().all(|(_, rights)| *rights == 0), "it has {set}");
            }
        }
        let netds = threads(netd, "Uid")?;
        ensure!(netds.iter().all(|(_, is)| is.starts_with("0\t")), "control: netd is {netds:?}");
    }
    // What whoever had taken it over could do to the files of those that are root.
    let table = branch.join("netd/mapping-table");
    until("the first netd has left its table", || Ok(table.exists()))?;
    let (table, socket) = (table.display(), branch.join("supervisor-admin.sock"));
    let (socket, mine) = (socket.display(), branch.join("mine"));
    let mine = mine.display();
    let setting = "echo 5 > /proc/sys/net/ipv4/tcp_syn_retries";
    let does = |whom: &[&str], line: &str| -> anyhow::Result<bool> {
        let output = lab.command(Place::Branch, "setpriv").args(whom).args(["sh", "-c", line]).output()?;
        Ok(output.status.success())
    };
    let node = ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"];
    ensure!(
        does(&node, &format!("touch {mine} && mv {mine} {mine}.2"))?,
        "control: it makes no file of its own"
    );
    for line in [
        format!("rm -f {table}"),
        format!("mv {0} {0}.2", branch.join("netd").display()),
        format!("touch {table}.new"),
        format!("mv -f {mine}.2 {table}"),
        format!("echo forged > {table}"),
        format!("rm -f {socket}"),
        setting.to_owned(),
    ] {
        ensure!(!does(&node, &line)?, "the node's user can: {line}");
    }
    // Root without a capability can, which is why the node is not root.
    ensure!(does(&["--bounding-set=-all", "--inh-caps=-all"], setting)?, "control: {setting}");
    live.ends()?;
    // It is netd's to end, stopped or not, whoever it is.
    let (node, netd) = (nodes.node(Place::Branch)?.node(), nodes.node(Place::Branch)?.netd());
    nodes.node(Place::Branch)?.watch.announce("the node has ended");
    let (node, netd) = (node.context("no node")?, netd.context("no netd")?);
    lab::sys::kill(node, libc::SIGSTOP)?;
    lab::sys::kill(netd, libc::SIGKILL)?;
    until("the stopped node has ended", || Ok(!runs(node)))?;
    Ok(())
}

const NOBODY: &str = "nobody";
const NOBODY_ID: u32 = 65534;

/// Everything there is this user's.
fn own(path: &Path, id: u32) -> anyhow::Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            own(&entry?.path(), id)?;
        }
    }
    Ok(std::os::unix::fs::lchown(path, Some(id), Some(id))?)
}

/// What `/proc` says of each thread under this name.
fn threads(process: i32, name: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?;
        // A thread may end meanwhile.
        let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
        let named = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let is = named(name).with_context(|| format!("no {name}"))?.trim().to_owned();
        all.push((named("Name").unwrap_or_default().trim().to_owned(), is));
    }
    ensure!(!all.is_empty(), "no thread of {process}");
    Ok(all)
}

/// Whoever has to know of its end may not have heard yet.
fn runs(process: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/status"))
        .is_ok_and(|status| !status.contains("State:\tZ"))
}

/// A set of capabilities of each thread.
fn held(process: i32, set: &str) -> anyhow::Result<Vec<(String, u64)>> {
    let all = threads(process, set)?.into_iter();
    all.map(|(thread, rights)| Ok((thread, u64::from_str_radix(&rights, 16)?))).collect()
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
