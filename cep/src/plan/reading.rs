//! Pieces of one message, read one after another, are one opening of it.

use discovery_core::{
    now::{Now, UnixMillis},
    value::Served,
};
use imap_core::{catalog::MailboxKey, preload::Read, uid::Uid};
use std::time::{Duration, Instant};

/// Mail programs ask for the next piece when the last one has come; a person goes back to a message later.
const PIECES_WITHIN: Duration = Duration::from_secs(20);

/// What a user opened, once it is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) mailbox: MailboxKey,
    pub(super) uid: Uid,
    pub(super) octets: u64,
    /// As its first piece was served: that is what he waited for.
    pub(super) served: Served,
    pub(super) at: UnixMillis,
}

/// The message that was read last.
#[derive(Debug, Default)]
pub struct Reading {
    open: Option<(Opened, Instant)>,
}

impl Reading {
    /// Gives what was read before and is over now.
    pub(super) fn read(&mut self, mailbox: &MailboxKey, uid: Uid, read: Read, now: Now) -> Option<Opened> {
        let over = match &mut self.open {
            Some((opened, last)) if opened.mailbox == *mailbox && opened.uid == uid => {
                if now.mono.saturating_duration_since(*last) < PIECES_WITHIN {
                    opened.octets = opened.octets.saturating_add(read.octets);
                    *last = now.mono;
                    return None;
                }
                self.finish()
            }
            Some(_) | None => self.finish(),
        };
        let Read { octets, served } = read;
        let opened = Opened { mailbox: mailbox.clone(), uid, octets, served, at: now.wall };
        self.open = Some((opened, now.mono));
        over
    }

    /// What is over by now.
    pub(super) fn settle(&mut self, now: Now) -> Option<Opened> {
        let (_, last) = self.open.as_ref()?;
        (now.mono.saturating_duration_since(*last) >= PIECES_WITHIN).then(|| self.finish())?
    }

    /// What was read last, whatever comes.
    pub(super) fn finish(&mut self) -> Option<Opened> {
        self.open.take().map(|(opened, _)| opened)
    }
}
