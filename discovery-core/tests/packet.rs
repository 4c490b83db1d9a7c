//! Packets altered and made, against two readers that share no code with them: a plain one below, which computes
//! every checksum anew, and etherparse.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a second reader is to be plain")]

use discovery_core::{
    flow::Flow,
    packet::{
        Acknowledged, Item, Kind, LONGEST_MAX, Options, Protocol, Refused, Unprobed, Unreachable, View,
        forge, splice, strip,
    },
    probe::{Codec, Found, KeyHint, Probe, Query, Response},
};
use etherparse::{SlicedPacket, TransportSlice};
use proptest::prelude::*;
use std::hint::black_box;

#[test]
fn a_linux_syn_grows_by_eight_octets() {
    for ip in [Ip::V4 { options: vec![] }, Ip::V4 { options: vec![7; 4] }, Ip::V6 { extensions: vec![] }] {
        let packet = Packet { ip, options: LINUX_SYN.to_vec(), ..Packet::syn() }.octets();
        let out = spliced(&packet).unwrap();
        assert_eq!(out.len(), packet.len() + 8);
        let view = View::parse(&out).unwrap();
        let options = view.tcp().unwrap().options_octets();
        assert_eq!(options, [LINUX_SYN, &[253, 6, 0x57, 0x50, 0x11, 0, 0, 0]].concat());
        assert_sound(&out);
    }
}

/// Every kind with every length, alone in areas of 4 to 40 octets filled with NOP: a signed or unreadable one stays
/// away, a full area is squeezed, everything else stays as it was.
#[test]
fn every_kind_and_length_is_spliced_or_left_alone() {
    for kind in 0..=u8::MAX {
        for words in 1..=10_usize {
            for length in 0..=41_u8 {
                let mut area = vec![1; words * 4];
                area[0] = kind;
                area[1] = if kind < 2 { 1 } else { length };
                let packet = Packet { options: area.clone(), ..Packet::syn() }.octets();
                check_splice(&packet, &area);
            }
        }
    }
}

#[test]
fn fast_open_leaves_room_for_a_query_only() {
    // MSS, SACK permitted with timestamps, NOP, window scale, fast open with a cookie of eight, two NOPs: 32 octets.
    let mut area = LINUX_SYN.to_vec();
    area.extend_from_slice(&[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1]);
    let data = b"GET / HTTP/1.1\r\n".to_vec();
    let packet = Packet { options: area.clone(), data: data.clone(), ..Packet::syn() }.octets();
    let out = spliced(&packet).unwrap();
    let view = View::parse(&out).unwrap();
    assert_eq!(view.tcp().unwrap().payload(), data);
    assert_eq!(view.tcp().unwrap().options_octets().len(), 40);
    check_splice(&packet, &area);
    let response = Codec::default().encode(&Probe::Response(Response {
        link: "10.8.0.1:7777".parse().unwrap(),
        key: KeyHint([7; 8]),
        connected: true,
    }));
    let mut out = Vec::new();
    let view = View::parse(&packet).unwrap();
    assert_eq!(splice(&view, response.octets(), LONGEST_MAX, &mut out), Err(Unprobed::Full));
}

#[test]
fn what_is_left_alone() {
    let syn = Packet::syn;
    let rows: &[(&str, Packet, Unprobed)] = &[
        ("md5", Packet { options: [&[19, 18][..], &[0; 16], &[1, 1]].concat(), ..syn() }, Unprobed::Signed),
        ("ao", Packet { options: vec![29, 4, 0, 0], ..syn() }, Unprobed::Signed),
        ("length 0", Packet { options: vec![2, 0, 0, 0], ..syn() }, Unprobed::Malformed),
        ("cut off", Packet { options: vec![1, 1, 8, 10], ..syn() }, Unprobed::Malformed),
        ("ours", Packet { options: vec![253, 6, 0x57, 0x50, 9, 9, 0, 0], ..syn() }, Unprobed::Present),
        ("full", Packet { options: vec![77, 40], ..syn() }.filled(), Unprobed::Full),
        ("35 octets", Packet { options: vec![77, 35], ..syn() }.filled(), Unprobed::Full),
        ("syn-ack", Packet { flags: 0x12, ..syn() }, Unprobed::NotSyn),
        ("syn and rst", Packet { flags: 0x06, ..syn() }, Unprobed::NotSyn),
        ("syn and fin", Packet { flags: 0x03, ..syn() }, Unprobed::NotSyn),
        ("ack", Packet { flags: 0x10, ..syn() }, Unprobed::NotSyn),
        ("longest", Packet { data: vec![7; 65_535 - 40], ..syn() }, Unprobed::TooLong),
    ];
    for (name, packet, why) in rows {
        assert_eq!(spliced(&packet.octets()), Err(*why), "{name}");
    }
    // ECN-setup SYN (RFC 3168) and another's experiment are none of our business.
    for packet in
        [Packet { flags: 0xC2, ..syn() }, Packet { options: vec![253, 4, 0x57, 0x51], ..syn() }, syn()]
    {
        assert_sound(&spliced(&packet.octets()).unwrap());
    }
}

