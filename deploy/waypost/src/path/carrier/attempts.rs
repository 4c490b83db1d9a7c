//! The connections for clients here, from the order to reach the far side to the end: one attempt for a flow at a time.
//! What belongs to one that is no longer the one is let go, and says nothing.

use discovery_core::flow::Flow;
use std::collections::HashMap;
use tokio::sync::watch;

/// Which of several attempts for one flow.
#[derive(Clone, Debug)]
pub(in super::super) struct Attempt {
    pub(super) flow: Flow,
    id: u64,
    alive: watch::Receiver<()>,
}

impl Attempt {
    /// Returns when it is no longer the one.
    pub(super) async fn over(&self) {
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
    }
}

/// Those that stand, with whichever half came first.
#[derive(Debug)]
pub(super) struct Attempts<Client, Far> {
    of: HashMap<Flow, Entry<Client, Far>>,
    made: u64,
}

impl<Client, Far> Default for Attempts<Client, Far> {
    fn default() -> Self {
        Self { of: HashMap::new(), made: 0 }
    }
}

/// What an attempt has; for whoever takes it out, to be dropped outside the lock.
#[derive(Debug)]
pub(super) struct Entry<Client, Far> {
    id: u64,
    halves: Halves<Client, Far>,
    /// The far side has taken it, as the engine was told.
    pub(super) opened: bool,
    /// Dropped with the entry, which tells every holder of the [`Attempt`].
    alive: watch::Sender<()>,
}

#[derive(Debug)]
enum Halves<Client, Far> {
    Neither,
    Client(Client),
    Far(Far),
    /// Both are with the task that carries.
    Carried,
}

/// What became of a half.
#[derive(Debug)]
pub(super) enum Half<Client, Far> {
    /// The other one is still to come.
    Waits(Attempt),
    /// Both are here.
    Both(Attempt, Client, Far),
    /// Nobody waits for it.
    Unasked,
}

impl<Client, Far> Attempts<Client, Far> {
    /// Begins one in the place of an older one, which is handed back.
    pub(super) fn begin(&mut self, flow: Flow) -> (Attempt, Option<Entry<Client, Far>>) {
        self.made += 1;
        let (id, (sender, alive)) = (self.made, watch::channel(()));
        let entry = Entry { id, halves: Halves::Neither, opened: false, alive: sender };
        (Attempt { flow, id, alive }, self.of.insert(flow, entry))
    }

    /// A client was accepted.
    pub(super) fn client(&mut self, flow: Flow, client: Client) -> Half<Client, Far> {
        let Some(entry) = self.of.get_mut(&flow) else { return Half::Unasked };
        let attempt = Attempt { flow, id: entry.id, alive: entry.alive.subscribe() };
        match std::mem::replace(&mut entry.halves, Halves::Carried) {
            Halves::Far(far) => Half::Both(attempt, client, far),
            Halves::Neither => {
                entry.halves = Halves::Client(client);
                Half::Waits(attempt)
            }
            // A second one between the same ends was not asked for.
            first @ (Halves::Client(_) | Halves::Carried) => {
                entry.halves = first;
                Half::Unasked
            }
        }
    }

    /// The far side stands, or will.
    pub(super) fn far(&mut self, attempt: &Attempt, far: Far) -> Half<Client, Far> {
        let Some(entry) = self.current(attempt) else { return Half::Unasked };
        match std::mem::replace(&mut entry.halves, Halves::Carried) {
            Halves::Client(client) => Half::Both(attempt.clone(), client, far),
            Halves::Neither => {
                entry.halves = Halves::Far(far);
                Half::Waits(attempt.clone())
            }
            first @ (Halves::Far(_) | Halves::Carried) => {
                entry.halves = first;
                Half::Unasked
            }
        }
    }

    /// The far side has taken it; whether that still matters.
    pub(super) fn opened(&mut self, attempt: &Attempt) -> bool {
        self.current(attempt).map(|entry| entry.opened = true).is_some()
    }

