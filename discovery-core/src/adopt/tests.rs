use super::*;
use proptest::prelude::*;

fn flow() -> Flow {
    Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() }
}

const TERMS: Terms = Terms { mss: 1460, scale: Some((7, 10)), sack: true };
const START: u32 = u32::MAX - 300;

#[expect(clippy::disallowed_methods, reason = "an arbitrary beginning; nothing depends on it")]
fn now() -> Instant {
    Instant::now()
}

fn segment(up: bool, seq: u32, ack: u32, payload: &[u8]) -> Segment<'_> {
    Segment { up, seq, ack, flags: ACK, window: 500, timestamps: None, sacked: None, payload }
}

fn octet(at: u32) -> u8 {
    u8::try_from(at % 251).unwrap()
}

fn octets(from: u32, to: u32) -> Vec<u8> {
    (0..to.wrapping_sub(from)).map(|n| octet(from.wrapping_add(n))).collect()
}

#[test]
fn a_connection_at_rest_goes_on_where_its_ends_are() {
    let begun = now();
    let mut observation = Observation::begin(begun, TERMS);
    let stamped = |up, seq, ack, value| Segment {
        timestamps: Some(Timestamps { value, echo: 0 }),
        ..segment(up, seq, ack, &[])
    };
    observation.see(begun, &stamped(true, 100, 900, 5000)).unwrap();
    assert_eq!(observation.cut(begun + OBSERVE_MIN, flow()), None, "one direction was never seen");
    observation.see(begun, &stamped(false, 900, 100, 70)).unwrap();
    assert_eq!(observation.cut(begun, flow()), None, "too early to be certain");
    let cut = observation.cut(begun + OBSERVE_MIN, flow()).unwrap();
    let to_client = Half {
        local: flow().server,
        remote: flow().client,
        unacknowledged: Vec::new(),
        first: 900,
        expects: 100,
        scale: Some((7, 10)),
        their_window: 500 << 7,
        our_window: 500 << 10,
        mss: 1460,
        sack: true,
        clock: Some(70 + 500 + 2),
    };
    assert_eq!(cut.to_client, to_client);
    let to_server = Half {
        local: flow().client,
        remote: flow().server,
        first: 100,
        expects: 900,
        scale: Some((10, 7)),
        their_window: 500 << 10,
        our_window: 0xffff,
        clock: Some(5000 + 500 + 2),
        ..to_client
    };
    assert_eq!(cut.to_server, to_server);
}

#[test]
fn what_is_under_way_is_kept_and_a_gap_is_no_moment() {
    let begun = now();
    let late = begun + OBSERVE_MIN;
    let mut observation = Observation::begin(begun, TERMS);
    let mut see = |up, seq, ack, payload: &[u8]| {
        observation.see(begun, &segment(up, seq, ack, payload)).unwrap();
        observation.cut(late, flow())
    };
    see(false, 900, 100, &[]);
    assert_eq!(see(true, 100, 900, &octets(100, 200)), None, "nothing of it has been acknowledged");
    assert!(see(false, 900, 150, &[]).is_some());
    assert_eq!(see(true, 300, 900, &octets(300, 400)), None, "a gap");
    assert_eq!(see(false, 900, 200, &[]), None);
    let cut = see(true, 200, 900, &octets(200, 300)).unwrap();
    assert_eq!((cut.to_server.first, cut.to_server.unacknowledged), (200, octets(200, 400)));
    assert_eq!(cut.to_client.expects, 400);
    // More is acknowledged than was ever seen: what was seen was sent again.
    assert_eq!(see(false, 900, 500, &[]).unwrap().to_client.expects, 500);
    assert_eq!(see(true, 700, 900, &octets(700, 800)), None);
}

