//! What came of octets that were fetched before anybody asked for them.

use crate::{
    id::UserKey,
    now::UnixMillis,
    value::{ObjectKey, Served},
};

/// Keeps the account of them: each is used, wasted, or waits. Never blocks for longer than a moment.
pub trait PreloadLedger: Send + Sync {
    /// So many octets of `object` came ahead of `user`.
    fn fetched(&self, user: UserKey, object: &ObjectKey, octets: u64, at: UnixMillis);
    /// He was given so many octets of it from the store.
    fn used(&self, user: UserKey, object: &ObjectKey, octets: u64);
    /// It is gone: what was not used of it never will be.
    fn gone(&self, user: UserKey, object: &ObjectKey);
    /// He opened an object; from where was it served?
    fn opened(&self, user: UserKey, served: Served);
}
