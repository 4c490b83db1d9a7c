//! What is fetched that nobody asked for: a [`Preload`] that wants what is new, or everything, and must wait now and then.

use crate::random::Random;
use cep::plain::Plain;
use discovery_core::{
    now::Now,
    seam::{advisor::Held, gate::Grant},
};
use imap_core::{
    catalog::MailboxKey,
    preload::{Description, Order, Preload, Read},
    retained::UidRanges,
    uid::Uid,
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// All that is new, most of it at once, and nobody's who is suspended.
pub(crate) struct Ordering {
    plain: Plain,
    mood: Arc<Mutex<Mood>>,
    /// What is there is wanted too, and not only what comes.
    all: bool,
}

/// What the world knows and an order must heed.
pub(crate) struct Mood {
    pub(crate) suspended: Option<Instant>,
    random: Random,
}

impl Mood {
    pub(crate) fn new(random: Random) -> Self {
        Self { suspended: None, random }
    }
}

impl Ordering {
    /// What comes.
    pub(crate) fn news(mood: Arc<Mutex<Mood>>) -> Self {
        Self { plain: Plain::default(), mood, all: false }
    }

    /// Everything.
    pub(crate) fn all(random: Random) -> Self {
        Self { plain: Plain::default(), mood: Arc::new(Mutex::new(Mood::new(random))), all: true }
    }
}

impl Preload for Ordering {
    fn ask(&mut self, _: u32, now: Now) -> Grant {
        let mut mood = self.mood.lock().unwrap();
        let suspended = mood.suspended.filter(|until| *until > now.mono);
        let busy = mood.random.once_in(6).then(|| now.mono + Duration::from_millis(300));
        suspended.or(busy).map_or(Grant::Go, Grant::Wait)
    }
    fn listed(&mut self, mailbox: &MailboxKey, uids: &UidRanges, now: Now) {
        if std::mem::take(&mut self.all) {
            self.plain.listed(mailbox, &UidRanges::default(), now);
        }
        self.plain.listed(mailbox, uids, now);
    }
    fn described(&mut self, mailbox: &MailboxKey, uid: Uid, said: &Description, now: Now) {
        self.plain.described(mailbox, uid, said, now);
    }
    fn held(&mut self, mailbox: &MailboxKey, uid: Uid, held: Held) {
        self.plain.held(mailbox, uid, held);
    }
    fn read(&mut self, _: &MailboxKey, _: Uid, _: Read, _: Now) {}
    fn fetched(&mut self, _: &MailboxKey, _: Uid, _: u64, _: Now) {}
    fn gone(&mut self, mailbox: &MailboxKey, uids: &[Uid], now: Now) {
        self.plain.gone(mailbox, uids, now);
    }
    fn next(&mut self, open: &MailboxKey, roams: bool, now: Now) -> Option<Order> {
        self.plain.next(open, roams, now)
    }
    fn foreground(&mut self, _: bool, _: Now) {}
}
