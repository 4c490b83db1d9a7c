//! What the kernel's connection tracking answers about a connection, against the flags that it must have.

use discovery_core::{adopt::tracked, flow::Flow};

/// A netlink message.
pub fn run(data: &[u8]) {
    let flow = Flow { client: ([10, 1, 0, 2], 40_000).into(), server: ([10, 2, 0, 2], 143).into() };
    let turned = Flow { client: flow.server, server: flow.client };
    let (terms, other) = (tracked::answer(data, flow, 1460), tracked::answer(data, turned, 1460));
    assert_eq!(terms.map(|terms| terms.turned()), other, "either end asks about the same connection");
    if let Some(terms) = terms {
        assert!(terms.scale.is_none_or(|(client, server)| client <= 14 && server <= 14));
        assert_eq!(terms.mss, 1460, "the kernel does not know it");
    }
}
