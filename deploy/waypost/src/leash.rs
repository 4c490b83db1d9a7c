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
    sync::{Arc, OnceLock},
    thread,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// See the module's documentation.
pub(crate) struct Leash {
    supervised: Supervised,
    /// None until the node is there.
    path: Arc<OnceLock<Arc<Path>>>,
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
        let path = Arc::new(OnceLock::new());
        let (hears, stands) = (supervised.clone(), Arc::clone(&path));
        thread::Builder::new()
            .name("leash".to_owned())
            .spawn(move || listen(&hears, &stands, &wish, last))
            .map_err(|error| Failure::io("the system gives no threads", error))?;
        Ok(Self { supervised, path, wishes })
    }

    /// The node is there, and can carry what is taken.
    pub(crate) fn show(&self, node: &Node) {
        if let Some(path) = node.path() {
            let _once = self.path.set(Arc::clone(path));
            path.show(&self.supervised);
        }
    }

    /// What only one can have is free.
    pub(crate) fn released(&self) {
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

fn listen(
    supervised: &Supervised,
    path: &OnceLock<Arc<Path>>,
    wish: &UnboundedSender<run::Wish>,
    last: Last,
) {
    while let Some(wanted) = supervised.wish() {
        let wanted = match wanted {
            Wish::Bypass(on) => {
                if let Some(path) = path.get() {
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
    orphaned(path.get(), last);
}

/// Nobody watches any more. Whoever starts the next supervisor wants the place free at once; what is carried is reset, and
/// nothing is on its way to a disk that could not be lost.
fn orphaned(path: Option<&Arc<Path>>, mut last: Last) {
    tracing::error!("the supervisor is gone; connections flow past this node, which ends");
    if let Some(path) = path {
        path.bypass(true);
    }
    if let Err(error) = last.rules.remove() {
        tracing::error!(%error, "rules are left behind; the next start removes them");
    }
    hook::run_once(&last.bypass_command, true, hook::PATIENCE);
    std::process::exit(i32::from(Exit::Unavailable as u8));
}
