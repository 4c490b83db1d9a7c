//! Networks that are not as they should be: firewalls, ways back that are others, ends with few options, strangers.
//! Everywhere the client reaches its server; whether the pair carries it is said for each.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Ground;
use lab::ground::Plan;

use crate::case::Case;
use crate::path::capture::{Capture, Packet};
use crate::path::ends::{CLOSED, Client, ECHO, both, connect, noise, serve};
use crate::path::line::Line;
use crate::path::nodes::{Nodes, Standing};

/// `c - a - f - b - s`: two nodes with something between them.
const ROW: [&str; 5] = ["c", "a", "f", "b", "s"];

/// Rules of a firewall that forwards.
fn firewall(rules: &str) -> String {
    format!("table inet fw {{\nchain f {{ type filter hook forward priority 0; {rules} }}\n}}\n")
}

fn pair(nodes: &mut Nodes<'_>) -> anyhow::Result<()> {
    nodes.start(&[("a", Standing::routed()), ("b", Standing::routed())])
}

/// A firewall that takes the query out: nobody is found and nobody waits. Without it the two find each other.
pub(crate) fn stripped(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &ROW)?;
    let line = Line::row(&ground, 3, "a")?;
    let behind = Capture::begin(&ground, "b", "left")?;
    ground.nft("f", &firewall("reset tcp option 253;"))?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    pair(&mut nodes)?;
    for (asked, reason) in [(2, "server-answered"), (0, "no-proxy")] {
        line.forget();
        drop(behind.take());
        for server in line.servers {
            let took = Client::whole(&ground, "c", server)?;
            ensure!(took < Duration::from_millis(900), "a connection took {took:?}: a SYN was lost");
        }
        ensure!(line.seen_at_the_ends()? == (2, asked), "what is asked is not {asked}");
        let seen: Vec<Packet> = behind.take().into_iter().filter(Packet::is_syn).collect();
        ensure!(seen.len() == 2 && seen.iter().all(|syn| !syn.probe), "not stripped: {seen:?}");
        ensure!(nodes.count("a", reason)? == 2, "not {reason}");
    }
    ensure!(nodes.count("a", "carried")? == 0, "carried");
    // The control.
    ground.nft("f", "delete table inet fw")?;
    nodes.node("a")?.kill()?;
    nodes.start(&[("a", Standing::routed())])?;
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (2, 2) && nodes.count("a", "carried")? == 2, "not carried");
    Ok(())
}

/// A firewall that throws SYNs with the query away: one repeated SYN is lost once, and then it is known.
pub(crate) fn dropped(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &ROW)?;
    let line = Line::row(&ground, 3, "a")?;
    ground.nft("f", &firewall("tcp option 253 exists drop;"))?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    pair(&mut nodes)?;
    let [server, _] = line.servers;
    let first = Client::whole(&ground, "c", server)?;
    // The first SYN and one repeated one: a second, and two more.
    ensure!(first < Duration::from_millis(3900), "the first connection took {first:?}");
    ensure!(first > Duration::from_millis(900), "nothing was lost, so nothing is shown: {first:?}");
    case.note("first-ms", u64::try_from(first.as_millis())?);
    let syns = line.seen_behind_the_first();
    ensure!(syns == (3, 2), "{syns:?} SYNs, and with a query, instead of three and two");
    ensure!(nodes.known("a", server)?.as_deref() == Some("option-dropped"), "it is not remembered");
    let next = Client::whole(&ground, "c", server)?;
    ensure!(next < Duration::from_millis(900), "the next connection took {next:?}");
    ensure!(line.seen_behind_the_first() == (1, 0), "asked again");
    // The control.
    ground.nft("f", "delete table inet fw")?;
    nodes.node("a")?.kill()?;
    nodes.start(&[("a", Standing::routed())])?;
    Client::whole(&ground, "c", server)?;
    ensure!(nodes.count("a", "carried")? == 1, "not carried without the firewall");
    Ok(())
}

