//! The e-mail proxy cache.

pub mod compress;
pub mod handler;
pub mod intake;
pub mod origin;
pub mod store;
pub mod tls;
