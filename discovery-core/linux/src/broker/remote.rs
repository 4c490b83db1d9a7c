//! The broker across a process boundary: both ends of the channel.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use discovery_core::flow::Flow;
use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair, sockopt,
};

use super::wire::{self, REPLY_OCTETS, REQUEST_OCTETS, Wanted};
use super::{BrokerError, SocketBroker};
use crate::socket::{Family, Target};

/// The two ends of a channel: one is inherited by, or sent to, the process that asks.
///
/// # Errors
/// When descriptors run out.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Asks another process. One question at a time; an answer takes as long as making a socket.
#[derive(Debug)]
pub struct RemoteBroker {
    channel: Mutex<Channel>,
}

#[derive(Debug)]
struct Channel {
    fd: OwnedFd,
    next: u32,
}

impl RemoteBroker {
    /// Over this end of a channel.
    ///
    /// # Errors
    /// When it is no socket.
    pub fn new(channel: OwnedFd) -> io::Result<Self> {
        sockopt::set_socket_timeout(&channel, sockopt::Timeout::Recv, Some(ANSWER_MAX))?;
        sockopt::set_socket_timeout(&channel, sockopt::Timeout::Send, Some(ANSWER_MAX))?;
        Ok(Self { channel: Mutex::new(Channel { fd: channel, next: 0 }) })
    }

    fn ask(&self, wanted: Wanted) -> Result<OwnedFd, BrokerError> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.next = channel.next.wrapping_add(1);
        let id = channel.next;
        send(channel.fd.as_fd(), &wire::request(id, wanted), None, SendFlags::empty())
            .map_err(|_| BrokerError::Closed)?;
        loop {
            let mut room = [0; REPLY_OCTETS + 1];
            let (length, descriptor) =
                receive(channel.fd.as_fd(), &mut room).map_err(|_| BrokerError::Closed)?;
            let reply = room.get(..length).and_then(wire::read_reply).ok_or(BrokerError::Closed)?;
            match (reply, descriptor) {
                // The answer to a question that was given up.
                ((other, _), _) if other != id => {}
                ((_, Ok(())), Some(descriptor)) => return Ok(descriptor),
                ((_, Ok(())), None) => return Err(BrokerError::Closed),
                ((_, Err(error)), _) => return Err(error),
            }
        }
    }
}

/// A process that does not answer for so long is being ended by its supervisor.
const ANSWER_MAX: Duration = Duration::from_secs(2);

impl SocketBroker for RemoteBroker {
    fn listener(&self, family: Family) -> Result<OwnedFd, BrokerError> {
        self.ask(Wanted::Listener(family))
    }

    fn untouched(&self, family: Family) -> Result<OwnedFd, BrokerError> {
        self.ask(Wanted::Untouched(family))
    }

    fn listen(&self, at: SocketAddr) -> Result<OwnedFd, BrokerError> {
        self.ask(Wanted::Listen(at))
    }

    fn connect(&self, flow: Flow, target: Target) -> Result<OwnedFd, BrokerError> {
        self.ask(Wanted::Connect(flow, target))
    }
}

/// What [`serve`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// A question, and answered it.
    Answered,
    /// Nothing yet.
    Nothing,
    /// The asking process is gone.
    Closed,
}

/// Answers one question that waits on the channel. Does not block: an asker that does not read its answers is told
/// nothing more.
///
/// # Errors
/// When the channel is broken: drop it.
pub fn serve(channel: BorrowedFd<'_>, broker: &impl SocketBroker) -> io::Result<Served> {
    let mut room = [0; REQUEST_OCTETS + 1];
    let (length, descriptor) = match receive_with(channel, &mut room, RecvFlags::DONTWAIT) {
        Ok((0, _)) => return Ok(Served::Closed),
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Served::Nothing),
        Err(Errno::CONNRESET) => return Ok(Served::Closed),
        Err(error) => return Err(error.into()),
    };
    // Nobody has to give us any.
    drop(descriptor);
    let Some((id, wanted)) = room.get(..length).and_then(wire::read_request) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a question of this version"));
    };
    let made = match wanted {
        Some(Wanted::Listener(family)) => broker.listener(family),
        Some(Wanted::Untouched(family)) => broker.untouched(family),
        Some(Wanted::Listen(at)) => broker.listen(at),
        Some(Wanted::Connect(flow, target)) => broker.connect(flow, target),
        None => Err(BrokerError::System(libc::EINVAL)),
    };
    let (outcome, descriptor) = match &made {
        Ok(descriptor) => (Ok(()), Some(descriptor.as_fd())),
        Err(error) => (Err(*error), None),
    };
    send(channel, &wire::reply(id, outcome), descriptor, SendFlags::DONTWAIT)?;
    Ok(Served::Answered)
}