/// `ct state invalid drop` wherever a packet passes: the pair carries, with either acknowledgement.
pub(crate) fn invalid_drop(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &ROW)?;
    let line = Line::row(&ground, 3, "a")?;
    for (drops, place) in [(false, ""), (true, "c"), (true, "a"), (true, "f"), (true, "b"), (true, "s")] {
        if drops {
            track(&ground, place)?;
        }
        if matches!(place, "" | "s") {
            // The control: an answer that nobody asked for arrives as long as nobody drops it.
            let arrived = stray(&ground, &line, if drops { 8005 } else { 8004 }, line.servers[0])?;
            ensure!(arrived == usize::from(!drops), "{arrived} stray answers at the server");
        }
    }
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (2, 0), "somebody asks before there is a node");
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    for ack in ["isn", "isn+1"] {
        let standing = || Standing::routed().with(&format!("ack = {ack:?}"));
        nodes.start(&[("a", standing()), ("b", standing())])?;
        for (asked, carried) in [(2, 2), (0, 4)] {
            line.connections()?;
            ensure!(line.seen_at_the_ends()? == (2.min(asked), asked), "{ack}: what is asked is not {asked}");
            ensure!(nodes.count("a", "carried")? == carried, "{ack}: not carried");
            nodes.at_rest(&["a", "b"])?;
        }
        for place in ["a", "b"] {
            nodes.node(place)?.kill()?;
        }
    }
    Ok(())
}

/// Connection tracking in a place, which drops what is invalid wherever it passes.
pub(super) fn track(ground: &Ground, place: &str) -> anyhow::Result<()> {
    let everywhere = ["input", "forward", "output"].map(|hook| {
        format!("chain {hook} {{ type filter hook {hook} priority 0; ct state invalid drop; }}\n")
    });
    ground.nft(place, &format!("table inet fw {{\n{}}}\n", everywhere.concat()))
}

/// How many answers to a SYN that the server never sent arrive there; one is sent by `f`.
pub(super) fn stray(
    ground: &Ground,
    line: &Line<'_>,
    port: u16,
    server: SocketAddr,
) -> anyhow::Result<usize> {
    line.forget();
    let (port, server) = (port.to_string(), server.ip().to_string());
    let sent = ground.command("f", "python3").args(["-c", STRAY, &port, &server]).output()?;
    ensure!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    Ok(line.at_the_server().iter().filter(|packet| packet.is_answer()).count())
}