#[test]
fn a_syn_with_data_stays_within_what_the_way_carries() {
    let packet = Packet { data: vec![7; 1452], ..Packet::syn() }.octets();
    let view = View::parse(&packet).unwrap();
    let mut out = Vec::new();
    assert_eq!(splice(&view, &query(), packet.len() + 7, &mut out), Err(Unprobed::TooLong));
    assert_eq!(splice(&view, &query(), packet.len() + 8, &mut out), Ok(()));
}

#[test]
fn stripping_makes_nothing_readable() {
    // Two octets short; filled up to words it would be an option of ours.
    let area = [&[253, 6, 0x57, 0x50, 0x11, 0][..], &[1, 1], &[253, 6, 0x57, 0x50]].concat();
    let packet = Packet { options: area, ..Packet::syn() }.octets();
    let mut out = Vec::new();
    assert!(strip(&View::parse(&packet).unwrap(), |option| Codec::default().owns(option), &mut out));
    assert_sound(&out);
    let after = View::parse(&out).unwrap().tcp().unwrap();
    assert_eq!(after.options_octets(), [1, 1, 1, 1, 1, 1, 1, 1, 253, 6, 0x57, 0x50]);
}

#[test]
fn a_damaged_packet_stays_damaged() {
    let mut packet = Packet::syn().octets();
    let last = packet.len() - 1;
    packet[last] ^= 0x40;
    assert!(!checksums_hold(&packet));
    assert!(!checksums_hold(&spliced(&packet).unwrap()));
}

#[test]
fn what_is_no_packet_for_us() {
    let good = Packet::syn().octets();
    let changed = |at: usize, to: u8| {
        let mut octets = good.clone();
        octets[at] = to;
        octets
    };
    let v6 = |extensions: &[u8]| {
        Packet { ip: Ip::V6 { extensions: extensions.to_vec() }, ..Packet::syn() }.octets()
    };
    let v4 = |options: &[u8]| Packet { ip: Ip::V4 { options: options.to_vec() }, ..Packet::syn() }.octets();
    let rows: &[(&str, Vec<u8>, Refused)] = &[
        ("empty", vec![], Refused::Version),
        ("version 5", changed(0, 0x55), Refused::Version),
        ("header of 16", changed(0, 0x44), Refused::IpLength),
        ("total below the header", changed(3, 19), Refused::IpLength),
        ("total beyond", changed(3, 200), Refused::Truncated),
        ("more fragments", changed(6, 0x20), Refused::Fragment),
        ("an offset", changed(7, 1), Refused::Fragment),
        ("icmp", changed(9, 1), Refused::Protocol(1)),
        ("ipsec", changed(9, 51), Refused::Authenticated),
        ("data offset 4", changed(32, 0x40), Refused::TransportLength),
        ("data offset beyond", changed(32, 0xF0), Refused::TransportLength),
        ("source route pending", v4(&[131, 7, 4, 10, 0, 0, 1, 0]), Refused::SourceRoute),
        ("fragment header", v6(&[44, 6, 0, 0, 0, 0, 0, 0, 0]), Refused::Fragment),
        ("routing header", v6(&[43, 6, 0, 4, 1, 0, 0, 0, 0]), Refused::SourceRoute),
        ("authentication header", v6(&[51, 6, 1, 0, 0, 0, 0, 0, 0]), Refused::Authenticated),
        ("no next header", v6(&[60, 59, 0, 0, 0, 0, 0, 0, 0]), Refused::Protocol(59)),
        ("extensions", v6(&[&[0][..], &[60, 0, 0, 0, 0, 0, 0, 0].repeat(9)].concat()), Refused::Extensions),
        ("extension beyond", v6(&[0, 6, 200, 0, 0, 0, 0, 0, 0]), Refused::IpLength),
    ];
    for (name, octets, why) in rows {
        assert_eq!(View::parse(octets).err(), Some(*why), "{name}");
    }
    for end in 0..good.len() {
        assert!(View::parse(&good[..end]).is_err(), "cut at {end}");
    }
    // Filling of a link behind the packet is left out.
    let padded = [&good[..], &[0; 9]].concat();
    assert_eq!(View::parse(&padded).unwrap().octets(), good);
    // A route that has been gone, and IPv4 options that nobody can read, hide nothing.
    for options in [&[131, 7, 8, 10, 0, 0, 1, 0][..], &[131, 0, 0, 0], &[68, 255, 0, 0]] {
        assert!(View::parse(&v4(options)).is_ok(), "{options:?}");
    }
    let chain = v6(&[0, 43, 0, 5, 2, 0, 0, 0, 0, 60, 0, 4, 0, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0]);
    let view = View::parse(&chain).unwrap();
    assert_eq!((view.dst().port(), view.tcp().unwrap().kind()), (143, Kind::Syn));
    assert_sound(&spliced(&chain).unwrap());
}

