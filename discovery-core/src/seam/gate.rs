//! Background work asks before each slice; the answer keeps people in front.

use crate::{id::ServerId, now::Now, value::Class};
use std::time::Instant;

/// Why background work may not run at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// The operator turned it off.
    Off,
    /// The budget of this server or link is spent.
    Budget,
}

/// The gate's answer for one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Send it now.
    Go,
    /// Ask again then.
    Wait(Instant),
    /// Do not ask again for this work.
    Never(Why),
}

/// Decides when work that nobody waits for may use the WAN.
pub trait BackgroundGate: Send + Sync {
    /// May `octets` of `class` move between here and `server` now?
    fn ask(&self, class: Class, server: &ServerId, octets: u32, now: Now) -> Grant;
    /// A person's command to `server` is under way (`true`) or done (`false`).
    fn foreground(&self, server: &ServerId, active: bool, now: Now);
    /// Until when background octets that are under way between here and `server` should stand still, as far as is
    /// known: a person's are. `None`: they need not.
    fn standstill(&self, _server: &ServerId, _now: Now) -> Option<Instant> {
        None
    }
}
