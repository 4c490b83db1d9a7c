//! `waypost netd`: the process between the supervisor and the node, which has the rights and nothing to do with what
//! connections carry. The packet queue is here, the engine, raw and transparent sockets, what is learnt of the path.
//!
//! ```text
//!  supervisor ══beats, wishes══ netd ══orders, events, sockets══ node (`waypost node`), without a right
//!                                │
//!                                └── packet queue, raw sockets
//! ```
//! The node is its child, and ends with it, as it ends with the node: what one carries the other has taken.

mod leash;
mod persisted;
mod place;

use super::{plan, questions};
use crate::{
    config::{Config, FileUse, network::Interception},
    exit::{Exit, Failure},
    file, logging, run,
    supervisor::{rights, user::User},
};
use discovery_linux::{
    broker::{self, LocalBroker, Served, serve},
    rules::Listen,
    socket::{Family, TransparentListener},
    supervisor::{Supervised, Watched},
    worker::{self, Notice, RemoteAgent, Wishes},
};
use leash::Leash;
use place::Place;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Signal, getpid, kill_process},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, OnceLock},
    thread,
};
use tokio::{sync::mpsc, task::spawn_blocking};

/// Runs netd for the node of `path`, as the child of its supervisor.
pub(crate) fn run(path: &Path) -> Result<Exit, Failure> {
    rights::as_others();
    let supervised = Supervised::from_stdin().map_err(|_| {
        Failure::say(Exit::Usage, "only `waypost run` starts this, which is what to use instead")
    })?;
    let loaded = file::read(path, FileUse::Look)?;
    if loaded.usable().is_none() {
        // It has changed since.
        file::complain(&loaded, path);
    }
    let config = file::usable(&loaded, path)?;
    let Some(interception) = &config.interception else {
        let what = format_args!(
            "{}: [interception] is gone since the node was started; start it anew",
            path.display()
        );
        return Err(Failure::say(Exit::Usage, what));
    };
    let _level = logging::start(&config.log);
    logging::keep_panics_quiet();
    rights::no_core().map_err(|error| Failure::io("RLIMIT_CORE", error))?;
    run::raise_file_limit();
    // What is sent to a whole group of processes is the supervisor's to pass on.
    let _unheard = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|error| Failure::io("signals", error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the system gives no threads", error))?;
    let ended = runtime.block_on(stand(config, interception, path, supervised));
    runtime.shutdown_background();
    as_it_ended(ended?)
}

async fn stand(
    config: &Config,
    interception: &Interception,
    file: &Path,
    supervised: Supervised,
) -> Result<ExitStatus, Failure> {
    let leash = Leash::new(supervised.clone(), config)?;
    let needs = |what: &'static str| move |error| plan::needs_rights(what, error);
    let v4 = TransparentListener::bind(Family::V4, 0).map_err(needs("the transparent listener"))?;
    // A machine without IPv6 has none of its traffic either.
    let v6 = TransparentListener::bind(Family::V6, 0).ok();
    let port = |listener: &TransparentListener| listener.port().map_err(needs("the transparent listener"));
    let listen = Listen { v4: port(&v4)?, v6: v6.as_ref().map(port).transpose()? };
    let no_channel = |error| Failure::io("the channel to the node", error);
    let (to_node, nodes) = worker::pair().map_err(no_channel)?;
    let (to_broker, brokers) = broker::pair().map_err(no_channel)?;
    let (to_questions, asked) = std::os::unix::net::UnixStream::pair().map_err(no_channel)?;
    let (say, mut said) = mpsc::unbounded_channel();
    let handle = Arc::new(OnceLock::new());
    let (agent, wishes) = RemoteAgent::new(to_node, hears(supervised.clone(), listen, &handle, say));
    wishes.begin(to_broker, to_questions.into());
    let place = Place::take(config, interception, listen, agent, &wishes).await?;
    let place = Arc::new(place);
    let _once = handle.set(place.handle().clone());
    leash.show(&place, &wishes);
    let (started, named) = (config.clone(), file.to_owned());
    let broker = LocalBroker::new(Some(v4), v6, move |at| may_listen(&started, &named, at));
    spawn("broker", move || hand_out(&brokers, &broker))?;
    tokio::spawn(answer(asked.into(), Arc::clone(&place)));
    // In this thread, which lasts: the node ends with it.
    let user = User::of(config.node.user.as_deref())?;
    let mut node =
        node(file, nodes, user).map_err(|error| Failure::io("the node cannot be started", error))?;
    let ended = spawn_blocking(move || node.wait());
    tokio::pin!(ended);
    let ended = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            Some(()) = said.recv() => {
                place.leave().await;
                let refusing = wishes.clone();
                spawn("node", move || refuse(&refusing))?;
                leash.released();
            }
        }
    };
    place.leave().await;
    ended.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| Failure::io("the node", error))
}

