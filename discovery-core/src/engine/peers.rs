//! Which peers can carry now, and how far what they do can be relied on: a link that comes and goes is trusted more slowly
//! each time (hold-down, as routers do with theirs), and while somebody is missing, 'nobody is there' is not believed for long.

use crate::{candidates::Standing, probe::KeyHint};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// All that there is, or was, a link with.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    of: BTreeMap<KeyHint, Entry>,
    /// Whom the operator named: their places are nobody else's.
    named: BTreeSet<KeyHint>,
    bounds: Bounds,
    /// When the last one came back.
    returned: Option<Instant>,
}

/// Bounds and times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Remembered at once, beside those that the operator named.
    pub(super) peers_max: usize,
    /// One that was away is held down for so long, and twice as long each time.
    pub(super) hold_min: Duration,
    /// To this.
    pub(super) hold_max: Duration,
    /// A word that connections are to go past it is believed for so long.
    pub(super) aside_max: Duration,
    /// One that is away for longer is gone.
    pub(super) missed_max: Duration,
    /// One that is back may not have its packets yet.
    pub(super) back_max: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    linked: bool,
    /// It wants connections to go past it, until then.
    aside: Option<Instant>,
    /// When it last became able to carry, or ceased to be.
    since: Instant,
    hold: Duration,
}

impl Entry {
    fn is_aside(&self, now: Instant) -> bool {
        self.aside.is_some_and(|until| until > now)
    }

    fn is_able(&self, now: Instant) -> bool {
        self.linked && !self.is_aside(now)
    }

    /// Since when it is able; a word that it is back may have got lost.
    fn able_since(&self, now: Instant) -> Instant {
        self.aside.filter(|until| *until <= now).map_or(self.since, |until| self.since.max(until))
    }
}

impl Peers {
    pub(super) fn new(bounds: Bounds, named: BTreeSet<KeyHint>) -> Self {
        Self { of: BTreeMap::new(), named, bounds, returned: None }
    }

    /// Whether the operator named it.
    pub(super) fn is_named(&self, key: &KeyHint) -> bool {
        self.named.contains(key) && !crate::mutants::on("engine-named-evicted")
    }

    /// Whether a link stands.
    pub(super) fn is_up(&self, key: &KeyHint) -> bool {
        self.of.get(key).is_some_and(|peer| peer.linked)
    }

    /// How it stands.
    pub(super) fn standing(&self, now: Instant, key: &KeyHint) -> Standing {
        match self.of.get(key) {
            None | Some(Entry { linked: false, .. }) => Standing::Away,
            Some(peer) if peer.is_aside(now) => Standing::Aside,
            Some(peer) if now.saturating_duration_since(peer.able_since(now)) < peer.hold => {
                Standing::HeldDown
            }
            Some(_) => Standing::Ready,
        }
    }

    /// A link stands, or no longer. Whether somebody is missed from now on.
    pub(super) fn linked(&mut self, now: Instant, key: KeyHint, linked: bool) -> bool {
        if linked && !self.of.contains_key(&key) && self.has_room(&key) {
            // Who is met for the first time has not come back.
            self.of.insert(key, Entry { linked: true, aside: None, since: now, hold: Duration::ZERO });
            return false;
        }
        self.change(now, key, |peer| {
            // What was said on another link is over with it.
            if peer.linked != linked {
                (peer.linked, peer.aside) = (linked, None);
            }
        })
    }

    /// It wants connections to go past it, for a while if it says so no more, or no longer. Whether somebody is missed from
    /// now on.
    pub(super) fn aside(&mut self, now: Instant, key: KeyHint, aside: bool) -> bool {
        let until = aside.then_some(now + self.bounds.aside_max);
        self.change(now, key, |peer| peer.aside = until)
    }

    /// Nobody can carry any more, so nobody's link matters.
    pub(super) fn clear(&mut self) {
        self.of.clear();
    }

    /// Whether somebody may be missing on the paths from here, or has just come back: what is not answered now may be in a
    /// moment.
    pub(super) fn is_one_missed(&self, now: Instant) -> bool {
        let within = |since: Instant, max| now.saturating_duration_since(since) < max;
        self.returned.is_some_and(|at| within(at, self.bounds.back_max))
            || self.of.values().any(|peer| !peer.is_able(now) && within(peer.since, self.bounds.missed_max))
    }

    /// Whether it was able before and is no more.
    fn change(&mut self, now: Instant, key: KeyHint, change: impl FnOnce(&mut Entry)) -> bool {
        let Bounds { hold_min, hold_max, .. } = self.bounds;
        let Some(peer) = self.of.get_mut(&key) else { return false };
        let (before, able_since) = (peer.is_able(now), peer.able_since(now));
        change(peer);
        match (before, peer.is_able(now)) {
            (true, false) => {
                // One that was well for long is not judged by what it did before.
                let steady = now.saturating_duration_since(able_since) >= hold_max;
                let again = peer.hold.saturating_mul(2).clamp(hold_min, hold_max);
                (peer.hold, peer.since) = (if steady { hold_min } else { again }, now);
            }
            (false, true) => {
                peer.since = now;
                self.returned = Some(now);
            }
            (true, true) | (false, false) => {}
        }
        before && !peer.is_able(now)
    }

