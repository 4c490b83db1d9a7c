//! Garbage from either side: the executable stays up, its memory stays bounded, and a session beside goes on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::clients::{Account, Reply, Response, Tls, Wire};
use lab::pki::Identity;
use lab::{Corpus, Place};

use crate::case::Case;
use crate::liar::{Liar, Script, Talk, honest, message};
use crate::site::{STALL, Server, Site, Way, listener};
use crate::waypost::{Settings, Waypost};

/// The scripted server's name in the branch.
const LIAR: &str = "liar.lab.test";
const LIAR_PORT: u16 = 2993;
const LIAR_STARTTLS_PORT: u16 = 2143;
const FRONT_PORT: u16 = 2993;

/// A lab with an honest Dovecot for the session beside, and a place for a liar.
struct Ground {
    site: Site,
    identity: Identity,
    front: Identity,
}

impl Ground {
    fn build(case: &Case) -> anyhow::Result<Self> {
        let mut corpus = Corpus::sized(61, 10, 60_000);
        corpus.users.retain(|user| user.name == "alice" || user.name == "bob");
        let site = Site::build(case, corpus, &[Server::Dovecot])?;
        let identity = site.authority.issue(&[LIAR])?;
        // A certificate for both names at the front.
        let front = lab::Authority::create(&site.lab.directory().join("both"))?
            .issue(&[LIAR, Server::Dovecot.host()])?;
        site.lab.set_hosts(Place::Branch, &[(LIAR, Place::Server.v4())])?;
        site.lab.set_hosts(
            Place::Client,
            &[(LIAR, Place::Branch.v4()), (Server::Dovecot.host(), Place::Branch.v4())],
        )?;
        Ok(Self { site, identity, front })
    }

    fn settings(&self, tls: &'static str) -> Settings {
        let mut settings = self.site.settings();
        settings.front = crate::waypost::Front::Operator(self.front.clone());
        let port = if tls == "starttls" { LIAR_STARTTLS_PORT } else { LIAR_PORT };
        let mut liar = self.site.server_section(LIAR, port, tls);
        // One liar follows another: what was ready for the next client would be the last one's.
        liar.lines.push_str("parked = 0\n");
        settings.servers.push(liar);
        settings.listeners.push(listener(FRONT_PORT, LIAR, "implicit"));
        settings
    }

    fn account(&self, host: &str, port: u16) -> anyhow::Result<Account> {
        let ca = self.site.lab.directory().join("both/ca.pem");
        Ok(Account {
            host: host.to_owned(),
            port,
            ca,
            ..self.site.account(Server::Dovecot, Way::Waypost, "alice")?
        })
    }

    /// A session with Dovecot, logged in.
    fn beside(&self) -> anyhow::Result<Wire> {
        let account = self.account(Server::Dovecot.host(), 993)?;
        let mut wire = Wire::log_in(&self.site.lab, Place::Client, &account, STALL)?;
        wire.command("SELECT INBOX")?.ok()?;
        Ok(wire)
    }

    /// A session with the liar, greeted if it greets.
    fn with_liar(&self) -> anyhow::Result<Wire> {
        let account = self.account(LIAR, FRONT_PORT)?;
        let branch = (Place::Branch.v4(), FRONT_PORT);
        let mut wire = Wire::dial(&self.site.lab, Place::Client, branch, LIAR, &account.ca, STALL)?;
        wire.secure()?;
        Ok(wire)
    }

    fn liar(&self, script: Arc<Script>) -> anyhow::Result<Liar> {
        Liar::start(&self.site.lab, LIAR_PORT, Some(&self.identity), script)
    }
}

/// The session beside gets its mail, and the executable has not grown out of bounds.
fn unharmed(what: &str, waypost: &mut Waypost, beside: &mut Wire, before: u64) -> anyhow::Result<()> {
    let found = (|| {
        waypost.still_runs()?;
        let reply = beside.command("UID FETCH 1:3 (BODY.PEEK[])")?.ok()?;
        ensure!(reply.literals().count() == 3, "{} bodies of 3", reply.literals().count());
        let now = waypost.memory("VmHWM")?;
        ensure!(now < before + GROWTH_MAX, "memory grew from {before} to {now}");
        Ok(())
    })();
    found.with_context(|| format!("after {what}: the session beside"))
}

