//! Sends packets made by hand, network header and all.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Sends whole IP packets under one mark, which decides their way: [`crate::marks::INJECTED`] to the own stack,
/// [`crate::marks::FORGED`] out untracked.
#[derive(Debug)]
pub struct RawSender {
    v4: Socket,
    v6: Option<Socket>,
}

impl RawSender {
    /// Opens it; `v6` only where the machine has IPv6.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, or CAP_NET_ADMIN for the mark.
    pub fn open(mark: u32, v6: bool) -> io::Result<Self> {
        let protocol = Some(Protocol::from(libc::IPPROTO_RAW));
        let v4 = Socket::new(Domain::IPV4, Type::RAW, protocol)?;
        v4.set_header_included_v4(true)?;
        let v6 = if v6 {
            let v6 = Socket::new(Domain::IPV6, Type::RAW, protocol)?;
            v6.set_header_included_v6(true)?;
            Some(v6)
        } else {
            None
        };
        for socket in [Some(&v4), v6.as_ref()].into_iter().flatten() {
            socket.set_mark(mark)?;
            // A full device queue must not hold the engine up: a lost packet is sent again by its sender.
            socket.set_nonblocking(true)?;
        }
        Ok(Self { v4, v6 })
    }

    /// Sends a packet to the destination in its own header.
    ///
    /// # Errors
    /// When it is no IP packet, there is no way to its destination, or no room to send.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let Some(destination) = destination(packet) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no IP packet"));
        };
        let socket = match destination {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => self.v6.as_ref().ok_or(io::ErrorKind::Unsupported)?,
        };
        socket.send_to(packet, &SocketAddr::new(destination, 0).into()).map(drop)
    }
}

/// The destination in an IP packet's header.
#[must_use]
pub fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => packet.get(16..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
        6 => packet.get(24..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_stands_in_the_header() {
        let mut v4 = [0_u8; 20];
        v4[0] = 0x45;
        v4[16..].copy_from_slice(&[10, 1, 0, 2]);
        assert_eq!(destination(&v4), Some(Ipv4Addr::new(10, 1, 0, 2).into()));
        let mut v6 = [0_u8; 40];
        v6[0] = 0x60;
        v6[39] = 1;
        assert_eq!(destination(&v6), Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(destination(&v6[..39]), None);
        assert_eq!(destination(&[0x50; 60]), None);
        assert_eq!(destination(&[]), None);
    }
}
