//! The scenarios, by what they are about.

pub(crate) mod identical;
pub(crate) mod logins;
