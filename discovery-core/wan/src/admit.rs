//! Whether a peer whose certificate is good may be a peer.

use crate::{identity::Presented, key_hint, links::PeerSpec};
use discovery_core::{id::NodeId, probe::KeyHint};
use std::collections::HashMap;
use wan_core::{Reason, mutants};

/// Who may be a peer.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    /// The configured ones. Without any, every node of a trusted authority may.
    pub known: HashMap<NodeId, PeerSpec>,
    /// Those that may not, whatever their certificates say.
    pub revoked: Vec<NodeId>,
}

/// Whom a connection was meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// This node.
    pub node: Option<NodeId>,
    /// A key that begins so.
    pub key: Option<KeyHint>,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asking<'a> {
    /// What its certificate says.
    pub presented: &'a Presented,
    /// Who vouches for that.
    pub authority: &'a str,
    /// Who vouched when the link of this node was made, if it has one: another authority may not name its nodes.
    pub bound: Option<&'a str>,
}

/// The first row that fits says why not.
///
/// # Errors
/// The reason, as the other side is told.
pub fn admit(own: &NodeId, peers: &Peers, expected: &Expected, asks: &Asking<'_>) -> Result<(), Reason> {
    let presented = asks.presented;
    let known = peers.known.get(&presented.node);
    if presented.node == *own {
        return Err(Reason::Itself);
    }
    if peers.revoked.contains(&presented.node) && !mutants::on("link-revoked-admitted") {
        return Err(Reason::Revoked);
    }
    if expected.node.as_ref().is_some_and(|node| *node != presented.node)
        || expected.key.is_some_and(|key| key != key_hint(&presented.spki))
        || asks.bound.is_some_and(|bound| bound != asks.authority)
    {
        return Err(Reason::WrongNode);
    }
    if known.is_none() && !peers.known.is_empty() {
        return Err(Reason::UnknownPeer);
    }
    let pin = known.and_then(|spec| spec.pin).filter(|_| !mutants::on("link-pin-unchecked"));
    if pin.is_some_and(|pin| pin != presented.spki) {
        return Err(Reason::WrongPin);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_row_that_fits() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let spec = |pin| PeerSpec { addresses: vec![], fallback: None, pin };
        let presented = Presented { node: node("b"), spki: [7; 32] };
        let peers = |known: &[(&str, Option<[u8; 32]>)], revoked: &[&str]| Peers {
            known: known.iter().map(|(name, pin)| (node(name), spec(*pin))).collect(),
            revoked: revoked.iter().map(|name| node(name)).collect(),
        };
        let expected = |name: Option<&str>, key: Option<u8>| Expected {
            node: name.map(node),
            key: key.map(|octet| KeyHint([octet; 8])),
        };
        let rows = [
            ("a", peers(&[], &[]), expected(None, None), Ok(())),
            ("a", peers(&[], &[]), expected(Some("b"), Some(7)), Ok(())),
            ("b", peers(&[], &[]), expected(None, None), Err(Reason::Itself)),
            ("a", peers(&[], &["b"]), expected(None, None), Err(Reason::Revoked)),
            ("a", peers(&[("b", Some([7; 32]))], &["b"]), expected(None, None), Err(Reason::Revoked)),
            ("a", peers(&[], &[]), expected(Some("c"), None), Err(Reason::WrongNode)),
            ("a", peers(&[], &[]), expected(None, Some(8)), Err(Reason::WrongNode)),
            ("a", peers(&[("c", None)], &[]), expected(None, None), Err(Reason::UnknownPeer)),
            ("a", peers(&[("b", None)], &[]), expected(None, None), Ok(())),
            ("a", peers(&[("b", Some([7; 32]))], &[]), expected(None, None), Ok(())),
            ("a", peers(&[("b", Some([8; 32]))], &[]), expected(None, None), Err(Reason::WrongPin)),
        ];
        for (nth, (own, peers, expected, verdict)) in rows.into_iter().enumerate() {
            let asks = Asking { presented: &presented, authority: "own", bound: None };
            assert_eq!(admit(&node(own), &peers, &expected, &asks), verdict, "row {nth}");
        }
        let rows = [
            (None, &[][..], Ok(())),
            (Some("own"), &[], Ok(())),
            (Some("partner"), &[], Err(Reason::WrongNode)),
            (Some("partner"), &["b"], Err(Reason::Revoked)),
        ];
        for (bound, revoked, verdict) in rows {
            let asks = Asking { presented: &presented, authority: "own", bound };
            let said = admit(&node("a"), &peers(&[], revoked), &expected(None, None), &asks);
            assert_eq!(said, verdict, "bound to {bound:?}");
        }
    }
}