#[test]
fn kinds_of_segments() {
    let rows = [
        (0x02, Kind::Syn),
        (0xC2, Kind::Syn),
        (0x12, Kind::SynAck),
        (0x52, Kind::SynAck),
        (0x04, Kind::Rst),
        (0x14, Kind::Rst),
        (0x06, Kind::Rst),
        (0x10, Kind::Other),
        (0x11, Kind::Other),
        (0x03, Kind::Other),
        (0x00, Kind::Other),
    ];
    for (flags, kind) in rows {
        let packet = Packet { flags, ..Packet::syn() }.octets();
        assert_eq!(View::parse(&packet).unwrap().tcp().unwrap().kind(), kind, "{flags:#x}");
    }
}

#[test]
fn udp_is_read() {
    for (from, to) in [("10.1.0.2:5353", "10.2.0.2:53"), ("[fd01::2]:5353", "[fd02::2]:53")] {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        let packet = forge::datagram(from, to, b"odd").unwrap();
        assert!(checksums_hold(&packet));
        let view = View::parse(&packet).unwrap();
        assert_eq!((view.protocol(), view.src(), view.dst()), (Protocol::Udp, from, to));
        assert_eq!((view.datagram(), view.tcp().is_none()), (Some(&b"odd"[..]), true));
        let mut out = vec![1];
        assert_eq!(splice(&view, &query(), LONGEST_MAX, &mut out), Err(Unprobed::NotSyn));
        assert!(out.is_empty());
        assert!(!strip(&view, |_| true, &mut out));
        assert_eq!(out, packet);
        for length in [0, 7, 12] {
            let mut wrong = packet.clone();
            let at = packet.len() - 6;
            wrong[at] = length;
            assert_eq!(View::parse(&wrong).err(), Some(Refused::TransportLength), "{length}");
        }
        assert!(forge::datagram(from, to, &[0; 1201]).is_err());
    }
}

