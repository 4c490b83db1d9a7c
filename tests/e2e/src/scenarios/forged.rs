//! Whoever says on the path, or on the link, what is not so: answers that nobody gave, peers of another age or of none.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::Ground;
use sha2::{Digest as _, Sha256};

use super::pair::STALL;
use crate::case::Case;
use crate::path::capture::Packet;
use crate::path::ends::{Client, both, serve};
use crate::path::line::Line;
use crate::path::nodes::{Nodes, Standing};
use crate::path::until;

/// A program of a test's own in a place; it ends with the value.
struct Liar {
    child: Child,
    said: Receiver<String>,
}

impl Liar {
    /// It says `ready` when it is.
    fn start(ground: &Ground, place: &str, program: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = ground.command(place, "python3");
        let mut child = command.args(["-c", program]).args(arguments).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let (tell, said) = channel();
        let liar = Self { child, said };
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                drop(tell.send(line));
            }
        });
        let word = liar.line(STALL)?;
        ensure!(word == "ready", "it says {word:?}");
        Ok(liar)
    }

    fn line(&self, patience: Duration) -> anyhow::Result<String> {
        self.said.recv_timeout(patience).context("it says nothing")
    }

    /// The first line that ends so, whichever of its connections ends first.
    fn hears(&self, end: &str) -> anyhow::Result<String> {
        let until = Instant::now() + STALL;
        let mut others = Vec::new();
        loop {
            match self.line(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.ends_with(end) => return Ok(line),
                Ok(line) => others.push(line),
                Err(error) => return Err(error.context(format!("it hears {others:?}"))),
            }
        }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Somebody between the two answers every query himself. What he says is believed where it is so, which shows that his
/// answers are good ones; not where he guesses the number of a SYN; and where it leads nowhere the client waits for
/// nobody.
pub(crate) fn answers(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "f", "b", "s"])?;
    let line = Line::row(&ground, 3, "a")?;
    let [truth, _] = line.servers;
    let (blind, nobody) = (SocketAddr::new(truth.ip(), 8002), SocketAddr::new(truth.ip(), 8003));
    serve(&ground, "s", &[blind, nobody])?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    let may = Standing::routed().and("[[peer]]\nid = \"a\"\nmay_open = [\"10.82.3.0/24\"]\n");
    nodes.start(&[("a", Standing::routed()), ("b", may)])?;
    let key = hint(&ground, &nodes)?;
    // Who sees the query has its number; he keeps it from whoever could answer it, so that his answer is the first.
    ground.nft(
        "f",
        "table inet fw {\nchain f { type filter hook forward priority 0; tcp option 253 exists drop; }\n}\n",
    )?;
    let ends = |server: SocketAddr| -> anyhow::Result<()> {
        let (client, at_server) = (line.at_the_client(), line.at_the_server());
        let answer = |p: &&Packet| p.is_answer() && p.from == server;
        ensure!(client.iter().filter(answer).count() == 1, "{server}: at the client: {client:?}");
        ensure!(client.iter().all(|p| !p.probe), "{server}: an option of ours at the client: {client:?}");
        let syn = client.iter().find(|p| p.is_syn() && p.to == server).context("no SYN at the client")?;
        let seen = at_server.iter().any(|p| p.is_syn() && p.to == server && p.from == syn.from);
        ensure!(seen, "{server}: the server does not see the client: {at_server:?}");
        Ok(())
    };

    // The control: the same words of the node that stands there.
    let liar = Liar::start(&ground, "f", ANSWERS, &["0", &key, "10.82.2.2", "8000"])?;
    line.forget();
    // Before the link stands one may go direct.
    until("a true answer is believed", || {
        Client::whole(&ground, "c", truth)?;
        Ok(nodes.count("a", "carried")? > 0)
    })?;
    ensure!(nodes.count("a", "answered")? >= 1, "nobody answered");
    let carried = nodes.count("a", "carried")?;
    ensure!(nodes.sent_to("a", "b")?.is_some_and(|sent| sent >= 100_000), "not over the link");
    drop(liar);

    // The same from somebody who has not seen the SYN.
    let (answered, before) = (nodes.count("a", "answered")?, nodes.count("a", "bad-answer")?);
    let liar = Liar::start(&ground, "f", ANSWERS, &["77777", &key, "10.82.2.2", "8002"])?;
    line.forget();
    let took = Client::whole(&ground, "c", blind)?;
    ensure!(took < Duration::from_millis(3900), "after a guess: {took:?}");
    ends(blind)?;
    let bad = nodes.count("a", "bad-answer")?;
    ensure!(bad > before, "no guess has arrived, so nothing is shown");
    ensure!(nodes.count("a", "answered")? == answered, "a guess is believed");
    ensure!(nodes.count("a", "carried")? == carried, "a guess is carried");
    case.note("guess-ms", u64::try_from(took.as_millis())?);
    drop(liar);

    // From who has seen it, and leads to a port where nobody listens.
    let liar = Liar::start(&ground, "f", ANSWERS, &["0", "4242424242424242", "10.82.1.2", "8003"])?;
    line.forget();
    let took = Client::whole(&ground, "c", nobody)?;
    ensure!(took < Duration::from_millis(3900), "led nowhere: {took:?}");
    ends(nobody)?;
    ensure!(nodes.count("a", "answered")? > answered, "the answer has not arrived, so nothing is shown");
    case.note("nowhere-ms", u64::try_from(took.as_millis())?);
    let took = Client::whole(&ground, "c", nobody)?;
    ensure!(took < Duration::from_millis(900), "the next one took {took:?}");
    ensure!(nodes.count("a", "carried")? == carried, "carried by nobody");
    drop(liar);
    Ok(())
}

