//! The simplest [`Preload`]: what is new is fetched, newest first, whatever it is.

use discovery_core::{
    now::Now,
    seam::{advisor::Held, gate::Grant},
};
use imap_core::{
    catalog::MailboxKey,
    preload::{Description, Order, Preload, Read, Work},
    retained::UidRanges,
    uid::Uid,
};
use std::collections::BTreeMap;

/// See the module's documentation. Of the first mailbox alone; others are nobody's business here.
#[derive(Debug, Default)]
pub struct Plain {
    mailbox: Option<MailboxKey>,
    known: Option<UidRanges>,
    /// Not described yet.
    new: Vec<Uid>,
    /// Not fetched yet.
    wanted: BTreeMap<Uid, u64>,
}

impl Preload for Plain {
    fn listed(&mut self, mailbox: &MailboxKey, uids: &UidRanges, _: Now) {
        if self.mailbox.as_ref().is_some_and(|mine| mine.name != mailbox.name) {
            return;
        }
        if self.mailbox.as_ref() != Some(mailbox) {
            *self = Self { mailbox: Some(mailbox.clone()), ..Self::default() };
        }
        if let Some(known) = self.known.replace(uids.clone()) {
            self.new.extend(uids.without(&known).newest_first().filter_map(Uid::new).take(NEW_MAX));
            self.new.truncate(NEW_MAX);
        }
    }

    fn described(&mut self, _: &MailboxKey, uid: Uid, said: &Description, _: Now) {
        self.wanted.insert(uid, said.octets);
    }

    fn held(&mut self, _: &MailboxKey, uid: Uid, held: Held) {
        if held != Held::Nothing {
            self.wanted.remove(&uid);
        }
    }

    fn read(&mut self, _: &MailboxKey, _: Uid, _: Read, _: Now) {}

    fn fetched(&mut self, _: &MailboxKey, _: Uid, _: u64, _: Now) {}

    fn gone(&mut self, _: &MailboxKey, uids: &[Uid], _: Now) {
        self.new.retain(|uid| !uids.contains(uid));
        for uid in uids {
            self.wanted.remove(uid);
        }
    }

    fn next(&mut self, open: &MailboxKey, _: bool, _: Now) -> Option<Order> {
        if self.mailbox.as_ref() != Some(open) {
            return None;
        }
        let work = if self.new.is_empty() {
            let (uid, octets) = self.wanted.pop_last()?;
            Work::Whole { uid, octets }
        } else {
            Work::Describe(std::mem::take(&mut self.new))
        };
        Some(Order { mailbox: open.clone(), work })
    }

    fn ask(&mut self, _: u32, _: Now) -> Grant {
        Grant::Go
    }

    fn foreground(&mut self, _: bool, _: Now) {}
}

/// New messages of one listing; more are left to their reader.
const NEW_MAX: usize = 200;
