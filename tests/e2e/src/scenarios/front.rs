//! TLS and permission towards clients and servers, and what signals do.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lab::clients::{Account, Response, Tls, Wire};
use lab::net::DOVECOT;
use lab::{Authority, Corpus, Place};

use crate::case::Case;
use crate::site::{STALL, Server, Site, Way, listener};
use crate::waypost::{Front, Waypost, tail};

fn site(case: &Case) -> anyhow::Result<Site> {
    let mut corpus = Corpus::sized(31, 10, 100_000);
    corpus.users.retain(|user| user.name == "alice");
    Site::build(case, corpus, &[Server::Dovecot])
}

fn starttls_account(site: &Site) -> anyhow::Result<Account> {
    let account = site.account(Server::Dovecot, Way::Waypost, "alice")?;
    Ok(Account { port: Server::Dovecot.ports().1, ..account })
}

/// A session's proof that it works: five bodies with the user's canary.
fn reads_mail(site: &Site, wire: &mut Wire) -> anyhow::Result<()> {
    wire.command("SELECT INBOX")?.ok()?;
    let reply = wire.command("UID FETCH 1:5 (BODY.PEEK[])")?.ok()?;
    let canary = site.corpus.canary("alice");
    let bodies = reply.literals().filter(|body| canary.is_in(body)).count();
    ensure!(bodies == 5, "{bodies} bodies of 5");
    Ok(())
}

fn capabilities(wire: &mut Wire) -> anyhow::Result<String> {
    let reply = wire.command("CAPABILITY")?.ok()?;
    let text = reply.untagged.iter().map(Response::text).find(|text| text.starts_with("* CAPABILITY"));
    Ok(text.context("no CAPABILITY response")? + " ")
}

/// Both front doors and both ways to the server; a login before STARTTLS gets nowhere, and neither does what stands
/// behind STARTTLS in the clear.
pub(crate) fn starttls_and_implicit(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    for (port, tls) in [(993, "implicit"), (143, "starttls")] {
        let mut settings = site.settings();
        settings.servers = vec![site.server_section(DOVECOT, port, tls)];
        let _waypost = site.waypost(case, &settings)?;
        reads_mail(&site, &mut site.through(Server::Dovecot, "alice")?)
            .with_context(|| format!("TLS at the front, {tls} to the server"))?;
        let account = starttls_account(&site)?;
        let (mut wire, greeting) = Wire::connect(&site.lab, Place::Client, &account, Tls::Plain, STALL)?;
        ensure!(!greeting.text().contains("PREAUTH"), "{}", greeting.text());
        let before = capabilities(&mut wire)?;
        ensure!(before.contains(" STARTTLS ") && before.contains(" LOGINDISABLED "), "before TLS: {before}");
        ensure!(!before.contains(" AUTH="), "a login is offered before TLS: {before}");
        let refused = wire.command("LOGIN alice alice-secret")?.status;
        ensure!(!refused.starts_with("OK"), "a login before STARTTLS: {refused}");
        wire.start_tls()?;
        let after = capabilities(&mut wire)?;
        ensure!(!after.contains(" STARTTLS ") && !after.contains(" LOGINDISABLED "), "inside TLS: {after}");
        wire.command("LOGIN alice alice-secret")?.ok()?;
        reads_mail(&site, &mut wire)
            .with_context(|| format!("STARTTLS at the front, {tls} to the server"))?;
    }
    Ok(())
}

/// What an attacker puts behind STARTTLS in the same packet is not taken for something said inside TLS.
pub(crate) fn starttls_surplus(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut waypost = site.waypost(case, &site.settings())?;
    site.send_clients(Way::Waypost)?;
    let account = starttls_account(&site)?;
    let (mut wire, _) = Wire::connect(&site.lab, Place::Client, &account, Tls::Plain, STALL)?;
    wire.send(b"a STARTTLS\r\nb LOGIN alice alice-secret\r\nc SELECT INBOX\r\n")?;
    // The victim goes on with TLS, if it is let; inside it nothing may be answered that it has not said there.
    if wire.line().is_ok_and(|line| line.starts_with(b"a OK")) && wire.secure().is_ok() {
        drop(wire.send(b"d NOOP\r\n"));
        drop(wire.until_closed(Duration::from_secs(2)));
    }
    let said = String::from_utf8_lossy(wire.received()).into_owned();
    ensure!(!said.contains("b ") && !said.contains("c OK"), "the surplus was taken for the victim's: {said}");
    // Every such session is somebody else's fault; the node goes on.
    reads_mail(&site, &mut site.through(Server::Dovecot, "alice")?)?;
    waypost.still_runs()
}

