//! What two nodes say to each other to adopt a connection together, and what a peer may make of it.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use discovery_core::adopt::split::{CutWord, Far, Fate, LOOKED_AT_MAX, Near, Ready, Ye};
use discovery_core::adopt::{Segment, Terms};
use discovery_core::flow::Flow;

/// The first octet says which: a word, read as it was written or not at all; or a script of packets and words for both
/// nodes' sides, which never panic, hold nothing for ever, and make no socket of what was not seen.
pub fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    match first % 4 {
        0 => drop(Ready::decode(rest).map(|word| assert_eq!(word.encode(), rest))),
        1 => drop(CutWord::decode(rest).map(|word| assert_eq!(word.encode(), rest))),
        2 => drop(Ye::decode(rest).map(|word| {
            assert_eq!(word.encode(), rest);
            assert!(word.again() <= 32 << 20);
        })),
        _ => script(rest),
    }
}

const OCTETS: [u8; 64] = [7; 64];

fn script(data: &[u8]) {
    static START: OnceLock<Instant> = OnceLock::new();
    let begun = *START.get_or_init(Instant::now);
    let flow = Flow { client: "10.1.0.2:40000".parse().unwrap(), server: "10.2.0.2:143".parse().unwrap() };
    let terms = Terms { mss: 1460, scale: Some((7, 7)), sack: true };
    let (mut near, mut far) = (Near::begin(begun, flow, Some(terms)), Far::begin(begun, flow, None));
    let (mut now, mut frozen, mut cut) = (begun, None, None);
    for step in data.chunks_exact(4) {
        let &[what, a, b, c] = step else { continue };
        now += Duration::from_millis(u64::from(c));
        match what % 8 {
            0..=3 => {
                let up = what & 1 == 0;
                let payload = OCTETS.get(..usize::from(b % 65)).unwrap_or_default();
                let flags = if c > 250 { c } else { 16 };
                let (seq, ack) = (u32::from(a), u32::from(b));
                let seen =
                    Segment { up, seq, ack, flags, window: 500, timestamps: None, sacked: None, payload };
                if what & 2 == 0 {
                    match near.see(now, &seen) {
                        Ok(Fate::Hold | Fate::Drop) => assert!(up && frozen.is_some(), "held for nothing"),
                        Ok(Fate::Pass) => {}
                        Err(_) => return,
                    }
                } else if far.see(now, &seen).is_err() {
                    return;
                }
            }
            4 => {
                let _unknown = near.ready(Ready { terms: Some(terms) });
                let told = near.freeze(now);
                assert!(told.is_none() || frozen.is_none(), "told twice");
                frozen = frozen.or(told);
            }
            5 => {
                let _told = far.ready();
                let word = frozen.unwrap_or(CutWord { expects: u32::from(a), terms });
                if far.asked(now, word).is_ok() {
                    cut = Some(word);
                }
            }
            6 => {
                let word = Ye { from: u32::from(a), ye: u32::from(a) + u32::from(b) };
                if near.answered(now, word).is_ok() {
                    assert!(frozen.is_some(), "answered what was not asked");
                    near.filled(now, OCTETS.get(..usize::from(b % 65)).unwrap_or_default());
                }
            }
            _ => {
                if let Some(made) = far.half(now) {
                    let word = cut.expect("it was asked");
                    let end =
                        made.half.first.wrapping_add(u32::try_from(made.half.unacknowledged.len()).unwrap());
                    assert_eq!(end, word.expects, "a socket before everything is here, or after more");
                    assert_eq!(made.octets.len(), made.word.again());
                    assert_eq!(made.half.expects, made.word.ye);
                }
                if let Some(half) = near.half(now) {
                    assert_eq!(Some(half.expects), frozen.map(|word| word.expects));
                }
            }
        }
    }
    let late = now + LOOKED_AT_MAX + Duration::from_millis(1);
    assert!(near.expired(late).is_some() && far.expired(late).is_some(), "it would wait for ever");
}