/// What probes tell of the key of `b`.
fn hint(ground: &Ground, nodes: &Nodes<'_>) -> anyhow::Result<String> {
    let certificate = nodes.directory("b").join("node/cert.pem");
    let script = "openssl x509 -in \"$0\" -pubkey -noout | openssl pkey -pubin -outform DER";
    let mut command = ground.command("b", "sh");
    let output = command.args(["-c", script]).arg(&certificate).output()?;
    ensure!(output.status.success() && !output.stdout.is_empty(), "no key in {}", certificate.display());
    Ok(Sha256::digest(&output.stdout).iter().take(8).map(|octet| format!("{octet:02x}")).collect())
}

/// Reads SYNs with the query to a port on `left`, and answers with a response: how far beside the SYN's own number, with which
/// key, naming whom, for which port.
const ANSWERS: &str = r#"
import socket,struct,sys
beside,key,link,port=int(sys.argv[1]),bytes.fromhex(sys.argv[2]),socket.inet_aton(sys.argv[3]),int(sys.argv[4])
def s16(b):
    t=sum(struct.unpack('!%dH'%(len(b)//2),b))
    while t>>16: t=(t&65535)+(t>>16)
    return 65535-t
r=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.htons(0x800)); r.bind(('left',0))
w=socket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_RAW)
print('ready',flush=True)
while True:
    f=r.recv(2048)[14:]
    ihl=(f[0]&15)*4
    t=f[ihl:]
    if f[9]!=6 or t[13]&0x12!=2 or b'\x57\x50' not in t[20:]: continue
    src,dst=f[12:16],f[16:20]; sp,dp,seq=struct.unpack('!HHI',t[:8])
    if dp!=port: continue
    o=struct.pack('!BBHBBH8s4s',253,20,0x5750,0x12,1,7782,key,link)
    h=struct.pack('!HHIIBBHHH',dp,sp,77,(seq+beside)&0xffffffff,(20+len(o))//4<<4,0x12,65535,0,0)+o
    c=s16(dst+src+struct.pack('!HH',6,len(h))+h)
    h=h[:16]+struct.pack('!H',c)+h[18:]
    ip=struct.pack('!BBHHHBBH4s4s',0x45,0,20+len(h),0,0,64,6,0,dst,src)
    w.sendto(ip+h,(socket.inet_ntoa(src),0))
"#;

/// What a peer says on its link, with a good certificate, and the reason for which it is left.
const SAID: &[(&str, &str, &str)] = &[
    // HELLO of major version 0, of 2; of ours, and then octets of a stream that nobody opened.
    ("older", "070157504c4b0009", "17"),
    ("newer", "070157504c4b0200", "18"),
    ("rogue", "100157504c4b0100010000000000000005050200010000060608000000 78", "11"),
];

/// A peer that speaks an older link, a newer one, or none: it is told why, connections go direct, and it is asked no more for
/// a while. With its own link it carries.
pub(crate) fn peers(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::row(case.prefix(), &["c", "a", "b", "s"])?;
    let line = Line::row(&ground, 2, "a")?;
    let mut nodes = Nodes::of(case, &ground, &["a", "b"])?;
    nodes.start(&[("b", Standing::routed())])?;
    let identity = nodes.directory("b").join("node");
    for (nth, (what, says, reason)) in SAID.iter().enumerate() {
        let servers = both(2, 2, 8002 + u16::try_from(nth)?);
        serve(&ground, "s", &servers)?;
        ground.nft("b", "table inet other {\nchain p { type nat hook prerouting priority -100; tcp dport 7782 redirect to :7799; }\n}\n")?;
        let (certificate, key) = (identity.join("cert.pem"), identity.join("key.pem"));
        let paths = [&certificate, &key].map(|path| path.to_str().unwrap_or_default());
        let says = says.replace(' ', "");
        let liar = Liar::start(&ground, "b", SPEAKS, &[paths[0], paths[1], &says])?;
        nodes.start(&[("a", Standing::routed())])?;
        nodes.node("a")?.watch.announce("breaks the rules of the link");
        line.forget();
        for server in servers {
            let took = Client::whole(&ground, "c", server)?;
            ensure!(took < Duration::from_millis(2900), "{what}: {server}: {took:?}");
        }
        let heard = liar.hears(&format!("020d{reason}")).with_context(|| (*what).to_owned())?;
        case.note(what, heard);
        ensure!(nodes.count("a", "answered")? >= 1, "{what}: nobody answered, so nothing is shown");
        ensure!(nodes.count("a", "carried")? == 0, "{what}: carried");
        let (client, at_server) = (line.at_the_client(), line.at_the_server());
        for syn in client.iter().filter(|p| p.is_syn()) {
            ensure!(at_server.iter().any(|p| p.is_syn() && p.from == syn.from), "{what}: {at_server:?}");
        }
        let answers = client.iter().filter(|p| p.is_answer() && !p.probe).count();
        ensure!(answers == 2, "{what}: {answers} answers at the client: {client:?}");
        nodes.node("a")?.kill()?;
        drop(liar);
        ground.nft("b", "delete table inet other")?;
    }
    // The control: its own link.
    nodes.start(&[("a", Standing::routed())])?;
    line.connections()?;
    line.seen_at_the_ends()?;
    ensure!(nodes.count("a", "carried")? == 2, "not carried by the peer itself");
    Ok(())
}

/// Takes connections with a certificate and its key, says something once it has heard a greeting, and tells what it hears
/// until the end.
const SPEAKS: &str = r"
import ssl,socket,sys
c=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
c.minimum_version=ssl.TLSVersion.TLSv1_3
c.load_cert_chain(sys.argv[1],sys.argv[2])
c.set_alpn_protocols(['waypost-link'])
l=socket.create_server(('::',7799),family=socket.AF_INET6,dualstack_ipv6=True)
print('ready',flush=True)
while True:
    s,_=l.accept()
    s.settimeout(5)
    heard=b''
    try:
        t=c.wrap_socket(s,server_side=True)
        heard=t.recv(4096)
        t.sendall(bytes.fromhex(sys.argv[3]))
        while True:
            d=t.recv(4096)
            if not d: break
            heard+=d
    except OSError: pass
    print(heard.hex(),flush=True)
    s.close()
";