/// Plain text needs the operator's word: loopback, or a named private network, and then only from there.
pub(crate) fn plain_needs_permission(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut settings = site.settings();
    settings.listeners = vec![listener(1430, DOVECOT, "plain")];
    let mut refused = Waypost::launch(case, &site.lab, Place::Branch, &settings)?;
    for words in ["plain text", "lan"] {
        refused.watch.announce(words);
    }
    let status = refused.wait(STALL)?;
    ensure!(status.code() == Some(64), "a plain listener without permission: {status}");
    let said = refused.watch.text();
    ensure!(said.contains("plain text") && said.contains("lan = "), "it does not say what to do: {said}");

    for listener in &mut settings.listeners {
        listener.lines = "lan = \"10.81.1.0/24\"".to_owned();
    }
    let waypost = site.waypost(case, &settings)?;
    site.send_clients(Way::Waypost)?;
    let account = Account { port: 1430, ..site.account(Server::Dovecot, Way::Waypost, "alice")? };
    let (mut wire, _) = Wire::connect(&site.lab, Place::Client, &account, Tls::Plain, STALL)?;
    wire.command("LOGIN alice alice-secret")?.ok()?;
    reads_mail(&site, &mut wire)?;
    // The same address from outside that network.
    let outside = Wire::dial(
        &site.lab,
        Place::Lan,
        (Place::Branch.v4(), 1430),
        DOVECOT,
        &site.front_ca(),
        Duration::from_secs(5),
    );
    if let Ok(mut outside) = outside {
        let said = outside.until_closed(Duration::from_secs(5))?;
        let said = String::from_utf8_lossy(&said);
        ensure!(!said.contains("* OK"), "a client outside the named network is greeted: {said}");
    }
    drop(waypost);
    Ok(())
}

/// Clients see what the operator configured; who does not trust it gets nowhere, and neither does a name that is
/// not listed. A server that cannot prove its name gets no login.
pub(crate) fn certificates(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let waypost = site.waypost(case, &site.settings())?;
    reads_mail(&site, &mut site.through(Server::Dovecot, "alice")?)?;
    let account = site.account(Server::Dovecot, Way::Waypost, "alice")?;
    let stranger = Authority::create(&site.lab.directory().join("stranger"))?;
    let distrustful = Account { ca: stranger.certificate(), ..account.clone() };
    let connected = Wire::connect(&site.lab, Place::Client, &distrustful, Tls::Implicit, STALL);
    ensure!(connected.is_err(), "a client was shown a certificate of a CA that it alone trusts");
    let branch = (Place::Branch.v4(), account.port);
    let mut wire = Wire::dial(&site.lab, Place::Client, branch, "evil.lab.test", &site.front_ca(), STALL)?;
    ensure!(wire.secure().is_err(), "a certificate for a name that is not listed");
    drop(waypost);

    let mut settings = site.settings();
    for server in &mut settings.servers {
        server.ca = Some(stranger.certificate());
    }
    let waypost = site.waypost(case, &settings)?;
    waypost.watch.announce("certificate");
    let connected = Wire::connect(&site.lab, Place::Client, &account, Tls::Implicit, STALL);
    if let Ok((mut wire, greeting)) = connected {
        ensure!(greeting.text().starts_with("* BYE"), "greeted by a server of no proof: {}", greeting.text());
        drop(wire.send(b"a LOGIN alice alice-secret\r\n"));
        let said = wire.until_closed(Duration::from_secs(10))?;
        ensure!(!String::from_utf8_lossy(&said).contains("a OK"), "a login went to a server of no proof");
    }
    ensure!(
        waypost.watch.text().to_ascii_lowercase().contains("certificate"),
        "the log does not say why:\n{}",
        tail(&waypost.watch.text())
    );
    Ok(())
}

