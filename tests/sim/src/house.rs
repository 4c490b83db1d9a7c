//! Which connections of a node outlive their clients, and what ends them: the rules of `cep::house`, as values.

use cep::keeper::Why;
use discovery_core::id::AccountKey;
use imap_core::mutants;
use node::ConnId;
use std::collections::BTreeMap;

/// Who is kept; at most one of a user and server.
pub(crate) struct House {
    pub(crate) per_server_max: usize,
    kept: BTreeMap<AccountKey, ConnId>,
}

impl House {
    pub(crate) fn new(per_server_max: usize) -> Self {
        Self { per_server_max, kept: BTreeMap::new() }
    }

    /// One more was left; who must end for it.
    pub(crate) fn left(&mut self, account: &AccountKey, conn: ConnId) -> Option<(ConnId, Why)> {
        let others = self.kept.keys().filter(|other| other.server == account.server && *other != account);
        if others.count() >= self.per_server_max {
            return Some((conn, Why::Full));
        }
        let old = self.kept.insert(account.clone(), conn);
        old.map(|old| (old, Why::Replaced))
    }

    /// The one of this account.
    pub(crate) fn of(&self, account: &AccountKey) -> Option<ConnId> {
        if mutants::on("sim-kept-for-ever") {
            return None;
        }
        self.kept.get(account).copied()
    }

    /// It is over.
    pub(crate) fn over(&mut self, account: &AccountKey, conn: ConnId) {
        if self.of(account) == Some(conn) {
            self.kept.remove(account);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.kept.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use discovery_core::id::{ServerId, UserKey};

    #[test]
    fn who_must_end_for_one_that_was_left() {
        let account = |user: u8| AccountKey {
            server: ServerId::new("mail.example.org").unwrap(),
            user: UserKey { version: 1, hash: [user; 16] },
        };
        let mut house = House::new(1);
        for (user, conn, ends) in
            [(1, 1, None), (2, 2, Some((ConnId(2), Why::Full))), (1, 3, Some((ConnId(1), Why::Replaced)))]
        {
            assert_eq!(house.left(&account(user), ConnId(conn)), ends);
        }
        // The one that was replaced is over later than its successor began.
        house.over(&account(1), ConnId(1));
        assert_eq!(house.of(&account(1)), Some(ConnId(3)));
        house.over(&account(1), ConnId(3));
        assert_eq!(house.left(&account(2), ConnId(4)), None);
    }
}
