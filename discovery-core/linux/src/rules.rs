//! Who is queued, what is delivered here: firewall rules, policy routes, kernel settings.
//!
//! A [`Plan`] says what a node wants in its network namespace; pure functions turn it into the texts that `nft`,
//! `iptables-nft-restore` and `ip` read; [`Rules`] runs them. Everything carries the instance's name, so that two
//! nodes in one namespace (an old one that drains, a new one) keep apart, and so that what a killed process left
//! behind is found again.
//!
//! The order of hooks, all of it needed:
//! ```text
//! prerouting      -320  what is no SYN, of connections that nobody knows ──> mark 0x800, which is queued too
//! raw prerouting  -300  SYN, SYN-ACK, bare RST ──> queue (bypassed when nobody reads it)
//! mangle          -150  mark 2 ──> the transparent listener; a transparent socket's packets ──> mark 1
//! routing               mark 1 ──> table with 'everything is local'
//! raw output      -300  mark 0x10: not tracked; SYN with mark 0x20 ──> queue
//! ```

mod apply;
mod datagrams;
mod deflector;
mod existing;
mod nft;
mod plan;
mod routes;
mod sysctl;
mod xtables;

pub use apply::{Backend, Rules, RulesError};
pub use deflector::Deflecting;
pub use existing::ExistingFilter;
pub use plan::{BadPlan, Extent, Host, Instance, Interface, Listen, Mode, Plan, PlanSpec};
pub use sysctl::{SysctlError, forwarding_off};
