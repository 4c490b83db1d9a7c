//! What most scenarios stand on: a lab with mail servers, a certificate authority, and the executable in the branch.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use lab::clients::{Account, Wire};
use lab::corpus::User;
use lab::net::{CYRUS, DOVECOT};
use lab::pki::Identity;
use lab::{Authority, Corpus, Cyrus, Dovecot, Lab, Place};

use crate::case::Case;
use crate::registry::Skipped;
use crate::waypost::{Front, ListenerSettings, ServerSettings, Settings, Waypost};

/// A lab with servers. Fields go in this order when it is dropped.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) dovecot: Option<Dovecot>,
    pub(crate) cyrus: Option<Cyrus>,
    pub(crate) authority: Authority,
    pub(crate) corpus: Corpus,
    front: Identity,
    /// What is still there when the lab is gone.
    pub(crate) kept: PathBuf,
    pub(crate) lab: Lab,
}

/// A mail server of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Dovecot,
    Cyrus,
}

impl Server {
    pub(crate) const fn host(self) -> &'static str {
        match self {
            Self::Dovecot => DOVECOT,
            Self::Cyrus => CYRUS,
        }
    }

    /// Ports of the branch's listeners for this server: TLS at once, STARTTLS.
    pub(crate) const fn ports(self) -> (u16, u16) {
        match self {
            Self::Dovecot => (993, 143),
            Self::Cyrus => (1993, 1143),
        }
    }
}

/// Which way a client goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Waypost,
}

impl Site {
    pub(crate) fn build(case: &Case, corpus: Corpus, servers: &[Server]) -> anyhow::Result<Self> {
        Self::build_with(case, corpus, servers, NO_PENALTY)
    }

    /// With these lines in Dovecot's configuration.
    pub(crate) fn build_with(
        case: &Case,
        corpus: Corpus,
        servers: &[Server],
        dovecot_lines: &str,
    ) -> anyhow::Result<Self> {
        Self::on(case, case.lab()?, corpus, servers, dovecot_lines)
    }

    /// The same in a lab that stands.
    pub(crate) fn on(
        case: &Case,
        lab: Lab,
        corpus: Corpus,
        servers: &[Server],
        dovecot_lines: &str,
    ) -> anyhow::Result<Self> {
        let authority = Authority::create(&lab.directory().join("ca"))?;
        let front = Authority::create(&lab.directory().join("front"))?.issue(&[DOVECOT, CYRUS])?;
        let mut site = Self {
            dovecot: None,
            cyrus: None,
            authority,
            corpus,
            front,
            kept: case.directory().to_owned(),
            lab,
        };
        for server in servers {
            match server {
                Server::Dovecot => {
                    let started =
                        Dovecot::start_with(&site.lab, &site.authority, &site.corpus, dovecot_lines)?;
                    site.dovecot = Some(started);
                }
                Server::Cyrus => {
                    let started = Cyrus::start(&site.lab, &site.authority, &site.corpus);
                    if let Err(error) = &started
                        && error.to_string().starts_with("Cyrus is not in")
                    {
                        return Err(Skipped(error.to_string()).into());
                    }
                    site.cyrus = Some(started?);
                }
            }
        }
        Ok(site)
    }

    /// The usual configuration: the servers that run, at the branch's first address.
    pub(crate) fn settings(&self) -> Settings {
        let directory = self.lab.directory().join("waypost");
        let mut settings = Settings {
            store: directory.join("store"),
            directory,
            store_lines: "size_max = \"1 GiB\"".to_owned(),
            sealed: true,
            front: Front::Operator(self.front.clone()),
            servers: Vec::new(),
            listeners: Vec::new(),
            level: "debug",
        };
        let running = [(self.dovecot.is_some(), Server::Dovecot), (self.cyrus.is_some(), Server::Cyrus)];
        for (_, server) in running.into_iter().filter(|(runs, _)| *runs) {
            settings.servers.push(self.server_section(server.host(), 993, "implicit"));
            let (implicit, starttls) = server.ports();
            for (port, tls) in [(implicit, "implicit"), (starttls, "starttls")] {
                settings.listeners.push(listener(port, server.host(), tls));
            }
        }
        settings
    }

    pub(crate) fn server_section(&self, name: &str, port: u16, tls: &'static str) -> ServerSettings {
        let ca = Some(self.authority.certificate());
        ServerSettings { name: name.to_owned(), port, tls, ca, lines: String::new() }
    }

    /// Starts the executable in the branch.
    pub(crate) fn waypost(&self, case: &Case, settings: &Settings) -> anyhow::Result<Waypost> {
        Waypost::start(case, &self.lab, Place::Branch, settings)
    }

    /// Turns the client's names: `mail.lab.test` is the server, or the branch.
    pub(crate) fn send_clients(&self, way: Way) -> anyhow::Result<()> {
        let branch = Place::Branch.v4();
        let overrides = [(DOVECOT, branch), (CYRUS, branch)];
        self.lab.set_hosts(Place::Client, if way == Way::Waypost { &overrides } else { &[] })
    }

    /// A user's account on a server, reached this way from the client's place.
    pub(crate) fn account(&self, server: Server, way: Way, user: &str) -> anyhow::Result<Account> {
        let user = self.user(user)?;
        let (port, ca) = match way {
            Way::Direct => (993, self.authority.certificate()),
            Way::Waypost => (server.ports().0, self.front_ca()),
        };
        Ok(Account {
            host: server.host().to_owned(),
            port,
            ca,
            user: user.name.clone(),
            password: user.password.clone(),
        })
    }

    /// What clients in the branch are shown.
    pub(crate) const fn front(&self) -> &Identity {
        &self.front
    }

    pub(crate) fn front_ca(&self) -> PathBuf {
        self.lab.directory().join("front/ca.pem")
    }

    pub(crate) fn user(&self, name: &str) -> anyhow::Result<&User> {
        self.corpus.user(name).with_context(|| format!("the corpus has no {name}"))
    }

    /// A session of a user through the executable, logged in.
    pub(crate) fn through(&self, server: Server, user: &str) -> anyhow::Result<Wire> {
        self.send_clients(Way::Waypost)?;
        Wire::log_in(&self.lab, Place::Client, &self.account(server, Way::Waypost, user)?, STALL)
    }

    /// A session of a user beside the server.
    pub(crate) fn beside(&self, server: Server, user: &str) -> anyhow::Result<Wire> {
        Wire::log_in(&self.lab, Place::Lan, &self.account(server, Way::Direct, user)?, STALL)
    }

    pub(crate) fn dovecot(&mut self) -> anyhow::Result<&mut Dovecot> {
        self.dovecot.as_mut().context("no Dovecot here")
    }
}

/// Dovecot answers failed logins late, and those from one address ever later, which here is always the branch's.
pub(crate) const NO_PENALTY: &str = "\
auth_failure_delay = 0
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
";

pub(crate) fn listener(port: u16, server: &str, tls: &'static str) -> ListenerSettings {
    let address = SocketAddr::new(Place::Branch.v4(), port);
    ListenerSettings { address, server: server.to_owned(), tls, lines: String::new() }
}

/// A silence of this length is a failure, where none is expected.
pub(crate) const STALL: Duration = Duration::from_secs(15);
