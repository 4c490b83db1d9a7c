//! How many who have not said yet who they are may be at the door at once.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Counts the handshakes of each origin, so that one that says nothing does not keep all others out.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    inside: Mutex<HashMap<IpAddr, usize>>,
}

/// One handshake; its end makes room for the next.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    origin: IpAddr,
}

impl Gate {
    /// None while `most` handshakes of the same origin go on.
    pub(crate) fn enter(self: &Arc<Self>, from: IpAddr, most: usize) -> Option<Pass> {
        let origin = origin(from);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let count = inside.entry(origin).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Pass { gate: self.clone(), origin })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.gate.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = inside.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.origin);
            }
        }
    }
}

/// Whoever has an IPv6 address has the 2^64 around it, too.
fn origin(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
    }
}

/// Whether a listener that fails so is none any more. Anything else is the connection's, the network's or the machine's,
/// and passes: accept(2) tells of errors that wait on the new connection, and of what the machine is short of.
pub(crate) fn is_fatal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), None | Some(EBADF | EFAULT | EINVAL | ENOTSOCK | EOPNOTSUPP))
}

const EBADF: i32 = 9;
const EFAULT: i32 = 14;
const EINVAL: i32 = 22;
const ENOTSOCK: i32 = 88;
const EOPNOTSUPP: i32 = 95;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_its_share_and_gets_it_back() {
        let gate = Arc::new(Gate::default());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = gate.enter(ip("192.0.2.1"), 2).unwrap();
        let second = gate.enter(ip("::ffff:192.0.2.1"), 2).unwrap();
        assert!(gate.enter(ip("192.0.2.1"), 2).is_none());
        let other = gate.enter(ip("192.0.2.2"), 2).unwrap();
        drop(first);
        let third = gate.enter(ip("192.0.2.1"), 2).unwrap();
        assert!(gate.enter(ip("192.0.2.1"), 2).is_none());
        let six = gate.enter(ip("2001:db8::1"), 1).unwrap();
        assert!(gate.enter(ip("2001:db8::2"), 1).is_none(), "the same /64");
        drop((second, third, other, six, gate.enter(ip("2001:db8:0:1::1"), 1).unwrap()));
        assert!(gate.inside.lock().unwrap().is_empty(), "nothing is kept of those who left");
    }

    #[test]
    fn what_ends_a_listener() {
        let rows = [
            (EBADF, true),
            (EINVAL, true),
            (ENOTSOCK, true),
            (EOPNOTSUPP, true),
            (EFAULT, true),
            // EPERM, EMFILE, ENFILE, ENOMEM, ENOBUFS.
            (1, false),
            (24, false),
            (23, false),
            (12, false),
            (105, false),
            // ENETDOWN, EPROTO, ENOPROTOOPT, EHOSTDOWN, ENONET, EHOSTUNREACH, ENETUNREACH, ECONNABORTED.
            (100, false),
            (71, false),
            (92, false),
            (112, false),
            (64, false),
            (113, false),
            (101, false),
            (103, false),
        ];
        for (code, fatal) in rows {
            assert_eq!(is_fatal(&io::Error::from_raw_os_error(code)), fatal, "{code}");
        }
    }
}
