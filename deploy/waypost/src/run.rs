//! `waypost run`: the node in the foreground, until a signal ends it.

use crate::{
    admin::{Admin, Health},
    config::{Config, FileUse},
    exit::{Exit, Failure},
    file, logging,
    logging::Level,
    node::{DRAIN, Node},
    notify,
    prefetch::Prefetch,
};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::{path::Path, sync::Arc};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
    time::{Duration, Instant, timeout},
};

/// What the disk may take for the last of it; what it has not by then comes from the servers again.
const FLUSH: Duration = Duration::from_secs(10);

/// Runs the node of `path`.
pub(crate) fn run(path: &Path) -> Result<Exit, Failure> {
    let loaded = file::load(path, FileUse::Look)?;
    node(file::usable(&loaded, path)?, Some(path))
}

/// Runs the node of `config`; a reload reads `path` again.
pub(crate) fn node(config: &Config, path: Option<&Path>) -> Result<Exit, Failure> {
    let level = logging::start(&config.log);
    logging::keep_panics_quiet();
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the system gives no threads", error))?;
    let done = runtime.block_on(async {
        let node = Arc::new(Node::start(config).await?);
        // From here on a signal is an order, and no longer the end.
        let done = match (Signals::new(), Admin::start(&config.admin, Arc::clone(&node)).await) {
            (Ok(signals), Ok(admin)) => {
                let done = serve(&node, &admin, path, &level, signals).await;
                admin.stop();
                done
            }
            (Err(failure), _) | (_, Err(failure)) => Err(failure),
        };
        // Nothing of it may stay in the kernel, however it ends.
        if let Some(path) = node.path() {
            path.stop().await;
        }
        done
    });
    // A thread that waits for a disk must not keep an ended process.
    runtime.shutdown_background();
    done
}

/// A session needs two files, and the usual soft limit of 1,024 is for programs that still use select(2).
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        limit.current = limit.maximum;
        // Where it is forbidden, what was given must do.
        let _kept = setrlimit(Resource::Nofile, limit);
    }
}

async fn serve(
    node: &Node,
    admin: &Admin,
    path: Option<&Path>,
    level: &Level,
    mut signals: Signals,
) -> Result<Exit, Failure> {
    admin.say(Health::Ready);
    notify::ready();
    tracing::info!("ready");
    loop {
        match signals.next().await {
            Wish::End => break,
            Wish::Reload => reload(node, path, level).await,
        }
    }
    tracing::info!("draining; a second signal hurries");
    admin.say(Health::Draining);
    notify::stopping();
    let by = Instant::now() + DRAIN;
    tokio::select! {
        () = node.drain(by) => {}
        () = signals.end() => {
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
    tracing::info!("ended");
    Ok(Exit::Fine)
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
enum Wish {
    End,
    Reload,
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

    async fn end(&mut self) {
        while matches!(self.next().await, Wish::Reload) {}
    }
}
