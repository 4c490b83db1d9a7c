//! Whose and where: a mailbox generation as the index knows it, without any name in clear.

use discovery_core::{id::AccountKey, seam::sealer::Sealer};
use imap_core::{catalog::MailboxKey, item::ItemKey, mutants, uid::Uid};
use std::sync::Arc;

/// A mailbox's name within its account, hashed; all its generations.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct NameScope {
    pub(super) server: Arc<str>,
    pub(super) user: [u8; 17],
    pub(super) name: [u8; 16],
}

/// A mailbox generation.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Scope {
    pub(super) mailbox: NameScope,
    pub(super) uid_validity: u32,
    pub(super) utf8: bool,
}

impl NameScope {
    pub(super) fn new(account: &AccountKey, name: &[u8], sealer: &dyn Sealer) -> Self {
        let mut cut = [0; 16];
        let id = sealer.id(*blake3::hash(name).as_bytes());
        cut.iter_mut().zip(id).for_each(|(to, from)| *to = from);
        let user = if mutants::on("store-account-not-in-key") { [0; 17] } else { account.user.to_octets() };
        Self { server: account.server.as_str().into(), user, name: cut }
    }
}

impl Scope {
    pub(super) fn new(mailbox: &MailboxKey, sealer: &dyn Sealer) -> Self {
        let ignored = mutants::on("store-uidvalidity-ignored");
        Self {
            mailbox: NameScope::new(&mailbox.account, &mailbox.name, sealer),
            uid_validity: if ignored { 1 } else { mailbox.uid_validity.get() },
            utf8: mailbox.utf8,
        }
    }

    /// Where rows of this generation are bound to: whatever moves to another one does not unseal there.
    pub(super) fn place(&self) -> Place {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(&(self.mailbox.server.len() as u64).to_be_bytes())
            .update(self.mailbox.server.as_bytes());
        hasher.update(&self.mailbox.user).update(&self.mailbox.name);
        hasher.update(&self.uid_validity.to_be_bytes()).update(&[u8::from(self.utf8)]);
        Place(*hasher.finalize().as_bytes())
    }
}

/// The part of a row's place that all rows of a generation share.
#[derive(Clone, Copy)]
pub(super) struct Place([u8; 32]);

impl Place {
    /// The place of one value.
    pub(super) fn of(&self, uid: Uid, key: &ItemKey) -> Vec<u8> {
        if mutants::on("store-place-unbound") {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(36 + key.as_str().len());
        out.extend_from_slice(&self.0);
        out.extend_from_slice(&uid.get().to_be_bytes());
        out.extend_from_slice(key.as_str().as_bytes());
        out
    }
}
