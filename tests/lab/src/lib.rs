//! Network namespaces, a WAN emulator, real mail servers and real clients: what the demo, the end-to-end tests and
//! the benches run in. Needs root; touches nothing outside namespaces and directories of its own.

pub mod clients;
pub mod corpus;
pub mod cyrus;
pub mod dovecot;
pub mod ground;
pub mod leftovers;
pub mod net;
pub mod pki;
pub mod power_cut;
pub mod rng;
pub mod server;
pub mod sys;
pub mod wan;

pub use corpus::Corpus;
pub use cyrus::Cyrus;
pub use dovecot::Dovecot;
pub use ground::Ground;
pub use net::{Lab, LabSpec, Place};
pub use pki::Authority;
pub use wan::pipe::{Behaviour, LinkBehaviour, LinkCounters};
pub use wan::tun::WanHandle;
