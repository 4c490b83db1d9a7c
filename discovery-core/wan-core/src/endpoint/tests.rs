use super::*;
use crate::{
    Kind,
    hello::Birth,
    pair::{self, Pair},
    reason::Violation,
};
use bytes::BytesMut;
use discovery_core::{flow::Flow, now::UnixMillis, value::Class};
use proptest::{collection::vec, prelude::*};

#[allow(clippy::disallowed_methods, reason = "a test needs some moment to count from")]
fn began() -> Instant {
    Instant::now()
}

fn pair() -> Pair {
    let mut pair = Pair::new(Config::default(), began());
    pair.connect_all(0, true);
    pair.settle();
    pair
}

#[test]
fn octets_go_both_ways_and_each_end_ends_alone() {
    let mut pair = pair();
    let id = pair.open(0, Class::Interactive).unwrap();
    assert_eq!(pair.write(0, id, 1000), 1000);
    pair.finish(0, id);
    pair.settle();
    assert_eq!(pair.read(1, id, 4000), 1000);
    pair.read(1, id, 1);
    assert!(pair.ends[1].uses[&id].ended, "half of it has ended");
    assert_eq!(pair.write(1, id, 50_000), 50_000, "and the other half goes on");
    pair.settle();
    assert_eq!(pair.read(0, id, 1 << 20), 50_000.min(crate::frame::DATA_OCTETS_MAX));
    pair.come_to_rest();
}

#[test]
fn a_request_goes_out_with_its_open() {
    let mut pair = pair();
    let id = pair.open(0, Class::Interactive).unwrap();
    pair.write(0, id, 500);
    let conn = pair.ends[0].endpoint.lane(Lane::Interactive).unwrap().0;
    pair.deliver(conn, 0, 4096);
    assert_eq!(pair.read(1, id, 4096), 500, "no answer was waited for");
}

/// A transfer in both directions, cut at every so many octets: the octets are those, in their order.
#[test]
fn a_stream_outlives_a_cut_at_every_step() {
    for at in 0..400 {
        let mut pair = pair();
        let id = pair.open(at % 2, Class::Interactive).unwrap();
        let mut passed = 0;
        for round in 0..40 {
            let from = (at + round) % 2;
            pair.write(from, id, 700);
            if pair.ends[from].uses.get(&id).is_some_and(|used| used.written > 3000) {
                pair.finish(from, id);
            }
            for conn in pair.conns() {
                // In small steps, so that the cut falls everywhere in a frame.
                for _ in 0..12 {
                    passed += pair.deliver(conn, from, 61);
                    if passed / 37 == at {
                        passed += 37;
                        pair.cut(conn, [at % 3 != 0, at % 3 != 1]);
                        pair.connect_all(at % 2, true);
                        break;
                    }
                }
            }
            pair.read(1 - from, id, 300);
            pair.advance(Duration::from_millis(10));
        }
        pair.come_to_rest();
        for end in &pair.ends {
            let used = &end.uses[&id];
            assert!(used.dead.is_none() && used.ended, "cut at {at}: {used:?}");
        }
    }
}

/// Whoever resets has written before: that is read first, wherever the line breaks meanwhile.
#[test]
fn a_reset_overtakes_nothing_that_was_written_before_it() {
    for at in 0..200 {
        let (from, mut pair) = (at % 2, pair());
        let id = pair.open(0, Class::Interactive).unwrap();
        pair.settle();
        pair.write(1 - from, id, 900);
        assert_eq!(pair.write(from, id, 50_000), 50_000);
        pair.reset(from, id);
        let mut passed = 0;
        for _ in 0..2000 {
            for conn in pair.conns() {
                passed += pair.deliver(conn, from, 307) + pair.deliver(conn, 1 - from, 307);
                if passed / 307 == at {
                    passed += 307;
                    pair.cut(conn, [true, true]);
                    pair.connect(0, LaneSet::only(Lane::Interactive), true);
                    break;
                }
            }
        }
        assert!(pair.ends[1 - from].uses[&id].dead.is_none(), "{at}: told before everything was read");
        while pair.read(1 - from, id, 1000) > 0 {}
        let used = &pair.ends[1 - from].uses[&id];
        assert_eq!((used.read, used.dead), (50_000, Some(Reason::ConnectionReset)), "cut at {at}");
        pair.come_to_rest();
    }
}

