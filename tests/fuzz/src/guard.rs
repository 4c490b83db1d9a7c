//! The fence around imap-proto: no octets make it panic, abort or take long, and what it lets through it read.

use imap_core::{
    framer::{Direction, Frame, Framer},
    guard::{Opaque, SKELETON_OCTETS_MAX, Skeleton, parse},
};
use std::time::{Duration, Instant};

/// Responses of a server, each read as a skeleton; and the octets as they are.
pub fn run(data: &[u8]) {
    check(parse(data).map(|response| format!("{response:?}")), data);
    let mut framer = Framer::new(Direction::FromServer);
    let mut input = bytes::Bytes::copy_from_slice(data);
    let mut skeleton = Skeleton::new();
    while let Ok(Some(frame)) = framer.next(&mut input) {
        match frame {
            Frame::Literal { piece, .. } => skeleton.push(&piece, true),
            Frame::Chunk(_) | Frame::Overlong { .. } => {}
            Frame::End { piece } => {
                skeleton.push(&piece, false);
                assert!(skeleton.octets().len() <= SKELETON_OCTETS_MAX);
                let began = Instant::now();
                check(skeleton.parse().map(|response| format!("{response:?}")), skeleton.octets());
                assert!(began.elapsed() < Duration::from_secs(5), "{}", skeleton.octets().escape_ascii());
                skeleton = Skeleton::new();
            }
        }
    }
}

fn check(read: Result<String, Opaque>, octets: &[u8]) {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for octet in octets {
        match octet {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'(' if !quoted => depth += 1,
            b')' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    assert!(deepest <= 64 || read.is_err(), "let through at depth {deepest}");
    // A new way to make the parser panic belongs into the fence, before the parser.
    assert_ne!(read, Err(Opaque::Panicked), "{}", octets.escape_ascii());
}