/// `waypost ca init --interception` makes a CA; who installs its root trusts the minted certificate, by its name
/// only.
pub(crate) fn minted(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut settings = site.settings();
    let directory = settings.directory.join("ca");
    fs::create_dir_all(&settings.directory)?;
    let made = std::process::Command::new(&case.executable)
        .args(["ca", "init", "--interception", "--permit", DOVECOT, "--dir"])
        .arg(&directory)
        .output()?;
    ensure!(made.status.success(), "ca init: {} {}", made.status, String::from_utf8_lossy(&made.stderr));
    settings.front = Front::Minted(directory.clone());
    let _waypost = site.waypost(case, &settings)?;
    site.send_clients(Way::Waypost)?;
    let root = directory.join("root.pem");
    let account = Account { ca: root.clone(), ..site.account(Server::Dovecot, Way::Waypost, "alice")? };
    reads_mail(&site, &mut Wire::log_in(&site.lab, Place::Client, &account, STALL)?)?;
    // A real client's library judges too.
    lab::clients::curl(&site.lab, Place::Client, &account, "INBOX", 1)?;
    let distrustful = Account { ca: site.front_ca(), ..account.clone() };
    ensure!(
        Wire::connect(&site.lab, Place::Client, &distrustful, Tls::Implicit, STALL).is_err(),
        "trusted without the root"
    );
    let branch = (Place::Branch.v4(), account.port);
    let mut wire = Wire::dial(&site.lab, Place::Client, branch, "evil.lab.test", &root, STALL)?;
    ensure!(wire.secure().is_err(), "minted for a name that is not listed");
    Ok(())
}

/// SIGHUP: sessions go on, new ones see the new certificate; a file with an error changes nothing.
pub(crate) fn reload(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut settings = site.settings();
    let mut waypost = site.waypost(case, &settings)?;
    let mut old = site.through(Server::Dovecot, "alice")?;
    reads_mail(&site, &mut old)?;

    let second = Authority::create(&site.lab.directory().join("second"))?;
    settings.front = Front::Operator(second.issue(&[DOVECOT])?);
    settings.write()?;
    waypost.signal(libc::SIGHUP)?;
    let account = site.account(Server::Dovecot, Way::Waypost, "alice")?;
    let renewed = Account { ca: second.certificate(), ..account.clone() };
    let mut fresh = eventually("a session with the new certificate", || {
        Wire::log_in(&site.lab, Place::Client, &renewed, STALL)
    })?;
    reads_mail(&site, &mut fresh)?;
    reads_mail(&site, &mut old).context("the session from before the reload")?;

    let file = settings.write()?;
    let good = fs::read_to_string(&file)?;
    fs::write(&file, good.replace("[store]", "[stroe]"))?;
    waypost.watch.announce("stroe");
    waypost.watch.announce("reload");
    let before = waypost.watch.text().len();
    waypost.signal(libc::SIGHUP)?;
    eventually("a line of the log about the bad file", || {
        let text = waypost.watch.text();
        let new = text.get(before..).unwrap_or_default();
        ensure!(new.contains("stroe"), "nothing about it in the log");
        Ok(())
    })?;
    waypost.still_runs()?;
    reads_mail(&site, &mut old).context("the oldest session, after a bad file")?;
    reads_mail(&site, &mut Wire::log_in(&site.lab, Place::Client, &renewed, STALL)?)?;
    Ok(())
}