#[test]
fn forged_packets_are_what_they_say() {
    for (client, server) in [("10.1.0.2:34312", "10.2.0.2:143"), ("[fd01::2]:34312", "[fd02::2]:143")] {
        let flow = Flow { client: client.parse().unwrap(), server: server.parse().unwrap() };
        let codec = Codec::default();
        let response = Probe::Response(Response {
            link: "[fd08::1]:7777".parse().unwrap(),
            key: KeyHint([7; 8]),
            connected: true,
        });
        let isn = u32::MAX;
        for (acknowledged, ack) in [(Acknowledged::Isn, isn), (Acknowledged::IsnPlusOne, 0)] {
            let octets =
                forge::syn_ack(&flow, isn, acknowledged, 99, codec.encode(&response).octets()).unwrap();
            assert_sound(&octets);
            let view = View::parse(&octets).unwrap();
            let tcp = view.tcp().unwrap();
            assert_eq!((view.src(), view.dst()), (flow.server, flow.client));
            assert_eq!((tcp.kind(), tcp.seq(), tcp.ack()), (Kind::SynAck, 99, ack));
            assert_eq!(codec.find(tcp.options()), Found::Probe(response));
        }
        let octets = forge::refused(&flow, isn).unwrap();
        assert_sound(&octets);
        let view = View::parse(&octets).unwrap();
        let tcp = view.tcp().unwrap();
        assert_eq!((view.src(), view.dst()), (flow.server, flow.client));
        assert_eq!((tcp.flags(), tcp.seq(), tcp.ack()), (0x14, 0, 0));
        let octets = forge::reset(flow.client, flow.server, 7).unwrap();
        assert_sound(&octets);
        let view = View::parse(&octets).unwrap();
        assert_eq!((view.src(), view.dst()), (flow.client, flow.server));
        assert_eq!((view.tcp().unwrap().flags(), view.tcp().unwrap().seq()), (0x04, 7));
        let octets = forge::syn(&flow, 5, &query()).unwrap();
        assert_sound(&octets);
        let tcp = View::parse(&octets).unwrap().tcp().unwrap();
        assert_eq!(codec.find(tcp.options()), Found::Probe(Probe::Query(Query)));
        assert_eq!(tcp.syn_facts().mss, Some(if flow.server.is_ipv4() { 1460 } else { 1440 }));
        assert!(forge::syn(&flow, 5, &[9; 37]).is_err());
    }
    let mixed = Flow { client: "10.1.0.2:1".parse().unwrap(), server: "[::1]:2".parse().unwrap() };
    assert!(forge::refused(&mixed, 1).is_err());
}

#[test]
fn unreachable_quotes_the_packet() {
    for (ip, expected) in [
        (Ip::V4 { options: vec![] }, [(3, 0), (3, 1), (3, 3), (3, 13)]),
        (Ip::V6 { extensions: vec![] }, [(1, 0), (1, 3), (1, 4), (1, 1)]),
    ] {
        for data in [0, 2000] {
            let packet = Packet { ip: ip.clone(), data: vec![3; data], ..Packet::syn() }.octets();
            let view = View::parse(&packet).unwrap();
            let words = [Unreachable::Network, Unreachable::Host, Unreachable::Port, Unreachable::Prohibited];
            for (why, (kind, code)) in words.into_iter().zip(expected) {
                let octets = forge::unreachable(&view, why, None).unwrap();
                assert!(checksums_hold(&octets));
                let sliced = SlicedPacket::from_ip(&octets).unwrap();
                let (found, payload) = match sliced.transport.unwrap() {
                    TransportSlice::Icmpv4(icmp) => {
                        assert!(octets.len() <= 576);
                        ((icmp.type_u8(), icmp.code_u8()), icmp.payload().to_vec())
                    }
                    TransportSlice::Icmpv6(icmp) => {
                        assert!(octets.len() <= 1280);
                        ((icmp.type_u8(), icmp.code_u8()), icmp.payload().to_vec())
                    }
                    other @ (TransportSlice::Udp(_) | TransportSlice::Tcp(_) | TransportSlice::Igmp(_)) => {
                        panic!("{other:?}")
                    }
                };
                assert_eq!(found, (kind, code));
                assert!(payload.len() >= 40 && packet.starts_with(&payload));
            }
        }
    }
}