/// Sends a server an answer to a SYN that it never sent: from the port of the first argument to the second.
const STRAY: &str = r#"
import socket,struct,sys
def s16(b):
    t=sum(struct.unpack('!%dH'%(len(b)//2),b))
    while t>>16: t=(t&65535)+(t>>16)
    return 65535-t
w=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_RAW)
src,dst=socket.inet_aton('10.82.0.1'),socket.inet_aton(sys.argv[2])
h=struct.pack('!HHIIBBHHH',int(sys.argv[1]),8000,77,78,5<<4,0x12,65535,0,0)
c=s16(src+dst+struct.pack('!HH',6,len(h))+h)
h=h[:16]+struct.pack('!H',c)+h[18:]
ip=struct.pack('!BBHHHBBH4s4s',0x45,0,20+len(h),0,0,64,6,0,src,dst)
try: w.sendto(ip+h,(sys.argv[2],0))
except PermissionError: pass
"#;

/// What the server does is what the client sees: a closed port, one that says nothing, one that answers late.
pub(crate) fn servers(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let line = Line::row(&ground, 2, "a")?;
    let (silent, late) = (both(2, 2, 8002), both(2, 2, 8003));
    serve(&ground, "s", &[silent, late].concat())?;
    ground.nft("s", "table inet fw {\nchain i { type filter hook input priority 0; }\n}\n")?;
    ground.nft("s", "add rule inet fw i tcp dport { 8002, 8003 } drop")?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    pair(&mut nodes)?;
    let refused = |asked: u64| -> anyhow::Result<()> {
        line.forget();
        for server in both(2, 2, CLOSED) {
            let (refused, took) = connect(&ground, "c", server)?;
            let kind = refused.err().map(|error| error.kind());
            ensure!(kind == Some(std::io::ErrorKind::ConnectionRefused), "{server}: {kind:?}");
            ensure!(took < Duration::from_millis(900), "{server}: refused after {took:?}");
        }
        ensure!(nodes.count("b", "server-refused")? == asked, "it was not b that was refused");
        let (client, at_server) = (line.at_the_client(), line.at_the_server());
        for server in both(2, 2, CLOSED) {
            let syn = client.iter().find(|p| p.is_syn() && p.to == server).context("no SYN of the client")?;
            let told =
                client.iter().any(|p| p.flags.starts_with('R') && p.from == server && p.to == syn.from);
            ensure!(told, "{server}: the client is not told by it: {client:?}");
            let asks = at_server.iter().any(|p| p.is_syn() && p.to == server && p.from == syn.from);
            ensure!(asks, "{server}: the server does not see the client: {at_server:?}");
        }
        Ok(())
    };
    refused(2)?;
    // The server was asked by b with the client's own address, and what it said reached the client.
    let (_, asked) = line.seen_behind_the_first();
    ensure!(asked == 2, "{asked} queries for closed ports");
    line.forget();
    // Both at once: a silent one is not lied about, a late one is reached when it wakes up.
    let began = Instant::now();
    let namespace = ground.namespace("c");
    let client = thread::spawn(move || {
        lab::sys::enter_netns(&namespace)?;
        Ok::<_, std::io::Error>(
            std::net::TcpStream::connect_timeout(&silent[0], Duration::from_secs(4)).map(drop),
        )
    });
    let namespace = ground.namespace("c");
    let waits = thread::spawn(move || {
        lab::sys::enter_netns(&namespace)?;
        Ok::<_, std::io::Error>(
            late.map(|server| std::net::TcpStream::connect_timeout(&server, Duration::from_secs(10))),
        )
    });
    thread::sleep(Duration::from_millis(1500));
    ground.nft("s", "flush chain inet fw i\nadd rule inet fw i tcp dport 8002 drop")?;
    let gave_up = client.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    let kind = gave_up.err().map(|error| error.kind());
    ensure!(kind == Some(std::io::ErrorKind::TimedOut), "a silent server: {kind:?}");
    let [v4, v6] = waits.join().map_err(|_| anyhow::anyhow!("panicked"))??;
    for (stream, server) in [(v4, late[0]), (v6, late[1])] {
        let mut client = Client::greeted(stream.context("a late server")?, began.elapsed(), server)?;
        client.sees_the_truth()?;
        client.echoes(&noise(100_000))?;
        client.ends()?;
    }
    case.note("late-ms", u64::try_from(began.elapsed().as_millis())?);
    case.note("carried", nodes.count("a", "carried")?);
    let (client, at_server) = (line.at_the_client(), line.at_the_server());
    for (server, answers) in [(silent[0], false), (late[0], true), (late[1], true)] {
        let syn = client.iter().find(|p| p.is_syn() && p.to == server).context("no SYN of the client")?;
        let answered = client.iter().any(|p| p.from == server && (p.is_answer() || p.flags.starts_with('R')));
        ensure!(answered == answers, "{server}: at the client: {client:?}");
        let asks = at_server.iter().any(|p| p.is_syn() && p.to == server && p.from == syn.from);
        ensure!(asks, "{server}: the server does not see the client: {at_server:?}");
    }
    // The control: the same word of the server alone, and nobody who asks for a node.
    for place in ["a", "b"] {
        nodes.end(place)?;
    }
    line.forget();
    for server in both(2, 2, CLOSED) {
        let kind = connect(&ground, "c", server)?.0.err().map(|error| error.kind());
        ensure!(kind == Some(std::io::ErrorKind::ConnectionRefused), "without nodes: {kind:?}");
    }
    ensure!(line.seen_behind_the_first() == (2, 0), "somebody asks without nodes");
    Ok(())
}

/// Ends that say little or unusual things: no timestamps, no window scaling, no selective acknowledgements, a small MSS,
/// data on the SYN, ECN. All are carried.
pub(crate) fn options(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &ROW)?;
    let line = Line::row(&ground, 3, "a")?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    pair(&mut nodes)?;
    let mut carried = 0;
    // How tcpdump calls them, in a SYN and in its answer.
    let said = |word: &str| -> anyhow::Result<bool> {
        let (client, at_server) = (line.at_the_client(), line.at_the_server());
        let mut said = Vec::new();
        for server in line.servers {
            let syn = client.iter().find(|p| p.is_syn() && p.to == server).context("no SYN of the client")?;
            let answer = client.iter().find(|p| p.is_answer() && p.from == server).context("no answer")?;
            let seen = at_server.iter().any(|p| p.is_syn() && p.to == server && p.from == syn.from);
            ensure!(seen, "{server}: the server does not see the client: {at_server:?}");
            said.push(syn.line.contains(word));
            ensure!(
                syn.line.contains(word) || !answer.line.contains(word),
                "nobody offered {word}: {answer:?}"
            );
        }
        Ok(said.iter().all(|said| *said))
    };
    for word in ["TS val", "wscale", "sackOK"] {
        line.connections()?;
        ensure!(said(word)?, "control: {word} is not said anyway");
        carried += 2;
    }
    let every = [
        ("tcp_timestamps", "0", "TS val"),
        ("tcp_window_scaling", "0", "wscale"),
        ("tcp_sack", "0", "sackOK"),
    ];
    for (of, value, word) in every.into_iter().chain([("tcp_ecn", "1", "[SEW]")]) {
        line.forget();
        for place in ["c", "s"] {
            ground.set(place, &format!("ipv4/{of}"), value)?;
        }
        for server in line.servers {
            Client::whole(&ground, "c", server)?;
        }
        carried += 2;
        ensure!(nodes.count("a", "carried")? == carried, "{of}={value}: not carried");
        ensure!(said(word)? == (value == "1"), "{of}={value}: {word} in the client's SYN");
    }
    ground.nft("f", &firewall("tcp flags syn tcp option maxseg size set 536;"))?;
    line.forget();
    for server in line.servers {
        Client::whole(&ground, "c", server)?;
    }
    ensure!(nodes.count("a", "carried")? == carried + 2, "a small MSS: not carried");
    // Data on the SYN.
    // At once, and with no cookie.
    for (place, value) in [("c", "1031"), ("s", "1027")] {
        ground.set(place, "ipv4/tcp_fastopen", value)?;
    }
    let output =
        ground.command("c", "python3").args(["-c", EARLY, &line.servers[0].ip().to_string()]).output()?;
    ensure!(output.status.success(), "data on the SYN: {}", String::from_utf8_lossy(&output.stderr));
    ensure!(nodes.count("a", "carried")? == carried + 4, "data on the SYN: not carried");
    let early = line.at_the_client().iter().any(|p| p.is_syn() && p.line.contains("length 5"));
    ensure!(early, "no SYN had data");
    // The control: without the rule nothing of it is carried.
    nodes.end("a")?;
    nodes.start(&[("a", Standing::routed().passing())])?;
    line.connections()?;
    ensure!(line.seen_at_the_ends()? == (2, 0) && nodes.count("a", "carried")? == 0, "without the rule");
    Ok(())
}

/// Two connections with data on their SYN.
const EARLY: &str = r"
import signal,socket,sys
signal.alarm(10)
for n in range(2):
    s=socket.socket()
    s.sendto(b'early',socket.MSG_FASTOPEN,(sys.argv[1],8000))
    g=b''
    while not g.endswith(b'\nearly'):
        d=s.recv(99)
        assert d
        g+=d
    assert g.split(b'\n')[0].decode()=='%s:%d'%s.getsockname(),g
    s.close()
";

/// What the server sends goes round the client's node: its connections are left alone, and none hangs.
pub(crate) fn asymmetric(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &ROW)?;
    let mut plan = Plan::default();
    ground.cable(&mut plan, ("f", "back"), ("c", "back"));
    plan.address("f", "back", 9, 1);
    plan.address("c", "back", 9, 2);
    plan.route("f", 0, (9, 2));
    ground.carry_out(&plan)?;
    for of in ["ipv4/conf/all/rp_filter", "ipv4/conf/back/rp_filter"] {
        ground.set("c", of, "0")?;
    }
    let line = Line::on(&ground, both(3, 2, ECHO), [("c", "right"), ("s", "left"), ("a", "right")])?;
    let back = Capture::begin(&ground, "c", "back")?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    pair(&mut nodes)?;
    for server in line.servers {
        line.forget();
        drop(back.take());
        let first = Client::whole(&ground, "c", server)?;
        ensure!(first < Duration::from_millis(1900), "{server}: the first connection took {first:?}");
        let (_, asked) = line.seen_behind_the_first();
        ensure!(asked >= 1, "{server}: not asked");
        let answers = back.take();
        ensure!(answers.iter().any(Packet::is_answer), "{server}: the way back is not another: {answers:?}");
        let next = Client::whole(&ground, "c", server)?;
        ensure!(next < Duration::from_millis(900), "{server}: the next connection took {next:?}");
        let (syns, asked) = line.seen_behind_the_first();
        ensure!((syns, asked) == (1, 0), "{server}: asked again: {syns} SYNs, {asked} queries");
        case.note(if server.is_ipv4() { "v4-ms" } else { "v6-ms" }, u64::try_from(first.as_millis())?);
    }
    ensure!(nodes.count("a", "asymmetric")? >= 2, "it is not known");
    ensure!(nodes.count("a", "carried")? == 0, "carried");
    // The control: with the way back through it, it is carried.
    let mut plan = Plan::default();
    plan.route("f", 0, (1, 1));
    ground.carry_out(&plan)?;
    nodes.node("a")?.kill()?;
    nodes.node("b")?.kill()?;
    pair(&mut nodes)?;
    line.connections()?;
    ensure!(nodes.count("a", "carried")? == 2, "not carried with a whole way");
    Ok(())
}