/// What the node says of itself, in the packet loop's thread: its beat goes on to the supervisor, and shows that both turn.
fn hears(
    supervised: Supervised,
    listen: Listen,
    handle: &Arc<OnceLock<discovery_linux::netd::Handle>>,
    released: mpsc::UnboundedSender<()>,
) -> impl FnMut(Notice) + Send + 'static {
    let handle = Arc::clone(handle);
    let (mut ready, mut released) = (false, Some(released));
    move |notice| match notice {
        // Whoever waits for wishes learns of the supervisor's end, and does what is to be done.
        Notice::Beat if ready => {
            let (Watched::Yes | Watched::Orphan) = supervised.beat();
        }
        Notice::Ready if !ready => {
            ready = true;
            if let Some(handle) = handle.get() {
                handle.tell(discovery_core::engine::Event::AgentUp);
            }
            let (Watched::Yes | Watched::Orphan) = supervised.ready(listen);
        }
        // Once: a thread answers it from then on.
        Notice::Released => {
            if let Some(released) = released.take() {
                let _it_ends = released.send(());
            }
        }
        Notice::Beat | Notice::Ready => {}
    }
}

/// Of the executable that runs: another one may have its name by now.
fn node(file: &Path, channel: OwnedFd, user: Option<User>) -> io::Result<std::process::Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("node").arg("-c").arg(file).stdin(Stdio::from(channel));
    if let Some(user) = user {
        // By itself: what it may regain is in its bounding set, which only it can empty.
        command.arg("--user").arg(user.to_string());
    }
    command.spawn()
}

/// What the operator wants this node to listen at: when it was started, or by the file as it is now, which a reload reads.
fn may_listen(started: &Config, file: &Path, at: SocketAddr) -> bool {
    let names = |config: &Config| {
        config.listeners.iter().any(|listener| listener.address == at)
            || config.carries.iter().any(|carry| carry.listen == at)
            || config.admin.listen == Some(at)
            || config.link.as_ref().is_some_and(|link| link.listen == at)
    };
    let now = || file::read(file, FileUse::Look).is_ok_and(|loaded| loaded.usable().is_some_and(names));
    let may = names(started) || now();
    if !may {
        tracing::error!(%at, "the node wants to listen where nothing is configured");
    }
    may
}

/// Sockets, until whoever asks is gone; then the listeners close.
fn hand_out(channel: &OwnedFd, broker: &LocalBroker) {
    rights::as_supervisor();
    loop {
        let _woken = poll(&mut [PollFd::new(channel, PollFlags::IN)], None);
        match serve(channel.as_fd(), broker) {
            Ok(Served::Answered | Served::Nothing) => {}
            Ok(Served::Closed) => return,
            Err(error) => return tracing::error!(%error, "the node gets no more sockets"),
        }
    }
}

/// The node has given its place up, and goes on with what it carries.
fn refuse(node: &Wishes) {
    let Ok(channel) = node.lifeline() else { return };
    let at_least = Timespec { tv_sec: 1, tv_nsec: 0 };
    while node.refuse() {
        let _woken = poll(&mut [PollFd::new(&channel, PollFlags::IN)], Some(&at_least));
    }
}

async fn answer(channel: OwnedFd, place: Arc<Place>) {
    let answering = |question| {
        let place = Arc::clone(&place);
        async move { place.answer(question).await }
    };
    let Err(error) = questions::answer(channel, answering).await else { return };
    if error.kind() != io::ErrorKind::UnexpectedEof {
        tracing::error!(%error, "the node is answered nothing more");
    }
}

fn spawn(name: &'static str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map(drop).map_err(|error| Failure::io("the system gives no threads", error))
}

/// To its supervisor the two are one.
fn as_it_ended(status: ExitStatus) -> Result<Exit, Failure> {
    if let Some(signal) = status.signal().and_then(Signal::from_named_raw) {
        let _it_ends = kill_process(getpid(), signal);
    }
    match status.code().and_then(Exit::of_code) {
        Some(exit) => Ok(exit),
        // Nobody's code: it stays so.
        None => std::process::exit(status.code().unwrap_or(NOBODYS)),
    }
}

const NOBODYS: i32 = 125;
