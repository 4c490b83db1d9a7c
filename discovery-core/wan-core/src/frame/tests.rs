use super::*;
use crate::{
    hello::{Birth, Greeting, VERSION, Version},
    lane::LaneSet,
    notice::Candidate,
    open::Kind,
    reason::Violation,
    stream_id::Side,
};
use discovery_core::{id::ServerId, pmt::Prefix, probe::KeyHint};
use proptest::{collection::vec, prelude::*};

fn encoded(frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out
}

fn read(octets: &[u8]) -> Result<Option<Frame>, Violation> {
    decode(&mut BytesMut::from(octets))
}

#[test]
fn the_octets_of_known_frames() {
    let id = StreamId::new(Side::Second, Lane::Bulk, 2).unwrap();
    let rows: [(Frame, &[u8]); 6] = [
        (
            Frame::Data { id, offset: 64, hints: 1, octets: Bytes::from_static(b"ab") },
            b"\x08\x06\x13\x40\x40\x01\x00ab",
        ),
        (Frame::Fin { id, offset: 5 }, b"\x03\x07\x13\x05"),
        (Frame::Rst(Reset { id, reason: Reason::Busy, answer: true }), b"\x04\x08\x13\x0a\x01"),
        (Frame::Window { id, received: 1, limit: 2 }, b"\x04\x09\x13\x01\x02"),
        (Frame::Ping(258), b"\x09\x0b\0\0\0\0\0\0\x01\x02"),
        (Frame::Goaway(Reason::ShuttingDown), b"\x02\x0d\x0c"),
    ];
    for (frame, octets) in rows {
        assert_eq!(encoded(&frame), octets, "{frame:?}");
        assert_eq!(read(octets), Ok(Some(frame)));
    }
}

#[test]
fn what_breaks_a_rule_is_named() {
    let rows: [(&[u8], Violation); 17] = [
        (b"\x40\x03\x07\x13\x05", Violation::Overlong),
        (b"\x04\x07\x40\x13\x05", Violation::Overlong),
        (b"\x00", Violation::WrongLength),
        (b"\x80\x01\x01\x01", Violation::FrameTooLong),
        (b"\x02\x07\x13", Violation::WrongLength),
        (b"\x04\x07\x13\x05\x00", Violation::WrongLength),
        (b"\x03\x07\x01\x05", Violation::BadValue),
        (b"\x05\x06\x13\x00\x10\x00", Violation::BadValue),
        (b"\x05\x06\x13\x00\x00\x01", Violation::UnknownEncoding),
        (b"\x01\x00", Violation::UnknownType),
        (b"\x01\x11", Violation::UnknownType),
        (b"\x01\x20", Violation::UnknownType),
        (b"\x01\x3f", Violation::UnknownType),
        (b"\x01\x80", Violation::UnknownType),
        (b"\x03\x0a\x03\x00", Violation::BadValue),
        (b"\x03\x0e\x01\x00", Violation::BadValue),
        (b"\x05\x02\x00\x02\x00\x00", Violation::BadValue),
    ];
    for (octets, violation) in rows {
        assert_eq!(read(octets), Err(violation), "{}", octets.escape_ascii());
    }
}

#[test]
fn what_a_newer_minor_says_is_passed_over() {
    for kind in [kind::CANDIDATES_ONCE, kind::WARM, 0x41, 0x5a, 0x7f] {
        let mut octets = BytesMut::from(&[3, kind, 1, 2, 2, kind::GOAWAY, 12][..]);
        assert_eq!(decode(&mut octets), Ok(Some(Frame::Ignored)));
        assert_eq!(decode(&mut octets), Ok(Some(Frame::Goaway(Reason::ShuttingDown))));
    }
    let longer = b"\x04\x0d\x0c\x01\x02";
    assert_eq!(read(longer), Ok(Some(Frame::Goaway(Reason::ShuttingDown))));
}

/// Nodes of one version 1.0 that know a list of candidates, know one of another shape under 0x0f, and know none.
#[test]
fn a_list_of_candidates_is_passed_over_by_who_does_not_know_it() {
    let list = Candidates { networks: vec![Prefix::new([10, 2, 0, 0].into(), 16)], ..Candidates::default() };
    let octets = encoded(&Frame::Candidates(list));
    // What 1.0 ignores, as it always did.
    assert!(octets.get(1).is_some_and(|kind| (0x40..=0x7f).contains(kind)), "{octets:?}");
    let once = b"\x12\x0f\x04\x0a\x01\x00\x02\x1e\x61\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00";
    assert_eq!(read(once), Ok(Some(Frame::Ignored)));
}

#[test]
fn a_stream_opens_on_the_lane_of_its_class() {
    let frame = |class, lane| Frame::Open {
        id: StreamId::new(Side::First, lane, 1).unwrap(),
        limit: 0,
        open: OpenFrame {
            flow: Flow { client: ([10, 0, 0, 1], 1).into(), server: ([10, 0, 0, 2], 2).into() },
            class,
            kind: Kind::Carry,
            spoof: false,
            server: None,
        },
    };
    assert!(read(&encoded(&frame(Class::Bulk, Lane::Bulk))).is_ok());
    assert_eq!(read(&encoded(&frame(Class::Bulk, Lane::Interactive))), Err(Violation::WrongLane));
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..200_u64, 0..varint::MAX]
}

fn lane() -> impl Strategy<Value = Lane> {
    prop::sample::select(Lane::ALL.to_vec())
}

