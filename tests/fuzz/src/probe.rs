//! Probes out of TCP options, against a plain reader.

use discovery_core::{
    packet::Options,
    probe::{Codec, Found, Probe},
};
use std::net::{IpAddr, SocketAddr};

/// A TCP options area.
pub fn run(data: &[u8]) {
    let codec = Codec::default();
    let found = codec.find(Options::new(data));
    let Some(ours) = ours(data) else { return assert_eq!(found, Found::Nothing, "{data:02x?}") };
    let sound = match ours.get(4) {
        None => false,
        Some(0x11) => ours.len() == 6,
        Some(0x12) => [20, 32].contains(&ours.len()) && plausible(ours),
        Some(0x13) => [12, 24].contains(&ours.len()) && plausible(ours),
        Some(&other) => return assert_eq!(found, Found::Unknown(other), "{data:02x?}"),
    };
    if let Found::Destination(server) = found {
        assert!(sound && ours[4] == 0x13, "{data:02x?}");
        let mut expected = ours.to_vec();
        expected[5] = 0;
        assert_eq!(codec.encode_destination(server).octets(), expected);
        return;
    }
    let Found::Probe(probe) = found else {
        assert!(!sound && found == Found::Malformed, "{found:?}: {data:02x?}");
        return;
    };
    assert!(sound, "{probe:?}: {data:02x?}");
    // Written again it is what stood there, but for flags that nobody knows.
    let mut expected = ours.to_vec();
    expected[5] &= u8::from(matches!(probe, Probe::Response(_)));
    assert_eq!(codec.encode(&probe).octets(), expected);
    if let Probe::Response(response) = probe {
        assert_eq!(response.link, link(ours));
        assert_eq!((&response.key.0[..], response.connected), (&ours[8..16], ours[5] & 1 == 1));
    }
}

/// The first option of kind 253 with the identifier 0x5750.
fn ours(area: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    while *area.get(at)? != 0 {
        if area[at] == 1 {
            at += 1;
            continue;
        }
        let length = usize::from(*area.get(at + 1)?);
        let option = area.get(at..at + length).filter(|option| option.len() >= 2)?;
        if option[0] == 253 && option.get(2..4) == Some(&[0x57, 0x50]) {
            return Some(option);
        }
        at += length;
    }
    None
}

fn link(option: &[u8]) -> SocketAddr {
    let address: IpAddr = match option.len() {
        20 => <[u8; 4]>::try_from(&option[16..]).unwrap().into(),
        _ => <[u8; 16]>::try_from(&option[16..]).unwrap().into(),
    };
    (address, u16::from_be_bytes([option[6], option[7]])).into()
}

fn plausible(option: &[u8]) -> bool {
    let address = if option[4] == 0x13 { &option[8..] } else { &option[16..] };
    let nobody = address.iter().all(|&octet| octet == 0) || address == [255; 4];
    let group = if address.len() == 4 { (224..240).contains(&address[0]) } else { address[0] == 255 };
    option[6..8] != [0, 0] && !nobody && !group
}
