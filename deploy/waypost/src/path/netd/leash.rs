//! netd's end of what joins it to the supervisor: what it is told, what it passes on, and what it does when the supervisor
//! is gone.

use super::place::Place;
use crate::{
    config::Config,
    exit::{Exit, Failure},
    path,
    supervisor::hook,
};
use discovery_linux::{
    rules::Rules,
    supervisor::{Supervised, Watched, Wish},
    worker::Wishes,
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// See the module's documentation.
pub(super) struct Leash {
    supervised: Supervised,
    heard: Arc<Mutex<Heard<Both>>>,
    /// Whether a successor has rules and queue.
    released: Arc<AtomicBool>,
}

impl Leash {
    /// Listens from now on: a supervisor may be gone before there is a place.
    pub(super) fn new(supervised: Supervised, config: &Config) -> Result<Self, Failure> {
        let Some(interception) = &config.interception else {
            return Err(Failure::say(Exit::Bug, "nothing is to be supervised"));
        };
        let last = Last {
            rules: path::standing_rules(config, interception)?,
            bypass_command: interception.bypass_command.clone(),
        };
        let heard = Arc::new(Mutex::new(Heard { path: None, wishes: Vec::new() }));
        let released = Arc::new(AtomicBool::new(false));
        let (hears, stands, gave_up) = (supervised.clone(), Arc::clone(&heard), Arc::clone(&released));
        thread::Builder::new()
            .name("leash".to_owned())
            .spawn(move || {
                listen(&hears, &stands);
                orphaned(&stands, &gave_up, last);
            })
            .map_err(|error| Failure::io("the system gives no threads", error))?;
        Ok(Self { supervised, heard, released })
    }

    /// There is a place, and somebody who hears wishes.
    pub(super) fn show(&self, place: &Arc<Place>, node: &Wishes) {
        let mut heard = lock(&self.heard);
        for wish in heard.show((Arc::clone(place), node.clone())) {
            pass_on(place, node, wish);
        }
    }

    /// What only one can have is free.
    pub(super) fn released(&self) {
        // Before the supervisor knows: it may be gone the moment after.
        self.released.store(true, Ordering::SeqCst);
        let (Watched::Yes | Watched::Orphan) = self.supervised.released();
    }
}

/// Who is told: the engine, and the node.
type Both = (Arc<Place>, Wishes);

/// What an orphan does.
struct Last {
    rules: Rules,
    bypass_command: Vec<String>,
}

/// What was heard, also before there was anybody to tell it to.
struct Heard<P> {
    /// None until the place is there.
    path: Option<P>,
    wishes: Vec<Wish>,
}

impl<P> Heard<P> {
    /// Somebody is there: with what they have missed.
    fn show(&mut self, path: P) -> Vec<Wish> {
        self.path.get_or_insert(path);
        std::mem::take(&mut self.wishes)
    }

    /// Who is to be told.
    fn wish(&mut self, wish: Wish) -> Option<&P> {
        if self.path.is_none() && self.wishes.len() < MISSED_MAX {
            self.wishes.push(wish);
        }
        self.path.as_ref()
    }
}

/// A start takes a second.
const MISSED_MAX: usize = 64;

fn lock<P>(heard: &Mutex<Heard<P>>) -> std::sync::MutexGuard<'_, Heard<P>> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(supervised: &Supervised, heard: &Mutex<Heard<Both>>) {
    while let Some(wanted) = supervised.wish() {
        if let Some((place, node)) = lock(heard).wish(wanted) {
            pass_on(place, node, wanted);
        }
        if matches!(wanted, Wish::Bypass(_)) {
            // A supervisor that is gone is noticed at the next turn.
            let (Watched::Yes | Watched::Orphan) = supervised.heard();
        }
    }
}

/// Bypass is the engine's, and works while the node hangs; the node tells peers of it.
fn pass_on(place: &Place, node: &Wishes, wish: Wish) {
    // First: the rules change when the engine has heard it.
    node.wish(wish);
    match wish {
        Wish::Bypass(on) => place.bypass(on),
        Wish::Leave | Wish::Hurry | Wish::Reload | Wish::HandOver => {}
    }
}

/// Nobody watches any more. Whoever starts the next supervisor wants the place free at once; what is carried is reset, and
/// nothing is on its way to a disk that could not be lost.
fn orphaned(heard: &Mutex<Heard<Both>>, released: &AtomicBool, mut last: Last) {
    if released.load(Ordering::SeqCst) {
        // Rules and relay are a successor's, or of the next supervisor already.
        tracing::error!("the supervisor is gone; this node ends, with what it carries");
        std::process::exit(i32::from(Exit::Unavailable as u8));
    }
    tracing::error!("the supervisor is gone; connections flow past this node, which ends");
    let path = lock(heard).path.take();
    if let Some((path, _)) = &path {
        path.bypass(true);
    }
    if let Err(error) = last.rules.remove() {
        tracing::error!(%error, "rules are left behind; the next start removes them");
    }
    // Before the command, which may take its time: the next supervisor waits for the queue.
    if let Some((path, _)) = &path {
        path.free_queue();
    }
    let _it_has_said_why = hook::run_once(&last.bypass_command, true, hook::PATIENCE);
    std::process::exit(i32::from(Exit::Unavailable as u8));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wished_before_anybody_was_there_is_told_to_it() {
        let mut heard = Heard { path: None, wishes: Vec::new() };
        assert_eq!(heard.wish(Wish::Bypass(true)), None);
        assert_eq!(heard.wish(Wish::Leave), None);
        assert_eq!(heard.show("place"), [Wish::Bypass(true), Wish::Leave]);
        assert_eq!(heard.wish(Wish::Bypass(false)), Some(&"place"));
        let mut quiet = Heard { path: None, wishes: Vec::new() };
        assert_eq!(quiet.show("place"), []);
    }
}