    /// Whoever was only learnt makes room for another one that is learnt, and for nobody else.
    fn has_room(&mut self, key: &KeyHint) -> bool {
        let learnt = |(key, _): &(&KeyHint, &Entry)| !self.is_named(key);
        if !self.is_named(key) && self.of.iter().filter(learnt).count() >= self.bounds.peers_max {
            let away = self.of.iter().filter(learnt).filter(|(_, peer)| !peer.linked);
            let Some(gone) = away.min_by_key(|(_, peer)| peer.since).map(|(key, _)| *key) else {
                return false;
            };
            self.of.remove(&gone);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds {
        peers_max: 2,
        hold_min: Duration::from_secs(3),
        hold_max: Duration::from_secs(12),
        aside_max: Duration::from_secs(5),
        missed_max: Duration::from_secs(60),
        back_max: Duration::from_secs(5),
    };

    #[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
    fn start() -> Instant {
        Instant::now()
    }

    fn key(n: u8) -> KeyHint {
        KeyHint([n; 8])
    }

    #[test]
    fn who_comes_and_goes_is_trusted_more_slowly_each_time() {
        let start = start();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut peers = Peers::new(BOUNDS, BTreeSet::new());
        peers.linked(start, key(1), true);
        assert_eq!(peers.standing(start, &key(1)), Standing::Ready, "who is met has not come back");
        let mut now = 20;
        for hold in [3, 6, 12, 12] {
            peers.linked(at(now), key(1), false);
            assert_eq!(peers.standing(at(now), &key(1)), Standing::Away);
            now += 1;
            peers.linked(at(now), key(1), true);
            assert_eq!(peers.standing(at(now + hold - 1), &key(1)), Standing::HeldDown);
            assert_eq!(peers.standing(at(now + hold), &key(1)), Standing::Ready, "after {hold} s");
            now += hold.min(11);
        }
        // Steady for long, then away once more.
        now += 60;
        peers.aside(at(now), key(1), true);
        assert_eq!(peers.standing(at(now), &key(1)), Standing::Aside);
        peers.aside(at(now), key(1), false);
        assert_eq!(peers.standing(at(now + 2), &key(1)), Standing::HeldDown);
        assert_eq!(peers.standing(at(now + 3), &key(1)), Standing::Ready);
        // The word that it is back gets lost.
        peers.aside(at(now + 4), key(1), true);
        assert_eq!(peers.standing(at(now + 8), &key(1)), Standing::Aside);
        assert_eq!(peers.standing(at(now + 9), &key(1)), Standing::HeldDown);
        assert_eq!(peers.standing(at(now + 15), &key(1)), Standing::Ready);
        // On another link nothing of it was said.
        peers.aside(at(now + 16), key(1), true);
        peers.linked(at(now + 16), key(1), false);
        peers.linked(at(now + 16), key(1), true);
        assert_eq!(peers.standing(at(now + 16), &key(1)), Standing::HeldDown);
    }

    #[test]
    fn one_that_is_missed_is_so_until_it_is_back_or_gone() {
        let start = start();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut peers = Peers::new(BOUNDS, BTreeSet::new());
        assert!(!peers.is_one_missed(start), "who never was");
        peers.linked(start, key(1), true);
        assert!(!peers.is_one_missed(start), "who is there");
        peers.linked(at(10), key(1), false);
        assert!(peers.is_one_missed(at(69)) && !peers.is_one_missed(at(70)), "who is gone is not missed");
        peers.linked(at(80), key(1), true);
        assert!(peers.is_one_missed(at(84)) && !peers.is_one_missed(at(85)), "who is back");
    }

    #[test]
    fn a_place_is_made_by_who_has_no_link_only() {
        let mut peers = Peers::new(BOUNDS, BTreeSet::new());
        let now = start();
        for n in [1, 2, 3] {
            peers.linked(now, key(n), true);
        }
        assert!(peers.is_up(&key(1)) && peers.is_up(&key(2)) && !peers.is_up(&key(3)));
        peers.linked(now, key(1), false);
        peers.linked(now, key(3), true);
        assert!(peers.is_up(&key(3)) && peers.of.len() == 2);
    }

    #[test]
    fn whom_the_operator_named_has_a_place_whoever_else_is_there() {
        let now = start();
        let mut peers = Peers::new(BOUNDS, [key(1), key(2)].into());
        peers.linked(now, key(1), true);
        peers.linked(now, key(1), false);
        for n in 3..9 {
            peers.linked(now, key(n), true);
            peers.linked(now, key(n), n < 5);
        }
        assert!(peers.is_one_missed(now), "the one that is away is remembered");
        for n in [1, 2] {
            peers.linked(now, key(n), true);
            assert!(peers.is_up(&key(n)), "{n}");
        }
        assert_eq!(peers.of.len(), BOUNDS.peers_max + 2);
    }

    proptest! {
        /// Whatever happens, a hold-down ends within its bound, and nobody is ready without a link.
        #[test]
        fn no_hold_down_is_longer_than_its_bound(
            script in proptest::collection::vec((0..4_u8, any::<bool>(), any::<bool>(), 0..30_000_u64), 0..64),
        ) {
            let (mut peers, mut now) = (Peers::new(BOUNDS, BTreeSet::new()), start());
            for (who, link, value, later) in script {
                now += Duration::from_millis(later);
                if link {
                    peers.linked(now, key(who), value);
                } else {
                    peers.aside(now, key(who), value);
                }
                prop_assert!(peers.of.len() <= BOUNDS.peers_max);
                for key in (0..4).map(key) {
                    let able = peers.standing(now, &key).is_able();
                    prop_assert!(!able || peers.is_up(&key));
                    let settled = peers.standing(now + BOUNDS.hold_max, &key);
                    prop_assert!(!able || settled == Standing::Ready);
                }
            }
        }
    }
}
