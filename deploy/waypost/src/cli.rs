//! The command line.

use crate::{exit::Exit, say, supervisor::user::User};
use clap::{Args, Parser, Subcommand, error::ErrorKind};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

/// Mail in a branch office as if the server stood in the next room.
///
/// Waypost stands between the mail programs of an office (IMAP) and a mail server that is far away. The server decides
/// every login and every question; Waypost keeps what it has seen pass, and gives it again, without the long way, to
/// those to whom the server has just shown that it exists. It stores no password.
#[derive(Debug, Parser)]
#[command(name = "waypost", version, max_term_width = 100, after_help = EXITS)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXITS: &str = "\
First steps:
  waypost branch --mail imaps://mail.example.org     try it; prints what mail programs must trust
  waypost check -c FILE --online                     judge a configuration before it runs

Exit codes: 0 done, 64 wrong command line or configuration, 69 something is not there (a server, an
address, a running node), 70 a bug of Waypost, 77 no permission";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve one mail server to this office, without a configuration file
    ///
    /// Makes what it needs at the first start, in the state directory: a certificate authority that can sign for this one
    /// server's name only, and the key of the user hashes. Listens on ports 993 (TLS) and 143 (STARTTLS), or on 1993 and
    /// 1143 when it has no right to those. Ends at Ctrl-C.
    Branch(Branch),
    /// Run the node that a configuration file describes
    ///
    /// SIGTERM drains: sessions at rest end at once, the others within 30 seconds; a second one hurries. SIGHUP reads
    /// the file and the certificates again; when something is wrong with them the node stays as it is and says why.
    /// With `[interception]` it is two processes, of which this one leads traffic to the other, and past it when it must.
    Run {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// What has the rights of a node on the path: `run` is its supervisor, and alone starts it
    #[command(hide = true)]
    Netd {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// The node itself, of a configuration with `[interception]`, without rights: `netd` alone starts it
    #[command(hide = true)]
    Node {
        #[command(flatten)]
        config: ConfigFile,
        /// Whom it becomes, before anything else
        #[arg(long, value_name = "UID:GID")]
        user: Option<User>,
    },
    /// Judge a configuration: every mistake at once, with what would be right
    ///
    /// Also says which mail programs must trust which certificate, and whether stored mail is encrypted on the disk.
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Connect to each server too: name, TCP, TLS, greeting. Nobody logs in
        #[arg(long)]
        online: bool,
    },
    /// Show the configuration in force
    #[command(subcommand)]
    Config(ConfigCommand),
    /// What the running node does: listeners, sessions, what came from the store
    Status {
        #[command(flatten)]
        node: RunningNode,
        /// List the sessions too
        #[arg(long)]
        sessions: bool,
    },
    /// Sessions that outlive their client: who has one, and ending one
    Sessions {
        #[command(subcommand)]
        command: Option<SessionsCommand>,
        #[command(flatten)]
        node: RunningNode,
    },
    /// What came of what the node does unasked
    #[command(subcommand)]
    Report(ReportCommand),
    /// What was decided for a user, and why: served from the store, or by the server because …
    Trace {
        /// The user's key (u1-…, as in the log and in `status`), or the name that he logs in with
        user: String,
        #[command(flatten)]
        node: RunningNode,
    },
    /// The stored mail: figures, check, tidying
    #[command(subcommand)]
    Store(StoreCommand),
    /// Certificate authorities
    #[command(subcommand)]
    Ca(CaCommand),
    /// Identities for nodes to be
    #[command(subcommand)]
    Token(TokenCommand),
    /// Let new connections past this node, or take them again
    ///
    /// At once, also while the node hangs or is being started anew; connections that are carried go on.
    Bypass {
        /// on: nothing new is taken
        to: OnOff,
        #[command(flatten)]
        node: RunningNode,
    },
    /// Have the running node on the path replaced by one of the executable that is installed now
    ///
    /// Connections that are carried go on in the old one for up to an hour; new ones flow past until the new one works.
    /// When the new executable finds the configuration wrong, nothing is changed.
    Upgrade {
        #[command(flatten)]
        node: RunningNode,
    },
    /// What the running node would do with a connection, and why
    ///
    /// With --pcap: what a node with this configuration would have done with each connection in a file of captured
    /// packets (pcap or pcapng). Nothing runs for it, and links to peers that the configuration names are taken to stand.
    Explain {
        /// The client's address, or address and port
        #[arg(required_unless_present = "pcap")]
        client: Option<String>,
        /// The server's address and port
        #[arg(required_unless_present = "pcap")]
        server: Option<SocketAddr>,
        /// A file of captured packets
        #[arg(long, value_name = "FILE", conflicts_with_all = ["client", "server", "socket"], requires = "config")]
        pcap: Option<PathBuf>,
        #[command(flatten)]
        node: RunningNode,
    },
    /// Become the node that a token names
    ///
    /// Puts its certificate and key, and the key of the user hashes, into the state directory. Never replaces a user key
    /// that is in use.
    Join {
        /// The file that holds the token; - is standard input
        token: PathBuf,
        /// The state directory of the node [default: $STATE_DIRECTORY, else ~/.local/state/waypost]
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// In the place of the identity that this node has
        #[arg(long)]
        replace: bool,
    },
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnOff {
    /// On.
    On,
    /// Off.
    Off,
}

/// A configuration file.
#[derive(Args, Debug)]
pub(crate) struct ConfigFile {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

/// Which running node is meant, and how its answer looks.
#[derive(Args, Debug)]
pub(crate) struct RunningNode {
    /// Of the node with this configuration; else the one of this machine or user
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Of the node with this admin socket
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pub(crate) socket: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `waypost branch`
#[derive(Args, Debug)]
pub(crate) struct Branch {
    /// The mail server.
    #[arg(
        long,
        value_name = "URL",
        help = "The mail server: imaps://HOST[:PORT] (TLS), or imap://HOST[:PORT] (STARTTLS, never plain)"
    )]
    pub(crate) mail: String,
    /// Where keys, the authority and the store are kept [default: $STATE_DIRECTORY, else ~/.local/state/waypost]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Trust these authorities (PEM) for the server's certificate, not those of the system
    #[arg(long, value_name = "FILE")]
    pub(crate) origin_ca: Option<PathBuf>,
    /// Listen on this address only: IP, or IP:PORT for TLS at that port alone; can be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every value in force, defaults too, as a file that could be used
    Show {
        #[command(flatten)]
        config: ConfigFile,
        /// Leave out what is a default
        #[arg(long)]
        changed: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// End those of a user, now
    End {
        /// The user's key (u1-…), or the name that he logs in with
        user: String,
        #[command(flatten)]
        node: RunningNode,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReportCommand {
    /// Mail fetched before anybody asked for it: how many messages were opened and how many of these were here, octets
    /// fetched, and of these used, wasted, or waiting to be either; for each user and site
    Preload {
        /// Of this user only: his key (u1-…), or the name that he logs in with
        user: Option<String>,
        #[command(flatten)]
        node: RunningNode,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// How much is held, how often it helped, and for which servers messages are cut here
    Stats {
        #[command(flatten)]
        node: RunningNode,
    },
    /// Read everything and compare it with its checksums; what is damaged is moved aside
    Verify {
        #[command(flatten)]
        node: RunningNode,
    },
    /// Remove what nobody needs any more
    Gc {
        #[command(flatten)]
        node: RunningNode,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Make a certificate authority
    ///
    /// With --interception: the authority that signs the certificates which mail programs see. It can sign for the names
    /// given with --permit only; mail programs refuse anything else from it. Install its root.pem in the mail programs
    /// and take root.key offline: the node does not need it.
    ///
    /// With --node: the authority that says which nodes are the organisation's own. It lives on one machine, where
    /// `waypost token new` makes the identity of each node.
    #[command(group = clap::ArgGroup::new("kind").required(true))]
    Init {
        /// For the names of mail servers
        #[arg(long, group = "kind", requires = "permit")]
        interception: bool,
        /// For the nodes of the organisation
        #[arg(long, group = "kind", conflicts_with = "permit")]
        node: bool,
        /// A host name or IP address that it may sign for; can be given several times
        #[arg(long, value_name = "HOST")]
        permit: Vec<String>,
        /// Where to put it [default: ca or node-ca in the state directory]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make the identity of a node and print it as a token, one line
    ///
    /// The token is secret: it holds the node's private key. Bring it to the node, `waypost join` it there, delete it.
    New {
        /// The node's name, unique in the organisation: `id` under `[node]` in its configuration
        #[arg(long, value_name = "NAME")]
        id: String,
        /// The directory of the node authority [default: node-ca in the state directory]
        #[arg(long, value_name = "DIR")]
        ca_dir: Option<PathBuf>,
        /// The organisation's key of the user hashes, to bring along [default: user.key in the state directory]
        #[arg(long, value_name = "FILE")]
        user_key: Option<PathBuf>,
    },
}

/// Prints what is wrong with the command line, or the help that was asked for.
pub(crate) fn complain(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        say::text(error.render());
        return Exit::Fine.into();
    }
    say::note(error.render().to_string().trim_end());
    Exit::Usage.into()
}