/// Both sides dial at once, and one connection takes the other's place while a server is still being asked.
#[test]
fn who_answers_while_a_connection_is_new_is_heard_once() {
    for delivered in [0, 20, 40, 80, 160, 400] {
        let mut pair = pair();
        pair.ends[1].offered = Some(Vec::new());
        let id = pair.open(0, Class::Bulk).unwrap();
        pair.settle();
        pair.cut_all();
        pair.connect_all(1, true);
        for conn in pair.conns() {
            pair.deliver(conn, 0, delivered);
        }
        pair.accept_offered(1);
        pair.settle();
        assert!(pair.ends[0].uses[&id].opened, "after {delivered} octets");
        pair.come_to_rest();
    }
}

/// What either wrote stands before its reset, and the other's window was full: neither waits for the other.
#[test]
fn two_that_reset_each_other_are_over_at_once() {
    let mut pair = pair();
    let id = pair.open(0, Class::Bulk).unwrap();
    pair.settle();
    for who in [0, 1] {
        for _ in 0..20 {
            pair.write(who, id, 60_000);
            pair.settle();
        }
    }
    pair.reset(0, id);
    pair.reset(1, id);
    pair.settle();
    for end in &pair.ends {
        let counts = end.endpoint.counts();
        assert_eq!((counts.streams, counts.held_octets, counts.unread_octets), (0, 0, 0));
    }
}

#[test]
fn what_waits_behind_a_reset_waits_for_a_while_only() {
    let mut pair = pair();
    let ids = [0, 1].map(|who| (who, pair.open(who, Class::Bulk).unwrap()));
    pair.settle();
    for (who, id) in ids {
        // More than the reader, who reads nothing, may have: some of it waits here, some there.
        for _ in 0..20 {
            pair.write(who, id, 60_000);
            pair.settle();
        }
        pair.reset(who, id);
        pair.settle();
        let held = |end: usize| pair.ends[end].endpoint.counts();
        assert!(held(who).held_octets > 0 && held(1 - who).unread_octets > 0);
    }
    let wait = |pair: &mut Pair, seconds| {
        for _ in 0..seconds {
            pair.advance(Duration::from_secs(1));
            pair.settle();
        }
    };
    wait(&mut pair, 10);
    assert!(ids.iter().all(|(who, id)| pair.ends[1 - who].uses[id].dead.is_none()));
    for (who, id) in ids {
        assert_eq!(pair.read(1 - who, id, 10_000), 10_000, "it was not waited for in vain");
    }
    wait(&mut pair, 36);
    for end in &pair.ends {
        let counts = end.endpoint.counts();
        assert_eq!((counts.streams, counts.held_octets, counts.unread_octets), (0, 0, 0));
    }
    assert!(ids.iter().all(|(who, id)| pair.ends[1 - who].uses[id].dead.is_some()), "and is told");
}

/// The question, the answer, the end: each is lost once.
#[test]
fn what_a_cut_swallowed_is_asked_again() {
    let mut pair = pair();
    let id = pair.open(0, Class::Interactive).unwrap();
    let swallow = |pair: &mut Pair, from: usize| {
        let conn = pair.ends[from].endpoint.lane(Lane::Interactive).unwrap().0;
        let mut out = Vec::new();
        pair.ends[from].endpoint.poll_transmit(conn, usize::MAX / 2, &mut out);
        assert!(!out.is_empty());
        pair.cut(conn, [true, true]);
    };
    swallow(&mut pair, 0);
    pair.connect(0, LaneSet::only(Lane::Interactive), true);
    let conn = pair.ends[0].endpoint.lane(Lane::Interactive).unwrap().0;
    // RESUME both ways, and then the question again; its answer is lost.
    for from in [0, 1, 0] {
        pair.deliver(conn, from, usize::MAX / 2);
    }
    assert!(pair.ends[1].uses.contains_key(&id));
    swallow(&mut pair, 1);
    pair.connect(1, LaneSet::only(Lane::Interactive), true);
    pair.settle();
    assert!(pair.ends[0].uses[&id].opened, "the answer is given again");
    pair.write(0, id, 10);
    pair.finish(0, id);
    swallow(&mut pair, 0);
    pair.connect(1, LaneSet::only(Lane::Interactive), true);
    pair.settle();
    pair.read(1, id, 100);
    pair.read(1, id, 100);
    assert!(pair.ends[1].uses[&id].ended, "and the end is said again");
    pair.come_to_rest();
}

