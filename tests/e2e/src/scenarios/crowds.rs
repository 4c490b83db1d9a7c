//! What holds for many at once: sessions that are kept, clients that come back after an outage.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::net::DOVECOT;
use lab::{Corpus, Place};
use tokio::task::JoinSet;

use crate::case::Case;
use crate::crowd::{self, Client, Clients, Crowd, Mailbox, Manner};
use crate::scenarios::kept::{ask, ended, kept, wait};
use crate::site::{STALL, Site, listener};
use crate::waypost::{Settings, Waypost};

const SERVER_PORT: u16 = 993;

struct Ground {
    site: Site,
    settings: Settings,
}

impl Ground {
    fn build(case: &Case, server_lines: &str, sustain_lines: &str) -> anyhow::Result<Self> {
        let mut nobody = Corpus::sized(1, 1, 1_000);
        nobody.users.clear();
        let site = Site::build(case, nobody, &[])?;
        let mut settings = site.settings();
        let mut server = site.server_section(DOVECOT, SERVER_PORT, "implicit");
        server.lines = server_lines.to_owned();
        settings.servers.push(server);
        let mut door = listener(993, DOVECOT, "implicit");
        // The file's last section but this one.
        door.lines = format!("[sustain]\nenabled = true\n{sustain_lines}");
        settings.listeners.push(door);
        Ok(Self { site, settings })
    }

    fn crowd(&self, manner: Manner) -> anyhow::Result<Crowd> {
        let identity = self.site.authority.issue(&[DOVECOT])?;
        let address = SocketAddr::new(Place::Server.v4(), SERVER_PORT);
        Crowd::start(&self.site.lab, Place::Server, address, &identity, manner)
    }

    fn clients(&self) -> anyhow::Result<Arc<Clients>> {
        Ok(Arc::new(Clients {
            to: SocketAddr::new(Place::Branch.v4(), 993),
            name: DOVECOT,
            tls: crowd::trusting(&self.site.front_ca())?,
            per_address: 0,
        }))
    }
}

fn threads(waypost: &Waypost) -> anyhow::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/task", waypost.pid()))?.count())
}

/// Fifty sessions outlive their clients: each is listed, each fetches what comes, each ends for a counted reason, and
/// none has a thread of its own.
pub(crate) fn kept_crowd(case: &Case) -> anyhow::Result<()> {
    const ALL: usize = 50;
    const ENDED: usize = 3;
    let ground = Ground::build(case, "", "")?;
    let manner =
        Manner { mailbox: Mailbox { messages: 300 }, greeting: Duration::ZERO, greeted_at_once: ALL };
    let crowd = ground.crowd(manner)?;
    let waypost = ground.site.waypost(case, &ground.settings)?;
    waypost.watch.announce(DOVECOT);
    let clients = ground.clients()?;
    Clients::run(&ground.site.lab, Place::Client, move || async move {
        let mut visits = JoinSet::new();
        for nth in 0..ALL {
            let clients = Arc::clone(&clients);
            visits.spawn(async move {
                let mut client = clients.connect(nth).await?;
                let login = format!("LOGIN user{nth} secret");
                for command in [&login, "SELECT INBOX", "UID FETCH 1:* (FLAGS)", "LOGOUT"] {
                    client.command(command).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(visit) = visits.join_next().await {
            visit.context("a client's task")??;
        }
        anyhow::Ok(())
    })??;
    let settings = &ground.settings;
    wait(case, settings, "not all were kept", |said| kept(said) == ALL)?;
    stall("not all watch", || Ok(crowd.counts().idling.now == ALL))?;

    let before = threads(&waypost)?;
    let mut most = before;
    crowd.deliver();
    stall("not all fetched what came", || {
        most = most.max(threads(&waypost)?);
        let counts = crowd.counts();
        Ok(counts.bodies == ALL as u64 && counts.idling.now == ALL)
    })?;
    case.note("threads_before", before);
    case.note("threads_at_most", most);
    ensure!(most <= before + ALL / 4, "{before} threads became {most} for {ALL} sessions");

    for nth in 0..ENDED {
        ask(case, settings, &["end", &format!("user{nth}")])?;
    }
    wait(case, settings, "the operator's end", |said| ended(said, "operator") == ENDED as u64)?;
    drop(crowd);
    wait(case, settings, "a dead server", |said| {
        kept(said) == 0 && ended(said, "origin-lost") == (ALL - ENDED) as u64
    })?;
    Ok(())
}

/// After an outage two hundred come at once: never more than `dials_max` of them stand at the server's door, and all
/// of them come in at their first try.
pub(crate) fn storm(case: &Case) -> anyhow::Result<()> {
    const ALL: usize = 200;
    const DOOR: usize = 8;
    let lines = format!("parked = 0\nlimits = {{ dials_max = {DOOR} }}");
    let ground = Ground::build(case, &lines, "")?;
    let waypost = ground.site.waypost(case, &ground.settings)?;
    waypost.watch.announce("the server cannot be reached");
    let mut clients = ground.clients()?;
    // A listener has its bound for one address.
    Arc::make_mut(&mut clients).per_address = 50;
    let come = |all: Arc<Clients>, refused: bool| {
        Clients::run(&ground.site.lab, Place::Branch, move || async move {
            let mut visits = JoinSet::new();
            for nth in 0..ALL {
                let clients = Arc::clone(&all);
                visits.spawn(async move {
                    if refused {
                        let told = clients.connect(nth).await.err().map(|error| error.kind());
                        ensure!(told == Some(ErrorKind::ConnectionRefused), "without a server: {told:?}");
                        return Ok(0);
                    }
                    let (mut client, turned_away) = Client::insist(&clients, nth).await?;
                    client.command("LOGOUT").await?;
                    Ok(turned_away)
                });
            }
            let mut turned_away = 0;
            while let Some(visit) = visits.join_next().await {
                turned_away += visit.context("a client's task")??;
            }
            anyhow::Ok(turned_away)
        })?
    };
    come(Arc::clone(&clients), true)?;
    let manner =
        Manner { mailbox: Mailbox { messages: 1 }, greeting: Duration::from_millis(5), greeted_at_once: ALL };
    let crowd = ground.crowd(manner)?;
    let begun = Instant::now();
    let turned_away = come(clients, false)?;
    case.note("all_logged_in_after_s", begun.elapsed().as_secs_f64());
    let counts = crowd.counts();
    case.note("at_the_door_at_most", counts.opening.peak);
    case.note("starts_in_the_busiest_second", counts.busiest_second());
    ensure!(counts.opening.peak <= DOOR, "{} stood at the door at once", counts.opening.peak);
    ensure!(turned_away == 0, "{turned_away} were turned away although there was time for all");
    ensure!(counts.logins == ALL as u64 && counts.starts.len() == ALL, "{} connections", counts.starts.len());
    Ok(())
}

/// Waits until it is so.
fn stall(what: &str, mut so: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !so()? {
        ensure!(begun.elapsed() < STALL, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