/// A node of another authority, and one that is revoked: connections go direct, and `status` says why.
pub(crate) fn strangers(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let line = Line::row(&ground, 2, "a")?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    let direct = |nodes: &Nodes<'_>, what: &str| -> anyhow::Result<()> {
        for round in 0..2 {
            for server in line.servers {
                let took = Client::whole(&ground, "c", server)?;
                ensure!(took < Duration::from_millis(2900), "{what}: round {round} took {took:?}");
            }
        }
        ensure!(nodes.count("a", "answered")? == 2, "{what}: nobody answered, so nothing is shown");
        ensure!(nodes.count("a", "carried")? == 0, "{what}: carried");
        ensure!(nodes.count("b", "claimed")? == 0, "{what}: claimed");
        ensure!(nodes.sent_to("a", "b")?.is_none(), "{what}: a link stands");
        Ok(())
    };
    let revoking = Standing::routed().and("[link]\nrevoked = [\"b\"]\n");
    nodes.start(&[("a", revoking), ("b", Standing::routed())])?;
    direct(&nodes, "revoked")?;
    for place in ["a", "b"] {
        nodes.node(place)?.kill()?;
    }
    nodes.identify("other-ca", &["b"])?;
    pair(&mut nodes)?;
    direct(&nodes, "of another authority")?;
    // The control: of the same authority it is carried.
    for place in ["a", "b"] {
        nodes.node(place)?.kill()?;
    }
    nodes.identify("node-ca", &["b"])?;
    pair(&mut nodes)?;
    line.connections()?;
    ensure!(nodes.count("a", "carried")? == 2, "not carried by one of its own");
    Ok(())
}

