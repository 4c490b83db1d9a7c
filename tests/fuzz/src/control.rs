//! What a deflector and its proxies say to each other, against what must hold of it.

use discovery_core::deflector::control::Control;

/// A notice's octets.
pub fn run(data: &[u8]) {
    let Some(control) = Control::decode(data) else { return };
    // There is one way to write each.
    assert_eq!(control.encode(), data, "{control:?}");
    let longer = [data, &[0]].concat();
    assert_eq!(Control::decode(&longer), None, "{control:?} with an octet behind it");
    assert_eq!(Control::decode(&data[..data.len() - 1]), None, "{control:?} cut");
    match control {
        Control::Ask { client, server, .. } | Control::Given { client, server, .. } => {
            assert!(server.is_none_or(|server| server.is_ipv4() == client.is_ipv4()), "{control:?}");
        }
        Control::Ready { load, .. } => assert!(load <= 100, "{control:?}"),
    }
}
