use proptest::prelude::*;

use super::*;
use crate::wan::packet::tests::tcp4;

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

/// All packets with the times at which they come out, each popped exactly when due.
fn drain(pipe: &mut Pipe) -> Vec<(Duration, Vec<u8>)> {
    let mut out = Vec::new();
    while let Some(due) = pipe.due() {
        out.push((due, pipe.pop(due).unwrap()));
    }
    out
}

#[test]
fn a_packet_takes_its_sending_time_and_the_delay() {
    // 1,250 octets at 10 Mbit/s take 1 ms.
    let mut pipe = Pipe::new(Behaviour::link(100.0, 10.0), 1);
    assert!(pipe.push(ms(5), &[0; 1250]));
    assert!(pipe.push(ms(5), &[0; 1250]));
    let out: Vec<_> = drain(&mut pipe).into_iter().map(|(due, _)| due).collect();
    assert_eq!(out, [ms(56), ms(57)]);
    assert_eq!(pipe.counters.late_max_us, 0);
}

#[test]
fn a_full_queue_drops_at_the_tail_and_empties_with_time() {
    let behaviour = Behaviour { queue_octets: 3000, ..Behaviour::link(0.0, 1.0) };
    let mut pipe = Pipe::new(behaviour, 1);
    let taken = (0..5).filter(|_| pipe.push(ms(0), &[0; 1000])).count();
    assert_eq!((taken, pipe.counters.queue_drops), (3, 2));
    // 1,000 octets take 8 ms at 1 Mbit/s.
    assert!(pipe.push(ms(8), &[0; 1000]));
    assert!(!pipe.push(ms(8), &[0; 1000]));
}

#[test]
fn an_empty_queue_takes_a_packet_longer_than_itself() {
    let mut pipe = Pipe::new(Behaviour { queue_octets: 100, ..Behaviour::link(0.0, 1.0) }, 1);
    assert!(pipe.push(ms(0), &[0; 1000]));
}

#[test]
fn each_knob_counts_what_it_does() {
    let count = |behaviour: Behaviour| {
        let mut pipe = Pipe::new(behaviour, 7);
        for _ in 0..1000 {
            pipe.push(ms(0), &tcp4(100));
        }
        drain(&mut pipe);
        pipe.counters
    };
    let plain = Behaviour::default();
    assert_eq!(count(Behaviour { outage: true, ..plain.clone() }).outage_drops, 1000);
    assert_eq!(count(Behaviour { mtu_hole_octets: 139, ..plain.clone() }).mtu_drops, 1000);
    assert_eq!(count(Behaviour { mtu_hole_octets: 140, ..plain.clone() }).mtu_drops, 0);
    let lost = count(Behaviour { loss_percent: 5.0, ..plain.clone() }).lost_packets;
    assert!((20..100).contains(&lost), "{lost}");
    let burst = count(Behaviour { burst_percent: 1.0, burst_packets: 10, ..plain.clone() }).lost_packets;
    assert!((30..250).contains(&burst), "{burst}");
    let twice = count(Behaviour { duplicate_percent: 10.0, ..plain.clone() });
    assert!(twice.duplicates > 50 && twice.out_packets == 1000 + twice.duplicates);
    assert!(count(Behaviour { corrupt_percent: 10.0, ..plain }).corrupted > 50);
}

#[test]
fn a_burst_loses_neighbours() {
    let mut pipe = Pipe::new(Behaviour { burst_percent: 2.0, burst_packets: 4, ..Behaviour::default() }, 3);
    let lost: Vec<bool> = (0..2000).map(|_| !pipe.push(ms(0), &[0; 60])).collect();
    let mut runs: Vec<usize> = lost.split(|lost| !lost).map(<[bool]>::len).filter(|run| *run > 0).collect();
    runs.sort_unstable();
    assert_eq!(runs.first(), Some(&4), "no run of losses is shorter than a burst");
}

#[test]
fn an_overtaken_packet_comes_later_than_its_follower() {
    let mut pipe = Pipe::new(Behaviour { reorder_percent: 20.0, ..Behaviour::link(10.0, 0.0) }, 5);
    for number in 0..100u8 {
        pipe.push(ms(u64::from(number)), &[number; 60]);
    }
    let order: Vec<u8> = drain(&mut pipe).iter().map(|(_, packet)| packet[0]).collect();
    assert_eq!(order.len(), 100);
    assert!(!order.is_sorted());
}

#[test]
fn lateness_is_the_wait_behind_the_due_time() {
    let mut pipe = Pipe::new(Behaviour::link(20.0, 0.0), 1);
    pipe.push(ms(0), &[0; 60]);
    assert!(pipe.pop(ms(9)).is_none());
    assert!(pipe.pop(ms(13)).is_some());
    assert_eq!(pipe.counters.late_max_us, 3000);
}