    /// Ends it, if it is still the one.
    pub(super) fn end(&mut self, attempt: &Attempt) -> Option<Entry<Client, Far>> {
        self.current(attempt)?;
        self.of.remove(&attempt.flow)
    }

    /// Ends it, if it is still the one and a half of it has come alone.
    pub(super) fn end_alone(&mut self, attempt: &Attempt) -> Option<Entry<Client, Far>> {
        match self.current(attempt)?.halves {
            Halves::Client(_) | Halves::Far(_) => self.of.remove(&attempt.flow),
            Halves::Neither | Halves::Carried => None,
        }
    }

    /// Ends whichever there is for `flow`.
    pub(super) fn abort(&mut self, flow: Flow) -> Option<Entry<Client, Far>> {
        self.of.remove(&flow)
    }

    /// How many have both halves.
    pub(super) fn carried(&self) -> usize {
        self.of.values().filter(|entry| matches!(entry.halves, Halves::Carried)).count()
    }

    fn current(&mut self, attempt: &Attempt) -> Option<&mut Entry<Client, Far>> {
        self.of.get_mut(&attempt.flow).filter(|entry| entry.id == attempt.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow { client: "10.1.0.2:1000".parse().unwrap(), server: "10.2.0.2:993".parse().unwrap() }
    }

    #[test]
    fn the_halves_meet_in_either_order() {
        for client_first in [true, false] {
            let mut attempts = Attempts::<&str, &str>::default();
            let (attempt, older) = attempts.begin(flow());
            assert!(older.is_none());
            let (first, second) = if client_first {
                (attempts.client(flow(), "client"), attempts.far(&attempt, "far"))
            } else {
                (attempts.far(&attempt, "far"), attempts.client(flow(), "client"))
            };
            assert!(matches!(first, Half::Waits(_)));
            assert!(matches!(second, Half::Both(_, "client", "far")));
            assert_eq!(attempts.carried(), 1);
            assert!(matches!(attempts.client(flow(), "another"), Half::Unasked));
            assert!(attempts.end_alone(&attempt).is_none(), "it is not alone");
            assert!(attempts.opened(&attempt));
            assert!(attempts.end(&attempt).is_some_and(|entry| entry.opened));
            assert!(attempts.end(&attempt).is_none(), "it ends once");
        }
    }

    #[test]
    fn what_belongs_to_an_older_attempt_is_let_go() {
        let mut attempts = Attempts::<&str, &str>::default();
        let (older, _) = attempts.begin(flow());
        assert!(matches!(attempts.client(flow(), "client"), Half::Waits(_)));
        let (newer, left) = attempts.begin(flow());
        assert!(matches!(left.unwrap().halves, Halves::Client("client")));
        assert!(matches!(attempts.far(&older, "far"), Half::Unasked));
        assert!(!attempts.opened(&older));
        assert!(attempts.end(&older).is_none() && attempts.end_alone(&older).is_none());
        assert!(matches!(attempts.far(&newer, "far"), Half::Waits(_)));
        assert!(attempts.end_alone(&newer).is_some());
        assert!(matches!(attempts.client(flow(), "late"), Half::Unasked), "nobody opens anything for it");
    }

    /// Also between the moment at which both halves are taken and the first turn of the task that carries them.
    #[tokio::test]
    async fn an_abort_reaches_whoever_holds_the_attempt() {
        let mut attempts = Attempts::<&str, &str>::default();
        let (attempt, _) = attempts.begin(flow());
        attempts.client(flow(), "client");
        let Half::Both(carried, ..) = attempts.far(&attempt, "far") else { panic!("both are here") };
        let over = tokio::time::timeout(std::time::Duration::from_millis(10), carried.over()).await;
        assert!(over.is_err(), "over before its end");
        drop(attempts.abort(flow()));
        carried.over().await;
        attempt.over().await;
        assert_eq!(attempts.carried(), 0);
    }
}
