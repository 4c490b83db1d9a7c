//! Where octets are read into: buffers of one size that go round, so that an idle connection holds none and a busy one
//! allocates none.
//!
//! A buffer travels as [`Bytes`] through the session into the other side's queue, uncopied, and is back here when the
//! last piece of it is written. What came while a secret could pass is wiped on that way, wherever it ends.

use bytes::Bytes;
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};
use zeroize::Zeroize;

/// One TLS record's worth (RFC 8446 §5.1): the TLS library hands out no more at a time.
pub(super) const BUFFER_OCTETS: usize = 16 * 1024;
/// Shorter pieces are copied out: a piece of some octets must not hold a whole buffer while it waits for a slow peer.
const COPY_BELOW: usize = BUFFER_OCTETS / 4;
/// Kept for later; more are given back to the allocator. 4 MiB.
const KEPT_MAX: usize = 256;

/// The buffers of a process.
#[derive(Default)]
pub(super) struct Buffers {
    kept: Mutex<Vec<Box<[u8]>>>,
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Buffers")
    }
}

impl Buffers {
    /// A buffer to read into.
    pub(super) fn lend(self: &Arc<Self>) -> Lent {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let octets = kept.unwrap_or_else(|| vec![0; BUFFER_OCTETS].into_boxed_slice());
        Lent { octets, filled: 0, secret: false, home: Arc::clone(self) }
    }

    fn take_back(&self, buffer: Box<[u8]>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX {
            kept.push(buffer);
        }
    }
}

/// A buffer on its way; goes home when dropped.
pub(super) struct Lent {
    octets: Box<[u8]>,
    filled: usize,
    secret: bool,
    home: Arc<Buffers>,
}

impl Lent {
    /// All of it, to read into.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.octets
    }

    /// The first `filled` octets as what they are from here on; `secret` ones are wiped when nobody needs them.
    pub(super) fn into_bytes(mut self, filled: usize, secret: bool) -> Bytes {
        self.filled = filled.min(self.octets.len());
        self.secret = secret;
        if self.filled >= COPY_BELOW {
            return Bytes::from_owner(self);
        }
        if secret {
            Bytes::from_owner(Wiped(self.as_ref().to_vec()))
        } else {
            Bytes::copy_from_slice(self.as_ref())
        }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.octets.get(..self.filled).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut octets = std::mem::take(&mut self.octets);
        if self.secret {
            octets.zeroize();
        }
        if !octets.is_empty() {
            self.home.take_back(octets);
        }
    }
}

/// A short piece that may hold a secret.
struct Wiped(Vec<u8>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(buffers: &Buffers) -> Vec<Box<[u8]>> {
        std::mem::take(&mut *buffers.kept.lock().expect("not poisoned"))
    }

    #[test]
    fn a_buffer_goes_home_with_the_last_piece_of_it() {
        let buffers = Arc::new(Buffers::default());
        let mut lent = buffers.lend();
        lent.room().fill(b'x');
        let all = lent.into_bytes(BUFFER_OCTETS, false);
        let piece = all.slice(5..9);
        drop(all);
        assert!(kept(&buffers).is_empty());
        assert_eq!(piece, &b"xxxx"[..]);
        drop(piece);
        assert_eq!(kept(&buffers).len(), 1);
    }

    #[test]
    fn a_short_piece_holds_no_buffer() {
        let buffers = Arc::new(Buffers::default());
        for secret in [false, true] {
            let mut lent = buffers.lend();
            lent.room()[..3].copy_from_slice(b"abc");
            let piece = lent.into_bytes(3, secret);
            assert_eq!(kept(&buffers).len(), 1);
            assert_eq!(piece, &b"abc"[..]);
        }
    }

    #[test]
    fn what_was_secret_is_wiped_before_the_buffer_is_used_again() {
        for (filled, octets) in [(BUFFER_OCTETS, BUFFER_OCTETS), (20, BUFFER_OCTETS)] {
            let buffers = Arc::new(Buffers::default());
            let mut lent = buffers.lend();
            lent.room()[..filled].fill(b's');
            drop(lent.into_bytes(filled, true));
            let home = kept(&buffers).pop().expect("one");
            assert_eq!(home.len(), octets);
            assert!(home.iter().all(|o| *o == 0));
        }
    }
}