#[test]
fn half_a_minute_without_a_line_loses_nothing() {
    let mut pair = pair();
    let ids: Vec<StreamId> =
        [Class::Interactive, Class::Bulk, Class::Background].map(|class| pair.open(0, class).unwrap()).into();
    pair.settle();
    for id in &ids {
        pair.write(0, *id, 60_000);
        pair.write(1, *id, 60_000);
    }
    // Silent: nobody is told.
    pair.conns().into_iter().for_each(|conn| pair.cut(conn, [false, false]));
    for tick in 0..300 {
        pair.advance(Duration::from_millis(100));
        if tick == 31 {
            let down = pair.ends.iter().all(|end| end.endpoint.attached().is_empty());
            assert!(down, "silence is noticed within three seconds");
        }
    }
    pair.connect_all(1, true);
    pair.come_to_rest();
    assert!(pair.ends.iter().all(|end| end.uses.values().all(|used| used.dead.is_none())));
    assert!(ids.iter().all(|id| pair.ends[0].uses[id].read == 60_000));
    assert_eq!(pair.ends[0].endpoint.counts().resumes, 3);
}

#[test]
fn half_a_frame_is_not_heard_again_each_time_that_it_is_looked_at() {
    let mut pair = pair();
    let conn = pair.conns()[0];
    pair.conns().into_iter().for_each(|conn| pair.cut(conn, [false, false]));
    // The line went in the middle of a frame.
    let mut arrived = BytesMut::from(&[20, 1, 0][..]);
    for tick in 0..32 {
        let now = pair.now();
        pair.ends[0].endpoint.handle_received(now, conn, &mut arrived).unwrap();
        assert!(tick > 0 || arrived.len() == 3, "it is whole");
        pair.advance(Duration::from_millis(100));
    }
    assert!(pair.ends[0].endpoint.attached().is_empty(), "silence is not noticed");
}

#[test]
fn an_outage_beyond_its_limit_ends_what_stood() {
    let mut pair = pair();
    let id = pair.open(0, Class::Interactive).unwrap();
    pair.settle();
    pair.cut_all();
    pair.advance(Duration::from_secs(59));
    assert!(pair.ends[0].uses[&id].dead.is_none());
    pair.advance(Duration::from_secs(2));
    assert!(pair.ends.iter().all(|end| end.uses[&id].dead == Some(Reason::LinkLost)));
    // One that is asked for now ends after its own time.
    let late = pair.open(0, Class::Interactive).unwrap();
    pair.advance(Duration::from_secs(61));
    assert_eq!(pair.ends[0].uses[&late].dead, Some(Reason::LinkLost));
    pair.come_to_rest();
}

#[test]
fn a_process_that_was_started_anew_is_told_from_a_broken_line() {
    let mut pair = pair();
    let id = pair.open(0, Class::Bulk).unwrap();
    pair.write(0, id, 10_000);
    pair.settle();
    pair.restart(1);
    assert!(pair.ends[0].uses[&id].dead.is_none(), "the line is broken, no more is known");
    pair.connect(1, LaneSet::only(Lane::Interactive), true);
    assert_eq!(pair.ends[0].uses[&id].dead, Some(Reason::PeerRestarted), "any lane tells");
    pair.connect_all(1, true);
    let next = pair.open(0, Class::Bulk).unwrap();
    pair.settle();
    assert!(next > id && pair.ends[1].uses.contains_key(&next), "no name is used twice");
    pair.come_to_rest();
}

#[test]
fn of_two_connections_at_once_one_stays_on_both_sides() {
    let lanes = LaneSet::ALL;
    let mut pair = Pair::new(Config::default(), began());
    let first = pair.connect(0, lanes, true);
    assert!(first.is_some());
    assert_eq!(pair.connect(1, lanes, true), None, "the second side's gives way");
    pair.settle();
    let again = pair.connect(0, lanes, true);
    assert!(again.is_some() && again != first, "who dials again has seen the end of the old one");
    pair.open(1, Class::Bulk).unwrap();
    pair.come_to_rest();
}

