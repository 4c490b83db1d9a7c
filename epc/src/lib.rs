//! The e-mail proxy cache.

pub mod intake;
pub mod origin;
pub mod tls;
