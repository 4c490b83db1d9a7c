//! The connection deflector (US 9,172,620, 'connection deflector'): a node on the path that only turns packets towards
//! proxies that are not. Which proxy has which connection is kept in [`legs`]; the packets are turned by the shell.
//!
//! ```text
//! static:       client ─► deflector ═► proxy ─► server        two rules: the way there, and the way back
//!                            ▲═══════════════════╛
//! discovering:  client ─► CP ═link═► proxy ─► server          one rule: the way back from the server
//!                                      ▲═ deflector ◄╛
//! ```

pub mod control;
pub mod legs;

use crate::mutants;
use control::By;

/// How connections come to be deflected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// A client's SYN is turned to a proxy, and so is everything else of its connection in both directions.
    Static,
    /// The client's node was told the proxy; only what the server says to the client is turned.
    Discovering,
}

impl Mode {
    /// Whether a proxy may reach a server for a client that came to it so. `meant`: the client was turned to it, and meant
    /// this server.
    #[must_use]
    pub fn may_reach(self, by: By, meant: bool) -> bool {
        match (self, by) {
            (Self::Static, By::Port | By::Stream) => meant,
            (Self::Discovering, By::Stream) => true,
            // No client is turned: whoever is at the proxy's port came there by himself.
            (Self::Discovering, By::Port) => mutants::on("deflector-open-relay"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_by_himself_reaches_nothing() {
        for (mode, by, meant, expected) in [
            (Mode::Static, By::Port, true, true),
            (Mode::Static, By::Port, false, false),
            (Mode::Static, By::Stream, false, false),
            (Mode::Discovering, By::Stream, false, true),
            (Mode::Discovering, By::Port, false, false),
            (Mode::Discovering, By::Port, true, false),
        ] {
            assert_eq!(mode.may_reach(by, meant), expected, "{mode:?} {by:?} {meant}");
        }
    }
}