#[test]
fn a_question_and_its_answer_are_one_round_trip() {
    let mut link = Link::new(LinkBehaviour::default(), 1);
    for (direction, payload) in [
        (Direction::Up, 20),
        (Direction::Down, 0),
        (Direction::Down, 1000),
        (Direction::Up, 0),
        (Direction::Down, 500),
        (Direction::Up, 0),
    ] {
        link.push(direction, ms(0), &tcp4(payload));
    }
    assert_eq!((link.counters().direction_changes, link.counters().round_trips()), (2, 1));
    link.push(Direction::Up, ms(0), &tcp4(9));
    assert_eq!(link.counters().round_trips(), 2);
    link.reset();
    assert_eq!(link.counters(), LinkCounters::default());
}

#[test]
fn a_shorter_delay_does_not_overtake_what_is_under_way() {
    let mut link = Link::new(LinkBehaviour::both(Behaviour::link(100.0, 0.0)), 1);
    link.push(Direction::Up, ms(0), &[1; 60]);
    link.set_behaviour(LinkBehaviour::default());
    link.push(Direction::Up, ms(1), &[2; 60]);
    assert_eq!(link.pop(Direction::Up, ms(49)), None);
    assert_eq!(link.pop(Direction::Up, ms(50)).map(|packet| packet[0]), Some(1));
    assert_eq!(link.pop(Direction::Up, ms(50)).map(|packet| packet[0]), Some(2));
}

prop_compose! {
    fn any_behaviour()(
        delay_ms in 0.0..200.0f64, rate_mbit in prop_oneof![Just(0.0), 0.5..100.0f64],
        queue_octets in 0u64..200_000, loss_percent in 0.0..20.0f64, burst_percent in 0.0..2.0f64,
        jitter_ms in 0.0..30.0f64, duplicate_percent in 0.0..10.0f64, corrupt_percent in 0.0..10.0f64,
        mtu_hole_octets in prop_oneof![Just(0u64), 500u64..1500],
    ) -> Behaviour {
        Behaviour { delay_ms, rate_mbit, queue_octets, loss_percent, burst_percent, jitter_ms, duplicate_percent,
            corrupt_percent, mtu_hole_octets, ..Behaviour::default() }
    }
}

proptest! {
    #[test]
    fn nothing_is_created_or_forgotten(
        behaviour in any_behaviour(), seed in any::<u64>(), reorder_percent in 0.0..50.0f64,
        packets in prop::collection::vec((0u64..5_000, 40usize..1500), 0..200),
    ) {
        let mut pipe = Pipe::new(Behaviour { reorder_percent, ..behaviour }, seed);
        let mut now = Duration::ZERO;
        for (gap, octets) in &packets {
            now += Duration::from_micros(*gap);
            pipe.push(now, &vec![0; *octets]);
            if seed % 2 == 0 { while pipe.pop(now).is_some() {} }
        }
        let under_way = u64::try_from(pipe.under_way()).unwrap();
        let c = pipe.counters.clone();
        let dropped = c.lost_packets + c.queue_drops + c.mtu_drops + c.outage_drops;
        prop_assert_eq!(c.in_packets + c.duplicates, c.out_packets + dropped + under_way);
        drain(&mut pipe);
        prop_assert_eq!(pipe.counters.out_packets, c.out_packets + under_way);
    }

    #[test]
    fn order_is_kept_unless_reorder_is_asked_for(
        behaviour in any_behaviour(), seed in any::<u64>(),
        packets in prop::collection::vec((0u64..5_000, 64usize..1500), 0..200),
    ) {
        let mut pipe = Pipe::new(Behaviour { corrupt_percent: 0.0, ..behaviour }, seed);
        let mut now = Duration::ZERO;
        for (number, (gap, octets)) in (0u32..).zip(&packets) {
            now += Duration::from_micros(*gap);
            let mut packet = vec![0; *octets];
            packet[..4].copy_from_slice(&number.to_be_bytes());
            pipe.push(now, &packet);
        }
        let order: Vec<_> = drain(&mut pipe).into_iter().map(|(_, packet)| packet[..4].to_vec()).collect();
        prop_assert!(order.is_sorted());
    }

    #[test]
    fn no_window_carries_more_than_the_rate(
        rate_mbit in 0.5..50.0f64, seed in any::<u64>(),
        packets in prop::collection::vec((0u64..2_000, 40usize..1500), 2..200),
    ) {
        let mut pipe = Pipe::new(Behaviour { queue_octets: u64::MAX >> 1, ..Behaviour::link(30.0, rate_mbit) }, seed);
        let mut now = Duration::ZERO;
        for (gap, octets) in &packets {
            now += Duration::from_micros(*gap);
            pipe.push(now, &vec![0; *octets]);
        }
        let out = drain(&mut pipe);
        let (first, last) = (out[0].0, out[out.len() - 1].0);
        // The first packet was sent before the window opened.
        let bits: usize = out[1..].iter().map(|(_, packet)| packet.len() * 8).sum();
        let seconds = (last - first).as_secs_f64();
        prop_assert!(bits as f64 <= rate_mbit * 1e6 * seconds + 1.0, "{bits} bits in {seconds} s");
    }
}
