//! A client that asks for a name that is not ours, taken to this listener's own server untouched: it verifies the
//! server's own certificate, and no octet of it is read here.

use crate::origin::tune;
use bytes::Bytes;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::TcpStream,
    time::timeout,
};

/// Where tunnels lead: the listener's own server, never a name that the client chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelTo {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How long the connect may take.
    pub connect_timeout: Duration,
}

impl TunnelTo {
    /// Sends what the client has said so far, then copies both ways until both sides have ended. A dead peer is
    /// noticed by TCP keep-alive; a side that is slow stops the other.
    pub(super) async fn run(&self, mut client: TcpStream, said: Bytes) -> io::Result<()> {
        let mut server =
            timeout(self.connect_timeout, TcpStream::connect((self.host.as_str(), self.port))).await??;
        tune(&server)?;
        server.write_all(&said).await?;
        copy_bidirectional(&mut client, &mut server).await?;
        Ok(())
    }
}