/// The client repeats what is lost at the front; its receiver has what came before anybody looked, behind a gap.
#[test]
fn a_repeated_front_is_no_moment() {
    let begun = now();
    let late = begun + OBSERVE_MIN;
    let mut observation = Observation::begin(begun, TERMS);
    let mut see = |seg: Segment<'_>| {
        observation.see(begun, &seg).unwrap();
        observation.cut(late, flow())
    };
    let ack = |ack, sacked| Segment { sacked, ..segment(false, 900, ack, &[]) };
    assert_eq!(see(ack(100, Some(9_000))), None);
    assert_eq!(see(segment(true, 100, 900, &octets(100, 1548))), None);
    assert_eq!(see(ack(1548, Some(9_000))), None, "a hole behind it");
    // Only some blocks are shown, and what is repeated reaches beyond them.
    assert_eq!(see(segment(true, 1548, 900, &octets(1548, 9_000))), None);
    assert_eq!(see(segment(true, 9_000, 900, &octets(9_000, 9_100))), None);
    assert_eq!(see(ack(9_050, Some(9_060))), None, "another gap");
    assert_eq!(see(ack(9_100, None)).unwrap().to_client.expects, 9_100);
}

#[test]
fn who_cannot_tell_of_a_gap_is_left_alone() {
    let mut observation = Observation::begin(now(), Terms { sack: false, ..TERMS });
    assert_eq!(observation.see(now(), &segment(true, 1, 2, &[])), Err(Reason::AdoptUnsteady));
}

#[test]
fn the_furthest_block_behind_a_gap_is_read() {
    use crate::packet::View;
    let blocks = |blocks: &[(u32, u32)]| {
        let mut option = vec![1, 1, 5, u8::try_from(2 + blocks.len() * 8).unwrap()];
        for (from, to) in blocks {
            option.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
        }
        let packet = crate::packet::forge::syn(&flow(), 1, &option).unwrap();
        let view = View::parse(&packet).unwrap();
        Segment::of(&view.tcp().unwrap(), true).sacked
    };
    // A SYN acknowledges 0.
    assert_eq!(blocks(&[(500, 600), (700, 900), (200, 300)]), Some(900));
    assert_eq!(blocks(&[(u32::MAX - 9, u32::MAX)]), None, "it came twice");
}

#[test]
fn what_ends_or_cannot_be_known_is_left_alone() {
    let begun = now();
    for (flags, why) in [
        (ACK | FIN, Reason::AdoptEnding),
        (RST, Reason::AdoptEnding),
        (SYN, Reason::AdoptEnding),
        (SYN | ACK, Reason::AdoptEnding),
        (0, Reason::AdoptUnsteady),
        (ACK | URG, Reason::AdoptUnsteady),
    ] {
        let mut observation = Observation::begin(begun, TERMS);
        let segment = Segment { flags, ..segment(true, 1, 2, &[]) };
        assert_eq!(observation.see(begun, &segment), Err(why), "{flags:x}");
    }
    let mut observation = Observation::begin(begun, TERMS);
    let big = vec![0; 60_000];
    let outcome = (0..2000_u32).map(|n| observation.see(begun, &segment(true, n * 60_000, 1, &big)));
    assert_eq!(outcome.last(), Some(Err(Reason::AdoptFull)));
    let mut observation = Observation::begin(begun, TERMS);
    let late = begun + OBSERVE_MAX + Duration::from_millis(1);
    assert!(observation.expired(late) && !observation.expired(begun));
    assert_eq!(observation.see(late, &segment(true, 1, 1, &[])), Err(Reason::AdoptUnsteady));
}

