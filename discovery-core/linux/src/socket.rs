//! Sockets that speak in somebody else's name: the transparent listener, connections with the client's address,
//! packets made by hand.

mod connect;
mod listen;
mod meant;
mod raw;

pub(crate) use connect::unbound;
pub use connect::{ConnectFailure, Connecting, Target};
pub use listen::{Family, Intercepted, TransparentListener};
pub use meant::{keep_syns, meant_server};
pub use raw::{RawSender, destination};
