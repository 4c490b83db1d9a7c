//! What happens when a peer opens a stream.

use bytes::Bytes;
use discovery_core::{id::NodeId, pmt, rule::Prefix};
use seams::{AsyncIo, BoxFuture};
use std::fmt;
use wan_core::{OpenFrame, Reason, mutants};

/// Serves what peers ask for.
pub trait StreamOpener: Send + Sync {
    /// Connects to what `open` asks for.
    fn open(&self, peer: NodeId, open: OpenFrame) -> BoxFuture<'_, Result<OpenedStream, Reason>>;
}

/// The other end of a peer's stream.
pub struct OpenedStream {
    /// Its octets.
    pub io: Box<dyn AsyncIo>,
    /// What the opener is told; at most 8 KiB.
    pub info: Bytes,
}

impl fmt::Debug for OpenedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedStream").field("info", &self.info).finish_non_exhaustive()
    }
}

/// What a peer may open, asked before [`StreamOpener`]. A peer's authority has been asked already.
pub trait Grants: Send + Sync {
    /// Whether `peer` may.
    ///
    /// # Errors
    /// Why not, as the peer is told.
    fn may_open(&self, peer: &NodeId, open: &OpenFrame) -> Result<(), Reason>;
}

/// Every peer may open everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllGranted;

impl Grants for AllGranted {
    fn may_open(&self, _: &NodeId, _: &OpenFrame) -> Result<(), Reason> {
        Ok(())
    }
}

/// Whether an authority's prefixes hold all servers of a network.
pub(crate) fn covers(prefixes: Option<&[Prefix]>, network: &pmt::Prefix) -> bool {
    let holds = |prefix: &Prefix| prefix.contains(network.address()) && prefix.length() <= network.bits();
    mutants::on("link-told-beyond") || prefixes.is_none_or(|prefixes| prefixes.iter().any(holds))
}

/// What an authority's prefixes say of a server.
pub(crate) fn within(prefixes: Option<&[Prefix]>, open: &OpenFrame) -> Result<(), Reason> {
    let server = open.flow.server.ip();
    match prefixes {
        Some(prefixes)
            if !prefixes.iter().any(|prefix| prefix.contains(server))
                && !mutants::on("link-prefixes-ignored") =>
        {
            Err(Reason::NotGranted)
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partner_tells_of_its_own_servers_only() {
        let prefixes = ["10.9.0.0/16".parse().unwrap(), "fd09::/16".parse().unwrap()];
        let network = |address: &str, bits| pmt::Prefix::new(address.parse().unwrap(), bits);
        for (address, bits, covered) in [
            ("10.9.0.0", 16, true),
            ("10.9.4.0", 24, true),
            ("10.9.4.1", 32, true),
            ("10.0.0.0", 8, false),
            ("0.0.0.0", 0, false),
            ("10.8.0.0", 16, false),
            ("fd09:1::", 32, true),
            ("fd00::", 8, false),
        ] {
            assert_eq!(covers(Some(&prefixes), &network(address, bits)), covered, "{address}/{bits}");
            assert!(covers(None, &network(address, bits)), "its own authority's nodes serve anything");
        }
    }
}
