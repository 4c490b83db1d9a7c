//! The organisation's key, which turns identities into [`UserKey`]s: a file of 32 octets, made at the first start. Losing
//! it makes the store cold and old reports unreadable; giving it away lets others test who is who.

use crate::{
    durable::{self, Audience},
    exit::{Exit, Failure},
};
use discovery_core::id::{UserKey, UserKeying};
use std::{
    fs,
    io::{self, Read},
    path::Path,
};

const KEY_OCTETS: usize = 32;
/// Rotation counts up; there is only one key so far.
const VERSION: u8 = 1;

/// Keyed BLAKE3, cut to 16 octets.
pub(crate) struct OrganisationKey([u8; KEY_OCTETS]);

impl OrganisationKey {
    /// Reads the key, or makes it.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::io(format!("the user key {}", path.display()), error)),
            Ok(key) => return Ok(Self(key)),
        }
        let mut key = [0; KEY_OCTETS];
        epc::tls::provider()
            .secure_random
            .fill(&mut key)
            .map_err(|_| Failure::say(Exit::Unavailable, "the system gives no random octets"))?;
        durable::write(path, &key, Audience::Owner)
            .map_err(|error| Failure::io(format!("the user key {} cannot be made", path.display()), error))?;
        tracing::info!(path = %path.display(), "a new user key was made; keep it with the store");
        Ok(Self(key))
    }
}

fn read(path: &Path) -> io::Result<[u8; KEY_OCTETS]> {
    let mut octets = Vec::new();
    fs::File::open(path)?.take(KEY_OCTETS as u64 + 1).read_to_end(&mut octets)?;
    octets.try_into().map_err(|_| io::Error::other(format!("is not a file of {KEY_OCTETS} octets")))
}

impl UserKeying for OrganisationKey {
    fn user_key(&self, identity: &[u8]) -> UserKey {
        let digest = blake3::keyed_hash(&self.0, identity);
        let mut hash = [0; 16];
        hash.iter_mut().zip(digest.as_bytes()).for_each(|(to, from)| *to = *from);
        UserKey { version: VERSION, hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("user.key");
        let first = OrganisationKey::open(&path).unwrap();
        let second = OrganisationKey::open(&path).unwrap();
        assert_eq!(first.user_key(b"mia"), second.user_key(b"mia"));
        assert_ne!(first.user_key(b"mia"), first.user_key(b"Mia"), "identities are exact");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let other = OrganisationKey::open(&dir.path().join("other.key")).unwrap();
        assert_ne!(first.user_key(b"mia"), other.user_key(b"mia"));
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("user.key");
        fs::write(&path, [1; 31]).unwrap();
        let failure = OrganisationKey::open(&path).err().expect("too short");
        assert!(failure.to_string().contains("32 octets"), "{failure}");
    }
}