fn stream() -> impl Strategy<Value = StreamId> {
    (any::<bool>(), lane(), prop_oneof![1..9_u64, 1..varint::MAX >> 3]).prop_map(|(first, lane, counter)| {
        StreamId::new(if first { Side::First } else { Side::Second }, lane, counter).unwrap()
    })
}

fn reset() -> impl Strategy<Value = Reset> {
    let reason = prop::sample::select(Reason::ALL.to_vec());
    (stream(), reason, any::<bool>()).prop_map(|(id, reason, answer)| Reset { id, reason, answer })
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
        (any::<[u8; 16]>(), any::<u16>()).prop_map(SocketAddr::from),
    ]
}

fn flow() -> impl Strategy<Value = Flow> {
    (address(), address()).prop_map(|(client, server)| Flow { client, server })
}

fn octets(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

fn open() -> impl Strategy<Value = Frame> {
    let kind = prop::sample::select(vec![Kind::Carry, Kind::Claim, Kind::Origin, Kind::Adopt]);
    let name = prop::option::of("[a-z0-9.:-]{1,253}");
    (stream(), number(), flow(), kind, any::<bool>(), name).prop_map(
        |(id, limit, flow, kind, spoof, name)| {
            let class = match id.lane() {
                Lane::Interactive => Class::Interactive,
                Lane::Bulk => Class::Bulk,
                Lane::Background => Class::Background,
            };
            let server = name.map(|name| ServerId::new(&name).unwrap());
            Frame::Open { id, limit, open: OpenFrame { flow, class, kind, spoof, server } }
        },
    )
}

fn hello() -> impl Strategy<Value = Hello> {
    prop_oneof![
        (2..9_u8, any::<u8>()).prop_map(|(major, minor)| Hello::Foreign(Version { major, minor })),
        (any::<u8>(), 1..8_u8, 1..u64::MAX).prop_map(|(minor, lanes, birth)| {
            Hello::Known(Greeting {
                version: Version { minor, ..VERSION },
                lanes: LaneSet::from_bits(lanes).unwrap(),
                birth: Birth::new(birth),
            })
        }),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        reset().prop_map(|Reset { id, reason, .. }| Entry::Reset { id, reason }),
        (stream(), any::<bool>(), number(), number())
            .prop_map(|(id, answered, received, limit)| Entry::Live { id, answered, received, limit }),
    ]
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let candidate = (address(), any::<[u8; 8]>(), any::<u8>(), any::<bool>(), any::<u16>())
        .prop_map(|(link, key, rank, able, load)| Candidate { link, key: KeyHint(key), rank, able, load });
    let network = (address(), any::<u8>()).prop_map(|(address, bits)| Prefix::new(address.ip(), bits));
    prop_oneof![
        hello().prop_map(Frame::Hello),
        (lane(), any::<bool>(), number(), number(), vec(entry(), 0..20)).prop_map(
            |(lane, last, opened, credit, entries)| Frame::Resume { lane, last, opened, credit, entries }
        ),
        open(),
        (stream(), number(), octets(300)).prop_map(|(id, limit, info)| Frame::Opened { id, limit, info }),
        reset().prop_map(Frame::Refused),
        (stream(), number(), 0..=HINTS, octets(300)).prop_map(|(id, offset, hints, octets)| Frame::Data {
            id,
            offset,
            hints,
            octets
        }),
        (stream(), number()).prop_map(|(id, offset)| Frame::Fin { id, offset }),
        reset().prop_map(Frame::Rst),
        (stream(), number(), number()).prop_map(|(id, received, limit)| Frame::Window {
            id,
            received,
            limit
        }),
        (lane(), number()).prop_map(|(lane, limit)| Frame::Credit { lane, limit }),
        any::<u64>().prop_map(Frame::Ping),
        any::<u64>().prop_map(Frame::Pong),
        prop::sample::select(Reason::ALL.to_vec()).prop_map(Frame::Goaway),
        (flow(), any::<u32>()).prop_map(|(flow, isn)| Frame::Notice(Notice::Abort { flow, isn })),
        (1..varint::MAX, octets(300))
            .prop_map(|(kind, octets)| Frame::Notice(Notice::Other { kind, octets })),
        (vec(network, 0..=CANDIDATE_NETWORKS_MAX), vec(candidate, 0..=CANDIDATES_MAX))
            .prop_map(|(networks, nodes)| Frame::Candidates(Candidates { networks, nodes })),
    ]
}

proptest! {
    #[test]
    fn frames_survive_the_wire_in_any_pieces(frames in vec(any_frame(), 1..6), piece in 1..40_usize) {
        let mut wire = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut wire));
        let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
        for octets in wire.chunks(piece) {
            buffer.extend_from_slice(octets);
            while let Some(frame) = decode(&mut buffer).unwrap() {
                seen.push(frame);
            }
        }
        prop_assert_eq!(seen, frames);
        prop_assert!(buffer.is_empty());
    }

    #[test]
    fn any_octets_are_a_frame_or_a_named_violation(noise in vec(any::<u8>(), 0..200)) {
        let mut buffer = BytesMut::from(&noise[..]);
        while let Ok(Some(_)) = decode(&mut buffer) {}
    }

    #[test]
    fn a_data_head_is_that_of_its_frame(id in stream(), offset in number(), octets in octets(2000)) {
        let whole = encoded(&Frame::Data { id, offset, hints: 0, octets: octets.clone() });
        let mut split = BytesMut::new();
        put_data_head(&mut split, id, offset, octets.len());
        split.extend_from_slice(&octets);
        prop_assert_eq!(whole, split);
    }
}
