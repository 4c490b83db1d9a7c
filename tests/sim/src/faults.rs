//! What goes wrong, and when. A run's faults are drawn at its beginning, so that they can be left out one by one.

use crate::{
    checkers::Broken,
    random::Random,
    world::{RUN_US, World},
};
use imap_core::session::Side;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A node's process is killed; its power may go too.
    Crash,
    /// It is told to come to rest, ends, and begins anew.
    Restart,
    /// A client's connection is reset.
    ClientReset,
    /// A client says that it will say nothing more.
    ClientFinished,
    /// The origin's connection is reset.
    OriginReset,
    /// A client is there no more and nobody says so.
    ClientVanished,
    /// Nothing passes between a node and a server for a while.
    Parted,
    /// The wall clock of a node jumps.
    WallJump,
    /// Nothing fits on a node's disk for a while.
    DiskFull,
    /// One bit on a node's disk changes.
    BitFlip,
    /// A server says something that is not so.
    Lie,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Crash,
        Self::Restart,
        Self::ClientReset,
        Self::ClientFinished,
        Self::OriginReset,
        Self::ClientVanished,
        Self::Parted,
        Self::WallJump,
        Self::DiskFull,
        Self::BitFlip,
        Self::Lie,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Restart => "restart",
            Self::ClientReset => "client-reset",
            Self::ClientFinished => "client-finished",
            Self::OriginReset => "origin-reset",
            Self::ClientVanished => "client-vanished",
            Self::Parted => "parted",
            Self::WallJump => "wall-jump",
            Self::DiskFull => "disk-full",
            Self::BitFlip => "bit-flip",
            Self::Lie => "lie",
        }
    }
}

/// One fault of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// Which of the nodes, lines or servers, by remainder.
    at: usize,
    /// A number of its own, for how long, how far, which lie.
    n: usize,
}

/// The faults of a seed, with their times.
pub(crate) fn drawn(seed: u64) -> Vec<(u64, Fault)> {
    let mut random = Random::new(seed ^ 0xFA17);
    // Five runs of twelve are free of them.
    let count = random.below(12).saturating_sub(4);
    let mut faults: Vec<(u64, Fault)> = (0..count)
        .map(|_| {
            let us = 2_000_000 + random.below(usize::try_from(RUN_US).unwrap() - 8_000_000) as u64;
            let kind = *random.pick(&Kind::ALL);
            (us, Fault { kind, at: random.below(1000), n: random.below(1_000_000) })
        })
        .collect();
    faults.sort_by_key(|(us, _)| *us);
    faults
}

/// Lines that no honest server would say.
const LIES: [&str; 10] = [
    "* 0 EXPUNGE\r\n",
    "* 4000000000 EXPUNGE\r\n",
    "* 1 EXPUNGE\r\n",
    "* 1 FETCH (UID 1 BODY[] {5}\r\nhello)\r\n",
    "* 2 FETCH (UID 99999 FLAGS ())\r\n",
    "* 0 EXISTS\r\n",
    "* 4294967295 EXISTS\r\n",
    "t1 OK nobody asked\r\n",
    "* BYE go away\r\n",
    "* OK [UIDVALIDITY 99] another\r\n",
];

impl World {
    pub(crate) fn fault(&mut self, fault: Fault) -> Result<(), Broken> {
        if self.resting {
            // What a restart began may have to be ended.
            return Ok(());
        }
        let node = fault.at % self.sites.len();
        let slot = fault.at % self.lines.len();
        *self.totals.faults.entry(fault.kind.word()).or_default() += 1;
        let told = format!("{} at node {node} or line {slot}, {}", fault.kind.word(), fault.n);
        self.trace.note(self.now_us, slot, "FAULT", told.as_bytes());
        match fault.kind {
            Kind::Crash => {
                self.node_gone(node, "crash");
                let mut random = Random::new(fault.n as u64);
                self.sites[node].store.crash(&mut random, fault.n.is_multiple_of(2));
            }
            Kind::Restart => self.order(node, Duration::from_millis(fault.n as u64 % 4000))?,
            Kind::ClientReset => self.sever(slot, Side::Client, "client reset", false),
            Kind::ClientFinished => self.sever(slot, Side::Client, "client finished", true),
            // Half of what befalls an origin's connection befalls one without a client, if there is one.
            Kind::OriginReset if fault.n.is_multiple_of(2) && self.sever_kept(node, fault.n)? => {}
            Kind::OriginReset => self.sever(slot, Side::Server, "origin reset", false),
            Kind::ClientVanished => self.vanish(slot),
            Kind::Parted => {
                let server = fault.n % self.servers.len();
                let until = self.now_us + 100_000 + fault.n as u64 * 10;
                self.sites[node].parted_until[server] = until;
            }
            Kind::WallJump => {
                let jump = i64::try_from(fault.n).unwrap() * 1000;
                self.sites[node].wall_ms += if fault.at.is_multiple_of(2) { jump } else { -jump };
            }
            Kind::DiskFull => {
                let until = self.now_us + fault.n as u64 * 20;
                self.sites[node].store.disk().full_until = until;
            }
            Kind::BitFlip => {
                let mut random = Random::new(fault.n as u64);
                self.sites[node].store.disk().flip(&mut random);
            }
            Kind::Lie => {
                let lie = LIES[fault.n % LIES.len()];
                if !(fault.at.is_multiple_of(2) && self.lie_to_kept(node, fault.n, lie)) {
                    self.lie(slot, lie);
                }
            }
        }
        Ok(())
    }
}
