//! Values that rooms exchange: observed facts going up, advice coming down. Nothing here may say 'mail'.

use crate::{
    id::{NodeId, ServerId, SiteId, UserKey},
    now::UnixMillis,
};

/// How urgent octets are; the link and the gate treat each class apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A person waits.
    Interactive,
    /// A person waits for something large.
    Bulk,
    /// Nobody waits: prefetch, push, shadow comparison.
    Background,
}

/// The protocol in which a user was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// RFC 9051 and 3501.
    Imap,
    /// WebDAV and plain HTTP.
    Http,
    /// NFS version 3.
    Nfs,
    /// SMB 2 and 3.
    Smb,
}

/// What told us that a user reads at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SightingSource {
    /// The server accepted his login through us.
    Login,
    /// He used an object through us.
    Access,
    /// The mail server's own event log.
    ServerLog,
}

/// A user was seen at a site (US 9,172,620, 'each EPC records the fact that a user is retrieving e mail from
/// that location').
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Who.
    pub user: UserKey,
    /// Where.
    pub site: SiteId,
    /// Which node saw him.
    pub node: NodeId,
    /// In which protocol.
    pub protocol: Protocol,
    /// By what evidence.
    pub source: SightingSource,
    /// When, by the node's wall clock.
    pub at: UnixMillis,
    /// How many observations were coalesced into this one; at least 1.
    pub n: u32,
}

/// An object of a server, opaque to everyone but the protocol that made the key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Whose object.
    pub server: ServerId,
    /// The protocol's own key; at most 1 KiB.
    pub key: Vec<u8>,
}

/// Where the octets of an access came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Served {
    /// From the store in the branch.
    Store,
    /// From the server over the WAN.
    Origin,
}

/// A user used an object: one observation for the user affinity database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Who.
    pub user: UserKey,
    /// What.
    pub object: ObjectKey,
    /// Octets delivered.
    pub octets: u64,
    /// From where.
    pub served: Served,
    /// When.
    pub at: UnixMillis,
}

/// How likely a user is to use an object again: what a store weighs before it forgets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// What.
    pub object: ObjectKey,
    /// Parts of a thousand; 0 for what nobody is expected to use.
    pub permille: u16,
}

/// A short, ignorable message between nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The server accepted this user's login at this node.
    Login {
        /// Who.
        user: UserKey,
        /// At which server.
        server: ServerId,
        /// Where.
        node: NodeId,
        /// When.
        at: UnixMillis,
    },
    /// A sustained session ended.
    Ended {
        /// Whose.
        user: UserKey,
        /// At which server.
        server: ServerId,
    },
}

/// How we know that a row is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proof {
    /// The origin told it to a session of this very account.
    Origin,
    /// A content delivery agent pushed it; a session must confirm it before use.
    Push,
    /// A delivery relay saw it pass; a session must confirm it before use.
    Relay,
}