/// A session may hold its windows and one line; what lies beyond is hoarding.
const GROWTH_MAX: u64 = 24 << 20;

/// Everything that a client can do wrong, before and after the login.
pub(crate) fn from_the_client(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::build(case)?;
    let mut waypost = ground.site.waypost(case, &ground.site_settings())?;
    let account = ground.account(Server::Dovecot.host(), 993)?;
    let mut beside = ground.beside()?;
    let at_start = waypost_memory(&waypost)?;
    unharmed("nothing", &mut waypost, &mut beside, at_start)?;
    let before = waypost_memory(&waypost)?;
    let deep = format!("a SEARCH {}ALL{}\r\n", "(".repeat(10_000), ")".repeat(10_000));
    let nots = format!("a SEARCH {}ALL\r\n", "NOT ".repeat(10_000));
    let long = vec![b'x'; 4 << 20];
    let garbage: Vec<(&str, Vec<u8>)> = vec![
        ("10,000 brackets", deep.into_bytes()),
        ("10,000 NOTs", nots.into_bytes()),
        ("a line of 4 MiB", [b"a NOOP ".as_slice(), &long, b"\r\n"].concat()),
        ("4 MiB without an end", long.clone()),
        ("NUL", b"a NO\0OP\r\nb NOOP\r\n".to_vec()),
        ("bare line feeds", b"a NOOP\nb NOOP\n".to_vec()),
        ("bare carriage returns", b"a NOOP\rb NOOP\r\r\n".to_vec()),
        ("a literal of 18 EB", b"a LOGIN {18446744073709551615}\r\n".to_vec()),
        ("a literal beyond 64 bits", b"a LOGIN {99999999999999999999999}\r\n".to_vec()),
        ("a negative literal", b"a LOGIN {-1}\r\nx\r\n".to_vec()),
        ("a LITERAL+ of 4 GB", b"a LOGIN {4294967295+}\r\nalice\r\n".to_vec()),
        ("a literal inside a string", b"a LOGIN \"{5}\r\nalice\" x\r\n".to_vec()),
        ("an open string", b"a LOGIN \"alice\r\nb NOOP\r\n".to_vec()),
        ("a tag of octets", b"\xff\xfe\x80 NOOP\r\n".to_vec()),
        ("empty lines", b"\r\n\r\n \r\n".to_vec()),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("sets without end", format!("a FETCH {}1 FLAGS\r\n", "1:*,".repeat(20_000)).into_bytes()),
        ("numbers without end", b"a UID FETCH 1:99999999999999999999 (FLAGS)\r\n".to_vec()),
        (
            "a partial of everything",
            b"a UID FETCH 1 BODY.PEEK[]<18446744073709551615.18446744073709551615>\r\n".to_vec(),
        ),
        ("ten thousand commands at once", b"a NOOP\r\n".repeat(10_000)),
    ];
    for (what, octets) in &garbage {
        for logged_in in [false, true] {
            let branch = Wire::connect(&ground.site.lab, Place::Client, &account, Tls::Implicit, STALL);
            let (mut wire, _) = branch.with_context(|| format!("before {what}"))?;
            if logged_in {
                wire.command("LOGIN alice alice-secret")?.ok()?;
                wire.command("SELECT INBOX")?.ok()?;
            }
            // It may close while we still talk.
            drop(wire.send(octets));
            // It says what it says, or nothing, or closes: a third of a second of each.
            drop(wire.until_closed(Duration::from_millis(300)));
            drop(wire);
        }
        unharmed(what, &mut waypost, &mut beside, before)?;
    }
    // Not even TLS.
    for octets in
        [b"\x16\x03\x01\xff\xff".to_vec(), vec![0; 70_000], b"a LOGIN alice alice-secret\r\n".to_vec()]
    {
        let branch = (Place::Branch.v4(), 993);
        let mut wire =
            Wire::dial(&ground.site.lab, Place::Client, branch, Server::Dovecot.host(), &account.ca, STALL)?;
        drop(wire.send(&octets));
        drop(wire.until_closed(Duration::from_millis(300)));
        unharmed("no TLS", &mut waypost, &mut beside, before)?;
    }
    case.note("growth_octets", waypost.memory("VmHWM")?.saturating_sub(before));
    Ok(())
}

