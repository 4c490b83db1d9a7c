//! Who and what: servers, nodes, sites, users. Users travel as keyed hashes, never as names.

use std::{fmt, sync::Arc};

/// A configured server by its canonical name. Everything stored is keyed by it, so that reaching the server by
/// another road (an alias, an address, transparently) never makes the store cold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(Arc<str>);

/// A Waypost node, unique in its organisation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

/// A place where people read: a branch office.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(Arc<str>);

/// Why a text cannot be a name of a server, node or site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadName {
    /// Nothing there.
    Empty,
    /// More than 253 octets, the longest DNS name.
    TooLong,
    /// An octet other than `a-z A-Z 0-9 . _ - : [ ]`.
    Octet(u8),
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a name must not be empty"),
            Self::TooLong => write!(f, "a name has at most {NAME_OCTETS_MAX} octets"),
            Self::Octet(o) => write!(f, "a name is made of a-z A-Z 0-9 . _ - : [ ], not of octet {o:#04x}"),
        }
    }
}

impl std::error::Error for BadName {}

/// The longest DNS name; names of servers are usually one.
const NAME_OCTETS_MAX: usize = 253;

fn checked(name: &str) -> Result<Arc<str>, BadName> {
    if name.is_empty() {
        return Err(BadName::Empty);
    }
    if name.len() > NAME_OCTETS_MAX {
        return Err(BadName::TooLong);
    }
    match name.bytes().find(|o| !(o.is_ascii_alphanumeric() || b"._-:[]".contains(o))) {
        Some(odd) => Err(BadName::Octet(odd)),
        None => Ok(name.into()),
    }
}

macro_rules! name {
    ($kind:ident) => {
        impl $kind {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// [`BadName`] says what is wrong with it.
            pub fn new(name: &str) -> Result<Self, BadName> {
                checked(name).map(Self)
            }

            /// The name as configured.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
name!(ServerId);
name!(NodeId);
name!(SiteId);

/// A user as rows, logs and reports know him: a keyed hash of the authentication identity that the server
/// accepted, under a version of the organisation's key. Names stand only in the account table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserKey {
    /// Which organisation key made it; rotation counts up.
    pub version: u8,
    /// Keyed BLAKE3 of the exact identity, cut to 16 octets.
    pub hash: [u8; 16],
}

impl UserKey {
    /// Version and hash, as rows hold them.
    #[must_use]
    pub fn to_octets(self) -> [u8; 17] {
        let mut out = [0; 17];
        let (version, hash) = out.split_at_mut(1);
        version.fill(self.version);
        hash.copy_from_slice(&self.hash);
        out
    }

    /// The inverse of [`UserKey::to_octets`].
    #[must_use]
    pub fn from_octets(octets: &[u8]) -> Option<Self> {
        let (version, hash) = octets.split_first()?;
        Some(Self { version: *version, hash: hash.try_into().ok()? })
    }
}

impl fmt::Display for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "u{}-", self.version)?;
        self.hash.iter().try_for_each(|o| write!(f, "{o:02x}"))
    }
}

impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One user at one server: the scope of every row that a cache keeps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountKey {
    /// The server that accepted the identity.
    pub server: ServerId,
    /// The identity, hashed.
    pub user: UserKey,
}

/// Makes [`UserKey`]s; holds the organisation's key.
pub trait UserKeying: Send + Sync {
    /// The key of the exact `identity` that the server accepted. Same octets, same key.
    fn user_key(&self, identity: &[u8]) -> UserKey;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_at_the_door() {
        assert_eq!(ServerId::new(""), Err(BadName::Empty));
        assert_eq!(ServerId::new("mail lab"), Err(BadName::Octet(b' ')));
        assert_eq!(ServerId::new(&"a".repeat(254)), Err(BadName::TooLong));
        assert_eq!(ServerId::new("[2001:db8::1]").map(|n| n.to_string()), Ok("[2001:db8::1]".to_owned()));
    }

    #[test]
    fn a_user_key_survives_its_row() {
        let key = UserKey { version: 3, hash: [0xab; 16] };
        assert_eq!(UserKey::from_octets(&key.to_octets()), Some(key));
        assert_eq!(UserKey::from_octets(&[1, 2]), None);
        assert_eq!(key.to_string(), format!("u3-{}", "ab".repeat(16)));
    }
}
