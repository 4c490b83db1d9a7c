//! How often the packet loop hears of what peers tell: a peer may say as much as it likes, and what it says is looked at
//! no more often than it can change.

use discovery_core::id::NodeId;
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;
use wan_core::Candidates;

/// The last list of each peer.
#[derive(Default)]
pub(in super::super) struct Lists {
    of: HashMap<NodeId, Last>,
}

struct Last {
    list: Candidates,
    at: Instant,
    /// The newest that came too early.
    next: Option<Candidates>,
}

impl Lists {
    /// A list has come. Whether it is to be looked at now; what comes too early may be [`Lists::due`] later.
    pub(super) fn heard(&mut self, now: Instant, from: &NodeId, list: &Candidates) -> bool {
        if let Some(last) = self.of.get_mut(from) {
            let since = now.saturating_duration_since(last.at);
            if since < APART_MIN {
                last.next = Some(list.clone());
                return false;
            }
            last.next = None;
            if since < UNCHANGED_FOR && last.list == *list {
                return false;
            }
        }
        self.of.insert(from.clone(), Last { list: list.clone(), at: now, next: None });
        true
    }

    /// The lists that came too early, and whose time it is now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(NodeId, Candidates)> {
        // Who tells nothing any more, and who is gone.
        self.of.retain(|_, last| now.saturating_duration_since(last.at) < KEPT_FOR);
        let mut due = Vec::new();
        for (from, last) in &mut self.of {
            let early = now.saturating_duration_since(last.at) < APART_MIN;
            let Some(list) = (if early { None } else { last.next.take() }) else { continue };
            if list != last.list {
                (last.list, last.at) = (list.clone(), now);
                due.push((from.clone(), list));
            }
        }
        due
    }
}

/// Between two lists of one peer; it is told one each second.
const APART_MIN: Duration = Duration::from_millis(500);
/// The same list says again that it holds: often enough for it to be believed all the while.
const UNCHANGED_FOR: Duration = Duration::from_secs(2);
const KEPT_FOR: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use discovery_core::probe::KeyHint;
    use wan_core::Candidate;

    fn list(load: u16) -> Candidates {
        let link = std::net::SocketAddr::from(([10, 0, 0, 1], 7777));
        let node = Candidate { link, key: KeyHint([1; 8]), rank: 0, able: true, load };
        Candidates { networks: Vec::new(), nodes: vec![node] }
    }

    #[test]
    fn a_flood_of_lists_is_looked_at_twice_a_second_and_the_newest_counts() {
        let (mut lists, start) = (Lists::default(), Instant::now());
        let [flood, calm] = ["flood", "calm"].map(|name| NodeId::new(name).unwrap());
        let (mut looked_at, mut newest) = (0, 0);
        for n in 0..2_000_u16 {
            let now = start + Duration::from_millis(u64::from(n));
            if lists.heard(now, &flood, &list(n)) {
                (looked_at, newest) = (looked_at + 1, n);
            }
            for (from, due) in lists.due(now) {
                assert_eq!(from, flood);
                (looked_at, newest) = (looked_at + 1, due.nodes[0].load);
            }
        }
        assert_eq!((looked_at, newest), (4, 1_500));
        assert!(lists.heard(start + Duration::from_millis(1_999), &calm, &list(0)), "another one's flood");
        let due = lists.due(start + Duration::from_secs(2));
        assert_eq!(due, [(flood.clone(), list(1_999))], "the newest is not lost");
        lists.due(start + Duration::from_secs(20));
        assert!(lists.of.is_empty(), "who is gone is forgotten");
    }

    #[test]
    fn what_has_not_changed_is_looked_at_only_so_that_it_is_believed() {
        let (mut lists, start) = (Lists::default(), Instant::now());
        let from = NodeId::new("b").unwrap();
        let at = |ms| start + Duration::from_millis(ms);
        for (ms, load, looked_at) in
            [(0, 1, true), (1_000, 1, false), (1_900, 1, false), (2_000, 1, true), (2_600, 2, true)]
        {
            assert_eq!(lists.heard(at(ms), &from, &list(load)), looked_at, "{ms}");
            assert_eq!(lists.due(at(ms)), [], "{ms}");
        }
        // Back to what was: nothing to be said.
        assert!(!lists.heard(at(2_700), &from, &list(3)) && !lists.heard(at(2_800), &from, &list(2)));
        assert_eq!(lists.due(at(3_200)), []);
    }
}
