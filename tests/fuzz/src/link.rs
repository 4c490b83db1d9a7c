//! What a peer says on a link: frames, and a whole side of a link against one that says anything, or against another
//! one over lines that break.

use bytes::BytesMut;
use discovery_core::{
    flow::Flow,
    now::{Now, UnixMillis},
    value::Class,
};
use std::time::{Duration, Instant};
use wan_core::{
    Config, ConnId, Endpoint, Kind, LaneSet, OpenFrame, Output, Read, Side,
    frame::{FRAME_OCTETS_MAX, Frame, decode},
    hello::{Birth, Greeting, VERSION},
    pair,
};

/// Frames: the same in any split, and there is one way to write each.
pub fn run_frame(data: &[u8]) {
    let mut whole = BytesMut::from(data);
    let mut frames = Vec::new();
    let mut at = 0;
    let end = loop {
        match decode(&mut whole) {
            Ok(Some(frame)) => {
                let taken = &data[at..data.len() - whole.len()];
                at += taken.len();
                let mut again = BytesMut::new();
                frame.encode(&mut again);
                match &frame {
                    // What a newer version may add is not written again.
                    Frame::Hello(_) | Frame::Open { .. } | Frame::Goaway(_) | Frame::Ignored => {}
                    _ if says_unknown_reason(&frame) => {}
                    _ => assert_eq!(again, taken, "{frame:?}"),
                }
                assert_eq!(decode(&mut again), Ok(Some(frame.clone())), "written and read again");
                frames.push(frame);
            }
            other => break other,
        }
    };
    if end == Ok(None) {
        assert!(data.len() - at <= FRAME_OCTETS_MAX + 8, "more is held than a frame may have");
    }
    let (mut buffer, mut nth) = (BytesMut::new(), 0);
    for octet in data {
        buffer.extend_from_slice(&[*octet]);
        match decode(&mut buffer) {
            Ok(Some(frame)) => {
                assert_eq!(frames.get(nth), Some(&frame), "octet by octet");
                nth += 1;
            }
            Ok(None) => {}
            Err(violation) => {
                assert_eq!(end, Err(violation), "octet by octet");
                break;
            }
        }
    }
    assert_eq!(nth, frames.len(), "octet by octet");
}

/// A code that this version does not know is read as one that says so, and that is what is written.
fn says_unknown_reason(frame: &Frame) -> bool {
    use wan_core::{Reason, frame::Entry};
    let unknown = |reason: Reason| reason == Reason::Unknown;
    match frame {
        Frame::Refused(reset) | Frame::Rst(reset) => unknown(reset.reason),
        Frame::Resume { entries, .. } => entries.iter().any(|entry| match entry {
            Entry::Reset { reason, .. } => unknown(*reason),
            Entry::Live { .. } => false,
        }),
        _ => false,
    }
}

/// A side of a link whose peer says `data`: it never panics, says nothing after it has been closed, holds no more than
/// it allowed, and answers with not much more than was said.
pub fn run_peer(data: &[u8]) {
    let config =
        Config { streams_max: 50, window: 4096, window_max: 8192, lane_window: 16_384, ..Config::default() };
    let began = Instant::now();
    let mut now = Now { mono: began, wall: UnixMillis(0) };
    let mut endpoint = Endpoint::new(config, Side::First, Birth::new(1));
    let greeting = Greeting { version: VERSION, lanes: LaneSet::ALL, birth: Birth::new(2) };
    endpoint.attach(now, ConnId(1), Side::Second, &greeting);
    let flow = Flow { client: ([10, 0, 0, 1], 1).into(), server: ([10, 0, 0, 2], 143).into() };
    let ours: Vec<_> = [Class::Interactive, Class::Bulk]
        .map(|class| {
            endpoint.open(now, OpenFrame { flow, class, kind: Kind::Carry, spoof: false, server: None })
        })
        .into_iter()
        .flatten()
        .collect();
    for id in &ours {
        endpoint.write(*id, &[7; 1000]).unwrap();
    }
    let (mut theirs, mut said, mut buffer) = (Vec::new(), 0, BytesMut::new());
    for piece in data.chunks(17) {
        now.mono += Duration::from_millis(3);
        buffer.extend_from_slice(piece);
        if let Err(violation) = endpoint.handle_received(now, ConnId(1), &mut buffer) {
            assert!(!violation.word().is_empty());
            endpoint.close(now, wan_core::Reason::Violation);
            while endpoint.poll_output().is_some() {}
            let mut out = Vec::new();
            endpoint.poll_transmit(ConnId(1), usize::MAX / 2, &mut out);
            assert!(out.is_empty() && endpoint.counts().streams == 0, "it is at its end");
            return;
        }
        while let Some(output) = endpoint.poll_output() {
            if let Output::Incoming(id, open) = output {
                if open.spoof {
                    endpoint.refuse(id, wan_core::Reason::Unsupported);
                } else if endpoint.accept(id, "info".into()).is_ok() {
                    theirs.push(id);
                }
            }
        }
        for id in theirs.iter().chain(&ours).step_by(2) {
            if let Ok(Read::Octets(octets)) = endpoint.read(now, *id, 100) {
                assert!(octets.len() <= 100);
            }
        }
        let counts = endpoint.counts();
        assert!(counts.unread_octets <= 3 * config.lane_window, "{counts:?}");
        assert!(counts.streams <= 2 * config.streams_max + ours.len(), "{counts:?}");
        if endpoint.poll_timeout().is_some_and(|at| at <= now.mono) {
            endpoint.handle_timeout(now);
        }
        let mut out = Vec::new();
        endpoint.poll_transmit(ConnId(1), 4096, &mut out);
        said += out.iter().map(bytes::Bytes::len).sum::<usize>();
    }
    assert!(said <= 8192 + 8 * data.len(), "{said} octets in answer to {}", data.len());
}

/// Two sides, as the octets say: see [`pair::play`].
pub fn run_pair(data: &[u8]) {
    pair::play(data.get(..SCRIPT_OCTETS_MAX).unwrap_or(data), Instant::now());
}

/// Longer scripts find little more and take long.
const SCRIPT_OCTETS_MAX: usize = 900;