/// A sender that goes on, repeats and is acknowledged at random; whoever looks begins in the middle and misses nothing
/// from then on.
#[derive(Clone, Copy, Debug)]
enum Step {
    Send(u8),
    Repeat(u8, u8),
    Acknowledge(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        any::<u8>().prop_map(Step::Send),
        (any::<u8>(), any::<u8>()).prop_map(|(back, len)| Step::Repeat(back, len)),
        any::<u8>().prop_map(Step::Acknowledge),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    /// Whenever there is a moment, the two sockets have exactly what is under way: what the receiver has not
    /// acknowledged, up to what was sent last, octet for octet, and nobody waits for a number that does not come.
    #[test]
    fn a_cut_neither_loses_nor_doubles(before in steps(), after in steps()) {
        let begun = now();
        let mut observation = Observation::begin(begun, TERMS);
        let (mut sent, mut acked) = (START, START);
        // The number below which whoever looks has seen everything that was sent and not acknowledged.
        let mut watched_from = None;
        for (step, seen) in before.iter().map(|s| (s, false)).chain(after.iter().map(|s| (s, true))) {
            if seen {
                watched_from.get_or_insert(sent);
            }
            let packet = match *step {
                Step::Send(n) => {
                    let from = sent;
                    sent = sent.wrapping_add(u32::from(n));
                    (true, from, sent)
                }
                Step::Repeat(back, n) => {
                    let under_way = sent.wrapping_sub(acked);
                    let from = sent.wrapping_sub(u32::from(back).min(under_way));
                    let to = from.wrapping_add(u32::from(n).min(sent.wrapping_sub(from)));
                    (true, from, to)
                }
                Step::Acknowledge(n) => {
                    acked = acked.wrapping_add(u32::from(n).min(sent.wrapping_sub(acked)));
                    (false, 0, 0)
                }
            };
            if !seen {
                continue;
            }
            match packet {
                (true, from, to) => observation.see(begun, &segment(true, from, 900, &octets(from, to))).unwrap(),
                (false, ..) => observation.see(begun, &segment(false, 900, acked, &[])).unwrap(),
            }
            // What was under way when the looking began is acknowledged by now, as it is half a second later.
            let certain = watched_from.is_some_and(|from| !behind(acked, from));
            if let Some(cut) = observation.cut(begun + OBSERVE_MIN, flow())
                && certain
            {
                let Half { first, unacknowledged, .. } = cut.to_server;
                prop_assert_eq!(first, acked);
                prop_assert_eq!(&unacknowledged, &octets(acked, sent));
                prop_assert_eq!(cut.to_client.expects, sent);
            }
        }
    }

    #[test]
    fn passed_connections_outlive_the_process(ports in prop::collection::vec((any::<u16>(), 0_u8..=14), 0..20), cut in any::<prop::sample::Index>()) {
        let wall = crate::now::UnixMillis(1_000_000);
        let mut passed = Passed::default();
        for (port, scale) in &ports {
            let flow = Flow { client: SocketAddr::new(flow().client.ip(), *port), ..flow() };
            let facts = SynFacts { mss: Some(1400), window_scale: Some(*scale), ..SynFacts::default() };
            passed.syn(flow, 7, facts);
            passed.syn_ack(wall, flow, 9, &facts);
            prop_assert!(passed.terms(&flow).is_none_or(|terms| terms.mss == 1400), "another's answer");
            passed.syn_ack(wall, flow, 8, &facts);
        }
        let rows = passed.rows();
        let kept = encode(&rows);
        prop_assert_eq!(decode(&kept), Some(rows.clone()));
        prop_assert_eq!(decode(&kept[..cut.index(kept.len())]), None);
        let mut later = Passed::default();
        later.restore(wall.plus(Duration::from_secs(3600)), &rows);
        prop_assert_eq!(later.rows(), rows.clone());
        let mut too_late = Passed::default();
        too_late.restore(wall.plus(Duration::from_secs(90_000)), &rows);
        prop_assert_eq!(too_late.rows(), vec![]);
        let mut set_back = Passed::default();
        set_back.restore(crate::now::UnixMillis(wall.0 - 1), &rows);
        prop_assert_eq!(set_back.rows(), vec![]);
    }

    #[test]
    fn noise_is_no_panic(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&noise);
        let _ = decode(&[&b"WPF\x01"[..], &noise].concat());
    }
}