#[test]
fn a_person_goes_before_bulk_and_bulk_before_nobody() {
    let mut pair = Pair::new(Config::default(), began());
    pair.connect_all(0, false);
    pair.settle();
    let ids = [Class::Background, Class::Bulk, Class::Interactive].map(|class| pair.open(0, class).unwrap());
    pair.settle();
    ids.iter().for_each(|id| assert_eq!(pair.write(0, *id, 30_000), 30_000));
    let conn = pair.conns()[0];
    let mut out = Vec::new();
    pair.ends[0].endpoint.poll_transmit(conn, usize::MAX / 2, &mut out);
    let mut octets = BytesMut::new();
    out.iter().for_each(|piece| octets.extend_from_slice(piece));
    let mut lanes = Vec::new();
    while let Some(frame) = crate::frame::decode(&mut octets).unwrap() {
        if let Frame::Data { id, .. } = frame {
            lanes.push(id.lane());
        }
    }
    assert_eq!(lanes, [Lane::Interactive, Lane::Interactive, Lane::Bulk, Lane::Bulk], "bulk is on its way");
}

#[test]
fn background_goes_on_when_bulk_has_arrived() {
    let mut pair = pair();
    let [bulk, background] = [Class::Bulk, Class::Background].map(|class| pair.open(0, class).unwrap());
    pair.settle();
    pair.write(0, bulk, 60_000);
    pair.write(0, background, 60_000);
    let conn = pair.ends[0].endpoint.lane(Lane::Bulk).unwrap().0;
    pair.deliver(conn, 0, 20_000);
    let behind = pair.ends[0].endpoint.lane(Lane::Background).unwrap().0;
    assert_eq!(pair.deliver(behind, 0, 1 << 20), 0, "stands still");
    while pair.deliver(conn, 0, 1 << 20) > 0 {}
    pair.advance(Duration::from_millis(30));
    pair.deliver(conn, 1, 1 << 20);
    assert!(pair.deliver(behind, 0, 1 << 20) > 60_000);
}

#[test]
fn streams_of_a_lane_take_turns() {
    let mut pair = pair();
    let ids = [(); 3].map(|()| pair.open(0, Class::Bulk).unwrap());
    pair.settle();
    ids.iter().for_each(|id| assert!(pair.write(0, *id, 60_000) <= 60_000));
    let conn = pair.ends[0].endpoint.lane(Lane::Bulk).unwrap().0;
    pair.deliver(conn, 0, 3 * 16 * 1024 - 1);
    for id in ids {
        assert!(pair.read(1, id, 1 << 20) > 0 || id == ids[2], "{id:?}");
    }
}

#[test]
fn a_reader_that_keeps_up_is_given_more_and_one_that_does_not_is_not() {
    let mut pair = pair();
    let [quick, slow] = [(); 2].map(|()| pair.open(0, Class::Bulk).unwrap());
    pair.settle();
    for _ in 0..2000 {
        pair.write(0, quick, 60_000);
        pair.write(0, slow, 60_000);
        pair.settle();
        while pair.read(1, quick, 1 << 20) > 0 {}
        pair.advance(Duration::from_millis(1));
    }
    let slow_has = pair.ends[1].endpoint.counts().unread_octets;
    assert_eq!(slow_has, Config::default().window, "and no more than its first window");
    assert!(pair.ends[1].uses[&quick].read > 16 << 20, "{}", pair.ends[1].uses[&quick].read);
}

#[test]
fn a_stalled_reader_of_one_lane_holds_up_no_other() {
    let mut pair = pair();
    let stalled: Vec<StreamId> = (0..100).filter_map(|_| pair.open(0, Class::Background)).collect();
    pair.settle();
    for _ in 0..8 {
        stalled.iter().for_each(|id| assert!(pair.write(0, *id, 60_000) <= 60_000));
        pair.settle();
        pair.advance(Duration::from_millis(30));
        pair.settle();
    }
    let counts = pair.ends[1].endpoint.counts();
    assert_eq!(counts.unread_octets, Config::default().lane_window, "the lane is full");
    let id = pair.open(0, Class::Interactive).unwrap();
    pair.write(0, id, 1000);
    pair.settle();
    assert_eq!(pair.read(1, id, 2000), 1000);
}

