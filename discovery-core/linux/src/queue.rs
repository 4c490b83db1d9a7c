//! The packet queue: packets that the rules put aside come in, verdicts go back.
//!
//! A verdict is written down and sent with others by [`PacketQueue::flush`]: many fit in one call, and the kernel
//! resumes the packets inside it.

mod coalesce;
mod nfqueue;
mod wire;

use std::io;
use std::os::fd::AsFd;

pub use coalesce::Coalesce;
pub use nfqueue::{NfQueue, QueueSettings};
pub use wire::{Batch, Hook, PacketId, QueuedPacket, Vlan};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Goes on, as it is.
    Accept,
    /// Goes on with these octets, network header first. Only for a packet that was queued whole.
    Replace(&'a [u8]),
    /// Goes on under another mark.
    Mark(u32),
    /// Goes on with these octets under another mark.
    ReplaceAndMark(&'a [u8], u32),
    /// Ends here, silently.
    Drop,
}

/// What went by, since the queue was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Packets handed out.
    pub packets: u64,
    /// Messages that could not be read. Their packets, if they were any, stay with the kernel.
    pub garbled: u64,
    /// Verdicts that the kernel refused: the packet was gone.
    pub refused: u64,
    /// Calls that received.
    pub receives: u64,
    /// Calls that sent.
    pub sends: u64,
}

/// Where queued packets come from. Its descriptor is readable when some wait.
pub trait PacketQueue: AsFd {
    /// Takes what waits, at most a batch, without blocking; an empty batch when nothing waits.
    ///
    /// # Errors
    /// When the queue is lost: its packets then flow untouched, and only a new one helps.
    fn receive(&mut self, batch: &mut Batch) -> io::Result<()>;

    /// Writes a verdict down. Each packet needs exactly one, before the next batch is taken; but for the few that wait for
    /// what becomes of an adoption, which keep their places in the kernel's queue.
    fn verdict(&mut self, packet: PacketId, verdict: Verdict<'_>);

    /// Sends the verdicts written down.
    ///
    /// # Errors
    /// When the queue is lost.
    fn flush(&mut self) -> io::Result<()>;

    /// What went by.
    fn counters(&self) -> QueueCounters;

    /// Lets everything that waits flow on, then gives the queue up. The rules should be out: else new packets keep
    /// coming until the queue is given up, and those in between are lost.
    ///
    /// # Errors
    /// When the queue was lost before.
    fn close(self) -> io::Result<()>;
}