fn waypost_memory(waypost: &Waypost) -> anyhow::Result<u64> {
    waypost.memory("VmHWM")
}

impl Ground {
    /// Dovecot alone.
    fn site_settings(&self) -> Settings {
        let mut settings = self.site.settings();
        settings.front = crate::waypost::Front::Operator(self.front.clone());
        settings
    }
}

type Lie = (&'static str, fn(&mut Talk) -> std::io::Result<()>);

/// Each lie of a server, told to one client that does an ordinary session's work.
const LIES: &[Lie] = &[
    ("10,000 brackets", |talk| {
        let deep =
            format!("* 1 FETCH (BODYSTRUCTURE {}{})\r\nTAG OK x\r\n", "(".repeat(10_000), ")".repeat(10_000));
        talk.serve(|command| command.contains("FETCH").then(|| deep.clone().into_bytes()))
    }),
    ("10,000 brackets that stay open", |talk| {
        let deep = format!("* 1 FETCH (BODYSTRUCTURE {}\r\nTAG OK x\r\n", "(".repeat(10_000));
        talk.serve(|command| command.contains("FETCH").then(|| deep.clone().into_bytes()))
    }),
    ("a line of 8 MiB", |talk| {
        let long = [b"* OK ".as_slice(), &vec![b'x'; 8 << 20], b"\r\nTAG OK x\r\n"].concat();
        talk.serve(|command| command.contains("FETCH").then(|| long.clone()))
    }),
    ("a greeting of 8 MiB", |talk| {
        talk.say([b"* OK ".as_slice(), &vec![b'x'; 8 << 20], b"\r\n"].concat())?;
        talk.linger()
    }),
    ("no greeting", Talk::linger),
    ("a greeting of NUL", |talk| {
        talk.say(b"* OK \0\0\0\r\n")?;
        talk.linger()
    }),
    ("a greeting that is none", |talk| {
        talk.say("220 smtp.example.com ESMTP\r\n")?;
        talk.linger()
    }),
    ("PREAUTH", |talk| {
        talk.say("* PREAUTH welcome\r\n")?;
        talk.linger()
    }),
    ("BYE at once", |talk| talk.say("* BYE overloaded\r\n")),
    ("NUL in a response", |talk| {
        talk.serve(|command| {
            command.contains("FETCH").then(|| b"* 1 FETCH (UID 1\0)\r\nTAG OK x\r\n".to_vec())
        })
    }),
    ("bare line feeds", |talk| {
        talk.serve(|command| command.contains("FETCH").then(|| b"* 1 FETCH (UID 1)\nTAG OK x\n\r\n".to_vec()))
    }),
    ("a literal longer than said", |talk| {
        talk.serve(|command| {
            command
                .contains("BODY")
                .then(|| b"* 1 FETCH (UID 1 BODY[] {4}\r\nabcdefgh)\r\nTAG OK x\r\n".to_vec())
        })
    }),
    ("a literal that never ends", |talk| {
        let start = b"* 1 FETCH (UID 1 BODY[] {1000000000000}\r\n".to_vec();
        talk.serve(|command| command.contains("BODY").then(|| start.clone()))
    }),
    ("a literal cut by the end", |talk| {
        talk.say("* OK hi\r\n")?;
        loop {
            let line = talk.line()?;
            let (tag, command) = line.split_once(' ').unwrap_or_default();
            if command.contains("BODY") {
                return talk.say("* 1 FETCH (UID 1 BODY[] {1000}\r\nhalf of it");
            }
            let reply = String::from_utf8_lossy(&honest(command)).replace("TAG", tag);
            talk.say(reply)?;
        }
    }),
    ("a literal beyond 64 bits", |talk| {
        let start = b"* 1 FETCH (UID 1 BODY[] {99999999999999999999999}\r\nx)\r\nTAG OK x\r\n".to_vec();
        talk.serve(|command| command.contains("BODY").then(|| start.clone()))
    }),
    ("{n} at the end of a NO", |talk| {
        let no = b"TAG NO no mailbox x{5}\r\n".to_vec();
        talk.serve(|command| command.contains("FETCH").then(|| no.clone()))
    }),
    ("{n} at the end of an untagged NO", |talk| {
        let no = b"* NO no mailbox x{5}\r\nTAG OK x\r\n".to_vec();
        talk.serve(|command| command.contains("FETCH").then(|| no.clone()))
    }),
    ("{n} inside an open quoted string", |talk| {
        let quoted = b"* 1 FETCH (ENVELOPE (\"x {5}\r\nabcde\" NIL))\r\nTAG OK x\r\n".to_vec();
        talk.serve(|command| command.contains("FETCH").then(|| quoted.clone()))
    }),
    ("{n+} from a server", |talk| {
        let plus = b"* 1 FETCH (UID 1 BODY[] {4+}\r\nabcd)\r\nTAG OK x\r\n".to_vec();
        talk.serve(|command| command.contains("BODY").then(|| plus.clone()))
    }),
    ("a number beyond 32 bits", |talk| {
        let big =
            b"* 99999999999 FETCH (UID 99999999999)\r\n* 0 EXPUNGE\r\n* 9 EXPUNGE\r\nTAG OK x\r\n".to_vec();
        talk.serve(|command| command.contains("FETCH").then(|| big.clone()))
    }),
    ("a million EXISTS", |talk| {
        let many = b"* 4294967295 EXISTS\r\n".repeat(20_000);
        let many = [many.as_slice(), b"TAG OK x\r\n"].concat();
        talk.serve(|command| command.contains("SELECT").then(|| many.clone()))
    }),
    ("UIDVALIDITY 0 and twice", |talk| {
        let select = b"* 3 EXISTS\r\n* OK [UIDVALIDITY 0] x\r\n* OK [UIDVALIDITY 77] x\r\n* OK [UIDVALIDITY 78] x\r\nTAG OK [READ-WRITE] x\r\n";
        talk.serve(|command| command.contains("SELECT").then(|| select.to_vec()))
    }),
    ("somebody else's tags", |talk| {
        talk.serve(|command| {
            command
                .contains("FETCH")
                .then(|| b"zz99 OK x\r\nTAGx OK x\r\n\x01 OK\r\nTAG OK x\r\nTAG OK again\r\n".to_vec())
        })
    }),
    ("an unasked continuation", |talk| {
        talk.serve(|command| command.contains("FETCH").then(|| b"+ go on\r\n+ {5}\r\nTAG OK x\r\n".to_vec()))
    }),
    ("data before the login", |talk| {
        talk.say(
            "* OK hi\r\n* 3 EXISTS\r\n* 1 FETCH (UID 1 BODY[] {4}\r\nabcd)\r\n* OK [UIDVALIDITY 77] x\r\n",
        )?;
        talk.serve(|_| None)
    }),
    ("silence after a command", |talk| {
        talk.say("* OK hi\r\n")?;
        talk.linger()
    }),
];

/// Everything that a server can do wrong.
pub(crate) fn from_the_server(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::build(case)?;
    let mut waypost = ground.site.waypost(case, &ground.settings("implicit"))?;
    // A server out of its mind is worth a warning, and each of these is.
    waypost.watch.announce(LIAR);
    let mut beside = ground.beside()?;
    let at_start = waypost_memory(&waypost)?;
    unharmed("nothing", &mut waypost, &mut beside, at_start)?;
    let before = waypost_memory(&waypost)?;
    for (what, lie) in LIES {
        let liar = ground.liar(Arc::new(lie))?;
        // What the victim makes of it is its own affair: a reply, a closed connection, silence.
        if let Ok(mut wire) = ground.with_liar() {
            drop(wire.set_patience(Duration::from_millis(400)));
            drop(wire.response());
            for command in
                ["LOGIN alice secret", "SELECT INBOX", "UID FETCH 1:* (FLAGS)", "UID FETCH 1 (BODY.PEEK[])"]
            {
                if wire.command(command).is_err() {
                    break;
                }
            }
        }
        drop(liar);
        unharmed(what, &mut waypost, &mut beside, before)?;
    }
    case.note("lies", LIES.len());
    case.note("growth_octets", waypost.memory("VmHWM")?.saturating_sub(before));
    // The same listener serves an honest server.
    let _liar = ground.liar(Arc::new(|talk: &mut Talk| talk.serve(|_| None)))?;
    let mut wire = ground.with_liar()?;
    wire.response()?;
    wire.command("LOGIN alice secret")?.ok()?;
    wire.command("SELECT INBOX")?.ok()?;
    let reply = wire.command("UID FETCH 2 (BODY.PEEK[])")?.ok()?;
    ensure!(reply.literals().any(|body| body == message(2).as_bytes()), "the honest server's mail is wrong");
    Ok(())
}

/// A server that needs STARTTLS and lies about it gets no login: PREAUTH on the plain side, words of an attacker
/// before TLS, a refusal.
pub(crate) fn starttls_lies(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::build(case)?;
    let mut waypost = ground.site.waypost(case, &ground.settings("starttls"))?;
    waypost.watch.announce(LIAR);
    let mut beside = ground.beside()?;
    let before = waypost_memory(&waypost)?;
    let lies: [Lie; 5] = [
        ("PREAUTH before STARTTLS", |talk| {
            talk.say("* PREAUTH in already\r\n")?;
            talk.linger()
        }),
        ("words behind the OK to STARTTLS", |talk| {
            talk.say("* OK [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n")?;
            let line = talk.line()?;
            let tag = line.split(' ').next().unwrap_or_default().to_owned();
            talk.say(format!(
                "{tag} OK go\r\n* OK [ALERT] send money\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n"
            ))?;
            talk.linger()
        }),
        ("a refusal of STARTTLS", |talk| {
            talk.say("* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n")?;
            loop {
                let line = talk.line()?;
                let (tag, command) = line.split_once(' ').unwrap_or_default();
                let reply = if command.starts_with("STARTTLS") {
                    "TAG NO not today\r\n".into()
                } else {
                    honest(command)
                };
                talk.say(String::from_utf8_lossy(&reply).replace("TAG", tag))?;
            }
        }),
        ("STARTTLS with no TLS behind", |talk| {
            talk.say("* OK [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n")?;
            let line = talk.line()?;
            let tag = line.split(' ').next().unwrap_or_default().to_owned();
            talk.say(format!("{tag} OK go\r\n"))?;
            loop {
                let line = talk.line()?;
                let (tag, command) = line.split_once(' ').unwrap_or_default();
                talk.say(String::from_utf8_lossy(&honest(command)).replace("TAG", tag))?;
            }
        }),
        ("an ALERT before STARTTLS", |talk| {
            talk.say("* OK [ALERT] send money\r\n")?;
            talk.linger()
        }),
    ];
    for (what, lie) in lies {
        let liar = Liar::start(&ground.site.lab, LIAR_STARTTLS_PORT, None, Arc::new(lie))?;
        if let Ok(mut wire) = ground.with_liar() {
            wire.set_patience(Duration::from_secs(2))?;
            drop(wire.response());
            drop(wire.send(b"a LOGIN alice alice-secret\r\n"));
            drop(wire.until_closed(Duration::from_secs(1)));
            let said = String::from_utf8_lossy(wire.received()).into_owned();
            ensure!(
                !said.contains("a OK") && !said.contains("PREAUTH"),
                "{what}: the client was told {said}"
            );
            ensure!(!said.contains("send money"), "{what}: words from before TLS reached the client: {said}");
        }
        let asked = liar.asked();
        ensure!(
            !asked.iter().any(|line| line.contains("alice-secret")),
            "{what}: the password went out in the clear: {asked:?}"
        );
        drop(liar);
        unharmed(what, &mut waypost, &mut beside, before)?;
    }
    Ok(())
}

/// With constant texts, what the client receives after the login is the same octet for octet, however often.
pub(crate) fn raw_octets(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::build(case)?;
    let _waypost = ground.site.waypost(case, &ground.settings("implicit"))?;
    let _liar = ground.liar(Arc::new(|talk: &mut Talk| talk.serve(|_| None)))?;
    let commands = [
        "NOOP",
        "SELECT INBOX",
        "UID FETCH 1:* (FLAGS)",
        "UID FETCH 1:* (UID RFC822.SIZE INTERNALDATE)",
        "UID FETCH 2 (BODY.PEEK[])",
        "FETCH 1:3 (BODY.PEEK[])",
        "UID FETCH 2 (BODY.PEEK[])",
        "UID FETCH 3,1 (BODY.PEEK[] FLAGS)",
        "UID STORE 1 +FLAGS (\\Flagged)",
        "XYZZY",
        "LOGOUT",
    ];
    // Each command's reply, octet for octet; free are only the order of its FETCH responses among themselves and the
    // text behind the code.
    let session = |mut wire: Wire| -> anyhow::Result<Vec<String>> {
        wire.response()?;
        wire.command("LOGIN alice secret")?.ok()?;
        let mut replies = Vec::new();
        for command in commands {
            let Reply { untagged, status } = wire.command(command)?;
            let (mut fetched, other): (Vec<_>, Vec<_>) =
                untagged.iter().map(Response::text).partition(|text| text.contains(" FETCH "));
            fetched.sort();
            let status = crate::scenarios::logins::code(&status).to_owned();
            replies.push(format!(
                "{command}: {}\r\n{}\r\n{status}",
                other.join("\r\n"),
                fetched.join("\r\n")
            ));
        }
        Ok(replies)
    };
    let mut direct = Wire::dial(
        &ground.site.lab,
        Place::Lan,
        (Place::Server.v4(), LIAR_PORT),
        LIAR,
        &ground.site.authority.certificate(),
        STALL,
    )?;
    direct.secure()?;
    let direct = session(direct)?;
    let bodies = direct.concat().matches("body of").count();
    ensure!(bodies == 7 * 20, "the server itself gave {bodies} lines of bodies");
    for run in ["cold", "warm", "warmer"] {
        let through = session(ground.with_liar()?)?;
        for (direct, through) in direct.iter().zip(&through) {
            ensure!(direct == through, "{run}: {through:?} and not {direct:?}");
        }
    }
    Ok(())
}

/// A server that dies in the middle of a message: the half is never taken for the whole, by nobody.
pub(crate) fn cut_literals(case: &Case) -> anyhow::Result<()> {
    let ground = Ground::build(case)?;
    let mut waypost = ground.site.waypost(case, &ground.settings("implicit"))?;
    waypost.watch.announce(LIAR);
    for given in [0, 1, 300, 600, 648] {
        let half = move |talk: &mut Talk| -> std::io::Result<()> {
            talk.say("* OK [CAPABILITY IMAP4rev1 LITERAL+ SASL-IR] ready\r\n")?;
            loop {
                let line = talk.line()?;
                let (tag, command) = line.split_once(' ').unwrap_or_default();
                if command.contains("BODY") {
                    let body = message(1);
                    let start = body.get(..given).unwrap_or_default();
                    return talk.say(format!("* 1 FETCH (UID 1 BODY[] {{{}}}\r\n{start}", body.len()));
                }
                talk.say(String::from_utf8_lossy(&honest(command)).replace("TAG", tag))?;
            }
        };
        let cut = ground.liar(Arc::new(half))?;
        let mut wire = ground.with_liar()?;
        wire.response()?;
        wire.command("LOGIN alice secret")?.ok()?;
        wire.command("SELECT INBOX")?.ok()?;
        ensure!(wire.command("UID FETCH 1 (BODY.PEEK[])").is_err(), "a reply although the server died");
        drop(cut);
        let _honest = ground.liar(Arc::new(|talk: &mut Talk| talk.serve(|_| None)))?;
        for run in ["cold", "warm"] {
            let mut wire = ground.with_liar()?;
            wire.response()?;
            wire.command("LOGIN alice secret")?.ok()?;
            wire.command("SELECT INBOX")?.ok()?;
            let reply = wire.command("UID FETCH 1 (BODY.PEEK[])")?.ok()?;
            let right = reply.literals().any(|body| body == message(1).as_bytes());
            ensure!(right, "{run}, after a message cut at {given}: {:?}", reply.untagged);
        }
        // The next round asks the same question: the store must forget what it now rightly holds.
        waypost.kill()?;
        std::fs::remove_dir_all(ground.settings("implicit").store)?;
        waypost = ground.site.waypost(case, &ground.settings("implicit"))?;
        waypost.watch.announce(LIAR);
    }
    waypost.still_runs()
}
