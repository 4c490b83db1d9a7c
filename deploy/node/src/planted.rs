//! Bugs that are there only with the feature `mutants`, one at a time: each must be found by the simulator's checker of
//! that concern. Without the feature every function here is the identity.

use bytes::Bytes;
use discovery_core::id::{UserKey, UserKeying};
use imap_core::{catalog::CatalogReply, mutants, retained::Facts};
use std::sync::Arc;

/// All users are one user.
pub(crate) fn keying(keying: Arc<dyn UserKeying>) -> Arc<dyn UserKeying> {
    struct OneForAll(Arc<dyn UserKeying>);
    impl UserKeying for OneForAll {
        fn user_key(&self, _: &[u8]) -> UserKey {
            self.0.user_key(b"everybody")
        }
    }
    if mutants::on("node-one-key-for-all") { Arc::new(OneForAll(keying)) } else { keying }
}

/// A body is cut one octet too early.
pub(crate) fn shifted(offset: u64) -> u64 {
    if mutants::on("node-body-shifted") { offset.saturating_sub(1) } else { offset }
}

/// Reading sets `\Seen` although the client asked that it should not.
pub(crate) fn unpeeked(octets: Bytes) -> Bytes {
    if !mutants::on("node-peek-dropped") {
        return octets;
    }
    String::from_utf8_lossy(&octets).replace(".PEEK[", "[").into()
}

/// A change is acknowledged, and the origin never hears of it.
pub(crate) fn answers_itself(octets: &Bytes) -> Option<Bytes> {
    if !mutants::on("node-store-not-forwarded") {
        return None;
    }
    let line = String::from_utf8_lossy(octets);
    let tag = line.split(' ').next()?;
    line.contains(" STORE ").then(|| format!("{tag} OK stored\r\n").into())
}

/// The store's answer does not arrive.
pub(crate) fn loses(reply: &CatalogReply) -> bool {
    let CatalogReply::Resolved { request, .. } = reply else { return false };
    mutants::on("node-store-reply-lost") && request.0 % 5 == 0
}

/// A connection is kept in another user's name.
pub(crate) fn handed(mut facts: Box<Facts>) -> Box<Facts> {
    if mutants::on("node-kept-for-another") {
        facts.account.user.hash = *b"alice\0\0\0\0\0\0\0\0\0\0\0";
        if let Some(watched) = &mut facts.mailbox {
            watched.key.account = facts.account.clone();
        }
    }
    facts
}
