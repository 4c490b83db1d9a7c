//! Telling the origin whose client this is. Many clients come from one address, this node's; a server that counts wrong
//! passwords by address would then make all of them wait for one. Dovecot believes the address in an ID (RFC 2971) that
//! comes from a network it trusts, and only the first one: so ours goes before anything of the client's.

use super::underway::Own;
use crate::framer::Frame;
use std::net::SocketAddr;

impl super::Session {
    /// The origin is told that this is `client`, together with the first words of it.
    pub fn announce_client(&mut self, client: SocketAddr) {
        self.announce = Some(client);
    }

    /// Sends what is owed of that.
    pub(super) fn announce(&mut self) {
        let Some(client) = self.announce.take() else { return };
        // A server without ID counts it as a mistake; one that has not said what it can do is one the operator chose.
        if self.is_secret() && (self.capabilities.is_empty() || self.capabilities.has("ID")) {
            let tag = self.flights.own(Own::ClientAddress);
            let (ip, port) = (client.ip().to_canonical(), client.port());
            let id =
                format!("{tag} ID (\"x-originating-ip\" \"{ip}\" \"x-originating-port\" \"{port}\")\r\n");
            self.send(id.into());
        }
    }

    pub(super) fn announces(&self) -> bool {
        self.flights.owns(|own| *own == Own::ClientAddress)
    }

    /// The origin's own ID in answer to ours, which the client did not ask for.
    pub(super) fn skip_id(&mut self, frame: &Frame) {
        self.skip_rest(frame);
    }
}
