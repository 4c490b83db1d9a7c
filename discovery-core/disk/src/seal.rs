//! The two sealers: one that encrypts (AES-256-GCM), one that only notices damage. Both grow what they seal by a
//! fixed number of octets at its end, and both bind it to its place.
//!
//! ```text
//! sealed:   ciphertext ‖ tag (16) ‖ nonce (12)     key: BLAKE3 keyed by the store's key, of kind and place
//! checked:  octets ‖ BLAKE3 of context and octets, cut to 16
//! ```

use discovery_core::mutants;
use discovery_core::seam::sealer::{SealContext, Sealer, Tampered};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use std::sync::atomic::{AtomicU64, Ordering};
use zeroize::Zeroizing;

/// Encrypts nothing; notices every change by chance or accident, not one made on purpose.
#[derive(Debug)]
pub struct CheckOnly;

const CHECK_OCTETS: usize = 16;

impl Sealer for CheckOnly {
    fn seals(&self) -> bool {
        false
    }

    fn seal(&self, context: SealContext<'_>, octets: &mut Vec<u8>) {
        let check = check(context, octets);
        octets.extend_from_slice(&check);
    }

    fn unseal(&self, context: SealContext<'_>, octets: &mut Vec<u8>) -> Result<(), Tampered> {
        let (content, found) = octets.split_last_chunk::<CHECK_OCTETS>().ok_or(Tampered)?;
        if *found != check(context, content) && !mutants::on("store-checksum-off") {
            return Err(Tampered);
        }
        octets.truncate(octets.len() - CHECK_OCTETS);
        Ok(())
    }

    fn overhead(&self) -> usize {
        CHECK_OCTETS
    }

    fn id(&self, plain: [u8; 32]) -> [u8; 32] {
        plain
    }
}

fn check(context: SealContext<'_>, octets: &[u8]) -> [u8; CHECK_OCTETS] {
    let mut hasher = blake3::Hasher::new();
    bind(&mut hasher, context);
    hasher.update(octets);
    let mut out = [0; CHECK_OCTETS];
    hasher.finalize_xof().fill(&mut out);
    out
}

/// Kind, place and block, so that no two contexts give the same octets.
fn bind(hasher: &mut blake3::Hasher, context: SealContext<'_>) {
    hasher.update(&(context.kind.len() as u64).to_be_bytes()).update(context.kind.as_bytes());
    hasher.update(&(context.place.len() as u64).to_be_bytes()).update(context.place);
    hasher.update(&context.block.to_be_bytes());
}

/// Encrypts and authenticates. Each place has a key of its own, so that nonces of different places can never
/// meet, whatever is restored from a backup; within a place they are random.
pub struct AesGcm {
    places: Zeroizing<[u8; 32]>,
    ids: Zeroizing<[u8; 32]>,
    nonce_seed: Zeroizing<[u8; 32]>,
    nonces: AtomicU64,
}

/// The system gave no random octets.
#[derive(Clone, Copy, Debug)]
pub struct NoRandom;

/// Random octets of the system.
///
/// # Errors
/// [`NoRandom`].
pub fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut out = [0; N];
    SystemRandom::new().fill(&mut out).map_err(|_| NoRandom)?;
    Ok(out)
}

impl AesGcm {
    /// A sealer with keys derived from `key`.
    ///
    /// # Errors
    /// [`NoRandom`].
    pub fn new(key: &[u8; 32]) -> Result<Self, NoRandom> {
        Ok(Self {
            places: Zeroizing::new(blake3::derive_key("waypost 2026 store: keys of places", key)),
            ids: Zeroizing::new(blake3::derive_key("waypost 2026 store: ids of content", key)),
            nonce_seed: Zeroizing::new(random()?),
            nonces: AtomicU64::new(0),
        })
    }

    fn key(&self, context: SealContext<'_>) -> Option<LessSafeKey> {
        let mut hasher = blake3::Hasher::new_keyed(&self.places);
        hasher.update(&(context.kind.len() as u64).to_be_bytes()).update(context.kind.as_bytes());
        hasher.update(context.place);
        let key = Zeroizing::new(*hasher.finalize().as_bytes());
        Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).ok()?))
    }

    fn nonce(&self) -> [u8; NONCE_LEN] {
        let nth = self.nonces.fetch_add(1, Ordering::Relaxed);
        let mut out = [0; NONCE_LEN];
        blake3::Hasher::new_keyed(&self.nonce_seed).update(&nth.to_be_bytes()).finalize_xof().fill(&mut out);
        out
    }
}

