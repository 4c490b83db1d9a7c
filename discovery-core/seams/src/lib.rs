//! The few async traits between the rooms. A session reaches its client and its server only through these, so
//! that neither is ever 'a socket': the far end may be a listener, an adopted connection, a stream over the
//! link to another node, or a pipe in a test.

pub mod intake;
pub mod origin;

use std::{future::Future, pin::Pin};
use tokio::io::{AsyncRead, AsyncWrite};

/// A two-way stream of octets, whatever it is made of.
pub trait AsyncIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> AsyncIo for T {}

/// A future in a box: what a trait object returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