#[test]
fn notices_wait_for_a_line_and_not_for_ever() {
    let mut pair = Pair::new(Config::default(), began());
    (0..1000).for_each(|_| pair.notify(0));
    pair.connect_all(0, true);
    pair.settle();
    assert_eq!(pair.ends[1].notices, NOTICES_MAX);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn whatever_breaks_wherever_the_octets_are_those(script in vec(any::<u8>(), 0..1500)) {
        pair::play(&script, began());
    }
}

/// A peer that says `frames` on a fresh link with all lanes, behind its RESUMEs unless it says them itself.
fn hostile(frames: &[Frame], resumed: bool) -> Result<(), Violation> {
    let now = Now { mono: began(), wall: UnixMillis(0) };
    let mut victim = Endpoint::new(Config::default(), Side::First, Birth::new(1));
    let greeting = Greeting { version: VERSION, lanes: LaneSet::ALL, birth: Birth::new(2) };
    victim.attach(now, ConnId(1), Side::Second, &greeting);
    let mine = victim.open(now, open_frame(Class::Interactive)).unwrap();
    assert_eq!(mine, StreamId::new(Side::First, Lane::Interactive, 1).unwrap());
    let mut octets = BytesMut::new();
    if resumed {
        Lane::ALL.iter().for_each(|lane| resume(*lane, 0, vec![]).encode(&mut octets));
    }
    frames.iter().for_each(|frame| frame.encode(&mut octets));
    victim.handle_received(now, ConnId(1), &mut octets)
}

fn open_frame(class: Class) -> OpenFrame {
    let flow = Flow { client: ([10, 0, 0, 1], 1).into(), server: ([10, 0, 0, 2], 143).into() };
    OpenFrame { flow, class, kind: Kind::Carry, spoof: false, server: None }
}

fn resume(lane: Lane, opened: u64, entries: Vec<Entry>) -> Frame {
    Frame::Resume { lane, last: true, opened, credit: 1 << 20, entries }
}

#[test]
fn who_breaks_a_rule_is_told_which() {
    let mine = StreamId::new(Side::First, Lane::Interactive, 1).unwrap();
    let theirs = StreamId::new(Side::Second, Lane::Interactive, 1).unwrap();
    let never = StreamId::new(Side::First, Lane::Interactive, 2).unwrap();
    let open = Frame::Open { id: theirs, limit: 9, open: open_frame(Class::Interactive) };
    let data = |id, offset, n| Frame::Data { id, offset, hints: 0, octets: vec![0; n].into() };
    let sixteen = |from: u64| (0..5).map(|k| data(theirs, from + k * 16_000, 16_000)).collect::<Vec<_>>();
    let rst = |id| Frame::Rst(Reset { id, reason: Reason::Busy, answer: false });
    let live = |id, received| Entry::Live { id, answered: true, received, limit: 9 };
    let rows: Vec<(Vec<Frame>, Violation)> = vec![
        (vec![Frame::Hello(Hello::Foreign(VERSION))], Violation::BadValue),
        (vec![resume(Lane::Bulk, 0, vec![])], Violation::ResumeOutOfTurn),
        (vec![open.clone(), open.clone()], Violation::StreamReuse),
        (
            vec![Frame::Open { id: never, limit: 9, open: open_frame(Class::Interactive) }],
            Violation::UnknownStream,
        ),
        (
            vec![Frame::Open { id: mine, limit: 9, open: open_frame(Class::Interactive) }],
            Violation::WrongSide,
        ),
        (vec![Frame::Opened { id: theirs, limit: 9, info: Bytes::new() }], Violation::WrongSide),
        (vec![Frame::Opened { id: mine, limit: 9, info: Bytes::new() }; 2], Violation::AnsweredTwice),
        (vec![data(theirs, 0, 1)], Violation::UnknownStream),
        (vec![open.clone(), data(theirs, 1, 1)], Violation::OutOfOrder),
        (vec![open.clone(), data(theirs, 0, 2), data(theirs, 1, 1)], Violation::OutOfOrder),
        ([vec![open.clone()], sixteen(0)].concat(), Violation::StreamCredit),
        (vec![open.clone(), Frame::Fin { id: theirs, offset: 1 }], Violation::OutOfOrder),
        (vec![open.clone(), Frame::Fin { id: theirs, offset: 0 }, data(theirs, 0, 1)], Violation::BehindEnd),
        (vec![open.clone(), rst(theirs), data(theirs, 0, 5)], Violation::UnknownStream),
        (vec![rst(theirs)], Violation::UnknownStream),
        (vec![Frame::Window { id: mine, received: 1, limit: 9 }], Violation::AckOutOfRange),
        (vec![Frame::Window { id: never, received: 0, limit: 9 }], Violation::UnknownStream),
        (vec![Frame::Window { id: theirs, received: 0, limit: 9 }], Violation::UnknownStream),
        (vec![Frame::Ping(7); 600_000], Violation::Flood),
    ];
    for (frames, violation) in rows {
        assert_eq!(hostile(&frames, true), Err(violation), "{:?}", frames.iter().take(3).collect::<Vec<_>>());
    }
    let early: Vec<(Vec<Frame>, Violation)> = vec![
        (vec![open.clone()], Violation::ResumeOutOfTurn),
        (vec![resume(Lane::Interactive, 2, vec![])], Violation::UnknownStream),
        (vec![resume(Lane::Interactive, 1, vec![live(mine, 1)])], Violation::AckOutOfRange),
        (vec![resume(Lane::Interactive, 1, vec![live(never, 0)])], Violation::UnknownStream),
        (vec![resume(Lane::Bulk, 0, vec![live(mine, 0)])], Violation::WrongLane),
        (vec![resume(Lane::Interactive, 1, vec![live(mine, 0); 2])], Violation::ResumeOutOfTurn),
    ];
    for (frames, violation) in early {
        assert_eq!(hostile(&frames, false), Err(violation), "{frames:?}");
    }
    assert_eq!(hostile(&[open], true), Ok(()), "and who keeps them is not");
}