/// A node of another organisation carries to the servers that are named for it, and to nothing else. The control: nobody
/// names the other's authority.
pub(crate) fn partner(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let line = Line::row(&ground, 2, "a")?;
    let mut nodes = Nodes::of(case, &ground, &["a"])?;
    nodes.identify("other-ca", &["b"])?;
    let [named, other] = line.servers;
    let whole = |what: &str| -> anyhow::Result<()> {
        for server in line.servers {
            Client::whole(&ground, "c", server).with_context(|| what.to_owned())?;
        }
        Ok(())
    };
    pair(&mut nodes)?;
    whole("a stranger")?;
    ensure!(nodes.count("a", "carried")? == 0, "a stranger's node carries");
    for place in ["a", "b"] {
        nodes.node(place)?.kill()?;
    }
    let naming = |authority: &str| {
        let certificate = ground.directory().join(authority).join("ca.pem");
        Standing::routed().and(&format!(
            "[[authority]]\nname = \"partner\"\ncertificate = {certificate:?}\nservers = [\"{}/32\"]\n",
            named.ip()
        ))
    };
    let at_named = Capture::begin(&ground, "s", "left")?;
    nodes.start(&[("a", naming("other-ca")), ("b", naming("node-ca"))])?;
    whole("a partner")?;
    ensure!(nodes.count("a", "carried")? == 1, "to {named} and to it alone, not to {other}");
    ensure!(nodes.count("b", "claimed")? == 1, "one claim is granted");
    ensure!(nodes.sent_to("a", "b")?.is_some_and(|octets| octets >= 100_000), "not over the link");
    let seen = at_named.take();
    let clients = seen.iter().filter(|packet| packet.is_syn() && packet.from.ip() != named.ip());
    ensure!(clients.count() >= 2, "the server did not see both: {seen:?}");
    Ok(())
}
