//! Files of captured packets: what is read of one stands in it, in order, and what is whole in a file of ours is read.

use discovery_core::capture::{Capture, CaptureError};
use discovery_core::dry::Dry;
use discovery_core::engine::{Config, Engine};
use discovery_core::flow::Ingress;
use discovery_core::probe::Codec;
use discovery_core::rule::{Action, Rule, RuleSet};
use std::time::Instant;

/// A file.
pub fn run(data: &[u8]) {
    let Ok(capture) = Capture::open(data) else { return };
    let (mut behind, mut failed) = (data.as_ptr() as usize, false);
    let mut dry = dry();
    for packet in capture {
        assert!(!failed, "packets after a mistake");
        if let Ok(packet) = &packet {
            dry.handle_packet(packet);
        }
        match packet {
            Ok(packet) if packet.octets.is_empty() => {}
            Ok(packet) => {
                let begins = packet.octets.as_ptr() as usize;
                assert!(begins >= behind, "a packet that overlaps the one before");
                behind = begins + packet.octets.len();
                assert!(behind <= data.as_ptr() as usize + data.len(), "octets from elsewhere");
            }
            Err(error) => {
                failed = true;
                place(&error, data.len());
            }
        }
    }
    classic(data);
}

/// Whatever is read, a node can be asked about.
fn dry() -> Dry {
    let rules = RuleSet::new(vec![Rule::new(Action::Intercept)]).unwrap();
    let engine = Engine::new(Config::default());
    Dry::new(engine, rules, Codec::default(), Ingress(1), &[], Instant::now())
}

/// A mistake is within the file.
fn place(error: &CaptureError, octets: usize) {
    let at = match error {
        CaptureError::Ends { at, .. }
        | CaptureError::Length { at, .. }
        | CaptureError::Interface { at, .. }
        | CaptureError::Link { at, .. }
        | CaptureError::Interfaces { at } => *at,
        _ => 0,
    };
    assert!(at <= octets, "{error} in a file of {octets} octets");
}

/// The same octets as packets of a sound file come back as they were.
fn classic(data: &[u8]) {
    let mut file = b"\xd4\xc3\xb2\xa1\x02\0\x04\0\0\0\0\0\0\0\0\0\xff\xff\0\0\x65\0\0\0".to_vec();
    let frames: Vec<&[u8]> = data.chunks(40).collect();
    for frame in &frames {
        let octets = u32::try_from(frame.len()).unwrap().to_le_bytes();
        file.extend([[0; 4], [0; 4], octets, octets].concat());
        file.extend(*frame);
    }
    let read: Vec<_> = Capture::open(&file).unwrap().map(|packet| packet.unwrap().octets).collect();
    assert_eq!(read, frames);
}
