//! `lab`: the test network by hand.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool speaks to its terminal")]

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use lab::clients::{self, Account, Act};
use lab::wan::tun::{Emulator, Ends};
use lab::{Authority, Behaviour, Corpus, Dovecot, Lab, LabSpec, LinkBehaviour, Place, leftovers, sys};

#[derive(Parser)]
#[command(
    about = "Network namespaces, a WAN emulator and real mail servers, for tests and by hand. Needs root."
)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Build the lab with Dovecot and hold it until Enter, the end of input, or Ctrl-C and `lab gc`
    Up {
        #[command(flatten)]
        link: LinkArgs,
        /// Starts the namespaces' names
        #[arg(long)]
        prefix: Option<String>,
        /// Messages in alice's INBOX
        #[arg(long, default_value_t = 60)]
        messages: usize,
        /// Leave namespaces and files behind; `lab gc` removes them
        #[arg(long)]
        keep: bool,
        /// Time one scripted session over the WAN, print it and end
        #[arg(long)]
        try_out: bool,
    },
    /// Take away labs whose process is dead
    Gc,
    /// Run only the emulator between two namespaces that exist
    Wan {
        #[command(flatten)]
        link: LinkArgs,
        /// Names the devices: NAME in both namespaces
        #[arg(long, default_value = "wan0")]
        name: String,
        /// The branch's namespace
        #[arg(long)]
        branch: String,
        /// The data centre's namespace
        #[arg(long)]
        centre: String,
        /// The control socket
        #[arg(long)]
        control: PathBuf,
        /// Decides the link's accidents
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run a command in a namespace of a lab: `lab exec wp1a2b-client ip addr`
    Exec {
        /// The namespace's full name
        namespace: String,
        /// The command
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Args)]
struct LinkArgs {
    /// Round trip in milliseconds
    #[arg(long, default_value_t = 100.0)]
    rtt_ms: f64,
    /// 10⁶ bit/s each way
    #[arg(long, default_value_t = 10.0)]
    rate_mbit: f64,
    /// Packets lost, in percent
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
}

impl LinkArgs {
    fn behaviour(&self) -> LinkBehaviour {
        let one = Behaviour { loss_percent: self.loss, ..Behaviour::link(self.rtt_ms, self.rate_mbit) };
        LinkBehaviour::both(one)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !sys::is_root() {
        eprintln!("lab: namespaces and TUN devices need root: run it with sudo");
        return ExitCode::from(77);
    }
    match run(cli.what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::from(69)
        }
    }
}

fn run(what: What) -> anyhow::Result<()> {
    match what {
        What::Up { link, prefix, messages, keep, try_out } => {
            let corpus = Corpus::sized(1, messages, 1 << 20);
            let spec = LabSpec { prefix, wan: link.behaviour(), keep, ..LabSpec::new(0.0, 0.0) };
            let lab = Lab::build(spec)?;
            let authority = Authority::create(&lab.directory().join("ca"))?;
            let _dovecot = Dovecot::start(&lab, &authority, &corpus)?;
            if try_out {
                return try_session(&lab, &authority, &corpus);
            }
            describe(&lab, &authority, &corpus);
            std::io::stdin().read_line(&mut String::new()).context("cannot wait for Enter")?;
            Ok(())
        }
        What::Gc => {
            for prefix in leftovers::collect() {
                println!("removed {prefix}");
            }
            Ok(())
        }
        What::Wan { link, name, branch, centre, control, seed } => {
            let ends = Ends { branch: (branch, name.clone()), centre: (centre, name) };
            let _emulator = Emulator::start(&ends, link.behaviour(), seed, &control)?;
            println!("the link stands; its control socket is {}; Enter ends it", control.display());
            std::io::stdin().read_line(&mut String::new()).context("cannot wait for Enter")?;
            Ok(())
        }
        What::Exec { namespace, command } => {
            let known = leftovers::owners()
                .iter()
                .any(|owner| namespace.strip_prefix(&owner.prefix).is_some_and(|rest| rest.starts_with('-')));
            ensure!(known, "{namespace} is no namespace of a lab: `ip netns` lists them");
            let error =
                std::process::Command::new("ip").args(["netns", "exec", &namespace]).args(command).exec();
            Err(error).context("cannot run ip")
        }
    }
}

fn describe(lab: &Lab, authority: &Authority, corpus: &Corpus) {
    println!("The lab {} stands in {}", lab.prefix(), lab.directory().display());
    println!("  certificate authority  {}", authority.certificate().display());
    if let Ok(wan) = lab.wan() {
        println!("  emulator               {}", wan.control().display());
    }
    for user in &corpus.users {
        println!("  user                   {} / {}", user.name, user.password);
    }
    println!(
        "Try:  lab exec {} curl --cacert {} -u alice:alice-secret imaps://mail.lab.test/",
        lab.namespace(Place::Client),
        authority.certificate().display()
    );
    println!("Enter takes it down.");
}

fn try_session(lab: &Lab, authority: &Authority, corpus: &Corpus) -> anyhow::Result<()> {
    let user = corpus.user("alice").context("the corpus has no alice")?;
    let account = Account {
        host: lab::net::DOVECOT.to_owned(),
        port: 993,
        ca: authority.certificate(),
        user: user.name.clone(),
        password: user.password.clone(),
    };
    let acts = [
        Act::new("select", &["SELECT INBOX"]),
        Act::new("list", &["UID FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE RFC822.SIZE)"]),
        Act::new("open", &["UID FETCH 5 (UID BODY.PEEK[])"]),
        Act::new("noop", &["NOOP"]),
    ];
    let wan = lab.wan()?;
    wan.reset()?;
    for place in [Place::Client, Place::Lan] {
        let report = clients::scripted(lab, place, &account, &acts)?;
        println!(
            "{}: connect {:.3} s, login {:.3} s, {} values",
            place.name(),
            report.connect_seconds,
            report.login_seconds,
            report.digest.len()
        );
        for act in &report.acts {
            println!(
                "   {:8} {:.4} s {:9} octets  {}",
                act.name,
                act.seconds,
                act.octets,
                act.status.join("; ")
            );
        }
    }
    let counters = wan.read()?;
    println!(
        "WAN: {} octets, {} round trips, late at worst {:?}",
        counters.octets(),
        counters.round_trips(),
        counters.late_max()
    );
    Ok(())
}
