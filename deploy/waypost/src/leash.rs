//! The node's end of what joins it to its supervisor: what it is told, and what it does when the supervisor is gone.

use crate::{
    config::Config,
    exit::{Exit, Failure},
    node::Node,
    path::{self, Path},
    run,
    supervisor::hook,
};
use discovery_linux::{
    rules::Rules,
    supervisor::{Supervised, Watched, Wish},
};
use std::{
    future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// See the module's documentation.
pub(crate) struct Leash {
    supervised: Supervised,
    heard: Arc<Mutex<Heard<Arc<Path>>>>,
    /// Whether a successor has rules and queue.
    released: Arc<AtomicBool>,
    wishes: UnboundedReceiver<run::Wish>,
}

impl Leash {
    /// Listens from now on: a supervisor may be gone before the node is there.
    pub(crate) fn new(supervised: Supervised, config: &Config) -> Result<Self, Failure> {
        let Some(interception) = &config.interception else {
            return Err(Failure::say(Exit::Bug, "nothing is to be supervised"));
        };
        let last = Last {
            rules: path::standing_rules(config, interception)?,
            bypass_command: interception.bypass_command.clone(),
        };
        let (wish, wishes) = unbounded_channel();
        let heard = Arc::new(Mutex::new(Heard { path: None, bypass: None }));
        let released = Arc::new(AtomicBool::new(false));
        let (hears, stands, gave_up) = (supervised.clone(), Arc::clone(&heard), Arc::clone(&released));
        thread::Builder::new()
            .name("leash".to_owned())
            .spawn(move || {
                listen(&hears, &stands, &wish);
                orphaned(&stands, &gave_up, last);
            })
            .map_err(|error| Failure::io("the system gives no threads", error))?;
        Ok(Self { supervised, heard, released, wishes })
    }

    /// The node is there, and can carry what is taken.
    pub(crate) fn show(&self, node: &Node) {
        if let Some(path) = node.path() {
            if let Some(on) = lock(&self.heard).show(Arc::clone(path)) {
                path.bypass(on);
            }
            path.show(&self.supervised);
        }
    }

    /// What only one can have is free.
    pub(crate) fn released(&self) {
        // Before the supervisor knows: it may be gone the moment after.
        self.released.store(true, Ordering::SeqCst);
        let (Watched::Yes | Watched::Orphan) = self.supervised.released();
    }

    /// What the supervisor wants of the node.
    pub(crate) async fn next(&mut self) -> run::Wish {
        match self.wishes.recv().await {
            Some(wish) => wish,
            // The supervisor is gone; the end comes without anybody's wish.
            None => future::pending().await,
        }
    }
}

/// What an orphan does.
struct Last {
    rules: Rules,
    bypass_command: Vec<String>,
}

/// What was heard of bypass, also before there was anybody to tell it to.
struct Heard<P> {
    /// None until the node is there.
    path: Option<P>,
    bypass: Option<bool>,
}

impl<P> Heard<P> {
    /// Somebody is there: with what they have missed.
    fn show(&mut self, path: P) -> Option<bool> {
        self.path.get_or_insert(path);
        self.bypass
    }

    /// Who is to be told.
    fn bypass(&mut self, on: bool) -> Option<&P> {
        self.bypass = Some(on);
        self.path.as_ref()
    }
}

fn lock<P>(heard: &Mutex<Heard<P>>) -> std::sync::MutexGuard<'_, Heard<P>> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(supervised: &Supervised, heard: &Mutex<Heard<Arc<Path>>>, wish: &UnboundedSender<run::Wish>) {
    while let Some(wanted) = supervised.wish() {
        let wanted = match wanted {
            Wish::Bypass(on) => {
                if let Some(path) = lock(heard).bypass(on) {
                    path.bypass(on);
                }
                // A supervisor that is gone is noticed at the next turn.
                let (Watched::Yes | Watched::Orphan) = supervised.heard();
                continue;
            }
            Wish::Leave | Wish::Hurry => run::Wish::End,
            Wish::Reload => run::Wish::Reload,
            Wish::HandOver => run::Wish::HandOver,
        };
        let _ends_already = wish.send(wanted);
    }
}

/// Nobody watches any more. Whoever starts the next supervisor wants the place free at once; what is carried is reset, and
/// nothing is on its way to a disk that could not be lost.
fn orphaned(heard: &Mutex<Heard<Arc<Path>>>, released: &AtomicBool, mut last: Last) {
    if released.load(Ordering::SeqCst) {
        // Rules and relay are a successor's, or of the next supervisor already.
        tracing::error!("the supervisor is gone; this node ends, with what it carries");
        std::process::exit(i32::from(Exit::Unavailable as u8));
    }
    tracing::error!("the supervisor is gone; connections flow past this node, which ends");
    let path = lock(heard).path.take();
    if let Some(path) = &path {
        path.bypass(true);
    }
    if let Err(error) = last.rules.remove() {
        tracing::error!(%error, "rules are left behind; the next start removes them");
    }
    // Before the command, which may take its time: the next supervisor waits for the queue.
    if let Some(path) = &path {
        path.free_queue();
    }
    let _it_has_said_why = hook::run_once(&last.bypass_command, true, hook::PATIENCE);
    std::process::exit(i32::from(Exit::Unavailable as u8));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wished_before_the_node_was_there_is_told_to_it() {
        let mut heard = Heard { path: None, bypass: None };
        assert_eq!(heard.bypass(true), None);
        assert_eq!(heard.show("node"), Some(true));
        assert_eq!(heard.bypass(false), Some(&"node"));
        let mut quiet = Heard { path: None, bypass: None };
        assert_eq!(quiet.show("node"), None);
    }
}
