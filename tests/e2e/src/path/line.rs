//! A client, servers, and what is seen of their handshakes on the way.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use lab::Ground;

use super::capture::{Capture, Packet, settle};
use super::ends::{Client, ECHO, both, serve};

/// A client and servers on a ground, watched: at the client, at the server, and behind the first node.
pub(crate) struct Line<'g> {
    ground: &'g Ground,
    pub(crate) servers: [SocketAddr; 2],
    at_client: Capture,
    at_server: Capture,
    on_wan: Capture,
}

impl<'g> Line<'g> {
    /// On a row from `c` to `s`, the last network's host 2.
    pub(crate) fn row(ground: &'g Ground, network: u8, first: &str) -> anyhow::Result<Self> {
        Self::on(ground, both(network, 2, ECHO), [("c", "right"), ("s", "left"), (first, "right")])
    }

    /// With servers in `s`, watched at these devices.
    pub(crate) fn on(
        ground: &'g Ground,
        servers: [SocketAddr; 2],
        watched: [(&str, &str); 3],
    ) -> anyhow::Result<Self> {
        serve(ground, "s", &servers)?;
        ground.warm_up("c", &servers.map(|server| server.ip()))?;
        let mut captures = Capture::several(ground, &watched)?;
        let (on_wan, at_server, at_client) = (captures.pop(), captures.pop(), captures.pop());
        let there = "three captures";
        Ok(Self {
            ground,
            servers,
            at_client: at_client.context(there)?,
            at_server: at_server.context(there)?,
            on_wan: on_wan.context(there)?,
        })
    }

    /// Forgets what was seen so far.
    pub(crate) fn forget(&self) {
        settle();
        for capture in [&self.at_client, &self.at_server, &self.on_wan] {
            drop(capture.now());
        }
    }

    /// One connection to each family's server, whole; what was seen is for whoever looks next.
    pub(crate) fn connections(&self) -> anyhow::Result<()> {
        self.forget();
        for server in self.servers {
            Client::whole(self.ground, "c", server)?;
        }
        Ok(())
    }

    /// The ends saw one handshake for each connection, between each other's addresses and with nothing of ours in what
    /// the client gets. How many SYNs of them were on the first line behind the first node, and how many with the query.
    pub(crate) fn seen_at_the_ends(&self) -> anyhow::Result<(usize, usize)> {
        self.seen_of(&self.servers)
    }

    /// The same of connections to these.
    pub(crate) fn seen_of(&self, servers: &[SocketAddr]) -> anyhow::Result<(usize, usize)> {
        let (client, server) = (self.at_client.take(), self.at_server.now());
        for address in servers.iter().copied() {
            let of = |packets: &[Packet], wanted: fn(&Packet) -> bool| -> Vec<Packet> {
                let ours = |p: &&Packet| (p.to == address || p.from == address) && wanted(p);
                packets.iter().filter(ours).cloned().collect()
            };
            let (syns, answers) = (of(&client, Packet::is_syn), of(&client, Packet::is_answer));
            let (at_server, accepted) = (of(&server, Packet::is_syn), of(&server, Packet::is_answer));
            let (Some(syn), Some(answer)) = (syns.first(), answers.first()) else {
                anyhow::bail!("{address}: no handshake at the client: {client:?}");
            };
            ensure!(syns.len() == 1 && answers.len() == 1, "{address}: at the client: {client:?}");
            ensure!(!syn.probe && !answer.probe, "{address}: an option of ours at the client: {client:?}");
            ensure!(at_server.len() == 1 && accepted.len() == 1, "{address}: at the server: {server:?}");
            ensure!(at_server.iter().all(|packet| packet.from == syn.from), "{address}: {server:?}");
        }
        Ok(Self::counted(&self.on_wan.now()))
    }

    /// What the client's device saw since it was last asked.
    pub(crate) fn at_the_client(&self) -> Vec<Packet> {
        self.at_client.take()
    }

    /// What the server's device saw since it was last asked.
    pub(crate) fn at_the_server(&self) -> Vec<Packet> {
        self.at_server.take()
    }

    /// How many SYNs were on the line behind the first node, and how many with the query.
    pub(crate) fn seen_behind_the_first(&self) -> (usize, usize) {
        Self::counted(&self.on_wan.take())
    }

    fn counted(wan: &[Packet]) -> (usize, usize) {
        let syns = wan.iter().filter(|packet| packet.is_syn());
        (syns.clone().count(), syns.filter(|packet| packet.probe).count())
    }
}
