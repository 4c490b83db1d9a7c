//! Which ports of a bridge are taken. Behind br_netfilter every port's packets come in by the bridge, so that nft's rules
//! cannot tell them apart; the port's number travels with the packet.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, SocketType, socket};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Ports {
    names: Vec<String>,
    /// What a number's name was, and when.
    asked: HashMap<u32, (bool, Instant)>,
    socket: OwnedFd,
}

impl Ports {
    pub(super) fn open(names: Vec<String>) -> io::Result<Self> {
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        Ok(Self { names, asked: HashMap::new(), socket })
    }

    /// Whether what comes in there is to be looked at: everything where no port is named, or by none.
    pub(super) fn takes(&mut self, now: Instant, port: u32) -> bool {
        if port == 0 || self.names.is_empty() {
            return true;
        }
        if let Some((taken, at)) = self.asked.get(&port)
            && now.saturating_duration_since(*at) < BELIEVED_FOR
        {
            return *taken;
        }
        if self.asked.len() >= ASKED_MAX {
            self.asked.clear();
        }
        let name = index_to_name(self.socket.as_fd(), port);
        let taken = name.is_ok_and(|name| self.names.contains(&name));
        self.asked.insert(port, (taken, now));
        taken
    }
}

/// A port that is made anew has another number, and one can be renamed.
const BELIEVED_FOR: Duration = Duration::from_secs(1);
/// A bridge has 1,024 ports.
const ASKED_MAX: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_ports_are_taken() {
        let now = Instant::now();
        // The one interface that every machine has.
        for (names, port, taken) in [
            (vec![], 1, true),
            (vec!["lo"], 1, true),
            (vec!["lo"], 0, true),
            (vec!["p0"], 1, false),
            (vec!["lo"], 999_999, false),
        ] {
            let mut ports = Ports::open(names.iter().map(|name| (*name).to_owned()).collect()).unwrap();
            assert_eq!(ports.takes(now, port), taken, "{names:?} {port}");
            assert_eq!(ports.takes(now, port), taken, "{names:?} {port}: once more");
        }
    }
}