impl Sealer for AesGcm {
    fn seals(&self) -> bool {
        true
    }

    fn seal(&self, context: SealContext<'_>, octets: &mut Vec<u8>) {
        let nonce = self.nonce();
        let aad = Aad::from(context.block.to_be_bytes());
        let sealed = self.key(context).and_then(|key| {
            key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, octets).ok()
        });
        if sealed.is_none() {
            // Only for more octets than AES-GCM may take; plain text must not get out, and this never unseals.
            octets.clear();
        }
        octets.extend_from_slice(&nonce);
    }

    fn unseal(&self, context: SealContext<'_>, octets: &mut Vec<u8>) -> Result<(), Tampered> {
        let (_, nonce) = octets.split_last_chunk::<NONCE_LEN>().ok_or(Tampered)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        octets.truncate(octets.len() - NONCE_LEN);
        let aad = Aad::from(context.block.to_be_bytes());
        let key = self.key(context).ok_or(Tampered)?;
        let plain = key.open_in_place(nonce, aad, octets).map_err(|_| Tampered)?.len();
        octets.truncate(plain);
        Ok(())
    }

    fn overhead(&self) -> usize {
        AES_256_GCM.tag_len() + NONCE_LEN
    }

    fn id(&self, plain: [u8; 32]) -> [u8; 32] {
        *blake3::keyed_hash(&self.ids, &plain).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealers() -> [Box<dyn Sealer>; 2] {
        [Box::new(CheckOnly), Box::new(AesGcm::new(&[7; 32]).unwrap())]
    }

    const CONTEXT: SealContext<'static> = SealContext { kind: "item", place: b"here", block: 3 };

    #[test]
    fn what_is_sealed_comes_back_and_grows_by_the_overhead() {
        for sealer in sealers() {
            for octets in [&b""[..], b"x", &[9; 70_000]] {
                let mut sealed = octets.to_vec();
                sealer.seal(CONTEXT, &mut sealed);
                assert_eq!(sealed.len(), octets.len() + sealer.overhead());
                sealer.unseal(CONTEXT, &mut sealed).unwrap();
                assert_eq!(sealed, octets);
            }
        }
    }

    #[test]
    fn nothing_opens_elsewhere_or_changed_or_cut() {
        for sealer in sealers() {
            let mut sealed = b"octets".to_vec();
            sealer.seal(CONTEXT, &mut sealed);
            for context in [
                SealContext { kind: "blob", ..CONTEXT },
                SealContext { place: b"her", ..CONTEXT },
                SealContext { block: 4, ..CONTEXT },
            ] {
                assert_eq!(sealer.unseal(context, &mut sealed.clone()), Err(Tampered), "{context:?}");
            }
            for at in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[at] ^= 0x10;
                assert_eq!(sealer.unseal(CONTEXT, &mut changed), Err(Tampered), "octet {at}");
                assert_eq!(sealer.unseal(CONTEXT, &mut sealed[..at].to_vec()), Err(Tampered), "cut at {at}");
            }
        }
    }

    #[test]
    fn another_key_opens_nothing_and_names_nothing_alike() {
        let (one, other) = (AesGcm::new(&[1; 32]).unwrap(), AesGcm::new(&[2; 32]).unwrap());
        let mut sealed = b"octets".to_vec();
        one.seal(CONTEXT, &mut sealed);
        assert_eq!(other.unseal(CONTEXT, &mut sealed), Err(Tampered));
        assert_ne!(one.id([5; 32]), other.id([5; 32]));
        assert_ne!(one.id([5; 32]), [5; 32]);
        let again = AesGcm::new(&[1; 32]).unwrap();
        assert_eq!(one.id([5; 32]), again.id([5; 32]));
    }

    #[test]
    fn the_same_octets_never_look_alike_when_sealed() {
        let sealer = AesGcm::new(&[7; 32]).unwrap();
        let (mut one, mut two) = (b"octets".to_vec(), b"octets".to_vec());
        sealer.seal(CONTEXT, &mut one);
        sealer.seal(CONTEXT, &mut two);
        assert_ne!(one, two);
    }
}
