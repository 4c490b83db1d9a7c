//! What the node beside a mail server tells when it has opened it, against a plain reader.

use bytes::Bytes;
use seams::origin::Opened;

/// What came with an opened stream.
pub fn run(data: &[u8]) {
    let octets = Bytes::copy_from_slice(data);
    let Some(opened) = Opened::decode(&octets) else { return assert!(!sound(data), "{data:02x?}") };
    assert!(sound(data), "{data:02x?}");
    assert_eq!((opened.parked, &opened.spki_sha256[..]), (data[1] == 1, &data[2..34]));
    assert_eq!(opened.greeting, data[34..]);
    // Told again it is the same, unless it is too long to be told.
    assert_eq!(opened.encode().as_deref(), (data.len() <= 8192).then_some(data));
}

/// A version, a flag, a key, and one line that welcomes.
fn sound(data: &[u8]) -> bool {
    if data.len() < 34 || data[0] != 1 || data[1] > 1 {
        return false;
    }
    let Some(line) = data[34..].strip_suffix(b"\r\n") else { return false };
    let word = line.split(|octet| *octet == b' ').nth(1).unwrap_or_default().to_ascii_uppercase();
    line.starts_with(b"* ")
        && (word == b"OK" || word == b"PREAUTH")
        && line.iter().all(|octet| ![0, b'\r', b'\n'].contains(octet))
}