#[test]
fn frames_keep_to_their_connection() {
    let now = Now { mono: began(), wall: UnixMillis(0) };
    let mut victim = Endpoint::new(Config::default(), Side::First, Birth::new(1));
    let greeting = Greeting { version: VERSION, lanes: LaneSet::only(Lane::Bulk), birth: Birth::new(2) };
    victim.attach(now, ConnId(1), Side::Second, &greeting);
    for frame in [resume(Lane::Interactive, 0, vec![]), Frame::Credit { lane: Lane::Background, limit: 1 }] {
        let mut octets = BytesMut::new();
        frame.encode(&mut octets);
        assert_eq!(victim.handle_received(now, ConnId(1), &mut octets), Err(Violation::WrongLane));
    }
}

#[test]
fn more_streams_than_may_be_are_refused_and_many_more_break_the_rules() {
    let max = Config::default().streams_max as u64;
    let open = |n| Frame::Open {
        id: StreamId::new(Side::Second, Lane::Bulk, n).unwrap(),
        limit: 0,
        open: open_frame(Class::Bulk),
    };
    let frames: Vec<Frame> = (1..=max * 2 + 1).map(open).collect();
    assert_eq!(hostile(&frames[..frames.len() - 1], true), Ok(()));
    assert_eq!(hostile(&frames, true), Err(Violation::StreamsMax));
}

#[test]
fn who_leaves_takes_no_more() {
    let mut pair = pair();
    let stands = pair.open(0, Class::Interactive).unwrap();
    pair.settle();
    pair.ends[1].endpoint.leave(Reason::ShuttingDown);
    let crossed = pair.open(0, Class::Interactive).unwrap();
    pair.settle();
    assert_eq!(pair.ends[0].uses[&crossed].dead, Some(Reason::ShuttingDown));
    assert_eq!(pair.open(0, Class::Interactive), None);
    pair.write(0, stands, 10);
    pair.settle();
    assert_eq!(pair.read(1, stands, 20), 10, "what stands goes on");
    // Its successor is another one, and is not let in here.
    pair.restart(0);
    assert_eq!(pair.connect(0, LaneSet::ALL, true), None);
}

#[test]
fn who_left_and_is_gone_is_not_waited_for() {
    let mut pair = pair();
    let id = pair.open(0, Class::Interactive).unwrap();
    pair.settle();
    pair.ends[1].endpoint.leave(Reason::ShuttingDown);
    pair.settle();
    let conns = pair.conns();
    pair.cut(conns[0], [true, true]);
    assert!(pair.ends[0].uses[&id].dead.is_none(), "one connection is not all");
    pair.cut_all();
    assert!(pair.ends[0].uses[&id].dead.is_some());
}
