//! `waypost run`: the node in the foreground, until a signal ends it; or, of a node on the path, its supervisor
//! ([`crate::supervisor`]), whose child the node is.

use crate::{
    admin::{Admin, Health},
    config::{Config, FileUse},
    exit::{Exit, Failure},
    file, logging,
    logging::Level,
    node::{DRAIN, Node},
    notify,
    path::{
        Path as OnPath,
        upward::{Upward, Wished},
    },
    prefetch::Prefetch,
    supervisor,
};
use discovery_linux::worker::ToNetd;
use epc::store::StoreOpenError;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::{future, path::Path, sync::Arc};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
    time::{Duration, Instant, sleep, timeout},
};

/// What the disk may take for the last of it; what it has not by then comes from the servers again.
const FLUSH: Duration = Duration::from_secs(10);

/// Runs the node of `path`.
pub(crate) fn run(path: &Path) -> Result<Exit, Failure> {
    let loaded = file::load(path, FileUse::Look)?;
    let config = file::usable(&loaded, path)?;
    match &config.interception {
        Some(interception) => supervisor::run(config, interception, path),
        None => node(config, Some(path), None),
    }
}

/// Runs the node of `path` as the child of netd, without any right, and under its supervisor, which has read the file a
/// moment ago and said what is odd.
pub(crate) fn supervised(path: &Path, user: Option<supervisor::user::User>) -> Result<Exit, Failure> {
    let netd = ToNetd::from_stdin().map_err(|_| {
        Failure::say(Exit::Usage, "only `waypost run` starts this, which is what to use instead")
    })?;
    supervisor::rights::as_others();
    supervisor::rights::give_up_all(user)
        .map_err(|error| Failure::io("the node does not run with rights that it cannot give up", error))?;
    let loaded = file::read(path, FileUse::Look)?;
    if loaded.usable().is_none() {
        // It has changed since.
        file::complain(&loaded, path);
    }
    let config = file::usable(&loaded, path)?;
    if config.interception.is_none() {
        let what = format_args!(
            "{}: [interception] is gone since the node was started; start it anew",
            path.display()
        );
        return Err(Failure::say(Exit::Usage, what));
    }
    node(config, Some(path), Some(netd)).map_err(store_may_become_free)
}

/// The store of a node that is about to end is held by nobody's mistake: another start finds it free.
fn store_may_become_free(failure: Failure) -> Failure {
    match failure.cause::<StoreOpenError>() {
        Some(StoreOpenError::InUse { .. }) => failure.ending(Exit::Unavailable),
        Some(_) | None => failure,
    }
}

/// Runs the node of `config`; a reload reads `path` again.
pub(crate) fn node(config: &Config, path: Option<&Path>, netd: Option<ToNetd>) -> Result<Exit, Failure> {
    let level = logging::start(&config.log);
    logging::keep_panics_quiet();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the system gives no threads", error))?;
    let done = runtime.block_on(async {
        let (upward, wished) = match netd {
            Some(netd) => Upward::begin(netd).await.map(|(upward, wished)| (Some(upward), Some(wished)))?,
            None => (None, None),
        };
        let node = Arc::new(Node::start(config, upward.as_ref()).await?);
        // From here on a signal is an order, and no longer the end.
        let wishes = Wishes::new(wished);
        let on_path = node.path().cloned();
        let done = match (wishes, Admin::start(&config.admin, Arc::clone(&node)).await) {
            (Ok(mut wishes), Ok(admin)) => {
                let ended = serve(&node, &admin, path, &level, &mut wishes).await;
                admin.stop();
                if let (Ended::HandedOver, Some(path)) = (ended, &on_path) {
                    let_go(node).await;
                    carry_on(path, upward.as_ref(), &mut wishes).await;
                }
                tracing::info!("ended");
                Ok(Exit::Fine)
            }
            (Err(failure), _) | (_, Err(failure)) => Err(failure),
        };
        // Nothing of it may stay in the kernel, however it ends.
        if let Some(path) = on_path {
            path.stop();
        }
        done
    });
    // A thread that waits for a disk must not keep an ended process.
    runtime.shutdown_background();
    done
}

/// A session needs two files, and the usual soft limit of 1,024 is for programs that still use select(2).
pub(crate) fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        limit.current = limit.maximum;
        // Where it is forbidden, what was given must do.
        let _kept = setrlimit(Resource::Nofile, limit);
    }
}

