//! Whether new connections are taken: the one place where the rules change while the node runs. Three want something of
//! it, the operator (`bypass`), the watchdog and the node's end; what is in force follows from all of them, and is tried
//! again until it is. The engine is told before packets stop coming and after they come again, so that it never orders
//! what the rules do not deliver.

use discovery_core::engine::Event;
use discovery_linux::{
    netd::Handle,
    rules::{Extent, Rules, RulesError},
};
use std::{
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

/// See the module's documentation. Everything here may wait for tools of the system.
pub(super) struct Switch {
    handle: Handle,
    state: Mutex<State>,
}

struct State {
    /// None once they are gone for good.
    rules: Option<Rules>,
    in_force: Extent,
    wanted: Wanted,
}

/// What is wanted, by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// The operator wants nothing taken.
    bypassed: bool,
    /// The watchdog has seen something stand still.
    still: bool,
    /// The node is about to end.
    leaving: bool,
}

impl Wanted {
    fn extent(self) -> Extent {
        if self.bypassed || self.still || self.leaving { Extent::Drain } else { Extent::Full }
    }
}

impl Switch {
    /// Of rules that stand in full.
    pub(super) fn new(handle: Handle, rules: Rules) -> Self {
        let state = State { rules: Some(rules), in_force: Extent::Full, wanted: Wanted::default() };
        Self { handle, state: Mutex::new(state) }
    }

    /// What the operator wants. `false` when there is nothing to switch any more.
    pub(super) fn bypass(&self, on: bool) -> Result<bool, RulesError> {
        let mut state = self.lock();
        if state.rules.is_none() || state.wanted.leaving {
            return Ok(false);
        }
        state.wanted.bypassed = on;
        self.follow(&mut state).map(|_| true)
    }

    /// What the watchdog sees, each time that it looks. Whether that has changed anything.
    pub(super) fn stands_still(&self, still: bool) -> Result<bool, RulesError> {
        let mut state = self.lock();
        state.wanted.still = still;
        self.follow(&mut state)
    }

    /// Nothing new is taken any more.
    pub(super) fn leave(&self) -> Result<(), RulesError> {
        let mut state = self.lock();
        state.wanted.leaving = true;
        self.follow(&mut state).map(drop)
    }

    /// Takes everything out of the kernel, for good.
    pub(super) fn remove(&self) -> Result<(), RulesError> {
        let mut state = self.lock();
        match state.rules.take() {
            Some(mut rules) => rules.remove(),
            None => Ok(()),
        }
    }

    /// Puts back what somebody else has changed; how many parts.
    pub(super) fn mend(&self) -> Result<u32, RulesError> {
        self.lock().rules.as_mut().map_or(Ok(0), Rules::verify)
    }

    /// Whether the operator has switched it off.
    pub(super) fn is_bypassed(&self) -> bool {
        self.lock().wanted.bypassed
    }

    fn follow(&self, state: &mut State) -> Result<bool, RulesError> {
        let extent = state.wanted.extent();
        let Some(rules) = state.rules.as_mut().filter(|_| extent != state.in_force) else { return Ok(false) };
        match extent {
            Extent::Drain => {
                self.handle.tell(Event::Bypass { on: true });
                if !state.wanted.still {
                    self.wait_until_heard();
                }
                rules.set(extent)?;
            }
            Extent::Full => {
                rules.set(extent)?;
                self.handle.tell(Event::Bypass { on: false });
            }
        }
        state.in_force = extent;
        Ok(true)
    }

    fn wait_until_heard(&self) {
        let (heard, hears) = mpsc::channel();
        self.handle.with(move |_, _, _| {
            let _gone = heard.send(());
        });
        let _hangs = hears.recv_timeout(HEARS_WITHIN);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A loop that hangs hears nothing, and orders nothing either.
const HEARS_WITHIN: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_wants_nothing_taken_gets_it() {
        for bits in 0..8_u8 {
            let wanted = Wanted { bypassed: bits & 1 != 0, still: bits & 2 != 0, leaving: bits & 4 != 0 };
            let full = wanted.extent() == Extent::Full;
            assert_eq!(full, bits == 0, "{wanted:?}");
        }
    }
}
