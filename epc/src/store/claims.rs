//! Who is fetching what at this moment, so that what several ask for at once crosses the WAN once.

use super::bodies::lock;
use imap_core::{
    catalog::{CLAIM_IDLE, MailboxKey},
    item::ItemKey,
    uid::Uid,
};
use std::{collections::HashMap, sync::Mutex, time::Instant};

/// A section of a message of an account.
pub(super) type Claimed = (MailboxKey, Uid, ItemKey);

/// Few at any time: one for each session that waits for a body.
#[derive(Default)]
pub(super) struct Claims(Mutex<HashMap<u64, Claim>>);

struct Claim {
    what: Claimed,
    /// When something of it came last.
    touched: Instant,
}

impl Claims {
    /// Gives `what` to `session`, unless another has it.
    pub(super) fn take(&self, session: u64, what: Claimed, now: Instant) -> bool {
        let mut claims = lock(&self.0);
        claims.retain(|_, claim| now.saturating_duration_since(claim.touched) < CLAIM_IDLE);
        if claims.iter().any(|(owner, claim)| *owner != session && claim.what == what) {
            return false;
        }
        claims.insert(session, Claim { what, touched: now });
        true
    }

    /// Octets came for `session`.
    pub(super) fn touch(&self, session: u64, now: Instant) {
        if let Some(claim) = lock(&self.0).get_mut(&session) {
            claim.touched = now;
        }
    }

    pub(super) fn release(&self, session: u64) {
        lock(&self.0).remove(&session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::store_tests::{item, mailbox, uid};
    use std::time::Duration;

    #[test]
    fn one_at_a_time_has_a_claim_and_silence_ends_it() {
        let what = |n: u32| (mailbox(1, "INBOX", 5), uid(n), item("BODY[]"));
        let claims = Claims::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert!(claims.take(1, what(7), at(0)));
        assert!(claims.take(1, what(7), at(0)), "its own");
        assert!(!claims.take(2, what(7), at(1)));
        assert!(claims.take(2, what(8), at(1)), "another message");
        claims.touch(1, at(1500));
        assert!(!claims.take(3, what(7), at(3400)), "octets came");
        assert!(claims.take(3, what(7), at(3500)), "nothing came for two seconds");
        claims.release(3);
        assert!(claims.take(4, what(7), at(3501)));
        let other_user = (mailbox(2, "INBOX", 5), uid(7), item("BODY[]"));
        assert!(claims.take(5, other_user, at(3501)));
    }
}