/// `cargo test --release -p discovery-core --test packet -- --ignored --nocapture`
#[test]
#[ignore = "a figure, to be read by a person"]
#[allow(clippy::disallowed_methods, reason = "it measures time")]
fn what_a_syn_costs() {
    const ROUNDS: u32 = 2_000_000;
    let mut out = Vec::new();
    for (name, ip) in [("IPv4", Ip::V4 { options: vec![] }), ("IPv6", Ip::V6 { extensions: vec![] })] {
        let packet = Packet { ip, options: LINUX_SYN.to_vec(), ..Packet::syn() }.octets();
        let query = query();
        let began = std::time::Instant::now();
        for _ in 0..ROUNDS {
            black_box(View::parse(black_box(&packet)).unwrap());
        }
        let parsed = began.elapsed();
        let began = std::time::Instant::now();
        for _ in 0..ROUNDS {
            let view = View::parse(black_box(&packet)).unwrap();
            assert_eq!(Codec::default().find(view.tcp().unwrap().options()), Found::Nothing);
            splice(&view, &query, LONGEST_MAX, &mut out).unwrap();
            black_box(&out);
        }
        let each = |time: std::time::Duration| time.as_nanos() / u128::from(ROUNDS);
        println!("{name}: read {} ns, read and spliced {} ns", each(parsed), each(began.elapsed()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_options_are_spliced_or_left_alone(packet in packet(area())) {
        check_splice(&packet.octets(), &packet.options);
    }

    #[test]
    fn any_octets_as_options_are_spliced_or_left_alone(
        packet in packet((0..=10_usize).prop_flat_map(|words| prop::collection::vec(any::<u8>(), words * 4))),
    ) {
        check_splice(&packet.octets(), &packet.options);
    }

    /// What went in comes out, whatever stood there.
    #[test]
    fn strip_undoes_splice(packet in packet(area())) {
        let octets = packet.octets();
        let Ok(out) = spliced(&octets) else { return Ok(()) };
        let view = View::parse(&out).unwrap();
        let mut back = Vec::new();
        prop_assert!(strip(&view, |option| Codec::default().owns(option), &mut back));
        assert_sound(&back);
        let tcp = View::parse(&back).unwrap().tcp().unwrap();
        prop_assert_eq!(reference(tcp.options_octets()), reference(&packet.options));
        prop_assert_eq!(tcp.payload(), &packet.data[..]);
        // Without a list's end before its time nothing needs filling, and unless it was squeezed all is as it was.
        let ended = Options::new(&packet.options).any(|item| item == Item::End);
        if !ended && packet.options.len() <= 32 {
            prop_assert_eq!(back, octets);
        }
    }

    #[test]
    fn any_octets_are_read_or_refused(octets in prop::collection::vec(any::<u8>(), 0..120), first in 0x40_u8..0x70) {
        let mut octets = octets;
        if let Some(octet) = octets.first_mut() { *octet = first; }
        if let Ok(view) = View::parse(&octets) {
            let mut out = Vec::new();
            let _ = splice(&view, &query(), LONGEST_MAX, &mut out);
            strip(&view, |_| true, &mut out);
            prop_assert!(View::parse(&out).is_ok());
        }
    }
}

/// Splices a query in and checks all that is promised of it.
fn check_splice(packet: &[u8], area: &[u8]) {
    let items = reference(area);
    let kinds: Vec<u8> = items.iter().flatten().map(|option| option[0]).collect();
    let ours = |option: &&Vec<u8>| option.len() >= 4 && option[0] == 253 && option[2..4] == [0x57, 0x50];
    let mut out = Vec::new();
    let view = View::parse(packet).unwrap();
    let done = splice(&view, &query(), LONGEST_MAX, &mut out);
    let expected = if items.is_none() {
        // Which of two reasons comes first is of no importance.
        assert!(done.is_err());
        return;
    } else if kinds.contains(&19) || kinds.contains(&29) {
        assert!(done.is_err());
        return;
    } else if items.iter().flatten().any(|option| ours(&option)) {
        Err(Unprobed::Present)
    } else if items.iter().flatten().map(Vec::len).sum::<usize>() + 6 > 40 {
        Err(Unprobed::Full)
    } else {
        Ok(())
    };
    assert_eq!(done, expected, "{area:?}");
    if done.is_err() {
        assert!(out.is_empty());
        return;
    }
    assert_sound(&out);
    let (before, after) = (view.tcp().unwrap(), View::parse(&out).unwrap().tcp().unwrap());
    assert_eq!(before.payload(), after.payload());
    let mut expected = items.unwrap();
    expected.push(query());
    assert_eq!(reference(after.options_octets()).unwrap(), expected, "all of its own, then ours: {area:?}");
    // Outside lengths, checksums and options no octet differs.
    let tcp_at = packet.len() - before.payload().len() - area.len() - 20;
    let lengths: &[usize] = if packet[0] >> 4 == 4 { &[2, 3, 10, 11] } else { &[4, 5] };
    for at in (0..tcp_at + 20).filter(|at| !lengths.contains(at)) {
        let altered = [tcp_at + 12, tcp_at + 16, tcp_at + 17].contains(&at);
        assert!(altered || packet[at] == out[at], "octet {at}");
    }
    assert_eq!(packet[tcp_at + 12] & 15, out[tcp_at + 12] & 15);
    let meant = meaning(area);
    if meant.len() + 6 <= 40 {
        assert!(after.options_octets().starts_with(&meant), "filling stays while there is room");
    }
}

/// The options without filling; none when they cannot be read.
fn reference(area: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut at, mut found) = (0, Vec::new());
    while at < area.len() {
        match area[at] {
            0 => break,
            1 => at += 1,
            _ => {
                let length = usize::from(*area.get(at + 1)?);
                if length < 2 || at + length > area.len() {
                    return None;
                }
                found.push(area[at..at + length].to_vec());
                at += length;
            }
        }
    }
    Some(found)
}

/// What stands before the end of the list.
fn meaning(area: &[u8]) -> Vec<u8> {
    let mut at = 0;
    while at < area.len() && area[at] != 0 {
        at +=
            if area[at] == 1 { 1 } else { area.get(at + 1).map_or(1, |&length| usize::from(length).max(1)) };
    }
    area[..at.min(area.len())].to_vec()
}

/// Lengths and checksums hold, and etherparse reads the same.
fn assert_sound(octets: &[u8]) {
    assert!(checksums_hold(octets), "{octets:x?}");
    let view = View::parse(octets).unwrap();
    let sliced = SlicedPacket::from_ip(octets).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP: {octets:x?}") };
    let ours = view.tcp().unwrap();
    assert_eq!((tcp.source_port(), tcp.destination_port()), (view.src().port(), view.dst().port()));
    assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (ours.seq(), ours.ack()));
    assert_eq!((tcp.options(), tcp.payload()), (ours.options_octets(), ours.payload()));
}

/// All checksums, computed anew.
fn checksums_hold(octets: &[u8]) -> bool {
    let (at, pseudo) = if octets[0] >> 4 == 4 {
        let at = usize::from(octets[0] & 15) * 4;
        assert_eq!(usize::from(u16::from_be_bytes([octets[2], octets[3]])), octets.len());
        let length = u16::try_from(octets.len() - at).unwrap().to_be_bytes();
        if sum(&octets[..at]) != 0xFFFF {
            return false;
        }
        (at, [&octets[12..20], &[0, octets[9]], &length].concat())
    } else {
        assert_eq!(40 + usize::from(u16::from_be_bytes([octets[4], octets[5]])), octets.len());
        let (mut next, mut at) = (octets[6], 40);
        while [0, 43, 60].contains(&next) {
            next = octets[at];
            at += (usize::from(octets[at + 1]) + 1) * 8;
        }
        let length = u32::try_from(octets.len() - at).unwrap().to_be_bytes();
        (at, [&octets[8..40], &length, &[0, 0, 0, next]].concat())
    };
    // ICMP for IPv4 has no pseudo-header.
    let covered = if pseudo[9] == 1 && octets[0] >> 4 == 4 { vec![] } else { pseudo };
    sum(&[&covered[..], &octets[at..]].concat()) == 0xFFFF
}

fn sum(octets: &[u8]) -> u32 {
    let mut sum: u32 = octets
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)))
        .sum();
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum
}