/// SIGTERM: no new sessions; one at rest gets BYE, one in the middle of a message gets the rest of it; then exit 0.
pub(crate) fn drains(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let large = large_message(&site, 6 << 20)?;
    let mut waypost = site.waypost(case, &site.settings())?;
    let mut resting = site.through(Server::Dovecot, "alice")?;
    reads_mail(&site, &mut resting)?;
    let mut busy = site.through(Server::Dovecot, "alice")?;
    busy.command("SELECT INBOX")?.ok()?;
    let tag = busy.begin(&format!("UID FETCH {large} (BODY.PEEK[])"))?;
    // The literal has begun.
    let first = busy.line()?;
    ensure!(String::from_utf8_lossy(&first).contains("FETCH"), "{}", String::from_utf8_lossy(&first));
    waypost.signal(libc::SIGTERM)?;
    let bye = resting.until_closed(Duration::from_secs(20))?;
    ensure!(bye.starts_with(b"* BYE"), "at rest: {:?}", String::from_utf8_lossy(&bye));
    let rest = busy.until_closed(Duration::from_secs(40))?;
    let text =
        String::from_utf8_lossy(rest.get(rest.len().saturating_sub(400)..).unwrap_or_default()).into_owned();
    ensure!(rest.len() > 6 << 20, "the message was cut after {} octets", rest.len());
    ensure!(text.contains(&format!("{tag} OK")), "the command's end is missing: {text}");
    let status = waypost.wait(Duration::from_secs(20))?;
    ensure!(status.code() == Some(0), "ended with {status}");
    let account = site.account(Server::Dovecot, Way::Waypost, "alice")?;
    let late = Wire::connect(&site.lab, Place::Client, &account, Tls::Implicit, Duration::from_secs(3));
    ensure!(late.is_err(), "somebody still accepts");
    Ok(())
}

/// A second SIGTERM hurries: who is in the middle of a message that never ends is cut, and the process ends.
pub(crate) fn hurries(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let large = large_message(&site, 20 << 20)?;
    let mut waypost = site.waypost(case, &site.settings())?;
    let mut stuck = site.through(Server::Dovecot, "alice")?;
    stuck.command("SELECT INBOX")?.ok()?;
    stuck.begin(&format!("UID FETCH {large} (BODY.PEEK[])"))?;
    // It reads no further.
    stuck.line()?;
    waypost.signal(libc::SIGTERM)?;
    std::thread::sleep(Duration::from_secs(1));
    waypost.still_runs().context("the first SIGTERM alone must let the message go on")?;
    waypost.signal(libc::SIGTERM)?;
    let status = waypost.wait(Duration::from_secs(8))?;
    ensure!(status.code() == Some(0), "ended with {status}");
    Ok(())
}

/// Puts a message of this size into alice's INBOX; returns its UID.
pub(crate) fn large_message(site: &Site, octets: usize) -> anyhow::Result<u32> {
    let alice = site.user("alice")?;
    let canary = site.corpus.canary("alice").text;
    let mut text =
        format!("From: a@example.com\r\nSubject: large\r\nX-Canary: {canary}\r\n\r\n").into_bytes();
    let mut line = 0_u64;
    while text.len() < octets {
        text.extend_from_slice(format!("{line:016} {canary} the quick brown fox\r\n").as_bytes());
        line += 1;
    }
    let message = lab::corpus::Message { octets: text, seen: false, arrived: 1_700_500_000 };
    let dovecot = site.dovecot.as_ref().context("no Dovecot here")?;
    dovecot.deliver(alice, "INBOX", &message, &format!("1700500000.M{octets}P9.lab"))?;
    let mut wire = site.beside(Server::Dovecot, "alice")?;
    let reply = wire.command("STATUS INBOX (UIDNEXT)")?.ok()?;
    let text: String = reply.untagged.iter().map(Response::text).collect();
    let next: u32 = text
        .split("UIDNEXT ")
        .nth(1)
        .and_then(|rest| rest.split([')', ' ']).next()?.parse().ok())
        .context("no UIDNEXT")?;
    Ok(next - 1)
}