fn send(
    channel: BorrowedFd<'_>,
    octets: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(channel, &[IoSlice::new(octets)], &mut control, flags | SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(channel: BorrowedFd<'_>, room: &mut [u8]) -> Result<(usize, Option<OwnedFd>), Errno> {
    match receive_with(channel, room, RecvFlags::empty()) {
        Ok((0, _)) => Err(Errno::PIPE),
        other => other,
    }
}

fn receive_with(
    channel: BorrowedFd<'_>,
    room: &mut [u8],
    flags: RecvFlags,
) -> Result<(usize, Option<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut vectors = [IoSliceMut::new(room)];
    let message = recvmsg(channel, &mut vectors, &mut control, flags | RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = ancillary {
            // Only the last is kept; the others are closed here.
            descriptor = descriptors.last().or(descriptor);
        }
    }
    Ok((message.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use super::*;

    /// Gives one socket, once.
    struct Scripted {
        flow: Flow,
        listener: Mutex<Option<OwnedFd>>,
    }

    impl SocketBroker for Scripted {
        fn listener(&self, _: Family) -> Result<OwnedFd, BrokerError> {
            self.listener.lock().unwrap().take().ok_or(BrokerError::Unknown)
        }
        fn untouched(&self, family: Family) -> Result<OwnedFd, BrokerError> {
            assert_eq!(family, Family::V6);
            Err(BrokerError::System(libc::EPERM))
        }
        fn listen(&self, at: SocketAddr) -> Result<OwnedFd, BrokerError> {
            assert_eq!(at, self.flow.server);
            Err(BrokerError::System(libc::EADDRINUSE))
        }
        fn connect(&self, flow: Flow, target: Target) -> Result<OwnedFd, BrokerError> {
            assert_eq!((flow, target), (self.flow, Target::Here));
            Err(BrokerError::System(libc::ECONNREFUSED))
        }
    }

    fn flow() -> Flow {
        Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() }
    }

    #[test]
    fn a_socket_goes_from_one_process_to_the_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asks, answers) = pair().unwrap();
        let server = thread::spawn(move || {
            let broker = Scripted { flow: flow(), listener: Mutex::new(Some(listener.into())) };
            let mut answered = 0;
            loop {
                match serve(answers.as_fd(), &broker).unwrap() {
                    Served::Answered => answered += 1,
                    Served::Nothing => thread::sleep(Duration::from_millis(1)),
                    Served::Closed => return answered,
                }
            }
        });
        let broker = RemoteBroker::new(asks).unwrap();
        let listener = TcpListener::from(broker.listener(Family::V4).unwrap());
        let mut far = TcpStream::connect(address).unwrap();
        listener.accept().unwrap().0.write_all(b"here").unwrap();
        let mut got = [0; 4];
        far.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"here");
        assert_eq!(broker.listener(Family::V6).unwrap_err(), BrokerError::Unknown);
        assert_eq!(broker.untouched(Family::V6).unwrap_err(), BrokerError::System(libc::EPERM));
        assert_eq!(broker.listen(flow().server).unwrap_err(), BrokerError::System(libc::EADDRINUSE));
        assert_eq!(
            broker.connect(flow(), Target::Here).unwrap_err(),
            BrokerError::System(libc::ECONNREFUSED)
        );
        drop(broker);
        assert_eq!(server.join().unwrap(), 5);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error_at_once() {
        let (asks, answers) = pair().unwrap();
        let broker = RemoteBroker::new(asks).unwrap();
        drop(answers);
        assert_eq!(broker.untouched(Family::V4).unwrap_err(), BrokerError::Closed);
    }

    #[test]
    fn a_question_that_is_none_breaks_the_channel() {
        let (asks, answers) = pair().unwrap();
        send(asks.as_fd(), b"nonsense", None, SendFlags::empty()).unwrap();
        let broker = Scripted { flow: flow(), listener: Mutex::default() };
        assert!(serve(answers.as_fd(), &broker).is_err());
    }
}