/// A packet to be written, field by field.
#[derive(Clone, Debug)]
struct Packet {
    ip: Ip,
    identification: u16,
    flags: u8,
    options: Vec<u8>,
    data: Vec<u8>,
}

/// `extensions`: the first next header, then the headers themselves.
#[derive(Clone, Debug)]
enum Ip {
    V4 { options: Vec<u8> },
    V6 { extensions: Vec<u8> },
}

impl Packet {
    fn syn() -> Self {
        Self {
            ip: Ip::V4 { options: vec![] },
            identification: 0xBEEF,
            flags: 0x02,
            options: vec![],
            data: vec![],
        }
    }

    /// The option that was begun, to its end, and NOPs up to 40 octets.
    fn filled(mut self) -> Self {
        let length = usize::from(self.options[1]);
        self.options.resize(length, 0xA5);
        self.options.resize(40, 1);
        self
    }

    fn octets(&self) -> Vec<u8> {
        let mut tcp = vec![0x86, 0x08, 0, 143, 1, 2, 3, 4, 5, 6, 7, 8];
        tcp.push(u8::try_from(5 + self.options.len() / 4).unwrap() << 4 | 1);
        tcp.extend_from_slice(&[self.flags, 0xFA, 0xF0, 0, 0, 0, 9]);
        tcp.extend_from_slice(&self.options);
        tcp.extend_from_slice(&self.data);
        let length = u16::try_from(tcp.len()).unwrap();
        let mut packet;
        let pseudo = match &self.ip {
            Ip::V4 { options } => {
                packet = vec![0x45 + u8::try_from(options.len() / 4).unwrap(), 0x48];
                packet
                    .extend_from_slice(&(20 + u16::try_from(options.len()).unwrap() + length).to_be_bytes());
                packet.extend_from_slice(&self.identification.to_be_bytes());
                packet.extend_from_slice(&[0x40, 0, 63, 6, 0, 0, 10, 1, 0, 2, 10, 2, 0, 2]);
                packet.extend_from_slice(options);
                let header = !u16::try_from(sum(&packet)).unwrap();
                packet[10..12].copy_from_slice(&header.to_be_bytes());
                [&packet[12..20], &[0, 6], &length.to_be_bytes()].concat()
            }
            Ip::V6 { extensions } => {
                let (next, headers) = extensions.split_first().unwrap_or((&6, &[]));
                let payload = length + u16::try_from(headers.len()).unwrap();
                packet = vec![0x60, 0x12, 0x34, 0x56];
                packet.extend_from_slice(&payload.to_be_bytes());
                packet.extend_from_slice(&[*next, 63]);
                for host in [1, 2] {
                    packet.extend_from_slice(&[0xfd, host, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
                }
                packet.extend_from_slice(headers);
                [&packet[8..40], &[0, 6], &length.to_be_bytes()].concat()
            }
        };
        let checksum = !u16::try_from(sum(&[pseudo, tcp.clone()].concat())).unwrap();
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
        packet.extend_from_slice(&tcp);
        packet
    }
}

/// Options as stacks send them, others, filling, and now and then an end.
fn area() -> impl Strategy<Value = Vec<u8>> {
    let item = prop_oneof![
        3 => Just(vec![1]),
        1 => Just(vec![0]),
        2 => Just(vec![2, 4, 5, 0xb4]),
        2 => Just(vec![4, 2]),
        2 => Just(vec![8, 10, 0, 0, 1, 0, 0, 0, 0, 0]),
        2 => Just(vec![3, 3, 7]),
        1 => Just(vec![253, 6, 0x57, 0x50, 0x11, 0]),
        1 => Just(vec![19, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        4 => (2_u8.., prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(kind, body)| {
            [&[kind, u8::try_from(body.len() + 2).unwrap()][..], &body].concat()
        }),
    ];
    prop::collection::vec(item, 0..8).prop_map(|items| {
        let mut area = Vec::new();
        for item in items {
            if area.len() + item.len() <= 40 {
                area.extend_from_slice(&item);
            }
        }
        area.resize(area.len().next_multiple_of(4), 0);
        area
    })
}

fn packet(options: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Packet> {
    let ip = prop_oneof![
        (0..=10_usize).prop_map(|words| Ip::V4 { options: vec![1; words * 4] }),
        (0..4_usize).prop_map(|headers| Ip::V6 {
            extensions: match headers {
                0 => vec![],
                1 => vec![0, 6, 0, 1, 4, 0, 0, 0, 0],
                2 => vec![0, 60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0],
                _ => [&[0, 6, 1][..], &[0; 14]].concat(),
            },
        }),
    ];
    (ip, any::<u16>(), options, prop::collection::vec(any::<u8>(), 0..50)).prop_map(
        |(ip, identification, options, data)| Packet { ip, identification, flags: 2, options, data },
    )
}

fn query() -> Vec<u8> {
    Codec::default().encode(&Probe::Query(Query)).octets().to_vec()
}

fn spliced(packet: &[u8]) -> Result<Vec<u8>, Unprobed> {
    let mut out = Vec::new();
    splice(&View::parse(packet).unwrap(), &query(), LONGEST_MAX, &mut out).map(|()| out)
}

const LINUX_SYN: &[u8] = &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 1, 0, 0, 0, 0, 0, 1, 3, 3, 7];
