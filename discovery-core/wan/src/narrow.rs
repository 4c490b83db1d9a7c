//! Places where a connection was made and then nothing came: the line may have a hole that swallows large packets and
//! says nothing of it. The next connection there keeps its packets to a size that every line carries.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};
use wan_core::mutants;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Narrow {
    until: HashMap<SocketAddr, Instant>,
}

impl Narrow {
    /// A connection to `place` stood, and fell silent.
    pub(crate) fn note(&mut self, place: SocketAddr, now: Instant) {
        if mutants::on("link-silence-forgotten") {
            return;
        }
        if self.until.len() >= PLACES_MAX {
            self.until.retain(|_, until| *until > now);
        }
        if self.until.len() < PLACES_MAX || self.until.contains_key(&place) {
            self.until.insert(place, now + NARROW_FOR);
        }
    }

    /// The largest segment that is sent there, and asked for; none where the line says.
    pub(crate) fn segment_max(&self, place: SocketAddr, now: Instant) -> Option<u32> {
        self.until.get(&place).is_some_and(|until| *until > now).then_some(SEGMENT_OCTETS)
    }
}

/// Of the 1280 octets that every line of IPv6 carries, without headers. In vain it costs half a percent.
const SEGMENT_OCTETS: u32 = 1280 - 40 - 20;
/// Lines change; until then each connection would find the hole again.
const NARROW_FOR: Duration = Duration::from_secs(3600);
/// More places than any node has peers: a forged probe can name a place that accepts and says nothing.
const PLACES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_fell_silent_is_narrow_for_a_while_and_no_other_is() {
        let now = Instant::now();
        let place = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let mut narrow = Narrow::default();
        assert_eq!(narrow.segment_max(place(1), now), None);
        narrow.note(place(1), now);
        for (port, after, found) in [(1, 0, Some(1220)), (1, 3599, Some(1220)), (1, 3600, None), (2, 0, None)]
        {
            assert_eq!(
                narrow.segment_max(place(port), now + Duration::from_secs(after)),
                found,
                "{port} {after}"
            );
        }
    }

    #[test]
    fn strangers_places_are_bounded_and_make_room() {
        let (mut narrow, now) = (Narrow::default(), Instant::now());
        for port in 1..=2000 {
            narrow.note(([10, 0, 0, 1], port).into(), now);
        }
        assert_eq!(narrow.until.len(), PLACES_MAX);
        let (later, new) = (now + NARROW_FOR, ([10, 0, 0, 2], 1).into());
        narrow.note(new, later);
        assert!(narrow.segment_max(new, later).is_some());
    }
}
