//! The kernel's NFQUEUE over netlink.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::wire::{self, Batch, Message, Outgoing, PacketId};
use super::{PacketQueue, QueueCounters, Verdict};
use crate::sys;

/// How a queue is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// Its number, which the rules name.
    pub number: u16,
    /// How many octets of each packet are copied. A packet with more comes cut, and can only be passed or dropped.
    pub copy_octets: u32,
    /// How many packets wait at most; further ones flow untouched.
    pub packets_max: u32,
    /// The socket's buffer, in octets.
    pub buffer_octets: u32,
    /// How many packets one call takes.
    pub batch_packets: usize,
}

impl QueueSettings {
    /// For SYNs and SYN-ACKs. One that carries data (RFC 7413) fits a frame of 1,500 octets.
    #[must_use]
    pub fn handshakes(number: u16) -> Self {
        Self { number, copy_octets: 2048, packets_max: 8192, buffer_octets: 8 << 20, batch_packets: 64 }
    }

    /// For whole segments, too, of connections that are watched: the kernel's stack gives several as one, and none of
    /// a fast connection may be missed.
    #[must_use]
    pub fn segments(number: u16) -> Self {
        // More packets than the buffer has room for, which counts a kernel's bookkeeping of some 250 octets for the
        // shortest too: one that finds no room leaves a gap in their numbers, which shows, and one too many does not.
        Self {
            copy_octets: 0xffff,
            packets_max: 1 << 20,
            buffer_octets: 64 << 20,
            ..Self::handshakes(number)
        }
    }

    /// Room for a batch of this queue's packets.
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch::new(self.batch_packets, self.copy_octets)
    }
}

/// A bound queue. Dropped, it gives the queue up: what the kernel still holds of it is lost, what comes later flows
/// untouched. [`PacketQueue::close`] loses nothing.
#[derive(Debug)]
pub struct NfQueue {
    socket: Socket,
    settings: QueueSettings,
    out: Outgoing,
    /// What an early sending met; the next flush reports it.
    lost: Option<io::Error>,
    counters: QueueCounters,
}

impl NfQueue {
    /// Binds a queue in the thread's network namespace.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN or when another socket has the queue (both EPERM); when the kernel has no NFQUEUE.
    pub fn open(settings: QueueSettings) -> io::Result<Self> {
        let netlink = Domain::from(libc::AF_NETLINK);
        let socket = Socket::new(netlink, Type::RAW, Some(Protocol::from(libc::NETLINK_NETFILTER)))?;
        sys::set_no_enobufs(socket.as_fd())?;
        sys::force_receive_buffer(socket.as_fd(), settings.buffer_octets)?;
        socket.set_nonblocking(true)?;
        let (out, counters) = (Outgoing::default(), QueueCounters::default());
        let mut queue = Self { socket, settings, out, lost: None, counters };
        let number = settings.number;
        queue.request(|out| out.bind(number))?;
        // Flags before the copy range: from then on packets are queued, and must not be dropped on overflow.
        queue.request(|out| out.bounds(number, settings.packets_max))?;
        queue.request(|out| out.copy(number, settings.copy_octets))?;
        Ok(queue)
    }

    /// One request, and its answer. Packets cannot come in between: before the copy range is set none are queued,
    /// and at the end they are left to the kernel.
    fn request(&mut self, write: impl FnOnce(&mut Outgoing)) -> io::Result<()> {
        let mut out = Outgoing::default();
        write(&mut out);
        self.socket.send(out.octets())?;
        let mut room = [0; 8192];
        for _ in 0..ANSWERS_MAX {
            let mut lengths = [0];
            wait_readable(self.socket.as_fd())?;
            match sys::receive_many(self.socket.as_fd(), &mut room, 8192, &mut lengths) {
                Ok(0) => {}
                Ok(_) => {
                    let [length] = lengths;
                    if let Some(answer) = wire::answer(room.get(..length).unwrap_or_default()) {
                        return answer;
                    }
                }
                Err(error) if transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// More messages than this before an answer: somebody else is writing to our socket.
const ANSWERS_MAX: usize = 10_000;

/// One message of a netlink socket must fit its send buffer, 208 KiB by default.
const SEND_OCTETS_MAX: usize = 128 << 10;

fn wait_readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let wait = Timespec { tv_sec: 2, tv_nsec: 0 };
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&wait)) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn transient(error: &io::Error) -> bool {
    // ENOBUFS comes in spite of NETLINK_NO_ENOBUFS when the kernel has no memory for a message.
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || error.raw_os_error() == Some(libc::ENOBUFS)
}

impl AsFd for NfQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl PacketQueue for NfQueue {
    fn receive(&mut self, batch: &mut Batch) -> io::Result<()> {
        batch.filled = 0;
        self.counters.receives += 1;
        let received =
            sys::receive_many(self.socket.as_fd(), &mut batch.slots, batch.slot_octets, &mut batch.lengths);
        match received {
            Ok(filled) => batch.filled = filled,
            Err(error) if transient(&error) => {}
            Err(error) => return Err(error),
        }
        for message in batch.messages() {
            match message {
                Message::Packet(_) => self.counters.packets += 1,
                Message::Error(0) | Message::Other => {}
                Message::Error(_) => self.counters.refused += 1,
                Message::Garbled => self.counters.garbled += 1,
            }
        }
        Ok(())
    }

    fn verdict(&mut self, packet: PacketId, verdict: Verdict<'_>) {
        self.out.verdict(self.settings.number, packet, verdict);
        if self.out.octets().len() >= SEND_OCTETS_MAX {
            self.lost = self.send().err();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.lost.take() {
            Some(error) => Err(error),
            None => self.send(),
        }
    }

    fn counters(&self) -> QueueCounters {
        self.counters
    }

    fn close(mut self) -> io::Result<()> {
        let mut batch = self.settings.batch();
        // As many as may wait, by batches, and a few for what came meanwhile.
        for _ in 0..self.settings.packets_max / 8 + 8 {
            self.receive(&mut batch)?;
            if batch.is_empty() {
                break;
            }
            for packet in batch.packets() {
                self.verdict(packet.id, Verdict::Accept);
            }
            self.flush()?;
        }
        let number = self.settings.number;
        self.request(|out| out.unbind(number))
    }
}

impl NfQueue {
    fn send(&mut self) -> io::Result<()> {
        if self.out.octets().is_empty() {
            return Ok(());
        }
        self.counters.sends += 1;
        let sent = self.socket.send(self.out.octets());
        self.out.clear();
        match sent {
            Ok(_) => Ok(()),
            // The kernel took the messages and reports on one of them.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.counters.refused += 1;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
