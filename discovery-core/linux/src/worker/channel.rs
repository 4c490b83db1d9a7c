//! A channel on which neither end ever waits for the other: what does not fit now is kept until it does.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::words::MESSAGE_OCTETS_MAX;
use crate::sys;

/// The two ends of a channel between netd and its worker.
///
/// # Errors
/// When descriptors run out.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for end in [&one, &other] {
        // The system's own room holds some 200 messages. Without the right to more, the rest is kept here.
        let _kept = sys::force_send_buffer(end.as_fd(), ROOM_OCTETS);
    }
    Ok((one, other))
}

/// One end.
#[derive(Debug)]
pub(super) struct Channel {
    fd: OwnedFd,
    kept: Mutex<VecDeque<Message>>,
}

/// Octets, and descriptors beside them.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) octets: Vec<u8>,
    pub(super) beside: Vec<OwnedFd>,
}

/// What [`Channel::receive`] found.
#[derive(Debug)]
pub(super) enum Received {
    Message(Message),
    /// Nothing yet.
    Nothing,
    Gone,
}

impl Channel {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd, kept: Mutex::default() }
    }

    /// Sends, now or later. What the other end is too slow for, or gone, is forgotten: see [`KEPT_MAX`].
    pub(super) fn send(&self, octets: Vec<u8>, beside: Vec<OwnedFd>) {
        let mut kept = self.kept();
        if kept.len() < KEPT_MAX {
            kept.push_back(Message { octets, beside });
        }
        self.send_kept(&mut kept);
    }

    /// Sends what was kept, as far as there is room.
    pub(super) fn flush(&self) {
        let mut kept = self.kept();
        if !kept.is_empty() {
            self.send_kept(&mut kept);
        }
    }

    fn send_kept(&self, kept: &mut VecDeque<Message>) {
        while let Some(message) = kept.front() {
            match send(self.fd.as_fd(), message) {
                Ok(()) => drop(kept.pop_front()),
                // Too many descriptors are on their way.
                Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::TOOMANYREFS) => return,
                Err(_) => return kept.clear(),
            }
        }
    }

    /// What has come next.
    pub(super) fn receive(&self) -> Received {
        let mut room = [0; MESSAGE_OCTETS_MAX];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut vectors = [IoSliceMut::new(&mut room)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let length = match recvmsg(&self.fd, &mut vectors, &mut control, flags) {
            Ok(message) => message.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
            Err(_) => return Received::Gone,
        };
        let mut beside = Vec::new();
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = ancillary {
                beside.extend(descriptors);
            }
        }
        match room.get(..length) {
            None | Some([]) => Received::Gone,
            Some(octets) => Received::Message(Message { octets: octets.to_vec(), beside }),
        }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn send(fd: BorrowedFd<'_>, message: &Message) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let beside: Vec<BorrowedFd<'_>> = message.beside.iter().map(AsFd::as_fd).collect();
    if !beside.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&beside));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(fd, &[IoSlice::new(&message.octets)], &mut control, flags).map(drop)
}

/// Each message counts with what the kernel keeps beside it, some 700 octets.
const ROOM_OCTETS: u32 = 1 << 20;
/// More than the engine has flows. One that reads nothing for so long is about to be ended.
const KEPT_MAX: usize = 1 << 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_or_reordered_when_the_other_end_does_not_read() {
        let (one, other) = pair().unwrap();
        let (one, other) = (Channel::new(one), Channel::new(other));
        let count = 20_000_u32;
        for n in 0..count {
            let beside = if n.is_multiple_of(1000) { vec![pair().unwrap().0] } else { Vec::new() };
            one.send(n.to_be_bytes().to_vec(), beside);
        }
        assert!(!one.kept().is_empty(), "control: all of it fits into the kernel");
        let mut next = 0_u32;
        while next < count {
            match other.receive() {
                Received::Message(message) => {
                    assert_eq!(message.octets, next.to_be_bytes());
                    assert_eq!(message.beside.len(), usize::from(next.is_multiple_of(1000)));
                    next += 1;
                }
                Received::Nothing => one.flush(),
                Received::Gone => panic!("gone"),
            }
        }
        drop(one);
        assert!(matches!(other.receive(), Received::Gone));
        other.send(vec![1], Vec::new());
        assert!(other.kept().is_empty(), "kept for nobody");
    }
}
