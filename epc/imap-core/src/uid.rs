//! Numbers that IMAP gives to messages and mailboxes. None of them is ever a bare integer here.

use std::{fmt, num::NonZeroU32};

/// A message's unique identifier in its mailbox under one UIDVALIDITY (RFC 9051 §2.3.1.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub NonZeroU32);

/// A message sequence number: a position in somebody's view, worth nothing outside it (RFC 9051 §2.3.1.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Msn(pub NonZeroU32);

/// A mailbox's generation: when it changes, every UID is other mail (RFC 9051 §2.3.1.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UidValidity(pub NonZeroU32);

macro_rules! number {
    ($kind:ident) => {
        impl $kind {
            /// `None` for zero, which IMAP gives to nobody.
            #[must_use]
            pub fn new(n: u32) -> Option<Self> {
                NonZeroU32::new(n).map(Self)
            }

            /// The number.
            #[must_use]
            pub fn get(self) -> u32 {
                self.0.get()
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
number!(Uid);
number!(Msn);
number!(UidValidity);