async fn serve(node: &Node, admin: &Admin, path: Option<&Path>, level: &Level, wishes: &mut Wishes) -> Ended {
    admin.say(Health::Ready);
    if wishes.wished.is_none() {
        notify::ready();
        tracing::info!("ready");
    } else if let Some(path) = node.path()
        && let Err(failure) = path.show()
    {
        // Its supervisor is ready when the rules are in place, says so, and starts another one when it hears nothing.
        tracing::error!(error = %failure, "the node cannot show that it turns");
    }
    let ended = loop {
        match wishes.next().await {
            Wish::End => break Ended::Ended,
            Wish::HandOver => break Ended::HandedOver,
            Wish::Reload => reload(node, path, level).await,
        }
    };
    tracing::info!("draining; a second signal hurries");
    admin.say(Health::Draining);
    if wishes.wished.is_none() {
        notify::stopping();
    }
    let by = Instant::now() + DRAIN;
    tokio::select! {
        () = node.drain(by, ended) => {}
        () = wishes.end() => {
            tracing::info!("hurrying");
            node.hurry().await;
        }
    }
    if let Some(store) = node.store() {
        let store = Arc::clone(store);
        let _late = timeout(FLUSH, spawn_blocking(move || store.flush())).await;
    }
    if let Some(affinity) = node.prefetch().map(Prefetch::affinity) {
        let _late = timeout(FLUSH, spawn_blocking(move || affinity.flush())).await;
    }
    ended
}

/// The store's directory is a successor's when the last who used it has let it go.
async fn let_go(node: Arc<Node>) {
    let store = node.store().map(Arc::downgrade);
    node.hand_over();
    drop(node);
    let until = Instant::now() + FLUSH;
    let held = || store.as_ref().is_some_and(|store| store.strong_count() > 0);
    while held() && Instant::now() < until {
        sleep(Duration::from_millis(10)).await;
    }
    if held() {
        tracing::error!("the store is still held; a successor tries again until it is free");
    }
}

/// What the path carries goes on, without the rest of the node; new connections are a successor's.
async fn carry_on(path: &OnPath, upward: Option<&Upward>, wishes: &mut Wishes) {
    if let Some(upward) = upward {
        upward.released();
    }
    tracing::info!(carried = path.carried(), "a successor may start; what is carried goes on here");
    let until = Instant::now() + CARRY_ON_MAX;
    let rest = async {
        while path.carried() > 0 && Instant::now() < until {
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = rest => {}
        () = wishes.end() => {
            let by = Instant::now() + DRAIN;
            tokio::select! {
                () = path.drained(by) => {}
                () = wishes.end() => {}
            }
        }
    }
}

/// Longer than most connections of an office live; and a person who waits for the old version's end waits no longer.
const CARRY_ON_MAX: Duration = Duration::from_secs(3600);

/// How serving came to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Nothing is carried any more, or shall be.
    Ended,
    /// The path carries on; a successor takes the place of the rest.
    HandedOver,
}

/// The old configuration stays when anything is wrong with the new one.
async fn reload(node: &Node, path: Option<&Path>, level: &Level) {
    let Some(path) = path else {
        let config = node.config();
        return say_reloaded(node.reload(&config).await);
    };
    let loaded = match file::read(path, FileUse::Look) {
        Ok(loaded) => loaded,
        Err(failure) => {
            tracing::error!(error = %failure, "not reloaded; the node goes on as it was");
            return;
        }
    };
    let Some(config) = loaded.usable() else {
        let name = path.to_string_lossy();
        for problem in &loaded.problems {
            tracing::error!(problem = %problem.line(&name), "not reloaded");
        }
        tracing::error!("not reloaded, because the file cannot be used; the node goes on as it was");
        return;
    };
    let done = node.reload(config).await;
    if done.is_ok() {
        level.set(&config.log);
    }
    say_reloaded(done);
}

fn say_reloaded(done: Result<(), Failure>) {
    match done {
        Ok(()) => tracing::info!("reloaded"),
        Err(failure) => tracing::error!(error = %failure, "not reloaded; the node goes on as it was"),
    }
}

/// What an administrator wants.
pub(crate) enum Wish {
    End,
    Reload,
    /// A successor starts.
    HandOver,
}

/// Of a supervisor, or, where there is none, by signal.
struct Wishes {
    signals: Signals,
    wished: Option<Wished>,
}

impl Wishes {
    fn new(wished: Option<Wished>) -> Result<Self, Failure> {
        Ok(Self { signals: Signals::new()?, wished })
    }

    async fn next(&mut self) -> Wish {
        match &mut self.wished {
            // Signals to a whole group of processes reach the supervisor too, and are its to pass on.
            Some(wished) => match wished.recv().await {
                Some(wish) => wish,
                // netd is gone; the end comes without anybody's wish.
                None => future::pending().await,
            },
            None => self.signals.next().await,
        }
    }

    async fn end(&mut self) {
        while !matches!(self.next().await, Wish::End) {}
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|error| Failure::io("signals", error));
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::End,
            _ = self.interrupt.recv() => Wish::End,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_held_is_tried_again_by_a_successor_only() {
        let held = |process| {
            Failure::new(Exit::Usage, StoreOpenError::InUse { path: "/nonexistent".into(), process })
        };
        assert_eq!(store_may_become_free(held(Some(1))).exit, Exit::Unavailable);
        let other = Failure::say(Exit::Usage, "a mistake");
        assert_eq!(store_may_become_free(other).exit, Exit::Usage);
    }
}
