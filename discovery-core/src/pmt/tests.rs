//! The table's times, bounds and flaps.
#![allow(clippy::disallowed_methods, reason = "a test needs some first moment")]

use super::*;
use crate::probe::KeyHint;

fn server(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 2, 0, n], 143))
}

fn peer(n: u8) -> Peer {
    Peer { link: SocketAddr::from(([10, 8, 0, n], 7777)), key: KeyHint([n; 8]) }
}

fn start() -> Now {
    Now { mono: Instant::now(), wall: UnixMillis(1_800_000_000_000) }
}

fn later(now: Now, by: Duration) -> Now {
    Now { mono: now.mono + by, wall: now.wall.plus(by) }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn what_stays_true_is_believed_longer_and_what_changes_shorter() {
    let (mut pmt, t) = (Pmt::new(PmtConfig::default()), start());
    assert_eq!(pmt.lookup(t.mono, server(1)), Lookup::Unknown);
    assert_eq!(pmt.learn_peer(t, server(1), peer(1)).ttl, MINUTE);
    assert_eq!(pmt.learn_peer(t, server(1), peer(1)).ttl, 2 * MINUTE);
    assert_eq!(pmt.lookup(t.mono, server(1)), Lookup::Known(Known::Peer(peer(1))));
    for _ in 0..10 {
        pmt.learn_peer(t, server(1), peer(1));
    }
    assert_eq!(pmt.learn_peer(t, server(1), peer(1)).ttl, 60 * MINUTE, "and never longer than the most");
    let row = pmt.learn_peer(t, server(1), peer(2));
    assert_eq!((row.ttl, row.flaps), (MINUTE, 1), "it moved");
    let row = pmt.learn_none(t, server(1));
    assert_eq!((row.ttl, row.flaps, row.known), (MINUTE, 2, Known::NoProxy));
    for _ in 0..10 {
        pmt.learn_none(t, server(1));
    }
    assert_eq!(pmt.learn_none(t, server(1)).ttl, 10 * MINUTE, "a node may be installed at any time");
    assert_eq!(
        pmt.lookup(later(t, 11 * MINUTE).mono, server(1)),
        Lookup::Unknown,
        "stale: the next SYN probes"
    );
}

#[test]
fn ports_are_apart_and_static_entries_come_first_and_never_age() {
    let named = StaticPeer {
        network: Prefix::new(server(0).ip(), 24),
        port: Some(143),
        peer: peer(9),
        preference: 0,
    };
    let (mut pmt, t) = (Pmt::new(PmtConfig { statics: vec![named], ..PmtConfig::default() }), start());
    pmt.learn_none(t, server(1));
    pmt.asymmetric(t, server(1));
    assert_eq!(pmt.lookup(later(t, 10_000 * MINUTE).mono, server(1)), Lookup::Known(Known::Static(peer(9))));
    let other = SocketAddr::new(server(1).ip(), 993);
    pmt.learn_peer(t, SocketAddr::new([10, 3, 0, 1].into(), 993), peer(1));
    assert_eq!(pmt.lookup(t.mono, other), Lookup::Known(Known::Asymmetric), "the mark is for all ports");
    assert_eq!(pmt.lookup(t.mono, SocketAddr::new([10, 3, 0, 1].into(), 143)), Lookup::Unknown);
    assert_eq!(pmt.lookup(later(t, 11 * MINUTE).mono, other), Lookup::Unknown);
    assert_eq!(pmt.rows(t)[0].until, None);
}

#[test]
fn three_silent_probes_speak_against_a_port_unless_somebody_answers_between() {
    let (mut pmt, t) = (Pmt::new(PmtConfig::default()), start());
    assert_eq!((pmt.silent(t, server(1)), pmt.silent(t, server(1))), (None, None));
    pmt.learn_none(t, server(1));
    assert_eq!((pmt.silent(t, server(1)), pmt.silent(t, server(1))), (None, None));
    let row = pmt.silent(t, server(1)).unwrap();
    assert_eq!((row.place, row.known), (Place::Server(server(1)), Known::Asymmetric));
    assert_eq!(
        pmt.lookup(t.mono, server(7)),
        Lookup::Unknown,
        "it may be a closed port: nothing about its neighbours"
    );
    pmt.asymmetric(t, server(1));
    assert_eq!(pmt.lookup(t.mono, server(7)), Lookup::Known(Known::Asymmetric), "a refused answer is proof");
}

#[test]
fn a_separate_probe_on_its_way_is_known_and_forgotten() {
    let (mut pmt, t) = (Pmt::new(PmtConfig::default()), start());
    pmt.probing(t.mono, server(1), t.mono + MINUTE);
    assert_eq!(pmt.lookup(t.mono, server(1)), Lookup::Probing);
    assert_eq!(pmt.lookup(later(t, MINUTE).mono, server(1)), Lookup::Unknown);
    pmt.probing(t.mono, server(1), t.mono + MINUTE);
    pmt.learn_none(t, server(1));
    assert_eq!(pmt.lookup(t.mono, server(1)), Lookup::Known(Known::NoProxy));
}

const SECOND: Duration = Duration::from_secs(1);

fn refreshed(refresh: Refresh) -> (Pmt, Now) {
    let (mut pmt, t) = (Pmt::new(PmtConfig { refresh, ..PmtConfig::default() }), start());
    for n in 1..=3 {
        pmt.learn_peer(t, server(n), peer(1));
    }
    pmt.learn_none(t, server(4));
    (pmt, t)
}

/// A connection led by the table.
fn hit(pmt: &mut Pmt, at: Now, n: u8) {
    if pmt.lookup(at.mono, server(n)) == Lookup::Known(Known::Peer(peer(1))) {
        pmt.carried(at, server(n), peer(1), at.mono);
    }
}

#[test]
fn refresh_by_timer_asks_about_what_was_used_and_one_at_a_time() {
    let (mut pmt, t) = refreshed(Refresh::Timer { interval: SECOND });
    assert_eq!(pmt.next_refresh(), None, "nothing was used");
    for n in [1, 3, 4, 1] {
        hit(&mut pmt, t, n);
    }
    let due = later(t, MINUTE);
    assert_eq!((pmt.take_refresh(t.mono), pmt.next_refresh()), (None, Some(due.mono)));
    assert_eq!(pmt.take_refresh(due.mono), Some(server(1)));
    assert_eq!(pmt.take_refresh(due.mono), None, "not two at once");
    let next = later(due, SECOND);
    assert_eq!(pmt.next_refresh(), Some(next.mono));
    assert_eq!(pmt.take_refresh(next.mono), Some(server(3)), "2 was never used");
    assert_eq!(
        (pmt.take_refresh(later(due, MINUTE).mono), pmt.next_refresh()),
        (None, None),
        "nor was it since"
    );
    // Used after its time: it is asked about at once, and after the answer a minute later.
    pmt.learn_peer_beside(next, server(3), peer(1));
    hit(&mut pmt, later(next, MINUTE + SECOND), 3);
    assert_eq!(pmt.take_refresh(later(next, MINUTE + SECOND).mono), Some(server(3)));
    hit(&mut pmt, later(next, MINUTE + SECOND), 3);
    assert_eq!(pmt.next_refresh(), Some(later(next, 2 * MINUTE + SECOND).mono));
}

#[test]
fn refresh_by_connection_asks_beside_one_and_no_more_often_than_that() {
    let (mut pmt, t) = refreshed(Refresh::Connection { interval: SECOND });
    let (early, due) = (later(t, MINUTE - SECOND), later(t, MINUTE));
    for n in [1, 2] {
        hit(&mut pmt, early, n);
    }
    assert_eq!((pmt.next_refresh(), pmt.take_refresh(due.mono)), (None, None), "the path was asked just now");
    // That it carried meanwhile has not shown where it stands.
    for n in [1, 1, 2, 4] {
        hit(&mut pmt, due, n);
    }
    assert_eq!(pmt.next_refresh(), Some(due.mono), "with the connection");
    assert_eq!(pmt.take_refresh(due.mono), Some(server(1)));
    pmt.probing(due.mono, server(1), due.mono + SECOND);
    assert_eq!(
        pmt.lookup(due.mono, server(1)),
        Lookup::Known(Known::Peer(peer(1))),
        "who comes meanwhile is carried"
    );
    assert_eq!(pmt.take_refresh(due.mono), None, "not two at once");
    let next = later(due, SECOND);
    hit(&mut pmt, next, 1);
    assert_eq!(pmt.take_refresh(next.mono), Some(server(2)));
    assert_eq!(
        pmt.take_refresh(later(next, SECOND).mono),
        None,
        "an answer may be lost: it is not asked at once"
    );
    hit(&mut pmt, later(due, MINUTE), 1);
    assert_eq!(pmt.take_refresh(later(due, MINUTE).mono), Some(server(1)));
    // Another one answers: he is known, and what was due about the first is not. That the first one carries what it was
    // asked for before that changes nothing.
    let other = later(next, MINUTE);
    hit(&mut pmt, other, 2);
    pmt.learn_peer_beside(other, server(2), peer(2));
    assert_eq!(pmt.carried(later(other, SECOND), server(2), peer(1), other.mono), None);
    assert_eq!(pmt.take_refresh(later(next, 2 * MINUTE).mono), None);
    assert_eq!(pmt.lookup(other.mono, server(2)), Lookup::Known(Known::Peer(peer(2))));
    // Nor where nobody answers; but a failure of the path's own peer is mended by whoever carries next.
    pmt.learn_none(other, server(2));
    assert_eq!(pmt.carried(later(other, SECOND), server(2), peer(2), other.mono), None);
    pmt.failed(later(other, SECOND), server(3));
    assert!(pmt.carried(later(other, SECOND), server(3), peer(2), other.mono).is_some());
}

#[test]
fn without_refresh_an_entry_that_is_used_runs_out_when_nothing_confirms_it() {
    let (mut pmt, t) = refreshed(Refresh::NextSyn);
    pmt.lookup(t.mono, server(1));
    assert_eq!((pmt.next_refresh(), pmt.take_refresh(later(t, MINUTE).mono)), (None, None));
    assert_eq!(pmt.lookup(later(t, MINUTE).mono, server(1)), Lookup::Unknown);
}

#[test]
fn rows_survive_a_restart_and_a_clock_set_back_prolongs_nothing() {
    let (mut pmt, t) = (Pmt::new(PmtConfig::default()), start());
    pmt.learn_peer(t, server(1), peer(1));
    pmt.learn_none(t, server(2));
    pmt.option_dropped(t, server(3));
    pmt.asymmetric(t, SocketAddr::from(([10, 9, 0, 1], 80)));
    let rows = pmt.rows(t);
    assert_eq!(rows.len(), 4);
    let restored = |now: Now| {
        let mut fresh = Pmt::new(PmtConfig::default());
        fresh.restore(now, &rows);
        fresh
    };
    // That nobody was there the next process asks for itself, and remembers how often it was so.
    let mut asks = restored(t);
    assert_eq!(asks.lookup(t.mono, server(2)), Lookup::Unknown);
    assert_eq!(asks.learn_none(t, server(2)).ttl, 2 * MINUTE);
    let believed: Vec<PmtRow> = rows.iter().filter(|row| row.known != Known::NoProxy).copied().collect();
    assert_eq!((restored(t).rows(t), believed.len()), (believed.clone(), 3));
    let half = later(t, MINUTE / 2);
    assert_eq!(restored(half).rows(half), believed, "the time between the processes counts");
    assert_eq!(restored(later(t, MINUTE)).rows(later(t, MINUTE)).len(), 2, "what ran out is left out");
    let back = Now { mono: t.mono, wall: UnixMillis(t.wall.0 - 86_400_000) };
    for row in restored(back).rows(back) {
        assert!(row.until.unwrap() <= back.wall.plus(row.ttl), "{row:?}");
    }
    let mut fresh = Pmt::new(PmtConfig::default());
    fresh
        .restore(t, &[PmtRow { known: Known::Static(peer(1)), until: Some(t.wall.plus(MINUTE)), ..rows[1] }]);
    assert!(fresh.is_empty(), "what the operator names is not restored");
}

#[test]
fn it_never_grows_beyond_its_bounds() {
    let config = PmtConfig {
        entries_max: 16,
        networks_max: 4,
        refresh: Refresh::Timer { interval: MINUTE },
        ..PmtConfig::default()
    };
    let (mut pmt, t) = (Pmt::new(config), start());
    for n in 0..10_000_u16 {
        let server = SocketAddr::from(([10, 2, n.to_be_bytes()[0], n.to_be_bytes()[1]], 143));
        match n % 4 {
            0 => drop(pmt.learn_peer(t, server, peer(1))),
            1 => drop(pmt.learn_none(t, server)),
            2 => drop(pmt.silent(t, server)),
            _ => drop(pmt.asymmetric(t, server)),
        }
        assert!(pmt.len() <= 20 && pmt.dues.len() <= 32);
    }
}
