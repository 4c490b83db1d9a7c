//! The scenarios, by what they are about.

pub(crate) mod ahead;
pub(crate) mod changes;
pub(crate) mod commands;
pub(crate) mod crowds;
pub(crate) mod durability;
pub(crate) mod failures;
pub(crate) mod front;
pub(crate) mod garbage;
pub(crate) mod identical;
pub(crate) mod kept;
pub(crate) mod logins;
pub(crate) mod pair;
pub(crate) mod start;
pub(crate) mod supervised;
