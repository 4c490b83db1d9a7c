//! The scenarios, by what they are about.

pub(crate) mod ahead;
pub(crate) mod bridge;
pub(crate) mod chain;
pub(crate) mod changes;
pub(crate) mod commands;
pub(crate) mod crowds;
pub(crate) mod datagrams;
pub(crate) mod deflector;
pub(crate) mod durability;
pub(crate) mod existing;
pub(crate) mod failures;
pub(crate) mod front;
pub(crate) mod garbage;
pub(crate) mod identical;
pub(crate) mod kept;
pub(crate) mod kills;
pub(crate) mod logins;
pub(crate) mod odd;
pub(crate) mod pair;
pub(crate) mod pair_mail;
pub(crate) mod rights;
pub(crate) mod sites;
pub(crate) mod start;
pub(crate) mod supervised;
