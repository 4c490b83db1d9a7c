//! Places where a connection was made and then nothing came: the line may have a hole that swallows large packets and
//! says nothing of it. The next connection there keeps its packets to a size that every line carries.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};
use wan_core::mutants;

/// Where a connection was dialled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) at: SocketAddr,
    /// Its packets are kept small.
    pub(crate) narrow: bool,
}

/// See the module's documentation. A dead line and a peer that hangs are silent too: so the first silence counts for little,
/// each further one of large packets for more, and one of small packets says that their size is not what it is about.
#[derive(Debug, Default)]
pub(crate) struct Narrow {
    places: HashMap<SocketAddr, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    span: Duration,
    until: Instant,
}

impl Narrow {
    /// A connection to `place` stood, and fell silent.
    pub(crate) fn note(&mut self, place: Place, now: Instant) {
        if mutants::on("link-silence-forgotten") {
            return;
        }
        let span = match (self.places.get(&place.at), place.narrow) {
            // Of those that went at once, the first has said it.
            (Some(entry), false) if entry.until > now => return,
            (Some(entry), false) => (entry.span * 2).min(SPAN_MAX),
            (Some(entry), true) => entry.span / 2,
            (None, false) => SPAN_MIN,
            (None, true) => return,
        };
        if span < SPAN_MIN {
            self.places.remove(&place.at);
            return;
        }
        if self.places.len() >= PLACES_MAX && !self.places.contains_key(&place.at) {
            let soonest = self.places.iter().min_by_key(|(_, entry)| entry.until).map(|(at, _)| *at);
            soonest.and_then(|at| self.places.remove(&at));
        }
        self.places.insert(place.at, Entry { span, until: now + span });
    }

    /// The largest segment that is sent there, and asked for; none where the line says.
    pub(crate) fn segment_max(&self, place: SocketAddr, now: Instant) -> Option<u32> {
        self.places.get(&place).is_some_and(|entry| entry.until > now).then_some(SEGMENT_OCTETS)
    }
}

/// Of the 1280 octets that every line of IPv6 carries, without headers. In vain it costs half a percent.
const SEGMENT_OCTETS: u32 = 1280 - 40 - 20;
/// After the first silence. Each time that it ends one connection finds the hole again, for twice as long.
const SPAN_MIN: Duration = Duration::from_secs(300);
/// Lines change.
const SPAN_MAX: Duration = Duration::from_secs(3600);
/// More places than any node has peers: a forged probe can name a place that accepts and says nothing. The one that would end
/// soonest gives way.
const PLACES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn place(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    fn large(at: SocketAddr) -> Place {
        Place { at, narrow: false }
    }

    #[test]
    fn a_place_that_fell_silent_is_narrow_for_a_while_and_no_other_is() {
        let (mut narrow, now) = (Narrow::default(), Instant::now());
        assert_eq!(narrow.segment_max(place(1), now), None);
        narrow.note(large(place(1)), now);
        // The other connections of the link, a moment later.
        narrow.note(large(place(1)), now + Duration::from_millis(100));
        for (port, after, found) in [(1, 0, Some(1220)), (1, 299, Some(1220)), (1, 300, None), (2, 0, None)] {
            let then = now + Duration::from_secs(after);
            assert_eq!(narrow.segment_max(place(port), then), found, "{port} {after}");
        }
    }

    #[test]
    fn a_hole_that_is_found_again_counts_for_longer_and_small_packets_silence_for_less() {
        let (mut narrow, mut now) = (Narrow::default(), Instant::now());
        for expected in [300, 600, 1200, 2400, 3600, 3600] {
            narrow.note(large(place(1)), now);
            now += Duration::from_secs(expected - 1);
            assert!(narrow.segment_max(place(1), now).is_some(), "{expected}");
            now += Duration::from_secs(1);
            assert!(narrow.segment_max(place(1), now).is_none(), "{expected}");
        }
        narrow.note(large(place(1)), now);
        let small = Place { at: place(1), narrow: true };
        for (nth, left) in [1800, 900, 450, 0, 0].into_iter().enumerate() {
            narrow.note(small, now);
            let at = |seconds| narrow.segment_max(place(1), now + Duration::from_secs(seconds)).is_some();
            assert_eq!((left > 0, false), (at(u64::max(left, 1) - 1), at(left)), "{nth}");
        }
    }

    #[test]
    fn strangers_places_are_bounded_and_a_new_one_always_gets_in() {
        let (mut narrow, now) = (Narrow::default(), Instant::now());
        for port in 1..=2000 {
            let then = now + Duration::from_millis(port.into());
            narrow.note(large(place(port)), then);
            assert!(narrow.segment_max(place(port), then).is_some(), "{port}");
        }
        assert_eq!(narrow.places.len(), PLACES_MAX);
        let then = now + Duration::from_secs(2);
        let stays = |port| narrow.segment_max(place(port), then).is_some();
        assert_eq!((stays(976), stays(977)), (false, true), "what ends soonest gives way");
    }
}