/// Asks until it holds; a stall of ten seconds ends it.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match ask() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > Duration::from_secs(10) => {
                bail!("{what}: not after ten seconds: {error:#}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The same over IPv6, from end to end.
pub(crate) fn ipv6(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let mut settings = site.settings();
    let address = std::net::SocketAddr::new(Place::Branch.v6(), 993);
    settings.listeners =
        vec![crate::waypost::ListenerSettings { address, ..listener(993, DOVECOT, "implicit") }];
    for server in &mut settings.servers {
        server.lines = format!("addresses = [\"{}\"]", Place::Server.v6());
    }
    let _waypost = site.waypost(case, &settings)?;
    site.lab.set_hosts(Place::Client, &[(DOVECOT, Place::Branch.v6())])?;
    let account = site.account(Server::Dovecot, Way::Waypost, "alice")?;
    let mut wire = Wire::log_in(&site.lab, Place::Client, &account, STALL)?;
    reads_mail(&site, &mut wire)?;
    lab::clients::curl(&site.lab, Place::Client, &account, "INBOX", 1)?;
    Ok(())
}

/// Two servers behind one node: the same user name, the same UIDs, and each gets its own server's mail.
pub(crate) fn two_servers(case: &Case) -> anyhow::Result<()> {
    let mut corpus = Corpus::sized(32, 12, 60_000);
    corpus.users.retain(|user| user.name == "alice");
    let site = Site::build(case, corpus, &[Server::Dovecot, Server::Cyrus])?;
    // The same UIDs with other mail behind them.
    let mut cyrus = site.beside(Server::Cyrus, "alice")?;
    cyrus.command("SELECT Archive")?.ok()?;
    cyrus.command("UID STORE 1:* +FLAGS.SILENT (\\Deleted)")?.ok()?;
    cyrus.command("DELETE Archive")?.ok()?;
    cyrus.command("CREATE Archive")?.ok()?;
    for number in 0..5 {
        crate::mail::append(&mut cyrus, "Archive", &crate::mail::noise(&format!("cyrus {number}"), 9_000))?;
    }
    let _waypost = site.waypost(case, &site.settings())?;
    for run in ["cold", "warm", "warmer"] {
        for server in [Server::Dovecot, Server::Cyrus] {
            let truth = crate::mail::bodies(&mut site.beside(server, "alice")?, "Archive")?;
            let got = crate::mail::bodies(&mut site.through(server, "alice")?, "Archive")?;
            crate::mail::same_bodies(&format!("{server:?}, {run}"), &truth, &got)?;
        }
    }
    Ok(())
}

/// What Waypost cannot do for a client is not offered to it, wherever capabilities stand, and refused when asked for.
pub(crate) fn capabilities_filtered(case: &Case) -> anyhow::Result<()> {
    let site = site(case)?;
    let _waypost = site.waypost(case, &site.settings())?;
    site.send_clients(Way::Waypost)?;
    let account = site.account(Server::Dovecot, Way::Waypost, "alice")?;
    let (mut wire, greeting) = Wire::connect(&site.lab, Place::Client, &account, Tls::Implicit, STALL)?;
    let before = capabilities(&mut wire)?;
    let login = wire.command("LOGIN alice alice-secret")?.ok()?;
    let after = capabilities(&mut wire)?;
    let mut everywhere = vec![greeting.text(), before, login.status, after.clone()];
    everywhere.extend(login.untagged.iter().map(Response::text));
    let own = capabilities(&mut site.beside(Server::Dovecot, "alice")?)?;
    ensure!(
        own.contains(" COMPRESS=DEFLATE ") && own.contains(" NOTIFY "),
        "the server offers too little: {own}"
    );
    for text in &everywhere {
        for word in text.split([' ', '[', ']', '\r']) {
            let hidden =
                word.starts_with("COMPRESS=") || word.ends_with("-PLUS") || word.starts_with("CONTEXT=");
            let hidden = hidden || ["NOTIFY", "STARTTLS", "LOGINDISABLED", "UIDONLY"].contains(&word);
            ensure!(!hidden, "{word} is offered: {text}");
        }
    }
    // Nothing else is lost.
    let on_purpose =
        |word: &str| word.starts_with("COMPRESS=") || word.starts_with("CONTEXT=") || word == "NOTIFY";
    let dropped = |word: &&str| !on_purpose(word) && after.split(' ').all(|other| other != *word);
    let lost: Vec<&str> = own.split_whitespace().filter(dropped).collect();
    ensure!(lost.is_empty(), "the server offers {lost:?}, and the client is not told");
    let refused = wire.command("COMPRESS DEFLATE")?.status;
    ensure!(!refused.starts_with("OK"), "COMPRESS: {refused}");
    reads_mail(&site, &mut wire)
}
