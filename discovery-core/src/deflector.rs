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

/// How connections come to be deflected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// A client's SYN is turned to a proxy, and so is everything else of its connection in both directions.
    Static,
    /// The client's node was told the proxy; only what the server says to the client is turned.
    Discovering,
}
