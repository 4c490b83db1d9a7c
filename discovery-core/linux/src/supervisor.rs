//! Watches over the process that has the rights, and owns the rules that lead traffic to it.
//!
//! A hung reader of a packet queue is not bypassed: a SYN waits for ever in front of it. So a process of its own, that
//! does nothing else, takes the rules out when the work loop stays silent (the patent's watchdog of the network card),
//! ends a worker that stays so, and starts a new one. [`Watch`] decides, [`supervise`] does.
//!
//! The worker has one end of a socket pair as its standard input ([`Supervised`]). There it says that its work loop turns,
//! and where its listeners are; there it is told what it shall do, and learns that its supervisor is gone.

mod run;
mod supervised;
mod watch;
mod words;

pub use run::{Care, Control, Controlled, Fate, Over, Report, SuperviseError, supervise};
pub use supervised::{Supervised, Watched};
pub use watch::{Order, Phase, Watch, WatchSettings};
pub use words::Wish;
