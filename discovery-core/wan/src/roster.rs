//! Which node is behind a key and behind an address, as those who proved it have shown.

use discovery_core::{id::NodeId, probe::KeyHint};
use std::{collections::HashMap, net::SocketAddr};

/// What is known of the nodes that there are links with.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// Under which authority a node's link was made.
    authorities: HashMap<NodeId, String>,
    /// Who dialled us is found by what a probe tells of it, too.
    keys: HashMap<KeyHint, NodeId>,
    /// Whom an address that was learnt turned out to be.
    learnt: HashMap<(SocketAddr, KeyHint), NodeId>,
}

impl Roster {
    /// `node` has proved that it has this key, and its authority vouches for it.
    pub(crate) fn met(&mut self, node: &NodeId, authority: &str, key: KeyHint) {
        self.authorities.insert(node.clone(), authority.to_owned());
        // Its former key is nobody's.
        self.keys.retain(|_, whose| whose != node);
        self.keys.insert(key, node.clone());
    }

    pub(crate) fn learn(&mut self, address: SocketAddr, key: KeyHint, node: &NodeId) {
        self.learnt.insert((address, key), node.clone());
    }

    pub(crate) fn authority(&self, node: &NodeId) -> Option<&str> {
        self.authorities.get(node).map(String::as_str)
    }

    /// Whose key begins so.
    pub(crate) fn whose(&self, key: KeyHint) -> Option<&NodeId> {
        self.keys.get(&key)
    }

    /// How the key of a node begins.
    pub(crate) fn key(&self, node: &NodeId) -> Option<KeyHint> {
        self.keys.iter().find(|(_, whose)| *whose == node).map(|(key, _)| *key)
    }

    pub(crate) fn at(&self, address: SocketAddr, key: KeyHint) -> Option<&NodeId> {
        self.learnt.get(&(address, key))
    }

    /// Where `node` was found.
    pub(crate) fn places(&self, node: &NodeId) -> Vec<SocketAddr> {
        self.learnt.iter().filter(|(_, at)| *at == node).map(|((address, _), _)| *address).collect()
    }

    pub(crate) fn forget(&mut self, node: &NodeId) {
        self.authorities.remove(node);
        self.keys.retain(|_, whose| whose != node);
        self.learnt.retain(|_, whose| whose != node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_found_by_its_key_until_it_is_forgotten() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let (old, new) = (KeyHint([1; 8]), KeyHint([2; 8]));
        let at = ([192, 0, 2, 1], 4430).into();
        let mut roster = Roster::default();
        roster.met(&node("a"), "own", old);
        roster.met(&node("b"), "partner", KeyHint([9; 8]));
        roster.learn(at, old, &node("a"));
        assert_eq!((roster.whose(old), roster.at(at, old)), (Some(&node("a")), Some(&node("a"))));
        assert_eq!((roster.at(at, new), roster.whose(new)), (None, None));
        roster.met(&node("a"), "own", new);
        assert_eq!((roster.whose(old), roster.whose(new)), (None, Some(&node("a"))));
        assert_eq!((roster.key(&node("a")), roster.key(&node("c"))), (Some(new), None));
        assert_eq!(roster.places(&node("a")), [at]);
        roster.forget(&node("a"));
        assert_eq!((roster.whose(new), roster.at(at, old), roster.authority(&node("a"))), (None, None, None));
        assert_eq!(roster.authority(&node("b")), Some("partner"), "another one's stays");
    }
}
