//! The few async traits between the rooms. A session reaches its client and its server only through these, so
//! that neither is ever 'a socket': the far end may be a listener, an adopted connection, a stream over the
//! link to another node, or a pipe in a test.

pub mod intake;
pub mod origin;
mod stream;
mod through;

pub use stream::Stream;

use std::{future::Future, io, pin::Pin};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Empty};

/// A two-way stream of octets, whatever it is made of.
pub trait AsyncIo: AsyncRead + AsyncWrite + Send + Unpin {
    /// Bounds what the far end may have on its way here, to about so many octets: what nobody waits for shall not fill
    /// the queues of a line. Whoever wraps a stream hands this down.
    ///
    /// # Errors
    /// When there is no socket at the bottom, or it cannot.
    fn set_receive_window(&self, _octets: u32) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Gives up memory that only a stream with much to write needs: it will be at rest for hours. Whoever wraps a
    /// stream hands this down.
    fn slim(&mut self) {}

    /// What is at the bottom is to be reset when it is closed next, not ended: the other side of a relay was. Whoever
    /// wraps a stream hands this down.
    fn reset_on_close(&mut self) {}
}

impl AsyncIo for Box<dyn AsyncIo> {
    fn set_receive_window(&self, octets: u32) -> io::Result<()> {
        (**self).set_receive_window(octets)
    }

    fn slim(&mut self) {
        (**self).slim();
    }

    fn reset_on_close(&mut self) {
        (**self).reset_on_close();
    }
}

impl AsyncIo for DuplexStream {}

impl AsyncIo for Empty {}

/// A future in a box: what a trait object returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
