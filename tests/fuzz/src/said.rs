//! What a node without rights says to the process that has them, against a plain reader.

use discovery_core::adopt::split::{CutWord, Ready, Ye};
use discovery_core::engine::Reason;
use discovery_linux::worker::decode_said;

/// One message.
pub fn run(data: &[u8]) {
    let Some(again) = decode_said(data) else { return assert!(!sound(data), "{data:02x?}") };
    assert!(sound(data), "{data:02x?}");
    // Written again it is as long, and means the same; only what nobody reads of an IPv4 address may differ.
    assert_eq!(again.len(), data.len());
    assert_eq!(decode_said(&again), Some(again.clone()), "{data:02x?}");
    let differ = again.iter().zip(data).filter(|(one, other)| one != other);
    assert!(differ.clone().all(|(one, _)| *one == 0) && differ.count() <= 24, "{data:02x?}");
}

/// A letter, and what belongs behind it.
fn sound(data: &[u8]) -> bool {
    let Some((letter, rest)) = data.split_first() else { return false };
    let flow = |at: usize| {
        let families = (rest.get(at), rest.get(at + 19));
        matches!(families, (Some(4), Some(4)) | (Some(6), Some(6)))
    };
    match (letter, rest.len()) {
        (b'.' | b'!' | b'F', 0) => true,
        (b'O' | b'C' | b'H', 38) | (b'A', 42) => flow(0),
        (b'R', 39) => flow(0) && rest[38] < 10,
        (b'U' | b'D', 27) => matches!(rest[0], 4 | 6),
        (b'L', 43) => flow(4) && rest[42] < 2,
        (b'V', 28) => matches!(rest[0], 4 | 6) && rest[27] < 2,
        (b'P', 42) => flow(4),
        (b'1'..=b'5', 46..) => flow(0) && word(*letter, &rest[46..]),
        _ => false,
    }
}

/// Of an adoption. What two nodes say is read by a target of its own.
fn word(letter: u8, said: &[u8]) -> bool {
    match letter {
        b'1' => Ready::decode(said).is_some(),
        b'2' => CutWord::decode(said).is_some(),
        b'3' => Ye::decode(said).is_some(),
        b'4' => said.len() <= 4096,
        _ => said.len() == 2 && usize::from(said[0]) * 256 + usize::from(said[1]) < Reason::ALL.len(),
    }
}
