//! `waypost run`: the node in the foreground, until a signal ends it.

use crate::{
    config::FileUse,
    exit::{Exit, Failure},
    file, logging,
    node::{DRAIN, Node},
};
use std::path::Path;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

/// Runs the node of `file`.
pub(crate) fn run(file: &Path) -> Result<Exit, Failure> {
    let loaded = file::load(file, FileUse::Look)?;
    let config = file::usable(&loaded, file)?;
    let _level = logging::start(&config.log);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("the system gives no threads", error))?;
    runtime.block_on(async {
        let mut node = Node::start(config)?;
        serve(&mut node).await
    })
}

async fn serve(node: &mut Node) -> Result<Exit, Failure> {
    let no_signals = |error| Failure::io("signals", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    tracing::info!(listeners = node.listeners().len(), "ready");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining; a second signal hurries");
    let by = Instant::now() + DRAIN;
    tokio::select! {
        () = node.drain(by) => {}
        _ = terminate.recv() => node.hurry(),
        _ = interrupt.recv() => node.hurry(),
    }
    node.drain(Instant::now()).await;
    tracing::info!("ended");
    Ok(Exit::Fine)
}
